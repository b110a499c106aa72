"""The record of one estimated number, and the intervals that many statistics share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

from mstl.metrics import _check


@dataclass(frozen=True)
class Estimate:
    """One number with its interval; ``estimate`` is None where it does not exist, and ``note`` says why."""

    name: str
    estimate: float | None
    low: float | None
    high: float | None
    level: float
    n: int
    method: str
    n_groups: int | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.estimate is None:
            return f"{self.name}: {self.note}"
        text = f"{self.name} {self.estimate:.3f}"
        if self.low is not None:
            text += f" ({100 * self.level:g}% interval {self.low:.3f} to {self.high:.3f}, n = {self.n})"
        return f"{text}; {self.note}" if self.note else text


def joined(*notes: str) -> str:
    return "; ".join(n for n in notes if n)


def quantile_z(level: float) -> float:
    return float(norm.ppf(0.5 + level / 2))


def two_sided(z: float) -> float:
    """Two-sided normal p-value; where it is below the least double it is that double, not a false zero."""
    return float(max(2 * norm.sf(abs(z)), np.nextafter(0, 1)))


def wilson(successes: int, trials: int, level: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (scipy)."""
    interval = binomtest(int(successes), int(trials)).proportion_ci(level, method="wilson")
    return 0.0 if not successes else float(interval.low), 1.0 if successes == trials else float(interval.high)


def wilson_of(name: str, successes: int, trials: int, level: float, absent: str) -> Estimate:
    """A proportion with Wilson's interval; ``absent`` is the note where there is no trial."""
    if not trials:
        return Estimate(name, None, None, None, level, 0, "wilson", note=absent)
    return Estimate(name, successes / trials, *wilson(successes, trials, level), level, int(trials), "wilson")


def mean_of(name: str, values: np.ndarray, groups, level: float, bounds: tuple[float, float] = (0, 1)) -> Estimate:
    """Mean of one number a row with a normal interval whose variance is clustered by ``groups``, kept within ``bounds``."""
    code, n_groups = _check.codes(groups, len(values))
    mean = float(values.mean())
    shown = None if groups is None else n_groups
    if n_groups < 2:
        return Estimate(
            name, mean, None, None, level, len(values), "normal", shown, "one group only, so no interval exists"
        )
    sums = np.bincount(code, values - mean, n_groups)
    half = quantile_z(level) * np.sqrt(n_groups / (n_groups - 1) * np.sum(sums**2)) / len(values)
    low, high = float(max(mean - half, bounds[0])), float(min(mean + half, bounds[1]))
    return Estimate(name, mean, low, high, level, len(values), "normal", shown)


@dataclass(frozen=True)
class Bootstrap:
    """What a set of resampled values says about an estimate."""

    low: float | None
    high: float | None
    standard_error: float | None
    p_value: float | None
    n_undefined: int
    note: str = ""
    constant: bool = False  # every resample gave the estimate itself


#: Share of resamples in which a statistic may be undefined before its interval is withheld.
UNDEFINED_ALLOWED = 0.05


def summarise(
    estimate: float,
    values: np.ndarray,
    level: float,
    *,
    null: float = 0.0,
    acceleration: float | None = None,
    identical: bool = False,
) -> Bootstrap:
    """Interval, standard error and two-sided p-value (against ``null``) from resampled ``values`` (R,), NaN where
    undefined.

    ``acceleration=None`` gives the percentile interval, a number the bias-corrected and accelerated one (Efron 1987).
    The p-value inverts the same interval, so that both always agree, and is never below 1 / (R + 1). Where no resample
    differs from the estimate (an AUC of 1) the bootstrap has no interval; only of ``identical`` models is the interval
    of the difference [0, 0].
    """
    kept = values[np.isfinite(values)]
    undefined = len(values) - len(kept)
    if undefined > UNDEFINED_ALLOWED * len(values):
        return Bootstrap(
            None,
            None,
            None,
            None,
            undefined,
            f"undefined in {undefined} of {len(values)} resamples, so no interval is given",
        )
    error = float(np.std(kept, ddof=1))
    if np.ptp(kept) <= 1e-12 * max(1.0, abs(estimate)):
        p = 1.0 if abs(estimate - null) <= 1e-12 else None
        if identical:
            return Bootstrap(float(estimate), float(estimate), 0.0, p, undefined, "the models are identical here", True)
        return Bootstrap(
            None,
            None,
            None,
            p,
            undefined,
            "no resample differs from the estimate, so the bootstrap has no interval",
            True,
        )
    shift, skew, note = 0.0, 0.0, ""
    if acceleration is not None:
        below = (np.count_nonzero(kept < estimate) + 0.5 * np.count_nonzero(kept == estimate)) / len(kept)
        if 0 < below < 1 and np.isfinite(acceleration):
            shift, skew = float(norm.ppf(below)), float(acceleration)
        else:
            note = "percentile interval, because every resample lies on one side of the estimate"
    tails = norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(kept, norm.cdf(shift + (shift + tails) / (1 - skew * (shift + tails))))
    return Bootstrap(float(low), float(high), error, _p_value(kept, null, shift, skew), undefined, note)


def _p_value(values: np.ndarray, null: float, shift: float, skew: float) -> float:
    """Two-sided p-value that inverts the (bias-corrected, accelerated) percentile interval."""
    n = len(values)
    below, ties = np.count_nonzero(values < null), np.count_nonzero(values == null)
    share = np.clip((below + 0.5 * ties + 0.5) / (n + 1), 0.5 / (n + 1), 1 - 0.5 / (n + 1))
    distance = norm.ppf(share) - shift
    tail = norm.cdf(distance / (1 + skew * distance) - shift) if 1 + skew * distance > 0 else float(distance > 0)
    return float(np.clip(2 * min(tail, 1 - tail), 1 / (n + 1), 1.0))


def acceleration(left_out: np.ndarray, strata: np.ndarray) -> float:
    """Acceleration of the stratified bootstrap from leave-one-group-out values (G,) and the stratum (G,) of each
    group."""
    third = second = 0.0
    for stratum in np.unique(strata):
        values = left_out[strata == stratum]
        values = values[np.isfinite(values)]
        if len(values) < 2:
            continue
        influence = (len(values) - 1) * (values.mean() - values)
        third += np.sum(influence**3) / len(values) ** 3
        second += np.sum(influence**2) / len(values) ** 2
    return float(third / (6 * second**1.5)) if second > 0 else 0.0
