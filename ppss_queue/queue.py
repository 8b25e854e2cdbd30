"""The Python API: a queue, its runs, and their items."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from types import TracebackType

from ppss_queue import status
from ppss_queue.address import Address
from ppss_queue.connection import Connection, check_server
from ppss_queue.errors import BadInput, OutOfMemory, PpssError, UnknownRun
from ppss_queue.keys import Keys
from ppss_queue.model import ENDED, STATES, Halt, ItemView, RetryRule, RunSpec, RunState, State
from ppss_queue.sources import SourceItem, Sources, texts
from ppss_queue.store import FILLING_SECONDS, Counts, Store, encode_item, read_members, text
from ppss_queue.units import format_count

BATCH_ITEMS = 500
"""Items in one call of add.lua: blocks the server for 2 to 5 ms."""
CALLS_IN_FLIGHT = 8
"""Enough to keep a server busy that is 80 ms away."""
_ID_LETTERS = "abcdefghjkmnpqrstvwxyz"
"""Without look-alikes: no l, so that no id is ever `default` or `last`."""
_ID_CHARACTERS = "0123456789" + _ID_LETTERS
_BLOCK_SECONDS = 1.0
"""A waiting reader looks again this often: a halted run's last lease handed back, or a purge, is no event."""


def connect(address: str | None = None) -> Queue:
    """The queue at `address` (redis://, rediss://, unix://, redis+sentinel://).

    None: $PPSS_URL if set, else this user's own server, which is started if need be. Use it as a context
    manager, or call `close`. Raises BadInput, ConnectFailed, MachineFailed.
    """
    return Queue.open(address or os.environ.get("PPSS_URL") or None)


class Queue:
    """All runs of one Redis. One thread at a time; open another one for another thread."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        warnings: Sequence[str] = (),
        durable: Callable[[Connection], AbstractContextManager[None]] | None = None,
    ) -> None:
        """`durable` makes what is written inside it reach the disk; None: that is the server's affair."""
        self.connection = connection
        self.keys = keys
        self.store = Store(connection, keys)
        self.warnings = tuple(warnings)
        """One sentence for each doubt about the server: it may evict, it keeps nothing on disk."""
        self._durable = durable

    @classmethod
    def open(cls, address: str | None) -> Queue:
        """See `connect`."""
        if address is not None:
            connection = Connection.open(Address.parse(address))
            return cls(connection, Keys.from_environment(), check_server(connection))
        from ppss_queue.durability import durable
        from ppss_queue.server import ensure_running
        from ppss_queue.server_place import default_place

        place = default_place()
        connection = Connection.open(Address.parse(ensure_running(place)))
        return cls(connection, Keys.from_environment(), durable=lambda connection: durable(place, connection))

    def close(self) -> None:
        self.connection.close()

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
    ) -> Run:
        """Makes a run of `items` and opens it: workers take them from now on.

        `items`: strings are texts, `pathlib.Path`s are files; an iterator is consumed once, in constant memory.
        `command`: a text for bash, words to execute, or "python:package.module:function", called with each
        item; None: workers bring their own. `$ITEM` and the `{}` strings work as on the command line.
        `output`: the directory in which outputs appear. `halt`: "now,fail=3" or "soon,fail=10%".
        Raises BadInput, ServiceFailed; the run does not exist then.
        """
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
            name=name,
        )
        check(spec)
        return self.make_run(spec, texts(items))

    def make_run(
        self, spec: RunSpec, sources: Sources, on_added: Callable[[int], None] = lambda total: None
    ) -> Run:
        """Makes a run of `sources` and opens it once it is complete; `on_added` hears the items so far.

        If anything goes wrong, a Ctrl-C too, the run is gone again; if this process dies, it goes away by itself.
        """
        run = self._create(spec.with_roots(sources.roots))
        try:
            self.fill(run, sources, on_added)
        except OutOfMemory as error:
            self._abandon(run)
            raise OutOfMemory(f"{error} Nothing of the run is left.") from None
        except BaseException:
            self._abandon(run)
            raise
        return Run(self, run)

    def fill(self, run: str, sources: Iterable[SourceItem], on_added: Callable[[int], None]) -> int:
        """Adds items to a run and opens it; returns how many. Raises UnknownRun, BadInput, ServiceFailed."""
        total = 0
        self.connection.receive(self.connection.pending)  # answers to a filling that was broken off
        self.store.add(run, ())  # Redis knows the script from now on
        alive = _StillFilling(self.connection, self.keys, run)
        encoded = (encode_item(name, root) for name, root in sources)
        try:
            while batch := list(islice(encoded, BATCH_ITEMS)):
                self.connection.send([self.store.add_call(run, batch).command])
                total += len(batch)
                if self.connection.pending >= CALLS_IN_FLIGHT:
                    self._added(run, total)
                    on_added(total)
            while self.connection.pending:
                self._added(run, total)
        finally:
            alive.stop()
        on_added(total)
        with self._durable(self.connection) if self._durable else nullcontext():
            self.store.open(run)
        return total

    def run(self, name: str) -> Run:
        """A run by id, name or "last". Raises UnknownRun."""
        return Run(self, self.store.resolve(name))

    def runs(self) -> list[Counts]:
        """All runs, oldest first."""
        return list(self.store.counts(self.store.runs()))

    def workers(self) -> list[WorkerView]:
        """Workers of PPSS that were heard of lately."""
        keys = read_members(self.connection.execute("SMEMBERS", self.keys.workers))
        views = []
        for key, reply in zip(
            keys, self.connection.execute_many([("HGETALL", key) for key in keys]), strict=True
        ):
            if isinstance(reply, PpssError):
                raise reply
            flat = read_members(reply)
            facts = dict(zip(flat[::2], flat[1::2], strict=True))
            if "node" in facts:
                views.append(WorkerView(key.rpartition(":")[2], facts["node"], int(facts["slots"])))
        return sorted(views, key=lambda view: view.name)

    def _create(self, spec: RunSpec) -> str:
        length = 4
        while True:
            rest = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(length - 1))
            run = secrets.choice(_ID_LETTERS) + rest
            if self.store.create(run, spec):
                return run
            length += 1

    def _added(self, run: str, total: int) -> None:
        (reply,) = self.connection.receive(1)
        if isinstance(reply, OutOfMemory):
            raise OutOfMemory(f"{reply} It was full after about {format_count(total)} items.")
        if isinstance(reply, PpssError):
            raise reply
        self.store.read_added(run, reply)

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


class Run:
    """One run. Its counts and items are read from Redis each time."""

    def __init__(self, queue: Queue, run: str) -> None:
        self.id = run
        self._queue = queue
        self._store = queue.store

    def add(self, items: Iterable[str | bytes | os.PathLike[str]]) -> int:
        """Adds items, claimable at once; a run that was done is open again. Returns how many.

        `Path`s can be added to a run of files in one directory tree only if they are below its root; give
        strings otherwise. Raises BadInput if the run was cancelled.
        """
        return self.add_sources(texts(items))

    def add_sources(self, sources: Sources, on_added: Callable[[int], None] = lambda total: None) -> int:
        """The same for sources."""
        return self._queue.fill(self.id, _rebased(sources, self._store.spec(self.id)), on_added)

    def status(self) -> Counts:
        """Counts, rate and workers now. Raises UnknownRun."""
        for counts in self._store.counts([self.id]):
            return counts
        raise UnknownRun(f"There is no run '{self.id}'. See which there are: ppss status")

    def items(self, state: State | str | None = None) -> Iterator[ItemView]:
        """Items in input order, of one state or all. Raises BadInput, UnknownRun."""
        if state is not None and state not in STATES:
            raise BadInput(f"'{state}' is no state of an item. There are {', '.join(STATES)}.")
        return status.items(self._store, self.id, State(state) if state is not None else None)

    def results(self) -> Iterator[ItemView]:
        """Items as they end, from the first that ended, until the run ends. An item that is retried comes again."""
        with self._queue.connection.clone() as connection:
            store = Store(connection, self._queue.keys)
            for seqs in self._ends(store, "0"):
                # One that was retried meanwhile has not ended: it comes with its next end.
                yield from (view for view in status.view(store, self.id, seqs) if view.state in ENDED)

    def wait(self, timeout_seconds: float | None = None) -> Counts:
        """Blocks until the run ends (done, cancelled, or halted); no polling. Raises TimeoutError, UnknownRun."""
        with self._queue.connection.clone() as connection:
            self._wait(connection, timeout_seconds)
        return self.status()

    def is_over(self) -> bool:
        """Whether it is done, cancelled, halted or gone."""
        return _is_over(next(self._store.counts([self.id]), None))

    async def wait_async(self) -> Counts:
        """`wait` for asyncio: in a thread, which ends when this is cancelled."""
        import asyncio

        with self._queue.connection.clone() as connection:  # its end is what ends the thread
            await asyncio.to_thread(self._wait, connection)
        return self.status()

    def pause(self) -> None:
        """Hands nothing out; what runs goes on. Raises BadInput if the run has ended."""
        self._must_be_alive(self._store.pause(self.id))

    def resume(self) -> None:
        """Goes on. Raises BadInput if the run has ended."""
        self._must_be_alive(self._store.resume(self.id))

    def cancel(self, *names: str) -> int:
        """Ends the run, or these items (by name or `#17`), running or not. Returns how many items that ended."""
        if names:
            return self._store.cancel_items(self.id, status.find(self._store, self.id, names))
        before = self.status().left
        self._store.cancel(self.id)
        return before

    def retry(self, *names: str) -> int:
        """Failed items back to ready, all or these. Returns how many."""
        return self._store.retry(self.id, status.find(self._store, self.id, names) if names else None)

    def purge(self) -> None:
        """Forgets a run that ended. Raises BadInput if it has not."""
        self._store.purge(self.id)

    def log(self, name: str) -> str:
        """What Redis kept of what the item's last attempt printed (the end of it, of failed items)."""
        return status.output(self._store, self.id, status.find(self._store, self.id, [name])[0])

    def _must_be_alive(self, state: RunState) -> None:
        if state in (RunState.DONE, RunState.CANCELLED, RunState.FILLING):
            raise BadInput(f"Run {self.id} is {state}.")

    def _wait(self, connection: Connection, timeout_seconds: float | None = None) -> None:
        for _ in self._ends(Store(connection, self._queue.keys), "$", timeout_seconds):
            pass

    def _ends(self, store: Store, cursor: str, timeout_seconds: float | None = None) -> Iterator[list[int]]:
        """Numbers of items as they end, in batches, until the run has ended."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        key = self._queue.keys.events(self.id)
        if cursor == "$":
            newest = store.connection.execute("XREVRANGE", key, "+", "-", "COUNT", 1)
            cursor = _ids(newest)[-1] if newest else "0"
        while True:
            over = _is_over(next(store.counts([self.id]), None))
            wait = 0.0 if over else _BLOCK_SECONDS
            if deadline is not None:
                wait = min(wait, max(0.0, deadline - time.monotonic()))
            block = ("BLOCK", max(1, int(wait * 1000)))
            reply = store.connection.execute("XREAD", "COUNT", 1000, *block, "STREAMS", key, cursor)
            if isinstance(reply, list) and reply:
                entries = reply[0][1] if isinstance(reply[0], list) else []
                cursor = _ids(entries)[-1]
                yield [seq for seq in _seqs(entries) if seq]
            elif over:
                return
            if not over and deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"run {self.id} has not ended within {timeout_seconds:g} s")


class _StillFilling:
    """Shows that an enqueuer is alive while its source is slow, from a thread that usually never wakes up."""

    def __init__(self, connection: Connection, keys: Keys, run: str) -> None:
        self._stopped = threading.Event()
        self._connection = connection
        self._keys = keys
        self._run = run
        threading.Thread(target=self._renew, name="filling", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _renew(self) -> None:
        while not self._stopped.wait(FILLING_SECONDS / 5):
            try:
                with self._connection.clone(name="ppss-filling") as connection:
                    Store(connection, self._keys).add(self._run, ())
            except PpssError:
                continue  # the enqueuer itself will meet it


def _rebased(sources: Sources, spec: RunSpec) -> Iterator[SourceItem]:
    """Items of new sources in terms of a run's roots. Raises BadInput for files outside of them."""
    from ppss_queue.sources import local_path

    for name, root in sources:
        place = sources.roots[root]
        if place in spec.roots:
            yield SourceItem(name, spec.roots.index(place))
            continue
        path = local_path(place, name)
        for index, known in enumerate(spec.roots):
            if known and path.startswith(known.rstrip("/") + "/"):
                yield SourceItem(path[len(known.rstrip("/")) + 1 :], index)
                break
        else:
            kinds = " and ".join(f"files below {known}" if known else "texts" for known in spec.roots)
            raise BadInput(f"'{path}' does not fit into this run, which has {kinds}. Make a run of its own.")


def _is_over(counts: Counts | None) -> bool:
    if counts is None:
        return True
    return counts.state in (RunState.DONE, RunState.CANCELLED) or (
        counts.state is RunState.PAUSED and bool(counts.reason) and counts.leased == counts.expired
    )


def _ids(entries: object) -> list[str]:
    return [text(entry[0]) for entry in entries] if isinstance(entries, list) else []


def _seqs(entries: object) -> Iterator[int]:
    for entry in entries if isinstance(entries, list) else ():
        fields = read_members(entry[1])
        yield int(dict(zip(fields[::2], fields[1::2], strict=True))["s"])


def check(spec: RunSpec) -> None:
    """Finds out before anything is enqueued what would fail every item. Raises BadInput."""
    from ppss_queue.command import check_syntax, parse_command

    _check_rules(spec)
    if spec.command is None or spec.function:
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
