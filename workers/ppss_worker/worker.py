"""The worker: claim -> start -> run -> publish -> ack, on all slots, in one thread that only waits in select.

Leases are renewed by a thread of their own (leases.py); commands are killed by the guardian if this process
dies (guardian.py).
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import groupby

from ppss_queue import __version__
from ppss_queue.calls import Calls, Claimed
from ppss_queue.connection import Connection, Reply
from ppss_queue.errors import BadInput, PpssError, Unavailable, UnknownRun
from ppss_queue.keys import Keys
from ppss_queue.model import Lease
from ppss_queue.resp import Argument
from ppss_queue.scripts import Call
from ppss_worker.attempts import Attempts
from ppss_worker.claims import LOOK_AGAIN_SECONDS, Claims
from ppss_worker.guardian import Guardian
from ppss_worker.hand import Hand
from ppss_worker.housekeeping import Housekeeping
from ppss_worker.launch import Launcher
from ppss_worker.leases import LeaseKeeper
from ppss_worker.link import Link
from ppss_worker.observer import Observer
from ppss_worker.outage import Outage
from ppss_worker.outbox import Outbox
from ppss_worker.process import DirectoryMissing, Spawner
from ppss_worker.runs import ActiveRuns
from ppss_worker.settings import Settings, Stop
from ppss_worker.signals import ChildSignals, catch_stop_signals
from ppss_worker.slots import SlotNumbers

HOLD_SECONDS = 2.0
"""Items are held for busy slots no longer than this."""
PATIENCE_SECONDS = 30.0
"""A Redis that owes an answer for so long is taken for lost: longer than any script of ours, or a fork, takes."""
STOPPING_PATIENCE_SECONDS = 10.0


class Worker:
    """One worker process. `work` may be called once, in the main thread."""

    def __init__(self, connection: Connection, keys: Keys, settings: Settings, observer: Observer) -> None:
        """`connection` becomes the worker's own."""
        self.name = f"{settings.node}.{os.getpid()}-{os.urandom(2).hex()}"
        self._settings = settings
        self._observer = observer
        self._keys = keys
        self._connection = connection
        self._calls = Calls(keys, self.name, os.urandom(4).hex())
        self._link = Link(connection)
        self._outbox = Outbox(self._link, self._calls, self._lose, self._forget)
        self._claims = Claims(
            connection.clone(name="ppss-wake"),
            self._link,
            self._calls,
            keys,
            runs=settings.runs,
            has_command=settings.command is not None,
            left_alone=lambda now: self._runs.left_alone(now),
            before_claim=self._outbox.send,
            on_claimed=self._claimed,
            on_changes=lambda runs: self._housekeeping.notice(runs),
            on_unheard=lambda: self._housekeeping.soon(),
        )
        self._keeper = LeaseKeeper(connection.clone(name="ppss-leases"), keys, self._calls, self._facts)
        self._runs = ActiveRuns(connection, keys, settings.node, settings.command)
        self._housekeeping = Housekeeping(
            self._link, self._calls, keys, settings.state_directory, self._runs, self._holds_items_of
        )
        self._paused: set[str] = set()
        """What was claimed just before the pause is handed back when it comes."""
        self._hand = Hand()
        self._stop = Stop.NO
        self._failure: Exception | None = None
        self._warned: set[str] = set()
        self._selected: list[int] = []
        self._outage = Outage()

    # What it is asked from outside

    def stop(self, how: Stop) -> None:
        """Ends the work; a less urgent wish than the one before changes nothing."""
        if how > self._stop:
            if not self._stop:
                self._outage.stopping(time.monotonic())
            self._stop = how
            self._outbox.release(self._hand.give_up())
            if how >= Stop.NOW:
                self._attempts.stop_all(at_once=how is Stop.AT_ONCE)

    def query(self, call: Call, on_reply: Callable[[Reply], None]) -> None:
        """Asks Redis something beside the work, for a display; may go unanswered if the connection is lost."""
        self._link.send(call, on_reply, repeat=False)

    @property
    def stopping(self) -> Stop:
        return self._stop

    @property
    def left_runs_alone(self) -> bool:
        """Whether there were runs that could not be run here."""
        return self._runs.any_left_alone

    @property
    def running(self) -> int:
        return len(self._attempts)

    # The loop

    def work(self, tick: Callable[[], float] | None = None) -> None:
        """Works until stopped, or until nothing is left (`burst`). All leases are done or handed back then.

        SIGTERM drains, a second one stops now; SIGINT and SIGHUP stop now, a second one at once.
        `tick` is called in each turn and returns the seconds until it wants to be called again.
        Raises what made it stop: MachineFailed, DirectoryMissing, BadInput (a run that can't be run here),
        ConnectFailed.
        """
        with ExitStack() as stack:
            guardian = Guardian.start()
            stack.callback(guardian.close)
            slots = SlotNumbers(self._settings.state_directory / "slots")
            stack.callback(slots.close)
            self._hand.free(*slots.take(self._settings.slots))
            captures = self._settings.state_directory / "captures"
            captures.mkdir(parents=True, exist_ok=True)
            spawner = Spawner(guardian, captures)
            stack.callback(spawner.captures.close)
            selector = stack.enter_context(selectors.DefaultSelector())
            on_output = self._observer.output if self._settings.line_buffer else None
            launcher = Launcher(spawner, selector, self._answered, on_output)
            stack.callback(launcher.close)
            self._attempts = Attempts(
                launcher,
                self._link,
                self._calls,
                self._outbox,
                self._observer,
                self._settings.node,
                self._fail,
                prints=self._settings.prints,
            )
            signals = stack.enter_context(ChildSignals())
            catch_stop_signals(stack)
            stack.callback(self._keeper.stop)
            self._keeper.start()
            self._claims.start(self._settings.start_delay_seconds)
            on_signals = partial(self._on_signals, signals, spawner)
            selector.register(signals.fileno(), selectors.EVENT_READ, on_signals)
            selector.register(self._keeper.fileno(), selectors.EVENT_READ, self._hear_news)
            self._select_connections(selector)
            on_signals()  # a command may have ended before its signal was listened for
            while not self._finished():
                self._turn(selector, tick)
            self._leave()
        if self._failure is not None:
            raise self._failure

    def _turn(self, selector: selectors.BaseSelector, tick: Callable[[], float] | None) -> None:
        now = time.monotonic()
        waits = [LOOK_AGAIN_SECONDS, tick() if tick else LOOK_AGAIN_SECONDS]
        timeout_at = self._attempts.check_timeouts(now)
        if timeout_at is not None:
            waits.append(timeout_at - now)
        try:
            if self._outage.error:
                self._reconnect(selector, now)
            if self._outage.error:
                waits.append(self._outage.retry_at - now)
            else:
                self._begin_ready()
                waits.append(self._housekeeping.do_if_due(now))
                waits.append(self._claim(now))
                waits.append(self._send_outcomes())
                self._link.flush()
                self._link.check(PATIENCE_SECONDS if not self._stop else STOPPING_PATIENCE_SECONDS)
                self._link.receive_buffered()
            for key, _ in selector.select(max(0.0, min(waits))):
                key.data()
        except Unavailable as error:
            self._disconnected(selector, error)
        except (PpssError, OSError) as error:
            self._fail(error)
            if self._outage.error:  # not before the next try, or nothing else would be done in a turn
                self._disconnected(selector, self._outage.error)

    def _finished(self) -> bool:
        if self._outage.error:
            hopeless = self._outage.is_hopeless(time.monotonic())
            return bool(self._stop) and not self._attempts.commands and hopeless
        if (
            self._claims.in_flight
            or len(self._attempts)
            or self._hand
            or self._outbox.due_seconds is not None
        ):
            return False
        if self._stop:
            return self._link.idle
        return self._settings.burst and self._claims.nothing_left and self._link.idle

    def _leave(self) -> None:
        self._failure = self._failure or self._outage.error
        with suppress(PpssError):
            self._outbox.send()
            self._link.send(self._calls.retire(self._runs), lambda reply: None)
            self._housekeeping.sweep()
            self._link.finish(STOPPING_PATIENCE_SECONDS)
        self._claims.close()
        self._connection.close()

    # Claiming

    def _claim(self, now: float) -> float:
        """Sends a claim if there is reason to; returns the seconds until there may be one."""
        if self._stop:
            return LOOK_AGAIN_SECONDS
        prefetch = self._claims.prefetch(self._settings.slots, self._attempts.seconds_each)
        stalled = self._attempts.stalled_seconds(now)
        if stalled > HOLD_SECONDS:  # what runs takes longer than thought: others may be idle
            prefetch = 0
            self._outbox.release(self._hand.give_up())
        wait = self._claims.send_if_wanted(
            now,
            idle=self._hand.idle,
            ahead=self._hand.ahead,
            prefetch=prefetch,
            nothing_held=not len(self._attempts) and not self._hand,
        )
        if self._hand:
            wait = min(wait, HOLD_SECONDS - stalled + 0.01)
        return wait

    def _claimed(self, claimed: Claimed) -> None:
        if claimed.newer_run:
            self._warn_once(
                f"run {claimed.newer_run} was made by a newer PPSS; this is {__version__}. Upgrade this one."
            )
        if claimed.suspended:
            self._warn_once("RQ is suspended, so nothing is handed out. Go on: rq resume")
        batches = [(run, list(group)) for run, group in groupby(claimed.leases, lambda lease: lease.run)]
        while batches:
            run, leases = batches.pop(0)
            try:
                self._take(run, leases, claimed.visibility_seconds[run])
            except PpssError:
                for _, others in batches:
                    self._outbox.release(others)
                raise

    def _take(self, run: str, leases: list[Lease], visibility_seconds: float) -> None:
        """Keeps what was claimed, or hands it back when it can't be run here."""
        try:
            if self._stop or run in self._paused:
                self._outbox.release(leases)
                return
            self._runs.get(run)
        except UnknownRun:  # cancelled and purged meanwhile
            self._outbox.release(leases)
        except (BadInput, DirectoryMissing) as error:
            self._outbox.release(leases)
            self._leave_alone(run, error)
        except PpssError:
            self._outbox.release(leases)
            raise
        else:
            self._keeper.hold(run, {lease.member for lease in leases}, visibility_seconds)
            self._hand.add(leases)

    # Running

    def _begin_ready(self) -> None:
        """Puts held items on free slots. Their start is on its way to Redis before the command is spawned."""
        while batch := self._hand.deal():
            try:
                self._link.tell(self._calls.begin(lease) for lease, _ in batch)
                while batch:
                    self._begin(*batch[0])
                    del batch[0]
            except (PpssError, OSError):
                self._outbox.release([lease for lease, _ in batch])
                self._hand.free(*(slot for _, slot in batch))
                raise

    def _begin(self, lease: Lease, slot: int) -> None:
        """Raises what no other item would survive either."""
        try:
            begun = self._attempts.begin(lease, self._runs.get(lease.run), slot)
        except (BadInput, DirectoryMissing) as error:
            begun = False
            self._outbox.release([lease])
            self._leave_alone(lease.run, error)
        if begun:
            self._outbox.begun(lease, slot)
        else:
            self._free_slot(slot)

    def _leave_alone(self, run: str, error: PpssError) -> None:
        """A run that can't be run on this node is left to others, and ends no worker that has more to do."""
        now = time.monotonic()
        first = self._runs.leave_alone(run, now)
        self._outbox.release(self._hand.give_up(run))
        served = self._settings.runs
        if served and set(served) <= set(self._runs.left_alone(now)):
            self._fail(error)
        elif first:
            self._observer.warn(f"run {run} can't be run here and is left to other nodes: {error}")

    def _warn_once(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            self._observer.warn(sentence)

    def _answered(self, pid: int, answer: Mapping[str, object]) -> None:
        self._free_slot(self._attempts.answered(pid, answer))

    def _free_slot(self, slot: int | None) -> None:
        if slot is not None:
            self._hand.free(slot)
            self._claims.item_ended()

    def _send_outcomes(self) -> float:
        due = self._outbox.due_seconds
        if due is None:
            return LOOK_AGAIN_SECONDS
        if due and len(self._attempts):
            return due
        self._outbox.send()
        return LOOK_AGAIN_SECONDS

    def _lose(self, lost: Sequence[str]) -> None:
        self._hand.lose(set(lost))
        self._attempts.lose(lost)
        for name in lost:
            self._keeper.drop(name.split("-", 1)[0], name)

    def _forget(self, lease: Lease) -> None:
        self._keeper.drop(lease.run, lease.member)

    # What comes in

    def _hear_news(self) -> None:
        for news in self._keeper.news():
            if news.lost:
                self._lose(news.lost)
            (self._paused.add if news.state == "paused" else self._paused.discard)(news.run)
            if news.state == "paused":
                self._outbox.release(self._hand.give_up(news.run))
                if news.reason.startswith("halted now"):
                    self._attempts.stop_all(run=news.run)
            self._claims.wake()

    def _on_signals(self, signals: ChildSignals, spawner: Spawner) -> None:
        for number in signals.drain():
            self._on_signal(number)
        exits = spawner.reap()
        for exited in exits:
            self._free_slot(self._attempts.vacate(exited.pid))
        try:
            if not self._outage.error:
                self._begin_ready()  # first: what is still to be done for those that ended need not keep a slot idle
        finally:
            for exited in exits:
                self._free_slot(self._attempts.ended(exited))

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGTERM:
            self.stop(Stop.DRAIN if self._stop < Stop.DRAIN else Stop.NOW)
        elif number in (signal.SIGINT, signal.SIGHUP):
            self.stop(Stop.NOW if self._stop < Stop.NOW else Stop.AT_ONCE)

    # Failures

    def _fail(self, error: Exception) -> None:
        """Something that no further item would survive: hand all back, then raise it."""
        if self._failure is None:
            self._failure = error
        self.stop(Stop.NOW)

    def _disconnected(self, selector: selectors.BaseSelector, error: Unavailable) -> None:
        if self._outage.begin(error, time.monotonic()):
            self._observer.warn(f"{error} What runs goes on; trying again.")
        self._unselect_connections(selector)  # a dead one would be readable all the time

    def _reconnect(self, selector: selectors.BaseSelector, now: float) -> None:
        if now < self._outage.retry_at:
            return
        self._link.reopen()
        self._claims.reconnected()
        self._select_connections(selector)
        self._outage.end()

    def _select_connections(self, selector: selectors.BaseSelector) -> None:
        """Waits for these connections instead of those before, which may be closed already."""
        self._unselect_connections(selector)
        for descriptor, on_readable in (
            (self._link.fileno(), self._link.receive),
            (self._claims.fileno(), self._claims.hear_changes),
        ):
            selector.register(descriptor, selectors.EVENT_READ, on_readable)
            self._selected.append(descriptor)

    def _unselect_connections(self, selector: selectors.BaseSelector) -> None:
        while self._selected:
            selector.unregister(self._selected.pop())

    # Small things

    def _holds_items_of(self, run: str) -> bool:
        return any(lease.run == run for lease in (*self._hand, *self._attempts.leases))

    def _facts(self) -> Mapping[str, Argument]:
        return {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "python_version": sys.version.split()[0],
            "queues": ",".join(sorted(self._runs) or self._settings.runs),
            "node": self._settings.node,
            "slots": self._settings.slots,
        }
