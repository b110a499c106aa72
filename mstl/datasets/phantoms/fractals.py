"""Fractals: attractors of random iterated function systems (Kataoka et al. 2022)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from .drawing import Scene, Shot, _between

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


def draw(scene: Scene) -> list[Shot]:
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
