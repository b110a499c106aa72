"""What is kept of the reference study: ``python -m mstl.reference`` after ``mstl run reference`` (``make reference`` does both).

Tables and records go into ``data/reference/``, from which the book recomputes every statistic; no image and no checkpoint does.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mstl import paths, planning, predictions
from mstl.errors import MstlError
from mstl.study import RECORD

#: Stages whose tables an analysis reads; analyses themselves are recomputed.
STAGES = ("10_source", "20_bridge", "30_target", "35_probe", "36_first_hop", "53_leakage", "7")
#: Bytes above which a predictions table of the probes is packed and its validation rows, which nothing reads, are left out.
LARGE = 2_000_000


def keep(study: planning.Study, place: Path) -> list[str]:
    """Copy tables and records of the finished runs of ``study`` into ``place``, those of other runs stay; returns the runs."""
    kept = []
    for run in planning.plan(study):
        source, to = planning.folder(study) / run.path, place / run.path
        if not run.stage.startswith(STAGES) or not planning.finished(study, run):
            continue
        to.mkdir(parents=True, exist_ok=True)
        for file in [*sorted(source.glob("*.csv")), source / "metrics.json", source / RECORD]:
            (to / f"{file.name}.xz").unlink(missing_ok=True)
            if run.stage == "35_probe" and file.name == "predictions.csv" and file.stat().st_size > LARGE:
                (to / file.name).unlink(missing_ok=True)
                predictions.condense(predictions.read(file), to / f"{file.name}.xz")
            elif file.is_file():
                shutil.copyfile(file, aside := to / f".{file.name}.part")
                os.replace(aside, to / file.name)
        kept.append(run.path)
    return kept


def main() -> None:
    study = planning.read_study("reference")
    try:
        kept = keep(study, paths.share("data", "reference"))
    except OSError as error:
        raise MstlError(f"data/reference/ could not be written ({error}): make room, and call `python -m mstl.reference` again.") from error
    print(f"{len(kept)} runs of the reference study are in data/reference/.")


if __name__ == "__main__":
    main()
