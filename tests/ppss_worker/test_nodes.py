"""Nodes with real workers: seen, paused, resized and stopped through Redis."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from helpers import wait_until

from ppss_queue import scripts
from ppss_queue.errors import BadInput, UnknownNode
from ppss_queue.node_views import NodeState, NodeView
from ppss_queue.scripts import Call

if TYPE_CHECKING:
    from conftest import Site

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
    view = seen(site)
    assert (view.state, view.reason, view.running) == (NodeState.PAUSED, "the fan is loud", 1)
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
