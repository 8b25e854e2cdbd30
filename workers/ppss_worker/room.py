"""The room that a worker has for items that say what they need, and who waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ppss_queue.resources import Resources
from ppss_worker.gpus import GpuLocks
from ppss_worker.offer import Offer

OVERTAKERS = 16
"""Items of other runs that may take room while a bigger one waits for it; then it is kept for that one."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one item has, from its claim to its end."""

    run: str
    needs: Resources
    gpus: tuple[str, ...]


class Room:
    """Used by the worker's one thread. A run waits only where none of its items has a share: else it is served."""

    def __init__(self, offer: Offer, directory: Path) -> None:
        """`directory`: of the locks of GPUs, for all workers of this user on this machine."""
        self.total = offer.total
        self._left = offer.total
        self._gpus = GpuLocks(offer.gpus, directory)
        self._served: Counter[str] = Counter()
        """Shares by run."""
        self._overtaken: dict[str, int] = {}
        """Runs that wait, and how many items were given room meanwhile."""

    @property
    def free(self) -> Resources:
        """What the next items can have. Raises MachineFailed."""
        left = self._left
        return Resources(self._gpus.count_free(), left.cpus, left.memory_bytes) if self.total.gpus else left

    @property
    def kept_for(self) -> str:
        """The run that was overtaken by too many, or nothing."""
        longest = max(self._overtaken, key=self._overtaken.__getitem__, default="")
        return longest if self._overtaken.get(longest, 0) >= OVERTAKERS else ""

    @property
    def gpus_elsewhere(self) -> int:
        """GPUs that other workers of this machine hold while a run waits here: nobody tells when they let go of one."""
        return self._gpus.count_elsewhere() if self._overtaken else 0

    def wait(self, runs: Iterable[str]) -> None:
        """These, and no others, have items for which there is no room."""
        self._overtaken = {run: self._overtaken.get(run, 0) for run in runs if not self._served[run]}

    def take(self, run: str, needs: Resources) -> Share | None:
        """Room for an item; None if there is none (any more). Raises MachineFailed."""
        if not needs.fits(self._left):
            return None
        gpus = self._gpus.take(needs.gpus)
        if gpus is None:
            return None
        self._left -= needs
        self._served[run] += 1
        self._overtaken.pop(run, None)
        for other in self._overtaken:
            self._overtaken[other] += 1
        return Share(run, needs, gpus)

    def give_back(self, share: Share) -> None:
        self._left += share.needs
        self._gpus.give_back(share.gpus)
        self._served[share.run] -= 1
        if not self._served[share.run]:
            del self._served[share.run]

    def close(self) -> None:
        self._gpus.close()
