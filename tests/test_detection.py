"""Detection: boxes matched and scored by hand, both detectors, and the chapter's notebook."""

import numpy as np
import pandas as pd
import pytest

from mstl.errors import MstlError
from mstl.metrics import chains, detection

A, B, C = [0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 5]


# --- boxes --------------------------------------------------------------------------------------------------------------


def test_intersection_over_union_by_hand():
    assert detection.iou([A], [A, B, C, [5, 5, 15, 15]]) == pytest.approx(np.array([[1, 0, 0.5, 25 / 175]]))
    assert detection.iou(np.empty((0, 4)), [A]).shape == (0, 1)


def test_a_true_box_is_hit_once_by_the_highest_score():
    hit = detection.match([C, A, A], [0.9, 0.8, 0.7], [A], bars=(0.5, 0.75))
    assert hit.tolist() == [[True, False], [False, True], [False, False]]


def test_each_detection_takes_the_true_box_that_it_overlaps_most():
    near = [1, 0, 11, 10]
    assert detection.match([A, near], [0.9, 0.8], [near, A]).all()
    assert detection.match([near], [0.5], np.empty((0, 4))).tolist() == [[False]]


def test_average_precision_by_hand():
    # two true boxes; hit, miss, hit: precision 1 up to recall 0.5 (51 recalls), then 2/3 (50)
    assert detection.average_precision([0.9, 0.8, 0.7], [1, 0, 1], 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert detection.average_precision([0.9, 0.8], [0, 1], 2) == pytest.approx(51 * 0.5 / 101)
    assert detection.average_precision([], [], 3) == 0 and np.isnan(detection.average_precision([0.5], [0], 0))
    assert detection.average_precision([0.2, 0.9], [1, 1], 2) == 1


def test_froc_by_hand_counts_false_positives_on_every_image():
    scores, hits = [0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 1, 0, 0]
    assert detection.froc(scores, hits, 2, 4, at=(0.1, 0.25, 0.5, 1)) == pytest.approx([0.5, 1, 1, 1])
    # with one threshold for both, the hit at 0.8 cannot be had without the false positive at 0.8
    assert detection.froc([0.9, 0.8, 0.8], [1, 0, 1], 2, 4, at=(0.1, 0.25)) == pytest.approx([0.5, 1])


def test_a_perfect_detector_has_average_precision_one_and_noise_lowers_it():
    rng = np.random.default_rng(0)
    score, hit = rng.random(400), np.ones(200)
    assert detection.average_precision(score[:200], hit, 200) == 1
    mixed = np.r_[hit, 0 * hit]
    assert detection.average_precision(score, mixed, 200) == pytest.approx(0.5, abs=0.1)
    assert detection.average_precision(score + mixed, mixed, 200) == 1


def tables(rng, n=30, chains_=2):
    images = [f"i{k}" for k in range(n)]
    sick = np.arange(n) < n // 2
    corner = rng.integers(0, 60, (n, 2))
    truth = pd.DataFrame({"image": np.array(images)[sick], "x0": corner[sick, 0], "y0": corner[sick, 1]})
    truth["x1"], truth["y1"] = truth["x0"] + 20, truth["y0"] + 20
    rows = []
    for chain in range(chains_):
        for k, image in enumerate(images):
            off = rng.normal(0, 3, 2) if sick[k] else rng.uniform(0, 40, 2)
            x, y = corner[k] + off
            rows.append((chain, image, rng.beta(4, 2) if sick[k] else rng.beta(2, 4), x, y, x + 20, y + 20))
    return images, sick, truth, pd.DataFrame(rows, columns=["chain", "image", "score", "x0", "y0", "x1", "y1"])


def test_statistics_under_weights_are_those_of_repeated_images():
    rng = np.random.default_rng(1)
    images, sick, truth, found = tables(rng, chains_=1)
    groups = np.arange(30) // 2
    hits = detection.per_image(images, found, truth, detection.COCO)
    block = chains.Block(sick, group=groups)
    one = detection.cell_statistics(block.places[0], images, found, hits, truth)
    two = detection.cell_statistics(block.places[0], images, found, hits, truth, detection.FALSE_POSITIVES)
    assert one.names == ("ap", "map") and two.names[1] == "sensitivity at 0.25"
    w = rng.integers(0, 4, (one.images.size, 3)).astype(float)
    got, curve = one.under(w), two.under(w)
    code = block.places[0].code
    for r in range(3):
        times = w[code, r].astype(int)
        again = [(f"{image}-{c}", image) for image, t in zip(images, times) for c in range(t)]
        repeat = pd.DataFrame(again, columns=["new", "image"])
        f, t = (repeat.merge(x, on="image").drop(columns="image").rename(columns={"new": "image"}) for x in (found, truth))
        h = detection.per_image(list(repeat["new"]), f, t, detection.COCO)
        assert got[0, r] == pytest.approx(detection.average_precision(f["score"], h[:, 0], len(t)))
        assert got[1, r] == pytest.approx(np.mean([detection.average_precision(f["score"], h[:, k], len(t)) for k in range(10)]))
        assert curve[:5, r] == pytest.approx(detection.froc(f["score"], h[:, 0], len(t), len(repeat)))
    assert two.value() == pytest.approx(two.under(np.ones((one.images.size, 1)))[:, 0]) and two.value()[5] == two.value()[:5].mean()


def test_an_interval_over_groups_holds_the_estimate_and_widens_with_larger_groups():
    rng = np.random.default_rng(2)
    images, sick, truth, found = tables(rng, n=80, chains_=1)
    hits = detection.per_image(images, found, truth)
    widths = []
    for size in (1, 10):
        block = chains.Block(sick, group=np.arange(80) // size)
        cells = block.each(lambda cell: detection.cell_statistics(cell, images, found, hits, truth))
        got = block.summary(block.resample({"x": cells}, 400)["x"][0])
        assert 0 <= got.low <= got.estimate <= got.high <= 1
        widths.append(got.high - got.low)
    assert widths[0] > 0.05 and widths[1] != widths[0]


def test_average_precision_is_that_of_pycocotools():
    pytest.importorskip("pycocotools", reason="pip install pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images, _, truth, found = tables(np.random.default_rng(3), n=60, chains_=1)
    number = {image: k + 1 for k, image in enumerate(images)}

    def boxes(table):
        return [{"image_id": number[r.image], "category_id": 1, "bbox": [r.x0, r.y0, r.x1 - r.x0, r.y1 - r.y0]} for r in table.itertuples()]

    gold = COCO()
    gold.dataset = {"images": [{"id": k} for k in number.values()], "categories": [{"id": 1}],
                    "annotations": [b | {"id": k + 1, "iscrowd": 0, "area": 400.0} for k, b in enumerate(boxes(truth))]}
    gold.createIndex()
    judge = COCOeval(gold, gold.loadRes([b | {"score": s} for b, s in zip(boxes(found), found["score"])]), "bbox")
    judge.evaluate(), judge.accumulate(), judge.summarize()
    hits = detection.per_image(images, found, truth, detection.COCO)
    ap = [detection.average_precision(found["score"], hits[:, k], len(truth)) for k in range(10)]
    assert judge.stats[0] == pytest.approx(np.mean(ap)) and judge.stats[1] == pytest.approx(ap[0])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: detection.iou([[0, 0, 0, 5]], [A]), "row 0 is [0.0, 0.0, 0.0, 5.0]; a box needs x0 < x1 and y0 < y1"),
        (lambda: detection.iou([[0, 0, 1]], [A]), "give x0, y0, x1, y1 a row"),
        (lambda: detection.match([A], [0.5, 0.4], [B]), "1 detections have 2 scores"),
        (lambda: detection.match([A], [np.nan], [B]), "not a finite number"),
        (lambda: detection.per_image(["i"], pd.DataFrame([["j", 0.5, *A]], columns=["image", "score", "x0", "y0", "x1", "y1"]),
                                     pd.DataFrame(columns=["image", "x0", "y0", "x1", "y1"])), "a detection is of the image 'j'"),
    ],
)
def test_a_wrong_box_is_answered_by_one_sentence(call, sentence):
    with pytest.raises(MstlError) as problem:
        call()
    assert sentence in str(problem.value)


# --- detectors ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def knees():
    from mstl.datasets import phantoms

    return phantoms.make("knee", n=36, size=64, seed=1, difficulty=0.0, workers=1).select(["normal", "malignant"])


@pytest.mark.parametrize(("kind", "steps"), [("ssdlite", 12), pytest.param("yolov5u", 40, marks=pytest.mark.slow)])
def test_a_detector_loses_less_as_it_learns_one_batch_and_marks_boxes_in_the_image(kind, steps, knees):
    import torch

    from mstl.models import detector
    from mstl.works import detection as works

    if kind == "yolov5u":
        pytest.importorskip("ultralytics", reason="pip install 'mstl[detection]'")
    model, again = (detector.create(kind, image_size=64, backbone="test_efficientnet", seed=3, keep=4) for _ in range(2))
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    truth = works.true_boxes(knees)
    rows = np.r_[np.flatnonzero(knees.labels == 1)[:4], np.flatnonzero(knees.labels == 0)[:2]]
    images, boxes = works._batch(knees, truth, rows, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model.loss(images, boxes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.8 * max(losses)  # YOLO's rises first: it has no positive boxes before its own come near the true ones
    for found, scores in model.detect(images):
        assert found.shape == (len(scores), 4) and len(scores) <= 4
        assert (found >= 0).all() and (found <= 64).all() and ((scores >= 0) & (scores <= 1)).all()
        assert (scores.diff() <= 0).all()


def test_an_image_without_a_box_teaches_background(knees):
    import torch

    from mstl.models import detector

    model = detector.create("ssdlite", image_size=64, backbone="test_efficientnet")
    model.train()
    loss = model.loss(torch.zeros(2, 1, 64, 64, dtype=torch.uint8), [torch.empty(0, 4)] * 2)
    assert loss.item() > 0.1
    loss.backward()
    assert sum(p.grad.abs().sum().item() for p in model.head.classification_head.parameters()) > 0


def test_the_backbone_takes_over_a_classifier_whole(tmp_path):
    import torch

    from mstl import checkpoints
    from mstl.models import backbones, detector

    net = backbones.create("test_efficientnet", ["normal", "pneumonia"], image_size=64, channels=1, seed=5)
    checkpoints.save(tmp_path, net, lineage=[])
    model = detector.create("ssdlite", image_size=64, backbone="test_efficientnet", weights=tmp_path, seed=0)
    own = model.backbone.net.state_dict()
    assert own and all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in own.items())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(kind="yolo"), "detector='yolo' is unknown: use ssdlite or yolov5u"),
        (dict(kind="ssdlite", backbone="test_vit"), "feature maps at 3 resolutions and 'test_vit' does not give them"),
        (dict(kind="yolov5u", image_size=70), "a multiple of 32 pixels, not 70"),
        (dict(kind="yolov5u", weights="imagenet"), "takes no classifier's weights"),
    ],
)
def test_a_detector_that_cannot_be_built_is_one_sentence(arguments, sentence):
    from mstl.models import detector

    with pytest.raises(MstlError) as problem:
        detector.create(**{"image_size": 64, **arguments})
    assert sentence in str(problem.value)


# --- training -----------------------------------------------------------------------------------------------------------


def test_augmentation_moves_the_boxes_with_what_they_hold(knees):
    """A bright square on black: wherever it goes, its box goes too."""
    import dataclasses

    from mstl.works import detection as works

    images = np.zeros_like(np.asarray(knees.images[:4]))
    images[:, 20:40, 10:25] = 200
    data = dataclasses.replace(knees.subset(np.arange(4)), images=images)
    moved, boxes = works._batch(data, [np.array([[10.0, 20, 25, 40]])] * 4, np.arange(4), np.random.default_rng(0))
    assert len({tuple(box[0].tolist()) for box in boxes}) > 1
    for image, (x0, y0, x1, y1) in zip(moved[:, 0].float().numpy(), [box[0].int().tolist() for box in boxes]):
        inside = image[y0:y1, x0:x1]
        assert inside.min() > image.mean() + 30 and (image > inside.min() - 10).sum() == inside.size


def test_a_box_outside_its_image_and_a_set_without_boxes_are_refused(knees):
    import dataclasses

    from mstl.works import detection as works

    wrong = knees.boxes.copy()
    wrong.loc[wrong.index[0], "x1"] = 70.0
    with pytest.raises(MstlError, match="A box of phantom-knee lies outside its image"):
        works.true_boxes(dataclasses.replace(knees, boxes=wrong))
    with pytest.raises(MstlError, match="phantom-knee has no boxes"):
        works.true_boxes(dataclasses.replace(knees, boxes=None))


def test_radiographs_are_not_mirrored(knees):
    from mstl.works import detection as works

    rows = np.arange(20)
    data, boxes = knees.subset(rows), [np.array([[0.0, 20, 25, 40]])] * len(rows)
    left = [max(float(box[0, 0]) for box in works._batch(data, boxes, rows, np.random.default_rng(0), mirror=mirror)[1]) for mirror in (True, False)]
    assert left[0] > 30 > left[1]


def test_labels_and_boxes_that_contradict_each_other_are_refused_and_findings_without_a_box_counted(knees):
    import dataclasses

    from mstl.works import detection as works

    assert works.unlocated(knees) == int((knees.labels == 1).sum()) - knees.boxes.loc[knees.labels[knees.boxes["image"]] == 1, "image"].nunique()
    boxed = int(knees.boxes["image"].iloc[0])
    lost = knees.boxes[knees.boxes["image"] != boxed]
    assert works.unlocated(dataclasses.replace(knees, boxes=lost)) == works.unlocated(knees) + 1
    labels = knees.labels.copy()
    labels[boxed] = 0
    with pytest.raises(MstlError, match="is 'normal' and has a box, but only images of the last class"):
        works.unlocated(dataclasses.replace(knees, labels=labels))


def test_a_finished_fit_is_loaded_and_marks_the_same_boxes(knees, tmp_path):
    from mstl.training import Recipe
    from mstl.works import detection as works

    rows, calls = np.arange(len(knees)), []
    recipe = Recipe(steps=2, batch_size=4, augmentation="radiograph")
    first, record = works.fit(works.start("ssdlite", None, knees, backbone="test_efficientnet", seed=0), knees, rows[:16], rows[16:], recipe, folder=tmp_path)
    second, again = works.fit(works.start("ssdlite", None, knees, backbone="test_efficientnet", seed=0), knees, rows[:16], rows[16:], recipe, folder=tmp_path,
                              on_step=calls.append)
    assert record == again and not calls
    pd.testing.assert_frame_equal(works.detect(first, knees, rows), works.detect(second, knees, rows))
    works.fit(works.start("ssdlite", None, knees, backbone="test_efficientnet", seed=1), knees, rows[:16], rows[16:], recipe, folder=tmp_path, on_step=calls.append)
    assert len(calls) == 2
    with pytest.raises(MstlError, match="leave epochs, layer_decay, freeze and precision out"):
        works.fit(first, knees, rows[:16], None, Recipe(epochs=1), folder=tmp_path)
    with pytest.raises(MstlError, match="no class_weights"):
        works.fit(first, knees, rows[:16], None, Recipe(steps=2, class_weights="balanced"), folder=tmp_path)


def test_the_score_of_an_image_is_its_highest_box_and_zero_without_one(knees):
    from mstl.works import detection as works

    found = pd.DataFrame({"image": [knees.ids[0], knees.ids[0], knees.ids[2]], "score": [0.2, 0.7, 0.4]})
    assert works.image_scores(knees, np.arange(4), found).tolist() == [0.7, 0, 0.4, 0]


# --- results ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished():
    """Two models on the same films, one with nearly perfect boxes and one that guesses."""
    rng = np.random.default_rng(4)
    images, sick, truth, good = tables(rng, n=40)
    bad = good.assign(score=rng.random(len(good)), x0=good["x0"] + 15, x1=good["x1"] + 15)
    boxes = pd.concat([good.assign(model="transfer"), bad.assign(model="scratch")], ignore_index=True).assign(fold=0)
    rows = [{"model": model, "arm": model, "target": "knee", "seed": chain, "fold": 0, "split": split, "image_id": split + image, "group": split + str(k // 2),
             "y_true": "malignant" if sick[k] else "normal", "p_malignant": part.set_index("image")["score"][image]}
            for (model, chain), part in boxes.groupby(["model", "chain"]) for split in ("val", "test") for k, image in enumerate(images)]
    from mstl import predictions

    return (predictions.check(pd.DataFrame(rows)), boxes.assign(image="test" + boxes["image"]),
            truth.assign(image="test" + truth["image"], **{"class": "malignant"}))


def test_boxes_are_judged_under_the_same_resamples_and_the_difference_is_that_of_the_means(finished):
    from mstl.works import detection as works

    judged = works.judge(*finished, contrast=["transfer", "scratch"], n_resamples=200)
    rows = judged.rows.set_index(["quantity", "model"])
    for quantity in ("auc", "ap", "map", "mean sensitivity"):
        good, bad, gap = (rows.loc[(quantity, m)] for m in ("transfer", "scratch", "transfer − scratch"))
        assert gap["estimate"] == pytest.approx(good["estimate"] - bad["estimate"]) and gap["estimate"] > 0.1
        assert gap["low"] < gap["estimate"] < gap["high"] and good["low"] < good["estimate"] <= good["high"]
    assert set(rows["n_images"]) == {40} and set(rows["n_groups"]) == {20} and set(rows["chains"]) == {2}
    table, boxes, truth = finished
    ap = []
    for chain in (0, 1):  # by hand, chain by chain
        own = boxes[(boxes["model"] == "transfer") & (boxes["chain"] == chain)].reset_index(drop=True)
        hits = detection.per_image(list(own["image"]), own, truth, detection.COCO)
        ap.append([detection.average_precision(own["score"], hits[:, k], len(truth)) for k in range(10)])
    assert rows.loc[("ap", "transfer"), "estimate"] == pytest.approx(np.mean(ap, axis=0)[0])
    assert rows.loc[("map", "transfer"), "estimate"] == pytest.approx(np.mean(ap)) and np.mean(ap) < np.mean(ap, axis=0)[0]
    at = judged.curves[(judged.curves["model"] == "transfer") & (judged.curves["false_positives"] == 0.5)].iloc[0]
    assert at["sensitivity"] == pytest.approx(rows.loc[("sensitivity at 0.5", "transfer"), "estimate"])
    numbers = works.numbers(judged.rows)
    assert numbers["ap_transfer"] == rows.loc[("ap", "transfer"), "estimate"] and all(type(v) is float for v in numbers.values())
    assert f"difference {rows.loc[('auc', 'transfer − scratch'), 'estimate']:+.3f}" in works.sentence(judged.rows, "Made-up films")


def test_models_tested_on_different_images_or_a_folder_without_tables_are_refused(finished, tmp_path):
    from mstl.works import detection as works

    table, boxes, truth = finished
    with pytest.raises(MstlError, match="were not tested on the same images"):
        works.judge(table[(table["model"] == "transfer") | (table["seed"] == 0)], boxes, truth, contrast=["transfer", "scratch"], n_resamples=100)
    with pytest.raises(MstlError, match="is not that of its highest box"):
        works.judge(table, boxes.assign(score=boxes["score"] / 2), truth, contrast=["transfer", "scratch"], n_resamples=100)
    with pytest.raises(MstlError, match="iou is 50"):
        works.judge(table, boxes, truth, contrast=["transfer", "scratch"], iou=50)
    with pytest.raises(MstlError, match="There is no table boxes.csv in"):
        works.read(tmp_path)
    boxes[works.BOXES].assign(x1=0.0).to_csv(tmp_path / "boxes.csv", index=False)
    with pytest.raises(MstlError, match="a box needs x0 < x1"):
        works.read(tmp_path)


def test_a_detector_that_marks_nothing_has_average_precision_zero(finished):
    from mstl.works import detection as works

    table, boxes, truth = finished
    silent = table.assign(p_malignant=table["p_malignant"].where(table["model"] == "transfer", 0.0), p_normal=table["p_normal"].where(table["model"] == "transfer", 1.0))
    rows = works.judge(silent, boxes[boxes["model"] == "transfer"], truth, contrast=["transfer", "scratch"], n_resamples=100).rows.set_index(["quantity", "model"])
    assert rows.loc[("ap", "scratch"), "estimate"] == 0 and rows.loc[("auc", "scratch"), "estimate"] == 0.5 and rows.loc[("ap", "transfer"), "estimate"] > 0.5


def test_every_test_image_is_a_hit_a_miss_a_false_alarm_or_rightly_silent(finished):
    from mstl.works import detection as works

    called = works.calls(*finished, "transfer")
    counts = called["call"].value_counts()
    assert counts.sum() == 40 and (called["positive"] == called["call"].isin(["hit", "missed"])).all()
    assert counts["hit"] > 10 and works.calls(*finished, "scratch")["call"].eq("hit").sum() == 0


@pytest.mark.slow
def test_the_notebook_trains_and_a_second_run_recomputes_the_same_numbers_from_its_tables(tmp_path):
    import json

    from test_notebooks import papermill

    words = ["-p", "backbone", "test_efficientnet", "-y", "options: {n: 90}", "-y", "source_options: {n: 30}", "-y", "source_recipe: {steps: 2, batch_size: 8}",
             "-y", "recipe: {batch_size: 8}", "-y", "steps: [2]", "-y", "extra_steps: [3]", "-p", "n_resamples", "100", "-p", "keep", "3", "-p", "image_size", "32"]
    done = papermill("70_detection", tmp_path, *words, "-p", "out", "first")
    assert done.returncode == 0, done.stderr
    again = papermill("70_detection", tmp_path, *words, "-p", "results", str(tmp_path / "first"), "-p", "out", "second")
    assert again.returncode == 0, again.stderr
    first, second = ({name: (tmp_path / run / name).read_text() for name in ("predictions.csv", "boxes.csv", "truth.csv", "detection.csv")} for run in ("first", "second"))
    assert first == second
    metrics = json.loads((tmp_path / "second" / "metrics.json").read_text())
    assert metrics["answer"] == json.loads((tmp_path / "first" / "metrics.json").read_text())["answer"]
    table, boxes = pd.read_csv(tmp_path / "first" / "predictions.csv"), pd.read_csv(tmp_path / "first" / "boxes.csv")
    assert set(table["split"]) == {"val", "test"} and set(table["model"]) == {"scratch", "transfer"}
    top = boxes.groupby(["model", "image"])["score"].max()
    tested = table[table["split"] == "test"]
    assert [top[m, i] for m, i in zip(tested["model"], tested["image_id"])] == pytest.approx(tested["p_malignant"].tolist())
    wrong = papermill("70_detection", tmp_path, "-p", "detector", "yolo")
    assert wrong.returncode != 0 and "must be one of ssdlite, yolov5u, but is 'yolo'" in wrong.stderr
