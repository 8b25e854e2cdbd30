"""Second opinions: an item that failed, perhaps for its node's fault, is tried on another node.

`doubt.lua` decides; what this worker knows of successes and failures on its hosts it is told. Nobody is asked where
there is no other node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ppss_queue.calls import Calls
from ppss_queue.connection import Reply
from ppss_queue.model import Lease, Outcome
from ppss_worker.link import Link
from ppss_worker.running import Running

NO_PROGRAM = (126, 127)


@dataclass(slots=True)
class _Record:
    """What became of a run's items on one host."""

    proven: bool = False
    """One succeeded."""
    in_a_row: int = 0
    """Failures since then."""


class Opinions:
    """Used by the worker's one thread."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._records: dict[tuple[Calls, str], _Record] = defaultdict(_Record)
        """By host and run."""
        self._under_way: dict[str, Lease] = {}
        self.others = False
        """Whether there are other nodes, as the last claim was told."""

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def leases(self) -> Iterator[Lease]:
        """Of items whose failure nobody has judged yet."""
        yield from self._under_way.values()

    def succeeded(self, running: Running) -> None:
        record = self._records[running.slot.host.calls, running.run.id]
        record.proven, record.in_a_row = True, 0

    def failed(
        self, running: Running, outcome: Outcome, delay: float | None, on_answer: Callable[[bool], None]
    ) -> bool:
        """Asks if there is reason to; `on_answer` hears whether the item went to another node. False: not asked.

        `delay`: seconds until the next attempt, or None.
        """
        calls = running.slot.host.calls
        record = self._records[calls, running.run.id]
        record.in_a_row += 1
        to_blame = outcome.exit_code in NO_PROGRAM or not record.proven or record.in_a_row >= 3
        # The process of a function is needed for the next item, before an answer could come.
        if not self.others or not to_blame or running.run.function is not None:
            return False
        member = running.lease.member
        self._under_way[member] = running.lease

        def answered(reply: Reply) -> None:
            del self._under_way[member]
            on_answer(reply == 1)

        call = calls.doubt(running.lease, outcome, delay, in_a_row=record.in_a_row, proven=record.proven)
        self._link.send(call, answered)
        return True
