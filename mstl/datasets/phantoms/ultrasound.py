"""Simulated breast ultrasound: speckle of random scatterers seen through a point-spread function, in layers of tissue."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .drawing import _ANGLES, Scene, Shot, _between, _curve, _grid, _outline, _polar, _ridges, _soft, _texture

FIELD_MM = 40.0  # width and depth of the image
FOCUS = 0.45  # of the depth


class Probe(NamedTuple):
    """Point-spread function (standard deviations in mm; the lateral one at the focus, and by how much it grows half a
    frame away from it), looks averaged (spatial compounding), display range (dB), noise floor (dB relative to the
    gland).
    """

    axial: float
    lateral: float
    spread: float
    looks: int
    range: float
    floor: float


PROBES = (Probe(0.13, 0.20, 1.0, 3, 54.0, -38.0), Probe(0.19, 0.30, 1.4, 2, 45.0, -25.0))


def _speckle(rng: np.random.Generator, amplitude: np.ndarray, probe: Probe) -> np.ndarray:
    """Complex echo, as float32 (2, edge, edge), of scatterers of root-mean-square `amplitude`, seen through the probe.

    Many scatterers a resolution cell make circular Gaussian noise (fully developed speckle): where `amplitude` is constant
    the echo's envelope is Rayleigh distributed, its mean 1.91 of its standard deviations, its mean square `amplitude`
    squared. The lateral width is least at the focus: two convolutions are blended by depth, and the blend is rescaled to
    constant power.
    """
    edge = amplitude.shape[0]
    pixel = FIELD_MM / edge
    scatter = rng.standard_normal((2, edge, edge), dtype=np.float32)
    scatter *= amplitude * math.sqrt(0.5)
    axial, near = max(probe.axial / pixel, 0.35), max(probe.lateral / pixel, 0.4)
    far = near * (1 + probe.spread)
    scatter = ndimage.gaussian_filter1d(scatter, axial, axis=1, mode="reflect", truncate=3.0)
    sharp, wide = (ndimage.gaussian_filter1d(scatter, s, axis=2, mode="reflect", truncate=3.0) for s in (near, far))
    k_axial, k_near, k_far = _kernel(axial), _kernel(near), _kernel(far)
    power_near, power_far = (float((k_axial**2).sum() * (k**2).sum()) for k in (k_near, k_far))
    pad = (len(k_far) - len(k_near)) // 2
    together = float((np.pad(k_near, pad) * k_far).sum() / np.sqrt((k_near**2).sum() * (k_far**2).sum()))
    share = np.clip(np.abs(_grid(edge)[1] - FOCUS) / 0.55, 0, 1)
    scale = 1 / np.sqrt((1 - share) ** 2 + share**2 + 2 * share * (1 - share) * together)
    sharp *= (1 - share) * scale / math.sqrt(power_near)
    wide *= share * scale / math.sqrt(power_far)
    return sharp + wide


def _kernel(sigma: float) -> np.ndarray:
    radius = int(3.0 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


def draw(scene: Scene) -> list[Shot]:
    """Breast: skin, fat with septa, gland, retromammary fat, pectoral muscle; echogenicity in dB relative to the gland."""
    rng, edge = scene.patient, scene.edge
    breast = _Breast(rng, edge)
    lesion = _us_lesion(rng, scene.label, scene.difficulty, breast) if scene.label else None
    probe = PROBES[scene.center]
    shots = []
    for own in scene.exposures():
        x, y = _grid(edge)
        slide, press = own.normal(0, 0.035), 1 + own.normal(0, 0.03)
        level = breast.echo(x, y, slide, press)
        mask, conspicuity, subtype = None, 0.0, "normal"
        loss = breast.loss(x - slide, y)
        contact = (
            own.uniform(0, 12),
            own.uniform(0.9, 1.3),
            own.uniform(-0.3, 0.1),
        )  # the probe's ends may lift off the skin
        loss = loss + contact[0] * (_soft((x - contact[1]) / 0.03) + _soft((contact[2] - x) / 0.03)) * np.sqrt(y)
        if lesion is not None:
            level, loss, mask, conspicuity, subtype = _us_insert(lesion, own, level, loss, slide, press, edge)
        amplitude = np.exp((level - loss) * (math.log(10) / 20))
        floor = probe.floor + _between(-3, 6, scene.difficulty) + 8 * (y - 0.6)
        power = np.zeros((edge, edge), np.float32)
        for _ in range(probe.looks):
            echo = _speckle(own, amplitude, probe)
            echo += (
                own.standard_normal((2, edge, edge), dtype=np.float32)
                * np.exp(floor * (math.log(10) / 20))
                * math.sqrt(0.5)
            )
            power += echo[0] ** 2 + echo[1] ** 2
        decibel = 10 * np.log10(power / probe.looks + 1e-6) + own.normal(0, 1.5)
        shots.append(Shot(_log_compressed(decibel, probe.range), mask, subtype, conspicuity))
    return shots


def _log_compressed(decibel: np.ndarray, span: float) -> np.ndarray:
    """`span` dB from black to white, the gland's mean level at 0.5."""
    return np.clip(0.5 + decibel / span, 0, 1)


class _Breast:
    """The layers of one woman's breast under the probe."""

    def __init__(self, rng: np.random.Generator, edge: int):
        self.edge = edge
        self.skin, self.fat = rng.uniform(0.03, 0.055), rng.uniform(0.05, 0.24)
        self.gland, self.muscle = rng.uniform(0.24, 0.42), rng.uniform(0.1, 0.22)
        self.borders = [_curve(rng, a, w) for a, w in ((0.004, 2), (0.03, 3), (0.035, 3), (0.02, 2))]
        self.tilt = rng.normal(0, 0.06)
        self.level = {name: rng.uniform(*span) for name, span in _LEVELS.items()}
        self.septa = _reflectors(_texture(rng, edge, slope=5, low=3, high=20, stretch=3.2), rng.uniform(0.04, 0.09))
        self.sheets = _reflectors(_texture(rng, edge, slope=4.5, low=6, high=36, stretch=4.5), rng.uniform(0.12, 0.2))
        self.mottle = _texture(rng, edge, slope=2.4, low=6, high=60, stretch=2.2)
        self.lobules = _texture(rng, edge, slope=5, low=6, high=18, stretch=1.7)
        self.fibres = _texture(rng, edge, slope=2.2, low=12, high=90, stretch=9.0)
        self.fatty = rng.uniform(-0.4, 1.2)
        self.lines = rng.uniform(0.6, 1.3)
        self.shade, self.decay = _curve(rng, rng.uniform(0.5, 5), 3), rng.uniform(4, 26)

    def echo(self, x: np.ndarray, y: np.ndarray, slide: float, press: float) -> np.ndarray:
        """Mean echo level (edge, edge) in dB, seen after the probe slid along the skin and pressed on it."""
        roll = round(slide * self.edge)
        septa, sheets, mottle, lobules, fibres = (
            np.roll(f, roll, 1) for f in (self.septa, self.sheets, self.mottle, self.lobules, self.fibres)
        )
        lx, level = x - slide, self.level
        slope = self.tilt * (lx - 0.5)
        under_skin = self.skin + self.borders[0](lx)
        under_fat = (self.skin + self.fat) * press + self.borders[1](lx) + slope
        under_gland = (self.skin + self.fat + self.gland) * press + self.borders[2](lx) + slope
        on_muscle = under_gland + 0.3 * self.muscle + 0.4 * self.borders[3](lx)
        under_muscle = on_muscle + self.muscle + self.borders[3](lx)
        borders = (
            (under_skin, 0.004),
            (under_fat, 0.012),
            (under_gland, 0.012),
            (on_muscle, 0.006),
            (under_muscle, 0.03),
        )
        skin, fat, gland, back, deep = (_soft((y - b) / w) for b, w in borders)
        skin, fat, gland, back, muscle = 1 - skin, skin - fat, fat - gland, gland - back, back - deep
        echo = (
            skin * level["skin"]
            + fat * level["fat"]
            + back * level["back"]
            + muscle * level["muscle"]
            + deep * level["deep"]
        )
        echo += (gland + 0.5 * (fat + back)) * (2.6 * mottle) - gland * 13 * _soft(
            (lobules - 1.25 + 0.5 * self.fatty) * 9
        )
        echo += self.lines * (
            septa * (13 * fat + 10 * back + 5 * gland)
            + sheets * (5 * fat + 8 * gland + 11 * back + 12 * muscle + 10 * deep)
        )
        echo += fibres * (5 * muscle + 2.5 * gland + 3.5 * deep)
        for border, gain, width in (
            (0.006 + 0 * under_skin, 9, 0.004),
            (under_skin, 8, 0.006),
            (on_muscle, 13, 0.007),
            (under_muscle, 9, 0.008),
        ):
            echo += gain * np.exp(-(((y - border) / width) ** 2)) * (0.6 + 0.4 * np.cos(9 * lx + 40 * border))
        return echo

    def loss(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """What the tissue above takes away (dB), after the machine's own compensation."""
        return self.shade(x) * y + self.decay * np.clip(y - 0.4, 0, None)


def _reflectors(field: np.ndarray, width: float) -> np.ndarray:
    """Sheets of connective tissue, 0…1: they shine where they lie across the beam and fade where they run along it."""
    down, across = np.gradient(field)
    facing = down**2 / (down**2 + across**2 + np.float32(1e-12))
    return _ridges(field, width) * (0.1 + 0.9 * facing)


_LEVELS = {"skin": (0, 5), "fat": (-14, -7), "back": (-16, -9), "muscle": (-15, -8), "deep": (-24, -12)}


def _us_lesion(rng: np.random.Generator, label: int, hard: float, breast: _Breast) -> dict:
    # Every sign of malignancy is a noisy reading of the truth, the more so the harder: no single sign decides.
    side = 2 * label - 3
    shape, margin, aspect, shadow, texture, dark = (
        _soft(side * _between(3.2, 0.7, hard) + 1.2 * float(z) * _between(0.5, 1.0, hard))
        for z in rng.standard_normal(6)
    )
    size = rng.uniform(0.085, 0.19) * _between(1.15, 0.85, hard)
    ratio = math.exp(_mix(0.45, -0.2, aspect) + rng.normal(0, 0.08))  # width over height
    cyst = label == 1 and rng.random() < 0.25
    outline = _outline(rng, _mix(0.05, 0.2, shape), 3 + int(9 * shape), 0.9)
    for _ in range(rng.poisson(12 * max(shape - 0.35, 0))):  # spicules and angular corners
        turn = (np.arange(_ANGLES) - rng.uniform(0, _ANGLES) + _ANGLES / 2) % _ANGLES - _ANGLES / 2
        outline = outline * (1 + rng.uniform(0.12, 0.45) * np.exp(-np.abs(turn) / rng.uniform(3, 8)))
    top = breast.skin + breast.fat
    return dict(
        x=rng.uniform(0.28, 0.72), y=min(max(rng.uniform(top, top + breast.gland), 0.17 + size * 0.4), 0.58),
        rx=size * math.sqrt(ratio), ry=size / math.sqrt(ratio), tilt=rng.normal(0, 0.12 + 0.3 * max(shape - 0.4, 0)),
        outline=outline.astype(np.float32), edge=_mix(0.03, 0.16, margin), cyst=cyst,
        depth=(rng.uniform(9, 16) + 4 * dark + 14 * cyst) * _between(1.25, 0.65, hard),
        loss=(_mix(-9, 18, shadow) - 5 * cyst) * _between(1.15, 0.75, hard), rough=_mix(1.2, 4.0, texture),
        halo=6 * max(margin - 0.4, 0), rim=6 * _mix(0.8, 0.0, margin), specks=rng.poisson(4 * max(texture - 0.5, 0)),
        grain=_texture(rng, breast.edge, slope=2.5, low=8, high=50),
    )  # fmt: skip


def _mix(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _us_insert(
    lesion: dict, own: np.random.Generator, level: np.ndarray, loss: np.ndarray, slide: float, press: float, edge: int
):
    """The lesion in the map of echo levels (dB), what the tissue above takes away (dB) with it, its mask, depth in dB
    and kind.
    """
    cx, cy = lesion["x"] + slide, lesion["y"] * press
    rx, ry = lesion["rx"] * math.exp(own.normal(0, 0.05)), lesion["ry"] * math.exp(own.normal(0, 0.05))
    polar = _polar(edge, cx, cy, rx, ry, lesion["tilt"], lesion["outline"])
    inside = _soft((1 - polar.ratio) / lesion["edge"])
    target = -lesion["depth"] + (0.0 if lesion["cyst"] else lesion["rough"]) * lesion["grain"]
    level = level + (target - level) * inside
    level += lesion["halo"] * np.exp(-(((polar.ratio - 1.18) / 0.16) ** 2)) + lesion["rim"] * np.exp(
        -(((polar.ratio - 1) / 0.07) ** 2)
    )
    x, y = _grid(edge)
    for _ in range(lesion["specks"]):  # microcalcifications
        r, a = own.uniform(0, 0.7), own.uniform(0, 2 * math.pi)
        level += 16 * np.exp(-((x - cx - rx * r * math.cos(a)) ** 2 + (y - cy - ry * r * math.sin(a)) ** 2) / 0.006**2)
    # attenuation is a property of the path: summed down the column, so that the shadow (or enhancement) has the
    # lesion's width
    column = np.cumsum(inside, 0, dtype=np.float32) / (2 * ry * edge)
    column = ndimage.gaussian_filter1d(column, max(1.0, 0.008 * edge), axis=1, mode="nearest", truncate=3.0)
    loss = loss * (1 - inside * lesion["cyst"]) + lesion["loss"] * column * (1 - inside * 0.6)
    return level, loss, polar.ratio < 1, lesion["depth"], "cyst" if lesion["cyst"] else "mass"
