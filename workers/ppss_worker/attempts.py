"""Attempts: from a lease to a running command to an outcome.

begin -> (the command ends) -> publish its outputs -> tell the outbox, and the observer.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ppss_queue.calls import Calls
from ppss_queue.errors import LeaseLost, MachineFailed, PpssError, ServiceFailed, UnknownRun
from ppss_queue.model import Lease, Outcome
from ppss_queue.rq_form import kept_output
from ppss_queue.units import format_duration
from ppss_worker.captures import capture_tail, last_line
from ppss_worker.deliveries import Deliveries
from ppss_worker.hosts import Slot
from ppss_worker.link import Link
from ppss_worker.observer import Ended, Observer, Verdict
from ppss_worker.opinions import Opinions
from ppss_worker.outbox import Outbox
from ppss_worker.process import Child, Exit, SpawnFailed
from ppss_worker.publishing import OutputRefused
from ppss_worker.running import ItemRefused, Running, Scratch
from ppss_worker.runs import ActiveRun
from ppss_worker.staging import no_room

KEPT_BYTES = 4096
"""Output of an item that is kept in Redis."""
TOLD_BYTES = 64 * 1024
"""Of each of stdout and stderr, that goes to the `ppss run` which prints it."""


class Attempts:
    """The commands that run now. Used by the worker's one thread."""

    def __init__(
        self,
        link: Link,
        calls: Calls,
        outbox: Outbox,
        observer: Observer,
        on_failure: Callable[[Exception], None],
        *,
        prints: bool = False,
    ) -> None:
        """`on_failure` hears of what no further item would survive: a full disk, a closed stdout.
        `prints`: the observer prints outputs itself.
        """
        self._prints = prints
        self._link = link
        self._calls = calls
        self._outbox = outbox
        self._observer = observer
        self._on_failure = on_failure
        self._deliveries = Deliveries(link, calls, self._delivered)
        self.opinions = Opinions(link, calls)
        self._running: dict[int, Running] = {}
        self._newest_at = 0.0
        """When the last one began, time.monotonic()."""
        self._ending: dict[int, Running] = {}
        """Between `vacate` and `ended`."""
        self.ended_count = 0
        """Items that succeeded, failed, or are tried again."""
        self.seconds_each = 0.0
        """Moving average of how long attempts take; 0: none ended yet."""

    def __len__(self) -> int:
        """Running commands, outputs being published, failures being judged."""
        return len(self._running) + len(self._deliveries) + len(self.opinions)

    @property
    def commands(self) -> int:
        """Running commands alone, which need no Redis to end."""
        return len(self._running)

    @property
    def leases(self) -> Iterator[Lease]:
        """Of all that runs, is being published or judged."""
        for running in self._running.values():
            yield running.lease
        yield from self._deliveries.leases
        yield from self.opinions.leases

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
            self._end(self._made_up(lease, run, slot), outcome, final=error.final)
            return False
        scratch = place.scratch
        values = run.values(lease, slot.number, place.item, scratch.directory if scratch else "")
        own = run.variables(lease, values, gpus)
        started = time.monotonic()
        try:
            child = host.start(lease, run, values, own, place.directory)
        except SpawnFailed as error:
            running = self._made_up(lease, run, slot, scratch)
            self._end(
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
        self._outbox.begun(running.lease, running.slot.number)
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
        self._end(running, outcome, final=error.final)
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
        self._close(running, outcome, Verdict.LOST)
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
            self._close(running, outcome, Verdict.LOST)
        elif not child.began and running.stopped is None:
            self._release(running, outcome)
        elif outcome.exit_code == 0 and not outcome.reason and running.stopped is None:
            self._deliveries.deliver(running, outcome)
        elif running.stopped == "released":
            self._release(running, outcome)
        elif running.scratch is not None and (reason := no_room(running.scratch.base)):
            self._not_published(running, outcome, MachineFailed(f"{reason}. Free space, then go on."))
        else:
            self._end(running, replace(outcome, reason=running.stopped or outcome.reason))
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

    def stop_all(self, reason: str | None = None, *, run: str | None = None, at_once: bool = False) -> None:
        """Ends all commands (of one run): SIGTERM, SIGKILL after the grace time or at once. Their items go back."""
        for running in self._running.values():
            if run in (None, running.run.id):
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
            self._end(running, outcome)
        else:
            self._not_published(running, outcome, error)

    def _not_published(self, running: Running, outcome: Outcome, error: PpssError) -> None:
        if isinstance(error, OutputRefused):
            self._end(running, replace(outcome, reason=str(error)), final=True)
        elif isinstance(error, LeaseLost):
            self._close(running, outcome, Verdict.LOST)
        else:  # the machine's fault: the item goes back
            self._release(running, outcome)
            if not isinstance(error, (ServiceFailed, UnknownRun)):
                self._on_failure(error)

    def _release(self, running: Running, outcome: Outcome) -> None:
        self._outbox.release([running.lease])
        self._close(running, outcome, Verdict.RELEASED)

    def _end(self, running: Running, outcome: Outcome, *, final: bool = False) -> None:
        """The item succeeded, or failed: `final` for failures that another attempt would only repeat."""
        self.ended_count += 1
        lease, spec = running.lease, running.run.spec
        succeeded = outcome.exit_code == 0 and (
            outcome.reason is None or outcome.reason.startswith("skipped")
        )
        kept = _kept(running.child) if spec.keep_output or not succeeded else b""
        if succeeded:
            if running.slot.host.is_here:
                self.opinions.succeeded(lease.run)
            self._tell(running)
            self._outbox.ack(lease, outcome, kept)
            self._close(running, outcome, Verdict.SUCCEEDED)
            return
        delay = None
        if not final and spec.retry.applies_to(None if running.stopped else outcome.exit_code):
            delay = spec.retry.delay_after(lease.failures + 1, random.random())
        judge = partial(self._judged, running, outcome, kept, delay)
        # Redis knows the node of this worker only, so of another host nobody is asked.
        by_itself = outcome.reason is None and running.stopped is None and running.slot.host.is_here
        if final or not by_itself or not self.opinions.failed(running, outcome, delay, judge):
            judge(elsewhere=False)

    def _judged(
        self, running: Running, outcome: Outcome, kept: bytes, delay: float | None, elsewhere: bool
    ) -> None:
        """The item has failed here, or is tried on another node."""
        lease, spec = running.lease, running.run.spec
        if elsewhere:
            self._outbox.over(lease)
            self._close(running, outcome, Verdict.ELSEWHERE)
            return
        again = delay is not None and lease.failures < spec.retry.retries
        if not again:
            self._tell(running)
        self._outbox.fail(lease, outcome, delay, kept)
        self._close(running, outcome, Verdict.RETRY if again else Verdict.FAILED, delay)

    def _tell(self, running: Running) -> None:
        """Sends what it printed to who made the run, if that one wants it."""
        if running.run.spec.tell_output and not self._prints:
            child = running.child
            printed = (_ends(source) for source in (child.stdout, child.stderr))
            self._link.send(self._calls.tell(running.lease, *printed), lambda reply: None)

    def _close(
        self, running: Running, outcome: Outcome, verdict: Verdict, retry_seconds: float | None = None
    ) -> None:
        if running.scratch is not None:
            running.scratch.discard()
        child = running.child
        ended = Ended(
            running.lease,
            running.run,
            running.slot.number,
            outcome,
            verdict,
            retry_seconds,
            child.stdout,
            child.stderr,
            running.started_epoch,
        )
        try:
            self._observer.ended(ended)
        except OSError as error:
            self._on_failure(error)
        running.slot.host.release(child)

    @staticmethod
    def _made_up(lease: Lease, run: ActiveRun, slot: Slot, scratch: Scratch | None = None) -> Running:
        """For an attempt without a process."""
        now = time.monotonic()
        return Running(
            lease, run, slot, Child(0, -1, -1, now, os.close, True), scratch, now, time.time(), None
        )


def _kept(child: Child) -> bytes:
    """The end of what it printed, stdout before stderr, in RQ's form; empty for nothing."""
    err, _ = capture_tail(child.stderr, KEPT_BYTES)
    out, _ = capture_tail(child.stdout, KEPT_BYTES - len(err))
    return kept_output(out + err) if out or err else b""


def _ends(source: int) -> bytes:
    """What a capture file holds; of very much, the end."""
    tail, size = capture_tail(source, TOLD_BYTES)
    left_out = f"[the first {size - len(tail):,} bytes are left out]\n".encode() if size > len(tail) else b""
    return left_out + tail


def _text(value: object) -> str | None:
    return None if value is None else str(value)
