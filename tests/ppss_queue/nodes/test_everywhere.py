"""The same on many nodes at once."""

from __future__ import annotations

import math
import threading

import pytest

from ppss_queue.errors import ConnectFailed
from ppss_queue.nodes.everywhere import everywhere
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.spec import NodeSpec, parse_node


def nodes(count: int) -> list[NodeSpec]:
    return [parse_node([f"n{number}"]) for number in range(count)]


def test_answers_come_in_the_order_in_which_nodes_are_done() -> None:
    gate = threading.Event()

    def work(node: NodeSpec) -> str:
        if node.name == "n0":
            assert gate.wait(30)
        return node.name

    answers = everywhere(nodes(3), work, seconds=30)
    assert {next(answers).result, next(answers).result} == {"n1", "n2"}
    gate.set()
    assert [answer.result for answer in answers] == ["n0"]


def test_a_node_that_hangs_holds_up_no_other_and_is_told_late() -> None:
    never = threading.Event()

    def work(node: NodeSpec) -> int:
        if node.name == "n0":
            never.wait()
        return 1

    answers = list(everywhere(nodes(3), work, seconds=0.5))
    never.set()
    assert [answer.result for answer in answers] == [1, 1, None]
    assert "n0 did not answer within" in str(answers[-1].error)


def test_a_node_may_take_as_long_as_it_likes() -> None:
    assert [answer.result for answer in everywhere(nodes(1), lambda node: 1, seconds=math.inf)] == [1]


def test_an_error_of_a_node_is_its_answer_and_one_of_ours_is_raised() -> None:
    def work(node: NodeSpec) -> int:
        raise ConnectFailed("no") if node.name == "n0" else OSError(5, "broken")

    errors = {answer.node.name: str(answer.error) for answer in everywhere(nodes(2), work, seconds=30)}
    assert errors == {"n0": "no", "n1": "n1: broken."}

    def slip(node: NodeSpec) -> int:
        raise KeyError(node.name)

    with pytest.raises(KeyError):
        list(everywhere(nodes(1), slip, seconds=30))


def test_no_more_than_so_many_work_at_once() -> None:
    lock, now, most = threading.Lock(), 0, 0
    barrier = threading.Barrier(4)

    def work(node: NodeSpec) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        barrier.wait(30)  # breaks unless four are there together
        with lock:
            now -= 1

    assert len(list(everywhere(nodes(8), work, seconds=60, at_once=4))) == 8
    assert most <= 8 and not barrier.broken


def test_this_machine_is_reached_without_ssh() -> None:
    reach = Reach(parse_node([":"]))
    done = reach.run('cat; echo "$HOME" >&2; pwd; exit 7', stdin=[b"a", b"\0b"])
    assert done.code == 7 and done.out.startswith(b"a\0b") and done.err.strip() == done.out[3:].strip()
    assert b"".join(reach.stream("echo 1; echo 2 >&2")) == b"1\n2\n"
    with pytest.raises(ConnectFailed, match="was not done within 100 ms"):
        reach.run("sleep 60", seconds=0.1)
