"""Nodes as Redis knows them: names, wishes, and what is given to whom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ppss_queue import scripts
from ppss_queue.calls import Calls, Wishes, read_claim, read_wishes
from ppss_queue.errors import UnknownNode
from ppss_queue.model import Lease, Outcome
from ppss_queue.node_views import NodeState
from ppss_queue.queue import Queue, connect
from ppss_queue.scripts import Call


class Nodes:
    """Workers without processes, each call waited for."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def calls(self, worker: str) -> Calls:
        return Calls(self.queue.keys, worker, f"n{worker}")

    def beat(self, worker: str, machine: str = "00", **facts: str | int) -> Wishes:
        facts = {"pid": 1, "slots": 2, "serves": "", "alone": "", "command": 0, "stopping": 0, **facts}
        call = self.calls(worker).heartbeat(facts, {"id": machine})
        return read_wishes(scripts.run(self.queue.connection, call))

    def retire(self, worker: str) -> None:
        scripts.run(self.queue.connection, self.calls(worker).retire(()))

    def name(self, wanted: str, machine: str) -> str:
        reply = scripts.run(self.queue.connection, Call(self.queue.keys, "name", (wanted, machine)))
        assert isinstance(reply, bytes)
        return reply.decode()

    def claim(self, worker: str, want: int = 1) -> tuple[Lease, ...]:
        return read_claim(scripts.run(self.queue.connection, self.calls(worker).claim(want, want))).leases

    def doubt(
        self,
        worker: str,
        lease: Lease,
        code: int = 127,
        *,
        line: str = "",
        in_a_row: int = 1,
        proven: bool = True,
    ) -> bool:
        """Whether the item goes to another node. It would be retried at once."""
        outcome = Outcome(exit_code=code, last_line=line)
        call = self.calls(worker).doubt(lease, outcome, 0.0, in_a_row=in_a_row, proven=proven)
        return scripts.run(self.queue.connection, call) == 1

    def doubt_first(self, count: int, items: str, *, line: str = "") -> None:
        """Nodes a and b are there, and the first items of a run failed on a: b is to try them."""
        self.queue.enqueue([*items], command="true")
        self.beat("a.1")
        self.beat("b.1")
        for lease in self.claim("a.1", count):
            self.doubt("a.1", lease, line=line)

    def ack(self, worker: str, *leases: Lease) -> None:
        ended = [(lease, Outcome(exit_code=0), b"") for lease in leases]
        assert scripts.run(self.queue.connection, self.calls(worker).ack(leases[0].run, ended)) == []

    def fail(self, worker: str, *leases: Lease) -> None:
        ended = [(lease, Outcome(exit_code=9), None, b"") for lease in leases]
        assert scripts.run(self.queue.connection, self.calls(worker).fail(leases[0].run, ended)) == []

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


# Whose fault


def test_the_exit_code_of_a_missing_program_is_tried_elsewhere_in_any_case_others_with_reason(
    nodes: Nodes,
) -> None:
    nodes.queue.enqueue([*"tuvwxyz"], command="true")
    nodes.beat("a.1")
    nodes.beat("b.1")
    first, second, third, fourth, *_ = nodes.claim("a.1", 7)
    assert not nodes.doubt("a.1", first, 1), "something has succeeded there, and this is the first to fail"
    assert not nodes.doubt("a.1", first, 1, in_a_row=2)
    assert nodes.doubt("a.1", first, 126)
    assert nodes.doubt("a.1", second, 1, in_a_row=3)
    assert nodes.doubt("a.1", third, 1, proven=False)
    nodes.fail("b.1", *nodes.claim("b.1"))
    assert not nodes.doubt("a.1", fourth, 1, proven=False), "its failures were those of an item before"
    assert not nodes.doubt("a.1", fourth, 1, in_a_row=5)
    assert nodes.doubt("a.1", fourth, 1, in_a_row=6)


@pytest.mark.parametrize(
    ("facts", "goes"),
    [
        ({}, True),
        ({"stopping": 1}, False),
        ({"serves": "other"}, False),
        ({"alone": "RUN"}, False),
        ({"serves": "x,RUN"}, True),
    ],
)
def test_an_item_goes_only_to_a_node_that_takes_items_of_its_run(
    nodes: Nodes, facts: dict[str, str | int], goes: bool
) -> None:
    run = nodes.queue.enqueue(["x"], command="true").id
    nodes.beat("a.1")
    nodes.beat("a.2")
    nodes.beat(
        "b.1",
        **{
            key: value.replace("RUN", run) if isinstance(value, str) else value
            for key, value in facts.items()
        },
    )
    (lease,) = nodes.claim("a.1")
    assert nodes.doubt("a.1", lease) is goes


def test_a_node_with_three_items_in_doubt_gets_no_more_and_others_get_these_first(nodes: Nodes) -> None:
    nodes.doubt_first(2, "123456789")
    (lease,) = nodes.claim("a.1")
    assert lease.item.seq == 3, "it gets others"
    nodes.doubt("a.1", lease)
    assert nodes.claim("a.1", 9) == ()
    leases = nodes.claim("b.1", 9)
    assert [lease.item.seq for lease in leases] == [3, 2, 1, 4, 5, 6, 7, 8, 9]


def test_items_that_are_passed_over_keep_their_order(nodes: Nodes) -> None:
    nodes.doubt_first(2, "12345678")
    assert [lease.item.seq for lease in nodes.claim("a.1", 2)] == [3, 4]
    assert [lease.item.seq for lease in nodes.claim("b.1", 9)] == [2, 1, 5, 6, 7, 8]


def test_the_last_node_is_not_quarantined_but_told_of_and_resume_forgets_it(nodes: Nodes) -> None:
    nodes.doubt_first(3, "123", line="no such program: x\udc80")
    leases = nodes.claim("b.1", 3)
    nodes.queue.node("b").pause()
    nodes.ack("b.1", *leases)
    assert nodes.states["a"] is NodeState.LIVE
    reason = nodes.beat("a.1").doubt
    assert reason == "3 items failed here (exit 127) that other nodes did, but it is the last node"
    assert nodes.queue.nodes()[0].reason == reason
    nodes.queue.node("a").resume()
    assert nodes.beat("a.1").doubt == nodes.queue.nodes()[0].reason == ""


def test_a_quarantine_ends_when_the_others_are_gone(nodes: Nodes) -> None:
    nodes.doubt_first(3, "1234")
    nodes.ack("b.1", *nodes.claim("b.1", 3))
    assert nodes.beat("a.1").paused.startswith("quarantined: 3 items failed here (exit 127)")
    assert nodes.claim("a.1") == ()
    nodes.retire("b.1")
    wishes = nodes.beat("a.1")
    assert wishes.paused == ""
    assert wishes.doubt.endswith("but it is the last node")
    assert len(nodes.claim("a.1")) == 1


def test_a_success_in_between_clears_a_node(nodes: Nodes) -> None:
    nodes.queue.enqueue([*"12345"], command="true")
    nodes.beat("a.1")
    nodes.beat("b.1")
    for _ in range(2):
        nodes.doubt("a.1", *nodes.claim("a.1"))
        nodes.ack("b.1", *nodes.claim("b.1"))
    nodes.ack("a.1", *nodes.claim("a.1"))
    nodes.doubt("a.1", *nodes.claim("a.1"))
    nodes.ack("b.1", *nodes.claim("b.1"))
    assert nodes.states["a"] is NodeState.LIVE


def test_weak_evidence_waits_a_minute_for_another_node_and_counts_then_as_a_failure(nodes: Nodes) -> None:
    run = nodes.queue.enqueue(["x"], command="true", retries=1)
    nodes.beat("a.1")
    nodes.beat("b.1")
    (lease,) = nodes.claim("a.1")
    assert nodes.doubt("a.1", lease, 1, proven=False)
    assert nodes.claim("a.1") == ()
    key = f"ppss:doubts:{run.id}"
    reply = nodes.queue.connection.execute("HGET", key, lease.job)
    assert isinstance(reply, bytes)
    until, rest = reply.decode().split(" ", 1)
    nodes.queue.connection.execute("HSET", key, lease.job, f"{float(until) - 61} {rest}")
    (again,) = nodes.claim("a.1")
    assert (again.failures, again.attempts) == (1, 0)
    assert not nodes.doubt("a.1", again), "it is no longer in doubt"
