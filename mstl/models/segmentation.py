"""A U-Net whose encoder is a backbone of this package, and the loop that trains it on masks.

    model = create("tf_efficientnet_lite0", image_size=96, channels=1, weights="imagenet", seed=0)
    result = fit(model, data, split.train, split.val, Recipe(lr=1e-3, steps=40, monitor="loss"), folder=Path("fits/example"))
    masks = predict(result.model, data, split.test) >= 0.5

The network is that of segmentation-models-pytorch; the weights of its encoder come from where those of :mod:`mstl.models.backbones`
come from, under the same strict check. The loop keeps the rules of :mod:`mstl.training`, whose pieces it is made of: every random
number of an epoch follows from (seed, epoch), a killed fit goes on from its last saved epoch, a finished one is loaded, and a loss
that is not finite stops it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mstl import training
from mstl.errors import MstlError
from mstl.models import backbones, classic

if TYPE_CHECKING:
    from mstl.datasets.imageset import ImageSet

#: Channels of the decoder from the coarsest scale to the finest: half of the library's own, for a CPU.
DECODER = (128, 64, 32, 16, 8)


def create(
    backbone: str, *, image_size: int = 96, channels: int = 3, weights: str | Path | None = None, seed: int = 0,
    decoder: Sequence[int] = DECODER,
) -> nn.Module:
    """A U-Net (Ronneberger et al. 2015) with one output, a logit a pixel, and ``spec`` and ``load_report`` as of ``backbones.create``.

    ``weights`` of the encoder: None (random), "imagenet", a file or a checkpoint folder, as there. ``seed`` fixes every other weight.
    For freezing and loading, decoder and last layer are the head: a recipe's ``freeze="backbone"`` trains them alone.
    Raises MstlError for a size that is no multiple of 32, for a backbone without feature maps at scales 2, 4 … 32, and where
    segmentation-models-pytorch is not installed.
    """
    if image_size % 32:
        raise MstlError(f"A U-Net of five scales cannot take images of {image_size} pixels: use a multiple of 32, for example {max(32, 32 * round(image_size / 32))}.")
    if backbone in classic.NETWORKS:
        raise MstlError(f"{backbone} gives no feature maps at scales 2 to 32, so it cannot be the encoder of a U-Net here: use a convolutional network of timm's, "
                        "for example resnet18.")
    whole = backbones.create(backbone, 2, image_size=image_size, channels=channels, weights=weights, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _unet(backbone, tuple(decoder))
    state = whole.state_dict()
    own = model.encoder.model.state_dict()
    known = {name: state.get(name, state.get(name.replace("_", ".", 1))) for name in own}  # timm flattens names: stages_0.… for stages.0.…
    lost = [name for name, tensor in own.items() if known[name] is None or known[name].shape != tensor.shape]
    if lost:
        raise MstlError(f"The encoder of {backbone} has {len(lost)} of {len(own)} tensors that the backbone does not have, the first is '{lost[0]}': use another backbone.")
    model.encoder.model.load_state_dict(known)
    model.pretrained_cfg = {"classifier": ("decoder", "segmentation_head")}
    model.spec = replace(whole.spec, backbone=f"unet:{backbone}", classes=("background", "lesion"))
    if weights is not None:
        model.load_report = whole.load_report
    return model


def fit(
    model: nn.Module, data: ImageSet, train: np.ndarray, val: np.ndarray, recipe: training.Recipe, *, folder: Path | str | None = None,
    parent: str = "", on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> training.Fit:
    """Train ``model`` in place on the masks of the rows ``train`` and keep the state with the lowest loss on the rows ``val``.

    The loss is binary cross-entropy a pixel plus 1 − soft Dice an image. Of the recipe, ``class_weights``, ``label_smoothing``,
    ``patience`` and ``layer_decay`` must be off and ``monitor`` must be "loss". One process. Augmentation moves image and mask together. ``folder`` and ``parent`` as in
    ``training.fit``. Raises MstlError for images without masks, and what ``training.fit`` raises.
    """
    folder, train, val = None if folder is None else Path(folder), np.asarray(train), np.asarray(val)
    _check(model, data, train, val, recipe)
    key = training.fit_key(model, data, train, val, recipe, f"{parent} {code_fingerprint()}")
    finished = training._load_finished(model, folder, key)
    if finished is not None:
        return finished
    state = training._read_resume(folder, key)
    resumed = state is not None
    store = training._Store(folder, key)
    with training._torch_settings(recipe):
        outcome = _train(model, data, train, val, recipe, state or training._State(), store.save, on_epoch or (lambda row: None))
    if folder is not None:
        training._write_finished(folder, key, model, recipe, outcome)
    return training.Fit(model, outcome.table(), outcome.kept, outcome.seconds, key, resumed, folder)


def predict(model: nn.Module, data: ImageSet, index: np.ndarray | None = None, *, batch_size: int = 64) -> np.ndarray:
    """Probability of the lesion in every pixel of the rows ``index`` of ``data`` (default all): float32 (n, H, W)."""
    logits = training._forward(model, data, training._rows(data, index, model.spec), batch_size, model)
    return torch.sigmoid(logits)[:, 0].numpy()


@cache
def code_fingerprint() -> str:
    """SHA-256 of the loop below; that of the pieces of :mod:`mstl.training` is in the key as well."""
    code = training._bare_code(Path(__file__).read_text(encoding="utf-8"), {"_train", "_loss", "_evaluate", "_batch"})
    return hashlib.sha256(code.encode()).hexdigest()


def _train(model, data, train, val, recipe, state, save, show):
    """The loop over epochs; returns the final state with the kept weights in ``model``."""
    accelerator = training._accelerator(recipe.precision)
    model.to(accelerator.device, memory_format=torch.channels_last)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    groups = backbones.parameter_groups(model, lr=recipe.lr, weight_decay=recipe.weight_decay, freeze=recipe.freeze)
    bare = training._optimizer(groups, recipe)
    wrapped, optimizer = accelerator.prepare(model, bare)
    per_epoch = training._steps_per_epoch(len(train), recipe.batch_size, 1)
    total, started = recipe.steps or recipe.epochs * per_epoch, time.perf_counter() - state.seconds
    if state.model is not None:
        training._restore(state, model, bare, accelerator.scaler)

    def snapshot():
        return replace(state, model=model.state_dict(), optimizer=training._optimizer_tensors(bare), seconds=time.perf_counter() - started,
                       scaler=accelerator.scaler.state_dict() if accelerator.scaler else {})

    try:
        while state.step < total:
            epoch, losses, count = state.epoch + 1, 0.0, 0
            order = train[training._seed(recipe.seed, epoch, 0).permutation(len(train))]
            backbones.train_mode(model)
            for batch in range(min(per_epoch, total - state.step)):
                rows = order[batch * recipe.batch_size:(batch + 1) * recipe.batch_size]
                lr = recipe.lr * training._schedule(state.step, total, recipe)
                for group in optimizer.param_groups:
                    group["lr"] = lr * group["lr_scale"]
                x, y = _batch(model, data, rows, accelerator.device, recipe.augmentation)
                loss = _loss(wrapped(x).float(), y)
                if not math.isfinite(loss.item()):
                    raise training._not_finite("training loss", epoch, state.step + 1, lr, recipe)
                optimizer.zero_grad(set_to_none=True)
                accelerator.backward(loss)
                optimizer.step()
                losses, count, state.step = losses + loss.item() * len(rows), count + len(rows), state.step + 1
            state.epoch = epoch
            if not all(torch.isfinite(p).all() for p in model.parameters()):
                raise training._not_finite("weights", epoch, state.step, lr, recipe)
            row = {"epoch": epoch, "step": state.step, "lr": lr, "train_loss": losses / count} | _evaluate(model, data, val)
            if not math.isfinite(row["val_loss"]):
                raise training._not_finite("validation loss", epoch, state.step, lr, recipe)
            if recipe.keep == "last" or training._better(row, state.kept, "loss"):
                state.kept = dict(row)
                state.best = {k: v.detach().clone() for k, v in model.state_dict().items()} if recipe.keep == "best" else None
            state.history.append(row)
            save(state, snapshot)
            show(row | {"steps": total})
        state.seconds = time.perf_counter() - started
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        if state.best is not None:
            model.load_state_dict(state.best)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None
        model.eval()
    return state


def _loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy a pixel plus 1 − soft Dice an image, of logits and masks (B, 1, H, W)."""
    p, axes = torch.sigmoid(logits), (1, 2, 3)
    overlap = (2 * (p * masks).sum(axes) + 1) / (p.sum(axes) + masks.sum(axes) + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + (1 - overlap).mean()


def _evaluate(model, data, val) -> dict[str, float]:
    """The loss over the validation rows, and the mean Dice at one half."""
    from mstl.metrics.segmentation import dice

    logits = training._forward(model, data, val, 64, model)
    masks = np.asarray(data.masks[val])
    loss = _loss(logits, torch.from_numpy(masks).float()[:, None]).item()
    return {"val_loss": loss, "val_dice": float(dice(masks, (logits[:, 0] >= 0).numpy()).mean())}


def _batch(model, data, rows, device, augmentation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and masks (B, 1, H, W) of the rows, each pair augmented by one draw."""
    from torchvision import tv_tensors

    from mstl.augmentation import preset

    images = torch.from_numpy(np.ascontiguousarray(data.images[rows])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.ascontiguousarray(data.masks[rows]))[:, None]
    if augmentation != "none":
        change = preset(augmentation, model.spec.image_size).train
        pairs = [change(tv_tensors.Image(image), tv_tensors.Mask(mask)) for image, mask in zip(images, masks, strict=True)]
        images, masks = (torch.stack([pair[k].as_subclass(torch.Tensor) for pair in pairs]) for k in (0, 1))
    x = backbones.to_input(images.to(device), model.spec).contiguous(memory_format=torch.channels_last)
    return x, masks.to(device).float()


# --- Checks and building: no number comes from here. ---------------------------------------------------------------


def _unet(backbone: str, decoder: tuple[int, ...]) -> nn.Module:
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise MstlError("The U-Net comes with the package segmentation-models-pytorch: pip install segmentation-models-pytorch==0.6.0.") from error
    try:
        return smp.Unet(f"tu-{backbone}", encoder_weights=None, in_channels=3, classes=1, decoder_channels=decoder)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise MstlError(f"{backbone} gives no feature maps at scales 2 to 32 ({str(error).splitlines()[0]}), so it cannot be the encoder of a U-Net here: "
                        "use a convolutional network, for example resnet18.") from error


def _check(model: nn.Module, data: ImageSet, train: np.ndarray, val: np.ndarray, recipe: training.Recipe) -> None:
    if data.masks is None:
        raise MstlError(f"{data.name} has no masks, so nothing can learn to draw them: use a set with masks, for example busi or kvasir-segmentation.")
    if recipe.monitor != "loss" or recipe.class_weights != "none" or recipe.label_smoothing or recipe.patience or recipe.layer_decay != 1.0:
        raise MstlError("A recipe for masks needs monitor='loss' and no class_weights, label_smoothing, patience or layer_decay: leave these out.")
    if len(train) < 2 or not len(val) or len(np.intersect1d(train, val)):
        raise MstlError(f"{len(train)} training and {len(val)} validation images were given; at least two and one are needed, and none in both: draw another split.")
    training._check_images(data, model.spec)
    rows = np.concatenate([train, val])
    empty = ~np.asarray(data.masks[rows]).any(axis=(1, 2))
    if empty.any():
        raise MstlError(f"Image '{data.ids[rows[empty.argmax()]]}' of {data.name} has an empty mask: take only images with a lesion.")
