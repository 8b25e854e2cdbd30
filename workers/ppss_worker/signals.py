"""Signals of a worker: what ended, and how urgently it is to end itself."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from types import FrameType, TracebackType

from ppss_queue.errors import ExitCode

_INTERRUPTS_AT_MOST = 2


class ChildSignals:
    """Context manager that makes signals a descriptor to select on: every SIGCHLD wakes it.

    So does any other signal with a Python handler, e.g. the worker's own for SIGTERM. What was there before
    comes back on exit. Main thread only. A child that ended before it was entered sends no signal: reap once.
    """

    def __enter__(self) -> ChildSignals:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._old_handler = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        # A full pipe wakes just as well.
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._old_wakeup)
        # None: a handler that was not installed from Python can't be brought back.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if self._old_handler is None else self._old_handler)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Readable once a signal came in."""
        return self._reader

    def drain(self) -> list[int]:
        """Numbers of the signals since the last call, in order, SIGCHLD included; never waits."""
        try:
            return list(os.read(self._reader, 65536))
        except BlockingIOError:
            return []


def catch_stop_signals(stack: ExitStack) -> None:
    """SIGTERM, SIGINT and SIGHUP only arrive through `ChildSignals`, until the stack is left; main thread only.

    So does SIGIO, which captures.py may cause. A third Ctrl-C ends the process, whatever hangs: the guardian
    kills what runs, the leases expire.
    """
    interrupts = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > _INTERRUPTS_AT_MOST:
            os._exit(ExitCode.INTERRUPTED)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGIO):
        if number != signal.SIGTERM and signal.getsignal(number) is signal.SIG_IGN:
            continue  # `nohup`, `&` in a script: who started it wants it to live on
        stack.callback(signal.signal, number, signal.signal(number, handle))
