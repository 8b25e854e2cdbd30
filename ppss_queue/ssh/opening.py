"""Gates that are opened at the same time: each takes three round trips."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import paramiko

from ppss_queue.ssh.wire import leave_signals_alone


class Openings:
    """Begin at once, each in a thread of its own."""

    def __init__(self, open_gate: Callable[[], paramiko.Channel], count: int) -> None:
        self._open_gate = open_gate
        self._done: queue.SimpleQueue[paramiko.Channel | BaseException] = queue.SimpleQueue()
        self.left = count
        """`next` may be called so often."""
        for _ in range(count):
            threading.Thread(target=self._open, name="ssh-open", daemon=True).start()

    def next(self) -> paramiko.Channel:
        """Waits for the first that is open, of those left. Raises what opening it raised."""
        self.left -= 1
        done = self._done.get()
        if isinstance(done, BaseException):
            raise done
        return done

    def _open(self) -> None:
        leave_signals_alone()
        try:
            self._done.put(self._open_gate())
        except BaseException as error:
            self._done.put(error)
