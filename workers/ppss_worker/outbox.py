"""What a worker has to tell Redis, gathered per run into one call of each kind."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice

from ppss_queue.calls import Calls
from ppss_queue.connection import Reply
from ppss_queue.model import Lease, Outcome
from ppss_queue.replies import read_members
from ppss_worker.hosts import Slot
from ppss_worker.link import Link

BATCH = 64
"""Outcomes in one call; the server takes some 25 us per item from here on, however many."""
DELAY_SECONDS = 0.02
"""How long an outcome may wait for company: what a killed worker could have to repeat. And how long an item runs
before it is shown as running."""


class Outbox:
    """Outcomes on their way. A repeated one changes nothing, so they survive lost connections."""

    def __init__(
        self,
        link: Link,
        calls: Calls,
        on_lost: Callable[[Sequence[str]], None],
        on_told: Callable[[Lease], None],
    ) -> None:
        """`on_lost` gets the leases (`<job>:<token>`) whose outcome did not count; `on_told` each that is over."""
        self._link = link
        self._calls = calls
        self._on_lost = on_lost
        self._on_told = on_told
        self._acks: dict[tuple[Calls, str], list[tuple[Lease, Outcome, bytes]]] = defaultdict(list)
        self._fails: dict[tuple[Calls, str], list[tuple[Lease, Outcome, float | None, bytes]]] = defaultdict(
            list
        )
        self._releases: dict[str, list[Lease]] = defaultdict(list)
        self._forfeits: dict[str, list[Lease]] = defaultdict(list)
        self._begun: dict[str, tuple[Lease, Slot, float]] = {}
        """By member, oldest first: what runs and is not shown yet, with its slot and when it began."""
        self._count = 0
        self._oldest = 0.0

    def begun(self, lease: Lease, slot: Slot) -> None:
        """It is shown as running if it is not over very soon."""
        self._begun[lease.member] = (lease, slot, time.monotonic())

    def ack(self, calls: Calls, lease: Lease, outcome: Outcome, kept: bytes) -> None:
        """`calls`: of the host on which it ran."""
        self._acks[calls, lease.run].append((lease, outcome, kept))
        self._added(lease)

    def fail(
        self, calls: Calls, lease: Lease, outcome: Outcome, delay_seconds: float | None, kept: bytes
    ) -> None:
        """`calls`: as for `ack`; `delay_seconds` until the next attempt; None: there shall be none."""
        self._fails[calls, lease.run].append((lease, outcome, delay_seconds, kept))
        self._added(lease)

    def release(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._releases[lease.run].append(lease)
            self._added(lease)

    def forfeit(self, leases: Sequence[Lease]) -> None:
        """Their hosts are gone, and their commands with them."""
        for lease in leases:
            self._forfeits[lease.run].append(lease)
            self._added(lease)

    def over(self, lease: Lease) -> None:
        """It is told already."""
        self._begun.pop(lease.member, None)
        self._on_told(lease)

    @property
    def due_seconds(self) -> float | None:
        """Until the next `send` is due; None: there is nothing to tell."""
        if self._count >= BATCH:
            return 0.0
        since = [self._oldest] if self._count else []
        since += (at for _, _, at in islice(self._begun.values(), 1))
        return max(0.0, min(since) + DELAY_SECONDS - time.monotonic()) if since else None

    def send_if_due(self, *, busy: bool) -> float:
        """Sends, and returns the seconds until there may be more to send.

        `busy`: attempts run, so that more will have to be told soon; else nothing is waited for.
        """
        due = self.due_seconds
        if due is not None and not (due and busy):
            self.send()
        return due if due and busy else math.inf

    def send(self) -> None:
        """Hands everything to the link."""
        if self._begun:
            self._show()
        if not self._count:
            return
        for (calls, run), acks in self._acks.items():
            self._link.send(calls.ack(run, acks), self._report)
        for (calls, run), fails in self._fails.items():
            self._link.send(calls.fail(run, fails), self._report)
        for run, leases in self._releases.items():
            self._link.send(self._calls.release(run, leases), lambda reply: None)
        for run, leases in self._forfeits.items():
            self._link.send(self._calls.forfeit(run, leases), lambda reply: None)
        for box in (self._acks, self._fails, self._releases, self._forfeits):
            box.clear()
        self._count = 0

    def _show(self) -> None:
        before = time.monotonic() - DELAY_SECONDS
        starts: dict[tuple[Calls, str], list[tuple[Lease, int]]] = defaultdict(list)
        for member, (lease, slot, at) in list(self._begun.items()):
            if at > before:
                break
            starts[slot.host.calls, lease.run].append((lease, slot.number))
            del self._begun[member]
        for (calls, run), shown in starts.items():
            self._link.send(calls.start(run, shown), self._report)

    def _added(self, lease: Lease) -> None:
        if not self._count:
            self._oldest = time.monotonic()
        self._count += 1
        self.over(lease)

    def _report(self, reply: Reply) -> None:
        lost = read_members(reply) if reply else ()
        if lost:
            self._on_lost(lost)
