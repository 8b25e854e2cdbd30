"""Files on the master that are not what they were, or change while they are copied."""

from __future__ import annotations

import os
import threading

from hosts.lab import Lab
from hosts.staged import Staged


def test_files_that_change_vanish_or_may_not_be_read_fail_alone(lab: Lab) -> None:
    big = 6_000_000  # more than SSH takes in advance, so that it is open on the master for a while
    sizes = {"gone": 1_000, "denied": 1_000, "grows": big, "shrinks": big, "good": 1_000}
    staged = Staged(lab, sizes, "--verify")
    (staged.source / "gone").unlink()
    (staged.source / "denied").chmod(0)
    over = threading.Event()

    def change() -> None:
        grows, shrinks = ((staged.source / name).open("r+b", buffering=0) for name in ("grows", "shrinks"))
        with grows, shrinks:
            grows.seek(0, os.SEEK_END)
            while not over.wait(0.001):
                grows.write(b"x")
                shrinks.truncate(big - 1_000)
                shrinks.seek(0, os.SEEK_END)
                shrinks.write(bytes(1_000))

    changer = threading.Thread(target=change)
    changer.start()
    try:
        worker = staged.worker(lab["n1"], "--bwlimit", "12M")
        staged.wait()
    finally:
        over.set()
        changer.join()
    assert staged.counts() == {"succeeded": 1, "failed": 4}, staged.reasons()
    reasons = {line.split()[0]: line for line in staged.reasons().splitlines()}
    assert "No such file" in reasons["gone"]
    assert "Permission denied" in reasons["denied"]
    assert "was written to while it was copied, 3 times" in reasons["grows"]
    assert "while it was copied, 3 times" in reasons["shrinks"]
    assert staged.finish(missing=4) == {"good": "n1"}
    assert worker.process.returncode == 0


def test_a_shared_file_that_is_another_one_now_fails_the_items_that_need_it(lab: Lab) -> None:
    lab.master.write("tool", "one")
    staged = Staged(lab, {"a": 1_000}, "--with", "tool")
    lab.master.write("tool", "two")
    staged.worker(lab["n1"])
    staged.finish(missing=1)
    assert "'tool' is not what it was when the run was made" in staged.reasons()
    lab.master.write("tool", "one")
    lab.master.run(["ppss", "retry", staged.run])
    staged.worker(lab["n1"])
    assert staged.finish() == {"a": "n1"}
