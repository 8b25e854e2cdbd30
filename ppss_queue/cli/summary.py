"""The last words of `ppss run` and `ppss wait`: what came of a run, what failed alike, what to type next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from ppss_queue.errors import ExitCode
from ppss_queue.model import ItemView, RunState, State
from ppss_queue.queue import Run
from ppss_queue.store import Counts
from ppss_queue.units import format_count, format_duration, plural, printable, shorten

_EXAMINED = 10_000
"""Failed items that are looked at to group them."""
_GROUPS = 5
_NAMES = 3


@dataclass(slots=True)
class _Alike:
    """Items that failed in the same way."""

    count: int = 0
    names: list[str] = field(default_factory=list)


def exit_code(counts: Counts) -> ExitCode:
    """What `run` and `wait` end with."""
    if counts.state is RunState.CANCELLED:
        return ExitCode.RUN_CANCELLED
    return ExitCode.ITEMS_FAILED if counts.failed or counts.reason else ExitCode.OK


def summarize(run: Run, counts: Counts, *, wall_seconds: float, slots: int) -> list[str]:
    """Lines for a run that ended; `slots` 0: it did not work here."""
    what = counts.state if counts.state is not RunState.PAUSED else counts.reason
    parts = [f"{format_count(counts.succeeded)} succeeded"]
    if counts.failed:
        parts.append(f"{format_count(counts.failed)} failed")
    if counts.cancelled:
        parts.append(f"{format_count(counts.cancelled)} cancelled")
    if counts.left:
        parts.append(f"{format_count(counts.left)} left")
    work = ""
    if slots and wall_seconds >= 1 and counts.work_seconds:
        speedup = counts.work_seconds / wall_seconds
        work = f" · {format_duration(counts.work_seconds)} of work on {plural(slots, 'slot')}, {speedup:.1f}x"
    lines = [f"run {run.id} {what} in {format_duration(wall_seconds)}: {', '.join(parts)}{work}"]
    first = ""
    if counts.failed:
        failed = list(islice(run.items(State.FAILED), _EXAMINED))
        lines += _groups(failed)
        first = failed[0].name if failed else ""
    return lines + _next_steps(run, counts, first)


def _groups(failed: Iterable[ItemView]) -> list[str]:
    groups: dict[str, _Alike] = {}
    for view in failed:
        outcome = view.outcome
        label = outcome.failure or "failed"
        if outcome.last_line and not outcome.reason:
            label += f' · "{shorten(outcome.last_line, 60)}"'
        alike = groups.setdefault(label, _Alike())
        alike.count += 1
        if len(alike.names) < _NAMES:
            alike.names.append(shorten(printable(view.name), 40))
    lines = []
    ranked = sorted(groups.items(), key=lambda pair: -pair[1].count)
    for label, alike in ranked[:_GROUPS]:
        names = ", ".join(alike.names) + (", ..." if alike.count > len(alike.names) else "")
        same = " failed alike ·" if alike.count > 1 else ""
        lines.append(f"  {format_count(alike.count)}{same} {label}    {names}")
    if len(ranked) > _GROUPS:
        lines.append(
            f"  and {plural(len(ranked) - _GROUPS, 'more kind')} of failure: ppss items ... --state failed"
        )
    return lines


def _next_steps(run: Run, counts: Counts, failed_name: str) -> list[str]:
    steps = []
    if failed_name:
        name = shlex.quote(failed_name) if failed_name.isprintable() else ""
        steps.append(f"see one: ppss log {run.id} {name}" if name else f"see them: ppss items {run.id}")
    if counts.state is RunState.PAUSED:
        steps.append(f"go on: ppss run --resume {run.id}")
    elif counts.failed:
        steps.append(f"again: ppss run --resume {run.id} --retry-failed")
    return ["    ".join(steps)] if steps else []


def say(lines: Iterable[str]) -> None:
    print("\n".join(lines), file=sys.stderr, flush=True)
