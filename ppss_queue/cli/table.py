"""Plain tables: columns as wide as their widest cell, the last one cut to the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes to stdout; a header alone for no rows."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        print(f"{text[: limit - 1]}…" if limit and len(text) > limit else text)
