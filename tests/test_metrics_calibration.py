import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from mstl.errors import MstlError
from mstl.metrics import calibration, decision


def calibrated(rng, n=400, slope=1.0, intercept=0.0):
    """Outcomes drawn from risks, and the risks as a model with this calibration slope and intercept would state them."""
    x = 1.3 * rng.normal(size=n) - 0.3
    y = rng.random(n) < 1 / (1 + np.exp(-x))
    return y, 1 / (1 + np.exp(-(x - intercept) / slope))


def test_the_brier_score_equals_scikit_learn_and_its_interval_covers():
    rng = np.random.default_rng(0)
    y, p = calibrated(rng)
    assert calibration.brier(y, p).estimate == pytest.approx(brier_score_loss(y, p))
    truth = np.mean(np.square(np.subtract(*calibrated(rng, 400_000)[::-1])))
    results = [calibration.brier(*calibrated(rng)) for _ in range(500)]
    assert 0.92 <= np.mean([r.low <= truth <= r.high for r in results]) <= 0.975


def test_groups_of_copies_do_not_narrow_the_brier_interval():
    y, p = calibrated(np.random.default_rng(1))
    alone = calibration.brier(y, p)
    copies = calibration.brier(np.repeat(y, 4), np.repeat(p, 4), groups=np.repeat(np.arange(400), 4))
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low)


def test_intercept_slope_and_calibration_in_the_large_cover_what_was_simulated():
    rng = np.random.default_rng(2)
    lines = [calibration.calibration_line(*calibrated(rng, slope=0.7, intercept=0.4)) for _ in range(250)]
    assert 0.91 <= np.mean([r.slope_low <= 0.7 <= r.slope_high for r in lines]) <= 0.985
    assert 0.91 <= np.mean([r.intercept_low <= 0.4 <= r.intercept_high for r in lines]) <= 0.985
    level = [calibration.calibration_in_the_large(*calibrated(rng)) for _ in range(250)]
    assert 0.91 <= np.mean([r.low <= 0 <= r.high for r in level]) <= 0.985


def test_the_calibration_line_equals_statsmodels_plain_and_clustered():
    import statsmodels.api as sm

    y, p = calibrated(np.random.default_rng(3), slope=0.8)
    x, group = np.log(p / (1 - p)), np.repeat(np.arange(100), 4)
    plain = sm.Logit(y.astype(float), sm.add_constant(x)).fit(disp=False).conf_int()
    line = calibration.calibration_line(y, p)
    assert [line.intercept_low, line.intercept_high, line.slope_low, line.slope_high] == pytest.approx(
        plain.ravel(), abs=1e-6
    )
    model = sm.GLM(y.astype(float), sm.add_constant(x), family=sm.families.Binomial())
    clustered = model.fit(cov_type="cluster", cov_kwds={"groups": group}).conf_int()
    line = calibration.calibration_line(y, p, groups=group)
    assert [line.intercept_low, line.intercept_high, line.slope_low, line.slope_high] == pytest.approx(
        clustered.ravel(), abs=2e-3
    )
    large = sm.GLM(y.astype(float), np.ones(400), family=sm.families.Binomial(), offset=x).fit()
    assert line.in_the_large == pytest.approx(large.params[0], abs=1e-7)


def test_risks_that_separate_the_classes_have_no_slope_and_say_so():
    line = calibration.calibration_line([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.8])
    assert line.slope is None and "separate" in line.note and np.isfinite(line.in_the_large)
    assert calibration.calibration_line([0, 1, 0, 1], [0.5] * 4).slope is None


def test_risks_of_0_and_1_are_drawn_in_and_counted():
    y, p = calibrated(np.random.default_rng(4))
    p = p.copy()
    p[:3] = [0, 1, 0]
    certain = calibration.calibration_line(y, y.astype(float))
    assert certain.in_the_large is None and certain.slope is None and "undetermined" in certain.note
    assert "3 risks" in calibration.calibration_line(y, p).note


def test_the_ece_of_calibrated_risks_is_what_sampling_alone_gives():
    rng = np.random.default_rng(5)
    results = [calibration.ece(*calibrated(rng)) for _ in range(200)]
    assert np.mean([r.ece for r in results]) == pytest.approx(np.mean([r.expected for r in results]), rel=0.05)
    off = calibration.ece(*calibrated(rng, 4000, slope=0.5))
    assert off.ece > 3 * off.expected


def test_the_ece_by_hand():
    result = calibration.ece([0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], n_bins=2)
    assert result.ece == pytest.approx(0.5 * 0.35 + 0.5 * 0.15) and result.maximum == pytest.approx(0.35)


def test_deciles_of_reliability_hold_every_image_once_and_keep_equal_risks_together():
    y, p = calibrated(np.random.default_rng(6))
    table = calibration.reliability(y, np.round(p, 1))
    assert table.n.sum() == 400 and table.positives.sum() == y.sum()
    assert (
        table.mean_risk.is_monotonic_increasing
        and (table.low <= table.observed).all()
        and (table.observed <= table.high).all()
    )
    assert len(calibration.reliability(y, p)) == 10


def test_spiegelhalters_test_keeps_its_level_and_sees_risks_that_are_too_extreme():
    rng = np.random.default_rng(7)
    p = [calibration.spiegelhalter(*calibrated(rng)).p_value for _ in range(800)]
    assert 0.03 <= np.mean(np.array(p) < 0.05) <= 0.075
    assert calibration.spiegelhalter(*calibrated(rng, 2000, slope=0.5)).p_value < 1e-4
    assert calibration.spiegelhalter([0, 1], [0.5, 0.5]).p_value is None


@pytest.mark.parametrize("method", calibration.METHODS)
def test_recalibration_on_validation_mends_the_test_set(method):
    rng = np.random.default_rng(8)
    intercept = 0.0 if method == "temperature" else 0.8
    y_val, p_val = calibrated(rng, 3000, slope=0.4, intercept=intercept)
    y, p = calibrated(rng, 3000, slope=0.4, intercept=intercept)
    mended = calibration.recalibrate(y_val, p_val, p, method=method)
    assert calibration.brier(y, mended).estimate < calibration.brier(y, p).estimate
    assert calibration.ece(y, mended).ece < 0.5 * calibration.ece(y, p).ece
    assert (np.diff(mended[np.argsort(p)]) >= -1e-12).all()


def test_platt_exists_where_validation_is_perfectly_separated():
    mended = calibration.recalibrate([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.8], [0.0, 0.5, 1.0])
    assert np.isfinite(mended).all() and (np.diff(mended) > 0).all() and 0 < mended[0] and mended[-1] < 1


def test_temperature_takes_one_column_a_class_and_finds_the_temperature():
    rng = np.random.default_rng(9)
    logits = 1.5 * rng.normal(size=(4000, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = (rng.random(4000)[:, None] > p.cumsum(1)).sum(1)
    sharp = np.exp(2.5 * logits) / np.exp(2.5 * logits).sum(1, keepdims=True)
    fit = calibration.recalibration(y, sharp, method="temperature")
    assert fit.parameters["temperature"] == pytest.approx(2.5, rel=0.1)
    assert fit.apply(sharp).sum(1) == pytest.approx(1)


def test_a_risk_above_1_is_named_with_its_row():
    with pytest.raises(MstlError, match="1.2 in row 1"):
        calibration.brier([0, 1], [0.2, 1.2])


# ---------------------------------------------------------------- decisions


@given(st.integers(0, 5000), st.floats(0.01, 0.9))
@settings(max_examples=40, deadline=None)
def test_net_benefit_is_its_definition_and_never_beats_perfect_knowledge(seed, threshold):
    rng = np.random.default_rng(seed)
    y = np.r_[True, False, True, False, rng.random(30) < 0.4]
    p = np.round(rng.random(34), 2)
    curve = decision.net_benefit(y, p, [threshold], n_resamples=100)
    called = p >= threshold
    by_hand = (called & y).sum() / 34 - (called & ~y).sum() / 34 * threshold / (1 - threshold)
    assert curve.model[0] == pytest.approx(by_hand) and curve.model[0] <= y.mean() + 1e-12
    assert curve.treat_all[0] == pytest.approx(y.mean() - (1 - y.mean()) * threshold / (1 - threshold))


def test_net_benefit_at_another_prevalence_is_that_of_a_table_with_that_prevalence():
    y, p = calibrated(np.random.default_rng(10))
    repeated = np.where(y, 1, 3)
    rare = decision.net_benefit(np.repeat(y, repeated), np.repeat(p, repeated), [0.1, 0.3], n_resamples=100)
    told = decision.net_benefit(y, p, [0.1, 0.3], prevalence=rare.prevalence, n_resamples=100)
    assert told.model == pytest.approx(rare.model) and told.treat_all == pytest.approx(rare.treat_all)


def test_the_band_of_net_benefit_covers_at_a_known_prevalence():
    rng = np.random.default_rng(11)
    y, p = calibrated(rng, 400_000)
    share = float(y.mean())
    truth = decision.net_benefit(y[:200_000], p[:200_000], [0.2, 0.5], prevalence=share, n_resamples=100).model
    curves = [
        decision.net_benefit(*calibrated(rng, 300), [0.2, 0.5], prevalence=share, n_resamples=200, seed=k)
        for k in range(150)
    ]
    inside = np.mean([(c.low <= truth) & (truth <= c.high) for c in curves], axis=0)
    assert ((0.89 <= inside) & (inside <= 0.99)).all()


def test_a_model_differs_from_itself_in_no_decision():
    y, p = calibrated(np.random.default_rng(12))
    d = decision.net_benefit_difference(y, p, p, n_resamples=100)
    assert not d.difference.any() and not d.low.any() and not d.high.any()


def test_false_positives_saved_per_1000_follow_from_the_published_counts():
    y = np.repeat([1, 0], [268, 475])
    a = np.r_[np.repeat([1, 0], [242, 26]), np.repeat([1, 0], [46, 429])]
    b = np.r_[np.repeat([1, 0], [242, 26]), np.repeat([1, 0], [63, 412])]
    saved = decision.false_positives_saved(y, a, b, n_resamples=300)
    assert saved.estimate == pytest.approx(1000 * 17 / 743) and saved.low < saved.estimate < saved.high
    rare = decision.per_thousand(y, a, prevalence=0.01)
    assert rare["fp"] == pytest.approx(990 * 46 / 475) and rare["tp"] + rare["fn"] == pytest.approx(10)
