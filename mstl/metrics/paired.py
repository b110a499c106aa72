"""Two models on the same images: tests and intervals of their difference, and the study's primary estimand over chains
and folds.

Differences are always a − b. ``groups`` (patients) are resampled whole, within strata of the classes that a group
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import norm

from mstl.errors import MstlError
from mstl.metrics import _check, _resample
from mstl.metrics._estimate import Bootstrap, acceleration, joined, quantile_z, summarise, two_sided

# ---------------------------------------------------------------- the primary estimand


@dataclass(frozen=True)
class ChainMean:
    """Mean over chains and folds of a metric computed within each fold, with its interval.

    ``cells`` has a row a chain and fold: seed, fold, n, n_positive, n_groups, estimate. ``sd_chains`` is the standard
    deviation of the ``n_chains`` chain means and ``chain_share`` the share of the squared standard error that chains
    bring, beyond what the sampling of images explains (both None with one chain). ``n_images`` counts distinct test
    images, ``n_rows`` the rows of the table.
    """

    metric: str
    estimate: float
    low: float | None
    high: float | None
    standard_error: float | None
    level: float
    sd_chains: float | None
    chain_share: float | None
    n_images: int
    n_groups: int
    n_chains: int
    n_folds: int
    n_rows: int
    shared_test: bool
    n_resamples: int
    n_undefined: int
    cells: pd.DataFrame
    note: str = ""


@dataclass(frozen=True)
class ChainDifference:
    """Mean over chains and folds of the within-fold difference a − b, with its interval.

    ``detectable`` is the true difference that a study of this size would have shown (two-sided, at 1 − ``level``) with
    80 % power: half the interval's width + z_.8 · standard error, which is (z_{1−α/2} + z_.8) · standard error where
    the interval is normal. ``cells`` has a row a chain and fold: seed, fold, n, n_positive, n_groups, a, b, difference.
    Other fields as in ChainMean.
    """

    metric: str
    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    standard_error: float | None
    detectable: float | None
    level: float
    mean_a: float
    mean_b: float
    sd_chains: float | None
    chain_share: float | None
    n_images: int
    n_groups: int
    n_chains: int
    n_folds: int
    n_rows: int
    shared_test: bool
    n_resamples: int
    n_undefined: int
    cells: pd.DataFrame
    note: str = ""


_SIGNED = ("mcc", "kappa", "kappa_linear", "kappa_quadratic")  # metrics of −1 … 1; the others lie in 0 … 1


def chain_difference(
    y_true,
    score_a,
    score_b,
    *,
    seed=None,
    fold=None,
    group=None,
    metric: str = "auc",
    threshold_a=0.5,
    threshold_b=None,
    level: float = 0.95,
    n_resamples: int = 2000,
    random_seed: int = 0,
) -> ChainDifference:
    """The primary estimand: the mean over chain-seeds and folds of the within-fold difference ``metric``(a) −
    ``metric``(b).

    One row an image × chain × fold: ``y_true`` (n,) of 0 and 1 with scores (n,), or class indices with scores (n, K);
    ``seed``, ``fold``, ``group`` (n,), each None where there is one chain, one fold, one image a group. Scores are
    never pooled over folds or chains. ``metric`` is "auc" (with K columns its mean one-vs-rest), "average_precision",
    "brier", or a label metric ("accuracy", "precision", "recall", "f1", …) of score ≥ threshold, where a threshold is a
    number, an array (n,) that is constant within each chain and fold, or a mapping from (seed, fold); ``threshold_b``
    defaults to ``threshold_a``.

    The interval is the percentile bootstrap. Groups are resampled within each fold, stratified by the classes that a
    group holds, the same groups for all chains and both models. To each resample a normal chain effect is added, whose
    variance is drawn from what the S chain means allow (their variance times (S − 1)/χ² with S − 1 degrees of freedom)
    *less* what the sampling of images alone puts between chains: the generalised interval of a variance component
    (Weerahandi 1993). Resampling chains outright would count the images' part twice, and S of 2 to 5 is too few for
    quantiles of S points. In simulation the 95 % interval covers 0.93 to 0.96 where chains differ, and up to 0.99 where
    they do not, because few chains cannot show that they do not. One chain leaves the variation between chains out, and
    ``note`` says so. Folds are fixed, as are repeated draws of the training part; folds that share groups (draws with
    one published test part) are resampled jointly, by group. ``p_value`` inverts the same bootstrap.
    """
    threshold_b = threshold_a if threshold_b is None else threshold_b
    design = _Design(y_true, {"score_a": score_a, "score_b": score_b}, seed, fold, group)
    a = design.prepared("score_a", metric, threshold_a)
    b = design.prepared("score_b", metric, threshold_b)
    at_a, at_b = np.array([m.value() for m in a]), np.array([m.value() for m in b])
    design.require_defined(metric, at_a + at_b)
    boot, share = design.bootstrap(
        [(a, 1.0), (b, -1.0)],
        at_a - at_b,
        _check.fraction(level),
        n_resamples,
        random_seed,
        (-2.0, 2.0) if metric in _SIGNED else (-1.0, 1.0),
        identical=np.array_equal(score_a, score_b) and np.array_equal(threshold_a, threshold_b),
    )
    error = boot.standard_error
    cells = design.cells.assign(a=at_a, b=at_b, difference=at_a - at_b)
    return ChainDifference(
        metric=metric,
        difference=float(np.mean(at_a - at_b)),
        low=boot.low,
        high=boot.high,
        p_value=boot.p_value,
        standard_error=error,
        detectable=None if not error else float((boot.high - boot.low) / 2 + norm.ppf(0.8) * error),
        level=level,
        mean_a=float(at_a.mean()),
        mean_b=float(at_b.mean()),
        sd_chains=design.sd_chains(at_a - at_b),
        chain_share=share,
        n_resamples=n_resamples,
        n_undefined=boot.n_undefined,
        cells=cells,
        note=joined(design.note, boot.note),
        **design.counts,
    )


def chain_mean(
    y_true,
    score,
    *,
    seed=None,
    fold=None,
    group=None,
    metric: str = "auc",
    threshold=0.5,
    level: float = 0.95,
    n_resamples: int = 2000,
    random_seed: int = 0,
) -> ChainMean:
    """Mean over chain-seeds and folds of a within-fold ``metric`` of one model; rows, metrics and resampling as in
    chain_difference."""
    design = _Design(y_true, {"score": score}, seed, fold, group)
    prepared = design.prepared("score", metric, threshold)
    at = np.array([m.value() for m in prepared])
    design.require_defined(metric, at)
    boot, share = design.bootstrap(
        [(prepared, 1.0)],
        at,
        _check.fraction(level),
        n_resamples,
        random_seed,
        (-1.0, 1.0) if metric in _SIGNED else (0.0, 1.0),
    )
    return ChainMean(
        metric=metric,
        estimate=float(at.mean()),
        low=boot.low,
        high=boot.high,
        standard_error=boot.standard_error,
        level=level,
        sd_chains=design.sd_chains(at),
        chain_share=share,
        n_resamples=n_resamples,
        n_undefined=boot.n_undefined,
        cells=design.cells.assign(estimate=at),
        note=joined(design.note, boot.note),
        **design.counts,
    )


class _Design:
    """Rows sorted into cells (chain × fold), and folds into components that share groups and are resampled together."""

    both_classes = True  # every cell must hold two classes; a mean over images needs none

    def __init__(self, y_true, scores: Mapping[str, object], seed, fold, group):
        first = np.asarray(next(iter(scores.values())))
        wide = first.ndim == 2
        self.y = _check.labels(y_true, first.shape[1]) if wide else _check.binary(y_true)
        n = len(self.y)
        self.scores = {name: _check.scores(s, n, name, columns=wide) for name, s in scores.items()}
        self.code, self.n_groups = _check.codes(group, n, "group")
        self.group_is_image = group is None
        self.seed, self.seeds = self._levels(seed, n, "seed")
        self.fold, self.folds = self._levels(fold, n, "fold")
        if group is None and len(self.seeds) > 1:
            raise MstlError(
                f"{len(self.seeds)} chains see the same images, so the resampling must know which rows are one image; "
                "give group= (the patient, or the image's id)"
            )
        self.rows = self._cells(n)
        self.component = self._components()
        self.parts = {c: self._numbered(c) for c in np.unique(self.component)}
        self.shared_test = len(np.unique(self.component)) < len(self.folds)
        self.note = "" if len(self.seeds) > 1 else "one chain: the interval leaves out the variation between chains"
        if n and len(self.rows) == 1:
            self.note = ""
        self.cells = pd.DataFrame(
            [
                {
                    "seed": self.seeds[s],
                    "fold": self.folds[f],
                    "n": len(rows),
                    "n_positive": int(np.count_nonzero(self.y[rows] == self.y.max())),
                    "n_groups": len(np.unique(self.code[rows])),
                }
                for (s, f), rows in self.rows.items()
            ]
        )
        if wide:
            self.cells = self.cells.drop(columns="n_positive")

    @staticmethod
    def _levels(values, n: int, name: str) -> tuple[np.ndarray, list]:
        if values is None:
            return np.zeros(n, dtype=np.int64), [0]
        values = np.asarray(values)
        if values.shape != (n,):
            raise MstlError(f"{name} has shape {values.shape}, but there are {n} rows; give one {name} a row")
        code, levels = pd.factorize(values, sort=True)
        if (code < 0).any():
            raise MstlError(f"{name} is missing in row {int(np.argmax(code < 0))}; every row needs one")
        return code.astype(np.int64), levels.tolist()

    def _cells(self, n: int) -> dict[tuple[int, int], np.ndarray]:
        cell = self.seed * len(self.folds) + self.fold
        order = np.argsort(cell, kind="stable")
        starts = np.searchsorted(cell[order], np.arange(len(self.seeds) * len(self.folds) + 1))
        rows = {}
        for s, seed in enumerate(self.seeds):
            for f, fold in enumerate(self.folds):
                k = s * len(self.folds) + f
                rows[s, f] = order[starts[k] : starts[k + 1]]
                where = f"seed {seed}, fold {fold}"
                if not len(rows[s, f]):
                    raise MstlError(
                        f"{where} has no predictions, but other chains have that fold; finish that run, or leave the chain out"
                    )
                present = np.unique(self.y[rows[s, f]])
                if self.both_classes and len(present) < 2:
                    raise MstlError(
                        f"{where} holds images of one class only, so no within-fold difference exists; use fewer folds or stratify them"
                    )
        return rows

    def _components(self) -> np.ndarray:
        """Component (F,) of each fold: folds that share a group are one."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if self.group_is_image:
            return np.arange(len(self.folds))
        n_folds = len(self.folds)
        pairs = np.unique(self.fold * self.n_groups + self.code)
        ones = np.ones(len(pairs))
        size = n_folds + self.n_groups
        graph = coo_array((ones, (pairs // self.n_groups, n_folds + pairs % self.n_groups)), shape=(size, size))
        return connected_components(graph, directed=False)[1][:n_folds]

    def _numbered(self, component: int) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
        """Of one component: the number (n_groups,) of each group within it (−1: not there), how many groups it has, its rows,
        and the number of each row's group."""
        members = np.flatnonzero(np.isin(self.fold, np.flatnonzero(self.component == component)))
        groups, local = np.unique(self.code[members], return_inverse=True)
        number = np.full(self.n_groups, -1)
        number[groups] = np.arange(len(groups))
        return number, len(groups), members, local

    @property
    def counts(self) -> dict[str, object]:
        n_images = 0
        for c in np.unique(self.component):
            sizes = [
                np.bincount(self.code[rows], minlength=self.n_groups)
                for (_, f), rows in self.rows.items()
                if self.component[f] == c
            ]
            n_images += int(np.max(sizes, axis=0).sum())
        return {
            "n_images": n_images,
            "n_groups": self.n_groups,
            "n_chains": len(self.seeds),
            "n_folds": len(self.folds),
            "n_rows": len(self.y),
            "shared_test": self.shared_test,
        }

    def sd_chains(self, at: np.ndarray) -> float | None:
        means = at.reshape(len(self.seeds), len(self.folds)).mean(axis=1)
        return float(means.std(ddof=1)) if len(means) > 1 else None

    def require_defined(self, metric: str, at: np.ndarray) -> None:
        for value, (s, f) in zip(at, self.rows, strict=True):
            if not np.isfinite(value):
                raise MstlError(
                    f"{metric} is not defined in seed {self.seeds[s]}, fold {self.folds[f]} (no image is called positive there, or a class "
                    "is missing); choose another threshold or metric"
                )

    def prepared(self, name: str, metric: str, threshold) -> list:
        """The metric of each cell, with groups numbered within the fold's component."""
        threshold = self._threshold(threshold)
        out = []
        for (_, f), rows in self.rows.items():
            number, n_groups, _, _ = self.parts[self.component[f]]
            cut = threshold if np.ndim(threshold) == 0 else threshold[rows]
            out.append(
                _resample.prepare(metric, self.y[rows], self.scores[name][rows], number[self.code[rows]], n_groups, cut)
            )
        return out

    def _threshold(self, threshold):
        if isinstance(threshold, Mapping):
            try:
                table = {
                    (s, f): float(threshold[seed, fold])
                    for s, seed in enumerate(self.seeds)
                    for f, fold in enumerate(self.folds)
                }
            except KeyError as missing:
                raise MstlError(
                    f"threshold has no entry for (seed, fold) {missing.args[0]}; give one for every chain and fold"
                ) from None
            return np.array([table[s, f] for s, f in zip(self.seed, self.fold, strict=True)])
        values = np.asarray(threshold, dtype=float)
        if values.ndim and values.shape != self.y.shape:
            raise MstlError(
                f"threshold has shape {values.shape}; give a number, one a row, or a mapping from (seed, fold)"
            )
        return values

    def bootstrap(
        self,
        parts: list[tuple[list, float]],
        at: np.ndarray,
        level: float,
        n_resamples: int,
        random_seed: int,
        bounds: tuple[float, float],
        identical: bool = False,
    ) -> tuple[Bootstrap, float | None]:
        """Mean over chains and folds of Σ sign · metric, resampled, and the share of its variance that comes from
        chains."""
        n_resamples = _check.resamples(n_resamples)
        rng = np.random.default_rng(random_seed)
        n_chains, n_folds = len(self.seeds), len(self.folds)
        by_chain = np.zeros((n_chains, n_resamples))
        for c in np.unique(self.component):
            _, n_groups, members, local = self.parts[c]
            inside = [k for k, (_, f) in enumerate(self.rows) if self.component[f] == c]
            n_rows = max(len(rows) for (_, f), rows in self.rows.items() if self.component[f] == c)
            stratum = _resample.strata(self.y[members], local, n_groups)
            done = 0
            for w in _resample.weights(stratum, n_resamples, rng, n_rows):
                block = slice(done, done + w.shape[1])
                for k in inside:
                    value = sum(sign * metrics[k].under(w) for metrics, sign in parts)
                    by_chain[k // n_folds, block] += value / n_folds
                done += w.shape[1]
        values, images, between = self.with_chains(at, by_chain, rng)
        boot = summarise(float(at.mean()), np.clip(values, *bounds), level, identical=identical)
        if boot.standard_error is not None:
            boot = replace(boot, standard_error=float(np.sqrt(images + between)))
        share = between / (images + between) if n_chains > 1 and images + between > 0 else None
        return boot, share

    def with_chains(self, at: np.ndarray, by_chain: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
        """The mean over chains of each resample (R,) with the chain effect added (see :func:`chain_difference`), and the
        variances that images and chains contribute. ``at`` (C,) cells, ``by_chain`` (S, R)."""
        values, n_chains = by_chain.mean(axis=0), len(self.seeds)
        images = float(np.nanvar(values, ddof=1)) if np.isfinite(values).any() else 0.0
        of_chains, by_images = self._chain_variance(at, by_chain)
        if of_chains > 0:
            plausible = of_chains * (n_chains - 1) / rng.chisquare(n_chains - 1, size=len(values))
            values = values + np.sqrt(np.maximum(plausible - by_images, 0)) * rng.standard_normal(len(values))
        return values, images, max(of_chains - by_images, 0.0)

    def _chain_variance(self, at: np.ndarray, by_chain: np.ndarray) -> tuple[float, float]:
        """Variance of the mean as the spread of chain means shows it, and the part of that which the sampling of images
        alone explains."""
        n_chains = len(self.seeds)
        kept = by_chain[:, np.isfinite(by_chain).all(axis=0)]
        if n_chains < 2 or kept.shape[1] < 2:
            return 0.0, 0.0
        means = at.reshape(n_chains, -1).mean(axis=1)
        of_means, of_average = kept.var(axis=1, ddof=1), kept.mean(axis=0).var(ddof=1)
        return float(means.var(ddof=1) / n_chains), max(float((of_means.mean() - of_average) / (n_chains - 1)), 0.0)


# ---------------------------------------------------------------- one test set


@dataclass(frozen=True)
class BootstrapDifference:
    """A metric of two models on the same images: ``difference`` = a − b, its interval, standard error and two-sided
    p-value."""

    metric: str
    estimate_a: float
    estimate_b: float
    difference: float
    low: float | None
    high: float | None
    standard_error: float | None
    p_value: float | None
    level: float
    method: str
    n: int
    n_groups: int | None
    n_resamples: int
    n_undefined: int
    note: str = ""


def bootstrap_difference(
    metric: str | Callable,
    y_true,
    score_a,
    score_b,
    *,
    groups=None,
    n_resamples: int = 2000,
    method: str = "bca",
    seed: int = 0,
    level: float = 0.95,
    threshold_a=0.5,
    threshold_b=None,
) -> BootstrapDifference:
    """Paired bootstrap of ``metric``(a) − ``metric``(b) on one test set, whole groups resampled within strata of their
    classes.

    ``metric`` as in chain_difference, or a function ``(y_true, y_score) -> float`` (called once a resample: slow).
    ``y_true`` (n,) with scores (n,), or class indices with scores (n, K); ``method`` "bca" or "percentile". The p-value
    inverts the same interval.
    """
    _check.one_of(method, ("bca", "percentile"), "method")
    level, n_resamples = _check.fraction(level), _check.resamples(n_resamples)
    wide = np.ndim(score_a) == 2
    y = _check.labels(y_true, np.shape(score_a)[1]) if wide else _check.binary(y_true)
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    if len(np.unique(y)) < 2:
        raise MstlError(
            f"y_true holds one class only (n = {len(y)}), so no {name} difference exists; add images of another class"
        )
    a, b = (
        _check.scores(score_a, len(y), "score_a", columns=wide),
        _check.scores(score_b, len(y), "score_b", columns=wide),
    )
    code, n_groups = _check.codes(groups, len(y))
    one = _resample.prepare(metric, y, a, code, n_groups, threshold_a)
    two = _resample.prepare(metric, y, b, code, n_groups, threshold_a if threshold_b is None else threshold_b)
    at_a, at_b = one.value(), two.value()
    for which, value in (("a", at_a), ("b", at_b)):
        if not np.isfinite(value):
            raise MstlError(
                f"{name} is not defined for model {which} (no image is called positive, or a class is missing); choose another threshold or metric"
            )
    stratum = _resample.strata(y, code, n_groups)
    rng = np.random.default_rng(seed)
    values = np.concatenate([one.under(w) - two.under(w) for w in _resample.weights(stratum, n_resamples, rng, len(y))])
    skew = acceleration(one.left_out() - two.left_out(), stratum) if method == "bca" else None
    same = np.array_equal(a, b) and (threshold_b is None or np.array_equal(threshold_a, threshold_b))
    boot = summarise(at_a - at_b, values, level, acceleration=skew, identical=same)
    return BootstrapDifference(
        name,
        at_a,
        at_b,
        at_a - at_b,
        boot.low,
        boot.high,
        boot.standard_error,
        boot.p_value,
        level,
        method,
        len(y),
        None if groups is None else n_groups,
        n_resamples,
        boot.n_undefined,
        boot.note,
    )


@dataclass(frozen=True)
class McNemar:
    """Two models' right and wrong answers on the same images.

    ``only_a``, ``only_b`` count the discordant images (a right and b wrong, and the reverse); ``difference`` is
    accuracy a − accuracy b with Newcombe's (1998) interval. ``p_clustered`` is given with groups, and then is the one
    to report.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p_exact: float
    statistic_corrected: float
    p_corrected: float
    difference: float
    low: float
    high: float
    level: float
    n: int
    n_groups: int | None = None
    statistic_clustered: float | None = None
    p_clustered: float | None = None
    note: str = ""


def mcnemar(correct_a, correct_b, *, groups=None, level: float = 0.95) -> McNemar:
    """McNemar's test of two models, exact (binomial) and with Edwards's continuity correction (χ² of one degree of
    freedom).

    ``correct_a``, ``correct_b`` (n,) are 0/1 or boolean: was the image called right? Restricted to the positives it
    compares sensitivities, to the negatives specificities. With ``groups`` also the clustered statistic (Σ d_g)² / Σ
    d_g², d_g = only_a − only_b in a group (Yang, Sun & Hardin 2010), and the interval becomes that of the clustered
    difference.
    """
    from scipy.stats import binomtest, chi2

    a, b = _check.binary(correct_a, "correct_a"), _check.binary(correct_b, "correct_b")
    if len(a) != len(b):
        raise MstlError(
            f"correct_a has {len(a)} rows and correct_b {len(b)}; both must be the same images in the same order"
        )
    level, n = _check.fraction(level), len(a)
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    neither = n - both - only_a - only_b
    exact = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    statistic = max(abs(only_a - only_b) - 1, 0) ** 2 / (only_a + only_b) if only_a + only_b else 0.0
    low, high = _newcombe_paired(both, only_a, only_b, neither, level)
    note = "" if only_a + only_b else "no image is called right by one model only: the models cannot be told apart"
    clustered = {}
    if groups is not None:
        code, n_groups = _check.codes(groups, n)
        d = np.bincount(code, a.astype(float) - b.astype(float), n_groups)
        square = float((d**2).sum())
        z2 = float(d.sum() ** 2 / square) if square else 0.0
        clustered = {"n_groups": n_groups, "statistic_clustered": z2, "p_clustered": float(chi2.sf(z2, 1))}
        if n_groups < 2:
            raise MstlError("all images belong to one group, so no clustered test exists; give at least two groups")
        size = np.bincount(code, minlength=n_groups)
        deviation = d - (only_a - only_b) / n * size
        half = quantile_z(level) * np.sqrt(n_groups / (n_groups - 1) * (deviation**2).sum()) / n
        if half > 0:
            low, high = max((only_a - only_b) / n - half, -1.0), min((only_a - only_b) / n + half, 1.0)
    return McNemar(
        both,
        only_a,
        only_b,
        neither,
        exact,
        float(statistic),
        float(chi2.sf(statistic, 1)),
        (only_a - only_b) / n,
        float(low),
        float(high),
        level,
        n,
        note=note,
        **clustered,
    )


def _newcombe_paired(both: int, only_a: int, only_b: int, neither: int, level: float) -> tuple[float, float]:
    """Newcombe's (1998) method 10: the interval of a difference of paired proportions from two Wilson intervals and
    φ."""
    from mstl.metrics._estimate import wilson

    n = both + only_a + only_b + neither
    p_a, p_b = (both + only_a) / n, (both + only_b) / n
    (la, ua), (lb, ub) = wilson(both + only_a, n, level), wilson(both + only_b, n, level)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    product = both * neither - only_a * only_b
    phi = (max(product - n / 2, 0) if product > 0 else product) / np.sqrt(margins) if margins else 0.0
    difference = p_a - p_b
    low = difference - np.sqrt(max((p_a - la) ** 2 - 2 * phi * (p_a - la) * (ub - p_b) + (ub - p_b) ** 2, 0))
    high = difference + np.sqrt(max((ua - p_a) ** 2 - 2 * phi * (ua - p_a) * (p_b - lb) + (p_b - lb) ** 2, 0))
    return low, high


# ---------------------------------------------------------------- predictive values


@dataclass(frozen=True)
class PredictiveValueTest:
    """PPV (or NPV) of two models' calls on the same images.

    ``difference`` = a − b with the paired bootstrap's interval and p-value; ``ratio`` = a / b, the relative predictive
    value, with the interval and p-value of its logarithm (Moskowitz & Pepe 2006). What does not exist is None and
    ``note`` says why.
    """

    name: str
    value_a: float | None
    value_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    ratio_p_value: float | None
    level: float
    n: int
    n_groups: int | None
    n_undefined: int
    note: str = ""


def ppv_test(
    y_true, called_a, called_b, *, groups=None, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> PredictiveValueTest:
    """Compare positive predictive values; ``called_a``, ``called_b`` (n,) are 0/1 or boolean: was the image called
    positive?

    Each model divides by its own number of calls, so McNemar does not apply; the images are resampled together for both
    models.
    """
    return _predictive_test("ppv", y_true, called_a, called_b, groups, level, n_resamples, seed)


def npv_test(
    y_true, called_a, called_b, *, groups=None, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> PredictiveValueTest:
    """Compare negative predictive values; arguments as in ``ppv_test``."""
    return _predictive_test("npv", y_true, called_a, called_b, groups, level, n_resamples, seed)


def _predictive_test(
    name: str, y_true, called_a, called_b, groups, level: float, n_resamples: int, seed: int
) -> PredictiveValueTest:
    y, a, b = _check.binary(y_true), _check.binary(called_a, "called_a"), _check.binary(called_b, "called_b")
    for which, values in (("called_a", a), ("called_b", b)):
        if len(values) != len(y):
            raise MstlError(
                f"{which} has {len(values)} rows, but y_true has {len(y)}; rows must be the same images in the same order"
            )
    level = _check.fraction(level)
    code, n_groups = _check.codes(groups, len(y))
    right, call_a, call_b = (y, a, b) if name == "ppv" else (~y, ~a, ~b)
    common = {"level": level, "n": len(y), "n_groups": None if groups is None else n_groups}
    sign = "positive" if name == "ppv" else "negative"
    idle = [which for which, call in (("a", call_a), ("b", call_b)) if not call.any()]
    value_a, value_b = (float(right[call].mean()) if call.any() else None for call in (call_a, call_b))
    if idle:
        return PredictiveValueTest(
            name,
            value_a,
            value_b,
            *[None] * 8,
            n_undefined=0,
            **common,
            note=f"model {' and '.join(idle)} calls no image {sign}, so the {name.upper()} does not exist",
        )
    metric = "precision" if name == "ppv" else "npv"
    boot = bootstrap_difference(
        metric,
        y,
        a.astype(float),
        b.astype(float),
        groups=groups,
        n_resamples=n_resamples,
        method="percentile",
        seed=seed,
        level=level,
    )
    ratio, note = [None] * 4, boot.note
    if value_a and value_b:
        influence = np.zeros(len(y))
        for direction, call in ((1, call_a), (-1, call_b)):
            influence += direction * call * (right / np.count_nonzero(call & right) - 1 / np.count_nonzero(call))
        sums = np.bincount(code, influence, n_groups)
        error = float(np.sqrt(np.sum(sums**2)))
        log = np.log(value_a / value_b)
        half = quantile_z(level) * error
        p = two_sided(log / error) if error > 1e-12 else (1.0 if abs(log) < 1e-12 else None)
        ratio = [value_a / value_b, float(np.exp(log - half)), float(np.exp(log + half)), p]
    else:
        note = joined(note, f"a {name.upper()} of zero has no ratio")
    return PredictiveValueTest(
        name,
        value_a,
        value_b,
        boot.difference,
        boot.low,
        boot.high,
        boot.p_value,
        *ratio,
        n_undefined=boot.n_undefined,
        note=note,
        **common,
    )


# ---------------------------------------------------------------- margins


@dataclass(frozen=True)
class Equivalence:
    """A difference (a − b, higher is better) against a margin fixed beforehand.

    ``p_noninferior``: a is not worse than b by the margin or more; ``p_superior`` (one-sided): a is better;
    ``p_equivalent``: two one-sided tests (TOST). ``low``, ``high`` is the interval of level 1 − 2α that decides;
    ``verdict`` is one sentence.
    """

    difference: float
    low: float
    high: float
    margin: float
    alpha: float
    p_noninferior: float | None
    p_equivalent: float | None
    p_superior: float | None
    noninferior: bool
    equivalent: bool
    verdict: str


def equivalence(
    difference: float, standard_error: float, margin: float, *, alpha: float = 0.05, degrees_of_freedom: float = np.inf
) -> Equivalence:
    """Equivalence and non-inferiority of a to b from a difference and its standard error (of ``delong_test``,
    ``chain_difference``, …).

    ``margin`` > 0 is in the units of the difference and stands in the protocol before the data. Non-inferiority is
    judged at ``alpha`` one-sided, equivalence by two one-sided tests at ``alpha`` each (so by the 1 − 2·alpha
    interval).
    """
    from scipy.stats import t

    if not margin > 0:
        raise MstlError(
            f"margin is {margin}; give a positive number in the units of the difference, for example 0.02 for an AUC"
        )
    if standard_error is None or not np.isfinite(standard_error) or standard_error < 0:
        raise MstlError(
            f"standard_error is {standard_error}; without one neither equivalence nor non-inferiority can be judged"
        )
    alpha = _check.fraction(alpha, "alpha")
    distribution = t(degrees_of_freedom) if np.isfinite(degrees_of_freedom) else norm
    half = float(distribution.ppf(1 - alpha)) * standard_error
    low, high = difference - half, difference + half
    if standard_error > 0:
        lower, upper = (
            distribution.sf((difference + margin) / standard_error),
            distribution.cdf((difference - margin) / standard_error),
        )
        p = float(lower), float(max(lower, upper)), float(distribution.sf(difference / standard_error))
    else:
        p = None, None, None
    noninferior, equivalent = bool(low > -margin), bool(low > -margin and high < margin)
    what = (
        "equivalent within" if equivalent else "not inferior by" if noninferior else "not shown to be non-inferior by"
    )
    verdict = f"a is {what} the margin of {margin:g}: difference {difference:+.3f}, {100 * (1 - 2 * alpha):g}% interval {low:+.3f} to {high:+.3f}"
    return Equivalence(
        float(difference), float(low), float(high), float(margin), alpha, *p, noninferior, equivalent, verdict
    )


# ---------------------------------------------------------------- several models, several folds


@dataclass(frozen=True)
class Test:
    """A test's statistic, its degrees of freedom and p-value; None where it does not exist, and ``note`` says why."""

    name: str
    statistic: float | None
    p_value: float | None
    degrees_of_freedom: float | None
    n: int
    note: str = ""

    __test__ = False  # not a test case of pytest


def cochran_q(correct) -> Test:
    """Cochran's Q (statsmodels): are ``k`` models right on the same share of images? ``correct`` (n, k) of 0 and 1,
    rows independent."""
    from statsmodels.stats.contingency_tables import cochrans_q

    table = np.asarray(correct)
    if table.ndim != 2 or table.shape[1] < 2:
        raise MstlError(
            f"correct has shape {table.shape}; give one row an image and one column a model, at least two models"
        )
    table = np.stack([_check.binary(column, f"correct[:, {k}]") for k, column in enumerate(table.T)], axis=1)
    n, k = table.shape
    if (table == table[:, :1]).all():
        return Test(
            "Cochran's Q", 0.0, 1.0, k - 1, n, "all models are right on the same images: they cannot be told apart"
        )
    result = cochrans_q(table.astype(int))
    return Test("Cochran's Q", float(result.statistic), float(result.pvalue), k - 1, n)


@dataclass(frozen=True)
class ResampledT:
    """Mean difference over folds with the corrected variance; None where it does not exist, and ``note`` says why."""

    difference: float
    low: float | None
    high: float | None
    statistic: float | None
    p_value: float | None
    standard_error: float
    degrees_of_freedom: int
    level: float
    n: int
    note: str = ""


def corrected_resampled_t(differences, *, n_train: float, n_test: float, level: float = 0.95) -> ResampledT:
    """The corrected resampled t-test of Nadeau & Bengio (2003) on J differences (J,) of folds or repeated splits.

    Variance (1/J + n_test/n_train)·s², J − 1 degrees of freedom: folds share training images, which the plain t-test
    forgets.
    """
    from scipy.stats import t

    d = _differences(differences)
    if len(d) < 2:
        raise MstlError(f"{len(d)} difference is not enough; give one a fold, at least two folds")
    if not (n_train > 0 and n_test > 0):
        raise MstlError(
            f"n_train is {n_train} and n_test {n_test}; give the numbers of training and test images of one fold"
        )
    level, df = _check.fraction(level), len(d) - 1
    mean, error = float(d.mean()), float(np.sqrt((1 / len(d) + n_test / n_train) * d.var(ddof=1)))
    if error <= 1e-15:
        same = abs(mean) <= 1e-15
        note = "every fold gives the same difference" + (
            "" if same else ", so the test has no variance and does not exist"
        )
        return ResampledT(
            mean,
            mean if same else None,
            mean if same else None,
            0.0 if same else None,
            1.0 if same else None,
            0.0,
            df,
            level,
            len(d),
            note,
        )
    half = float(t.ppf(0.5 + level / 2, df)) * error
    return ResampledT(
        mean, mean - half, mean + half, mean / error, float(2 * t.sf(abs(mean / error), df)), error, df, level, len(d)
    )


def wilcoxon(differences) -> Test:
    """Two-sided Wilcoxon signed-rank test (scipy) of paired differences of independent cases.

    With fewer than six non-zero differences p cannot reach 0.05 (five give at least 0.0625), so none is given and
    ``note`` says so.
    """
    from scipy.stats import wilcoxon as scipy_wilcoxon

    d = _differences(differences)
    moved = int(np.count_nonzero(d))
    if not moved:
        return Test("Wilcoxon signed rank", 0.0, 1.0, None, len(d), "every difference is zero")
    if moved < 6:
        return Test(
            "Wilcoxon signed rank",
            None,
            None,
            None,
            len(d),
            f"{moved} non-zero differences cannot give a two-sided p below {2 * 0.5**moved:.4g}, so no p-value is given; use more cases",
        )
    result = scipy_wilcoxon(d[d != 0], method="auto")
    return Test("Wilcoxon signed rank", float(result.statistic), float(result.pvalue), None, len(d))


def _differences(values) -> np.ndarray:
    d = np.asarray(values, dtype=float)
    if d.ndim != 1 or not d.size:
        raise MstlError(f"differences has shape {d.shape}; give one number a fold or case")
    if not np.isfinite(d).all():
        raise MstlError(
            f"differences is not a finite number at position {int(np.argmax(~np.isfinite(d)))}; mend or drop it"
        )
    return d
