"""Brings files to the disk beside other work: many at a time, which takes a file system about as long as one."""

from __future__ import annotations

import os
import queue
import threading

_THREADS = 8
_OPEN_AT_MOST = 64
"""Files that wait for it; then whoever has more waits, too."""


class Syncer:
    """Threads that sync; none before there is something to do."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[int, Synced]] = queue.SimpleQueue()
        self._room = threading.Semaphore(_OPEN_AT_MOST)
        self._threads = 0

    def add(self, descriptor: int, group: Synced) -> None:
        """Syncs a file, and closes it."""
        self._room.acquire()
        if self._threads < _THREADS:
            self._threads += 1
            threading.Thread(target=self._keep_syncing, name="sync", daemon=True).start()
        self._waiting.put((descriptor, group))

    def _keep_syncing(self) -> None:
        while True:
            descriptor, group = self._waiting.get()
            failure = None
            try:
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                failure = error
            self._room.release()
            group.over(failure)


class Synced:
    """The files that belong together."""

    def __init__(self, syncer: Syncer) -> None:
        self._syncer = syncer
        self._changed = threading.Condition()
        self._left = 0
        self._failure: OSError | None = None

    def add(self, descriptor: int) -> None:
        """One more file, written and open; it is closed some time later."""
        with self._changed:
            self._left += 1
        self._syncer.add(descriptor, self)

    def over(self, failure: OSError | None) -> None:
        """Called by the syncer for each file."""
        with self._changed:
            self._left -= 1
            self._failure = self._failure or failure
            self._changed.notify_all()

    def wait(self) -> None:
        """Until all are on the disk. Raises OSError if one is not."""
        with self._changed:
            while self._left:
                self._changed.wait()
        if self._failure is not None:
            raise self._failure
