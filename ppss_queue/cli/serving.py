"""Who can run the items of a run, and what to say where nobody can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ppss_queue.cli.say import no_worker
from ppss_queue.model import RunSpec

if TYPE_CHECKING:
    from ppss_queue.queue import WorkerView

_NODES = 3


def unserved(workers: Sequence[WorkerView], spec: RunSpec) -> str | None:
    """Why none of the workers that are there can run an item; None: one can."""
    if not workers:
        return no_worker()
    needs = spec.needs
    if any(needs.fits(worker.offer) for worker in workers):
        return None
    lacking = list(dict.fromkeys(needs.shortage(worker.offer, worker.node) for worker in workers))
    more = [f"and so on for {len(lacking) - _NODES} more"] if len(lacking) > _NODES else []
    return (
        f"no worker that is there has room for an item: it needs {'; '.join([*lacking[:_NODES], *more])}. "
        f"{no_worker().partition('. ')[2]}"
    )
