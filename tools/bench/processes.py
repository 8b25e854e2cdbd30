"""Processes of the benchmark: each in a group of its own, each ended with everything in that group."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

LIMIT_SECONDS = 300.0
"""No single command of a round may take longer."""

Argument: TypeAlias = "str | os.PathLike[str]"


class Broken(Exception):
    """Something that was to be measured did not work."""


class Missing(Exception):
    """A rival is not installed; the text tells how to install it."""


@contextmanager
def started(
    argv: Sequence[Argument],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int = subprocess.DEVNULL,
    stdin: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[str]]:
    """A process in the background; SIGTERM at the end, SIGKILL for its group if that takes over 10 s.

    What it wrote to stderr is in the error if it had failed before.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=errors, text=True, process_group=0
        )
        ended = None
        try:
            yield process
            ended = process.poll()
            process.terminate()
            process.wait(10)
        except subprocess.TimeoutExpired:
            raise Broken(f"{_shown(argv)}: not done in time") from None
        finally:
            _kill_group(process)
        if ended:
            errors.seek(0)
            raise Broken(f"{_shown(argv)}: ended with {ended}: {errors.read()[-600:].strip()}")


def seconds(
    argv: Sequence[Argument],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit: float = LIMIT_SECONDS,
) -> float:
    """Time of the whole process, from its start until it is gone. Raises Broken if it failed or took too long."""
    began = time.perf_counter()
    with started(argv, env=env, cwd=cwd) as process:
        await_end(process, limit)
        return time.perf_counter() - began


def output(
    argv: Sequence[Argument],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit: float = LIMIT_SECONDS,
) -> str:
    """What it prints. Raises Broken if it failed or took too long."""
    with started(argv, env=env, cwd=cwd, stdout=subprocess.PIPE) as process:
        return process.communicate(timeout=limit)[0]


def await_end(process: subprocess.Popen[str], limit: float = LIMIT_SECONDS) -> None:
    """At once, where `Popen.wait(limit)` polls up to 50 ms apart. Raises TimeoutExpired, for `started`."""
    descriptor = os.pidfd_open(process.pid)
    try:
        if not select.select([descriptor], [], [], limit)[0]:
            raise subprocess.TimeoutExpired(process.args, limit)
    finally:
        os.close(descriptor)
    process.wait()


def peak_rss_bytes(pid: int) -> int:
    """The most memory that a living process ever had; 0 if it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process and its children, to the nanosecond."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0]) / 1e9
        total += sum(cpu_seconds(int(child)) for child in (task / "children").read_text().split())
    return total


def wait_until(condition: Callable[[], object], limit: float = 30.0, what: str = "") -> None:
    """Polls every 5 ms. Raises Broken when it takes too long."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise Broken(f"{what or 'something awaited'} did not come about in {limit:g} s")
        time.sleep(0.005)


def _kill_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()
    if process.stdin:
        with suppress(BrokenPipeError):
            process.stdin.close()


def _shown(argv: Sequence[Argument]) -> str:
    """Without the folder of the program, which differs from machine to machine."""
    return " ".join([Path(argv[0]).name, *(os.fspath(word) for word in argv[1:])])[:200]
