"""The guardian: one small helper process per worker that kills the worker's commands once the worker is gone.

No worker can clean up after its own `kill -9`, so somebody else must. The worker holds the only write end of
a pipe, and the kernel closes it however the worker ends; the guardian sleeps in a read of it. What to kill
then is in a table in shared memory, a process group per entry: noting a command costs the worker one write to
that file and never wakes the guardian. Commands that left their process group (`setsid`, daemons) or were
spawned in the moment before their entry are found by a marker in their environment (Linux only).

**Not caught**: a process that left its group *and* cleared its environment, or belongs to another user. A
fork of the worker that never execs keeps the pipe open: the guardian acts only when that fork ends too.

This file is both the module and, under `python -I -S`, the program of the helper process: so at its top it
imports nothing but the standard library, and little of that.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

MARKER_NAME = "PPSS_WORKER_KEY"

_ENTRY_BYTES = 4
_SCANS_AT_MOST = 500
"""With the pause below at least 5 s: enough for any tree of processes, and an end if one can't be killed."""
_CLEAN_SCANS = 3
"""Who forks and exits in mid-scan can hide its child from that scan, hardly from three in a row."""
_SCAN_PAUSE_SECONDS = 0.01


class Guardian:
    """The worker's side. Made by `start`; all methods are for the one thread that spawns.

    `pid` is the helper process, a child of the worker; it changes with `replace`. `marker` is name and value
    of the environment variable that every command of this worker must carry.
    """

    __slots__ = ("_free", "_pipe", "_places", "_table", "marker", "pid")

    def __init__(self) -> None:
        self.marker = (MARKER_NAME, os.urandom(16).hex())
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self._table = _shared_file()
        self.pid, self._pipe = self._start_process()

    @classmethod
    def start(cls) -> Guardian:
        """Starts the helper process; it guards from now on, also while it is still starting (some 15 ms).

        From now on no descriptor of this process above 2 is inherited by what it spawns, not even those that
        it inherited itself: otherwise guardian and commands would hold pipes open for others who wait for
        their end. Raises MachineFailed if no process can be started.
        """
        _keep_descriptors_private()
        return cls()

    def watch(self, pgid: int) -> None:
        """Has this process group killed if the worker dies before `forget`."""
        place = self._free.pop() if self._free else len(self._places)
        self._places[pgid] = place
        os.pwrite(self._table, pgid.to_bytes(_ENTRY_BYTES, sys.byteorder), place * _ENTRY_BYTES)

    def forget(self, pgid: int) -> None:
        """Undoes `watch`; call it before the leader is waited for and its number can be used again."""
        place = self._places.pop(pgid)
        self._free.append(place)
        os.pwrite(self._table, bytes(_ENTRY_BYTES), place * _ENTRY_BYTES)

    def replace(self) -> None:
        """Starts a new helper process, which knows all that is watched, after the old one (`pid`) died.

        Raises MachineFailed if none can be started, or if the old one was not killed but failed by itself: a
        new one would fail too. The old one then stays a zombie until `close`, so that its number stays ours.
        """
        end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if end is not None and end.si_code == os.CLD_EXITED:
            raise _machine_failed(f"the guardian ended by itself with exit code {end.si_status}")
        old_pid, old_pipe = self.pid, self._pipe
        self.pid, self._pipe = self._start_process()
        os.waitpid(old_pid, 0)
        os.close(old_pipe)

    def close(self) -> None:
        """Orderly end: kills what is still watched, and nothing else, then ends the helper process."""
        for pgid in self._places:
            kill_group(pgid, signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._pipe)
        os.close(self._table)

    def _start_process(self) -> tuple[int, int]:
        """Pid of a new helper process, and the write end of its pipe.

        Spawned, not forked: a fork would share the worker's pages until they change, and is unsafe beside
        threads. Its own environment has no marker, not even that of a worker around this one: whoever kills
        this worker from outside must leave the guardian to kill the commands.
        """
        reader, writer = os.pipe()
        environment = {name: value for name, value in os.environ.items() if name != MARKER_NAME}
        try:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", __file__, "=".join(self.marker)],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reader, 0),
                    (os.POSIX_SPAWN_DUP2, self._table, 1),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,
                setsigmask=signal.valid_signals(),  # only SIGKILL and SIGSTOP reach it, from the start
            )
        except OSError as error:
            os.close(writer)
            raise _machine_failed(f"the guardian can't be started ({error.strerror})") from None
        finally:
            os.close(reader)
        return pid, writer


def kill_group(pgid: int, signal_number: int) -> None:
    """Signals a process group; no error if it is gone or not ours to signal."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal_number)


def _machine_failed(what: str) -> Exception:
    from ppss_queue.errors import MachineFailed  # not at the top: the helper process has no path to it

    return MachineFailed(
        f"{what}, so commands could outlive this worker: free memory or processes, or mend Python."
    )


def _shared_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ppss-guardian")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _keep_descriptors_private() -> None:
    """Fills 0 to 2 where closed, lest files of ours get these numbers; keeps the rest from children."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    with os.scandir("/dev/fd") as entries:
        for number in [int(entry.name) for entry in entries]:
            if number > 2:
                with suppress(OSError):  # the one that the listing itself used
                    os.set_inheritable(number, False)


def _guard(marker: bytes) -> None:
    """The helper process: descriptor 0 is the pipe, 1 the table."""
    os.chdir("/")  # hold no file system busy
    while os.read(0, 1):
        pass
    table = os.pread(1, os.fstat(1).st_size, 0)
    for pgid in memoryview(table).cast("i"):
        if pgid > 1:  # 0 is an empty place
            kill_group(pgid, signal.SIGKILL)
    clean_scans = 0
    for _ in range(_SCANS_AT_MOST):
        clean_scans = 0 if _kill_marked(marker) else clean_scans + 1
        if clean_scans == _CLEAN_SCANS:
            return
        time.sleep(_SCAN_PAUSE_SECONDS)


def _kill_marked(marker: bytes) -> bool:
    """Kills every process whose environment has the marker; whether there was one."""
    found = False
    with suppress(FileNotFoundError), os.scandir("/proc") as entries:  # no /proc: nothing to look through
        for entry in entries:
            if entry.name.isdigit() and marker in _environment_of(entry.name):
                found = True
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(int(entry.name), signal.SIGKILL)
    return found


def _environment_of(pid: str) -> list[bytes]:
    """Empty for zombies, other users' processes and those that ended meanwhile."""
    try:
        with os.fdopen(os.open(f"/proc/{pid}/environ", os.O_RDONLY), "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


if __name__ == "__main__":
    _guard(os.fsencode(sys.argv[1]))
