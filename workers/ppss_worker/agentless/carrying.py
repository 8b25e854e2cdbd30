"""Files to and from an agentless node: tar streams, each over a channel of its own, made and read here.

All of it is for threads that may wait.
"""

from __future__ import annotations

import io
import os
import shlex
import stat
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ppss_queue.errors import ConnectFailed, ServiceFailed
from ppss_queue.ssh.command import RemoteCommand
from ppss_queue.ssh.noise import MARK, SAY_MARK
from ppss_worker.agentless.agent import Agent, Session
from ppss_worker.agentless.protocol import fields
from ppss_worker.agentless.unpacking import Unpacking
from ppss_worker.publishing import OutputRefused
from ppss_worker.running import ItemRefused
from ppss_worker.sharing import hash_of

_BLOCK_BYTES = 1024 * 1024
_COLLECT = Path(__file__).with_name("node_collect.sh")
_UNPACK = (
    'cd -- "$1" && mkdir -- "$2" && echo $$ > "$2/in.pid" || exit; export PPSS_WORKER_KEY="${1##*/}"; '
    'tar -xpof -; s=$?; : > "$2/in.pid"; exit $s'
)
"""The files of attempt $2 into session $1, and their end with it."""
_SHOW = 'cd -- "$1/$2" && tar -cf - stdout stderr'


class NodeFailed(ServiceFailed):
    """A node does not take files: its fault, and not the item's."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A file on its way to a node."""

    source: str
    """Where it is here."""
    target: str
    """Where it goes to, below the session; a file below work/ leaves a sign in ref/."""
    mode: int | None = None
    """None: as here."""
    sha256: str = ""
    """What it must be; empty: what it is."""


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link to be made on a node."""

    target: str
    """Where it is, below the session."""
    to: str


def send_files(
    agent: Agent, session: Session, attempt: str, files: Sequence[Carried], links: Sequence[Link]
) -> None:
    """Makes the directories of an attempt, with these in them.

    Raises ItemRefused for a file that is gone or changes meanwhile, NodeFailed, ConnectFailed.
    """
    words = ["bash", "-c", _UNPACK, "ppss", session.directory, attempt]
    command = agent.open_command(session, shlex.join(words))
    try:
        try:
            _write_archive(_Sender(command), attempt, files, links)
            command.end_input()
        except ConnectFailed:
            if not command.is_over:
                raise
        if status := command.wait():
            raise NodeFailed(
                f"node {agent.name} does not take files ({command.last_complaint or f'tar ended with {status}'})."
            )
    finally:
        command.close()


def fetch_outputs(agent: Agent, session: Session, attempt: str, into: str) -> None:
    """Brings what is in $OUTPUT_DIR into an empty directory here.

    Raises OutputRefused for what can't be brought, ConnectFailed, OSError of the disk here.
    """
    command = agent.open_command(session, shlex.join(["bash", "-s", "--", session.directory, attempt]))
    try:
        command.send(f"{SAY_MARK}\n".encode() + _COLLECT.read_bytes())
        command.end_input()
        stream = _Receiver(command)
        missing = _read_missing(stream)
        cut_short: Exception | None = None
        try:
            Unpacking(into, missing).unpack(stream)
        except tarfile.TarError as error:  # tar failed, or the connection was lost
            cut_short = error
        stream.drain()
        status = command.wait()
        if status < 0:
            raise NodeFailed(f"node {agent.name} did not send outputs to their end.")
        if status or cut_short is not None:
            said = command.last_complaint or cut_short or f"it ended with {status}"
            raise OutputRefused(f"wrote what tar on the node can't read ({said})")
    finally:
        command.close()


def fetch_printed(agent: Agent, session: Session, attempt: str, stdout: int, stderr: int) -> None:
    """Writes what the command printed to these files. Raises ConnectFailed, NodeFailed, OSError of the disk here."""
    words = ["bash", "-c", f"{SAY_MARK}; {_SHOW}", "ppss", session.directory, attempt]
    command = agent.open_command(session, shlex.join(words))
    try:
        stream = _Receiver(command)
        with (
            suppress(tarfile.TarError),  # cut short: the exit status tells why
            tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK_BYTES) as archive,
        ):
            for member in archive:
                source = archive.extractfile(member)
                target = {"stdout": stdout, "stderr": stderr}.get(member.name, -1)
                while target >= 0 and source is not None and (data := source.read(_BLOCK_BYTES)):
                    os.write(target, data)
        stream.drain()
        if status := command.wait():
            raise NodeFailed(
                f"node {agent.name} can't show what a command printed (tar ended with {status})."
            )
    finally:
        command.close()


class _Sender(io.RawIOBase):
    """A file object for tarfile to write to."""

    def __init__(self, command: RemoteCommand) -> None:
        self._command = command

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._command.send(piece)
        return len(piece)


class _Receiver(io.RawIOBase):
    """A file object for tarfile to read from: what the command prints behind the mark."""

    def __init__(self, command: RemoteCommand) -> None:
        """Waits for the mark. Raises ConnectFailed."""
        self._command = command
        self._buffer = b""
        while MARK not in self._buffer and (data := command.read()):
            self._buffer += data
        self._buffer = self._buffer.partition(MARK)[2]

    def read(self, size: int = -1) -> bytes:
        if not self._buffer:
            self._buffer = self._command.read()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def read_line(self) -> bytes:
        """Without its end."""
        while b"\n" not in self._buffer:
            data = self._command.read()
            if not data:
                return b""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def drain(self) -> None:
        """To the end."""
        while self.read(_BLOCK_BYTES):
            pass


def _read_missing(stream: _Receiver) -> dict[str, int]:
    """Modes that had to be added for tar to read all, by path. Raises OutputRefused."""
    missing = {}
    while line := stream.read_line():
        bits, path = fields(line)
        name = os.fsdecode(path)
        if bits == b"!":
            raise OutputRefused(f"made {name!r}, which its owner can't read")
        missing[name] = int(bits)
    return missing


def _write_archive(stream: _Sender, attempt: str, files: Sequence[Carried], links: Sequence[Link]) -> None:
    """Raises ItemRefused, ConnectFailed."""
    with tarfile.open(
        fileobj=stream,
        mode="w|",
        format=tarfile.GNU_FORMAT,
        bufsize=_BLOCK_BYTES,
    ) as archive:
        made: set[str] = set()
        for name in ("work", "out", "ref"):
            _add_directory(archive, f"{attempt}/{name}", made)
        for link in links:
            _add_directory(archive, os.path.dirname(link.target), made)
            entry = tarfile.TarInfo(link.target)
            entry.type, entry.linkname = tarfile.SYMTYPE, link.to
            archive.addfile(entry)
            _add_sign(archive, link.target, 0, made)
        for file in files:
            _add_directory(archive, os.path.dirname(file.target), made)
            seconds = _add_file(archive, file)
            _add_sign(archive, file.target, seconds, made)


def _add_directory(archive: tarfile.TarFile, path: str, made: set[str]) -> None:
    """With its parents below the attempt."""
    if "/" not in path or path in made:
        return
    _add_directory(archive, os.path.dirname(path), made)
    made.add(path)
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o700
    archive.addfile(entry)


def _add_sign(archive: tarfile.TarFile, path: str, seconds: int, made: set[str]) -> None:
    """What tells the agent whether a command changed the file, or made a new one."""
    attempt, _, rest = path.partition("/work/")
    if not rest:
        return
    top = rest.partition("/")[0]
    sign = f"{attempt}/ref/{top}"
    if sign in made:
        return
    made.add(sign)
    entry = tarfile.TarInfo(sign)
    entry.mode, entry.mtime = 0o600, seconds
    archive.addfile(entry, io.BytesIO())


def _add_file(archive: tarfile.TarFile, file: Carried) -> int:
    """Its time of change."""
    if file.sha256 and hash_of(file.source) != file.sha256:
        raise ItemRefused(
            f"misses a file of --with: {file.source!r} is not what it was when the run was made"
        )
    try:
        with open(file.source, "rb") as source:
            before = os.fstat(source.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise ItemRefused(f"can't be brought to the node: {file.source!r} is no file")
            entry = tarfile.TarInfo(file.target)
            entry.size, entry.mtime = before.st_size, int(before.st_mtime)
            entry.mode = stat.S_IMODE(before.st_mode) if file.mode is None else file.mode
            archive.addfile(entry, _Whole(source, file.source))
            after = os.fstat(source.fileno())
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise _changed(file.source)
            return int(entry.mtime)
    except OSError as error:
        raise ItemRefused(f"can't be brought to the node: {error.strerror}: {file.source!r}") from None


class _Whole(io.RawIOBase):
    """A file that has to be as long as it was."""

    def __init__(self, source: BinaryIO, path: str) -> None:
        self._source = source
        self._path = path

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        if len(data) < size:
            raise _changed(self._path)
        return data


def _changed(path: str) -> ItemRefused:
    return ItemRefused(f"was not brought to the node, since {path!r} changed meanwhile", final=False)
