"""Preparation: many small jobs decoded in parallel into one file of pixels, aside, and moved into place when whole."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import MstlError
from .catalog import Card
from .imageset import BOXES, ImageSet, write_tables, writing
from .pixels import Picture


@dataclass(frozen=True)
class Row:
    """What is known of one image before it is decoded. `label` is the class's name; `extra` is added to by the picture's."""

    id: str
    label: str
    group: str
    split: str = ""
    center: str = ""
    view: str = ""
    case: str = ""
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """Rows that come from one decode: `make(size, channels)` returns one `Picture` a row, in the order of `rows`."""

    rows: tuple[Row, ...]
    make: Callable[[int, int], list[Picture]]


def prepare(
    card: Card,
    jobs: Sequence[Job],
    folder: Path,
    size: int,
    *,
    with_masks: bool = False,
    with_boxes: bool = False,
    provenance: dict | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Makes the set of `jobs` in `folder`. The rows are sorted by id, so the bytes do not depend on `workers`.

    Raises MstlError for an empty class, a label that the card does not know, an id that occurs twice, an image that does
    not decode and a full disk; then nothing is left in the place of `folder`.
    """
    rows = [row for job in jobs for row in job.rows]
    _check_rows(card, rows)
    order = sorted(range(len(rows)), key=lambda i: rows[i].id)
    rank = np.empty(len(rows), np.int64)
    rank[order] = np.arange(len(rows))
    first = np.cumsum([0, *(len(job.rows) for job in jobs)])
    boxes: list[tuple] = []
    extras: list[dict] = [{} for _ in rows]
    with writing(folder, card.name) as aside:
        with (
            _pixel_file(aside / "images.npy", (len(rows), size, size, card.channels)) as put,
            _pixel_file(aside / "masks.npy", (len(rows), size, size) if with_masks else None) as put_mask,
        ):

            def run(number: int) -> int:
                pictures = jobs[number].make(size, card.channels)
                for row, picture in zip(range(first[number], first[number + 1]), pictures, strict=True):
                    at = int(rank[row])
                    put(at, picture.image)
                    if with_masks:
                        put_mask(at, np.zeros((size, size), np.uint8) if picture.mask is None else picture.mask)
                    extras[row] = {**rows[row].extra, **picture.extra}
                    boxes.extend((at, *box) for box in picture.boxes)
                return len(pictures)

            _run_all(run, len(jobs), len(rows), card.name, workers, progress)
        write_tables(
            _described(
                card,
                [rows[i] for i in order],
                [extras[i] for i in order],
                aside,
                sorted(boxes) if with_boxes else None,
                with_masks,
                provenance or {},
            ),
            aside,
        )


def _check_rows(card: Card, rows: list[Row]) -> None:
    counts = dict.fromkeys(card.classes, 0)
    seen: set[str] = set()
    for row in rows:
        if row.label not in counts:
            raise MstlError(
                f"{card.name}: the image {row.id} has the class {row.label!r}, which is none of {', '.join(card.classes)}"
            )
        if row.id in seen:
            raise MstlError(f"{card.name}: two images have the id {row.id!r}; rename one of the files")
        seen.add(row.id)
        counts[row.label] += 1
    empty = [name for name, count in counts.items() if count == 0]
    if empty:
        raise MstlError(
            f"{card.name}: the class {empty[0]!r} has no image; "
            "check that the archive or folder is complete and laid out as published"
        )


def _run_all(run: Callable[[int], int], jobs: int, images: int, name: str, workers: int | None, progress: bool) -> None:
    from tqdm import tqdm

    workers = workers or available_cores()
    with tqdm(
        total=images,
        desc=f"preparing {name}",
        unit="image",
        mininterval=0.5,
        file=sys.stderr,
        leave=False,
        disable=None if progress else True,
    ) as bar:
        if workers == 1:
            for number in range(jobs):
                bar.update(run(number))
            return
        pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
        try:
            for future in [
                pool.submit(run, number) for number in range(jobs)
            ]:  # in order: the first bad image is the one reported
                bar.update(future.result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _pixel_file(path: Path, shape: tuple[int, ...] | None) -> Iterator[Callable[[int, np.ndarray], None]]:
    """A .npy file of uint8 that threads fill row by row. Written, not mapped: on a full disk a map ends the process by
    SIGBUS, a write raises OSError."""
    if shape is None:
        yield lambda at, row: None
        return
    one_at_a_time = threading.Lock()
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start, stride = file.tell(), int(np.prod(shape[1:]))

        def put(at: int, row: np.ndarray) -> None:
            if row.shape != shape[1:] or row.dtype != np.uint8:
                raise MstlError(f"{path.name}: row {at} is {row.dtype} {row.shape}, not uint8 {shape[1:]}")
            with one_at_a_time:
                file.seek(start + at * stride)
                file.write(row.tobytes())

        yield put


def _described(
    card: Card,
    rows: list[Row],
    extras: list[dict],
    aside: Path,
    boxes: list[tuple] | None,
    masks: bool,
    provenance: dict,
) -> ImageSet:
    def column(key: str) -> list[str]:
        return [getattr(row, key) for row in rows]

    return ImageSet(
        name=card.name,
        card=card,
        classes=card.classes,
        provenance=provenance,
        images=np.load(aside / "images.npy", mmap_mode="r", allow_pickle=False),
        masks=np.load(aside / "masks.npy", mmap_mode="r", allow_pickle=False) if masks else None,
        labels=np.array([card.classes.index(row.label) for row in rows]),
        groups=column("group"),
        centers=column("center"),
        ids=column("id"),
        splits=column("split"),
        views=column("view") if any(column("view")) else None,
        cases=column("case") if any(column("case")) else None,
        extra=pd.DataFrame(extras) if any(extras) else None,
        boxes=None
        if boxes is None
        else pd.DataFrame(boxes, columns=BOXES).astype(
            {"image": np.int64, "class": str, **dict.fromkeys(BOXES[2:], float)}
        ),
    )
