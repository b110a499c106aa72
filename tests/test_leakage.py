"""The lesson on leakage: siblings on both sides of a split are found, counted and read; a split by group reads nothing of them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mstl import leakage
from mstl.datasets import phantoms
from mstl.errors import MstlError

FAMILIES, COPIES = 60, 3


@pytest.fixture(scope="module")
def families():
    """Features that hold an identity for every group and nothing else, with labels that mean nothing; three copies each."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(FAMILIES), 2).astype(str)
    labels = np.repeat(np.arange(FAMILIES) % 2, 2)
    identity = np.repeat(rng.normal(size=(FAMILIES, 150)), 2, axis=0)
    features = np.concatenate([identity + 0.1 * rng.normal(size=identity.shape) for _ in range(COPIES)])
    return features.astype(np.float32), labels, groups


@pytest.fixture(scope="module")
def measured(families):
    features, labels, groups = families
    rows = [leakage.measure(features, labels, groups, way=way, copies=COPIES, permuted=permuted, repeats=10)
            for way in leakage.WAYS for permuted in (False, True)]
    rows = pd.concat(rows, ignore_index=True)
    return rows.assign(data="families", simulated=True, n_images=len(labels), n_groups=FAMILIES, copies=COPIES)


def of(table, way, labels="true", learner="probe"):
    found = table[(table["way"] == way) & (table["labels"] == labels) & (table["learner"] == learner)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize("learner", leakage.LEARNERS)
def test_labels_that_mean_nothing_are_read_off_siblings_and_off_nothing_else(measured, learner):
    table = leakage.summary(measured)
    for labels in leakage.LABELS:
        assert of(table, "copies", labels, learner).estimate > 0.99
        assert of(table, "images", labels, learner).estimate > 0.75
        for honest in ("groups", "groups, copies"):
            row = of(table, honest, labels, learner)
            assert row.low < 0.5 < row.high and row.siblings == row.nearest == 0


def test_the_share_of_test_images_with_a_sibling_is_what_a_random_split_makes_it(measured):
    table = leakage.summary(measured)
    pairs = of(table, "images")
    assert pairs.siblings == pytest.approx(0.6 * 120 / 119, abs=0.06), "a pair's other image is in training with probability 0.6"
    assert of(table, "copies").siblings == pytest.approx(1 - 0.4**5, abs=0.02)


def test_the_gap_to_the_honest_split_has_an_interval_above_zero_where_images_leak(measured):
    above = leakage.gap(measured, "copies")
    assert above.low > 0.2 and above.n == 10
    same = leakage.gap(measured, "groups, copies")
    assert same.low < 0 < same.high


@pytest.mark.parametrize("shares", [(0.6, 0.2, 0.2), (0.5, 0.0, 0.5)])
def test_whole_groups_lie_in_one_part_and_every_part_holds_every_class(families, shares):
    _, labels, groups = families
    for seed in range(20):
        part = leakage.divide(labels, groups, shares, np.random.default_rng(seed))
        assert (pd.Series(part).groupby(groups).nunique() == 1).all()
        for number in (0, 1, 2) if shares[1] else (0, 2):
            assert set(labels[part == number]) == {0, 1}
            assert (part == number).mean() == pytest.approx(shares[number], abs=0.05)


@pytest.mark.parametrize(("n_groups", "shares"), [(2, (0.5, 0.0, 0.5)), (3, (0.6, 0.2, 0.2))])
def test_the_fewest_groups_a_class_can_have_fill_every_part(n_groups, shares):
    groups = np.repeat([f"{c}{g}" for c in "ab" for g in range(n_groups)], 5)
    labels = np.repeat([0, 1], 5 * n_groups)
    part = leakage.divide(labels, groups, shares, np.random.default_rng(0))
    for number in (0, 1, 2) if shares[1] else (0, 2):
        assert set(labels[part == number]) == {0, 1}


def test_permuting_by_group_keeps_groups_together_and_the_number_of_groups_of_each_label(families):
    _, labels, groups = families
    new = leakage.permute(labels, groups, np.random.default_rng(3))
    assert (pd.Series(new).groupby(groups).nunique() == 1).all() and (new != labels).any()
    assert np.array_equal(np.bincount(new), np.bincount(labels))


def test_one_class_of_one_group_is_one_sentence(families):
    features, labels, _ = families
    with pytest.raises(MstlError, match="Class number 1 has 1 group, and 3 are needed") as error:
        leakage.measure(features[:120], labels, np.where(labels == 1, "one", np.arange(120).astype(str)), way="groups", repeats=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "words"), [
    (dict(way="patients"), "The way 'patients' is unknown"),
    (dict(way="images", copies=2), "give one a copy"),
    (dict(way="images", shares=(0.5, 0.2, 0.2)), "add up to 1"),
    (dict(way="images", shares=(0.5, 0.0, 0.5)), "Several penalties need a validation share"),
])
def test_what_cannot_be_measured_is_one_sentence(families, options, words):
    features, labels, groups = families
    with pytest.raises(MstlError, match=words) as error:
        leakage.measure(features[:len(labels)], labels, groups, **options)
    assert "\n" not in str(error.value)


def test_the_same_seed_gives_the_same_rows(families):
    features, labels, groups = families
    a, b = (leakage.measure(features, labels, groups, way="copies", copies=COPIES, repeats=2, seed=5) for _ in range(2))
    pd.testing.assert_frame_equal(a, b)


@pytest.fixture(scope="module")
def images():
    return phantoms.make("ultrasound", n=24, size=32, workers=1)


def test_augmented_copies_stand_in_order_with_the_groups_of_their_originals(images):
    many = leakage.multiply(images, 3, "ultrasound")
    n = len(images)
    assert len(many) == 3 * n and len(set(many.ids)) == 3 * n
    assert np.array_equal(many.images[:n], images.images) and not np.array_equal(many.images[n:2 * n], images.images)
    assert np.array_equal(many.groups, np.tile(images.groups, 3)) and np.array_equal(many.labels, np.tile(images.labels, 3))
    assert np.array_equal(many.images, leakage.multiply(images, 3, "ultrasound").images), "the seed fixes the copies"
    assert not np.array_equal(many.images, leakage.multiply(images, 3, "ultrasound", seed=1).images)
    assert np.array_equal(leakage.multiply(images, 1, "ultrasound").images, images.images)


def test_no_copies_at_all_is_one_sentence(images):
    with pytest.raises(MstlError, match="copies=0"):
        leakage.multiply(images, 0, "none")


def test_a_written_table_is_read_back_and_another_is_refused(measured, tmp_path):
    measured[leakage.COLUMNS].to_csv(tmp_path / "leakage.csv", index=False)
    pd.testing.assert_frame_equal(leakage.summary(leakage.read(tmp_path)), leakage.summary(measured))
    measured.drop(columns="siblings").to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(MstlError, match="no column 'siblings'"):
        leakage.read(tmp_path / "other.csv")
    with pytest.raises(MstlError, match="no table leakage.csv"):
        leakage.read(tmp_path / "nowhere")


def test_the_sentence_and_the_numbers_of_prose_say_what_the_table_says(measured):
    table = leakage.summary(measured)
    said, numbers = leakage.sentence(table, "Made-up families"), leakage.numbers(table)
    honest = of(table, "groups")
    assert said.startswith("Made-up families (simulated, 120 images in 60 groups, 10 splits of each kind)")
    assert f"split by group: AUC {honest.estimate:.3f}" in said and "split the 3 copies of each at random" in said
    assert numbers["auc_groups"] == honest.estimate and numbers["siblings_groups"] == 0
    assert {f"{kind}_{way}{end}" for kind in ("auc", "permuted") for way in ("copies", "images", "groups", "groups_copies")
            for end in ("", "_low", "_high")} <= set(numbers)
    assert all(type(value) is float for value in numbers.values()) and dataclasses.is_dataclass(leakage.gap(measured, "images"))
