"""The lease engine against a model: any operation in any order, on a real server, with late tokens, lost
workers, and somebody at a stock RQ dashboard in between.

`Model` says what must be; `LeaseMachine` does each step to both and compares all of Redis after it. No step
waits: leases last 1,000 s, and time passes where the machine sets the score of a lease or of a retry to now.
A longer hunt: LEASE_EXAMPLES=2000 pytest tests/ppss_queue/test_state_machine.py
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
from hypothesis import HealthCheck, Phase, settings
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
from ppss_queue.address import Address
from ppss_queue.calls import Calls, read_claim, read_renewed
from ppss_queue.connection import Connection, Reply
from ppss_queue.errors import BadInput, UnknownRun
from ppss_queue.keys import HUNDRED_YEARS_SECONDS, Keys
from ppss_queue.model import Lease, Outcome, RunSpec, RunState, job_id, seq_of_job
from ppss_queue.replies import read_members
from ppss_queue.replies import text as decoded
from ppss_queue.resources import Resources
from ppss_queue.rq_form import encode_item
from ppss_queue.rules import Halt, RetryRule
from ppss_queue.store import Store

VISIBILITY_SECONDS = 1000.0
"""No lease expires and no retry comes due by itself while a test runs."""
WORKERS = ("w1", "w2", "w3")
PICKS = st.lists(st.integers(0, 99), min_size=1, max_size=3)
"""Which of those that there are, modulo their number."""
CPUS = st.lists(st.integers(0, 6), max_size=2)
"""That are free on each host, for items that need 1 or 2, or say nothing."""
ONLY = st.sampled_from([[], [], [], ["r0"], ["r1", "r2"], ["r1", "gone"]])
OWNER = ("open", "pause", "cancel", "cancel items", "purge", "run expires", "tidy")
REGISTRIES = ("wip", "scheduled", "finished", "failed", "canceled")
OF_STATES = {
    "filling": {RunState.FILLING},
    "open": {RunState.OPEN},
    "ended": {RunState.DONE, RunState.CANCELLED},
}
"""Sets of runs, and the states of the runs in them."""
KEYS = Keys()

# CI: the same examples each time, so that a change is to blame for a failure, and no minutes of shrinking.
_IN_CI = bool(os.environ.get("CI"))
SETTINGS = settings(
    max_examples=int(os.environ.get("LEASE_EXAMPLES", "80")),
    stateful_step_count=60,
    deadline=None,
    derandomize=_IN_CI,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, *([] if _IN_CI else [Phase.shrink])],
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Attempt:
    """A lease as its worker remembers it, long after it may have lost it."""

    lease: Lease
    worker: str
    begun: bool = False
    """Should its worker die, it counts."""
    started: bool = False
    """Shown as running."""
    expired: int | None = None
    """When its time was over, as a count of such moments."""

    @property
    def member(self) -> str:
        return self.lease.member


@dataclass
class ItemModel:
    status: str = "queued"
    attempts: int = 0
    failures: int = 0
    lost: int = 0
    token: str = ""
    """Of the newest attempt that started."""
    guilty: bool = False
    """It has failed on two nodes."""

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
    delayed: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    """Job to when it came due: (0, a moment of the past) or (1, a moment just now); None: not yet."""
    ended: dict[str, set[str]] = field(
        default_factory=lambda: {"finished": set(), "failed": set(), "canceled": set()}
    )
    events: Counter[tuple[int, str, int]] = field(default_factory=Counter)
    workers: set[str] = field(default_factory=set)
    outputs: dict[str, str] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    """Executions that RQ's Job.cancel left behind, until the worker comes back to them or the run is purged."""
    doubts: dict[str, str] = field(default_factory=dict)
    """Job to the node on which it failed: another one is to try it."""
    innocent: Counter[str] = field(default_factory=Counter)
    """How often a node was blamed for what was the item's fault."""
    marks: Counter[str] = field(default_factory=Counter)
    """How many items failed on a node that others did, in a row."""
    unsettled: bool = False
    """A dashboard took items away: whether the run is done is seen at the next look."""

    @property
    def left(self) -> int:
        return len(self.ready) + len(self.leased) + len(self.delayed)

    @property
    def has_items(self) -> bool:
        """To hand out now."""
        due = [at for at in self.delayed.values() if at is not None]
        return bool(self.ready or due or any(a.expired is not None for a in self.leased.values()))

    def reopen(self) -> None:
        self.state, self.reason = RunState.OPEN, ""

    def settle(self) -> None:
        self.unsettled = False
        if self.state in (RunState.OPEN, RunState.PAUSED) and not self.left:
            self.state = RunState.DONE
            self.events[0, "done", 0] += 1
            self.doubts.clear()

    def cancel_the_rest(self) -> None:
        """Someone at a dashboard may have requeued items after all were cancelled."""
        for attempt in list(self.leased.values()):
            if self.end_lease(attempt):
                self.ends(attempt.lease.job, "canceled")
        for job in [*self.ready, *self.delayed]:
            self.ends(job, "canceled")
        self.ready.clear()
        self.delayed.clear()

    def notice(self) -> None:
        if self.state is RunState.DONE and self.ready:
            self.reopen()
        else:
            self.settle()

    def ends(self, job: str, status: str) -> None:
        self.items[job].status = status
        self.ended[status].add(job)
        self.doubts.pop(job, None)
        state = {"finished": "succeeded", "canceled": "cancelled"}.get(status, status)
        self.events[seq_of_job(job), state, self.items[job].attempts] += 1

    def end_lease(self, attempt: Attempt) -> bool:
        """Whether it still was one."""
        self.orphans.discard(attempt.member)
        item = self.items[attempt.lease.job]
        if self.leased.pop(attempt.member, None) is None or not item.wanted:
            return False
        item.attempts += attempt.begun and not attempt.started
        return True

    def repeated(self, attempt: Attempt, *statuses: str) -> bool:
        """Whether it was this attempt that brought the item where it is."""
        item = self.items[attempt.lease.job]
        return item.token == attempt.lease.token and item.status in statuses

    def fail(self, attempt: Attempt, due: tuple[int, int] | None, again: bool) -> bool:
        """Returns whether the item has failed for good."""
        item = self.items[attempt.lease.job]
        item.failures += 1
        item.token = attempt.lease.token
        if again and item.failures <= self.spec.retry.retries:
            item.status = "scheduled"
            self.delayed[attempt.lease.job] = due
            return False
        self.ends(attempt.lease.job, "failed")
        return True

    def halt_if_failed_too_much(self) -> None:
        failed = len(self.ended["failed"])
        if self.spec.halt and self.state is RunState.OPEN and failed >= self.spec.halt.count:
            self.state, self.reason = (
                RunState.PAUSED,
                f"halted soon: {failed} item{'s' * (failed != 1)} failed",
            )
            self.events[0, "paused", 0] += 1

    def doubted(self, worker: str, others: bool) -> list[str] | None:
        """What this worker is not to be given; None: it is given nothing. It has failed if nobody else is there."""
        mine = [job for job, node in self.doubts.items() if node == worker and self.items[job].wanted]
        if mine and not others:
            for job in set(mine).intersection(self.ready):
                mine.remove(job)
                self.ready.remove(job)
                self.items[job].failures += 1
                self.items[job].guilty = True
                self.ends(job, "failed")
                self.halt_if_failed_too_much()
        return mine if len(mine) < 3 else None

    def take(self, want: int, idle: int, worker: str, others: bool) -> list[str]:
        """Jobs of the next claim: expired leases, due retries, then the queue."""
        doubted = self.doubted(worker, others)
        if doubted is None:
            return []
        expired = sorted(
            (not a.begun, a.expired, a.member, a) for a in self.leased.values() if a.expired is not None
        )
        jobs = []
        for _, _, _, attempt in expired[:want]:
            if attempt.begun and attempt.worker == worker:
                attempt.expired = None  # it was away, but it is back
            elif self.lost_but_not_failed(attempt):
                jobs.append(attempt.lease.job)
        for job in [job for job in jobs if job in doubted]:
            jobs.remove(job)
            self.ready.insert(0, job)
            self.items[job].status = "queued"
        if self.state is RunState.PAUSED:  # halted by those that failed
            self.ready[:0] = jobs
            for job in jobs:
                self.items[job].status = "queued"
            return []
        due = sorted((at, job) for job, at in self.delayed.items() if at is not None)
        jobs += [job for _, job in due[: want - len(jobs)]]
        self.delayed = {job: at for job, at in self.delayed.items() if job not in jobs}
        share = max(math.ceil(len(self.ready) / (2 * len(self.workers | {worker}))), idle)
        more = max(min(want, share) - len(jobs), 0)
        given = [job for job in self.ready if job not in doubted][:more]
        self.ready = [job for job in self.ready if job not in given]
        jobs += given
        for job in jobs:
            self.items[job].status = "queued"
            self.workers.add(worker)
        return jobs

    def lost_but_not_failed(self, attempt: Attempt) -> bool:
        job = attempt.lease.job
        if not self.end_lease(attempt):
            return False
        self.items[job].lost += attempt.begun
        if attempt.begun and self.items[job].lost > self.spec.max_lost:
            self.ends(job, "failed")
            self.halt_if_failed_too_much()
            return False
        return True


class LeaseMachine(RuleBasedStateMachine):
    """Each step does one thing to Redis and to the models; `redis_is_what_the_models_say` compares.

    Few rules with many branches, since Hypothesis leaves out half of the rules in each run.
    """

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
        self.paused: set[str] = set()
        """Nodes; each worker is one."""

    # Helpers

    def call(self, call: scripts.Call) -> Reply:
        return scripts.run(self.connection, call)

    def past(self) -> float:
        """One more moment, in the server's time: long ago, so that no step of the clock matters, but in order."""
        self.moments += 1
        return self.began - 1e6 + self.moments

    def some_run(self, which: int) -> Model:
        return list(self.runs.values())[which % len(self.runs)]

    def some_jobs(self, model: Model, picks: Sequence[int]) -> list[str]:
        jobs = list(model.items)
        return list(dict.fromkeys(jobs[pick % len(jobs)] for pick in picks if jobs))

    def some_attempts(self, picks: Sequence[int], late: bool = False) -> list[Attempt]:
        """Attempts of one worker and run: those under way, or (late) any that ever was."""
        held = [attempt for model in self.runs.values() for attempt in model.leased.values()]
        among = self.attempts if late else held
        first, *rest = [among[pick % len(among)] for pick in picks]
        alike = [a for a in rest if (a.worker, a.lease.run) == (first.worker, first.lease.run)]
        return list({attempt.member: attempt for attempt in (first, *alike)}.values())

    def any_held(self) -> bool:
        return any(model.leased for model in self.runs.values())

    # The owner of the runs

    @initialize()
    def begin(self) -> None:
        assert self.redis.flushdb()
        self.began = float(self.redis.time()[0])
        for name in WORKERS:
            facts = {"pid": 1, "serves": "", "alone": "", "command": 1, "stopping": 0}
            self.call(self.calls[name].heartbeat(facts, {"id": name}))

    @precondition(lambda self: sum(model.left > 0 for model in self.runs.values()) < 3)
    @rule(
        items=st.sampled_from([0, 1, 2, 2, 3, 3, 4, 8]),
        priority=st.sampled_from([1, 1, 3]),
        retries=st.integers(0, 2),
        max_lost=st.integers(0, 1),
        halt=st.sampled_from([None, None, None, 2]),
        cpus=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def create(
        self, items: int, priority: int, retries: int, max_lost: int, halt: int | None, cpus: int
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
            needs=Resources(cpus=cpus),
        )
        assert self.store.create(run, spec)
        assert not self.store.create(run, spec)
        self.runs[run] = Model(run, spec)
        self._add(self.runs[run], items)
        if items != 1:
            self._open(self.runs[run])

    @precondition(lambda self: self.runs)
    @rule(picks=PICKS, what=st.sampled_from([*OWNER, "resume", "resume", "add", "add", "retry", "retry all"]))
    def owner(self, picks: list[int], what: str) -> None:
        model = self.some_run(picks[0])
        jobs = self.some_jobs(model, picks)
        if what == "open":
            self._open(model)
        elif what == "pause":
            assert self.store.pause(model.run) == model.state
            if model.state is RunState.OPEN:
                model.state = RunState.PAUSED
        elif what == "resume":
            assert self.store.resume(model.run) == model.state
            if model.state is RunState.PAUSED:
                model.reopen()
                model.settle()
        elif what == "add":
            self._add(model, picks[0] % 5)
        elif what == "cancel":
            self._cancel(model)
        elif what == "cancel items":
            self._cancel_items(model, jobs)
        elif what == "retry":
            self._retry(model, jobs)
        elif what == "retry all":
            self._retry(model, None)
        elif what == "purge":
            self._purge(model)
        elif what == "run expires":
            self._run_expires(model)
        elif what == "tidy":
            self._tidy()

    def _add(self, model: Model, items: int) -> None:
        encoded = [encode_item(f"item {number}") for number in range(items)]
        if model.state is RunState.CANCELLED:
            with pytest.raises(BadInput, match="is cancelled"):
                self.store.add(model.run, encoded)
            return
        assert self.store.add(model.run, encoded) == len(model.items) + items
        for _ in range(items):
            job = job_id(model.run, len(model.items) + 1)
            model.items[job] = ItemModel()
            model.ready.append(job)

    def _open(self, model: Model) -> None:
        if model.state is RunState.FILLING or (model.state is RunState.DONE and model.ready):
            model.reopen()
            model.settle()
        assert self.store.open(model.run) == model.state

    def _cancel(self, model: Model) -> None:
        if model.state is RunState.DONE:
            with pytest.raises(BadInput, match="is done"):
                self.store.cancel(model.run)
            return
        self.store.cancel(model.run)
        if model.state is not RunState.CANCELLED:
            model.state = RunState.CANCELLED
            model.events[0, "cancelled", 0] += 1
            model.doubts.clear()
        held = [attempt.lease.job for attempt in list(model.leased.values()) if model.end_lease(attempt)]
        for job in (*held, *model.ready, *model.delayed):
            model.ends(job, "canceled")
        model.ready.clear()
        model.delayed.clear()

    def _purge(self, model: Model) -> None:
        if model.state not in (RunState.DONE, RunState.CANCELLED):
            with pytest.raises(BadInput, match="not ended"):
                self.store.purge(model.run)
        elif model.state is RunState.DONE and model.ready:
            with pytest.raises(BadInput, match="not ended"):
                self.store.purge(model.run)
            model.reopen()
        else:
            self.store.purge(model.run)
            del self.runs[model.run]

    def _run_expires(self, model: Model) -> None:
        """Nobody fills it any more, or it ended long ago."""
        key = {RunState.FILLING: "filling", RunState.DONE: "ended", RunState.CANCELLED: "ended"}.get(
            model.state
        )
        if key:
            assert self.redis.zadd(f"ppss:{key}", {model.run: 1}, xx=True, ch=True)
            if model.state is not RunState.DONE or not model.ready:
                del self.runs[model.run]
        self._tidy()

    def _tidy(self) -> None:
        self.store.tidy()
        for model in self.runs.values():
            if model.state is RunState.CANCELLED:
                model.cancel_the_rest()
            model.notice()

    def _cancel_items(self, model: Model, jobs: list[str]) -> None:
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

    def _retry(self, model: Model, jobs: list[str] | None) -> None:
        seqs = None if jobs is None else [seq_of_job(job) for job in jobs]
        if model.state in (RunState.CANCELLED, RunState.FILLING) and seqs != []:
            with pytest.raises(BadInput, match=f"is {model.state}"):
                self.store.retry(model.run, seqs)
            return
        in_order = [job.decode() for job in self.redis.zrange(KEYS.registry("failed", model.run), 0, -1)]
        jobs = in_order if jobs is None else [job for job in jobs if job in in_order]
        assert self.store.retry(model.run, seqs) == len(jobs)
        for job in jobs:
            model.ended["failed"].remove(job)
            model.items[job] = ItemModel(attempts=model.items[job].attempts)
            model.ready.append(job)
        if jobs and model.state is RunState.DONE:
            model.reopen()

    @rule(node=st.sampled_from(WORKERS), what=st.sampled_from(["pause", "resume", "resume"]))
    def node(self, node: str, what: str) -> None:
        assert self.call(scripts.Call(KEYS, "wish", (node, what, "why"))) == b"told"
        if what == "pause":
            self.paused.add(node)
            return
        self.paused.discard(node)
        for model in self.runs.values():
            del model.innocent[node], model.marks[node]

    def others(self, node: str) -> bool:
        """Whether other nodes take items."""
        return bool(set(WORKERS) - self.paused - {node})

    # Workers

    @rule(
        worker=st.sampled_from(WORKERS), want=st.integers(0, 6), idle=st.integers(0, 4), only=ONLY, cpus=CPUS
    )
    def claim(self, worker: str, want: int, idle: int, only: list[str], cpus: list[int]) -> None:
        self._claim(worker, want, idle, only, cpus)

    @rule(worker=st.sampled_from(WORKERS), want=st.integers(1, 6), only=ONLY, cpus=CPUS)
    def claim_and_start(self, worker: str, want: int, only: list[str], cpus: list[int]) -> None:
        for attempts in self._claim_by_run(worker, want, only, cpus):
            self._start(attempts)

    @precondition(lambda self: any(model.ready for model in self.runs.values()))
    @rule(worker=st.sampled_from(WORKERS), what=st.sampled_from(["ack", "fail"]), only=ONLY)
    def work_on_all_there_is(self, worker: str, what: str, only: list[str]) -> None:
        for attempts in self._claim_by_run(worker, 50, only, [100]):
            self._attempts(attempts, what, 0, again=False)

    def _claim_by_run(self, worker: str, want: int, only: list[str], cpus: list[int]) -> list[list[Attempt]]:
        attempts = self._claim(worker, want, want, only, cpus)
        runs = dict.fromkeys(attempt.lease.run for attempt in attempts)
        return [[attempt for attempt in attempts if attempt.lease.run == run] for run in runs]

    def _claim(self, worker: str, want: int, idle: int, only: list[str], cpus: list[int]) -> list[Attempt]:
        passes = {run.decode(): at for run, at in self.redis.zrange("ppss:open", 0, -1, withscores=True)}
        free = [Resources(cpus=count) for count in cpus]
        claimed = read_claim(self.call(self.calls[worker].claim(want, idle, runs=only, free=free)))
        cpus = list(cpus)
        assert claimed.suspended is self.suspended
        if self.suspended:
            assert not claimed.leases
            rq_resume(self.redis)
            self.suspended = False
            return []
        want = 0 if worker in self.paused else want
        allowed = [self.runs[run] for run in passes if not only or run in only]
        expected: list[tuple[str, str]] = []
        waiting = set()
        for model in allowed:
            need = model.spec.needs.cpus
            left = min(want - len(expected), sum(count // need for count in cpus) if need else want)
            taken = (
                model.take(left, max(idle - len(expected), 0), worker, self.others(worker)) if left else []
            )
            expected += [(model.run, job) for job in taken]
            passes[model.run] += len(taken) / model.spec.priority
            for _ in taken if need else ():
                cpus[next(host for host, count in enumerate(cpus) if count >= need)] -= need
            if need and all(count < need for count in cpus) and model.has_items:
                waiting.add(model.run)
            model.unsettled = True  # it is looked at only if the runs before it left some of `want`
        assert [(lease.run, lease.job) for lease in claimed.leases] == expected
        assert claimed.waiting.keys() == waiting
        attempts = [Attempt(lease, worker) for lease in claimed.leases]
        assert not {a.lease.token for a in attempts} & {a.lease.token for a in self.attempts}
        for attempt in attempts:
            item = self.runs[attempt.lease.run].items[attempt.lease.job]
            assert (attempt.lease.attempts, attempt.lease.failures) == (item.attempts, item.failures)
            self.runs[attempt.lease.run].leased[attempt.member] = attempt
        self.attempts += attempts
        for model in allowed:
            if model.state is RunState.OPEN and any(run == model.run for run, _ in expected):
                assert self.redis.zscore("ppss:open", model.run) == pytest.approx(passes[model.run])
        return attempts

    @precondition(any_held)
    @rule(picks=PICKS, what=st.sampled_from(["begin", "start", "renew", "reserve", "release", "forfeit"]))
    def attempts_go_on(self, picks: list[int], what: str) -> None:
        self._attempts(self.some_attempts(picks), what, picks[0], again=False)

    @precondition(any_held)
    @rule(
        picks=PICKS,
        what=st.sampled_from(["ack", "fail", "doubt", "doubt", "retry", "retry later"]),
        again=st.booleans(),
    )
    def attempts_end(self, picks: list[int], what: str, again: bool) -> None:
        self._attempts(self.some_attempts(picks), what, picks[0], again)

    @precondition(lambda self: self.attempts)
    @rule(
        picks=PICKS,
        what=st.sampled_from(
            ["begin", "start", "renew", "reserve", "release", "forfeit", "ack", "fail", "doubt", "retry"]
        ),
    )
    def attempts_come_late(self, picks: list[int], what: str) -> None:
        """Calls of a worker that was away, with tokens that may or may not count any more."""
        self._attempts(self.some_attempts(picks, late=True), what, picks[0], again=False)

    def _attempts(self, attempts: list[Attempt], what: str, pick: int, again: bool) -> None:
        for _ in range(1 + again):
            if what == "begin":
                self._begin(attempts)
            elif what == "start":
                self._start(attempts)
            elif what == "renew":
                self._renew(attempts)
            elif what == "reserve":
                self._reserve(attempts[0], "abc"[pick % 3 :])
            elif what == "release":
                self._release(attempts)
            elif what == "forfeit":
                self._forfeit(attempts)
            elif what == "ack":
                self._ack(attempts)
            elif what == "doubt":
                self._doubt(attempts[0])
            else:
                self._fail(attempts, {"fail": None, "retry": 0.0, "retry later": 1000.0}[what])

    def _begin(self, attempts: list[Attempt]) -> None:
        """By a plain command, which a worker sends once; of a lease that is there, whatever became of its item."""
        attempts = [attempt for attempt in attempts if not attempt.begun]
        commands = [self.calls[attempt.worker].begin(attempt.lease) for attempt in attempts]
        replies = self.connection.execute_many(commands)
        for attempt, reply in zip(attempts, replies, strict=True):
            model = self.runs.get(attempt.lease.run)
            attempt.begun = bool(model and attempt.member in model.leased)
            assert (reply is not None) is attempt.begun

    def _start(self, attempts: list[Attempt]) -> None:
        run, worker, lost = attempts[0].lease.run, attempts[0].worker, []
        model = self.runs.get(run)
        for attempt in attempts:
            if model and attempt.member in model.leased and model.items[attempt.lease.job].wanted:
                item = model.items[attempt.lease.job]
                item.status, item.token = "started", attempt.lease.token
                item.attempts += not attempt.started
                attempt.begun = attempt.started = True
                continue
            lost.append(attempt.member)
            if model:
                model.end_lease(attempt)
                model.settle()
        starts = [(attempt.lease, slot) for slot, attempt in enumerate(attempts, 1)]
        assert list(read_members(self.call(self.calls[worker].start(run, starts)))) == lost

    def _renew(self, attempts: list[Attempt]) -> None:
        run, worker, lost = attempts[0].lease.run, attempts[0].worker, []
        renewed = read_renewed(run, self.call(self.calls[worker].renew(run, [a.member for a in attempts])))
        model = self.runs.get(run)
        assert (renewed.state, renewed.reason) == ((model.state, model.reason) if model else ("unknown", ""))
        for attempt in attempts:
            if model and attempt.member in model.leased and model.items[attempt.lease.job].wanted:
                attempt.expired = None
                continue
            lost.append(attempt.member)
            if model:
                model.end_lease(attempt)
                model.settle()
        assert list(renewed.lost) == lost

    def _doubt(self, attempt: Attempt) -> None:
        """Exit 127: always a reason to blame the node."""
        model, job, worker = self.runs.get(attempt.lease.run), attempt.lease.job, attempt.worker
        item = model.items[job] if model else ItemModel()
        back = False
        if model and job in model.doubts and item.status != "deleted":
            back = model.doubts[job] == worker and item.token == attempt.lease.token  # repeated
        elif model and job not in model.doubts and not item.guilty and self.others(worker):
            back = model.end_lease(attempt)
            if back:
                item.status, item.token = "queued", attempt.lease.token
                model.doubts[job] = worker
                model.ready.insert(0, job)
            model.settle()
        outcome = Outcome(exit_code=127, seconds=1.0)
        call = self.calls[worker].doubt(attempt.lease, outcome, None, in_a_row=1, proven=True)
        assert self.call(call) == back

    def _mark(self, model: Model, node: str) -> None:
        model.marks[node] += 1
        if model.marks[node] >= 3 and self.others(node):
            self.paused.add(node)

    def _ack(self, attempts: list[Attempt]) -> None:
        run, worker, lost = attempts[0].lease.run, attempts[0].worker, []
        model, done = self.runs.get(run), False
        known = bool(model and (model.innocent or model.marks))  # before what is done here
        for attempt in attempts:
            if model and model.end_lease(attempt):
                model.items[attempt.lease.job].token = attempt.lease.token
                first = model.doubts.pop(attempt.lease.job, worker)
                if first != worker:
                    self._mark(model, first)
                model.ends(attempt.lease.job, "finished")
                done = True
            elif not (model and model.repeated(attempt, "finished")):
                lost.append(attempt.member)
        if model:
            if done and known:
                del model.marks[worker]
            model.settle()
        ended = [(attempt.lease, Outcome(exit_code=0, seconds=1.0), b"") for attempt in attempts]
        assert list(read_members(self.call(self.calls[worker].ack(run, ended)))) == lost

    def _fail(self, attempts: list[Attempt], delay: float | None) -> None:
        run, worker, lost, failed = attempts[0].lease.run, attempts[0].worker, [], 0
        model = self.runs.get(run)
        self.moments += 1
        for attempt in attempts:
            if model and model.end_lease(attempt):
                first = model.doubts.pop(attempt.lease.job, worker)
                if first != worker:
                    model.items[attempt.lease.job].guilty = True
                    model.innocent[first] += 1
                    del model.marks[first]
                failed += model.fail(attempt, (1, self.moments) if delay == 0 else None, delay is not None)
            elif not (model and model.repeated(attempt, "failed", "scheduled")):
                lost.append(attempt.member)
        if model:
            model.settle()
        if model and failed:
            model.halt_if_failed_too_much()
        ended = [(attempt.lease, Outcome(exit_code=1), delay, b"eJwDAAAAAAE=") for attempt in attempts]
        assert list(read_members(self.call(self.calls[worker].fail(run, ended)))) == lost

    def _release(self, attempts: list[Attempt]) -> None:
        run, worker = attempts[0].lease.run, attempts[0].worker
        model = self.runs.get(run)
        back = [attempt.lease.job for attempt in attempts if model and model.end_lease(attempt)]
        if model:
            model.ready[:0] = back
            for job in back:
                model.items[job].status = "queued"
            model.settle()
        assert self.call(self.calls[worker].release(run, [a.lease for a in attempts])) == len(back)

    def _forfeit(self, attempts: list[Attempt]) -> None:
        run, worker = attempts[0].lease.run, attempts[0].worker
        model, back = self.runs.get(run), 0
        for attempt in reversed(attempts):
            if model and model.lost_but_not_failed(attempt):
                model.ready.insert(0, attempt.lease.job)
                model.items[attempt.lease.job].status = "queued"
                back += 1
        if model:
            model.settle()
        assert self.call(self.calls[worker].forfeit(run, [a.lease for a in attempts])) == back

    def _reserve(self, attempt: Attempt, names: str) -> None:
        reply = self.call(self.calls[attempt.worker].reserve(attempt.lease, list(names)))
        model, job = self.runs.get(attempt.lease.run), attempt.lease.job
        if not (model and attempt.member in model.leased and model.items[job].wanted):
            assert reply == b"lost"
            if model:
                model.end_lease(attempt)
                model.settle()
            return
        taken = [name for name in names if model.outputs.get(name, job) != job]
        if not taken:
            model.outputs.update(dict.fromkeys(names, job))
        assert isinstance(reply, list)
        assert reply[::3] == [name.encode() for name in taken]
        assert reply[1::3] == [model.outputs[name].encode() for name in taken]

    # Time

    @precondition(lambda self: any(model.leased or model.delayed for model in self.runs.values()))
    @rule(picks=PICKS)
    def time_passes(self, picks: list[int]) -> None:
        """Some leases expire, and every retry comes due."""
        for model in self.runs.values():
            for job in [job for job, due in model.delayed.items() if due is None]:
                assert self.redis.zadd(
                    KEYS.registry("scheduled", model.run), {job: self.past()}, xx=True, ch=True
                )
                model.delayed[job] = (0, self.moments)
        if self.any_held():
            for attempt in self.some_attempts(picks):
                centuries = 1 + attempt.begun
                deadline = {attempt.member: self.past() + centuries * HUNDRED_YEARS_SECONDS}
                assert self.redis.zadd(KEYS.registry("wip", attempt.lease.run), deadline, xx=True, ch=True)
                attempt.expired = self.moments

    # Somebody at a stock dashboard

    @precondition(lambda self: self.runs and all(model.items for model in self.runs.values()))
    @rule(picks=PICKS, what=st.sampled_from(["requeue", "requeue", "delete", "cancel", "empty", "suspend"]))
    def dashboard(self, picks: list[int], what: str) -> None:
        model = self.some_run(picks[0])
        job = self.some_jobs(model, picks[-1:])[0]
        item = model.items[job]
        if what == "requeue":
            self._requeue(picks[0])
        elif what == "empty":
            Queue(model.run, connection=self.redis).empty()
            for ready in list(model.ready):
                self._taken_away(model, ready, "deleted")
        elif what == "suspend":
            rq_suspend(self.redis)
            self.suspended = True
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
        paused = {name for name in WORKERS if self.redis.hexists(KEYS.node(name), "paused")}
        assert paused == self.paused

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
            for name in OF_STATES:
                pipe.zscore(f"ppss:{name}", run)
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
        assert [score is not None for score in moved[-3:]] == [model.state in at for at in OF_STATES.values()]
        self._check_items(model, moved[1 + len(REGISTRIES) : -4])
        fields = [(int(entry[b"s"]), entry[b"t"].decode(), int(entry[b"a"])) for _, entry in moved[-4]]
        assert Counter(fields) == model.events, run
        self._check_counts(model)
        doubts = {
            decoded(job): decoded(doubt).split(" ", 2)[2]
            for job, doubt in self.redis.hgetall(f"ppss:doubts:{run}").items()
        }
        assert {job: node for job, node in doubts.items() if model.items[job].wanted} == {
            job: node for job, node in model.doubts.items() if model.items[job].wanted
        }
        record = {decoded(key): int(value) for key, value in self.redis.hgetall(f"ppss:record:{run}").items()}
        assert record == {**model.innocent, **{f"{node}!": marks for node, marks in model.marks.items()}}

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
        model.notice()
        assert counts.state == model.state
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
        running = [a for a in model.leased.values() if a.begun and a.expired is None]
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
            self.call(scripts.Call(KEYS, "wish", (name, "resume")))
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
            assert self.call(calls.doubt(lease, Outcome(exit_code=127), None, in_a_row=1, proven=True)) == 0
            assert self.call(calls.release(run, [lease])) == 0
            assert self.call(calls.forfeit(run, [lease])) == 0
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
