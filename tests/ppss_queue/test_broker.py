"""RQ's own tools, unpatched, on the Redis of PPSS: what they show, what they do, and what they must not disturb."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from urllib.error import HTTPError

import pytest
from helpers import wait_until
from redis import Redis
from rq import Queue as RqQueue
from rq import Worker as RqWorker
from rq.job import Job
from rq.registry import (
    CanceledJobRegistry,
    DeferredJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ScheduledJobRegistry,
    StartedJobRegistry,
)
from rq_view import (
    FROZEN_STATES,
    LISTS,
    NAMES,
    WORKER,
    Frozen,
    environment,
    frozen_run,
    get_json,
    our_dashboard,
    rq,
    rq_here,
    states,
    wait_until_idle,
    worker,
)

from ppss_queue import scripts
from ppss_queue.broker import serve_dashboard, use_ppss_worker
from ppss_queue.calls import Calls, read_claim
from ppss_queue.errors import BadInput
from ppss_queue.model import Outcome, RunState
from ppss_queue.queue import Queue, connect
from ppss_queue.rq_form import RQ_DATA
from ppss_queue.run import Run

REGISTRIES = {
    "started": StartedJobRegistry,
    "finished": FinishedJobRegistry,
    "failed": FailedJobRegistry,
    "scheduled": ScheduledJobRegistry,
    "canceled": CanceledJobRegistry,
    "deferred": DeferredJobRegistry,
}


@pytest.fixture
def queue(address: str) -> Iterator[Queue]:
    with connect(address) as queue:
        yield queue


@pytest.fixture
def redis(address: str) -> Iterator[Redis]:
    with Redis.from_url(address) as redis:
        yield redis


@pytest.fixture
def frozen(queue: Queue) -> Frozen:
    return frozen_run(queue)


# What RQ shows


def test_every_list_of_rq_holds_its_items_by_name(frozen: Frozen, redis: Redis) -> None:
    run = frozen.run.id
    assert [queue.name for queue in RqQueue.all(connection=redis)] == [run]
    assert [job.description for job in RqQueue(run, connection=redis).jobs] == ["ready", "later"]
    for name, registry in REGISTRIES.items():
        jobs = registry(run, connection=redis).get_job_ids()
        assert {Job.fetch(job, connection=redis).description for job in jobs} == LISTS[name], name
        assert registry(run, connection=redis).count == len(LISTS[name]), name
    assert states(frozen.run.status()) == FROZEN_STATES


def test_a_job_tells_status_times_worker_and_failure(frozen: Frozen, redis: Redis) -> None:
    jobs = {name: Job.fetch(job, connection=redis) for name, job in frozen.jobs.items()}
    assert {name: job.get_status().value for name, job in jobs.items()} == {
        "unstarted": "queued",
        "started": "started",
        "delayed": "scheduled",
        "finished": "finished",
        "failed": "failed",
        "ready": "queued",
        "later": "queued",
        "cancelled": "canceled",
    }
    assert all(job.origin == frozen.run.id and job.created_at for job in jobs.values())
    assert jobs["started"].worker_name == WORKER and jobs["started"].started_at
    assert jobs["finished"].ended_at and jobs["finished"].ended_at >= jobs["finished"].started_at
    assert jobs["ready"].started_at is None and jobs["ready"].ended_at is None
    assert [execution.worker_name for execution in jobs["started"].get_executions()] == [WORKER]
    assert len(redis.keys("rq:execution*")) == 2, "no execution is left of what ended"
    result = jobs["failed"].latest_result()
    assert result and result.type is result.Type.FAILED and "Traceback: boom" in str(result.exc_string)
    assert jobs["finished"].latest_result() is None


def test_a_worker_shows_heartbeat_state_and_current_job(frozen: Frozen, redis: Redis) -> None:
    (shown,) = RqWorker.all(connection=redis)
    assert (shown.name, shown.get_state(), shown.hostname, shown.pid) == (WORKER, "busy", "node", 1)
    assert shown.last_heartbeat and shown.birth_date
    assert [queue.name for queue in shown.queues] == [frozen.run.id]
    current = shown.get_current_job()
    assert current and current.id == frozen.jobs["started"] and current.description == "started"
    assert (shown.successful_job_count, shown.failed_job_count) == (1, 1)
    assert RqWorker.all(queue=RqQueue(frozen.run.id, connection=redis))[0].name == WORKER


def test_an_item_that_failed_without_a_word_has_a_message_all_the_same(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    """The dashboard offers to requeue only what has a message."""
    run = queue.enqueue(["a"], command=": $ITEM; exit 3")
    with worker(address, tmp_path / "state", burst=True):
        pass
    result = Job.fetch(f"{run.id}-0000001", connection=redis).latest_result()
    assert result and "exit 3" in str(result.exc_string)
    assert run.log("a") == ""


def test_an_item_whose_worker_died_too_often_has_a_message_too(queue: Queue, redis: Redis) -> None:
    run = queue.enqueue(["a"], command="true", visibility_seconds=1, max_lost=0)
    calls = Calls(queue.keys, WORKER, "ab")
    (lease,) = read_claim(scripts.run(queue.connection, calls.claim(1, 1))).leases
    scripts.run(queue.connection, calls.start(run.id, [(lease, 1)]))
    wait_until(lambda: run.status().expired == 1, "the lease expires")
    scripts.run(queue.connection, Calls(queue.keys, "another", "cd").claim(1, 1))
    assert states(run.status())["failed"] == 1
    result = Job.fetch(lease.job, connection=redis).latest_result()
    assert result and "worker died" in str(result.exc_string)


def test_rq_info_shows_the_run_and_disturbs_nothing(frozen: Frozen, redis: Redis, address: str) -> None:
    """Its clean-ups fail or requeue what looks expired to RQ: nothing of ours may ever look so."""
    before = {key: redis.dump(key) for key in redis.keys("*")}
    for _ in range(2):
        shown = rq(address, "info", "--raw")
        assert f"queue {frozen.run.id} 2" in shown and WORKER in shown, shown
    shown = rq(address, "info")
    assert f"{frozen.run.id}" in shown and "2 executing, 1 finished, 1 failed" in shown, shown
    assert {key: redis.dump(key) for key in redis.keys("*")} == before
    assert states(frozen.run.status()) == FROZEN_STATES
    lost = scripts.run(
        frozen.run._store.connection, frozen.calls.start(frozen.run.id, [(frozen.leases["unstarted"], 1)])
    )
    assert lost == [], "the lease is still ours"


def test_an_expired_lease_is_not_reaped_by_rq_but_by_the_next_claim(
    queue: Queue, redis: Redis, address: str
) -> None:
    run = queue.enqueue(["a"], command="true", visibility_seconds=1)
    calls = Calls(queue.keys, WORKER, "ab")
    (lease,) = read_claim(scripts.run(queue.connection, calls.claim(1, 1))).leases
    scripts.run(queue.connection, calls.start(run.id, [(lease, 1)]))
    wait_until(lambda: run.status().expired == 1, "the lease expires")
    rq_here(address, "info")
    assert Job.fetch(lease.job, connection=redis).get_status().value == "started"
    next_claim = Calls(queue.keys, "another", "cd").claim(1, 1)
    (again,) = read_claim(scripts.run(queue.connection, next_claim)).leases
    assert again.job == lease.job and again.token != lease.token
    assert states(run.status())["leased"] == 1


def test_names_that_are_not_utf_8_or_markup_show_and_come_back_exactly(queue: Queue, redis: Redis) -> None:
    names = ["<b>", "a\udcffb", "x\ny", "&lt;", "", "‹", "'\""]
    run = queue.enqueue(names, command="true")
    shown = [str(job.description or "") for job in RqQueue(run.id, connection=redis).jobs]
    assert len(shown) == len(names)
    assert all("<" not in description for description in shown), shown
    assert "a\\xffb" in shown
    assert [item.name for item in run.items()] == names


# What others do


def test_a_requeue_and_an_emptied_queue_are_noticed_without_any_worker(queue: Queue, redis: Redis) -> None:
    """Whoever waits for the run would be told that it is done while an item is ready, or wait for ever."""
    run = queue.enqueue(["a"], command="true")
    calls = Calls(queue.keys, WORKER, "ab")
    (lease,) = read_claim(scripts.run(queue.connection, calls.claim(1, 1))).leases
    scripts.run(queue.connection, calls.start(run.id, [(lease, 1)]))
    scripts.run(queue.connection, calls.fail(run.id, [(lease, Outcome(1), None, b"")]))
    assert run.status().state is RunState.DONE
    FailedJobRegistry(run.id, connection=redis).requeue(lease.job)
    assert not run.is_over()
    assert run.status().state is RunState.OPEN
    RqQueue(run.id, connection=redis).empty()
    assert run.wait(20).state is RunState.DONE


def test_deleting_from_rq_moves_items_to_cancelled_whatever_their_state(frozen: Frozen, redis: Redis) -> None:
    for name in NAMES:
        Job.fetch(frozen.jobs[name], connection=redis).delete()
        counts = states(frozen.run.status())
    assert {name: count for name, count in counts.items() if count} == {"leased": 1, "cancelled": 7}
    connection, calls, run = frozen.run._store.connection, frozen.calls, frozen.run.id
    renewed = scripts.run(
        connection, calls.renew(run, [f"{lease.job}:{lease.token}" for lease in frozen.leases.values()])
    )
    assert len(renewed) == 2 + 5, "every lease is lost, now that of the item not yet started too"
    assert states(frozen.run.status())["cancelled"] == len(NAMES)
    frozen.run._store.tidy()
    assert frozen.run.status().state is RunState.DONE


def test_cancelling_from_rq_takes_an_item_out(frozen: Frozen, redis: Redis) -> None:
    for name in ("ready", "delayed"):
        Job.fetch(frozen.jobs[name], connection=redis).cancel()
        states(frozen.run.status())
    assert states(frozen.run.status()) == {**FROZEN_STATES, "ready": 1, "delayed": 0, "cancelled": 3}


def test_a_requeued_item_that_succeeds_shows_no_old_failure(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    run = queue.enqueue(["a"], command=f'test -n "$ITEM" -a -e {flag} || {{ echo too early; false; }}')
    with worker(address, tmp_path / "state"):
        wait_until(lambda: states(run.status())["failed"] == 1, "the item failed")
        wait_until_idle(redis)
        flag.touch()
        job = f"{run.id}-0000001"
        Job.fetch(job, connection=redis).requeue()
        wait_until(
            lambda: states(run.status())["succeeded"] == 1, "the requeued item of the finished run ran"
        )
    assert Job.fetch(job, connection=redis).latest_result() is None
    assert run.log("a") == ""


def test_what_is_requeued_while_the_worker_is_busy_runs_once_it_is_idle(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    """A finished run is not among those that a claim looks at, and a busy worker does not listen."""
    gate, flag = tmp_path / "gate", tmp_path / "flag"
    os.mkfifo(gate)
    finished = queue.enqueue(["a"], command=f'test -n "$ITEM" -a -e {flag}')
    with worker(address, tmp_path / "state"):
        wait_until(lambda: finished.status().state is RunState.DONE, "the item failed")
        flag.touch()
        other = queue.enqueue(["b"], command=f": $ITEM; read _ < {gate}")
        wait_until(lambda: other.status().running == 1, "the worker is busy")
        Job.fetch(f"{finished.id}-0000001", connection=redis).requeue()
        gate.write_text("go\n")
        wait_until(lambda: states(finished.status())["succeeded"] == 1, "the requeued item ran")


def test_rq_suspend_keeps_a_busy_worker_from_new_items_until_rq_resume(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    run = queue.enqueue(["a", "b", "c"], command=f'[ "$ITEM" != a ] || read _ < {gate}')
    with worker(address, tmp_path / "state"):
        wait_until(lambda: run.status().running == 1, "the first item runs")
        rq_here(address, "suspend")
        gate.write_text("go\n")
        wait_until(lambda: states(run.status())["succeeded"] == 1, "the first item ended")
        wait_until_idle(redis)
        assert states(run.status())["ready"] == 2
        rq_here(address, "resume")
        wait_until(lambda: run.status().state is RunState.DONE, "the rest ran")
        assert states(run.status())["succeeded"] == 3


def test_an_idle_worker_that_rq_suspended_goes_on_after_rq_resume(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    with worker(address, tmp_path / "state"):
        wait_until_idle(redis)
        rq_here(address, "suspend")
        run = queue.enqueue(["a"], command="true")
        rq_here(address, "info")
        assert states(run.status())["ready"] == 1
        rq_here(address, "resume")
        wait_until(lambda: states(run.status())["succeeded"] == 1, "the item ran")


def test_a_suspension_that_ends_by_itself_wakes_an_idle_worker(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    with worker(address, tmp_path / "state"):
        rq_here(address, "suspend", "--duration", "1")
        run = queue.enqueue(["a"], command="true")
        wait_until(lambda: states(run.status())["succeeded"] == 1, "the item ran")


def test_deleting_what_runs_kills_it_and_ends_the_run(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    run = queue.enqueue(["a"], command=f": $ITEM; echo $$ > {pid}; exec sleep 600", visibility_seconds=1)
    with worker(address, tmp_path / "state"):
        wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"), "the item runs")
        process = Path("/proc") / pid.read_text().strip()
        wait_until(lambda: run.status().running == 1, "its start is known")
        Job.fetch(f"{run.id}-0000001", connection=redis).delete()
        wait_until(lambda: not process.exists(), "its command is killed")
        wait_until(lambda: run.status().state is RunState.DONE, "the run is over")
    assert states(run.status())["cancelled"] == 1


# Others on the same Redis


def test_a_stock_worker_fails_items_with_the_advice_and_loses_none(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    run = queue.enqueue(["a", "b"], command="true")
    printed = rq(address, "worker", "--burst", run.id)
    assert "start 'ppss worker'" in printed
    assert states(run.status())["failed"] == 2
    failed = list(run.items("failed"))
    assert [item.name for item in failed] == ["a", "b"]
    result = Job.fetch(f"{run.id}-0000001", connection=redis).latest_result()
    assert result and "This queue belongs to PPSS" in str(result.exc_string)
    run._store.tidy()
    assert run.status().state is RunState.DONE
    assert run.retry() == 2
    with worker(address, tmp_path / "state", burst=True):
        pass
    assert states(run.status())["succeeded"] == 2


def test_a_stock_worker_beside_a_ppss_worker_leaves_the_counts_whole(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    """RQ's executions stand in rq:wip with deadlines that look long expired to PPSS: it must not take them."""
    run = queue.enqueue(["0.03"] * 40, command="sleep")
    stock = subprocess.Popen(
        [sys.executable, "-m", "rq.cli", "worker", "--burst", "--url", address, run.id],
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: states(run.status())["failed"] > 1, "the stock worker took items")
        with worker(address, tmp_path / "state"):
            while stock.poll() is None:
                states(run.status())
            wait_until(lambda: _ended(run) == 40, "each item ended once")
        assert run.status().lost == 0
    finally:
        stock.kill()
        stock.wait()


def _ended(run: Run) -> int:
    counts = states(run.status())
    return counts["failed"] + counts["succeeded"]


def test_another_rq_application_on_the_same_redis_is_not_disturbed(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    theirs = RqQueue("default", connection=redis)
    done, waiting = (theirs.enqueue("os.getpid", result_ttl=-1) for _ in range(2))
    later = theirs.enqueue_in(timedelta(hours=1), "os.getpid")
    rq(address, "worker", "--burst", "--max-jobs", "1")
    keys = {
        key: redis.dump(key) for key in redis.keys("*") if not key.startswith((b"rq:worker", b"rq:queues"))
    }
    run = queue.enqueue(["a", "b"], command='[ "$ITEM" = a ]')
    with worker(address, tmp_path / "state", burst=True):
        pass
    assert states(run.status())["succeeded"] == states(run.status())["failed"] == 1
    queue.store.tidy()
    run.purge()
    assert {key: redis.dump(key) for key in keys} == keys
    assert redis.smembers("rq:queues") == {b"rq:queue:default"}
    run = queue.enqueue(["c"], command="true")
    rq(address, "worker", "--burst", "default")
    assert Job.fetch(waiting.id, connection=redis).return_value() is not None
    assert Job.fetch(done.id, connection=redis).return_value() is not None
    assert Job.fetch(later.id, connection=redis).get_status().value == "scheduled"
    assert states(run.status())["ready"] == 1


class _Bomb:
    """Its pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that must not be read."""
    traces = tmp_path / "exploded"
    bomb = pickle.dumps(_Bomb(traces))
    pickle.loads(bomb)
    assert traces.exists()
    traces.unlink()
    yield bomb
    assert not traces.exists()


def test_nothing_in_redis_is_unpickled_by_a_worker_or_the_api(
    queue: Queue, redis: Redis, address: str, tmp_path: Path, bomb: bytes
) -> None:
    run = queue.enqueue(["a", "b"], command='[ "$ITEM" = a ]')
    for seq in (1, 2):
        redis.hset(f"rq:job:{run.id}-{seq:07d}", mapping=dict.fromkeys(("data", "meta", "result"), bomb))
    with worker(address, tmp_path / "state", burst=True):
        pass
    assert [str(item.state) for item in run.items()] == ["succeeded", "failed"]
    assert run.log("b") == ""
    run.retry()
    run.cancel()
    run.purge()


def test_our_dashboard_unpickles_neither_results_nor_metadata(
    frozen: Frozen, redis: Redis, address: str, bomb: bytes
) -> None:
    with our_dashboard(address) as url:
        for name in ("finished", "failed"):
            redis.hset(f"rq:job:{frozen.jobs[name]}", "result" if name == "finished" else "meta", bomb)
            with suppress(HTTPError):  # metadata that are no JSON
                get_json(f"{url}/0/data/job/{frozen.jobs[name]}.json")


def test_rq_key_prefix_moves_our_view_with_rq(
    queue: Queue, redis: Redis, address: str, tmp_path: Path
) -> None:
    code = (
        "import sys; from ppss_queue.queue import connect\n"
        "with connect(sys.argv[1]) as queue: print(queue.enqueue(['a', 'b'], command='true').id)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, address],
        env=environment(RQ_KEY_PREFIX="other"), text=True, check=True, stdout=subprocess.PIPE, timeout=60,
    )  # fmt: skip
    run = made.stdout.strip()
    assert f"queue {run} 2" in rq(address, "info", "--raw", RQ_KEY_PREFIX="other")
    assert run not in rq_here(address, "info", "--raw")
    with worker(address, tmp_path / "state", burst=True, RQ_KEY_PREFIX="other"):
        pass
    assert redis.zcard(f"other:finished:{run}") == 2
    assert redis.keys("rq:*") == []


# The seam itself


def test_the_constant_data_names_the_function_that_tells_what_to_do() -> None:
    name, instance, arguments, options = pickle.loads(RQ_DATA)
    assert (instance, arguments, options) == (None, (), {})
    assert name == f"{use_ppss_worker.__module__}.{use_ppss_worker.__qualname__}"
    with pytest.raises(BadInput, match="ppss worker"):
        use_ppss_worker(1, two=3)


def test_importing_the_seam_imports_neither_rq_nor_a_driver() -> None:
    code = "import sys, ppss_queue.broker; print([m for m in ('rq', 'redis', 'flask', 'logging') if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment(), text=True, check=True, stdout=subprocess.PIPE
    )
    assert shown.stdout == "[]\n"


def test_a_dashboard_on_a_port_in_use_says_so(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"127\.0\.0\.1:{port} \(.*in use.*--port"):
            serve_dashboard(address, port=port, on_ready=lambda url: pytest.fail("it listens"))


@pytest.mark.parametrize(
    "place", [{"port": 70000}, {"host": "no.such.host.invalid"}, {"host": "203.0.113.9"}]
)
def test_a_dashboard_that_cannot_listen_says_so(address: str, place: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=r"can't listen at .*--host or --port"):
        serve_dashboard(address, on_ready=lambda url: pytest.fail("it listens"), **place)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["rq_dashboard", "six"])
def test_a_dashboard_that_is_not_installed_names_the_command(
    address: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rq_dashboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type]  # as if it were not installed
    with pytest.raises(BadInput, match=r"not installed.*pip install 'ppss-queue\[dashboard\]'"):
        serve_dashboard(address, on_ready=lambda url: pytest.fail("it listens"))
