"""Fixtures of all tests: a Valkey per xdist worker, a database per test, a home of its own where wanted."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import missing, wait_until

from ppss_queue import server
from ppss_queue.errors import BadInput
from ppss_queue.server_binary import binary
from ppss_queue.server_place import default_place

# A script that is run with `&` ignores these, and so would all that the tests start and want to interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

_DATABASES = 1000
_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def server_binary() -> Path:
    """The server program; without one the test is skipped at home and fails in CI."""
    try:
        return binary()
    except BadInput as error:
        missing(f"server ({error})")


def _ask(path: Path, *commands: str) -> bytes:
    """The one-line replies to commands, asked for in one connection."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(os.fsencode(path))
        connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
        with connection.makefile("rb") as replies:
            return b"".join(replies.readline() for _ in commands)


def _answers(path: Path) -> bool:
    try:
        return _ask(path, "PING") == b"+PONG\r\n"
    except (FileNotFoundError, ConnectionRefusedError):
        return False


@pytest.fixture(scope="session")
def server_socket(server_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of this worker's Valkey: without persistence, with 1,000 databases."""
    directory = tmp_path_factory.mktemp("valkey")
    path = directory / "s"
    log = directory / "log"
    options = f"--port 0 --databases {_DATABASES} --appendonly no --dir {directory} --unixsocket {path}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [server_binary, *options.split(), "--save", ""],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C ends the tests first, which then end the server
        )
    try:
        wait_until(lambda: _answers(path) or process.poll() is not None, "Valkey of the tests answers")
        assert process.poll() is None, log.read_text(errors="replace")
        yield path
        assert process.poll() is None, "Valkey died during the tests: " + log.read_text(errors="replace")
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def _database_numbers() -> Iterator[int]:
    return itertools.cycle(range(_DATABASES))


@pytest.fixture
def address(server_socket: Path, _database_numbers: Iterator[int]) -> Iterator[str]:
    """The URL of an empty database that no other test of this worker uses; flushed afterwards."""
    number = next(_database_numbers)
    yield f"unix://{server_socket}?db={number}"
    assert _ask(server_socket, f"SELECT {number}", "FLUSHDB") == b"+OK\r\n+OK\r\n"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment for commands: empty home, no PPSS_* from outside; its server is stopped afterwards."""
    base = tmp_path_factory.mktemp("h")
    foreign = ("PPSS_", "XDG_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        environment[name] = os.fspath(base / name.lower())
        (base / name.lower()).mkdir()
    environment["PPSS_STATE_DIR"] = os.fspath(base / "state")
    # For `python -m` in a child: pytest's pythonpath reaches this process only.
    environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), str(_ROOT / "workers")])
    yield environment
    place = default_place(environment)
    if place.directory.exists():
        server.stop(place)
    if place.socket.parent != place.directory:
        shutil.rmtree(place.socket.parent, ignore_errors=True)
