"""Commands as Redis reads them (RESP)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, cast

from hiredis import pack_command

from ppss_queue.errors import BadInput

Argument: TypeAlias = str | bytes | int | float
"""One word of a command; str is sent as UTF-8 with surrogateescape, like a file name."""

_WRITE_BYTES = 64 * 1024
"""Commands are joined to about this much before they are written."""
# Its stub takes tuples of one element only.
_pack = cast("Callable[[tuple[Argument, ...]], bytes]", pack_command)


def packed(command: Sequence[Argument]) -> bytes:
    """A command in Redis's protocol."""
    try:
        return _pack(tuple(command))
    except UnicodeEncodeError:  # names that are no UTF-8
        return _pack(tuple(map(_encoded, command)))


def _encoded(argument: Argument) -> bytes | int | float:
    if not isinstance(argument, str):
        return argument
    try:
        return argument.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BadInput(f"{argument!r} holds half a character and can't be stored: correct it.") from None


def pieces(encoded: Sequence[bytes], most: int) -> Iterator[Sequence[bytes]]:
    """Groups commands into writes of about 64 KiB and at most so many; a longer command is a group of its own."""
    first, size = 0, 0
    for index, data in enumerate(encoded):
        if size and (size + len(data) > _WRITE_BYTES or index - first >= most):
            yield encoded[first:index]
            first, size = index, 0
        size += len(data)
    if first < len(encoded):
        yield encoded[first:]
