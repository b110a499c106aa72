"""Ablations of the bridge: what each bridge adds to the same images, folds and chains, against another bridge or none.

In these tables a *model* is what it was started from: ``ctl`` (the source network), or the name of the bridge. Every figure is the
mean over chains and folds of a difference in AUC within a fold, with the interval of ``mstl.metrics.paired.chain_difference``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mstl import predictions
from mstl.errors import MstlError
from mstl.metrics import paired

BLOCK = ["target", "variant", "backbone"]
_COUNTS = ["n_images", "n_groups", "n_chains", "n_folds"]


def read(places: Iterable[str | os.PathLike], *, rename: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The predictions of runs or files as one checked table whose ``model`` is ``ctl``, ``scratch`` or the bridge.

    ``rename`` {variant: model}: runs of that variant are a model of the plain comparison under this name, for example ctl with
    the bridge's steps spent on the target.
    """
    tables = []
    for place in places:
        table = predictions.read(place)
        table["model"] = np.where((table["arm"] == "mstl") & (table["bridge"] != ""), table["bridge"], table["arm"].where(table["arm"] != "", table["model"]))
        for variant, model in (rename or {}).items():
            own = table["variant"] == variant
            table.loc[own, "model"], table.loc[own, "variant"] = model, ""
        tables.append(table)
    return predictions.join(tables)


def effects(table: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """The difference a − b in AUC for each pair (a, b) of models, in every block that has both: one row a block and pair.

    Columns: target, variant, backbone, a, b, estimate, low, high, p, mean_a, mean_b, n_train, counts, note. Chains that only one
    of the two has are left out. Raises MstlError when two models of a pair do not cover the same test images.
    """
    rows = []
    test = table[table["split"] == "test"]
    for key, block in test.groupby(BLOCK, sort=False):
        names = predictions.classes(block)
        order = {name: index for index, name in enumerate(names)}
        models = {model: part for model, part in block.groupby("model", sort=False)}
        for a, b in pairs:
            if a not in models or b not in models:
                continue
            both = _together(models[a], models[b], names, (a, b, *key))
            result = paired.chain_difference(both["y_true"].map(order).to_numpy(), _score(both, names, "_a"), _score(both, names, "_b"),
                                             seed=both["seed"].to_numpy(), fold=both["fold"].to_numpy(), group=both["group"].to_numpy(),
                                             level=level, n_resamples=n_resamples, random_seed=seed)
            rows.append(dict(zip(BLOCK, key, strict=True)) | {"a": a, "b": b, "estimate": result.difference, "low": result.low,
                        "high": result.high, "p": result.p_value, "mean_a": result.mean_a, "mean_b": result.mean_b,
                        "n_train": int(both["n_train"].median())} | {c: getattr(result, c) for c in _COUNTS} | {"note": result.note})
    columns = [*BLOCK, "a", "b", "estimate", "low", "high", "p", "mean_a", "mean_b", "n_train", *_COUNTS, "note"]
    return pd.DataFrame(rows, columns=columns)


def _together(a: pd.DataFrame, b: pd.DataFrame, names: Sequence[str], what: tuple[str, ...]) -> pd.DataFrame:
    chains = set(a["seed"]) & set(b["seed"])
    keys = ["seed", "fold", "image_id"]
    p = [f"p_{name}" for name in names]
    left, right = a[a["seed"].isin(chains)], b.loc[b["seed"].isin(chains), keys + p]
    both = left.merge(right, on=keys, suffixes=("_a", "_b"), validate="one_to_one")
    if not len(both) or len(both) != len(left) or len(both) != len(right):
        raise MstlError(f"{what[0]} and {what[1]} do not cover the same images of {what[2] or 'the target'} in the same chains and folds "
                        f"({len(left)} and {len(right)} test rows): run both on the same target.")
    return both.sort_values(keys, kind="stable")


def _score(rows: pd.DataFrame, names: Sequence[str], end: str) -> np.ndarray:
    values = rows[[f"p_{name}{end}" for name in names]].to_numpy(float)
    return values[:, -1] if len(names) == 2 else values


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


def way(variant: str) -> str:
    """How a network was used, from the variant of its runs."""
    return "linear probe" if variant.startswith("probe") else "fine-tuning"


def verdict(row: Any, margin: float) -> str:
    """One difference in words of a fixed form: "higher", "lower", "equivalent within ± margin" or "no difference shown"."""
    if row.low is None or pd.isna(row.low):
        return "no interval exists"
    if row.low > 0 or row.high < 0:
        return "higher" if row.low > 0 else "lower"
    return f"equivalent within ± {margin:g}" if -margin < row.low and row.high < margin else "no difference shown"


def sentence(rows: pd.DataFrame, titles: Mapping[str, str], *, margin: float = 0.02) -> str:
    """Differences, one a target, each with its interval and verdict."""
    parts = [f"{titles.get(r.target, r.target) or r.target}: {r.estimate:+.3f} ({r.low:+.3f} to {r.high:+.3f}), {verdict(r, margin)}"
             if r.low is not None and pd.notna(r.low) else f"{titles.get(r.target, r.target)}: {r.estimate:+.3f}, no interval exists"
             for r in rows.itertuples()]
    return "; ".join(parts).replace("-0", "−0")


def tidy(rows: pd.DataFrame, *, margin: float = 0.02) -> pd.DataFrame:
    """The table of :func:`effects` to look at."""
    out = rows[["target", "backbone", "a", "b"]].copy()
    out["used by"] = rows["variant"].map(way)
    out["difference (interval)"] = [f"{r.estimate:+.3f} ({r.low:+.3f} to {r.high:+.3f})".replace("-", "−") if pd.notna(r.low) else f"{r.estimate:+.3f}"
                                    for r in rows.itertuples()]
    out["reading"] = [verdict(r, margin) for r in rows.itertuples()]
    out["images"], out["chains"] = rows["n_images"], rows["n_chains"]
    keep = ["target", *(["backbone"] if rows["backbone"].nunique() > 1 else []), "used by", "a", "b"]
    return out.set_index(keep)[["difference (interval)", "reading", "images", "chains"]]


def tidy_sizes(rows: pd.DataFrame, *, margin: float = 0.02) -> pd.DataFrame:
    """The effects of an atlas to look at, one row a target, way, bridge and size."""
    out = tidy(rows, margin=margin).reset_index()
    out.insert(len(out.columns) - 4, "training images", rows["n_train"].to_numpy())
    keep = [c for c in ("target", "backbone", "used by", "a", "training images") if c in out]
    return out.set_index(keep)[["difference (interval)", "reading", "images", "chains"]].rename_axis(index={"a": "bridge"})


def along(rows: pd.DataFrame, parts: pd.DataFrame, full: str) -> pd.DataFrame:
    """Effects with the share of the bridge that each stands for, the whole bridge at the end of every curve: with the columns
    ``kind``, ``share``, ``steps`` of :func:`curve`."""
    lines = parts[["kind", "steps"]].drop_duplicates().assign(bridge=full, share=1.0)
    every = pd.concat([parts, lines], ignore_index=True)
    return rows.merge(every.rename(columns={"bridge": "a"}), on="a")


def tally(rows: pd.DataFrame, *, margin: float = 0.02, smallest: str = "") -> str:
    """How many of the differences were higher, lower, equivalent or open, in words of a fixed form, a sentence a way to use the
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
    kinds = {"higher": "higher", "lower": "lower", f"equivalent within ± {margin:g}": f"equivalent within ± {margin:g}", "no difference shown": "open",
             "no interval exists": "without an interval"}
    counts = [f"{said.count(word)} {shown}" for word, shown in kinds.items() if said.count(word)]
    return f"of {len(said)} differences in AUC, {', '.join(counts)}"


def numbers(rows: pd.DataFrame, against: str) -> dict[str, float]:
    """Every difference under a name that prose can call: ``diff_<target>_<a>`` (and ``_vs_<b>`` where ``against`` is empty), with
    ``_low`` and ``_high``; fine-tuning ends in ``_tuned``. Plain runs of the first backbone."""
    out: dict[str, float] = {}
    rows = rows[rows["variant"].isin(["", "probe"])]
    for row in rows[rows["backbone"] == (rows["backbone"].iloc[0] if len(rows) else "")].itertuples():
        stem = f"diff_{row.target}_{row.a}" + ("" if against else f"_vs_{row.b}") + ("_tuned" if way(row.variant) == "fine-tuning" else "")
        if row.low is not None and pd.notna(row.low):
            out |= {stem: float(row.estimate), f"{stem}_low": float(row.low), f"{stem}_high": float(row.high)}
    return out
