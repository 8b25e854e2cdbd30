"""How a worker ends: what it was told, what made it fail, and how long outputs on their way home are waited for."""

from __future__ import annotations

import math
import signal
import time

from ppss_worker.settings import Stop

DELIVERY_SECONDS = 10.0
"""How long outputs on their way home are waited for when the worker is to stop now."""


class Ending:
    """Of one worker."""

    def __init__(self) -> None:
        self.how = Stop.NO
        self.failure: Exception | None = None
        """The first that no further item would survive."""
        self.deliver_until = math.inf
        """time.monotonic()"""

    def rises_to(self, how: Stop) -> bool:
        """Takes a wish down; a less urgent one than before changes nothing, and is False."""
        if how <= self.how:
            return False
        self.how = how
        if how >= Stop.NOW:
            self.deliver_until = time.monotonic() + (DELIVERY_SECONDS if how is Stop.NOW else 0.0)
        return True

    def meaning_of(self, number: int) -> Stop:
        """What a signal asks for: SIGTERM drains, a second one stops now; SIGINT and SIGHUP stop now, then at once."""
        if number == signal.SIGTERM:
            return Stop.DRAIN if self.how < Stop.DRAIN else Stop.NOW
        if number in (signal.SIGINT, signal.SIGHUP):
            return Stop.NOW if self.how < Stop.NOW else Stop.AT_ONCE
        return Stop.NO
