"""The Python API: a queue, its runs, and their items."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from ppss_queue.address import Address
from ppss_queue.connection import Connection
from ppss_queue.durability import Durable, durable_over_ssh, nothing_durable
from ppss_queue.errors import BadInput, OutOfMemory, PpssError
from ppss_queue.keys import Keys
from ppss_queue.model import RunSpec
from ppss_queue.replies import read_members
from ppss_queue.resources import Resources
from ppss_queue.rules import Halt, RetryRule
from ppss_queue.run import Run
from ppss_queue.server_info import check_server
from ppss_queue.store import Counts, Store

if TYPE_CHECKING:
    from ppss_queue.node_views import Node, NodeView
    from ppss_queue.sources import Sources

_ID_LETTERS = "abcdefghjkmnpqrstvwxyz"
"""Without look-alikes: no l, so that no id is ever `default` or `last`."""
_ID_CHARACTERS = "0123456789" + _ID_LETTERS


def connect(address: str | None = None, *, accept_new: bool = False) -> Queue:
    """The queue at `address` (redis://, rediss://, unix://, redis+sentinel://, ssh://).

    None: $PPSS_URL if set, else this user's own server, which is started if need be. `accept_new`: over SSH, trust a
    host of which nothing is known. Use it as a context manager, or call `close`.
    Raises BadInput, ConnectFailed, MachineFailed.
    """
    return Queue.open(address or os.environ.get("PPSS_URL") or None, accept_new=accept_new)


class Queue:
    """All runs of one Redis. One thread at a time; open another one for another thread."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        warnings: Sequence[str] = (),
        durable: Durable = nothing_durable,
    ) -> None:
        self.connection = connection
        self.keys = keys
        self.store = Store(connection, keys)
        self.warnings = tuple(warnings)
        """One sentence for each doubt about the server: it may evict, it keeps nothing on disk."""
        self._durable = durable

    @classmethod
    def open(cls, address: str | None, *, accept_new: bool = False, clones: int = 0) -> Queue:
        """See `connect`, and Connection.open for `clones`."""
        keys = Keys.from_environment()
        if address is not None:
            parsed = Address.parse(address)
            connection = Connection.open(parsed, accept_new=accept_new, clones=clones)
            durable_there = durable_over_ssh if parsed.scheme == "ssh" else nothing_durable
            warnings = [*(connection.line.accepted if connection.line else ()), *check_server(connection)]
            queue = cls(connection, keys, warnings, durable_there)
        else:
            from ppss_queue.durability import durable
            from ppss_queue.server import ensure_running
            from ppss_queue.server_place import default_place

            place = default_place()
            connection = Connection.open(Address.parse(ensure_running(place)))
            queue = cls(connection, keys, durable=lambda connection: durable(place, connection))
        queue.store.check_layout()
        return queue

    def close(self) -> None:
        self.connection.close()
        if self.connection.line is not None:
            self.connection.line.close()

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def enqueue(
        self,
        items: Iterable[str | bytes | os.PathLike[str]],
        *,
        command: str | Sequence[str] | None,
        output: str | os.PathLike[str] | None = None,
        name: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        replacement: str = "{}",
        retries: int = 0,
        retry_delay_seconds: float = 1.0,
        retry_on: Collection[int] = (),
        no_retry_on: Collection[int] = (),
        timeout_seconds: float | None = None,
        visibility_seconds: float = 30.0,
        max_lost: int = 3,
        halt: str | None = None,
        priority: int = 1,
        keep_output: bool = False,
        stage: bool = False,
        gpus: int = 0,
        cpus: int = 0,
        memory_bytes: int = 0,
    ) -> Run:
        """Makes a run of `items` and opens it: workers take them from now on.

        `items`: strings are texts, `pathlib.Path`s are files; an iterator is consumed once, in constant memory.
        `command`: a text for bash, words to execute, or "python:package.module:function", called with each
        item; None: workers bring their own. `$ITEM` and the `{}` strings work as on the command line.
        `output`: the directory in which outputs appear. `stage`: nodes that reach this machine by SSH fetch files and
        bring outputs home. `halt`: "now,fail=3" or "soon,fail=10%". `gpus`, `cpus`, `memory_bytes`: what each item
        needs of its node.
        Raises BadInput, ServiceFailed; the run does not exist then.
        """
        from ppss_queue.sources import texts

        here = os.path.abspath(directory or os.getcwd())
        spec = RunSpec(
            command=command if isinstance(command, str) or command is None else tuple(command),
            directory=here,
            output=os.path.join(here, os.fspath(output)) if output is not None else None,
            replacement=replacement,
            retry=RetryRule(retries, retry_delay_seconds, tuple(retry_on), tuple(no_retry_on)),
            max_lost=max_lost,
            visibility_seconds=visibility_seconds,
            timeout_seconds=timeout_seconds,
            halt=Halt.parse(halt) if halt else None,
            priority=priority,
            keep_output=keep_output,
            stage=stage,
            name=name,
            needs=Resources(gpus, cpus, memory_bytes),
        )
        check(spec)
        return self.make_run(spec, texts(items))

    def make_run(
        self, spec: RunSpec, sources: Sources, on_added: Callable[[int], None] = lambda total: None
    ) -> Run:
        """Makes a run of `sources` and opens it once it is complete; `on_added` hears the items so far.

        If anything goes wrong, a Ctrl-C too, the run is gone again; if this process dies, it goes away by itself.
        """
        from ppss_queue.filling import fill

        self.store.purge_abandoned()
        run = self._create(spec.with_roots(sources.roots))
        try:
            fill(self.store, run, sources, self._durable, on_added)
        except OutOfMemory as error:
            self._abandon(run)
            raise OutOfMemory(f"{error} Nothing of the run is left.") from None
        except BaseException:
            self._abandon(run)
            raise
        return Run(self.store, run, self._durable)

    def run(self, name: str) -> Run:
        """A run by id, name or "last". Raises UnknownRun."""
        return Run(self.store, self.store.resolve(name), self._durable)

    def runs(self) -> list[Counts]:
        """All runs, oldest first."""
        self.store.purge_abandoned()
        return list(self.store.counts(self.store.runs()))

    def nodes(self) -> list[NodeView]:
        """All nodes, by name: those with workers, and those that were lost within a day."""
        from ppss_queue.node_views import nodes

        return nodes(self.store)

    def node(self, name: str) -> Node:
        """A node by name, to pause, resize or stop; whether there is one is seen then."""
        from ppss_queue.node_views import Node

        return Node(self.store, name)

    def workers(self) -> list[WorkerView]:
        """Workers of PPSS that were heard of lately."""
        keys = read_members(self.connection.execute("SMEMBERS", self.keys.workers))
        prefix = self.keys.worker("")
        views = []
        for key, reply in zip(
            keys, self.connection.execute_many([("HGETALL", key) for key in keys]), strict=True
        ):
            if isinstance(reply, PpssError):
                raise reply
            flat = read_members(reply)
            facts = dict(zip(flat[::2], flat[1::2], strict=True))
            if "node" in facts:
                offer = Resources(*(int(facts.get(name, 0)) for name in ("gpus", "cpus", "memory_bytes")))
                views.append(WorkerView(key.removeprefix(prefix), facts["node"], int(facts["slots"]), offer))
        return sorted(views, key=lambda view: view.name)

    def _create(self, spec: RunSpec) -> str:
        import secrets

        length = 4
        while True:
            rest = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(length - 1))
            run = secrets.choice(_ID_LETTERS) + rest
            if self.store.create(run, spec):
                return run
            length += 1

    def _abandon(self, run: str) -> None:
        """Makes a half-filled run go away; if Redis can't be told, its deadline does."""
        try:
            self.connection.reopen()  # it is closed if it was interrupted in the middle of a call
            self.store.cancel(run)
            self.store.purge(run)
        except PpssError:
            pass


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker that is there."""

    name: str
    node: str
    slots: int
    offer: Resources
    """All that it has for items that say what they need."""


def check(spec: RunSpec) -> None:
    """Finds out before anything is enqueued what would fail every item. Raises BadInput."""
    from ppss_queue.command import check_syntax, parse_command

    _check_rules(spec)
    if spec.output is not None and os.path.lexists(spec.output) and not os.path.isdir(spec.output):
        raise BadInput(f"the output directory '{spec.output}' is a file. Name a directory.")
    if isinstance(spec.command, tuple) and not all(isinstance(word, str) for word in spec.command):
        raise BadInput(f"the command {spec.command!r} has words that are no strings. Make strings of them.")
    if spec.function is not None and not re.fullmatch(r"[\w.]+:\w+", spec.function):
        raise BadInput(f"'python:{spec.function}' names no function. Write python:package.module:function")
    if spec.command is None or spec.function is not None:
        return
    command = parse_command(spec.command, replacement=spec.replacement, functions=spec.functions)
    if command.needs_output and spec.output is None:
        raise BadInput("The command names an output directory, but there is none. Give one: -o DIR")
    check_syntax(command)


def _check_rules(spec: RunSpec) -> None:
    if spec.name == "last":
        raise BadInput("A run can't be named 'last', which means the latest one. Choose another name.")
    for name, value, least in (
        ("retries", spec.retry.retries, 0),
        ("retry_delay_seconds", spec.retry.delay_seconds, 0),
        ("timeout_seconds", spec.timeout_seconds, 0.001),
        ("visibility_seconds", spec.visibility_seconds, 0.001),
        ("max_lost", spec.max_lost, 0),
        ("priority", spec.priority, 1),
    ):
        if value is not None and not value >= least:  # nan is not `<` either
            raise BadInput(f"{name} is {value}, but must be at least {least}.")
    for name, value in asdict(spec.needs).items():
        if not isinstance(value, int) or value < 0:
            raise BadInput(f"{name} is {value!r}, but must be a whole number from 0 up.")
    for code in (*spec.retry.on, *spec.retry.not_on):
        if not 0 <= code <= 255:
            raise BadInput(f"{code} is no exit code: these go from 0 to 255.")
