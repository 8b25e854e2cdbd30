"""python -m tools.bench [ROW ...]: see `make bench` for what can be set.

ROW: numbers and ranges, "1,2" or "4-6"; none: all. BASE=REVISION measures that one beside this one.
ROUNDS=N, 7 by default. SMOKE=1: tiny sizes and one round, only to see that everything works.
docs/bench.md is written by whoever measures all rows.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import NoReturn

from tools.bench import report
from tools.bench.inputs import Inputs
from tools.bench.processes import Broken
from tools.bench.rivals import Rivals
from tools.bench.rounds import Result, Row, measured
from tools.bench.rows import ROWS
from tools.bench.site import HERE, checked_out

_ROUNDS = 7


def main() -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    smoke = bool(os.environ.get("SMOKE"))
    rounds = int(os.environ.get("ROUNDS") or (1 if smoke else _ROUNDS))
    base = os.environ.get("BASE")
    rows = _chosen([*sys.argv[1:], *os.environ.get("ROW", "").split()])
    rivals = Rivals()
    try:
        versions = [HERE, checked_out(base)] if base else [HERE]
    except Broken as broken:
        sys.exit(f"bench: BASE={base}: {broken}")
    results: list[Result] = []
    with Inputs() as inputs:
        for row in rows:
            print(f"row {row.number}: {row.title}", file=sys.stderr, flush=True)
            began = time.monotonic()
            result = measured(row, versions, inputs, rivals, rounds=rounds, smoke=smoke)
            results.append(result)
            print(f"  {result.problem or f'{time.monotonic() - began:.0f} s'}", file=sys.stderr, flush=True)
    print(report.table(results))
    if len(rows) == len(ROWS) and not base and not smoke:
        report.PAGE.write_text(report.page(results, rivals, rounds=rounds))
        print(f"written: {report.PAGE}", file=sys.stderr)
    return int(any(result.broken for result in results))


def _chosen(words: list[str]) -> list[Row]:
    """Rows by number; all of them if none is named."""
    numbers: list[int] = []
    for word in ",".join(words).split(","):
        first, _, last = word.partition("-")
        if first:
            numbers += range(int(first), int(last or first) + 1)
    unknown = [number for number in numbers if number not in ROWS]
    if unknown:
        sys.exit(f"bench: there is no row {unknown[0]}; there are {', '.join(map(str, ROWS))}.")
    return [row for number, row in ROWS.items() if not numbers or number in numbers]


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
