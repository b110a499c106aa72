"""Phantoms: reproducible, balanced, grouped, with a truth that fits the pixels and statistics that fit the physics."""

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from mstl.datasets import phantoms, subsets
from mstl.datasets.phantoms import cells, drawing, endoscopy, fractals, fundus, mammogram, scintigraphy, ultrasound
from mstl.errors import MstlError

ANATOMY = ("ultrasound", "mammogram", "chest", "cells", "endoscopy", "fundus", "knee")
CASES = ("scintigraphy",)  # kinds whose groups are cases of two views
WITH_TRUTH = ("ultrasound", "mammogram", "chest", "endoscopy", "fundus", "knee")
COLOUR = ("fractals", "endoscopy", "fundus")


@cache
def drawn(kind, n=120, size=48, seed=1, difficulty=0.5):
    return phantoms.make(kind, n=n, size=size, seed=seed, difficulty=difficulty)


def auc(score, positive):
    ranks = np.argsort(np.argsort(score)) + 1
    m = positive.sum()
    return (ranks[positive].sum() - m * (m + 1) / 2) / (m * (len(score) - m))


# --- the same arguments, the same bytes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", phantoms.MODELS)
def test_the_bytes_do_not_depend_on_the_workers(kind):
    one = phantoms.make(kind, n=20, size=32, seed=4, workers=1)
    four = phantoms.make(kind, n=20, size=32, seed=4, workers=4)
    assert one.hash == four.hash
    assert one.images.tobytes() == four.images.tobytes()


@pytest.mark.parametrize("kind", phantoms.MODELS)
def test_another_seed_or_difficulty_draws_other_images(kind):
    base = phantoms.make(kind, n=20, size=32, seed=4)
    assert base.hash != phantoms.make(kind, n=20, size=32, seed=5).hash
    assert base.hash != phantoms.make(kind, n=20, size=32, seed=4, difficulty=0.6).hash


@pytest.mark.parametrize(
    ("kind", "size"),
    [("ultrasound", 33), ("mammogram", 100), ("chest", 96), ("cells", 200), ("fractals", 159), ("endoscopy", 70), ("fundus", 65), ("knee", 120),
     ("scintigraphy", 72)],
)
def test_any_size_is_drawn_with_the_brightness_of_another(kind, size):
    small, large = phantoms.make(kind, n=20, size=48, seed=2), phantoms.make(kind, n=20, size=size, seed=2)
    assert large.images.shape == (20, size, size, 3 if kind in COLOUR else 1)
    assert large.images.std() > 5
    assert abs(large.images.mean() - small.images.mean()) < 0.1 * 255


# --- who is in the set --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", phantoms.MODELS)
def test_classes_and_centers_are_balanced_up_to_rounding(kind):
    data = phantoms.make(kind, n=122 if kind in CASES else 61, size=32, seed=3)
    if kind in CASES:
        data = data.subset(data.views == "anterior")
    counts = np.bincount(data.labels, minlength=len(data.classes))
    assert counts.max() - counts.min() <= 1
    for label in range(len(data.classes)):
        by_center = [np.sum(data.centers[data.labels == label] == center) for center in phantoms.MODELS[kind].centers]
        assert max(by_center) - min(by_center) <= 1
    assert abs(np.sum(data.centers == "A") - 61 / len(by_center)) <= len(data.classes) / 2


@pytest.mark.parametrize("kind", phantoms.MODELS)
def test_a_group_has_one_to_four_or_six_images_of_one_class_and_one_center(kind):
    table = drawn(kind).table().groupby("group")
    sizes = table.size()
    assert (table["class"].nunique() == 1).all() and (table["center"].nunique() == 1).all()
    if kind == "fractals":
        assert (sizes == 1).all()
    elif kind in CASES:
        assert (sizes == 2).all()
    else:
        assert sizes.min() == 1 and sizes.max() == (6 if kind == "knee" else 4)


@pytest.mark.parametrize("kind", phantoms.MODELS)
def test_ids_are_numbered_and_the_card_says_simulated(kind):
    data = drawn(kind)
    assert data.ids[0] == f"{kind}-000000" and data.ids[-1] == f"{kind}-000119"
    assert data.card.simulated and data.card.classes == data.classes and data.card.channels == data.channels
    assert "simulated" in data.card.title.lower() + data.card.notes.lower()
    assert data.name == f"phantom-{kind}"


def test_the_number_of_lines_and_of_fractal_systems_is_chosen_by_the_caller():
    assert phantoms.make("cells", n=20, size=32, n_classes=9).classes[-1] == "line-09"
    assert len(phantoms.make("fractals", n=202, size=32, n_classes=101).classes) == 101


@pytest.mark.parametrize("kind", ("cells", "fractals"))
def test_a_class_is_the_same_line_or_system_for_every_seed(kind):
    one, other = (drawn(kind, n=120, size=32, seed=seed, difficulty=0.0) for seed in (0, 1))
    assert nearest_centroid(one, other) > 4 / len(one.classes)


@pytest.mark.parametrize("kind", ANATOMY)
def test_images_of_a_group_look_more_alike_than_images_of_strangers(kind):
    data = drawn(kind)
    pixels = np.stack([ndimage.gaussian_filter(i.astype(float), 1.0) for i in data.images.mean(-1)]).reshape(
        len(data), -1
    )
    pixels -= np.median([pixels[data.centers == c].mean(0) for c in phantoms.MODELS[kind].centers], axis=0)
    together = np.corrcoef(pixels)
    pair = ~np.eye(len(data), dtype=bool)
    same_group = (data.groups[:, None] == data.groups) & pair
    alike = (data.labels[:, None] == data.labels) & (data.centers[:, None] == data.centers) & ~same_group & pair
    assert together[same_group].mean() > together[alike].mean() + 0.2


# --- centers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", phantoms.MODELS)
def test_centers_can_be_told_apart_and_tell_nothing_about_the_class(kind):
    data = drawn(kind)
    images = data.images.mean(-1)
    features = np.column_stack(
        [images.mean((1, 2)), images.std((1, 2)), fine_detail(images), np.percentile(images, 5, axis=(1, 2))]
    )
    if data.channels == 3:
        features = np.column_stack([features, data.images[..., 2].mean((1, 2)) / images.mean((1, 2))])
    for name in phantoms.MODELS[kind].centers[1:]:
        pair = np.isin(data.centers, ["A", name])
        assert max(abs(auc(f[pair], data.centers[pair] == name) - 0.5) for f in features.T) > 0.25
    table = np.array(
        [[np.sum((data.labels == k) & (data.centers == c)) for c in phantoms.MODELS[kind].centers] for k in range(len(data.classes))]
    )
    assert np.ptp(table, axis=1).max() <= (2 if kind in CASES else 1)


# --- truth --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_TRUTH)
def test_every_lesion_has_a_mask_and_no_normal_image_has_one(kind):
    data = drawn(kind)
    assert np.array_equal(data.masks.any((1, 2)), data.labels > 0)
    assert set(np.unique(data.masks)) == {0, 1}
    share = data.masks[data.labels > 0].mean((1, 2))
    assert 0.002 < share.min() and share.max() < 0.5
    assert ((data.extra["conspicuity"] > 0) == (data.labels > 0)).all()


@pytest.mark.parametrize("kind", WITH_TRUTH)
def test_boxes_lie_in_the_image_and_just_hold_the_mask(kind):
    data = drawn(kind)
    boxes = data.boxes
    assert set(boxes["image"]) == set(np.flatnonzero(data.labels > 0))
    assert (boxes[["x0", "y0"]] >= 0).all().all() and (boxes[["x1", "y1"]] <= data.size).all().all()
    assert (boxes["x1"] > boxes["x0"]).all() and (boxes["y1"] > boxes["y0"]).all()
    assert (boxes["class"] == np.array(data.classes)[data.labels[boxes["image"]]]).all()
    left = data.masks.astype(bool).copy()
    for box in boxes.itertuples():
        part = data.masks[box.image, int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
        left[box.image, int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = False
    assert not left.any()


def test_cells_and_fractals_have_no_masks_and_no_boxes():
    for kind in ("cells", "fractals"):
        assert drawn(kind).masks is None and drawn(kind).boxes is None


@pytest.mark.parametrize(("kind", "sign"), [("ultrasound", -1), ("mammogram", 1), ("chest", 1)])
def test_lesions_are_dark_in_ultrasound_and_bright_in_radiographs(kind, sign):
    assert sign * np.median(lesion_contrast(drawn(kind, difficulty=0.0))) > 8


def test_benign_lesions_are_wider_than_tall_and_malignant_ones_less_so():
    data = drawn("ultrasound", n=150, difficulty=0.0)
    rows = [[np.ptp(axis) + 1 for axis in np.nonzero(data.masks[i])] for i in np.flatnonzero(data.labels)]
    height, width = np.array(rows).T
    benign = data.labels[data.labels > 0] == 1
    assert auc(width / height, benign) > 0.8


def test_it_is_brighter_behind_benign_lesions_than_behind_malignant_ones():
    data = drawn("ultrasound", n=150, difficulty=0.0)
    behind = []
    for i in np.flatnonzero(data.labels):
        rows, columns = np.nonzero(data.masks[i])
        below = slice(rows.max() + 2, rows.max() + 8)
        image = data.images[i, ..., 0].astype(float)
        behind.append(image[below, columns.min() + 2 : columns.max() - 1].mean() - image[below].mean())
    assert auc(np.array(behind), data.labels[data.labels > 0] == 1) > 0.8


def test_pneumonia_lies_inside_the_lungs_and_takes_their_darkness():
    data = drawn("chest", difficulty=0.0)
    where = data.masks[data.labels == 1].mean(0)
    middle = np.abs(np.arange(data.size) - data.size / 2) < 0.03 * data.size
    assert where[:, middle].mean() < 0.1 * where.mean()
    assert where[: int(0.06 * data.size)].sum() == 0


def test_benign_bone_tumours_are_dark_within_a_bright_rim_and_malignant_ones_have_none():
    scores = []
    for difficulty in (0.0, 1.0):
        data = drawn("knee", n=90, size=96, difficulty=difficulty).select(["benign", "malignant"])
        scores.append(auc(np.array([rim(i, m) for i, m in zip(data.images[..., 0], data.masks)]), data.labels == 0))
    assert scores[0] > 0.85 and scores[0] > scores[1] > 0.5


def test_malignant_bone_tumours_bring_a_mass_beside_the_bone():
    easy = drawn("knee", n=90, size=96, difficulty=0.0)
    sick = easy.labels > 0
    flesh = [(i[m > 0] < np.percentile(i, 60)).mean() for i, m in zip(easy.images[sick, ..., 0], easy.masks[sick])]
    assert auc(np.array(flesh), easy.labels[sick] == 2) > 0.8


def test_knees_have_three_centers_and_the_subtypes_of_their_classes():
    data = drawn("knee")
    assert set(data.centers) == {"A", "B", "C"} and (data.boxes["image"].value_counts() == 1).mean() > 0.95
    kinds = data.extra["subtype"].groupby(data.labels).agg(set)
    assert kinds[0] == {"normal"} and kinds[1] == {"cyst", "fibroma", "enchondroma"} and kinds[2] == {"lytic", "sclerotic", "mixed"}
    with pytest.raises(MstlError, match="n = 8 is too small for 3 classes in three centers; ask for at least 9 images"):
        phantoms.make("knee", n=8, size=32)


# --- colour ------------------------------------------------------------------------------------------------------------------


def test_endoscopes_see_red_mucosa_in_a_field_with_black_corners():
    data = drawn("endoscopy", n=60, size=64)
    inside = data.images[:, 16:48, 16:48].mean((1, 2))
    assert (inside[:, 0] > inside[:, 1]).all() and inside.min() > 15
    for corner in (np.s_[:, :3, :3], np.s_[:, -3:, -3:], np.s_[:, :3, -3:], np.s_[:, -3:, :3]):
        assert data.images[corner].max() < 30
    assert (data.images.min(-1) > 200).any((1, 2)).mean() > 0.5  # glints on what is wet


def test_polyps_lie_on_the_wall_and_normal_mucosa_has_folds_glints_and_residue_too():
    data = drawn("endoscopy", n=160, size=32)
    polyp = data.labels == 1
    middle = np.array([ndimage.center_of_mass(m) for m in data.masks[polyp]]) / 32
    assert middle.min() > 0.1 and middle.max() < 0.9
    score = np.column_stack([data.images.mean((1, 2, 3)), data.images.std((1, 2, 3)), (data.images.min(-1) > 230).mean((1, 2))])
    assert all(abs(auc(s, polyp) - 0.5) < 0.15 for s in score.T)  # none of these tells a polyp
    assert set(data.extra["subtype"]) == {"mucosa", "sessile", "bulky", "flat"}


def test_a_fundus_is_a_lit_disc_whose_brightest_spot_is_the_optic_disc_on_either_side():
    data = drawn("fundus", n=60, size=96)
    x, y = np.meshgrid(np.arange(96), np.arange(96))
    assert data.images[:, np.hypot(x - 47.5, y - 47.5) > 0.5 * 96].max() < 12
    healthy = data.images[data.labels != 1].astype(float)
    bright = np.array([np.unravel_index(ndimage.gaussian_filter(i[..., 1], 2).argmax(), (96, 96)) for i in healthy]) / 96
    assert (np.abs(bright[:, 0] - 0.5) < 0.12).mean() > 0.9  # at the height of the macula
    off = np.abs(bright[:, 1] - 0.5)
    assert ((off > 0.1) & (off < 0.35)).mean() > 0.9 and 0.25 < (bright[:, 1] > 0.5).mean() < 0.75
    assert (healthy[..., 0].mean((1, 2)) > healthy[..., 1].mean((1, 2))).all()


def test_the_mask_of_glaucoma_is_the_cup_and_that_of_retinopathy_spares_the_disc():
    data = drawn("fundus", n=60, size=96)
    glaucoma = np.flatnonzero(data.labels == 2)
    assert (data.boxes["image"].value_counts()[glaucoma] == 1).all()  # one cup an eye
    cups = [data.images[i][data.masks[i] == 1].mean() - data.images[i].mean() for i in glaucoma]
    assert min(cups) > 20
    assert data.boxes["image"].value_counts()[np.flatnonzero(data.labels == 1)].median() > 5
    assert set(data.extra["subtype"]) == {"normal", "retinopathy", "glaucoma"}
    ratio = data.extra["conspicuity"][glaucoma]
    assert 0.3 < ratio.min() and ratio.max() <= 0.92 and len(set(data.groups[glaucoma])) == ratio.nunique()


def test_simulated_lines_come_from_simulated_tissues_by_which_they_can_be_merged():
    data = phantoms.make("cells", n=60, size=32, n_classes=30)
    assert set(data.card.origin) == set(data.classes) and all(t.startswith("simulated ") for t in data.card.origin.values())
    assert [data.card.origin[f"line-0{k}"] for k in (1, 2, 4)] == ["simulated blood", "simulated stroma", "simulated epithelium"]
    merged = subsets.merge(data, "tissue", 2)
    assert merged.classes[1] == "other" and merged.classes[0].startswith("simulated")
    assert drawn("endoscopy").card.origin == {}


# --- two views -----------------------------------------------------------------------------------------------------------


def scan(number=0, *, label=0, center=0, size=256, difficulty=0.5):
    return drawing.Scene(7, 11, number, label, center, 2, size, difficulty)


def spotted(depth, *, uptake=6.0, x=0.0, y=60.0, center=0):
    """A patient without foci but one."""
    patient = scintigraphy._patient(scan(center=center)) | {"benign": [], "off": 0.0}
    return patient | {"lesions": [scintigraphy.Spot(x, y, 2.0, 2.0, uptake, depth)]}


def test_every_case_has_an_anterior_and_a_posterior_view_and_they_are_not_the_same_picture():
    data = drawn("scintigraphy")
    assert (data.views == np.tile(scintigraphy.VIEWS, 60)).all() and (data.cases == data.groups).all()
    front, back = data.images[::2].astype(int), data.images[1::2].astype(int)
    assert np.abs(front - back).mean((1, 2, 3)).min() > 5


def test_the_camera_counts_256_by_1024_bins_and_the_centers_have_different_count_rates():
    a, b = (np.stack([scintigraphy.full_size(scan(number, center=center)) for number in range(3)]) for center in (0, 1))
    assert a.shape == (3, 2, 1024, 256) and np.issubdtype(a.dtype, np.integer)
    rates = [counts.sum((2, 3)).mean() for counts in (a, b)]
    assert rates[0] == pytest.approx(scintigraphy.CAMERAS[0].counts * 1.05, rel=0.35) and rates[0] > 2.5 * rates[1]


def test_counts_are_poisson_about_what_is_expected():
    expected = scintigraphy._expected(scintigraphy._patient(scan()), 128, 128)[0]
    draws = np.stack([np.random.default_rng(k).poisson(expected) for k in range(40)])
    first = scintigraphy.full_size(scan())[0]
    mean = scintigraphy._expected(scintigraphy._patient(scan()), *scintigraphy.FULL_SIZE)[0]
    bright = mean > 5
    assert (((first - mean) ** 2)[bright] / mean[bright]).mean() == pytest.approx(1.0, abs=0.05)
    assert draws.sum((1, 2)).mean() == pytest.approx(expected.sum(), rel=0.01)


def test_the_expected_counts_do_not_depend_on_the_bins_they_are_counted_in():
    patient = scintigraphy._patient(scan(label=1))
    fine, coarse = scintigraphy._expected(patient, 256, 256), scintigraphy._expected(patient, 256, 256, 4)
    assert coarse == pytest.approx(fine.reshape(2, 64, 4, 64, 4).sum((2, 4)), rel=1e-6)
    assert fine.sum() == pytest.approx(2 * patient["counts"], rel=1e-6)


@pytest.mark.parametrize(("depth", "nearer"), [(scintigraphy.FRONT, 0), (scintigraphy.BACK, 1)])
def test_a_focus_is_stronger_and_sharper_in_the_nearer_view_by_the_law_of_attenuation(depth, nearer):
    patient = spotted(depth)
    x, y = scintigraphy._place(patient, 0, 512, 512)
    seen = [scintigraphy._focus(patient, patient["lesions"][0], view, x, y) for view in (0, 1)]
    ratio = seen[nearer].sum() / seen[1 - nearer].sum()
    assert ratio == pytest.approx(np.exp(scintigraphy.MU * patient["girth"] * abs(depth[0] - depth[1])), rel=1e-3)
    widths = [scintigraphy._widths(patient, patient["lesions"][0], view)[1][0] for view in (0, 1)]
    assert widths[nearer] < widths[1 - nearer]


def test_the_same_side_of_the_patient_lies_on_opposite_sides_of_the_two_views():
    patient = spotted(scintigraphy.TRUNK, x=10.0)
    front, back = (scintigraphy._mask(patient, view, 128, 128) for view in (0, 1))
    columns = [np.flatnonzero(mask.any(0)).mean() for mask in (front, back)]
    assert columns[0] > 64 > columns[1] and columns[0] + columns[1] == pytest.approx(127, abs=1.5)


def test_bladder_and_kidneys_are_decoys_of_one_view_each():
    """Without any metastasis: the bladder outshines what lies around it more from the front, the kidneys from behind."""
    gained = {"bladder": [], "kidneys": []}
    for number in range(12):
        patient = scintigraphy._patient(scan(number))
        x, y = scintigraphy._place(patient, 0, 128, 128)
        organs = {"bladder": patient["benign"][:1], "kidneys": patient["benign"][1:3]}
        for name, spots in organs.items():
            front, back = (sum(scintigraphy._focus(patient, s, view, x, y).max() for s in spots) for view in (0, 1))
            gained[name].append(front / back)
    assert min(gained["bladder"]) > 1.2 and max(gained["kidneys"]) < 0.6


def test_degenerative_uptake_is_as_common_with_metastases_as_without():
    worn = [[len(scintigraphy._patient(scan(number, label=label))["benign"]) - 3 for number in range(300)] for label in (0, 1)]
    assert np.mean(worn[0]) == pytest.approx(np.mean(worn[1]), abs=0.3) and np.mean(worn[0]) > 1
    assert {scintigraphy._patient(scan(number))["subtype"] for number in range(40)} == {"normal", "degenerative"}


def test_hot_spots_have_boxes_in_both_views_and_their_subtype_says_which_view_sees_them_better():
    data = drawn("scintigraphy", difficulty=0.0)
    ill = np.flatnonzero(data.labels == 1)
    assert set(data.boxes["image"]) == set(ill)
    assert (data.boxes[["x0", "y0"]] >= 0).all().all() and (data.boxes[["x1", "y1"]] <= data.size).all().all()
    assert set(data.extra["subtype"][ill]) == {"front", "back", "both"} and (data.extra["conspicuity"][ill] > 0).all()
    strength = data.extra["conspicuity"].to_numpy()
    for subtype, nearer in (("front", 0), ("back", 1)):
        own = ill[(data.extra["subtype"][ill] == subtype).to_numpy()]
        own = own[own % 2 == 0]
        assert (strength[own + nearer] > strength[own + 1 - nearer]).mean() > 0.9


def test_every_focus_has_a_pixel_of_its_own_in_the_mask_however_small_the_image_is():
    for number in range(20):
        patient = scintigraphy._patient(scan(number, label=1))
        for view in (0, 1):
            for spot in patient["lesions"]:
                assert scintigraphy._mask(patient | {"lesions": [spot]}, view, 32, 32).any()


def test_metastases_stand_out_less_the_greater_the_difficulty():
    easy, middle, hard = (drawn("scintigraphy", difficulty=d).extra["conspicuity"] for d in (0.0, 0.5, 1.0))
    assert easy[easy > 0].median() > middle[middle > 0].median() > hard[hard > 0].median()


# --- difficulty ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("ultrasound", "mammogram", "chest"))
def test_lesions_stand_out_less_the_greater_the_difficulty(kind):
    sign = -1 if kind == "ultrasound" else 1
    easy, middle, hard = (np.median(sign * lesion_contrast(drawn(kind, difficulty=d))) for d in (0.0, 0.5, 1.0))
    assert easy > middle > hard


def test_polyps_and_retinal_lesions_stand_out_less_the_greater_the_difficulty():
    for kind, classes in (("endoscopy", ["polyp"]), ("fundus", ["retinopathy"])):
        easy, middle, hard = (
            np.median(colour_contrast(drawn(kind, n=n, difficulty=d).select(classes)))
            for n, d in ((45, 0.0), (120, 0.5), (45, 1.0))
        )
        assert easy > middle > hard, kind


def test_the_cups_of_healthy_and_glaucomatous_discs_overlap_more_the_greater_the_difficulty():
    separated = []
    for difficulty in (0.0, 1.0):
        data = drawn("fundus", n=60, size=64, difficulty=difficulty).select(["normal", "glaucoma"])
        separated.append(auc(np.array([paleness(image) for image in data.images]), data.labels == 1))
    assert separated[0] > 0.85 and separated[0] > separated[1] > 0.5


@pytest.mark.parametrize("kind", ("cells", "fractals"))
def test_a_nearest_centroid_errs_more_the_greater_the_difficulty(kind):
    easy, middle, hard = (
        nearest_centroid(*(drawn(kind, n=120, size=32, seed=seed, difficulty=d) for seed in (0, 1)))
        for d in (0.0, 0.5, 1.0)
    )
    assert easy > middle > hard


# --- physics ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", ultrasound.PROBES)
def test_the_echo_of_uniform_tissue_is_fully_developed_speckle(probe):
    rng = np.random.default_rng(0)
    echo = np.stack([ultrasound._speckle(rng, np.full((192, 192), 3.0, np.float32), probe) for _ in range(6)], 1)
    envelope = np.hypot(*echo)[:, 10:-10, 10:-10]
    assert envelope.mean() / envelope.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)  # Rayleigh: 1.913
    assert (envelope**2).mean() == pytest.approx(9.0, rel=0.05)
    # and so at every depth, wherever the focus lies
    by_depth = (envelope**2).mean((0, 2)).reshape(4, -1).mean(1)
    assert by_depth == pytest.approx(np.full(4, 9.0), rel=0.12)


def test_speckle_is_wider_away_from_the_focus_and_wider_across_the_beam_than_along_it():
    rng = np.random.default_rng(1)
    echo = np.stack([ultrasound._speckle(rng, np.ones((256, 256), np.float32), ultrasound.PROBES[0]) for _ in range(4)], 1)
    focus = slice(int(ultrasound.FOCUS * 256) - 20, int(ultrasound.FOCUS * 256) + 20)

    def neighbours(part, axis):
        a, b = (np.take(part, range(start, part.shape[axis] - 2 + start), axis) for start in (0, 2))
        return (a * b).mean() / (part**2).mean()

    assert neighbours(echo[:, :, -40:], 3) > neighbours(echo[:, :, focus], 3) + 0.1
    assert neighbours(echo[:, :, focus], 3) > neighbours(echo[:, :, focus], 2)


@pytest.mark.parametrize("beta", (2.9, 3.3))
def test_breast_tissue_has_the_power_law_that_it_was_asked_for(beta):
    rng = np.random.default_rng(2)
    slopes = [radial_slope(mammogram._mammary_tissue(rng, 256, beta), 4, 60) for _ in range(8)]
    assert np.mean(slopes) == pytest.approx(beta, abs=0.12)


def test_whole_mammogram_regions_keep_a_slope_near_three():
    data = phantoms.make("mammogram", n=24, size=96, seed=0)
    window = np.hanning(96)[:, None] * np.hanning(96)
    slopes = [radial_slope((i - i.mean()) * window, 4, 24) for i in data.images[..., 0].astype(float)]
    assert 2.6 < np.mean(slopes) < 3.6


def test_textures_have_unit_variance_whatever_their_shape():
    rng = np.random.default_rng(3)
    for options in (
        dict(slope=3.0),
        dict(slope=2.2, low=12, high=60, stretch=9.0),
        dict(slope=5.0, low=4, angle=1.0, stretch=3.0),
    ):
        fields = [drawing._texture(rng, 128, **options) for _ in range(40)]
        assert np.mean(np.square(fields)) == pytest.approx(1.0, rel=0.15)
        assert fields[0].dtype == np.float32


def test_a_cell_in_focus_is_nearly_invisible_and_gains_a_halo_out_of_focus():
    y, x = np.mgrid[:128, :128] / 128 - 0.5
    phase = (1.5 * np.sqrt(np.clip(1 - (x**2 + y**2) / 0.05**2, 0, 1))).astype(np.float32)
    focused, blurred = cells._defocused(phase, 0.02), cells._defocused(phase, 1.0)
    assert blurred.std() > 4 * focused.std()
    assert blurred[64, 64] < 0 < blurred[64 : 64 + 14, 64].max()


def test_fractal_systems_contract_fill_their_frame_and_differ():
    systems = [fractals._system(k) for k in range(20)]
    for k, system in enumerate(systems):
        assert np.linalg.norm(system.maps[:, :, :2], 2, axis=(1, 2)).max() < 1
        assert system.chances.sum() == pytest.approx(1)
        points, last = fractals._orbit(np.random.default_rng(k), system, chains=800, steps=60)
        assert np.isfinite(points).all() and set(last) <= set(range(len(system.maps)))
        assert fractals._filling(points) > 0.8 * fractals.FILLING
    assert len({s.maps.tobytes() for s in systems}) == 20


# --- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(kind="ultrasond"), "there is no phantom 'ultrasond'; did you mean 'ultrasound'?"),
        (dict(n=5), "n = 5 is too small for 3 classes in two centers; ask for at least 6 images"),
        (dict(kind="fractals", n=30, n_classes=20), "n = 30 is too small for 20 classes"),
        (dict(kind="scintigraphy", n=21), "every case has 2 images, so n must be a multiple of 2, not 21"),
        (dict(kind="scintigraphy", n=6), "n = 6 is too small for 2 classes in two centers; ask for at least 8 images"),
        (dict(n=60.0), "n must be a whole number, not 60.0"),
        (dict(size=16), "size must lie between 32 and 512 pixels, not 16"),
        (dict(size=513), "size must lie between 32 and 512 pixels, not 513"),
        (dict(seed=-1), "seed must be 0 or more, not -1"),
        (dict(difficulty=1.5), "difficulty must lie between 0 (easy) and 1 (hard), not 1.5"),
        (dict(difficulty=float("nan")), "difficulty must lie between 0 (easy) and 1 (hard), not nan"),
        (dict(difficulty="hard"), "difficulty must lie between 0 (easy) and 1 (hard), not 'hard'"),
        (dict(kind="cells", n_classes=31), "n_classes must lie between 2 and 30, not 31"),
        (dict(kind="cells", n_classes=1), "n_classes must lie between 2 and 30, not 1"),
        (dict(n_classes=2), "has the 3 classes normal, benign, malignant; leave n_classes out"),
        (dict(workers=0), "workers must be a whole number from 1 up, not 0"),
    ],
)
def test_a_wrong_argument_is_answered_by_one_sentence(arguments, sentence):
    with pytest.raises(MstlError) as problem:
        phantoms.make(**{"kind": "ultrasound", "n": 12, "size": 32, **arguments})
    assert sentence in str(problem.value) and "\n" not in str(problem.value)


# --- simple observers ---------------------------------------------------------------------------------------------------


def lesion_contrast(data):
    """Mean grey inside the mask minus that of a ring around it, an image; for the chest minus the same place of the normal images."""
    normal = data.images[data.labels == 0, ..., 0].mean(0)
    out = []
    for i in np.flatnonzero(data.labels):
        image, mask = data.images[i, ..., 0].astype(float), data.masks[i].astype(bool)
        ring = ndimage.binary_dilation(mask, iterations=4) & ~ndimage.binary_dilation(mask)
        around = normal[mask].mean() if data.name == "phantom-chest" else image[ring].mean()
        out.append(image[mask].mean() - around)
    return np.array(out)


def rim(image, mask):
    """Mean grey along the border of a mask minus that of its inside."""
    inside = ndimage.binary_erosion(mask, iterations=2)
    border = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask)
    return image[border].mean() - (image[inside] if inside.any() else image[mask > 0]).mean()


def colour_contrast(data):
    """How far the pixels inside the mask are from the mean colour of a ring around it, an image; lesions may be dark and bright at once."""
    out = []
    for image, mask in zip(data.images.astype(float), data.masks.astype(bool)):
        ring = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask)
        out.append(np.linalg.norm(image[mask] - image[ring].mean(0), axis=1).mean())
    return np.array(out)


def paleness(image):
    """Share of an eye's disc that is pale: pixels of nearly the disc's greatest green over those of at least half of it."""
    green = ndimage.gaussian_filter(image[..., 1].astype(float), 0.7)
    around = np.median(green[green > 20])
    top = green.max() - around
    return (green > around + 0.8 * top).sum() / (green > around + 0.4 * top).sum()


def fine_detail(images):
    return np.abs(np.diff(images, axis=2)).mean((1, 2))


def texture_features(data):
    """Log power in rings of frequency, and moments: what a simple observer sees of a texture, wherever it lies."""
    images = data.images.mean(-1)
    power = np.abs(np.fft.rfft2(images - images.mean((1, 2), keepdims=True))) ** 2
    radius = np.hypot(np.fft.fftfreq(data.size)[:, None], np.fft.rfftfreq(data.size)) * data.size
    rings = [
        np.log(power[:, (radius >= a) & (radius < b)].mean(1))
        for a, b in ((1, 2), (2, 3), (3, 5), (5, 8), (8, 12), (12, 17))
    ]
    spread = images.std((1, 2))
    skew = ((images - images.mean((1, 2), keepdims=True)) ** 3).mean((1, 2)) / spread**3
    low = images.reshape(len(images), 4, data.size // 4, 4, data.size // 4).mean((2, 4)).reshape(len(images), -1)
    layout = low / low.mean(1, keepdims=True) if data.channels == 3 else np.empty((len(images), 0))
    return np.column_stack([*rings, np.log(spread), skew, layout])


def nearest_centroid(train, test):
    """Accuracy on `test` of the class means of `train`, center effects removed."""
    seen = []
    for data in (train, test):
        features = texture_features(data)
        for center in np.unique(data.centers):
            features[data.centers == center] -= features[data.centers == center].mean(0)
        seen.append(features)
    scale = seen[0].std(0)
    means = np.stack([seen[0][train.labels == k].mean(0) for k in range(len(train.classes))])
    guess = np.linalg.norm((seen[1][:, None] - means) / scale, axis=2).argmin(1)
    return np.mean(guess == test.labels)


def radial_slope(image, low, high):
    edge = image.shape[0]
    power = np.abs(np.fft.fft2(image)) ** 2
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(edge) * edge,) * 2)).round().astype(int)
    mean = np.bincount(radius.ravel(), power.ravel()) / np.bincount(radius.ravel())
    k = np.arange(low, high)
    return -np.polyfit(np.log(k), np.log(mean[low:high]), 1)[0]
