"""The pid file of a worker: one worker at a time holds it, and it names its process once that is at work."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from ppss_queue.errors import BadInput


class PidFile:
    """Held as long as it is open: the kernel lets go of it however the process dies. The file stays."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput if another process holds it, or if it can't be written."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise BadInput(f"the pid file '{path}' can't be written ({error.strerror}).") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip()
            os.close(self._descriptor)
            if not isinstance(error, BlockingIOError):
                raise BadInput(f"the pid file '{path}' can't be locked ({error.strerror}).") from None
            raise BadInput(
                f"a worker holds '{path}' already (pid {holder or 'not known yet'}). Stop that one first."
            ) from None
        os.ftruncate(self._descriptor, 0)

    def write(self) -> None:
        """This process is at work now."""
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def __enter__(self) -> PidFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
