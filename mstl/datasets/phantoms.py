"""Phantoms: simulated images of five modalities with their truth (label, patient, center, mask, boxes).

Each is drawn from a small model of how such an image comes about, not painted: ultrasound is speckle of random
scatterers seen through a point-spread function; a mammogram and a chest radiograph are sums of what the ray meets; a
brightfield image is a phase object out of focus; a fractal is the attractor of a random iterated function system.
They check the machine, not any claim about patients.

Classes are the same for every seed (line 3 is always the same line), so that two sets of different seeds are two
samples of one world. Whatever belongs to a patient is drawn from one stream of random numbers and whatever belongs to
a single exposure from another; neither knows the number of workers, so the bytes follow from the arguments of `make`
alone.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import fft, ndimage

from ..errors import MstlError
from .catalog import card, nearest
from .imageset import BOXES, ImageSet

CENTERS = ("A", "B")  # B: an older machine: more noise, more blur, another contrast
SIZES = (32, 512)
MAX_CLASSES = {"cells": 30, "fractals": 1000}


def make(
    kind: str,
    *,
    n: int,
    size: int,
    seed: int = 0,
    difficulty: float = 0.5,
    n_classes: int | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> ImageSet:
    """`n` simulated images of `size` × `size` pixels.

    kind        "ultrasound" (normal, benign, malignant), "mammogram" (normal, lesion), "chest" (normal, pneumonia), "cells"
                or "fractals"
    n           images, at least two a class; classes are balanced up to rounding, and within each class so are the two centers
    size        side in pixels, 32 to 512
    difficulty  0 (plain to see) to 1 (near the limit of what can be seen): contrast and size of what makes a class, its
                overlap with the other classes, and noise
    n_classes   of cells (2 to 30, default 6) and fractals (2 to 1000, default 10) only
    workers     threads; default: the cores of this process. The bytes do not depend on it

    A group is one patient (cells: one position in a well; fractals: the image itself) with one to four images that share
    their anatomy, their class and their center. Masks and boxes (ultrasound, mammogram, chest) are in pixels; a box is
    x0 ≤ x < x1, y0 ≤ y < y1, one a connected region of the mask. `extra` has `subtype` (what was drawn) and `conspicuity`
    (how strongly, on a scale of its kind; 0 where there is nothing to find).
    Raises MstlError for an argument out of range.
    """
    classes = _checked(kind, n, size, seed, difficulty, n_classes)
    model = MODELS[kind]
    draw = model.draw
    scenes = _scenes(kind, classes, n, size, seed, float(difficulty))
    rows = np.cumsum([0] + [scene.count for scene in scenes])
    images = np.empty((n, size, size, model.channels), np.uint8)
    masks = np.zeros((n, size, size), np.uint8) if model.masks else None
    subtypes, conspicuity = np.empty(n, object), np.zeros(n)

    def fill(number: int) -> None:
        scene = scenes[number]
        for row, shot in zip(range(rows[number], rows[number + 1]), draw(scene)):
            images[row] = _to_bytes(shot.image, scene.factor)
            subtypes[row], conspicuity[row] = shot.subtype, round(float(shot.conspicuity), 4)
            if masks is not None and shot.mask is not None:
                masks[row] = _reduced_mask(shot.mask, scene.factor)

    _run(fill, len(scenes), _workers(workers), f"simulating {kind}" if progress else None)
    repeated = [scene for scene in scenes for _ in range(scene.count)]
    labels = np.array([scene.label for scene in repeated])
    return ImageSet(
        name=f"phantom-{kind}",
        images=images,
        labels=labels,
        classes=classes,
        groups=np.array([f"{model.group}-{scene.number:05d}" for scene in repeated]),
        centers=np.array([CENTERS[scene.center] for scene in repeated]),
        ids=np.array([f"{kind}-{row:06d}" for row in range(n)]),
        splits=np.full(n, ""),
        masks=masks,
        boxes=None if masks is None else _boxes(masks, labels, classes),
        extra=pd.DataFrame({"subtype": subtypes.astype(str), "conspicuity": conspicuity}),
        card=dataclasses.replace(card(f"phantom-{kind}"), classes=classes, channels=model.channels),
    )


# --- arguments, patients, threads -------------------------------------------------------------------------------------


def _checked(kind: str, n: int, size: int, seed: int, difficulty: float, n_classes: int | None) -> tuple[str, ...]:
    if kind not in MODELS:
        raise MstlError(f"there is no phantom {kind!r}{nearest(kind, MODELS)}; the kinds are {', '.join(MODELS)}")
    for name, value in (("n", n), ("size", size), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise MstlError(f"phantom {kind}: {name} must be a whole number, not {value!r}")
    if not SIZES[0] <= size <= SIZES[1]:
        raise MstlError(f"phantom {kind}: size must lie between {SIZES[0]} and {SIZES[1]} pixels, not {size}")
    if seed < 0:
        raise MstlError(f"phantom {kind}: seed must be 0 or more, not {seed}")
    if isinstance(difficulty, bool) or not isinstance(difficulty, (int, float)) or not 0 <= difficulty <= 1:
        raise MstlError(f"phantom {kind}: difficulty must lie between 0 (easy) and 1 (hard), not {difficulty!r}")
    fixed = MODELS[kind].classes
    if fixed and n_classes not in (None, len(fixed)):
        raise MstlError(f"phantom {kind} has the {len(fixed)} classes {', '.join(fixed)}; leave n_classes out")
    count = len(fixed) or (MODELS[kind].n_classes if n_classes is None else n_classes)
    if (
        isinstance(count, bool)
        or not isinstance(count, (int, np.integer))
        or (not fixed and not 2 <= count <= MAX_CLASSES[kind])
    ):
        raise MstlError(f"phantom {kind}: n_classes must lie between 2 and {MAX_CLASSES[kind]}, not {count!r}")
    if n < 2 * count:
        raise MstlError(
            f"phantom {kind}: n = {n} is too small for {count} classes in two centers; ask for at least {2 * count} images"
        )
    return fixed or tuple(f"{MODELS[kind].word}-{k + 1:0{len(str(count)) if count > 99 else 2}d}" for k in range(count))


@dataclass(frozen=True)
class Scene:
    """One patient (or well) with all of its images: what `draw` needs to know, and its streams of random numbers."""

    kind: int
    seed: int
    number: int
    label: int
    center: int
    count: int
    size: int
    difficulty: float

    @property
    def factor(self) -> int:
        """How many times finer than the image the scene is drawn."""
        return 1 if self.size >= 160 else max(2, -(-128 // self.size))

    @property
    def edge(self) -> int:
        """Side of the drawing in its own pixels."""
        return self.size * self.factor

    @cached_property
    def patient(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.kind, self.number, 0])

    def exposures(self) -> list[np.random.Generator]:
        return [np.random.default_rng([self.seed, self.kind, self.number, 1 + i]) for i in range(self.count)]


class Shot(NamedTuple):
    """One image (edge, edge) or (edge, edge, 3) of 0…1, the mask of its lesion (bool) or None, and what it is."""

    image: np.ndarray
    mask: np.ndarray | None
    subtype: str
    conspicuity: float


class Model(NamedTuple):
    draw: Callable[[Scene], Sequence[Shot]]
    classes: tuple[str, ...]  # empty: `n_classes` of them, called word-01, word-02 …
    group: str
    masks: bool
    channels: int = 1
    grouped: bool = True
    n_classes: int = 0
    word: str = ""


def _scenes(kind: str, classes: tuple[str, ...], n: int, size: int, seed: int, difficulty: float) -> list[Scene]:
    code = list(MODELS).index(kind)
    rng = np.random.default_rng([seed, code])
    largest = 4 if MODELS[kind].grouped else 1
    cells = []  # (label, center, images)
    for label in range(len(classes)):
        images = n // len(classes) + (label < n % len(classes))
        for center, part in enumerate((images - (images + label % 2) // 2, (images + label % 2) // 2)):
            while part > 0:
                count = min(part, int(rng.integers(1, largest + 1)))
                cells.append((label, center, count))
                part -= count
    order = rng.permutation(len(cells))
    return [Scene(code, seed, number, *cells[i], size, difficulty) for number, i in enumerate(order)]


def _workers(workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise MstlError(f"workers must be a whole number from 1 up, not {workers!r}")
    return workers


def _run(task: Callable[[int], None], n: int, workers: int, title: str | None) -> None:
    from tqdm import tqdm

    with ThreadPoolExecutor(workers) as pool:
        for _ in tqdm(pool.map(task, range(n)), total=n, desc=title, disable=title is None):
            pass


def _to_bytes(image: np.ndarray, factor: int) -> np.ndarray:
    image = image if image.ndim == 3 else image[..., None]
    if factor > 1:
        edge, _, channels = image.shape
        image = image.reshape(edge // factor, factor, edge // factor, factor, channels).mean((1, 3))
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def _reduced_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    edge = mask.shape[0] // factor
    share = mask.reshape(edge, factor, edge, factor).mean((1, 3))
    return (share >= min(0.5, share.max())).astype(np.uint8) if share.any() else np.zeros((edge, edge), np.uint8)


def _boxes(masks: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> pd.DataFrame:
    rows = []
    for image in np.flatnonzero(masks.any((1, 2))):
        parts, _ = ndimage.label(masks[image], structure=np.ones((3, 3)))
        for vertical, horizontal in ndimage.find_objects(parts):
            rows.append(
                (image, classes[labels[image]], horizontal.start, vertical.start, horizontal.stop, vertical.stop)
            )
    table = pd.DataFrame(rows, columns=BOXES)
    return table.astype({"image": np.int64, "class": str, **{c: np.float64 for c in BOXES[2:]}})


# --- what several modalities draw with --------------------------------------------------------------------------------


def _between(easy: float, hard: float, difficulty: float) -> float:
    return easy + (hard - easy) * difficulty


def _soft(t):
    """A soft step from 0 to 1 about t = 0 (the logistic function), of numbers or arrays."""
    return 0.5 + 0.5 * np.tanh(0.5 * t) if isinstance(t, np.ndarray) else 0.5 + 0.5 * math.tanh(0.5 * t)


@lru_cache(maxsize=16)
def _grid(edge: int) -> tuple[np.ndarray, np.ndarray]:
    """x (1, edge) and y (edge, 1) of the pixels' middles, 0…1."""
    t = (np.arange(edge, dtype=np.float32) + 0.5) / edge
    return t[None, :], t[:, None]


@lru_cache(maxsize=16)
def _waves(edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Spatial frequencies (cycles a frame) of `rfft2`: horizontal (1, edge // 2 + 1), vertical (edge, 1)."""
    return (
        np.arange(edge // 2 + 1, dtype=np.float32)[None, :],
        (fft.fftfreq(edge) * edge).astype(np.float32)[:, None],
    )


@lru_cache(maxsize=64)
def _amplitude(edge: int, slope: float, low: float, high: float, stretch: float, angle: float) -> np.ndarray:
    fx, fy = _waves(edge)
    along, across = fx * np.cos(angle) + fy * np.sin(angle), fy * np.cos(angle) - fx * np.sin(angle)
    f2 = (along * stretch) ** 2 + across**2
    amplitude = (f2 + low**2) ** (-slope / 4)
    if np.isfinite(high):
        amplitude *= np.exp(-f2 / high**2)
    amplitude[0, 0] = 0
    # every wave but those of the first and the last column of rfft2 stands for two
    twice = np.where((fx == 0) | (fx == edge // 2), 1, 2)
    return (amplitude * edge / np.sqrt((twice * amplitude**2).sum())).astype(np.float32)


def _texture(
    rng: np.random.Generator,
    edge: int,
    *,
    slope: float,
    low: float = 0.5,
    high: float = np.inf,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> np.ndarray:
    """A periodic Gaussian random field (edge, edge) of mean 0 and expected variance 1, whose power falls as 1 / f^slope.

    `low` and `high` (cycles a frame) bound it; `stretch` > 1 draws it out along `angle` (radians from the x axis).
    """
    noise = fft.rfft2(rng.standard_normal((edge, edge), dtype=np.float32))
    return fft.irfft2(noise * _amplitude(edge, slope, low, high, stretch, round(float(angle), 2)), s=(edge, edge))


def _ridges(field: np.ndarray, width: float) -> np.ndarray:
    """Thin curved lines, 0…1: where a smooth random field crosses zero."""
    return np.exp(-((field / width) ** 2))


def _curve(rng: np.random.Generator, amplitude: float, waves: int) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth random function of one variable, of root mean square `amplitude`, with up to `waves` waves from 0 to 1."""
    k = np.arange(1, waves + 1)
    strength = rng.standard_normal(waves) / k
    phase = rng.uniform(0, 2 * np.pi, waves)
    strength *= amplitude * np.sqrt(2 / np.sum(1 / k**2))
    terms = [(float(s), 2 * math.pi * int(w), float(p)) for s, w, p in zip(strength, k, phase)]
    return lambda t: sum(s * np.cos(w * t + p) for s, w, p in terms)


_ANGLES = 256


def _outline(rng: np.random.Generator, roughness: float, lobes: int, fall: float = 1.0) -> np.ndarray:
    """Radius of a closed outline at 256 angles, about 1: harmonics 2…`lobes`, whose amplitude falls as 1 / k^fall."""
    theta = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
    k = np.arange(2, lobes + 1)
    waves = np.cos(k[:, None] * theta + rng.uniform(0, 2 * np.pi, (len(k), 1)))
    strength = rng.standard_normal(len(k)) / k**fall
    outline = strength @ waves / np.sqrt(np.sum(0.5 / k ** (2 * fall)))
    return np.exp(roughness * outline).astype(np.float32)


class _Polar(NamedTuple):
    """Pixels seen from a lesion: `ratio` distance over the outline's radius (1 on the outline), `angle` in 0…256,
    `radius` in frames.
    """

    ratio: np.ndarray
    angle: np.ndarray
    radius: np.ndarray


def _polar(edge: int, x: float, y: float, rx: float, ry: float, tilt: float, outline: np.ndarray) -> _Polar:
    gx, gy = _grid(edge)
    dx, dy, rx, ry = gx - float(x), gy - float(y), float(rx), float(ry)
    cos, sin = math.cos(tilt), math.sin(tilt)
    u, v = (dx * cos + dy * sin) / rx, (dy * cos - dx * sin) / ry
    reach = np.hypot(u, v)
    angle = np.arctan2(v, u) * (_ANGLES / (2 * math.pi)) % _ANGLES
    return _Polar(reach / outline[angle.astype(np.intp) % _ANGLES], angle, reach * math.sqrt(rx * ry))


def _sampled(field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A periodic field read at other places (in frames), linearly."""
    edge = field.shape[0]
    places = np.stack([y * edge - 0.5, x * edge - 0.5])
    return ndimage.map_coordinates(field, places, order=1, mode="grid-wrap", output=np.float32)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3.0) if sigma > 0.2 else image


# --- ultrasound -------------------------------------------------------------------------------------------------------

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


def _ultrasound(scene: Scene) -> list[Shot]:
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


# --- mammogram --------------------------------------------------------------------------------------------------------


class Film(NamedTuple):
    """Blur (standard deviation in frames), noise (grey levels, 0…1, at mid grey), contrast, mean grey."""

    blur: float
    noise: float
    contrast: float
    grey: float


FILMS = (Film(0.002, 0.007, 1.15, 0.60), Film(0.0045, 0.016, 0.85, 0.64))


def _mammogram(scene: Scene) -> list[Shot]:
    """A region of a compressed breast: what a ray meets adds up, in power-law tissue with fibres, and a mass where there
    is one.
    """
    rng, edge, hard = scene.patient, scene.edge, scene.difficulty
    breast = _mammary_region(rng, edge)
    bend = [0.03 * _texture(rng, edge, slope=6, low=1.5, high=6) for _ in range(2)]
    tilt = rng.normal(0, 0.7), rng.normal(0, 0.7)
    skin = (
        (rng.uniform(0, 2 * math.pi), rng.uniform(0.38, 0.62), rng.uniform(1.0, 2.0)) if rng.random() < 0.25 else None
    )
    lesion = _mass(rng, hard) if scene.label else None
    film = FILMS[scene.center]
    x, y = _grid(edge)
    shots = []
    for own in scene.exposures():
        sx, sy, squeeze = own.normal(0, 0.03), own.normal(0, 0.03), 1 + own.normal(0, 0.3)
        px, py = x - sx + squeeze * bend[0], y - sy + squeeze * bend[1]
        mask, conspicuity, subtype, mass = None, 0.0, "normal", 0.0
        if lesion is not None:
            mass, pull, mask, conspicuity, subtype = _mass_insert(lesion, own, sx, sy, edge)
            px, py = px + pull[0], py + pull[1]
        density = _sampled(breast, px, py) + tilt[0] * (x - 0.5) + tilt[1] * (y - 0.5) + mass
        grey = film.grey + 0.058 * film.contrast * density + own.normal(0, 0.03)
        if skin:
            grey = _to_the_skin(grey, skin, x - sx, y - sy)
        grey = _blur(grey, film.blur * edge)
        noise = film.noise * _between(0.6, 1.6, hard) * math.sqrt(scene.factor)
        grey += noise * np.sqrt(np.clip(1.2 - grey, 0.1, None)) * own.standard_normal((edge, edge), dtype=np.float32)
        shots.append(Shot(np.clip(grey, 0, 1), mask, subtype, conspicuity))
    return shots


def _mammary_region(rng: np.random.Generator, edge: int) -> np.ndarray:
    """Density (edge, edge, periodic): parenchyma, denser and streakier where it is glandular, and strands of connective
    tissue.
    """
    direction = round(rng.uniform(0, math.pi), 1)
    tissue = _mammary_tissue(rng, edge, rng.uniform(2.9, 3.3))
    streaks = _texture(rng, edge, slope=2.7, low=3, stretch=round(rng.uniform(2.5, 5), 1), angle=direction)
    strands = sum(
        _ridges(
            _texture(rng, edge, slope=5, low=low, high=40, stretch=round(rng.uniform(2, 4), 1), angle=direction),
            rng.uniform(0.03, 0.06),
        )
        for low in (2.5, 6)
    )
    gland = _soft((tissue - 0.6 + 1.6 * (0.5 - rng.uniform(0, 1))) * 2)
    thin = _soft(2 * _texture(rng, edge, slope=4, low=1.5))  # strands come and go
    return math.exp(rng.normal(-0.15, 0.25)) * (
        tissue + (0.2 + 0.4 * gland) * streaks + 1.3 * strands * thin + 0.5 * gland
    )


def _mammary_tissue(rng: np.random.Generator, edge: int, beta: float) -> np.ndarray:
    """Breast tissue (edge, edge), variance 1: power spectrum 1 / f^beta, beta about 3 (Burgess 1999)."""
    return _texture(rng, edge, slope=beta, low=0.8)


def _to_the_skin(grey: np.ndarray, skin: tuple, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle, distance, radius = skin
    cx, cy = 0.5 + (distance - radius) * math.cos(angle), 0.5 + (distance - radius) * math.sin(angle)
    depth = radius - np.hypot(x - cx, y - cy)  # towards the inside, in frames
    inside = _soft(depth / 0.008)
    thickness = 1 - 0.8 * np.exp(-np.clip(depth, 0, None) / 0.12)
    line = 0.06 * np.exp(-(((depth - 0.012) / 0.008) ** 2))
    return inside * (grey * thickness + line) + (1 - inside) * 0.03


def _mass(rng: np.random.Generator, hard: float) -> dict:
    kind = str(rng.choice(["round", "lobed", "spiculated"], p=[0.3, 0.25, 0.45]))
    size = rng.uniform(0.1, 0.2) * _between(1.25, 0.85, hard)
    ratio = math.exp(rng.normal(0, 0.16))
    spicules = 0 if kind == "round" else int(rng.integers(2, 6)) if kind == "lobed" else int(rng.integers(12, 26))
    return dict(
        kind=kind, x=rng.uniform(0.3, 0.7), y=rng.uniform(0.3, 0.7), rx=size * ratio, ry=size / ratio,
        tilt=rng.uniform(0, math.pi),
        outline=_outline(rng, {"round": 0.05, "lobed": 0.13, "spiculated": 0.16}[kind], 4 if kind == "round" else 9),
        soft=rng.uniform(0.06, 0.2) if kind != "spiculated" else rng.uniform(0.15, 0.35),
        contrast=rng.uniform(1.8, 3.2) * _between(3.0, 0.8, hard),
        pull=(0.05 if kind == "spiculated" else 0.0) * size / 0.15,
        spicules=np.column_stack([
            rng.uniform(0, 2 * math.pi, spicules), rng.normal(0, 0.2, spicules), rng.uniform(0.8, 2.0, spicules),
            rng.uniform(0.3, 1, spicules),
            rng.uniform(0.005, 0.009, spicules),
        ]).tolist(),
        calcifications=int(rng.poisson(5)) if rng.random() < 0.3 else 0,
    )  # fmt: skip


def _mass_insert(lesion: dict, own: np.random.Generator, sx: float, sy: float, edge: int):
    """What the mass adds to the density, how it draws the tissue in (in frames), its mask."""
    turn, zoom = own.normal(0, 0.1), math.exp(own.normal(0, 0.04))
    cx, cy, rx, ry = lesion["x"] + sx, lesion["y"] + sy, lesion["rx"] * zoom, lesion["ry"] * zoom
    polar = _polar(edge, cx, cy, rx, ry, lesion["tilt"] + turn, lesion["outline"])
    # thickness of a lens-shaped body, its rim melting into the tissue
    body = np.sqrt(np.clip(1 - (polar.ratio / 1.15) ** 2, 0, 1)) * _soft((1 - polar.ratio) / lesion["soft"])
    mass = lesion["contrast"] * body
    x, y = _grid(edge)
    dx, dy, size = x - cx, y - cy, math.sqrt(rx * ry)
    reach = np.hypot(dx, dy)
    if len(lesion["spicules"]):
        rows, cols = np.nonzero(reach < 2.8 * size)
        r, theta = reach[rows, cols], np.arctan2(dy[rows, 0], dx[0, cols])
        lines = np.zeros(len(r), np.float32)
        for angle, curl, length, strength, width in lesion["spicules"]:
            far = (r / size - 0.5) / length
            off = np.abs((theta - angle - turn - curl * (r / size - 1) + math.pi) % (2 * math.pi) - math.pi) * r
            lines += (
                strength
                * np.exp(-((off / (width * (1.1 - 0.6 * np.clip(far, 0, 1)))) ** 2))
                * np.clip(1 - far, 0, 1)
                * np.clip(far * 6, 0, 1)
            )
        mass[rows, cols] += 0.45 * lesion["contrast"] * lines
    for _ in range(lesion["calcifications"]):
        r, a = own.uniform(0, 0.9), own.uniform(0, 2 * math.pi)
        d2 = (dx - rx * r * math.cos(a)) ** 2 + (dy - ry * r * math.sin(a)) ** 2
        mass += own.uniform(1.5, 4) * np.exp(-d2 / 0.006**2)
    drawn = lesion["pull"] * np.exp(-((reach / (2.2 * size)) ** 2)) / (reach + 0.3 * size)
    return mass, (dx * drawn, dy * drawn), polar.ratio < 1, lesion["contrast"], lesion["kind"]


# --- chest ------------------------------------------------------------------------------------------------------------


def _chest(scene: Scene) -> list[Shot]:
    """A frontal chest radiograph: attenuation of body, lungs, heart, spine, ribs and clavicles along parallel rays."""
    rng, edge, hard = scene.patient, scene.edge, scene.difficulty
    body = _chest_anatomy(rng)
    vessels = _texture(rng, edge, slope=3.6, low=5, high=60, stretch=5.0)
    tissue = _texture(rng, edge, slope=2.4, low=1.5)
    disease = _pneumonia(rng, hard, edge) if scene.label else None
    film = CHEST_FILMS[scene.center]
    shots = []
    for own in scene.exposures():
        x, y = _grid(edge)
        dx, dy = own.normal(0, 0.02), own.normal(0, 0.02)
        zoom, turn = 1 + own.normal(0, 0.02), own.normal(0, 0.015)
        gx = 2 * zoom * (x - 0.5) - dx + turn * (y - 0.5)
        gy = zoom * (y - 0.5) + 0.5 - dy - turn * (x - 0.5)
        parts = _chest_parts(body, gx, gy, own.normal(0, 0.015), vessels)
        mask, conspicuity, subtype, opacity = None, 0.0, "normal", 0.0
        if disease is not None:
            opacity, mask, conspicuity, subtype = _pneumonia_insert(disease, body, parts, gx, gy, own)
        air = parts["lung"] * (1 - opacity)
        density = (
            0.62 + parts["fixed"] + 0.035 * tissue - air * (body["air"] - 0.11 * body["vascular"] * parts["vessels"])
        )
        grey = film.grey + film.contrast * (density - 0.55)
        grey = (
            np.where(grey > 0.8, 0.8 + 0.2 * np.tanh((grey - 0.8) * 4), grey) * parts["body"] + 0.02
        )  # the film's shoulder
        grey = _blur(grey, film.blur * edge)
        noise = film.noise * _between(0.6, 1.7, hard) * math.sqrt(scene.factor)
        grey += noise * np.sqrt(0.2 + np.clip(1 - grey, 0, 1)) * own.standard_normal((edge, edge), dtype=np.float32)
        if scene.center == 0:
            _marker(grey, body["marker"])
        shots.append(Shot(np.clip(grey, 0, 1), mask, subtype, conspicuity))
    return shots


CHEST_FILMS = (Film(0.0018, 0.012, 1.15, 0.45), Film(0.0045, 0.024, 0.9, 0.48))


def _chest_anatomy(rng: np.random.Generator) -> dict:
    return dict(
        apex=rng.uniform(0.09, 0.16), base=rng.uniform(0.74, 0.84), wide=rng.uniform(0.68, 0.82),
        middle=rng.normal(0, 0.03), lean=rng.normal(0, 0.03),
        heart=rng.uniform(0.22, 0.4), knob=rng.uniform(0.0, 0.06),
        dome=rng.uniform(0.06, 0.11), lift=rng.uniform(0.0, 0.035), rib=rng.uniform(0.072, 0.092),
        phase=rng.uniform(0, 1), slant=rng.uniform(0.0, 0.1),
        bone=rng.uniform(0.15, 0.24), front=rng.uniform(0.04, 0.1),
        clavicle=(rng.uniform(0.02, 0.06), rng.uniform(-0.1, 0.0)), spine=rng.uniform(0.075, 0.11),
        disc=rng.uniform(0.05, 0.062), shoulder=rng.uniform(-0.06, 0.04), bubble=rng.uniform(-0.1, 0.25),
        air=rng.uniform(0.3, 0.42), vascular=rng.uniform(0.7, 1.3),
        marker=(rng.random() < 0.5, rng.uniform(0.02, 0.08), rng.uniform(0.04, 0.2)), wall=_curve(rng, 0.006, 4),
        arms=rng.uniform(0.86, 1.1),
        blade=(rng.uniform(0.66, 0.8), rng.uniform(-0.25, 0.1)), belly=rng.uniform(0.1, 0.2),
    )  # fmt: skip


def _chest_parts(body: dict, gx: np.ndarray, gy: np.ndarray, breath: float, vessels: np.ndarray) -> dict:
    """Soft masks (0…1) and attenuation of what is always there. x runs from −1 (the patient's right) to 1, y from 0 to 1
    downwards.
    """
    u = gx - body["middle"] - body["lean"] * (gy - 0.5)
    side = np.abs(u)
    left = u > 0
    base = body["base"] + breath + np.where(left, np.float32(body["lift"]), np.float32(0))
    t = np.clip((gy - body["apex"]) / (base - body["apex"]), 0, 1)
    wall = body["wide"] * np.sqrt(1 - (1 - t) ** 2.2) + body["wall"](gy) - 0.03 * (t * t * t) ** 2
    dome = base - body["dome"] * (1 - ((side - 0.4) / 0.44) ** 2)
    above = _soft((dome - gy) * 130)
    # the middle shadow: great vessels and spine above, the heart below, whose left border runs obliquely down
    # to its apex
    down = np.clip((gy - 0.33) / (base - 0.37), 0, 1.1)
    belly_of_heart = np.where(
        left,
        body["heart"] * down**1.4 * (1.5 - 0.5 * (down * down) ** 2),
        0.11 * np.exp(-(((gy - base + 0.15) / 0.14) ** 2)),
    )
    knob = np.where(left, body["knob"] * np.exp(-(((gy - 0.3) / 0.05) ** 2)), np.float32(0.0))
    border = 0.12 + 0.07 * np.exp(-(((gy - 0.04) / 0.12) ** 2)) + knob + belly_of_heart
    shadow = _soft((border - side) * 32)
    heart = shadow * _soft((gy - 0.45) * 14)
    lung = _soft((wall - side) * 70) * above * (1 - shadow)
    shoulders = _soft((gy - body["shoulder"] - 0.2 * np.clip((side - 0.25) / 0.75, 0, 1.2) ** 1.6) * 80)
    torso = np.maximum(shoulders * _soft((body["arms"] + 0.12 * (0.4 - gy) - side) * 80), _soft((0.26 - side) * 50))
    # ribs: periodic functions of how far a ray lies below the first rib, behind (flat, strong) and in front
    # (steep, faint)
    bend = np.sqrt(np.clip(1 - (side / (body["wide"] + 0.1)) ** 2, 0, 1))
    behind = (gy - body["slant"] * side + 0.17 * bend) / body["rib"] + body["phase"]
    before = (gy + 0.36 * (body["wide"] - side) + 0.1 * bend) / (body["rib"] * 1.12) + 0.4 + body["phase"]
    caged = _soft((gy - body["apex"] + 0.05) * 50) * _soft((base + 0.02 - gy) * 22)
    bones = caged * (
        body["bone"] * _rib(behind, 0.2) * _soft((wall + 0.05 - side) * 50) * _soft((side - 0.05) * 50)
        + body["front"] * _rib(before, 0.23) * _soft((wall + 0.02 - side) * 50) * _soft((side - 0.3) * 20)
    )
    collar_y = body["apex"] + body["clavicle"][0] + body["clavicle"][1] * side + 0.12 * (side - 0.4) ** 2
    collar = _tube((gy - collar_y) / 0.018) * _soft((side - 0.1) * 50) * _soft((0.8 - side) * 30)
    blade_x = body["blade"][0] + body["blade"][1] * (gy - 0.3)
    blade = (
        _soft((side - blade_x) * 80)
        * _soft((0.46 - gy - 0.5 * (side - 0.7)) * 40)
        * _soft((gy - body["apex"] - 0.02) * 40)
    )
    head = _soft((1 - np.hypot((side - 1.0) / 0.17, (gy - body["apex"] - 0.03) / 0.09)) * 12)
    spine = _soft((body["spine"] - side) * 80) * (
        0.07 + 0.04 * _soft(np.cos(gy * (2 * math.pi / body["disc"])) * 6 + 3)
    )
    edges = 0.05 * np.exp(-(((side - body["spine"]) / 0.016) ** 2))
    windpipe = _soft((0.045 - np.abs(u + 0.015)) * 80) * _soft((0.34 - gy) * 50)
    belly = (1 - above) * (1 - 0.5 * heart) * _soft((body["wide"] + 0.14 - side) * 25)
    fixed = (
        bones
        + 0.17 * collar
        + 0.06 * blade
        + 0.07 * head
        + spine
        + edges
        + 0.1 * heart
        + 0.11 * shadow
        + body["belly"] * belly
    )
    fixed += (
        0.07 * np.exp(-(((side - wall - 0.03) / 0.04) ** 2)) * above
        - 0.1 * windpipe
        - 0.1 * _soft((side - wall - 0.1) * 20)
    )
    if body["bubble"] > 0:  # air in the stomach
        fixed -= body["bubble"] * np.exp(-((((u - 0.42) / 0.2) ** 2) ** 2) - (((gy - dome - 0.075) / 0.045) ** 2) ** 2)
    hx = 0.5 * u - np.where(left, np.float32(0.085), np.float32(-0.085))
    hy = gy - 0.44
    from_hilum = np.hypot(hx, hy)
    branch = _ridges(
        _sampled(vessels, np.log(from_hilum + 0.03) * 0.3 + 0.37 * left, np.arctan2(hy, hx) / np.float32(2 * math.pi)),
        0.3,
    )
    tree = branch * np.exp(-from_hilum / 0.17) * 1.6 + 1.1 * np.exp(-((from_hilum / 0.055) ** 2))
    return dict(lung=lung, body=torso, fixed=fixed, vessels=tree, branch=branch, u=u)


def _rib(phase: np.ndarray, half: float) -> np.ndarray:
    """A rib's shadow as a function of its number: a tube, brighter along its cortex."""
    off = np.abs(phase - np.floor(phase) - 0.5)
    return _soft((half - off) * 40) * (0.5 + 0.5 * np.clip(off / half, 0, 1) ** 3)


def _tube(off: np.ndarray) -> np.ndarray:
    return _soft((1 - np.abs(off)) * 8) * (0.6 + 0.4 * np.clip(np.abs(off), 0, 1) ** 2)


def _pneumonia(rng: np.random.Generator, hard: float, edge: int) -> dict:
    kind = str(rng.choice(["lobar", "patchy", "perihilar"], p=[0.4, 0.4, 0.2]))
    foci = {"lobar": 1, "patchy": int(rng.integers(2, 5)), "perihilar": 2}[kind]
    sides = rng.choice([-1, 1], foci) if kind != "perihilar" else np.array([-1, 1])
    scale = _between(1.6, 1.0, hard)
    return dict(
        kind=kind,
        strength=rng.uniform(0.7, 1.0) * _between(1.2, 0.55, hard),
        foci=np.column_stack(
            [sides, rng.uniform((0.2, 0.3), (0.85, 0.92), (foci, 2)), _radii(rng, kind, foci) * scale]
        ).tolist(),
        upper=bool(rng.random() < 0.35),
        fissure=rng.normal(0, 0.12),
        mottle=_texture(rng, edge, slope=2.8, low=3, high=40),
        ragged=rng.uniform(0.15, 0.35),
    )


def _radii(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    low, high = {"lobar": (0.24, 0.36), "patchy": (0.1, 0.18), "perihilar": (0.2, 0.3)}[kind]
    r = rng.uniform(low, high, n)
    return np.column_stack([r, r * rng.uniform(0.5, 0.8, n)])


def _pneumonia_insert(disease: dict, body: dict, parts: dict, gx: np.ndarray, gy: np.ndarray, own: np.random.Generator):
    """Share of the air that is replaced by fluid (0…1), its mask, its strength, its kind."""
    u, lung = parts["u"], parts["lung"]
    rough = disease["ragged"] * disease["mottle"]
    spread = math.exp(own.normal(0, 0.06))
    filled = np.zeros_like(lung)
    for side, across, down, rx, ry in disease["foci"]:
        cy = body["apex"] + (body["base"] - body["apex"]) * down
        cx = side * (0.16 + (0.85 * body["wide"] - 0.16) * across)
        if disease["kind"] == "perihilar":
            cx, cy = side * 0.26, 0.45
        away = np.hypot((u - cx) / rx, (gy - cy) / ry) / spread
        blob = _soft((1 - away + rough) / 0.16) * (u * side > 0)
        if disease["kind"] == "lobar":  # a lobe ends at its fissure
            fissure = 0.5 + 0.05 * side + disease["fissure"] * (np.abs(u) - 0.4)
            blob = blob * _soft((fissure - gy if disease["upper"] else gy - fissure) / 0.012)
            if not (blob * lung).max() > 0.3:  # it lay wholly on the other side of the fissure
                blob = _soft((1 - away + rough) / 0.16) * (u * side > 0)
        filled = np.maximum(filled, blob)
    texture = np.clip(1 + 0.22 * disease["mottle"], 0.3, 1.5)
    bronchi = 1 - 0.45 * _ridges(parts["branch"] - 0.9, 0.25) * (disease["kind"] == "lobar")
    opacity = np.clip(filled * disease["strength"] * texture * bronchi, 0, 0.97)
    solid = filled * lung
    mask = _largest(solid > 0.5 * solid.max())
    return opacity, mask, disease["strength"], disease["kind"]


def _largest(mask: np.ndarray) -> np.ndarray:
    """Without crumbs: regions of at least a sixth of the largest, and at least 0.1 % of the frame if there is one."""
    parts, n = ndimage.label(mask)
    if n < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= max(sizes.max() / 6, min(sizes.max(), mask.size // 1000)))[parts]


_R = np.array(
    [[int(c) for c in row] for row in ("11110", "10001", "10001", "11110", "10100", "10010", "10001")], np.float32
)


def _marker(grey: np.ndarray, marker: tuple) -> None:
    shown, x, y = marker
    if shown:
        scale = max(1, grey.shape[0] // 128)
        letter = np.kron(_R, np.ones((scale, scale), np.float32))
        top, side = int(y * grey.shape[0]), int(x * grey.shape[0])
        part = grey[top : top + letter.shape[0], side : side + letter.shape[1]]
        np.maximum(part, 0.95 * letter, out=part)


# --- cells ------------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """What makes a cell line: diameter (of the frame), length over width, share of rounded-up cells, outline's roughness,
    arms, granularity, share of the frame covered, clustering (0 scattered, 1 islands), thickness (radians of
    phase), nucleus, vacuoles.
    """

    diameter: float
    length: float
    rounded: float
    rough: float
    arms: float
    grain: float
    cover: float
    islands: float
    phase: float
    nucleus: float
    vacuoles: float


#: Archetypes that a microscopist would tell apart; further lines lie between and around them.
LINES = (
    Line(0.10, 1.05, 0.95, 0.03, 0.0, 0.5, 0.25, 0.1, 2.2, 0.1, 0.1),  # suspension: small, round, bright-rimmed
    Line(0.24, 3.6, 0.08, 0.08, 0.15, 0.35, 0.5, 0.2, 1.0, 0.5, 0.1),  # fibroblast: spindles
    Line(0.30, 1.3, 0.05, 0.16, 0.5, 0.6, 0.45, 0.1, 0.8, 0.9, 0.3),  # spread: large, flat, granular
    Line(0.15, 1.15, 0.05, 0.08, 0.05, 0.5, 0.85, 0.7, 0.9, 0.6, 0.1),  # epithelial: cobblestones in islands
    Line(0.18, 1.6, 0.25, 0.12, 0.9, 0.4, 0.25, 0.1, 1.5, 0.3, 0.1),  # stellate, with arms
    Line(0.13, 1.3, 0.45, 0.12, 0.1, 1.1, 0.55, 0.9, 1.7, 0.3, 0.9),  # grape-like clumps, vacuolated
)


def _line(label: int, difficulty: float) -> Line:
    """The line's mean parameters: an archetype, or a point between two; drawn towards the mean of all lines as it gets
    harder.
    """
    table = np.array(LINES)
    if label < len(LINES):
        own = table[label]
    else:
        rng = np.random.default_rng([77, label])
        a, b = rng.choice(len(LINES), 2, replace=False)
        share = rng.uniform(0.25, 0.75)
        own = (table[a] * share + table[b] * (1 - share)) * np.exp(rng.normal(0, 0.2, table.shape[1]))
    pull = _between(0.0, 0.72, difficulty)
    return Line(*((1 - pull) * own + pull * table.mean(0)))


class Microscope(NamedTuple):
    defocus: float
    noise: float
    contrast: float
    grey: float


MICROSCOPES = (Microscope(0.85, 0.010, 1.0, 0.39), Microscope(1.3, 0.022, 0.75, 0.43))


def _cells(scene: Scene) -> list[Shot]:
    """Brightfield: cells are phase objects; a little out of focus, phase becomes contrast with a halo (weak-object
    transfer function).
    """
    rng, edge, hard = scene.patient, scene.edge, scene.difficulty
    line = Line(
        *(
            np.array(_line(scene.label, hard)) * np.exp(rng.normal(0, _between(0.06, 0.16, hard), len(Line._fields)))
        ).tolist()
    )
    cells = _population(rng, line)
    granules = _texture(rng, edge, slope=1.0, low=24, high=56)
    folds = _texture(rng, edge, slope=3.0, low=8, high=40)
    inner = 1 + 0.22 * line.grain * granules + 0.16 * math.sqrt(line.grain) * folds
    debris = [(*rng.uniform(0, 1, 2).tolist(), rng.uniform(0.004, 0.01)) for _ in range(rng.poisson(5))]
    lamp = rng.normal(0, 0.05, 3).tolist()
    focus = math.exp(rng.normal(0, 0.12))
    scope = MICROSCOPES[scene.center]
    x, y = _grid(edge)
    light = 1 + lamp[0] * (x - 0.5) + lamp[1] * (y - 0.5) + lamp[2] * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    shots = []
    for own in scene.exposures():
        phase = _thickness([cell.later(own) for cell in cells], edge) * inner
        for px, py, radius in debris:
            phase += 0.8 * np.exp(((x - px) ** 2 + (y - py) ** 2) / -(radius**2))
        contrast = _defocused(phase, scope.defocus * focus * math.exp(own.normal(0, 0.06)))
        image = scope.grey * light * (1 + scope.contrast * _between(1.7, 1.1, hard) * contrast)
        noise = scope.noise * _between(0.6, 1.8, hard) * math.sqrt(scene.factor)
        image += noise * own.standard_normal((edge, edge), dtype=np.float32)
        shots.append(Shot(np.clip(image, 0, 1), None, "field", 0.0))
    return shots


_TURNS = 64


class Cell(NamedTuple):
    """Place, half length and half width (frames), angle, phase (radians), rounded up or spread, its outline's radius at 64
    angles, the nucleus (place in units of the cell, contrast), vacuoles (places).
    """

    x: float
    y: float
    a: float
    b: float
    angle: float
    phase: float
    rounded: bool
    radius: np.ndarray
    nucleus: tuple[float, float, float]
    vacuoles: list[tuple[float, float]]

    def later(self, own: np.random.Generator) -> Cell:
        """The same cell some hours later: it crept, turned and changed a little."""
        dx, dy, turn, da, db = (own.standard_normal(5) * (0.008, 0.008, 0.1, 0.04, 0.04)).tolist()
        return self._replace(
            x=self.x + dx, y=self.y + dy, angle=self.angle + turn, a=self.a * math.exp(da), b=self.b * math.exp(db)
        )


def _population(rng: np.random.Generator, line: Line) -> list[Cell]:
    count = max(2, int(rng.poisson(min(line.cover, 0.95) * 1.35 / (math.pi / 4 * line.diameter**2))))
    seeds = rng.uniform(-0.1, 1.1, (count * 3, 2))
    if rng.random() < line.islands:  # islands grow around a few places
        middle = rng.uniform(0, 1, (int(rng.integers(1, 4)), 2))
        near = np.min(np.hypot(*(seeds[:, None] - middle[None]).transpose(2, 0, 1)), 1)
        seeds = seeds[np.argsort(near + rng.normal(0, 0.08, len(near)), kind="stable")]
    apart = 0.72 * line.diameter / max(line.length, 1) ** 0.25
    free = np.hypot(*(seeds[:, None] - seeds[None]).transpose(2, 0, 1)) > apart
    kept: list[int] = []
    for i in range(len(seeds)):
        if len(kept) < count and free[i, kept].all():
            kept.append(i)
    main = rng.uniform(0, math.pi)  # spread cells lie along each other
    return [_cell(rng, line, x, y, main) for x, y in seeds[kept].tolist()]


def _cell(rng: np.random.Generator, line: Line, x: float, y: float, main: float) -> Cell:
    rounded = rng.random() < line.rounded
    half = line.diameter * math.exp(rng.normal(0, 0.14)) / 2
    if rounded:
        half, stretch, phase = 0.85 * min(half, 0.062), 1.0, max(1.4 * line.phase, 2.2)
    else:
        stretch, phase = max(1.0, line.length * math.exp(rng.normal(0, 0.25))), line.phase
    angle = rng.normal(main, 0.35) if rng.random() < 0.6 else rng.uniform(0, math.pi)
    radius = _outline(rng, 0.02 if rounded else 1.3 * line.rough, 7, 0.7)[:: _ANGLES // _TURNS]
    theta = np.arange(_TURNS) * (2 * math.pi / _TURNS)
    for _ in range(0 if rounded else rng.poisson(line.arms * 3.5)):
        turn = (theta - rng.uniform(0, 2 * math.pi) + math.pi) % (2 * math.pi) - math.pi
        radius = radius + rng.uniform(0.5, 1.4) * np.exp(-((turn / 0.22) ** 2))
    return Cell(
        x, y, half * math.sqrt(stretch), half / math.sqrt(stretch), angle, phase * math.exp(rng.normal(0, 0.15)),
        rounded,
        radius.astype(np.float32), (*rng.uniform(-0.15, 0.15, 2).tolist(), 0.0 if rounded else line.nucleus),
        rng.uniform(-0.55, 0.55, (rng.poisson(3 * line.vacuoles), 2)).tolist(),
    )  # fmt: skip


def _thickness(cells: list[Cell], edge: int) -> np.ndarray:
    """Optical thickness (edge, edge) in radians: every cell in a patch of its own, where cells meet the higher one."""
    height = np.zeros((edge, edge), np.float32)
    gx, gy = _grid(edge)
    for x, y, a, b, angle, phase, rounded, radius, (nx, ny, nucleus), vacuoles in cells:
        reach = a * float(radius.max()) * 1.05
        x0, x1 = max(0, int((x - reach) * edge)), min(edge, int((x + reach) * edge) + 2)
        y0, y1 = max(0, int((y - reach) * edge)), min(edge, int((y + reach) * edge) + 2)
        if x0 >= x1 or y0 >= y1:
            continue
        dx, dy = gx[:, x0:x1] - x, gy[y0:y1] - y
        cos, sin = math.cos(angle), math.sin(angle)
        u, v = (dx * cos + dy * sin) / a, (dy * cos - dx * sin) / b
        where = (np.arctan2(v, u) * (_TURNS / (2 * math.pi))).astype(np.int32) % _TURNS
        dome = np.maximum(1 - (u * u + v * v) / (radius * radius)[where], 0)
        inside = dome > 0
        shape = np.sqrt(dome) if rounded else 0.3 * inside + 0.7 * dome**0.6
        if nucleus > 0:
            d2 = (((u - nx) * (a / b)) ** 2 + (v - ny) ** 2) / 0.42**2
            shape += 0.7 * nucleus * inside * (np.exp(-d2 * d2) + 0.5 * np.exp(d2 / -0.09))
        for vx, vy in vacuoles:
            shape -= 0.6 * inside * np.exp((((u - vx) * (a / b)) ** 2 + (v - vy) ** 2) / -(0.18**2))
        part = height[y0:y1, x0:x1]
        np.maximum(part, phase * shape, out=part)
    return height


def _defocused(phase: np.ndarray, defocus: float) -> np.ndarray:
    """Relative contrast of a weak phase object: its spectrum times sin(defocus · f²) under the envelope of partial
    coherence.
    """
    edge = phase.shape[0]
    pad = max(edge // 16, 4)  # mirrored, else the Fourier transform lets one side's cells ring on the other
    wide = fft.rfft2(np.pad(phase, pad, mode="symmetric"))
    fx, fy = _waves(edge + 2 * pad)
    f2 = (fx**2 + fy**2) * (edge / (edge + 2 * pad) / 24.0) ** 2
    transfer = -np.sin(0.9 * defocus * f2) * np.exp(-0.35 * defocus * f2) - 0.03
    transfer[0, 0] = 0
    return fft.irfft2(wide * transfer, s=(edge + 2 * pad, edge + 2 * pad))[pad:-pad, pad:-pad]


# --- fractals ---------------------------------------------------------------------------------------------------------

FILLING = 0.2  # least share of a 64 × 64 frame that an attractor must touch


class System(NamedTuple):
    """An iterated function system: maps (K, 2, 3) and their probabilities (K,)."""

    maps: np.ndarray
    chances: np.ndarray


@lru_cache(maxsize=1024)
def _system(label: int) -> System:
    """The class's system: contractive maps, probabilities by determinant, drawn until the attractor fills its frame
    (Kataoka et al. 2022); the singular values are drawn as in Anderson & Farrell 2022, which rarely collapse.
    """
    rng = np.random.default_rng([20220, label])
    while True:
        count = int(rng.integers(2, 6))
        system = _random_system(rng, count)
        points, _ = _orbit(rng, system, chains=400, steps=45)
        if np.isfinite(points).all() and _filling(points) >= FILLING:
            return system


def _random_system(rng: np.random.Generator, count: int) -> System:
    while True:
        singular = np.sort(rng.uniform(0, 1, (count, 2)))[:, ::-1]
        if (5 + count) / 2 <= (singular @ (1, 2)).sum() <= (6 + count) / 2 and singular.max() < 0.95:
            break
    angle = rng.uniform(-np.pi, np.pi, (count, 2))
    signs = rng.choice([-1.0, 1.0], (count, 1, 2))
    left, right = _rotations(angle[:, 0]), _rotations(angle[:, 1])
    linear = (left * singular[:, None, :] * signs) @ right
    shift = rng.uniform(-1, 1, (count, 2, 1))
    return _with_chances(np.concatenate([linear, shift], 2))


def _rotations(angle: np.ndarray) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)


def _with_chances(maps: np.ndarray) -> System:
    size = np.abs(np.linalg.det(maps[:, :, :2])) + 0.01
    return System(maps, size / size.sum())


def _orbit(
    rng: np.random.Generator, system: System, chains: int, steps: int, burn: int = 15
) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) and the number of the last map of each (n,), by the chaos game of many chains at once; n = (steps −
    burn) · chains.
    """
    pick = np.searchsorted(np.cumsum(system.chances)[:-1], rng.random((steps, chains), dtype=np.float32))
    a, b, c, d, e, f = system.maps.reshape(-1, 6).T.astype(np.float32)[:, pick]
    x = y = np.zeros(chains, np.float32)
    points = np.empty((steps, 2, chains), np.float32)
    for k in range(steps):
        x, y = a[k] * x + b[k] * y + c[k], d[k] * x + e[k] * y + f[k]
        points[k] = x, y
    return points[burn:].transpose(0, 2, 1).reshape(-1, 2), pick[burn:].reshape(-1)


def _framed(points: np.ndarray) -> np.ndarray:
    """`points` (n, 2) scaled to 0…1 by the square that holds 98 % of them."""
    low, high = np.percentile(points[:: max(1, len(points) // 2000)], [1, 99], axis=0).astype(np.float32)
    return (points - (low + high) / 2) / (np.max(high - low) * np.float32(1.12) + np.float32(1e-6)) + np.float32(0.5)


def _filling(points: np.ndarray) -> float:
    xy = np.floor(_framed(points) * 64).astype(int)
    inside = ((xy >= 0) & (xy < 64)).all(1)
    return len(np.unique(xy[inside] @ (64, 1))) / 64**2


def _fractals(scene: Scene) -> list[Shot]:
    """The attractor of the class's system with perturbed parameters, turned, scaled and coloured at random."""
    rng, edge, hard = scene.patient, scene.edge, scene.difficulty
    system = _system(scene.label)
    for _ in range(20):  # a perturbed system may leave contraction
        factor = 1 + rng.uniform(-1, 1, system.maps.shape) * _between(0.05, 0.3, hard)
        maps = system.maps * factor
        if np.linalg.norm(maps[:, :, :2], 2, axis=(1, 2)).max() < 0.98:
            break
    else:
        maps = system.maps
    points, last = _orbit(rng, _with_chances(maps), chains=edge * edge // 16, steps=55)
    angle = rng.uniform(-1, 1) * _between(0.2, 1.2, hard)
    turn = (_rotations(np.array([angle]))[0].T * rng.uniform(0.75, 1.05)).astype(np.float32)
    xy = (_framed(points) - 0.5) @ turn + (0.5 + rng.normal(0, 0.03, 2)).astype(np.float32)
    column, row = np.floor(xy * edge).astype(np.int32).T
    inside = (column >= 0) & (column < edge) & (row >= 0) & (row < edge)
    flat, last = (row * edge + column)[inside], last[inside]
    hits = np.bincount(flat, minlength=edge * edge).astype(np.float32)
    palette = _palette(rng, len(maps))
    by_map = np.bincount(last * (edge * edge) + flat, minlength=len(maps) * edge * edge).reshape(len(maps), -1)
    colour = (by_map.T.astype(np.float32) @ palette) / np.maximum(hits, 1)[:, None]
    light = np.log1p(hits) / np.log1p(np.percentile(hits[hits > 0], 97))
    image = (np.clip(light, 0, 1)[:, None] * colour).reshape(edge, edge, 3).astype(np.float32)
    blur, noise, contrast = ((0.0, 0.015, 1.0), (0.006, 0.04, 0.75))[scene.center]
    if blur:
        image = ndimage.gaussian_filter(image, (blur * edge, blur * edge, 0), truncate=3.0)
    own = scene.exposures()[0]
    image = image * contrast + noise * _between(0.5, 2.0, hard) * scene.factor**0.5 * own.standard_normal(
        image.shape, dtype=np.float32
    )
    return [Shot(np.clip(image, 0, 1), None, "attractor", 0.0)]


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Colours (count, 3) near one random hue: colour tells nothing about the class."""
    hue = (rng.uniform(0, 1) + rng.normal(0, 0.12, count)) % 1
    wheel = np.clip(np.abs((hue[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return ((1 - rng.uniform(0.1, 0.8)) * (1 - wheel) + wheel).astype(np.float32)


MODELS: dict[str, Model] = {
    "ultrasound": Model(_ultrasound, ("normal", "benign", "malignant"), "patient", masks=True),
    "mammogram": Model(_mammogram, ("normal", "lesion"), "patient", masks=True),
    "chest": Model(_chest, ("normal", "pneumonia"), "patient", masks=True),
    "cells": Model(_cells, (), "well", masks=False, n_classes=6, word="line"),
    "fractals": Model(_fractals, (), "image", masks=False, channels=3, grouped=False, n_classes=10, word="system"),
}
