"""Hears all agents in one thread, however busy the worker is, and however many nodes it has."""

from __future__ import annotations

import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from ppss_queue.ssh.wire import leave_signals_alone


class Audible(Protocol):
    """What can be waited for."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Listener:
    """`add`, `drop` and `close` are for any thread."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._wishes: deque[Callable[[selectors.BaseSelector], None]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name="agents", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, source: Audible, on_readable: Callable[[], bool]) -> None:
        """Calls this, in the thread, each time that the source can be read, until it returns False."""

        def begin(selector: selectors.BaseSelector) -> None:
            if on_readable():  # what came before this was listened for
                selector.register(source, selectors.EVENT_READ, on_readable)

        self._wishes.append(begin)
        self._wake()

    def drop(self, source: Audible) -> None:
        """Closes it. Nobody else may: its number would mean another one while it is listened to."""

        def end(selector: selectors.BaseSelector) -> None:
            with suppress(KeyError):
                selector.unregister(source)
            source.close()

        self._wishes.append(end)
        self._wake()

    def close(self) -> None:
        """Ends the thread."""
        self._closing = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._writer, b"!")

    def _listen(self) -> None:
        leave_signals_alone()
        with selectors.DefaultSelector() as selector:
            selector.register(self._reader, selectors.EVENT_READ, self._hear_wish)
            while not self._closing:
                for key, _ in selector.select():
                    if not key.data():
                        selector.unregister(key.fileobj)
                while self._wishes:
                    self._wishes.popleft()(selector)

    def _hear_wish(self) -> bool:
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)
        return True
