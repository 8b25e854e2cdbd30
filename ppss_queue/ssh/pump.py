"""Makes a socket of a channel, for code that waits for many sockets at once."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress

import paramiko

from ppss_queue.ssh.failures import LOST
from ppss_queue.ssh.wire import leave_signals_alone

_PIECE_BYTES = 64 * 1024


def as_socket(channel: paramiko.Channel) -> socket.socket:
    """One end of a socket pair whose other end is joined to the channel by two threads.

    What the far side sent arrives before its end of file; its end, or a lost connection, closes both directions.
    `shutdown(SHUT_WR)` is passed on as the end of what is sent, `close` closes the channel.
    """
    theirs, ours = socket.socketpair()
    join(ours, channel)
    return theirs


def join(ours: socket.socket, channel: paramiko.Channel) -> None:
    """Joins a socket to a channel, as `as_socket` does; both are closed when they are done."""
    channel.settimeout(None)
    inward = threading.Thread(target=_from_channel, args=[ours, channel], name="ssh-in", daemon=True)
    outward = threading.Thread(target=_to_channel, args=[ours, channel, inward], name="ssh-out", daemon=True)
    inward.start()
    outward.start()


def _to_channel(ours: socket.socket, channel: paramiko.Channel, inward: threading.Thread) -> None:
    """Closes the socket once the other thread has let go of it."""
    leave_signals_alone()
    with suppress(*LOST):
        while data := ours.recv(_PIECE_BYTES):
            channel.sendall(data)
        channel.shutdown_write()
        _await_hangup(ours)
    _end(ours, channel)
    inward.join()
    ours.close()


def _from_channel(ours: socket.socket, channel: paramiko.Channel) -> None:
    leave_signals_alone()
    with suppress(*LOST):
        while data := channel.recv(_PIECE_BYTES):
            ours.sendall(data)
    _end(ours, channel)


def _end(ours: socket.socket, channel: paramiko.Channel) -> None:
    """Wakes up the other thread, whatever it waits for."""
    with suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)
    with suppress(*LOST):
        channel.close()


def _await_hangup(ours: socket.socket) -> None:
    """Until the other end of the pair is closed, or all is shut down."""
    poll = select.poll()
    poll.register(ours, 0)
    poll.poll()
