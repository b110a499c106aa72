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
