"""Scaling: how rates change with the number of items, with slots, and with the distance to Redis."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from tools.bench.inputs import Inputs
from tools.bench.network import delayed, tcp_server
from tools.bench.processes import output
from tools.bench.rivals import Rivals
from tools.bench.rounds import Round
from tools.bench.rows.workers import distant_rate, slots_used
from tools.bench.site import HERE, Site

_MOST_ROUNDS = 3  # a curve has many points
_ITEMS = (1_000, 10_000, 100_000, 1_000_000)
_SLOTS = (1, 2, 4, 8, 16, 32, 64)
_ROUND_TRIPS_MS = (0, 10, 20, 40, 80, 120, 200)
_PLOT = Path(__file__).resolve().parent / "plot.py"

Curve = dict[str, object]
Point = Callable[[Round], float]


def drawn(folder: Path, inputs: Inputs, rivals: Rivals, *, rounds: int, smoke: bool) -> list[Path]:
    """Measures all curves, each point in some rounds, and draws them as SVG into `folder`; where."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [
        curve
        for curves in (_items_curves, _slots_curve, _distance_curve)
        for curve in _with_site(curves, inputs, rivals, rounds=rounds, smoke=smoke)
    ]
    plots = []
    for name in dict.fromkeys(str(curve["file"]) for curve in found):
        description = json.dumps([curve for curve in found if curve["file"] == name])
        path = folder / f"{name}.svg"
        output([rivals.venv_program("python"), _PLOT, path, description])
        plots.append(path)
    return plots


def _with_site(
    curves: Callable[[Round, int], Iterator[Curve]],
    inputs: Inputs,
    rivals: Rivals,
    *,
    rounds: int,
    smoke: bool,
) -> list[Curve]:
    with Site(HERE) as site:
        return list(curves(Round(site, 0, smoke, inputs, rivals), min(rounds, _MOST_ROUNDS)))


def _curve(
    this: Round, rounds: int, file: str, label: str, x: str, y: str, points: dict[int, Point]
) -> Curve:
    """Rounds over all points, so that a slow minute of the machine does not bend the curve."""
    values: dict[int, list[float]] = {at: [] for at in points}
    for _ in range(rounds):
        for at, measure in points.items():
            values[at].append(measure(this))
    print(f"  curve: {label}", file=sys.stderr, flush=True)
    return {
        "file": file,
        "label": label,
        "x": x,
        "y": y,
        "points": [[at, median(found), min(found), max(found)] for at, found in values.items()],
    }


def _items_curves(this: Round, rounds: int) -> Iterator[Curve]:
    counts = (100, 1000) if this.smoke else _ITEMS

    def enqueued(items: int) -> Point:
        def measure(this: Round) -> float:
            took = this.site.seconds("enqueue", "-f", this.inputs.names(items), "--", "true")
            this.site.flush()
            return items / took

        return measure

    def drained(items: int) -> Point:
        def measure(this: Round) -> float:
            found = this.site.probe("engine", items, 64, 50_000)
            this.site.flush()
            return found["rate"]

        return measure

    label = "ppss enqueue, whole process"
    yield _curve(
        this, rounds, "items", label, "items", "items/s", {count: enqueued(count) for count in counts}
    )
    label = "claim + start + ack of the first 50,000"
    yield _curve(
        this, rounds, "items", label, "items", "items/s", {count: drained(count) for count in counts}
    )


def _slots_curve(this: Round, rounds: int) -> Iterator[Curve]:
    slots = (1, 4) if this.smoke else _SLOTS
    points: dict[int, Point] = {
        count: lambda this, count=count: count * slots_used(this, count, 0.2, this.size(8, 2))  # type: ignore[misc]
        for count in slots
    }
    yield _curve(this, rounds, "slots", "items of 0.2 s", "slots", "slots kept busy", points)


def _distance_curve(this: Round, rounds: int) -> Iterator[Curve]:
    items = this.size(600, 20)
    with tcp_server() as port:

        def measured(round_trip: int) -> Point:
            def measure(this: Round) -> float:
                with delayed(port, round_trip) as address:
                    return distant_rate(this, address, items)

            return measure

        trips = (0, 20) if this.smoke else _ROUND_TRIPS_MS
        points = {trip: measured(trip) for trip in trips}
        yield _curve(
            this, rounds, "distance", "items of 20 ms, 2 slots", "round trip (ms)", "items/s", points
        )
