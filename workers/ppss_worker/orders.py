"""What somebody wishes of a node on which this worker runs items, and that the worker does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ppss_queue.calls import QUARANTINED, Wishes
from ppss_queue.errors import BadInput
from ppss_queue.quoting import quoted
from ppss_queue.units import plural, printable
from ppss_worker.claims import Claims
from ppss_worker.intake import Intake
from ppss_worker.leases import LeaseKeeper
from ppss_worker.settings import Stop
from ppss_worker.slots import allow_files


class Steered(Protocol):
    """A node that can be told something."""

    def pause(self, *, paused: bool) -> None:
        """Begins nothing more there. Raises ConnectFailed."""

    def resize(self, slots: int) -> None:
        """Fewer: as items end. Raises BadInput where there can't be so many, MachineFailed."""

    def stop(self, how: Stop) -> None:
        """Ends the work there."""


class ThisNode:
    """The slots of the worker's own machine; to be stopped, all that the worker works for."""

    def __init__(
        self,
        intake: Intake,
        claims: Claims,
        keeper: LeaseKeeper,
        stop: Callable[[Stop], None],
        *,
        is_alone: bool,
    ) -> None:
        """`is_alone`: the worker has no other nodes."""
        self._intake = intake
        self._claims = claims
        self._keeper = keeper
        self.stop = stop
        self._is_alone = is_alone

    def pause(self, *, paused: bool) -> None:
        self._intake.pause_own_slots(paused=paused)
        if self._is_alone:
            self._claims.pause(paused=paused)
        self._claims.wake()

    def resize(self, slots: int) -> None:
        allow_files(slots)
        self._intake.own_slots.resize(slots)
        self._claims.wake()
        self._keeper.beat()


class Orders:
    """Used by the worker's one thread."""

    def __init__(self, node: str, slots: int, steered: Steered, warn: Callable[[str], None]) -> None:
        """`slots`: as it was started with."""
        self._node = node
        self._steered = steered
        self._warn = warn
        self._born = 0.0
        self._doubt = ""
        self._paused = ""
        self._slots = self._slots_at_start = slots
        self._stopped_at = 0.0

    def obey(self, wishes: Wishes) -> None:
        """Does what is new of it. The first wishes are told before any work. Raises ConnectFailed, MachineFailed."""
        self._born = self._born or wishes.at
        if wishes.doubt != self._doubt:
            self._doubt = wishes.doubt
            if wishes.doubt:
                self._warn(f"{printable(wishes.doubt)}, so it goes on.")
        if wishes.paused != self._paused:
            self._pause(wishes.paused)
        slots = self._slots_at_start if wishes.slots is None else wishes.slots
        if slots != self._slots:
            self._take_slots(slots)
        if wishes.stop_at > max(self._born, self._stopped_at):
            self._stopped_at = wishes.stop_at
            what = "handing back what runs" if wishes.stop_now else "finishing what runs"
            self._warn(f"node {self._node} was told to stop: {what}.")
            self._steered.stop(Stop.NOW if wishes.stop_now else Stop.DRAIN)

    def _pause(self, reason: str) -> None:
        changed = bool(reason) != bool(self._paused)
        self._paused = reason
        node = self._node
        why = printable(reason)
        if reason.startswith(QUARANTINED):
            self._warn(f"node {node} is {why}. Bring it back: ppss nodes resume {quoted(node)}")
        elif reason:
            self._warn(f"node {node} is paused ({why}). Go on: ppss nodes resume {quoted(node)}")
        else:
            self._warn(f"node {node} was resumed.")
        if changed:
            self._steered.pause(paused=bool(reason))

    def _take_slots(self, slots: int) -> None:
        self._slots = slots
        try:
            self._steered.resize(slots)
        except BadInput as error:
            self._warn(f"node {self._node} can't have so many slots: {error}")
            return
        self._warn(f"node {self._node} was told to use {plural(slots, 'slot')} here.")
