"""What every phantom is drawn with: a scene and its random numbers, textures, outlines, lenses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage


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
    centers: tuple[str, ...] = ("A", "B")  # B: an older machine: more noise, more blur, another contrast
    largest: int = 4  # images of a group
    views: tuple[str, ...] = ()  # the images of every group, in this order


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
    return _polar_at(*_grid(edge), x, y, rx, ry, tilt, outline)


def _polar_at(gx: np.ndarray, gy: np.ndarray, x: float, y: float, rx: float, ry: float, tilt: float, outline: np.ndarray) -> _Polar:
    """As `_polar`, at pixels whose coordinates are given."""
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
    """Writes the side's letter into a film: whether, from the left, from the top (frames)."""
    shown, x, y = marker
    if shown:
        scale = max(1, grey.shape[0] // 128)
        letter = np.kron(_R, np.ones((scale, scale), np.float32))
        top, side = int(y * grey.shape[0]), int(x * grey.shape[0])
        part = grey[top : top + letter.shape[0], side : side + letter.shape[1]]
        np.maximum(part, 0.95 * letter, out=part)


class Film(NamedTuple):
    """Blur (standard deviation in frames), noise (grey levels, 0…1, at mid grey), contrast, mean grey."""

    blur: float
    noise: float
    contrast: float
    grey: float
