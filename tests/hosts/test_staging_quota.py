"""Quotas (EDQUOT), which no look at the free space of a disk tells of: on a node, and on the master."""

from __future__ import annotations

import shutil

import pytest
from helpers import missing
from hosts.lab import Host, Lab
from hosts.staged import Staged

_MOUNT = """
mknod /dev/loop-control c 10 237
for n in $(seq 0 31); do mknod "/dev/loop$n" b 7 "$n"; done
truncate -s 300M /tmp/disk && mkfs.btrfs -q /tmp/disk && mkdir -p "$1" && mount -o loop /tmp/disk "$1" &&
chown ppss "$1" && btrfs quota enable "$1" && btrfs qgroup limit "$2" "$1"
"""


def _limited(host: Host, directory: str, limit: str) -> None:
    """Mounts a disk there that has much room, of which so little may be used. Of all file systems btrfs needs least."""
    if shutil.which("mkfs.btrfs") is None:
        missing("mkfs.btrfs: apt-get install btrfs-progs")
    done = host.run(["sh", "-c", _MOUNT, "sh", directory, limit], user="root", check=False)
    if done.returncode:
        missing(f"kernel that gives a host a disk with a quota ({done.stderr.strip()})")


@pytest.mark.parametrize(
    ("way", "sentence"),
    [("gate", "Disk quota exceeded. Mend"), ("sftp", "'failure' and no more; a quota may be used up. Mend")],
)
def test_outputs_wait_on_the_node_until_the_quota_on_the_master_is_raised(
    lab: Lab, way: str, sentence: str
) -> None:
    """No command is run again for that, and outputs of another run are not held up."""
    n1, master = lab["n1"], lab.master
    staged = Staged(lab, {"a": 2_000_000, "b": 1_900_000}, way=way)
    _limited(master, str(staged.out), "3M")
    worker = staged.worker(n1, "-p", "2")
    worker.says(f"{sentence} that and go on. Outputs of run {staged.run} wait on this node until then.")
    other = Staged(lab, {"c": 1_000}, output=f"{lab.share}/other", way=way)
    other.wait()
    assert staged.counts().get("leased", 0) >= 1
    master.run(["btrfs", "qgroup", "limit", "none", str(staged.out)], user="root")
    assert staged.finish() == {"a": "n1", "b": "n1"}
    assert other.finish() == {"c": "n1"}
    assert staged.begun == {(name, "n1"): 1 for name in "abc"}


def test_a_quota_that_is_met_in_mid_download_leaves_the_items_to_other_nodes(lab: Lab) -> None:
    n1, n2 = lab["n1"], lab["n2"]
    _limited(n1, "/quota", "2M")
    staged = Staged(lab, {"a": 3_000_000})
    worker = staged.worker(n1, "--scratch", "/quota")
    worker.says("files can't be fetched to this node: Disk quota exceeded")
    assert staged.counts() == {"ready": 1}
    staged.worker(n2)
    assert staged.finish() == {"a": "n2"}
    assert (
        n1.run(["find", "/quota", "-type", "f"]).stdout == ""
    )  # btrfs may keep a directory until there is room


def test_a_command_that_meets_the_quota_of_the_scratch_goes_to_another_node(lab: Lab) -> None:
    n1, n2 = lab["n1"], lab["n2"]
    _limited(n1, "/quota", "4M")
    command = (
        'echo "$PPSS_NODE" | cat - "$ITEM" > {out}; [ $PPSS_NODE != n1 ] || head -c 8M /dev/zero > {out}.x'
    )
    staged = Staged(lab, {"a": 1_000}, command=command)
    small = staged.worker(n1, "--scratch", "/quota")
    assert small.end() == 5, small.said
    assert "ppss: the quota on the disk of '/quota' is used up. Free space, then go on." in small.said
    staged.worker(n2)
    assert staged.finish() == {"a": "n2"}
    assert (
        n1.run(["find", "/quota", "-type", "f"]).stdout == ""
    )  # btrfs may keep a directory until there is room
