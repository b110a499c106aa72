"""The ROC curve: its area, DeLong's variance and test, bands, operating points, partial area, several classes.

Scores are any real numbers, higher meaning more likely positive; an image is called positive when its score ≥
threshold; ties count one half. Everything is O(n log n) in the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from mstl.errors import MstlError
from mstl.metrics import _check, _resample
from mstl.metrics._estimate import Estimate, joined, quantile_z, summarise, two_sided

_ONE_IMAGE = "DeLong's variance does not exist with one image of a class; compare on at least two of each class"
_ZERO = 1e-30  # a variance below it is rounding: the least that 10⁶ images can have is 4e-24


# ---------------------------------------------------------------- area and DeLong


@dataclass(frozen=True)
class Delong:
    """AUC with DeLong's variance; ``low``, ``high`` the plain interval, ``low_logit``, ``high_logit`` the one on the
    logit scale."""

    auc: float
    variance: float | None
    low: float
    high: float
    low_logit: float
    high_logit: float
    level: float
    n_positive: int
    n_negative: int
    n_groups: int | None
    method: str
    note: str = ""

    @property
    def standard_error(self) -> float | None:
        return None if self.variance is None else float(np.sqrt(self.variance))


@dataclass(frozen=True)
class DelongTest:
    """Two AUCs compared: ``difference`` = a − b with its interval; what does not exist is None, and ``note`` says
    why."""

    auc_a: float
    auc_b: float
    difference: float
    low: float | None
    high: float | None
    statistic: float | None
    p_value: float | None
    variance: float | None
    level: float
    paired: bool
    n: int
    n_groups: int | None
    note: str = ""

    @property
    def standard_error(self) -> float | None:
        return None if self.variance is None else float(np.sqrt(self.variance))


def auc(y_true, y_score) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative) + ½ P(equal).

    ``y_true`` (n,) of 0 and 1, ``y_score`` (n,) finite; or class indices and one column a class, ``y_score`` (n, K): of
    two classes the AUC of the last, of more the mean of one against the rest. Raises MstlError where a class is missing.
    """
    scores = np.asarray(y_score)
    if scores.ndim == 2 and scores.shape[1] > 2:
        y = _check.labels(y_true, scores.shape[1])
        return float(np.mean([auc(y == k, scores[:, k]) for k in range(scores.shape[1])]))
    y, s = _pair(y_true, scores[:, -1] if scores.ndim == 2 else scores)
    return float(placements(y, s)[0].mean())


def placements(y: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's V10 (M,) and V01 (N,): share of negatives below each positive, and of positives above each negative.

    ``y`` boolean (n,), ``score`` (n,); order as in the rows. Equals the midrank form of Sun & Xu (2014).
    """
    positive, negative = score[y], score[~y]
    up, down = np.sort(positive), np.sort(negative)
    below = (np.searchsorted(down, positive, "left") + np.searchsorted(down, positive, "right")) / (2 * len(down))
    above = 1 - (np.searchsorted(up, negative, "left") + np.searchsorted(up, negative, "right")) / (2 * len(up))
    return below, above


def delong(y_true, y_score, *, groups=None, level: float = 0.95) -> Delong:
    """AUC with DeLong's variance (DeLong 1988), or the clustered variance of Obuchowski (1997) where ``groups`` (n,)
    are given.

    Intervals are clipped to [0, 1]. Where the variance is zero (AUC 0 or 1) or does not exist (a class of one image)
    both are Newcombe's method 5 (2006), which stays honest there; ``method`` and ``note`` say so.
    """
    y, s = _pair(y_true, y_score)
    level = _check.fraction(level)
    code, n_groups = _check.codes(groups, len(y)) if groups is not None else (None, None)
    v10, v01 = placements(y, s)
    area = float(v10.mean())
    variance = _variance(y, [v10], [v01], code, n_groups)
    common = {"level": level, "n_positive": len(v10), "n_negative": len(v01), "n_groups": n_groups}
    if variance is None or variance[0, 0] <= _ZERO:
        low, high = _newcombe(area, *_effective(y, code), level)
        note = (
            "DeLong's variance does not exist with one image of a class"
            if variance is None
            else f"DeLong's variance is zero at AUC {area:g}"
        ) + ", the interval is Newcombe's method 5"
        return Delong(
            area, None if variance is None else 0.0, low, high, low, high, method="newcombe", note=note, **common
        )
    v = float(variance[0, 0])
    half = quantile_z(level) * np.sqrt(v)
    if 0 < area < 1:
        centre, spread = np.log(area / (1 - area)), half / (area * (1 - area))
        logit = 1 / (1 + np.exp(-(centre - spread))), 1 / (1 + np.exp(-(centre + spread)))
    else:
        logit = max(area - half, 0.0), min(area + half, 1.0)
    return Delong(
        area,
        v,
        float(max(area - half, 0)),
        float(min(area + half, 1)),
        float(logit[0]),
        float(logit[1]),
        method="delong" if groups is None else "obuchowski",
        **common,
    )


def delong_test(y_true, score_a, score_b, *, groups=None, paired: bool = True, level: float = 0.95) -> DelongTest:
    """DeLong's test of AUC a − AUC b on the same images (paired), clustered where ``groups`` are given.

    With ``paired=False`` the two scores belong to different images: give ``y_true`` (and ``groups``) as a pair of
    arrays, or one array for both. Use it on one test set of one pair of models, never on scores pooled over folds.
    """
    level = _check.fraction(level)
    if paired:
        y, a = _pair(y_true, score_a, "score_a")
        b = _check.scores(score_b, len(y), "score_b")
        n = len(y)
        code, n_groups = _check.codes(groups, n) if groups is not None else (None, None)
        (a10, a01), (b10, b01) = placements(y, a), placements(y, b)
        areas = np.array([a10.mean(), b10.mean()])
        covariance = _variance(
            y, [a10 - b10], [a01 - b01], code, n_groups
        )  # of the difference: exactly 0 for identical rankings
        if covariance is None:
            raise MstlError(_ONE_IMAGE)
        variance = float(covariance[0, 0])
    else:
        (ya, yb), (ga, gb) = _two(y_true, len(np.asarray(score_a))), _two(groups, len(np.asarray(score_a)))
        one, two = delong(ya, score_a, groups=ga, level=level), delong(yb, score_b, groups=gb, level=level)
        if one.variance is None or two.variance is None:
            raise MstlError(_ONE_IMAGE)
        areas, variance = np.array([one.auc, two.auc]), one.variance + two.variance
        n = one.n_positive + one.n_negative + two.n_positive + two.n_negative
        n_groups = None if groups is None else one.n_groups + two.n_groups
    difference = float(areas[0] - areas[1])
    common = {"level": level, "paired": paired, "n": n, "n_groups": n_groups}
    if variance <= _ZERO:
        same = abs(difference) < 1e-12
        if same and paired and np.array_equal(rankdata(a), rankdata(b)):
            return DelongTest(
                float(areas[0]),
                float(areas[1]),
                0.0,
                0.0,
                0.0,
                0.0,
                1.0,
                0.0,
                note="the two models rank all images alike",
                **common,
            )
        note = f"the difference has no variance, so DeLong's {'interval does' if same else 'test and interval do'} not exist"
        return DelongTest(
            float(areas[0]),
            float(areas[1]),
            difference,
            None,
            None,
            0.0 if same else None,
            1.0 if same else None,
            None,
            note=note,
            **common,
        )
    error = np.sqrt(variance)
    z = difference / error
    half = quantile_z(level) * error
    return DelongTest(
        float(areas[0]),
        float(areas[1]),
        difference,
        float(max(difference - half, -1)),
        float(min(difference + half, 1)),
        float(z),
        two_sided(z),
        float(variance),
        **common,
    )


def delong_covariance(y_true, scores, *, groups=None) -> tuple[np.ndarray, np.ndarray]:
    """AUCs (k,) of ``scores`` (k, n) and their covariance matrix (k, k), clustered where ``groups`` are given."""
    y = _check.binary(y_true)
    _check.both_classes(y)
    scores = np.stack([_check.scores(s, len(y), f"scores[{i}]") for i, s in enumerate(scores)])
    code, n_groups = _check.codes(groups, len(y)) if groups is not None else (None, None)
    v10, v01 = zip(*(placements(y, s) for s in scores), strict=True)
    covariance = _variance(y, v10, v01, code, n_groups)
    if covariance is None:
        raise MstlError(_ONE_IMAGE)
    return np.array([v.mean() for v in v10]), covariance


def _pair(y_true, y_score, name: str = "y_score") -> tuple[np.ndarray, np.ndarray]:
    y = _check.binary(y_true)
    _check.both_classes(y)
    return y, _check.scores(y_score, len(y), name)


def _two(values, n: int) -> tuple:
    if values is None:
        return None, None
    if isinstance(values, (tuple, list)) and len(values) == 2 and np.ndim(values[0]) == 1 and n != 2:
        return values[0], values[1]
    return values, values


def _variance(y, v10: Sequence[np.ndarray], v01: Sequence[np.ndarray], code, n_groups) -> np.ndarray | None:
    """Covariance (k, k) of AUCs from their placements; None with a class of one image (unclustered)."""
    m, n = len(v10[0]), len(v01[0])
    tens = np.stack([v - v.mean() for v in v10])
    ones = np.stack([v - v.mean() for v in v01])
    if code is None:
        if min(m, n) < 2:
            return None
        return tens @ tens.T / (m - 1) / m + ones @ ones.T / (n - 1) / n
    if n_groups < 2:
        raise MstlError("all images belong to one group, so no variance exists; give at least two groups")
    sums = np.stack(
        [
            np.bincount(code[y], t / m, n_groups) + np.bincount(code[~y], o / n, n_groups)
            for t, o in zip(tens, ones, strict=True)
        ]
    )
    return n_groups / (n_groups - 1) * (sums @ sums.T)


def _effective(y: np.ndarray, code: np.ndarray | None) -> tuple[int, int]:
    """Independent positives and negatives: groups that hold one, where images are grouped."""
    if code is None:
        return int(y.sum()), int((~y).sum())
    return len(np.unique(code[y])), len(np.unique(code[~y]))


def _newcombe(area: float, m: int, n: int, level: float) -> tuple[float, float]:
    """Newcombe (2006), method 5: the AUCs θ with |area − θ| ≤ z · sqrt(Hanley–McNeil variance at θ with (m + n)/2 in
    place of m, n)."""
    from scipy.optimize import brentq

    z, middle = quantile_z(level), (m + n) / 2 - 1

    def excess(theta: float) -> float:
        variance = theta * (1 - theta) * (1 + middle * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (m * n)
        return (area - theta) ** 2 - z**2 * variance

    low = 0.0 if area <= 0 else brentq(excess, 1e-12, area - 1e-9)
    high = 1.0 if area >= 1 else brentq(excess, area + 1e-9, 1 - 1e-12)
    return float(low), float(high)


# ---------------------------------------------------------------- curves and their bands

_CUTS = 1000  # distinct thresholds that a band follows; the curve itself follows all


@dataclass(frozen=True)
class RocCurve:
    """``fpr``, ``tpr`` (T + 1,) at ``thresholds`` (first +inf: nothing called); a pointwise band of the sensitivity at
    ``grid`` (false-positive rates)."""

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray
    auc: float
    grid: np.ndarray
    band_low: np.ndarray
    band_high: np.ndarray
    level: float
    n_positive: int
    n_negative: int
    n_groups: int | None


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """``precision``, ``recall`` (T,) at ``thresholds``, a pointwise band of the precision at ``grid`` (recalls), and
    the ``prevalence`` it is for."""

    recall: np.ndarray
    precision: np.ndarray
    thresholds: np.ndarray
    average_precision: float
    grid: np.ndarray
    band_low: np.ndarray
    band_high: np.ndarray
    prevalence: float
    level: float
    n_positive: int
    n_negative: int
    n_groups: int | None


def roc_curve(
    y_true, y_score, *, groups=None, level: float = 0.95, n_resamples: int = 1000, seed: int = 0, grid=None
) -> RocCurve:
    """The ROC curve with a pointwise bootstrap band of sensitivity at each false-positive rate of ``grid`` (default 0,
    0.01 … 1).

    Groups are resampled within strata of their classes; the band follows at most 1000 thresholds.
    """
    y, s = _pair(y_true, y_score)
    grid = np.linspace(0, 1, 101) if grid is None else np.asarray(grid, dtype=float)
    thresholds, tp, fp = _counts(y, s)
    sampled = [np.interp(grid, x, t) for x, t in _resampled_curves(y, s, groups, n_resamples, seed)]
    low, high = np.quantile(sampled, [(1 - _check.fraction(level)) / 2, (1 + level) / 2], axis=0)
    n_groups = None if groups is None else _check.codes(groups, len(y))[1]
    return RocCurve(
        np.append(0, fp) / fp[-1],
        np.append(0, tp) / tp[-1],
        np.append(np.inf, thresholds),
        auc(y, s),
        grid,
        low,
        high,
        level,
        int(tp[-1]),
        int(fp[-1]),
        n_groups,
    )


def precision_recall_curve(
    y_true,
    y_score,
    *,
    prevalence: float | None = None,
    groups=None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    grid=None,
) -> PrecisionRecallCurve:
    """Precision against recall with a pointwise bootstrap band of precision at each recall of ``grid`` (default 0.01 …
    1).

    ``prevalence`` re-weights precision to a population; None keeps the table's own. Precision at a recall is that of
    the highest threshold that reaches it; ``average_precision`` is the step sum at the same prevalence.
    """
    y, s = _pair(y_true, y_score)
    grid = np.linspace(0.01, 1, 100) if grid is None else np.asarray(grid, dtype=float)
    thresholds, tp, fp = _counts(y, s)
    p = tp[-1] / len(y) if prevalence is None else _check.fraction(prevalence, "prevalence")
    recall = tp / tp[-1]
    precision = _ppv(recall, 1 - fp / fp[-1], p)
    sampled = []
    for x, t in _resampled_curves(y, s, groups, n_resamples, seed):
        at = np.minimum(np.searchsorted(t, grid - 1e-12, "left"), len(t) - 1)
        sampled.append(_ppv(t[at], 1 - x[at], p))
    low, high = np.quantile(sampled, [(1 - _check.fraction(level)) / 2, (1 + level) / 2], axis=0)
    n_groups = None if groups is None else _check.codes(groups, len(y))[1]
    return PrecisionRecallCurve(
        recall,
        precision,
        thresholds,
        float(np.sum(np.diff(recall, prepend=0) * precision)),
        grid,
        low,
        high,
        float(p),
        level,
        int(tp[-1]),
        int(fp[-1]),
        n_groups,
    )


def _counts(y: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores descending, and the true and false positives (T,) when each is the threshold."""
    order = np.argsort(-s, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)
    tp = np.cumsum(y[order])[ends]
    return s[order][ends], tp, ends + 1 - tp


def _resampled_curves(y, s, groups, n_resamples: int, seed: int):
    """False- and true-positive rates (T + 1,), both starting at 0, of one resample after another."""
    code, n_groups = _check.codes(groups, len(y))
    stratum = _resample.strata(y, code, n_groups)
    counts = _resample.ThresholdCounts.of(y, s, code, n_groups, _resample.cuts(s, _CUTS))
    for w in _resample.weights(stratum, _check.resamples(n_resamples), np.random.default_rng(seed), len(y)):
        tp, fp, positives, negatives = counts.under(w)
        for r in np.flatnonzero((positives > 0) & (negatives > 0)):
            yield np.append(0, fp[:, r] / negatives[r]), np.append(0, tp[:, r] / positives[r])


def _ppv(sensitivity, specificity, prevalence: float):
    """Bayes' positive predictive value; 1 where nothing is called."""
    true, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    return np.divide(true, true + false, out=np.ones(np.shape(true)), where=true + false > 0)


# ---------------------------------------------------------------- partial area


@dataclass(frozen=True)
class PartialAuc:
    """``area`` under a part of the curve, its McClish-``standardised`` form (0.5 chance, 1 perfect), and the interval
    of the latter."""

    area: float
    standardised: float
    low: float | None
    high: float | None
    part: str
    level: float
    n: int
    note: str = ""


def partial_auc(
    y_true,
    y_score,
    *,
    max_fpr: float | None = None,
    min_sensitivity: float | None = None,
    groups=None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> PartialAuc:
    """Area over false-positive rates 0 … ``max_fpr``, or over sensitivities ``min_sensitivity`` … 1 (exactly one of the
    two).

    Standardised after McClish (1989): ½ (1 + (area − chance) / (largest − chance)). Percentile bootstrap interval.
    """
    if (max_fpr is None) == (min_sensitivity is None):
        raise MstlError("give exactly one of max_fpr and min_sensitivity, each between 0 and 1")
    y, s = _pair(y_true, y_score)
    if max_fpr is not None:
        width, part = _check.fraction(max_fpr, "max_fpr"), f"false-positive rate 0 to {max_fpr:g}"
    else:  # the same area with the two classes and the direction of the score exchanged
        width, part = 1 - _check.fraction(min_sensitivity, "min_sensitivity"), f"sensitivity {min_sensitivity:g} to 1"
        y, s = ~y, -s

    def area(x: np.ndarray, t: np.ndarray) -> float:
        inside = x <= width
        xs, ts = np.append(x[inside], width), np.append(t[inside], np.interp(width, x, t))
        return float(np.trapezoid(ts, xs))

    def standard(value):
        return 0.5 * (1 + (value - width**2 / 2) / (width - width**2 / 2))

    _, tp, fp = _counts(y, s)
    value = area(np.append(0, fp) / fp[-1], np.append(0, tp) / tp[-1])
    sampled = np.array([standard(area(x, t)) for x, t in _resampled_curves(y, s, groups, n_resamples, seed)])
    boot = summarise(standard(value), sampled, _check.fraction(level))
    return PartialAuc(value, float(standard(value)), boot.low, boot.high, part, level, len(y), boot.note)


# ---------------------------------------------------------------- operating points


@dataclass(frozen=True)
class OperatingPoint:
    """Counts and rates at one threshold (positive when score ≥ threshold); ``prevalence`` is the one that ppv and npv
    are for."""

    rule: str
    threshold: float
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    tp: int
    fp: int
    fn: int
    tn: int
    prevalence: float
    level: float
    note: str = ""


RULES = ("youden", "sensitivity", "specificity")


def operating_point(
    y_true,
    y_score,
    *,
    rule: str,
    at: float = 0.90,
    prevalence: float | None = None,
    groups=None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> OperatingPoint:
    """The threshold that a rule chooses on these images, with what it gives on them.

    ``rule`` "youden" maximises sensitivity + specificity − 1; "sensitivity" maximises specificity subject to
    sensitivity ≥ ``at``; "specificity" maximises sensitivity subject to specificity ≥ ``at`` (Hasei et al. 2025). Ties
    go to the higher value of the other rate, for Youden to the higher sensitivity. Thresholds are observed scores.
    Choose on validation and apply to the test set by ``at_threshold``: a threshold chosen on the images it is judged by
    is optimistic, and ``note`` says so. Intervals take the threshold as given.
    """
    y, s = _pair(y_true, y_score)
    threshold = choose_threshold(y, s, rule=rule, at=at)
    point = at_threshold(
        y, s, threshold, prevalence=prevalence, groups=groups, level=level, n_resamples=n_resamples, seed=seed
    )
    chosen = "the threshold was chosen on these images, so its rates are optimistic"
    empty = f"no threshold that calls an image positive reaches specificity {at:g}" if point.tp + point.fp == 0 else ""
    return OperatingPoint(
        **{**point.__dict__, "rule": rule if rule == "youden" else f"{rule} ≥ {at:g}", "note": joined(chosen, empty)}
    )


def choose_threshold(y_true, y_score, *, rule: str, at: float = 0.90) -> float:
    """The threshold alone, by the rules of ``operating_point``."""
    y, s = _pair(y_true, y_score)
    _check.one_of(rule, RULES, "rule")
    thresholds, tp, fp = _counts(y, s)
    m, n = tp[-1], fp[-1]
    if rule == "youden":
        gain = tp * n - fp * m  # exact in integers
        best = np.flatnonzero(gain == gain.max())[-1]
        return float(thresholds[best])
    at = _check.fraction(at, "at")
    if rule == "sensitivity":
        enough = np.flatnonzero(tp >= at * m - 1e-9)
        return float(thresholds[enough[fp[enough] == fp[enough].min()][-1]])
    enough = np.flatnonzero(n - fp >= at * n - 1e-9)
    if not len(enough) or tp[enough].max() == 0:
        return float(np.nextafter(thresholds[0], np.inf))
    return float(thresholds[enough[tp[enough] == tp[enough].max()][0]])


def at_threshold(
    y_true,
    y_score,
    threshold: float,
    *,
    prevalence: float | None = None,
    groups=None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> OperatingPoint:
    """Sensitivity, specificity, PPV and NPV at a threshold fixed beforehand.

    Wilson intervals; with ``groups`` the bootstrap of groups. With ``prevalence`` PPV and NPV are Bayes' at that
    prevalence, their intervals on the logit scale (Mercaldo et al. 2007).
    """
    y, s = _pair(y_true, y_score)
    if not np.isfinite(threshold):
        raise MstlError(f"threshold is {threshold}; give a finite number on the scale of the scores")
    called, level = s >= threshold, _check.fraction(level)
    tp, fp = int((called & y).sum()), int((called & ~y).sum())
    fn, tn = int(y.sum()) - tp, int((~y).sum()) - fp
    from mstl.metrics import scores

    names = {"recall": "sensitivity", "specificity": "specificity", "precision": "ppv", "npv": "npv"}
    table = scores.table(
        y.astype(int),
        called.astype(int),
        metrics=tuple(names),
        classes=[0, 1],
        groups=groups,
        level=level,
        n_resamples=n_resamples,
        seed=seed,
    )
    rates = {new: Estimate(**{**table[old].__dict__, "name": new}) for old, new in names.items()}
    p = float(y.mean())
    if prevalence is not None:
        p = _check.fraction(prevalence, "prevalence")
        rates.update(_predictive_values(y, called, p, groups, level, n_resamples, seed))
    return OperatingPoint(
        "fixed",
        float(threshold),
        rates["sensitivity"],
        rates["specificity"],
        rates["ppv"],
        rates["npv"],
        tp,
        fp,
        fn,
        tn,
        p,
        level,
    )


def _predictive_values(
    y, called, prevalence: float, groups, level: float, n_resamples: int, seed: int
) -> dict[str, Estimate]:
    """PPV and NPV at a prevalence: logit intervals of Mercaldo et al. (2007), or the bootstrap of groups."""
    m, n = int(y.sum()), int((~y).sum())
    se, sp = float(called[y].mean()), float(1 - called[~y].mean())
    n_groups = None
    if groups is not None:
        code, n_groups = _check.codes(groups, len(y))
        counts = _resample.ThresholdCounts.of(y, called.astype(float), code, n_groups, np.array([1.0]))
        stratum = _resample.strata(y, code, n_groups)
        blocks = [
            counts.under(w)
            for w in _resample.weights(stratum, _check.resamples(n_resamples), np.random.default_rng(seed), len(y))
        ]
        tp, fp, positives, negatives = (np.concatenate([np.atleast_2d(b[k])[0] for b in blocks]) for k in range(4))
        se_r, sp_r = tp / positives, 1 - fp / negatives
    out = {}
    for name in ("ppv", "npv"):
        flip = name == "npv"
        none = not (~called).any() if flip else not called.any()
        if none:
            out[name] = Estimate(
                name,
                None,
                None,
                None,
                level,
                len(y),
                "none",
                n_groups,
                f"no image is called {'negative' if flip else 'positive'}, so {name} does not exist",
            )
            continue
        value = float(_npv(se, sp, prevalence) if flip else _ppv(np.float64(se), np.float64(sp), prevalence))
        if groups is not None:
            boot = summarise(value, _npv(se_r, sp_r, prevalence) if flip else _ppv(se_r, sp_r, prevalence), level)
            out[name] = Estimate(name, value, boot.low, boot.high, level, len(y), "percentile", n_groups, boot.note)
            continue
        z = quantile_z(level)
        a, b = se, sp
        if not (0 < se < 1 and 0 < sp < 1):  # at a boundary the rates are drawn in by z²/2 images of each kind
            a, b = (se * m + z**2 / 2) / (m + z**2), (sp * n + z**2 / 2) / (n + z**2)
        odds = (
            (b * (1 - prevalence)) / ((1 - a) * prevalence) if flip else a * prevalence / ((1 - b) * (1 - prevalence))
        )
        variance = (a / (1 - a) / m + (1 - b) / b / n) if flip else ((1 - a) / a / m + b / (1 - b) / n)
        low, high = (odds * np.exp(sign * z * np.sqrt(variance)) for sign in (-1, 1))
        out[name] = Estimate(
            name,
            value,
            min(float(low / (1 + low)), value),
            max(float(high / (1 + high)), value),
            level,
            len(y),
            "logit",
        )
    return out


def _npv(sensitivity, specificity, prevalence: float):
    return _ppv(np.asarray(specificity, dtype=float), np.asarray(sensitivity, dtype=float), 1 - prevalence)


# ---------------------------------------------------------------- several classes


@dataclass(frozen=True)
class MulticlassAuc:
    """Mean AUC of several classes with its bootstrap interval, and each class against the rest by DeLong."""

    auc: float
    low: float | None
    high: float | None
    method: str
    per_class: dict
    level: float
    n: int
    n_groups: int | None
    note: str = ""


def multiclass_auc(
    y_true,
    probabilities,
    *,
    method: str = "ovr",
    classes: Sequence | None = None,
    groups=None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> MulticlassAuc:
    """AUC of K classes: "ovr", the plain mean of one-vs-rest AUCs, or "hand-till", the mean over pairs of classes (Hand
    & Till 2001).

    ``y_true`` (n,) indices 0 … K−1, or names where ``classes`` gives their order; ``probabilities`` (n, K), one column
    a class.
    """
    _check.one_of(method, ("ovr", "hand-till"), "method")
    p = np.asarray(probabilities, dtype=float)
    k = p.shape[1] if p.ndim == 2 else 0
    if k < 2:
        raise MstlError(f"probabilities has shape {p.shape}; give one column a class")
    names = list(range(k)) if classes is None else list(classes)
    if len(names) != k:
        raise MstlError(f"probabilities has {k} columns, but {len(names)} classes are named; give one column a class")
    y = np.asarray(y_true)
    if classes is not None:
        import pandas as pd

        y = pd.Index(names).get_indexer(y)
        if (y < 0).any():
            row = int(np.argmax(y < 0))
            raise MstlError(
                f"y_true is {np.asarray(y_true)[row]!r} in row {row}, which is not among the classes {names}"
            )
    y = _check.labels(y, k)
    p = _check.scores(p, len(y), "probabilities", columns=True)
    missing = [str(names[j]) for j in range(k) if not (y == j).any()]
    if missing:
        raise MstlError(
            f"no image has class {', '.join(missing)}, so the AUC over all classes does not exist; leave that column out"
        )
    code, n_groups = _check.codes(groups, len(y))
    if method == "ovr":
        prepared = _resample.prepare("auc", y, p, code, n_groups)
    else:
        prepared = _resample.WeightedMacroAuc(
            tuple(
                _resample.WeightedAuc.of(y[rows] == i, p[rows, i], code[rows], n_groups)
                for i in range(k)
                for j in range(k)
                if i != j
                for rows in [np.flatnonzero((y == i) | (y == j))]
            )
        )
    stratum = _resample.strata(y, code, n_groups)
    blocks = [
        prepared.under(w)
        for w in _resample.weights(stratum, _check.resamples(n_resamples), np.random.default_rng(seed), len(y))
    ]
    boot = summarise(prepared.value(), np.concatenate(blocks), _check.fraction(level))
    per_class = {name: delong(y == j, p[:, j], groups=groups, level=level) for j, name in enumerate(names)}
    return MulticlassAuc(
        prepared.value(),
        boot.low,
        boot.high,
        method,
        per_class,
        level,
        len(y),
        None if groups is None else n_groups,
        boot.note,
    )
