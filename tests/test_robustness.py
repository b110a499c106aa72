"""Robustness: intraclass correlations, boxes drawn again, what that does to a model, and where a network looks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from mstl.errors import MstlError
from mstl.metrics import calibration, robustness

#: Shrout & Fleiss (1979), table 2: six targets, four judges.
RATINGS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


# --- intraclass correlation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "estimate", "low", "high"), [
    ("1,1", 0.1657, -0.133, 0.723), ("2,1", 0.2898, 0.019, 0.761), ("3,1", 0.7148, 0.342, 0.946)])
def test_the_example_of_shrout_and_fleiss_comes_out(kind, estimate, low, high):
    found = robustness.icc(RATINGS, kind)
    assert found.estimate == pytest.approx(estimate, abs=5e-5)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-4), pytest.approx(high, abs=6e-4))
    assert (found.n, found.k) == (6, 4)


def test_each_kind_is_its_share_of_the_variance_of_simulated_ratings():
    rng = np.random.default_rng(0)
    cases, raters = rng.normal(0, 2, (4000, 1)), rng.normal(0, 1, (1, 40))
    x = cases + raters + rng.normal(0, 1, (4000, 40))
    spread = float(raters.var(ddof=1))
    assert robustness.icc(x, "3,1").estimate == pytest.approx(4 / 5, abs=0.02)
    assert robustness.icc(x, "2,1").estimate == pytest.approx(4 / (5 + spread), abs=0.02)


def test_the_interval_covers_the_true_value_about_as_often_as_it_says():
    rng, truth, hits = np.random.default_rng(1), 4 / 6, 0
    for _ in range(300):
        x = rng.normal(0, 2, (25, 1)) + rng.normal(0, 1, (1, 6)) + rng.normal(0, 1, (25, 6))
        found = robustness.icc(x)
        hits += found.low <= truth <= found.high
    assert 0.90 < hits / 300 < 0.99


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 50), st.floats(-20, 20))
def test_an_icc_knows_no_unit_and_a_shift_of_one_rater_changes_only_agreement(seed, unit, shift):
    x = np.random.default_rng(seed).normal(size=(8, 3))
    moved = x * unit + shift
    for kind in robustness.KINDS:
        a, b = robustness.icc(x, kind), robustness.icc(moved, kind)
        assert b.estimate == pytest.approx(a.estimate, abs=1e-6) and a.low <= a.estimate <= a.high
    x[:, 0] += 100
    assert abs(robustness.icc(x, "2,1").estimate) < abs(robustness.icc(x, "3,1").estimate) + 1e-9


def test_ratings_that_never_differ_are_said_to_and_get_no_interval():
    same = robustness.icc(np.tile(np.arange(5.0)[:, None], 3))
    assert same.estimate == 1 and same.low is None and "never differ" in same.note
    flat = robustness.icc(np.ones((5, 3)), "1,1")
    assert flat.estimate is None and "all ratings are the same" in flat.note


@pytest.mark.parametrize(("ratings", "kind", "words"), [
    ([[1, 2]], "2,1", "at least two of each"), ([1, 2, 3], "2,1", "at least two of each"),
    ([[1, 2], [np.nan, 1]], "2,1", "row 1"), (RATINGS, "2,2", "must be one of")])
def test_ratings_without_an_icc_are_one_sentence(ratings, kind, words):
    with pytest.raises(MstlError, match=words):
        robustness.icc(ratings, kind)


# --- boxes drawn again -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.4), st.floats(0, 0.4))
def test_a_drawn_box_moves_and_grows_by_no_more_than_it_may_and_every_case_by_the_same_share(seed, shift, scale):
    boxes = np.array([[10.0, 20, 30, 80], [0, 0, 4, 2]])
    moved = robustness.perturb(boxes, robustness.draws(6, seed=seed), shift=shift, scale=scale)
    side = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = ((moved[..., :2] + moved[..., 2:]) - (boxes[:, :2] + boxes[:, 2:])[:, None]) / 2 / side
    grown = (moved[..., 2:] - moved[..., :2]) / side
    assert np.abs(centre).max() <= shift + 1e-9 and np.abs(grown - 1).max() <= scale + 1e-9
    assert np.allclose(centre[0], centre[1]) and np.allclose(grown[0], grown[1]) and np.allclose(grown[..., 0], grown[..., 1])


def test_no_strength_leaves_every_box_and_a_seed_gives_the_same_draws():
    boxes = np.array([[1.0, 2, 3, 5]])
    table = robustness.draws(4, seed=3)
    assert np.allclose(robustness.perturb(boxes, table, shift=0, scale=0), boxes[:, None])
    assert np.array_equal(table, robustness.draws(4, seed=3)) and not np.array_equal(table, robustness.draws(4))
    assert np.abs(robustness.draws(2000).mean()) < 0.05 and robustness.draws(2000).std() == pytest.approx(3**-0.5, abs=0.02)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: robustness.draws(1), "at least 2"), (lambda: robustness.perturb([[5, 0, 5, 9]], robustness.draws(2), shift=0.1, scale=0.1), "row 0"),
    (lambda: robustness.perturb([[0, 0, 5, 9]], robustness.draws(2), shift=1.0, scale=0.1), "shift is 1"),
    (lambda: robustness.perturb([0, 0, 5, 9], robustness.draws(2), shift=0.1, scale=0.1), "has shape")])
def test_boxes_that_cannot_be_moved_are_one_sentence(call, words):
    with pytest.raises(MstlError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


# --- what the draws do to a model --------------------------------------------------------------------------------------


def test_the_auc_of_each_draw_is_read_alone():
    y = [0, 0, 1, 1]
    found = robustness.auc_spread(y, np.array([[1, 4.0], [2, 3], [3, 2], [4, 1]]))
    assert found.values.tolist() == [1, 0] and found.mean == 0.5 and found.sd == pytest.approx(0.5**0.5) and (found.lowest, found.highest) == (0, 1)


def test_a_squashed_probability_is_as_unstable_as_the_one_it_was_squashed_from():
    """Dividing every logit by four makes probabilities move less and nothing steadier: after recalibration both are alike."""
    rng = np.random.default_rng(0)
    y = rng.random(400) < 0.5
    logit = 1.5 * (2 * y - 1) + rng.normal(0, 1.5, 400)
    drawn = logit[:, None] + rng.normal(0, 0.7, (400, 10))
    plain, squashed = (1 / (1 + np.exp(-np.array([1.0, 0.25])[:, None, None] * drawn)))
    sd = [robustness.case_sd(robustness.recalibrated_logit(y, 1 / (1 + np.exp(-s * logit)), p)) for s, p in ((1, plain), (0.25, squashed))]
    assert squashed.std(axis=1).mean() < 0.5 * plain.std(axis=1).mean()
    assert sd[1].mean() == pytest.approx(sd[0].mean(), rel=0.05)


def test_recalibrated_logits_are_the_logits_of_recalibrated_risks():
    rng = np.random.default_rng(2)
    y, risk = rng.random(60) < 0.4, rng.uniform(0.01, 0.99, 60)
    table = rng.uniform(0.05, 0.95, (5, 3))
    expected = calibration.recalibration(y, risk).apply(table.ravel()).reshape(table.shape)
    assert np.allclose(1 / (1 + np.exp(-robustness.recalibrated_logit(y, risk, table))), expected)


def test_a_flip_is_another_call_than_with_the_own_box_and_the_threshold_itself_is_positive():
    shares = robustness.flips([0.5, 0.2], [[0.5, 0.49, 0.9], [0.6, 0.7, 0.1]], 0.5)
    assert shares == pytest.approx([1 / 3, 2 / 3])


def test_cases_of_a_patient_count_once_in_the_test_and_together_in_the_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 2)
    b = rng.uniform(1, 2, 60)
    a = b - 0.3 + np.repeat(rng.normal(0, 0.4, 30), 2)
    found = robustness.compare_cases(a, b, groups=groups)
    means = (a - b).reshape(30, 2).mean(axis=1)
    assert found.test.p_value == pytest.approx(wilcoxon(means).pvalue) and found.test.n == 30
    assert found.difference.estimate == pytest.approx((a - b).mean()) and found.difference.n_groups == 30
    assert found.difference.high - found.difference.low > 1.3 * np.diff(
        [getattr(robustness.compare_cases(a, b).difference, end) for end in ("low", "high")])[0]
    assert found.smaller == pytest.approx((means < 0).mean())


def test_a_mean_over_cases_is_never_given_a_negative_bound():
    found = robustness.mean_over_cases("flip rate", [0, 0, 0, 0.5], groups=[1, 1, 2, 3])
    assert found.low == 0 and found.estimate == 0.125 and (found.n, found.n_groups) == (4, 3)


@pytest.mark.parametrize(("values", "words"), [([[0.1], [0.2]], "at least two"), ([[0.1, np.nan], [0.2, 0.1]], "case 0")])
def test_values_under_draws_that_cannot_be_read_are_one_sentence(values, words):
    with pytest.raises(MstlError, match=words):
        robustness.case_sd(values)
