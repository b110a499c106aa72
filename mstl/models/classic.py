"""AlexNet and GoogLeNet, which timm does not have: torchvision's networks in timm's manners.

``backbones.create("torchvision.alexnet", …)`` builds them; what timm's models offer and this package uses is added here:
``forward_features``, ``forward_head``, ``group_matcher`` and ``pretrained_cfg``.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision.models as networks
from torch import nn

from mstl.errors import MstlError

#: Names begin with this.
PREFIX = "torchvision."


class AlexNet(networks.AlexNet):
    """Krizhevsky 2014 ("one weird trick"), as in torchvision; 4 096 features before the head; images of 63 pixels at least."""

    pretrained_cfg = {"classifier": "classifier.6", "first_conv": "features.0", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    smallest = 63

    def __init__(self, num_classes: int, drop_rate: float) -> None:
        super().__init__(num_classes=num_classes, dropout=drop_rate)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.classifier[:-1](self.avgpool(x).flatten(1))
        return x if pre_logits else self.classifier[-1](x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^features\.0\.", "blocks": [(r"^features\.(\d+)", None)], "hidden": [(r"^classifier\.(\d+)", None)]}


class GoogLeNet(networks.GoogLeNet):
    """Szegedy et al. 2015 with batch normalisation and without its auxiliary classifiers, as in torchvision; 1 024 features.

    torchvision's weights want pixels in −1 … 1, which it makes by ``transform_input``; here mean and deviation are 0.5."""

    pretrained_cfg = {"classifier": "fc", "first_conv": "conv1.conv", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    smallest = 32

    def __init__(self, num_classes: int, drop_rate: float) -> None:
        super().__init__(num_classes=num_classes, aux_logits=False, init_weights=False, dropout=drop_rate)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        for name, module in self.named_children():  # in the order of the network
            if name == "avgpool":
                break
            x = module(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.dropout(self.avgpool(x).flatten(1))
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^conv\d", "blocks": [(r"^inception3", (1,)), (r"^inception4", (2,)), (r"^inception5", (3,))]}


NETWORKS = {f"{PREFIX}alexnet": AlexNet, f"{PREFIX}googlenet": GoogLeNet}


def build(name: str, n_classes: int, image_size: int, inputs: int, drop_rate: float) -> nn.Module:
    """The network ``name`` for square images of ``image_size`` pixels with ``inputs`` channels."""
    kind = NETWORKS[name]
    if image_size < kind.smallest:
        raise MstlError(f"{name} cannot take images of {image_size} pixels: use {kind.smallest} or more.")
    if inputs != 3:
        raise MstlError(f"{name} has a stem for three channels: create it with grey='replicate'.")
    return kind(n_classes, drop_rate)


def imagenet(name: str) -> dict[str, torch.Tensor]:
    """torchvision's ImageNet weights, from its cache or by download."""
    try:
        return networks.get_model_weights(name.removeprefix(PREFIX)).DEFAULT.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, no disk, a damaged file
        raise MstlError(f"The ImageNet weights of '{name}' could not be fetched from torchvision ({type(error).__name__}): "
                        f"create('{name}', weights='path/to/file.pth') takes a local file, which https://download.pytorch.org/models offers.") from error
