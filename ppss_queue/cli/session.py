"""`ppss run` at work: a worker for one run, with its display, its printer and its last words."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ppss_worker.logs import Logs
from ppss_worker.observer import Ended, Verdict
from ppss_worker.runs import ActiveRun
from ppss_worker.settings import Settings, Stop
from ppss_worker.worker import Worker

from ppss_queue import scripts
from ppss_queue.cli import summary
from ppss_queue.cli.display import FRAME_SECONDS, Display, Progress
from ppss_queue.cli.elsewhere import Elsewhere
from ppss_queue.cli.eta import Durations
from ppss_queue.cli.frame import CLOSED, machine_failed
from ppss_queue.cli.nodes_live import NodesLive
from ppss_queue.cli.printer import Printer
from ppss_queue.cli.say import complaint, fail, say, typed
from ppss_queue.cli.serving import unserved
from ppss_queue.cli.staging import open_files_of
from ppss_queue.connection import Reply
from ppss_queue.errors import ConnectFailed, ExitCode, PpssError, Unavailable
from ppss_queue.model import ENDED, Lease, RunState
from ppss_queue.queue import Queue
from ppss_queue.run import Run
from ppss_queue.scripts import Call
from ppss_queue.store import Counts, read_counts
from ppss_queue.units import format_count, plural

if TYPE_CHECKING:
    from ppss_queue.nodes.joining import Joining

_COUNT_SECONDS = 0.5
"""Between looks at the counts, for the display only."""
_OVER = (Verdict.SUCCEEDED, Verdict.FAILED)


@dataclass(frozen=True, slots=True)
class Show:
    """How outputs of items are shown."""

    keep_order: bool = False
    tag: bool = False
    line_buffer: bool = False
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class _Begun:
    name: str
    since: float


class Session:
    """Observer of the worker that `ppss run` is."""

    def __init__(
        self,
        queue: Queue,
        run: Run,
        settings: Settings,
        show: Show,
        logs: Path | None,
        joining: Joining | None = None,
    ) -> None:
        """`logs`: where --logs wants a log per item. `joining`: nodes that take part."""
        self._queue = queue
        self._run = run
        self._slots = settings.slots + settings.slots_elsewhere
        self._where = _where(settings)
        self._show = show
        self._display = Display(quiet=show.quiet)
        self._printer = Printer(
            keep_order=show.keep_order, tag=show.tag, quiet=show.quiet, before=self._display.make_room
        )
        self._elsewhere = Elsewhere(queue.keys, run.id, self._printer)
        self._nodes = NodesLive(queue.keys, joining)
        self._logs = Logs(settings.state_directory, logs)
        self._durations = Durations()
        self._begun: dict[str, _Begun] = {}
        self._counts: Counts | None = None
        self._counted_at = 0.0
        self._running = 0
        self._work_seconds = 0.0
        self._stop_said = Stop.NO
        self._unprintable: OSError | None = None
        self._worker = Worker(queue.connection.clone(), queue.keys, settings, self, open_files_of(queue))

    def work(self) -> int:
        """Until the run ends; returns the exit code."""
        self._counts = self._run.status()
        if self._show.keep_order:
            self._skip_ended(self._counts)
        if not self._show.quiet:
            more = (
                f" · {plural(len(joining.steps), 'node')} to join" if (joining := self._nodes.joining) else ""
            )
            self._display.say(
                f"run {self._run.id} · {plural(self._counts.total, 'item')} · {self._where}{more}"
            )
        started = time.monotonic()
        failure: PpssError | OSError | None = None
        try:
            self._worker.work(self._tick)
            self._run.reconnect()  # the worker has a connection of its own, and may have outlived a restart
            if self._counts.spec.tell_output:
                self._elsewhere.drain(self._queue.connection)
            self._printer.flush()
        except (PpssError, OSError) as error:
            failure = error
        finally:
            self._display.close()
            self._logs.close()
            if self._nodes.joining and not self._is_over():
                self._nodes.leave()
        failure = self._unprintable or failure
        return self._conclude(time.monotonic() - started) if failure is None else self._give_up(failure)

    # Observer

    def began(self, worker: str) -> None:
        """What is shown first is the run."""

    def started(self, lease: Lease, run: ActiveRun, slot: int) -> None:
        self._begun[lease.member] = _Begun(lease.item.name, time.monotonic())

    def output(self, lease: Lease, target: int, data: bytes) -> None:
        """A piece of what a running item prints (--line-buffer)."""
        if self._unprintable is None:
            try:
                self._printer.line(lease.item.seq, lease.item.name, target, data)
            except OSError as error:
                self._unprintable = error
                self._worker.stop(Stop.NOW)

    def ended(self, ended: Ended) -> None:
        """Raises OSError where output or logs can't be written: nothing more is run then."""
        self._begun.pop(ended.lease.member, None)
        self._work_seconds += ended.outcome.seconds
        self._logs.write(ended)
        item, over = ended.lease.item, ended.verdict in _OVER
        if over:
            self._durations.add(ended.outcome.seconds)
        if self._unprintable is not None:
            return
        if self._show.line_buffer:
            self._printer.last_line(item.seq, item.name)
        elif over:
            self._printer.ended(item.seq, item.name, ended.stdout, ended.stderr)

    def warn(self, sentence: str) -> None:
        self._display.say(complaint(sentence))

    # Display

    def _tick(self) -> float:
        now = time.monotonic()
        stop, running = self._worker.stopping, self._worker.running
        if stop > self._stop_said:
            self._stop_said = stop
            # What is quick to stop has ended since the last look.
            self._say_stop(stop, max(running, self._running))
        self._running = running
        for sentence in self._nodes.failures():
            self._display.say(complaint(sentence))
        if self._worker.is_cut_off and self._nodes.is_hopeless:
            raise ConnectFailed(_nobody_joined(self._run))
        if self._show.quiet:
            return 10.0
        if now >= self._counted_at + _COUNT_SECONDS:
            self._counted_at = now
            self._worker.query(Call(self._queue.keys, "counts", (self._run.id,)), self._counted)
            counts = self._counts
            if counts and counts.spec.tell_output and len(counts.workers) > 1 and not self._elsewhere.asked:
                self._worker.query(self._elsewhere.ask(), self._heard)
            if counts and self._nodes.is_due(counts):
                self._worker.query(self._nodes.ask(), self._nodes.hear)
        if self._counts is not None:
            self._display.show(self._progress(self._counts, now))
        return FRAME_SECONDS

    def _counted(self, reply: Reply) -> None:
        if isinstance(reply, list):
            self._counts = read_counts(self._run.id, reply)

    def _heard(self, reply: Reply) -> None:
        if self._unprintable is None:
            try:
                self._elsewhere.hear(reply)
            except OSError as error:
                self._unprintable = error
                self._worker.stop(Stop.NOW)

    def _progress(self, counts: Counts, now: float) -> Progress:
        if len(counts.workers) < 2:  # the counts are a moment old, and know of an end only when it was told
            counts = replace(counts, running=len(self._begun))
        slots = self._nodes.slots(counts, self._worker.slots)
        progress = _with_nodes(Progress.of(counts, self._durations, slots), self._nodes)
        if not self._begun:
            return progress
        longest = min(self._begun.values(), key=lambda begun: begun.since)
        return replace(progress, longest=longest.name, longest_seconds=now - longest.since)

    def _is_over(self) -> bool:
        with suppress(PpssError):
            return self._run.is_over()
        return False

    def _say_stop(self, stop: Stop, running: int) -> None:
        items = plural(running, "running item")
        if running and stop is Stop.DRAIN:
            self._display.say(f"finishing {items} (again: stop now) ...")
        elif running and stop is Stop.NOW:
            self._display.say(f"stopping {items} (again: at once) ...")

    def _skip_ended(self, counts: Counts) -> None:
        """What ended before this session is not waited for by --keep-order, but what other workers told is printed."""
        if counts.left < counts.total:
            ended = [view.seq for view in self._run.items() if view.state in ENDED]
            if counts.spec.tell_output:  # after the look: an item is told before it has ended
                self._elsewhere.drain(self._queue.connection)
            self._printer.skip(ended)

    # Last words

    def _conclude(self, wall_seconds: float) -> int:
        try:
            counts = self._run.status()
        except PpssError as error:
            return self._give_up(error)
        if counts.state in (RunState.DONE, RunState.CANCELLED) or counts.reason:
            if self._nodes.joining:
                work = summary.work_done(
                    counts.work_seconds, wall_seconds, self._nodes.slots_used(self._slots)
                )
            else:
                work = summary.work_done(self._work_seconds, wall_seconds, self._slots)
            summary.print_lines(summary.summarize(self._run, counts, wall_seconds, work))
            return summary.exit_code(counts)
        self._say_what_is_left(counts)
        return ExitCode.INTERRUPTED

    def _give_up(self, failure: PpssError | OSError) -> int:
        if isinstance(failure, OSError):
            code: int = ExitCode.INTERRUPTED
            if failure.errno not in CLOSED:
                code = fail(machine_failed(failure))
        else:
            code = fail(failure)
        try:
            self._queue.connection.revive()
            self._say_what_is_left(self._run.status())
        except PpssError:
            say(f"when Redis is back, go on: {typed(f'run --resume {self._run.id}')}")
        return code

    def _say_what_is_left(self, counts: Counts) -> None:
        if not counts.left:
            summary.print_lines(summary.summarize(self._run, counts, summary.wall_seconds(counts)))
            return
        done = format_count(counts.total - counts.left)
        failed = f" ({format_count(counts.failed)} failed)" if counts.failed else ""
        say(
            f"run {self._run.id} interrupted: {done} done{failed}, {format_count(counts.left)} left, nothing lost"
        )
        say(f"go on: {typed(f'run --resume {self._run.id}')}")


def _where(settings: Settings) -> str:
    """Where the items run."""
    parts = [f"{plural(settings.slots, 'slot')} on this machine"] if settings.slots else []
    if settings.nodes:
        number = (
            plural(settings.slots_elsewhere, "slot")
            if all(node.known_slots for node in settings.nodes)
            else "slots"
        )
        parts.append(f"{number} on {plural(len(settings.nodes), 'node')}")
    return " · ".join(parts)


def watch(queue: Queue, run: Run, show: Show, *, prints: bool, joining: Joining | None = None) -> int:
    """Shows a run that works elsewhere until it ends; Ctrl-C ends only the view, unless nodes were to join.

    `prints`: its outputs too, if its workers tell them. Returns the exit code of the run.
    """
    nodes = NodesLive(queue.keys, joining)
    quiet = show.quiet
    display = Display(quiet=quiet)
    printer = Printer(keep_order=show.keep_order, tag=show.tag, quiet=quiet, before=display.make_room)
    elsewhere = Elsewhere(queue.keys, run.id, printer)
    prints = prints and run.status().spec.tell_output
    try:
        counts = run.status()
        if not quiet:
            workers = [plural(len(counts.workers), "worker")] if counts.workers else []
            display.say(" · ".join([f"run {run.id}", plural(counts.total, "item"), *workers]))
            why = unserved(queue.workers(), counts.spec) if joining is None else ""
            if why and not run.is_over():
                display.say(complaint(why))
        while True:
            try:
                over = run.is_over()
                if prints:
                    elsewhere.drain(queue.connection)
                if over:
                    printer.flush()
                    break
                for sentence in nodes.failures():
                    display.say(complaint(sentence))
                counts = run.status()
                if nodes.is_hopeless and not counts.workers:
                    display.close()
                    return fail(ConnectFailed(_nobody_joined(run)))
                if nodes.is_due(counts):
                    nodes.hear(scripts.run(queue.connection, nodes.ask()))
                display.show(_with_nodes(Progress.of(counts, Durations(), 0), nodes))
            except Unavailable:
                run.reconnect()
            time.sleep(_COUNT_SECONDS)
    except KeyboardInterrupt:
        display.close()
        if joining is None:
            say(f"run {run.id} goes on. See it again: {typed(f'attach {run.id}')}")
        else:
            say("stopping the nodes ...")
            nodes.leave()
            say(f"run {run.id} interrupted, nothing lost\ngo on: {typed(f'run --resume {run.id}')}")
        return ExitCode.INTERRUPTED
    display.close()
    counts = run.status()
    summary.print_lines(summary.summarize(run, counts, summary.wall_seconds(counts)))
    return summary.exit_code(counts)


def _with_nodes(progress: Progress, nodes: NodesLive) -> Progress:
    return replace(progress, nodes=lambda columns, rows: nodes.lines(progress.counts, columns, rows))


def _nobody_joined(run: Run) -> str:
    return (
        f"no node takes part in run {run.id}, and nothing runs here. Go on: {typed(f'run --resume {run.id}')}"
    )
