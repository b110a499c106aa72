"""Study files: what may stand in them, and how a mistake is told.

A study is a YAML file in ``studies/`` (or anywhere, given by its path). Every key is documented on the models below and
in ``studies/smoke.yml``; a key that is not known, a wrong type or an impossible value is an error of one sentence that
names the key. :func:`mstl.planning.plan` expands a study into its runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mstl import paths, templates
from mstl.errors import MstlError

_PATTERNS = {r"^[a-z0-9][a-z0-9_.]*$": "lower-case letters, digits, _ and . only",
             r"^[a-z0-9][a-z0-9_.-]*$": "lower-case letters, digits, _ . and - only",
             r"^(none|backbone|stages:[1-9]\d*)$": "none, backbone or stages:K"}
_NAME, _STUDY, _FREEZE = _PATTERNS
#: Keys of a recipe that the tuning of a target decides.
TUNED = {"lr", "epochs", "steps"}
Name = Annotated[str, Field(pattern=_NAME)]
Arm = Literal["scratch", "ctl", "mstl"]
Augmentation = Literal["none", "natural", "microscopy", "ultrasound", "mammogram", "radiograph"]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RecipeKeys(_Keys):
    """Any part of a training recipe; what is left out comes from the study's ``recipe``, then from the stage's notebook
    and the defaults of ``mstl.training.Recipe``, where each is explained. ``epochs`` and ``steps`` exclude each other.
    Learning rate and length of target training are the business of ``tuning``."""

    optimizer: Literal["adamw", "sgd", "adam", "adagrad"] | None = None
    lr: Rate | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    momentum: Share | None = None
    schedule: Literal["constant", "linear", "cosine"] | None = None
    warmup: Share | None = None
    epochs: Positive | None = None
    steps: Positive | None = None
    batch_size: Positive | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    freeze: Annotated[str, Field(pattern=_FREEZE)] | None = None
    label_smoothing: Share | None = None
    class_weights: Literal["none", "balanced"] | None = None
    augmentation: Augmentation | None = None
    patience: Annotated[int, Field(ge=0)] | None = None
    keep: Literal["best", "last"] | None = None
    monitor: Literal["auc", "loss", "accuracy"] | None = None
    precision: Literal["no", "bf16", "fp16"] | None = None

    def over(self, base: RecipeKeys) -> RecipeKeys:
        """These keys over ``base``; ``steps`` here silences ``epochs`` there and the other way round."""
        own = self.model_dump(exclude_none=True)
        length = {"epochs", "steps"} if {"epochs", "steps"} & set(own) else set()
        return RecipeKeys(**base.model_dump(exclude_none=True, exclude=length) | own)

    def parameters(self) -> dict[str, Any]:
        """For a notebook whose default length is in epochs."""
        own = self.model_dump(exclude_none=True)
        return own | ({"epochs": None} if "steps" in own else {})


class DataKeys(_Keys):
    """A data set: ``data`` is a name of the catalog (``mstl data list``) or the path of a folder with ``manifest.csv``
    (relative to the study's file, the home folder or the current one); ``options`` go to ``mstl.datasets.load``."""

    data: str
    options: dict[str, Any] = {}


class Lineage(_Keys):
    """A backbone and where its weights come from. ``source``: imagenet, none, a data set to train on, or a weights file.

    A lineage with ``arms`` of its own is a study within the study, of another source or backbone: it is left out of the
    comparison of the arms and of the probes, and read by the notebooks of ``analyses``.
    """

    name: Name
    arms: Annotated[list[Arm], Field(min_length=1)] | None = None  # default: the study's, and the lineage is compared
    targets: list[Name] | None = None  # targets that are fine-tuned from it; default: all
    bridges: list[Name] | None = None  # bridges that are trained from it; default: all that do not name other lineages
    tuning: Tuning | None = None  # of its target networks; default: the target's
    backbone: str
    source: str = "imagenet"
    source_options: dict[str, Any] = {}
    source_recipe: RecipeKeys = RecipeKeys()
    source_n: Annotated[int, Field(ge=0)] = 0  # train on so many images of it, evenly over the classes; 0: all


class Bridge(DataKeys):
    """The bridge domain between source and target: trained once for every lineage and chain.

    The first bridge of a study is the one of the arm mstl; further ones are ablations, which vary the data of the first
    by the keys below or stand in for it, and are compared by the notebooks of ``analyses``.
    """

    name: Name
    recipe: RecipeKeys = RecipeKeys()
    images: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the images of every class
    lines: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the classes (cell lines)
    n_train: Annotated[int, Field(ge=0)] = 0  # this many images, as many of every class as can be; 0: all
    merge: Literal["", "tissue", "random"] = ""  # classes merged by tissue of origin or at random …
    merge_to: Annotated[int, Field(ge=0)] = 0  # … to this many
    control: Literal["", "labels", "statistics"] = ""  # labels: shuffled; statistics: only those of batch normalisation
    grey: bool = False  # colour images as grey ones
    draw: Annotated[int, Field(ge=-1)] = 0  # which draw of images, lines or merging; -1: each chain its own
    seeds: list[int] | None = None  # chains; default: the study's
    targets: list[Name] | None = None  # targets that are fine-tuned from it; default: all
    lineages: list[Name] | None = None  # lineages that have it; default: all


class Tuning(_Keys):
    """The budget of every arm: each learning rate with each number of optimiser steps, chosen on validation; the arm
    ``scratch`` tries ``scratch_extra_steps`` besides, at its best rate."""

    lrs: Annotated[list[Rate], Field(min_length=1)]
    steps: Annotated[list[Positive], Field(min_length=1)]
    scratch_extra_steps: list[Positive] = []


class Settings(_Keys):
    """What a variant of a target may change; what is left out stays as the target has it."""

    classes: list[str] | None = None  # labels index into this order; the last is the positive one; empty: all
    options: dict[str, Any] | None = None
    design: Literal["folds", "holdout", "published"] | None = None
    folds: Annotated[int, Field(ge=3)] | None = None
    draws: Positive | None = None  # of training and validation images (holdout, published)
    n_train: Annotated[int, Field(ge=0)] | None = None  # images; 0: all that there are
    n_val: Annotated[int, Field(ge=0)] | None = None  # images; 0: a quarter of n_train, or the published part
    test: Annotated[float, Field(gt=0, lt=1)] | None = None  # share of images (holdout)
    group_by_cluster: bool | None = None  # near-copies found by the audit stay on one side
    augmentation: Augmentation | None = None
    recipe: RecipeKeys = RecipeKeys()
    tuning: Tuning | None = None  # default: the study's
    arms: list[Arm] | None = None  # default: the study's
    seeds: list[int] | None = None  # chains; default: the study's


class Target(Settings, DataKeys):
    """A target task. The settings are those of :class:`Settings`; ``variants`` are further runs that change some."""

    title: str = ""
    options: dict[str, Any] = {}
    classes: list[str] = []
    design: Literal["folds", "holdout", "published"] = "folds"
    folds: Annotated[int, Field(ge=3)] = 5
    draws: Positive = 1
    n_train: Annotated[int, Field(ge=0)] = 0
    n_val: Annotated[int, Field(ge=0)] = 0
    test: Annotated[float, Field(gt=0, lt=1)] = 0.5
    group_by_cluster: bool = False
    variants: dict[Name, Settings] = {}

    def varied(self, name: str) -> Target:
        """The target as its variant has it; the name "" is the target itself."""
        if not name:
            return self
        change = self.variants[name]
        keys = {key: value for key, value in change if key != "recipe" and value is not None}
        return self.model_copy(update=keys | {"recipe": change.recipe.over(self.recipe)})


class Comparison(_Keys):
    """What is estimated, declared before the run. The contrast is first minus second arm; ``family``: the targets whose
    tests are corrected together over ``holm`` (all when empty); margin in units of the metric."""

    estimand: str = ""
    contrast: Annotated[list[Arm], Field(min_length=2, max_length=2)] = ["mstl", "ctl"]
    metric: Literal["auc", "accuracy", "f1"] = "auc"
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.02
    family: list[Name] = []
    holm: list[Literal["target", "backbone", "lineage", "bridge"]] = ["target", "lineage"]
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    n_resamples: Annotated[int, Field(ge=100)] = 2000
    n_resamples_primary: Annotated[int, Field(ge=0)] = 0  # of the primary differences, where p-values decide; 0: as many as of all else
    seed: int = 0


class Probe(_Keys):
    """Frozen features of every checkpoint on these targets: the transferability measures and a linear probe."""

    targets: list[Name] = []
    sizes: list[Positive] = []  # training images: the probe is trained on so many as well
    sized: list[Name] = []  # … of these bridges, and of the source; empty: all
    adapted: dict[Name, list[Name]] = {}  # {lineage: bridges}: probed once more, with the target's own batch-norm statistics
    n_max: Positive = 2000  # images that the measures are computed on at most


class Analysis(_Keys):
    """A notebook that reads the results of other runs. It is given what it declares of: the study's seeds, titles, bridges
    and settings of the comparison; ``predictions`` and ``scores``, the tables of the runs that match ``reads``; and ``parameters``."""

    notebook: str
    name: Name = "all"
    reads: list[str] = []  # runs as stage/slug, with * and ?
    parameters: dict[str, Any] = {}


class Study(_Keys):
    """A whole study file."""

    study: Annotated[str, Field(pattern=_STUDY)]
    title: str = ""
    threads: Annotated[int, Field(ge=1, le=256)] = 1  # of torch in one run
    image_size: Annotated[int, Field(ge=16, le=1024)] = 96  # pixels
    seeds: Annotated[list[int], Field(min_length=1)] = [0]  # chains
    scratch_seeds: list[int] = []  # chains of the arm scratch, where it has fewer; empty: all
    data: list[DataKeys] = []  # shown in 00_data; empty: every set that the study uses
    lineages: Annotated[list[Lineage], Field(min_length=1)]
    bridges: list[Bridge] = []
    targets: Annotated[dict[Name, Target], Field(min_length=1)]
    arms: Annotated[list[Arm], Field(min_length=1)] = ["scratch", "ctl", "mstl"]
    recipe: RecipeKeys = RecipeKeys()
    tuning: Tuning
    comparison: Comparison = Comparison()
    probe: Probe = Probe()
    analyses: list[Analysis] = []
    show_reference: bool = False  # analyse the committed tables of the reference study too

    @property
    def name(self) -> str:
        return self.study


def studies() -> list[str]:
    """Names of the studies that come with the project."""
    return sorted(path.stem for path in paths.share("studies").glob("*.yml"))


def read_study(name: str | os.PathLike) -> Study:
    """The study of that name (see :func:`studies`) or in the YAML file at that path, checked."""
    path = Path(name).expanduser()
    if path.suffix not in (".yml", ".yaml"):
        path = paths.share("studies", f"{name}.yml")
        if not path.is_file():
            raise MstlError(f"There is no study '{name}' in {path.parent}: {templates.suggestion(str(name), studies())} "
                            "The path of a YAML file does as well.")
    elif not path.is_file():
        raise MstlError(f"There is no study file {path.absolute()}: give the path of a YAML file, or one of the studies "
                        f"{', '.join(studies())}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise MstlError(f"{path} is not valid YAML{line} ({getattr(error, 'problem', None) or error}): mend it there.") from error
    if not isinstance(content, dict):
        raise MstlError(f"{path} holds no keys: copy {paths.share('studies', 'smoke.yml')}, which explains each.")
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        raise MstlError(f"{path}: {_sentence(error)}") from error
    return _consistent(_located(study, path), path)


def is_weights(source: str) -> bool:
    """Whether a ``source`` is a file or folder of weights."""
    return source.endswith((".pt", ".pth", ".safetensors", ".bin")) or (Path(source) / "checkpoint.json").is_file()


def _located(study: Study, path: Path) -> Study:
    """Paths in the study made absolute (or relative to the home folder where they lie below it)."""
    def find(name: str, key: str, options: dict[str, Any]) -> str:
        if "/" not in name and os.sep not in name:
            if not (key.endswith("source") and name in ("imagenet", "none")):
                _check_data(name, options, key, path)
            return name
        tried = [(base / Path(name).expanduser()).resolve() for base in (path.parent, paths.home(), Path.cwd())]
        for place in tried:
            if place.exists():
                return f"./{place.relative_to(paths.home())}" if place.is_relative_to(paths.home()) else str(place)
        raise MstlError(f"{path}: {key} is the path '{name}', but there is nothing at {' or '.join(map(str, dict.fromkeys(tried)))}: "
                        "mend the path.")

    def placed(entry: DataKeys, key: str) -> DataKeys:
        return entry.model_copy(update={"data": find(entry.data, f"{key}.data", entry.options)})

    return study.model_copy(update={
        "lineages": [e.model_copy(update={"source": find(e.source, f"lineages.{i}.source", e.source_options)})
                     for i, e in enumerate(study.lineages)],
        "bridges": [placed(e, f"bridges.{i}") for i, e in enumerate(study.bridges)],
        "targets": {name: placed(e, f"targets.{name}") for name, e in study.targets.items()},
        "data": [placed(e, f"data.{i}") for i, e in enumerate(study.data)],
    })


def _check_data(name: str, options: dict[str, Any], key: str, path: Path) -> None:
    """The data set and its options are in the catalog."""
    from mstl.datasets import checked_options
    from mstl.datasets.catalog import catalog

    if name not in catalog():
        known = [*catalog(), *(["imagenet", "none"] if key.endswith("source") else [])]
        raise MstlError(f"{path}: {key} is '{name}', which the catalog does not have: {templates.suggestion(name, known)} "
                        "The path of something of your own has a slash in it, as in ./my-images.")
    try:
        checked_options(name, catalog()[name].options, options)
    except MstlError as error:
        raise MstlError(f"{path}: {key.rpartition('.')[0]}: {error}") from error


def _consistent(study: Study, path: Path) -> Study:
    """What no single key can know."""
    arms = {arm for target in study.targets.values() for arm in target.arms or study.arms}
    if "mstl" in arms and not study.bridges:
        raise MstlError(f"{path}: the arm mstl needs a bridge, but bridges is empty: name one, or leave mstl out of arms.")
    known = {"target": list(study.targets), "bridge": [bridge.name for bridge in study.bridges],
             "lineage": [lineage.name for lineage in study.lineages]}
    named = [("comparison.family", "target", study.comparison.family), ("probe.targets", "target", study.probe.targets),
             ("probe.sized", "bridge", study.probe.sized), ("probe.adapted", "lineage", study.probe.adapted)]
    named += [(f"probe.adapted.{name}", "bridge", own) for name, own in study.probe.adapted.items()]
    for lineage in study.lineages:
        named += [(f"lineages.{lineage.name}.targets", "target", lineage.targets), (f"lineages.{lineage.name}.bridges", "bridge", lineage.bridges)]
    for bridge in study.bridges:
        named += [(f"bridges.{bridge.name}.targets", "target", bridge.targets), (f"bridges.{bridge.name}.lineages", "lineage", bridge.lineages)]
    for key, kind, names in named:
        for name in names or []:
            if name not in known[kind]:
                raise MstlError(f"{path}: {key} names the {kind} '{name}', which {kind}s does not have: {templates.suggestion(name, known[kind])}")
    for lineage in study.lineages:
        if "mstl" in (lineage.arms or []) and lineage.bridges == []:
            raise MstlError(f"{path}: lineages.{lineage.name} has the arm mstl and no bridges: name one, or leave mstl out of its arms.")
    for bridge in study.bridges:
        if bool(bridge.merge) != bool(bridge.merge_to):
            raise MstlError(f"{path}: bridges.{bridge.name} needs both merge (tissue or random) and merge_to (a number of classes), or neither.")
    for entry in study.analyses:
        if entry.notebook not in templates.stages():
            raise MstlError(f"{path}: analyses names the notebook '{entry.notebook}', which notebooks/ does not have: "
                            f"{templates.suggestion(entry.notebook, templates.stages())}")
    for key in ("lineages", "bridges"):
        names = [entry.name for entry in getattr(study, key)]
        for name in names:
            if names.count(name) > 1:
                raise MstlError(f"{path}: {key} has two entries named '{name}': give each its own name.")
    places = {"recipe": study.recipe} | {f"lineages.{e.name}.source_recipe": e.source_recipe for e in study.lineages} | {
        f"bridges.{e.name}.recipe": e.recipe for e in study.bridges} | {f"targets.{n}.recipe": e.recipe for n, e in study.targets.items()}
    for key, recipe in places.items():
        if recipe.epochs and recipe.steps:
            raise MstlError(f"{path}: {key} has both epochs and steps: keep one.")
        if key.startswith("targets.") and (given := TUNED & set(recipe.model_dump(exclude_none=True))):
            raise MstlError(f"{path}: {key}.{min(given)} has no effect, because targets are tuned: set lrs and steps in "
                            f"{key.removesuffix('recipe')}tuning.")
    return study


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-3 is a number, only true and false are booleans, a key stands once."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$"),
                              list("-+.0123456789"))


def _sentence(error: ValidationError) -> str:
    """The first problem (an unknown key before others) as one sentence with the path of its key."""
    problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    where = [str(part) for part in problem["loc"] if part != "[key]"]
    key, kind, value = ".".join(where), problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{key} is not a key of a study: {templates.suggestion(where[-1], _known(problem['loc'][:-1]))}"
    if kind == "missing":
        return f"the key {key} is missing: add it."
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"{key} must be one of {', '.join(choices)}, but is {value!r}: {templates.suggestion(value, choices)}"
    if kind == "string_pattern_mismatch":
        return f"{key} must be {_PATTERNS[problem['ctx']['pattern']]}, but is {value!r}: change it."
    said = problem["msg"].removeprefix("Input should be ")
    wanted = _TYPES.get(kind, said[:1].lower() + said[1:])
    return f"{key} must be {wanted}, but is {value!r}: mend the value."


_TYPES = {"int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number", "string_type": "text",
          "bool_type": "true or false", "list_type": "a list", "dict_type": "a block of keys", "model_type": "a block of keys",
          "too_short": "a longer list", "too_long": "a shorter list"}


def _known(where: Iterable[Any]) -> list[str]:
    """The keys that a study has at this place."""
    model, inside = Study, True
    for part in where:
        if inside:  # a key of the model; the next part is then an index or a name, unless the value is a model itself
            annotation = model.model_fields[part].annotation
            model = _inner(annotation)
            inside = model is annotation or not any(get_origin(a) in (list, dict) for a in (annotation, *get_args(annotation)))
        else:
            inside = True
    return list(model.model_fields)


def _inner(annotation: Any) -> Any:
    """The model inside list[Model], dict[str, Model] or Model | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [inner for argument in getattr(annotation, "__args__", ()) if (inner := _inner(argument)) is not None]
    return found[0] if found else None
