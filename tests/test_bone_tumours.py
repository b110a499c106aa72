"""Lesions as crops around boxes: cases, designs, handcrafted features, readings, and the notebook from images to tables and back."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mstl import predictions, templates
from mstl.datasets import phantoms, splits
from mstl.errors import MstlError
from mstl.metrics import roc
from mstl.models import radiomics
from mstl.works import bone_tumours

EXAMPLE = Path(__file__).resolve().parent.parent / "data" / "example" / "readers.csv"


@pytest.fixture(scope="module")
def knees():
    return phantoms.make("knee", n=150, size=64, workers=1)


@pytest.fixture(scope="module")
def field(knees):
    return bone_tumours.cases(knees, ["benign", "malignant"])


# --- cases and crops ---------------------------------------------------------------------------------------------------


def test_a_case_is_an_image_of_the_asked_classes_with_its_largest_box(knees, field):
    assert set(np.array(field.classes)[field.labels]) == {"benign", "malignant"} and field.classes == ("benign", "malignant")
    assert np.array_equal(field.boxes["image"], np.arange(len(field)))
    extra = knees.boxes.iloc[[0]].assign(x0=1.0, y0=1.0, x1=60.0, y1=60.0)
    several = dataclasses.replace(knees, boxes=pd.concat([knees.boxes, extra], ignore_index=True))
    found = bone_tumours.cases(several, ["benign", "malignant"])
    row = list(found.ids).index(knees.ids[int(extra["image"].iloc[0])])
    assert bone_tumours.corners(found)[row].tolist() == [1, 1, 60, 60] and len(found) == len(field)


def test_labels_can_come_from_another_column_and_images_without_it_are_left_out(knees):
    severity = np.where(knees.labels == 2, "M", np.where(knees.labels == 1, "B", ""))
    found = bone_tumours.cases(dataclasses.replace(knees, extra=pd.DataFrame({"severity": severity})), ["B", "M"], label="severity")
    assert found.classes == ("B", "M") and np.array_equal(np.where(found.labels == 1, "M", "B"), found.extra["severity"])
    assert len(found) == (severity != "").sum()


def test_a_box_too_small_to_measure_is_widened_about_its_centre(knees):
    small = dataclasses.replace(knees, boxes=knees.boxes.assign(x0=30.0, x1=32.0, y0=10.0, y1=40.0))
    found = bone_tumours.corners(bone_tumours.cases(small, ["benign", "malignant"], smallest=8))
    assert (found == [27, 10, 35, 40]).all()


@pytest.mark.parametrize(("change", "options", "words"), [
    (dict(boxes=None), {}, "has no boxes around lesions"), ({}, dict(label="severity"), "no column 'severity'"),
    ({}, dict(label="subtype", classes=["no such", "normal"]), "give at least two of them"), ({}, dict(classes=["benign", "malign"]), "malign"),
    (dict(x1=70.0), {}, "outside its image"), (dict(x1=0.0), {}, "empty or lies outside")])
def test_cases_that_cannot_be_cut_are_one_sentence(knees, change, options, words):
    bad = knees
    if "boxes" in change:
        bad = dataclasses.replace(knees, boxes=None)
    elif change:
        bad = dataclasses.replace(knees, boxes=knees.boxes.assign(x1=knees.boxes["x1"].where(knees.boxes.index != 3, change["x1"])))
    with pytest.raises(MstlError, match=words) as error:
        bone_tumours.cases(bad, options.pop("classes", []), **options)
    assert "\n" not in str(error.value)


def test_a_crop_shows_what_lies_around_its_box_and_black_beyond_the_image():
    image = np.zeros((2, 40, 40, 1), np.uint8)
    image[:, 10:20, 10:20] = 200
    pixels, inside = bone_tumours.cut(image, [[10, 10, 20, 20], [-5, 10, 5, 20]], 20, 2.0)
    assert inside.tolist() == [[5, 5, 15, 15], [5, 5, 15, 15]]
    assert pixels[0, 7:13, 7:13].min() == 200 and pixels[0, :4].max() == 0
    assert pixels[1, :, :10].max() == 0, "the left half lies beyond the image"
    moved, there = bone_tumours.cut(image[:1], [[15, 10, 25, 20]], 20, 2.0, lesions=[[10, 10, 20, 20]])
    assert there.tolist() == [[0, 5, 10, 15]] and moved[0, 7:13, 2:8].min() == 200


def test_the_mask_of_a_case_is_its_lesion_within_its_box(field):
    strip = dataclasses.replace(field, boxes=field.boxes.assign(x0=-3.0, x1=40.0, y0=-2.0, y1=64.0))
    assert np.array_equal(bone_tumours.masks(field), field.masks), "a simulated knee has one lesion"
    found = bone_tumours.masks(strip)
    assert np.array_equal(found[:, :, :40], field.masks[:, :, :40]) and found[:, :, 40:].max() == 0 < field.masks[:, :, 40:].max()
    with pytest.raises(MstlError, match="has no lesion masks"):
        bone_tumours.masks(dataclasses.replace(field, masks=None))


def test_crops_keep_everything_but_pixels_and_boxes(field):
    made = bone_tumours.crops(field, 32, 1.5)
    assert made.images.shape == (len(field), 32, 32, 1) and np.array_equal(made.ids, field.ids) and np.array_equal(made.groups, field.groups)
    sides = bone_tumours.corners(made)
    assert (sides[:, 2:] - sides[:, :2]).max(axis=1) == pytest.approx(32 / 1.5) and (sides[:, :2] + sides[:, 2:]) / 2 == pytest.approx(16)


@pytest.mark.parametrize(("boxes", "context", "words"), [([[0, 0, 5, 5]], 1.5, "1 boxes were given for 2"), ([[0, 0, 5, 5]] * 2, 0, "context=0")])
def test_crops_that_cannot_be_cut_are_one_sentence(boxes, context, words):
    with pytest.raises(MstlError, match=words):
        bone_tumours.cut(np.zeros((2, 10, 10, 1), np.uint8), boxes, 8, context)


# --- who trains --------------------------------------------------------------------------------------------------------


def test_one_center_trains_and_every_image_of_the_others_is_tested(field):
    (part,) = bone_tumours.design(field, development="B", internal=0.3)
    assert set(field.centers[np.concatenate([part.train, part.val])]) == {"B"}
    assert set(np.flatnonzero(field.centers != "B")) <= set(part.test) and (field.centers[part.test] == "B").any()
    splits.check(part, field)
    assert len(bone_tumours.design(field, folds=3)) == 3


def test_a_center_that_is_not_there_or_alone_is_one_sentence(field):
    with pytest.raises(MstlError, match="'D' cannot be the one of development"):
        bone_tumours.design(field, development="D")
    with pytest.raises(MstlError, match="no named center"):
        bone_tumours.design(dataclasses.replace(field, centers=np.full(len(field), "")), development="A")


def test_external_rows_are_those_of_other_centers_and_all_validation():
    table = pd.DataFrame({"split": ["val", "test", "test"], "center": ["A", "A", "B"]})
    assert bone_tumours.external(table, "A").index.tolist() == [0, 2] and len(bone_tumours.external(table, "")) == 3


def test_delongs_test_is_that_of_each_center_and_of_all_external_images():
    rng = np.random.default_rng(0)
    rows = []
    for k in range(240):
        ill, center = bool(rng.random() < 0.5), "ABC"[k % 3]
        for model, sharp in (("a", 1.5), ("b", 0.8), ("c", 0.0)):
            p = 1 / (1 + np.exp(-sharp * (2 * ill - 1) - rng.normal()))
            rows.append({"model": model, "split": "test", "image_id": f"i{k}", "group": f"g{k // 6}", "center": center, "y_true": "ill" if ill else "well",
                         "p_well": 1 - p, "p_ill": p})
    table = predictions.check(pd.DataFrame(rows))
    found = bone_tumours.delong(table, "b", development="A").set_index(["test", "contrast"])
    assert list(dict.fromkeys(found.index.get_level_values(0))) == ["all external", "center A, internal", "center B", "center C"]
    own = table[table["center"] == "C"].pivot(index=["image_id", "group", "y_true"], columns="model", values="p_ill").reset_index()
    direct = roc.delong_test(own["y_true"] == "ill", own["a"], own["b"], groups=own["group"])
    row = found.loc[("center C", "a − b")]
    assert row["difference"] == pytest.approx(direct.difference) and row["p"] == pytest.approx(direct.p_value) and row["variance"] == "clustered"
    both = found.loc["center C"]
    assert both["p_holm"].astype(float).min() == pytest.approx(min(1, 2 * both["p"].min())) and found.loc[("all external", "a − b"), "n_images"] == 160
    assert set(bone_tumours.delong(table, "b")["test"]) == {"all"}


@pytest.mark.parametrize(("declared", "words"), [
    ([], "No network was declared"), ([{"name": "a"}], "is a mapping with name, backbone"),
    ([{"name": "a", "backbone": "b", "weight": "none"}], "did you mean 'weights'"), ([{"name": "texture", "backbone": "b"}], "stands for two models")])
def test_networks_that_cannot_be_built_are_one_sentence(declared, words):
    with pytest.raises(MstlError, match=words):
        bone_tumours.networks(declared, ["texture"])


def test_a_network_starts_from_the_checkpoint_of_a_run_from_a_file_or_from_nothing(field, tmp_path):
    from mstl import checkpoints
    from mstl.models import backbones

    torch = pytest.importorskip("torch")
    made = bone_tumours.crops(field, 32, 1.5)
    source = backbones.create("test_resnet", ["x", "y", "z"], image_size=32, channels=3, seed=5)
    checkpoints.save(tmp_path / "10_source" / "small" / "checkpoint", source, lineage=[])
    network = bone_tumours.networks([{"name": "radiology", "backbone": "test_resnet", "weights": "10_source/small"}])[0]
    start = bone_tumours.start(network, lambda where, what: tmp_path / where)
    assert start == tmp_path / "10_source" / "small" / "checkpoint"
    built = network.build(made, seed=0, start=start)
    assert torch.equal(built.conv1[0].weight, source.conv1[0].weight) and built.spec.classes == made.classes
    assert bone_tumours.start(dataclasses.replace(network, weights="none"), None) is None
    empty = dataclasses.replace(network, weights="none").build(made, seed=0)
    assert not torch.equal(empty.conv1[0].weight, source.conv1[0].weight)


def test_a_radimagenet_file_of_another_architecture_is_refused(field, tmp_path):
    torch = pytest.importorskip("torch")
    import torchvision

    donor = torchvision.models.resnet18(weights=None)
    layout = torch.nn.Sequential(*list(donor.children())[:-1])
    torch.save({f"backbone.{name}": value for name, value in layout.state_dict().items()}, tmp_path / "ResNet50.pt")
    network = bone_tumours.Network("radimagenet", "resnet50", str(tmp_path / "ResNet50.pt"), mean=0.5, std=0.5)
    with pytest.raises(MstlError, match="do not fit resnet50"):
        network.build(bone_tumours.crops(field, 32, 1.5), seed=0)


# --- handcrafted features ----------------------------------------------------------------------------------------------


def test_texture_features_of_known_regions_are_known():
    rng = np.random.default_rng(0)
    images = np.stack([np.full((30, 30), 100), rng.integers(0, 256, (30, 30)), np.tile([0, 250], (30, 15))]).astype(np.uint8)
    x = radiomics.measure(images, "texture", boxes=[[5, 5, 25, 15]] * 3)
    assert x["mean"][0] == 100 and x["sd"][0] == x["entropy"][0] == x["gradient"][0] == x["glcm_contrast_1"][0] == 0 and x["glcm_energy_1"][0] == 1
    assert x["area"].tolist() == [200] * 3 and (x["width_to_height"] == 2).all()
    assert x["glcm_contrast_1"][2] > x["glcm_contrast_1"][1] > 0 and x["entropy"][2] == pytest.approx(1)
    assert np.isfinite(x.to_numpy()).all()


def test_what_lies_outside_a_mask_does_not_count():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (1, 20, 20)).astype(np.uint8)
    mask = np.zeros((1, 20, 20), np.uint8)
    mask[0, 5:15, 5:15] = 1
    mask[0, 5:8, 5:8] = 0
    other = np.where(mask > 0, image, 7).astype(np.uint8)
    a, b = (radiomics.measure(x, "texture", masks=mask).drop(columns="gradient") for x in (image, other))
    pd.testing.assert_frame_equal(a, b)


def test_radiomics_gives_first_order_values_of_the_region_as_numpy_does():
    pytest.importorskip("radiomics")
    image = np.random.default_rng(0).integers(0, 256, (1, 30, 30)).astype(np.uint8)
    x = radiomics.measure(image, "radiomics", boxes=[[4, 6, 20, 26]])
    inside = image[0, 6:26, 4:20].astype(float)
    assert x["firstorder_Mean"][0] == pytest.approx(inside.mean()) and x["firstorder_Variance"][0] == pytest.approx(inside.var())
    assert x["shape2D_PixelSurface"][0] == 320 and x.shape[1] > 90 and np.isfinite(x.to_numpy()).all()


def test_missing_pyradiomics_ends_in_the_commands_that_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "radiomics", None)
    with pytest.raises(MstlError, match="--no-build-isolation --no-deps pyradiomics") as error:
        radiomics.measure(np.zeros((1, 9, 9), np.uint8), "radiomics", boxes=[[0, 0, 9, 9]])
    assert "\n" not in str(error.value) and "texture" in str(error.value)


@pytest.mark.parametrize(("kind", "regions", "words"), [
    ("shape", dict(boxes=[[0, 0, 9, 9]]), "no features 'shape'"), ("texture", {}, "boxes or masks"), ("texture", dict(boxes=[[0, 0, 2, 9]]), "less than 4"),
    ("texture", dict(boxes=[[20, 20, 30, 30]]), "less than 4"), ("texture", dict(boxes=[[0, 0, 9, 9]] * 2), "2 regions were given for 1")])
def test_regions_that_cannot_be_measured_are_one_sentence(kind, regions, words):
    with pytest.raises(MstlError, match=words):
        radiomics.measure(np.zeros((1, 12, 12), np.uint8), kind, **regions)


@pytest.fixture(scope="module")
def measured():
    """Ten features of 60 patients with two images each, of which one tells the class and one is the same everywhere."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 2)
    y = groups % 2 == 1
    x = pd.DataFrame(rng.normal(size=(120, 10)), columns=[f"f{k}" for k in range(10)])
    x["f3"] = 100 + 5 * (x["f3"] + 2.0 * y)
    return x.assign(f7=4.0), y, groups


def test_the_elastic_net_finds_the_feature_that_tells_the_class(measured, tmp_path):
    x, y, groups = measured
    found = radiomics.elastic_net(x, y, groups)
    assert found.table()["feature"][0] == "f3" and roc.auc(y, found.risk(x)) > 0.85 and dict(zip(found.features, found.coefficients))["f7"] == 0
    logit = found.intercept + ((x.to_numpy() - found.mean) / found.scale) @ np.array(found.coefficients)
    assert np.allclose(found.risk(x), 1 / (1 + np.exp(-logit)))
    radiomics.save(found, tmp_path / "a" / "signature.json")
    assert radiomics.load(tmp_path / "a" / "signature.json") == found


def test_features_that_mean_nothing_are_not_believed_by_inner_folds(measured):
    x, y, groups = measured
    found = radiomics.elastic_net(x.drop(columns="f3"), y, groups)
    assert found.inner_auc < 0.68


def test_a_combination_weighs_the_score_that_knows_something():
    rng = np.random.default_rng(0)
    y = rng.random(300) < 0.5
    good, noise = (1 / (1 + np.exp(-z)) for z in (2.0 * (2 * y - 1) + rng.normal(size=300), rng.normal(size=300)))
    both = radiomics.combine(y, good, noise)
    assert both.deep > 5 * abs(both.hand) and roc.auc(y, both.risk(good, noise)) > 0.95
    assert radiomics.combine(y, noise, good).hand == pytest.approx(both.deep)


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda x, y, g: (x.assign(f2=np.nan), y, g), "'f2' is not a finite number"), (lambda x, y, g: (x, y, np.where(y, 0, g)), "fewer than two groups")])
def test_training_rows_that_cannot_be_fitted_are_one_sentence(measured, spoil, words):
    with pytest.raises(MstlError, match=words):
        radiomics.elastic_net(*spoil(*measured))


# --- readers -----------------------------------------------------------------------------------------------------------


def test_the_example_is_crossed_and_its_analysis_is_that_of_the_scores():
    found = bone_tumours.readings(EXAMPLE)
    assert found.scores.shape == (2, 6, 120) and found.y.sum() == 48
    table, whole = bone_tumours.readers_table(found)
    one = table[(table["reader"] == "resident 2") & (table["reading"] == "with AI")].iloc[0]
    own = pd.read_csv(EXAMPLE).query("reader == 'resident 2' and reading == 'with AI'")
    assert one["estimate"] == pytest.approx(roc.auc(own["y_true"], own["score"]))
    assert whole.pairs.iloc[0].difference == pytest.approx(table.drop_duplicates("reader")["difference"].mean())
    said = bone_tumours.readers_sentence(table, whole, True)
    assert said.startswith("Simulated readings: 6 readers, 120 cases; with AI minus without AI") and "specialist 2" in said


def test_the_example_is_what_its_script_writes(tmp_path):
    script = EXAMPLE.parent.parent.parent / "benchmarks" / "example_readers.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=60)
    assert (tmp_path / "readers.csv").read_bytes() == EXAMPLE.read_bytes()


def test_a_case_without_a_named_patient_is_a_patient_of_its_own(tmp_path):
    table = pd.read_csv(EXAMPLE)
    cases = sorted(table["case"].unique())
    table["group"] = table["case"].map(dict.fromkeys(cases[:10], "p1"))
    table.to_csv(tmp_path / "readers.csv", index=False)
    found = bone_tumours.readings(tmp_path / "readers.csv")
    assert len(set(found.groups)) == 1 + len(cases) - 10 and list(found.groups).count("p1") == 10
    table.assign(group=np.arange(len(table))).to_csv(tmp_path / "readers.csv", index=False)
    with pytest.raises(MstlError, match="of one patient in one row and of another"):
        bone_tumours.readings(tmp_path / "readers.csv")


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda t: t.drop(columns="score"), "no column 'score'"), (lambda t: t.iloc[1:], "has no score without AI for case c001"),
    (lambda t: pd.concat([t, t.iloc[[5]]]), "two scores for case c006"), (lambda t: t.assign(reading=t["reading"].replace("with AI", "aided")), "the reading 'aided'"),
    (lambda t: t.assign(y_true=t["y_true"].where(t.index != 4, 0)), "positive in one row and negative in another")])
def test_readings_that_are_not_crossed_are_one_sentence(spoil, words, tmp_path):
    spoil(pd.read_csv(EXAMPLE)).to_csv(tmp_path / "readers.csv", index=False)
    with pytest.raises(MstlError, match=words):
        bone_tumours.readings(tmp_path / "readers.csv")


# --- the notebook ------------------------------------------------------------------------------------------------------


def papermill(stage, home, **given):
    words = [word for name, value in given.items() for word in ("-y", json.dumps({name: value}))]
    return subprocess.run([sys.executable, "-m", "papermill", str(templates.template(stage)), str(home / f"{stage}.ipynb"), "--no-progress-bar", *words],
                          cwd=home, capture_output=True, text=True, timeout=600, env={**os.environ, "MSTL_HOME": str(home), "OMP_NUM_THREADS": "1"})


TINY = dict(options={"n": 180}, field_size=64, image_size=32, steps=[2], recipe={"batch_size": 8}, n_resamples=100,
            networks=[{"name": "one", "backbone": "test_vit", "weights": "none"}, {"name": "two", "backbone": "test_resnet", "weights": "none"}])


@pytest.mark.slow
def test_the_notebook_trains_keeps_its_networks_and_computes_the_same_again_from_its_tables(tmp_path):
    done = papermill("71_bone_tumours", tmp_path, **TINY)
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "runs" / "manual" / "71_bone_tumours" / "all"
    table = predictions.read(run)
    assert set(table["model"]) == {"one", "two", "texture", "one + texture"} and set(table[table["split"] == "test"]["center"]) == {"A", "B", "C"}
    kept = run / "checkpoint" / "seed0-fold0"
    assert {p.name for p in kept.iterdir()} == {"one", "two", "signature.json", "combination.json"}
    again = papermill("71_bone_tumours", tmp_path, results=str(run), out="again", n_resamples=100)
    assert again.returncode == 0, again.stderr[-2000:]
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (run, tmp_path / "again"))
    assert first == second and (run / "centers.csv").read_bytes() == (tmp_path / "again" / "centers.csv").read_bytes()
    assert first["centers"].count("center ") == 3 and not (tmp_path / "again" / "checkpoint").exists()


@pytest.mark.slow
def test_a_wrong_parameter_ends_in_one_sentence(tmp_path):
    done = papermill("71_bone_tumours", tmp_path, **TINY | {"pair": ["one", "radimagenet"], "threads": 1})
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0 and "pair names 'radimagenet'" in said and "Traceback" not in said
