"""What an item needs of a node, and what a node has: GPUs, CPUs, memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ppss_queue.units import format_bytes, plural

_NODES = 3


@dataclass(frozen=True, slots=True)
class Resources:
    """So much of each. What an item does not ask for is not counted."""

    gpus: int = 0
    cpus: int = 0
    memory_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.gpus or self.cpus or self.memory_bytes)

    def __add__(self, other: Resources) -> Resources:
        return Resources(
            self.gpus + other.gpus, self.cpus + other.cpus, self.memory_bytes + other.memory_bytes
        )

    def __sub__(self, other: Resources) -> Resources:
        return Resources(
            self.gpus - other.gpus, self.cpus - other.cpus, self.memory_bytes - other.memory_bytes
        )

    def fits(self, room: Resources) -> bool:
        return self.gpus <= room.gpus and self.cpus <= room.cpus and self.memory_bytes <= room.memory_bytes

    def encode(self) -> str:
        """As scripts read it: three numbers, or nothing."""
        return f"{self.gpus} {self.cpus} {self.memory_bytes}" if self else ""

    @classmethod
    def decode(cls, text: str) -> Resources:
        return cls(*map(int, text.split()))

    def shortage(self, room: Resources, whose: str) -> str:
        """`4 GPUs and 64 GiB of memory, but this machine offers 0 and 8.0 GiB`: only what there is too little of."""
        needed, offered = [], []
        if self.gpus > room.gpus:
            needed.append(plural(self.gpus, "GPU"))
            offered.append(str(room.gpus))
        if self.cpus > room.cpus:
            needed.append(plural(self.cpus, "CPU"))
            offered.append(str(room.cpus))
        if self.memory_bytes > room.memory_bytes:
            needed.append(f"{format_bytes(self.memory_bytes)} of memory")
            offered.append(format_bytes(room.memory_bytes))
        return f"{_listed(needed)}, but {whose} offers {_listed(offered)}"


NOTHING = Resources()


def shortages(needs: Resources, offers: Iterable[tuple[str, Resources]]) -> str:
    """`2 CPUs, but a offers 1; 1 GPU, but b offers 0; and so on for 4 more`, where none of (node, offer) is enough."""
    lacking = list(dict.fromkeys(needs.shortage(offer, node) for node, offer in offers))
    more = [f"and so on for {len(lacking) - _NODES} more"] if len(lacking) > _NODES else []
    return "; ".join([*lacking[:_NODES], *more])


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
