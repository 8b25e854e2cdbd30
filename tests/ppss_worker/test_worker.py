"""Workers as real processes: retries, time-outs, halting, waking up, sharing, and what they refuse."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import wait_until

from ppss_queue.errors import Unavailable
from ppss_queue.model import State
from ppss_queue.rules import Halt, RetryRule

if TYPE_CHECKING:
    from conftest import Site

SOON = 8.0
"""Less than the 10 s after which an idle worker looks again by itself: who is that fast was woken."""


# Retries


def test_a_failed_item_is_tried_again_until_it_succeeds(site: Site) -> None:
    run = site.enqueue(
        ["a"], '[ "$PPSS_ATTEMPT" = 3 ] || exit 7', retry=RetryRule(retries=5, delay_seconds=0.01)
    )
    site.burst()
    view = site.item(run, "a")
    assert (view.state, view.attempts, view.lost) == (State.SUCCEEDED, 3, 0)
    assert site.ends(run) == [(1, "succeeded")]


def test_an_item_whose_retries_are_used_up_has_failed_with_its_exit_code(site: Site) -> None:
    run = site.enqueue(["a"], "echo oh; exit 7", retry=RetryRule(retries=2, delay_seconds=0.01))
    site.burst()
    view = site.item(run, "a")
    assert (view.state, view.attempts, view.exit_code) == (State.FAILED, 3, 7)
    assert view.last_line == "oh"
    assert site.ends(run) == [(1, "failed")]


@pytest.mark.parametrize(
    ("rule", "attempts"),
    [
        (RetryRule(2, 0.01, on=(7,)), {"6": 1, "7": 3}),
        (RetryRule(2, 0.01, not_on=(7,)), {"6": 3, "7": 1}),
    ],
)
def test_only_the_exit_codes_named_are_retried(site: Site, rule: RetryRule, attempts: dict[str, int]) -> None:
    run = site.enqueue(["6", "7"], 'exit "$ITEM"', retry=rule)
    site.burst()
    assert {view.name: view.attempts for view in run.items()} == attempts
    assert site.states(run) == {"failed": 2}


def test_an_item_killed_by_a_signal_is_retried_and_tells_the_signal(site: Site) -> None:
    run = site.enqueue(["a"], "kill -9 $$", retry=RetryRule(1, 0.01))
    site.burst()
    view = site.item(run, "a")
    assert (view.attempts, view.exit_code, view.outcome.signal) == (2, None, 9)


def test_exit_in_a_command_ends_the_item_and_not_the_run(site: Site) -> None:
    """Old fault 4: `exit 3` hung the run."""
    done = site.ppss("run", "-p", "2", "-c", ": {}; exit 3", stdin="a\nb\nc\n")
    assert done.returncode == 1, done.stderr
    assert "3 failed alike · exit 3" in done.stderr


def test_hundreds_of_failures_do_not_wrap_round_to_exit_code_0(site: Site) -> None:
    """Old fault 12: 256 failures exited with 0."""
    done = site.ppss("run", "-p", "2", "-q", "--", "false", stdin="\n".join(map(str, range(512))))
    assert done.returncode == 1, done.stderr
    assert "512 failed" in done.stderr


# Time-outs


def test_a_command_over_its_time_gets_sigterm_with_all_its_children(site: Site) -> None:
    run = site.enqueue(
        ["a"],
        "(trap 'echo child asked; exit' TERM; echo $BASHPID > child.pid; while :; do sleep 0.05; done) & "
        "trap 'wait; echo asked; exit 9' TERM; echo $$ > own.pid; wait",
        timeout_seconds=0.5,
    )
    site.burst(timeout_seconds=SOON)
    view = site.item(run, "a")
    assert (view.state, view.exit_code) == (State.FAILED, 9)
    assert view.outcome.reason == "timed out after 500 ms"
    assert run.log("a").startswith("child asked\nasked\n")
    assert not any(map(site.alive, site.pids("*.pid", 2)))


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace_time(site: Site) -> None:
    run = site.enqueue(
        ["a"],
        "trap '' TERM; echo $$ > own.pid; while :; do sleep 0.05; done",
        timeout_seconds=0.3,
        grace_seconds=0.3,
    )
    site.burst(timeout_seconds=SOON)
    view = site.item(run, "a")
    assert (view.outcome.signal, view.outcome.reason) == (9, "timed out after 300 ms")
    assert not any(map(site.alive, site.pids("*.pid", 1)))


def test_a_command_that_ends_well_after_its_time_was_over_has_still_failed(site: Site) -> None:
    run = site.enqueue(["a"], "trap 'exit 0' TERM; sleep 1000 & wait", timeout_seconds=0.3)
    site.burst()
    assert site.item(run, "a").outcome.reason == "timed out after 300 ms"
    assert site.states(run) == {"failed": 1}


def test_a_timed_out_item_is_retried(site: Site) -> None:
    run = site.enqueue(
        ["a"], '[ "$PPSS_ATTEMPT" = 2 ] || sleep 1000', timeout_seconds=0.5, retry=RetryRule(1, 0.01)
    )
    site.burst()
    assert (site.item(run, "a").state, site.item(run, "a").attempts) == (State.SUCCEEDED, 2)


# Halting

_GO = "until [ -e go ]; do sleep 0.02; done"
_LONG_RUNS = "until [ -s long.pid ]; do sleep 0.02; done"


def test_halt_now_ends_what_runs_and_resume_does_the_rest(site: Site) -> None:
    command = f'case $ITEM in bad) {_LONG_RUNS}; exit 1;; esac; echo $$ > "$ITEM.pid"; {_GO}'
    halted = site.ppss("run", "-p", "2", "--halt", "now,fail=1", "-c", command, stdin="long\nbad\nx\ny\n")
    assert halted.returncode == 1, halted.stderr
    run = site.queue.run("last")
    assert " (1 item failed): " in halted.stderr
    assert f"ppss run --resume {run.id}" in halted.stderr
    assert site.states(run) == {"ready": 3, "failed": 1}
    assert not any(map(site.alive, site.pids("long.pid", 1)))
    (site.directory / "go").touch()
    resumed = site.ppss("run", "--resume", run.id, "-p", "2")
    assert resumed.returncode == 1, resumed.stderr
    assert site.states(run) == {"succeeded": 3, "failed": 1}
    assert site.item(run, "long").attempts == 2


def test_halt_soon_lets_running_items_end_and_starts_no_other(site: Site) -> None:
    command = f'case $ITEM in bad) {_LONG_RUNS}; exit 1;; esac; echo $$ > "$ITEM.pid"; {_GO}'
    run = site.enqueue(["long", "bad", *"uvwxyz"], command, halt=Halt.parse("soon,fail=1"))
    worker = site.worker("--burst")
    wait_until(lambda: run.status().reason, "run is halted")
    wait_until(lambda: site.states(run) == {"ready": 6, "leased": 1, "failed": 1}, "the rest is handed back")
    assert all(map(site.alive, site.pids("long.pid", 1)))
    (site.directory / "go").touch()
    assert worker.wait(SOON) == 0
    assert site.states(run) == {"ready": 6, "succeeded": 1, "failed": 1}


def test_a_percentage_of_failures_halts(site: Site) -> None:
    items = [str(number) for number in range(60)]
    run = site.enqueue(items, "sleep 0.02; exit 1", halt=Halt.parse("soon,fail=50%"))
    site.burst()
    counts = run.status()
    assert counts.failed >= 3
    assert counts.ready == 60 - counts.failed > 0


def test_fewer_failures_than_the_percentage_do_not_halt(site: Site) -> None:
    items = [str(number) for number in range(1, 31)]
    run = site.enqueue(items, "[ $((ITEM % 3)) != 0 ]", halt=Halt.parse("now,fail=50%"))
    site.burst()
    assert site.states(run) == {"succeeded": 20, "failed": 10}


# Waking up without polling


def test_an_idle_worker_starts_a_new_item_at_once(site: Site) -> None:
    site.worker()
    site.wait_idle()
    site.enqueue(["a"], "true").wait(SOON)
    site.wait_idle()  # and again, after it has worked
    run = site.enqueue(["a"], "true")
    run.wait(SOON)
    site.wait_idle()
    run.add(["b"])
    run.wait(SOON)
    assert site.states(run) == {"succeeded": 2}


def test_an_idle_worker_starts_a_retry_when_it_is_due(site: Site) -> None:
    run = site.enqueue(["a"], '[ "$PPSS_ATTEMPT" = 2 ]', retry=RetryRule(1, 1.0))
    site.worker()
    run.wait(SOON)
    assert site.states(run) == {"succeeded": 1}


def test_an_idle_worker_starts_items_of_a_resumed_run(site: Site) -> None:
    run = site.enqueue(["a"], "true")
    run.pause()
    site.worker()
    site.wait_idle()
    assert site.states(run) == {"ready": 1}
    run.resume()
    run.wait(SOON)
    assert site.states(run) == {"succeeded": 1}


def test_an_idle_worker_starts_an_item_retried_by_hand(site: Site) -> None:
    run = site.enqueue(["a"], "[ -e go ]")
    site.worker()
    wait_until(lambda: site.states(run) == {"failed": 1}, "item failed")
    site.wait_idle()
    (site.directory / "go").touch()
    assert run.retry() == 1
    run.wait(SOON)
    assert site.states(run) == {"succeeded": 1}


def test_an_idle_worker_takes_the_item_of_a_killed_one_when_its_lease_expires(site: Site) -> None:
    run = site.enqueue(
        ["a"], 'echo $$ > "$PPSS_NODE.pid"; [ "$PPSS_NODE" = b ] || sleep 1000', visibility_seconds=1
    )
    killed = site.worker("--node-name", "a")
    site.pids("a.pid", 1)
    site.worker("--node-name", "b")
    site.wait_idle()
    killed.kill()
    run.wait(SOON)
    view = site.item(run, "a")
    assert (view.state, view.attempts, view.lost, view.outcome.node) == (State.SUCCEEDED, 2, 1, "b")


def test_a_clock_that_is_a_day_off_changes_nothing(site: Site) -> None:
    """Leases and retries are timed by the clock of Redis, whatever a node believes the time to be."""
    command = f'echo "$PPSS_NODE" >> $ITEM.nodes; [ $ITEM != fails ] || exit 1; [ $ITEM != long ] || {_GO}'
    day = 86400
    for name, off in (("slow", -day), ("fast", day)):
        site.worker("--node-name", name, CLOCK_OFF_SECONDS=str(off))
    site.wait_idle(2)
    run = site.enqueue(
        ["long", "fails"], command, visibility_seconds=1, retry=RetryRule(retries=2, delay_seconds=0.2)
    )
    wait_until(lambda: run.status().failed == 1, "its retries came in time")
    first = site.deadline(run)
    wait_until(lambda: site.deadline(run) > first + 1, "the lease is renewed, twice and more")
    assert abs(site.deadline(run) - 2 * 3155760000 - time.time()) < 60
    (site.directory / "go").touch()
    run.wait(SOON)
    assert [(view.state, view.attempts, view.lost) for view in run.items()] == [
        (State.SUCCEEDED, 1, 0),
        (State.FAILED, 4, 0),  # its first failure was tried on the other node too
    ]


def test_an_idle_worker_is_woken_when_rq_is_resumed(site: Site) -> None:
    connection, keys = site.queue.connection, site.queue.keys
    connection.execute("SET", keys.suspended, 1)
    run = site.enqueue(["a"], "true")
    site.worker()
    site.wait_idle()
    assert site.states(run) == {"ready": 1}
    connection.execute("DEL", keys.suspended)
    run.wait(SOON)
    assert site.states(run) == {"succeeded": 1}


def test_a_worker_that_waits_for_the_last_item_of_another_one_ends_with_the_run(site: Site) -> None:
    run = site.enqueue(["a"], f"echo $$ > a.pid; {_GO}")
    site.worker()
    site.pids("a.pid", 1)
    waiting = site.start("worker", "-p", "1", "--burst", "--run", run.id)
    site.wait_idle(2)
    (site.directory / "go").touch()
    assert waiting.wait(SOON) == 0, waiting.log


def test_an_idle_worker_sends_next_to_nothing_and_uses_no_cpu(site: Site) -> None:
    run = site.enqueue(["a"], "true")
    worker = site.worker()
    run.wait(SOON)
    site.wait_idle()

    def commands() -> int:
        info = site.queue.connection.execute("INFO", "stats")
        assert isinstance(info, bytes)
        return int(info.split(b"total_commands_processed:")[1].split()[0])

    # Its 10 s heartbeat and look may fall into this time, which is all that it may send.
    before, used = commands(), worker.cpu_seconds
    time.sleep(2)
    assert commands() - before <= 8
    assert worker.cpu_seconds - used <= 0.05


# Steering a run


def test_cancelling_a_run_kills_its_commands_at_once(site: Site) -> None:
    run = site.enqueue(["a", "b", "c"], 'echo $$ > "$ITEM.pid"; sleep 1000')
    worker = site.worker("--burst")
    pids = site.pids("*.pid", 2)
    assert run.cancel() == 3
    site.wait_gone(pids, 5)
    assert worker.wait(SOON) == 0
    assert site.states(run) == {"cancelled": 3}


def test_cancelling_one_running_item_leaves_the_others_alone(site: Site) -> None:
    run = site.enqueue(["a", "b"], f'echo $$ > "$ITEM.pid"; {_GO}')
    worker = site.worker("--burst")
    (victim,) = site.pids("a.pid", 1)
    (other,) = site.pids("b.pid", 1)
    assert run.cancel("a") == 1
    site.wait_gone([victim], 5)
    assert site.alive(other)
    (site.directory / "go").touch()
    assert worker.wait(SOON) == 0
    assert site.states(run) == {"succeeded": 1, "cancelled": 1}
    assert sorted(site.ends(run)) == [(1, "cancelled"), (2, "succeeded")]


def test_pausing_hands_prefetched_items_back_and_lets_running_ones_end(site: Site) -> None:
    run, _ = site.prefetched()
    run.pause()
    wait_until(lambda: run.status().leased == 1, "prefetched items are handed back")
    (site.directory / "go").touch()
    wait_until(lambda: run.status().leased == 0, "the running item ended")
    counts = run.status()
    assert (counts.state, counts.succeeded, counts.failed) == ("paused", 41, 0)


# Sharing


def test_a_huge_run_does_not_starve_a_small_one_enqueued_later(site: Site) -> None:
    huge = site.enqueue([str(number) for number in range(1000)], "sleep 0.01")
    worker = site.worker()
    wait_until(lambda: huge.status().succeeded > 20, "the huge run is under way")
    small = site.enqueue([str(number) for number in range(10)], "sleep 0.01")
    small.wait(20)
    assert huge.status().ready > 500
    worker.signal(signal.SIGTERM)
    worker.wait()


def test_a_run_of_priority_3_gets_three_times_as_much(site: Site) -> None:
    items = [str(number) for number in range(120)]
    heavy = site.enqueue(items, "sleep 0.005; echo heavy >> order", priority=3)
    light = site.enqueue(items, "sleep 0.005; echo light >> order", priority=1)
    site.burst()
    assert site.states(heavy) == site.states(light) == {"succeeded": 120}
    order = (site.directory / "order").read_text().split()
    last = len(order) - order[::-1].index("heavy")
    assert 20 <= order[:last].count("light") <= 80  # 40 on average; claims come in batches


# What a worker is told


def test_slot_numbers_are_dense_and_unique_on_a_node(site: Site) -> None:
    run = site.enqueue([*"abcd"], f'echo "$PPSS_SLOT" {{%}} > "$ITEM.slot"; {_GO}')
    site.worker()
    site.worker()
    slots = wait_until(
        lambda: sorted(found) if len(found := list(site.directory.glob("*.slot"))) == 4 else None, "all run"
    )
    wait_until(lambda: all(path.read_text() for path in slots), "slots are written")
    assert sorted(path.read_text() for path in slots) == ["1 1\n", "2 2\n", "3 3\n", "4 4\n"]
    (site.directory / "go").touch()
    run.wait(SOON)


def test_a_worker_serves_only_the_runs_it_was_told(site: Site) -> None:
    first, second = site.enqueue(["a"], "true"), site.enqueue(["a"], "true", name="mine")
    site.burst("--run", "mine", timeout_seconds=SOON)
    assert (site.states(first), site.states(second)) == ({"ready": 1}, {"succeeded": 1})


def test_a_run_without_a_command_waits_for_a_worker_that_has_one(site: Site) -> None:
    run = site.enqueue(["a", "b"], None)
    site.burst(timeout_seconds=SOON)
    assert site.states(run) == {"ready": 2}
    site.burst("-c", 'echo "$ITEM" >> seen')
    assert sorted((site.directory / "seen").read_text().split()) == ["a", "b"]


def test_the_own_command_of_a_worker_is_not_for_runs_that_have_one(site: Site) -> None:
    site.enqueue(["a"], "echo theirs >> seen")
    site.burst("-c", ": {}; echo mine >> seen")
    assert (site.directory / "seen").read_text() == "theirs\n"


def test_commands_run_with_the_niceness_asked_for_and_nothing_on_stdin(site: Site) -> None:
    site.enqueue(["a"], "nice > seen; cat >> seen; echo end >> seen")
    site.burst("--nice", "7")
    assert (site.directory / "seen").read_text() == f"{os.nice(0) + 7}\nend\n"


def test_a_start_delay_lasts_although_items_arrive(site: Site) -> None:
    delayed = site.worker("-D", "1000d", "--node-name", "late")
    site.wait_idle()
    run = site.enqueue(["a"], "true")
    site.wait_idle()
    assert site.states(run) == {"ready": 1}
    site.burst("--node-name", "prompt")
    assert site.item(run, "a").outcome.node == "prompt"
    delayed.signal(signal.SIGTERM)
    assert delayed.wait(SOON) == 0


def test_a_short_start_delay_passes(site: Site) -> None:
    run = site.enqueue(["a"], "true")
    site.burst("-D", "300ms", timeout_seconds=SOON)
    assert site.states(run) == {"succeeded": 1}


# What a worker can't do


def test_a_command_that_is_not_on_the_node_fails_its_items_and_says_so(site: Site) -> None:
    run = site.enqueue([*"abc"], ["no-such-program", "{}"])
    site.burst(timeout_seconds=SOON)
    for view in run.items():
        assert (view.state, view.exit_code) == (State.FAILED, 127)
        assert (
            view.last_line == "'no-such-program': command not found. Install it on this node, or mend PATH."
        )


def test_a_run_whose_directory_is_not_on_the_node_is_left_to_other_nodes(site: Site) -> None:
    """One bad run ended each worker, and so starved all other runs."""
    (site.directory / "gone").mkdir()
    run = site.enqueue([*"abc"], "true", directory=str(site.directory / "gone"))
    (site.directory / "gone").rmdir()
    good = site.enqueue([str(number) for number in range(20)], "true")
    worker = site.worker()
    good.wait(SOON)
    wait_until(lambda: site.states(run) == {"ready": 3}, "its items are handed back")
    said = [line for line in worker.log.splitlines() if "left to other nodes" in line]
    assert len(said) == 1
    assert said[0].endswith(
        "gone' can't be entered on this node (No such file or directory): make or mount it here."
    )
    worker.signal(signal.SIGTERM)
    assert worker.wait(SOON) == 0
    assert site.worker("--burst").wait(SOON) == site.worker("--run", run.id).wait(SOON) == 2
    assert [(view.state, view.lost) for view in run.items()] == [(State.READY, 0)] * 3


def test_items_held_for_a_slot_that_stays_busy_go_to_others(site: Site) -> None:
    """Eighteen quick items waited behind a long one while another worker was idle."""
    run, _ = site.prefetched()
    site.worker("--node-name", "b")
    wait_until(lambda: run.status().succeeded == 59, "all but the long one are done elsewhere")
    (site.directory / "go").touch()
    run.wait(SOON)


def test_a_newer_schema_is_refused_with_a_sentence(site: Site) -> None:
    site.queue.connection.execute("SET", site.queue.keys.schema, 99)
    worker = site.worker()
    assert worker.wait(SOON) == 2
    assert "ppss: " in worker.log


def test_a_run_of_a_newer_ppss_is_left_alone_and_said_once(site: Site) -> None:
    newer, run = site.enqueue(["a"], "true"), site.enqueue(["a"], "true")
    site.queue.connection.execute("HSET", site.queue.keys.run(newer.id), "version", 99)
    worker = site.worker()
    run.wait(SOON)
    site.wait_idle()
    run.add(["b"])
    run.wait(SOON)
    site.wait_idle()
    assert site.states(newer) == {"ready": 1}
    site.burst(timeout_seconds=SOON)  # nor is it waited for
    assert worker.log.count(f"run {newer.id} was made by a newer PPSS") == 1


# Long life


def test_a_worker_leaks_no_descriptors(site: Site) -> None:
    worker = site.worker()

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{worker.pid}/fd"))

    def work(count: int, **options: object) -> int:
        run = site.enqueue([str(number) for number in range(count)], ["true"], **options)
        run.wait(60)
        site.wait_idle()
        assert site.states(run) == {"succeeded": count}
        return descriptors()

    few = work(20)
    work(300, output=str(site.directory / "out"))
    assert work(1700) == few


# Redis goes away


class Server:
    """A Valkey of its own, which keeps what it has on disk, to be killed and started again."""

    def __init__(self, binary: Path, directory: Path) -> None:
        self._binary = binary
        self._directory = directory
        self.address = f"unix://{directory}/s"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = f"--port 0 --dir {self._directory} --unixsocket {self._directory}/s --appendonly yes"
        with (self._directory / "log").open("ab") as log:
            options += " --appendfsync always --enable-protected-configs yes"
            self._process = subprocess.Popen(
                [self._binary, *options.split(), "--save", ""],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        from ppss_queue.address import Address
        from ppss_queue.connection import Connection
        from ppss_queue.errors import ServiceFailed

        def answers() -> bool:
            try:
                Connection.open(Address.parse(self.address)).close()
            except ServiceFailed:
                return False
            return True

        wait_until(answers, "own server answers")

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture
def own_server(server_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(server_binary, tmp_path_factory.mktemp("v"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_site(own_server: Server, site: Site) -> Iterator[Site]:
    """A site on the server that may be killed."""
    place = type(site)(own_server.address, site.environment, site.directory)
    yield place
    place.close()


def test_a_worker_outlives_a_restart_of_redis_and_records_each_outcome_once(
    own_site: Site, own_server: Server
) -> None:
    site = own_site
    output = site.directory / "out"
    run = site.enqueue([*"abcd"], f'echo $$ > "$ITEM.pid"; {_GO}; echo x > {{out}}', output=str(output))
    worker = site.worker()
    pids = site.pids("*.pid", 2)
    own_server.kill()
    wait_until(lambda: "trying again" in worker.log, "the loss is noticed")
    assert all(map(site.alive, pids))
    (site.directory / "go").touch()
    site.wait_gone(pids)
    own_server.start()
    site.queue.connection.reopen()
    run.wait(SOON)
    assert site.states(run) == {"succeeded": 4}
    assert sorted(site.ends(run)) == [(number, "succeeded") for number in (1, 2, 3, 4)]
    assert [view.attempts for view in run.items()] == [1, 1, 1, 1]
    assert sorted(path.name for path in output.iterdir() if path.name != ".ppss") == [*"abcd"]
    later = site.enqueue(["e"], "true")
    later.wait(SOON)
    assert site.states(later) == {"succeeded": 1}
    worker.signal(signal.SIGTERM)
    assert worker.wait(SOON) == 0, worker.log


@pytest.mark.parametrize("name", ["ppss-worker", "ppss-leases"])
def test_a_worker_outlives_the_loss_of_any_one_connection(site: Site, name: str) -> None:
    """As a server with `timeout 300` cuts them."""
    worker = site.worker("-p", "1")
    for _ in range(2):
        run = site.enqueue(["a"], f"echo $$ > a.pid; {_GO}", visibility_seconds=1)
        site.pids("a.pid", 1)
        wait_until(lambda run=run: run.status().running == 1, "it is known to have started")
        _cut(site, name)
        wait_until(lambda: name in site.connections(), "the connection is there again")
        deadline = site.deadline(run)
        wait_until(lambda run=run, then=deadline: site.deadline(run) > then + 0.5, "the lease is renewed")
        (site.directory / "go").touch()
        run.wait(SOON)
        assert [(view.state, view.attempts) for view in run.items()] == [(State.SUCCEEDED, 1)]
        (site.directory / "go").unlink()
        (site.directory / "a.pid").unlink()
        site.wait_idle()
        _cut(site, name)
        wait_until(lambda: name in site.connections(), "the connection is there again")
    used = worker.cpu_seconds
    time.sleep(0.5)
    assert worker.cpu_seconds - used < 0.2


def test_a_refusal_that_passes_costs_no_item_and_no_cpu(own_site: Site) -> None:
    """A server whose disk is full answers everything with MISCONF: the worker killed what it ran, and then span."""
    site = own_site
    run = site.enqueue([*"abc"], f'echo $$ > "$ITEM.pid"; {_GO}')
    worker = site.worker()
    pids = site.pids("*.pid", 2)
    (site.directory / "data").mkdir()
    admin = site.queue.connection
    admin.execute("CONFIG", "SET", "save", "3600 1")
    admin.execute("CONFIG", "SET", "dir", str(site.directory / "data"))
    (site.directory / "data").rmdir()
    admin.execute("BGSAVE")
    wait_until(lambda: isinstance(admin.execute_many([("PING",)])[0], Unavailable), "the server refuses")
    admin.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    wait_until(lambda: "trying again" in worker.log, "the refusal is noticed")
    assert all(map(site.alive, pids))
    used = worker.cpu_seconds
    time.sleep(0.5)
    assert worker.cpu_seconds - used < 0.25
    admin.execute("CONFIG", "SET", "dir", str(site.directory))
    admin.execute("CONFIG", "SET", "save", "")
    (site.directory / "go").touch()
    admin.reopen()
    run.wait(SOON)
    assert [(view.state, view.attempts) for view in run.items()] == [(State.SUCCEEDED, 1)] * 3


def test_a_permission_that_is_missing_ends_the_worker_with_exit_code_3(own_site: Site) -> None:
    """It tried for ever, said so once, and ended with 0 when it was stopped."""
    site = own_site
    run = site.enqueue([*"abc"], f'echo $$ > "$ITEM.pid"; {_GO}')
    worker = site.worker()
    site.pids("*.pid", 2)
    site.queue.connection.execute("ACL", "SETUSER", "default", "-zrem")
    (site.directory / "go").touch()
    assert worker.wait() == 3, worker.log
    assert "grant it in the ACL" in worker.log.splitlines()[-1]
    site.queue.connection.execute("ACL", "SETUSER", "default", "+@all")
    assert run.status().succeeded == 0


def test_a_redis_that_hangs_does_not_keep_stopped_workers(own_site: Site, own_server: Server) -> None:
    """One is idle, the other one has an outcome that it can't tell."""
    site = own_site
    run = site.enqueue(["a"], f"echo $$ > a.pid; {_GO}")
    busy = site.worker("-p", "1")
    pids = site.pids("a.pid", 1)
    idle = site.worker("--run", site.enqueue([], "true").id)
    site.wait_idle()
    own_server.signal(signal.SIGSTOP)
    for worker in (busy, idle):
        worker.signal(signal.SIGTERM)
    (site.directory / "go").touch()
    site.wait_gone(pids)
    assert idle.wait(30) == 0, idle.log
    assert busy.wait(60) == 3, busy.log
    own_server.signal(signal.SIGCONT)
    assert run.status().succeeded <= 1


def test_a_resume_during_a_lost_connection_is_not_missed(site: Site) -> None:
    """The worker held the run for paused for ever, and claimed and released its items in a loop."""
    run = site.enqueue([*"abcd"], f'echo $$ > "$ITEM.pid"; {_GO}', visibility_seconds=1)
    worker = site.worker("-p", "1")
    site.pids("*.pid", 1)
    run.pause()
    wait_until(lambda: run.status().leased == 1, "what was held is handed back")
    (site.directory / "go").touch()
    wait_until(lambda: run.status().succeeded == 1, "the first one is done")
    worker.signal(signal.SIGSTOP)
    site.queue.connection.execute("CLIENT", "KILL", "ID", site.connections()["ppss-leases"]["id"])
    run.resume()
    worker.signal(signal.SIGCONT)
    run.wait()
    assert site.states(run) == {"succeeded": 4}


def _cut(site: Site, name: str) -> None:
    known = site.connections()[name]["id"]
    assert site.queue.connection.execute("CLIENT", "KILL", "ID", known) == 1
    wait_until(lambda: site.connections().get(name, {}).get("id") != known, "the connection is cut")


def test_workers_told_to_stop_while_redis_is_away_give_up_with_exit_code_3(
    own_site: Site, own_server: Server
) -> None:
    """One is idle, one has outputs to publish, one still runs a command."""
    site = own_site
    command = 'echo $$ > "$ITEM.pid"; until [ -e "$ITEM.go" ]; do sleep 0.02; done; echo x > {out}'
    options = {"output": str(site.directory / "out"), "visibility_seconds": 1}
    publishes, runs = (site.enqueue([name], command, **options) for name in ("publishes", "runs"))
    busy = site.worker("--run", runs.id)
    workers = [site.worker("--run", publishes.id), site.worker("--run", site.enqueue([], "true").id)]
    site.pids("runs.pid", 1)
    pids = site.pids("publishes.pid", 1)
    site.wait_idle(3)
    own_server.kill()
    for worker in (busy, *workers):
        wait_until(lambda worker=worker: "trying again" in worker.log, "the loss is noticed")
    (site.directory / "publishes.go").touch()
    site.wait_gone(pids)
    for worker in (busy, *workers):
        worker.signal(signal.SIGTERM)
    for worker in workers:
        assert worker.wait() == 3, worker.log
        assert "Start Redis there" in worker.log.splitlines()[-1]
    assert all(map(site.alive, site.pids("runs.pid", 1)))
    (site.directory / "runs.go").touch()
    assert busy.wait() == 3
    own_server.start()
    site.queue.connection.reopen()
    site.burst()
    assert site.states(publishes) == site.states(runs) == {"succeeded": 1}
