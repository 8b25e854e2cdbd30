"""Real workers on the shared server: started, looked at, ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from helpers import wait_until

from ppss_queue.model import ItemView, RunSpec, State
from ppss_queue.queue import Queue, connect
from ppss_queue.replies import text
from ppss_queue.run import Run
from ppss_queue.sources import texts

_PPSS = [
    sys.executable,
    "-c",
    "import os, time; real, off = time.time, float(os.environ.pop('CLOCK_OFF_SECONDS', 0))\n"
    "if off: time.time = lambda: real() + off\n"
    "from ppss_queue.cli import main; main()",
]
"""With a clock that is wrong by $CLOCK_OFF_SECONDS."""


class WorkerProcess:
    """A worker (or `ppss run`) that runs in the background."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self.pid = process.pid

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        return self._log.read_text(errors="replace")

    @property
    def cpu_seconds(self) -> float:
        """What it has used, its commands left out."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def sleeps(self) -> int:
        """How often its main thread has gone to sleep."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("voluntary_ctxt_switches:")))

    def signal(self, number: int) -> None:
        assert self._process.poll() is None, self.log
        self._process.send_signal(number)

    def wait(self, timeout_seconds: float = 20) -> int:
        """Its exit code (negative: the signal that killed it)."""
        wait_until(lambda: self._process.poll() is not None, f"end of worker\n{self.log}", timeout_seconds)
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Site:
    """One queue, a directory to work in, and the workers that a test starts there."""

    def __init__(self, address: str, home: dict[str, str], directory: Path) -> None:
        self.address = address
        self.environment = home
        self.directory = directory
        self.queue: Queue = connect(address)
        self.workers: list[WorkerProcess] = []

    def enqueue(self, items: Sequence[str], command: str | Sequence[str] | None, **options: object) -> Run:
        """A run of texts with the fields of RunSpec as options; commands run in `directory`.

        A shell command need not name the item: it is not appended.
        """
        if isinstance(command, str) and not command.startswith("python:"):
            command = f': "$ITEM"; {command}'
        words = command if isinstance(command, str) or command is None else tuple(command)
        spec = RunSpec(**{"command": words, "directory": str(self.directory), **options})  # type: ignore[arg-type]
        return self.queue.make_run(spec, texts(items))

    def start(self, *arguments: str, **environment: str) -> WorkerProcess:
        """`ppss ARGUMENTS` in the background."""
        log = self.directory.with_name(f"{self.directory.name}-{len(self.workers)}.log")
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [*_PPSS, *arguments, "--url", self.address],
                cwd=self.directory,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        self.workers.append(WorkerProcess(process, log))
        return self.workers[-1]

    def worker(self, *options: str, **environment: str) -> WorkerProcess:
        """A worker with two slots unless `-p` says otherwise."""
        return self.start("worker", "-p", "2", *options, **environment)

    def burst(self, *options: str, timeout_seconds: float = 20, **environment: str) -> WorkerProcess:
        """A worker that has ended, with exit code 0, because nothing is left."""
        worker = self.worker("--burst", *options, **environment)
        assert worker.wait(timeout_seconds) == 0, worker.log
        return worker

    def ppss(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """`ppss ARGUMENTS`, ended."""
        return subprocess.run(
            [*_PPSS, *arguments, "--url", self.address],
            cwd=self.directory,
            env={**self.environment, **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def prefetched(self, **options: object) -> tuple[Run, WorkerProcess]:
        """A run of 60 items, and the worker `a`, with one slot, that runs item 41 until `go` exists and holds more."""
        items = [f"{number:02}" for number in range(1, 61)]
        wait = "echo $$ > $ITEM.$PPSS_NODE.pid; until [ -e go ]; do sleep 0.02; done"
        run = self.enqueue(items, f"[ $PPSS_NODE$ITEM != a41 ] || {{ {wait}; }}", **options)
        worker = self.worker("-p", "1", "--node-name", "a")
        self.pids("41.a.pid", 1)
        wait_until(lambda: run.status().succeeded == 40, "quick items are recorded")
        assert run.status().leased > 1, "nothing was prefetched"
        return run, worker

    def pids(self, pattern: str, count: int) -> list[int]:
        """Numbers in `count` files that commands write (`echo $$ > FILE`), once all are there."""

        def found() -> list[int] | None:
            read = [path.read_text() for path in self.directory.glob(pattern)]
            return [int(number) for number in read] if len(read) == count and all(read) else None

        return wait_until(found, f"{count} files {pattern}")

    def wait_idle(self, count: int = 1) -> None:
        """Until `count` workers have nothing to do, listen for changes, and were silent for 0.1 s."""
        seen: tuple[list[str], float] = ([], 0.0)

        def silent() -> bool:
            nonlocal seen
            clients = self.queue.connection.execute("CLIENT", "LIST")
            assert isinstance(clients, bytes)
            lines = clients.decode().splitlines()
            listening = sum("name=ppss-worker" in line and " sub=1 " in line for line in lines)
            sent = [line.split("tot-net-in=")[1].split()[0] for line in lines if "name=ppss-worker" in line]
            if listening < count or sent != seen[0]:
                seen = sent, time.monotonic()
            return time.monotonic() > seen[1] + 0.1

        wait_until(silent, "idle workers")

    @staticmethod
    def alive(pid: int) -> bool:
        """Whether the process exists and is no zombie."""
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def wait_gone(self, pids: Iterable[int], timeout_seconds: float = 20) -> None:
        wait_until(lambda: not any(map(self.alive, pids)), "processes are gone", timeout_seconds)

    @staticmethod
    def states(run: Run) -> dict[str, int]:
        """How many items are in which state, those with none left out."""
        counts = run.status()
        found = {str(state): getattr(counts, state) for state in State}
        return {state: count for state, count in found.items() if count}

    @staticmethod
    def item(run: Run, name: str) -> ItemView:
        (found,) = (view for view in run.items() if view.name == name)
        return found

    def connections(self) -> dict[str, dict[str, str]]:
        """What Redis tells of each connection, by its name; of several with one name, of the last."""
        clients = self.queue.connection.execute("CLIENT", "LIST")
        assert isinstance(clients, bytes)
        fields = (dict(pair.split("=", 1) for pair in line.split()) for line in clients.decode().splitlines())
        return {field["name"]: field for field in fields}

    def deadline(self, run: Run) -> float:
        """Until when the one lease of a run lasts, in seconds since some moment."""
        wip = self.queue.keys.registry("wip", run.id)
        reply = self.queue.connection.execute("ZRANGE", wip, 0, -1, "WITHSCORES")
        assert isinstance(reply, list) and len(reply) == 2
        return float(reply[1])  # type: ignore[arg-type]

    def ends(self, run: Run) -> list[tuple[int, str]]:
        """(sequence, state) of every outcome that was recorded, in order."""
        entries = self.queue.connection.execute("XRANGE", self.queue.keys.events(run.id), "-", "+")
        fields = [[text(value) for value in entry[1]] for entry in entries]  # type: ignore
        pairs = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in fields]
        return [(int(pair["s"]), pair["t"]) for pair in pairs if pair["s"] != "0"]

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.queue.close()
        for worker in self.workers:
            assert "Traceback" not in worker.log, worker.log


@pytest.fixture
def site(address: str, home: dict[str, str], tmp_path: Path) -> Iterator[Site]:
    """A place with an empty queue; its workers end with the test, and none may have died of a bug."""
    (tmp_path / "w").mkdir()
    place = Site(address, home, tmp_path / "w")
    yield place
    place.close()


@pytest.fixture
def state_directory(home: dict[str, str]) -> Path:
    """Where this user's workers on this machine keep what they keep."""
    from ppss_queue.server_place import default_place

    return default_place({**os.environ, **home}).directory.parent
