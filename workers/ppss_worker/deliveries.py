"""Deliveries: what a command that succeeded wrote, on its way to its final names.

gather (for a node: to the master) -> reserve the names, which also asks whether the lease is still ours -> publish
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

from ppss_queue.calls import Calls
from ppss_queue.connection import Reply
from ppss_queue.errors import LeaseLost, PpssError, ServiceFailed
from ppss_queue.model import Lease, Outcome, seq_of_job
from ppss_queue.replies import read_members
from ppss_worker.link import Link
from ppss_worker.running import Running, Scratch


class Deliveries:
    """Used by the worker's one thread."""

    def __init__(
        self, link: Link, calls: Calls, on_over: Callable[[Running, Outcome, PpssError | None], None]
    ) -> None:
        """`on_over` hears of each how it ended: None, or why nothing was published."""
        self._link = link
        self._calls = calls
        self._on_over = on_over
        self._under_way: dict[str, tuple[Running, Outcome]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def leases(self) -> Iterator[Lease]:
        for running, _ in self._under_way.values():
            yield running.lease

    def lose(self, members: Collection[str]) -> None:
        """These leases are someone else's: what of them is not published yet never will be."""
        for member in members & self._under_way.keys():
            running, _ = self._under_way[member]
            running.stopped = "lost"
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
        self._under_way[member] = (running, outcome)
        running.scratch.gather(
            partial(self._gathered, member, running.scratch), partial(self._failed, member)
        )

    def _gathered(self, member: str, scratch: Scratch, names: Sequence[str], round: int) -> None:
        found = self._under_way.get(member)
        if found is not None:
            call = self._calls.reserve(found[0].lease, names)
            self._link.send(call, partial(self._reserved, member, scratch, round))

    def _reserved(self, member: str, scratch: Scratch, round: int, reply: Reply) -> None:
        if member not in self._under_way:
            return
        running, _ = self._under_way[member]
        if reply is None:
            self._over(member, ServiceFailed("Redis refused to reserve the names of outputs."))
        elif running.stopped == "lost" or not isinstance(reply, list):
            self._over(member, LeaseLost("the item was given to another attempt"))
        else:
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
        if isinstance(error, LeaseLost) and found is not None and found[0].stopped != "lost":
            # Redis has not said so: somebody removed the scratch. To release a lease that is lost does no harm.
            error = ServiceFailed("the scratch of its outputs is gone.")
        self._over(member, error)

    def _over(self, member: str, error: PpssError | None) -> None:
        found = self._under_way.pop(member, None)
        if found is not None:
            running, outcome = found
            lost = running.stopped == "lost" and error is not None
            self._on_over(
                running, outcome, LeaseLost("the item was given to another attempt") if lost else error
            )
