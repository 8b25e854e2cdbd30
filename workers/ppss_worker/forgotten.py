"""After a lost connection: items that Redis takes for leased to this worker, which knows nothing of them.

The claim's answer was lost, or Redis forgot what it had acknowledged (a failover to a replica that lagged, the last
second of an append-only file). Nobody would renew these leases, and a worker's own claim never takes them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from ppss_queue.calls import Calls, read_held
from ppss_queue.connection import Reply
from ppss_queue.model import Lease
from ppss_worker.link import Link
from ppss_worker.outbox import Outbox


def hand_back_forgotten(
    runs: Iterable[str], link: Link, calls: Calls, outbox: Outbox, leases: Callable[[], Iterable[Lease]]
) -> None:
    """`leases`: what this worker holds. To be called before anything new is sent over the connection."""

    def compare(run: str, reply: Reply) -> None:
        known = {lease.member for lease in leases()}
        # An outcome told meanwhile is sent before this, which changes nothing then.
        outbox.release([lease for lease in read_held(run, reply) if lease.member not in known])

    for run in runs:
        link.send(calls.held(run), partial(compare, run), repeat=False)
