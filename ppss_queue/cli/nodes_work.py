"""ppss nodes start, stop, pause, resume, set: verbs that change what nodes do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ppss_queue.cli.frame import Verb, accepts_new, open_queue
from ppss_queue.cli.nodes import (
    Which,
    each,
    master_home,
    master_option,
    nodes_options,
    reverse_option,
    reversed_if,
    which_nodes,
)
from ppss_queue.cli.nodes_setup import refuse_without_worker
from ppss_queue.cli.nodes_table import fill
from ppss_queue.cli.options import Number, json_option, option, url_option
from ppss_queue.cli.say import fail, say, typed
from ppss_queue.errors import BadInput, ExitCode, UnknownNode
from ppss_queue.units import plural

if TYPE_CHECKING:
    from ppss_queue.node_views import Node
    from ppss_queue.nodes.reach import Reach
    from ppss_queue.nodes.service import Started
    from ppss_queue.nodes.spec import NodeSpec
    from ppss_queue.queue import Queue


@click.command(
    "start",
    cls=Verb,
    examples="""
    ppss nodes start big1 big2
    ppss nodes start -n nodes.txt --enable
    ppss nodes start big1 --reverse     # it can't reach this machine
    """,
)
@nodes_options(seconds="15m")
@option("--enable", is_flag=True, help="Start it again whenever the machine is started.")
@master_option
@reverse_option
@json_option
@url_option
def start_verb(
    which: Which,
    seconds: float,
    enable: bool,
    master: str | None,
    reverse: bool,
    as_json: bool,
    url: str | None,
) -> int:
    """Start a worker on each node, which outlives this connection.

    It serves all runs. PPSS is deployed where it is missing. Where a worker is at work, nothing is done. It waits
    while this machine is not there, and goes on when it is back. With --reverse a process here holds the way from it
    open for as long as it works; after a restart of this machine, start it again.
    """
    from ppss_queue.nodes import service, way_back
    from ppss_queue.nodes.deploy import deploy

    wanted, accept_new = reversed_if(reverse, which.some_for_workers()), accepts_new()
    with open_queue(url) as queue:
        home, worker_url = master_home(queue, master)

    def work(reach: Reach) -> Started:
        refuse_without_worker(reach.node)
        deployed = deploy(reach, home, lambda doing: None)
        with way_back.held(reach.node, deployed, home, accept_new=accept_new):
            place, words = deployed.paths.directory, service.worker_words(reach.node)
            return service.start(reach, place, worker_url, words, enable=enable)

    return fill(
        ("STATE", "PID", "AFTER REBOOT"),
        wanted,
        each(wanted, seconds, work),
        lambda started: {
            "STATE": "started" if started.anew else "was running",
            "PID": str(started.pid),
            "AFTER REBOOT": "comes back" if started.after_reboot else "stays away",
        },
        lambda started: {
            "pid": started.pid,
            "started": started.anew,
            "after_reboot": started.after_reboot,
        },
        as_json=as_json,
    )


@click.command(
    "stop",
    cls=Verb,
    examples="""
    ppss nodes stop
    ppss nodes stop --now big1
    ppss nodes stop --disable big1      # it was started with --enable
    """,
)
@nodes_options(seconds="60s")
@option("--now", is_flag=True, help="Do not finish what runs: hand it back.")
@option("--disable", is_flag=True, help="Do not start it again with the machine.")
@url_option
def stop_verb(
    which: Which,
    seconds: float,
    now: bool,
    disable: bool,
    url: str | None,
) -> int:
    """Let workers finish what they run, and end.

    Without NODE: all nodes at work. They hear it by way of Redis; a node of which Redis does not know is told over
    SSH. Returns at once; see what is left with: ppss nodes status. A worker that was started with --enable comes back
    with its machine, unless --disable is given, which goes over SSH.
    """
    from ppss_queue.nodes import service
    from ppss_queue.nodes.probe import probe

    wanted = which.some() if disable else which.nodes()
    with open_queue(url) as queue:
        unknown = _tell(queue, wanted, lambda node: node.stop(now=now))

    def work(reach: Reach) -> bool:
        refuse_without_worker(reach.node)
        place = probe(reach).paths.directory
        if disable:
            service.disable(reach, place)
        return reach.node.name not in unknown or service.stop(reach, place, now=now)

    untold = [node for node in wanted if node.name in unknown]
    code: int = ExitCode.OK
    for answer in each(which.for_workers(wanted if disable else untold), seconds, work):
        if answer.error:
            code = max(code, fail(answer.error))
        elif not answer.result:
            say(f"{answer.node.name}: no worker is there")
    return code


@click.command(
    "pause",
    cls=Verb,
    examples="""
    ppss nodes pause big1
    """,
)
@which_nodes
@url_option
def pause_verb(which: Which, url: str | None) -> int:
    """Give the nodes nothing more; what runs goes on.

    Without NODE: all nodes at work. A node that is paused stays so when its worker is started anew.
    """
    return _say_to(which, url, lambda node: node.pause())


@click.command(
    "resume",
    cls=Verb,
    examples="""
    ppss nodes resume big1
    """,
)
@which_nodes
@url_option
def resume_verb(which: Which, url: str | None) -> int:
    """Give paused or quarantined nodes items again.

    Without NODE: all nodes.
    """
    return _say_to(which, url, lambda node: node.resume())


@click.command(
    "set",
    cls=Verb,
    usage="[OPTION]... [NODE]... slots=N",
    examples="""
    ppss nodes set big1 slots=4
    ppss nodes set big1 slots=      # as it was started
    """,
)
@which_nodes
@url_option
def set_verb(which: Which, url: str | None) -> int:
    """Change the slots of nodes while they work.

    The number counts for all workers of a node together, also when they are started anew. Without NODE: all nodes.
    """
    settings = [name for name in which.names if "=" in name]
    if len(settings) != 1 or not settings[0].startswith("slots="):
        raise BadInput("give one setting, the number of slots: ppss nodes set big1 slots=4")
    value = settings[0].removeprefix("slots=")
    slots = Number(1).convert(value, None, None) if value else None
    which = replace(which, names=tuple(name for name in which.names if "=" not in name))
    return _say_to(which, url, lambda node: node.set_slots(slots))


def _say_to(which: Which, url: str | None, say_it: Callable[[Node], None]) -> int:
    with open_queue(url) as queue:
        unknown = _tell(queue, which.nodes(), say_it)
    return max((fail(error) for error in unknown.values()), default=ExitCode.OK)


def _tell(queue: Queue, wanted: Sequence[NodeSpec], say_it: Callable[[Node], None]) -> dict[str, UnknownNode]:
    """Says it to nodes, or to all that there are; returns those of which Redis does not know. Raises BadInput."""
    names = [node.name for node in wanted] or [view.name for view in queue.nodes()]
    if not names:
        raise BadInput(f"there are no nodes. Start one: {typed('nodes start NODE')}")
    unknown: dict[str, UnknownNode] = {}
    for name in names:
        try:
            say_it(queue.node(name))
        except UnknownNode as error:
            unknown[name] = error
    if told := len(names) - len(unknown):
        say(f"told {plural(told, 'node')}")
    return unknown
