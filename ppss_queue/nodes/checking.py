"""What a node has and lacks, with what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from ppss_queue.nodes.probe import Probe, probe
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.spec import Mode, NodeSpec
from ppss_queue.units import format_bytes

SSH_PORT = 22
ROOM_BYTES = 200 * 1024 * 1024
"""Less free space than this is a lack: PPSS and some files need it."""
_PORT_SECONDS = 5

_SSH_BACK = """
host={host} port={port}
[ -n "$host" ] || {{ read -r host _ <<<"$SSH_CONNECTION"; }}
exec 3<>"/dev/tcp/$host/$port" 2>/dev/null || {{ echo no; exit; }}
read -rt {seconds} -u 3 greeting && case $greeting in SSH-*) echo yes;; *) echo no;; esac
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """A node as it is."""

    node: NodeSpec
    probe: Probe
    reaches_us: bool
    """Whether it can connect to an SSH server here."""
    lacks: tuple[str, ...]
    """A sentence each."""

    def facts(self) -> Mapping[str, object]:
        """For --json."""
        probe, python = self.probe, self.probe.python
        return {
            "state": "lacks" if self.lacks else "ready",
            "lacks": list(self.lacks),
            "python": python.version if python else None,
            "platform": python.tag if python else None,
            "system": probe.system,
            "version": probe.version or None,
            "cores": probe.cores,
            "load": probe.load,
            "free_bytes": probe.free_bytes,
            "gpus": list(probe.gpus),
            "clock_offset_seconds": round(probe.clock_offset_seconds, 3),
            "reaches_master": self.reaches_us,
            "machine": probe.machine,
            "user": probe.user,
        }


def check(reach: Reach, host: str, port: int) -> Checked:
    """Looks, and changes nothing. `host`: of this machine as nodes see it; empty: as we came. Raises ConnectFailed."""
    found, node = probe(reach), reach.node
    reaches_us = node.here or node.mode is Mode.SSH
    if not reaches_us:
        script = _SSH_BACK.format(host=shlex.quote(host), port=port, seconds=_PORT_SECONDS)
        reaches_us = (
            reach.run(f"timeout {2 * _PORT_SECONDS} bash -c {shlex.quote(script)}").out.strip() == b"yes"
        )
    lacks = []
    if node.mode is Mode.WORKER and not node.here:
        if found.python is None:
            lacks.append(
                f"it {found.no_python}, and a worker needs 3.11 or newer: install it there, or use the node without "
                "one (mode=ssh)."
            )
        if not reaches_us:
            where = f"{host or found.came_from}:{port}"
            lacks.append(
                f"it can't reach SSH at {where}: name a way with --master HOST:PORT, or use the node without a worker "
                "(mode=ssh)."
            )
        if not found.home_writable:
            lacks.append(f"its home '{found.home}' can't be written: PPSS would be put there.")
    if found.free_bytes is not None and found.free_bytes < ROOM_BYTES:
        lacks.append(f"only {format_bytes(found.free_bytes)} of disk are free in its home: make room.")
    return Checked(node, found, reaches_us, tuple(lacks))
