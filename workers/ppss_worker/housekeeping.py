"""What a worker does for everyone now and then: runs that others changed, are over or too old, scratch left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from ppss_queue.calls import Calls
from ppss_queue.connection import Reply
from ppss_queue.keys import Keys
from ppss_queue.replies import as_list, read_members
from ppss_queue.scripts import Call
from ppss_queue.store import CHUNK
from ppss_worker.link import Link
from ppss_worker.runs import ActiveRuns
from ppss_worker.staging import leftovers, sweep

EVERY_SECONDS = 60.0
SOON_SECONDS = 5.0


class Housekeeping:
    """Used by the worker's one thread. Nothing here waits for an answer."""

    def __init__(
        self,
        link: Link,
        calls: Calls,
        keys: Keys,
        state_directory: Path,
        runs: ActiveRuns,
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
        self._done_at = -EVERY_SECONDS

    def do_if_due(self, now: float) -> float:
        """Returns the seconds until it is due again. `now`: time.monotonic()."""
        if now >= self._due_at:
            self._done_at, self._due_at = now, now + EVERY_SECONDS
            self._tidy()
            self.sweep()
        return self._due_at - now

    def soon(self) -> None:
        """Somebody may have changed something; as each new run looks like that, it is not done each time."""
        self._due_at = min(self._due_at, self._done_at + SOON_SECONDS)

    def notice(self, runs: Iterable[str]) -> None:
        """Somebody changed the items of these runs: one that was done may be open again, one that was open done."""
        for run in runs:
            self._link.send(Call(self._keys, "notice", (run,)), lambda reply: None, repeat=False)

    def sweep(self) -> None:
        """Forgets runs that have ended, and removes what killed workers left in their output directories."""
        for run in self._runs:
            output = self._runs.get(run).spec.output
            names = leftovers(output, run) if output is not None else []
            look = partial(self._sweep_if_ended, run, output, names)
            self._link.send(self._calls.renew(run, ()), look, repeat=False)

    def _sweep_if_ended(self, run: str, output: str | None, names: list[str], reply: Reply) -> None:
        ended = reply is not None and read_members(reply)[0] in ("done", "cancelled", "unknown")
        if not ended or self._is_busy(run):
            return
        self._runs.forget(run)
        if output is not None:
            sweep(output, run, names)

    def _tidy(self) -> None:
        """Notices what other programs did to the runs, purges those whose time is over, ends broken cancels."""

        def go_on(verb: str, run: str, reply: Reply) -> None:
            if isinstance(reply, int) and reply > 0:
                self._link.send(Call(self._keys, verb, (run, CHUNK)), partial(go_on, verb, run))
            elif reply == 0 and verb == "purge":
                import shutil

                shutil.rmtree(self._state_directory / "logs" / run, ignore_errors=True)

        def tidied(reply: Reply) -> None:
            if not reply:
                return
            for verb, runs in zip(("purge", "cancel"), as_list(reply), strict=True):
                for run in read_members(runs):
                    go_on(verb, run, 1)

        self._link.send(Call(self._keys, "tidy"), tidied, repeat=False)
