import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mstl.errors import MstlError
from mstl.metrics import roc


def sample(rng, m=40, n=60, shift=1.0, ties=False):
    y = np.repeat([1, 0], [m, n])
    s = rng.normal(size=m + n) + shift * y
    return y, np.round(s) if ties else s


tables = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=4, max_size=40).filter(
    lambda rows: 2 <= sum(r[0] for r in rows) <= len(rows) - 2
)


@given(tables)
@settings(max_examples=100, deadline=None)
def test_the_auc_with_ties_equals_scikit_learn_and_turns_over_with_the_scores(rows):
    y, s = map(np.array, zip(*rows, strict=True))
    assert roc.auc(y, s) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert roc.auc(y, -s) == pytest.approx(1 - roc.auc(y, s), abs=1e-12)
    assert roc.auc(~y, s) == pytest.approx(1 - roc.auc(y, s), abs=1e-12)


@given(tables)
@settings(max_examples=100, deadline=None)
def test_delong_never_gives_nan_nor_an_interval_without_width_and_ignores_monotone_transforms(rows):
    y, s = map(np.array, zip(*rows, strict=True))
    d = roc.delong(y, s)
    values = [d.auc, d.variance, d.low, d.high, d.low_logit, d.high_logit]
    assert np.isfinite(values).all() and 0 <= d.low < d.high <= 1 and 0 <= d.low_logit < d.high_logit <= 1
    assert roc.delong(y, np.exp(s / 2.0)).variance == pytest.approx(d.variance)
    test = roc.delong_test(y, s, np.exp(s / 2.0))
    assert (test.statistic, test.p_value, test.difference, test.low, test.high) == (0.0, 1.0, 0.0, 0.0, 0.0)


def test_delong_equals_the_definition_by_pairs():
    y, s = sample(np.random.default_rng(0), ties=True)
    wins = (s[y == 1][:, None] > s[y == 0]) + 0.5 * (s[y == 1][:, None] == s[y == 0])
    d = roc.delong(y, s)
    assert d.auc == pytest.approx(wins.mean())
    assert d.variance == pytest.approx(wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 60)


def test_the_mean_delong_variance_is_the_variance_of_the_auc_and_its_intervals_cover():
    rng = np.random.default_rng(1)
    results = [roc.delong(*sample(rng)) for _ in range(1500)]
    areas = np.array([d.auc for d in results])
    assert np.mean([d.variance for d in results]) == pytest.approx(areas.var(), rel=0.12)
    truth = 0.76025  # Φ(1 / √2)
    assert 0.925 <= np.mean([d.low <= truth <= d.high for d in results]) <= 0.965
    assert 0.935 <= np.mean([d.low_logit <= truth <= d.high_logit for d in results]) <= 0.97


def test_the_paired_test_keeps_its_level_and_its_interval_covers():
    rng = np.random.default_rng(2)
    p, covered = [], 0
    for _ in range(1000):
        y = np.repeat([1, 0], [40, 60])
        base = rng.normal(size=100) + y
        t = roc.delong_test(y, base + rng.normal(size=100), base + rng.normal(size=100))
        p.append(t.p_value)
        covered += t.low <= 0 <= t.high
    assert 0.03 <= np.mean(np.array(p) < 0.05) <= 0.072
    assert covered / 1000 == pytest.approx(1 - np.mean(np.array(p) < 0.05), abs=0.002)


def patients(rng, n=60):
    """Patients of 1–3 images of one class each, with a strong effect of the patient on both scores."""
    size = rng.integers(1, 4, n)
    group = np.repeat(np.arange(n), size)
    y = np.repeat(rng.permutation(n) < 24, size)
    return y, y + rng.normal(size=n)[group] + 0.4 * rng.normal(size=len(y)), group


def test_the_clustered_variance_is_right_where_the_plain_one_is_too_small():
    rng = np.random.default_rng(3)
    areas, plain, clustered = [], [], []
    for _ in range(1200):
        y, s, group = patients(rng)
        d = roc.delong(y, s, groups=group)
        areas.append(d.auc)
        clustered.append(d.variance)
        plain.append(roc.delong(y, s).variance)
    truth = np.var(areas)
    assert np.mean(plain) / truth < 0.75
    assert 0.85 <= np.mean(clustered) / truth <= 1.2


def test_the_clustered_variance_of_single_images_is_nearly_the_plain_one():
    y, s = sample(np.random.default_rng(4), 200, 300)
    assert roc.delong(y, s, groups=np.arange(500)).variance == pytest.approx(roc.delong(y, s).variance, rel=0.01)


@pytest.mark.parametrize("area", [0, 1])
def test_an_auc_of_0_or_1_has_variance_zero_and_an_interval_that_says_how_it_was_made(area):
    y = np.repeat([0, 1], [20, 15])
    s = np.arange(35.0) * (1 if area else -1)
    d = roc.delong(y, s)
    assert d.auc == area and d.variance == 0 and d.method == "newcombe" and "Newcombe" in d.note
    assert (d.low < 1 and d.high == 1) if area else (d.low == 0 and d.high > 0)


def test_newcombes_interval_at_auc_1_covers_near_its_level():
    rng = np.random.default_rng(5)
    truth, covered, perfect = 0.9831, 0, 0  # Φ(3 / √2)
    for _ in range(600):
        d = roc.delong(*sample(rng, 15, 15, 3.0))
        perfect += d.method == "newcombe"
        covered += d.low_logit <= truth <= d.high_logit
    assert perfect > 100
    assert covered / 600 > 0.9


def test_two_models_that_separate_perfectly_do_not_differ():
    y = np.repeat([0, 1], 10)
    t = roc.delong_test(y, np.arange(20.0), np.r_[np.arange(10.0)[::-1], 10 + np.arange(10.0)[::-1]])
    assert (t.statistic, t.p_value) == (0.0, 1.0)
    assert t.low is None and t.standard_error is None and "interval does not exist" in t.note


def test_a_difference_without_variance_has_no_test_and_says_so():
    y = np.repeat([0, 1], 10)
    t = roc.delong_test(y, np.arange(20.0), np.zeros(20))
    assert t.difference == 0.5 and t.statistic is None and t.p_value is None and "not exist" in t.note


def test_one_class_is_an_error_that_says_what_to_add():
    with pytest.raises(MstlError, match="only positive images"):
        roc.auc([1, 1, 1], [0.1, 0.2, 0.3])


def test_a_score_that_is_not_a_number_is_named_with_its_row():
    with pytest.raises(MstlError, match="row 1"):
        roc.auc([0, 1], [0.3, np.nan])


def test_the_unpaired_test_adds_the_variances_of_two_samples():
    rng = np.random.default_rng(6)
    (ya, a), (yb, b) = sample(rng), sample(rng, 30, 50, 0.5)
    t = roc.delong_test((ya, yb), a, b, paired=False)
    assert t.variance == pytest.approx(roc.delong(ya, a).variance + roc.delong(yb, b).variance)
    assert t.difference == pytest.approx(roc.auc(ya, a) - roc.auc(yb, b))


def test_the_covariance_of_several_models_holds_the_variance_of_each_difference():
    rng = np.random.default_rng(7)
    y, s = sample(rng)
    several = np.stack([s, s + rng.normal(size=100), s + 2 * rng.normal(size=100)])
    _, covariance = roc.delong_covariance(y, several)
    expected = roc.delong_test(y, several[0], several[2]).variance
    assert covariance[0, 0] + covariance[2, 2] - 2 * covariance[0, 2] == pytest.approx(expected)


# ---------------------------------------------------------------- curves, points, parts, classes


def test_the_roc_curve_has_the_auc_as_its_area_and_its_band_holds_the_curve():
    y, s = sample(np.random.default_rng(8), ties=True)
    curve = roc.roc_curve(y, s, n_resamples=300)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(curve.auc) == pytest.approx(roc.auc(y, s))
    at = np.interp(curve.grid, curve.fpr, curve.tpr)
    assert np.mean((curve.band_low <= at + 1e-9) & (at <= curve.band_high + 1e-9)) > 0.95
    assert (curve.tpr[0], curve.fpr[0], curve.thresholds[0]) == (0, 0, np.inf)


def test_the_band_of_the_roc_curve_covers_the_true_sensitivity_near_its_level():
    from scipy.stats import norm

    rng = np.random.default_rng(9)
    grid = np.array([0.1, 0.3, 0.5])
    truth = norm.sf(norm.isf(grid) - 1)
    inside = [
        (c.band_low <= truth) & (truth <= c.band_high)
        for c in (roc.roc_curve(*sample(rng, 60, 60), n_resamples=200, seed=k, grid=grid) for k in range(150))
    ]
    assert (np.abs(np.mean(inside, axis=0) - 0.945) < 0.045).all()


def test_average_precision_of_the_curve_equals_scikit_learn_and_prevalence_moves_precision_by_bayes():
    from sklearn.metrics import average_precision_score

    y, s = sample(np.random.default_rng(10), ties=True)
    curve = roc.precision_recall_curve(y, s, n_resamples=200)
    assert curve.average_precision == pytest.approx(average_precision_score(y, s))
    rare = roc.precision_recall_curve(y, s, prevalence=0.05, n_resamples=200)
    inner = (curve.precision > 0) & (curve.precision < 1)
    odds, rare_odds = (c.precision[inner] / (1 - c.precision[inner]) for c in (curve, rare))
    assert rare_odds / odds == pytest.approx(0.05 / 0.95 * 60 / 40)


@given(tables, st.sampled_from(roc.RULES), st.sampled_from([0.5, 0.8, 0.9]))
@settings(max_examples=120, deadline=None)
def test_each_rule_is_the_best_of_all_thresholds(rows, rule, at):
    y, s = map(np.array, zip(*rows, strict=True))
    point = roc.operating_point(y, s, rule=rule, at=at)
    cuts = np.append(np.unique(s), s.max() + 1)
    se = np.array([(s[y] >= c).mean() for c in cuts])
    sp = np.array([(s[~y] < c).mean() for c in cuts])
    if rule == "youden":
        assert point.sensitivity.estimate + point.specificity.estimate == pytest.approx((se + sp).max())
    elif rule == "sensitivity":
        assert point.sensitivity.estimate >= at - 1e-9
        assert point.specificity.estimate == pytest.approx(sp[se >= at - 1e-9].max())
    else:
        assert point.specificity.estimate >= at - 1e-9
        assert point.sensitivity.estimate == pytest.approx(se[sp >= at - 1e-9].max())
    for rate in (point.sensitivity, point.specificity, point.ppv, point.npv):
        assert rate.note if rate.estimate is None else rate.low <= rate.estimate <= rate.high


def test_published_rates_come_back_from_published_counts():
    y = np.repeat([1, 0], [268, 475])
    called = np.r_[np.repeat([1, 0], [242, 26]), np.repeat([1, 0], [46, 429])]
    point = roc.at_threshold(y, called, 0.5)
    assert round(point.specificity.estimate, 3) == 0.903 and round(point.ppv.estimate, 3) == 0.840
    assert (point.tp, point.fp, point.fn, point.tn) == (242, 46, 26, 429)


def test_predictive_values_at_a_prevalence_follow_bayes_and_their_interval_covers():
    rng = np.random.default_rng(11)
    truth = 0.9 * 0.05 / (0.9 * 0.05 + 0.2 * 0.95)
    y = np.repeat([1, 0], [100, 100])
    inside = 0
    for _ in range(300):
        called = np.r_[rng.random(100) < 0.9, rng.random(100) < 0.2]
        ppv = roc.at_threshold(y, called, 0.5, prevalence=0.05).ppv
        inside += ppv.low <= truth <= ppv.high
    assert 0.92 <= inside / 300 <= 0.985
    exact = roc.at_threshold([1, 1, 0, 0], [1, 0, 1, 0], 0.5, prevalence=0.2)
    assert exact.ppv.estimate == pytest.approx(0.2) and exact.npv.estimate == pytest.approx(0.8)


def test_groups_widen_the_intervals_of_an_operating_point():
    y, s, group = patients(np.random.default_rng(12), 80)
    alone, together = roc.operating_point(y, s, rule="youden"), roc.operating_point(y, s, rule="youden", groups=group)
    assert alone.threshold == together.threshold
    assert together.sensitivity.high - together.sensitivity.low > alone.sensitivity.high - alone.sensitivity.low
    assert together.sensitivity.method == "bca"


@pytest.mark.parametrize("limit", [0.1, 0.35, 0.9])
def test_the_standardised_partial_area_equals_scikit_learn(limit):
    y, s = sample(np.random.default_rng(13), ties=True)
    result = roc.partial_auc(y, s, max_fpr=limit, n_resamples=200)
    assert result.standardised == pytest.approx(roc_auc_score(y, s, max_fpr=limit))
    assert result.low < result.standardised < result.high


def test_the_partial_area_over_high_sensitivities_is_a_band_of_the_curve_seen_from_the_side():
    y, s = sample(np.random.default_rng(14))
    curve = roc.roc_curve(y, s, n_resamples=100)
    grid = np.linspace(0.8, 1, 20_001)
    specificity = 1 - np.interp(grid, curve.tpr + 1e-12 * np.arange(len(curve.tpr)), curve.fpr)
    assert roc.partial_auc(y, s, min_sensitivity=0.8, n_resamples=100).area == pytest.approx(
        np.trapezoid(specificity, grid), abs=1e-3
    )


def test_areas_of_three_classes_equal_scikit_learn():
    rng = np.random.default_rng(15)
    y = rng.integers(0, 3, 150)
    p = rng.dirichlet([1, 1, 1], 150)
    p[np.arange(150), y] += 0.4
    p /= p.sum(axis=1, keepdims=True)
    ovr, pairs = (
        roc.multiclass_auc(y, p, n_resamples=200),
        roc.multiclass_auc(y, p, method="hand-till", n_resamples=200),
    )
    assert ovr.auc == pytest.approx(roc_auc_score(y, p, multi_class="ovr"))
    assert pairs.auc == pytest.approx(roc_auc_score(y, p, multi_class="ovo"))
    assert ovr.low < ovr.auc < ovr.high and len(ovr.per_class) == 3
    named = roc.multiclass_auc(np.array(["a", "b", "c"])[y], p, classes=["a", "b", "c"], n_resamples=200)
    assert named.auc == ovr.auc


def test_a_class_without_images_is_named():
    with pytest.raises(MstlError, match="no image has class fatty"):
        roc.multiclass_auc(["a", "b"], np.full((2, 3), 1 / 3), classes=["a", "b", "fatty"])


def test_a_million_images_take_about_a_second():
    import time

    rng = np.random.default_rng(16)
    y = rng.random(1_000_000) < 0.3
    s = rng.normal(size=1_000_000) + y
    start = time.process_time()
    roc.delong(y, s)
    assert time.process_time() - start < 5
