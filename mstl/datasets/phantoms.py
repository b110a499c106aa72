"""Simulated images of every modality of the book, with their truth: classes, groups, centers, masks and boxes.

They check the machine, never a claim about patients. Each is drawn from a simple model of how such an image comes about:

* ultrasound: complex random scatterers under layered tissue, blurred by a point-spread function that widens with depth, envelope and
  log compression (fully developed speckle); masses that are dark, with shadow or enhancement behind them;
* mammogram: tissue with a power spectrum 1/f^3 (Burgess 2001), masses with soft borders and radiating spicules;
* chest: body, lungs, heart, diaphragm, spine, clavicles and ribs as a sum of attenuations; pneumonia as patchy opacities inside a lung;
* cells: brightfield cells of several lines that differ in shape, size, granularity, density and halo;
* fractals: attractors of random iterated function systems (formula-driven pre-training, Kataoka et al. 2022).

Images of one group share their anatomy (patient) or their field (well), and two centers differ in contrast, noise and blur.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from mstl.errors import MstlError

from .catalog import card
from .imageset import BOXES, ImageSet

CENTERS = ("A", "B")
_CLASSES = {"ultrasound": ("normal", "benign", "malignant"), "mammogram": ("normal", "lesion"), "chest": ("normal", "pneumonia")}
_CODE = {"ultrasound": 1, "mammogram": 2, "chest": 3, "cells": 4, "fractals": 5}


class Drawing(NamedTuple):
    """One image: ``pixels`` float (S, S) or (S, S, 3) in 0..1, and the truth ``mask`` bool (S, S) or None."""

    pixels: np.ndarray
    mask: np.ndarray | None = None


def make(kind: str, *, n: int, size: int, seed: int = 0, difficulty: float = 0.5, n_classes: int | None = None,
         workers: int | None = None, progress: bool = False) -> ImageSet:
    """``n`` simulated images of ``size`` × ``size`` pixels; the same bytes whatever the number of ``workers``.

    ``kind``: ultrasound, mammogram, chest, cells, fractals. ``difficulty`` 0 (easy) to 1 (hard) lowers the contrast of what tells the
    classes apart. ``n_classes`` is for cells (2–40 lines) and fractals (2–1000 systems). Classes and centers are balanced up to
    rounding; groups hold one to four images of one class and center (fractals: one image each).
    """
    classes = _checked(kind, n, size, difficulty, n_classes)
    plan = _plan(kind, n, len(classes), seed)
    jobs = [(kind, size, seed, difficulty, row.label, row.group, row.center, row.member) for row in plan.itertuples()]
    drawings = _drawn(jobs, workers, progress, kind)
    channels = 3 if kind == "fractals" else 1
    images = np.stack([_bytes(d.pixels) for d in drawings]).reshape(n, size, size, channels)
    masks = None if drawings[0].mask is None else np.stack([d.mask for d in drawings]).astype(np.uint8)
    names = np.asarray(classes)
    entry = replace(card(f"phantom-{kind}"), classes=classes)
    return ImageSet(
        name=f"phantom-{kind}", images=images, labels=plan["label"].to_numpy(), classes=classes,
        groups=np.array([f"{kind}-g{g:05d}" for g in plan["group"]]), centers=np.array([CENTERS[c] for c in plan["center"]]),
        ids=np.array([f"{kind}-{i:06d}" for i in range(n)]), splits=np.array([""] * n), card=entry, masks=masks,
        boxes=None if masks is None else _boxes(masks, names[plan["label"]]))


def power_law(rng: np.random.Generator, size: int, beta: float) -> np.ndarray:
    """A random field (size, size) whose power spectrum falls as 1/f^beta; mean 0, standard deviation 1."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    f[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * f ** (-beta / 2), s=(size, size))
    return (field - field.mean()) / field.std()


def speckle(rng: np.random.Generator, echo: np.ndarray, *, axial: float, lateral: tuple[float, float]) -> np.ndarray:
    """The envelope of fully developed speckle under a map of scatterer strength ``echo`` (S, S) ≥ 0.

    Complex Gaussian scatterers, blurred by a Gaussian point-spread function of width ``axial`` (pixels) along the beam and from
    ``lateral[0]`` at the surface to ``lateral[1]`` at the bottom across it. Where ``echo`` is even, the envelope is Rayleigh
    distributed (mean / SD = 1.91).
    """
    size = len(echo)
    scatterers = (rng.standard_normal((2, size, size)) * np.sqrt(echo)).astype(np.float32)
    scatterers = ndimage.gaussian_filter1d(scatterers, axial, axis=1)
    near, far = (ndimage.gaussian_filter1d(scatterers, width, axis=2) * np.sqrt(width) for width in lateral)
    depth = np.linspace(0, 1, size)[:, None]
    return np.hypot(*(near * np.sqrt(1 - depth) + far * np.sqrt(depth)))


# ------------------------------------------------------------------------------------------------------------ ultrasound

def _ultrasound(size: int, label: int, center: int, difficulty: float, patient: np.random.Generator, image: np.random.Generator) -> Drawing:
    z, x = _grid(size)
    wave = _waves(patient, x[0], 4)
    skin, fat, gland = 0.05 + 0.008 * wave[0], patient.uniform(0.20, 0.34) + 0.035 * wave[1], patient.uniform(0.70, 0.82) + 0.035 * wave[2]
    sheets = ndimage.gaussian_filter(power_law(patient, size, 1.6), (0.3, size / 20))  # septa and fibres run along the skin
    sheets /= sheets.std()
    lobules = power_law(patient, size, 2.4)
    echo = np.where(z < skin, 3.0, np.where(z < fat, -15 + 3.5 * sheets + 2 * lobules, np.where(z < gland, -4 + 3.0 * lobules + 1.5 * sheets, -15.0)))  # dB
    echo = np.where(z >= gland, echo + 5.5 * np.sin(2 * np.pi * (z * 22 + 1.0 * wave[3])) + 2 * sheets, echo)
    echo += 11 * np.exp(-(((z - fat) / 0.011) ** 2)) * (0.6 + 0.4 * wave[3]) + 14 * np.exp(-(((z - gland) / 0.012) ** 2))
    mask = np.zeros((size, size), bool)
    if label:
        mask, echo = _mass(label, difficulty, echo, z, x, patient, image)
    envelope = speckle(image, 10 ** (echo / 10), axial=size * 0.004 + 0.2, lateral=(size * 0.005 + 0.3, size * 0.013 + 0.4))
    span = (46, 54)[center] * image.uniform(0.95, 1.05)  # dynamic range, dB
    decibel = 20 * np.log10(envelope / np.quantile(envelope, 0.99) + 1e-6) - (8, 3)[center] * z
    pixels = np.clip(1 + decibel / span, 0, 1) ** (1.7, 1.4)[center]
    pixels = pixels + image.normal(0, (0.01, 0.025)[center], pixels.shape)
    return Drawing(ndimage.gaussian_filter(pixels, (0.3, 0.5)[center]), mask)


def _mass(label, difficulty, echo, z, x, patient, image):
    """A hypoechoic mass: benign is oval, smooth and wide, with enhancement behind it; malignant is tall, irregular, with shadow."""
    malignant = label == 2
    sharp = 1 - difficulty  # how typical the signs are
    radius = patient.uniform(0.10, 0.17)
    ratio = np.exp(patient.normal((-0.15 - 0.30 * sharp, 0.0 + 0.22 * sharp)[malignant], 0.16))  # height over width
    cz, cx = patient.uniform(0.40, 0.56) + image.normal(0, 0.012), patient.uniform(0.3, 0.7) + image.normal(0, 0.02)
    dz, dx = (z - cz) / np.sqrt(ratio), (x - cx) * np.sqrt(ratio)
    angle = np.arctan2(dz, dx)
    rough = (0.04, 0.05 + 0.20 * sharp)[malignant]
    outline = sum(patient.normal(0, rough / k**0.6) * np.cos(k * angle + patient.uniform(0, 2 * np.pi)) for k in range(2, 9))
    if malignant:
        spikes = int(patient.integers(5, 12))
        outline = outline + 0.30 * sharp * np.maximum(0, np.cos(spikes * angle + patient.uniform(0, 6))) ** 6
    distance = np.hypot(dz, dx) / (radius * np.clip(1 + outline, 0.4, None))
    inside = 1 / (1 + np.exp((distance - 1) / (0.04, 0.13)[malignant] * 2.2))
    darker = (19, 23)[malignant] - 7 * difficulty + patient.normal(0, 2)  # dB below the tissue
    echo = echo - darker * inside + 2.0 * power_law(image, len(z), 2.0) * inside
    if not malignant:
        echo = echo + 7 * sharp * np.exp(-(((distance - 1.06) / 0.07) ** 2)) * np.abs(np.sin(angle))  # thin capsule, seen where the beam meets it
    width = radius * (0.8, 0.95)[malignant]
    behind = 1 / (1 + np.exp(-(z - cz - radius * np.sqrt(ratio) * 0.8) / 0.025)) * np.exp(-(((x - cx) / width) ** 4))
    change = (7.0 * sharp + 1.0, -(15.0 * sharp + 2.0))[malignant] * patient.uniform(0.5, 1.2)  # dB
    return distance < 1, echo + change * behind


# ------------------------------------------------------------------------------------------------------------- mammogram

def _mammogram(size: int, label: int, center: int, difficulty: float, patient: np.random.Generator, image: np.random.Generator) -> Drawing:
    z, x = _grid(size)
    dense = patient.uniform(0.6, 1.3)
    tissue = 0.75 * power_law(patient, size, 3.1) + 0.35 * power_law(image, size, 2.9)
    ducts = np.zeros_like(tissue)
    for _ in range(int(patient.integers(4, 9))):  # Cooper's ligaments and ducts: thin curved strands
        ducts = np.maximum(ducts, _strand(patient, z, x, width=patient.uniform(0.006, 0.014)) * patient.uniform(0.2, 0.6))
    field = 0.48 + dense * 0.11 * tissue + 0.10 * ducts + 0.10 * patient.normal() * (x - 0.5)
    mask = np.zeros((size, size), bool)
    if label:
        shift = image.normal(0, 0.02, 2)
        cz, cx = patient.uniform(0.38, 0.62, 2) + shift
        radius = patient.uniform(0.11, 0.22)
        angle, far = np.arctan2(z - cz, x - cx), np.hypot(z - cz, x - cx)
        outline = sum(patient.normal(0, 0.10 / k**0.5) * np.cos(k * angle + patient.uniform(0, 2 * np.pi)) for k in range(2, 7))
        distance = far / (radius * (1 + outline))
        blob = 1 / (1 + np.exp((distance - 1) * 5.5))
        spicules = np.zeros_like(field)
        for _ in range(int(patient.integers(7, 16))):
            at, length = patient.uniform(0, 2 * np.pi), radius * patient.uniform(1.3, 2.3)
            across = far * np.sin(angle - at + 0.5 * patient.normal() * far)
            along = far * np.cos(angle - at)
            line = np.exp(-((across / (0.006 + 0.008 * radius / 0.15)) ** 2)) * (along > 0) * np.clip(1 - along / length, 0, 1)
            spicules = np.maximum(spicules, line)
        contrast = (0.26 - 0.19 * difficulty) * patient.uniform(0.75, 1.25)
        field = field + contrast * (blob * (1 + 0.25 * tissue) + 0.55 * spicules)
        mask = distance < 1
    pixels = 0.5 + ((1.15, 0.9)[center]) * (field - 0.5)
    pixels = ndimage.gaussian_filter(pixels, (0.35, 0.7)[center] * size / 96)
    return Drawing(pixels + image.normal(0, (0.014, 0.026)[center], pixels.shape), mask)


# ----------------------------------------------------------------------------------------------------------------- chest

def _chest(size: int, label: int, center: int, difficulty: float, patient: np.random.Generator, image: np.random.Generator) -> Drawing:
    z, x = _grid(size)
    u = (x - 0.5 - image.normal(0, 0.012)) * 2 / patient.uniform(0.92, 1.06)  # −1 … 1 across, the patient's right first
    v = (z - image.normal(0, 0.012)) * 2 - 1
    turn = image.normal(0, 0.02)
    u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    body = _edge(1 - (np.abs(u) / (0.97 - 0.10 * np.exp(-(((v + 0.9) / 0.25) ** 2)))) ** 4, 0.05)
    apex, base = patient.uniform(-0.80, -0.72), patient.uniform(0.42, 0.56)
    lungs = np.zeros_like(u)
    for side in (-1, 1):
        middle = side * patient.uniform(0.43, 0.47)
        narrow = 1 - 0.62 * np.exp(-np.clip(v - apex, 0, None) / 0.22)
        half = (0.33 + 0.05 * np.clip(v, -1, 0.5)) * narrow * patient.uniform(0.94, 1.05) - (0.03 if side > 0 else 0)
        lean = middle - side * 0.10 * np.exp(-np.clip(v - apex, 0, None) / 0.35)
        dome = base - 0.20 * np.exp(-(((u - middle) / 0.26) ** 2)) + 0.10 + (0.04 if side > 0 else 0)
        across = 1 - np.abs((u - lean) / half) ** 2.6
        lungs = np.maximum(lungs, _edge(across, 0.35) * _edge((v - apex) * 3, 0.25) * _edge((dome - v) * 3, 0.16))
    heart = _edge(1 - ((u - 0.13) / patient.uniform(0.31, 0.38)) ** 2 - ((v - 0.30) / 0.40) ** 2, 0.45)
    vessels = np.clip(power_law(patient, size, 2.4), 0, None) * np.exp(-((np.abs(np.abs(u) - 0.25) / 0.22) ** 2))
    ribs = np.zeros_like(u)
    spacing = patient.uniform(0.185, 0.215)
    for number in range(9):
        back = apex + 0.03 + number * spacing + 0.30 * (np.abs(u) - 0.15) ** 2 * 1.6 - 0.10 * np.abs(u)
        front = apex + 0.22 + number * spacing + 0.42 * np.abs(u) - 0.12
        thick = 0.030
        ribs += 0.8 * np.exp(-(((v - back) / thick) ** 2)) * _edge(np.abs(u) - 0.10, 0.04)
        ribs += 0.35 * np.exp(-(((v - front) / (thick * 1.1)) ** 2)) * _edge(np.abs(u) - 0.38, 0.06)
    spine = np.exp(-((u / 0.085) ** 4)) * (0.8 + 0.2 * np.cos(2 * np.pi * v / 0.16))
    clavicles = sum(np.exp(-(((v + 0.70 - 0.16 * (side * u - 0.1)) / 0.035) ** 2)) * _edge(side * u - 0.10, 0.04) * _edge(0.85 - side * u, 0.05)
                    for side in (-1, 1))
    middle = np.exp(-((u / (0.17 + 0.05 * _edge(v + 0.2, 0.3))) ** 4))
    opacity, mask = np.zeros_like(u), np.zeros((size, size), bool)
    if label:
        patchy = 0.5 + 0.5 * np.tanh(1.3 * power_law(patient, size, 2.6))
        for _ in range(int(patient.integers(1, 4))):
            side = patient.choice([-1, 1])
            cu, cv = side * patient.uniform(0.30, 0.55), patient.uniform(-0.35, 0.35)
            su, sv = patient.uniform(0.12, 0.24), patient.uniform(0.12, 0.26)
            opacity = np.maximum(opacity, np.exp(-(((u - cu) / su) ** 2 + ((v - cv) / sv) ** 2) ** 1.3))
        opacity = opacity * (0.55 + 0.45 * patchy) * lungs
        mask = opacity > 0.28
        if not mask.any():
            mask = opacity > 0.5 * opacity.max()
    amount = (0.62 - 0.48 * difficulty) * patient.uniform(0.7, 1.2)
    centre = np.maximum(heart, middle)
    below = _edge((v - base - 0.02) * 3, 0.35)
    soft = np.maximum(np.maximum(1 - lungs, 0.92 * centre), below)  # what is not air
    attenuation = body * (0.13 + 0.47 * soft + 0.10 * centre + 0.07 * below + 0.11 * spine + 0.105 * ribs * (0.35 + 0.65 * lungs)
                          + 0.11 * clavicles + 0.060 * vessels * lungs + 0.035 * power_law(patient, size, 3.0) + 0.46 * amount * opacity)
    pixels = np.clip(attenuation, 0, 1.3) ** (1.0, 1.25)[center] * (1.0, 0.92)[center]
    pixels = ndimage.gaussian_filter(pixels, (0.4, 0.75)[center] * size / 96)
    quantum = (0.012, 0.022)[center] / np.sqrt(np.clip(pixels, 0.08, 1))
    return Drawing(pixels + image.standard_normal(pixels.shape) * quantum * 0.6, mask)


# ----------------------------------------------------------------------------------------------------------------- cells

def _cells(size: int, label: int, center: int, difficulty: float, patient: np.random.Generator, image: np.random.Generator) -> Drawing:
    line = np.random.default_rng([_CODE["cells"], 77, label])  # the line's looks do not depend on the study's seed
    spread = 1.0 - 0.75 * difficulty  # how far the lines lie apart
    radius = 0.085 * np.exp(spread * 0.55 * line.normal())
    long = 1 + 2.6 * spread * line.random() ** 2
    rough, grain = 0.04 + 0.16 * spread * line.random(), 0.15 + 0.8 * spread * line.random()
    halo, dense = 0.55 + 0.5 * spread * (line.random() - 0.5), 0.40 + 0.75 * spread * (line.random() - 0.3)
    z, x = _grid(size)
    count = max(2, int(patient.poisson(np.clip(dense, 0.15, 1.2) * 0.5 / (np.pi * radius**2))))
    count = min(count, 60)
    at = patient.uniform(-0.08, 1.08, (count, 2)) + image.normal(0, 0.02, (count, 2))  # the cells of a field creep between frames
    turn = patient.vonmises(patient.uniform(-np.pi, np.pi), 1.0, count) + image.normal(0, 0.1, count)
    scale = np.exp(patient.normal(0, 0.18, count))
    field, fine = np.zeros((size, size)), power_law(image, size, 1.2)
    for (cz, cx), angle, factor in zip(at, turn, scale, strict=True):
        reach = radius * factor * np.sqrt(long) * 1.9
        rows, columns = _window(cz, reach, size), _window(cx, reach, size)
        if rows.stop <= rows.start or columns.stop <= columns.start:
            continue
        dz, dx = z[rows, columns] - cz, x[rows, columns] - cx
        a, b = (dx * np.cos(angle) + dz * np.sin(angle)) / np.sqrt(long), (dz * np.cos(angle) - dx * np.sin(angle)) * np.sqrt(long)
        theta = np.arctan2(b, a)
        distance = np.hypot(a, b) / (radius * factor * (1 + rough * np.cos(3 * theta + angle * 5) + 0.6 * rough * np.cos(5 * theta + factor * 9)))
        rim = halo * (np.exp(-(((distance - 1.02) / 0.10) ** 2)) - 0.75 * np.exp(-(((distance - 0.84) / 0.11) ** 2)))
        body = -0.12 / (1 + np.exp((distance - 0.8) * 14)) + 0.10 * np.exp(-((distance / 0.35) ** 2))
        granules = grain * 0.16 * fine[rows, columns] / (1 + np.exp((distance - 0.85) * 14))
        field[rows, columns] += rim + body + granules
    slope = patient.normal(0, 0.05, 2)
    pixels = 0.46 + (0.50, 0.40)[center] * field + slope[0] * (z - 0.5) + slope[1] * (x - 0.5) + 0.012 * power_law(patient, size, 2.0)
    pixels = ndimage.gaussian_filter(pixels, (0.4, 0.8)[center] * size / 96)
    return Drawing(pixels + image.normal(0, (0.012, 0.022)[center], pixels.shape))


# -------------------------------------------------------------------------------------------------------------- fractals

def _fractals(size: int, label: int, center: int, difficulty: float, patient: np.random.Generator, image: np.random.Generator) -> Drawing:
    maps, weights = _system(label)
    jitter = 1 + (0.10 + 0.10 * difficulty) * image.uniform(-1, 1, maps.shape)
    points = _attractor(maps * jitter, weights, image, 160, 140)
    low, high = np.quantile(points, 0.002, axis=0), np.quantile(points, 0.998, axis=0)
    span = max(float((high - low).max()), 1e-6)
    where = (points - (low + high) / 2) / span * 0.92 + 0.5
    if image.random() < 0.5:
        where[:, 0] = 1 - where[:, 0]
    hits = np.histogram2d(where[:, 1], where[:, 0], bins=size, range=[[0, 1], [0, 1]])[0]
    shade = ndimage.gaussian_filter(np.log1p(hits), 0.4 * size / 64)
    shade = np.clip(shade / max(np.quantile(shade, 0.995), 1e-9), 0, 1)
    ink, paper = image.uniform(0.45, 1.0, 3), image.uniform(0.0, 0.25, 3) * (0.6, 1.0)[center]
    return Drawing(paper + shade[..., None] ** 0.7 * (ink - paper))


def _system(label: int) -> tuple[np.ndarray, np.ndarray]:
    """The iterated function system of a class: (K, 2, 3) contractive affine maps that fill enough of the square, and their weights."""
    for attempt in range(200):
        rng = np.random.default_rng([_CODE["fractals"], 99, label, attempt])
        maps = rng.uniform(-1, 1, (int(rng.integers(2, 6)), 2, 3))
        norms = np.linalg.norm(maps[:, :, :2], ord=2, axis=(1, 2))
        maps[:, :, :2] *= (rng.uniform(0.35, 0.85, len(maps)) / norms)[:, None, None]
        weights = np.abs(np.linalg.det(maps[:, :, :2])) + 0.02
        weights /= weights.sum()
        points = _attractor(maps, weights, rng, 60, 60)
        span = np.ptp(points, axis=0).max()
        filled = np.histogram2d(*((points - points.min(0)) / max(span, 1e-9)).T, bins=32, range=[[0, 1], [0, 1]])[0] > 0
        if filled.mean() > 0.18:
            return maps, weights
    raise MstlError(f"No iterated function system was found for class {label}: use fewer classes.")


def _attractor(maps: np.ndarray, weights: np.ndarray, rng: np.random.Generator, walkers: int, steps: int) -> np.ndarray:
    """Points of the chaos game, many walkers at once; the first 15 steps are left out."""
    at = np.zeros((walkers, 2))
    chosen = rng.choice(len(maps), size=(steps, walkers), p=weights)
    points = np.empty((steps, walkers, 2))
    for step in range(steps):
        m = maps[chosen[step]]
        at = np.einsum("wij,wj->wi", m[:, :, :2], at) + m[:, :, 2]
        points[step] = at
    return points[15:].reshape(-1, 2)


# ---------------------------------------------------------------------------------------------------------------- pieces

_DRAW: dict[str, Callable[..., Drawing]] = {"ultrasound": _ultrasound, "mammogram": _mammogram, "chest": _chest, "cells": _cells, "fractals": _fractals}


def _draw(job: tuple) -> Drawing:
    kind, size, seed, difficulty, label, group, center, member = job
    patient = np.random.default_rng([seed, _CODE[kind], 0, group])
    image = np.random.default_rng([seed, _CODE[kind], 1, group, member])
    return _DRAW[kind](size, label, center, difficulty, patient, image)


def _drawn(jobs: list[tuple], workers: int | None, progress: bool, kind: str) -> list[Drawing]:
    from tqdm import tqdm

    show = dict(total=len(jobs), desc=f"drawing phantom-{kind}", unit="image", disable=None if progress else True, leave=False)
    if workers is not None and workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            return list(tqdm(pool.map(_draw, jobs, chunksize=max(1, len(jobs) // (workers * 4))), **show))
    return list(tqdm(map(_draw, jobs), **show))


def _plan(kind: str, n: int, n_classes: int, seed: int) -> pd.DataFrame:
    """Label, group, center and place in its group of every image, in random order of the groups."""
    rng = np.random.default_rng([seed, _CODE[kind], 2])
    rows, group = [], 0
    for label in range(n_classes):
        left, turn = n // n_classes + (label < n % n_classes), int(rng.integers(2))
        while left:
            many = 1 if kind == "fractals" else min(left, int(rng.choice([1, 2, 3, 4], p=[0.4, 0.3, 0.2, 0.1])))
            rows.append((label, group, turn, many))
            left, group, turn = left - many, group + 1, 1 - turn
    order = rng.permutation(len(rows))
    return pd.DataFrame([(label, group, center, member) for label, group, center, many in (rows[i] for i in order) for member in range(many)],
                        columns=["label", "group", "center", "member"])


def _checked(kind: str, n: int, size: int, difficulty: float, n_classes: int | None) -> tuple[str, ...]:
    if kind not in _CODE:
        near = difflib.get_close_matches(str(kind), _CODE, n=1, cutoff=0.3)
        raise MstlError(f"There is no phantom '{kind}': " + (f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(_CODE)}."))
    if not 0 <= difficulty <= 1:
        raise MstlError(f"difficulty={difficulty} of phantom-{kind}: it lies between 0 (easy) and 1 (hard).")
    if not 32 <= int(size) <= 512:
        raise MstlError(f"size={size} of phantom-{kind}: simulated images have 32 to 512 pixels a side.")
    if kind in _CLASSES:
        if n_classes not in (None, len(_CLASSES[kind])):
            raise MstlError(f"phantom-{kind} has the {len(_CLASSES[kind])} classes {', '.join(_CLASSES[kind])}: leave n_classes out.")
        classes = _CLASSES[kind]
    else:
        most = 40 if kind == "cells" else 1000
        count = (6 if kind == "cells" else 10) if n_classes is None else int(n_classes)
        if not 2 <= count <= most:
            raise MstlError(f"n_classes={n_classes} of phantom-{kind}: use 2 to {most}.")
        classes = tuple(f"{'line' if kind == 'cells' else 'system'}-{i + 1:0{len(str(count))}d}" for i in range(count))
    if n < 2 * len(classes):
        raise MstlError(f"n={n} images of phantom-{kind} are too few for its {len(classes)} classes: ask for at least {2 * len(classes)}.")
    return classes


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Depth and width of every pixel's middle, 0..1, (size, size) each."""
    axis = (np.arange(size) + 0.5) / size
    return np.broadcast_to(axis[:, None], (size, size)), np.broadcast_to(axis[None, :], (size, size))


def _waves(rng: np.random.Generator, x: np.ndarray, count: int) -> list[np.ndarray]:
    """Smooth random lines across the image, about −1 … 1."""
    return [sum(rng.normal(0, 0.6 / k) * np.sin(2 * np.pi * (k * 0.6 * x + rng.random())) for k in range(1, 5)) for _ in range(count)]


def _strand(rng: np.random.Generator, z: np.ndarray, x: np.ndarray, width: float) -> np.ndarray:
    """A thin curved line through the image."""
    angle = rng.uniform(0, np.pi)
    along, across = (x - 0.5) * np.cos(angle) + (z - 0.5) * np.sin(angle), (z - 0.5) * np.cos(angle) - (x - 0.5) * np.sin(angle)
    middle = rng.uniform(-0.45, 0.45) + rng.normal(0, 0.5) * along**2 + 0.03 * np.sin(9 * along + rng.uniform(0, 6))
    return np.exp(-(((across - middle) / width) ** 2))


def _edge(value: np.ndarray, width: float) -> np.ndarray:
    """A soft step from 0 to 1 where ``value`` crosses zero."""
    return 1 / (1 + np.exp(-np.clip(value / width * 4, -50, 50)))


def _window(middle: float, reach: float, size: int) -> slice:
    return slice(max(0, int((middle - reach) * size)), min(size, int((middle + reach) * size) + 1))


def _boxes(masks: np.ndarray, names: np.ndarray) -> pd.DataFrame:
    """One box an image around its mask, in pixels, ends beyond the last pixel."""
    rows = []
    for number, mask in enumerate(masks):
        if mask.any():
            down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            rows.append((number, names[number], float(across[0]), float(down[0]), float(across[-1] + 1), float(down[-1] + 1)))
    return pd.DataFrame(rows, columns=BOXES)


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
