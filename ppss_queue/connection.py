"""Connections to Redis.

hiredis, the parser that redis-py uses where it is there, speaks the protocol; the socket and the login are ours.
redis-py itself would cost each verb 100 ms for its import, and a call through its client several times what the
call itself does.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias, cast

from hiredis import ProtocolError, PushNotification, Reader

from ppss_queue.address import Address
from ppss_queue.dial import CONNECT_SECONDS, Tls, dial, undelivered, would_block
from ppss_queue.errors import ConnectFailed, PpssError, Unavailable
from ppss_queue.failures import StillLoading, connection_failure, login_failure, reply_failure
from ppss_queue.resp import Argument, packed, pieces
from ppss_queue.sentinels import master_of
from ppss_queue.server_info import ServerInfo

if TYPE_CHECKING:
    from ppss_queue.ssh.line import Line

Reply: TypeAlias = "int | bytes | list[Reply] | None"
"""What Redis answers."""

LOADING_SECONDS = 30.0
"""How long a server that still reads its data from disk is waited for."""
_READ_BYTES = 64 * 1024
_UNANSWERED = 1000
"""Commands in flight at most: their replies are memory of the server until we read them."""
_INCOMPLETE = object()
_NO_ANSWER = ("CLIENT", "REPLY", "SKIP")
"""To the next command."""


class Connection:
    """One connection to one Redis server, used by one thread at a time.

    Replies come in the order of their commands, and no command is ever sent twice. Where the connection is
    lost, or a call is interrupted (Ctrl-C), what was in flight may or may not have happened, replies still
    owed are forgotten, and every call raises ConnectFailed until `reopen`.
    """

    def __init__(
        self,
        address: Address,
        *,
        name: str = "ppss",
        patience_seconds: float | None = None,
        line: Line | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Not open yet. `name` is what CLIENT LIST shows, without blanks.

        `patience_seconds`: how long a call waits for a server that says nothing; None: for ever.
        `line`: what leads to `address.via`; `tls`: of another connection to this server.
        """
        self.address = address
        self.line = line
        """The SSH connection that this one goes through, shared with all its clones; None: there is none."""
        self._tls = tls or Tls()
        self._patience_seconds = patience_seconds
        self.server: ServerInfo | None = None
        """Set by `check_server`."""
        self._name = name
        self._socket: socket.socket | None = None
        self._reader = Reader()
        self._poll = select.poll()
        self._logged_in = False
        self._owed = 0
        self._replies: deque[Reply | PpssError] = deque()
        """Came already; those of the oldest commands first."""
        self._pushed: list[list[Reply]] = []

    @classmethod
    def open(
        cls, address: Address, *, name: str = "ppss", accept_new: bool = False, clones: int = 0
    ) -> Connection:
        """Connect, log in, and wait up to 30 s for a server that is still loading its data.

        `accept_new`: over SSH, trust a host that nothing is known of; `clones`: how many will be wanted soon, since
        that is the time to open the way of all. Raises ConnectFailed if the server can't be
        reached within 5 s (over SSH 20) or refuses the login.
        """
        line = None
        if address.via is not None:
            from ppss_queue.ssh.line import Line

            line = Line(address.via, accept_new=accept_new)
        connection = cls(address, name=name, line=line)
        try:
            if line is not None and clones and address.scheme == "ssh":
                line.open_ahead("redis", 1 + clones)
            connection.reopen()
        except BaseException:
            if line is not None:
                line.close()
            raise
        return connection

    def clone(
        self, *, name: str | None = None, patience_seconds: float | None = None, opened: bool = True
    ) -> Connection:
        """Another connection to the same server, as patient unless told otherwise; raises like `open`.

        `opened`: at once; else it is as one that was lost, until `reopen`, which is all that may raise then.
        """
        patience_seconds = self._patience_seconds if patience_seconds is None else patience_seconds
        other = Connection(
            self.address,
            name=name or self._name,
            patience_seconds=patience_seconds,
            line=self.line,
            tls=self._tls,
        )
        other.server = self.server
        if opened:
            other.reopen()
        return other

    def take_over(self, *, name: str, patience_seconds: float) -> Connection:
        """This one, for another use than before: where a clone would be one more. Raises ConnectFailed."""
        self._name, self._patience_seconds = name, patience_seconds
        self.tell([("CLIENT", "SETNAME", name)])
        return self

    def reopen(self) -> None:
        """Replace the socket by a new one (sentinels are asked again); raises like `open`."""
        self.close()
        address = master_of(self.address, self._to_sentinel) if self.address.service else self.address
        deadline = time.monotonic() + LOADING_SECONDS
        while True:
            try:
                self._dial(address)
                self._log_in(address)
                return
            except StillLoading as error:
                if time.monotonic() > deadline:
                    raise ConnectFailed(str(error)) from None
            time.sleep(0.1)

    def revive(self, within_seconds: float = 0.0) -> None:
        """Reopen if it was lost; where Redis is away, try for so long. Raises like `open`."""
        try:
            self.readable()
            return
        except ConnectFailed:
            pass
        deadline, pause_seconds = time.monotonic() + within_seconds, 0.05
        while True:
            try:
                self.reopen()
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, 1.0)

    def close(self) -> None:
        """End the connection and forget replies: nothing read later can answer an earlier command."""
        opened, self._socket = self._socket, None
        self._logged_in = False
        self._owed = 0
        self._replies.clear()
        self._pushed.clear()
        if opened is not None:
            with suppress(OSError):  # it is lost already
                opened.shutdown(socket.SHUT_RDWR)  # wakes up another thread that waits for it
            opened.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(self, *command: Argument) -> Reply:
        """Send one command and return its reply.

        Raises the error that an error reply stands for, ConnectFailed if the connection is lost.
        """
        (reply,) = self.execute_many((command,))
        if isinstance(reply, PpssError):
            raise reply
        return reply

    def execute_many(self, commands: Sequence[Sequence[Argument]]) -> list[Reply | PpssError]:
        """Send commands, any number, and return their replies; an error reply is an exception in its place.

        They are no transaction. Raises ConnectFailed if the connection is lost.
        """
        earlier = self._owed
        self.send(commands)
        try:
            self._await(self._owed)
        except BaseException:
            self.close()
            raise
        self._owed -= len(commands)
        # Behind them there may be one more, if a `post` before them was refused.
        self._replies.rotate(-earlier)
        replies = [self._replies.popleft() for _ in commands]
        self._replies.rotate(earlier)
        return replies

    def send(self, commands: Sequence[Sequence[Argument]]) -> None:
        """Write commands whose replies `receive` returns later; raises ConnectFailed.

        Any number is safe: at most 1,000 stay unanswered, and the replies of earlier ones are read into
        memory while later ones are written, so that neither side waits for ever for the other to read.
        """
        encoded = [packed(command) for command in commands]
        try:
            for piece in pieces(encoded, _UNANSWERED):
                self._owed += len(piece)
                self._write(b"".join(piece))
                self._await(self._owed - _UNANSWERED)
        except BaseException:
            self.close()
            raise

    def receive(self, count: int) -> list[Reply | PpssError]:
        """Wait for the next `count` replies of earlier `send`s; an error reply is an exception in its place.

        Raises ConnectFailed if the connection is, or was, lost before they came.
        """
        try:
            if count > self._owed:
                raise ConnectFailed(
                    f"the connection to {self.address.display()} was lost before its replies came."
                )
            self._await(count)
        except BaseException:
            self.close()
            raise
        self._owed -= count
        return [self._replies.popleft() for _ in range(count)]

    @property
    def pending(self) -> int:
        """Replies that `receive` still owes; 0 after the connection was lost."""
        return self._owed

    def tell(self, commands: Iterable[Sequence[Argument]]) -> None:
        """Write commands that may get lost or be refused: Redis answers none of them. Raises ConnectFailed."""
        self.post([each for command in commands for each in (_NO_ANSWER, command)])

    def post(self, commands: Sequence[Sequence[Argument]]) -> None:
        """Write commands that have no reply of their own. Raises ConnectFailed."""
        try:
            self._write(b"".join(map(packed, commands)))
        except BaseException:
            self.close()
            raise

    def pushed(self) -> list[list[Reply]]:
        """What the server has said unasked since the last call (RESP3); never waits. Raises ConnectFailed."""
        try:
            self._read()
        except BaseException:
            self.close()
            raise
        pushed, self._pushed = self._pushed, []
        return pushed

    def fileno(self) -> int:
        """The socket, for select: ask `readable` before waiting on it. Raises ConnectFailed if it is gone."""
        return self._live().fileno()

    @property
    def buffered(self) -> bool:
        """Whether a reply has been read already, of which the socket tells nothing any more."""
        return bool(self._replies)

    def take(self) -> Reply | PpssError:
        """The next reply to a `send`, of those that are `buffered`."""
        self._owed -= 1
        return self._replies.popleft()

    def readable(self) -> bool:
        """Whether a reply has arrived; never waits. Raises ConnectFailed."""
        if not self._replies:
            try:
                self._read()
            except BaseException:
                self.close()
                raise
        return bool(self._replies)

    def _to_sentinel(self, address: Address) -> Connection:
        """Not open yet."""
        return Connection(address, name=self._name, line=self.line)

    # The socket, which never blocks: all waiting is done in poll

    def _dial(self, address: Address) -> None:
        try:
            self._socket = dial(address, self._tls, self.line)
        except (OSError, ValueError) as error:  # ValueError: a host that is no name, a path with NUL
            raise connection_failure(error, self.address, opened=False) from None
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._reader = Reader(replyError=self._failure, notEnoughData=_INCOMPLETE)

    def _log_in(self, address: Address) -> None:
        """All in one round trip. Raises ConnectFailed, StillLoading."""
        commands: list[tuple[Argument, ...]] = [("CLIENT", "SETNAME", self._name), ("PING",)]
        if address.db:
            commands.insert(0, ("SELECT", address.db))
        if address.password:
            user = (address.username,) if address.username else ()
            commands.insert(0, ("AUTH", *user, address.password))
        self.send(commands)
        for _ in commands:  # one by one: a server that is full answers once and hangs up
            (reply,) = self.receive(1)
            if isinstance(reply, PpssError):
                self.close()
                raise reply
        self._logged_in = True

    def _failure(self, text: str) -> PpssError:
        """The error for an error reply."""
        if not self._logged_in:
            return login_failure(text, self.address)
        return reply_failure(text, self.address, self.server.maxmemory_bytes if self.server else 0)

    def _live(self) -> socket.socket:
        if self._socket is None:
            raise ConnectFailed(f"there is no connection to {self.address.display()} any more.")
        return self._socket

    def _await(self, count: int) -> None:
        """Waits until so many replies are there."""
        while len(self._replies) < count:
            self._wait(select.POLLIN)
            self._read()

    def _read(self) -> None:
        """Takes in what has come."""
        opened = self._live()
        try:
            while True:
                data = opened.recv(_READ_BYTES)
                if not data:
                    raise ConnectionError("Connection closed by server")
                self._reader.feed(data)
                while (reply := self._reader.gets()) is not _INCOMPLETE:
                    if isinstance(reply, PushNotification):
                        self._pushed.append(reply)
                    else:
                        self._replies.append(cast("Reply | PpssError", reply))
                if not undelivered(opened):
                    return
        except (OSError, ProtocolError) as error:
            if not would_block(error):
                raise self._lost(error) from None

    def _write(self, data: bytes) -> None:
        """Writes whole commands; while the peer does not read, reads the replies that it may be stuck with."""
        opened, rest = self._live(), memoryview(data)
        while rest:
            try:
                rest = rest[opened.send(rest) :]
            except OSError as error:
                if not would_block(error):
                    raise self._lost(error) from None
                if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                    self._read()

    def _wait(self, events: int) -> int:
        """Waits until some of `events` is possible; which."""
        self._poll.register(self._live(), events)
        seconds = self._patience_seconds if self._logged_in else CONNECT_SECONDS
        happened = self._poll.poll(None if seconds is None else seconds * 1000)
        if not happened:
            raise self._lost(TimeoutError(f"no answer for {seconds:g} s"))
        return happened[0][1]

    def _lost(self, error: Exception) -> ConnectFailed:
        """Ends the connection; returns the error to raise."""
        opened = self._logged_in
        self.close()
        return connection_failure(error, self.address, opened=opened)
