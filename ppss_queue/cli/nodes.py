"""ppss nodes: the group of verbs that look after other machines, and which machines are meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ppss_queue.cli import Entry
from ppss_queue.cli.agentless import WITHOUT_PPSS
from ppss_queue.cli.completing import complete_files
from ppss_queue.cli.frame import Verbs, accepts_new
from ppss_queue.cli.options import Duration, Slots, option
from ppss_queue.errors import BadInput

if TYPE_CHECKING:
    from ppss_queue.nodes.everywhere import Answer
    from ppss_queue.nodes.joining import Joining
    from ppss_queue.nodes.master import MasterHome
    from ppss_queue.nodes.reach import Reach
    from ppss_queue.nodes.spec import NodeSpec
    from ppss_queue.queue import Queue

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

NODE_VERBS = {
    "check": Entry("Set up", "nodes_setup", "See what each node has and lacks, and what to do about it."),
    "deploy": Entry("Set up", "nodes_setup", "Bring PPSS to the nodes, with a key that opens only the gate."),
    "erase": Entry("Set up", "nodes_setup", "Remove every trace of PPSS from the nodes, and of them here."),
    "start": Entry("Work", "nodes_work", "Start a worker on each node, which outlives this connection."),
    "stop": Entry("Work", "nodes_work", "Let workers finish what they run, and end."),
    "pause": Entry("Work", "nodes_work", "Give the nodes nothing more; what runs goes on."),
    "resume": Entry("Work", "nodes_work", "Give paused or quarantined nodes items again."),
    "set": Entry("Work", "nodes_work", "Change the slots of nodes while they work."),
    "status": Entry("Look", "nodes_look", "Show all nodes: slots, what runs, rate, last heartbeat, load."),
    "logs": Entry("Look", "nodes_look", "Show what the workers logged; -f follows."),
    "exec": Entry("Look", "nodes_look", "Run one command on each node, outputs grouped."),
}


@click.group(
    "nodes",
    cls=Verbs,
    verbs=NODE_VERBS,
    subcommand_metavar="VERB [OPTION]... [NODE]...",
    options_metavar="",
    epilog="NODE is [USER@]HOST[:PORT], a name of ~/.ssh/config or of the list of nodes, node[01-40], or @TAG. The "
    "list is -n FILE or [nodes] in ppss.toml: a node a line, with settings such as slots=16 scratch=/fast nice=10 "
    "tags=gpu,fast mode=ssh. Without NODE it is all of the list.",
)
def nodes_verb() -> None:
    """Look after all nodes from this machine, over SSH.

    \b
    ppss nodes deploy big1 big2
    ppss nodes start big1 big2
    ppss nodes status
    """


def list_options(function: F) -> F:
    """Adds -S and -n."""
    for decorate in reversed(LIST_OPTIONS):
        function = decorate(function)
    return function


@dataclass(frozen=True, slots=True)
class Which:
    """Which nodes a verb means, as it was typed."""

    names: tuple[str, ...]
    """NODE..."""
    listed: str | None
    """-S"""
    file: str | None
    """-n"""

    @property
    def is_named(self) -> bool:
        """Not simply all of the list."""
        return bool(self.names) or self.listed is not None

    def nodes(self) -> list[NodeSpec]:
        """None, if nothing says which. Raises BadInput."""
        from ppss_queue.nodes.listing import choose

        wanted = ",".join([*self.names, *([self.listed] if self.listed else [])])
        return choose(known_nodes(self.file), wanted if self.is_named else None)

    def some(self) -> list[NodeSpec]:
        """At least one. Raises BadInput."""
        if nodes := self.nodes():
            return nodes
        raise BadInput("there are no nodes: name them (ppss nodes VERB big1 big2), or list them in -n FILE")

    def for_workers(self, nodes: Sequence[NodeSpec]) -> list[NodeSpec]:
        """Without those that need no worker of their own (mode=ssh), unless they were named one by one."""
        named = {*self.names, *(self.listed or "").split(",")}
        return [node for node in nodes if node.has_worker or node.name in named]

    def some_for_workers(self) -> list[NodeSpec]:
        """All, where none needs a worker: so each is told so. Raises BadInput."""
        nodes = self.some()
        return self.for_workers(nodes) or nodes


def which_nodes(function: F) -> F:
    """Adds NODE..., -S and -n, which become `which`."""

    @wraps(function)
    def call(
        *args: Any, names: tuple[str, ...], nodes: str | None, nodes_file: str | None, **options: Any
    ) -> Any:
        return function(*args, which=Which(names, nodes, nodes_file), **options)

    named = click.argument("names", nargs=-1, metavar="[NODE]...")
    return cast(F, named(list_options(call)))


def nodes_options(*, seconds: str) -> Callable[[F], F]:
    """Adds what `which_nodes` does, and the time that one node gets."""

    def add(function: F) -> F:
        time_limit = option(
            "--timeout",
            "seconds",
            type=Duration(minimum_seconds=1),
            default=seconds,
            envvar="PPSS_NODE_TIMEOUT",
            metavar="TIME",
            help=f"Give each node so long.  [{seconds}]",
        )
        return which_nodes(cast(F, time_limit(function)))

    return add


LIST_OPTIONS = (
    option(
        "-S",
        "--nodes",
        "nodes",
        metavar="LIST",
        help="Nodes: a,me@b:2222,node[01-40],@TAG; : is this machine.",
    ),
    option(
        "-n",
        "--nodes-file",
        "nodes_file",
        metavar="FILE",
        shell_complete=complete_files,
        help="List of nodes, one a line with its settings. Default: [nodes] in ppss.toml.",
    ),
)


reverse_option = option(
    "--reverse",
    is_flag=True,
    help="Nodes can't reach this machine: hold a way open for them through the connection to them.",
)


def reversed_if(reverse: bool, nodes: Sequence[NodeSpec]) -> list[NodeSpec]:
    """The nodes as --reverse means them."""
    return [replace(node, reverse=True) for node in nodes] if reverse else list(nodes)


master_option = option(
    "--master",
    metavar="HOST[:PORT]",
    help="Where nodes reach this machine's sshd. Default: the address from which it reached them.",
)


def each(
    nodes: Sequence[NodeSpec], seconds: float, work: Callable[[Reach], T], *, at_once: int | None = None
) -> Iterator[Answer[T]]:
    """Does it on each node over a connection to it; answers as they come. See `everywhere`."""
    from ppss_queue.nodes.everywhere import AT_ONCE, everywhere
    from ppss_queue.nodes.reach import Reach

    accept_new = accepts_new()

    def on_one(node: NodeSpec) -> T:
        with closing(Reach(node, accept_new=accept_new)) as reach:
            return work(reach)

    return everywhere(nodes, on_one, seconds=seconds, at_once=at_once or AT_ONCE)


def known_nodes(nodes_file: str | None) -> list[NodeSpec]:
    """The list of nodes. Raises BadInput."""
    from ppss_queue import config
    from ppss_queue.nodes.listing import read_nodes_file, read_nodes_table

    if nodes_file is not None:
        if nodes_file.isdecimal() and not Path(nodes_file).exists():
            raise BadInput(f"-n {nodes_file}: a command gets one item. -n names a file with a list of nodes.")
        return read_nodes_file(Path(nodes_file))
    here = Path()
    return read_nodes_table(config.read_nodes(here), f"'{here / config.FILE_NAME}'")


def nodes_of_run(made: dict[str, Any]) -> list[NodeSpec]:
    """The other machines that are to take part in a run with workers of their own; `:` tells the slots of this one.

    `made`: the options of the run, in which is noted that files are to be copied there, and which nodes get no worker.
    Raises BadInput.
    """
    nodes = (
        Which((), made["nodes"], made["nodes_file"]).nodes() if made["nodes"] or made["nodes_file"] else []
    )
    for node in nodes:
        if node.here and node.slots and made["slots"] is None:
            made["slots"] = Slots().convert(node.slots, None, None)
    others = [node for node in nodes if not node.here]
    made["stage"] = made["stage"] or bool(others)
    made[WITHOUT_PPSS] = [node for node in others if node.mode == "ssh"]
    return reversed_if(made["reverse"], [node for node in others if node.mode != "ssh"])


def join(queue: Queue, run: str, nodes: Sequence[NodeSpec], master: str | None) -> Joining | None:
    """Has the nodes join a run, in the background. Raises BadInput, ConnectFailed."""
    if not nodes:
        return None
    from ppss_queue.nodes.joining import Joining

    home, worker_url = master_home(queue, master)
    joining = Joining(nodes, run, worker_url, home, accept_new=accepts_new())
    joining.begin()
    return joining


def master_home(queue: Queue, master: str | None) -> tuple[MasterHome, str]:
    """What nodes must know of this machine, and what their workers take for --url. Raises BadInput, ConnectFailed."""
    from ppss_queue.address import SshHost
    from ppss_queue.nodes.master import MasterHome, worker_url

    address = queue.connection.address
    return MasterHome.of(address, SshHost.parse(master) if master else None), worker_url(address)
