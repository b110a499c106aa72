"""Two detectors of one class of box behind one interface: torchvision's SSDlite on a timm backbone, and ultralytics' YOLOv5u.

>>> model = create("ssdlite", image_size=96, backbone="tf_efficientnet_lite0", seed=0)
>>> model.loss(images, boxes)     # uint8 (B, C, H, W), a list of B tensors (k, 4) -> a number to minimise
>>> model.detect(images)          # a list of B pairs: boxes (m, 4) in pixels, scores (m,) from 0 to 1, the highest first

SSDlite (Liu et al. 2016; the light head of Sandler et al. 2018) needs nothing beyond torchvision (BSD). YOLOv5u is the package
ultralytics (AGPL-3.0, the extra ``[detection]``): its ``yolov5n.yaml`` is YOLOv5 with an anchor-free head, hence the u. It is built
from the file of its architecture, so no weights are downloaded.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead

from mstl.errors import MstlError
from mstl.models import backbones

KINDS = ("ssdlite", "yolov5u")
LEVELS = 3  # feature maps that boxes are looked for on, the coarsest ones: strides 8, 16 and 32
#: Sides of SSD's default boxes as shares of the image, one a level and one beyond; each with the shapes 1:1, 1:2, 2:1, 1:3, 3:1.
SCALES = (0.12, 0.25, 0.5, 0.9)
NEGATIVES = 3  # background boxes a positive one, and at least in every image
OVERLAP = 0.45  # of two boxes that overlap more, the lower score is dropped
CANDIDATES = 100


def create(kind: str, *, image_size: int, backbone: str = "tf_efficientnet_lite0", channels: int = 1, weights: str | Path | None = None,
           seed: int = 0, keep: int = 10) -> nn.Module:
    """A detector of one class with fresh heads; ``seed`` fixes every weight that ``weights`` does not give.

    ``weights`` are those of the backbone of SSDlite, as in :func:`mstl.models.backbones.create`: None, "imagenet", a file or the
    folder of a classifier's checkpoint. ``keep``: boxes an image at most. ``backbone`` and ``weights`` are SSDlite's alone: YOLOv5u has a
    backbone of its own and starts at random.
    """
    if kind not in KINDS:
        raise MstlError(f"detector='{kind}' is unknown: use {' or '.join(KINDS)}.")
    if kind == "yolov5u":
        if weights is not None:
            raise MstlError("YOLOv5u has a backbone of its own and takes no classifier's weights: use detector='ssdlite', or a source with boxes.")
        if image_size % 32:
            raise MstlError(f"YOLOv5u takes images whose side is a multiple of 32 pixels, not {image_size}: choose another image_size.")
        return YOLOv5u(channels, image_size, seed, keep)
    net = backbones.create(backbone, 2, image_size=image_size, channels=channels, weights=weights, seed=seed)
    return SSDLite(net, seed, keep)


class SSDLite(SSD):
    """torchvision's SSD with depthwise heads on the last three feature maps of a timm network.

    Two things differ from torchvision's: the default boxes are those of small images, and an image without any box teaches
    background too (torchvision takes three background boxes a true one, so from such an image none; half of ours have none).
    """

    def __init__(self, net: nn.Module, seed: int, keep: int) -> None:
        spec = net.spec
        features = _Features(net, spec.backbone)
        anchors = DefaultBoxGenerator([[2, 3]] * LEVELS, scales=list(SCALES))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = SSDLiteHead(features.widths, anchors.num_anchors_per_location(), 2, nn.BatchNorm2d)
        super().__init__(features, anchors, (spec.image_size,) * 2, 2, image_mean=list(spec.mean), image_std=list(spec.std), head=head,
                         score_thresh=0.0, nms_thresh=OVERLAP, detections_per_img=keep, topk_candidates=CANDIDATES)
        self.spec = spec

    def loss(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        targets = [{"boxes": box.reshape(-1, 4).float(), "labels": torch.ones(len(box), dtype=torch.int64, device=box.device)} for box in boxes]
        return sum(self(_colour(images), targets).values())

    @torch.inference_mode()
    def detect(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        self.eval()
        return [(found["boxes"], found["scores"]) for found in self(_colour(images))]

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs) -> dict[str, Tensor]:
        """Smooth L1 over the matched default boxes, cross-entropy over them and the hardest ``NEGATIVES`` background boxes for each."""
        box_loss, n_matched, labels = 0.0, 0, []
        for target, regression, anchor, matched in zip(targets, head_outputs["bbox_regression"], anchors, matched_idxs, strict=True):
            rows = torch.where(matched >= 0)[0]
            truth = target["boxes"][matched[rows]]
            box_loss = box_loss + F.smooth_l1_loss(regression[rows], self.box_coder.encode_single(truth, anchor[rows]), reduction="sum")
            n_matched += len(rows)
            labels.append((matched >= 0).long())
        label = torch.stack(labels)
        logits = head_outputs["cls_logits"]
        each = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").view_as(label)
        positive = label > 0
        hardest = torch.where(positive, -torch.inf, each.detach()).argsort(dim=1, descending=True).argsort(dim=1)
        negative = (hardest < (NEGATIVES * positive.sum(1, keepdim=True)).clamp(min=NEGATIVES)) & ~positive
        count = max(1, n_matched)
        return {"bbox_regression": box_loss / count, "classification": each[positive | negative].sum() / count}


class YOLOv5u(nn.Module):
    """ultralytics' YOLOv5n with its anchor-free head, its own loss and non-maximum suppression."""

    def __init__(self, channels: int, image_size: int, seed: int, keep: int) -> None:
        super().__init__()
        os.environ.setdefault("YOLO_OFFLINE", "true")
        os.environ.setdefault("YOLO_VERBOSE", "false")
        try:
            from ultralytics.cfg import get_cfg
            from ultralytics.nn.tasks import DetectionModel, yaml_model_load
        except ImportError as missing:
            raise MstlError("detector='yolov5u' needs the package ultralytics (AGPL-3.0): pip install 'mstl[detection]', or use 'ssdlite'.") from missing
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = DetectionModel(yaml_model_load("yolov5n.yaml") | {"nc": 1}, ch=3, verbose=False)
        self.net.args = get_cfg()
        self.keep = keep
        self.spec = backbones.Spec("yolov5n", ("background", "finding"), image_size, channels, "replicate", (0.0,) * 3, (1.0,) * 3)

    def loss(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        side = images.shape[-1]
        all_boxes = torch.cat([box.reshape(-1, 4) for box in boxes]).float()
        middle, size = (all_boxes[:, :2] + all_boxes[:, 2:]) / 2, all_boxes[:, 2:] - all_boxes[:, :2]
        number = torch.cat([torch.full((len(box),), float(i), device=images.device) for i, box in enumerate(boxes)])
        batch = {"img": torch.stack(_colour(images)), "batch_idx": number, "cls": torch.zeros(len(number), 1, device=images.device),
                 "bboxes": torch.cat([middle, size], dim=1) / side}
        return self.net(batch)[0].sum() / len(images)

    @torch.inference_mode()
    def detect(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        from ultralytics.utils.nms import non_max_suppression

        self.eval()
        side = images.shape[-1]
        found = non_max_suppression(self.net(torch.stack(_colour(images))), conf_thres=1e-4, iou_thres=OVERLAP, max_det=self.keep)
        return [(boxes[:, :4].clamp(0, side), boxes[:, 4]) for boxes in found]


class _Features(nn.Module):
    """A timm network as torchvision's detectors take it: a dictionary of feature maps, the finest first."""

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__()
        strides = [level["reduction"] for level in net.feature_info] if isinstance(getattr(net, "feature_info", None), list) else []
        if len(set(strides[-LEVELS:])) < LEVELS or not hasattr(net, "forward_intermediates"):
            raise MstlError(f"SSDlite needs feature maps at {LEVELS} resolutions and '{name}' does not give them: choose a convolutional backbone.")
        net.prune_intermediate_layers(LEVELS, prune_norm=True, prune_head=True)
        self.net, self.widths = net, [level["num_chs"] for level in net.feature_info[-LEVELS:]]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.net.forward_intermediates(x, indices=LEVELS, intermediates_only=True)
        return OrderedDict((str(level), each) for level, each in enumerate(maps))


def _colour(images: Tensor) -> list[Tensor]:
    """uint8 (B, C, H, W) as B float images of three channels from 0 to 1."""
    return list((images.float() / 255).expand(-1, 3, -1, -1))
