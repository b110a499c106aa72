"""Near-copies of images: the same picture again after other contrast, overlay, compression, a small crop, a flip or a turn.

Three steps, all in blocks of arrays, none of which compares pixels of two images one pair at a time in Python:

1. *Prints.* Each image is made grey, freed of its padding, resized to 64 × 64 and locally normalised (difference of Gaussians
   over its local deviation), so that brightness, contrast and slow shading drop out.
2. *Candidates.* 16 × 16 prints of the whole image and of windows of it are correlated with every other image by
   matrix products; each image keeps its few best partners. Chest X-rays all look alike at this scale, so this step only ranks.
3. *Verification.* Each candidate is aligned (position and scale of both axes, by Gauss-Newton steps) on the 64 × 64 prints and
   the correlation after alignment is its *similarity*.

What is found, of 100 copies made by us of BUSI images / of chest X-rays, among all others and at a similarity of 0.85: JPEG of
quality 20, 99 / 100; blurred, 97 / 100; noise of SD 12, 85 / 100; gamma 0.6, 88 / 99; contrast × 1.5 cut to black and white,
56 / 93; callipers and text, 70 / 100; cropped by 5, 10 and 15 % of the sides, 99, 95, 75 / 99, 89, 50; by 8 % of one side,
97 / 50; flipped, 98 / 100. A rotation by 3° is not found at all: sets augmented by rotation need their originals as groups.
No other chest X-ray was matched.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FINE, COARSE = 64, 16  # sides of the prints, pixels
PARTNERS = 4  # candidates kept for an image
CROPS = (0.06, 0.12)  # shares of a side that the windows of step 2 leave out
PADDING = 4  # grey level up to which an even border counts as padding
STRUCTURE = 0.25  # an image with detail on less of its area than this is too plain to be judged
_CHUNK, _PAIRS = 1024, 256  # images, and pairs, worked on at a time

Window = tuple[float, float, float, float]  # x0, y0, x1, y1 as shares of the side
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)
WINDOWS: tuple[Window, ...] = (WHOLE, *((x * c, y * c, 1 - c + x * c, 1 - c + y * c)
                                        for c in CROPS for x, y in ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))))
# The eight ways to lay a square on itself: (transposed, upside down, left-right).
ORIENTATIONS = {"same": [(0, 0, 0)], "flip": [(0, 0, 0), (0, 0, 1)],
                "all": [(t, v, h) for t in (0, 1) for v in (0, 1) for h in (0, 1)]}


class Prints(NamedTuple):
    """What is compared of N images: ``coarse`` float32 (windows, N, 256) of unit length, ``square`` float32 (N, 256) the
    same of the image with its padding, ``fine`` int8 (N, 64, 64), ``box`` (N, 4) where the image lies in its padding (shares
    of the side), ``flat`` (N,) true where an image has no structure to compare."""

    coarse: np.ndarray
    square: np.ndarray
    fine: np.ndarray
    box: np.ndarray
    flat: np.ndarray

    def take(self, rows: np.ndarray) -> Prints:
        return Prints(self.coarse[:, rows], self.square[rows], self.fine[rows], self.box[rows], self.flat[rows])


class Matches(NamedTuple):
    """Verified pairs: rows ``i`` and ``j``, their ``similarity`` (−1…1), and the orientation of j that matched."""

    i: np.ndarray
    j: np.ndarray
    similarity: np.ndarray
    orientation: np.ndarray


def prints(images: np.ndarray) -> Prints:
    """The prints of uint8 images (N, H, W, C), C 1 or 3, of any size; read in chunks, so a memory map stays on disk."""
    parts = [_prints(np.asarray(images[s : s + _CHUNK])) for s in range(0, len(images), _CHUNK)]
    return Prints(np.concatenate([p.coarse for p in parts], 1), *(np.concatenate([p[k] for p in parts]) for k in range(1, 5)))


def matches(a: Prints, b: Prints | None = None, *, threshold: float, orientations: str = "flip") -> Matches:
    """Pairs of an image of ``a`` and one of ``b`` (or two of ``a``, i < j) whose similarity is at least ``threshold``."""
    other = a if b is None else b
    pairs = []
    for number, way in enumerate(ORIENTATIONS[orientations]):
        turned = _turn(other.coarse[0].reshape(-1, COARSE, COARSE), way).reshape(len(other.flat), -1)
        i, j, window = _candidates(a, other, turned, whole_only=number > 0, within=b is None)
        if len(i):
            similarity = _verify(a.fine, other.fine, i, j, window, way, threshold)
            keep = similarity >= threshold
            pairs.append((i[keep], j[keep], similarity[keep], np.full(keep.sum(), number)))
    if not pairs:
        return Matches(*(np.empty(0, int), np.empty(0, int), np.empty(0), np.empty(0, int)))
    i, j, similarity, number = (np.concatenate(column) for column in zip(*pairs))
    if b is None:
        i, j = np.minimum(i, j), np.maximum(i, j)
    order = np.lexsort((-similarity, j, i))
    i, j, similarity, number = i[order], j[order], similarity[order], number[order]
    first = np.ones(len(i), bool)
    first[1:] = (i[1:] != i[:-1]) | (j[1:] != j[:-1])
    return Matches(i[first], j[first], similarity[first], number[first])


# -------------------------------------------------------------------------------------------------------------- prints

def _prints(images: np.ndarray) -> Prints:
    from PIL import Image

    grey = images[..., 0] if images.shape[-1] == 1 else np.rint(images @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    n, height, width = grey.shape
    box = np.array([_content(g) for g in grey], float).reshape(n, 4)
    cut = np.empty((n, FINE, FINE), np.float32)
    square = np.empty((n, FINE, FINE), np.float32)
    for k, g in enumerate(grey):
        image = Image.fromarray(g)
        cut[k] = image.resize((FINE, FINE), Image.Resampling.BICUBIC, box=tuple(box[k]))
        padded = tuple(box[k]) != (0, 0, width, height)
        square[k] = image.resize((FINE, FINE), Image.Resampling.BICUBIC) if padded else cut[k]
    coarse = np.stack([_unit(_shrink(cut, window)) for window in WINDOWS])
    local = _normalise(cut, 0.55, 1.7, 5.3)
    flat = (np.abs(local) > 0.25).mean((1, 2)) < STRUCTURE
    return Prints(coarse, _unit(_shrink(square, WHOLE)), np.rint(local * 50).astype(np.int8),
                  box / np.array([width, height, width, height]), flat)


def _content(grey: np.ndarray) -> tuple[int, int, int, int]:
    """The box of one image (H, W) without its dark padding; the whole image where little would be left."""
    height, width = grey.shape
    rows, columns = np.flatnonzero(grey.max(1) > PADDING), np.flatnonzero(grey.max(0) > PADDING)
    if len(rows) < height / 4 or len(columns) < width / 4:
        return 0, 0, width, height
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _normalise(x: np.ndarray, low: float, high: float, around: float) -> np.ndarray:
    """Difference of Gaussians over the local deviation, cut at ±2.5 so that overlays do not rule; (N, S, S).

    Black pixels count as absent, so that the outline of a round or slanted field of view, which all images of a
    device share, leaves no mark.
    """
    seen = (x > PADDING).astype(np.float32)
    around_seen = [np.maximum(_blur(seen, sigma), 1e-3) if sigma else np.maximum(seen, 1e-3) for sigma in (low, high, around)]
    masked = x * seen
    detail = ((_blur(masked, low) if low else masked) / around_seen[0] - _blur(masked, high) / around_seen[1]) * seen
    deviation = np.sqrt(np.maximum(_blur(detail * detail, around) / around_seen[2], 0))
    return np.clip(detail / (deviation + 2), -2.5, 2.5)  # 2 grey levels: noise of an empty region stays small


def _blur(x: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    g = gaussian_filter1d(np.eye(x.shape[-1]), sigma, axis=0, mode="nearest").astype(np.float32)
    return g @ x @ g.T


def _shrink(x: np.ndarray, window: Window) -> np.ndarray:
    """The window of images (N, 64, 64), averaged over the cells of a 16 × 16 grid."""
    x0, y0, x1, y1 = window
    return _cells(y0, y1) @ x @ _cells(x0, x1).T


def _cells(start: float, stop: float) -> np.ndarray:
    """(16, 64): how much of each cell of the grid between start and stop every pixel covers."""
    edges = np.linspace(start, stop, COARSE + 1) * FINE
    pixel = np.arange(FINE)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(overlap, 0) / np.diff(edges)[:, None]).astype(np.float32)


def _unit(x: np.ndarray) -> np.ndarray:
    flat = _normalise(x, 0, 1, 3).reshape(len(x), -1)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _turn(maps: np.ndarray, way: tuple[int, int, int]) -> np.ndarray:
    transposed, upside_down, left_right = way
    maps = maps.transpose(0, 2, 1) if transposed else maps
    return maps[:, :: -1 if upside_down else 1, :: -1 if left_right else 1]


# ---------------------------------------------------------------------------------------------------------- candidates

def _candidates(a: Prints, b: Prints, turned: np.ndarray, *, whole_only: bool,
                within: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows i of a, j of b, and the window (P, 4) of j that i seems to show: the best few partners of every image."""
    left = [a.coarse[0]] if whole_only else [a.coarse[0]] * len(WINDOWS) + list(a.coarse[1:]) + [a.square]
    right = [turned] if whole_only else list(b.coarse) + [b.coarse[0]] * (len(WINDOWS) - 1) + [b.square]
    if within and not whole_only:  # window of i in j is found from j's side
        left, right = left[: len(WINDOWS)] + left[-1:], right[: len(WINDOWS)] + right[-1:]
    partners = PARTNERS if not whole_only else 1
    found = []
    for start in range(0, len(a.flat), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(a.flat)))
        best = np.full((len(rows), len(b.flat)), -1, np.float32)
        for x, y in zip(left, right):
            np.maximum(best, x[rows] @ y.T, out=best)
        best[a.flat[rows]] = -1
        best[:, b.flat] = -1
        if within:
            best[np.arange(len(rows)), rows] = -1
        found.append(_best(best, rows, partners))
        if not within:
            j, i = _best(best.T, np.arange(len(b.flat)), 1)
            found.append((rows[i], j))
    i, j = (np.concatenate(column) for column in zip(*found))
    if within and whole_only:
        i, j = np.minimum(i, j), np.maximum(i, j)
    i, j = np.unique(np.stack([i, j]), axis=1)
    return i, j, _windows(a, b, i, j, left, right)


def _best(score: np.ndarray, rows: np.ndarray, partners: int) -> tuple[np.ndarray, np.ndarray]:
    partners = min(partners, score.shape[1])
    columns = np.argpartition(score, score.shape[1] - partners, axis=1)[:, -partners:]
    good = np.take_along_axis(score, columns, 1) > 0.3
    return np.repeat(rows, partners).reshape(-1, partners)[good], columns[good]


def _windows(a: Prints, b: Prints, i: np.ndarray, j: np.ndarray, left: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
    """(P, 4): the window of j (shares of its side) that image i shows, by the best of the coarse comparisons."""
    score = np.stack([np.einsum("pk,pk->p", x[i], y[j]) for x, y in zip(left, right)])
    if len(left) == 1:
        return np.tile(WHOLE, (len(i), 1))
    forward = np.array(WINDOWS)
    size = forward[:, 2:] - forward[:, :2]
    backward = np.concatenate([-forward[:, :2] / size, (1 - forward[:, :2]) / size], 1)[1:]  # j is a window of i
    known = np.concatenate([forward, backward])[: len(left) - 1]
    choice = score.argmax(0)
    window = known[np.minimum(choice, len(known) - 1)].copy()
    padded = choice == len(left) - 1
    side = np.tile(b.box[j][:, 2:] - b.box[j][:, :2], 2)
    window[padded] = ((a.box[i] - np.tile(b.box[j][:, :2], 2)) / side)[padded]
    return window


# -------------------------------------------------------------------------------------------------------- verification

def _verify(fine_a: np.ndarray, fine_b: np.ndarray, i: np.ndarray, j: np.ndarray, window: np.ndarray,
            way: tuple[int, int, int], threshold: float) -> np.ndarray:
    """(P,) correlation of the fine prints after alignment; hopeless pairs are given up after a coarse look."""
    similarity = np.full(len(i), -1.0)
    for start in range(0, len(i), _PAIRS):
        at = np.arange(start, min(start + _PAIRS, len(i)))
        fixed, moved = fine_a[i[at]], _turn(fine_b[j[at]], way)
        p = _align(fixed, moved, window[at].astype(np.float32), steps=3, grid=24)
        rough = _correlation(fixed, moved, p, grid=24)
        go = np.flatnonzero(rough > threshold - 0.33)
        if len(go):
            p = _align(fixed[go], moved[go], p[go], steps=4, grid=32)
            similarity[at[go]] = _correlation(fixed[go], moved[go], p, grid=48)
    return similarity


def _align(fixed: np.ndarray, moved: np.ndarray, p: np.ndarray, *, steps: int, grid: int) -> np.ndarray:
    """Gauss-Newton on the window p (P, 4) of ``moved`` that looks like the whole of ``fixed``, with a free gain."""
    t = _grid(grid)
    still = _sample(fixed, np.tile(WHOLE, (len(p), 1)).astype(np.float32), t)[0]
    for _ in range(steps):
        value, dx, dy, inside = _sample(moved, p, t)
        value, target = _centred(value, inside), _centred(still, inside)
        gain = np.maximum((value * target).sum((1, 2)) / np.maximum((value * value).sum((1, 2)), 1), 0.3)[:, None, None]
        residual = (target - gain * value).reshape(len(p), -1)
        dx, dy = dx * inside * gain * FINE, dy * inside * gain * FINE
        jacobian = np.stack([dx * (1 - t), dy * (1 - t)[:, None], dx * t, dy * t[:, None]], 1).reshape(len(p), 4, -1)
        hessian = jacobian @ jacobian.transpose(0, 2, 1)
        damping = 1e-3 * np.trace(hessian, axis1=1, axis2=2) + 1e-3
        hessian += damping[:, None, None] * np.eye(4, dtype=np.float32)
        step = np.linalg.solve(hessian, jacobian @ residual[..., None])[..., 0]
        p = np.clip(p + np.clip(step, -0.04, 0.04), (-0.35, -0.35, 0.65, 0.65), (0.35, 0.35, 1.35, 1.35)).astype(np.float32)
    return p


def _correlation(fixed: np.ndarray, moved: np.ndarray, p: np.ndarray, *, grid: int) -> np.ndarray:
    """(P,) Pearson correlation over the part that both images show; −1 where that is less than half."""
    t = _grid(grid)
    still = _sample(fixed, np.tile(WHOLE, (len(p), 1)).astype(np.float32), t)[0]
    value, _, _, inside = _sample(moved, p, t)
    value, target = _centred(value, inside), _centred(still, inside)
    norm = np.sqrt((value * value).sum((1, 2)) * (target * target).sum((1, 2)))
    r = (value * target).sum((1, 2)) / np.maximum(norm, 1)
    return np.where(inside.mean((1, 2)) < 0.5, -1, r)


def _sample(maps: np.ndarray, p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear values (P, grid, grid) of maps within the windows p, their slopes per pixel, and 1 where inside the map."""
    x = (p[:, :1] + (p[:, 2:3] - p[:, :1]) * t) * FINE - 0.5
    y = (p[:, 1:2] + (p[:, 3:4] - p[:, 1:2]) * t) * FINE - 0.5
    x_inside, y_inside = (abs(u - (FINE - 1) / 2) <= FINE / 2 for u in (x, y))
    inside = (y_inside[:, :, None] & x_inside[:, None, :]).astype(np.float32)
    x, y = np.clip(x, 0, FINE - 1), np.clip(y, 0, FINE - 1)
    column, row = np.minimum(x.astype(np.int32), FINE - 2), np.minimum(y.astype(np.int32), FINE - 2)
    fx, fy = (x - column)[:, None, :], (y - row)[:, :, None]
    corner = (np.arange(len(maps), dtype=np.int32)[:, None, None] * FINE + row[:, :, None]) * FINE + column[:, None, :]
    values = np.ascontiguousarray(maps).reshape(-1)
    a, b, c, d = (values[corner + shift].astype(np.float32) for shift in (0, 1, FINE, FINE + 1))
    upper, lower = a + fx * (b - a), c + fx * (d - c)
    return upper + fy * (lower - upper), (b - a) * (1 - fy) + (d - c) * fy, lower - upper, inside


def _centred(value: np.ndarray, inside: np.ndarray) -> np.ndarray:
    mean = (value * inside).sum((1, 2), keepdims=True) / np.maximum(inside.sum((1, 2), keepdims=True), 1)
    return (value - mean) * inside


def _grid(n: int) -> np.ndarray:
    return ((np.arange(n) + 0.5) / n).astype(np.float32)
