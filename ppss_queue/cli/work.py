"""ppss run, enqueue, worker."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ppss_queue.cli.frame import Duration, Slots, Verb, cores_here, json_option, option, url_option, warn
from ppss_queue.cli.making import Wish, check_command, making_options, print_dry_run
from ppss_queue.errors import BadInput, ExitCode
from ppss_queue.model import RunSpec, RunState
from ppss_queue.units import plural, printable

if TYPE_CHECKING:
    from ppss_queue.queue import Queue, Run
    from ppss_queue.sources import Sources

F = TypeVar("F", bound=Callable[..., Any])

_WORKER_OPTIONS = (
    option("-p", "--slots", "-j", "-P", "slots", type=Slots(), metavar="N",
           help="Items at once: 8, 50%, -1 (all cores but one). Default: all cores."),
    option("--nice", type=click.IntRange(-20, 19), default=0, metavar="N", help="Lower the priority of commands."),
    option("-D", "--delay", type=Duration(), default="0", metavar="TIME",
           help="Wait a random time up to this before the first item."),
    option("--logs", type=click.Path(file_okay=False), metavar="DIR",
           help="A log per item, and a job log as GNU parallel writes it."),
    option("--node-name", metavar="NAME", help="Name of this machine in lists. Default: its host name."),
)  # fmt: skip


def worker_options(function: F) -> F:
    """Adds the options of whoever runs items."""
    for decorate in reversed(_WORKER_OPTIONS):
        function = decorate(function)
    return function


def open_queue(url: str | None) -> Queue:
    """Says what is doubtful about the server. Raises BadInput, ServiceFailed."""
    from ppss_queue.queue import connect

    queue = connect(url)
    for warning in queue.warnings:
        warn(warning)
    return queue


@click.command(
    "enqueue",
    cls=Verb,
    takes_words=True,
    examples="""
    ppss enqueue scans/ -c 'ocrmypdf "$ITEM" "$OUTPUT_DIR/$OUTPUT_FILE"' -o searchable/
    find . -name '*.wav' -print0 | ppss enqueue -0 --files -o flac -- flac -8 -o {out.}.flac {}
    run=$(ppss enqueue urls.txt.d/ -c 'curl -fsSO "$ITEM"'); ppss wait "$run"
    ppss enqueue more/ --into last
    """,
)
@making_options
@option("--into", metavar="RUN", help="Add to this run instead of making one.")
@json_option
@url_option
@click.pass_context
def enqueue_verb(
    context: click.Context, into: str | None, as_json: bool, url: str | None, **made: Any
) -> int:
    """Put items into a new run and print its id; workers take them from then on."""
    wish = Wish.of(context, made)
    if into is not None:
        return _enqueue_into(wish, into, as_json=as_json, url=url)
    spec = wish.spec()
    _say_where_command_is_from(context)
    check_command(spec, look_for_program=not made["no_check"])
    sources = wish.open_sources()
    if made["dry_run"]:
        print_dry_run(spec, sources)
        return ExitCode.OK
    with open_queue(url) as queue:
        run = queue.make_run(spec, sources)
        counts = run.status()
        _warn_about(sources)
        if as_json:
            import json

            print(
                json.dumps({"run": run.id, "name": spec.name, "total": counts.total, "state": counts.state})
            )
        else:
            print(run.id)
        sys.stdout.flush()
        if not counts.total:
            warn("there are no items, so there is nothing to do.")
        elif spec.command is None:
            warn(
                f"run {run.id} has no command: its items wait for a worker that has one: ppss worker -c COMMAND"
            )
        elif not queue.workers():
            warn(f"no worker is there. Start one here or on another machine: ppss worker{_url_words(url)}")
    return ExitCode.OK


def _enqueue_into(wish: Wish, into: str, *, as_json: bool, url: str | None) -> int:
    if wish.command is not None:
        raise BadInput("--into adds items to a run that has its command already: leave the command out")
    with open_queue(url) as queue:
        run = queue.run(into)
        sources = wish.open_sources()
        added = run.add_sources(sources)
        _warn_about(sources)
        if as_json:
            import json

            print(json.dumps({"run": run.id, "added": added, "total": run.status().total}))
        else:
            print(run.id)
    return ExitCode.OK


@click.command(
    "run",
    cls=Verb,
    takes_words=True,
    examples="""
    ppss run photos/ -c 'convert "$ITEM" -resize 1024 "$OUTPUT_DIR/$OUTPUT_FILE"' -o small/
    ppss run logs/ --include '*.log' -- gzip -9
    find . -name '*.wav' -print0 | ppss run -0 --files -o flac -- flac -8 -o {out.}.flac {}
    seq 100 | ppss run -k -c 'echo "$ITEM squared is $((ITEM * ITEM))"'
    ppss run --resume last --retry-failed
    """,
)
@making_options
@worker_options
@option("-k", "--keep-order", is_flag=True, help="Print outputs in input order.")
@option("--tag", is_flag=True, help="Put the item before each line of output.")
@option("--line-buffer", is_flag=True, help="Print lines as they come, mixed.")
@option("-q", "--quiet", is_flag=True, help="Print no output of items and no progress.")
@option("--resume", metavar="RUN", help="Go on with a run: what is left, never what succeeded.")
@option("--retry-failed", is_flag=True, help="With --resume: what failed too.")
@url_option
@click.pass_context
def run_verb(
    context: click.Context, /, resume: str | None, retry_failed: bool, url: str | None, **made: Any
) -> int:
    """Run a command once per item, on all cores, and show how it goes.

    Items are files below directories, files, or lines of a list. -p 0 works elsewhere: workers take the items.
    """
    wish = Wish.of(context, made)
    if resume is not None:
        return _resume(wish, resume, retry_failed=retry_failed, url=url)
    if retry_failed:
        raise BadInput("--retry-failed goes with --resume RUN")
    spec = wish.spec()
    if spec.command is None:
        raise BadInput("there is no command: give one with -c CMD, or as words: -- PROG ARG...")
    _say_where_command_is_from(context)
    check_command(spec, look_for_program=not made["no_check"] and made["slots"] != 0)
    sources = wish.open_sources()
    if made["dry_run"]:
        print_dry_run(spec, sources)
        return ExitCode.OK
    with open_queue(url) as queue:
        run = queue.make_run(spec, sources)
        _warn_about(sources)
        if not run.status().total:
            run.purge()
            warn("there are no items, so there is nothing to do.")
            return ExitCode.OK
        return _work_on(queue, run, spec, made)


def _resume(wish: Wish, name: str, *, retry_failed: bool, url: str | None) -> int:
    if wish.names_source or wish.words is not None or wish.values["command"]:
        raise BadInput("--resume goes on with a run that has its items and command: leave them out here")
    with open_queue(url) as queue:
        run = queue.run(name)
        counts = run.status()
        if counts.state is RunState.CANCELLED:
            raise BadInput(f"run {run.id} was cancelled, so nothing of it can go on. Enqueue again.")
        if counts.state is RunState.FILLING:
            raise BadInput(
                f"run {run.id} is still being filled. Try again when it is open: ppss status {run.id}"
            )
        if counts.state is RunState.PAUSED:
            run.resume()
        if retry_failed:
            run.retry()
        counts = run.status()
        if not counts.left:
            warn(f"run {run.id} has nothing left to do ({plural(counts.failed, 'item')} failed).")
            return ExitCode.ITEMS_FAILED if counts.failed else ExitCode.OK
        return _work_on(queue, run, counts.spec, wish.values)


def _work_on(queue: Queue, run: Run, spec: RunSpec, made: dict[str, Any]) -> int:
    from ppss_queue.cli.session import Session, watch

    if made["slots"] == 0:
        return watch(queue, run, quiet=made["quiet"])
    slots = made["slots"] or cores_here()
    if made["nice"]:
        os.nice(made["nice"])
    session = Session(queue, run, spec, slots=slots, options=made, state_directory=state_directory())
    return session.work()


@click.command(
    "worker",
    cls=Verb,
    takes_words=True,
    examples="""
    ppss worker
    ppss worker --burst -p 50%
    ppss worker --run k3v9 --nice 10
    ppss worker --url redis://:password@10.0.0.5 --logs /var/log/ppss
    """,
)
@worker_options
@option("-c", "--command", metavar="CMD", help="Command for runs that have none.")
@option("--burst", is_flag=True, help="End when nothing is left.")
@option(
    "--run",
    "runs",
    multiple=True,
    envvar="PPSS_RUNS",
    metavar="RUN",
    help="Serve only this run (may be repeated).",
)
@option("-q", "--quiet", is_flag=True, help="Do not log each item.")
@url_option
@click.pass_context
def worker_verb(
    context: click.Context,
    /,
    slots: int | None,
    nice: int,
    delay: float,
    logs: str | None,
    node_name: str | None,
    command: str | None,
    burst: bool,
    runs: tuple[str, ...],
    quiet: bool,
    url: str | None,
) -> int:
    """Take items of all runs and run them until stopped.

    SIGTERM finishes what runs; a second one, and Ctrl-C, hand it back; a second Ctrl-C does so at once.
    """
    from ppss_worker.worker import Settings, Worker

    from ppss_queue.cli.frame import WORDS
    from ppss_queue.cli.workerlog import WorkerLog

    if slots == 0:
        raise BadInput("a worker needs at least one slot: -p 1")
    with open_queue(url) as queue:
        resolved = tuple(queue.run(name).id for name in runs)
        log = WorkerLog(state_directory(), Path(logs) if logs else None, quiet=quiet)
        settings = Settings(
            slots=slots or cores_here(),
            node=node_name or this_node(),
            state_directory=state_directory(),
            burst=burst,
            runs=resolved,
            command=context.meta.get(WORDS) or command,
            start_delay_seconds=random.uniform(0, delay),
        )
        if nice:
            os.nice(nice)
        worker = Worker(queue.connection.clone(name="ppss-worker"), queue.keys, settings, log)
        log.say(
            f"worker {worker.name} · {plural(settings.slots, 'slot')} · {queue.connection.address.display()}"
        )
        worker.work()
        log.say(f"worker {worker.name} ended: {log.summary}")
    return ExitCode.OK


def state_directory() -> Path:
    """Where logs, captures and slot numbers of this user on this machine are."""
    from ppss_queue.server import default_place

    return default_place().directory.parent


def this_node() -> str:
    import socket

    return socket.gethostname().split(".")[0] or "localhost"


def _say_where_command_is_from(context: click.Context) -> None:
    if context.get_parameter_source("command") is click.core.ParameterSource.DEFAULT_MAP:
        warn(f"the command is from ppss.toml: {printable(str(context.params.get('command')))}")


def _warn_about(sources: Sources) -> None:
    for warning in sources.warnings:
        warn(warning)


def _url_words(url: str | None) -> str:
    return f" --url {url}" if url and "@" not in url else ""
