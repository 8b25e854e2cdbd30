"""A time without Redis: when to try again, and when a worker that was told to stop gives up."""

from __future__ import annotations

import random

from ppss_queue.errors import Unavailable

_RETRY_SECONDS = (0.05, 2.0)
"""The first pause and the longest; it doubles."""
_JITTER = (0.5, 1.5)
"""Pauses are that much shorter or longer: all workers lost the same server at the same moment."""
_SETTLED_SECONDS = 5.0
"""A connection that lasted this long was a good one: the next loss is a new outage."""
_GIVE_UP_SECONDS = 10.0
"""How long a worker that was told to stop waits for a lost Redis, to tell it what it did."""


class Outage:
    """All times are of time.monotonic()."""

    def __init__(self) -> None:
        self.error: Unavailable | None = None
        """Why there is no connection; None: there is one."""
        self.retry_at = -_SETTLED_SECONDS
        self._pause_seconds = 0.0
        self._give_up_at = 0.0

    def begin(self, error: Unavailable, now: float) -> bool:
        """The connection is lost, or could not be made again. Whether this outage is a new one."""
        new = self.error is None and now > self.retry_at + _SETTLED_SECONDS
        if new:
            self._pause_seconds = _RETRY_SECONDS[0]
            self.stopping(now)
        else:
            self._pause_seconds = min(self._pause_seconds * 2, _RETRY_SECONDS[1])
        self.error = error
        self.retry_at = now + self._pause_seconds * random.uniform(*_JITTER)
        return new

    def end(self) -> None:
        self.error = None

    def stopping(self, now: float) -> None:
        """The worker was told to stop: from now on it waits only so long."""
        self._give_up_at = now + _GIVE_UP_SECONDS

    def is_hopeless(self, now: float) -> bool:
        """A worker that was told to stop has waited long enough."""
        return self.error is not None and now > self._give_up_at
