"""Capture files: where what a command prints goes, and what is read from them."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from ppss_queue.errors import MachineFailed

_LAST_LINE_WINDOW_BYTES = 8192
_LAST_LINE_CHARACTERS = 200
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # titles, links
    r"|\x1b[ -/]*[0-~]"
)


def open_capture(directory: str, flags: int = 0) -> int:
    """A new file without a name, for reading and writing. Raises MachineFailed."""
    flags |= os.O_RDWR
    try:
        try:
            return os.open(directory, flags | getattr(os, "O_TMPFILE", 0), 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # not every system has it
                raise
        path = f"{directory}/{os.urandom(16).hex()}"
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        Path(path).unlink()
        return descriptor
    except OSError as error:
        raise MachineFailed(
            f"no file for output can be made in {directory!r} ({error.strerror}): "
            "free space there, or raise the limit of open files (ulimit -n)."
        ) from None


def capture_tail(descriptor: int, limit_bytes: int) -> tuple[bytes, int]:
    """The last bytes of a capture file, at most `limit_bytes`, and its whole size; nothing for -1."""
    if descriptor < 0:
        return b"", 0
    size = os.fstat(descriptor).st_size
    return (os.pread(descriptor, limit_bytes, max(0, size - limit_bytes)) if size else b""), size


def last_line(stdout: int, stderr: int) -> str:
    """The last line that is not blank of stderr, else of stdout (capture files), fit to be shown.

    Bytes that are no UTF-8 become U+FFFD, escape sequences and control characters are left out; at most 200
    characters. Only the last 8 KiB are looked at. Empty if there is no such line.
    """
    for descriptor in (stderr, stdout):
        tail, size = capture_tail(descriptor, _LAST_LINE_WINDOW_BYTES)
        if not size:
            continue
        # A progress bar's lines end in \r.
        for line in reversed(re.split(r"[\r\n]", tail.decode("utf-8", "replace"))):
            if text := _printable(line):
                return text[:_LAST_LINE_CHARACTERS]
    return ""


def _printable(line: str) -> str:
    plain = _ESCAPE_SEQUENCE.sub("", line)
    return "".join(c if c.isprintable() else " " if c.isspace() else "" for c in plain).strip()
