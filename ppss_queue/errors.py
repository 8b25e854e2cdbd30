"""Every error that PPSS raises on purpose, with the exit code that the command line ends with.

One root, `PpssError`. Its text is one sentence: what is wrong, with the name, and what to do.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the exit code of every verb means."""

    OK = 0
    ITEMS_FAILED = 1
    """Some items failed, or a halt rule ended the run."""
    CORRECT_INPUT = 2
    """Something for the caller to correct: usage, a missing source, an unknown run."""
    SERVICE_FAILED = 3
    """Redis or SSH failed: unreachable, refused, out of memory, read-only."""
    RUN_CANCELLED = 4
    MACHINE_FAILED = 5
    """This machine failed: disk full, no processes left."""
    INTERRUPTED = 130


class PpssError(Exception):
    """Root of all errors of PPSS."""

    exit_code: ExitCode = ExitCode.ITEMS_FAILED


class BadInput(PpssError):
    """The caller must correct something before it can work."""

    exit_code = ExitCode.CORRECT_INPUT


class UnknownRun(BadInput):
    """No run has this id or name."""


class UnknownItem(BadInput):
    """The run has no item of this name or number."""


class UnknownNode(BadInput):
    """No worker of this node was heard of lately, and nothing is wished of it."""


class CommandNotFound(BadInput):
    """The program of a command is not on this machine."""


class ForeignData(BadInput):
    """A key of ours holds something that PPSS did not write."""


class NewerVersion(BadInput):
    """The data were written by a newer PPSS than this one."""


class ServiceFailed(PpssError):
    """Redis or SSH answered with a failure, or not at all."""

    exit_code = ExitCode.SERVICE_FAILED


class Unavailable(ServiceFailed):
    """Redis can't do it now, and may later without anybody changing a command or a permission."""


class ConnectFailed(Unavailable):
    """Redis can't be reached, or ended the connection."""


class OutOfMemory(Unavailable):
    """Redis refuses writes because it is at its maxmemory."""


class MachineFailed(PpssError):
    """This machine can't go on: its disk is full, or it can't start processes."""

    exit_code = ExitCode.MACHINE_FAILED


class LeaseLost(PpssError):
    """The token is no longer the newest of its item: someone else may run it now."""
