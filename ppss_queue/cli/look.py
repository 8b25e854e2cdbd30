"""ppss status, items, attach: verbs that show runs and items, and change nothing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import click

from ppss_queue.cli.completing import complete_runs
from ppss_queue.cli.frame import Verb, open_queue
from ppss_queue.cli.options import json_option, option, url_option
from ppss_queue.cli.say import say, typed, warn
from ppss_queue.cli.serving import unserved
from ppss_queue.cli.table import table
from ppss_queue.cli.watching import show
from ppss_queue.errors import BadInput, ExitCode
from ppss_queue.model import ENDED, STATES, Item, ItemView, Outcome, RunState, State
from ppss_queue.units import format_count, format_duration, format_rate, printable, shorten

if TYPE_CHECKING:
    from ppss_queue.queue import Queue
    from ppss_queue.store import Counts

_COMMAND_COLUMNS = 60
_NAME_COLUMNS = 60
_ROWS_AT_ONCE = 500
"""Items whose columns are aligned together, so that a million of them stream."""


@click.command(
    "status",
    cls=Verb,
    examples="""
    ppss status
    ppss status last --watch
    ppss status k3v9 --json | jq .failed
    """,
)
@click.argument("run", required=False, shell_complete=complete_runs)
@option("-w", "--watch", is_flag=True, help="Show it again each second until Ctrl-C.")
@json_option
@url_option
def status_verb(run: str | None, watch: bool, as_json: bool, url: str | None) -> int:
    """Show all runs, or one: counts, rate, time left, nodes."""
    with open_queue(url) as queue:
        for warning in queue.warnings:
            warn(warning)

        def look(rows: int | None) -> list[str]:
            runs = [queue.run(run).status()] if run else queue.runs()
            if as_json:
                return [json.dumps(status_object(counts)) for counts in runs]
            notes = _unserved_lines(queue, runs)
            if queue.connection.execute("EXISTS", queue.keys.suspended) == 1:
                notes.append("RQ is suspended, so nothing is handed out. Go on: rq resume")
            return _fitting(runs, notes, rows, one=run is not None)

        show(look, watch=watch, in_place=not as_json)
    return ExitCode.OK


def _fitting(runs: list[Counts], notes: list[str], rows: int | None, *, one: bool) -> list[str]:
    """Where all would scroll by, the runs that matter most, and how many more."""
    lines = [*_status_lines(runs, one=one), *notes]
    if rows is None or len(lines) <= rows or len(runs) < 2:
        return lines
    ranked = sorted(
        runs, key=lambda counts: (counts.running > 0, not counts.ended, counts.created), reverse=True
    )
    shown = ranked[: max(1, rows - 2 - len(notes[-1:]))]
    more = f"and {format_count(len(runs) - len(shown))} more"
    return [*_status_lines(shown, one=False)[: len(shown) + 1], more, *notes[-1:]]


def _status_lines(runs: list[Counts], *, one: bool) -> list[str]:
    if not runs:
        return [f"no runs. Make one: {typed('run DIR -c COMMAND')}"]
    header = ("RUN", "STATE", "DONE", "FAILED", "RUNNING", "RATE", "ETA", "NODES", "COMMAND")
    lines = table(header, [_row(counts) for counts in runs])
    for counts in runs:
        if one:
            lines.append(f"items: {_state_counts(counts)}")
        if one and counts.reason:
            lines.append(f"{counts.reason}. Go on: {typed(f'run --resume {counts.run}')}")
        if counts.expired:
            lines.append(
                f"{counts.run}: {format_count(counts.expired)} items were with workers that are gone; "
                "they come back with the next claim."
            )
    return lines


def _unserved_lines(queue: Queue, runs: list[Counts]) -> list[str]:
    """For runs whose items need more than any of the workers has that are there."""
    waiting = [
        counts
        for counts in runs
        if counts.spec.needs and counts.state is RunState.OPEN and not counts.running
    ]
    workers = queue.workers() if waiting else ()
    return [
        f"{counts.run}: {why}" for counts in waiting if workers and (why := unserved(workers, counts.spec))
    ]


def _row(counts: Counts) -> tuple[str, ...]:
    rate = _rate(counts)
    return (
        counts.run + (f" ({counts.name})" if counts.name else ""),
        _state_shown(counts),
        f"{format_count(counts.total - counts.left)}/{format_count(counts.total)}",
        format_count(counts.failed),
        str(counts.running),
        format_rate(rate) if rate else "-",
        format_duration(counts.left / rate) if rate and counts.left else "-",
        str(len(nodes_of(counts))),
        shorten(printable(command_shown(counts)), _COMMAND_COLUMNS),
    )


def _rate(counts: Counts) -> float:
    """Items per second; 0 once nobody works on it any more."""
    return counts.rate_per_second if counts.workers else 0.0


def _state_counts(counts: Counts) -> str:
    """`3 ready, 2 leased, 40 succeeded`: they sum up to the total."""
    values = {str(state): getattr(counts, state) for state in State}
    return ", ".join(f"{format_count(count)} {state}" for state, count in values.items() if count) or "none"


def _state_shown(counts: Counts) -> str:
    """For people an open run is running or waiting."""
    if counts.state is RunState.OPEN:
        return "running" if counts.running else "waiting"
    return "halted" if counts.state is RunState.PAUSED and counts.reason else counts.state


def nodes_of(counts: Counts) -> list[str]:
    """Worker keys are `...:<node>.<pid>-<nonce>`."""
    return sorted({worker.rpartition(".")[0] for worker in counts.workers})


def command_shown(counts: Counts) -> str:
    from ppss_queue.quoting import shell_quoted

    command = counts.spec.command
    if command is None:
        return "-"
    return command if isinstance(command, str) else shell_quoted(command)


def status_object(counts: Counts) -> dict[str, object]:
    """The object of `ppss status --json`."""
    rate = _rate(counts)
    return {
        "run": counts.run,
        "name": counts.name,
        "state": str(counts.state),
        "reason": counts.reason or None,
        "total": counts.total,
        "ready": counts.ready,
        "leased": counts.leased,
        "running": counts.running,
        "delayed": counts.delayed,
        "succeeded": counts.succeeded,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "lost": counts.lost,
        "rate_per_second": round(rate, 3),
        "eta_seconds": round(counts.left / rate, 1) if rate and counts.left else None,
        "nodes": nodes_of(counts),
        "command": counts.spec.command,
    }


@click.command(
    "items",
    cls=Verb,
    examples="""
    ppss items last --state failed
    ppss items k3v9 --names --state failed | xargs -0 ls -l
    ppss items k3v9 --json | jq -r 'select(.exit_code == 6).item'
    ppss items k3v9 --csv > items.csv
    """,
)
@click.argument("run", default="last", shell_complete=complete_runs)
@option(
    "--state",
    type=click.Choice([str(state) for state in STATES]),
    metavar="STATE",
    help=f"Only items in this state: {', '.join(STATES)}.",
)
@option("--csv", "as_csv", is_flag=True, help="Print CSV with a header.")
@option("-q", "--names", is_flag=True, help="Print only names, each ended by NUL: for xargs -0.")
@json_option
@url_option
def items_verb(run: str, state: str | None, as_csv: bool, names: bool, as_json: bool, url: str | None) -> int:
    """List the items of a run with their states.

    Without RUN it is the latest.
    """
    forms = {"--names": names, "--csv": as_csv, "--json": as_json}
    wanted = [name for name, is_wanted in forms.items() if is_wanted]
    if len(wanted) > 1:
        raise BadInput(f"{wanted[0]} and {wanted[1]} exclude each other: leave one out")
    with open_queue(url) as queue:
        found = queue.run(run)
        views = found.items(State(state) if state else None)
        if names:
            for view in views:
                sys.stdout.buffer.write(os.fsencode(view.name) + b"\0")
        elif as_json:
            for view in views:
                print(json.dumps(view.to_dict()))
        elif as_csv:
            _print_csv(views)
        elif not _print_items(views):
            say(f"run {found.id} has no {state + ' ' if state else ''}items")
    return ExitCode.OK


def _print_csv(views: Iterator[ItemView]) -> None:
    import csv

    sys.stdout.reconfigure(errors="surrogateescape", newline="")  # type: ignore[union-attr]
    columns = ItemView(Item(0, ""), State.READY, 0, 0, Outcome()).to_dict()
    writer = csv.DictWriter(sys.stdout, list(columns), lineterminator="\n")
    writer.writeheader()
    for view in views:
        writer.writerow(view.to_dict())


def _print_items(views: Iterator[ItemView]) -> bool:
    """False: there were none."""
    header: tuple[str, ...] = ("ITEM", "STATE", "TRIES", "NODE", "EXIT", "TOOK", "LAST LINE")
    printed = False
    while rows := [_item_row(view) for view in islice(views, _ROWS_AT_ONCE)]:
        for line in table(() if printed else header, rows):
            print(line)
        printed = True
    return printed


def _item_row(view: ItemView) -> tuple[str, ...]:
    outcome = view.outcome
    exit_shown = f"sig {outcome.signal}" if outcome.signal else outcome.exit_code
    return (
        shorten(printable(view.name), _NAME_COLUMNS) or "''",
        view.state,
        str(view.attempts),
        outcome.node or "-",
        "-" if exit_shown is None else str(exit_shown),
        format_duration(outcome.seconds) if view.state in ENDED and outcome.node else "-",
        printable(outcome.reason or outcome.last_line),
    )


@click.command(
    "attach",
    cls=Verb,
    examples="""
    ppss attach last
    """,
)
@click.argument("run", default="last", shell_complete=complete_runs)
@url_option
def attach_verb(run: str, url: str | None) -> int:
    """Show the progress of a run that works elsewhere.

    Ctrl-C ends only the view. The exit code is that of `ppss run`. Without RUN it is the latest.
    """
    from ppss_queue.cli.session import Show, watch

    with open_queue(url) as queue:
        return watch(queue, queue.run(run), Show(), prints=False)
