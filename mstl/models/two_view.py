"""Two views, one answer: an encoder for each view, the features joined last, one head (Guo et al. 2023).

>>> model = create("tf_efficientnet_lite0", ["normal", "metastasis"], image_size=96, weights="imagenet", aggregation="concat")
>>> training.fit(model, views.pairs(data), train, val, recipe)

The network takes what :func:`mstl.datasets.views.pairs` makes, both views as channels of one picture, so that training, prediction,
features and checkpoints are those of any other network of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mstl.errors import MstlError
from mstl.models import backbones
from mstl.models.backbones import Spec

AGGREGATIONS = ("concat", "add", "max", "attention")


class TwoView(nn.Module):
    """``encoders`` (one shared, or one a view), ``aggregation`` of their features, a linear ``head``; ``spec`` as of any model.

    The spec's mean 0 and standard deviation 1 leave pixels at 0…1; each encoder normalises its view as its own weights want it.
    """

    def __init__(self, encoders: Sequence[nn.Module], aggregation: str, mirrored: bool, spec: Spec) -> None:
        super().__init__()
        self.encoders, self.aggregation, self.mirrored, self.spec = nn.ModuleList(encoders), aggregation, mirrored, spec
        width = encoders[0].head_hidden_size
        self.attention = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 1)) if aggregation == "attention" else None
        self.head = nn.Linear(2 * width if aggregation == "concat" else width, len(spec.classes))
        self.pretrained_cfg = {"classifier": ("head", "attention")}  # what is fresh, and trains where the encoders are frozen

    def views(self, x: torch.Tensor) -> torch.Tensor:
        """Features of each view: (B, 3, H, W) of 0…1 -> (B, 2, D)."""
        first, second = x[:, :1], x[:, 1:2]
        if self.mirrored:
            second = second.flip(3)
        if len(self.encoders) == 1:  # one pass, so that batch normalisation sees both views together
            both = self._encode(0, torch.cat([first, second]))
            return torch.stack(both.chunk(2), dim=1)
        return torch.stack([self._encode(0, first), self._encode(1, second)], dim=1)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The joined features: (B, 2·D) of concat, else (B, D)."""
        views = self.views(x)
        if self.aggregation == "concat":
            return views.flatten(1)
        if self.aggregation == "max":
            return views.amax(dim=1)
        if self.aggregation == "add":
            return views.sum(dim=1)
        return (views * self.attention(views).softmax(dim=1)).sum(dim=1)

    def forward_head(self, joined: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return joined if pre_logits else self.head(joined)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def no_weight_decay(self) -> set[str]:
        return {f"encoders.{i}.{name}" for i, encoder in enumerate(self.encoders)
                for name in (encoder.no_weight_decay() if hasattr(encoder, "no_weight_decay") else ())}

    def group_matcher(self, coarse: bool = False) -> dict:
        """timm asks for the order of the layers here, to freeze some or to lower their learning rate."""
        raise MstlError("The layers of two encoders have no single order: use freeze 'none' or 'backbone', and layer_decay 1.")

    def _encode(self, number: int, view: torch.Tensor) -> torch.Tensor:
        encoder = self.encoders[number]
        spec = encoder.spec
        mean, std = (torch.tensor(v, dtype=view.dtype, device=view.device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        return backbones.features(encoder, (view.expand(-1, spec.inputs, -1, -1) - mean) / std)


def create(
    backbone: str, classes: Sequence[str], *, image_size: int = 96, weights: str | Path | None = None, aggregation: str = "concat",
    shared: bool = True, mirrored: bool = True, grey: str = "replicate", seed: int = 0,
) -> TwoView:
    """A network of two views with a head that starts at zero, and ``load_report`` of its encoder when ``weights`` were given.

    ``weights`` as in :func:`mstl.models.backbones.create`: a checkpoint of a single-view network loads whole into each encoder, or it is
    an error. ``aggregation``: "concat" joins the features end to end, "add" and "max" go feature by feature, "attention" weighs the two
    views by a softmax over a small network (Ilse et al. 2018). ``shared``: one encoder for both views. ``mirrored``: the second view is
    flipped left to right, so that the same side of the patient lies on the same side of both.
    """
    if aggregation not in AGGREGATIONS:
        raise MstlError(f"aggregation='{aggregation}' is unknown: use one of {', '.join(AGGREGATIONS)}.")
    encoders = [backbones.create(backbone, classes, image_size=image_size, grey=grey, channels=1, weights=weights, seed=seed + 1000 * number)
                for number in range(1 if shared else 2)]
    report = getattr(encoders[0], "load_report", None)
    for encoder in encoders:
        encoder.reset_classifier(0)
    words = (aggregation, "shared" if shared else "separate", "mirrored" if mirrored else "as taken")
    spec = Spec(f"{backbone}, two views ({', '.join(words)})", encoders[0].spec.classes, image_size, 3, "replicate", (0.0,) * 3, (1.0,) * 3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TwoView(encoders, aggregation, mirrored, spec)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    if report is not None:
        model.load_report = report
    return model
