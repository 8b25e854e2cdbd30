"""What heartbeats tell about the worker, and about the agentless nodes on which it runs items."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ppss_queue import __version__
from ppss_queue.calls import Calls
from ppss_queue.resources import NOTHING, Resources
from ppss_queue.resp import Argument
from ppss_queue.scripts import Call
from ppss_worker.attempts import Attempts
from ppss_worker.intake import Intake
from ppss_worker.runs import ActiveRuns
from ppss_worker.settings import Settings
from ppss_worker.verdicts import Verdicts

if TYPE_CHECKING:
    from ppss_worker.agentless.host import AgentlessHost

_PACE_SECONDS = 60.0


class Vitals:
    """Asked in the thread that sends heartbeats."""

    def __init__(self, settings: Settings, runs: ActiveRuns, intake: Intake, verdicts: Verdicts) -> None:
        self._settings = settings
        self._runs = runs
        self._intake = intake
        self._verdicts = verdicts
        self._paces: dict[str, Pace] = defaultdict(Pace)

    def heartbeats(
        self,
        calls: Calls,
        attempts: Attempts,
        elsewhere: Sequence[AgentlessHost],
        machine: Mapping[str, Argument],
        *,
        stopping: bool,
    ) -> Mapping[str, Call]:
        """By worker: of the one that this process is, and those that it stands for on other hosts."""
        beats = {calls.worker: calls.heartbeat(self._here(attempts, elsewhere, stopping=stopping), machine)}
        for host in elsewhere:
            if host.is_shown:
                told = self._there(attempts, host, stopping=stopping or host.steering.is_stopping)
                beats[host.calls.worker] = host.calls.heartbeat(told, host.facts)
        return beats

    def _here(
        self, attempts: Attempts, elsewhere: Sequence[AgentlessHost], *, stopping: bool
    ) -> Mapping[str, Argument]:
        leased = len(attempts) + len(self._intake.hand) - sum(attempts.on(host) for host in elsewhere)
        common = self._common(self._settings.node, stopping=stopping)
        offer = _offer(self._settings.offer.total)
        return {**common, **offer, "slots": self._intake.own_slots.count, "leased": leased}

    def _there(self, attempts: Attempts, host: AgentlessHost, *, stopping: bool) -> Mapping[str, Argument]:
        common = self._common(host.name, stopping=stopping)
        offer = _offer(host.room.total if host.room is not None else NOTHING)
        return {**common, **offer, "slots": host.slots, "leased": attempts.on(host)}

    def _common(self, node: str, *, stopping: bool) -> Mapping[str, Argument]:
        """Some for RQ's views, the others for `nodes.lua` and for who looks for another node (blame.lua)."""
        served = self._settings.runs
        return {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "python_version": sys.version.split()[0],
            "queues": ",".join(sorted(self._runs) or served),
            "node": node,
            "rate": f"{self._paces[node].per_second(self._verdicts.ended_counts[node]):.3f}",
            "serves": ",".join(served),
            "command": int(self._settings.command is not None),
            "stopping": int(stopping),
            **self._intake.troubles,
        }


def _offer(total: Resources) -> Mapping[str, Argument]:
    return {"gpus": total.gpus, "cpus": total.cpus, "memory_bytes": total.memory_bytes}


class Pace:
    """Items per second over the last minute, looked at now and then."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def per_second(self, ended: int) -> float:
        """`ended`: items so far."""
        now = time.monotonic()
        self._looks.append((now, ended))
        while len(self._looks) > 2 and self._looks[1][0] <= now - _PACE_SECONDS:
            self._looks.popleft()
        since, before = self._looks[0]
        return (ended - before) / max(now - since, 0.001)
