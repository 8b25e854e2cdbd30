"""What a node has and lacks, with what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from ppss_queue.nodes import way_back
from ppss_queue.nodes.master import LOOPBACK
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
    reverse: bool
    """It is to come back by a way that this machine holds open."""
    reaches_us: bool
    """Whether it can connect to an SSH server here, by that way or by itself."""
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
            "reverse": self.reverse,
            "machine": probe.machine,
            "user": probe.user,
        }


def check(reach: Reach, host: str, port: int) -> Checked:
    """Looks, and changes nothing. `host`: of this machine as nodes see it; empty: as we came.

    Raises ConnectFailed, also if the node is to come back by a way held open here, and no sshd answers at its end.
    """
    found, node = probe(reach), reach.node
    takes_worker = node.mode is Mode.WORKER and not node.here
    reverse = takes_worker and way_back.is_wanted(node, found)
    reaches_us, why = not takes_worker, ""
    if reverse:
        reaches_us, why = _comes_back(reach, (host or LOOPBACK, port))
    elif takes_worker:
        reaches_us = _reaches(reach, host, port)
    lacks = []
    if takes_worker:
        if found.python is None:
            lacks.append(
                f"it {found.no_python}, and a worker needs 3.11 or newer: install it there, or use the node without "
                "one (mode=ssh)."
            )
        if reverse and not reaches_us:
            lacks.append(f"no way back can be held open for it: {why}")
        elif not reaches_us:
            lacks.append(
                f"it can't reach SSH at {host or found.came_from}:{port}: have this machine hold a way open (--reverse,"
                " or reverse=yes in the list), or name another one with --master HOST:PORT."
            )
        if not found.home_writable:
            lacks.append(f"its home '{found.home}' can't be written: PPSS would be put there.")
    elif node.mode is Mode.SSH and not found.home_writable and not node.scratch:
        lacks.append(
            f"its home '{found.home}' can't be written: files of items go there. Name another directory: scratch=DIR"
        )
    if found.free_bytes is not None and found.free_bytes < ROOM_BYTES:
        lacks.append(f"only {format_bytes(found.free_bytes)} of disk are free in its home: make room.")
    return Checked(node, found, reverse, reaches_us, tuple(lacks))


def _reaches(reach: Reach, host: str, port: int) -> bool:
    script = _SSH_BACK.format(host=shlex.quote(host), port=port, seconds=_PORT_SECONDS)
    return reach.run(f"timeout {2 * _PORT_SECONDS} bash -c {shlex.quote(script)}").out.strip() == b"yes"


def _comes_back(reach: Reach, sshd: tuple[str, int]) -> tuple[bool, str]:
    """Whether a way that is held open for it leads here; else why not."""
    from ppss_queue.ssh.failures import SshRefused

    try:
        way = way_back.open_through(reach, sshd)
    except SshRefused as error:
        return False, str(error)
    return _reaches(
        reach, LOOPBACK, way.port
    ), "nothing came through it. See whether a firewall guards its loopback."
