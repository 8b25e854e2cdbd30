"""Deliveries: what a command that succeeded wrote, on its way to its final names.

gather (for a node: to the master) -> reserve the names, which also asks whether the lease is still ours -> publish
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ppss_queue.calls import Calls
from ppss_queue.connection import Reply
from ppss_queue.errors import LeaseLost, PpssError, ServiceFailed
from ppss_queue.model import Lease, Outcome, seq_of_job
from ppss_queue.replies import read_members
from ppss_worker.link import Link
from ppss_worker.publishing import SCRATCH, OutputRefused
from ppss_worker.running import Running, Scratch

_TRIES = 3
"""To gather outputs whose scratch somebody removes meanwhile."""


@dataclass(slots=True)
class _Delivery:
    running: Running
    outcome: Outcome
    removed: int = 0
    """How often its scratch vanished on the master."""


class Deliveries:
    """Used by the worker's one thread."""

    def __init__(
        self, link: Link, calls: Calls, on_over: Callable[[Running, Outcome, PpssError | None], None]
    ) -> None:
        """`on_over` hears of each how it ended: None, or why nothing was published."""
        self._link = link
        self._calls = calls
        self._on_over = on_over
        self._under_way: dict[str, _Delivery] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def leases(self) -> Iterator[Lease]:
        for delivery in self._under_way.values():
            yield delivery.running.lease

    def lose(self, members: Collection[str]) -> None:
        """These leases are someone else's: what of them is not published yet never will be."""
        for member in members & self._under_way.keys():
            self._under_way[member].running.stopped = "lost"
            self._over(member, LeaseLost("the item was given to another attempt"))  # which discards them

    def give_up(self) -> None:
        """Hands back all that is still under way: the master can't be reached."""
        for member in list(self._under_way):
            self._over(member, ServiceFailed("its outputs could not be brought home."))

    def deliver(self, running: Running, outcome: Outcome) -> None:
        if running.scratch is None:
            self._on_over(running, outcome, None)
            return
        member = running.lease.member
        self._under_way[member] = _Delivery(running, outcome)
        self._gather(member, running.scratch)

    def _gather(self, member: str, scratch: Scratch) -> None:
        scratch.gather(partial(self._gathered, member, scratch), partial(self._failed, member))

    def _gathered(self, member: str, scratch: Scratch, names: Sequence[str], round: int) -> None:
        found = self._under_way.get(member)
        if found is not None:
            call = self._calls.reserve(found.running.lease, names)
            self._link.send(call, partial(self._reserved, member, scratch, round))

    def _reserved(self, member: str, scratch: Scratch, round: int, reply: Reply) -> None:
        if member not in self._under_way:
            return
        running = self._under_way[member].running
        if self._is_ours(member, reply) and isinstance(reply, list):
            parts = read_members(reply)
            taken = {
                name: (seq_of_job(job), item)
                for name, job, item in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
            }
            scratch.publish(
                round,
                taken,
                lambda: running.stopped != "lost",
                partial(self._over, member, None),
                partial(self._failed, member),
            )

    def _failed(self, member: str, error: PpssError) -> None:
        found = self._under_way.get(member)
        if isinstance(error, LeaseLost) and found is not None and found.running.stopped != "lost":
            # Its scratch vanished. Whether a newer attempt did that is for Redis to say.
            found.removed += 1
            self._link.send(self._calls.reserve(found.running.lease, ()), partial(self._removed, member))
        else:
            self._over(member, error)

    def _removed(self, member: str, reply: Reply) -> None:
        """Somebody else removed the scratch, if the lease is still ours: the command need not run again for that."""
        if member not in self._under_way or not self._is_ours(member, reply):
            return
        delivery = self._under_way[member]
        scratch = delivery.running.scratch
        if delivery.removed < _TRIES and scratch is not None:
            self._gather(member, scratch)
        else:
            reason = f"lost its outputs {_TRIES} times on their way home: something removes {SCRATCH!r} there"
            self._over(member, OutputRefused(reason))

    def _is_ours(self, member: str, reply: Reply) -> bool:
        """Whether `reserve` says so; the delivery is over if not."""
        if reply is None:
            self._over(member, ServiceFailed("Redis refused to reserve the names of outputs."))
        elif self._under_way[member].running.stopped == "lost" or not isinstance(reply, list):
            self._over(member, LeaseLost("the item was given to another attempt"))
        else:
            return True
        return False

    def _over(self, member: str, error: PpssError | None) -> None:
        found = self._under_way.pop(member, None)
        if found is not None:
            if found.running.stopped == "lost" and error is not None:
                error = LeaseLost("the item was given to another attempt")
            self._on_over(found.running, found.outcome, error)
