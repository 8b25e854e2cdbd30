"""Disks that are full, too small, or not to be written: on a node, and on the master."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from helpers import wait_until
from hosts.lab import Lab
from hosts.staged import SECONDS, Staged


def test_a_scratch_that_is_too_small_leaves_the_items_to_other_nodes(lab: Lab) -> None:
    n1, n2 = lab["n1"], lab["n2"]
    n1.run(["sh", "-c", "mkdir /small && mount -t tmpfs -o size=4m,mode=1777 small /small"], user="root")
    staged = Staged(lab, {"a": 1_000_000, "b": 1_000_000})
    small = staged.worker(n1, "--scratch", "/small")
    limited = staged.worker(n1, "--scratch-limit", "500k")
    small.says("a file of 977 KiB does not fit into the scratch '/small'")
    limited.says("a file of 977 KiB does not fit into the scratch")
    assert staged.counts() == {"ready": 2}
    staged.worker(n2)
    assert staged.finish() == {"a": "n2", "b": "n2"}
    assert n1.run(["find", "/small", "-mindepth", "1", "!", "-name", "shared"]).stdout == ""


def test_a_disk_that_becomes_full_in_mid_download_leaves_the_items_to_other_nodes(lab: Lab) -> None:
    n1, n2 = lab["n1"], lab["n2"]
    n1.run(["sh", "-c", "mkdir /small && mount -t tmpfs -o size=80m,mode=1777 small /small"], user="root")
    staged = Staged(lab, {"a": 3_000_000})
    worker = staged.worker(n1, "--scratch", "/small", "--bwlimit", "1M")
    wait_until(
        lambda: n1.run(["find", "/small", "-name", "a", "-size", "+0"]).stdout, "a part of it", SECONDS
    )
    n1.run(["sh", "-c", "cat /dev/zero > /small/filler"], check=False)
    worker.says("files can't be fetched to this node: No space left on device")
    staged.worker(n2)
    assert staged.finish() == {"a": "n2"}
    assert n1.run(["find", "/small", "-mindepth", "1", "!", "-name", "shared"]).stdout == "/small/filler\n"


def test_a_command_that_fills_the_scratch_goes_to_another_node(lab: Lab) -> None:
    n1, n2 = lab["n1"], lab["n2"]
    n1.run(["sh", "-c", "mkdir /small && mount -t tmpfs -o size=70m,mode=1777 small /small"], user="root")
    command = (
        'echo "$PPSS_NODE" | cat - "$ITEM" > {out}; [ $PPSS_NODE != n1 ] || head -c 80M /dev/zero > {out}.x'
    )
    staged = Staged(lab, {"a": 1_000}, command=command)
    small = staged.worker(n1, "--scratch", "/small")
    assert small.end() == 5
    assert "ppss: the disk of '/small' is full. Free space, then go on." in small.said
    staged.worker(n2)
    assert staged.finish() == {"a": "n2"}
    assert n1.run(["find", "/small", "-mindepth", "1", "!", "-name", "shared"]).stdout == ""


def test_copies_never_take_more_than_the_scratch_limit(lab: Lab) -> None:
    staged = Staged(lab, {f"{number}": 1_000_000 for number in range(10)})
    over, used = threading.Event(), [0]

    def sample() -> None:
        while not over.wait(0.002):
            used.append(staged.used(lab["n1"]))

    sampler = threading.Thread(target=sample)
    sampler.start()
    staged.worker(lab["n1"], "-p", "2", "--stage-ahead", "10", "--scratch-limit", "3100k", "--burst")
    try:
        assert len(staged.finish()) == 10
    finally:
        over.set()
        sampler.join(SECONDS)
    assert 1_000_000 < max(used) <= 3_100_000


_TROUBLES = {
    "full": (
        "mount -t tmpfs -o size=2m,mode=1777 small OUT && head -c 1900k /dev/zero > OUT/filler",
        "No space left on device",
        "rm OUT/filler",
    ),
    "read-only": ("chmod 555 OUT", "Permission denied", "chmod 755 OUT"),
    "a file": ("rmdir OUT && touch OUT", "Not a directory", "rm OUT"),
}


@pytest.mark.parametrize(
    ("trouble", "way"), [*((trouble, "gate") for trouble in _TROUBLES), ("full", "sftp")]
)
def test_outputs_wait_on_the_node_until_the_master_can_take_them(lab: Lab, trouble: str, way: str) -> None:
    """No command is run again for that, and outputs of another run are not held up."""
    n1, master = lab["n1"], lab.master
    make, sentence, mend = _TROUBLES[trouble]
    staged = Staged(lab, {"a": 600_000, "b": 500_000}, way=way)
    script = make.replace("OUT", str(staged.out))
    master.run(["sh", "-c", f"mkdir {staged.out} && chown ppss {staged.out} && {script}"], user="root")
    worker = staged.worker(n1, "-p", "2")
    worker.says(sentence)
    other = Staged(lab, {"c": 1_000}, output=f"{lab.share}/other", way=way)
    other.wait()
    assert staged.counts() == {"leased": 2}
    master.run(["sh", "-c", mend.replace("OUT", str(staged.out))], user="root")
    assert staged.finish() == {"a": "n1", "b": "n1"}
    assert other.finish() == {"c": "n1"}
    assert staged.begun == {(name, "n1"): 1 for name in "abc"}


def _kept_out(lab: Lab) -> tuple[Staged, Callable[[], object]]:
    """An item for whose output the master has no room, and what makes room there."""
    make, _, mend = (text.replace("OUT", f"{lab.share}/out") for text in _TROUBLES["full"])
    staged = Staged(lab, {"a": 600_000})
    lab.master.run(["sh", "-c", f"mkdir {staged.out} && {make}"], user="root")
    return staged, lambda: lab.master.run(["sh", "-c", mend], user="root")


def test_a_worker_that_drains_says_which_disk_of_the_master_it_waits_for(lab: Lab) -> None:
    """It waits on, since nobody wants to lose the outputs, until it is told again."""
    n1, n2 = lab["n1"], lab["n2"]
    staged, make_room = _kept_out(lab)
    worker = staged.worker(n1)
    staged.begins("a", n1)
    worker.signal("TERM")
    worker.says("told to stop, but the outputs of 1 item are not home yet: can't write in output directory")
    told = next(line for line in worker.said.splitlines() if "told to stop" in line)
    assert "No space left on device" in told
    assert told.endswith("Told again (SIGTERM, Ctrl-C), this worker hands back what is not home, and ends.")
    assert staged.counts() == {"leased": 1}
    worker.signal("TERM")
    assert worker.end("INT") == 130, worker.said
    assert worker.said.count("told to stop") == 1
    assert staged.counts() == {"ready": 1}
    make_room()
    staged.worker(n2)
    assert staged.finish() == {"a": "n2"}


def test_a_worker_that_drains_ends_when_the_master_has_room_again(lab: Lab) -> None:
    n1 = lab["n1"]
    staged, make_room = _kept_out(lab)
    worker = staged.worker(n1)
    staged.begins("a", n1)
    worker.signal("TERM")
    worker.says("told to stop")
    make_room()
    assert worker.end() == 0, worker.said
    assert staged.finish() == {"a": "n1"}
    assert staged.begun == {("a", "n1"): 1}


def test_a_worker_that_is_to_stop_now_waits_for_no_disk_of_the_master(lab: Lab) -> None:
    n1, n2 = lab["n1"], lab["n2"]
    staged, make_room = _kept_out(lab)
    worker = staged.worker(n1)
    worker.says("No space left on device")
    assert worker.end("INT") == 130, worker.said
    assert staged.counts() == {"ready": 1}
    make_room()
    staged.worker(n2)
    assert staged.finish() == {"a": "n2"}
