"""What the live view of a run knows of its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppss_queue import scripts
from ppss_queue.calls import Calls
from ppss_queue.cli.nodes_live import NodesLive
from ppss_queue.queue import connect

if TYPE_CHECKING:
    from conftest import Ppss


def test_slots_are_those_of_the_workers_that_take_items_of_the_run(ppss: Ppss) -> None:
    """Others may be on the same nodes, for other runs."""
    with connect(ppss.environment["PPSS_URL"]) as queue:
        run, other = (queue.enqueue(["1", "2", "3"], command="true") for _ in range(2))
        for worker, slots, served in (
            ("n1.1-a", 2, run),
            ("n1.2-b", 3, other),
            ("n2.1-c", 4, run),
            ("n3.1-d", 9, None),
        ):
            calls = Calls(queue.keys, worker, worker)
            facts = {"pid": 1, "node": worker[:2], "slots": slots, "leased": 0, "rate": 0, "stopping": 0}
            scripts.run(queue.connection, calls.heartbeat(facts))
            if served is not None:
                scripts.run(queue.connection, calls.claim(1, 1, runs=[served.id]))
        nodes = NodesLive(queue.keys)
        counts = run.status()
        assert nodes.slots(counts, 7) == 7, "nothing is known yet"
        nodes.hear(scripts.run(queue.connection, nodes.ask()))
        assert nodes.slots(counts, 7) == 2 + 4
        assert nodes.slots_used(7) == 2 + 4
        assert [line.split()[0] for line in nodes.lines(counts, 80, 9)] == ["n1", "n2"]
