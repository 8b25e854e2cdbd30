"""All agentless nodes of a worker: what they share, and their way into the worker's one thread."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count

from ppss_queue.calls import Calls, Wishes
from ppss_queue.model import Lease
from ppss_queue.ssh.line import Line
from ppss_queue.ssh.wire import leave_signals_alone
from ppss_worker.agentless.agent import Agent
from ppss_worker.agentless.host import AgentlessHost
from ppss_worker.agentless.listener import Listener
from ppss_worker.attempts import Attempts
from ppss_worker.captures import Captures
from ppss_worker.hand import Hand
from ppss_worker.hosts import Slot
from ppss_worker.settings import AgentlessNode, Settings, Stop

CARRIERS = 16
"""Threads that carry files, of all nodes together; there are none before there are files."""
CLOSE_SECONDS = 10.0
"""For all nodes to confirm that nothing of ours is left there."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What the fleet needs of the worker. All of it is for the main thread."""

    calls: Calls
    hand: Hand
    attempts: Attempts
    freed: Callable[[Slot | None], None]
    wake: Callable[[], None]
    """There may be something to claim."""
    warn: Callable[[str], None]
    fail: Callable[[Exception], None]
    stop: Callable[[Stop], None]
    beat: Callable[[], None]
    """All should know at once what has become of a node."""
    retire: Callable[[Calls], None]
    """Nobody works in this name any more."""
    on_output: Callable[[Lease, int, bytes], None] | None
    """Hears what commands printed, where it is to be shown at once."""
    is_connected: Callable[[], bool]
    """To Redis: while it is not, nothing is begun."""
    settings: Settings


class Fleet:
    """For the main thread, but for `post`; `fileno` tells when `hear` has something to do."""

    def __init__(self, worker: Worker, captures: Captures) -> None:
        self.worker = worker
        self.closing = False
        self._reader, self._writer = os.pipe()
        for descriptor in (self._reader, self._writer):
            os.set_blocking(descriptor, False)
        self._news: deque[Callable[[], None]] = deque()
        self._pids = count(1)
        self._listener = Listener()
        self._carriers = ThreadPoolExecutor(CARRIERS, "carrier", initializer=leave_signals_alone)
        self.hosts = [self._host(node, captures) for node in worker.settings.nodes]

    def _host(self, node: AgentlessNode, captures: Captures) -> AgentlessHost:
        line = Line(node.host, accept_new=node.accept_new)
        asks = node.gpus is None
        agent = Agent(node.name, line, node.scratch, node.nice, self._listener, self.post, tells_gpus=asks)
        calls = self.worker.calls.elsewhere(f"{node.name}.{os.getpid()}-{os.urandom(2).hex()}")
        return AgentlessHost(self, agent, node, calls, captures)

    def start(self) -> None:
        self._listener.start()
        for host in self.hosts:
            host.agent.start()

    def fileno(self) -> int:
        return self._reader

    def post(self, news: Callable[[], None]) -> None:
        """Has this called by `hear`."""
        self._news.append(news)
        with suppress(OSError):  # full, or closed
            os.write(self._writer, b"!")

    def hear(self) -> None:
        """Raises what the worker can't go on with."""
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)
        try:
            while self._news:
                self._news.popleft()()
        except BaseException:
            self.post(lambda: None)  # the rest
            raise

    def next_pid(self) -> int:
        """For a command on a node; no process has it."""
        return -next(self._pids)

    def carry(self, task: Callable[[], None], on_done: Callable[[BaseException | None], None]) -> None:
        """Has it done in a thread; its error, or None, is told in the main thread."""
        future = self._carriers.submit(task)
        future.add_done_callback(lambda done: self._tell(done, on_done))

    def _tell(self, done: Future[None], on_done: Callable[[BaseException | None], None]) -> None:
        if not done.cancelled():
            self.post(partial(on_done, done.exception()))

    def launch_held(self) -> None:
        """Begins what could not be begun without Redis. Raises ConnectFailed."""
        for host in self.hosts:
            host.launch_held()

    def do_if_due(self, now: float) -> float:
        """What is due now; returns the seconds until something will be."""
        return min((host.do_if_due(now) for host in self.hosts), default=math.inf)

    def give_up(self) -> None:
        """Waits no longer for nodes that are lost."""
        for host in self.hosts:
            host.give_up()

    @property
    def _has_others(self) -> bool:
        """There are slots on this machine, or other nodes join."""
        settings = self.worker.settings
        return settings.slots > 0 or settings.has_company

    def failed(self) -> None:
        """A node could not be reached. If none ever was, and there is no slot elsewhere, there is no use in waiting."""
        first = self.hosts[0].failure
        if first is not None and self.is_unreachable and not self._has_others:
            self.worker.fail(first)

    @property
    def is_unreachable(self) -> bool:
        """No node was ever reached, though all were tried."""
        return all(host.failure is not None and not host.was_up for host in self.hosts)

    def obey(self, wishes: Mapping[str, Wishes]) -> None:
        """Does what is wished of nodes, by worker. Raises ConnectFailed."""
        for host in self.hosts:
            if host.calls.worker in wishes:
                host.steering.obey(wishes[host.calls.worker])

    def left(self) -> None:
        """A node was told to stop, and has. If it was the last, and there is no slot elsewhere, that is all."""
        if not self._has_others and all(host.steering.is_left for host in self.hosts):
            self.worker.stop(Stop.DRAIN)

    def retire(self) -> None:
        """Nothing runs on any node any more."""
        for host in self.hosts:
            if host.was_up:
                self.worker.retire(host.calls)

    def close(self) -> None:
        """Ends all agents, and with them what is left on the nodes."""
        self.closing = True
        self._carriers.shutdown(wait=False, cancel_futures=True)
        for host in self.hosts:
            host.agent.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for host in self.hosts:  # nobody waits for a node that can't be reached
            host.agent.wait(max(0.0, deadline - time.monotonic()) if host.is_up else 0.0)
        self._listener.close()
        os.close(self._reader)
        os.close(self._writer)
