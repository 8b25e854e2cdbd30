"""A list of items as a stream of names: what stands between its delimiters, every byte kept.

Empty items are skipped, and noted. An item that no command can be given is BadInput. (`fault_of`)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

from ppss_queue.errors import BadInput
from ppss_queue.notes import Notes

_CHUNK_BYTES = 1 << 20
ITEM_BYTES_MAX = (128 << 10) - len("PPSS_ITEM=") - 1
"""Linux refuses an environment string above 128 KiB (MAX_ARG_STRLEN), its name and closing NUL included."""


def stdin_records(stdin: BinaryIO | None, delimiter: bytes, notes: Notes) -> Iterator[str]:
    """The items of the list in `stdin`. Raises BadInput at once if there is none."""
    if stdin is None:
        raise BadInput("there is no source. Name a directory, files, or -f LIST, or pipe a list into stdin.")
    with suppress(OSError, ValueError):
        # A slow pipe that another program made non-blocking would look like the end of the list.
        os.set_blocking(stdin.fileno(), True)
    read1: Callable[[int], bytes] = getattr(stdin, "read1", stdin.read)
    return _records(read1, delimiter, "stdin", notes)


def file_records(path: str, delimiter: bytes, cwd: str, notes: Notes) -> Iterator[str]:
    """The items of the list at `path` below `cwd`, opened with the first of them."""
    try:
        stream = open(os.path.join(cwd, path), "rb", buffering=0)  # noqa: SIM115 - closed by the `with` below
    except OSError as error:
        raise BadInput(f"can't read {path!r}: {error.strerror}. Keep it until all is enqueued.") from None
    with stream:
        yield from _records(stream.read, delimiter, repr(path), notes)


def _records(read: Callable[[int], bytes], delimiter: bytes, label: str, notes: Notes) -> Iterator[str]:
    """Yield what stands between delimiters, every byte kept; the end of the data ends the last one."""
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    number, rest, more = 1, b"", True
    while more:
        try:
            chunk = read(_CHUNK_BYTES)
        except OSError as error:
            raise BadInput(f"can't read {label}: {error.strerror}. Check it and try again.") from None
        more = bool(chunk)
        block = rest + chunk
        parts = block.split(delimiter) if more else [block, b""]
        rest = parts.pop()
        # The end of `rest` may be the beginning of a delimiter.
        _refuse_faults([*parts, rest[: max(0, len(rest) + 1 - len(delimiter))]], number, delimiter, label)
        number += len(parts)
        if more and (empty := parts.count(b"")):
            notes.add(f"empty items of {label}, skipped", count=empty)
        if delimiter == b"\n" and (returns := block.count(b"\r\n")):
            kept = "the carriage return is kept as part of the item (--delimiter '\\r\\n' drops it)"
            notes.add(f"{label} has CRLF line ends, {kept}", count=returns)
        for part in parts:
            if part:
                yield part.decode(encoding, errors)


def _refuse_faults(parts: list[bytes], first: int, delimiter: bytes, label: str) -> None:
    if max(map(len, parts)) <= ITEM_BYTES_MAX and not any(b"\0" in part for part in parts):
        return
    unit = "line" if delimiter == b"\n" else "item"
    for number, part in enumerate(parts, first):
        if fault := fault_of(part):
            advice = "If the items are separated by NUL, use -0; by something else, --delimiter."
            raise BadInput(f"{unit} {number:,} of {label} {fault}. {advice}")


def fault_of(item: bytes) -> str:
    """Why no command can be given this item, with the item as its subject; "" if one can."""
    if b"\0" in item:
        return "holds a NUL byte, which no command can be given"
    if len(item) > ITEM_BYTES_MAX:
        return f"is longer than the {ITEM_BYTES_MAX:,} bytes that a command can be given"
    return ""
