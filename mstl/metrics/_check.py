"""Checks of what users hand to the statistics: each problem is one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mstl.errors import MstlError


def binary(y_true, name: str = "y_true") -> np.ndarray:
    """``y_true`` as a boolean array (n,), True for the positive class."""
    y = np.asarray(y_true)
    if y.ndim != 1 or not y.size:
        raise MstlError(f"{name} has shape {y.shape}; give one label a row, at least one row")
    if y.dtype == bool:
        return y
    if y.dtype.kind not in "iuf":
        shown = ", ".join(repr(str(v)) for v in pd.unique(y)[:3])
        raise MstlError(f"{name} holds {shown}; code the positive class 1 and everything else 0")
    bad = ~((y == 0) | (y == 1))
    if bad.any():
        row = int(np.argmax(bad))
        raise MstlError(f"{name} holds {y[row]} in row {row}; a binary comparison takes 0 and 1 only")
    return y == 1


def labels(y_true, n_classes: int | None = None, name: str = "y_true") -> np.ndarray:
    """Class indices 0 … K−1 as int64 (n,)."""
    y = np.asarray(y_true)
    if y.ndim != 1 or not y.size:
        raise MstlError(f"{name} has shape {y.shape}; give one label a row, at least one row")
    if y.dtype.kind not in "iufb" or not np.array_equal(y, np.round(y.astype(float))):
        raise MstlError(f"{name} must hold class indices 0, 1, 2, …; found {y[0]!r} of type {y.dtype}")
    y = y.astype(np.int64)
    if y.min() < 0 or (n_classes is not None and y.max() >= n_classes):
        raise MstlError(
            f"{name} holds class {y.min() if y.min() < 0 else y.max()}, but the classes are 0 … {(n_classes or y.max() + 1) - 1}"
        )
    return y


def scores(values, n: int, name: str = "y_score", *, columns: bool = False) -> np.ndarray:
    """Finite float64 scores (n,), or (n, K) where ``columns`` are allowed."""
    s = np.asarray(values, dtype=float)
    if s.ndim == 2 and columns:
        if s.shape[1] < 2:
            raise MstlError(f"{name} has {s.shape[1]} column; give one score a row, or one column a class")
    elif s.ndim != 1:
        raise MstlError(f"{name} has shape {s.shape}; give one score a row")
    if len(s) != n:
        raise MstlError(f"{name} has {len(s)} rows, but y_true has {n}; rows must be the same images in the same order")
    bad = ~np.isfinite(s) if s.ndim == 1 else ~np.isfinite(s).all(axis=1)
    if bad.any():
        raise MstlError(
            f"{name} is not a finite number in row {int(np.argmax(bad))}; mend or drop that row for every model"
        )
    return s


def risks(values, n: int, name: str = "risk") -> np.ndarray:
    """Probabilities in [0, 1], float64 (n,)."""
    p = scores(values, n, name)
    bad = (p < 0) | (p > 1)
    if bad.any():
        row = int(np.argmax(bad))
        raise MstlError(
            f"{name} is {p[row]:g} in row {row}; probabilities lie between 0 and 1 (recalibrate raw scores first)"
        )
    return p


def both_classes(y: np.ndarray, what: str = "the AUC", where: str = "y_true") -> tuple[int, int]:
    """Numbers of positives and negatives; an error where one of them is zero."""
    positives = int(np.count_nonzero(y))
    negatives = len(y) - positives
    if not positives or not negatives:
        only = "positive" if positives else "negative"
        raise MstlError(
            f"{where} holds only {only} images (n = {len(y)}), so {what} does not exist; add images of the other class"
        )
    return positives, negatives


def codes(groups, n: int, name: str = "groups") -> tuple[np.ndarray, int]:
    """Group of each row as an integer 0 … G−1, and G; ``None`` makes every row its own group."""
    if groups is None:
        return np.arange(n), n
    values = np.asarray(groups)
    if values.shape != (n,):
        raise MstlError(f"{name} has shape {values.shape}, but there are {n} rows; give one {name.rstrip('s')} a row")
    code, unique = pd.factorize(values)
    if (code < 0).any():
        raise MstlError(f"{name} is missing in row {int(np.argmax(code < 0))}; every row needs one")
    return code.astype(np.int64), len(unique)


def boxes(values, name: str = "boxes", *, empty: bool = False) -> np.ndarray:
    """Finite float64 boxes (n, 4) as x0, y0, x1, y1 with a width and a height; none at all where ``empty`` allows it."""
    box = np.asarray(values, float)
    box = box.reshape(0, 4) if empty and box.size == 0 else box
    if box.ndim != 2 or box.shape[1] != 4 or not (empty or len(box)):
        raise MstlError(f"{name} has shape {box.shape}; give x0, y0, x1, y1 a row")
    bad = ~(np.isfinite(box).all(axis=1) & (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1]))
    if bad.any():
        row = int(bad.argmax())
        raise MstlError(f"{name}: row {row} is {box[row].tolist()}; a box needs x0 < x1 and y0 < y1")
    return box


def fraction(value: float, name: str = "level") -> float:
    """A number strictly between 0 and 1."""
    if not 0 < value < 1:
        raise MstlError(f"{name} is {value}; it must lie between 0 and 1, for example 0.95")
    return float(value)


def one_of(value: str, allowed: Sequence[str], name: str) -> str:
    if value not in allowed:
        raise MstlError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    return value


def resamples(n_resamples: int) -> int:
    if n_resamples < 100:
        raise MstlError(f"n_resamples is {n_resamples}; an interval needs at least 100, better 2000")
    return int(n_resamples)
