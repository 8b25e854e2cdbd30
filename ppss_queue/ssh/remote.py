"""A bash script on another machine, over a line: its input, its output, how it ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import paramiko

from ppss_queue.ssh.failures import LOST, is_lost, lost, told
from ppss_queue.ssh.line import Line
from ppss_queue.ssh.noise import MARK, SAY_MARK, without_noise

_BOOT = 'exec bash --norc -c \'IFS= read -r -d "" s; %s; eval "$s"\''
"""For any login shell: the script comes first on stdin and ends with NUL, the rest of stdin is the script's own.

Without --norc this bash would read ~/.bashrc once more.
"""
_APART = _BOOT % f"{SAY_MARK}; {SAY_MARK} >&2"
_JOINED = _BOOT % f"exec 2>&1; {SAY_MARK}"
_PIECE_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Done:
    """How a script ended."""

    code: int
    """Exit code; -1: it was killed by a signal."""
    out: bytes
    err: bytes

    @property
    def last_line(self) -> str:
        """Of what it complained about, or else printed."""
        lines = (self.err.strip() or self.out.strip()).decode(errors="replace").splitlines()
        return lines[-1].strip() if lines else ""


def run_script(line: Line, script: str, stdin: Iterable[bytes], seconds: float) -> Done:
    """Executes the script in the user's home directory there. What still runs there after an error is left alone.

    Raises TimeoutError after `seconds`, ConnectFailed, BadInput.
    """
    deadline = time.monotonic() + seconds
    with _session(line, _APART) as channel:
        errors: list[bytes] = []
        # A thread each: else a full window of one stream would hold up the others.
        threading.Thread(target=_send, args=(channel, script, stdin), daemon=True).start()
        listener = threading.Thread(target=_collect, args=(channel, errors), daemon=True)
        listener.start()
        out: list[bytes] = []
        while True:
            channel.settimeout(max(0.01, deadline - time.monotonic()))
            piece = channel.recv(_PIECE_BYTES)
            if not piece:
                break
            out.append(piece)
        listener.join(max(0.0, deadline - time.monotonic()))
        if not channel.status_event.wait(max(0.01, deadline - time.monotonic())):
            raise TimeoutError
        code = channel.recv_exit_status()
        if not channel.eof_received or (code == -1 and is_lost(channel.get_transport())):
            raise EOFError
        return Done(code, without_noise(b"".join(out)), without_noise(b"".join(errors)))


def stream_script(line: Line, script: str) -> Iterator[bytes]:
    """What a script prints, both streams in one, as it comes. Raises ConnectFailed, BadInput."""
    with _session(line, _JOINED) as channel:
        channel.sendall(script.encode(errors="surrogateescape") + b"\0")
        printed = b""
        while MARK not in printed and (piece := channel.recv(_PIECE_BYTES)):
            printed += piece
        if MARK not in printed:  # no bash: the login shell says so
            printed += channel.recv_stderr(_PIECE_BYTES)
        yield without_noise(printed)
        while piece := channel.recv(_PIECE_BYTES):
            yield piece


@contextmanager
def _session(line: Line, boot: str) -> Iterator[paramiko.Channel]:
    channel = line.open_command(boot)
    try:
        yield channel
    except TimeoutError:
        raise
    except LOST as error:
        raise lost(line.target, told(error)) from None
    finally:
        line.hang_up(channel)


def _send(channel: paramiko.Channel, script: str, stdin: Iterable[bytes]) -> None:
    with suppress(*LOST):  # it ended before it read all; its exit code tells
        channel.sendall(script.encode(errors="surrogateescape") + b"\0")
        for piece in stdin:
            channel.sendall(piece)
        channel.shutdown_write()


def _collect(channel: paramiko.Channel, pieces: list[bytes]) -> None:
    with suppress(*LOST):
        while piece := channel.recv_stderr(_PIECE_BYTES):
            pieces.append(piece)
