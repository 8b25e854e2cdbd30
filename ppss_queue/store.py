"""Typed operations on runs, items and leases: each is one Lua script (two or more calls where it says so).

Methods of `Store` wait for their answer. The worker's hot operations are also there as `Calls`, which only
builds the call, so that many can be on their way at once, and as functions that read the replies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ppss_queue import scripts
from ppss_queue.connection import Argument, Connection, Reply
from ppss_queue.errors import BadInput, PpssError, ServiceFailed, UnknownRun
from ppss_queue.keys import SCHEMA_VERSION, Keys
from ppss_queue.model import RUN_VERSION, Halt, Item, Lease, Outcome, RunSpec, RunState, job_id, seq_of_job
from ppss_queue.scripts import Call

CHUNK = 1000
"""Items moved by one call of an operation on a whole run: some milliseconds of the server."""

CANCEL_CHUNK = 10
"""Single items cancelled by one call: each is searched for in the whole ready list, 15 ms at 300,000 items."""

FILLING_SECONDS = 300.0
"""A run whose enqueuer was silent this long is abandoned."""

WORKER_SILENCE_SECONDS = 60
"""A worker that was silent this long is forgotten by RQ's views."""

_WORD_JOINER = "\u2060"

# pickle of ("ppss_queue.broker.use_ppss_worker", None, (), {}): written for RQ's viewers, never read by us.
RQ_DATA = b"\x80\x02(U!ppss_queue.broker.use_ppss_workerN)}t."


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim."""

    leases: tuple[Lease, ...]
    visibility_seconds: Mapping[str, float]
    """Per run of the leases."""
    wake_seconds: float | None
    """When a lease expires or a retry comes due; None: nothing is scheduled."""
    open_runs: int
    """Runs that this worker may claim from and that have not ended."""
    suspended: bool
    newer_run: str | None
    """A run that was made by a newer PPSS."""


@dataclass(frozen=True, slots=True)
class Renewed:
    run: str
    state: str
    reason: str
    lost: tuple[str, ...]
    """Members that are no longer ours."""


@dataclass(frozen=True, slots=True)
class Counts:
    """A run as it is at one moment. The six states always sum up to `total`."""

    run: str
    name: str | None
    spec: RunSpec
    state: RunState
    reason: str
    total: int
    ready: int
    leased: int
    running: int
    expired: int
    """Leases past their deadline: their worker is gone, their items come back with the next claim."""
    delayed: int
    succeeded: int
    failed: int
    lost: int
    created: float
    ended: float | None
    """Seconds since the epoch, by the server's clock."""
    work_seconds: float
    rate_per_second: float
    workers: tuple[str, ...]

    @property
    def cancelled(self) -> int:
        """Cancelled here, or deleted from a dashboard."""
        return self.total - self.ready - self.leased - self.delayed - self.succeeded - self.failed

    @property
    def left(self) -> int:
        return self.ready + self.leased + self.delayed


def member(lease: Lease) -> str:
    """How a lease is named in Redis."""
    return f"{lease.job}:{lease.token}"


def shown(name: str) -> str:
    """An item's text for RQ's viewers: strict UTF-8, and no markup, since the dashboard prints it raw."""
    clean = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return clean.replace("<", "‹")


def encode_item(name: str, root: int = 0) -> bytes:
    """The form that add.lua takes. `name` holds no NUL."""
    exact = name.encode("utf-8", "surrogateescape")
    visible = shown(name).encode("utf-8")
    if visible == exact and not root and exact:
        return exact
    return b"\0%s\0%s\0%s" % (
        str(root).encode() if root else b"",
        visible,
        exact if visible != exact else b"",
    )


class Calls:
    """Builds the calls of one worker."""

    def __init__(self, keys: Keys, worker: str, nonce: str) -> None:
        self._keys = keys
        self._worker = worker
        self._nonce = nonce

    def claim(self, want: int, idle: int, *, has_command: bool = False, runs: Sequence[str] = ()) -> Call:
        """Up to `want` items, `idle` of which can start at once, of `runs` (none: of all open runs).

        `has_command`: the worker can run items of runs that have no command.
        """
        fixed = (SCHEMA_VERSION, RUN_VERSION, self._nonce, self._worker, want, idle, int(has_command))
        return Call(self._keys, "claim", (*fixed, *runs))

    def start(self, run: str, starts: Iterable[tuple[Lease, int]]) -> Call:
        """(lease, slot) of attempts that are about to begin."""
        flat: list[Argument] = [run, self._worker]
        for lease, slot in starts:
            flat += (member(lease), slot)
        return Call(self._keys, "start", tuple(flat))

    def ack(self, run: str, ended: Iterable[tuple[Lease, Outcome, bytes]]) -> Call:
        """(lease, outcome, kept output in RQ's form or nothing)."""
        flat: list[Argument] = [run, self._worker]
        for lease, outcome, kept in ended:
            flat += (member(lease), outcome.to_json(), f"{outcome.seconds:.6f}", kept)
        return Call(self._keys, "ack", tuple(flat))

    def fail(self, run: str, ended: Iterable[tuple[Lease, Outcome, float | None, bytes]]) -> Call:
        """(lease, outcome, seconds until the next attempt or None, output in RQ's form)."""
        flat: list[Argument] = [run, self._worker]
        for lease, outcome, delay, kept in ended:
            wait = "" if delay is None else f"{delay:.6f}"
            # RQ's dashboard shows failures, and offers to requeue them, only if they have a text.
            told = kept or kept_output(outcome.failure.encode("utf-8", "surrogateescape"))
            flat += (member(lease), outcome.to_json(), f"{outcome.seconds:.6f}", wait, told)
        return Call(self._keys, "fail", tuple(flat))

    def release(self, run: str, leases: Iterable[Lease]) -> Call:
        return Call(self._keys, "release", (run, self._worker, *map(member, leases)))

    def renew(self, run: str, members: Iterable[str]) -> Call:
        return Call(self._keys, "renew", (run, *members))

    def reserve(self, lease: Lease, names: Sequence[str]) -> Call:
        return Call(self._keys, "reserve", (lease.run, member(lease), *names))

    def heartbeat(self, facts: Mapping[str, Argument]) -> Call:
        flat = [part for pair in facts.items() for part in pair]
        return Call(self._keys, "heartbeat", (self._worker, WORKER_SILENCE_SECONDS, *flat))

    def retire(self, runs: Iterable[str]) -> Call:
        return Call(self._keys, "retire", (self._worker, *runs))


def read_claim(reply: Reply) -> Claimed:
    """Raises ServiceFailed for a reply that claim.lua can't have given."""
    parts = _list(reply)
    leases: list[Lease] = []
    visibility: dict[str, float] = {}
    for batch in parts[3:]:
        values = [text(value) for value in _list(batch)]
        run, token = values[0], values[1]
        visibility[run] = float(values[2])
        for at in range(3, len(values), 6):
            job, description, exact, root, attempts, failures = values[at : at + 6]
            item = Item(seq_of_job(job), exact or description, int(root or 0))
            leases.append(Lease(run, token, item, int(attempts or 0), int(failures or 0)))
    wake, open_runs = text(parts[0]), integer(parts[1])
    return Claimed(
        leases=tuple(leases),
        visibility_seconds=visibility,
        wake_seconds=float(wake) if wake else None,
        open_runs=max(open_runs, 0),
        suspended=open_runs < 0,
        newer_run=text(parts[2]) or None,
    )


def read_members(reply: Reply) -> tuple[str, ...]:
    return tuple(text(value) for value in _list(reply))


def read_renewed(run: str, reply: Reply) -> Renewed:
    values = read_members(reply)
    return Renewed(run, values[0], values[1], values[2:])


class Store:
    """Runs and items of one Redis, over one connection, used by one thread at a time."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self.connection = connection
        self.keys = keys

    def _call(self, name: str, *arguments: Argument) -> Reply:
        return scripts.run(self.connection, Call(self.keys, name, arguments))

    # Making runs

    def create(self, run: str, spec: RunSpec) -> bool:
        """Makes a run that is filling. False: the id is taken, try another.

        Raises BadInput if `spec.name` belongs to a run that has not ended.
        """
        halt = spec.halt
        rule = f"{'now' if halt.now else 'soon'}:{halt.count}:{halt.percent:g}" if halt else ""
        reply = text(
            self._call(
                "create", run, SCHEMA_VERSION, RUN_VERSION, spec.to_json(), spec.name or "", spec.priority,
                spec.visibility_seconds, spec.max_lost, spec.retry.retries, rule, spec.keep_seconds, FILLING_SECONDS,
                int(spec.command is None),
            )
        )  # fmt: skip
        if reply.startswith("named "):
            raise BadInput(
                f"The name '{spec.name}' belongs to run {reply[6:]}, which has not ended. Choose another."
            )
        return reply == "created"

    def add(self, run: str, items: Sequence[bytes]) -> int:
        """Adds encoded items; returns the items in the run."""
        return self.read_added(run, self._call("add", run, RQ_DATA, FILLING_SECONDS, *items))

    def add_call(self, run: str, items: Sequence[bytes]) -> Call:
        return Call(self.keys, "add", (run, RQ_DATA, FILLING_SECONDS, *items))

    @staticmethod
    def read_added(run: str, reply: Reply) -> int:
        """Raises UnknownRun, or BadInput if the run was cancelled meanwhile."""
        if isinstance(reply, int):
            return reply
        raise _refused(run, text(reply), "nothing can be added")

    def open(self, run: str) -> RunState:
        """Ends the filling of a run. Raises UnknownRun."""
        return RunState(_known(run, text(self._call("open", run))))

    def purge(self, run: str) -> None:
        """Forgets an ended or abandoned run, in chunks. Raises UnknownRun, or BadInput if it is alive."""
        while (reply := self._call("purge", run, CHUNK)) != 0:
            if not isinstance(reply, int):
                state = _known(run, text(reply))
                raise BadInput(f"Run {run} is {state}, not ended. Cancel it first: ppss cancel {run}")

    # Changing runs

    def pause(self, run: str) -> RunState:
        """Returns the state before. Raises UnknownRun."""
        return RunState(_known(run, text(self._call("pause", run))))

    def resume(self, run: str) -> RunState:
        """Returns the state before. Raises UnknownRun."""
        return RunState(_known(run, text(self._call("resume", run))))

    def cancel(self, run: str) -> None:
        """Raises UnknownRun, or BadInput if the run is done."""
        while (reply := self._call("cancel", run, CHUNK)) != 0:
            if not isinstance(reply, int):
                raise _refused(run, text(reply), "there is nothing to cancel")

    def cancel_items(self, run: str, seqs: Sequence[int]) -> int:
        """Returns how many were cancelled: those that ended stay as they are. Raises UnknownRun."""
        count = 0
        for first in range(0, len(seqs), CANCEL_CHUNK):
            chunk = seqs[first : first + CANCEL_CHUNK]
            reply = self._call("cancel_items", run, *(job_id(run, seq) for seq in chunk))
            if not isinstance(reply, int):
                raise _refused(run, text(reply), "nothing can be cancelled")
            count += reply
        return count

    def retry(self, run: str, seqs: Sequence[int] | None = None) -> int:
        """Failed items back to ready; `seqs` None: all. Returns how many. Raises UnknownRun, BadInput."""
        jobs = () if seqs is None else tuple(job_id(run, seq) for seq in seqs)
        if seqs is not None and not jobs:
            return 0
        total, cutoff = 0, ""
        while True:
            reply = self._call("retry", run, CHUNK, cutoff, *jobs)
            if not isinstance(reply, list):
                raise _refused(run, text(reply), "nothing can be retried")
            moved, cutoff = integer(reply[0]), text(reply[1])
            total += moved
            if jobs or not moved:
                return total

    def tidy(self) -> None:
        """Notices what others did to the runs, and purges what is due."""
        for run in read_members(self._call("tidy")):
            while isinstance(reply := self._call("purge", run, CHUNK), int) and reply:
                pass

    # Looking

    def runs(self) -> list[str]:
        """Oldest first."""
        return list(read_members(self.connection.execute("ZRANGE", self.keys.runs, 0, -1)))

    def resolve(self, name: str) -> str:
        """The id of a run given by id, --name or `last`. Raises UnknownRun."""
        if name == "last":
            latest = read_members(self.connection.execute("ZREVRANGE", self.keys.runs, 0, 0))
            if latest:
                return latest[0]
            raise UnknownRun("There is no run yet. Make one: ppss run DIR -c COMMAND")
        known, named = self.connection.execute_many(
            [("ZSCORE", self.keys.runs, name), ("HGET", self.keys.names, name)]
        )
        if isinstance(known, PpssError):
            raise known
        if known is not None:
            return name
        if isinstance(named, bytes):
            return text(named)
        raise UnknownRun(f"There is no run '{name}'. See which there are: ppss status")

    def spec(self, run: str) -> RunSpec:
        """Raises UnknownRun."""
        reply = self.connection.execute("HGET", self.keys.run(run), "spec")
        if reply is None:
            raise UnknownRun(f"There is no run '{run}'. See which there are: ppss status")
        return RunSpec.from_json(text(reply))

    def counts(self, runs: Sequence[str]) -> Iterator[Counts]:
        """One look at each run, all in one round trip; runs that are gone are left out."""
        for run, reply in zip(
            runs,
            scripts.run_many(self.connection, [Call(self.keys, "counts", (run,)) for run in runs]),
            strict=True,
        ):
            if isinstance(reply, list):
                yield read_counts(run, reply)


def read_counts(run: str, reply: list[Reply]) -> Counts:
    """The answer of counts.lua."""
    pairs = [text(value) for value in _list(reply[0])]
    fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
    ready, leased, delayed, succeeded, failed, running, expired, recent = (
        integer(value) for value in reply[1:9]
    )
    stretch = float(text(reply[9]))
    alive = RunState(fields["state"]) in (RunState.OPEN, RunState.PAUSED)
    return Counts(
        run=run,
        name=fields["name"] or None,
        spec=RunSpec.from_json(fields["spec"]),
        state=RunState(fields["state"]),
        reason=fields.get("reason", ""),
        total=int(fields["total"]),
        ready=ready,
        leased=leased,
        running=running,
        expired=expired,
        delayed=delayed,
        succeeded=succeeded,
        failed=failed,
        lost=int(fields.get("lost", 0)),
        created=float(fields["created"]),
        ended=float(fields["ended"]) if "ended" in fields else None,
        work_seconds=float(fields.get("work_seconds", 0)),
        rate_per_second=recent / stretch if alive and stretch > 0 else 0.0,
        workers=read_members(reply[10]),
    )


def _known(run: str, reply: str) -> str:
    if reply == "unknown":
        raise UnknownRun(f"There is no run '{run}'. See which there are: ppss status")
    return reply


def _refused(run: str, reply: str, consequence: str) -> BadInput:
    if reply == "unknown":
        return UnknownRun(f"There is no run '{run}'. See which there are: ppss status")
    return BadInput(f"Run {run} is {reply}: {consequence}.")


def text(reply: Reply) -> str:
    """A bulk reply as text, byte for byte (surrogateescape)."""
    if isinstance(reply, bytes):
        return reply.decode("utf-8", "surrogateescape")
    return "" if reply is None else str(reply)


def integer(reply: Reply) -> int:
    return int(reply) if isinstance(reply, (int, bytes, str)) else 0


def _list(reply: Reply) -> list[Reply]:
    if not isinstance(reply, list):
        raise ServiceFailed(f"Redis gave an answer that PPSS does not know: {reply!r}")
    return reply


def kept_output(output: bytes) -> bytes:
    """Output in the form in which RQ's viewers read it: zlib, then base64.

    The dashboard prints it raw: a word joiner, which no eye sees, behind each `<` keeps it from opening a tag.
    """
    import base64
    import zlib

    shown = output.decode("utf-8", "backslashreplace").replace("<", "<" + _WORD_JOINER)
    return base64.b64encode(zlib.compress(shown.encode("utf-8"), 6))


def read_kept_output(kept: bytes) -> str:
    """The other way round."""
    import base64
    import zlib

    return zlib.decompress(base64.b64decode(kept)).decode("utf-8").replace("<" + _WORD_JOINER, "<")


def outcome_of(reply: Reply) -> Outcome:
    """The `outcome` field of a job hash; anything else there counts as none."""
    try:
        return Outcome.from_json(reply if isinstance(reply, bytes) else None)
    except (json.JSONDecodeError, TypeError):
        return Outcome()


__all__ = [
    "CHUNK",
    "Calls",
    "Claimed",
    "Counts",
    "Halt",
    "Renewed",
    "Store",
    "encode_item",
    "kept_output",
    "member",
    "outcome_of",
    "read_claim",
    "read_counts",
    "read_kept_output",
    "read_members",
    "read_renewed",
    "shown",
]
