"""Detection (Hasei et al. 2025): two detectors that differ in their initial weights only, and what their boxes are worth.

The arm ``scratch`` starts at random, the arm ``transfer`` from chest radiographs: from a detector of opacities where these have
boxes, else from a classifier of their labels whose backbone is taken over. Both are fine-tuned on the target with the same budget. The
score of an image is its highest box, so that images are compared as everywhere in the book; the boxes are judged beside that.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mstl import comparison
from mstl.datasets.folder import CORNERS
from mstl.errors import MstlError
from mstl.metrics import _check, chains, detection, roc

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from mstl.datasets.imageset import ImageSet
    from mstl.training import Recipe

ARMS = {"transfer": "transfer from chest radiographs", "scratch": "from scratch"}
#: Columns of boxes.csv (detections on test images) and truth.csv (their true boxes), in pixels of the prepared image.
BOXES = ["image", "model", "chain", "fold", "score", *CORNERS]
TRUTH = ["image", "class", *CORNERS]
#: False positives an image of the drawn FROC curve.
GRID = tuple(np.linspace(0, 2, 33).tolist())
QUANTITIES = {"auc": "AUC of the image scores", "ap": "average precision", "map": "average precision, mean over IoU 0.50:0.95", "mean sensitivity": "FROC: mean sensitivity"}


# ------------------------------------------------------------------------------------------------------------- training

@dataclass(frozen=True)
class Origin:
    """Where the arm ``transfer`` starts: the tensors of a whole detector (``state``) or the folder of a classifier (``folder``), its AUC on
    held-out source images where there are any, and what it learned from ("boxes" or "labels")."""

    way: str
    score: float | None
    state: dict[str, Tensor] | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Trained:
    """A detector with its recipe, the AUC of its image scores on validation (None without), and ``table``: one row a candidate."""

    model: nn.Module
    recipe: Recipe
    score: float | None
    table: pd.DataFrame


def true_boxes(data: ImageSet) -> list[np.ndarray]:
    """The boxes (k, 4) of each image, all kinds of finding alike. Raises MstlError without boxes, and for one outside its image."""
    if data.boxes is None or data.boxes.empty:
        raise MstlError(f"{data.name} has no boxes, so no detector can learn from it: choose a set with boxes (task: detection in the catalog).")
    corners = _check.boxes(data.boxes[CORNERS].to_numpy(float), f"the boxes of {data.name}")
    outside = (corners < 0).any(1) | (corners > data.size).any(1)
    if outside.any():
        row = int(outside.argmax())
        raise MstlError(f"A box of {data.name} lies outside its image {data.ids[int(data.boxes['image'].iloc[row])]} ({corners[row].tolist()}, the image has "
                        f"{data.size} pixels a side): mend it in the manifest or the archive.")
    rows = data.boxes.groupby("image").indices
    return [corners[rows[i]] if i in rows else np.empty((0, 4)) for i in range(len(data))]


def unlocated(data: ImageSet) -> int:
    """How many images of the last class have no box: a finding that nobody located is background to a detector. Raises MstlError for a
    box on an image of another class, which would be true for the boxes and false for the images."""
    boxed = np.isin(np.arange(len(data)), data.boxes["image"])
    positive = data.labels == len(data.classes) - 1
    if (strange := boxed & ~positive).any():
        row = int(strange.argmax())
        raise MstlError(f"{data.ids[row]} of {data.name} is '{data.classes[data.labels[row]]}' and has a box, but only images of the last class "
                        f"({data.classes[-1]}) may: choose other classes, or mend the labels.")
    return int((positive & ~boxed).sum())


def pretrain(
    kind: str, source: ImageSet, recipe: Recipe, *, backbone: str, seed: int, folder: Path, on_step: Callable[[float], None] | None = None,
) -> Origin:
    """A network of the chain ``seed`` trained on the radiographs ``source`` from random weights: the same detector where these have boxes, else
    a classifier of their labels. A tenth of the groups is held out to see whether it learned anything; nothing is chosen on it."""
    from mstl import training
    from mstl.datasets import splits
    from mstl.models import backbones

    learn, held = splits.one_group_per_class(source)
    held = held if len(set(source.labels[held])) == len(source.classes) else None
    recipe = replace(recipe, seed=seed, keep="last", monitor="accuracy")
    if source.boxes is not None and len(source.boxes):
        model, record = fit(start(kind, None, source, backbone=backbone, seed=seed), source, learn, held, recipe, folder=folder, on_step=on_step)
        return Origin("boxes", record["score"], state=model.state_dict())
    if kind != "ssdlite":
        raise MstlError(f"{source.name} has no boxes, and of a classifier only detector='ssdlite' can take over the backbone: choose that, or a source with boxes.")
    net = backbones.create(backbone, source.classes, image_size=source.size, channels=source.channels, seed=seed)
    place = Path(folder) / training.fit_key(net, source, learn, held, recipe)[:16]
    tell = None if on_step is None else lambda row: on_step(row["step"] / row["steps"])
    trained = training.fit(net, source, learn, held, recipe, folder=place, quiet=True, on_epoch=tell)
    return Origin("labels", trained.best.get("val_auc"), folder=place)


def start(kind: str, origin: Origin | None, data: ImageSet, *, backbone: str, seed: int, keep: int = 10) -> nn.Module:
    """The detector as training on ``data`` begins: random, or with what ``origin`` brings."""
    from mstl.models import detector

    model = detector.create(kind, image_size=data.size, channels=data.channels, backbone=backbone, seed=seed, keep=keep,
                            weights=None if origin is None else origin.folder)
    if origin is not None and origin.state is not None:
        model.load_state_dict(origin.state)
    return model


def tune(
    build: Callable[[], nn.Module], data: ImageSet, train: np.ndarray, val: np.ndarray, recipe: Recipe, *, lrs: Sequence[float],
    steps: Sequence[int], extra_steps: Sequence[int] = (), folder: Path, on_step: Callable[[float], None] | None = None,
) -> Trained:
    """Every learning rate with every number of steps, then ``extra_steps`` at the learning rate that won: selected by the AUC of the image
    scores on the rows ``val``, ties to the earlier candidate."""
    rows: list[dict[str, Any]] = []

    def attempt(lr: float, n: int) -> None:
        candidate = replace(recipe, lr=float(lr), steps=int(n), epochs=None)
        rows.append(fit(build(), data, train, val, candidate, folder=folder, on_step=on_step)[1] | {"lr": float(lr), "steps": int(n)})

    for lr in lrs:
        for n in steps:
            attempt(lr, n)
    won = max(rows, key=lambda row: row["score"])
    for n in extra_steps:
        attempt(won["lr"], n)
    won = max(rows, key=lambda row: row["score"])
    final = replace(recipe, lr=won["lr"], steps=won["steps"], epochs=None)
    model, record = fit(build(), data, train, val, final, folder=folder)
    return Trained(model, final, record["score"], pd.DataFrame(rows).assign(chosen=[row is won for row in rows]))


def fit(
    model: nn.Module, data: ImageSet, train: np.ndarray, val: np.ndarray | None, recipe: Recipe, *, folder: Path,
    on_step: Callable[[float], None] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a detector on the rows ``train`` for ``recipe.steps`` steps and keep its last state; ``model`` is changed in place.

    A finished fit of the same key (recipe, images, rows, initial weights, code) is loaded from ``folder`` instead. The record has
    ``loss`` (mean of the last tenth of the steps), ``score`` (AUC of the image scores on ``val``) and ``seconds``.
    """
    import torch

    from mstl import checkpoints, training
    from mstl.models.weights import read_state

    if recipe.steps is None or recipe.layer_decay != 1 or recipe.freeze != "none" or recipe.precision != "no":
        raise MstlError("A detector is trained whole and by steps: leave epochs, layer_decay, freeze and precision out of the recipe.")
    if recipe.class_weights != "none" or recipe.label_smoothing or recipe.patience:
        raise MstlError("A detector's loss knows no class_weights and no label_smoothing, and nothing stops it early: leave these and patience out of the recipe.")
    boxes = true_boxes(data)
    key = training.fit_key(model, data, train, val, recipe, parent=_code())
    place = Path(folder) / key[:16]
    if checkpoints.is_checkpoint(place) and checkpoints.read(place).extra.get("key") == key:
        model.load_state_dict(read_state(place / checkpoints.WEIGHTS))
        model.eval()
        return model, checkpoints.read(place).extra
    started, losses = time.perf_counter(), []
    per_epoch = training._steps_per_epoch(len(train), recipe.batch_size, 1)
    optimizer = training._optimizer(_groups(model, recipe), recipe)
    model.train()
    with training._torch_settings(recipe):
        for step in range(recipe.steps):
            epoch, batch = divmod(step, per_epoch)
            if batch == 0:
                generator = training._seed(recipe.seed, epoch + 1, 0)
                order = np.asarray(train)[generator.permutation(len(train))]
            rows = order[batch * recipe.batch_size:(batch + 1) * recipe.batch_size]
            images, truth = _batch(data, boxes, rows, generator if recipe.augmentation != "none" else None, mirror=recipe.augmentation != "radiograph")
            loss = model.loss(images, truth)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise training.NonFiniteLoss(f"The loss of the detector was not finite at step {step + 1} (lr {recipe.lr:.2g}): try a lower lr, a tenth.")
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * training._schedule(step, recipe.steps, recipe)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            if on_step is not None:
                on_step((step + 1) / recipe.steps)
    model.eval()
    score = None
    if val is not None:
        score = roc.auc(data.labels[val] == len(data.classes) - 1, image_scores(data, val, detect(model, data, val)))
    record = {"key": key, "loss": float(np.mean(losses[-max(1, len(losses) // 10):])), "score": score, "seconds": time.perf_counter() - started}
    checkpoints.save(place, model, lineage=[], extra=record)
    return model, record


def detect(model: nn.Module, data: ImageSet, index: np.ndarray, *, batch_size: int = 64) -> pd.DataFrame:
    """The boxes that a detector marks on the rows ``index``: ``image`` (its id), ``score`` 0 … 1 and the corners, of each image the highest first."""
    import torch

    parts = []
    for start in range(0, len(index), batch_size):
        rows = index[start:start + batch_size]
        found = model.detect(torch.from_numpy(np.ascontiguousarray(data.images[rows])).permute(0, 3, 1, 2))
        for row, (corners, scores) in zip(rows, found, strict=True):
            part = pd.DataFrame(np.round(corners.double().numpy(), 2), columns=CORNERS)
            parts.append(part.assign(image=str(data.ids[row]), score=np.round(scores.double().numpy(), 6)))
    table = pd.concat(parts, ignore_index=True)
    return table[(table["x1"] > table["x0"]) & (table["y1"] > table["y0"])][["image", "score", *CORNERS]].reset_index(drop=True)


def image_scores(data: ImageSet, index: np.ndarray, found: pd.DataFrame) -> np.ndarray:
    """The highest score of each image's boxes (n,); 0 where nothing was marked."""
    return pd.Series(data.ids[index]).map(found.groupby("image")["score"].max()).fillna(0.0).to_numpy(float)


def truth_table(data: ImageSet, index: np.ndarray) -> pd.DataFrame:
    """The true boxes of the rows ``index`` with the columns of ``TRUTH``."""
    own = data.boxes[data.boxes["image"].isin(index)]
    return own.assign(image=np.asarray(data.ids)[own["image"].to_numpy(int)])[TRUTH].sort_values("image", kind="stable").reset_index(drop=True)


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """No weight decay on biases and normalisation."""
    own = [p for p in model.parameters() if p.requires_grad]
    return [{"params": [p for p in own if p.ndim > 1], "weight_decay": recipe.weight_decay}, {"params": [p for p in own if p.ndim < 2], "weight_decay": 0.0}]


def _batch(
    data: ImageSet, boxes: list[np.ndarray], rows: np.ndarray, generator: np.random.Generator | None, *, mirror: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """uint8 (B, C, H, W) and boxes; with a ``generator`` half of the images are mirrored (where ``mirror``; radiographs are not), all are shifted by
    up to 6 % of the side and change in brightness and contrast. A box keeps what of it stays in the frame, and goes where that is less than 3 pixels."""
    import torch

    images, truth = np.ascontiguousarray(data.images[rows]), [boxes[row].copy() for row in rows]
    if generator is not None:
        side, reach = data.size, max(1, round(0.06 * data.size))
        images = images.copy()
        for i in range(len(images)):
            image, box = images[i], truth[i]
            if mirror and generator.random() < 0.5:
                image, box[:, [0, 2]] = image[:, ::-1], side - box[:, [2, 0]]
            down, right = generator.integers(0, 2 * reach + 1, 2)
            image = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")[down:down + side, right:right + side].astype(np.float32)
            middle, gain, lift = image.mean(), generator.uniform(0.8, 1.25), generator.uniform(-20, 20)
            images[i] = np.clip((image - middle) * gain + middle + lift, 0, 255)
            box = np.clip(box + np.array([reach - right, reach - down] * 2), 0, side)
            truth[i] = box[(box[:, 2:] - box[:, :2]).min(1, initial=side) >= 3]
    return torch.from_numpy(images).permute(0, 3, 1, 2), [torch.from_numpy(box).float() for box in truth]


def _code() -> str:
    """SHA-256 of the code that trains detectors, without words."""
    from mstl.models import detector
    from mstl.training import _bare_code

    own = _bare_code(Path(__file__).read_text(encoding="utf-8"), {"fit", "_groups", "_batch", "true_boxes", "detect", "image_scores"})
    return hashlib.sha256((own + _bare_code(Path(detector.__file__).read_text(encoding="utf-8"), None)).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------- results

def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Predictions, boxes and truth of a finished run of 70_detection."""
    from mstl import predictions

    tables = []
    for name, columns in (("boxes.csv", BOXES), ("truth.csv", TRUTH)):
        if not (folder / name).is_file():
            raise MstlError(f"There is no table {name} in {folder}: name the folder of a finished run of 70_detection (results).")
        table = pd.read_csv(folder / name, dtype={"image": str, "class": str, "model": str})
        absent = [column for column in columns if column not in table]
        if absent:
            raise MstlError(f"{folder / name} has no column '{absent[0]}': it is not a table that 70_detection wrote.")
        _check.boxes(table[CORNERS].to_numpy(float), str(folder / name), empty=True)
        tables.append(table)
    return predictions.read(folder), *tables


@dataclass(frozen=True)
class Judged:
    """``rows``: one row a quantity and model or difference (estimate, low, high, p, with the counts behind it); ``curves``: FROC, one row a
    model and number of false positives an image (sensitivity, low, high)."""

    rows: pd.DataFrame
    curves: pd.DataFrame


def judge(
    table: pd.DataFrame, found: pd.DataFrame, truth: pd.DataFrame, *, contrast: Sequence[str], iou: float = 0.5, level: float = 0.95, n_resamples: int = 2000,
    seed: int = 0,
) -> Judged:
    """AUC of the images, average precision and FROC of the boxes on the test images of ``table`` (predictions): mean over chains and folds, intervals over
    groups and chains, and the difference of the ``contrast``, first minus second, under the same resamples.

    The bar of "ap" and of FROC is ``iou``; "map" is the mean over COCO's ten, whatever that is. Raises MstlError where the models were
    tested on different images.
    """
    from mstl import predictions

    iou = _check.fraction(iou, "iou")
    tested = table[table["split"] == "test"].sort_values(["model", "seed", "fold", "image_id"], kind="stable", ignore_index=True)
    models = [model for model in contrast if (tested["model"] == model).any()] or list(dict.fromkeys(tested["model"]))
    first = tested[tested["model"] == models[0]].reset_index(drop=True)
    for model in models[1:]:
        if not tested.loc[tested["model"] == model, ["seed", "fold", "image_id"]].reset_index(drop=True).equals(first[["seed", "fold", "image_id"]]):
            raise MstlError(f"The models {models[0]} and {model} were not tested on the same images in the same chains and folds: compare runs of one study.")
    _same_scores(tested, found, models)
    positive = (first["y_true"] == predictions.classes(first)[-1]).to_numpy()
    block = chains.Block(positive, seed=first["seed"], fold=first["fold"], group=first["group"])
    found = found[found["image"].isin(first["image_id"])]
    parts = {key: part.reset_index(drop=True) for key, part in found.groupby(["model", "chain", "fold"])}
    ids = first["image_id"].to_numpy()
    kinds = {"ap": ((), [0]), "map": ((), slice(1, None)), "froc": (detection.FALSE_POSITIVES, [0]), "curve": (GRID, [0])}

    def each_kind(model: str, cell) -> list[detection.Scored]:
        images = list(ids[cell.rows])
        own, true = parts.get((model, cell.seed, cell.fold), found.iloc[:0]), truth[truth["image"].isin(images)]
        hits = detection.per_image(images, own, true, (iou, *detection.COCO))
        return [detection.cell_statistics(cell, images, own, hits[:, bars], true, at) for at, bars in kinds.values()]

    wanted = {}
    for model in models:
        cells = block.each(partial(each_kind, model))
        wanted |= {(kind, model): [cell[k] for cell in cells] for k, kind in enumerate(kinds)}
    froc = wanted["froc", models[0]][0].names
    parts_of = {"auc": {"auc": ()}, "ap": {"ap": 0}, "map": {"map": 1}, "froc": {name: k for k, name in enumerate(froc)}}
    score = predictions.positive(tested)
    wanted |= {("auc", model): block.metric("auc", score[(tested["model"] == model).to_numpy()].to_numpy()) for model in models}
    drawn = block.resample(wanted, n_resamples, seed)
    counts = dict(n_images=first["image_id"].nunique(), n_groups=first["group"].nunique(), n_boxes=int(truth["image"].isin(ids).sum()),
                  chains=first["seed"].nunique(), folds=first["fold"].nunique())
    rows = []
    for kind, quantities in parts_of.items():
        for quantity, place in quantities.items():
            each = {model: drawn[kind, model] if place == () else drawn[kind, model][place] for model in models}
            pairs = [(model, value, (0.0, 1.0)) for model, value in each.items()]
            if len(models) == 2:
                pairs.append((f"{models[0]} − {models[1]}", each[models[0]] - each[models[1]], (-1.0, 1.0)))
            for name, value, bounds in pairs:
                got = block.summary(value, level=level, bounds=bounds, what=quantity)
                p = got.p_value if "−" in name else None
                rows.append({"quantity": quantity, "model": name, "estimate": got.estimate, "low": got.low, "high": got.high, "p": p,
                             "sd_chains": got.sd_chains, "iou": iou if quantity not in ("auc", "map") else math.nan} | counts)
    curves = []
    for model in models:
        mean, low, high = block.band(drawn["curve", model][:len(GRID)], level=level)
        curves.append(pd.DataFrame({"model": model, "false_positives": GRID, "sensitivity": mean, "low": low, "high": high}))
    return Judged(pd.DataFrame(rows), pd.concat(curves, ignore_index=True))


def _same_scores(tested: pd.DataFrame, found: pd.DataFrame, models: Sequence[str]) -> None:
    """The score of every test image is its highest box, or 0: else the two tables are not of one run."""
    from mstl import predictions

    highest = found.groupby(["model", "chain", "fold", "image"])["score"].max()
    own = tested[tested["model"].isin(models)]
    keys = pd.MultiIndex.from_frame(own[["model", "seed", "fold", "image_id"]], names=highest.index.names)
    off = np.abs(highest.reindex(keys).fillna(0.0).to_numpy() - predictions.positive(own).to_numpy()) > 1e-5
    if off.any():
        row = own.iloc[int(off.argmax())]
        raise MstlError(f"The score of image {row['image_id']} ({row['model']}, chain {row['seed']}, fold {row['fold']}) is not that of its highest box: the boxes "
                        "are not those of these predictions; take both from one run.")


def calls(table: pd.DataFrame, found: pd.DataFrame, truth: pd.DataFrame, model: str, *, iou: float = 0.5) -> pd.DataFrame:
    """Every test image of the first chain and fold of a model: its highest box ``score``, and what became of it at Youden's threshold on the
    validation images (``threshold``): "hit" (a box above it on a finding), "missed", "false alarm" or "rightly silent"."""
    from mstl import predictions

    own = table[table["model"] == model]
    own = own[(own["seed"] == own["seed"].iloc[0]) & (own["fold"] == own["fold"].iloc[0])].reset_index(drop=True)
    own = own.assign(score=predictions.positive(own), positive=own["y_true"] == predictions.classes(own)[-1])
    val, test = own[own["split"] == "val"], own[own["split"] == "test"]
    threshold = roc.choose_threshold(val["positive"].to_numpy(), val["score"].to_numpy(), rule="youden")
    marked = found[(found["model"] == model) & (found["chain"] == own["seed"].iloc[0]) & (found["fold"] == own["fold"].iloc[0])]
    marked = marked[(marked["score"] >= threshold) & marked["image"].isin(test["image_id"])].reset_index(drop=True)
    true = truth[truth["image"].isin(test["image_id"])]
    hit = detection.per_image(list(test["image_id"]), marked, true, (iou,))[:, 0] if len(marked) else np.zeros(0, bool)
    on_finding, any_mark = set(marked["image"][hit]), set(marked["image"])
    kinds = [("hit" if image in on_finding else "missed") if sick else ("false alarm" if image in any_mark else "rightly silent")
             for image, sick in zip(test["image_id"], test["positive"], strict=True)]
    return test.assign(call=kinds, threshold=threshold)[["image_id", "group", "positive", "score", "threshold", "call"]].reset_index(drop=True)


# ------------------------------------------------------------------------------------------------------------- words, figures

def numbers(rows: pd.DataFrame) -> dict[str, float]:
    """Figures under names that prose can call: ``ap_transfer``, ``ap_transfer_low``, ``_high``, ``ap_difference`` … (NaN where there is none)."""
    short = {"auc": "auc", "ap": "ap", "map": "map", "sensitivity at 0.5": "froc_half", "sensitivity at 1": "froc_one", "mean sensitivity": "froc"}
    out: dict[str, float] = {}
    for row in rows[rows["quantity"].isin(short)].itertuples():
        stem = f"{short[row.quantity]}_{'difference' if '−' in row.model else row.model}"
        for end, value in (("", row.estimate), ("_low", row.low), ("_high", row.high)):
            out[stem + end] = float("nan" if value is None else value)
    return out


def sentence(rows: pd.DataFrame, what: str) -> str:
    """What the boxes show, generated from the rows of :func:`judge`."""
    first, said = rows.iloc[0], []
    for quantity in ("auc", "ap", "map", "mean sensitivity"):
        own = rows[rows["quantity"] == quantity]
        told = [f"{row.model} {_interval(row)}" for row in own.itertuples() if "−" not in row.model]
        told += [f"difference {_interval(row, '+')}" for row in own.itertuples() if "−" in row.model]
        bar = f" at IoU {own['iou'].iloc[0]:g}" if quantity == "ap" else ""
        said.append(f"{QUANTITIES[quantity]}{bar}: " + ", ".join(told))
    plural = "" if first["chains"] == 1 else "s"
    return (f"{what} ({first['n_boxes']} boxes on {first['n_images']} test images of {first['n_groups']} groups, {first['chains']} chain{plural}) — "
            + "; ".join(said) + ".")


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """Quantities by models, estimates with their intervals in text."""
    text = rows.assign(text=[_interval(row, "+" if "−" in row.model else "") for row in rows.itertuples()],
                       quantity=[QUANTITIES.get(q, f"FROC: {q} false positives an image") for q in rows["quantity"]])
    return text.pivot_table(index="quantity", columns="model", values="text", aggfunc="first", sort=False).rename_axis(None, axis=1)


def froc_figure(curves: pd.DataFrame, *, note: str = "", iou: float = 0.5) -> Figure:
    """FROC curves with their pointwise bands, one line a model."""
    from mstl import plots

    figure, ax = plots.subplots(figsize=(5.6, 3.6))
    for (model, part), (colour, line) in zip(curves.groupby("model", sort=False), plots._strokes(list(dict.fromkeys(curves["model"]))).values(), strict=True):
        ax.fill_between(part["false_positives"], part["low"], part["high"], color=colour, alpha=0.16, lw=0)
        ax.plot(part["false_positives"], part["sensitivity"], color=colour, ls=line, label=ARMS.get(model, model))
    ax.set(xlabel="false positives an image (all test images)", ylabel=f"true boxes found (IoU ≥ {iou:g})", xlim=(0, 2), ylim=(0, 1.01))
    ax.legend(fontsize=9, loc="lower right")
    return plots._finished(figure, note)


def pictures(data: ImageSet, judged: pd.DataFrame, found: pd.DataFrame, truth: pd.DataFrame, *, per_call: int = 4) -> Figure:
    """A row each of hits, misses and false alarms (of each the highest or, of the missed, the lowest scores, another group each):
    true boxes dashed and light, marks above the threshold solid. ``judged`` is of :func:`calls`, ``found`` of the same model and chain."""
    from matplotlib.patches import Rectangle

    from mstl import plots

    place = {str(image): row for row, image in enumerate(data.ids)}
    colours = plots.palette(["true", "marked"])
    figure, axes = plots.subplots(3, per_call, figsize=(1.9 * per_call, 6.0), squeeze=False)
    for row, call in zip(axes, ("hit", "missed", "false alarm"), strict=True):
        own = judged[judged["call"] == call].sort_values("score", ascending=call == "missed", kind="stable").drop_duplicates("group").head(per_call)
        for ax in row:
            ax.set_axis_off()
        row[0].text(-0.08, 0.5, call if len(own) else f"{call}: none", transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=9)
        for ax, case in zip(row, own.itertuples()):
            image = np.asarray(data.images[place[case.image_id]])
            ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
            marks = found[(found["image"] == case.image_id) & (found["score"] >= case.threshold)]
            for boxes, style in ((truth[truth["image"] == case.image_id], dict(ls="--", ec="white")), (marks, dict(ec=colours["marked"]))):
                for box in boxes.itertuples():
                    ax.add_patch(Rectangle((box.x0 - 0.5, box.y0 - 0.5), box.x1 - box.x0, box.y1 - box.y0, fill=False, lw=1.4, **style))
            ax.set_title(f"score {case.score:.2f}", fontsize=8, fontweight="normal", loc="center", pad=2)
    kind = "Simulated images" if data.card.simulated else "Real images"
    return plots._finished(figure, f"{kind}. Dashed: true boxes; solid: marks above the threshold {judged['threshold'].iloc[0]:.2f}, which was chosen on validation.")


def _interval(row, sign: str = "") -> str:
    return comparison.interval(row.estimate, row.low, row.high, 3, sign)
