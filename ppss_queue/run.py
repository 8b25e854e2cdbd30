"""One run, as Python users and the command line see it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from ppss_queue import status
from ppss_queue.connection import Connection
from ppss_queue.durability import Durable, nothing_durable
from ppss_queue.errors import BadInput, Unavailable, UnknownRun
from ppss_queue.model import ENDED, STATES, ItemView, RunState, State
from ppss_queue.replies import read_members, text
from ppss_queue.store import Counts, Store

if TYPE_CHECKING:
    from ppss_queue.sources import SourceItem, Sources

_AWAY_SECONDS = 30.0
"""How long who waits for a run waits for a Redis that is away."""
_BLOCK_SECONDS = 1.0
"""A waiting reader looks again this often: a halted run's last lease handed back, or a purge, is no event."""


class Run:
    """One run. Its counts and items are read from Redis each time."""

    def __init__(self, store: Store, run: str, durable: Durable = nothing_durable) -> None:
        self.id = run
        self._store = store
        self._durable = durable

    def add(self, items: Iterable[str | bytes | os.PathLike[str]]) -> int:
        """Adds items, claimable at once; a run that was done is open again. Returns how many.

        `Path`s can be added to a run of files in one directory tree only if they are below its root; give
        strings otherwise. Raises BadInput if the run was cancelled.
        """
        from ppss_queue.filling import rebased
        from ppss_queue.sources import texts

        return self._add(rebased(texts(items), self._store.spec(self.id)))

    def add_sources(self, sources: Sources, on_added: Callable[[int], None] = lambda total: None) -> int:
        """The same for sources, which are read to their end before the first is added, and may so be refused.

        `on_added` hears how many have been sent: they are in the run if something goes wrong after that.
        """
        from ppss_queue.filling import rebased
        from ppss_queue.sources import whole

        return self._add(whole(rebased(sources, self._store.spec(self.id))), on_added)

    def _add(self, items: Iterable[SourceItem], on_added: Callable[[int], None] = lambda total: None) -> int:
        if (
            self.status().state is RunState.FILLING
        ):  # opened here, it would be half of what its enqueuer wants
            raise BadInput(f"run {self.id} is still being filled. Add to it when it is open.")
        from ppss_queue.filling import fill

        return fill(self._store, self.id, items, self._durable, on_added)

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
        with self._store.connection.clone() as connection:
            store = Store(connection, self._store.keys)
            for seqs in self._ends(store, "0"):
                # One that was retried meanwhile has not ended: it comes with its next end.
                yield from (view for view in status.view(store, self.id, seqs) if view.state in ENDED)

    def wait(self, timeout_seconds: float | None = None) -> Counts:
        """Blocks until the run ends (done, cancelled, or halted); no polling. Raises TimeoutError, UnknownRun."""
        with self._store.connection.clone() as connection:
            self._wait(connection, timeout_seconds)
        self._store.connection.revive()
        return self.status()

    def reconnect(self) -> None:
        """After Redis was lost: waits up to 30 s until it is back. Raises ConnectFailed."""
        self._store.connection.revive(_AWAY_SECONDS)

    def is_over(self) -> bool:
        """Whether it is done, cancelled, halted or gone."""
        return _is_over(next(self._store.counts([self.id]), None))

    async def wait_async(self) -> Counts:
        """`wait` for asyncio: in a thread, which ends when this is cancelled."""
        import asyncio

        given_up = threading.Event()
        with self._store.connection.clone() as connection:  # its end is what ends the thread
            try:
                await asyncio.to_thread(self._wait, connection, None, given_up)
            finally:
                given_up.set()
        self._store.connection.revive()
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

    def _wait(
        self,
        connection: Connection,
        timeout_seconds: float | None = None,
        given_up: threading.Event | None = None,
    ) -> None:
        for _ in self._ends(Store(connection, self._store.keys), "$", timeout_seconds, given_up):
            pass

    def _ends(
        self,
        store: Store,
        cursor: str,
        timeout_seconds: float | None = None,
        given_up: threading.Event | None = None,
    ) -> Iterator[list[int]]:
        """Numbers of items as they end, in batches, until the run has ended; outlives a restart of Redis."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        over = None
        while True:
            try:
                if cursor == "$":
                    cursor = self._newest(store)
                if over is None:
                    over = _is_over(next(store.counts([self.id]), None))
                wait = 0.0 if over else _BLOCK_SECONDS
                if deadline is not None:
                    wait = min(wait, max(0.0, deadline - time.monotonic()))
                entries = self._read_events(store, cursor, wait)
            except Unavailable:
                if given_up is not None and given_up.is_set():
                    raise
                store.connection.revive(_AWAY_SECONDS)
                over = None
                continue
            seqs = list(_seqs(entries))
            if seqs:
                cursor = _ids(entries)[-1]
                yield [seq for seq in seqs if seq]
            elif over:
                return
            if not over and deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"run {self.id} has not ended within {timeout_seconds:g} s")
            if 0 in seqs or not seqs:  # the run itself changed, or nothing did for a while
                over = None

    def _newest(self, store: Store) -> str:
        newest = store.connection.execute("XREVRANGE", store.keys.events(self.id), "+", "-", "COUNT", 1)
        return _ids(newest)[-1] if newest else "0"

    def _read_events(self, store: Store, cursor: str, wait_seconds: float) -> object:
        block = ("BLOCK", max(1, int(wait_seconds * 1000)))
        key = store.keys.events(self.id)
        reply = store.connection.execute("XREAD", "COUNT", 1000, *block, "STREAMS", key, cursor)
        return reply[0][1] if isinstance(reply, list) and reply and isinstance(reply[0], list) else []


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
