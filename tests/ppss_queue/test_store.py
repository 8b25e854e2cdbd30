"""The lease engine, scenario by scenario. Time passes where a test rewrites the score of a lease or a retry."""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until
from redis import Redis
from rq.job import Job
from rq.queue import Queue
from rq.registry import FailedJobRegistry

from ppss_queue import scripts
from ppss_queue.address import Address
from ppss_queue.calls import WORKER_SILENCE_SECONDS, Calls, Claimed, read_claim, read_held, read_renewed
from ppss_queue.connection import Connection, Reply
from ppss_queue.errors import BadInput, ConnectFailed, ForeignData, NewerVersion, OutOfMemory, UnknownRun
from ppss_queue.keys import HUNDRED_YEARS_SECONDS, Keys
from ppss_queue.lists import ITEM_BYTES_MAX
from ppss_queue.model import RUN_VERSION, Lease, Outcome, RunSpec, RunState, job_id
from ppss_queue.replies import read_members
from ppss_queue.resources import NOTHING, Resources
from ppss_queue.rq_form import encode_item, kept_output, read_kept_output, shown
from ppss_queue.rules import Halt, RetryRule
from ppss_queue.store import CHUNK, FILLING_SECONDS, Counts, Store

KEYS = Keys()
PLAIN = RunSpec(command="true")
DONE = Outcome(exit_code=0, seconds=2.0)
FAILED = Outcome(exit_code=1, seconds=3.0)


class Worker:
    """Calls of one worker, each waited for."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self.calls = Calls(KEYS, name, f"nonce-{name.replace(':', '-')}")

    def call(self, call: scripts.Call) -> Reply:
        return scripts.run(self.connection, call)

    def look(self, want: int = 1, idle: int | None = None, *runs: str, **told: Any) -> Claimed:
        call = self.calls.claim(want, want if idle is None else idle, runs=runs, **told)
        return read_claim(self.call(call))

    def claim(self, want: int = 1, idle: int | None = None) -> list[Lease]:
        return list(self.look(want, idle).leases)

    def start(self, *leases: Lease) -> tuple[str, ...]:
        return read_members(self.call(self.calls.start(leases[0].run, [(lease, 1) for lease in leases])))

    def begin(self, *leases: Lease) -> None:
        self.connection.execute_many([self.calls.begin(lease) for lease in leases])

    def renew(self, *leases: Lease) -> tuple[str, ...]:
        run = leases[0].run
        return read_renewed(run, self.call(self.calls.renew(run, (lease.member for lease in leases)))).lost

    def ack(self, *leases: Lease, output: bytes = b"") -> tuple[str, ...]:
        ended = [(lease, DONE, output) for lease in leases]
        return read_members(self.call(self.calls.ack(leases[0].run, ended)))

    def fail(self, *leases: Lease, delay: float | None = None, output: bytes = b"") -> tuple[str, ...]:
        ended = [(lease, FAILED, delay, output) for lease in leases]
        return read_members(self.call(self.calls.fail(leases[0].run, ended)))

    def release(self, *leases: Lease) -> Reply:
        return self.call(self.calls.release(leases[0].run, leases))

    def reserve(self, lease: Lease, *names: str) -> Reply:
        return self.call(self.calls.reserve(lease, names))

    def heartbeat(self) -> None:
        self.call(self.calls.heartbeat({"hostname": "here"}))


class Bench:
    """One Redis, and short ways to do things to it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connection = Connection.open(Address.parse(address))
        self.store = Store(self.connection, KEYS)
        self.redis = Redis.from_url(address)

    def run(self, run: str, items: int = 3, spec: RunSpec = PLAIN, *, opened: bool = True) -> str:
        assert self.store.create(run, spec)
        names = (encode_item(f"item {number}") for number in range(1, items + 1))
        while batch := list(islice(names, 500)):
            self.store.add(run, batch)
        if opened:
            self.store.open(run)
        return run

    def worker(self, name: str = "w") -> Worker:
        return Worker(self.connection, name)

    def counts(self, run: str) -> Counts:
        (counts,) = self.store.counts([run])
        return counts

    def states(self, run: str) -> dict[str, int]:
        """The states that are not empty."""
        counts = self.counts(run)
        names = ("ready", "leased", "delayed", "succeeded", "failed", "cancelled")
        states = {name: getattr(counts, name) for name in names}
        assert sum(states.values()) == counts.total
        return {name: number for name, number in states.items() if number}

    def now(self) -> float:
        seconds, microseconds = self.redis.time()
        return float(seconds) + microseconds / 1e6

    def expire(self, *leases: Lease) -> None:
        """The time of these leases is over."""
        for lease in leases:
            wip = KEYS.registry("wip", lease.run)
            centuries = self.redis.zscore(wip, lease.member) // HUNDRED_YEARS_SECONDS  # two: it has begun
            deadline = {lease.member: self.now() + centuries * HUNDRED_YEARS_SECONDS}
            assert self.redis.zadd(wip, deadline, xx=True, ch=True)

    def come_due(self, run: str) -> None:
        for job in self.redis.zrange(KEYS.registry("scheduled", run), 0, -1):
            assert self.redis.zadd(KEYS.registry("scheduled", run), {job: self.now()}, xx=True, ch=True)

    def fail_all(self, run: str, worker: Worker) -> None:
        while leases := list(worker.look(CHUNK, None, run).leases):
            worker.start(*leases)
            worker.fail(*leases)

    def remaining(self) -> set[str]:
        """Keys that are there although no run is."""
        return {key.decode() for key in self.redis.scan_iter()} - KEYS.permanent

    def close(self) -> None:
        self.connection.close()
        self.redis.close()


@pytest.fixture
def bench(address: str) -> Iterator[Bench]:
    bench = Bench(address)
    yield bench
    bench.close()


def seqs(leases: Sequence[Lease]) -> list[int]:
    return [lease.item.seq for lease in leases]


# Claims


def test_two_claimers_at_the_same_time_never_get_the_same_item(bench: Bench) -> None:
    bench.run("r", 600)
    got: list[list[int]] = [[], []]

    def claim_all(number: int) -> None:
        with Connection.open(Address.parse(bench.address)) as connection:
            worker = Worker(connection, f"w{number}")
            while leases := worker.claim(7):
                got[number] += seqs(leases)

    threads = [threading.Thread(target=claim_all, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got[0] + got[1]) == list(range(1, 601))


def test_items_are_claimed_in_input_order(bench: Bench) -> None:
    bench.run("r", 5)
    assert seqs(bench.worker().claim(2)) + seqs(bench.worker().claim(9)) == [1, 2, 3, 4, 5]


def test_released_items_come_back_at_the_front_in_their_order(bench: Bench) -> None:
    bench.run("r", 6)
    worker = bench.worker()
    leases = worker.claim(4)
    assert worker.release(*leases[1:]) == 3
    assert seqs(worker.claim(9)) == [2, 3, 4, 5, 6]


def test_a_filling_run_cannot_be_claimed_until_it_is_opened(bench: Bench) -> None:
    bench.run("r", 2, opened=False)
    assert bench.worker().look().open_runs == 0
    assert bench.worker().claim() == []
    assert bench.store.open("r") is RunState.OPEN
    assert seqs(bench.worker().claim(5)) == [1, 2]


def test_items_added_to_an_open_run_are_claimable_at_once(bench: Bench) -> None:
    bench.run("r", 1)
    assert bench.store.add("r", [encode_item("late")]) == 2
    assert [lease.item.name for lease in bench.worker().claim(5)] == ["item 1", "late"]


def test_a_claim_is_no_more_than_a_fair_share_unless_slots_are_idle(bench: Bench) -> None:
    """Two workers, ten ready items: a share of prefetching is ten by twice the workers, rounded up."""
    bench.run("r", 12)
    first, second = bench.worker("w1"), bench.worker("w2")
    assert len(first.claim(1) + second.claim(1)) == 2
    leases = first.claim(256, idle=1)
    assert len(leases) == 3
    first.release(*leases)
    assert len(first.claim(256, idle=5)) == 5


def test_a_worker_counts_itself_in_its_fair_share_at_its_first_claim(bench: Bench) -> None:
    bench.run("r", 11)
    assert len(bench.worker("w1").claim(1)) == 1
    assert len(bench.worker("w2").claim(256, idle=1)) == 3


def test_a_paused_run_hands_nothing_out_but_what_runs_goes_on(bench: Bench) -> None:
    bench.run("r", 3)
    worker = bench.worker()
    (lease,) = worker.claim()
    assert bench.store.pause("r") is RunState.OPEN
    assert worker.claim() == []
    assert worker.look(1, 1, "r").open_runs == 1  # whoever serves only this run waits for it
    assert worker.look(1, 1).open_runs == 0
    assert worker.start(lease) == worker.renew(lease) == worker.ack(lease) == ()
    assert bench.store.resume("r") is RunState.PAUSED
    assert seqs(worker.claim(5)) == [2, 3]


def test_a_suspended_rq_hands_nothing_out_and_says_until_when(bench: Bench) -> None:
    bench.run("r")
    bench.redis.set(KEYS.suspended, 1, ex=100)
    claimed = bench.worker().look()
    assert claimed.suspended and not claimed.leases
    assert claimed.wake_seconds == pytest.approx(100, abs=20)
    bench.redis.persist(KEYS.suspended)
    assert bench.worker().look().wake_seconds is None
    bench.redis.delete(KEYS.suspended)
    assert len(bench.worker().claim()) == 1


def test_a_run_without_a_command_waits_for_a_worker_that_has_one(bench: Bench) -> None:
    bench.run("r", spec=RunSpec(command=None))
    assert bench.worker().look().open_runs == 0
    assert len(bench.worker().look(1, 1, has_command=True).leases) == 1


def test_a_claim_says_when_to_look_again(bench: Bench) -> None:
    bench.run("r", 2, RunSpec(command="true", retry=RetryRule(1), visibility_seconds=500))
    worker = bench.worker()
    first, second = worker.claim(2)
    assert worker.look().wake_seconds == pytest.approx(500, abs=20)
    worker.start(first)
    worker.fail(first, delay=100.0)
    assert worker.look().wake_seconds == pytest.approx(100, abs=20)
    worker.ack(second)
    bench.come_due("r")
    worker.ack(*worker.claim())
    assert worker.look().wake_seconds is None


# Versions


@pytest.mark.parametrize("content", ["not a number", ["a list"]])
def test_a_foreign_schema_key_is_refused(bench: Bench, content: str | list[str]) -> None:
    if isinstance(content, str):
        bench.redis.set(KEYS.schema, content)
    else:
        bench.redis.rpush(KEYS.schema, *content)
    with pytest.raises(ForeignData):
        bench.store.create("r", RunSpec())
    with pytest.raises(ForeignData):
        bench.worker().claim()
    assert bench.remaining() == set()


def test_a_newer_schema_is_refused(bench: Bench) -> None:
    bench.run("r")
    bench.redis.incr(KEYS.schema)
    with pytest.raises(NewerVersion):
        bench.store.create("s", RunSpec())
    with pytest.raises(NewerVersion):
        bench.worker().claim()
    assert bench.states("r") == {"ready": 3}


def test_a_run_of_a_newer_version_is_named_and_not_handed_out(bench: Bench) -> None:
    bench.run("newer")
    bench.run("mine")
    bench.redis.hset(KEYS.run("newer"), "version", RUN_VERSION + 1)
    claimed = bench.worker().look(9)
    assert claimed.newer_run == "newer"
    assert {lease.run for lease in claimed.leases} == {"mine"}
    assert bench.states("newer") == {"ready": 3}


# What items need, and room for it

PAIR = RunSpec(command="true", needs=Resources(cpus=2))


@pytest.mark.parametrize(
    ("free", "count"),
    [
        (Resources(4, 8, 64), 4),
        (Resources(3, 8, 64), 3),
        (Resources(4, 5, 64), 2),
        (Resources(4, 8, 31), 1),
        (Resources(4, 8, 15), 0),
        (Resources(0, 8, 64), 0),
        (Resources(-2, 8, 64), 0),
        (NOTHING, 0),
    ],
)
def test_a_claim_gives_as_many_items_as_there_is_room_for(bench: Bench, free: Resources, count: int) -> None:
    bench.run("r", 9, RunSpec(command="true", needs=Resources(1, 2, 16)))
    claimed = bench.worker().look(9, free=[free])
    assert len(claimed.leases) == count
    assert bench.states("r") == {state: n for state, n in (("ready", 9 - count), ("leased", count)) if n}


def test_items_that_say_nothing_are_given_where_there_is_no_room_at_all(bench: Bench) -> None:
    bench.run("plain")
    claimed = bench.worker().look(9, free=[NOTHING])
    assert len(claimed.leases) == 3 and not claimed.waiting


def test_runs_of_one_claim_share_the_room_in_their_order(bench: Bench) -> None:
    for run in ("a", "b"):
        bench.run(run, 9, PAIR)
    claimed = bench.worker().look(9, free=[Resources(cpus=7)])
    assert Counter(lease.run for lease in claimed.leases) == {"a": 3}
    claimed = bench.worker().look(3, free=[Resources(cpus=9)])
    assert Counter(lease.run for lease in claimed.leases) == {"b": 3}, "the pass of one moves on as ever"


def test_a_claim_tells_which_runs_wait_for_room_and_what_they_need(bench: Bench) -> None:
    bench.run("big", 1, RunSpec(command="true", needs=Resources(2, 0, 8 * 2**40)))
    bench.run("plain", 1)
    claimed = bench.worker().look(1, free=[Resources(1, 9, 2**50)])
    assert [lease.run for lease in claimed.leases] == ["plain"], "others go on"
    assert claimed.waiting == {"big": Resources(2, 0, 8 * 2**40)}
    assert claimed.open_runs == 2, "the end of a run that waits is waited for"
    assert bench.worker().look(1, free=[Resources(2, 0, 2**50)]).waiting == {}


def test_a_run_that_has_nothing_to_hand_out_does_not_wait_for_room(bench: Bench) -> None:
    bench.run("pair", 1, replace(PAIR, retry=RetryRule(1)))
    worker = bench.worker()
    (lease,) = worker.look(1, free=[Resources(cpus=2)]).leases
    assert not worker.look(1).waiting
    worker.fail(lease, delay=1000)
    assert not worker.look(1).waiting
    bench.redis.zadd(KEYS.registry("scheduled", "pair"), {lease.job: 1})
    claimed = worker.look(1)
    assert claimed.waiting == {"pair": PAIR.needs}
    assert claimed.wake_seconds is None, "a retry that is due waits for room and not for a moment"


def test_a_lost_item_waits_for_room_too(bench: Bench) -> None:
    bench.run("pair", 1, PAIR)
    (lost,) = bench.worker("old").look(1, free=[Resources(cpus=2)]).leases
    bench.redis.zadd(KEYS.registry("wip", "pair"), {lost.member: HUNDRED_YEARS_SECONDS + 1})
    new = bench.worker("new")
    assert new.look(1).waiting == {"pair": PAIR.needs}
    assert bench.counts("pair").leased == 1, "nobody took it"
    assert [lease.item for lease in new.look(1, free=[Resources(cpus=2)]).leases] == [lost.item]


def test_what_is_kept_for_a_run_is_not_given_to_others(bench: Bench) -> None:
    bench.run("one", 9, RunSpec(command="true", needs=Resources(cpus=1)))
    bench.run("pair", 1, PAIR)
    worker = bench.worker()
    claimed = worker.look(9, free=[Resources(cpus=1)], kept_for="pair")
    assert not claimed.leases and claimed.waiting.keys() == {"one", "pair"}
    claimed = worker.look(9, free=[Resources(cpus=3)], kept_for="pair")
    assert Counter(lease.run for lease in claimed.leases) == {"one": 1, "pair": 1}
    assert len(worker.look(9, free=[Resources(cpus=3)], kept_for="gone").leases) == 3


def test_an_item_gets_its_room_on_one_host(bench: Bench) -> None:
    for run, cpus in (("a", 3), ("b", 1)):
        bench.run(run, 9, RunSpec(command="true", needs=Resources(cpus=cpus)))
    hosts = [Resources(cpus=cpus) for cpus in (1, 5, 0, 3, 1)]
    claimed = bench.worker().look(9, free=hosts)
    assert Counter(lease.run for lease in claimed.leases) == {"a": 2, "b": 1 + 2 + 0 + 0 + 1}
    assert claimed.waiting.keys() == {"a", "b"}
    bench.run("c", 9, PAIR)
    claimed = bench.worker().look(9, 9, "c", free=hosts[1:], kept_for="a")
    assert len(claimed.leases) == (5 - 3) // 2 + 3 // 2, "room is kept on the first only"


def test_a_worker_that_knows_nothing_of_needs_is_told_that_the_run_is_newer(bench: Bench) -> None:
    bench.run("pair", 3, PAIR)
    bench.run("plain")
    worker = bench.worker()
    call = worker.calls.claim(9, 9, free=[Resources(cpus=9)])
    claimed = read_claim(worker.call(replace(call, arguments=(call.arguments[0], 1, *call.arguments[2:]))))
    assert claimed.newer_run == "pair" and not claimed.waiting
    assert {lease.run for lease in claimed.leases} == {"plain"}


# Fairness among runs


@pytest.mark.parametrize(
    ("priorities", "expected"), [((1, 1), (40, 40)), ((3, 1), (60, 20)), ((1, 4), (16, 64))]
)
@pytest.mark.parametrize("want", [1, 4])
def test_open_runs_get_numbers_by_their_priority(
    bench: Bench, priorities: tuple[int, int], expected: tuple[int, int], want: int
) -> None:
    for run, priority in zip("ab", priorities, strict=True):
        bench.run(run, 100, RunSpec(command="true", priority=priority))
    got = Counter(lease.run for _ in range(80 // want) for lease in bench.worker().claim(want))
    assert (got["a"], got["b"]) == pytest.approx(expected, abs=want * max(priorities))


def test_a_small_run_enqueued_later_is_not_starved_by_a_huge_one(bench: Bench) -> None:
    bench.run("huge", 1500)
    assert len(bench.worker().claim(400)) == 400
    bench.run("small", 10)
    got = Counter(lease.run for _ in range(20) for lease in bench.worker().claim(1))
    assert got == {"huge": 10, "small": 10}


def test_a_run_that_had_nothing_to_hand_out_saves_up_no_claims(bench: Bench) -> None:
    """Else a run whose items are long, and each new run with it, would shut out all others for as long again."""
    bench.run("long", 1)
    (long,) = bench.worker().look(1, 1, "long").leases
    bench.run("busy", 300)
    for _ in range(100):
        bench.worker().claim(1)
    bench.run("new", 100)
    bench.store.add("long", [encode_item(str(number)) for number in range(100)])
    got = Counter(lease.run for _ in range(30) for lease in bench.worker().claim(1))
    assert got["busy"] >= 9, got
    assert bench.worker().ack(long) == ()


@pytest.mark.parametrize("kind", ["newer", "without a command"])
def test_a_run_that_no_worker_here_can_serve_gives_no_head_start_to_new_ones(bench: Bench, kind: str) -> None:
    bench.run("waiting", 5, RunSpec(command=None) if kind == "without a command" else PLAIN)
    if kind == "newer":
        bench.redis.hincrby(KEYS.run("waiting"), "version", 1)
    bench.run("busy", 300)
    for _ in range(100):
        bench.worker().claim(1)
    bench.run("new", 100)
    got = Counter(lease.run for _ in range(20) for lease in bench.worker().claim(1))
    assert got == {"busy": 10, "new": 10}


def test_a_resumed_run_does_not_catch_up_on_what_it_missed(bench: Bench) -> None:
    bench.run("paused", 100)
    bench.run("busy", 300)
    bench.store.pause("paused")
    bench.worker().claim(100)
    bench.store.resume("paused")
    got = Counter(lease.run for _ in range(20) for lease in bench.worker().claim(1))
    assert got == {"paused": 10, "busy": 10}


# Tokens


def test_an_expired_lease_still_counts_until_another_claim_takes_the_item(bench: Bench) -> None:
    bench.run("r", 5)
    worker = bench.worker()
    leases = worker.claim(5)
    acked, failed, released, renewed, reserved = leases
    worker.start(*leases)
    bench.expire(*leases)
    assert bench.counts("r").expired == 5
    assert worker.reserve(reserved, "out") == []
    assert worker.ack(acked) == worker.fail(failed) == worker.renew(renewed) == ()
    assert worker.release(released) == 1
    assert bench.states("r") == {"ready": 1, "leased": 2, "succeeded": 1, "failed": 1}
    assert bench.counts("r").expired == 1


def test_a_token_is_worth_nothing_once_another_claim_took_the_item(bench: Bench) -> None:
    bench.run("r", 1)
    old, new = bench.worker("old"), bench.worker("new")
    (lost,) = old.claim()
    old.start(lost)
    bench.expire(lost)
    (held,) = new.claim()
    assert (held.attempts, held.item) == (1, lost.item)
    assert old.start(lost) == old.renew(lost) == old.ack(lost) == old.fail(lost) == (lost.member,)
    assert old.release(lost) == 0
    assert old.reserve(lost, "out") == b"lost"
    assert new.start(held) == new.ack(held) == ()
    assert old.ack(lost) == old.fail(lost) == (lost.member,)
    assert bench.states("r") == {"succeeded": 1}


def test_an_item_that_has_begun_counts_though_nobody_was_shown_it(bench: Bench) -> None:
    """Its command may have killed its worker at once: were it not counted, it would go round for ever."""
    bench.run("r", 2, RunSpec(command="true", max_lost=1))
    for attempts in range(2):
        worker = bench.worker(f"w{attempts}")
        begun, waiting = worker.claim(2)
        assert (begun.attempts, waiting.attempts) == (attempts, 0)
        worker.begin(begun)
        assert bench.counts("r").running == 1
        bench.expire(begun, waiting)
        assert bench.counts("r").expired == 2
    (waiting,) = bench.worker("last").claim(2)
    assert waiting.item.seq == 2
    assert bench.states("r") == {"leased": 1, "failed": 1}
    assert bench.counts("r").lost == 2


def test_what_is_over_at_once_has_its_attempt_and_its_place_in_rqs_lists(bench: Bench) -> None:
    bench.run("r", 3, RunSpec(command="true", retry=RetryRule(1)))
    worker = bench.worker()
    acked, failed, released = leases = worker.claim(3)
    worker.begin(*leases)
    assert worker.ack(acked) == worker.fail(failed, delay=1000.0) == ()
    assert worker.release(released) == 1
    assert worker.ack(acked) == worker.fail(failed, delay=1000.0) == (), "repeated"
    jobs = [bench.redis.hgetall(KEYS.job(job_id("r", seq))) for seq in (1, 2, 3)]
    assert [job[b"attempts"] for job in jobs] == [b"1"] * 3
    assert jobs[0][b"worker_name"] == b"w" and jobs[0][b"started_at"] < jobs[0][b"ended_at"]
    assert bench.states("r") == {"ready": 1, "delayed": 1, "succeeded": 1}


def test_begin_leaves_a_renewed_deadline_as_it_is(bench: Bench) -> None:
    """Regression: it set that of the claim, so an item that had been held for a while was soon given away."""
    bench.run("r", 1)
    worker = bench.worker()
    (lease,) = worker.claim()
    wip = KEYS.registry("wip", "r")
    renewed = bench.now() + 1000 + HUNDRED_YEARS_SECONDS
    bench.redis.zadd(wip, {lease.member: renewed}, xx=True)
    worker.begin(lease)
    assert bench.redis.zscore(wip, lease.member) == pytest.approx(renewed + HUNDRED_YEARS_SECONDS, abs=1)
    assert worker.start(lease) == ()
    assert bench.redis.zscore(wip, lease.member) == pytest.approx(renewed + HUNDRED_YEARS_SECONDS, abs=1)


def test_begin_changes_nothing_of_a_lease_that_is_lost(bench: Bench) -> None:
    bench.run("r", 1)
    worker = bench.worker()
    (lease,) = worker.claim()
    bench.expire(lease)
    (held,) = bench.worker("new").claim()
    worker.begin(lease)
    assert bench.redis.zrange(KEYS.registry("wip", "r"), 0, -1) == [held.member.encode()]
    assert bench.counts("r").running == 0


def test_what_the_claimer_itself_runs_is_not_lost(bench: Bench) -> None:
    """It was frozen or cut off longer than its leases last, and has a free slot: it must not take its own item
    away from itself. What it has not started it may as well get anew."""
    bench.run("r", 3)
    worker = bench.worker()
    running, waiting = worker.claim(2)
    worker.start(running)
    bench.expire(running, waiting)
    assert seqs(worker.claim(3)) == [waiting.item.seq, 3]
    counts = bench.counts("r")
    assert (counts.leased, counts.expired, counts.lost) == (3, 0, 0)
    assert worker.ack(running) == ()
    assert worker.ack(waiting) == (waiting.member,)


def test_a_worker_can_ask_what_it_holds_and_hear_of_nobody_elses(bench: Bench) -> None:
    bench.run("r", 4)
    one, other = bench.worker("a"), bench.worker("b")
    first, second, third = one.claim(3)
    other.claim(1)
    one.start(second)
    one.ack(third)
    held = read_held("r", one.call(one.calls.held("r")))
    assert {lease.member for lease in held} == {first.member, second.member}
    assert one.release(*held) == 2
    assert bench.states("r") == {"ready": 2, "leased": 1, "succeeded": 1}


def test_a_repeated_outcome_is_no_loss_and_is_recorded_once(bench: Bench) -> None:
    bench.run("r", 2)
    worker = bench.worker()
    acked, failed = leases = worker.claim(2)
    worker.start(*leases)
    for _ in range(3):
        assert worker.ack(acked) == worker.fail(failed) == ()
    assert worker.fail(acked) == (acked.member,)
    assert worker.ack(failed) == (failed.member,)
    events = [fields for _, fields in bench.redis.xrange(KEYS.events("r"))]
    assert [fields[b"t"] for fields in events] == [b"succeeded", b"failed", b"done"]
    assert bench.counts("r").work_seconds == DONE.seconds + FAILED.seconds


def test_a_lease_that_expired_before_its_start_costs_the_item_nothing(bench: Bench) -> None:
    bench.run("r", 1, RunSpec(command="true", max_lost=0))
    for _ in range(3):
        (lease,) = bench.worker().claim()
        assert (lease.attempts, lease.failures) == (0, 0)
        bench.expire(lease)
    assert bench.counts("r").lost == 0


def test_an_item_whose_worker_died_too_often_has_failed_with_a_reason(bench: Bench) -> None:
    bench.run("r", 1, RunSpec(command="true", max_lost=2))
    for attempts in range(3):
        worker = bench.worker(f"w{attempts}")
        (lease,) = worker.claim()
        assert lease.attempts == attempts
        worker.start(lease)
        bench.expire(lease)
    worker = bench.worker("last")
    assert worker.claim() == []
    assert bench.states("r") == {"failed": 1}
    assert bench.counts("r").state is RunState.DONE
    outcome = Outcome.from_json(bench.redis.hget(KEYS.job(job_id("r", 1)), "outcome"))
    assert outcome.failure == "lost 3 times: its worker died"
    assert bench.store.retry("r") == 1  # by hand: all is forgiven
    (lease,) = worker.claim()
    worker.start(lease)
    bench.expire(lease)
    assert seqs(bench.worker("other").claim()) == [1]


def test_lost_leases_do_not_use_up_retries(bench: Bench) -> None:
    bench.run("r", 1, RunSpec(command="true", retry=RetryRule(1)))
    dead, worker = bench.worker("dead"), bench.worker()
    (lease,) = dead.claim()
    dead.start(lease)
    bench.expire(lease)
    for failures in range(2):
        (lease,) = worker.claim()
        assert lease.failures == failures
        worker.start(lease)
        worker.fail(lease, delay=0.0)
    assert bench.states("r") == {"failed": 1}


def test_a_retry_is_not_claimed_before_it_is_due(bench: Bench) -> None:
    bench.run("r", 1, RunSpec(command="true", retry=RetryRule(1)))
    worker = bench.worker()
    (lease,) = worker.claim()
    worker.start(lease)
    worker.fail(lease, delay=1000.0)
    assert worker.claim() == []
    assert bench.states("r") == {"delayed": 1}
    bench.come_due("r")
    (again,) = worker.claim()
    assert (again.attempts, again.failures) == (1, 1)


def test_the_first_item_to_reserve_a_file_name_owns_it(bench: Bench) -> None:
    bench.run("r", 2)
    worker = bench.worker()
    first, second = worker.claim(2)
    assert worker.reserve(first, "a", "b") == []
    assert worker.reserve(first, "a") == []
    assert worker.reserve(second, "b", "c") == [b"b", first.job.encode(), b"item 1"]
    assert worker.reserve(first, "c") == []  # all or none: the second got none


# Steering runs


def test_retry_moves_thousands_of_failed_items_in_the_order_they_failed(bench: Bench) -> None:
    total = 2 * CHUNK + 100
    bench.run("r", total)
    worker = bench.worker()
    bench.fail_all("r", worker)
    assert bench.counts("r").state is RunState.DONE
    assert bench.store.retry("r") == total
    assert bench.counts("r").state is RunState.OPEN
    assert bench.states("r") == {"ready": total}
    (lease,) = worker.claim()
    assert (lease.item.seq, lease.attempts, lease.failures) == (1, 1, 0)


def test_what_fails_again_during_a_retry_is_left_alone(bench: Bench) -> None:
    bench.run("r", 3)
    worker = bench.worker()
    bench.fail_all("r", worker)
    first = scripts.Call(KEYS, "retry", ("r", 2, "")).command_with_source
    moved, cutoff, found = bench.connection.execute(*first)
    assert (moved, found) == (2, 2)
    bench.fail_all("r", worker)
    again = scripts.Call(KEYS, "retry", ("r", 2, cutoff))
    assert scripts.run(bench.connection, again) == [1, cutoff, 1]
    assert scripts.run(bench.connection, again) == [0, cutoff, 0]
    assert bench.states("r") == {"ready": 1, "failed": 2}


def test_retry_moves_all_that_failed_when_the_clock_of_the_server_went_back(bench: Bench) -> None:
    bench.run("r", 1)
    bench.fail_all("r", bench.worker())
    bench.redis.zincrby(KEYS.registry("failed", "r"), 3600, job_id("r", 1))
    assert bench.store.retry("r") == 1


def test_retry_goes_on_behind_a_chunk_of_deleted_items(bench: Bench) -> None:
    bench.run("r", CHUNK + 1)
    bench.fail_all("r", bench.worker())
    for seq in range(1, CHUNK + 1):
        bench.redis.delete(KEYS.job(job_id("r", seq)))
    assert bench.store.retry("r") == 1


def test_last_is_the_run_made_last_when_the_clock_of_the_server_went_back(bench: Bench) -> None:
    bench.run("b")
    bench.redis.zincrby(KEYS.runs, 3600, "b")
    bench.run("a")
    assert bench.store.resolve("last") == "a"


def test_room_for_output_is_given_back_by_a_retry(bench: Bench) -> None:
    bench.run("r", 1)
    worker = bench.worker()
    (lease,) = worker.claim()
    worker.start(lease)
    worker.fail(lease, output=kept_output(b"x" * 1000))
    assert int(bench.redis.hget(KEYS.run("r"), "kept_bytes") or 0) > 0
    bench.store.retry("r")
    assert int(bench.redis.hget(KEYS.run("r"), "kept_bytes") or 0) == 0


@pytest.mark.parametrize("job", ["3f2a-uuid-abcdef", "r-foo", "plain"])
def test_jobs_that_others_put_among_the_items_are_dropped_and_break_nothing(bench: Bench, job: str) -> None:
    """With rq.Queue(run).enqueue or enqueue_in, or by hand; a worker that met one ended with a traceback."""
    bench.run("r", 3)
    bench.redis.hset(KEYS.job(job), mapping={"status": "queued", "description": "f()", "origin": "r"})
    bench.redis.zadd(KEYS.registry("scheduled", "r"), {job: 1})
    bench.redis.zadd(KEYS.registry("wip", "r"), {job: 1})
    bench.redis.linsert(KEYS.queue("r"), "BEFORE", job_id("r", 2), job)
    worker = bench.worker()
    assert seqs(worker.claim(2) + worker.claim(2)) == [1, 2, 3]
    bench.redis.rpush(KEYS.queue("r"), job)
    bench.store.cancel("r")
    assert bench.states("r") == {"cancelled": 3}


def test_a_cancel_that_was_broken_off_is_ended_by_tidy(bench: Bench) -> None:
    bench.run("r", CHUNK + 5)
    scripts.run(bench.connection, scripts.Call(KEYS, "cancel", ("r", 1)))
    assert bench.states("r") == {"ready": CHUNK + 4, "cancelled": 1}
    bench.store.tidy()
    assert bench.states("r") == {"cancelled": CHUNK + 5}


def test_a_tiny_percentage_of_failures_halts_too(bench: Bench) -> None:
    bench.run("r", 4, RunSpec(command="true", halt=Halt.parse("soon,fail=0.00002%")))
    worker = bench.worker()
    leases = worker.claim(3)
    worker.start(*leases)
    worker.fail(*leases)
    assert bench.counts("r").reason == "halted soon: 3 items failed"


def test_retry_of_single_items_moves_only_those_that_failed(bench: Bench) -> None:
    bench.run("r", 4)
    worker = bench.worker()
    leases = worker.claim(4)
    worker.fail(*leases[:2])
    worker.ack(leases[2])
    assert bench.store.retry("r", []) == 0
    assert bench.store.retry("r", [2, 3, 4, 99]) == 1
    assert bench.states("r") == {"ready": 1, "leased": 1, "succeeded": 1, "failed": 1}


def test_cancel_ends_thousands_of_items_in_every_state(bench: Bench) -> None:
    total = 2 * CHUNK + 100
    bench.run("r", total, RunSpec(command="true", retry=RetryRule(1)))
    worker = bench.worker()
    succeeded, failed, delayed, started, *unstarted = worker.claim(CHUNK + 50)
    worker.start(succeeded, failed, delayed, started)
    worker.ack(succeeded)
    worker.fail(failed)
    worker.fail(delayed, delay=1000.0)
    bench.store.cancel("r")
    assert bench.states("r") == {"succeeded": 1, "failed": 1, "cancelled": total - 2}
    assert bench.redis.zcard(KEYS.registry("canceled", "r")) == total - 2
    assert bench.counts("r").state is RunState.CANCELLED
    with pytest.raises(BadInput, match="Run r is cancelled"):
        bench.store.retry("r")
    with pytest.raises(BadInput, match="Run r is cancelled"):
        bench.store.add("r", [b"late"])
    assert worker.ack(started) == (started.member,)
    assert worker.start(unstarted[0]) == (unstarted[0].member,)
    assert worker.release(*unstarted) == 0
    assert bench.redis.keys("rq:execution*") == []
    bench.store.cancel("r")  # once more is no error


def test_a_done_run_cannot_be_cancelled(bench: Bench) -> None:
    bench.run("r", 0)
    with pytest.raises(BadInput, match="Run r is done"):
        bench.store.cancel("r")


def test_cancelled_items_are_ended_wherever_they_are(bench: Bench) -> None:
    bench.run("r", 5, RunSpec(command="true", retry=RetryRule(1)))
    worker = bench.worker()
    started, delayed, succeeded, unstarted = worker.claim(4)
    worker.start(started, delayed, succeeded)
    worker.fail(delayed, delay=1000.0)
    worker.ack(succeeded)
    assert bench.store.cancel_items("r", [1, 2, 3, 4, 5, 99]) == 4
    assert bench.states("r") == {"succeeded": 1, "cancelled": 4}
    assert bench.counts("r").state is RunState.DONE
    assert worker.renew(started, unstarted) == (started.member, unstarted.member)


def test_purge_forgets_thousands_of_items_in_every_state(bench: Bench) -> None:
    total = 2 * CHUNK + 500
    bench.run("r", total, RunSpec(command="true", retry=RetryRule(1), name="name"))
    worker = bench.worker()
    succeeded, failed, delayed, started, *_ = leases = worker.claim(50)
    worker.start(*leases)
    worker.reserve(started, "out")
    worker.ack(succeeded, output=kept_output(b"printed"))
    worker.fail(failed, output=kept_output(b"printed"))
    worker.fail(delayed, delay=1000.0)
    with pytest.raises(BadInput, match="Run r is open"):
        bench.store.purge("r")
    bench.store.cancel("r")
    bench.store.purge("r")
    worker.call(worker.calls.retire(["r"]))
    assert bench.remaining() == set()


def test_a_purge_is_seen_at_once_and_ended_by_tidy_if_its_caller_died(bench: Bench) -> None:
    bench.run("r", 5)
    bench.store.cancel("r")
    assert scripts.run(bench.connection, scripts.Call(KEYS, "purge", ("r", 2))) == 3
    assert bench.store.runs() == []
    with pytest.raises(UnknownRun):
        bench.store.resolve("r")
    bench.store.tidy()
    assert bench.remaining() == set()


def test_late_calls_of_a_worker_leave_no_trace_of_a_purged_run(bench: Bench) -> None:
    bench.run("r", 1)
    worker = bench.worker()
    (lease,) = worker.claim()
    worker.start(lease)
    bench.store.cancel("r")
    bench.store.purge("r")
    lost = (lease.member,)
    assert worker.start(lease) == worker.renew(lease) == worker.ack(lease) == worker.fail(lease) == lost
    assert worker.release(lease) == 0
    worker.call(worker.calls.retire(["r"]))
    assert bench.remaining() == set()


def test_an_abandoned_filling_is_purged_by_tidy_and_a_live_one_is_not(bench: Bench) -> None:
    bench.run("abandoned", 3, opened=False)
    bench.run("alive", 3, opened=False)
    for run in ("abandoned", "alive"):
        bench.redis.zadd("ppss:filling", {run: bench.now() - 1})
    bench.store.add("alive", [])
    assert bench.redis.zscore("ppss:filling", "alive") == pytest.approx(bench.now() + FILLING_SECONDS, abs=20)
    with pytest.raises(BadInput, match="Run alive is filling"):
        bench.store.purge("alive")
    bench.store.tidy()
    assert bench.store.runs() == ["alive"]
    with pytest.raises(UnknownRun):
        bench.store.add("abandoned", [encode_item("late")])
    bench.store.cancel("alive")
    bench.store.purge("alive")
    assert bench.remaining() == set()


def test_a_finished_run_is_kept_for_its_time_and_then_purged(bench: Bench) -> None:
    for run, keep in (("short", 0.0), ("long", 1000.0)):
        bench.run(run, 0, RunSpec(command="true", keep_seconds=keep))
    bench.store.tidy()
    assert bench.store.runs() == ["long"]


def test_a_run_is_done_when_nothing_is_left_and_opens_again_with_new_work(bench: Bench) -> None:
    bench.run("r", 1)
    worker = bench.worker()
    bench.fail_all("r", worker)
    assert bench.counts("r").state is RunState.DONE
    assert bench.store.retry("r") == 1
    assert bench.counts("r").state is RunState.OPEN
    bench.fail_all("r", worker)
    assert bench.counts("r").state is RunState.DONE
    bench.store.add("r", [encode_item("more")])
    assert bench.store.open("r") is RunState.OPEN
    bench.fail_all("r", worker)
    assert bench.counts("r").state is RunState.DONE


@pytest.mark.parametrize("noticed_by", ["tidy", "open", "purge"])
def test_an_item_requeued_from_a_dashboard_opens_its_run_again(bench: Bench, noticed_by: str) -> None:
    bench.run("r", 2)
    bench.fail_all("r", bench.worker())
    FailedJobRegistry(queue=Queue("r", connection=bench.redis)).requeue(job_id("r", 1))
    if noticed_by == "purge":
        with pytest.raises(BadInput, match="Run r is open"):
            bench.store.purge("r")
    else:
        bench.store.tidy() if noticed_by == "tidy" else bench.store.open("r")
    assert bench.counts("r").state is RunState.OPEN
    assert bench.states("r") == {"ready": 1, "failed": 1}
    assert seqs(bench.worker().claim()) == [1]


@pytest.mark.parametrize("noticed_by", ["tidy", "resume"])
def test_a_paused_run_that_was_emptied_from_a_dashboard_is_done(bench: Bench, noticed_by: str) -> None:
    bench.run("r")
    bench.store.pause("r")
    Queue("r", connection=bench.redis).empty()
    bench.store.tidy() if noticed_by == "tidy" else bench.store.resume("r")
    assert bench.counts("r").state is RunState.DONE
    assert bench.states("r") == {"cancelled": 3}


def test_an_unknown_run_is_refused_by_every_operation(bench: Bench) -> None:
    store = bench.store
    for operation in (
        store.open,
        store.pause,
        store.resume,
        store.cancel,
        store.purge,
        store.retry,
        store.spec,
    ):
        with pytest.raises(UnknownRun, match="There is no run 'gone'"):
            operation("gone")
    for name in ("gone", "last"):
        with pytest.raises(UnknownRun):
            store.resolve(name)
    with pytest.raises(UnknownRun):
        store.cancel_items("gone", [1])
    with pytest.raises(UnknownRun):
        store.add("gone", [b"x"])
    assert list(store.counts(["gone"])) == []
    assert bench.remaining() == set()


# Halt rules


def test_a_halt_rule_pauses_the_run_at_its_count(bench: Bench) -> None:
    bench.run("r", 5, RunSpec(command="true", halt=Halt(now=True, count=2), retry=RetryRule(1)))
    worker = bench.worker()
    leases = worker.claim(3)
    worker.start(*leases)
    worker.fail(leases[0], delay=1000.0)
    worker.fail(leases[1])
    assert bench.counts("r").state is RunState.OPEN
    worker.fail(leases[2])
    counts = bench.counts("r")
    assert (counts.state, counts.reason) == (RunState.PAUSED, "halted now: 2 items failed")
    assert worker.look(1, 1, "r").open_runs == 0  # nobody waits for it
    bench.store.resume("r")
    assert (bench.counts("r").state, bench.counts("r").reason) == (RunState.OPEN, "")


def test_a_halt_percentage_counts_from_the_third_failure_on(bench: Bench) -> None:
    bench.run("r", 20, RunSpec(command="true", halt=Halt(now=False, percent=50.0)))
    worker = bench.worker()
    leases = worker.claim(20)
    worker.fail(*leases[:2])
    worker.ack(*leases[2:6])
    worker.fail(leases[6])
    assert bench.counts("r").state is RunState.OPEN  # 3 of 7
    worker.fail(leases[7])
    assert bench.counts("r").state is RunState.PAUSED  # 4 of 8


def test_the_rate_is_counted_from_the_first_claim_and_there_is_none_in_a_pause(bench: Bench) -> None:
    """Two items that take 3 s end together: that is 2 in 3 s, not 2 in the moment since the first of them."""
    bench.run("r", 4)
    worker = bench.worker()
    leases = worker.claim(2)
    long_ago = bench.now() - 3
    bench.redis.hset(KEYS.run("r"), "since", long_ago)
    worker.start(*leases)
    worker.ack(*leases)
    assert 0.1 < bench.counts("r").rate_per_second <= 2 / 3
    bench.store.pause("r")
    assert bench.counts("r").rate_per_second == 0
    bench.store.resume("r")
    assert bench.redis.hget(KEYS.run("r"), "since") is None


def test_the_rate_of_many_is_that_of_the_last_512(bench: Bench) -> None:
    bench.run("r", 601)
    worker = bench.worker()
    leases = worker.claim(600, 600)
    bench.redis.hset(KEYS.run("r"), "since", bench.now() - 1000)
    for at in (0, 80):
        worker.start(*leases[at : at + 560])
        worker.ack(*leases[at : at + 560])
    assert bench.counts("r").rate_per_second > 512 / 100


def test_items_that_failed_because_their_workers_died_count_for_a_halt_rule(bench: Bench) -> None:
    bench.run("r", 3, RunSpec(command="true", max_lost=0, halt=Halt(now=True, count=1)))
    worker = bench.worker()
    (lease,) = worker.claim()
    worker.start(lease)
    bench.expire(lease)
    bench.worker("other").claim()
    assert bench.counts("r").failed == 1
    assert bench.counts("r").reason == "halted now: 1 item failed"


# Names and specs


def test_a_name_is_taken_while_its_run_goes_on_and_free_when_it_ended(bench: Bench) -> None:
    spec = RunSpec(command="true", name="nightly")
    bench.run("old", 1, spec)
    with pytest.raises(BadInput, match="'nightly' belongs to run old"):
        bench.store.create("new", spec)
    assert bench.store.runs() == ["old"]
    bench.store.cancel("old")
    bench.run("new", 1, spec)
    assert bench.store.resolve("nightly") == "new"
    bench.store.purge("old")
    assert bench.store.resolve("nightly") == "new"
    bench.store.cancel("new")
    bench.store.purge("new")
    with pytest.raises(UnknownRun):
        bench.store.resolve("nightly")
    assert bench.remaining() == set()


def test_a_run_is_found_by_id_before_name_and_as_the_last_one(bench: Bench) -> None:
    bench.run("r1", 1, RunSpec(command="true", name="r2"))
    bench.run("r2")
    assert [bench.store.resolve(name) for name in ("r1", "r2", "last")] == ["r1", "r2", "r2"]


def test_an_id_that_is_a_queue_of_rq_is_taken(bench: Bench) -> None:
    bench.redis.sadd("rq:queues", "rq:queue:mail")
    assert not bench.store.create("mail", RunSpec())
    bench.redis.rpush("rq:queue:other", "job")
    assert not bench.store.create("other", RunSpec())


def test_a_spec_comes_back_as_it_was(bench: Bench) -> None:
    spec = RunSpec(
        command=("flac", "-8", "{}"),
        directory="/tmp/\udcff",
        roots=("", "/data"),
        environment={"BASH_FUNC_f%%": "() { :; }"},
        retry=RetryRule(2, 0.5, (1, 2), (3,)),
        halt=Halt(now=True, percent=12.5),
        name="name",
    )
    bench.run("r", 0, spec)
    assert bench.store.spec("r") == bench.counts("r").spec == spec
    values = spec.to_json().replace('"command"', '"later":1,"command"')
    with pytest.raises(NewerVersion, match="later"):
        RunSpec.from_json(values)


HOSTILE = [
    b"",
    b" blanks at both ends ",
    b"-rf",
    b"two\nlines\r\n",
    b"$(touch x) `touch y` ; & | > \\ ' \"",
    b"<script>alert(1)</script>",
    "ünï\u2028 ‹ 🜚".encode(),
    b"\xff\xfe <not utf-8> \xc3",
    b"\xed\xa0\x80 half a pair",
    b"\x01\x1b[31m\x7f",
    b"a:b:c:1",
    bytes(range(1, 256)),
    b"x" * ITEM_BYTES_MAX,
    b"\xff" * ITEM_BYTES_MAX,
]


def test_hostile_names_come_back_byte_for_byte_and_are_harmless_to_look_at(bench: Bench) -> None:
    names = [name.decode("utf-8", "surrogateescape") for name in HOSTILE]
    bench.store.create("r", RunSpec(command="true", roots=("", "/data")))
    bench.store.add("r", [encode_item(name, root) for name in names for root in (0, 1)])
    bench.store.open("r")
    leases = bench.worker().claim(99)
    got = [(lease.item.name.encode("utf-8", "surrogateescape"), lease.item.root) for lease in leases]
    given = [(name, root) for name in HOSTILE for root in (0, 1)]
    assert len(got) == len(given)
    assert [pair[0][:50] for pair, back in zip(given, got, strict=True) if pair != back] == []
    for lease in leases:
        description = bench.redis.hget(KEYS.job(lease.job), "description")
        assert (description.decode("utf-8") == shown(lease.item.name)) is True  # no diff of 128 KiB, please
        assert b"<" not in description
        assert (Job.fetch(lease.job, connection=bench.redis).description or "") == shown(lease.item.name)


# Output, events, workers


def test_kept_output_comes_back_and_a_run_keeps_only_so_much(bench: Bench) -> None:
    bench.run("r", 4)
    worker = bench.worker()
    leases = worker.claim(4)
    kept = kept_output(b"<b>\xff printed")
    assert read_kept_output(kept) == "<b>\\xff printed"
    worker.fail(leases[0], output=kept)
    worker.ack(leases[1], output=kept)
    result = Job.fetch(leases[0].job, connection=bench.redis).latest_result()
    assert result is not None and result.exc_string == "<\u2060b>\\xff printed"
    assert bench.redis.hget(KEYS.job(leases[1].job), "output") == kept
    bench.redis.hset(KEYS.run("r"), "kept_bytes", 64 * 1024 * 1024)
    worker.fail(leases[2], output=kept)
    worker.ack(leases[3], output=kept)
    assert not bench.redis.exists(KEYS.results(leases[2].job))
    assert not bench.redis.hexists(KEYS.job(leases[3].job), "output")
    assert bench.states("r") == {"succeeded": 2, "failed": 2}


def test_counts_tell_what_a_run_does(bench: Bench) -> None:
    bench.run("r", 9)
    worker = bench.worker("me@node:2222.1")
    worker.heartbeat()
    leases = worker.claim(6)
    worker.start(*leases[:4])
    bench.expire(leases[0], leases[4])
    worker.ack(leases[1])
    counts = bench.counts("r")
    assert (counts.total, counts.ready, counts.leased, counts.running, counts.expired) == (9, 3, 5, 2, 2)
    assert (counts.succeeded, counts.left, counts.cancelled, counts.lost) == (1, 8, 0, 0)
    assert counts.workers == ("me@node:2222.1",)
    assert counts.work_seconds == DONE.seconds
    assert counts.created == pytest.approx(bench.now(), abs=20)
    assert counts.ended is None


def test_a_worker_leaves_with_all_its_keys_and_is_forgotten_when_silent(bench: Bench) -> None:
    bench.run("r")
    worker = bench.worker()
    worker.heartbeat()
    (lease,) = worker.claim()
    worker.start(lease)
    assert 0 < bench.redis.ttl(KEYS.worker("w")) <= WORKER_SILENCE_SECONDS
    assert bench.redis.smembers(KEYS.workers) == {KEYS.worker("w").encode()}
    worker.ack(lease)
    worker.start(*worker.claim())
    worker.call(worker.calls.retire(["r"]))
    assert bench.redis.keys("rq:worker*") == []
    worker.heartbeat()
    worker.claim()
    bench.redis.delete(KEYS.worker("w"))  # as when its time to live is over
    bench.store.tidy()
    assert not bench.redis.exists(KEYS.workers, KEYS.registry("workers", "r"))


def test_a_start_by_a_worker_that_was_forgotten_shows_nothing_for_ever(bench: Bench) -> None:
    """It slept too long and dies before its next heartbeat: nobody would remove its keys."""
    bench.run("r")
    worker = bench.worker()
    (lease,) = worker.claim()
    assert worker.start(lease) == ()
    assert bench.redis.ttl(KEYS.worker("w")) != -1
    bench.expire(lease)
    bench.worker("other").claim()
    assert bench.redis.keys(KEYS.worker("w") + "*") == []


def test_a_server_that_forgot_the_scripts_is_told_again(bench: Bench) -> None:
    bench.run("r")
    bench.redis.script_flush()
    (lease,) = bench.worker().claim()
    bench.redis.script_flush()
    assert bench.worker().start(lease) == ()
    bench.redis.script_flush()
    assert len(list(bench.store.counts(["r", "r"]))) == 2


# Somebody at a dashboard


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("action", ["delete", "cancel"])
def test_an_item_deleted_or_cancelled_from_a_dashboard_is_lost_to_its_worker(
    bench: Bench, action: str, started: bool
) -> None:
    """RQ knows a leased item that is not started as queued, and leaves our lease of it."""
    bench.run("r", 7)
    worker = bench.worker()
    leases = worker.claim(6)
    if started:
        worker.start(*leases)
    for lease in leases:
        job = Job.fetch(lease.job, connection=bench.redis)
        job.delete() if action == "delete" else job.cancel()
    first, second, third, fourth, fifth, sixth = leases
    if not started:
        bench.expire(sixth)
    assert worker.reserve(first, "out") == b"lost"
    assert worker.start(first) == (first.member,)
    assert worker.renew(second) == (second.member,)
    assert worker.ack(third) == (third.member,)
    assert worker.fail(fourth, delay=0.0) == (fourth.member,)
    assert worker.release(fifth) == 0
    assert not bench.redis.exists(*(KEYS.execution(lease.job, lease.token) for lease in leases[1:5]))
    assert seqs(worker.claim(9)) == [7]
    assert bench.states("r") == {"leased": 1, "cancelled": 6}
    bench.store.cancel("r")
    bench.store.purge("r")
    worker.call(worker.calls.retire(["r"]))
    assert bench.remaining() == set()


def test_an_item_cancelled_from_a_dashboard_leaves_no_execution_when_its_worker_died(bench: Bench) -> None:
    bench.run("r", 1)
    (lease,) = bench.worker().claim()
    bench.worker().start(lease)
    Job.fetch(lease.job, connection=bench.redis).cancel()
    bench.store.tidy()
    bench.store.purge("r")
    bench.worker().call(bench.worker().calls.retire(["r"]))
    assert bench.remaining() == set()


def test_an_emptied_queue_leaves_the_counts_whole_and_the_run_done(bench: Bench) -> None:
    bench.run("r", 4)
    worker = bench.worker()
    (lease,) = worker.claim()
    Queue("r", connection=bench.redis).empty()
    assert bench.states("r") == {"leased": 1, "cancelled": 3}
    worker.ack(lease)
    assert bench.states("r") == {"succeeded": 1, "cancelled": 3}
    assert bench.counts("r").state is RunState.DONE


# Memory


@pytest.fixture
def small_bench(server_binary: Path, tmp_path: Path) -> Iterator[Bench]:
    """A server of its own, whose maxmemory a test may set."""
    socket = tmp_path / "s"
    options = f"--port 0 --unixsocket {socket} --dir {tmp_path} --maxmemory-policy noeviction"
    process = subprocess.Popen(
        [server_binary, *options.split(), "--save", ""], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )

    def connected() -> Bench | None:
        try:
            return Bench(f"unix://{socket}")
        except ConnectFailed:
            return None

    try:
        bench = wait_until(connected, "the small server answers")
        yield bench
        bench.close()
    finally:
        process.terminate()
        process.wait(20)


def test_a_redis_out_of_memory_refuses_new_items_and_ends_those_that_are_there(small_bench: Bench) -> None:
    bench = small_bench
    bench.run("r", 300, RunSpec(command="true", retry=RetryRule(1)))
    bench.run("filling", 10, opened=False)
    worker = bench.worker()
    worker.heartbeat()
    leases = worker.claim(9)
    worker.start(*leases[:3])
    bench.redis.script_flush()  # to be told a script takes memory, too
    bench.redis.config_set("maxmemory", bench.redis.info("memory")["used_memory"] + 300_000)
    total = bench.counts("r").total
    with pytest.raises(OutOfMemory):
        for _ in range(100):
            total = bench.store.add("r", [encode_item("x" * 100_000)])
    bench.redis.config_set("maxmemory", 1_000_000)  # far below what is in use
    assert bench.counts("r").total == total
    with pytest.raises(OutOfMemory):
        bench.store.create("s", RunSpec(command="true"))
    worker.heartbeat()
    assert worker.start(*leases[3:]) == worker.renew(*leases) == ()
    assert worker.reserve(leases[0], "out") == []
    assert worker.ack(leases[0]) == worker.ack(leases[3], output=kept_output(b"x")) == ()
    assert worker.fail(leases[1], delay=0.0) == worker.fail(leases[2], output=kept_output(b"x")) == ()
    assert worker.release(*leases[4:8]) == 4
    assert bench.store.cancel_items("r", [leases[8].item.seq]) == 1
    assert bench.store.retry("r") == 1
    assert bench.store.pause("r") is RunState.OPEN
    assert bench.store.resume("r") is RunState.PAUSED
    assert len(worker.claim(9)) == 9
    bench.store.cancel("r")
    bench.store.purge("r")
    assert bench.store.open("filling") is RunState.OPEN
    bench.store.cancel("filling")
    bench.store.tidy()
    bench.store.purge("filling")
    worker.call(worker.calls.retire(["r"]))
    assert bench.remaining() == set()


def test_a_halt_of_no_rule_and_other_values_stay_what_they_are() -> None:
    """Values in transit: what Redis hands back is what was given."""
    outcome = replace(FAILED, signal=9, reason="lost", last_line="\udcff", node="n", slot=2)
    assert Outcome.from_json(outcome.to_json()) == outcome
    assert str(Halt.parse("soon,fail=10%")) == "soon,fail=10%"
    for bad in ("", "now", "now,fail=0", "later,fail=3", "soon,fail=101%", "now,fail=x", "now,fail=nan%"):
        with pytest.raises(BadInput):
            Halt.parse(bad)
