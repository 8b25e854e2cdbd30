"""ppss status, items, log, attach: verbs that change nothing."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ppss_queue.cli.frame import Verb, json_option, option, url_option
from ppss_queue.errors import BadInput, ExitCode
from ppss_queue.model import ENDED, STATES, ItemView, RunState, State
from ppss_queue.units import format_count, format_duration, format_rate, printable, shorten

if TYPE_CHECKING:
    from ppss_queue.queue import Queue, Run
    from ppss_queue.store import Counts

_WATCH_SECONDS = 1.0
_FOLLOW_SECONDS = 0.1


def _queue(url: str | None) -> Queue:
    from ppss_queue.queue import connect

    return connect(url)


@click.command(
    "status",
    cls=Verb,
    examples="""
    ppss status
    ppss status last --watch
    ppss status k3v9 --json | jq .failed
    """,
)
@click.argument("run", required=False)
@option("-w", "--watch", is_flag=True, help="Show it again each second until Ctrl-C.")
@json_option
@url_option
def status_verb(run: str | None, watch: bool, as_json: bool, url: str | None) -> int:
    """Show all runs, or one: counts, rate, time left, nodes."""
    with _queue(url) as queue:
        while True:
            runs = [queue.run(run).status()] if run else queue.runs()
            if watch and sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")
            _print_status(runs, as_json=as_json, one=run is not None)
            if not watch:
                return ExitCode.OK
            sys.stdout.flush()
            time.sleep(_WATCH_SECONDS)


def _print_status(runs: list[Counts], *, as_json: bool, one: bool) -> None:
    if as_json:
        for counts in runs:
            print(json.dumps(status_object(counts)))
        return
    if not runs:
        print("no runs. Make one: ppss run DIR -c COMMAND")
        return
    from ppss_queue.cli.table import print_table

    header = ("RUN", "STATE", "DONE", "FAILED", "RUNNING", "RATE", "ETA", "NODES", "COMMAND")
    print_table(header, [_row(counts) for counts in runs])
    for counts in runs:
        if one and counts.reason:
            print(f"{counts.run}: {counts.reason}. Go on: ppss run --resume {counts.run}")
        if counts.expired:
            print(
                f"{counts.run}: {format_count(counts.expired)} items were with workers that are gone; "
                "they come back with the next claim."
            )


def _row(counts: Counts) -> tuple[str, ...]:
    rate = counts.rate_per_second
    return (
        counts.run + (f" ({counts.name})" if counts.name else ""),
        _state_shown(counts),
        f"{format_count(counts.total - counts.left)}/{format_count(counts.total)}",
        format_count(counts.failed),
        str(counts.running),
        format_rate(rate) if rate else "-",
        format_duration(counts.left / rate) if rate and counts.left else "-",
        str(len(nodes_of(counts))),
        shorten(printable(command_shown(counts)), 60),
    )


def _state_shown(counts: Counts) -> str:
    """For people an open run is running or waiting."""
    if counts.state is RunState.OPEN:
        return "running" if counts.running else "waiting"
    return "halted" if counts.state is RunState.PAUSED and counts.reason else counts.state


def nodes_of(counts: Counts) -> list[str]:
    """Worker keys are `...:<node>.<pid>-<nonce>`."""
    return sorted({worker.rpartition(":")[2].rpartition(".")[0] for worker in counts.workers})


def command_shown(counts: Counts) -> str:
    from ppss_queue.command import shell_quoted

    command = counts.spec.command
    if command is None:
        return "-"
    return command if isinstance(command, str) else shell_quoted(command)


def status_object(counts: Counts) -> dict[str, object]:
    """The object of `ppss status --json`."""
    rate = counts.rate_per_second
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
    ppss items k3v9 --json | jq -r 'select(.exit_code == 6).item'
    ppss items k3v9 --csv > items.csv
    """,
)
@click.argument("run", default="last")
@option(
    "--state",
    type=click.Choice([*STATES, "running"]),
    metavar="STATE",
    help="Only items in this state: " + ", ".join(STATES) + ".",
)
@option("--csv", "as_csv", is_flag=True, help="As CSV, with a header.")
@option("-q", "--names", is_flag=True, help="Only names, each ended by NUL: for xargs -0.")
@json_option
@url_option
def items_verb(run: str, state: str | None, as_csv: bool, names: bool, as_json: bool, url: str | None) -> int:
    """List the items of a run (default: the latest)."""
    with _queue(url) as queue:
        wanted = State.LEASED if state == "running" else State(state) if state else None
        views = queue.run(run).items(wanted)
        if names:
            for view in views:
                sys.stdout.buffer.write(os.fsencode(view.name) + b"\0")
        elif as_json:
            for view in views:
                print(json.dumps(view.to_dict()))
        elif as_csv:
            _print_csv(views)
        else:
            _print_items(views)
    return ExitCode.OK


def _print_csv(views: Iterator[ItemView]) -> None:
    import csv

    sys.stdout.reconfigure(errors="surrogateescape", newline="")  # type: ignore[union-attr]
    writer: csv.DictWriter[str] | None = None
    for view in views:
        values = view.to_dict()
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(values), lineterminator="\n")
            writer.writeheader()
        writer.writerow(values)


def _print_items(views: Iterator[ItemView]) -> None:
    """In pieces, so that a million items stream; columns may differ between pieces."""
    from itertools import islice

    from ppss_queue.cli.table import print_table

    header: tuple[str, ...] = ("ITEM", "STATE", "TRIES", "NODE", "EXIT", "TOOK", "LAST LINE")
    while piece := list(islice(views, 500)):
        print_table(header, [_item_row(view) for view in piece])
        header = ("",) * len(header)
        if len(piece) < 500:
            return


def _item_row(view: ItemView) -> tuple[str, ...]:
    outcome = view.outcome
    exit_shown = f"sig {outcome.signal}" if outcome.signal else outcome.exit_code
    return (
        shorten(printable(view.name), 60) or "''",
        view.state,
        str(view.attempts),
        outcome.node or "-",
        "-" if exit_shown is None else str(exit_shown),
        format_duration(outcome.seconds) if view.state in ENDED and outcome.node else "-",
        printable(outcome.reason or outcome.last_line),
    )


@click.command(
    "log",
    cls=Verb,
    examples="""
    ppss log last 2019/tax-return.pdf
    ppss log k3v9 '#17'
    ppss log k3v9 film.mkv -f
    """,
)
@click.argument("run")
@click.argument("item")
@option(
    "-f", "--follow", is_flag=True, help="Show what a running item prints until it ends (on its machine)."
)
@url_option
def log_verb(run: str, item: str, follow: bool, url: str | None) -> int:
    """Show what the item's last attempt printed, and how it ended.

    ITEM is a name, or a number such as '#17'.
    """
    from ppss_queue import status

    with _queue(url) as queue:
        found = queue.run(run)
        seq = status.find(queue.store, found.id, [item])[0]
        if follow:
            _follow(queue, found.id, seq)
        (view,) = status.view(queue.store, found.id, [seq])
        if not follow or view.state not in ENDED:
            _write_log(queue, found, view)
        print(f"ppss: {_ending(view)}", file=sys.stderr)
    return ExitCode.OK


def _write_log(queue: Queue, run: Run, view: ItemView) -> None:
    from ppss_worker.logs import kept_log

    from ppss_queue import status
    from ppss_queue.cli.work import state_directory

    path = kept_log(state_directory(), run.id, view.seq)
    if view.state in ENDED or view.state is State.DELAYED:
        try:
            data = path.read_bytes()
        except OSError:
            data = status.output(queue.store, run.id, view.seq).encode()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _ending(view: ItemView) -> str:
    name, outcome = printable(view.name), view.outcome
    attempt = f"attempt {view.attempts}" if view.attempts else "not started"
    if view.state is State.SUCCEEDED:
        kept = " (what succeeded items print is kept with --keep-output)"
        return f"'{name}' succeeded on {outcome.node} in {format_duration(outcome.seconds)}, {attempt}{kept}"
    if view.state is State.FAILED:
        where = f" on {outcome.node} after {format_duration(outcome.seconds)}" if outcome.node else ""
        return f"'{name}' failed: {outcome.failure or 'exit 0'}{where}, {attempt}"
    if view.state is State.DELAYED:
        return f"'{name}' waits for its next attempt; {attempt} failed: {outcome.failure}"
    return f"'{name}' is {view.state}, {attempt}"


def _follow(queue: Queue, run: str, seq: int) -> None:
    """Copies what the running command has printed and prints, from its own stdout and stderr in /proc."""
    from ppss_queue import status

    offsets: dict[str, int] = {}
    seen = False
    while True:
        (view,) = status.view(queue.store, run, [seq])
        sources = _captures(run, seq)
        for path in sources:
            seen = _copy_new(path, offsets) or seen
        if view.state in ENDED:
            return
        if view.state is State.LEASED and not sources and not seen and view.attempts:
            raise BadInput(f"'{printable(view.name)}' does not run on this machine as you: follow it there")
        time.sleep(_FOLLOW_SECONDS)


def _captures(run: str, seq: int) -> list[str]:
    """stdout and stderr of the process group leader of the item, if it runs here as this user."""
    wanted = {f"PPSS_RUN={run}".encode(), f"PPSS_SEQ={seq}".encode()}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            with open(f"/proc/{entry.name}/environ", "rb") as file:
                if wanted <= set(file.read().split(b"\0")) and os.getpgid(int(entry.name)) == int(entry.name):
                    return [f"/proc/{entry.name}/fd/1", f"/proc/{entry.name}/fd/2"]
        except OSError:
            continue
    return []


def _copy_new(path: str, offsets: dict[str, int]) -> bool:
    try:
        with open(path, "rb") as file:
            key = os.readlink(path)
            file.seek(offsets.get(key, 0))
            data = file.read()
            offsets[key] = file.tell()
    except OSError:
        return False
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return True


@click.command(
    "attach",
    cls=Verb,
    examples="""
    ppss attach last
    """,
)
@click.argument("run", default="last")
@url_option
def attach_verb(run: str, url: str | None) -> int:
    """Show the progress of a run that works elsewhere; Ctrl-C ends only the view."""
    from ppss_queue.cli.session import watch

    with _queue(url) as queue:
        return watch(queue, queue.run(run), quiet=False)
