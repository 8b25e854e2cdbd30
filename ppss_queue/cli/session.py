"""`ppss run` at work: a worker for one run, with its display, its printer and its last words."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ppss_worker.attempts import Ended, Verdict
from ppss_worker.logs import Logs
from ppss_worker.runs import ActiveRun
from ppss_worker.worker import Settings, Stop, Worker

from ppss_queue.cli import summary
from ppss_queue.cli.display import FRAME_SECONDS, Display, Progress
from ppss_queue.cli.eta import Durations
from ppss_queue.cli.printer import Printer
from ppss_queue.cli.work import this_node
from ppss_queue.connection import Reply
from ppss_queue.errors import ExitCode, PpssError
from ppss_queue.model import Lease, RunSpec, RunState
from ppss_queue.queue import Queue, Run
from ppss_queue.scripts import Call
from ppss_queue.store import Counts, read_counts
from ppss_queue.units import format_count, plural

_COUNT_SECONDS = 0.5
"""Between looks at the counts, for the display only."""
_SCREEN = (Verdict.SUCCEEDED, Verdict.FAILED)


@dataclass(slots=True)
class _Begun:
    name: str
    since: float


class Session:
    """Observer of the worker that `ppss run` is."""

    def __init__(
        self,
        queue: Queue,
        run: Run,
        spec: RunSpec,
        *,
        slots: int,
        options: dict[str, Any],
        state_directory: Path,
    ) -> None:
        self._queue = queue
        self._run = run
        self._slots = slots
        self._display = Display(quiet=options["quiet"])
        self._printer = Printer(
            keep_order=options["keep_order"],
            tag=options["tag"],
            quiet=options["quiet"],
            before=self._display.clear,
        )
        self._lines = bool(options["line_buffer"]) and not options["quiet"]
        self._quiet = bool(options["quiet"])
        logs = options["logs"]
        self._logs = Logs(state_directory, Path(logs).absolute() if logs else None)
        self._durations = Durations()
        self._begun: dict[int, _Begun] = {}
        self._counts: Counts | None = None
        self._counted_at = 0.0
        self._stop_said = Stop.NO
        import random

        settings = Settings(
            slots=slots,
            node=options["node_name"] or this_node(),
            state_directory=state_directory,
            burst=True,
            runs=(run.id,),
            start_delay_seconds=random.uniform(0, options["delay"]),
            line_buffer=self._lines,
        )
        self._worker = Worker(queue.connection.clone(name="ppss-worker"), queue.keys, settings, self)

    def work(self) -> int:
        """Until the run ends; returns the exit code."""
        counts = self._run.status()
        if not self._quiet:
            self._display.say(
                f"run {self._run.id} · {plural(counts.total, 'item')} · {plural(self._slots, 'slot')} on this machine"
            )
        started = time.monotonic()
        failure: PpssError | None = None
        try:
            self._worker.work(self._tick)
        except PpssError as error:
            failure = error
        finally:
            self._display.clear()
            self._logs.close()
        self._printer.flush()
        if failure is not None:
            self._say_what_is_left()
            raise failure
        return self._conclude(time.monotonic() - started)

    # Observer

    def started(self, lease: Lease, run: ActiveRun, slot: int) -> None:
        self._begun[slot] = _Begun(lease.item.name, time.monotonic())

    def output(self, lease: Lease, target: int, data: bytes) -> None:
        """A piece of what a running item prints (--line-buffer)."""
        self._printer.line(lease.item.seq, lease.item.name, target, data)

    def ended(self, ended: Ended) -> None:
        self._begun.pop(ended.slot, None)
        self._logs.write(ended)
        item = ended.lease.item
        if ended.verdict in _SCREEN:
            self._durations.add(ended.outcome.seconds)
        if self._lines:
            self._printer.last_line(item.seq, item.name)
        elif ended.verdict in _SCREEN:
            self._printer.ended(item.seq, item.name, ended.stdout, ended.stderr)

    def warn(self, sentence: str) -> None:
        self._display.say(f"ppss: {sentence}")

    # Display

    def _tick(self) -> float:
        now = time.monotonic()
        stop = self._worker.stopping
        if stop > self._stop_said:
            self._stop_said = stop
            self._say_stop(stop)
        if self._quiet:
            return 10.0
        if now >= self._counted_at + _COUNT_SECONDS:
            self._counted_at = now
            self._worker.query(Call(self._queue.keys, "counts", (self._run.id,)), self._counted)
        if self._counts is not None:
            self._display.show(self._progress(self._counts, now))
        return FRAME_SECONDS

    def _counted(self, reply: Reply) -> None:
        if isinstance(reply, list):
            self._counts = read_counts(self._run.id, reply)

    def _progress(self, counts: Counts, now: float) -> Progress:
        if len(counts.workers) < 2:  # the counts are a moment old, and know of an end only when it was told
            counts = replace(counts, running=len(self._begun))
        longest = min(self._begun.values(), key=lambda begun: begun.since, default=None)
        return Progress.of(
            counts,
            self._durations,
            self._slots,
            longest=longest.name if longest else "",
            longest_seconds=now - longest.since if longest else 0.0,
        )

    def _say_stop(self, stop: Stop) -> None:
        running = plural(self._worker.running, "running item")
        if stop is Stop.DRAIN:
            self._display.say(f"finishing {running} (again: stop now) ...")
        elif stop is Stop.NOW:
            self._display.say(f"stopping {running} (again: at once) ...")

    def _conclude(self, wall_seconds: float) -> int:
        counts = self._run.status()
        if counts.state in (RunState.DONE, RunState.CANCELLED) or counts.reason:
            summary.say(summary.summarize(self._run, counts, wall_seconds=wall_seconds, slots=self._slots))
            return summary.exit_code(counts)
        self._say_what_is_left()
        return ExitCode.INTERRUPTED

    def _say_what_is_left(self) -> None:
        try:
            counts = self._run.status()
        except PpssError:
            return
        done = counts.total - counts.left
        summary.say(
            [
                f"run {self._run.id} interrupted: {format_count(done)} done, {format_count(counts.left)} left, "
                "nothing lost",
                f"go on: ppss run --resume {self._run.id}",
            ]
        )


def watch(queue: Queue, run: Run, *, quiet: bool) -> int:
    """Shows a run that works elsewhere until it ends; Ctrl-C ends only the view. Returns the exit code of the run."""
    display, durations = Display(quiet=quiet), Durations()
    counts = run.status()
    if not quiet:
        display.say(
            f"run {run.id} · {plural(counts.total, 'item')} · {plural(len(counts.workers), 'worker')}"
        )
        if not counts.workers and not queue.workers():
            display.say("no worker is there. Start one here or on another machine: ppss worker")
    try:
        while True:
            try:
                run.wait(_COUNT_SECONDS)
                break
            except TimeoutError:
                display.show(Progress.of(run.status(), durations, 0))
    except KeyboardInterrupt:
        display.clear()
        print(f"run {run.id} goes on. See it again: ppss attach {run.id}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    display.clear()
    counts = run.status()
    wall = (counts.ended or time.time()) - counts.created
    summary.say(summary.summarize(run, counts, wall_seconds=wall, slots=0))
    return summary.exit_code(counts)
