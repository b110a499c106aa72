"""What a study will cost before it is started: minutes and disk of every run.

A run that was done before with the same parameters costs what its ``run.json`` says; any other is computed from the images
that it trains on and the speed of its backbone on one CPU thread. It is an order of magnitude, not a promise.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mstl import paths
from mstl.planning import PlannedRun, Study, folder, plan
from mstl.study import RECORD

if TYPE_CHECKING:
    import pandas as pd

#: Training images a second at 96 pixels on one thread of a 2.5 GHz server CPU (channels last, batch 16), and million
#: parameters. Measured with a bare PyTorch loop; a name that is not here counts as its nearest relative by first letters.
SPEED = {
    "test_vit": (460, 0.3), "tf_efficientnet_lite0": (75, 3.4), "efficientnet_b0": (49, 4.0), "vit_tiny_patch16_224": (52, 5.5),
    "vit_small_patch16_224": (16, 21.6), "vit_base_patch16_224": (4, 85.7), "resnet18": (40, 11.2), "resnet50": (16, 23.5),
    "densenet121": (20, 7.0), "inception_v3": (26, 21.8), "convnext_tiny": (12, 27.8),
}
#: Images of the published sets; of prepared sets, own folders and phantoms the number is known exactly.
IMAGES = {"busi": 780, "chest-xray": 5856, "mias-regions": 325, "mias-tissue": 322, "mias-whole": 322, "cells-brightfield": 5400,
          "cifar10": 17000, "bone-fracture": 1900}
#: Seconds of start-up, imports and figures.
KERNEL = {"00_data": 6.0, "10_source": 9.0, "20_bridge": 9.0, "30_target": 9.0, "60_comparison": 8.0}
READING = 3.0  # how much faster an image is read (validation, test) than trained on
FROZEN = 2.5  # how much faster training is when only the head learns
BETWEEN = 1.5  # seconds that Snakemake and papermill add to a run


def estimate(study: Study, *, jobs: int = 2) -> pd.DataFrame:
    """One row a run: ``run``, ``seconds``, ``disk_mb``, ``basis`` ("measured" or "estimated"), ``finished``, and ``ends``, the
    second at which it would end when ``jobs`` runs go at a time and those that are finished are not done again."""
    import pandas as pd

    runs = plan(study)
    rows = [_row(study, run) for run in runs]
    for row, ends in zip(rows, _schedule(runs, rows, jobs), strict=True):
        row["ends"] = ends
    return pd.DataFrame(rows)


def headline(table: pd.DataFrame, study: Study, *, jobs: int = 2) -> str:
    """One sentence: how many runs, and how long those that are not finished will take."""
    todo = table[~table["finished"]]
    time = f", about {_minutes(todo['ends'].max())} with {jobs} job{'s' * (jobs != 1)}" if len(todo) else ""
    return f"Study {study.name}: {len(table)} runs, {len(table) - len(todo)} of them finished{time}."


def describe(table: pd.DataFrame, study: Study, *, jobs: int = 2) -> str:
    """The estimate in words, a line a stage and the sum."""
    lines = [headline(table, study, jobs=jobs)]
    for stage, part in table.groupby(table["run"].str.split("/").str[0]):
        rest = part[~part["finished"]]
        lines.append(f"  {stage:<14} {len(part):>3} runs  {_minutes(part['seconds'].sum()):>9} of one job"
                     + (f", {len(part) - len(rest)} finished" if len(rest) < len(part) else ""))
    measured = int((table["basis"] == "measured").sum())
    lines.append(f"About {max(1, round(table['disk_mb'].sum()))} MB of disk. "
                 + (f"{measured} runs took what they took here before; the others are" if measured else "All is")
                 + " computed for a server CPU; a GPU is faster.")
    return "\n".join(lines)


def _row(study: Study, run: PlannedRun) -> dict[str, Any]:
    place = folder(study) / run.path
    finished = all((place / name).is_file() for name in run.outputs)
    seconds, basis = _seconds(run), "estimated"
    if (place / RECORD).is_file():
        before = json.loads((place / RECORD).read_text(encoding="utf-8"))
        if all(before["parameters"].get(key) == value for key, value in run.parameters.items()):
            seconds, basis = before["seconds"] + KERNEL["00_data"] / 2, "measured"
    return {"run": run.path, "seconds": round(seconds + BETWEEN, 1), "disk_mb": round(_disk(run), 1), "basis": basis,
            "finished": finished}


def _seconds(run: PlannedRun) -> float:
    p, start = run.parameters, KERNEL.get(run.stage, 9.0)
    if run.stage == "00_data":
        return start + 0.004 * sum(images(name, p["options"].get(name, {}), p["image_size"]) for name in p["data"])
    if run.stage in ("10_source", "20_bridge"):
        name = p["source"] if run.stage == "10_source" else p["data"]
        if not p["recipe"]:
            return start
        return start + _trained(p["recipe"], images(name, p["options"], p["image_size"])) * len(p.get("seeds", [0])) / _speed(p)
    if run.stage == "30_target":
        n, fits = images(p["data"], p["options"], p["image_size"], p["classes"]), len(p["seeds"]) * _splits(p)
        batch, grid = p["recipe"].get("batch_size", 32), [*p["steps"], *p["extra_steps"]]
        tuned = len(p["lrs"]) * sum(p["steps"]) + sum(p["extra_steps"])  # the first chain; the others train the chosen one
        trained = batch * _splits(p) * (tuned + (len(p["seeds"]) - 1) * sum(grid) / len(grid))
        read = fits * (n * (1 / p["folds"] if p["design"] == "folds" else 0.3) * 2)
        return start + trained / _speed(p) + read / (READING * _speed(p))
    return start + 0.2 * len(p.get("predictions", []))


def _disk(run: PlannedRun) -> float:
    p = run.parameters
    weights = 4 * _backbone(p["backbone"])[1] if "backbone" in p else 0  # MB
    fits = len(p.get("seeds", [0])) * (_splits(p) if run.stage == "30_target" else 1)
    return weights * fits * (1 if run.stage == "10_source" else 2) + 1  # a finished fit and its checkpoint


def images(name: str, options: Mapping[str, Any], size: int, classes: Sequence[str] = ()) -> int:
    """How many images a data set has: counted where it is prepared or one's own, else from the catalog."""
    from mstl.datasets import changed_options, prepared_folder
    from mstl.datasets.catalog import catalog

    card = catalog().get(name)
    if card is None:
        manifest = paths.home(name) / "manifest.csv"
        return max(1, len(manifest.read_text(encoding="utf-8").splitlines()) - 1) if manifest.is_file() else 1000
    table = prepared_folder(paths.home("data"), name, size, changed_options(card.options, {**card.options, **options})) / "table.csv"
    if table.is_file():
        import pandas as pd

        rows = pd.read_csv(table, usecols=["label"])["label"]
        kept = [card.classes.index(name) for name in classes if name in card.classes]
        return int(rows.isin(kept).sum()) if kept else len(rows)
    return int(options.get("n", card.options.get("n", IMAGES.get(name, 5000))))


def _trained(recipe: Mapping[str, Any], n: int) -> float:
    """Images that a fit trains on."""
    return recipe["steps"] * recipe.get("batch_size", 32) if recipe.get("steps") else (recipe.get("epochs") or 4) * n


def _splits(p: Mapping[str, Any]) -> int:
    return p["folds"] if p["design"] == "folds" else p["draws"]


def _speed(p: Mapping[str, Any]) -> float:
    frozen = FROZEN if p["recipe"].get("freeze") == "backbone" else 1.0
    return _backbone(p["backbone"])[0] * (96 / p["image_size"]) ** 2 * frozen * p["threads"] ** 0.7


def _backbone(name: str) -> tuple[float, float]:
    shared = {known: len(_common(name, known)) for known in SPEED}
    return SPEED[max(shared, key=shared.get)] if name not in SPEED else SPEED[name]


def _common(a: str, b: str) -> str:
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]


def _schedule(runs: Sequence[PlannedRun], rows: Sequence[Mapping[str, Any]], jobs: int) -> list[float]:
    """When each run ends if the first one that can start always does."""
    ends: dict[str, float] = {}
    free = [0.0] * jobs
    for run, row in zip(runs, rows, strict=True):
        ready = max((ends[need] for need in run.needs), default=0.0)
        if row["finished"]:
            ends[run.path] = ready
            continue
        begin = max(heapq.heappop(free), ready)
        ends[run.path] = begin + row["seconds"]
        heapq.heappush(free, ends[run.path])
    return [ends[run.path] for run in runs]


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
