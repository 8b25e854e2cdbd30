"""Row 21: many nodes on one Redis."""

from __future__ import annotations

from collections.abc import Mapping

from tools.bench.figures import Figure
from tools.bench.rounds import Round, Row


def _nodes(this: Round) -> Mapping[str, float]:
    found = this.site.probe(
        "nodes", this.size(1000, 20), 4, this.size(10, 3), this.size(10_000, 500), this.size(2000, 200)
    )
    this.site.flush()
    return found


ROWS = (
    Row(
        21,
        "1,000 simulated nodes of 4 slots, each with a worker's two connections; 40,000 items of 2 s",
        (
            Figure("fair", "items of the busiest node, divided by those of the idlest", at_most=1.5),
            Figure("idle", "CPU of the server, of a core: all nodes idle", unit="%", at_most=5),
            Figure("cpu", "CPU of the server, of a core: all nodes at work", unit="%"),
            Figure("register", "CPU of the server per node that registers", unit="ms"),
            Figure("trickle", "CPU of the server per item that comes alone, for idle nodes", unit="ms"),
            Figure("memory", "memory of the server per node", unit="kB"),
            Figure("p50", "status of all nodes meanwhile, p50", unit="ms", at_most=50),
            Figure("p99", "status of all nodes meanwhile, p99", unit="ms"),
            Figure("run", "status of the run meanwhile, p50", unit="ms"),
            Figure("rate", "rate", unit="items/s"),
        ),
        "python tools/bench/probes/nodes.py URL 1000 4 10 10000 2000",
        _nodes,
        most_rounds=3,
        name="nodes",
    ),
)
