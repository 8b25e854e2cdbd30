"""The Python API, with real workers where items must run: enqueuing whole or not at all, looking on, steering."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import wait_until
from redis import Redis

from ppss_queue import filling, scripts
from ppss_queue.calls import Calls, read_claim
from ppss_queue.errors import BadInput, ConnectFailed, OutOfMemory, UnknownItem, UnknownRun
from ppss_queue.filling import BATCH_ITEMS, CALLS_IN_FLIGHT
from ppss_queue.keys import Keys
from ppss_queue.model import STATES, Outcome, RunState, State
from ppss_queue.queue import _ID_CHARACTERS, Queue, connect
from ppss_queue.resources import Resources
from ppss_queue.rules import RetryRule
from ppss_queue.run import Run
from ppss_queue.store import FILLING_SECONDS

KEYS = Keys()
MANY = BATCH_ITEMS * (CALLS_IN_FLIGHT + 4) + 7
"""Items of which many have been sent, and some answered, when the last one comes."""


@pytest.fixture
def queue(address: str) -> Iterator[Queue]:
    with connect(address) as queue:
        yield queue


@pytest.fixture
def redis(address: str) -> Iterator[Redis]:
    with Redis.from_url(address) as redis:
        yield redis


@pytest.fixture
def other(address: str) -> Iterator[Queue]:
    """Another program's view of the same runs."""
    with connect(address) as queue:
        yield queue


@pytest.fixture
def python(
    address: str, home: dict[str, str], tmp_path: Path
) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a Python program in `tmp_path`, with `address` as its PPSS_URL; it is gone when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**home, "PPSS_URL": address},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def worker(python: Callable[[str], subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A real worker with two slots."""
    return python(
        "import sys; sys.argv[1:] = ['worker', '-p2', '-q', '--node-name', 'me@big:2222']; "
        "from ppss_queue.cli import main; main()"
    )


def ended(queue: Queue, run: Run, count: int = 1, outcome: Outcome | None = None) -> None:
    """Runs `count` items in this process; they succeed, or fail if the outcome has an exit code."""
    calls = Calls(KEYS, "by-hand", "nonce")
    claimed = read_claim(scripts.run(queue.connection, calls.claim(count, count, runs=[run.id])))
    assert len(claimed.leases) == count
    scripts.run(queue.connection, calls.start(run.id, [(lease, 1) for lease in claimed.leases]))
    for lease in claimed.leases:
        failed = outcome is not None and outcome.exit_code
        call = (
            calls.fail(run.id, [(lease, outcome, None, b"")])
            if outcome and failed
            else calls.ack(run.id, [(lease, outcome or Outcome(exit_code=0), b"")])
        )
        assert scripts.run(queue.connection, call) == []


def names(run: Run, state: State | str | None = None) -> list[str]:
    return [view.name for view in run.items(state=state)]


def remaining(redis: Redis) -> set[str]:
    """Keys that are there although no run is."""
    return {key.decode() for key in redis.scan_iter(count=1000)} - KEYS.permanent


# Connecting


def test_an_address_goes_before_the_variable(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPSS_URL", "unix:///nowhere/at/all")
    with connect(address) as queue:
        assert queue.runs() == []
    with pytest.raises(ConnectFailed, match="/nowhere/at/all"):
        connect()


def test_the_variable_goes_before_the_users_own_server(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPSS_URL", address)
    monkeypatch.setenv("PPSS_STATE_DIR", "/dev/null/none")
    with connect() as queue, connect(address) as other:
        run = queue.enqueue(["a"], command="true")
        assert names(other.run(run.id)) == ["a"]


@pytest.mark.parametrize("variable", [None, ""])
def test_without_an_address_this_users_server_is_started(
    variable: str | None, home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PPSS_URL", raising=False)
    if variable is not None:
        monkeypatch.setenv("PPSS_URL", variable)
    monkeypatch.setenv("PPSS_STATE_DIR", home["PPSS_STATE_DIR"])
    with connect() as queue, connect() as other:
        run = queue.enqueue(["a"], command="true")
        assert names(other.run("last")) == ["a"]
        assert other.run("last").id == run.id


def test_an_address_of_no_known_kind_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"'?gopher://"):
        connect("gopher://here")


def test_after_the_with_block_the_queue_is_closed(address: str) -> None:
    with connect(address) as queue:
        run = queue.enqueue(["a"], command="true")
    with pytest.raises(ConnectFailed):
        run.status()


def test_an_error_in_the_with_block_closes_the_queue_and_goes_on(address: str) -> None:
    with pytest.raises(ZeroDivisionError), connect(address) as queue:
        raise ZeroDivisionError
    with pytest.raises(ConnectFailed):
        queue.runs()


# Enqueuing


def test_texts_arrive_byte_for_byte_and_in_order(queue: Queue) -> None:
    run = queue.enqueue(iter(["b", " a\n", b"\xff\x00"[:1], "", "$(x)"]), command="true")
    assert names(run) == ["b", " a\n", os.fsdecode(b"\xff"), "", "$(x)"]
    counts = run.status()
    assert counts.spec.roots == ("",)
    assert (counts.state, counts.total, counts.ready) == (RunState.OPEN, 5, 5)


def test_paths_are_files_and_outputs_and_commands_have_absolute_directories(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    paths = [tmp_path / "in" / "sub" / "a", tmp_path / "in" / "b"]
    for path in paths:
        path.touch()
    run = queue.enqueue(iter(paths), command=["cp", "{}", "{out}"], output="out")
    spec = run.status().spec
    assert (spec.directory, spec.output) == (str(tmp_path), str(tmp_path / "out"))
    assert [Path(spec.local_path(view.item)) for view in run.items()] == paths
    elsewhere = queue.enqueue(["x"], command="true > {out}", output="out", directory="in")
    spec = elsewhere.status().spec
    assert (spec.directory, spec.output) == (str(tmp_path / "in"), str(tmp_path / "in" / "out"))


def test_the_rules_of_a_run_are_those_given(queue: Queue) -> None:
    run = queue.enqueue(
        ["a"], command=("echo", "%"), name="n", replacement="%", retries=2, retry_delay_seconds=0.5, retry_on=[1],
        no_retry_on={2}, timeout_seconds=9, visibility_seconds=5, max_lost=0, halt="soon,fail=10%", priority=7,
        gpus=1, cpus=4, memory_bytes=2**33,
        keep_output=True,
    )  # fmt: skip
    spec = run.status().spec
    assert spec.command == ("echo", "%")
    assert spec.retry == RetryRule(2, 0.5, (1,), (2,))
    assert (spec.timeout_seconds, spec.visibility_seconds, spec.max_lost, spec.priority) == (9, 5, 0, 7)
    assert spec.needs == Resources(1, 4, 2**33)
    assert (str(spec.halt), spec.name, spec.replacement, spec.keep_output) == (
        "soon,fail=10%",
        "n",
        "%",
        True,
    )


def test_nothing_to_do_is_done_at_once(queue: Queue) -> None:
    run = queue.enqueue([], command="true")
    assert run.is_over()
    assert run.wait().state is RunState.DONE
    assert list(run.results()) == list(run.items()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"command": "echo 'open"}, "quote"),
        ({"command": ""}, "empty"),
        ({"command": []}, "empty"),
        ({"command": "cp {} $OUTPUT_DIR"}, "-o DIR"),
        ({"command": "sh -c 'echo {}'"}, "{}"),
        ({"halt": "sometimes"}, "'sometimes' is no halt rule"),
        ({"retries": -1}, "retries is -1"),
        ({"retry_delay_seconds": -0.5}, "retry_delay_seconds is -0.5"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds is nan"),
        ({"visibility_seconds": 0}, "visibility_seconds is 0,"),
        ({"max_lost": -1}, "max_lost is -1"),
        ({"gpus": -1}, "gpus is -1, but must be a whole number from 0 up."),
        ({"cpus": 0.5}, "cpus is 0.5, but"),
        ({"memory_bytes": "8G"}, "memory_bytes is '8G', but"),
        ({"priority": 0}, "priority is 0"),
        ({"name": "last"}, "'last'"),
    ],
)
def test_a_mistake_is_found_before_anything_is_enqueued(
    options: dict[str, object], sentence: str, queue: Queue, redis: Redis
) -> None:
    def items() -> Iterator[str]:
        raise AssertionError("an item was asked for")
        yield ""

    with pytest.raises(BadInput) as caught:
        queue.enqueue(items(), **{"command": "true", **options})  # type: ignore[arg-type]
    assert sentence in str(caught.value)
    assert remaining(redis) == set()


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ("abc", "list"),
        (["a", 3], "item 2"),
        (["a\0b"], "NUL"),
        (["a", Path("b")], "item 2"),
        ([Path("a"), "b"], "item 2"),
    ],
)
def test_an_item_that_is_none_leaves_nothing_behind(
    items: list[str], sentence: str, queue: Queue, redis: Redis
) -> None:
    with pytest.raises(BadInput, match=sentence):
        queue.enqueue(items, command="true")
    assert remaining(redis) == set()


def test_hundreds_of_thousands_of_items_stream_in_constant_memory(
    python: Callable[[str], subprocess.Popen[str]], queue: Queue
) -> None:
    program = python("""if True:
        import resource
        from ppss_queue import connect

        def peak_bytes():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        with connect() as queue:
            queue.enqueue((f"warm up {number}" for number in range(20_000)), command="true").cancel()
            before = peak_bytes()
            run = queue.enqueue((f"some/directory/name/item {number}" for number in range(300_000)), command="true")
            print(run.id, peak_bytes() - before)
    """)
    output, errors = program.communicate(timeout=120)
    assert program.returncode == 0, errors
    run, grown = output.split()
    assert queue.run(run).status().total == 300_000
    # 300,000 strings alone would be 25 MB.
    assert int(grown) < 4_000_000


# Ids and names


def test_an_id_is_a_letter_and_three_characters_that_are_not_mixed_up(queue: Queue) -> None:
    ids = {queue.enqueue([], command="true").id for _ in range(50)}
    assert len(ids) == 50
    for run in ids:
        assert re.fullmatch("[a-hjkmnp-tv-z][0-9a-hjkmnp-tv-z]{3}", run), run


def test_an_id_is_never_a_word_that_means_another_queue_or_run() -> None:
    for word in ("default", "last"):
        assert not set(word) <= set(_ID_CHARACTERS)


def test_an_id_that_is_taken_gives_a_longer_one(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.choice", lambda characters: characters[-1])
    assert [queue.enqueue([], command="true").id for _ in range(3)] == ["zzzz", "zzzzz", "zzzzzz"]


def test_a_run_is_found_by_id_by_name_and_as_the_last_one(queue: Queue, other: Queue) -> None:
    first = queue.enqueue(["a"], command="true", name="photos")
    second = queue.enqueue(["b"], command="true")
    assert other.run("photos").id == other.run(first.id).id == first.id
    assert other.run("last").id == second.id
    assert [counts.run for counts in other.runs()] == [first.id, second.id]
    assert [counts.name for counts in other.runs()] == ["photos", None]


def test_a_name_belongs_to_one_open_run_and_then_to_the_next(queue: Queue) -> None:
    first = queue.enqueue(["a"], command="true", name="photos")
    with pytest.raises(BadInput, match=f"'photos' belongs to run {first.id}"):
        queue.enqueue(["b"], command="true", name="photos")
    assert len(queue.runs()) == 1
    first.cancel()
    second = queue.enqueue(["b"], command="true", name="photos")
    assert queue.run("photos").id == second.id
    assert queue.run(first.id).status().state is RunState.CANCELLED
    first.purge()
    assert queue.run("photos").id == second.id


@pytest.mark.parametrize("name", ["nope", "", "default"])
def test_a_run_that_is_not_there_is_refused_by_its_name(name: str, queue: Queue) -> None:
    with pytest.raises(UnknownRun, match=f"There is no run '{name}'"):
        queue.run(name)
    with pytest.raises(UnknownRun, match="There is no run yet"):
        queue.run("last")


# Enqueuing that is broken off


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_a_source_that_breaks_off_leaves_no_run_and_a_queue_that_works(
    error: type[BaseException], queue: Queue, redis: Redis
) -> None:
    """Answers to what was sent before must not be taken for those of the next run."""

    def items() -> Iterator[str]:
        yield from map(str, range(MANY))
        raise error

    with pytest.raises(error):
        queue.enqueue(items(), command="true", name="n")
    assert queue.runs() == []
    assert remaining(redis) == set()
    run = queue.enqueue(["a", "b"], command="true", name="n")
    assert run.add(["c"]) == 1
    assert names(run) == ["a", "b", "c"]


def test_a_call_that_ctrl_c_interrupts_leaves_no_run_and_a_queue_that_works(
    queue: Queue, redis: Redis
) -> None:
    """An interrupted call closes its connection, since nobody knows which answers are still to come."""

    def items() -> Iterator[str]:
        yield from map(str, range(MANY))
        queue.connection.close()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue.enqueue(items(), command="true")
    assert remaining(redis) == set()
    assert names(queue.enqueue(["a"], command="true")) == ["a"]


def test_a_source_that_breaks_off_while_adding_leaves_a_run_that_goes_on(queue: Queue) -> None:
    def items() -> Iterator[str]:
        yield from map(str, range(MANY))
        raise ValueError

    run = queue.enqueue(["a"], command="true")
    with pytest.raises(ValueError):
        run.add(items())
    assert run.add(["b"]) == 1
    counts = run.status()
    assert (counts.state, counts.ready) == (RunState.OPEN, counts.total)
    assert names(run)[:2] == ["a", "0"]
    assert names(run)[-1] == "b"


_ENDLESS = """if True:
    import sys, time
    from ppss_queue import connect

    def items():
        for number in range(20_000):
            yield f"item {number}"
        print("half", flush=True)
        time.sleep(100)

    with connect() as queue:
        queue.enqueue(items(), command="true")
"""


def test_answers_to_what_was_refused_are_not_taken_for_those_of_another_run(
    queue: Queue, other: Queue
) -> None:
    def items() -> Iterator[str]:
        yield "the first one is looked at before anything is sent"
        other.run(run.id).cancel()
        yield from map(str, range(MANY))

    run, second = queue.enqueue(["a"], command="true"), queue.enqueue(["b"], command="true")
    with pytest.raises(BadInput, match=f"Run {run.id} is cancelled"):
        run.add(items())
    assert second.add(["c"]) == 1
    assert names(second) == ["b", "c"]


def test_ctrl_c_in_the_middle_leaves_nothing(
    python: Callable[[str], subprocess.Popen[str]], queue: Queue, redis: Redis
) -> None:
    program = python(_ENDLESS)
    assert program.stdout and program.stdout.readline() == "half\n"
    assert len(queue.runs()) == 1
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    assert remaining(redis) == set()


def test_an_enqueuer_that_was_killed_leaves_a_run_that_nobody_gets_and_that_goes_away(
    python: Callable[[str], subprocess.Popen[str]], queue: Queue, redis: Redis
) -> None:
    program = python(_ENDLESS)
    assert program.stdout and program.stdout.readline() == "half\n"
    program.kill()
    program.wait()
    (counts,) = queue.runs()
    assert counts.state is RunState.FILLING
    assert counts.total > 10_000
    claim = Calls(KEYS, "w", "nonce").claim(10, 10)
    assert read_claim(scripts.run(queue.connection, claim)).leases == ()
    queue.store.tidy()
    assert [left.run for left in queue.runs()] == [counts.run]
    redis.zadd("ppss:filling", {counts.run: redis.time()[0] - 1})
    queue.store.tidy()
    assert queue.runs() == []
    assert remaining(redis) == set()


def test_a_slow_source_keeps_its_run_alive(
    queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "FILLING_SECONDS", 0.05)

    def items() -> Iterator[str]:
        yield "a"
        (run,) = (counts.run for counts in connect_again.runs())
        for _ in range(2):  # not only the first time
            soon = redis.time()[0] + 20
            redis.zadd("ppss:filling", {run: soon})
            wait_until(
                lambda soon=soon: redis.zscore("ppss:filling", run) > soon + FILLING_SECONDS / 2, "renewal"
            )
        yield "b"

    with connect(queue.connection.address.display()) as connect_again:
        run = queue.enqueue(items(), command="true")
    assert names(run) == ["a", "b"]
    assert redis.zscore("ppss:filling", run.id) is None
    threads = [thread for thread in threading.enumerate() if thread.name == "filling"]
    wait_until(lambda: not any(thread.is_alive() for thread in threads), "the renewal ends with the filling")


def test_a_redis_that_is_full_in_the_middle_is_told_and_nothing_is_left(queue: Queue, redis: Redis) -> None:
    def items() -> Iterator[str]:
        for number in range(200_000):
            if number == 20_000:
                redis.config_set("maxmemory", redis.info("memory")["used_memory"] + 1_000_000)
            yield f"item {number} {'x' * 100}"

    try:
        with pytest.raises(OutOfMemory) as caught:
            queue.enqueue(items(), command="true")
        assert re.search(
            r"is out of memory.* after about 2\d,\d{3} items\. Nothing of the run is left\.$",
            str(caught.value),
        )
        assert queue.runs() == []
        assert remaining(redis) == set()
    finally:
        redis.config_set("maxmemory", 0)
    assert names(queue.enqueue(["a"], command="true")) == ["a"]


def test_two_programs_enqueue_at_once_into_runs_of_their_own_and_into_one(address: str, queue: Queue) -> None:
    shared = queue.enqueue([], command="true")
    runs: dict[str, str] = {}

    def enqueue(who: str) -> None:
        with connect(address) as queue:
            items = [f"{who}{number}" for number in range(MANY)]
            runs[who] = queue.enqueue(iter(items), command="true").id
            queue.run(shared.id).add(iter(items))

    threads = [threading.Thread(target=enqueue, args=(who,)) for who in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for who in "ab":
        assert names(queue.run(runs[who])) == [f"{who}{number}" for number in range(MANY)]
    views = list(shared.items())
    assert [view.seq for view in views] == list(range(1, 2 * MANY + 1))
    for who in "ab":
        mine = [view.name for view in views if view.name[0] == who]
        assert mine == [f"{who}{number}" for number in range(MANY)]


def test_items_can_come_from_another_run_of_the_same_queue(queue: Queue) -> None:
    """Reading and enqueuing share one connection."""
    wanted = [str(number) for number in range(MANY)]
    first = queue.enqueue(wanted, command="true")
    second = queue.enqueue((view.name for view in first.items()), command="true")
    assert names(second) == wanted


# Steering


def test_items_added_to_an_open_run_can_be_claimed_at_once(queue: Queue, other: Queue) -> None:
    run = queue.enqueue(["a"], command="true")
    assert other.run(run.id).add(iter(["b", "c"])) == 2
    assert names(run) == ["a", "b", "c"]
    ended(queue, run, 3)
    assert run.is_over()


def test_items_added_to_a_done_run_open_it_again(queue: Queue) -> None:
    run = queue.enqueue(["a"], command="true")
    ended(queue, run)
    assert run.status().state is RunState.DONE
    run.add(["b"])
    assert run.status().state is RunState.OPEN
    assert not run.is_over()
    ended(queue, run)
    counts = run.status()
    assert (counts.state, counts.succeeded, counts.total) == (RunState.DONE, 2, 2)


def test_nothing_is_added_to_a_cancelled_run(queue: Queue) -> None:
    run = queue.enqueue(["a"], command="true")
    run.cancel()
    with pytest.raises(BadInput, match=f"Run {run.id} is cancelled"):
        run.add(["b"])
    assert run.status().total == 1


def test_files_are_added_below_the_root_of_a_run_of_files(queue: Queue, tmp_path: Path) -> None:
    for name in ("a/1", "a/b/2", "c", "ab"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    run = queue.enqueue([tmp_path / "a" / "1"], command="true")
    run.add([tmp_path / "a" / "b" / "2"])
    assert names(run) == ["1", "b/2"]
    for items in ([tmp_path / "c"], [tmp_path / "ab"], ["text"]):
        with pytest.raises(BadInput, match=f"does not fit into this run, which has files below {tmp_path}/a"):
            run.add(items)
    texts = queue.enqueue(["text"], command="true")
    with pytest.raises(BadInput, match="which has texts"):
        texts.add([tmp_path / "c"])
    assert (run.status().total, texts.status().total) == (2, 1)


def test_pause_and_resume_work_until_the_run_ends(queue: Queue) -> None:
    run = queue.enqueue(["a"], command="true")
    run.pause()
    assert run.status().state is RunState.PAUSED
    assert not run.is_over()
    run.resume()
    ended(queue, run)
    for steer in (run.pause, run.resume):
        with pytest.raises(BadInput, match=f"Run {run.id} is done"):
            steer()


def test_cancel_ends_some_items_or_the_whole_run(queue: Queue) -> None:
    run = queue.enqueue(["a", "b", "c", "d", "a"], command="true")
    assert run.cancel("a", "#2") == 3
    assert names(run, "cancelled") == ["a", "b", "a"]
    assert run.cancel("a") == 0
    ended(queue, run)
    assert run.cancel() == 1
    counts = run.status()
    assert (counts.state, counts.succeeded, counts.cancelled) == (RunState.CANCELLED, 1, 4)
    assert run.is_over()


def test_retry_brings_failed_items_back_all_or_some(queue: Queue) -> None:
    run = queue.enqueue(["a", "b", "c"], command="true")
    ended(queue, run, 3, Outcome(exit_code=1))
    assert run.retry("b") == 1
    assert names(run, State.READY) == ["b"]
    assert not run.is_over()
    assert run.retry() == 2
    assert run.retry() == 0
    assert run.retry("b") == 0
    assert run.status().ready == 3


def test_a_run_is_forgotten_when_it_has_ended_not_before(queue: Queue, redis: Redis) -> None:
    run = queue.enqueue(["a"], command="true", name="n")
    with pytest.raises(BadInput, match=f"Run {run.id} is open"):
        run.purge()
    run.cancel()
    run.purge()
    assert remaining(redis) == set()
    assert run.is_over()
    calls: list[Callable[[], object]] = [
        run.status, run.wait, run.pause, run.resume, run.cancel, run.retry, run.purge,
        lambda: run.add(["b"]), lambda: list(run.items()), lambda: run.log("a"), lambda: run.cancel("#1"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(UnknownRun, match=f"There is no run '{run.id}'"):
            call()
    assert list(run.results()) == []


def test_an_item_that_is_not_there_is_refused_by_its_name(queue: Queue) -> None:
    run = queue.enqueue(["a"], command="true")
    for name in ("b", "#2"):
        for call in (run.log, run.cancel, run.retry):
            with pytest.raises(UnknownItem, match=f"Run {run.id} has no item '?{name}'?"):
                call(name)


def test_a_state_that_is_none_is_refused_with_those_that_are(queue: Queue) -> None:
    run = queue.enqueue(["a"], command="true")
    with pytest.raises(BadInput, match=r"'running' is no state.*ready, leased, delayed, succeeded, failed"):
        run.items(state="running")


# Real workers


def test_results_come_as_items_end_with_failures_and_retries(
    queue: Queue, worker: subprocess.Popen[str], tmp_path: Path
) -> None:
    command = """
        case $ITEM in
            last) until [ -e go ]; do sleep 0.02; done ;;
            bad) echo "it is bad"; exit 3 ;;
            flaky) echo "attempt $PPSS_ATTEMPT"; [ "$PPSS_ATTEMPT" = 2 ] ;;
        esac
    """
    run = queue.enqueue(
        ["last", "good", "bad", "flaky"], command=command, directory=tmp_path, retries=1, no_retry_on=[3],
        retry_delay_seconds=0.01, keep_output=True,
    )  # fmt: skip
    results = run.results()
    seen = {view.name: view for view in (next(results), next(results), next(results))}
    assert seen.keys() == {"good", "bad", "flaky"}
    assert not run.is_over()
    (tmp_path / "go").touch()
    seen |= {view.name: view for view in results}
    assert {name: (str(view.state), view.exit_code, view.attempts) for name, view in seen.items()} == {
        "good": ("succeeded", 0, 1),
        "bad": ("failed", 3, 1),
        "flaky": ("succeeded", 0, 2),
        "last": ("succeeded", 0, 1),
    }
    assert seen["bad"].failed
    assert seen["bad"].last_line == "it is bad"
    assert (run.log("bad"), run.log("flaky"), run.log("good")) == ("it is bad\n", "attempt 2\n", "")
    counts = run.wait()
    assert (counts.state, counts.succeeded, counts.failed) == (RunState.DONE, 3, 1)
    assert sum(getattr(counts, state) for state in STATES) == counts.total


def test_replacement_strings_and_outputs_work_in_texts_and_in_words(
    queue: Queue, worker: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / "in" / "d").mkdir(parents=True)
    paths = [tmp_path / "in" / "d" / "a b.txt", tmp_path / "in" / "c.txt"]
    for path in paths:
        path.write_text(path.name)
    words = queue.enqueue(paths, command=["cp", "{}", "{out.}.copy"], output="words", directory=tmp_path)
    text = queue.enqueue(
        paths, command='tr a-c A-C < {} > "$OUTPUT_DIR"/{/.}', output="text", directory=tmp_path
    )
    for run in (words, text):
        assert run.wait(60).succeeded == 2, [view.outcome for view in run.items()]
    assert (tmp_path / "words" / "d" / "a b.copy").read_text() == "a b.txt"
    assert (tmp_path / "words" / "c.copy").read_text() == "c.txt"
    assert (tmp_path / "text" / "d" / "a b").read_text() == "A B.txt"


def test_what_a_function_returns_is_the_result_of_its_item(
    queue: Queue, worker: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / "lengths.py").write_text(
        "def of(text):\n    return {'length': len(text), 'list': [1 / (len(text) - 3)]}\n"
    )
    run = queue.enqueue(["four", "tre"], command="python:lengths:of", directory=tmp_path)
    results = {view.name: view for view in run.results()}
    assert results["four"].result == {"length": 4, "list": [1.0]}
    assert results["tre"].failed
    assert results["tre"].result is None
    assert "ZeroDivisionError" in run.log("tre")


def test_a_halt_rule_ends_the_wait_with_items_left(queue: Queue, worker: subprocess.Popen[str]) -> None:
    run = queue.enqueue(map(str, range(1000)), command="exit 1", halt="soon,fail=2")
    counts = run.wait(60)
    assert counts.state is RunState.PAUSED
    assert counts.reason.startswith("halted soon: ")
    assert counts.failed >= 2
    assert counts.ready > 0
    assert run.is_over()


# Waiting


def test_a_result_that_was_retried_meanwhile_comes_when_it_ends_again(queue: Queue, other: Queue) -> None:
    run = queue.enqueue(["a", "b"], command="true")
    ended(queue, run, 1, Outcome(exit_code=1))
    run.retry()
    ended(queue, run, 1)  # b
    results = run.results()
    assert [(view.name, view.state) for view in [next(results)]] == [("b", State.SUCCEEDED)]
    ended(other, run, 1, Outcome(exit_code=2))
    assert [(view.name, view.exit_code) for view in results] == [("a", 2)]


def test_all_results_come_of_a_run_that_ended_long_ago(queue: Queue) -> None:
    wanted = [str(number) for number in range(2500)]
    run = queue.enqueue(wanted, command="true")
    ended(queue, run, len(wanted))
    assert [view.name for view in run.results()] == wanted


def test_waiting_for_a_run_ends_when_it_is_cancelled(queue: Queue, other: Queue) -> None:
    ends: list[RunState] = []
    run = queue.enqueue(["a"], command="true")
    thread = threading.Thread(target=lambda: ends.append(run.wait().state))
    thread.start()
    wait_until(lambda: b"cmd=xread" in bytes(other.connection.execute("CLIENT", "LIST")), "it waits")  # type: ignore
    other.run(run.id).cancel()
    thread.join()
    assert ends == [RunState.CANCELLED]


def test_a_wait_that_takes_too_long_raises_and_the_run_goes_on(queue: Queue) -> None:
    run = queue.enqueue(["a", "b"], command="true")
    ended(queue, run)
    for seconds in (0, 0.05):
        with pytest.raises(TimeoutError, match=f"run {run.id} has not ended within {seconds} s"):
            run.wait(timeout_seconds=seconds)
    ended(queue, run)
    assert run.wait(timeout_seconds=0).state is RunState.DONE


def test_a_wait_ends_in_time_even_while_items_keep_ending(queue: Queue, address: str) -> None:
    run = queue.enqueue(["a"], command="true")
    ends = "for i = 1, 500 do redis.call('XADD', KEYS[1], '*', 's', 1, 't', 'failed', 'a', 1) end"
    enough = threading.Event()
    outlasted: list[bool] = []

    def keep_ending() -> None:
        with Redis.from_url(address) as redis:
            for _ in range(2000):
                redis.eval(ends, 1, KEYS.events(run.id))
                if enough.is_set():
                    outlasted.append(True)
                    return

    thread = threading.Thread(target=keep_ending)
    thread.start()
    try:
        with pytest.raises(TimeoutError):
            run.wait(timeout_seconds=0.1)
    finally:
        enough.set()
        thread.join()
    assert outlasted, "the wait went on for as long as items ended"


def test_an_asyncio_program_goes_on_while_it_waits_for_runs(queue: Queue, other: Queue) -> None:
    runs = [queue.enqueue(["a"], command="true"), queue.enqueue(["b"], command="true")]

    async def program() -> list[RunState]:
        waits = asyncio.gather(*(run.wait_async() for run in runs))
        for run in runs:
            assert not waits.done()
            while b"cmd=xread" not in bytes(other.connection.execute("CLIENT", "LIST")):  # type: ignore
                await asyncio.sleep(0.005)
            ended(other, run)
        return [counts.state for counts in await waits]

    assert asyncio.run(program()) == [RunState.DONE, RunState.DONE]


def test_a_wait_that_an_asyncio_program_gives_up_ends_at_once(queue: Queue, other: Queue) -> None:
    """Else the program could not end before the run does: asyncio.run waits for the threads it started."""
    run = queue.enqueue(["a"], command="true")
    rescue = threading.Timer(20, other.run(run.id).cancel)
    rescue.start()

    async def program() -> None:
        await asyncio.wait_for(run.wait_async(), 0.2)

    try:
        with pytest.raises(TimeoutError):
            asyncio.run(program())
        assert run.status().state is RunState.OPEN, "the program hung until its run ended"
    finally:
        rescue.cancel()
        rescue.join()


def test_workers_that_are_there_are_listed(queue: Queue, worker: subprocess.Popen[str]) -> None:
    (view,) = wait_until(queue.workers, "the worker is there")
    assert (view.node, view.slots) == ("me@big:2222", 2) and view.name.startswith("me@big:2222.")
    worker.terminate()
    worker.wait(20)
    assert queue.workers() == []
