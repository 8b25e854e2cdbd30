"""What a worker does for everyone now and then: runs that others changed, are over or too old, scratch left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ppss_queue.calls import Calls
from ppss_queue.connection import Reply
from ppss_queue.keys import Keys
from ppss_queue.replies import as_list, read_members
from ppss_queue.scripts import Call
from ppss_queue.store import CHUNK
from ppss_worker.link import Link
from ppss_worker.runs import ActiveRun
from ppss_worker.staging import sweep

EVERY_SECONDS = 60.0


class Housekeeping:
    """Used by the worker's one thread. Nothing here waits for an answer."""

    def __init__(
        self,
        link: Link,
        calls: Calls,
        keys: Keys,
        state_directory: Path,
        runs: dict[str, ActiveRun],
        is_busy: Callable[[str], bool],
    ) -> None:
        """`runs`: what the worker knows of runs, forgotten here when they have ended; `is_busy`: holds items of it."""
        self._link = link
        self._calls = calls
        self._keys = keys
        self._state_directory = state_directory
        self._runs = runs
        self._is_busy = is_busy
        self._due_at = 0.0

    def do_if_due(self, now: float) -> None:
        """`now`: time.monotonic()."""
        if now >= self._due_at:
            self._due_at = now + EVERY_SECONDS
            self.tidy()
            self.sweep()

    def tidy(self) -> None:
        """Notices what other programs did to the runs, and purges those whose time is over."""

        def go_on(verb: str, run: str, reply: Reply) -> None:
            if isinstance(reply, int) and reply > 0:
                self._link.send(Call(self._keys, verb, (run, CHUNK)), partial(go_on, verb, run))
            elif reply == 0 and verb == "purge":
                shutil.rmtree(self._state_directory / "logs" / run, ignore_errors=True)

        def tidied(reply: Reply) -> None:
            if not reply:
                return
            for verb, runs in zip(("purge", "cancel"), as_list(reply), strict=True):
                for run in read_members(runs):
                    go_on(verb, run, 1)

        self._link.send(Call(self._keys, "tidy"), tidied, repeat=False)

    def sweep(self) -> None:
        """Forgets runs that have ended, and removes what killed workers left in their output directories."""

        def looked(run: str, reply: Reply) -> None:
            if (
                not reply
                or read_members(reply)[0] not in ("done", "cancelled", "unknown")
                or self._is_busy(run)
            ):
                return
            active = self._runs.pop(run, None)
            if active is not None and active.spec.output is not None:
                sweep(active.spec.output, run)

        for run in self._runs:
            self._link.send(self._calls.renew(run, ()), partial(looked, run), repeat=False)
