"""Operating points, false positives, calibration and decision curves from a predictions table; figures of a published abstract."""

import numpy as np
import pandas as pd
import pytest

from mstl import comparison, operating, predictions, published
from mstl.errors import MstlError
from mstl.metrics import calibration as calibrations
from mstl.metrics import chains, decision, paired, roc

FAST = {"n_resamples": 200}


def table(models=("old", "new"), n=160, folds=1, seeds=(0,), val=True, target="", classes=("well", "ill"), images_per_group=1):
    """Models of rising quality on the same images, with validation rows."""
    rng = np.random.default_rng(5)
    y, group = np.arange(n) * 7 % 10 < 3, np.arange(n) // images_per_group
    if images_per_group > 1:
        y = y[group * images_per_group]
    fold, rows = group % (folds + (folds == 1)), []
    for rank, model in enumerate(models):
        for seed in seeds:
            for k in range(folds):
                for split in ("test", "val") if val else ("test",):
                    at = (
                        np.flatnonzero(fold == (k if split == "test" else (k + 1) % (folds + (folds == 1))))
                        if val or folds > 1
                        else np.arange(n)
                    )
                    p = np.round(1 / (1 + np.exp(-((0.7 + 0.5 * rank) * (2 * y[at] - 1) + rng.normal(size=len(at))))), 4)
                    rows.append(
                        pd.DataFrame(
                            {
                                "model": model,
                                "target": target,
                                "seed": seed,
                                "fold": k,
                                "split": split,
                                "image_id": [f"i{i}" for i in at],
                                "group": [f"g{g}" for g in group[at]],
                                "y_true": np.where(y[at], classes[1], classes[0]),
                                f"p_{classes[0]}": 1 - p,
                                f"p_{classes[1]}": p,
                            }
                        )
                    )
    return predictions.check(pd.concat(rows, ignore_index=True))


def tiny():
    """Ten test and ten validation images whose counts can be done by hand."""
    val = {"a": [0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.1], "b": [0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.1]}
    test = {
        "a": [0.95, 0.85, 0.65, 0.35, 0.62, 0.45, 0.35, 0.25, 0.15, 0.05],
        "b": [0.95, 0.45, 0.65, 0.75, 0.62, 0.66, 0.68, 0.25, 0.15, 0.05],
    }
    truth = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    rows = [
        {"image_id": f"{split}{i}", "model": m, "split": split, "y_true": str(t), "p_1": p}
        for split, scores in (("val", val), ("test", test))
        for m in "ab"
        for i, (t, p) in enumerate(zip(truth, scores[m], strict=True))
    ]
    return predictions.check(pd.DataFrame(rows))


def test_thresholds_come_from_validation_and_the_counts_are_those_done_by_hand():
    points = operating.evaluate(tiny(), ("b", "a"), **FAST).points.set_index(["model", "rule", "chosen_on"])
    youden = points.loc[("a", "Youden", "validation")]
    assert (youden["threshold"], youden["tp"], youden["fp"], youden["fn"], youden["tn"]) == (0.6, 3, 1, 1, 5)
    other = points.loc[("b", "Youden", "validation")]
    assert (other["threshold"], other["tp"], other["fp"], other["fn"], other["tn"]) == (0.6, 3, 3, 1, 3)
    assert points.loc[("a", "Youden", "test"), "threshold"] == 0.65  # 3 of 4 found, no false alarm


def test_rates_counts_per_thousand_and_false_positives_saved_follow_from_the_counts():
    found = operating.evaluate(tiny(), ("b", "a"), reference="a", prevalence=0.1, **FAST)
    rates = found.rates.set_index(["model", "rule", "chosen_on", "quantity"])["estimate"]
    assert (
        rates["a", "Youden", "validation", "sensitivity"] == 3 / 4
        and rates["a", "Youden", "validation", "specificity"] == 5 / 6
    )
    assert rates["a", "Youden", "validation", "ppv"] == pytest.approx(0.1 * 3 / 4 / (0.1 * 3 / 4 + 0.9 / 6))
    assert rates["a", "Youden", "validation", "npv"] == pytest.approx(0.9 * 5 / 6 / (0.9 * 5 / 6 + 0.1 / 4))
    counted = found.per_thousand.set_index(["model", "rule", "chosen_on", "quantity"])["estimate"]
    assert counted["a", "Youden", "validation", "false positives per 1000"] == pytest.approx(150)
    assert counted["a", "Youden", "validation", "missed per 1000"] == pytest.approx(25)
    saved = found.differences.set_index(["contrast", "rule", "chosen_on", "quantity"])["estimate"]
    assert saved["b − a", "Youden", "validation", "false positives saved per 1000"] == pytest.approx(-300)
    # the same by the function of one test set
    calls = {
        m: np.array(s) >= 0.6
        for m, s in (
            ("a", [0.95, 0.85, 0.65, 0.35, 0.62, 0.45, 0.35, 0.25, 0.15, 0.05]),
            ("b", [0.95, 0.45, 0.65, 0.75, 0.62, 0.66, 0.68, 0.25, 0.15, 0.05]),
        )
    }
    one = decision.false_positives_saved([1] * 4 + [0] * 6, calls["b"], calls["a"], prevalence=0.1, n_resamples=200)
    assert saved["b − a", "Youden", "validation", "false positives saved per 1000"] == pytest.approx(one.estimate)


def test_mcnemar_counts_each_test_set_alone_and_never_adds_folds_up():
    one = operating.mcnemar(tiny(), ("b", "a")).set_index(["rule", "chosen_on", "compares"])
    specificity = one.loc[("Youden", "validation", "specificity")]
    assert (specificity["only_a"], specificity["only_b"], specificity["n_images"]) == (0, 2, 6) and specificity[
        "p_exact"
    ] == 0.5
    sensitivity = one.loc[("Youden", "validation", "sensitivity")]
    assert (sensitivity["only_a"], sensitivity["only_b"]) == (1, 1)
    t = table(folds=3, seeds=(0, 1))
    rows = operating.mcnemar(t, ("new", "old"))
    assert len(rows) == 2 * 3 * 3 * 2 * 3 and not rows.duplicated(["seed", "fold", "rule", "chosen_on", "compares"]).any()
    per_fold = t[(t["split"] == "test") & (t["model"] == "new") & (t["seed"] == 0)].groupby("fold").size()
    assert set(rows.loc[rows["compares"] == "accuracy", "n_images"]) == set(per_fold)


def test_a_threshold_chosen_on_the_test_set_reaches_what_it_asks_for_there_and_is_called_optimistic_elsewhere():
    rates = operating.evaluate(table(folds=3), ("new", "old"), **FAST).rates.set_index(
        ["model", "rule", "chosen_on", "quantity"]
    )["estimate"]
    assert (
        rates["new", "sensitivity ≥ 0.90", "test", "sensitivity"] >= 0.90
        and rates["new", "specificity ≥ 0.90", "test", "specificity"] >= 0.90
    )
    youden = {c: rates["new", "Youden", c, "sensitivity"] + rates["new", "Youden", c, "specificity"] for c in operating.CHOSEN}
    assert youden["test"] >= youden["validation"]


def test_without_validation_rows_nothing_is_given_as_fixed_on_validation():
    found = operating.evaluate(table(val=False), ("new", "old"), **FAST)
    rates = found.rates[found.rates["chosen_on"] == "validation"]
    assert rates["estimate"].isna().all() and (rates["note"] == operating.NO_VALIDATION).all()
    assert set(found.brier["risks"]) == {"as given"} and set(found.differences["chosen_on"]) == {"test"}
    assert "optimistic" in operating.sentences(found)[0]


def test_the_statistics_of_several_models_are_those_of_a_pair_alone():
    t = table(models=("a", "b", "c"), folds=3, seeds=(0, 1, 2), images_per_group=2)
    found = operating.evaluate(t, ("b", "a"), reference="a", **FAST)
    cut = {m: comparison.cuts(t, m, rule="sensitivity") for m in "abc"}
    pair = comparison.align(t, ["c", "a"])
    one = paired.chain_difference(
        pair.truth,
        pair.scores["c"],
        pair.scores["a"],
        metric="specificity",
        threshold_a=cut["c"],
        threshold_b=cut["a"],
        group=pair.group,
        seed=np.repeat([0, 1, 2], 160),
        fold=[f for s in range(3) for f in sorted(t[(t.model == "a") & (t.split == "test") & (t.seed == s)]["fold"])],
        n_resamples=200,
    )
    mine = found.differences.set_index(["contrast", "rule", "chosen_on", "quantity"]).loc[
        ("c − a", "sensitivity ≥ 0.90", "validation", "specificity")
    ]
    assert (mine["estimate"], mine["low"], mine["high"], mine["p"]) == pytest.approx(
        (one.difference, one.low, one.high, one.p_value), abs=1e-12
    )
    areas = comparison.differences(t, reference="a", **FAST).set_index("contrast").loc["c − a"]
    alone = paired.chain_difference(
        pair.truth,
        pair.scores["c"],
        pair.scores["a"],
        group=pair.group,
        seed=np.repeat([0, 1, 2], 160),
        fold=[f for s in range(3) for f in sorted(t[(t.model == "a") & (t.split == "test") & (t.seed == s)]["fold"])],
        n_resamples=200,
    )
    assert (areas["low"], areas["high"], areas["p"], areas["detectable"]) == pytest.approx(
        (alone.low, alone.high, alone.p_value, alone.detectable), abs=1e-12
    )


def test_net_benefit_and_curves_of_one_test_set_are_those_of_the_plain_functions():
    t = table()
    test = t[(t["split"] == "test") & (t["model"] == "new")].sort_values("image_id")
    y, p = (test["y_true"] == "ill").to_numpy().astype(int), test["p_ill"].to_numpy()
    own = operating.evaluate(t, ("new", "old"), thresholds=[0.1, 0.3, 0.5], **FAST).benefit
    own = own[(own["model"] == "new") & (own["risks"] == "as given")]
    plain = decision.net_benefit(y, p, [0.1, 0.3, 0.5], n_resamples=100)
    assert own["estimate"].to_numpy() == pytest.approx(plain.model) and own["treat_all"].to_numpy() == pytest.approx(
        plain.treat_all
    )
    curves = comparison.curves(t, **FAST)
    curves = curves[curves["model"] == "new"].set_index("curve")
    assert curves.loc["roc", "y"].to_numpy() == pytest.approx(
        np.interp(chains.GRID, *(lambda c: (c.fpr, c.tpr))(roc.roc_curve(y, p, n_resamples=100)))
    )
    assert (curves["low"] <= curves["y"] + 1e-9).mean() > 0.95 and (curves["y"] <= curves["high"] + 1e-9).mean() > 0.95


def test_recalibration_is_fitted_on_validation_and_judged_on_test():
    t = table(n=400)
    rows = operating.calibration(t).set_index(["model", "risks"])
    own = t[t["model"] == "new"]
    val, test = (own[own["split"] == s] for s in ("val", "test"))
    mended = calibrations.recalibrate((val["y_true"] == "ill").astype(int), val["p_ill"], test["p_ill"])
    line = calibrations.calibration_line((test["y_true"] == "ill").astype(int), mended)
    assert rows.loc[("new", "platt"), "slope"] == pytest.approx(line.slope) and rows.loc[
        ("new", "platt"), "in_the_large"
    ] == pytest.approx(line.in_the_large)
    deciles = operating.reliability(t)
    assert deciles.groupby(["model", "risks"])["n_images"].sum().eq(200).all()


def test_the_positive_class_can_be_named_and_several_classes_become_one_against_the_rest():
    t = table()
    flipped = operating.binary(t, "well")
    assert predictions.classes(flipped) == ("ill", "well")
    three = t.assign(p_other=0.0)[[*predictions.COLUMNS, "p_well", "p_ill", "p_other"]]
    one = operating.binary(three, "ill")
    assert predictions.classes(one) == ("not ill", "ill") and set(one["y_true"]) == {"not ill", "ill"}
    assert operating.positives(t) == {"": "ill"}
    with pytest.raises(MstlError, match="'sick' is no class"):
        operating.binary(t, "sick")


def test_a_useful_range_lies_where_the_band_is_above_both_alternatives():
    rows = pd.DataFrame(
        {
            "model": "m",
            "threshold": [0.1, 0.2, 0.3, 0.4, 0.5],
            "low": [0.1, 0.3, 0.3, 0.2, -0.1],
            "treat_all": [0.2, 0.1, 0.0, -0.1, -0.3],
        }
    )
    assert operating.useful(rows, "m") == (0.2, 0.4)
    assert operating.useful(rows.assign(low=-0.2), "m") is None


def test_names_for_prose_are_finite_numbers():
    t = table(folds=3, target="chest")
    found = operating.evaluate(t, ("new", "old"), **FAST)
    named = operating.numbers(found, operating.calibration(t))
    assert {
        "specificity_high_sensitivity_chest_new",
        "saved_high_sensitivity_chest_low",
        "brier_chest_new_recalibrated",
        "slope_chest_old",
        "prevalence_chest",
    } <= set(named)
    assert all(np.isfinite(v) for v in named.values())


# ---------------------------------------------------------------------------------------------- Hasei et al. (2025), abstract


def test_each_printed_p_value_comes_from_the_corrected_test_of_one_pair_of_counts_only():
    rows = published.operating_points().set_index("rule")
    assert list(zip(rows["only_TL"], rows["only_SC"], strict=True)) == [(38, 21), (9, 0), (6, 0)] and rows["unique"].all()
    for row in rows.itertuples():
        digits = len(str(row.p_printed).split(".")[1])
        assert round(row.p_corrected, digits) == row.p_printed
        assert round(row.p_exact, digits) != row.p_printed
    assert rows["p_exact"].to_numpy() == pytest.approx([0.0363, 0.0039, 0.03125], abs=5e-5)


def test_printed_rates_are_shares_of_268_and_475_images_rounded_or_cut():
    rows = published.operating_points().set_index("rule")
    assert rows.loc["sensitivity ≥ 0.90", ["TL", "SC"]].tolist() == [429, 412] and rows.loc[
        "Youden", ["TL", "SC"]
    ].tolist() == [245, 239]
    assert (
        rows.loc["specificity ≥ 0.90", ["TL", "SC"]].tolist() == [214, 205]
        and rows.loc["specificity ≥ 0.90", "printed_as"] == "cut"
    )
    assert published.counts(0.5, 3) == (2, "neither")


def test_seventeen_false_positives_fewer_and_both_predictive_values_follow():
    table = published.high_sensitivity()
    assert (
        table == {"TL_tp": 242, "TL_fp": 46, "SC_tp": 242, "SC_fp": 63}
        and table["SC_fp"] - table["TL_fp"] == published.FALSE_POSITIVES_SAVED
    )
    assert round(242 / 288, 3) == 0.840 and round(242 / 305, 3) == 0.793


def test_the_printed_p_of_the_predictive_values_lies_among_those_of_every_possible_overlap():
    rows = published.ppv_tests(n_resamples=4000, step=13)
    assert rows["difference"].to_numpy() == pytest.approx(242 / 288 - 242 / 305)
    assert rows["p_ratio"].between(0.026, 0.031).all() and rows["p_bootstrap"].between(0.02, 0.045).all()


def test_the_printed_areas_allow_a_weak_correlation_at_most():
    implied = published.implied_correlation()
    assert implied["low"] < implied["correlation"] < implied["high"] < 0.3 and implied["unpaired"] == pytest.approx(
        0.507, abs=0.001
    )
