"""The classic backbones (S3): four ways to transfer, three tasks, and what each network costs.

The *ways* are those that Kim et al. (2022) count: the frozen backbone with a linear head ("features"), with a classical classifier
("hybrid"), all weights trained on ("fine-tuned"), and all weights from a random start ("scratch"). One network grades every image; the
classification is read from its grades (:func:`lesions`). Masks are drawn by a U-Net whose encoder is the backbone.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mstl import comparison, predictions
from mstl.errors import MstlError
from mstl.metrics import chains, roc

if TYPE_CHECKING:
    from mstl.datasets.imageset import ImageSet
    from mstl.datasets.splits import Split

#: The ways to transfer, in the order of the figures.
WAYS = {"scratch": "every weight from a random start", "features": "frozen backbone, linear head",
        "hybrid": "frozen backbone, classical classifier", "fine-tuned": "every weight trained on"}
#: The classical classifiers: the setting that validation chooses, and its values.
CLASSIFIERS = {"svm": ("C", (0.1, 1.0, 10.0, 100.0, 1000.0)), "forest": ("images a leaf", (1, 2, 4, 8, 16)),
               "neighbours": ("neighbours", (1, 3, 5, 9, 15))}
MEASURES = {"kappa": "weighted κ", "mae": "mean absolute error (grades)"}
OVERLAPS = {"dice": "Dice", "iou": "IoU", "hausdorff": "95 % Hausdorff (pixels)"}
SEGMENTS = ["data", "title", "simulated", "backbone", "model", "seed", "fold", "n_train", "image_id", "group", "pixels", *OVERLAPS]
COSTS = ["backbone", "image_size", "parameters_m", "gflops", "ms_per_image", "batch", "repeats", "device", "threads"]


# ----------------------------------------------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Start:
    """A backbone, where its weights come from ("imagenet", "own", "none", a file or a run), the ways that are tested, the chains."""

    backbone: str
    weights: str
    ways: tuple[str, ...]
    seeds: tuple[int, ...]


def starts(entries: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Start]:
    """The declared backbones, checked. Without weights only scratch can be tested; ``ways: []`` asks for the cost alone."""
    out: list[Start] = []
    for entry in entries:
        unknown = [key for key in entry if key not in ("backbone", "weights", "ways", "seeds")]
        if unknown or "backbone" not in entry:
            raise MstlError(f"networks: {dict(entry)} {f'has the unknown key {unknown[0]!r}' if unknown else 'names no backbone'}: an entry has backbone and, "
                            "where they are not the default, weights, ways and seeds.")
        weights = str(entry.get("weights", "none"))
        ways = tuple(entry.get("ways", ["scratch"] if weights == "none" else list(WAYS)))
        wrong = [way for way in ways if way not in WAYS]
        if wrong:
            raise MstlError(f"networks: {entry['backbone']} has the way '{wrong[0]}', which does not exist: there are {', '.join(WAYS)}.")
        if weights == "none" and set(ways) - {"scratch"}:
            raise MstlError(f"networks: {entry['backbone']} has no weights, so '{sorted(set(ways) - {'scratch'})[0]}' cannot be tested: name weights "
                            "(imagenet, own, a file or a run), or leave scratch alone.")
        if ways and "scratch" not in ways:
            raise MstlError(f"networks: {entry['backbone']} leaves scratch out, which every other way is compared with: add it.")
        out.append(Start(entry["backbone"], weights, tuple(way for way in WAYS if way in ways), tuple(entry.get("seeds", seeds))))
    names = [start.backbone for start in out]
    if len(set(names)) < len(names):
        raise MstlError(f"networks: {next(n for n in names if names.count(n) > 1)} is there twice: keep one.")
    if not any(len(start.ways) > 1 for start in out):
        raise MstlError("networks: no backbone has two ways, so there is nothing to compare: give one of them weights.")
    return out


def untested(asked: Sequence[Start]) -> str:
    """One sentence: what is not tested for want of weights, and what starts from weights that say nothing of the backbone."""
    parts = []
    bare = [start.backbone for start in asked if start.weights == "none" and start.ways]
    cost = [start.backbone for start in asked if not start.ways]
    own = [start.backbone for start in asked if start.weights == "own"]
    if bare:
        parts.append(f"Not tested here: transfer from {_and(bare)}, for which no pre-trained weights were at hand; from a random start they are.")
    if cost:
        parts.append(f"Of {_and(cost)} only the cost was measured.")
    if own:
        parts.append(f"{_and(own)} started from a short source training of this study's own, which says nothing of what the backbone is worth with "
                     "ImageNet weights.")
    return " ".join(parts) or "Every backbone was tested in every way."


def described(name: str) -> tuple[str, bool]:
    """Title of a data set, and whether it is simulated; a set of one's own has its name."""
    from mstl.datasets.catalog import catalog

    card = catalog().get(name)
    return (card.title, card.simulated) if card else (Path(name).name, False)


def each_once(masks: Sequence[Mapping[str, Any]]) -> None:
    """Raise MstlError where two entries are of the same set: tables tell their rows apart by its name."""
    sets = [entry.get("data") for entry in masks]
    for name in sets:
        if sets.count(name) > 1:
            raise MstlError(f"masks names {name} twice: take both kinds of lesion in one entry (classes), or run the page twice.")


def prepare(
    data: str, *, image_size: int, design: Mapping[str, Any], options: Mapping[str, Any] | None = None, classes: Sequence[str] = (),
    group_by_cluster: bool = False, masks: bool = False,
) -> tuple[ImageSet, list[Split]]:
    """A data set and its splits by group; ``masks``: only its images with a lesion. ``design``: arguments of ``splits.design``."""
    from mstl.datasets import load, splits

    images = load(data, size=image_size, **(options or {}))
    images = images.select(list(classes)) if classes else images
    if group_by_cluster:
        images = splits.group_by_cluster(images, splits.audit(images))
    if masks:
        images = with_lesion(images)
        found = [name for k, name in enumerate(images.classes) if (images.labels == k).any()]
        images = images.select(found)  # normal images had nothing to draw
    return images, splits.design(images, **design)


# ----------------------------------------------------------------------------------------------------------- four ways


def pretrain(backbone: str, data: ImageSet, *, recipe: Mapping[str, Any], seed: int, folder: Path, on_epoch: Callable | None = None) -> Path:
    """A short source training of one's own on all of ``data``; returns the folder of its checkpoint, finished once and then found."""
    from mstl import training
    from mstl.models import backbones

    model = backbones.create(backbone, data.classes, image_size=data.size, channels=data.channels, seed=seed)
    full = training.Recipe(**{"lr": 1e-3, "batch_size": 32, "augmentation": "natural", "keep": "last", "monitor": "accuracy", "seed": seed} | dict(recipe))
    rows = np.arange(len(data))
    place = folder / f"own-{training.fit_key(model, data, rows, None, full)[:16]}"
    training.fit(model, data, rows, None, full, folder=place, quiet=True, on_epoch=on_epoch)
    return place


def classify(
    start: Start, weights: str | Path | None, images: ImageSet, parts: Sequence[Split], *, recipe: Mapping[str, Any], lrs: Sequence[float],
    steps: Sequence[int], extra_steps: Sequence[int] = (), hybrid: str = "svm", folded: bool = False, folder: Path,
    columns: Mapping[str, Any], on_fit: Callable[[str], None] = lambda text: None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions of every way, chain and fold on validation and test images, and what validation chose: one row a way, chain, fold.

    Each way has its small budget on validation: the penalty of the linear head, one setting of the classical classifier, learning
    rates × steps of a network (``extra_steps`` for scratch). The first chain tunes (``folded``: in each fold, else once), the
    others take its choice. Frozen features need no chain, so "features" is the same in all of them.
    """
    from mstl import probing, training
    from mstl.models import backbones

    def build(seed: int, way: str):
        return backbones.create(start.backbone, images.classes, image_size=images.size, channels=images.channels, seed=seed,
                                weights=None if way == "scratch" else weights)

    frozen = {"features", "hybrid"} & set(start.ways)
    seen = training.extract_features(build(start.seeds[0], "features"), images) if frozen else None
    base = training.Recipe(**{"steps": int(steps[0]), "monitor": "auc"} | dict(recipe))
    tables, choices, chosen = [], [], {}
    for seed, part, way in product(start.seeds, parts, start.ways):
        kept = way, part.fold if folded else 0
        if way == "features":
            fitted = probing.probe(seen, images.labels, part, n_classes=len(images.classes))
            val, test, choice = fitted.val, fitted.test, {"setting": "penalty strength", "value": fitted.strength}
        elif way == "hybrid":
            val, test, choice = classical(seen, images.labels, part, kind=hybrid, seed=seed)
        else:
            grid = chosen.get(kept, (lrs, steps, extra_steps if way == "scratch" else ()))
            tuned = training.tune(lambda: build(seed, way), images, part.train, part.val, replace(base, seed=seed), lrs=grid[0], steps=grid[1],
                                  extra_steps=grid[2], folder=folder, quiet=True)
            chosen.setdefault(kept, ([tuned.recipe.lr], [tuned.recipe.steps], ()))
            val, test = (training.predict(tuned.fit.model, images, rows) for rows in (part.val, part.test))
            choice = {"setting": "learning rate, steps", "value": f"{tuned.recipe.lr:g}, {tuned.recipe.steps}"}
        known = dict(columns) | {"model": way, "backbone": start.backbone, "arm": "scratch" if way == "scratch" else "ctl",
                                 "source": "" if way == "scratch" else start.weights, "n_train": len(part.train)}
        tables += [predictions.frame(images, rows, p, split=split, fold=part.fold, seed=seed, **known)
                   for split, rows, p in (("val", part.val, val), ("test", part.test, test))]
        choices.append({"backbone": start.backbone, "way": way, "seed": seed, "fold": part.fold, **choice,
                        "auc_validation": roc.auc(images.labels[part.val], val)})
        on_fit(f"{start.backbone}, {way}")
    return pd.concat(tables, ignore_index=True), pd.DataFrame(choices)


def classical(features: np.ndarray, labels: np.ndarray, split: Split, *, kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A classical classifier on frozen features (N, D): probabilities (n, C) of the validation and test rows, and what was chosen.

    ``kind``: "svm" (radial basis functions), "forest" (100 trees) or "neighbours". Features are standardised on the training rows; the
    setting of ``CLASSIFIERS`` is chosen by the AUC on the validation rows, the first of equals. The distances of a support vector
    machine become probabilities by a logistic regression on the validation rows (Platt 1999).
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    if kind not in CLASSIFIERS:
        raise MstlError(f"hybrid='{kind}' is not a classifier here: there are {', '.join(CLASSIFIERS)}.")
    y, y_val = labels[split.train], labels[split.val]
    if len(np.unique(y)) < len(np.unique(labels)) or len(np.unique(y_val)) < len(np.unique(labels)):
        raise MstlError("The training or the validation part lacks a class, so a classifier can be neither fitted nor chosen: draw another split.")
    setting, values = CLASSIFIERS[kind]
    scale = StandardScaler().fit(features[split.train])
    x, val, test = (scale.transform(features[rows]) for rows in (split.train, split.val, split.test))
    make = {"svm": lambda v: SVC(C=v, gamma="scale"), "forest": lambda v: RandomForestClassifier(100, min_samples_leaf=v, random_state=seed),
            "neighbours": lambda v: KNeighborsClassifier(min(v, len(x)))}[kind]

    def score(model, rows: np.ndarray) -> np.ndarray:
        return model.decision_function(rows) if kind == "svm" else model.predict_proba(rows)

    best = None
    for value in values:
        model = make(value).fit(x, y)
        reached = roc.auc(y_val, score(model, val))
        if best is None or reached > best[0]:
            best = reached, value, model
    _, value, model = best
    found = [score(model, rows) for rows in (val, test)]
    if kind == "svm":
        found = [s.reshape(len(s), -1) for s in found]
        platt = LogisticRegression(max_iter=1000).fit(found[0], y_val)
        found = [platt.predict_proba(s) for s in found]
    return found[0], found[1], {"setting": f"{kind}: {setting}", "value": value}


# ------------------------------------------------------------------------------------------------------------- masks


def with_lesion(data: ImageSet) -> ImageSet:
    """The images whose mask has a pixel: where there is nothing to draw, overlap measures nothing."""
    if data.masks is None:
        raise MstlError(f"{data.name} has no masks: name a set with masks, for example busi, kvasir-segmentation or phantom-ultrasound.")
    found = np.flatnonzero(np.asarray(data.masks).any(axis=(1, 2)))
    if not len(found):
        raise MstlError(f"No mask of {data.name} has a pixel, so there is nothing to draw: name another set.")
    return data if len(found) == len(data) else data.subset(found)


def segment(
    backbone: str, weights: str | Path | None, data: ImageSet, parts: Sequence[Split], *, ways: Sequence[str], seeds: Sequence[int],
    recipe: Mapping[str, Any], lrs: Sequence[float], steps: Sequence[int], extra_steps: Sequence[int] = (), folded: bool = False, folder: Path,
    columns: Mapping[str, Any], on_fit: Callable[[str], None] = lambda text: None,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, np.ndarray]]:
    """Overlap with the truth in every test image, one row an image, way, chain and fold; what validation chose; and the probabilities
    (n, H, W) of each way on the test images of the first chain and fold, for pictures.

    ``ways``: "scratch" (random encoder), "features" (frozen pre-trained encoder), "fine-tuned". The budget is spent as in :func:`classify`;
    the candidate with the lowest validation loss is kept. Keys of the ``recipe`` that speak of classes have no place here and are left out.
    """
    from mstl import training
    from mstl.metrics import segmentation as overlap
    from mstl.models import segmentation

    wrong = [way for way in ways if way not in ("scratch", "features", "fine-tuned")]
    if wrong:
        raise MstlError(f"unet_ways: '{wrong[0]}' does not exist for masks: there are scratch, features and fine-tuned.")
    if weights is None and set(ways) - {"scratch"}:
        raise MstlError(f"unet_ways: {backbone} has no weights, so '{sorted(set(ways) - {'scratch'})[0]}' cannot be tested: name unet_weights, or leave scratch alone.")
    of_classes = ("monitor", "class_weights", "label_smoothing", "patience", "layer_decay", "freeze")
    base = training.Recipe(**{key: value for key, value in recipe.items() if key not in of_classes} | {"steps": int(steps[0]), "monitor": "loss"})
    tables, choices, pictures, chosen = [], [], {}, {}
    for seed, part, way in product(seeds, parts, ways):
        kept = way, part.fold if folded else 0
        known = dict(columns) | {"backbone": backbone, "model": way, "seed": seed, "fold": part.fold}

        def attempt(lr: float, n: int, seed=seed, part=part, way=way):
            full = replace(base, lr=float(lr), steps=int(n), seed=seed, freeze="backbone" if way == "features" else "none")
            model = segmentation.create(backbone, image_size=data.size, channels=data.channels, weights=None if way == "scratch" else weights, seed=seed)
            name = hashlib.sha256(json.dumps([data.hash, backbone, way, str(weights), seed, part.fold, lr, n]).encode()).hexdigest()[:16]
            try:
                return segmentation.fit(model, data, part.train, part.val, full, folder=folder / f"unet-{name}")
            except training.NonFiniteLoss:
                return None  # it loses, as in training.tune

        grid = chosen.get(kept) or [(lr, n) for lr in lrs for n in steps]
        fits = {pair: fit for pair in grid if (fit := attempt(*pair)) is not None}
        if fits and way == "scratch" and kept not in chosen:
            rate = min(fits, key=lambda pair: fits[pair].best["val_loss"])[0]
            fits |= {(rate, n): fit for n in extra_steps if (fit := attempt(rate, n)) is not None}
        if not fits:
            raise MstlError(f"Every candidate of {way} on {data.name} had a loss that is not finite: give lower learning rates (unet_lrs).")
        pair = min(fits, key=lambda pair: fits[pair].best["val_loss"])
        chosen.setdefault(kept, [pair])
        risk = segmentation.predict(fits[pair].model, data, part.test)
        truth = np.asarray(data.masks[part.test])
        tables.append(pd.DataFrame(known | {"n_train": len(part.train), "image_id": data.ids[part.test], "group": data.groups[part.test],
                                            "pixels": truth.sum(axis=(1, 2))} | {name: getattr(overlap, name)(truth, risk >= 0.5) for name in OVERLAPS}))
        choices.append({"backbone": backbone, "way": f"{way}, masks of {data.name}", "seed": seed, "fold": part.fold, "setting": "learning rate, steps",
                        "value": f"{pair[0]:g}, {pair[1]}", "dice_validation": fits[pair].best["val_dice"]})
        pictures.setdefault(way, risk)
        on_fit(f"masks of {data.name}, {way}")
    return pd.concat(tables, ignore_index=True)[SEGMENTS], pd.DataFrame(choices), pictures


# -------------------------------------------------------------------------------------------------------------- costs


def cost(backbone: str, *, n_classes: int, image_size: int, channels: int = 1, batch: int = 16, repeats: int = 5) -> dict[str, Any]:
    """Parameters (millions), floating-point operations of one image (10⁹; a multiplication and an addition count as two), and the measured
    time from prepared pixels to logits (milliseconds an image: the median of ``repeats`` batches after one to warm up)."""
    import os

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mstl import study
    from mstl.models import backbones

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = backbones.create(backbone, n_classes, image_size=image_size, channels=channels).eval().to(device)
    layout = torch.channels_last if backbones.is_convolutional(model) else torch.contiguous_format
    model.to(memory_format=layout)
    pixels = torch.randint(0, 256, (batch, channels, image_size, image_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def run(images):
        return model(backbones.to_input(images.to(device), model.spec).contiguous(memory_format=layout)).cpu()

    seconds = []
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            run(pixels[:1])
        for _ in range(repeats + 1):
            began = time.perf_counter()
            run(pixels)
            seconds.append(time.perf_counter() - began)
    return {"backbone": backbone, "image_size": image_size, "parameters_m": sum(p.numel() for p in model.parameters()) / 1e6,
            "gflops": counter.get_total_flops() / 1e9, "ms_per_image": 1000 * float(np.median(seconds[1:])) / batch, "batch": batch, "repeats": repeats,
            "device": study.device(), "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or torch.get_num_threads()}


def front(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(n,) True for the points of the Pareto front: no other one costs at most as much and scores at least as high, one of them strictly."""
    costs, scores = np.asarray(costs, float), np.asarray(scores, float)
    if costs.shape != scores.shape or costs.ndim != 1 or not (np.isfinite(costs).all() and np.isfinite(scores).all()):
        raise MstlError("A Pareto front takes one finite cost and one finite score a point: drop the points that lack one.")
    better = (costs <= costs[:, None]) & (scores >= scores[:, None]) & ((costs < costs[:, None]) | (scores > scores[:, None]))
    return ~better.any(axis=1)


def against_cost(costs: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """One row a backbone and way: its cost, its AUC with interval, and whether it lies on the front of each cost."""
    auc = levels.loc[levels["metric"] == "AUC", ["backbone", "model", "estimate", "low", "high"]]
    table = auc.merge(costs, on="backbone", how="left", validate="many_to_one")
    if table["gflops"].isna().any():
        raise MstlError(f"costs.csv has no row of {table.loc[table['gflops'].isna(), 'backbone'].iloc[0]}: measure its cost, or leave it out.")
    return table.assign(**{f"front_{c}": front(table[c], table["estimate"]) for c in ("gflops", "ms_per_image")})


# --------------------------------------------------------------------------------------------------------- statistics


def lesions(table: pd.DataFrame, pair: Sequence[str]) -> pd.DataFrame:
    """The classification that is read from grades: the images of the two classes ``pair`` (the last one positive), and of each image's
    probabilities the share of the second, p₂ / (p₁ + p₂)."""
    names = predictions.classes(table)
    if len(pair) != 2 or not set(pair) <= set(names):
        raise MstlError(f"lesion={list(pair)}: name two of the classes {', '.join(names)}, the positive one last.")
    own = table[table["y_true"].isin(pair)]
    p = own[[f"p_{name}" for name in pair]].to_numpy(float)
    total = p.sum(axis=1)
    share = np.divide(p[:, 1], total, out=np.full(len(p), 0.5), where=total > 0)
    bare = own.drop(columns=[f"p_{name}" for name in names]).assign(target="lesion")
    return predictions.check(bare.assign(**{f"p_{pair[0]}": 1 - share, f"p_{pair[1]}": share}))


def grading(table: pd.DataFrame, *, reference: str = "scratch", level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Quadratically weighted κ and the mean absolute error of the grade, of every way and against ``reference``.

    The grade is the most probable class; classes are in order. Both are computed within a chain and fold, then averaged (see
    ``paired.chain_mean``). Columns: target, variant, backbone, measure, model, reference ("" for a level), estimate, low, high, p, sd_chains, n_images,
    n_groups, n_chains, n_folds, note.
    """
    rows = []
    for key, block in comparison.each(table):
        names = comparison.models(block)
        aligned = comparison.align(block, names)
        called = {name: s.argmax(axis=1) if s.ndim == 2 else (s >= 0.5).astype(int) for name, s in aligned.scores.items()}
        made = {("kappa", name): aligned.block.metric("kappa_quadratic", aligned.scores[name]) for name in names}
        made |= {("mae", name): aligned.block.mean(np.abs(called[name] - aligned.truth).astype(float)) for name in names}
        worst = len(predictions.classes(block)) - 1
        rows += _rows(key, aligned.block, made, names, MEASURES, {"kappa": (-1.0, 1.0), "mae": (0.0, float(worst))}, reference, level, n_resamples, seed)
    return pd.DataFrame(rows)


def constant_error(table: pd.DataFrame) -> float:
    """The mean absolute error of the one grade that fits the test images best: what a model must be below to have read anything."""
    test = table[table["split"] == "test"].drop_duplicates("image_id")
    grade = comparison.truth(test, table)
    return float(min(np.abs(grade - k).mean() for k in range(len(predictions.classes(table)))))


def overlap(segments: pd.DataFrame, *, reference: str = "scratch", level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Mean Dice, IoU and 95 % Hausdorff distance over test images, chains and folds, of every way and against ``reference``; columns as
    of :func:`grading`, with ``data``, ``title`` and ``simulated`` in the place of the task's."""
    rows, keys = [], ["seed", "fold", "image_id"]
    for key, block in segments.groupby(["data", "title", "simulated", "backbone"], sort=False):
        names = [way for way in WAYS if way in set(block["model"])]
        parts = {name: block[block["model"] == name].sort_values(keys, ignore_index=True) for name in names}
        first = parts[names[0]]
        for name, part in parts.items():
            if not part[keys].equals(first[keys]):
                raise MstlError(f"{name} and {names[0]} do not cover the same images of {key[0]} in the same chains and folds: give every way's row of each image.")
        shared = chains.Means(len(first), **{name: first[name].to_numpy() for name in ("seed", "fold", "group")})
        made = {(measure, name): shared.mean(parts[name][measure].to_numpy(float)) for measure in OVERLAPS for name in names}
        bounds = {"dice": (0.0, 1.0), "iou": (0.0, 1.0), "hausdorff": (0.0, np.inf)}
        known = dict(zip(("data", "title", "simulated", "backbone"), key, strict=True))
        rows += _rows(known, shared, made, names, OVERLAPS, bounds, reference, level, n_resamples, seed)
    return pd.DataFrame(rows)


def _rows(key, block, made, names, measures, bounds, reference, level, n_resamples, seed) -> list[dict]:
    """Levels of every model and their differences to the reference, for each measure."""
    found = block.resample(made, n_resamples, seed)
    counts = {name: block.counts[name] for name in ("n_images", "n_groups", "n_chains", "n_folds")}
    rows = []
    for measure, title in measures.items():
        low, high = bounds[measure]
        wanted = [(name, "", found[measure, name], (low, high)) for name in names]
        if reference in names:
            wanted += [(name, reference, found[measure, name] - found[measure, reference], (low - high, high - low)) for name in names if name != reference]
        for name, other, values, between in wanted:
            one = block.summary(values, level=level, bounds=between, what=title)
            rows.append(dict(key) | {"measure": measure, "model": name, "reference": other, "estimate": one.estimate, "low": one.low, "high": one.high,
                                     "p": one.p_value if other else None, "sd_chains": one.sd_chains} | counts | {"note": one.note})
    return rows


# ------------------------------------------------------------------------------------------------- tables and words


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The tables of a finished run: predictions, segments, costs, and what validation chose."""
    out = [predictions.read(folder)]
    for name, columns in (("segments", SEGMENTS), ("costs", COSTS), ("choices", ["backbone", "way", "value"])):
        file = folder / f"{name}.csv"
        if not file.is_file():
            raise MstlError(f"There is no table {file}: name the folder of a finished run of 73_backbones.")
        table = pd.read_csv(file, dtype={"image_id": str, "group": str})
        absent = [column for column in columns if column not in table]
        if absent:
            raise MstlError(f"{file} has no column '{absent[0]}': it is not a table that 73_backbones wrote.")
        out.append(table)
    return tuple(out)


def spread(rows: pd.DataFrame, measures: Mapping[str, str], index: Collection[str] = ("backbone",)) -> pd.DataFrame:
    """Levels to look at: one row a backbone and way, one column a measure, each "estimate (low to high)"."""
    levels = rows[rows["reference"] == ""]
    shown = levels.assign(text=comparison.intervals(levels), measure=levels["measure"].map(measures))
    return shown.pivot_table(index=[*index, "model"], columns="measure", values="text", aggfunc="first", sort=False).rename_axis(columns=None)


def note(rows: pd.DataFrame, title: str, *, simulated: bool) -> str:
    """What stands under a figure of ``rows`` (with the counts of images, groups and chains): where the numbers come from."""
    kind = "" if "imulated" in title else "Simulated images: " if simulated else "Real images: "
    images, groups = (", ".join(dict.fromkeys(f"{int(n)}" for n in rows[c])) for c in ("n_images", "n_groups"))
    text = f"{kind}{title}. n = {images} test images in {groups} groups; chains: {int(rows['n_chains'].max())} at most."
    return "\n".join(textwrap.wrap(text, 110))


def answers(overlaps: pd.DataFrame) -> str:
    """The Dice of every set in words."""
    return " ".join(sentence(part, "dice", f"Dice, {title}", simulated=bool(part["simulated"].iloc[0]))
                    for title, part in overlaps.groupby("title", sort=False)) if len(overlaps) else "No masks were drawn."


def bill(costs: pd.DataFrame, priced: pd.DataFrame) -> pd.DataFrame:
    """What each network costs, and the best AUC that one of its ways reached, to look at."""
    table = costs.set_index("backbone")[["parameters_m", "gflops", "ms_per_image"]].round(3)
    table.columns = ["parameters (10⁶)", "operations an image (10⁹)", "time an image (ms)"]
    best = priced.sort_values("estimate").groupby("backbone").tail(1).set_index("backbone").reindex(table.index)
    reached = [comparison.interval(r.estimate, r.low, r.high, 3) if pd.notna(r.estimate) else "not trained here" for r in best.itertuples()]
    return table.assign(**{"best AUC": reached, "way": best["model"].fillna("")})


def sentence(rows: pd.DataFrame, measure: str, title: str, *, simulated: bool) -> str:
    """The levels of one measure and their differences to the reference in words, generated from the numbers alone."""
    parts = []
    own = rows[rows["measure"] == measure]
    for backbone, block in own.groupby("backbone", sort=False):
        levels, differences = block[block["reference"] == ""], block[block["reference"] != ""]
        text = ", ".join(f"{row.model} {comparison.interval(row.estimate, row.low, row.high, 3)}" for row in levels.itertuples())
        against = ", ".join(f"{row.model} − {row.reference} {comparison.interval(row.estimate, row.low, row.high, 3, '+')}" for row in differences.itertuples())
        parts.append(f"{backbone}: {text}" + (f"; differences: {against}" if against else ""))
    one = own.iloc[0]
    kind = "simulated images, " if simulated and "imulated" not in title else ""
    return (f"{title} ({kind}n = {int(one['n_images'])} test images in {int(one['n_groups'])} groups, chains: {int(own['n_chains'].max())} at most) — "
            + "; ".join(parts) + ".")


def numbers(levels: pd.DataFrame, grades: pd.DataFrame, backbone: str) -> dict[str, float]:
    """The figures of one backbone under names that prose can call: ``auc_<way>``, ``kappa_<way>``, ``mae_<way>`` with ``_low`` and ``_high``."""
    out: dict[str, float] = {}
    auc = levels[(levels["metric"] == "AUC") & (levels["backbone"] == backbone)].assign(measure="auc")
    graded = grades[(grades["backbone"] == backbone) & (grades["reference"] == "")]
    for row in [*auc.itertuples(), *graded.itertuples()]:
        stem = f"{row.measure}_{row.model.replace('-', '_')}"
        out |= {stem: row.estimate, f"{stem}_low": row.low, f"{stem}_high": row.high}
    return {key: float("nan") if value is None else float(value) for key, value in out.items()}


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
