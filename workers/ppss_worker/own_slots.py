"""The slots of the worker's own machine: in its hand while the machine can have items, else resting here."""

from __future__ import annotations

from pathlib import Path

from ppss_worker.hand import Hand
from ppss_worker.hosts import Host, Slot
from ppss_worker.slots import SlotNumbers


class OwnSlots:
    """Used by the worker's one thread. At first there are none."""

    def __init__(self, hand: Hand, directory: Path) -> None:
        """`directory`: of slot numbers, for all workers of this user on this machine."""
        self._hand = hand
        self._numbers = SlotNumbers(directory)
        self.host: Host | None = None
        """To be set before there are any."""
        self.count = 0
        """How many there are to be."""
        self._resized = self._paused = False
        self._resting: list[Slot] = []

    @property
    def is_usable(self) -> bool:
        return self.count > 0 and not self._paused

    def resize(self, count: int) -> None:
        """Takes more slot numbers, or gives some back: those in use when they are free. Raises MachineFailed."""
        self._resized = bool(self._numbers)
        self.count = count
        self._take_numbers(count - len(self._numbers))
        surplus = max(len(self._numbers) - count, 0)
        resting = sorted(self._resting)
        gone = resting[len(resting) - surplus :] if self._paused else self._hand.take_free(surplus)
        self._resting = [slot for slot in resting if slot not in gone]
        for slot in gone:
            self._numbers.give_back(slot.number)

    def pause(self, *, paused: bool) -> None:
        self._paused = paused
        if paused and self.host is not None:
            self._resting += self._hand.without(self.host)
        else:
            resting, self._resting = self._resting, []
            self._hand.free(*resting)

    def takes_back(self, slot: Slot) -> bool:
        """Whether it goes into the hand; else it rests, or is one too many."""
        if len(self._numbers) > self.count:
            self._numbers.give_back(slot.number)
            return False
        if self._resized and slot.number > self.count:  # a lower number may be free by now
            self._numbers.give_back(slot.number)
            self._take_numbers(1)
            return False
        if self._paused:
            self._resting.append(slot)
        return not self._paused

    def close(self) -> None:
        self._numbers.close()

    def _take_numbers(self, count: int) -> None:
        """Raises MachineFailed."""
        for number in self._numbers.take(count):
            assert self.host is not None
            slot = Slot(number, self.host)
            if self._paused:
                self._resting.append(slot)
            else:
                self._hand.free(slot)
