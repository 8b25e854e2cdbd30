"""An agentless node as a host of the worker: whether it is there, its slots and its room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ppss_queue.calls import Calls
from ppss_queue.errors import ConnectFailed, MachineFailed, PpssError
from ppss_queue.resp import Argument
from ppss_queue.ssh.failures import SshRefused
from ppss_queue.units import count_slots
from ppss_worker.agentless import protocol
from ppss_worker.agentless.agent import Agent, Session
from ppss_worker.agentless.node_slots import DISTRUST_SECONDS, NodeSlots
from ppss_worker.agentless.steering import Steering
from ppss_worker.agentless.visits import KILL_SECONDS, Visits
from ppss_worker.captures import Captures
from ppss_worker.hosts import Slot
from ppss_worker.offer import Offer
from ppss_worker.room import Room
from ppss_worker.settings import AgentlessNode

if TYPE_CHECKING:
    from ppss_worker.agentless.fleet import Fleet


class AgentlessHost:
    """Used by the worker's one thread."""

    is_here = False

    def __init__(
        self, fleet: Fleet, agent: Agent, node: AgentlessNode, calls: Calls, captures: Captures
    ) -> None:
        self.name = node.name
        self.calls = calls
        self._fleet = fleet
        self._worker = fleet.worker
        self.agent = agent
        self._node = node
        self.room: Room | None = None
        self._node_slots = NodeSlots(self, self._worker.hand, self._worker.wake)
        self.steering = Steering(
            self._node_slots, self._worker, lambda: self._worker.attempts.stop_all(host=self), self._leave
        )
        self._visits = Visits(node.name, fleet, agent, captures, self._trouble)
        self.workplace = self._visits.workplace
        self.start = self._visits.start
        self.finish = self._visits.finish
        self.release = self._visits.release
        self.launch_held = self._visits.launch_held
        self.give_up = self._visits.give_up
        self._session: Session | None = None
        self._said_lost = False
        self.was_up = False
        self.failure: PpssError | None = None
        """Why it could not be reached yet; None: it was, or has not been tried."""
        agent.on_up = self._up
        agent.on_failed = self._failed
        agent.on_said = self._hear
        agent.on_down = self._down

    # Host

    def takes_back(self, slot: Slot) -> bool:
        return self._node_slots.takes_back(slot)

    @property
    def is_usable(self) -> bool:
        return self._node_slots.is_usable

    @property
    def is_awaited(self) -> bool:
        return self.room is None and self.failure is None and not self.steering.is_stopping

    # The agent

    def _up(self, session: Session, accepted: Sequence[str]) -> None:
        for sentence in accepted:
            self._worker.warn(sentence)
        self._session, self.failure = session, None
        if self._said_lost:
            self._worker.warn(f"node {self.name} is back.")
            self._said_lost = False
        self._visits.begin(session)
        if not self.was_up:
            self.was_up = True
            self.steering.begin(self.name, count_slots(self._node.slots, session.cores))
            if self._node.gpus is not None:
                self._offer(session, self._node.gpus)
        self._node_slots.connect(connected=True)
        self._worker.beat()

    def _failed(self, error: PpssError) -> None:
        self.failure = self.failure or error
        self._say_lost(str(error))
        self._fleet.failed()

    def _down(self, session: Session) -> None:
        if session is not self._session:
            return
        self._session = None
        self._node_slots.connect(connected=False)
        if not self._fleet.closing and not self.steering.is_left:
            self._say_lost(f"the connection to node {self.name} was lost.")
        self._visits.end(session)

    def _hear(self, session: Session, said: Sequence[Sequence[bytes]]) -> None:
        for parts in said:
            if parts[0] == b"gpus":
                self._hear_gpus(session, parts)
            else:
                self._visits.hear(session, parts)

    def _hear_gpus(self, session: Session, parts: Sequence[bytes]) -> None:
        gpus: tuple[str, ...] = ()
        try:
            gpus = protocol.read_gpus(parts, self.name)
        except MachineFailed as error:
            self._worker.warn(f"{error}. Say which in the list of nodes: gpus=0,1")
        self._offer(session, gpus)

    def _offer(self, session: Session, gpus: tuple[str, ...]) -> None:
        """What it has for items that say what they need: of all its sessions, whatever later ones tell."""
        if self.room is None:
            cpus, memory_bytes = self._node.cpus, self._node.memory_bytes
            offer = Offer(
                gpus,
                session.cores if cpus is None else cpus,
                session.memory_bytes if memory_bytes is None else memory_bytes,
            )
            directory = self._worker.settings.state_directory / f"gpus-{self.name.replace('/', '-')}"
            self.room = Room(offer, directory)
            self._worker.wake()
            self._worker.beat()

    # Time

    def do_if_due(self, now: float) -> float:
        """What is due now; returns the seconds until something will be."""
        self.steering.leave_if_stopped(busy=bool(self._visits))
        waits = [self._visits.do_if_due(now), self._node_slots.do_if_due(now)]
        session = self._session
        if session is not None:
            silent_at = session.dies_at + KILL_SECONDS
            if now >= silent_at:  # nothing runs there any more, whatever became of the connection
                self._down(session)
                session.requests.put(None)
            else:
                waits.append(silent_at - now)
        return min(waits)

    @property
    def is_up(self) -> bool:
        return self._session is not None

    @property
    def slots(self) -> int:
        """How many there are to be; 0: that is not known yet."""
        return self._node_slots.count

    @property
    def is_shown(self) -> bool:
        """Whether it has a heartbeat."""
        return self._session is not None and not self.steering.is_left

    @property
    def facts(self) -> Mapping[str, Argument]:
        """About the machine."""
        session = self._session
        if session is None:
            return {}
        facts: dict[str, Argument] = {"hostname": self.name, "cores": session.cores}
        return {**facts, "load": session.load} if session.load else facts

    def _trouble(self, session: Session | None, error: PpssError) -> None:
        """The node takes or gives no files: it gets no more items for a while; what runs there goes on."""
        if session is None or session is not self._session or session.command.is_over:
            return  # all of it is lost, and comes again
        if isinstance(error, ConnectFailed) and not isinstance(error, SshRefused):
            return  # the agent will be heard no more either
        if self._node_slots.distrust():
            self._worker.warn(f"{error} It gets no items for {DISTRUST_SECONDS:.0f} s.")

    def _leave(self) -> None:
        self._worker.retire(self.calls)
        self.agent.close()
        self._fleet.left()

    def _say_lost(self, why: str) -> None:
        if not self._said_lost:
            self._said_lost = True
            self._worker.warn(f"{why} Its items go to others; trying again.")
