"""Where the project keeps its files: one place that knows, so that every notebook runs from any working directory."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def _is_checkout() -> bool:
    return (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "notebooks").is_dir()


def share(*parts: str) -> Path:
    """Read-only material that travels with the package (notebooks, studies, workflow, book, reference data)."""
    return (_CHECKOUT if _is_checkout() else _PACKAGE / "_share").joinpath(*parts)


def home(*parts: str) -> Path:
    """Where results and data are written: ``$MSTL_HOME``, else the checkout, else the current folder."""
    base = os.environ.get("MSTL_HOME")
    root = Path(base).expanduser().resolve() if base else _CHECKOUT if _is_checkout() else Path.cwd()
    return root.joinpath(*parts)


def archive_folders(root: Path | None = None) -> list[Path]:
    """Folders searched for archives, in order: ``<root>/raw`` (default ``home("data")/raw``), then each folder of ``$MSTL_DATA``."""
    first = (root or home("data")) / "raw"
    extra = [Path(p).expanduser() for p in os.environ.get("MSTL_DATA", "").split(os.pathsep) if p]
    return [first, *extra]
