"""The predictions table: what is accepted, what is filled in, and one sentence with the row for every fault."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstl import predictions
from mstl.datasets import catalog
from mstl.datasets.imageset import ImageSet
from mstl.errors import MstlError


def table(n=6, models=("ctl", "mstl"), **columns) -> pd.DataFrame:
    """A good binary table: n images of n/2 patients, alternating truth."""
    random = np.random.default_rng(0)
    p = random.uniform(0.05, 0.95, n * len(models)).round(4)
    image = np.tile(np.arange(n), len(models))
    return pd.DataFrame({"image_id": [f"i{k}" for k in image], "group": [f"g{k // 2}" for k in image],
                         "y_true": np.where(image % 2, "malignant", "benign"), "model": np.repeat(models, n),
                         "p_benign": 1 - p, "p_malignant": p, **columns})


def three(n=9, models=("a", "b")) -> pd.DataFrame:
    random = np.random.default_rng(1)
    p = random.dirichlet([1, 1, 1], n * len(models))
    names = np.array(["F", "G", "D"])
    image = np.tile(np.arange(n), len(models))
    return pd.DataFrame({"image_id": image, "y_true": names[image % 3], "model": np.repeat(models, n), "target": "tissue",
                         **{f"p_{c}": p[:, k] for k, c in enumerate(names)}})


def picture_set(n=8, classes=("benign", "malignant")) -> ImageSet:
    return ImageSet(name="busi", images=np.zeros((n, 8, 8, 1), np.uint8), labels=np.arange(n) % len(classes), classes=classes,
                    groups=np.array([f"g{i // 2}" for i in range(n)]), centers=np.array(["Cairo"] * n),
                    ids=np.array([f"i{i}" for i in range(n)]), splits=np.array([""] * n), card=catalog.card("busi"))


def refusal(broken: pd.DataFrame, **mapping) -> str:
    with pytest.raises(MstlError) as caught:
        predictions.read(broken, **mapping)
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", ")")) and text.count(". ") == 0, text
    return text


# ----------------------------------------------------------------------------------------------------- what is accepted

def test_a_table_of_one_s_own_is_filled_in_to_the_full_form():
    own = table().drop(columns="group")
    full = predictions.check(own)
    assert list(full.columns) == [*predictions.COLUMNS, "p_benign", "p_malignant"]
    assert (full["group"] == full["image_id"]).all() and (full["split"] == "test").all()
    assert full[["seed", "fold", "n_train"]].eq(0).all().all() and full["target"].eq("").all()
    pd.testing.assert_frame_equal(predictions.check(full), full)


def test_the_table_that_is_given_is_left_as_it_was():
    own = table()
    before = own.copy()
    predictions.check(own)
    pd.testing.assert_frame_equal(own, before)


def test_the_truth_may_be_a_class_or_its_index():
    by_name = predictions.check(table())
    for index in (lambda t: (t == "malignant").astype(int), lambda t: (t == "malignant").astype(float), lambda t: t == "malignant",
                  lambda t: (t == "malignant").astype(int).astype(str)):
        own = table()
        own["y_true"] = index(own["y_true"])
        assert predictions.check(own)["y_true"].tolist() == by_name["y_true"].tolist()
    own = three()
    own["y_true"] = own["y_true"].map({"F": 0, "G": 1, "D": 2})
    assert predictions.check(own)["y_true"].tolist() == three()["y_true"].tolist()


def test_grades_that_are_numbers_are_names_first():
    grades = three().rename(columns={"p_F": "p_1", "p_G": "p_2", "p_D": "p_3"})
    grades["y_true"] = grades["y_true"].map({"F": 1, "G": 2, "D": 3})
    assert predictions.check(grades)["y_true"].tolist()[:3] == ["1", "2", "3"]
    grades["y_true"] = grades["y_true"] - 1  # 0 is no name, so these are indices
    assert predictions.check(grades)["y_true"].tolist()[:3] == ["1", "2", "3"]


@pytest.mark.parametrize("column", ["p", "score"])
def test_a_binary_table_may_give_a_single_score_of_class_1(column):
    own = table().assign(y_true=lambda t: (t["y_true"] == "malignant").astype(int)).rename(columns={"p_malignant": column})
    full = predictions.check(own.drop(columns="p_benign"))
    assert predictions.classes(full) == ("0", "1")
    assert np.allclose(full["p_1"], own[column]) and np.allclose(full["p_0"] + full["p_1"], 1)
    assert full["y_true"].tolist() == own["y_true"].astype(str).tolist()


def test_a_single_probability_with_a_class_name_makes_that_class_the_positive_one():
    own = table().drop(columns="p_benign")
    full = predictions.check(own)
    assert predictions.classes(full) == ("benign", "malignant") and predictions.positive(full).tolist() == own["p_malignant"].tolist()
    own["y_true"] = (own["y_true"] == "malignant").astype(int)
    assert set(predictions.check(own)["y_true"]) == {"not malignant", "malignant"}


def test_columns_are_mapped_from_the_user_s_names():
    own = table().rename(columns={"group": "patient", "p_malignant": "risk", "image_id": "file"}).drop(columns="p_benign")
    full = predictions.read(own, {"patient": "group", "risk": "p_malignant", "file": "image_id"})
    assert full["group"].tolist() == own["patient"].tolist() and full["p_malignant"].tolist() == own["risk"].tolist()
    both = table(patient="same")
    assert predictions.read(both, {"patient": "group"})["group"].eq("same").all()


def test_words_for_the_parts_of_a_split_are_understood():
    own = table().assign(split=["Validation", "validation", "testing", "test", "train", "training"] * 2)
    assert predictions.check(own)["split"].tolist()[:6] == ["val", "val", "test", "test", "train", "train"]


def test_a_user_s_further_columns_are_kept_behind_the_probabilities():
    full = predictions.check(table(age=50, p=0.3))
    assert full.columns[-1] == "age" or full.columns[-2] == "age"
    assert (full["age"] == 50).all() and predictions.classes(full) == ("benign", "malignant")


# -------------------------------------------------------------------------------------------------------- several tasks

def test_targets_with_their_own_classes_stand_in_one_table():
    both = predictions.join([table(target="breast"), three()])
    assert predictions.classes(both) == ("benign", "malignant", "F", "G", "D")
    assert predictions.classes(both[both["target"] == "tissue"]) == ("F", "G", "D")
    assert both.loc[both["target"] == "tissue", "p_malignant"].isna().all()
    again = predictions.check(both)
    pd.testing.assert_frame_equal(again, both)
    breast = both[both["target"] == "breast"]
    assert predictions.positive(breast).tolist() == breast["p_malignant"].tolist() and (predictions.positive(breast).index == breast.index).all()
    with pytest.raises(MstlError, match="Target 'tissue' has 3 classes"):
        predictions.positive(both)


def test_joining_keeps_the_positive_class_last_whatever_the_order_of_the_tables():
    other = table(target="other").rename(columns={"p_benign": "p_normal"}).replace({"y_true": {"benign": "normal"}})
    for order in ([table(target="breast"), other], [other, table(target="breast")]):
        joined = predictions.join(order)
        for target in ("breast", "other"):
            assert predictions.classes(joined[joined["target"] == target])[-1] == "malignant"
    flipped = table(target="other")[["image_id", "group", "y_true", "model", "target", "p_malignant", "p_benign"]]
    with pytest.raises(MstlError, match="different orders in the tables"):
        predictions.join([table(target="breast"), flipped])


def test_a_target_with_other_classes_in_another_table_is_refused():
    with pytest.raises(MstlError, match=r"Row 1 of table 2: target 'tissue' has the classes benign, malignant, but F, G, D in row 1 of table 1"):
        predictions.join([three(), table(target="tissue")])


def test_the_same_images_in_chains_folds_and_variants_are_no_duplicates():
    parts = [table(seed=s, fold=f, variant=v) for s in (0, 1) for f in (0, 1) for v in ("", "half")]
    assert len(predictions.join(parts)) == 8 * 12


# -------------------------------------------------------------------------------------------------------------- refusals

def put(row: int, column: str, value: object) -> pd.DataFrame:
    own = table().astype({column: object}) if column in table() else table(**{column: ""}).astype({column: object})
    own.loc[row, column] = value
    return own


@pytest.mark.parametrize(("broken", "sentence"), [
    (table().drop(columns="y_true"), "The column 'y_true' is missing in the table"),
    (table().drop(columns="model").assign(modell="x"), "missing in the table (did you mean 'modell'?)"),
    (table().drop(columns=["p_benign", "p_malignant"]), "There is no probability in the table"),
    (table().iloc[:0], "The table has no rows"),
    (put(3, "image_id", None), "Row 4 of the table: image_id is empty"),
    (put(2, "p_malignant", np.nan), "Row 3 of the table: p_malignant (nan) is empty or not a number"),
    (put(2, "p_malignant", np.inf), "Row 3 of the table: p_malignant (inf) is infinite"),
    (put(5, "p_benign", -0.2), "Row 6 of the table: p_benign (-0.2) is not a probability between 0 and 1"),
    (put(5, "p_benign", "high"), "Row 6 of the table: p_benign is 'high', not a number"),
    (put(1, "p_benign", 0.01), "Row 2 of the table: the probabilities sum to"),
    (put(4, "y_true", "malignent"), "Row 5 of the table: y_true is 'malignent', which is no class (did you mean 'malignant'?)"),
    (table().assign(y_true=[0, 1, 0, 1, 0, 2] * 2), "Row 6 of the table: y_true is '2', which is no class"),
    (put(7, "seed", "first"), "Row 8 of the table: seed is 'first', not a whole number"),
    (put(7, "fold", 1.5), "Row 8 of the table: fold is '1.5', not a whole number"),
    (put(0, "split", "tset"), "Row 1 of the table: split is 'tset', not train, val or test"),
    (put(1, "image_id", "i0").assign(y_true="benign"), "Row 2 of the table: image 'i0' of model 'ctl' (seed 0, fold 0, test) is there already, in row 1"),
    (put(9, "y_true", "benign"), "Row 10 of the table: y_true of image 'i3' is 'benign' for model 'mstl' but 'malignant' in row 4"),
    (table(split=["val", "test"] * 6), "Row 2 of the table: group 'g0' is in test and, in row 1 of the table, in val"),
    (table().drop(index=8), "model 'ctl' predicts test image 'i2', but model 'mstl' does not"),
    (table().drop(columns=["p_benign", "p_malignant"]).assign(score=0.5), "y_true is 'benign', but with the one column 'score' it has to be 0 or 1"),
    (table().drop(columns=["p_benign", "p_malignant"]).assign(score=1.7, y_true=[0, 1] * 6), "Row 1 of the table: score (1.7) is not a probability between 0 and 1"),
    (three().drop(columns=["p_F", "p_G"]), "Only 'p_D' gives a probability in the table, but y_true has 3 values"),
    (table().drop(columns="p_benign").assign(y_true="malignant"), "Every y_true of the table is 'malignant'"),
])
def test_every_fault_of_a_table_is_one_sentence_with_the_row(broken, sentence):
    assert sentence in refusal(broken)


def test_a_wrong_mapping_is_refused_with_the_nearest_name():
    assert "The column 'patients' that should be 'group' is not in the table (did you mean 'patient'?)" in refusal(table(patient=1), columns={"patients": "group"})
    assert "'grup' is not a column of the predictions table (did you mean 'group'?)" in refusal(table(patient=1), columns={"patient": "grup"})
    assert "mapped to the same name" in refusal(table(a=1, b=2), columns={"a": "group", "b": "group"})


def test_the_sentence_counts_the_further_rows_with_the_same_fault():
    assert "(and 11 more such rows)" in refusal(table().assign(p_malignant=2.0))


def test_a_fault_in_the_second_file_names_that_file_and_its_row(tmp_path):
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    table(models=("ctl",)).to_csv(good, index=False)
    table(models=("mstl",)).assign(y_true="benign").to_csv(bad, index=False)
    with pytest.raises(MstlError, match=r"Row 2 of .*bad\.csv: y_true of image 'i1' is 'benign' for model 'mstl' but 'malignant' in row 2 of .*good\.csv"):
        predictions.read([good, bad])
    with pytest.raises(MstlError, match="There is no predictions table .*none.csv"):
        predictions.read(tmp_path / "none.csv")


# ---------------------------------------------------------------------------------------------------------------- files

def test_a_table_reads_back_as_it_was_and_is_written_as_the_same_bytes(tmp_path):
    full = predictions.join([table(target="breast", center="Żory, \"A\""), three()])
    first = predictions.write(full, tmp_path / "deep" / "predictions.csv")
    back = predictions.read(first)
    pd.testing.assert_frame_equal(back, full)
    second = predictions.write(back, tmp_path / "again.csv")
    assert first.read_bytes() == second.read_bytes() and b"\r" not in first.read_bytes()
    pd.testing.assert_frame_equal(predictions.read(tmp_path / "deep"), full)
    assert os.stat(first).st_mode & 0o777 == 0o644


def test_ids_and_classes_that_look_like_numbers_or_gaps_stay_words(tmp_path):
    own = table().assign(image_id=["007", "1e5", "NA", "None", "x", "y"] * 2, group=["01"] * 12)
    own = own.rename(columns={"p_benign": "p_NA", "p_malignant": "p_null"}).replace({"y_true": {"benign": "NA", "malignant": "null"}})
    back = predictions.read(predictions.write(own, tmp_path / "t.csv"))
    assert back["image_id"].tolist()[:4] == ["007", "1e5", "NA", "None"] and set(back["y_true"]) == {"NA", "null"} and set(back["group"]) == {"01"}


def test_semicolons_with_decimal_commas_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "excel.csv"
    table().to_csv(path, index=False, sep=";", decimal=",", encoding="utf-8-sig")
    assert np.allclose(predictions.read(path)["p_malignant"], table()["p_malignant"])


def test_a_file_that_is_no_table_is_refused_in_one_sentence(tmp_path):
    for content, words in ((b"\xff\xfe\x00\x81", "not a text file in UTF-8"), (b"", "is not a CSV table"), (b"a,b\n1,2,3\n4\n5,6,7,8,9\n", "CSV|missing")):
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(MstlError, match=words):
            predictions.read(tmp_path / "t.csv")


def test_a_large_table_is_packed_without_its_validation_rows_and_reads_back(tmp_path):
    whole = pd.concat([table(split="test"), table(split="val").assign(image_id=lambda t: "v" + t["image_id"], group=lambda t: "v" + t["group"])])
    packed = predictions.condense(whole, tmp_path / "predictions.csv.xz")
    first = packed.read_bytes()
    assert predictions.condense(whole, packed).read_bytes() == first
    back, given = predictions.read(tmp_path), predictions.check(whole[whole["split"] == "test"])
    back, given = (t.set_index(["model", "image_id"]).sort_index() for t in (back, given))
    assert (back["split"] == "test").all() and back.index.equals(given.index)
    assert np.allclose(back[["p_benign", "p_malignant"]], given[["p_benign", "p_malignant"]], atol=1e-8)
    predictions.write(whole, tmp_path / "predictions.csv")
    assert len(predictions.read(tmp_path)) == len(whole), "the plain table comes first"
    packed.write_bytes(first[:200])
    with pytest.raises(MstlError, match="is not a CSV table"):
        predictions.read(packed)
    with pytest.raises(MstlError, match="bridge is 'a|b', but a condensed table parts names by bars"):
        predictions.condense(whole.assign(bridge="a|b"), packed)


def test_a_condensed_table_keeps_every_class_and_what_only_some_models_were_tested_on(tmp_path):
    p = np.random.default_rng(0).dirichlet([1, 1, 1], size=7).round(6)
    rows = pd.DataFrame({"image_id": [*"abcd", *"bcd"], "model": ["x"] * 4 + ["y"] * 3, "variant": ["whole"] * 4 + ["part"] * 3, "seed": [0] * 4 + [1] * 3, "split": "test",
                         "y_true": ["k", "l", "m", "k", "l", "m", "k"]} | {f"p_{name}": p[:, k] for k, name in enumerate("klm")})
    given, back = predictions.read(rows), predictions.read(predictions.condense(predictions.read(rows), tmp_path / "predictions.csv.xz"))
    given, back = (t.sort_values(["model", "image_id"], ignore_index=True) for t in (given, back))
    pd.testing.assert_frame_equal(given, back, atol=1e-7)
    other = rows.iloc[:3].drop(columns=["p_k", "p_l", "p_m"]).assign(target="t", y_true=["u", "v", "u"], p_u=0.25, p_v=0.75)
    given = predictions.read([rows, other])  # a second task, whose classes the first does not have
    back = predictions.read(predictions.condense(given, tmp_path / "predictions.csv.xz"))
    given, back = (t.sort_values(["target", "model", "image_id"], ignore_index=True) for t in (given, back))
    pd.testing.assert_frame_equal(given, back, atol=1e-7)
    with pytest.raises(MstlError, match="has a bar in its name"):
        predictions.condense(predictions.read(rows.rename(columns={"p_k": "p_k|n"}).replace({"y_true": {"k": "k|n"}})), tmp_path / "x.csv.xz")


def test_a_full_disk_leaves_the_old_table_and_nothing_half_written(tmp_path, monkeypatch):
    path = predictions.write(table(), tmp_path / "predictions.csv")
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MstlError, match="could not be written \\(No space left on device\\); what was there before is kept"):
        predictions.write(table(models=("x",)), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]


def test_a_table_with_a_fault_is_not_written(tmp_path):
    with pytest.raises(MstlError):
        predictions.write(table().assign(p_benign=0.9, p_malignant=0.9), tmp_path / "predictions.csv")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- frames from arrays

def test_a_frame_takes_the_truth_the_groups_and_the_ids_from_the_set():
    data, index = picture_set(), np.array([5, 2, 3])
    p = np.array([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
    made = predictions.frame(data, index, p, split="test", fold=1, seed=2, study="s", arm="mstl", n_train=40, target="breast")
    assert list(made.columns) == [*predictions.COLUMNS, "p_benign", "p_malignant"]
    assert made["image_id"].tolist() == ["i5", "i2", "i3"] and made["y_true"].tolist() == ["malignant", "benign", "malignant"]
    assert made["group"].tolist() == ["g2", "g1", "g1"] and made["center"].eq("Cairo").all() and made["model"].eq("mstl").all()
    assert made[["fold", "seed", "n_train"]].drop_duplicates().values.tolist() == [[1, 2, 40]]
    pd.testing.assert_frame_equal(predictions.check(made), made)
    pd.testing.assert_frame_equal(predictions.frame(data, index, p[:, 1], split="test", fold=1, seed=2, study="s", arm="mstl", n_train=40,
                                                    target="breast")[["p_malignant"]], made[["p_malignant"]])


def test_a_frame_refuses_a_wrong_shape_and_an_unknown_column():
    data = picture_set()
    with pytest.raises(MstlError, match=r"have the shape \(3, 3\), but 3 images and 2 classes need \(3, 2\)"):
        predictions.frame(data, np.arange(3), np.ones((3, 3)), split="test", fold=0, seed=0)
    with pytest.raises(MstlError, match=r"'backbones' is not a column of the predictions table that can be given \(did you mean 'backbone'\?\)"):
        predictions.frame(data, np.arange(2), np.ones((2, 2)) / 2, split="test", fold=0, seed=0, backbones="x")


# ------------------------------------------------------------------------------------------------- properties and speed

@settings(max_examples=25, deadline=None)
@given(k=st.integers(2, 5), n=st.integers(2, 20), models=st.integers(1, 3), digits=st.integers(3, 12), seed=st.integers(0, 2**31))
def test_every_honest_table_survives_checking_writing_and_reading(tmp_path_factory, k, n, models, digits, seed):
    random = np.random.default_rng(seed)
    names = [f"class {c}" for c in range(k)]
    p = random.dirichlet(np.ones(k), n * models).round(digits)
    image = np.tile(np.arange(n), models)
    own = pd.DataFrame({"image_id": image, "y_true": np.array(names)[random.integers(0, k, n)[image]], "model": np.repeat([f"m{m}" for m in range(models)], n),
                        **{f"p_{c}": p[:, j] for j, c in enumerate(names)}})
    path = tmp_path_factory.mktemp("t") / "t.csv"
    back = predictions.read(predictions.write(own, path))
    assert back[[f"p_{c}" for c in names]].to_numpy().tolist() == p.tolist()
    assert back["y_true"].tolist() == own["y_true"].tolist() and predictions.classes(back) == tuple(names)


@settings(max_examples=40, deadline=None)
@given(row=st.integers(0, 11), kind=st.sampled_from(["nan", "sum", "truth", "group", "twice"]))
def test_the_row_in_the_sentence_is_the_row_with_the_fault(row, kind):
    own = table(split=["test"] * 4 + ["val"] * 2 + ["test"] * 4 + ["val"] * 2)
    if kind == "nan":
        own.loc[row, "p_benign"] = np.nan
    elif kind == "sum":
        own.loc[row, ["p_benign", "p_malignant"]] = 0.9
    elif kind == "truth":
        own.loc[row, "y_true"] = "mass"
    elif kind == "group":
        own.loc[row, "group"] = "g2" if row % 6 < 4 else "g0"
    else:
        own = pd.concat([own, own.iloc[[row]]], ignore_index=True)
    text = refusal(own)
    if kind == "group":  # the fault shows at the later of the two rows that share the group
        assert f"group '{'g2' if row % 6 < 4 else 'g0'}'" in text
    else:
        assert f"ow {row + 1} of the table" in text


def test_a_hundred_thousand_rows_are_checked_in_about_a_second():
    n = 5000
    random = np.random.default_rng(0)
    p = random.random(20 * n)
    image = np.tile(np.arange(n), 20)
    big = pd.DataFrame({"image_id": np.char.add("i", image.astype(str)), "group": np.char.add("g", (image // 3).astype(str)), "y_true": image % 2,
                        "model": np.repeat([f"m{m}" for m in range(10)], 2 * n), "seed": np.tile(np.repeat([0, 1], n), 10), "p_no": 1 - p, "p_yes": p})
    start = time.process_time()
    checked = predictions.check(big)
    assert len(checked) == 100_000 and time.process_time() - start < 2
