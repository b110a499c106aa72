"""Many statistics of many models over the same resamples: the interval of ``paired.chain_difference``, drawn once for all.

Twenty models have 190 differences. As every difference is a difference of two means over chains and folds, it is enough to
resample each *model* once, under the same groups; :class:`Block` does that, and its numbers are those of
``paired.chain_mean`` and ``paired.chain_difference`` to rounding. A statistic may also be a vector: a curve on a grid,
or the rates at several operating points.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from mstl.errors import MstlError
from mstl.metrics import _check, _resample
from mstl.metrics._estimate import joined, summarise
from mstl.metrics.paired import _Design


@dataclass(frozen=True)
class Resampled:
    """A statistic in each cell, ``at`` (…, C) with C = chains × folds, and its mean over folds in each chain, resample by
    resample, ``by_chain`` (…, S, R); None where no resampling exists, and ``note`` says why."""

    at: np.ndarray
    by_chain: np.ndarray | None
    note: str = ""

    def __getitem__(self, index) -> Resampled:
        """One component of a vector."""
        return Resampled(self.at[index], None if self.by_chain is None else self.by_chain[index], self.note)

    def __sub__(self, other: Resampled) -> Resampled:
        by_chain = None if self.by_chain is None or other.by_chain is None else self.by_chain - other.by_chain
        return Resampled(self.at - other.at, by_chain, self.note or other.note)

    def times(self, factor: float) -> Resampled:
        return Resampled(factor * self.at, None if self.by_chain is None else factor * self.by_chain, self.note)


@dataclass(frozen=True)
class Summary:
    """Mean over chains and folds with its interval, as in ``paired.ChainDifference``; what does not exist is None."""

    estimate: float | None
    low: float | None
    high: float | None
    p_value: float | None
    standard_error: float | None
    detectable: float | None
    sd_chains: float | None
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One chain and fold: its rows in the block, their labels, and the number of each row's group among the component's."""

    seed: object
    fold: object
    rows: np.ndarray
    y: np.ndarray
    code: np.ndarray
    n_groups: int


class Block(_Design):
    """Test images of one block, one row an image × chain × fold, the same for all of its models.

    ``y_true`` (n,) of 0 and 1, or class indices where there are ``n_classes`` > 2; ``seed``, ``fold``, ``group`` (n,) or None.
    Raises MstlError where a chain lacks a fold or a fold lacks a class, as ``paired.chain_difference`` does.
    """

    def __init__(self, y_true, *, n_classes: int = 2, seed=None, fold=None, group=None) -> None:
        shape = (len(y_true), n_classes) if n_classes > 2 else len(y_true)
        super().__init__(y_true, {"any": np.zeros(shape)}, seed, fold, group)
        self.places = []
        for (s, f), rows in self.rows.items():
            number, n_groups, _, _ = self.parts[self.component[f]]
            self.places.append(Cell(self.seeds[s], self.folds[f], rows, self.y[rows], number[self.code[rows]], n_groups))

    def each(self, make: Callable[[Cell], object]) -> list:
        """``make(cell)`` for every cell: an object with ``value()`` () or (T,) and ``under(w)`` (r,) or (T, r)."""
        return [make(cell) for cell in self.places]

    def metric(self, name: str, score: np.ndarray, threshold: float | Mapping = 0.5) -> list:
        """A metric of ``paired.chain_difference`` in every cell; ``threshold`` a number or {(seed, fold): number}."""

        def make(cell: Cell):
            cut = threshold[cell.seed, cell.fold] if isinstance(threshold, Mapping) else threshold
            return _resample.prepare(name, cell.y, score[cell.rows], cell.code, cell.n_groups, cut)

        return self.each(make)

    def mean(self, values: np.ndarray) -> list:
        """The mean over images of ``values`` (n,) in every cell."""
        return self.each(lambda cell: _resample.WeightedMean.of(values[cell.rows], cell.code, cell.n_groups))

    def resample(
        self, statistics: Mapping[Hashable, Sequence], n_resamples: int, random_seed: int = 0
    ) -> dict[Hashable, Resampled]:
        """Every statistic under the same resamples of groups."""
        n_resamples = _check.resamples(n_resamples)
        rng = np.random.default_rng(random_seed)
        at = {key: np.stack([np.asarray(one.value(), float) for one in cells], axis=-1) for key, cells in statistics.items()}
        try:
            strata = {
                c: _resample.strata(self.y[members], local, n_groups)
                for c, (_, n_groups, members, local) in self.parts.items()
            }
        except MstlError as reason:  # a class from a single group: the estimate stands, an interval does not exist
            return {key: Resampled(value, None, str(reason)) for key, value in at.items()}
        n_chains, n_folds = len(self.seeds), len(self.folds)
        by_chain = {key: np.zeros((*value.shape[:-1], n_chains, n_resamples)) for key, value in at.items()}
        for c, stratum in strata.items():
            inside = [k for k, (_, f) in enumerate(self.rows) if self.component[f] == c]
            n_rows = max(len(self.places[k].rows) for k in inside)
            done = 0
            for w in _resample.weights(stratum, n_resamples, rng, n_rows):
                block = slice(done, done + w.shape[1])
                for key, cells in statistics.items():
                    for k in inside:
                        by_chain[key][..., k // n_folds, block] += cells[k].under(w) / n_folds
                done += w.shape[1]
        self._after = rng.bit_generator.state
        return {key: Resampled(at[key], by_chain[key]) for key in statistics}

    def summary(
        self,
        of: Resampled,
        *,
        level: float = 0.95,
        bounds: tuple[float, float] = (-np.inf, np.inf),
        identical: bool = False,
        what: str = "the statistic",
    ) -> Summary:
        """Mean and interval of a scalar statistic; raises MstlError where a cell has none."""
        self.require_defined(what, of.at)
        mean, sd = float(of.at.mean()), self.sd_chains(of.at)
        if of.by_chain is None:
            return Summary(mean, None, None, None, None, None, sd, of.note)
        values, images, between = self.with_chains(of.at, of.by_chain, self._later())
        boot = summarise(mean, np.clip(values, *bounds), _check.fraction(level), identical=identical)
        error = None if boot.standard_error is None else float(np.sqrt(images + between))
        detectable = float((boot.high - boot.low) / 2 + norm.ppf(0.8) * error) if error else None
        return Summary(mean, boot.low, boot.high, boot.p_value, error, detectable, sd, joined(self.note, boot.note))

    def band(
        self, of: Resampled, *, level: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0)
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean (T,) of a vector statistic with its pointwise band (T,), (T,); the band is NaN where it does not exist."""
        mean = of.at.mean(axis=-1)
        if of.by_chain is None:
            return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        values = np.clip([self.with_chains(of.at[t], of.by_chain[t], self._later())[0] for t in range(len(mean))], *bounds)
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=1)
        return mean, low, high

    def _later(self) -> np.random.Generator:
        """Random numbers as they stood after the resampling, for every statistic the same."""
        rng = np.random.default_rng()
        rng.bit_generator.state = self._after
        return rng


class Means(Block):
    """Test images with a number each and no classes, one row an image × chain × fold: for means over images, as of Dice.

    ``n`` rows; ``seed``, ``fold``, ``group`` (n,). Groups are resampled in one stratum."""

    both_classes = False

    def __init__(self, n: int, *, seed, fold, group) -> None:
        super().__init__(np.zeros(n, dtype=bool), seed=seed, fold=fold, group=group)


# ---------------------------------------------------------------- statistics that are vectors


@dataclass(frozen=True)
class Labels:
    """Several label metrics of one set of calls, from confusion counts (G, K·K) of each group."""

    names: tuple[str, ...]
    counts: np.ndarray
    n_classes: int

    @classmethod
    def of(cls, names: Sequence[str], cell: Cell, called: np.ndarray, n_classes: int = 2) -> Labels:
        one = _resample.WeightedConfusion.of("accuracy", cell.y, called, cell.code, cell.n_groups, n_classes)
        return cls(tuple(names), one.counts, n_classes)

    def _all(self, counts: np.ndarray) -> np.ndarray:
        square = counts.reshape(*counts.shape[:-1], self.n_classes, self.n_classes)
        return np.stack([_resample.label_metric(name, square) for name in self.names])

    def value(self) -> np.ndarray:
        return self._all(self.counts.sum(axis=0))

    def under(self, w: np.ndarray) -> np.ndarray:
        return self._all(w.T @ self.counts)


#: What :class:`Rates` gives at each operating point, in this order.
RATES = ("sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True)
class Rates:
    """Sensitivity, specificity, PPV and NPV (P, 4) of P sets of calls; the last two at ``prevalence`` (None: the cell's own).

    ``called`` counts (G, 2·P): called positives among the positives, and among the negatives, of each group.
    """

    called: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    prevalence: float | None

    @classmethod
    def of(cls, cell: Cell, calls: np.ndarray, prevalence: float | None) -> Rates:
        """``calls`` (P, n) boolean."""
        count = [np.bincount(cell.code, part, cell.n_groups) for call in calls for part in (call & cell.y, call & ~cell.y)]
        return cls(
            np.stack(count, axis=1),
            np.bincount(cell.code, cell.y, cell.n_groups),
            np.bincount(cell.code, ~cell.y, cell.n_groups),
            prevalence,
        )

    def value(self) -> np.ndarray:
        return self.under(np.ones((len(self.called), 1)))[..., 0]

    def under(self, w: np.ndarray) -> np.ndarray:
        m, n = self.positives @ w, self.negatives @ w
        found, false = np.moveaxis((self.called.T @ w).reshape(-1, 2, w.shape[1]), 1, 0)
        sensitivity, fall_out = _resample._ratio(found, m), _resample._ratio(false, n)
        share = m / (m + n) if self.prevalence is None else self.prevalence
        true, alarm = share * sensitivity, (1 - share) * fall_out
        missed, cleared = share * (1 - sensitivity), (1 - share) * (1 - fall_out)
        return np.stack(
            [sensitivity, 1 - fall_out, _resample._ratio(true, true + alarm), _resample._ratio(cleared, cleared + missed)],
            axis=1,
        )


@dataclass(frozen=True)
class NetBenefits:
    """Net benefit (T,) at ``thresholds`` ascending; ``prevalence`` is held at its value (None: that of the cell's images)."""

    counts: _resample.ThresholdCounts
    thresholds: np.ndarray
    prevalence: float
    n_groups: int

    @classmethod
    def of(cls, cell: Cell, risk: np.ndarray, thresholds: np.ndarray, prevalence: float | None) -> NetBenefits:
        counts = _resample.ThresholdCounts.of(cell.y, risk, cell.code, cell.n_groups, thresholds[::-1])
        return cls(counts, thresholds, float(cell.y.mean()) if prevalence is None else prevalence, cell.n_groups)

    def value(self) -> np.ndarray:
        return self.under(np.ones((self.n_groups, 1)))[:, 0]

    def under(self, w: np.ndarray) -> np.ndarray:
        tp, fp, m, n = self.counts.under(w)
        share = self.prevalence
        price = (self.thresholds / (1 - self.thresholds))[:, None]
        return share * _resample._ratio(tp, m)[::-1] - (1 - share) * _resample._ratio(fp, n)[::-1] * price


#: The grid of both kinds of curve: 0, 0.01 … 1.
GRID = np.linspace(0, 1, 101)
#: Where the parts of :class:`Curves` stand.
ROC, PRECISION, AVERAGE_PRECISION = slice(0, 101), slice(101, 202), 202
_CUTS = 500  # distinct thresholds that the curves follow: five to a step of the grid


@dataclass(frozen=True)
class Curves:
    """ROC curve (sensitivity at false-positive rates ``GRID``), precision–recall curve (precision at recalls ``GRID``) and average
    precision, one after another (203,).

    Of ROC points on one vertical the highest counts, between points the curve is straight. Precision at a recall is that of
    the highest threshold that reaches it. Average precision is exact as a value, over at most 500 thresholds in the resamples.
    """

    counts: _resample.ThresholdCounts
    n_groups: int
    exact: float

    @classmethod
    def of(cls, cell: Cell, y: np.ndarray, score: np.ndarray) -> Curves:
        """``y`` (n,) boolean: the class of one against the rest."""
        exact = _resample.WeightedAveragePrecision.of(y, score, cell.code, cell.n_groups).value()
        return cls(
            _resample.ThresholdCounts.of(y, score, cell.code, cell.n_groups, _resample.cuts(score, _CUTS)), cell.n_groups, exact
        )

    def value(self) -> np.ndarray:
        return np.append(self.under(np.ones((self.n_groups, 1)))[:-1, 0], self.exact)

    def under(self, w: np.ndarray) -> np.ndarray:
        tp, fp, m, n = self.counts.under(w)
        tpr, fpr = _resample._ratio(tp, m), _resample._ratio(fp, n)
        precision = np.divide(tp, tp + fp, out=np.ones_like(tp), where=tp + fp > 0)
        average = np.einsum("tr,tr->r", np.diff(tpr, axis=0, prepend=0.0), precision)
        first = len(tpr) - 1 - _last_at_most(1 - tpr[::-1])[::-1]  # the first cut whose recall is not below each grid value
        return np.concatenate([self._roc(tpr, fpr), np.take_along_axis(precision, first, axis=0), average[None]])

    @staticmethod
    def _roc(tpr: np.ndarray, fpr: np.ndarray) -> np.ndarray:
        start = np.zeros((1, tpr.shape[1]))
        tpr, fpr = np.concatenate([start, tpr]), np.concatenate([start, fpr])
        last = _last_at_most(fpr)
        after = np.minimum(last + 1, len(fpr) - 1)
        x0, x1, y0, y1 = (np.take_along_axis(v, i, axis=0) for v, i in ((fpr, last), (fpr, after), (tpr, last), (tpr, after)))
        share = np.divide(GRID[:, None] - x0, x1 - x0, out=np.zeros_like(x0), where=x1 > x0)
        return y0 + np.clip(share, 0, 1) * (y1 - y0)


def _last_at_most(x: np.ndarray) -> np.ndarray:
    """For each value of ``GRID`` the last row of ``x`` (T, r; each column ascending) that is not above it (101, r)."""
    bins = np.ceil(np.nan_to_num(x) * (len(GRID) - 1) - 1e-9).astype(np.int64).clip(0, len(GRID) - 1)
    last = np.zeros((len(GRID), x.shape[1]), dtype=np.int64)
    np.maximum.at(last, (bins, np.arange(x.shape[1])), np.broadcast_to(np.arange(len(x))[:, None], x.shape))
    return np.maximum.accumulate(last, axis=0)


@dataclass(frozen=True)
class Mean:
    """The mean of several statistics of one cell: the classes of a macro-average."""

    parts: tuple

    def value(self) -> np.ndarray:
        return np.mean([part.value() for part in self.parts], axis=0)

    def under(self, w: np.ndarray) -> np.ndarray:
        return np.mean([part.under(w) for part in self.parts], axis=0)
