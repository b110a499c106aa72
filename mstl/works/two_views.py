"""The chapter on two views: one network of reference, and what changes when one thing about it changes.

The network of reference (:data:`REFERENCE`) sees both views through one encoder, with the second view mirrored, and joins their features
end to end. Every other network differs from it in one thing: where its weights start, what it sees, or how the views are joined.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mstl import predictions
from mstl.errors import MstlError

if TYPE_CHECKING:
    from torch import nn

    from mstl.datasets.imageset import ImageSet

#: What every other network is compared with.
REFERENCE = "two views"
LATE = "late fusion"
#: Where weights may start: trained on chest X-rays from random weights (as the work did) or from ImageNet's, ImageNet, nowhere.
STARTS = ("chest", "imagenet-chest", "imagenet", "scratch")
#: One change to the way in which the views are joined, each with the arguments of ``models.two_view.create``.
SWITCHES: dict[str, dict[str, Any]] = {
    "add": {"aggregation": "add"},
    "max": {"aggregation": "max"},
    "attention": {"aggregation": "attention"},
    "separate encoders": {"shared": False},
    "not mirrored": {"mirrored": False},
}
#: The published figures of Guo et al. (2023), on their test images.
PUBLISHED = {"accuracy": 0.7710, "precision": 0.8311, "recall": 0.6827, "f1": 0.7475}


@dataclass(frozen=True)
class Network:
    """One network of the chapter. ``view`` is empty for both views; ``joined`` are arguments of ``models.two_view.create``."""

    name: str
    start: str
    view: str
    joined: Mapping[str, Any]
    kind: str  # reference | start | view | switch


def networks(starts: Sequence[str], views: Sequence[str], switches: Sequence[str]) -> list[Network]:
    """The network of reference, which starts from the first of ``starts``, then every other one: the other starts, the single views
    ``views``, and the ``switches``. Raises MstlError for a start or switch that does not exist or comes twice."""
    for what, given, known in (("start", starts, STARTS), ("switch", switches, tuple(SWITCHES))):
        for name in given:
            if name not in known:
                raise MstlError(f"There is no {what} '{name}': use {', '.join(known)}.")
        if len(set(given)) < len(given):
            raise MstlError(f"A {what} is named twice in {', '.join(given)}: name each once.")
    if not starts:
        raise MstlError("No start was named, so there is no network of reference: name at least one, its own first.")
    first = starts[0]
    return [Network(REFERENCE, first, "", {}, "reference"),
            *(Network(f"from {start}", start, "", {}, "start") for start in starts[1:]),
            *(Network(f"{view} alone", first, view, {}, "view") for view in views),
            *(Network(name, first, "", SWITCHES[name], "switch") for name in switches)]


def build(network: Network, backbone: str, sets: Mapping[str, ImageSet], *, weights: str | Path | None, seed: int) -> nn.Module:
    """The network at its start. ``sets``: the images of each view by its name, and of both under ""."""
    from mstl.models import backbones, two_view

    images = sets[network.view]
    if network.view:
        return backbones.create(backbone, images.classes, image_size=images.size, channels=1, weights=weights, seed=seed)
    return two_view.create(backbone, images.classes, image_size=images.size, weights=weights, seed=seed, **network.joined)


def late_fusion(table: pd.DataFrame, views: Sequence[str]) -> pd.DataFrame:
    """Rows of a model that averages the probabilities of the single-view models of ``views``: same chains, folds and cases.

    Raises MstlError where the single-view models do not cover the same cases.
    """
    names = [f"{view} alone" for view in views]
    keys = ["seed", "fold", "split", "image_id"]
    parts = [table[table["model"] == name].set_index(keys).sort_index() for name in names]
    columns = [name for name in table if name.startswith("p_")]
    for name, part in zip(names, parts, strict=True):
        if part.empty or not part.index.equals(parts[0].index):
            raise MstlError(f"'{name}' and '{names[0]}' do not cover the same cases, so their probabilities cannot be averaged: predict both on every case.")
    fused = parts[0].copy()
    fused[columns] = sum(part[columns] for part in parts) / len(parts)
    return fused.assign(model=LATE).reset_index()[list(table.columns)]


def by_site(table: pd.DataFrame, models: Sequence[str], **settings: Any) -> pd.DataFrame:
    """AUC of each model for the positive cases of one ``site`` against all negative cases: rows as of ``comparison.arms``, with ``site``.

    ``table`` has a column ``site``; what it says of negative cases does not count. A site that some fold has no case of is left out.
    ``settings`` go to ``comparison.arms``.
    """
    from mstl import comparison

    test = table[(table["split"] == "test") & table["model"].isin(models)]
    positive = test["y_true"] == predictions.classes(table)[-1]
    cells = len(test[["seed", "fold"]].drop_duplicates())
    parts = []
    for site in sorted(set(test.loc[positive, "site"]) - {""}):
        there = test[positive & (test["site"] == site)]
        if len(there[["seed", "fold"]].drop_duplicates()) < cells:
            continue
        rows = comparison.arms(pd.concat([test[~positive], there]), **settings)
        found = there["image_id"].nunique()
        parts.append(rows[rows["metric"] == "AUC"].assign(site=site, n_positive=found))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["site", "model", "estimate", "low", "high", "n_positive"])


def implied() -> dict[str, float]:
    """What the four published figures imply if they belong to one set of test cases: the share of positives, the specificity, and the
    F1 of their own precision and recall. From accuracy = π·r + 1 − π − π·r·(1/p − 1), with precision p, recall r, share π."""
    p, r = PUBLISHED["precision"], PUBLISHED["recall"]
    share = (1 - PUBLISHED["accuracy"]) / (1 - 2 * r + r / p)
    return {"prevalence": share, "specificity": 1 - share * r * (1 / p - 1) / (1 - share), "f1": 2 * p * r / (p + r)}


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Predictions (with late fusion and ``site``), tuning table and record of a finished run of this chapter."""
    files = {name: folder / name for name in ("predictions.csv", "tuning.csv", "run.json")}
    for name, path in files.items():
        if not path.is_file():
            raise MstlError(f"There is no {name} in {folder}: name the folder of a finished run of 74_two_views as results, or leave results empty to train.")
    table = predictions.read(files["predictions.csv"])
    if "site" not in table or REFERENCE not in set(table["model"]):
        raise MstlError(f"{files['predictions.csv']} has no column 'site' or no model '{REFERENCE}': it is not a table that 74_two_views wrote.")
    record = json.loads(files["run.json"].read_text(encoding="utf-8"))
    if not record.get("data"):
        raise MstlError(f"{files['run.json']} names no images, so {folder} was itself read from another run: name that one as results.")
    table["site"] = table["site"].fillna("").astype(str)
    return table, pd.read_csv(files["tuning.csv"]), record


def numbers(arms: pd.DataFrame, differences: pd.DataFrame) -> dict[str, float]:
    """Figures that prose can call: ``<metric>_<model>`` with ``_low`` and ``_high``, and ``diff_<model>`` against the reference; what does
    not exist is not a number."""
    def key(model: str) -> str:
        return model.replace(" ", "_").replace("-", "_")

    out: dict[str, float] = {}
    for row in arms.itertuples():
        stem = f"{row.metric.lower().replace(' ', '_')}_{key(row.model)}"
        out |= {stem: row.estimate, f"{stem}_low": row.low, f"{stem}_high": row.high}
    for row in differences[differences["primary"]].itertuples():
        stem = f"diff_{key(row.model)}"
        out |= {stem: row.estimate, f"{stem}_low": row.low, f"{stem}_high": row.high, f"detectable_{key(row.model)}": row.detectable}
    return {name: float("nan") if value is None else float(value) for name, value in out.items()}
