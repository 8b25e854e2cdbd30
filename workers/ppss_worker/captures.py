"""Capture files: where what a command prints goes, and what is read from them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import TypeAlias

from ppss_queue.errors import MachineFailed

_LAST_LINE_WINDOW_BYTES = 8192
_LAST_LINE_CHARACTERS = 200
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # titles, links
    r"|\x1b[ -/]*[0-~]"
)

SpawnAction: TypeAlias = tuple[int, int, int] | tuple[int, int, str, int, int]
"""An element of `file_actions` of os.posix_spawn."""

_MODE = stat.S_IFREG | 0o600


class Captures:
    """Files without a name for what commands print. Used by one thread.

    A file system takes up to 50 us to make and delete one, so they are used again - but only where it is sure that
    no process has one open any more: one that left its command's group (`setsid`) may print for ever. The kernel
    knows: it grants a write lease on a file that nobody has opened but who asks. So that it can tell, a command
    opens its capture files itself (`action`): what it inherits counts as the worker's own. Where one of that can't
    be done (no /proc, a file system without leases), each file is used once.
    """

    def __init__(self, directory: str) -> None:
        """`directory` must exist, and have room for all that running commands print."""
        self._directory = directory
        self._in_use = 0
        self._spare: list[int] = []
        names = _descriptor_names()
        self._names = names if names and _can_be_used_again(directory, names) else ""

    def take(self, flags: int = 0) -> int:
        """An empty file, opened for reading and writing; `flags` for whoever `action` gives it to. MachineFailed."""
        taken = self._spare.pop() if self._spare else _new_file(self._directory, os.O_RDWR | flags)
        self._in_use += 1
        return taken

    def action(self, descriptor: int, target: int, flags: int = 0) -> SpawnAction:
        """What gives it to a command as its descriptor `target`."""
        if not self._names:
            return os.POSIX_SPAWN_DUP2, descriptor, target
        return os.POSIX_SPAWN_OPEN, target, f"{self._names}{descriptor}", os.O_RDWR | flags, 0

    def give_back(self, descriptor: int) -> None:
        """What is in it is not read any more. No more are kept than are in use."""
        self._in_use -= 1
        if self._names and len(self._spare) < self._in_use and _is_ours_alone(descriptor):
            self._spare.append(descriptor)
        else:
            os.close(descriptor)
        while len(self._spare) > self._in_use:
            os.close(self._spare.pop())

    def close(self) -> None:
        """Closes what is not in use."""
        while self._spare:
            os.close(self._spare.pop())


def _descriptor_names() -> str:
    """What, before the number of a descriptor of ours, makes a name by which our children can open it; or nothing."""
    try:
        folder = f"/proc/{os.readlink('/proc/self')}/fd/"
        return folder if os.stat(folder).st_uid == os.geteuid() else ""  # closed to them, were it not
    except OSError:
        return ""


def _can_be_used_again(directory: str, names: str) -> bool:
    """Whether a file there can be opened by the name of its descriptor, and leased."""
    try:
        tried = _new_file(directory, os.O_RDWR)
    except MachineFailed:  # told when one is needed
        return False
    try:
        os.close(os.open(f"{names}{tried}", os.O_RDWR))
        return _is_ours_alone(tried)
    except OSError:
        return False
    finally:
        os.close(tried)


def _is_ours_alone(descriptor: int) -> bool:
    """Whether no other process can read or write a capture file, now and later; it is empty then.

    Whoever opens it in the moment of the lease sends us a SIGIO, which the worker catches.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        found = os.fstat(descriptor)  # behind that: nothing can be added any more
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        if found.st_mode != _MODE or found.st_nlink:  # a command may change that of its stdout
            return False
        if found.st_size:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError:
        return False
    return True


def _new_file(directory: str, flags: int) -> int:
    """A new file without a name. Raises MachineFailed."""
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
        rest = tail.replace(b"\r", b"\n").rstrip()  # a progress bar's lines end in \r
        while rest:
            rest, _, line = rest.rpartition(b"\n")
            if text := _printable(line.decode("utf-8", "replace")):
                return text[:_LAST_LINE_CHARACTERS]
    return ""


def _printable(line: str) -> str:
    plain = _ESCAPE_SEQUENCE.sub("", line)
    if not plain.isprintable():
        plain = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in plain)
    return plain.strip()
