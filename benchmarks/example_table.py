"""Simulates the example table of predictions, ``data/example/predictions.csv``.

    python benchmarks/example_table.py [FOLDER]

Three models read breast ultrasound of 420 patients, of whom 150 are for validation, in two hospitals, with one to three images
each. Nothing in it was measured: a patient has a hidden difficulty, an image adds noise of its own, and each model sees both
through noise that the models share in part. `baseline` is over-confident, `transfer` a little better, `multistage` a little
better again and well calibrated. The second hospital has more noise. The same numbers every time (seed 20).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

#: How well a model separates the classes, the spread of its own noise, and how much it exaggerates.
MODELS = {"baseline": (0.80, 0.85, 2.2), "transfer": (1.00, 0.75, 1.5), "multistage": (1.15, 0.70, 1.0)}


def simulate(patients: int = 420, seed: int = 20) -> pd.DataFrame:
    """The table: image_id, patient, center, sex, split, y_true, model, p_benign, p_malignant."""
    rng = np.random.default_rng(seed)
    malignant = rng.random(patients) < 0.35
    east = rng.random(patients) < 0.4
    images = rng.integers(1, 4, patients)
    who = np.repeat(np.arange(patients), images)
    number = np.concatenate([np.arange(n) for n in images])
    seen = 1.5 * (2.0 * malignant - 1)[who] + rng.normal(0, 1.0, patients)[who] + rng.normal(0, 0.6, len(who))
    seen += rng.normal(0, 0.9, len(who)) * east[who]
    known = pd.DataFrame(
        {
            "image_id": [f"p{p:03d}-{n + 1}" for p, n in zip(who, number, strict=True)],
            "patient": [f"p{p:03d}" for p in who],
            "center": np.where(east[who], "east", "west"),
            "sex": np.where(rng.random(patients) < 0.97, "female", "male")[who],
            "split": np.where(np.arange(patients) < 150, "val", "test")[who],
            "y_true": np.where(malignant[who], "malignant", "benign"),
        }
    )
    shared = rng.normal(size=len(who))
    tables = []
    for name, (sharpness, noise, exaggeration) in MODELS.items():
        logit = exaggeration * (sharpness * seen + noise * (0.7 * shared + 0.7 * rng.normal(size=len(who))) - 0.9)
        risk = np.round(1 / (1 + np.exp(-logit)), 4)
        tables.append(known.assign(model=name, p_benign=np.round(1 - risk, 4), p_malignant=risk))
    return pd.concat(tables, ignore_index=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "data" / "example"
    folder.mkdir(parents=True, exist_ok=True)
    simulate().to_csv(folder / "predictions.csv", index=False, lineterminator="\n")
