"""Attempts: from a lease to a running command to an outcome.

begin -> (the command ends) -> publish its outputs -> verdicts.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ppss_queue.calls import Calls
from ppss_queue.errors import MachineFailed, PpssError
from ppss_queue.model import Lease, Outcome
from ppss_queue.units import format_duration
from ppss_worker.captures import last_line
from ppss_worker.deliveries import Deliveries
from ppss_worker.hosts import Host, Slot
from ppss_worker.link import Link
from ppss_worker.observer import Observer, Verdict
from ppss_worker.outbox import Outbox
from ppss_worker.process import Child, Exit, SpawnFailed
from ppss_worker.running import ItemRefused, Running, Scratch
from ppss_worker.runs import ActiveRun
from ppss_worker.staging import no_room
from ppss_worker.verdicts import Verdicts


class Attempts:
    """The commands that run now. Used by the worker's one thread."""

    def __init__(
        self, link: Link, calls: Calls, outbox: Outbox, observer: Observer, verdicts: Verdicts
    ) -> None:
        self._link = link
        self._calls = calls
        self._outbox = outbox
        self._observer = observer
        self._verdicts = verdicts
        self._opinions = verdicts.opinions
        self._deliveries = Deliveries(link, calls, self._delivered)
        self._running: dict[int, Running] = {}
        self._newest_at = 0.0
        """When the last one began, time.monotonic()."""
        self._ending: dict[int, Running] = {}
        """Between `vacate` and `ended`."""
        self.seconds_each = 0.0
        """Moving average of how long attempts take; 0: none ended yet."""

    def __len__(self) -> int:
        """Running commands, outputs being published, failures being judged."""
        return len(self._running) + len(self._deliveries) + len(self._opinions)

    @property
    def commands(self) -> int:
        """Running commands alone, which need no Redis to end."""
        return len(self._running)

    def on(self, host: Host) -> int:
        """Commands that run on this host; may be asked in any thread."""
        return sum(running.slot.host is host for running in list(self._running.values()))

    @property
    def leases(self) -> Iterator[Lease]:
        """Of all that runs, is being published or judged."""
        for running in self._running.values():
            yield running.lease
        yield from self._deliveries.leases
        yield from self._opinions.leases

    def stalled_seconds(self, now: float) -> float:
        """How long all that run have been running."""
        return now - self._newest_at if self._running else 0.0

    def begin(self, lease: Lease, run: ActiveRun, slot: Slot, gpus: Sequence[str] = ()) -> bool:
        """Starts the command of a lease whose `start` is on its way, or will be with `launch`.

        False: it is over already, the slot is free. `gpus`: those that are its own.

        Raises MachineFailed or DirectoryMissing if this machine can't run it; the lease is the caller's then.
        """
        host = slot.host
        try:
            place = host.workplace(lease, run)
        except ItemRefused as error:
            outcome = Outcome(error.ended_with, node=host.name, slot=slot.number, reason=str(error))
            self._verdicts.end(_made_up(lease, run, slot), outcome, final=error.final)
            return False
        scratch = place.scratch
        values = run.values(lease, slot.number, place.item, scratch.directory if scratch else "")
        own = run.variables(lease, values, gpus)
        started = time.monotonic()
        try:
            child = host.start(lease, run, values, own, place.directory)
        except SpawnFailed as error:
            running = _made_up(lease, run, slot, scratch)
            self._verdicts.end(
                running, Outcome(error.exit_status, node=host.name, slot=slot.number, last_line=str(error))
            )
            return False
        except BaseException:
            if scratch is not None:
                scratch.discard()
            raise
        running = Running(lease, run, slot, child, scratch, started, time.time(), None)
        self._running[child.pid] = running
        if host.is_here:
            self._runs_since(running, started)
        self._observer.started(lease, run, slot.number)
        return True

    def launch(self, pid: int) -> bool:
        """The command of another host is about to run, so its `start` goes out. False: it shall not any more.

        Raises ConnectFailed.
        """
        running = self._running.get(pid)
        if running is None or running.stopped is not None:
            return False
        self._link.tell([self._calls.begin(running.lease)])
        self._outbox.begun(running.lease, running.slot)
        self._runs_since(running, time.monotonic())
        return True

    def refuse(self, pid: int, error: ItemRefused) -> Slot | None:
        """Its files can't be brought to its host; returns the slot that is free now."""
        running = self._running.pop(pid, None)
        if running is None:
            return None
        outcome = Outcome(
            error.ended_with, None, 0.0, running.slot.host.name, running.slot.number, str(error)
        )
        self._verdicts.end(running, outcome, final=error.final)
        return running.slot

    def lose_host(self, pid: int, why: str, *, is_over: bool) -> Slot | None:
        """The host of a command is gone; returns the slot that is free now.

        `is_over`: the command surely does not run any more, so the item can be given to others; else its lease has to
        expire.
        """
        running = self._running.pop(pid, None)
        if running is None:
            return None
        seconds = time.monotonic() - running.started
        outcome = Outcome(None, None, seconds, running.slot.host.name, running.slot.number, why)
        if is_over and running.stopped != "lost":
            self._outbox.forfeit([running.lease])
        self._verdicts.close(running, outcome, Verdict.LOST)
        return running.slot

    def vacate(self, pid: int) -> Slot | None:
        """The slot of a process that ended, free from now on although `ended` is still to come.

        None: `ended` frees it, since the process of a function belongs to its slot; or it is none of ours.
        """
        running = self._running.get(pid)
        if running is None or running.run.function is not None:
            return None
        self._ending[pid] = self._running.pop(pid)  # apart: the next command may get the same number
        running.vacated = True
        return running.slot

    def ended(self, exited: Exit) -> Slot | None:
        """Handles the end of a process; returns the slot that is free now. None: it was before, or is none of ours."""
        running = self._ending.pop(exited.pid, None) or self._running.pop(exited.pid, None)
        if running is None:
            return None
        no_answer = running.run.function is not None and exited.exit_code == 0
        reason = "its process ended before it returned" if no_answer else None
        seconds = exited.ended - running.started
        return self._over(running, seconds, exited.exit_code, exited.signal, reason)

    def answered(self, pid: int, answer: Mapping[str, object]) -> Slot | None:
        """Handles what a Python function returned; its slot is free now. None: it was none of ours."""
        running = self._running.get(pid)
        if running is None or running.stopped:  # its process was told to end, and that will be its end
            return None
        del self._running[pid]
        seconds, exit_code = time.monotonic() - running.started, int(str(answer["exit_code"]))
        reason, result = _text(answer.get("reason")), _text(answer.get("result"))
        return self._over(running, seconds, exit_code, None, reason, result)

    def _over(
        self,
        running: Running,
        seconds: float,
        exit_code: int | None,
        signal: int | None,
        reason: str | None,
        result: str | None = None,
    ) -> Slot | None:
        child, slot = running.child, running.slot
        slot.host.finish(child)
        self.seconds_each += (seconds - self.seconds_each) * (0.1 if self.seconds_each else 1.0)
        line = last_line(child.stdout, child.stderr)
        outcome = Outcome(exit_code, signal, seconds, slot.host.name, slot.number, reason, line, result)
        if running.stopped == "lost":
            self._verdicts.close(running, outcome, Verdict.LOST)
        elif not child.began and running.stopped is None:
            self._verdicts.release(running, outcome)
        elif outcome.exit_code == 0 and not outcome.reason and running.stopped is None:
            self._deliveries.deliver(running, outcome)
        elif running.stopped == "released":
            self._verdicts.release(running, outcome)
        elif running.scratch is not None and (reason := no_room(running.scratch.base)):
            self._verdicts.not_published(
                running, outcome, MachineFailed(f"{reason}. Free space, then go on.")
            )
        else:
            self._verdicts.end(running, replace(outcome, reason=running.stopped or outcome.reason))
        return None if running.vacated else slot

    def lose(self, lost: Sequence[str]) -> None:
        """These leases are someone else's: kill their commands, discard what they made."""
        gone = set(lost)
        for running in self._running.values():
            if running.lease.member in gone:
                running.stopped = "lost"
                running.child.kill()
        self._deliveries.lose(gone)

    def give_up_deliveries(self) -> None:
        """Hands back the items whose outputs are not home yet."""
        self._deliveries.give_up()

    def check_timeouts(self, now: float) -> float | None:
        """Signals what is over time; returns when (monotonic) to look again."""
        soonest: float | None = None
        for running in self._running.values():
            if running.timeout_at is not None and running.timeout_at <= now:
                self._stop(
                    running, f"timed out after {format_duration(running.run.spec.timeout_seconds or 0)}"
                )
            if running.timeout_at is not None and (soonest is None or running.timeout_at < soonest):
                soonest = running.timeout_at
        return soonest

    def stop_all(
        self,
        reason: str | None = None,
        *,
        run: str | None = None,
        host: Host | None = None,
        at_once: bool = False,
    ) -> None:
        """Ends all commands (of one run, on one host): SIGTERM, SIGKILL after the grace time or at once.

        Their items go back.
        """
        for running in self._running.values():
            if run in (None, running.run.id) and host in (None, running.slot.host):
                if at_once:
                    running.stopped = running.stopped or "released"
                    running.child.kill()
                elif running.stopped is None:
                    self._stop(running, reason or "released")

    def _runs_since(self, running: Running, now: float) -> None:
        running.started, running.started_epoch = now, time.time()
        timeout = running.run.spec.timeout_seconds
        running.timeout_at = now + timeout if timeout else None
        self._newest_at = now

    def _stop(self, running: Running, why: str) -> None:
        if running.stopped is None:
            running.stopped = why
            running.child.terminate()
            running.timeout_at = time.monotonic() + running.run.spec.grace_seconds
        else:
            running.child.kill()
            running.timeout_at = None

    def _delivered(self, running: Running, outcome: Outcome, error: PpssError | None) -> None:
        if error is None:
            self._verdicts.end(running, outcome)
        else:
            self._verdicts.not_published(running, outcome, error)


def _made_up(lease: Lease, run: ActiveRun, slot: Slot, scratch: Scratch | None = None) -> Running:
    """For an attempt without a process."""
    now = time.monotonic()
    return Running(lease, run, slot, Child(0, -1, -1, now, os.close, True), scratch, now, time.time(), None)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
