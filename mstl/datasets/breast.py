"""Where a mammogram shows breast tissue, and windows with a wanted share of it."""

from __future__ import annotations

import numpy as np
from PIL import Image


class Tissue:
    """The breast tissue of one film. Windows are (left, top, side) in pixels of the film."""

    def __init__(self, film: Image.Image):
        mask = breast(film)
        self.width, self.height = film.size
        self.scale = mask.shape[1] / film.width
        self.total = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def share(self, left, top, side):
        """Share (0 to 1) of the window that is breast tissue; also for arrays of windows."""
        rows, columns = self.total.shape[0] - 1, self.total.shape[1] - 1
        x0, y0 = (np.clip(np.rint(np.asarray(v) * self.scale).astype(int), 0, n - 1) for v, n in ((left, columns), (top, rows)))
        step = max(1, round(side * self.scale))
        x1, y1 = np.minimum(x0 + step, columns), np.minimum(y0 + step, rows)
        inside = self.total[y1, x1] - self.total[y0, x1] - self.total[y1, x0] + self.total[y0, x0]
        share = inside / ((x1 - x0) * (y1 - y0))
        return float(share) if share.ndim == 0 else share

    def draw(self, side: int, share: float, taken: list[tuple[int, int, int]], rng: np.random.Generator) -> tuple[int, int, int]:
        """A window of `side` drawn among those with `share` ± 0.05 of tissue (else the nearest share) that overlap none of
        `taken`, as far as there is room."""
        step = max(1, side // 8)
        x, y = np.meshgrid(np.arange(0, self.width - side + 1, step), np.arange(0, self.height - side + 1, step))
        x, y = x.ravel(), y.ravel()
        free = np.ones(x.size, bool)
        for left, top, other in taken:
            free &= (x + side <= left) | (x >= left + other) | (y + side <= top) | (y >= top + other)
        if free.any():
            x, y = x[free], y[free]
        away = np.abs(self.share(x, y, side) - share)
        near = np.flatnonzero(away <= max(0.05, away.min()))
        chosen = near[rng.integers(near.size)]
        return int(x[chosen]), int(y[chosen]), side


def breast(film: Image.Image) -> np.ndarray:
    """Where a mediolateral-oblique film shows breast tissue: bool (H, W) of a copy no larger than 256 pixels.

    Pixels brighter than a low threshold, opened so that labels come loose, the largest piece kept; white film borders
    (at least 245) and the pectoral muscle's corner (a triangle at the chest wall: 60 % of the breast's width at the top,
    55 % of its height) are taken away. A film on which nothing is found counts as tissue everywhere.
    """
    from scipy import ndimage

    small = film.convert("L")
    small.thumbnail((256, 256), Image.Resampling.BOX)
    grey = ndimage.gaussian_filter(np.asarray(small, np.float32), 1)
    inside = ndimage.binary_opening((grey > max(12.0, 0.35 * otsu(grey))) & (grey < 245), iterations=4)
    pieces, count = ndimage.label(inside)
    if count == 0:
        return np.ones(grey.shape, bool)
    tissue = ndimage.binary_fill_holes(pieces == 1 + np.argmax(ndimage.sum_labels(inside, pieces, range(1, count + 1))))
    rows, columns = np.flatnonzero(tissue.any(1)), np.flatnonzero(tissue.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    edge = max(2, (right - left) // 20)
    chest_right = tissue[:, right - edge : right].sum() > tissue[:, left : left + edge].sum()
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
    inward = (right - x if chest_right else x - left) / (right - left)
    return tissue & ~(inward / 0.60 + (y - top) / (0.55 * (bottom - top)) < 1)


def otsu(grey: np.ndarray) -> float:
    """The threshold that parts the grey values into two groups with the largest variance between them (Otsu 1979)."""
    counts, edges = np.histogram(grey, 256)
    middle, below = (edges[1:] + edges[:-1]) / 2, np.cumsum(counts).astype(float)
    mass = np.cumsum(counts * middle)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(middle[np.nanargmax(between)]) if np.isfinite(between).any() else float(grey.mean())
