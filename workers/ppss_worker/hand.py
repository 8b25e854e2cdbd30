"""What a worker has in hand: free slots, and leased items that wait for one."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Iterator

from ppss_queue.model import Lease


class Hand:
    """The lowest free slot gets the oldest item. An item for which no slot is free is held ahead."""

    def __init__(self) -> None:
        self._slots: list[int] = []
        self._leases: deque[Lease] = deque()

    def __len__(self) -> int:
        """Items."""
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases)

    @property
    def idle(self) -> int:
        """Slots for which there is no item."""
        return max(0, len(self._slots) - len(self._leases))

    @property
    def ahead(self) -> int:
        """Items for which there is no slot yet."""
        return max(0, len(self._leases) - len(self._slots))

    def free(self, *slots: int) -> None:
        for slot in slots:
            heapq.heappush(self._slots, slot)

    def add(self, leases: Iterable[Lease]) -> None:
        self._leases.extend(leases)

    def deal(self) -> list[tuple[Lease, int]]:
        """Takes out all pairs of an item and a slot."""
        pairs = min(len(self._slots), len(self._leases))
        return [(self._leases.popleft(), heapq.heappop(self._slots)) for _ in range(pairs)]

    def give_up(self, run: str | None = None) -> list[Lease]:
        """Takes out the items of this run, or all, in order."""
        given = [lease for lease in self._leases if run in (None, lease.run)]
        self._leases = deque(lease for lease in self._leases if run not in (None, lease.run))
        return given

    def lose(self, members: Collection[str]) -> None:
        """These leases are someone else's."""
        self._leases = deque(lease for lease in self._leases if lease.member not in members)
