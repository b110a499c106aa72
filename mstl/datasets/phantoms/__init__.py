"""Phantoms: simulated images of nine modalities with their truth (label, patient, center, mask, boxes).

Each is drawn from a small model of how such an image comes about, not painted: ultrasound is speckle of random
scatterers seen through a point-spread function; a mammogram and the radiographs of chest and knee are sums of what the ray meets; a
brightfield image is a phase object out of focus; a scintigram is a count of the rays that leave the body; a fractal is the attractor of a
random iterated function system.
They check the machine, not any claim about patients.

Classes are the same for every seed (line 3 is always the same line), so that two sets of different seeds are two
samples of one world. Whatever belongs to a patient is drawn from one stream of random numbers and whatever belongs to
a single exposure from another; neither knows the number of workers, so the bytes follow from the arguments of `make`
alone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from scipy import ndimage

from ...errors import MstlError
from ..catalog import card, nearest
from ..imageset import BOXES, ImageSet
from . import cells, chest, endoscopy, fractals, fundus, knee, mammogram, scintigraphy, ultrasound
from .drawing import Model, Scene

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

    kind        "ultrasound" (normal, benign, malignant), "mammogram" (normal, lesion), "chest" (normal, pneumonia), "knee"
                (normal, benign, malignant), "scintigraphy" (normal, metastasis), "endoscopy", "fundus", "cells" or "fractals"
    n           images, at least one a class and center; classes are balanced up to rounding, and within each class so are the centers.
                Scintigraphy has two views of every case, so that n is even and cases are balanced
    size        side in pixels, 32 to 512
    difficulty  0 (plain to see) to 1 (near the limit of what can be seen): contrast and size of what makes a class, its
                overlap with the other classes, and noise
    n_classes   of cells (2 to 30, default 6) and fractals (2 to 1000, default 10) only
    workers     threads; default: the cores of this process. The bytes do not depend on it

    A group is one patient (cells: one position in a well; fractals: the image itself) with one to four images (knee: up to six) that share
    their anatomy, their class and their center (scintigraphy: one case, its two `views`). There are two centers, of the knee three. Masks and
    boxes (where there is something to find) are in pixels; a box is
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
        centers=np.array([model.centers[scene.center] for scene in repeated]),
        ids=np.array([f"{kind}-{row:06d}" for row in range(n)]),
        splits=np.full(n, ""),
        masks=masks,
        boxes=None if masks is None else _boxes(masks, labels, classes),
        views=np.array(model.views * len(scenes)) if model.views else None,
        cases=np.array([f"{model.group}-{scene.number:05d}" for scene in repeated]) if model.views else None,
        extra=pd.DataFrame({"subtype": subtypes.astype(str), "conspicuity": conspicuity}),
        card=dataclasses.replace(card(f"phantom-{kind}"), classes=classes, channels=model.channels, origin=_origin(kind, classes)),
    )


def _origin(kind: str, classes: tuple[str, ...]) -> dict[str, str]:
    return {name: cells.tissue(label) for label, name in enumerate(classes)} if kind == "cells" else {}


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
    centers, views = len(MODELS[kind].centers), max(1, len(MODELS[kind].views))
    if n % views:
        raise MstlError(f"phantom {kind}: every case has {views} images, so n must be a multiple of {views}, not {n}")
    if n < centers * count * views:
        number = {2: "two", 3: "three"}[centers]
        raise MstlError(
            f"phantom {kind}: n = {n} is too small for {count} classes in {number} centers; ask for at least {centers * count * views} images"
        )
    return fixed or tuple(f"{MODELS[kind].word}-{k + 1:0{len(str(count)) if count > 99 else 2}d}" for k in range(count))


def _scenes(kind: str, classes: tuple[str, ...], n: int, size: int, seed: int, difficulty: float) -> list[Scene]:
    code = list(MODELS).index(kind)
    rng = np.random.default_rng([seed, code])
    views = len(MODELS[kind].views)
    largest, centers = MODELS[kind].largest if MODELS[kind].grouped else 1, len(MODELS[kind].centers)
    cells = []  # (label, center, images)
    for label in range(len(classes)):
        if views:  # whole cases, dealt like images
            cases = n // views // len(classes) + (label < n // views % len(classes))
            cells += [(label, center, views) for center in (0, 1) for _ in range((cases + (label + center) % 2) // 2)]
            continue
        images = n // len(classes) + (label < n % len(classes))
        for center in range(centers):  # what is left over goes to other centers from class to class
            part = images // centers + ((center - label) % centers < images % centers)
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


MODELS: dict[str, Model] = {
    "ultrasound": Model(ultrasound.draw, ("normal", "benign", "malignant"), "patient", masks=True),
    "mammogram": Model(mammogram.draw, ("normal", "lesion"), "patient", masks=True),
    "chest": Model(chest.draw, ("normal", "pneumonia"), "patient", masks=True),
    "cells": Model(cells.draw, (), "well", masks=False, n_classes=6, word="line"),
    "fractals": Model(fractals.draw, (), "image", masks=False, channels=3, grouped=False, n_classes=10, word="system"),
    "endoscopy": Model(endoscopy.draw, ("normal", "polyp"), "patient", masks=True, channels=3),
    "fundus": Model(fundus.draw, ("normal", "retinopathy", "glaucoma"), "patient", masks=True, channels=3),
    "knee": Model(knee.draw, ("normal", "benign", "malignant"), "patient", masks=True, centers=("A", "B", "C"), largest=6),
    "scintigraphy": Model(scintigraphy.draw, ("normal", "metastasis"), "case", masks=True, views=scintigraphy.VIEWS),
}
