"""All rows, by number."""

from __future__ import annotations

from tools.bench.rounds import Row
from tools.bench.rows import commands, files, nodes, queue, scale, staging, workers

_UNSORTED = (*commands.ROWS, *queue.ROWS, *workers.ROWS, *scale.ROWS, *files.ROWS, *staging.ROWS, *nodes.ROWS)

ROWS: dict[int, Row] = {row.number: row for row in sorted(_UNSORTED, key=lambda row: row.number)}
