"""Messages between a node and the gate on its master: a line of JSON, then the bytes that it announces.

Requests are answered in their order, so any number may be on the way. Text is ASCII (`\\udcXX` for odd bytes of
names, PEP 383).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from ppss_queue.errors import ConnectFailed

Header: TypeAlias = dict[str, object]
Data: TypeAlias = bytes | memoryview
PIECE_BYTES = 256 * 1024
"""Data of one message at most."""
_FREED_BYTES = 8 * 1024 * 1024
_TOGETHER_BYTES = 64 * 1024
_HEADER_BYTES = 64 * 1024 * 1024
"""A header holds names; the outputs of one item are the most of them."""
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def keep_freed_memory() -> None:
    """Makes the C library (glibc) keep what is freed for the next piece; else it may take each anew from the kernel.

    That takes as long as all else that is done to a piece. Its limits follow the largest block that was ever freed.
    """
    bytes(_FREED_BYTES)


def packed(header: Header, data: Data = b"") -> bytes:
    """One message."""
    if not data:
        return _ENCODE(header).encode() + b"\n"
    return b"".join((_ENCODE({**header, "n": len(data)}).encode(), b"\n", data))


def joined(messages: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, small messages together: each piece costs a packet, and wakes up who waits for it."""
    together: list[bytes] = []
    size = 0
    for message in messages:
        together.append(message)
        size += len(message)
        if size >= _TOGETHER_BYTES:
            yield b"".join(together)
            together, size = [], 0
    if together:
        yield b"".join(together)


class MessageReader:
    """Splits a stream of bytes into messages. Their data is part of what was received, where it came in one piece."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        """`receive`: the next bytes, at most so many, as soon as there are some; b"" at the end."""
        self._receive = receive
        self._piece = b""
        self._at = 0

    def __iter__(self) -> Iterator[tuple[Header, Data]]:
        """Until the end of the stream. Raises ConnectFailed if that comes within a message, or for no message."""
        while (message := self.read()) is not None:
            yield message

    def read(self) -> tuple[Header, Data] | None:
        """The next message; None at the end. Raises as `__iter__`."""
        line = self._line()
        if line is None:
            return None
        try:
            header = json.loads(line)
            count = header.get("n", 0)
            if not 0 <= count <= PIECE_BYTES:
                raise _garbled()
        except (ValueError, AttributeError, TypeError):
            raise _garbled() from None
        return header, self._data(count)

    @property
    def buffered(self) -> bool:
        """Whether a whole message may have been received already, of which no descriptor tells."""
        return self._at < len(self._piece)

    def _line(self) -> bytes | None:
        """The next line; None at the end."""
        parts: list[bytes] = []
        size = 0
        while (end := self._piece.find(b"\n", self._at)) < 0:
            parts.append(self._piece[self._at :])
            size += len(parts[-1])
            if size > _HEADER_BYTES:
                raise _garbled()
            if not self._more():
                if size:
                    raise _cut()
                return None
        parts.append(self._piece[self._at : end])
        self._at = end + 1
        return b"".join(parts)

    def _data(self, count: int) -> Data:
        parts: list[memoryview] = []
        while True:
            part = memoryview(self._piece)[self._at : self._at + count]
            self._at += len(part)
            count -= len(part)
            if not count:
                return b"".join((*parts, part)) if parts else part
            parts.append(part)
            if not self._more():
                raise _cut()

    def _more(self) -> bool:
        """Receives the next piece, when all of the one before was taken; False at the end."""
        self._piece, self._at = self._receive(PIECE_BYTES), 0
        return bool(self._piece)


def _garbled() -> ConnectFailed:
    return ConnectFailed("the other end of the file connection does not speak as a PPSS gate does.")


def _cut() -> ConnectFailed:
    return ConnectFailed("the file connection was lost in the middle of a message.")
