"""Published archives: one way to open them, one small reader for each *layout*.

An archive is a .zip, a .tar (plain or compressed) or an unpacked folder. Members are read into memory and never written
out; a name that climbs out of its folder refuses the whole archive.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..errors import MstlError
from .breast import Breast
from .catalog import Card
from .pixels import DICOM, Picture, decode, extent, place, place_mask
from .prepare import Job, Row
from .windows import Window, black_share, off_finding, on_finding

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm", ".ppm", ".gif", ".webp", *DICOM}
LARGEST = 2**30  # bytes of one member; more is refused before it is unpacked


# --- finding and opening ---------------------------------------------------------------------------------------------


def find(card: Card, folders: list[Path]) -> Path | None:
    """The first archive or unpacked folder of `card` in `folders`, or None."""
    for folder in folders:
        for stem in (card.archive, *card.also):
            for suffix in (*SUFFIXES, ""):
                path = folder / f"{stem}{suffix}"
                if path.is_file() if suffix else path.is_dir():
                    return path
    return None


def weight(path: Path) -> int:
    """Bytes of the archive, or of all files of a folder: the cheap sign that it has been exchanged."""
    if path.is_file():
        return path.stat().st_size
    files = (Path(where) / name for where, _, names in os.walk(path) for name in names)
    return sum(file.stat().st_size for file in files if file.is_file())


class Archive:
    """Members of an archive by name (`names`, sorted; folders, hidden files and macOS forks left out), read whole by `read`
    from any thread. Use as a context manager. A compressed tar is unfolded into a nameless file in the folder `scratch`."""

    def __init__(self, path: Path, scratch: Path | None = None):
        self.path, self._scratch = Path(path), scratch
        self._close: list[Callable[[], None]] = []
        try:
            members = self._open()
        except (
            zipfile.BadZipFile,
            tarfile.TarError,
            EOFError,
            zlib.error,
            lzma.LZMAError,
            gzip.BadGzipFile,
        ) as problem:
            self.close()
            raise MstlError(
                f"{self.path}: this archive is truncated or damaged ({problem}); download it again"
            ) from None
        except BaseException:
            self.close()
            raise
        for name in members:
            refuse_climbing(name, self.path)
        self.names = sorted(name for name in members if not _hidden(name))
        self._members = members

    def _open(self) -> dict[str, object]:
        if self.path.is_dir():
            self._read = self._from_folder
            files = [Path(where) / name for where, _, names in os.walk(self.path) for name in names]
            return {file.relative_to(self.path).as_posix(): file for file in files if file.is_file()}
        if self.path.suffix.lower() == ".zip":
            self._zip = zipfile.ZipFile(self.path)
            self._close.append(self._zip.close)
            self._read = self._from_zip
            return {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        return self._open_tar()

    def _open_tar(self) -> dict[str, object]:
        # A compressed tar has no random access: it is unfolded once into a nameless temporary file.
        kinds = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        unfold = kinds.get(self.path.suffix.lower())
        if unfold is None:
            self._file = open(self.path, "rb")
            self._close.append(self._file.close)
        else:
            self._file = tempfile.TemporaryFile(dir=self._scratch)
            self._close.append(self._file.close)
            with unfold(self.path, "rb") as packed:
                shutil.copyfileobj(packed, self._file, 1 << 20)
            self._file.seek(0)
        self._lock = threading.Lock()
        self._read = self._from_tar
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            return {info.name.removeprefix("./"): info for info in tar if info.isreg()}

    def read(self, name: str) -> bytes:
        """The bytes of a member. Raises MstlError, naming it, where it is damaged or larger than 1 GiB."""
        try:
            return self._read(name)
        except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, NotImplementedError, OSError) as problem:
            raise MstlError(
                f"{name} in {self.path}: this entry cannot be read ({problem}); the archive is truncated, damaged or encrypted: "
                "download it again"
            ) from None

    def _from_folder(self, name: str) -> bytes:
        self._refuse_large(name, self._members[name].stat().st_size)
        return self._members[name].read_bytes()

    def _from_zip(self, name: str) -> bytes:
        self._refuse_large(name, self._members[name].file_size)
        return self._zip.read(self._members[name])

    def _from_tar(self, name: str) -> bytes:
        info = self._members[name]
        self._refuse_large(name, info.size)
        with self._lock:
            self._file.seek(info.offset_data)
            data = self._file.read(info.size)
        if len(data) != info.size:
            raise EOFError("the file ends inside it")
        return data

    def _refuse_large(self, name: str, size: int) -> None:
        if size > LARGEST:
            raise MstlError(
                f"{name} in {self.path}: refused, because it holds {size / 2**30:.1f} GiB; "
                "no image of these sets is that large"
            )

    def sha256(self) -> str:
        """SHA-256 of the file; of a folder, over the names and contents of its files."""
        total = hashlib.sha256()
        if self.path.is_file():
            with open(self.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        for name in self.names:
            total.update(f"{name}\0{hashlib.sha256(self.read(name)).hexdigest()}\n".encode())
        return total.hexdigest()

    def close(self) -> None:
        while self._close:
            self._close.pop()()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def provenance(path: Path, sha256: str, card: Card) -> dict:
    """Which file a set comes from: its name, bytes, SHA-256, and how it stands to the catalog's checksums."""
    published, reduced = card.checksum.get(path.name, ""), card.known.get(path.name, "")
    if published == f"sha256:{sha256}" or (
        published.startswith("md5:") and path.is_file() and published == f"md5:{_md5(path)}"
    ):
        note = "the published file: its checksum is the catalog's"
    elif f"sha256:{sha256}" in card.known.values():
        note = "a reduced copy that the catalog knows"
    elif path.is_dir():
        note = "an unpacked folder: its contents are hashed, and no published checksum can be compared"
    elif published:
        note = "another copy than the published one: its checksum differs from the catalog's"
    else:
        note = "not compared: the catalog has no published checksum" + (
            ", and it is not the reduced copy" if reduced else ""
        )
    return {"file": path.name, "bytes": weight(path), "sha256": sha256, "note": note}


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def refuse_climbing(name: str, path: Path) -> None:
    """MstlError where `name`, an entry of `path`, is absolute or has a part `..` (by the rules of any system)."""
    parts = re.split(r"[\\/]", name)
    if ".." in parts or name.startswith(("/", "\\")) or re.match(r"^[A-Za-z]:", name):
        raise MstlError(
            f"{path}: refused, because its entry {name!r} climbs out of the folder; "
            "get the archive from its publisher, and list only files inside the folder"
        )


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


# --- layouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a reader found: jobs to do, whether they bring masks and boxes, and what is worth noting of what it left out."""

    jobs: list[Job]
    masks: bool = False
    boxes: bool = False
    found: dict = field(default_factory=dict)


def class_folders(archive: Archive, card: Card, size: int, *, fit: str = "letterbox") -> Plan:
    """`[SPLIT/]CLASS/name.png`, with lesion masks beside the images where the card's layout names them.

    Masks (`layout.masks`: what a mask's stem ends with) are joined to one; each gives one box of the image's class.
    `layout.group` and `layout.extra` are regular expressions on the stem; without one, every image is its own group.
    """
    layout = card.layout
    folders = {
        key.lower(): value for key, value in layout.get("folders", {name: name for name in card.classes}).items()
    }
    splits = layout.get("splits", {})
    mask_end = re.compile(layout["masks"]) if "masks" in layout else None
    images: dict[tuple[str, ...], str] = {}
    masks: dict[tuple[str, ...], list[str]] = {}
    for name in _pictures(archive):
        parts = PurePosixPath(name).parts
        tail = parts[-3 if splits else -2 :]
        if len(tail) < 2 or tail[-2].lower() not in folders or (splits and (len(tail) < 3 or tail[0] not in splits)):
            continue
        stem = PurePosixPath(name).stem
        key = (*tail[:-1], stem)
        mask = mask_end.search(stem) if mask_end else None
        if mask:
            masks.setdefault((*tail[:-1], stem[: mask.start()]), []).append(name)
        elif key not in images or len(parts) < len(
            PurePosixPath(images[key]).parts
        ):  # some publish a folder twice, nested
            images[key] = name
    if not images:
        raise MstlError(
            f"{archive.path}: no image was found in folders named {', '.join(layout.get('folders', card.classes))}"
            f"{' under ' + ', '.join(splits) if splits else ''}; compare its layout with the published one at {card.url}"
        )
    jobs = []
    for key, name in images.items():
        stem, label = key[-1], folders[key[-2].lower()]
        row = Row(
            id="/".join(key),
            label=label,
            group=_matched(layout.get("group"), stem, "/".join(key)),
            split=splits.get(key[0], "") if splits else "",
            extra={column: _matched(pattern, stem, "") for column, pattern in layout.get("extra", {}).items()},
        )
        jobs.append(Job((row,), _whole(archive, name, masks.get(key, []), label, fit)))
    return Plan(jobs, masks=mask_end is not None, boxes=mask_end is not None)


def _whole(archive: Archive, name: str, masks: list[str], label: str, fit: str) -> Callable[[int, int], list[Picture]]:
    def make(size: int, channels: int) -> list[Picture]:
        image = decode(archive.read(name), name, channels, smallest=None if masks else 2 * size)
        pixels, where = place(image, size, fit)
        if not masks:
            return [Picture(pixels)]
        union, boxes = np.zeros((image.height, image.width), bool), []
        for mask_name in masks:
            mask = decode(archive.read(mask_name), mask_name)
            if mask.size != image.size:
                mask = mask.resize(image.size, Image.Resampling.NEAREST)
            lesion = np.asarray(mask) >= 128
            union |= lesion
            box = extent(lesion)
            if box:
                boxes.append(where.box(label, *box))
        return [Picture(pixels, place_mask(union, size, fit), tuple(box for box in boxes if box))]

    return make


def mias(archive: Archive, card: Card, size: int, *, context: float = 1.5, smallest: int = 96) -> Plan:
    """mdbNNN.pgm with Info.txt: `layout.task` is "whole", "tissue" or "regions".

    Coordinates of Info.txt are pixels of the 1024 × 1024 original whatever the size of the files, y counted from the bottom.
    The group is the woman (films 1 and 2, 3 and 4, …); views are her breasts, "right" (odd) and "left" (even).
    For regions see `_regions`; `context` and `smallest` set the side of a crop.
    """
    films, findings = _mias_table(archive)
    members = {PurePosixPath(name).stem.lower(): name for name in _pictures(archive)}
    missing = [film for film in films if film not in members]
    if missing:
        raise MstlError(
            f"{archive.path}: the film {missing[0]} stands in Info.txt but its image is not in the archive "
            f"({len(missing)} missing); download it again"
        )
    if card.layout["task"] == "regions":
        return Plan(_regions(archive, members, films, findings, context, smallest))
    tissue = {"F": "fatty", "G": "glandular", "D": "dense"}
    jobs = []
    for film, kind in films.items():
        own = [f for f in findings if f["film"] == film]
        whole = card.layout["task"] == "whole"
        label = ("abnormal" if own else "normal") if whole else tissue[kind]
        extra = {
            "tissue": tissue[kind],
            "finding": "+".join(sorted({f["finding"] for f in own})),
            "severity": "".join(sorted({f["severity"] for f in own})),
        }
        row = Row(film, label, _woman(film), view=_side(film), case=_woman(film), extra=extra)
        jobs.append(Job((row,), _film(archive, members[film], [f for f in own if f["radius"]] if whole else [])))
    return Plan(jobs, boxes=card.layout["task"] == "whole")


def _film(archive: Archive, name: str, findings: list[dict]) -> Callable[[int, int], list[Picture]]:
    def make(size: int, channels: int) -> list[Picture]:
        image = decode(archive.read(name), name, channels)
        pixels, where = place(image, size, "letterbox")
        unit = image.width / 1024
        boxes = [
            where.box(
                f["finding"],
                (f["x"] - f["radius"]) * unit,
                (f["y"] - f["radius"]) * unit,
                (f["x"] + f["radius"]) * unit,
                (f["y"] + f["radius"]) * unit,
            )
            for f in findings
        ]
        return [Picture(pixels, boxes=tuple(box for box in boxes if box))]

    return make


def _mias_table(archive: Archive) -> tuple[dict[str, str], list[dict]]:
    """Films (name -> tissue letter) and findings (film, finding, severity, x, y from the top, radius; 0 where not located)."""
    notes = [name for name in archive.names if PurePosixPath(name).name.lower() == "info.txt"]
    if not notes:
        raise MstlError(
            f"{archive.path}: Info.txt is missing, without which the films have no labels; download the archive again"
        )
    line = re.compile(r"^(mdb\d{3})\s+([FGD])\s+([A-Z]{4})(?:\s+([BM]))?(?:\s+(\d+)\s+(\d+)\s+(\d+))?", re.MULTILINE)
    films, findings = {}, []
    for film, tissue, finding, severity, x, y, radius in line.findall(archive.read(notes[0]).decode("latin-1")):
        films[film] = tissue
        if finding != "NORM":
            findings.append(
                {
                    "film": film,
                    "tissue": tissue,
                    "finding": finding,
                    "severity": severity,
                    "x": int(x or 0),
                    "y": 1024 - int(y) if y else 0,
                    "radius": int(radius or 0),
                }
            )
    if not films:
        raise MstlError(
            f"{archive.path}: Info.txt holds no line of the form 'mdb001 G CIRC B 535 425 197'; download the archive again"
        )
    return films, findings


def _woman(film: str) -> str:
    return f"woman{(int(film[3:]) + 1) // 2:03d}"


def _side(film: str) -> str:
    return "right" if int(film[3:]) % 2 else "left"


def _regions(
    archive: Archive,
    members: dict[str, str],
    films: dict[str, str],
    findings: list[dict],
    context: float,
    smallest: int,
) -> list[Job]:
    """Crops of located findings, and as many of normal tissue from women whose two films are both normal.

    Side of a lesion's crop: `context` × its diameter, at least `smallest` (pixels of the 1024 original), moved inside the film
    and, as far as the finding stays whole, off the black beside the breast. Each has a normal partner of the same side: the
    films of the wholly normal women are dealt out in a fixed shuffled order, and in the film a place is drawn whose share
    of breast comes within 0.05 of the lesion crop's (of 0.5 where that is less), away from the pectoral corner (see
    breast.py) and from other crops of that film. So neither size, sharpness nor black background tells the classes apart;
    brightness does in part, as in the clinic. `extra` holds film, tissue, finding, severity, radius (of the partner for a
    normal crop), and of the crop x, y, side (pixels of the 1024 original), breast_share and mean (grey level, 0 to 255).
    """
    located = [f for f in findings if f["radius"]]
    ill = {_woman(f["film"]) for f in findings}
    healthy = sorted(film for film in films if _woman(film) not in ill)
    if not located or not healthy:
        raise MstlError(
            f"{archive.path}: Info.txt needs at least one finding with coordinates and one woman with two normal films"
        )
    shuffled = [healthy[i] for i in np.random.default_rng(1024).permutation(len(healthy))]
    by_film: dict[str, list[dict]] = {}
    partners: dict[str, list[dict]] = {}
    for number, finding in enumerate(located):
        by_film.setdefault(finding["film"], []).append(finding)
        partners.setdefault(shuffled[number % len(shuffled)], []).append(finding)

    outlines: dict[str, Breast] = {}  # a lesion's film is asked for twice

    def breast_on(film: str, image: Image.Image | None = None) -> Breast:
        if film not in outlines:
            outlines[film] = Breast(image or decode(archive.read(members[film]), members[film]))
        return outlines[film]

    def window(breast: Breast, finding: dict) -> tuple[int, int, int]:
        unit = breast.width / 1024
        side = round(max(context * 2 * finding["radius"], smallest) * unit)
        return breast.window(finding["x"] * unit, finding["y"] * unit, finding["radius"] * unit, side)

    def picture(image: Image.Image, breast: Breast, at: tuple[int, int, int], size: int) -> Picture:
        left, top, side = at
        pixels, _ = place(image.crop((left, top, left + side, top + side)), size, "letterbox")
        unit = 1024 / image.width
        return Picture(
            pixels,
            extra={
                "x": left * unit,
                "y": top * unit,
                "side": side * unit,
                "breast_share": round(breast.share(*at), 4),
                "mean": round(float(pixels.mean()), 4),
            },
        )

    def lesions(film: str, found: list[dict]) -> Callable[[int, int], list[Picture]]:
        def make(size: int, channels: int) -> list[Picture]:
            image = decode(archive.read(members[film]), members[film], channels)
            breast = breast_on(film, image)
            return [picture(image, breast, window(breast, f), size) for f in found]

        return make

    def normals(film: str, found: list[dict]) -> Callable[[int, int], list[Picture]]:
        def make(size: int, channels: int) -> list[Picture]:
            image = decode(archive.read(members[film]), members[film], channels)
            breast, taken = breast_on(film, image), []
            rng = np.random.default_rng(int(film[3:]))
            for partner in found:
                other = breast_on(partner["film"])
                target = window(other, partner)
                side = min(round(target[2] * image.width / other.width), image.width, image.height)
                taken.append(breast.draw(side, max(0.5, other.share(*target)), taken, rng))
            return [picture(image, breast, at, size) for at in taken]

        return make

    def rows(film: str, found: list[dict], label: str) -> tuple[Row, ...]:
        return tuple(
            Row(
                f"{film}/{label}{i}",
                label,
                _woman(film),
                view=_side(film),
                extra={
                    "film": film,
                    "tissue": films[film],
                    "finding": f["finding"] if label == "lesion" else "",
                    "severity": f["severity"] if label == "lesion" else "",
                    "radius": f["radius"],
                },
            )
            for i, f in enumerate(found, 1)
        )

    return [
        *(Job(rows(film, found, "lesion"), lesions(film, found)) for film, found in by_film.items()),
        *(Job(rows(film, found, "normal"), normals(film, found)) for film, found in partners.items()),
    ]


def frames(archive: Archive, card: Card, size: int, *, crops_per_frame: int = 60) -> Plan:
    """`CLASS/…name.jpg`, large frames cut into crops of `size` × `size` pixels at native resolution.

    The lowest `layout.bottom` pixels (a scale bar) are cut away; the rest is a grid of crops that do not overlap, of which
    `crops_per_frame` (0: all) are taken in an order fixed by the frame's name, so that more crops contain the fewer.
    `layout.name` finds well, position and time in the stem; the group is class + well + position.
    """
    pattern, classes = re.compile(card.layout["name"]), set(card.classes)
    jobs = []
    for name in _pictures(archive):
        path = PurePosixPath(name)
        line = path.parent.name
        if line not in classes:
            continue
        found = pattern.search(path.stem)
        if not found:
            raise MstlError(
                f"{name} in {archive.path}: its name does not end like _C6_1_04d02h00m (well, position, time); "
                "rename it as published, or take it out"
            )
        well, position, time = found["well"], found["position"], found["time"]
        width, height = _dimensions(archive, name)
        across, down = width // size, (height - card.layout["bottom"]) // size
        if across < 1 or down < 1:
            raise MstlError(
                f"{name} in {archive.path}: a frame of {width} × {height} pixels has no room for a crop of {size}; "
                "ask for a smaller size"
            )
        seed = int.from_bytes(hashlib.sha256(path.stem.encode()).digest()[:8], "big")
        cells = np.random.default_rng(seed).permutation(across * down)[: crops_per_frame or None]
        places = [(int(c) // across, int(c) % across) for c in sorted(cells)]
        extra = {
            "frame": f"{line}/{path.stem}",
            "well": well,
            "position": int(position),
            "time": time,
            "hours": _hours(time),
        }
        jobs.append(
            Job(
                tuple(
                    Row(
                        f"{line}/{path.stem}/r{row:02d}c{column:02d}",
                        line,
                        f"{line}_{well}_{position}",
                        extra={**extra, "row": row, "column": column},
                    )
                    for row, column in places
                ),
                _crops(archive, name, places),
            )
        )
    if not jobs:
        raise MstlError(
            f"{archive.path}: no frame was found in folders named after the cell lines ({card.classes[0]}, …); "
            f"compare its layout with {card.url}"
        )
    return Plan(jobs)


def _crops(archive: Archive, name: str, places: list[tuple[int, int]]) -> Callable[[int, int], list[Picture]]:
    def make(size: int, channels: int) -> list[Picture]:
        pixels = np.asarray(decode(archive.read(name), name, channels))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return [
            Picture(pixels[row * size : (row + 1) * size, column * size : (column + 1) * size])
            for row, column in places
        ]

    return make


def _hours(time: str) -> float:
    days, hours, minutes = (int(part) for part in re.fullmatch(r"(\d+)d(\d+)h(\d+)m", time).groups())
    return round(24 * days + hours + minutes / 60, 4)


def _dimensions(archive: Archive, name: str) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(archive.read(name))) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        decode(archive.read(name), name)  # says what is wrong
        raise


def yolo(archive: Archive, card: Card, size: int, *, fit: str = "letterbox") -> Plan:
    """`SPLIT/images/name.jpg` with `SPLIT/labels/name.txt` and data.yaml (the names of the kinds).

    A label line is `kind cx cy width height` or a polygon `kind x1 y1 x2 y2 …`, in shares of the image; of a polygon the
    least and the largest coordinates are the box. The image's class is card.classes[1] where there is any box, else [0].
    """
    splits = card.layout["splits"]
    kinds = _yolo_kinds(archive)
    images = [
        name
        for name in _pictures(archive)
        if len(PurePosixPath(name).parts) >= 3
        and PurePosixPath(name).parts[-2] == "images"
        and PurePosixPath(name).parts[-3] in splits
    ]
    if not images:
        raise MstlError(
            f"{archive.path}: no image was found under {', '.join(splits)}/images; compare its layout with {card.url}"
        )
    members, jobs = set(archive.names), []
    for name in images:
        path = PurePosixPath(name)
        labels = str(path.parent.parent / "labels" / f"{path.stem}.txt")
        boxes = _yolo_boxes(archive.read(labels), labels, kinds) if labels in members else []
        split = splits[path.parts[-3]]
        row = Row(
            f"{split}/{path.stem}",
            card.classes[1 if boxes else 0],
            _matched(card.layout.get("group"), path.stem, path.stem),
            split=split,
            extra={"boxes": len(boxes), "kinds": "+".join(sorted({box[0] for box in boxes}))},
        )
        jobs.append(Job((row,), _boxed(archive, name, boxes, fit)))
    return Plan(jobs, boxes=True)


def _yolo_kinds(archive: Archive) -> list[str]:
    import yaml

    found = [name for name in archive.names if PurePosixPath(name).name == "data.yaml"]
    if not found:
        raise MstlError(
            f"{archive.path}: data.yaml is missing, which names the kinds of boxes; download the archive again"
        )
    try:
        names = yaml.safe_load(archive.read(found[0]))["names"]
        return [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else [str(name) for name in names]
    except (yaml.YAMLError, KeyError, TypeError) as problem:
        raise MstlError(
            f"{found[0]} in {archive.path}: the list `names` cannot be read "
            f"({type(problem).__name__}); download the archive again"
        ) from None


def _yolo_boxes(text: bytes, name: str, kinds: list[str]) -> list[tuple]:
    boxes = []
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = np.array(line.split(), float)
            kind, rest = kinds[_index(values[0], len(kinds))], values[1:]
            if not np.isfinite(rest).all():
                raise ValueError("a coordinate is not finite")
            if len(rest) == 4:
                x, y, width, height = rest
                box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            elif len(rest) >= 6 and len(rest) % 2 == 0:
                box = (rest[::2].min(), rest[1::2].min(), rest[::2].max(), rest[1::2].max())
            else:
                raise ValueError(f"{len(rest)} coordinates are neither a box nor a polygon")
        except (ValueError, IndexError) as problem:
            raise MstlError(
                f"{name}, line {number}: this label cannot be read ({problem}); mend the line or take the file out"
            ) from None
        boxes.append((kind, *(float(np.clip(value, 0, 1)) for value in box)))
    return boxes


def _index(value: float, count: int) -> int:
    if value != int(value) or not 0 <= value < count:
        raise ValueError(f"kind {value:g} is not one of the {count} in data.yaml")
    return int(value)


def _boxed(archive: Archive, name: str, boxes: list[tuple], fit: str) -> Callable[[int, int], list[Picture]]:
    def make(size: int, channels: int) -> list[Picture]:
        image = decode(archive.read(name), name, channels, smallest=2 * size)
        pixels, where = place(image, size, fit)
        moved = [
            where.box(kind, x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
            for kind, x0, y0, x1, y1 in boxes
        ]
        return [Picture(pixels, boxes=tuple(box for box in moved if box))]

    return make


def masked_frames(
    archive: Archive, card: Card, size: int, *, patch: int = 96, longest: int = 320, fit: str = "letterbox"
) -> Plan:
    """`images/name.jpg` with `masks/name.jpg` of the same size, and a .json of boxes in pixels of the originals.

    `layout.task` is "whole" (frames with mask and boxes, laid into the square by `fit`) or "patches": of every frame, brought to
    `longest` pixels on its longer side, one window of `patch` pixels on the finding (class card.classes[1]) and one off it
    (card.classes[0]); see windows.py. Both are of one group, the frame. Where there is no room for one of them it is left out,
    and `found` counts that. `extra` of a patch: frame, and x, y, side (pixels of the frame at `longest`), finding_share, mean.
    """
    frames = _frames_with_masks(archive, card)
    boxes = _frame_boxes(archive, card, [PurePosixPath(image).stem for image, _ in frames])
    if card.layout["task"] == "whole":
        jobs = []
        for image, mask in frames:
            stem = PurePosixPath(image).stem
            row = Row(stem, card.classes[0], stem, extra={"boxes": len(boxes[stem])})
            jobs.append(Job((row,), _masked_whole(archive, image, mask, boxes[stem], fit)))
        return Plan(jobs, masks=True, boxes=True)
    if not 8 <= patch <= longest:
        raise MstlError(f"{card.name}: a patch of {patch} pixels does not fit a frame of {longest}; choose 8 to {longest}")
    jobs, counts = [], {"frames": len(frames), "without_background": 0, "without_finding": 0}
    for image, mask in frames:
        stem = PurePosixPath(image).stem
        pixels, truth = _frame_and_mask(archive, image, mask, longest)
        seed = int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big")
        black = black_share(pixels, patch)
        cuts = (
            (card.classes[0], off_finding(truth, black, patch, np.random.default_rng(seed))),
            (card.classes[1], on_finding(truth, black, patch)),
        )
        counts["without_background"] += cuts[0][1] is None
        counts["without_finding"] += cuts[1][1] is None
        cuts = tuple((label, at) for label, at in cuts if at)
        rows = tuple(
            Row(f"{stem}/{label}", label, stem, extra={"frame": stem, "x": at.left, "y": at.top, "side": patch}) for label, at in cuts
        )
        if rows:
            jobs.append(Job(rows, _patches(archive, image, mask, longest, [at for _, at in cuts], boxes[stem])))
    return Plan(jobs, masks=True, boxes=True, found=counts)


def _frames_with_masks(archive: Archive, card: Card) -> list[tuple[str, str]]:
    by_folder: dict[str, dict[str, str]] = {"images": {}, "masks": {}}
    for name in _pictures(archive):
        path = PurePosixPath(name)
        if path.parent.name in by_folder:
            by_folder[path.parent.name][path.stem] = name
    images, masks = by_folder["images"], by_folder["masks"]
    if not images:
        raise MstlError(f"{archive.path}: no image was found in a folder named images; compare its layout with {card.url}")
    alone = sorted(images.keys() ^ masks.keys())
    if alone:
        missing = "mask" if alone[0] in images else "image"
        raise MstlError(f"{archive.path}: {alone[0]} has no {missing} ({len(alone)} such); download the archive again")
    return [(images[stem], masks[stem]) for stem in sorted(images)]


def _frame_boxes(archive: Archive, card: Card, stems: list[str]) -> dict[str, list[tuple]]:
    """Boxes of every frame: (kind, x0, y0, x1, y1) in shares of its width and height."""
    found = [name for name in archive.names if PurePosixPath(name).suffix == ".json"]
    if not found:
        raise MstlError(f"{archive.path}: the .json with the boxes is missing; download the archive again from {card.url}")
    try:
        table, boxes = json.loads(archive.read(found[0])), {}
        for stem in stems:
            width, height = float(table[stem]["width"]), float(table[stem]["height"])
            boxes[stem] = [
                (str(b["label"]), b["xmin"] / width, b["ymin"] / height, b["xmax"] / width, b["ymax"] / height)
                for b in table[stem]["bbox"]
            ]
        return boxes
    except KeyError as problem:
        raise MstlError(
            f"{found[0]} in {archive.path}: {problem} is missing there ({stem}); download the archive again"
        ) from None
    except (ValueError, TypeError, ZeroDivisionError, UnicodeDecodeError) as problem:
        raise MstlError(
            f"{found[0]} in {archive.path}: the boxes cannot be read ({type(problem).__name__}: {problem}); download the archive again"
        ) from None


def _frame_and_mask(archive: Archive, image_name: str, mask_name: str, longest: int | None) -> tuple[Image.Image, np.ndarray]:
    """The frame (RGB) and its mask (bool), brought to `longest` pixels on the longer side (None: left as they are)."""
    image = decode(archive.read(image_name), image_name, 3)
    mask = decode(archive.read(mask_name), mask_name)
    if longest and longest != max(image.size):
        scale = longest / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if mask.size != image.size:
        mask = mask.resize(image.size, Image.Resampling.BOX if mask.width > image.width else Image.Resampling.BILINEAR)
    return image, np.asarray(mask) >= 128


def _masked_whole(
    archive: Archive, image_name: str, mask_name: str, boxes: list[tuple], fit: str
) -> Callable[[int, int], list[Picture]]:
    def make(size: int, channels: int) -> list[Picture]:
        image, mask = _frame_and_mask(archive, image_name, mask_name, None)
        pixels, where = place(image, size, fit)
        width, height = image.size
        moved = [where.box(kind, x0 * width, y0 * height, x1 * width, y1 * height) for kind, x0, y0, x1, y1 in boxes]
        return [Picture(pixels, place_mask(mask, size, fit), tuple(box for box in moved if box))]

    return make


def _patches(
    archive: Archive, image_name: str, mask_name: str, longest: int, cuts: list[Window], boxes: list[tuple]
) -> Callable[[int, int], list[Picture]]:
    def make(size: int, channels: int) -> list[Picture]:
        image, mask = _frame_and_mask(archive, image_name, mask_name, longest)
        pictures = []
        for left, top, side in cuts:
            pixels, where = place(image.crop((left, top, left + side, top + side)), size, "letterbox")
            part = mask[top : top + side, left : left + side]
            moved = [
                where.box(kind, x0 * image.width - left, y0 * image.height - top, x1 * image.width - left, y1 * image.height - top)
                for kind, x0, y0, x1, y1 in boxes
            ] if part.any() else []  # fmt: skip
            extra = {"finding_share": round(float(part.mean()), 4), "mean": round(float(pixels.mean()), 4)}
            pictures.append(Picture(pixels, place_mask(part, size, "letterbox"), tuple(box for box in moved if box), extra))
        return pictures

    return make


READERS: dict[str, Callable[..., Plan]] = {
    "class_folders": class_folders,
    "mias": mias,
    "frames": frames,
    "yolo": yolo,
    "masked_frames": masked_frames,
}


def _pictures(archive: Archive) -> list[str]:
    return [name for name in archive.names if PurePosixPath(name).suffix.lower() in IMAGES]


def _matched(pattern: str | None, stem: str, otherwise: str) -> str:
    found = re.search(pattern, stem) if pattern else None
    return found.group(0) if found else otherwise
