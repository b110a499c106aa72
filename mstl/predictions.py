"""The predictions table: one row an image and model, the only thing that statistics read.

Columns (``COLUMNS``, then one ``p_<class>`` a class): what made the prediction (``run, study, model, target, arm, backbone,
source, bridge, variant, n_train, seed, fold``), which image it is (``split, image_id, group, center``), the truth ``y_true``
(the name of a class), and the probabilities, which sum to one. ``model`` names what is compared. In a binary table the
last ``p_`` column is the positive class.

A table of your own needs ``image_id, y_true, model`` and the probabilities; everything else is filled in: no
group means that every image is its own, no split means test. See :func:`check` for the forms it may take.

A *task* is a target with its variant: the rows of one task share their classes; a table may hold several tasks, each
with its own ``p_`` columns and nothing in those of the others.
"""

from __future__ import annotations

import difflib
import lzma
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mstl.errors import MstlError

if TYPE_CHECKING:
    from mstl.datasets.imageset import ImageSet

COLUMNS = ("run", "study", "model", "target", "arm", "backbone", "source", "bridge", "variant", "n_train", "seed", "fold",
           "split", "image_id", "group", "center", "y_true")
REQUIRED = ("image_id", "y_true", "model")
PACKED = ".xz"  # suffix of a table in the form of :func:`condense`
_OF_IMAGE = ("image_id", "group", "center", "y_true", "split", "fold")  # what a row of a condensed table is named by
_OF_MODEL = tuple(column for column in COLUMNS if column not in _OF_IMAGE)  # and a column of it, after its probability
SPLITS = ("train", "val", "test")
SUM_TOLERANCE = 0.01  # how far the probabilities of a row may be from 1 in sum: tables are often rounded
_NUMBERS = ("n_train", "seed", "fold")
_SINGLE = ("p", "score")  # one probability, of the positive class
_SPLIT_NAMES = {"validation": "val", "valid": "val", "training": "train", "testing": "test", "": "test"}


def read(source: str | os.PathLike | pd.DataFrame | Iterable[str | os.PathLike | pd.DataFrame],
         columns: Mapping[str, str] | None = None, *,
         each: Callable[[pd.DataFrame], pd.DataFrame] | None = None) -> pd.DataFrame:
    """One checked table from one or many CSV files, run folders or DataFrames.

    ``columns`` maps your column names to ours, for example ``{"patient": "group", "prob_malignant": "p_malignant"}``; a mapped
    column takes the place of one that has our name already. Columns may be separated by comma, tab or semicolon (then with
    decimal commas). ``each`` is called with every table before they are put together, and returns it, for example with models
    that are named by their bridges.
    Raises MstlError as :func:`check` does, with the row (1 is the first below the header) and the file.
    """
    sources = [source] if isinstance(source, (str, os.PathLike, pd.DataFrame)) else list(source)
    if not sources:
        raise MstlError("No predictions table was given: name at least one CSV file.")
    tables = []
    for one in sources:
        name = "the table" if isinstance(one, pd.DataFrame) else str(one)
        table = one.copy() if isinstance(one, pd.DataFrame) else _read_csv(Path(one))
        table = _complete(_renamed(table, columns, name), name)
        tables.append((name, each(table) if each else table))
    return _joined(tables)


def check(table: pd.DataFrame) -> pd.DataFrame:
    """The table in its full form: every column of ``COLUMNS``, ``y_true`` as class names, ``p_`` columns as floats, rows kept.

    Accepted: ``y_true`` as the name of a class or, where not all its values are names of classes, as the index of a class
    (0 … K − 1, in the order of the ``p_`` columns); binary tables with a single column ``p_<positive class>``, or ``p`` or
    ``score`` with ``y_true`` 0 and 1. A score must be a probability.

    Raises MstlError, one sentence with the row, for: a required column that is missing or empty; a score that is not a
    number or outside 0 … 1; probabilities that do not sum to one within ``SUM_TOLERANCE``; a ``y_true`` that is no class; the
    same image twice in a fold of one model and chain; a label that differs between models; a group on two sides of a
    split; models that do not cover the same test images.
    """
    return _joined([("the table", _complete(table.copy(), "the table"))])


def classes(table: pd.DataFrame) -> tuple[str, ...]:
    """Names of the classes in the order of the ``p_`` columns, without those that have no value in this table."""
    return tuple(c.removeprefix("p_") for c in _probability_columns(table) if table[c].notna().any())


def positive(table: pd.DataFrame) -> pd.Series:
    """Probability of the positive class (the last of its task) for each row of a table of binary tasks."""
    score = pd.Series(np.nan, index=table.index, name="score")
    for (target, variant), part in table.groupby(["target", "variant"], sort=False):
        names = classes(part)
        if len(names) != 2:
            task = f"Target '{target}'" + (f", variant '{variant}'," if variant else "")
            raise MstlError(f"{task} has {len(names)} classes ({', '.join(names)}): a single score exists for two classes only.")
        score.loc[part.index] = part[f"p_{names[-1]}"]
    return score


def join(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One checked table of several, for example of all runs of a study; the ``p_`` columns are those of all of them."""
    names = [f"table {number + 1}" for number in range(len(tables))]
    if not names:
        raise MstlError("No predictions table was given to join.")
    return _joined([(name, _complete(table.copy(), name)) for name, table in zip(names, tables)])


def frame(data: ImageSet, index: np.ndarray, probabilities: np.ndarray, *, split: str, fold: int, seed: int,
          **constant: object) -> pd.DataFrame:
    """The rows of one model's predictions of the images ``index`` of a set, with every column of the table.

    ``probabilities`` (n, C) in the order of ``data.classes``, or (n,) of the last class of two. ``constant``: the other
    columns that are the same for all rows (run, study, model, target, arm, backbone, source, bridge, variant, n_train).
    """
    index, p = np.asarray(index), np.asarray(probabilities, float)
    p = np.stack([1 - p, p], 1) if p.ndim == 1 and len(data.classes) == 2 else p
    if p.shape != (len(index), len(data.classes)):
        raise MstlError(f"Predictions of {data.name} have the shape {np.shape(probabilities)}, but {len(index)} images and "
                        f"{len(data.classes)} classes need ({len(index)}, {len(data.classes)}).")
    for name in constant:
        if name not in COLUMNS[: COLUMNS.index("seed")]:
            raise MstlError(f"'{name}' is not a column of the predictions table that can be given{_nearest(name, COLUMNS)}.")
    values = {name: constant.get(name, 0 if name in _NUMBERS else "") for name in COLUMNS} | {
        "fold": fold, "seed": seed, "split": split, "image_id": np.asarray(data.ids)[index], "group": np.asarray(data.groups)[index],
        "center": np.asarray(data.centers)[index], "y_true": np.array(data.classes)[np.asarray(data.labels)[index]]}
    values["model"] = constant.get("model") or constant.get("arm", "")
    return pd.DataFrame(values | {f"p_{name}": p[:, c] for c, name in enumerate(data.classes)}, index=pd.RangeIndex(len(index)))


def write(table: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Checks the table and writes it as CSV, aside first, so that a file of this name is always whole.

    Floats are written in their shortest form that reads back as the same number: the same table gives the same bytes.
    Raises MstlError where the disk is full or the folder cannot be written to; what stood there before is kept.
    """
    path, table = Path(path), check(table)
    handle, aside = -1, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            table.to_csv(file, index=False, lineterminator="\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
        aside = ""
    except OSError as problem:
        raise MstlError(f"{path} could not be written ({problem.strerror or problem}); what was there before is kept: "
                        "free some space or name another folder, and write again.") from problem
    finally:
        if aside:
            Path(aside).unlink(missing_ok=True)
    return path


# ------------------------------------------------------------------------------------------------------------- reading

def in_folder(folder: str | os.PathLike) -> Path:
    """The predictions table of a run's folder: ``predictions.csv``, or where there is only that, ``predictions.csv.xz``."""
    packed = Path(folder) / f"predictions.csv{PACKED}"
    plain = packed.with_suffix("")
    return packed if packed.is_file() and not plain.is_file() else plain


def condense(table: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Writes the test rows of a table as ``.csv.xz``, in the form that a repository can hold where a table is large: one row an image
    and fold, and one column a model, ``p_<class>|run|study|model|…`` in the order of ``COLUMNS``, with probabilities to eight digits (of
    two classes the positive one's). The same table gives the same bytes; :func:`read` gives the rows back. Validation rows,
    and with them thresholds, are left out, and so are columns beyond ``COLUMNS``. Raises MstlError for a name with a bar."""
    path, rows = Path(path), check(table[table["split"] == "test"])
    for column in _OF_MODEL:
        _refuse(rows[column].astype(str).str.contains("|", regex=False), "the table",
                lambda row, c=column: f"{c} is '{rows[c].iloc[row]}', but a condensed table parts names by bars: name it without one")
    names = _probability_columns(rows)
    if any("|" in name for name in names):
        raise MstlError(f"A class of the table has a bar in its name ({', '.join(names)}), but a condensed table parts names by bars: rename it.")
    wide = rows.pivot(index=list(_OF_IMAGE), columns=list(_OF_MODEL), values=names[1:] if len(names) == 2 else names)
    wide.columns = ["|".join(map(str, key)) for key in wide.columns]
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(lzma.compress(wide.reset_index().to_csv(index=False, lineterminator="\n", float_format="%.8g").encode()))
    os.replace(aside, path)
    return path


def _unfolded(wide: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table that :func:`condense` wrote, as text."""
    keys = [name.split("|") for name in wide.columns[len(_OF_IMAGE):]]
    names = list(dict.fromkeys(key[0] for key in keys))
    cells = wide.iloc[:, len(_OF_IMAGE):].to_numpy(object).reshape(len(wide), len(names), -1)
    row, column = np.nonzero((cells != "").any(1))
    model = pd.DataFrame([key[1:] for key in keys[:cells.shape[2]]], columns=list(_OF_MODEL)).iloc[column].reset_index(drop=True)
    image = wide.iloc[row, :len(_OF_IMAGE)].reset_index(drop=True)
    return pd.concat([image, model], axis=1).assign(**{name: cells[row, k, column] for k, name in enumerate(names)})


def _read_csv(path: Path) -> pd.DataFrame:
    path = in_folder(path) if path.is_dir() else path
    if not path.is_file():
        raise MstlError(f"There is no predictions table {path}: check the path, or run the stage that writes it.")
    try:
        with (lzma.open if path.suffix == PACKED else open)(path, "rt", encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count) if header.strip() else ","
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
        if path.suffix == PACKED and tuple(table.columns[:len(_OF_IMAGE)]) == _OF_IMAGE:
            return _unfolded(table)
    except UnicodeDecodeError:
        raise MstlError(f"{path} is not a text file in UTF-8: save it as CSV (UTF-8).") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, lzma.LZMAError, EOFError) as problem:
        raise MstlError(f"{path} is not a CSV table ({' '.join(str(problem).split())}): "
                        "save it as CSV with one header row.") from None
    if separator == ";":
        for name in table.columns:
            if name.startswith("p_") or name in _SINGLE:
                table[name] = table[name].str.replace(",", ".", regex=False)
    return table


def _renamed(table: pd.DataFrame, columns: Mapping[str, str] | None, name: str) -> pd.DataFrame:
    table.columns = [str(c).strip() for c in table.columns]
    columns = dict(columns or {})
    for yours, ours in columns.items():
        if yours not in table.columns:
            raise MstlError(f"The column '{yours}' that should be '{ours}' is not in {name}{_nearest(yours, table.columns)}; "
                            f"its columns are {', '.join(table.columns)}.")
        if ours not in COLUMNS and ours not in _SINGLE and not ours.startswith("p_"):
            raise MstlError(f"'{ours}' is not a column of the predictions table{_nearest(ours, COLUMNS)}: map '{yours}' to one of "
                            f"{', '.join(COLUMNS)} or p_<class>.")
    if len(set(columns.values())) < len(columns):
        raise MstlError("Two columns are mapped to the same name: map each to its own.")
    replaced = [ours for ours in columns.values() if ours in table.columns and ours not in columns]
    table = table.drop(columns=replaced).rename(columns=columns)
    twice = table.columns[table.columns.duplicated()]
    if len(twice):
        raise MstlError(f"The column '{twice[0]}' occurs twice in {name}: keep one.")
    return table


def _complete(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """All columns, of the right kind, and every value right by itself."""
    for column in REQUIRED:
        if column not in table.columns:
            raise MstlError(f"The column '{column}' is missing in {name}{_nearest(column, table.columns)}; a predictions table needs "
                            "image_id, y_true, model and p_<class>, and other names can be mapped (columns: {yours: ours}).")
    if table.empty:
        raise MstlError(f"{name[0].upper()}{name[1:]} has no rows: there is nothing to compare.")
    table = table.reset_index(drop=True)
    for column in COLUMNS:
        if column in _NUMBERS:
            table[column] = _whole_numbers(table[column], column, name) if column in table else 0
        else:
            table[column] = _words(table[column]) if column in table else ""
    for column in REQUIRED:
        _refuse(table[column] == "", name, lambda row, c=column: f"{c} is empty")
    table["group"] = table["group"].where(table["group"] != "", table["image_id"])
    table["split"] = table["split"].str.lower().replace(_SPLIT_NAMES)
    _refuse(~table["split"].isin(SPLITS), name, lambda row: f"split is '{table['split'][row]}', not train, val or test")
    single = [c for c in _SINGLE if c in table.columns]
    if not _probability_columns(table) and not single:
        raise MstlError(f"There is no probability in {name}: give one column p_<class> a class, or map yours "
                        "(columns: {yours: p_<class>}).")
    for column in [*_probability_columns(table), *single]:
        table[column] = _floats(table[column], column, name)
    table = _both_classes(table, single, name)
    names = _probability_columns(table)
    _check_probabilities(table, names, name)
    table["y_true"] = _class_names(table, name)
    return table[[*COLUMNS, *names, *(c for c in table.columns if c not in COLUMNS and c not in names)]]


def _words(values: pd.Series) -> pd.Series:
    if isinstance(values.dtype, pd.StringDtype):  # each word once
        codes, words = pd.factorize(values.fillna(""))
        return pd.Series(words.str.strip().take(codes), index=values.index, dtype=str)
    if pd.api.types.is_bool_dtype(values):
        values = values.astype(int)
    if pd.api.types.is_float_dtype(values):  # 17.0 is the id 17, as when a column with a gap was read
        whole = values.notna() & (values == values.round())
        return values.astype(object).where(~whole, values.where(whole, 0).astype("int64").astype(object)).fillna("").astype(str)
    return values.astype(object).where(values.notna(), "").astype(str).str.strip()


def _whole_numbers(values: pd.Series, column: str, name: str) -> np.ndarray:
    codes, found = pd.factorize(values)  # each value once; an absent one has the code -1
    numbers = pd.to_numeric(pd.Series([*(0 if v == "" else v for v in found), 0], dtype=object), errors="coerce")
    wrong = (numbers.isna() | (numbers != numbers.round())).to_numpy()
    _refuse(wrong[codes], name, lambda row: f"{column} is '{values[row]}', not a whole number")
    return numbers.to_numpy(np.int64)[codes]


def _floats(values: pd.Series, column: str, name: str) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(float, na_value=np.nan)
    if isinstance(values.dtype, pd.StringDtype) and not values.eq("").any():
        words = values.to_numpy(object)  # an absent one is NaN already
    else:
        words = values.astype(object).where(values.notna(), "nan").astype(str).str.strip().replace("", "nan").to_numpy(object)
    try:
        return words.astype(float)
    except ValueError:
        bad = pd.to_numeric(pd.Series(words), errors="coerce").isna() & (pd.Series(words).str.lower() != "nan")
        _refuse(bad, name, lambda row: f"{column} is '{words[row]}', not a number")
        raise


def _both_classes(table: pd.DataFrame, single: list[str], name: str) -> pd.DataFrame:
    """A binary table that gives one probability gets the column of the other class, before it."""
    names = _probability_columns(table)
    given = names[0] if len(names) == 1 else single[0] if not names else ""
    if given:
        _refuse(~table[given].between(0, 1), name, lambda row: f"{given} ({table[given][row]:g}) is not a probability between 0 and 1")
    if not names:
        table = table.rename(columns={single[0]: "p_1"})
        _refuse(~table["y_true"].isin(["0", "1", "0.0", "1.0", "False", "True"]), name,
                lambda row: f"y_true is '{table['y_true'][row]}', but with the one column '{single[0]}' it has to be 0 or 1 "
                            f"(or call the column p_<positive class>)")
        table["y_true"] = table["y_true"].replace({"0.0": "0", "1.0": "1", "False": "0", "True": "1"})
        names = ["p_1"]
    if len(names) > 1:
        return table
    positive_name = names[0].removeprefix("p_")
    found = sorted(table["y_true"].unique())
    others = [v for v in found if v != positive_name]
    if set(found) <= {"0", "1"}:
        other = "0" if positive_name == "1" else f"not {positive_name}"
        table["y_true"] = table["y_true"].replace({"0": other, "1": positive_name})
    elif len(others) == 1:
        other = others[0]
    elif not others:
        raise MstlError(f"Every y_true of {name} is '{positive_name}': a comparison needs images of both classes.")
    else:
        raise MstlError(f"Only '{names[0]}' gives a probability in {name}, but y_true has {len(found)} values "
                        f"({', '.join(found[:5])}): give one column p_<class> a class.")
    table.insert(table.columns.get_loc(names[0]), f"p_{other}", 1 - table[names[0]])
    return table


def _check_probabilities(table: pd.DataFrame, names: list[str], name: str) -> None:
    p = table[names].to_numpy(float)
    expected = np.zeros(p.shape, bool)  # a class of another task has no value
    for rows in table.groupby(["target", "variant"], sort=False).indices.values():
        expected[rows] = ~np.isnan(p[rows]).all(0)
    several = table[["target", "variant"]].drop_duplicates().shape[0] > 1
    expected = expected if several else np.ones(p.shape, bool)
    for what, bad in (("empty or not a number", expected & np.isnan(p)), ("infinite", np.isinf(p)),
                      ("not a probability between 0 and 1", (p < 0) | (p > 1))):
        _refuse(bad.any(1), name, lambda row, b=bad, w=what: f"{names[b[row].argmax()]} ({p[row, b[row].argmax()]:g}) is {w}")
    _refuse(expected.sum(1) < 2, name, lambda row: f"target '{table['target'][row]}' has a probability of one class only")
    total = np.where(expected, p, 0).sum(1)
    _refuse(abs(total - 1) > SUM_TOLERANCE, name, lambda row: f"the probabilities sum to {total[row]:.4g}, not 1")


def _class_names(table: pd.DataFrame, name: str) -> pd.Series:
    """``y_true`` as class names, task by task."""
    truth = table["y_true"].copy()
    for rows in table.groupby(["target", "variant"], sort=False).indices.values():
        names = classes(table.iloc[rows])
        values = truth.iloc[rows]
        known = values.isin(names)
        if known.all():
            continue
        index = pd.to_numeric(values, errors="coerce")
        in_range = index.between(0, len(names) - 1) & (index == index.round())
        if not in_range.all():
            row = rows[int(np.flatnonzero(~(in_range if in_range.any() and not known.any() else known).to_numpy())[0])]
            raise MstlError(f"Row {row + 1} of {name}: y_true is '{truth[row]}', which is no class{_nearest(truth[row], names)}; "
                            f"the classes are {', '.join(names)}, or their index from 0 to {len(names) - 1}.")
        truth.iloc[rows] = np.array(names, dtype=object)[index.astype(int)]
    return truth


# --------------------------------------------------------------------------------------------------------- consistency

def _joined(tables: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """Complete tables, each with its name, as one, with what only the rows together can show checked."""
    table = tables[0][1]
    if len(tables) > 1:
        order = _merged_order([_probability_columns(t) for _, t in tables])
        extras = dict.fromkeys(c for _, t in tables for c in t.columns if c not in COLUMNS and c not in order)
        table = pd.concat([t for _, t in tables], ignore_index=True)[[*COLUMNS, *order, *extras]]
    keys = ("run", "model", "target", "backbone", "variant", "seed", "fold", "split", "image_id", "group", "y_true")
    code = {c: pd.factorize(table[c])[0] for c in keys}
    task = _pack(code["target"], code["variant"])
    block = _pack(task, code["backbone"])
    cell = _pack(block, code["model"], code["seed"], code["fold"])
    where = _places([(name, len(t)) for name, t in tables])

    names = _probability_columns(table)
    empty = table[names].isna().to_numpy()
    first = pd.Series(np.arange(len(table))).groupby(task).transform("first").to_numpy()
    other = np.flatnonzero((empty != empty[first]).any(1))
    if len(other):
        row = other[0]
        here, there = (", ".join(classes(table.iloc[[r]])) for r in (row, first[row]))
        raise MstlError(f"{where(row)}: target '{table['target'][row]}' has the classes {here}, but {there} in "
                        f"{_lower(where(first[row]))}; give them other names in the column target or variant.")

    seen = pd.Series(_pack(cell, code["split"], code["image_id"]))
    twice = np.flatnonzero(seen.duplicated())
    if len(twice):
        row = twice[0]
        first = int(np.flatnonzero((seen == seen[row]).to_numpy())[0])
        raise MstlError(f"{where(row)}: image '{table['image_id'][row]}' of model '{table['model'][row]}' "
                        f"(seed {table['seed'][row]}, fold {table['fold'][row]}, {table['split'][row]}) is there already, in {_lower(where(first))}; "
                        "keep one, or name what differs in the column model or variant.")

    image = _pack(task, code["image_id"])
    first = pd.Series(np.arange(len(table))).groupby(image).transform("first").to_numpy()
    other = np.flatnonzero(code["y_true"] != code["y_true"][first])
    if len(other):
        row = other[0]
        raise MstlError(f"{where(row)}: y_true of image '{table['image_id'][row]}' is '{table['y_true'][row]}' for model "
                        f"'{table['model'][row]}' but '{table['y_true'][first[row]]}' in {_lower(where(first[row]))}; "
                        "the truth must not depend on the model.")

    member = _pack(cell, code["run"], code["group"])
    first = pd.Series(np.arange(len(table))).groupby(member).transform("first").to_numpy()
    other = np.flatnonzero(code["split"] != code["split"][first])
    if len(other):
        row = other[0]
        raise MstlError(f"{where(row)}: group '{table['group'][row]}' is in {table['split'][row]} and, in "
                        f"{_lower(where(first[row]))}, in {table['split'][first[row]]} of one fold ({table['fold'][row]}) of model "
                        f"'{table['model'][row]}'; a group must lie on one side of a split.")
    _same_images(table, code, block, where)
    return table


def _same_images(table: pd.DataFrame, code: Mapping[str, np.ndarray], block: np.ndarray, where) -> None:
    test = np.flatnonzero((table["split"] == "test").to_numpy())
    models = pd.DataFrame({"block": block[test], "model": code["model"][test], "image": code["image_id"][test], "row": test})
    models = models.drop_duplicates(["block", "model", "image"])
    per_image = models.groupby(["block", "image"])["model"].transform("size")
    per_block = models.groupby("block")["model"].transform("nunique")
    lacking = models[(per_image < per_block).to_numpy()]
    if len(lacking):
        one = lacking.iloc[0]
        rivals = models[models["block"] == one["block"]]
        have = set(rivals["model"][rivals["image"] == one["image"]])
        absent = rivals[~rivals["model"].isin(have)].iloc[0]
        raise MstlError(f"{where(one['row'])}: model '{table['model'][one['row']]}' predicts test image "
                        f"'{table['image_id'][one['row']]}', but model '{table['model'][absent['row']]}' does not; models are "
                        "compared on the same images, so give every model's prediction of each.")


def _pack(*codes: np.ndarray) -> np.ndarray:
    """(N,) one code for each combination of codes."""
    packed = codes[0].astype(np.int64)
    for code in codes[1:]:
        packed = pd.factorize(packed * (int(code.max()) + 1) + code)[0]
    return packed


def _merged_order(orders: Sequence[Sequence[str]]) -> list[str]:
    """The ``p_`` columns of all tables, each table's own order kept: it says which class is positive."""
    plain = list(dict.fromkeys(c for order in orders for c in order))
    if all(sorted(order, key=plain.index) == list(order) for order in orders):
        return plain
    from graphlib import CycleError, TopologicalSorter

    before: dict[str, list[str]] = {}
    for order in dict.fromkeys(map(tuple, orders)):
        for earlier, later in zip((None, *order), order):
            before.setdefault(later, []).extend([earlier] if earlier else [])
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError as problem:
        a, b = problem.args[1][:2]
        raise MstlError(f"The columns {a} and {b} stand in different orders in the tables that are to be joined: "
                        "put the positive class last in each.") from None


def _probability_columns(table: pd.DataFrame) -> list[str]:
    return [c for c in table.columns if c.startswith("p_") and c != "p_"]


def _refuse(bad: pd.Series | np.ndarray, name: str, what) -> None:
    rows = np.flatnonzero(np.asarray(bad, bool))
    if len(rows):
        more = f" (and {len(rows) - 1} more such rows)" if len(rows) > 1 else ""
        raise MstlError(f"Row {rows[0] + 1} of {name}: {what(rows[0])}{more}; correct the table.")


def _places(places: Sequence[tuple[str, int]]):
    """Where a row of the joined table comes from, in words; ``places`` are the names and lengths of the tables."""
    ends = np.cumsum([n for _, n in places])

    def where(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        return f"Row {row - (ends[part - 1] if part else 0) + 1} of {places[part][0]}"

    return where


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
