"""Subsets, merges, shuffles and grey copies of a set: what they keep, what they change, and that less is part of more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstl.datasets import ImageSet, catalog, subsets
from mstl.errors import MstlError

SHARES = (0.125, 0.25, 0.5, 1.0)


def made_up(labels, classes=None, channels=1, origin=None, size=8) -> ImageSet:
    labels = np.asarray(labels)
    n, classes = len(labels), classes or tuple(f"line {c}" for c in range(int(labels.max()) + 1))
    return ImageSet(
        name="made-up",
        images=np.random.default_rng(n).integers(0, 256, (n, size, size, channels), dtype=np.uint8),
        labels=labels,
        classes=classes,
        groups=[f"g{i // 2}" for i in range(n)],
        centers=["A"] * n,
        ids=[f"i{i}" for i in range(n)],
        splits=[""] * n,
        boxes=pd.DataFrame({"image": [0], "class": [classes[labels[0]]], "x0": 0.0, "y0": 0.0, "x1": 4.0, "y1": 4.0}),
        card=dataclasses.replace(catalog.card("cells-brightfield"), classes=classes, channels=channels, origin=origin or {}),
    )


def drawn(seed: int, n: int, classes: int) -> ImageSet:
    """`n` images of `classes` of unequal size, none empty."""
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.ones(classes))
    return made_up(random.permutation(np.r_[np.arange(classes), random.choice(classes, n - classes, p=shares)]))


sets = st.builds(drawn, st.integers(0, 9999), st.integers(12, 80), st.integers(2, 8))
quick = settings(max_examples=40, deadline=None)


def some_rows(data: ImageSet, seed: int) -> np.ndarray:
    """Rows in no order, at least one of every class."""
    random = np.random.default_rng(seed)
    first = np.unique(data.labels, return_index=True)[1]
    rest = np.setdiff1d(np.arange(len(data)), first)
    return random.permutation(np.r_[first, random.choice(rest, len(rest) // 2, replace=False)])


def counts(data: ImageSet, rows=slice(None)) -> np.ndarray:
    return np.bincount(data.labels[rows], minlength=len(data.classes))


# --- fewer images, fewer classes -------------------------------------------------------------------------------------


@quick
@given(sets, st.integers(0, 99))
def test_less_of_the_images_is_part_of_more_and_every_class_keeps_its_share(data, seed):
    rows = some_rows(data, seed)
    before, kept = counts(data, rows), [subsets.keep_images(data, rows, share, seed=seed) for share in SHARES]
    for share, part in zip(SHARES, kept):
        assert part.dtype == np.int64 and (np.diff(part) > 0).all()
        assert np.array_equal(counts(data, part), np.maximum(1, np.floor(share * before + 0.5)))
    for less, more in zip(kept, kept[1:]):
        assert set(less) <= set(more)
    assert np.array_equal(kept[-1], np.sort(rows))


@quick
@given(sets, st.integers(0, 99))
def test_less_of_the_classes_is_part_of_more_and_a_class_is_kept_whole(data, seed):
    rows = some_rows(data, seed)
    before, kept = counts(data, rows), [subsets.keep_classes(data, rows, share, seed=seed) for share in SHARES]
    for share, part in zip(SHARES, kept):
        after = counts(data, part)
        assert (after > 0).sum() == max(2, int(share * len(data.classes) + 0.5))
        assert ((after == 0) | (after == before)).all() and (np.diff(part) > 0).all()
    for less, more in zip(kept, kept[1:]):
        assert set(less) <= set(more)
    assert np.array_equal(kept[-1], np.sort(rows))


@quick
@given(sets, st.integers(0, 99), st.floats(0, 1))
def test_n_images_are_as_even_over_the_classes_as_their_sizes_allow(data, seed, where):
    rows = some_rows(data, seed)
    n = round(len(data.classes) + where * (len(rows) - len(data.classes)))
    part, more = (subsets.take(data, rows, m, seed=seed) for m in (n, len(rows)))
    before, after = counts(data, rows), counts(data, part)
    assert len(part) == n and (np.diff(part) > 0).all() and set(part) <= set(rows)
    assert (after[after < before] >= after.max() - 1).all()  # only a class that is used up may lag behind
    assert np.array_equal(more, np.sort(rows))


def test_fewer_images_taken_are_part_of_more():
    data = drawn(3, 60, 5)
    parts = [set(subsets.take(data, np.arange(60), n, seed=2)) for n in range(5, 61, 5)]
    assert all(less < more for less, more in zip(parts, parts[1:]))


def test_another_seed_keeps_others_and_the_order_of_the_rows_does_not_matter():
    data, rows = drawn(1, 80, 6), np.arange(80)
    for keep, amount in ((subsets.keep_images, 0.5), (subsets.keep_classes, 0.5), (subsets.take, 40)):
        once = keep(data, rows, amount, seed=3)
        assert np.array_equal(once, keep(data, rows[::-1], amount, seed=3))
        assert any(not np.array_equal(once, keep(data, rows, amount, seed=seed)) for seed in (4, 5))


# --- merged classes ---------------------------------------------------------------------------------------------------


@quick
@given(sets, st.integers(0, 99), st.integers(2, 8))
def test_a_random_merge_keeps_classes_whole_and_no_move_or_swap_would_even_it_out(data, seed, k):
    k = min(k, len(data.classes))
    merged = subsets.merge(data, "random", k, seed=seed)
    pairs = set(zip(data.labels.tolist(), merged.labels.tolist()))
    assert len(pairs) == len(data.classes) and len(merged.classes) == k
    old, new = counts(data), counts(merged)
    assert (new > 0).all() and new.sum() == len(data)
    home = dict(pairs)
    for a in home:
        for b in home:
            x, y = new[home[a]], new[home[b]]
            if home[a] != home[b]:
                swapped, moved = old[a] - old[b], old[a]
                assert (x - swapped) ** 2 + (y + swapped) ** 2 >= x**2 + y**2
                assert (x - moved) ** 2 + (y + moved) ** 2 >= x**2 + y**2


def test_thirty_equal_lines_merge_into_equal_groups_that_differ_by_seed():
    data = made_up(np.repeat(np.arange(30), 4))
    for k in (2, 5, 6):
        assert set(counts(subsets.merge(data, "random", k))) == {120 // k}
    assert sorted(counts(subsets.merge(data, "random", 4))) == [28, 28, 32, 32]
    first, second = (subsets.merge(data, "random", 2, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.labels, second.labels) and first.hash != second.hash


def test_by_tissue_the_largest_tissues_are_classes_and_the_rest_is_other():
    origin = {"a": "lung", "b": "skin", "c": "lung", "d": "breast", "e": "breast", "f": "bone"}
    data = made_up([0, 0, 1, 2, 2, 3, 4, 4, 5, 5], classes=tuple("abcdef"), origin=origin)
    merged = subsets.merge(data, "tissue", 3, seed=9)
    assert merged.classes == ("lung", "breast", "other") and merged.labels.tolist() == [0, 0, 2, 0, 0, 1, 1, 1, 2, 2]
    assert merged.boxes["class"].tolist() == ["lung"] and merged.card.classes == merged.classes
    assert "lung: a, c; breast: d, e; other: b, f" in merged.card.notes
    assert merged.name == "made-up-tissue3" and np.array_equal(merged.images, data.images)
    every = subsets.merge(data, "tissue", 4)
    assert every.classes == ("lung", "breast", "bone", "skin") and every.labels[2] == 3  # no class "other" of one tissue


def test_the_thirty_lines_come_from_ten_tissues_most_from_lung_and_breast():
    card = catalog.card("cells-brightfield")
    assert set(card.origin) == set(card.classes)
    data = dataclasses.replace(made_up(np.arange(30), classes=card.classes), card=card)
    merged = subsets.merge(data, "tissue", 4)
    assert dict(zip(merged.classes, counts(merged))) == {"lung": 11, "breast": 9, "nervous system": 2, "other": 8}
    assert len(subsets.merge(data, "tissue", 10).classes) == 10


# --- shuffled labels, grey images ----------------------------------------------------------------------------------------


def test_shuffled_labels_keep_their_counts_and_touch_nothing_else():
    data = drawn(5, 80, 4)
    rows = np.arange(0, 80, 2)
    shuffled = subsets.shuffle_labels(data, rows, seed=1)
    assert np.array_equal(counts(shuffled, rows), counts(data, rows))
    rest = np.setdiff1d(np.arange(80), rows)
    assert np.array_equal(shuffled.labels[rest], data.labels[rest])
    assert 0.2 < (shuffled.labels[rows] != data.labels[rows]).mean()
    for key in ("images", "ids", "groups", "centers", "splits"):
        assert np.array_equal(getattr(shuffled, key), getattr(data, key))
    pd.testing.assert_frame_equal(shuffled.boxes, data.boxes)
    assert shuffled.name == "made-up-shuffled" and "40 of 80 images were shuffled (seed 1)" in shuffled.card.notes
    assert not np.array_equal(shuffled.labels, subsets.shuffle_labels(data, rows, seed=2).labels)


def test_grey_is_the_rounded_luma_and_a_grey_set_stays_itself():
    data = made_up(np.arange(300) % 3, channels=3)
    light = subsets.grey(data)
    assert light.images.shape == (300, 8, 8, 1) and light.images.dtype == np.uint8 and light.card.channels == 1
    exact = data.images.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(light.images[..., 0] - exact).max() <= 0.5 + 1e-9
    assert subsets.grey(light) is light and light.name == "made-up-grey" and data.channels == 3
    assert np.array_equal(subsets.grey(data.subset([7, 3])).images, light.images[[7, 3]])


def test_variants_have_hashes_of_their_own_that_are_the_same_each_time():
    data = made_up(np.arange(40) % 4, channels=3, origin={f"line {c}": "lung" if c < 3 else "skin" for c in range(4)})
    rows = np.arange(40)

    def variants():
        return [data, subsets.grey(data), subsets.shuffle_labels(data, rows), subsets.shuffle_labels(data, rows, seed=1),
                subsets.merge(data, "random", 2), subsets.merge(data, "tissue", 2)]  # fmt: skip

    hashes = [variant.hash for variant in variants()]
    assert len(set(hashes)) == len(hashes) and hashes == [variant.hash for variant in variants()]


def test_a_variant_is_saved_and_opened_as_it_is(tmp_path):
    data = subsets.grey(subsets.merge(made_up(np.arange(40) % 4, channels=3), "random", 2))
    data.save(tmp_path / "set")
    again = ImageSet.open(tmp_path / "set")
    assert again.hash == data.hash and again.classes == data.classes and again.card.notes == data.card.notes
    assert np.array_equal(again.images, data.images) and np.array_equal(again.labels, data.labels)


# --- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda d: subsets.keep_images(d, [0, 1], 0), "a share is a number above 0"),
        (lambda d: subsets.keep_images(d, [0, 1], 1.5), "a share is a number above 0"),
        (lambda d: subsets.keep_images(d, [0, 1], float("nan")), "a share is a number above 0"),
        (lambda d: subsets.keep_images(d, [0, 1], "half"), "a share is a number above 0"),
        (lambda d: subsets.keep_images(d, [], 0.5), "at least one row number"),
        (lambda d: subsets.keep_images(d, np.ones(12, bool), 0.5), "np.flatnonzero"),
        (lambda d: subsets.keep_images(d, [0, 12], 0.5), "the row 12 does not exist; rows run from 0 to 11"),
        (lambda d: subsets.keep_images(d, [-1, 2], 0.5), "the row -1 does not exist"),
        (lambda d: subsets.keep_images(d, [2, 0, 2], 0.5), "the row 2 is given twice"),
        (lambda d: subsets.keep_images(d, [0, 1], 0.5, seed=-1), "a seed is a whole number"),
        (lambda d: subsets.keep_classes(d, [0, 3], 0.5), "the class 'line 0' only"),
        (lambda d: subsets.take(d, np.arange(12), 2), "cannot hold the 3 classes"),
        (lambda d: subsets.take(d, np.arange(12), 13), "the rows are only 12; ask for fewer"),
        (lambda d: subsets.take(d, np.arange(12), 6.0), "a whole number of images"),
        (lambda d: subsets.merge(d, "tisue", 2), "did you mean 'tissue'"),
        (lambda d: subsets.merge(d, "random", 1), "into 2 to 3, not into 1"),
        (lambda d: subsets.merge(d, "random", 4), "into 2 to 3, not into 4"),
        (lambda d: subsets.merge(d, "tissue", 2), "does not tell the tissue of origin of 'line 0'"),
        (lambda d: subsets.shuffle_labels(d, [99]), "the row 99 does not exist"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(ask, words):
    with pytest.raises(MstlError, match="^[^\n]+$") as caught:
        ask(made_up(np.arange(12) % 3))
    assert words in str(caught.value)


def test_more_classes_than_tissues_are_refused():
    data = made_up([0, 1, 2, 2], origin={"line 0": "lung", "line 1": "lung", "line 2": "skin"})
    with pytest.raises(MstlError, match="come from 2 tissues, so they cannot be merged into 3"):
        subsets.merge(data, "tissue", 3)
