"""MedMNIST .npz files of any size: {train,val,test}_images uint8 (N, h, w[, 3]) and _labels (N, 1).

A local file is taken as it is, with its hash recorded. Where there is none, the `medmnist` package downloads the file
and checks its MD5; that is the only download this project ever makes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from .. import paths
from ..errors import MstlError
from . import changed_options, checked_options, locked, opened, prepared_folder
from .archives import provenance
from .catalog import Card, card, catalog
from .imageset import ImageSet
from .pixels import Picture, place
from .prepare import Job, Row, prepare

SIZES = (28, 64, 128, 224)
PARTS = ("train", "val", "test")
CHUNK = 256  # images a job


def load(entry: Card, size: int, root: Path, *, workers: int | None, progress: bool, options: dict) -> ImageSet:
    """The set of a MedMNIST card: from `raw/` or MSTL_DATA in the smallest published size that is at least `size` (else the
    largest that is there), or downloaded in that size."""
    places = paths.archive_folders(root)
    found = _local(entry, size, places)
    folder = prepared_folder(root, entry.name, size, changed_options(entry.options, options))
    same = {} if found is None else {"file": found.name, "bytes": found.stat().st_size}
    data = opened(folder, entry, same)
    if data is not None:
        return data
    with locked(folder):
        if found is None:
            found = _download(entry, size, places)
        return _prepared(entry, found, folder, size, workers=workers, progress=progress, options=options)


def load_file(path: Path, size: int, root: Path, *, workers: int | None, progress: bool, options: dict) -> ImageSet:
    """The set of one .npz that the user names; its card is the catalog's where the file's name begins with a set's name."""
    stem = path.stem.split("_")[0].lower()
    known = catalog().get(stem)
    entry = card(stem) if known is not None and known.reader == "npz" else None
    defaults = {"fit": "letterbox"}
    options = checked_options(path.name, entry.options if entry else defaults, options)
    if entry is None:
        labels, channels = _shape_of(path)
        entry = Card(
            name=path.stem,
            title=f"{path.name}, an own file in MedMNIST's layout",
            modality="unknown",
            role="target",
            task="classification",
            classes=tuple(str(i) for i in range(labels)),
            group_rule="every image its own group",
            licence="unknown",
            doi="",
            url="",
            archive=path.stem,
            citation="",
            reader="npz",
            channels=channels,
            options=defaults,
        )
    key = {"file": hashlib.sha256(str(path.resolve()).encode()).hexdigest(), **changed_options(entry.options, options)}
    folder = prepared_folder(root, entry.name, size, key)
    data = opened(folder, entry, {"file": path.name, "bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns})
    if data is not None:
        return data
    with locked(folder):
        return _prepared(
            entry,
            path,
            folder,
            size,
            workers=workers,
            progress=progress,
            options=options,
            modified=path.stat().st_mtime_ns,
        )


def _local(entry: Card, size: int, places: list[Path]) -> Path | None:
    there = {
        edge: path for place_ in reversed(places) for edge in SIZES if (path := place_ / _file(entry, edge)).is_file()
    }
    large = [edge for edge in there if edge >= size]
    return there[min(large) if large else max(there)] if there else None


def _file(entry: Card, edge: int) -> str:
    return f"{entry.archive}.npz" if edge == 28 else f"{entry.archive}_{edge}.npz"


def _download(entry: Card, size: int, places: list[Path]) -> Path:
    import medmnist

    edge = min((edge for edge in SIZES if edge >= size), default=SIZES[-1])
    path = places[0] / _file(entry, edge)
    info = medmnist.INFO[entry.archive]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".download-", dir=path.parent
        ) as aside:  # a broken download leaves nothing behind
            getattr(medmnist, info["python_class"])(split="test", download=True, root=aside, size=edge)
            os.replace(Path(aside) / path.name, path)
    except RuntimeError as problem:  # medmnist turns every failure of a download into this
        cause = problem.__context__ or problem
        raise MstlError(
            f"{entry.name}: {path.name} is in none of {', '.join(map(str, places))} and could not be downloaded "
            f"({type(cause).__name__}: {cause}); connect to the network, or fetch it from "
            f"{info['url' if edge == 28 else f'url_{edge}']} and put it into {places[0]}"
        ) from None
    return path


def _prepared(
    entry: Card,
    path: Path,
    folder: Path,
    size: int,
    *,
    workers: int | None,
    progress: bool,
    options: dict,
    modified: int | None = None,
) -> ImageSet:
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent) as scratch:
        jobs = _jobs(entry, path, Path(scratch), options["fit"])
        with open(path, "rb") as file:
            source = provenance(path, hashlib.file_digest(file, "sha256").hexdigest(), entry) | {"options": options}
        if modified is not None:
            source["modified"] = modified
        prepare(entry, jobs, folder, size, provenance=source, workers=workers, progress=progress)
    return ImageSet.open(folder, card=entry)


def _jobs(entry: Card, path: Path, scratch: Path, fit: str) -> list[Job]:
    names = entry.layout.get("labels", entry.classes)
    jobs = []
    for part in PARTS:
        images, labels = _array(path, f"{part}_images", scratch), _labels(path, part, scratch)
        _check(path, part, images, labels, len(names))
        for start in range(0, len(images), CHUNK):
            rows = range(start, min(start + CHUNK, len(images)))
            ids = [f"{part}/{i:06d}" for i in rows]
            jobs.append(
                Job(
                    tuple(Row(name, names[labels[i]], name, split=part) for i, name in zip(rows, ids)),
                    _chunk(images, rows, fit),
                )
            )
    return jobs


def _chunk(images: np.ndarray, rows: range, fit: str):
    def make(size: int, channels: int) -> list[Picture]:
        mode = "L" if channels == 1 else "RGB"
        return [
            Picture(place(Image.fromarray(np.ascontiguousarray(images[i])).convert(mode), size, fit)[0]) for i in rows
        ]

    return make


def _check(path: Path, part: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        kind = (
            "a three-dimensional set of MedMNIST, which is not supported"
            if images.ndim >= 4
            else "no MedMNIST file of images"
        )
        raise MstlError(
            f"{path}: {part}_images is {images.dtype} {images.shape}, not uint8 (N, h, w) or (N, h, w, 3): {kind}"
        )
    if len(images) != len(labels):
        raise MstlError(
            f"{path}: {part} has {len(images)} images and {len(labels)} labels; the file is damaged: download it again"
        )
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise MstlError(
            f"{path}: {part}_labels holds {labels.max()}, but there are only {classes} classes; "
            "is it the file of another set?"
        )


def _labels(path: Path, part: str, scratch: Path) -> np.ndarray:
    labels = np.asarray(_array(path, f"{part}_labels", scratch))
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise MstlError(
            f"{path}: {part}_labels is {labels.shape}: several labels an image (as in ChestMNIST) are not supported; "
            "choose a set of one label"
        )
    if labels.dtype.kind not in "iu":
        raise MstlError(f"{path}: {part}_labels is {labels.dtype}, not whole numbers")
    return labels.astype(np.int64)


def _array(path: Path, key: str, scratch: Path) -> np.ndarray:
    """One array of the .npz, unfolded into `scratch` and memory-mapped, since 224-pixel sets do not fit into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = f"{key}.npy"
            if member not in archive.namelist():
                raise MstlError(
                    f"{path}: it has no array {key}; a MedMNIST file holds {{train,val,test}}_images and _labels"
                )
            target = scratch / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
            if not target.exists():
                with archive.open(member) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
        return np.load(target, mmap_mode="r", allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, EOFError) as problem:
        raise MstlError(f"{path}: this .npz is truncated or damaged ({problem}); download it again") from None
    except ValueError as problem:
        if isinstance(problem, MstlError):
            raise
        raise MstlError(
            f"{path}: the array {key} is refused ({problem}); only plain arrays of numbers are read"
        ) from None


def _shape_of(path: Path) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as scratch:
        labels = [_labels(path, part, Path(scratch)) for part in PARTS]
        images = _array(path, "train_images", Path(scratch))
        return int(max(part.max(initial=0) for part in labels)) + 1, 3 if images.ndim == 4 and images.shape[
            -1
        ] == 3 else 1
