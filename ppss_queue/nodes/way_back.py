"""The way back of a node that can't reach this machine: held open through a connection that goes from here to there.

sshd of the node listens on a port of its loopback, and each connection there is joined to the sshd of this machine, as
`ssh -R` does it. So the worker there logs in as ever, with its own key, and knows this machine by its host key. A
process here (`holding.py`) holds it, in a session of its own, for as long as a worker there needs it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import quote

from ppss_queue.errors import ConnectFailed, ExitCode, MachineFailed, PpssError
from ppss_queue.locks import try_lock
from ppss_queue.nodes.probe import Probe
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.spec import NodeSpec
from ppss_queue.server_place import default_place, make_private

if TYPE_CHECKING:
    from ppss_queue.nodes.deploy import Deployed
    from ppss_queue.nodes.master import MasterHome
    from ppss_queue.ssh.line import Listening

_OPEN_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_POLL_SECONDS = 0.02
_GREETING_SECONDS = 5.0


class Order(TypedDict):
    """What the process is to hold."""

    node: str
    """[USER@]HOST[:PORT]"""
    accept_new: bool
    sshd: tuple[str, int]
    """Where the way ends."""
    directory: str
    """Of the workers on the node."""
    wanted: str
    """File that is locked for as long as somebody wants the way whether a worker needs it or not."""
    lock: int
    """Descriptor of the state file, locked for as long as the process lives."""


@dataclass(frozen=True, slots=True)
class _Files:
    """Of one node, here."""

    state: Path
    """Held by the process that holds the way, which tells in it how far it is: JSON."""
    wanted: Path
    log: Path

    @classmethod
    def of(cls, node: NodeSpec) -> _Files:
        base = default_place().directory.parent / "ways"
        name = quote(node.place, safe="@")
        return cls(base / f"{name}.json", base / f"{name}.wanted", base / f"{name}.log")


def is_wanted(node: NodeSpec, facts: Probe) -> bool:
    """Whether the node is one that can't reach this machine: as the list says, else as it was deployed before."""
    return facts.reverse if node.reverse is None else node.reverse


def open_through(reach: Reach, sshd: tuple[str, int]) -> Listening:
    """A way through this very connection, open as long as that lives; the port there is where it begins.

    Raises ConnectFailed, also if sshd there forbids it (then with the exit code of what has to be corrected), or if
    no sshd answers here.
    """
    from ppss_queue.ssh.forward import joined_to

    host, port = sshd
    try:
        with socket.create_connection(sshd, _GREETING_SECONDS) as opened:
            greeting = opened.recv(4)
    except OSError as error:
        raise _no_sshd(sshd, error.strerror or str(error)) from None
    if greeting != b"SSH-":
        raise _no_sshd(sshd, "something else than SSH answers")
    return reach.line.listen(joined_to(host, port))


@contextmanager
def held(node: NodeSpec, deployed: Deployed, home: MasterHome, *, accept_new: bool) -> Iterator[None]:
    """The way is open inside, and stays so for as long as a worker there needs it; nothing for a node that needs none.

    Raises PpssError: why it can't be.
    """
    if not deployed.reverse:
        yield
        return
    files = _Files.of(node)
    with _machine_errors(files):
        make_private(files.state.parent)
        wanted = os.open(files.wanted, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(wanted, fcntl.LOCK_SH)
        with _machine_errors(files):
            _open(files, node, home.sshd, deployed.paths.directory, accept_new=accept_new)
        yield
    finally:
        os.close(wanted)


def close(node: NodeSpec) -> None:
    """Ends the process that holds the way of a node, if there is one, and leaves no file of it."""
    files = _Files.of(node)
    if not files.state.exists():
        return
    deadline = time.monotonic() + _CLOSE_SECONDS
    while (lock := try_lock(files.state)) is None and time.monotonic() < deadline:
        with suppress(ProcessLookupError, KeyError, ValueError, TypeError):
            os.kill(int(str(_read(files)["pid"])), signal.SIGTERM)
        time.sleep(_POLL_SECONDS)
    for path in (files.state, files.wanted, files.log):
        path.unlink(missing_ok=True)
    if lock is not None:
        os.close(lock)
    with suppress(OSError):  # it is those of other nodes too
        files.state.parent.rmdir()


def _open(files: _Files, node: NodeSpec, sshd: tuple[str, int], directory: str, *, accept_new: bool) -> None:
    began = False
    deadline = time.monotonic() + _OPEN_SECONDS
    while time.monotonic() < deadline:
        lock = try_lock(files.state)
        if lock is None:
            if "port" in _read(files):
                return
        elif began:
            os.close(lock)
            raise _failure(node, files)
        else:
            order = Order(
                node=node.place,
                accept_new=accept_new,
                sshd=sshd,
                directory=directory,
                wanted=os.fspath(files.wanted),
                lock=lock,
            )
            try:
                os.ftruncate(lock, 0)
                _spawn(order, files.log)
            finally:
                os.close(lock)
            began = True
        time.sleep(_POLL_SECONDS)
    raise ConnectFailed(
        f"the way back from {node.name} is not open after {_OPEN_SECONDS:g} s. See why in '{files.log}'."
    )


def _spawn(order: Order, log: Path) -> None:
    """Nobody's child: a worker looks at all of its own, and Ctrl-C is not meant for it."""
    program = [sys.executable, "-P", "-m", "ppss_queue.nodes.holding", json.dumps(order)]
    with log.open("wb") as output:
        subprocess.run(
            ["sh", "-c", '"$@" &', "sh", *program],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(order["lock"],),
            cwd="/",
            check=False,
        )


def _failure(node: NodeSpec, files: _Files) -> PpssError:
    """Why the process ended before the way was open."""
    said = _read(files)
    if "error" not in said:
        return MachineFailed(f"the way back from {node.name} can't be held open: see '{files.log}'.")
    error = PpssError(str(said["error"]))
    error.exit_code = ExitCode(int(str(said["exit_code"])))
    return error


def _read(files: _Files) -> Mapping[str, object]:
    try:
        return dict(json.loads(files.state.read_bytes()))
    except (OSError, ValueError):
        return {}


@contextmanager
def _machine_errors(files: _Files) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineFailed(
            f"no way back can be held open from here ({error.strerror or error}: '{error.filename or files.state}'). "
            "Mend that."
        ) from None


def _no_sshd(sshd: tuple[str, int], reason: str) -> ConnectFailed:
    return ConnectFailed(
        f"no sshd of this machine answers at {sshd[0]}:{sshd[1]} ({reason}), and nodes log in there. Start it, or say "
        "where it is: --master HOST[:PORT]"
    )
