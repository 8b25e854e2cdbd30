"""A staged run on real hosts, for tests that break them: its inputs, its workers, and what must be true at its end."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from helpers import wait_until
from hosts.lab import Host, Lab
from hosts.watcher import Watcher

from ppss_queue.server_binary import binary

SECONDS = 60.0
"""For whatever a test waits for: far more than it takes, on a machine that does much else."""
BIG = {"gate": 800_000, "sftp": 2_400_000}
"""By the way that files go: bytes of which a part can be met on its way home. SFTP begins with a whole MiB."""
SLOW = {"gate": ("--bwlimit", "500k"), "sftp": ("--bwlimit", "1500k")}
"""Options of a worker that takes some seconds for so much."""
_COMPANION_BYTES = 1_000
_TERMINATED = 128 + 15
_REDIS = "redis://127.0.0.1:6379"
_STATES = ("ready", "leased", "delayed", "succeeded", "failed", "cancelled")
_COMMAND = """
printf '%s %s\\n' "${ITEM##*/}" "$PPSS_NODE" >> SHARE/begun
for _ in $(seq 1200); do [ -e "SHARE/hold.$PPSS_NODE.${ITEM##*/}" ] || break; sleep 0.05; done
{ printf '%s\\n' "$PPSS_NODE"; cat "$ITEM"; } > "$OUTPUT_DIR/$OUTPUT_FILE"
"""


def content(name: str, size: int) -> bytes:
    """The bytes of an input, which no other one has."""
    return hashlib.shake_256(name.encode()).digest(size)


def part_of(name: str) -> str:
    """The second output of an item with a companion, in a directory that it shares with others."""
    directory, _, base = name.rpartition("/")
    return f"{directory}/parts/deep/{base}".removeprefix("/")


class Worker:
    """`ppss worker` on a node."""

    def __init__(self, host: Host, number: int, url: str, options: tuple[str, ...], scratch: Path) -> None:
        self.host = host
        self.scratch = scratch
        self._ends_by_itself = "--burst" in options
        self._said = host.lab.share / f"said.{number}"
        self._pid = host.lab.share / f"pid.{number}"
        script = 'echo $$ > "$0.new" && mv "$0.new" "$0" && exec 2> "$1" && shift && exec ppss worker "$@"'
        words = [*(["--url", url] if url else []), "--scratch", str(scratch), *options]
        self.process = host.popen(["sh", "-c", script, str(self._pid), str(self._said), *words])

    @property
    def said(self) -> str:
        """All it wrote to stderr so far."""
        return self._said.read_text() if self._said.exists() else ""

    def says(self, words: str) -> None:
        """Waits until it has."""
        try:
            wait_until(lambda: words in self.said, f"{self.host.name} says {words!r}", SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}, but: {self.said}") from None

    def signal(self, name: str) -> None:
        """Sends it a signal, by its number in the host."""
        pid = wait_until(lambda: self._pid.exists() and self._pid.read_text().strip(), "it runs", SECONDS)
        self.host.run(["kill", f"-{name}", pid])

    def end(self, signal: str = "") -> int:
        """Its exit code, after the signal if one is given."""
        if signal:
            self.signal(signal)
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker on {self.host.name} does not end: {self.said}") from None

    def leave(self) -> None:
        """It ends well, if it has not ended yet: told to unless it does so by itself."""
        if self.process.returncode is None:
            code = self.end("" if self._ends_by_itself else "TERM")
            if "←" in self.said or code != _TERMINATED:  # else it was told so before it listened
                assert code == 0, (code, self.said)


class Staged:
    """A run of files of given sizes. Inputs, outputs and scratches are where the test sees them, too.

    Its command logs that it began, waits while it is held, and writes the name of the node before the input.
    """

    def __init__(
        self,
        lab: Lab,
        sizes: Mapping[str, int],
        *options: str,
        output: str = "",
        command: str = _COMMAND,
        way: str = "gate",
        companions: Collection[str] = (),
    ) -> None:
        """`way`: how files go, "gate", or "sftp" as for a master without PPSS, whose Redis has a port.
        `companions`: items of which a second file `{}.xmp` belongs to, from which the command makes `part_of`.
        """
        self.lab = lab
        self.master = lab.master
        self.sizes = dict(sizes)
        self.source = lab.share / "in"
        self.out = Path(output) if output else lab.share / "out"
        self._companions = companions
        for name, size in (*sizes.items(), *((f"{name}.xmp", _COMPANION_BYTES) for name in companions)):
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            (self.source / name).write_bytes(content(name, size))
        names = "".join(f"{self.source / name}\n" for name in sizes)
        self._url = _start_redis(lab.master) if way == "sftp" else ""
        words = [
            "enqueue",
            "--files",
            "-f",
            "-",
            "--stage",
            "--visibility",
            "30s",
            "-o",
            str(self.out),
        ]
        words += ["--also", "{}.xmp"] if companions else []
        words += [*options, "-c", command.replace("SHARE", str(lab.share))]
        self.run = self._ppss(*words, stdin=names).stdout.strip()
        self.workers: list[Worker] = []
        self._hashes = {
            hashlib.sha256(f"{node.name}\n".encode() + data).hexdigest(): (name, node.name)
            for name, data in self._outputs()
            for node in lab.hosts.values()
        }

    def _outputs(self) -> Iterator[tuple[str, bytes]]:
        """Names of all outputs, and what follows the name of the node in each."""
        for name, size in self.sizes.items():
            yield name, content(name, size)
        for name in self._companions:
            yield part_of(name), content(f"{name}.xmp", _COMPANION_BYTES)

    def worker(self, host: Host, *options: str, scratch: Path | None = None) -> Worker:
        """Starts one, which has a single slot unless the options say otherwise."""
        scratch = scratch or self.lab.share / f"scratch.{host.name}"
        number = len(list(self.lab.share.glob("said.*"))) + len(self.workers)
        url = self._url if host is self.master else f"ssh://master/{self._url}".removesuffix("/")
        worker = Worker(host, number, url, ("-p", "1", *options), scratch)
        self.workers.append(worker)
        return worker

    # What happens meanwhile

    def hold(self, host: Host, *names: str) -> None:
        """The commands of these items wait there from now on."""
        for name in names:
            (self.lab.share / f"hold.{host.name}.{name}").touch()

    def let_go(self, host: Host, *names: str) -> None:
        for name in names:
            (self.lab.share / f"hold.{host.name}.{name}").unlink()

    @property
    def begun(self) -> Counter[tuple[str, str]]:
        """How often each command began, by the name of its item and its node."""
        log = self.lab.share / "begun"
        lines = log.read_text().splitlines() if log.exists() else []
        return Counter((line.split(" ")[0], line.split(" ")[1]) for line in lines)

    def begins(self, name: str, host: Host) -> None:
        """Waits until its command has begun there."""
        wait_until(lambda: (name, host.name) in self.begun, f"{name} begins on {host.name}", SECONDS)

    def is_coming(self, name: str, host: Host) -> None:
        """Waits until a part of the input is on the node."""
        scratch = self.lab.share / f"scratch.{host.name}"
        wait_until(
            lambda: any(
                0 < size < self.sizes[name] for size in _sizes(scratch, f"*/{self.run}-*/work/{name}")
            ),
            f"a part of {name} is on {host.name}",
            SECONDS,
        )

    def is_going_home(self, name: str, *, whole: bool = False) -> None:
        """Waits until a part of the output, or all of it, is on the master, but not at its final name."""
        full = self.sizes[name] + 3
        wait_until(
            lambda: any(
                size == full if whole else 0 < size < full
                for size in _sizes(self.out, f".ppss/{self.run}/*/{name}")
            ),
            f"{name} is in the scratch on the master",
            SECONDS,
        )

    def used(self, host: Host) -> int:
        """Bytes of inputs that are on a node now."""
        return sum(_sizes(self.lab.share / f"scratch.{host.name}", "*/*/work/*"))

    def counts(self) -> dict[str, int]:
        """States with the number of items in them; they sum up."""
        status = json.loads(self._ppss("status", self.run, "--json").stdout)
        assert sum(status[name] for name in _STATES) == status["total"] == len(self.sizes), status
        return {name: status[name] for name in _STATES if status[name]}

    def reasons(self) -> str:
        return self._ppss("items", self.run, "--state", "failed").stdout

    def _ppss(self, *words: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """A verb on the master."""
        env = {"PPSS_URL": self._url} if self._url else None
        return self.master.run(["ppss", *words], stdin=stdin, env=env, check=check, timeout_seconds=SECONDS)

    # The end

    def wait(self) -> None:
        """Until all items have ended."""
        try:
            self._ppss("wait", self.run, check=False)
        except subprocess.TimeoutExpired:
            said = "\n".join(f"{worker.host.name}: {worker.said}" for worker in self.workers)
            raise AssertionError(f"the run does not end: {self.counts()}\n{said}") from None

    def finish(self, *, missing: int = 0) -> dict[str, str]:
        """Waits for the end, ends the workers, and checks all: bytes, states, temporaries. Who made each output."""
        self.wait()
        for worker in self.workers:
            worker.leave()
        return self.check(missing=missing)

    def check(self, *, missing: int = 0) -> dict[str, str]:
        """All but so many items succeeded, all outputs are whole, no temporary is anywhere."""
        expected = {"succeeded": len(self.sizes) - missing, "failed": missing}
        assert self.counts() == {name: count for name, count in expected.items() if count}, self.reasons()
        scratch = self.out / ".ppss"
        try:
            wait_until(lambda: not os.path.lexists(scratch), "gates have swept the master", SECONDS)
        except AssertionError as error:
            left = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*"))
            raise AssertionError(f"{error}, but: {left}") from None
        found = self._output_hashes()
        wrong = {name for name, digest in found.items() if self._hashes.get(digest, ("", ""))[0] != name}
        assert not wrong, wrong
        assert len(found) == len(self.sizes) + len(self._companions) - missing, found.keys()
        nodes = {name: self._hashes[digest][1] for name, digest in found.items()}
        mixed = [name for name in self._companions if nodes[name] != nodes[part_of(name)]]
        assert not mixed, f"outputs of two attempts: {mixed}"
        for worker in self.workers:
            left = _left_in(worker.scratch)
            assert not left, (left, worker.said)
        return nodes

    def _output_hashes(self) -> dict[str, str]:
        """Of all files that are there, those of scratches too, made by one command."""
        look = 'find . -type f -exec sha256sum -- {} + && find . -path "./.ppss*" >&2'
        script = f'[ -d "$1" ] || exit 0; cd -- "$1" && {look}'
        listed = self.master.run(["sh", "-c", script, "sh", str(self.out)])
        assert not listed.stderr, f"left on the master: {listed.stderr}"
        return {line[66:].removeprefix("./"): line[:64] for line in listed.stdout.splitlines()}

    def watch(self) -> Watcher:
        """Looks all the time whether something that is not whole has a final name."""
        return Watcher(self.out, self._hashes)


def _start_redis(master: Host) -> str:
    """Starts one of which PPSS there knows nothing, unless it runs; its address on the master."""

    def answers() -> bool:
        return not master.run(["ppss", "status", "--url", _REDIS], check=False).returncode

    if not answers():
        master.popen([str(binary()), "--port", "6379", "--bind", "127.0.0.1", "--appendonly", "yes"])
        wait_until(answers, "Redis answers", SECONDS)
    return _REDIS


def _sizes(directory: Path, pattern: str) -> list[int]:
    """Of the files that match and did not vanish just now."""
    found = []
    for path in glob.glob(f"{directory}/{pattern}"):
        with suppress(FileNotFoundError):
            found.append(os.stat(path).st_size)
    return found


def _left_in(scratch: Path) -> list[Path]:
    """What workers left there, shared files apart."""
    return [path for path in scratch.rglob("*") if path.relative_to(scratch).parts[0] != "shared"]


def pids(host: Host, pattern: str) -> list[str]:
    """Numbers of the processes of a host whose command line matches, but not the look itself."""
    masked = f"[{pattern[0]}]{pattern[1:]}"
    return host.run(["pgrep", "-f", masked], user="root", check=False).stdout.split()


def stop_before_publish(staged: Staged, name: str) -> str:
    """Stops the gate that takes this output, with the word to publish in its pipe; its number.

    Redis has said that the token is the newest. Call it while the output is on its way.
    """
    (server,) = pids(staged.master, SERVER)
    script = [sys.executable, "-c", _STOP_BEFORE_PUBLISH, server, staged.run, name]
    return staged.master.run(script, user="root", timeout_seconds=SECONDS).stdout.strip()


_STOP_BEFORE_PUBLISH = """
import fcntl, glob, os, signal, struct, sys, termios, time
server, run, name = int(sys.argv[1]), *sys.argv[2:]
os.kill(server, signal.SIGSTOP)
def until(condition):
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.01)
    sys.exit(f"in vain: {condition.__name__}")
def gate():
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            path = os.readlink(link)
        except OSError:
            continue
        if f"/.ppss/{run}/" in path and path.endswith(f"/{name}"):
            return int(link.split("/")[2]), path
def whole():
    return os.stat(path).st_mode & 0o077
def waiting():
    with open(f"/proc/{pid}/fd/0", "rb", buffering=0) as pipe:
        return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
def idle():
    for _ in range(10):
        with open(f"/proc/{pid}/wchan") as file:
            if waiting() or "poll" not in file.read():
                return False
        time.sleep(0.01)
    return True
pid, path = until(gate)
until(whole)
until(idle)  # it has told the names of the outputs; whether they may be published is asked of the server
os.kill(pid, signal.SIGSTOP)
os.kill(server, signal.SIGCONT)
until(waiting)
print(pid)
"""


def signal_all(host: Host, pattern: str, signal: str) -> None:
    """Sends a signal to all processes of a host whose command line matches; there must be one."""
    found = pids(host, pattern)
    assert found, f"nothing on {host.name} matches {pattern!r}"
    host.run(["kill", f"-{signal}", *found], user="root", check=False)


SERVER = "unixsocket:"
"""Of the embedded server's command line."""
GATES = "ppss gate"
FILE_GATES = "ppss gate files"
