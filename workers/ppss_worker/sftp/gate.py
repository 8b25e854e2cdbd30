"""The gate for files where the master has no PPSS: served on the node, with SFTP to the master's disk.

The same protocol, the same FileGate; only its disk is far away. A thread of this process is its other end, so that
Fetching and Uploading need not know. The files that requests name are announced to the disk before their turn comes,
since each takes several round trips.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from ppss_queue.errors import ConnectFailed, PpssError
from ppss_queue.model import RunSpec
from ppss_worker.file_gate import SWEEP_SECONDS, FileGate
from ppss_worker.file_line import Channel
from ppss_worker.file_stream import TransferFailed
from ppss_worker.messages import Data, Header, MessageReader
from ppss_worker.sftp.client import Sftp
from ppss_worker.sftp.packets import SftpLost
from ppss_worker.sftp.reading import ANNOUNCED, SftpReading
from ppss_worker.sftp.staging import SftpStaging, leftovers, sweep

CLOSE_SECONDS = 5.0
"""How long the end of a connection may take."""


def open_sftp_files(
    open_sftp: Callable[[], Channel], spec_of: Callable[[str], RunSpec], is_over: Callable[[str], bool]
) -> Channel:
    """One end of a connection that speaks as `ppss gate files` does, with a thread at its other end.

    `open_sftp`: opens a channel of the SSH connection and asks for its subsystem "sftp"; NO_SFTP of sftp/client.py is
    the sentence if that is refused. `spec_of` tells what a run is, `is_over` whether none of its items is run any more;
    they are called in that thread, and raise UnknownRun, ServiceFailed. Raises ConnectFailed if there is no SFTP.

    When the SSH connection is lost this one ends. When it is closed, scratch of runs that are over is swept, for which
    `close` waits a little: this may be the end of the process.
    """
    channel = open_sftp()
    try:
        sftp = Sftp(channel)
    except BaseException:
        channel.close()
        raise
    node, here = socket.socketpair()
    serving = _Serving(here, sftp, _GivenRuns(spec_of, is_over))
    thread = threading.Thread(target=serving.run, name="sftp-files", daemon=True)
    thread.start()
    return _NodeEnd(node, thread)


class _NodeEnd:
    """What the node holds of the connection."""

    def __init__(self, end: socket.socket, thread: threading.Thread) -> None:
        self._end = end
        self._thread = thread
        self.recv = end.recv
        self.sendall = end.sendall
        self.shutdown = end.shutdown

    def close(self) -> None:
        self._end.close()
        self._thread.join(CLOSE_SECONDS)


class _GivenRuns:
    def __init__(self, spec: Callable[[str], RunSpec], is_over: Callable[[str], bool]) -> None:
        self.spec = spec
        self.is_over = is_over


class _Serving:
    """The thread."""

    def __init__(self, here: socket.socket, sftp: Sftp, runs: _GivenRuns) -> None:
        self._here = here
        self._sftp = sftp
        self._disk = SftpDisk(sftp)
        self._gate = FileGate(here.sendall, runs, self._disk)
        self._messages = MessageReader(self._receive)

    def run(self) -> None:
        """Until the node, or the master, hangs up."""
        try:
            with suppress(SftpLost, ConnectFailed, OSError):
                self._answer_all()
        finally:
            self._sftp.close()
            self._here.close()

    def _answer_all(self) -> None:
        """Raises SftpLost, OSError if the node is gone, ConnectFailed if it was cut off within a message."""
        waiting: deque[tuple[Header, Data, list[str]]] = deque()
        ended = False
        while waiting or not ended:
            while not ended and len(waiting) < ANNOUNCED and (not waiting or self._has_more()):
                message = self._messages.read()
                if message is None:
                    ended = True
                    break
                waiting.append((*message, self._announced(message[0])))
                if not waiting[-1][2]:
                    break  # its turn is next: nothing that comes after it may happen before
            if waiting:
                header, data, paths = waiting.popleft()
                self._gate.take(header, data)
                self._disk.reading.forget(paths)
        self._gate.sweep()

    def _announced(self, header: Header) -> list[str]:
        """Paths of the files that the message will ask for."""
        if header.get("op") not in ("fetch", "share"):
            return []
        try:
            paths = self._gate.wanted(header)
        except (PpssError, TransferFailed):  # said when its turn comes
            return []
        self._disk.reading.announce(paths)
        return paths

    def _has_more(self) -> bool:
        return self._messages.buffered or bool(select.select([self._here], [], [], 0)[0])

    def _receive(self, count: int) -> bytes:
        while not select.select([self._here], [], [], SWEEP_SECONDS)[0]:
            self._gate.sweep()
        return self._here.recv(count)


class SftpDisk:
    """The master's; see disk.Disk. Every method raises SftpLost when the connection is gone."""

    def __init__(self, sftp: Sftp) -> None:
        self._sftp = sftp
        self.reading = SftpReading(sftp)
        self._stagings: dict[tuple[str, str], SftpStaging] = {}

    def outgoing(self, path: str, *, verify: bool, compress: bool) -> Iterator[bytes]:
        """Never deflated: its way over the network is behind it."""
        return self.reading.outgoing(path, verify=verify)

    def exists(self, path: str) -> bool:
        return self.reading.exists(path)

    def lexists(self, path: str) -> bool:
        try:
            return self._sftp.lstat(path) is not None
        except OSError:
            return False

    def staging(self, output: str, run: str) -> SftpStaging:
        return self._stagings.setdefault((output, run), SftpStaging(self._sftp, output, run))

    def leftovers(self, output: str, run: str) -> list[str]:
        return leftovers(self._sftp, output, run)

    def sweep(self, output: str, run: str, names: Sequence[str]) -> None:
        sweep(self._sftp, output, run, names)
