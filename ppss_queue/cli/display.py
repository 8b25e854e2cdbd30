"""What `ppss run` shows while it works: progress on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppss_queue.cli.eta import Durations
from ppss_queue.store import Counts
from ppss_queue.units import format_count, format_duration, format_rate, printable, shorten

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

FRAME_SECONDS = 0.25
_PLAIN_SECONDS = 30.0
_BAR_COLUMNS = 30


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a run, as it is shown."""

    done: int
    total: int
    failed: int
    running: int
    delayed: int
    rate_per_second: float
    left: str
    longest: str = ""
    longest_seconds: float = 0.0
    state: str = ""

    @classmethod
    def of(
        cls,
        counts: Counts,
        durations: Durations,
        slots: int,
        *,
        longest: str = "",
        longest_seconds: float = 0.0,
    ) -> Progress:
        """`durations` of the items that ended here; where none did, the rate tells what is left."""
        done = counts.total - counts.left
        left = durations.left(counts.left, slots)
        if not left and counts.rate_per_second and counts.left:
            left = f"{format_duration(counts.left / counts.rate_per_second)} left"
        return cls(
            done=done,
            total=counts.total,
            failed=counts.failed,
            running=counts.running,
            delayed=counts.delayed,
            rate_per_second=counts.rate_per_second,
            left=left,
            longest=longest,
            longest_seconds=longest_seconds,
            state="paused" if counts.state == "paused" else "",
        )

    @property
    def line(self) -> str:
        """`712/1,204 · 3 failed · 8 running · 4.1/s · 2 min left (1-4)`."""
        parts = [f"{format_count(self.done)}/{format_count(self.total)}"]
        if self.state:
            parts.append(self.state)
        if self.failed:
            parts.append(f"{format_count(self.failed)} failed")
        if self.delayed:
            parts.append(f"{format_count(self.delayed)} wait for a retry")
        parts.append(f"{self.running} running")
        if self.rate_per_second:
            parts.append(format_rate(self.rate_per_second))
        if self.left:
            parts.append(self.left)
        return " · ".join(parts)


class Display:
    """Shows progress on stderr; on a terminal in place, elsewhere a line every half minute. `quiet`: nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._live: Live | None = None
        self._console: Console | None = None
        self._shown_at = 0.0
        self._plain_at = time.monotonic() + _PLAIN_SECONDS / 3

    def show(self, progress: Progress) -> None:
        """Call it as often as you like."""
        now = time.monotonic()
        if self._terminal and now >= self._shown_at + FRAME_SECONDS * 0.8:
            self._shown_at = now
            self._draw(progress)
        elif not self._terminal and not self._quiet and now >= self._plain_at:
            self._plain_at = now + _PLAIN_SECONDS
            print(f"  {progress.line}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Makes room for other output; the next `show` draws again."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, sentence: str) -> None:
        """A line that stays."""
        self.clear()
        print(sentence, file=sys.stderr, flush=True)

    def _draw(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._console is None:
            self._console = Console(file=sys.stderr, highlight=False)
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(self._picture(progress), refresh=True)

    def _picture(self, progress: Progress) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        assert self._console is not None
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=1)
        grid.add_column()
        grid.add_column(no_wrap=True, overflow="ellipsis")
        width = min(_BAR_COLUMNS, max(8, self._console.width - len(progress.line) - 4))
        bar = ProgressBar(total=max(progress.total, 1), completed=progress.done, width=width)
        grid.add_row("", bar, Text(progress.line))
        if progress.longest_seconds < 2:
            return grid
        took = format_duration(progress.longest_seconds)
        name = shorten(printable(progress.longest), max(20, self._console.width - 30))
        return Group(grid, Text(f"  longest now: {name} {took}", style="dim"))
