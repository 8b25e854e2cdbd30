"""A TCP proxy that adds a round-trip time: delay.py PORT MILLISECONDS prints its own port, ends with its stdin.

Each direction is held back by half of it; the rate is not limited. A process of its own, so that it competes
with nobody for an interpreter.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field

_READ_BYTES = 256 * 1024


@dataclass(slots=True)
class _Pipe:
    """One direction of a connection."""

    source: socket.socket
    target: socket.socket
    held: deque[tuple[float, bytes]] = field(default_factory=deque)
    """What is on its way, with the time of its arrival; empty bytes: the end."""

    def read(self, delay_seconds: float) -> bool:
        """False: nothing more will come."""
        try:
            data = self.source.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self.held.append((time.monotonic() + delay_seconds, data))
        return bool(data)

    def deliver(self) -> float | None:
        """Sends what is due; seconds until the next, or None."""
        while self.held:
            due, data = self.held[0]
            if (left := due - time.monotonic()) > 0:
                return left
            self.held.popleft()
            try:
                if not data:
                    self.target.shutdown(socket.SHUT_WR)
                    continue
                sent = self.target.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:  # the other side is gone: what is left has nowhere to go
                self.held.clear()
                return None
            if sent < len(data):
                self.held.appendleft((due, data[sent:]))
                return 0.001
        return None


class _Proxy:
    def __init__(self, port: int, round_trip_ms: float) -> None:
        self._target = ("127.0.0.1", port)
        self._delay_seconds = round_trip_ms / 2000
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        self._pipes: list[_Pipe] = []

    def serve(self) -> None:
        print(self._listener.getsockname()[1], flush=True)
        while True:
            waits = [wait for pipe in self._pipes if (wait := pipe.deliver()) is not None]
            for key, _ in self._selector.select(min(waits, default=None)):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.data, _Pipe):
                    self._take_in(key.data)
                else:
                    return

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(self._target)
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for pipe in (_Pipe(near, far), _Pipe(far, near)):
            self._pipes.append(pipe)
            self._selector.register(pipe.source, selectors.EVENT_READ, pipe)

    def _take_in(self, pipe: _Pipe) -> None:
        if not pipe.read(self._delay_seconds):
            self._selector.unregister(pipe.source)


if __name__ == "__main__":
    _Proxy(int(sys.argv[1]), float(sys.argv[2])).serve()
