"""From a study to its runs, in the order in which they can be executed."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mstl import paths, templates
from mstl.errors import MstlError
from mstl.study import RECORD, slug
from mstl.studyfile import TUNED, Analysis, Bridge, Lineage, Study, Target, is_weights, read_study, studies

__all__ = ["PlannedRun", "Study", "finished", "folder", "plan", "read_study", "studies", "verify"]

#: What a task is, whoever learns it.
_TASK = ("data", "classes", "options", "design", "folds", "draws", "n_train", "n_val", "test", "group_by_cluster", "title")


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
        own = used if lineage.arms is None else set(lineage.arms)
        if own & {"ctl", "mstl"}:
            runs.append(source := _run("10_source", common | _source(study, lineage)))
        for bridge in _bridges(study, lineage) if "mstl" in own else []:
            runs.append(_run("20_bridge", common | _bridge(study, lineage, bridge, source.path), needs=[source.path]))
    for lineage in study.lineages:
        for name, variant, target in varied:
            if lineage.targets is not None and name not in lineage.targets:
                continue
            for arm in target.arms or study.arms if lineage.arms is None else lineage.arms if not variant else []:
                for bridge in _bridges(study, lineage, name) if arm == "mstl" else [None]:
                    parameters = common | _target(study, lineage, name, variant, target, arm, bridge)
                    needs = [parameters["parent"]] if parameters["parent"] else _same_scratch(targets, parameters)
                    targets.append(_run("30_target", parameters, needs=needs, outputs=["predictions.csv", "metrics.json"]))
    runs += targets
    for lineage in [lineage for lineage in study.lineages if lineage.arms is None or "mstl" in lineage.arms] if study.probe.targets else []:
        before = [run for run in runs if run.stage in ("10_source", "20_bridge") and run.parameters["lineage"] == lineage.name]
        first = common | _first_hop(study, lineage, before[0].path)
        runs.append(_run("36_first_hop", first, name=lineage.name, needs=[first["parent"]], outputs=["first_hop.csv", "metrics.json"]))
        adapted = study.probe.adapted.get(lineage.name)
        for name in study.probe.targets:
            given = common | _probe(study, lineage, name, before)
            runs.append(_run("35_probe", given, needs=given["parents"], outputs=["predictions.csv", "transferability.csv", "metrics.json"]))
            if adapted is not None:
                few = [run for run in before if run.stage == "10_source" or run.parameters["bridge"] in adapted]
                given = common | _probe(study, lineage, name, few) | {"sizes": [], "statistics": "target"}
                runs.append(_run("35_probe", given, name=f"{slug('35_probe', given)}-adapted", needs=given["parents"],
                                 outputs=["predictions.csv", "metrics.json"]))
    main = [run.path for run in targets if _compared(study, run, targets)]
    runs.append(_run("60_comparison", _comparison(study) | {"predictions": main}, needs=main, outputs=["metrics.json"]))
    for entry in study.analyses:  # one may read those before it
        runs.append(_analysis(study, entry, runs))
    if study.show_reference:
        runs += _reference(study)
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
            "recipe": lineage.source_recipe.over(study.recipe).parameters() if trained else {}, "n_train": lineage.source_n,
            "seed": study.seeds[0]}


def _bridges(study: Study, lineage: Lineage, target: str = "") -> list[Bridge]:
    """The bridges that a lineage has, and that a target, where one is named, is fine-tuned from."""
    return [bridge for bridge in study.bridges if (bridge.lineages is None or lineage.name in bridge.lineages)
            and (lineage.bridges is None or bridge.name in lineage.bridges)
            and (not target or bridge.targets is None or target in bridge.targets)]


def _bridge(study: Study, lineage: Lineage, bridge: Bridge, parent: str) -> dict[str, Any]:
    varied = {key: getattr(bridge, key) for key in ("images", "lines", "n_train", "merge", "merge_to", "control", "grey", "draw")}
    return {"lineage": lineage.name, "backbone": lineage.backbone, "source": lineage.source, "parent": parent, "bridge": bridge.name,
            "data": bridge.data, "options": bridge.options, "recipe": bridge.recipe.over(study.recipe).parameters(),
            "seeds": bridge.seeds or study.seeds} | varied


def _first_hop(study: Study, lineage: Lineage, parent: str) -> dict[str, Any]:
    unsaid = {"name", "targets", "lineages", "seeds", "recipe"}
    return {"lineage": lineage.name, "backbone": lineage.backbone, "source": lineage.source, "parent": parent, "seed": study.seeds[0],
            "bridges": {bridge.name: bridge.model_dump(exclude_defaults=True, exclude=unsaid) | {"data": bridge.data} for bridge in _bridges(study, lineage)}}


def _probe(study: Study, lineage: Lineage, name: str, before: list[PlannedRun]) -> dict[str, Any]:
    target = study.targets[name]
    return {key: getattr(target, key) for key in _TASK} | {
        "target": name, "lineage": lineage.name, "backbone": lineage.backbone, "source": lineage.source, "seeds": study.seeds,
        "parents": [run.path for run in before], "sizes": study.probe.sizes, "sized": study.probe.sized, "n_max": study.probe.n_max}


def _target(
    study: Study, lineage: Lineage, name: str, variant: str, target: Target, arm: str, bridge: Bridge | None,
) -> dict[str, Any]:
    recipe = target.recipe.over(study.recipe).model_dump(exclude_none=True, exclude=TUNED)
    own = study.targets[name].variants[variant].tuning if variant else None
    tuning = own or lineage.tuning or target.tuning or study.tuning
    if target.augmentation is not None:
        recipe |= {"augmentation": target.augmentation}
    parent = {"scratch": "", "ctl": f"10_source/{slug('10_source', {'lineage': lineage.name})}"}.get(arm)
    if bridge is not None:
        parent = f"20_bridge/{slug('20_bridge', {'lineage': lineage.name, 'bridge': bridge.name})}"
    seeds = target.seeds or (study.scratch_seeds if arm == "scratch" else []) or study.seeds
    if bridge is not None and bridge.seeds:
        seeds = [seed for seed in seeds if seed in bridge.seeds]
    return {key: getattr(target, key) for key in _TASK} | {
        "target": name, "variant": variant, "arm": arm, "lineage": lineage.name, "backbone": lineage.backbone,
        "source": lineage.source if arm != "scratch" else "", "bridge": bridge.name if bridge else "", "parent": parent,
        "seeds": seeds, "recipe": recipe, "lrs": tuning.lrs, "steps": tuning.steps,
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


def _compared(study: Study, run: PlannedRun, targets: list[PlannedRun]) -> bool:
    """Whether a run of the target stage belongs to the comparison of the arms: ablations (other bridges than the first, lineages with
    arms of their own, a variant with one arm alone) have analyses of their own."""
    def block(other: PlannedRun) -> tuple[str, ...]:
        return tuple(other.parameters[key] for key in ("target", "variant", "lineage"))

    arms = {other.parameters["arm"] for other in targets if block(other) == block(run)}
    lineage = next(lineage for lineage in study.lineages if lineage.name == run.parameters["lineage"])
    main = lineage.arms is None and (not run.parameters["bridge"] or run.parameters["bridge"] == study.bridges[0].name)
    return main and (len(arms) > 1 or not run.parameters["variant"])


def _analysis(study: Study, entry: Analysis, runs: list[PlannedRun], tables: Mapping[str, Path] | None = None) -> PlannedRun:
    """An analysis of what ``runs`` leave: it is given what its notebook declares. ``tables``: folders of committed results in
    the place of the runs."""
    read = _matching(entry, runs)
    if not read and entry.reads:
        raise MstlError(f"Study {study.name}: the analysis {entry.notebook} reads {', '.join(entry.reads)}, which no run of the study "
                        "matches: name runs as stage/slug, with * for any letters.")
    if tables is not None:
        read = [path for path in read if path in tables]
    declared = templates.parameters(entry.notebook)
    given = _comparison(study) | {
        "threads": study.threads, "image_size": study.image_size, "seeds": study.seeds,
        "bridges": {bridge.name: bridge.model_dump(exclude_defaults=True, exclude={"name", "targets", "lineages", "seeds"}) for bridge in study.bridges},
        "parents": [path for path in read if path.startswith(("10_source/", "20_bridge/"))],
        "predictions": [path for path in read if not path.startswith(("10_source/", "20_bridge/", "36_first_hop/"))],
        "hops": [path for path in read if path.startswith("36_first_hop/")],
        "scores": [path for path in read if path.startswith("35_probe/")]}
    parameters = {key: value for key, value in given.items() if key in declared} | entry.parameters
    if tables is None:
        return _run(entry.notebook, parameters, name=entry.name, needs=read, outputs=["metrics.json"])
    for key, name in (("predictions", "predictions.csv"), ("scores", "transferability.csv"), ("hops", "first_hop.csv")):
        if key in parameters:
            parameters[key] = [os.path.relpath(_table(tables[path] / name), paths.home()) for path in parameters[key]]
    files = [table for path in read for table in _tables(tables[path])]
    return _run(entry.notebook, parameters, name=entry.name, outputs=["metrics.json"], files=files)


def _reference(study: Study) -> list[PlannedRun]:
    """The analyses of the reference study, recomputed from its committed tables with its own declaration.

    The tables come in the order of the study's file, so that its first target is also the first in every table and figure.
    An analysis of runs that are not all committed is left out. A chapter that trains its own networks (it has the parameter
    ``results``) reads its committed tables in place of training.
    """
    tables = {f"{path.parent.parent.name}/{path.parent.name}": path.parent
              for name in ("predictions.csv*", "first_hop.csv") for path in paths.share("data", "reference").glob(f"*/*/{name}")}
    if not tables:
        return []
    reference = read_study("reference" if "reference" in studies() else study.name).model_copy(update={"show_reference": False})
    runs = plan(reference)
    compared = next(run for run in runs if run.stage == "60_comparison")
    entries = [Analysis(notebook="60_comparison", reads=compared.needs), *reference.analyses]
    out = []
    for entry in entries:
        own = entry.model_copy(update={"name": "reference" if entry.name == "all" else f"reference-{entry.name}"})
        matched = _matching(entry, runs)
        committed = [path for path in matched if path in tables]
        results = paths.share("data", "reference", entry.notebook, entry.name)
        run = None
        if "results" in templates.parameters(entry.notebook):
            if (results / RECORD).is_file():
                given = entry.parameters | {"results": os.path.relpath(results, paths.home())}
                run = _analysis(reference, own.model_copy(update={"reads": [], "parameters": given}), runs, {})
                run = dataclasses.replace(run, files=_tables(results))
        elif committed and (committed == matched or (entry.notebook, entry.name) == ("60_comparison", "all")):
            run = _analysis(reference, own, runs, tables)
        if run is not None:
            parameters = run.parameters | {"study": study.name, "out": f"runs/{study.name}/{run.stage}/{run.slug}"}
            out.append(dataclasses.replace(run, parameters=parameters))
    return out


def _matching(entry: Analysis, runs: list[PlannedRun]) -> list[str]:
    """The runs that an analysis reads."""
    return [run.path for run in runs if any(fnmatch.fnmatchcase(run.path, pattern) for pattern in entry.reads)]


def _tables(results: Path) -> list[Path]:
    """The tables of a committed run that an analysis may read."""
    return [table for table in sorted(results.glob("*.csv*")) if table.name != "history.csv"]


def _table(path: Path) -> Path:
    """A committed table, which is packed where it is large."""
    packed = path.with_name(f"{path.name}.xz")
    return packed if packed.is_file() and not path.is_file() else path


def _simulated(name: str) -> bool:
    from mstl.datasets.catalog import catalog

    return name in catalog() and catalog()[name].simulated


def _own_files(parameters: Mapping[str, Any]) -> list[Path]:
    """Files of the user's own that decide a run: weights, manifests, arrays, tables."""
    data = parameters.get("data", [])
    names = [parameters.get("source", ""), *([data] if isinstance(data, str) else data)]
    places = [paths.home(name) for name in names if "/" in name]
    places += [place for name in parameters.get("more", []) if (place := paths.home(name)).is_file()]
    return [place / "manifest.csv" if (place / "manifest.csv").is_file() else place for place in places]
