"""Snakemake's log as a line a run, a live line in a terminal, and for a failure one sentence and the notebook to read."""

import json
import sys
import threading
import time
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent


class LogHandler(LogHandlerBase):
    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self.runs: dict[int, Path] = {}  # job → its folder
        self.began: dict[int, float] = {}  # running jobs
        self.done, self.total, self.failed, self.live = 0, 0, 0, 0
        self.ended = threading.Event()
        if sys.stderr.isatty():
            threading.Thread(target=self._refresh, daemon=True).start()

    def emit(self, record) -> None:
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            stats = getattr(record, "stats", None) or {}
            self.total = stats.get("total", 0) - stats.get("all", 0)
        elif event == LogEvent.JOB_INFO and record.rule_name != "all":
            self.runs[record.jobid] = Path(record.output[0].split(" (")[0]).parent
            if self.common_settings.dryrun:
                self._line(f"would run {self.runs[record.jobid]} ({' '.join(record.reason.split())})")
            else:
                self.began[record.jobid] = time.monotonic()
                self._line(f"{self._count()} {self.runs[record.jobid]} started")
        elif event == LogEvent.JOB_FINISHED and record.job_id in self.began:
            seconds = time.monotonic() - self.began.pop(record.job_id)
            self.done += 1
            self._line(f"{self._count()} {self.runs[record.job_id]} finished in {seconds:.0f} s")
        elif event == LogEvent.JOB_ERROR and self.began.pop(record.jobid, None):
            self._failure(self.runs[record.jobid])
        elif record.levelname in ("WARNING", "ERROR", "CRITICAL") and event in (None, LogEvent.ERROR) and not self.failed:
            if getattr(record, "exception", "") != "RuleException":  # a job's error follows as JOB_ERROR
                self._line(record.getMessage())
        elif self.common_settings.verbose and event is None:
            self._line(record.getMessage())

    def _failure(self, run: Path) -> None:
        self.failed += 1
        log = run / "work" / "log.txt"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it was killed, and left no message")
        if " was interrupted: " in said:  # by the keyboard: every job says so
            return
        notebook = (run / "work" / "notebook.ipynb").resolve()
        self._line(f"{run} failed: {said}")
        self._line(f"  read {notebook if notebook.is_file() else log.resolve()}")

    def _count(self) -> str:
        return f"[{self.done:>{len(str(self.total))}}/{self.total}]"

    def _line(self, text: str) -> None:
        with self.lock:
            self._wipe()
            print(text, file=sys.stderr, flush=True)

    def _wipe(self) -> None:
        if self.live:
            print("\r" + " " * self.live + "\r", end="", file=sys.stderr)
            self.live = 0

    def _refresh(self) -> None:
        """The live line: how far each running run is, from its progress.json."""
        import shutil

        while not self.ended.wait(0.5):
            parts = []
            for job in list(self.began):
                try:
                    told = json.loads((self.runs[job] / "work" / "progress.json").read_text(encoding="utf-8"))
                    parts.append(f"{self.runs[job].name} {100 * told['done'] / max(told['total'], 1e-9):.0f} % {told['text']}".strip())
                except (OSError, ValueError, KeyError):
                    parts.append(f"{self.runs[job].name} starting")
            with self.lock:
                self._wipe()
                text = " · ".join(parts)[: shutil.get_terminal_size().columns - 1]
                if text and not self.ended.is_set():
                    print(text, end="", file=sys.stderr, flush=True)
                    self.live = len(text)

    def close(self) -> None:  # Snakemake calls it twice
        self.ended.set()
        with self.lock:
            self._wipe()
        super().close()
