"""ppss wait, retry, pause, resume, cancel, purge: verbs that steer runs."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from ppss_queue.cli import summary
from ppss_queue.cli.frame import Duration, Verb, option, url_option, warn
from ppss_queue.errors import BadInput, ExitCode
from ppss_queue.model import RunState
from ppss_queue.units import plural

if TYPE_CHECKING:
    from ppss_queue.queue import Queue

_run = click.argument("run")
_items = click.argument("items", nargs=-1, metavar="[ITEM]...")


def _queue(url: str | None) -> Queue:
    from ppss_queue.queue import connect

    return connect(url)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _warn_without_worker(queue: Queue) -> None:
    if not queue.workers():
        warn("no worker is there. Start one here or on another machine: ppss worker")


@click.command("wait", cls=Verb, examples='run=$(ppss enqueue scans/ -c CMD); ppss wait "$run" && echo fine')
@click.argument("run", default="last")
@option("--timeout", type=Duration(), metavar="TIME", help="Give up after this; exit code 3.")
@option("-q", "--quiet", is_flag=True, help="Say nothing.")
@url_option
def wait_verb(run: str, timeout: float | None, quiet: bool, url: str | None) -> int:
    """Block until a run ends; the exit code is that of `ppss run`."""
    from ppss_queue.errors import ServiceFailed

    with _queue(url) as queue:
        found = queue.run(run)
        if not quiet and not found.is_over():
            _warn_without_worker(queue)
        try:
            counts = found.wait(timeout)
        except TimeoutError as error:
            raise ServiceFailed(f"{error}: it goes on. See it: ppss status {found.id}") from None
        if not quiet:
            wall = (counts.ended or time.time()) - counts.created
            summary.say(summary.summarize(found, counts, wall_seconds=wall, slots=0))
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
    """Put failed items back to ready: all, or these."""
    with _queue(url) as queue:
        found = queue.run(run)
        count = found.retry(*items)
        _say(f"run {found.id}: {plural(count, 'item')} ready again")
        if count:
            _warn_without_worker(queue)
    return ExitCode.OK


@click.command("pause", cls=Verb, examples="ppss pause last")
@_run
@url_option
def pause_verb(run: str, url: str | None) -> int:
    """Hand out no items of a run; what runs goes on."""
    with _queue(url) as queue:
        found = queue.run(run)
        found.pause()
        counts = found.status()
        _say(f"run {found.id} paused: {plural(counts.running, 'item')} still running, {counts.ready:,} ready")
        _say(f"go on: ppss resume {found.id}")
    return ExitCode.OK


@click.command("resume", cls=Verb, examples="ppss resume last")
@_run
@url_option
def resume_verb(run: str, url: str | None) -> int:
    """Hand out items of a paused run again."""
    with _queue(url) as queue:
        found = queue.run(run)
        found.resume()
        _say(f"run {found.id} goes on: {plural(found.status().left, 'item')} left")
        _warn_without_worker(queue)
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
    with _queue(url) as queue:
        found = queue.run(run)
        count = found.cancel(*items)
        _say(f"run {found.id}: {plural(count, 'item')} cancelled")
    return ExitCode.OK


@click.command("purge", cls=Verb, examples="ppss purge k3v9\nppss purge --all")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@option("--all", "all_runs", is_flag=True, help="All runs that have ended.")
@url_option
def purge_verb(runs: tuple[str, ...], all_runs: bool, url: str | None) -> int:
    """Forget finished runs, and their logs on this machine. Outputs stay."""
    from ppss_queue.cli.work import state_directory

    if bool(runs) == all_runs:
        raise BadInput("name the runs to forget, or give --all")
    with _queue(url) as queue:
        if all_runs:
            ended = (RunState.DONE, RunState.CANCELLED)
            names = [counts.run for counts in queue.runs() if counts.state in ended]
        else:
            names = [queue.run(name).id for name in runs]
        for name in names:
            queue.run(name).purge()
            shutil.rmtree(state_directory() / "logs" / name, ignore_errors=True)
        _say(f"{plural(len(names), 'run')} forgotten")
    return ExitCode.OK
