"""Commands as processes: spawn, capture, signal, reap.

A command is one process group, spawned directly (posix_spawn, no thread, no shell unless its argv has one).
Its output goes to unlinked files (captures.py): a pipe would block it at 64 KiB unless drained, memory could grow
without end, and a file of its own takes no late output of another command. All of it is used from one thread,
which learns of ended children through `ChildSignals`.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ppss_queue.errors import ExitCode, MachineFailed, PpssError
from ppss_worker.captures import Captures, SpawnAction
from ppss_worker.guardian import Guardian, kill_group

_MACHINE_ERRORS = frozenset(
    (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EIO)
)
# Ignored signals are inherited: Python ignores the first two (`yes | head -1` would print "Broken pipe"), the
# worker's caller may ignore others (nohup, `&` in a script).
_DEFAULT_SIGNALS = (
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGCHLD,
)
_NO_INPUT: SpawnAction = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)


class SpawnFailed(PpssError):
    """The command could not be started; its attempt failed with `exit_status`, the one that bash would give.

    127: not found; 126: found but not executable; 1: something else, e.g. an item that is too long.
    """

    def __init__(self, exit_status: int, text: str) -> None:
        super().__init__(text)
        self.exit_status = exit_status


class DirectoryMissing(PpssError):
    """The directory to run in can't be entered on this node: the node's fault, not the item's."""

    exit_code = ExitCode.CORRECT_INPUT


@dataclass(slots=True)
class Child:
    """One running command.

    `pid` is also its process group. `stdout` and `stderr` are descriptors of its capture files, to be read
    with os.pread from 0 on, also while it runs and after it was reaped, until `close`; -1 where the caller of
    `spawn` gave a descriptor of its own. `started` is of time.monotonic().
    """

    pid: int
    stdout: int
    stderr: int
    started: float
    give_back: Callable[[int], None]
    """What is done with a capture file that is not needed any more."""
    reaped: bool = False
    began: bool = True
    """False: what was to run it died before it did, and nothing of it was done."""

    def terminate(self) -> None:
        """Asks the whole process group to end (SIGTERM), stopped processes too; nothing if it was reaped."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the whole process group (SIGKILL); nothing if it was reaped."""
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Gives up the capture files, and what is in them."""
        for descriptor in (self.stdout, self.stderr):
            if descriptor >= 0:
                self.give_back(descriptor)
        self.stdout = self.stderr = -1

    def _signal(self, number: int) -> None:
        if not self.reaped:  # afterwards the number may belong to somebody else
            kill_group(self.pid, number)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended: either `exit_code` or `signal` is set.

    The times are of the command and all descendants that were waited for; `ended` is of time.monotonic().
    """

    pid: int
    exit_code: int | None
    signal: int | None
    user_seconds: float
    system_seconds: float
    ended: float


class Spawner:
    """Starts commands and buries them."""

    def __init__(self, guardian: Guardian, capture_directory: Path) -> None:
        """`capture_directory` must exist and have room for all that running commands print."""
        self._guardian = guardian
        self.captures = Captures(str(capture_directory))
        self._running: dict[int, Child] = {}
        self._exits: list[Exit] = []  # kept here: what was buried before an error is told by the next call
        self._unguarded = False
        self._found: dict[tuple[str, str, str], str] = {}
        self.adopts_orphans = False
        """This process is a subreaper, so unknown children may be left over from commands: bury them too."""

    def spawn(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: str,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Child:
        """Starts `argv` in `directory` (absolute) with exactly this environment plus the guardian's marker.

        The program is looked up on the PATH of `environment`. stdin is /dev/null. `stdout` and `stderr`:
        descriptors above 2 to use instead of capture files, e.g. pipes; the caller closes them. The working
        directory of this process changes.

        Raises SpawnFailed, DirectoryMissing, or MachineFailed if this machine can't start or capture it.
        """
        _enter(directory)
        name, value = self._guardian.marker
        captures = self.captures
        child = Child(0, -1, -1, time.monotonic(), captures.give_back)
        out: SpawnAction = (os.POSIX_SPAWN_DUP2, stdout or 0, 1)
        err: SpawnAction = (os.POSIX_SPAWN_DUP2, stderr or 0, 2)
        try:
            if stdout is None:
                child.stdout = captures.take()
                out = captures.action(child.stdout, 1)
            if stderr is None:  # appends: nothing may overwrite what `> /dev/stderr` in a script prints
                child.stderr = captures.take(os.O_APPEND)
                err = captures.action(child.stderr, 2, os.O_APPEND)
            child.pid = self._start(argv, {**environment, name: value}, directory, (_NO_INPUT, out, err))
        except PpssError:
            child.close()
            raise
        self._running[child.pid] = child
        self._guardian.watch(child.pid)
        return child

    def captured(self) -> Child:
        """A child to come, with its capture files. Raises MachineFailed."""
        child = Child(0, -1, -1, time.monotonic(), self.captures.give_back)
        try:
            child.stdout = self.captures.take()
            child.stderr = self.captures.take(os.O_APPEND)
        except PpssError:
            child.close()
            raise
        return child

    def adopt(self, child: Child) -> None:
        """Takes care of a child of this process that leads a process group of its own, as if spawned here."""
        if child.pid not in self._running:
            self._guardian.watch(child.pid)
        self._running[child.pid] = child

    def reap(self) -> list[Exit]:
        """What ended since the last call; never waits. Each one's process group is dead to the last process.

        To be called after each SIGCHLD. Children of this process that were not spawned here stay for whoever
        started them, unless it `adopts_orphans`. A guardian that died is replaced; raises MachineFailed if it can't be.
        """
        while (pid := _zombie(os.P_ALL, 0)) is not None:
            if not self._bury(pid):  # a zombie of somebody else, which hides those behind it
                for ours in (self._guardian.pid, *self._running):
                    if _zombie(os.P_PID, ours) is not None:
                        self._bury(ours)
                break
        exits, self._exits = self._exits, []
        return exits

    def _bury(self, pid: int) -> bool:
        if pid == self._guardian.pid:
            if self._unguarded:  # said once; those that still run must be buried all the same
                return False
            self._unguarded = True
            self._guardian.replace()
            self._unguarded = False
            return True
        child = self._running.pop(pid, None)
        if child is None:
            if self.adopts_orphans:
                os.waitpid(pid, 0)
            return self.adopts_orphans
        # Before the wait: until then the number can't belong to somebody else.
        kill_group(pid, signal.SIGKILL)
        self._guardian.forget(pid)
        child.reaped = True
        _, status, usage = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        exit_code, by_signal = (code, None) if code >= 0 else (None, -code)
        self._exits.append(Exit(pid, exit_code, by_signal, usage.ru_utime, usage.ru_stime, time.monotonic()))
        return True

    def _start(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        directory: str,
        streams: Sequence[SpawnAction],
    ) -> int:
        """Pid of the new process. What is executable but no program is a bash script, as in a shell."""
        name = program = argv[0]
        try:
            if "/" not in name:
                program = self._find(name, environment, directory)
            try:
                return _posix_spawn(program, argv, environment, streams)
            except OSError as error:
                if error.errno != errno.ENOEXEC:
                    raise
                shell = self._find_shell(environment, directory)
                return _posix_spawn(shell, [shell, "--", program, *argv[1:]], environment, streams)
        except OSError as error:
            raise _failure(error, name, program) from None
        except ValueError as error:
            raise SpawnFailed(
                1, f"{name!r} can't be started: {error} in its arguments or environment."
            ) from None

    def _find(self, name: str, environment: Mapping[str, str], directory: str) -> str:
        """Path of a program; remembered (a long PATH costs 30 us a spawn) as long as it can be executed."""
        key = (name, environment.get("PATH", os.defpath), directory)
        path = self._found.get(key)
        if path is None or not os.access(path, os.X_OK):
            path = self._found[key] = _search(name, key[1])
        return path

    def _find_shell(self, environment: Mapping[str, str], directory: str) -> str:
        try:
            return self._find("bash", environment, directory)
        except SpawnFailed:
            return "/bin/sh"


def _zombie(kind: int, pid: int) -> int | None:
    """Pid of a dead child, left as it is, or None."""
    try:
        found = os.waitid(kind, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def _enter(directory: str) -> None:
    try:
        os.chdir(directory)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DirectoryMissing(
            f"the directory {directory!r} can't be entered on this node ({reason}): make or mount it here."
        ) from None


def _posix_spawn(
    program: str, argv: Sequence[str], environment: Mapping[str, str], streams: Sequence[SpawnAction]
) -> int:
    return os.posix_spawn(
        program,
        list(argv),
        environment,
        file_actions=streams,
        setpgroup=0,
        setsigmask=(),
        setsigdef=_DEFAULT_SIGNALS,
    )


def _search(name: str, search_path: str) -> str:
    """Path of a program as execvp would find it."""
    paths = [f"{directory or '.'}/{name}" for directory in search_path.split(":")]
    for path in paths:
        if os.access(path, os.X_OK) and _is_file(path):
            return path
    if any(map(_is_file, paths)):
        raise SpawnFailed(126, f"{name!r}: permission denied. Make it executable (chmod +x).")
    raise SpawnFailed(127, f"{name!r}: command not found. Install it on this node, or mend PATH.")


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def _failure(error: OSError, name: str, program: str) -> PpssError:
    """What an exec's errno means, with the exit status that bash gives it."""
    if error.errno in _MACHINE_ERRORS:
        return MachineFailed(
            f"this machine can't start {name!r} ({error.strerror}): use fewer slots, or raise its limits."
        )
    if error.errno == errno.E2BIG:
        return SpawnFailed(1, f"{name!r}: the item is too long for an environment variable or argument.")
    if error.errno == errno.ENOENT:
        if _is_file(program):
            return SpawnFailed(
                127, f"{name!r}: the interpreter that its first line names is not on this node."
            )
        return SpawnFailed(127, f"{name!r}: no such file. Install it on this node, or mend the path.")
    if error.errno == errno.EACCES and _is_file(program):
        return SpawnFailed(126, f"{name!r}: permission denied. Make it executable (chmod +x).")
    return SpawnFailed(126, f"{name!r} can't be executed: {error.strerror}.")
