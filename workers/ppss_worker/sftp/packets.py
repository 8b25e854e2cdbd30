"""Packets of SFTP version 3: how requests are packed and answers taken apart."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

INIT, VERSION = 1, 2
"""Kinds of packets; requests first."""
OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR, REMOVE, MKDIR, RMDIR = range(
    3, 16
)
STAT, SYMLINK = 17, 20
STATUS, HANDLE, DATA, NAME, ATTRIBUTES = range(101, 106)
EXTENDED, EXTENDED_REPLY = 200, 201
_OK, _END_OF_FILE = 0, 1
OPEN_READ = 0x01
OPEN_NEW = 0x02 | 0x08 | 0x20
"""For writing, made by this, refused if anything is there."""
_ERRNOS = {2: errno.ENOENT, 3: errno.EACCES, 5: errno.EINVAL, 8: errno.EOPNOTSUPP}
_SIZE, _OWNER, _MODE, _TIMES, _MORE = 0x01, 0x02, 0x04, 0x08, 0x80000000
READ_ONLY = 1
"""A flag of statvfs@openssh.com."""
PACKET_BYTES = 16 * 1024 * 1024
"""No answer is longer; what is comes from no SFTP server."""
FSYNC, RENAME, STATVFS, LIMITS = (
    f"{name}@openssh.com" for name in ("fsync", "posix-rename", "statvfs", "limits")
)


class U64(int):
    """A number that takes eight bytes."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server tells, or is told, of a file; None: nothing."""

    size: int | None = None
    mode: int | None = None
    mtime: int | None = None
    """Seconds; version 3 has no parts of them."""

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode or 0)

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def word(self) -> str:
        return {stat.S_IFDIR: "directory", stat.S_IFLNK: "symbolic link"}.get(self.kind, "file")


class Unexplained(OSError):
    """The server says that it failed, and no more. Its errno is EIO unless somebody finds out."""


class SftpLost(Exception):
    """The connection is gone, or whoever is at its other end does not speak SFTP; no PpssError, since the thread
    that serves it has nobody to tell, and ends."""


class Fields:
    """Takes a packet apart."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._body)

    def number(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def long(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def text(self) -> bytes:
        return self._take(self.number())

    def facts(self) -> Facts:
        flags = self.number()
        size = self.long() if flags & _SIZE else None
        if flags & _OWNER:
            self._take(8)
        mode = self.number() if flags & _MODE else None
        mtime = None
        if flags & _TIMES:
            self.number()
            mtime = self.number()
        for _ in range(self.number() if flags & _MORE else 0):
            self.text(), self.text()
        return Facts(size, mode, mtime)

    def names(self) -> list[tuple[str, Facts]]:
        found = []
        for _ in range(self.number()):
            name = os.fsdecode(self.text())
            self.text()
            found.append((name, self.facts()))
        return found

    def _take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._body):
            raise SftpLost("the other end does not speak SFTP")
        return self._body[start : self._at]


def packed(field: str | bytes | memoryview | int | Facts) -> bytes:
    if isinstance(field, U64):
        return field.to_bytes(8, "big")
    if isinstance(field, int):
        return field.to_bytes(4, "big")
    if isinstance(field, Facts):
        flags, packed = 0, b""
        if field.size is not None:
            flags, packed = flags | _SIZE, field.size.to_bytes(8, "big")
        if field.mode is not None:
            flags, packed = flags | _MODE, packed + field.mode.to_bytes(4, "big")
        if field.mtime is not None:
            seconds = min(max(field.mtime, 0), 0xFFFFFFFF).to_bytes(4, "big")
            flags, packed = flags | _TIMES, packed + seconds * 2
        return flags.to_bytes(4, "big") + packed
    text = os.fsencode(field) if isinstance(field, str) else field
    return len(text).to_bytes(4, "big") + text


def raise_status(code: int, path: str) -> None:
    if code == _OK:
        return
    if code == _END_OF_FILE:
        raise EOFError
    number = _ERRNOS.get(code)
    if number is not None:
        raise OSError(number, os.strerror(number), path)
    raise Unexplained(errno.EIO, "its sshd says 'failure' and no more", path)
