import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstl.errors import MstlError
from mstl.metrics import paired, roc


def discordant(only_a, only_b, both=0, neither=0):
    a = np.repeat([1, 0, 1, 0], [only_a, only_b, both, neither])
    b = np.repeat([0, 1, 1, 0], [only_a, only_b, both, neither])
    return a, b


def design(rng, *, chains=3, folds=5, n=60, effect=0.0, per_group=2, chain_sd=0.0, shared=False):
    """Long table of two arms: patients of ``per_group`` images, every chain with its own noise, folds with their own offset."""
    parts = []
    chain_effect = chain_sd * rng.normal(size=(2, chains))
    for f in range(folds):
        if f == 0 or not shared:
            groups = n // per_group
            y = np.repeat(np.arange(groups) % 5 < 2, per_group)
            group = np.repeat(np.arange(groups), per_group) + (0 if shared else 1000 * f)
            image = (
                y + 0.7 * rng.normal(size=groups)[np.repeat(np.arange(groups), per_group)] + 0.5 * rng.normal(size=n)
            )
        for s in range(chains):
            offset = rng.normal()
            parts.append(
                pd.DataFrame(
                    {
                        "y": y.astype(int),
                        "seed": s,
                        "fold": f,
                        "group": group,
                        "a": image + (effect + chain_effect[0, s]) * y + 0.6 * rng.normal(size=n) + offset,
                        "b": image + chain_effect[1, s] * y + 0.6 * rng.normal(size=n) - offset,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def compare(t, **options):
    return paired.chain_difference(t.y, t.a, t.b, seed=t.seed, fold=t.fold, group=t.group, **options)


def test_the_primary_estimand_is_the_mean_of_within_fold_differences_and_never_pools():
    t = design(np.random.default_rng(0))
    result = compare(t, n_resamples=200)
    by_hand = [roc.auc(c.y, c.a) - roc.auc(c.y, c.b) for _, c in t.groupby(["seed", "fold"])]
    assert result.difference == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert result.cells.difference.to_numpy() == pytest.approx(by_hand)
    assert abs(result.difference - (roc.auc(t.y, t.a) - roc.auc(t.y, t.b))) > 1e-4
    assert (result.n_images, result.n_groups, result.n_chains, result.n_folds, result.n_rows) == (300, 150, 3, 5, 900)
    assert result.low < result.difference < result.high


def test_the_order_of_rows_does_not_change_the_estimand():
    t = design(np.random.default_rng(1))
    shuffled = t.sample(frac=1, random_state=0)
    assert compare(shuffled, n_resamples=100).difference == pytest.approx(
        compare(t, n_resamples=100).difference, abs=1e-12
    )


def test_identical_arms_differ_by_nothing_with_p_1():
    t = design(np.random.default_rng(2))
    result = paired.chain_difference(t.y, t.a, t.a, seed=t.seed, fold=t.fold, group=t.group, n_resamples=200)
    assert (result.difference, result.low, result.high, result.p_value, result.standard_error) == (0, 0, 0, 1, 0)


def test_two_perfect_models_have_no_interval_and_no_detectable_difference_rather_than_false_ones():
    y = np.repeat([0, 1], 20)
    result = paired.chain_difference(y, y * 1.0, y * 2.0 + 0.1 * np.arange(40) % 0.7)
    assert (result.difference, result.p_value) == (0, 1)
    assert result.low is None and result.detectable is None and "no interval" in result.note
    assert paired.chain_mean(y, y * 1.0).low is None


@pytest.mark.parametrize(("chain_sd", "most"), [(0.0, 1.0), (0.5, 0.99)])
def test_the_interval_over_chains_and_folds_covers_at_its_level_whether_chains_differ_or_not(chain_sd, most):
    rng = np.random.default_rng(3)
    results = [
        compare(design(rng, folds=2, n=60, chain_sd=chain_sd), n_resamples=200, random_seed=k) for k in range(100)
    ]
    assert 0.9 <= np.mean([r.low <= 0 <= r.high for r in results]) <= most
    assert np.mean([r.p_value < 0.05 for r in results]) <= 0.1
    spread = np.std([r.difference for r in results])
    assert 0.85 <= np.sqrt(np.mean([r.standard_error**2 for r in results])) / spread <= 1.3


@pytest.mark.parametrize("chains", [1, 5])
def test_a_difference_of_the_detectable_size_is_found_in_most_studies(chains):
    rng = np.random.default_rng(16)
    results = [
        compare(design(rng, chains=chains, folds=2, n=60, effect=1.2), n_resamples=200, random_seed=k)
        for k in range(50)
    ]
    within_reach = np.median([r.detectable for r in results]) < np.mean([r.difference for r in results])
    assert within_reach and np.mean([r.p_value < 0.05 for r in results]) > 0.8


def test_chains_that_differ_show_in_their_share_of_the_variance():
    rng = np.random.default_rng(15)
    still, restless = (compare(design(rng, chains=5, n=300, chain_sd=sd), n_resamples=300) for sd in (0.0, 1.0))
    assert still.chain_share < 0.7 < restless.chain_share
    assert restless.sd_chains > 2 * still.sd_chains


def test_a_test_part_shared_by_all_draws_is_resampled_jointly():
    t = design(np.random.default_rng(4), chains=1, folds=4, n=120, shared=True)
    mean = {}
    for name, group in {"joint": t.group, "apart": t.group + 1000 * t.fold}.items():
        mean[name] = paired.chain_mean(t.y, t.b, seed=t.seed, fold=t.fold, group=group, n_resamples=500)
    assert mean["joint"].shared_test and not mean["apart"].shared_test
    assert (mean["joint"].n_images, mean["apart"].n_images) == (120, 480)
    assert mean["joint"].standard_error > 1.4 * mean["apart"].standard_error


def test_one_chain_and_one_fold_reduce_to_the_clustered_bootstrap():
    t = design(np.random.default_rng(5), chains=1, folds=1, n=120)
    one = compare(t, n_resamples=4000)
    plain = paired.bootstrap_difference(
        "auc", t.y, t.a, t.b, groups=t.group, method="percentile", n_resamples=4000, seed=9
    )
    delong = roc.delong_test(t.y, t.a, t.b, groups=t.group)
    assert one.difference == pytest.approx(plain.difference) == pytest.approx(delong.difference)
    assert one.standard_error == pytest.approx(plain.standard_error, rel=0.06)
    assert one.standard_error == pytest.approx(delong.standard_error, rel=0.12)
    assert one.detectable == pytest.approx(2.8016 * one.standard_error, rel=0.05)  # z at 0.975 + z at 0.8


def test_the_mean_of_one_arm_takes_thresholds_by_cell():
    t = design(np.random.default_rng(6), chains=2, folds=2)
    cuts = {(s, f): float(c.b.median()) for (s, f), c in t.groupby(["seed", "fold"])}
    result = paired.chain_mean(
        t.y, t.b, seed=t.seed, fold=t.fold, group=t.group, metric="accuracy", threshold=cuts, n_resamples=200
    )
    by_hand = [((c.b >= cuts[key]) == c.y).mean() for key, c in t.groupby(["seed", "fold"])]
    assert result.estimate == pytest.approx(np.mean(by_hand))
    rows = t.set_index(["seed", "fold"]).index.map(cuts)
    again = paired.chain_mean(
        t.y, t.b, seed=t.seed, fold=t.fold, group=t.group, metric="accuracy", threshold=rows.to_numpy(), n_resamples=200
    )
    assert again.low == result.low and again.high == result.high


@pytest.mark.parametrize("metric", ["auc", "accuracy", "f1", "balanced_accuracy"])
def test_several_classes_take_one_column_a_class(metric):
    rng = np.random.default_rng(7)
    y = np.tile([0, 1, 2], 50)
    p = rng.dirichlet([1, 1, 1], 150)
    p[np.arange(150), y] += 0.5
    result = paired.chain_mean(y, p, group=np.arange(150), metric=metric, n_resamples=200)
    assert 0.5 < result.low < result.estimate < result.high <= 1


def test_a_chain_without_a_fold_is_an_error_that_names_both():
    t = design(np.random.default_rng(8))
    with pytest.raises(MstlError, match="seed 1, fold 3"):
        compare(t[~((t.seed == 1) & (t.fold == 3))])


def test_two_thousand_resamples_over_fifteen_cells_take_about_a_second():
    t = design(np.random.default_rng(9), n=300)
    start = time.process_time()
    compare(t, n_resamples=2000)
    assert time.process_time() - start < 4


@pytest.mark.parametrize(
    ("metric", "threshold"), [("auc", 0.5), ("average_precision", 0.5), ("f1", 0.6), ("mcc", 0.4), ("brier", 0.5)]
)
def test_leaving_groups_out_by_weights_equals_leaving_their_rows_out(metric, threshold):
    from mstl.metrics import _resample

    rng = np.random.default_rng(10)
    group = rng.integers(0, 12, 60)
    y = rng.random(60) < 0.5
    s = np.round(rng.random(60), 1)
    code = np.unique(group, return_inverse=True)[1]
    prepared = _resample.prepare(metric, y, s, code, code.max() + 1, threshold)
    for g, value in enumerate(prepared.left_out()):
        keep = code != g
        alone = _resample.prepare(metric, y[keep], s[keep], np.arange(keep.sum()), keep.sum(), threshold)
        assert value == pytest.approx(alone.value(), abs=1e-12)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_weighted_auc_equals_the_auc_of_repeated_rows(seed):
    from mstl.metrics import _resample

    rng = np.random.default_rng(seed)
    y = np.r_[True, False, rng.random(20) < 0.5]
    s = rng.integers(0, 5, 22).astype(float)
    code = rng.integers(0, 8, 22)
    w = rng.integers(0, 3, 8).astype(float)
    rows = np.repeat(np.arange(22), w[code].astype(int))
    value = _resample.prepare("auc", y, s, code, 8).under(w[:, None])[0]
    if len(set(y[rows])) == 2:
        assert value == pytest.approx(roc.auc(y[rows], s[rows]), abs=1e-12)
    else:
        assert np.isnan(value)


def test_bca_of_a_mean_equals_scipy():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(11)
    y = np.ones(60)
    y[:30] = 0
    a, b = rng.beta(2, 5, 60), rng.beta(2, 2, 60)
    ours = paired.bootstrap_difference("brier", y, a, b, groups=np.arange(60), n_resamples=20_000)
    loss = (a - y) ** 2 - (b - y) ** 2
    scipy = bootstrap(
        (loss[:30], loss[30:]),
        lambda u, v, axis=-1: (u.mean(axis) + v.mean(axis)) / 2,
        n_resamples=20_000,
        method="BCa",
        rng=1,
    )
    assert (ours.low, ours.high) == pytest.approx(scipy.confidence_interval, abs=0.004)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_the_bootstrap_difference_covers_near_its_level_and_agrees_with_its_p_value(method):
    rng = np.random.default_rng(12)
    inside, rejected = [], []
    for k in range(200):
        t = design(rng, chains=1, folds=1, n=100)
        r = paired.bootstrap_difference("auc", t.y, t.a, t.b, groups=t.group, n_resamples=400, seed=k, method=method)
        inside.append(r.low <= 0 <= r.high)
        rejected.append(r.p_value < 0.05)
    assert 0.89 <= np.mean(inside) <= 0.985
    assert np.mean(np.array(inside) == np.array(rejected)) < 0.03


def test_any_function_of_truth_and_score_can_be_compared():
    t = design(np.random.default_rng(13), chains=1, folds=1)
    named = paired.bootstrap_difference("auc", t.y, t.a, t.b, groups=t.group, n_resamples=200)
    function = paired.bootstrap_difference(roc.auc, t.y, t.a, t.b, groups=t.group, n_resamples=200)
    assert (function.low, function.high) == pytest.approx((named.low, named.high))
    assert function.metric == "auc"


def test_a_class_from_one_patient_only_has_no_interval_and_says_so():
    y, s = np.repeat([0, 1], 10), np.arange(20.0)
    with pytest.raises(MstlError, match="class 1 comes from one group"):
        paired.bootstrap_difference("auc", y, s, s[::-1], groups=np.r_[np.arange(10), np.full(10, 99)])


def test_mcnemar_gives_the_published_answers():
    m = paired.mcnemar(*discordant(121, 59, 101, 33))
    assert m.p_exact == pytest.approx(4.434e-6, rel=1e-3)
    assert m.statistic_corrected == pytest.approx(20.67222, abs=1e-5)


@pytest.mark.parametrize(
    ("pair", "exact", "corrected"), [((38, 21), 0.0363, 0.037), ((9, 0), 0.0039, 0.0077), ((6, 0), 0.031, 0.041)]
)
def test_the_published_operating_points_come_from_the_corrected_test(pair, exact, corrected):
    m = paired.mcnemar(*discordant(*pair, both=300))
    assert m.p_exact == pytest.approx(exact, abs=6e-4)
    assert m.p_corrected == pytest.approx(corrected, abs=6e-4)


def test_mcnemar_equals_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar

    m = paired.mcnemar(*discordant(9, 15, 40, 6))
    assert m.p_exact == pytest.approx(mcnemar([[40, 9], [15, 6]], exact=True).pvalue)
    assert m.p_corrected == pytest.approx(mcnemar([[40, 9], [15, 6]], exact=False).pvalue)


def test_models_that_are_right_on_the_same_images_have_p_1():
    m = paired.mcnemar([1, 0, 1], [1, 0, 1])
    assert (m.p_exact, m.p_corrected, m.difference) == (1, 1, 0) and m.note


def test_newcombes_paired_interval_gives_the_published_example():
    m = paired.mcnemar(*discordant(12, 2, 36, 0))  # Newcombe (1998), table II, example (a): 36, 12, 2, 0
    assert (m.low, m.high) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_the_clustered_mcnemar_keeps_its_level_where_the_plain_one_does_not():
    rng = np.random.default_rng(14)
    plain, clustered = [], []
    for _ in range(400):
        group = np.repeat(np.arange(50), 6)
        tilt = rng.normal(size=50)[group]
        a, b = rng.normal(size=300) + tilt > 0, rng.normal(size=300) - tilt > 0
        m = paired.mcnemar(a, b, groups=group)
        plain.append(m.p_corrected < 0.05)
        clustered.append(m.p_clustered < 0.05)
    assert np.mean(plain) > 0.15
    assert 0.02 <= np.mean(clustered) <= 0.085


# ---------------------------------------------------------------- predictive values, margins, several models


def calls(rng, n=300, same=0.8):
    """Two models' calls of equal PPV and NPV in the population, agreeing more than by chance."""
    y = rng.random(n) < 0.4
    shared = rng.random(n) < same
    once = np.where(y, rng.random(n) < 0.8, rng.random(n) < 0.2)
    again = np.where(y, rng.random(n) < 0.8, rng.random(n) < 0.2)
    return y, once, np.where(shared, once, again)


@pytest.mark.parametrize("test", [paired.ppv_test, paired.npv_test])
def test_both_tests_of_predictive_values_keep_their_level_and_cover(test):
    rng = np.random.default_rng(20)
    results = [test(*calls(rng), n_resamples=300, seed=k) for k in range(250)]
    assert 0.015 <= np.mean([r.p_value < 0.05 for r in results]) <= 0.09
    assert 0.015 <= np.mean([r.ratio_p_value < 0.05 for r in results]) <= 0.09
    assert 0.91 <= np.mean([r.ratio_low <= 1 <= r.ratio_high for r in results]) <= 0.985


def test_predictive_values_are_those_of_the_calls():
    y, a, b = calls(np.random.default_rng(21))
    r = paired.ppv_test(y, a, b, n_resamples=200)
    assert (r.value_a, r.value_b) == (y[a].mean(), y[b].mean())
    assert r.difference == pytest.approx(r.value_a - r.value_b) and r.ratio == pytest.approx(r.value_a / r.value_b)
    assert paired.npv_test(y, a, b, n_resamples=200).value_a == pytest.approx((~y)[~a].mean())


def test_a_model_that_calls_nothing_has_no_ppv_and_says_so():
    y, a, _ = calls(np.random.default_rng(22))
    r = paired.ppv_test(y, a, np.zeros(len(y)))
    assert r.difference is None and r.p_value is None and "model b calls no image positive" in r.note


def test_identical_calls_have_ppv_difference_0_and_p_1():
    y, a, _ = calls(np.random.default_rng(23))
    r = paired.ppv_test(y, a, a, n_resamples=200)
    assert (r.difference, r.p_value, r.ratio, r.ratio_p_value) == (0, 1, 1, 1)


def test_equivalence_is_decided_by_the_interval_of_twice_alpha():
    inside = paired.equivalence(0.001, 0.005, 0.02)
    assert (
        inside.equivalent
        and inside.noninferior
        and inside.p_equivalent < 0.05
        and "equivalent within" in inside.verdict
    )
    better = paired.equivalence(0.03, 0.005, 0.02)
    assert better.noninferior and not better.equivalent and better.p_superior < 0.001
    vague = paired.equivalence(0.0, 0.05, 0.02)
    assert not vague.noninferior and vague.p_noninferior > 0.05 and "not shown" in vague.verdict


@given(st.floats(-0.1, 0.1), st.floats(1e-4, 0.1), st.floats(1e-3, 0.1))
@settings(max_examples=100, deadline=None)
def test_verdict_and_p_value_of_a_margin_agree(difference, error, margin):
    r = paired.equivalence(difference, error, margin)
    for verdict, p in ((r.equivalent, r.p_equivalent), (r.noninferior, r.p_noninferior)):
        assert verdict == (p < 0.05) or abs(p - 0.05) < 1e-9


def test_non_inferiority_at_the_margin_is_claimed_as_often_as_alpha():
    rng = np.random.default_rng(24)
    claimed = [paired.equivalence(d, 0.01, 0.02).noninferior for d in rng.normal(-0.02, 0.01, 1500)]
    assert np.mean(claimed) == pytest.approx(0.05, abs=0.018)


def test_cochrans_q_equals_its_formula_and_identical_models_have_p_1():
    rng = np.random.default_rng(25)
    x = (rng.random((60, 4)) < [0.6, 0.7, 0.7, 0.8]).astype(int)
    columns, rows = x.sum(0), x.sum(1)
    q = 3 * (4 * (columns**2).sum() - columns.sum() ** 2) / (4 * rows.sum() - (rows**2).sum())
    assert paired.cochran_q(x).statistic == pytest.approx(q)
    same = paired.cochran_q(np.repeat(x[:, :1], 3, axis=1))
    assert (same.statistic, same.p_value) == (0, 1) and same.note


def test_the_corrected_resampled_t_test_equals_its_formula():
    d = np.array([0.02, 0.01, -0.01, 0.03, 0.02])
    r = paired.corrected_resampled_t(d, n_train=80, n_test=20)
    assert r.standard_error == pytest.approx(np.sqrt((1 / 5 + 1 / 4) * d.var(ddof=1)))
    assert r.statistic == pytest.approx(d.mean() / r.standard_error) and r.degrees_of_freedom == 4
    assert (r.low <= 0) == (r.p_value >= 0.05)


def test_folds_that_all_give_the_same_difference_have_no_t_test():
    r = paired.corrected_resampled_t([0.5, 0.5, 0.5], n_train=80, n_test=20)
    assert r.p_value is None and "does not exist" in r.note
    assert paired.corrected_resampled_t([0.0, 0.0], n_train=80, n_test=20).p_value == 1


def test_wilcoxon_on_five_folds_says_that_it_cannot_go_below_0_0625():
    r = paired.wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5])
    assert r.p_value is None and "0.0625" in r.note


def test_wilcoxon_on_ten_cases_equals_scipy():
    from scipy.stats import wilcoxon

    d = np.random.default_rng(26).normal(0.5, 1, 10)
    assert paired.wilcoxon(d).p_value == pytest.approx(wilcoxon(d).pvalue)
