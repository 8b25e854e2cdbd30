"""Files of the master as messages, read by SFTP: what file_stream.outgoing does on the master itself.

A small file takes three round trips: is it a regular file (opening a pipe would wait for its writer, and with it
all that is asked later), open, read. So files that will be wanted are announced, and go through these steps together.
That a file was written to meanwhile is seen by its size and the *second* of its mtime: version 3 tells no more.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from ppss_worker.file_stream import CHANGED, GONE, MACHINE, TransferFailed, failure
from ppss_worker.messages import packed
from ppss_worker.sftp.client import Sftp
from ppss_worker.sftp.packets import CLOSE, FSTAT, OPEN, OPEN_READ, READ, STAT, U64, Facts, Unexplained

ANNOUNCED = 64
"""Files that may be announced."""
_OPENED = 32
"""Of these, how many may be open, and of those how many read ahead of their turn."""
_READ_AHEAD = 8


class SftpReading:
    """Reads files in the order in which they were announced, or without that, which takes longer."""

    def __init__(self, sftp: Sftp) -> None:
        self._sftp = sftp
        self._announced: deque[_Source] = deque()

    def announce(self, paths: list[str]) -> None:
        """They will be asked for soon, or not if there is no such file."""
        self._announced.extend(_Source(self._sftp, path) for path in paths)

    def forget(self, paths: list[str]) -> None:
        """Those that were announced first are not wanted any more, or were read."""
        for path in paths:
            if self._announced and self._announced[0].path == path:
                self._announced.popleft().close()

    def exists(self, path: str) -> bool:
        """Raises SftpLost."""
        source = self._source(path)
        self._go_ahead()
        return source.facts is not None

    def outgoing(self, path: str, *, verify: bool) -> Iterator[bytes]:
        """The messages of one regular file; a failure is the last of them. Raises SftpLost."""
        try:
            source = self._source(path)
            self._go_ahead()
            try:
                yield from source.messages(verify)
            finally:
                source.close()
        except OSError as error:
            kind = MACHINE if isinstance(error, Unexplained) else GONE
            yield failure(kind, f"{path!r} can't be read: {error.strerror}")
        except TransferFailed as failed:
            yield failure(failed.kind, str(failed))

    def _source(self, path: str) -> _Source:
        for source in self._announced:
            if source.path == path and not source.closed:
                return source
        return _Source(self._sftp, path)

    def _go_ahead(self) -> None:
        """Takes those whose turn is near a step further; their answers have come meanwhile."""
        for source in islice(self._announced, _OPENED):
            source.begin_open()
        for source in islice(self._announced, _READ_AHEAD):
            source.begin_read()


class _Source:
    """A file on its way through stat, open and read. Each step is asked for early, and waited for when needed."""

    def __init__(self, sftp: Sftp, path: str) -> None:
        self.path = path
        self.closed = False
        self._sftp = sftp
        self._stat: int | None = sftp.ask(STAT, path)
        self._facts: Facts | None = None
        self._error: OSError | None = None
        self._open: int | None = None
        self._handle: bytes | None = None
        self._first: tuple[int, int, int] | None = None
        """Requests for the facts before, the first piece, and the facts after it."""

    @property
    def facts(self) -> Facts | None:
        """None: it can't be looked at."""
        if self._stat is not None:
            number, self._stat = self._stat, None
            try:
                self._facts = self._sftp.facts(number, self.path)
            except OSError as error:
                self._error = error
        return self._facts

    def begin_open(self) -> None:
        facts = self.facts
        if facts is not None and stat.S_ISREG(facts.mode or 0) and self._open is None and not self.closed:
            self._open = self._sftp.ask(OPEN, self.path, OPEN_READ, Facts())

    def begin_read(self) -> None:
        if self._open is None or self._handle is not None or self._error is not None or self.closed:
            return
        try:
            self._handle = handle = self._sftp.handle(self._open, self.path)
        except OSError as error:
            self._error = error
            return
        ask, piece = self._sftp.ask, self._sftp.piece_bytes
        self._first = ask(FSTAT, handle), ask(READ, handle, U64(0), piece), ask(FSTAT, handle)

    def messages(self, verify: bool) -> Iterator[bytes]:
        """Raises OSError, TransferFailed, SftpLost."""
        self.begin_open()
        self.begin_read()
        if self._error is not None:
            raise self._error
        if self._handle is None or self._first is None:
            raise TransferFailed(GONE, f"{self.path!r} is no regular file")
        number, first, number_after = self._first
        before = self._sftp.facts(number, self.path)
        if before.size is None or before.mtime is None:
            raise TransferFailed(MACHINE, "the master's SFTP does not tell sizes and times of files")
        size = before.size
        yield packed(
            {
                "file": os.path.basename(self.path),
                "size": size,
                "mode": stat.S_IMODE(before.mode or 0),
                "mtime_ns": before.mtime * 1_000_000_000,
                "verify": verify,
            }
        )
        digest = hashlib.sha256() if verify else None
        for piece in self._pieces(self._handle, size, first):
            if piece.count(0) == len(piece):  # it may be a hole, of which SFTP does not tell
                yield packed({"hole": len(piece)})
                continue
            if digest is not None:
                digest.update(piece)
            yield packed({}, piece)
        after = self._sftp.facts(number_after, self.path)
        if size > self._sftp.piece_bytes:
            after = self._sftp.facts(self._sftp.ask(FSTAT, self._handle), self.path)
        if (after.size, after.mtime) != (before.size, before.mtime):
            raise TransferFailed(CHANGED, f"{self.path!r} was written to while it was copied")
        yield packed({"end": True, "sha256": digest.hexdigest() if digest else None})

    def _pieces(self, handle: bytes, size: int, first: int) -> Iterator[bytes]:
        """The data. Raises TransferFailed if there is less than `size`."""
        piece_bytes = self._sftp.piece_bytes
        asked = deque([(0, min(piece_bytes, size), first)])
        asked_to = piece_bytes
        try:
            while asked:
                while asked_to < size and len(asked) < self._sftp.pieces_in_flight:
                    count = min(piece_bytes, size - asked_to)
                    asked.append((asked_to, count, self._sftp.ask(READ, handle, U64(asked_to), count)))
                    asked_to += count
                at, count, number = asked.popleft()
                data = self._sftp.data(number, self.path)[:count]
                if not data and count:
                    raise TransferFailed(CHANGED, "it became shorter while it was copied")
                if len(data) < count:  # a server may give less than it was asked for
                    rest = self._sftp.ask(READ, handle, U64(at + len(data)), count - len(data))
                    asked.appendleft((at + len(data), count - len(data), rest))
                if data:
                    yield data
        finally:
            for _, _, number in asked:
                self._sftp.forget(number)

    def close(self) -> None:
        """Lets go of it, however far it has come. Raises nothing but SftpLost."""
        if self.closed:
            return
        self.closed = True
        for number in (self._stat, *(self._first or ())):
            if number is not None:
                self._sftp.forget(number)
        if self._open is not None and self._handle is None and self._error is None:
            with suppress(OSError):
                self._handle = self._sftp.handle(self._open, self.path)
        if self._handle is not None:
            self._sftp.forget(self._sftp.ask(CLOSE, self._handle))
