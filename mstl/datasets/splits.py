"""Who trains and who is tested: grouped, stratified folds, hold-outs and draws, and the audit for copies that leak.

A *group* (a patient, or the original image that several images were cut from) lies wholly in one of training,
validation and test. Every split made here passes :func:`check`, which refuses one that breaks this rule. Groups are only
as good as what is known of the patients: :func:`audit` finds the images that are copies of each other whatever their
group says, and :func:`group_by_cluster` puts those on one side.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mstl.errors import MstlError

if TYPE_CHECKING:
    from mstl.datasets.imageset import ImageSet

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """One way to part a data set: ``train``, ``val`` and ``test`` are sorted int64 row indices; ``fold`` numbers it."""

    fold: int
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def folds(data: ImageSet, k: int = 5, *, seed: int = 0) -> list[Split]:
    """Grouped, stratified k-fold cross-validation: fold i is test, fold i+1 validation, the rest training.

    Stratified by label and, where the set has several centers, by label and center together. Every image is in the
    test part exactly once and in the validation part exactly once. ``k`` is at least 3. The assignment of groups to
    folds is scikit-learn's ``StratifiedGroupKFold``; because that is greedy and can leave a rare class out of a fold, the
    result is inspected and dealt again with the next shuffle where needed.

    Raises MstlError for an empty class, a class with fewer groups than folds, or ``k`` below 3.
    """
    seed = _checked_seed(seed)
    if k < 3:
        raise MstlError(f"folds(k={k}): at least 3 folds are needed (one test, one validation, the rest training); "
                        "use holdout(...) for a single division.")
    _refuse_empty_classes(data, np.arange(len(data.labels)), "the data set")
    group = _codes(data.groups)
    for c, name in enumerate(data.classes):
        found = len(np.unique(group[data.labels == c]))
        if found < k:
            raise MstlError(f"Class '{name}' of {data.name} has {_count(found, 'group')}, fewer than the {k} folds asked for: "
                            f"use k <= {found}, or holdout(...), or more data.")
    part = _deal_folds(data, group, k, seed)
    splits = [_split(i, data, train=(part != i) & (part != (i + 1) % k), val=part == (i + 1) % k, test=part == i)
              for i in range(k)]
    return splits


def holdout(data: ImageSet, *, n_train: int | None = None, n_val: int | None = None, test: float = 0.5, draws: int = 1,
            seed: int = 0) -> list[Split]:
    """One fixed test part and ``draws`` draws of training and validation from the rest, all by whole groups.

    ``test`` is the share of images in the test part (0 < test < 1). It depends on ``seed`` alone, so that the draws, and
    different ``n_train``, are compared on the same test images. The rest is drawn as :func:`published` describes.
    """
    seed = _checked_seed(seed)
    if not 0 < test < 1:
        raise MstlError(f"holdout(test={test}): the test part is a share of the images, between 0 and 1, for example 0.5.")
    everything = np.arange(len(data.labels))
    _refuse_empty_classes(data, everything, "the data set")
    tested = _draw(data, everything, round(test * len(everything)), np.random.default_rng([seed, 0]))
    rest = np.setdiff1d(everything, tested)
    _refuse_empty_classes(data, rest, "what the test part leaves")
    return _draws(data, rest, tested, n_train, n_val, draws, seed)


def published(data: ImageSet, *, n_train: int | None = None, n_val: int | None = None, draws: int = 1,
              seed: int = 0) -> list[Split]:
    """The published test part, and ``draws`` draws of training and validation images from everything else.

    Validation is drawn first, then training from what remains, both in random order of whole groups and in the class
    proportions of what they are drawn from (by center too, where there are several). A group is taken when it brings
    the counts of images a class (and center) nearer to those wanted. The number reached never exceeds the number asked for
    by more than the size of the largest group; where groups hold one class each, every class is within half of that size
    of its share, and exact where groups of one image abound. :func:`describe` tells what was reached. With the same seed
    and ``n_val``, the validation part does not change with ``n_train``.

    ``n_train=None`` takes all that validation leaves. ``n_val=None`` takes a quarter of ``n_train`` or, where that is
    None too, the published validation part if there is one (every draw is then the same), else a fifth of the images.

    Raises MstlError where the set has no published split, a group lies on both sides of it, or too few images are left.
    """
    seed = _checked_seed(seed)
    splits = np.asarray(data.splits)
    tested, rest = np.flatnonzero(splits == "test"), np.flatnonzero(splits != "test")
    if not len(tested) or not len(rest):
        raise MstlError(f"{data.name} has no published split into training and test images: use folds(...) or holdout(...).")
    _refuse_empty_classes(data, tested, "the published test part")
    _refuse_empty_classes(data, rest, "the published training part")
    _refuse_shared_groups(data, np.where(splits == "test", PARTS.index("test"), PARTS.index("train")), "The published split")
    if n_train is None and n_val is None and (splits == "val").any():
        val = np.flatnonzero(splits == "val")
        return [_split(d, data, train=np.setdiff1d(rest, val), val=val, test=tested) for d in range(_checked_draws(draws))]
    return _draws(data, rest, tested, n_train, n_val, draws, seed)


def design(data: ImageSet, name: str, *, k: int = 5, n_train: int | None = None, n_val: int | None = None, test: float = 0.5,
           draws: int = 1, seed: int = 0) -> list[Split]:
    """The splits of a study's design by its ``name``: "folds" (uses ``k``), "holdout" (``test``, ``n_train``, ``n_val``, ``draws``) or
    "published" (``n_train``, ``n_val``, ``draws``)."""
    if name == "folds":
        return folds(data, k, seed=seed)
    if name == "holdout":
        return holdout(data, n_train=n_train, n_val=n_val, test=test, draws=draws, seed=seed)
    if name == "published":
        return published(data, n_train=n_train, n_val=n_val, draws=draws, seed=seed)
    raise MstlError(f"design '{name}' is unknown: use 'folds', 'holdout' or 'published'.")


def one_group_per_class(data: ImageSet, *, seed: int = 0, share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Training rows, and held-out rows (sorted int64) to look at the accuracy of a source or bridge.

    From each class that has several groups of its own, whole groups in random order are held out until they hold ``share`` of
    its images: at least one group, and one always stays for training. A class whose images are all of one group (for
    example one well of one cell line) cannot be checked and gives none; the held-out part is then empty, or lacks classes.
    """
    random = np.random.default_rng([_checked_seed(seed), 3])
    labels, group = np.asarray(data.labels), _codes(data.groups)
    sizes = np.zeros((group.max() + 1, len(data.classes)), int)
    np.add.at(sizes, (group, labels), 1)
    pure = (sizes > 0).sum(1) == 1
    held = np.zeros(len(sizes), bool)
    for c in range(len(data.classes)):
        own = random.permutation(np.flatnonzero((sizes[:, c] > 0) & pure))
        if (sizes[:, c] > 0).sum() < 2 or not len(own):
            continue
        before = np.cumsum(sizes[own, c]) - sizes[own, c]
        enough = np.flatnonzero(before >= share * sizes[:, c].sum())
        stop = enough[0] if len(enough) else len(own)
        held[own[: min(stop, (sizes[:, c] > 0).sum() - 1)]] = True
    return np.flatnonzero(~held[group]), np.flatnonzero(held[group])


def check(split: Split, data: ImageSet) -> None:
    """Refuse a split in which an image or a group lies on two sides, or a part is empty or lacks a class.

    Raises MstlError naming the first such image, group (in sorted order) or class.
    """
    n = len(data.labels)
    side = np.full(n, -1)
    for number, part in enumerate(PARTS):
        index = np.asarray(getattr(split, part))
        if index.size and (index.min() < 0 or index.max() >= n):
            row = index.max() if index.max() >= n else index.min()
            raise MstlError(f"Fold {split.fold} of {data.name}: the {part} part names row {row}, but the set has {n} images; "
                            "make the split from this very selection.")
        taken = index[side[index] >= 0]
        if len(taken) or len(np.unique(index)) < len(index):
            row = taken[0] if len(taken) else pd.Series(index)[pd.Series(index).duplicated()].iloc[0]
            raise MstlError(f"Fold {split.fold} of {data.name}: image '{data.ids[row]}' is used twice "
                            f"({PARTS[side[row]] if side[row] >= 0 else part} and {part}); draw the split again.")
        side[index] = number
    _refuse_shared_groups(data, side, f"Fold {split.fold}")
    for part in PARTS:
        _refuse_empty_classes(data, np.asarray(getattr(split, part)), f"the {part} part of fold {split.fold}")


def describe(splits: Sequence[Split], data: ImageSet) -> pd.DataFrame:
    """What each split holds: one row a fold and part, with images, groups, and images of every class."""
    labels, groups = np.asarray(data.labels), np.asarray(data.groups)
    rows = []
    for split in splits:
        for part in PARTS:
            index = getattr(split, part)
            counts = np.bincount(labels[index], minlength=len(data.classes))
            rows.append({"fold": split.fold, "part": part, "images": len(index), "groups": len(np.unique(groups[index])),
                         **{name: int(count) for name, count in zip(data.classes, counts)}})
    return pd.DataFrame(rows)


# ----------------------------------------------------------------------------------------------------------- the audit

THRESHOLD = 0.85


@dataclass(frozen=True, eq=False)
class Audit:
    """The copies within a set of N images. A cluster holds at least two images, linked by exact or near copies.

    clusters      row indices (sorted) of each cluster, in the order of their first image
    exact         the same for images of identical pixels only
    conflicts     those of ``clusters`` that carry more than one label
    cluster_ids   int64 (N,): number of the cluster, −1 for an image without a copy
    pairs         DataFrame i, j (rows, i < j), similarity (1 for identical pixels), exact, mirrored
    members       DataFrame: one row an image in a cluster, with cluster, row, id, class, group and split
    plain         rows too plain for near-copies to be judged; only exact copies of them are found
    """

    name: str
    n: int
    threshold: float
    clusters: list[np.ndarray]
    exact: list[np.ndarray]
    conflicts: list[np.ndarray]
    cluster_ids: np.ndarray
    pairs: pd.DataFrame = field(repr=False)
    members: pd.DataFrame = field(repr=False)
    plain: np.ndarray = field(repr=False)

    def summary(self) -> pd.DataFrame:
        """One row of counts; ``exact_copies`` are the redundant ones, ``clusters_across_groups`` and ``_parts`` would leak."""
        across = {name: int((self.members[self.members[column] != ""].groupby("cluster")[column].nunique() > 1).sum())
                  for name, column in (("clusters_across_groups", "group"), ("clusters_across_parts", "split"))}
        return pd.DataFrame([{"data": self.name, "images": self.n, "exact_copies": sum(len(c) - 1 for c in self.exact),
                              "clusters": len(self.clusters), "images_in_clusters": len(self.members),
                              "conflicts": len(self.conflicts), **across, "too_plain": len(self.plain), "threshold": self.threshold}])

    def sentence(self) -> str:
        """The audit in one sentence."""
        found = self.summary().iloc[0]
        if not self.clusters:
            text = f"No image of {self.name} is a copy of another ({self.n:,} images)"
        else:
            text = (f"{found['images_in_clusters']:,} of the {self.n:,} images of {self.name} lie in "
                    f"{_count(len(self.clusters), 'cluster')} of copies "
                    f"({_count(found['exact_copies'], 'redundant exact copy', 'redundant exact copies')}), ")
            text += "none with" if not self.conflicts else f"{len(self.conflicts)} with"
            text += f" more than one label and {found['clusters_across_groups']} across groups"
            if found["clusters_across_parts"]:
                text += f", {found['clusters_across_parts']} across the published parts"
        return text + (f"; {_count(len(self.plain), 'image')} too plain to be judged." if len(self.plain) else ".")


def audit(data: ImageSet, *, threshold: float = THRESHOLD, orientations: str = "flip") -> Audit:
    """Finds the images of a set that are exact or near copies of each other, whatever their group says.

    Exact copies have the same SHA-256 of their pixels. Near copies have a similarity of at least ``threshold``: the
    correlation of locally normalised 64 × 64 prints after alignment (see :mod:`mstl.datasets.copies`), which survives other
    brightness and contrast, compression, callipers and text, small crops, and a left-right flip (``orientations="flip"``;
    ``"all"`` tries quarter turns too, ``"same"`` neither).

    Why 0.85. Of the 17 million pairs of 5 840 paediatric chest X-rays, those of different children reach 0.76 (0.81 in the
    28-pixel MedMNIST version), so that at 0.85 only two pairs remain besides 32 redundant exact copies, each of two films of
    one child. On the 780 breast ultrasound images of BUSI hardly a pair lies between: thresholds from 0.75 to 0.95 give 147 to
    143 clusters of 330 to 316 images. At 0.85 there are 146 clusters of 324 images, the same at sizes of 64, 96, 128 and 224
    pixels; every one of their pairs was looked at, and is the same picture, cropped or annotated anew, or the next frame of
    the same sweep. Eight clusters carry two labels (nine benign–malignant pairs in six, a benign–normal pair in two).
    Stricter rules count some 110 clusters of 248 images: a copy overlooked leaks, one too many costs a little freedom in
    the split. Images with detail on less than a quarter of their area are not judged (``plain``): without that rule, blank
    fundus photographs resemble each other.
    """
    if not 0.5 <= threshold <= 1:
        raise MstlError(f"audit(threshold={threshold}): the similarity of copies lies between 0.5 and 1; {THRESHOLD} is what was measured "
                        "to part copies from look-alikes.")
    from mstl.datasets import copies

    if orientations not in copies.ORIENTATIONS:
        raise MstlError(f"audit(orientations='{orientations}'): choose one of {', '.join(copies.ORIENTATIONS)}.")
    first, code = _identical(data.images)
    seen = copies.prints(_rows(data.images, first))
    near = copies.matches(seen, threshold=threshold, orientations=orientations)
    again = np.setdiff1d(np.arange(len(code)), first)
    pairs = pd.DataFrame({"i": np.concatenate([first[code[again]], first[near.i]]), "j": np.concatenate([again, first[near.j]]),
                          "similarity": np.concatenate([np.ones(len(again)), near.similarity]),
                          "exact": np.repeat([True, False], [len(again), len(near.i)]),
                          "mirrored": np.concatenate([np.zeros(len(again), bool), near.orientation > 0])})
    pairs[["i", "j"]] = np.sort(pairs[["i", "j"]].to_numpy(), axis=1)
    clusters, cluster_ids = _components(pairs, len(code))
    exact, _ = _components(pairs[pairs["exact"]], len(code))
    rows = np.concatenate(clusters) if clusters else np.empty(0, int)
    labels = np.asarray(data.labels)
    members = pd.DataFrame({"cluster": cluster_ids[rows], "row": rows, "id": np.asarray(data.ids)[rows],
                            "class": np.array(data.classes)[labels[rows]], "group": np.asarray(data.groups)[rows],
                            "split": np.asarray(data.splits)[rows]})
    conflicts = [c for c in clusters if len(np.unique(labels[c])) > 1]
    return Audit(name=data.name, n=len(code), threshold=threshold, clusters=clusters, exact=exact, conflicts=conflicts,
                 cluster_ids=cluster_ids, pairs=pairs.sort_values(["i", "j"], ignore_index=True), members=members,
                 plain=np.flatnonzero(seen.flat[code]))


def audit_across(sets: Mapping[str, ImageSet], *, threshold: float = THRESHOLD, orientations: str = "flip") -> pd.DataFrame:
    """Copies between sets, for example the stages of a lineage: what a later stage is tested on, no earlier one must have seen.

    One row a pair: set_a, id_a, class_a, set_b, id_b, class_b, similarity (1 for identical pixels), exact, mirrored; most
    similar first. The sets may differ in size of image and in channels; exact copies are then found as near ones. See :func:`audit`.
    """
    from mstl.datasets import copies

    names = list(sets)
    unique = {name: _identical(sets[name].images) for name in names}
    seen = {name: copies.prints(_rows(sets[name].images, unique[name][0])) for name in names}
    hashes = {name: _hashes(sets[name].images, unique[name][0]) for name in names}
    found = []
    for number, a in enumerate(names):
        for b in names[number + 1 :]:
            near = copies.matches(seen[a], seen[b], threshold=threshold, orientations=orientations)
            u, v = _shared(hashes[a], hashes[b])
            pairs = pd.DataFrame({"u": np.concatenate([u, near.i]), "v": np.concatenate([v, near.j]),
                                  "similarity": np.concatenate([np.ones(len(u)), near.similarity]),
                                  "exact": np.repeat([True, False], [len(u), len(near.i)]),
                                  "mirrored": np.concatenate([np.zeros(len(u), bool), near.orientation > 0])})
            pairs = pairs.drop_duplicates(["u", "v"])
            for side, key, name in (("a", "u", a), ("b", "v", b)):  # every row of the set, not only the first of identical ones
                data = sets[name]
                rows = pd.DataFrame({key: unique[name][1], f"id_{side}": data.ids,
                                     f"class_{side}": np.array(data.classes)[data.labels]})
                pairs = pairs.merge(rows, on=key).assign(**{f"set_{side}": name})
            found.append(pairs)
    columns = ["set_a", "id_a", "class_a", "set_b", "id_b", "class_b", "similarity", "exact", "mirrored"]
    if not found:
        return pd.DataFrame(columns=columns)
    table = pd.concat(found)[columns].astype({"exact": bool, "mirrored": bool})
    return table.sort_values(["similarity", "set_a", "id_a", "id_b"], ascending=[False, True, True, True], ignore_index=True)


def group_by_cluster(data: ImageSet, audit: Audit) -> ImageSet:
    """The set with groups that never part a cluster of copies: groups that a cluster joins take the name of the first of them."""
    if audit.n != len(data.labels):
        raise MstlError(f"The audit is of {audit.n} images of {audit.name}, but {data.name} has {len(data.labels)}: "
                        "audit this very selection.")
    names, code = np.unique(np.asarray(data.groups), return_inverse=True)
    linked = pd.DataFrame({"i": [code[c[0]] for c in audit.clusters for _ in c[1:]],
                           "j": [code[r] for c in audit.clusters for r in c[1:]]}, dtype=int)
    merged = np.arange(len(names))
    for members in _components(linked, len(names))[0]:
        merged[members] = members[0]
    return data.with_groups(names[merged[code]])


def _identical(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row of each distinct image, in order, and (N,) which of them each row equals."""
    code, first = pd.factorize(_hashes(images, range(len(images))))
    rows = np.full(len(first), len(code))
    np.minimum.at(rows, code, np.arange(len(code)))
    return rows, code


def _shared(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in a and in b of the hashes that both hold; each hash occurs once in a side."""
    _, i, j = np.intersect1d(a, b, return_indices=True)
    return i, j


def _hashes(images: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    shape = str(images.shape[1:]).encode()
    return np.array([hashlib.sha256(shape + np.ascontiguousarray(images[r]).tobytes()).hexdigest() for r in rows])


def _rows(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return images if len(rows) == len(images) else images[rows]


def _components(pairs: pd.DataFrame, n: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Connected components of at least two rows, and (n,) the number of each row's component or −1."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs)), (pairs["i"].to_numpy(int), pairs["j"].to_numpy(int))), shape=(n, n))
    label = connected_components(graph, directed=False)[1]
    linked = np.flatnonzero(np.bincount(label, minlength=1)[label] > 1)
    number, _ = pd.factorize(label[linked])
    ids = np.full(n, -1, np.int64)
    ids[linked] = number
    order = np.argsort(number, kind="stable")
    return np.split(linked[order], np.flatnonzero(np.diff(number[order])) + 1) if len(linked) else [], ids


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


# ---------------------------------------------------------------------------------------------------- folds and draws

def _deal_folds(data: ImageSet, group: np.ndarray, k: int, seed: int, attempts: int = 20) -> np.ndarray:
    """(N,) the fold of each image, every class in every fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    stratum = _strata(data)
    for attempt in range(attempts):
        shuffle = seed if attempt == 0 else int(np.random.default_rng([seed, attempt]).integers(2**32))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class")  # a rare class-and-center is no error
            dealt = list(StratifiedGroupKFold(k, shuffle=True, random_state=shuffle).split(stratum, stratum, group))
        part = np.empty(len(stratum), int)
        for i, (_, test) in enumerate(dealt):
            part[test] = i
        counts = np.zeros((k, len(data.classes)), int)
        np.add.at(counts, (part, data.labels), 1)
        if counts.min() > 0:
            return part
    fold, c = np.argwhere(counts == 0)[0]
    raise MstlError(f"{data.name} cannot be dealt into {k} folds that all hold class '{data.classes[c]}' "
                    f"(fold {fold} has none): its images are in too few groups; use fewer folds.")


def _draws(data: ImageSet, rest: np.ndarray, tested: np.ndarray, n_train: int | None, n_val: int | None, draws: int,
           seed: int) -> list[Split]:
    """Validation, then training, drawn from ``rest``; one Split a draw."""
    for name, n in (("n_train", n_train), ("n_val", n_val)):
        if n is not None and n < len(data.classes):
            raise MstlError(f"{name}={n} is fewer images than the {len(data.classes)} classes of {data.name}: each needs one.")
    usual = n_train / 4 if n_train is not None else len(rest) / 5
    wanted_val = n_val if n_val is not None else max(len(data.classes), round(usual))
    wanted_train = n_train or 1
    if wanted_train + wanted_val > len(rest):
        raise MstlError(f"{data.name}: n_train={n_train} and {wanted_val} validation images were asked for, but only {len(rest)} "
                        "images lie outside the test part: ask for fewer.")
    splits = []
    for draw in range(_checked_draws(draws)):
        val = _draw(data, rest, wanted_val, np.random.default_rng([seed, 1, draw]))
        left = np.setdiff1d(rest, val)
        if n_train is not None and n_train > len(left):
            raise MstlError(f"{data.name}: n_train={n_train}, but whole groups leave only {len(left)} images beside {len(val)} "
                            "for validation: ask for fewer.")
        train = left if n_train is None else _draw(data, left, n_train, np.random.default_rng([seed, 2, draw]))
        splits.append(_split(draw, data, train=train, val=val, test=tested))
    return splits


def _draw(data: ImageSet, pool: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """About ``n`` rows of ``pool``: whole groups in random order, each taken when it brings the counts nearer."""
    stratum = _strata(data)[pool]
    group = _codes(np.asarray(data.groups)[pool])
    wanted = _quotas(np.asarray(data.labels)[pool], stratum, n)
    counts = np.zeros((group.max() + 1, len(wanted)), int)
    np.add.at(counts, (group, stratum), 1)
    taken = np.zeros(len(counts), bool)
    missing, most = wanted.copy(), counts.sum(1).max()
    for g in random.permutation(len(counts)):
        after = missing - counts[g]
        if np.abs(after).sum() < np.abs(missing).sum() and after.sum() >= -most:
            taken[g], missing = True, after
            if not missing.any():
                break
    return pool[taken[group]]


def _quotas(labels: np.ndarray, stratum: np.ndarray, n: int) -> np.ndarray:
    """Images wanted of each stratum: in proportion, classes first (at least one each), then centers within a class."""
    quotas = np.zeros(stratum.max() + 1, int)
    present, sizes = np.unique(labels, return_counts=True)
    for c, quota in zip(present, _proportional(sizes, n, least=1)):
        inside, size = np.unique(stratum[labels == c], return_counts=True)
        quotas[inside] = _proportional(size, quota)
    return quotas


def _proportional(sizes: np.ndarray, n: int, least: int = 0) -> np.ndarray:
    """``n`` shared out in proportion to ``sizes`` by largest remainders, each share at least ``least``."""
    exact = sizes / sizes.sum() * n
    share = np.floor(exact).astype(int)
    share[np.argsort(share - exact, kind="stable")[: n - share.sum()]] += 1
    while (share < least).any() and share.max() > least:
        share[np.argmin(share)] += 1
        share[np.argmax(share)] -= 1
    return share


def _split(fold: int, data: ImageSet, **parts: np.ndarray) -> Split:
    """A checked Split from row indices or (N,) masks."""
    rows = {name: np.sort(np.flatnonzero(p) if p.dtype == bool else p).astype(np.int64) for name, p in parts.items()}
    split = Split(fold=fold, **rows)
    check(split, data)
    return split


def _strata(data: ImageSet) -> np.ndarray:
    """(N,) codes of label, or of label and center where there are several centers."""
    labels = np.asarray(data.labels)
    center = _codes(data.centers)
    return _codes(labels * (center.max() + 1) + center) if center.max() > 0 else _codes(labels)


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(np.asarray(values), return_inverse=True)[1].reshape(-1)


# -------------------------------------------------------------------------------------------------------------- checks

def _refuse_shared_groups(data: ImageSet, side: np.ndarray, what: str) -> None:
    """``side`` (N,): the number of the part that each image lies in, −1 for none."""
    used = np.flatnonzero(side >= 0)
    groups, code = np.unique(np.asarray(data.groups)[used], return_inverse=True)
    first = np.full(len(groups), len(PARTS))
    last = np.full(len(groups), -1)
    np.minimum.at(first, code, side[used])
    np.maximum.at(last, code, side[used])
    crossing = np.flatnonzero(first != last)
    if len(crossing):
        g = crossing[0]
        more = f" ({len(crossing)} groups do)" if len(crossing) > 1 else ""
        raise MstlError(f"{what} of {data.name}: group '{groups[g]}' lies in both {PARTS[first[g]]} and "
                        f"{PARTS[last[g]]}{more}; split by whole groups, or correct the group column.")


def _refuse_empty_classes(data: ImageSet, index: np.ndarray, where: str) -> None:
    counts = np.bincount(np.asarray(data.labels)[index], minlength=len(data.classes))
    if (counts == 0).any():
        name = data.classes[int(np.argmin(counts))]
        raise MstlError(f"Class '{name}' has no image in {where} of {data.name}: choose the classes with select(...), "
                        "or add images of it.")


def _checked_seed(seed: int) -> int:
    if not 0 <= int(seed) < 2**32:
        raise MstlError(f"seed={seed}: a seed is a whole number from 0 to 4294967295.")
    return int(seed)


def _checked_draws(draws: int) -> int:
    if draws < 1:
        raise MstlError(f"draws={draws}: ask for at least one draw.")
    return int(draws)
