"""Calibration: do predicted probabilities mean what they say, and how to mend them on validation data.

``risk`` (n,) are probabilities of the positive class in [0, 1]; for measures on the logit scale they are drawn in to
[1e-6, 1 − 1e-6], and ``note`` says how many were. With ``groups`` standard errors are cluster-robust.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mstl.errors import MstlError
from mstl.metrics import _check
from mstl.metrics._estimate import Estimate, joined, mean_of, quantile_z, two_sided, wilson

_EDGE = 1e-6


# ---------------------------------------------------------------- measures


def brier(y_true, risk, *, groups=None, level: float = 0.95) -> Estimate:
    """Brier score, the mean squared error of the probabilities (0 best), with a normal interval of the mean, clipped to
    [0, 1]."""
    y, p = _pair(y_true, risk)
    return mean_of("brier", (p - y) ** 2, groups, _check.fraction(level))


def brier_skill(y_true, risk) -> float:
    """1 − Brier / Brier of predicting the prevalence for every image: 1 perfect, 0 useless, below 0 harmful."""
    y, p = _pair(y_true, risk)
    _check.both_classes(y, "the Brier skill score")
    return float(1 - np.mean((p - y) ** 2) / (y.mean() * (1 - y.mean())))


@dataclass(frozen=True)
class CalibrationLine:
    """Logistic fit of the outcome on logit(risk), and calibration-in-the-large.

    ``slope`` 1 and ``intercept`` 0 are ideal; slope < 1: risks too extreme. ``in_the_large`` is the intercept with the
    slope held at 1: > 0 when risks are too low on average. What does not exist is None and ``note`` says why.
    """

    slope: float | None
    slope_low: float | None
    slope_high: float | None
    intercept: float | None
    intercept_low: float | None
    intercept_high: float | None
    in_the_large: float | None
    in_the_large_low: float | None
    in_the_large_high: float | None
    mean_risk: float
    prevalence: float
    level: float
    n: int
    n_groups: int | None
    note: str = ""


def calibration_line(y_true, risk, *, groups=None, level: float = 0.95) -> CalibrationLine:
    """Calibration intercept and slope (Cox 1958), and calibration-in-the-large by an offset; Wald intervals."""
    y, p = _pair(y_true, risk)
    _check.both_classes(y, "a calibration line")
    level = _check.fraction(level)
    code, n_groups = (None, None) if groups is None else _check.codes(groups, len(y))
    x, _ = _logit(p)
    large = calibration_in_the_large(y, p, groups=groups, level=level)
    note = large.note
    line = [None] * 6
    if np.ptp(x) == 0:
        note = joined("every risk is the same, so no slope exists", note)
    elif x[y].min() >= x[~y].max() or x[y].max() <= x[~y].min():
        note = joined("the risks separate the classes perfectly, so no finite slope exists", note)
    else:
        (intercept, slope), covariance = _logistic(
            np.stack([np.ones_like(x), x], axis=1), y, np.zeros_like(x), code, n_groups
        )
        half = quantile_z(level) * np.sqrt(np.diag(covariance))
        line = [slope, slope - half[1], slope + half[1], intercept, intercept - half[0], intercept + half[0]]
    return CalibrationLine(
        *[None if v is None else float(v) for v in line],
        large.estimate,
        large.low,
        large.high,
        float(p.mean()),
        float(y.mean()),
        level,
        len(y),
        n_groups,
        note,
    )


def calibration_in_the_large(y_true, risk, *, groups=None, level: float = 0.95) -> Estimate:
    """Intercept of the logistic model with logit(risk) as offset: 0 ideal, > 0 when risks are too low on average."""
    y, p = _pair(y_true, risk)
    _check.both_classes(y, "calibration-in-the-large")
    code, n_groups = (None, None) if groups is None else _check.codes(groups, len(y))
    x, note = _logit(p)
    if np.sum(p * (1 - p)) < 0.01:  # the fit would know the intercept to ±20 logits
        note = joined("every risk lies so near 0 or 1 that calibration-in-the-large is undetermined", note)
        return Estimate("calibration in the large", None, None, None, level, len(y), "none", n_groups, note)
    (value,), covariance = _logistic(np.ones((len(x), 1)), y, x, code, n_groups)
    half = quantile_z(_check.fraction(level)) * float(np.sqrt(covariance[0, 0]))
    return Estimate(
        "calibration in the large",
        float(value),
        float(value) - half,
        float(value) + half,
        level,
        len(y),
        "wald",
        n_groups,
        note,
    )


@dataclass(frozen=True)
class ExpectedCalibrationError:
    """``ece`` is Σ share of bin · |mean risk − observed share|; ``expected`` is what sampling alone gives were the
    risks perfectly calibrated (ECE is never 0 in a sample), ``maximum`` the largest gap of a bin."""

    ece: float
    expected: float
    maximum: float
    n_bins: int
    strategy: str
    n: int


def ece(y_true, risk, *, n_bins: int = 10, strategy: str = "width") -> ExpectedCalibrationError:
    """Expected calibration error over bins of equal "width" on [0, 1] or of equal numbers of images ("quantile").

    No interval: resampling adds to the error what sampling has added already; compare ``ece`` with ``expected``
    instead.
    """
    y, p = _pair(y_true, risk)
    code, used = _bins(p, n_bins, strategy)
    size = np.bincount(code, minlength=used)
    gap = np.abs(np.bincount(code, p - y, used))
    spread = np.sqrt(2 / np.pi * np.bincount(code, p * (1 - p), used))
    filled = size > 0
    return ExpectedCalibrationError(
        float(gap.sum() / len(y)),
        float(spread.sum() / len(y)),
        float((gap[filled] / size[filled]).max()),
        int(filled.sum()),
        strategy,
        len(y),
    )


def reliability(y_true, risk, *, n_bins: int = 10, strategy: str = "quantile", level: float = 0.95) -> pd.DataFrame:
    """Table of a reliability diagram, deciles by default: bin, n, positives, mean_risk, observed, low, high (Wilson).

    Equal risks stay in one bin, so there may be fewer bins than asked for; empty bins are left out.
    """
    y, p = _pair(y_true, risk)
    code, used = _bins(p, n_bins, strategy)
    rows = []
    for b in range(used):
        inside = code == b
        n, positives = int(inside.sum()), int(y[inside].sum())
        if n:
            low, high = wilson(positives, n, _check.fraction(level))
            rows.append(
                {
                    "bin": len(rows) + 1,
                    "n": n,
                    "positives": positives,
                    "mean_risk": float(p[inside].mean()),
                    "observed": positives / n,
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Spiegelhalter:
    """Spiegelhalter's (1986) z of calibration, and its two-sided p-value; None where the test does not exist."""

    statistic: float | None
    p_value: float | None
    n: int
    note: str = ""


def spiegelhalter(y_true, risk) -> Spiegelhalter:
    """z = Σ (y − p)(1 − 2p) / sqrt(Σ (1 − 2p)² p (1 − p)), standard normal when the risks are calibrated and images
    independent."""
    y, p = _pair(y_true, risk)
    variance = float(np.sum((1 - 2 * p) ** 2 * p * (1 - p)))
    if variance <= 1e-15:
        return Spiegelhalter(
            None, None, len(y), "every risk is 0, ½ or 1, so the statistic has no variance and the test does not exist"
        )
    z = float(np.sum((y - p) * (1 - 2 * p)) / np.sqrt(variance))
    return Spiegelhalter(z, two_sided(z), len(y))


# ---------------------------------------------------------------- recalibration


@dataclass(frozen=True)
class Recalibration:
    """A map of probabilities fitted on validation images; ``apply`` it to test images. ``parameters`` by method:
    intercept and slope ("platt"), risks and values ("isotonic", step points), temperature ("temperature")."""

    method: str
    parameters: dict
    n: int
    note: str = ""

    def apply(self, risk) -> np.ndarray:
        """Recalibrated probabilities, (n,) or with "temperature" also (n, K)."""
        p = np.asarray(risk, dtype=float)
        if self.method == "temperature" and p.ndim == 2:
            return _softmax(np.log(np.clip(p, _EDGE, 1)) / self.parameters["temperature"])
        p = _check.risks(p, len(p))
        if self.method == "isotonic":
            return np.interp(p, self.parameters["risks"], self.parameters["values"])
        x = _logit(p)[0]
        if self.method == "temperature":
            return 1 / (1 + np.exp(-x / self.parameters["temperature"]))
        return 1 / (1 + np.exp(-(self.parameters["intercept"] + self.parameters["slope"] * x)))


METHODS = ("platt", "isotonic", "temperature")


def recalibration(y_validation, risk_validation, *, method: str = "platt") -> Recalibration:
    """Fit a recalibration on validation images only.

    "platt": logistic regression on logit(risk), with Platt's (1999) smoothed targets, so that it exists even for
    perfectly separated classes; "isotonic": monotone steps (scikit-learn), keeps no more distinct risks than it has
    steps; "temperature": one divisor of the logits (Guo et al. 2017), also for ``risk`` (n, K) with ``y`` class
    indices, keeps the ranking.
    """
    _check.one_of(method, METHODS, "method")
    if np.ndim(risk_validation) == 2:
        return _temperature_columns(y_validation, risk_validation, method)
    y, p = _pair(y_validation, risk_validation)
    m, n = _check.both_classes(y, "a recalibration", "y_validation")
    x, note = _logit(p)
    if method == "platt":
        target = np.where(y, (m + 1) / (m + 2), 1 / (n + 2))
        if np.ptp(x) == 0:
            mean = target.mean()
            return Recalibration(
                "platt",
                {"intercept": float(np.log(mean / (1 - mean))), "slope": 0.0},
                len(y),
                joined("every validation risk is the same, so it becomes the prevalence", note),
            )
        (intercept, slope), _ = _logistic(np.stack([np.ones_like(x), x], axis=1), target, np.zeros_like(x), None, None)
        return Recalibration("platt", {"intercept": float(intercept), "slope": float(slope)}, len(y), note)
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        fit = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, y)
        return Recalibration("isotonic", {"risks": fit.X_thresholds_, "values": fit.y_thresholds_}, len(y))
    return _temperature(lambda t: np.mean(np.logaddexp(0, -np.where(y, x, -x) / t)), len(y), note)


def recalibrate(y_validation, risk_validation, risk_test, *, method: str = "platt") -> np.ndarray:
    """``risk_test`` recalibrated by a fit on validation images: ``recalibration(...).apply(risk_test)``."""
    return recalibration(y_validation, risk_validation, method=method).apply(risk_test)


def _temperature_columns(y_validation, risk_validation, method: str) -> Recalibration:
    if method != "temperature":
        raise MstlError(
            f"method {method!r} takes the probability of one class; with one column a class use 'temperature'"
        )
    p = np.asarray(risk_validation, dtype=float)
    y = _check.labels(y_validation, p.shape[1], "y_validation")
    logits = np.log(np.clip(_check.scores(p, len(y), "risk_validation", columns=True), _EDGE, 1))
    from scipy.special import logsumexp

    own = logits[np.arange(len(y)), y]
    return _temperature(lambda t: np.mean(logsumexp(logits / t, axis=1) - own / t), len(y), "")


def _temperature(loss, n: int, note: str) -> Recalibration:
    from scipy.optimize import minimize_scalar

    log_t = minimize_scalar(
        lambda u: loss(np.exp(u)), bounds=(np.log(0.02), np.log(50)), method="bounded", options={"xatol": 1e-8}
    ).x
    if not np.log(0.021) < log_t < np.log(49):
        note = joined(
            note,
            "the temperature lies at the end of its range (0.02 to 50): the validation risks are uninformative, reversed or separate perfectly",
        )
    return Recalibration("temperature", {"temperature": float(np.exp(log_t))}, n, note)


# ---------------------------------------------------------------- pieces


def _pair(y_true, risk) -> tuple[np.ndarray, np.ndarray]:
    y = _check.binary(y_true)
    return y, _check.risks(risk, len(y))


def _logit(p: np.ndarray) -> tuple[np.ndarray, str]:
    drawn = int(np.count_nonzero((p < _EDGE) | (p > 1 - _EDGE)))
    inside = np.clip(p, _EDGE, 1 - _EDGE)
    return np.log(inside / (1 - inside)), f"{drawn} risks at 0 or 1 were drawn in to {_EDGE:g} of it" if drawn else ""


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _logistic(design: np.ndarray, y: np.ndarray, offset: np.ndarray, code, n_groups) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (k,) and covariance (k, k) of a logistic model by Newton's method with halved steps; cluster-robust
    where ``code`` is given. ``y`` may be fractions."""
    y = y.astype(float)
    if code is not None and n_groups < 2:
        raise MstlError("all images belong to one group, so no standard error exists; give at least two groups")
    beta = np.zeros(design.shape[1])

    def loss(b: np.ndarray) -> float:
        eta = design @ b + offset
        return float(np.sum(np.logaddexp(0, eta) - y * eta))

    now = loss(beta)
    for _ in range(100):
        mu = 1 / (1 + np.exp(-np.clip(design @ beta + offset, -700, 700)))
        score = design.T @ (y - mu)
        information = (design * (mu * (1 - mu))[:, None]).T @ design
        if np.linalg.cond(information) > 1e14:
            break
        step = np.linalg.solve(information, score)
        while (trial := loss(beta + step)) > now + 1e-12 * abs(now) and np.abs(step).max() > 1e-12:
            step = step / 2
        beta, now = beta + step, trial
        if np.abs(step).max() < 1e-9 * (1 + np.abs(beta).max()):
            inverse = np.linalg.inv(information)
            if code is None:
                return beta, inverse
            sums = np.stack([np.bincount(code, x * (y - mu), n_groups) for x in design.T])
            return beta, n_groups / (n_groups - 1) * inverse @ (sums @ sums.T) @ inverse
    raise MstlError(
        "the logistic calibration fit does not converge; the risks nearly separate the classes or are nearly constant"
    )


def _bins(p: np.ndarray, n_bins: int, strategy: str) -> tuple[np.ndarray, int]:
    _check.one_of(strategy, ("width", "quantile"), "strategy")
    if n_bins < 1:
        raise MstlError(f"n_bins is {n_bins}; give at least one bin")
    if strategy == "width":
        return np.minimum((p * n_bins).astype(np.int64), n_bins - 1), n_bins
    edges = np.unique(np.quantile(p, np.linspace(0, 1, n_bins + 1)[1:-1]))
    return np.searchsorted(edges, p, "left"), len(edges) + 1
