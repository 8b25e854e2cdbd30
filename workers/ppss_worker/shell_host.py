"""Bash that is started once for many items: before a shell runs the text of an item, it forks its successor.

The start of bash costs several times a fork. A shell waits for an item with nothing of an item in it; told one, it
forks the shell that will wait for the next, takes the item's variables and capture files, evaluates the text and
ends. So each item still has a process of its own, forked from a fresh bash; it leads its own process group and,
since the shell before it is dead and this process is a subreaper (Linux), it is a child of the worker, which sees
its end as that of any other. Only for texts that can't tell the difference: ppss_queue/unaware_text.py.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ppss_queue.command import check_syntax
from ppss_queue.errors import PpssError
from ppss_worker.process import Child, Spawner
from ppss_worker.runs import ActiveRun

_TURNS = 50
"""Items of one start of bash: its forks nest, and grow by a few KB each."""
_MESSAGE_BYTES_MAX = 100_000
"""Longer ones go the plain way, which knows what exec can take. Fits a socket's buffer: sending never waits."""
_LENGTH_DIGITS = 7

# Standard output is the socket to the worker until the item's own takes its place. Bash reads it in two reads.
_TURN = (
    f"read -r -N{_LENGTH_DIGITS} -u1 PPSS_H_A || exit 0; "
    'read -r -N "$PPSS_H_A" -u1 PPSS_H_A || exit 0; eval "$PPSS_H_A"'
)
# The text is an argument, so that `ps` shows it.
_START = f"PPSS_H_L='{_TURN}' PPSS_H_T=$1; set --; eval \"$PPSS_H_L\""
# Job control gives the successor its own process group. It is off before anything of the item is done.
_FORK = 'set -m; { eval "$PPSS_H_L"; } & set +m; '
_RUN = 'eval "unset PPSS_H_A PPSS_H_L PPSS_H_T; $PPSS_H_T"'

_TELLING_VARIABLE = re.compile(
    r"BASH(?!_FUNC_)|PPSS_H_|POSIX|EPOCH|(?:SHELLOPTS|TMOUT|S?RANDOM|SECONDS|LINENO|HISTCMD|PPID)\Z"
)
"""Bash acts on these at its start or while it reads, or has a value of its own for them."""
_FUNCTION = re.compile(r"BASH_FUNC_(.*)%%", re.DOTALL)

_PLAIN = re.compile(r"[A-Za-z0-9_./,:@%+=-]*", re.ASCII)
_CODES = [chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in range(256)]

_TABLE = "ppss-shells"
_ENTRY_BYTES = 96

_PR_SET_CHILD_SUBREAPER = 36


def shell_word(value: str) -> str:
    """One word, in ASCII, that bash reads as this value in any locale. ValueError if no variable can hold it."""
    if _PLAIN.fullmatch(value):
        return value
    raw = os.fsencode(value)
    if 0 in raw:
        raise ValueError("a NUL byte")
    return "$'" + "".join([_CODES[byte] for byte in raw]) + "'"


class ShellHost:
    """The shells of one slot and run, one after the other."""

    def __init__(self, spawner: Spawner, run: ActiveRun, script: str) -> None:
        """Raises what Spawner.spawn raises, and OSError."""
        self.run = run.id
        self._spawner = spawner
        self._place = _place(run.spec.directory)
        self._turns = 0
        self.child: Child | None = None
        """The item that was begun last."""
        self._socket, theirs = socket.socketpair()
        silence = os.open(os.devnull, os.O_RDWR)
        try:
            argv = ["bash", "--norc", "-c", _START, "bash", script]
            shell = spawner.spawn(argv, run.environment, run.spec.directory, theirs.fileno(), silence)
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
            os.close(silence)
        self._waiting = shell.pid
        """Process that waits for the next item; 0: none."""

    def fits(self, run: ActiveRun) -> bool:
        """Whether a shell of this run waits here, in the directory that has the run's name now."""
        return bool(self._waiting) and self.run == run.id and self._place == _place(run.spec.directory)

    def begin(self, variables: Mapping[str, str]) -> Child | None:
        """The item's process, or None if it can't be begun here.

        Raises MachineFailed if its output can't be captured.
        """
        last = self._turns + 1 == _TURNS
        try:
            words = " ".join([f"{name}={shell_word(value)}" for name, value in variables.items()])
        except ValueError:
            return None
        if len(words) > _MESSAGE_BYTES_MAX:
            return None
        child = self._spawner.captured()
        files = f"/proc/{os.getpid()}/fd"
        message = (
            f"{'' if last else _FORK}exec 2>>{files}/{child.stderr} || exit; export {words}; "
            f"echo {0 if last else '$!'}; exec 1<>{files}/{child.stdout} || exit; {_RUN}"
        )
        child.pid, child.began = self._waiting, False
        self._waiting = 0
        self._turns += 1
        try:
            self._socket.sendall(f"{len(message):{_LENGTH_DIGITS}}{message}".encode())
        except OSError:  # the shell is dead, since nobody else reads what is sent
            child.close()
            return None
        self.child = child
        self._spawner.adopt(child)
        return child

    def collect(self) -> None:
        """Learns, of an item that has ended, whether it began at all, and who waits for the next one."""
        if self.child is None or self.child.began:
            return
        with suppress(OSError, ValueError):
            self._waiting = int(self._socket.recv(64, socket.MSG_DONTWAIT))
            self.child.began = True

    def close(self) -> None:
        """Ends the shell that waits; an item that runs goes on."""
        self._socket.close()


class ShellHosts:
    """The shells of all slots. Used no more once one has failed, since the plain way always works."""

    def __init__(self, spawner: Spawner) -> None:
        self._spawner = spawner
        self._hosts: dict[int, ShellHost] = {}
        self._usable = sys.platform == "linux"
        self._refused: set[str] = set()
        """Runs with a text or environment that is not for us."""
        self._known: set[str] = set()
        self._table = os.memfd_create(_TABLE) if self._usable else -1
        """What runs in which process, an entry per slot, since such a process has no environment that tells."""

    def start(self, run: ActiveRun, slot: int, variables: Mapping[str, str]) -> Child | None:
        """Starts the run's command for one item; None: do it the plain way. Raises MachineFailed."""
        host = self._hosts.get(slot)
        if host is not None:
            self._collect(host)
        if not self._usable or run.id in self._refused or not self._accepts(run):
            return None
        if host is None or not host.fits(run):
            if host is not None:
                host.close()
                del self._hosts[slot]
            assert run.command is not None
            try:
                host = self._hosts[slot] = ShellHost(self._spawner, run, run.command.script)
            except (PpssError, OSError):
                return None  # the plain way will tell why
        child = host.begin(variables)
        if child is not None:
            entry = _entry(child.pid, run.id, variables["PPSS_SEQ"])
            os.pwrite(self._table, entry, slot * _ENTRY_BYTES)
        return child

    def finish(self, child: Child) -> None:
        """To be called when the process of an item has ended: sets its `began`."""
        for host in self._hosts.values():
            if host.child is child:
                self._collect(host)

    def close(self) -> None:
        """Ends the shells that wait."""
        while self._hosts:
            self._hosts.popitem()[1].close()
        if self._table >= 0:
            os.close(self._table)
            self._table = -1
        if self._spawner.adopts_orphans:
            self._spawner.adopts_orphans = False
            _become_subreaper(False)

    def _collect(self, host: ShellHost) -> None:
        host.collect()
        if host.child is not None and not host.child.began:
            self._usable = False

    def _accepts(self, run: ActiveRun) -> bool:
        """Asked once per run: does bash read its text, and does nothing in its environment steer bash?"""
        if run.id in self._known:
            return True
        assert run.command is not None
        try:
            check_syntax(run.command)  # `eval` words its complaint in another way
        except PpssError:
            self._refused.add(run.id)
            return False
        if _steers_bash(run.environment, run.command.script) or not _starts_silently(run):
            self._refused.add(run.id)
            return False
        if not self._spawner.adopts_orphans:
            self._usable = self._spawner.adopts_orphans = _become_subreaper(True)
        self._known.add(run.id)
        return self._usable


def hosts_item(pid: int, run: str, seq: int) -> bool:
    """Whether this process, the child of a worker of this user, is the shell that runs this item now."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        for path in Path(f"/proc/{parent}/fd").iterdir():
            if os.readlink(path).startswith(f"/memfd:{_TABLE} "):
                entries = path.read_bytes()
                places = range(0, len(entries), _ENTRY_BYTES)
                return _entry(pid, run, str(seq)) in [entries[at : at + _ENTRY_BYTES] for at in places]
    except (OSError, ValueError):  # it has ended, or its parent has
        pass
    return False


def _entry(pid: int, run: str, seq: str) -> bytes:
    return f"{pid} {run} {seq}".encode().ljust(_ENTRY_BYTES)[:_ENTRY_BYTES]


def _steers_bash(environment: Mapping[str, str], script: str) -> bool:
    """Whether a variable makes the script, or our own, do something else; an exported function may do anything."""
    if any(map(_TELLING_VARIABLE.match, environment)):
        return True
    functions = [found[1] for found in map(_FUNCTION.match, environment) if found]
    return any(
        name in text for name in functions for text in (script, _START, _FORK, _RUN, "exec export echo")
    )


def _starts_silently(run: ActiveRun) -> bool:
    """Whether a bash of its own would say nothing at its start, e.g. that it does not know the locale."""
    import subprocess  # `check_syntax` has loaded it

    argv = ["bash", "--norc", "-c", ":"]
    try:
        done = subprocess.run(
            argv,
            env=run.environment,
            cwd=run.spec.directory,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, ValueError):
        return False
    return (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def _place(directory: str) -> tuple[int, int] | None:
    try:
        found = Path(directory).stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _become_subreaper(on: bool) -> bool:
    """Whether this process is now (not) the parent of its orphaned descendants."""
    import ctypes  # costs some ms, and few workers need it

    try:
        done = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)
    except (OSError, AttributeError):
        return False
    return bool(done == 0)
