"""Attempts on an agentless node, from the way of their files there to what they printed."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from ppss_queue.command import ItemValues
from ppss_queue.errors import ConnectFailed, PpssError
from ppss_queue.model import Lease
from ppss_worker.agentless import protocol
from ppss_worker.agentless.agent import Agent, Session
from ppss_worker.agentless.carrying import NodeFailed, fetch_printed, send_files
from ppss_worker.agentless.child import SIGNALS, RemoteChild
from ppss_worker.agentless.home import Home
from ppss_worker.agentless.porter import Porter
from ppss_worker.agentless.visit import Visit, refuse_names, request_of
from ppss_worker.captures import Captures
from ppss_worker.process import Child, Exit
from ppss_worker.running import ItemRefused, Workplace
from ppss_worker.runs import ActiveRun
from ppss_worker.workplaces import Here, scratch_here

if TYPE_CHECKING:
    from ppss_worker.agentless.fleet import Fleet

KILL_SECONDS = 5.0
"""From the end of the limit to the end of the last command: SIGTERM, 2 s, SIGKILL, and some."""
_LIMIT_SHARE = 0.6
"""Of the visibility timeout of a run; a lease has two thirds of it left when its worker dies."""
_LIMIT_AT_LEAST_SECONDS = 3.0
_PIECE_BYTES = 1024 * 1024


class Visits:
    """Used by the worker's one thread."""

    def __init__(
        self,
        node: str,
        fleet: Fleet,
        agent: Agent,
        captures: Captures,
        trouble: Callable[[Session | None, PpssError], None],
    ) -> None:
        """`trouble`: the node takes or gives no files."""
        self._node = node
        self._fleet = fleet
        self._worker = fleet.worker
        self._attempts = fleet.worker.attempts
        self.agent = agent
        self._captures = captures
        self.trouble = trouble
        self.porter = Porter(fleet.carry)
        self._session: Session | None = None
        self._coming: dict[str, Visit] = {}
        """Of attempts that are about to start, by member."""
        self._children: dict[int, RemoteChild] = {}
        self._by_attempt: dict[str, RemoteChild] = {}
        self._numbers = count(1)
        self._held: list[RemoteChild] = []
        self._shared: dict[str, str] = {}
        """Where the files of --with are in this session, by hash."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._children)

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
        self._coming[lease.member] = visit
        return Workplace(item, f"{directory}/work", visit.home)

    def start(
        self, lease: Lease, run: ActiveRun, values: ItemValues, own: Mapping[str, str], directory: str
    ) -> Child:
        """Raises SpawnFailed, MachineFailed."""
        visit = self._coming.pop(lease.member)
        child = RemoteChild(self._fleet.next_pid(), -1, -1, time.monotonic(), self._captures.give_back)
        child.attempt, child.session, child.home = visit.attempt, visit.session, visit.home
        child.lease = lease
        child.request = request_of(run, values, own, self._node, visit.attempt)
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

    # The session

    def begin(self, session: Session) -> None:
        """Those that come go there."""
        self._session = session
        self._shared = {}
        if session.is_alone:
            for child in [child for child in self._children.values() if child.session is not session]:
                self._lose(child)

    def end(self, session: Session) -> None:
        """It is lost."""
        self._session = None
        for child in list(self._children.values()):
            if not child.launched:
                self._end_unbegun(child)
            elif session.is_gone:
                self._lose(child)
            else:
                child.lost_at = session.dies_at + KILL_SECONDS

    def hear(self, session: Session, parts: Sequence[bytes]) -> None:
        """What the agent said of one."""
        child = self._by_attempt.get(parts[1].decode()) if len(parts) > 1 else None
        if child is None or child.pid not in self._children:
            return
        if parts[0] == b"ended":
            self._ended(child, protocol.read_ended(parts))
        elif parts[0] == b"failed":
            sentence = f"node {self._node} can't start commands. See whether its disk is full."
            self.trouble(session, NodeFailed(sentence))
            self._end_unbegun(child)

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
            why = f"node {self._node} was lost"
            self._worker.freed(self._attempts.lose_host(child.pid, why, is_over=is_over))

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
            self._send(child.session, child.request)
            child.request = b""
        else:
            self._end_unbegun(child)

    def launch_held(self) -> None:
        """Begins what waits for Redis. Raises ConnectFailed."""
        while self._held:
            self._launch(self._held.pop(0))

    def _signal(self, child: RemoteChild, number: int) -> None:
        if child.launched:
            self._send(child.session, protocol.kill_request(child.attempt, SIGNALS[number]))
        elif number != signal.SIGCONT:
            self._fleet.post(partial(self._end_unbegun, child))

    def _forget(self, child: RemoteChild) -> None:
        self._by_attempt.pop(child.attempt, None)
        self._send(child.session, protocol.forget_request(child.attempt))

    def _send(self, session: Session | None, request: bytes) -> None:
        """Nothing if that session is over."""
        if session is not None and session is self._session:
            session.requests.put(request)

    def do_if_due(self, now: float) -> float:
        """Takes those for dead that can't live any more; returns the seconds until the next one is due."""
        wait = math.inf
        for child in list(self._children.values()):
            if now >= child.lost_at:
                self._lose(child)
            else:
                wait = min(wait, child.lost_at - now)
        return wait

    def give_up(self) -> None:
        """What runs on a node that is lost is left to its watchdog, and its lease to expire."""
        for child in [child for child in self._children.values() if child.session is not self._session]:
            self._lose(child, is_over=False)
