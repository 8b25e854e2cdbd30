"""A client of SFTP (version 3, as OpenSSH speaks it) over one channel, with any number of requests on the way.

Not paramiko's: that can't list names that are no UTF-8, forgets which extensions the server has, and reads ahead in a
thread of its own for each file. Paths are `str` with surrogateescape here as everywhere, bytes on the wire.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from contextlib import suppress

from ppss_queue.errors import ConnectFailed
from ppss_worker.file_line import Channel
from ppss_worker.sftp.packets import (
    ATTRIBUTES,
    CLOSE,
    DATA,
    EXTENDED,
    EXTENDED_REPLY,
    HANDLE,
    INIT,
    LIMITS,
    LSTAT,
    MKDIR,
    NAME,
    OPENDIR,
    PACKET_BYTES,
    READ_ONLY,
    READDIR,
    STATUS,
    STATVFS,
    VERSION,
    Facts,
    Fields,
    SftpLost,
    Unexplained,
    packed,
    raise_status,
)

_FLUSH_BYTES = 64 * 1024
_RECEIVE_BYTES = 256 * 1024
_PIECE_BYTES = (32 * 1024, 261_120)
"""Data of one request: what every server takes, and what OpenSSH takes (256 KiB less 1 KiB for the rest)."""
IN_FLIGHT_BYTES = 4 * 1024 * 1024
"""Data of all requests on the way: enough for 50 MB/s at a round trip of 80 ms."""
SMALL_IN_FLIGHT = 256
"""Other requests on the way at once: a server that can't get rid of its answers takes no more of them."""


class Sftp:
    """One session, for one thread. Every method raises SftpLost once the connection is gone."""

    def __init__(self, channel: Channel) -> None:
        """Raises ConnectFailed if no SFTP server answers there."""
        self._channel = channel
        self._unsent = bytearray()
        self._received = bytearray()
        self._answers: dict[int, tuple[int, Fields]] = {}
        self._awaited: set[int] = set()
        self._last = 0
        self.extensions: frozenset[str] = frozenset()
        self.piece_bytes = _PIECE_BYTES[0]
        """Data of one request at most."""
        try:
            self._greet()
        except _Closed:
            raise ConnectFailed(NO_SFTP) from None
        except SftpLost:
            raise ConnectFailed(_OTHER_TALK) from None

    @property
    def pieces_in_flight(self) -> int:
        """How many requests for data may be on the way."""
        return max(2, IN_FLIGHT_BYTES // self.piece_bytes)

    def close(self) -> None:
        """Raises nothing."""
        with suppress(Exception):
            self._channel.close()

    # Asking. All give the number of the request; whoever asks takes the answer, or calls `forget`.

    def ask(self, kind: int, *fields: str | bytes | memoryview | int | Facts) -> int:
        """Text and bytes go with their length, numbers as 32 bits unless U64. Sent with the next ones."""
        self._last = (self._last + 1) & 0xFFFFFFFF
        self._awaited.add(self._last)
        body = b"".join(map(packed, fields))
        self._unsent += struct.pack(">IBI", len(body) + 5, kind, self._last) + body
        if len(self._unsent) >= _FLUSH_BYTES:
            self.flush()
        return self._last

    def ask_extended(self, extension: str, *fields: str | bytes | int) -> int:
        return self.ask(EXTENDED, extension, *fields)

    def forget(self, number: int) -> None:
        """Nobody will take this answer; nothing if it was taken."""
        self._answers.pop(number, None)
        self._awaited.discard(number)

    def flush(self) -> None:
        """Sends what was asked for."""
        unsent, self._unsent = self._unsent, bytearray()
        if unsent:
            try:
                self._channel.sendall(bytes(unsent))
            except Exception as error:  # paramiko has errors of its own besides OSError and EOFError
                raise _Closed(str(error)) from None

    # Answers. All wait, and raise OSError with the server's reason: Unexplained if it has none.

    def done(self, number: int, path: str = "") -> None:
        self._answer(number, STATUS, path)

    def handle(self, number: int, path: str = "") -> bytes:
        return self._answer(number, HANDLE, path).text()

    def facts(self, number: int, path: str = "") -> Facts:
        return self._answer(number, ATTRIBUTES, path).facts()

    def data(self, number: int, path: str = "") -> bytes:
        """b"" at the end of the file."""
        try:
            return self._answer(number, DATA, path).text()
        except EOFError:
            return b""

    # Whole operations

    def lstat(self, path: str) -> Facts | None:
        """None: nothing is there."""
        try:
            return self.facts(self.ask(LSTAT, path), path)
        except FileNotFoundError:
            return None

    def look_at(self, paths: Iterable[str]) -> dict[str, Facts | None]:
        """`lstat` of each."""
        wanted = list(dict.fromkeys(paths))
        found: dict[str, Facts | None] = {}
        for start in range(0, len(wanted), SMALL_IN_FLIGHT):
            asked = [(path, self.ask(LSTAT, path)) for path in wanted[start : start + SMALL_IN_FLIGHT]]
            for path, number in asked:
                try:
                    found[path] = self.facts(number, path)
                except FileNotFoundError:
                    found[path] = None
        return found

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        """Raises FileExistsError, as others do."""
        try:
            self.done(self.ask(MKDIR, path, Facts(mode=mode)), path)
        except Unexplained:
            if self.lstat(path) is None:
                raise
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None

    def listdir(self, path: str) -> list[tuple[str, Facts]]:
        """All names in a directory, with what a look at each tells that follows no link."""
        return self.entries(self.ask(OPENDIR, path), path)

    def entries(self, opening: int, path: str) -> list[tuple[str, Facts]]:
        """`listdir`, of a directory whose opening was asked for already."""
        handle = self.handle(opening, path)
        found: list[tuple[str, Facts]] = []
        asked = [self.ask(READDIR, handle) for _ in range(2)]  # names, and the end of them
        try:
            while True:
                found += self._answer(asked.pop(0), NAME, path).names()
                asked.append(self.ask(READDIR, handle))
        except EOFError:
            return [(name, facts) for name, facts in found if name not in (".", "..")]
        finally:
            for number in asked:
                self.forget(number)
            self.forget(self.ask(CLOSE, handle))

    def disk_trouble(self, path: str) -> int:
        """The errno that explains why nothing can be written there: no room, read-only; 0 if neither is so."""
        if STATVFS not in self.extensions:
            return 0
        try:
            fields = self._answer(self.ask_extended(STATVFS, path), EXTENDED_REPLY, path)
        except OSError:
            return 0
        _, _, _, _, available, files, _, files_available, _, flags, _ = (fields.long() for _ in range(11))
        if flags & READ_ONLY:
            return errno.EROFS
        return errno.ENOSPC if not available or (files and not files_available) else 0

    def device(self, path: str) -> int | None:
        """What tells file systems apart; None if the server does not say."""
        if STATVFS not in self.extensions:
            return None
        with suppress(OSError):
            fields = self._answer(self.ask_extended(STATVFS, path), EXTENDED_REPLY, path)
            return [fields.long() for _ in range(11)][8]
        return None

    # The wire

    def _greet(self) -> None:
        self._unsent += struct.pack(">IBI", 5, INIT, 3)
        kind, fields = self._packet()
        if kind != VERSION:
            raise _garbled()
        fields.number()
        names = []
        while fields.more:
            names.append(os.fsdecode(fields.text()))
            fields.text()
        self.extensions = frozenset(names)
        if LIMITS in self.extensions:
            with suppress(OSError):
                limits = self._answer(self.ask_extended(LIMITS), EXTENDED_REPLY, "")
                _, reading, writing = limits.long(), limits.long(), limits.long()
                self.piece_bytes = min(*(limit for limit in (reading, writing) if limit), _PIECE_BYTES[1])

    def _answer(self, number: int, kind: int, path: str) -> Fields:
        while number not in self._answers:
            found, fields = self._packet()
            answered = fields.number()
            if answered in self._awaited:
                self._awaited.remove(answered)
                self._answers[answered] = found, fields
        found, fields = self._answers.pop(number)
        if found == STATUS:
            raise_status(fields.number(), path)
        if found != kind:
            raise _garbled()
        return fields

    def _packet(self) -> tuple[int, Fields]:
        self.flush()
        self._fill(5)
        length, kind = struct.unpack_from(">IB", self._received)
        if not 1 <= length <= PACKET_BYTES:
            raise _garbled()
        self._fill(length + 4)
        with memoryview(self._received) as view:
            body = bytes(view[5 : length + 4])
        del self._received[: length + 4]
        return kind, Fields(body)

    def _fill(self, count: int) -> None:
        while len(self._received) < count:
            try:
                piece = self._channel.recv(_RECEIVE_BYTES)
            except Exception as error:  # as in `flush`
                raise _Closed(str(error)) from None
            if not piece:
                raise _Closed("closed")
            self._received += piece


class _Closed(SftpLost):
    pass


def _garbled() -> SftpLost:
    return SftpLost("the other end does not speak SFTP")


NO_SFTP = (
    "the master's sshd has no SFTP, so files can't be copied. Allow it there (Subsystem sftp internal-sftp), "
    "or install PPSS on the master."
)
"""For whoever opens the channel, too."""


_OTHER_TALK = (
    "the master's sshd has no SFTP, or something that a start-up file of its shell prints comes first. "
    "See what `sftp` says, or install PPSS on the master."
)
