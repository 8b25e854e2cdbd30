"""Nodes that lose power or freeze in the middle of staging: another one finishes, and what comes late never wins."""

from __future__ import annotations

import pytest
from helpers import wait_until
from hosts.lab import Lab
from hosts.staged import BIG, FILE_GATES, SECONDS, SERVER, SLOW, Staged, signal_all, stop_before_publish


@pytest.mark.parametrize(
    ("moment", "way"),
    [
        *((moment, "gate") for moment in ("download", "command", "upload", "published")),
        *((moment, "sftp") for moment in ("download", "upload", "published")),
    ],
)
def test_another_node_finishes_after_a_power_cut(lab: Lab, moment: str, way: str) -> None:
    """`published`: the outputs are at their final names, and nobody has been told."""
    n1, n2, master = lab["n1"], lab["n2"], lab.master
    staged = Staged(lab, {"a": BIG[way], "b": 1_000, "c": 0}, "--visibility", "2s", way=way)
    with staged.watch():
        if moment == "command":
            staged.hold(n1, "a")
        staged.worker(n1, *(SLOW[way] if moment != "command" else ()))
        if moment == "download":
            staged.is_coming("a", n1)
        elif moment == "command":
            staged.begins("a", n1)
        else:
            staged.is_going_home("a")
        if moment == "published" and way == "sftp":
            n1.delay(300)  # so long is the way of an answer, and of what is said then
            master.run(["sh", "-c", _KILL_LOGINS_AT, "sh", str(staged.out / "a")], user="root")
        elif moment == "published":
            gate = stop_before_publish(staged, "a")
            n1.cut()
            master.run(["kill", "-CONT", gate], user="root")
            wait_until((staged.out / "a").exists, "a is published", SECONDS)
        n1.kill()
        staged.workers.clear()
        staged.worker(n2, "--burst")
        assert staged.finish()["a"] == "n2"
    n1.start()
    n1.heal()
    pinged = ["ping", "-q", "-c", "1", "-W", "1", "master"]
    wait_until(lambda: n1.run(pinged, check=False).returncode == 0, "n1 reaches the master again", SECONDS)
    staged.worker(n1, "--burst")
    staged.finish()


_KILL_LOGINS_AT = (
    'logins=$(pgrep -f "^sshd: ppss"); until [ -e "$1" ]; do sleep 0.002; done; kill -KILL $logins'
)


@pytest.mark.parametrize(
    ("moment", "reset", "early", "way"),
    [
        ("upload", False, True, "gate"),
        ("upload", True, False, "gate"),
        ("publish", False, False, "gate"),
        ("publish", True, True, "gate"),
        ("upload", False, False, "sftp"),
        ("upload", True, True, "sftp"),
    ],
)
def test_what_a_frozen_node_says_late_never_wins(
    lab: Lab, moment: str, reset: bool, early: bool, way: str
) -> None:
    """It is frozen with one item in its command, and the outputs of another on their way or about to be published.

    `reset`: its connection is gone when it wakes up, so it sends all again. `early`: it wakes up while the other
    node runs the items; else after these have succeeded.
    """
    n1, n2, master = lab["n1"], lab["n2"], lab.master
    staged = Staged(lab, {"a": BIG[way], "c": 1_000}, "--visibility", "2s", way=way)
    staged.hold(n1, "c")
    with staged.watch():
        late = staged.worker(n1, "-p", "2", *SLOW[way])
        staged.begins("c", n1)
        staged.is_going_home("a")
        gate = stop_before_publish(staged, "a") if moment == "publish" else ""
        n1.freeze()
        n1.cut()
        staged.let_go(n1, "c")
        if reset:
            signal_all(master, "sshd: ppss", "KILL")
        if early:
            staged.hold(n2, "a", "c")
        staged.worker(n2, "-p", "2")
        staged.begins("a", n2)
        staged.begins("c", n2)
        if not early:
            staged.wait()
        if gate:
            master.run(["kill", "-CONT", gate], user="root")
        n1.heal()
        n1.thaw()
        late.says("lease lost")
        if early:
            staged.let_go(n2, "a", "c")
        assert staged.finish() == {"a": "n2", "c": "n2"}


def test_a_gate_that_lags_publishes_no_part_of_what_is_sent_again(lab: Lab) -> None:
    """The old gate is told to publish, hangs, and goes on while a new one takes the same outputs anew."""
    n1, master = lab["n1"], lab.master
    staged = Staged(lab, {"a": 800_000})
    with staged.watch():
        staged.worker(n1, *SLOW["gate"])
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
    staged.worker(n1, *SLOW["gate"])
    staged.is_going_home("a")
    signal_all(master, SERVER, "STOP")
    staged.is_going_home("a", whole=True)
    signal_all(master, FILE_GATES, "KILL")
    signal_all(master, SERVER, "CONT")
    assert staged.finish() == {"a": "n1"}
    assert staged.begun == {("a", "n1"): 1}
