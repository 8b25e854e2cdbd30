"""Slot numbers: what `{%}` and PPSS_SLOT stand for, from 1, no two alike on a node."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ppss_queue.errors import MachineFailed


class SlotNumbers:
    """Numbers held by this worker among all workers that use the same directory.

    A number is held as long as its file (named like the number) is locked, and the kernel unlocks it however
    the worker dies. The files stay: removing one while another worker opens it would give a number out twice.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._locks: list[int] = []

    def take(self, count: int) -> list[int]:
        """The `count` lowest free numbers, in order, held until `close`.

        Raises MachineFailed if the directory can't be made, written or locked in.
        """
        taken: list[int] = []
        number = 0
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            while len(taken) < count:
                number += 1
                if self._lock(number):
                    taken.append(number)
        except OSError as error:
            raise MachineFailed(
                f"no slot number can be locked in {str(self._directory)!r} ({error.strerror}): "
                "make it a writable directory of a file system with locks."
            ) from None
        return taken

    def close(self) -> None:
        """Gives all numbers back."""
        while self._locks:
            os.close(self._locks.pop())

    def _lock(self, number: int) -> bool:
        descriptor = os.open(self._directory / str(number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        self._locks.append(descriptor)
        return True
