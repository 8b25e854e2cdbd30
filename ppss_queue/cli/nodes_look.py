"""ppss nodes status, logs, exec: verbs that look at nodes."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ppss_queue import __version__
from ppss_queue.cli.frame import WORDS, Verb, open_queue
from ppss_queue.cli.nodes import Which, each, nodes_options, which_nodes
from ppss_queue.cli.options import Number, accept_new_option, json_option, option, url_option
from ppss_queue.cli.say import fail, typed
from ppss_queue.cli.table import table
from ppss_queue.cli.watching import show
from ppss_queue.errors import BadInput, ExitCode
from ppss_queue.node_views import NodeState, NodeView
from ppss_queue.units import format_bytes, format_duration, format_rate, printable

if TYPE_CHECKING:
    from ppss_queue.nodes.reach import Reach
    from ppss_queue.ssh.remote import Done


_LOGIN_SECONDS = 30.0
_SIGN_COLUMNS = (
    "STATE",
    "SLOTS",
    "RUNNING",
    "RATE",
    "HEARD",
    "LOAD",
    "CORES",
    "MEMORY FREE",
    "SCRATCH FREE",
    "PPSS",
)


@click.command(
    "status",
    cls=Verb,
    examples="""
    ppss nodes status
    ppss nodes status --watch
    ppss nodes status -S @gpu --json
    """,
)
@which_nodes
@option("-w", "--watch", is_flag=True, help="Show it again each second until Ctrl-C.")
@json_option
@url_option
def status_verb(
    which: Which,
    watch: bool,
    as_json: bool,
    url: str | None,
) -> int:
    """Show all nodes: slots, what runs, rate, last heartbeat, load.

    Without NODE: all nodes that work, worked within a day, or are in the list. A node whose workers are silent for 30 s
    is lost: what it had comes back.
    """
    wanted = [node.name for node in which.nodes()]
    with open_queue(url) as queue:

        def look(rows: int | None) -> list[str]:
            views = {view.name: view for view in queue.nodes()}
            names = wanted if which.is_named else list(dict.fromkeys([*wanted, *views]))
            if as_json:
                return [json.dumps(_status_object(name, views.get(name))) for name in names]
            return _status_lines(names, views)

        show(look, watch=watch, in_place=not as_json)
    return ExitCode.OK


def _status_lines(names: Sequence[str], views: Mapping[str, NodeView]) -> list[str]:
    if not names:
        return [f"no nodes. Start one: {typed('nodes start NODE')}, or here: {typed('worker')}"]
    lines = table(("NODE", *_SIGN_COLUMNS), [_status_row(name, views.get(name)) for name in names])
    for name in names:
        if (view := views.get(name)) and (note := _note(view)):
            lines.append(f"{printable(name)}: {note}")
    return lines


def _status_row(name: str, view: NodeView | None) -> tuple[str, ...]:
    if view is None:
        return (printable(name), "not running", *("-" for _ in _SIGN_COLUMNS[1:]))
    lost = view.state is NodeState.LOST
    return (
        printable(name),
        view.state,
        "-" if lost else str(view.slots),
        "-" if lost else str(view.running),
        format_rate(view.rate_per_second) if view.rate_per_second else "-",
        f"{format_duration(view.silent_seconds)} ago",
        "-" if view.load is None else f"{view.load:.1f}",
        "-" if view.cores is None else str(view.cores),
        "-" if view.memory_free_bytes is None else format_bytes(view.memory_free_bytes),
        "-" if view.scratch_free_bytes is None else format_bytes(view.scratch_free_bytes),
        view.version or "-",
    )


def _note(view: NodeView) -> str:
    """What is to be said, and typed, about a node."""
    if view.state is NodeState.QUARANTINED:
        return f"quarantined: {view.reason}. When that is mended: {typed(f'nodes resume {view.name}')}"
    if view.state is NodeState.PAUSED:
        return f"paused {view.reason}. Go on: {typed(f'nodes resume {view.name}')}"
    if view.state is NodeState.LOST:
        return f"its workers are silent, and what they had comes back. Start one: {typed(f'nodes start {view.name}')}"
    if view.version not in ("", __version__):
        return (
            f"works with PPSS {view.version}, and this is {__version__}. Bring this one there: "
            f"{typed(f'nodes stop {view.name}')}, then {typed(f'nodes start {view.name}')}"
        )
    return ""


def _status_object(name: str, view: NodeView | None) -> dict[str, object]:
    if view is None:
        return {"node": name, "state": "not running"}
    facts = asdict(view)
    del facts["name"]
    return {"node": name, **facts, "state": str(view.state)}


@click.command(
    "logs",
    cls=Verb,
    examples="""
    ppss nodes logs big1
    ppss nodes logs -f
    """,
)
@nodes_options(seconds="60s")
@option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@option("--lines", type=Number(1), default=20, metavar="N", help="Begin with the last N lines.  [20]")
@accept_new_option
def logs_verb(
    which: Which,
    seconds: float,
    follow: bool,
    lines: int,
) -> int:
    """Show what the workers logged; -f follows.

    These are the workers that `ppss nodes start` and `ppss run --nodes` started.
    """
    from ppss_queue.nodes.probe import probe
    from ppss_queue.nodes.service import log_script

    wanted = which.some()
    width = max(len(node.name) for node in wanted)

    def work(reach: Reach) -> bool:
        before = f"{printable(reach.node.name):{width}}  ".encode() if len(wanted) > 1 else b""
        rest = b""
        for piece in reach.stream(log_script(probe(reach).paths.directory, lines=lines, follow=follow)):
            *whole, rest = (rest + piece).split(b"\n")
            os.write(1, b"".join(before + line + b"\n" for line in whole))
        if rest:
            os.write(1, before + rest + b"\n")
        return True

    code: int = ExitCode.OK
    for answer in each(wanted, math.inf if follow else seconds, work, at_once=len(wanted)):
        if answer.error:
            code = max(code, fail(answer.error))
    return code


@click.command(
    "exec",
    cls=Verb,
    takes_words=True,
    usage="""
    [OPTION]... [NODE]... -- PROG ARG...
    [OPTION]... [NODE]... -c CMD
    """,
    examples="""
    ppss nodes exec big1 big2 -- uptime
    ppss nodes exec -S @gpu -c 'nvidia-smi | tail -3'
    """,
)
@nodes_options(seconds="60s")
@option("-c", "--command", metavar="CMD", help="Text for bash, in the home directory there.")
@json_option
@accept_new_option
@click.pass_context
def exec_verb(
    context: click.Context,
    /,
    which: Which,
    seconds: float,
    command: str | None,
    as_json: bool,
) -> int:
    """Run one command on each node, outputs grouped.

    Ends with 0 if it ended with 0 on all nodes, with 1 if it did not on some, with 3 if a node can't be reached.
    """
    from ppss_queue.quoting import shell_quoted

    words: tuple[str, ...] | None = context.meta.get(WORDS)
    if bool(words) == bool(command):
        raise BadInput("give one command: as words, -- PROG ARG..., or as text, -c CMD")
    script = command or shell_quoted(words or ())

    code: int = ExitCode.OK
    for answer in each(
        which.some(), seconds + _LOGIN_SECONDS, lambda reach: reach.run(script, seconds=seconds)
    ):
        name, done = answer.node.name, answer.result
        if as_json:
            facts = (
                {"exit_code": done.code, "stdout": _text(done.out), "stderr": _text(done.err)}
                if done
                else {"error": str(answer.error)}
            )
            print(json.dumps({"node": name, **facts}), flush=True)
        elif done:
            _show(name, done)
        if answer.error is not None:
            code = max(code, answer.error.exit_code if as_json else fail(answer.error))
        elif done and done.code:
            code = max(code, ExitCode.ITEMS_FAILED)
    return code


def _show(name: str, done: Done) -> None:
    ending = "was killed" if done.code < 0 else f"exit {done.code}"
    print(f"{name} · {ending}" if done.code else name, flush=True)
    for stream, data in ((sys.stdout, done.out), (sys.stderr, done.err)):
        stream.flush()
        stream.buffer.write(data if data.endswith(b"\n") or not data else data + b"\n")
        stream.buffer.flush()


def _text(data: bytes) -> str:
    return os.fsdecode(data)
