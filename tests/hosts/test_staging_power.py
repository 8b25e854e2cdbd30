"""Nodes that lose power or freeze in the middle of staging: another one finishes, and what comes late never wins."""

from __future__ import annotations

from hosts.lab import Lab
from hosts.staged import FILE_GATES, SERVER, Staged, signal_all, stop_before_publish

SLOW = ("--bwlimit", "500k")


def test_a_gate_that_lags_publishes_no_part_of_what_is_sent_again(lab: Lab) -> None:
    """The old gate is told to publish, hangs, and goes on while a new one takes the same outputs anew."""
    n1, master = lab["n1"], lab.master
    staged = Staged(lab, {"a": 800_000})
    with staged.watch():
        staged.worker(n1, *SLOW)
        staged.is_going_home("a")
        gate = stop_before_publish(staged, "a")
        signal_all(master, "sshd: ppss", "KILL")
        staged.is_going_home("a")
        master.run(["kill", "-CONT", gate], user="root")
        assert staged.finish() == {"a": "n1"}
    assert staged.begun == {("a", "n1"): 1}


def test_an_answer_of_before_a_lost_connection_publishes_nothing(lab: Lab) -> None:
    """Redis says that the token is the newest while there is no connection for files: that is no answer any more."""
    n1, master = lab["n1"], lab.master
    staged = Staged(lab, {"a": 800_000})
    staged.worker(n1, *SLOW)
    staged.is_going_home("a")
    signal_all(master, SERVER, "STOP")
    staged.is_going_home("a", whole=True)
    signal_all(master, FILE_GATES, "KILL")
    signal_all(master, SERVER, "CONT")
    assert staged.finish() == {"a": "n1"}
    assert staged.begun == {("a", "n1"): 1}
