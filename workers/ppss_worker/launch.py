"""Starts what an attempt executes: a command, with or without its output streamed, or a Python function."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Mapping
from functools import partial

from ppss_queue.command import ItemValues
from ppss_queue.model import Lease
from ppss_worker.functions import FunctionHost
from ppss_worker.process import Child, Spawner
from ppss_worker.runs import GPUS, ActiveRun
from ppss_worker.shell_host import ShellHosts
from ppss_worker.streams import Stream


class Launcher:
    """One per worker. A child that it returns is finished and released by it."""

    def __init__(
        self,
        spawner: Spawner,
        selector: selectors.BaseSelector,
        on_answer: Callable[[int, dict[str, object]], None],
        on_output: Callable[[Lease, int, bytes], None] | None,
    ) -> None:
        """`on_answer`: a function (pid of its process) is done with an item. `on_output`: stream outputs to it."""
        self._spawner = spawner
        self._selector = selector
        self._on_answer = on_answer
        self._on_output = on_output
        self._streams: dict[int, Stream] = {}
        self._hosts: dict[int, tuple[tuple[str, str | None], FunctionHost]] = {}
        """What it was made for, and process, by slot."""
        self._shells = ShellHosts(spawner)

    def start(
        self, lease: Lease, run: ActiveRun, values: ItemValues, own: Mapping[str, str], directory: str
    ) -> Child:
        """`own`: what this attempt alone sees (ActiveRun.variables); `directory`: where a command runs.

        Raises SpawnFailed, DirectoryMissing, MachineFailed.
        """
        if GPUS in own:
            self._leave_gpus(own[GPUS], but=(values.slot, run.id))
        if run.function is not None:
            return self._call(run, run.function, values, own)
        assert run.command is not None
        invocation = run.command.bind(values)
        own = {**own, **invocation.variables}
        in_place = directory == run.spec.directory  # that is where the shells wait
        if run.command.unaware and self._on_output is None and in_place:
            child = self._shells.start(run, values.slot, own)
            if child is not None:
                return child
        variables = {**run.environment, **own}
        if self._on_output is None:
            return self._spawner.spawn(invocation.argv, variables, directory)
        stream = Stream(self._selector, self._spawner.captures, partial(self._on_output, lease))
        child = None
        try:
            child = self._spawner.spawn(
                invocation.argv, variables, directory, stream.writers[1], stream.writers[2]
            )
        finally:
            stream.attach(child)
        self._streams[child.pid] = stream
        return child

    def finish(self, child: Child) -> None:
        """The attempt is over: its output is complete in the capture files after this, its `began` is right."""
        self._shells.finish(child)
        stream = self._streams.pop(child.pid, None)
        if stream is not None:
            stream.finish()

    def release(self, child: Child) -> None:
        """Its output was read. A function's process stays for the next item, unless it has ended."""
        for slot, (_, host) in self._hosts.items():
            if host.child is child:
                if child.reaped:
                    host.close()
                    del self._hosts[slot]
                return
        child.close()

    def close(self) -> None:
        """Ends the processes that wait for items."""
        self._shells.close()
        while self._hosts:
            _, (_, host) = self._hosts.popitem()
            host.close()

    def _leave_gpus(self, names: str, *, but: tuple[int, str]) -> None:
        """Ends the processes that wait for items and may still fill the memory of these GPUs: not that of (slot, run)
        which has used just these."""
        for slot, ((run, used), host) in list(self._hosts.items()):
            if (slot, run) == but and used == names:
                continue
            if used is not None and not set(names.split(",")).isdisjoint(used.split(",")):
                host.close()
                del self._hosts[slot]

    def _call(self, run: ActiveRun, name: str, values: ItemValues, own: Mapping[str, str]) -> Child:
        wanted = run.id, own.get(GPUS)  # a process that has once used a GPU can't leave it
        known, host = self._hosts.pop(values.slot, (None, None))
        if host is not None and (known != wanted or host.child.reaped):
            host.close()
            host = None
        if host is None:
            host = FunctionHost(self._spawner, self._selector, name, run.environment, run.spec.directory)
        self._hosts[values.slot] = wanted, host
        host.call(values.item, own, partial(self._on_answer, host.child.pid))
        return host.child
