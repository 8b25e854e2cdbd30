"""Filling a run with items: many calls on their way at once, and the run opened at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ppss_queue.connection import Connection
from ppss_queue.durability import Durable
from ppss_queue.errors import BadInput, OutOfMemory, PpssError
from ppss_queue.keys import Keys
from ppss_queue.model import RunSpec
from ppss_queue.rq_form import encode_item
from ppss_queue.sources import SourceItem, Sources, local_path
from ppss_queue.store import FILLING_SECONDS, Store
from ppss_queue.units import format_count

BATCH_ITEMS = 500
"""Items in one call of add.lua: blocks the server for 2 to 5 ms."""
CALLS_IN_FLIGHT = 8
"""On a near server more would only make other clients wait longer between them."""
FAR_SECONDS = 0.01
"""A round trip from which on a server is far."""
FAR_CALLS_IN_FLIGHT = 32
"""Keeps a server busy that is 200 ms away."""


def fill(
    store: Store,
    run: str,
    sources: Iterable[SourceItem],
    durable: Durable,
    on_added: Callable[[int], None] = lambda total: None,
) -> int:
    """Adds items to a run and opens it; returns how many. `on_added` hears the items so far.

    Raises UnknownRun, BadInput, ServiceFailed.
    """
    total, connection = 0, store.connection
    connection.receive(connection.pending)  # answers to a filling that was broken off
    asked = time.monotonic()
    store.add(run, ())  # Redis knows the script from now on
    far = time.monotonic() - asked > FAR_SECONDS
    in_flight = FAR_CALLS_IN_FLIGHT if far else CALLS_IN_FLIGHT
    alive = _StillFilling(connection, store.keys, run)
    encoded = (encode_item(name, root) for name, root in sources)
    try:
        while batch := list(islice(encoded, BATCH_ITEMS)):
            total += len(batch)
            on_added(total)
            connection.send([store.add_call(run, batch).command])
            if connection.pending >= in_flight:
                _check_added(store, run, total)
        while connection.pending:
            _check_added(store, run, total)
    finally:
        alive.stop()
    with durable(connection):
        store.open(run)
    return total


def rebased(sources: Sources, spec: RunSpec) -> Iterator[SourceItem]:
    """Items of new sources in terms of a run's roots. Raises BadInput for files outside of them."""
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


def _check_added(store: Store, run: str, total: int) -> None:
    """Takes the next answer in."""
    (reply,) = store.connection.receive(1)
    if isinstance(reply, OutOfMemory):
        raise OutOfMemory(f"{reply} It was full after about {format_count(total)} items.")
    if isinstance(reply, PpssError):
        raise reply
    store.read_added(run, reply)


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
