"""What a heartbeat tells about the worker."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping

from ppss_queue import __version__
from ppss_queue.resp import Argument
from ppss_worker.attempts import Attempts
from ppss_worker.intake import Intake
from ppss_worker.room import Room
from ppss_worker.runs import ActiveRuns
from ppss_worker.settings import Settings
from ppss_worker.verdicts import Verdicts

_PACE_SECONDS = 60.0


class Vitals:
    """Asked in the thread that sends heartbeats."""

    def __init__(
        self, settings: Settings, runs: ActiveRuns, intake: Intake, room: Room, verdicts: Verdicts
    ) -> None:
        self._settings = settings
        self._runs = runs
        self._intake = intake
        self._room = room
        self._verdicts = verdicts
        self._pace = Pace()

    def now(self, attempts: Attempts, *, stopping: bool) -> Mapping[str, Argument]:
        """Some for RQ's views, the others for `nodes.lua` and for who looks for another node (lib.lua)."""
        served = self._settings.runs
        return {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "python_version": sys.version.split()[0],
            "queues": ",".join(sorted(self._runs) or served),
            "node": self._settings.node,
            "slots": self._intake.slots + self._settings.slots_elsewhere,
            "leased": len(attempts) + len(self._intake.hand),
            "rate": f"{self._pace.per_second(self._verdicts.ended_count):.3f}",
            "serves": ",".join(served),
            "command": int(self._settings.command is not None),
            "stopping": int(stopping),
            "gpus": self._room.total.gpus,
            "cpus": self._room.total.cpus,
            "memory_bytes": self._room.total.memory_bytes,
            **self._intake.troubles,
        }


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
