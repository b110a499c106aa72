"""The command line: ``mstl data``, ``mstl run``, ``mstl book``, ``mstl compare``, ``mstl rank``."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mstl
from mstl.errors import MstlError

#: Options of Snakemake that say which study is run, and where.
_OURS = {"--config", "-C", "--configfile", "--directory", "-d", "--snakefile", "-s", "--cores", "-c", "--logger",
         "--workflow-profile", "--nolock"}
_MAIN = """\
examples:
  mstl data list                       the data sets, what they are for and where they come from
  mstl data prepare busi --size 96     decode an archive once, into data/prepared/
  mstl data audit busi                 look for copies, near-copies and label conflicts
  mstl run smoke --estimate            what the study would cost: runs, minutes, disk
  mstl run workshop                    run it, two runs at a time; again to continue after an interruption
  mstl book workshop                   render the executed notebooks as a book
  mstl compare predictions.csv         compare the models of any table of predictions: one HTML page, one CSV
  mstl rank busi tf_efficientnet_lite0 runs/reference/20_bridge/lite0-cells     which start is best, without training

Results are written below the checkout, or below $MSTL_HOME. Archives are looked for in data/raw/ and in the folders of $MSTL_DATA.
"""
_RUN = """\
STUDY is the name of a file in studies/ (without .yml) or the path of your own. Runs that are finished are not done again;
an interrupted one continues. Options that mstl does not know go to Snakemake:

  mstl run smoke                       two runs at a time
  mstl run smoke --jobs 1 -n           only say what would run, and why
  mstl run smoke --until 20_bridge_vit_cells
  mstl run reference --keep-going      go on with independent runs after a failure
  mstl run mine.yml --jobs 20 --executor slurm       on a cluster, with snakemake-executor-plugin-slurm installed
"""

_COMPARE = """\
TABLE is a CSV file with one row an image and model: image_id, y_true, model and p_<class>; better also group (the patient),
center, split (val, test), seed and fold. Other column names are mapped:

  mstl compare predictions.csv
  mstl compare predictions.csv --reference baseline --group patient --prevalence 0.02
  mstl compare mine.csv --columns image=image_id truth=y_true prob_malignant=p_malignant

A mistake in the table is one sentence that names the row. The folder of the results holds report.html, which needs no
network and no other file, numbers.csv with every figure, and the executed notebooks.
"""

_RANK = """\
TARGET is a name of the catalog or a folder with manifest.csv, CANDIDATE a network to start from: the folder of a checkpoint, a
finished source or bridge run (every chain of it), a timm backbone with its ImageNet weights, or backbone=file for weights of
your own. Nothing is trained: features of the target's training images are measured, with intervals from random halves of its groups.

  mstl rank ./my-images tf_efficientnet_lite0 runs/workshop/20_bridge/lite0-cells
  mstl rank busi runs/reference/10_source/lite0 runs/reference/20_bridge/lite0-cells --classes benign malignant
  mstl rank ./my-images resnet50=imagenet.safetensors resnet50=RadImageNet/ResNet50.pt --measures logme h_score

Where the target has a published or own split, its training part alone is read.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit code: 0 done, 1 a run failed, 2 a mistake in what was asked for, 130 interrupted."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if rest and given.action is not _run:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        code = given.action(given, rest)
        sys.stdout.flush()
        return code
    except MstlError as error:
        if given.debug:
            raise
        print(f"mstl: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as in `mstl data list | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("mstl: interrupted; the same command continues.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    keep = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="mstl", formatter_class=keep, epilog=_MAIN, allow_abbrev=False,
                                     description="Multistage transfer learning in medical imaging: data, studies and the book.")
    parser.add_argument("--version", action="version", version=f"mstl {mstl.__version__}")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="list, prepare and audit data sets", description="Data sets.").add_subparsers(
        required=True, metavar="ACTION")
    listing = data.add_parser("list", help="the catalog", description="The data sets of the catalog, and whether they are here.")
    listing.set_defaults(action=_data_list)
    prepare = data.add_parser("prepare", help="decode into data/prepared/", description="Decode data sets once into data/prepared/.")
    prepare.add_argument("names", nargs="+", metavar="NAME", help="a name of the catalog, or a folder with manifest.csv")
    prepare.add_argument("--size", type=int, default=96, help="side in pixels (default: 96)")
    prepare.set_defaults(action=_data_prepare)
    audit = data.add_parser("audit", help="copies, near-copies, label conflicts",
                            description="Look for images that occur twice, exactly or nearly, and for those that carry two labels.")
    audit.add_argument("names", nargs="+", metavar="NAME", help="a name of the catalog, or a folder with manifest.csv")
    audit.add_argument("--size", type=int, default=96, help="side in pixels (default: 96)")
    audit.set_defaults(action=_data_audit)

    run = commands.add_parser("run", help="run a study", formatter_class=keep, epilog=_RUN, description="Run a study.",
                              allow_abbrev=False)
    run.add_argument("study", metavar="STUDY")
    run.add_argument("--jobs", "-j", type=int, default=2, help="runs at a time (default: 2)")
    run.add_argument("--estimate", action="store_true", help="print runs, minutes and disk, and start nothing")
    run.set_defaults(action=_run)

    book = commands.add_parser("book", help="render the book of a study", description="Render the book of a study that has run.")
    book.add_argument("study", metavar="STUDY", nargs="?", default="workshop", help="default: workshop")
    book.set_defaults(action=_book)

    compare = commands.add_parser("compare", help="compare the models of a table of predictions", formatter_class=keep, epilog=_COMPARE,
                                  description="Compare the models of a table of predictions.", allow_abbrev=False)
    compare.add_argument("tables", nargs="+", metavar="TABLE", help="CSV files, or folders of runs")
    compare.add_argument("--reference", default="", metavar="MODEL", help="the model that every other is compared with (default: the first)")
    compare.add_argument("--group", default="", metavar="COLUMN", help="what counts as one in the resampling, as a rule the patient")
    compare.add_argument("--columns", nargs="+", default=[], metavar="YOURS=OURS", help="your column names, where they differ")
    compare.add_argument("--positive", default="", metavar="CLASS", help="the positive class (default: the last p_ column)")
    compare.add_argument("--prevalence", type=float, metavar="SHARE", help="of the population that counts per 1000 are for (default: the test set's)")
    compare.add_argument("--by", nargs="+", default=["center"], metavar="COLUMN", help="columns whose values get results of their own (default: center)")
    compare.add_argument("--margin", type=float, default=0.02, help="AUC difference that does not matter in practice (default: 0.02)")
    compare.add_argument("--level", type=float, default=0.95, help="of every interval (default: 0.95)")
    compare.add_argument("--resamples", type=int, default=2000, help="of the bootstrap (default: 2000)")
    compare.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    compare.add_argument("--simulated", action="store_true", help="the images were simulated: every figure says so")
    compare.add_argument("--title", default="", help="of the report")
    compare.add_argument("--out", metavar="FOLDER", help="default: <name of the table>-comparison")
    compare.set_defaults(action=_compare)
    rank = commands.add_parser("rank", help="rank networks to start from, without training", formatter_class=keep, epilog=_RANK,
                               description="Rank candidate networks for a target by the transferability measures.", allow_abbrev=False)
    rank.add_argument("target", metavar="TARGET")
    rank.add_argument("candidates", metavar="CANDIDATE", nargs="+")
    rank.add_argument("--classes", nargs="+", default=[], metavar="CLASS", help="classes of the target to keep")
    rank.add_argument("--size", type=int, default=96, help="side in pixels for candidates that do not bring one (default: 96)")
    rank.add_argument("--measures", nargs="+", default=None, metavar="MEASURE",
                      help="of leep nce h_score logme gbc nleep transrate parc (default: all but nleep, which is slow)")
    rank.add_argument("--resamples", type=int, default=100, help="random halves of the groups for the intervals (default: 100)")
    rank.add_argument("--images", type=int, default=1000, help="images of the target at most (default: 1000)")
    rank.add_argument("--out", default="ranking", metavar="FOLDER", help="where ranking.csv and ranking.png go (default: ranking)")
    rank.set_defaults(action=_rank)
    return parser


def _rank(given: argparse.Namespace, _: list[str]) -> int:
    from mstl import rank

    if given.resamples < 20:
        raise MstlError(f"--resamples {given.resamples} are too few for an interval: give 20 or more.")
    measures = given.measures or list(rank.DEFAULT)
    found = rank.candidates(given.candidates, size=given.size)

    def say(text: str) -> None:
        print(f"{text} …", file=sys.stderr, flush=True)

    table = rank.rank(rank.training_part(given.target, given.classes), found, measures=measures, n_max=given.images,
                      n_resamples=given.resamples, progress=say)
    folder = Path(given.out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "ranking.csv", index=False)
    rank.figure(table, f"Candidates for {given.target}, larger is better (95 % intervals, random halves of the groups)").savefig(folder / "ranking.png", dpi=150)
    print(rank.describe(table), rank.reliability(measures), f"Written: {folder / 'ranking.csv'} and {folder / 'ranking.png'}", sep="\n\n")
    return 0


def _run(given: argparse.Namespace, options: list[str]) -> int:
    from mstl import estimates, paths, planning
    from mstl.execute import OWNER, python_path
    from mstl.locks import Lock
    from mstl.study import THREADS

    if given.jobs < 1:
        raise MstlError(f"--jobs is the number of runs at a time, but is {given.jobs}: give 1 or more.")
    if taken := _OURS & {option.split("=")[0] for option in options}:
        raise MstlError(f"The option {min(taken)} is set by mstl run itself: leave it out, or call Snakemake with "
                        "workflow/Snakefile by hand.")
    study = planning.read_study(given.study)
    runs = planning.plan(study)
    planning.verify(runs)
    folder = planning.folder(study)
    cost = estimates.estimate(study, jobs=given.jobs)
    if given.estimate:
        print(estimates.describe(cost, study, jobs=given.jobs))
        return 0
    with Lock(folder / ".lock").acquire(f"The study {study.name} ({folder})") as lock:
        print(f"{estimates.headline(cost, study, jobs=given.jobs)} Into {folder}.", flush=True)
        environment = os.environ | dict.fromkeys(THREADS, str(study.threads)) | {OWNER: f"{os.getpid()}@{platform.node()}"}
        # the runs have another current folder
        environment["MSTL_HOME"] = str(paths.home())
        environment["MSTL_DATA"] = os.pathsep.join(str(place.resolve()) for place in paths.archive_folders()[1:])
        environment["PYTHONPATH"] = python_path(paths.share("workflow"))  # the logger plug-in lies there
        began = time.monotonic()
        code = _call([
            sys.executable, "-m", "snakemake", "--snakefile", str(paths.share("workflow", "Snakefile")), "--directory", str(folder),
            *_profile(paths.share("workflow", "profile", "config.yaml")), "--cores", str(given.jobs * study.threads),
            "--jobs", str(given.jobs),  # on a cluster
            "--nolock",  # the study's own lock is held, and unlike Snakemake's it dies with its holder
            "--logger", "mstl", "--config", f"study={_absolute(given.study)}", *options,
        ], environment, lock)
    if code:
        print(f"mstl: study {study.name} did not finish; mend what failed, and the same command continues.", file=sys.stderr)
        return 1
    if {"-n", "--dry-run", "--dryrun"} & set(options):
        return 0
    done = sum(planning.finished(study, run) for run in runs)
    print(f"Study {study.name} is finished ({time.monotonic() - began:.0f} s). Next: mstl book {given.study}" if done == len(runs)
          else f"Study {study.name}: {done} of {len(runs)} runs are finished.")
    return 0


def _call(command: list[str], environment: dict[str, str], lock) -> int:
    """Run a command that inherits the lock; on Ctrl-C wait until it has ended its own jobs."""
    process = subprocess.Popen(command, env=environment, **({} if os.name == "nt" else {"pass_fds": [lock.fileno()]}))
    interrupted = False
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            interrupted = True  # Snakemake got it as well
            continue
        if interrupted:
            raise KeyboardInterrupt
        return code


def _profile(path: Path) -> list[str]:
    """The settings of a Snakemake profile as options: Snakemake announces a profile that it is given, at every call."""
    import yaml

    words: list[str] = ["--workflow-profile", "none"]
    for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if value is not False:
            words += [f"--{name}", *([] if value is True else map(str, value if isinstance(value, list) else [value]))]
    return words


def _absolute(study: str) -> str:
    return str(Path(study).expanduser().resolve()) if study.endswith((".yml", ".yaml")) else study


def _book(given: argparse.Namespace, _: list[str]) -> int:
    from mstl import report

    report.build_book(given.study)
    return 0


def _compare(given: argparse.Namespace, _: list[str]) -> int:
    from mstl import compare

    columns = {}
    for pair in given.columns:
        yours, equals, ours = pair.rpartition("=")
        if not (yours and equals and ours):
            raise MstlError(f"--columns takes pairs such as patient=group, but got '{pair}': write YOURS=OURS.")
        columns[yours] = ours
    if given.group:
        columns[given.group] = "group"
    compare.compare(given.tables, given.out, compare.Settings(
        reference=given.reference, positive=given.positive, prevalence=given.prevalence, by=tuple(given.by), margin=given.margin, level=given.level,
        n_resamples=given.resamples, seed=given.seed, simulated=given.simulated, title=given.title, columns=columns))
    return 0


def _data_list(given: argparse.Namespace, _: list[str]) -> int:
    from mstl import paths
    from mstl.datasets import archives
    from mstl.datasets.catalog import catalog

    cards = catalog()
    width = max(map(len, cards))
    for name, card in cards.items():
        kind = f"{card.role}, {card.modality}" + (", simulated" if card.simulated else "")
        print(f"{name:<{width}}  {card.title}\n{'':<{width}}  {kind} · {', '.join(card.classes[:4])} · {card.licence}")
        if not card.simulated:
            found = archives.find(card, paths.archive_folders())
            absent = "downloaded when it is first used" if card.reader == "npz" else f"not here: fetch it as {card.archive} into data/raw/"
            print(f"{'':<{width}}  {card.url} · {f'here: {found}' if found else absent}")
    return 0


def _data_prepare(given: argparse.Namespace, _: list[str]) -> int:
    from mstl import datasets

    for name in given.names:
        data = datasets.load(name, size=given.size)
        print(f"{data.name}: {len(data)} images of {data.size} px, {len(data.classes)} classes, {len(set(data.groups))} groups, "
              f"hash {data.hash[:12]}")
    return 0


def _data_audit(given: argparse.Namespace, _: list[str]) -> int:
    from mstl import datasets
    from mstl.datasets import splits

    for name in given.names:
        audit = splits.audit(datasets.load(name, size=given.size))
        print(f"{name}: {audit.sentence()}")
        print(audit.summary().to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
