"""Ablations of the bridge: what each bridge adds to the same images, folds and chains, against another bridge or none.

In these tables a *model* is what it was started from: ``ctl`` (the source network), or the name of the bridge. Every figure is the
mean over chains and folds of a difference in AUC within a fold, with the interval of :func:`mstl.comparison.differences`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mstl import comparison, predictions
from mstl.comparison import BLOCK
from mstl.errors import MstlError
from mstl.study import RECORD

_SHORT = {"a difference is not shown": "not shown", "no interval exists": "without an interval"}
_COUNTS = ["n_images", "n_groups", "n_chains", "n_folds"]


def read(places: Iterable[str | os.PathLike], *, rename: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The predictions of runs or files as one checked table whose ``model`` is ``ctl``, ``scratch`` or the bridge.

    ``rename`` {variant: model}: runs of that variant are a model of the plain comparison under this name, for example ctl with
    the bridge's steps spent on the target.
    """

    def named(table: pd.DataFrame) -> pd.DataFrame:
        table["model"] = np.where((table["arm"] == "mstl") & (table["bridge"] != ""), table["bridge"], table["arm"].where(table["arm"] != "", table["model"]))
        for variant, model in (rename or {}).items():
            own = table["variant"] == variant
            table.loc[own, "model"], table.loc[own, "variant"] = model, ""
        return table

    return predictions.read(places, each=named)


def effects(table: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """The difference a − b in AUC for each pair (a, b) of models, in every block that has both: one row a block and pair.

    Columns: target, variant, backbone, a, b, estimate, low, high, p, mean_a, mean_b, n_train, counts, note. Chains that only one
    of the two has are left out. Raises MstlError when two models of a pair do not cover the same test images.
    """
    columns = [*BLOCK, "a", "b", "estimate", "low", "high", "p", "mean_a", "mean_b", "n_train", *_COUNTS, "note"]
    test = table[(table["split"] == "test") & table["model"].isin({name for pair in pairs for name in pair})]
    run = [block for _, block in test.groupby(BLOCK, sort=False) if any(set(pair) <= set(block["model"].unique()) for pair in pairs)]
    if not run:
        return pd.DataFrame(columns=columns)
    rows = comparison.differences(pd.concat(run), pairs=pairs, level=level, n_resamples=n_resamples, seed=seed)
    sizes = test.groupby([*BLOCK, "model"], sort=False)["n_train"].median().astype(int).rename("n_train").reset_index()
    return rows.merge(sizes, on=[*BLOCK, "model"]).rename(columns={"model": "a", "reference": "b"})[columns]


def curve(bridges: Mapping[str, Mapping[str, Any]], full: str) -> pd.DataFrame:
    """The bridges that are ``full`` with fewer images of every line, or with fewer lines: one row each of ``bridge``, ``kind``
    ("images of every line" or "lines"), ``share``, ``steps`` ("equal steps" or "equal epochs") and ``draw``.

    ``bridges``: the study's bridges by name, with the keys that differ from the defaults. A bridge counts as one of equal steps
    when its recipe fixes ``steps``.
    """
    if full not in bridges:
        raise MstlError(f"The bridge '{full}' is not one of the study ({', '.join(bridges)}): name the bridge that the others are parts of.")
    plain = {"images", "lines", "recipe", "draw"}
    same = {k: v for k, v in bridges[full].items() if k not in plain}
    rows = []
    for name, keys in bridges.items():
        if {k: v for k, v in keys.items() if k not in plain} != same or name == full:
            continue
        kind = [k for k in ("images", "lines") if keys.get(k, 1) < 1]
        if len(kind) == 1:
            rows.append({"bridge": name, "kind": {"images": "images of every line", "lines": "lines"}[kind[0]], "share": keys[kind[0]],
                         "steps": "equal steps" if keys.get("recipe", {}).get("steps") else "equal epochs", "draw": keys.get("draw", 0)})
    if not rows:
        raise MstlError(f"No bridge of the study is a part of '{full}': add bridges with images or lines below 1.")
    return pd.DataFrame(rows).sort_values(["kind", "steps", "share"], ignore_index=True)


def shown(table: pd.DataFrame, names: Sequence[str], *, always: Iterable[str] = ()) -> list[str]:
    """The bridges of a figure: those of ``names`` that the table has (the first six where it has none), then those of ``always``."""
    known = [name for name in table["model"].unique() if name not in ("ctl", "scratch")]
    chosen = [name for name in names if name in known] or known[:6]
    return [name for name in dict.fromkeys([*chosen, *always]) if name in known]


def learned(places: Iterable[str | os.PathLike]) -> pd.DataFrame:
    """How well each bridge network learnt its own task: one row a backbone and bridge behind the runs of ``places``.

    Read from the records of the bridge stage that lie beside those runs: ``images`` it was trained on, ``held_out`` images of whole
    groups that it never saw, ``chance`` (accuracy of guessing), and over the chains the mean ``accuracy`` on the held-out images with
    its ``least`` and ``most``; NaN where no weight was trained or no group could be held out. Where each chain has its own draw,
    ``images`` and ``held_out`` are those of the last one. Empty for tables without such records.
    """
    rows = {}
    for place in map(Path, places):
        folder = place if place.is_dir() else place.parent
        for parent in said(folder).get("parents", []):
            own, of = (said(folder.parent.parent / parent, name) for name in ("metrics.json", RECORD))
            if not parent.startswith("20_bridge/") or parent in rows or "accuracy" not in own:
                continue
            reached = np.array([np.nan if v is None else v for v in own["accuracy"].values()], dtype=float)
            known = np.isfinite(reached).any()
            rows[parent] = {"backbone": of["parameters"]["backbone"], "bridge": of["parameters"]["bridge"], "images": own["images"],
                            "held_out": own["held_out"], "chance": own["chance"],
                            **{name: float(f(reached)) if known else np.nan
                               for name, f in (("accuracy", np.nanmean), ("least", np.nanmin), ("most", np.nanmax))}}
    return pd.DataFrame(rows.values(), columns=["backbone", "bridge", "images", "held_out", "chance", "accuracy", "least", "most"])


def said(place: Path, name: str = RECORD) -> dict[str, Any]:
    """What the record (or another JSON file) of a run says, of its folder or of a table in it; nothing where there is none."""
    file = place / name if place.is_dir() else place.with_name(name)
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def tidy_learned(rows: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`learned` to look at."""
    out = rows[["backbone", "bridge"]].copy()
    out["accuracy, held-out groups"] = [f"{r.accuracy:.1%} ({r.least:.1%} to {r.most:.1%})" if np.isfinite(r.accuracy) else "not known"
                                        for r in rows.itertuples()]
    out["chance"] = rows["chance"].map("{:.1%}".format)
    out["images"], out["held out"] = rows["images"], rows["held_out"]
    return out.set_index(["backbone", "bridge"] if out["backbone"].nunique() > 1 else "bridge")[["accuracy, held-out groups", "chance", "images", "held out"]]


def way(variant: str) -> str:
    """How a network was used, from the variant of its runs."""
    return "linear probe" if variant.startswith("probe") else "fine-tuning"


def verdict(row: Any, margin: float) -> str:
    """One difference in words of the fixed form of :func:`mstl.comparison.verdict`; ablations belong to no family of tests."""
    return comparison.verdict(row, margin, exploratory=True)


def sentence(rows: pd.DataFrame, titles: Mapping[str, str], *, margin: float = 0.02) -> str:
    """Differences, one a target, each with its interval and verdict."""
    return "; ".join(f"{titles.get(r.target, r.target) or r.target}: {difference}, {verdict(r, margin)}"
                     for r, difference in zip(rows.itertuples(), comparison.intervals(rows, sign="+"), strict=True))


def tidy(rows: pd.DataFrame, *, margin: float = 0.02) -> pd.DataFrame:
    """The table of :func:`effects` to look at."""
    out = rows[["target", "backbone", "a", "b"]].copy()
    out["used by"] = rows["variant"].map(way)
    out["difference (interval)"] = comparison.intervals(rows, sign="+")
    out["reading"] = [_SHORT.get(said := verdict(r, margin), said) for r in rows.itertuples()]
    out["images"], out["chains"] = rows["n_images"], rows["n_chains"]
    keep = ["target", *(c for c in ("backbone", "used by") if out[c].nunique() > 1), "a", "b"]
    return out.set_index(keep)[["difference (interval)", "reading", "images", "chains"]]


def tidy_sizes(rows: pd.DataFrame, *, margin: float = 0.02) -> pd.DataFrame:
    """The effects of an atlas to look at, one row a target, way, bridge and size."""
    out = tidy(rows, margin=margin).reset_index()
    out.insert(len(out.columns) - 4, "training images", rows["n_train"].to_numpy())
    keep = [c for c in ("target", "backbone", "used by", "a", "training images") if c in out]
    return out.set_index(keep)[["difference (interval)", "reading", "images", "chains"]].rename_axis(index={"a": "bridge"})


def along(rows: pd.DataFrame, parts: pd.DataFrame, full: str) -> pd.DataFrame:
    """Effects with the share of the bridge that each stands for, the whole bridge at the end of every curve: with the columns
    ``kind``, ``share``, ``steps`` of :func:`curve`. A curve without any part of the bridge is left out."""
    lines = parts[["kind", "steps"]].drop_duplicates().assign(bridge=full, share=1.0)
    every = pd.concat([parts, lines], ignore_index=True).rename(columns={"bridge": "a"})
    return rows.merge(every, on="a").groupby([*BLOCK, "kind", "steps"], sort=False).filter(lambda line: (line["a"] != full).any()).reset_index(drop=True)


def tally(rows: pd.DataFrame, *, margin: float = 0.02, smallest: str = "") -> str:
    """How many of the differences were higher, lower, equivalent or not shown, in words of a fixed form, a sentence a way to use the
    network; ``comparison``, where there is such a column, is told apart. ``smallest`` names a column whose least value gets a sentence."""
    if rows.empty:
        return "No pair of this comparison was run."
    words = []
    kinds = rows["comparison"] if "comparison" in rows else pd.Series("", index=rows.index)
    for (kind, used), part in rows.groupby([kinds, rows["variant"].map(way)], sort=False):
        words.append(f"{', '.join(x for x in (kind, used) if x)}: {_counts(part, margin)}")
    text = "; ".join(words)
    if smallest and rows[smallest].nunique() > 1:
        least = rows[rows[smallest] == rows[smallest].min()]
        text += f"; with {int(rows[smallest].min())} training images: {_counts(least, margin)}"
    return text[0].upper() + text[1:] + "."


def _counts(part: pd.DataFrame, margin: float) -> str:
    said = [verdict(r, margin) for r in part.itertuples()]
    order = ["higher", "lower", f"equivalent within ± {margin:g}", *_SHORT]
    counts = [f"{said.count(word)} {_SHORT.get(word, word)}" for word in order if said.count(word)]
    return f"of {len(said)} differences in AUC, {', '.join(counts)}"


def numbers(rows: pd.DataFrame, against: str) -> dict[str, float]:
    """Every difference under a name that prose can call: ``diff_<target>_<a>`` (and ``_vs_<b>`` where ``against`` is empty), with
    ``_low`` and ``_high``; fine-tuning ends in ``_tuned``, a probe with renewed statistics in ``_adapted``. Plain runs of the first backbone."""
    out: dict[str, float] = {}
    endings = {"": "_tuned", "probe": "", "probe_adapted": "_adapted"}
    rows = rows[rows["variant"].isin(endings)]
    for row in rows[rows["backbone"] == (rows["backbone"].iloc[0] if len(rows) else "")].itertuples():
        stem = f"diff_{row.target}_{row.a}" + ("" if against else f"_vs_{row.b}") + endings[row.variant]
        if row.low is not None and pd.notna(row.low):
            out |= {stem: float(row.estimate), f"{stem}_low": float(row.low), f"{stem}_high": float(row.high)}
    return out
