"""The gate: what a node reaches of this machine over SSH, for whoever may execute `ppss gate` here.

It is started for each connection that a node opens, so it is small and imports only what its service needs.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from ppss_queue import __version__
from ppss_queue.cli.joining import become
from ppss_queue.errors import BadInput, ExitCode, PpssError
from ppss_queue.ssh.hello import Hello, asked_for

SERVICES = ("redis", "files", "durable")
_PIECE_BYTES = 64 * 1024


def main(arguments: Sequence[str]) -> int:
    """Serves one node on stdin and stdout; stdout gets nothing but the hello and the bytes of the service."""
    service = ""
    try:
        service = _service(arguments)
        {"redis": _redis, "files": _files, "durable": _durable}[service]()
    except PpssError as error:
        return _refuse(service, " ".join(str(error).split("\n")), error.exit_code)
    except OSError as error:
        return _refuse(service, f"the gate failed: {error}.", ExitCode.MACHINE_FAILED)
    return ExitCode.OK


def _refuse(service: str, error: str, exit_code: ExitCode) -> int:
    with suppress(OSError):  # the node has gone meanwhile
        _say(Hello(__version__, service, error, exit_code))
    return exit_code


def _service(arguments: Sequence[str]) -> str:
    """What is asked for: by a word, or by SSH_ORIGINAL_COMMAND where the key has a forced command."""
    original = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    service = arguments[0] if arguments else asked_for(original) or ""
    if len(arguments) > 1 or service not in SERVICES:
        raise BadInput(f"the gate opens {', '.join(SERVICES)}, not {' '.join(arguments) or original!r}.")
    return service


def _say(hello: Hello) -> None:
    sys.stdout.buffer.write(hello.encode())
    sys.stdout.buffer.flush()


def _redis() -> None:
    from ppss_queue.server import ensure_running
    from ppss_queue.server_place import default_place

    place = default_place()
    ensure_running(place)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.fsencode(place.socket))
        _say(Hello(__version__, "redis"))
        become(0, 1, server.fileno(), "ppss gate redis")


def _files() -> None:
    import importlib

    try:
        serve = importlib.import_module("ppss_worker.file_gate").serve
    except ImportError:
        raise BadInput(f"PPSS {__version__} can't stage files. Upgrade it.") from None
    _say(Hello(__version__, "files"))
    serve(0, 1)


def _durable() -> None:
    """What reaches the server is on disk when its answer comes, until the node closes stdin."""
    from ppss_queue.address import Address
    from ppss_queue.connection import Connection
    from ppss_queue.durability import durable
    from ppss_queue.server import ensure_running
    from ppss_queue.server_place import default_place

    place = default_place()
    with Connection.open(Address.parse(ensure_running(place))) as connection, durable(place, connection):
        _say(Hello(__version__, "durable"))
        while os.read(0, _PIECE_BYTES):
            pass
