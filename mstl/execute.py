"""One run of a study: a stage notebook through papermill, its results in place only when all of it succeeded.

    python -m mstl.execute 30_target --out runs/smoke/30_target/busi-mstl-lite0-cells --parameters '{"arm": "mstl"}'

The notebook is written into the folder ``work`` of the run's folder while it runs, and moved out of it last. When it fails
it stays there to be read, beside ``log.txt`` whose last line is the one sentence that says why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mstl import paths, templates
from mstl.errors import MstlError
from mstl.locks import Lock
from mstl.study import RECORD, THREADS

#: Set by `mstl run` to "process@host": a run whose study was killed ends itself.
OWNER = "MSTL_OWNER"
KERNEL = "mstl"
INTERRUPTED = "was interrupted"


def execute(stage: str, out: str, parameters: Mapping[str, Any]) -> Path:
    """Execute a stage into the folder ``out`` (relative to the home folder); returns its path.

    Raises :class:`MstlError` for wrong parameters, for a run in use, and with the notebook's own sentence when it fails.
    """
    parameters = {**parameters, "out": out}
    templates.check(stage, parameters)
    out = paths.home(out).resolve()
    work = out / "work"
    with Lock(out / ".execute.lock").acquire(f"The run {out}", wait=15.0):
        notebook = work / "notebook.ipynb"
        _prepare(work)
        os.environ.update(dict.fromkeys(THREADS, str(parameters.get("threads", 1) or 1)))
        began = time.time()
        try:
            _papermill(templates.template(stage), notebook, parameters, stage)
            record = out / RECORD
            if not record.is_file() or record.stat().st_mtime < began - 2:
                raise MstlError(f"The notebook {stage} ended without run.finish(...): add it as its last step.")
        except BaseException:
            if (out / RECORD).is_file() and not (out / "notebook.ipynb").is_file():
                (out / RECORD).unlink()  # finish() came, but a later cell failed: not a finished run
            raise
        os.replace(notebook, out / "notebook.ipynb")
        shutil.rmtree(work, ignore_errors=True)
    return out


def python_path(*first: Path) -> str:
    """``PYTHONPATH`` of a process that is to use this very package, with the folders ``first`` before all."""
    checkout = Path(__file__).resolve().parent.parent
    own = [checkout] if (checkout / "pyproject.toml").is_file() else []  # an installed package is found anyway
    return os.pathsep.join(filter(None, [*map(str, [*first, *own]), os.environ.get("PYTHONPATH", "")]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mstl.execute", description=__doc__.split("\n")[0])
    parser.add_argument("stage", help="name of a stage notebook, e.g. 30_target")
    parser.add_argument("--out", required=True, help="the run's folder, relative to the home folder")
    parser.add_argument("--parameters", default="{}", type=json.loads, help="the notebook's parameters as JSON")
    parser.add_argument("--log", action="store_true", help="write what is said to log.txt in the folder work of OUT instead of the terminal")
    given = parser.parse_args(arguments)
    if given.log:
        _redirect(paths.home(given.out) / "work" / "log.txt")
    _end_with_owner()
    signal.signal(signal.SIGTERM, _stopped)
    try:
        execute(given.stage, given.out, given.parameters)
    except MstlError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{given.stage} {INTERRUPTED}: start it again to continue.", file=sys.stderr, flush=True)
        os._exit(130)  # at once: the kernel goes with this process, and papermill's tasks would complain
    return 0


def _stopped(*_) -> None:
    raise MstlError("The run was stopped from outside (SIGTERM): start it again to continue.")


def _redirect(log: Path) -> None:
    """Standard output and error, of this process and the kernel, into a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _papermill(template: Path, notebook: Path, parameters: dict[str, Any], stage: str) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    def once() -> None:
        papermill.execute_notebook(template, notebook, parameters, kernel_name=KERNEL, language="python", progress_bar=False,
                                   cwd=_existing(paths.home()), start_timeout=120,
                                   shutdown_kernel="immediate")  # every file is closed by then; torch's own farewell takes two seconds

    try:
        try:
            once()
        except DeadKernelError:
            raise
        except RuntimeError as error:  # two kernels that started at once may have taken the same port
            print(f"{stage}: the kernel did not start ({error}); trying once more.", file=sys.stderr)
            once()
    except PapermillExecutionError as error:
        if error.traceback == [f"{error.ename}: {error.evalue}"]:  # an MstlError, as mstl.study shows it
            raise MstlError(error.evalue) from None
        raise MstlError(f"{error.ename}: {' '.join(str(error.evalue).split()) or 'no message'} (cell [{error.exec_count}] of "
                        f"{stage}): read {notebook}.") from error
    except DeadKernelError as error:
        raise MstlError(f"The kernel of {stage} died, because it was stopped or memory ran out: close other programs, use fewer "
                        f"--jobs or a smaller batch_size, and start it again (what ran is in {notebook}).") from error
    except RuntimeError as error:
        raise MstlError(f"The kernel of {stage} did not start ({error}): see whether `{sys.executable} -m ipykernel --version` "
                        "works.") from error
    except OSError as error:
        raise MstlError(f"{stage} could not write {notebook} ({error.strerror or error}): make room there and start it "
                        "again.") from error


def _prepare(work: Path) -> None:
    """An empty work folder (but for the log that is being written), with a kernel that is this very interpreter."""
    from ipykernel.kernelspec import get_kernel_dict

    try:
        work.mkdir(parents=True, exist_ok=True)
        for left in work.iterdir():
            if left.is_dir():
                shutil.rmtree(left)
            elif left.name != "log.txt":
                left.unlink()
        kernel = work / "kernels" / KERNEL / "kernel.json"
        kernel.parent.mkdir(parents=True)
        # its complaint about sockets without encryption would stand in every log
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--IPKernelApp.log_level=ERROR"]
        kernel.write_text(json.dumps(get_kernel_dict() | {"argv": command}), encoding="utf-8")
    except OSError as error:
        raise MstlError(f"The run could not write to {work} ({error.strerror or error}): make room there and start it "
                        "again.") from error
    os.environ["JUPYTER_PATH"] = os.pathsep.join(p for p in (str(work), os.environ.get("JUPYTER_PATH")) if p)
    os.environ["PYTHONPATH"] = python_path()


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _end_with_owner() -> None:
    """Watch the process that owns the study (on this machine) and end when it is gone; the kernel ends with us."""
    process, _, host = os.environ.get(OWNER, "").partition("@")
    if not process or host != platform.node() or os.name == "nt":
        return

    def watch() -> None:
        while True:
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                os._exit(1)
            except PermissionError:
                return
            time.sleep(1.0)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
