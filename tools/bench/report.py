"""The report: docs/bench.md, or the same table on the terminal."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from ppss_queue.server_binary import binary
from tools.bench.figures import Measured, number
from tools.bench.processes import output
from tools.bench.rounds import Result
from tools.bench.site import ROOT

PAGE = ROOT / "docs" / "bench.md"
_HEAD = """# Benchmark

Written by `make bench`. Everything that is compared runs in the same round, one after the other, and who begins
alternates; a ratio is taken per round, and what counts is its median. `x` is the rival's time divided by that of
PPSS: above 1, PPSS is faster. Only ratios travel between machines; what is given in other units was measured here.
"""


def page(results: Sequence[Result], plots: Sequence[Path], facts: Sequence[str]) -> str:
    """All of docs/bench.md."""
    analysis = "Why each goal that is not met is not met: [bench/analysis.md](bench/analysis.md)."
    parts = [
        _HEAD,
        "\n".join(f"- {fact}" for fact in facts),
        "## Results",
        table(results),
        losses(results),
        analysis,
    ]
    if plots:
        parts += ["## Scaling", *(f"![{path.stem}](bench/{path.name})" for path in plots)]
    parts += ["## To repeat a row", "`make bench ROW=4` runs row 4 alone. By hand:"]
    parts += [
        f"**{result.row.number}.** {result.row.title}\n\n```console\n{result.row.commands}\n```"
        for result in results
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(results: Sequence[Result], *, goals: bool = True) -> str:
    """One line a figure; with a base, what changed too. `goals` False: sizes are too small to judge by."""
    with_base = any(result.base for result in results)
    more = ("base", "now / base") if with_base else ()
    head = ("row", "what", "against", "median", "spread", "goal", "met", *more)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        lines.append(f"| **{result.row.number}** | **{result.row.title}** |" + " |" * (len(head) - 2))
        if result.problem:
            lines.append(f"| | {_one_line(result.problem)} |" + " |" * (len(head) - 2))
        base = {measured.figure.key: measured for measured in result.base}
        for measured in result.measured:
            cells = _cells(measured, goals=goals)
            if with_base:
                key = measured.figure.key
                cells += [
                    number(base[key].median) if key in base else "",
                    number(result.changes[key].median) if key in result.changes else "",
                ]
            lines.append("| | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(measured: Measured, *, goals: bool) -> list[str]:
    figure = measured.figure
    median = f"{number(measured.median)} {figure.unit}"
    rival = f"`{figure.rival}`" if figure.rival else ""
    judged = [figure.goal, measured.met.replace("no", "**no**")] if goals else ["", ""]
    return [figure.what, rival, median, measured.spread, *judged]


def losses(results: Sequence[Result]) -> str:
    """What is slower than its rival, and what misses its goal, in sentences."""
    lines = []
    for result in results:
        for measured in result.measured:
            figure = measured.figure
            against = f" against `{figure.rival}`" if figure.rival else ""
            name = f"row {result.row.number}, {figure.what}{against}"
            value = f"{number(measured.median)} {figure.unit}"
            if measured.met == "no":
                lines.append(f"- {name}: {value}, where the goal is {figure.goal}.")
            elif figure.rival and figure.unit == "x" and figure.at_most is None and measured.median < 1:
                lines.append(f"- {name}: {value}, slower.")
    lines += [
        f"- row {result.row.number}: {_one_line(result.problem)}" for result in results if result.problem
    ]
    return "### Losses\n\n" + ("\n".join(lines) or "None: each goal is met, and no rival is faster.")


def machine() -> list[str]:
    """What is measured, and where; to be asked before the machine is busy with it."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    revision = output(["git", "describe", "--always", "--dirty"], cwd=ROOT).strip()
    return [
        f"{time.strftime('%Y-%m-%d')}, PPSS {revision}",
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, load before {os.getloadavg()[1]:.1f}",
        f"Python {platform.python_version()}",
        output([binary(), "--version"]).split(" sha=")[0],
    ]


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:300]
