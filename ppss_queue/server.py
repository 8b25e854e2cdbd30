"""The embedded server: one Valkey per user and machine, started on demand when no address is given.

What makes it one server is a lock: flock on `lock`, whose descriptor the server inherits. Whoever holds it
runs or is just starting; kill -9 frees it, so there is never anything to clean up. A starter lets go of its
own copy right after the spawn: from then on "the lock is free and nobody answers" means that it has died.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ppss_queue.errors import BadInput, ConnectFailed, MachineFailed, ServiceFailed
from ppss_queue.locks import try_lock
from ppss_queue.server_binary import binary, options
from ppss_queue.server_place import ServerPlace, check_private, make_private

_POLL_SECONDS = 0.002
_START_SECONDS = 10.0
_LOADING_SECONDS = 600.0  # replaying the AOF: 130 MB a second were measured
_ANSWER_SECONDS = 10.0
_STOP_SECONDS = 60.0  # the last fsync of a slow disk
_UNREACHABLE_SECONDS = 1.0  # between taking the lock and listening lie a few ms
_LOG_BYTES = 1 << 20
_LOG_PREFIX = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ [.*#-] ")


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What a running embedded server says of itself."""

    pid: int
    uptime_seconds: int
    version: str
    """Product and version: "valkey 9.1.2", "redis 7.0.15"."""
    used_memory_bytes: int
    data_bytes: int
    """Size of the append-only files on disk."""
    socket: Path
    clients: int
    """Connections besides the one that asked."""


def ensure_running(place: ServerPlace) -> str:
    """Start the server unless it answers; the address that it answers at.

    Any number of starters at once end with one server. Waits up to 10 s, and up to 600 s while the server
    loads its data. A server that runs but refuses writes (disk full) counts as running.
    Raises MachineFailed (disk full, directory not writable, the server's last words), BadInput (no program to
    start, a directory that others own or may write to), ConnectFailed (it does not answer within 10 s).
    """
    with _machine_errors(place):
        check_private(place)
        if _runs(_ask(place, "PING", _ANSWER_SECONDS)):
            return place.address
        lock = _acquire(place)
        if lock is None:
            return place.address
        try:
            log_offset = _spawn(place, lock)
        finally:
            os.close(lock)
        lock = _acquire(place)
        if lock is None:
            return place.address
        os.close(lock)
        raise MachineFailed(_cannot_run(place, _last_words(place, log_offset)))


def status(place: ServerPlace) -> ServerStatus | None:
    """What the server says of itself; None when it does not run.

    Raises ServiceFailed when it can't tell, ConnectFailed when it does not answer within 10 s.
    """
    with _machine_errors(place):
        check_private(place)
        reply = _ask(place, "INFO", _ANSWER_SECONDS)
        if not reply:
            return None
        if reply.startswith("-"):
            raise ServiceFailed(f"the embedded server at '{place.socket}' tells nothing: {reply[1:]}")
        data_bytes = 0
        for path in place.directory.rglob("appendonly*.*"):
            with suppress(FileNotFoundError):  # a rewrite may remove it meanwhile
                data_bytes += path.stat().st_size
    info = dict(line.split(":", 1) for line in reply.splitlines() if ":" in line)
    product = "valkey" if "valkey_version" in info else "redis"
    return ServerStatus(
        pid=int(info["process_id"]),
        uptime_seconds=int(info["uptime_in_seconds"]),
        version=f"{product} {info[f'{product}_version']}",
        used_memory_bytes=int(info["used_memory"]),
        data_bytes=data_bytes,
        socket=place.socket,
        clients=int(info["connected_clients"]) - 1,
    )


def stop(place: ServerPlace) -> bool:
    """Shut the server down, data on disk, and wait until it is gone; False if none was running.

    Raises ServiceFailed when it refuses (its log says why), MachineFailed when it is not gone after 60 s.
    """
    with _machine_errors(place):
        check_private(place)
        if not place.directory.is_dir():
            return False
        stopped = False
        began = heard = time.monotonic()
        while time.monotonic() - began < _STOP_SECONDS:
            reply = _ask(place, "SHUTDOWN", _STOP_SECONDS)
            if reply:
                raise ServiceFailed(f"the embedded server at '{place.socket}' refused to stop: {reply[1:]}")
            if reply == "":
                stopped, heard = True, time.monotonic()
            elif (lock := try_lock(place.directory / "lock")) is not None:
                os.close(lock)
                return stopped
            elif time.monotonic() - heard > _UNREACHABLE_SECONDS:
                stopped, heard = _end_unreachable(place) or stopped, time.monotonic()
            time.sleep(_POLL_SECONDS)
        raise MachineFailed(_held(place, _STOP_SECONDS))


def run_foreground(place: ServerPlace) -> NoReturn:
    """Become the server: this process, its terminal and its signals, for systemd and the like.

    Raises BadInput when one runs already, else as `ensure_running`.
    """
    with _machine_errors(place):
        program = binary()
        lock = _acquire(place)
        if lock is None:
            pid = _server_pid(place)
            raise BadInput(
                f"the embedded server runs already (pid {pid or 'unknown'}) at '{place.socket}': "
                "stop it with `ppss server stop`, then run this again."
            )
        os.set_inheritable(lock, True)
        os.umask(0o077)
        os.execv(program, [os.fspath(program), *options(place)])


def _acquire(place: ServerPlace) -> int | None:
    """The lock's descriptor, nobody answering; or None once a server answers.

    Ends a server that nobody can reach any more because its socket was deleted.
    Raises MachineFailed when neither comes about in time.
    """
    for directory in (place.directory, place.socket.parent):
        make_private(directory)
    check_private(place)
    limit_seconds = _START_SECONDS
    began = heard = time.monotonic()
    while time.monotonic() - began < limit_seconds:
        reply = _ask(place, "PING", _ANSWER_SECONDS)
        if _runs(reply):
            return None
        if reply is not None:
            heard = time.monotonic()
            if reply:
                limit_seconds = _LOADING_SECONDS
        elif (lock := try_lock(place.directory / "lock")) is not None:
            # It may have come up since: without holding this lock if someone deleted its lock file.
            if _ask(place, "PING", _ANSWER_SECONDS) is None:
                return lock
            os.close(lock)
        elif time.monotonic() - heard > _UNREACHABLE_SECONDS:
            _end_unreachable(place)
            heard = time.monotonic()
        time.sleep(_POLL_SECONDS)
    raise MachineFailed(_held(place, limit_seconds))


def _spawn(place: ServerPlace, lock: int) -> int:
    """Start the server with the lock's descriptor; where its part of the log begins."""
    import subprocess

    program = binary()
    log_file = place.directory / "server.log"
    log = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(log).st_size > _LOG_BYTES:
            os.ftruncate(log, 0)
        offset = os.fstat(log).st_size
        # `daemonize` leaves no child behind: a worker that waits for its children never meets the server.
        launcher = subprocess.Popen(
            [program, *options(place), "--daemonize", "yes", "--logfile", log_file],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
            umask=0o077,
        )
    finally:
        os.close(log)
    try:
        launcher.wait(_START_SECONDS)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()
    return offset


def _ask(place: ServerPlace, command: str, seconds: float) -> str | None:
    """The server's reply; "" when it hangs up or is too busy to accept, None when nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(os.fsencode(place.socket))
            connection.sendall(f"{command}\r\n".encode())
            with connection.makefile("rb") as replies:
                line = replies.readline()
                if line.startswith(b"$"):
                    line = replies.read(int(line[1:]))
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return None
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return ""
        except TimeoutError:
            pid = _server_pid(place)
            raise ConnectFailed(
                f"the embedded server (pid {pid or 'unknown'}) has not answered at '{place.socket}' for "
                f"{seconds:g} s: see '{place.directory / 'server.log'}', or end it: `kill -9 {pid or 'PID'}`."
            ) from None
    return line.decode(errors="replace").strip()


def _runs(reply: str | None) -> bool:
    """Any answer but "still loading": one that refuses writes answers PING with an error, and yet runs."""
    return reply is not None and reply != "" and not reply.startswith("-LOADING")


def _server_pid(place: ServerPlace) -> int | None:
    """The pid of its pid file, if that process is the server: in our directory, with our lock open."""
    with suppress(OSError, ValueError):
        pid = int((place.directory / "server.pid").read_bytes())
        process = Path("/proc") / str(pid)
        if (process / "cwd").samefile(place.directory):
            lock = (place.directory / "lock").stat()
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if os.path.samestat(descriptor.stat(), lock):
                        return pid
    return None


def _end_unreachable(place: ServerPlace) -> bool:
    """Ask the server whose socket is gone to save and exit; False if no process is surely that server."""
    pid = _server_pid(place)
    if pid is None:
        return False
    import signal

    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    return True


def _last_words(place: ServerPlace, offset: int) -> str:
    """Why it died: the full disk that kept it from saying so, else its log's last line after `offset`."""
    disk = os.statvfs(place.directory)
    if disk.f_bavail * disk.f_frsize < 64 * 1024:
        return "the disk is full"
    with (place.directory / "server.log").open("rb") as log:
        log.seek(offset)
        lines = log.read().decode(errors="replace").split("\n")
    said = [_LOG_PREFIX.sub("", line).strip() for line in lines if line.strip()]
    return f'its log ends with "{said[-1]}"' if said else "it ended without a word"


def _cannot_run(place: ServerPlace, why: str) -> str:
    return (
        f"the embedded server can't run in '{place.directory}': {why}. Mend that, set PPSS_STATE_DIR to "
        "another directory, or name a running server with --url."
    )


def _held(place: ServerPlace, seconds: float) -> str:
    pid = _server_pid(place)
    holder = f"pid {pid}: end it with `kill -9 {pid}`" if pid else "`fuser` shows by whom: end that process"
    return (
        f"nobody answers at '{place.socket}' after {seconds:g} s, yet '{place.directory / 'lock'}' is held "
        f"({holder}, then try again)."
    )


@contextmanager
def _machine_errors(place: ServerPlace) -> Iterator[None]:
    """What the operating system refuses becomes MachineFailed with the name of the file."""
    try:
        yield
    except OSError as error:
        name = f": '{os.fsdecode(error.filename)}'" if error.filename else ""
        raise MachineFailed(_cannot_run(place, f"{error.strerror or error}{name}")) from None
