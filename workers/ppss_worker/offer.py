"""What a worker hands out to items that say what they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppss_queue.resources import Resources


@dataclass(frozen=True, slots=True)
class Offer:
    """All that a worker has to give."""

    gpus: tuple[str, ...] = ()
    """As CUDA_VISIBLE_DEVICES names them."""
    cpus: int = 0
    memory_bytes: int = 0

    @property
    def total(self) -> Resources:
        return Resources(len(self.gpus), self.cpus, self.memory_bytes)

    @classmethod
    def here(
        cls, gpus: Sequence[str] | None = None, cpus: int | None = None, memory_bytes: int | None = None
    ) -> Offer:
        """What was said, and for what was not, what this machine has.

        Raises MachineFailed if it can't be found out which GPUs there are.
        """
        from ppss_worker import capacity

        return cls(
            tuple(gpus) if gpus is not None else capacity.gpus(),
            capacity.cpus() if cpus is None else cpus,
            capacity.memory_bytes() if memory_bytes is None else memory_bytes,
        )


NO_OFFER = Offer()
"""Of a worker that serves no run with needs."""
