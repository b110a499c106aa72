"""A lock file that dies with the process that holds it, however that process ends."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from mstl.errors import MstlError

if os.name == "nt":
    import msvcrt
else:
    import fcntl


class Lock:
    """An exclusive lock on ``path``; held from :meth:`acquire` until :meth:`release` or the end of the process.

    The operating system drops it when the process dies, so no stale lock is ever left. The file itself stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._handle = None

    def acquire(self, what: str, *, wait: float = 0.0) -> Lock:
        """Take the lock, waiting up to ``wait`` seconds; else an :class:`MstlError` that says who holds ``what``."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = open(self.path, "a+", encoding="utf-8")
        except OSError as error:
            raise MstlError(f"{what} cannot be written ({error.strerror or error}): make room there, or set MSTL_HOME to a folder of yours.") from error
        end = time.monotonic() + wait
        while not _try(handle):
            if time.monotonic() >= end:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                handle.close()
                raise MstlError(f"{what} is in use by {holder}: wait until it ends, or stop it, and start this again.")
            time.sleep(0.1)
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()} on {platform.node()}")
        handle.flush()
        self._handle = handle
        return self

    def fileno(self) -> int:
        """The descriptor: a child that inherits it keeps the lock alive."""
        return self._handle.fileno()

    def release(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_) -> None:
        self.release()


def _try(handle) -> bool:
    try:
        if os.name == "nt":
            handle.seek(1 << 20)  # beyond the text, which stays readable to others
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
