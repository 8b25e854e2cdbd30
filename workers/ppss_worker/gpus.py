"""Which GPUs are in use: each by one item of all workers of this user on this machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ppss_queue.errors import MachineFailed


class GpuLocks:
    """GPUs that this worker may give out. One is held as long as its file is locked, as slot numbers are (slots.py)."""

    def __init__(self, names: Sequence[str], directory: Path) -> None:
        self._names = tuple(names)
        self._directory = directory
        self._files: dict[str, int] = {}
        self._held: set[str] = set()

    def count_free(self) -> int:
        """Those that nobody holds just now."""
        free = [name for name in self._names if name not in self._held and self._lock(name)]
        for name in free:
            self._unlock(name)
        return len(free)

    def count_elsewhere(self) -> int:
        """Those that other workers hold just now."""
        return len(self._names) - len(self._held) - self.count_free()

    def take(self, count: int) -> tuple[str, ...] | None:
        """`count` of them, held until `give_back`; None, and none held, if there are not so many."""
        taken: list[str] = []
        for name in self._names:
            if len(taken) < count and name not in self._held and self._lock(name):
                taken.append(name)
        self._held.update(taken)
        if len(taken) < count:
            self.give_back(taken)
            return None
        return tuple(taken)

    def give_back(self, names: Iterable[str]) -> None:
        for name in names:
            self._held.discard(name)
            self._unlock(name)

    def close(self) -> None:
        """Gives all back."""
        self._held.clear()
        while self._files:
            os.close(self._files.popitem()[1])

    def _lock(self, name: str) -> bool:
        """Raises MachineFailed."""
        try:
            if name not in self._files:
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                path = self._directory / name.replace("/", "-")
                self._files[name] = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._files[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise MachineFailed(
                f"no GPU can be locked in {str(self._directory)!r} ({error.strerror}): "
                "make it a writable directory of a file system with locks."
            ) from None
        return True

    def _unlock(self, name: str) -> None:
        fcntl.flock(self._files[name], fcntl.LOCK_UN)
