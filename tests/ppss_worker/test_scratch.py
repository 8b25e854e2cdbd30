"""Scratch on a node: bounded, its own for each worker, and swept by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import wait_until
from ppss_worker.maps import PathMaps
from ppss_worker.scratch import NoRoom, ScratchSpace

from ppss_queue.errors import BadInput
from ppss_queue.model import Item, Lease, RunSpec


def _lease(seq: int) -> Lease:
    return Lease("r123", "t", Item(seq, "x"), 0, 0)


@pytest.fixture
def space(tmp_path: Path) -> ScratchSpace:
    space = ScratchSpace(tmp_path / "scratch", "n1.1", limit_bytes=100)
    space.prepare()
    return space


def test_the_next_worker_removes_what_a_killed_one_left_and_nothing_of_a_live_one(
    space: ScratchSpace, tmp_path: Path
) -> None:
    script = (
        "import sys, time; from pathlib import Path; from ppss_worker.scratch import ScratchSpace\n"
        "space = ScratchSpace(Path(sys.argv[1]), 'n1.2'); space.prepare()\n"
        "print('ready', flush=True); time.sleep(1000)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, tmp_path / "scratch"], stdout=subprocess.PIPE)
    assert other.stdout and other.stdout.readline()
    (tmp_path / "scratch" / "n1.2" / "left").write_text("x")
    ScratchSpace(tmp_path / "scratch", "n1.3").prepare()
    assert sorted(os.listdir(tmp_path / "scratch")) == ["n1.1", "n1.2", "n1.3", "shared"]
    other.send_signal(signal.SIGKILL)
    other.wait()
    ScratchSpace(tmp_path / "scratch", "n1.4").prepare()
    assert sorted(os.listdir(tmp_path / "scratch")) == ["n1.1", "n1.3", "n1.4", "shared"]


def test_what_a_worker_left_that_was_killed_while_it_removed_it_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "scratch" / "n1.1" / "r123-1.1" / "work"
    left.mkdir(parents=True)
    ScratchSpace(tmp_path / "scratch", "n1.2").prepare()
    assert sorted(os.listdir(tmp_path / "scratch")) == ["n1.2", "shared"]


def test_a_shared_file_that_nobody_used_for_a_week_goes_away(tmp_path: Path) -> None:
    shared = tmp_path / "scratch" / "shared"
    shared.mkdir(parents=True)
    for name, age_days in (("old", 8), ("new", 6)):
        (shared / name).touch()
        when = time.time() - age_days * 24 * 3600
        os.utime(shared / name, (when, when))
    ScratchSpace(tmp_path / "scratch", "n1.1").prepare()
    assert os.listdir(shared) == ["new"]


def test_a_file_waits_for_room_until_another_item_has_gone(space: ScratchSpace) -> None:
    first, second = space.room(_lease(1)), space.room(_lease(2))
    space.claim(first, 60)
    assert not space.is_short
    claimed = threading.Thread(target=space.claim, args=(second, 60))
    claimed.start()
    space.give_back(first)
    claimed.join(20)
    assert not claimed.is_alive()
    wait_until(lambda: not Path(first.directory).exists(), "the room is removed")


def test_a_file_that_never_fits_is_refused_with_what_to_do(space: ScratchSpace) -> None:
    with pytest.raises(NoRoom, match=r"a file of 101 B does not fit .* raise --scratch-limit"):
        space.claim(space.room(_lease(1)), 101)


def test_a_scratch_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"file/scratch' can't be used .*--scratch DIR"):
        ScratchSpace(tmp_path / "file" / "scratch", "n1.1").prepare()


# --map


def test_the_longest_mapping_counts_and_whole_names_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    maps = PathMaps.parse([f"/data={tmp_path}/a", f"/data/raw={tmp_path}/b"])
    assert maps.path("/data/x") == f"{tmp_path}/a/x"
    assert maps.path("/data/raw/x") == f"{tmp_path}/b/x"
    assert maps.path("/database") is None


def test_a_run_is_in_place_only_if_all_its_directories_are_mapped(tmp_path: Path) -> None:
    maps = PathMaps.parse([f"/data={tmp_path}"])
    spec = RunSpec(roots=("/data/in", ""), output="/data/out", directory="/home/me", stage=True)
    mapped, whole = maps.applied(spec)
    assert whole
    assert (mapped.roots, mapped.output) == ((f"{tmp_path}/in", ""), f"{tmp_path}/out")
    elsewhere = RunSpec(roots=("/data/in",), output="/elsewhere", stage=True)
    assert maps.applied(elsewhere) == (elsewhere, False)


@pytest.mark.parametrize("text", ["data=/mnt", "/data", "/data=", "/data=/does/not/exist"])
def test_a_mapping_that_maps_nothing_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--map"):
        PathMaps.parse([text])
