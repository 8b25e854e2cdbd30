"""Starts what an attempt executes: a command, with or without its output streamed, or a Python function."""

from __future__ import annotations

import selectors
from collections.abc import Callable
from functools import partial

from ppss_queue.command import ItemValues
from ppss_queue.model import Lease
from ppss_worker.functions import FunctionHost
from ppss_worker.process import Child, Spawner
from ppss_worker.runs import ActiveRun
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
        self._hosts: dict[int, tuple[str, FunctionHost]] = {}
        """Run and process by slot."""
        self._shells = ShellHosts(spawner)

    def start(self, lease: Lease, run: ActiveRun, values: ItemValues, directory: str) -> Child:
        """`directory`: where a command runs. Raises SpawnFailed, DirectoryMissing, MachineFailed."""
        if run.function is not None:
            return self._call(run, run.function, lease, values)
        assert run.command is not None
        invocation = run.command.bind(values)
        own = {**run.variables(lease, values), **invocation.variables}
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

    def _call(self, run: ActiveRun, name: str, lease: Lease, values: ItemValues) -> Child:
        known, host = self._hosts.pop(values.slot, ("", None))
        if host is not None and (known != run.id or host.child.reaped):
            host.close()
            host = None
        if host is None:
            host = FunctionHost(self._spawner, self._selector, name, run.environment, run.spec.directory)
        self._hosts[values.slot] = run.id, host
        host.call(values.item, run.variables(lease, values), partial(self._on_answer, host.child.pid))
        return host.child
