"""A command on an agentless node."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass

from ppss_queue.model import Lease
from ppss_worker.agentless.agent import Session
from ppss_worker.agentless.home import Home
from ppss_worker.process import Child

SIGNALS: dict[int, str] = {signal.SIGKILL: "KILL", signal.SIGTERM: "TERM", signal.SIGCONT: "CONT"}
"""Names of those that a command may be sent."""


@dataclass(slots=True)
class RemoteChild(Child):
    """A command on an agentless node. `pid` is no number of a process, but negative."""

    attempt: str = ""
    lease: Lease | None = None
    session: Session | None = None
    request: bytes = b""
    home: Home | None = None
    on_signal: Callable[[RemoteChild, int], None] = lambda child, number: None
    on_close: Callable[[RemoteChild], None] = lambda child: None
    launched: bool = False
    lost_at: float = math.inf
    """When it surely does not run any more, after the connection was lost; time.monotonic()."""

    def close(self) -> None:
        Child.close(self)
        self.on_close(self)

    def _signal(self, number: int) -> None:
        if not self.reaped:
            self.on_signal(self, number)
