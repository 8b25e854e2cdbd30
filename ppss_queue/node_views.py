"""The nodes: what each is doing, and what can be wished of it. A node obeys at once, or when it comes."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

from ppss_queue import scripts
from ppss_queue.calls import QUARANTINED
from ppss_queue.config import closest
from ppss_queue.connection import Reply
from ppss_queue.errors import BadInput, UnknownNode
from ppss_queue.keys import Keys
from ppss_queue.replies import read_members, text
from ppss_queue.resp import Argument
from ppss_queue.scripts import Call
from ppss_queue.store import Store

_Told: TypeAlias = str | Literal[False]
"""A field of a hash, as JSON from Lua has it; False: it is not there."""
_Worker: TypeAlias = tuple[str, int, tuple[_Told, ...]]


class NodeState(StrEnum):
    LIVE = "live"
    PAUSED = "paused"
    """Somebody wished that nothing is handed out to it."""
    QUARANTINED = "quarantined"
    """Items failed there that succeeded elsewhere, so nothing is handed out to it."""
    DRAINING = "draining"
    """All of its workers end what they run, and then themselves."""
    LOST = "lost"
    """Its workers have been silent for 30 s; what they held comes back."""


@dataclass(frozen=True, slots=True)
class NodeWorker:
    """A worker that was heard of lately."""

    name: str
    pid: int
    slots: int


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as it was told to be by its workers, which do so each 10 s; `running` is of this moment."""

    name: str
    state: NodeState
    reason: str
    """Why it is paused or quarantined, or would be if it were not the last node; what of a run can't be run there."""
    slots: int
    running: int
    """Items."""
    leased: int
    """Items that it holds, running or not."""
    rate_per_second: float
    """Items that ended lately."""
    silent_seconds: float
    """Since it was last heard of, by the clock of Redis."""
    hostname: str
    version: str
    load: float | None
    """Of one minute; None, here and below: it was not told."""
    cores: int | None
    memory_bytes: int | None
    memory_free_bytes: int | None
    scratch_free_bytes: int | None
    """Where files are staged."""
    scratch_limit_bytes: int | None
    workers: tuple[NodeWorker, ...]
    """Those that were heard of lately."""


class Node:
    """One node, by name. Each call says something to its workers, which hear it at once.

    All raise UnknownNode where no worker of that name was heard of lately.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._store = store

    def pause(self, reason: str | None = None) -> None:
        """It finishes what runs, hands back the rest, and takes nothing until it is resumed, also if started anew.

        `reason`: shown with the node; None: by whom.
        """
        self._wish("pause", reason or f"by {_somebody()}")

    def resume(self) -> None:
        """Lets a paused or quarantined node take items again."""
        self._wish("resume")

    def set_slots(self, slots: int | None) -> None:
        """How many items it is to run at once, all its workers together, also if started anew.

        Fewer: as running items end. None: as its workers were started. Raises BadInput for less than 1.
        """
        if slots is not None and slots < 1:
            raise BadInput(f"{slots} slots: a node needs at least one. Pause it to have it run nothing.")
        self._wish("slots", "" if slots is None else slots)

    def stop(self, *, now: bool = False) -> None:
        """Its workers of now end when what runs has ended; `now`: they ask that to end, and hand it back."""
        self._wish("stop", "now" if now else "drain")

    def forget(self, *, gone: bool = False) -> None:
        """Takes a lost node off show, with all that was wished of it. Raises BadInput if it is alive.

        `gone`: that is known better than by its last heartbeat.
        """
        if self._wish("forget", "gone" if gone else "") == "alive":
            raise BadInput(f"node '{self.name}' is alive, and would be back at once. Stop it first.")

    def _wish(self, what: str, *value: Argument) -> str:
        reply = text(
            scripts.run(self._store.connection, Call(self._store.keys, "wish", (self.name, what, *value)))
        )
        if reply == "unknown":
            known = read_members(self._store.connection.execute("ZRANGE", self._store.keys.nodes, 0, -1))
            close = closest(self.name, known)
            hint = f"Did you mean '{close}'?" if close else f"There is {_listed(known)}."
            raise UnknownNode(f"There is no node '{self.name}'. {hint}")
        return reply


def nodes(store: Store) -> list[NodeView]:
    """All nodes, by name, in one round trip. Those whose workers died are shown as lost for a day."""
    return read_nodes(scripts.run(store.connection, nodes_call(store.keys)))


def nodes_call(keys: Keys) -> Call:
    """For `read_nodes`."""
    return Call(keys, "nodes")


def read_nodes(reply: Reply) -> list[NodeView]:
    """See `nodes`."""
    now, *rows = json.loads(text(reply))
    return sorted((_view(float(now), *row) for row in rows), key=lambda view: view.name)


def _view(
    now: float, name: str, heard: str, paused: _Told, told: tuple[_Told, ...], *crew: _Worker
) -> NodeView:
    """Of a row of nodes.lua."""
    hostname, version, load, cores, memory, memory_free, scratch_free, scratch_limit, doubt = told
    workers, running, leased, rate, stopping, troubles = [], 0, 0, 0.0, 0, set()
    for worker, runs, (pid, slots, held, pace, stops, trouble) in crew:
        workers.append(NodeWorker(worker, int(pid), int(slots or 0)))
        running += runs
        leased += int(held or 0)
        rate += float(pace or 0)
        stopping += stops == "1"
        troubles.update([trouble] if trouble else [])
    reason = paused or ""
    if not workers:
        state = NodeState.LOST
    elif stopping == len(workers):
        state = NodeState.DRAINING
    elif reason:
        state = NodeState.QUARANTINED if reason.startswith(QUARANTINED) else NodeState.PAUSED
    else:
        state = NodeState.LIVE
    return NodeView(
        name=name,
        state=state,
        reason=reason.removeprefix(QUARANTINED) or doubt or "; ".join(sorted(troubles)),
        slots=sum(worker.slots for worker in workers),
        running=running,
        leased=max(leased, running),
        rate_per_second=rate,
        silent_seconds=max(now - float(heard), 0.0),
        hostname=hostname or "",
        version=version or "",
        load=float(load) if load else None,
        cores=int(cores) if cores else None,
        memory_bytes=int(memory) if memory else None,
        memory_free_bytes=int(memory_free) if memory_free else None,
        scratch_free_bytes=int(scratch_free) if scratch_free else None,
        scratch_limit_bytes=int(scratch_limit) if scratch_limit else None,
        workers=tuple(sorted(workers, key=lambda worker: worker.name)),
    )


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "none: start a worker"
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _somebody() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without an entry
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
