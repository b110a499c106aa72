"""Which start is best for my images? Candidates ranked by the transferability measures, without any training.

``mstl rank TARGET CANDIDATE …`` is :func:`candidates` → :func:`rank` → :func:`figure`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mstl import agreement, paths, probing
from mstl.errors import MstlError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mstl.datasets.imageset import ImageSet

#: Measures of ``mstl rank`` unless told otherwise; N-LEEP fits a mixture a resample and takes minutes.
DEFAULT = ("leep", "nce", "h_score", "logme", "gbc", "transrate", "parc")

#: Measures that cannot be above zero.
_NEGATIVE = ("leep", "nce", "nleep", "gbc")


@dataclass(frozen=True)
class Candidate:
    """A network to start from: a ``name``, the size of its images in pixels, and ``build``, which makes it."""

    name: str
    image_size: int
    build: Callable[[], Any]
    trained_head: bool


def candidates(words: Sequence[str], *, size: int = 96) -> list[Candidate]:
    """Networks from words: a checkpoint folder, a finished source or bridge run (one candidate a chain), a timm backbone (with its
    ImageNet weights), or ``backbone=file`` for weights of one's own. ``size`` is for those that do not bring one.

    Raises MstlError for a word that is none of these, and for fewer than two candidates.
    """
    found = [candidate for word in words for candidate in _candidates(word, size)]
    names = [c.name for c in found]
    for name in names:
        if names.count(name) > 1:
            raise MstlError(f"The candidate {name} is named twice: name each once.")
    if len(found) < 2:
        raise MstlError("A ranking needs at least two candidates: name checkpoints, runs (runs/…/20_bridge/…), timm backbones, or backbone=file.")
    return found


def _candidates(word: str, size: int) -> list[Candidate]:
    from mstl import checkpoints
    from mstl.models import backbones

    place = next((p for p in (Path(word).expanduser(), paths.home(word), paths.home("runs", word)) if p.is_dir()), None)
    if place is not None:
        folders = [place] if checkpoints.is_checkpoint(place) else sorted(
            folder for folder in (place / "checkpoint").glob("**") if checkpoints.is_checkpoint(folder))
        if not folders:
            raise MstlError(f"There is no checkpoint in {place}: name a finished source or bridge run, or the folder of a checkpoint.")
        out = []
        for folder in folders:
            record = checkpoints.read(folder)
            name = folder.parent.name if folder.name == "checkpoint" else f"{folder.parent.parent.name}/{folder.name}"
            out.append(Candidate(name if len(folders) > 1 or folder != place else place.name, record.spec.image_size,
                                 lambda folder=folder: checkpoints.load(folder), (record.extra or {}).get("head", "trained") in ("trained", "labels")))
        return out
    backbone, equals, file = word.partition("=")
    if equals and not Path(file).expanduser().exists():
        raise MstlError(f"The weights {file} of the candidate {word} do not exist: mend the path.")
    weights = str(Path(file).expanduser()) if equals else "imagenet"
    return [Candidate(word, size, lambda: backbones.create(backbone, 1000 if not equals else 2, image_size=size, weights=weights), not equals)]


def training_part(name: str, classes: Sequence[str] = ()) -> Callable[[int], ImageSet]:
    """The images of a target that a ranking may see, at any size: its training part where it is split, else all of it."""
    def load(size: int) -> ImageSet:
        from mstl import datasets

        images = datasets.load(name, size=size)
        images = images.select(list(classes)) if classes else images
        given = np.asarray(images.splits)
        return images.subset(np.flatnonzero(given == "train")) if (given == "train").any() else images

    return load


def rank(data: Callable[[int], ImageSet], found: Sequence[Candidate], *, measures: Sequence[str] = DEFAULT, n_max: int = 1000,
         n_resamples: int = 100, level: float = 0.95, seed: int = 0, progress: Callable[[str], None] = lambda text: None) -> pd.DataFrame:
    """The measures of every candidate on a target, larger is better, and how firm the order is.

    ``data(size)`` gives the target at a candidate's image size, labels and groups the same at every size; at most ``n_max`` images
    are used. The interval is from ``n_resamples`` random halves of the groups, the same for all candidates: half-samples, whose spread
    around the whole is that of the whole around the truth (McCarthy 1969; Politis & Romano 1994). The usual bootstrap would put copies
    of images into a resample, which several measures take for knowledge (LogME then does not exist where N < D). A measure shifts
    with the number of images, so the spread of the halves around their median is laid around the estimate.

    One row a measure and candidate: ``measure, candidate, value, low, high, rank`` (1 is best), ``rank_low, rank_high`` and ``first``, the
    share of the halves in which the candidate was the best. LEEP and NCE are absent where a head was not trained, or where the
    candidates' heads have different numbers of classes, between which they cannot be compared.
    """
    from mstl import training

    names = list(dict.fromkeys(measures))
    for name in names:
        if name not in probing.MEASURES:
            raise MstlError(f"The transferability measure '{name}' does not exist: there are {', '.join(probing.MEASURES)}.")
    seen, labels, groups = {}, None, None
    for candidate in found:
        progress(f"features of {candidate.name}")
        images = data(candidate.image_size)
        rows = _rows(images, n_max, seed)
        if labels is None:
            labels, groups, ids = images.labels[rows], np.unique(images.groups[rows], return_inverse=True)[1], images.ids[rows]
        elif not (images.ids[rows] == ids).all():
            raise MstlError("The target has other images at another size, so candidates cannot be compared: prepare it anew.")
        model = probing.fitting(candidate.build(), images)
        theta = training.predict(model, images, rows) if candidate.trained_head else None
        seen[candidate.name] = (training.extract_features(model, images, rows), theta)
    heads = {None if theta is None else theta.shape[1] for _, theta in seen.values()}
    names = [name for name in names if not probing.MEASURES[name][1] or (len(heads) == 1 and None not in heads)]
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
    halves = [random.permutation(len(members))[: max(2, len(members) // 2)] for _ in range(n_resamples)]
    draws = [np.sort(np.concatenate([members[g] for g in half])) for half in halves]
    draws = [rows for rows in draws if len(np.unique(labels[rows])) == len(np.unique(labels))]
    values = {}
    for name, (features, theta) in seen.items():
        progress(f"measures of {name}")
        values[name] = [probing.measure(features[rows], labels[rows], names=names, source_probs=None if theta is None else theta[rows], n_max=n_max, seed=seed)
                        for rows in [np.arange(len(labels)), *draws]]
    out = [row for name in names for row in _ranked(name, {c: np.array([np.nan if v[name] is None else v[name] for v in each]) for c, each in values.items()}, level)]
    if not out:
        raise MstlError("None of the measures exists for all of these candidates: ask for others, for example --measures logme h_score.")
    return pd.DataFrame(out)


def _rows(images: ImageSet, n_max: int, seed: int) -> np.ndarray:
    from mstl.metrics.transferability import stratified_part

    return np.arange(len(images)) if len(images) <= n_max else stratified_part(np.asarray(images.labels), n_max, seed)


def _ranked(measure: str, values: dict[str, np.ndarray], level: float) -> list[dict[str, Any]]:
    known = {name: each for name, each in values.items() if np.isfinite(each[0])}
    if not known:  # for example no candidate has a trained head
        return []
    table = np.stack(list(known.values()))  # candidates × (estimate, resamples)
    places = 1 + (-table).argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    tail = [(1 - level) / 2, (1 + level) / 2]
    rows = []
    for number, name in enumerate(known):
        value, draws, place = table[number, 0], table[number, 1:], places[number]
        draws = draws[np.isfinite(draws)]
        low, high = (value + np.quantile(draws, tail) - np.median(draws)) if len(draws) > 1 else (np.nan, np.nan)
        rank_low, rank_high = np.quantile(place[1:], tail, method="nearest") if len(place) > 1 else (np.nan, np.nan)
        low, high = (min(0.0, low), min(0.0, high)) if measure in _NEGATIVE else (low, high)
        rows.append({"measure": probing.MEASURES[measure][0], "candidate": name, "value": value, "low": low, "high": high, "rank": int(place[0]),
                     "rank_low": rank_low, "rank_high": rank_high, "first": float((place[1:] == 1).mean()) if len(place) > 1 else np.nan})
    return sorted(rows, key=lambda row: row["rank"])


def reliability(measures: Sequence[str]) -> str:
    """How reliable such a ranking was in the reference study, from its committed tables; one line a measure and target."""
    folders = sorted(path.parent for path in paths.share("data", "reference").glob("35_probe/*/transferability.csv"))
    if not folders:
        return "The reference study has no tables of these measures here, so how reliable such a ranking is cannot be said."
    from mstl import ablation

    found = agreement.agreements(agreement.checkpoints(agreement.read(folders), ablation.read(folders)), n_resamples=500)
    shown = [probing.MEASURES[name][0] for name in measures]
    own = found[found["measure"].isin(shown) & found["kendall"].notna()]
    lines = [f"  {row.measure:<10} {row.target:<14} {row.kendall:+.2f} ({row.kendall_low:+.2f} to {row.kendall_high:+.2f}), {row.n} checkpoints"
             for row in own.itertuples()]
    return "\n".join(["How such rankings did in the reference study: Kendall's τ with the AUC of a linear probe (95 % interval).", *lines]).replace("-0.", "−0.")


def describe(table: pd.DataFrame) -> str:
    """The ranking in text, a block a measure, best first."""
    lines = []
    width = max(len(name) for name in table["candidate"])
    for measure, rows in table.groupby("measure", sort=False):
        lines.append(measure)
        lines += [f"  {row.rank:>2}  {row.candidate:<{width}}  {row.value:>9.4g} ({row.low:.4g} to {row.high:.4g})  best in {row.first:.0%} of the halves"
                  for row in rows.itertuples()]
    return "\n".join(lines)


def figure(table: pd.DataFrame, title: str) -> Figure:
    """The scores with their intervals, a panel a measure, the candidates in the order of the first measure."""
    import matplotlib.pyplot as plt

    from mstl import plots

    plots.style()
    measures, names = list(dict.fromkeys(table["measure"])), list(dict.fromkeys(table["candidate"]))
    columns = min(4, len(measures))
    rows = -(-len(measures) // columns)
    out, axes = plt.subplots(rows, columns, figsize=(2.3 * columns + 1.6, rows * (0.28 * len(names) + 1.1)), sharey=True, squeeze=False)
    for ax in axes.flat[len(measures):]:
        ax.set_axis_off()
    for ax, measure in zip(axes.flat, measures, strict=False):
        for row in table[table["measure"] == measure].itertuples():
            y = -names.index(row.candidate)
            ax.plot([row.low, row.high], [y, y], color=plots.ARMS["mstl"], lw=2)
            ax.plot(row.value, y, "o", color=plots.ARMS["mstl"], ms=6, mec="white", mew=0.8)
        ax.set_title(measure, fontsize=10)
        ax.tick_params(labelsize=8)
        ax.locator_params(axis="x", nbins=4)
    axes[0, 0].set_yticks([-i for i in range(len(names))], names)
    out.suptitle(title, fontsize=10, x=0.01, ha="left")
    return out
