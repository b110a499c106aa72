"""Scores of predicted labels (accuracy, F1, κ, …) and average precision, each with its interval.

``y_true``, ``y_pred`` (n,) hold classes: 0 and 1 (1 positive), or any labels, whose order ``classes`` gives (default
sorted). With two classes precision, recall, specificity, npv and F1 are those of the last class; with more, means over
classes. A proportion of independent images has Wilson's interval; anything else, and everything with ``groups``, the
bias-corrected and accelerated bootstrap of groups, stratified by the classes that a group holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mstl.errors import MstlError
from mstl.metrics import _check, _resample
from mstl.metrics._estimate import Bootstrap, Estimate, acceleration, summarise, wilson, wilson_of

_ABSENT = {
    "precision": "no image is called positive, so precision does not exist",
    "npv": "no image is called negative, so the negative predictive value does not exist",
    "recall": "no image is positive, so recall does not exist",
    "specificity": "no image is negative, so specificity does not exist",
    "f1": "no image is positive or called positive, so F1 does not exist",
    "balanced_accuracy": "a class has no image, so balanced accuracy does not exist",
    "mcc": "truth or prediction is constant, so the MCC does not exist",
    "kappa": "truth and prediction are one and the same constant, so κ does not exist",
}


def confusion_matrix(y_true, y_pred, *, classes: Sequence | None = None) -> pd.DataFrame:
    """Counts (K, K), rows the truth, columns the prediction."""
    truth, predicted, classes = _codes(y_true, y_pred, classes)
    counts = np.bincount(truth * len(classes) + predicted, minlength=len(classes) ** 2).reshape(len(classes), -1)
    return pd.DataFrame(counts, index=pd.Index(classes, name="truth"), columns=pd.Index(classes, name="prediction"))


def score(
    metric: str,
    y_true,
    y_pred,
    *,
    classes: Sequence | None = None,
    groups=None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """One label metric with its interval; ``metric`` is one of ``mstl.metrics.scores.METRICS``. See the functions named
    after each."""
    return table(
        y_true,
        y_pred,
        metrics=[metric],
        classes=classes,
        groups=groups,
        level=level,
        n_resamples=n_resamples,
        seed=seed,
    )[metric]


#: The metrics that ``score`` and ``table`` know.
METRICS = _resample.LABEL_METRICS


def table(
    y_true,
    y_pred,
    *,
    metrics: Sequence[str] = (
        "accuracy",
        "balanced_accuracy",
        "precision",
        "recall",
        "specificity",
        "f1",
        "mcc",
        "kappa",
    ),
    classes: Sequence | None = None,
    groups=None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Several label metrics at once, over the same resamples: name → Estimate, in the order asked for."""
    level = _check.fraction(level)
    for metric in metrics:
        _check.one_of(metric, METRICS, "metric")
    truth, predicted, classes = _codes(y_true, y_pred, classes)
    k = len(classes)
    n = len(truth)
    confusion = np.bincount(truth * k + predicted, minlength=k * k).reshape(k, k)
    code, n_groups = _check.codes(groups, n)
    out = {}
    rest = {}
    for metric in metrics:
        value = float(_resample.label_metric(metric, confusion))
        proportion = _proportion(metric, confusion)
        if not np.isfinite(value):
            out[metric] = Estimate(
                metric, None, None, None, level, n, "none", None if groups is None else n_groups, _absent(metric)
            )
        elif groups is None and proportion:
            out[metric] = wilson_of(metric, *proportion, level, "")
        else:
            out[metric] = rest[metric] = _resample.WeightedConfusion.of(metric, truth, predicted, code, n_groups, k)
    if rest:
        resampled = _resampled(rest, truth, code, n_groups, level, n_resamples, seed)
        for m, b in resampled.items():
            out[m] = Estimate(
                m, rest[m].value(), b.low, b.high, level, n, "bca", None if groups is None else n_groups, b.note
            )
            if b.constant and _proportion(m, confusion):
                out[m] = _agreeing(out[m], _units(m, rest[m].counts))
    return {metric: out[metric] for metric in metrics}


def accuracy(y_true, y_pred, **options) -> Estimate:
    """Share of images labelled right. Options as in ``score``."""
    return score("accuracy", y_true, y_pred, **options)


def balanced_accuracy(y_true, y_pred, **options) -> Estimate:
    """Mean over classes of recall: what accuracy would be at equal class sizes."""
    return score("balanced_accuracy", y_true, y_pred, **options)


def precision(y_true, y_pred, **options) -> Estimate:
    """Share of called positives that are positive: the positive predictive value at this table's prevalence."""
    return score("precision", y_true, y_pred, **options)


def recall(y_true, y_pred, **options) -> Estimate:
    """Share of positives that are called positive: sensitivity."""
    return score("recall", y_true, y_pred, **options)


def specificity(y_true, y_pred, **options) -> Estimate:
    """Share of negatives that are called negative."""
    return score("specificity", y_true, y_pred, **options)


def npv(y_true, y_pred, **options) -> Estimate:
    """Share of called negatives that are negative."""
    return score("npv", y_true, y_pred, **options)


def f1(y_true, y_pred, **options) -> Estimate:
    """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN)."""
    return score("f1", y_true, y_pred, **options)


def mcc(y_true, y_pred, **options) -> Estimate:
    """Matthews's correlation coefficient (Gorodkin's R_K with more than two classes), −1 … 1."""
    return score("mcc", y_true, y_pred, **options)


def kappa(y_true, y_pred, *, weights: str = "none", **options) -> Estimate:
    """Cohen's κ; ``weights`` "linear" or "quadratic" for ordered classes (severity grades), in the order of
    ``classes``."""
    names = {"none": "kappa", "linear": "kappa_linear", "quadratic": "kappa_quadratic"}
    return score(names[_check.one_of(weights, tuple(names), "weights")], y_true, y_pred, **options)


def average_precision(
    y_true, y_score, *, groups=None, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Area under the precision–recall curve by steps, Σ (recall_k − recall_{k−1}) precision_k; depends on prevalence.

    ``y_true`` (n,) of 0 and 1, ``y_score`` (n,) finite.
    """
    y = _check.binary(y_true)
    _check.both_classes(y, "average precision")
    s = _check.scores(y_score, len(y))
    code, n_groups = _check.codes(groups, len(y))
    prepared = _resample.WeightedAveragePrecision.of(y, s, code, n_groups)
    b = _resampled({"average_precision": prepared}, y, code, n_groups, _check.fraction(level), n_resamples, seed)[
        "average_precision"
    ]
    return Estimate(
        "average_precision",
        prepared.value(),
        b.low,
        b.high,
        level,
        len(y),
        "bca",
        None if groups is None else n_groups,
        b.note,
    )


def _resampled(
    prepared: dict, y: np.ndarray, code: np.ndarray, n_groups: int, level: float, n_resamples: int, seed: int
) -> dict:
    """Intervals of several prepared metrics over the same resamples; those that cannot vary say so in their note."""
    try:
        stratum = _resample.strata(y, code, n_groups)
    except MstlError as reason:
        return {m: Bootstrap(None, None, None, None, 0, str(reason)) for m in prepared}
    rng = np.random.default_rng(seed)
    blocks = [
        {m: p.under(w) for m, p in prepared.items()}
        for w in _resample.weights(stratum, _check.resamples(n_resamples), rng, len(y))
    ]
    return {
        m: summarise(
            p.value(), np.concatenate([b[m] for b in blocks]), level, acceleration=acceleration(p.left_out(), stratum)
        )
        for m, p in prepared.items()
    }


def _codes(y_true, y_pred, classes: Sequence | None) -> tuple[np.ndarray, np.ndarray, list]:
    truth, predicted = np.asarray(y_true), np.asarray(y_pred)
    if truth.ndim != 1 or not truth.size:
        raise MstlError(f"y_true has shape {truth.shape}; give one label a row, at least one row")
    if predicted.shape != truth.shape:
        raise MstlError(
            f"y_pred has shape {predicted.shape}, but y_true has {truth.shape}; rows must be the same images in the same order"
        )
    if classes is None:
        classes = sorted(set(pd.unique(truth).tolist()) | set(pd.unique(predicted).tolist()))
        if set(classes) <= {0, 1}:
            classes = [0, 1]
    classes = list(classes)
    if len(classes) < 2:
        raise MstlError(f"only one class, {classes[0]!r}, occurs; name all classes by classes=")
    index = pd.Index(classes)
    coded = []
    for name, values in (("y_true", truth), ("y_pred", predicted)):
        code = index.get_indexer(values)
        if (code < 0).any():
            row = int(np.argmax(code < 0))
            raise MstlError(
                f"{name} is {values[row]!r} in row {row}, which is not among the classes {classes}; mend the row or name all classes"
            )
        coded.append(code.astype(np.int64))
    return coded[0], coded[1], classes


def _proportion(metric: str, confusion: np.ndarray) -> tuple[int, int] | None:
    """Successes and trials of the metrics that are a plain proportion."""
    if metric == "accuracy":
        return int(np.trace(confusion)), int(confusion.sum())
    if len(confusion) > 2:
        return None
    (tn, fp), (fn, tp) = confusion.tolist()
    return {
        "precision": (tp, tp + fp),
        "recall": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "npv": (tn, tn + fn),
    }.get(metric)


def _units(metric: str, counts: np.ndarray) -> int:
    """Groups with an image in the denominator of a proportion; ``counts`` (G, K·K)."""
    return sum(_proportion(metric, c.reshape(int(np.sqrt(c.size)), -1).astype(int))[1] > 0 for c in counts)


def _agreeing(result: Estimate, units: int) -> Estimate:
    """A proportion in which all groups agree: Wilson's interval with groups for images, because the bootstrap has
    none."""
    low, high = wilson(round(result.estimate * units), units, result.level)
    return replace(
        result,
        low=min(low, result.estimate),
        high=max(high, result.estimate),
        method="wilson over groups",
        note="all groups agree, so the interval is Wilson's with groups in place of images",
    )


def _absent(metric: str) -> str:
    return _ABSENT.get(metric.split("_linear")[0].split("_quadratic")[0], f"{metric} does not exist for this table")
