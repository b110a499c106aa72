"""Where does a network look? Grad-CAM maps, what they are worth in numbers, and whether they come from what was learnt.

A map is a picture and persuades like one. Here each comes with three numbers (the share of its heat inside the lesion's box, the
pointing game, the deletion curve against deletion at random) and with the control of Adebayo et al. (2018): a map that stays
the same when the network's weights are destroyed shows the image, and not the network.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from mstl.errors import MstlError
from mstl.metrics import _check

if TYPE_CHECKING:
    from torch import nn

    from mstl.datasets.imageset import ImageSet


# --- maps ---------------------------------------------------------------------------------------------------------------


def grad_cam(model: nn.Module, data: ImageSet, rows=None, *, classes=None, cells: int = 4, batch_size: int = 32) -> np.ndarray:
    """Grad-CAM maps (Selvaraju et al. 2017) of the images ``rows`` (default all) for ``classes`` (n,) or, by default, for the class that
    the network calls: float32 (n, H, W) from 0 to 1, at the size of the images.

    Of a convolutional network the deepest stage with at least ``cells`` × ``cells`` positions is read, because the last one of a small
    image has but two or three; of a vision transformer the tokens that enter its last block, without the class token.
    """
    import torch

    from mstl.models import backbones

    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:  # the package, or a graphics library that its OpenCV wants and a server lacks
        raise MstlError(f"Grad-CAM cannot be computed ({error}): pip install grad-cam, and on a machine without graphics libraries then "
                        "pip uninstall opencv-python and pip install --force-reinstall opencv-python-headless.") from error
    rows = np.arange(len(data)) if rows is None else np.asarray(rows)
    layer, reshape = target_layer(model, data.size, cells)
    wanted = None if classes is None else np.asarray(classes, dtype=int)
    if wanted is not None and wanted.shape != rows.shape:
        raise MstlError(f"{len(wanted)} classes were given for {len(rows)} images: give one an image.")
    device, out = next(model.parameters()).device, []
    with GradCAM(model=model, target_layers=[layer], reshape_transform=reshape) as method:
        for start in range(0, len(rows), batch_size):
            part = rows[start:start + batch_size]
            pixels = torch.from_numpy(np.array(data.images[part])).permute(0, 3, 1, 2).to(device)
            targets = None if wanted is None else [ClassifierOutputTarget(int(c)) for c in wanted[start:start + batch_size]]
            out.append(method(input_tensor=backbones.to_input(pixels, model.spec).contiguous(), targets=targets))
    model.zero_grad(set_to_none=True)
    return np.concatenate(out).astype(np.float32)


def target_layer(model: nn.Module, size: int, cells: int = 4):
    """The module whose output Grad-CAM reads, and the function that puts a transformer's tokens back on their grid (None of a CNN)."""
    if hasattr(model, "patch_embed") and hasattr(model, "blocks"):
        prefix, (height, width) = getattr(model, "num_prefix_tokens", 0), model.patch_embed.grid_size

        def reshape(tokens):
            patches = tokens[:, prefix:]
            return patches.reshape(len(patches), height, width, -1).permute(0, 3, 1, 2)

        return model.blocks[-1].norm1, reshape
    stages = getattr(model, "feature_info", None)
    if not stages:
        raise MstlError(f"{model.spec.backbone} does not say where its stages are, so Grad-CAM has no layer to read: take a CNN or a ViT of timm.")
    stages = list(getattr(stages, "info", stages))
    enough = [stage for stage in stages if size / stage["reduction"] >= cells] or stages[:1]
    return model.get_submodule(enough[-1]["module"]), None


def shuffled(model: nn.Module, *, depth: float = 1.0, seed: int = 0) -> nn.Module:
    """A copy of the network whose head and last stages (a share ``depth`` of all, 0 … 1) have the entries of every tensor in random order.

    The cascading randomisation of Adebayo et al. (2018), from the output down; they draw weights anew, here each tensor keeps its
    values, so that activations keep their scale.
    """
    import torch

    from mstl.models import backbones

    if not 0 <= depth <= 1:
        raise MstlError(f"depth={depth}: the share of stages whose weights are shuffled lies between 0 (the head alone) and 1 (all).")
    stages = backbones.stages(model)
    names = set(backbones.head_names(model)).union(*stages[len(stages) - round(depth * len(stages)):])
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in other.named_parameters():
            if name in names:
                order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
                tensor.copy_(tensor.flatten()[order].reshape(tensor.shape))
    return other.eval()


# --- what they are worth ------------------------------------------------------------------------------------------------


def inside(heat: np.ndarray, boxes) -> np.ndarray:
    """Share of each map's heat within the lesion's box, (n,), NaN where a map is empty: ``heat`` (n, H, W) ≥ 0, ``boxes`` (n, 4) in pixels,
    cut at the edge. A map without preference gives the box's share of the image, see :func:`area`."""
    masks = _masks(heat, boxes)
    total = heat.sum(axis=(1, 2))
    return np.divide((heat * masks).sum(axis=(1, 2)), total, out=np.full(len(heat), np.nan), where=total > 0)


def area(shape, boxes) -> np.ndarray:
    """Share (n,) of an image of ``shape`` (H, W) that each box covers."""
    b = _check.boxes(boxes)
    return _masks(np.zeros((len(b), *shape)), b).mean(axis=(1, 2))


def pointing(heat: np.ndarray, boxes) -> np.ndarray:
    """The pointing game (Zhang et al. 2018): whether each map's hottest pixel lies in the lesion's box, float (n,), NaN where a map is
    empty. Of several hottest pixels the share that does."""
    hottest = heat == heat.max(axis=(1, 2), keepdims=True)
    found = (hottest & _masks(heat, boxes)).sum(axis=(1, 2)) / hottest.sum(axis=(1, 2))
    return np.where(heat.max(axis=(1, 2)) > 0, found, np.nan)


def deletion(model: nn.Module, data: ImageSet, classes, heat: np.ndarray | None, *, grid: int = 8, steps: int = 8, seed: int = 0) -> np.ndarray:
    """Deletion curves (Petsiuk et al. 2018): the probability of ``classes`` (n,) while squares of a ``grid`` × ``grid`` are painted with the
    image's mean grey, the hottest first, or in random order where ``heat`` is None: float64 (n, steps + 1), from nothing to everything.

    Squares, and not single pixels: random pixels are noise that breaks any network at once, and any order would win against it.
    """
    import dataclasses

    from mstl import training

    n, size = len(data), data.size
    edges = np.linspace(0, size, grid + 1).round().astype(int)
    if grid < 2 or not 1 <= steps <= grid * grid or (np.diff(edges) < 1).any():
        raise MstlError(f"grid={grid}, steps={steps}: an image of {size} pixels is parted into at least 2 × 2 squares of whole pixels, which are "
                        f"painted in 1 to {max(grid, 2) ** 2} steps.")
    if heat is None:
        rng = np.random.default_rng(seed)
        order = np.stack([rng.permutation(grid * grid) for _ in range(n)])
    else:
        sums = np.add.reduceat(np.add.reduceat(heat, edges[:-1], axis=1), edges[:-1], axis=2)
        order = np.argsort(-sums.reshape(n, -1), axis=1, kind="stable")
    images = np.array(data.images)
    grey = images.reshape(n, -1, images.shape[3]).mean(axis=1).round().astype(np.uint8)
    rank = np.argsort(order, axis=1).reshape(n, grid, grid)
    rank = rank.repeat(np.diff(edges), axis=1).repeat(np.diff(edges), axis=2)
    who, called, curve = np.arange(n), np.asarray(classes, dtype=int), []
    for step in range(steps + 1):
        painted = np.where((rank < step * grid * grid / steps)[..., None], grey[:, None, None], images)
        curve.append(training.predict(model, dataclasses.replace(data, images=painted))[who, called])
    return np.stack(curve, axis=1)


def curve_area(curves: np.ndarray) -> np.ndarray:
    """Area under each deletion curve, (n,), as a share of the axis: the lower, the more the deleted squares mattered."""
    return np.trapezoid(curves, dx=1 / (curves.shape[1] - 1), axis=1)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each pair of maps (n, H, W) over their pixels, (n,), NaN where a map is flat."""
    from scipy.stats import rankdata

    x, y = (rankdata(heat.reshape(len(heat), -1), axis=1) for heat in (a, b))
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (x, y))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.full(len(x), np.nan), where=scale > 0)


def _masks(heat: np.ndarray, boxes) -> np.ndarray:
    b = _check.boxes(boxes)
    if heat.ndim != 3 or len(heat) != len(b):
        raise MstlError(f"The maps have the shape {heat.shape} and there are {len(b)} boxes: give maps (n, H, W) and one box each.")
    y, x = np.arange(heat.shape[1]) + 0.5, np.arange(heat.shape[2]) + 0.5
    rows, columns = ((b[:, [k]] <= at) & (at < b[:, [k + 2]]) for k, at in ((1, y), (0, x)))
    return rows[:, :, None] & columns[:, None, :]
