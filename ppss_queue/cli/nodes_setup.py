"""ppss nodes check, deploy, erase: verbs that prepare nodes, and clean up after them."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ppss_queue.cli.frame import Verb, open_queue
from ppss_queue.cli.nodes import (
    Which,
    each,
    master_home,
    master_option,
    nodes_options,
    reverse_option,
    reversed_if,
)
from ppss_queue.cli.nodes_table import Row, fill
from ppss_queue.cli.options import json_option, option, url_option
from ppss_queue.cli.say import say
from ppss_queue.errors import BadInput, ConnectFailed, ExitCode, UnknownNode
from ppss_queue.nodes.spec import Mode, NodeSpec
from ppss_queue.units import format_bytes, plural

if TYPE_CHECKING:
    from ppss_queue.nodes.checking import Checked
    from ppss_queue.nodes.deploy import Deployed
    from ppss_queue.nodes.probe import Probe
    from ppss_queue.nodes.reach import Reach

_CLOCK_SECONDS = 2.0


@click.command(
    "check",
    cls=Verb,
    examples="""
    ppss nodes check big1 big2
    ppss nodes check -n nodes.txt --json
    """,
)
@nodes_options(seconds="60s")
@master_option
@reverse_option
@json_option
@url_option
def check_verb(
    which: Which,
    seconds: float,
    master: str | None,
    reverse: bool,
    as_json: bool,
    url: str | None,
) -> int:
    """See what each node has and lacks, and what to do about it.

    That stands below the table, for each node that needs it. Nothing is changed. Ends with 0 if all nodes can
    take part, with 1 if one lacks something, with 3 if one can't be reached.
    """
    from ppss_queue.address import SshHost
    from ppss_queue.nodes.checking import SSH_PORT, check

    wanted = reversed_if(reverse, which.some())

    at = SshHost.parse(master) if master else SshHost("")
    lacking = False
    seen: dict[tuple[str, int], str] = {}

    def row(checked: Checked) -> Row:
        nonlocal lacking
        facts = checked.probe
        lacking = lacking or bool(checked.lacks)
        notes = list(checked.lacks)
        same = seen.setdefault((facts.machine, facts.uid), checked.node.name)
        if same != checked.node.name:
            notes.append(f"it is the same machine and user as '{same}': name only one of both.")
        return {**_cells(facts), "STATE": "lacks" if checked.lacks else "ready", "NOTE": " ".join(notes)}

    code = fill(
        ("STATE", "PYTHON", "PPSS", "CORES", "LOAD", "FREE", "GPUS", "CLOCK"),
        wanted,
        each(wanted, seconds, lambda reach: check(reach, at.host, at.port or SSH_PORT)),
        row,
        lambda checked: checked.facts(),
        as_json=as_json,
    )
    return max(code, ExitCode.ITEMS_FAILED) if lacking else code


def _cells(facts: Probe) -> Row:
    offset = facts.clock_offset_seconds
    return {
        "PYTHON": facts.python.version if facts.python else "-",
        "PPSS": facts.version or "-",
        "CORES": str(facts.cores),
        "LOAD": f"{facts.load:.1f}",
        "FREE": format_bytes(facts.free_bytes) if facts.free_bytes is not None else "-",
        "GPUS": str(len(facts.gpus)) if facts.gpus else "-",
        "CLOCK": f"{offset:+.0f} s" if abs(offset) >= _CLOCK_SECONDS else "right",
    }


@click.command(
    "deploy",
    cls=Verb,
    examples="""
    ppss nodes deploy big1 big2
    ppss nodes deploy -S @gpu --master 10.0.0.5:2222
    ppss nodes deploy big1 --reverse    # it can't reach this machine
    """,
)
@nodes_options(seconds="15m")
@master_option
@reverse_option
@json_option
@url_option
def deploy_verb(
    which: Which,
    seconds: float,
    master: str | None,
    reverse: bool,
    as_json: bool,
    url: str | None,
) -> int:
    """Bring PPSS to the nodes, with a key that opens only the gate.

    All goes below ~/.local/share/ppss there. A node needs no root, no internet and no pip, only Python 3.11 or
    newer. The key pair is made on the node; its public half goes into ~/.ssh/authorized_keys here, restricted to
    `ppss gate`. Where all is there, nothing is done, and what was broken off is finished. Workers of an older
    version go on with their own files until they are stopped.
    """
    from ppss_queue.nodes.deploy import deploy

    wanted = reversed_if(reverse, which.some_for_workers())
    with open_queue(url) as queue:
        home, _ = master_home(queue, master)

    def work(reach: Reach) -> Deployed:
        refuse_without_worker(reach.node)
        return deploy(reach, home, lambda doing: None)

    return fill(
        ("STATE", "PYTHON", "DONE"),
        wanted,
        each(wanted, seconds, work),
        lambda deployed: {"STATE": "ready", "PYTHON": deployed.python, "DONE": deployed.what},
        lambda deployed: {
            "done": deployed.what,
            "python": deployed.python,
            "platform": deployed.platform,
            "directory": deployed.paths.directory,
            "reverse": deployed.reverse,
        },
        as_json=as_json,
    )


@dataclass(frozen=True, slots=True)
class _Gone:
    worker: bool
    files: bool
    keys: int


@click.command(
    "erase",
    cls=Verb,
    examples="""
    ppss nodes erase big1
    ppss nodes erase --yes -n nodes.txt
    """,
)
@nodes_options(seconds="2m")
@option("-y", "--yes", is_flag=True, envvar="PPSS_ERASE_YES", help="Do not ask.")
@json_option
@url_option
def erase_verb(
    which: Which,
    seconds: float,
    yes: bool,
    as_json: bool,
    url: str | None,
) -> int:
    """Remove every trace of PPSS from the nodes, and of them here.

    These are workers, files, scratch, logs, and the key here. What runs there is handed back first. What other
    masters brought there stays, and so do outputs.
    """
    wanted = which.some_for_workers()
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise BadInput("nobody can be asked here. If all of PPSS is to go from these nodes: --yes")
        shown = ", ".join(node.name for node in wanted[:5]) + (" ..." if len(wanted) > 5 else "")
        if not click.confirm(f"Remove PPSS from {plural(len(wanted), 'node')} ({shown})?", err=True):
            say("nothing was removed")
            return ExitCode.ITEMS_FAILED

    erased: list[str] = []

    def work(reach: Reach) -> _Gone:
        gone = _erase(reach)
        erased.append(reach.node.name)
        return gone

    code = fill(
        ("STATE", "FILES", "KEYS"),
        wanted,
        each(wanted, seconds, work),
        lambda gone: {
            "STATE": "erased",
            "FILES": "removed" if gone.files else "none",
            "KEYS": "removed" if gone.keys else "none",
        },
        lambda gone: {"worker": gone.worker, "files": gone.files, "keys": gone.keys},
        as_json=as_json,
    )
    with open_queue(url) as queue:
        for name in erased:
            with suppress(UnknownNode):  # it never worked for this queue
                queue.node(name).forget(gone=True)
    return code


def _erase(reach: Reach) -> _Gone:
    from ppss_queue.nodes import service, way_back
    from ppss_queue.nodes.deploy import erase, forget
    from ppss_queue.nodes.probe import probe

    refuse_without_worker(reach.node)
    try:
        stopped = service.stop_all(reach, probe(reach).paths.directory)
        gone = erase(reach)
    except ConnectFailed as error:
        if forget(reach.node.name):
            raise ConnectFailed(f"{error} Its key does not open this machine any more.") from None
        raise
    finally:
        way_back.close(reach.node)
    return _Gone(stopped, gone.files, gone.keys)


def refuse_without_worker(node: NodeSpec) -> None:
    """Raises BadInput for a node on which no worker of its own is to run."""
    if node.here:
        raise BadInput("this machine has PPSS already: leave ':' out.")
    if node.mode is Mode.SSH:
        raise BadInput(
            f"{node.name} works without a worker of its own (mode=ssh): name it in ppss run --nodes, nothing else is "
            "needed."
        )
