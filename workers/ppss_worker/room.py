"""The room that a host has for items that say what they need."""

from __future__ import annotations

from pathlib import Path

from ppss_queue.resources import Resources
from ppss_worker.gpus import GpuLocks
from ppss_worker.offer import Offer


class Room:
    """Used by the worker's one thread."""

    def __init__(self, offer: Offer, directory: Path) -> None:
        """`directory`: of the locks of its GPUs, for all workers of this user on this machine."""
        self.total = offer.total
        self._left = offer.total
        self._gpus = GpuLocks(offer.gpus, directory)

    @property
    def free(self) -> Resources:
        """What the next items can have. Raises MachineFailed."""
        left = self._left
        return Resources(self._gpus.count_free(), left.cpus, left.memory_bytes) if self.total.gpus else left

    @property
    def gpus_elsewhere(self) -> int:
        """GPUs that other workers hold."""
        return self._gpus.count_elsewhere()

    def take(self, needs: Resources) -> tuple[str, ...] | None:
        """Room for an item, and its GPUs; None if there is none (any more). Raises MachineFailed."""
        if not needs.fits(self._left):
            return None
        gpus = self._gpus.take(needs.gpus)
        if gpus is not None:
            self._left -= needs
        return gpus

    def give_back(self, needs: Resources, gpus: tuple[str, ...]) -> None:
        self._left += needs
        self._gpus.give_back(gpus)

    def close(self) -> None:
        self._gpus.close()
