"""Decision curves: is acting on the model better than acting on everyone or on no one, at a given price of a false
alarm?

Net benefit at threshold probability t = TP/n − FP/n · t/(1 − t) (Vickers & Elkin 2006), positive when risk ≥ t. Test
sets are enriched: ``prevalence`` re-weights to a population, and every record names the one that it is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mstl.errors import MstlError
from mstl.metrics import _check, _resample
from mstl.metrics._estimate import Estimate, summarise


@dataclass(frozen=True)
class NetBenefit:
    """Net benefit (T,) at ``thresholds`` of the model with a pointwise band, of treating all, and of treating none
    (0)."""

    thresholds: np.ndarray
    model: np.ndarray
    low: np.ndarray
    high: np.ndarray
    treat_all: np.ndarray
    treat_none: np.ndarray
    prevalence: float
    level: float
    n: int
    n_groups: int | None
    useful: np.ndarray  # (T,) bool: the band's lower end lies above both treating all and treating none


@dataclass(frozen=True)
class NetBenefitDifference:
    """Net benefit of model a minus b (T,) at ``thresholds``, with a pointwise paired band."""

    thresholds: np.ndarray
    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    prevalence: float
    level: float
    n: int
    n_groups: int | None


def net_benefit(
    y_true,
    risk,
    thresholds=None,
    *,
    prevalence: float | None = None,
    groups=None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> NetBenefit:
    """The decision curve of a model with a bootstrap band (groups resampled within strata of their classes).

    ``risk`` (n,) probabilities; ``thresholds`` (T,) strictly between 0 and 1, default 0.01 … 0.99. The prevalence is
    held at its value.
    """
    y, p, thresholds, share = _inputs(y_true, risk, thresholds, prevalence)
    code, n_groups = _check.codes(groups, len(y))
    price = thresholds / (1 - thresholds)
    counts = _resample.ThresholdCounts.of(y, p, code, n_groups, thresholds[::-1])
    value = _benefit(counts.under(np.ones((n_groups, 1))), share, price)[:, 0]
    sampled = _resampled([counts], y, code, n_groups, n_resamples, seed, lambda parts: _benefit(parts[0], share, price))
    low, high = np.quantile(sampled, [(1 - _check.fraction(level)) / 2, (1 + level) / 2], axis=1)
    everyone = share - (1 - share) * price
    useful = low > np.maximum(everyone, 0)
    return NetBenefit(
        thresholds,
        value,
        low,
        high,
        everyone,
        np.zeros_like(thresholds),
        share,
        level,
        len(y),
        None if groups is None else n_groups,
        useful,
    )


def net_benefit_difference(
    y_true,
    risk_a,
    risk_b,
    thresholds=None,
    *,
    prevalence: float | None = None,
    groups=None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> NetBenefitDifference:
    """Net benefit of a minus b on the same images, with a paired pointwise band; arguments as in ``net_benefit``."""
    y, a, thresholds, share = _inputs(y_true, risk_a, thresholds, prevalence)
    b = _check.risks(risk_b, len(y), "risk_b")
    code, n_groups = _check.codes(groups, len(y))
    price = thresholds / (1 - thresholds)
    counts = [_resample.ThresholdCounts.of(y, s, code, n_groups, thresholds[::-1]) for s in (a, b)]

    def difference(parts):
        return _benefit(parts[0], share, price) - _benefit(parts[1], share, price)

    value = difference([c.under(np.ones((n_groups, 1))) for c in counts])[:, 0]
    sampled = _resampled(counts, y, code, n_groups, n_resamples, seed, difference)
    low, high = np.quantile(sampled, [(1 - _check.fraction(level)) / 2, (1 + level) / 2], axis=1)
    return NetBenefitDifference(
        thresholds, value, low, high, share, level, len(y), None if groups is None else n_groups
    )


def per_thousand(y_true, called, *, prevalence: float | None = None, per: int = 1000) -> dict[str, float]:
    """Expected true and false positives and negatives among ``per`` examinations at ``prevalence`` (None: the table's
    own)."""
    y, called = _check.binary(y_true), _check.binary(called, "called")
    share = _share(y, prevalence)
    se, fpr = float(called[y].mean()), float(called[~y].mean())
    return {
        "tp": per * share * se,
        "fn": per * share * (1 - se),
        "fp": per * (1 - share) * fpr,
        "tn": per * (1 - share) * (1 - fpr),
        "prevalence": share,
        "per": float(per),
    }


def false_positives_saved(
    y_true,
    called_a,
    called_b,
    *,
    prevalence: float | None = None,
    per: int = 1000,
    groups=None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """False positives of b minus those of a among ``per`` examinations: how many false alarms a saves, with its paired
    bootstrap interval.

    Fair only at equal sensitivity (the "sensitivity" rule). ``called_a``, ``called_b`` (n,) are 0/1.
    """
    y, a, b = _check.binary(y_true), _check.binary(called_a, "called_a"), _check.binary(called_b, "called_b")
    if not len(a) == len(b) == len(y):
        raise MstlError(
            f"y_true has {len(y)} rows, called_a {len(a)} and called_b {len(b)}; rows must be the same images in the same order"
        )
    share = _share(y, prevalence)
    code, n_groups = _check.codes(groups, len(y))
    scale = per * (1 - share)
    rate = _resample.WeightedMean.of((b.astype(float) - a)[~y], code[~y], n_groups)
    stratum = _resample.strata(y, code, n_groups)
    blocks = [
        rate.under(w)
        for w in _resample.weights(stratum, _check.resamples(n_resamples), np.random.default_rng(seed), len(y))
    ]
    boot = summarise(
        scale * rate.value(), scale * np.concatenate(blocks), _check.fraction(level), identical=np.array_equal(a, b)
    )
    return Estimate(
        f"false positives saved per {per}",
        scale * rate.value(),
        boot.low,
        boot.high,
        level,
        len(y),
        "percentile",
        None if groups is None else n_groups,
        boot.note,
    )


def _inputs(y_true, risk, thresholds, prevalence):
    y = _check.binary(y_true)
    p = _check.risks(risk, len(y))
    t = np.arange(1, 100) / 100 if thresholds is None else np.atleast_1d(np.asarray(thresholds, dtype=float))
    if t.ndim != 1 or not ((t > 0) & (t < 1)).all():
        raise MstlError("thresholds must be probabilities strictly between 0 and 1, for example 0.05 to 0.5")
    return y, p, np.sort(t), _share(y, prevalence)


def _share(y: np.ndarray, prevalence: float | None) -> float:
    _check.both_classes(y, "a net benefit or a count per 1000")
    return float(y.mean()) if prevalence is None else _check.fraction(prevalence, "prevalence")


def _benefit(counts, share: float, price: np.ndarray) -> np.ndarray:
    """Net benefit (T, r), thresholds ascending, from counts at descending ones."""
    tp, fp, positives, negatives = counts
    return share * (tp / positives)[::-1] - (1 - share) * (fp / negatives)[::-1] * price[:, None]


def _resampled(counts, y, code, n_groups, n_resamples: int, seed: int, value) -> np.ndarray:
    stratum = _resample.strata(y, code, n_groups)
    rng = np.random.default_rng(seed)
    blocks = []
    for w in _resample.weights(stratum, _check.resamples(n_resamples), rng, len(y)):
        parts = [c.under(w) for c in counts]
        usable = (parts[0][2] > 0) & (parts[0][3] > 0)
        blocks.append(value([tuple(x[..., usable] for x in part) for part in parts]))
    return np.concatenate(blocks, axis=1)
