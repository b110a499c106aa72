"""Boxes against boxes: which detections hit, average precision, FROC, and both under resamples of patients.

A detection hits a true box when their intersection over union reaches a bar. In an image the detections are taken from the
highest score downwards; each takes, of the true boxes that are still free, the one that it overlaps most (Lin et al. 2014, COCO).
Whether it hits does not depend on other images, so that a bootstrap over groups only changes how often each image counts.

Boxes are (n, 4) arrays x0, y0, x1, y1 in pixels, x0 < x1, y0 < y1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mstl.errors import MstlError
from mstl.metrics import _check

#: COCO's bars: 0.50, 0.55 … 0.95.
COCO = tuple(np.round(np.arange(0.50, 0.96, 0.05), 2).tolist())
#: False positives an image at which FROC's sensitivity is read.
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0)
_RECALL = np.linspace(0, 1, 101)


def iou(a, b) -> np.ndarray:
    """Intersection over union of every box of ``a`` (n, 4) with every box of ``b`` (m, 4): (n, m), 0 … 1."""
    a, b = _check.boxes(a, empty=True)[:, None], _check.boxes(b, empty=True)[None]
    side = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    both = side.prod(-1)
    area = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b)]
    return both / (area[0] + area[1] - both)


def match(detected, scores, truth, bars: Sequence[float] = (0.5,)) -> np.ndarray:
    """Which detections of one image hit at each bar: boolean (n, T), in the order given.

    A true box is hit once; whatever else lies on it is a false positive. Of equal scores the first in order goes first.
    """
    score = np.asarray(scores, float)
    overlap = iou(detected, truth)
    if score.shape != (len(overlap),):
        raise MstlError(f"{len(overlap)} detections have {score.size} scores; give one score a box")
    if not np.isfinite(score).all():
        raise MstlError("a detection's score is not a finite number; mend or drop that box")
    hit = np.zeros((len(overlap), len(bars)), bool)
    if not overlap.size:
        return hit
    for t, bar in enumerate(bars):
        free = overlap.copy()
        for row in np.argsort(-score, kind="stable"):
            best = int(free[row].argmax())
            if free[row, best] >= bar:
                hit[row, t], free[:, best] = True, -1.0
    return hit


def average_precision(scores, hits, n_truth: int) -> float:
    """Area under precision over recall by COCO's rule: the mean over recalls 0, 0.01 … 1 of the highest precision at that recall or
    beyond, 0 where no detection reaches it. ``scores`` and ``hits`` (n,) of all images together; NaN without a true box."""
    score, hit = np.asarray(scores, float), np.asarray(hits, bool)
    order = np.argsort(-score, kind="stable")
    marked = np.arange(1.0, len(hit) + 1)[:, None]
    return float(_average_precision(np.ones((int(hit.sum()), 1)), marked[hit[order]], np.array([float(n_truth)]))[0])


def froc(scores, hits, n_truth: int, n_images: int, at: Sequence[float] = FALSE_POSITIVES) -> np.ndarray:
    """Share of the true boxes that are found where at most ``at`` false positives an image (over all images, with and without
    disease) are marked: (len(at),). The threshold is one of the scores; detections of equal score come and go together (Bunch et al. 1978)."""
    score, hit = np.asarray(scores, float), np.asarray(hits, bool)
    order = np.argsort(-score, kind="stable")
    one = np.ones((1, 1))
    return _froc(hit[order, None] * one, ~hit[order, None] * one, _ends(score[order]), n_truth * one[0], n_images * one[0], at)[:, 0]


@dataclass(frozen=True)
class Scored:
    """The detections of one cell (chain and fold), highest score first, and how many images and true boxes each group has.

    ``value()`` and ``under(w)`` give a vector, ``names`` says of what: with ``at``, FROC's sensitivity at each of these false positives an
    image (first bar), then their mean; with an empty ``at``, average precision at the first bar, then its mean over all bars. This is
    what :meth:`mstl.metrics.chains.Block.resample` takes.
    """

    hit: np.ndarray  # (n, T)
    code: np.ndarray  # (n,) the group of each detection
    ends: np.ndarray  # (n,) True where the next score is lower
    truth: np.ndarray  # (G,) true boxes of each group
    images: np.ndarray  # (G,)
    at: tuple[float, ...]

    @classmethod
    def of(cls, scores, hits, code, truth, images, at: Sequence[float] = ()) -> Scored:
        """``scores`` (n,), ``hits`` (n, T), ``code`` (n,) in 0 … G−1, ``truth`` and ``images`` (G,) counts."""
        score, hit = np.asarray(scores, float), np.asarray(hits, bool)
        order = np.argsort(-score, kind="stable")
        return cls(hit[order], np.asarray(code, dtype=np.int64)[order], _ends(score[order]), np.asarray(truth, float), np.asarray(images, float), tuple(at))

    @property
    def names(self) -> tuple[str, ...]:
        return (*(f"sensitivity at {f:g}" for f in self.at), "mean sensitivity") if self.at else ("ap", "map")

    def value(self) -> np.ndarray:
        return self.under(np.ones((len(self.truth), 1)))[:, 0]

    def under(self, w: np.ndarray) -> np.ndarray:
        """(V, r) under group weights (G, r)."""
        each, n_truth = w[self.code], self.truth @ w
        if not self.at:
            marked = np.cumsum(each, axis=0)
            ap = [_average_precision(each[bar], marked[bar], n_truth) for bar in self.hit.T]
            return np.stack([ap[0], np.mean(ap, axis=0)])
        found = _froc(each * self.hit[:, :1], each * ~self.hit[:, :1], self.ends, n_truth, self.images @ w, self.at)
        return np.vstack([found, found.mean(0)])


def per_image(images: Sequence[str], detected, truth, bars: Sequence[float] = (0.5,)) -> np.ndarray:
    """Which rows of the table ``detected`` hit: boolean (n, T). Both tables have ``image`` and ``x0, y0, x1, y1``, ``detected`` a ``score``.

    Raises MstlError for a box of an image that is not among ``images``.
    """
    for name, table in (("a detection", detected), ("a true box", truth)):
        strange = ~table["image"].isin(images)
        if strange.any():
            raise MstlError(f"{name} is of the image '{table['image'][strange].iloc[0]}', which is not among the {len(images)} images judged")
    corners = ["x0", "y0", "x1", "y1"]
    true = {image: part[corners].to_numpy(float) for image, part in truth.groupby("image")}
    hit = np.zeros((len(detected), len(bars)), bool)
    boxes, scores = detected[corners].to_numpy(float), detected["score"].to_numpy(float)
    for image, rows in detected.groupby("image").indices.items():
        hit[rows] = match(boxes[rows], scores[rows], true.get(image, np.empty((0, 4))), bars)
    return hit


def cell_statistics(cell, images: Sequence[str], detected, hits, truth, at: Sequence[float] = ()) -> Scored:
    """The statistics of one :class:`mstl.metrics.chains.Cell`, whose rows are the ``images`` of its chain and fold in order."""
    place = {image: code for image, code in zip(images, cell.code, strict=True)}
    boxes_of = np.bincount([place[image] for image in truth["image"]], minlength=cell.n_groups)
    return Scored.of(detected["score"], hits, [place[image] for image in detected["image"]], boxes_of,
                     np.bincount(cell.code, minlength=cell.n_groups), at)


# ---------------------------------------------------------------- pieces


def _ends(ordered: np.ndarray) -> np.ndarray:
    return np.append(ordered[1:] < ordered[:-1], True)[:len(ordered)]


def _average_precision(hits: np.ndarray, marked: np.ndarray, n_truth: np.ndarray) -> np.ndarray:
    """(r,) from the weights of the hits (h, r) in the order of their scores, the weight of all detections down to each of them (h, r)
    and the true boxes (r,). Between hits precision only falls, so that its highest value from a recall on is at a hit."""
    if not len(hits):
        return np.where(n_truth > 0, 0.0, np.nan)
    found = np.cumsum(hits, axis=0)
    precision = np.divide(found, marked, out=np.zeros_like(found), where=marked > 0)
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    out = np.full(len(n_truth), np.nan)
    for r in np.flatnonzero(n_truth > 0):
        first = np.searchsorted(found[:, r], _RECALL * n_truth[r] - 1e-9)
        out[r] = np.append(precision[:, r], 0.0)[first].mean()
    return out


def _froc(true: np.ndarray, false: np.ndarray, ends: np.ndarray, n_truth: np.ndarray, n_images: np.ndarray, at: Sequence[float]) -> np.ndarray:
    """(F, r): the last threshold whose false positives an image are not above each of ``at``."""
    zero = np.zeros((1, len(n_truth)))
    found = np.concatenate([zero, np.cumsum(true, axis=0)[ends]])
    alarms = np.concatenate([zero, np.cumsum(false, axis=0)[ends]])
    allowed = np.asarray(at, float)[:, None] * n_images + 1e-9
    out = np.full((len(at), len(n_truth)), np.nan)
    for r in np.flatnonzero(n_truth > 0):
        out[:, r] = found[np.searchsorted(alarms[:, r], allowed[:, r], side="right") - 1, r] / n_truth[r]
    return out
