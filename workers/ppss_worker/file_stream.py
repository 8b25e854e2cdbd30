"""A file as messages: what it is, its data with the holes left out, and whether it stayed the same meanwhile.

{"file": NAME, "size": bytes, "mode": bits, "mtime_ns": time, "verify": bool}
{"n": bytes} DATA ...  {"hole": bytes} ...
{"end": true, "sha256": hex or null}      or, in place of what would follow:  {"failed": WHY, "kind": KIND}
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress

from ppss_queue.errors import PpssError
from ppss_worker.messages import PIECE_BYTES, Data, Header, packed

GONE = "gone"
"""Kind of a failure: the file is not there, or can't be read by this user."""
CHANGED = "changed"
"""It was written to while it was read."""
MACHINE = "machine"
"""The disk failed; other files would fare no better."""


class TransferFailed(PpssError):
    """A file did not come whole; `kind` says whose fault that is."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def outgoing(path: str, first: Header, *, verify: bool = False, compress: bool = False) -> Iterator[bytes]:
    """The messages of one regular file; a failure is the last of them.

    `first`: what the first one says besides; `verify`: with a hash of the data; `compress`: deflate what shrinks.
    """
    try:
        yield from _messages(path, first, verify, compress)
    except OSError as error:
        kind = MACHINE if error.errno in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE) else GONE
        yield failure(kind, f"{path!r} can't be read: {error.strerror}")
    except TransferFailed as failed:
        yield failure(failed.kind, str(failed))


def failure(kind: str, text: str) -> bytes:
    """The message that something did not work."""
    return packed({"failed": text, "kind": kind})


def _messages(path: str, first: Header, verify: bool, compress: bool) -> Iterator[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # no waiting for a pipe's writer
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise TransferFailed(GONE, f"{path!r} is no regular file")
        yield packed(
            {
                "file": os.path.basename(path),
                "size": before.st_size,
                "mode": stat.S_IMODE(before.st_mode),
                "mtime_ns": before.st_mtime_ns,
                "verify": verify,
                **first,
            }
        )
        digest = hashlib.sha256() if verify else None
        for part in _parts(descriptor, before.st_size):
            if isinstance(part, int):
                yield packed({"hole": part})
                continue
            if digest is not None:
                digest.update(part)
            yield _deflated(part) if compress else packed({}, part)
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise TransferFailed(CHANGED, f"{path!r} was written to while it was copied")
        yield packed({"end": True, "sha256": digest.hexdigest() if digest else None})
    finally:
        os.close(descriptor)


def _deflated(part: bytes) -> bytes:
    small = zlib.compress(part, 1)
    return packed({"z": True}, small) if len(small) < len(part) else packed({}, part)


def inflated(data: Data) -> bytes:
    """Raises TransferFailed."""
    inflater = zlib.decompressobj()
    try:
        part = inflater.decompress(data, PIECE_BYTES)
    except zlib.error as error:
        raise TransferFailed(CHANGED, f"compressed data can't be read: {error}") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise TransferFailed(CHANGED, "compressed data can't be read")
    return part


def _parts(descriptor: int, size: int) -> Iterator[bytes | int]:
    """Data, and the lengths of holes between it; raises TransferFailed if there is less than `size`."""
    at = 0
    while at < size:
        start, stop = _next_data(descriptor, at, size)
        if start > at:
            yield start - at
        at = start
        while at < stop:
            piece = os.pread(descriptor, min(PIECE_BYTES, stop - at), at)
            if not piece:
                raise TransferFailed(CHANGED, "it became shorter while it was copied")
            yield piece
            at += len(piece)


def _next_data(descriptor: int, at: int, size: int) -> tuple[int, int]:
    """Where the next data begin and end; both `size` if only a hole follows."""
    if not hasattr(os, "SEEK_DATA"):
        return at, size
    try:
        start = os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        return (size, size) if error.errno == errno.ENXIO else (at, size)
    if start >= size:
        return size, size
    return start, min(os.lseek(descriptor, start, os.SEEK_HOLE), size)


class Arriving(ABC):
    """A file that comes as messages, to be written where the subclass says. Whole when `take` has returned True."""

    def __init__(self, header: Header, path: str) -> None:
        """`header`: its first message; `path`: of the file, for messages. Raises ValueError."""
        self.path = path
        self.size = int(str(header["size"]))
        self._mode = int(str(header["mode"])) & 0o7777
        self._mtime_ns = int(str(header["mtime_ns"]))
        self._digest = hashlib.sha256() if header.get("verify") else None
        self._at = 0

    def take(self, header: Header, data: Data) -> bool:
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
        self._write(self._at, data)
        self._at += len(data)
        return False

    @abstractmethod
    def close(self) -> None:
        """Gives up: what is there is not the file. Nothing after the last message."""

    @abstractmethod
    def _write(self, at: int, data: Data) -> None:
        """Raises OSError."""

    def _check(self, sha256: object) -> None:
        if self._at != self.size:
            raise TransferFailed(CHANGED, f"{self._at:,} bytes of {self.size:,} came of {self.path!r}")
        if self._digest is not None and sha256 != self._digest.hexdigest():
            raise TransferFailed(CHANGED, f"{self.path!r} does not have the hash that it has at its source")


class Incoming(Arriving):
    """Writes it on this machine."""

    def __init__(
        self, header: Header, directory: str, *, on_whole: Callable[[int], object] = os.close
    ) -> None:
        """`directory`: where it goes, under its own name. Raises OSError, ValueError.

        `on_whole` gets the descriptor of the whole file, to close it.
        """
        name = str(header["file"])
        if not name or "/" in name or name in (".", ".."):
            raise ValueError(f"{name!r} is no file name")
        super().__init__(header, os.path.join(directory, name))
        self._on_whole = on_whole
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o600)

    def take(self, header: Header, data: Data) -> bool:
        whole = super().take(header, data)
        if whole:
            self._finish()
        return whole

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            with suppress(OSError):
                os.unlink(self.path)

    def _write(self, at: int, data: Data) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, at)
            at += written
            view = view[written:]

    def _finish(self) -> None:
        os.ftruncate(self._descriptor, self.size)  # a hole at the end
        os.fchmod(self._descriptor, self._mode)
        os.utime(self._descriptor, ns=(self._mtime_ns, self._mtime_ns))
        descriptor, self._descriptor = self._descriptor, -1
        self._on_whole(descriptor)
