"""Opens a socket to where a Redis server listens."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from ppss_queue.address import Address

if TYPE_CHECKING:
    import ssl

    from ppss_queue.ssh.line import Channel, Line

CONNECT_SECONDS = 5.0
"""For the connect, for TLS, and again for the replies to the login."""


class Tls:
    """Checks certificates. Who may sign them is read once: SSL_CERT_FILE may be relative, and a worker moves about."""

    def __init__(self) -> None:
        self._context: ssl.SSLContext | None = None

    def wrapped(self, opened: socket.socket, host: str) -> socket.socket:
        """The socket after the handshake. Raises OSError."""
        if self._context is None:
            import ssl  # costs as much as Python's own start

            self._context = ssl.create_default_context()
        return self._context.wrap_socket(opened, server_hostname=host)


def dial(address: Address, tls: Tls, line: Line | None = None) -> socket.socket:
    """A connected socket, TLS included (certificates are checked); it waits at most CONNECT_SECONDS.

    `line` leads to `address.via`, if there is one. Raises OSError, of which ssl.SSLError is one, or UnicodeError or
    ValueError for a name that can't be one; what the line raises is told already.
    """
    if line is not None:
        return _through(line, address, tls)
    if address.scheme == "unix":
        return _unix(address.path)
    ((host, port),) = address.hosts
    opened = socket.create_connection((host, port), CONNECT_SECONDS)
    try:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _keepalive().items():
            opened.setsockopt(socket.IPPROTO_TCP, option, value)
        return tls.wrapped(opened, host) if address.scheme == "rediss" else opened
    except BaseException:
        opened.close()
        raise


def would_block(error: Exception) -> bool:
    """TLS has errors of its own for that, told by name so that nobody else pays for its import."""
    return isinstance(error, BlockingIOError) or type(error).__name__ in (
        "SSLWantReadError",
        "SSLWantWriteError",
    )


def undelivered(opened: socket.socket) -> bool:
    """Whether TLS holds bytes that no poll would tell of."""
    pending = getattr(opened, "pending", None)
    return pending is not None and pending() > 0


def open_channel(line: Line, address: Address) -> Channel:
    """To where the server listens, as the machine at the end of the line sees it. Raises ConnectFailed, BadInput."""
    if address.scheme == "ssh":
        return line.open_gate("redis")
    if address.scheme == "unix":
        return line.open_unix(address.path)
    ((host, port),) = address.hosts
    return line.open_tcp(host, port)


def _through(line: Line, address: Address, tls: Tls) -> socket.socket:
    opened = line.as_socket(open_channel(line, address))
    if address.scheme != "rediss":
        return opened
    try:
        opened.settimeout(CONNECT_SECONDS)
        return tls.wrapped(opened, address.hosts[0][0])
    except BaseException:
        opened.close()
        raise


def _unix(path: str) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX)
    try:
        opened.settimeout(CONNECT_SECONDS)
        opened.connect(path)
        return opened
    except BaseException:
        opened.close()
        raise


def _keepalive() -> dict[int, int]:
    """TCP options that end a connection whose peer is silent for 45 s: idle 30, then three probes 5 apart."""
    wanted = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 45_000}
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}
