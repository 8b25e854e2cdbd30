"""What somebody wishes of this worker's node, and that the worker does it."""

from __future__ import annotations

from collections.abc import Callable

from ppss_queue.calls import QUARANTINED, Wishes
from ppss_queue.errors import BadInput
from ppss_queue.quoting import quoted
from ppss_queue.units import plural, printable
from ppss_worker.claims import Claims
from ppss_worker.intake import Intake
from ppss_worker.leases import LeaseKeeper
from ppss_worker.settings import Settings, Stop
from ppss_worker.slots import allow_files


class Orders:
    """Used by the worker's one thread."""

    def __init__(
        self,
        settings: Settings,
        intake: Intake,
        claims: Claims,
        keeper: LeaseKeeper,
        stop: Callable[[Stop], None],
        warn: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._claims = claims
        self._keeper = keeper
        self._stop = stop
        self._warn = warn
        self._born = 0.0
        self._doubt = ""
        self._paused = ""
        self._slots = settings.slots
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
        slots = self._settings.slots if wishes.slots is None else wishes.slots
        if slots != self._slots:
            self._take_slots(slots)
        if wishes.stop_at > max(self._born, self._stopped_at):
            self._stopped_at = wishes.stop_at
            what = "handing back what runs" if wishes.stop_now else "finishing what runs"
            self._warn(f"node {self._settings.node} was told to stop: {what}.")
            self._stop(Stop.NOW if wishes.stop_now else Stop.DRAIN)

    def _pause(self, reason: str) -> None:
        changed = bool(reason) != bool(self._paused)
        self._paused = reason
        node = self._settings.node
        why = printable(reason)
        if reason.startswith(QUARANTINED):
            self._warn(f"node {node} is {why}. Bring it back: ppss nodes resume {quoted(node)}")
        elif reason:
            self._warn(f"node {node} is paused ({why}). Go on: ppss nodes resume {quoted(node)}")
        else:
            self._warn(f"node {node} was resumed.")
        if changed:
            self._intake.pause_node(paused=bool(reason))
            self._claims.pause(paused=bool(reason))

    def _take_slots(self, slots: int) -> None:
        self._slots = slots
        try:
            allow_files(slots)
        except BadInput as error:
            self._warn(f"node {self._settings.node} can't have so many slots: {error}")
            return
        self._intake.resize(slots)
        self._claims.wake()
        self._keeper.beat()
        self._warn(f"node {self._settings.node} was told to use {plural(slots, 'slot')} here.")
