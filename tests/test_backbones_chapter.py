"""The classic backbones: torchvision's two in timm's manners, the four ways to transfer, their scores and their cost."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from mstl import predictions, probing, templates
from mstl.datasets.splits import Split
from mstl.errors import MstlError
from mstl.errors import MstlError
from mstl.metrics import roc
from mstl.models import backbones, classic
from mstl.works import backbones as work

CLASSES = ("normal", "benign", "malignant")


# ------------------------------------------------------------------------------------------------ torchvision's two networks


@pytest.fixture(scope="module", params=sorted(classic.NETWORKS))
def network(request):
    return backbones.create(request.param, CLASSES, image_size=64, channels=1, seed=3)


def test_a_network_of_torchvisions_feeds_its_features_to_its_head_and_computes_what_torchvision_does(network):
    import torchvision

    own = network.eval()
    name = own.spec.backbone.removeprefix(classic.PREFIX)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    theirs = getattr(torchvision.models, name)(num_classes=3, **options).eval()
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = backbones.features(own, x)
    assert seen.shape == (2, {"alexnet": 4096, "googlenet": 1024}[name]) and torch.allclose(own(x), theirs(x))
    assert torch.equal(own(x), torch.zeros(2, 3)), "a fresh head starts at zero"


def test_every_parameter_of_a_network_of_torchvisions_is_in_one_stage_and_a_frozen_one_trains_its_head_alone(network):
    names = [n for n, _ in network.named_parameters()]
    staged = [n for stage in backbones.stages(network) for n in stage]
    head = backbones.head_names(network)
    assert sorted([*staged, *head]) == sorted(names) and len(head) == 2
    backbones.parameter_groups(network, lr=1e-3, weight_decay=0.0, freeze="backbone")
    assert {n for n, p in network.named_parameters() if p.requires_grad} == head
    backbones.parameter_groups(network, lr=1e-3, weight_decay=0.0, layer_decay=0.7)


def test_a_file_of_torchvisions_loads_whole_without_its_head_and_its_auxiliary_classifiers(network, tmp_path):
    name = network.spec.backbone
    state = {key: value + 0.5 if value.is_floating_point() else value for key, value in network.state_dict().items()}
    head = {key: torch.zeros(1000, *value.shape[1:]) for key, value in state.items() if key in backbones.head_names(network)}
    torch.save(state | head | {"aux1.fc1.weight": torch.zeros(4, 4), "aux2.fc1.weight": torch.zeros(4, 4)}, tmp_path / "w.pth")
    loaded = backbones.create(name, CLASSES, image_size=64, weights=tmp_path / "w.pth")
    assert loaded.load_report.matched == len(state) - 2 and set(loaded.load_report.missing) == set(head)
    first = next(key for key in state if key not in head)
    assert torch.equal(loaded.state_dict()[first], state[first])


def test_the_seed_fixes_every_weight_of_a_network_of_torchvisions():
    a, b, c = (backbones.create("torchvision.googlenet", CLASSES, image_size=32, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[key], b[key]) for key in a) and not torch.equal(a["conv1.conv.weight"], c["conv1.conv.weight"])


@pytest.mark.parametrize(("name", "options", "words"), [
    ("torchvision.alexnet", {"image_size": 32}, "use 63 or more"),
    ("torchvision.googlenet", {"image_size": 32, "channels": 1, "grey": "adapt"}, "grey='replicate'"),
    ("torchvision.alexnt", {}, "did you mean 'torchvision.alexnet'"),
])
def test_a_classic_network_that_cannot_be_built_is_one_sentence(name, options, words):
    with pytest.raises(MstlError, match=words) as error:
        backbones.create(name, CLASSES, **options)
    assert "\n" not in str(error.value)


def test_weights_of_torchvisions_that_cannot_be_fetched_are_one_sentence(monkeypatch):
    def unreachable(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent/mstl")
    with pytest.raises(MstlError, match="torchvision.googlenet.*could not be fetched") as error:
        backbones.create("torchvision.googlenet", CLASSES, image_size=32, weights="imagenet")
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------- what is declared


def test_a_backbone_without_weights_is_tested_from_scratch_alone_and_the_page_says_so():
    asked = work.starts([{"backbone": "a", "weights": "imagenet"}, {"backbone": "b"}, {"backbone": "c", "ways": []}, {"backbone": "d", "weights": "own", "seeds": [4]}], [0, 1])
    assert [start.ways for start in asked] == [tuple(work.WAYS), ("scratch",), (), tuple(work.WAYS)] and asked[3].seeds == (4,)
    said = work.untested(asked)
    assert "transfer from b," in said and "Of c only the cost" in said and "d started from a short source training" in said


@pytest.mark.parametrize(("entries", "words"), [
    ([{"backbone": "a", "weight": "imagenet"}], "unknown key 'weight'"),
    ([{"weights": "none"}], "names no backbone"),
    ([{"backbone": "a", "weights": "imagenet", "ways": ["scratch", "frozen"]}], "the way 'frozen'"),
    ([{"backbone": "a", "ways": ["scratch", "hybrid"]}], "has no weights, so 'hybrid'"),
    ([{"backbone": "a", "weights": "imagenet", "ways": ["features"]}], "leaves scratch out"),
    ([{"backbone": "a"}, {"backbone": "a"}], "is there twice"),
    ([{"backbone": "a"}], "nothing to compare"),
])
def test_a_wrong_declaration_is_one_sentence(entries, words):
    with pytest.raises(MstlError, match=words) as error:
        work.starts(entries, [0])
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------- the classical classifier


@pytest.fixture(scope="module")
def rings():
    """Three classes as rings around each other, which no linear head parts, among noise."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 70)
    angle, radius = rng.uniform(0, 2 * np.pi, 210), 1 + 2 * labels + rng.normal(0, 0.25, 210)
    features = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.normal(size=210)], axis=1)
    order = rng.permutation(210)
    return features, labels, Split(0, *(np.sort(rows) for rows in (order[:120], order[120:160], order[160:])))


@pytest.mark.parametrize("kind", work.CLASSIFIERS)
def test_a_classical_classifier_parts_what_a_linear_head_cannot(rings, kind):
    features, labels, split = rings
    val, test, choice = work.classical(features, labels, split, kind=kind)
    linear = probing.probe(features, labels, split, n_classes=3).test
    assert val.shape == (40, 3) and np.allclose(test.sum(axis=1), 1)
    assert roc.auc(labels[split.test], test) > 0.95 > roc.auc(labels[split.test], linear) + 0.1
    assert choice["value"] in work.CLASSIFIERS[kind][1]


def test_two_classes_and_labels_that_mean_nothing_stay_at_chance(rings):
    features, _, split = rings
    labels = np.random.default_rng(1).integers(0, 2, 210)
    for kind in ("svm", "neighbours"):
        _, test, _ = work.classical(features, labels, split, kind=kind)
        assert test.shape == (50, 2) and 0.2 < roc.auc(labels[split.test], test) < 0.8


def test_an_unknown_classifier_and_a_missing_class_are_one_sentence_each(rings):
    features, labels, split = rings
    with pytest.raises(MstlError, match="hybrid='boosting'"):
        work.classical(features, labels, split, kind="boosting")
    bare = Split(0, split.train[labels[split.train] < 2], split.val, split.test)
    with pytest.raises(MstlError, match="lacks a class"):
        work.classical(features, labels, bare, kind="svm")


# -------------------------------------------------------------------------------------------------------------- statistics


def graded(probabilities, truth, model="scratch", seed=0, **more):
    rows = {"image_id": [f"i{k}" for k in range(len(truth))], "y_true": [CLASSES[k] for k in truth], "model": model, "target": "grade", "backbone": "net",
            "seed": seed, "group": [f"g{k // 2}" for k in range(len(truth))]}
    return pd.DataFrame(rows | more | {f"p_{name}": probabilities[:, k] for k, name in enumerate(CLASSES)})


@pytest.fixture(scope="module")
def table():
    """Two chains of a perfect, a noisy and a constant grader."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 24)
    tables = []
    for seed in (0, 1):
        for model, certainty in (("scratch", 0.0), ("features", 0.6), ("fine-tuned", 1.0)):
            called = np.where(rng.random(72) < certainty, truth, rng.integers(0, 3, 72)) if certainty else np.ones(72, int)
            tables.append(graded(0.8 * np.eye(3)[called] + 0.2 / 3, truth, model, seed))
    return predictions.join(tables)


def test_kappa_and_the_error_of_the_grade_are_those_of_scikit_learn_within_a_chain(table):
    from sklearn.metrics import cohen_kappa_score

    found = work.grading(table, n_resamples=200).set_index(["measure", "model", "reference"])
    own = table[table["model"] == "features"]
    code = own["y_true"].map(CLASSES.index)
    called = own[[f"p_{name}" for name in CLASSES]].to_numpy().argmax(axis=1)
    kappas = [cohen_kappa_score(code[rows], called[rows], weights="quadratic") for rows in (own["seed"].to_numpy() == s for s in (0, 1))]
    assert found.loc[("kappa", "features", ""), "estimate"] == pytest.approx(np.mean(kappas))
    assert found.loc[("mae", "features", ""), "estimate"] == pytest.approx(np.abs(code - called).mean())
    row = found.loc[("mae", "features", "")]
    assert row["low"] < row["estimate"] < row["high"] and row["n_images"] == 72 and row["n_groups"] == 36 and row["n_chains"] == 2


def test_a_perfect_grader_errs_by_nothing_and_a_constant_one_as_much_as_the_middle_grade(table):
    found = work.grading(table, n_resamples=200).set_index(["measure", "model", "reference"])["estimate"]
    assert found["mae", "fine-tuned", ""] == 0 and found["kappa", "fine-tuned", ""] == 1
    assert found["mae", "scratch", ""] == pytest.approx(work.constant_error(table)) == pytest.approx(2 / 3)
    assert found["mae", "fine-tuned", "scratch"] == pytest.approx(-2 / 3)


def test_the_classification_is_read_from_the_grades_of_the_two_classes(table):
    binary = work.lesions(table, ["benign", "malignant"])
    assert predictions.classes(binary) == ("benign", "malignant") and set(binary["target"]) == {"lesion"}
    assert len(binary) == (table["y_true"] != "normal").sum()
    whole = table[table["y_true"] != "normal"].reset_index(drop=True)
    assert np.allclose(binary["p_malignant"], whole["p_malignant"] / (whole["p_benign"] + whole["p_malignant"]))
    with pytest.raises(MstlError, match="name two of the classes normal, benign, malignant"):
        work.lesions(table, ["benign", "cancer"])


def drawn(model="scratch", shift=0.0, seed=0):
    rng = np.random.default_rng(0)
    dice = np.clip(rng.normal(0.6, 0.1, 30) + shift * rng.normal(1, 0.1, 30), 0, 1)
    return pd.DataFrame({"data": "discs", "title": "Discs", "simulated": True, "backbone": "net", "model": model, "seed": seed, "fold": 0, "n_train": 10,
                         "image_id": [f"i{k}" for k in range(30)], "group": [f"g{k // 2}" for k in range(30)], "pixels": 50, "dice": dice,
                         "iou": dice / (2 - dice), "hausdorff": 10 * (1 - dice)})


def test_overlap_is_averaged_within_chains_and_its_differences_are_paired():
    segments = pd.concat([drawn(model, shift, seed) for seed in (0, 1) for model, shift in (("scratch", 0.0), ("fine-tuned", 0.1))])
    found = work.overlap(segments.sample(frac=1, random_state=0), n_resamples=300).set_index(["measure", "model", "reference"])
    assert found.loc[("dice", "scratch", ""), "estimate"] == pytest.approx(drawn()["dice"].mean())
    difference = found.loc[("dice", "fine-tuned", "scratch")]
    assert difference["estimate"] == pytest.approx(0.1, abs=0.01) and difference["high"] - difference["low"] < 0.01
    assert found.loc[("hausdorff", "fine-tuned", "scratch"), "estimate"] < 0
    with pytest.raises(MstlError, match="do not cover the same images of discs"):
        work.overlap(segments.iloc[:-1])


@pytest.mark.parametrize(("ways", "words"), [(["fine-tuned"], "has no weights, so 'fine-tuned'"), (["hybrid"], "'hybrid' does not exist for masks")])
def test_masks_are_not_called_fine_tuned_without_weights(ways, words, tmp_path):
    with pytest.raises(MstlError, match=words):
        work.segment("test_efficientnet", None, None, [], ways=ways, seeds=[0], recipe={}, lrs=[1e-3], steps=[1], folder=tmp_path, columns={})


# -------------------------------------------------------------------------------------------------------------------- cost


def test_parameters_and_operations_are_those_counted_by_hand():
    found = work.cost("torchvision.alexnet", n_classes=1000, image_size=224, batch=1, repeats=1)
    assert found["parameters_m"] == pytest.approx(61.10, abs=0.005), "as torchvision states"
    convolutions = [(55, 64, 3 * 121), (27, 192, 64 * 25), (13, 384, 192 * 9), (13, 256, 384 * 9), (13, 256, 256 * 9)]
    products = sum(side**2 * out * kernel for side, out, kernel in convolutions) + 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    assert found["gflops"] == pytest.approx(2 * products / 1e9, rel=1e-6) and found["ms_per_image"] > 0


def test_the_front_holds_just_the_points_that_nothing_beats():
    costs, scores = np.array([1, 2, 3, 3, 1, 2.5]), np.array([0.6, 0.8, 0.7, 0.9, 0.6, 0.8])
    assert work.front(costs, scores).tolist() == [True, True, False, True, True, False]
    with pytest.raises(MstlError, match="one finite cost"):
        work.front(costs, np.append(scores[:-1], np.nan))


def test_a_way_whose_cost_was_not_measured_is_one_sentence():
    levels = pd.DataFrame({"metric": ["AUC"], "backbone": ["net"], "model": ["scratch"], "estimate": [0.7], "low": [0.6], "high": [0.8]})
    with pytest.raises(MstlError, match="costs.csv has no row of net"):
        work.against_cost(pd.DataFrame({"backbone": ["other"], "gflops": [1.0], "ms_per_image": [1.0]}), levels)


# ------------------------------------------------------------------------------------------------------------ the notebook

TINY = """
options: {n: 90}
image_size: 32
networks: [{backbone: test_efficientnet, weights: own}, {backbone: test_resnet}, {backbone: test_vit, ways: []}]
own_options: {n: 40, n_classes: 2}
own_recipe: {steps: 2}
unet: test_efficientnet
unet_weights: own
masks: [{data: phantom-ultrasound, options: {n: 90}, augmentation: ultrasound}]
lrs: [0.001]
steps: [3]
extra_steps: [4]
unet_lrs: [0.003]
unet_steps: [3]
unet_extra_steps: [4]
n_resamples: 200
"""


def papermill(folder, *words):
    command = [sys.executable, "-m", "papermill", str(templates.template("73_backbones")), "out.ipynb", "--no-progress-bar", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600,
                          env={**os.environ, "MSTL_HOME": str(folder), "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    done = papermill(home, "-y", TINY)
    assert done.returncode == 0, done.stderr[-2000:]
    return home, home / "runs" / "manual" / "73_backbones" / "all"


@pytest.mark.slow
def test_the_notebook_tests_every_declared_way_on_every_test_image_and_no_group_crosses_a_split(finished):
    run = finished[1]
    table = predictions.read(run)
    test = table[table["split"] == "test"]
    ways = test.groupby("backbone")["model"].agg(lambda names: tuple(dict.fromkeys(names))).to_dict()
    assert ways == {"test_efficientnet": tuple(work.WAYS), "test_resnet": ("scratch",)}
    assert test.groupby(["backbone", "model"])["image_id"].nunique().nunique() == 1
    assert (table.groupby(["backbone", "model", "group"])["split"].nunique() == 1).all()
    assert set(pd.read_csv(run / "costs.csv")["backbone"]) == {"test_efficientnet", "test_resnet", "test_vit"}
    segments = pd.read_csv(run / "segments.csv")
    assert segments.groupby("model")["image_id"].nunique().nunique() == 1 and segments["dice"].between(0, 1).all() and (segments["pixels"] > 0).all()


@pytest.mark.slow
def test_the_tables_of_a_finished_run_give_the_same_numbers_and_train_nothing(finished):
    home, run = finished
    done = papermill(home, "-y", TINY, "-p", "results", "runs/manual/73_backbones/all", "-p", "out", "again")
    assert done.returncode == 0, done.stderr[-2000:]
    first, again = (json.loads((place / "metrics.json").read_text()) for place in (run, home / "again"))
    assert first == again
    record = json.loads((home / "again" / "run.json").read_text())
    assert record["data"] == [] and record["parents"] == ["runs/manual/73_backbones/all"]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "said"), [
    (("-p", "hybrid", "boosting"), "hybrid"),
    (("-y", "networks: [{backbone: resnet18}]"), "nothing to compare"),
    (("-p", "results", "nowhere"), "is missing"),
])
def test_a_wrong_parameter_of_the_chapter_ends_in_one_sentence(words, said, tmp_path):
    done = papermill(tmp_path, *words)
    assert done.returncode != 0 and said in done.stderr.strip().splitlines()[-1]


def test_two_entries_of_masks_of_one_set_are_refused():
    from mstl.works import backbones as work

    work.each_once([{"data": "busi"}, {"data": "kvasir-segmentation"}])
    with pytest.raises(MstlError, match="masks names busi twice"):
        work.each_once([{"data": "busi", "classes": ["benign"]}, {"data": "busi", "classes": ["malignant"]}])
