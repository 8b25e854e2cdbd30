"""What a worker has in hand: free slots, leased items that wait for one, and those whose files are still coming.

An item that said what it needs has its room from here on, until its slot is free again.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator

from ppss_queue.model import Lease
from ppss_queue.resources import Resources
from ppss_worker.hosts import Host, Slot
from ppss_worker.rooms import Rooms, Share


class Hand:
    """The lowest free slot gets the oldest item. An item for which no slot is free is held ahead."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._shares: dict[str, Share] = {}
        """Of items in hand that said what they need, by member."""
        self._in_use: dict[Slot, Share] = {}
        """Of items on slots, by slot."""
        self._slots: list[Slot] = []
        self._leases: deque[Lease] = deque()
        self._coming: dict[str, Lease] = {}
        """By member."""
        self._here_only: set[str] = set()
        """Members that need a slot of this machine."""
        self._doubted: set[str] = set()
        """Members that need another host than that on which they failed."""

    def __len__(self) -> int:
        """Items."""
        return len(self._leases) + len(self._coming)

    def __iter__(self) -> Iterator[Lease]:
        yield from self._leases
        yield from self._coming.values()

    @property
    def idle(self) -> int:
        """Slots for which there is no item."""
        return max(0, len(self._slots) - len(self))

    @property
    def ahead(self) -> int:
        """Items for which there is no slot yet."""
        return max(0, len(self) - len(self._slots))

    @property
    def usable(self) -> int:
        """Slots that can have items now or when those on them end."""
        return sum(host.slots for host in self._rooms.hosts if host.is_usable)

    @property
    def only_on(self) -> str | None:
        """The host of all slots; "": there are several; None: none has any."""
        usable = [host.name for host in self._rooms.hosts if host.is_usable]
        return None if not usable else usable[0] if len(usable) == 1 else ""

    def free(self, *slots: Slot) -> None:
        for slot in slots:
            heapq.heappush(self._slots, slot)

    def without(self, host: Host) -> list[Slot]:
        """Takes out the free slots of a host, which can't be used now."""
        gone = [slot for slot in self._slots if slot.host is host]
        self._slots = sorted(slot for slot in self._slots if slot.host is not host)
        return gone

    def vacate(self, slot: Slot) -> bool:
        """The item on it is over; whether that left room for others."""
        share = self._in_use.pop(slot, None)
        if share is not None:
            self._rooms.give_back(share)
        return share is not None

    def gpus(self, slot: Slot) -> tuple[str, ...]:
        """Those of the item on this slot."""
        share = self._in_use.get(slot)
        return share.gpus if share else ()

    def reserve(self, lease: Lease, needs: Resources) -> bool:
        """Takes room for an item, before it comes into the hand, where a slot waits for one, and not where it failed
        if it can be. False: there is none. Raises MachineFailed.
        """
        taken = Counter(share.host for share in self._shares.values())
        taken.subtract(slot.host for slot in self._slots)
        hosts = sorted(
            (host for host in self._rooms.hosts if host.is_usable),
            key=lambda host: (host.name == lease.failed_on, taken[host]),
        )
        share = self._rooms.take(lease.run, needs, hosts)
        if share is not None:
            self._shares[lease.member] = share
        return share is not None

    def take_free(self, count: int) -> list[Slot]:
        """Takes out the highest free slots of this machine, at most so many."""
        here = sorted(slot for slot in self._slots if slot.host.is_here)
        taken = here[-count:] if count > 0 else []
        self._slots = sorted(slot for slot in self._slots if slot not in taken)
        return taken

    def add(self, leases: Iterable[Lease], *, here_only: bool = False) -> None:
        """`here_only`: no other host can run them."""
        leases = tuple(leases)
        self._leases.extend(leases)
        if here_only:
            self._here_only.update(lease.member for lease in leases)
        if self._has_several_hosts:
            self._doubted.update(lease.member for lease in leases if lease.failed_on)

    def expect(self, leases: Iterable[Lease]) -> None:
        """Their files are on the way."""
        self._coming.update((lease.member, lease) for lease in leases)

    def arrived(self, lease: Lease) -> bool:
        """It can be begun now. False: it is not held any more."""
        if self._coming.pop(lease.member, None) is None:
            return False
        self._leases.append(lease)
        return True

    def deal(self) -> list[tuple[Lease, Slot]]:
        """Takes out all pairs of an item and a slot."""
        if self._here_only or self._doubted or (self._shares and self._has_several_hosts):
            dealt = self._deal_one_by_one()
        else:
            pairs = min(len(self._slots), len(self._leases))
            dealt = [(self._leases.popleft(), heapq.heappop(self._slots)) for _ in range(pairs)]
        if self._shares:
            self._in_use.update(
                (slot, self._shares.pop(lease.member))
                for lease, slot in dealt
                if lease.member in self._shares
            )
        return dealt

    def _deal_one_by_one(self) -> list[tuple[Lease, Slot]]:
        dealt = []
        for lease in list(self._leases):
            slot = self._slot_for(lease)
            if slot is not None:
                dealt.append((lease, slot))
                self._slots = sorted(other for other in self._slots if other != slot)
        for lease, _ in dealt:
            self._leases.remove(lease)
            self._here_only.discard(lease.member)
            self._doubted.discard(lease.member)
        return dealt

    @property
    def _has_several_hosts(self) -> bool:
        return len(self._rooms.hosts) > 1

    def _slot_for(self, lease: Lease) -> Slot | None:
        """Where its room is, or can be. Raises MachineFailed."""
        share = self._shares.get(lease.member)
        if share is None:
            return min((slot for slot in self._slots if self._suits(lease, slot.host)), default=None)
        for slot in sorted(self._slots, key=lambda slot: (slot.host is not share.host, slot)):
            if slot.host is share.host:
                return slot
            if self._suits(lease, slot.host):
                other = self._rooms.take(lease.run, share.needs, [slot.host])
                if other is not None:
                    self._rooms.give_back(share)
                    self._shares[lease.member] = other
                    return slot
        return None

    def _suits(self, lease: Lease, host: Host) -> bool:
        if lease.member in self._here_only and not host.is_here:
            return False
        others = (other for other in self._rooms.hosts if other is not host)
        return lease.failed_on != host.name or not any(other.is_usable for other in others)

    def give_up(self, run: str | None = None, *, keep: int = 0) -> list[Lease]:
        """Takes out the items of this run, or all, in order; of these, the first `keep` stay."""
        given = [lease for lease in self if run in (None, lease.run)][keep:]
        self.lose({lease.member for lease in given})
        return given

    def lose(self, members: Collection[str]) -> None:
        """These leases are someone else's."""
        self._leases = deque(lease for lease in self._leases if lease.member not in members)
        for member in members & self._coming.keys():
            del self._coming[member]
        self._here_only.difference_update(members)
        self._doubted.difference_update(members)
        for member in members & self._shares.keys():
            self._rooms.give_back(self._shares.pop(member))
