"""Several readers, several modalities, the same cases: Obuchowski & Rockette's analysis, with Hillis's degrees of
freedom.

Modalities are what is compared (arms, or reading with and without AI); readers are people, or seeds standing in for
them; cases are crossed with both. Random readers let the result speak for other readers, fixed ones for these only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import chi2, f, t

from mstl.errors import MstlError
from mstl.metrics import _check, roc


@dataclass(frozen=True)
class Components:
    """Mean squares of the I × J table of reader performances, and averages of their covariances.

    ``variance`` of one performance; ``cov1`` same reader, other modality; ``cov2`` same modality, other reader;
    ``cov3`` both other.
    """

    ms_t: float
    ms_r: float
    ms_tr: float
    variance: float
    cov1: float
    cov2: float
    cov3: float
    n_modalities: int
    n_readers: int


@dataclass(frozen=True)
class ObuchowskiRockette:
    """Test that all modalities are alike (``statistic`` F, or χ²/(I − 1) with infinite df2), and intervals.

    ``pairs``: a, b, difference, low, high, p_value; ``modalities``: modality, estimate, low, high. What does not exist
    is None.
    """

    statistic: float | None
    df1: int
    df2: float | None
    p_value: float | None
    pairs: pd.DataFrame
    modalities: pd.DataFrame
    performances: pd.DataFrame | None
    components: Components
    readers: str
    level: float
    note: str = ""


def obuchowski_rockette(
    y_true,
    scores,
    *,
    groups=None,
    readers: str = "random",
    modality_names: Sequence[str] | None = None,
    level: float = 0.95,
) -> ObuchowskiRockette:
    """Multi-reader multi-case analysis of the AUC, covariances by DeLong (clustered by ``groups``).

    ``y_true`` (n,) of 0 and 1; ``scores`` (I, J, n): I modalities, J readers, n cases, fully crossed. Refused with one
    modality or one reader. A score that a reader gave no case must not be filled in: drop the case for all.
    """
    y = _check.binary(y_true)
    s = np.asarray(scores, dtype=float)
    if s.ndim != 3 or s.shape[2] != len(y):
        raise MstlError(f"scores has shape {s.shape}; give (modalities, readers, cases) with {len(y)} cases")
    i, j = s.shape[:2]
    values, covariance = roc.delong_covariance(y, s.reshape(i * j, -1), groups=groups)
    return from_performances(
        values.reshape(i, j), covariance, readers=readers, modality_names=modality_names, level=level
    )


def from_performances(
    values, covariance, *, readers: str = "random", modality_names: Sequence[str] | None = None, level: float = 0.95
) -> ObuchowskiRockette:
    """The same analysis from any performance: ``values`` (I, J) and the covariance (I·J, I·J) of its errors, modality
    by modality."""
    values, covariance = np.asarray(values, dtype=float), np.asarray(covariance, dtype=float)
    if values.ndim != 2 or covariance.shape != (values.size, values.size):
        raise MstlError(
            f"values has shape {values.shape} and covariance {covariance.shape}; give (I, J) and (I·J, I·J)"
        )
    i, j = values.shape
    if i < 2 or j < 2:
        raise MstlError(
            f"{i} modalities × {j} readers: Obuchowski and Rockette's analysis needs two of each at least; with one reader use DeLong's test"
        )
    c = covariance.reshape(i, j, i, j)
    modality, reader = np.eye(i, dtype=bool), np.eye(j, dtype=bool)

    def average(same_modality: bool, same_reader: bool) -> float:
        mask = (modality == same_modality)[:, None, :, None] & (reader == same_reader)[None, :, None, :]
        return float(c[np.broadcast_to(mask, c.shape)].mean())

    mean, rows, columns = values.mean(), values.mean(axis=1), values.mean(axis=0)
    rest = values - rows[:, None] - columns + mean
    components = Components(
        float(j * np.sum((rows - mean) ** 2) / (i - 1)),
        float(i * np.sum((columns - mean) ** 2) / (j - 1)),
        float(np.sum(rest**2) / ((i - 1) * (j - 1))),
        average(True, True),
        average(False, True),
        average(True, False),
        average(False, False),
        i,
        j,
    )
    within = [
        (float(values[k].var(ddof=1)), float(c[k][:, k][~reader].mean()), float(c[k][:, k][reader].mean()))
        for k in range(i)
    ]
    names = list(modality_names) if modality_names is not None else [f"modality {k + 1}" for k in range(i)]
    if len(names) != i:
        raise MstlError(f"{len(names)} modality names for {i} modalities; give one each")
    performances = pd.DataFrame(
        values, index=pd.Index(names, name="modality"), columns=[f"reader {k + 1}" for k in range(j)]
    )
    return _analyse(components, rows, within, names, performances, readers, level)


def from_components(
    components: Components, *, means: Sequence[float] | None = None, readers: str = "random", level: float = 0.95
) -> ObuchowskiRockette:
    """The test from published components; ``means`` (I,) of the modalities add the pairwise intervals."""
    names = [f"modality {k + 1}" for k in range(components.n_modalities)]
    return _analyse(
        components, None if means is None else np.asarray(means, dtype=float), None, names, None, readers, level
    )


def _analyse(k: Components, means, within, names, performances, readers: str, level: float) -> ObuchowskiRockette:
    _check.one_of(readers, ("random", "fixed"), "readers")
    level = _check.fraction(level)
    i, j = k.n_modalities, k.n_readers
    if readers == "random":
        denominator = k.ms_tr + max(j * (k.cov2 - k.cov3), 0.0)
        df2 = denominator**2 / (k.ms_tr**2 / ((i - 1) * (j - 1))) if k.ms_tr > 1e-20 else np.inf
    else:
        denominator, df2 = k.variance - k.cov1 + (j - 1) * max(k.cov2 - k.cov3, 0.0), np.inf
    modalities = _modalities(k, means, within, names, readers, level)
    if denominator <= 1e-20:
        same = k.ms_t <= 1e-20
        note = (
            "all readers perform alike in all modalities"
            if same
            else "the error term has no variance, so no test exists"
        )
        pairs = _pairs(means, names, None, None, level)
        return ObuchowskiRockette(
            0.0 if same else None,
            i - 1,
            None,
            1.0 if same else None,
            pairs,
            modalities,
            performances,
            k,
            readers,
            level,
            note,
        )
    statistic = k.ms_t / denominator
    p = float(f.sf(statistic, i - 1, df2)) if np.isfinite(df2) else float(chi2.sf((i - 1) * statistic, i - 1))
    pairs = _pairs(means, names, float(np.sqrt(2 / j * denominator)), df2, level)
    return ObuchowskiRockette(
        float(statistic),
        i - 1,
        float(df2) if np.isfinite(df2) else None,
        p,
        pairs,
        modalities,
        performances,
        k,
        readers,
        level,
        "" if np.isfinite(df2) else "the error has infinite degrees of freedom: χ² in place of F",
    )


def _pairs(means, names, error: float | None, df2, level: float) -> pd.DataFrame:
    """Differences of all pairs of modalities; unadjusted p-values (adjust with Holm)."""
    rows = []
    for a in range(len(names) if means is not None else 0):
        for b in range(a + 1, len(names)):
            difference = float(means[a] - means[b])
            row = {"a": names[a], "b": names[b], "difference": difference, "low": None, "high": None, "p_value": None}
            if error:
                half = float(t.ppf(0.5 + level / 2, df2)) * error
                row |= {
                    "low": difference - half,
                    "high": difference + half,
                    "p_value": float(2 * t.sf(abs(difference / error), df2)),
                }
            rows.append(row)
    return pd.DataFrame(rows, columns=["a", "b", "difference", "low", "high", "p_value"])


def _modalities(k: Components, means, within, names, readers: str, level: float) -> pd.DataFrame:
    """Mean performance of each modality with its interval (Hillis 2007: only its own readers and covariances)."""
    rows = []
    for m in range(len(names) if means is not None else 0):
        row = {"modality": names[m], "estimate": float(means[m]), "low": None, "high": None}
        if within is not None:
            ms_r, cov2, variance = within[m]
            if readers == "random":
                spread = ms_r + max(k.n_readers * cov2, 0.0)
                df = spread**2 / (ms_r**2 / (k.n_readers - 1)) if ms_r > 1e-20 else np.inf
            else:
                spread, df = variance + (k.n_readers - 1) * max(cov2, 0.0), np.inf
            if spread > 1e-20:
                half = float(t.ppf(0.5 + level / 2, df)) * np.sqrt(spread / k.n_readers)
                row |= {"low": float(max(means[m] - half, 0)), "high": float(min(means[m] + half, 1))}
        rows.append(row)
    return pd.DataFrame(rows, columns=["modality", "estimate", "low", "high"])
