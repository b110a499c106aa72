"""A checkout with real templates that compute something small instead of training: for tests of the machinery.

Every stage has the parameters of the real one and passes numbers on from its parents, with a sleep a cell, so that a kill at
any moment finds something half done; the numbers depend on parameters and parents alone.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMON = """study: str = "own"
out: str = ""
title: str = ""
"""
MODEL = """threads: int = 1
image_size: int = 96   # pixels
"""
PARAMETERS = {
    "00_data": MODEL + "data: list = []\noptions: dict = {}\n",
    "10_source": MODEL + 'lineage: str = "lite0"\nbackbone: str = "tf_efficientnet_lite0"\nsource: str = "imagenet"\noptions: dict = {}\n'
                         "recipe: dict = {}\nseed: int = 0\nn_train: int = 0\n",
    "20_bridge": MODEL + 'lineage: str = "lite0"\nbackbone: str = "tf_efficientnet_lite0"\nsource: str = "imagenet"\nparent: str = ""\n'
                         'bridge: str = "cells"\ndata: str = "phantom-cells"\noptions: dict = {}\nrecipe: dict = {}\nseeds: list = [0]\n'
                         'images: float = 1.0\nlines: float = 1.0\nn_train: int = 0\nmerge: str = ""   # tissue | random\nmerge_to: int = 0\n'
                         'control: str = ""   # labels | statistics\ngrey: bool = False\ndraw: int = 0\n',
    "30_target": MODEL + 'target: str = "busi"\nvariant: str = ""\ndata: str = "busi"\nclasses: list = []\noptions: dict = {}\n'
                         'arm: str = "mstl"   # scratch | ctl | mstl\nlineage: str = "lite0"\nbackbone: str = "tf_efficientnet_lite0"\n'
                         'source: str = "imagenet"\nbridge: str = "cells"\nparent: str = ""\n'
                         'design: str = "folds"   # folds | holdout | published\nfolds: int = 5\ndraws: int = 1\nn_train: int = 0\n'
                         "n_val: int = 0\ntest: float = 0.5\ngroup_by_cluster: bool = False\nseeds: list = [0]\nrecipe: dict = {}\n"
                         "lrs: list = []\nsteps: list = []\nextra_steps: list = []\n",
    "60_comparison": 'threads: int = 1\ntitles: dict = {}\nsimulated: bool = False\npredictions: list = []\nestimand: str = ""\ncontrast: list = ["mstl", "ctl"]   # scratch | ctl | mstl\n'
                     'metric: str = "auc"   # auc | accuracy | f1\nmargin: float = 0.02\nfamily: list = []\nholm: list = []\n'
                     "level: float = 0.95\nn_resamples: int = 2000\nn_resamples_primary: int = 0\nseed: int = 0\n",
}
START = 'from mstl import study\nrun = study.start("{stage}", globals())'
#: What stands between start and finish; ``value`` is the stage's number.
WORK = {
    "00_data": "value = len(run.p.data)",
    "10_source": "value = sum(map(ord, run.p.lineage + run.p.source))\n(run.work / 'checkpoint').mkdir()\n(run.work / 'checkpoint' / 'weights').write_text(str(value))",
    "20_bridge": "parent = run.parent(run.p.parent, 'the source run')\nvalue = int((parent / 'checkpoint' / 'weights').read_text()) * 3 + len(run.p.seeds)\n"
                 "(run.work / 'checkpoint').mkdir()\n(run.work / 'checkpoint' / 'weights').write_text(str(value))",
    "30_target": "value = len(run.p.arm)\nif run.p.parent:\n    parent = run.parent(run.p.parent, 'the run before it')\n"
                 "    value += int((parent / 'checkpoint' / 'weights').read_text())\n",
    "60_comparison": "import json\nfrom pathlib import Path\ntables = [run.parent(p, 'the predictions') for p in run.p.predictions]\n"
                     "value = [json.loads((t / 'metrics.json').read_text())['value'] if t.is_dir() else 0 for t in tables]",
}
STUDY = """# a light study
study: light
seeds: [0, 1]
lineages:
  - {name: lite0, backbone: tf_efficientnet_lite0}
bridges:
  - {name: cells, data: phantom-cells, options: {n: 60}}
targets:
  ultrasound: {data: phantom-ultrasound, classes: [benign, malignant], folds: 3}
  chest: {data: phantom-chest, design: holdout, n_train: 40}
recipe: {epochs: 1}
tuning: {lrs: [1e-3], steps: [2], scratch_extra_steps: [8]}
"""


def notebook(stage: str, *cells: str, parameters: str | None = None) -> dict:
    """A template: the parameters cell, the start cell and then ``cells``."""
    declared = COMMON + (PARAMETERS[stage] if parameters is None else parameters)
    sources = [("parameters", declared), ("", START.format(stage=stage)), *(("", cell) for cell in cells)]
    return {
        "cells": [{"id": f"cell{i}", "cell_type": "code", "metadata": {"tags": [tag] if tag else []}, "execution_count": None,
                   "outputs": [], "source": source} for i, (tag, source) in enumerate(sources)],
        "metadata": {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"},
                     "language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}


def light(stage: str, *, sleep: float = 0.0, broken: str = "") -> dict:
    wait = f"import time\nfor i in range(10):\n    run.progress(i, 10, 'step')\n    time.sleep({sleep / 10})"
    finish = ["run.finish(metrics={'value': value})"]
    if stage == "30_target":
        finish = ["(run.work / 'predictions.csv').write_text(f'value\\n{value}\\n')", *finish]
    return notebook(stage, wait, broken or WORK[stage], *finish)


def checkout(folder: Path, *, sleep: float = 0.0, study: str = STUDY) -> Path:
    """A copy of the package and its workflow with light notebooks, in ``folder``."""
    ignore = shutil.ignore_patterns("__pycache__", "_share")
    shutil.copytree(ROOT / "mstl", folder / "mstl", ignore=ignore)
    shutil.copytree(ROOT / "workflow", folder / "workflow", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "studies").mkdir()
    (folder / "studies" / "light.yml").write_text(study)
    (folder / "notebooks").mkdir()
    for stage in PARAMETERS:
        write(folder, stage, light(stage, sleep=sleep))
    return folder


def installed(folder: Path) -> Path:
    """The package as a wheel leaves it: no checkout around it, notebooks, studies and workflow inside."""
    made = checkout(folder / "made")
    site = folder / "site"
    shutil.copytree(made / "mstl", site / "mstl")
    for name in ("notebooks", "studies", "workflow"):
        shutil.copytree(made / name, site / "mstl" / "_share" / name)
    shutil.rmtree(made)
    return site


def write(folder: Path, stage: str, content: dict) -> Path:
    path = folder / "notebooks" / f"{stage}.ipynb"
    path.write_text(json.dumps(content))
    return path


def environment(folder: Path) -> dict[str, str]:
    """Of a process that uses the checkout in ``folder`` and nothing of the one under test."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MSTL", "JUPYTER"))}
    return kept | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def mstl(folder: Path, *words: str, cwd: Path | None = None, timeout: float = 600, **variables: str) -> subprocess.CompletedProcess:
    """``mstl …`` of the package in ``folder``, from there or from ``cwd``."""
    return subprocess.run([sys.executable, "-P", "-m", "mstl.cli", *words], cwd=cwd or folder, env=environment(folder) | variables,
                          capture_output=True, text=True, timeout=timeout)


def started(folder: Path, *words: str) -> subprocess.Popen:
    """``mstl …`` in the background, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "mstl.cli", *words], cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell starts its background jobs with it ignored


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def numbers(folder: Path) -> dict[str, bytes]:
    """Every result of the light study but what tells of time."""
    runs = folder / "runs" / "light"
    return {str(p.relative_to(runs)): p.read_bytes() for name in ("metrics.json", "predictions.csv", "weights") for p in sorted(runs.rglob(name))}
