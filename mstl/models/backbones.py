"""Backbones from timm (and two from torchvision): one function makes a model, the rest say how it is fed, frozen and optimised.

>>> model = create("tf_efficientnet_lite0", ["benign", "malignant"], channels=1, weights="imagenet", seed=0)
>>> x = to_input(images, model.spec)          # uint8 (B, C, H, W) -> normalised float32 (B, 3, H, W)
>>> model(x).shape, features(model, x).shape  # (B, 2), (B, 1280)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mstl.errors import MstlError


@dataclass(frozen=True)
class Spec:
    """What must be known to build a model again and to feed it.

    ``channels`` is the number of channels of the images; ``grey`` says what happens to grey ones ("replicate": the
    channel is repeated three times; "adapt": the stem has one input channel). ``mean`` and ``std`` are of pixels
    scaled to 0..1, one value an input channel of the network.
    """

    backbone: str
    classes: tuple[str, ...]
    image_size: int
    channels: int
    grey: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    drop_rate: float = 0.0

    @property
    def inputs(self) -> int:
        """Input channels of the network's first layer."""
        return 1 if self.channels == 1 and self.grey == "adapt" else 3

    def as_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Spec:
        return Spec(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def create(
    backbone: str,
    classes: Sequence[str] | int,
    *,
    image_size: int = 96,
    grey: str = "replicate",
    channels: int = 3,
    weights: str | Path | None = None,
    seed: int = 0,
    drop_rate: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """A timm model with a fresh head for ``classes``, its ``spec``, and ``load_report`` when weights were given.

    ``weights``: None (random), "imagenet", a state-dict file (safetensors, or one that ``torch.load`` reads with
    ``weights_only=True``), a folder with one such file, or a checkpoint folder of this package. A backbone that does
    not load whole is an error. A fresh head starts at zero, so that every class is equally likely at first, as in Big Transfer
    (Kolesnikov et al., ECCV 2020); timm's own start of some heads gives logits of ± 12 here, which a short training spends its
    steps on. ``seed`` fixes every weight of the backbone when ``weights`` is None.
    A number of classes instead of their names also takes over the file's head when it has that many outputs
    (``create("tf_efficientnet_lite0", 1000, weights="imagenet")`` is the ImageNet classifier).

    A vision transformer is built for ``image_size``, a multiple of its patch, and the position embedding of the weights is
    interpolated to its grid. Its name may give a patch that timm has no name for: "vit_tiny_patch8_224" is timm's
    "vit_tiny_patch16_224" with patches of 8 pixels, whose filters are resampled (FlexiViT, Beyer et al. 2023); the figure at
    the end of a name is the size that it was first trained at, and changes nothing. "torchvision.alexnet" and "torchvision.googlenet"
    are torchvision's, because timm has neither. ``grey="adapt"``
    gives grey images a stem with one input channel: the sum of the three colour filters, which equals replicating the
    channel when the three means and deviations are equal. ``mean`` and ``std`` (of pixels scaled to 0..1) are the
    backbone's own unless given; a checkpoint brings its own.
    """
    from mstl import checkpoints
    from mstl.models.weights import load_weights

    names = tuple(str(i) for i in range(classes)) if isinstance(classes, int) else tuple(map(str, classes))
    _check(names, image_size, grey, channels)
    inputs = 1 if channels == 1 and grey == "adapt" else 3
    model = _build(backbone, len(names), image_size, inputs, drop_rate, seed)
    head = head_names(model)
    for name, parameter in model.named_parameters():
        if name in head:
            nn.init.zeros_(parameter)
    cfg = model.pretrained_cfg
    model.spec = Spec(
        backbone, names, image_size, int(channels), grey,
        _per_input(mean or cfg["mean"], inputs), _per_input(std or cfg["std"], inputs), float(drop_rate),
    )
    if weights is not None:
        if Path(weights).is_dir() and checkpoints.is_checkpoint(weights):
            model.load_report = checkpoints.restore(model, Path(weights))
        else:
            model.load_report = load_weights(model, weights)
        if mean or std:
            model.spec = replace(model.spec, mean=_per_input(mean or model.spec.mean, inputs),
                                 std=_per_input(std or model.spec.std, inputs))
    return model


def to_input(images: torch.Tensor, spec: Spec) -> torch.Tensor:
    """Pixels to network input: uint8 (B, C, H, W), C in {1, 3} -> float32 (B, ``spec.inputs``, H, W), normalised."""
    if images.shape[1] != spec.inputs:
        if images.shape[1] != 1:
            raise MstlError(
                f"The model takes images with one channel (grey='adapt') but was given {images.shape[1]}: "
                "create it with channels=3, or with grey='replicate'."
            )
        images = images.expand(-1, spec.inputs, -1, -1)
    mean = torch.tensor(spec.mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, device=images.device).view(1, -1, 1, 1)
    return (images.float() - 255 * mean) / (255 * std)


def features(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Pooled features before the head: normalised (B, C, H, W) -> float32 (B, D)."""
    return model.forward_head(model.forward_features(x), pre_logits=True).float()


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0, freeze: str = "none"
) -> list[dict[str, Any]]:
    """Optimiser groups, each with ``lr_scale`` and ``lr = lr * lr_scale``; freezes what ``freeze`` names.

    Biases, normalisation layers and what the model lists (position embedding, class token) have no weight decay.
    ``layer_decay`` d < 1 gives layer i of L (the head is L) the learning rate lr·d^(L−i) (BEiT, Bao et al. 2022).
    ``freeze``: "none", "backbone" (only the head trains) or "stages:K" (the last K stages and the head train; a stage
    is one resolution of a CNN or one block of a transformer).
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    trainable = _trainable(model, freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    if layer_decay == 1.0:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay)
    return [{**g, "lr_scale": g.get("lr_scale", 1.0), "lr": lr * g.get("lr_scale", 1.0)} for g in groups]


def train_mode(model: nn.Module) -> None:
    """Training mode, except in modules whose parameters are all frozen.

    These stay in evaluation mode: a frozen BatchNorm keeps the statistics that its weights were trained with, and
    frozen blocks drop nothing.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def is_convolutional(model: nn.Module) -> bool:
    """More than a patch embedding: such models run faster with channels last (measured 83 against 48 images/s)."""
    return len(list(islice((m for m in model.modules() if isinstance(m, nn.Conv2d)), 2))) == 2


def head_names(model: nn.Module) -> set[str]:
    """Names of the classifier's tensors in ``model.state_dict()``."""
    prefixes = model.pretrained_cfg.get("classifier") or ()
    prefixes = (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)
    return {n for n in model.state_dict() if any(n.startswith(p + ".") for p in prefixes)}


def stages(model: nn.Module) -> list[list[str]]:
    """Names of the backbone's parameters, stage by stage from the input (stem first), without the head."""
    from timm.models import group_parameters

    head = head_names(model)
    number = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    names = [n for n, _ in model.named_parameters() if n not in head]
    return [[n for n in names if number[n] == i] for i in sorted({number[n] for n in names})]


def _trainable(model: nn.Module, freeze: str) -> set[str]:
    everything = {n for n, _ in model.named_parameters()}
    if freeze == "none":
        return everything
    if freeze == "backbone":
        return head_names(model) & everything
    by_stage = stages(model)
    k = int(freeze.removeprefix("stages:"))
    if k > len(by_stage):
        raise MstlError(f"freeze='{freeze}' asks for more stages than the {len(by_stage)} of this backbone: "
                        f"use at most stages:{len(by_stage)}, or freeze='none'.")
    return (head_names(model) & everything).union(*by_stage[len(by_stage) - k:])


def _build(backbone: str, n_classes: int, image_size: int, inputs: int, drop_rate: float, seed: int) -> nn.Module:
    import timm

    from mstl.models import classic

    if backbone in classic.NETWORKS:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return classic.build(backbone, n_classes, image_size, inputs, drop_rate)
    name, patch = timm_name(backbone)
    cfg = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = dict(num_classes=n_classes, in_chans=inputs, drop_rate=drop_rate, **patch)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if cfg is not None and cfg.fixed_input_size:  # transformers are built for one image size
            try:
                model = timm.create_model(name, pretrained=False, img_size=image_size, **options)
                sides = getattr(getattr(model, "patch_embed", None), "patch_size", (1,))
                if image_size < max(sides):
                    raise ValueError(f"an image is smaller than a patch of {max(sides)}")
                if any(image_size % side for side in sides):  # timm would leave the rest out without a word
                    raise ValueError(f"a patch is {max(sides)} pixels")
                return model
            except (AssertionError, RuntimeError, ValueError) as error:
                raise MstlError(f"timm cannot build '{backbone}' for images of {image_size} pixels ({error}): "
                                "choose a multiple of its patch size.") from error
        return timm.create_model(name, pretrained=False, **options)


def timm_name(backbone: str) -> tuple[str, dict[str, int]]:
    """timm's name of a backbone, and the patch size where it is not the one of that name (see :func:`create`)."""
    import timm

    if timm.is_model(backbone):
        return backbone, {}
    patch = re.search(r"_patch([1-9]\d*)(?=_)", backbone)
    if patch is not None:
        for known in ("16", "14", "32"):
            name = backbone[:patch.start(1)] + known + backbone[patch.end(1):]
            if timm.is_model(name):
                return name, {"patch_size": int(patch.group(1))}
    from mstl.models import classic

    near = difflib.get_close_matches(backbone, [*classic.NETWORKS, *timm.list_models()], n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else "timm.list_models() lists them."
    raise MstlError(f"timm has no backbone named '{backbone}': {hint}")


def _per_input(values: Sequence[float], inputs: int) -> tuple[float, ...]:
    """One value an input channel: an adapted grey stem takes the mean over the colours."""
    values = tuple(float(v) for v in values)
    if len(values) == inputs:
        return values
    return (sum(values) / len(values),) * inputs


def _check(names: tuple[str, ...], image_size: int, grey: str, channels: int) -> None:
    if len(names) < 2 or len(set(names)) < len(names):
        raise MstlError(f"A classifier needs at least two classes with different names, but was given {list(names)}.")
    if grey not in ("replicate", "adapt"):
        raise MstlError(f"grey='{grey}' is unknown: use 'replicate' (repeat the channel) or 'adapt' (sum the stem).")
    if channels not in (1, 3):
        raise MstlError(f"channels={channels} is not possible: images have 1 (grey) or 3 (colour) channels.")
    if isinstance(image_size, bool) or not isinstance(image_size, int):
        raise MstlError(f"image_size={image_size!r} is not possible: images are square, so give one whole number of pixels.")
    if image_size < 8:
        raise MstlError(f"image_size={image_size} is too small: use at least 8 pixels.")
