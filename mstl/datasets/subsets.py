"""Smaller, merged, shuffled and grey variants of a set: what an ablation takes away from it, or makes equal, and nothing else.

`rows` are row numbers of the set, in any order, each once; those returned are sorted int64. The same arguments give the same answer. Where
one is asked for less with the same `rows` and `seed`, less is part of more: a curve over shares drops images and never exchanges them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..errors import MstlError
from .catalog import nearest
from .imageset import ImageSet
from .splits import _checked_seed, one_group_per_class

WAYS = ("random", "tissue")
LUMA = (299, 587, 114)  # thousandths of red, green and blue (ITU-R BT.601)


def keep_images(data: ImageSet, rows: np.ndarray, share: float, *, seed: int = 0) -> np.ndarray:
    """`share` (0 < share ≤ 1) of the images of every class among `rows`, rounded, at least one of each."""
    rows, share = _checked_rows(data, rows), _checked_share(share)
    rank, _ = _dealt(data, rows, seed)
    labels = data.labels[rows]
    return rows[rank < _rounded(share * np.bincount(labels, minlength=len(data.classes)))[labels]]


def keep_classes(data: ImageSet, rows: np.ndarray, share: float, *, seed: int = 0) -> np.ndarray:
    """All images of `share` (0 < share ≤ 1) of the classes that occur among `rows`, rounded, at least two classes."""
    rows, share = _checked_rows(data, rows), _checked_share(share)
    present = np.unique(data.labels[rows])
    if len(present) < 2:
        raise MstlError(f"{data.name}: the rows hold the class {data.classes[present[0]]!r} only, and a share of the classes needs at "
                        "least two; give rows of several classes.")
    wanted = max(2, int(_rounded(share * len(present))))
    kept = np.random.default_rng([_checked_seed(seed), len(data.classes)]).permutation(present)[:wanted]
    return rows[np.isin(data.labels[rows], kept)]


def take(data: ImageSet, rows: np.ndarray, n: int, *, seed: int = 0) -> np.ndarray:
    """`n` of `rows`: as many of every class, as far as the classes reach; what does not divide goes to classes at random."""
    rows = _checked_rows(data, rows)
    present = len(np.unique(data.labels[rows]))
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise MstlError(f"{data.name}: take needs a whole number of images, not {n!r}.")
    if n < present:
        raise MstlError(f"{data.name}: {n} images cannot hold the {present} classes of the rows; ask for at least {present}.")
    if n > len(rows):
        raise MstlError(f"{data.name}: {n} images were asked for, but the rows are only {len(rows)}; ask for fewer.")
    rank, turn = _dealt(data, rows, seed)
    return np.sort(rows[np.lexsort((turn, rank))[:n]])


def merge(data: ImageSet, how: str, k: int, *, seed: int = 0) -> ImageSet:
    """The same images with their classes merged into `k` (2 to the number of classes that have images).

    how="random"  the classes fall at random into `group-1` … `group-k`, whose numbers of images are then evened out by moving and
                  swapping classes as long as that helps
    how="tissue"  by the tissue of origin that the card tells (`card.origin`): the k − 1 tissues with the most images are a class each (of
                  equal ones the first by name), the others together are `other`; `seed` has no part in it

    Boxes take the merged name of their class; the card's notes say which class went where.
    Raises MstlError for another `how`, a `k` out of range, and a set that does not tell where its classes come from.
    """
    if how not in WAYS:
        raise MstlError(f"{data.name}: classes are merged by {' or '.join(WAYS)}, not by {how!r}{nearest(how, WAYS)}.")
    counts = np.bincount(data.labels, minlength=len(data.classes))
    present = int((counts > 0).sum())
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 2 <= k <= present:
        raise MstlError(f"{data.name}: its {present} classes can be merged into 2 to {present}, not into {k!r}.")
    if how == "random":
        new, names = _by_chance(counts, int(k), _checked_seed(seed)), tuple(f"group-{i + 1}" for i in range(k))
    else:
        new, names = _by_tissue(data, counts, int(k))
    members = "; ".join(f"{name}: {', '.join(c for c, g in zip(data.classes, new) if g == i)}" for i, name in enumerate(names))
    boxes = data.boxes
    if boxes is not None:
        merged = {old: names[g] for old, g in zip(data.classes, new)}
        boxes = boxes.assign(**{"class": [merged.get(name, name) for name in boxes["class"]]})
    way = f"at random (seed {seed})" if how == "random" else "by tissue of origin"
    return _relabelled(data, new[data.labels], f"{data.name}-{how}{k}", f"classes merged {way} into {members}", classes=names, boxes=boxes)


def shuffle_labels(data: ImageSet, rows: np.ndarray, *, seed: int = 0) -> ImageSet:
    """The same set with the labels of `rows` dealt out anew among them: as many of each class, and nothing left to learn.

    Boxes, masks and every other row stay as they are. A control: what still helps after training on it was not the classes.
    """
    rows = _checked_rows(data, rows)
    labels = data.labels.copy()
    labels[rows] = np.random.default_rng(_checked_seed(seed)).permutation(labels[rows])
    return _relabelled(data, labels, f"{data.name}-shuffled", f"the labels of {len(rows)} of {len(data)} images were shuffled (seed {seed})")


def grey(data: ImageSet) -> ImageSet:
    """The same images in one channel, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) rounded; a grey set is returned as it is."""
    if data.channels == 1:
        return data
    colour = data.images
    images = np.empty((*colour.shape[:3], 1), np.uint8)
    for start in range(0, len(images), 256):
        light = colour[start : start + 256].astype(np.uint32) @ np.array(LUMA, np.uint32)
        images[start : start + 256, ..., 0] = (light + 500) // 1000
    images.setflags(write=False)
    card = _noted(data, "turned grey (ITU-R BT.601)", channels=1)
    return data._derive("grey", images=images, name=f"{data.name}-grey", card=card)


def varied(
    data: ImageSet, *, images: float = 1.0, lines: float = 1.0, n_train: int = 0, merge_how: str = "", merge_to: int = 0,
    shuffle: bool = False, seed: int = 0,
) -> tuple[ImageSet, np.ndarray, np.ndarray]:
    """A bridge as an ablation wants it: the set, its training rows and its held-out rows (see `one_group_per_class`).

    In this order: the share `lines` of the classes; classes merged (`merge_how`, `merge_to`); whole groups held out; the share `images`
    of the training images of every class; `n_train` of them (0: all); labels shuffled over the training rows. `seed` decides all draws.
    """
    if lines < 1:
        kept = data.labels[keep_classes(data, np.arange(len(data)), lines, seed=seed)]
        data = data.select([data.classes[label] for label in np.unique(kept)])
    if merge_how:
        data = merge(data, merge_how, merge_to, seed=seed)
    train, held_out = one_group_per_class(data, seed=0)
    train = keep_images(data, train, images, seed=seed) if images < 1 else train
    train = take(data, train, n_train, seed=seed) if n_train else train
    return (shuffle_labels(data, train, seed=seed) if shuffle else data), train, held_out


# --- the pieces --------------------------------------------------------------------------------------------------------


def _dealt(data: ImageSet, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every row its rank in a random order of its class (0, 1, …), and the turn of its class in a random order of the classes."""
    labels, seed = data.labels[rows], _checked_seed(seed)
    rank = np.empty(len(rows), np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        rank[own] = np.random.default_rng([seed, label]).permutation(len(own))
    return rank, np.random.default_rng([seed, len(data.classes)]).permutation(len(data.classes))[labels]


def _by_chance(counts: np.ndarray, k: int, seed: int) -> np.ndarray:
    """(classes,) the group of each class: dealt in random order, always to the smallest group, then evened out."""
    group, size = np.full(len(counts), -1), np.zeros(k, np.int64)
    random = np.random.default_rng(seed)
    order = random.permutation(len(counts))
    for c in order[np.argsort(counts[order] == 0, kind="stable")]:  # classes without an image last
        smallest = np.flatnonzero(size == size.min())
        group[c] = random.choice(smallest)
        size[group[c]] += counts[c]
    while _evened(counts, group, size):
        pass
    return group


def _evened(counts: np.ndarray, group: np.ndarray, size: np.ndarray) -> bool:
    """Makes the first move or swap of classes that lessens the sum of squares of `size`; False where there is none."""
    for a in range(len(counts)):
        for b in [*range(a), None]:
            for target in range(len(size)) if b is None else [group[b]]:
                home, gain = group[a], counts[a] - (0 if b is None else counts[b])
                if target == home or (size[target] + gain) ** 2 + (size[home] - gain) ** 2 >= size[target] ** 2 + size[home] ** 2:
                    continue
                size[target], size[home], group[a] = size[target] + gain, size[home] - gain, target
                if b is not None:
                    group[b] = home
                return True
    return False


def _by_tissue(data: ImageSet, counts: np.ndarray, k: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """(classes,) the merged class of each class, and the names of the merged classes."""
    origin = data.card.origin
    untold = [name for name in data.classes if name not in origin]
    if untold:
        raise MstlError(f"{data.name}: the catalog does not tell the tissue of origin of {untold[0]!r} ({len(untold)} such classes); merge "
                        "them by how=\"random\", or add `origin` to its card.")
    images: dict[str, int] = {}
    for name, count in zip(data.classes, counts):
        if count:
            images[origin[name]] = images.get(origin[name], 0) + int(count)
    if k > len(images):
        raise MstlError(f"{data.name}: its classes come from {len(images)} tissues, so they cannot be merged into {k}; ask for at most "
                        f"{len(images)}.")
    ranked = sorted(images, key=lambda tissue: (-images[tissue], tissue))
    names = tuple(ranked) if k == len(ranked) else (*ranked[: k - 1], "other")
    return np.array([names.index(origin[c]) if origin[c] in names else k - 1 for c in data.classes]), names


def _relabelled(data: ImageSet, labels: np.ndarray, name: str, note: str, **changes) -> ImageSet:
    from .imageset import _digest

    labels = np.asarray(labels, np.int64)
    classes = changes.get("classes", data.classes)
    card = _noted(data, note, classes=classes)
    return data._derive(f"labels {_digest(labels)} {list(classes)}", labels=labels, name=name, card=card, **changes)


def _noted(data: ImageSet, note: str, **changes):
    notes = f"{note[0].upper()}{note[1:]}. {data.card.notes}".strip()
    return dataclasses.replace(data.card, notes=notes, **changes)


def _checked_rows(data: ImageSet, rows: np.ndarray | Sequence[int]) -> np.ndarray:
    """`rows` sorted, int64."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
        raise MstlError(f"{data.name}: rows must be a list of at least one row number, not {rows.dtype} of shape {rows.shape}; "
                        "for a mask give np.flatnonzero(mask).")
    rows = np.sort(rows.astype(np.int64))
    if rows[0] < 0 or rows[-1] >= len(data):
        raise MstlError(f"{data.name}: the row {rows[0] if rows[0] < 0 else rows[-1]} does not exist; rows run from 0 to {len(data) - 1}.")
    twice = rows[1:][rows[1:] == rows[:-1]]
    if len(twice):
        raise MstlError(f"{data.name}: the row {twice[0]} is given twice; give every row once.")
    return rows


def _checked_share(share: float) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float, np.integer, np.floating)) or not 0 < share <= 1:
        raise MstlError(f"share={share!r}: a share is a number above 0 and up to 1, for example 0.5.")
    return float(share)


def _rounded(wanted: np.ndarray | float) -> np.ndarray:
    """To the nearest whole number, halves up, at least 1."""
    return np.maximum(1, np.floor(np.asarray(wanted) + 0.5)).astype(np.int64)
