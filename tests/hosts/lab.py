"""Real hosts for tests: tests/lab/lab.sh as Python objects, with this checkout's `ppss` on every host."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ppss_queue

ROOT = Path(__file__).resolve().parents[2]
_LAB = ROOT / "tests" / "lab" / "lab.sh"
_CANNOT = 77

# It makes the lab and waits at its stdin until we want no more of it or died in whatever way; then it takes all
# away. In a session of its own, so that Ctrl-C reaches the tests alone: no lab is left half made or half removed.
_CARETAKER = """
trap : PIPE # they may end before they hear of the lab
lab=$1 count=$2 directory=$3
"$lab" up "$count" >&2
up=$? down=0
echo $up
cat
((up != 0)) || "$lab" down >&2 || down=$?
rm -rf -- "$directory"
exit $down
"""


class NoLab(Exception):
    """This machine cannot run a lab; the message is lab.sh's reason."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host of a lab: its own network, processes, disk, /tmp and sshd."""

    name: str
    address: str
    user: str
    """The user whose key opens all other hosts."""
    key: str
    """Path of that key, on the host."""
    lab: Lab = field(repr=False, compare=False)

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = "ppss",
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout_seconds: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the user's home, with nothing in its environment but the login's and env.

        Every byte comes through, as surrogateescape where it is no UTF-8. With check, an exit status other than 0
        is an AssertionError that shows stderr. At the time-out the command gets SIGTERM, and so do ssh's clients,
        but not what these have started on other hosts.
        """
        try:
            done = subprocess.run(
                self._argv(argv, user, env),
                env=self.lab.environment,
                input=os.fsencode(stdin),
                capture_output=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            said = os.fsdecode((late.stderr or b"") + (late.stdout or b""))
            what = f"{self.name}: {shlex.join(argv)}: no end within {timeout_seconds:g} s"
            raise AssertionError(f"{what}\n{said}") from None
        out, err = os.fsdecode(done.stdout), os.fsdecode(done.stderr)
        if check:
            assert done.returncode == 0, f"{self.name}: {shlex.join(argv)}: {done.returncode}\n{err}{out}"
        return subprocess.CompletedProcess(list(argv), done.returncode, out, err)

    def popen(
        self,
        argv: Sequence[str],
        *,
        user: str = "ppss",
        env: Mapping[str, str] | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = subprocess.PIPE,
        stderr: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command as `run` does; it ends with the test at the latest. It may not run yet on return.

        Its end ends the command with SIGTERM; to send another signal, run `kill` on the host.
        """
        process = subprocess.Popen(
            self._argv(argv, user, env),
            env=self.lab.environment,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            bufsize=0,
            start_new_session=True,  # Ctrl-C ends the tests, and they the lab
        )
        self.lab.processes.append(process)
        return process

    def _argv(self, argv: Sequence[str], user: str, env: Mapping[str, str] | None) -> list[str]:
        settings = ["env", *(f"{name}={value}" for name, value in env.items())] if env else []
        return [os.fspath(_LAB), "as", self.name, user, *settings, *argv]

    def write(self, path: str, content: str | bytes, *, user: str = "ppss") -> None:
        """Write a file, and its directories; a path is below the user's home unless absolute."""
        script = 'case $1 in */*) mkdir -p -- "${1%/*}/" ;; esac && cat >"$1"'
        self.run(["sh", "-c", script, "sh", path], user=user, stdin=content)

    def read(self, path: str, *, user: str = "ppss") -> bytes:
        """The bytes of a file; AssertionError if there is none."""
        return os.fsencode(self.run(["cat", "--", path], user=user).stdout)

    def cut(self) -> None:
        """Drop its packets silently, both ways: connections stay established and hang."""
        self.lab.do("cut", self.name)

    def linkdown(self) -> None:
        """Take its interface down: its own connections fail at once."""
        self.lab.do("linkdown", self.name)

    def delay(self, milliseconds: float) -> None:
        """Add so much to each round trip."""
        self.lab.do("delay", self.name, f"{milliseconds:g}")

    def loss(self, percent: float) -> None:
        """Lose so many of its packets, each way."""
        self.lab.do("loss", self.name, f"{percent:g}")

    def rate(self, megabits_per_second: float) -> None:
        """Limit its line, each way."""
        self.lab.do("rate", self.name, f"{megabits_per_second:g}")

    def heal(self) -> None:
        """Undo cut, linkdown, delay, loss and rate."""
        self.lab.do("heal", self.name)

    def freeze(self) -> None:
        """Stop all its processes. Its kernel still answers: cut it too, for a laptop that is shut."""
        self.lab.do("freeze", self.name)

    def thaw(self) -> None:
        """Let its processes go on."""
        self.lab.do("thaw", self.name)

    def kill(self) -> None:
        """Cut its power: no peer is told."""
        self.lab.do("kill", self.name)

    def start(self) -> None:
        """Boot it after `kill`: its files are there, its processes, /tmp and /run are not."""
        self.lab.do("start", self.name)


@dataclass(frozen=True, slots=True)
class Lab:
    """Hosts that reach each other by name over SSH as user ppss (and as root), all host keys known."""

    directory: Path
    """LAB_DIR of lab.sh."""
    share: Path
    """A directory that all hosts and the tests see at this path, writable, as over NFS."""
    hosts: dict[str, Host] = field(default_factory=dict)
    """By name: master, n1, n2 ..."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)
    """What `popen` started in this test."""

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @property
    def master(self) -> Host:
        """The host where tests run the queue."""
        return self.hosts["master"]

    @property
    def nodes(self) -> list[Host]:
        """All hosts but the master."""
        return [host for name, host in self.hosts.items() if name != "master"]

    @property
    def environment(self) -> dict[str, str]:
        """What lab.sh is called with."""
        return {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "LAB_DIR": os.fspath(self.directory),
            "LAB_SHARE": os.fspath(self.share),
            "LAB_SHOW": ":".join(_shown()),
            "LAB_FILES": os.fspath(self.directory.parent / "files"),
        }

    def do(self, *argv: str) -> str:
        """Call a verb of lab.sh; what it printed. AssertionError with its stderr if it fails."""
        done = subprocess.run(
            [_LAB, *argv],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"lab.sh {shlex.join(argv)}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def reset(self) -> None:
        """Make the hosts as they were at first: files, processes, lines, power; empty the share."""
        self.end_processes()
        self.do("reset")
        for path in self.share.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def end_processes(self) -> None:
        """End what `popen` started, and close its pipes; what that has left on hosts is for reset and down."""
        for process in self.processes:
            process.kill()
            with process:
                pass
        self.processes.clear()


def _shown() -> list[str]:
    """Where the code under test and its Python are on this machine, parents first."""
    return sorted({os.path.realpath(path) for path in (ROOT, sys.prefix, sys.base_prefix)}, key=len)


def _prepare(directory: Path) -> None:
    """The share, and what is to be on each host's disk: `ppss` where a command of ssh finds it."""
    share = directory / "share"
    share.mkdir()
    share.chmod(0o777)
    programs = directory / "files" / "usr" / "local" / "bin"
    programs.mkdir(parents=True)
    (programs / "ppss").symlink_to(Path(sysconfig.get_path("scripts")) / "ppss")


def _check_code(host: Host) -> None:
    script = "import ppss_queue, ppss_worker; print(ppss_queue.__file__)"
    found = host.run([sys.executable, "-P", "-c", script]).stdout.strip()
    assert found == ppss_queue.__file__, f"the hosts would run {found}, not this checkout: use its own .venv"


@contextmanager
def up(count: int) -> Iterator[Lab]:
    """A lab of so many hosts (master, n1, n2 ...); every trace of it is gone afterwards, even if we are killed.

    NoLab if the machine cannot run one. Several may be up at once.
    """
    directory = Path(tempfile.mkdtemp(prefix="ppss-lab-"))
    lab = Lab(directory / "lab", directory / "share")
    _prepare(directory)
    with (directory / "errors").open("w+") as errors:
        caretaker = subprocess.Popen(
            ["bash", "-c", _CARETAKER, "caretaker", _LAB, str(count), directory],
            env=lab.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            assert caretaker.stdout
            status = caretaker.stdout.readline().strip()
            if status != "0":
                errors.seek(0)
                reason = errors.read().strip()
                raise NoLab(reason) if status == str(_CANNOT) else AssertionError(f"no lab: {reason}")
            for line in lab.do("hosts").splitlines():
                name, address, user, key = line.split()
                lab.hosts[name] = Host(name, address, user, key, lab)
            _check_code(lab.master)
            yield lab
        finally:
            lab.end_processes()
            with caretaker:  # closes its stdin and waits
                pass
            errors.seek(0)
            assert caretaker.returncode == 0, f"the lab is not down: {errors.read()}"
