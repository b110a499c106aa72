"""Simulated fundus photographs: disc and cup, branching vessels, macula, and the signs of diabetic retinopathy or glaucoma."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .drawing import Scene, Shot, _between, _blur, _grid, _sampled, _soft, _texture


class Camera(NamedTuple):
    """Blur (standard deviation in frames), noise (grey levels, 0…1), gain of red, green and blue, haze (light scattered in the eye),
    fall-off of the light towards the rim, half height of the field (of the frame; less than its radius: cut flat above and below).
    """

    blur: float
    noise: float
    gain: tuple[float, float, float]
    haze: float
    falloff: float
    flat: float


CAMERAS = (
    Camera(0.0015, 0.010, (1.0, 1.0, 1.0), 0.02, 0.30, 0.52),
    Camera(0.0055, 0.022, (0.86, 1.06, 1.25), 0.06, 0.42, 0.43),
)
RADIUS = 0.485  # of the round field, of the frame
WIDTHS = (0.0095, 0.0062, 0.0038)  # of vessels in frames, by generation


def draw(scene: Scene) -> list[Shot]:
    """A retina under a round field: layers of optical density (pigment, blood) over a bright ground, and the optic disc.

    The mask is of the lesions (microaneurysms, haemorrhages, exudates) in retinopathy and of the cup of the disc in glaucoma.
    """
    rng, edge, hard = scene.patient, scene.edge, scene.difficulty
    eye = _Eye(rng, edge, scene.label == 2, hard)
    lesions = _lesions(rng, hard, eye) if scene.label == 1 else []
    camera = CAMERAS[scene.center]
    x, y = _grid(edge)
    reach = np.hypot(x - 0.5, y - 0.5)
    field = (_soft((RADIUS - reach) / 0.004) * _soft((camera.flat - np.abs(y - 0.5)) / 0.004))[..., None]
    seen = (reach < RADIUS) & (np.abs(y - 0.5) < camera.flat)
    gain = np.log(np.array(camera.gain, np.float32))
    shots = []
    for own in scene.exposures():
        turn, zoom = own.normal(0, 0.05), math.exp(own.normal(0, 0.02))
        dx, dy = own.normal(0, 0.018, 2).tolist()
        cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
        px = 0.5 + cos * (x - 0.5) + sin * (y - 0.5) - dx
        py = 0.5 - sin * (x - 0.5) + cos * (y - 0.5) - dy
        density, cup = eye.seen(px, py)
        mask, conspicuity, subtype = None, 0.0, "normal"
        if lesions:
            density, mask = _with_lesions(lesions, px, py, density)
            mask &= seen
            conspicuity, subtype = sum(lesion.strength for lesion in lesions) / len(lesions), "retinopathy"
        elif scene.label == 2:
            mask, conspicuity, subtype = cup & seen, eye.ratio, "glaucoma"
        lx, ly = own.normal(0, 0.12, 2).tolist()
        light = 1 - camera.falloff * ((x - 0.5 - lx) ** 2 + (y - 0.5 - ly) ** 2) / 0.25
        light = np.maximum(light, 0.15) * math.exp(own.normal(0, 0.06))
        image = np.exp(np.log(light)[..., None] - density + gain) + camera.haze * math.exp(own.normal(0, 0.4)) * _HAZE
        if camera.blur * edge > 0.2:
            image = np.stack([_blur(image[..., c], camera.blur * edge) for c in range(3)], -1)
        noise = camera.noise * _between(0.7, 1.6, hard) * math.sqrt(scene.factor)
        image += noise * own.standard_normal(image.shape, dtype=np.float32)
        shots.append(Shot(np.clip(image, 0, 1) * field, mask, subtype, conspicuity))
    return shots


_HAZE = np.array([0.6, 0.8, 1.0], np.float32)
_GROUND = -np.log(np.array([0.86, 0.43, 0.19], np.float32))  # optical densities of red, green and blue
_DARK = -np.log(np.array([0.62, 0.26, 0.13], np.float32))
_DISC = -np.log(np.array([0.95, 0.62, 0.31], np.float32))
_CUP = -np.log(np.array([1.0, 0.90, 0.64], np.float32))
_ATROPHY = -np.log(np.array([0.92, 0.58, 0.32], np.float32))
_BLOOD = np.array([0.26, 0.80, 0.60], np.float32)
_EXUDATE = -np.log(np.array([1.0, 0.90, 0.50], np.float32))
_WOOL = -np.log(np.array([0.98, 0.88, 0.72], np.float32))


class _Eye:
    """One eye: its disc, vessels, macula and ground."""

    def __init__(self, rng: np.random.Generator, edge: int, glaucoma: bool, hard: float):
        self.side = 1 if rng.random() < 0.5 else -1  # 1: the disc lies to the right
        self.x, self.y = 0.5 + self.side * rng.uniform(0.19, 0.25), 0.5 + rng.normal(0, 0.015)
        self.r, self.tall = rng.uniform(0.072, 0.092), math.exp(rng.normal(0.06, 0.04))
        self.fovea = self.x - self.side * rng.uniform(0.27, 0.31), self.y + rng.uniform(0.01, 0.045)
        # diameter of the cup over that of the disc: two overlapping populations, the more so the harder
        middle, apart, spread = 0.52, _between(0.24, 0.10, hard), _between(0.05, 0.075, hard)
        self.ratio = float(np.clip(middle + (apart if glaucoma else -apart) + spread * rng.normal(), 0.15, 0.92))
        self.notch = (rng.choice([-1, 1]) * math.pi / 2 + rng.normal(0, 0.35), rng.uniform(0.1, 0.3) * _between(1.3, 0.6, hard) * glaucoma)
        self.atrophy = rng.uniform(0.3, 1.0) * _between(1.2, 0.5, hard) if glaucoma and rng.random() < 0.7 else 0.25 * rng.random()
        self.pale = 0.25 * glaucoma * rng.random()
        pigment = rng.uniform(0, 1)
        self.ground = _GROUND + pigment * (_DARK - _GROUND) + rng.normal(0, 0.05, 3).astype(np.float32)
        streaks = _texture(rng, edge, slope=2.6, low=5, high=50, stretch=3.0, angle=round(rng.uniform(0, math.pi), 1))
        cloud = _texture(rng, edge, slope=3.4, low=1.5, high=20)
        self.mottle = (0.05 + 0.06 * rng.random()) * streaks + 0.08 * cloud
        self.spot, self.dark = rng.uniform(0.06, 0.09), rng.uniform(0.4, 0.75)
        self.vessels = _vessel_map(_tree(rng, self), edge)

    def seen(self, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Optical density (edge, edge, 3) and the cup (bool) at the places looked at."""
        mottle, vessels = _sampled(self.mottle, px, py), _sampled(self.vessels, px, py)
        dx, dy = px - self.x, (py - self.y) / self.tall
        reach = np.hypot(dx, dy) / self.r
        angle = np.arctan2(dy, dx * self.side)  # 0 towards the nose
        macula = np.exp(-((px - self.fovea[0]) ** 2 + (py - self.fovea[1]) ** 2) / (2 * self.spot**2))
        density = self.ground + (mottle + self.dark * macula)[..., None] * _PIGMENT
        crescent = self.atrophy * _soft((1.32 - 0.2 * np.cos(angle) - reach) / 0.06) * _soft(-np.cos(angle) * 4)
        density += crescent[..., None] * (_ATROPHY - density)
        disc = _soft((1 - reach) / 0.07)[..., None]
        density += disc * (_DISC + 0.1 * mottle[..., None] - density)
        border = self.ratio * (1 + self.notch[1] * np.exp(-((np.angle(np.exp(1j * (angle - self.notch[0]))) / 0.5) ** 2)))
        cup = np.hypot(dx + self.side * 0.06 * self.r, dy) / self.r / np.minimum(border, 0.95)
        density += (_soft((1 - cup) / 0.12) * (0.8 + self.pale))[..., None] * disc * (_CUP - density)
        bare = 1 - 0.55 * _soft((0.9 - cup) / 0.1)  # vessels dive over the edge of the cup
        return density + (vessels * bare)[..., None] * _BLOOD, (cup < 1) & (reach < 1)


_PIGMENT = np.array([0.55, 1.0, 0.8], np.float32)


def _tree(rng: np.random.Generator, eye: _Eye) -> list[tuple[np.ndarray, float]]:
    """Points (n, 2) along the vessels of each generation, in frames, with their strength 0…1: arcades, branches, twigs.

    Arteries and veins leave the disc in pairs, above and below, towards the temple in arcs around the macula and towards the nose.
    """
    steps = 60
    starts, heads, bends, lengths, tones = [], [], [], [], []
    for up in (-1, 1):
        for vein in (0, 1):
            for temple in (1, 0):
                lean = rng.uniform(0.15, 0.5) if temple else rng.uniform(0.2, 0.9)
                across = -1 if temple else 1  # away from, or towards, the nose
                heads.append(math.atan2(up, eye.side * across * lean) + rng.normal(0, 0.1))
                turn = (rng.uniform(1.5, 2.1) if temple else rng.uniform(-0.1, 0.9)) * up * eye.side * (1 if temple else -1)
                bends.append(turn)
                starts.append((eye.x + rng.normal(0, 0.012), eye.y + up * 0.01 + rng.normal(0, 0.006)))
                lengths.append(rng.uniform(0.62, 0.82) if temple else rng.uniform(0.25, 0.4))
                tones.append(1.0 if vein else 0.72)
    starts, heads, bends, lengths, tones = (np.array(v, float) for v in (starts, heads, bends, lengths, tones))
    generations = []
    for number, (children, spread) in enumerate(((5, 0.75), (4, 0.7), (0, 0.0))):
        wander = np.cumsum(rng.normal(0, 0.055 + 0.02 * number, (len(heads), steps)), 1)
        direction = heads[:, None] + bends[:, None] * np.linspace(0, 1, steps) + wander
        stride = (lengths / steps)[:, None]
        track = starts[:, None] + np.cumsum(np.stack([np.cos(direction), np.sin(direction)], 2) * stride[..., None], 1)
        generations.append((track, tones))
        if not children:
            break
        parent = np.repeat(np.arange(len(heads)), children)
        at = rng.integers(8, steps - 4, len(parent))
        turn = rng.choice([-1, 1], len(parent)) * rng.normal(spread, 0.15, len(parent))
        starts, heads = track[parent, at], direction[parent, at] + turn
        # twigs bend towards the macula, where they end
        to_fovea = np.arctan2(eye.fovea[1] - starts[:, 1], eye.fovea[0] - starts[:, 0])
        bends = 0.5 * np.angle(np.exp(1j * (to_fovea - heads))) * (rng.random(len(parent)) < 0.6) + rng.normal(0, 0.3, len(parent))
        lengths = lengths[parent] * rng.uniform(0.25, 0.5, len(parent))
        tones = tones[parent] * 0.9
    return generations


def _vessel_map(generations: list[tuple[np.ndarray, np.ndarray]], edge: int) -> np.ndarray:
    """Share of blood (edge, edge), 0…1: points strewn along the tracks, thickened to the width of their generation, tapering."""
    blood = np.zeros((edge, edge), np.float32)
    for width, (track, tones) in zip(WIDTHS, generations):
        dense = max(1, math.ceil(2 * edge * float(np.hypot(*np.diff(track, axis=1).transpose(2, 0, 1)).max())))
        share = np.arange(dense) / dense
        points = track[:, :-1, None] + (track[:, 1:] - track[:, :-1])[:, :, None] * share[:, None]
        spacing = np.hypot(*np.diff(track, axis=1).transpose(2, 0, 1)).mean(1) / dense
        taper = 1 - 0.6 * np.linspace(0, 1, points.shape[1])
        weight = (tones * spacing)[:, None, None] * taper[None, :, None] * np.ones(dense)
        column, row = np.floor(points * edge).astype(np.int64).reshape(-1, 2).T
        inside = (column >= 0) & (column < edge) & (row >= 0) & (row < edge)
        strewn = np.bincount((row * edge + column)[inside], weight.reshape(-1)[inside], edge * edge).reshape(edge, edge)
        sigma = max(0.5 * width * edge, 0.45)
        # a line of unit weight a length, blurred, is 1 / (sigma · √(2π)) high in its middle
        line = ndimage.gaussian_filter(strewn.astype(np.float32) * edge, sigma, truncate=3.0) * (sigma * math.sqrt(2 * math.pi))
        blood = np.maximum(blood, min(1.0, width * edge / 0.9) * np.tanh(1.3 * line))
    return blood


class _Lesion(NamedTuple):
    """Place, half length and half width (frames), angle, kind, strength."""

    x: float
    y: float
    a: float
    b: float
    angle: float
    kind: str
    strength: float


def _lesions(rng: np.random.Generator, hard: float, eye: _Eye) -> list[_Lesion]:
    found: list[_Lesion] = []

    def put(kind: str, x: float, y: float, a: float, b: float, angle: float = 0.0) -> None:
        free = math.hypot(x - eye.x, y - eye.y) > 1.5 * eye.r and math.hypot(x - 0.5, y - 0.5) < 0.4
        if free:
            found.append(_Lesion(x, y, a, b, angle, kind, rng.uniform(0.8, 1.1) * _between(1.2, 0.5, hard)))

    def anywhere() -> tuple[float, float]:
        reach, angle = 0.38 * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
        return 0.5 + reach * math.cos(angle), 0.5 + reach * math.sin(angle)

    amount = _between(1.35, 0.6, hard) * rng.uniform(0.6, 1.3)
    while not any(lesion.kind == "blot" for lesion in found):
        for _ in range(2 + rng.poisson(6 * amount)):
            size = rng.uniform(0.012, 0.026)
            put("blot", *anywhere(), size, size * rng.uniform(0.6, 1.0), rng.uniform(0, math.pi))
    for _ in range(rng.poisson(12 * amount)):
        size = rng.uniform(0.0045, 0.0075)
        put("microaneurysm", *anywhere(), size, size)
    for _ in range(rng.poisson(1.5 * amount)):  # along the nerve fibres, which run towards the disc
        x, y = anywhere()
        put("flame", x, y, rng.uniform(0.022, 0.04), rng.uniform(0.007, 0.012), math.atan2(eye.y - y, eye.x - x))
    for _ in range(rng.poisson(1.2 * amount)):  # exudates come in clusters, often about the macula
        cx, cy = (f + s for f, s in zip(eye.fovea, rng.normal(0, 0.09, 2)))
        for _ in range(int(rng.integers(5, 16))):
            size = rng.uniform(0.004, 0.012)
            put("exudate", cx + rng.normal(0, 0.035), cy + rng.normal(0, 0.035), size, size * rng.uniform(0.6, 1.0), rng.uniform(0, math.pi))
    for _ in range(rng.poisson(0.8 * amount)):
        put("wool", *anywhere(), rng.uniform(0.02, 0.035), rng.uniform(0.014, 0.022), rng.uniform(0, math.pi))
    return found


def _with_lesions(
    lesions: list[_Lesion], px: np.ndarray, py: np.ndarray, density: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The density with the lesions in it, and their mask. Each is drawn into a patch of its own."""
    edge = len(px)
    blood, fat, wool = (np.zeros((edge, edge), np.float32) for _ in range(3))
    layers = {"blot": blood, "flame": blood, "microaneurysm": blood, "exudate": fat, "wool": wool}
    mask = np.zeros((edge, edge), bool)
    # px and py are a turn, a zoom and a shift of the grid: where a place of the eye lies in the picture follows from three corners
    across = np.array([px[0, -1] - px[0, 0], py[0, -1] - py[0, 0]]) / (edge - 1)
    down = np.array([px[-1, 0] - px[0, 0], py[-1, 0] - py[0, 0]]) / (edge - 1)
    inverse = np.linalg.inv(np.stack([across, down], 1).astype(float))
    for x, y, a, b, angle, kind, strength in lesions:
        column, row = inverse @ (x - float(px[0, 0]), y - float(py[0, 0]))
        half = 2.2 * a * edge + 2
        where = (slice(max(0, int(row - half)), max(0, int(row + half) + 1)), slice(max(0, int(column - half)), max(0, int(column + half) + 1)))
        dx, dy = px[where] - x, py[where] - y
        if dx.size == 0:
            continue
        cos, sin = math.cos(angle), math.sin(angle)
        ratio = np.hypot((dx * cos + dy * sin) / a, (dy * cos - dx * sin) / b)
        body = strength * _soft((1 - ratio) / (0.4 if kind == "wool" else 0.18))
        np.maximum(layers[kind][where], body, out=layers[kind][where])
        mask[where] |= ratio < 1
    density = density + np.minimum(blood, 1.3)[..., None] * _BLOOD
    for layer, colour in ((wool, 0.75 * _WOOL), (fat, _EXUDATE)):
        density = density + np.minimum(layer, 1)[..., None] * (colour - density)
    return density, mask
