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
PIECE_BYTES = 256 * 1024
"""Data of one message at most."""
_TOGETHER_BYTES = 64 * 1024
_HEADER_BYTES = 64 * 1024 * 1024
"""A header holds names; the outputs of one item are the most of them."""
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def packed(header: Header, data: bytes | memoryview = b"") -> bytes:
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
    """Splits a stream of bytes into messages."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        """`receive`: the next bytes, at most so many, as soon as there are some; b"" at the end."""
        self._receive = receive
        self._buffer = bytearray()

    def __iter__(self) -> Iterator[tuple[Header, bytes]]:
        """Until the end of the stream. Raises ConnectFailed if that comes within a message, or for no message."""
        while (message := self.read()) is not None:
            yield message

    def read(self) -> tuple[Header, bytes] | None:
        """The next message; None at the end. Raises as `__iter__`."""
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            if seen > _HEADER_BYTES:
                raise _garbled()
            if not self._more():
                if seen:
                    raise _cut()
                return None
        try:
            header = json.loads(self._buffer[:end])
            count = header.get("n", 0)
            if not 0 <= count <= PIECE_BYTES:
                raise _garbled()
        except (ValueError, AttributeError, TypeError):
            raise _garbled() from None
        start, stop = end + 1, end + 1 + count
        while len(self._buffer) < stop:
            if not self._more():
                raise _cut()
        with memoryview(self._buffer) as view:
            data = bytes(view[start:stop])
        del self._buffer[:stop]
        return header, data

    @property
    def buffered(self) -> bool:
        """Whether a whole message may have been received already, of which no descriptor tells."""
        return bool(self._buffer)

    def _more(self) -> bool:
        piece = self._receive(PIECE_BYTES)
        self._buffer += piece
        return bool(piece)


def _garbled() -> ConnectFailed:
    return ConnectFailed("the other end of the file connection does not speak as a PPSS gate does.")


def _cut() -> ConnectFailed:
    return ConnectFailed("the file connection was lost in the middle of a message.")
