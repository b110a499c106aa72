"""From a table of predictions to its comparison."""

import numpy as np
import pandas as pd
import pytest

from mstl import comparison
from mstl.errors import MstlError


def table(models=("scratch", "ctl", "mstl"), n=120, folds=3, seeds=(0, 1, 2), target="chest", lift=None, classes=("normal", "ill"), val=True):
    """Scores of known quality: model k has a normal score whose mean differs by ``lift[k]`` between the classes."""
    rng = np.random.default_rng(3)
    y, fold, group = np.arange(n) % 5 < 2, np.arange(n) // 2 % folds, np.arange(n) // 2
    lift = lift or {m: 0.8 + 0.6 * k for k, m in enumerate(models)}
    rows = []
    for model in models:
        for seed in seeds:
            for k in range(folds):
                for split in ("test", "val") if val else ("test",):
                    at = np.flatnonzero(fold == (k if split == "test" else (k + 1) % folds))
                    p = 1 / (1 + np.exp(-(lift[model] * (2 * y[at] - 1) + rng.normal(size=len(at)))))
                    rows.append(pd.DataFrame({"model": model, "target": target, "variant": "", "backbone": "b", "seed": seed, "fold": k, "split": split,
                                              "image_id": [f"{target}{i}" for i in at], "group": [f"g{group[i]}" for i in at],
                                              "y_true": np.where(y[at], classes[1], classes[0]), f"p_{classes[0]}": 1 - p, f"p_{classes[1]}": p}))
    return pd.concat(rows, ignore_index=True)


FAST = {"n_resamples": 200}


def test_a_block_counts_its_images_groups_chains_folds_and_fits():
    row = comparison.blocks(table()).iloc[0]
    assert (row["images"], row["groups"], row["chains"], row["folds"], row["fits"]) == (120, 60, 3, 3, 27)
    assert row["models"] == "scratch, ctl, mstl"


def test_the_auc_of_an_arm_is_the_mean_of_its_aucs_within_folds():
    from sklearn.metrics import roc_auc_score

    t = table()
    found = comparison.arms(t, **FAST).set_index(["model", "metric"])["estimate"]
    own = t[(t["model"] == "ctl") & (t["split"] == "test")]
    cells = [roc_auc_score(c["y_true"] == "ill", c["p_ill"]) for _, c in own.groupby(["seed", "fold"])]
    assert found["ctl", "AUC"] == pytest.approx(np.mean(cells), abs=1e-12)


def test_the_auc_alone_is_the_auc_among_the_other_metrics():
    t = table()
    every = comparison.arms(t, **FAST)
    pd.testing.assert_frame_equal(comparison.arms(t, only_auc=True, **FAST), every[every["metric"] == "AUC"].reset_index(drop=True))


def test_the_cut_is_fixed_on_validation_and_never_on_test():
    t = table()
    before = comparison.arms(t, **FAST).set_index(["model", "metric"])["estimate"]
    moved = t.copy()
    test = moved["split"] == "test"
    moved.loc[test, ["p_normal", "p_ill"]] = moved.loc[test, ["p_ill", "p_normal"]].to_numpy()
    after = comparison.arms(moved, **FAST).set_index(["model", "metric"])["estimate"]
    assert after["mstl", "accuracy"] < 0.5 < before["mstl", "accuracy"]  # a cut chosen on test would have adapted


def test_a_difference_is_the_difference_of_the_means_and_its_sign_is_first_minus_second():
    t = table()
    arms = comparison.arms(t, **FAST).set_index(["model", "metric"])["estimate"]
    first = comparison.differences(t, ("mstl", "ctl"), **FAST).iloc[0]
    assert first["contrast"] == "mstl − ctl" and first["primary"]
    assert first["estimate"] == pytest.approx(arms["mstl", "AUC"] - arms["ctl", "AUC"], abs=1e-12)
    reverse = comparison.differences(t, ("ctl", "mstl"), **FAST).iloc[0]
    assert reverse["estimate"] == pytest.approx(-first["estimate"], abs=1e-12)


def test_holm_runs_over_the_primary_contrasts_of_the_family_only():
    t = pd.concat([table(target="a"), table(target="b", classes=("normal", "ill")), table(target="floor")], ignore_index=True)
    rows = comparison.differences(t, ("mstl", "ctl"), family=["a", "b"], **FAST)
    assert rows["family"].sum() == 2 and rows.loc[~rows["family"], "p_holm"].isna().all()
    own = rows[rows["family"]]
    assert (own["p_holm"] >= own["p"]).all() and own["p_holm"].max() <= 1


def test_primary_differences_may_have_more_resamples_than_the_others():
    t = table()
    few, many, both = (comparison.differences(t, n_resamples=n, n_resamples_primary=m).set_index("contrast") for n, m in ((100, 0), (400, 0), (100, 400)))
    own = ["low", "high", "p", "detectable"]
    assert both.loc["mstl − ctl", own].tolist() == many.loc["mstl − ctl", own].tolist() != few.loc["mstl − ctl", own].tolist()
    assert both.loc["ctl − scratch", own].tolist() == few.loc["ctl − scratch", own].tolist()


def test_models_that_do_not_cover_the_same_images_are_not_compared():
    t = table()
    gap = t.drop(t[(t["model"] == "mstl") & (t["split"] == "test")].index[:1])
    with pytest.raises(MstlError, match="do not cover the same images"):
        comparison.differences(gap, ("mstl", "ctl"), **FAST)


def test_one_model_alone_is_told_that_there_is_nothing_to_compare():
    with pytest.raises(MstlError, match="nothing to compare"):
        comparison.differences(table(models=("ctl",)), **FAST)


def test_a_metric_that_does_not_exist_is_left_empty_with_its_reason():
    t = table(val=False)
    t.loc[t["model"] == "ctl", "p_ill"] = 0.1
    t.loc[t["model"] == "ctl", "p_normal"] = 0.9
    rows = comparison.arms(t, **FAST).set_index(["model", "metric"])
    assert pd.isna(rows.loc[("ctl", "precision"), "estimate"]) and "not defined" in rows.loc[("ctl", "precision"), "note"]
    assert "not defined" in comparison.spread(rows.reset_index()).loc[("chest", "ctl"), "precision"]


@pytest.mark.parametrize(("low", "high", "p", "word"), [(0.01, 0.05, 0.01, "higher"), (-0.05, -0.01, 0.01, "lower"), (-0.01, 0.015, 0.6, "equivalent"),
                                                       (-0.05, 0.04, 0.6, "not shown"), (0.001, 0.05, 0.09, "not shown")])
def test_the_answer_follows_from_interval_and_adjusted_p(low, high, p, word):
    rows = pd.DataFrame([{"target": "a", "variant": "", "backbone": "b", "contrast": "mstl − ctl", "family": True,
                          "estimate": (low + high) / 2, "low": low, "high": high, "p_holm": p}])
    said = comparison.answer(rows, margin=0.02)
    assert word in said and "real images" in said and "simulated" in comparison.answer(rows, margin=0.02, simulated=True)


def test_the_answer_of_a_single_chain_says_what_its_intervals_leave_out():
    several, single = (comparison.differences(table(seeds=seeds), **FAST) for seeds in ((0, 1), (0,)))
    assert "One chain" in comparison.answer(single, margin=0.02) and "One chain" not in comparison.answer(several, margin=0.02)


def test_every_number_has_a_name_for_the_prose_and_none_is_missing_or_nan():
    t = table()
    arms, differences = comparison.arms(t, **FAST), comparison.differences(t, **FAST)
    found = comparison.numbers(arms, differences)
    assert {"auc_chest_mstl", "diff_chest", "diff_chest_low", "p_chest", "detectable_chest", "n_test_chest"} <= set(found)
    assert all(np.isfinite(v) for v in found.values()) and found["n_test_chest"] == 120


def test_three_classes_are_compared_by_the_mean_of_one_against_the_rest():
    rng = np.random.default_rng(0)
    names, rows = ["F", "G", "D"], []
    for model, lift in (("ctl", 1.0), ("mstl", 2.0)):
        y = np.arange(150) % 3
        p = np.exp(rng.normal(size=(150, 3)) + lift * np.eye(3)[y])
        p /= p.sum(1, keepdims=True)
        rows.append(pd.DataFrame({"model": model, "target": "tissue", "variant": "", "backbone": "b", "seed": 0, "fold": 0, "split": "test",
                                  "image_id": [f"i{i}" for i in range(150)], "group": [f"i{i}" for i in range(150)], "y_true": np.array(names)[y],
                                  **{f"p_{name}": p[:, k] for k, name in enumerate(names)}}))
    t = pd.concat(rows, ignore_index=True)
    assert comparison.differences(t, **FAST)["estimate"].iloc[0] > 0
    assert len(comparison.arms(t, **FAST)) == 10


def test_with_a_reference_every_other_model_is_compared_with_it_and_holm_runs_over_all_of_them():
    rows = comparison.differences(table(models=("a", "b", "c", "d")), reference="b", **FAST)
    assert list(rows[rows["primary"]]["contrast"]) == ["a − b", "c − b", "d − b"] and len(rows) == 6
    own = rows[rows["primary"]]
    assert (own["p_holm"].astype(float) >= own["p"] - 1e-12).all() and rows[~rows["primary"]]["p_holm"].isna().all()
    with pytest.raises(MstlError, match="reference 'e' is not among"):
        comparison.differences(table(), reference="e", **FAST)


def test_models_with_fewer_chains_are_compared_in_the_chains_that_both_have():
    t = table()
    t = t[~((t["model"] == "scratch") & (t["seed"] > 0))]
    rows = comparison.differences(t, **FAST).set_index("contrast")
    assert rows["n_chains"].to_dict() == {"mstl − ctl": 3, "ctl − scratch": 1, "mstl − scratch": 1}


def test_many_differences_are_told_in_few_words():
    names = tuple(f"m{k}" for k in range(12))
    rows = comparison.differences(table(models=names, folds=1, seeds=(0,), lift={m: 0.2 + 0.1 * k for k, m in enumerate(names)}), **FAST)
    said = comparison.answer(rows, margin=0.02, own=True)
    assert "of 11 differences" in said and len(said) < 400


def test_a_curve_of_several_folds_is_the_mean_of_their_curves_and_not_that_of_pooled_scores():
    t = table(models=("old", "new"), folds=2, seeds=(0,), val=False)
    second = t["fold"] == 1
    t.loc[second, "p_ill"] = 0.5 * t.loc[second, "p_ill"]  # another offset, the same ranking within the fold
    t["p_normal"] = 1 - t["p_ill"]
    curves = comparison.curves(t, **FAST)
    arms = comparison.arms(t, **FAST).set_index(["model", "metric"])["estimate"]
    own = curves[(curves["model"] == "new") & (curves["curve"] == "roc")]
    assert np.trapezoid(own["y"], own["x"]) == pytest.approx(arms["new", "AUC"], abs=0.01) and (own["cells"] == 2).all()


def test_delong_is_given_for_each_test_set_alone_and_clustered_where_groups_hold_several_images():
    from mstl.metrics import roc

    t = table()
    rows = comparison.one_test_set(t)
    assert len(rows) == 9 and (rows["variance"] == "clustered").all() and not rows.duplicated(["seed", "fold"]).any()
    cell = t[(t["split"] == "test") & (t["seed"] == 1) & (t["fold"] == 2)].sort_values("image_id")
    a, b = (cell[cell["model"] == m] for m in ("mstl", "ctl"))
    alone = roc.delong_test((a["y_true"] == "ill").to_numpy(), a["p_ill"], b["p_ill"], groups=a["group"])
    assert rows.set_index(["seed", "fold"]).loc[(1, 2), "p"] == pytest.approx(alone.p_value)


def test_results_by_center_are_those_of_the_center_alone_and_one_class_is_said():
    t = table(folds=1, seeds=(0,), val=False)
    number = t["image_id"].str.extract(r"(\d+)$")[0].astype(int)
    t["center"] = np.where(number < 60, "north", np.where((t["y_true"] == "ill") & (number > 100), "east", "south"))
    rows = comparison.subgroups(t, **FAST).set_index(["value", "quantity"])
    alone = comparison.differences(t[t["center"] == "north"], **FAST).iloc[0]
    assert rows.loc[("north", "mstl − ctl"), "estimate"] == pytest.approx(alone["estimate"])
    assert pd.isna(rows.loc[("east", "all models"), "estimate"]) and "one class only" in rows.loc[("east", "all models"), "note"]
    assert not len(comparison.subgroups(t.assign(center=""), **FAST))
    with pytest.raises(MstlError, match="no column 'sex'"):
        comparison.subgroups(t, "sex", **FAST)


def test_a_group_is_positive_when_any_image_is_and_has_its_highest_score():
    t = table(models=("ctl", "mstl"), folds=1, seeds=(0,), val=False)
    units = comparison.by_group(t)
    own = t[(t["model"] == "mstl") & (t["group"] == "g0")]
    one = units[(units["model"] == "mstl") & (units["group"] == "g0")].iloc[0]
    assert one["p_ill"] == own["p_ill"].max() and one["y_true"] == ("ill" if (own["y_true"] == "ill").any() else "normal")
    assert len(units) == 2 * 60 and not len(comparison.by_group(t.assign(group=t["image_id"])))


def test_tests_of_several_models_are_given_only_where_they_exist_and_otherwise_say_why():
    t = table(folds=1, seeds=(0,), val=False)
    several = comparison.several(t, comparison.arms(t, **FAST)).set_index("test")
    assert "not independent" in several.loc["Cochran's Q", "note"] and "at least 6 data sets" in several.loc["Friedman", "note"]
    single = t.assign(group=t["image_id"])
    assert 0 <= comparison.several(single, comparison.arms(single, **FAST)).set_index("test").loc["Cochran's Q", "p"] <= 1
    folds = comparison.several(table(), comparison.arms(table(), **FAST)).set_index("test")
    assert "not one test set" in folds.loc["Cochran's Q", "note"]
    six = pd.concat([table(target=f"t{k}", folds=1, seeds=(0,), val=False) for k in range(6)], ignore_index=True)
    assert comparison.several(six, comparison.arms(six, **FAST)).set_index("test").loc["Friedman", "p"] < 0.05


def test_levels_stand_beside_the_difference_to_the_reference_with_its_adjusted_p():
    t = table()
    found = comparison.compare(t, **FAST)
    rows = comparison.beside(found.arms, found.differences, {}).set_index("model")
    assert rows.loc["ctl", "text"] == "reference" and "Holm" in rows.loc["mstl", "text"] and "exploratory" in rows.loc["scratch", "text"]
    assert rows.loc["scratch", "difference"] == pytest.approx(rows.loc["scratch", "estimate"] - rows.loc["ctl", "estimate"])
    assert rows.loc["scratch", "difference_low"] <= rows.loc["scratch", "difference"] <= rows.loc["scratch", "difference_high"]


def test_validation_rows_of_one_class_are_refused_by_name():
    t = table(folds=1, seeds=(0,))
    t = t[(t["split"] == "test") | (t["y_true"] == "normal")]
    with pytest.raises(MstlError, match="hold class 'normal' only"):
        comparison.arms(t, **FAST)
