"""The calls of a worker: only built here, so that many can be on their way at once; and what they are answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ppss_queue.connection import Reply
from ppss_queue.keys import HUNDRED_YEARS_SECONDS, SCHEMA_VERSION, Keys
from ppss_queue.model import RUN_VERSION, Item, Lease, Outcome, seq_of_job
from ppss_queue.replies import as_bytes, as_list, integer, read_members, text
from ppss_queue.resources import Resources
from ppss_queue.resp import Argument
from ppss_queue.rq_form import kept_output
from ppss_queue.scripts import Call

WORKER_SILENCE_SECONDS = 30
"""A worker that was silent this long is forgotten by RQ's views."""

QUARANTINED = "quarantined: "
"""What the reason begins with of a pause that nobody wished."""


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
    waiting: Mapping[str, Resources]
    """Runs that have items for which there is not room enough, with what an item needs."""
    others: bool
    """Whether there are other nodes than this one."""


@dataclass(frozen=True, slots=True)
class Renewed:
    run: str
    state: str
    reason: str
    lost: tuple[str, ...]
    """Members that are no longer ours."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a worker is to do since somebody wishes so of its node."""

    at: float = 0.0
    """When Redis told it, by its clock."""
    paused: str = ""
    """Why nothing is handed out to it; empty: it is not paused."""
    slots: int | None = None
    """How many it is to have; None: as many as it was started with."""
    stop_at: float = 0.0
    """Workers that were there at this time are to stop; 0: none is."""
    stop_now: bool = False
    """Without finishing what runs."""
    doubt: str = ""
    """Why the node would be quarantined if it were not the last; empty: it would not be."""


class Calls:
    """Builds the calls of one worker."""

    def __init__(self, keys: Keys, worker: str, nonce: str) -> None:
        self._keys = keys
        self.worker = worker
        self._nonce = nonce

    def elsewhere(self, worker: str) -> Calls:
        """The same in the name of another worker: of items that this one runs on another node."""
        return Calls(self._keys, worker, self._nonce)

    def claim(
        self,
        want: int,
        idle: int,
        *,
        has_command: bool = False,
        runs: Sequence[str] = (),
        without: Iterable[str] = (),
        free: Iterable[Resources] = (),
        kept_for: str = "",
        only_on: str | None = None,
    ) -> Call:
        """Up to `want` items, `idle` of which can start at once, of `runs` (none: of all open runs) but `without`.

        `has_command`: the worker can run items of runs that have no command. `free`: what there is on each of its hosts
        for items that say what they need; `kept_for`: of the first, what an item of that run needs is for that run
        alone. `only_on`: the node on which they will run, so that others get what failed there, or "" if there are
        several; None: the worker's.
        """
        if only_on is None:
            only_on = self.worker.rpartition(".")[0] or self.worker
        fixed = (SCHEMA_VERSION, RUN_VERSION, self._nonce, self.worker, want, idle, int(has_command))
        rooms = " ".join(room.encode() or "0 0 0" for room in free)
        return Call(
            self._keys, "claim", (*fixed, rooms, kept_for, only_on, *runs, *(f"-{run}" for run in without))
        )

    def begin(self, lease: Lease) -> Sequence[Argument]:
        """To be sent just before an item begins to run: from here its attempt counts, should the worker die.

        A plain command, since each item has one. To be sent once: the deadline of the lease stays what it is, as
        renewals may have moved it since the claim. It changes nothing if the lease is lost; where it gets lost
        itself, or is refused since Redis is full, `start` makes up for it: so nobody need read its answer.
        """
        wip = self._keys.registry("wip", lease.run)
        return ("ZADD", wip, "XX", "INCR", HUNDRED_YEARS_SECONDS, lease.member)

    def start(self, run: str, starts: Iterable[tuple[Lease, int]]) -> Call:
        """(lease, slot) of attempts that have begun, to be shown as running."""
        flat: list[Argument] = [run, self.worker]
        for lease, slot in starts:
            flat += (lease.member, slot)
        return Call(self._keys, "start", tuple(flat))

    def ack(self, run: str, ended: Iterable[tuple[Lease, Outcome, bytes]]) -> Call:
        """(lease, outcome, kept output in RQ's form or nothing)."""
        flat: list[Argument] = [run, self.worker]
        for lease, outcome, kept in ended:
            flat += (lease.member, outcome.to_json(), f"{outcome.seconds:.6f}", kept)
        return Call(self._keys, "ack", tuple(flat))

    def fail(self, run: str, ended: Iterable[tuple[Lease, Outcome, float | None, bytes]]) -> Call:
        """(lease, outcome, seconds until the next attempt or None, output in RQ's form)."""
        flat: list[Argument] = [run, self.worker]
        for lease, outcome, delay, kept in ended:
            wait = "" if delay is None else f"{delay:.6f}"
            # RQ's dashboard shows failures, and offers to requeue them, only if they have a text.
            told = kept or kept_output(outcome.failure.encode("utf-8", "surrogateescape"))
            flat += (lease.member, outcome.to_json(), f"{outcome.seconds:.6f}", wait, told)
        return Call(self._keys, "fail", tuple(flat))

    def doubt(
        self, lease: Lease, outcome: Outcome, delay: float | None, *, in_a_row: int, proven: bool
    ) -> Call:
        """Asks for a second opinion on a failure: answered with 1 if the item went back to be tried elsewhere.

        `delay`: seconds until the next attempt should nobody try it, or None.
        `in_a_row`: failures on this worker, this one included; `proven`: whether an item succeeded here before.
        """
        code = "" if outcome.exit_code is None else outcome.exit_code
        wait = "" if delay is None else f"{delay:.6f}"
        told = (outcome.to_json(), f"{outcome.seconds:.6f}", wait, code, in_a_row, int(proven))
        return Call(self._keys, "doubt", (lease.run, self.worker, lease.member, *told))

    def release(self, run: str, leases: Iterable[Lease]) -> Call:
        return Call(self._keys, "release", (run, self.worker, *(lease.member for lease in leases)))

    def forfeit(self, run: str, leases: Iterable[Lease]) -> Call:
        """Hands back leases that are lost with their hosts, which counts as for a worker that died."""
        return Call(self._keys, "forfeit", (run, self.worker, *(lease.member for lease in leases)))

    def renew(self, run: str, members: Iterable[str]) -> Call:
        return Call(self._keys, "renew", (run, *members))

    def held(self, run: str) -> Call:
        """What Redis takes for leased to this worker: `read_held`."""
        return Call(self._keys, "held", (run, self._nonce))

    def reserve(self, lease: Lease, names: Sequence[str]) -> Call:
        return Call(self._keys, "reserve", (lease.run, lease.member, *names))

    def tell(self, lease: Lease, stdout: bytes, stderr: bytes) -> Call:
        """What an item printed; to be sent before its outcome."""
        return Call(self._keys, "tell", (lease.run, lease.member, lease.item.name, stdout, stderr))

    def heartbeat(
        self, worker: Mapping[str, Argument], machine: Mapping[str, Argument] | None = None
    ) -> Call:
        """Facts about the worker, and about the machine that it is on."""
        own, common = (
            [part for pair in (facts or {}).items() for part in pair] for facts in (worker, machine)
        )
        return Call(self._keys, "heartbeat", (self.worker, WORKER_SILENCE_SECONDS, len(own), *own, *common))

    def retire(self, runs: Iterable[str]) -> Call:
        return Call(self._keys, "retire", (self.worker, *runs))


def read_claim(reply: Reply) -> Claimed:
    """Raises ServiceFailed for a reply that claim.lua can't have given."""
    parts = as_list(reply)
    leases: list[Lease] = []
    visibility: dict[str, float] = {}
    for batch in parts[5:]:
        values = [text(value) for value in as_list(batch)]
        run, token = values[0], values[1]
        visibility[run] = float(values[2])
        for at in range(3, len(values), 7):
            job, description, exact, root, attempts, failures, failed_on = values[at : at + 7]
            item = Item(seq_of_job(job), exact or description, int(root or 0))
            leases.append(Lease(run, token, item, int(attempts or 0), int(failures or 0), failed_on))
    wake, open_runs = text(parts[0]), integer(parts[1])
    waiting = read_members(parts[3])
    return Claimed(
        leases=tuple(leases),
        visibility_seconds=visibility,
        wake_seconds=float(wake) if wake else None,
        open_runs=max(open_runs, 0),
        suspended=open_runs < 0,
        newer_run=text(parts[2]) or None,
        waiting=dict(zip(waiting[::2], map(Resources.decode, waiting[1::2]), strict=True)),
        others=integer(parts[4]) == 1,
    )


@dataclass(frozen=True, slots=True)
class Told:
    """What an item printed on another worker."""

    seq: int
    name: str
    stdout: bytes
    stderr: bytes
    complete: bool
    """False: it was too much, and is left out."""


def hear(keys: Keys, run: str, cursor: str, limit: int = 100) -> Call:
    """Asks for what other workers told; `cursor`: of the last answer, "" at first."""
    return Call(keys, "hear", (run, cursor, limit))


def read_heard(reply: Reply, cursor: str) -> tuple[str, list[Told]]:
    """The next cursor, and what was told."""
    told = []
    for entry in as_list(reply):
        cursor_reply, fields = as_list(entry)
        cursor = text(cursor_reply)
        _, seq, _, name, _, stdout, _, stderr, _, complete = as_list(fields)
        told.append(
            Told(integer(seq), text(name), as_bytes(stdout), as_bytes(stderr), integer(complete) == 1)
        )
    return cursor, told


def read_held(run: str, reply: Reply) -> list[Lease]:
    """Leases to hand back: of their items only the numbers are known. None, if there was no answer."""
    parts = (member.partition(":") for member in (read_members(reply) if reply else ()))
    return [Lease(run, token, Item(seq_of_job(job), ""), 0, 0) for job, _, token in parts]


def read_renewed(run: str, reply: Reply) -> Renewed:
    values = read_members(reply)
    return Renewed(run, values[0], values[1], values[2:])


def read_wishes(reply: Reply) -> Wishes:
    """The answer to a heartbeat."""
    at, paused, slots, stop, how, doubt = read_members(reply)
    return Wishes(float(at), paused, int(slots) if slots else None, float(stop or 0), how == "now", doubt)
