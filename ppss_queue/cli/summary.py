"""The last words of `ppss run` and `ppss wait`: what came of a run, what failed alike, what to type next."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from ppss_queue.cli.say import say, typed
from ppss_queue.errors import ExitCode
from ppss_queue.model import ItemView, RunSpec, RunState, State
from ppss_queue.run import Run
from ppss_queue.store import Counts
from ppss_queue.units import format_count, format_duration, listed, plural, printable, shorten

_EXAMINED = 10_000
"""Failed items that are looked at to group them."""
_GROUPS = 6
"""Lines for them; the last is for all that would need more."""
_NAMES = 3
_NAME_COLUMNS = 40
_LINE_COLUMNS = 80


def exit_code(counts: Counts) -> ExitCode:
    """What `run` and `wait` end with."""
    if counts.state is RunState.CANCELLED:
        return ExitCode.RUN_CANCELLED
    return ExitCode.ITEMS_FAILED if counts.failed or counts.reason else ExitCode.OK


def wall_seconds(counts: Counts) -> float:
    """From the making of a run to its end, or to now."""
    return (counts.ended or time.time()) - counts.created


def work_done(work_seconds: float, wall_seconds: float, slots: int) -> str:
    """`38 min of work on 8 slots, 7.8x`; nothing for what is over in a blink, or before its nodes were seen."""
    if wall_seconds < 1 or not work_seconds or not slots:
        return ""
    speedup = work_seconds / wall_seconds
    return f" · {format_duration(work_seconds)} of work on {plural(slots, 'slot')}, {speedup:.1f}x"


def summarize(run: Run, counts: Counts, wall_seconds: float, work: str = "") -> list[str]:
    """Lines for a run that ended; `work` as of `work_done`, if it worked here."""
    what = f"{counts.state} in {format_duration(wall_seconds)}"
    if counts.state is RunState.PAUSED:  # the reason is "halted now: 2 items failed"
        what = f"halted after {format_duration(wall_seconds)} ({counts.reason.partition(': ')[2]})"
    parts = [f"{format_count(counts.succeeded)} succeeded"]
    if counts.failed:
        parts.append(f"{format_count(counts.failed)} failed")
    if counts.cancelled:
        parts.append(f"{format_count(counts.cancelled)} cancelled")
    if counts.left:
        parts.append(f"{format_count(counts.left)} left")
    lines = [f"run {run.id} {what}: {', '.join(parts)}{work}"]
    failed = list(islice(run.items(State.FAILED), _EXAMINED)) if counts.failed else []
    return [*lines, *_groups(run, counts, failed), *_next_steps(run, counts, failed)]


def _groups(run: Run, counts: Counts, failed: Iterable[ItemView]) -> list[str]:
    ranked = sorted(_alike(failed, counts.spec).items(), key=lambda pair: -len(pair[1]))
    shown = ranked if len(ranked) <= _GROUPS else ranked[: _GROUPS - 1]
    lines = []
    for kind, alike in shown:
        how = "failed alike" if len(alike) > 1 else "failed"
        names = [shorten(printable(view.name), _NAME_COLUMNS) or "''" for view in alike[:_NAMES]]
        lines.append(f"  {format_count(len(alike))} {how} · {kind}    {listed(names, len(alike))}")
    if rest := [view for _, alike in ranked[len(shown) :] for view in alike]:
        endings = Counter(replace(view.outcome, reason=None).failure or "other reasons" for view in rest)
        counted = [f"{ending} ({format_count(count)})" for ending, count in endings.most_common(_NAMES)]
        how = f"{listed(counted, len(endings))}    all: {typed(f'items {run.id} --state failed')}"
        lines.append(f"  {format_count(len(rest))} more failed in other ways · {how}")
    return lines


def _alike(failed: Iterable[ItemView], spec: RunSpec) -> dict[str, list[ItemView]]:
    """Items by how they failed. A name is left out of a message only where that makes items alike: it may be chance."""
    nameless: dict[str, list[ItemView]] = {}
    for view in failed:
        line = _without_name(view.outcome.last_line, spec.local_path(view.item))
        nameless.setdefault(_kind(view, line), []).append(view)
    groups: dict[str, list[ItemView]] = {}
    for kind, views in nameless.items():
        kind = kind if len(views) > 1 else _kind(views[0], views[0].outcome.last_line)
        groups.setdefault(kind, []).extend(views)
    return groups


def _kind(view: ItemView, last_line: str) -> str:
    """What it has in common with items that failed alike: how it ended, and its last line."""
    outcome, line = view.outcome, shorten(printable(last_line), _LINE_COLUMNS)
    if outcome.reason and outcome.reason == outcome.last_line:  # an exception of a Python function is both
        return line
    if outcome.reason or not line:
        return outcome.failure or "failed"
    return f'{outcome.failure} · "{line}"'


def _without_name(line: str, path: str) -> str:
    """`{}` for each name that stands alone: the 1 of `item 1`, but not that of `10`, `1.5` or `x1`.

    `path`: what `$ITEM` was; also without any of the directories that it begins with.
    """
    parts = path.split("/")
    names = ["/".join(parts[at:]) for at in range(len(parts))]
    names = [name for name in names if name and name in line]
    if not names:
        return line
    either = "|".join(map(re.escape, names))
    return re.sub(rf"(?<!\w)(?<!\d[.,])(?:{either})(?!\w)(?![.,]\d)", "{}", line)


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
