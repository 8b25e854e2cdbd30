"""Scratch on a node: where the files of staged items come to, and what their commands make of them.

SCRATCH/<worker>/lock                             held while the worker lives: others remove what it left
SCRATCH/<worker>/<run>-<sequence>.<count>/work/   the item's file and what belongs to it; the command runs here
                                          /out/   $OUTPUT_DIR
SCRATCH/shared/<sha256>                           files of --with, once per node
"""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ppss_queue.errors import BadInput, MachineFailed
from ppss_queue.model import Lease
from ppss_queue.units import format_bytes
from ppss_worker.trees import remove_tree

SHARED = "shared"
_RESERVE_BYTES = 64 * 1024 * 1024
"""Kept free on the disk, for what commands write."""
_UNUSED_SECONDS = 7 * 24 * 3600.0
"""After which a shared file goes away."""


class NoRoom(MachineFailed):
    """A file does not fit into the scratch of this node, and nothing that is there will make room."""


@dataclass(frozen=True, slots=True)
class Room:
    """The scratch of one attempt."""

    directory: str

    @property
    def work(self) -> str:
        return f"{self.directory}/work"

    @property
    def out(self) -> str:
        return f"{self.directory}/out"


class ScratchSpace:
    """All scratch of one worker. `room` is for one thread, `claim` and `give_back` for any."""

    def __init__(self, base: Path, worker: str, limit_bytes: int | None = None) -> None:
        """`limit_bytes`: how much staged files may take (--scratch-limit); None: all but a reserve of the disk."""
        self._base = base
        self._own = base / worker
        self.limit_bytes = limit_bytes
        self.free_bytes = 0
        """Of the disk, when it was last asked."""
        self._lock = -1
        self._changed = threading.Condition()
        self._taken: dict[str, int] = {}
        """Bytes by directory of an attempt."""
        self._closed = False
        self._rooms = 0
        self._leavings: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._remover = threading.Thread(target=self._keep_removing, name="scratch", daemon=True)

    def prepare(self) -> None:
        """Makes it, and removes what dead workers left. Raises BadInput, MachineFailed."""
        try:
            (self._base / SHARED).mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = self._base / f".{self._own.name}"  # others leave it alone until it is locked
            fresh.mkdir(mode=0o700)
            self._lock = os.open(fresh / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            fresh.rename(self._own)
        except OSError as error:
            kind = MachineFailed if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else BadInput
            raise kind(
                f"the scratch directory '{self._base}' can't be used ({error.strerror}). Name another: --scratch DIR"
            ) from None
        self._sweep()
        self._fits(0)
        self._remover.start()

    def close(self) -> None:
        """Removes what is this worker's."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._leavings.put(None)
        if self._lock >= 0:
            with suppress(OSError):
                remove_tree(str(self._own))
            os.close(self._lock)

    @property
    def directory(self) -> str:
        return str(self._own)

    @property
    def base(self) -> str:
        """What the user named."""
        return str(self._base)

    def shared(self, sha256: str) -> str:
        """Where the shared file with this hash is, or comes to."""
        return str(self._base / SHARED / sha256)

    def room(self, lease: Lease) -> Room:
        """A new, empty one. Raises OSError."""
        self._rooms += 1
        room = Room(str(self._own / f"{lease.job}.{self._rooms}"))
        os.mkdir(room.directory, 0o700)
        os.mkdir(room.work)
        os.mkdir(room.out)
        return room

    def claim(self, room: Room, size_bytes: int) -> None:
        """Waits until a file of this size fits. Raises NoRoom if it never will."""
        with self._changed:
            while not self._fits(size_bytes):
                if self._closed or not any(name != room.directory for name in self._taken):
                    raise NoRoom(
                        f"a file of {format_bytes(size_bytes)} does not fit into the scratch '{self._base}'. "
                        "Free space there, raise --scratch-limit, or name another: --scratch DIR"
                    )
                self._changed.wait(1.0)
            self._taken[room.directory] = self._taken.get(room.directory, 0) + size_bytes

    def give_back(self, room: Room) -> None:
        """Has it removed soon, since that takes long on some disks."""
        self._leavings.put(room.directory)

    @property
    def is_short(self) -> bool:
        """Whether no more items should be taken before some have gone."""
        return bool(self._taken) and not self._fits(0)

    def _keep_removing(self) -> None:
        while (directory := self._leavings.get()) is not None:
            with suppress(OSError):
                remove_tree(directory)
            with self._changed:
                self._taken.pop(directory, None)
                self._changed.notify_all()

    def _fits(self, size_bytes: int) -> bool:
        if self.limit_bytes is not None and sum(self._taken.values()) + size_bytes > self.limit_bytes:
            return False
        disk = os.statvfs(self._base)
        self.free_bytes = disk.f_bavail * disk.f_frsize
        return self.free_bytes >= size_bytes + _RESERVE_BYTES

    def _sweep(self) -> None:
        for path in self._base.iterdir():
            with suppress(OSError):
                if path.name == SHARED:
                    _remove_unused(path)
                elif path != self._own and not path.name.startswith(".") and _is_left(path):
                    remove_tree(str(path))


def _is_left(directory: Path) -> bool:
    """Whether its worker is dead."""
    try:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # it died while it removed this, or is about to end
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


def _remove_unused(directory: Path) -> None:
    before = time.time() - _UNUSED_SECONDS
    for path in directory.iterdir():
        with suppress(OSError):
            if path.stat().st_mtime < before:
                path.unlink()
