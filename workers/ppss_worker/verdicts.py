"""What becomes of an item when its attempt is over: succeeded, failed, tried again here or elsewhere, or handed back.

The outbox is told, and the observer.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ppss_queue.calls import Calls
from ppss_queue.errors import LeaseLost, PpssError, ServiceFailed, UnknownRun
from ppss_queue.model import Outcome
from ppss_queue.rq_form import kept_output
from ppss_worker.captures import capture_tail
from ppss_worker.link import Link
from ppss_worker.observer import Ended, Observer, Verdict
from ppss_worker.opinions import Opinions
from ppss_worker.outbox import Outbox
from ppss_worker.process import Child
from ppss_worker.publishing import OutputRefused
from ppss_worker.running import Running

KEPT_BYTES = 4096
"""Output of an item that is kept in Redis."""
TOLD_BYTES = 64 * 1024
"""Of each of stdout and stderr, that goes to the `ppss run` which prints it."""


class Verdicts:
    """Used by the worker's one thread."""

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
        self.opinions = Opinions(link)
        self.ended_counts: Counter[str] = Counter()
        """Items that succeeded, failed, or are tried again, by host."""

    def not_published(self, running: Running, outcome: Outcome, error: PpssError) -> None:
        """Its command succeeded, or could not, as there was no room; `error`: why its outputs are not in place."""
        if isinstance(error, OutputRefused):
            self.end(running, replace(outcome, reason=str(error)), final=True)
        elif isinstance(error, LeaseLost):
            self.close(running, outcome, Verdict.LOST)
        else:  # the machine's fault: the item goes back
            self.release(running, outcome)
            if not isinstance(error, (ServiceFailed, UnknownRun)):
                self._on_failure(error)

    def release(self, running: Running, outcome: Outcome) -> None:
        """It was not the item's fault: it goes back."""
        self._outbox.release([running.lease])
        self.close(running, outcome, Verdict.RELEASED)

    def end(self, running: Running, outcome: Outcome, *, final: bool = False) -> None:
        """The item succeeded, or failed: `final` for failures that another attempt would only repeat."""
        lease, spec, host = running.lease, running.run.spec, running.slot.host
        self.ended_counts[host.name] += 1
        succeeded = outcome.exit_code == 0 and (
            outcome.reason is None or outcome.reason.startswith("skipped")
        )
        kept = _kept(running.child) if spec.keep_output or not succeeded else b""
        if succeeded:
            self.opinions.succeeded(running)
            self._tell(running)
            self._outbox.ack(host.calls, lease, outcome, kept)
            self.close(running, outcome, Verdict.SUCCEEDED)
            return
        delay = None
        if not final and spec.retry.applies_to(None if running.stopped else outcome.exit_code):
            delay = spec.retry.delay_after(lease.failures + 1, random.random())
        judge = partial(self._judged, running, outcome, kept, delay)
        by_itself = outcome.reason is None and running.stopped is None
        if final or not by_itself or not self.opinions.failed(running, outcome, delay, judge):
            judge(elsewhere=False)

    def _judged(
        self, running: Running, outcome: Outcome, kept: bytes, delay: float | None, elsewhere: bool
    ) -> None:
        """The item has failed here, or is tried on another node."""
        lease, spec = running.lease, running.run.spec
        if elsewhere:
            self._outbox.over(lease)
            self.close(running, outcome, Verdict.ELSEWHERE)
            return
        again = delay is not None and lease.failures < spec.retry.retries
        if not again:
            self._tell(running)
        self._outbox.fail(running.slot.host.calls, lease, outcome, delay, kept)
        self.close(running, outcome, Verdict.RETRY if again else Verdict.FAILED, delay)

    def _tell(self, running: Running) -> None:
        """Sends what it printed to who made the run, if that one wants it."""
        if running.run.spec.tell_output and not self._prints:
            child = running.child
            printed = (_ends(source) for source in (child.stdout, child.stderr))
            self._link.send(self._calls.tell(running.lease, *printed), lambda reply: None)

    def close(
        self, running: Running, outcome: Outcome, verdict: Verdict, retry_seconds: float | None = None
    ) -> None:
        """Tells the observer, and removes what is left of the attempt; Redis was told, or others own the item."""
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
