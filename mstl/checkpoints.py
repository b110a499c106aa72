"""Checkpoints: ``model.safetensors`` and ``checkpoint.json`` in one folder, never pickle.

The JSON file holds the model's spec (backbone, classes, image size, normalisation), the SHA-256 of the weights, the
score and the lineage: a list of one dictionary a stage behind it, the oldest first, each with its data set, hash
and score. Both files are written aside and renamed, the JSON last: a killed process leaves no half checkpoint.
"""

from __future__ import annotations

import errno
import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstl.errors import MstlError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mstl.models.backbones import Spec
    from mstl.models.weights import LoadReport

WEIGHTS, RECORD = "model.safetensors", "checkpoint.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Checkpoint:
    """What ``checkpoint.json`` says; ``sha256`` is of the weights and was verified when this was read."""

    folder: Path
    spec: Spec
    lineage: list[dict[str, Any]]
    sha256: str
    score: Any = None
    extra: dict[str, Any] | None = None


def save(
    folder: str | Path, model: nn.Module, *, lineage: list[dict[str, Any]], score: Any = None,
    extra: dict[str, Any] | None = None,
) -> Checkpoint:
    """Write ``model`` and its record into ``folder``; the same model gives the same bytes of weights."""
    from mstl.models.weights import file_sha256

    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS, model.state_dict())
        digest = file_sha256(folder / WEIGHTS)
        record = {"spec": model.spec.as_dict(), "sha256": digest, "score": score, "lineage": list(lineage),
                  "extra": extra or {}}
        write_text(folder / RECORD, json.dumps(record, indent=1, default=_plain) + "\n")
    return Checkpoint(folder, model.spec, list(lineage), digest, score, extra or {})


def is_checkpoint(folder: str | Path) -> bool:
    return (Path(folder) / RECORD).is_file()


def read(folder: str | Path) -> Checkpoint:
    """The record of the checkpoint in ``folder``, after checking that the weights are the ones it was written with."""
    from mstl.models.backbones import Spec
    from mstl.models.weights import file_sha256

    folder = Path(folder)
    if not is_checkpoint(folder) or not (folder / WEIGHTS).is_file():
        raise MstlError(f"There is no checkpoint in {folder} ({WEIGHTS} and {RECORD}): run the stage that makes it.")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        spec, lineage, digest = Spec.from_dict(record["spec"]), list(record["lineage"]), record["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise MstlError(f"{folder / RECORD} cannot be read ({error}): run the stage that makes this checkpoint "
                        "again.") from error
    if file_sha256(folder / WEIGHTS) != digest:
        raise MstlError(f"{folder / WEIGHTS} is not the file that {RECORD} describes (its SHA-256 differs): it is "
                        "damaged or was replaced; run the stage that makes this checkpoint again.")
    return Checkpoint(folder, spec, lineage, digest, record.get("score"), record.get("extra"))


def restore(model: nn.Module, folder: str | Path, *, head: str = "auto") -> LoadReport:
    """Load the checkpoint in ``folder`` into ``model`` and say what matched and what was dropped.

    ``head``: "keep" (an error unless it fits), "drop" (the model keeps its fresh head), or "auto": kept only when the
    classes are the same, in the same order. The model takes over the checkpoint's normalisation.
    """
    from mstl.models.backbones import _per_input
    from mstl.models.weights import load_state, read_state

    if head not in ("auto", "keep", "drop"):
        raise MstlError(f"head='{head}' is unknown: use 'auto', 'keep' or 'drop'.")
    checkpoint = read(folder)
    theirs, ours = checkpoint.spec, model.spec
    if theirs.backbone != ours.backbone:
        raise MstlError(f"The checkpoint in {folder} was trained with the backbone '{theirs.backbone}', but this model "
                        f"is '{ours.backbone}': create the model with '{theirs.backbone}', or take another checkpoint.")
    if head == "keep" and len(theirs.classes) != len(ours.classes):
        raise MstlError(f"The head in {folder} has {len(theirs.classes)} classes ({', '.join(theirs.classes[:4])}…) and "
                        f"this model {len(ours.classes)}: use head='drop' to train a new one.")
    if head == "auto":
        head = "keep" if theirs.classes == ours.classes else "drop"
    report = load_state(model, read_state(Path(folder) / WEIGHTS), source=str(folder), sha256=checkpoint.sha256, head=head)
    model.spec = replace(ours, mean=_per_input(theirs.mean, ours.inputs), std=_per_input(theirs.std, ours.inputs))
    return report


def load(folder: str | Path) -> nn.Module:
    """The model of the checkpoint in ``folder``, built from its record, head and all."""
    from mstl.models.backbones import create

    spec = read(folder).spec
    model = create(spec.backbone, spec.classes, image_size=spec.image_size, grey=spec.grey, channels=spec.channels,
                   drop_rate=spec.drop_rate)
    restore(model, folder, head="keep")
    return model


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors into a safetensors file, aside first, then renamed."""
    from safetensors.torch import save_file

    aside = path.with_name(f".{path.name}.part")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, aside, metadata or {"format": "pt"})
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Text into a file, aside first, then renamed."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path):
    """Turns a full disk or a folder that cannot be written into one sentence; what was there before stays."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None) or (re.search(r"\(os error (\d+)\)", str(error)) or [0, 0])[1]  # safetensors
        full = int(number) in _FULL
        what = "the disk (or the quota) is full" if full else f"writing failed ({error})"
        raise MstlError(f"Could not write to {folder} because {what}: what was saved before is untouched, so make room "
                        "and run the same command again to continue from there.") from error


def _plain(value: Any) -> Any:
    """NumPy scalars and paths as JSON."""
    return value.item() if hasattr(value, "item") else str(value)
