"""From a table of predictions to the comparison of its models: what is compared, how well each does, how they differ.

A *block* is what may be compared with each other: one target, variant and backbone. Every function takes the checked table of
:mod:`mstl.predictions` and returns tidy tables, one row a number, with its interval and its counts. The models of a block are
resampled together, under the same groups, so twenty models cost ten times what two do and not two hundred.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mstl import predictions
from mstl.errors import MstlError
from mstl.metrics import chains, paired, ranks, roc

BLOCK = ["target", "variant", "backbone"]
METRICS = {"auc": "AUC", "accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1"}
#: The order in which the arms of a study are shown; other models come as they stand in the table.
ARMS = ("scratch", "ctl", "mstl")
_LABELS = ("accuracy", "precision", "recall", "f1")
_COUNTS = ["n_images", "n_groups", "n_chains", "n_folds"]
_KEYS = ["seed", "fold", "image_id"]


@dataclass(frozen=True)
class Comparison:
    """The tables of :func:`arms`, :func:`differences` and :func:`curves`, from one set of resamples."""

    arms: pd.DataFrame
    differences: pd.DataFrame
    curves: pd.DataFrame


def compare(
    table: pd.DataFrame,
    contrast: Sequence[str] = ("mstl", "ctl"),
    *,
    reference: str = "",
    metric: str = "auc",
    family: Sequence[str] = (),
    threshold: str = "validation",
    level: float = 0.95,
    n_resamples: int = 2000,
    n_resamples_primary: int = 0,
    seed: int = 0,
) -> Comparison:
    """Everything at once; arguments as in the functions named after the parts."""
    settings = _Settings(tuple(contrast), reference, metric, threshold, level, n_resamples, seed, None, n_resamples_primary)
    found = [_evaluate(key, block, settings, {"arms", "differences", "curves"}) for key, block in each(table)]
    return Comparison(_frame(found, "arms"), _adjusted(_frame(found, "differences"), family), _frame(found, "curves"))


def blocks(table: pd.DataFrame) -> pd.DataFrame:
    """One row a block: its models, and how many test images, groups, chains, folds and fits stand behind them."""
    rows = []
    for key, block in each(table):
        test = block[block["split"] == "test"]
        rows.append(
            key
            | {
                "models": ", ".join(models(block)),
                "classes": ", ".join(predictions.classes(block)),
                "images": test["image_id"].nunique(),
                "groups": test["group"].nunique(),
                "chains": test["seed"].nunique(),
                "folds": test["fold"].nunique(),
                "fits": len(test[["model", "seed", "fold"]].drop_duplicates()),
            }
        )
    return pd.DataFrame(rows)


def arms(
    table: pd.DataFrame, *, threshold: str = "validation", level: float = 0.95, n_resamples: int = 2000, seed: int = 0,
    only_auc: bool = False,
) -> pd.DataFrame:
    """Every metric of every model: the mean over chains and folds of the value within a fold, with its interval.

    ``threshold``: "validation" puts the cut of the label metrics where Youden's index is largest on the validation images of
    the same chain and fold (one half where the table has none), "half" at one half. Several classes: the largest probability
    decides, AUC is the mean of one against the rest, precision, recall and F1 are means over classes; average precision is
    given for two classes only. ``only_auc``: no other metric, which is much faster.

    Columns: target, variant, backbone, model, metric, estimate, low, high, sd_chains, n_images, n_groups, n_chains, n_folds, note.
    """
    settings = _Settings(threshold=threshold, level=level, n_resamples=n_resamples, seed=seed)
    return _frame([_evaluate(key, block, settings, {"arms"}, only_auc=only_auc) for key, block in each(table)], "arms")


def differences(
    table: pd.DataFrame,
    contrast: Sequence[str] = ("mstl", "ctl"),
    *,
    reference: str = "",
    metric: str = "auc",
    family: Sequence[str] = (),
    threshold: str = "validation",
    level: float = 0.95,
    n_resamples: int = 2000,
    n_resamples_primary: int = 0,
    seed: int = 0,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """Within-fold differences of every pair of models of a block, the primary ones first.

    Primary is the ``contrast`` (first minus second), or with a ``reference`` every other model minus it; where the models of
    the contrast are not in a table, its first model is the reference. ``p_holm`` is the p-value of a primary difference after
    Holm's correction over all primary ones of the blocks whose target is in ``family`` (all targets when empty); the other
    rows are exploratory and have none. ``pairs``: these (a, b) alone, a minus b, in every block that has both, all exploratory.
    ``n_resamples_primary``: resamples of the primary differences, where a verdict hangs on a p-value (0: ``n_resamples``).

    Columns: target, variant, backbone, contrast, model, reference, primary, estimate, low, high, p, p_holm, detectable, mean_a, mean_b,
    sd_chains, counts, note, family.
    """
    given = None if pairs is None else tuple(pairs)
    settings = _Settings(tuple(contrast), reference, metric, threshold, level, n_resamples, seed, given, n_resamples_primary)
    return _adjusted(
        _frame([_evaluate(key, block, settings, {"differences"}) for key, block in each(table)], "differences"), family
    )


def curves(table: pd.DataFrame, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """ROC and precision–recall curves averaged vertically, with pointwise bands.

    The curve of several folds and chains is the mean of their curves at each false-positive rate (or recall), never the curve
    of pooled scores; of several classes the mean of one against the rest. The band is the interval of that mean.

    Columns: target, variant, backbone, model, curve ("roc" or "pr"), x, y, low, high, cells, prevalence.
    """
    settings = _Settings(level=level, n_resamples=n_resamples, seed=seed)
    return _frame([_evaluate(key, block, settings, {"curves"}) for key, block in each(table)], "curves")


def one_test_set(
    table: pd.DataFrame, contrast: Sequence[str] = ("mstl", "ctl"), *, reference: str = "", level: float = 0.95
) -> pd.DataFrame:
    """DeLong's test of each primary contrast on each single test set: one pair of models, one chain, one fold a row.

    The rows of a block share images or training data, so their p-values must not be combined. Clustered (Obuchowski) where a
    group has several images. Blocks of several classes have no such row.

    Columns: target, variant, backbone, contrast, seed, fold, auc_a, auc_b, difference, low, high, p, n_images, n_groups, variance, note.
    """
    rows = []
    for key, block in each(table):
        if len(predictions.classes(block)) > 2:
            continue
        for a, b in _pairs(models(block), tuple(contrast), reference)[0]:
            both = align(block, [a, b], _common(block, a, b))
            for cell in both.block.places:
                groups = both.group[cell.rows]
                grouped = len(set(groups)) < len(groups)
                known = {"auc_a": None, "auc_b": None, "difference": None, "low": None, "high": None, "p": None, "note": ""}
                try:
                    test = roc.delong_test(
                        cell.y,
                        both.scores[a][cell.rows],
                        both.scores[b][cell.rows],
                        groups=groups if grouped else None,
                        level=level,
                    )
                    known = {
                        "auc_a": test.auc_a,
                        "auc_b": test.auc_b,
                        "difference": test.difference,
                        "low": test.low,
                        "high": test.high,
                        "p": test.p_value,
                        "note": test.note,
                    }
                except MstlError as absent:
                    known["note"] = str(absent)
                rows.append(
                    key
                    | {"contrast": f"{a} − {b}", "seed": cell.seed, "fold": cell.fold}
                    | known
                    | {
                        "n_images": len(cell.rows),
                        "n_groups": len(set(groups)),
                        "variance": "clustered" if grouped else "plain",
                    }
                )
    return pd.DataFrame(rows)


def subgroups(
    table: pd.DataFrame,
    by: str = "center",
    contrast: Sequence[str] = ("mstl", "ctl"),
    *,
    reference: str = "",
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """AUC of every model, and the primary differences, in each part of the test images: by center, or by a column of one's own.

    A part in which some fold lacks a class has no such AUC; its rows say so. Nothing is given where a block has one part only.

    Columns: target, variant, backbone, by, value, quantity (a model or a contrast), kind ("AUC" or "difference"), estimate, low, high,
    n_images, n_groups, note.
    """
    if by not in table.columns:
        raise MstlError(
            f"There is no column '{by}' in the table to show results by: name one of its columns, for example center."
        )
    rows = []
    settings = _Settings(tuple(contrast), reference, level=level, n_resamples=n_resamples, seed=seed)
    for key, block in each(table):
        test = block[block["split"] == "test"]
        values = [v for v in pd.unique(test[by].astype(str)) if v not in ("", "nan")]
        for value in sorted(values) if len(values) > 1 else []:
            part = test[test[by].astype(str) == value]
            common = key | {"by": by, "value": value}
            try:
                found = _evaluate(key, part, settings, {"arms", "differences"}, only_auc=True)
            except MstlError as absent:
                rows.append(
                    common
                    | {
                        "quantity": "all models",
                        "kind": "AUC",
                        "estimate": None,
                        "low": None,
                        "high": None,
                        "n_images": part["image_id"].nunique(),
                        "n_groups": part["group"].nunique(),
                        "note": str(absent),
                    }
                )
                continue
            shown = [(r, r["model"], "AUC") for r in found["arms"]] + [
                (r, r["contrast"], "difference") for r in found["differences"] if r["primary"]
            ]
            rows += [
                common
                | {"quantity": name, "kind": kind}
                | {c: r[c] for c in ("estimate", "low", "high", "n_images", "n_groups", "note")}
                for r, name, kind in shown
            ]
    return pd.DataFrame(rows)


def by_group(table: pd.DataFrame) -> pd.DataFrame:
    """The test rows with groups in place of images: a table of predictions like any other, one row a group, model, chain and fold.

    Two classes: a group is positive when any of its images is, and its score is its highest. Several classes: the mean of its
    probabilities, for groups whose images share their class; others are left out. Blocks without a group of several images
    are left out.
    """
    parts = []
    for _, block in each(table):
        test = block[block["split"] == "test"]
        names = predictions.classes(block)
        columns = [f"p_{name}" for name in names]
        keys = [*BLOCK, "model", "seed", "fold", "group"]
        if not test.duplicated(keys).any():
            continue
        if len(names) > 2:
            test = test[test.groupby(keys)["y_true"].transform("nunique") == 1]
            merged = test.groupby(keys, sort=False).agg({**dict.fromkeys(columns, "mean"), "y_true": "first"})
        else:
            merged = (
                test.assign(y_true=test["y_true"] == names[1])
                .groupby(keys, sort=False)
                .agg({columns[1]: "max", "y_true": "any"})
            )
            merged[columns[0]] = 1 - merged[columns[1]]
            merged["y_true"] = np.where(merged["y_true"], names[1], names[0])
        parts.append(merged.reset_index().assign(split="test", image_id=lambda rows: rows["group"]))
    return predictions.join(parts) if parts else table.iloc[:0]


def several(table: pd.DataFrame, arm_rows: pd.DataFrame, *, threshold: str = "validation") -> pd.DataFrame:
    """Tests that take more than two models at once, each where it exists, and otherwise the reason why it is not given.

    Cochran's Q compares the shares of right calls on one test set of independent images. Friedman's test takes data sets as
    blocks, never folds, and at least six of them; it ranks by AUC.

    Columns: target, variant, backbone, test, statistic, df, p, n, note.
    """
    rows = []
    for key, block in each(table):
        names = models(block)
        if len(names) < 3:
            continue
        common = key | {"test": "Cochran's Q", "statistic": None, "df": None, "p": None, "n": None}
        test = block[block["split"] == "test"]
        cells = len(test[["seed", "fold"]].drop_duplicates())
        if cells > 1:
            rows.append(common | {"note": f"not given: {cells} chains and folds are not one test set"})
        elif test["group"].nunique() < test["image_id"].nunique():
            rows.append(common | {"note": "not given: images of one group are not independent"})
        else:
            all_models = align(block, names)
            right = np.stack(
                [_called(all_models, name, _cuts(block, name, threshold)) == all_models.truth for name in names], axis=1
            )
            q = paired.cochran_q(right)
            rows.append(
                common | {"statistic": q.statistic, "df": q.degrees_of_freedom, "p": q.p_value, "n": q.n, "note": q.note}
            )
    auc = arm_rows[(arm_rows["metric"] == "AUC") & arm_rows["estimate"].notna()] if len(arm_rows) else arm_rows
    if arm_rows["model"].nunique() > 2:
        wide = auc.pivot_table(index=BLOCK, columns="model", values="estimate", sort=False).dropna()
        common = dict.fromkeys(BLOCK, "") | {
            "test": "Friedman",
            "statistic": None,
            "df": None,
            "p": None,
            "n": wide.index.get_level_values("target").nunique(),
        }
        if common["n"] < ranks.FEWEST_BLOCKS:
            return pd.DataFrame(
                [
                    *rows,
                    common
                    | {
                        "note": f"not given: it takes at least {ranks.FEWEST_BLOCKS} data sets with all models, the table has {common['n']}"
                    },
                ]
            )
        try:
            found = ranks.friedman(wide.groupby("target").mean())
            rows.append(
                common | {"statistic": found.statistic, "df": found.n_models - 1, "p": found.p_value, "note": found.note}
            )
        except MstlError as absent:
            rows.append(common | {"note": f"not given: {absent}"})
    return pd.DataFrame(rows)


def label(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.Series:
    """How the block of each row is called in a figure: the target's title, with the backbone where there are several."""
    name = rows["target"].map(lambda t: titles.get(t, t) or "all images")
    name = name + rows["variant"].map(lambda v: f", {v}" if v else "")
    return name if rows["backbone"].nunique() < 2 else name + " · " + rows["backbone"]


def spread(rows: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """The table of :func:`arms` to look at: one row a model, one column a metric, each "estimate (low–high)"."""
    shown = rows.assign(text=intervals(rows, digits))
    keys = telling(rows) + ["model"]
    out = shown.pivot_table(index=keys, columns="metric", values="text", aggfunc="first", sort=False)
    return out[[m for m in METRICS.values() if m in out]].rename_axis(columns=None)


def tidy(rows: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """The table of :func:`differences` to look at."""
    out = rows[telling(rows) + ["contrast"]].copy()
    out["difference (interval)"] = intervals(rows, digits, "+")
    out["p"] = [p_value(v) for v in rows["p"]]
    out["p, Holm"] = [p_value(v) if f else "exploratory" for v, f in zip(rows["p_holm"], rows["family"], strict=True)]
    out["detectable"] = [f"{v:.{digits}f}" if pd.notna(v) else "none" for v in rows["detectable"]]
    return out.set_index(telling(rows) + ["contrast"])


def beside(
    arm_rows: pd.DataFrame,
    difference_rows: pd.DataFrame,
    titles: Mapping[str, str],
    contrast: Sequence[str] = ("mstl", "ctl"),
    reference: str = "",
) -> pd.DataFrame:
    """One row a model: its AUC, its paired difference to the reference of its block, and that difference in words with its p-value.

    Columns: label, model, estimate, low, high, difference, difference_low, difference_high, text.
    """
    auc = arm_rows[arm_rows["metric"] == "AUC"]
    auc = auc.assign(label=label(auc, titles))
    rows = []
    for row in auc.itertuples():
        block = difference_rows[(difference_rows[BLOCK] == [row.target, row.variant, row.backbone]).all(axis=1)]
        names = list(auc.loc[(auc[BLOCK] == [row.target, row.variant, row.backbone]).all(axis=1), "model"])
        base = _pairs(names, tuple(contrast), reference)[0][0][1] if len(names) > 1 else row.model
        known = {
            "label": row.label,
            "model": row.model,
            "estimate": row.estimate,
            "low": row.low,
            "high": row.high,
            "difference": None,
            "difference_low": None,
            "difference_high": None,
            "text": "reference" if row.model == base else "",
        }
        for sign, a, b in ((1, row.model, base), (-1, base, row.model)):
            one = block[(block["model"] == a) & (block["reference"] == b)]
            if len(one):
                one = one.iloc[0]
                ends = [None if pd.isna(v) else sign * v for v in (one["estimate"], one["low"], one["high"])]
                d, low, high = ends if sign > 0 else (ends[0], ends[2], ends[1])
                p = f"p {p_value(one['p_holm'])} (Holm)" if one["family"] else "exploratory"
                known |= {
                    "difference": d,
                    "difference_low": low,
                    "difference_high": high,
                    "text": f"{interval(d, low, high, 3, sign='+').replace(' to ', ', ')} {p.replace('p < ', 'p<')}",
                }
        rows.append(known)
    return pd.DataFrame(rows)


def leading(
    arm_rows: pd.DataFrame, contrast: Sequence[str] = ("mstl", "ctl"), *, reference: str = "", limit: int = 6
) -> list[str]:
    """The models that a figure can show legibly: those of the primary contrast, or the reference, and then by mean AUC."""
    names = list(dict.fromkeys(arm_rows["model"]))
    if len(names) <= limit:
        return names
    mean = arm_rows[arm_rows["metric"] == "AUC"].groupby("model")["estimate"].mean().sort_values(ascending=False)
    first = [reference or names[0]] if reference or not set(contrast) <= set(names) else list(contrast)
    return [name for name in names if name in {*first, *[m for m in mean.index if m not in first][: limit - len(first)]}]


def answer(
    rows: pd.DataFrame,
    *,
    margin: float,
    titles: Mapping[str, str] | None = None,
    simulated: bool = False,
    own: bool = False,
    metric: str = "auc",
    level: float = 0.95,
) -> str:
    """The primary differences in words of a fixed, hedged form, generated from their numbers alone.

    A difference is "higher" or "lower" when its Holm-adjusted p-value is below 1 − level and its interval excludes zero, "equivalent"
    when the interval lies within ± ``margin``, and otherwise "not shown". ``own``: nothing is said of where the images come from.
    """
    titles = titles or {}
    own_rows = rows[rows["family"]]
    several = own_rows["contrast"].nunique() > 1
    parts = []
    for row, name in zip(own_rows.itertuples(), label(own_rows, titles), strict=True):
        if several:
            name = row.contrast if own_rows[BLOCK].drop_duplicates().shape[0] == 1 else f"{name}, {row.contrast}"
        parts.append(f"{name}: {interval(row.estimate, row.low, row.high, 3, sign='+')}, {verdict(row, margin, level)}")
    if len(parts) > 8:
        parts = _condensed(own_rows, margin, level)
    images = (
        "simulated images (which check the machinery, not the claim)"
        if simulated
        else "the images of this table"
        if own
        else "real images"
    )
    first = "" if several else f", {own_rows['contrast'].iloc[0]}," if len(own_rows) else ""
    one = len(own_rows) > 0 and "n_chains" in own_rows and (own_rows["n_chains"] == 1).all()
    more = " One chain: these intervals hold the draw of patients, not the luck of a training run." if one and not own else ""
    return f"Difference in {METRICS.get(metric, metric)}{first} on {images} — " + "; ".join(parts) + "." + more


def _condensed(rows: pd.DataFrame, margin: float, level: float) -> list[str]:
    """Many primary differences in few words: how many of each verdict, with the largest of those that are clear."""
    said: dict[str, list] = {}
    for row in rows.itertuples():
        said.setdefault(verdict(row, margin, level), []).append(row)
    out = []
    for words, found in said.items():
        most = max(found, key=lambda row: abs(row.estimate))
        example = (
            f" (the largest: {most.contrast}, {interval(most.estimate, most.low, most.high, 3, sign='+')})"
            if words in ("higher", "lower")
            else ""
        )
        out.append(f"of {len(rows)} differences {len(found)}: {words}{example}")
    return out


def verdict(row, margin: float, level: float = 0.95, *, exploratory: bool = False) -> str:
    """What one row of :func:`differences` shows, in words; ``row`` as from ``itertuples``. An ``exploratory`` one belongs to no family of
    tests, so its interval decides alone."""
    if row.low is None or pd.isna(row.low):
        return "no interval exists"
    if exploratory and (row.low > 0 or row.high < 0):
        return "higher" if row.low > 0 else "lower"
    if (row.low > 0 or row.high < 0) and row.p_holm is not None and row.p_holm < 1 - level:
        return "higher" if row.low > 0 else "lower"
    if -margin < row.low and row.high < margin:
        return f"equivalent within ± {margin:g}"
    corrected = not exploratory and (row.low > 0 or row.high < 0) and row.p_holm is not None and not pd.isna(row.p_holm)
    return "a difference is not shown" + (f" after Holm's correction (p = {row.p_holm:.3f})" if corrected else "")


def numbers(arm_rows: pd.DataFrame, difference_rows: pd.DataFrame) -> dict[str, float | int]:
    """Every figure of a comparison under a name that prose can call: ``auc_<target>_<model>``, ``diff_<target>``, ``diff_<target>_low``, …

    The first backbone has the plain names, further ones end in ``_<backbone>``; variants follow the target's name. Where a
    block has several primary contrasts, those after the first carry their model: ``diff_<target>_<model>``; other pairs carry
    both, ``diff_<target>_<model>_vs_<reference>``, where there are not many.
    """
    out: dict[str, float | int] = {}
    backbones = list(dict.fromkeys(arm_rows["backbone"]))

    def name(stem: str, row, end: str = "") -> str:
        place = "_".join(part for part in (row.target, row.variant) if part) or "all"
        more = "" if row.backbone == backbones[0] else f"_{row.backbone}"
        return f"{stem}_{place}{end}{more}"

    for row in arm_rows.itertuples():
        stem = row.metric.lower().replace(" ", "_")
        out |= {
            name(stem, row, f"_{row.model}"): row.estimate,
            name(stem, row, f"_{row.model}_low"): row.low,
            name(stem, row, f"_{row.model}_high"): row.high,
            name("n_test", row): row.n_images,
            name("n_groups", row): row.n_groups,
        }
    rest = difference_rows[~difference_rows["primary"].astype(bool)]
    for row in rest.itertuples() if len(difference_rows) <= 40 else ():
        pair = f"_{row.model}_vs_{row.reference}"
        out |= {name("diff", row, pair): row.estimate, name("diff", row, f"{pair}_low"): row.low, name("diff", row, f"{pair}_high"): row.high}
    seen = set()
    for row in difference_rows[difference_rows["primary"]].itertuples():
        block = (row.target, row.variant, row.backbone)
        which = f"_{row.model}" if block in seen else ""
        seen.add(block)
        out |= {
            name("diff", row, which): row.estimate,
            name("diff", row, f"{which}_low"): row.low,
            name("diff", row, f"{which}_high"): row.high,
            name("p", row, which): row.p,
            name("p_holm", row, which): row.p_holm,
            name("detectable", row, which): row.detectable,
        }
    return {k: (int(v) if k.startswith("n_") else float(v)) for k, v in out.items() if v is not None and pd.notna(v)}


# ------------------------------------------------------------------------------------------------- the models of a block


def models(block: pd.DataFrame) -> list[str]:
    """The arms in their order, then other models as they come."""
    found = list(block["model"].unique())
    return [m for m in ARMS if m in found] + [m for m in found if m not in ARMS]


def truth(rows: pd.DataFrame, block: pd.DataFrame) -> np.ndarray:
    """Class indices (n,); 0 and 1 in a binary block, 1 the last class."""
    order = {name: index for index, name in enumerate(predictions.classes(block))}
    return rows["y_true"].map(order).to_numpy(dtype=np.int64)


def score(rows: pd.DataFrame, block: pd.DataFrame) -> np.ndarray:
    """Probability of the last class (n,), or of every class (n, K) where there are more than two."""
    columns = [f"p_{name}" for name in predictions.classes(block)]
    values = rows[columns].to_numpy(dtype=float)
    return values[:, -1] if len(columns) == 2 else values


@dataclass(frozen=True)
class Aligned:
    """Test rows that several models share, row for row: ``truth`` and ``group`` (n,), ``scores`` of each model (n,) or (n, K)."""

    block: chains.Block
    truth: np.ndarray
    group: np.ndarray
    scores: dict[str, np.ndarray]


def align(block: pd.DataFrame, names: Sequence[str], seeds: Collection[int] | None = None) -> Aligned:
    """The models ``names`` of one block on the same test rows, in the chains ``seeds`` (None: all); an error where they differ."""
    test = block[block["split"] == "test"]
    test = test if seeds is None else test[test["seed"].isin(set(seeds))]
    image = pd.factorize(test["image_id"], sort=True)[0]
    order = np.lexsort((image, test["fold"].to_numpy(), test["seed"].to_numpy()))
    model = pd.factorize(test["model"])
    parts = [order[model[0][order] == list(model[1]).index(name)] if name in model[1] else order[:0] for name in names]
    keys = np.stack([test["seed"].to_numpy(), test["fold"].to_numpy(), image])
    for name, part in zip(names, parts, strict=True):
        if not len(part) or len(part) != len(parts[0]) or not (keys[:, part] == keys[:, parts[0]]).all():
            where = ", ".join(str(block[k].iloc[0]) for k in BLOCK if block[k].iloc[0])
            raise MstlError(
                f"{name} and {names[0]} do not cover the same images in the same chains and folds ({where or 'the table'}: {len(part)} and "
                f"{len(parts[0])} test rows), so they cannot be compared in pairs: give both models' predictions on every test image."
            )
    rows = test.iloc[parts[0]]
    y, group, n_classes = truth(rows, block), rows["group"].to_numpy(), len(predictions.classes(block))
    shared = chains.Block(y, n_classes=n_classes, seed=rows["seed"].to_numpy(), fold=rows["fold"].to_numpy(), group=group)
    return Aligned(shared, y, group, {name: score(test.iloc[part], block) for name, part in zip(names, parts, strict=True)})


def cuts(
    block: pd.DataFrame, model: str, *, rule: str = "youden", at: float = 0.90, split: str = "val"
) -> dict[tuple[int, int], float]:
    """The threshold that a rule chooses in each chain and fold of one model, on the rows of ``split`` of a binary block."""
    return thresholds(block[(block["model"] == model) & (block["split"] == split)], block, (rule,), at=at)[rule]


def thresholds(
    rows: pd.DataFrame, block: pd.DataFrame, rules: Sequence[str], *, at: float = 0.90
) -> dict[str, dict[tuple[int, int], float]]:
    """The threshold of each rule in each chain and fold of ``rows``, those of one model and split."""
    y, s = truth(rows, block), score(rows, block)
    out: dict[str, dict[tuple[int, int], float]] = {rule: {} for rule in rules}
    for cell, part in rows.groupby(["seed", "fold"]).indices.items():
        if len(np.unique(y[part])) < 2:
            one = rows.iloc[part[0]]
            raise MstlError(
                f"The {one['split']} rows of model '{one['model']}' (seed {cell[0]}, fold {cell[1]}) hold class '{one['y_true']}' only, so no threshold can "
                "be fixed on them: give images of both classes there, or leave these rows out."
            )
        for rule in rules:
            out[rule][cell] = roc.choose_threshold(y[part], s[part], rule=rule, at=at)
    return out


def primary_pairs(
    names: Sequence[str], contrast: Sequence[str] = ("mstl", "ctl"), reference: str = ""
) -> list[tuple[str, str]]:
    """The pairs (a, b) whose difference a − b is primary."""
    return _pairs(list(names), tuple(contrast), reference)[0]


def each(table: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """The blocks of a table, each with its target, variant and backbone."""
    for key, block in table.groupby(BLOCK, sort=False, dropna=False):
        yield dict(zip(BLOCK, map(str, key), strict=True)), block


# ------------------------------------------------------------------------------------------------------------- in words


def telling(rows: pd.DataFrame) -> list[str]:
    """The block's columns that say something: the target where it has a name, the others where they differ between rows."""
    return [c for c in BLOCK if rows[c].nunique() > 1 or (c == "target" and (rows[c] != "").any())]


def lean(rows: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """A table to look at, indexed by what tells its blocks apart and by ``keys``; p-values as text, counts as whole numbers,
    and what does not exist named so."""
    out = rows.drop(columns=[c for c in BLOCK if c not in telling(rows)])
    for name in out:
        if name == "p" or name.startswith("p_"):
            out[name] = [p_value(v) for v in out[name]]
        elif name in ("n", "df", *_COUNTS):
            out[name] = ["none" if pd.isna(v) else f"{int(v):,}" for v in out[name]]
        elif pd.api.types.is_float_dtype(out[name]) or (
            out[name].dtype == object and all(v is None or isinstance(v, float) for v in out[name])
        ):
            out[name] = ["none" if pd.isna(v) else f"{v:.3f}".replace("-", "−") for v in out[name]]
    if "note" in out and not out["note"].fillna("").any():
        out = out.drop(columns="note")
    index = [*telling(rows), *keys]
    return out.set_index(index) if index else out


def intervals(rows: pd.DataFrame, digits: int = 3, sign: str = "") -> list[str]:
    """The ``estimate``, ``low`` and ``high`` of each row in words; ``sign`` "+" for differences."""
    return [interval(r.estimate, r.low, r.high, digits, sign) for r in rows.itertuples()]


def interval(estimate: float | None, low: float | None, high: float | None, digits: int, sign: str = "") -> str:
    """ "0.873 (0.842 to 0.899)", or in words that there is none."""
    if estimate is None or pd.isna(estimate):
        return "not defined"
    if low is None or pd.isna(low):
        return f"{estimate:{sign}.{digits}f}".replace("-", "−")
    return f"{estimate:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})".replace("-", "−")


def p_value(value: float | None) -> str:
    if value is None or pd.isna(value):
        return "none"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# --------------------------------------------------------------------------------------------------------------- pieces


@dataclass(frozen=True)
class _Settings:
    contrast: tuple[str, ...] = ("mstl", "ctl")
    reference: str = ""
    metric: str = "auc"
    threshold: str = "validation"
    level: float = 0.95
    n_resamples: int = 2000
    seed: int = 0
    pairs: tuple[tuple[str, str], ...] | None = None
    n_primary: int = 0


def _evaluate(
    key: Mapping[str, str], block: pd.DataFrame, settings: _Settings, parts: Collection[str], *, only_auc: bool = False
) -> dict[str, list[dict]]:
    """The rows of the wanted ``parts`` of one block. Models with the same chains are resampled together."""
    names = models(block)
    if settings.pairs is None:
        primary, pairs = _pairs(names, settings.contrast, settings.reference)
    else:
        primary, pairs = [], [pair for pair in settings.pairs if set(pair) <= set(names)]
    wanted = pairs if "differences" in parts else []
    tested = block[block["split"] == "test"].groupby("model", sort=False)["seed"].unique()
    seeds = {name: frozenset(tested.get(name, ())) for name in names}
    own = {} if parts == {"differences"} else seeds
    together: dict[frozenset, set[str]] = {}
    for name, chain_set in own.items():
        together.setdefault(chain_set, set()).add(name)
    for a, b in wanted:
        together.setdefault(seeds[a] & seeds[b], set()).update((a, b))
    found = {part: {} for part in parts}
    for chain_set, members in together.items():
        aligned = align(block, [name for name in names if name in members], chain_set)
        here = [name for name in names if own.get(name) == chain_set]
        here_pairs = [(a, b) for a, b in wanted if seeds[a] & seeds[b] == chain_set]
        statistics = _statistics(
            block, aligned, settings, parts, only_auc, here, {name for pair in here_pairs for name in pair}
        )
        resampled = aligned.block.resample(statistics, settings.n_resamples, settings.seed)
        if "arms" in parts:
            half = settings.threshold == "validation" and len(predictions.classes(block)) == 2
            found["arms"] |= {
                name: _arm_rows(key, name, aligned, resampled, settings, "no validation rows: cut at one half" if half and not cuts(block, name) else "")
                for name in here
            }
        if "curves" in parts:
            found["curves"] |= {name: _curve_rows(key, name, aligned, resampled, settings) for name in here}
        first = [pair for pair in here_pairs if pair in primary] if settings.n_primary else []
        for a, b in here_pairs:
            if (a, b) not in first:
                found["differences"][a, b] = [_difference_row(key, a, b, (a, b) in primary, aligned, resampled, settings)]
        if first:  # last, because a block's summaries draw from where its resampling ended
            few = {k: v for k, v in statistics.items() if k[1] == settings.metric and k[0] in {name for pair in first for name in pair}}
            finer = aligned.block.resample(few, settings.n_primary, settings.seed)
        for a, b in first:
            found["differences"][a, b] = [_difference_row(key, a, b, True, aligned, finer, settings)]
    order = {"arms": names, "curves": names, "differences": pairs}
    return {part: [row for item in order[part] for row in found[part].get(item, [])] for part in parts}


def _statistics(
    block, aligned: Aligned, settings: _Settings, parts: Collection[str], only_auc: bool, own: list[str], paired_too: set[str]
) -> dict:
    shared, out = aligned.block, {}
    wide = next(iter(aligned.scores.values())).ndim == 2
    n_classes = len(predictions.classes(block))
    for name, values in aligned.scores.items():
        labelled = "arms" in parts and name in own and not only_auc
        cut = _cuts(block, name, settings.threshold) if labelled or settings.metric != "auc" else 0.5
        if name in paired_too or (name in own and "arms" in parts):
            out[name, "auc"] = shared.metric("auc", values)
        if settings.metric != "auc" and name in paired_too:
            out[name, settings.metric] = shared.metric(settings.metric, values, cut)
        if labelled:
            called = values.argmax(axis=1) if wide else values >= _by_row(shared, cut)
            out[name, "labels"] = shared.each(
                lambda cell, called=called: chains.Labels.of(_LABELS, cell, called[cell.rows], n_classes)
            )
        if ("curves" in parts or ("arms" in parts and not wide and not only_auc)) and name in own:
            out[name, "curves"] = shared.each(lambda cell, s=values: _curves(cell, s[cell.rows]))
    return out


def _curves(cell: chains.Cell, values: np.ndarray):
    if values.ndim == 1:
        return chains.Curves.of(cell, cell.y, values)
    return chains.Mean(tuple(chains.Curves.of(cell, cell.y == k, values[:, k]) for k in range(values.shape[1])))


def _arm_rows(key, name: str, aligned: Aligned, resampled: Mapping, settings: _Settings, cut: str) -> list[dict]:
    """``cut``: what has to be noted of the threshold behind accuracy, precision, recall and F1."""
    counts = {c: aligned.block.counts[c] for c in _COUNTS}
    given = {"auc": resampled[name, "auc"]}
    if (name, "labels") in resampled:
        given |= {metric: resampled[name, "labels"][i] for i, metric in enumerate(_LABELS)}
    if (name, "curves") in resampled and aligned.scores[name].ndim == 1:
        given["average_precision"] = resampled[name, "curves"][chains.AVERAGE_PRECISION]
    rows = []
    for metric, of in given.items():
        known = {"estimate": None, "low": None, "high": None, "sd_chains": None} | dict.fromkeys(_COUNTS) | {"note": ""}
        try:
            one = aligned.block.summary(of, level=settings.level, bounds=(0.0, 1.0), what=metric)
            known |= {
                "estimate": one.estimate,
                "low": one.low,
                "high": one.high,
                "sd_chains": one.sd_chains,
                "note": "; ".join(filter(None, [one.note, cut if metric in _LABELS else ""])),
            } | counts
        except MstlError as absent:  # for example precision where no image is called positive: said, not guessed
            known |= counts | {"note": str(absent)}
        rows.append(key | {"model": name, "metric": METRICS.get(metric, metric.replace("_", " "))} | known)
    return rows


def _curve_rows(key, name: str, aligned: Aligned, resampled: Mapping, settings: _Settings) -> list[dict]:
    rows, block = [], aligned.block
    share = float(np.mean(aligned.truth == aligned.truth.max())) if block.y.dtype == bool else None
    for kind, part in (("roc", chains.ROC), ("pr", chains.PRECISION)):
        mean, low, high = block.band(resampled[name, "curves"][part], level=settings.level)
        rows += [
            key
            | {
                "model": name,
                "curve": kind,
                "x": x,
                "y": y,
                "low": lo,
                "high": hi,
                "cells": len(block.places),
                "prevalence": share,
            }
            for x, y, lo, hi in zip(chains.GRID, mean, low, high, strict=True)
            if kind == "roc" or x > 0
        ]
    return rows


def _difference_row(key, a: str, b: str, primary: bool, aligned: Aligned, resampled: Mapping, settings: _Settings) -> dict:
    one, two = resampled[a, settings.metric], resampled[b, settings.metric]
    same = np.array_equal(aligned.scores[a], aligned.scores[b])
    result = aligned.block.summary(one - two, level=settings.level, bounds=(-1.0, 1.0), identical=same, what=settings.metric)
    return (
        key
        | {
            "contrast": f"{a} − {b}",
            "model": a,
            "reference": b,
            "primary": primary,
            "estimate": result.estimate,
            "low": result.low,
            "high": result.high,
            "p": result.p_value,
            "p_holm": None,
            "detectable": result.detectable,
            "mean_a": float(one.at.mean()),
            "mean_b": float(two.at.mean()),
            "sd_chains": result.sd_chains,
        }
        | {c: aligned.block.counts[c] for c in _COUNTS}
        | {"note": result.note}
    )


def _frame(found: Sequence[Mapping[str, list[dict]]], part: str) -> pd.DataFrame:
    return pd.DataFrame([row for one in found for row in one[part]])


def _adjusted(rows: pd.DataFrame, family: Sequence[str]) -> pd.DataFrame:
    if not len(rows):
        raise MstlError(
            "The table has one model in every block, so there is nothing to compare: give predictions of two models on the same images."
        )
    rows["family"] = rows["primary"] & (rows["target"].isin(list(family)) if len(family) else True)
    tested = rows["family"] & rows["p"].notna()
    rows["p_holm"] = rows["p_holm"].astype(object)
    if tested.any():
        rows.loc[tested, "p_holm"] = ranks.holm(rows.loc[tested, "p"].astype(float)).astype(object)
    return rows.sort_values("primary", ascending=False, kind="stable").reset_index(drop=True)


def _pairs(names: list[str], contrast: tuple[str, ...], reference: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The primary pairs (a, b) for a − b, and all pairs with them first; of the others the later model comes first."""
    if reference and reference not in names:
        raise MstlError(
            f"The reference '{reference}' is not among the models of the table ({', '.join(names)}): name one of them."
        )
    if reference or not set(contrast) <= set(names):
        primary = [(name, reference or names[0]) for name in names if name != (reference or names[0])]
    else:
        primary = [tuple(contrast)]
    rest = [(b, a) for i, a in enumerate(names) for b in names[i + 1 :] if (a, b) not in primary and (b, a) not in primary]
    return primary, primary + rest


def _common(block: pd.DataFrame, a: str, b: str) -> frozenset:
    test = block[block["split"] == "test"]
    return frozenset(test.loc[test["model"] == a, "seed"]) & frozenset(test.loc[test["model"] == b, "seed"])


def _cuts(block: pd.DataFrame, model: str, threshold: str) -> Mapping[tuple, float] | float:
    """Youden's threshold of each chain and fold, from its validation rows; one half without any, and for several classes."""
    if threshold != "validation" or len(predictions.classes(block)) > 2:
        return 0.5
    return cuts(block, model) or 0.5


def _by_row(block: chains.Block, cut: Mapping[tuple, float] | float) -> np.ndarray:
    """The threshold of each row (n,)."""
    out = np.empty(len(block.y))
    for cell in block.places:
        if isinstance(cut, Mapping) and (cell.seed, cell.fold) not in cut:
            raise MstlError(
                f"Chain {cell.seed}, fold {cell.fold} has no validation rows to fix a threshold on, but others have: "
                "give them, or take one half by threshold: half."
            )
        out[cell.rows] = cut[cell.seed, cell.fold] if isinstance(cut, Mapping) else cut
    return out


def _called(aligned: Aligned, name: str, cut: Mapping[tuple, float] | float) -> np.ndarray:
    """The class that a model gives each row (n,)."""
    values = aligned.scores[name]
    return values.argmax(axis=1) if values.ndim == 2 else (values >= _by_row(aligned.block, cut)).astype(np.int64)
