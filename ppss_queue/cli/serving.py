"""Who can run the items of a run, and what to say where nobody can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppss_queue.cli.say import no_worker, warn
from ppss_queue.errors import BadInput
from ppss_queue.model import RunSpec
from ppss_queue.resources import shortages

if TYPE_CHECKING:
    from ppss_worker.offer import Offer

    from ppss_queue.nodes.spec import NodeSpec
    from ppss_queue.queue import Queue, WorkerView


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


def offer_for(queue: Queue, spec: RunSpec, made: dict[str, Any], helpers: Sequence[NodeSpec]) -> Offer | None:
    """What this machine has for a run; None: too little, or no slot, but other workers may have more.

    `helpers`: nodes that are to join. Raises BadInput if nobody has enough.
    """
    from ppss_worker.offer import NO_OFFER

    from ppss_queue.cli.agentless import agentless_nodes
    from ppss_queue.cli.worker import offer_here

    needs, agentless = spec.needs, bool(agentless_nodes(made))
    if made["slots"] == 0 and (not agentless or (spec.function and helpers)):
        return None
    if not needs or made["slots"] == 0:
        return NO_OFFER
    offer = offer_here(None if needs.gpus else ())
    if agentless or needs.fits(offer.total):  # agentless nodes tell what they have when they are reached
        return offer
    shortage = needs.shortage(offer.total, "this machine")
    if not helpers and not any(needs.fits(worker.offer) for worker in queue.workers()):
        raise BadInput(
            f"each item needs {shortage}, and no other worker is there that has enough. Ask for less."
        )
    warn(f"each item needs {shortage}: it is left to other workers.")
    return None
