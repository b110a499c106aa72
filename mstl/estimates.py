"""What a study will cost before it is started: minutes and disk of every run, and hours on one GPU.

A run that was done before with the same parameters costs what its ``run.json`` says; any other is computed from the images
that it trains on and the speed of its backbone on one CPU thread. On a GPU the same images are computed at the speed that timm
published for one card, and augmented, an image at a time as our loop does it, on one CPU core. It is an order of magnitude, not
a promise: no GPU of ours has measured it.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mstl import paths, templates
from mstl.planning import PlannedRun, Study, folder, plan
from mstl.study import RECORD

if TYPE_CHECKING:
    import pandas as pd

#: Training images a second at 96 pixels on one thread of a 2.5 GHz server CPU (channels last, batch 16), and million
#: parameters. Measured with a bare PyTorch loop; a name that is not here counts as its nearest relative by first letters.
SPEED = {
    "test_vit": (460, 0.3), "tf_efficientnet_lite0": (75, 3.4), "efficientnet_b0": (49, 4.0), "tf_efficientnet_b2": (36, 7.7), "vit_tiny_patch16_224": (52, 5.5),
    "vit_small_patch16_224": (16, 21.6), "vit_base_patch16_224": (4, 85.7), "resnet18": (40, 11.2), "resnet50": (16, 23.5),
    "densenet121": (20, 7.0), "inception_v3": (26, 21.8), "convnext_tiny": (12, 27.8),
}
#: Training images a second on one GPU and their side in pixels, as published with timm (results/benchmark-train-amp-nhwc-pt112-
#: cu113-rtx3090.csv): NVIDIA RTX 3090, mixed precision, channels last, PyTorch 1.12, the largest batch that fits. A batch of 16 or
#: 32 leaves part of such a card idle, a newer card is faster; a name that is not here counts as its nearest relative.
GPU = "NVIDIA RTX 3090"
GPU_SPEED = {
    "vit_tiny_patch16_224": (2300, 224), "vit_small_patch16_224": (1058, 224), "vit_base_patch16_224": (393, 224),
    "tf_efficientnet_lite0": (2135, 224), "efficientnet_b0": (1752, 224), "tf_efficientnet_b2": (849, 260), "resnet18": (3482, 224),
    "resnet50": (1218, 224), "densenet121": (914, 224), "inception_v3": (782, 299), "convnext_tiny": (819, 224), "test_vit": (2300, 224),
}
FULL_PRECISION = 0.5  # how fast a card is without mixed precision, against with it: assumed
#: Seconds of one core that augmenting a grey image of 224 pixels takes: measured beside SPEED; nearly in proportion to the side.
AUGMENT = {"none": 0.0, "natural": 0.0005, "microscopy": 0.0004, "ultrasound": 0.0034, "mammogram": 0.0036, "radiograph": 0.0035}
#: Images of the published sets (or of the reduced copies that the project was written with); of prepared sets, own folders and phantoms the number is known exactly.
IMAGES = {"busi": 780, "chest-xray": 5856, "mias-regions": 238, "mias-tissue": 322, "mias-whole": 322, "cells-brightfield": 5400,
          "cifar10": 17000, "bone-fracture": 1900, "hep2-cells": 3600, "kvasir-seg": 1906, "kvasir-segmentation": 1000, "eye-diseases": 1400, "mednist": 9000}
#: Seconds of start-up, imports and figures.
KERNEL = {"00_data": 6.0, "60_comparison": 12.0, "61_operating_points": 14.0}
STARTING = 9.0  # of a stage that is not named above
#: A detector's step over a classifier's of the same backbone, and the seconds that boxes take to be judged.
DETECTOR, JUDGED = 2.0, 15.0
#: A U-Net's step over a classifier's with its encoder, and the seconds that measuring a network's cost takes.
UNET, COSTED = 1.5, 3.0
PROBED = 1.0  # seconds of the measures and the linear probe of a network on one split
DISTURBED = 0.03  # seconds that a case under one draw takes, four networks and two models of features together
READING = 3.0  # how much faster an image is read (validation, test) than trained on
FROZEN = 2.5  # how much faster training is when only the head learns
BETWEEN = 1.5  # seconds that Snakemake and papermill add to a run


def estimate(study: Study, *, jobs: int = 2) -> pd.DataFrame:
    """One row a run: ``run``, ``seconds``, ``gpu_seconds`` (one GPU in the place of the CPU), ``disk_mb``, ``basis`` ("measured" or "estimated"), ``finished``, and ``ends``, the
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
    disk = table["disk_mb"].sum()
    lines.append(f"About {f'{disk / 1000:.0f} GB' if disk >= 10_000 else f'{max(1, round(disk))} MB'} of disk. "
                 + (f"{measured} runs took what they took here before; the others are" if measured else "All is")
                 + " computed for a server CPU.")
    lines.append(f"On one GPU about {_minutes(table['gpu_seconds'].sum())}, one run after another: published speed of an {GPU} in "
                 "large batches, images augmented on one core; not measured here.")
    return "\n".join(lines)


def _row(study: Study, run: PlannedRun) -> dict[str, Any]:
    place = folder(study) / run.path
    finished = all((place / name).is_file() for name in run.outputs)
    seconds, gpu, basis = _seconds(run), _seconds(run, gpu=True), "estimated"
    if (place / RECORD).is_file():
        before = json.loads((place / RECORD).read_text(encoding="utf-8"))
        if all(before["parameters"].get(key) == value for key, value in run.parameters.items()):
            seconds, basis = before["seconds"] + KERNEL["00_data"] / 2, "measured"
    return {"run": run.path, "seconds": round(seconds + BETWEEN, 1), "gpu_seconds": round(gpu + BETWEEN, 1), "disk_mb": round(_disk(run), 1), "basis": basis,
            "finished": finished}


def _seconds(run: PlannedRun, *, gpu: bool = False) -> float:
    p, start = run.parameters, KERNEL.get(run.stage, STARTING)
    if run.stage == "00_data":
        return start + 0.004 * sum(images(name, p["options"].get(name, {}), p["image_size"]) for name in p["data"])
    if run.stage in ("10_source", "20_bridge"):
        name = p["source"] if run.stage == "10_source" else p["data"]
        if not p["recipe"]:
            return start
        n = images(name, p["options"], p["image_size"]) * p.get("images", 1.0) * p.get("lines", 1.0)
        return start + _trained(p["recipe"], p.get("n_train") or n) * len(p.get("seeds", [0])) * _each(p, gpu)
    if run.stage == "30_target":
        n, fits = images(p["data"], p["options"], p["image_size"], p["classes"]), len(p["seeds"]) * _splits(p)
        batch, grid = p["recipe"].get("batch_size", 32), [*p["steps"], *p["extra_steps"]]
        tuned = len(p["lrs"]) * sum(p["steps"]) + sum(p["extra_steps"])  # the first chain; the others train the chosen one
        trained = batch * _splits(p) * (tuned + (len(p["seeds"]) - 1) * sum(grid) / len(grid))
        read = fits * (n * (1 / p["folds"] if p["design"] == "folds" else 0.3) * 2)
        return start + trained * _each(p, gpu) + read * _each(p, gpu, reading=True)
    if run.stage == "36_first_hop":
        n = p.get("n_max", templates.parameters(run.stage)["n_max"].default)
        return start + len(p["bridges"]) * (n * _each(p, gpu, reading=True) + PROBED)
    if run.stage == "35_probe":
        networks = sum(len(p["seeds"]) if path.startswith("20_bridge/") else 1 for path in p["parents"])
        n = images(p["data"], p["options"], p["image_size"], p["classes"])
        return start + networks * (n * _each(p, gpu, reading=True) + PROBED * _splits(p))
    if run.stage == "53_leakage":
        declared = templates.parameters(run.stage)
        p = {name: parameter.default for name, parameter in declared.items()} | p
        n = images(p["data"], p["options"], p["image_size"], p["classes"])
        return start + p["copies"] * n * (_each(p, gpu, reading=True) + _augmented(p)) + 1.5 * p["repeats"]
    if run.stage in CHAPTERS and not p.get("results"):
        return start + CHAPTERS[run.stage]({name: parameter.default for name, parameter in templates.parameters(run.stage).items()} | p, gpu)
    return start + 0.2 * len(p.get("predictions", []))


def _detection(p: Mapping[str, Any], gpu: bool) -> float:
    """Seconds of training both arms and judging their boxes."""
    batch, chains, grid = p["recipe"].get("batch_size", 32), len(p["seeds"]), [*p["steps"], *p["extra_steps"]]
    tuned = 2 * len(p["lrs"]) * sum(p["steps"]) + sum(p["extra_steps"])  # both arms in the first chain
    trained = batch * _splits(p) * (tuned + (chains - 1) * (p["steps"][-1] + max(grid)))
    return JUDGED + (chains * _trained(p["source_recipe"], 0) + DETECTOR * trained) * _each(p, gpu)


def _bone_tumours(p: Mapping[str, Any], gpu: bool) -> float:
    """Seconds of preparing, measuring, training and reading."""
    n, splits = images(p["data"], p["options"], p["field_size"], p["classes"] if not p["label"] else ()), 1 if p["development"] else p["folds"]
    seconds = 0.02 * n
    for network in p["networks"]:
        own = p | {"backbone": network["backbone"]}
        steps = len(p["lrs"]) * sum(p["steps"]) + (sum(p["extra_steps"]) if network.get("weights") == "none" else 0)
        trained = p["recipe"].get("batch_size", 32) * steps * splits * len(p["seeds"])
        seconds += trained * _each(own, gpu) + n * splits * len(p["seeds"]) * _each(own, gpu, reading=True)
    return seconds


def _robustness(p: Mapping[str, Any], gpu: bool) -> float:
    """Seconds of reading every case under every draw, and of the maps."""
    return DISTURBED * (p["n_cases"] or 300) * (1 + p["draws"] * len(p["strengths"]) + p["n_maps"] / 20)


def _backbones(p: Mapping[str, Any], gpu: bool) -> float:
    """Seconds of training classifiers and U-Nets, and of reading what their test parts hold."""
    n, batch, seconds = images(p["data"], p["options"], p["image_size"], p["classes"]), p["recipe"].get("batch_size", 32), 0.0
    for network in p["networks"]:
        own = _each(p | {"backbone": network["backbone"]}, gpu)
        ways = network.get("ways", ["scratch"] if network.get("weights", "none") == "none" else ["scratch", "features", "hybrid", "fine-tuned"])
        chains, grid = len(network.get("seeds", p["seeds"])), len(p["lrs"]) * sum(p["steps"])
        for way in {"scratch", "fine-tuned"} & set(ways):
            steps = grid + (sum(p["extra_steps"]) if way == "scratch" else 0)
            seconds += batch * _splits(p) * (steps + (chains - 1) * max(p["steps"])) * own
        seconds += len(ways) * chains * n * own / READING
    own = UNET * _each(p | {"backbone": p["unet"]}, gpu)
    steps = len(p["unet_ways"]) * (len(p["unet_lrs"]) * sum(p["unet_steps"]) + (len(p["unet_seeds"]) - 1) * max(p["unet_steps"])) + sum(p["unet_extra_steps"])
    return seconds + len(p["masks"]) * batch * steps * own + COSTED * len(p["networks"])


def _two_views(p: Mapping[str, Any], gpu: bool) -> float:
    """Seconds of training and reading; a case is two images, or one where a network sees one view."""
    n, splits = images(p["data"], p["options"], p["image_size"], p["classes"]), p["folds"] if p["design"] == "folds" else 1
    grid, batch = len(p["lrs"]) * sum(p["steps"]), p["recipe"].get("batch_size", 32)
    chains = [len(p["seeds"])] * (len(p["starts"]) + 1) + [len(p["switch_seeds"] or p["seeds"])] * len(p["switches"])  # the single views are one network
    trained = sum(2 * batch * splits * (grid + (k - 1) * sum(p["steps"]) / len(p["steps"])) for k in chains)
    sources = sum("chest" in start for start in p["starts"]) * len(p["seeds"]) * _trained({"steps": 40} | p["chest_recipe"], 0)
    read = sum(chains) * splits * n * (2 / p["folds"] if p["design"] == "folds" else 0.7)
    return (trained + sources) * _each(p, gpu) + read * _each(p, gpu, reading=True)


#: The chapters that train their own networks.
CHAPTERS = {"70_detection": _detection, "71_bone_tumours": _bone_tumours, "72_robustness": _robustness, "73_backbones": _backbones,
            "74_two_views": _two_views}


def _disk(run: PlannedRun) -> float:
    p = run.parameters
    if run.stage == "71_bone_tumours" and not p.get("results"):
        fits = len(p["seeds"]) * (1 if p.get("development", "A") else p["folds"])
        return sum(4 * _backbone(network["backbone"])[1] for network in p["networks"]) * fits * 2 + 1
    if run.stage == "74_two_views" and not p.get("results"):
        p = {name: parameter.default for name, parameter in templates.parameters(run.stage).items()} | p
        fits = (p["folds"] if p["design"] == "folds" else 1) * (
            (len(p["starts"]) + 2) * len(p["seeds"]) + len(p["switches"]) * len(p["switch_seeds"] or p["seeds"]))
        return 4 * _backbone(p["backbone"])[1] * fits + 1
    if run.stage not in ("10_source", "20_bridge", "30_target"):
        return 1
    fits = len(p.get("seeds", [0])) * (_splits(p) if run.stage == "30_target" else 1)
    return 4 * _backbone(p["backbone"])[1] * fits * (1 if run.stage == "10_source" else 2) + 1  # a finished fit and its checkpoint, MB


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


def _each(p: Mapping[str, Any], gpu: bool, *, reading: bool = False) -> float:
    """Seconds that one image takes to train on, or to read. The CPU's speed was measured with all that belongs to a step."""
    if not gpu:
        per_second = _backbone(p["backbone"])[0] * (96 / p["image_size"]) ** 2 * p["threads"] ** 0.7
    else:
        speed, size = GPU_SPEED[_nearest(p["backbone"], GPU_SPEED)]
        precision = 1.0 if p.get("recipe", {}).get("precision", "no") != "no" else FULL_PRECISION
        per_second = speed * (size / p["image_size"]) ** 2 * precision
    per_second *= (_patch(p["backbone"]) / _patch(_nearest(p["backbone"], GPU_SPEED if gpu else SPEED))) ** 2  # as many patches fewer
    if reading:
        return 1 / (READING * per_second)
    frozen = FROZEN if p["recipe"].get("freeze") == "backbone" else 1.0
    return 1 / (per_second * frozen) + (_augmented(p["recipe"] | {"image_size": p["image_size"]}) if gpu else 0.0)


def _augmented(p: Mapping[str, Any]) -> float:
    return AUGMENT[p.get("augmentation", "none")] * p["image_size"] / 224


def _backbone(name: str) -> tuple[float, float]:
    return SPEED[_nearest(name, SPEED)]


def _patch(name: str) -> int:
    """Side of the patches of a vision transformer by its name; 16 where it has none."""
    found = re.search(r"_patch(\d+)", name)
    return int(found.group(1)) if found else 16


def _nearest(name: str, known: Iterable[str]) -> str:
    """The name itself, else the one that shares most letters with its beginning."""
    return name if name in known else max(known, key=lambda other: len(_common(name, other)))


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
