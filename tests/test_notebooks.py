"""The stage notebooks: what every template keeps to, and all of them through real papermill and Snakemake on a tiny study."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from mstl import paths, predictions, templates

STAGES = templates.stages()
STUDY = """
study: tiny
image_size: 32
seeds: [0, 1]
lineages: [{name: vit, backbone: test_vit, source: phantom-fractals, source_options: {n: 60, n_classes: 4}, source_recipe: {epochs: 1}}]
bridges: [{name: cells, data: phantom-cells, options: {n: 60, n_classes: 3}, recipe: {epochs: 1, keep: last, monitor: accuracy}}]
arms: [ctl, mstl]
recipe: {batch_size: 16}
tuning: {lrs: [1e-3], steps: [4, 6]}
targets:
  chest: {data: phantom-chest, options: {n: 90}, design: folds, folds: 3, augmentation: radiograph}
probe: {targets: [chest], sizes: [20]}
comparison: {n_resamples: 200}
"""


def cells(stage, kind="code"):
    notebook = json.loads(templates.template(stage).read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def papermill(stage, folder, *words):
    command = [sys.executable, "-m", "papermill", str(templates.template(stage)), "out.ipynb", "--no-progress-bar", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "MSTL_HOME": str(folder), "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("stage", STAGES)
def test_a_template_has_one_parameters_cell_no_outputs_short_cells_and_no_class(stage):
    code = cells(stage)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    for cell in code:
        source = "".join(cell["source"])
        assert not cell["outputs"] and cell["execution_count"] is None
        assert not any(line.lstrip().startswith("class ") for line in source.splitlines())
        if "parameters" not in cell["metadata"].get("tags", []):
            assert len([line for line in source.splitlines() if line.strip()]) <= 25, source


@pytest.mark.parametrize("stage", STAGES)
def test_a_template_begins_with_its_title_a_question_and_the_command_that_runs_it_again(stage):
    head = "".join(cells(stage, "markdown")[0]["source"])
    assert head.startswith("# ") and "?" in head and f"papermill notebooks/{stage}.ipynb" in head


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny study, its whole process group killed while a target trains, then called again."""
    home = tmp_path_factory.mktemp("home")
    (home / "tiny.yml").write_text(STUDY)
    command = [sys.executable, "-m", "mstl.cli", "run", str(home / "tiny.yml")]
    env = {**os.environ, "MSTL_HOME": str(home)}
    first = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    fits, deadline = home / "runs" / "tiny" / "fits", time.time() + 400
    while len(list(fits.glob("*/fit.json"))) < 6 and first.poll() is None and time.time() < deadline:
        time.sleep(0.2)
    killed = first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    return home, killed, again


@pytest.mark.slow
def test_a_killed_study_completes_when_it_is_called_again(tiny):
    home, killed, again = tiny
    assert killed and again.returncode == 0, again.stdout + again.stderr
    runs = home / "runs" / "tiny"
    assert {p.parent.parent.name for p in runs.glob("*/*/notebook.ipynb")} == {
        "00_data", "10_source", "20_bridge", "30_target", "35_probe", "36_first_hop", "60_comparison"}


@pytest.mark.slow
def test_the_probe_stage_measures_every_checkpoint_on_the_training_part_and_tests_it_on_every_image(tiny):
    from mstl import agreement, checkpoints, probing
    from mstl.datasets import load, splits

    runs = tiny[0] / "runs" / "tiny"
    scores = agreement.read([runs / "35_probe" / "chest-vit"])
    assert sorted(zip(scores["bridge"], scores["seed"], scores["fold"])) == sorted([("", 0, f) for f in range(3)] + [("cells", s, f) for s in (0, 1) for f in range(3)])
    table = predictions.read([runs / "35_probe" / "chest-vit"])
    test = table[(table["split"] == "test") & (table["variant"] == "probe")]
    assert (test.groupby(["model", "seed"])["image_id"].nunique() == 90).all() and set(test["model"]) == {"ctl", "cells"}
    assert set(table["variant"]) == {"probe", "probe_n20"}
    images = load("phantom-chest", size=32, root=tiny[0] / "data", n=90, progress=False)
    part = splits.design(images, "folds", k=3)[1]
    seen = probing.describe(seen_folder(runs), images)
    own = scores[(scores["bridge"] == "cells") & (scores["seed"] == 1) & (scores["fold"] == 1)].iloc[0]
    direct = probing.measure(seen.features[part.train], images.labels[part.train], source_probs=seen.probabilities[part.train])
    assert own["n"] == len(part.train) and own["source_classes"] == len(checkpoints.read(seen_folder(runs)).spec.classes)
    for name, value in direct.items():
        assert own[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_every_figure_is_shown_once(tiny):
    shown = 0
    for path in (tiny[0] / "runs" / "tiny").glob("*/*/notebook.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            images = [output["data"]["image/png"] for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
            assert len(images) == len(set(images)), f"{path.parent}: {''.join(cell['source'])[-80:]}"
            shown += len(images)
    assert shown > 5


def seen_folder(runs):
    return runs / "20_bridge" / "vit-cells" / "checkpoint" / "seed1"


@pytest.mark.slow
def test_a_finished_run_leaves_its_tables_checkpoint_and_record(tiny):
    run = tiny[0] / "runs" / "tiny" / "30_target" / "chest-mstl-vit-cells"
    for name in ("notebook.ipynb", "predictions.csv", "metrics.json", "history.csv", "run.json", "checkpoint/seed0-fold0/model.safetensors"):
        assert (run / name).is_file(), name
    record = json.loads((run / "run.json").read_text())
    assert [step["stage"] for step in record["lineage"]] == ["source", "bridge"]
    assert {"parameters", "versions", "device", "seconds", "peak_memory_mb", "data", "revision"} <= set(record)


@pytest.mark.slow
def test_every_arm_is_tested_on_the_same_images_once_a_chain_and_no_group_crosses_a_split(tiny):
    table = predictions.read(sorted((tiny[0] / "runs" / "tiny" / "30_target").glob("*/predictions.csv")))
    test = table[table["split"] == "test"]
    assert (test.groupby(["model", "seed"])["image_id"].nunique() == 90).all() and len(test) == 2 * 2 * 90
    sides = table[table["model"] == "ctl"].groupby(["seed", "fold", "group"])["split"].nunique()
    assert (sides == 1).all()


@pytest.mark.slow
def test_a_kill_changes_no_number(tiny, tmp_path):
    """The target run again, uninterrupted, in a home that has the same parents but no fits."""
    home = tiny[0]
    os.symlink(home / "data", tmp_path / "data")
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    for stage in ("10_source", "20_bridge"):
        os.symlink(home / "runs" / "tiny" / stage, tmp_path / "runs" / "tiny" / stage)
    run = home / "runs" / "tiny" / "30_target" / "chest-mstl-vit-cells"
    parameters = json.loads((run / "run.json").read_text())["parameters"]
    words = [w for name, value in parameters.items() for w in ("-y", json.dumps({name: value}))]
    done = papermill("30_target", tmp_path, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / parameters["out"] / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()


@pytest.mark.slow
def test_a_missing_parent_ends_in_one_sentence_with_the_command_to_run(tmp_path):
    done = papermill("30_target", tmp_path, "-p", "data", "phantom-chest", "-p", "arm", "ctl", "-p", "parent", "10_source/lite0",
                     "-y", "{options: {n: 120}}")
    assert done.returncode != 0
    said = done.stderr.strip().splitlines()[-1]
    assert "10_source" in said and "papermill" in said and "is missing" in said


@pytest.mark.slow
@pytest.mark.parametrize(("words", "said"), [(("-p", "arms", "ctl"), "arm"), (("-p", "arm", "transfer"), "scratch"), (("-r", "folds", "five"), "folds")])
def test_a_wrong_parameter_ends_in_one_sentence(words, said, tmp_path):
    done = papermill("30_target", tmp_path, *words)
    assert done.returncode != 0 and said in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_comparison_takes_a_bare_table_of_ones_own(tmp_path):
    rows = [{"patient": f"p{i // 2}", "image": f"i{i}", "truth": "ill" if i % 3 == 0 else "well", "model": m,
             "p_well": 1 - s, "p_ill": s} for i in range(60) for m, s in (("old", 0.2 + 0.5 * ((i * 7) % 11) / 11), ("new", 0.2 + 0.6 * (i % 3 == 0)))]
    pd.DataFrame(rows).to_csv(tmp_path / "own.csv", index=False)
    done = papermill("60_comparison", tmp_path, "-y", f"predictions: ['{tmp_path / 'own.csv'}']", "-y",
                     "columns: {image: image_id, truth: y_true, patient: group}", "-p", "n_resamples", "200")
    assert done.returncode == 0, done.stderr[-1500:]
    metrics = json.loads((tmp_path / "runs" / "manual" / "60_comparison" / "all" / "metrics.json").read_text())
    assert metrics["differences"][0]["contrast"] == "new − old" and metrics["differences"][0]["n_groups"] == 30
    assert paths.share("notebooks").is_dir() and Path(templates.template("60_comparison")).name == "60_comparison.ipynb"
