"""Who can run the items of a run, and what to say where nobody can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ppss_queue.cli.say import no_worker
from ppss_queue.model import RunSpec
from ppss_queue.resources import shortages

if TYPE_CHECKING:
    from ppss_queue.queue import WorkerView


def unserved(workers: Sequence[WorkerView], spec: RunSpec) -> str | None:
    """Why none of the workers that are there can run an item; None: one can."""
    if not workers:
        return no_worker()
    needs = spec.needs
    if any(needs.fits(worker.offer) for worker in workers):
        return None
    with_slots = [worker for worker in workers if worker.slots] or workers
    lacking = shortages(needs, ((worker.node, worker.offer) for worker in with_slots))
    return (
        f"no worker that is there has room for an item: it needs {lacking}. {no_worker().partition('. ')[2]}"
    )
