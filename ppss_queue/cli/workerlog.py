"""What `ppss worker` writes to stderr: one line an item, to be read down a column."""

from __future__ import annotations

import time
from pathlib import Path

from ppss_worker.logs import Logs
from ppss_worker.observer import Ended, Verdict
from ppss_worker.runs import ActiveRun

from ppss_queue.cli.pidfile import PidFile
from ppss_queue.cli.say import say
from ppss_queue.model import Lease
from ppss_queue.units import format_duration, plural, printable

_SIGNS = {
    Verdict.SUCCEEDED: "←",
    Verdict.FAILED: "!",
    Verdict.RETRY: "↻",
    Verdict.ELSEWHERE: "→",
    Verdict.RELEASED: "⤺",
    Verdict.LOST: "?",
}


class WorkerLog:
    """Observer of a worker without a screen."""

    def __init__(
        self, state_directory: Path, logs: Path | None, work: str, pid_file: PidFile | None, *, quiet: bool
    ) -> None:
        """`work`: how much of it is done where, for the first line. `pid_file`: tells others that it is at work."""
        self._work = work
        self._pid_file = pid_file
        self._logs = Logs(state_directory, logs)
        self._quiet = quiet
        self._counts = dict.fromkeys(Verdict, 0)

    @property
    def summary(self) -> str:
        parts = [f"{count:,} {verdict}" for verdict, count in self._counts.items() if count]
        return ", ".join(parts) or plural(0, "item")

    def say(self, sentence: str) -> None:
        say(f"{time.strftime('%H:%M:%S')} {sentence}")

    def warn(self, sentence: str) -> None:
        self.say(f"! {sentence}")

    def began(self, worker: str) -> None:
        self.say(f"worker {worker} · {self._work}")
        if self._pid_file:
            self._pid_file.write()

    def started(self, lease: Lease, run: ActiveRun, slot: int) -> None:
        """Only the end is logged: it tells the time taken."""

    def output(self, lease: Lease, target: int, data: bytes) -> None:
        """Never asked for."""

    def ended(self, ended: Ended) -> None:
        """Raises OSError where logs can't be written: nothing more is run then."""
        self._counts[ended.verdict] += 1
        self._logs.write(ended)
        if not self._quiet:
            self.say(f"{_SIGNS[ended.verdict]} {describe(ended)}")


def describe(ended: Ended) -> str:
    """`k3v9 2019/a.pdf · exit 6 · 4.1 s · "last line" · again in 2.0 s`."""
    outcome = ended.outcome
    parts = [f"{ended.lease.run} {printable(ended.lease.item.name)}"]
    if ended.verdict is Verdict.RELEASED:
        parts.append("handed back")
    elif ended.verdict is Verdict.LOST:
        parts.append("lease lost, result discarded: cancelled, or someone else runs it")
    elif outcome.failure:
        parts.append(outcome.failure)
    parts.append(format_duration(outcome.seconds))
    if outcome.failure and outcome.last_line:
        parts.append(f'"{outcome.last_line}"')
    if ended.verdict is Verdict.RETRY:
        parts.append(f"again in {format_duration(ended.retry_seconds or 0)}")
    elif ended.verdict is Verdict.ELSEWHERE:
        parts.append("may be this node's fault: tried on another one")
    return " · ".join(parts)
