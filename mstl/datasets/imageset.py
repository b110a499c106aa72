"""ImageSet: the one currency in which images travel, on disk and in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import MstlError
from .catalog import Card

FORMAT = 1  # of the prepared folder; raised when the same archive would prepare to other bytes
BOXES = ["image", "class", "x0", "y0", "x1", "y1"]
_LAZY = ("images", "masks")
_TEXT = ("ids", "groups", "centers", "splits", "views", "cases")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images of one size with what is known of each. Built by `mstl.datasets.load`, not changed afterwards.

    images     uint8 (N, H, W, C), C 1 (grey) or 3 (RGB); memory-mapped and read-only when it comes from `load`
    labels     int64 (N,), positions in `classes`; in a binary task the last class is the positive one
    groups     str (N,): patient, woman, or the image that several were cut from; never on both sides of a split
    centers    str (N,): hospital, "" where unknown
    ids        str (N,), unique
    splits     str (N,): the published part, "train", "val", "test" or ""
    masks      uint8 (N, H, W) of 0 and 1, or None
    boxes      DataFrame image (row number), class, x0, y0, x1, y1 in pixels of the prepared image, or None
    views      str (N,) names of the projection or side, or None; `cases` str (N,) joins the views of one examination
    extra      DataFrame of N rows with whatever else the source tells of an image, or None
    card       the catalog's entry;  provenance: which file the set was prepared from, with its SHA-256
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray
    centers: np.ndarray
    ids: np.ndarray
    splits: np.ndarray
    card: Card
    masks: np.ndarray | None = field(default_factory=lambda: None)  # no class attribute, so that __getattr__ is asked
    boxes: pd.DataFrame | None = None
    views: np.ndarray | None = None
    cases: np.ndarray | None = None
    extra: pd.DataFrame | None = None
    provenance: dict = field(default_factory=dict)
    digest: str = field(
        default="", init=False
    )  # the stored hash; a copy made by `dataclasses.replace` has none and computes its own

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "classes", tuple(str(c) for c in self.classes))
        put(self, "labels", np.asarray(self.labels, np.int64))
        for key in _TEXT:
            if getattr(self, key) is not None:
                put(self, key, np.asarray(getattr(self, key), dtype=str))
        _check(self)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{name} {n}" for name, n in zip(self.classes, np.bincount(self.labels, minlength=len(self.classes)))
        )
        shape = f"{len(self)} images of {self.size} px, {self.channels} channel(s), {len(set(self.groups))} groups"
        return f"ImageSet({self.name}: {shape}; {counts})"

    def __getattr__(self, key: str):
        # Only reached when `images` or `masks` is not yet there: a subset copies its pixels when they are first asked for.
        if key in _LAZY and f"_{key}" in self.__dict__:
            base, rows = self.__dict__[f"_{key}"]
            value = base[rows]
            value.setflags(write=False)
            object.__setattr__(self, key, value)
            return value
        raise AttributeError(f"ImageSet has no attribute {key!r}")

    def __getstate__(self) -> dict:
        self.images, self.masks  # noqa: B018 — pixels travel with the set
        return {k: v for k, v in self.__dict__.items() if k not in {"_images", "_masks"}}

    @property
    def size(self) -> int:
        """Height (= width) of an image in pixels."""
        return self._shape[1]

    @property
    def channels(self) -> int:
        return self._shape[3]

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.__dict__["images"].shape if "images" in self.__dict__ else self.__dict__["_images"][0].shape

    @property
    def hash(self) -> str:
        """SHA-256 hex over images, masks, boxes and every table: the same content has the same hash, wherever it was prepared.
        The hash of a subset, a selection or a regrouping follows from its parent's and the change, without reading pixels."""
        if not self.digest:
            object.__setattr__(self, "digest", content_hash(self))
        return self.digest

    def subset(self, index: np.ndarray | Sequence[int] | slice) -> ImageSet:
        """The rows of `index` (row numbers, a mask of N booleans, or a slice), in that order. Pixels are copied when first read."""
        index = index if isinstance(index, slice) else np.asarray(index)
        rows = np.arange(len(self))[index] if isinstance(index, slice) or index.size else np.empty(0, int)
        if rows.size == 0:
            raise MstlError(f"{self.name}: a subset of no images was asked for; check the index or the selection")
        changes = {key: getattr(self, key)[rows] for key in ("labels", *_TEXT) if getattr(self, key) is not None}
        if self.extra is not None:
            changes["extra"] = self.extra.iloc[rows].reset_index(drop=True)
        if self.boxes is not None:
            where = pd.DataFrame({"image": rows, "new": np.arange(len(rows))})
            boxes = where.merge(self.boxes, on="image").drop(columns="image").rename(columns={"new": "image"})
            changes["boxes"] = boxes.sort_values("image", kind="stable", ignore_index=True)[self.boxes.columns.tolist()]
        return self._derive(f"subset {_digest(rows.astype('<i8'))}", rows=rows, **changes)

    def select(self, classes: Sequence[str]) -> ImageSet:
        """Only the images of `classes`, relabelled in the order given; in a binary task put the positive class last."""
        from .catalog import nearest

        if isinstance(classes, str):
            raise MstlError(f"{self.name}: select takes a list of classes, not the one word {classes!r}")
        for name in classes:
            if name not in self.classes:
                raise MstlError(
                    f"{self.name} has no class {name!r}; its classes are {', '.join(self.classes)}{nearest(name, self.classes)}"
                )
        if len(set(classes)) != len(list(classes)) or not len(list(classes)):
            raise MstlError(f"{self.name}: select needs at least one class, each named once, not {list(classes)}")
        order = np.full(len(self.classes), -1, np.int64)
        order[[self.classes.index(name) for name in classes]] = np.arange(len(classes))
        labels = order[self.labels]
        part = self.subset(np.flatnonzero(labels >= 0))
        return part._derive(f"select {list(classes)}", labels=labels[labels >= 0], classes=tuple(classes))

    def with_groups(self, groups: np.ndarray | Sequence[str]) -> ImageSet:
        """The same images with other groups, str (N,)."""
        groups = np.asarray(groups, dtype=str)
        if groups.shape != (len(self),):
            raise MstlError(f"{self.name}: {groups.shape} groups were given for {len(self)} images; give one a row")
        return self._derive(f"groups {_digest(groups)}", groups=groups)

    def table(self) -> pd.DataFrame:
        """One row an image: id, label, class, group, center, split (with view and case where the set has them)."""
        table = pd.DataFrame(
            {
                "id": self.ids,
                "label": self.labels,
                "class": np.array(self.classes)[self.labels],
                "group": self.groups,
                "center": self.centers,
                "split": self.splits,
            }
        )
        if self.views is not None:
            table["view"] = self.views
        if self.cases is not None:
            table["case"] = self.cases
        return table

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes the set into `folder` (replaced whole if it exists), aside first; the same bytes every time."""
        with writing(folder, self.name) as aside:
            for key in _LAZY:
                if getattr(self, key) is not None:
                    np.save(aside / f"{key}.npy", np.ascontiguousarray(getattr(self, key)), allow_pickle=False)
            write_tables(self, aside)
        return Path(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike, card: Card | None = None) -> ImageSet:
        """The set that `save` wrote, its pixels memory-mapped and read-only."""
        folder = Path(folder)
        try:
            head = json.loads((folder / "imageset.json").read_text(encoding="utf-8"))
            if head["format"] != FORMAT:
                raise MstlError(
                    f"{folder} was written by another version of mstl; delete it, and it will be prepared again"
                )
            table = pd.read_csv(folder / "table.csv", dtype=str, keep_default_na=False, encoding="utf-8")
            boxes = _read_boxes(folder / "boxes.csv") if head["boxes"] else None
            extra = {name: _typed(table[f"extra.{name}"], kind) for name, kind in head["extra"]}
            data = cls(
                name=head["name"],
                classes=tuple(head["classes"]),
                card=card or Card(**head["card"]),
                provenance=head["provenance"],
                images=np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False),
                masks=np.load(folder / "masks.npy", mmap_mode="r", allow_pickle=False) if head["masks"] else None,
                labels=table["label"].astype(np.int64).to_numpy(),
                boxes=boxes,
                extra=pd.DataFrame(extra) if extra else None,
                **{
                    key: table[column].to_numpy(dtype=str) if column in table else None
                    for key, column in _COLUMNS.items()
                },
            )
            object.__setattr__(data, "digest", head["hash"])
            return data
        except (OSError, KeyError, TypeError, ValueError) as problem:
            if isinstance(problem, MstlError):
                raise
            raise MstlError(
                f"{folder} is not a whole prepared set ({type(problem).__name__}: {problem}); "
                "delete it, and it will be prepared again"
            ) from None

    def _derive(self, what: str, rows: np.ndarray | None = None, **changes) -> ImageSet:
        # The hash of a derived set follows from its parent's hash and the change, without reading the pixels again.
        new = object.__new__(ImageSet)
        state = {**self.__dict__, **changes, "digest": hashlib.sha256(f"{self.hash} {what}".encode()).hexdigest()}
        if rows is not None:
            for key in _LAZY:
                if key in self.__dict__:
                    base, old = self.__dict__[key], None
                else:
                    base, old = self.__dict__[f"_{key}"]
                state.pop(key, None)
                state.pop(f"_{key}", None)
                if base is None:
                    state[key] = None
                else:
                    state[f"_{key}"] = (base, rows if old is None else old[rows])
        new.__dict__.update(state)
        return new


_COLUMNS = {"ids": "id", "groups": "group", "centers": "center", "splits": "split", "views": "view", "cases": "case"}


@contextmanager
def writing(folder: str | os.PathLike, name: str) -> Iterator[Path]:
    """A folder aside to write into; it becomes `folder` when the block ends well, and vanishes when it does not.

    A full disk becomes one sentence; whatever stood at `folder` before is untouched until the new one is whole.
    """
    folder = Path(folder)
    aside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        aside.chmod(0o755)
        yield aside
        _publish(aside, folder)
    except OSError as problem:
        sentence = storage_error(problem, name, folder.parent)
        if sentence is None:
            raise
        raise sentence from problem
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def storage_error(problem: OSError, name: str, folder: Path) -> MstlError | None:
    """`problem` as a sentence where it means that nothing can be written, else None."""
    import errno

    if problem.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return MstlError(
            f"{name}: the disk is full at {folder} ({os.strerror(problem.errno)}); nothing half-written was left there: "
            "free some space, or name another folder by root= or MSTL_HOME, and call again"
        )
    if problem.errno in {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST}:
        return MstlError(
            f"{name}: {folder} cannot be written to ({os.strerror(problem.errno)}); "
            "name another folder by root= or MSTL_HOME, and call again"
        )
    return None


def write_tables(data: ImageSet, folder: Path) -> None:
    """table.csv, boxes.csv and imageset.json of `data` into `folder`, which holds its images.npy already."""
    table = data.table()
    kinds: dict[str, str] = {}
    if data.extra is not None:
        for name in data.extra.columns:
            values, kind = _plain(data.extra[name])
            table[f"extra.{name}"], kinds[str(name)] = values, kind
    table.to_csv(folder / "table.csv", index=False, encoding="utf-8", lineterminator="\n")
    if data.boxes is not None:
        data.boxes.to_csv(folder / "boxes.csv", index=False, encoding="utf-8", lineterminator="\n")
    head = {
        "format": FORMAT,
        "name": data.name,
        "classes": list(data.classes),
        "images": list(data._shape),
        "hash": data.hash,
        "masks": data.masks is not None,
        "boxes": data.boxes is not None,
        "extra": list(kinds.items()),
        "provenance": data.provenance,
        "card": dataclasses.asdict(data.card),
    }
    (folder / "imageset.json").write_text(
        json.dumps(head, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )


def content_hash(data: ImageSet) -> str:
    """SHA-256 hex over the pixels and every table of `data`; names of files and folders do not enter."""
    total = hashlib.sha256()
    for key in _LAZY:
        pixels = getattr(data, key)
        total.update(f"{key} {None if pixels is None else pixels.shape}".encode())
        if pixels is not None:
            step = max(1, (1 << 24) // max(1, pixels[0].size))
            for start in range(0, len(pixels), step):
                total.update(np.ascontiguousarray(pixels[start : start + step]).data)
    tables = [data.table()]
    if data.extra is not None:
        tables.append(pd.DataFrame({name: _plain(data.extra[name])[0] for name in data.extra.columns}))
    if data.boxes is not None:
        tables.append(data.boxes)
    for table in tables:
        total.update(table.to_csv(index=False, lineterminator="\n").encode())
    total.update(json.dumps(list(data.classes)).encode())
    return total.hexdigest()


def _check(data: ImageSet) -> None:
    n, shape = len(data.labels), data._shape
    if n == 0:
        raise MstlError(f"{data.name} holds no image; check the folder or archive that it was prepared from")
    if (
        len(shape) != 4
        or shape[0] != n
        or shape[1] != shape[2]
        or shape[3] not in (1, 3)
        or data.images.dtype != np.uint8
    ):
        raise MstlError(
            f"{data.name}: images must be uint8 (N, size, size, 1 or 3) with N = {n} labels, not {data.images.dtype} {shape}"
        )
    for key in _TEXT:
        value = getattr(data, key)
        if value is not None and value.shape != (n,):
            raise MstlError(f"{data.name}: {key} must have one entry an image ({n}), not {value.shape}")
    if data.labels.min() < 0 or data.labels.max() >= len(data.classes):
        raise MstlError(
            f"{data.name}: labels must lie between 0 and {len(data.classes) - 1}, the positions of its classes"
        )
    if len(set(data.ids)) != n:
        seen = pd.Series(data.ids)
        raise MstlError(f"{data.name}: the id {seen[seen.duplicated()].iloc[0]!r} occurs twice; ids must be unique")
    if data.masks is not None and data.masks.shape != shape[:3]:
        raise MstlError(f"{data.name}: masks must be {shape[:3]}, not {data.masks.shape}")
    if data.boxes is not None and not set(BOXES) <= set(data.boxes.columns):
        raise MstlError(f"{data.name}: boxes need the columns {', '.join(BOXES)}")
    if data.extra is not None and len(data.extra) != n:
        raise MstlError(f"{data.name}: extra must have one row an image ({n}), not {len(data.extra)}")


def _publish(aside: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(aside, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    os.replace(folder, old / "set")  # a folder cannot be renamed onto a full one; maps that are open stay valid
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def _read_boxes(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    for column in BOXES:
        if column != "class":
            table[column] = _typed(table[column], "int" if column == "image" else "float")
    return table


def _plain(column: pd.Series) -> tuple[pd.Series, str]:
    if pd.api.types.is_bool_dtype(column):
        return column.map({True: "true", False: "false"}), "bool"
    if pd.api.types.is_integer_dtype(column):
        return column, "int"
    if pd.api.types.is_float_dtype(column):
        return column, "float"
    return column.fillna("").astype(str), "str"


def _typed(column: pd.Series, kind: str) -> np.ndarray:
    if kind == "bool":
        return (column == "true").to_numpy()
    if kind == "int":
        return column.astype(np.int64).to_numpy()
    if kind == "float":
        return np.array([float(v) if v else np.nan for v in column])
    return column.to_numpy(dtype=object)


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256("\n".join(map(str, values.tolist())).encode()).hexdigest()
