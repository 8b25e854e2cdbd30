"""What `--watch` does: the same lines again each second, in place on a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from ppss_queue.cli.table import cut

_SECONDS = 1.0


def show(look: Callable[[int | None], list[str]], *, watch: bool, in_place: bool = True) -> None:
    """Prints what a look gives; with `watch` again and again, until Ctrl-C.

    `look` gets the number of rows that there are, where what scrolls by could not be read; else None. `in_place`:
    false for what a program reads.
    """
    in_place = in_place and watch and sys.stdout.isatty()
    while True:
        if in_place:
            size = os.get_terminal_size(1)
            columns, rows = size.columns or 80, size.lines or 24  # a serial line knows neither
            lines = [cut(line, columns) for line in look(rows)[:rows]]
            print("\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[J", end="", flush=True)
        else:
            print("".join(f"{line}\n" for line in look(None)), end="", flush=watch)
        if not watch:
            return
        time.sleep(_SECONDS)
