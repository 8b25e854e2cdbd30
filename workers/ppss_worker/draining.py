"""A worker that was told to end when its work is done, and what keeps it when no command runs any more."""

from __future__ import annotations

from collections.abc import Callable

from ppss_queue.units import plural

_SILENT_SECONDS = 10.0
"""Outputs that get home within it are worth no sentence."""


class Draining:
    """Says once why the worker has not ended: it waits for as long as that takes, since outputs are dear."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._silent_until: float | None = None
        self._said = False

    def tell(self, now: float, outputs: int, held_up: str) -> None:
        """`outputs`: of how many items are not home; `held_up`: a sentence why, "" if they are on their way."""
        if self._silent_until is None:
            self._silent_until = now + _SILENT_SECONDS
        if self._said or not outputs or (not held_up and now < self._silent_until):
            return
        self._said = True
        self._warn(
            f"told to stop, but the outputs of {plural(outputs, 'item')} are not home yet: "
            f"{held_up or 'they are on their way.'} Told again (SIGTERM, Ctrl-C), this worker hands back what is not "
            "home, and ends."
        )
