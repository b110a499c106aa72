"""From a study to its runs, in the order in which they can be executed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mstl import paths, templates
from mstl.errors import MstlError
from mstl.study import RECORD, slug
from mstl.studyfile import TUNED, Bridge, Lineage, Study, Target, is_weights, read_study, studies

__all__ = ["PlannedRun", "Study", "finished", "folder", "plan", "read_study", "studies", "verify"]


@dataclass(frozen=True)
class PlannedRun:
    """One execution of a stage notebook. ``needs``: the runs before it, as ``stage/slug``; ``outputs``: files that it
    leaves in its folder; ``files``: what it reads besides (a reference table, an own manifest)."""

    stage: str
    slug: str
    notebook: Path
    parameters: dict[str, Any]
    needs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"{self.stage}/{self.slug}"


def plan(study: Study) -> list[PlannedRun]:
    """The runs of a study in an order in which they can be executed, each after the runs that it needs."""
    common = {"study": study.name, "threads": study.threads, "image_size": study.image_size}
    runs = [_run("00_data", common | _shown(study), outputs=["metrics.json"])]
    varied = [(name, variant, target.varied(variant)) for name, target in study.targets.items()
              for variant in ("", *target.variants)]
    used = {arm for _, _, target in varied for arm in target.arms or study.arms}
    targets: list[PlannedRun] = []
    for lineage in study.lineages:
        if used & {"ctl", "mstl"}:
            runs.append(source := _run("10_source", common | _source(study, lineage)))
        for bridge in study.bridges if "mstl" in used else []:
            runs.append(_run("20_bridge", common | _bridge(study, lineage, bridge, source.path), needs=[source.path]))
    for lineage in study.lineages:
        for name, variant, target in varied:
            for arm in target.arms or study.arms:
                for bridge in study.bridges if arm == "mstl" else [None]:
                    parameters = common | _target(study, lineage, name, variant, target, arm, bridge)
                    needs = [parameters["parent"]] if parameters["parent"] else _same_scratch(targets, parameters)
                    targets.append(_run("30_target", parameters, needs=needs, outputs=["predictions.csv", "metrics.json"]))
    runs += targets
    runs.append(_run("60_comparison", _comparison(study) | {"predictions": [run.path for run in targets]},
                     needs=[run.path for run in targets], outputs=["metrics.json"]))
    committed = sorted(paths.share("data", "reference").glob("30_target/*/predictions.csv"))
    if study.show_reference and committed:
        runs.append(_reference(study, committed))
    twice = {run.path for run in runs if [other.path for other in runs].count(run.path) > 1}
    if twice:
        raise MstlError(f"Study {study.name} asks twice for the run {sorted(twice)[0]}: give its lineages, bridges, targets and "
                        "variants different names.")
    return runs


def verify(runs: Iterable[PlannedRun]) -> None:
    """Check the parameters of every run against its notebook, before any is started."""
    for run in runs:
        templates.check(run.stage, run.parameters)


def folder(study: Study) -> Path:
    """Where the runs of a study lie."""
    return paths.home("runs", study.name)


def finished(study: Study, run: PlannedRun) -> bool:
    return all((folder(study) / run.path / name).is_file() for name in run.outputs)


def _run(stage: str, parameters: dict[str, Any], *, name: str = "", needs: list[str] = (), outputs: list[str] = (),
         files: list[Path] = ()) -> PlannedRun:
    name = name or slug(stage, parameters)
    parameters = parameters | {"out": f"runs/{parameters['study']}/{stage}/{name}"}
    return PlannedRun(stage, name, paths.share("notebooks", f"{stage}.ipynb"), parameters, list(needs),
                      [RECORD, "notebook.ipynb", *outputs], [*files, *_own_files(parameters)])


def _shown(study: Study) -> dict[str, Any]:
    sets = {entry.data: entry.options for entry in study.data}
    if not sets:
        used = [*((line.source, line.source_options) for line in study.lineages if line.source not in ("imagenet", "none")),
                *((entry.data, entry.options) for entry in [*study.bridges, *study.targets.values()])]
        for name, options in used:
            if not is_weights(name):
                sets.setdefault(name, options)
    return {"title": study.title, "data": list(sets), "options": {name: options for name, options in sets.items() if options}}


def _source(study: Study, lineage: Lineage) -> dict[str, Any]:
    trained = lineage.source not in ("imagenet", "none") and not is_weights(lineage.source)
    return {"lineage": lineage.name, "backbone": lineage.backbone, "source": lineage.source, "options": lineage.source_options,
            "recipe": lineage.source_recipe.over(study.recipe).parameters() if trained else {}, "seed": study.seeds[0]}


def _bridge(study: Study, lineage: Lineage, bridge: Bridge, parent: str) -> dict[str, Any]:
    return {"lineage": lineage.name, "backbone": lineage.backbone, "source": lineage.source, "parent": parent, "bridge": bridge.name,
            "data": bridge.data, "options": bridge.options, "recipe": bridge.recipe.over(study.recipe).parameters(), "seeds": study.seeds}


def _target(
    study: Study, lineage: Lineage, name: str, variant: str, target: Target, arm: str, bridge: Bridge | None,
) -> dict[str, Any]:
    recipe = target.recipe.over(study.recipe).model_dump(exclude_none=True, exclude=TUNED)
    tuning = target.tuning or study.tuning
    if target.augmentation is not None:
        recipe |= {"augmentation": target.augmentation}
    parent = {"scratch": "", "ctl": f"10_source/{slug('10_source', {'lineage': lineage.name})}"}.get(arm)
    if bridge is not None:
        parent = f"20_bridge/{slug('20_bridge', {'lineage': lineage.name, 'bridge': bridge.name})}"
    keys = ("data", "classes", "options", "design", "folds", "draws", "n_train", "n_val", "test", "group_by_cluster", "title")
    return {key: getattr(target, key) for key in keys} | {
        "target": name, "variant": variant, "arm": arm, "lineage": lineage.name, "backbone": lineage.backbone,
        "source": lineage.source if arm != "scratch" else "", "bridge": bridge.name if bridge else "", "parent": parent,
        "seeds": target.seeds or (study.scratch_seeds if arm == "scratch" else []) or study.seeds, "recipe": recipe, "lrs": tuning.lrs, "steps": tuning.steps,
        "extra_steps": tuning.scratch_extra_steps if arm == "scratch" else [],
    }


def _same_scratch(before: list[PlannedRun], parameters: dict[str, Any]) -> list[str]:
    """An earlier scratch run that trains the very same models (another lineage of this backbone): its fits are reused."""
    names = ("lineage", "out")
    same = {key: value for key, value in parameters.items() if key not in names}
    return [run.path for run in before if {k: v for k, v in run.parameters.items() if k not in names} == same][:1]


def _comparison(study: Study) -> dict[str, Any]:
    return study.comparison.model_dump() | {
        "study": study.name, "title": study.title, "titles": {name: each.title for name, each in study.targets.items() if each.title},
        "simulated": any(_simulated(target.data) for target in study.targets.values())}


def _reference(study: Study, committed: list[Path]) -> PlannedRun:
    """The comparison of the reference study, recomputed from its committed predictions with its own declaration.

    The tables come in the order of the study's file, so that its first target is also the first in every table and figure.
    """
    reference = read_study("reference" if "reference" in studies() else study.name)
    order = {name: place for place, name in enumerate(reference.targets)}
    tables = sorted(committed, key=lambda table: (order.get(table.parent.name.split("-")[0], len(order)), table.parent.name))
    parameters = _comparison(reference) | {"study": study.name, "predictions": [os.path.relpath(table, paths.home()) for table in tables]}
    return _run("60_comparison", parameters, name="reference", outputs=["metrics.json"], files=tables)


def _simulated(name: str) -> bool:
    from mstl.datasets.catalog import catalog

    return name in catalog() and catalog()[name].simulated


def _own_files(parameters: Mapping[str, Any]) -> list[Path]:
    """Files of the user's own that decide a run: weights, manifests, arrays."""
    data = parameters.get("data", [])
    names = [parameters.get("source", ""), *([data] if isinstance(data, str) else data)]
    places = [paths.home(name) for name in names if "/" in name]
    return [place / "manifest.csv" if (place / "manifest.csv").is_file() else place for place in places]
