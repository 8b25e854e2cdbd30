"""The last words of `ppss run` and `ppss wait`: what came of a run, what failed alike, what to type next."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from ppss_queue.cli.say import say, typed
from ppss_queue.errors import ExitCode
from ppss_queue.model import ItemView, RunState, State
from ppss_queue.run import Run
from ppss_queue.store import Counts
from ppss_queue.units import format_count, format_duration, plural, printable, shorten

_EXAMINED = 10_000
"""Failed items that are looked at to group them."""
_GROUPS = 5
_NAMES = 3
_NAME_COLUMNS = 40
_LINE_COLUMNS = 80
_TELLING_CHARACTERS = 3
"""A shorter name may stand in a message by chance, as in `line 1`."""


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


def wall_seconds(counts: Counts) -> float:
    """From the making of a run to its end, or to now."""
    return (counts.ended or time.time()) - counts.created


def work_done(work_seconds: float, wall_seconds: float, slots: int) -> str:
    """`38 min of work on 8 slots, 7.8x`; nothing for what is over in a blink."""
    if wall_seconds < 1 or not work_seconds:
        return ""
    speedup = work_seconds / wall_seconds
    return f" · {format_duration(work_seconds)} of work on {plural(slots, 'slot')}, {speedup:.1f}x"


def summarize(run: Run, counts: Counts, wall_seconds: float, work: str = "") -> list[str]:
    """Lines for a run that ended; `work` as of `work_done`, if it worked here."""
    what = counts.state if counts.state is not RunState.PAUSED else counts.reason
    parts = [f"{format_count(counts.succeeded)} succeeded"]
    if counts.failed:
        parts.append(f"{format_count(counts.failed)} failed")
    if counts.cancelled:
        parts.append(f"{format_count(counts.cancelled)} cancelled")
    if counts.left:
        parts.append(f"{format_count(counts.left)} left")
    lines = [f"run {run.id} {what} in {format_duration(wall_seconds)}: {', '.join(parts)}{work}"]
    failed = list(islice(run.items(State.FAILED), _EXAMINED)) if counts.failed else []
    return [*lines, *_groups(run, failed), *_next_steps(run, counts, failed)]


def _groups(run: Run, failed: Iterable[ItemView]) -> list[str]:
    groups: dict[str, _Alike] = {}
    for view in failed:
        alike = groups.setdefault(_kind(view), _Alike())
        alike.count += 1
        if len(alike.names) < _NAMES:
            alike.names.append(shorten(printable(view.name), _NAME_COLUMNS) or "''")
    ranked = sorted(groups.items(), key=lambda pair: -pair[1].count)
    lines = []
    for kind, alike in ranked[:_GROUPS]:
        names = ", ".join(alike.names) + (", ..." if alike.count > len(alike.names) else "")
        how = "failed alike" if alike.count > 1 else "failed"
        lines.append(f"  {format_count(alike.count)} {how} · {kind}    {names}")
    if len(ranked) > _GROUPS:
        more = plural(len(ranked) - _GROUPS, "more kind")
        lines.append(f"  and {more} of failure: {typed(f'items {run.id} --state failed')}")
    return lines


def _kind(view: ItemView) -> str:
    """What it has in common with items that failed alike: how it ended, and its last line without its own name."""
    outcome = view.outcome
    if outcome.reason or not outcome.last_line:
        return outcome.failure or "failed"
    line = outcome.last_line
    for name in (view.name, os.path.basename(view.name)):
        if len(name) >= _TELLING_CHARACTERS:
            line = line.replace(name, "{}")
    return f'{outcome.failure} · "{shorten(printable(line), _LINE_COLUMNS)}"'


def _next_steps(run: Run, counts: Counts, failed: list[ItemView]) -> list[str]:
    steps = []
    if failed:
        steps.append(f"see one: {typed(f'log {run.id} {_pasteable(failed[0])}')}")
    if counts.state is RunState.PAUSED:
        steps.append(f"go on: {typed(f'run --resume {run.id}')}")
    elif counts.failed and counts.state is RunState.DONE:
        steps.append(f"again: {typed(f'run --resume {run.id} --retry-failed')}")
    if counts.spec.output is not None and counts.succeeded:
        steps.append(f"outputs: {_from_here(counts.spec.output)}/")
    return ["    ".join(steps)] if steps else []


def _pasteable(view: ItemView) -> str:
    """The item as an argument: its name, or its number where a name could be misread."""
    name = view.name
    plain = name.isprintable() and len(name) <= _LINE_COLUMNS and name[:1] not in ("", "-", "#")
    return shlex.quote(name if plain else f"#{view.seq}")


def _from_here(path: str) -> str:
    """The path as one would type it here."""
    try:
        below = os.path.relpath(path)
    except OSError:  # the current directory is gone
        return printable(path)
    return printable(path if below.startswith("..") else below)


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)
