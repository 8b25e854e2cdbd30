"""A limit on bytes per second (--bwlimit), for all transfers of one direction."""

from __future__ import annotations

import time

_BURST_SECONDS = 0.2


class Throttle:
    """Used by one thread."""

    def __init__(self, bytes_per_second: float | None) -> None:
        """None: no limit."""
        self._rate = bytes_per_second
        self._due_at = 0.0

    def passed(self, count_bytes: int) -> None:
        """Waits as long as the limit asks for after so many bytes."""
        if not self._rate or not count_bytes:
            return
        now = time.monotonic()
        self._due_at = max(self._due_at, now - _BURST_SECONDS) + count_bytes / self._rate
        if self._due_at > now:
            time.sleep(self._due_at - now)
