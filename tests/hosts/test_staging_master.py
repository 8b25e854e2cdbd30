"""What serves the nodes dies on the master while files are on their way; workers wait, and go on."""

from __future__ import annotations

import pytest
from hosts.lab import Host, Lab
from hosts.staged import BIG, GATES, SERVER, SLOW, Staged, signal_all


def test_a_gate_that_is_killed_before_it_greets_is_no_wrong_set_up(lab: Lab) -> None:
    lab.master.write("/usr/local/bin/killed", "#!/bin/sh\nkill -9 $$\n", user="root")
    lab.master.run(["sh", "-c", "cd /usr/local/bin && chmod +x killed && mv killed ppss"], user="root")
    done = lab["n1"].run(["ppss", "worker", "--url", "ssh://ppss@master"], check=False)
    assert (done.returncode, done.stderr) == (
        3,
        "ppss: `ppss gate` on master was killed before it greeted. See what did that there.\n",
    )


def _sshd(master: Host) -> None:
    signal_all(master, "sshd: ", "KILL")
    master.run(["/usr/sbin/sshd", "-E", "/var/log/sshd.log"], user="root")


def _gates(master: Host) -> None:
    signal_all(master, GATES, "KILL")


def _server(master: Host) -> None:
    signal_all(master, SERVER, "KILL")


def _power(master: Host) -> None:
    master.kill()
    master.start()


@pytest.mark.parametrize("fault", [_sshd, _gates, _server, _power])
def test_a_fault_of_the_master_costs_no_command(lab: Lab, fault) -> None:  # type: ignore[no-untyped-def]
    """A power cut may forget the last second, so that commands of that may run once more."""
    n1 = lab["n1"]
    staged = Staged(lab, {"a": 800_000, "b": 800_000, "c": 1_000})
    with staged.watch():
        staged.worker(n1, "--bwlimit", "500k")
        staged.is_going_home("a")
        fault(lab.master)
        assert staged.finish() == dict.fromkeys("abc", "n1")
    most = 2 if fault is _power else 1
    assert set(staged.begun) == {(name, "n1") for name in "abc"}
    assert max(staged.begun.values()) <= most, staged.begun


@pytest.mark.parametrize(("removed", "way"), [(".ppss", "gate"), (".ppss", "sftp"), (".ppss/*/*/a", "gate")])
def test_a_scratch_that_somebody_removes_is_filled_again_without_the_command(
    lab: Lab, removed: str, way: str
) -> None:
    n1 = lab["n1"]
    staged = Staged(lab, {"a": BIG[way]}, way=way)
    with staged.watch():
        staged.worker(n1, *SLOW[way])
        staged.is_going_home("a")
        lab.master.run(["sh", "-c", f"rm -rf {staged.out}/{removed}"])
        assert staged.finish() == {"a": "n1"}
    assert staged.begun == {("a", "n1"): 1}


def test_a_scratch_that_is_removed_again_and_again_fails_the_item_and_not_the_node(lab: Lab) -> None:
    n1 = lab["n1"]
    staged = Staged(lab, {"a": 3_000_000, "b": 0})
    remover = lab.master.popen(["sh", "-c", 'while :; do rm -rf "$0"/.ppss/*/1.*; done', str(staged.out)])
    staged.worker(n1, "--bwlimit", "20M")
    staged.wait()
    remover.kill()
    assert staged.finish(missing=1) == {"b": "n1"}
    assert "lost its outputs 3 times on their way home: something removes '.ppss' there" in staged.reasons()
    assert staged.begun == {("a", "n1"): 1, ("b", "n1"): 1}
