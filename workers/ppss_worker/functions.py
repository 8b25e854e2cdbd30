"""Python functions as commands: one process per slot and run, used again for each item."""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

from ppss_worker.process import Child, Spawner

_READ_BYTES = 65536


class FunctionHost:
    """A process that runs a function for one item at a time. It ends when the worker closes it or dies."""

    def __init__(
        self,
        spawner: Spawner,
        selector: selectors.BaseSelector,
        name: str,
        environment: Mapping[str, str],
        directory: str,
    ) -> None:
        """`name`: `module:function`, imported in the process. Raises what Spawner.spawn raises."""
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-m", "ppss_worker.function_host", name]
            seen = {**environment, "PYTHONPATH": _python_path(environment)}
            self.child: Child = spawner.spawn(argv, seen, directory, stdout=theirs.fileno())
        self._socket = ours
        self._selector = selector
        self._partial = b""
        self._on_answer: Callable[[dict[str, object]], None] | None = None
        ours.setblocking(False)
        selector.register(ours, selectors.EVENT_READ, self._receive)

    def call(
        self, item: str, environment: Mapping[str, str], on_answer: Callable[[dict[str, object]], None]
    ) -> None:
        """Begins an item; `on_answer` gets exit_code, and result (JSON) or reason, unless the process dies."""
        os.ftruncate(self.child.stderr, 0)
        self._on_answer = on_answer
        self._socket.setblocking(True)
        try:
            self._socket.sendall(
                json.dumps({"item": item, "environment": dict(environment)}).encode() + b"\n"
            )
        except OSError:
            pass  # it died; its end is noticed as any child's
        finally:
            self._socket.setblocking(False)

    def close(self) -> None:
        """Ends the process."""
        self._stop_listening()
        self._socket.close()
        self.child.kill()
        self.child.close()

    def _stop_listening(self) -> None:
        with suppress(KeyError):
            self._selector.unregister(self._socket)

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, ConnectionError):
            return
        if not data:  # it died; its end is noticed as any child's
            self._stop_listening()
            return
        self._partial += data
        line, end, rest = self._partial.partition(b"\n")
        if end and self._on_answer is not None:
            self._partial = rest
            on_answer, self._on_answer = self._on_answer, None
            on_answer(json.loads(line))


def _python_path(environment: Mapping[str, str]) -> str:
    """So that the process finds this package, wherever the worker found it."""
    paths = [path for path in sys.path if path]
    known = environment.get("PYTHONPATH", "")
    return os.pathsep.join([*([known] if known else []), *paths])
