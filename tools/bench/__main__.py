"""python -m tools.bench [ROW ...]: see `make bench` for what can be set.

ROW: numbers and ranges, "1,2" or "4-6", or "nodes" or "curves"; none: all of it. BASE=REVISION measures that one
beside this one. ROUNDS=N, 7 by default. SMOKE=1: tiny sizes and one round, only to see that everything works.
docs/bench.md and its plots are written when everything is measured in at least 7 rounds; else plots go to
.cache/bench/plots and the table to the terminal.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tools.bench import curves, report
from tools.bench.inputs import Inputs
from tools.bench.processes import Broken
from tools.bench.rivals import Rivals
from tools.bench.rounds import Result, Row, measured
from tools.bench.rows import ROWS
from tools.bench.site import CACHE, HERE, Version, checked_out

LEAST_ROUNDS = 7
CURVES = "curves"


def main() -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    smoke, base = bool(os.environ.get("SMOKE")), os.environ.get("BASE")
    rounds = int(os.environ.get("ROUNDS") or (1 if smoke else LEAST_ROUNDS))
    rows, with_curves = _chosen([*sys.argv[1:], *os.environ.get("ROW", "").split()])
    facts, rivals = report.machine(), Rivals()
    try:
        versions = [HERE, checked_out(base)] if base else [HERE]
    except Broken as broken:
        sys.exit(f"bench: BASE={base}: {broken}")
    whole = with_curves and len(rows) == len(ROWS) and rounds >= LEAST_ROUNDS and not (base or smoke)
    folder = report.PAGE.with_suffix("") if whole else CACHE / "plots"
    with Inputs() as inputs:
        results = [_result(row, versions, inputs, rivals, rounds=rounds, smoke=smoke) for row in rows]
        plots: list[Path] = []
        if with_curves and not base:
            plots = curves.drawn(folder, inputs, rivals, rounds=rounds, smoke=smoke)
    if results:
        print(report.table(results, goals=not smoke))
    if whole:
        facts += [*rivals.versions(), _counts(rows, rounds)]
        report.PAGE.write_text(report.page(results, plots, facts))
    print("written:", *([report.PAGE] if whole else []), *plots, file=sys.stderr)
    in_ci = bool(os.environ.get("CI"))  # nothing may be missing there
    return int(any(result.broken or (in_ci and result.problem) for result in results))


def _result(
    row: Row, versions: Sequence[Version], inputs: Inputs, rivals: Rivals, *, rounds: int, smoke: bool
) -> Result:
    print(f"row {row.number}: {row.title}", file=sys.stderr, flush=True)
    began = time.monotonic()
    result = measured(row, versions, inputs, rivals, rounds=rounds, smoke=smoke)
    print(f"  {result.problem or f'{time.monotonic() - began:.0f} s'}", file=sys.stderr, flush=True)
    return result


def _counts(rows: Sequence[Row], rounds: int) -> str:
    fewer = [f"row {row.number}: {row.most_rounds}" for row in rows if row.most_rounds]
    return f"{rounds} rounds a row ({', '.join(fewer)})"


def _chosen(words: list[str]) -> tuple[list[Row], bool]:
    """Rows by number, and whether curves are wanted; everything if nothing is named."""
    names = [word for word in ",".join(words).split(",") if word]
    by_name = {row.name: row.number for row in ROWS.values() if row.name}
    numbers = {by_name[name] for name in names if name in by_name}
    for name in names:
        first, _, last = name.partition("-")
        if name != CURVES and name not in by_name:
            try:
                numbers.update(range(int(first), int(last or first) + 1))
            except ValueError:
                sys.exit(f"bench: '{name}' is no row. Write 4, 4-6, {', '.join(by_name)} or {CURVES}.")
    if unknown := numbers - set(ROWS):
        sys.exit(f"bench: there is no row {min(unknown)}; there are {', '.join(map(str, ROWS))}.")
    return [
        row for number, row in ROWS.items() if not names or number in numbers
    ], not names or CURVES in names


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
