"""A table of nodes that fills in as answers come."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from ppss_queue.cli.table import cut, table
from ppss_queue.errors import ExitCode
from ppss_queue.nodes.everywhere import Answer
from ppss_queue.nodes.spec import NodeSpec
from ppss_queue.units import printable

T = TypeVar("T")
Row = Mapping[str, str]
"""Cells by column; what stands under NOTE is the last, and may be long."""
_WAITING = "..."


def fill(
    columns: Sequence[str],
    nodes: Sequence[NodeSpec],
    answers: Iterable[Answer[T]],
    row_of: Callable[[T], Row],
    object_of: Callable[[T], Mapping[str, object]],
    *,
    as_json: bool,
) -> int:
    """Shows a line per node, in the order of the list; on a terminal in place as they come. Returns the exit code.

    `as_json`: an object a line, as they come. The code is that of the worst error of a node.
    """
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not as_json
    rows: dict[str, Row] = {node.name: {columns[0]: _WAITING} for node in nodes}
    code: int = ExitCode.OK
    drawn = _draw(columns, rows, 0) if live else 0
    for answer in answers:
        name = answer.node.name
        if answer.error is not None:
            code = max(code, answer.error.exit_code)
            sentence = printable(" ".join(str(answer.error).split())).removeprefix(f"{printable(name)}: ")
            rows[name] = {columns[0]: "failed", "NOTE": sentence}
            facts: Mapping[str, object] = {"error": sentence}
        else:
            assert answer.result is not None
            rows[name], facts = row_of(answer.result), object_of(answer.result)
        if as_json:
            print(json.dumps({"node": name, "place": answer.node.place, **facts}), flush=True)
        elif live:
            drawn = _draw(columns, rows, drawn)
    if not as_json and not live:
        print("\n".join(_lines(columns, rows)), flush=True)
    return code


def _draw(columns: Sequence[str], rows: Mapping[str, Row], drawn: int) -> int:
    """Over the lines that were drawn before; returns how many they are now."""
    lines = _lines(columns, rows)
    if any(row.get(columns[0]) == _WAITING for row in rows.values()):  # the last picture may scroll and wrap
        size = os.get_terminal_size(1)
        lines = [cut(line, size.columns or 80) for line in lines[: max(2, (size.lines or 24) - 1)]]
    up = f"\x1b[{drawn}A\r" if drawn else ""
    print(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J", end="", flush=True)
    return len(lines)


def _lines(columns: Sequence[str], rows: Mapping[str, Row]) -> list[str]:
    """Notes stand below the table: a sentence needs the whole width."""
    cells = [(printable(name), *(row.get(column, "-") for column in columns)) for name, row in rows.items()]
    notes = [f"{printable(name)}: {row['NOTE']}" for name, row in rows.items() if row.get("NOTE")]
    return [*table(("NODE", *columns), cells), *notes]
