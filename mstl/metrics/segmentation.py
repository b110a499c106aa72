"""How well a mask covers the truth, image by image: Dice, IoU and the 95 % Hausdorff distance.

``truth`` and ``predicted`` (N, H, W) hold 0 and 1 (or booleans). A measure gives float64 (N,), a number an image; means over images,
chains and folds with their intervals come from :class:`mstl.metrics.chains.Means`.
"""

from __future__ import annotations

import numpy as np

from mstl.errors import MstlError


def dice(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """2 |A ∩ B| / (|A| + |B|) (Dice 1945), 0 … 1, larger is better. Every truth must have a pixel: without one the ratio does not
    measure overlap."""
    truth, predicted = _masks(truth, predicted)
    return 2 * _area(truth & predicted) / (_area(truth) + _area(predicted))


def iou(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """|A ∩ B| / |A ∪ B| (Jaccard), 0 … 1, larger is better; Dice / (2 − Dice) in each image, but not of their means."""
    truth, predicted = _masks(truth, predicted)
    return _area(truth & predicted) / _area(truth | predicted)


def hausdorff(truth: np.ndarray, predicted: np.ndarray, *, percentile: float = 95.0) -> np.ndarray:
    """Percentile of the distances, in pixels, from each outline to the other, the larger of the two directions; smaller is better.

    The outline is the mask's own pixels that touch the outside, or the image's edge. Where nothing was predicted the distance does
    not exist, and the image's diagonal stands in its place: the worst that an image can have.
    """
    from scipy import ndimage

    truth, predicted = _masks(truth, predicted)
    if not 0 < percentile <= 100:
        raise MstlError(f"percentile is {percentile}; it must lie above 0 and at most at 100, for example 95")
    cross = ndimage.generate_binary_structure(2, 1)
    out = np.full(len(truth), float(np.hypot(*truth.shape[1:])))
    for row in np.flatnonzero(predicted.any(axis=(1, 2))):
        a, b = (mask & ~ndimage.binary_erosion(mask, cross) for mask in (truth[row], predicted[row]))
        away = [np.percentile(ndimage.distance_transform_edt(~other)[own], percentile) for own, other in ((a, b), (b, a))]
        out[row] = max(away)
    return out


def _area(mask: np.ndarray) -> np.ndarray:
    return mask.sum(axis=(1, 2), dtype=float)


def _masks(truth, predicted) -> tuple[np.ndarray, np.ndarray]:
    """Both as booleans (N, H, W), checked."""
    out = []
    for name, mask in (("truth", np.asarray(truth)), ("predicted", np.asarray(predicted))):
        if mask.ndim != 3 or not len(mask):
            raise MstlError(f"{name} has shape {mask.shape}; give masks as (images, height, width), at least one")
        if mask.dtype != bool and not np.isin(np.unique(mask), (0, 1)).all():
            raise MstlError(f"{name} holds values other than 0 and 1; put a threshold on probabilities first")
        out.append(mask.astype(bool))
    if out[0].shape != out[1].shape:
        raise MstlError(f"truth has shape {out[0].shape} and predicted {out[1].shape}; give the same images at the same size, in the same order")
    empty = ~out[0].any(axis=(1, 2))
    if empty.any():
        raise MstlError(f"the truth of row {int(empty.argmax())} is empty, so no overlap can be measured there; leave images without a mask out")
    return out[0], out[1]
