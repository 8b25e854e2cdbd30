"""What tests of every package share and import by name."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import pytest

T = TypeVar("T")
P = ParamSpec("P")


def nvidia_smi(directory: Path, text: str) -> str:
    """A PATH with an nvidia-smi that does this; makes the directory of it."""
    directory.mkdir()
    program = directory / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def wait_until(condition: Callable[[], T], what: str, timeout_seconds: float = 20) -> T:
    """The condition's first true value, asked for every 5 ms; AssertionError naming `what` if none comes."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_seconds:g} s in vain for: {what}")
        time.sleep(0.005)
    return value


def missing(what: str) -> NoReturn:
    """Skips the test for want of this, but in CI, where nothing may be wanting."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {what}")
    pytest.skip(f"there is no {what}")


def as_root(test: Callable[P, None]) -> Callable[P, None]:
    """For a test that becomes another user."""

    @wraps(test)
    def run(*args: P.args, **options: P.kwargs) -> None:
        if os.geteuid() != 0:
            missing("root, to become another user")
        test(*args, **options)

    return run


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    """A file system of its own in this directory, with options as for mount's `-o`."""
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"file system that can be mounted ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)
