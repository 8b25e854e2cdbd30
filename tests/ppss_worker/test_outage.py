"""When a worker that lost Redis tries again."""

from __future__ import annotations

from ppss_worker.outage import Outage

from ppss_queue.errors import ConnectFailed


def test_workers_that_lost_the_same_server_come_back_at_different_moments() -> None:
    outages = [Outage() for _ in range(20)]
    for longest in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0):
        for outage in outages:
            outage.begin(ConnectFailed("it is away"), 100.0)
        pauses = {outage.retry_at - 100.0 for outage in outages}
        assert len(pauses) == len(outages)
        assert 0.4 * longest < min(pauses) and max(pauses) < 1.6 * longest
