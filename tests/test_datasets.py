"""Data sets: the catalog, ImageSet, every reader on look-alikes of its archive, bad input, and the real archives where they are."""

from __future__ import annotations

import dataclasses
import errno
import io
import multiprocessing
import os
import pickle
import sys
import zipfile
from pathlib import Path

import lookalikes
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mstl import datasets
from mstl.datasets import archives, catalog, imageset, pixels
from mstl.errors import MstlError

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = REPOSITORY.parent / "shared" / "data"
real = pytest.mark.real


@pytest.fixture(autouse=True)
def no_other_archives(monkeypatch):
    monkeypatch.delenv("MSTL_DATA", raising=False)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def one_sentence(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text and len(text) > 20
    return text


def small(root: Path, maker=lookalikes.busi, stem="Dataset_BUSI", kind=".zip") -> Path:
    lookalikes.pack(maker(), root / "raw", stem, kind)
    return root


# --- catalog -----------------------------------------------------------------------------------------------------------


def test_every_card_is_complete_and_names_a_reader_that_exists():
    readers = {*archives.READERS, "npz", "phantom"}
    for card in catalog.catalog().values():
        assert card.title and card.modality and card.task and card.group_rule and card.licence and card.citation, (
            card.name
        )
        assert card.role in {"source", "bridge", "target"} and card.channels in (1, 3) and card.reader in readers, (
            card.name
        )
        least = 1 if card.layout.get("task") == "whole" and card.reader == "masked_frames" else 2
        assert card.simulated or (card.url.startswith("http") and card.archive and len(card.classes) >= least), card.name
        assert not card.origin or card.simulated or set(card.origin) == set(card.classes), card.name
        assert len(set(card.classes)) == len(card.classes)
        assert all(
            value.split(":")[0] in {"sha256", "md5"} for value in [*card.checksum.values(), *card.known.values()]
        )
    assert {
        "busi",
        "chest-xray",
        "mias-regions",
        "mias-tissue",
        "mias-whole",
        "cells-brightfield",
        "cifar10",
        "bone-fracture",
        "hep2-cells",
        "kvasir-seg",
        "kvasir-segmentation",
        "eye-diseases",
        "mednist",
        "pneumoniamnist",
        "breastmnist",
        "phantom-ultrasound",
        "phantom-mammogram",
        "phantom-chest",
        "phantom-cells",
        "phantom-fractals",
    } <= set(catalog.catalog())


def test_the_catalog_and_the_medmnist_package_agree():
    from medmnist import INFO

    for card in catalog.catalog().values():
        if card.reader == "npz":
            info = INFO[card.name]
            assert card.checksum == {
                f"{card.name}{tail}.npz": f"md5:{info[f'MD5{tail}']}" for tail in ("", "_64", "_128", "_224")
            }
            names = tuple(info["label"][str(i)] for i in range(len(info["label"])))
            own = tuple(card.layout.get("labels", card.classes))
            assert own == names or own == tuple(f"grade {name}" for name in names), card.name
            assert card.channels == info["n_channels"] and card.licence == info["license"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(MstlError, match="did you mean 'chest-xray'"):
        datasets.load("chest-xry")


def test_the_page_about_the_data_is_the_catalog_s():
    page = (REPOSITORY / "data" / "README.md").read_text(encoding="utf-8")
    assert page == catalog.readme(), """run: python -c "from mstl.datasets import catalog; catalog.write_readme()" """


# --- ImageSet ----------------------------------------------------------------------------------------------------------


def an_image_set(n: int = 8) -> datasets.ImageSet:
    rng = np.random.default_rng(0)
    return datasets.ImageSet(
        name="made-up",
        images=rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8),
        labels=np.arange(n) % 3,
        classes=("a", "b", "c"),
        groups=[f"g{i // 2}" for i in range(n)],
        centers=["A"] * n,
        ids=[f"i{i}" for i in range(n)],
        splits=[""] * n,
        card=catalog.card("busi"),
        masks=rng.integers(0, 2, (n, 8, 8), dtype=np.uint8),
        views=["left", "right"] * (n // 2),
        cases=[f"c{i // 2}" for i in range(n)],
        boxes=pd.DataFrame(
            {"image": [0, 2, 2, 5], "class": ["a", "c", "c", "c"], "x0": 0.1, "y0": 1 / 3, "x1": 5.0, "y1": 6.0}
        ),
        extra=pd.DataFrame(
            {
                "number": np.arange(n),
                "share": np.linspace(0, 1, n) / 3,
                "word": ["NA", "", "x,y", 'q"', "é", "1", "01", "None"],
                "sure": [True, False] * (n // 2),
            }
        ),
    )


def test_a_set_comes_back_from_disk_as_it_was_written(tmp_path):
    data = an_image_set()
    again = datasets.ImageSet.open(data.save(tmp_path / "set"))
    for key in ("images", "labels", "groups", "centers", "ids", "splits", "masks", "views", "cases"):
        np.testing.assert_array_equal(getattr(again, key), getattr(data, key))
        assert getattr(again, key).dtype.kind == getattr(data, key).dtype.kind
    pd.testing.assert_frame_equal(again.boxes, data.boxes)
    pd.testing.assert_frame_equal(again.extra, data.extra, check_dtype=False)
    assert again.classes == data.classes and again.card == data.card
    assert again.hash == data.hash == imageset.content_hash(again)
    assert isinstance(again.images, np.memmap) and not again.images.flags.writeable


def test_saving_twice_writes_the_same_bytes_and_leaves_nothing_aside(tmp_path):
    data = an_image_set()
    first = tree(data.save(tmp_path / "set"))
    assert tree(data.save(tmp_path / "set")) == first
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_hash_changes_with_any_content():
    data = an_image_set()
    pixels_changed = data.images.copy()
    pixels_changed[3, 2, 1, 0] ^= 1
    boxes = data.boxes.copy()
    boxes.loc[0, "x0"] += 1
    others = [
        dataclasses.replace(data, **change)
        for change in (
            {"images": pixels_changed},
            {"labels": data.labels[::-1].copy()},
            {"groups": data.groups[::-1]},
            {"ids": data.ids[::-1]},
            {"splits": ["train"] * 8},
            {"boxes": boxes},
            {"masks": 1 - data.masks},
            {"classes": ("a", "c", "b")},
        )
    ]
    derived = [
        data.subset([0, 1, 2]),
        data.subset([1, 0, 2]),
        data.select(["a", "b"]),
        data.select(["b", "a"]),
        data.with_groups(data.ids),
    ]
    assert len({other.hash for other in [data, *others, *derived]}) == 1 + len(others) + len(derived)
    assert data.subset([0, 1, 2]).hash == data.subset(np.array([0, 1, 2])).hash


def test_a_subset_keeps_every_table_in_step_and_copies_pixels_only_when_asked():
    data = an_image_set()
    part = data.subset([5, 2, 0])
    assert "images" not in part.__dict__ and len(part) == 3 and part.size == 8 and part.channels == 1
    np.testing.assert_array_equal(part.images, data.images[[5, 2, 0]])
    np.testing.assert_array_equal(part.masks, data.masks[[5, 2, 0]])
    assert part.boxes["image"].tolist() == [0, 1, 1, 2] and part.extra["number"].tolist() == [5, 2, 0]
    nested = part.subset(np.array([False, True, True]))
    np.testing.assert_array_equal(nested.images, data.images[[2, 0]])
    assert (
        nested.ids.tolist() == ["i2", "i0"]
        and nested.boxes["image"].tolist() == [0, 0, 1]
        and nested.views.tolist() == ["left", "left"]
    )
    with pytest.raises(MstlError, match="no images"):
        data.subset([])


def test_a_subset_can_be_pickled_and_copied_with_changes():
    part = an_image_set().subset([1, 2])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part)).images, part.images)
    changed = dataclasses.replace(part, name="other")
    assert (
        changed.hash == imageset.content_hash(part)
        and dataclasses.replace(changed, groups=["a", "b"]).hash != changed.hash
    )


def test_select_relabels_in_the_order_given():
    data = an_image_set()
    two = data.select(["c", "a"])
    assert two.classes == ("c", "a")
    assert [two.classes[label] for label in two.labels] == [
        data.classes[i] for i in data.labels if data.classes[i] != "b"
    ]
    with pytest.raises(MstlError, match="no class 'malignent'.*benign"):
        dataclasses.replace(data, classes=("x", "benign", "malignant")).select(["malignent", "benign"])


def test_a_set_whose_parts_do_not_fit_together_is_refused():
    data = an_image_set()
    for change, words in (
        ({"groups": ["g"]}, "groups must have one"),
        ({"ids": ["i"] * 8}, "occurs twice"),
        ({"labels": np.full(8, 3)}, "labels must lie"),
        ({"masks": data.masks[:3]}, "masks must be"),
        ({"images": data.images.astype(float)}, "uint8"),
    ):
        with pytest.raises(MstlError, match=words):
            dataclasses.replace(data, **change)


def test_a_damaged_prepared_folder_says_what_to_do(tmp_path):
    folder = an_image_set().save(tmp_path / "set")
    (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes()[:300])
    with pytest.raises(MstlError, match="delete it") as caught:
        datasets.ImageSet.open(folder)
    one_sentence(caught)


# --- layouts -----------------------------------------------------------------------------------------------------------


CELLS = catalog.card("cells-brightfield").classes
LAYOUTS = {
    "busi": ("Dataset_BUSI", lookalikes.busi),
    "chest-xray": ("ChestXRay2017", lookalikes.chest),
    "mias-regions": ("all-mias", lookalikes.mias),
    "mias-whole": ("all-mias", lookalikes.mias),
    "mias-tissue": ("all-mias", lookalikes.mias),
    "bone-fracture": ("bone_fracture", lookalikes.bone),
    "cells-brightfield": ("cell_lines_brightfield", lambda: lookalikes.cells(CELLS, height=150, width=70)),
    "cifar10": (
        "CIFAR-10-images",
        lambda: lookalikes.class_folders(
            catalog.card("cifar10").classes, {"train": 2, "test": 1}, "CIFAR-10-images", 3
        ),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_zip_tar_and_folder_prepare_to_the_same_bytes_whatever_the_number_of_workers(name, tmp_path):
    stem, maker = LAYOUTS[name]
    files, seen = maker(), []
    for kind, workers in zip(lookalikes.KINDS, (1, 2, 5, 3)):
        root = tmp_path / f"root{kind}"
        lookalikes.pack(files, root / "raw", stem, kind)
        data = datasets.load(name, 32, root, workers=workers, progress=False)
        stored = tree(root / "prepared" / f"{name}-32")
        stored.pop("imageset.json")  # it names the archive
        seen.append((data.hash, stored))
        assert data.provenance["file"] == f"{stem}{kind}" and len(data.provenance["sha256"]) == 64
        assert imageset.content_hash(data) == data.hash
    assert all(each == seen[0] for each in seen)


def test_preparing_the_same_archive_twice_gives_the_same_files_to_the_byte(tmp_path):
    first, second = (small(tmp_path / name) for name in ("one", "two"))
    for root, workers in ((first, 1), (second, 4)):
        datasets.load("busi", 32, root, workers=workers)
    assert tree(first / "prepared" / "busi-32") == tree(second / "prepared" / "busi-32")


def test_busi_boxes_are_drawn_around_each_lesion_mask_in_the_letterbox(tmp_path):
    data = datasets.load("busi", 60, small(tmp_path))
    assert data.classes == ("normal", "benign", "malignant") and np.bincount(data.labels).tolist() == [3, 3, 3]
    assert data.ids[0] == "benign/benign (1)" and len(set(data.groups)) == 9
    first = data.boxes[data.boxes["image"] == 0]
    assert first[["x0", "y0", "x1", "y1"]].to_numpy().tolist() == [
        [15, 20, 30, 30],
        [40, 40, 50, 45],
    ]  # 10 black rows above
    assert set(first["class"]) == {"benign"} and not (data.boxes["class"] == "normal").any()
    inside = np.zeros((60, 60), np.uint8)
    inside[20:30, 15:30] = inside[40:45, 40:50] = 1
    np.testing.assert_array_equal(data.masks[0], inside)
    assert not data.images[:, :10].any() and not data.images[:, 50:].any() and data.images[:, 10:50].any()


def test_boxes_keep_to_their_masks_at_another_size_and_when_squashed(tmp_path):
    root = small(tmp_path)
    for options in ({}, {"fit": "squash"}):
        data = datasets.load("busi", 96, root, **options)
        for row in np.flatnonzero(data.masks.any((1, 2))):
            x0, y0, x1, y1 = pixels.extent(data.masks[row])
            own = data.boxes[data.boxes["image"] == row]
            near = [own["x0"].min() - x0, own["y0"].min() - y0, own["x1"].max() - x1, own["y1"].max() - y1]
            assert np.abs(near).max() <= 1
    assert (
        sorted(path.name for path in (root / "prepared").glob("busi*"))[0] == "busi-96"
        and len(list((root / "prepared").glob("busi*"))) == 2
    )


def test_chest_patients_are_read_from_the_names_and_published_parts_kept(tmp_path):
    data = datasets.load("chest-xray", 32, small(tmp_path, lookalikes.chest, "ChestXRay2017"))
    groups = dict(zip(data.ids, data.groups))
    assert groups["train/NORMAL/IM-0115-0001"] == groups["train/NORMAL/IM-0115-0002"] == "IM-0115"
    assert groups["train/NORMAL/NORMAL2-IM-0512-0001-0002"] == "NORMAL2-IM-0512"
    assert (
        groups["train/PNEUMONIA/person12_bacteria_35"]
        == "person12_bacteria"
        != groups["train/PNEUMONIA/person12_virus_40"]
    )
    assert groups["test/PNEUMONIA/person3_virus_7_1"] == "person3_virus"
    assert data.extra["person"][data.ids.tolist().index("train/PNEUMONIA/person12_virus_40")] == "person12"
    assert sorted(set(data.splits)) == ["test", "train"] and all(i.startswith(s) for i, s in zip(data.ids, data.splits))
    assert data.boxes is None and data.masks is None and data.channels == 1


def test_a_folder_published_twice_one_inside_the_other_is_read_once(tmp_path):
    files = lookalikes.chest()
    files |= {
        name.replace("chest_xray/", "chest_xray/chest_xray/"): data
        for name, data in files.items()
        if name.startswith("chest_xray/t")
    }
    lookalikes.pack(files, tmp_path / "raw", "ChestXRay2017")
    assert len(datasets.load("chest-xray", 32, tmp_path)) == 11


def test_mias_coordinates_count_from_the_bottom_of_the_1024_original(tmp_path):
    data = datasets.load("mias-whole", 64, small(tmp_path, lookalikes.mias, "all-mias"))
    assert len(data.boxes) == 2 and data.boxes["class"].tolist() == ["CIRC", "SPIC"]
    np.testing.assert_allclose(
        data.boxes.iloc[0][["x0", "y0", "x1", "y1"]].astype(float),
        np.array([560 - 50, 1024 - 420 - 50, 560 + 50, 1024 - 420 + 50]) / 16,
    )
    assert np.bincount(data.labels).tolist() == [9, 3]  # a finding without coordinates is abnormal too
    assert data.groups[:4].tolist() == ["woman001", "woman001", "woman002", "woman002"] and data.views[:2].tolist() == [
        "right",
        "left",
    ]


def test_mias_regions_pair_each_located_finding_with_normal_tissue_of_another_woman(tmp_path):
    data = datasets.load("mias-regions", 32, small(tmp_path, lookalikes.mias, "all-mias"))
    lesion, normal = (data.subset(data.labels == label) for label in (1, 0))
    assert len(lesion) == len(normal) == 2 and lesion.extra["film"].tolist() == ["mdb001", "mdb003"]
    assert sorted(lesion.extra["side"]) == sorted(normal.extra["side"])
    assert not set(lesion.groups) & set(normal.groups) and set(normal.groups) <= {"woman004", "woman005", "woman006"}
    assert (normal.extra["breast_share"] >= 0.5).all()
    np.testing.assert_allclose(data.extra["mean"], data.images.mean((1, 2, 3)), atol=1e-3)
    narrow = datasets.load("mias-regions", 32, tmp_path, context=1.0, smallest=8)
    assert narrow.extra["side"].max() < data.extra["side"].max()


def test_cells_are_cut_at_native_resolution_above_the_scale_bar(tmp_path):
    files = lookalikes.cells(CELLS)
    lookalikes.pack(files, tmp_path / "raw", "cell_lines_brightfield")
    data = datasets.load("cells-brightfield", 48, tmp_path)
    assert len(data) == 30 * 2 * 4 and len(set(data.groups)) == 31
    assert data.images.max() < 200  # nothing of the white bar
    frame = np.asarray(Image.open(io.BytesIO(files["data/A549/A549_G4_1_02d02h30m.jpg"])))
    row = data.ids.tolist().index("A549/A549_G4_1_02d02h30m/r01c01")
    np.testing.assert_array_equal(data.images[row, :, :, 0], frame[48:96, 48:96])
    assert (
        data.groups[row] == "A549_G4_1" and data.extra.loc[row, "hours"] == 50.5 and data.extra.loc[row, "well"] == "G4"
    )
    fewer = datasets.load("cells-brightfield", 48, tmp_path, crops_per_frame=3)
    fewest = datasets.load("cells-brightfield", 48, tmp_path, crops_per_frame=2)
    assert len(fewer) == 180 and set(fewest.ids) < set(fewer.ids) < set(data.ids)


def test_a_polyp_and_a_background_patch_are_cut_from_each_frame_where_there_is_room(tmp_path):
    files = lookalikes.kvasir()
    lookalikes.pack(files, tmp_path / "raw", "kvasir-seg")
    data = datasets.load("kvasir-seg", 64, tmp_path, patch=64, longest=240)
    assert data.classes == ("background", "polyp") and np.bincount(data.labels).tolist() == [3, 4] and data.channels == 3
    assert {"frames": 4, "without_background": 1, "without_finding": 0}.items() <= data.provenance.items()
    assert data.table().groupby("group")["class"].agg(set).tolist() == [{"background", "polyp"}] * 3 + [{"polyp"}]
    assert data.groups.tolist() == data.extra["frame"].tolist()
    ground, polyp = (data.subset(data.labels == label) for label in (0, 1))
    assert not ground.masks.any() and polyp.masks.any((1, 2)).all() and set(data.boxes["image"]) == set(np.flatnonzero(data.labels))
    np.testing.assert_allclose(polyp.extra["finding_share"], polyp.masks.mean((1, 2)), atol=1e-3)
    assert (ground.extra["x"] >= 0.18 * 240).all() and (data.images.max(3) < 30).mean((1, 2)).max() <= 0.05
    small_one, large_one = polyp.extra["finding_share"][2], polyp.extra["finding_share"][3]
    assert small_one < 0.25 and abs(large_one - 2 / 3) < 0.01  # the whole of a small polyp, two thirds of a window on a large one
    truth = np.asarray(Image.open(io.BytesIO(files["Kvasir-SEG/masks/cju00002.jpg"]))) >= 128
    assert polyp.masks[2].sum() == truth.sum()
    x, y = polyp.extra["x"][2], polyp.extra["y"][2]
    boxes = polyp.boxes[polyp.boxes["image"] == 2][["x0", "y0", "x1", "y1"]].to_numpy() + [x, y, x, y]
    assert boxes.tolist() == [[60, 60, 90, 84], [100, 70, 110, 90]]
    frame = np.asarray(Image.open(io.BytesIO(files["Kvasir-SEG/images/cju00002.jpg"])))
    np.testing.assert_array_equal(polyp.images[2], frame[y : y + 64, x : x + 64])


def test_patches_are_the_same_of_originals_and_do_not_depend_on_the_workers(tmp_path):
    lookalikes.pack(lookalikes.kvasir(), tmp_path / "one" / "raw", "kvasir-seg")
    large = lookalikes.kvasir(height=200, width=240)
    for name, data in large.items():
        if not name.endswith("json"):  # as published: twice as large
            image = Image.open(io.BytesIO(data))
            large[name] = lookalikes.encoded(np.asarray(image.resize((480, 400), Image.Resampling.NEAREST)))
    lookalikes.pack({name.replace(".jpg", ".png"): data for name, data in large.items()}, tmp_path / "two" / "raw", "Kvasir-SEG", "")
    options = {"patch": 64, "longest": 240}
    one, again = (datasets.load("kvasir-seg", 32, tmp_path / "one", workers=w, **options) for w in (1, 2))
    two = datasets.load("kvasir-seg", 32, tmp_path / "two", workers=2, **options)
    assert one.hash == again.hash and two.ids.tolist() == one.ids.tolist()
    polyp = one.labels == 1
    away = np.abs(one.extra[["x", "y"]].to_numpy() - two.extra[["x", "y"]].to_numpy())[polyp]
    assert away.max() <= 3 and np.abs(one.images[polyp].astype(int) - two.images[polyp]).mean() < 8


def test_whole_frames_keep_their_masks_and_boxes_of_the_originals(tmp_path):
    data = datasets.load("kvasir-segmentation", 240, small(tmp_path, lookalikes.kvasir, "kvasir-seg"))
    assert data.classes == ("polyp",) and len(data) == 4 and data.images.shape == (4, 240, 240, 3)
    first = data.boxes[data.boxes["image"] == 0][["x0", "y0", "x1", "y1"]].to_numpy()
    assert first.tolist() == [[140, 110, 190, 170]]  # 240 × 200 in a square of 240: 20 black rows above
    np.testing.assert_allclose(pixels.extent(data.masks[0]), first[0], atol=2)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: f.pop("Kvasir-SEG/kavsir_bboxes.json"), "the .json with the boxes is missing"),
        (lambda f: f.update({"Kvasir-SEG/kavsir_bboxes.json": b"{"}), "the boxes cannot be read"),
        (lambda f: f.update({"Kvasir-SEG/kavsir_bboxes.json": b'{"cju00000": {}}'}), "'width' is missing there"),
        (lambda f: f.pop("Kvasir-SEG/masks/cju00001.jpg"), "cju00001 has no mask"),
        (lambda f: [f.pop(name) for name in list(f) if "images" in name], "no image was found in a folder named images"),
    ],
)
def test_frames_without_their_masks_or_boxes_are_told_so(spoil, words, tmp_path):
    files = lookalikes.kvasir()
    spoil(files)
    lookalikes.pack(files, tmp_path / "raw", "kvasir-seg")
    for name in ("kvasir-seg", "kvasir-segmentation"):
        with pytest.raises(MstlError) as caught:
            datasets.load(name, 32, tmp_path)
        assert words in one_sentence(caught)
    with pytest.raises(MstlError, match="a patch of 400 pixels does not fit"):
        datasets.load("kvasir-seg", 32, small(tmp_path / "whole", lookalikes.kvasir, "kvasir-seg"), patch=400)


def test_both_eyes_of_a_patient_are_one_group_and_other_files_their_own(tmp_path):
    data = datasets.load("eye-diseases", 32, small(tmp_path, lookalikes.eyes, "eye_diseases"))
    groups = dict(zip(data.ids, data.groups))
    assert groups["normal/951_left"] == groups["normal/951_right"] == "951" != groups["diabetic_retinopathy/17_left"]
    assert len(set(data.groups)) == 7 and np.bincount(data.labels).tolist() == [2, 2, 2, 2] and data.channels == 3
    assert data.classes == ("normal", "cataract", "diabetic_retinopathy", "glaucoma")


@pytest.mark.parametrize(
    ("name", "stem", "root", "splits", "parts"),
    [
        ("hep2-cells", "hep2_cells", "dataset", {"tra": 3, "val": 1, "tes": 2}, {"train": 18, "val": 6, "test": 12}),
        ("mednist", "MedNIST", "MedNIST", {"": 2}, {"": 12}),
    ],
)
def test_class_folders_with_and_without_published_parts_are_read(name, stem, root, splits, parts, tmp_path):
    classes = catalog.card(name).classes
    lookalikes.pack(lookalikes.class_folders(classes, splits, root), tmp_path / "raw", stem)
    data = datasets.load(name, 32, tmp_path)
    assert pd.Series(data.splits).value_counts().to_dict() == parts and data.classes == classes
    assert set(np.bincount(data.labels)) == {len(data) // 6} and len(set(data.groups)) == len(data) and data.channels == 1


def test_yolo_polygons_become_boxes_and_copies_of_one_original_one_group(tmp_path):
    data = datasets.load("bone-fracture", 80, small(tmp_path, lookalikes.bone, "bone_fracture"))
    boxes = {
        data.ids[image]: box
        for image, box in zip(data.boxes["image"], data.boxes[["x0", "y0", "x1", "y1"]].to_numpy().tolist())
    }
    assert boxes["train/image1_1_png.rf.aaa"] == [20, 30, 60, 50]  # 80 × 40 in a square of 80: 20 rows above
    np.testing.assert_allclose(boxes["train/image1_1_png.rf.bbb"], [32, 32, 48, 48])
    assert np.bincount(data.labels).tolist() == [2, 3] and data.boxes["class"].tolist().count("wrist positive") == 2
    groups = dict(zip(data.ids, data.groups))
    assert (
        groups["train/image1_1_png.rf.aaa"] == groups["train/image1_1_png.rf.bbb"] == "image1_1_png"
        and data.splits.tolist().count("val") == 1
    )


def test_medmnist_takes_the_smallest_file_that_is_large_enough_and_notes_a_foreign_checksum(tmp_path):
    lookalikes.medmnist(tmp_path / "raw" / "pneumoniamnist.npz")
    assert datasets.load("pneumoniamnist", 28, tmp_path).provenance["file"] == "pneumoniamnist.npz"
    lookalikes.medmnist(tmp_path / "raw" / "pneumoniamnist_64.npz", 64)
    data = datasets.load("pneumoniamnist", 32, tmp_path)
    assert data.provenance["file"] == "pneumoniamnist_64.npz" and "differs from the catalog" in data.provenance["note"]
    assert pd.Series(data.splits).value_counts().to_dict() == {"train": 12, "test": 6, "val": 4}
    original = np.load(tmp_path / "raw" / "pneumoniamnist.npz")
    plain = datasets.load("pneumoniamnist", 28, tmp_path)
    np.testing.assert_array_equal(plain.images[plain.splits == "val", :, :, 0], original["val_images"])


def test_the_positive_class_of_breastmnist_is_malignant_though_its_file_says_zero(tmp_path):
    lookalikes.medmnist(tmp_path / "raw" / "breastmnist.npz")
    data = datasets.load("breastmnist", 28, tmp_path)
    assert data.classes == ("normal, benign", "malignant") and data.labels[data.splits == "val"].tolist() == [
        1,
        0,
        1,
        0,
    ]


def test_an_own_npz_is_read_by_its_path_in_colour_and_grey(tmp_path):
    colour = datasets.load(lookalikes.medmnist(tmp_path / "mine.npz", 30, classes=3, channels=3), 24, tmp_path)
    assert colour.channels == 3 and colour.classes == ("0", "1", "2")
    named = datasets.load(str(lookalikes.medmnist(tmp_path / "elsewhere" / "pneumoniamnist.npz")), 24, tmp_path)
    assert named.classes == ("normal", "pneumonia") and named.channels == 1


def test_an_archive_that_was_exchanged_is_prepared_again(tmp_path):
    small(tmp_path)
    before = datasets.load("busi", 32, tmp_path)
    stamp = os.stat(tmp_path / "prepared" / "busi-32" / "images.npy").st_mtime_ns
    assert datasets.load("busi", 32, tmp_path).hash == before.hash
    assert os.stat(tmp_path / "prepared" / "busi-32" / "images.npy").st_mtime_ns == stamp
    lookalikes.pack(lookalikes.busi(each=4), tmp_path / "raw", "Dataset_BUSI")
    assert len(datasets.load("busi", 32, tmp_path)) == 12 and len(before.images) == 9 and before.images[0].any()
    os.remove(tmp_path / "raw" / "Dataset_BUSI.zip")
    assert len(datasets.load("busi", 32, tmp_path)) == 12  # the prepared set is enough


def test_archives_are_found_in_every_folder_of_the_environment_variable(tmp_path, monkeypatch):
    lookalikes.pack(lookalikes.busi(), tmp_path / "second", "Dataset_BUSI", ".tar")
    monkeypatch.setenv("MSTL_DATA", os.pathsep.join([str(tmp_path / "first"), str(tmp_path / "second")]))
    assert len(datasets.load("busi", 32, tmp_path / "root")) == 9


def _prepare(root: str, queue) -> None:
    queue.put(datasets.load("busi", 48, root, progress=False).hash)


def test_two_processes_that_prepare_at_once_do_not_collide(tmp_path):
    small(tmp_path)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    both = [context.Process(target=_prepare, args=(str(tmp_path), queue)) for _ in range(2)]
    for process in both:
        process.start()
    hashes = [queue.get(timeout=60) for _ in both]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert hashes[0] == hashes[1]
    assert [path.name for path in (tmp_path / "prepared").iterdir() if not path.name.startswith(".")] == ["busi-48"]


def test_what_a_killed_preparation_left_is_cleared_away(tmp_path):
    small(tmp_path)
    (tmp_path / "prepared" / ".busi-32.abc.part").mkdir(parents=True)
    (tmp_path / "prepared" / ".busi-320.abc.part").mkdir()
    datasets.load("busi", 32, tmp_path)
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == [
        ".busi-32.lock",
        ".busi-320.abc.part",
        "busi-32",
    ]


# --- own folders -------------------------------------------------------------------------------------------------------


def test_png_jpeg_tiff_and_dicom_of_any_depth_show_the_same_ramp(tmp_path):
    data = datasets.load(lookalikes.own_folder(tmp_path / "own"), 40, tmp_path)
    assert (
        data.ids.tolist() == ["a.png", "b.jpg", "c.tif", "d.png", "e.dcm", "f.dcm"]
        and data.classes == ("ill", "well")
        and data.channels == 1
    )
    ramp = data.images[0, 15, :, 0].astype(int)
    assert ramp[0] == 0 and ramp[-1] == 255 and (np.diff(ramp) >= 0).all()
    assert np.abs(data.images[:, 15, :, 0].astype(int) - ramp).max() <= 4
    assert data.groups.tolist() == [f"p{i}" for i in range(1, 7)] and data.centers.tolist() == ["A"] * 2 + ["B"] * 4
    assert data.splits.tolist() == ["train", "train", "val", "val", "test", "test"] and data.extra[
        "scanner"
    ].tolist() == list("xyyyyz")
    assert data.boxes[["x0", "y0", "x1", "y1"]].to_numpy().tolist() == [[4, 8, 20, 20], [30, 25, 40, 35]]


def test_the_order_of_an_own_folder_s_classes_can_be_given(tmp_path):
    folder = lookalikes.own_folder(tmp_path / "own")
    assert datasets.load(folder, 40, tmp_path, classes=("well", "ill")).classes == ("well", "ill")
    numbers = lookalikes.own_folder(tmp_path / "numbers", "path,label\na.png,10\nb.jpg,9\nc.tif,9\n")
    data = datasets.load(numbers, 40, tmp_path)
    assert (
        data.classes == ("9", "10")
        and data.groups.tolist() == data.ids.tolist()
        and data.boxes is None
        and data.extra is None
    )


def test_a_changed_manifest_prepares_again_and_two_folders_of_one_name_do_not_mix(tmp_path):
    one, two = (lookalikes.own_folder(tmp_path / name / "own") for name in ("here", "there"))
    assert len(datasets.load(one, 16, tmp_path)) == 6
    (two / "manifest.csv").write_text("path,label\na.png,x\nb.jpg,y\n")
    assert len(datasets.load(two, 16, tmp_path)) == 2 and len(datasets.load(one, 16, tmp_path)) == 6
    (one / "manifest.csv").write_text("path,label\na.png,x\nb.jpg,y\nc.tif,y\n")
    assert len(datasets.load(one, 16, tmp_path)) == 3


def test_a_manifest_as_a_spreadsheet_writes_it_is_read(tmp_path):
    folder = lookalikes.own_folder(
        tmp_path / "own", "\ufeffpath; label;age\r\n.\\sub\\a.png;ill;007\r\n;;\r\n./b.jpg;well;8\r\n\r\n"
    )
    (folder / "sub").mkdir()
    os.replace(folder / "a.png", folder / "sub" / "a.png")
    data = datasets.load(folder, 16, tmp_path)
    assert data.ids.tolist() == ["b.jpg", "sub/a.png"] and data.extra["age"].tolist() == ["8", "007"]
    (folder / "manifest.csv").write_text("path;label\nsub/a.png;ill\n;\nb.jpg;\n")
    with pytest.raises(MstlError, match="line 4: the label is missing"):
        datasets.load(folder, 16, tmp_path)


def test_colour_images_stay_colour_unless_grey_is_asked_for(tmp_path):
    folder = lookalikes.own_folder(tmp_path / "own", "path,label\nred.png,x\na.png,y\n")
    Image.new("RGB", (20, 20), (200, 10, 10)).save(folder / "red.png")
    assert datasets.load(folder, 16, tmp_path).images[1, 8, 8].tolist() == [200, 10, 10]
    assert datasets.load(folder, 16, tmp_path, channels=1).channels == 1


@pytest.mark.parametrize(
    "manifest, words",
    [
        ("path,lable\na.png,x\n", "column 'label' is missing.*lable"),
        ("path,label\na.png,x\nb.jpg,\n", "line 3: the label is missing"),
        ("path,label\n,x\nb.jpg,y\n", "line 2: the path is missing"),
        ("path,label\n", "lists no image"),
        ("path,label\na.png,x\nz.png,y\n", "line 3: there is no file 'z.png'"),
        ("path,label\na.png,x\n../b.jpg,y\n", "climbs out"),
        ("path,label\na.png,x\n/etc/passwd,y\n", "climbs out"),
        ("path,label\na.png,x\nb.jpg,x\n", "at least two classes"),
        ("path,label,split\na.png,x,train\nb.jpg,y,tset\n", "line 3: the split 'tset'.*test"),
        ("path,label,group,split\na.png,x,p1,train\nb.jpg,y,p1,test\n", "group 'p1' is in the splits test and train"),
        ("path,label,x0,y0,x1,y1\na.png,x,1,2,3,\nb.jpg,y,,,,\n", "line 2: a box needs all"),
        ("path,label,x0,y0,x1,y1\na.png,x,1,2,3,q\nb.jpg,y,,,,\n", "line 2: y1 is 'q'"),
        ("path,label,x0,y0,x1,y1\na.png,x,5,2,3,4\nb.jpg,y,,,,\n", "line 2: the box is empty"),
        ("path,label,x0,y0,x1,y1\na.png,x,5,2,300,4\nb.jpg,y,,,,\n", "lies outside the image of 40 × 30"),
        ("path,label\na.png,x\na.png,y\n", "line 3: 'a.png' has the label 'y' here and 'x' in line 2"),
        ("path,label\na.png,x\na.png,x\nb.jpg,y\n", "listed in line 2 already"),
        ("path,label\nmanifest.csv,x\nb.jpg,y\n", "does not decode"),
    ],
)
def test_a_faulty_manifest_is_one_sentence_that_names_the_line(manifest, words, tmp_path):
    with pytest.raises(MstlError, match=words) as caught:
        datasets.load(lookalikes.own_folder(tmp_path / "own", manifest), 16, tmp_path)
    one_sentence(caught)
    assert not list((tmp_path / "prepared").glob("[!.]*")) if (tmp_path / "prepared").exists() else True


def test_a_class_that_was_announced_but_has_no_image_is_refused(tmp_path):
    folder = lookalikes.own_folder(tmp_path / "own")
    with pytest.raises(MstlError, match="class 'severe' has no image"):
        datasets.load(folder, 16, tmp_path, classes=("well", "ill", "severe"))
    with pytest.raises(MstlError, match="label 'ill', which is none of the classes"):
        datasets.load(folder, 16, tmp_path, classes=("well", "severe"))


# --- DICOM and depth ---------------------------------------------------------------------------------------------------


RAMP = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (4, 1))


def shown(**how) -> np.ndarray:
    return np.asarray(pixels.decode(lookalikes.dicom(RAMP, **how), "x.dcm"))[0].astype(int)


def test_a_dicom_window_cuts_what_lies_outside_it():
    row = shown(window=(1000, 1001))  # LINEAR: 499.5 … 1499.5 become 0 … 255
    assert row[RAMP[0] < 499].max() == 0 and row[RAMP[0] > 1500].min() == 255
    np.testing.assert_allclose(row, np.clip((RAMP[0] - 999.5) / 1000 + 0.5, 0, 1) * 255, atol=0.51)
    np.testing.assert_allclose(
        shown(window=(1000, 1000), function="LINEAR_EXACT"),
        np.clip((RAMP[0] - 1000.0) / 1000 + 0.5, 0, 1) * 255,
        atol=0.51,
    )
    np.testing.assert_allclose(
        shown(window=(1000, 400), function="SIGMOID"), 255 / (1 + np.exp(-4 * (RAMP[0] - 1000.0) / 400)), atol=0.51
    )


def test_the_modality_rescale_comes_before_the_window():
    np.testing.assert_array_equal(shown(window=(0, 1001), slope=1, intercept=-1000), shown(window=(1000, 1001)))


def test_a_voi_table_is_applied():
    table = np.concatenate([np.zeros(2048), np.full(2048, 65535)]).astype(np.uint16)
    row = shown(lut=table)
    assert row[RAMP[0] < 2048].max() == 0 and row[RAMP[0] >= 2048].min() == 255


def test_monochrome1_is_inverted_with_and_without_a_window():
    for how in ({}, {"window": (1000, 1001)}):
        np.testing.assert_array_equal(shown(photometric="MONOCHROME1", **how), 255 - shown(**how))


def test_a_dicom_file_without_pixels_or_with_many_frames_is_one_sentence():
    with pytest.raises(MstlError, match="scan.dcm: this DICOM file does not decode"):
        pixels.decode(b"not a dicom file" * 20, "scan.dcm")
    from pydicom import dcmread

    many = dcmread(io.BytesIO(lookalikes.dicom(RAMP)))
    many.NumberOfFrames, many.PixelData = 2, many.PixelData * 2
    buffer = io.BytesIO()
    many.save_as(buffer)
    with pytest.raises(MstlError, match="holds 2 frames"):
        pixels.decode(buffer.getvalue(), "scan.dcm")


def test_a_twelve_bit_image_in_a_sixteen_bit_png_is_not_black():
    image = np.asarray(pixels.decode(lookalikes.encoded(RAMP), "x.png"))
    assert image.min() == 0 and image.max() == 255 and 120 < image.mean() < 135


def test_a_page_stack_and_transparency_are_not_silently_flattened():
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "TIFF", save_all=True, append_images=[Image.fromarray(RAMP)])
    with pytest.raises(MstlError, match="holds 2 pages"):
        pixels.decode(buffer.getvalue(), "x.tif")
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[..., :3] = 255
    assert (
        np.asarray(pixels.decode(lookalikes.encoded(clear), "x.png")).max() == 0
    )  # wholly transparent white is the black ground


# --- bad input ---------------------------------------------------------------------------------------------------------


def refused(name: str, root: Path, words: str, **options) -> str:
    with pytest.raises(MstlError, match=words) as caught:
        datasets.load(name, 32, root, progress=False, **options)
    left = (
        [path.name for path in (root / "prepared").iterdir() if not path.name.endswith(".lock")]
        if (root / "prepared").exists()
        else []
    )
    assert left == []
    return one_sentence(caught)


def test_a_missing_archive_says_where_it_looked_and_where_to_get_it(tmp_path):
    text = refused("chest-xray", tmp_path, "neither ChestXRay2017")
    assert (
        str(tmp_path / "raw") in text
        and "https://data.mendeley.com" in text
        and "CC BY 4.0" in text
        and "MSTL_DATA" in text
    )


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
def test_a_truncated_archive_is_one_sentence(kind, tmp_path):
    path = lookalikes.pack(lookalikes.busi(), tmp_path / "raw", "Dataset_BUSI", kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3 + 7])
    assert str(path) in refused("busi", tmp_path, "truncated")


def test_a_damaged_entry_of_a_zip_is_named(tmp_path):
    path = small(tmp_path) / "raw" / "Dataset_BUSI.zip"
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("Dataset_BUSI_with_GT/malignant/malignant (2).png")
    at = info.header_offset + 30 + len(info.filename)
    data[at + 40 : at + 60] = bytes(20)
    path.write_bytes(data)
    refused("busi", tmp_path, r"malignant/malignant \(2\).png in .*cannot be read")


@pytest.mark.parametrize(
    "name", ["../outside.png", "/etc/outside.png", "a/../../outside.png", "..\\outside.png", "C:\\outside.png"]
)
@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_an_entry_that_climbs_out_of_its_folder_refuses_the_archive(name, kind, tmp_path):
    lookalikes.pack({**lookalikes.busi(), name: b"x"}, tmp_path / "raw", "Dataset_BUSI", kind)
    refused("busi", tmp_path, "climbs out of the folder")


def test_links_in_a_tar_are_never_followed(tmp_path):
    import tarfile

    secret = tmp_path / "secret.png"
    secret.write_bytes(lookalikes.encoded(lookalikes.noise(1, 8, 8)))
    path = lookalikes.pack(lookalikes.busi(), tmp_path / "raw", "Dataset_BUSI", ".tar")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("Dataset_BUSI_with_GT/normal/normal (99).png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    assert "normal/normal (99)" not in datasets.load("busi", 32, tmp_path).ids


def test_an_image_that_does_not_decode_is_named(tmp_path):
    for bad in (b"", b"not an image", lookalikes.encoded(lookalikes.noise(1, 40, 60))[:900]):
        files = {**lookalikes.busi(), "Dataset_BUSI_with_GT/benign/benign (2).png": bad}
        lookalikes.pack(files, tmp_path / "raw", "Dataset_BUSI")
        refused("busi", tmp_path, r"benign/benign \(2\).png: this image does not decode")


def test_of_several_bad_images_the_same_one_is_named_whatever_the_number_of_workers(tmp_path):
    files = {
        name: b"broken" if "malignant" in name and "mask" not in name else data
        for name, data in lookalikes.busi().items()
    }
    lookalikes.pack(files, tmp_path / "raw", "Dataset_BUSI")
    assert len({refused("busi", tmp_path, "does not decode", workers=workers) for workers in (1, 2, 6)}) == 1


def test_an_empty_class_is_named(tmp_path):
    lookalikes.pack(
        {name: data for name, data in lookalikes.busi().items() if "/normal/" not in name},
        tmp_path / "raw",
        "Dataset_BUSI",
    )
    refused("busi", tmp_path, "class 'normal' has no image")


def test_an_archive_of_another_layout_is_told_so(tmp_path):
    for name, stem in (
        ("busi", "Dataset_BUSI"),
        ("cifar10", "CIFAR-10-images"),
        ("mias-tissue", "all-mias"),
        ("bone-fracture", "bone_fracture"),
        ("cells-brightfield", "cell_lines_brightfield"),
    ):
        lookalikes.pack(
            {"readme.txt": b"hello", "pictures/one.png": lookalikes.encoded(lookalikes.noise(0, 8, 8))},
            tmp_path / "raw",
            stem,
        )
        refused(name, tmp_path, "layout|missing")


@pytest.mark.parametrize(
    "line, words",
    [
        ("9 0.5 0.5 0.1 0.1", "kind 9 is not one of the 2"),
        ("0 0.5 0.5", "neither a box nor a polygon"),
        ("0 a b c d", "cannot be read"),
        ("0 0.5 nan 0.1 0.1", "not finite"),
    ],
)
def test_a_faulty_yolo_label_names_its_file_and_line(line, words, tmp_path):
    name = "bone_fracture/train/labels/image1_1_png.rf.bbb.txt"
    lookalikes.pack(
        {**lookalikes.bone(), name: f"1 0.5 0.5 0.2 0.2\n{line}".encode()}, tmp_path / "raw", "bone_fracture"
    )
    assert f"{name}, line 2" in refused("bone-fracture", tmp_path, words)


def test_a_full_disk_is_one_sentence_and_an_older_cache_survives(tmp_path, monkeypatch):
    small(tmp_path)
    before = datasets.load("busi", 32, tmp_path)
    stored = tree(tmp_path / "prepared" / "busi-32")
    lookalikes.pack(lookalikes.busi(each=4), tmp_path / "raw", "Dataset_BUSI")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(imageset, "content_hash", full)
    with pytest.raises(MstlError, match="disk is full.*free some space") as caught:
        datasets.load("busi", 32, tmp_path)
    one_sentence(caught)
    assert tree(tmp_path / "prepared" / "busi-32") == stored and before.images[0].any()
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == [".busi-32.lock", "busi-32"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the size of a file, as on Linux")
def test_a_disk_that_fills_while_pixels_are_written_raises_and_does_not_kill_the_process(tmp_path):
    import subprocess

    small(tmp_path)
    code = (
        "import resource, signal, sys; from mstl import datasets; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        f"try: datasets.load('busi', 96, {str(tmp_path)!r}, progress=False)\n"
        "except datasets.MstlError as problem: print(problem)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0 and "the disk is full" in done.stdout, done.stderr
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [".busi-96.lock"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    small(tmp_path)
    (tmp_path / "prepared").write_text("a file where the folder should be")
    with pytest.raises((MstlError, OSError)) as caught:
        datasets.load("busi", 32, tmp_path)
    assert isinstance(caught.value, MstlError) and "prepared" in one_sentence(caught)


def test_a_file_with_pickled_objects_is_refused_and_nothing_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = lookalikes.medmnist(tmp_path / "raw" / "pneumoniamnist.npz")
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "val_labels": np.array([Trap()], dtype=object)})
    refused("pneumoniamnist", tmp_path, "val_labels is refused")
    assert not (tmp_path / "sprung").exists()


def test_medmnist_files_of_another_kind_are_told_so(tmp_path):
    path = lookalikes.medmnist(tmp_path / "raw" / "pneumoniamnist.npz")
    arrays = dict(np.load(path))
    for change, words in (
        ({"train_images": np.zeros((12, 28, 28, 28), np.uint8)}, "three-dimensional"),
        ({"train_labels": np.zeros((12, 14), np.uint8)}, "several labels"),
        ({"train_labels": np.full((12, 1), 7)}, "only 2 classes"),
        ({"train_labels": np.zeros((5, 1), int)}, "12 images and 5 labels"),
    ):
        np.savez(path, **{**arrays, **change})
        refused("pneumoniamnist", tmp_path, words)
    np.savez(path, **{key: value for key, value in arrays.items() if key != "test_images"})
    refused("pneumoniamnist", tmp_path, "no array test_images")
    path.write_bytes(path.read_bytes()[:500])
    refused("pneumoniamnist", tmp_path, "truncated or damaged")


def test_a_download_that_fails_says_the_address_and_leaves_nothing(tmp_path, monkeypatch):
    import torchvision.datasets.utils as downloads

    def no_network(url, root, filename, md5):
        Path(root, filename).write_bytes(b"half")
        raise OSError("network is unreachable")

    monkeypatch.setattr(downloads, "download_url", no_network)
    text = refused("bloodmnist", tmp_path, "could not be downloaded")
    assert "https://" in text and "bloodmnist_64.npz" in text and list((tmp_path / "raw").iterdir()) == []


def test_a_download_goes_through_medmnist_with_its_checksum_and_is_kept(tmp_path, monkeypatch):
    import torchvision.datasets.utils as downloads
    from medmnist import INFO

    asked = {}

    def served(url, root, filename, md5):
        asked.update(url=url, md5=md5)
        lookalikes.medmnist(Path(root) / filename, 64)

    monkeypatch.setattr(downloads, "download_url", served)
    data = datasets.load("pneumoniamnist", 60, tmp_path)
    assert asked == {"url": INFO["pneumoniamnist"]["url_64"], "md5": INFO["pneumoniamnist"]["MD5_64"]}
    assert len(data) == 22 and [path.name for path in (tmp_path / "raw").iterdir()] == ["pneumoniamnist_64.npz"]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"crop_per_frame": 3}, "no option 'crop_per_frame'; did you mean 'crops_per_frame'"),
        ({"crops_per_frame": "3"}, "must be of type int"),
        ({"crops_per_frame": -1}, "from 0 up"),
        ({"crops_per_frame": True}, "must be of type int"),
    ],
)
def test_an_unknown_or_ill_typed_option_is_refused(options, words, tmp_path):
    refused("cells-brightfield", tmp_path, words, **options)


def test_a_size_or_fit_that_makes_no_sense_is_refused(tmp_path):
    for size in (0, 4, 5000, 9.5, True, "96"):
        with pytest.raises(MstlError, match="size must be a whole number"):
            datasets.load("busi", size, tmp_path)
    refused("busi", tmp_path, "fit must be one of letterbox, squash, not 'squish'; did you mean 'squash'", fit="squish")
    refused("mias-tissue", tmp_path, "it has no options", fit="squash")


def test_a_path_that_is_not_there_or_has_no_manifest_is_one_sentence(tmp_path):
    for path in (tmp_path / "nowhere", f"{tmp_path}/nowhere/x.npz"):
        with pytest.raises(MstlError, match="there is no folder or file"):
            datasets.load(path, 32, tmp_path)
    with pytest.raises(MstlError, match="no manifest.csv in this folder"):
        datasets.load(tmp_path, 32, tmp_path)


# --- phantoms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options", [("phantom-ultrasound", {"n": 12}), ("phantom-cells", {"n": 12, "n_classes": 3})]
)
def test_phantoms_are_loaded_like_any_set_and_cached(name, options, tmp_path):
    data = datasets.load(name, 32, tmp_path, **options)
    assert data.name == name and data.card.simulated and len(data) == 12 and isinstance(data.images, np.memmap)
    assert data.classes == (catalog.card(name).classes or data.classes) and (
        not options.get("n_classes") or len(data.classes) == 3
    )
    assert datasets.load(name, 32, tmp_path, **options).hash == data.hash
    assert datasets.load(name, 32, tmp_path, seed=1, **options).hash != data.hash


# --- the real archives -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_root(tmp_path_factory):
    if not (REAL / "Dataset_BUSI.zip").is_file():
        pytest.skip(f"the real archives are not at {REAL}")
    return tmp_path_factory.mktemp("real")


def load_real(name: str, root: Path, monkeypatch, size: int = 32, **options) -> datasets.ImageSet:
    monkeypatch.setenv("MSTL_DATA", str(REAL))
    data = datasets.load(name, size, root, progress=False, **options)
    assert data.provenance["note"] == "a reduced copy that the catalog knows"
    assert data.images.shape == (len(data), size, size, catalog.card(name).channels)
    return data


def plan_real(name: str, size: int = 32) -> pd.DataFrame:
    """The rows that the reader of `name` finds in the real archive, of which every fiftieth is decoded."""
    card = catalog.card(name)
    with archives.Archive(archives.find(card, [REAL])) as archive:
        jobs = archives.READERS[card.reader](archive, card, size, **card.options).jobs
        for job in jobs[::50]:
            assert [picture.image.shape for picture in job.make(size, card.channels)] == [
                (size, size, card.channels)
            ] * len(job.rows)
    return pd.DataFrame([dataclasses.asdict(row) for job in jobs for row in job.rows])


@real
def test_real_busi_has_its_published_counts_and_a_box_for_every_lesion_mask(real_root, monkeypatch):
    data = load_real("busi", real_root, monkeypatch)
    assert dict(zip(data.classes, np.bincount(data.labels).tolist())) == {
        "normal": 133,
        "benign": 437,
        "malignant": 210,
    }
    assert len(data.boxes) == 437 + 210 + 18 and set(data.boxes["image"]) == set(np.flatnonzero(data.labels))
    corners = data.boxes[["x0", "y0", "x1", "y1"]].to_numpy()
    assert corners.min() >= 0 and corners.max() <= 32 and (corners[:, 2:] > corners[:, :2]).all()
    assert data.masks[data.labels == 0].max() == 0 and (data.masks[data.labels > 0].any((1, 2))).mean() > 0.98


@real
def test_real_chest_x_rays_have_their_published_parts_and_no_patient_on_both_sides(real_root):
    rows = plan_real("chest-xray")
    counts = rows.groupby(["split", "label"]).size().to_dict()
    assert counts == {
        ("train", "normal"): 1341,
        ("train", "pneumonia"): 3875,
        ("test", "normal"): 234,
        ("test", "pneumonia"): 390,
    }
    train, test = (set(rows["group"][rows["split"] == split]) for split in ("train", "test"))
    assert (len(train), len(test)) == (3654, 428) and not train & test
    ill = rows[rows["label"] == "pneumonia"]
    persons = {split: {extra["person"] for extra in part["extra"]} for split, part in ill.groupby("split")}
    assert len(persons["train"] & persons["test"]) == 170


@real
def test_real_mini_mias_has_its_published_counts(real_root, monkeypatch):
    whole = load_real("mias-whole", real_root, monkeypatch)
    assert (
        np.bincount(whole.labels).tolist() == [207, 115] and len(whole.boxes) == 119 and len(set(whole.groups)) == 161
    )
    assert whole.table().groupby("group").size().eq(2).all()
    assert plan_real("mias-tissue")["label"].value_counts().to_dict() == {"fatty": 106, "glandular": 104, "dense": 112}


@real
def test_real_mias_regions_match_in_number_size_and_background(real_root, monkeypatch):
    from sklearn.metrics import roc_auc_score

    data = load_real("mias-regions", real_root, monkeypatch)
    lesion, normal = data.extra[data.labels == 1], data.extra[data.labels == 0]
    assert len(lesion) == len(normal) == 119 and lesion["radius"].median() == 41
    assert sorted(lesion["side"]) == sorted(normal["side"])
    assert (
        not set(data.groups[data.labels == 1]) & set(data.groups[data.labels == 0])
        and len(set(data.groups[data.labels == 0])) == 53
    )
    assert abs(lesion["breast_share"].mean() - normal["breast_share"].mean()) < 0.03 and normal["mean"].min() > 20
    assert 0.5 < roc_auc_score(data.labels, data.extra["mean"]) < 0.7  # brightness is a hint, not the answer


@real
def test_real_cell_lines_give_sixty_crops_a_frame_and_six_lines_with_several_wells(real_root, monkeypatch):
    data = load_real("cells-brightfield", real_root, monkeypatch, size=96)
    assert len(data) == 90 * 60 and len(data.classes) == 30 and (np.bincount(data.labels) == 180).all()
    with zipfile.ZipFile(
        REAL / "cell_lines_brightfield.zip"
    ) as archive:  # the bar's line is white (255) over 200 pixels; no crop may hold it
        frame = np.asarray(Image.open(io.BytesIO(archive.read(archive.namelist()[0]))).convert("L"))
    bar = np.flatnonzero((frame[:, 80:280] > 200).mean(1) > 0.9)
    assert (
        len(bar) and bar.min() - 40 > frame.shape[0] - 100 and data.extra["row"].max() * 96 + 96 <= frame.shape[0] - 100
    )
    wells = data.table().groupby("class")["group"].nunique()
    assert (wells > 1).sum() == 6


@real
def test_real_bone_fractures_carry_725_boxes(real_root, monkeypatch):
    data = load_real("bone-fracture", real_root, monkeypatch)
    assert np.bincount(data.labels).tolist() == [729, 613] and len(data.boxes) == 725 and len(set(data.groups)) == 1342
    corners = data.boxes[["x0", "y0", "x1", "y1"]].to_numpy()
    assert corners.min() >= 0 and corners.max() <= 32


@real
def test_real_cifar10_and_pneumoniamnist_have_their_counts(real_root, monkeypatch):
    counts = plan_real("cifar10").groupby(["split", "label"]).size().to_dict()
    assert counts == {
        (split, name): count
        for split, count in (("train", 1500), ("test", 200))
        for name in catalog.card("cifar10").classes
    }
    chest = load_real("pneumoniamnist", real_root, monkeypatch, size=28)
    assert pd.Series(chest.splits).value_counts().to_dict() == {"train": 4708, "test": 624, "val": 524}


@real
def test_real_bridges_have_their_counts_parts_and_groups(real_root):
    for name, split, count in (("hep2-cells", "train", 400), ("hep2-cells", "val", 100), ("hep2-cells", "test", 100),
                               ("mednist", "", 1500), ("eye-diseases", "", 350)):  # fmt: skip
        rows, classes = plan_real(name), catalog.card(name).classes
        assert rows[rows["split"] == split]["label"].value_counts().to_dict() == dict.fromkeys(classes, count), name
        if name == "eye-diseases":
            sizes = rows[rows["group"].str.isdecimal()].groupby("group").size()
            assert sizes.value_counts().to_dict() == {1: 616, 2: 153, 3: 1} and len(rows) == 1400
        else:
            assert rows["group"].is_unique


@real
def test_real_polyps_and_backgrounds_come_in_pairs_of_one_frame(real_root, monkeypatch):
    keep = archives._frames_with_masks
    monkeypatch.setattr(archives, "_frames_with_masks", lambda archive, card: keep(archive, card)[:60])
    data = load_real("kvasir-seg", real_root, monkeypatch, size=32)
    assert len(set(data.groups)) == 60 and data.provenance["frames"] == 60
    assert np.bincount(data.labels).tolist() == [60 - data.provenance["without_background"], 60]
    assert not data.masks[data.labels == 0].any() and (data.extra["finding_share"][data.labels == 1] > 0.02).all()
    whole = load_real("kvasir-segmentation", real_root, monkeypatch, size=64)
    hit = [whole.masks[int(b.image), int(b.y0) : int(b.y1) + 1, int(b.x0) : int(b.x1) + 1].any() for b in whole.boxes.itertuples()]
    assert np.mean(hit) > 0.97 and whole.masks.any((1, 2)).all()
