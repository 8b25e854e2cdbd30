"""The worker's connection to Redis: watched, lost, and opened again."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable

from ppss_queue.errors import ConnectFailed, ExitCode, Unavailable
from ppss_worker.claims import Claims
from ppss_worker.link import Link
from ppss_worker.outage import Outage


class Lifeline:
    """Used by the worker's one thread."""

    def __init__(
        self, link: Link, claims: Claims, warn: Callable[[str], None], on_mended: Callable[[], None]
    ) -> None:
        """`on_mended`: it is open again, and nothing new is on its way."""
        self._on_mended = on_mended
        self._link = link
        self._claims = claims
        self._warn = warn
        self._outage = Outage()
        self._selector: selectors.BaseSelector | None = None
        self._watched: int | None = None

    @property
    def lost(self) -> Unavailable | None:
        """Why there is no connection; None: there is one."""
        return self._outage.error

    def begin(self, selector: selectors.BaseSelector, opening: Callable[[], None]) -> None:
        """Opens it, with what else is to be open, and has the selector wait for it.

        Where it is lost already it is opened later, as after any loss: its server has answered before.
        Raises ConnectFailed for what must be corrected there, and what else `opening` does.
        """
        self._selector = selector
        try:
            opening()
            self._watch(selector)
        except ConnectFailed as error:
            if error.exit_code is ExitCode.CORRECT_INPUT:
                raise
            self.lose(error)

    def _watch(self, selector: selectors.BaseSelector) -> None:
        """Instead of the connection before, which may be closed already."""
        self._forget()
        self._watched = self._link.fileno()
        selector.register(self._watched, selectors.EVENT_READ, self._link.receive)

    def lose(self, error: Unavailable) -> None:
        """It is lost, or could not be opened again."""
        if self._outage.begin(error, time.monotonic()):
            self._warn(f"{error} What runs goes on; trying again.")
        self._forget()  # a dead one would be readable all the time

    def mend_if_due(self, now: float) -> float:
        """Opens it again if it is time to; returns the seconds until it is. Raises Unavailable."""
        if now < self._outage.retry_at:
            return self._outage.retry_at - now
        self._link.reopen()
        self._claims.reconnected()
        if self._selector is not None:
            self._watch(self._selector)
        self._outage.end()
        self._on_mended()
        return 0.0

    def stopping(self, now: float) -> None:
        """The worker was told to stop: from now on it waits only so long."""
        self._outage.stopping(now)

    def is_hopeless(self, now: float) -> bool:
        """A worker that was told to stop has waited long enough."""
        return self._outage.is_hopeless(now)

    def _forget(self) -> None:
        if self._watched is not None and self._selector is not None:
            self._selector.unregister(self._watched)
        self._watched = None
