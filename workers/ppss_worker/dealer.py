"""The dealer: puts held items on free slots, and takes back slots that are free."""

from __future__ import annotations

from ppss_queue.calls import Calls
from ppss_queue.errors import BadInput, PpssError
from ppss_queue.model import Lease
from ppss_worker.attempts import Attempts
from ppss_worker.claims import Claims
from ppss_worker.hosts import Slot
from ppss_worker.intake import Intake
from ppss_worker.link import Link
from ppss_worker.outbox import Outbox
from ppss_worker.process import DirectoryMissing
from ppss_worker.runs import ActiveRuns


class Dealer:
    """Used by the worker's one thread."""

    def __init__(
        self,
        link: Link,
        calls: Calls,
        outbox: Outbox,
        runs: ActiveRuns,
        intake: Intake,
        claims: Claims,
        attempts: Attempts,
    ) -> None:
        self._link = link
        self._calls = calls
        self._outbox = outbox
        self._runs = runs
        self._intake = intake
        self._hand = intake.hand
        self._claims = claims
        self._attempts = attempts

    def deal(self) -> None:
        """Begins what can be. Its start is on its way to Redis before the command is spawned.

        Raises what no other item would survive either; what was not begun is handed back then.
        """
        while batch := self._hand.deal():
            try:
                self._link.tell(self._calls.begin(lease) for lease, slot in batch if slot.host.is_here)
                while batch:
                    self._begin(*batch[0])
                    del batch[0]
            except (PpssError, OSError):
                self._outbox.release([lease for lease, _ in batch])
                for _, slot in batch:
                    self.take_back(slot)
                raise

    def take_back(self, slot: Slot | None) -> None:
        """It is free; None: it was before."""
        if slot is not None:
            self._intake.free(slot)
            self._claims.item_ended()

    def _begin(self, lease: Lease, slot: Slot) -> None:
        try:
            begun = self._attempts.begin(lease, self._runs.get(lease.run), slot, self._hand.gpus(slot))
        except (BadInput, DirectoryMissing) as error:
            begun = False
            self._outbox.release([lease])
            self._intake.leave_alone(lease.run, error)
        if not begun:
            self.take_back(slot)
        elif slot.host.is_here:
            self._outbox.begun(lease, slot)
