"""The lease engine against a model: any operation in any order, on a real server, with late tokens, lost
workers, and somebody at a stock RQ dashboard in between.

`Model` says what must be; `LeaseMachine` does each step to both and compares all of Redis after it. No step
waits: leases last 1,000 s, and time passes where the machine sets the score of a lease or of a retry to now.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.registry import FailedJobRegistry
from rq.suspension import resume as rq_resume
from rq.suspension import suspend as rq_suspend

from ppss_queue import scripts
from ppss_queue.connection import Address, Connection, Reply
from ppss_queue.errors import BadInput, UnknownRun
from ppss_queue.keys import HUNDRED_YEARS_SECONDS, Keys
from ppss_queue.model import Halt, Lease, Outcome, RetryRule, RunSpec, RunState, job_id, seq_of_job
from ppss_queue.store import Calls, Store, encode_item, member, read_claim, read_members, read_renewed
from ppss_queue.store import text as decoded

VISIBILITY_SECONDS = 1000.0
"""No lease expires and no retry comes due by itself while a test runs."""
WORKERS = ("w1", "w2", "w3")
ANY = st.integers(0, 999)
"""Which of those that there are, modulo their number."""
PICKS = st.lists(st.integers(0, 99), min_size=1, max_size=3)
REGISTRIES = ("wip", "scheduled", "finished", "failed", "canceled")
KEYS = Keys()

# CI: the same examples each time, so that a change is to blame for a failure. At home: new ones each time.
SETTINGS = settings(
    max_examples=int(os.environ.get("LEASE_EXAMPLES", "40")),
    stateful_step_count=50,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Attempt:
    """A lease as its worker remembers it, long after it may have lost it."""

    lease: Lease
    worker: str
    started: bool = False
    expired: int | None = None
    """When its time was over, as a count of such moments."""

    @property
    def member(self) -> str:
        return member(self.lease)


@dataclass
class ItemModel:
    status: str = "queued"
    attempts: int = 0
    failures: int = 0
    lost: int = 0
    token: str = ""
    """Of the newest attempt that started."""

    @property
    def wanted(self) -> bool:
        """False: someone at a dashboard deleted or cancelled it, perhaps while it was leased."""
        return self.status not in ("deleted", "canceled")


@dataclass
class Model:
    """What must be known of one run."""

    run: str
    spec: RunSpec
    state: RunState = RunState.FILLING
    reason: str = ""
    items: dict[str, ItemModel] = field(default_factory=dict)
    ready: list[str] = field(default_factory=list)
    leased: dict[str, Attempt] = field(default_factory=dict)
    delayed: dict[str, int | None] = field(default_factory=dict)
    """Job to when it came due, as a count of such moments; None: not yet."""
    ended: dict[str, set[str]] = field(
        default_factory=lambda: {"finished": set(), "failed": set(), "canceled": set()}
    )
    events: Counter[tuple[int, str, int]] = field(default_factory=Counter)
    workers: set[str] = field(default_factory=set)
    outputs: dict[str, str] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    """Executions that RQ's Job.cancel left behind, until the worker comes back to them or the run is purged."""
    unsettled: bool = False
    """A dashboard took items away: whether the run is done is seen at the next look."""

    @property
    def left(self) -> int:
        return len(self.ready) + len(self.leased) + len(self.delayed)

    def add(self, count: int) -> None:
        for _ in range(count):
            job = job_id(self.run, len(self.items) + 1)
            self.items[job] = ItemModel()
            self.ready.append(job)

    def reopen(self) -> None:
        self.state, self.reason = RunState.OPEN, ""

    def settle(self) -> None:
        self.unsettled = False
        if self.state in (RunState.OPEN, RunState.PAUSED) and not self.left:
            self.state = RunState.DONE
            self.events[0, "done", 0] += 1

    def ends(self, job: str, status: str) -> None:
        self.items[job].status = status
        self.ended[status].add(job)
        state = {"finished": "succeeded", "canceled": "cancelled"}.get(status, status)
        self.events[seq_of_job(job), state, self.items[job].attempts] += 1

    def end_lease(self, attempt: Attempt) -> bool:
        """Whether it still was one."""
        self.orphans.discard(attempt.member)
        return self.leased.pop(attempt.member, None) is not None and self.items[attempt.lease.job].wanted

    def repeated(self, attempt: Attempt, *statuses: str) -> bool:
        """Whether it was this attempt that brought the item where it is."""
        item = self.items[attempt.lease.job]
        return item.token == attempt.lease.token and item.status in statuses

    def fail(self, attempt: Attempt, due: int | None, again: bool) -> bool:
        """Returns whether the item has failed for good."""
        item = self.items[attempt.lease.job]
        item.failures += 1
        if again and item.failures <= self.spec.retry.retries:
            item.status = "scheduled"
            self.delayed[attempt.lease.job] = due
            return False
        self.ends(attempt.lease.job, "failed")
        return True

    def halt_if_failed_too_much(self) -> None:
        failed = len(self.ended["failed"])
        if self.spec.halt and self.state is RunState.OPEN and failed >= self.spec.halt.count:
            self.state, self.reason = RunState.PAUSED, f"halted soon: {failed} items failed"
            self.events[0, "paused", 0] += 1

    def take(self, want: int, idle: int, worker: str) -> list[str]:
        """Jobs of the next claim: expired leases, due retries, then the queue."""
        if want < 1:
            return []
        expired = sorted((a.expired, a.member, a) for a in self.leased.values() if a.expired is not None)
        jobs = [attempt.lease.job for _, _, attempt in expired[:want] if self._lost_but_not_failed(attempt)]
        due = sorted((at, job) for job, at in self.delayed.items() if at is not None)
        jobs += [job for _, job in due[: want - len(jobs)]]
        self.delayed = {job: at for job, at in self.delayed.items() if job not in jobs}
        share = max(math.ceil(len(self.ready) / (2 * max(len(self.workers), 1))), idle)
        more = max(min(want, share) - len(jobs), 0)
        jobs += self.ready[:more]
        del self.ready[:more]
        for job in jobs:
            self.items[job].status = "queued"
            self.workers.add(worker)
        return jobs

    def _lost_but_not_failed(self, attempt: Attempt) -> bool:
        job = attempt.lease.job
        if not self.end_lease(attempt):
            return False
        self.items[job].lost += attempt.started
        if self.items[job].lost > self.spec.max_lost:
            self.ends(job, "failed")
            return False
        return True


class LeaseMachine(RuleBasedStateMachine):
    """Each rule does one thing to Redis and to the models; `redis_is_what_the_models_say` compares."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.connection = Connection.open(Address.parse(address))
        self.redis = Redis.from_url(address)
        self.store = Store(self.connection, KEYS)
        self.calls = {name: Calls(KEYS, name, f"nonce{name}") for name in WORKERS}
        self.runs: dict[str, Model] = {}
        self.attempts: list[Attempt] = []
        self.ids: list[str] = []
        self.suspended = False
        self.moments = 0

    # Helpers

    def call(self, call: scripts.Call) -> Reply:
        return scripts.run(self.connection, call)

    def now(self) -> float:
        """The server's clock; and one more moment."""
        self.moments += 1
        seconds, microseconds = self.redis.time()
        return float(seconds) + microseconds / 1e6

    def some_run(self, which: int) -> Model:
        return list(self.runs.values())[which % len(self.runs)]

    def some_job(self, which: int) -> tuple[Model, str]:
        jobs = [(model, job) for model in self.runs.values() for job in model.items]
        return jobs[which % len(jobs)]

    def some_attempts(self, picks: Sequence[int], late: bool) -> tuple[str, list[Attempt]]:
        """Attempts of one run: those under way, or (late) any that ever was."""
        held = [attempt for model in self.runs.values() for attempt in model.leased.values()]
        among = self.attempts if late or not held else held
        chosen = {among[pick % len(among)].member: among[pick % len(among)] for pick in picks}
        first = next(iter(chosen.values()))
        alike = [a for a in chosen.values() if a.lease.run == first.lease.run and a.worker == first.worker]
        return first.lease.run, alike

    def any_attempt(self) -> bool:
        return bool(self.attempts)

    def any_run(self) -> bool:
        return bool(self.runs)

    def any_item(self) -> bool:
        return any(model.items for model in self.runs.values())

    # Runs

    @initialize()
    def begin(self) -> None:
        assert self.redis.flushdb()
        for name in WORKERS:
            self.call(self.calls[name].heartbeat({"hostname": "here", "pid": 1}))

    @precondition(lambda self: len(self.runs) < 3)
    @rule(
        items=st.integers(0, 8),
        priority=st.sampled_from([1, 1, 3]),
        retries=st.integers(0, 2),
        max_lost=st.integers(0, 1),
        halt=st.sampled_from([None, None, None, 2]),
        opened=st.booleans(),
    )
    def create(
        self, items: int, priority: int, retries: int, max_lost: int, halt: int | None, opened: bool
    ) -> None:
        run = f"r{len(self.ids)}"
        self.ids.append(run)
        spec = RunSpec(
            command="true",
            priority=priority,
            retry=RetryRule(retries),
            max_lost=max_lost,
            halt=Halt(now=False, count=halt) if halt else None,
            visibility_seconds=VISIBILITY_SECONDS,
        )
        assert self.store.create(run, spec)
        assert not self.store.create(run, spec)
        self.runs[run] = Model(run, spec)
        self.add(len(self.runs) - 1, items)
        if opened:
            self.open(len(self.runs) - 1)

    @precondition(any_run)
    @rule(which=ANY, items=st.integers(0, 4))
    def add(self, which: int, items: int) -> None:
        model = self.some_run(which)
        encoded = [encode_item(f"item {number}") for number in range(items)]
        if model.state is RunState.CANCELLED:
            with pytest.raises(BadInput, match="is cancelled"):
                self.store.add(model.run, encoded)
        else:
            assert self.store.add(model.run, encoded) == len(model.items) + items
            model.add(items)

    @precondition(any_run)
    @rule(which=ANY, what=st.sampled_from(["open", "pause", "resume", "resume"]))
    def steer(self, which: int, what: str) -> None:
        {"open": self.open, "pause": self.pause, "resume": self.resume}[what](which)

    def open(self, which: int) -> None:
        model = self.some_run(which)
        if model.state is RunState.FILLING or (model.state is RunState.DONE and model.ready):
            model.reopen()
            model.settle()
        assert self.store.open(model.run) == model.state

    def pause(self, which: int) -> None:
        model = self.some_run(which)
        assert self.store.pause(model.run) == model.state
        if model.state is RunState.OPEN:
            model.state = RunState.PAUSED

    def resume(self, which: int) -> None:
        model = self.some_run(which)
        assert self.store.resume(model.run) == model.state
        if model.state is RunState.PAUSED:
            model.reopen()
            model.settle()

    @precondition(any_run)
    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        model = self.some_run(which)
        if model.state is RunState.DONE:
            with pytest.raises(BadInput, match="is done"):
                self.store.cancel(model.run)
            return
        self.store.cancel(model.run)
        if model.state is not RunState.CANCELLED:
            model.state = RunState.CANCELLED
            model.events[0, "cancelled", 0] += 1
        held = [attempt.lease.job for attempt in list(model.leased.values()) if model.end_lease(attempt)]
        for job in (*held, *model.ready, *model.delayed):
            model.ends(job, "canceled")
        model.ready.clear()
        model.delayed.clear()

    @precondition(any_item)
    @rule(picks=st.lists(st.integers(0, 1000), min_size=1, max_size=3))
    def cancel_items(self, picks: list[int]) -> None:
        model, _ = self.some_job(picks[0])
        jobs = list(dict.fromkeys(job_id(model.run, pick % len(model.items) + 1) for pick in picks))
        cancelled = 0
        for job in jobs:
            leases = [attempt for attempt in model.leased.values() if attempt.lease.job == job]
            if job in model.ready:
                model.ready.remove(job)
            elif job in model.delayed:
                del model.delayed[job]
            elif not (leases and model.end_lease(leases[0])):
                continue
            model.ends(job, "canceled")
            cancelled += 1
        model.settle()
        assert self.store.cancel_items(model.run, [seq_of_job(job) for job in jobs]) == cancelled

    @precondition(any_item)
    @rule(which=ANY, picks=st.none() | st.lists(st.integers(0, 1000), max_size=3))
    def retry(self, which: int, picks: list[int] | None) -> None:
        model, _ = self.some_job(which)
        seqs = None if picks is None else list(dict.fromkeys(pick % len(model.items) + 1 for pick in picks))
        if model.state in (RunState.CANCELLED, RunState.FILLING) and seqs != []:
            with pytest.raises(BadInput, match=f"is {model.state}"):
                self.store.retry(model.run, seqs)
            return
        before = self.redis.zrange(KEYS.registry("failed", model.run), 0, -1)
        named = [job.decode() for job in before] if seqs is None else [job_id(model.run, seq) for seq in seqs]
        jobs = [job for job in named if job in model.ended["failed"]]
        assert self.store.retry(model.run, seqs) == len(jobs)
        for job in jobs:
            model.ended["failed"].remove(job)
            model.items[job] = ItemModel(attempts=model.items[job].attempts)
            model.ready.append(job)
        if jobs and model.state is RunState.DONE:
            model.reopen()

    @precondition(any_run)
    @rule(which=ANY, by_time=st.booleans())
    def purge(self, which: int, by_time: bool) -> None:
        """By hand, or by `tidy` since its time has come."""
        model = self.some_run(which)
        alive = model.state in (RunState.OPEN, RunState.PAUSED, RunState.FILLING)
        requeued = model.state is RunState.DONE and model.ready
        if by_time:
            if model.state is RunState.FILLING or not alive:
                which_set = "filling" if model.state is RunState.FILLING else "ended"
                assert self.redis.zadd(f"ppss:{which_set}", {model.run: 1}, xx=True, ch=True)
            self.tidy()
            if model.state is RunState.FILLING or not (alive or requeued):
                del self.runs[model.run]
        elif alive or requeued:
            with pytest.raises(BadInput, match="not ended"):
                self.store.purge(model.run)
            if requeued:
                model.reopen()
        else:
            self.store.purge(model.run)
            del self.runs[model.run]

    @rule()
    def tidy(self) -> None:
        self.store.tidy()
        for model in self.runs.values():
            if model.state is RunState.DONE and model.ready:
                model.reopen()
            else:
                model.settle()

    # What a worker does

    @rule(
        worker=st.sampled_from(WORKERS),
        want=st.integers(0, 6),
        idle=st.integers(0, 4),
        starts=st.booleans(),
        only=st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=2),
    )
    def claim(self, worker: str, want: int, idle: int, starts: bool, only: list[int] | None) -> None:
        runs = [f"r{number}" for number in only or ()]
        passes = {run.decode(): at for run, at in self.redis.zrange("ppss:open", 0, -1, withscores=True)}
        claimed = read_claim(self.call(self.calls[worker].claim(want, idle, runs=runs)))
        assert claimed.suspended is self.suspended
        if self.suspended:
            assert not claimed.leases
            return
        allowed = [self.runs[run] for run in passes if not runs or run in runs]
        expected: list[tuple[str, str]] = []
        for model in allowed:
            taken = model.take(want - len(expected), max(idle - len(expected), 0), worker)
            expected += [(model.run, job) for job in taken]
            passes[model.run] += len(taken) / model.spec.priority
        assert [(lease.run, lease.job) for lease in claimed.leases] == expected
        for run in {run for run, _ in expected}:
            assert self.redis.zscore("ppss:open", run) == pytest.approx(passes[run])
        attempts = [Attempt(lease, worker) for lease in claimed.leases]
        for attempt in attempts:
            item = self.runs[attempt.lease.run].items[attempt.lease.job]
            assert (attempt.lease.attempts, attempt.lease.failures) == (item.attempts, item.failures)
            self.runs[attempt.lease.run].leased[attempt.member] = attempt
        self.attempts += attempts
        for model in allowed if want else ():
            if model.state is RunState.OPEN:
                model.unsettled = True  # it was looked at only if the runs before it left some of `want`
        for run in sorted({run for run, _ in expected}) if starts else ():
            self._start(run, [attempt for attempt in attempts if attempt.lease.run == run])

    @precondition(any_attempt)
    @rule(picks=PICKS, late=st.booleans())
    def start(self, picks: list[int], late: bool) -> None:
        self._start(*self.some_attempts(picks, late))

    def _start(self, run: str, attempts: list[Attempt]) -> None:
        model, lost = self.runs.get(run), []
        for attempt in attempts:
            if model and attempt.member in model.leased and model.items[attempt.lease.job].wanted:
                item = model.items[attempt.lease.job]
                item.status, item.token = "started", attempt.lease.token
                item.attempts += not attempt.started
                attempt.started = True
                continue
            lost.append(attempt.member)
            if model and attempt.member in model.leased:
                model.end_lease(attempt)
                model.unsettled = True
        starts = [(attempt.lease, slot) for slot, attempt in enumerate(attempts, 1)]
        reply = self.call(self.calls[attempts[0].worker].start(run, starts))
        assert list(read_members(reply)) == lost

    @precondition(any_attempt)
    @rule(picks=PICKS, late=st.booleans())
    def renew(self, picks: list[int], late: bool) -> None:
        run, attempts = self.some_attempts(picks, late)
        reply = self.call(self.calls[attempts[0].worker].renew(run, [a.member for a in attempts]))
        renewed = read_renewed(run, reply)
        model = self.runs.get(run)
        assert renewed.state == (model.state if model else "unknown")
        assert renewed.reason == (model.reason if model else "")
        lost = []
        for attempt in attempts:
            if model and attempt.member in model.leased and model.items[attempt.lease.job].wanted:
                attempt.expired = None
            else:
                lost.append(attempt.member)
                if model and attempt.member in (*model.leased, *model.orphans):
                    model.end_lease(attempt)
                    model.settle()
        assert list(renewed.lost) == lost

    @precondition(any_attempt)
    @rule(picks=PICKS, late=st.booleans())
    def ack(self, picks: list[int], late: bool) -> None:
        run, attempts = self.some_attempts(picks, late)
        self._start(run, attempts)  # as a worker does, so that a token is known when its ack comes again
        lost = []
        model = self.runs.get(run)
        for attempt in attempts:
            if model and model.end_lease(attempt):
                model.ends(attempt.lease.job, "finished")
            elif not (model and model.repeated(attempt, "finished")):
                lost.append(attempt.member)
        if model:
            model.settle()
        ended = [(attempt.lease, Outcome(exit_code=0, seconds=1.0), b"") for attempt in attempts]
        assert list(read_members(self.call(self.calls[attempts[0].worker].ack(run, ended)))) == lost

    @precondition(any_attempt)
    @rule(
        picks=PICKS,
        late=st.booleans(),
        delay=st.sampled_from([None, 0.0, 1000.0]),
        output=st.sampled_from([b"", b"eJwDAAAAAAE="]),
    )
    def fail(self, picks: list[int], late: bool, delay: float | None, output: bytes) -> None:
        run, attempts = self.some_attempts(picks, late)
        self._start(run, attempts)
        self.moments += 1
        lost, failed = [], 0
        model = self.runs.get(run)
        for attempt in attempts:
            if model and model.end_lease(attempt):
                failed += model.fail(attempt, self.moments if delay == 0 else None, delay is not None)
            elif not (model and model.repeated(attempt, "failed", "scheduled")):
                lost.append(attempt.member)
        if model:
            model.settle()
            if failed:
                model.halt_if_failed_too_much()
        ended = [(attempt.lease, Outcome(exit_code=1), delay, output) for attempt in attempts]
        assert list(read_members(self.call(self.calls[attempts[0].worker].fail(run, ended)))) == lost

    @precondition(any_attempt)
    @rule(picks=PICKS, late=st.booleans())
    def release(self, picks: list[int], late: bool) -> None:
        run, attempts = self.some_attempts(picks, late)
        model = self.runs.get(run)
        back = [attempt.lease.job for attempt in attempts if model and model.end_lease(attempt)]
        if model:
            model.ready[:0] = back
            for job in back:
                model.items[job].status = "queued"
            model.settle()
        leases = [attempt.lease for attempt in attempts]
        assert self.call(self.calls[attempts[0].worker].release(run, leases)) == len(back)

    @precondition(any_attempt)
    @rule(pick=st.integers(0, 100), late=st.booleans(), names=st.sets(st.sampled_from("abc"), min_size=1))
    def reserve(self, pick: int, late: bool, names: set[str]) -> None:
        run, (attempt,) = self.some_attempts([pick], late)
        reply = self.call(self.calls[attempt.worker].reserve(attempt.lease, sorted(names)))
        model, job = self.runs.get(run), attempt.lease.job
        if not (model and attempt.member in model.leased and model.items[job].wanted):
            assert reply == b"lost"
            return
        taken = [name for name in sorted(names) if model.outputs.get(name, job) != job]
        if not taken:
            model.outputs.update(dict.fromkeys(names, job))
        assert isinstance(reply, list)
        assert reply[::3] == [name.encode() for name in taken]
        assert reply[1::3] == [model.outputs[name].encode() for name in taken]

    # Time

    @precondition(lambda self: any(model.leased for model in self.runs.values()))
    @rule(pick=ANY)
    def a_lease_expires(self, pick: int) -> None:
        run, (attempt,) = self.some_attempts([pick], late=False)
        attempt_key = KEYS.registry("wip", run)
        assert self.redis.zadd(
            attempt_key, {attempt.member: self.now() + HUNDRED_YEARS_SECONDS}, xx=True, ch=True
        )
        attempt.expired = self.moments

    @precondition(lambda self: any(None in model.delayed.values() for model in self.runs.values()))
    @rule()
    def retries_come_due(self) -> None:
        for model in self.runs.values():
            for job in [job for job, due in model.delayed.items() if due is None]:
                assert self.redis.zadd(
                    KEYS.registry("scheduled", model.run), {job: self.now()}, xx=True, ch=True
                )
                model.delayed[job] = self.moments

    # Somebody at a stock dashboard

    @precondition(any_item)
    @rule(which=ANY, what=st.sampled_from(["requeue", "requeue", "delete", "cancel", "empty", "suspend"]))
    def dashboard(self, which: int, what: str) -> None:
        model, job = self.some_job(which)
        item = model.items[job]
        if what == "requeue":
            self._requeue(which)
        elif what == "empty":
            Queue(model.run, connection=self.redis).empty()
            for ready in list(model.ready):
                self._taken_away(model, ready, "deleted")
        elif what == "suspend":
            self.suspended = not self.suspended
            (rq_suspend if self.suspended else rq_resume)(self.redis)
        elif what == "delete" and item.status != "deleted":
            Job.fetch(job, connection=self.redis).delete()
            self._taken_away(model, job, "deleted")
            model.orphans = {orphan for orphan in model.orphans if not orphan.startswith(f"{job}:")}
        elif what == "cancel" and item.wanted:
            Job.fetch(job, connection=self.redis).cancel()
            model.orphans.update(self._taken_away(model, job, "canceled"))
            model.ended["canceled"].add(job)

    def _requeue(self, which: int) -> None:
        failed = [(model, job) for model in self.runs.values() for job in sorted(model.ended["failed"])]
        if not failed:
            return
        model, job = failed[which % len(failed)]
        FailedJobRegistry(queue=Queue(model.run, connection=self.redis)).requeue(job)
        model.ended["failed"].remove(job)
        model.items[job].status = "queued"
        model.ready.append(job)

    def _taken_away(self, model: Model, job: str, status: str) -> list[str]:
        """RQ knows an item that is leased but not started only as queued; it ends the leases that it returns."""
        leases = [attempt.member for attempt in model.leased.values() if attempt.lease.job == job]
        running = leases if model.items[job].status == "started" else []
        for name in running:
            del model.leased[name]
        if job in model.ready:
            model.ready.remove(job)
        model.delayed.pop(job, None)
        for registry in model.ended.values():
            registry.discard(job)
        model.items[job].status = status
        model.unsettled = True
        return running

    # What must be true at any time

    @invariant()
    def redis_is_what_the_models_say(self) -> None:
        for model in self.runs.values():
            self._check_run(model)
        assert {key.decode() for key in self.redis.keys("ppss:run:*")} == {KEYS.run(run) for run in self.runs}
        self._check_executions()

    def _check_run(self, model: Model) -> None:
        run = model.run
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.hmget(KEYS.run(run), "state", "reason")
            pipe.lrange(KEYS.queue(run), 0, -1)
            for name in REGISTRIES:
                pipe.zrange(KEYS.registry(name, run), 0, -1)
            for job in model.items:
                pipe.hmget(KEYS.job(job), "status", "attempts", "failures", "lost")
            pipe.xrange(KEYS.events(run))
            pipe.zscore("ppss:open", run)
            (state, reason), *moved = pipe.execute()
        lists = [[decoded(job) for job in jobs] for jobs in moved[: 1 + len(REGISTRIES)]]
        ready, leased, *rest = lists
        assert ready == model.ready, run
        assert set(leased) == set(model.leased), run
        assert [set(jobs) for jobs in rest] == [set(model.delayed), *model.ended.values()], run
        self._check_places(model, [ready, [name.rpartition(":")[0] for name in leased], *rest])
        if model.unsettled and model.state != decoded(state) and not model.left:
            model.settle()
        assert (decoded(state), decoded(reason)) == (model.state, model.reason), run
        assert (moved[-1] is not None) is (model.state is RunState.OPEN)
        self._check_items(model, moved[1 + len(REGISTRIES) : -2])
        fields = [(int(entry[b"s"]), entry[b"t"].decode(), int(entry[b"a"])) for _, entry in moved[-2]]
        assert Counter(fields) == model.events, run
        self._check_counts(model)

    def _check_places(self, model: Model, lists: list[list[str]]) -> None:
        """Every item is in exactly one place. A dashboard can't see the lease of an unstarted item, though."""
        places = Counter(job for jobs in lists for job in jobs)
        for job, item in model.items.items():
            leases = sum(attempt.lease.job == job for attempt in model.leased.values())
            expected = 1 if item.wanted else leases + (item.status == "canceled")
            assert places[job] == expected, (job, item)
        assert places.keys() <= model.items.keys()

    def _check_items(self, model: Model, rows: list[list[bytes | None]]) -> None:
        for (job, item), row in zip(model.items.items(), rows, strict=True):
            if item.status == "deleted":
                assert row == [None] * 4, job
            else:
                numbers = tuple(int(value or 0) for value in row[1:])
                expected = (item.status, item.attempts, item.failures, item.lost)
                assert (decoded(row[0]), *numbers) == expected, job

    def _check_counts(self, model: Model) -> None:
        (counts,) = self.store.counts([model.run])
        states = (
            counts.ready,
            counts.leased,
            counts.delayed,
            counts.succeeded,
            counts.failed,
            counts.cancelled,
        )
        assert sum(states) == counts.total == len(model.items)
        assert min(states) >= 0
        running = [a for a in model.leased.values() if a.started and a.expired is None]
        assert counts.running == len(running)
        assert counts.expired == sum(attempt.expired is not None for attempt in model.leased.values())
        assert counts.lost >= sum(item.lost for item in model.items.values() if item.wanted)

    def _check_executions(self) -> None:
        """RQ's keys of executions exist for started leases and for nothing else."""
        started = {m: a.worker for model in self.runs.values() for m, a in model.leased.items() if a.started}
        orphans = {orphan for model in self.runs.values() for orphan in model.orphans}
        executions = {key.decode().removeprefix("rq:execution:") for key in self.redis.keys("rq:execution:*")}
        assert set(started) <= executions <= set(started) | orphans
        of_jobs = {
            f"{key.decode().removeprefix('rq:executions:')}:{decoded(token)}"
            for key in self.redis.keys("rq:executions:*")
            for token in self.redis.zrange(key, 0, -1)
        }
        assert of_jobs == executions
        for name in WORKERS:
            shown = {decoded(value) for value in self.redis.smembers(f"rq:worker:{name}:executions")}
            assert {m for m, worker in started.items() if worker == name} <= shown <= executions

    # The end

    def teardown(self) -> None:
        try:
            if (
                sys.exc_info()[0] is None
            ):  # else a step has failed, which must not be hidden by what follows from it
                self.nothing_remains_when_all_runs_are_purged()
        finally:
            self.connection.close()
            self.redis.close()

    def nothing_remains_when_all_runs_are_purged(self) -> None:
        for run, model in self.runs.items():
            if model.state is not RunState.DONE or model.ready:
                self.store.open(run)
                if next(self.store.counts([run])).state is not RunState.DONE:
                    self.store.cancel(run)
            self.store.purge(run)
        self.late_calls_change_nothing()
        for name in WORKERS:
            self.call(self.calls[name].retire(self.ids))
        rq_resume(self.redis)
        remaining = {key.decode() for key in self.redis.scan_iter()}
        assert remaining <= KEYS.permanent, remaining - KEYS.permanent

    def late_calls_change_nothing(self) -> None:
        for attempt in self.attempts[-3:]:
            calls, run, lease = self.calls[attempt.worker], attempt.lease.run, attempt.lease
            lost = [attempt.member]
            assert list(read_members(self.call(calls.start(run, [(lease, 1)])))) == lost
            assert list(read_members(self.call(calls.ack(run, [(lease, Outcome(), b"x")])))) == lost
            assert list(read_members(self.call(calls.fail(run, [(lease, Outcome(), 0.0, b"x")])))) == lost
            assert self.call(calls.release(run, [lease])) == 0
            assert self.call(calls.reserve(lease, ["a"])) == b"lost"
            assert read_renewed(run, self.call(calls.renew(run, lost))).lost == (attempt.member,)
        for run in self.ids:
            with pytest.raises(UnknownRun):
                self.store.open(run)


@pytest.fixture
def machine(address: str) -> Iterator[partial[LeaseMachine]]:
    yield partial(LeaseMachine, address)


def test_every_operation_in_any_order_leaves_redis_as_the_model_says(machine: partial[LeaseMachine]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)
