"""A server on TCP that is a chosen round trip away."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppss_queue.server_binary import binary
from tools.bench.processes import Argument, started, wait_until

_DELAY = Path(__file__).resolve().parent / "delay.py"


@contextmanager
def tcp_server() -> Iterator[int]:
    """A Valkey of its own on 127.0.0.1, keeping its data as the embedded server does; its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ppss-bench-tcp-") as folder:
        settings = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": folder,
            "appendonly": "yes",
            "save": "",
            "hash-max-ziplist-value": "1024",
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with started([binary(), *words]):
            wait_until(lambda: _answers(port), what="the server on TCP")
            yield port


@contextmanager
def delayed(port: int, round_trip_ms: float) -> Iterator[str]:
    """The address at which that server is so far away; 0: without anything in between."""
    if not round_trip_ms:
        yield f"redis://127.0.0.1:{port}"
        return
    argv: list[Argument] = [sys.executable, _DELAY, str(port), str(round_trip_ms)]
    with started(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as proxy:
        assert proxy.stdout is not None
        yield f"redis://127.0.0.1:{int(proxy.stdout.readline())}"


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
