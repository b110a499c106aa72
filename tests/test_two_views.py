"""Two views: examinations from images, networks that join them, the chapter's tables, and the notebook on tiny phantoms."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from mstl import comparison, datasets, predictions, templates
from mstl.datasets import phantoms, views
from mstl.errors import MstlError
from mstl.works import two_views as works


@pytest.fixture(scope="module")
def scans():
    return phantoms.make("scintigraphy", n=48, size=32, seed=1, workers=1)


def one_sentence(error):
    return "\n" not in str(error.value) and len(str(error.value)) > 40


# --- examinations -------------------------------------------------------------------------------------------------------


def test_a_pair_holds_both_views_of_its_case_and_their_mean_and_a_single_view_has_the_same_rows(scans):
    order = np.random.default_rng(0).permutation(len(scans))
    both = views.pairs(scans.subset(order), ["anterior", "posterior"])
    assert len(both) == 24 and list(both.ids) == sorted(set(scans.cases)) and both.channels == 3
    alone = {view: views.single(scans.subset(order), view) for view in phantoms.scintigraphy.VIEWS}
    for channel, (view, own) in enumerate(alone.items()):
        assert (own.ids == both.ids).all() and (own.labels == both.labels).all() and (own.groups == both.groups).all()
        assert (own.images[..., 0] == both.images[..., channel]).all() and set(own.views) == {view}
        for row, case in enumerate(both.ids):
            original = np.flatnonzero((scans.cases == case) & (scans.views == view))[0]
            assert (own.images[row] == scans.images[original]).all() and own.labels[row] == scans.labels[original]
    assert (both.images[..., 2] == both.images[..., :2].astype(int).sum(-1) // 2).all()
    assert {"subtype", "conspicuity_anterior", "conspicuity_posterior"} == set(both.extra.columns)
    turned = views.pairs(scans, ["posterior", "anterior"])
    assert (turned.images[..., 0] == both.images[..., 1]).all()


def test_with_the_rule_any_a_case_is_positive_when_one_of_its_views_is_and_says_which(scans):
    labels = scans.labels.copy()
    labels[scans.views == "anterior"] = 0
    one_sided = dataclasses.replace(scans, labels=labels)
    with pytest.raises(MstlError, match="two labels") as error:
        views.pairs(one_sided)
    assert one_sentence(error) and "label='any'" in str(error.value)
    either = views.pairs(one_sided, label="any")
    assert (either.labels == views.pairs(scans).labels).all()
    assert (either.extra["where"] == np.where(either.labels == 1, "posterior", "")).all()
    assert set(views.pairs(scans, label="any").extra["where"]) == {"", "anterior and posterior"}


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: s.subset(np.flatnonzero(np.arange(len(s)) != 5)), "has no view"),
    (lambda s: dataclasses.replace(s, views=np.where(np.arange(len(s)) == 5, s.views[4], s.views)), "twice"),
    (lambda s: dataclasses.replace(s, views=None), "columns case and view"),
    (lambda s: s.with_groups(np.array([f"g{i}" for i in range(len(s))])), "differ in groups"),
    (lambda s: dataclasses.replace(s, images=np.repeat(s.images, 3, axis=-1)), "must be grey"),
    (lambda s: dataclasses.replace(s, views=np.where(np.arange(len(s)) == 5, "oblique", s.views)), "two different views are joined, not 3"),
])
def test_what_cannot_be_paired_is_one_sentence(scans, change, words):
    with pytest.raises(MstlError, match=words) as error:
        views.pairs(change(scans))
    assert one_sentence(error)


def test_an_unknown_view_or_rule_is_answered_with_the_nearest(scans):
    with pytest.raises(MstlError, match="did you mean 'anterior'"):
        views.pairs(scans, ["anteror", "posterior"])
    with pytest.raises(MstlError, match="use 'same' or 'any'"):
        views.pairs(scans, label="all")
    with pytest.raises(MstlError, match="has no view 'left'"):
        views.single(scans, "left")


@pytest.fixture
def manifest(scans, tmp_path):
    from PIL import Image

    rows = []
    for row in range(12):
        name = f"{row}.png"
        Image.fromarray(scans.images[row, ..., 0]).save(tmp_path / name)
        rows.append([name, scans.classes[scans.labels[row]], scans.groups[row], scans.views[row], scans.cases[row]])
    table = pd.DataFrame(rows, columns=["path", "label", "group", "view", "case"])

    def loaded(**changes):
        for (column, row), value in changes.pop("cells", {}).items():
            table.loc[row, column] = value
        table.drop(index=changes.pop("drop", [])).to_csv(tmp_path / "manifest.csv", index=False)
        return datasets.load(tmp_path, size=32, root=tmp_path / "data", progress=False, workers=1)

    return loaded


def test_a_folder_of_ones_own_becomes_examinations_by_its_columns_case_and_view(manifest, scans):
    both = views.pairs(manifest())
    assert len(both) == 6 and set(both.ids) == set(scans.cases[:12])


@pytest.mark.parametrize(("changes", "words"), [
    (dict(cells={("view", 1): "anterior"}), "line 3: the case '.*' has the view 'anterior' twice, here and in line 2"),
    (dict(cells={("view", 1): ""}), "line 3: the image of the case '.*' has no view"),
    (dict(drop=[1]), "has no view 'posterior', and 1 of 6 cases lack one"),
    (dict(cells={("label", 0): "normal", ("label", 1): "metastasis"}), "have two labels"),
])
def test_a_manifest_with_a_view_missing_twice_or_of_two_labels_is_one_sentence(manifest, changes, words):
    with pytest.raises(MstlError, match=words) as error:
        views.pairs(manifest(**changes))
    assert one_sentence(error)


# --- networks -----------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
from mstl import checkpoints, training  # noqa: E402
from mstl.models import backbones, two_view  # noqa: E402

TINY = "test_efficientnet"


def tiny(**options):
    return two_view.create(TINY, ["normal", "metastasis"], image_size=32, **options).eval()


def inputs(n=3):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_joined_features_are_what_their_names_say():
    x = inputs()
    alone = tiny().views(x)
    first, second = alone[:, 0], alone[:, 1]
    assert torch.allclose(tiny().forward_features(x), torch.cat([first, second], 1))
    assert torch.allclose(tiny(aggregation="add").forward_features(x), first + second)
    assert torch.allclose(tiny(aggregation="max").forward_features(x), torch.maximum(first, second))
    weighed = tiny(aggregation="attention").forward_features(x)
    assert ((weighed <= torch.maximum(first, second) + 1e-6) & (weighed >= torch.minimum(first, second) - 1e-6)).all()


@pytest.mark.parametrize("aggregation", ["add", "max", "attention"])
def test_networks_that_do_not_join_end_to_end_cannot_tell_which_view_is_which(aggregation):
    x = inputs()
    plain = tiny(aggregation=aggregation, mirrored=False)
    assert torch.allclose(plain.forward_features(x), plain.forward_features(x[:, [1, 0, 2]]), atol=1e-6)
    end_to_end = tiny(mirrored=False)
    assert not torch.allclose(end_to_end.forward_features(x), end_to_end.forward_features(x[:, [1, 0, 2]]), atol=1e-3)


def test_the_second_view_alone_is_mirrored_and_the_third_channel_is_not_seen():
    x = inputs()
    flipped = torch.stack([x[:, 0], x[:, 1].flip(2), x[:, 2]], 1)
    assert torch.allclose(tiny(mirrored=True).views(x), tiny(mirrored=False).views(flipped), atol=1e-6)
    other = x.clone()
    other[:, 2] = 0
    assert torch.equal(tiny().views(x), tiny().views(other))


@pytest.mark.parametrize("shared", [True, False])
def test_a_single_view_checkpoint_loads_whole_into_each_encoder_and_nothing_else_does(tmp_path, shared):
    source = backbones.create(TINY, ["normal", "pneumonia"], image_size=32, channels=1, seed=5, mean=[0.2] * 3, std=[0.3] * 3)
    checkpoints.save(tmp_path / "chest", source, lineage=[])
    model = tiny(weights=tmp_path / "chest", shared=shared)
    x = inputs()
    grey = (x[:, :1] * 255).round().to(torch.uint8)
    expected = backbones.features(source.eval(), backbones.to_input(grey, source.spec))
    assert torch.allclose(model.views(grey.float().expand(-1, 3, -1, -1) / 255)[:, 0], expected, atol=1e-5)
    assert len(model.encoders) == (1 if shared else 2) and model.load_report.matched > 20
    for encoder in model.encoders:
        assert encoder.spec.mean == (0.2,) * 3
    with pytest.raises(MstlError, match="was trained with the backbone"):
        two_view.create("test_resnet", ["normal", "metastasis"], image_size=32, weights=tmp_path / "chest")


def test_two_random_encoders_differ_and_a_fresh_network_gives_every_class_the_same_chance():
    model = tiny(shared=False)
    one, two = (next(encoder.parameters()) for encoder in model.encoders)
    assert not torch.equal(one, two)
    assert torch.equal(model(inputs()), torch.zeros(3, 2))


@pytest.mark.parametrize(("options", "words"), [
    (dict(aggregation="mean"), "aggregation='mean' is unknown: use one of concat"),
    (dict(grey="adopt"), "grey='adopt' is unknown"),
])
def test_a_network_that_cannot_be_built_is_one_sentence(options, words):
    with pytest.raises(MstlError, match=words) as error:
        tiny(**options)
    assert one_sentence(error)


def test_a_fit_is_stored_loaded_and_predicts_the_same_and_a_frozen_one_trains_its_head_alone(scans, tmp_path):
    both = views.pairs(scans)
    train, val = np.arange(16), np.arange(16, 24)
    recipe = training.Recipe(steps=3, batch_size=8, lr=1e-2, monitor="loss", augmentation="radiograph")
    fits = [training.fit(tiny(aggregation="attention", shared=False, seed=3), both, train, val, recipe, folder=tmp_path, quiet=True) for _ in range(2)]
    assert not fits[0].loaded and fits[1].loaded
    assert np.array_equal(*(training.predict(fit.model, both) for fit in fits))
    assert training.extract_features(fits[0].model, both).shape == (24, fits[0].model.encoders[0].head_hidden_size)
    model = tiny(aggregation="attention")
    before = {name: value.clone() for name, value in model.named_parameters()}
    training.fit(model, both, train, None, dataclasses.replace(recipe, freeze="backbone"), quiet=True)
    changed = {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert "head" in changed and changed <= {"head", "attention"}
    with pytest.raises(MstlError, match="have no single order"):
        training.fit(tiny(), both, train, None, dataclasses.replace(recipe, freeze="stages:1"), quiet=True)


# --- the chapter's tables -----------------------------------------------------------------------------------------------


def table_of(scores, *, folds=2, cases=40, site="back"):
    """Made-up predictions of the models {name: how far positive cases stand out}."""
    rng = np.random.default_rng(0)
    rows = []
    for fold in range(folds):
        for case in range(cases):
            ill = case % 2
            for model, shift in scores.items():
                p = float(1 / (1 + np.exp(-(rng.normal() + shift * ill))))
                rows.append(dict(model=model, seed=0, fold=fold, split="test", image_id=f"{fold}-{case}", y_true=["normal", "metastasis"][ill], p_normal=1 - p,
                                 p_metastasis=p, site=(site if case % 4 == 1 else "front") if ill else ""))
    return predictions.check(pd.DataFrame(rows))


def test_each_network_differs_from_the_reference_in_one_thing():
    plan = works.networks(["imagenet", "scratch"], ["anterior", "posterior"], list(works.SWITCHES))
    first = plan[0]
    assert first.name == works.REFERENCE and first.start == "imagenet" and len({n.name for n in plan}) == len(plan) == 9
    for net in plan[1:]:
        assert sum([net.start != first.start, net.view != first.view, dict(net.joined) != {}]) == 1, net


@pytest.mark.parametrize(("arguments", "words"), [
    ((["imagenets"], [], []), "There is no start 'imagenets'"), (([], [], []), "No start was named"),
    ((["scratch", "scratch"], [], []), "named twice"), ((["scratch"], [], ["mean"]), "There is no switch 'mean'"),
])
def test_a_plan_that_cannot_be_made_is_one_sentence(arguments, words):
    with pytest.raises(MstlError, match=words) as error:
        works.networks(*arguments)
    assert one_sentence(error)


def test_late_fusion_is_the_mean_of_the_single_views_case_by_case():
    table = table_of({"a alone": 1.0, "b alone": 2.0})
    fused = works.late_fusion(table.sample(frac=1, random_state=1), ["a", "b"]).set_index(["fold", "image_id"])["p_metastasis"]
    wide = table.pivot(index=["fold", "image_id"], columns="model", values="p_metastasis")
    pd.testing.assert_series_equal(fused.sort_index(), wide.mean(axis=1), check_names=False)
    with pytest.raises(MstlError, match="do not cover the same cases"):
        works.late_fusion(table.iloc[1:], ["a", "b"])


def test_the_auc_of_a_site_is_of_its_cases_against_every_negative_one():
    table = table_of({works.REFERENCE: 1.5})
    rows = works.by_site(table, [works.REFERENCE], n_resamples=100)
    assert list(rows["site"]) == ["back", "front"] and (rows["n_positive"] == 20).all()
    own = table[(table["y_true"] == "normal") | (table["site"] == "back")]
    direct = comparison.arms(own, n_resamples=100)
    assert rows.loc[0, "estimate"] == direct.loc[direct["metric"] == "AUC", "estimate"].iloc[0]
    rare = table.assign(site=table["site"].where(table["image_id"] != "0-1", "rib"))
    assert "rib" not in set(works.by_site(rare, [works.REFERENCE], n_resamples=100)["site"]), "no fold but one has such a case"
    assert works.by_site(table.assign(site=""), [works.REFERENCE]).empty


def test_the_implied_share_and_specificity_give_the_published_figures_back():
    implied, printed = works.implied(), works.PUBLISHED
    share, recall = implied["prevalence"], printed["recall"]
    true, false = share * recall, (1 - share) * (1 - implied["specificity"])
    assert true / (true + false) == pytest.approx(printed["precision"], abs=1e-9)
    assert true + (1 - share) * implied["specificity"] == pytest.approx(printed["accuracy"], abs=1e-9)
    assert share == pytest.approx(0.502, abs=1e-3) and implied["f1"] == pytest.approx(0.7496, abs=1e-4)


def test_numbers_of_prose_are_plain_floats_under_the_models_names():
    found = comparison.compare(table_of({works.REFERENCE: 2.0, "anterior alone": 1.0}), reference=works.REFERENCE, n_resamples=100)
    numbers = works.numbers(found.arms, found.differences)
    assert numbers["auc_two_views"] - numbers["auc_anterior_alone"] == pytest.approx(-numbers["diff_anterior_alone"])
    assert all(type(value) is float for value in numbers.values())


def test_a_folder_that_is_no_run_of_this_chapter_is_one_sentence(tmp_path):
    with pytest.raises(MstlError, match="There is no predictions.csv"):
        works.read(tmp_path)
    predictions.write(table_of({works.REFERENCE: 1.0}), tmp_path / "predictions.csv")
    (tmp_path / "tuning.csv").write_text("model\n")
    (tmp_path / "run.json").write_text('{"data": []}')
    with pytest.raises(MstlError, match="names no images"):
        works.read(tmp_path)
    (tmp_path / "run.json").write_text('{"data": [{"name": "x"}]}')
    assert len(works.read(tmp_path)[0]) == 80
    predictions.write(table_of({works.REFERENCE: 1.0}).drop(columns="site"), tmp_path / "predictions.csv")
    with pytest.raises(MstlError, match="no column 'site'"):
        works.read(tmp_path)


# --- figures ------------------------------------------------------------------------------------------------------------


def test_examinations_are_shown_in_pairs_with_their_boxes_and_called_simulated(scans):
    from mstl import plots

    both = views.pairs(scans)
    figure = plots.examinations(scans, both, ["anterior", "posterior"], count=2, aspect=4.0)
    titles = [ax.get_title(loc="center") for ax in figure.axes]
    assert titles == ["normal,\nanterior", "normal,\nposterior", "metastasis,\nanterior", "metastasis,\nposterior"]
    outlined = [len(ax.patches) for ax in figure.axes]
    assert outlined[:2] == [0, 0] and min(outlined[2:]) > 0 and "simulated" in figure.get_suptitle()


def test_levels_beside_differences_look_the_same_when_they_are_printed_twice():
    from IPython.core.pylabtools import print_figure

    from mstl import plots

    plots.style()
    found = comparison.compare(table_of({works.REFERENCE: 2.0, "anterior alone": 1.0}), reference=works.REFERENCE, n_resamples=100)
    figure = plots.beside(comparison.beside(found.arms, found.differences, {"": "all images"}, reference=works.REFERENCE))
    assert print_figure(figure) == print_figure(figure)


# --- the notebook -------------------------------------------------------------------------------------------------------

SMALL = {"backbone": TINY, "image_size": 32, "options": {"n": 80}, "by": "subtype", "starts": ["chest", "scratch"], "switches": ["attention"], "chest_options": {"n": 24},
         "chest_recipe": {"steps": 2, "batch_size": 8}, "recipe": {"batch_size": 8}, "steps": [2], "seeds": [0, 1], "switch_seeds": [0], "n_resamples": 100}


def run(folder, name, parameters):
    command = [sys.executable, "-m", "mstl.execute", "74_two_views", "--out", f"runs/own/74_two_views/{name}", "--parameters", json.dumps(parameters)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "MSTL_HOME": str(folder), "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    done = run(home, "first", SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    return home


@pytest.mark.slow
def test_the_notebook_predicts_every_case_once_a_network_and_chain(finished):
    table = predictions.read(finished / "runs/own/74_two_views/first")
    test = table[table["split"] == "test"]
    assert set(test["model"]) == {"two views", "from scratch", "anterior alone", "posterior alone", "late fusion", "attention"}
    counts = test.groupby(["model", "seed"])["image_id"].agg(["nunique", "size"])
    assert (counts["nunique"] == 20).all() and (counts["size"] == 20).all() and len(counts) == 11, "the switch has one chain"
    assert (table.groupby(["model", "seed", "fold", "group"])["split"].nunique() == 1).all()


@pytest.mark.slow
def test_the_tables_of_a_finished_run_give_the_same_numbers_without_images_or_training(finished):
    again = run(finished, "again", {"results": "runs/own/74_two_views/first", "starts": SMALL["starts"], "switches": SMALL["switches"], "by": "subtype", "n_resamples": 100})
    assert again.returncode == 0, again.stderr[-2000:]
    place = finished / "runs/own/74_two_views"
    for name in ("predictions.csv", "arms.csv", "differences.csv"):
        assert (place / "again" / name).read_bytes() == (place / "first" / name).read_bytes(), name
    told = [json.loads((place / run / "metrics.json").read_text()) for run in ("first", "again")]
    assert told[0] == told[1] and "simulated images" in told[0]["answer"]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "said"), [({"starts": ["radimagenet"]}, "There is no start 'radimagenet'"), ({"label": "both"}, "must be one of same, any")])
def test_a_wrong_parameter_ends_in_one_sentence(tmp_path, change, said):
    done = run(tmp_path, "wrong", SMALL | change)
    assert done.returncode != 0 and said in done.stderr.strip().splitlines()[-1]


def test_the_template_declares_what_a_study_may_give_it():
    assert {"results", "seeds", "image_size", "threads", "margin", "n_resamples", "level"} <= set(templates.parameters("74_two_views"))
