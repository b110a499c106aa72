"""Where a mammogram shows the breast, and windows with a wanted share of it."""

from __future__ import annotations

import numpy as np
from PIL import Image


class Breast:
    """The breast on one film. Windows are (left, top, side) in pixels of the film."""

    def __init__(self, film: Image.Image):
        shown, muscle = outline(film)
        self.width, self.height = film.size
        self.scale = shown.shape[1] / film.width
        self._shown, self._muscle = (
            np.pad(mask.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))
            for mask in (shown, muscle)
        )
        columns = np.flatnonzero(shown.any(0))
        self.left, self.right = columns[0] / self.scale, (columns[-1] + 1) / self.scale

    def share(self, left, top, side):
        """Share (0 to 1) of the window that shows the breast; also for arrays of windows."""
        return self._share(self._shown, left, top, side)

    def muscle_share(self, left, top, side):
        """Share (0 to 1) of the window that lies in the corner of the pectoral muscle."""
        return self._share(self._muscle, left, top, side)

    def window(self, x: float, y: float, radius: float, side: int) -> tuple[int, int, int]:
        """The window of `side` around (x, y), moved inside the film, and sideways off the black beside the breast as far as
        the circle of `radius` stays in the window."""
        side = min(side, self.width, self.height)
        left, room = x - side / 2, max(0.0, side / 2 - radius)
        if left < self.left:
            left = min(self.left, left + room)
        elif left + side > self.right:
            left = max(self.right - side, left - room)
        left, top = round(left), round(y - side / 2)
        return int(np.clip(left, 0, self.width - side)), int(np.clip(top, 0, self.height - side)), side

    def draw(
        self, side: int, share: float, taken: list[tuple[int, int, int]], rng: np.random.Generator
    ) -> tuple[int, int, int]:
        """A window of `side` drawn among those whose share of breast is within 0.05 of `share` and whose share of muscle is
        at most 0.05 (else the one that misses this least), and that overlap none of `taken` as far as there is room."""
        step = max(1, side // 8)
        x, y = np.meshgrid(np.arange(0, self.width - side + 1, step), np.arange(0, self.height - side + 1, step))
        x, y = x.ravel(), y.ravel()
        free = np.ones(x.size, bool)
        for left, top, other in taken:
            free &= (x + side <= left) | (x >= left + other) | (y + side <= top) | (y >= top + other)
        if free.any():
            x, y = x[free], y[free]
        missed = np.maximum(0, np.abs(self.share(x, y, side) - share) - 0.05) + np.maximum(
            0, self.muscle_share(x, y, side) - 0.05
        )
        near = np.flatnonzero(missed <= missed.min())
        chosen = near[rng.integers(near.size)]
        return int(x[chosen]), int(y[chosen]), side

    def _share(self, total: np.ndarray, left, top, side):
        rows, columns = total.shape[0] - 1, total.shape[1] - 1
        x0, y0 = (
            np.clip(np.rint(np.asarray(v) * self.scale).astype(int), 0, n - 1)
            for v, n in ((left, columns), (top, rows))
        )
        step = max(1, round(side * self.scale))
        x1, y1 = np.minimum(x0 + step, columns), np.minimum(y0 + step, rows)
        share = (total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]) / ((x1 - x0) * (y1 - y0))
        return float(share) if share.ndim == 0 else share


def outline(film: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Where a mediolateral-oblique film shows the breast, and where in it the pectoral muscle: two bool (H, W) of a copy
    no larger than 256 pixels.

    Breast: pixels brighter than a low threshold but below 245 (white film borders), opened so that labels come loose, the
    largest piece kept. Muscle: a triangle at the chest wall, 60 % of the breast's width at the top and 55 % of its height.
    A film on which nothing is found counts as breast everywhere.
    """
    from scipy import ndimage

    small = film.convert("L")
    small.thumbnail((256, 256), Image.Resampling.BOX)
    grey = ndimage.gaussian_filter(np.asarray(small, np.float32), 1)
    inside = ndimage.binary_opening((grey > max(12.0, 0.35 * otsu(grey))) & (grey < 245), iterations=4)
    pieces, count = ndimage.label(inside)
    if count == 0:
        return np.ones(grey.shape, bool), np.zeros(grey.shape, bool)
    shown = ndimage.binary_fill_holes(pieces == 1 + np.argmax(ndimage.sum_labels(inside, pieces, range(1, count + 1))))
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    edge = max(2, (right - left) // 20)
    chest_right = shown[:, right - edge : right].sum() > shown[:, left : left + edge].sum()
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
    inward = (right - x if chest_right else x - left) / (right - left)
    return shown, shown & (inward / 0.60 + (y - top) / (0.55 * (bottom - top)) < 1)


def otsu(grey: np.ndarray) -> float:
    """The threshold that parts the grey values into two groups with the largest variance between them (Otsu 1979)."""
    counts, edges = np.histogram(grey, 256)
    middle, below = (edges[1:] + edges[:-1]) / 2, np.cumsum(counts).astype(float)
    mass = np.cumsum(counts * middle)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(middle[np.nanargmax(between)]) if np.isfinite(between).any() else float(grey.mean())
