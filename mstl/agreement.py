"""Do the transferability measures say beforehand which start is best? From the tables of the probe stage to the answer.

The unit is a *checkpoint of one target*: the source network, or the bridge network of one chain. Its measures are means over the
folds or draws of the target's training part; its performance is the mean over the same folds of the test AUC, reached by
fine-tuning or by a linear probe. Measures are compared within a target and backbone only, and those that read a source head (LEEP,
NCE) only between heads with equally many classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mstl import predictions
from mstl.errors import MstlError
from mstl.metrics import roc, transferability

#: Columns of ``transferability.csv``: measures by name, as they are shown; True: it reads a trained source head.
MEASURES: Mapping[str, tuple[str, bool]] = {
    "leep": ("LEEP", True), "nce": ("NCE", True), "h_score": ("H-score", False), "logme": ("LogME", False), "gbc": ("GBC", False),
    "nleep": ("N-LEEP", False), "transrate": ("TransRate", False), "parc": ("PARC", False),
}
BLOCK = ["target", "backbone"]
#: Independent checkpoints below which an agreement is no evidence.
ENOUGH = transferability.ENOUGH_CHECKPOINTS
_KEYS = [*BLOCK, "source", "bridge", "hop", "seed"]


def read(places: Iterable[str | os.PathLike]) -> pd.DataFrame:
    """The transferability tables of probe runs (folders, or CSV files) as one; raises MstlError for a table that is none."""
    tables = []
    for place in places:
        path = Path(place) / "transferability.csv" if Path(place).is_dir() else Path(place)
        if path.name.startswith("predictions.csv"):
            path = path.with_name("transferability.csv")
        if not path.is_file():
            raise MstlError(f"There is no transferability table {path}: run the probe stage (notebooks/35_probe.ipynb) that writes it.")
        table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"bridge": str, "source": str})
        missing = [name for name in [*_KEYS, "fold", "n", "source_classes"] if name not in table]
        if missing:
            raise MstlError(f"{path} lacks the column '{missing[0]}', so it is no transferability table: give what the probe stage writes.")
        tables.append(table.assign(bridge=table["bridge"].fillna(""), source=table["source"].fillna("")))
    if not tables:
        raise MstlError("No transferability table was given: name at least one run of the probe stage (35_probe/…).")
    return pd.concat(tables, ignore_index=True)


def reached(table: pd.DataFrame) -> pd.DataFrame:
    """Test AUC of every model, chain and fold of a checked predictions table: ``target, backbone, variant, bridge, seed, fold, auc``,
    arms ctl and mstl only; several classes: one against the rest, macro mean."""
    rows = []
    test = table[(table["split"] == "test") & table["arm"].isin(["ctl", "mstl"])]
    for (target, variant), task in test.groupby(["target", "variant"], sort=False):
        names = predictions.classes(task)
        score = task[[f"p_{name}" for name in names]].to_numpy(float)
        truth = task["y_true"].map({name: i for i, name in enumerate(names)}).to_numpy()
        place = pd.Series(np.arange(len(task)), index=task.index)
        for (backbone, bridge, seed, fold), part in task.groupby(["backbone", "bridge", "seed", "fold"], sort=False):
            own = place[part.index].to_numpy()
            rows.append({"target": target, "backbone": backbone, "variant": variant, "bridge": bridge, "seed": int(seed),
                         "fold": int(fold), "auc": roc.auc(truth[own], score[own])})
    if not rows:
        raise MstlError("The predictions hold no test images of the arms ctl and mstl, so no performance stands beside the measures.")
    return pd.DataFrame(rows)


def checkpoints(scores: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """One row a checkpoint, target and way to use it: its measures and the performance reached from it.

    Columns: target, backbone, source, bridge, hop, seed, way ("linear probe" or "fine-tuning"), auc, n_runs (fits averaged),
    n (training images), source_classes, and the measures; linear probes come first. The source network starts every chain: its
    performance is the mean over them. A measure that is missing in any fold is missing. Only the plain runs count, no other variants.
    """
    names = [name for name in MEASURES if name in scores]
    grouped = scores.groupby(_KEYS, sort=False, dropna=False)
    mean = grouped[[*names, "n", "source_classes"]].mean()
    mean[names] = mean[names].where(grouped[names].count().eq(grouped.size(), axis=0))
    mean = mean.reset_index()
    auc = reached(table[table["variant"].isin(["", "probe"])])
    auc["way"] = np.where(auc["variant"] == "probe", "linear probe", "fine-tuning")
    rows = []
    for row in mean.to_dict("records"):
        own = auc[(auc["target"] == row["target"]) & (auc["backbone"] == row["backbone"]) & (auc["bridge"] == row["bridge"])]
        own = own if not row["bridge"] else own[own["seed"] == row["seed"]]
        for way, part in own.groupby("way", sort=False):
            rows.append(row | {"way": way, "auc": part["auc"].mean(), "n_runs": len(part)})
    if not rows:
        raise MstlError("No checkpoint of the transferability tables has predictions: give the predictions of the same study.")
    return pd.DataFrame(rows).sort_values("way", ascending=False, kind="stable", ignore_index=True)


def agreements(table: pd.DataFrame, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """How well each measure followed performance, one row a target, backbone, way and measure: ``n`` checkpoints of
    ``n_all`` that have it, of ``n_groups`` bridges, and Pearson's r,
    Kendall's τ and weighted τ with intervals (``pearson``, ``pearson_low`` …), ``note`` where it does not exist.

    A block with fewer than three different bridges is left out. The chains of one bridge are one group of the bootstrap. A measure of the source head is compared among the checkpoints with
    the most common number of source classes; ``source_classes`` is that number.
    """
    rows = []
    for key, block in table.groupby([*BLOCK, "way"], sort=False):
        if block["bridge"].nunique() < 3:
            continue
        for name, (shown, head) in MEASURES.items():
            if name not in block:
                continue
            own = block[block[name].notna()]
            common = None
            if head and len(own):
                common = int(own["source_classes"].mode().iloc[0])
                own = own[own["source_classes"] == common]
            row = dict(zip([*BLOCK, "way"], key, strict=True)) | {"measure": shown, "n": len(own), "n_groups": own["bridge"].nunique(),
                                                                  "n_all": len(block), "source_classes": common, "note": ""}
            try:
                found = transferability.agreement(own[name], own["auc"], groups=own["bridge"], level=level, n_resamples=n_resamples, seed=seed)
            except MstlError as absent:
                rows.append(row | {"note": str(absent)})
                continue
            for field in ("pearson", "kendall", "weighted_kendall"):
                one = getattr(found, field)
                row |= {field: one.estimate, f"{field}_low": one.low, f"{field}_high": one.high, "note": one.note}
            rows.append(row)
    columns = [f"{c}{end}" for c in ("pearson", "kendall", "weighted_kendall") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows).reindex(columns=[*BLOCK, "way", "measure", "n", "n_groups", "n_all", "source_classes", *columns, "note"])


def ceilings(table: pd.DataFrame, *, averaged: bool = False, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """The best Kendall τ that noise between chains leaves to a measure that knows every bridge's true worth and nothing of a chain, one
    row a target, backbone and way; of bridges that all chains have, where there are at least three. A measure that looks at each
    chain's own network may exceed it. ``averaged``: for means over all chains, not for single ones. ``note`` says where it does not exist."""
    rows = []
    for key, block in table.groupby([*BLOCK, "way"], sort=False):
        wide = block[block["bridge"] != ""].pivot_table(index="bridge", columns="seed", values="auc").dropna()
        if len(wide) < 3:
            continue
        row = dict(zip([*BLOCK, "way"], key, strict=True)) | {"bridges": len(wide), "chains": wide.shape[1], "note": ""}
        try:
            found = transferability.reliability_ceiling(wide.to_numpy(), averaged=wide.shape[1] if averaged else 1, common_seeds=True, level=level, seed=seed)
        except MstlError as absent:
            rows.append(row | {"note": str(absent)})
            continue
        rows.append(row | {"between": found.between, "within": found.within, "reliability": found.reliability.estimate,
                           "kendall": found.kendall.estimate, "kendall_low": found.kendall.low, "kendall_high": found.kendall.high,
                           "note": found.kendall.note})
    return pd.DataFrame(rows, columns=[*BLOCK, "way", "bridges", "chains", "between", "within", "reliability", "kendall", "kendall_low",
                                       "kendall_high", "note"])


def answer(found: pd.DataFrame, *, measures: Sequence[str] = ("LEEP", "NCE", "H-score"), simulated: bool = False) -> str:
    """The agreement of the named measures with performance in words of a fixed form, generated from the numbers alone."""
    known = found[found["measure"].isin(measures) & found["kendall"].notna()]
    own = known[known["n_groups"] >= ENOUGH]
    if own.empty:
        most = f"at most {known['n_groups'].max()} independent bridges" if len(known) else "too few checkpoints"
        return f"With {most}, where {ENOUGH} are the least, this page cannot say how the measures follow performance."
    clear = own[own["kendall_low"] > 0]
    wrong = own[own["kendall_high"] < 0]
    images = "simulated images (which check the machinery, not the claim)" if simulated else "real images"
    low, high = own["kendall"].min(), own["kendall"].max()
    held = list(dict.fromkeys(own["measure"]))
    way = {"linear probe": "the AUC of a linear probe", "fine-tuning": "the AUC after fine-tuning"}
    what = way.get(own["way"].iloc[0], "the AUC reached") if own["way"].nunique() == 1 else "the AUC reached"
    text = (f"On {images}, Kendall's τ between {_either(held)} and {what} ran from {low:+.2f} to {high:+.2f} over "
            f"{len(own)} comparisons of {own['n'].min()}" + (f" to {own['n'].max()}" if own["n"].max() > own["n"].min() else "") + " checkpoints: "
            f"its interval lay above zero in {len(clear)} of them" + (f" and below zero in {len(wrong)}" if len(wrong) else "") + ".")
    few = known[(known["n_groups"] < ENOUGH) & ~known["measure"].isin(held)]
    if len(few):
        text += (f" {_either(list(dict.fromkeys(few['measure'])), 'and')} could be compared over at most {few['n_groups'].max()} "
                 f"independent bridges, where {ENOUGH} are the least.")
    return text.replace("-", "−").replace("H−score", "H-score")


def _either(names: Sequence[str], word: str = "or") -> str:
    """"A, B or C"; a measure that is a common noun gets its article."""
    named = [f"the {name}" if name == "H-score" else name for name in names]
    return f" {word} ".join(filter(None, [", ".join(named[:-1]), named[-1]]))


def by_three(level_r: float = 0.95) -> dict[str, float]:
    """What a correlation over three arms is worth: the two-sided p-value of r = ``level_r`` at n = 3 (t with one degree of freedom),
    and the r that n = 3 needs for p = 0.05."""
    from scipy import stats

    t = level_r / np.sqrt(1 - level_r**2)
    needed = stats.t.ppf(0.975, 1)
    return {"p_value": float(2 * stats.t.sf(t, 1)), "needed": float(needed / np.sqrt(1 + needed**2))}


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`checkpoints` with the measures of a source head only where it has the most common number of classes."""
    out = table.copy()
    for name, (_, head) in MEASURES.items():
        if head and name in out:
            for _, block in table[table[name].notna()].groupby([*BLOCK, "way"]):
                common = block["source_classes"].mode().iloc[0]
                out.loc[block.index[block["source_classes"] != common], name] = np.nan
    return out


def panels(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """With a column ``label`` for figures: the target's title, with what differs besides (backbone, way)."""
    name = rows["target"].map(lambda t: titles.get(t, t) or t)
    for column in ("backbone", "way"):
        if rows[column].nunique() > 1:
            name = name + ", " + rows[column]
    return rows.assign(label=name)


def tidy(found: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`agreements` to look at."""
    def text(row, field: str) -> str:
        value, low, high = (getattr(row, f"{field}{end}") for end in ("", "_low", "_high"))
        return "does not exist" if value is None or pd.isna(value) else f"{value:+.2f} ({low:+.2f} to {high:+.2f})".replace("-", "−")

    out = found[[*BLOCK, "way", "measure"]].copy()
    for field, shown in (("pearson", "Pearson's r"), ("kendall", "Kendall's τ"), ("weighted_kendall", "weighted τ")):
        out[shown] = [text(row, field) for row in found.itertuples()]
    out["checkpoints"] = [f"{r.n}" if r.n == r.n_all else f"{r.n} of {r.n_all}" for r in found.itertuples()]
    out["bridges"] = [f"{n}" if n >= ENOUGH else f"{n} (too few)" for n in found["n_groups"]]
    out["target"] = panels(found, {})["label"]
    return out.set_index(["target", "measure"])[["Pearson's r", "Kendall's τ", "weighted τ", "checkpoints", "bridges"]]


def hops(places: Iterable[str | os.PathLike], learned: pd.DataFrame) -> pd.DataFrame:
    """The hop from the source to the bridge to look at: what the measures said of the source network on each bridge's images
    (``first_hop.csv`` of the first-hop stage, folders or files), beside the accuracy that the bridge then reached on held-out groups
    and that of guessing, from the table of ``ablation.learned``; "—" where it is not known."""
    files = [Path(place) / "first_hop.csv" if Path(place).is_dir() else Path(place) for place in places]
    table = pd.concat([pd.read_csv(file) for file in files], ignore_index=True) if files else pd.DataFrame(columns=["backbone", "bridge", *MEASURES])
    table = table.merge(learned[["backbone", "bridge", "accuracy", "chance"]], on=["backbone", "bridge"], how="left")
    out = table[["backbone", "bridge"]].copy()
    for name, (shown, _) in MEASURES.items():
        out[shown] = ["—" if pd.isna(value) else f"{value:.3g}" for value in table[name]]
    for name, shown in (("accuracy", "accuracy reached"), ("chance", "chance")):
        out[shown] = ["—" if pd.isna(value) else f"{value:.1%}" for value in table[name]]
    return out.set_index(["backbone", "bridge"])


def bridge_means(table: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`checkpoints` with one row a bridge, the mean over its chains, of the bridges that all chains have: their
    noise is smaller than that of single chains, and the ceiling higher. A measure that is missing in any chain is missing."""
    names = [name for name in MEASURES if name in table]
    own = table[table["bridge"] != ""]
    groups = own.groupby([*BLOCK, "way", "source", "bridge"], sort=False, dropna=False)
    out = groups[["auc", "source_classes", *names]].mean()
    out[names] = out[names].where(groups[names].count().eq(groups.size(), axis=0))
    out["chains"] = groups.size()
    most = out.groupby([*BLOCK, "way"], sort=False)["chains"].transform("max")
    return out[out["chains"] == most].reset_index()


def families(names: Iterable[str], bridges: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """What each bridge is made of, for the colours of a figure: its data set and its control. ``bridges``: the study's bridges by
    name; a bridge that is not among them is its own family."""
    words = {"labels": ", labels shuffled", "statistics": ", statistics only"}
    return {name: f"{bridges[name].get('data', name)}{words.get(str(bridges[name].get('control', '')), '')}" if name in bridges else name
            for name in names}


def tidy_ceilings(rows: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`ceilings` to look at."""
    out = rows[["target", "backbone", "way", "bridges", "chains"]].copy()
    out["SD between bridges"] = [f"{v:.4f}" if pd.notna(v) else "" for v in rows["between"]]
    out["SD between chains"] = [f"{v:.4f}" if pd.notna(v) else "" for v in rows["within"]]
    out["Kendall's τ of a measure that knows only the bridge"] = [f"{r.kendall:.2f} ({r.kendall_low:.2f} to {r.kendall_high:.2f})" if pd.notna(r.kendall) else r.note
                                           for r in rows.itertuples()]
    out["target"] = panels(rows, {})["label"]
    return out.set_index("target").drop(columns=["backbone", "way"])


def numbers(found: pd.DataFrame, limits: pd.DataFrame) -> dict[str, float | int]:
    """Every figure under a name that prose can call: ``tau_<target>_<measure>`` with ``_low`` and ``_high``, ``r_<target>_<measure>``,
    ``n_<target>_<measure>``, ``ceiling_<target>``, of the first backbone; fine-tuning ends in ``_tuned``."""
    out: dict[str, float | int] = {}
    first = found["backbone"].iloc[0] if len(found) else ""
    column = {shown: name for name, (shown, _) in MEASURES.items()}
    for row in found[(found["backbone"] == first) & found["kendall"].notna()].itertuples():
        stem = f"{row.target}_{column[row.measure]}" + ("_tuned" if row.way == "fine-tuning" else "")
        out |= {f"tau_{stem}": float(row.kendall), f"tau_{stem}_low": float(row.kendall_low), f"tau_{stem}_high": float(row.kendall_high),
                f"r_{stem}": float(row.pearson), f"n_{stem}": int(row.n)}
    if "kendall" in limits:
        for row in limits[(limits["backbone"] == first) & limits["kendall"].notna()].itertuples():
            out[f"ceiling_{row.target}" + ("_tuned" if row.way == "fine-tuning" else "")] = float(row.kendall)
    return out
