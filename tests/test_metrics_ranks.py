import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstl.errors import MstlError
from mstl.metrics import ranks


def table(rng, n=10, k=4, step=0.0):
    return pd.DataFrame(rng.normal(size=(n, k)) + step * np.arange(k), columns=list("abcdef")[:k])


def test_holm_gives_the_published_answer():
    assert ranks.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_both_adjustments_equal_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(20) ** 2
    assert ranks.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert ranks.benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None)
def test_adjusted_p_values_never_shrink_and_keep_the_order(p):
    holm, bh = ranks.holm(p), ranks.benjamini_hochberg(p)
    assert (holm >= np.array(p) - 1e-12).all() and (bh <= holm + 1e-12).all() and holm.max() <= 1
    order = np.argsort(p, kind="stable")
    assert (np.diff(holm[order]) >= -1e-12).all() and (np.diff(bh[order]) >= -1e-12).all()


def test_a_test_without_a_p_value_is_refused_by_the_adjustments():
    with pytest.raises(MstlError, match="p-value 1 of the family"):
        ranks.holm([0.01, None])


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.344), (4, 2.569), (5, 2.728), (6, 2.850)])
def test_the_critical_difference_has_the_published_q(k, q):
    assert ranks.critical_difference(k, 10) / np.sqrt(k * (k + 1) / 60) == pytest.approx(q, abs=6e-4)


def test_three_arms_on_three_targets_would_need_1_91_of_2_and_are_refused():
    assert ranks.critical_difference(3, 3) == pytest.approx(1.91, abs=0.005)
    with pytest.raises(MstlError, match="3 data sets are too few"):
        ranks.friedman(np.zeros((3, 3)))
    with pytest.raises(MstlError, match="do not count folds"):
        ranks.nemenyi(np.zeros((5, 3)))


def test_friedman_equals_scipy_and_its_corrected_form_the_formula():
    from scipy.stats import friedmanchisquare

    t = table(np.random.default_rng(1), step=0.4)
    r = ranks.friedman(t)
    assert (r.statistic, r.p_value) == pytest.approx(friedmanchisquare(*t.to_numpy().T))
    assert r.f_statistic == pytest.approx(9 * r.statistic / (30 - r.statistic))
    assert min(r.average_ranks, key=r.average_ranks.get) == "d"
    assert sum(r.average_ranks.values()) == pytest.approx(10)


def test_friedman_keeps_its_level():
    rng = np.random.default_rng(2)
    p = np.array([ranks.friedman(table(rng, 12)).f_p_value for _ in range(600)])
    assert 0.025 <= np.mean(p < 0.05) <= 0.08


def test_models_that_tie_everywhere_have_p_1():
    r = ranks.friedman(np.ones((6, 3)))
    assert (r.statistic, r.p_value) == (0, 1) and r.note


def test_data_sets_that_rank_all_models_alike_have_no_f_and_say_so():
    r = ranks.friedman(np.tile([1.0, 2.0, 3.0], (8, 1)))
    assert r.f_statistic is None and "infinite" in r.note and r.p_value < 0.001


def test_pairs_differ_exactly_when_further_apart_than_the_critical_difference_and_cliques_hold_the_rest():
    r = ranks.nemenyi(table(np.random.default_rng(3), 15, 5, step=0.7))
    assert (r.pairs.different == (r.pairs.rank_difference.abs() > r.critical_difference)).all()
    assert (
        (r.pairs.different == (r.pairs.p_value < 0.05)).all()
        and r.pairs.different.any()
        and not r.pairs.different.all()
    )
    for _, pair in r.pairs.iterrows():
        together = any(pair.a in clique and pair.b in clique for clique in r.cliques)
        assert together != pair.different


def test_a_missing_score_is_named_by_row_and_column():
    values = np.random.default_rng(4).random((7, 3))
    values[2, 1] = np.nan
    with pytest.raises(MstlError, match="row 2, column 1"):
        ranks.friedman(values)
