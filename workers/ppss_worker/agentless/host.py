"""An agentless node as a host of the worker: its slots, and the commands that run there."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from ppss_queue.calls import Calls
from ppss_queue.command import ItemValues
from ppss_queue.errors import ConnectFailed, MachineFailed, PpssError
from ppss_queue.model import Lease
from ppss_queue.resp import Argument
from ppss_queue.ssh.failures import SshRefused
from ppss_queue.units import count_slots
from ppss_worker.agentless import protocol
from ppss_worker.agentless.agent import Agent, Session
from ppss_worker.agentless.carrying import NodeFailed, fetch_printed, send_files
from ppss_worker.agentless.child import SIGNALS, RemoteChild
from ppss_worker.agentless.home import Home
from ppss_worker.agentless.node_slots import DISTRUST_SECONDS, NodeSlots
from ppss_worker.agentless.porter import Porter
from ppss_worker.agentless.steering import Steering
from ppss_worker.agentless.visit import Visit, refuse_names, request_of
from ppss_worker.captures import Captures
from ppss_worker.hosts import Slot
from ppss_worker.offer import Offer
from ppss_worker.process import Child, Exit
from ppss_worker.room import Room
from ppss_worker.running import ItemRefused, Workplace
from ppss_worker.runs import ActiveRun
from ppss_worker.settings import AgentlessNode
from ppss_worker.workplaces import Here, scratch_here

if TYPE_CHECKING:
    from ppss_worker.agentless.fleet import Fleet

_LIMIT_SHARE = 0.6
"""Of the visibility timeout of a run; a lease has two thirds of it left when its worker dies."""
_LIMIT_AT_LEAST_SECONDS = 3.0
_KILL_SECONDS = 5.0
"""From the end of the limit to the end of the last command: SIGTERM, 2 s, SIGKILL, and some."""
_PIECE_BYTES = 1024 * 1024


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
            self._node_slots, self._worker, lambda: self._attempts.stop_all(host=self), self._leave
        )
        self._captures = captures
        self._attempts = fleet.worker.attempts
        self._session: Session | None = None
        self._visits: dict[str, Visit] = {}
        self._children: dict[int, RemoteChild] = {}
        self._by_attempt: dict[str, RemoteChild] = {}
        self._numbers = count(1)
        self.porter = Porter(fleet.carry)
        self._held: list[RemoteChild] = []
        self._shared: dict[str, str] = {}
        """Where the files of --with are in this session, by hash."""
        self._said_lost = False
        self.was_up = False
        self.failure: PpssError | None = None
        """Why it could not be reached yet; None: it was, or has not been tried."""
        agent.on_up = self._up
        agent.on_failed = self._failed
        agent.on_said = self._hear
        agent.on_down = self._down

    # Host

    def workplace(self, lease: Lease, run: ActiveRun) -> Workplace:
        """Raises ItemRefused, BadInput, MachineFailed."""
        session, spec = self._session, run.spec
        assert session is not None
        refuse_names(spec.environment)
        attempt = f"{lease.job}.{next(self._numbers)}"
        directory = f"{session.directory}/{attempt}"
        visit = Visit(attempt, session, Home(self, session, attempt, lease, run))
        visit.bring_shared(spec, self._shared)
        item = lease.item.name
        if spec.is_file(lease.item):
            source = spec.local_path(lease.item)
            visit.bring_item(source, spec.also)
            item = f"{directory}/work/{os.path.basename(source)}"
        attempt_here = scratch_here(lease, run)
        visit.home.here = Here(attempt_here, spec.output or "") if attempt_here else None
        self._visits[lease.member] = visit
        return Workplace(item, f"{directory}/work", visit.home)

    def start(
        self, lease: Lease, run: ActiveRun, values: ItemValues, own: Mapping[str, str], directory: str
    ) -> Child:
        """Raises SpawnFailed, MachineFailed."""
        visit = self._visits.pop(lease.member)
        child = RemoteChild(self._fleet.next_pid(), -1, -1, time.monotonic(), self._captures.give_back)
        child.attempt, child.session, child.home = visit.attempt, visit.session, visit.home
        child.lease = lease
        child.request = request_of(run, values, own, self.name, visit.attempt)
        child.on_signal, child.on_close = self._signal, self._forget
        child.stdout, child.stderr = self._captures.take(), self._captures.take()
        limit_seconds = max(_LIMIT_AT_LEAST_SECONDS, _LIMIT_SHARE * run.spec.visibility_seconds)
        self.agent.limit_seconds = min(self.agent.limit_seconds, limit_seconds)
        self._children[child.pid] = self._by_attempt[child.attempt] = child
        if visit.files or visit.links:
            self.porter.carry(
                partial(send_files, self.agent, visit.session, visit.attempt, visit.files, visit.links),
                partial(self._arrived, child, visit.shared),
            )
        else:
            self._fleet.post(partial(self._launch, child))  # when the caller knows it
        return child

    def finish(self, child: Child) -> None:
        on_output = self._worker.on_output
        if on_output is not None and isinstance(child, RemoteChild) and child.lease is not None:
            for target, source in ((1, child.stdout), (2, child.stderr)):
                at = 0
                while data := os.pread(source, _PIECE_BYTES, at):
                    on_output(child.lease, target, data)
                    at += len(data)

    def release(self, child: Child) -> None:
        child.close()  # which forgets it

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
        self._shared = {}
        if self._said_lost:
            self._worker.warn(f"node {self.name} is back.")
            self._said_lost = False
        if session.is_alone:
            for child in [child for child in self._children.values() if child.session is not session]:
                self._lose(child)
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
        for child in list(self._children.values()):
            if not child.launched:
                self._end_unbegun(child)
            elif session.is_gone:
                self._lose(child)
            else:
                child.lost_at = session.dies_at + _KILL_SECONDS

    def _hear(self, session: Session, said: Sequence[Sequence[bytes]]) -> None:
        for parts in said:
            if parts[0] == b"gpus":
                self._hear_gpus(session, parts)
                continue
            child = self._by_attempt.get(parts[1].decode()) if len(parts) > 1 else None
            if child is None or child.pid not in self._children:
                continue
            if parts[0] == b"ended":
                self._ended(child, protocol.read_ended(parts))
            elif parts[0] == b"failed":
                self.trouble(
                    session,
                    NodeFailed(f"node {self.name} can't start commands. See whether its disk is full."),
                )
                self._end_unbegun(child)

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

    def _ended(self, child: RemoteChild, ended: protocol.Ended) -> None:
        assert child.home is not None and child.session is not None
        child.home.has_outputs, child.home.beside = ended.has_outputs, ended.beside
        exited = Exit(child.pid, ended.exit_code, ended.signal, 0.0, 0.0, time.monotonic())
        if ended.printed is not None:
            os.write(child.stdout, ended.printed[0])
            os.write(child.stderr, ended.printed[1])
            self._over(child, exited)
        else:
            task = partial(
                fetch_printed, self.agent, child.session, child.attempt, child.stdout, child.stderr
            )
            self.porter.carry(task, partial(self._printed, child, exited))

    def _printed(self, child: RemoteChild, exited: Exit, error: BaseException | None) -> None:
        if error is None:
            self._over(child, exited)
        elif isinstance(error, PpssError):
            self.trouble(child.session, error)
            self._end_unbegun(child)
        else:
            raise error

    def _over(self, child: RemoteChild, exited: Exit) -> None:
        if self._children.pop(child.pid, None) is not None:
            child.reaped = True
            self._worker.freed(self._attempts.ended(exited))

    def _end_unbegun(self, child: RemoteChild) -> None:
        """It did not run, or nothing of it can be had: its item goes back."""
        child.began = False
        self._over(child, Exit(child.pid, None, signal.SIGTERM, 0.0, 0.0, time.monotonic()))

    def _lose(self, child: RemoteChild, *, is_over: bool = True) -> None:
        """It was killed on the node, or by the end of the node."""
        if self._children.pop(child.pid, None) is not None:
            child.reaped = True
            why = f"node {self.name} was lost"
            self._worker.freed(self._attempts.lose_host(child.pid, why, is_over=is_over))

    # Commands

    def _arrived(self, child: RemoteChild, shared: dict[str, str], error: BaseException | None) -> None:
        """Its files are on the node, or can't be."""
        if error is None:
            if child.session is self._session:
                for sha256, place in shared.items():
                    self._shared.setdefault(sha256, place)
            self._launch(child)
        elif isinstance(error, ItemRefused):
            if self._children.pop(child.pid, None) is not None:
                child.reaped = True
                self._worker.freed(self._attempts.refuse(child.pid, error))
        elif isinstance(error, PpssError):
            self.trouble(child.session, error)
            self._end_unbegun(child)
        else:
            raise error

    def _launch(self, child: RemoteChild) -> None:
        if child.pid not in self._children:
            self._forget(child)  # it was given up while its files came
            return
        if not self._worker.is_connected():
            self._held.append(child)
            return
        if child.session is not self._session:
            self._end_unbegun(child)
            return
        try:
            wanted = self._attempts.launch(child.pid)
        except ConnectFailed:
            self._held.append(child)
            raise
        if wanted:
            child.launched = True
            self.send(child.session, child.request)
            child.request = b""
        else:
            self._end_unbegun(child)

    def launch_held(self) -> None:
        """Begins what waits for Redis. Raises ConnectFailed."""
        while self._held:
            self._launch(self._held.pop(0))

    def _signal(self, child: RemoteChild, number: int) -> None:
        if child.launched:
            self.send(child.session, protocol.kill_request(child.attempt, SIGNALS[number]))
        elif number != signal.SIGCONT:
            self._fleet.post(partial(self._end_unbegun, child))

    def _forget(self, child: RemoteChild) -> None:
        self._by_attempt.pop(child.attempt, None)
        self.send(child.session, protocol.forget_request(child.attempt))

    def send(self, session: Session | None, request: bytes) -> None:
        """Nothing if that session is over."""
        if session is not None and session is self._session:
            session.requests.put(request)

    # Time

    def do_if_due(self, now: float) -> float:
        """What is due now; returns the seconds until something will be."""
        waits = [math.inf]
        self.steering.leave_if_stopped(busy=bool(self._children))
        for child in list(self._children.values()):
            if now >= child.lost_at:
                self._lose(child)
            else:
                waits.append(child.lost_at - now)
        session = self._session
        if session is not None:
            silent_at = session.dies_at + _KILL_SECONDS
            if now >= silent_at:  # nothing runs there any more, whatever became of the connection
                self._down(session)
                session.requests.put(None)
            else:
                waits.append(silent_at - now)
        waits.append(self._node_slots.do_if_due(now))
        return min(waits)

    def give_up(self) -> None:
        """What runs on a node that is lost is left to its watchdog, and its lease to expire."""
        for child in [child for child in self._children.values() if child.session is not self._session]:
            self._lose(child, is_over=False)

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

    def trouble(self, session: Session | None, error: PpssError) -> None:
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
