"""Training in plain PyTorch: a recipe, a loop, and a result that a kill at any moment does not change.

    recipe = Recipe(lr=1e-3, epochs=8, augmentation="ultrasound", seed=0)
    result = fit(model, data, split.train, split.val, recipe, folder=Path("fits/example"))
    probabilities = predict(result.model, data, split.test)

Three rules make the result the same however often it was interrupted. Every random number of an epoch (order,
augmentation, dropout) derives from (seed, epoch). The state is saved at epoch ends only, aside first and then renamed.
A finished fit is keyed on everything that determines its numbers; with the same key in its folder it is loaded, and
with another one training starts anew. (Same versions, same kind of processor, same number of threads; a GPU repeats
itself only as far as its kernels do.)

Under `accelerate launch` each process takes its share of every batch; one process needs nothing.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from mstl import checkpoints
from mstl.errors import MstlError
from mstl.models import backbones

if TYPE_CHECKING:
    from mstl.datasets.imageset import ImageSet

RESUME, FINISHED, HISTORY = "resume.safetensors", "fit.json", "history.csv"
_SAVE_EVERY_SECONDS = 5.0  # saved at the first epoch end after this long; the result does not depend on it

_CHOICES = {
    "optimizer": ("adamw", "sgd", "adam", "adagrad"),
    "schedule": ("cosine", "linear", "constant"),
    "class_weights": ("none", "balanced"),
    "augmentation": ("none", "natural", "microscopy", "ultrasound", "mammogram", "radiograph"),
    "keep": ("best", "last"),
    "monitor": ("auc", "loss", "accuracy"),
    "precision": ("no", "bf16", "fp16"),
}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; a value that is not possible is an error that names the nearest one."""

    optimizer: str = "adamw"  # adamw | sgd | adam | adagrad
    lr: float = 1e-3  # peak learning rate
    weight_decay: float = 0.01  # not applied to biases and normalisation
    momentum: float = 0.9  # of sgd (no Nesterov)
    schedule: str = "cosine"  # constant | linear | cosine, to zero, by step
    warmup: float = 0.1  # share of the steps in which the learning rate rises linearly
    epochs: int | None = None  # exactly one of epochs and steps
    steps: int | None = None  # optimiser steps; validation at every epoch end and at the last step
    batch_size: int = 32
    layer_decay: float = 1.0  # factor on the learning rate from a layer to the one before it
    freeze: str = "none"  # none | backbone | stages:K (only the last K stages and the head train)
    label_smoothing: float = 0.0
    class_weights: str = "none"  # none | balanced (n / (classes · n of the class))
    augmentation: str = "none"  # none | natural | microscopy | ultrasound | mammogram | radiograph
    patience: int = 0  # epochs without improvement on validation before stopping, 0 off
    keep: str = "best"  # best (on validation) | last
    monitor: str = "auc"  # auc | loss | accuracy: what "best" means; ties go to the lower loss
    precision: str = "no"  # no | bf16 | fp16 (fp16 needs a GPU)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                near = difflib.get_close_matches(str(value), allowed, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(allowed)}."
                raise MstlError(f"{name}='{value}' is unknown in a recipe: {hint}")
        if (self.epochs is None) == (self.steps is None):
            raise MstlError("A recipe needs exactly one of epochs and steps: set one and leave the other None.")
        limits = {
            "lr": 0 < self.lr < math.inf, "weight_decay": 0 <= self.weight_decay < math.inf,
            "momentum": 0 <= self.momentum < 1, "warmup": 0 <= self.warmup < 1,
            "epochs": self.epochs is None or self.epochs >= 1, "steps": self.steps is None or self.steps >= 1,
            "batch_size": self.batch_size >= 1, "layer_decay": 0 < self.layer_decay <= 1,
            "label_smoothing": 0 <= self.label_smoothing < 1, "patience": self.patience >= 0, "seed": self.seed >= 0,
            "freeze": self.freeze in ("none", "backbone") or bool(re.fullmatch(r"stages:[1-9]\d*", self.freeze)),
        }
        for name, possible in limits.items():
            if not possible:
                raise MstlError(f"{name}={getattr(self, name)!r} is not possible in a recipe: see the comment beside it "
                                "in mstl.training.Recipe.")


@dataclass(frozen=True)
class Fit:
    """A trained model. ``history``: one row an epoch. ``best``: the scores of the kept state on validation (epoch,
    step, train_loss and, with a validation part, val_loss, val_accuracy, val_auc). ``seconds``: training time over
    all interrupted runs. ``resumed``: something was taken from the folder; ``loaded``: all of it was."""

    model: nn.Module
    history: pd.DataFrame
    best: dict[str, Any]
    seconds: float
    key: str
    resumed: bool
    folder: Path | None
    loaded: bool = False


@dataclass(frozen=True)
class Tuned:
    """``recipe`` and ``fit`` that won on validation; ``table``: one row a candidate, in the order they were tried."""

    recipe: Recipe
    fit: Fit
    table: pd.DataFrame


class NonFiniteLoss(MstlError):
    """The loss became infinite or not a number."""


def fit(
    model: nn.Module, data: ImageSet, train: np.ndarray, val: np.ndarray | None, recipe: Recipe, *,
    folder: Path | str | None = None, parent: str = "", on_epoch: Callable[[dict[str, Any]], None] | None = None,
    label: str = "", quiet: bool = False,
) -> Fit:
    """Train ``model`` in place on the rows ``train`` of ``data`` and select on the rows ``val``.

    ``folder`` keeps the state while training and the result afterwards (model.safetensors, checkpoint.json,
    history.csv, fit.json); without it nothing is written and nothing resumes. ``parent`` is the SHA-256 of the
    checkpoint that the model started from; a model that has been trained is another start and gives another key.
    ``on_epoch`` is called with every row of the history and the planned
    numbers of ``epochs`` and ``steps``. Without ``val`` the last state is kept and ``patience`` has no effect.

    A last batch of a single image is left out of its epoch (BatchNorm cannot train on it; the order is drawn anew each
    epoch, so that another image is left out next time). Raises MstlError for data that cannot be trained on, for a loss that is not
    finite (the last saved state stays in the folder) and for a disk that is full.
    """
    folder = Path(folder) if folder is not None else None
    _check_data(model, data, train, val, recipe)
    key = fit_key(model, data, train, val, recipe, parent)
    finished = _load_finished(model, folder, key)
    if finished is not None:
        return finished
    state = _read_resume(folder, key)
    progress = _Progress(label, on_epoch, quiet)
    store = _Store(folder, key)
    with progress, _torch_settings(recipe):
        outcome = _train(model, data, np.asarray(train), None if val is None else np.asarray(val), recipe,
                         state, progress.show, store.save)
    if folder is not None and _is_main():
        _write_finished(folder, key, model, recipe, outcome)
    _wait_for_everyone()
    return Fit(model, outcome.table(), outcome.kept, outcome.seconds, key, state is not None, folder)


def tune(
    build: Callable[[], nn.Module], data: ImageSet, train: np.ndarray, val: np.ndarray, recipe: Recipe, *,
    lrs: Sequence[float], steps: Sequence[int], extra_steps: Sequence[int] = (), folder: Path | str, parent: str = "",
    on_epoch: Callable[[dict[str, Any]], None] | None = None, label: str = "", quiet: bool = False,
) -> Tuned:
    """Fit every learning rate with every number of steps, then ``extra_steps`` at the learning rate that won.

    Selected on the recipe's monitor over ``val``; ties go to the lower validation loss, then to the earlier candidate.
    ``build`` makes the same fresh model each time. Each candidate has its own folder under ``folder``, named by its
    key; the weights of losers are deleted, their record and history stay, so that a second call trains nothing. A
    candidate whose loss is not finite loses; when all do, the last error is raised.
    """
    if val is None or len(val) == 0:
        raise MstlError("Tuning needs a validation part to select on: give val, or fit one recipe.")
    candidates = [(float(lr), int(n)) for lr in lrs for n in steps]
    if not candidates:
        raise MstlError("Tuning needs at least one learning rate and one number of steps.")
    rows: list[dict[str, Any]] = []

    def best() -> dict[str, Any] | None:
        finished = [r for r in rows if not r["failed"]]
        return max(finished, key=lambda r: _rank(r, recipe.monitor), default=None)

    def attempt(lr: float, n: int, kind: str) -> None:
        candidate = replace(recipe, lr=lr, steps=n, epochs=None)
        model = build()
        key = fit_key(model, data, train, val, candidate, parent)
        place = Path(folder) / key[:16]
        record = _read_finished(place, key)
        if record is None:
            try:
                result = fit(model, data, train, val, candidate, folder=place, parent=parent, on_epoch=on_epoch,
                             label=f"{label} lr {lr:g}, {n} steps".strip(), quiet=quiet)
                record = {"best": result.best, "seconds": result.seconds}
            except NonFiniteLoss as error:
                record = {"best": {}, "seconds": 0.0, "failed": str(error)}
                with checkpoints.writing(place):
                    place.mkdir(parents=True, exist_ok=True)
                    checkpoints.write_text(place / FINISHED, json.dumps({"key": key, **record}, indent=1) + "\n")
                    (place / RESUME).unlink(missing_ok=True)
        scores = {{"epoch": "best_epoch", "step": "best_step"}.get(k, k): v for k, v in record["best"].items() if k != "lr"}
        rows.append({"lr": lr, "steps": n, "kind": kind, **scores, "seconds": record["seconds"],
                     "failed": record.get("failed", ""), "key": key})
        winner = best()
        for row in rows:
            if row is not winner:
                _drop_weights(Path(folder) / row["key"][:16])

    for lr, n in candidates:
        attempt(lr, n, "grid")
    if best() is None:
        raise NonFiniteLoss(rows[-1]["failed"])
    won = best()["lr"]
    for n in extra_steps:
        if (won, int(n)) not in candidates:
            attempt(won, int(n), "extra")
    chosen = best()
    final = replace(recipe, lr=chosen["lr"], steps=chosen["steps"], epochs=None)
    result = fit(build(), data, train, val, final, folder=Path(folder) / chosen["key"][:16], parent=parent,
                 on_epoch=on_epoch, label=label, quiet=quiet)
    table = pd.DataFrame(rows)
    table["chosen"] = [row is chosen for row in rows]
    return Tuned(final, result, table)


def adapt_statistics(model: nn.Module, data: ImageSet, train: np.ndarray, recipe: Recipe) -> int:
    """Show ``model`` the training rows for the steps, batches and augmentation of ``recipe``, and change no weight: only the
    running means and variances of batch normalisation take up the images. Returns the number of steps.

    The control for what a stage teaches beyond the look of its images. Raises MstlError for a model without batch
    normalisation, where nothing would change.
    """
    from mstl.augmentation import preset

    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats for module in model.modules()):
        raise MstlError(f"{model.spec.backbone} has no batch normalisation, so it has no statistics to adapt: leave this control out for it.")
    augment = preset(recipe.augmentation, model.spec.image_size).train if recipe.augmentation != "none" else None
    per_epoch = _steps_per_epoch(len(train), recipe.batch_size, 1)
    total, device, step = recipe.steps or recipe.epochs * per_epoch, next(model.parameters()).device, 0
    model.train()
    with _torch_settings(recipe), torch.no_grad():
        while step < total:
            order = train[_seed(recipe.seed, step // per_epoch + 1, 0).permutation(len(train))]
            for batch in range(min(per_epoch, total - step)):
                rows = order[batch * recipe.batch_size:(batch + 1) * recipe.batch_size]
                model(_batch(model, data, rows, device, augment))
                step += 1
    model.eval()
    return step


def renew_statistics(model: nn.Module, data: ImageSet, rows: np.ndarray, *, batch_size: int = 64) -> None:
    """Replace the running means and variances of batch normalisation by those of the images ``rows``, as they are, and change no
    weight: the mean over batches of near-equal size, in an order that does not depend on the rows' own.

    Every layer sees what the layers before it make of the batch (AdaBN, Li et al. 2016, arXiv:1603.04779; as precise batch
    norm in Wu & Johnson 2021, arXiv:2105.07576). Raises MstlError for a model without batch normalisation and for fewer than two rows.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats]
    if not layers:
        raise MstlError(f"{model.spec.backbone} has no batch normalisation, so it has no statistics to renew: leave this control out for it.")
    if len(rows) < 2:
        raise MstlError(f"Statistics of batch normalisation need two images at least, but there is {len(rows)}: take more training images.")
    device, momenta = next(model.parameters()).device, [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
        layer.train()
    mixed = np.random.default_rng(0).permutation(np.sort(rows))
    with torch.no_grad():
        for part in np.array_split(mixed, -(-len(mixed) // batch_size)):
            model(_batch(model, data, part, device, None))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


def predict(model: nn.Module, data: ImageSet, index: np.ndarray | None = None, *, batch_size: int = 256) -> np.ndarray:
    """Class probabilities of the rows ``index`` of ``data`` (default all): float64 (n, C), rows add up to 1."""
    logits = _forward(model, data, _rows(data, index, model.spec), batch_size, model)
    return torch.softmax(logits.double(), dim=1).numpy()


def extract_features(
    model: nn.Module, data: ImageSet, index: np.ndarray | None = None, *, batch_size: int = 256
) -> np.ndarray:
    """Pooled features before the head of the rows ``index`` of ``data`` (default all): float32 (n, D)."""
    return _forward(model, data, _rows(data, index, model.spec), batch_size, lambda x: backbones.features(model, x)).numpy()


def fit_key(
    model: nn.Module, data: ImageSet, train: np.ndarray, val: np.ndarray | None, recipe: Recipe, parent: str = ""
) -> str:
    """SHA-256 over everything that determines a fit: recipe, images, rows and their labels, model and its initial
    weights, parent, and the code that computes (without comments, docstrings, messages and display)."""
    digest = hashlib.sha256()
    for part in (json.dumps(asdict(recipe), sort_keys=True), data.hash, json.dumps(list(data.classes)),
                 json.dumps(model.spec.as_dict(), sort_keys=True), parent, code_fingerprint()):
        digest.update(part.encode() + b"\0")
    for name, rows in (("train", train), ("val", val)):
        rows = np.asarray([] if rows is None else rows, dtype=np.int64)
        digest.update(f"{name}:{len(rows)}".encode())
        digest.update(json.dumps([str(i) for i in np.asarray(data.ids)[rows]]).encode())
        digest.update(np.ascontiguousarray(np.asarray(data.labels)[rows], dtype=np.int64).tobytes())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@cache
def code_fingerprint() -> str:
    """SHA-256 of the code that computes: `NUMERICS` below, the augmentation, and how models are fed and frozen."""
    here = Path(__file__).parent
    wanted = {here / "training.py": set(NUMERICS), here / "augmentation.py": None,
              here / "models" / "backbones.py": {"to_input", "parameter_groups", "train_mode", "is_convolutional",
                                                 "head_names", "stages", "_trainable", "features"}}
    bare = [_bare_code(path.read_text(encoding="utf-8"), names) for path, names in wanted.items()]
    return hashlib.sha256("".join(bare).encode()).hexdigest()


def peak_memory() -> dict[str, float]:
    """Largest memory of this process so far in MiB: ``host``, and ``device`` where there is a CUDA one."""
    if sys.platform == "win32":
        import psutil

        host = psutil.Process().memory_info().peak_wset / 2**20
    else:
        import resource

        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return {"host": host, **({"device": device} if device else {})}


# --- The loop. What stands from here to NUMERICS is part of the key of a fit. ------------------------------------


@dataclass
class _State:
    """Everything that training carries from one epoch to the next."""

    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    stale: int = 0  # epochs since the best
    seconds: float = 0.0
    model: dict[str, torch.Tensor] | None = None
    best: dict[str, torch.Tensor] | None = None
    optimizer: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.history)


def _train(
    model: nn.Module, data: ImageSet, train: np.ndarray, val: np.ndarray | None, recipe: Recipe, state: _State | None,
    show: Callable[[dict[str, Any]], None], save: Callable[[_State, Callable[[], _State]], None],
) -> _State:
    """The loop over epochs; returns the final state with the kept weights loaded into ``model``."""
    accelerator = _accelerator(recipe.precision)
    if backbones.is_convolutional(model):
        model.to(memory_format=torch.channels_last)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    groups = backbones.parameter_groups(model, lr=recipe.lr, weight_decay=recipe.weight_decay,
                                        layer_decay=recipe.layer_decay, freeze=recipe.freeze)
    model.to(accelerator.device)
    bare_optimizer = _optimizer(groups, recipe)
    wrapped, optimizer = accelerator.prepare(model, bare_optimizer)
    weight = _class_weights(data.labels[train], len(data.classes), recipe, accelerator.device)
    per_epoch = _steps_per_epoch(len(train), recipe.batch_size, accelerator.num_processes)
    total = recipe.steps or recipe.epochs * per_epoch
    epochs = math.ceil(total / per_epoch)
    started = time.perf_counter()
    if state is None:
        state = _State()
    else:
        _restore(state, model, bare_optimizer, accelerator.scaler)
        started -= state.seconds

    def snapshot() -> _State:
        return replace(state, model=model.state_dict(), optimizer=_optimizer_tensors(bare_optimizer),
                       scaler=accelerator.scaler.state_dict() if accelerator.scaler else {},
                       seconds=time.perf_counter() - started)

    try:
        while state.step < total and not (recipe.patience and state.stale >= recipe.patience):
            row = _one_epoch(wrapped, model, data, train, recipe, state, per_epoch, total, optimizer, weight, accelerator)
            state.epoch, state.step = row["epoch"], row["step"]
            if not all(torch.isfinite(p).all() for p in model.parameters()):
                raise _not_finite("weights", row["epoch"], row["step"], row["lr"], recipe)
            if val is not None:
                row |= _evaluate(model, data, val, recipe, accelerator)
                if not math.isfinite(row["val_loss"]):
                    raise _not_finite("validation loss", row["epoch"], row["step"], row["lr"], recipe)
            better = val is None or recipe.keep == "last" or _better(row, state.kept, recipe.monitor)
            improved = val is None or _better(row, _best_row(state.history, recipe.monitor), recipe.monitor)
            state.stale = 0 if improved else state.stale + 1
            if better:
                state.kept = dict(row)
                state.best = None
                if val is not None and recipe.keep == "best":
                    state.best = {k: v.detach().clone() for k, v in model.state_dict().items()}
            state.history.append(row)
            save(state, snapshot)
            show({**row, "epochs": epochs, "steps": total})
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


def _one_epoch(wrapped, model, data, train, recipe, state, per_epoch, total, optimizer, weight, accelerator):
    """One pass over the training rows in an order drawn for this epoch; returns the row of the history."""
    from mstl.augmentation import preset

    epoch = state.epoch + 1
    generator = _seed(recipe.seed, epoch, accelerator.process_index)
    order = train[generator.permutation(len(train))]
    augment = preset(recipe.augmentation, model.spec.image_size).train if recipe.augmentation != "none" else None
    backbones.train_mode(model)
    losses, count, step = 0.0, 0, state.step
    for batch in range(min(per_epoch, total - state.step)):
        rows = order[batch * recipe.batch_size:(batch + 1) * recipe.batch_size]
        rows = rows[accelerator.process_index::accelerator.num_processes]
        factor = _schedule(step, total, recipe)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * group["lr_scale"] * factor
        x = _batch(model, data, rows, accelerator.device, augment)
        y = torch.from_numpy(np.asarray(data.labels[rows], dtype=np.int64)).to(accelerator.device)
        loss = F.cross_entropy(wrapped(x).float(), y, weight=weight, label_smoothing=recipe.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise _not_finite("training loss", epoch, step + 1, recipe.lr * factor, recipe)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        optimizer.step()
        losses, count, step = losses + value * len(rows), count + len(rows), step + 1
    return {"epoch": epoch, "step": step, "lr": recipe.lr * factor, "train_loss": losses / count}


def _evaluate(model, data, val, recipe, accelerator) -> dict[str, float]:
    """Plain cross-entropy, accuracy and AUC (binary: of the last class; else one against the rest, macro mean) on the
    validation rows. Every process computes them; the first one's count."""
    logits = _forward(model, data, val, 256, model).double()
    labels = torch.from_numpy(np.asarray(data.labels[val], dtype=np.int64))
    scores = {"val_loss": F.cross_entropy(logits, labels).item(),
              "val_accuracy": (logits.argmax(dim=1) == labels).double().mean().item()}
    if recipe.monitor == "auc" or len(labels.unique()) == logits.shape[1]:
        scores["val_auc"] = _auc(torch.softmax(logits, dim=1).numpy(), labels.numpy())
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        scores = broadcast_object_list([scores])[0]
    return scores


def _auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    if not np.isfinite(probabilities).all():
        return math.nan
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    classes = range(probabilities.shape[1])
    return float(np.mean([roc_auc_score(labels == c, probabilities[:, c]) for c in classes]))


def _batch(model, data, rows, device, augment=None) -> torch.Tensor:
    """Cut rows from the memory map, augment each image by itself, then normalise the batch on the device."""
    images = torch.from_numpy(np.ascontiguousarray(data.images[rows])).permute(0, 3, 1, 2)
    if augment is not None:
        images = torch.stack([augment(image) for image in images])
    x = backbones.to_input(images.to(device), model.spec)
    layout = torch.channels_last if backbones.is_convolutional(model) else torch.contiguous_format
    return x.contiguous(memory_format=layout)


def _forward(model, data, rows, batch_size, call) -> torch.Tensor:
    """``call`` on the rows in batches, in evaluation mode and without gradients: float32 on the CPU."""
    if backbones.is_convolutional(model):
        model.to(memory_format=torch.channels_last)  # so that a model just trained and one just loaded agree bit for bit
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            parts = [call(_batch(model, data, rows[i:i + batch_size], device)).float().cpu()
                     for i in range(0, len(rows), batch_size)]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(parts)


def _optimizer(groups, recipe: Recipe) -> torch.optim.Optimizer:
    fused = groups[0]["params"][0].is_cpu or None  # a third of the time there; on a GPU torch chooses
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=fused)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}[recipe.optimizer]
    return kind(groups, lr=recipe.lr, fused=fused)


def _schedule(step: int, total: int, recipe: Recipe) -> float:
    """Factor on the learning rate at ``step`` (from 0) of ``total``: linear warm-up, then the schedule, to zero."""
    warmup = round(recipe.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[recipe.schedule]


def _class_weights(labels, n_classes: int, recipe: Recipe, device) -> torch.Tensor | None:
    if recipe.class_weights == "none":
        return None
    counts = np.bincount(labels, minlength=n_classes)
    return torch.tensor(len(labels) / (n_classes * counts), dtype=torch.float32, device=device)


def _steps_per_epoch(n: int, batch_size: int, processes: int) -> int:
    """All whole batches, and the rest where it leaves every process at least two images."""
    whole, rest = divmod(n, batch_size)
    return whole + (1 if rest >= 2 * processes or whole == 0 else 0)


def _seed(seed: int, epoch: int, process: int) -> np.random.Generator:
    """Seeds torch (augmentation, dropout) for this epoch and process; returns the generator of the common order."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, process, 1]).generate_state(1, np.uint64)[0] >> 1))
    return np.random.default_rng([seed, epoch])


def _rank(row: dict[str, Any], monitor: str) -> tuple[float, float]:
    """Higher is better: the monitor, then the lower loss."""
    return (-row["val_loss"] if monitor == "loss" else row[f"val_{monitor}"], -row["val_loss"])


def _better(row: dict[str, Any], best: dict[str, Any], monitor: str) -> bool:
    return not best or _rank(row, monitor) > _rank(best, monitor)


def _best_row(history: list[dict[str, Any]], monitor: str) -> dict[str, Any]:
    return max(history, key=lambda row: _rank(row, monitor), default={})


def _accelerator(precision: str):
    """accelerate's device, mixed precision and processes."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # accelerate fixes the precision once a process; a notebook may change it
    accelerator = Accelerator(mixed_precision=precision)
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise MstlError("precision='fp16' needs a GPU and this machine has none: use precision='no', or 'bf16'.")
    return accelerator


@contextmanager
def _torch_settings(recipe: Recipe) -> Iterator[None]:
    """Deterministic kernels where there are any, and the caller's random numbers and settings back afterwards."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
              torch.utils.deterministic.fill_uninitialized_memory)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # debugging aid that costs time
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, torch.Tensor]]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {i: {k: v for k, v in optimizer.state[p].items() if v is not None}
            for i, p in enumerate(parameters) if p in optimizer.state}


def _restore(state: _State, model: nn.Module, optimizer: torch.optim.Optimizer, scaler) -> None:
    """Put a saved state back, in the memory layout that an uninterrupted run has, so that sums round the same way."""
    model.load_state_dict(state.model)
    if state.best is not None:
        own = model.state_dict()
        state.best = {k: torch.empty_like(own[k]).copy_(v) for k, v in state.best.items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, tensors in state.optimizer.items():
        like = parameters[i]
        optimizer.state[like] = {k: torch.empty_like(like).copy_(v) if v.shape == like.shape else v
                                 for k, v in tensors.items()}
    if scaler is not None and state.scaler:
        scaler.load_state_dict(state.scaler)
    state.model, state.optimizer = None, {}


def _not_finite(what: str, epoch: int, step: int, lr: float, recipe: Recipe) -> NonFiniteLoss:
    more = "precision='no'" if recipe.precision == "fp16" else "a longer warm-up"
    verb = "were" if what == "weights" else "was"
    return NonFiniteLoss(
        f"The {what} {verb} not finite at epoch {epoch}, step {step}, learning rate {lr:.2g}: try a lower lr (a tenth) or "
        f"{more}; the last good state is kept."
    )


NUMERICS = ("_State", "_train", "_one_epoch", "_evaluate", "_auc", "_batch", "_forward", "_optimizer", "_schedule",
            "_class_weights", "_steps_per_epoch", "_seed", "_rank", "_better", "_best_row", "_accelerator",
            "_torch_settings", "_optimizer_tensors", "_restore")


# --- Checks, files and display: no number comes from here. --------------------------------------------------------


def _bare_code(source: str, names: set[str] | None) -> str:
    """The definitions ``names`` of a module (all of it for None) as a syntax tree without words."""
    nodes = ast.parse(source).body
    return "".join(ast.dump(_Bare().visit(n)) for n in nodes if names is None or getattr(n, "name", None) in names)


class _Bare(ast.NodeTransformer):
    """Code without docstrings and the words of errors."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            node.body = body[1:] or [ast.Pass()]
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise(exc=None, cause=None)


def _check_data(model: nn.Module, data: ImageSet, train, val, recipe: Recipe) -> None:
    spec = model.spec
    if len(train) < 2:
        raise MstlError(f"Training needs at least two images, but the training part has {len(train)}.")
    if val is not None and len(val) == 0:
        raise MstlError("The validation part is empty: draw another split, or give val=None to keep the last state.")
    both = np.intersect1d(train, [] if val is None else val)
    if len(both):
        raise MstlError(f"{len(both)} images are in both the training and the validation part, the first is row "
                        f"{int(both[0])}: make the split with mstl.datasets.splits.")
    if tuple(data.classes) != spec.classes:
        raise MstlError(f"The data has the classes {', '.join(data.classes)} but the model {', '.join(spec.classes)}: "
                        "create the model with data.classes.")
    _check_images(data, spec)
    for part, rows in (("training", train), ("validation", val)):
        counts = np.bincount(np.asarray(data.labels)[np.asarray([] if rows is None else rows, dtype=np.int64)],
                             minlength=len(data.classes))
        absent = [name for name, n in zip(data.classes, counts, strict=True) if n == 0]
        if absent and (part == "training" or (rows is not None and recipe.monitor == "auc")):
            advice = "draw another split, or select the classes that are there" if part == "training" else \
                "draw another split, or use monitor='loss'"
            raise MstlError(f"The {part} part has no image of the class '{absent[0]}': {advice}.")


def _check_images(data: ImageSet, spec: backbones.Spec) -> None:
    if tuple(data.images.shape[1:3]) != (spec.image_size, spec.image_size):
        raise MstlError(f"The images are {data.images.shape[2]}×{data.images.shape[1]} pixels but the model was created "
                        f"for {spec.image_size}: prepare the data with size={spec.image_size}, or create the model with "
                        f"image_size={data.images.shape[1]}.")


def _rows(data: ImageSet, index, spec: backbones.Spec) -> np.ndarray:
    _check_images(data, spec)
    rows = np.arange(len(data.labels)) if index is None else np.asarray(index, dtype=np.int64)
    if len(rows) == 0:
        raise MstlError("There is no image to predict: the index is empty.")
    return rows


def _is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _wait_for_everyone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate.state import PartialState

        PartialState().wait_for_everyone()


@dataclass
class _Store:
    """Saves the state of a running fit into one safetensors file, whose header holds the rest as JSON."""

    folder: Path | None
    key: str
    last: float = field(default_factory=time.perf_counter)

    def save(self, state: _State, snapshot: Callable[[], _State]) -> None:
        if self.folder is None or time.perf_counter() - self.last < _SAVE_EVERY_SECONDS or not _is_main():
            return
        whole = snapshot()
        tensors = {f"model/{k}": v for k, v in whole.model.items()}
        tensors |= {f"best/{k}": v for k, v in (whole.best or {}).items()}
        tensors |= {f"optimizer/{i}/{k}": v for i, entry in whole.optimizer.items() for k, v in entry.items()}
        meta = {"key": self.key, "epoch": whole.epoch, "step": whole.step, "history": whole.history, "kept": whole.kept,
                "stale": whole.stale, "seconds": whole.seconds, "scaler": whole.scaler}
        with checkpoints.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (FINISHED, checkpoints.RECORD, checkpoints.WEIGHTS, HISTORY):  # of another key
                (self.folder / name).unlink(missing_ok=True)
            checkpoints.write_tensors(self.folder / RESUME, tensors, {"state": json.dumps(meta)})
        self.last = time.perf_counter()


def _read_resume(folder: Path | None, key: str) -> _State | None:
    """The saved state of the same fit; None where there is none, it is of another fit or cannot be read."""
    from safetensors import SafetensorError, safe_open

    if folder is None or not (folder / RESUME).is_file():
        return None
    try:
        with safe_open(folder / RESUME, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("state", "{}"))
            if meta.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        print(f"The saved state in {folder} cannot be read ({error}): training starts anew.", file=sys.stderr)
        return None
    state = _State(meta["epoch"], meta["step"], meta["history"], meta["kept"], meta["stale"], meta["seconds"],
                   scaler=meta["scaler"])
    state.model = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    best = {k.removeprefix("best/"): v for k, v in tensors.items() if k.startswith("best/")}
    state.best = best or None
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, i, entry = name.split("/", 2)
            state.optimizer.setdefault(int(i), {})[entry] = tensor
    return state


def _write_finished(folder: Path, key: str, model: nn.Module, recipe: Recipe, outcome: _State) -> None:
    """The result, its record last; then the state that is no longer needed goes."""
    with checkpoints.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FINISHED).unlink(missing_ok=True)
        checkpoints.save(folder, model, lineage=[], score=outcome.kept, extra={"fit": key})
        checkpoints.write_text(folder / HISTORY, outcome.table().to_csv(index=False))
        record = {"key": key, "best": outcome.kept, "seconds": outcome.seconds, "recipe": asdict(recipe),
                  "history": outcome.history}
        checkpoints.write_text(folder / FINISHED, json.dumps(record, indent=1) + "\n")
        (folder / RESUME).unlink(missing_ok=True)


def _read_finished(folder: Path, key: str) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if record.get("key") == key else None


def _load_finished(model: nn.Module, folder: Path | None, key: str) -> Fit | None:
    record = _read_finished(folder, key) if folder is not None else None
    if record is None or "failed" in record or not checkpoints.is_checkpoint(folder):
        return None
    try:
        checkpoints.restore(model, folder, head="keep")
    except MstlError as error:
        print(f"{error} Training it again now.", file=sys.stderr)
        return None
    model.eval()
    (folder / RESUME).unlink(missing_ok=True)  # left by a kill between the last two steps
    return Fit(model, pd.DataFrame(record["history"]), record["best"], record["seconds"], key, True, folder, True)


def _drop_weights(folder: Path) -> None:
    for name in (checkpoints.RECORD, checkpoints.WEIGHTS):
        (folder / name).unlink(missing_ok=True)


class _Progress:
    """A bar in a terminal, else one line an epoch (of more than twenty epochs, some twenty lines)."""

    def __init__(self, label: str, on_epoch: Callable[[dict[str, Any]], None] | None, quiet: bool) -> None:
        self.label, self.on_epoch, self.quiet, self.bar = label, on_epoch, quiet or not _is_main(), None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, row: dict[str, Any]) -> None:
        if self.on_epoch is not None and _is_main():
            self.on_epoch(row)
        if self.quiet:
            return
        names = {"train_loss": "loss", "val_loss": "val loss", "val_accuracy": "accuracy", "val_auc": "AUC"}
        scores = ", ".join(f"{text} {row[name]:.3f}" for name, text in names.items() if name in row)
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = self.bar or tqdm(total=row["steps"], desc=self.label or "fit", unit="step", leave=False, mininterval=0)
            self.bar.set_postfix_str(scores, refresh=False)
            self.bar.update(row["step"] - self.bar.n)
        elif row["epoch"] % math.ceil(row["epochs"] / 20) == 0 or row["step"] == row["steps"]:
            where = f"epoch {row['epoch']}/{row['epochs']}"
            print(f"{self.label}: {where}, {scores}" if self.label else f"{where}, {scores}", flush=True)
