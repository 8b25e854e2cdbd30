"""Plain tables: columns as wide as their widest cell, lines cut to the terminal."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence

_WIDE = ("W", "F")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table for stdout; an empty `header` has no line."""
    lines = [*([header] if header else []), *rows]
    widths = [max(width_of(cell) for cell in column) for column in zip(*lines, strict=True)]
    limit = os.get_terminal_size(1).columns if sys.stdout.isatty() else 0
    texts = (
        "  ".join(
            cell + " " * (width - width_of(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
    return [cut(text, limit) if limit else text for text in texts]


def width_of(text: str) -> int:
    """Columns on a terminal: two for most East Asian characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in _WIDE else 1
        for char in text
    )


def cut(text: str, columns: int) -> str:
    """The beginning of it, with an ellipsis if it is wider than `columns`."""
    if width_of(text) <= columns:
        return text
    while text and width_of(text) >= columns:
        text = text[:-1]
    return text + "…"
