"""The slots of an agentless node: in the worker's hand while the node can have items, else resting here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ppss_worker.hand import Hand
from ppss_worker.hosts import Host, Slot

DISTRUST_SECONDS = 60.0
"""For which a node gets no items that did not take their files."""


class NodeSlots:
    """Used by the worker's one thread. At first there are none."""

    def __init__(self, host: Host, hand: Hand, wake: Callable[[], None]) -> None:
        """`wake` is called when there is a slot for an item."""
        self._host = host
        self._hand = hand
        self._wake = wake
        self.count = 0
        """How many there are to be: there may be more until items end."""
        self._numbers: set[int] = set()
        """Of all that there are."""
        self._resting: list[Slot] = []
        self._connected = self._paused = self._closed = False
        self._trusted_at = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether the node can have items now."""
        at_work = self._connected and not self._paused and not self._closed
        return at_work and time.monotonic() >= self._trusted_at

    def resize(self, count: int) -> None:
        self.count = count
        self._rest()
        self._numbers -= {slot.number for slot in self._resting if slot.number > count}
        self._resting = [slot for slot in self._resting if slot.number <= count]
        new = set(range(1, count + 1)) - self._numbers
        self._numbers |= new
        self._resting += [Slot(number, self._host) for number in sorted(new)]
        self._use_or_rest()

    def connect(self, *, connected: bool) -> None:
        self._connected = connected
        self._use_or_rest()

    def pause(self, *, paused: bool) -> None:
        self._paused = paused
        self._use_or_rest()

    def close(self) -> None:
        """For good."""
        self._closed = True
        self._use_or_rest()

    def distrust(self) -> bool:
        """For a while; whether it was trusted until now."""
        before, self._trusted_at = self._trusted_at, time.monotonic() + DISTRUST_SECONDS
        self._use_or_rest()
        return time.monotonic() >= before

    def takes_back(self, slot: Slot) -> bool:
        """Whether it goes into the hand; else it rests, or is one too many."""
        if slot.number > self.count:
            self._numbers.discard(slot.number)
            return False
        if not self.is_usable:
            self._resting.append(slot)
        return self.is_usable

    def do_if_due(self, now: float) -> float:
        """Uses them again when the node is to be trusted; returns the seconds until then."""
        if now < self._trusted_at:
            return self._trusted_at - now
        self._use_or_rest()
        return math.inf

    def _use_or_rest(self) -> None:
        if not self.is_usable:
            self._rest()
        elif self._resting:
            resting, self._resting = self._resting, []
            self._hand.free(*resting)
            self._wake()

    def _rest(self) -> None:
        self._resting += self._hand.without(self._host)
