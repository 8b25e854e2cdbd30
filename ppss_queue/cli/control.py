"""ppss wait, retry, pause, resume, cancel, purge: verbs that steer runs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import click

from ppss_queue.cli.completing import complete_runs
from ppss_queue.cli.frame import Verb, open_queue, state_directory
from ppss_queue.cli.options import Duration, option, url_option
from ppss_queue.cli.say import say, typed, warn
from ppss_queue.cli.serving import unserved
from ppss_queue.errors import BadInput, ExitCode, ServiceFailed
from ppss_queue.model import ItemView, RunState, State
from ppss_queue.units import format_count, format_duration, listed, plural, printable

if TYPE_CHECKING:
    from ppss_queue.queue import Queue
    from ppss_queue.run import Run

_NAMED_ITEMS = 3

_run = click.argument("run", shell_complete=complete_runs)
_items = click.argument("items", nargs=-1, metavar="[ITEM]...")


def _say_what_is_awaited(queue: Queue, run: Run) -> None:
    counts = run.status()
    if counts.state is RunState.FILLING:
        warn(f"run {run.id} is still being filled, with {plural(counts.total, 'item')} so far")
    elif counts.state is RunState.PAUSED:
        warn(f"run {run.id} is paused. Go on: {typed(f'resume {run.id}')}")
    elif counts.spec.command is None:
        worker = typed(f"worker --run {run.id} -c COMMAND")
        warn(f"run {run.id} has no command: its items wait for a worker that has one: {worker}")
    else:
        _warn_if_unserved(queue, run)


def _warn_if_unserved(queue: Queue, run: Run) -> None:
    if why := unserved(queue.workers(), run.status().spec):
        warn(why)


@click.command(
    "wait",
    cls=Verb,
    examples="""
    ppss wait
    run=$(ppss enqueue scans/ -c CMD); ppss wait "$run" && echo fine
    ppss wait last --timeout 10m
    """,
)
@click.argument("run", default="last", shell_complete=complete_runs)
@option(
    "--timeout",
    type=Duration(),
    envvar="PPSS_WAIT_TIMEOUT",
    metavar="TIME",
    help="Give up after this, with exit code 3; the run goes on.",
)
@option("-q", "--quiet", is_flag=True, help="Say nothing.")
@url_option
def wait_verb(run: str, timeout: float | None, quiet: bool, url: str | None) -> int:
    """Block until a run ends, and exit as `ppss run` would.

    A paused run has not ended, a halted one has. Without RUN it is the latest.
    """
    from ppss_queue.cli import summary

    with open_queue(url) as queue:
        found = queue.run(run)
        if not quiet and not found.is_over():
            _say_what_is_awaited(queue, found)
        try:
            counts = found.wait(timeout)
        except TimeoutError:
            raise ServiceFailed(
                f"run {found.id} has not ended within {format_duration(timeout or 0)}, and goes on. "
                f"See it: {typed(f'status {found.id}')}"
            ) from None
        if not quiet:
            summary.print_lines(summary.summarize(found, counts, summary.wall_seconds(counts)))
        return summary.exit_code(counts)


@click.command(
    "retry",
    cls=Verb,
    examples="""
    ppss retry last
    ppss retry k3v9 2019/a.pdf '#17'
    """,
)
@_run
@_items
@url_option
def retry_verb(run: str, items: tuple[str, ...], url: str | None) -> int:
    """Put failed items back to ready.

    All that failed, or the named ones.
    """
    from ppss_queue import status

    with open_queue(url) as queue:
        found = queue.run(run)
        seqs = status.find(queue.store, found.id, items)
        others = [view for view in status.view(queue.store, found.id, seqs) if view.state is not State.FAILED]
        count = found.retry(*(f"#{seq}" for seq in seqs))
        say(f"run {found.id}: {plural(count, 'item')} ready again{_not_failed(others)}")
        if count:
            _warn_if_unserved(queue, found)
    return ExitCode.OK


def _not_failed(views: list[ItemView]) -> str:
    """Why items are not ready again that were named: they had not failed."""
    named = [f"'{printable(view.name)}' ({view.state})" for view in views[:_NAMED_ITEMS]]
    return f"; not failed: {listed(named, len(views))}" if named else ""


@click.command("pause", cls=Verb, examples="ppss pause last")
@_run
@url_option
def pause_verb(run: str, url: str | None) -> int:
    """Hand out no more items of a run; what runs goes on."""
    with open_queue(url) as queue:
        found = queue.run(run)
        found.pause()
        counts = found.status()
        running, ready = plural(counts.running, "item"), format_count(counts.ready)
        say(f"run {found.id} paused: {running} still running, {ready} ready")
        say(f"go on: {typed(f'resume {found.id}')}")
    return ExitCode.OK


@click.command("resume", cls=Verb, examples="ppss resume last")
@_run
@url_option
def resume_verb(run: str, url: str | None) -> int:
    """Hand out items of a paused run again."""
    with open_queue(url) as queue:
        found = queue.run(run)
        found.resume()
        say(f"run {found.id} goes on: {plural(found.status().left, 'item')} left")
        _warn_if_unserved(queue, found)
    return ExitCode.OK


@click.command(
    "cancel",
    cls=Verb,
    examples="""
    ppss cancel last
    ppss cancel k3v9 2019/a.pdf '#17'
    """,
)
@_run
@_items
@url_option
def cancel_verb(run: str, items: tuple[str, ...], url: str | None) -> int:
    """End a run, or items of it; what runs is killed."""
    with open_queue(url) as queue:
        found = queue.run(run)
        count = found.cancel(*items)
        say(f"run {found.id}: {plural(count, 'item')} cancelled")
    return ExitCode.OK


@click.command("purge", cls=Verb, examples="ppss purge k3v9\nppss purge --all")
@click.argument("runs", nargs=-1, metavar="[RUN]...", shell_complete=complete_runs)
@option("--all", "all_runs", is_flag=True, help="Forget all runs that have ended.")
@url_option
def purge_verb(runs: tuple[str, ...], all_runs: bool, url: str | None) -> int:
    """Forget runs that have ended.

    Their items and their logs on this machine go; outputs and --logs stay.
    """
    if bool(runs) == all_runs:
        raise BadInput("name the runs to forget, or give --all")
    with open_queue(url) as queue:
        if all_runs:
            ended = (RunState.DONE, RunState.CANCELLED)
            found = [queue.run(counts.run) for counts in queue.runs() if counts.state in ended]
        else:
            found = [queue.run(name) for name in dict.fromkeys(runs)]
        for run in found:
            run.purge()
            shutil.rmtree(state_directory() / "logs" / run.id, ignore_errors=True)
        say(f"{plural(len(found), 'run')} forgotten")
    return ExitCode.OK
