"""Data sets: `load` a published archive, an own folder, a MedMNIST file or a phantom as one `ImageSet`."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import paths
from ..errors import MstlError
from . import catalog
from .catalog import Card, card, nearest
from .imageset import ImageSet, storage_error

__all__ = ["Card", "ImageSet", "card", "load", "prepared_folder"]

FITS = ("letterbox", "squash")


def load(
    name: str | os.PathLike,
    size: int = 96,
    root: str | os.PathLike | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
    **options,
) -> ImageSet:
    """The data set `name` as images of `size` × `size` pixels, prepared on the first call and memory-mapped ever after.

    name      a name of the catalog, the path of a folder with manifest.csv, or the path of a MedMNIST .npz
    size      side in pixels, 8 to 1024
    root      folder that holds `raw/` and `prepared/`; default: data/ of the checkout or of $MSTL_HOME
    workers   threads that decode; default: the cores of this process. The bytes do not depend on it
    options   what the card allows (`card(name).options`), e.g. crops_per_frame=60, fit="squash", or n, seed for phantoms

    Raises MstlError (one sentence) where the archive is not found, is damaged or has another layout, for an unknown option,
    and for a full disk; a cache that was there before stays as it was.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 1024:
        raise MstlError(f"size must be a whole number of pixels from 8 to 1024, not {size!r}")
    root = Path(root) if root is not None else paths.home("data")
    try:
        return _load(name, size, root, workers=workers, progress=progress, options=options)
    except OSError as problem:
        sentence = storage_error(problem, str(name), root / "prepared")
        if sentence is None:
            raise
        raise sentence from problem


def prepared_folder(root: Path, name: str, size: int, changed: dict) -> Path:
    """Where the prepared set lies: `<root>/prepared/<name>-<size>`, with a hash of the options that differ from the defaults."""
    tail = "" if not changed else "-" + hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]
    return root / "prepared" / f"{name}-{size}{tail}"


def checked_options(name: str, allowed: dict, given: dict) -> dict:
    """`allowed` (the defaults) overwritten by `given`; an unknown option or a wrong type is an error that names the nearest."""
    result = dict(allowed)
    for key, value in given.items():
        if key not in allowed:
            choice = f"its options are {', '.join(allowed)}" if allowed else "it has no options"
            raise MstlError(f"{name} has no option {key!r}{nearest(key, allowed)}; {choice}")
        kind = type(allowed[key])
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is tuple and isinstance(value, list):
            value = tuple(value)
        if type(value) is not kind:
            raise MstlError(
                f"{name}: the option {key} must be of type {kind.__name__} (default {allowed[key]!r}), not {value!r}"
            )
        if key == "fit" and value not in FITS:
            raise MstlError(f"{name}: fit must be one of {', '.join(FITS)}, not {value!r}{nearest(value, FITS)}")
        if kind in (int, float) and (value != value or value < 0):
            raise MstlError(f"{name}: the option {key} must be a number from 0 up, not {value!r}")
        result[key] = value
    return result


def changed_options(allowed: dict, options: dict) -> dict:
    return {key: value for key, value in options.items() if value != allowed[key]}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other process prepares `folder`; the lock is a file beside it, and goes with the process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "a+b") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            file.seek(0)
            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
                except OSError:  # gives up after ten seconds; we do not
                    continue
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        for pattern in ("part", "old"):  # what a killed process left; while the lock is held nobody writes there
            for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.{pattern}"):
                shutil.rmtree(left, ignore_errors=True)
        yield


def opened(folder: Path, entry: Card, same: dict) -> ImageSet | None:
    """The prepared set in `folder` where it is whole, of this card, and its provenance has the values of `same`; else None."""
    if not (folder / "imageset.json").is_file():
        return None
    try:
        data = ImageSet.open(folder, card=entry)
        head = json.loads((folder / "imageset.json").read_text(encoding="utf-8"))
    except MstlError:
        return None  # an older format or a damaged folder: it is prepared again
    stored, now = head["card"], json.loads(json.dumps(dataclasses.asdict(entry)))
    changed = any(stored.get(key) != now[key] for key in ("classes", "reader", "layout", "channels", "name"))
    return None if changed or any(data.provenance.get(key) != value for key, value in same.items()) else data


def _load(
    name: str | os.PathLike, size: int, root: Path, *, workers: int | None, progress: bool, options: dict
) -> ImageSet:
    path = _own_path(name)
    if path is not None:
        from . import folder, medmnist_files

        read = folder.load if path.is_dir() else medmnist_files.load_file
        return read(path, size, root, workers=workers, progress=progress, options=options)
    entry = card(str(name))
    options = checked_options(entry.name, entry.options, options)
    if entry.reader == "npz":
        from . import medmnist_files

        return medmnist_files.load(entry, size, root, workers=workers, progress=progress, options=options)
    read = _phantom if entry.reader == "phantom" else _archive
    return read(entry, size, root, workers=workers, progress=progress, options=options)


def _own_path(name: str | os.PathLike) -> Path | None:
    path = Path(name).expanduser()
    if isinstance(name, str) and name in catalog.catalog():
        return None
    if path.suffix.lower() == ".npz" or path.is_dir() or isinstance(name, os.PathLike) or os.sep in str(name):
        if not path.exists():
            raise MstlError(
                f"there is no folder or file {path}; name a folder with manifest.csv, a MedMNIST .npz, or a set of the catalog"
            )
        if path.is_file() and path.suffix.lower() != ".npz":
            raise MstlError(f"{path} is a file, but an own data set is a folder with manifest.csv (or a MedMNIST .npz)")
        return path
    return None


def _archive(entry: Card, size: int, root: Path, *, workers: int | None, progress: bool, options: dict) -> ImageSet:
    from . import archives
    from .prepare import prepare

    places = paths.archive_folders(root)
    found = archives.find(entry, places)
    folder = prepared_folder(root, entry.name, size, changed_options(entry.options, options))
    same = {} if found is None else {"file": found.name, "bytes": archives.weight(found)}
    data = opened(folder, entry, same)
    if data is not None:
        return data
    if found is None:
        raise MstlError(
            f"{entry.name}: neither {entry.archive}{{{','.join(archives.SUFFIXES)}}} nor a folder of that name was found in "
            f"{', '.join(map(str, places))}; download it from {entry.url} (licence: {entry.licence}) "
            f"and put it into {places[0]}, or name its folder in MSTL_DATA"
        )
    with locked(folder):
        data = opened(folder, entry, same)  # another process may have prepared it meanwhile
        if data is None:
            with archives.Archive(found, scratch=folder.parent) as archive:
                plan = archives.READERS[entry.reader](archive, entry, size, **options)
                prepare(
                    entry,
                    plan.jobs,
                    folder,
                    size,
                    with_masks=plan.masks,
                    with_boxes=plan.boxes,
                    workers=workers,
                    progress=progress,
                    provenance=archives.provenance(found, archive.sha256(), entry) | {"options": options} | plan.found,
                )
            data = ImageSet.open(folder, card=entry)
    return data


def _phantom(entry: Card, size: int, root: Path, *, workers: int | None, progress: bool, options: dict) -> ImageSet:
    folder = prepared_folder(root, entry.name, size, changed_options(entry.options, options))
    package = Path(__file__).with_name("phantoms")
    code = b"".join((package / f"{name}.py").read_bytes() for name in ("__init__", "drawing", entry.layout["kind"]))
    source = {"code": hashlib.sha256(code).hexdigest(), "options": options}  # another generator makes other images

    def stored() -> ImageSet | None:
        try:
            data = ImageSet.open(folder) if (folder / "imageset.json").is_file() else None
        except MstlError:  # an older format or a damaged folder: it is made again
            return None
        return data if data is not None and data.provenance == source else None

    data = stored()
    if data is None:
        from . import phantoms

        with locked(folder):
            data = stored()
            if data is None:
                made = phantoms.make(entry.layout["kind"], size=size, workers=workers, progress=progress, **options)
                named = dataclasses.replace(entry, classes=made.classes, channels=made.channels, origin=made.card.origin)
                dataclasses.replace(made, name=entry.name, card=named, provenance=source).save(folder)
                data = ImageSet.open(folder)
    return data
