"""Sources of the weights compared: what each pre-training gives to the same backbone on the same images of a target.

In these tables a *model* is the source of the arm ctl (``imagenet``, ``cifar10``, a weights file by its name), or ``scratch``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from mstl import ablation, comparison, predictions
from mstl.errors import MstlError

_TRAINED_ELSEWHERE = (".pt", ".pth", ".safetensors", ".bin")


def name(source: str) -> str:
    """How a source is called: the catalog's name as it is; a weights file by its own name, with RadImageNet said where its path does."""
    if not source.endswith(_TRAINED_ELSEWHERE):
        return source
    path = Path(source)
    return "radimagenet" if "radimagenet" in source.lower() else path.stem.lower()


def is_radimagenet(models: Iterable[str]) -> bool:
    """Whether one of the compared sources is RadImageNet itself and not a stand-in."""
    return any("radimagenet" in model.lower() for model in models)


def read(places: Iterable[Path], columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The predictions of the arms ctl and scratch of runs or files, one checked table whose ``model`` is the source or "scratch".

    Scratch starts from no source: of several runs of it on one target with one backbone the first counts. Raises MstlError where two
    runs have the same source, target, variant and backbone, and where no run has the arm ctl.
    """
    kept: dict[tuple[str, ...], pd.DataFrame] = {}
    for place in places:
        table = predictions.read(place, columns)
        table = table[table["arm"].isin(["ctl", "scratch"])]
        model = table["source"].map(name).where(table["arm"] == "ctl", "scratch")
        for key, part in table.assign(model=model).groupby(["target", "variant", "backbone", "model"], sort=False):
            if key not in kept:
                kept[key] = part
            elif key[-1] != "scratch":
                raise MstlError(f"{place}: the source {key[-1]} of {key[2]} on {key[0] or 'the target'} was read before: name one run a source.")
    if not any(key[-1] != "scratch" for key in kept):
        raise MstlError("None of the tables has predictions of the arm ctl, so there is no source to compare: name runs of the arm ctl.")
    return predictions.join(list(kept.values()))


def budgets(places: Iterable[Path]) -> pd.DataFrame:
    """What each source was trained on, from the records of the runs: one row a backbone and source, with ``images`` (different ones
    that were shown), ``steps``, ``batch``, ``seen`` (images shown in all) and ``held_out`` (accuracy). Empty fields: trained elsewhere, or no record.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for place in places:
        record = ablation.said(Path(place))
        if record.get("parameters", {}).get("arm") != "ctl" or not record.get("lineage"):
            continue
        p, first = record["parameters"], record["lineage"][0]
        parent = ablation.said(Path(place).parent.parent / (p.get("parent") or "10_source/none"))
        recipe = parent.get("parameters", {}).get("recipe", {})
        steps, batch, images = _steps(recipe, first.get("images")), recipe.get("batch_size", 32) if recipe else None, first.get("images")
        rows.setdefault((p["backbone"], name(p["source"])), {
            "backbone": p["backbone"], "source": name(p["source"]), "images": min(images, steps * batch) if steps else images, "steps": steps, "batch": batch,
            "seen": steps * batch if steps else None, "held_out": first.get("score")})
    return pd.DataFrame(list(rows.values()), columns=["backbone", "source", "images", "steps", "batch", "seen", "held_out"])


def equal_budget(table: pd.DataFrame, pair: Sequence[str]) -> str:
    """One sentence: whether the two sources were trained on as many images in as many steps, by the records of :func:`budgets`."""
    own = table[table["source"].isin(list(pair))]
    known = own.dropna(subset=["images", "steps"])
    for _, part in own.groupby("backbone"):
        if len(part) < 2 or len(known[known.index.isin(part.index)]) < 2:
            return (f"Whether {pair[0]} and {pair[1]} had equal images and steps is not recorded: at least one was trained elsewhere, so what differs "
                    "is the whole pre-training and not its images alone.")
        if part["images"].nunique() > 1 or part["seen"].nunique() > 1 or part["steps"].nunique() > 1:
            return f"{pair[0]} and {pair[1]} did not have equal budgets ({_listed(part)}): a difference may come from that alone."
    if own.empty:
        return f"No record of {pair[0]} or {pair[1]} lies beside the tables, so their budgets are not known."
    return f"{pair[0]} and {pair[1]} had equal images and steps ({_listed(own)})."


def differences(table: pd.DataFrame, pair: Sequence[str] = (), *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Within-fold differences in AUC between every two sources of a target, variant and backbone: one row a block and pair (a, b), a − b.

    ``pair`` (a, b) is asked for first (``primary``); all others are exploratory, a source before scratch. On the chains and
    images that both have. Columns: those of :func:`mstl.ablation.effects`, and ``primary``.
    """
    found = list(dict.fromkeys(table["model"]))
    models = [m for m in found if m != "scratch"] + [m for m in found if m == "scratch"]
    rows = ablation.effects(table, _ordered(models, tuple(pair)), level=level, n_resamples=n_resamples, seed=seed)
    if rows.empty:
        raise MstlError("Every target has one source, so there is nothing to compare: name runs of two sources of one backbone and target.")
    rows.insert(5, "primary", [{a, b} == set(pair) for a, b in zip(rows["a"], rows["b"], strict=True)])
    return rows.sort_values("primary", ascending=False, kind="stable", ignore_index=True)


def answer(rows: pd.DataFrame, titles: Mapping[str, str], *, margin: float = 0.02, simulated: bool = False) -> str:
    """The differences of the pair asked for in words of a fixed form, generated from their numbers, and what was not tested."""
    own = rows[rows["primary"]]
    parts = []
    for row, difference in zip(own.itertuples(), comparison.intervals(own, sign="+"), strict=True):
        where = (titles.get(row.target, row.target) or "all images") + (f", {row.variant}" if row.variant else "")
        where += f", {row.backbone}" if own["backbone"].nunique() > 1 else ""
        parts.append(f"{where}: {difference}, {ablation.verdict(row, margin)}")
    images = "simulated images (which check the machinery, not the claim)" if simulated else "real images"
    first = f"{own['a'].iloc[0]} − {own['b'].iloc[0]}, " if len(own) else ""
    said = f"Difference in AUC, {first}on {images} — " + ("; ".join(parts) or "the pair was not run on one target") + "."
    return said + ("" if is_radimagenet([*rows["a"], *rows["b"]]) else " RadImageNet itself was not tested.")


# ------------------------------------------------------------------------------------------------------------- pieces

def _steps(recipe: Mapping[str, Any], images: int | None) -> int | None:
    """Optimiser steps of a source recipe; its length in epochs needs the number of images."""
    if not recipe or not images:
        return None
    return recipe.get("steps") or (recipe.get("epochs") or 10) * math.ceil(images / recipe.get("batch_size", 32))


def _listed(part: pd.DataFrame) -> str:
    return "; ".join(f"{r.source} {int(r.images)} images, {int(r.steps)} steps of {int(r.batch)}" for r in part.itertuples())


def _ordered(models: Sequence[str], pair: tuple[str, ...]) -> list[tuple[str, str]]:
    every = list(combinations(models, 2))
    mine = [pair] if set(pair) <= set(models) and len(set(pair)) == 2 else []
    return mine + [two for two in every if set(two) != set(pair)]
