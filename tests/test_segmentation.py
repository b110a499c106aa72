"""Masks: the measures against known answers, their intervals, and the U-Net that learns, resumes and refuses."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstl.errors import MstlError
from mstl.metrics import chains, segmentation


def square(x, y, side, size=20):
    mask = np.zeros((1, size, size), np.uint8)
    mask[0, y:y + side, x:x + side] = 1
    return mask


# ---------------------------------------------------------------------------------------------------------- the measures


def test_two_squares_that_share_half_have_the_overlap_that_is_counted_by_hand():
    a, b = square(2, 2, 4), square(4, 2, 4)  # 16 pixels each, 8 shared
    assert segmentation.dice(a, b)[0] == pytest.approx(16 / 32)
    assert segmentation.iou(a, b)[0] == pytest.approx(8 / 24)
    assert segmentation.hausdorff(a, b, percentile=100)[0] == pytest.approx(2)


def test_the_hausdorff_distance_of_a_shifted_point_is_the_shift_and_of_nothing_the_diagonal():
    assert segmentation.hausdorff(square(3, 3, 1), square(6, 7, 1))[0] == pytest.approx(5)
    assert segmentation.hausdorff(square(3, 3, 2), np.zeros((1, 20, 20)))[0] == pytest.approx(np.hypot(20, 20))


def test_the_95_percent_distance_forgives_what_the_largest_one_does_not():
    a = square(2, 2, 14, size=40)
    b = a.copy()
    b[0, 39, 39] = 1  # one pixel far away
    assert segmentation.hausdorff(a, b)[0] == 0
    assert segmentation.hausdorff(a, b, percentile=100)[0] == pytest.approx(np.hypot(24, 24))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_overlap_is_symmetric_bounded_and_one_only_for_the_same_mask(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.random((3, 8, 8)) < share for share in (0.4, 0.5))
    a[:, 0, 0] = b[:, 0, 0] = True
    d, j = segmentation.dice(a, b), segmentation.iou(a, b)
    assert np.allclose(d, segmentation.dice(b, a)) and np.allclose(j, d / (2 - d))
    assert (0 <= d).all() and (d <= 1).all() and np.array_equal(d == 1, (a == b).all(axis=(1, 2)))
    assert np.allclose(segmentation.hausdorff(a, b), segmentation.hausdorff(b, a))
    assert np.allclose(segmentation.hausdorff(a, a), 0)


@pytest.mark.parametrize(("truth", "predicted", "words"), [
    (np.zeros((1, 4, 4)), np.ones((1, 4, 4)), "the truth of row 0 is empty"),
    (np.ones((1, 4, 4)), np.full((1, 4, 4), 0.3), "put a threshold"),
    (np.ones((1, 4, 4)), np.ones((1, 5, 5)), "the same size"),
    (np.ones((4, 4)), np.ones((4, 4)), "images, height, width"),
])
def test_masks_that_cannot_be_compared_are_one_sentence(truth, predicted, words):
    with pytest.raises(MstlError, match=words) as error:
        segmentation.dice(truth, predicted)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- means and their intervals


def test_a_mean_of_groups_that_agree_inside_has_the_interval_of_the_groups_and_not_of_the_images():
    rng = np.random.default_rng(0)
    per_group = rng.normal(0.6, 0.1, 40)
    value = np.repeat(per_group, 5)
    few = chains.Means(40, seed=np.zeros(40), fold=np.zeros(40), group=np.arange(40))
    many = chains.Means(200, seed=np.zeros(200), fold=np.zeros(200), group=np.repeat(np.arange(40), 5))
    widths = []
    for block, values in ((few, per_group), (many, value)):
        found = block.summary(block.resample({"m": block.mean(values)}, 2000)["m"])
        assert found.estimate == pytest.approx(per_group.mean())
        widths.append(found.high - found.low)
    assert widths[0] == pytest.approx(widths[1], rel=0.15)
    assert widths[0] == pytest.approx(2 * 1.96 * per_group.std() / np.sqrt(40), rel=0.15)


def test_the_difference_of_two_means_is_paired_by_group():
    rng = np.random.default_rng(1)
    a = rng.normal(0.5, 0.2, 60)
    b = a - 0.05 + rng.normal(0, 0.01, 60)
    block = chains.Means(60, seed=np.zeros(60), fold=np.zeros(60), group=np.arange(60))
    found = block.resample({"a": block.mean(a), "b": block.mean(b)}, 1000)
    difference = block.summary(found["a"] - found["b"])
    assert difference.estimate == pytest.approx(0.05, abs=0.01) and difference.high - difference.low < 0.02 and difference.p_value < 0.01


def test_a_comparison_of_classes_still_refuses_a_cell_of_one_class():
    with pytest.raises(MstlError, match="one class only"):
        chains.Block(np.zeros(6, bool), seed=np.zeros(6), fold=np.zeros(6), group=np.arange(6))
