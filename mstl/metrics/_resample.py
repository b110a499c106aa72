"""Resampling of groups as integer weights, and the metrics evaluated under many weightings at once.

A bootstrap resample of groups is a vector of multiplicities. A metric that takes weights needs no resampled copies: the
AUC becomes cumulative sums over the sorted scores, every label metric a matrix product of group-wise confusion counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mstl.errors import MstlError

#: Metrics of labels: functions of a confusion matrix (…, K, K), rows the truth.
LABEL_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "specificity",
    "npv",
    "f1",
    "mcc",
    "kappa",
    "kappa_linear",
    "kappa_quadratic",
)
#: Metrics of scores.
SCORE_METRICS = ("auc", "average_precision", "brier")

_CHUNK = 4_000_000  # numbers held at once: 32 MB


# ---------------------------------------------------------------- resamples


def strata(y: np.ndarray, code: np.ndarray, n_groups: int) -> np.ndarray:
    """Stratum (G,) of each group: the set of classes among its images (its label pattern).

    A pattern of a single group joins the stratum that it shares most classes with (then the largest). Each class must
    come from two groups at least, otherwise no resample could vary it.
    """
    n_classes = int(y.max()) + 1
    present = np.zeros((n_groups, n_classes), dtype=bool)
    present[code, y.astype(np.int64)] = True
    for label in np.flatnonzero(present.any(axis=0)):
        if present[:, label].sum() < 2:
            raise MstlError(
                f"class {label} comes from one group only, so an interval that resamples groups does not exist; "
                "add groups of that class, or report the estimate alone"
            )
    if n_classes <= 62:
        patterns, stratum = np.unique(present @ (1 << np.arange(n_classes)), return_inverse=True)
        members = np.array([[(p >> k) & 1 for k in range(n_classes)] for p in patterns])
    else:
        members, stratum = np.unique(present, axis=0, return_inverse=True)
    stratum, sizes = stratum.reshape(-1), np.bincount(stratum.reshape(-1))
    for single in np.flatnonzero(sizes == 1):
        if sizes[single] != 1:
            continue  # another single one has joined it meanwhile
        shared = np.where(sizes > 0, members @ members[single], -1)
        shared[single] = -1
        if shared.max() <= 0:
            continue
        target = max(np.flatnonzero(shared == shared.max()), key=lambda k: sizes[k])
        stratum[stratum == single] = target
        sizes[target] += 1
        sizes[single] = 0
    return stratum


def weights(stratum: np.ndarray, n_resamples: int, rng: np.random.Generator, rows: int) -> Iterator[np.ndarray]:
    """Multiplicities of the groups in ``n_resamples`` stratified resamples, as blocks (G, r), sized for ``rows``
    images."""
    blocks = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    size = int(np.clip(_CHUNK // max(rows, len(stratum)), 8, 256))
    for start in range(0, n_resamples, size):
        r = min(size, n_resamples - start)
        out = np.empty((len(stratum), r))
        for members in blocks:
            g = len(members)
            drawn = rng.integers(0, g, size=(g, r)) * r + np.arange(r)
            out[members] = np.bincount(drawn.ravel(), minlength=g * r).reshape(g, r)
        yield out


# ---------------------------------------------------------------- metrics under weights


@dataclass(frozen=True)
class WeightedAuc:
    """AUC under group weights; ``pos_code`` (M,), ``neg_code`` (N,) sorted by score, ``lower``/``upper`` (M,) the
    negatives below/not above."""

    pos_code: np.ndarray
    neg_code: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    n_groups: int

    @classmethod
    def of(cls, y: np.ndarray, score: np.ndarray, code: np.ndarray, n_groups: int) -> WeightedAuc:
        positive, negative = score[y], score[~y]
        order = np.argsort(negative, kind="stable")
        ranked = negative[order]
        return cls(
            code[y],
            code[~y][order],
            np.searchsorted(ranked, positive, "left"),
            np.searchsorted(ranked, positive, "right"),
            n_groups,
        )

    def value(self) -> float:
        pairs = len(self.pos_code) * len(self.neg_code)
        return float((self.lower.sum() + self.upper.sum()) / 2 / pairs) if pairs else np.nan

    def under(self, w: np.ndarray) -> np.ndarray:
        below = np.zeros((len(self.neg_code) + 1, w.shape[1]))
        np.cumsum(w[self.neg_code], axis=0, out=below[1:])
        positive = w[self.pos_code]
        wins = np.einsum("ir,ir->r", positive, below[self.lower] + below[self.upper]) / 2
        return _ratio(wins, positive.sum(axis=0) * below[-1])

    def left_out(self) -> np.ndarray:
        """The AUC without each group in turn (G,)."""
        m, n = len(self.pos_code), len(self.neg_code)
        won = (self.lower + self.upper) / 2
        steps = np.zeros(n + 1)
        np.add.at(steps, self.lower, 0.5)
        np.add.at(steps, self.upper, 0.5)
        beaten = m - np.cumsum(steps)[:n]  # positives above negative j, ties one half
        total = won.sum()
        of_positive = np.bincount(self.pos_code, won, self.n_groups)
        of_negative = np.bincount(self.neg_code, beaten, self.n_groups)
        left = total - of_positive - of_negative + self._within()
        pairs = (m - np.bincount(self.pos_code, minlength=self.n_groups)) * (
            n - np.bincount(self.neg_code, minlength=self.n_groups)
        )
        return _ratio(left, pairs.astype(float))

    def _within(self) -> np.ndarray:
        """Wins among the pairs inside each group (G,), counted in one sort by (group, position)."""
        span = len(self.neg_code) + 1
        keys = np.sort(self.neg_code * span + np.arange(len(self.neg_code)))
        start = np.searchsorted(keys, self.pos_code * span)
        low = np.searchsorted(keys, self.pos_code * span + self.lower)
        high = np.searchsorted(keys, self.pos_code * span + self.upper)
        return np.bincount(self.pos_code, (low + high) / 2 - start, self.n_groups)


@dataclass(frozen=True)
class WeightedMacroAuc:
    """Mean of one-vs-rest AUCs over classes."""

    parts: tuple[WeightedAuc, ...]

    def value(self) -> float:
        return float(np.mean([p.value() for p in self.parts]))

    def under(self, w: np.ndarray) -> np.ndarray:
        return np.mean([p.under(w) for p in self.parts], axis=0)

    def left_out(self) -> np.ndarray:
        return np.mean([p.left_out() for p in self.parts], axis=0)


@dataclass(frozen=True)
class WeightedConfusion:
    """A label metric from confusion counts (G, K·K) of each group."""

    metric: str
    counts: np.ndarray
    n_classes: int

    @classmethod
    def of(
        cls, metric: str, y: np.ndarray, predicted: np.ndarray, code: np.ndarray, n_groups: int, n_classes: int
    ) -> WeightedConfusion:
        cell = (code * n_classes + y.astype(np.int64)) * n_classes + predicted.astype(np.int64)
        counts = np.bincount(cell, minlength=n_groups * n_classes**2).reshape(n_groups, n_classes**2)
        return cls(metric, counts.astype(float), n_classes)

    def _metric(self, counts: np.ndarray) -> np.ndarray:
        return label_metric(self.metric, counts.reshape(*counts.shape[:-1], self.n_classes, self.n_classes))

    def value(self) -> float:
        return float(self._metric(self.counts.sum(axis=0)))

    def under(self, w: np.ndarray) -> np.ndarray:
        return self._metric(w.T @ self.counts)

    def left_out(self) -> np.ndarray:
        return self._metric(self.counts.sum(axis=0) - self.counts)


@dataclass(frozen=True)
class WeightedMean:
    """A mean over images from the sums and sizes (G,) of each group."""

    sums: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, code: np.ndarray, n_groups: int) -> WeightedMean:
        return cls(np.bincount(code, values, n_groups), np.bincount(code, minlength=n_groups).astype(float))

    def value(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())

    def under(self, w: np.ndarray) -> np.ndarray:
        return _ratio(self.sums @ w, self.sizes @ w)

    def left_out(self) -> np.ndarray:
        return _ratio(self.sums.sum() - self.sums, self.sizes.sum() - self.sizes)


@dataclass(frozen=True)
class WeightedAveragePrecision:
    """Average precision Σ (recall_k − recall_{k−1}) precision_k over distinct scores, highest first."""

    code: np.ndarray  # (n,) highest score first
    positive: np.ndarray  # (n,)
    ends: np.ndarray  # last row of each distinct score
    n_groups: int

    @classmethod
    def of(cls, y: np.ndarray, score: np.ndarray, code: np.ndarray, n_groups: int) -> WeightedAveragePrecision:
        order = np.argsort(-score, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
        return cls(code[order], y[order], ends, n_groups)

    def value(self) -> float:
        return float(self.under(np.ones((self.n_groups, 1)))[0])

    def under(self, w: np.ndarray) -> np.ndarray:
        rows = w[self.code]
        found = np.cumsum(np.where(self.positive[:, None], rows, 0.0), axis=0)[self.ends]
        called = np.cumsum(rows, axis=0)[self.ends]
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        gained = np.diff(found, axis=0, prepend=0.0)
        return _ratio(np.einsum("ir,ir->r", gained, precision), found[-1])

    def left_out(self) -> np.ndarray:
        return _left_out_blocks(self.under, self.n_groups)


@dataclass(frozen=True)
class ResampledFunction:
    """Any function ``metric(y_true, y_score)``: evaluated on resampled copies, one at a time."""

    function: Callable[[np.ndarray, np.ndarray], float]
    y: np.ndarray
    score: np.ndarray
    code: np.ndarray
    n_groups: int

    def value(self) -> float:
        return float(self.function(self.y, self.score))

    def under(self, w: np.ndarray) -> np.ndarray:
        out = np.full(w.shape[1], np.nan)
        for r, column in enumerate(w.T):
            rows = np.repeat(np.arange(len(self.y)), column[self.code].astype(np.int64))
            if len(rows) and (self.y[rows] != self.y[rows[0]]).any():
                out[r] = self.function(self.y[rows], self.score[rows])
        return out

    def left_out(self) -> np.ndarray:
        return _left_out_blocks(self.under, self.n_groups)


def prepare(
    metric: str | Callable,
    y: np.ndarray,
    score: np.ndarray,
    code: np.ndarray,
    n_groups: int,
    threshold: float | np.ndarray = 0.5,
):
    """The metric ready for weights: an object with ``value()``, ``under(w)`` (R,) and ``left_out()`` (G,).

    ``y`` is boolean with ``score`` (n,), or class indices with ``score`` (n, K); a label metric calls an image positive
    when its score ≥ ``threshold``, and takes the largest column where there are several.
    """
    if callable(metric):
        return ResampledFunction(metric, y, score, code, n_groups)
    if score.ndim == 2:
        return _prepare_columns(metric, y, score, code, n_groups)
    if metric == "auc":
        return WeightedAuc.of(y, score, code, n_groups)
    if metric == "average_precision":
        return WeightedAveragePrecision.of(y, score, code, n_groups)
    if metric == "brier":
        return WeightedMean.of((score - y) ** 2, code, n_groups)
    if metric in LABEL_METRICS:
        return WeightedConfusion.of(metric, y, score >= threshold, code, n_groups, 2)
    raise MstlError(
        f"metric is {metric!r}; it must be one of {', '.join(SCORE_METRICS + LABEL_METRICS)}, or a function of (y_true, y_score)"
    )


def _prepare_columns(metric: str, y: np.ndarray, score: np.ndarray, code: np.ndarray, n_groups: int):
    n_classes = score.shape[1]
    if metric == "auc":
        return WeightedMacroAuc(tuple(WeightedAuc.of(y == k, score[:, k], code, n_groups) for k in range(n_classes)))
    if metric == "brier":
        return WeightedMean.of(((score - np.eye(n_classes)[y]) ** 2).sum(axis=1), code, n_groups)
    if metric in LABEL_METRICS:
        return WeightedConfusion.of(metric, y, score.argmax(axis=1), code, n_groups, n_classes)
    raise MstlError(
        f"metric is {metric!r}; with one column a class it must be one of auc, brier, {', '.join(LABEL_METRICS)}"
    )


def label_metric(name: str, confusion: np.ndarray) -> np.ndarray:
    """A label metric of confusion matrices (…, K, K), rows the truth, columns the prediction; NaN where it is
    undefined.

    With two classes precision, recall, specificity, npv and f1 are those of class 1; with more, the mean over classes
    (macro), in which a class that is never predicted counts with precision 0.
    """
    c = np.asarray(confusion, dtype=float)
    total = c.sum(axis=(-1, -2))
    truth, called, right = c.sum(axis=-1), c.sum(axis=-2), np.diagonal(c, axis1=-2, axis2=-1)
    if name == "accuracy":
        return _ratio(right.sum(axis=-1), total)
    if name == "balanced_accuracy":
        return _ratio(right, truth).mean(axis=-1)
    if name in ("precision", "recall", "specificity", "npv", "f1"):
        rest = total[..., None]
        per_class = {
            "precision": (right, called),
            "recall": (right, truth),
            "specificity": (rest - truth - called + right, rest - truth),
            "npv": (rest - truth - called + right, rest - called),
            "f1": (2 * right, truth + called),
        }[name]
        values = _ratio(*per_class)
        if c.shape[-1] == 2:
            return values[..., 1]
        if name == "precision":
            values = np.where((called == 0) & (truth > 0), 0.0, values)
        return values.mean(axis=-1)
    if name == "mcc":
        cover = right.sum(axis=-1) * total - (truth * called).sum(axis=-1)
        return _ratio(cover, np.sqrt((total**2 - (truth**2).sum(axis=-1)) * (total**2 - (called**2).sum(axis=-1))))
    if name in ("kappa", "kappa_linear", "kappa_quadratic"):
        k = np.arange(c.shape[-1])
        distance = np.abs(k[:, None] - k).astype(float)
        cost = {"kappa": (distance > 0).astype(float), "kappa_linear": distance, "kappa_quadratic": distance**2}[name]
        observed = (c * cost).sum(axis=(-1, -2)) * total
        expected = (truth[..., :, None] * called[..., None, :] * cost).sum(axis=(-1, -2))
        return 1 - _ratio(observed, expected)
    raise MstlError(f"metric is {name!r}; it must be one of {', '.join(LABEL_METRICS)}")


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    )
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _left_out_blocks(under: Callable[[np.ndarray], np.ndarray], n_groups: int, at_most: int = 400) -> np.ndarray:
    """Leave-one-out values (G,); above ``at_most`` groups a block is left out at a time, and NaN stands at all but its
    first group.

    Skewness of the estimate is the same by blocks, only noisier, and that is all that these values serve for.
    """
    block = np.arange(n_groups) * min(n_groups, at_most) // n_groups
    out = np.full(n_groups, np.nan)
    for first in np.unique(block, return_index=True)[1]:
        out[first] = under((block != block[first]).astype(float)[:, None])[0]
    return out


@dataclass(frozen=True)
class ThresholdCounts:
    """Called positives at descending cuts under weights: (positives, negatives) × group counts as sparse (T + 1, G)
    matrices."""

    positive: object
    negative: object

    @classmethod
    def of(cls, y: np.ndarray, score: np.ndarray, code: np.ndarray, n_groups: int, cuts: np.ndarray) -> ThresholdCounts:
        """``cuts`` (T,) descending; an image is called positive at a cut when its score ≥ the cut."""
        from scipy.sparse import coo_array

        first = np.searchsorted(-cuts, -score, "left")  # the first cut that calls the image positive; T for none
        shape = (len(cuts) + 1, n_groups)
        return cls(
            *(coo_array((np.ones(part.sum()), (first[part], code[part])), shape=shape).tocsr() for part in (y, ~y))
        )

    def under(self, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """True and false positives (T, r) at each cut, and the numbers of positives and negatives (r,)."""
        found, false = np.cumsum(self.positive @ w, axis=0), np.cumsum(self.negative @ w, axis=0)
        return found[:-1], false[:-1], found[-1], false[-1]


def cuts(score: np.ndarray, at_most: int | None = None) -> np.ndarray:
    """Distinct scores, descending; thinned evenly by rank to ``at_most``, the ends kept."""
    values = np.unique(score)[::-1]
    if at_most is not None and len(values) > at_most:
        values = values[np.unique(np.linspace(0, len(values) - 1, at_most).round().astype(int))]
    return values
