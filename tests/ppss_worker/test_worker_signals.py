"""What becomes of items and commands when a worker is killed, told to stop, interrupted or frozen."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from helpers import wait_until

from ppss_queue.model import State

if TYPE_CHECKING:
    from conftest import Site

SOON = 8.0

# An item's first attempt waits for the file `go`; each attempt notes the number of its process.
WAITS = 'echo $$ > "$ITEM.$PPSS_NODE.pid"; until [ -e go ]; do sleep 0.02; done'
# Only the worker `a` waits.
A_WAITS = 'echo $$ > "$ITEM.$PPSS_NODE.pid"; [ "$PPSS_NODE" != a ] || until [ -e go ]; do sleep 0.02; done'


# kill -9


def test_a_killed_worker_leaves_no_command_and_its_items_come_back(site: Site) -> None:
    """Old faults 3 and 14: a crashed node's items were lost and counted done; it showed RUNNING for ever."""
    run = site.enqueue([*"bcdef"], f"{A_WAITS}; sleep 0.01 & wait $!", visibility_seconds=1)
    killed = site.worker("--node-name", "a")
    pids = site.pids("*.a.pid", 2)
    wait_until(lambda: run.status().running == 2, "both are known to have started")
    killed.kill()
    site.wait_gone(pids)
    site.burst("--node-name", "b")
    assert site.states(run) == {"succeeded": 5}
    assert [(view.attempts, view.lost) for view in run.items()] == [(2, 1)] * 2 + [(1, 0)] * 3
    assert run.status().lost == 2


def test_children_that_left_their_process_group_die_with_the_worker_too(site: Site) -> None:
    site.enqueue(["x"], f"setsid sleep 1000 & echo $! > escaped.pid; {WAITS}")
    worker = site.worker("--node-name", "a")
    pids = [*site.pids("x.a.pid", 1), *site.pids("escaped.pid", 1)]
    worker.kill()
    site.wait_gone(pids)


def test_an_item_that_its_workers_did_not_survive_too_often_has_failed(site: Site) -> None:
    run = site.enqueue(["x"], WAITS, visibility_seconds=1, max_lost=1)
    for node in "ab":
        worker = site.worker("--node-name", node)
        site.pids(f"x.{node}.pid", 1)
        wait_until(lambda: run.status().running == 1, "it is known to have started")
        worker.kill()
    site.burst()
    view = site.item(run, "x")
    assert (view.state, view.attempts, view.lost) == (State.FAILED, 2, 2)
    assert view.outcome.reason == "lost 2 times: its worker died"
    assert site.ends(run) == [(1, "failed")]


def test_items_that_a_killed_worker_held_but_had_not_started_are_not_charged(site: Site) -> None:
    run, worker = site.prefetched(visibility_seconds=1, max_lost=0)
    worker.kill()
    site.burst("--node-name", "b")
    assert site.states(run) == {"succeeded": 59, "failed": 1}
    assert {(view.attempts, view.lost) for view in run.items() if view.name != "41"} == {(1, 0)}
    assert (site.item(run, "41").state, site.item(run, "41").lost) == (State.FAILED, 1)


# SIGTERM


def test_sigterm_hands_back_what_is_not_started_and_keeps_the_lease_of_what_runs(site: Site) -> None:
    """The drain lasts longer than the visibility timeout while another worker is hungry."""
    run, worker = site.prefetched(visibility_seconds=1)
    worker.signal(signal.SIGTERM)
    wait_until(lambda: run.status().leased == 1, "prefetched items are handed back")
    site.worker("--node-name", "b")
    wait_until(lambda: run.status().succeeded == 59, "the other worker does the rest")
    deadline = site.deadline(run)
    wait_until(lambda: site.deadline(run) > deadline + 2, "the lease is renewed again and again")
    (site.directory / "go").touch()
    assert worker.wait(SOON) == 0
    view = site.item(run, "41")
    assert (view.state, view.attempts, view.lost, view.outcome.node) == (State.SUCCEEDED, 1, 0, "a")
    assert "handed back" not in worker.log


def test_a_draining_worker_takes_nothing_new(site: Site) -> None:
    run = site.enqueue(["x"], WAITS)
    worker = site.worker("--node-name", "a")
    site.pids("x.a.pid", 1)
    worker.signal(signal.SIGTERM)
    site.wait_idle(0)
    later = site.enqueue(["y"], "true")
    (site.directory / "go").touch()
    assert worker.wait(SOON) == 0
    assert (site.states(run), site.states(later)) == ({"succeeded": 1}, {"ready": 1})


def test_items_whose_claim_was_on_its_way_when_the_worker_was_told_to_stop_go_back(site: Site) -> None:
    run = site.enqueue(["x", "y"], WAITS)
    worker = site.worker("-p", "1", "--node-name", "a")
    site.pids("x.a.pid", 1)
    site.queue.connection.execute("CLIENT", "PAUSE", 20_000, "WRITE")
    (site.directory / "go").touch()
    wait_until(
        lambda: "b" in site.connections()["ppss-worker"]["flags"], "outcome and claim wait for an answer"
    )
    asleep = worker.sleeps
    worker.signal(signal.SIGTERM)
    wait_until(lambda: worker.sleeps > asleep, "the worker has taken notice")
    site.queue.connection.execute("CLIENT", "UNPAUSE")
    assert worker.wait(SOON) == 0
    assert site.states(run) == {"ready": 1, "succeeded": 1}
    assert site.item(run, "y").attempts == 0


def test_a_second_sigterm_hands_everything_back(site: Site) -> None:
    run, worker = site.prefetched()
    pids = site.pids("41.a.pid", 1)
    worker.signal(signal.SIGTERM)
    wait_until(lambda: run.status().leased == 1, "prefetched items are handed back")
    assert all(map(site.alive, pids))
    worker.signal(signal.SIGTERM)
    assert worker.wait(SOON) == 130, "not drained but interrupted"
    assert site.states(run) == {"ready": 20, "succeeded": 40}
    assert (site.item(run, "41").attempts, site.item(run, "41").lost) == (1, 0)
    assert not any(map(site.alive, pids))


# Ctrl-C


def test_an_idle_worker_ends_with_130_after_ctrl_c_and_with_0_after_sigterm(site: Site) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        worker = site.worker()
        site.wait_idle()
        worker.signal(number)
        assert worker.wait(SOON) == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_worker_leaves_no_orphan_and_loses_nothing(site: Site, number: int) -> None:
    """Old fault 5: Ctrl-C hung the run and lost the item."""
    run = site.enqueue([*"xyz"], f"sleep 1000 & echo $! > $ITEM.child.pid; {WAITS}")
    worker = site.worker("--node-name", "a")
    pids = site.pids("*.pid", 4)
    worker.signal(number)
    assert worker.wait(SOON) == 130
    wait_until(lambda: not any(map(site.alive, pids)), "what was killed is gone")
    assert site.states(run) == {"ready": 3}
    (site.directory / "go").touch()
    site.burst()
    assert site.states(run) == {"succeeded": 3}


def test_what_was_told_to_end_did_not_succeed_whatever_it_exits_with(site: Site) -> None:
    """Many programs end with 0 on SIGTERM: half an output was published, and the item called done."""
    output = site.directory / "out"
    command = f"trap 'exit 0' TERM; echo half > {{out}}; {WAITS}; echo whole >> {{out}}"
    run = site.enqueue(["x"], command, output=str(output))
    worker = site.worker("--node-name", "a")
    site.pids("x.a.pid", 1)
    worker.signal(signal.SIGINT)
    worker.wait(SOON)
    assert site.states(run) == {"ready": 1}
    assert not (output / "x").exists()
    (site.directory / "go").touch()
    site.burst()
    assert (output / "x").read_text() == "half\nwhole\n"


def test_a_hangup_that_the_caller_ignores_is_ignored(site: Site) -> None:
    """`nohup ppss worker &`: the terminal goes, the worker stays."""
    run = site.enqueue(["x"], WAITS)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        worker = site.worker("--node-name", "a")
        site.pids("x.a.pid", 1)
    finally:
        signal.signal(signal.SIGHUP, before)
    worker.signal(signal.SIGHUP)
    (site.directory / "go").touch()
    run.wait(SOON)
    assert site.states(run) == {"succeeded": 1}
    worker.signal(signal.SIGTERM)
    assert worker.wait(SOON) == 0


def test_a_second_interrupt_does_not_wait_for_commands_that_refuse_to_end(site: Site) -> None:
    (site.directory / "list").write_text("x\n")
    command = f"trap '' TERM; {WAITS}"
    running = site.start("run", "-f", "list", "-c", command, "--grace", "1h", "--node-name", "a")
    pids = site.pids("x.a.pid", 1)
    running.signal(signal.SIGINT)
    wait_until(lambda: "stopping 1 running item (again: at once)" in running.log, "it is told to stop")
    assert all(map(site.alive, pids))
    running.signal(signal.SIGINT)
    assert running.wait(SOON) == 130
    assert not any(map(site.alive, pids))
    assert site.states(site.queue.run("last")) == {"ready": 1}


def test_an_interrupted_run_goes_on_where_it_was(site: Site) -> None:
    """Old fault 1: stopped and continued, it processed none of the remaining items and exited 0."""
    command = f'[ "$ITEM" -lt 3 ] || {{ {WAITS}; }}; echo "$ITEM" >> did'
    (site.directory / "list").write_text("1\n2\n3\n4\n5\n")
    running = site.start("run", "-p", "2", "-q", "-f", "list", "-c", command, "--node-name", "a")
    pids = site.pids("*.pid", 2)
    run = site.queue.run("last")
    wait_until(lambda: run.status().succeeded == 2, "two are recorded")
    running.signal(signal.SIGINT)
    assert running.wait(SOON) == 130
    assert f"run {run.id} interrupted: 2 done, 3 left, nothing lost" in running.log
    assert f"go on: ppss run --resume {run.id}" in running.log
    assert not any(map(site.alive, pids))
    assert site.states(run) == {"ready": 3, "succeeded": 2}
    (site.directory / "go").touch()
    resumed = site.ppss("run", "--resume", run.id, "-p", "2", "-q")
    assert resumed.returncode == 0, resumed.stderr
    assert sorted((site.directory / "did").read_text().split()) == [*"12345"]


# Frozen


@pytest.mark.parametrize("ends_while_frozen", [False, True])
def test_a_frozen_worker_can_not_replace_the_result_of_who_took_its_item(
    site: Site, ends_while_frozen: bool
) -> None:
    output = site.directory / "out"
    run = site.enqueue(
        ["x"], f"{A_WAITS}; echo $PPSS_NODE > {{out}}", output=str(output), visibility_seconds=1
    )
    frozen = site.worker("--node-name", "a")
    pids = site.pids("x.a.pid", 1)
    frozen.signal(signal.SIGSTOP)
    if ends_while_frozen:
        (site.directory / "go").touch()
        site.wait_gone(pids)
    site.burst("--node-name", "b")
    assert (output / "x").read_text() == "b\n"
    frozen.signal(signal.SIGCONT)
    wait_until(lambda: "lease lost, result discarded" in frozen.log, "the frozen worker notices")
    assert not any(map(site.alive, pids))
    assert (output / "x").read_text() == "b\n"
    view = site.item(run, "x")
    assert (view.state, view.attempts, view.outcome.node) == (State.SUCCEEDED, 2, "b")
    assert site.ends(run) == [(1, "succeeded")]
    frozen.signal(signal.SIGTERM)
    assert frozen.wait(SOON) == 0


@pytest.mark.parametrize("slots", ["1", "2"])
def test_a_frozen_worker_whose_item_nobody_took_goes_on_with_it(site: Site, slots: str) -> None:
    """An expired lease stays valid until another claim takes the item; its own claim, for a free slot, does not."""
    run = site.enqueue(["x"], WAITS, visibility_seconds=1)
    frozen = site.worker("-p", slots, "--node-name", "a")
    site.pids("x.a.pid", 1)
    frozen.signal(signal.SIGSTOP)
    wait_until(lambda: run.status().expired == 1, "the lease expires")
    frozen.signal(signal.SIGCONT)
    wait_until(lambda: run.status().expired == 0, "the lease is renewed")
    (site.directory / "go").touch()
    run.wait(SOON)
    assert [(view.state, view.attempts, view.lost) for view in run.items()] == [(State.SUCCEEDED, 1, 0)]
