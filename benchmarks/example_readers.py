"""Simulates the example table of readings, ``data/example/readers.csv``.

    python benchmarks/example_readers.py [FOLDER]

Six readers score 120 cases (48 malignant) from 0 to 100, first without and then with the help of a model. Nothing in it was measured: a
case has a hidden difficulty, a reader a skill and a trust in the model, and the help pulls a score towards the model's in
proportion to that trust. The less experienced trust it more and gain more. The same numbers every time (seed 31).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

#: The spread of a reader's own noise, and the weight given to the model.
READERS = {"resident 1": (2.0, 0.50), "resident 2": (1.8, 0.45), "resident 3": (1.7, 0.25), "general 1": (1.4, 0.30), "specialist 1": (1.0, 0.15), "specialist 2": (0.9, 0.05)}


def simulate(n: int = 120, malignant: int = 48, seed: int = 31) -> pd.DataFrame:
    """The table: reader, case, y_true, reading, score."""
    rng = np.random.default_rng(seed)
    truth = np.repeat([1, 0], [malignant, n - malignant])
    case = 1.3 * (2 * truth - 1) + rng.normal(0, 1, n)
    model = case + rng.normal(0, 1, n)
    rows = []
    for name, (noise, trust) in READERS.items():
        alone = case + noise * rng.normal(size=n)
        again = (1 - trust) * (alone + 0.3 * rng.normal(size=n)) + trust * 1.5 * model
        for reading, seen in (("without AI", alone), ("with AI", again)):
            score = np.rint(100 / (1 + np.exp(-0.8 * seen))).astype(int)
            rows.append(pd.DataFrame({"reader": name, "case": [f"c{k + 1:03d}" for k in range(n)], "y_true": truth, "reading": reading, "score": score}))
    return pd.concat(rows, ignore_index=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "data" / "example"
    folder.mkdir(parents=True, exist_ok=True)
    simulate().to_csv(folder / "readers.csv", index=False, lineterminator="\n")
