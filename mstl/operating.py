"""What the models of a predictions table would do in use: operating points, false alarms, calibration, decision curves.

Everything is for two classes; :func:`binary` turns a table of several into one class against the rest. Thresholds and
recalibrations are fixed in each chain and fold on its validation rows, or, where asked for and so named, on the test rows
themselves. Means are over chains and folds of values within a fold; tests of counts are for one test set at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mstl import comparison, predictions
from mstl.errors import MstlError
from mstl.metrics import calibration as calibrations
from mstl.metrics import chains, paired

RULES = ("youden", "sensitivity", "specificity")
#: On which rows a threshold was chosen.
CHOSEN = ("validation", "test")
NO_VALIDATION = "not given: the table has no validation rows (split = val) of this model"
_SPLIT = {"validation": "val", "test": "test"}
_COUNTS = ["n_images", "n_groups", "n_chains", "n_folds"]


@dataclass(frozen=True)
class Operating:
    """The tables of :func:`evaluate`."""

    points: pd.DataFrame
    rates: pd.DataFrame
    per_thousand: pd.DataFrame
    differences: pd.DataFrame
    brier: pd.DataFrame
    benefit: pd.DataFrame


def binary(table: pd.DataFrame, positive: str = "") -> pd.DataFrame:
    """The table with two classes in every block: ``positive`` (empty: the last class of each block) against the rest.

    A block of two classes stays as it is, unless ``positive`` names its first one, which then becomes the last.
    """
    parts = []
    for _, block in comparison.each(table):
        names = predictions.classes(block)
        if positive and positive not in names:
            raise MstlError(
                f"'{positive}' is no class of the table ({', '.join(names)}): name one of them as the positive class."
            )
        last = positive or names[-1]
        rest = next(n for n in names if n != last) if len(names) == 2 else f"not {last}"
        score = block[f"p_{last}"].to_numpy()
        fixed = block.drop(columns=[c for c in block if c.startswith("p_")])
        truth = block["y_true"].where(block["y_true"] == last, rest)
        parts.append(fixed.assign(y_true=truth, **{f"p_{rest}": 1 - score, f"p_{last}": score}))
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)


def positives(table: pd.DataFrame) -> dict[str, str]:
    """The positive class of each target of a binary table."""
    return {key["target"]: predictions.classes(block)[-1] for key, block in comparison.each(table)}


def name(rule: str, at: float = 0.90) -> str:
    """How a rule is called: "Youden", "sensitivity ≥ 0.90"."""
    return "Youden" if rule == "youden" else f"{rule} ≥ {at:.2f}"


def evaluate(
    table: pd.DataFrame,
    contrast: Sequence[str] = ("mstl", "ctl"),
    *,
    reference: str = "",
    at: float = 0.90,
    prevalence: float | None = None,
    recalibration: str = "platt",
    thresholds: Sequence[float] | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Operating:
    """Operating points, Brier scores and decision curves of every model of a binary table, from one set of resamples.

    ``at``: the sensitivity or specificity that two of the rules keep; ``prevalence``: of the population that predictive values,
    counts per 1000 and net benefit are for (None: each test set's own); ``recalibration`` as in ``calibration.recalibration``;
    ``thresholds`` of the decision curves (default 0.05, 0.06 … 0.60).

    - ``points``: one row a model, rule, choice ("validation" or "test"), chain and fold: threshold, tp, fp, fn, tn
    - ``rates``: sensitivity, specificity, ppv, npv, each the mean within folds with its interval
    - ``per_thousand``: tp, fp, fn, tn expected among 1000 examinations
    - ``differences``: of the four rates and of false positives per 1000, for the primary pairs; p without correction
    - ``brier``: as given and recalibrated;  ``benefit``: net benefit at each threshold, also of pairs and of treating all
    """
    grid = np.arange(5, 61) / 100 if thresholds is None else np.sort(np.asarray(thresholds, float))
    if not len(grid) or not ((grid > 0) & (grid < 1)).all():
        raise MstlError(
            "The thresholds of a decision curve must be probabilities strictly between 0 and 1, for example 0.05 to 0.60."
        )
    if prevalence is not None and not 0 < prevalence < 1:
        raise MstlError(
            f"The prevalence is {prevalence:g}, but must lie between 0 and 1: give for example 0.05, or none for the table's own."
        )
    parts: dict[str, list] = {field: [] for field in Operating.__dataclass_fields__}
    for key, block in comparison.each(table):
        for names, seeds in _sharing(block):
            work = _Block(key, block, names, seeds, at, prevalence, recalibration, grid, level, n_resamples, seed)
            for field, rows in work.tables(comparison.primary_pairs(comparison.models(block), contrast, reference)).items():
                parts[field] += rows
    return Operating(**{field: pd.DataFrame(rows) for field, rows in parts.items()})


def mcnemar(
    table: pd.DataFrame,
    contrast: Sequence[str] = ("mstl", "ctl"),
    *,
    reference: str = "",
    at: float = 0.90,
    level: float = 0.95,
) -> pd.DataFrame:
    """McNemar's tests of the primary pairs, one test set a row: one rule, choice, chain and fold, among positives, negatives and all.

    Among the positives the right calls are compared (sensitivity), among the negatives the right rejections (specificity).
    ``p_clustered`` is given where a group has several images, and then is the one to report. Rows of a block share images or
    training data: their p-values must not be combined.

    Columns: target, variant, backbone, contrast, rule, chosen_on, seed, fold, compares, only_a, only_b, difference, low, high, p_exact,
    p_corrected, p_clustered, n_images, n_groups, note.
    """
    rows = []
    for key, block in comparison.each(table):
        cuts = _cuts(block, at)
        for a, b in comparison.primary_pairs(comparison.models(block), contrast, reference):
            common = set(_seeds(block, a)) & set(_seeds(block, b))
            both = comparison.align(block, [a, b], common)
            for rule in RULES:
                for chosen in CHOSEN:
                    cut_a, cut_b = (cuts.get((m, rule, chosen)) for m in (a, b))
                    for cell in both.block.places if cut_a and cut_b else ():
                        place = cell.seed, cell.fold
                        if place not in cut_a or place not in cut_b:
                            continue
                        groups = both.group[cell.rows]
                        grouped = len(set(groups)) < len(groups)
                        right = [(both.scores[m][cell.rows] >= cut[place]) == cell.y for m, cut in ((a, cut_a), (b, cut_b))]
                        for compares, inside in (
                            ("sensitivity", cell.y),
                            ("specificity", ~cell.y),
                            ("accuracy", np.ones_like(cell.y)),
                        ):
                            several = grouped and len(set(groups[inside])) > 1
                            test = paired.mcnemar(
                                right[0][inside], right[1][inside], groups=groups[inside] if several else None, level=level
                            )
                            rows.append(
                                key
                                | {
                                    "contrast": f"{a} − {b}",
                                    "rule": name(rule, at),
                                    "chosen_on": chosen,
                                    "seed": cell.seed,
                                    "fold": cell.fold,
                                    "compares": compares,
                                    "only_a": test.only_a,
                                    "only_b": test.only_b,
                                    "difference": test.difference,
                                    "low": test.low,
                                    "high": test.high,
                                    "p_exact": test.p_exact,
                                    "p_corrected": test.p_corrected,
                                    "p_clustered": test.p_clustered,
                                    "n_images": test.n,
                                    "n_groups": len(set(groups[inside])),
                                    "note": test.note,
                                }
                            )
    return pd.DataFrame(rows)


def relative_values(
    table: pd.DataFrame,
    contrast: Sequence[str] = ("mstl", "ctl"),
    *,
    reference: str = "",
    at: float = 0.90,
    level: float = 0.95,
) -> pd.DataFrame:
    """Relative predictive values (PPV a / PPV b, and NPV) with the test of their logarithm, for blocks that are one test set.

    Columns: target, variant, backbone, contrast, rule, chosen_on, quantity, value_a, value_b, estimate (the ratio), low, high, p, n_images,
    n_groups, note. At the test set's own prevalence. Blocks of several chains or folds have no such row.
    """
    rows = []
    for key, block in comparison.each(table):
        cuts = _cuts(block, at)
        for a, b in comparison.primary_pairs(comparison.models(block), contrast, reference):
            both = comparison.align(block, [a, b], set(_seeds(block, a)) & set(_seeds(block, b)))
            if len(both.block.places) > 1:
                break
            place, y = (both.block.places[0].seed, both.block.places[0].fold), both.block.y
            grouped = len(set(both.group)) < len(y)
            for rule in RULES:
                for chosen in CHOSEN:
                    cut = [cuts.get((m, rule, chosen)) for m in (a, b)]
                    if not (cut[0] and cut[1]):
                        continue
                    called = [both.scores[m] >= c[place] for m, c in zip((a, b), cut, strict=True)]
                    for quantity, test in (("ppv", paired.ppv_test), ("npv", paired.npv_test)):
                        # the ratio's interval and test are analytic; the test's resamples are not used here
                        found = test(y, *called, groups=both.group if grouped else None, level=level, n_resamples=100)
                        rows.append(
                            key
                            | {
                                "contrast": f"{a} − {b}",
                                "rule": name(rule, at),
                                "chosen_on": chosen,
                                "quantity": f"{quantity} ratio",
                                "value_a": found.value_a,
                                "value_b": found.value_b,
                                "estimate": found.ratio,
                                "low": found.ratio_low,
                                "high": found.ratio_high,
                                "p": found.ratio_p_value,
                                "n_images": len(y),
                                "n_groups": len(set(both.group)),
                                "note": "" if found.ratio is not None else found.note,
                            }
                        )
    return pd.DataFrame(rows)


def calibration(table: pd.DataFrame, *, recalibration: str = "platt", level: float = 0.95) -> pd.DataFrame:
    """How far risks can be believed, one row a model, chain, fold and form ("as given", or recalibrated on validation).

    Columns: target, variant, backbone, model, risks, seed, fold, slope, slope_low, slope_high, intercept, intercept_low, intercept_high,
    in_the_large, in_the_large_low, in_the_large_high, brier, ece, ece_expected, spiegelhalter_z, spiegelhalter_p, n_images, n_groups, note.
    """
    rows = []
    for key, block in comparison.each(table):
        for model in comparison.models(block):
            aligned = comparison.align(block, [model])
            given = aligned.scores[model]
            for form, risk in (("as given", given), (recalibration, _recalibrated(block, model, aligned, recalibration))):
                for cell in aligned.block.places if risk is not None else ():
                    rows.append(
                        key
                        | {"model": model, "risks": form, "seed": cell.seed, "fold": cell.fold}
                        | _calibration_of(cell.y, risk[cell.rows], aligned.group[cell.rows], level)
                    )
    return pd.DataFrame(rows)


def reliability(table: pd.DataFrame, *, recalibration: str = "platt", n_bins: int = 10, level: float = 0.95) -> pd.DataFrame:
    """The reliability diagram by deciles of risk: bin, mean risk and observed share, the mean over chains and folds.

    ``low`` and ``high`` are Wilson's interval where there is one test set, and otherwise the lowest and highest fold.
    Columns: target, variant, backbone, model, risks, bin, mean_risk, observed, low, high, n_images, cells.
    """
    rows = []
    for key, block in comparison.each(table):
        for model in comparison.models(block):
            aligned = comparison.align(block, [model])
            for form, risk in (
                ("as given", aligned.scores[model]),
                (recalibration, _recalibrated(block, model, aligned, recalibration)),
            ):
                if risk is None:
                    continue
                cells = [
                    calibrations.reliability(cell.y, risk[cell.rows], n_bins=n_bins, level=level)
                    for cell in aligned.block.places
                ]
                every = pd.concat(cells, ignore_index=True)
                for number, part in every.groupby("bin"):
                    one = len(cells) == 1
                    rows.append(
                        key
                        | {
                            "model": model,
                            "risks": form,
                            "bin": number,
                            "mean_risk": part["mean_risk"].mean(),
                            "observed": part["observed"].mean(),
                            "low": part["low" if one else "observed"].min(),
                            "high": part["high" if one else "observed"].max(),
                            "n_images": int(part["n"].sum()),
                            "cells": len(cells),
                        }
                    )
    return pd.DataFrame(rows)


def useful(benefit: pd.DataFrame, model: str) -> tuple[float, float] | None:
    """The widest run of thresholds at which the band of a model's net benefit lies above treating all and treating none."""
    own = benefit[(benefit["model"] == model) & benefit["low"].notna()].sort_values("threshold")
    better = (own["low"] > np.maximum(own["treat_all"], 0)).to_numpy()
    runs, start = [], None
    for i, yes in enumerate([*better, False]):
        if yes and start is None:
            start = i
        if not yes and start is not None:
            runs.append((start, i - 1))
            start = None
    if not runs:
        return None
    first, last = max(runs, key=lambda run: run[1] - run[0])
    at = own["threshold"].to_numpy()
    return float(at[first]), float(at[last])


# ------------------------------------------------------------------------------------------------------- tables to look at


def spread(rates: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """The rates to look at: one row a model, rule and choice, one column a rate."""
    shown = rates.assign(text=comparison.intervals(rates, digits))
    keys = comparison.telling(rates) + ["rule", "model", "chosen_on"]
    out = shown.pivot_table(index=keys, columns="quantity", values="text", aggfunc="first", sort=False)
    return out.reindex(columns=list(chains.RATES)).rename(columns={"ppv": "PPV", "npv": "NPV"}).rename_axis(columns=None).fillna("not defined")


def tidy(rows: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """Differences to look at, one row a pair and rule, one column a quantity with its interval; p in brackets behind it."""
    text = []
    for r in rows.itertuples():
        per = "per 1000" in r.quantity
        text.append(
            f"{comparison.interval(r.estimate, r.low, r.high, 0 if per else digits, sign='+')}, p {comparison.p_value(r.p)}"
        )
    keys = comparison.telling(rows) + ["contrast", "rule"]
    out = rows.assign(text=text).pivot_table(index=keys, columns="quantity", values="text", aggfunc="first", sort=False)
    return out.rename(columns={"ppv": "PPV", "npv": "NPV"}).rename_axis(columns=None).fillna("not defined")


def thousand(rows: pd.DataFrame) -> pd.DataFrame:
    """The counts per 1000 to look at, one row a rule and model."""
    shown = rows.assign(
        text=comparison.intervals(rows, 0), prevalence=[f"{v:.0%}" if v >= 0.1 else f"{v:.1%}" for v in rows["prevalence"]]
    )
    out = shown.pivot_table(
        index=[*comparison.telling(rows), "prevalence", "rule", "model"],
        columns="quantity",
        values="text",
        aggfunc="first",
        sort=False,
    )
    return out.rename(columns=lambda name: name.replace(" per 1000", "")).rename_axis(columns=None).fillna("not defined")


def calibration_table(rows: pd.DataFrame, brier: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """Calibration to look at: of one test set each value with its interval, of several folds the mean with lowest and highest."""
    keys = comparison.telling(rows) + ["model", "risks"]
    out = []
    for place, part in rows.groupby(keys, sort=False):
        row = dict(zip(keys, place, strict=True))
        one = len(part) == 1
        for quantity, title in (("slope", "slope"), ("intercept", "intercept"), ("in_the_large", "in the large")):
            values = part[quantity].dropna().astype(float)
            ends = (part[f"{quantity}_low"], part[f"{quantity}_high"]) if one else (values.min(), values.max())
            low, high = (
                float(v.iloc[0]) if hasattr(v, "iloc") and pd.notna(v.iloc[0]) else v if not hasattr(v, "iloc") else None
                for v in ends
            )
            row[title] = comparison.interval(values.mean(), low, high, digits) if len(values) else "not defined"
        own = brier[
            (brier[["model", "risks"]] == [row["model"], row["risks"]]).all(axis=1)
            & (brier["target"] == part["target"].iloc[0])
            & (brier["variant"] == part["variant"].iloc[0])
            & (brier["backbone"] == part["backbone"].iloc[0])
        ]
        row["Brier"] = comparison.interval(*own[["estimate", "low", "high"]].iloc[0], 3) if len(own) else "not defined"
        row["ECE (by chance)"] = f"{part['ece'].mean():.3f} ({part['ece_expected'].mean():.3f})"
        row["Spiegelhalter p"] = comparison.p_value(part["spiegelhalter_p"].iloc[0]) if one else "one test set only"
        out.append(row)
    return pd.DataFrame(out).set_index(keys)


def sentences(
    found: Operating, *, at: float = 0.90, titles: Mapping[str, str] | None = None, simulated: bool = False
) -> list[str]:
    """What the differences say, a sentence a primary pair and block, for the rule that keeps sensitivity."""
    rule, out = name("sensitivity", at), []
    rows = found.differences
    if not len(rows):
        return out
    chosen = "validation" if (rows["chosen_on"] == "validation").any() else "test"
    own = rows[(rows["rule"] == rule) & (rows["chosen_on"] == chosen)]
    labels = comparison.label(own, titles or {})
    for (block, contrast), part in own.groupby([labels, "contrast"], sort=False):
        by = part.set_index("quantity")
        saved, kept = by.loc["false positives saved per 1000"], by.loc["sensitivity"]
        if saved["estimate"] is None or pd.isna(saved["estimate"]):
            continue
        where = "" if block == "all images" else f" on {block}"
        what = "simulated examinations" if simulated else "examinations"
        out.append(
            f"With the threshold for {rule} fixed on {'validation' if chosen == 'validation' else 'the test images themselves (optimistic)'}, {contrast}{where}: "
            f"{comparison.interval(saved['estimate'], saved['low'], saved['high'], 0, sign='+')} false positives saved per 1000 {what} at a prevalence of "
            f"{saved['prevalence']:.0%}, while sensitivity differs by {comparison.interval(kept['estimate'], kept['low'], kept['high'], 3, sign='+')}."
        )
    return out


def leading(found: Operating, contrast: Sequence[str] = ("mstl", "ctl"), *, reference: str = "", limit: int = 6) -> list[str]:
    """The models that a figure can show legibly: those of the primary contrast, or the reference, and then by Youden's index."""
    names = list(dict.fromkeys(found.rates["model"]))
    if len(names) <= limit:
        return names
    rates = found.rates[(found.rates["rule"] == "Youden") & found.rates["quantity"].isin(["sensitivity", "specificity"])]
    best = rates.groupby("model")["estimate"].mean().sort_values(ascending=False)
    first = [reference or names[0]] if reference or not set(contrast) <= set(names) else list(contrast)
    return [name for name in names if name in {*first, *[m for m in best.index if m not in first][: limit - len(first)]}]


def numbers(found: Operating, calibration_rows: pd.DataFrame) -> dict[str, float]:
    """Figures under names that prose can call, thresholds fixed on validation where the table allows.

    ``<rate>_<rule>_<target>_<model>`` with rule youden, high_sensitivity or high_specificity, and ``_low``, ``_high``;
    ``saved_<rule>_<target>`` (false positives saved per 1000, first primary pair); ``slope_<target>_<model>``, ``brier_…`` and
    ``…_recalibrated``; ``prevalence_<target>``.
    """
    out: dict[str, float] = {}
    chosen = "validation" if len(found.differences) and (found.differences["chosen_on"] == "validation").any() else "test"

    def rule_name(rule: str) -> str:
        return "youden" if rule == "Youden" else f"high_{rule.split(' ')[0]}"

    def place(row) -> str:
        return "_".join(part for part in (row.target, row.variant) if part) or "all"

    for row in found.rates[found.rates["chosen_on"] == chosen].itertuples():
        stem = f"{row.quantity}_{rule_name(row.rule)}_{place(row)}_{row.model}"
        out |= {
            stem: row.estimate,
            f"{stem}_low": row.low,
            f"{stem}_high": row.high,
            f"prevalence_{place(row)}": row.prevalence,
        }
    for row in found.differences[found.differences["chosen_on"] == chosen].iloc[::-1].itertuples():  # the first pair counts
        if row.quantity == "false positives saved per 1000":
            stem = f"saved_{rule_name(row.rule)}_{place(row)}"
            out |= {stem: row.estimate, f"{stem}_low": row.low, f"{stem}_high": row.high}
    for row in found.brier.itertuples():
        out[f"brier_{place(row)}_{row.model}" + ("" if row.risks == "as given" else "_recalibrated")] = row.estimate
    for (target, variant, model, risks), part in calibration_rows.groupby(["target", "variant", "model", "risks"], sort=False):
        where = "_".join(p for p in (target, variant) if p) or "all"
        slopes = part["slope"].dropna().astype(float)
        if len(slopes):
            out[f"slope_{where}_{model}" + ("" if risks == "as given" else "_recalibrated")] = slopes.mean()
    return {k: float(v) for k, v in out.items() if v is not None and pd.notna(v)}


# ---------------------------------------------------------------------------------------------------------------- pieces


def _seeds(block: pd.DataFrame, model: str) -> list[int]:
    return sorted(block.loc[(block["model"] == model) & (block["split"] == "test"), "seed"].unique())


def _cuts(block: pd.DataFrame, at: float) -> dict[tuple[str, str, str], dict[tuple[int, int], float]]:
    """The thresholds of every model, rule and choice; what a model has no rows for is left out."""
    parts = dict(list(block.groupby(["model", "split"])))
    out = {}
    for model in comparison.models(block):
        for chosen, split in _SPLIT.items():
            if (model, split) in parts:
                out |= {
                    (model, rule, chosen): found
                    for rule, found in comparison.thresholds(parts[model, split], block, RULES, at=at).items()
                }
    return out


def _sharing(block: pd.DataFrame) -> list[tuple[list[str], frozenset]]:
    """Models with the same chains, which are resampled together."""
    together: dict[frozenset, list[str]] = {}
    for model in comparison.models(block):
        together.setdefault(frozenset(_seeds(block, model)), []).append(model)
    return [(names, seeds) for seeds, names in together.items()]


def _recalibrated(block: pd.DataFrame, model: str, aligned: comparison.Aligned, method: str) -> np.ndarray | None:
    """Test risks (n,) recalibrated by fits on the validation rows of each chain and fold; None without such rows."""
    own = block[(block["model"] == model) & (block["split"] == "val")]
    parts = dict(list(own.groupby(["seed", "fold"])))
    if any((cell.seed, cell.fold) not in parts for cell in aligned.block.places):
        return None
    out = np.empty(len(aligned.truth))
    for cell in aligned.block.places:
        val = parts[cell.seed, cell.fold]
        out[cell.rows] = calibrations.recalibrate(
            comparison.truth(val, block), comparison.score(val, block), aligned.scores[model][cell.rows], method=method
        )
    return out


def _calibration_of(y: np.ndarray, risk: np.ndarray, groups: np.ndarray, level: float) -> dict[str, object]:
    grouped = groups if len(set(groups)) < len(groups) else None
    names = (
        "slope",
        "slope_low",
        "slope_high",
        "intercept",
        "intercept_low",
        "intercept_high",
        "in_the_large",
        "in_the_large_low",
        "in_the_large_high",
    )
    out: dict[str, object] = dict.fromkeys(names)
    notes = []
    try:
        line = calibrations.calibration_line(y, risk, groups=grouped, level=level)
        out = {field: getattr(line, field) for field in names}
        notes.append(line.note)
    except MstlError as absent:
        notes.append(str(absent))
    error, z = calibrations.ece(y, risk), calibrations.spiegelhalter(y, risk)
    if grouped is not None:
        notes.append("Spiegelhalter's test takes images as independent")
    return out | {
        "brier": calibrations.brier(y, risk).estimate,
        "ece": error.ece,
        "ece_expected": error.expected,
        "spiegelhalter_z": z.statistic,
        "spiegelhalter_p": z.p_value,
        "n_images": len(y),
        "n_groups": len(set(groups)),
        "note": "; ".join(filter(None, [*notes, z.note])),
    }


class _Block:
    """Models of one block on the same rows, with every statistic of :func:`evaluate` under the same resamples."""

    def __init__(
        self,
        key,
        block,
        names,
        seeds: Collection[int],
        at: float,
        prevalence: float | None,
        recalibration: str,
        grid: np.ndarray,
        level: float,
        n_resamples: int,
        seed: int,
    ) -> None:
        self.key, self.names, self.at, self.prevalence, self.grid, self.level = key, names, at, prevalence, grid, level
        self.aligned = comparison.align(block, names, seeds)
        self.shared = self.aligned.block
        self.recalibration = recalibration
        own = block[(block["split"] == "test")]
        self.share = (
            float((own.drop_duplicates("image_id")["y_true"] == predictions.classes(block)[-1]).mean())
            if prevalence is None
            else prevalence
        )
        places = [(cell.seed, cell.fold) for cell in self.shared.places]
        self.cuts = {
            which: found
            for which, found in _cuts(block, at).items()
            if which[0] in names and all(place in found for place in places)
        }
        self.risks = {(model, "as given"): self.aligned.scores[model] for model in names}
        for model in names:
            risk = _recalibrated(block, model, self.aligned, recalibration)
            if risk is not None:
                self.risks[model, recalibration] = risk
        statistics = {"rates": self.shared.each(self._rates)}
        for which, risk in self.risks.items():
            statistics["brier", *which] = self.shared.metric("brier", risk)
            statistics["benefit", *which] = self.shared.each(
                lambda cell, risk=risk: chains.NetBenefits.of(cell, risk[cell.rows], grid, prevalence)
            )
        self.resampled = self.shared.resample(statistics, n_resamples, seed)

    def _called(self, cell: chains.Cell, which: tuple[str, str, str]) -> np.ndarray:
        return self.aligned.scores[which[0]][cell.rows] >= self.cuts[which][cell.seed, cell.fold]

    def _rates(self, cell: chains.Cell) -> chains.Rates:
        return chains.Rates.of(cell, np.stack([self._called(cell, which) for which in self.cuts]), self.prevalence)

    def tables(self, pairs: Sequence[tuple[str, str]]) -> dict[str, list[dict]]:
        pairs = [(a, b) for a, b in pairs if a in self.names and b in self.names]
        out = {
            "points": [self._point(which, cell) for which in self.cuts for cell in self.shared.places],
            "rates": [],
            "per_thousand": [],
            "differences": [],
            "brier": [
                self._key(model=model, risks=form) | self._summary(self.resampled["brier", model, form], (0.0, 1.0))
                for model, form in self.risks
            ],
            "benefit": [row for which in self.risks for row in self._benefit(which)]
            + [row for pair in pairs for row in self._benefit_difference(*pair)],
        }
        for model in self.names:
            for rule in RULES:
                for chosen in CHOSEN:
                    out["rates"] += self._rate_rows(model, rule, chosen)
                    out["per_thousand"] += self._thousand(model, rule, chosen)
        for a, b in pairs:
            for rule in RULES:
                for chosen in CHOSEN:
                    out["differences"] += self._difference_rows(a, b, rule, chosen)
        return out

    def _key(self, **more) -> dict:
        return self.key | more

    def _counts(self) -> dict[str, int]:
        return {c: self.shared.counts[c] for c in _COUNTS}

    def _summary(self, of: chains.Resampled, bounds: tuple[float, float], identical: bool = False) -> dict[str, object]:
        """Estimate, interval and p; where a fold has no such value, the note says why."""
        known = {"estimate": None, "low": None, "high": None, "p": None} | self._counts() | {"note": ""}
        bad = np.flatnonzero(~np.isfinite(of.at))
        if len(bad):
            cell = self.shared.places[bad[0]]
            return known | {"note": f"does not exist in seed {cell.seed}, fold {cell.fold}, where no image is called so"}
        one = self.shared.summary(of, level=self.level, bounds=bounds, identical=identical)
        return known | {"estimate": one.estimate, "low": one.low, "high": one.high, "p": one.p_value, "note": one.note}

    def _rate(self, which: tuple[str, str, str], quantity: str) -> chains.Resampled:
        return self.resampled["rates"][list(self.cuts).index(which), chains.RATES.index(quantity)]

    def _point(self, which: tuple[str, str, str], cell: chains.Cell) -> dict:
        called, y = self._called(cell, which), cell.y
        model, rule, chosen = which
        return self._key(
            model=model,
            rule=name(rule, self.at),
            chosen_on=chosen,
            seed=cell.seed,
            fold=cell.fold,
            threshold=self.cuts[which][cell.seed, cell.fold],
            tp=int((called & y).sum()),
            fp=int((called & ~y).sum()),
            fn=int((~called & y).sum()),
            tn=int((~called & ~y).sum()),
        )

    def _rate_rows(self, model: str, rule: str, chosen: str) -> list[dict]:
        rows = []
        for quantity in chains.RATES:
            known = {"estimate": None, "low": None, "high": None, "p": None} | self._counts() | {"note": NO_VALIDATION}
            if (model, rule, chosen) in self.cuts:
                known = self._summary(self._rate((model, rule, chosen), quantity), (0.0, 1.0))
                known = self._proportion(known, model, rule, chosen, quantity)
            known.pop("p")
            rows.append(
                self._key(model=model, rule=name(rule, self.at), chosen_on=chosen, quantity=quantity, prevalence=self.share)
                | known
            )
        return rows

    def _proportion(self, known: dict, model: str, rule: str, chosen: str, quantity: str) -> dict:
        """A rate of 0 or 1 in one test set of single images: no resample varies it, so the interval is Wilson's."""
        if (
            known["estimate"] not in (0.0, 1.0)
            or known["low"] is not None
            or len(self.shared.places) > 1
            or self.prevalence is not None
        ):
            return known
        from mstl.metrics._estimate import wilson

        point = self._point((model, rule, chosen), self.shared.places[0])
        trials = {"sensitivity": ("tp", "fn"), "specificity": ("tn", "fp"), "ppv": ("tp", "fp"), "npv": ("tn", "fn")}[quantity]
        total = min(point[trials[0]] + point[trials[1]], known["n_groups"])
        low, high = wilson(round(known["estimate"] * total), total, self.level)
        return known | {"low": low, "high": high, "note": "every image agrees, so the interval is Wilson's"}

    def _thousand(self, model: str, rule: str, chosen: str) -> list[dict]:
        if (model, rule, chosen) not in self.cuts:
            return []
        share, rows = self.share, []
        for quantity, rate, factor, flipped in (
            ("true positives", "sensitivity", share, False),
            ("missed", "sensitivity", share, True),
            ("false positives", "specificity", 1 - share, True),
            ("true negatives", "specificity", 1 - share, False),
        ):
            one = self._proportion(
                self._summary(self._rate((model, rule, chosen), rate), (0.0, 1.0)), model, rule, chosen, rate
            )
            values = [
                None if v is None else 1000 * factor * (1 - v if flipped else v)
                for v in (one["estimate"], one["low"], one["high"])
            ]
            estimate, low, high = values if not flipped else (values[0], values[2], values[1])
            rows.append(
                self._key(
                    model=model,
                    rule=name(rule, self.at),
                    chosen_on=chosen,
                    quantity=f"{quantity} per 1000",
                    prevalence=share,
                    estimate=estimate,
                    low=low,
                    high=high,
                    note=one["note"],
                )
                | self._counts()
            )
        return rows

    def _difference_rows(self, a: str, b: str, rule: str, chosen: str) -> list[dict]:
        if (a, rule, chosen) not in self.cuts or (b, rule, chosen) not in self.cuts:
            return []
        one, two = (a, rule, chosen), (b, rule, chosen)
        same = all((self._called(cell, one) == self._called(cell, two)).all() for cell in self.shared.places)
        common = self._key(contrast=f"{a} − {b}", rule=name(rule, self.at), chosen_on=chosen, prevalence=self.share)
        rows = [
            common
            | {"quantity": quantity}
            | self._summary(self._rate(one, quantity) - self._rate(two, quantity), (-1.0, 1.0), same)
            for quantity in chains.RATES
        ]
        saved = (self._rate(one, "specificity") - self._rate(two, "specificity")).times(1000 * (1 - self.share))
        return [*rows, common | {"quantity": "false positives saved per 1000"} | self._summary(saved, (-1000.0, 1000.0), same)]

    def _benefit(self, which: tuple[str, str]) -> list[dict]:
        of = self.resampled["benefit", *which]
        mean, low, high = self.shared.band(of, level=self.level, bounds=(-np.inf, 1.0))
        everyone = self.share - (1 - self.share) * self.grid / (1 - self.grid)
        return [
            self._key(
                model=which[0], risks=which[1], threshold=t, estimate=m, low=lo, high=hi, treat_all=e, prevalence=self.share
            )
            for t, m, lo, hi, e in zip(self.grid, mean, low, high, everyone, strict=True)
        ]

    def _benefit_difference(self, a: str, b: str) -> list[dict]:
        form = self.recalibration if all((m, self.recalibration) in self.risks for m in (a, b)) else "as given"
        mean, low, high = self.shared.band(
            self.resampled["benefit", a, form] - self.resampled["benefit", b, form], level=self.level, bounds=(-np.inf, np.inf)
        )
        return [
            self._key(
                model=f"{a} − {b}", risks=form, threshold=t, estimate=m, low=lo, high=hi, treat_all=None, prevalence=self.share
            )
            for t, m, lo, hi in zip(self.grid, mean, low, high, strict=True)
        ]
