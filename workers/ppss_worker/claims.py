"""When a worker asks for items, and how many. It never polls: it asks when there is reason to.

- A slot is free, or less than half of what is held ahead is left: claim.
- The last claim gave less than was wanted: claim again only for a free slot.
- It did not even fill the free slots: listen for changes first, claim once more, then wait for a change or for
  the moment at which a lease expires or a retry comes due.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence

from ppss_queue.calls import Calls, Claimed, read_claim
from ppss_queue.changes import ChangeListener
from ppss_queue.connection import Connection, Reply
from ppss_queue.keys import Keys
from ppss_worker.link import Link
from ppss_worker.rooms import Rooms

PREFETCH_MAX = 256
"""Items held beyond the running ones; at 80 ms round trip more gained nothing."""
PREFETCH_SECONDS = 0.05
"""Work held ahead, on top of four round trips of it: a stall of the server of this length costs nothing."""
LOOK_AGAIN_SECONDS = 10.0
"""An idle worker looks this often without being woken: a lease taken after its last look may have expired."""


class Claims:
    """The claims of one worker. Used by its one thread."""

    def __init__(
        self,
        connection: Connection,
        link: Link,
        calls: Calls,
        keys: Keys,
        rooms: Rooms,
        *,
        runs: Sequence[str],
        has_command: bool,
        left_alone: Callable[[float], Sequence[str]],
        before_claim: Callable[[], None],
        on_claimed: Callable[[Claimed], None],
        on_changes: Callable[[Collection[str]], None],
        on_unheard: Callable[[], None],
    ) -> None:
        """`connection` is that of the link. `on_changes`: somebody changed the items of these runs;
        `on_unheard`: somebody may have, while nobody listened.

        `left_alone`: runs not to claim from, at a time of time.monotonic().

        `before_claim` sends the outcomes that wait: a run that one of them halts or ends gives nothing out then.
        """
        self._link = link
        self._calls = calls
        self._rooms = rooms
        self._lists = tuple(key.encode() for key in (keys.queue(""), keys.registry("scheduled", "")))
        self._runs = tuple(runs)
        self._has_command = has_command
        self._left_alone = left_alone
        self._before_claim = before_claim
        self._on_claimed = on_claimed
        self._on_changes = on_changes
        self._on_unheard = on_unheard
        self._listener = self._busy = ChangeListener(connection, _watched(keys, runs))
        self._quiet = ChangeListener(connection, [keys.wake])
        self._listening = False
        self._woken = True
        self._asked_since_end = True
        self._first_at = self._look_at = 0.0
        self.in_flight = False
        self._short = False
        self._dry = False
        self._open_runs = 1
        self._round_trip_seconds = 0.0

    def start(self, delay_seconds: float) -> None:
        """Listens; the first claim may be sent after the delay. Raises ConnectFailed, ServiceFailed."""
        self._first_at = time.monotonic() + delay_seconds
        self.reconnected()

    def wake(self) -> None:
        """There may be something to claim."""
        self._woken = True

    def pause(self, *, paused: bool) -> None:
        """Gets nothing while the node is paused: only the ends of runs are listened for. Raises ConnectFailed."""
        before, self._listener = self._listener, self._quiet if paused else self._busy
        self._listening = False
        self._woken = True
        before.off()

    def item_ended(self) -> None:
        """One of the items held here has ended, so a run may be over."""
        self._asked_since_end = False

    @property
    def nothing_left(self) -> bool:
        """The last claim found no open run."""
        return self._dry and not self.in_flight and not self._open_runs

    @property
    def short(self) -> bool:
        """The last claim gave less than was wanted: there was no more."""
        return self._short

    def prefetch(self, slots: int, seconds_each: float) -> int:
        """Items to hold beyond those that run: enough to bridge round trips, none of long items."""
        if not seconds_each:
            return 0
        ahead_seconds = 4 * self._round_trip_seconds + PREFETCH_SECONDS
        return min(PREFETCH_MAX, int(slots * ahead_seconds / seconds_each))

    def send_if_wanted(
        self, now: float, *, idle: int, ahead: int, prefetch: int, nothing_held: bool, only_on: str | None
    ) -> float:
        """Queues a claim if there is reason to; returns the seconds until there may be one.

        `idle`: slots without an item; `ahead`: items held for no slot yet; `nothing_held`: nor does one run;
        `only_on`: see `Calls.claim`.
        Raises ConnectFailed.
        """
        want = idle + prefetch - ahead
        if now < self._first_at:
            return self._first_at - now
        has_enough = want <= 0 or (not idle and (self._short or ahead > prefetch // 2))
        # Who holds nothing asks at least whether the runs are over: there may be no slot for long.
        if self.in_flight or (has_enough and not nothing_held):
            return LOOK_AGAIN_SECONDS
        if self._dry:
            if not self._listening:
                self._listener.on()
                self._listening = True
                self._on_unheard()
            elif not self._woken and now < self._look_at and (self._asked_since_end or not nothing_held):
                return self._look_at - now
        self._woken = False
        self._asked_since_end = self._asked_since_end or nothing_held
        self.in_flight = True
        self._before_claim()
        call = self._calls.claim(
            want,
            idle,
            has_command=self._has_command,
            runs=self._runs,
            without=self._left_alone(now),
            free=self._rooms.free,
            kept_for=self._rooms.kept_for,
            only_on=only_on,
        )
        self._link.send(call, lambda reply: self._answered(reply, want, idle, now), repeat=False)
        return LOOK_AGAIN_SECONDS

    def hear_changes(self) -> bool:
        """Takes in what others changed; whether there was something. Raises ConnectFailed."""
        changes = self._listener.changes()
        if changes:
            self._woken = True
            if ChangeListener.FLUSHED in changes:
                self._on_unheard()
            runs = {
                os.fsdecode(key[len(prefix) :])
                for key in changes
                for prefix in self._lists
                if key.startswith(prefix)
            }
            if runs:
                self._on_changes(runs)
        return bool(changes)

    def reconnected(self) -> None:
        """After the link was opened, or opened again: listens, and asks. Raises ConnectFailed."""
        self._listener.lost()
        self._listener.on()
        self._listening = self._woken = True
        self._dry = self._short = False

    def _answered(self, reply: Reply, want: int, idle: int, sent_at: float) -> None:
        self.in_flight = False
        if reply is None:  # refused, or the connection was lost: what was leased comes back by itself
            return
        now = time.monotonic()
        trip = now - sent_at
        known = self._round_trip_seconds
        self._round_trip_seconds = trip if not known else min(trip, 0.9 * known + 0.1 * trip)
        claimed = read_claim(reply)
        count = len(claimed.leases)
        self._short = count < want
        self._dry = count < max(idle, 1)
        self._open_runs = -1 if claimed.suspended else claimed.open_runs
        wake = LOOK_AGAIN_SECONDS if claimed.wake_seconds is None else claimed.wake_seconds + 0.001
        self._look_at = now + min(wake, LOOK_AGAIN_SECONDS)
        self._on_claimed(claimed)  # first: should listening be lost with the connection, the leases are not
        if count and self._listening:
            self._listener.off()
            self._listening = False


def _watched(keys: Keys, runs: Sequence[str]) -> list[str]:
    """Prefixes of keys that others change when there may be something to claim.

    Redis refuses a prefix that begins with another one: `k3v` stands for `k3v9` too.
    """
    apart = [run for run in sorted(set(runs)) if not any(run != r and run.startswith(r) for r in runs)] or [
        ""
    ]
    return [
        keys.wake,
        keys.suspended,
        *(keys.queue(run) for run in apart),
        *(keys.registry("scheduled", run) for run in apart),
    ]
