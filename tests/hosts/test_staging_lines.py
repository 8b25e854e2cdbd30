"""Lines that are cut, lossy, or slow while files are on them."""

from __future__ import annotations

import time

import pytest
from helpers import wait_until
from hosts.lab import Lab
from hosts.staged import BIG, SECONDS, SLOW, Staged


@pytest.mark.parametrize("way", ["gate", "sftp"])
def test_a_line_that_is_cut_for_a_while_costs_no_command(lab: Lab, way: str) -> None:
    """One output is on its way home, and the next input on its way to the node."""
    n1 = lab["n1"]
    staged = Staged(lab, dict.fromkeys("abc", BIG[way]), way=way)
    with staged.watch():
        worker = staged.worker(n1, *SLOW[way])
        staged.is_going_home("a")
        n1.cut()
        time.sleep(6)  # this is the fault
        n1.heal()
        assert staged.finish() == dict.fromkeys("abc", "n1")
    assert staged.begun == {(name, "n1"): 1 for name in "abc"}
    assert "lost" not in worker.said


def test_another_node_takes_over_from_one_that_is_cut_off_for_long(lab: Lab) -> None:
    n1, n2 = lab["n1"], lab["n2"]
    staged = Staged(lab, {"a": 800_000, "b": 800_000, "c": 800_000}, "--visibility", "2s")
    with staged.watch():
        worker = staged.worker(n1, *SLOW["gate"])
        staged.is_going_home("a")
        n1.cut()
        staged.worker(n2)
        staged.wait()
        n1.heal()
        worker.says("lease lost")
        assert staged.finish() == dict.fromkeys("abc", "n2")


@pytest.mark.parametrize("way", ["gate", pytest.param("sftp", marks=pytest.mark.chaos)])
def test_workers_that_are_cut_off_for_good_end_when_told_to(lab: Lab, way: str) -> None:
    """One has outputs under way and is to end when these are home; the other is told to end now."""
    n1, n2 = lab["n1"], lab["n2"]
    staged = Staged(lab, dict.fromkeys("abcdefgh", BIG[way]), "--visibility", "2s", way=way)
    with staged.watch():
        drained = staged.worker(n1, *SLOW[way])
        staged.is_going_home("a")
        staged.hold(n2, *"abcdefgh")
        stopped = staged.worker(n2)
        wait_until(lambda: "n2" in {node for _, node in staged.begun}, "a command begins on n2", SECONDS)
        n1.cut()
        n2.cut()
        drained.signal("TERM")
        stopped.signal("INT")
        for worker in (drained, stopped):
            assert worker.end() == 3, worker.said
            assert worker.said.count("ppss: ") == 1, worker.said
            assert "Traceback" not in worker.said, worker.said
        n1.heal()
        staged.worker(n1, "--burst")
        assert staged.finish() == dict.fromkeys("abcdefgh", "n1")


def test_lossy_and_far_lines_carry_every_byte(lab: Lab) -> None:
    lab["n1"].loss(5)
    lab["n2"].delay(80)
    lab["n2"].rate(100)
    staged = Staged(lab, {f"{number}": number * 10_000 for number in range(24)})
    for host in lab.nodes:
        staged.hold(host, *staged.sizes)
        staged.worker(host, "-p", "2")
    with staged.watch():
        wait_until(lambda: {node for _, node in staged.begun} == {"n1", "n2"}, "both have begun", SECONDS)
        for host in lab.nodes:
            staged.let_go(host, *staged.sizes)
        assert set(staged.finish().values()) == {"n1", "n2"}
    assert set(staged.begun.values()) == {1}
