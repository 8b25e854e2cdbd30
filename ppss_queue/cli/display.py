"""What `ppss run` shows while it works: progress on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ppss_queue.cli.eta import Durations
from ppss_queue.cli.say import say
from ppss_queue.cli.table import cut, width_of
from ppss_queue.model import RunState
from ppss_queue.store import Counts
from ppss_queue.units import format_count, format_duration, format_rate, printable, shorten

FRAME_SECONDS = 0.25
_FIRST_PLAIN_SECONDS = 10.0
_PLAIN_SECONDS = 30.0
_BAR_COLUMNS = (8, 30)
_SPARE_COLUMNS = 3
"""Left free at the right: a terminal echoes `^C` there, and a line that wraps could not be erased."""
_LONG_SECONDS = 2.0
"""The longest running item is named once it runs so long."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a run, as it is shown."""

    counts: Counts
    left: str = ""
    """How long it may still take."""
    longest: str = ""
    longest_seconds: float = 0.0
    nodes: Callable[[int, int], list[str]] | None = None
    """Lines about nodes, of so many columns, and at most so many."""

    @classmethod
    def of(cls, counts: Counts, durations: Durations, slots: int) -> Progress:
        """`durations` of the items that ended here; where none did, the rate tells what is left."""
        left = durations.left(counts.left, slots)
        if not left and counts.rate_per_second and counts.left:
            left = f"{format_duration(counts.left / counts.rate_per_second)} left"
        return cls(counts, left)

    @property
    def done(self) -> int:
        return self.counts.total - self.counts.left

    @property
    def line(self) -> str:
        """`712/1,204 · 3 failed · 8 running · 4.1/s · 2 min left (1-4)`."""
        counts = self.counts
        parts = [f"{format_count(self.done)}/{format_count(counts.total)}"]
        if counts.state is RunState.PAUSED:
            parts.append("paused")
        if counts.failed:
            parts.append(f"{format_count(counts.failed)} failed")
        if counts.delayed:
            parts.append(f"{format_count(counts.delayed)} wait for a retry")
        parts.append(f"{counts.running} running")
        if counts.rate_per_second:
            parts.append(format_rate(counts.rate_per_second))
        if self.left:
            parts.append(self.left)
        return " · ".join(parts)

    def picture(self, columns: int, rows: int, *, colour: bool) -> list[str]:
        """Lines of at most `columns` columns: the bar if there is room for one, nodes, the longest running item."""
        shortest, longest = _BAR_COLUMNS
        room = min(longest, columns - width_of(self.line) - 3)
        bar = f"{_bar(self.done, self.counts.total, room, colour=colour)} " if room >= shortest else ""
        lines = [f"  {bar}{self.line if bar else cut(self.line, columns - 2)}"]
        lines += self.nodes(columns, max(2, rows - 4)) if self.nodes else []
        if self.longest_seconds >= _LONG_SECONDS:
            before, after = "  longest now: ", f" · {format_duration(self.longest_seconds)}"
            name = shorten(printable(self.longest), max(8, columns - len(before) - len(after)))
            lines.append(_dim(cut(f"{before}{name}{after}", columns), colour=colour))
        return lines


class Display:
    """Shows progress on stderr; on a terminal in place, elsewhere a line every half minute. `quiet`: nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = not quiet and os.environ.get("TERM") != "dumb" and _is_terminal(2)
        self._output_terminal = self._terminal and _is_terminal(1)
        self._colour = not os.environ.get("NO_COLOR")
        self._drawn_lines = 0
        self._mid_line = False
        self._due = time.monotonic() + (0.0 if self._terminal else _FIRST_PLAIN_SECONDS)

    def show(self, progress: Progress) -> None:
        """Call it as often as you like."""
        self._show(lambda columns, rows: progress.picture(columns, rows, colour=self._colour), progress.line)

    def filling(self, total: int) -> None:
        """Items found so far."""
        line = f"{format_count(total)} items found so far"
        self._show(lambda columns, rows: [cut(f"  {line}", columns)], line)

    def make_room(self, target: int, data: bytes) -> None:
        """Erases what is drawn before `data` goes to stdout (1) or stderr (2), if that is the terminal too."""
        if self._output_terminal if target == 1 else self._terminal:
            self.clear()
            self._mid_line = not data.endswith(b"\n")

    def clear(self) -> None:
        """Erases what is drawn; the next `show` draws again."""
        if self._drawn_lines:
            _write(_to_first_line(self._drawn_lines) + "\x1b[J")
            self._drawn_lines = 0

    def close(self) -> None:
        """Leaves the cursor at the beginning of an empty line."""
        self.clear()
        self._end_line()

    def say(self, sentence: str) -> None:
        """A line that stays."""
        self.close()
        say(sentence)

    def _show(self, picture: Callable[[int, int], list[str]], plain: str) -> None:
        now = time.monotonic()
        if self._quiet or now < self._due:
            return
        if not self._terminal:
            self._due = now + _PLAIN_SECONDS
            say(f"  {plain}")
            return
        self._due = now + FRAME_SECONDS * 0.8
        self._end_line()
        columns, rows = _size()
        lines = picture(columns - _SPARE_COLUMNS, rows)
        _write(_to_first_line(self._drawn_lines) + "\x1b[K\n".join(lines) + "\x1b[J")
        self._drawn_lines = len(lines)

    def _end_line(self) -> None:
        """What a command printed without an end of line is not drawn over."""
        if self._mid_line:
            self._mid_line = False
            _write("\n")


def _bar(done: int, total: int, columns: int, *, colour: bool) -> str:
    full = columns * done // max(total, 1)
    if not colour:
        return "━" * full + "─" * (columns - full)
    return f"\x1b[32m{'━' * full}\x1b[0m{_dim('─' * (columns - full), colour=True)}"


def _dim(text: str, *, colour: bool) -> str:
    return f"\x1b[2m{text}\x1b[0m" if colour else text


def _to_first_line(lines: int) -> str:
    return "\r" + "\x1b[A" * (lines - 1)


def _size() -> tuple[int, int]:
    """Columns and rows of the terminal that stderr is, also where stdout goes elsewhere, or an old COLUMNS is exported.

    A serial line knows neither.
    """
    columns = rows = 0
    with suppress(OSError):
        columns, rows = os.get_terminal_size(2)
    return columns or 80, rows or 24


def _is_terminal(descriptor: int) -> bool:
    with suppress(OSError):
        return os.isatty(descriptor)
    return False


def _write(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()
