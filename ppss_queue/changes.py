"""Hearing of changed keys, so that whoever waits need not poll."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from ppss_queue.connection import Connection
from ppss_queue.errors import ServiceFailed
from ppss_queue.resp import Argument


class ChangeListener:
    """Tells which keys any client changed (scripts and dashboards too), so that an idle worker need not poll.

    Each change costs the server a message per listener: switch it on only while idle, before the last look
    for work. After ConnectFailed, `reopen` and `on` make it work again. Commands may go over the same connection.
    """

    FLUSHED = b"*"
    """Stands for every key, after FLUSHALL or FLUSHDB."""

    _CHANNEL = b"__redis__:invalidate"

    def __init__(self, connection: Connection, prefixes: Sequence[str]) -> None:
        """`connection` has no other listener; no prefix begins with another one. Off at first."""
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
        connection = self._connection
        try:
            # RESP3 tells changes among the replies to commands. The subscription gives nothing, but for subscribers
            # alone the server has a limit of what they have not read: a worker that is stopped must not fill it up.
            connection.tell([("HELLO", 3)])
            connection.post((("SUBSCRIBE", self._CHANNEL),))
            answer = connection.execute("CLIENT", "TRACKING", "ON", "BCAST", *prefixes)
            if answer != b"OK":  # it is that of RESP2 to the one before
                raise ServiceFailed(
                    f"Redis at {connection.address.display()} does not let this user say HELLO: grant it in the ACL."
                )
            self._on = True
        except BaseException:
            self.close()  # it may be half on
            raise

    def off(self) -> None:
        """Stop listening and forget the changes not yet asked for; raises ConnectFailed."""
        if not self._on:
            return
        self._on = False
        self._connection.post((("UNSUBSCRIBE", self._CHANNEL),))
        self._connection.tell([("CLIENT", "TRACKING", "OFF")])

    def changes(self) -> set[bytes]:
        """The keys changed since the last call, `FLUSHED` for all of them; never waits. Empty while off.

        Raises ConnectFailed if the connection is gone: changes may have been missed.
        """
        changed: set[bytes] = set()
        try:
            for kind, *told in self._connection.pushed() if self._on else ():
                if kind == b"invalidate":
                    keys = cast("list[bytes] | None", told[0])
                    changed.update([self.FLUSHED] if keys is None else keys)
                elif kind == b"subscribe":
                    changed.clear()  # they are from before `on`
        except BaseException:
            self.close()
            raise
        return changed

    def fileno(self) -> int:
        """The socket, for select: readable when `changes` has something to tell. Raises ConnectFailed."""
        return self._connection.fileno()

    def reopen(self) -> None:
        """A new connection, off; raises like `Connection.open`."""
        self.lost()
        self._connection.reopen()

    def lost(self) -> None:
        """The connection is another one than before: off."""
        self._on = False

    def close(self) -> None:
        """End the connection."""
        self._on = False
        self._connection.close()
