"""Nodes as Redis knows them: names, wishes, and what is given to whom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ppss_queue import scripts
from ppss_queue.calls import Calls, Wishes, read_claim, read_wishes
from ppss_queue.errors import UnknownNode
from ppss_queue.node_views import NodeState
from ppss_queue.queue import Queue, connect
from ppss_queue.scripts import Call


class Nodes:
    """Workers without processes, each call waited for."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def calls(self, worker: str) -> Calls:
        return Calls(self.queue.keys, worker, f"n{worker}")

    def beat(self, worker: str, machine: str = "00") -> Wishes:
        call = self.calls(worker).heartbeat({"pid": 1, "slots": 2}, {"id": machine})
        return read_wishes(scripts.run(self.queue.connection, call))

    def retire(self, worker: str) -> None:
        scripts.run(self.queue.connection, self.calls(worker).retire(()))

    def name(self, wanted: str, machine: str) -> str:
        reply = scripts.run(self.queue.connection, Call(self.queue.keys, "name", (wanted, machine)))
        assert isinstance(reply, bytes)
        return reply.decode()

    def is_silent(self, worker: str) -> None:
        """As when its time to live is over."""
        assert self.queue.connection.execute("DEL", self.queue.keys.worker(worker)) == 1

    @property
    def states(self) -> dict[str, NodeState]:
        return {view.name: view.state for view in self.queue.nodes()}


@pytest.fixture
def nodes(address: str) -> Iterator[Nodes]:
    with connect(address) as queue:
        yield Nodes(queue)


def test_a_paused_node_is_given_nothing_but_told_of_the_runs(nodes: Nodes) -> None:
    run = nodes.queue.enqueue(["x"], command="true")
    nodes.beat("a.1")
    nodes.queue.node("a").pause()
    claimed = read_claim(scripts.run(nodes.queue.connection, nodes.calls("a.1").claim(9, 9)))
    assert (claimed.leases, claimed.open_runs, claimed.wake_seconds) == ((), 1, None)
    claimed = read_claim(scripts.run(nodes.queue.connection, nodes.calls("b.1").claim(9, 9)))
    assert len(claimed.leases) == run.status().leased == 1


def test_wishes_are_told_with_the_next_heartbeat_and_clearing_them_leaves_nothing(nodes: Nodes) -> None:
    assert nodes.beat("a.1").paused == ""
    node = nodes.queue.node("a")
    node.pause("why")
    node.set_slots(5)
    node.stop(now=True)
    wishes = nodes.beat("a.1")
    assert (wishes.paused, wishes.slots, wishes.stop_now) == ("why", 5, True)
    assert 0 < wishes.stop_at <= wishes.at
    node.resume()
    node.set_slots(None)
    nodes.retire("a.1")
    assert nodes.queue.connection.execute("KEYS", "*") == [b"ppss:control"]


def test_the_workers_of_a_node_share_its_slots(nodes: Nodes) -> None:
    for worker in ("a.1", "a.2", "a.3"):
        nodes.beat(worker)
    nodes.queue.node("a").set_slots(8)
    assert [nodes.beat(worker).slots for worker in ("a.1", "a.2", "a.3")] == [3, 3, 2]
    nodes.is_silent("a.2")
    assert [nodes.beat(worker).slots for worker in ("a.1", "a.3")] == [4, 4]


def test_a_node_is_there_as_long_as_one_of_its_workers_is(nodes: Nodes) -> None:
    for worker in ("a.1", "a.2", "b.1"):
        nodes.beat(worker)
    nodes.is_silent("a.1")
    nodes.is_silent("b.1")
    assert nodes.states == {"a": NodeState.LIVE, "b": NodeState.LOST}
    nodes.retire("a.2")
    assert nodes.states == {"b": NodeState.LOST}


def test_a_lost_node_is_on_show_for_a_day(nodes: Nodes) -> None:
    nodes.beat("a.1")
    nodes.is_silent("a.1")
    nodes.queue.connection.execute("ZINCRBY", nodes.queue.keys.nodes, -86_000, "a")
    assert nodes.states == {"a": NodeState.LOST}
    assert nodes.queue.nodes()[0].silent_seconds == pytest.approx(86_000, abs=20)
    nodes.queue.connection.execute("ZINCRBY", nodes.queue.keys.nodes, -500, "a")
    assert nodes.states == {}
    nodes.queue.store.tidy()
    assert nodes.queue.connection.execute("EXISTS", nodes.queue.keys.nodes, nodes.queue.keys.facts("a")) == 0


def test_a_name_belongs_to_one_machine_and_so_do_the_wishes_under_it(nodes: Nodes) -> None:
    assert nodes.name("a", "1111") == "a"
    nodes.beat("a.1", "1111")
    assert nodes.name("a", "2222") == "a~2222"
    nodes.beat("a~2222.1", "2222")
    nodes.queue.node("a").pause()
    assert nodes.states == {"a": NodeState.PAUSED, "a~2222": NodeState.LIVE}
    nodes.retire("a.1")
    nodes.retire("a~2222.1")
    assert nodes.name("a", "2222") == "a~2222", "the pause is for the other one"
    assert nodes.name("a", "1111") == "a"


def test_a_node_that_was_paused_under_a_name_of_its_own_keeps_it(nodes: Nodes) -> None:
    nodes.beat("a.1", "1111")
    nodes.beat("a~2222.1", "2222")
    nodes.queue.node("a~2222").pause()
    nodes.retire("a.1")
    nodes.retire("a~2222.1")
    assert nodes.name("a", "2222") == "a~2222"
    assert nodes.name("a", "3333") == "a"


def test_an_unknown_node_is_refused_with_the_name_that_was_meant(nodes: Nodes) -> None:
    nodes.beat("banana.1")
    with pytest.raises(UnknownNode, match=r"There is no node 'bananna'\. Did you mean 'banana'\?"):
        nodes.queue.node("bananna").resume()
    with pytest.raises(UnknownNode, match=r"There is no node 'x'\. There is banana\."):
        nodes.queue.node("x").stop()
