"""Augmentation presets, one a modality: what may change in such an image without changing its label, and why.

Each works on one uint8 image (C, H, W), so that every image of a batch gets its own draw. ``evaluate`` stands beside
``train``: images are prepared at the network's size, so evaluation changes nothing.

This module is part of the key of a finished fit: a change of a preset trains again (a comment does not).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from torch import Tensor
from torchvision.transforms import v2

NAMES = ("none", "natural", "microscopy", "ultrasound", "mammogram", "radiograph")


class Preset(NamedTuple):
    train: Callable[[Tensor], Tensor]
    evaluate: Callable[[Tensor], Tensor]
    why: str


@cache
def preset(name: str, size: int) -> Preset:
    """The preset ``name`` (one of ``NAMES``) for images of ``size`` pixels."""
    return {"none": _none, "natural": _natural, "microscopy": _microscopy, "ultrasound": _ultrasound,
            "mammogram": _mammogram, "radiograph": _radiograph}[name](size)


def _none(size: int) -> Preset:
    return Preset(v2.Identity(), v2.Identity(), "No augmentation: for comparisons of everything else.")


def _natural(size: int) -> Preset:
    return Preset(
        v2.Compose([
            v2.RandomCrop(size, padding=size // 8, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
        ]),
        v2.Identity(),
        "A photograph's object may stand anywhere and face either way, in any light, but not upside down.",
    )


def _microscopy(size: int) -> Preset:
    quarter_turns = [v2.Identity()] + [v2.RandomRotation((angle, angle)) for angle in (90, 180, 270)]
    return Preset(
        v2.Compose([
            v2.RandomHorizontalFlip(),
            v2.RandomChoice(quarter_turns),
            v2.ColorJitter(brightness=0.15, contrast=0.15),
        ]),
        v2.Identity(),
        "Cells on a dish have no up or down: all eight symmetries of the square, which invent no pixel. No scaling, "
        "because size tells cell lines apart; brightness follows the lamp.",
    )


def _ultrasound(size: int) -> Preset:
    return Preset(
        v2.Compose([
            v2.RandomHorizontalFlip(),
            *_shaken(size, degrees=5, shift=0.06, scale=(0.9, 1.1)),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
        ]),
        v2.Identity(),
        "Left and right depend on how the probe is held, but depth does not: no vertical flip and little rotation, or "
        "shadows would fall upwards. Gain and dynamic range are the operator's choice.",
    )


def _mammogram(size: int) -> Preset:
    return Preset(
        v2.Compose([
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            *_shaken(size, degrees=15, shift=0.05, scale=(0.9, 1.1)),
            v2.ColorJitter(brightness=0.1, contrast=0.1),
        ]),
        v2.Identity(),
        "A lesion may lie in either breast and anywhere in it, at any angle. Contrast moves little, because density is "
        "the sign that is looked for.",
    )


def _radiograph(size: int) -> Preset:
    return Preset(
        v2.Compose([
            *_shaken(size, degrees=7, shift=0.05, scale=(0.93, 1.07)),
            v2.ColorJitter(brightness=0.15, contrast=0.15),
        ]),
        v2.Identity(),
        "Positioning and exposure vary; sides do not: no flip, because the heart lies left and a marker may be burnt in.",
    )


def _shaken(size: int, *, degrees: float, shift: float, scale: tuple[float, float]) -> list[v2.Transform]:
    """Small rotation, shift and scaling; the border is mirrored first, so that no black corner comes in."""
    border = size // 4  # enough for the presets above: no black corner is ever drawn
    return [
        v2.Pad(border, padding_mode="reflect"),
        v2.RandomAffine(degrees, translate=(shift * size / (size + 2 * border),) * 2, scale=scale,
                        interpolation=v2.InterpolationMode.BILINEAR),
        v2.CenterCrop(size),
    ]
