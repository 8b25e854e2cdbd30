"""Items' output on stdout and stderr: whole, in completion or input order, tagged if wanted."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ppss_queue.units import printable

_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Output of an item in the spool, until those before it have ended."""

    name: str
    offset: int
    stdout_bytes: int
    stderr_bytes: int


_NOTHING = _Waiting("", 0, 0, 0)


class Printer:
    """Prints what items printed. Used by one thread. Raises OSError where nothing can be written."""

    def __init__(
        self,
        *,
        keep_order: bool,
        tag: bool,
        quiet: bool,
        before: Callable[[int, bytes], None] = lambda target, data: None,
    ) -> None:
        """`before` hears what will be written next, and whether to stdout (1) or stderr (2)."""
        self._keep_order = keep_order
        self._tag = tag
        self._quiet = quiet
        self._before = before
        self._next_seq = 1
        self._waiting: dict[int, _Waiting] = {}
        self._spool = -1
        self._partial: dict[tuple[int, int], bytes] = {}

    def ended(self, seq: int, name: str, stdout: int, stderr: int) -> None:
        """An item's last attempt is over; its output can be read from the two descriptors (-1: none)."""
        if not self._quiet:
            self._over(seq, name, _pieces(stdout, 0, _size(stdout)), _pieces(stderr, 0, _size(stderr)))

    def told(self, seq: int, name: str, stdout: bytes, stderr: bytes) -> None:
        """The same of an item that another worker ran."""
        if not self._quiet:
            self._over(seq, name, iter([stdout]), iter([stderr]))

    def _over(self, seq: int, name: str, stdout: Iterator[bytes], stderr: Iterator[bytes]) -> None:
        if not self._keep_order:
            self._print(name, 1, stdout)
            self._print(name, 2, stderr)
        elif seq >= self._next_seq:  # not one that was skipped
            self._waiting[seq] = self._keep(name, stdout, stderr)
            self._release_next()

    def skip(self, seqs: Iterable[int]) -> None:
        """These items ended before, or elsewhere: nobody waits for them."""
        for seq in seqs:
            if seq >= self._next_seq:
                self._waiting.setdefault(seq, _NOTHING)
                self._release_next()

    def line(self, seq: int, name: str, target: int, data: bytes) -> None:
        """Output of a running item, as it comes (--line-buffer): printed up to the last line end."""
        if self._quiet:
            return
        whole, end, rest = (self._partial.pop((seq, target), b"") + data).rpartition(b"\n")
        if rest:
            self._partial[seq, target] = rest
        if end:
            self._print(name, target, iter([whole + end]))

    def last_line(self, seq: int, name: str) -> None:
        """Prints lines without an end, once the item is over."""
        for target in (1, 2):
            rest = self._partial.pop((seq, target), b"")
            if rest:
                self._print(name, target, iter([rest + b"\n"]))

    def flush(self) -> None:
        """Prints what still waits for items that never ended here, in order."""
        for seq in sorted(self._waiting):
            self._release(seq)

    def _release_next(self) -> None:
        while self._next_seq in self._waiting:
            self._release(self._next_seq)

    def _release(self, seq: int) -> None:
        kept = self._waiting.pop(seq)
        self._next_seq = seq + 1
        self._print(kept.name, 1, _pieces(self._spool, kept.offset, kept.stdout_bytes))
        self._print(kept.name, 2, _pieces(self._spool, kept.offset + kept.stdout_bytes, kept.stderr_bytes))
        if not self._waiting and self._spool >= 0:
            os.ftruncate(self._spool, 0)

    def _keep(self, name: str, stdout: Iterator[bytes], stderr: Iterator[bytes]) -> _Waiting:
        """Copies output to the end of one unlinked file, so that descriptors do not pile up."""
        if self._spool < 0:
            import tempfile

            with tempfile.TemporaryFile() as file:
                self._spool = os.dup(file.fileno())
        start = os.lseek(self._spool, 0, os.SEEK_END)
        sizes = []
        for pieces in (stdout, stderr):
            sizes.append(0)
            for piece in pieces:
                _write(self._spool, piece)
                sizes[-1] += len(piece)
        return _Waiting(name, start, *sizes)

    def _print(self, name: str, target: int, pieces: Iterator[bytes]) -> None:
        prefix = f"{printable(name)}\t".encode() if self._tag else b""
        fresh = True
        for piece in filter(None, pieces):
            if prefix:
                tagged = piece.replace(b"\n", b"\n" + prefix)
                if piece.endswith(b"\n"):
                    tagged = tagged[: -len(prefix)]
                piece, fresh = (prefix + tagged if fresh else tagged), piece.endswith(b"\n")
            self._before(target, piece)
            _write(target, piece)


def _size(source: int) -> int:
    return os.fstat(source).st_size if source >= 0 else 0


def _pieces(source: int, offset: int, size: int) -> Iterator[bytes]:
    for at in range(0, size, _PIECE_BYTES):
        yield os.pread(source, min(_PIECE_BYTES, size - at), offset + at)


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:  # some other program made our terminal or pipe non-blocking
            select.select((), (target,), ())
