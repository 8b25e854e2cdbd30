"""A command on another host: what it is sent, prints and ends with, over a channel of an SSH connection."""

from __future__ import annotations

from contextlib import suppress

import paramiko

from ppss_queue.errors import ConnectFailed
from ppss_queue.ssh import failures
from ppss_queue.ssh.line import Line

_PIECE_BYTES = 8 * 1024 * 1024
"""More than the window of a channel: paramiko moves all that it has left each time when it is asked for less."""
_COMPLAINT_BYTES = 4096


class RemoteCommand:
    """One thread may read, and one write."""

    def __init__(self, line: Line, text: str, beside: RemoteCommand | None = None) -> None:
        """Has the login shell there run it. Raises ConnectFailed, BadInput.

        `beside`: over the connection of that one, even if it is lost and another one was made.
        """
        self._channel: paramiko.Channel = line.open_command(text, beside._channel if beside else None)
        self._target = line.target
        self._complaint = b""

    def fileno(self) -> int:
        """Readable when there is something to `take`, or never will be again."""
        return self._channel.fileno()

    def send(self, data: bytes) -> None:
        """To its stdin; waits while it does not read. Raises ConnectFailed if it is over, or the connection lost."""
        try:
            self._channel.sendall(data)
        except failures.LOST as error:
            raise self._lost(error) from None

    def end_input(self) -> None:
        """It sees the end of its stdin."""
        with suppress(*failures.LOST):
            self._channel.shutdown_write()

    def read(self, timeout_seconds: float | None = None) -> bytes:
        """What it prints next; empty at the end. Raises ConnectFailed when the connection or the time is over."""
        self._channel.settimeout(timeout_seconds)
        try:
            data = self._channel.recv(_PIECE_BYTES)
        except failures.LOST as error:
            raise self._lost(error) from None
        finally:
            self._channel.settimeout(None)
        if not data and not self._channel.eof_received:  # the exit code may have come before all was read
            raise self._lost(EOFError())
        return data

    def take(self) -> bytes:
        """What it has printed; waits for nothing."""
        while self._channel.recv_stderr_ready():  # unread, it would fill the window
            self._complaint = (self._complaint + self._channel.recv_stderr(_PIECE_BYTES))[-_COMPLAINT_BYTES:]
        return self._channel.recv(_PIECE_BYTES) if self._channel.recv_ready() else b""

    @property
    def is_over(self) -> bool:
        """It will print nothing more, and all was taken."""
        channel = self._channel
        return bool(channel.eof_received or channel.closed) and not channel.recv_ready()

    def wait(self) -> int:
        """Its exit code, -1 if it was killed, when it has ended. Raises ConnectFailed."""
        status = self._channel.recv_exit_status()
        if status < 0 and failures.is_lost(self._channel.get_transport()):
            raise self._lost(EOFError())
        return status

    @property
    def last_complaint(self) -> str:
        """The last line on its stderr."""
        with suppress(*failures.LOST):
            self.take()
        lines = self._complaint.decode("utf-8", "replace").split("\n")
        return next(
            (line.strip() for line in reversed(lines) if line.strip().isprintable() and line.strip()), ""
        )

    def close(self) -> None:
        """Ends the channel, not the command."""
        with suppress(*failures.LOST):
            self._channel.close()

    def _lost(self, error: Exception) -> ConnectFailed:
        return failures.lost(self._target, failures.told(error))
