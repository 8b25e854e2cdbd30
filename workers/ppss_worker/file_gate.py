"""The file half of the gate: on the master, gives one node the files of runs and takes their outputs.

    {"op": "fetch", "run", "root", "name", "skip": bool, "compress": bool}
                                        is answered by the files of the item, as file_stream.py has them, then
                                        {"done": true}; or {"skipped": true}
    {"op": "share", "run", "index", "compress": bool}         the same for one of the files of --with

and the messages of uploads.py. Only what a run in Redis names is given or written: its items and their companions,
its shared files, its output directory.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

from ppss_queue.errors import BadInput, ConnectFailed, PpssError, ServiceFailed, UnknownRun
from ppss_queue.model import Item, RunSpec, RunState
from ppss_queue.queue import Queue
from ppss_queue.replacements import expand
from ppss_worker.disk import Disk, OwnDisk, UploadStaging
from ppss_worker.file_stream import GONE, TransferFailed, failure
from ppss_worker.messages import Data, Header, MessageReader, joined, keep_freed_memory, packed
from ppss_worker.uploads import Uploads, kind_of

SERVICE = "service"
"""Kind of a failure: the master's Redis can't tell of the run now."""
UNKNOWN = "unknown"
"""The run was purged."""
SWEEP_SECONDS = 60.0
"""A node that asks for nothing is a good time to look for what others left."""


def serve(incoming: int, outgoing_: int) -> None:
    """Answers one node (two descriptors) until it hangs up. Raises nothing that the node could mend."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the node is gone: so is what this is for
    keep_freed_memory()
    runs = QueueRuns(lambda: Queue.open(None))  # this user's own server
    gate = FileGate(lambda data: _write(outgoing_, data), runs, OwnDisk())

    def read(count: int) -> bytes:
        while not select.select([incoming], [], [], SWEEP_SECONDS)[0]:
            gate.sweep()
        return os.read(incoming, count)

    with suppress(ConnectFailed):  # cut off in the middle
        for header, data in MessageReader(read):
            gate.take(header, data)
    gate.sweep()


class Runs(Protocol):
    """What the gate asks of Redis. Both raise UnknownRun, ServiceFailed."""

    def spec(self, run: str, /) -> RunSpec: ...
    def is_over(self, run: str, /) -> bool:
        """Whether none of its items is run any more."""


class QueueRuns:
    """Those of a queue, which is opened when the first is asked for."""

    def __init__(self, open_queue: Callable[[], Queue]) -> None:
        self._open_queue = open_queue
        self._queue: Queue | None = None

    def spec(self, run: str) -> RunSpec:
        return self._alive().store.spec(run)

    def is_over(self, run: str) -> bool:
        return self._alive().run(run).status().state in (RunState.DONE, RunState.CANCELLED)

    def _alive(self) -> Queue:
        if self._queue is None:
            self._queue = self._open_queue()
        else:
            self._queue.connection.revive()
        return self._queue


class FileGate:
    """What one node asks for, answered with `send`."""

    def __init__(self, send: Callable[[bytes], None], runs: Runs, disk: Disk) -> None:
        self._send = send
        self._runs = runs
        self._disk = disk
        self._specs: dict[str, RunSpec] = {}
        self._uploads = Uploads(self._staging)

    def take(self, header: Header, data: Data) -> None:
        """Handles one message."""
        op = str(header.get("op", ""))
        if op in ("fetch", "share"):
            for piece in joined(self._all_of(op, header)):
                self._send(piece)
            return
        try:
            if (answer := self._uploads.take(op, header, data)) is not None:
                self._send(packed(answer))
        except PpssError as error:
            self._send(_told(error))

    def sweep(self) -> None:
        """Removes what killed nodes left of runs that are over. Raises nothing."""
        for run, spec in list(self._specs.items()):
            if spec.output is None:
                continue
            names = self._disk.leftovers(
                spec.output, run
            )  # before the look: nothing of a later retry is in it
            try:
                over = self._runs.is_over(run)
            except UnknownRun:
                over = True
            except PpssError:
                continue
            if over:
                self._disk.sweep(spec.output, run, names)
                del self._specs[run]

    def wanted(self, header: Header) -> list[str]:
        """Paths of the files that a request for some is about, companions that may not be there too.

        Raises PpssError, or TransferFailed for what is no file of the run.
        """
        spec = self._spec(str(header["run"]))
        if header["op"] == "share":
            return [os.path.join(spec.directory, spec.shared[int(str(header["index"]))].path)]
        item = Item(0, str(header["name"]), int(str(header["root"])))
        if not spec.is_file(item) or ".." in item.name.split("/"):
            raise TransferFailed(GONE, f"{item.name!r} is no file of the run")
        path = spec.local_path(item)
        return [path, *(os.path.join(spec.directory, expand(template, path)) for template in spec.also)]

    def _all_of(self, op: str, header: Header) -> Iterator[bytes]:
        """The whole answer to a request for files."""
        try:
            yield from self._files(op, header)
        except PpssError as error:
            yield _told(error)
        yield packed({"done": True})

    def _files(self, op: str, header: Header) -> Iterator[bytes]:
        """The messages of all files asked for, or why there is none."""
        try:
            path, *companions = self.wanted(header)
        except TransferFailed as failed:
            yield failure(failed.kind, str(failed))
            return
        spec = self._spec(str(header["run"]))
        if header.get("skip") and spec.output:
            directory, _, base = str(header["name"]).rpartition("/")
            if self._disk.lexists(os.path.join(spec.output, directory, base)):
                yield packed({"skipped": True})
                return
        verify = spec.verify and op == "fetch"
        compress = bool(header.get("compress"))
        yield from self._disk.outgoing(path, verify=verify, compress=compress)
        for companion in companions:
            if self._disk.exists(companion):
                yield from self._disk.outgoing(companion, verify=verify, compress=compress)

    def _staging(self, run: str) -> UploadStaging:
        output = self._spec(run).output
        if output is None:
            raise BadInput(f"run {run} has no output directory")
        return self._disk.staging(output, run)

    def _spec(self, run: str) -> RunSpec:
        if run not in self._specs:
            self._specs[run] = self._runs.spec(run)
        return self._specs[run]


def _told(error: PpssError) -> bytes:
    """The message that something can't be done, with whose fault that is."""
    if isinstance(error, UnknownRun):
        return failure(UNKNOWN, str(error))
    return failure(SERVICE if isinstance(error, ServiceFailed) else kind_of(error), str(error))


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
