"""What comes home is on the master's disk before it is published, and syncing holds up nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import missing
from ppss_worker.syncing import Synced, Syncer

_UPLOAD = """
import os, sys
from ppss_queue.errors import PpssError
from ppss_worker.disk import OwnDisk
from ppss_worker.uploads import Uploads, kind_of

uploads = Uploads(lambda run: OwnDisk().staging(sys.argv[1], run))
key = {"run": "r", "seq": 1, "token": "t"}
one = {"op": "file", "path": "x", "file": "x", "size": 4, "mode": 0o644, "mtime_ns": 0}
uploads.take("make", {**key, "subdirectory": ""}, b"")
uploads.take("file", one, b"")
uploads.take("", {}, b"data")
uploads.take("", {"end": True}, b"")
print(uploads.take("made", {}, b""))
try:
    print(uploads.take("publish", key, b""))
except PpssError as error:
    print(kind_of(error), error)
"""


def test_all_files_are_closed_when_they_are_on_the_disk(tmp_path: Path) -> None:
    syncer = Syncer()
    groups = [Synced(syncer) for _ in range(10)]
    descriptors = [os.open(tmp_path / str(number), os.O_CREAT | os.O_WRONLY) for number in range(300)]
    for number, descriptor in enumerate(descriptors):
        groups[number % 10].add(descriptor)
    for group in groups:
        group.wait()
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_one_file_that_can_not_be_synced_fails_its_group_alone(tmp_path: Path) -> None:
    syncer = Syncer()
    bad, good = Synced(syncer), Synced(syncer)
    reader, writer = os.pipe()  # a pipe can't be synced
    for group in (bad, good):
        group.add(os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY))
    bad.add(writer)
    good.wait()
    with pytest.raises(OSError, match="Invalid argument"):
        bad.wait()
    os.close(reader)


@pytest.mark.parametrize("failure", ["", "EIO"])
def test_nothing_is_published_that_the_disk_did_not_take(tmp_path: Path, failure: str) -> None:
    strace = shutil.which("strace")
    if failure and not strace:
        missing("strace")
    inject = [
        strace or "strace",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync",
        "-e",
        f"inject=fsync:error={failure}",
    ]
    argv = [*(inject if failure else []), sys.executable, "-c", _UPLOAD, str(tmp_path / "out")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    made, published = done.stdout.splitlines()
    assert made == "{'outputs': ['x']}"
    if failure:
        assert published.startswith("machine ") and "Input/output error" in published
    else:
        assert published == "{'published': 1}"
    assert (tmp_path / "out" / "x").exists() is not bool(failure)
