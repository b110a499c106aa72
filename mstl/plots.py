"""Figures of the book: one palette for the arms everywhere, axis labels with units, readable in grey.

Every function takes tables or image sets and returns a :class:`matplotlib.figure.Figure`; none reads or writes files.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

if TYPE_CHECKING:
    from mstl.datasets.imageset import ImageSet

#: Colour and marker of each arm: distinct in hue, in lightness (so also in grey) and in shape.
ARMS = {"scratch": "#8c8c8c", "ctl": "#e69f00", "mstl": "#0072b2"}
MARKERS = {"scratch": "s", "ctl": "D", "mstl": "o"}
_OTHERS = ["#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#332288", "#117733", "#882255"]


def style() -> None:
    """Set the book's figure style (call once, after the imports of a notebook)."""
    sns.set_theme(context="notebook", style="ticks", rc={
        "axes.spines.right": False, "axes.spines.top": False, "figure.dpi": 110, "savefig.bbox": "tight",
        "axes.titlesize": "medium", "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
        "figure.constrained_layout.use": True,
    })
    pd.set_option("display.max_rows", 200)  # a table of the book is shown whole


def subplots(*args, **kwargs):
    """As of pyplot, but the figure is already closed there: a notebook shows it where a cell says so, and not once more at the cell's end."""
    figure, axes = plt.subplots(*args, **kwargs)
    plt.close(figure)
    return figure, axes


def palette(names: Sequence[str]) -> dict[str, str]:
    """Colour of each compared model: the arms keep theirs, other names take the next free colour in order."""
    others = iter(_OTHERS * (1 + len(names) // len(_OTHERS)))
    return {name: ARMS.get(name) or next(others) for name in names}


def _marker(name: str) -> str:
    return MARKERS.get(name, "^")


def markers(names: Sequence[str]) -> dict[str, str]:
    """Marker of each compared model: the arms keep theirs, other names take the next free one in order."""
    others = iter("^vPXo*sD" * (1 + len(names) // 8))
    return {name: MARKERS.get(name) or next(others) for name in names}


def _titled(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def contact_sheet(sets: Mapping[str, ImageSet], *, per_set: int = 8, seed: int = 0) -> Figure:
    """One row of examples a set, classes in turn, each from another group; simulated sets say so in their row title."""
    figure, axes = subplots(len(sets), per_set, figsize=(1.25 * per_set, 1.55 * len(sets)), squeeze=False)
    for row, (name, data) in zip(axes, sets.items(), strict=True):
        for ax, index in zip(row, _examples(data, per_set, seed), strict=False):
            image = np.asarray(data.images[index])
            ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
            ax.set_title(_titled(data.classes[int(data.labels[index])], 14), fontsize=7, fontweight="normal", loc="center", pad=2)
        for ax in row:
            ax.set_axis_off()
        label = f"{name}\n(simulated)" if data.card.simulated and "simulated" not in name else name
        row[0].text(-0.12, 0.5, _titled(label, 16) if "\n" not in label else label, transform=row[0].transAxes, rotation=90,
                    ha="right", va="center", fontsize=8)
    return figure


def _examples(data: ImageSet, count: int, seed: int) -> list[int]:
    """Rows that show the classes in turn, a new group each time while there are any."""
    order = np.random.default_rng(seed).permutation(len(data))
    queues = [[int(i) for i in order if data.labels[i] == label] for label in range(len(data.classes))]
    queues = [queue for queue in queues if queue]
    chosen, seen = [], set()
    for turn in range(min(count, len(data))):
        queue = queues[turn % len(queues)] or max(queues, key=len)
        fresh = next((i for i in queue if data.groups[i] not in seen), queue[0])
        queue.remove(fresh)
        seen.add(data.groups[fresh])
        chosen.append(fresh)
    return chosen


def examinations(data: ImageSet, pairs: ImageSet, views: Sequence[str], *, count: int = 4, aspect: float = 1.0, seed: int = 0) -> Figure:
    """Both views of a few cases side by side, classes in turn, with the boxes of ``data`` (one row an image) outlined.

    ``pairs`` has a row a case, its id the case of ``data``; ``aspect`` is height over width of the originals.
    """
    figure, axes = subplots(1, 2 * count, figsize=(1.15 * 2 * count, 1.15 * max(1.0, aspect * 0.8) + 0.6), squeeze=False)
    row_of = {(case, view): row for row, (case, view) in enumerate(zip(data.cases, data.views, strict=True))}
    for number, index in enumerate(_examples(pairs, count, seed)):
        for ax, view in zip(axes[0, 2 * number:], views, strict=False):
            row = row_of[pairs.ids[index], view]
            ax.imshow(data.images[row, ..., 0], cmap="gray", vmin=0, vmax=255, aspect=aspect)
            for box in data.boxes[data.boxes["image"] == row].itertuples() if data.boxes is not None else ():
                ax.add_patch(plt.Rectangle((box.x0 - 0.5, box.y0 - 0.5), box.x1 - box.x0, box.y1 - box.y0, fill=False, ec="#e69f00", lw=1))
            ax.set_title(f"{pairs.classes[int(pairs.labels[index])]},\n{view}", fontsize=7, fontweight="normal", loc="center", pad=2)
    for ax in axes[0]:
        ax.set_axis_off()
    if data.card.simulated:
        figure.suptitle("simulated", fontsize=8, x=0.01, ha="left")
    return figure


def histories(table: pd.DataFrame, *, monitor: str = "auc") -> Figure:
    """Training loss (left) and the validation measure (right) against optimiser steps, one line a fit.

    ``table`` has columns ``step``, ``train_loss``, ``val_<monitor>`` and ``seed``, ``fold`` (those that are absent are left out).
    """
    keys = [k for k in ("seed", "fold") if k in table]
    panels = [c for c in ("train_loss", f"val_{monitor}") if c in table and table[c].notna().any()]
    labels = {"train_loss": "training loss (nats)", "val_auc": "AUC, validation", "val_loss": "validation loss (nats)",
              "val_accuracy": "accuracy, validation"}
    figure, axes = subplots(1, len(panels), figsize=(4.6 * len(panels), 3.0), squeeze=False)
    seeds = sorted(table["seed"].unique()) if "seed" in table else [0]
    colours = dict(zip(seeds, sns.color_palette("crest", len(seeds)), strict=True))
    for ax, column in zip(axes[0], panels, strict=True):
        for key, part in table.groupby(keys) if keys else [((0,), table)]:
            ax.plot(part["step"], part[column], color=colours.get(key[0], "C0"), lw=1.2, alpha=0.8, marker=".", ms=4)
        ax.set(xlabel="optimiser steps", ylabel=labels.get(column, column))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    handles = [plt.Line2D([], [], color=colours[s], label=f"chain {s}") for s in seeds]
    axes[0][-1].legend(handles=handles, fontsize=8, loc="best")
    return figure


def cells(table: pd.DataFrame, *, value: str = "auc", label: str = "AUC, test") -> Figure:
    """One point a fit (fold × chain) beside its mean: how much folds and chains differ."""
    figure, ax = subplots(figsize=(5.6, 2.8))
    seeds = sorted(table["seed"].unique())
    for position, seed in enumerate(seeds):
        part = table[table["seed"] == seed]
        ax.scatter(part["fold"] + (position - (len(seeds) - 1) / 2) * 0.12, part[value], s=26, label=f"chain {seed}",
                   color=sns.color_palette("crest", len(seeds))[position], marker=["o", "s", "D", "^", "v"][position % 5])
    ax.axhline(table[value].mean(), color="0.4", lw=1, ls="--", label=f"mean {table[value].mean():.3f}")
    ax.set(xlabel="fold", ylabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def forest(table: pd.DataFrame, *, estimate: str = "estimate", low: str = "low", high: str = "high", label: str = "label",
           model: str = "model", xlabel: str = "AUC", reference: float | None = None, margin: float | None = None,
           note: str = "") -> Figure:
    """Estimates with their intervals, one row a label, the models of a label one below another.

    A vertical line marks ``reference`` and a shaded band ``reference ± margin``; the figures stand at the right in text, so
    that the plot can be read without colour.
    """
    labels = list(dict.fromkeys(table[label]))
    models = list(dict.fromkeys(table[model]))
    colours, shapes = palette(models), markers(models)
    step = 0.8 / max(len(models), 1)
    lines = [_titled(name, 30).count("\n") + 1 for name in labels]
    height = max(0.42 * len(table), 0.24 * max(lines) * len(labels)) + 1.1  # no title runs into the next
    columns = min(len(models), max(1, 62 // (max(map(len, models), default=0) + 5)))  # of the legend, which never widens the figure
    height += 0.22 * (-(-len(models) // columns) - 1)
    figure, ax = subplots(figsize=(7.6, height))
    if reference is not None:
        ax.axvline(reference, color="0.25", lw=1)
        if margin:
            ax.axvspan(reference - margin, reference + margin, color="0.92", zorder=0)
    for _, row in table.iterrows():
        y = -labels.index(row[label]) - (models.index(row[model]) - (len(models) - 1) / 2) * step
        if pd.isna(row[estimate]):
            ax.text(1.02, y, "not defined", transform=ax.get_yaxis_transform(), va="center", fontsize=9, family="monospace")
            continue
        between = pd.notna(row[low])
        if between:
            ax.plot([row[low], row[high]], [y, y], color=colours[row[model]], lw=2.2, solid_capstyle="butt")
        ax.plot(row[estimate], y, shapes[row[model]], color=colours[row[model]], ms=7, mec="white", mew=0.8)
        sign, to = ("+", " to ") if reference == 0 else ("", "–")
        text = f"{row[estimate]:{sign}.3f}" + (f" ({row[low]:{sign}.3f}{to}{row[high]:{sign}.3f})" if between else " (no interval)")
        text = text.replace("-", "−")
        ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9, family="monospace")
    ax.set_yticks([-i for i in range(len(labels))], [_titled(name, 30) for name in labels])
    ax.set_ylim(-len(labels) + 0.5, 0.5)
    ax.set_xlabel(xlabel)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    if len(models) > 1:
        handles = [plt.Line2D([], [], color=colours[m], marker=shapes[m], lw=2, label=m) for m in models]
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, fontsize=9, columnspacing=1.2)
    if note:
        figure.text(0.01, -0.02, note, fontsize=8, color="0.35", va="top")
    return figure


# --- the bridges: probes, measures, ablations ---------------------------------------------------------------------------


def probe_dots(table: pd.DataFrame, *, label: str = "AUC of the linear probe, test") -> Figure:
    """One row a network, one faint point a fold and chain, a mark at their mean: ``model``, ``seed``, ``fold``, ``auc``."""
    models = list(dict.fromkeys(table["model"]))
    figure, ax = subplots(figsize=(6.4, 0.3 * len(models) + 1.2))
    for place, model in enumerate(models):
        values = table.loc[table["model"] == model, "auc"].to_numpy()
        colour = palette(["ctl", "mstl"])["ctl" if model == "ctl" else "mstl"]
        ax.scatter(values, np.full(len(values), -place), s=14, color=colour, alpha=0.35, lw=0)
        ax.plot(values.mean(), -place, _marker("ctl" if model == "ctl" else "mstl"), color=colour, ms=7, mec="white", mew=0.8)
    if "ctl" in models:
        ax.axvline(table.loc[table["model"] == "ctl", "auc"].mean(), color="0.4", lw=1, ls="--")
    ax.set_yticks([-i for i in range(len(models))], ["ctl (source network)" if m == "ctl" else m for m in models])
    ax.set_ylim(-len(models) + 0.4, 0.6)
    ax.set_xlabel(label)
    return figure


def measure_scatter(table: pd.DataFrame, measures: Sequence[str], *, note: str = "") -> Figure:
    """Performance against each measure, one row of panels a target: ``label``, ``bridge``, ``family``, ``auc`` and the measures by
    column name; the source network is a filled square, the bridges of a family share a colour and a shape."""
    targets = list(dict.fromkeys(table["label"]))
    kinds = list(dict.fromkeys(table.loc[table["bridge"] != "", "family"]))
    colours = [sns.color_palette("colorblind")[i] for i in (0, 1, 2, 3, 4, 5, 9, 7, 8)]
    looks = {kind: (colours[place % 9], "oD^v<>phd"[(place + place // 9) % 9]) for place, kind in enumerate(kinds)}
    figure, axes = subplots(len(targets), len(measures), figsize=(2.5 * len(measures) + 0.6, 2.3 * len(targets) + 0.5), squeeze=False,
                                sharey="row")
    for row, target in enumerate(targets):
        for column, name in enumerate(measures):
            ax, own = axes[row, column], table[(table["label"] == target) & table[name].notna()]
            for kind in kinds:
                part = own[(own["bridge"] != "") & (own["family"] == kind)]
                ax.scatter(part[name], part["auc"], s=28, marker=looks[kind][1], lw=0.5, color=[looks[kind][0]], edgecolor="white", label=kind)
            plain = own[own["bridge"] == ""]
            ax.scatter(plain[name], plain["auc"], s=46, marker="s", lw=0.6, color="0.1", edgecolor="white", zorder=3, label="the source network")
            ax.locator_params(axis="x", nbins=4)
            ax.ticklabel_format(axis="x", useOffset=False)
            ax.tick_params(labelsize=8)
            if row == len(targets) - 1:
                ax.set_xlabel(MEASURE_AXES.get(name, name), fontsize=9)
            if column == 0:
                ax.set_ylabel(_titled(target, 26) + "\nAUC", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=8)
    if note:
        figure.text(0.01, -0.01, note, fontsize=8, color="0.35", va="top")
    return figure


#: Axis labels of the transferability measures.
MEASURE_AXES = {"leep": "LEEP (nats)", "nce": "NCE (nats)", "h_score": "H-score", "logme": "LogME (nats)", "gbc": "GBC",
                "nleep": "N-LEEP (nats)", "transrate": "TransRate (nats)", "parc": "PARC"}


def agreement_dots(table: pd.DataFrame, *, ceilings: Mapping[str, float] | None = None, note: str = "") -> Figure:
    """Kendall's τ with its interval, one row a measure, one panel a target: ``label``, ``measure``, ``kendall``,
    ``kendall_low``, ``kendall_high``, ``n``; a dotted line marks what a measure reaches that knows the bridge alone."""
    labels = list(dict.fromkeys(table["label"]))
    if not labels:
        return _nothing("Too few checkpoints to compare a measure with performance.")
    measures = list(dict.fromkeys(table["measure"]))
    columns = min(3, len(labels))
    rows = -(-len(labels) // columns)
    figure, axes = subplots(rows, columns, figsize=(2.3 * columns + 1.0, rows * (0.28 * len(measures) + 1.2)), sharey=True, squeeze=False)
    for ax in axes.flat[len(labels):]:
        ax.set_axis_off()
    colour = ARMS["mstl"]
    for ax, name in zip(axes.flat, labels, strict=False):
        ax.axvline(0, color="0.25", lw=1)
        if ceilings and name in ceilings and np.isfinite(ceilings[name]):
            ax.axvline(ceilings[name], color="0.45", lw=1.2, ls=":")
        for row in table[(table["label"] == name) & table["kendall"].notna()].itertuples():
            y = -measures.index(row.measure)
            ax.plot([row.kendall_low, row.kendall_high], [y, y], color=colour, lw=2)
            ax.plot(row.kendall, y, "o", color=colour, ms=6, mec="white", mew=0.8)
        ax.set_title(_titled(name, 26), fontsize=9)
        ax.set(xlim=(-1.05, 1.05))
        ax.set_xlabel("Kendall's τ", fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in axes[:, 0]:
        ax.set_yticks([-i for i in range(len(measures))], measures)
    if note:
        figure.text(0.01, -0.02, note, fontsize=8, color="0.35", va="top")
    return figure


def _nothing(text: str) -> Figure:
    figure, ax = subplots(figsize=(7.4, 0.8))
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes)
    ax.set_axis_off()
    return figure


def share_curves(table: pd.DataFrame, titles: Mapping[str, str], *, margin: float | None = None, note: str = "") -> Figure:
    """The effect of a bridge against the share of it that was used: one row of panels a target and way, one column a kind of
    share, one line for equal steps and one for equal epochs, bands for the intervals (columns as of ``ablation.along``)."""
    table = table.assign(row=[titles.get(t, t) + (" (probe)" if v.startswith("probe") else " (fine-tuned)") for t, v in zip(table["target"], table["variant"], strict=True)])
    rows, kinds = list(dict.fromkeys(table["row"])), list(dict.fromkeys(table["kind"]))
    figure, axes = subplots(len(rows), len(kinds), figsize=(7.4, 2.1 * len(rows) + 0.6), sharex=True, sharey="row", squeeze=False)
    looks = {"equal epochs": ("#d55e00", "o", "-"), "equal steps": ("#0072b2", "D", "--")}
    for i, name in enumerate(rows):
        for j, kind in enumerate(kinds):
            ax = axes[i, j]
            ax.axhline(0, color="0.25", lw=1)
            if margin:
                ax.axhspan(-margin, margin, color="0.93", zorder=0)
            for steps, (colour, marker, dash) in looks.items():
                part = table[(table["row"] == name) & (table["kind"] == kind) & (table["steps"] == steps)]
                for _, line in part.groupby("draw", dropna=False) if part["draw"].nunique() > 1 else [(0, part)]:
                    line = line.sort_values("share")
                    x = np.log2(line["share"])
                    ax.fill_between(x, line["low"].astype(float), line["high"].astype(float), color=colour, alpha=0.15, lw=0)
                    ax.plot(x, line["estimate"], dash, marker=marker, color=colour, ms=5, lw=1.6, label=steps)
            if i == 0:
                ax.set_title(f"share of the {kind}", fontsize=10)
            if j == 0:
                ax.set_ylabel(_titled(name, 26) + "\ndifference in AUC", fontsize=8)
            ax.tick_params(labelsize=8)
            ticks = sorted(table["share"].unique())
            ax.set_xticks(np.log2(ticks), [_fraction(share) for share in ticks])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    figure.legend(known.values(), known.keys(), loc="outside upper right", ncols=2, fontsize=9)
    if note:
        figure.text(0.01, -0.01, f"Bridge minus ctl; bands: intervals. {note}", fontsize=8, color="0.35", va="top")
    return figure


def _fraction(share: float) -> str:
    from fractions import Fraction

    value = Fraction(float(share)).limit_denominator(64)
    return "all" if value == 1 else f"{value.numerator}/{value.denominator}"


def pair_forest(table: pd.DataFrame, titles: Mapping[str, str], *, margin: float | None = None, xlabel: str = "", note: str = "",
                against: bool = True) -> Figure:
    """Differences a − b with their intervals, one row a pair, the targets in colours (columns as of ``ablation.effects``)."""
    if table.empty:
        return _nothing("No pair of this comparison was run.")
    names = [f"{a} − {b}" if against else f"{a} − ctl" for a, b in zip(table["a"], table["b"], strict=True)]
    used = table["variant"].map(lambda v: " (probe)" if v.startswith("probe") else " (fine-tuned)")
    shown = table.assign(label=names, model=[titles.get(t, t) + w for t, w in zip(table["target"], used, strict=True)])
    several = shown["model"].nunique() > 1
    order = {name: i for i, name in enumerate(dict.fromkeys(shown["label"]))}
    shown = shown.sort_values("label", key=lambda c: c.map(order), kind="stable")
    figure = forest(shown, reference=0, margin=margin, xlabel=xlabel, note=note)
    if several:
        legend = figure.axes[0].get_legend()
        handles, labels = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
        figure.axes[0].legend(handles, [_titled(label, 44) for label in labels], loc="lower left", bbox_to_anchor=(-0.35, 1.0), ncols=2, fontsize=8)
    return figure


def atlas(table: pd.DataFrame, titles: Mapping[str, str], *, margin: float | None = None, note: str = "") -> Figure:
    """The effect of each bridge against the number of training images, one panel a target, backbone and way to use the network:
    ``target``, ``backbone``, ``way``, ``a``, ``n_train``, ``estimate``, ``low``, ``high``."""
    if table.empty:
        return _nothing("No bridge stands beside a ctl of the same target, backbone and variant.")
    several = table["backbone"].nunique() > 1
    table = table.assign(panel=[f"{titles.get(r.target, r.target)} ({r.way}{f', {r.backbone}' if several else ''})" for r in table.itertuples()])
    places = table.drop_duplicates("panel").set_index("panel")
    ways, blocks = sorted(set(places["way"]), reverse=True), list(dict.fromkeys(zip(places["target"], places["backbone"], strict=True)))
    panels, bridges = list(places.index), list(dict.fromkeys(table["a"]))
    if len(ways) > 1:  # a column a way: linear probe, fine-tuning
        at = {(r.target, r.backbone, r.way): r.Index for r in places.itertuples()}
        panels = [at.get((*block, way)) for block in blocks for way in ways]
    columns = len(ways) if len(ways) > 1 else min(2, len(panels))
    rows = -(-len(panels) // columns)
    colours = dict(zip(bridges, [ARMS["mstl"], *_OTHERS * (1 + len(bridges) // len(_OTHERS))], strict=False))
    figure, axes = subplots(rows, columns, figsize=(7.4, 2.5 * rows + 0.7), sharey=True, squeeze=False)
    for ax in axes.flat[len(panels):]:
        ax.set_axis_off()
    for ax, name in zip(axes.flat, panels, strict=False):
        if name is None:
            ax.set_axis_off()
            continue
        ax.axhline(0, color="0.25", lw=1)
        if margin:
            ax.axhspan(-margin, margin, color="0.93", zorder=0)
        for place, bridge in enumerate(bridges):
            part = table[(table["panel"] == name) & (table["a"] == bridge)].sort_values("n_train")
            x = part["n_train"].to_numpy(float) * 2 ** ((place - (len(bridges) - 1) / 2) * 0.09)
            ax.vlines(x, part["low"].astype(float), part["high"].astype(float), color=colours[bridge], lw=1.4, alpha=0.7)
            ax.plot(x, part["estimate"], marker=["o", "s", "D", "^", "v", "P"][place % 6], color=colours[bridge], ms=4.5, lw=1.1, label=bridge)
        ax.set_xscale("log", base=2)
        ticks = sorted(table.loc[table["panel"] == name, "n_train"].unique())
        ax.set_xticks(ticks, [str(t) for t in ticks], fontsize=8)
        ax.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
        ax.minorticks_off()
        ax.set_title(_titled(name, 44), fontsize=9)
        ax.set_xlabel("training images", fontsize=9)
        ax.tick_params(axis="y", labelsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("difference in AUC, bridge − ctl", fontsize=8)
    known = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside upper left", ncols=min(6, len(known)), fontsize=8)
    if note:
        figure.text(0.01, -0.01, f"Bars: intervals. {note}", fontsize=8, color="0.35", va="top")
    return figure


def beside(table: pd.DataFrame, *, xlabel: str = "AUC", dlabel: str = "difference in AUC", margin: float | None = None, note: str = "") -> Figure:
    """The level of every model (left) and its paired difference to the reference (right), one row a model under its block's title.

    ``table`` as ``comparison.beside`` makes it: ``label``, ``model``, ``estimate``, ``low``, ``high``, ``difference``,
    ``difference_low``, ``difference_high``, ``text`` (what stands at the right). The shaded band is ± ``margin``.
    """
    blocks = list(dict.fromkeys(table["label"]))
    names = list(dict.fromkeys(table["model"]))
    looks = {name: (colour, shape) for (name, colour), shape in zip(palette(names).items(), markers(names).values(), strict=True)}
    titled = len(blocks) > 1 or blocks[0] != "all images"
    rows, y = [], 0.0
    for block in blocks:
        rows.append((y if titled else None, block, table[table["label"] == block]))
        y += len(rows[-1][2]) + (1.15 if titled else 0)
    figure, (left, right) = subplots(1, 2, figsize=(7.8, 0.31 * y + 1.0), sharey=True, width_ratios=(1, 1),
                                         layout=PlaceHolderLayoutEngine(True, True))  # not "none": printed twice, that becomes the style's own
    figure.subplots_adjust(left=0.17, right=0.70, wspace=0.10, top=1 - 0.25 / (0.31 * y + 1.0), bottom=0.62 / (0.31 * y + 1.0))
    right.set_facecolor("none")  # titles run on behind it
    right.axvline(0, color="0.25", lw=1)
    if margin:
        right.axvspan(-margin, margin, color="0.92", zorder=0)
    ticks, written = [], []
    for top, block, part in rows:
        if top is not None:
            left.text(-0.40, top, _titled(block, 90), transform=left.get_yaxis_transform(), fontsize=9, fontweight="bold", va="center", ha="left")
        for place, row in enumerate(part.itertuples()):
            at = (0 if top is None else top + 1) + place
            ticks.append(at)
            written.append(row.model if len(row.model) <= 16 else row.model[:15] + "…")
            _whisker(left, at, row.estimate, row.low, row.high, looks[row.model])
            _whisker(right, at, row.difference, row.difference_low, row.difference_high, looks[row.model])
            right.text(1.03, at, row.text, transform=right.get_yaxis_transform(), va="center", fontsize=8.5)
    left.set_yticks(ticks, written, fontsize=9)
    left.set_ylim(y - 0.4 if not titled else y - 0.7, -0.6)
    left.set_xlabel(xlabel, fontsize=9)
    right.set_xlabel(dlabel, fontsize=9)
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.spines["left"].set_visible(False)
    return _finished(figure, note)


def _whisker(ax, y: float, estimate, low, high, look: tuple[str, str]) -> None:
    if pd.isna(estimate):
        return
    if not pd.isna(low):
        ax.plot([low, high], [y, y], color=look[0], lw=2, solid_capstyle="butt")
    ax.plot(estimate, y, look[1], color=look[0], ms=6.5, mec="white", mew=0.8)


def _finished(figure: Figure, note: str) -> Figure:
    """With small print under the figure, and under its legend where that hangs over the lower edge."""
    if note:
        rows = sum(-(-len(legend.legend_handles) // legend._ncols) for legend in figure.legends)
        below = 0.08 + (0.12 + 0.21 * rows if rows else 0)  # inches
        figure.text(0.01, -below / figure.get_figheight(), _titled(note, 115), fontsize=8, color="0.35", va="top")
    return figure


def _row_title(ax, block: str, panel: str) -> None:
    """The block's title over the first panel of a row, free to run over the next ones, above the panel's own."""
    if block == "all images":
        ax.set_title(panel, fontsize=9, fontweight="normal")
        return
    ax.set_title(f"\n{panel}", fontsize=9, fontweight="normal")
    own = ax.annotate(_titled(block, 95), (0, 1), (0, 19), xycoords="axes fraction", textcoords="offset points", fontsize=9.5, fontweight="bold")
    own.set_in_layout(False)


def _grid(count: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    rows = -(-count // columns)
    figure, axes = subplots(rows, columns, figsize=(7.6, height * rows), squeeze=False)
    for ax in axes.ravel()[count:]:
        ax.set_axis_off()
    return figure, axes


def _legend_below(figure: Figure, handles: Sequence, columns: int = 4) -> None:
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=min(columns, max(len(handles), 1)), fontsize=8.5, borderaxespad=0.3)


_LINES = ["-", "--", "-.", ":"]


def _strokes(models: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and line style of each model: told apart in grey as well."""
    return {model: (colour, _LINES[i % len(_LINES)]) for i, (model, colour) in enumerate(palette(models).items())}


def roc_and_precision(table: pd.DataFrame, *, bands: int = 3, note: str = "") -> Figure:
    """ROC curves (left) and precision–recall curves (right), a row a block; ``table`` as of ``comparison.curves`` with ``label``.

    Pointwise bands are drawn for at most ``bands`` models. The dotted line is what a useless model gives.
    """
    blocks, models = (list(dict.fromkeys(table[c])) for c in ("label", "model"))
    strokes = _strokes(models)
    figure, axes = _grid(2 * len(blocks), 2, 3.0)
    for row, block in zip(axes, blocks, strict=True):
        for ax, kind in zip(row, ("roc", "pr"), strict=True):
            part = table[(table["label"] == block) & (table["curve"] == kind)]
            share = part["prevalence"].iloc[0]
            if kind == "roc" or pd.notna(share):
                ax.plot([0, 1], [0, 1] if kind == "roc" else [share, share], color="0.6", lw=1, ls=(0, (1, 2)))
            for model in models:
                own = part[part["model"] == model]
                colour, line = strokes[model]
                ax.plot(own["x"], own["y"], color=colour, ls=line, lw=1.6)
                if part["model"].nunique() <= bands:
                    ax.fill_between(own["x"], own["low"], own["high"], color=colour, alpha=0.13, lw=0)
            ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="false-positive rate" if kind == "roc" else "recall (sensitivity)",
                   ylabel="sensitivity" if kind == "roc" else "precision (PPV)")
        row[0].set_title(_titled("" if block == "all images" else block, 44), fontsize=9.5)
    _legend_below(figure, [plt.Line2D([], [], color=c, ls=line, lw=1.8, label=m) for m, (c, line) in strokes.items()])
    return _finished(figure, note)


def operating_points(table: pd.DataFrame, *, note: str = "") -> Figure:
    """Sensitivity and specificity at each rule: filled where the threshold was fixed on validation, hollow where on the test set.

    ``table``: rates as of ``operating.evaluate`` with ``label``; one row of panels a block, one panel a rule.
    """
    blocks, rules, models = (list(dict.fromkeys(table[c])) for c in ("label", "rule", "model"))
    colours, shapes = palette(models), markers(models)
    figure, axes = subplots(len(blocks), len(rules), figsize=(7.6, 2.75 * len(blocks)), squeeze=False, sharex=True, sharey=True)
    for row, block in zip(axes, blocks, strict=True):
        for ax, rule in zip(row, rules, strict=True):
            part = table[(table["label"] == block) & (table["rule"] == rule) & table["estimate"].notna()]
            wide = part.pivot_table(index=["model", "chosen_on"], columns="quantity", values=["estimate", "low", "high"], aggfunc="first")
            for (model, chosen), point in wide.iterrows():
                x, y = 1 - point["estimate", "specificity"], point["estimate", "sensitivity"]
                filled = chosen == "validation"
                if filled and pd.notna(point.get(("low", "sensitivity"))):
                    ax.plot([x, x], [point["low", "sensitivity"], point["high", "sensitivity"]], color=colours[model], lw=1.2)
                    ax.plot([1 - point["high", "specificity"], 1 - point["low", "specificity"]], [y, y], color=colours[model], lw=1.2)
                ax.plot(x, y, shapes[model], ms=7, color=colours[model] if filled else "white", mec=colours[model], mew=1.4, zorder=3)
            kept = re.search(r"(sensitivity|specificity) ≥ ([0-9.]+)", rule)
            if kept:
                at = float(kept[2])
                (ax.axhline if kept[1] == "sensitivity" else ax.axvline)(at if kept[1] == "sensitivity" else 1 - at, color="0.6", lw=1, ls=(0, (1, 2)))
            ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.04))
            ax.set_title(rule, fontsize=9, fontweight="normal")
        row[0].set_ylabel("sensitivity")
        _row_title(row[0], block, rules[0])
    for ax in axes[-1]:
        ax.set_xlabel("1 − specificity")
    handles = [plt.Line2D([], [], color=colours[m], marker=shapes[m], lw=0, ms=7, label=m) for m in models]
    chosen = list(dict.fromkeys(table.loc[table["estimate"].notna(), "chosen_on"]))
    handles += [plt.Line2D([], [], marker="o", lw=0, ms=7, color="0.3" if c == "validation" else "white", mec="0.3",
                           label="threshold fixed on validation" if c == "validation" else "chosen on the test set (optimistic)") for c in chosen]
    _legend_below(figure, handles, 3)
    return _finished(figure, note)


def reliability(table: pd.DataFrame, *, note: str = "") -> Figure:
    """Observed share against mean risk by deciles: as given (left) and recalibrated on validation (right, where there is one)."""
    blocks, forms, models = (list(dict.fromkeys(table[c])) for c in ("label", "risks", "model"))
    strokes, shapes = _strokes(models), markers(models)
    figure, axes = subplots(len(blocks), len(forms), figsize=(7.6 if len(forms) > 1 else 4.2, 3.1 * len(blocks)), squeeze=False)
    for row, block in zip(axes, blocks, strict=True):
        for ax, form in zip(row, forms, strict=True):
            ax.plot([0, 1], [0, 1], color="0.6", lw=1, ls=(0, (1, 2)))
            for model in models:
                own = table[(table["label"] == block) & (table["risks"] == form) & (table["model"] == model)]
                colour, line = strokes[model]
                ax.plot(own["mean_risk"], own["observed"], color=colour, ls=line, lw=1.1, marker=shapes[model], ms=4.5)
                ax.vlines(own["mean_risk"], own["low"], own["high"], color=colour, lw=0.8, alpha=0.55)
            ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="mean predicted risk", ylabel="observed share")
            ax.set_title(form if form == "as given" else f"recalibrated on validation ({form})", fontsize=9, fontweight="normal")
        _row_title(row[0], block, forms[0])
    _legend_below(figure, [plt.Line2D([], [], color=c, ls=line, marker=shapes[m], ms=5, label=m) for m, (c, line) in strokes.items()])
    return _finished(figure, note)


def decision(table: pd.DataFrame, *, bands: int = 3, note: str = "") -> Figure:
    """Decision curves: net benefit against the threshold probability, with treating all and treating none; a panel a block."""
    blocks, models = (list(dict.fromkeys(table[c])) for c in ("label", "model"))
    strokes = _strokes(models)
    figure, axes = _grid(len(blocks), min(len(blocks), 2), 3.2)
    for ax, block in zip(axes.ravel(), blocks, strict=False):
        part = table[table["label"] == block]
        all_rows = part[part["model"] == part["model"].iloc[0]]
        ax.plot(all_rows["threshold"], all_rows["treat_all"], color="0.25", lw=1, ls=(0, (4, 2)))
        ax.axhline(0, color="0.25", lw=1)
        for model in models:
            own = part[part["model"] == model]
            colour, line = strokes[model]
            ax.plot(own["threshold"], own["estimate"], color=colour, ls=line, lw=1.6)
            if part["model"].nunique() <= bands:
                ax.fill_between(own["threshold"], own["low"], own["high"], color=colour, alpha=0.13, lw=0)
        top = max(part["high"].max() if part["high"].notna().any() else part["estimate"].max(), part["treat_all"].max(), 0.02)
        ax.set(ylim=(-0.25 * top, 1.08 * top), xlabel="threshold probability", ylabel="net benefit per examination")
        name = "" if block == "all images" else f"{block}; "
        ax.set_title(_titled(f"{name}prevalence {part['prevalence'].iloc[0]:.0%}", 46), fontsize=9, fontweight="normal")
    handles = [plt.Line2D([], [], color=c, ls=line, lw=1.8, label=m) for m, (c, line) in strokes.items()]
    handles += [plt.Line2D([], [], color="0.25", lw=1, ls=(0, (4, 2)), label="act on everyone"), plt.Line2D([], [], color="0.25", lw=1, label="act on no one")]
    _legend_below(figure, handles)
    return _finished(figure, note)


# --- lesions in boxes: another hand's box, and where a network looks ----------------------------------------------------------


def disturbed(panels: Mapping[str, pd.DataFrame], *, xlabel: str, note: str = "") -> Figure:
    """One panel a measure, one line a model: ``strength``, ``model``, ``estimate``, ``low``, ``high``, bars for the intervals."""
    models = list(dict.fromkeys(name for table in panels.values() for name in table["model"]))
    looks, shapes = _strokes(models), markers(models)
    figure, axes = _grid(len(panels), 2, 2.5)
    for ax, (title, table) in zip(axes.ravel(), panels.items(), strict=False):
        step = 0.012 * np.ptp(table["strength"])  # models side by side, so that no bar hides another
        for number, model in enumerate(models):
            part = table[table["model"] == model].sort_values("strength")
            x = part["strength"] + (number - (len(models) - 1) / 2) * step
            values = part[["estimate", "low", "high"]].astype(float)
            colour, dash = looks[model]
            ax.plot(x, values["estimate"], dash, color=colour, marker=shapes[model], ms=5, mec="white", mew=0.6, lw=1.5)
            ax.vlines(x, values["low"], values["high"], color=colour, lw=1.2)
        ax.set_title(title, fontsize=10, fontweight="normal")
        ax.set_xlabel(xlabel, fontsize=8.5)
        ax.tick_params(labelsize=8)
    handles = [plt.Line2D([], [], color=looks[m][0], ls=looks[m][1], marker=shapes[m], ms=5, label=m) for m in models]
    _legend_below(figure, handles)
    return _finished(figure, note)


def heat_maps(crops: ImageSet, maps: Mapping[str, np.ndarray], boxes: np.ndarray, *, per_row: int = 6, note: str = "") -> Figure:
    """A row of crops with the lesion's box, and below it the same crops under the map of each network; ``boxes`` (n, 4) in pixels of the crops."""
    shown = np.linspace(0, len(crops) - 1, min(per_row, len(crops))).round().astype(int)
    rows = {"crop": None, **maps}
    figure, axes = subplots(len(rows), len(shown), figsize=(1.25 * len(shown), 1.3 * len(rows) + 0.2), squeeze=False)
    for line, (name, heat) in zip(axes, rows.items(), strict=True):
        for ax, k in zip(line, shown, strict=True):
            ax.imshow(crops.images[k].mean(axis=-1), cmap="gray", vmin=0, vmax=255)
            if heat is not None:
                ax.imshow(heat[k], cmap="magma", alpha=0.55, vmin=0, vmax=1)
            x0, y0, x1, y1 = boxes[k]
            ax.add_patch(plt.Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, ec="white", lw=1))
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if heat is None:
                ax.set_title(crops.classes[crops.labels[k]], fontsize=8, fontweight="normal")
        line[0].set_ylabel(_titled(name, 16), fontsize=8)
    return _finished(figure, note)


#: Marker of each way to transfer.
WAYS = {"scratch": "s", "features": "^", "hybrid": "D", "fine-tuned": "o"}


def cost_front(table: pd.DataFrame, *, axes: Mapping[str, str], ylabel: str = "AUC", note: str = "") -> Figure:
    """Score against cost, a panel a cost: colour a backbone, marker a way, a line and dark edges for
    the points that no other beats in both.

    ``table``: ``backbone``, ``model`` (the way), ``estimate``, ``low``, ``high``, and for each column of ``axes`` (column → label with unit) the
    cost and ``front_<column>``.
    """
    backbones = list(dict.fromkeys(table["backbone"]))
    ways = [way for way in WAYS if way in set(table["model"])]
    colours = palette(backbones)
    figure, panels = subplots(1, len(axes), figsize=(7.6, 3.5), sharey=True, squeeze=False)
    for ax, (column, label) in zip(panels[0], axes.items(), strict=True):
        for row in table.itertuples():
            x = getattr(row, column) * 2 ** ((ways.index(row.model) - (len(ways) - 1) / 2) * 0.06)  # beside each other
            if pd.notna(row.low):
                ax.vlines(x, row.low, row.high, color=colours[row.backbone], lw=1.2, alpha=0.6)
            best = getattr(row, f"front_{column}")
            ax.plot(x, row.estimate, WAYS[row.model], color=colours[row.backbone], ms=8 if best else 6.5, mec="0.1" if best else "white", mew=1.4 if best else 0.8)
        best = table[table[f"front_{column}"]].sort_values(column)
        ax.step(best[column], best["estimate"], where="post", color="0.45", lw=1.2, ls="--", zorder=0)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=20))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(label, fontsize=9)
        ax.tick_params(labelsize=8, which="both")
    panels[0][0].set_ylabel(ylabel)
    handles = [plt.Line2D([], [], color=colours[b], lw=3, label=b) for b in backbones]
    handles += [plt.Line2D([], [], color="0.3", marker=WAYS[w], lw=0, ms=6, label=w) for w in ways]
    handles += [plt.Line2D([], [], color="0.45", lw=1.2, ls="--", label="Pareto front (dark edge)")]
    _legend_below(figure, handles)
    return _finished(figure, note)
