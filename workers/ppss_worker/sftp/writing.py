"""A file on its way into a scratch on the master by SFTP: what file_stream.Incoming does on the master itself."""

from __future__ import annotations

import errno
from collections import deque

from ppss_worker.file_stream import Arriving
from ppss_worker.messages import Data, Header
from ppss_worker.sftp.client import IN_FLIGHT_BYTES, Sftp
from ppss_worker.sftp.packets import CLOSE, FSETSTAT, FSTAT, FSYNC, OPEN, OPEN_NEW, U64, WRITE, Facts

_HELD_BYTES = 1024 * 1024
"""Kept here until the file is open there."""


class SftpReceiving(Arriving):
    """Nothing is waited for that need not be: a failure may come with a later call, at the latest with `settle`."""

    def __init__(self, sftp: Sftp, path: str, header: Header) -> None:
        """Raises ValueError."""
        super().__init__(header, path)
        self._sftp = sftp
        self._held: list[tuple[int, Data]] = []
        self._held_bytes = 0
        self._opening = sftp.ask(OPEN, path, OPEN_NEW, Facts(mode=0o600))
        self._handle: bytes | None = None
        self._writes: deque[tuple[int, int]] = deque()
        """Requests that are under way, with the bytes of each."""
        self._writes_bytes = 0
        self._last: list[int] | None = None
        """Requests for the size, and for all else that ends a file."""
        self._closed = False

    def finish(self) -> None:
        """Asks for all that is left to be done. Raises OSError."""
        if self._last is not None or self._closed:
            return
        self._send_held()
        assert self._handle is not None
        ask, handle = self._sftp.ask, self._handle
        facts = Facts(
            size=self.size, mode=self._mode, mtime=self._mtime_ns // 1_000_000_000
        )  # the size: a hole at the end
        self._last = [ask(FSETSTAT, handle, facts), ask(FSTAT, handle)]
        if FSYNC in self._sftp.extensions:
            self._last.append(self._sftp.ask_extended(FSYNC, handle))
        self._last.append(ask(CLOSE, handle))

    def settle(self) -> None:
        """Waits until all is done. Raises OSError."""
        self.finish()
        if self._last is None:
            return
        self._settle_writes(0)
        changed, looked, *rest = self._last
        self._sftp.done(changed, self.path)
        size = self._sftp.facts(looked, self.path).size
        for number in rest:
            self._sftp.done(number, self.path)
        if size != self.size:
            raise OSError(errno.EIO, f"{size:,} bytes of {self.size:,} are there", self.path)

    def close(self) -> None:
        """Gives up: what is there is not the file, and goes with its scratch. Raises nothing but SftpLost."""
        if self._closed or self._last is not None:
            return
        self._closed = True
        self._held.clear()
        for number, _ in self._writes:
            self._sftp.forget(number)
        try:
            handle = self._handle or self._sftp.handle(self._opening, self.path)
        except OSError:
            return
        self._sftp.forget(self._sftp.ask(CLOSE, handle))

    def _write(self, at: int, data: Data) -> None:
        self._held.append((at, data))
        self._held_bytes += len(data)
        if self._handle is not None or self._held_bytes > _HELD_BYTES:
            self._send_held()

    def _send_held(self) -> None:
        if self._handle is None:
            self._handle = self._sftp.handle(self._opening, self.path)
        held, self._held, self._held_bytes = self._held, [], 0
        step = self._sftp.piece_bytes
        for at, data in held:
            for start in range(0, len(data), step):
                piece = data[start : start + step]
                number = self._sftp.ask(WRITE, self._handle, U64(at + start), piece)
                self._writes.append((number, len(piece)))
                self._writes_bytes += len(piece)
                self._settle_writes(IN_FLIGHT_BYTES)

    def _settle_writes(self, leave_bytes: int) -> None:
        while self._writes and self._writes_bytes > leave_bytes:
            number, count = self._writes.popleft()
            self._writes_bytes -= count
            self._sftp.done(number, self.path)
