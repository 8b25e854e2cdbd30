"""Hosts of a worker: this machine, and agentless nodes (agentless/), each with its slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ppss_queue.calls import Calls
from ppss_queue.command import ItemValues
from ppss_queue.model import Lease
from ppss_worker.launch import Launcher
from ppss_worker.process import Child
from ppss_worker.room import Room
from ppss_worker.running import Workplace
from ppss_worker.runs import ActiveRun

if TYPE_CHECKING:
    from ppss_worker.own_slots import OwnSlots


class Host(Protocol):
    """Where commands run. Used by the worker's one thread."""

    @property
    def name(self) -> str:
        """PPSS_NODE"""

    @property
    def calls(self) -> Calls:
        """In the name of the worker that Redis knows there."""

    @property
    def slots(self) -> int:
        """How many there are to be, in use or not."""

    @property
    def is_usable(self) -> bool:
        """Whether it can have items now."""

    @property
    def room(self) -> Room | None:
        """For items that say what they need; None: what it has is not known."""

    @property
    def is_awaited(self) -> bool:
        """Whether it may yet say for the first time what it has."""

    @property
    def is_here(self) -> bool:
        """Whether a command runs from `start` on; else `Attempts.launch` is called when it is about to."""

    def workplace(self, lease: Lease, run: ActiveRun) -> Workplace:
        """Where this item is begun. Raises ItemRefused, BadInput, MachineFailed."""

    def start(
        self, lease: Lease, run: ActiveRun, values: ItemValues, own: Mapping[str, str], directory: str
    ) -> Child:
        """Raises SpawnFailed, DirectoryMissing, MachineFailed."""

    def finish(self, child: Child) -> None:
        """The attempt is over: its output is complete in the capture files after this, its `began` is right."""

    def release(self, child: Child) -> None:
        """Its output was read."""

    def takes_back(self, slot: Slot) -> bool:
        """Whether a slot that is free can be used again now; else the host keeps it until it can."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One item at a time on a host. The lowest is used first, so hosts get the same share."""

    number: int
    """`{%}` and PPSS_SLOT: from 1, no two alike on a host."""
    host: Host

    def __lt__(self, other: Slot) -> bool:
        return self.number < other.number


class ThisHost:
    """The machine on which the worker runs."""

    is_here = True
    is_awaited = False

    def __init__(
        self,
        name: str,
        calls: Calls,
        room: Room,
        launcher: Launcher,
        workplace: Callable[[Lease, ActiveRun], Workplace],
        own_slots: OwnSlots,
    ) -> None:
        self._own_slots = own_slots
        self.name = name
        self.calls = calls
        self.room: Room | None = room
        self.workplace = workplace
        self.start = launcher.start
        self.finish = launcher.finish
        self.release = launcher.release

    @property
    def slots(self) -> int:
        return self._own_slots.count

    @property
    def is_usable(self) -> bool:
        return self._own_slots.is_usable

    def takes_back(self, slot: Slot) -> bool:
        return self._own_slots.takes_back(slot)
