"""How a score near 1 arises: the same images and the same probe under honest and dishonest ways to split them.

A test image *leaks* when a sibling of it (a copy, another crop of its field, another image of its patient: the same group) is in
the training part. :func:`measure` repeats a way of splitting many times and reads off the score and how many test images leak, for
the labels as they are and for labels permuted by group, which nothing but siblings can predict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mstl.errors import MstlError
from mstl.metrics import paired, roc

if TYPE_CHECKING:
    from mstl.datasets.imageset import ImageSet

#: The ways to split, from the worst to the honest ones.
WAYS = {
    "copies": "augment, then split the copies at random",
    "images": "split the images at random",
    "groups": "split by group",
    "groups, copies": "split by group, then augment the training part",
}
#: The same in a table's narrow column.
SHORT = {"copies": "copies at random", "images": "images at random", "groups": "by group", "groups, copies": "by group, then copies"}
LABELS = {"true": "labels as they are", "permuted": "labels permuted by group"}
LEARNERS = {"probe": "linear probe", "neighbour": "nearest neighbour"}
COLUMNS = ["data", "simulated", "way", "labels", "learner", "repeat", "auc", "accuracy", "siblings", "nearest", "n_train", "n_test",
           "n_images", "n_groups", "copies"]


def multiply(data: ImageSet, copies: int, augmentation: str, *, seed: int = 0) -> ImageSet:
    """Each image ``copies`` times: itself, then augmented by the preset ``augmentation``. Rows k·N to (k + 1)·N − 1 are the k-th
    copies of the N images, in their order, with the groups of their originals."""
    import torch

    from mstl.augmentation import preset

    if copies < 1:
        raise MstlError(f"copies={copies}: an augmented set holds each image at least once.")
    change = preset(augmentation, data.size).train
    originals = torch.from_numpy(np.array(data.images)).permute(0, 3, 1, 2)
    parts = [np.asarray(data.images)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(copies - 1):
            parts.append(torch.stack([change(image) for image in originals]).permute(0, 2, 3, 1).numpy())
    again = {key: np.tile(getattr(data, key), copies) for key in ("labels", "groups", "centers", "splits")}
    ids = np.concatenate([data.ids if k == 0 else np.char.add(data.ids, f"+{k}") for k in range(copies)])
    return dataclasses.replace(data, images=np.concatenate(parts), ids=ids, masks=None, boxes=None, views=None, cases=None, extra=None, **again)


def measure(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, way: str, copies: int = 1, permuted: bool = False,
    shares: Sequence[float] = (0.6, 0.2, 0.2), penalties: Sequence[float] = (1e-3, 1e-2, 1e-1), repeats: int = 20, seed: int = 0,
    on_repeat: Callable[[], None] | None = None,
) -> pd.DataFrame:
    """One row a repeat and learner: ``auc`` (several classes: mean of one against the rest), ``accuracy``, ``siblings`` (share of the
    test images with an image of their group in training), ``nearest`` (share whose nearest training image is of their group),
    ``n_train``, ``n_test``.

    ``features`` (copies·N, D) in the order of :func:`multiply`, ``labels`` and ``groups`` (N,) of the originals. ``way``: see ``WAYS``;
    the two that do not speak of copies use the originals only. ``shares`` of images for training, validation and test; the probe's
    inverse penalty C is chosen on validation, and with a validation share of 0 there must be one ``penalties``. ``permuted``
    gives every group the label of another one, anew in each repeat.
    """
    if way not in WAYS:
        raise MstlError(f"The way '{way}' is unknown: use one of {', '.join(WAYS)}.")
    labels, groups = np.asarray(labels, dtype=np.int64), np.asarray(groups, dtype=str)
    n = len(labels)
    if len(features) != copies * n or len(groups) != n:
        raise MstlError(f"{len(features)} rows of features were given for {n} labels, {len(groups)} groups and copies={copies}: give one a copy.")
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] <= 0 or shares[2] <= 0:
        raise MstlError(f"shares={list(shares)}: give the shares of training, validation and test, which add up to 1.")
    if (shares[1] == 0) != (len(penalties) == 1):
        raise MstlError("Several penalties need a validation share to choose on, and a single one needs none: mend shares or penalties.")
    rows = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        y = permute(labels, groups, rng) if permuted else labels
        train, val, test = _parts(y, groups, way, copies, shares, rng)
        x, everyone = np.asarray(features, dtype=np.float32), np.tile(y, copies)
        kin = np.tile(groups, copies)
        centre, spread = x[train].mean(axis=0), x[train].std(axis=0) + 1e-6
        fitted, tested = (x[train] - centre) / spread, (x[test] - centre) / spread
        near, distance = _neighbours(fitted, everyone[train], tested)
        seen = {"siblings": float(np.isin(kin[test], kin[train]).mean()), "nearest": float((kin[train][near] == kin[test]).mean()),
                "n_train": len(train), "n_test": len(test)}
        probe = _probe(fitted, everyone[train], (x[val] - centre) / spread, everyone[val], tested, penalties)
        for learner, score in (("probe", probe), ("neighbour", distance)):
            rows.append({"way": way, "labels": "permuted" if permuted else "true", "learner": learner, "repeat": repeat,
                         "auc": roc.auc(everyone[test], score), "accuracy": float((score.argmax(axis=1) == everyone[test]).mean()), **seen})
        if on_repeat is not None:
            on_repeat()
    return pd.DataFrame(rows)


def permute(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) labels in which every group has, as a whole, the (most frequent) label of a group drawn without replacement."""
    code, label = _by_group(labels, groups)
    return rng.permutation(label)[code]


def summary(rows: pd.DataFrame, *, metric: str = "auc", level: float = 0.95) -> pd.DataFrame:
    """Mean over the repeats with its interval, one row a data set, number of copies, way, kind of labels and learner.

    The interval is that of the corrected resampled t (Nadeau & Bengio 2003), because repeats share images; it is cut at 0 and 1.
    """
    keys = ["data", "copies", "way", "labels", "learner"]
    out = []
    for key, part in rows.groupby(keys, sort=False):
        mean = float(part[metric].mean())
        t = paired.corrected_resampled_t(part[metric], n_train=part["n_train"].mean(), n_test=part["n_test"].mean(), level=level)
        low, high = (mean, mean) if t.low is None else (max(0.0, t.low), min(1.0, t.high))
        counts = {name: int(round(part[name].mean())) for name in ("n_train", "n_test", "n_images", "n_groups")}
        out.append(dict(zip(keys, key, strict=True)) | {
            "estimate": mean, "low": low, "high": high, "sd": float(part[metric].std()), "siblings": float(part["siblings"].mean()),
            "nearest": float(part["nearest"].mean()), "repeats": len(part), "simulated": bool(part["simulated"].iloc[0]), **counts})
    return pd.DataFrame(out)


def gap(rows: pd.DataFrame, way: str, *, than: str = "groups", metric: str = "auc", learner: str = "probe", level: float = 0.95) -> paired.ResampledT:
    """How much higher ``way`` reads than the honest split ``than``, over repeats with the same seed."""
    own = rows[(rows["labels"] == "true") & (rows["learner"] == learner)].set_index("repeat")
    a, b = own[own["way"] == way], own[own["way"] == than]
    difference = (a[metric] - b[metric]).dropna()
    return paired.corrected_resampled_t(difference, n_train=b["n_train"].mean(), n_test=b["n_test"].mean(), level=level)


def read(path: Path) -> pd.DataFrame:
    """The table ``leakage.csv`` of an earlier run: its file, or the run's folder."""
    file = path / "leakage.csv" if path.is_dir() else path
    if not file.is_file():
        raise MstlError(f"There is no table leakage.csv in {path}: name a finished run of 53_leakage, or its leakage.csv.")
    table = pd.read_csv(file)
    absent = [name for name in COLUMNS if name not in table]
    if absent:
        raise MstlError(f"{file} has no column '{absent[0]}': it is not a table that 53_leakage wrote.")
    return table


def sentence(rows: pd.DataFrame, title: str) -> str:
    """What one data set shows, generated from the numbers of its :func:`summary`."""
    own = rows[rows["learner"] == "probe"].set_index(["way", "labels"])
    first = own.iloc[0]
    kind = "" if "imulated" in title or not first["simulated"] else "simulated, "
    parts = []
    for way in [w for w in ("copies", "images", "groups") if (w, "true") in own.index]:
        true, control = own.loc[(way, "true")], own.loc[(way, "permuted")]
        how = WAYS[way].replace("split the copies", f"split the {first['copies']} copies of each")
        parts.append(f"{how}: AUC {_interval(true)}, with labels permuted by group {_interval(control)}, "
                     f"{true['siblings']:.0%} of test images with a sibling in training")
    return (f"{title} ({kind}{first['n_images']} images in {first['n_groups']} groups, {first['repeats']} splits of each kind) — "
            + "; ".join(parts) + ".")


def numbers(rows: pd.DataFrame) -> dict[str, float]:
    """The probe's figures under names that prose can call: ``auc_<way>``, ``auc_<way>_low``, ``_high``, ``permuted_<way>`` …, ``siblings_<way>``."""
    out: dict[str, float] = {}
    for row in rows[rows["learner"] == "probe"].itertuples():
        way = row.way.replace(", ", "_")
        stem = f"{'auc' if row.labels == 'true' else 'permuted'}_{way}"
        out |= {stem: row.estimate, f"{stem}_low": row.low, f"{stem}_high": row.high}
        if row.labels == "true":
            out |= {f"siblings_{way}": row.siblings, f"nearest_{way}": row.nearest, f"n_test_{way}": float(row.n_test)}
    return {key: float(value) for key, value in out.items()}


# ------------------------------------------------------------------------------------------------------------- pieces

def divide(labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """(N,) 0 training, 1 validation, 2 test: whole groups, in random order within the class that most of their images have, into
    the test part until it holds its share of that class, then into validation, the rest into training."""
    code, label = _by_group(labels, groups)
    size, needed = np.bincount(code), 2 if shares[1] == 0 else 3
    part = np.zeros(len(label), dtype=np.int64)
    for c in np.unique(label):
        own = rng.permutation(np.flatnonzero(label == c))
        if len(own) < needed:
            raise MstlError(f"Class number {c} has {len(own)} group{'s' * (len(own) != 1)}, and {needed} are needed to part it: leave the class "
                            "out (classes), or use two parts (shares: [0.5, 0, 0.5]).")
        before, total = np.cumsum(size[own]) - size[own], size[own].sum()
        tested = np.clip((before < shares[2] * total).sum(), 1, len(own) - needed + 1)
        held = np.clip((before < (shares[2] + shares[1]) * total).sum() - tested, 1, len(own) - tested - 1) if shares[1] else 0
        part[own[:tested]], part[own[tested:tested + held]] = 2, 1
    return part[code]


def _parts(labels, groups, way, copies, shares, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the augmented set for training, validation and test."""
    n = len(labels)
    if way == "copies":
        part = divide(np.tile(labels, copies), np.arange(copies * n), shares, rng)
    else:
        part = divide(labels, np.arange(n) if way == "images" else groups, shares, rng)
    train, val, test = (np.flatnonzero(part == number) for number in range(3))
    if way == "groups, copies":
        train = np.concatenate([train + k * n for k in range(copies)])
    return train, val, test


def _by_group(labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the number of each image's group, and each group's most frequent label."""
    code = np.unique(groups, return_inverse=True)[1].reshape(-1)
    counts = np.zeros((code.max() + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (code, labels), 1)
    return code, counts.argmax(axis=1)


def _probe(train, y, val, y_val, test, penalties) -> np.ndarray:
    """Class probabilities (n_test, K) of a logistic regression whose C was chosen by the AUC on validation."""
    from sklearn.linear_model import LogisticRegression

    best, kept = -np.inf, None
    for c in penalties:
        model = LogisticRegression(C=c, max_iter=300, tol=1e-3).fit(train, y)
        score = roc.auc(y_val, model.predict_proba(val)) if len(penalties) > 1 else 0.0
        if score > best:
            best, kept = score, model
    return kept.predict_proba(test)


def _neighbours(train: np.ndarray, y: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest training row of each test row, and for each class how much nearer its nearest image is than any other (n_test, K)."""
    squared = (test**2).sum(axis=1)[:, None] + (train**2).sum(axis=1) - 2 * test @ train.T
    distance = np.sqrt(np.maximum(squared, 0))
    nearest = np.stack([distance[:, y == c].min(axis=1) for c in np.unique(y)], axis=1)
    order = np.sort(nearest, axis=1)
    others = np.where(nearest == order[:, :1], order[:, 1:2], order[:, :1])
    return distance.argmin(axis=1), others - nearest


def _interval(row) -> str:
    return f"{row['estimate']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
