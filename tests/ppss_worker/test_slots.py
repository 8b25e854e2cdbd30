"""Slot numbers, among real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ppss_worker.slots import SlotNumbers

from ppss_queue.errors import MachineFailed

HOLDER = """
import sys, time
from pathlib import Path
from ppss_worker.slots import SlotNumbers
numbers = SlotNumbers(Path(sys.argv[1]))
print(*numbers.take(int(sys.argv[2])), flush=True)
time.sleep(60)
"""


def holder(directory: Path, count: int) -> tuple[subprocess.Popen[str], list[int]]:
    """Another worker that holds slot numbers, and these numbers."""
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory), str(count)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    return process, [int(number) for number in process.stdout.readline().split()]


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_numbers_are_dense_from_one_and_unique_among_workers(tmp_path: Path) -> None:
    first = SlotNumbers(tmp_path / "new" / "slots")
    assert first.take(3) == [1, 2, 3]
    process, taken = holder(tmp_path / "new" / "slots", 2)
    assert taken == [4, 5]
    assert first.take(1) == [6]
    kill(process)
    first.close()


def test_the_lowest_free_numbers_come_first_and_close_frees_them(tmp_path: Path) -> None:
    first, second, third = (SlotNumbers(tmp_path) for _ in range(3))
    assert (first.take(2), second.take(1)) == ([1, 2], [3])
    first.close()
    assert third.take(3) == [1, 2, 4]
    assert first.take(1) == [5]
    for numbers in (first, second, third):
        numbers.close()


def test_a_killed_worker_gives_its_numbers_back(tmp_path: Path) -> None:
    process, taken = holder(tmp_path, 2)
    assert taken == [1, 2]
    kill(process)
    numbers = SlotNumbers(tmp_path)
    assert numbers.take(2) == [1, 2]
    numbers.close()


def test_a_command_of_the_worker_does_not_hold_its_numbers(tmp_path: Path) -> None:
    first = SlotNumbers(tmp_path)
    first.take(1)
    command = subprocess.Popen(["sleep", "60"], close_fds=False)
    first.close()
    second = SlotNumbers(tmp_path)
    assert second.take(1) == [1]
    second.close()
    command.kill()
    command.wait()


def test_a_directory_that_cannot_be_used_is_the_fault_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineFailed, match="file"):
        SlotNumbers(tmp_path / "file" / "slots").take(1)
