"""Hearing of changed keys, so that whoever waits need not poll."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from ppss_queue.connection import Connection
from ppss_queue.errors import PpssError
from ppss_queue.resp import Argument


class ChangeListener:
    """Tells which keys any client changed (scripts and dashboards too), so that an idle worker need not poll.

    Each change costs the server a message per listener: switch it on only while idle, before the last look
    for work. After ConnectFailed, `reopen` and `on` make it work again.
    """

    FLUSHED = b"*"
    """Stands for every key, after FLUSHALL or FLUSHDB."""

    _CHANNEL = b"__redis__:invalidate"

    def __init__(self, connection: Connection, prefixes: Sequence[str]) -> None:
        """`connection` is used by nobody else; no prefix begins with another one. Off at first."""
        self._connection = connection
        self._prefixes = tuple(prefixes)
        self._on = False

    def on(self) -> None:
        """Start listening: every change after the return is seen.

        Raises ConnectFailed if the connection is gone, ServiceFailed if an ACL forbids it; then it is closed.
        """
        if self._on:
            return
        prefixes: list[Argument] = [word for prefix in self._prefixes for word in ("PREFIX", prefix)]
        try:
            # RESP2 has no pushes: the tracking goes to a channel that this connection itself subscribes to.
            this = cast("int", self._connection.execute("CLIENT", "ID"))
            tracking: list[Argument] = ["CLIENT", "TRACKING", "ON", "BCAST", "REDIRECT", this, *prefixes]
            for reply in self._connection.execute_many((tracking, ("SUBSCRIBE", self._CHANNEL))):
                if isinstance(reply, PpssError):
                    raise reply
            self._on = True
        except BaseException:
            self.close()  # it may be half on
            raise

    def off(self) -> None:
        """Stop listening and forget the changes not yet asked for; raises ConnectFailed."""
        if not self._on:
            return
        self._on = False
        connection = self._connection
        try:
            connection.post((("UNSUBSCRIBE", self._CHANNEL), ("CLIENT", "TRACKING", "OFF")))
            # Changes told meanwhile are lists, as is the answer to UNSUBSCRIBE; that to CLIENT is the last.
            while isinstance(connection.read_message(), list):
                pass
        except BaseException:
            self.close()
            raise

    def changes(self) -> set[bytes]:
        """The keys changed since the last call, `FLUSHED` for all of them; never waits. Empty while off.

        Raises ConnectFailed if the connection is gone: changes may have been missed.
        """
        changed: set[bytes] = set()
        try:
            while self._on and self._connection.readable():
                message = self._connection.read_message()
                if isinstance(message, list) and message[0] == b"message":
                    keys = cast("list[bytes] | None", message[2])
                    changed.update([self.FLUSHED] if keys is None else keys)
        except BaseException:
            self.close()
            raise
        return changed

    def fileno(self) -> int:
        """The socket, for select: readable when `changes` has something to tell. Raises ConnectFailed."""
        return self._connection.fileno()

    def reopen(self) -> None:
        """A new connection, off; raises like `Connection.open`."""
        self._on = False
        self._connection.reopen()

    def close(self) -> None:
        """End the connection."""
        self._on = False
        self._connection.close()
