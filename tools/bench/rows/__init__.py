"""All rows, by number."""

from __future__ import annotations

from tools.bench.rounds import Row
from tools.bench.rows import commands, files, queue

ROWS: dict[int, Row] = {
    row.number: row for row in sorted((*commands.ROWS, *queue.ROWS, *files.ROWS), key=lambda row: row.number)
}
