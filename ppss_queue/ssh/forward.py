"""Sockets of this machine, joined to channels: one that leads to the master, and one to which others are led."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import paramiko

from ppss_queue.errors import PpssError
from ppss_queue.ssh.pump import join
from ppss_queue.ssh.wire import CONNECT_SECONDS


@contextmanager
def forwarded(open_channel: Callable[[], paramiko.Channel]) -> Iterator[Path]:
    """A unix socket, for this user alone, each connection to which is joined to a channel of its own.

    A connection for which none can be opened is closed at once. Raises OSError.
    """
    with tempfile.TemporaryDirectory(prefix="ppss-") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory) / "redis.sock"
        listener.bind(os.fspath(path))
        listener.listen()
        threading.Thread(
            target=_accept, args=[listener, open_channel], name="ssh-accept", daemon=True
        ).start()
        try:
            yield path
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes up the thread


def joined_to(host: str, port: int) -> Callable[[paramiko.Channel], None]:
    """Serves a channel of `Line.listen`: joins it to that port, as seen from here; closes it where nothing listens."""

    def serve(channel: paramiko.Channel) -> None:
        try:
            opened = socket.create_connection((host, port), CONNECT_SECONDS)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.settimeout(None)
        except OSError:
            channel.close()
            return
        join(opened, channel)

    return serve


def _accept(listener: socket.socket, open_channel: Callable[[], paramiko.Channel]) -> None:
    while True:
        try:
            accepted, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=[accepted, open_channel], name="ssh-serve", daemon=True).start()


def _serve(accepted: socket.socket, open_channel: Callable[[], paramiko.Channel]) -> None:
    try:
        channel = open_channel()
    except PpssError:
        accepted.close()
        return
    join(accepted, channel)
