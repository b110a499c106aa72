"""Frozen features of a checkpoint on a target: the transferability measures, and what a linear probe reads from them.

>>> seen = describe(checkpoint_folder, data)            # features (N, D) and, where the head was trained, its probabilities
>>> measure(seen.features[train], data.labels[train], source_probs=seen.probabilities[train])
>>> probe(seen.features, data.labels, split)            # logistic regression, strength chosen on validation
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mstl.errors import MstlError
from mstl.metrics import transferability
from mstl.agreement import MEASURES

if TYPE_CHECKING:
    import pandas as pd

    from mstl.datasets.imageset import ImageSet
    from mstl.datasets.splits import Split

#: Pándy et al. reduce the features to 64 principal components; with all of them every coefficient is zero to the last digit.
_OPTIONS = {"gbc": {"components": 64}}
#: What the probe's validation chooses from: the penalty is |w|²/(2 S) beside the mean loss.
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Seen:
    """What a network makes of a set: ``features`` float32 (N, D) before its head, and ``probabilities`` float64 (N, K) of its
    head (None where the head was never trained)."""

    features: np.ndarray
    probabilities: np.ndarray | None
    sha256: str


@dataclass(frozen=True)
class Probe:
    """A linear probe: probabilities float64 (n, C) of the validation and test rows, and the penalty chosen."""

    val: np.ndarray
    test: np.ndarray
    strength: float


def networks(places: Sequence[Path], seeds: Sequence[int]) -> pd.DataFrame:
    """The checkpoints of finished source and bridge runs, one row each: ``hop``, ``bridge`` ("" for the source), ``seed``,
    ``seeds`` (the chains that start from it: the source network is one for all) and ``folder``."""
    import pandas as pd

    from mstl import checkpoints

    rows = []
    for place in map(Path, places):
        inside = sorted((place / "checkpoint").glob("seed*"), key=lambda folder: int(folder.name[4:]))
        if not inside:
            rows.append({"hop": "source → target", "bridge": "", "seed": int(seeds[0]), "seeds": list(seeds), "folder": place / "checkpoint"})
            continue
        name = json.loads((place / "run.json").read_text(encoding="utf-8"))["parameters"]["bridge"]
        rows += [{"hop": "bridge → target", "bridge": name, "seed": int(folder.name[4:]), "seeds": [int(folder.name[4:])], "folder": folder}
                 for folder in inside if int(folder.name[4:]) in seeds]
    if not rows:
        raise MstlError("No source or bridge run was given, so there is no network to look through: name one, for example 10_source/lite0.")
    for row in rows:
        checkpoints.read(row["folder"])
    return pd.DataFrame(rows)


def describe(
    folder: str | Path, data: ImageSet, *, rows: np.ndarray | None = None, renew: np.ndarray | None = None, cache: Path | None = None,
) -> Seen:
    """Features and head probabilities of the images ``rows`` of ``data`` (default all) from the checkpoint in ``folder``.

    The arrays have a row for every image of ``data``; those of other images are not a number. The checkpoint is not changed.
    ``renew``: rows on which the statistics of batch normalisation are estimated anew first (:func:`mstl.training.renew_statistics`).
    ``cache``: a folder where the arrays are kept, named by everything that decides them.
    Raises MstlError for a folder without a checkpoint, for images of another size than the network's, and for ``renew`` with a
    network that has no batch normalisation.
    """
    from mstl import checkpoints, training

    record = checkpoints.read(folder)
    if record.spec.image_size != data.size:
        raise MstlError(f"The network in {folder} takes images of {record.spec.image_size} px, but {data.name} was prepared at {data.size} px: "
                        "prepare it at the network's size.")
    trained = (record.extra or {}).get("head", "trained") in ("trained", "labels")
    rows = np.arange(len(data)) if rows is None else np.unique(np.asarray(rows, np.int64))

    def whole(part: np.ndarray) -> np.ndarray:
        full = np.full((len(data), part.shape[1]), np.nan, part.dtype)
        full[rows] = part
        return full

    kept = None
    if cache is not None:
        decides = (record.sha256, data.hash, hashlib.sha256(rows.tobytes()).hexdigest(), training.code_fingerprint())
        if renew is not None:
            decides += (hashlib.sha256(np.sort(renew).astype(np.int64).tobytes()).hexdigest(),)
        kept = cache / f"features-{hashlib.sha256(chr(0).join(decides).encode()).hexdigest()[:16]}.npz"
        if kept.is_file():
            with np.load(kept, allow_pickle=False) as arrays:
                return Seen(whole(arrays["features"]), whole(arrays["probabilities"]) if trained else None, record.sha256)
    model = fitting(checkpoints.load(folder), data)
    if renew is not None:
        training.renew_statistics(model, data, renew)
    features = training.extract_features(model, data, rows)
    probabilities = training.predict(model, data, rows) if trained else np.zeros((len(rows), 0))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_name(f".{kept.name}.{os.getpid()}.npz")
        np.savez(aside, features=features, probabilities=probabilities)
        os.replace(aside, kept)
    return Seen(whole(features), whole(probabilities) if trained else None, record.sha256)


def fitting(model, data: ImageSet):
    """The model told how many channels the images have; three are made of one where it expects three."""
    from dataclasses import replace

    if model.spec.channels != data.images.shape[-1]:
        if model.spec.grey == "adapt":
            raise MstlError(f"The network takes {model.spec.channels} channel(s) and {data.name} has {data.images.shape[-1]}: "
                            "take one made with grey='replicate'.")
        model.spec = replace(model.spec, channels=data.images.shape[-1])
    return model


def distinct(data: ImageSet, rows: np.ndarray) -> np.ndarray:
    """The ``rows`` without exact copies: of images with the same pixels and the same label the first. Copies would count as agreement
    between features and labels, and where there are fewer images than features LogME has no maximum with them."""
    first = {}
    for row in np.asarray(rows, np.int64):
        first.setdefault((hashlib.sha256(np.ascontiguousarray(data.images[row])).digest(), int(data.labels[row])), row)
    return np.array(list(first.values()), dtype=np.int64)


def promise(folder: str | Path, data: ImageSet, rows: np.ndarray, *, n_max: int, seed: int = 0) -> dict[str, float | None]:
    """The measures of the checkpoint in ``folder`` on at most ``n_max`` of the images ``rows``, exact copies left out: what is said of
    a network before it is trained on them. As :func:`measure`."""
    rows = distinct(data, rows)
    if len(rows) > n_max:
        rows = rows[transferability.stratified_part(np.unique(data.labels[rows], return_inverse=True)[1], n_max, seed)]
    seen = describe(folder, data, rows=rows)
    theta = None if seen.probabilities is None else seen.probabilities[rows]
    return measure(seen.features[rows], data.labels[rows], source_probs=theta, n_max=n_max, seed=seed)


def measure(
    features: np.ndarray, labels: np.ndarray, *, source_probs: np.ndarray | None = None, names: Sequence[str] = tuple(MEASURES),
    n_max: int = 2000, seed: int = 0,
) -> dict[str, float | None]:
    """Each measure of ``names`` (see ``MEASURES``) on features (N, D) and labels (N,), larger is better; at most ``n_max``
    images, the same for every network of one ``seed``. A measure that does not exist here is None: LEEP and NCE without
    ``source_probs`` (N, K), or what :mod:`mstl.metrics.transferability` refuses for these features.
    """
    for name in names:
        if name not in MEASURES:
            raise MstlError(f"The transferability measure '{name}' does not exist: there are {', '.join(MEASURES)}.")
    labels = np.asarray(labels)
    rows = transferability.stratified_part(np.unique(labels, return_inverse=True)[1], n_max, seed) if len(labels) > n_max else slice(None)
    features, labels = np.asarray(features, float)[rows], labels[rows]
    theta = None if source_probs is None else np.asarray(source_probs, float)[rows]
    calls: dict[str, Callable[[], float]] = {
        "leep": lambda: transferability.leep(theta, labels),
        "nce": lambda: transferability.nce(theta.argmax(1), labels),
    }
    if not np.isfinite(features).all():
        raise MstlError("The features hold values that are not finite, so the network is damaged: take another checkpoint.")
    out: dict[str, float | None] = {}
    for name in names:
        if MEASURES[name][1]:
            out[name] = None if theta is None else calls[name]()
            continue
        function, more = getattr(transferability, name), _OPTIONS.get(name, {})
        out[name] = _or_none(lambda f=function, more=more | ({"seed": seed} if name in ("nleep", "parc") else {}): f(features, labels, **more))
    return out


def _or_none(call: Callable[[], float]) -> float | None:
    try:
        return float(call())
    except MstlError:  # for example fewer images than components: said as an absent value in the table
        return None


def probe(features: np.ndarray, labels: np.ndarray, split: Split, *, n_classes: int, train: np.ndarray | None = None) -> Probe:
    """Logistic regression on the features (N, D), standardised on the training rows, its L2 penalty chosen by the loss on
    the validation rows; no refit. ``train``: fewer training rows than the split has.

    Where the training rows are fewer than the features, the fit is done in the space that they span, which gives the same solution.
    """
    from scipy.special import log_softmax
    from sklearn.linear_model import LogisticRegression

    train = split.train if train is None else train
    if len(np.unique(labels[train])) < n_classes:
        raise MstlError(f"The training part has images of {len(np.unique(labels[train]))} of {n_classes} classes, so a probe cannot learn the others: "
                        "take more training images.")
    x, val, test = _reduced(np.asarray(features, float), train, split.val, split.test)
    best = None
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength / len(train), solver="newton-cholesky", tol=1e-8, max_iter=200).fit(x, labels[train])
        score = _logits(model, val)
        loss = -log_softmax(score, axis=1)[np.arange(len(val)), labels[split.val]].mean()
        if best is None or loss < best[0]:
            best = (loss, strength, score, _logits(model, test))
    return Probe(np.exp(log_softmax(best[2], axis=1)), np.exp(log_softmax(best[3], axis=1)), best[1])


def _reduced(features: np.ndarray, train: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Standardised features of the rows, in coordinates of the space that the training rows span where that is smaller."""
    mean, sd = features[train].mean(0), features[train].std(0)
    parts = [(features[rows] - mean) / np.where(sd > 1e-8, sd, 1.0) for rows in (train, *others)]
    x = parts[0]
    if len(x) >= x.shape[1]:
        return tuple(parts)
    power, vectors = np.linalg.eigh(x @ x.T)
    kept = power > power[-1] * 1e-12
    basis = x.T @ (vectors[:, kept] / np.sqrt(power[kept]))  # (D, rank), orthonormal
    return tuple(part @ basis for part in parts)


def probe_sizes(features: np.ndarray, data: ImageSet, split: Split, sizes: Sequence[int]) -> list[tuple[str, int, Probe]]:
    """Probes on so many training images of the split each, smaller sets inside larger ones; 0: on all. Sizes that the training
    part does not reach are left out. Returns (variant, training images, probe), the variant "probe" or "probe_n<size>"."""
    from mstl.datasets import subsets

    fitted = []
    for size in sizes:
        if size > len(split.train):
            continue
        train = subsets.take(data, split.train, size, seed=split.fold) if size else split.train
        fitted.append((f"probe_n{size}" if size else "probe", len(train),
                       probe(features, data.labels, split, n_classes=len(data.classes), train=train)))
    return fitted


def _logits(model, x: np.ndarray) -> np.ndarray:
    score = model.decision_function(x)
    return np.stack([np.zeros(len(score)), score], 1) if score.ndim == 1 else score
