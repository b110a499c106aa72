"""``mstl compare``: anyone's table of predictions, checked, compared, and left as one HTML page and one CSV of every figure.

The work is that of two notebooks, ``60_comparison`` and ``61_operating_points``, executed side by side; this module checks the
table before, and afterwards puts the page together: what was found, what was done in the words of a methods section, and which
items of the reporting guidelines that covers.
"""

from __future__ import annotations

import datetime
import hashlib
import html
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import mstl
from mstl import comparison, operating, page, predictions
from mstl.errors import MstlError

FEWEST, MOST = 2, 20
STAGES = {"60_comparison": "Comparison", "61_operating_points": "Operating points and usefulness"}
REPORT, NUMBERS = "report.html", "numbers.csv"


@dataclass(frozen=True)
class Settings:
    """What may be asked for; see ``mstl compare --help``. ``prevalence`` None: each test set's own."""

    reference: str = ""
    positive: str = ""
    prevalence: float | None = None
    by: tuple[str, ...] = ("center",)
    margin: float = 0.02
    level: float = 0.95
    n_resamples: int = 2000
    seed: int = 0
    simulated: bool = False
    title: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)


def compare(
    sources: Sequence[str | os.PathLike], out: str | os.PathLike | None = None, settings: Settings | None = None, *, say=print
) -> Path:
    """Compare the models of one or several prediction tables; returns the path of the report.

    Into the folder ``out`` (default: ``<name of the table>-comparison`` here) go the report, the CSV of every figure, and a folder
    for each executed notebook with its own tables. Raises MstlError, one sentence, for a table that cannot be compared; then
    nothing is written.
    """
    settings = settings or Settings()
    paths = [Path(source).expanduser().resolve() for source in sources]
    table = predictions.read(paths, columns=settings.columns)
    settings = check(table, settings)
    folder = Path(out).expanduser().resolve() if out else Path.cwd() / f"{paths[0].stem}-comparison"
    if folder.exists() and not folder.is_dir():
        raise MstlError(f"{folder} is a file, so no report can be written into it: name another folder by --out.")
    facts = Facts.of(table, settings)
    say(f"{facts.headline()} Comparing …")
    runs = _execute(folder, paths, settings)
    metrics = {stage: json.loads((run / "metrics.json").read_text(encoding="utf-8")) for stage, run in runs.items()}
    tables = {
        (stage, csv.stem): pd.read_csv(csv, low_memory=False)
        for stage, run in runs.items()
        for csv in sorted(run.glob("*.csv"))
    }
    facts = facts.with_results(tables)
    _write(folder / NUMBERS, long(tables).to_csv(index=False, lineterminator="\n"))
    _write(folder / REPORT, _report(paths, settings, facts, runs, metrics))
    say(metrics["60_comparison"]["answer"])
    say(f"Report: {folder / REPORT}\nFigures: {folder / NUMBERS}")
    return folder / REPORT


def check(table: pd.DataFrame, settings: Settings) -> Settings:
    """Refuse, in one sentence, what cannot be compared; returns the settings with the reference filled in."""
    if "test" not in set(table["split"]):
        raise MstlError(
            "No row of the table belongs to the test set (split = test): leave the column split out, or name the test rows so."
        )
    for key, block in comparison.each(table):
        where = f"Target '{key['target']}' has" if key["target"] else "The table has"
        names, test = comparison.models(block), block[block["split"] == "test"]
        if not FEWEST <= len(names) <= MOST:
            raise MstlError(
                f"{where} {len(names)} model{'s' * (len(names) != 1)} ({', '.join(names[:5])}{', …' * (len(names) > 5)}): "
                f"a comparison takes {FEWEST} to {MOST}, named in the column model."
            )
        for model in names:
            if not (test["model"] == model).any():
                raise MstlError(
                    f"{where} no test row of model '{model}': give its predictions on the test images, or leave the model out."
                )
        for name in predictions.classes(block):
            if not (test["y_true"] == name).any():
                raise MstlError(
                    f"{where} no test image of class '{name}': leave its column p_{name} out, or give images of it."
                )
    names = comparison.models(table)
    if settings.reference and settings.reference not in names:
        raise MstlError(
            f"The reference '{settings.reference}' is not among the models of the table ({', '.join(names)}): name one of them."
        )
    for column in settings.by:
        if column not in table.columns:
            raise MstlError(
                f"There is no column '{column}' in the table to show results by: its columns are {', '.join(table.columns)}."
            )
    if not 0.5 <= settings.level < 1:
        raise MstlError(f"The level is {settings.level:g}, but must lie between 0.5 and 1: 0.95 is usual.")
    if settings.prevalence is not None and not 0 < settings.prevalence < 1:
        raise MstlError(
            f"The prevalence is {settings.prevalence:g}, but must lie between 0 and 1: give for example 0.05, or leave it out."
        )
    if not settings.margin > 0:
        raise MstlError(f"The margin is {settings.margin:g}, but must be a positive difference in AUC: give for example 0.02.")
    if settings.n_resamples < 100:
        raise MstlError(f"{settings.n_resamples} resamples are too few for an interval: give at least 100, better 2000.")
    operating.binary(table, settings.positive)  # refuses a positive class that there is not
    arms = [name for name in comparison.ARMS if name in names]
    reference = settings.reference or ("" if {"ctl", "mstl"} <= set(arms) else names[0])
    return Settings(**{**settings.__dict__, "reference": reference})


# ---------------------------------------------------------------------------------------------------------- what was done


@dataclass(frozen=True)
class Facts:
    """What the table holds and what was computed from it: everything that the report says in words comes from here."""

    blocks: pd.DataFrame
    models: tuple[str, ...]
    n_rows: int
    n_images: int
    n_groups: int
    clustered: bool
    centers: int
    classes: int
    validated: bool
    reference: str
    settings: Settings
    tests: Mapping[str, bool] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    events: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # class sizes of each target

    @classmethod
    def of(cls, table: pd.DataFrame, settings: Settings) -> Facts:
        test = table[table["split"] == "test"]
        blocks = comparison.blocks(table)
        images = test.drop_duplicates(["target", "variant", "image_id"])
        groups = len(images.drop_duplicates(["target", "variant", "group"]))
        return cls(
            blocks,
            tuple(comparison.models(table)),
            len(table),
            len(images),
            groups,
            groups < len(images),
            images.loc[images["center"] != "", "center"].nunique(),
            int(blocks["classes"].str.split(", ").str.len().max()),
            bool((table["split"] == "val").any()),
            settings.reference,
            settings,
            events={target: part["y_true"].value_counts().to_dict() for target, part in images.groupby("target", sort=False)},
        )

    def with_results(self, tables: Mapping[tuple[str, str], pd.DataFrame]) -> Facts:
        parts = tables.get(("60_comparison", "subgroups"))
        named = {
            "delong": ("60_comparison", "one_test_set"),
            "mcnemar": ("61_operating_points", "mcnemar"),
            "groups": ("60_comparison", "groups"),
            "relative": ("61_operating_points", "relative"),
        }
        several = tables.get(("60_comparison", "several"))
        tests = {name: key in tables for name, key in named.items()}
        for test in ("Cochran's Q", "Friedman"):
            tests[test] = several is not None and several.loc[several["test"] == test, "p"].notna().any()
        return Facts(**{**self.__dict__, "tests": tests, "parts": tuple(parts["by"].unique()) if parts is not None else ()})

    @property
    def cells(self) -> int:
        return int((self.blocks["chains"] * self.blocks["folds"]).max())

    def headline(self) -> str:
        unit = f" of {self.n_groups:,} groups" if self.clustered else ""
        return f"{len(self.models)} models on {self.n_images:,} test images{unit}."

    def mind(self) -> list[str]:
        """What a reader must know before the figures."""
        out = []
        if self.settings.simulated:
            out.append(
                "The images behind this table were simulated: the figures check the machinery and say nothing about patients."
            )
        if not self.clustered:
            out.append(
                "Every image counts as its own group. Where patients have several images, name the column of the patient (--group), "
                "otherwise the intervals are too narrow."
            )
        if not self.validated:
            out.append(
                "The table has no validation rows (split = val). Thresholds were chosen on the test images themselves, which is optimistic, "
                "label metrics use a cut of one half, and nothing could be recalibrated."
            )
        if (self.blocks["chains"] == 1).all():
            once = (
                "Each model was trained once in each fold"
                if (self.blocks["folds"] > 1).any()
                else "Each model was trained once"
            )
            out.append(
                f"{once}, or the table does not tell its trainings apart (column seed): the intervals hold the draw of patients and not the "
                "luck of a training run."
            )
        if self.classes > 2:
            last = self.settings.positive or "the last class of the table"
            out.append(
                f"There are more than two classes. Operating points, calibration and decision curves are for {last} against the rest."
            )
        if not self.settings.prevalence:
            out.append(
                "Predictive values, net benefit and counts per 1000 are at the test set's own share of positives; name the prevalence of the "
                "clinic by --prevalence."
            )
        return out


def methods(facts: Facts) -> str:
    """A methods paragraph (markdown) that says what was done, and nothing that was not."""
    s, percent = facts.settings, f"{facts.settings.level:.0%}"
    parts = [
        f"We compared {len(facts.models)} models ({', '.join(facts.models)}) on {facts.n_images:,} test images"
        + (f" of {facts.n_groups:,} groups" if facts.clustered else "")
        + (f" from {facts.centers} centers" if facts.centers > 1 else "")
        + ".",
        "Class sizes were "
        + "; ".join(
            (f"{target}: " if target else "") + ", ".join(f"{name} {count:,}" for name, count in sizes.items())
            for target, sizes in facts.events.items()
        )
        + ".",
    ]
    auc = (
        "the mean one-against-the-rest area under the ROC curve (AUC)"
        if facts.classes > 2
        else "the area under the ROC curve (AUC)"
    )
    contrast = f"each other model minus {facts.reference}" if facts.reference else "mstl minus ctl"
    if facts.cells > 1:
        parts.append(
            f"The primary estimand was the mean over training chains and folds of the within-fold difference in {auc}, {contrast}; "
            "scores of different folds or models were never pooled."
        )
    else:
        parts.append(f"The primary estimand was the difference in {auc}, {contrast}, on the same test images.")
    unit = (
        "groups (all images of a group together, within strata of the classes that a group holds)"
        if facts.clustered
        else "images, within classes"
    )
    chains = ", with the variation between training chains added" if (facts.blocks["chains"] > 1).any() else ""
    family = (
        "; p-values of the primary contrasts were adjusted by Holm's method, and all other comparisons are exploratory"
        if len(facts.models) > 2 or len(facts.blocks) > 1
        else ""
    )
    parts.append(
        f"{percent} confidence intervals and p-values come from {s.n_resamples:,} paired bootstrap resamples of {unit}{chains}{family}."
    )
    parts.append(
        f"Two models were called equivalent when the interval lay within ±{s.margin:g} AUC; for every comparison the difference that would have been "
        "detected with 80% power is given."
    )
    if facts.tests.get("delong"):
        parts.append(
            "AUCs were also compared by DeLong's test on each single test set"
            + (", with the clustered variance of Obuchowski" if facts.clustered else "")
            + "."
        )
    rules = "Youden's index, the highest specificity at a sensitivity of at least 0.90, and the highest sensitivity at a specificity of at least 0.90"
    parts.append(
        f"Operating points were chosen by three rules ({rules}), "
        + (
            "fixed on validation images and applied to the test images"
            if facts.validated
            else "on the test images themselves, which is optimistic"
        )
        + "."
    )
    if facts.tests.get("mcnemar"):
        parts.append(
            "Sensitivities and specificities were compared by McNemar's test (exact, and with continuity correction"
            + (", and clustered by group" if facts.clustered else "")
            + "), predictive values by the paired bootstrap"
            + (" and by the test of relative predictive values" if facts.tests.get("relative") else "")
            + "."
        )
    prevalence = f"a prevalence of {s.prevalence:.1%}" if s.prevalence else "the prevalence of the test set"
    parts.append(f"Predictive values, counts per 1000 examinations and decision curves are for {prevalence}.")
    again = ", before and after recalibration (logistic, fitted on validation images)" if facts.validated else ""
    parts.append(
        f"Calibration was described by slope, intercept, calibration-in-the-large, Brier score, expected calibration error, tenths of predicted risk and Spiegelhalter's z{again}."
    )
    if facts.parts:
        parts.append(f"Results are also given by {' and '.join(facts.parts)}.")
    if facts.tests.get("groups"):
        parts.append("The primary comparison was repeated with groups in place of images, by the highest score of a group.")
    for test in ("Cochran's Q", "Friedman"):
        if facts.tests.get(test):
            parts.append(
                f"{test} test compared all models at once."
                if test == "Friedman"
                else "Cochran's Q compared the shares of right calls of all models at once."
            )
    parts.append(f"Analyses were done with mstl {mstl.__version__} (Python {sys.version.split()[0]}).")
    return " ".join(parts)


def checklist(facts: Facts) -> list[tuple[str, str, str]]:
    """Items of TRIPOD+AI (2024) and CLAIM (2020) that the report covers, in our words: (item, what it asks, what the report gives).

    Items about the patients, the images, the models and their training cannot come from a table of predictions.
    """
    yes, part, no = "given", "in part", "not given"
    thresholds = (
        f"{yes}: three rules, fixed on validation"
        if facts.validated
        else f"{part}: three rules, but chosen on the test set for want of validation rows"
    )
    where = (
        f"{yes}: by {' and '.join(facts.parts)}"
        if facts.parts
        else f"{no}: the table names one part only (columns center, or --by)"
    )
    update = f"{yes}: logistic recalibration on validation, judged on test" if facts.validated else f"{no}: no validation rows"
    fair = [p for p in facts.parts if p != "center"]
    split = (
        f"{yes}: no group lies on two sides of a split (checked)"
        if facts.validated and facts.clustered
        else f"{part}: only test images, or no groups, in the table"
    )
    return [
        ("TRIPOD+AI 11", "missing data", f"{yes}: every model predicts every test image; a table with gaps is refused"),
        ("TRIPOD+AI 12a", "how the data were used and divided", split),
        ("TRIPOD+AI 12d, 23b", "differences between clusters such as hospitals", where),
        (
            "TRIPOD+AI 12e",
            "all measures and plots of performance and of the comparison",
            f"{yes}: discrimination, calibration, clinical utility, paired comparisons",
        ),
        ("TRIPOD+AI 12f, 24", "recalibration and what it changed", update),
        (
            "TRIPOD+AI 14",
            "fairness across groups of people",
            f"{part}: results by {', '.join(fair)}" if fair else f"{no}: name such a column by --by",
        ),
        ("TRIPOD+AI 15", "what the model puts out, and how thresholds were found", thresholds),
        (
            "TRIPOD+AI 21",
            "numbers of participants and of outcome events in each analysis",
            f"{yes}: images, groups and class sizes",
        ),
        (
            "TRIPOD+AI 23a",
            "performance with confidence intervals, also for key subgroups",
            f"{yes} with intervals" + ("" if facts.parts else "; no subgroups"),
        ),
        ("CLAIM 13", "missing data", f"{yes}: refused"),
        ("CLAIM 20, 21", "how data were divided, and at which level the parts are disjoint", split),
        ("CLAIM 23", "software with versions", f"{yes}: of this analysis, not of the training"),
        ("CLAIM 28", "measures of performance", yes),
        (
            "CLAIM 29",
            "significance and uncertainty",
            f"{yes}: " + ("clustered by group" if facts.clustered else "images as independent"),
        ),
        ("CLAIM 30", "robustness", f"{part}: by {' and '.join(facts.parts)}" if facts.parts else no),
        ("CLAIM 35, 36", "performance of every model, accuracy with its precision", yes),
        ("CLAIM 37", "analysis of the cases that were classified wrongly", f"{no}: look at the images"),
    ]


# ------------------------------------------------------------------------------------------------------- the CSV of figures


_IDS = (
    "target",
    "variant",
    "backbone",
    "by",
    "value",
    "model",
    "contrast",
    "rule",
    "chosen_on",
    "compares",
    "risks",
    "seed",
    "fold",
    "bin",
    "at",
    "quantity",
)
_VALUES = ("estimate", "low", "high", "p", "p_adjusted", "n_images", "n_groups", "n_chains", "n_folds", "note")


def long(tables: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Every figure of the two notebooks in one table: what it is (``_IDS``), then its value with interval, p and counts."""
    parts = [
        part.assign(table=f"{stage.partition('_')[0]} {name}")
        for (stage, name), rows in tables.items()
        if len(rows)
        for part in _long(name, rows)
    ]
    every = pd.concat([part.reindex(columns=["table", *_IDS, *_VALUES]).astype(object) for part in parts], ignore_index=True)
    return every[every["estimate"].notna() | (every["note"].notna() & (every["note"] != ""))]


def _long(name: str, rows: pd.DataFrame) -> list[pd.DataFrame]:
    rows = rows.rename(columns={"p_holm": "p_adjusted", "threshold": "at" if name == "benefit" else "threshold"})
    if name == "curves":
        return [rows.rename(columns={"curve": "quantity", "x": "at", "y": "estimate"})]
    if name == "arms":
        return [rows.rename(columns={"metric": "quantity"})]
    if name == "differences" and "rule" not in rows:
        first = rows.assign(quantity="difference").drop(columns="model")
        return [first, *_melted(rows.drop(columns="model"), ("detectable", "mean_a", "mean_b", "sd_chains"))]
    if name == "groups":
        return [rows.assign(quantity="difference, groups as units").drop(columns="model")]
    if name == "subgroups":
        auc = rows["kind"] == "AUC"
        return [rows.assign(model=rows["quantity"].where(auc), contrast=rows["quantity"].where(~auc), quantity=rows["kind"])]
    if name == "one_test_set":
        return [
            rows.rename(columns={"difference": "estimate"}).assign(quantity="difference in AUC (DeLong)"),
            *_melted(rows, ("auc_a", "auc_b")),
        ]
    if name == "several":
        return [rows.rename(columns={"test": "quantity", "statistic": "estimate", "n": "n_images"})]
    if name == "points":
        return _melted(rows, ("threshold", "tp", "fp", "fn", "tn"))
    if name == "mcnemar":
        first = rows.rename(columns={"difference": "estimate", "p_exact": "p"}).assign(quantity="difference (McNemar, exact)")
        return [first, *_melted(rows, ("only_a", "only_b", "p_corrected", "p_clustered"))]
    if name == "relative":
        return [rows, *_melted(rows.drop(columns=["low", "high", "p", "estimate"]), ("value_a", "value_b"), prefix=True)]
    if name == "calibration":
        with_interval = [
            rows.rename(columns={q: "estimate", f"{q}_low": "low", f"{q}_high": "high"}).assign(quantity=q)
            for q in ("slope", "intercept", "in_the_large")
        ]
        return [*with_interval, *_melted(rows, ("brier", "ece", "ece_expected", "spiegelhalter_z", "spiegelhalter_p"))]
    if name == "reliability":
        return [rows.rename(columns={"mean_risk": "at", "observed": "estimate"}).assign(quantity="observed share")]
    if name == "benefit":
        return [
            rows.assign(quantity="net benefit"),
            rows.drop(columns=["low", "high"]).assign(quantity="net benefit of treating all", estimate=rows["treat_all"]),
        ]
    return [rows.assign(quantity=rows["quantity"] if "quantity" in rows else name)]


def _melted(rows: pd.DataFrame, quantities: Sequence[str], *, prefix: bool = False) -> list[pd.DataFrame]:
    drop = [c for c in ("estimate", "low", "high", "p", "p_adjusted") if c in rows]
    return [
        rows.drop(columns=drop).assign(quantity=(rows["quantity"] + " " if prefix else "") + q, estimate=rows[q])
        for q in quantities
        if q in rows
    ]


# ---------------------------------------------------------------------------------------------------------------- pieces


def _execute(folder: Path, sources: Sequence[Path], settings: Settings) -> dict[str, Path]:
    """Both notebooks at once, each in a process of its own; returns their folders."""
    from mstl.execute import python_path
    from mstl.study import THREADS

    shared = {
        "study": "compare",
        "title": settings.title,
        "predictions": [str(s) for s in sources],
        "columns": dict(settings.columns),
        "reference": settings.reference,
        "level": settings.level,
        "n_resamples": settings.n_resamples,
        "seed": settings.seed,
        "simulated": settings.simulated,
        "own": True,
    }
    more = {
        "60_comparison": {"margin": settings.margin, "by": list(settings.by)},
        "61_operating_points": {"positive": settings.positive, "prevalence": settings.prevalence or 0.0},
    }
    environment = os.environ | dict.fromkeys(THREADS, "1") | {"MSTL_HOME": str(folder), "PYTHONPATH": python_path()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise MstlError(f"The folder {folder} cannot be made ({problem.strerror}): name another by --out.") from problem
    running = {
        stage: subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mstl.execute",
                stage,
                "--out",
                str(folder / stage),
                "--parameters",
                json.dumps(shared | more[stage]),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for stage in STAGES
    }
    try:
        said = {stage: process.communicate()[1].strip().splitlines() for stage, process in running.items()}
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
    for stage, process in running.items():
        if process.returncode:
            raise MstlError(
                said[stage][-1]
                if said[stage]
                else f"The notebook {stage} failed without a word: see {folder / stage / 'work'}."
            )
    return {stage: folder / stage for stage in STAGES}


def _report(
    sources: Sequence[Path], settings: Settings, facts: Facts, runs: Mapping[str, Path], metrics: Mapping[str, Any]
) -> str:
    title = settings.title or f"Comparison of {len(facts.models)} models on {facts.n_images:,} test images"
    usefulness = metrics["61_operating_points"]["answer"]
    told = [metrics["60_comparison"]["answer"], *(usefulness if len(usefulness) <= 3 else [])]
    lead = '<div class="answer">' + "".join(f"<p>{html.escape(text)}</p>" for text in told) + "</div>\n"
    if mind := facts.mind():
        lead += (
            '<div class="mind"><p><strong>Before you read</strong></p><ul>'
            + "".join(f"<li>{html.escape(text)}</li>" for text in mind)
            + "</ul></div>\n"
        )
    sections = [
        page.from_notebook(runs[stage] / "notebook.ipynb", title=name, without={"seed-work"}) for stage, name in STAGES.items()
    ]
    sections.append(
        page.from_markdown(
            "Methods", "This paragraph is written from what was done; it may be taken over into a paper.\n\n> " + methods(facts)
        )
    )
    items = page.table(checklist(facts), ("item", "asks for", "in this report"))
    sources_line = (
        "Items are those of TRIPOD+AI (Collins et al., BMJ 2024;385:e078378) and of CLAIM (Mongan et al., Radiol Artif Intell 2020;2:e200029), "
        "in our own words. What they ask about patients, images, models and training is not in a table of predictions."
    )
    sections.append(page.Section("Reporting checklist", f"<p>{html.escape(sources_line)}</p>\n{items}"))
    record = json.loads((runs["60_comparison"] / "run.json").read_text(encoding="utf-8"))
    hashes = [
        (path.name, f"{sum(1 for _ in path.open('rb')) - 1:,} rows", hashlib.sha256(path.read_bytes()).hexdigest())
        for path in _files(sources)
    ]
    made = [
        ("settings", ", ".join(f"{k} {v}" for k, v in _shown(settings).items())),
        ("command", _command(sources, settings)),
        (
            "versions",
            ", ".join(
                f"{k} {v}"
                for k, v in record["versions"].items()
                if k in ("mstl", "numpy", "scipy", "pandas", "statsmodels", "scikit-learn")
            ),
        ),
        ("revision", record["revision"]),
    ]
    sections.append(
        page.Section(
            "How this was made",
            page.table(hashes, ("table", "size", "SHA-256"))
            + page.table(made, ("", ""))
            + f"<p>Every figure of this page, with the points of its curves, is in <code>{NUMBERS}</code>; the executed notebooks and their tables lie beside it.</p>",
        )
    )
    when = datetime.datetime.now(datetime.UTC).strftime("%d %B %Y, %H:%M UTC")
    return page.render(title, lead, sections, footer=f"Made by mstl compare, {when}. This page loads nothing from elsewhere.")


def _files(sources: Sequence[Path]) -> list[Path]:
    return [predictions.in_folder(source) if source.is_dir() else source for source in sources]


def _shown(settings: Settings) -> dict[str, object]:
    return {
        "level": settings.level,
        "resamples": settings.n_resamples,
        "seed": settings.seed,
        "margin": settings.margin,
        "reference": settings.reference or "ctl",
        "prevalence": settings.prevalence or "of the test set",
    }


def _command(sources: Sequence[Path], settings: Settings) -> str:
    import shlex

    words = ["mstl", "compare", *(source.name for source in sources)]
    default = Settings()
    for name in ("reference", "positive", "prevalence", "margin", "level", "seed", "title"):
        if getattr(settings, name) != getattr(default, name):
            words += [f"--{name}", str(getattr(settings, name))]
    if settings.n_resamples != default.n_resamples:
        words += ["--resamples", str(settings.n_resamples)]
    if settings.simulated:
        words.append("--simulated")
    if settings.by != default.by:
        words += ["--by", *settings.by]
    if settings.columns:
        words += ["--columns", *(f"{yours}={ours}" for yours, ours in settings.columns.items())]
    return shlex.join(words)


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as problem:
        raise MstlError(
            f"{path} could not be written ({problem.strerror}): make room there, or name another folder by --out."
        ) from problem
