"""Models over several data sets by their ranks, and p-values adjusted for many tests.

Blocks are data sets, never folds: folds share training images, and their ranks are no independent observations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mstl.errors import MstlError
from mstl.metrics import _check

#: Fewest blocks for which the rank tests are given: below, even a perfect ranking is hardly told from chance.
FEWEST_BLOCKS = 6


@dataclass(frozen=True)
class Friedman:
    """Friedman's χ² (scipy), Iman & Davenport's F, and the average rank of each model (1 best)."""

    statistic: float
    p_value: float
    f_statistic: float | None
    f_p_value: float | None
    average_ranks: dict
    n_blocks: int
    n_models: int
    note: str = ""


@dataclass(frozen=True)
class Nemenyi:
    """Nemenyi's comparison of all models: two differ when their average ranks are further apart than
    ``critical_difference``.

    ``cliques`` are the groups of models that are not told apart: the bars of a critical-difference diagram. ``pairs``:
    a, b, rank_difference, p_value (studentised range), different.
    """

    critical_difference: float
    average_ranks: dict
    cliques: list
    pairs: pd.DataFrame
    alpha: float
    n_blocks: int
    n_models: int


def friedman(table, *, higher_is_better: bool = True) -> Friedman:
    """Do the models differ over data sets? ``table``: rows data sets (blocks), columns models; a DataFrame keeps the
    names.

    Refused below six blocks: with three models on three data sets the critical difference is 1.91 of at most 2.
    """
    from scipy.stats import f, friedmanchisquare

    values, names = _table(table)
    n, k = values.shape
    if k < 3:
        raise MstlError(
            f"Friedman's test compares three models or more, the table has {k}; for two use a signed-rank test over data sets"
        )
    ranks = _ranks(values, higher_is_better)
    averages = dict(zip(names, ranks.mean(axis=0).tolist(), strict=True))
    if (ranks == ranks[:, :1]).all():
        return Friedman(0.0, 1.0, 0.0, 1.0, averages, n, k, "every model has the same score on each data set")
    statistic, p = friedmanchisquare(*values.T)
    rest = n * (k - 1) - statistic
    if rest <= 1e-9:
        return Friedman(
            float(statistic),
            float(p),
            None,
            None,
            averages,
            n,
            k,
            "every data set ranks the models alike, so Iman and Davenport's F is infinite",
        )
    corrected = (n - 1) * statistic / rest
    return Friedman(
        float(statistic), float(p), float(corrected), float(f.sf(corrected, k - 1, (k - 1) * (n - 1))), averages, n, k
    )


def nemenyi(table, *, alpha: float = 0.05, higher_is_better: bool = True) -> Nemenyi:
    """All pairs of models after Friedman: CD = q_α · sqrt(k (k + 1) / (6 N)) (Demšar 2006), N data sets, k models."""
    from scipy.stats import studentized_range

    values, names = _table(table)
    n, k = values.shape
    if k < 2:
        raise MstlError("one model has nothing to be compared with; give a column a model")
    averages = _ranks(values, higher_is_better).mean(axis=0)
    unit = float(np.sqrt(k * (k + 1) / (6 * n)))
    cd = critical_difference(k, n, alpha=alpha)
    pairs = []
    for i in range(k):
        for j in range(i + 1, k):
            gap = float(averages[i] - averages[j])
            p = float(np.clip(studentized_range.sf(abs(gap) / unit * np.sqrt(2), k, np.inf), 0, 1))
            pairs.append(
                {"a": names[i], "b": names[j], "rank_difference": gap, "p_value": p, "different": abs(gap) > cd}
            )
    order = np.argsort(averages, kind="stable")
    return Nemenyi(
        cd,
        {names[i]: float(averages[i]) for i in order},
        _cliques(averages[order], [names[i] for i in order], cd),
        pd.DataFrame(pairs),
        alpha,
        n,
        k,
    )


def critical_difference(n_models: int, n_blocks: int, *, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of average ranks; the q_.05 of two to six models are 1.960, 2.344, 2.569, 2.728,
    2.850."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - _check.fraction(alpha, "alpha"), n_models, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(n_models * (n_models + 1) / (6 * n_blocks)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values (n,), in the given order: they bound the chance of any false claim in the family."""
    p = _family(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> np.ndarray:
    """Benjamini & Hochberg's adjusted p-values (n,; scipy): they bound the expected share of false claims among those
    made."""
    from scipy.stats import false_discovery_control

    return false_discovery_control(_family(p_values))


def _family(p_values: Sequence[float]) -> np.ndarray:
    missing = [i for i, p in enumerate(p_values) if p is None or not np.isfinite(p)]
    if missing:
        raise MstlError(
            f"p-value {missing[0]} of the family does not exist; a test without a p-value cannot be adjusted, leave it out and say so"
        )
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1 or not p.size:
        raise MstlError("the family has no p-values; give one a test")
    if ((p < 0) | (p > 1)).any():
        raise MstlError(f"a p-value is {p[(p < 0) | (p > 1)][0]:g}; p-values lie between 0 and 1")
    return p


def _table(table) -> tuple[np.ndarray, list]:
    names = list(table.columns) if isinstance(table, pd.DataFrame) else None
    values = np.asarray(table, dtype=float)
    if values.ndim != 2:
        raise MstlError(f"the table has shape {values.shape}; give one row a data set and one column a model")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise MstlError(
            f"the table has no number in row {row}, column {column}; rank tests need every model on every data set"
        )
    if len(values) < FEWEST_BLOCKS:
        raise MstlError(
            f"{len(values)} data sets are too few for a rank test (at least {FEWEST_BLOCKS}); report the differences on each data set with "
            "their intervals instead, and do not count folds as data sets"
        )
    return values, names or [f"model {i + 1}" for i in range(values.shape[1])]


def _ranks(values: np.ndarray, higher_is_better: bool) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(-values if higher_is_better else values, axis=1)


def _cliques(ranks: np.ndarray, names: list, cd: float) -> list:
    """Maximal runs of models, best first, whose ends are not further apart than the critical difference; runs of two or
    more."""
    runs, last = [], -1
    for i in range(len(ranks)):
        j = int(np.flatnonzero(ranks <= ranks[i] + cd)[-1])
        if j > i and j > last:
            runs.append(names[i : j + 1])
            last = j
    return runs
