"""What tests of every package share and import by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, timeout_seconds: float = 20) -> T:
    """The condition's first true value, asked for every 5 ms; AssertionError naming `what` if none comes."""
    deadline = time.monotonic() + timeout_seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_seconds:g} s in vain for: {what}")
        time.sleep(0.005)
    return value
