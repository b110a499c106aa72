"""Studies through real Snakemake and real papermill, on light notebooks: done once, resumed, killed, failed, locked."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import light_stages as light
import pytest

SMALL = light.STUDY.replace("chest: {data", "chest: {arms: [ctl], data").replace("ultrasound: {data", "ultrasound: {arms: [mstl], data")
SOURCE = sum(map(ord, "lite0imagenet"))
BRIDGE = 3 * SOURCE + 2
#: What every run of the small study computes, whatever happened on the way.
EXPECTED = {
    "00_data/all": 3, "10_source/lite0": SOURCE, "20_bridge/lite0-cells": BRIDGE, "30_target/ultrasound-mstl-lite0-cells": 4 + BRIDGE,
    "30_target/chest-ctl-lite0": 3 + SOURCE, "60_comparison/all": [4 + BRIDGE, 3 + SOURCE],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The small study, killed at a random moment (its whole process group) and called again. Shared by the tests of this file, in order."""
    place = light.checkout(tmp_path_factory.mktemp("checkout"), sleep=0.2, study=SMALL)
    (place / "mstl" / "only_statistics.py").write_text("")
    light.write(place, "60_comparison", light.light("60_comparison") | {"cells": [
        *light.light("60_comparison")["cells"], light.notebook("60_comparison", "from mstl import only_statistics")["cells"][-1] | {"id": "more"}]})
    moment = random.uniform(2.0, 8.0)
    process = light.started(place, "run", "light")
    time.sleep(moment)
    light.kill(process)
    return place, moment, light.mstl(place, "run", "light")


def values(place):
    runs = place / "runs" / "light"
    return {str(path.parent.relative_to(runs)): json.loads(path.read_text())["value"] for path in sorted(runs.glob("*/*/metrics.json"))}


def stamps(place):
    runs = place / "runs" / "light"
    return {str(path.parent.relative_to(runs)): path.stat().st_mtime_ns for path in runs.glob("*/*/notebook.ipynb")}


def changed(place, before):
    return {run for run, stamp in stamps(place).items() if before.get(run) != stamp}


def test_a_study_killed_at_a_random_moment_completes_with_the_same_numbers(done):
    place, moment, again = done
    assert again.returncode == 0, f"killed after {moment:.2f} s: {again.stderr}"
    assert values(place) == EXPECTED, f"killed after {moment:.2f} s"
    left = [path for path in (place / "runs" / "light").glob("*/*/work")]
    assert not left and "is finished" in again.stdout


def test_the_terminal_has_a_line_when_a_run_starts_and_one_when_it_ends(done):
    again = done[2]
    lines = again.stderr.strip().splitlines()
    assert all(line.startswith("[") and ("started" in line or " finished in " in line) for line in lines), again.stderr
    assert any("60_comparison/all finished in" in line for line in lines)


def test_a_second_call_does_nothing_within_five_seconds(done):
    """Of processor time, so that a busy machine does not decide the test."""
    place = done[0]
    before, began = stamps(place), os.times()
    again = light.mstl(place, "run", "light")
    ended = os.times()
    assert ended.children_user + ended.children_system - began.children_user - began.children_system < 5
    assert again.returncode == 0
    assert not changed(place, before) and "6 runs, 6 of them finished." in again.stdout and not again.stderr


def test_every_run_leaves_its_notebook_and_record(done):
    place = done[0]
    for run in EXPECTED:
        folder = place / "runs" / "light" / run
        record = json.loads((folder / "run.json").read_text())
        assert record["study"] == "light" and record["parameters"]["out"] == f"runs/light/{run}" and record["threads"] == 1
        assert all(cell["outputs"] == [] or cell["outputs"][0]["output_type"] != "error"
                   for cell in json.loads((folder / "notebook.ipynb").read_text())["cells"])


def test_a_changed_metric_runs_the_statistics_again_and_nothing_else(done):
    place = done[0]
    before = stamps(place)
    (place / "mstl" / "only_statistics.py").write_text("# changed\n")
    assert light.mstl(place, "run", "light").returncode == 0
    assert changed(place, before) == {"60_comparison/all"}


def test_a_changed_parameter_runs_what_has_it_and_what_follows(done):
    place = done[0]
    before = stamps(place)
    (place / "studies" / "light.yml").write_text(SMALL.replace("n_train: 40", "n_train: 20"))
    assert light.mstl(place, "run", "light").returncode == 0
    assert changed(place, before) == {"30_target/chest-ctl-lite0", "60_comparison/all"}


def test_a_dry_run_says_what_would_run_and_runs_nothing(done):
    place = done[0]
    before = stamps(place)
    (place / "studies" / "light.yml").write_text(SMALL.replace("n_train: 40", "n_train: 30"))
    dry = light.mstl(place, "run", "light", "-n")
    (place / "studies" / "light.yml").write_text(SMALL.replace("n_train: 40", "n_train: 20"))
    assert dry.returncode == 0 and not changed(place, before)
    assert "would run 30_target/chest-ctl-lite0" in dry.stderr and "ultrasound" not in dry.stderr


def test_a_second_process_on_the_study_gets_one_sentence(done):
    place = done[0]
    code = (f"import time; from pathlib import Path; from mstl.locks import Lock\n"
            f"lock = Lock(Path({str(place / 'runs' / 'light' / '.lock')!r})).acquire('x'); print('held', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=light.environment(place), cwd=place)
    try:
        assert other.stdout.readline() == "held\n"
        refused = light.mstl(place, "run", "light")
    finally:
        other.kill()
        other.wait()
    assert refused.returncode == 2 and refused.stdout == ""
    assert f"mstl: The study light ({place}/runs/light) is in use by process {other.pid}" in refused.stderr and refused.stderr.count("\n") == 1


def test_a_failure_is_its_sentence_and_the_notebook_to_read_and_mending_it_continues(done):
    place = done[0]
    before = stamps(place)
    light.write(place, "60_comparison", light.light("60_comparison", broken="from mstl.errors import MstlError\nraise MstlError('The table is empty: fill it.')"))
    failed = light.mstl(place, "run", "light")
    notebook = place / "runs" / "light" / "60_comparison" / "all" / "work" / "notebook.ipynb"
    assert failed.returncode == 1 and "60_comparison/all failed: The table is empty: fill it." in failed.stderr
    assert f"read {notebook}" in failed.stderr and "Traceback" not in failed.stderr and "CalledProcessError" not in failed.stderr
    outputs = [output for cell in json.loads(notebook.read_text())["cells"] for output in cell.get("outputs", [])]
    assert outputs[-1]["traceback"] == ["MstlError: The table is empty: fill it."]
    assert not (notebook.parent.parent / "notebook.ipynb").exists() and not (notebook.parent.parent / "run.json").exists()
    light.write(place, "60_comparison", light.light("60_comparison"))
    assert light.mstl(place, "run", "light").returncode == 0 and values(place) == EXPECTED
    assert changed(place, before) == {"60_comparison/all"}


def execute(place, stage, out, **parameters):
    return [sys.executable, "-m", "mstl.execute", stage, "--out", out, "--parameters", json.dumps(parameters)], light.environment(place)


def test_an_error_of_python_is_named_with_its_cell_and_an_error_after_finish_is_no_finished_run(done):
    place = done[0]
    light.write(place, "70_new", light.notebook("70_new", "run.finish()", "1 / 0", parameters=""))
    command, environment = execute(place, "70_new", "runs/own/70_new/all")
    failed = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True)
    assert failed.returncode == 2 and "ZeroDivisionError: division by zero (cell [5] of 70_new): read " in failed.stderr.splitlines()[-1]
    assert not (place / "runs" / "own" / "70_new" / "all" / "run.json").exists()


def test_a_run_uses_the_kernel_of_this_interpreter_and_ends_with_the_study_that_owns_it(done):
    """Whatever kernel 'python3' is installed for the user; and no orphan stays behind a killed study."""
    place = done[0]
    kernel = place / "user" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"argv": ["/nowhere/python", "{connection_file}"], "display_name": "other", "language": "python"}))
    light.write(place, "70_new", light.notebook("70_new", "import os, sys, time\n(run.work / 'kernel').write_text(f'{os.getpid()} {sys.executable}')", "time.sleep(120)",
                                                parameters=""))
    owner = subprocess.Popen(["sleep", "120"])
    command, environment = execute(place, "70_new", "runs/own/70_new/all")
    run = subprocess.Popen(command, cwd=place, env=environment | {"JUPYTER_PATH": str(place / "user"), "MSTL_OWNER": f"{owner.pid}@{os.uname().nodename}"})
    told = place / "runs" / "own" / "70_new" / "all" / "work" / "kernel"
    try:
        _until(lambda: told.is_file() and told.read_text(), 60)
        process, executable = told.read_text().split()
        assert executable == sys.executable
        owner.kill()
        owner.wait()
        _until(lambda: run.poll() is not None, 20)
        _until(lambda: not os.path.exists(f"/proc/{process}/fd") or "Z (zombie)" in _status(process), 20)
    finally:
        for each in (owner, run):
            each.kill()
            each.wait()


@pytest.mark.skipif(os.name == "nt" or not os.path.isdir("/proc"), reason="needs signals and /proc")
def test_an_interruption_by_the_keyboard_ends_quietly_and_leaves_no_process(done):
    place = done[0]
    light.write(place, "00_data", light.light("00_data", sleep=60))
    process = light.started(place, "run", "light")
    progress = place / "runs" / "light" / "00_data" / "all" / "work" / "progress.json"
    _until(progress.is_file, 60)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == "mstl: interrupted; the same command continues."
    assert "Traceback" not in said and "failed" not in said


def test_an_installed_package_runs_a_study_into_the_current_folder(tmp_path):
    site, here = light.installed(tmp_path), tmp_path / "here"
    here.mkdir()
    look = light.notebook("00_data", "import os\nrun.finish(metrics={'data': os.environ['MSTL_DATA'], 'here': os.getcwd()})")
    (site / "mstl" / "_share" / "notebooks" / "00_data.ipynb").write_text(json.dumps(look))
    run = light.mstl(site, "run", "light", "--until", "00_data_all", cwd=here, MSTL_DATA="archives")
    assert run.returncode == 0, run.stderr
    told = json.loads((here / "runs" / "light" / "00_data" / "all" / "metrics.json").read_text())
    assert told == {"data": str(here / "archives"), "here": str(here)} and "1 of 10 runs are finished" in run.stdout
    assert sorted(path.name for path in here.iterdir()) == ["runs"]


def _status(process):
    try:
        return open(f"/proc/{process}/status").read()
    except OSError:
        return "Z (zombie)"


def _until(true, seconds):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
