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

from ppss_queue.errors import BadInput, ConnectFailed, PpssError, ServiceFailed, UnknownRun
from ppss_queue.model import Item, RunSpec, RunState
from ppss_queue.queue import Queue
from ppss_queue.replacements import expand
from ppss_worker.file_stream import GONE, failure, outgoing
from ppss_worker.messages import Header, MessageReader, packed
from ppss_worker.staging import Staging, exists, leftovers, sweep
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
    gate = FileGate(lambda data: _write(outgoing_, data))

    def read(count: int) -> bytes:
        while not select.select([incoming], [], [], SWEEP_SECONDS)[0]:
            gate.sweep()
        return os.read(incoming, count)

    with suppress(ConnectFailed):  # cut off in the middle
        for header, data in MessageReader(read):
            gate.take(header, data)
    gate.sweep()


class FileGate:
    """What one node asks for, answered with `send`."""

    def __init__(self, send: Callable[[bytes], None], open_queue: Callable[[], Queue] | None = None) -> None:
        """`open_queue`: where runs are; this user's own server unless told otherwise."""
        self._send = send
        self._open_queue = open_queue or (lambda: Queue.open(None))
        self._queue: Queue | None = None
        self._specs: dict[str, RunSpec] = {}
        self._uploads = Uploads(self._staging)

    def take(self, header: Header, data: bytes) -> None:
        """Handles one message."""
        op = str(header.get("op", ""))
        try:
            if op in ("fetch", "share"):
                for message in self._files(op, header):
                    self._send(message)
            elif (answer := self._uploads.take(op, header, data)) is not None:
                self._send(packed(answer))
        except UnknownRun as error:
            self._send(failure(UNKNOWN, str(error)))
        except ServiceFailed as error:
            self._send(failure(SERVICE, str(error)))
        except PpssError as error:
            self._send(failure(kind_of(error), str(error)))
        if op in ("fetch", "share"):
            self._send(packed({"done": True}))

    def sweep(self) -> None:
        """Removes what killed nodes left of runs that are over. Raises nothing."""
        for run, spec in list(self._specs.items()):
            if spec.output is None:
                continue
            names = leftovers(spec.output, run)  # before the look: nothing of a later retry is among them
            try:
                over = self._runs().run(run).status().state in (RunState.DONE, RunState.CANCELLED)
            except UnknownRun:
                over = True
            except PpssError:
                continue
            if over:
                sweep(spec.output, run, names)
                del self._specs[run]

    def _files(self, op: str, header: Header) -> Iterator[bytes]:
        """The messages of all files asked for, or why there is none."""
        spec, compress = self._spec(str(header["run"])), bool(header.get("compress"))
        if op == "share":
            shared = spec.shared[int(str(header["index"]))]
            yield from outgoing(os.path.join(spec.directory, shared.path), {}, compress=compress)
            return
        item = Item(0, str(header["name"]), int(str(header["root"])))
        if not spec.is_file(item) or ".." in item.name.split("/"):
            yield failure(GONE, f"{item.name!r} is no file of the run")
            return
        directory, _, base = item.name.rpartition("/")
        if header.get("skip") and spec.output and exists(spec.output, directory, base):
            yield packed({"skipped": True})
            return
        path = spec.local_path(item)
        yield from outgoing(path, {}, verify=spec.verify, compress=compress)
        for template in spec.also:
            companion = os.path.join(spec.directory, expand(template, path))
            if os.path.exists(companion):
                yield from outgoing(companion, {}, verify=spec.verify, compress=compress)

    def _staging(self, run: str) -> Staging:
        output = self._spec(run).output
        if output is None:
            raise BadInput(f"run {run} has no output directory")
        return Staging(output, run)

    def _spec(self, run: str) -> RunSpec:
        if run not in self._specs:
            self._specs[run] = self._runs().store.spec(run)
        return self._specs[run]

    def _runs(self) -> Queue:
        if self._queue is None:
            self._queue = self._open_queue()
        else:
            self._queue.connection.revive()
        return self._queue


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
