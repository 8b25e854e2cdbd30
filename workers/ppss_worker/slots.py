"""Slot numbers: what `{%}` and PPSS_SLOT stand for, from 1, no two alike on a node."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from ppss_queue.errors import BadInput, MachineFailed
from ppss_queue.locks import try_lock

_FILES_PER_SLOT = 8
"""Its number, two captures, two pipes or a socket, and what the spawn takes."""
_FILES_BESIDE = 64


def allow_files(slots: int, more: int = 0) -> None:
    """Raises the limit of open files to what so many slots need, and `more`. Raises BadInput if that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = slots * _FILES_PER_SLOT + _FILES_BESIDE + more
    if resource.RLIM_INFINITY in (soft, hard) or needed <= soft:
        return
    if needed > hard:
        most = (hard - _FILES_BESIDE - more) // _FILES_PER_SLOT
        raise BadInput(
            f"-p {slots} is too much: this user may open {hard:,} files (ulimit -Hn), enough for {most:,} slots."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class SlotNumbers:
    """Numbers held by this worker among all workers that use the same directory.

    A number is held as long as its file (named like the number) is locked, and the kernel unlocks it however
    the worker dies. The files stay: removing one while another worker opens it would give a number out twice.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._locks: dict[int, int] = {}
        """Descriptor by number."""

    def __len__(self) -> int:
        return len(self._locks)

    def take(self, count: int) -> list[int]:
        """The `count` lowest free numbers, in order, held until they are given back.

        Raises MachineFailed if the directory can't be made, written or locked in.
        """
        taken: list[int] = []
        number = 0
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            while len(taken) < count:
                number += 1
                if number not in self._locks and self._lock(number):
                    taken.append(number)
        except OSError as error:
            raise MachineFailed(
                f"no slot number can be locked in {str(self._directory)!r} ({error.strerror}): "
                "make it a writable directory of a file system with locks."
            ) from None
        return taken

    def give_back(self, number: int) -> None:
        os.close(self._locks.pop(number))

    def close(self) -> None:
        """Gives all numbers back."""
        for number in list(self._locks):
            self.give_back(number)

    def _lock(self, number: int) -> bool:
        lock = try_lock(self._directory / str(number))
        if lock is not None:
            self._locks[number] = lock
        return lock is not None
