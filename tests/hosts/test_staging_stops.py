"""Workers that are stopped or killed, several on a node, and what they use of the master."""

from __future__ import annotations

import pytest
from helpers import wait_until
from hosts.lab import Lab
from hosts.staged import GATES, SECONDS, Staged, Worker, pids

SLOW = ("--bwlimit", "500k")


@pytest.mark.parametrize(("signal", "code"), [("TERM", 0), ("INT", 130)])
def test_a_worker_that_is_stopped_hands_back_at_once_what_it_has_not_begun(
    lab: Lab, signal: str, code: int
) -> None:
    """One output is on its way, one command runs, an input is on its way, and more are leased."""
    n1, n2 = lab["n1"], lab["n2"]
    staged = Staged(lab, dict.fromkeys("abcde", 800_000))
    staged.hold(n1, "b")
    with staged.watch():
        worker = staged.worker(n1, "--stage-ahead", "3", *SLOW)
        staged.begins("b", n1)
        worker.signal(signal)
        wait_until(lambda: staged.counts().get("ready", 0) >= 3, "the unstarted are back", SECONDS)
        staged.let_go(n1, "b")
        assert worker.end() == code, worker.said
        counts = staged.counts()
        assert counts["ready"] == len("abcde") - counts.get("succeeded", 0), counts
        assert signal == "INT" or counts == {"succeeded": 2, "ready": 3}
        staged.worker(n2)
        staged.finish()
    assert all(staged.begun[name, "n1"] == 0 for name in "cde")


def test_a_killed_worker_is_swept_up_by_the_next_one_and_disturbs_none_beside_it(lab: Lab) -> None:
    """All of one node and in one scratch directory."""
    n1 = lab["n1"]
    staged = Staged(lab, dict.fromkeys("abcd", 800_000), "--visibility", "2s")
    staged.hold(n1, *"abcd")
    with staged.watch():
        killed = staged.worker(n1, *SLOW)
        staged.begins("a", n1)
        beside = staged.worker(n1)
        wait_until(lambda: len(staged.begun) == 2, "the second one has begun", SECONDS)
        (begun,) = {name for name, _ in staged.begun} - {"a"}
        killed.end("KILL")
        left = _scratches(killed)
        assert len(left) == 2
        staged.worker(n1)
        wait_until(lambda: len(_scratches(killed) & left) == 1, "the killed one is swept up", SECONDS)
        staged.let_go(n1, *"abcd")
        staged.workers.remove(killed)
        assert staged.finish() == dict.fromkeys("abcd", "n1")
    assert beside.process.returncode == 0
    assert staged.begun[begun, "n1"] == 1


def _scratches(worker: Worker) -> set[str]:
    return {path.name for path in worker.scratch.glob("[!.]*") if path.name != "shared"}


def test_a_run_that_is_staged_and_one_that_is_not_go_on_beside_each_other(lab: Lab) -> None:
    master, n1 = lab.master, lab["n1"]
    master.write("here/x", "x")
    staged = Staged(lab, dict.fromkeys("abcd", 100_000))
    other = master.run(["ppss", "enqueue", "here", "-o", "there", "--", "cp", "{}", "{out}"]).stdout.strip()
    worker = staged.worker(n1)
    worker.says(f"run {other} can't be run here and is left to other nodes")
    staged.wait()
    master.run(["ppss", "worker", "--burst"])
    master.run(["ppss", "wait", other])
    assert master.read("there/x") == b"x"
    assert staged.finish() == dict.fromkeys("abcd", "n1")


@pytest.mark.parametrize("verbs", [("cancel",), ("cancel", "purge")])
def test_a_run_that_is_cancelled_in_mid_transfer_leaves_nothing(lab: Lab, verbs: tuple[str, ...]) -> None:
    """One output is on its way, one command runs, an input is on its way; the worker goes on with the next run."""
    master, n1 = lab.master, lab["n1"]
    staged = Staged(lab, dict.fromkeys("abcd", 800_000))
    staged.hold(n1, "b")
    worker = staged.worker(n1, *SLOW)
    staged.begins("b", n1)
    staged.is_coming("c", n1)
    for verb in verbs:
        master.run(["ppss", verb, staged.run])
    other = Staged(lab, {"x": 1_000}, output=f"{lab.share}/other")
    assert other.finish() == {"x": "n1"}
    worker.leave()
    wait_until(lambda: not (staged.out / ".ppss").exists(), "the master is swept", SECONDS)
    assert not _scratches(worker)


@pytest.mark.parametrize("end", ["TERM", "KILL"])
def test_a_worker_logs_in_once_and_leaves_no_gate_on_the_master(lab: Lab, end: str) -> None:
    master, n1 = lab.master, lab["n1"]
    staged = Staged(lab, {f"{number}": 1_000 for number in range(60)} | {"last": 0}, "--visibility", "2s")
    staged.hold(n1, "last")
    worker = staged.worker(n1, "-p", "4")
    staged.begins("last", n1)
    wait_until(lambda: staged.counts().get("succeeded") == 60, "all others have succeeded", SECONDS)
    assert len(pids(master, GATES)) == 4, "two to Redis, one for files in each direction"
    staged.let_go(n1, "last")
    worker.end(end)
    wait_until(lambda: not pids(master, GATES), "the gates are gone", SECONDS)
    logins = master.run(["grep", "-c", "Accepted publickey", "/var/log/sshd.log"], user="root").stdout
    assert logins == "1\n"
    staged.worker(n1, "--burst")
    staged.finish()
