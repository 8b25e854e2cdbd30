"""Makes what is written to the embedded server reach the disk before the answer.

Its append-only file is flushed each second (`everysec`), and WAITAOF answers before that. With `appendfsync
always` the server flushes before it replies, all that was written earlier too.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

from ppss_queue.connection import Connection
from ppss_queue.server_place import ServerPlace

Durable: TypeAlias = Callable[[Connection], AbstractContextManager[None]]
"""Makes what is written inside it reach the disk."""


def nothing_durable(connection: Connection) -> AbstractContextManager[None]:
    """Where flushing is the server's affair."""
    return nullcontext()


@contextmanager
def durable(place: ServerPlace, connection: Connection) -> Iterator[None]:
    """Whatever is written inside, and before, is on disk when its reply comes.

    One process at a time, or another one's end would switch it off too early.
    Raises what connection.execute raises.
    """
    lock = os.open(place.directory / "durable.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with connection.clone(name="ppss-durable") as settings:  # `connection` is closed by a Ctrl-C inside
            settings.execute("CONFIG", "SET", "appendfsync", "always")
            try:
                yield
            finally:
                settings.execute("CONFIG", "SET", "appendfsync", "everysec")
    finally:
        os.close(lock)


@contextmanager
def durable_over_ssh(connection: Connection) -> Iterator[None]:
    """The same on the embedded server of another machine, by a process there that ends with the `with`.

    Raises ConnectFailed.
    """
    assert connection.line is not None
    line = connection.line
    channel = line.open_gate("durable")
    try:
        yield
    finally:
        line.hang_up(channel)
