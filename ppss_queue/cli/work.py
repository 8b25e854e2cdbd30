"""ppss run, enqueue."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ppss_queue.cli import stdout_is_there
from ppss_queue.cli.agentless import agentless_nodes
from ppss_queue.cli.completing import complete_runs
from ppss_queue.cli.frame import Verb, ending_as_interrupt, open_queue
from ppss_queue.cli.making import making_options, work_options
from ppss_queue.cli.nodes import join, list_options, master_option, nodes_of_run, reverse_option
from ppss_queue.cli.options import json_option, option, url_option
from ppss_queue.cli.preview import check_command, print_dry_run
from ppss_queue.cli.say import say, typed, warn
from ppss_queue.cli.serving import offer_for, unserved
from ppss_queue.cli.staging import refuse_staging_from_afar
from ppss_queue.cli.wish import Wish
from ppss_queue.cli.worker import (
    check_slots,
    log_directory,
    say_where_command_is_from,
    settings_of,
)
from ppss_queue.errors import BadInput, ExitCode
from ppss_queue.model import RunSpec, RunState
from ppss_queue.units import format_count, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ppss_worker.offer import Offer

    from ppss_queue.nodes.spec import NodeSpec
    from ppss_queue.queue import Queue
    from ppss_queue.run import Run
    from ppss_queue.sources import Sources


@click.command(
    "enqueue",
    cls=Verb,
    takes_words=True,
    usage="""
    [OPTION]... [SOURCE]... -c CMD
    [OPTION]... [SOURCE]... -- PROG ARG...
    [OPTION]... [SOURCE]... --into RUN
    """,
    examples="""
    ppss enqueue scans/ -c 'ocrmypdf "$ITEM" "$OUTPUT_DIR/$OUTPUT_FILE"' -o searchable/
    find . -name '*.wav' -print0 | ppss enqueue -0 --files -o flac -- flac -8 -o {out.}.flac {}
    run=$(ppss enqueue -f urls.txt -- curl -fsSO); ppss wait "$run"
    ppss enqueue more/ --into last
    """,
)
@making_options
@option(
    "--into",
    section="Work",
    metavar="RUN",
    shell_complete=complete_runs,
    help="Add to this run instead of making one.",
)
@json_option
@url_option
@click.pass_context
def enqueue_verb(
    context: click.Context, /, into: str | None, as_json: bool, url: str | None, **made: Any
) -> int:
    """Put items into a new run and print its id; workers take them.

    Items are files below directories, files, or lines of a list (-f LIST, or stdin). None is taken before all are
    enqueued. Without a command they wait for a worker that has one: ppss worker -c CMD
    """
    wish = Wish(context, made)
    wish.check_words()
    if into is not None:
        return _enqueue_into(wish, into, as_json=as_json, url=url)
    spec, sources = _prepare(wish, look_for_program=not made["no_check"])
    if made["dry_run"]:
        return _dry_run(wish, spec, sources)
    refuse_staging_from_afar(made, url)
    if not stdout_is_there():
        raise BadInput("stdout is closed, so the run's id could not be told. Send it somewhere: > id")
    with open_queue(url) as queue:
        run = _make_run(queue, spec, sources, quiet=False)
        counts = run.status()
        _print_made(as_json, {"run": run.id, "name": spec.name, "total": counts.total, "state": counts.state})
        if not counts.total:
            warn(wish.no_items)
        elif spec.command is None:
            worker = typed("worker -c COMMAND")
            warn(f"run {run.id} has no command: its items wait for a worker that has one: {worker}")
        elif why := unserved(queue.workers(), spec):
            warn(why)
    return ExitCode.OK


def _enqueue_into(wish: Wish, into: str, *, as_json: bool, url: str | None) -> int:
    wish.for_into()
    with open_queue(url) as queue:
        run = queue.run(into)
        sources = wish.open_sources()
        sent = 0

        def count(total: int) -> None:
            nonlocal sent
            sent = total

        try:
            with ending_as_interrupt():
                added = run.add_sources(sources, count)
        except BaseException:
            if sent:
                warn(f"about {format_count(sent)} items are in run {run.id} already, and stay there:")
            raise
        _warn_about(sources)
        _print_made(as_json, {"run": run.id, "added": added, "total": run.status().total})
        if added and (why := unserved(queue.workers(), run.status().spec)):
            warn(why)
    return ExitCode.OK


def _print_made(as_json: bool, facts: dict[str, object]) -> None:
    import json

    try:
        print(json.dumps(facts) if as_json else facts["run"], flush=True)
    except OSError:
        warn(f"the items are in run {facts['run']}, which could not be told on stdout:")
        raise


@click.command(
    "run",
    cls=Verb,
    takes_words=True,
    usage="""
    [OPTION]... [SOURCE]... -c CMD
    [OPTION]... [SOURCE]... -- PROG ARG...
    [OPTION]... --resume RUN
    """,
    examples="""
    ppss run photos/ -c 'convert "$ITEM" -resize 1024 "$OUTPUT_DIR/$OUTPUT_FILE"' -o small/
    ppss run logs/ --include '*.log' -- gzip -9
    find . -name '*.wav' -print0 | ppss run -0 --files -o flac -- flac -8 -o {out.}.flac {}
    seq 100 | ppss run -k -c 'echo "$ITEM squared is $((ITEM * ITEM))"'
    ppss run photos/ --stage --also '{.}.xmp' -o small/ -c 'develop "$ITEM" "$OUTPUT_DIR/$OUTPUT_FILE"'
    ppss run photos/ --nodes big1,big2 -o small/ -c 'convert "$ITEM" -resize 1024 "$OUTPUT_DIR/$OUTPUT_FILE"'
    ppss run --resume last --retry-failed
    """,
)
@making_options
@work_options
@option(
    "--resume",
    section="Work",
    metavar="RUN",
    shell_complete=complete_runs,
    help="Do what is left of a run, never what succeeded.",
)
@option("--retry-failed", section="Work", is_flag=True, help="With --resume: do what failed too.")
@list_options
@master_option
@reverse_option
@option("-k", "--keep-order", section="Output", is_flag=True, help="Print outputs in input order.")
@option("--tag", section="Output", is_flag=True, help="Put the item and a tab before each line.")
@option(
    "--line-buffer",
    section="Output",
    is_flag=True,
    help="Print lines as they come, mixed; with -k outputs stay whole.",
)
@option("-q", "--quiet", section="Output", is_flag=True, help="Print neither outputs of items nor progress.")
@url_option
@click.pass_context
def run_verb(
    context: click.Context, /, resume: str | None, retry_failed: bool, url: str | None, **made: Any
) -> int:
    """Run a command once per item, on all cores, and show how it goes.

    Items are files below directories, files, or lines of a list (-f LIST, or stdin). The command is a text for
    bash (-c), or words (--) that are executed as they are; one that names no item gets it as its last
    argument. -p 0: run nothing here, only watch what workers do.

    With --nodes (or -n) other machines take part: PPSS is brought to them over SSH, files are copied there, outputs
    come home, and what was started there ends with the run.
    """
    wish = Wish(context, made)
    wish.check_words()
    helpers = nodes_of_run(made)
    if resume is not None:
        wish.for_resume()
        return _resume(resume, made, helpers, retry_failed=retry_failed, url=url)
    if retry_failed:
        raise BadInput("--retry-failed goes with --resume RUN")
    if wish.command is None:
        raise BadInput("there is no command: give one with -c CMD, or as words: -- PROG ARG...")
    spec, sources = _prepare(wish, look_for_program=not made["no_check"] and made["slots"] != 0)
    if made["dry_run"]:
        return _dry_run(wish, spec, sources)
    refuse_staging_from_afar(made, url)
    log_directory(made)
    check_slots(made)
    if made["slots"] != 0 or agentless_nodes(made):
        wish.make_output()
    with open_queue(url) as queue:
        offer = offer_for(queue, spec, made, helpers)
        run = _make_run(queue, replace(spec, tell_output=not made["quiet"]), sources, quiet=made["quiet"])
        if not run.status().total:
            run.purge()
            warn(wish.no_items)
            return ExitCode.OK
        return _work_on(queue, run, made, offer, helpers, find_gpus=spec.needs.gpus > 0)


def _prepare(wish: Wish, *, look_for_program: bool) -> tuple[RunSpec, Sources]:
    """All that can be wrong is found here, before anything is enqueued. Raises BadInput."""
    spec = wish.spec()
    if wish.words is None:
        say_where_command_is_from(wish.context)
    check_command(spec, look_for_program=look_for_program)
    return spec, wish.open_sources()


def _dry_run(wish: Wish, spec: RunSpec, sources: Sources) -> int:
    if not print_dry_run(spec, sources):
        warn(wish.no_items)
    _warn_about(sources)
    return ExitCode.OK


def _make_run(queue: Queue, spec: RunSpec, sources: Sources, *, quiet: bool) -> Run:
    from ppss_queue.cli.display import Display

    for warning in queue.warnings:
        warn(warning)
    display = Display(quiet=quiet)
    try:
        with ending_as_interrupt():
            run = queue.make_run(spec, sources, display.filling)
    except KeyboardInterrupt:
        display.say("interrupted: nothing of the run is left")
        raise
    finally:
        display.clear()
    _warn_about(sources)
    return run


def _resume(
    name: str, made: dict[str, Any], helpers: Sequence[NodeSpec], *, retry_failed: bool, url: str | None
) -> int:
    log_directory(made)
    check_slots(made)
    with open_queue(url) as queue:
        run = queue.run(name)
        counts = run.status()
        state = counts.state
        if counts.spec.command is None:
            raise BadInput(
                f"run {run.id} has no command. Give it one: {typed(f'worker --burst --run {run.id} -c COMMAND')}"
            )
        if state is RunState.CANCELLED:
            raise BadInput(f"run {run.id} was cancelled, so nothing of it can go on. Enqueue again.")
        if state is RunState.FILLING:
            raise BadInput(
                f"run {run.id} is still being filled. Try again when it is open: ppss status {run.id}"
            )
        offer = offer_for(queue, counts.spec, made, helpers) if counts.left or retry_failed else None
        if helpers and not counts.spec.stage:
            warn(f"run {run.id} was made without --stage, so nodes must see its files under the same paths.")
        if state is RunState.PAUSED:
            run.resume()
        if retry_failed:
            run.retry()
        counts = run.status()
        if counts.left:
            return _work_on(queue, run, made, offer, helpers, find_gpus=counts.spec.needs.gpus > 0)
        warn(f"run {run.id} has nothing left to do ({plural(counts.failed, 'item')} failed).")
        if not counts.failed:
            return ExitCode.OK
        say(f"again: {typed(f'run --resume {run.id} --retry-failed')}")
        return ExitCode.ITEMS_FAILED


def _work_on(
    queue: Queue,
    run: Run,
    made: dict[str, Any],
    offer: Offer | None,
    helpers: Sequence[NodeSpec],
    *,
    find_gpus: bool,
) -> int:
    """`offer`: what this machine has for the run; None: nothing of it is run from here. `find_gpus` on other nodes."""
    try:
        from ppss_queue.cli.session import Session, Show, watch

        by_line = made["line_buffer"] and not made["keep_order"]  # in order means whole
        show = Show(made["keep_order"], made["tag"], by_line, made["quiet"])
        joining = join(queue, run.id, helpers, made["master"])
        if offer is None:
            return watch(queue, run, show, prints=True, joining=joining)
        settings = settings_of(
            made,
            burst=True,
            runs=(run.id,),
            line_buffer=by_line,
            prints=True,
            offer=offer,
            find_gpus=find_gpus,
        )
        settings = replace(settings, has_company=joining is not None)
        return Session(queue, run, settings, show, log_directory(made), joining).work()
    except KeyboardInterrupt:  # before the worker took the signal over
        say(f"run {run.id} interrupted before its first item\ngo on: {typed(f'run --resume {run.id}')}")
        raise


def _warn_about(sources: Sources) -> None:
    for warning in sources.warnings:
        warn(warning)
