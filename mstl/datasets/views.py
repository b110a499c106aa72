"""Examinations of two views: an image set of one row an image becomes one of one row an examination.

`views` and `cases` of an :class:`~mstl.datasets.imageset.ImageSet` say which image is which. :func:`pairs` puts the two grey views of
a case into the channels of one picture, so that it is split, augmented and batched like any image: a shift or a turn moves both views
alike. :func:`single` gives the same cases in the same order with one view each, so that one split serves both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..errors import MstlError
from .catalog import nearest
from .imageset import ImageSet

RULES = ("same", "any")


def pairs(data: ImageSet, views: Sequence[str] = (), *, label: str = "same") -> ImageSet:
    """One row a case, sorted by case: `images` (N, H, W, 3) with the first view, the second view and the mean of both.

    The third channel shows a network nothing new; it is there because pictures have one or three channels. `views` names the two views in
    order (default: those of the set, sorted). `ids` are the cases. `label`: "same" refuses a case whose views have two labels;
    "any" takes the last of the classes that one of them has (of two classes: positive when any view is), and `extra` then says in `where`
    which views have it ("" for the first class). Columns of `extra` in which the views differ come once a view. Masks and boxes are left out.

    Raises MstlError, one sentence with the case: a missing view, a view twice, two labels under "same"; a group, center or split that
    differs between the views; colour images; a set without `views` and `cases`.
    """
    views, rows = _rows(data, views)
    if label not in RULES:
        raise MstlError(f"label='{label}' is unknown for examinations of two views: use 'same' or 'any'{nearest(label, RULES)}.")
    if data.channels != 1:
        raise MstlError(f"{data.name}: two views travel as channels of one picture, so they must be grey, but these images have "
                        f"{data.channels} channels; prepare them with channels=1.")
    labels = data.labels[rows]
    differ = np.flatnonzero(labels[:, 0] != labels[:, 1])
    if label == "same" and len(differ):
        names = " and ".join(f"{v} {data.classes[c]}" for v, c in zip(views, labels[differ[0]], strict=True))
        raise MstlError(f"{data.name}: the views of the case '{data.cases[rows[differ[0], 0]]}' have two labels ({names}), as {len(differ)} of "
                        f"{len(rows)} cases: correct them, or say label='any' for a case that is positive when one of its views is.")
    first, second = np.asarray(data.images[rows[:, 0]]), np.asarray(data.images[rows[:, 1]])
    mean = ((first.astype(np.uint16) + second) // 2).astype(np.uint8)
    extra = _extra(data, views, rows)
    if label == "any":
        extra["where"] = [" and ".join(v for v, c in zip(views, pair, strict=True) if c == pair.max() and c > 0) for pair in labels]
    return _by_case(data, rows, images=np.concatenate([first, second, mean], axis=-1), labels=labels.max(axis=1), extra=extra,
                    card=dataclasses.replace(data.card, channels=3))


def single(data: ImageSet, view: str, views: Sequence[str] = (), *, label: str = "same") -> ImageSet:
    """The cases of :func:`pairs` (same rows, ids and labels) with the images of one `view` alone."""
    both = pairs(data, views, label=label)
    views, rows = _rows(data, views)
    if view not in views:
        raise MstlError(f"{data.name} has no view '{view}'{nearest(view, views)}: its views are {' and '.join(views)}.")
    own = rows[:, list(views).index(view)]
    return dataclasses.replace(both, images=np.asarray(data.images[own]), views=np.full(len(own), view), cases=both.ids, card=data.card)


def _rows(data: ImageSet, views: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the two views, and the rows (N, 2) of each case, sorted by case."""
    if data.views is None or data.cases is None:
        raise MstlError(f"{data.name} does not say which images are views of one examination: give the columns case and view in its manifest.csv.")
    found = sorted(set(data.views) - {""})
    views = tuple(views) or tuple(found)
    for name in views:
        if name not in found:
            raise MstlError(f"{data.name} has no view '{name}'{nearest(name, found)}: its views are {', '.join(found)}.")
    if len(views) != 2 or views[0] == views[1]:
        raise MstlError(f"{data.name}: two different views are joined, not {len(views)} ({', '.join(views) or 'none'}): name them by views.")
    wanted = np.flatnonzero(np.isin(data.views, views) & (data.cases != ""))
    rows: dict[str, list[int]] = {}
    for row in wanted:
        own = rows.setdefault(str(data.cases[row]), [-1, -1])
        place = views.index(str(data.views[row]))
        if own[place] >= 0:
            raise MstlError(f"{data.name}: the case '{data.cases[row]}' has the view '{data.views[row]}' twice ('{data.ids[own[place]]}' and "
                            f"'{data.ids[row]}'): keep one, or give the other a case of its own.")
        own[place] = int(row)
    lonely = [(case, views[own.index(-1)]) for case, own in rows.items() if -1 in own]
    if lonely:
        raise MstlError(f"{data.name}: the case '{lonely[0][0]}' has no view '{lonely[0][1]}', and {len(lonely)} of {len(rows)} cases lack one: "
                        "add the image, or leave the case out.")
    table = np.array([rows[case] for case in sorted(rows)], np.int64)
    for key in ("groups", "centers", "splits"):
        values = getattr(data, key)[table]
        torn = np.flatnonzero(values[:, 0] != values[:, 1])
        if len(torn):
            raise MstlError(f"{data.name}: the views of the case '{data.cases[table[torn[0], 0]]}' differ in {key} "
                            f"('{values[torn[0], 0]}' and '{values[torn[0], 1]}'): an examination lies wholly in one.")
    return views, table


def _extra(data: ImageSet, views: tuple[str, ...], rows: np.ndarray) -> pd.DataFrame:
    out = {}
    for name in data.extra.columns if data.extra is not None else ():
        values = data.extra[name].to_numpy()[rows]
        if (values[:, 0] == values[:, 1]).all():
            out[name] = values[:, 0]
        else:
            out |= {f"{name}_{view}": values[:, place] for place, view in enumerate(views)}
    return pd.DataFrame(out, index=pd.RangeIndex(len(rows)))


def _by_case(data: ImageSet, rows: np.ndarray, **changes) -> ImageSet:
    first = rows[:, 0]
    if not len(changes["extra"].columns):
        changes["extra"] = None
    same = {key: getattr(data, key)[first] for key in ("groups", "centers", "splits")}
    return dataclasses.replace(data, name=f"{data.name}, examinations", ids=data.cases[first], masks=None, boxes=None, views=None, cases=None, **same, **changes)
