"""The bytes below SSH: the socket to the server or to a ProxyCommand, and noticing that it went dead."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
import time
from typing import Protocol

from ppss_queue.ssh.target import Target

CONNECT_SECONDS = 5.0
"""For the connect alone."""
SILENT_SECONDS = 20.0
"""A server that says nothing for so long, though it was asked, is taken for lost."""
ASK_SECONDS = 5.0
"""How often it is asked."""
_COUNTED_SECONDS = 1.0
_AHEAD_BYTES = 64 * 1024
"""Read at once: paramiko asks twice for each packet, for its first bytes and for the rest."""
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP)
"""Python ignores the first two; whoever starts a worker in the background, the others."""
_SILENCE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}


class Stream(Protocol):
    """What paramiko needs of a socket; its own channels have it too."""

    def recv(self, count: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def settimeout(self, seconds: float | None, /) -> None: ...
    def close(self) -> object: ...


class Wire:
    """A socket for paramiko that counts how long the other side has been silent.

    Counted are the seconds that were spent waiting for it, at most one for each wait, so that a worker which was
    stopped itself, or a laptop that was shut, does not blame the server.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._ahead = b""
        self._at = 0
        """How much of it was asked for."""
        self.silent_seconds = 0.0
        self._closed = False  # paramiko asks sockets for it

    def recv(self, count: int, /) -> bytes:
        """Raises TimeoutError, as a socket does, and ConnectionError after too long a silence."""
        if self._at == len(self._ahead):
            self._ahead, self._at = self._read(), 0
        data = self._ahead[self._at : self._at + count]
        self._at += len(data)
        return data

    def send(self, data: bytes, /) -> int:
        """Raises as `recv`."""
        try:
            return self._stream.send(data)
        except TimeoutError:
            if self.silent_seconds > SILENT_SECONDS:
                raise _silent() from None
            raise

    def settimeout(self, seconds: float | None, /) -> None:
        self._stream.settimeout(seconds)

    def close(self) -> None:
        self._closed = True
        self._stream.close()

    def _read(self) -> bytes:
        began = time.monotonic()
        try:
            data = self._stream.recv(_AHEAD_BYTES)
        except TimeoutError:
            self.silent_seconds += min(time.monotonic() - began, _COUNTED_SECONDS)
            if self.silent_seconds > SILENT_SECONDS:
                raise _silent() from None
            raise
        self.silent_seconds = 0.0
        return data


def _silent() -> ConnectionError:
    return ConnectionError(
        errno.ETIMEDOUT, f"no answer for {SILENT_SECONDS:g} s"
    )  # paramiko insists on a number


def leave_signals_alone() -> None:
    """For a thread that has nothing to do with them: else the end of each command would wake it up."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def connect(target: Target) -> socket.socket:
    """A socket to the server itself. Raises OSError, UnicodeError."""
    opened = socket.create_connection((target.host, target.port), CONNECT_SECONDS)
    try:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _SILENCE.items():
            if hasattr(socket, name):
                opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except BaseException:
        opened.close()
        raise
    return opened


def run_proxy(target: Target) -> socket.socket:
    """A socket that is stdin and stdout of the ProxyCommand, which ends when it is closed. Raises OSError.

    The command is nobody's child: a worker looks at all of its own, and Ctrl-C is not meant for it.
    """
    ours, theirs = socket.socketpair()
    command = f"cd /; exec 3<&0; /bin/sh -c {shlex.quote('exec ' + target.proxy_command)} <&3 3<&- &"
    with theirs:
        launcher = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", command],
            os.environ,
            file_actions=(
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ),
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
        os.waitpid(launcher, 0)
    return ours
