"""Splits and the leakage audit: whole groups, balanced classes, copies found and look-alikes left alone."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from mstl.datasets import catalog, copies, splits
from mstl.datasets.imageset import ImageSet
from mstl.datasets.splits import Split
from mstl.errors import MstlError

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data"
CLASSES = ("normal", "benign", "malignant")


def make_set(labels, groups, *, centers=None, published=None, images=None, classes=CLASSES, name="made-up") -> ImageSet:
    n = len(labels)
    images = np.zeros((n, 8, 8, 1), np.uint8) if images is None else images
    return ImageSet(name=name, images=images, labels=np.asarray(labels), classes=classes, groups=np.asarray(groups, str),
                    centers=np.asarray(centers if centers is not None else [""] * n, str), ids=np.array([f"{name}-{i}" for i in range(n)]),
                    splits=np.asarray(published if published is not None else [""] * n, str), card=catalog.card("busi"))


def patients(n_groups=120, *, largest=3, centers=1, mixed=0.0, seed=0, shares=(0.2, 0.5, 0.3)) -> ImageSet:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, largest + 1, n_groups)
    group = np.repeat(np.arange(n_groups), sizes)
    label = random.choice(len(shares), n_groups, p=shares)[group]
    other = random.random(len(group)) < mixed
    label[other] = random.integers(0, len(shares), other.sum())
    label[: len(shares)] = np.arange(len(shares))
    center = random.integers(0, centers, n_groups)[group]
    return make_set(label, [f"p{g:04d}" for g in group], centers=[f"hospital {c}" for c in center] if centers > 1 else None,
                    published=np.where(group % 3 == 0, "test", "train"))


def texture(n, size=64, seed=0) -> np.ndarray:
    """Images of blobs and grain, no two alike."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=(n, size, size))
    rough = sum(gaussian_filter(noise, (0, s, s)) * s for s in (1.0, 2.5, 6.0))
    rough = (rough - rough.mean((1, 2), keepdims=True)) / rough.std((1, 2), keepdims=True)
    return np.clip(120 + 45 * rough, 0, 255).astype(np.uint8)[..., None]


def copied(image: np.ndarray, how: str) -> np.ndarray:
    grey = image[..., 0]
    if how == "darker":
        grey = (255 * (grey / 255) ** 1.4).astype(np.uint8)
    elif how == "jpeg":
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, "JPEG", quality=30)
        grey = np.asarray(Image.open(buffer))
    elif how == "cropped":
        side = grey.shape[0]
        grey = np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.LANCZOS, box=(0.03 * side, 0, side, 0.96 * side)))
    elif how == "mirrored":
        grey = grey[:, ::-1]
    elif how == "turned":
        grey = np.rot90(grey)
    elif how == "marked":
        grey = grey.copy()
        for x, y in ((20, 30), (44, 30), (32, 18)):  # callipers
            grey[y - 2 : y + 3, x] = grey[y, x - 2 : x + 3] = 255
    elif how == "padded":
        grey = np.pad(np.asarray(Image.fromarray(grey).resize((64, 44), Image.Resampling.LANCZOS)), ((10, 10), (0, 0)))
    return grey[..., None]


def counts(data: ImageSet, rows: np.ndarray) -> np.ndarray:
    return np.bincount(data.labels[rows], minlength=len(data.classes))


# --------------------------------------------------------------------------------------------------------------- folds

@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), largest=st.integers(1, 6), centers=st.integers(1, 3), mixed=st.sampled_from([0.0, 0.2]), k=st.integers(3, 6))
def test_every_image_is_tested_once_and_validated_once_and_no_group_is_parted(seed, largest, centers, mixed, k):
    data = patients(90, largest=largest, centers=centers, mixed=mixed, seed=seed)
    made = splits.folds(data, k, seed=seed)
    assert np.array_equal(np.sort(np.concatenate([s.test for s in made])), np.arange(len(data)))
    assert np.array_equal(np.sort(np.concatenate([s.val for s in made])), np.arange(len(data)))
    for s, following in zip(made, made[1:] + made[:1]):
        assert np.array_equal(s.val, following.test)
        assert np.array_equal(np.sort(np.concatenate([s.train, s.val, s.test])), np.arange(len(data)))
        parts = [set(data.groups[rows]) for rows in (s.train, s.val, s.test)]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert all(rows.dtype == np.int64 and np.all(np.diff(rows) > 0) for rows in (s.train, s.val, s.test))


def test_folds_hold_the_same_number_of_every_class_up_to_a_group():
    data = patients(300, largest=3)
    tested = np.array([counts(data, s.test) for s in splits.folds(data, 5, seed=3)])
    assert np.ptp(tested, axis=0).max() <= 3


def test_folds_are_balanced_by_center_too():
    data = patients(300, largest=2, centers=2)
    for s in splits.folds(data, 5, seed=1):
        share = np.mean(data.centers[s.test] == "hospital 0")
        assert abs(share - np.mean(data.centers == "hospital 0")) < 0.03


def test_the_same_seed_gives_the_same_folds_and_another_seed_others():
    data = patients()
    once, again, other = (splits.folds(data, seed=seed) for seed in (7, 7, 8))
    assert all(np.array_equal(a.test, b.test) for a, b in zip(once, again))
    assert not all(np.array_equal(a.test, b.test) for a, b in zip(once, other))


def test_a_class_of_as_many_groups_as_folds_is_in_every_fold():
    data = make_set([0] * 5 + [1] * 200 + [2] * 100, [f"g{i}" for i in range(305)])
    assert all(counts(data, s.test)[0] == 1 for s in splits.folds(data, 5))


# ----------------------------------------------------------------------------------------------------------- the draws

@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10_000), largest=st.integers(1, 6), centers=st.integers(1, 2), n_train=st.integers(12, 60), n_val=st.integers(6, 30))
def test_a_draw_keeps_groups_whole_and_every_class_within_half_a_group_of_its_share(seed, largest, centers, n_train, n_val):
    data = patients(150, largest=largest, centers=centers, seed=seed)
    pool = np.flatnonzero(data.splits != "test")
    for s in splits.published(data, n_train=n_train, n_val=n_val, draws=2, seed=seed):
        assert np.array_equal(s.test, np.flatnonzero(data.splits == "test"))
        splits.check(s, data)
        for rows, n in ((s.train, n_train), (s.val, n_val)):
            assert len(rows) <= n + largest
            share = counts(data, pool) / len(pool) * n
            assert np.all(np.abs(counts(data, rows) - share) <= 2 + centers * (largest / 2 + 1))
            taken = set(data.groups[rows])
            assert sorted(np.flatnonzero(np.isin(data.groups, list(taken)))) == sorted(rows)


def test_a_draw_of_single_images_has_exactly_the_number_asked_for():
    data = patients(400, largest=1)
    s = splits.published(data, n_train=100, n_val=37)[0]
    assert (len(s.train), len(s.val)) == (100, 37)


def test_draws_differ_but_are_repeatable_and_the_test_part_is_fixed():
    data = patients(200)
    first, second = splits.holdout(data, draws=2, n_train=50, seed=4)
    again = splits.holdout(data, draws=2, n_train=50, seed=4)
    assert np.array_equal(first.test, second.test) and not np.array_equal(first.train, second.train)
    assert np.array_equal(first.train, again[0].train) and np.array_equal(second.val, again[1].val)
    assert abs(len(first.test) / len(data) - 0.5) < 0.02


def test_the_validation_part_does_not_change_with_the_number_of_training_images():
    data = patients(300)
    few, many = (splits.published(data, n_train=n, n_val=30)[0] for n in (40, 120))
    assert np.array_equal(few.val, many.val)


def test_without_numbers_everything_but_test_and_validation_trains():
    data = patients(200)
    s = splits.published(data)[0]
    assert len(s.train) + len(s.val) + len(s.test) == len(data)
    assert abs(len(s.val) / (len(s.train) + len(s.val)) - 0.2) < 0.03


def test_a_published_validation_part_is_used_as_it_is():
    data = patients(200)
    part = np.where(np.char.endswith(data.groups, "1"), "val", data.splits)
    data = make_set(data.labels, data.groups, published=part)
    first, second = splits.published(data, draws=2)
    assert np.array_equal(first.val, np.flatnonzero(part == "val")) and np.array_equal(first.train, np.flatnonzero(part == "train"))
    assert np.array_equal(first.train, second.train) and second.fold == 1


def test_describe_counts_what_every_part_holds():
    data = patients(100)
    made = splits.published(data, n_train=30)
    table = splits.describe(made, data)
    assert table["part"].tolist() == ["train", "val", "test"]
    assert table["images"].tolist() == [len(made[0].train), len(made[0].val), len(made[0].test)]
    assert (table[list(CLASSES)].sum(axis=1) == table["images"]).all()


def test_one_group_of_every_class_that_has_several_is_watched():
    data = make_set([0] * 4 + [1] * 4 + [2] * 4, ["a"] * 4 + ["b", "b", "c", "c"] + ["d", "e", "f", "f"])
    train, held = splits.one_group_per_class(data, seed=1)
    assert set(data.labels[held]) == {1, 2} and not set(data.groups[held]) & set(data.groups[train])
    assert len(set(data.groups[held])) == 2 and set(data.labels[train]) == {0, 1, 2}


# -------------------------------------------------------------------------------------------------------------- errors

def test_a_split_with_a_group_on_two_sides_is_refused_by_name():
    data = make_set([0, 1, 2] * 3, ["a", "b", "c", "d", "e", "f", "g", "h", "c"])
    split = Split(2, np.arange(3), np.arange(3, 6), np.arange(6, 9))
    with pytest.raises(MstlError, match=r"Fold 2 of made-up: group 'c' lies in both train and test; split by whole groups"):
        splits.check(split, data)


def test_a_split_that_uses_an_image_twice_or_lacks_a_class_is_refused():
    data = make_set([0, 1, 2] * 3, list("abcdefghi"))
    with pytest.raises(MstlError, match=r"image 'made-up-2' is used twice \(train and val\)"):
        splits.check(Split(0, np.arange(3), np.arange(2, 6), np.arange(6, 9)), data)
    with pytest.raises(MstlError, match=r"image 'made-up-7' is used twice \(test and test\)"):
        splits.check(Split(0, np.arange(3), np.arange(3, 6), np.array([6, 7, 7, 8])), data)
    with pytest.raises(MstlError, match=r"Class 'normal' has no image in the val part of fold 0"):
        splits.check(Split(0, np.arange(3), np.array([4, 5]), np.arange(6, 9)), data)
    with pytest.raises(MstlError, match=r"names row 9, but the set has 9 images"):
        splits.check(Split(0, np.arange(3), np.arange(3, 6), np.arange(6, 10)), data)


def test_a_published_split_that_parts_a_patient_is_refused():
    data = make_set([0, 1, 2] * 4, ["a", "b", "c"] * 4, published=["test"] * 3 + ["train"] * 9)
    with pytest.raises(MstlError, match=r"The published split of made-up: group 'a' lies in both train and test \(3 groups do\)"):
        splits.published(data, n_train=3, n_val=3)


@pytest.mark.parametrize(("ask", "sentence"), [
    (lambda d: splits.folds(d, 2), r"at least 3 folds"),
    (lambda d: splits.folds(d, 60), r"Class 'normal' of made-up has \d+ groups, fewer than the 60 folds"),
    (lambda d: splits.holdout(d, test=1.5), r"a share of the images, between 0 and 1"),
    (lambda d: splits.published(d, n_train=10_000), r"n_train=10000 and 2500 validation images were asked for, but only \d+ images"),
    (lambda d: splits.published(d, n_train=2), r"fewer images than the 3 classes"),
    (lambda d: splits.published(d, draws=0), r"at least one draw"),
    (lambda d: splits.folds(d, seed=-1), r"a seed is a whole number"),
    (lambda d: splits.design(d, "fold"), r"design 'fold' is unknown"),
    (lambda d: splits.audit(d, threshold=7), r"between 0.5 and 1"),
    (lambda d: splits.audit(d, orientations="up"), r"choose one of same, flip, all"),
])
def test_what_cannot_be_split_is_refused_in_one_sentence(ask, sentence):
    with pytest.raises(MstlError, match=sentence) as caught:
        ask(patients(100))
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") == 0


def test_an_empty_class_and_a_missing_published_split_are_refused():
    with pytest.raises(MstlError, match=r"Class 'benign' has no image in the data set of made-up"):
        splits.folds(make_set([0, 2] * 10, [f"g{i}" for i in range(20)]))
    with pytest.raises(MstlError, match=r"made-up has no published split"):
        splits.published(make_set([0, 1, 2] * 10, [f"g{i}" for i in range(30)]))


# ----------------------------------------------------------------------------------------------------------- the audit

@pytest.fixture(scope="module")
def leaky() -> ImageSet:
    """60 images; 61 is a darker 0, 62 a JPEG of 1, 63 a crop of 2, 64 the mirror image of 3, 65 a marked 4, 66 a padded 5, 67 exactly 6, 68 a crop of 63."""
    images = texture(60)
    how = ["darker", "jpeg", "cropped", "mirrored", "marked", "padded", "exact"]
    more = [copied(images[i], h) for i, h in enumerate(how)]
    more.append(copied(more[2], "jpeg"))
    labels = np.arange(68) % 2
    labels[60:67] = [0, 0, 0, 1, 0, 1, 0]  # 1 (benign), 61 (normal): a copy with another label
    labels[67] = 0
    return make_set(labels, [f"g{i}" for i in range(68)], images=np.concatenate([images, np.stack(more)]), classes=CLASSES[:2])


def test_copies_are_found_after_contrast_compression_crop_mirror_marks_and_padding_and_nothing_else_is(leaky):
    found = splits.audit(leaky)
    assert [c.tolist() for c in found.clusters] == [[0, 60], [1, 61], [2, 62, 67], [3, 63], [4, 64], [5, 65], [6, 66]]
    assert [c.tolist() for c in found.exact] == [[6, 66]]
    assert found.cluster_ids.tolist() == [0, 1, 2, 3, 4, 5, 6] + [-1] * 53 + [0, 1, 2, 3, 4, 5, 6, 2]
    mirrored = found.pairs[found.pairs["mirrored"]]
    assert mirrored[["i", "j"]].values.tolist() == [[3, 63]]


def test_clusters_with_two_labels_are_reported_in_the_table_and_in_the_sentence(leaky):
    found = splits.audit(leaky)
    assert [c.tolist() for c in found.conflicts] == [[1, 61]]
    row = found.summary().iloc[0]
    assert row[["images", "exact_copies", "clusters", "images_in_clusters", "conflicts", "clusters_across_groups"]].tolist() == [68, 1, 7, 15, 1, 7]
    assert found.sentence() == ("15 of the 68 images of made-up lie in 7 clusters of copies (1 redundant exact copy), "
                                "1 with more than one label and 7 across groups.")
    assert splits.audit(leaky.subset(np.arange(60))).sentence() == "No image of made-up is a copy of another (60 images)."
    assert found.members["id"].tolist()[:2] == ["made-up-0", "made-up-60"]


def test_grouping_by_cluster_puts_every_copy_on_the_side_of_its_original(leaky):
    joined = splits.group_by_cluster(leaky, splits.audit(leaky))
    assert joined.groups[67] == joined.groups[62] == joined.groups[2] == "g2" and len(set(joined.groups)) == 60
    for s in splits.folds(joined, 5):
        side = np.zeros(68, int)
        side[s.val], side[s.test] = 1, 2
        assert all(len(set(side[c])) == 1 for c in splits.audit(leaky).clusters)
    with pytest.raises(MstlError, match=r"audit this very selection"):
        splits.group_by_cluster(leaky.subset([0, 1, 2]), splits.audit(leaky))


def test_grouping_by_cluster_joins_whole_patients():
    images = texture(6, seed=3)
    images[3] = images[0]
    data = make_set([0, 1, 0, 1, 0, 1], ["a", "a", "b", "b", "c", "d"], images=images, classes=CLASSES[:2])
    assert splits.group_by_cluster(data, splits.audit(data)).groups.tolist() == ["a", "a", "a", "a", "c", "d"]


def test_quarter_turns_are_found_when_they_are_asked_for():
    images = texture(30, seed=5)
    images = np.concatenate([images, copied(images[7], "turned")[None]])
    data = make_set([0] * 31, [f"g{i}" for i in range(31)], images=images, classes=("all",))
    assert not splits.audit(data).clusters
    assert [c.tolist() for c in splits.audit(data, orientations="all").clusters] == [[7, 30]]


def test_plain_images_are_not_called_copies_of_each_other_unless_they_are_identical():
    random = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    blobs = [90 + 80 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 400) for a, b in random.uniform(28, 36, (20, 2))]
    images = np.stack([np.clip(b, 0, 255).astype(np.uint8)[..., None] for b in blobs] + [np.full((64, 64, 1), 7, np.uint8)] * 2)
    found = splits.audit(make_set([0] * 22, [f"g{i}" for i in range(22)], images=images, classes=("all",)))
    assert [c.tolist() for c in found.clusters] == [[20, 21]]
    assert len(found.plain) == 22 and "22 images too plain to be judged" in found.sentence()


def test_the_audit_does_not_depend_on_the_order_of_the_images(leaky):
    order = np.random.default_rng(1).permutation(68)
    found = splits.audit(leaky.subset(order))
    assert {frozenset(order[c].tolist()) for c in found.clusters} == {frozenset(c.tolist()) for c in splits.audit(leaky).clusters}


def test_copies_across_sets_are_found_whatever_their_size_and_colour(leaky):
    colour = np.repeat(np.stack([np.asarray(Image.fromarray(i[..., 0]).resize((96, 96), Image.Resampling.LANCZOS))
                                 for i in leaky.images[[10, 11]]])[..., None], 3, axis=3)
    bridge = make_set([0, 0, 0], ["x", "y", "z"], images=np.concatenate([colour, np.repeat(texture(1, 96, seed=9), 3, axis=3)]),
                      classes=("cells",), name="bridge")
    other = make_set([0, 0], ["u", "v"], images=np.stack([leaky.images[6], texture(1, seed=11)[0]]), classes=("cells",), name="source")
    table = splits.audit_across({"target": leaky, "bridge": bridge, "source": other})
    pairs = set(map(tuple, table[["set_a", "id_a", "set_b", "id_b", "exact"]].values.tolist()))
    assert pairs == {("target", "made-up-10", "bridge", "bridge-0", False), ("target", "made-up-11", "bridge", "bridge-1", False),
                     ("target", "made-up-6", "source", "source-0", True), ("target", "made-up-66", "source", "source-0", True)}
    assert splits.audit_across({"bridge": bridge}).empty and table["similarity"].max() == 1


# ------------------------------------------------------------------------------------------------- the published archives

def published_images(archive: str, names, size=96) -> tuple[np.ndarray, list[str]]:
    """Grey images of an archive, letterboxed."""
    if not (REAL / archive).is_file():
        pytest.skip(f"needs {archive}, which is not part of the project")
    images, found = [], []
    with zipfile.ZipFile(REAL / archive) as file:
        for name in sorted(n for n in file.namelist() if names(n)):
            image = Image.open(io.BytesIO(file.read(name))).convert("L")
            image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3)
            square = Image.new("L", (size, size))
            square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
            images.append(np.asarray(square)[..., None])
            found.append(name)
    return np.stack(images), found


@pytest.mark.real
def test_the_known_near_copies_of_busi_are_found_and_eight_clusters_carry_two_labels():
    images, names = published_images("Dataset_BUSI.zip", lambda n: n.endswith(".png") and "_mask" not in n)
    label = [CLASSES.index(n.split("/")[-2]) for n in names]
    found = splits.audit(make_set(label, names, images=images))
    row = found.summary().iloc[0]
    assert abs(row["clusters"] - 146) <= 2 and abs(row["images_in_clusters"] - 324) <= 5 and row["conflicts"] == 8
    short = {frozenset(names[r].split("/")[-1][:-4] for r in c) for c in found.conflicts}
    assert frozenset({"benign (433)", "malignant (145)"}) in short and frozenset({"benign (399)", "malignant (93)"}) in short
    crop = next(c for c in found.clusters if names[c[0]].endswith("benign (141).png"))
    assert [names[r].split("/")[-1] for r in crop] == ["benign (141).png", "benign (64).png"]


@pytest.mark.real
def test_different_children_of_the_chest_x_rays_are_not_called_copies():
    images, names = published_images("ChestXRay2017.zip", lambda n: "/test/" in n and n.endswith(".jpeg"), size=128)
    label = ["PNEUMONIA" in n for n in names]
    found = splits.audit(make_set(np.array(label, int), names, images=images, classes=("normal", "pneumonia")))
    near = found.pairs[~found.pairs["exact"]]
    assert {(names[i].split("/")[-1].split("_")[0], names[j].split("/")[-1].split("_")[0]) for i, j in zip(near["i"], near["j"])} <= {("person1669",) * 2}
    assert not found.conflicts


def test_prints_of_large_and_small_images_of_one_picture_match():
    large = texture(12, size=224, seed=2)
    small = np.stack([np.asarray(Image.fromarray(i[..., 0]).resize((80, 80), Image.Resampling.LANCZOS))[..., None] for i in large])
    found = copies.matches(copies.prints(large), copies.prints(small), threshold=0.85)
    assert found.i.tolist() == found.j.tolist() == list(range(12)) and found.similarity.min() > 0.95
