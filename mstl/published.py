"""What the printed figures of a paper allow to be recomputed: which counts stand behind a rate, which test behind a p-value.

The example is Hasei et al., Cancers 17:3144 (2025): two detectors of bone tumours on knee radiographs, one started from a
chest-radiograph model (TL), one from scratch (SC), on 743 external radiographs, 268 malignant and 475 normal.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import norm

from mstl.metrics import paired
from mstl.metrics._estimate import quantile_z

POSITIVES, NEGATIVES = 268, 475
#: As printed in the abstract, TL first: AUC with its 95 % interval, then the rates at the three operating points.
AUC = ((0.954, 0.937, 0.970), (0.961, 0.948, 0.973), 0.53)
RATES = {
    "sensitivity ≥ 0.90": ("specificity", 0.903, 0.867, 0.037),
    "specificity ≥ 0.90": ("sensitivity", 0.798, 0.764, 0.0077),
    "Youden": ("sensitivity", 0.914, 0.892, 0.041),
}
PPV = (0.840, 0.793, 0.030)
FALSE_POSITIVES_SAVED = 17


def counts(rate: float, total: int, *, digits: int = 3) -> tuple[int, str]:
    """The number of ``total`` images whose share is printed as ``rate``, and whether the share was "rounded" or "cut" to its digits.

    Where several numbers would be printed alike the nearest is given; where none would, the nearest as "neither".
    """
    near = [k for k in range(total + 1) if abs(k / total - rate) <= 2 * 10**-digits]
    for how, printed in (
        ("rounded", lambda x: round(x + 1e-12, digits)),
        ("cut", lambda x: np.floor(x * 10**digits + 1e-9) / 10**digits),
    ):
        fitting = [k for k in near if abs(printed(k / total) - rate) < 10**-digits / 10]
        if fitting:
            return min(fitting, key=lambda k: abs(k / total - rate)), how
    return round(rate * total), "neither"


def discordant(difference: int, p_printed: float, *, digits: int, total: int) -> list[tuple[int, int]]:
    """All pairs (only a right, only b right) with this ``difference`` whose corrected McNemar p would be printed as ``p_printed``."""
    found = []
    for only_b in range((total - difference) // 2 + 1):
        only_a = only_b + difference
        test = _mcnemar(only_a, only_b, total)
        if abs(round(test.p_corrected, digits) - p_printed) < 10**-digits / 10:
            found.append((only_a, only_b))
    return found


def operating_points() -> pd.DataFrame:
    """The three comparisons of rates: counts, discordant pairs, and the p-values of three tests beside the printed one.

    Columns: rule, compares, n, TL, SC, printed_as, only_TL, only_SC, unique, p_printed, p_corrected, p_exact, p_uncorrected.
    """
    rows = []
    for rule, (compares, tl, sc, p) in RATES.items():
        total = NEGATIVES if compares == "specificity" else POSITIVES
        (a, how_a), (b, how_b) = counts(tl, total), counts(sc, total)
        digits = len(f"{p}".split(".")[1])
        pairs = discordant(a - b, p, digits=digits, total=total)
        only_a, only_b = pairs[0]
        test = _mcnemar(only_a, only_b, total)
        plain = (only_a - only_b) ** 2 / (only_a + only_b)
        rows.append(
            {
                "rule": rule,
                "compares": compares,
                "n": total,
                "TL": a,
                "SC": b,
                "printed_as": how_a if how_a == how_b else f"{how_a}, {how_b}",
                "only_TL": only_a,
                "only_SC": only_b,
                "unique": len(pairs) == 1,
                "p_printed": p,
                "p_corrected": test.p_corrected,
                "p_exact": test.p_exact,
                "p_uncorrected": float(2 * norm.sf(np.sqrt(plain))),
            }
        )
    return pd.DataFrame(rows)


def high_sensitivity() -> dict[str, int]:
    """The counts at sensitivity ≥ 0.90, which the printed specificities, PPVs and the rule determine: tp, fp of each model."""
    tn = [counts(rate, NEGATIVES)[0] for rate in RATES["sensitivity ≥ 0.90"][1:3]]
    found = []
    for true_negatives, ppv in zip(tn, PPV[:2], strict=True):
        fp = NEGATIVES - true_negatives
        allowed = [tp for tp in range(int(np.ceil(0.9 * POSITIVES)), POSITIVES + 1) if round(tp / (tp + fp), 3) == ppv]
        found.append((allowed, fp))
    (tp_a, fp_a), (tp_b, fp_b) = found
    assert len(tp_a) == len(tp_b) == 1
    return {"TL_tp": tp_a[0], "TL_fp": fp_a, "SC_tp": tp_b[0], "SC_fp": fp_b}


def ppv_tests(*, n_resamples: int = 2000, seed: int = 0, step: int = 2) -> pd.DataFrame:
    """The PPV test at sensitivity ≥ 0.90 for every way in which the two models' found tumours may overlap.

    The abstract gives each model's counts, but not how many tumours only one of them found; both found 242, so ``only_one``
    (found by TL alone, and as many by SC alone) may be 0 … 26. Columns: only_one, difference, p_bootstrap, ratio, p_ratio.
    """
    table = high_sensitivity()
    only_a, only_b = discordant(FALSE_POSITIVES_SAVED, RATES["sensitivity ≥ 0.90"][3], digits=3, total=NEGATIVES)[0]
    shared_alarms = table["TL_fp"] - only_b  # SC alone is right where TL alone raises a false alarm
    rows = []
    for one in range(0, POSITIVES - table["TL_tp"] + 1, step):
        y = np.r_[np.ones(POSITIVES, int), np.zeros(NEGATIVES, int)]
        found = table["TL_tp"]
        a = np.r_[
            np.ones(found),
            np.zeros(POSITIVES - found),
            np.ones(shared_alarms),
            np.ones(only_b),
            np.zeros(NEGATIVES - shared_alarms - only_b),
        ]
        b = np.r_[
            np.zeros(one),
            np.ones(found),
            np.zeros(POSITIVES - found - one),
            np.ones(shared_alarms),
            np.zeros(only_b),
            np.ones(only_a),
            np.zeros(NEGATIVES - shared_alarms - only_b - only_a),
        ]
        test = paired.ppv_test(y, a.astype(int), b.astype(int), n_resamples=n_resamples, seed=seed)
        rows.append(
            {
                "only_one": one,
                "difference": test.difference,
                "p_bootstrap": test.p_value,
                "ratio": test.ratio,
                "p_ratio": test.ratio_p_value,
            }
        )
    return pd.DataFrame(rows)


def implied_correlation(*, draws: int = 20_000, seed: int = 0, level: float = 0.95) -> dict[str, float]:
    """The correlation of the two AUCs that the printed DeLong p-value implies, with its range over all unrounded values.

    Each printed figure is drawn uniformly from the values that round to it. ``unpaired`` is the p-value of a test that takes the
    two models as tested on different images. Keys: correlation, low, high, unpaired.
    """
    rng = np.random.default_rng(seed)
    (a, a_low, a_high), (b, b_low, b_high), p = AUC

    def unrounded(value: float, width: float) -> np.ndarray:
        return np.r_[value, value + rng.uniform(-width / 2, width / 2, draws)]

    one, two = (
        (unrounded(high, 1e-3) - unrounded(low, 1e-3)) / (2 * quantile_z(level))
        for low, high in ((a_low, a_high), (b_low, b_high))
    )
    difference = np.abs(unrounded(a, 1e-3) - unrounded(b, 1e-3))
    error = difference / norm.isf(unrounded(p, 1e-2) / 2)
    correlation = (one**2 + two**2 - error**2) / (2 * one * two)
    possible = correlation[1:][np.abs(correlation[1:]) <= 1]
    unpaired = 2 * norm.sf(difference[0] / np.hypot(one[0], two[0]))
    return {
        "correlation": float(correlation[0]),
        "low": float(possible.min()),
        "high": float(possible.max()),
        "unpaired": float(unpaired),
    }


def _mcnemar(only_a: int, only_b: int, total: int):
    """``paired.mcnemar`` from its discordant counts."""
    same = total - only_a - only_b
    a = np.r_[np.ones(only_a), np.zeros(only_b), np.ones(same)].astype(int)
    b = np.r_[np.zeros(only_a), np.ones(only_b), np.ones(same)].astype(int)
    return paired.mcnemar(a, b)
