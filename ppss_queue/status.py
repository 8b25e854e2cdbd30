"""Looking at the items of a run. Nothing here changes anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ppss_queue.connection import Reply
from ppss_queue.errors import PpssError, UnknownItem, UnknownRun
from ppss_queue.model import Item, ItemView, Outcome, State, job_id, seq_of_job
from ppss_queue.replies import integer, read_members, text
from ppss_queue.rq_form import outcome_of, read_kept_output
from ppss_queue.store import CHUNK, Store

_FIELDS = ("status", "description", "item", "root", "attempts", "lost", "outcome", "worker_name", "token")
_NUMBER = re.compile("#([0-9]{1,15})")
_STATES = {
    "queued": State.READY,
    "started": State.LEASED,
    "scheduled": State.DELAYED,
    "finished": State.SUCCEEDED,
    "failed": State.FAILED,
    "canceled": State.CANCELLED,
}
_REGISTRIES = {
    State.LEASED: "wip",
    State.DELAYED: "scheduled",
    State.SUCCEEDED: "finished",
    State.FAILED: "failed",
    State.CANCELLED: "canceled",
}


def items(store: Store, run: str, state: State | None = None) -> Iterator[ItemView]:
    """The items of a run in input order, of one state or all, in chunks: not one moment's picture.

    Items deleted from a dashboard are left out. Raises UnknownRun.
    """
    counts = next(store.counts([run]), None)
    if counts is None:
        raise UnknownRun(f"There is no run '{run}'. See which there are: ppss status")
    leased = _leased(store, run)
    if state is None:
        seqs: Iterable[int] = range(1, counts.total + 1)
    elif state is State.LEASED:
        seqs = sorted(leased)
    elif state is State.READY:
        seqs = sorted(
            seq_of_job(job)
            for job in read_members(store.connection.execute("LRANGE", store.keys.queue(run), 0, -1))
        )
    else:
        key = store.keys.registry(_REGISTRIES[state], run)
        seqs = sorted(seq_of_job(job) for job in read_members(store.connection.execute("ZRANGE", key, 0, -1)))
    for view in _views(store, run, seqs, leased):
        if state is None or view.state is state:
            yield view


def view(store: Store, run: str, seqs: Sequence[int]) -> list[ItemView]:
    """These items, those that are gone left out."""
    return list(_views(store, run, seqs, _leased(store, run)))


def find(store: Store, run: str, names: Sequence[str]) -> list[int]:
    """Numbers of the items given by name or as `#17`; a name that several items have means all of them.

    Raises UnknownItem, UnknownRun.
    """
    numbers = [int(number[1]) for number in map(_NUMBER.fullmatch, names) if number]
    texts = {name for name in names if not _NUMBER.fullmatch(name)}
    there = {found.seq for found in view(store, run, numbers)}
    named = [(found.seq, found.name) for found in items(store, run) if found.name in texts] if texts else []
    missing = [f"#{number}" for number in numbers if number not in there]
    missing += [f"'{name}'" for name in sorted(texts.difference(found for _, found in named))]
    if missing:
        store.spec(run)  # UnknownRun, if that is why
        raise UnknownItem(f"Run {run} has no item {missing[0]}. See which there are: ppss items {run}")
    return numbers + [seq for seq, _ in named]


def output(store: Store, run: str, seq: int) -> str:
    """What Redis kept of the item's last output; empty if nothing."""
    job = job_id(run, seq)
    stream, kept, outcome = _both(
        store,
        ("XREVRANGE", store.keys.results(job), "+", "-", "COUNT", 1),
        ("HGET", store.keys.job(job), "output"),
        ("HGET", store.keys.job(job), "outcome"),
    )
    if isinstance(stream, list) and stream:
        entry = stream[0]
        fields = read_members(entry[1]) if isinstance(entry, list) else ()
        printed = read_kept_output(dict(zip(fields[::2], fields[1::2], strict=True))["exc_string"].encode())
        silent = printed == outcome_of(outcome).failure  # which stands in for silence: Calls.fail
        return "" if silent else printed
    return read_kept_output(kept) if isinstance(kept, bytes) else ""


def _both(store: Store, *commands: tuple[str | int, ...]) -> list[Reply]:
    replies: list[Reply] = []
    for reply in store.connection.execute_many(commands):
        if isinstance(reply, PpssError):
            raise reply
        replies.append(reply)
    return replies


def _leased(store: Store, run: str) -> frozenset[int]:
    members = read_members(store.connection.execute("ZRANGE", store.keys.registry("wip", run), 0, -1))
    return frozenset(seq_of_job(member.partition(":")[0]) for member in members)


def _views(store: Store, run: str, seqs: Iterable[int], leased: frozenset[int]) -> Iterator[ItemView]:
    chunk: list[int] = []
    for seq in seqs:
        chunk.append(seq)
        if len(chunk) == CHUNK:
            yield from _chunk(store, run, chunk, leased)
            chunk = []
    if chunk:
        yield from _chunk(store, run, chunk, leased)


def _chunk(store: Store, run: str, seqs: list[int], leased: frozenset[int]) -> Iterator[ItemView]:
    replies = _both(store, *(("HMGET", store.keys.job(job_id(run, seq)), *_FIELDS) for seq in seqs))
    started = {
        seq: (text(reply[7]), text(reply[8]))
        for seq, reply in zip(seqs, replies, strict=True)
        if seq in leased and isinstance(reply, list) and reply[0] == b"started"
    }
    places = _places(store, run, started)
    for seq, reply in zip(seqs, replies, strict=True):
        if not isinstance(reply, list) or reply[1] is None:
            continue
        status, description, exact, root, attempts, lost, outcome = reply[:7]
        item = Item(seq, text(exact) or text(description), integer(root))
        state = State.LEASED if seq in leased else _STATES.get(text(status), State.READY)
        last: Outcome = places[seq] if seq in places else outcome_of(outcome)
        yield ItemView(item, state, integer(attempts), integer(lost), last)


def _places(store: Store, run: str, started: Mapping[int, tuple[str, str]]) -> dict[int, Outcome]:
    """Node and slot of what runs now, from (worker, token) by item number."""
    if not started:
        return {}
    workers = sorted({worker for worker, _ in started.values()})
    nodes = _both(store, *(("HGET", store.keys.worker(worker), "node") for worker in workers))
    node_of = {worker: text(node) for worker, node in zip(workers, nodes, strict=True)}
    slots = _both(
        store,
        *(
            ("HGET", store.keys.execution(job_id(run, seq), token), "slot")
            for seq, (_, token) in started.items()
        ),
    )
    return {
        seq: Outcome(node=node_of[worker], slot=integer(slot))
        for (seq, (worker, _)), slot in zip(started.items(), slots, strict=True)
    }
