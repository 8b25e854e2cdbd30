"""What a worker tells whoever shows or logs its work."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ppss_queue.model import Lease, Outcome
from ppss_worker.runs import ActiveRun


class Verdict(StrEnum):
    """What became of an attempt."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRY = "retry"
    ELSEWHERE = "failed here, tried elsewhere"
    RELEASED = "released"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that is over, while its output can still be read from the two descriptors (-1: none)."""

    lease: Lease
    run: ActiveRun
    slot: int
    outcome: Outcome
    verdict: Verdict
    retry_seconds: float | None
    stdout: int
    stderr: int
    started_epoch: float


class Observer(Protocol):
    """Who is told what a worker does."""

    def began(self, worker: str) -> None:
        """It is connected and takes items from now on; `worker`: its name."""

    def started(self, lease: Lease, run: ActiveRun, slot: int) -> None: ...
    def output(self, lease: Lease, target: int, data: bytes) -> None: ...
    def ended(self, ended: Ended) -> None: ...
    def warn(self, sentence: str) -> None: ...
