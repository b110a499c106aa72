"""The ROC curve: its area, DeLong's variance and test, bands, operating points, partial area, several classes.

Scores are any real numbers, higher meaning more likely positive; an image is called positive when its score ≥ threshold; ties
count one half. Everything is O(n log n) in the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from mstl.errors import MstlError
from mstl.metrics import _check, _resample
from mstl.metrics._estimate import Estimate, joined, quantile_z, summarise, two_sided, wilson

_ONE_IMAGE = "DeLong's variance does not exist with one image of a class; compare on at least two of each class"
_ZERO = 1e-30  # a variance below it is rounding: the least that 10⁶ images can have is 4e-24


# ---------------------------------------------------------------- area and DeLong

@dataclass(frozen=True)
class Delong:
    """AUC with DeLong's variance; ``low``, ``high`` the plain interval, ``low_logit``, ``high_logit`` the one on the logit scale."""

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
    """Two AUCs compared: ``difference`` = a − b with its interval; ``statistic`` and ``p_value`` are None where no test exists."""

    auc_a: float
    auc_b: float
    difference: float
    low: float
    high: float
    statistic: float | None
    p_value: float | None
    variance: float
    level: float
    paired: bool
    n: int
    n_groups: int | None
    note: str = ""

    @property
    def standard_error(self) -> float:
        return float(np.sqrt(self.variance))


def auc(y_true, y_score) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative) + ½ P(equal).

    ``y_true`` (n,) of 0 and 1, ``y_score`` (n,) finite. Raises MstlError where a class is missing.
    """
    y, s = _pair(y_true, y_score)
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
    """AUC with DeLong's variance (DeLong 1988), or the clustered variance of Obuchowski (1997) where ``groups`` (n,) are given.

    Intervals are clipped to [0, 1]. Where the variance is zero (AUC 0 or 1) or does not exist (a class of one image) both are
    Newcombe's method 5 (2006), which stays honest there; ``method`` and ``note`` say so.
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
        note = ("DeLong's variance does not exist with one image of a class" if variance is None else
                f"DeLong's variance is zero at AUC {area:g}") + ", the interval is Newcombe's method 5"
        return Delong(area, None if variance is None else 0.0, low, high, low, high, method="newcombe", note=note, **common)
    v = float(variance[0, 0])
    half = quantile_z(level) * np.sqrt(v)
    if 0 < area < 1:
        centre, spread = np.log(area / (1 - area)), half / (area * (1 - area))
        logit = 1 / (1 + np.exp(-(centre - spread))), 1 / (1 + np.exp(-(centre + spread)))
    else:
        logit = max(area - half, 0.0), min(area + half, 1.0)
    return Delong(area, v, float(max(area - half, 0)), float(min(area + half, 1)), float(logit[0]), float(logit[1]),
                  method="delong" if groups is None else "obuchowski", **common)


def delong_test(y_true, score_a, score_b, *, groups=None, paired: bool = True, level: float = 0.95) -> DelongTest:
    """DeLong's test of AUC a − AUC b on the same images (paired), clustered where ``groups`` are given.

    With ``paired=False`` the two scores belong to different images: give ``y_true`` (and ``groups``) as a pair of arrays, or one
    array for both. Use it on one test set of one pair of models, never on scores pooled over folds.
    """
    level = _check.fraction(level)
    if paired:
        y, a = _pair(y_true, score_a, "score_a")
        b = _check.scores(score_b, len(y), "score_b")
        n = len(y)
        code, n_groups = _check.codes(groups, n) if groups is not None else (None, None)
        (a10, a01), (b10, b01) = placements(y, a), placements(y, b)
        areas = np.array([a10.mean(), b10.mean()])
        covariance = _variance(y, [a10 - b10], [a01 - b01], code, n_groups)  # of the difference: exactly 0 for identical rankings
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
        note = "the two models rank every image alike" if same else "the difference has no variance, so DeLong's test does not exist"
        return DelongTest(float(areas[0]), float(areas[1]), difference, difference, difference, 0.0 if same else None,
                          1.0 if same else None, 0.0, note=note, **common)
    error = np.sqrt(variance)
    z = difference / error
    half = quantile_z(level) * error
    return DelongTest(float(areas[0]), float(areas[1]), difference, float(max(difference - half, -1)), float(min(difference + half, 1)),
                      float(z), two_sided(z), float(variance), **common)


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
    sums = np.stack([np.bincount(code[y], t / m, n_groups) + np.bincount(code[~y], o / n, n_groups) for t, o in zip(tens, ones, strict=True)])
    return n_groups / (n_groups - 1) * (sums @ sums.T)


def _effective(y: np.ndarray, code: np.ndarray | None) -> tuple[int, int]:
    """Independent positives and negatives: groups that hold one, where images are grouped."""
    if code is None:
        return int(y.sum()), int((~y).sum())
    return len(np.unique(code[y])), len(np.unique(code[~y]))


def _newcombe(area: float, m: int, n: int, level: float) -> tuple[float, float]:
    """Newcombe (2006), method 5: the AUCs θ with |area − θ| ≤ z · sqrt(Hanley–McNeil variance at θ with (m + n)/2 in place of m, n)."""
    from scipy.optimize import brentq

    z, middle = quantile_z(level), (m + n) / 2 - 1

    def excess(theta: float) -> float:
        variance = theta * (1 - theta) * (1 + middle * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (m * n)
        return (area - theta) ** 2 - z**2 * variance

    low = 0.0 if area <= 0 else brentq(excess, 1e-12, area - 1e-9)
    high = 1.0 if area >= 1 else brentq(excess, area + 1e-9, 1 - 1e-12)
    return float(low), float(high)
