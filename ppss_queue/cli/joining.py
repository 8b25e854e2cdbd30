"""Joins a node to the server, in a process as small as Python's can be.

A master runs several of these for each worker, for as long as that works. So this file is also a program, which the
gate becomes (`python -I -S`) once it has said hello: that leaves a third of the memory. It imports nothing but what
Python has loaded anyway, and `select`.
"""

from __future__ import annotations

import os
import select
import sys

_PIECE_BYTES = 64 * 1024
_BEAT_SECONDS = 30.0
"""When nothing passes, a byte on stderr makes sshd notice that the node is gone: it has no other reason to speak."""
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


def become(source: int, sink: int, server: int, title: str) -> None:
    """Joins the three in place of this process, and never returns; where that can't be, here. `title` is for `ps`."""
    for descriptor in (source, sink, server):
        os.set_inheritable(descriptor, True)
    words = [sys.executable, "-I", "-S", __file__, str(source), str(sink), str(server), title]
    try:
        os.execv(sys.executable, words)
    except OSError:
        join(source, sink, server)


def join(source: int, sink: int, server: int, beat: int = 2, beat_seconds: float = _BEAT_SECONDS) -> None:
    """Passes bytes from the source to the server and from there to the sink until one of them ends.

    It sleeps until there is something to do. What was read is written before anything more is read.
    """
    for descriptor in (source, sink, server, beat):
        os.set_blocking(descriptor, False)
    up = down = b""
    while True:
        wanted = {sink: 0}  # always: its hang-up is that of the node
        for descriptor, event in (
            (server, select.POLLOUT) if up else (source, select.POLLIN),
            (sink, select.POLLOUT) if down else (server, select.POLLIN),
        ):
            wanted[descriptor] = wanted.get(descriptor, 0) | event
        poll = select.poll()
        for descriptor, events in wanted.items():
            poll.register(descriptor, events)
        happened = dict(poll.poll(beat_seconds * 1000))
        try:
            if not happened:
                _write(beat, b"\n")
            if happened.get(sink, 0) & _GONE:
                return
            if not up and happened.get(source):
                up = os.read(source, _PIECE_BYTES)
                if not up:
                    return
            if not down and happened.get(server, 0) & (select.POLLIN | _GONE):
                down = os.read(server, _PIECE_BYTES)
                if not down:
                    return
            up = _write(server, up)
            down = _write(sink, down)
        except BlockingIOError:
            pass
        except OSError:  # one of them is gone
            return


def _write(descriptor: int, data: bytes) -> bytes:
    """What could not be written now."""
    if not data:
        return b""
    try:
        return data[os.write(descriptor, data) :]
    except BlockingIOError:
        return data


if __name__ == "__main__":
    join(*map(int, sys.argv[1:4]))
