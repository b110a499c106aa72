"""What a stage notebook says to the outside: :func:`start` at its beginning, :meth:`Run.finish` at its end.

The first cell after the parameters is always::

    from mstl import study
    run = study.start("30_target", globals())

A run writes into its folder ``work`` and moves its results into place at the end, ``run.json`` last: a run without
``run.json`` is not finished, whatever else lies there. Study files are in :mod:`mstl.studyfile`, ``plan`` in
:mod:`mstl.planning` and ``estimate`` in :mod:`mstl.estimates`; these names are also found here.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import datetime
import errno
import importlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import mstl
from mstl import paths, templates
from mstl.errors import MstlError
from mstl.locks import Lock

RECORD = "run.json"
#: What lies in ``work/`` and is not a result.
AUXILIARY = ("notebook.ipynb", "log.txt", "progress.json", "kernels")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_PACKAGES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "accelerate", "numpy", "scipy", "scikit-learn", "statsmodels", "pandas", "papermill")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Seconds that a run waits for its folder: the kernel of a run that was killed needs one or two to notice.
WAIT = 5.0
_LOCKS: dict[Path, Lock] = {}


def __getattr__(name: str) -> Any:
    if name in ("read_study", "plan", "Study", "PlannedRun", "estimate"):
        # by name, so that a change in planning does not count as a change of every notebook
        return getattr(importlib.import_module("mstl.estimates" if name == "estimate" else "mstl.planning"), name)
    raise AttributeError(f"module 'mstl.study' has no attribute '{name}'")


def start(stage: str, namespace: Mapping[str, Any]) -> Run:
    """Begin a run: check the parameters in ``namespace`` (the notebook's ``globals()``), take the run's folder.

    From here on an :class:`MstlError` shows as its sentence instead of a traceback. Errors: a parameter that the stage
    does not have, of the wrong type or with a value that is not allowed; a folder that another process is using.
    """
    _show_errors_as_sentences()
    values = templates.check(stage, _given(namespace, templates.parameters(stage)))
    set_threads(values.get("threads", 0))
    out = _folder(stage, values)
    if out not in _LOCKS:
        _LOCKS[out] = Lock(out / ".lock").acquire(f"The run {out}", wait=WAIT)
    return Run(stage, values, out)


def slug(stage: str, values: Mapping[str, Any]) -> str:
    """The name of a run's folder from its parameters: target, arm, lineage, bridge, variant, those that it has.

    Only the arm ``mstl`` has a bridge in its name; a run with none of these is called ``all``.
    """
    parts = [values.get(key) for key in ("target", "arm", "lineage")]
    parts.append(values.get("bridge") if values.get("arm", "mstl") == "mstl" else "")
    parts.append(values.get("variant"))
    named = [re.sub(r"[^a-z0-9._]+", "_", str(part).lower()).strip("_") for part in parts if part]
    return "-".join(named) or "all"


def set_threads(count: int) -> None:
    """Use ``count`` threads a process in torch and the linear algebra below NumPy; 0 leaves the machine's default."""
    if count:
        os.environ.update(dict.fromkeys(THREADS, str(count)))
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(count)


class Run:
    """One execution of a stage: its parameters, its folders and how it ends.

    ``p`` the checked parameters · ``out`` the run's folder · ``work`` what is being written (whatever the notebook puts
    here, :meth:`finish` moves into ``out``) · ``fits`` the study's finished fits, shared by its runs · ``title``.
    """

    def __init__(self, stage: str, values: Mapping[str, Any], out: Path) -> None:
        self.stage, self.values, self.out = stage, dict(values), out
        self.p = SimpleNamespace(**values)
        self.study = values.get("study", "")
        self.work, self.fits = out / "work", out.parent.parent / "fits"
        self.title = values.get("title") or f"{stage} · {out.name}"
        self._began, self._told = time.monotonic(), 0.0
        self._parents: list[str] = []
        with _disk(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
            for left in self.work.iterdir():
                if left.name not in AUXILIARY[:2] + AUXILIARY[3:]:
                    _remove(left)

    def parent(self, where: str | Path, what: str = "") -> Path:
        """The folder (or file) of an earlier result: a run as ``stage/slug`` of this study, or any path.

        ``what`` is its name in the error that says which command makes it when it is missing or not finished.
        """
        text = str(where)
        of_study = self.out.parent.parent / text
        path = next((p for p in (Path(text).expanduser(), of_study, paths.home(text)) if text and p.exists()), of_study)
        if path.is_file() or any((path / name).is_file() for name in (RECORD, "checkpoint.json")):
            self._parents.append(text)
            return path.resolve()
        state = "is not finished" if path.exists() and text else "is missing"
        raise MstlError(f"{what[:1].upper() + what[1:] or 'A parent run'} {state} ({path if text else 'no path given'}): "
                        f"{self._make(text)}.")

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Say how far the run is (any unit); whoever watches the study sees it."""
        now = time.monotonic()
        if now - self._told < 0.2 and done < total:
            return
        self._told = now
        with _disk(self.work):
            _write(self.work / "progress.json", json.dumps({"done": done, "total": total, "text": text}))

    def finish(
        self, predictions=None, metrics: Any = None, history=None, lineage: Sequence[Any] = (), data: Any = None,
        boxes=None, **extra: Any,
    ) -> Path:
        """Write the results and move them into place; returns the run's folder.

        ``predictions``, ``history``, ``boxes``: tables for the CSV files of these names (predictions are checked);
        ``metrics``: for ``metrics.json``; ``lineage``: the stages behind; ``data``: the ImageSet(s) used; ``extra`` goes
        into ``run.json`` as it is. Whatever else lies in ``work`` (a checkpoint) moves along.
        """
        with _disk(self.out):
            if predictions is not None:
                # by name, so that only notebooks that import it themselves depend on it
                importlib.import_module("mstl.predictions").write(predictions, self.work / "predictions.csv")
            for name, frame in (("history", history), ("boxes", boxes)):
                if frame is not None:
                    frame.to_csv(self.work / f"{name}.csv", index=False, lineterminator="\n")
            if metrics is not None:
                _write(self.work / "metrics.json", _json(metrics))
            results = sorted(p.name for p in self.work.iterdir() if p.name not in AUXILIARY)
            _write(self.work / RECORD, _json(self._record(results, lineage, data) | extra))
            self._move(results)
        return self.out

    def _record(self, results: list[str], lineage: Sequence[Any], data: Any) -> dict[str, Any]:
        return {
            "study": self.study, "stage": self.stage, "run": self.out.name, "title": self.title, "files": results,
            "parameters": self.values, "parents": self._parents, "lineage": list(lineage), "data": _data(data),
            "seconds": round(time.monotonic() - self._began, 2), "peak_memory_mb": peak_memory_mb(), "device": device(),
            "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or None, "platform": platform.platform(terse=True),
            "python": platform.python_version(), "versions": versions(), "revision": revision(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def _move(self, results: list[str]) -> None:
        """Results into place: what was there stops looking finished first, and starts looking finished last."""
        before = _read(self.out / RECORD).get("files", [])
        (self.out / RECORD).unlink(missing_ok=True)
        (self.out / "notebook.ipynb").unlink(missing_ok=True)
        for name in {*before, *results}:
            _remove(self.out / name)
        for name in results:
            os.replace(self.work / name, self.out / name)
        os.replace(self.work / RECORD, self.out / RECORD)
        if {path.name for path in self.work.iterdir()} <= {"progress.json"}:
            _remove(self.work)

    def _make(self, text: str) -> str:
        """The command that makes the run ``stage/slug``."""
        if self.study and paths.share("studies", f"{self.study}.yml").is_file():
            return f"run `mstl run {self.study}`, which makes it first"
        stage = text.split("/")[0]
        if stage not in templates.stages():
            return f"{self.stage} takes a run as 'stage/name' or the path of its folder"
        words = ["papermill", str(paths.share("notebooks", f"{stage}.ipynb")), f"{stage}.ipynb"]
        for name, parameter in templates.parameters(stage).items():
            value = self.values.get(name, parameter.default)
            if name in ("out", "title") or value == parameter.default or type(value) is not parameter.kind:
                continue
            words += ["-r", name, value] if parameter.kind is str else ["-p", name, str(value)] if parameter.kind in (
                int, float, bool) else ["-y", json.dumps({name: value})]
        return f"make it with `{shlex.join(words)}`"


def device() -> str:
    """The GPU that torch sees, where torch is loaded; else the processor."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch is not None and torch.backends.mps.is_available():
        return f"{platform.processor()} (mps)"
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else []
    return f"CPU ({names[0] if names else platform.processor() or platform.machine()})"


def peak_memory_mb() -> float:
    """The largest resident memory of this process so far, in MB (10⁶ bytes)."""
    if os.name == "nt":
        import psutil

        return round(psutil.Process().memory_info().peak_wset / 1e6, 1)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers, those that are installed."""
    found = {"mstl": mstl.__version__}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def revision() -> str:
    """The git revision of the checkout (with ``+changes`` where files differ from it), else the package's version."""
    root = paths.share()
    if (root / ".git").exists() and shutil.which("git"):
        call = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
        answer = subprocess.run(call, capture_output=True, text=True, timeout=20)
        if answer.returncode == 0:
            return answer.stdout.strip()
    return f"mstl {mstl.__version__}"


def _given(namespace: Mapping[str, Any], declared: Iterable[str]) -> dict[str, Any]:
    """The values of the declared parameters in the namespace, and of whatever papermill injected besides.

    A plain mapping (without the notebook's cells) counts as injected altogether. Where an import has taken a parameter's
    name, as ``from mstl import study`` does, the value is the one that the cells assigned before.
    """
    cells = namespace.get("In")
    if cells is None:
        return {name: value for name, value in namespace.items() if not name.startswith("_") and not isinstance(value, ModuleType)}
    assigned = [dict(_assignments(source)) for source in cells]
    given = {name: value for cell in assigned for name, value in cell.items() if name in declared}
    given |= {name: namespace[name] for name in declared if name in namespace and not isinstance(namespace[name], ModuleType)}
    injected = (cell for source, cell in zip(cells, assigned, strict=True) if source.startswith("# Parameters\n"))
    return {name: value for cell in injected for name, value in cell.items()} | given


def _assignments(source: str) -> Iterator[tuple[str, Any]]:
    """Names and values of the plain assignments of literals in a cell."""
    try:
        lines = ast.parse(source).body
    except SyntaxError:  # a cell with magics
        return
    for line in lines:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(target, ast.Name) and line.value is not None:
            with contextlib.suppress(ValueError):
                yield target.id, ast.literal_eval(line.value)


def _folder(stage: str, values: Mapping[str, Any]) -> Path:
    """The run's folder: the parameter ``out`` against the home folder, else ``runs/<study>/<stage>/<slug>``."""
    if values.get("out"):
        return paths.home(str(Path(values["out"]).expanduser())).resolve()
    return paths.home("runs", values.get("study") or "own", stage, slug(stage, values)).resolve()


def _show_errors_as_sentences() -> None:
    """In a notebook, an MstlError becomes an error output of one line; the cell still fails."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        def show(shell, kind, value, trace, tb_offset=None):
            line = f"{kind.__name__}: {value}"
            shell._showtraceback(kind, value, [line])
            return [line]

        shell.set_custom_exc((MstlError,), show)


@contextlib.contextmanager
def _disk(folder: Path):
    """Turns a full disk or a folder that cannot be written into one sentence."""
    try:
        yield
    except OSError as error:
        what = "the disk (or the quota) is full" if error.errno in _FULL else f"writing failed ({error})"
        raise MstlError(f"Could not write the results to {folder} because {what}: make room and run the same command again, "
                        "finished fits are kept.") from error


def _data(data: Any) -> list[dict[str, Any]]:
    """Name, hash and size of the ImageSet(s) used."""
    sets = data.values() if isinstance(data, Mapping) else data if isinstance(data, (list, tuple)) else [data]
    return [{"name": s.name, "hash": s.hash, "images": len(s), "size": s.size, "simulated": bool(s.card.simulated)}
            for s in sets if s is not None]


def _json(value: Any) -> str:
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Records, arrays and NumPy numbers as JSON; what is not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict("records"))
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _read(path: Path) -> dict[str, Any]:
    """A JSON record; an absent or unreadable one is empty."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
