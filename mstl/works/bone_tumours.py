"""Lesions as crops around a box: which pre-training reads them best, and does it hold in a hospital that was not trained on?

The images come at a larger size (the *field*), each with the box that a reader drew; what a network sees is the square around the
box, cut from the field, so that a crop of a small lesion is not made of a few pixels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mstl import comparison, predictions, templates
from mstl.datasets.folder import CORNERS
from mstl.errors import MstlError
from mstl.metrics import _check, ranks, readers

if TYPE_CHECKING:
    from mstl.datasets.imageset import ImageSet
    from mstl.datasets.splits import Split

# --- cases, crops, splits -----------------------------------------------------------------------------------------------


def prepare(p: Mapping[str, Any]) -> tuple[ImageSet, ImageSet, list[Split]]:
    """Field, crops and splits from a run's parameters: what 71 trains on and 72 disturbs are the same images."""
    from mstl.datasets import load, splits

    field = load(p["data"], size=p["field_size"], **p["options"])
    if p["group_by_cluster"]:
        field = splits.group_by_cluster(field, splits.audit(field))
    field = cases(field, p["classes"], label=p["label"], smallest=p["smallest"])
    if len(field.classes) != 2:
        raise MstlError(f"The cases of {field.name} have the classes {', '.join(field.classes)}, and this chapter tells two apart: name two as classes, the "
                        "positive one last.")
    parts = design(field, development=p["development"], folds=p["folds"], internal=p["internal"], n_val=p["n_val"])
    return field, crops(field, p["image_size"], p["context"]), parts


def cases(data: ImageSet, classes: Sequence[str] = (), *, label: str = "", smallest: float = 0) -> ImageSet:
    """The images of ``classes`` (default all) that have a box, each with its largest one.

    ``label``: the column of ``extra`` that says what a case is, in the place of the set's own labels (mini-MIAS: "severity", classes
    B and M). ``smallest``: sides of a box below this many pixels are widened about its centre. Raises MstlError for a set without boxes, a column or class that is not there, and a box outside its image.
    """
    if data.boxes is None or not len(data.boxes):
        raise MstlError(f"{data.name} has no boxes around lesions, which this chapter cuts its cases by: name another set, or give boxes in the manifest.")
    if label:
        if data.extra is None or label not in data.extra:
            have = [] if data.extra is None else [str(name) for name in data.extra]
            raise MstlError(f"{data.name} has no column '{label}' to take labels from: {templates.suggestion(label, have)}")
        values = data.extra[label].astype(str).to_numpy()
        classes = list(classes) or sorted(set(values) - {""})
        known = np.flatnonzero(np.isin(values, classes))
        absent = [name for name in classes if name not in set(values)]
        if absent or len(classes) < 2:
            raise MstlError(f"The column '{label}' of {data.name} holds {', '.join(sorted(set(values) - {''}))}: give at least two of them as classes.")
        part = data.subset(known)
        data = dataclasses.replace(part, labels=np.array([classes.index(v) for v in values[known]]), classes=tuple(classes), splits=np.full(len(known), ""))
    elif classes:
        data = data.select(list(classes))
    boxes = data.boxes.assign(area=(data.boxes["x1"] - data.boxes["x0"]) * (data.boxes["y1"] - data.boxes["y0"]))
    outside = boxes[(boxes[["x0", "y0"]] < -0.5).any(axis=1) | (boxes[["x1", "y1"]] > data.size + 0.5).any(axis=1) | (boxes["area"] <= 0)]
    if len(outside):
        one = outside.iloc[0]
        raise MstlError(f"The box of image '{data.ids[int(one['image'])]}' of {data.name} ({', '.join(f'{one[c]:g}' for c in CORNERS)}) is empty or lies outside "
                        f"its image of {data.size} × {data.size} pixels: correct it in the table of boxes.")
    largest = boxes.sort_values(["image", "area"], kind="stable").groupby("image").tail(1)
    found = data.subset(largest["image"].to_numpy())
    own = largest.drop(columns="area").assign(image=np.arange(len(largest)))
    for low, high in (("x0", "x1"), ("y0", "y1")):
        centre, half = (own[low] + own[high]) / 2, np.maximum(own[high] - own[low], smallest) / 2
        own[low], own[high] = centre - half, centre + half
    return dataclasses.replace(found, boxes=own.reset_index(drop=True))


def corners(data: ImageSet) -> np.ndarray:
    """(N, 4) the one box of each case, in pixels."""
    return data.boxes[CORNERS].to_numpy(float)


def cut(images: np.ndarray, boxes, size: int, context: float, *, lesions=None) -> tuple[np.ndarray, np.ndarray]:
    """Squares of ``context`` × the longer side around the centre of each box, uint8 (N, size, size, C), black beyond the image; and where
    ``lesions`` (N, 4; default the boxes) lie in them, in their pixels."""
    from PIL import Image

    b = _check.boxes(boxes)
    if len(b) != len(images):
        raise MstlError(f"{len(b)} boxes were given for {len(images)} images: give one an image.")
    if not context > 0:
        raise MstlError(f"context={context}: a crop is a positive multiple of the box's longer side, for example 1.5.")
    half = context * (b[:, 2:] - b[:, :2]).max(axis=1) / 2
    corner = (b[:, :2] + b[:, 2:]) / 2 - half[:, None]
    out = np.empty((len(b), size, size, images.shape[3]), np.uint8)
    for number, ((x, y), h) in enumerate(zip(corner, half, strict=True)):
        image = np.asarray(images[number])
        margin = int(np.ceil(max(0, -x, -y, x + 2 * h - image.shape[1], y + 2 * h - image.shape[0])))
        image = np.pad(image, ((margin, margin), (margin, margin), (0, 0))) if margin else image
        window = (x + margin, y + margin, x + margin + 2 * h, y + margin + 2 * h)
        for channel in range(image.shape[2]):
            part = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            out[number, ..., channel] = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR, box=window))
    there = b if lesions is None else _check.boxes(lesions)
    return out, (there - np.tile(corner, 2)) * (size / (2 * half))[:, None]


def crops(field: ImageSet, size: int, context: float) -> ImageSet:
    """The cases as images of ``size`` × ``size`` pixels around their boxes, with the boxes moved along."""
    pixels, inside = cut(field.images, corners(field), size, context)
    boxes = field.boxes.assign(**dict(zip(CORNERS, inside.T, strict=True)))
    return dataclasses.replace(field, images=pixels, masks=None, boxes=boxes)


def design(data: ImageSet, *, development: str = "", folds: int = 5, internal: float = 0.3, n_val: int = 0, seed: int = 0) -> list[Split]:
    """Who trains and who is tested. With a ``development`` center: training, validation and an internal test part (``internal`` of its
    images) from that center, and every image of the others tested too. Without: grouped folds over all."""
    from mstl.datasets import splits

    if not development:
        return splits.folds(data, folds, seed=seed)
    known = sorted(set(data.centers) - {""})
    if development not in known or len(known) < 2:
        raise MstlError(f"The center '{development}' cannot be the one of development, because the cases of {data.name} come from "
                        f"{', '.join(known) or 'no named center'}: name one of several, or leave development empty for folds.")
    own, others = np.flatnonzero(data.centers == development), np.flatnonzero(data.centers != development)
    (inner,) = splits.holdout(data.subset(own), test=internal, n_val=n_val or None, seed=seed)
    part = splits.Split(0, own[inner.train], own[inner.val], np.sort(np.concatenate([own[inner.test], others])))
    splits.check(part, data)
    return [part]


# --- the networks that are compared -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """What is compared: its ``name``, a timm ``backbone``, where its ``weights`` come from ("imagenet", "none", a weights file, or a run as
    10_source/…) and, where they are not the backbone's own, ``mean`` and ``std`` of the pixels (scaled to 0…1) that it is fed."""

    name: str
    backbone: str
    weights: str = "imagenet"
    mean: float | None = None
    std: float | None = None

    def build(self, crops: ImageSet, *, seed: int, start: Path | str | None = None):
        """The network before training; ``start``: the folder of the run that ``weights`` names, or a file."""
        from mstl.models import backbones

        given = {"imagenet": "imagenet", "none": None}.get(self.weights, start or self.weights)
        pixels = {key: [value] * 3 for key, value in (("mean", self.mean), ("std", self.std)) if value is not None}
        return backbones.create(self.backbone, crops.classes, image_size=crops.size, channels=crops.channels, weights=given, seed=seed, **pixels)


def networks(declared: Sequence[Mapping[str, Any]], others: Iterable[str] = ()) -> list[Network]:
    """The declared networks, checked; ``others``: names that are taken."""
    fields = [field.name for field in dataclasses.fields(Network)]
    found = []
    for entry in declared:
        if not isinstance(entry, Mapping) or not {"name", "backbone"} <= set(entry):
            raise MstlError(f"A network is a mapping with name, backbone and weights, but {entry!r} is none.")
        unknown = [key for key in entry if key not in fields]
        if unknown:
            raise MstlError(f"The network '{entry['name']}' has the unknown key '{unknown[0]}': {templates.suggestion(unknown[0], fields)}")
        found.append(Network(**entry))
    names = [network.name for network in found] + list(others)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not found:
        raise MstlError(f"The name '{twice[0]}' stands for two models: give each its own." if twice else "No network was declared: name at least one.")
    return found


def handcrafted_names(p: Mapping[str, Any]) -> list[str]:
    """The models beside the networks in a run with the parameters ``p``: the features' and the one that adds a network's score, or none."""
    names = [network.name for network in networks(p["networks"])]
    if p["combined"] and p["combined"] not in names:
        raise MstlError(f"combined='{p['combined']}' is no network of this run: {templates.suggestion(p['combined'], names)}")
    return [] if p["features"] == "none" else [p["features"], f"{p['combined'] or names[0]} + {p['features']}"]


def check_pair(pair: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a pair that is not two of the models."""
    if len(pair) != 2 or pair[0] == pair[1]:
        raise MstlError(f"pair={list(pair)}: name two different models, the first minus the second, out of {', '.join(names)}.")
    for name in pair:
        if name not in names:
            raise MstlError(f"pair names '{name}', which is no model of this run: {templates.suggestion(name, names)}")


def start(network: Network, parent: Callable[[str, str], Path]) -> Path | None:
    """Where the weights of ``network`` lie, None where no file is needed; ``parent`` is ``Run.parent``."""
    if network.weights in ("imagenet", "none"):
        return None
    found = parent(network.weights, f"the weights of '{network.name}'")
    return found / "checkpoint" if (found / "checkpoint").is_dir() else found


def lineage(start: Path | None, crops: ImageSet, part: Split, seed: int, score: float | None) -> list[dict[str, Any]]:
    """Every stage behind a kept network: those of the checkpoint that it started from, and this one."""
    from mstl import checkpoints

    before = checkpoints.read(start).lineage if start is not None and checkpoints.is_checkpoint(start) else []
    return [*before, {"stage": "target", "data": crops.name, "data_hash": crops.hash, "images": len(part.train), "seed": seed, "score": score}]


def place(work: Path, seed: int, fold: int) -> Path:
    """Where a run keeps the models of one chain and fold."""
    return work / "checkpoint" / f"seed{seed}-fold{fold}"


def rows(crops: ImageSet, part: Split, risk: np.ndarray, *, seed: int, **constant: object) -> list[pd.DataFrame]:
    """The predictions of the validation and test images of one fold; ``risk`` (N,) of every case."""
    return [predictions.frame(crops, own, risk[own], split=split, fold=part.fold, seed=seed, n_train=len(part.train), **constant)
            for split, own in (("val", part.val), ("test", part.test))]


def fit_row(network: Network, tuned: Any, seed: int, fold: int, n_train: int) -> dict[str, Any]:
    """What became of one network in one chain and fold."""
    loaded = getattr(tuned.fit.model, "load_report", None)
    return {"model": network.name, "backbone": network.backbone, "weights": network.weights, "tensors": loaded.matched if loaded else 0, "seed": seed,
            "fold": fold, "n_train": n_train, "lr": tuned.recipe.lr, "steps": tuned.recipe.steps, "val_auc": tuned.fit.best["val_auc"],
            "seconds": float(tuned.table["seconds"].sum())}


def masks(field: ImageSet) -> np.ndarray:
    """(N, H, W) the mask of each case's lesion, within its box."""
    if field.masks is None:
        raise MstlError(f"{field.name} has no lesion masks: measure the features in the box (region: box).")
    out = np.zeros(field.masks.shape, np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(np.clip(np.round(corners(field)), 0, None).astype(int)):
        out[number, y0:y1, x0:x1] = field.masks[number, y0:y1, x0:x1]
    return out


def handcrafted(crops: ImageSet, part: Split, features: pd.DataFrame, deep: np.ndarray, *, seed: int):
    """The elastic net on the training part, and the combination of its score and ``deep`` (N,) on validation: a Signature and a Combination."""
    from mstl.models import radiomics

    y = crops.labels == len(crops.classes) - 1
    signature = radiomics.elastic_net(features.iloc[part.train], y[part.train], crops.groups[part.train], seed=seed)
    return signature, radiomics.combine(y[part.val], deep[part.val], signature.risk(features.iloc[part.val]))


# --- tables -------------------------------------------------------------------------------------------------------------


def external(table: pd.DataFrame, development: str) -> pd.DataFrame:
    """The rows that a result on other hospitals rests on: the test images of other centers, and all validation images."""
    return table[(table["split"] != "test") | (table["center"] != development)] if development else table


def by_center(table: pd.DataFrame, pair: Sequence[str], **settings: Any) -> pd.DataFrame:
    """:func:`comparison.subgroups` by center, of the models and the pair's difference; empty where there is one center."""
    rows = comparison.subgroups(table, "center", pair, **settings)
    return rows if len(rows) else pd.DataFrame(columns=["value", "quantity", "kind", "estimate", "low", "high", "n_images", "n_groups", "note"])


def delong(table: pd.DataFrame, reference: str, *, development: str = "", level: float = 0.95) -> pd.DataFrame:
    """Paired DeLong tests of every model against ``reference``, clustered where patients have several images, one row a ``test`` set, chain and fold.

    Test sets are all (external) images together and, with a ``development`` center, each center that has both classes; ``p_holm`` corrects over the
    models of one test set. The images of a center are also among all, so that rows of different test sets are no independent evidence.
    """
    outside, tested = external(table, development), table[table["split"] == "test"]
    sets = {"all external" if development else "all": outside}
    for center in sorted(tested["center"].unique()) if development else []:
        if tested.loc[tested["center"] == center, "y_true"].nunique() == 2:
            sets[f"center {center}" + (", internal" if center == development else "")] = table[(table["split"] != "test") | (table["center"] == center)]
    rows = pd.concat([comparison.one_test_set(part, reference=reference, level=level).assign(test=name) for name, part in sets.items()], ignore_index=True)
    rows["p_holm"] = None
    for _, part in rows.groupby(["test", "seed", "fold"]):
        defined = part["p"].dropna().astype(float)
        if len(defined):
            rows.loc[defined.index, "p_holm"] = ranks.holm(defined)
    return rows


def record(results: Path) -> dict[str, Any]:
    """The record of a finished run of 71 or 72 whose tables are read in place of training."""
    path = results / "run.json"
    if not path.is_file():
        raise MstlError(f"There is no finished run in {results} (run.json is missing): name the folder of a run, or leave results empty to train.")
    return json.loads(path.read_text(encoding="utf-8"))


def read_table(folder: Path, name: str) -> pd.DataFrame:
    path = folder / name
    if not path.is_file():
        raise MstlError(f"There is no table {name} in {folder}: name the folder of a finished run.")
    return pd.read_csv(path, keep_default_na=True)


def beside(places: Iterable[Path], **settings: Any) -> pd.DataFrame:
    """The AUC of every model in runs on other sets: ``data``, ``simulated``, and the columns of :func:`comparison.arms`."""
    rows = []
    for place in places:
        about = record(place)
        table = external(predictions.read(place), about["parameters"]["development"])
        found = comparison.arms(table, **settings)
        rows.append(found[found["metric"] == "AUC"].assign(data=about["data"][0]["name"], simulated=about["data"][0]["simulated"]))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=["data", "simulated", "model", "estimate", "low", "high", "n_images", "n_groups"])


def centers_sentence(centers: pd.DataFrame, pair: Sequence[str], development: str) -> str:
    """What the rows of :func:`by_center` say of the pair, generated from them."""
    if not len(centers):
        return "The cases come from one center, or from centers that are not named, so nothing was tested elsewhere."
    said = []
    for value, part in centers.groupby("value", sort=False):
        own = {row.quantity: row for row in part.itertuples()}
        if pair[0] not in own:
            said.append(f"center {value}: {part['note'].iloc[0]}")
            continue
        text = ", ".join(f"{name} {comparison.interval(own[name].estimate, own[name].low, own[name].high, 3)}" for name in pair)
        where = f"center {value} (development, internal test)" if value == development else f"center {value}"
        said.append(f"{where}: {text}, n = {own[pair[0]].n_images}")
    return "AUC by center: " + "; ".join(said) + "."


def number(value: Any) -> float:
    """A plain float, NaN where there is none."""
    return float("nan") if value is None else float(value)


# --- readers ------------------------------------------------------------------------------------------------------------

READERS = ["reader", "case", "y_true", "reading", "score"]


@dataclass(frozen=True)
class Readings:
    """Crossed readings: ``y`` (n,) of 0 and 1, ``scores`` (2, J, n) without and with help, ``groups`` (n,) patients."""

    y: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    readers: list[str]
    readings: list[str]


def readings(path: Path, *, order: Sequence[str] = ("without AI", "with AI")) -> Readings:
    """A table of reader × case scores: ``reader``, ``case``, ``y_true`` (0 or 1), ``reading`` (one of ``order``), ``score`` (any scale, higher
    meaning more suspicious), and ``group`` (the patient) where cases share one. Every reader must have read every case both times."""
    if not path.is_file():
        raise MstlError(f"There is no table of readings {path}: give a CSV with the columns {', '.join(READERS)}.")
    table = pd.read_csv(path, dtype={"reader": str, "case": str, "reading": str, "group": str})
    absent = [name for name in READERS if name not in table]
    if absent:
        raise MstlError(f"{path} has no column '{absent[0]}': a table of readings has {', '.join(READERS)}.")
    other = sorted(set(table["reading"]) - set(order))
    if other:
        raise MstlError(f"{path} has the reading '{other[0]}': the two are {' and '.join(order)}.")
    twice = table.duplicated(["reader", "case", "reading"])
    if twice.any():
        one = table[twice].iloc[0]
        raise MstlError(f"Reader {one['reader']} has two scores for case {one['case']} {one['reading']} in {path}: keep one.")
    wide = table.pivot(index="case", columns=["reading", "reader"], values="score")
    names = sorted(table["reader"].unique())
    wide = wide.reindex(columns=pd.MultiIndex.from_product([order, names]))
    if wide.isna().any(axis=None):
        reading, reader = wide.columns[wide.isna().any()][0]
        raise MstlError(f"Reader {reader} has no score {reading} for case {wide.index[wide[reading, reader].isna()][0]} in {path}: every reader "
                        "reads every case both times; leave the case out for all.")
    known = table.drop_duplicates("case").set_index("case").loc[wide.index]
    if (table.groupby("case")["y_true"].nunique() > 1).any():
        raise MstlError(f"A case of {path} is positive in one row and negative in another: the truth must not depend on the reader.")
    named = known["group"] if "group" in known else pd.Series(index=wide.index, dtype=object)
    if "group" in table and (table.groupby("case")["group"].nunique() > 1).any():
        raise MstlError(f"A case of {path} is of one patient in one row and of another in the next: give each case one group.")
    groups = named.fillna(pd.Series(wide.index, wide.index))  # who is not named is a patient of one case
    scores = wide.to_numpy(float).T.reshape(2, len(names), len(wide))
    return Readings(known["y_true"].to_numpy(), scores, groups.to_numpy(str), names, list(order))


def readers_table(found: Readings, *, level: float = 0.95) -> tuple[pd.DataFrame, readers.ObuchowskiRockette]:
    """Per reader the AUC of both readings (DeLong) and their paired difference, with the multi-reader multi-case analysis of all."""
    from mstl.metrics import roc

    grouped = found.groups if len(set(found.groups)) < len(found.groups) else None
    rows = []
    for number, name in enumerate(found.readers):
        without, aided = found.scores[:, number]
        test = roc.delong_test(found.y, aided, without, groups=grouped, level=level)
        for reading, score in zip(found.readings, (without, aided), strict=True):
            one = roc.delong(found.y, score, groups=grouped, level=level)
            rows.append({"reader": name, "reading": reading, "estimate": one.auc, "low": one.low_logit, "high": one.high_logit, "n": len(found.y),
                         "difference": test.difference, "difference_low": test.low, "difference_high": test.high, "p": test.p_value})
    whole = readers.obuchowski_rockette(found.y, found.scores[::-1], groups=grouped, modality_names=found.readings[::-1], level=level)
    return pd.DataFrame(rows), whole


def readers_sentence(table: pd.DataFrame, whole: readers.ObuchowskiRockette, simulated: bool) -> str:
    """What the readings show, generated from their analysis."""
    pair, each = whole.pairs.iloc[0], table.drop_duplicates("reader")
    least, most = each.loc[each["difference"].idxmin()], each.loc[each["difference"].idxmax()]
    return (f"{'Simulated readings: ' if simulated else ''}{len(each)} readers, {table['n'].iloc[0]} cases; {pair.a} minus {pair.b}: "
            f"{comparison.interval(pair.difference, pair.low, pair.high, 3, '+')} in AUC, Obuchowski-Rockette p {comparison.p_value(whole.p_value)}; from "
            f"{least['difference']:+.3f} ({least['reader']}) to {most['difference']:+.3f} ({most['reader']}).").replace("-0.", "−0.")
