"""A file on its way into a scratch on the master by SFTP: what file_stream.Incoming does on the master itself."""

from __future__ import annotations

import errno
import hashlib
from collections import deque

from ppss_worker.file_stream import CHANGED, TransferFailed, inflated
from ppss_worker.messages import Header
from ppss_worker.sftp.client import IN_FLIGHT_BYTES, Sftp
from ppss_worker.sftp.packets import CLOSE, FSETSTAT, FSTAT, FSYNC, OPEN, OPEN_NEW, U64, WRITE, Facts

_HELD_BYTES = 1024 * 1024
"""Kept here until the file is open there."""


class SftpReceiving:
    """Nothing is waited for that need not be: a failure may come with a later call, at the latest with `settle`."""

    def __init__(self, sftp: Sftp, path: str, header: Header) -> None:
        """Raises ValueError."""
        self._sftp = sftp
        self._path = path
        self._size = int(str(header["size"]))
        self._mode = int(str(header["mode"])) & 0o7777
        self._mtime = int(str(header["mtime_ns"])) // 1_000_000_000
        self._digest = hashlib.sha256() if header.get("verify") else None
        self._at = 0
        self._held: list[tuple[int, bytes]] = []
        self._held_bytes = 0
        self._opening = sftp.ask(OPEN, path, OPEN_NEW, Facts(mode=0o600))
        self._handle: bytes | None = None
        self._writes: deque[tuple[int, int]] = deque()
        """Requests that are under way, with the bytes of each."""
        self._writes_bytes = 0
        self._last: list[int] | None = None
        """Requests for the size, and for all else that ends a file."""
        self._closed = False

    def take(self, header: Header, data: bytes) -> bool:
        """The next message; True: it was the last. Raises OSError, TransferFailed; call `close` then."""
        if "failed" in header:
            raise TransferFailed(str(header.get("kind")), str(header["failed"]))
        if "end" in header:
            self._check(header.get("sha256"))
            return True
        if "hole" in header:
            self._at += int(str(header["hole"]))
            return False
        if header.get("z"):
            data = inflated(data)
        if self._digest is not None:
            self._digest.update(data)
        self._held.append((self._at, data))
        self._held_bytes += len(data)
        self._at += len(data)
        if self._handle is not None or self._held_bytes > _HELD_BYTES:
            self._write()
        return False

    def finish(self) -> None:
        """Asks for all that is left to be done. Raises OSError."""
        if self._last is not None or self._closed:
            return
        self._write()
        assert self._handle is not None
        ask, handle = self._sftp.ask, self._handle
        facts = Facts(size=self._size, mode=self._mode, mtime=self._mtime)  # the size: a hole at the end
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
        self._sftp.done(changed, self._path)
        size = self._sftp.facts(looked, self._path).size
        for number in rest:
            self._sftp.done(number, self._path)
        if size != self._size:
            raise OSError(errno.EIO, f"{size:,} bytes of {self._size:,} are there", self._path)

    def close(self) -> None:
        """Gives up: what is there is not the file, and goes with its scratch. Raises nothing but SftpLost."""
        if self._closed or self._last is not None:
            return
        self._closed = True
        self._held.clear()
        for number, _ in self._writes:
            self._sftp.forget(number)
        try:
            handle = self._handle or self._sftp.handle(self._opening, self._path)
        except OSError:
            return
        self._sftp.forget(self._sftp.ask(CLOSE, handle))

    def _check(self, sha256: object) -> None:
        if self._at != self._size:
            raise TransferFailed(CHANGED, f"{self._at:,} bytes of {self._size:,} came of {self._path!r}")
        if self._digest is not None and sha256 != self._digest.hexdigest():
            raise TransferFailed(CHANGED, f"{self._path!r} does not have the hash that it has at its source")

    def _write(self) -> None:
        if self._handle is None:
            self._handle = self._sftp.handle(self._opening, self._path)
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
            self._sftp.done(number, self._path)
