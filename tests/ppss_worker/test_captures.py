"""Capture files: used again, but never while anyone else could write to them or read them."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from ppss_worker.captures import Captures, capture_tail
from ppss_worker.signals import ChildSignals, catch_stop_signals


@pytest.fixture
def captures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Captures]:
    monkeypatch.chdir(tmp_path)
    captures = Captures(str(tmp_path))
    others = [captures.take(), captures.take()]  # since no more are kept than are in use
    yield captures
    for other in others:
        captures.give_back(other)
    captures.close()


def run(captures: Captures, capture: int, script: str) -> None:
    """A command that prints to it, and that leaves processes as it likes."""
    path = os.environ["PATH"]
    pid = os.posix_spawnp(
        "bash", ["bash", "-c", script], {"PATH": path}, file_actions=[captures.action(capture, 1)]
    )
    assert os.waitpid(pid, 0)[1] == 0


def used_again(captures: Captures, capture: int) -> bool:
    path = os.open(f"/proc/self/fd/{capture}", os.O_PATH)  # its inode shall be nobody else's
    captures.give_back(capture)
    after = captures.take()
    same = os.path.samestat(os.fstat(after), os.fstat(path))
    os.close(after)
    os.close(path)
    return same


def test_a_file_is_used_again_and_empty_then(captures: Captures) -> None:
    first = captures.take()
    run(captures, first, "echo much")
    assert capture_tail(first, 100) == (b"much\n", 5)
    path = os.open(f"/proc/self/fd/{first}", os.O_PATH)
    captures.give_back(first)
    second = captures.take()
    assert os.path.samestat(os.fstat(second), os.fstat(path))
    os.close(path)
    assert capture_tail(second, 100) == (b"", 0)
    run(captures, second, "echo x")
    assert capture_tail(second, 100) == (b"x\n", 2)
    os.close(second)


def test_no_more_files_are_kept_than_are_in_use(tmp_path: Path) -> None:
    captures = Captures(str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    taken = [captures.take() for _ in range(10)]
    for number, capture in enumerate(taken, 1):
        captures.give_back(capture)
        assert len(os.listdir("/proc/self/fd")) - before <= 2 * (10 - number)


@pytest.mark.parametrize(
    "held",
    ["exec", "exec < /dev/stdout > /dev/null", "exec 7>> /dev/stdout > /dev/null"],
    ids=["inherited", "for reading", "by its name"],
)
def test_a_file_that_a_process_still_has_open_is_not_used_again(captures: Captures, held: str) -> None:
    """A process that left its command's group and lives on could write to, or read, what the next one prints."""
    capture = captures.take()
    run(
        captures,
        capture,
        f"setsid -f bash -c '{held}; echo $$ > pid; exec sleep 1000'; until [ -s pid ]; do sleep 0.01; done",
    )
    try:
        assert not used_again(captures, capture)
    finally:
        os.kill(int(Path("pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    "change", ["chmod 644 /dev/stdout", "ln -L /proc/self/fd/1 kept"], ids=["its mode", "its name"]
)
def test_a_file_that_a_command_changed_is_not_used_again(captures: Captures, change: str) -> None:
    capture = captures.take()
    run(captures, capture, change)
    assert not used_again(captures, capture)


def test_who_opens_a_file_in_the_moment_of_its_lease_does_not_end_the_worker(captures: Captures) -> None:
    capture = captures.take()
    with ChildSignals() as signals, ExitStack() as stack:
        catch_stop_signals(stack)
        fcntl.fcntl(capture, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(BlockingIOError):
            os.open(f"/proc/self/fd/{capture}", os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(capture, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert signals.drain() == [signal.SIGIO]
    os.close(capture)


def test_without_leases_each_file_is_used_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS."""

    def refuse(descriptor: int, command: int, argument: int = 0) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    captures = Captures(str(tmp_path))
    capture = captures.take()
    assert captures.action(capture, 1) == (os.POSIX_SPAWN_DUP2, capture, 1)
    run(captures, capture, "echo x")
    assert capture_tail(capture, 100) == (b"x\n", 2)
    assert not used_again(captures, capture)
