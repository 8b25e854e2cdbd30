"""Many workers at once, each with a connection: clients.py ADDRESS WORKERS SECONDS."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping

from leases import DONE, Client, probe

from ppss_queue.calls import read_claim

_ITEMS = 15_000
"""Per second: more than are taken."""


class _Worker:
    """A closed loop: claim one item, ack it, again."""

    def __init__(self, address: str, number: int) -> None:
        self.client = Client(address, f"bench-{number}")
        self.pairs: list[float] = []
        self._began = 0.0
        self._claiming = False

    def claim(self) -> None:
        self._began = time.perf_counter()
        self._claiming = True
        self.client.connection.send([self.client.calls.claim(1, 1).command])

    def go_on(self) -> bool:
        """Takes the answer that has come; False: nothing is left to claim."""
        (reply,) = self.client.connection.receive(1)
        if isinstance(reply, Exception):
            raise reply
        if not self._claiming:
            self.pairs.append(time.perf_counter() - self._began)
            self.claim()
            return True
        leases = read_claim(reply).leases
        if not leases:
            return False
        self._claiming = False
        lease = leases[0]
        self.client.connection.send([self.client.calls.ack(lease.run, [(lease, DONE, b"")]).command])
        return True


def measure(address: str, workers: int, seconds: int) -> Mapping[str, float]:
    first = Client(address)
    first.fill("warm", iter(["1", "2"]))
    first.drain(1)  # Redis knows the scripts from now on
    first.fill("clients", (f"item {number}" for number in range(_ITEMS * seconds)))
    crowd = [_Worker(address, number) for number in range(workers)]
    poll, by_descriptor = select.poll(), {}
    for worker in crowd:
        by_descriptor[worker.client.connection.fileno()] = worker
        poll.register(worker.client.connection.fileno(), select.POLLIN)
        worker.claim()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for descriptor, _ in poll.poll(1000):
            assert by_descriptor[descriptor].go_on(), "nothing is left"
    pairs = sorted(pair for worker in crowd for pair in worker.pairs)
    shares = [len(worker.pairs) * workers / len(pairs) for worker in crowd]
    return {
        "p99": pairs[int(len(pairs) * 0.99)] * 1000,
        "least": min(shares),
        "most": max(shares),
        "rate": len(pairs) / seconds,
    }


probe(measure)
