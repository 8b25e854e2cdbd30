"""Typed operations on runs, items and leases: each is one Lua script (two or more calls where it says so).

Methods of `Store` wait for their answer; what a worker does all the time is in calls.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ppss_queue import scripts
from ppss_queue.connection import Connection, Reply
from ppss_queue.errors import BadInput, ForeignData, NewerVersion, PpssError, UnknownRun
from ppss_queue.keys import SCHEMA_VERSION, Keys
from ppss_queue.model import RunSpec, RunState, job_id
from ppss_queue.replies import as_list, integer, read_members, text
from ppss_queue.resp import Argument
from ppss_queue.rq_form import RQ_DATA
from ppss_queue.scripts import Call

CHUNK = 1000
"""Items moved by one call of an operation on a whole run: some milliseconds of the server."""

CANCEL_CHUNK = 10
"""Single items cancelled by one call: each is searched for in the whole ready list, 15 ms at 300,000 items."""

FILLING_SECONDS = 300.0
"""A run whose enqueuer was silent this long is abandoned."""


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


class Store:
    """Runs and items of one Redis, over one connection, used by one thread at a time."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self.connection = connection
        self.keys = keys

    def _call(self, name: str, *arguments: Argument) -> Reply:
        return scripts.run(self.connection, Call(self.keys, name, arguments))

    def check_layout(self) -> None:
        """Raises NewerVersion, ForeignData, or BadInput if the runs there were made with another RQ_KEY_PREFIX."""
        types = self.keys.types
        asked = [("TYPE", key) for key in types] + [("GET", self.keys.schema), ("GET", self.keys.rq_prefix)]
        *found, schema, prefix = self.connection.execute_many(asked)
        for (key, expected), reply in zip(types.items(), found, strict=True):
            if text(_raised(reply)) not in (expected, "none"):
                raise ForeignData(
                    f"the key {key} holds data of another program. Remove it, or use another database."
                )
        schema, prefix = _raised(schema), _raised(prefix)
        if schema is not None and not text(schema).isdecimal():
            raise ForeignData(f"the key {self.keys.schema} holds data of another program. Remove it.")
        if integer(schema) > SCHEMA_VERSION:
            raise NewerVersion(
                f"this Redis is used by a newer PPSS (schema {text(schema)}). Upgrade this one."
            )
        if prefix is not None and text(prefix) != self.keys.rq:
            raise BadInput(
                f"the runs in this Redis were made with RQ_KEY_PREFIX={text(prefix)[:-1]}: set it to that here too."
            )

    # Making runs

    def create(self, run: str, spec: RunSpec) -> bool:
        """Makes a run that is filling. False: the id is taken, try another.

        Raises BadInput if `spec.name` belongs to a run that has not ended.
        """
        halt = spec.halt
        rule = f"{'now' if halt.now else 'soon'}:{halt.count}:{halt.percent:f}" if halt else ""
        reply = text(
            self._call(
                "create", run, SCHEMA_VERSION, spec.version, spec.to_json(), spec.name or "", spec.priority,
                spec.visibility_seconds, spec.max_lost, spec.retry.retries, rule, spec.keep_seconds, FILLING_SECONDS,
                int(spec.command is None), spec.needs.encode(),
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

    def purge_abandoned(self) -> None:
        """Forgets runs whose enqueuer died while it filled them. Raises nothing but what a connection raises."""
        asked = [("TIME",), ("ZRANGE", self.keys.filling, 0, -1, "WITHSCORES")]
        now, filling = (_raised(reply) for reply in self.connection.execute_many(asked))
        deadlines = read_members(filling)
        for run, deadline in zip(deadlines[::2], deadlines[1::2], strict=True):
            if float(deadline) <= integer(as_list(now)[0]):
                with suppress(BadInput):  # it was opened, or its enqueuer is back
                    self.purge(run)

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
        if seqs is not None:
            chunks = (seqs[first : first + CHUNK] for first in range(0, len(seqs), CHUNK))
            return sum(self._retry(run, "", [job_id(run, seq) for seq in chunk])[0] for chunk in chunks)
        total, cutoff, found = 0, "", 1
        while found:
            moved, cutoff, found = self._retry(run, cutoff, ())
            total += moved
        return total

    def _retry(self, run: str, cutoff: str, jobs: Sequence[str]) -> tuple[int, str, int]:
        reply = self._call("retry", run, CHUNK, cutoff, *jobs)
        if not isinstance(reply, list):
            raise _refused(run, text(reply), "nothing can be retried")
        return integer(reply[0]), text(reply[1]), integer(reply[2])

    def tidy(self) -> None:
        """Notices what others did to the runs, purges what is due, ends cancels that were broken off."""
        for verb, runs in zip(("purge", "cancel"), as_list(self._call("tidy")), strict=True):
            for run in read_members(runs):
                while isinstance(reply := self._call(verb, run, CHUNK), int) and reply:
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
        return _spec(run, text(reply))

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
    """The answer of counts.lua. Raises ForeignData, NewerVersion."""
    try:
        return _read_counts(run, reply)
    except (KeyError, ValueError):
        raise _foreign(run) from None


def _read_counts(run: str, reply: list[Reply]) -> Counts:
    pairs = [text(value) for value in as_list(reply[0])]
    fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
    ready, leased, delayed, succeeded, failed, running, expired, recent = (
        integer(value) for value in reply[1:9]
    )
    stretch = float(text(reply[9]))
    return Counts(
        run=run,
        name=fields["name"] or None,
        spec=_spec(run, fields["spec"]),
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
        rate_per_second=recent / stretch if fields["state"] == RunState.OPEN and stretch > 0 else 0.0,
        workers=read_members(reply[10]),
    )


def _spec(run: str, written: str) -> RunSpec:
    try:
        return RunSpec.from_json(written)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise _foreign(run) from None


def _foreign(run: str) -> ForeignData:
    return ForeignData(
        f"the key ppss:run:{run} holds data that PPSS did not write. Remove it, or use another database."
    )


def _raised(reply: Reply | PpssError) -> Reply:
    if isinstance(reply, PpssError):
        raise reply
    return reply


def _known(run: str, reply: str) -> str:
    if reply == "unknown":
        raise UnknownRun(f"There is no run '{run}'. See which there are: ppss status")
    return reply


def _refused(run: str, reply: str, consequence: str) -> BadInput:
    if reply == "unknown":
        return UnknownRun(f"There is no run '{run}'. See which there are: ppss status")
    return BadInput(f"Run {run} is {reply}: {consequence}.")
