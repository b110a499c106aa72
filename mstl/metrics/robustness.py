"""How much a result moves when what should not matter does: boxes that another hand drew, ratings of the same cases again.

A *draw* is one way to draw every box a little differently; the same draws are applied to every case, so that cases × draws is a
two-way table and the ICC(2,1) exists. A squashed probability only looks stable, so spreads are of logits recalibrated on validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import f

from mstl.errors import MstlError
from mstl.metrics import _check, calibration, paired
from mstl.metrics._estimate import Estimate, mean_of

KINDS = ("1,1", "2,1", "3,1")


# ---------------------------------------------------------------- agreement


@dataclass(frozen=True)
class Icc:
    """An intraclass correlation of single ratings; what does not exist is None, and ``note`` says why."""

    kind: str
    estimate: float | None
    low: float | None
    high: float | None
    level: float
    n: int
    k: int
    note: str = ""


def icc(ratings, kind: str = "2,1", *, level: float = 0.95) -> Icc:
    """Intraclass correlation of ``ratings`` (n, k): n cases, each rated k times (Shrout & Fleiss 1979).

    "1,1": each case has its own ratings (one-way random). "2,1": the same k raters or draws for every case, a sample of many, and
    agreement in absolute terms is asked for (two-way random). "3,1": these k only, consistency (two-way mixed). Intervals are the F
    intervals of Shrout & Fleiss (their Satterthwaite form for "2,1"; McGraw & Wong 1996, table 7). Estimates below zero are not cut off.
    """
    _check.one_of(kind, KINDS, "kind")
    level = _check.fraction(level)
    x = np.asarray(ratings, dtype=float)
    if x.ndim != 2 or min(x.shape) < 2:
        raise MstlError(f"ratings has shape {x.shape}; give one row a case and one column a rating, at least two of each")
    if not np.isfinite(x).all():
        raise MstlError(f"ratings is not a finite number in row {int(np.argmax(~np.isfinite(x).all(axis=1)))}; drop that case")
    n, k = x.shape
    rows, columns, mean = x.mean(axis=1), x.mean(axis=0), x.mean()
    between = k * np.sum((rows - mean) ** 2) / (n - 1)
    within = np.sum((x - rows[:, None]) ** 2) / (n * (k - 1))
    raters = n * np.sum((columns - mean) ** 2) / (k - 1)
    error = np.sum((x - rows[:, None] - columns + mean) ** 2) / ((n - 1) * (k - 1))
    smallest = 1e-12 * max(1.0, float(np.mean(x**2)))
    if max(between, within) <= smallest:
        return Icc(kind, None, None, None, level, n, k, "all ratings are the same, so no share of their variance exists")
    tail = 0.5 + level / 2
    if kind == "2,1":
        total = between + (k - 1) * error + k * (raters - error) / n
        estimate = (between - error) / total
        if max(error, raters) <= smallest:
            return Icc(kind, 1.0, None, None, level, n, k, "the ratings of a case never differ, so there is no interval")
        a, b = k * estimate / (n * (1 - estimate)), 1 + k * estimate * (n - 1) / (n * (1 - estimate))
        v = (a * raters + b * error) ** 2 / ((a * raters) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1)))
        rest = k * raters + (k * n - k - n) * error
        lower, upper = f.ppf(tail, n - 1, v), f.ppf(tail, v, n - 1)
        low = n * (between - lower * error) / (lower * rest + n * between)
        high = n * (upper * between - error) / (rest + n * upper * between)
        return Icc(kind, float(estimate), float(low), float(high), level, n, k)
    noise, df = (within, n * (k - 1)) if kind == "1,1" else (error, (n - 1) * (k - 1))
    if noise <= smallest:
        return Icc(kind, 1.0, None, None, level, n, k, "the ratings of a case never differ, so there is no interval")
    ratio = between / noise
    low, high = ratio / f.ppf(tail, n - 1, df), ratio * f.ppf(tail, df, n - 1)
    return Icc(kind, *(float((value - 1) / (value + k - 1)) for value in (ratio, low, high)), level, n, k)


# ---------------------------------------------------------------- boxes drawn again


def draws(k: int, *, seed: int = 0) -> np.ndarray:
    """(k, 3) numbers U(−1, 1): for shift in x, shift in y, and scale. One table for all cases, and for all strengths."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 2:
        raise MstlError(f"{k!r} draws were asked for; at least 2 are needed, and whole")
    return np.random.default_rng(seed).uniform(-1, 1, size=(int(k), 3))


def perturb(boxes, table: np.ndarray, *, shift: float, scale: float) -> np.ndarray:
    """Every box under every draw: ``boxes`` (n, 4) as x0, y0, x1, y1 in pixels and ``table`` (K, 3) of :func:`draws` → (n, K, 4).

    The centre moves by ``shift`` · draw of the box's own width and height, both sides are multiplied by 1 + ``scale`` · draw: shift
    U(−d, d) · side and scale U(1 − s, 1 + s). The grid of the work that asked (Insights into Imaging 2026) is not known; this one is ours.
    """
    b = _check.boxes(boxes)
    for name, value in (("shift", shift), ("scale", scale)):
        if not 0 <= value < 1:
            raise MstlError(f"{name} is {value}; it is a share of the box's side, from 0 to below 1")
    centre, side = (b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]
    moved = centre[:, None] + shift * table[None, :, :2] * side[:, None]
    half = side[:, None] * (1 + scale * table[None, :, 2:]) / 2
    return np.concatenate([moved - half, moved + half], axis=2)


# ---------------------------------------------------------------- what the draws do to a model


def recalibrated_logit(y_validation, risk_validation, risk) -> np.ndarray:
    """Logits of ``risk`` (any shape) after Platt's recalibration on validation: all models on one scale, squashed or not."""
    fitted = calibration.recalibration(y_validation, risk_validation, method="platt").parameters
    p = np.asarray(risk, dtype=float)
    inside = np.clip(_check.risks(p.ravel(), p.size), 1e-12, 1 - 1e-12)  # a saturated risk still moves
    return (fitted["intercept"] + fitted["slope"] * (np.log(inside) - np.log1p(-inside))).reshape(p.shape)


def case_sd(logits) -> np.ndarray:
    """Standard deviation of each case over the draws: ``logits`` (n, K) → (n,)."""
    return _table(logits).std(axis=1, ddof=1)


def flips(risk, perturbed, threshold: float) -> np.ndarray:
    """Share of the draws (n,) in which a case is called otherwise than with its own box: ``risk`` (n,), ``perturbed`` (n, K); a case is
    called positive at risk ≥ ``threshold``."""
    own = _check.scores(risk, len(np.asarray(risk)), "risk")
    return ((_table(perturbed, len(own)) >= threshold) != (own >= threshold)[:, None]).mean(axis=1)


def mean_over_cases(name: str, values, *, groups=None, level: float = 0.95) -> Estimate:
    """Mean of one non-negative number a case, (n,), with an interval that clusters by ``groups`` (n,)."""
    v = _check.scores(values, len(np.asarray(values)), "values")
    return mean_of(name, v, groups, _check.fraction(level), bounds=(0, np.inf))


@dataclass(frozen=True)
class CaseDifference:
    """Paired over cases: the mean of a − b with its interval, the share of groups in which a is smaller, and Wilcoxon's test."""

    difference: Estimate
    smaller: float
    test: paired.Test


def compare_cases(a, b, *, groups=None, level: float = 0.95) -> CaseDifference:
    """Is a number of each case, (n,), smaller in model ``a`` than in ``b``?

    The Wilcoxon signed-rank test takes independent values, so the images of a group (n,) are averaged first.
    """
    one = _check.scores(a, len(np.asarray(a)), "a")
    d = one - _check.scores(b, len(one), "b")
    code, n_groups = _check.codes(groups, len(d))
    means = pd.Series(d).groupby(code).mean().to_numpy()
    difference = mean_of("mean difference", d, groups, _check.fraction(level), bounds=(-np.inf, np.inf))
    return CaseDifference(difference, float((means < 0).mean()), paired.wilcoxon(means))


def _table(values, n: int | None = None) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 2 or x.shape[1] < 2 or (n is not None and len(x) != n):
        raise MstlError(f"the values under the draws have shape {x.shape}; give one row a case{f' ({n})' if n else ''} and one column a draw, at least two")
    if not np.isfinite(x).all():
        raise MstlError(f"case {int(np.argmax(~np.isfinite(x).all(axis=1)))} has a value under a draw that is not a finite number; drop that case")
    return x
