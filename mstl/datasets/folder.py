"""An own data set: a folder with manifest.csv, usable wherever a name of the catalog is.

    path,label[,group,center,split,view,case,x0,y0,x1,y1]
    scans/p1_left.dcm,malignant,p1,Leiden,train,left,p1,120,80,260,190

One row an image; a path that comes twice brings another box (pixels of the original image). Empty cells are unknown.
`case` joins the images of one examination and `view` names each of them (:mod:`mstl.datasets.views` makes pairs of them).
Further columns are kept, as text, in `ImageSet.extra`. Commas, semicolons or tabs part the columns.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from ..errors import MstlError
from . import changed_options, checked_options, locked, opened, prepared_folder
from .archives import refuse_climbing
from .catalog import Card, nearest
from .imageset import ImageSet
from .pixels import Picture, decode, place
from .prepare import Job, Row, prepare

MANIFEST = "manifest.csv"
CORNERS = ["x0", "y0", "x1", "y1"]
COLUMNS = ["path", "label", "group", "center", "split", "view", "case", *CORNERS]
SPLITS = ("train", "val", "test", "")
OPTIONS = {"classes": (), "channels": 0, "fit": "letterbox"}


def load(folder: Path, size: int, root: Path, *, workers: int | None, progress: bool, options: dict) -> ImageSet:
    """The set of `folder`. Options:

    classes   the order of the labels, the positive class last; default: sorted (numbers by value)
    channels  1 grey, 3 colour, 0 (default) as the first eight images are
    fit       "letterbox" (default: aspect kept, black margin) or "squash"
    """
    options = checked_options(folder.name, OPTIONS, options)
    if options["channels"] not in (0, 1, 3):
        raise MstlError(
            f"{folder.name}: channels must be 1 (grey), 3 (colour) or 0 (as the images are), not {options['channels']!r}"
        )
    table = read_manifest(folder)
    state = _state(folder, table)
    name = folder.resolve().name
    key = {"folder": hashlib.sha256(str(folder.resolve()).encode()).hexdigest(), **changed_options(OPTIONS, options)}
    target = prepared_folder(root, name, size, {k: list(v) if isinstance(v, tuple) else v for k, v in key.items()})
    classes = options["classes"] or _classes(table["label"].unique())
    _check_classes(folder, table, classes)

    def entry(channels: int) -> Card:
        return Card(
            name=name,
            title=f"{name}: an own data set",
            modality="unknown",
            role="target",
            task="classification",
            classes=classes,
            group_rule="the column `group` of manifest.csv" if table["group"].any() else "every image its own group",
            licence="unknown",
            doi="",
            url="",
            archive=name,
            citation="",
            reader="folder",
            channels=channels,
            options=dict(OPTIONS),
        )

    for channels in [options["channels"]] if options["channels"] else [1, 3]:
        data = opened(target, entry(channels), {"files": state})
        if data is not None:
            return data
    with locked(target):
        card = entry(options["channels"] or _channels(folder, list(dict.fromkeys(table["path"]))))
        data = opened(target, card, {"files": state})
        if data is None:
            boxed = bool(table[CORNERS].notna().all(axis=1).any())
            source = {
                "file": folder.resolve().name,
                "files": state,
                "note": "an own folder with manifest.csv",
                "options": _plain(options),
            }
            prepare(
                card,
                _jobs(folder, table, options["fit"]),
                target,
                size,
                with_boxes=boxed,
                workers=workers,
                progress=progress,
                provenance=source,
            )
            data = ImageSet.open(target, card=card)
    return data


def read_manifest(folder: Path) -> pd.DataFrame:
    """manifest.csv with every column of `COLUMNS` (text "" and coordinates NaN where absent); a problem names its line."""
    path = folder / MANIFEST
    if not path.is_file():
        raise MstlError(
            f"{folder}: there is no {MANIFEST} in this folder; write one with the columns path,label and, where known, "
            f"{','.join(COLUMNS[2:])}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.split("\n", 1)[0]
        separator = max(",;\t", key=head.count)
        table = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as problem:
        raise MstlError(
            f"{path}: it cannot be read as comma-separated UTF-8 text ({' '.join(str(problem).split())})"
        ) from None
    table.columns = [str(column).strip() for column in table.columns]
    for column in ("path", "label"):
        if column not in table:
            hint = next((nearest(column, [c]) for c in table.columns if nearest(column, [c])), "")
            raise MstlError(
                f"{path}: the column {column!r} is missing; its columns are {', '.join(table.columns)}{hint}"
            )
    table = table.fillna("").apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise MstlError(f"{path}: it lists no image; write one row an image")
    numbers = (table.index + 2).tolist()  # the head is line 1
    table = table.reset_index(drop=True)

    def line(index: int) -> str:
        return f"{path}, line {numbers[index]}"

    for column in ("path", "label"):
        empty = table.index[table[column] == ""]
        if len(empty):
            raise MstlError(f"{line(empty[0])}: the {column} is missing; fill it in, or delete the row")
    for value in table["path"].unique():
        refuse_climbing(value, path)
    table["path"] = [PurePosixPath(value.replace("\\", "/")).as_posix() for value in table["path"]]
    for column in COLUMNS[2:7]:
        table[column] = table[column] if column in table else ""
    unknown = table.loc[~table["split"].isin(SPLITS), "split"]
    if len(unknown):
        raise MstlError(
            f"{line(unknown.index[0])}: the split {unknown.iloc[0]!r} is none of train, val, test"
            f"{nearest(unknown.iloc[0], SPLITS[:3])}"
        )
    _read_boxes(table, line)
    _check_repeats(table, line)
    _check_splits(table, path)
    _check_views(table, line)
    missing = [
        (index, value) for index, value in table["path"].drop_duplicates().items() if not (folder / value).is_file()
    ]
    if missing:
        raise MstlError(
            f"{line(missing[0][0])}: there is no file {missing[0][1]!r} in {folder}"
            + (f" (nor {len(missing) - 1} others)" if len(missing) > 1 else "")
            + "; correct the path or delete the row"
        )
    return table


def _read_boxes(table: pd.DataFrame, line: Callable[[int], str]) -> None:
    for column in CORNERS:
        text = table[column] if column in table else pd.Series("", index=table.index)
        numbers = pd.to_numeric(text.replace("", np.nan), errors="coerce").astype(float)
        bad = text[(text != "") & ~np.isfinite(numbers)]
        if len(bad):
            raise MstlError(f"{line(bad.index[0])}: {column} is {bad.iloc[0]!r}, which is not a number of pixels")
        table[column] = numbers
    given = table[CORNERS].notna()
    partial = given.any(axis=1) & ~given.all(axis=1)
    if partial.any():
        raise MstlError(f"{line(partial.idxmax())}: a box needs all of x0, y0, x1, y1")
    flat = given.all(axis=1) & ~((table["x1"] > table["x0"]) & (table["y1"] > table["y0"]))
    if flat.any():
        raise MstlError(f"{line(flat.idxmax())}: the box is empty, as x1 must be larger than x0 and y1 than y0")


def _check_repeats(table: pd.DataFrame, line: Callable[[int], str]) -> None:
    first: dict[str, int] = {}
    for index, path in enumerate(table["path"]):
        before = first.setdefault(path, index)
        if before == index:
            continue
        for column in ("label", "group", "center", "split", "view", "case"):
            if table.at[index, column] != table.at[before, column]:
                raise MstlError(
                    f"{line(index)}: {path!r} has the {column} {table.at[index, column]!r} here and "
                    f"{table.at[before, column]!r} in {line(before).rsplit(', ')[-1]}; make them agree"
                )
        if np.isnan(table.at[index, "x0"]) or np.isnan(table.at[before, "x0"]):
            raise MstlError(
                f"{line(index)}: {path!r} was listed in {line(before).rsplit(', ')[-1]} already; "
                "list it once, or with one box a row"
            )


def _check_splits(table: pd.DataFrame, path: Path) -> None:
    grouped = table[(table["group"] != "") & (table["split"] != "")]
    sides = grouped.groupby("group")["split"].agg(lambda parts: sorted(set(parts)))
    torn = sides[sides.map(len) > 1]
    if len(torn):
        raise MstlError(
            f"{path}: the group {torn.index[0]!r} is in the splits {' and '.join(torn.iloc[0])} ({len(torn)} such groups); "
            "a group (a patient) must lie wholly in one"
        )


def _check_views(table: pd.DataFrame, line: Callable[[int], str]) -> None:
    images = table.drop_duplicates("path")
    images = images[images["case"] != ""]
    for index, row in images[images["view"] == ""].iterrows():
        raise MstlError(f"{line(index)}: the image of the case {row['case']!r} has no view; name it, for example left or anterior")
    first: dict[tuple[str, str], int] = {}
    for index, case, view in zip(images.index, images["case"], images["view"]):
        before = first.setdefault((case, view), index)
        if before != index:
            raise MstlError(
                f"{line(index)}: the case {case!r} has the view {view!r} twice, here and in {line(before).rsplit(', ')[-1]}; "
                "keep one, or give the other a case of its own"
            )


def _classes(labels: np.ndarray) -> tuple[str, ...]:
    def order(label: str) -> tuple:
        try:
            return (0, float(label), label)
        except ValueError:
            return (1, 0.0, label)

    return tuple(sorted(labels, key=order))


def _check_classes(folder: Path, table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    for index, label in table["label"].drop_duplicates().items():
        if label not in classes:
            raise MstlError(
                f"{folder / MANIFEST}: {table.at[index, 'path']} has the label {label!r}, "
                f"which is none of the classes {', '.join(classes)}{nearest(label, classes)}"
            )
    if len(classes) < 2:
        raise MstlError(
            f"{folder / MANIFEST}: every image has the label {classes[0]!r}; at least two classes are needed"
        )


def _channels(folder: Path, paths: list[str]) -> int:
    for path in paths[:8]:
        pixels = np.asarray(decode((folder / path).read_bytes(), path, 3))
        if (pixels != pixels[..., :1]).any():
            return 3
    return 1


def _jobs(folder: Path, table: pd.DataFrame, fit: str) -> list[Job]:
    further = [column for column in table.columns if column not in COLUMNS]
    jobs = []
    for path, rows in table.groupby("path", sort=False):
        first = rows.iloc[0]
        boxes = [(first["label"], *box) for box in rows[CORNERS].dropna().to_numpy().tolist()]
        row = Row(
            path,
            first["label"],
            first["group"] or path,
            first["split"],
            first["center"],
            first["view"],
            first["case"],
            {column: first[column] for column in further},
        )
        jobs.append(Job((row,), _picture(folder / path, path, boxes, fit)))
    return jobs


def _picture(file: Path, path: str, boxes: list[tuple], fit: str) -> Callable[[int, int], list[Picture]]:
    def make(size: int, channels: int) -> list[Picture]:
        image = decode(file.read_bytes(), path, channels, smallest=None if boxes else 2 * size)
        pixels, where = place(image, size, fit)
        for box in boxes:
            if box[1] < 0 or box[2] < 0 or box[3] > image.width or box[4] > image.height:
                raise MstlError(
                    f"{path}: its box {box[1:]} lies outside the image of {image.width} × {image.height} pixels; "
                    "boxes are in pixels of the original image"
                )
        moved = [where.box(*box) for box in boxes]
        return [Picture(pixels, boxes=tuple(box for box in moved if box))]

    return make


def _state(folder: Path, table: pd.DataFrame) -> str:
    """A hash over manifest.csv and the size and time of every listed file: another value means another data set."""
    total = hashlib.sha256((folder / MANIFEST).read_bytes())
    for path in table["path"].drop_duplicates():
        status = (folder / path).stat()
        total.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _plain(options: dict) -> dict:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
