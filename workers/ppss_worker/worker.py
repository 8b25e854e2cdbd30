"""The worker: claim -> start -> run -> publish -> ack, on all slots, in one thread that only waits in select.

Leases are renewed by a thread of their own (leases.py); commands are killed by the guardian if this process
dies (guardian.py).
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ppss_queue.calls import Calls, Claimed
from ppss_queue.connection import Connection, Reply
from ppss_queue.errors import PpssError, Unavailable
from ppss_queue.keys import Keys
from ppss_queue.model import Lease
from ppss_queue.scripts import Call
from ppss_worker.attempts import Attempts
from ppss_worker.claims import LOOK_AGAIN_SECONDS, Claims
from ppss_worker.dealer import Dealer
from ppss_worker.draining import Draining
from ppss_worker.ending import Ending
from ppss_worker.forgotten import hand_back_forgotten
from ppss_worker.guardian import Guardian
from ppss_worker.hosts import ThisHost
from ppss_worker.housekeeping import Housekeeping
from ppss_worker.intake import Intake
from ppss_worker.launch import Launcher
from ppss_worker.leases import LeaseKeeper
from ppss_worker.lifeline import Lifeline
from ppss_worker.link import Link
from ppss_worker.machine import machine_facts, take_name
from ppss_worker.maps import NO_MAPS
from ppss_worker.observer import Observer
from ppss_worker.orders import Orders, ThisNode
from ppss_worker.outbox import Outbox
from ppss_worker.process import Spawner
from ppss_worker.room import Room
from ppss_worker.rooms import Rooms
from ppss_worker.runs import ActiveRuns
from ppss_worker.settings import Settings, Stop
from ppss_worker.signals import ChildSignals, catch_stop_signals
from ppss_worker.verdicts import Verdicts
from ppss_worker.vitals import Vitals

if TYPE_CHECKING:
    from ppss_worker.agentless.fleet import Fleet
    from ppss_worker.captures import Captures
    from ppss_worker.file_line import OpenFiles
    from ppss_worker.stage import Stage

PATIENCE_SECONDS = 30.0
"""A Redis that owes an answer for so long is taken for lost: longer than any script of ours, or a fork, takes."""
STOPPING_PATIENCE_SECONDS = 10.0


class Worker:
    """One worker process. `work` may be called once, in the main thread."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        settings: Settings,
        observer: Observer,
        open_files: OpenFiles | None = None,
    ) -> None:
        """`connection`: an open one, the worker's from now on. `open_files`: how to reach files on the master;
        None: they are here.

        The name of the node is another one if this one is that of another machine. Raises what a connection raises.
        """
        settings = replace(settings, node=take_name(connection, keys, settings.node))
        self.name = f"{settings.node}.{os.getpid()}-{os.urandom(2).hex()}"
        self._settings = settings
        self._observer = observer
        self._keys = keys
        self._connection = connection.take_over(name="ppss-worker", patience_seconds=PATIENCE_SECONDS)
        self._calls = Calls(keys, self.name, os.urandom(4).hex())
        self._link = Link(self._connection)
        self._outbox = Outbox(self._link, self._calls, self._lose, self._forget)
        self._rooms = Rooms()
        self._claims = Claims(
            self._connection,
            self._link,
            self._calls,
            keys,
            self._rooms,
            runs=settings.runs,
            has_command=settings.command is not None,
            left_alone=lambda now: self._runs.left_alone(now),
            before_claim=self._outbox.send,
            on_claimed=lambda claimed: self._claimed(claimed),
            on_changes=lambda runs: self._housekeeping.notice(runs),
            on_unheard=lambda: self._housekeeping.soon(),
        )
        leases = self._connection.clone(name="ppss-leases", opened=False)
        self._keeper = LeaseKeeper(leases, keys, self._calls, self._heartbeats)
        stage = settings.stage
        self._stage: Stage | None = None
        if open_files is not None and stage is not None:
            from ppss_worker.stage import make_stage  # costs start-up time that few workers need

            self._stage = make_stage(stage, self.name, open_files, lambda text: self._intake.warn_once(text))
        self._runs = ActiveRuns(
            self._connection,
            keys,
            settings.node,
            settings.command,
            stage.maps if stage else NO_MAPS,
            remote=self._stage is not None,
        )
        self._housekeeping = Housekeeping(
            self._link, self._calls, keys, settings.state_directory, self._runs, self._holds_items_of
        )
        self._intake = Intake(
            settings,
            self._runs,
            self._stage,
            self._outbox,
            self._keeper,
            self._rooms,
            observer.warn,
            self._fail,
        )
        self._hand = self._intake.hand
        self._verdicts = Verdicts(
            self._link, self._calls, self._outbox, observer, self._fail, prints=settings.prints
        )
        self._vitals = Vitals(settings, self._runs, self._intake, self._verdicts)
        is_alone = not settings.nodes
        here = ThisNode(self._intake, self._claims, self._keeper, self.stop, is_alone=is_alone)
        self._orders = Orders(settings.node, settings.slots, here, observer.warn)
        self._ending = Ending()
        self._fleet: Fleet | None = None
        self._lifeline = Lifeline(self._link, self._claims, observer.warn, self._mended)
        self._draining = Draining(observer.warn)

    # What it is asked from outside

    def stop(self, how: Stop) -> None:
        """Ends the work; a less urgent wish than the one before changes nothing."""
        first = not self._ending.how
        if not self._ending.rises_to(how):
            return
        if first:
            self._lifeline.stopping(time.monotonic())
        self._keeper.beat()
        self._intake.close()
        if how >= Stop.NOW:
            self._attempts.stop_all(at_once=how is Stop.AT_ONCE)
            if self._fleet is not None and how is Stop.AT_ONCE:
                self._fleet.give_up()

    def query(self, call: Call, on_reply: Callable[[Reply], None]) -> None:
        """Asks Redis something beside the work, for a display; may go unanswered if the connection is lost."""
        self._link.send(call, on_reply, repeat=False)

    @property
    def stopping(self) -> Stop:
        return self._ending.how

    @property
    def slots(self) -> int:
        """How many it is to have: it may have more until items end."""
        return self._intake.own_slots.count

    @property
    def is_cut_off(self) -> bool:
        """It has no slots here, and none of its nodes could be reached yet."""
        return not self.slots and self._fleet is not None and self._fleet.is_unreachable

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
            stack.callback(self._intake.own_slots.close)
            stack.callback(self._rooms.close)
            captures = self._settings.state_directory / "captures"
            captures.mkdir(parents=True, exist_ok=True)
            spawner = Spawner(guardian, captures)
            stack.callback(spawner.captures.close)
            selector = stack.enter_context(selectors.DefaultSelector())
            on_output = self._observer.output if self._settings.line_buffer else None
            launcher = Launcher(spawner, selector, self._answered, on_output)
            stack.callback(launcher.close)
            here = self._intake.own_slots.host = ThisHost(
                self._settings.node,
                self._calls,
                Room(self._settings.offer, self._settings.state_directory / "gpus"),
                launcher,
                self._intake.workplace,
                self._intake.own_slots,
            )
            self._rooms.hosts.append(here)
            self._intake.own_slots.resize(self._settings.slots)
            self._attempts = Attempts(self._link, self._calls, self._outbox, self._observer, self._verdicts)
            self._dealer = Dealer(
                self._link, self._calls, self._outbox, self._runs, self._intake, self._claims, self._attempts
            )
            if self._settings.nodes:
                self._fleet = self._make_fleet(spawner.captures, on_output)
                stack.callback(self._fleet.close)
                self._rooms.hosts += self._fleet.hosts
                self._fleet.start()
                selector.register(self._fleet.fileno(), selectors.EVENT_READ, self._fleet.hear)
            signals = stack.enter_context(ChildSignals())
            catch_stop_signals(stack)
            if self._stage is not None:
                stack.callback(self._stage.close)
                self._stage.start()
                selector.register(self._stage.fileno(), selectors.EVENT_READ, self._intake.hear_stage)
            stack.callback(self._keeper.stop)
            self._lifeline.begin(selector, self._open)
            self._observer.began(self.name)
            on_signals = partial(self._on_signals, signals, spawner)
            selector.register(signals.fileno(), selectors.EVENT_READ, on_signals)
            selector.register(self._keeper.fileno(), selectors.EVENT_READ, self._hear_news)
            on_signals()  # a command may have ended before its signal was listened for
            while not self._finished():
                self._turn(selector, tick)
            self._leave()
        if self._ending.failure is not None:
            raise self._ending.failure

    def _open(self) -> None:
        """Raises ConnectFailed."""
        self._keeper.start()
        self._obey()
        self._connection.revive()
        self._claims.start(self._settings.start_delay_seconds)

    def _make_fleet(self, captures: Captures, on_output: Callable[[Lease, int, bytes], None] | None) -> Fleet:
        from ppss_worker.agentless import fleet  # costs start-up time that few workers need

        worker = fleet.Worker(
            self._calls,
            self._hand,
            self._attempts,
            self._dealer.take_back,
            self._claims.wake,
            self._observer.warn,
            self._fail,
            self.stop,
            self._keeper.beat,
            self._retire,
            on_output,
            lambda: not self._lifeline.lost,
            self._settings,
        )
        return fleet.Fleet(worker, captures)

    def _turn(self, selector: selectors.BaseSelector, tick: Callable[[], float] | None) -> None:
        now = time.monotonic()
        waits = [LOOK_AGAIN_SECONDS, tick() if tick else LOOK_AGAIN_SECONDS]
        if now >= self._ending.deliver_until:
            self._attempts.give_up_deliveries()
        else:
            waits.append(self._ending.deliver_until - now)
        if self._ending.how is Stop.DRAIN and self._stage is not None and not self._attempts.commands:
            self._draining.tell(now, len(self._attempts), self._stage.held_up)
        timeout_at = self._attempts.check_timeouts(now)
        if timeout_at is not None:
            waits.append(timeout_at - now)
        if self._fleet is not None:
            waits.append(self._fleet.do_if_due(now))
        try:
            if self._lifeline.lost:
                waits.append(self._lifeline.mend_if_due(now))
            if not self._lifeline.lost:
                self._dealer.deal()
                if self._fleet is not None:
                    self._fleet.launch_held()
                waits.append(self._housekeeping.do_if_due(now))
                waits.append(self._claim(now))
                waits.append(self._outbox.send_if_due(busy=len(self._attempts) > 0))
                self._link.flush()
                self._link.check(PATIENCE_SECONDS if not self._ending.how else STOPPING_PATIENCE_SECONDS)
                if self._claims.hear_changes() | self._link.receive_buffered():
                    waits.append(0.0)
            for key, _ in selector.select(max(0.0, min(waits))):
                key.data()
        except Unavailable as error:
            self._lifeline.lose(error)
        except (PpssError, OSError) as error:
            self._fail(error)
            if self._lifeline.lost:  # not before the next try, or nothing else would be done in a turn
                self._lifeline.lose(self._lifeline.lost)

    def _finished(self) -> bool:
        if self._lifeline.lost:
            hopeless = self._lifeline.is_hopeless(time.monotonic())
            return bool(self._ending.how) and not self._attempts.commands and hopeless
        if (
            self._claims.in_flight
            or len(self._attempts)
            or self._hand
            or self._outbox.due_seconds is not None
        ):
            return False
        if self._ending.how:
            return self._link.idle
        return self._settings.burst and self._claims.nothing_left and self._link.idle

    def _leave(self) -> None:
        self._ending.failure = self._ending.failure or self._lifeline.lost
        self._keeper.stop()  # a heartbeat that came after the retirement would show a dead worker
        with suppress(PpssError):
            self._outbox.send()
            self._retire(self._calls)
            if self._fleet is not None:
                self._fleet.retire()
            self._housekeeping.sweep()
            self._link.finish(STOPPING_PATIENCE_SECONDS)
        self._connection.close()

    # Running

    def _claim(self, now: float) -> float:
        return self._intake.claim(
            self._claims,
            now,
            running=len(self._attempts),
            stalled_seconds=self._attempts.stalled_seconds(now),
            each=self._attempts.seconds_each,
        )

    def _claimed(self, claimed: Claimed) -> None:
        self._verdicts.opinions.others = claimed.others
        self._intake.claimed(claimed)

    def _answered(self, pid: int, answer: Mapping[str, object]) -> None:
        self._dealer.take_back(self._attempts.answered(pid, answer))

    def _lose(self, lost: Sequence[str]) -> None:
        self._intake.lose(set(lost))
        self._attempts.lose(lost)
        for name in lost:
            self._keeper.drop(name.split("-", 1)[0], name)

    def _forget(self, lease: Lease) -> None:
        self._keeper.drop(lease.run, lease.member)

    def _leases(self) -> Iterator[Lease]:
        """Of all items held here."""
        yield from self._hand
        yield from self._attempts.leases

    def _mended(self) -> None:
        hand_back_forgotten(self._runs, self._link, self._calls, self._outbox, self._leases)

    # What comes in

    def _hear_news(self) -> None:
        for news in self._keeper.news():
            if news.lost:
                self._lose(news.lost)
            self._intake.pause(news.run, paused=news.state == "paused")
            if news.state == "paused" and news.reason.startswith("halted now"):
                self._attempts.stop_all(run=news.run)
            self._claims.wake()
        self._obey()

    def _obey(self) -> None:
        wishes = self._keeper.wishes
        if self.name in wishes:  # else there was no heartbeat yet
            self._orders.obey(wishes[self.name])
        if self._fleet is not None:
            self._fleet.obey(wishes)

    def _on_signals(self, signals: ChildSignals, spawner: Spawner) -> None:
        for number in signals.drain():
            self.stop(self._ending.meaning_of(number))
        exits = spawner.reap()
        for exited in exits:
            self._dealer.take_back(self._attempts.vacate(exited.pid))
        try:
            if not self._lifeline.lost:
                self._dealer.deal()  # first: what is still to be done for those that ended need not keep a slot idle
        finally:
            for exited in exits:
                self._dealer.take_back(self._attempts.ended(exited))

    # Failures

    def _fail(self, error: Exception) -> None:
        """Something that no further item would survive: hand all back, then raise it."""
        if self._ending.failure is None:
            self._ending.failure = error
        self.stop(Stop.NOW)

    # Small things

    def _retire(self, calls: Calls) -> None:
        self._link.send(calls.retire(self._runs), lambda reply: None)

    def _holds_items_of(self, run: str) -> bool:
        return any(lease.run == run for lease in self._leases())

    def _heartbeats(self) -> Mapping[str, Call]:
        """Called in the thread of the keeper."""
        stopping = self._ending.how > Stop.NO
        hosts = self._fleet.hosts if self._fleet is not None else ()
        return self._vitals.heartbeats(
            self._calls, self._attempts, hosts, machine_facts(self._stage), stopping=stopping
        )
