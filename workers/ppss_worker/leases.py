"""Keeps leases alive, in a thread and on a connection of its own, so that no busy slot can starve it.

It goes on while the worker drains: an item that still runs must not be taken by someone else.
"""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from ppss_queue import scripts
from ppss_queue.calls import Calls, Renewed, Wishes, read_renewed, read_wishes
from ppss_queue.changes import ChangeListener
from ppss_queue.connection import Connection
from ppss_queue.errors import ConnectFailed, PpssError, ServiceFailed
from ppss_queue.keys import Keys
from ppss_queue.scripts import Call

HEARTBEAT_SECONDS = 10.0
"""How often a worker shows that it is alive; a third of the time after which all views forget it."""
REFUSED_SECONDS = 1.0
"""Before Redis is asked again that refused, at most."""
_STOP_SECONDS = 2.0
"""How long the thread is waited for."""


class LeaseKeeper:
    """Renews at a third of the shortest visibility timeout, so that two renewals may get lost."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        calls: Calls,
        heartbeats: Callable[[], Mapping[str, Call]],
    ) -> None:
        """`connection` need not be open.

        `heartbeats`: builds them, by worker: one for each node on which this one runs items. Called in the thread.
        """
        self._connection = connection
        self._calls = calls
        self._build_heartbeats = heartbeats
        self.wishes: Mapping[str, Wishes] = {}
        """What is wished of each node, by worker, as its last heartbeat was told."""
        self._control = ChangeListener(connection, [keys.control])
        self._lock = threading.Lock()
        self._members: dict[str, set[str]] = {}
        self._visibility: dict[str, float] = {}
        self._news: deque[Renewed] = deque()
        self._reader, self._writer = os.pipe()
        self._wake_reader, self._wake_writer = os.pipe()
        for descriptor in (self._reader, self._writer, self._wake_reader, self._wake_writer):
            os.set_blocking(descriptor, False)
        self._stopping = False
        self._heartbeat_at = 0.0
        """time.monotonic() of the first one; 0: there was none."""
        self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)

    def start(self) -> None:
        """The first heartbeat is done when this returns. Raises what a connection raises.

        ConnectFailed of a lost line does no harm: the thread is there, and goes on trying.
        """
        try:
            self._open()
            self._heartbeat()
            self._heartbeat_at = time.monotonic()
        finally:
            self._thread.start()

    def beat(self) -> None:
        """Something changed that all should know at once."""
        if not self._stopping:
            self._wake()

    def fileno(self) -> int:
        """Readable when there is news, or something else is wished."""
        return self._reader

    def hold(self, run: str, members: set[str], visibility_seconds: float) -> None:
        """Renew these from now on."""
        with self._lock:
            self._members.setdefault(run, set()).update(members)
            known = self._visibility.get(run)
            self._visibility[run] = visibility_seconds
        if known is None:
            self._wake()

    def drop(self, run: str, member: str) -> None:
        """It has ended."""
        with self._lock:
            held = self._members.get(run)
            if held is not None:
                held.discard(member)

    def news(self) -> list[Renewed]:
        """What renewals since the last call told: states of runs, leases that are lost."""
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)
        news: list[Renewed] = []
        while self._news:
            news.append(self._news.popleft())
        return news

    def stop(self) -> None:
        """Ends the thread and closes its connection: no heartbeat comes after this. Once is enough."""
        if self._stopping:
            return
        self._stopping = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(_STOP_SECONDS)
            if self._thread.is_alive():  # Redis hangs: it ends with the process
                return
        self._connection.close()
        for descriptor in (self._reader, self._writer, self._wake_reader, self._wake_writer):
            os.close(descriptor)

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # full: it wakes anyway
            os.write(self._wake_writer, b"!")

    def _keep(self) -> None:
        # Else each SIGCHLD that comes while the main thread spawns would wake this one up.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        renewed, heartbeat = time.monotonic(), self._heartbeat_at
        missed = False  # a run may have been paused or resumed while there was no connection
        while not self._stopping:
            with self._lock:
                every = min(self._visibility.values(), default=3 * HEARTBEAT_SECONDS) / 3
            due = min(renewed + every, heartbeat + HEARTBEAT_SECONDS)
            told = self._wait(max(0.0, due - time.monotonic()))
            missed = missed or told
            now = time.monotonic()
            try:
                if missed or now >= renewed + every:
                    self._renew(all_runs=missed)
                    renewed, missed = now, False
                if now >= heartbeat + HEARTBEAT_SECONDS:
                    heartbeat = now
                    self._heartbeat()
                elif (
                    told
                ):  # its next one is due as before: else all nodes would send theirs at once from now on
                    self._heartbeat()
            except ConnectFailed:
                self._recover()
                renewed = heartbeat = 0.0
                missed = True
            except PpssError:  # refused, but the connection is good: not again at once
                self._pause(min(every, REFUSED_SECONDS))
                renewed = heartbeat = 0.0

    def _wait(self, seconds: float) -> bool:
        """Whether somebody touched a run's state, or told a node something, meanwhile."""
        try:
            touched = bool(self._control.changes())  # which came with an answer
            readable = _readable(0.0 if touched else seconds, self._wake_reader, self._control.fileno())
            new_run = self._wake_reader in readable  # it may have been paused since it was claimed from
            if new_run:
                os.read(self._wake_reader, 4096)
            return bool(self._control.changes()) or touched or new_run
        except (PpssError, OSError):
            self._recover()
            return True

    def _pause(self, seconds: float) -> None:
        """Ends early if the keeper is told to stop."""
        if _readable(seconds, self._wake_reader):
            os.read(self._wake_reader, 4096)

    def _renew(self, *, all_runs: bool) -> None:
        with self._lock:
            held = {run: list(members) for run, members in self._members.items() if members or all_runs}
        calls = [self._calls.renew(run, members) for run, members in held.items()]
        for run, reply in zip(held, scripts.run_many(self._connection, calls), strict=True):
            news = read_renewed(run, reply)
            if news.lost or all_runs:
                self._news.append(news)
                self._tell()
            if news.state in ("unknown", "done", "cancelled"):
                with self._lock:
                    if not self._members[run]:
                        del self._members[run], self._visibility[run]

    def _tell(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._writer, b"!")

    def _heartbeat(self) -> None:
        calls, before = self._build_heartbeats(), self.wishes
        replies = scripts.run_many(self._connection, list(calls.values()))
        self.wishes = dict(zip(calls, map(read_wishes, replies), strict=True))
        if any(
            replace(told, at=0.0) != replace(before.get(worker, Wishes()), at=0.0)
            for worker, told in self.wishes.items()
        ):
            self._tell()

    def _open(self) -> None:
        self._control.reopen()
        self._control.on()

    def _recover(self) -> None:
        """Leases stay valid until someone else claims their items, so all there is to do is to try again."""
        delay = 0.05
        while not self._stopping:
            try:
                self._open()
                return
            except ServiceFailed:
                self._pause(delay * random.uniform(0.5, 1.5))  # not all workers at the same moment
                delay = min(delay * 2, 2.0)


def _readable(seconds: float, *descriptors: int) -> list[int]:
    """Those that can be read within the time; poll, since select takes no descriptor over 1023."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(seconds * 1000)]
