"""Who gets the room of a worker's hosts, and who waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ppss_queue.resources import Resources, shortages
from ppss_worker.hosts import Host

OVERTAKERS = 16
"""Items of other runs that may take room while a bigger one waits for it; then it is kept for that one."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one item has, from its claim to its end."""

    host: Host
    run: str
    needs: Resources
    gpus: tuple[str, ...]


class Rooms:
    """Used by the worker's one thread. A run waits only where none of its items has a share: else it is served."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []
        """All that have slots, or may."""
        self._served: Counter[str] = Counter()
        """Shares by run."""
        self._waiting: dict[str, Resources] = {}
        self._overtaken: Counter[str] = Counter()
        """How many items were given room while these runs waited."""

    @property
    def free(self) -> tuple[Resources, ...]:
        """Of each host that can have items now; the first is the one on which room is kept. Raises MachineFailed."""
        needs = self._waiting.get(self.kept_for)
        rooms = [host.room for host in self.hosts if host.is_usable and host.room is not None]
        if needs is not None:
            rooms.sort(key=lambda room: not needs.fits(room.total))
        return tuple(room.free for room in rooms if room.total)

    @property
    def kept_for(self) -> str:
        """The run that was overtaken by too many, or nothing."""
        longest = max(self._waiting, key=self._overtaken.__getitem__, default="")
        return longest if self._overtaken[longest] >= OVERTAKERS else ""

    @property
    def gpus_elsewhere(self) -> int:
        """GPUs that other workers of this machine hold while a run waits here: nobody tells when they let go of one."""
        if not self._waiting:
            return 0
        return sum(host.room.gpus_elsewhere for host in self.hosts if host.room is not None)

    def fits(self, needs: Resources) -> bool:
        """Whether a host has so much when nothing runs there, or may have: not all have told yet, or none has."""
        totals = self._totals()
        may_tell_more = not totals or any(host.is_awaited for host in self.hosts)
        return may_tell_more or any(needs.fits(total) for _, total in totals)

    def shortage(self, needs: Resources) -> str:
        """As `Resources.shortage`, where it does not fit."""
        if len(self.hosts) == 1:
            return needs.shortage(self._totals()[0][1], "this worker")
        return shortages(needs, self._totals())

    def _totals(self) -> list[tuple[str, Resources]]:
        return [(host.name, host.room.total) for host in self.hosts if host.slots and host.room is not None]

    def wait(self, waiting: Mapping[str, Resources]) -> None:
        """These runs, and no others, have items for which there is no room, of which each needs so much."""
        self._waiting = {run: needs for run, needs in waiting.items() if not self._served[run]}
        self._overtaken = Counter({run: self._overtaken[run] for run in self._waiting})

    def take(self, run: str, needs: Resources, hosts: Iterable[Host]) -> Share | None:
        """Room for an item on the first of these that has it; None if none has (any more). Raises MachineFailed."""
        for host in hosts:
            gpus = host.room.take(needs) if host.room is not None else None
            if gpus is not None:
                self._served[run] += 1
                self._waiting.pop(run, None)
                for other in self._waiting:
                    self._overtaken[other] += 1
                return Share(host, run, needs, gpus)
        return None

    def give_back(self, share: Share) -> None:
        assert share.host.room is not None
        share.host.room.give_back(share.needs, share.gpus)
        self._served[share.run] -= 1
        if not self._served[share.run]:
            del self._served[share.run]

    def close(self) -> None:
        for host in self.hosts:
            if host.room is not None:
                host.room.close()
