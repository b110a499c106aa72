"""From a table of predictions to the comparison of its models: what is compared, how well each does, how they differ.

A *block* is what may be compared with each other: one target, variant and backbone. Every function takes the checked table of
:mod:`mstl.predictions` and returns a tidy table, one row a number, with its interval and its counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from mstl import predictions
from mstl.errors import MstlError
from mstl.metrics import paired, roc

BLOCK = ["target", "variant", "backbone"]
METRICS = {"auc": "AUC", "accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "F1"}
_COUNTS = ["n_images", "n_groups", "n_chains", "n_folds"]


def blocks(table: pd.DataFrame) -> pd.DataFrame:
    """One row a block: its models, and how many test images, groups, chains, folds and fits stand behind them."""
    rows = []
    for key, block in _each(table):
        test = block[block["split"] == "test"]
        rows.append(key | {"models": ", ".join(_models(block)), "classes": ", ".join(predictions.classes(block)),
                           "images": test["image_id"].nunique(), "groups": test["group"].nunique(),
                           "chains": test["seed"].nunique(), "folds": test["fold"].nunique(),
                           "fits": len(test[["model", "seed", "fold"]].drop_duplicates())})
    return pd.DataFrame(rows)


def arms(table: pd.DataFrame, *, threshold: str = "validation", level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Every metric of every model: the mean over chains and folds of the value within a fold, with its interval.

    ``threshold``: "validation" puts the cut of the label metrics where Youden's index is largest on the validation images of
    the same chain and fold (one half where the table has none), "half" at one half. Several classes: the largest probability
    decides, AUC is the mean of one against the rest, precision, recall and F1 are means over classes.

    Columns: target, variant, backbone, model, metric, estimate, low, high, sd_chains, n_images, n_groups, n_chains, n_folds, note.
    """
    rows = []
    for key, block in _each(table):
        for model in _models(block):
            own = block[block["model"] == model]
            test = own[own["split"] == "test"]
            truth, score = _truth(test, block), _score(test, block)
            cut = _cuts(own, block) if threshold == "validation" and score.ndim == 1 else 0.5
            for metric, name in METRICS.items():
                known = {"estimate": None, "low": None, "high": None, "sd_chains": None, **dict.fromkeys(_COUNTS), "note": ""}
                try:
                    mean = paired.chain_mean(truth, score, seed=test["seed"], fold=test["fold"], group=test["group"], metric=metric,
                                             threshold=cut, level=level, n_resamples=n_resamples, random_seed=seed)
                    known |= {field: getattr(mean, field) for field in known}
                except MstlError as absent:  # for example precision where no image is called positive: said, not guessed
                    known["note"] = str(absent)
                rows.append(key | {"model": model, "metric": name} | known)
    return pd.DataFrame(rows)


def differences(table: pd.DataFrame, contrast: Sequence[str] = ("mstl", "ctl"), *, metric: str = "auc", family: Sequence[str] = (),
                level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Within-fold differences of every pair of models of a block, the primary ``contrast`` first.

    ``p_holm`` is the p-value of the primary contrast after Holm's correction over the blocks whose target is in ``family`` (all
    targets when empty); the other rows are exploratory and have none. Where the primary contrast's models are not in a table, the
    first two models stand in for it.

    Columns: target, variant, backbone, contrast, primary, estimate, low, high, p, p_holm, detectable, mean_a, mean_b, counts, note.
    """
    rows = []
    for key, block in _each(table):
        for number, (a, b) in enumerate(_pairs(_models(block), tuple(contrast))):
            both = _aligned(block, a, b)
            result = paired.chain_difference(both["truth"], both["a"], both["b"], seed=both["seed"], fold=both["fold"], group=both["group"],
                                             metric=metric, level=level, n_resamples=n_resamples, random_seed=seed)
            rows.append(key | {"contrast": f"{a} − {b}", "primary": number == 0, "estimate": result.difference, "low": result.low,
                               "high": result.high, "p": result.p_value, "p_holm": None, "detectable": result.detectable,
                               "mean_a": result.mean_a, "mean_b": result.mean_b, "sd_chains": result.sd_chains}
                        | {c: getattr(result, c) for c in _COUNTS} | {"note": result.note})
    if not rows:
        raise MstlError("The table has one model in every block, so there is nothing to compare: give predictions of two models on the same images.")
    out = pd.DataFrame(rows)
    out["family"] = out["primary"] & (out["target"].isin(list(family)) if len(family) else True)
    tested = out["family"] & out["p"].notna()
    if tested.any():
        from statsmodels.stats.multitest import multipletests

        out.loc[tested, "p_holm"] = multipletests(out.loc[tested, "p"].astype(float), method="holm")[1]
    return out.sort_values("primary", ascending=False, kind="stable").reset_index(drop=True)


def label(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.Series:
    """How the block of each row is called in a figure: the target's title, with the backbone where there are several."""
    name = rows["target"].map(lambda t: titles.get(t, t) or "all images")
    name = name + rows["variant"].map(lambda v: f", {v}" if v else "")
    return name if rows["backbone"].nunique() < 2 else name + " · " + rows["backbone"]


def spread(rows: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """The table of :func:`arms` to look at: one row a model, one column a metric, each "estimate (low–high)"."""
    shown = rows.assign(text=[_interval(r.estimate, r.low, r.high, digits) for r in rows.itertuples()])
    keys = _telling(rows) + ["model"]
    out = shown.pivot_table(index=keys, columns="metric", values="text", aggfunc="first", sort=False)
    return out[[m for m in METRICS.values() if m in out]]


def tidy(rows: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """The table of :func:`differences` to look at."""
    out = rows[_telling(rows) + ["contrast"]].copy()
    out["difference (interval)"] = [_interval(r.estimate, r.low, r.high, digits, sign="+") for r in rows.itertuples()]
    out["p"] = [_p(v) for v in rows["p"]]
    out["p, Holm"] = [_p(v) if f else "exploratory" for v, f in zip(rows["p_holm"], rows["family"], strict=True)]
    out["detectable"] = [f"{v:.{digits}f}" if pd.notna(v) else "" for v in rows["detectable"]]
    return out.set_index(_telling(rows) + ["contrast"])


def answer(rows: pd.DataFrame, *, margin: float, titles: Mapping[str, str] | None = None, simulated: bool = False) -> str:
    """The primary differences in words of a fixed, hedged form, generated from their numbers alone.

    A difference is "higher" or "lower" when its Holm-adjusted p-value is below 1 − level and its interval excludes zero, "equivalent"
    when the interval lies within ± ``margin``, and otherwise "not shown".
    """
    titles = titles or {}
    own = rows[rows["family"]]
    parts = []
    for row, name in zip(own.itertuples(), label(own, titles), strict=True):
        if row.low is None or pd.isna(row.low):
            verdict = "no interval exists"
        elif (row.low > 0 or row.high < 0) and row.p_holm is not None and row.p_holm < 0.05:
            verdict = "higher" if row.low > 0 else "lower"
        elif -margin < row.low and row.high < margin:
            verdict = f"equivalent within ± {margin:g}"
        else:
            verdict = "a difference is not shown"
        parts.append(f"{name}: {_interval(row.estimate, row.low, row.high, 3, sign='+')}, {verdict}")
    images = "simulated images (which check the machinery, not the claim)" if simulated else "real images"
    first = own["contrast"].iloc[0] if len(own) else ""
    one = "n_chains" in own and (own["n_chains"] == 1).all()
    more = " One chain: these intervals hold the draw of patients, not the luck of a training run." if one and len(own) else ""
    return f"Difference in AUC, {first}, on {images} — " + "; ".join(parts) + "." + more


def numbers(arm_rows: pd.DataFrame, difference_rows: pd.DataFrame) -> dict[str, float | int]:
    """Every figure of a comparison under a name that prose can call: ``auc_<target>_<model>``, ``diff_<target>``, ``diff_<target>_low``, …

    The first backbone has the plain names, further ones end in ``_<backbone>``; variants follow the target's name.
    """
    out: dict[str, float | int] = {}
    backbones = list(dict.fromkeys(arm_rows["backbone"]))

    def name(stem: str, row, end: str = "") -> str:
        place = "_".join(part for part in (row.target, row.variant) if part) or "all"
        more = "" if row.backbone == backbones[0] else f"_{row.backbone}"
        return f"{stem}_{place}{end}{more}"

    for row in arm_rows.itertuples():
        stem = row.metric.lower()
        out |= {name(stem, row, f"_{row.model}"): row.estimate, name(stem, row, f"_{row.model}_low"): row.low,
                name(stem, row, f"_{row.model}_high"): row.high, name("n_test", row): row.n_images, name("n_groups", row): row.n_groups}
    for row in difference_rows[difference_rows["primary"]].itertuples():
        out |= {name("diff", row): row.estimate, name("diff", row, "_low"): row.low, name("diff", row, "_high"): row.high,
                name("p", row): row.p, name("p_holm", row): row.p_holm, name("detectable", row): row.detectable}
    return {k: (int(v) if k.startswith("n_") else float(v)) for k, v in out.items() if v is not None and pd.notna(v)}


# ------------------------------------------------------------------------------------------------------------- pieces

def _each(table: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    for key, block in table.groupby(BLOCK, sort=False, dropna=False):
        yield dict(zip(BLOCK, map(str, key), strict=True)), block


def _models(block: pd.DataFrame) -> list[str]:
    """The arms in their order, then other models as they come."""
    found = list(dict.fromkeys(block["model"]))
    return [m for m in ("scratch", "ctl", "mstl") if m in found] + [m for m in found if m not in ("scratch", "ctl", "mstl")]


def _pairs(models: list[str], contrast: tuple[str, str]) -> list[tuple[str, str]]:
    """All pairs, later model minus earlier, the primary contrast first."""
    every = [(b, a) for i, a in enumerate(models) for b in models[i + 1:]]
    if contrast in every:
        every.remove(contrast)
        return [contrast, *every]
    reverse = contrast[::-1]
    if reverse in every:
        every.remove(reverse)
        return [contrast, *every]
    return every


def _truth(rows: pd.DataFrame, block: pd.DataFrame) -> np.ndarray:
    """Class indices (n,); 0 and 1 in a binary block, 1 the last class."""
    order = {name: index for index, name in enumerate(predictions.classes(block))}
    return rows["y_true"].map(order).to_numpy(dtype=np.int64)


def _score(rows: pd.DataFrame, block: pd.DataFrame) -> np.ndarray:
    """Probability of the last class (n,), or of every class (n, K) where there are more than two."""
    columns = [f"p_{name}" for name in predictions.classes(block)]
    values = rows[columns].to_numpy(dtype=float)
    return values[:, -1] if len(columns) == 2 else values


def _cuts(own: pd.DataFrame, block: pd.DataFrame) -> Mapping[tuple, float] | float:
    """Youden's threshold of each chain and fold, from its validation rows; one half without any."""
    val = own[own["split"] == "val"]
    if val.empty:
        return 0.5
    return {cell: roc.choose_threshold(_truth(part, block), _score(part, block), rule="youden")
            for cell, part in val.groupby(["seed", "fold"])}


def _aligned(block: pd.DataFrame, a: str, b: str) -> dict[str, np.ndarray]:
    """Test rows of both models in the chains that both have, row for row: seed, fold, group, truth (n,) and the scores a, b (n,) or (n, K)."""
    keys = ["seed", "fold", "image_id"]
    test = block[block["split"] == "test"]
    chains = set(test.loc[test["model"] == a, "seed"]) & set(test.loc[test["model"] == b, "seed"])
    left, right = (test[(test["model"] == m) & test["seed"].isin(chains)].sort_values(keys) for m in (a, b))
    if not len(left) or len(left) != len(right) or not (left[keys].to_numpy() == right[keys].to_numpy()).all():
        where = ", ".join(str(block[k].iloc[0]) for k in BLOCK if block[k].iloc[0])
        raise MstlError(f"{a} and {b} do not cover the same images in the same chains and folds ({where or 'the table'}: {len(left)} and "
                        f"{len(right)} test rows), so they cannot be compared in pairs: give both models' predictions on every test image.")
    scores_a, scores_b = _score(left, block), _score(right, block)
    return {"seed": left["seed"].to_numpy(), "fold": left["fold"].to_numpy(), "group": left["group"].to_numpy(),
            "truth": _truth(left, block), "a": scores_a, "b": scores_b}


def _telling(rows: pd.DataFrame) -> list[str]:
    """The block's columns that differ between rows, the target always."""
    return ["target"] + [c for c in ("variant", "backbone") if rows[c].nunique() > 1]


def _interval(estimate: float | None, low: float | None, high: float | None, digits: int, sign: str = "") -> str:
    if estimate is None or pd.isna(estimate):
        return "not defined"
    if low is None or pd.isna(low):
        return f"{estimate:{sign}.{digits}f}".replace("-", "−")
    return f"{estimate:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})".replace("-", "−")


def _p(value: float | None) -> str:
    if value is None or pd.isna(value):
        return "none"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
