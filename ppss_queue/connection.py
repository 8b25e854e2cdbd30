"""Connections to Redis, and the only module that imports redis-py.

redis-py does the socket, TLS, the login and the parsing of replies; its client and pool are not used, because a
call through them costs several times the call itself. It is imported when the first connection is opened: it
takes 130 ms, two thirds of them for its asyncio half, which its own modules import from each other.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from ppss_queue.address import Address
from ppss_queue.errors import BadInput, ConnectFailed, PpssError, ServiceFailed
from ppss_queue.failures import NoScript, connection_failure, reply_failure

if TYPE_CHECKING:
    from types import TracebackType

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

    Replies come in the order of their commands. A command is never sent twice: where the connection is lost, or
    interrupted (Ctrl-C), what was in flight may or may not have happened, its replies are forgotten, and the next
    command opens a new connection.
    """

    def __init__(self, address: Address, *, name: str = "ppss") -> None:
        """Opens nothing yet; `name` is shown by CLIENT LIST and holds no blanks."""
        self.address = address
        self.server: ServerInfo | None = None
        """What `check_server` found out."""
        self._name = name
        self._link: _Link | None = None
        self._closed = False
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
        self._drop()
        if self._closed:
            raise ConnectFailed(f"the connection to {self.address.display()} is closed.")
        self._link = _connect(self.address, self._name)

    def close(self) -> None:
        """End the connection for good; replies still owed are forgotten."""
        self._drop()
        self._closed = True

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def execute(self, *command: Argument) -> Reply:
        """Send one command and return its reply.

        Raises the mapped error of an error reply, ConnectFailed if the connection is lost.
        """
        (reply,) = self.execute_many((command,))
        if isinstance(reply, PpssError):
            raise reply
        return reply

    def execute_many(self, commands: Sequence[Sequence[Argument]]) -> list[Reply | PpssError]:
        """Send commands in one go and return their replies; an error reply is an exception in its place.

        They are not a transaction. Any number is safe, see `send`. Raises ConnectFailed if the connection is lost.
        """
        try:
            self.send(commands)
            while self._in_flight:
                self._take()
            replies = [self._replies.pop() for _ in commands]
        except BaseException:
            self._drop()
            raise
        replies.reverse()
        return replies

    def send(self, commands: Sequence[Sequence[Argument]]) -> None:
        """Write commands whose replies `receive` returns later; raises ConnectFailed if the connection is lost.

        At most 1,000 commands stay unanswered: replies of earlier ones are read into memory while later ones are
        written, so neither side ever waits for the other with full buffers.
        """
        packed = [_packed(command) for command in commands]
        if self._link is None:
            self.reopen()
        try:
            for piece in _pieces(packed):
                self._write(b"".join(piece))
                self._in_flight += len(piece)
                while self._in_flight > _UNANSWERED:
                    self._take()
        except BaseException:
            self._drop()
            raise

    def receive(self, count: int) -> list[Reply | PpssError]:
        """Wait for the next `count` replies of earlier `send`s; an error reply is an exception in its place.

        Raises ConnectFailed if the connection is, or was, lost before they came.
        """
        if count > self.pending:
            raise ConnectFailed(
                f"the connection to {self.address.display()} was lost before its replies came."
            )
        try:
            while len(self._replies) < count:
                self._take()
            return [self._replies.popleft() for _ in range(count)]
        except BaseException:
            self._drop()
            raise

    @property
    def pending(self) -> int:
        """Replies that `receive` still owes; 0 after the connection was lost."""
        return self._in_flight + len(self._replies)

    def fileno(self) -> int:
        """The socket, for select: ask `readable` before waiting on it. Raises ConnectFailed if it is gone."""
        return self._live()._sock.fileno()

    def readable(self) -> bool:
        """Whether a reply has arrived, at least in part; never waits. Raises ConnectFailed if the connection is gone."""
        if self._replies:
            return True
        link = self._live()
        try:
            arrived = link.can_read(0)
            # redis-py goes back to the timeout of the login, not to the one in force.
            link._sock.settimeout(None)
        except Exception as error:
            self._failed(error)
            raise
        except BaseException:
            self._drop()
            raise
        return arrived

    def _live(self) -> _Link:
        if self._link is None:
            raise ConnectFailed(f"the connection to {self.address.display()} was lost.")
        return self._link

    def _drop(self) -> None:
        """Forget socket and replies: nothing read later can be the reply to an earlier command."""
        link, self._link = self._link, None
        self._in_flight = 0
        self._replies.clear()
        if link is not None:
            link.disconnect()

    def _take(self) -> None:
        """Wait for one reply of a sent command."""
        reply = self._read()
        self._in_flight -= 1
        self._replies.append(reply)

    def _read(self) -> Reply | PpssError:
        """Wait for one reply, counted or not."""
        try:
            return self._live().read_response()
        except Exception as error:
            return self._failed(error)

    def _write(self, data: bytes) -> None:
        """Write whole commands; a peer that stops reading because its replies are not read gets them read."""
        link = self._live()
        for start in range(0, len(data), _PIECE_BYTES):
            while self._in_flight and not _writable(link):
                self._take()
            try:
                link.send_packed_command((data[start : start + _PIECE_BYTES],), check_health=False)
            except Exception as error:
                self._failed(error)
                raise

    def _failed(self, error: Exception) -> PpssError:
        """Return our error for an error reply; raise it, and drop the connection, for anything worse."""
        from redis.exceptions import RedisError, ResponseError

        if isinstance(error, ResponseError):
            return reply_failure(error, self.address, self.server.maxmemory_bytes if self.server else 0)
        self._drop()
        if isinstance(error, RedisError):
            raise connection_failure(error, self.address, opened=True) from None
        raise error


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
    from redis import connection as driver

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
    """Ask the sentinels one after the other for the master's address; raises ConnectFailed if none knows it."""
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


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What matters to PPSS about a server."""

    software: str
    """Redis or Valkey."""
    version: tuple[int, ...]
    maxmemory_bytes: int
    """0 if unlimited."""
    maxmemory_policy: str
    aof: bool
    rdb: bool
    """Snapshots are configured; taken as true where this user may not read the configuration."""
    cluster: bool
    read_only_replica: bool

    @classmethod
    def parse(cls, info: bytes, save: str | None) -> ServerInfo:
        """Read the reply of INFO, and the setting `save` (None if it could not be read)."""
        facts = dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
        # Valkey says redis_version:7.2.4 for the sake of old clients.
        valkey = facts.get("valkey_version")
        version = valkey or facts.get("redis_version", "")
        return cls(
            software="Valkey" if valkey else "Redis",
            version=tuple(int(part) for part in re.findall(r"\d+", version)),
            maxmemory_bytes=int(facts.get("maxmemory", 0)),
            maxmemory_policy=facts.get("maxmemory_policy", "noeviction"),
            aof=facts.get("aof_enabled") == "1",
            rdb=save != "",
            cluster=facts.get("cluster_enabled") == "1",
            read_only_replica=facts.get("role") == "slave" and facts.get("slave_read_only") == "1",
        )


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
    server = ServerInfo.parse(cast("bytes", info), save.decode() if isinstance(save, bytes) else None)
    connection.server = server
    return _warnings(server, connection.address.display())


def _warnings(server: ServerInfo, where: str) -> list[str]:
    """What `check_server` returns or raises."""
    if server.version < (6, 2):
        version = ".".join(map(str, server.version))
        raise BadInput(
            f"{server.software} at {where} is version {version}. PPSS needs Redis 6.2 or newer, or Valkey."
        )
    if server.cluster:
        raise BadInput(
            f"{server.software} at {where} is a cluster. PPSS needs a single server, with or without replicas."
        )
    if server.read_only_replica:
        raise ServiceFailed(
            f"{server.software} at {where} is a read-only replica. Give --url the address of the master."
        )
    warnings = []
    if server.maxmemory_policy != "noeviction":
        warnings.append(
            f"{server.software} at {where} may evict items (maxmemory-policy {server.maxmemory_policy}): "
            "set maxmemory-policy noeviction."
        )
    if not server.aof and not server.rdb:
        warnings.append(
            f"{server.software} at {where} keeps nothing on disk, so its end loses every item: set appendonly yes."
        )
    return warnings


class ChangeListener:
    """Tells which keys any client changed (scripts and dashboards too), so that an idle worker need not poll.

    It needs a connection of its own, and no prefix may begin with another one. Each change costs the server a
    message per listener: switch it on only while idle, before the last look for work.
    """

    _CHANNEL = b"__redis__:invalidate"
    FLUSHED = b"*"
    """Stands for every key, after FLUSHALL or FLUSHDB."""

    def __init__(self, connection: Connection, prefixes: Sequence[str]) -> None:
        """`connection` is a clone that nobody else uses; nothing is sent before `on`."""
        self._connection = connection
        self._prefixes = tuple(prefixes)
        self._link: _Link | None = None

    def on(self) -> None:
        """Start listening: every change after the return is seen. Raises ConnectFailed, or ServiceFailed if an ACL forbids it."""
        connection = self._connection
        if self._link is not None and self._link is connection._link:
            return
        # RESP2 has no pushes, so the tracking is redirected to a channel that this very connection subscribes to.
        tracking: list[Argument] = [
            "CLIENT",
            "TRACKING",
            "ON",
            "BCAST",
            "REDIRECT",
            cast("int", connection.execute("CLIENT", "ID")),
        ]
        for prefix in self._prefixes:
            tracking += ["PREFIX", prefix]
        for reply in connection.execute_many((tracking, ("SUBSCRIBE", self._CHANNEL))):
            if isinstance(reply, PpssError):
                connection._drop()
                raise reply
        self._link = connection._link

    def off(self) -> None:
        """Stop listening and forget what was not asked for; raises ConnectFailed if the connection is gone."""
        if self._link is None:
            return
        self._link = None
        self._connection._write(
            _packed(("UNSUBSCRIBE", self._CHANNEL)) + _packed(("CLIENT", "TRACKING", "OFF"))
        )
        while isinstance(self._connection._read(), list):
            pass

    def fileno(self) -> int:
        """For select; readable when `changes` has something to say. Raises ConnectFailed if it is gone."""
        return self._connection.fileno()

    def changes(self) -> set[bytes]:
        """The keys changed since the last call, without waiting; `{FLUSHED}` for all of them; empty while off.

        Raises ConnectFailed if the connection is gone; `on` opens a new one.
        """
        changed: set[bytes] = set()
        if self._link is None:
            return changed
        while self._connection.readable():
            message = self._connection._read()
            if isinstance(message, list) and message[0] == b"message":
                keys = cast("list[bytes] | None", message[2])
                changed.update([self.FLUSHED] if keys is None else keys)
        return changed
