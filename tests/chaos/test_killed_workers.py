"""Workers are killed with -9 at random; nothing is lost, nothing is done twice at once, nothing is left behind."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from ppss_queue.queue import connect
from ppss_queue.replies import read_members
from ppss_queue.run import Run

COMMAND = """
printf 'start %s %s %s\\n' "$PPSS_SEQ" "$PPSS_NODE" "$(date +%s.%N)" >> "$LOG"
printf 'first half of %s\\n' "$ITEM" > "$OUTPUT_DIR/$OUTPUT_FILE"
sleep "$PAUSE$((RANDOM % 5))"
printf 'second half of %s\\n' "$ITEM" >> "$OUTPUT_DIR/$OUTPUT_FILE"
printf 'end %s %s %s\\n' "$PPSS_SEQ" "$PPSS_NODE" "$(date +%s.%N)" >> "$LOG"
"""
VISIBILITY_SECONDS = 2.0


@dataclass
class Execution:
    """One start of an item, as its command logged it."""

    node: str
    start: float
    end: float | None = None


def _worker(number: int, address: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from ppss_queue.cli import main; main()",
            "worker",
            "-q",
            "-p",
            "4",
            "--node-name",
            f"w{number}",
            "--url",
            address,
        ],
        env=environment,
        stderr=subprocess.DEVNULL,
    )


def _executions(log: Path) -> dict[int, list[Execution]]:
    found: dict[int, list[Execution]] = defaultdict(list)
    for line in log.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # just being written
        what, seq, node, when = line.split()
        if what == "start":
            found[int(seq)].append(Execution(node, float(when)))
        else:
            (begun,) = [e for e in found[int(seq)] if e.node == node and e.end is None]
            begun.end = float(when)
    return found


def _busy(log: Path, workers: dict[int, subprocess.Popen[bytes]]) -> list[int]:
    """Workers that run something now: killing these is what hurts."""
    running = {e.node for executions in _executions(log).values() for e in executions if e.end is None}
    return [number for number in sorted(workers) if f"w{number}" in running]


def _commands_alive(run: Run) -> list[str]:
    wanted = f"PPSS_RUN={run.id}".encode()
    alive = []
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and wanted in Path(f"/proc/{entry.name}/environ").read_bytes().split(
                b"\0"
            ):
                alive.append(entry.name)
        except OSError:
            continue
    return alive


@pytest.mark.parametrize(
    ("items", "seconds"),
    [pytest.param(150, 6.0, id="short"), pytest.param(500, 60.0, id="a minute", marks=pytest.mark.chaos)],
)
def test_killing_workers_loses_and_doubles_nothing(
    items: int, seconds: float, address: str, home: dict[str, str], tmp_path: Path
) -> None:
    chance = random.Random(items)
    log, output = tmp_path / "log", tmp_path / "out"
    log.touch()
    # Work for a little longer than the killing lasts: 12 slots, 0.2 s or 2 s an item in the mean.
    environment = {**home, "LOG": str(log), "PAUSE": "0." if items < 500 else ""}
    kills: dict[str, float] = {}
    with connect(address) as queue:
        run = queue.enqueue(
            (f"item {number}" for number in range(items)),
            command=COMMAND,
            output=output,
            visibility_seconds=VISIBILITY_SECONDS,
            max_lost=1000,
        )
        workers = {number: _worker(number, address, environment) for number in range(3)}
        try:
            number, end = 3, time.monotonic() + seconds
            while (time.monotonic() < end or not kills) and not run.is_over():
                time.sleep(chance.uniform(0.2, 1.5))  # the rhythm of the killing, not a wait
                busy = _busy(log, workers)
                if busy:
                    victim = chance.choice(busy)
                    workers[victim].kill()
                    kills[f"w{victim}"] = time.time()
                    workers.pop(victim).wait()
                    workers[number] = _worker(number, address, environment)
                    number += 1
            run.wait(timeout_seconds=120)
        finally:
            for worker in workers.values():
                worker.terminate()
            for worker in workers.values():
                worker.wait(30)
        counts = run.status()
        events = queue.connection.execute("XRANGE", queue.keys.events(run.id), "-", "+")

    assert counts.succeeded == counts.total == items
    assert counts.lost >= 1, "no worker was killed in the middle of an item: the test proves nothing"
    assert isinstance(events, list)
    ended = Counter(fields[1] for fields in (read_members(entry[1]) for entry in events) if fields[1] != "0")
    assert ended == {str(seq): 1 for seq in range(1, items + 1)}, "an outcome was recorded twice or never"

    expected = {f"item {n}": f"first half of item {n}\nsecond half of item {n}\n" for n in range(items)}
    assert {path.name: path.read_text() for path in output.iterdir()} == expected

    for seq, executions in _executions(log).items():
        for before, after in itertools.pairwise(executions):
            over = before.end if before.end is not None else kills[before.node]
            assert after.start >= over, f"item {seq} ran twice at once: {before} {after}"
            assert before.node in kills, f"item {seq} ran again although its worker lived: {before} {after}"
    assert _commands_alive(run) == []
