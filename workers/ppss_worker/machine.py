"""This machine as a node: its name and id, and what a heartbeat tells about it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from ppss_queue import __version__
from ppss_queue.connection import Connection
from ppss_queue.keys import Keys
from ppss_queue.replies import text
from ppss_queue.resp import Argument
from ppss_queue.scripts import Call, run
from ppss_queue.server_place import machine_id

if TYPE_CHECKING:
    from ppss_worker.stage import Stage


def node_id() -> str:
    """The same for all workers of this user on this machine, and for no others."""
    return sha256(f"{machine_id()}:{os.getuid()}".encode()).hexdigest()[:16]


def take_name(connection: Connection, keys: Keys, wanted: str) -> str:
    """The name of this node: the wanted one, or, where that is another machine's or user's, `wanted~1f3a`."""
    return text(run(connection, Call(keys, "name", (wanted, node_id()))))


def machine_facts(stage: Stage | None) -> Mapping[str, Argument]:
    """Asks nothing that may hang, such as a file system. `stage`: knows of the scratch."""
    facts: dict[str, Argument] = {
        "id": node_id(),
        "hostname": socket.gethostname(),
        "version": __version__,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }
    with suppress(OSError):
        facts["load"] = f"{os.getloadavg()[0]:.2f}"
    with suppress(OSError):  # Linux
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                facts["memory_free"] = int(line.split()[1]) * 1024
    return {**facts, **stage.facts} if stage is not None else facts
