"""What surrounds the training: preparing a data set, and what one papermill run costs over the same work as a plain call.

    OMP_NUM_THREADS=1 python -m benchmarks.pipeline

prints two tables in about a minute. *Preparation*: `mstl.datasets.load` from a zip of JPEG files (made for the purpose, 448 pixels
a side) into its memory-mapped cache, beside the usual loop over the same files (open, resize, stack), by one process; images/s of the
clock. *papermill*: the stage notebook 30_target on a tiny study by `papermill`, beside a fresh Python process that executes the
same cells in the same order; seconds of the clock.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from mstl import templates

IMAGES, FILE_SIZE, SIZE, TURNS = 600, 448, 96, 3
PARAMETERS = {"data": "phantom-chest", "options": {"n": 80}, "image_size": 32, "backbone": "test_vit", "steps": [4], "n_train": 20, "n_val": 10}


def archive(folder: Path) -> Path:
    """A zip in the layout of the chest X-ray set: smooth random images, so that JPEG has something to do."""
    rng = np.random.default_rng(0)
    path = folder / "ChestXRay2017.zip"
    with zipfile.ZipFile(path, "w") as out:
        for number in range(IMAGES):
            small = Image.fromarray(rng.integers(0, 255, (56, 56), dtype=np.uint8))
            file = io.BytesIO()
            small.resize((FILE_SIZE, FILE_SIZE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            part, label = ("test", "train")[number % 5 > 0], ("NORMAL", "PNEUMONIA")[number % 2]
            name = f"IM-{number:04d}-0001" if label == "NORMAL" else f"person{number}_bacteria_{number}"
            out.writestr(f"chest_xray/{part}/{label}/{name}.jpeg", file.getvalue())
    return path


def usual_loop(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as packed:
        return np.stack([np.asarray(Image.open(io.BytesIO(packed.read(name))).convert("L").resize((SIZE, SIZE), Image.Resampling.LANCZOS))
                         for name in packed.namelist()])


def preparation() -> list[tuple[str, float, float]]:
    from mstl.datasets import load

    rows = {"usual loop": [], "load, first time": [], "load, prepared": []}
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            (root / "raw").mkdir()
            path = archive(root / "raw")
            began = time.perf_counter()
            usual_loop(path)
            rows["usual loop"].append(time.perf_counter() - began)
            for name in ("load, first time", "load, prepared"):
                began = time.perf_counter()
                data = load("chest-xray", size=SIZE, root=root, progress=False)
                np.asarray(data.images).sum()  # every pixel read
                rows[name].append(time.perf_counter() - began)
    base = min(rows["usual loop"])
    return [(name, IMAGES / min(seconds), base / min(seconds)) for name, seconds in rows.items()]


_PLAIN = """
import builtins, json, sys
builtins.display = lambda *shown: None
cells = json.loads(open(sys.argv[1], encoding="utf-8").read())["cells"]
space = {}
for cell in cells:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), "cell", "exec"), space)
        if "parameters" in cell["metadata"].get("tags", []):
            space.update(json.loads(sys.argv[2]))
"""


def papermill() -> list[tuple[str, float, float]]:
    notebook = str(templates.template("30_target"))
    words = [w for name, value in PARAMETERS.items() for w in ("-y", json.dumps({name: value}))]
    commands = {
        "the same cells in a fresh Python": [sys.executable, "-c", _PLAIN, notebook, json.dumps(PARAMETERS)],
        "papermill": [sys.executable, "-m", "papermill", notebook, "out.ipynb", "--no-progress-bar", *words],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "MSTL_HOME": home, "MPLBACKEND": "agg"}
        for turn in range(TURNS + 1):  # the first turn prepares the data and trains; both load these afterwards
            for name, command in commands.items():
                began = time.perf_counter()
                subprocess.run(command, cwd=home, env=environment, check=True, capture_output=True)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    base = min(seconds["the same cells in a fresh Python"])
    return [(name, min(values), min(values) / base) for name, values in seconds.items()]


def main() -> None:
    print(f"Preparation of {IMAGES} JPEG files of {FILE_SIZE} pixels to {SIZE}, {os.cpu_count()} cores, best of {TURNS}")
    for name, rate, ratio in preparation():
        print(f"  {name:<34}{rate:10.0f} images/s   × {ratio:.2f}")
    print(f"One run of 30_target, best of {TURNS}")
    for name, seconds, ratio in papermill():
        print(f"  {name:<34}{seconds:10.1f} s          × {ratio:.2f}")


if __name__ == "__main__":
    main()
