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
        (lambda: detection.iou([[0, 0, 1]], [A]), "give x0, y0, x1, y1 a box"),
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
