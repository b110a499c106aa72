"""Probes of frozen features, rankings by the measures, and the tables of the ablations."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from mstl import ablation, agreement, checkpoints, predictions, probing, training
from mstl.datasets import load, splits
from mstl.errors import MstlError
from mstl.metrics import roc, transferability
from mstl.models import backbones


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return load("phantom-ultrasound", size=32, root=tmp_path_factory.mktemp("data"), n=120, progress=False).select(["benign", "malignant"])


@pytest.fixture(scope="module")
def split(images):
    return splits.holdout(images, test=0.4, seed=0)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("run") / "checkpoint"
    checkpoints.save(place, backbones.create("test_vit", 5, image_size=32, seed=3), lineage=[{"stage": "source", "data": "none"}])
    return place


# --------------------------------------------------------------------------------------------------------------- features


def test_features_and_probabilities_are_those_of_the_network_and_come_back_from_the_cache(images, folder, tmp_path):
    rows = np.array([3, 1, 7])
    seen = probing.describe(folder, images, rows=rows, cache=tmp_path)
    model = checkpoints.load(folder)
    from dataclasses import replace

    model.spec = replace(model.spec, channels=1)
    np.testing.assert_array_equal(seen.features[np.sort(rows)], training.extract_features(model, images, np.sort(rows)))
    np.testing.assert_array_equal(seen.probabilities[np.sort(rows)], training.predict(model, images, np.sort(rows)))
    assert np.isnan(seen.features[[0, 2]]).all() and seen.features.shape[0] == len(images)
    assert len(list(tmp_path.glob("features-*.npz"))) == 1
    again = probing.describe(folder, images, rows=rows, cache=tmp_path)
    np.testing.assert_array_equal(again.features, seen.features)


def test_a_head_that_was_never_trained_has_no_probabilities(images, tmp_path):
    model = backbones.create("test_vit", 5, image_size=32, seed=3)
    checkpoints.save(tmp_path / "c", model, lineage=[], extra={"head": "statistics"})
    assert probing.describe(tmp_path / "c", images, rows=np.arange(4)).probabilities is None


def test_images_of_another_size_end_in_one_sentence(folder, tmp_path):
    other = load("phantom-chest", size=48, root=tmp_path, n=24, progress=False)
    with pytest.raises(MstlError, match="takes images of 32 px.*48 px"):
        probing.describe(folder, other)


def test_the_statistics_control_changes_no_weight_and_refuses_a_network_without_them(images):
    model = backbones.create("tf_efficientnet_lite0", 2, image_size=32, channels=1, seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    steps = training.adapt_statistics(model, images, np.arange(24), training.Recipe(steps=3, batch_size=8, augmentation="ultrasound"))
    after = model.state_dict()
    changed = {k for k in before if not before[k].equal(after[k])}
    assert steps == 3 and changed and all("running" in k or "num_batches" in k for k in changed)
    with pytest.raises(MstlError, match="no batch normalisation"):
        training.adapt_statistics(backbones.create("test_vit", 2, image_size=32, channels=1), images, np.arange(8), training.Recipe(steps=1))


def test_renewed_statistics_are_those_of_the_images_and_forget_where_the_network_came_from(images, tmp_path):
    import torch

    model = backbones.create("tf_efficientnet_lite0", 2, image_size=32, channels=1, seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen = []
    handle = first.register_forward_pre_hook(lambda module, given: seen.append(given[0].double()))
    training.renew_statistics(model, images, np.arange(30)[::-1], batch_size=8)
    handle.remove()
    after = model.state_dict()
    assert all("running" in k or "num_batches" in k for k in before if not before[k].equal(after[k])) and not model.training
    assert [len(x) for x in seen] == [8, 8, 7, 7] and all(m.momentum is not None for m in model.modules() if hasattr(m, "momentum"))
    assert np.allclose(first.running_mean, sum(x.mean((0, 2, 3)) for x in seen) / 4, atol=1e-5)
    assert np.allclose(first.running_var, sum(x.var((0, 2, 3)) for x in seen) / 4, rtol=1e-4)
    other = backbones.create("tf_efficientnet_lite0", 2, image_size=32, channels=1, seed=0)
    training.adapt_statistics(other, images, np.arange(50, 80), training.Recipe(steps=3, batch_size=8))
    training.renew_statistics(other, images, np.arange(30), batch_size=8)
    assert all(after[k].equal(v) for k, v in other.state_dict().items()), "neither other images seen before nor the order of the rows matter"
    with pytest.raises(MstlError, match="no batch normalisation"):
        training.renew_statistics(backbones.create("test_vit", 2, image_size=32, channels=1), images, np.arange(8))
    with pytest.raises(MstlError, match="two images at least"):
        training.renew_statistics(model, images, np.arange(1))


def test_features_after_renewing_are_kept_apart_from_the_others(images, tmp_path):
    checkpoints.save(tmp_path / "c", backbones.create("test_efficientnet", 3, image_size=32, seed=1), lineage=[{"stage": "source", "data": "none"}])
    kept = probing.describe(tmp_path / "c", images, cache=tmp_path)
    renewed = [probing.describe(tmp_path / "c", images, renew=rows, cache=tmp_path) for rows in (np.arange(40), np.arange(40)[::-1], np.arange(40, 80))]
    assert len(list(tmp_path.glob("features-*.npz"))) == 3
    np.testing.assert_array_equal(renewed[0].features, renewed[1].features)
    assert not np.allclose(renewed[0].features, kept.features) and not np.allclose(renewed[0].features, renewed[2].features)
    np.testing.assert_array_equal(probing.describe(tmp_path / "c", images, cache=tmp_path).features, kept.features)


# ------------------------------------------------------------------------------------------------------- measures and probes


def blobs(n=90, d=40, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    return random.normal(size=(n, d)) + 0.6 * labels[:, None] * (np.arange(d) < 5), labels


def test_each_measure_is_the_one_of_the_metrics_module():
    features, labels = blobs()
    theta = np.random.default_rng(1).dirichlet(np.ones(4), len(labels))
    found = probing.measure(features, labels, source_probs=theta)
    assert found["leep"] == transferability.leep(theta, labels) and found["nce"] == transferability.nce(theta.argmax(1), labels)
    assert found["logme"] == transferability.logme(features, labels) and found["gbc"] == transferability.gbc(features, labels, components=64)
    assert set(found) == set(probing.MEASURES) and all(np.isfinite(list(found.values())))


def test_measures_of_a_head_are_absent_without_one_and_more_images_than_the_limit_are_drawn_by_class():
    features, labels = blobs(300)
    few = probing.measure(features, labels, names=["leep", "logme"], n_max=60)
    rows = transferability.stratified_part(labels, 60, 0)
    assert few["leep"] is None and few["logme"] == transferability.logme(features[rows], labels[rows])


def test_exact_copies_are_left_out_of_the_measures_where_their_labels_agree(images, folder):
    pixels, labels = images.images.copy(), images.labels.copy()
    same, other = np.flatnonzero(labels == labels[0])[1], np.flatnonzero(labels != labels[0])[0]
    pixels[same], pixels[other] = pixels[0], pixels[0]
    copied = SimpleNamespace(images=pixels, labels=labels)
    rows = np.arange(len(labels))
    np.testing.assert_array_equal(probing.distinct(copied, rows), np.delete(rows, same))
    assert 0 not in probing.distinct(copied, rows[::-1]) and same in probing.distinct(copied, rows[::-1])


def test_a_promise_is_the_measures_of_a_part_of_the_images_and_needs_no_more_of_them(images, folder, monkeypatch):
    rows, asked = np.arange(0, len(images), 2), []
    describe = probing.describe
    monkeypatch.setattr(probing, "describe", lambda *args, rows: asked.append(rows) or describe(*args, rows=rows))
    promised = probing.promise(folder, images, np.append(rows, rows[3]), n_max=1000)  # an image twice is one image
    seen = describe(folder, images, rows=rows)
    assert promised == probing.measure(seen.features[rows], images.labels[rows], source_probs=seen.probabilities[rows])
    probing.promise(folder, images, rows, n_max=20)
    assert [len(part) for part in asked] == [len(rows), 20] and set(asked[1]) < set(rows)
    assert set(images.labels[asked[1]]) == set(images.labels[rows])


def test_an_unknown_measure_and_damaged_features_end_in_one_sentence():
    features, labels = blobs()
    with pytest.raises(MstlError, match="'legme' does not exist"):
        probing.measure(features, labels, names=["legme"])
    features[3, 4] = np.nan
    with pytest.raises(MstlError, match="not finite"):
        probing.measure(features, labels)


@pytest.mark.parametrize("d", [15, 200])
def test_a_probe_is_the_logistic_regression_of_the_whole_feature_space(d):
    features, labels = blobs(150, d)
    split = splits.Split(0, np.arange(70), np.arange(70, 100), np.arange(100, 150))
    found = probing.probe(features, labels, split, n_classes=2)
    x = (features - features[:70].mean(0)) / features[:70].std(0)
    losses = {}
    for strength in probing.STRENGTHS:
        model = LogisticRegression(C=strength / 70, max_iter=10000, tol=1e-9).fit(x[:70], labels[:70])
        p = model.predict_proba(x)
        losses[strength] = (-np.log(p[np.arange(70, 100), labels[70:100]]).mean(), p[100:])
    best = min(losses, key=lambda s: losses[s][0])
    assert found.strength == best
    np.testing.assert_allclose(found.test, losses[best][1], atol=2e-5)


def test_a_probe_without_images_of_a_class_ends_in_one_sentence():
    features, labels = blobs(40)
    rows = np.flatnonzero(labels == 0)
    with pytest.raises(MstlError, match="1 of 2 classes"):
        probing.probe(features, labels, splits.Split(0, rows, rows[:3], rows[:3]), n_classes=2)


def test_sizes_of_the_atlas_are_nested_and_those_out_of_reach_are_left_out(images, split):
    features = np.random.default_rng(0).normal(size=(len(images), 6))
    fitted = probing.probe_sizes(features, images, split, [0, 12, 24, 100000])
    assert [(variant, n) for variant, n, _ in fitted] == [("probe", len(split.train)), ("probe_n12", 12), ("probe_n24", 24)]


# ------------------------------------------------------------------------------------------------------------------ ranking


def tables(n_bridges=14, chains=2, seed=0):
    """Scores and predictions where LogME tells the truth and the H-score the contrary; AUC grows from bridge to bridge."""
    random = np.random.default_rng(seed)
    truth = np.tile([0, 1], 40)
    scores, rows = [], []
    for b in range(n_bridges + 1):
        bridge = f"b{b:02d}" if b else ""
        for chain in range(chains):
            signal = truth + random.normal(size=80) * (3 - 0.18 * b)
            p = 1 / (1 + np.exp(-signal + 0.5))
            rows += [{"image_id": f"i{i}", "y_true": "ill" if t else "well", "p_well": 1 - v, "p_ill": v, "model": bridge or "ctl", "arm": "mstl" if b else "ctl",
                      "bridge": bridge, "target": "t", "backbone": "net", "variant": "probe", "seed": chain, "fold": 0, "split": "test", "group": f"i{i}"}
                     for i, (t, v) in enumerate(zip(truth, p))]
            if b or not chain:
                auc = roc.auc(truth == 1, p)
                scores.append({"target": "t", "backbone": "net", "source": "s", "bridge": bridge, "hop": "h", "seed": chain, "fold": 0, "n": 50,
                               "source_classes": 1000 if not b else 30 if b % 3 else 6, "leep": auc, "logme": auc, "h_score": -auc})
    return pd.DataFrame(scores), predictions.check(pd.DataFrame(rows))


def test_a_perfect_measure_agrees_perfectly_and_a_reversed_one_disagrees():
    scores, table = tables()
    scores.loc[0, ["logme", "h_score"]] = np.array([1, -1]) * agreement.reached(table).query("bridge == ''")["auc"].mean()  # the source is a mean over chains
    found = agreement.agreements(agreement.checkpoints(scores, table), n_resamples=100).set_index("measure")
    assert found.loc["LogME", "kendall"] == pytest.approx(1) and found.loc["H-score", "kendall"] == pytest.approx(-1)
    assert found.loc["LogME", "n"] == 29 and found.loc["LogME", "n_groups"] == 15
    assert "lay above zero in 1" in agreement.answer(found.reset_index(), measures=["LogME", "H-score"])
    assert "below zero in 1" in agreement.answer(found.reset_index(), measures=["LogME", "H-score"])


def test_the_answer_names_a_measure_with_too_few_bridges_apart_from_those_that_it_speaks_of():
    scores, table = tables()
    found = agreement.agreements(agreement.checkpoints(scores, table), n_resamples=100)
    said = agreement.answer(found, measures=["LEEP", "H-score"])  # LEEP has heads of equal size for ten bridges only
    assert "between the H-score and the AUC of a linear probe" in said and "LEEP could be compared over at most 10 independent bridges" in said
    shown = agreement.tidy(found).droplevel("target")
    assert shown.loc["LEEP", ["checkpoints", "bridges"]].tolist() == ["20 of 29", "10 (too few)"]
    assert shown.loc["LogME", ["checkpoints", "bridges"]].tolist() == ["29", "15"]


def test_a_measure_that_is_missing_in_one_fold_is_missing_and_not_the_mean_of_the_others():
    scores, table = tables()
    second = scores.assign(fold=1)
    second.loc[second["bridge"] == "b03", "logme"] = np.nan
    own = agreement.checkpoints(pd.concat([scores, second]), table).set_index("bridge")
    assert own.loc["b03", "logme"].isna().all() and own.drop("b03")["logme"].notna().all() and own["h_score"].notna().all()


def test_a_bridge_as_one_point_is_the_mean_of_its_chains_and_its_ceiling_is_higher():
    scores, table = tables()
    scores.loc[scores["bridge"].eq("b02") & scores["seed"].eq(1), "logme"] = np.nan
    found = agreement.checkpoints(scores, table)
    found = found[~(found["bridge"].eq("b05") & found["seed"].eq(1))]
    means = agreement.bridge_means(found).set_index("bridge")
    assert len(means) == 13 and not {"", "b05"} & set(means.index)  # a bridge that lacks a chain is left out
    assert means.loc["b03", "auc"] == found[found["bridge"] == "b03"]["auc"].mean() and np.isnan(means.loc["b02", "logme"])
    assert agreement.agreements(means.reset_index(), n_resamples=100).set_index("measure").loc["H-score", "n_groups"] == 13
    one, all_chains = (agreement.ceilings(found, averaged=mean)["kendall"].iloc[0] for mean in (False, True))
    assert one < all_chains <= 1


def test_bridges_of_the_same_images_and_control_are_a_family():
    bridges = {"cells": {"data": "c"}, "half": {"data": "c", "images": 0.5}, "dealt": {"data": "c", "control": "labels"}}
    assert agreement.families(["cells", "half", "dealt", "theirs"], bridges) == {
        "cells": "c", "half": "c", "dealt": "c, labels shuffled", "theirs": "theirs"}


def test_what_the_source_promised_stands_beside_what_the_bridge_reached(tmp_path):
    learned = pd.DataFrame({"backbone": "net", "bridge": ["a", "b"], "chance": 0.25, "accuracy": [0.5, np.nan]})
    pd.DataFrame({"backbone": "net", "bridge": ["a", "c"], **{name: [-0.5, 1.0] for name in agreement.MEASURES}, "nce": [np.nan, 1]}).to_csv(
        tmp_path / "first_hop.csv", index=False)
    shown = agreement.hops([tmp_path], learned)
    columns = ["LEEP", "NCE", "accuracy reached", "chance"]
    assert shown.loc[("net", "a"), columns].tolist() == ["-0.5", "—", "50.0%", "25.0%"] and shown.loc[("net", "c"), columns].tolist() == ["1", "1", "—", "—"]
    assert agreement.hops([], learned.iloc[:0]).empty


def test_a_measure_of_the_head_is_compared_between_heads_of_equal_size_only():
    scores, table = tables()
    found = agreement.agreements(agreement.checkpoints(scores, table), n_resamples=100).set_index("measure")
    assert found.loc["LEEP", "source_classes"] == 30 and found.loc["LEEP", "n"] == 2 * sum(b % 3 != 0 for b in range(1, 15))
    shown = agreement.comparable(agreement.checkpoints(scores, table))
    assert shown["leep"].notna().sum() == found.loc["LEEP", "n"] and shown["logme"].notna().all()


def test_few_checkpoints_are_no_evidence_and_the_answer_says_so():
    scores, table = tables(n_bridges=4)
    found = agreement.agreements(agreement.checkpoints(scores, table), n_resamples=100)
    assert "cannot say" in agreement.answer(found, measures=["LogME"])


def test_the_source_network_stands_for_all_chains():
    scores, table = tables()
    source = agreement.checkpoints(scores, table).query("bridge == ''")
    assert len(source) == 1 and source["n_runs"].iloc[0] == 2
    assert source["auc"].iloc[0] == pytest.approx(agreement.reached(table).query("bridge == ''")["auc"].mean())


def test_what_three_arms_can_show_is_the_t_test_of_a_correlation():
    from scipy import stats

    three = agreement.by_three(0.95)
    x, y = np.array([0.0, 1, 2]), None
    angle = np.arccos(0.95)  # three centred points are a circle: r is the cosine of an angle
    u, v = np.array([-1, 0, 1]) / np.sqrt(2), np.array([1, -2, 1]) / np.sqrt(6)
    y = np.cos(angle) * u + np.sin(angle) * v
    assert three["p_value"] == pytest.approx(stats.pearsonr(x, y).pvalue, rel=1e-9) and 0.996 < three["needed"] < 0.998


def test_a_table_that_is_no_transferability_table_ends_in_one_sentence(tmp_path):
    (tmp_path / "transferability.csv").write_text("target,backbone\nt,net\n")
    with pytest.raises(MstlError, match="lacks the column 'source'"):
        agreement.read([tmp_path])
    with pytest.raises(MstlError, match="There is no transferability table"):
        agreement.read([tmp_path / "none"])


# ----------------------------------------------------------------------------------------------------------------- ablations


def test_an_effect_is_the_mean_of_within_fold_differences(tmp_path):
    _, table = tables(n_bridges=2)
    own = ablation.effects(table, [("b02", "ctl"), ("b02", "absent")], n_resamples=200)
    reached = agreement.reached(table).set_index(["bridge", "seed"])["auc"]
    assert len(own) == 1 and own["estimate"].iloc[0] == pytest.approx((reached["b02"] - reached[""]).mean())
    assert own["low"].iloc[0] < own["estimate"].iloc[0] < own["high"].iloc[0] and own["n_chains"].iloc[0] == 2


def test_what_a_bridge_learnt_is_read_from_the_records_beside_the_runs(tmp_path):
    def record(run, metrics, **more):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "run.json").write_text(json.dumps({"parents": [], "parameters": {}} | more))
        (tmp_path / run / "metrics.json").write_text(json.dumps(metrics))

    for name, accuracy in (("cells", {"0": 0.25, "1": 0.75}), ("statistics", {"0": None, "1": None})):
        record(f"20_bridge/net-{name}", {"accuracy": accuracy, "chance": 0.1, "images": 90, "held_out": 10},
               parameters={"backbone": "net", "bridge": name})
    record("35_probe/t-net", {}, parents=["10_source/net", "20_bridge/net-cells", "20_bridge/net-statistics"])
    record("35_probe/u-net", {}, parents=["20_bridge/net-cells", "20_bridge/net-gone"])
    (tmp_path / "mine.csv").write_text("")
    (tmp_path / "run.json").write_text("{}")  # somebody else's
    found = ablation.learned([tmp_path / "35_probe/t-net", tmp_path / "35_probe/u-net/predictions.csv", tmp_path / "mine.csv"])
    assert found["bridge"].tolist() == ["cells", "statistics"] and found.loc[0, ["accuracy", "least", "most"]].tolist() == [0.5, 0.25, 0.75]
    assert ablation.tidy_learned(found)["accuracy, held-out groups"].tolist() == ["50.0% (25.0% to 75.0%)", "not known"]
    assert ablation.learned([tmp_path / "mine.csv"]).empty


def test_an_atlas_shows_the_bridges_that_are_asked_for_and_always_those_that_others_added():
    table = pd.DataFrame({"model": ["ctl", *(f"b{i}" for i in range(8)), "mine"]})
    assert ablation.shown(table, ["b7", "absent"], always=["ctl", "mine"]) == ["b7", "mine"]
    assert ablation.shown(table, [], always=["mine"]) == [*(f"b{i}" for i in range(6)), "mine"]


def test_a_variant_can_be_a_model_of_its_own_and_a_bridge_gives_its_name(tmp_path):
    _, table = tables(n_bridges=1)
    table["model"] = table["arm"]
    more = table[table["arm"] == "ctl"].assign(variant="more_steps")
    predictions.write(table, tmp_path / "a.csv")
    predictions.write(more, tmp_path / "b.csv")
    read = ablation.read([tmp_path / "a.csv", tmp_path / "b.csv"], rename={"more_steps": "longer"})
    assert set(read["model"]) == {"ctl", "b01", "longer"} and set(read.loc[read["model"] == "longer", "variant"]) == {""}


def test_models_on_different_images_are_not_compared():
    _, table = tables(n_bridges=1)
    short = table[~((table["model"] == "b01") & (table["image_id"] == "i3"))]
    with pytest.raises(MstlError, match="do not cover the same images"):
        ablation.effects(short, [("b01", "ctl")])


def test_the_curve_takes_the_parts_of_the_whole_bridge_and_no_substitute():
    recipe = {"epochs": 2}
    bridges = {"cells": {"data": "c", "recipe": recipe}, "half": {"data": "c", "images": 0.5, "recipe": recipe},
               "half_steps": {"data": "c", "images": 0.5, "recipe": {"steps": 9}}, "lines": {"data": "c", "lines": 0.25, "draw": -1, "recipe": recipe},
               "other": {"data": "d", "images": 0.5}, "merged": {"data": "c", "merge": "random", "merge_to": 2}}
    parts = ablation.curve(bridges, "cells").set_index("bridge")
    assert set(parts.index) == {"half", "half_steps", "lines"}
    assert parts.loc["half_steps", "steps"] == "equal steps" and parts.loc["lines", ["kind", "share"]].tolist() == ["lines", 0.25]
    with pytest.raises(MstlError, match="'cell' is not one of the study"):
        ablation.curve(bridges, "cell")
    rows = pd.DataFrame({"target": "t", "variant": ["", "", "probe", "probe", "probe"], "backbone": "b", "a": ["cells", "half", "cells", "half", "half_steps"]})
    lines = ablation.along(rows, parts.reset_index(), "cells").groupby(["variant", "kind", "steps"])["share"].apply(sorted)
    images = "images of every line"
    assert lines.to_dict() == {("", images, "equal epochs"): [0.5, 1.0], ("probe", images, "equal epochs"): [0.5, 1.0],
                               ("probe", images, "equal steps"): [0.5, 1.0]}  # no line of which there is the whole alone


def test_verdicts_follow_the_interval_and_the_margin():
    rows = pd.DataFrame({"low": [0.01, -0.03, -0.01, -0.05, None], "high": [0.05, -0.01, 0.015, 0.05, None]})
    assert [ablation.verdict(r, 0.02) for r in rows.itertuples()] == [
        "higher", "lower", "equivalent within ± 0.02", "a difference is not shown", "no interval exists"]
