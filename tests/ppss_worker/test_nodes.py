"""Nodes with real workers: seen, paused, resized and stopped through Redis."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from helpers import wait_until

from ppss_queue import scripts
from ppss_queue.errors import BadInput, UnknownNode
from ppss_queue.node_views import NodeState, NodeView
from ppss_queue.rules import RetryRule
from ppss_queue.scripts import Call

if TYPE_CHECKING:
    from conftest import Site, WorkerProcess

# Each attempt notes the number of its process, and waits for the file `go`.
WAITS = 'echo $$ > "$ITEM.$PPSS_NODE.$PPSS_SLOT.pid"; until [ -e go ]; do sleep 0.02; done'


def seen(site: Site, name: str = "a") -> NodeView:
    """The node, of which there is one."""
    (view,) = (view for view in site.queue.nodes() if view.name == name)
    return view


def wait_seen(site: Site, name: str = "a") -> NodeView:
    """The node, once its worker has come."""
    wait_until(lambda: any(view.name == name and view.workers for view in site.queue.nodes()), f"node {name}")
    return seen(site, name)


def test_a_node_is_seen_with_what_it_is_and_does(site: Site) -> None:
    run = site.enqueue([*"xyz"], WAITS)
    worker = site.worker("--node-name", "a")
    wait_until(lambda: run.status().running and seen(site).running == 2, "items are shown as running")
    view = seen(site)
    assert (view.state, view.reason, view.slots, view.running) == (NodeState.LIVE, "", 2, 2)
    assert [(one.pid, one.slots) for one in view.workers] == [(worker.pid, 2)]
    assert view.hostname == os.uname().nodename
    assert view.cores and view.memory_bytes and view.memory_free_bytes
    assert view.load is not None and 0 <= view.silent_seconds < 30
    assert view.version


def test_a_node_whose_worker_was_killed_is_lost_and_never_running_until_it_is_back(site: Site) -> None:
    """Old fault 14: a dead node showed RUNNING for ever."""
    run = site.enqueue(["x"], WAITS)
    worker = site.worker("--node-name", "a")
    wait_until(lambda: run.status().running == 1, "it runs")
    (name,) = (one.name for one in seen(site).workers)
    assert 0 < int(str(site.queue.connection.execute("TTL", site.queue.keys.worker(name)))) <= 30
    worker.kill()
    site.queue.connection.execute("DEL", site.queue.keys.worker(name))  # as when its time to live is over
    view = seen(site)
    assert (view.state, view.running, view.leased, view.slots, view.workers) == (NodeState.LOST, 0, 0, 0, ())
    assert view.hostname == os.uname().nodename
    site.worker("--node-name", "a")
    assert wait_seen(site).state is NodeState.LIVE


def test_a_lost_node_can_be_forgotten_and_a_live_one_not(site: Site) -> None:
    worker = site.worker("--node-name", "a")
    (one,) = wait_seen(site).workers
    with pytest.raises(BadInput, match="is alive"):
        site.queue.node("a").forget()
    worker.kill()
    site.queue.connection.execute("DEL", site.queue.keys.worker(one.name))
    site.queue.node("a").forget()
    assert site.queue.nodes() == []
    with pytest.raises(UnknownNode, match="start a worker"):
        site.queue.node("a").pause()


def test_a_worker_that_was_told_to_end_is_gone_at_once(site: Site) -> None:
    worker = site.worker("--node-name", "a")
    wait_seen(site)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert site.queue.nodes() == []
    assert site.queue.connection.execute("KEYS", "ppss:facts:*") == []


def test_a_node_with_the_name_of_another_machine_takes_a_name_of_its_own(site: Site) -> None:
    """Old fault 15: nodes with equal host names overwrote each other's status."""
    other = Call(site.queue.keys, "name", ("a", "0123456789abcdef"))
    assert scripts.run(site.queue.connection, other) == b"a"
    site.worker("--node-name", "a")
    site.worker("--node-name", "a")
    wait_until(lambda: [len(view.workers) for view in site.queue.nodes()] == [2], "both workers are there")
    (view,) = site.queue.nodes()
    assert view.name.startswith("a~")
    site.enqueue(["x"], 'echo "$PPSS_NODE" > node')
    wait_until(lambda: (site.directory / "node").exists(), "the item has run")
    wait_until(lambda: (site.directory / "node").read_text() == f"{view.name}\n", "it knew its node")


def test_a_paused_node_hands_back_what_it_has_not_begun_and_gets_nothing_until_it_is_resumed(
    site: Site,
) -> None:
    run, worker = site.prefetched()
    site.queue.node("a").pause("the fan is loud")
    wait_until(lambda: run.status().leased == 1, "prefetched items are handed back")
    wait_until(lambda: seen(site).running == 1, "what runs is shown")
    view = seen(site)
    assert (view.state, view.reason) == (NodeState.PAUSED, "the fan is loud")
    (site.directory / "go").touch()
    wait_until(lambda: run.status().succeeded == 41, "what ran goes on to its end")
    asleep = worker.sleeps
    burst = site.worker("--burst", "--node-name", "b")
    assert burst.wait() == 0
    assert site.states(run) == {"succeeded": 60}
    assert {view.outcome.node for view in run.items() if int(view.name) > 41} == {"b"}
    assert worker.sleeps < asleep + 20, "it was woken by what another node was given"
    later = site.enqueue(["y"], "true")
    site.queue.node("a").resume()
    wait_until(lambda: later.status().succeeded, "it takes items again")
    assert "is paused (the fan is loud). Go on: ppss nodes resume a" in worker.log
    assert seen(site).state is NodeState.LIVE


def test_a_paused_node_stays_paused_when_its_worker_is_started_anew(site: Site) -> None:
    worker = site.worker("--node-name", "a")
    wait_seen(site)
    site.queue.node("a").pause()
    wait_until(lambda: "is paused" in worker.log, "it knows")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    run = site.enqueue(["x"], "true")
    worker = site.worker("--node-name", "a")
    wait_until(lambda: "is paused" in worker.log, "the new one knows")
    site.wait_idle()
    assert site.states(run) == {"ready": 1}
    assert seen(site).reason.startswith("by ")
    site.queue.node("a").resume()
    wait_until(lambda: run.status().succeeded, "it works")
    assert site.queue.connection.execute("EXISTS", "ppss:node:a") == 0


def test_a_node_gets_more_slots_and_fewer_while_items_run(site: Site) -> None:
    run = site.enqueue([f"{number}" for number in range(9)], WAITS)
    worker = site.worker("--node-name", "a")
    site.pids("*.pid", 2)
    site.queue.node("a").set_slots(4)
    site.pids("*.pid", 4)
    wait_until(lambda: seen(site).slots == 4, "it tells")
    assert sorted(path.name.split(".")[2] for path in site.directory.glob("*.pid")) == [*"1234"]
    site.queue.node("a").set_slots(1)
    wait_until(lambda: seen(site).slots == 1, "it tells")
    assert run.status().running == 4, "what runs goes on"
    for pid in site.pids("*.pid", 4):
        os.kill(pid, signal.SIGKILL)
    site.pids("*.pid", 5)
    wait_until(lambda: run.status().failed == 4, "their ends are known")
    for pid in site.pids("*.pid", 5):
        if site.alive(pid):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: run.status().failed == 5, "the fifth has ended")
    assert len(site.pids("*.pid", 6)) == 6
    assert [path.name for path in site.directory.glob("5.a.*.pid")] == ["5.a.1.pid"], (
        "the number is low again"
    )
    worker.kill()


def test_what_was_wished_for_slots_outlives_the_worker_and_can_be_taken_back(site: Site) -> None:
    worker = site.worker("--node-name", "a")
    wait_seen(site)
    site.queue.node("a").set_slots(3)
    wait_until(lambda: seen(site).slots == 3, "it tells")
    worker.kill()
    (one,) = seen(site).workers
    site.queue.connection.execute("DEL", site.queue.keys.worker(one.name))  # as when its time to live is over
    worker = site.worker("--node-name", "a")
    wait_until(lambda: [one.pid for one in seen(site).workers if one.slots == 3] == [worker.pid], "as wished")
    site.queue.node("a").set_slots(None)
    wait_until(lambda: seen(site).slots == 2, "as it was started")
    with pytest.raises(BadInput, match="at least one"):
        site.queue.node("a").set_slots(0)


@pytest.mark.parametrize(("now", "code"), [(False, 0), (True, 130)])
def test_a_node_that_is_told_to_stop_ends_like_a_worker_that_is_signalled(
    site: Site, now: bool, code: int
) -> None:
    run = site.enqueue(["x"], WAITS)
    worker = site.worker("--node-name", "a")
    pids = site.pids("*.pid", 1)
    site.queue.node("a").stop(now=now)
    if not now:
        wait_until(lambda: seen(site).state is NodeState.DRAINING, "it ends what runs")
        (site.directory / "go").touch()
    assert worker.wait() == code
    site.wait_gone(pids)
    assert site.states(run) == ({"ready": 1} if now else {"succeeded": 1})
    assert "was told to stop" in worker.log
    (site.directory / "go").touch()
    site.burst("--node-name", "a")  # one that comes later does not care
    assert site.states(run) == {"succeeded": 1}


def test_ppss_run_says_that_its_node_was_told_to_stop(site: Site) -> None:
    (site.directory / "list").write_text("x\n")
    session = site.start("run", "-f", "list", "-p", "1", "--node-name", "a", "-c", f': "$ITEM"; {WAITS}')
    site.pids("*.pid", 1)
    site.queue.node("a").stop(now=True)
    assert session.wait() == 130
    assert "node a was told to stop" in session.log
    assert "nothing lost" in session.log


def test_ppss_run_on_a_paused_node_ends_when_others_have_done_its_run(site: Site) -> None:
    (site.directory / "list").write_text("x\ny\n")
    session = site.start("run", "-f", "list", "-p", "1", "--node-name", "a", "-c", f': "$ITEM"; {WAITS}')
    site.pids("x.a.*.pid", 1)
    site.queue.node("a").pause()
    (site.directory / "go").touch()
    wait_until(lambda: "is paused" in session.log, "it knows")
    site.worker("--node-name", "b")
    assert session.wait() == 0
    assert "2 succeeded" in session.log


# Whose fault


def three_nodes(site: Site, **of_c: str) -> list[WorkerProcess]:
    """Workers on nodes a, b and c that have nothing to do yet; what only c has in its environment."""
    workers = [site.worker("--node-name", name, **(of_c if name == "c" else {})) for name in "abc"]
    for name in "abc":
        wait_seen(site, name)
    site.wait_idle(3)
    return workers


def test_a_node_without_the_program_is_quarantined_and_no_item_fails_or_uses_a_retry(site: Site) -> None:
    tools = site.directory / "tools"
    tools.mkdir()
    (tools / "special").write_text("#!/bin/sh\nsleep 0.05\n")
    (tools / "special").chmod(0o755)
    with_tools = f"{tools}:{site.environment['PATH']}"
    for name in "ab":
        site.worker("--node-name", name, PATH=with_tools)
    lacking = site.worker("--node-name", "c")
    for name in "abc":
        wait_seen(site, name)
    site.wait_idle(3)
    run = site.enqueue([f"{number}" for number in range(60)], ["special", "{}"])
    run.wait(20)
    assert site.states(run) == {"succeeded": 60}
    assert {view.outcome.node for view in run.items()} <= {"a", "b"}
    wait_until(lambda: seen(site, "c").state is NodeState.QUARANTINED, "the node is blamed")
    reason = seen(site, "c").reason
    assert reason.startswith("3 items failed here (exit 127")
    assert "special" in reason and reason.endswith("that other nodes did")
    wait_until(lambda: "node c is quarantined: 3 items failed here (exit 127" in lacking.log, "it says so")
    assert "tried on another one" in lacking.log
    assert sum(view.attempts for view in run.items()) < 60 + 20, (
        "it is given no more until the others have tried"
    )
    assert all(view.state is NodeState.LIVE for view in site.queue.nodes() if view.name != "c")
    site.queue.node("c").resume()
    wait_until(lambda: seen(site, "c").state is NodeState.LIVE, "it is back")
    for name in "ab":
        site.queue.node(name).pause()
    later = site.enqueue(["x"], "true")
    later.wait(20)
    assert site.item(later, "x").outcome.node == "c"


def test_a_node_that_begins_to_fail_in_the_middle_is_found_out_too(site: Site) -> None:
    three_nodes(site)
    command = 'sleep 0.03; [ "$PPSS_NODE" != c ] || [ ! -e gone ] || { echo stale handle >&2; exit 5; }'
    run = site.enqueue([f"{number}" for number in range(150)], command, keep_output=True)
    wait_until(lambda: any(view.outcome.node == "c" for view in run.items()), "c has done some")
    (site.directory / "gone").touch()
    run.wait(20)
    wait_until(lambda: seen(site, "c").state is NodeState.QUARANTINED, "the node is blamed")
    assert 'exit 5 "stale handle"' in seen(site, "c").reason
    counts = run.status()
    assert counts.failed <= 2 and counts.succeeded + counts.failed == 150, (
        "two had failed before there was a doubt"
    )


def test_an_item_that_fails_on_two_nodes_has_failed_once_and_blames_nobody(site: Site) -> None:
    three_nodes(site)
    run = site.enqueue([f"{number}" for number in range(12)], 'sleep 0.02; [ "$ITEM" -ge 9 ] || exit 7')
    run.wait(20)
    assert site.states(run) == {"failed": 9, "succeeded": 3}
    assert {view.outcome.exit_code for view in run.items("failed")} == {7}
    assert len(site.ends(run)) == 12
    assert all(view.attempts <= 2 for view in run.items())
    assert {view.state for view in site.queue.nodes()} == {NodeState.LIVE}


def test_a_command_that_is_on_no_node_fails_each_item_with_its_exit_code(site: Site) -> None:
    three_nodes(site)
    run = site.enqueue([f"{number}" for number in range(9)], ["not-there", "{}"], retry=RetryRule(1, 0.01))
    run.wait(20)
    assert site.states(run) == {"failed": 9}
    assert {view.outcome.exit_code for view in run.items()} == {127}
    assert {view.state for view in site.queue.nodes()} == {NodeState.LIVE}


def test_one_node_alone_fails_its_items_at_once(site: Site) -> None:
    run = site.enqueue(["x", "y"], ["not-there", "{}"])
    worker = site.burst()
    assert site.states(run) == {"failed": 2}
    assert [view.attempts for view in run.items()] == [1, 1]
    assert "another" not in worker.log


def test_an_item_that_waits_for_a_node_that_is_lost_has_failed_as_it_did_before(site: Site) -> None:
    held = site.enqueue([*"xy"], WAITS)
    other = site.worker("--node-name", "b")
    site.pids("*.pid", 2)
    worker = site.worker("--node-name", "a")
    wait_seen(site)
    site.wait_idle(1)
    run = site.enqueue(["z"], "echo no such thing >&2; exit 127")
    wait_until(lambda: "tried on another one" in worker.log, "it waits for the other node")
    assert site.states(run) == {"ready": 1}
    (one,) = seen(site, "b").workers
    other.kill()
    site.queue.connection.execute("DEL", site.queue.keys.worker(one.name))  # as when its time to live is over
    run.wait(20)
    assert site.item(run, "z").outcome.reason == "exit 127, and no other node was left to try it"
    assert site.item(run, "z").outcome.exit_code == 127
    assert site.states(held) == {"leased": 2}


def test_ppss_run_in_order_prints_what_the_second_node_printed(site: Site) -> None:
    tools = site.directory / "tools"
    tools.mkdir()
    (tools / "special").write_text('#!/bin/sh\necho "did $1"\n')
    (tools / "special").chmod(0o755)
    site.worker("--node-name", "b", PATH=f"{tools}:{site.environment['PATH']}")
    site.enqueue([*"xy"], WAITS)
    site.pids("*.b.*.pid", 2)

    def let_b_go_on() -> None:
        asked = ("KEYS", "ppss:doubts:*")
        wait_until(lambda: site.queue.connection.execute(*asked), "what failed on a waits for b")
        (site.directory / "go").touch()

    go_on = threading.Thread(target=let_b_go_on)
    go_on.start()
    (site.directory / "list").write_text("1\n2\n3\n4\n5\n")
    options = ("-k", "-p", "1", "--node-name", "a", "--no-check", "-c", "special {}")
    done = site.ppss("run", "-f", "list", *options)
    go_on.join()
    assert (done.returncode, done.stdout) == (0, "did 1\ndid 2\ndid 3\ndid 4\ndid 5\n"), done.stderr


def test_a_run_that_is_left_alone_is_on_show_with_the_node(site: Site) -> None:
    site.worker("--node-name", "a")
    wait_seen(site)
    run = site.enqueue(["x"], "true", directory=str(site.directory / "missing"))
    reason = wait_until(lambda: seen(site).reason, "the node tells")
    assert reason.startswith(f"run {run.id}: ") and "missing" in reason
