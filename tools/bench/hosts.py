"""Real hosts for rows: a lab of tests/lab with a master and a node, and the version under test on both."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hosts.lab import Host, Lab, NoLab, up
from tools.bench.processes import LIMIT_SECONDS, Broken, Missing
from tools.bench.site import Version

URL = "ssh://master"
_TIMED = """
TIMEFORMAT=%R
{ time "$@" >/dev/null 2>errors; } 2>seconds || { tail -c 600 errors >&2; exit 1; }
cat seconds
"""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Pair:
    """A master whose server runs, and a node."""

    lab: Lab

    @property
    def master(self) -> Host:
        return self.lab.master

    @property
    def node(self) -> Host:
        return self.lab["n1"]

    @property
    def share(self) -> Path:
        """What both hosts and the benchmark see at this path."""
        return self.lab.share

    @contextmanager
    def working(self, *options: str) -> Iterator[None]:
        """A worker on the node that waits for runs."""
        argv = ["ppss", "worker", "-q", "--url", URL, *options]
        process = self.node.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        yield
        process.terminate()
        process.wait()

    def connections(self) -> int:
        """SSH logins of the node at the master so far."""
        log = self.master.run(["cat", "/var/log/sshd.log"], user="root").stdout
        return log.count("Accepted publickey for ppss")


@contextmanager
def pair(version: Version) -> Iterator[Pair]:
    """Two hosts, new each time. Raises Missing where the machine cannot run them, Broken if they do not work."""
    try:
        with up(2) as lab:
            for host in lab.hosts.values():
                host.run(["ln", "-sf", str(version.bin / "ppss"), "/usr/local/bin/ppss"], user="root")
            lab.master.run(["ppss", "server", "start"])
            yield Pair(lab)
    except NoLab as reason:
        raise Missing(f"NOT MEASURED: no lab of hosts here: {reason}") from None
    except AssertionError as error:
        raise Broken(str(error)[-600:]) from None


def seconds(host: Host, argv: Sequence[str]) -> float:
    """Time of the whole process, taken on the host. Raises AssertionError if it fails."""
    found = host.run(["bash", "-c", _TIMED, "bash", *argv], timeout_seconds=LIMIT_SECONDS).stdout
    return float(found)


def shell_seconds(host: Host, script: str) -> float:
    """The same for a script of bash."""
    return seconds(host, ["bash", "-euo", "pipefail", "-c", script])


def cpu_seconds(host: Host) -> float:
    """What all processes of the host have used, those that ended there included, to 10 ms."""
    stats = host.run(["sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null || :"], user="root").stdout
    fields = [line.rpartition(") ")[2].split() for line in stats.splitlines()]
    return sum(int(ticks) for line in fields for ticks in line[11:15]) / _TICKS
