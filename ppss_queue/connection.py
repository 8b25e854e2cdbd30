"""Connections to Redis, and the only module that imports redis-py.

redis-py does the socket, TLS, the login and the parsing of replies; its client and pool are not used, because
a call through them costs several times what the call itself does. It is imported when the first connection
opens: that takes 130 ms, much of it for asyncio, which nearly every module of redis-py imports.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, cast

from ppss_queue.address import Address
from ppss_queue.errors import BadInput, ConnectFailed, PpssError, ServiceFailed
from ppss_queue.failures import NoScript, connection_failure, reply_failure
from ppss_queue.server_info import ServerInfo

__all__ = [
    "Address",
    "Argument",
    "ChangeListener",
    "Connection",
    "NoScript",
    "Reply",
    "ServerInfo",
    "check_server",
]

Argument: TypeAlias = str | bytes | int | float
"""One word of a command; str is sent as UTF-8 with surrogateescape, like a file name."""
Reply: TypeAlias = "int | bytes | list[Reply] | None"
"""What Redis answers (RESP2)."""

_CONNECT_SECONDS = 5.0
"""For the TCP or TLS connect, and again for each reply of the login."""
_LOADING_SECONDS = 30.0
"""How long a server that still reads its data from disk is waited for."""
_PIECE_BYTES = 16 * 1024
"""Written at once: what a socket that poll() calls writable takes without blocking."""
_UNANSWERED = 1000
"""Commands in flight at most: their replies are memory of the server until we read them."""


class _Link(Protocol):
    """What is used of a redis-py connection."""

    _sock: socket.socket

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def send_packed_command(self, command: Sequence[bytes], check_health: bool) -> None: ...
    def read_response(self) -> Reply: ...
    def can_read(self, timeout: float) -> bool: ...


class Connection:
    """One connection to one Redis server, used by one thread at a time.

    Replies come in the order of their commands, and no command is ever sent twice. Where the connection is
    lost, or a call is interrupted (Ctrl-C), what was in flight may or may not have happened, replies still
    owed are forgotten, and every call raises ConnectFailed until `reopen`.
    """

    def __init__(self, address: Address, *, name: str = "ppss") -> None:
        """Not open yet. `name` is what CLIENT LIST shows, without blanks."""
        self.address = address
        self.server: ServerInfo | None = None
        """Set by `check_server`."""
        self._name = name
        self._link: _Link | None = None
        self._in_flight = 0
        self._replies: deque[Reply | PpssError] = deque()

    @classmethod
    def open(cls, address: Address, *, name: str = "ppss") -> Connection:
        """Connect, log in, and wait up to 30 s for a server that is still loading its data.

        Raises ConnectFailed if the server can't be reached within 5 s or refuses the login.
        """
        connection = cls(address, name=name)
        connection.reopen()
        return connection

    def clone(self, *, name: str | None = None) -> Connection:
        """Open another connection to the same server; raises like `open`."""
        other = Connection.open(self.address, name=name or self._name)
        other.server = self.server
        return other

    def reopen(self) -> None:
        """Replace the socket by a new one (sentinels are asked again); raises like `open`."""
        self.close()
        self._link = _connect(self.address, self._name)

    def close(self) -> None:
        """End the connection and forget replies: nothing read later can answer an earlier command."""
        link, self._link = self._link, None
        self._in_flight = 0
        self._replies.clear()
        if link is not None:
            link.disconnect()

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
        packed = [_packed(command) for command in commands]
        try:
            self._send(packed)
            while self._in_flight:
                self._take()
            replies = [self._replies.pop() for _ in commands]
        except BaseException:
            self.close()
            raise
        replies.reverse()
        return replies

    def send(self, commands: Sequence[Sequence[Argument]]) -> None:
        """Write commands whose replies `receive` returns later; raises ConnectFailed.

        Any number is safe: at most 1,000 stay unanswered, and the replies of earlier ones are read into
        memory while later ones are written, so that neither side waits for ever for the other to read.
        """
        packed = [_packed(command) for command in commands]
        try:
            self._send(packed)
        except BaseException:
            self.close()
            raise

    def receive(self, count: int) -> list[Reply | PpssError]:
        """Wait for the next `count` replies of earlier `send`s; an error reply is an exception in its place.

        Raises ConnectFailed if the connection is, or was, lost before they came.
        """
        try:
            while len(self._replies) < count:
                self._take()
            return [self._replies.popleft() for _ in range(count)]
        except BaseException:
            self.close()
            raise

    @property
    def pending(self) -> int:
        """Replies that `receive` still owes; 0 after the connection was lost."""
        return self._in_flight + len(self._replies)

    def fileno(self) -> int:
        """The socket, for select: ask `readable` before waiting on it. Raises ConnectFailed if it is gone."""
        return self._live()._sock.fileno()

    def readable(self) -> bool:
        """Whether a reply has arrived, at least in part; never waits. Raises ConnectFailed."""
        if self._replies:
            return True
        link = self._live()
        try:
            arrived = link.can_read(0)
            # redis-py goes back to the time-out of the login, not to the one in force.
            link._sock.settimeout(None)
        except Exception as error:
            raise self._lost(error) from None
        except BaseException:
            self.close()
            raise
        return arrived

    def _live(self) -> _Link:
        if self._link is None:
            raise ConnectFailed(f"there is no connection to {self.address.display()} any more.")
        return self._link

    def _send(self, packed: Sequence[bytes]) -> None:
        for piece in _pieces(packed):
            self._write(b"".join(piece))
            self._in_flight += len(piece)
            while self._in_flight > _UNANSWERED:
                self._take()

    def _take(self) -> None:
        """Wait for the reply of a command that `send` wrote."""
        if not self._in_flight:
            raise ConnectFailed(
                f"the connection to {self.address.display()} was lost before its replies came."
            )
        reply = self._read()
        self._in_flight -= 1
        self._replies.append(reply)

    def _read(self) -> Reply | PpssError:
        """Wait for one reply, counted or not."""
        link = self._live()
        try:
            return link.read_response()
        except Exception as error:
            from redis.exceptions import ResponseError

            if isinstance(error, ResponseError):
                return reply_failure(error, self.address, self.server.maxmemory_bytes if self.server else 0)
            raise self._lost(error) from None

    def _write(self, data: bytes) -> None:
        """Write whole commands; while the peer does not read, read the replies that it may be stuck with."""
        link = self._live()
        for start in range(0, len(data), _PIECE_BYTES):
            while self._in_flight and not _writable(link):
                self._take()
            try:
                link.send_packed_command((data[start : start + _PIECE_BYTES],), check_health=False)
            except Exception as error:
                raise self._lost(error) from None

    def _lost(self, error: Exception) -> Exception:
        """End the connection; return the error to raise."""
        from redis.exceptions import RedisError

        self.close()
        return (
            connection_failure(error, self.address, opened=True) if isinstance(error, RedisError) else error
        )


def _packed(command: Sequence[Argument]) -> bytes:
    """A command in Redis's protocol."""
    parts = [b"*%d\r\n" % len(command)]
    for argument in command:
        if isinstance(argument, bytes):
            data = argument
        elif isinstance(argument, str):
            try:
                data = argument.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                raise BadInput(
                    f"{argument!r} holds half a character and can't be stored: correct it."
                ) from None
        else:
            data = repr(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _pieces(packed: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Group commands into writes of about `_PIECE_BYTES`; a longer command is a group of its own."""
    first, size = 0, 0
    for index, data in enumerate(packed):
        if size and size + len(data) > _PIECE_BYTES:
            yield packed[first:index]
            first, size = index, 0
        size += len(data)
    if first < len(packed):
        yield packed[first:]


def _writable(link: _Link) -> bool:
    poll = select.poll()
    poll.register(link._sock, select.POLLOUT)
    return bool(poll.poll(0))


def _connect(address: Address, name: str) -> _Link:
    """A link to a server that let us in and has its data in memory; raises like `Connection.open`."""
    from redis.exceptions import BusyLoadingError, RedisError, ResponseError

    if address.scheme == "redis+sentinel":
        address = _master(address, name)
    deadline = time.monotonic() + _LOADING_SECONDS
    while True:
        try:
            link = _new_link(address, name)
            link.connect()
            link.send_packed_command((_packed(("PING",)),), check_health=False)
            link.read_response()
            link._sock.settimeout(None)
            return link
        except ResponseError as error:
            raise reply_failure(error, address) from None
        except (RedisError, ValueError) as error:  # ValueError: a host that is no name, a path with NUL
            if not isinstance(error, BusyLoadingError) or time.monotonic() > deadline:
                raise connection_failure(error, address, opened=False) from None
        time.sleep(0.1)


def _new_link(address: Address, name: str) -> _Link:
    """A redis-py connection for an address, not yet connected."""
    from redis import connection

    driver: Any = connection
    options: dict[str, Any] = {
        "db": address.db,
        "username": address.username or None,
        "password": address.password or None,
        "client_name": name,
        "encoding_errors": "surrogateescape",
        "protocol": 2,
        "socket_connect_timeout": _CONNECT_SECONDS,
        "socket_timeout": _CONNECT_SECONDS,
    }
    if address.scheme == "unix":
        return cast("_Link", driver.UnixDomainSocketConnection(path=address.path, **options))
    ((host, port),) = address.hosts
    kind = driver.SSLConnection if address.scheme == "rediss" else driver.Connection
    options |= {"socket_keepalive": True, "socket_keepalive_options": _keepalive()}
    return cast("_Link", kind(host=host, port=port, **options))


def _keepalive() -> dict[int, int]:
    """TCP options that end a connection whose peer is silent for 45 s: idle 30, then three probes 5 apart."""
    wanted = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 45_000}
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


def _master(address: Address, name: str) -> Address:
    """The master's address, from the first sentinel that knows it; raises ConnectFailed if none does."""
    failures = []
    for sentinel in address.hosts:
        asked = Address("redis", (sentinel,))
        try:
            with Connection.open(asked, name=name) as connection:
                found = connection.execute("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
        except ServiceFailed as error:
            failures.append(str(error))
            continue
        if isinstance(found, list):
            host, port = (bytes(cast("bytes", part)).decode() for part in found)
            return replace(address, scheme="redis", hosts=((host, int(port)),), service="")
        failures.append(f"the sentinel at {asked.display()} knows no service {address.service!r}.")
    raise ConnectFailed(f"no sentinel of {address.display()} names a master: {failures[-1]}")


def check_server(connection: Connection) -> list[str]:
    """Look whether PPSS can work on this server, in one round trip; return warnings, one line each.

    Sets `connection.server`. Raises BadInput for Redis before 6.2 and for Redis Cluster, ServiceFailed for a
    read-only replica.
    """
    info, setting = connection.execute_many([("INFO",), ("CONFIG", "GET", "save")])
    if isinstance(info, PpssError):
        raise info
    # ACLs and hosting services often forbid CONFIG.
    save = setting[1] if isinstance(setting, list) and len(setting) == 2 else None
    connection.server = ServerInfo.parse(cast("bytes", info), cast("bytes | None", save))
    return connection.server.warnings(connection.address.display())


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
            connection._write(
                _packed(("UNSUBSCRIBE", self._CHANNEL)) + _packed(("CLIENT", "TRACKING", "OFF"))
            )
            while isinstance(connection._read(), list):
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
                message = self._connection._read()
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
