"""What a worker is told: at its start, and when it is to end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from ppss_queue.address import SshHost
from ppss_worker.maps import NO_MAPS, PathMaps
from ppss_worker.offer import NO_OFFER, Offer


class Stop(IntEnum):
    """How urgently a worker is to end."""

    NO = 0
    DRAIN = 1
    """Finish what runs."""
    NOW = 2
    """Ask what runs to end, and hand it back."""
    AT_ONCE = 3
    """Kill what runs, and hand it back."""


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How files are staged on this node."""

    scratch: Path
    """Directory for copies and outputs."""
    scratch_limit_bytes: int | None = None
    """How much copies may take; None: all but a reserve of the disk."""
    ahead: int | None = None
    """Items whose files are fetched before a slot is free for them; None: as many as there are slots."""
    bytes_per_second: float | None = None
    """Each way."""
    compress: bool = False
    maps: PathMaps = NO_MAPS


@dataclass(frozen=True, slots=True)
class AgentlessNode:
    """A node that needs sshd and bash only; its items are run there by a worker on the master."""

    name: str
    """PPSS_NODE of its items."""
    host: SshHost
    slots: str = "100%"
    """As -p takes it, of its cores."""
    scratch: str = ""
    """Directory there for copies and outputs; empty: the user's home."""
    nice: int = 0
    gpus: tuple[str, ...] | None = ()
    """Which it offers; None: those that it has."""
    cpus: int | None = None
    """How many it offers; None: its cores."""
    memory_bytes: int | None = None
    """How much it offers; None: all of it."""
    accept_new: bool = False
    """Trust the host if nothing is known of it."""

    @property
    def known_slots(self) -> int:
        """0: that depends on its cores, which are not known before it is reached."""
        return int(self.slots) if self.slots.isdecimal() else 0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is told."""

    slots: int
    node: str
    state_directory: Path
    """Of this user on this machine: slot numbers and logs are kept there."""
    burst: bool = False
    """End when no item is left in any run that it serves."""
    runs: tuple[str, ...] = ()
    """Serve only these; none: all."""
    command: str | tuple[str, ...] | None = None
    """For runs that have none."""
    start_delay_seconds: float = 0.0
    line_buffer: bool = False
    """Tell the observer what commands print while they run."""
    prints: bool = False
    """The observer prints what commands print, so nobody else needs to be told."""
    stage: StageSettings | None = None
    """None: nothing can be staged here."""
    offer: Offer = NO_OFFER
    """For items that say what they need."""
    nodes: tuple[AgentlessNode, ...] = ()
    """Whose items this worker runs too."""
    has_company: bool = False
    """Other nodes join its run, so it goes on where none of its own can be reached."""

    @property
    def slots_elsewhere(self) -> int:
        """On nodes; of those that have one per core this is not known."""
        return sum(node.known_slots for node in self.nodes)
