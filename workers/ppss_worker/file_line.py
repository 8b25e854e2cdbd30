"""The connection for files to the gate on the master, and the pause before it is tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeAlias

from ppss_queue.errors import ConnectFailed
from ppss_worker.messages import Data, Header, MessageReader, keep_freed_memory

_PAUSE_SECONDS = (0.1, 5.0)
"""The first pause and the longest; it doubles, less up to half of it at random."""
_LOOK_SECONDS = 0.1
_RECEIVE_BYTES = 8 * 1024 * 1024
"""More than the window of a channel: paramiko moves all that it has left each time when it is asked for less."""


class Channel(Protocol):
    """What is needed of a channel of the SSH connection, or of a socket."""

    def recv(self, count: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> object: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


OpenFiles: TypeAlias = Callable[[], Channel]
"""Opens the gate's file service; raises ServiceFailed."""


class FileLine:
    """One connection to the file service, opened when it is used. `close` may be called from another thread."""

    def __init__(self, open_files: OpenFiles) -> None:
        self._open_files = open_files
        self._channel: Channel | None = None
        self._messages = MessageReader(self._receive)
        keep_freed_memory()

    def open(self) -> None:
        """Nothing if it is open. Raises ServiceFailed."""
        if self._channel is None:
            self._messages = MessageReader(self._receive)
            self._channel = self._open_files()

    def send(self, data: bytes) -> None:
        """Raises ServiceFailed."""
        self.open()
        channel = self._channel
        if channel is None:
            raise ConnectFailed("the connection for files was closed.")
        try:
            channel.sendall(data)
        except Exception as error:  # OSError, EOFError, and what SSH has of its own
            raise _lost(error) from None

    def read(self) -> tuple[Header, Data]:
        """The next message. Raises ServiceFailed."""
        message = self._messages.read()
        if message is None:
            raise ConnectFailed("the connection for files was lost.")
        return message

    def close(self) -> None:
        """The next `send` opens another one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            with suppress(Exception):  # as in `send`: both say it to the master
                channel.shutdown(2)  # wakes up another thread that waits for it
            with suppress(Exception):
                channel.close()

    def _receive(self, count: int) -> bytes:
        channel = self._channel
        if channel is None:
            return b""
        try:
            return channel.recv(max(count, _RECEIVE_BYTES))
        except Exception as error:  # as in `send`
            raise _lost(error) from None


def _lost(error: Exception) -> ConnectFailed:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "closed"
    return ConnectFailed(f"the connection for files was lost ({reason}).")


class Backoff:
    """Longer and longer pauses, not the same for any two."""

    def __init__(self) -> None:
        self._seconds = _PAUSE_SECONDS[0]
        self.until = 0.0
        """The end of the last one, time.monotonic()."""

    def reset(self) -> None:
        self._seconds = _PAUSE_SECONDS[0]

    def begin(self) -> None:
        self.until = time.monotonic() + self._seconds * (0.5 + 0.5 * random.random())
        self._seconds = min(self._seconds * 2, _PAUSE_SECONDS[1])

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Begins one and waits for its end."""
        self.begin()
        while not is_over() and (left := self.until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_SECONDS))
