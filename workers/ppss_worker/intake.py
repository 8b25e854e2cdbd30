"""The intake: which items a worker takes, how many, and what becomes of those that it can't begin.

claim -> (the files of staged items come) -> the hand -> a slot, or back to the queue
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from itertools import groupby
from typing import TYPE_CHECKING

from ppss_queue import __version__
from ppss_queue.calls import Claimed
from ppss_queue.errors import BadInput, PpssError, UnknownRun
from ppss_queue.model import Lease
from ppss_queue.resources import Resources
from ppss_worker.claims import LOOK_AGAIN_SECONDS, Claims
from ppss_worker.hand import Hand
from ppss_worker.hosts import Slot
from ppss_worker.leases import LeaseKeeper
from ppss_worker.outbox import Outbox
from ppss_worker.own_slots import OwnSlots
from ppss_worker.process import DirectoryMissing
from ppss_worker.rooms import Rooms
from ppss_worker.running import ItemRefused, Workplace
from ppss_worker.runs import ActiveRun, ActiveRuns
from ppss_worker.settings import Settings
from ppss_worker.workplaces import workplace_here

if TYPE_CHECKING:
    from ppss_worker.stage import Stage

HOLD_SECONDS = 2.0
"""Items are held for busy slots no longer than this."""
LOCKS_SECONDS = 1.0
"""Between looks at GPUs that another worker of this machine holds."""


class Intake:
    """Used by the worker's one thread."""

    def __init__(
        self,
        settings: Settings,
        runs: ActiveRuns,
        stage: Stage | None,
        outbox: Outbox,
        keeper: LeaseKeeper,
        rooms: Rooms,
        warn: Callable[[str], None],
        on_nothing_to_do: Callable[[Exception], None],
    ) -> None:
        """`on_nothing_to_do` hears why none of the runs can be run here that this worker was made for."""
        self._settings = settings
        self._runs = runs
        self._stage = stage
        self._outbox = outbox
        self._keeper = keeper
        self._rooms = rooms
        self._warn = warn
        self._on_nothing_to_do = on_nothing_to_do
        self._warned: set[str] = set()
        self._troubles: dict[str, str] = {}
        self._paused: set[str] = set()
        """What was claimed just before the pause is handed back when it comes."""
        self._closed = False
        self._ask_again = False
        """The last claim told of something that makes another one worth it."""
        self._gpus_elsewhere = 0
        """At the last look."""
        self.hand = Hand(rooms)
        self.own_slots = OwnSlots(self.hand, settings.state_directory / "slots")

    def claim(
        self, claims: Claims, now: float, *, running: int, stalled_seconds: float, each: float
    ) -> float:
        """Sends a claim if there is reason to; returns the seconds until there may be one.

        `running`: attempts that are not over; `stalled_seconds`: how long all of them have been running; `each`:
        seconds that attempts take. Raises ConnectFailed.
        """
        if self._closed or (self._stage is not None and self._stage.is_short):
            return LOOK_AGAIN_SECONDS
        prefetch = max(claims.prefetch(self.hand.usable, each), self._staged_ahead)
        if stalled_seconds > HOLD_SECONDS:  # what runs takes longer than thought: others may be idle
            prefetch = 0 if claims.short else self._staged_ahead
            self.hand_back(keep=prefetch)
        if (
            not running and self._stage is None and self.hand.ahead
        ):  # the node that they were for can't have them now
            prefetch = 0
            self.hand_back(keep=len(self.hand) - self.hand.ahead)
        elsewhere = self._rooms.gpus_elsewhere
        if self._ask_again or elsewhere < self._gpus_elsewhere:
            claims.wake()
        self._ask_again, self._gpus_elsewhere = False, elsewhere
        wait = claims.send_if_wanted(
            now,
            idle=self.hand.idle,
            ahead=self.hand.ahead,
            prefetch=prefetch,
            nothing_held=not running and not self.hand,
            only_on=self.hand.only_on,
        )
        if self.hand and stalled_seconds <= HOLD_SECONDS:
            wait = min(wait, HOLD_SECONDS - stalled_seconds + 0.01)
        return min(wait, LOCKS_SECONDS) if elsewhere else wait

    def claimed(self, claimed: Claimed) -> None:
        """Keeps what a claim gave. Raises MachineFailed, Unavailable; all that was not kept is handed back then."""
        if claimed.newer_run:
            self.warn_once(
                f"run {claimed.newer_run} was made by a newer PPSS; this is {__version__}. Upgrade this one."
            )
        if claimed.suspended:
            self.warn_once("RQ is suspended, so nothing is handed out. Go on: rq resume")
        if claimed.waiting or self._rooms.kept_for:
            self._wait(claimed.waiting)
        batches = [(run, list(group)) for run, group in groupby(claimed.leases, lambda lease: lease.run)]
        while batches:
            run, leases = batches.pop(0)
            try:
                self._take(run, leases, claimed.visibility_seconds[run])
            except PpssError:
                for _, others in batches:
                    self._outbox.release(others)
                raise

    def hear_stage(self) -> None:
        """Files have come, or can't, or outputs are at home."""
        assert self._stage is not None
        for fetch in self._stage.news():
            lease, error = fetch.lease, fetch.error
            if error is None or isinstance(error, ItemRefused):
                self.hand.arrived(lease)
                continue
            self.hand.lose({lease.member})
            self._outbox.release([lease])
            if not isinstance(error, UnknownRun):
                self.leave_alone(lease.run, error)

    def workplace(self, lease: Lease, run: ActiveRun) -> Workplace:
        """Where this item is begun. Raises ItemRefused, BadInput, MachineFailed."""
        if run.staged and self._stage is not None:
            return self._stage.workplace(lease, run)
        return workplace_here(lease, run)

    def pause(self, run: str, *, paused: bool) -> None:
        """Hands back what was claimed of a run that hands nothing out any more."""
        if paused:
            self._paused.add(run)
            self.hand_back(run)
        else:
            self._paused.discard(run)

    def free(self, slot: Slot) -> None:
        """Nothing runs on it any more."""
        self._ask_again = self.hand.vacate(slot) or self._ask_again
        if slot.host.takes_back(slot):
            self.hand.free(slot)

    def pause_own_slots(self, *, paused: bool) -> None:
        """Hands back what is not begun; what a claim gives that was on its way is for other hosts, or goes back too."""
        self.own_slots.pause(paused=paused)
        if paused:
            self.hand_back()

    def lose(self, members: Collection[str]) -> None:
        """These leases are someone else's."""
        self.hand.lose(members)
        if self._stage is not None:
            self._stage.drop(members)

    def close(self) -> None:
        """Takes nothing more, and hands back what is not begun."""
        self._closed = True
        self.hand_back()

    def hand_back(self, run: str | None = None, *, keep: int = 0) -> None:
        """Releases what is not begun, of one run or all but the first `keep`."""
        given = self.hand.give_up(run, keep=keep)
        if self._stage is not None:
            self._stage.drop({lease.member for lease in given})
        self._outbox.release(given)

    def leave_alone(self, run: str, error: PpssError) -> None:
        """A run that can't be run on this node is left to others, and ends no worker that has more to do."""
        now = time.monotonic()
        first = self._runs.leave_alone(run, now)
        self._troubles[run] = f"run {run}: {error}"
        self._keeper.beat()
        self.hand_back(run)
        served = self._settings.runs
        if served and set(served) <= set(self._runs.left_alone(now)):
            self._on_nothing_to_do(error)
        elif first:
            self._warn(f"run {run} can't be run here and is left to other nodes: {error}")

    @property
    def troubles(self) -> Mapping[str, str]:
        """For a heartbeat: runs left alone now, and why; called in its thread."""
        alone = self._runs.left_alone(time.monotonic())
        return {"alone": ",".join(alone), "trouble": self._troubles[alone[-1]] if alone else ""}

    def warn_once(self, sentence: str) -> None:
        """Says it, unless it was said before."""
        if sentence not in self._warned:
            self._warned.add(sentence)
            self._warn(sentence)

    def _wait(self, waiting: Mapping[str, Resources]) -> None:
        """There is no room for items of these runs: for some there will be, for others there never is."""
        kept_for = self._rooms.kept_for
        for run, needs in waiting.items():
            if self._rooms.fits(needs):
                continue
            shortage = f"each item needs {self._rooms.shortage(needs)}"
            if self._settings.has_company:
                self.warn_once(f"{shortage}: run {run} is left to the other nodes.")
            else:
                self.leave_alone(run, BadInput(shortage))
                self._ask_again = True
        self._rooms.wait({run: needs for run, needs in waiting.items() if self._rooms.fits(needs)})
        if self._rooms.gpus_elsewhere:
            gpus = max((room.gpus for room in self._rooms.free), default=0)
            for run, needs in waiting.items():
                if needs.gpus > gpus:
                    self.warn_once(f"run {run} waits for GPUs that another worker of this machine uses.")
        if self._rooms.kept_for != kept_for:
            self._ask_again = True

    def _with_room(self, leases: list[Lease], needs: Resources) -> list[Lease]:
        """Those for which there is room; another worker of this machine may have been quicker to take a GPU."""
        kept: list[Lease] = []
        for lease in leases:
            if self.hand.reserve(lease, needs):
                kept.append(lease)
            else:
                self._outbox.release([lease])
        return kept

    def _take(self, run: str, leases: list[Lease], visibility_seconds: float) -> None:
        """Keeps what was claimed, or hands it back when it can't be run here."""
        try:
            if self._closed or not self.hand.usable or run in self._paused:
                self._outbox.release(leases)
                return
            active = self._runs.get(run)
            here_only = bool(self._settings.nodes) and active.function is not None
            if here_only and not self.own_slots.count:
                raise BadInput("its items are given to a Python function, which takes PPSS on the node.")
        except UnknownRun:  # cancelled and purged meanwhile
            self._outbox.release(leases)
        except (BadInput, DirectoryMissing) as error:
            self._outbox.release(leases)
            self.leave_alone(run, error)
        except PpssError:
            self._outbox.release(leases)
            raise
        else:
            if active.spec.needs:
                leases = self._with_room(leases, active.spec.needs)
            self._keeper.hold(run, {lease.member for lease in leases}, visibility_seconds)
            if self._stage is not None and active.staged:
                self.hand.expect(leases)
                self._stage.fetch(leases, active)
            else:
                self.hand.add(leases, here_only=here_only)

    @property
    def _staged_ahead(self) -> int:
        """Items whose files are to be here before there is a slot for them."""
        if self._stage is None or self._settings.stage is None or not self._runs.any_staged:
            return 0
        wanted = self._settings.stage.ahead
        return self.own_slots.count if wanted is None else wanted
