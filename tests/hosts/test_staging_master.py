"""What serves the nodes dies on the master while files are on their way; workers wait, and go on."""

from __future__ import annotations

import pytest
from hosts.lab import Host, Lab
from hosts.staged import GATES, SERVER, Staged, signal_all


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
