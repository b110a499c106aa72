"""Figures of the book: one palette for the arms everywhere, axis labels with units, readable in grey.

Every function takes tables or image sets and returns a :class:`matplotlib.figure.Figure`; none reads or writes files.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


def palette(names: Sequence[str]) -> dict[str, str]:
    """Colour of each compared model: the arms keep theirs, other names take the next free colour in order."""
    others = iter(_OTHERS * (1 + len(names) // len(_OTHERS)))
    return {name: ARMS.get(name) or next(others) for name in names}


def _marker(name: str) -> str:
    return MARKERS.get(name, "^")


def _titled(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def contact_sheet(sets: Mapping[str, ImageSet], *, per_set: int = 8, seed: int = 0) -> Figure:
    """One row of examples a set, classes in turn, each from another group; simulated sets say so in their row title."""
    figure, axes = plt.subplots(len(sets), per_set, figsize=(1.25 * per_set, 1.55 * len(sets)), squeeze=False)
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


def histories(table: pd.DataFrame, *, monitor: str = "auc") -> Figure:
    """Training loss (left) and the validation measure (right) against optimiser steps, one line a fit.

    ``table`` has columns ``step``, ``train_loss``, ``val_<monitor>`` and ``seed``, ``fold`` (those that are absent are left out).
    """
    keys = [k for k in ("seed", "fold") if k in table]
    panels = [c for c in ("train_loss", f"val_{monitor}") if c in table and table[c].notna().any()]
    labels = {"train_loss": "training loss (nats)", "val_auc": "AUC, validation", "val_loss": "validation loss (nats)",
              "val_accuracy": "accuracy, validation"}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.0), squeeze=False)
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
    figure, ax = plt.subplots(figsize=(5.6, 2.8))
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
    colours = palette(models)
    step = 0.8 / max(len(models), 1)
    lines = [_titled(name, 30).count("\n") + 1 for name in labels]
    height = max(0.42 * len(table), 0.24 * max(lines) * len(labels)) + 1.1  # no title runs into the next
    figure, ax = plt.subplots(figsize=(7.6, height))
    if reference is not None:
        ax.axvline(reference, color="0.25", lw=1)
        if margin:
            ax.axvspan(reference - margin, reference + margin, color="0.92", zorder=0)
    for _, row in table.iterrows():
        y = -labels.index(row[label]) - (models.index(row[model]) - (len(models) - 1) / 2) * step
        ax.plot([row[low], row[high]], [y, y], color=colours[row[model]], lw=2.2, solid_capstyle="butt")
        ax.plot(row[estimate], y, _marker(row[model]), color=colours[row[model]], ms=7, mec="white", mew=0.8)
        text = f"{row[estimate]:+.3f} ({row[low]:+.3f} to {row[high]:+.3f})" if reference == 0 else f"{row[estimate]:.3f} ({row[low]:.3f}–{row[high]:.3f})"
        text = text.replace("-", "−")
        ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9, family="monospace")
    ax.set_yticks([-i for i in range(len(labels))], [_titled(name, 30) for name in labels])
    ax.set_ylim(-len(labels) + 0.5, 0.5)
    ax.set_xlabel(xlabel)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    if len(models) > 1:
        handles = [plt.Line2D([], [], color=colours[m], marker=_marker(m), lw=2, label=m) for m in models]
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(models), fontsize=9, columnspacing=1.2)
    if note:
        figure.text(0.01, -0.02, note, fontsize=8, color="0.35", va="top")
    return figure


# --- the bridges: probes, measures, ablations ---------------------------------------------------------------------------


def probe_dots(table: pd.DataFrame, *, label: str = "AUC of the linear probe, test") -> Figure:
    """One row a network, one faint point a fold and chain, a mark at their mean: ``model``, ``seed``, ``fold``, ``auc``."""
    models = list(dict.fromkeys(table["model"]))
    figure, ax = plt.subplots(figsize=(6.4, 0.3 * len(models) + 1.2))
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


def measure_scatter(table: pd.DataFrame, measures: Sequence[str], titles: Mapping[str, str], *, note: str = "") -> Figure:
    """Performance against each measure, one row of panels a target: ``target``, ``bridge``, ``auc`` and the measures by column
    name; the source network is a filled square, the chains of a bridge share a colour."""
    targets = list(dict.fromkeys(table["target"]))
    bridges = [b for b in dict.fromkeys(table["bridge"]) if b]
    colours = dict(zip(bridges, sns.color_palette("husl", len(bridges)), strict=True))
    figure, axes = plt.subplots(len(targets), len(measures), figsize=(2.5 * len(measures) + 0.6, 2.3 * len(targets) + 0.5), squeeze=False,
                                sharey="row")
    for row, target in enumerate(targets):
        for column, name in enumerate(measures):
            ax, own = axes[row, column], table[(table["target"] == target) & table[name].notna()]
            for bridge, part in own.groupby("bridge", sort=False):
                plain = bridge == ""
                ax.scatter(part[name], part["auc"], s=44 if plain else 22, marker="s" if plain else "o", lw=0.6,
                           color="0.1" if plain else colours[bridge], edgecolor="white", zorder=3 if plain else 2)
            ax.locator_params(axis="x", nbins=4)
            ax.tick_params(labelsize=8)
            if row == len(targets) - 1:
                ax.set_xlabel(MEASURE_AXES.get(name, name), fontsize=9)
            if column == 0:
                ax.set_ylabel(_titled(titles.get(target, target), 26) + "\nAUC", fontsize=8)
    figure.text(0.01, -0.01, ("Square: the source network; circles: bridge networks, one colour a bridge. " + note).strip(), fontsize=8,
                color="0.35", va="top")
    figure.tight_layout()
    return figure


#: Axis labels of the transferability measures.
MEASURE_AXES = {"leep": "LEEP (nats)", "nce": "NCE (nats)", "h_score": "H-score", "logme": "LogME (nats)", "gbc": "GBC",
                "nleep": "N-LEEP (nats)", "transrate": "TransRate (nats)", "parc": "PARC"}


def agreement_dots(table: pd.DataFrame, *, ceilings: Mapping[str, float] | None = None, note: str = "") -> Figure:
    """Kendall's τ with its interval, one row a measure, one panel a target: ``label``, ``measure``, ``kendall``,
    ``kendall_low``, ``kendall_high``, ``n``; a dotted line marks the ceiling that noise between chains leaves."""
    labels = list(dict.fromkeys(table["label"]))
    measures = list(dict.fromkeys(table["measure"]))
    figure, axes = plt.subplots(1, len(labels), figsize=(2.5 * len(labels) + 1.2, 0.3 * len(measures) + 1.5), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], labels, strict=True):
        ax.axvline(0, color="0.25", lw=1)
        if ceilings and name in ceilings and np.isfinite(ceilings[name]):
            ax.axvline(ceilings[name], color="0.45", lw=1.2, ls=":")
        for row in table[(table["label"] == name) & table["kendall"].notna()].itertuples():
            y = -measures.index(row.measure)
            ax.plot([row.kendall_low, row.kendall_high], [y, y], color=palette(["ctl"])["ctl"], lw=2)
            ax.plot(row.kendall, y, "o", color=palette(["ctl"])["ctl"], ms=6, mec="white", mew=0.8)
        ax.set_title(_titled(name, 24), fontsize=9)
        ax.set(xlim=(-1.05, 1.05))
        ax.set_xlabel("Kendall's τ", fontsize=9)
        ax.tick_params(labelsize=8)
    axes[0][0].set_yticks([-i for i in range(len(measures))], measures)
    if note:
        figure.text(0.01, -0.02, note, fontsize=8, color="0.35", va="top")
    return figure
