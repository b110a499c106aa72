"""Do the networks of 71_bone_tumours keep their opinion when another hand draws the box, and do they look at the lesion?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mstl import predictions
from mstl.errors import MstlError
from mstl.metrics import paired, ranks, robustness, roc
from mstl.works import bone_tumours

if TYPE_CHECKING:
    from mstl.datasets.imageset import ImageSet

KEYS = ["model", "seed", "fold"]
COLUMNS = [*KEYS, "strength", "draw", "image_id", "p"]


# --- the kept networks, and boxes drawn again ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """The models of one chain and fold of a run of 71: name → function (crops, field, boxes (n, 4), risks of the models before it) → risk (n,)."""

    seed: int
    fold: int
    test: np.ndarray
    networks: Mapping[str, Any]
    risks: Mapping[str, Callable[[ImageSet, ImageSet, np.ndarray, Mapping[str, np.ndarray]], np.ndarray]]


def kept(parent: Path, record: Mapping[str, Any], parts: Sequence) -> Iterator[Kept]:
    """Every chain and fold of a finished run of 71, with its networks and, where regions are boxes, its handcrafted models."""
    from mstl import checkpoints, training
    from mstl.models import radiomics

    p = record["parameters"]
    names = [network.name for network in bone_tumours.networks(p["networks"])]
    for seed in p["seeds"]:
        for part in parts:
            place = bone_tumours.place(parent, seed, part.fold)
            if not place.is_dir():
                raise MstlError(f"The run {parent} keeps no networks of seed {seed} and fold {part.fold} ({place.name} is missing): only their tables were "
                                "copied; run 71_bone_tumours again, or name the results of a finished run of this notebook.")
            models = {name: checkpoints.load(place / name) for name in names}
            risks: dict[str, Callable] = {name: (lambda crops, field, boxes, before, model=model: training.predict(model, crops)[:, -1])
                                          for name, model in models.items()}
            beside = bone_tumours.handcrafted_names(p)
            if beside and p["region"] == "box":
                signature = radiomics.load(place / "signature.json")
                both = radiomics.load(place / "combination.json")
                deep = p["combined"] or names[0]
                risks[beside[0]] = lambda crops, field, boxes, before, model=signature: model.risk(
                    radiomics.measure(field.images, p["features"], boxes=boxes))
                risks[beside[1]] = lambda crops, field, boxes, before, model=both: model.risk(before[deep], before[beside[0]])
            yield Kept(seed, part.fold, part.test, models, risks)


def same_images(field: ImageSet, about: Mapping[str, Any], parent: Path) -> None:
    """Raise MstlError where the images are no longer those that the run ``parent`` trained and tested on (``about``: its record of them)."""
    if field.hash != about["hash"]:
        raise MstlError(f"{about['name']} has changed since {parent} was run (other images, labels or groups), so that its networks may have trained on what is "
                        "tested here: run 71_bone_tumours again.")


def some(labels: np.ndarray, rows: np.ndarray, n: int, *, seed: int = 0) -> np.ndarray:
    """At most ``n`` of the ``rows`` (0: all), as many of each class as can be, sorted."""
    if not n or n >= len(rows):
        return np.sort(rows)
    random, order = np.random.default_rng([seed, 7]), []
    for label in np.unique(labels[rows]):
        own = random.permutation(rows[labels[rows] == label])
        order += [(position, label, row) for position, row in enumerate(own)]
    return np.sort([row for _, _, row in sorted(order)[:n]])


def disturb(
    one: Kept, field: ImageSet, rows: np.ndarray, strengths: Sequence[float], draws: np.ndarray, *, size: int, context: float,
    on_step: Callable[[], None] | None = None,
) -> pd.DataFrame:
    """Risks of the cases ``rows`` of ``field`` with their own boxes (strength 0) and under every draw of every strength, one row a model,
    draw and case: ``COLUMNS``. The same draws for every case and model, and for every strength, stretched."""
    part = field.subset(rows)
    own, tables = bone_tumours.corners(part), []
    for strength in (0.0, *strengths):
        moved = robustness.perturb(own, draws, shift=strength, scale=strength) if strength else own[:, None]
        for draw in range(moved.shape[1]):
            boxes = moved[:, draw]
            pixels, _ = bone_tumours.cut(part.images, boxes, size, context)
            crops = dataclasses.replace(part, images=pixels, masks=None, boxes=None)
            found: dict[str, np.ndarray] = {}
            for name, risk in one.risks.items():
                found[name] = risk(crops, part, boxes, found)
                tables.append(pd.DataFrame({"model": name, "seed": one.seed, "fold": one.fold, "strength": strength, "draw": draw,
                                            "image_id": part.ids, "p": found[name]}))
            if on_step is not None:
                on_step()
    return pd.concat(tables, ignore_index=True)[COLUMNS]


# --- statistics of the table --------------------------------------------------------------------------------------------


def joined(perturbed: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The perturbed risks with what the predictions of 71 know of each case (``group``, ``center``, ``y`` 0 or 1) and, from the validation images of
    the same model, chain and fold, its recalibrated ``logit`` and its ``cut`` (Youden)."""
    absent = [name for name in COLUMNS if name not in perturbed]
    if absent:
        raise MstlError(f"The table of perturbed risks has no column '{absent[0]}': it is not one that 72_robustness wrote.")
    test = table[table["split"] == "test"].drop_duplicates("image_id").set_index("image_id")
    lost = sorted(set(perturbed["image_id"]) - set(test.index))
    if lost:
        raise MstlError(f"Case '{lost[0]}' was perturbed but is no test image of the predictions: the two tables are of different runs.")
    _as_tested(perturbed, table)
    known = test.loc[perturbed["image_id"]]
    positive = predictions.classes(table)[-1]
    out = perturbed.assign(group=known["group"].to_numpy(), center=known["center"].to_numpy(), y=(known["y_true"] == positive).to_numpy(int))
    out["logit"], out["cut"] = np.nan, np.nan
    val = table[table["split"] == "val"]
    score = predictions.positive(val) if len(val) else None
    for key, rows in out.groupby(KEYS).indices.items():
        own = val[(val[KEYS] == list(key)).all(axis=1)]
        if own["y_true"].nunique() < 2:
            raise MstlError(f"Model '{key[0]}' (seed {key[1]}, fold {key[2]}) has no validation images of both classes, so its risks cannot be recalibrated: "
                            "give predictions with a validation part.")
        y, risk = (own["y_true"] == positive).to_numpy(), score[own.index].to_numpy()
        out.loc[out.index[rows], "logit"] = robustness.recalibrated_logit(y, risk, out["p"].to_numpy()[rows])
        out.loc[out.index[rows], "cut"] = roc.choose_threshold(y, risk, rule="youden")
    return out


def _as_tested(perturbed: pd.DataFrame, table: pd.DataFrame) -> None:
    """With its own box every case was a test image of that model, chain and fold, and gets the risk that stands in the predictions."""
    test, keys = table[table["split"] == "test"], [*KEYS, "image_id"]
    before = pd.Series(predictions.positive(test).to_numpy(), index=pd.MultiIndex.from_frame(test[keys]))
    own = perturbed[perturbed["strength"] == 0]
    risk = before.reindex(pd.MultiIndex.from_frame(own[keys])).to_numpy()
    off = ~(np.abs(risk - own["p"].to_numpy()) < 1e-3)
    if off.any():
        row = own.iloc[int(off.argmax())]
        said = "was no test image of it" if np.isnan(risk[off.argmax()]) else "had another risk there"
        raise MstlError(f"Case '{row['image_id']}' was perturbed for model {row['model']} (seed {row['seed']}, fold {row['fold']}) but {said}: the networks and "
                        "the predictions are of different runs.")


def per_case(table: pd.DataFrame) -> pd.DataFrame:
    """One row a model, strength and case (means over its chains and folds): ``sd_logit``, ``sd_risk`` over the draws, ``flips`` the share of draws that
    change the call; with ``group``."""
    rows = []
    for (model, seed, fold), cell in table.groupby(KEYS, sort=False):
        own = cell[cell["strength"] == 0].set_index("image_id")
        for strength, part in cell[cell["strength"] > 0].groupby("strength"):
            logit, risk = (part.pivot(index="image_id", columns="draw", values=name) for name in ("logit", "p"))
            case = own.loc[logit.index]
            rows.append(pd.DataFrame({
                "model": model, "strength": strength, "image_id": logit.index, "group": case["group"].to_numpy(),
                "sd_logit": robustness.case_sd(logit), "sd_risk": robustness.case_sd(risk),
                "flips": robustness.flips(case["p"].to_numpy(), risk, float(case["cut"].iloc[0]))}))
    every = pd.concat(rows, ignore_index=True)
    return every.groupby(["model", "strength", "image_id", "group"], sort=False, as_index=False).mean()


def aucs(table: pd.DataFrame, *, reference: str = "", level: float = 0.95, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """AUC of each model at each strength: the mean over draws, folds and chains of the AUC within one, with its interval (groups resampled, the
    draws of a fold together), its standard deviation over draws, and its change from strength 0.

    Columns: model, strength, estimate, low, high, sd_draws, change, change_low, change_high, p, n_images, n_groups, n_chains, note.
    """
    rows = []
    options = dict(level=level, n_resamples=n_resamples, random_seed=seed)
    for model, own in table.groupby("model", sort=False):
        k = int(own["draw"].max()) + 1
        base = own[own["strength"] == 0].set_index([*KEYS, "image_id"])["p"]
        for strength, part in own.groupby("strength"):
            cells = dict(seed=part["seed"], fold=part["fold"] * k + part["draw"], group=part["group"])
            found = paired.chain_mean(part["y"], part["p"], **cells, **options)
            by_fold = found.cells.assign(fold=found.cells["fold"] // k).groupby(["seed", "fold"])["estimate"]
            row = {"model": model, "strength": strength, "estimate": found.estimate, "low": found.low, "high": found.high,
                   "sd_draws": float(by_fold.std().mean()) if strength else 0.0, "n_images": found.n_images, "n_groups": found.n_groups,
                   "n_chains": found.n_chains, "note": found.note, "change": 0.0, "change_low": None, "change_high": None, "p": None}
            if strength:
                before = base.loc[pd.MultiIndex.from_frame(part[[*KEYS, "image_id"]])].to_numpy()
                moved = paired.chain_difference(part["y"], part["p"], before, **cells, **options)
                row |= {"change": moved.difference, "change_low": moved.low, "change_high": moved.high, "p": moved.p_value}
            rows.append(row)
    return pd.DataFrame(rows)


def agreement(table: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """ICC(2,1) of the recalibrated logits, cases × draws, of each model, strength and chain.

    Cases of several folds stand together after the mean of each fold is taken off, so that what differs between the folds' networks does not count
    as agreement; the interval's degrees of freedom are the cases', a little too many then. Columns: model, strength, seed, estimate, low, high, n, k, note.
    """
    rows = []
    for (model, seed, strength), part in table[table["strength"] > 0].groupby(["model", "seed", "strength"], sort=False):
        logit = part["logit"] - part.groupby("fold")["logit"].transform("mean")
        wide = part.assign(logit=logit).pivot(index=["fold", "image_id"], columns="draw", values="logit")
        rows.append({"model": model, "strength": strength, "seed": seed} | dataclasses.asdict(robustness.icc(wide, "2,1", level=level)))
    return pd.DataFrame(rows).drop(columns=["kind", "level"])


def means(cases: pd.DataFrame, value: str, *, level: float = 0.95) -> pd.DataFrame:
    """Mean over cases of one column of :func:`per_case`, with its interval, of each model and strength."""
    rows = []
    for (model, strength), part in cases.groupby(["model", "strength"], sort=False):
        found = robustness.mean_over_cases(value, part[value], groups=part["group"], level=level)
        rows.append({"model": model, "strength": strength, "estimate": found.estimate, "low": found.low, "high": found.high,
                     "n": found.n, "n_groups": found.n_groups})
    return pd.DataFrame(rows)


def contrasts(cases: pd.DataFrame, pair: Sequence[str], value: str = "sd_logit", *, level: float = 0.95) -> pd.DataFrame:
    """Paired over cases: is ``value`` smaller in the first model of ``pair`` than in the second? One row a strength; ``p_holm`` corrects Wilcoxon's
    test over the strengths."""
    a, b = pair
    for name in pair:
        if name not in set(cases["model"]):
            raise MstlError(f"There is no model '{name}' to compare: the models are {', '.join(dict.fromkeys(cases['model']))}.")
    rows = []
    for strength, part in cases.groupby("strength"):
        wide = part.pivot(index=["image_id", "group"], columns="model", values=value)
        found = robustness.compare_cases(wide[a], wide[b], groups=wide.index.get_level_values("group"), level=level)
        rows.append({"strength": strength, "contrast": f"{a} − {b}", "estimate": found.difference.estimate, "low": found.difference.low,
                     "high": found.difference.high, "smaller": found.smaller, "p": found.test.p_value, "n": found.difference.n,
                     "n_groups": found.difference.n_groups, "note": found.test.note})
    out = pd.DataFrame(rows)
    out["p_holm"] = None
    tested = out["p"].notna()
    if tested.any():
        out.loc[tested, "p_holm"] = ranks.holm(out.loc[tested, "p"].astype(float))
    return out


# --- where they look ----------------------------------------------------------------------------------------------------


def looks(one: Kept, field: ImageSet, rows: np.ndarray, draws: np.ndarray, *, size: int, context: float, shift: float, depths: Sequence[float],
          seed: int = 0) -> tuple[pd.DataFrame, dict[str, np.ndarray], ImageSet]:
    """Grad-CAM of every network on the cases ``rows``, for the class that it calls, and its measures, one row a network and case.

    The crops are shifted, each by another draw, so that the lesion is not in the middle and a map of the middle gains nothing. Columns: ``KEYS``,
    image_id, group, area (the box's share of the crop), inside, pointing, deletion, random (areas under the curves), inside_shuffled, and same_<depth>,
    the rank correlation with the map after shuffling the head and that share of the stages. Also returns the maps, and the crops.
    """
    from mstl import explain, training

    part = field.subset(rows)
    own = bone_tumours.corners(part)
    moved = robustness.perturb(own, draws, shift=shift, scale=0)[np.arange(len(own)), np.arange(len(own)) % len(draws)]
    pixels, lesions = bone_tumours.cut(part.images, moved, size, context, lesions=own)
    crops = dataclasses.replace(part, images=pixels, masks=None, boxes=part.boxes.assign(**dict(zip(bone_tumours.CORNERS, lesions.T, strict=True))))
    tables, maps = [], {}
    for name, model in one.networks.items():
        called = training.predict(model, crops).argmax(axis=1)
        heat = maps[name] = explain.grad_cam(model, crops, classes=called)
        row = {"model": name, "seed": one.seed, "fold": one.fold, "image_id": crops.ids, "group": crops.groups,
               "area": explain.area((size, size), lesions), "inside": explain.inside(heat, lesions), "pointing": explain.pointing(heat, lesions),
               "deletion": explain.curve_area(explain.deletion(model, crops, called, heat)),
               "random": explain.curve_area(explain.deletion(model, crops, called, None, seed=seed))}
        for depth in depths:
            other = explain.grad_cam(explain.shuffled(model, depth=depth, seed=seed), crops, classes=called)
            row[f"same_{depth:g}"] = explain.rank_correlation(heat, other)
            if depth == max(depths):
                row["inside_shuffled"] = explain.inside(other, lesions)
        tables.append(pd.DataFrame(row))
    return pd.concat(tables, ignore_index=True), maps, crops


def looks_summary(table: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Mean over cases of each measure of :func:`looks`, with its interval, and what it is compared with: one row a network and measure."""
    measures = {
        "heat inside the box minus the box's share of the crop": table["inside"] - table["area"],
        "hottest point in the box minus the box's share of the crop": table["pointing"] - table["area"],
        "heat inside the box minus that of shuffled weights": table["inside"] - table["inside_shuffled"],
        "deletion at random minus hottest first (area)": table["random"] - table["deletion"]}
    rows = []
    for measure, values in measures.items():
        for model, part in table.assign(value=values).groupby("model", sort=False):
            part = part.dropna(subset="value").groupby(["image_id", "group"], as_index=False)["value"].mean()
            if not len(part):
                rows.append({"measure": measure, "model": model, "estimate": None, "low": None, "high": None, "n": 0, "n_groups": 0})
                continue
            found = robustness.compare_cases(part["value"], np.zeros(len(part)), groups=part["group"], level=level).difference
            rows.append({"measure": measure, "model": model, "estimate": found.estimate, "low": found.low, "high": found.high,
                         "n": found.n, "n_groups": found.n_groups})
    return pd.DataFrame(rows)


def sanity(table: pd.DataFrame) -> pd.DataFrame:
    """Median and quartiles over cases of the rank correlation with the map of shuffled weights, one row a network and depth."""
    rows = []
    for column in [name for name in table if name.startswith("same_")]:
        for model, part in table.groupby("model", sort=False):
            values = part[column].dropna()
            low, median, high = values.quantile([0.25, 0.5, 0.75]) if len(values) else (np.nan,) * 3
            rows.append({"model": model, "depth": float(column.removeprefix("same_")), "median": median, "quartile_1": low, "quartile_3": high,
                         "n": len(values), "empty": len(part) - len(values)})
    return pd.DataFrame(rows)
