"""``mstl compare``: anyone's table as one page and one CSV, from the command line to the file."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mstl import cli, compare, page, paths, predictions
from mstl.errors import MstlError
from mstl.report import PageReader, _is_outside

EXAMPLE = paths.share("data", "example", "predictions.csv")


def multiclass():
    """Two models, three classes, no validation rows, no groups, names of one's own."""
    rng = np.random.default_rng(2)
    y = np.arange(90) % 3
    rows = []
    for model, lift in (("plain", 0.8), ("better", 1.6)):
        p = np.exp(rng.normal(size=(90, 3)) + lift * np.eye(3)[y])
        p = (p / p.sum(1, keepdims=True)).round(5)
        rows.append(
            pd.DataFrame(
                {
                    "file": [f"im{i}.png" for i in range(90)],
                    "label": np.array(["F", "G", "D"])[y],
                    "model": model,
                    "p_F": p[:, 0],
                    "p_G": p[:, 1],
                    "p_D": p[:, 2],
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Both reports, made at once: the example table and the one of three classes."""
    folder = tmp_path_factory.mktemp("compare")
    multiclass().to_csv(folder / "three.csv", index=False)
    calls = {
        "example": [str(EXAMPLE), "--group", "patient", "--by", "center", "sex", "--simulated", "--prevalence", "0.02"],
        "three": ["three.csv", "--columns", "file=image_id", "label=y_true"],
    }
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "mstl.cli", "compare", *words, "--resamples", "150", "--out", name],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, words in calls.items()
    }
    said = {name: process.communicate(timeout=600) for name, process in running.items()}
    assert all(process.returncode == 0 for process in running.values()), said
    return folder, said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["example", "three"])
def test_the_report_is_one_page_that_loads_nothing_and_names_no_folder_of_this_machine(reports, name):
    file = reports[0] / name / compare.REPORT
    seen, text = PageReader.read(file), file.read_text(encoding="utf-8")
    assert (
        not [url for url in seen.loads if _is_outside(url)]
        and "<link" not in text
        and " src=" not in text.replace(' src="data:image/png;base64,', "")
    )
    assert len(seen.images) >= 5 and all(src.startswith("data:image/png;base64,") and alt for src, alt in seen.images)
    assert str(reports[0]) not in text and "/home/" not in text and text.count("<h1>") == 1
    visible = re.sub(r"<pre class=\"source\">.*?</pre>|<style>.*?</style>|<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(nan|NaN|None|Traceback)\b", re.sub(r"data:image[^\"]*", "", visible))
    assert (
        '<details class="code"><summary>' in text
        and "Hasei" not in seen.text.split("Three operating points")[-1].split("Would a decision")[-1]
    )


@pytest.mark.slow
def test_the_figures_of_the_example_are_those_of_its_table(reports):
    numbers = pd.read_csv(reports[0] / "example" / compare.NUMBERS, low_memory=False)
    table = predictions.read(EXAMPLE, columns={"patient": "group"})
    test = table[table["split"] == "test"]
    for model, rows in test.groupby("model"):
        area = numbers[(numbers["table"] == "60 arms") & (numbers["model"] == model) & (numbers["quantity"] == "AUC")]
        assert area["estimate"].iloc[0] == pytest.approx(roc_auc_score(rows["y_true"] == "malignant", rows["p_malignant"]))
        assert area["low"].iloc[0] < area["estimate"].iloc[0] < area["high"].iloc[0] and area["n_groups"].iloc[0] == 270
    point = numbers[
        (numbers["table"] == "61 points")
        & (numbers["model"] == "multistage")
        & (numbers["rule"] == "Youden")
        & (numbers["chosen_on"] == "validation")
    ]
    point = point.set_index("quantity")["estimate"]
    called = test[test["model"] == "multistage"]
    assert point["tp"] == ((called["p_malignant"] >= point["threshold"]) & (called["y_true"] == "malignant")).sum()


@pytest.mark.slow
def test_every_table_of_the_notebooks_is_in_the_one_csv_and_nothing_in_it_is_nan(reports):
    for name in ("example", "three"):
        folder = reports[0] / name
        with (folder / compare.NUMBERS).open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        held = {row["table"] for row in rows}
        assert {f"{path.parent.name[:2]} {path.stem}" for path in folder.glob("6*/*.csv")} == held
        assert not any(value.lower() in ("nan", "inf") for row in rows for value in row.values())
        assert all(row["quantity"] and (row["estimate"] or row["note"]) for row in rows)


@pytest.mark.slow
def test_the_page_says_what_the_table_lacks_and_what_was_done(reports):
    example, three = (
        re.sub(r"<pre.*?</pre>", "", (reports[0] / name / compare.REPORT).read_text(encoding="utf-8"), flags=re.DOTALL)
        for name in ("example", "three")
    )
    assert (
        "were simulated" in example
        and "no validation rows" not in example
        and "clustered variance of Obuchowski" in example
        and "prevalence of 2.0%" in example
    )
    assert "Results are also given by center and sex" in example
    assert (
        "no validation rows" in three
        and "Every image counts as its own group" in three
        and "one-against-the-rest" in three
        and "simulated" not in three
    )
    assert "DeLong" not in three.split('id="methods"')[1].split("</blockquote>")[0]


@pytest.mark.slow
def test_the_command_tells_the_answer_and_where_the_report_is(reports):
    out = reports[1]["example"][0]
    assert (
        "3 models on 550 test images of 270 groups." in out
        and "Difference in AUC on simulated images" in out
        and "report.html" in out
    )
    record = json.loads((reports[0] / "three" / "60_comparison" / "run.json").read_text(encoding="utf-8"))
    assert record["parameters"]["reference"] == "plain" and record["parameters"]["own"] is True


BARE = [
    {"image_id": f"i{i}", "y_true": "ill" if i % 3 == 0 else "well", "model": m, "p_well": 0.6, "p_ill": 0.4}
    for i in range(12)
    for m in ("a", "b")
]


def changed(row, **values):
    rows = [dict(one) for one in BARE]
    rows[row] |= values
    return rows


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        (changed(4, p_ill=1.4), [], "Row 5 of"),
        (changed(2, y_true="sick"), [], "Row 3 of"),
        (changed(3, p_well="x"), [], "Row 4 of"),
        (changed(1, model="a"), [], "Row 2 of"),
        (changed(0, p_ill=0.9), [], "sum to 1.5"),
        (changed(5, y_true="ill"), [], "the truth must not depend on the model"),
        (BARE[:-1], [], "does not; models are compared on the same images"),
        ([row for row in BARE if row["model"] == "a"], [], "1 model (a)"),
        ([row | {"model": f"m{k}"} for row in BARE[::2] for k in range(21)], [], "21 models"),
        ([row | {"split": "val"} for row in BARE], [], "No row of the table belongs to the test set"),
        ([row for row in BARE if row["y_true"] == "ill"], [], "no test image of class 'well'"),
        (BARE, ["--reference", "c"], "reference 'c' is not among"),
        (BARE, ["--by", "sex"], "no column 'sex'"),
        (BARE, ["--positive", "sick"], "'sick' is no class"),
        (BARE, ["--group", "patient"], "column 'patient'"),
        (BARE, ["--columns", "truth"], "YOURS=OURS"),
        (BARE, ["--prevalence", "2"], "prevalence"),
        (BARE, ["--resamples", "5"], "resamples"),
        (
            [row | {"split": "test" if i < 12 else "val", "group": "one"} for i, row in enumerate(BARE)],
            [],
            "a group must lie on one side of a split",
        ),
    ],
)
def test_a_table_that_cannot_be_compared_is_one_sentence_and_leaves_nothing(rows, words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(rows).to_csv("own.csv", index=False)
    assert cli.main(["compare", "own.csv", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and [p.name for p in tmp_path.iterdir()] == ["own.csv"]


def test_no_table_at_all_is_one_sentence(tmp_path, capsys):
    assert cli.main(["compare", str(tmp_path / "absent.csv")]) == 2
    assert "There is no predictions table" in capsys.readouterr().err


def facts(**values):
    table = predictions.check(pd.DataFrame([row | values for row in BARE]))
    return compare.Facts.of(table, compare.check(table, compare.Settings()))


def test_methods_and_checklist_claim_only_what_was_done():
    bare, grouped = facts(), facts(group="g", center="north")
    assert (
        "Obuchowski" not in compare.methods(bare)
        and "recalibration" not in compare.methods(bare)
        and "Holm" not in compare.methods(bare)
    )
    assert "12 test images." in compare.methods(bare) and "12 test images of 1 groups" in compare.methods(grouped)
    items = dict((item, found) for item, _, found in compare.checklist(bare))
    assert items["TRIPOD+AI 12f, 24"].startswith("not given") and items["TRIPOD+AI 14"].startswith("not given")
    assert all(
        found.split(":")[0].split(" with")[0].split(";")[0] in ("given", "in part", "not given") for found in items.values()
    )


def test_the_reference_of_a_study_is_its_contrast_and_of_any_other_table_its_first_model():
    assert facts().reference == "a"
    arms = predictions.check(pd.DataFrame([row | {"model": {"a": "ctl", "b": "mstl"}[row["model"]]} for row in BARE]))
    assert compare.check(arms, compare.Settings()).reference == ""


def test_a_table_of_pandas_gets_one_header_row_and_no_nan():
    rows = pd.DataFrame({"model": ["a"], "n_images": [3], "low": [np.nan]}).set_index("model")
    shown = page._clean_table(rows.to_html())
    assert "<thead><tr><th class=key>model</th><th>images</th><th>low</th></tr></thead>" in shown and "NaN" not in shown


def test_the_statistics_never_import_torch():
    code = "import sys; from mstl import comparison, operating, published, plots, page, compare, predictions, study; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_table_is_what_its_script_makes(tmp_path):
    subprocess.run([sys.executable, str(paths.share("benchmarks", "example_table.py")), str(tmp_path)], check=True)
    assert (tmp_path / "predictions.csv").read_bytes() == EXAMPLE.read_bytes()


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path):
    pd.DataFrame(BARE).to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "taken").write_text("")
    with pytest.raises(MstlError, match="is a file"):
        compare.compare([tmp_path / "own.csv"], tmp_path / "taken")
