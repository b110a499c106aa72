"""Transferability: how well will a source model do on a target, judged before the target is trained?

Every measure is a pure function of arrays to one float, larger is better, computed in float64 on the target's
*training* part.

====================  =========================================  ====================================================
measure               reads                                      range, and what it means
====================  =========================================  ====================================================
``leep``, ``nce``     what the source head predicts              −H(Y) (says nothing of the label) to 0
``h_score``           features                                   0 to C − 1
``logme``             features                                   log evidence an image, no fixed range
``gbc``               features                                   −C(C − 1) (classes coincide) to 0 (apart)
``nleep``             features                                   −H(Y) to 0
``transrate``         features                                   nats, no fixed range
``parc``              features                                   −100 to 100
====================  =========================================  ====================================================

Compare candidates within one target only; LEEP and NCE only between source heads with the same number of classes; a
model that was never trained on a source has no source head, so only the feature measures apply. :func:`agreement`
says how well a measure followed the performance that was reached, :func:`reliability_ceiling` how well any measure
could have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mstl.errors import MstlError
from mstl.metrics._check import codes, fraction, one_of, resamples
from mstl.metrics._estimate import Estimate, joined

Floats = NDArray[np.float64]

ENOUGH_CHECKPOINTS = 12  # with a true r of 0.7, Kendall's tau spans −1…1 at n = 3 and 0.12…0.79 at n = 12
COEFFICIENTS = ("Pearson's r", "Kendall's tau", "weighted tau")


# ---------------------------------------------------------------------------------------------- from the source head


def leep(source_probs: ArrayLike, labels: ArrayLike) -> float:
    """Log expected empirical prediction (Nguyen et al., ICML 2020, eq. 2).

    With θ_i(z) the probability that the source head gives image i for source class z,
    P(y, z) = 1/N Σ_i θ_i(z) [y_i = y] and LEEP = 1/N Σ_i log Σ_z P(y_i | z) θ_i(z).

    ``source_probs`` (N, K ≥ 2), every row a distribution (rows that miss 1 by less than 1e-4, as float32 does, are
    rescaled); ``labels`` (N,) of at least two classes. From −H(Y) to 0: P(y | z) is one step of
    expectation–maximisation from P(y), so it never explains the labels worse than their frequencies do. Raises
    :class:`MstlError` for wrong shapes, values that are not finite, negative probabilities, rows that do not sum to
    1, a single class.
    """
    theta = _probabilities(source_probs)
    return _expected_prediction(theta, _classes(labels, len(theta), "source_probs"))


def nce(source_labels: ArrayLike, labels: ArrayLike) -> float:
    """Negative conditional entropy (Tran et al., ICCV 2019): −H(Y | Z) = Σ_{y,z} P(y, z) log P(y | z), in nats.

    ``source_labels`` (N,): the source class that the source head predicts (the argmax of θ); ``labels`` (N,) of at
    least two classes. Pairs that never occur contribute 0. From −H(Y) to 0. Raises :class:`MstlError` for wrong
    shapes, missing values, a single target class.
    """
    z = _column(source_labels, "source_labels")
    y = _classes(labels, len(z), "source_labels")
    z = np.unique(z, return_inverse=True)[1]
    pairs = np.bincount(z * (y.max() + 1) + y, minlength=(z.max() + 1) * (y.max() + 1)).reshape(-1, y.max() + 1)
    source, target = np.nonzero(pairs)
    counts = pairs[source, target]
    return min(0.0, float(counts @ np.log(counts / pairs.sum(axis=1)[source]) / len(y)))


# -------------------------------------------------------------------------------------------------- from the features


def h_score(features: ArrayLike, labels: ArrayLike, *, shrinkage: bool = True) -> float:
    """H-score (Bao et al., ICIP 2019), by default in its shrunken form (Ibrahim, Ponomareva & Mazumder, 2021).

    Plain: tr(cov(f)⁺ cov(E[f | y])). It equals C − 1 for *any* labels once N ≤ D + 1 and the features are in general
    position, so it is only for N ≫ D. Shrunken: tr(Σ_α⁻¹ (1 − α) cov(E[f | y])) with Σ_α = (1 − α) S + α tr(S)/D I,
    the Ledoit–Wolf covariance. S divides by N, the covariance of the class means (one row an image) by N − 1.

    ``features`` (N, D), ``labels`` (N,). From 0 to C − 1 (shrunken: times N/(N − 1)). Unchanged by shifts and
    rotations of the features, the plain form by every invertible linear map. One Cholesky factor (plain: one
    eigendecomposition) of order min(N, D). Raises :class:`MstlError` for wrong shapes, values that are not finite,
    features that never vary, a single class.
    """
    f, y = _checked(features, labels)
    centred = f - f.mean(axis=0)
    if shrinkage:
        n, d = centred.shape
        gram, rows = _gram(centred)
        alpha = _ledoit_wolf(centred, gram)
        if alpha > 0:
            ridge = alpha * np.einsum("ij,ij->", centred, centred) / (n * d)
            means = _indicators(y, scaled=True)  # means meansᵀ replaces every image by the mean of its class
            matrix = (1 - alpha) / n * gram
            matrix[np.diag_indices_from(matrix)] += ridge
            sums = gram @ means if rows else centred.T @ means
            inner = means if rows else sums
            return float((1 - alpha) / (n - 1) * np.sum(inner * _solve(matrix, sums)))
    # The plain form does not see the units of the features: unit variances keep the small directions numerically alive.
    alive = centred[:, _varying(f)]
    projections = _spectrum(alive / alive.std(axis=0), _indicators(y, scaled=True))[1]
    return float(np.sum(projections**2)) * (len(f) / (len(f) - 1) if shrinkage else 1)


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """Logarithm of the maximum evidence (You et al., ICML 2021): the mean over classes of max log p(y_c | F, α, β) / N.

    For each class, its 0/1 indicator y_c ~ N(F w, I/β) with w ~ N(0, I/α), hence y_c ~ N(0, I/β + F Fᵀ/α). In the
    coordinates of F's singular vectors this is a product, 1/β has a closed form for every ratio β/α, and the ratio is
    searched over its whole range and then refined: the global maximum of possibly several, limits included, also
    where N < D. (The published fixed-point code climbs to the maximum nearest to α = β = 1, stops early, and leaves
    out −½ (D − N) log α where N < D.)

    ``features`` (N, D), not centred; ``labels`` (N,). Unchanged by rotations and by one common factor of the
    features, not by shifts. Cost: one Gram matrix and eigendecomposition of order min(N, D); where squaring would
    lose figures, a QR and an SVD of that order as well. Raises :class:`MstlError` for wrong shapes, values that are
    not finite, features that never vary, a single class, and labels that are an exact linear function of the features
    while F has fewer than N independent rows (a label among the features, or exact copies of an image): the evidence
    is then infinite.
    """
    f, y = _checked(features, labels)
    targets = _indicators(y)
    silent = ~f.any(axis=0)
    power, projections, residual = _spectrum(f[:, ~silent] if silent.any() else f, targets)
    if len(power) < len(y) and residual.min() <= 1e-20 * len(y):
        raise MstlError(
            "LogME has no maximum: the labels are an exact linear function of the features, "
            "so look for exact copies among the images or for the label among the features, and drop them"
        )
    evidences = [_maximum_evidence(power, z**2, float(rest), len(y)) for z, rest in zip(projections.T, residual)]
    return float(np.mean(evidences) / len(y))


def gbc(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    covariance: Literal["spherical", "diagonal"] = "spherical",
    components: int | None = None,
    floor: float = 1e-4,
) -> float:
    """Gaussian Bhattacharyya coefficient (Pándy et al., CVPR 2022): −Σ_{a≠b} exp(−D_B(a, b)) over ordered pairs.

    With a Gaussian fitted to each class and Σ = (Σ_a + Σ_b)/2,
    D_B = ⅛ (μ_a − μ_b)ᵀ Σ⁻¹ (μ_a − μ_b) + ½ log(|Σ| / sqrt(|Σ_a| |Σ_b|)). ``"diagonal"`` keeps a variance a feature,
    ``"spherical"`` their mean; the log term of a spherical Gaussian counts all D dimensions.

    ``features`` (N, D), ``labels`` (N,); variances divide by n and are at least ``floor``. ``components`` first keeps
    that many principal components (the paper: 64), which is advisable for deep features: with hundreds of dimensions
    every exp(−D_B) can be 0 in floating point, and candidates tie. From −C(C − 1) to 0. Raises :class:`MstlError` for
    wrong shapes, values that are not finite, features that never vary, a single class, options out of range.
    """
    f, y = _checked(features, labels)
    one_of(covariance, ("spherical", "diagonal"), "covariance")
    _within(floor, "floor", "a variance needs a positive lower bound, for example 1e-4")
    if components is not None:
        f = _principal_components(f, count=components)
    d = f.shape[1]
    means = np.stack([f[y == c].mean(axis=0) for c in range(y.max() + 1)])
    variances = np.stack([f[y == c].var(axis=0) for c in range(y.max() + 1)])
    if covariance == "spherical":
        variances = np.repeat(variances.mean(axis=1, keepdims=True), d, axis=1)
    variances = np.maximum(variances, floor)
    logs = np.log(variances)
    overlap = 0.0
    for a in range(len(means) - 1):
        joint = (variances[a] + variances[a + 1 :]) / 2
        distance = ((means[a] - means[a + 1 :]) ** 2 / joint).sum(axis=1) / 8
        distance += (np.log(joint) - (logs[a] + logs[a + 1 :]) / 2).sum(axis=1) / 2
        overlap += 2 * np.exp(-distance).sum()
    return -float(overlap)


def nleep(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    energy: float | None = 0.8,
    components_per_class: int = 5,
    seed: int = 0,
) -> float:
    """N-LEEP (Li et al., CVPR 2021): LEEP of the responsibilities of a Gaussian mixture in place of a source head.

    Principal components that hold the share ``energy`` of the variance (None: the features as they are) → a mixture
    of ``components_per_class`` · C Gaussians with full covariances (scikit-learn, started by k-means with ``seed``) →
    :func:`leep`.

    ``features`` (N, D), ``labels`` (N,). From −H(Y) to 0. The mixture has many parameters: with a few dozen images a
    class its components settle on single images and the value drifts to 0. Raises :class:`MstlError` for wrong
    shapes, values that are not finite, features that never vary, a single class, options out of range, fewer images
    than mixture components.
    """
    from sklearn.mixture import GaussianMixture

    f, y = _checked(features, labels)
    if energy is not None:
        _within(energy, "energy", "the share of variance to keep lies above 0 and at most at 1, or is None for all features", 1)
    count = _positive(components_per_class, "components_per_class") * (y.max() + 1)
    if count < 2 or count > len(f):
        raise MstlError(
            f"N-LEEP fits {count} mixture components to {len(f)} images: use at least as many images, "
            "or a smaller components_per_class"
        )
    if energy is not None:
        f = _principal_components(f, energy=energy)
    return _expected_prediction(GaussianMixture(count, random_state=seed).fit(f).predict_proba(f), y)


def transrate(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    eps: float = 1e-4,
    weights: Literal["uniform", "frequency"] | ArrayLike = "uniform",
) -> float:
    """TransRate (Huang et al., ICML 2022): R(F, ε) − Σ_c w_c R(F_c, ε), with R(F, ε) = ½ log det(I + Fᵀ F / (n ε)).

    F is centred once, over all images, F_c are its n rows of class c. ``weights`` w_c sum to 1: ``"uniform"`` is the
    paper's plain mean over classes, which a small class biases (its rate is limited by its few images);
    ``"frequency"`` weighs classes by their size, as the mutual information that the measure stands for does; or one
    non-negative number a class, in sorted order of the labels.

    ``features`` (N, D), ``labels`` (N,), ``eps`` > 0 the squared distortion in the features' units. In nats.
    Unchanged by shifts and rotations. Raises :class:`MstlError` for wrong shapes, values that are not finite,
    features that never vary, a single class, options out of range.
    """
    f, y = _checked(features, labels)
    _within(eps, "eps", "the distortion must be positive, for example 1e-4")
    shares = _class_weights(weights, np.bincount(y))
    centred = f - f.mean(axis=0)
    within = sum(share * _coding_rate(centred[y == c], eps) for c, share in enumerate(shares) if share > 0)
    return _coding_rate(centred, eps) - float(within)


def parc(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    components: int | None = None,
    max_samples: int = 2000,
    seed: int = 0,
) -> float:
    """PARC, pairwise annotation representation comparison (Bolya, Mittapalli & Hoffman, NeurIPS 2021).

    100 · Spearman's correlation, over all pairs of images, between 1 − corr of their standardised features and 1 −
    corr of their one-hot labels.

    ``features`` (N, D ≥ 2), ``labels`` (N,). Pairs grow with N², so above ``max_samples`` images a random part of
    that size, stratified by class and fixed by ``seed``, is used; ``components`` first keeps that many principal
    components (the paper: 32). From −100 to 100. Unchanged by a shift or a scale of each feature. An image at the
    mean of every feature counts as uncorrelated with all others. Raises :class:`MstlError` for wrong shapes, values
    that are not finite, features that never vary, fewer than 2 features or 3 images, a single class, options out of
    range.
    """
    from scipy.stats import rankdata

    f, y = _checked(features, labels)
    if components is not None:
        f = _principal_components(f, count=components)
    if f.shape[1] < 2:
        raise MstlError(
            "PARC correlates images over their features and needs at least 2 of them, here is 1: "
            "use another measure"
        )
    limit = _positive(max_samples, "max_samples")
    if limit < max(3, y.max() + 1):
        raise MstlError(
            f"max_samples is {limit}: "
            f"PARC needs at least 3 images and one of each of the {y.max() + 1} classes"
        )
    if len(f) < 3:
        raise MstlError("PARC compares pairs of images and needs at least 3 images, here are 2")
    if len(f) > limit:
        part = stratified_part(y, limit, seed)
        f, y = f[part], y[part]
    f = (f - f.mean(axis=0)) / np.where(_varying(f), f.std(axis=0), np.inf)
    upper = np.triu_indices(len(f), 1)
    distance = rankdata(np.round(1 - _row_correlations(f)[upper], 13))  # rounded, so that equal distances tie
    # One-hot rows are at distance 0 (same class) or at one other, so "differs" ranks as they do. Computing 1 − corr of
    # them instead leaves 1e-16 for some classes, which Spearman would take for an order among pairs of one class.
    differs = (y[:, None] != y)[upper].astype(np.float64)
    if differs.all() or not np.ptp(distance):
        raise MstlError(
            "PARC is undefined: no two images share a class, or all images are equally far apart: "
            "use more images"
        )
    return 100 * float(np.corrcoef(distance, differs)[0, 1])


# ------------------------------------------------------------------------------------------- measure against performance


@dataclass(frozen=True)
class Agreement:
    """How well scores followed performance over ``n`` checkpoints of one target.

    ``n_groups``: independent groups among them (``n`` where none were given). The p-values are two-sided, of no
    association, and None with groups.
    """

    n: int
    n_groups: int
    pearson: Estimate
    kendall: Estimate
    weighted_kendall: Estimate
    pearson_p_value: float | None
    kendall_p_value: float | None

    @property
    def enough(self) -> bool:
        """Whether at least 12 checkpoints are independent; with fewer, nothing follows from the agreement."""
        return self.n_groups >= ENOUGH_CHECKPOINTS

    def row(self) -> dict[str, float | int | None]:
        """One flat row of a table: every estimate as NAME, NAME_low, NAME_high."""
        return _row(self)


@dataclass(frozen=True)
class Ceiling:
    """The best agreement that noise between seeds leaves to a perfect score.

    ``n`` checkpoints measured with ``seeds`` runs each; the ceiling holds for means over ``averaged`` runs.
    ``between`` and ``within``: standard deviations of true performance over checkpoints and of one run around it.
    ``reliability`` (0…1): the share of the variance of those means that is true; ``split_half``: the same share from
    the correlation of half-means (None where it does not exist). ``pearson``, ``kendall``, ``weighted_kendall``: the
    expected agreement of a perfect score; their low and high are the range in which it would be observed at this n.
    """

    n: int
    seeds: int
    averaged: int
    between: float
    within: float
    reliability: Estimate
    split_half: float | None
    pearson: Estimate
    kendall: Estimate
    weighted_kendall: Estimate

    def row(self) -> dict[str, float | int | None]:
        """One flat row of a table: every estimate as NAME, NAME_low, NAME_high."""
        return _row(self)


def agreement(
    scores: ArrayLike,
    performance: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Pearson's r, Kendall's τ_b and weighted τ (Vigna 2015) of a measure with the performance reached, with intervals.

    ``scores``, ``performance`` (n ≥ 3,): one entry a *checkpoint of one target*, larger is better in both. ``groups``
    (n,) names checkpoints that are not independent (runs of one arm, of one backbone): the bootstrap then draws whole
    groups. The weighted τ weighs an exchange of ranks r and s by 1/(r + 1) + 1/(s + 1) from the top, averaged over
    the ranking by scores and by performance, as ``scipy.stats.weightedtau`` does.

    Intervals at ``level``: percentile bootstrap over ``n_resamples`` draws (those where a variable is constant are
    left out). Two situations fool it and are widened. Pearson: never narrower than Fisher's z interval (at n = 12 the
    plain bootstrap covers about 90 %, this 96 %). A perfect ranking, whose every resample is perfect: the far end is
    2 (α/2)^(1/⌊n/2⌋) − 1, since ⌊n/2⌋ disjoint pairs all agreed (n counts groups where given). So three checkpoints in
    perfect order give τ in −0.95…1. p-values (Pearson's t, Kendall's exact or asymptotic) suppose independence and
    are None with ``groups``.

    Raises :class:`MstlError` for lengths that differ, values that are not finite, n < 3, a constant variable, fewer
    than 3 groups.
    """
    from scipy import stats

    x, y = _pairs(scores, performance)
    n, tail = len(x), (1 - fraction(level)) / 2
    member, n_groups = codes(groups, n)
    if n_groups < 3:
        raise MstlError(
            f"groups has {n_groups} distinct entries; "
            "an interval needs at least 3 independent groups of checkpoints"
        )
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples(n_resamples))[:, member]
    values = _correlations(x, y, np.ones((1, n), dtype=np.int64))[:, 0]
    few = f"fewer than {ENOUGH_CHECKPOINTS} independent checkpoints are no evidence" * (n_groups < ENOUGH_CHECKPOINTS)
    found = []
    for kind, (value, sample) in enumerate(zip(values, _correlations(x, y, counts))):
        low, high = np.quantile(sample[np.isfinite(sample)], [tail, 1 - tail])
        low, high, note = min(low, value), max(high, value), few
        if kind == 0:
            fisher = _fisher_interval(value, n_groups, tail)
            low, high = min(low, fisher[0]), max(high, fisher[1])
        elif abs(value) > 1 - 1e-12:
            bound = 2 * tail ** (1 / (n_groups // 2)) - 1
            low, high = (min(low, bound), high) if value > 0 else (low, max(high, -bound))
            note = joined("perfect order, so the bootstrap is replaced by a bound", few)
        numbers = (float(value), float(low), float(high))
        found.append(Estimate(COEFFICIENTS[kind], *numbers, level, n, "bootstrap", n_groups, note))
    independent = groups is None
    return Agreement(
        n,
        n_groups,
        *found,
        pearson_p_value=float(stats.pearsonr(x, y).pvalue) if independent else None,
        kendall_p_value=float(stats.kendalltau(x, y).pvalue) if independent else None,
    )


def reliability_ceiling(
    performance_by_seed: ArrayLike,
    *,
    averaged: int | None = None,
    common_seeds: bool = False,
    level: float = 0.95,
    n_simulations: int = 1000,
    seed: int = 0,
) -> Ceiling:
    """What noise between seeds allows at most: the agreement of a score that knows every checkpoint's true performance.

    Performance is known only as a mean over a few runs, so even a perfect score does not correlate with it perfectly.
    Juodelyte et al. (2024, "On dataset transferability in medical image classification", arXiv 2412.20172) find that
    this caps Kendall's τ at about 0.75 with 4 runs and 0.87 with 16.

    ``performance_by_seed`` (n ≥ 3, R ≥ 2): row = checkpoint, column = seed. A one-way analysis of variance splits the
    spread into ``between`` checkpoints and ``within`` one; the reliability of a mean over m runs is b²/(b² + w²/m),
    with the F interval of Shrout & Fleiss (1979) carried from R to m runs by Spearman and Brown's formula.
    ``common_seeds=True``: column j is the same chain for every checkpoint, so what shifts a whole column is removed
    first. ``averaged`` m: runs that the mean will be taken over (default R): asks what more seeds would bring. The
    ceilings come from simulation: the observed means, shrunk to variance b², stand for the truth, means over m runs
    with Gaussian noise of standard deviation w/√m (equal for all checkpoints) for the measurement. For many Gaussian
    checkpoints they tend to √reliability (Pearson) and 2/π·arcsin √reliability (Kendall). Where no variance between
    checkpoints is found, all ceilings are 0: there is no ranking to predict.

    Raises :class:`MstlError` for a wrong shape, values that are not finite, n < 3, R < 2, options out of range.
    """
    from scipy import stats

    table = _numbers(performance_by_seed, "performance_by_seed")
    if table.ndim != 2 or table.shape[0] < 3 or table.shape[1] < 2:
        raise MstlError(
            f"performance_by_seed has shape {table.shape}: "
            "give one row for each of at least 3 checkpoints and one column for each of at least 2 seeds"
        )
    _finite(table, "performance_by_seed")
    tail = (1 - fraction(level)) / 2
    rng = np.random.default_rng(seed)
    n, runs = table.shape
    m = runs if averaged is None else _positive(averaged, "averaged")
    draws = _positive(n_simulations, "n_simulations")
    if common_seeds:
        table = table - table.mean(axis=0) + table.mean()
    means = table.mean(axis=1)
    free = (n - 1) * (runs - 1) if common_seeds else n * (runs - 1)
    noise = float(((table - means[:, None]) ** 2).sum() / free)
    spread = float(means.var(ddof=1))
    tiny = (1e-12 * np.abs(table).max()) ** 2  # rounding, not noise
    noise, spread = (value if value > tiny else 0.0 for value in (noise, spread))
    between = max(spread - noise / runs, 0.0)

    ratio = runs * spread / noise if noise else math.inf if spread else 0.0
    limits = (ratio, ratio / stats.f.ppf(1 - tail, n - 1, free), ratio * stats.f.ppf(1 - tail, free, n - 1))
    shares = [_spearman_brown(max(0.0, 1 - 1 / float(f)) if f > 0 else 0.0, m / runs) for f in limits]
    half = _split_half(table, rng)

    simulated = np.zeros((3, 1))
    if between > 0:
        truth = (means - means.mean()) * math.sqrt(between / spread)
        measured = truth + rng.normal(scale=math.sqrt(noise / m), size=(draws, n))
        once = np.ones((1, n), dtype=np.int64)
        simulated = np.stack([_correlations(truth, row, once)[:, 0] for row in measured], axis=1)
    note = "" if between > 0 else "no variance between checkpoints beyond noise"
    ceilings = []
    for name, sample in zip(COEFFICIENTS, simulated):
        low, high = np.quantile(sample, [tail, 1 - tail])
        numbers = (float(sample.mean()), float(low), float(high))
        ceilings.append(Estimate(f"ceiling of {name}", *numbers, level, n, "simulation", note=note))
    return Ceiling(
        n,
        seeds=runs,
        averaged=m,
        between=math.sqrt(between),
        within=math.sqrt(noise),
        reliability=Estimate("reliability", *shares, level, n, "analysis of variance, F interval", note=note),
        split_half=None if half is None else _spearman_brown(half, m / (runs // 2)),
        pearson=ceilings[0],
        kendall=ceilings[1],
        weighted_kendall=ceilings[2],
    )


# ------------------------------------------------------------------------------------------------------ how it is done


def _expected_prediction(theta: Floats, y: NDArray[np.int64]) -> float:
    joint = _indicators(y).T @ theta  # (C, K), N times P(y, z)
    mass = joint.sum(axis=0)
    conditional = np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)
    likelihood = np.empty(len(y))
    for c in range(len(conditional)):
        likelihood[y == c] = theta[y == c] @ conditional[c]
    return min(0.0, float(np.log(likelihood).mean()))


def _gram(f: Floats) -> tuple[Floats, bool]:
    """The smaller of F Fᵀ (then True: over rows) and Fᵀ F."""
    rows = f.shape[0] < f.shape[1]
    return (f @ f.T, True) if rows else (f.T @ f, False)


def _solve(matrix: Floats, right: Floats) -> Floats:
    from scipy.linalg import cho_factor, cho_solve

    return cho_solve(cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False), right, check_finite=False)


def _ledoit_wolf(centred: Floats, gram: Floats) -> float:
    """Ledoit & Wolf (2004): the shrinkage towards tr(S)/D I that minimises the expected squared error, in 0…1."""
    n, d = centred.shape
    squares = np.einsum("ij,ij->i", centred, centred)
    size = np.einsum("ij,ij->", gram, gram) / n**2  # ‖S‖², the same from either Gram matrix
    distance = size - (squares.sum() / n) ** 2 / d
    error = (np.dot(squares, squares) / n - size) / n
    if distance <= 1e-14 * size or error <= 1e-10 * distance:  # rounding: S is already tr(S)/D I, or known exactly
        return 0.0
    return float(min(error, distance) / distance)


def _spectrum(f: Floats, targets: Floats) -> tuple[Floats, Floats, Floats]:
    """F by its singular vectors: squared singular values (r,), uᵢᵀ targets (r, C), each target's squared rest (C,).

    Directions below max(N, D)·eps of the largest count as absent. The Gram matrix is fast and squares the condition
    number: where this would cost more than half of the figures, F itself is factored.
    """
    from scipy.linalg import eigh, svd

    n, d = f.shape
    gram, rows = _gram(f)
    power, vectors = eigh(gram, overwrite_a=True, check_finite=False)
    total = np.einsum("ij,ij->j", targets, targets)
    if power[0] > 1e-8 * power[-1]:
        projections = vectors.T @ targets if rows else vectors.T @ (f.T @ targets) / np.sqrt(power)[:, None]
        residual = total - np.einsum("ij,ij->j", projections, projections)
        if n == len(power):
            return power, projections, np.zeros_like(total)
        if (residual > 1e-8 * total).all():
            return power, projections, residual
    if rows:
        triangle, inside, residual = np.linalg.qr(f.T, mode="r").T, targets, np.zeros_like(total)
    else:
        # One factorisation of [F, targets]: its last columns are Qᵀ targets, below them what lies outside the span of F.
        whole = np.linalg.qr(np.hstack([f, targets]), mode="r")
        triangle, inside, residual = whole[:d, :d], whole[:d, d:], (whole[d:, d:] ** 2).sum(axis=0)
    left, singular, _ = svd(triangle, overwrite_a=True, check_finite=False)
    projections = left.T @ inside
    kept = singular > max(n, d) * np.finfo(np.float64).eps * singular[0]
    return singular[kept] ** 2, projections[kept], residual + (projections[~kept] ** 2).sum(axis=0)


def _maximum_evidence(power: Floats, squared: Floats, rest: float, n: int) -> float:
    """max over α, β of log N(y; 0, I/β + F Fᵀ/α), with y's ``squared`` coordinates in the span of F, ``rest`` outside."""
    from scipy.optimize import minimize_scalar

    constant = n * (1 + math.log(2 * math.pi))

    def evidence(log_ratio: float) -> float:  # β/α; the best 1/β for it is the mean of the whitened squares
        widen = 1 + math.exp(log_ratio) * power
        return -0.5 * (n * math.log((np.sum(squared / widen) + rest) / n) + np.log(widen).sum() + constant)

    # Beyond these ends nothing changes any more: the widest direction still below, the narrowest far above the noise.
    sharp = max(1.0, (squared.sum() + rest) / rest) if rest > 0 else 1.0
    grid = np.arange(math.log(1e-8 / power.max()), math.log(1e8 * sharp / power.min()) + 0.5, 0.5)
    values = [evidence(g) for g in grid]
    best = int(np.argmax(values))
    bracket = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    refined = -minimize_scalar(lambda g: -evidence(g), bounds=bracket, method="bounded", options={"xatol": 1e-9}).fun
    limits = [-0.5 * (n * math.log((squared.sum() + rest) / n) + constant)]  # α → ∞: the features say nothing
    if len(power) == n:  # β → ∞: no noise
        limits.append(-0.5 * (n * math.log(np.sum(squared / power) / n) + np.log(power).sum() + constant))
    return max(values[best], refined, *limits)


def _coding_rate(f: Floats, eps: float) -> float:
    from scipy.linalg import cholesky

    matrix = _gram(f)[0] / (len(f) * eps)
    matrix[np.diag_indices_from(matrix)] += 1
    return float(np.log(np.diag(cholesky(matrix, lower=True, overwrite_a=True, check_finite=False))).sum())


def _principal_components(f: Floats, *, count: int | None = None, energy: float | None = None) -> Floats:
    """The first ``count`` principal components, or as many as hold the share ``energy`` of the variance."""
    from scipy.linalg import eigh

    centred = f - f.mean(axis=0)
    gram, rows = _gram(centred)
    power, vectors = eigh(gram, overwrite_a=True, check_finite=False)
    power, vectors = np.maximum(power[::-1], 0), vectors[:, ::-1]
    if energy is not None:
        count = int(np.searchsorted(np.cumsum(power), energy * power.sum() * (1 - 1e-12))) + 1
    kept = min(_positive(count, "components"), len(power))
    return vectors[:, :kept] * np.sqrt(power[:kept]) if rows else centred @ vectors[:, :kept]


def _row_correlations(f: Floats) -> Floats:
    f = f - f.mean(axis=1, keepdims=True)
    length = np.sqrt(np.einsum("ij,ij->i", f, f))
    f /= np.where(length > 1e-12 * math.sqrt(f.shape[1]), length, np.inf)[:, None]
    return f @ f.T


def stratified_part(y: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """``size`` rows, at least one of each class, classes otherwise as frequent as in the whole."""
    order = np.random.default_rng(seed).permutation(len(y))
    place = np.empty(len(y))
    for c in range(y.max() + 1):
        rows = order[y[order] == c]
        place[rows] = np.where(np.arange(len(rows)) == 0, -1.0, (np.arange(len(rows)) + 0.5) / len(rows))
    return np.sort(order[np.argsort(place[order], kind="stable")[:size]])


def _correlations(x: Floats, y: Floats, counts: NDArray[np.int64]) -> Floats:
    """Pearson, Kendall τ_b and weighted τ (3, B) of samples that hold pair i counts[b, i] times; NaN where undefined."""
    sign_x, sign_y = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    kinds = (sign_x * sign_y, sign_x**2, sign_y**2)
    sums = [counts @ kind for kind in kinds]  # each symmetric
    # Copies of a pair are neighbours in the ranking: their weights 1/(rank + 1) sum to a difference of harmonic numbers.
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, counts.sum(axis=1).max() + 1))])
    weighted = np.zeros(len(counts))
    with np.errstate(invalid="ignore", divide="ignore"):
        kendall = _ratio(*((counts * s).sum(axis=1) for s in sums))
        for order in (np.lexsort((-y, -x)), np.lexsort((-x, -y))):
            last = np.cumsum(counts[:, order], axis=1)
            weight = np.empty(counts.shape)
            weight[:, order] = harmonic[last] - harmonic[last - counts[:, order]]
            weighted += _ratio(*((weight * s).sum(axis=1) for s in sums)) / 2
        size = counts.sum(axis=1)
        dx, dy = (v - (counts @ v / size)[:, None] for v in ((x - x.mean()) / x.std(), (y - y.mean()) / y.std()))
        pearson = _ratio(*((counts * d).sum(axis=1) for d in (dx * dy, dx * dx, dy * dy)))
    undefined = ~np.isfinite(kendall)  # one value of x or y only: rounding must not make a Pearson of it
    pearson[undefined] = weighted[undefined] = np.nan
    return np.clip(np.stack([pearson, kendall, weighted]), -1, 1)


def _ratio(product: Floats, first: Floats, second: Floats) -> Floats:
    return product / (np.sqrt(first) * np.sqrt(second))


def _fisher_interval(r: float, n: int, tail: float) -> tuple[float, float]:
    from scipy.stats import norm

    if n <= 3:
        return -1.0, 1.0
    half = float(norm.isf(tail)) / math.sqrt(n - 3)
    z = math.atanh(min(max(r, -1 + 1e-15), 1 - 1e-15))
    return math.tanh(z - half), math.tanh(z + half)


def _spearman_brown(reliability: float, times: float) -> float:
    """The reliability of a mean over ``times`` as many runs."""
    return times * reliability / (1 + (times - 1) * reliability) if reliability > 0 else 0.0


def _split_half(table: Floats, rng: np.random.Generator, splits: int = 200) -> float | None:
    """The mean correlation over random splits of the seeds between two means of ⌊R/2⌋ runs each."""
    half = table.shape[1] // 2
    order = np.argsort(rng.random((splits, table.shape[1])), axis=1)
    a, b = (table[:, part].mean(axis=2) for part in (order[:, :half], order[:, half : 2 * half]))  # (n, splits)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    lengths = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    defined = lengths > 1e-20 * np.abs(table).max() ** 2
    return float(((a * b).sum(axis=0)[defined] / lengths[defined]).mean()) if defined.any() else None


def _row(record: Agreement | Ceiling) -> dict[str, float | int | None]:
    row: dict[str, float | int | None] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Estimate):
            row |= {field.name: value.estimate, f"{field.name}_low": value.low, f"{field.name}_high": value.high}
        else:
            row[field.name] = value
    return row


# ----------------------------------------------------------------------------------------------------- what is refused


def _numbers(values: ArrayLike, name: str) -> Floats:
    try:
        if np.iscomplexobj(values):
            raise TypeError
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise MstlError(
            f"{name} is not an array of real numbers: "
            "give floating point values in rows of equal length"
        ) from None


def _within(value: float, name: str, meaning: str, most: float = np.inf) -> None:
    """A number above zero, at most ``most``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value <= most:
        raise MstlError(f"{name} is {value!r}: {meaning}")


def _finite(values: Floats, name: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        where = np.argwhere(bad)[0].tolist()
        raise MstlError(
            f"{name} has {bad.sum()} values that are not finite, the first at {where}: find where they arise, "
            "or drop those rows"
        )


def _column(values: ArrayLike, name: str) -> NDArray:
    try:
        column = np.asarray(values)
    except ValueError:
        raise MstlError(f"{name} has rows of unequal length: give a single column with one entry a row") from None
    if column.ndim != 1 or not len(column):
        raise MstlError(f"{name} has shape {column.shape}: give a single column with one entry a row")
    if column.dtype.kind in "fO":
        from pandas import isna

        missing = isna(column)
        if missing.any():
            raise MstlError(
                f"{name} has {missing.sum()} missing entries, the first in row {missing.argmax()}: "
                "fill them in or drop those rows"
            )
    return column.astype(str) if column.dtype == object else column


def _classes(labels: ArrayLike, n: int, other: str) -> NDArray[np.int64]:
    """Labels as 0…C−1 in sorted order."""
    column = _column(labels, "labels")
    if len(column) != n:
        raise MstlError(
            f"labels has {len(column)} entries but {other} has {n} rows: give one label an image, "
            "in the same order"
        )
    names, index = np.unique(column, return_inverse=True)
    if len(names) < 2:
        raise MstlError(
            f"labels has a single class ({names[0]}): transferability is defined for two or more, "
            "so choose images of several classes"
        )
    return index.astype(np.int64)


def _checked(features: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    f = _numbers(features, "features")
    if f.ndim != 2 or f.shape[1] < 1:
        raise MstlError(
            f"features has shape {f.shape}: "
            "give one row an image and one column a feature (pool feature maps first)"
        )
    y = _classes(labels, len(f), "features")
    _finite(f, "features")
    largest = np.abs(f).max()
    if largest > 1e100 or 0 < largest < 1e-100:
        raise MstlError(
            f"features reach {largest:.0e} at most in magnitude, where squares leave the range of numbers: "
            "divide all features by one common factor"
        )
    if not _varying(f).any():
        raise MstlError(
            "features are the same in every row: the extractor returns a constant, "
            "so check its weights and its input"
        )
    return f, y


def _varying(f: Floats) -> NDArray[np.bool_]:
    """Which features differ between rows by more than rounding."""
    low, high = f.min(axis=0), f.max(axis=0)
    return high - low > 1e-12 * np.maximum(np.abs(low), np.abs(high))


def _probabilities(values: ArrayLike) -> Floats:
    theta = _numbers(values, "source_probs")
    if theta.ndim != 2 or theta.shape[1] < 2:
        raise MstlError(
            f"source_probs has shape {theta.shape}: "
            "give one row an image and one column for each of at least 2 source classes"
        )
    _finite(theta, "source_probs")
    if theta.size and theta.min() < 0:
        where = np.unravel_index(int(theta.argmin()), theta.shape)
        raise MstlError(
            f"source_probs has the negative probability {theta.min():g} in row {where[0]}: "
            "pass the softmax of the source head, not its logits"
        )
    sums = theta.sum(axis=1)
    half = np.asarray(values).dtype == np.float16
    wrong = np.abs(sums - 1) > (1e-2 if half else 1e-4)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise MstlError(
            f"source_probs sums to {sums[row]:g} in row {row}: every row must sum to 1, "
            "so pass the softmax over all source classes, computed in single precision or better"
        )
    return theta / sums[:, None]


def _pairs(scores: ArrayLike, performance: ArrayLike) -> tuple[Floats, Floats]:
    x, y = _numbers(scores, "scores"), _numbers(performance, "performance")
    for values, name in ((x, "scores"), (y, "performance")):
        if values.ndim != 1:
            raise MstlError(f"{name} has shape {values.shape}: give one number a checkpoint")
        _finite(values, name)
    if len(x) != len(y):
        raise MstlError(
            f"scores has {len(x)} entries and performance {len(y)}: give one of each a checkpoint, "
            "in the same order"
        )
    if len(x) < 3:
        raise MstlError(
            f"agreement over {len(x)} checkpoints is not defined: give at least 3, "
            "and 12 or more to learn anything"
        )
    for values, name in ((x, "scores"), (y, "performance")):
        if np.ptp(values) == 0:
            raise MstlError(
                f"{name} is the same ({values[0]:g}) for every checkpoint, so nothing can agree with it: "
                "use another measure or other checkpoints"
            )
    return x, y


def _class_weights(weights: str | ArrayLike, sizes: NDArray[np.int64]) -> Floats:
    if isinstance(weights, str):
        if weights == "uniform":
            return np.full(len(sizes), 1 / len(sizes))
        if weights == "frequency":
            return sizes / sizes.sum()
        raise MstlError(f"weights is {weights!r}: use 'uniform', 'frequency', or one number a class")
    shares = _numbers(weights, "weights")
    if shares.shape != sizes.shape or not np.isfinite(shares).all() or shares.min() < 0 or shares.sum() <= 0:
        raise MstlError(
            f"weights must be {len(sizes)} non-negative numbers, one a class in sorted order, not all zero: "
            f"got {shares.tolist()}"
        )
    return shares / shares.sum()


def _positive(value: int | None, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise MstlError(f"{name} is {value!r}: give a whole number of at least 1")
    return int(value)


def _indicators(y: NDArray[np.int64], *, scaled: bool = False) -> Floats:
    """(N, C) one-hot labels; ``scaled``: each column divided by the root of its class's size."""
    one_hot = np.zeros((len(y), y.max() + 1))
    one_hot[np.arange(len(y)), y] = 1
    return one_hot / np.sqrt(one_hot.sum(axis=0)) if scaled else one_hot
