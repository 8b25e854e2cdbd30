"""A PPSS under test: a version of it, with a server and a state directory of its own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ppss_queue.address import Address
from ppss_queue.connection import Connection
from tools.bench.processes import LIMIT_SECONDS, Argument, Broken, output, seconds, started

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "bench"
PROBES = Path(__file__).resolve().parent / "probes"


@dataclass(frozen=True, slots=True)
class Version:
    """An installed PPSS."""

    name: str
    bin: Path


HERE = Version("this", Path(sys.prefix) / "bin")


def checked_out(revision: str) -> Version:
    """Another revision, in a worktree and a virtual environment of its own; made once. Raises Broken."""
    sha = output(["git", "rev-parse", "--verify", f"{revision}^{{commit}}"], cwd=ROOT).strip()
    folder = CACHE / f"base-{sha[:12]}"
    ready = folder / ".ready"
    if not ready.exists():
        print(f"setting up {revision} ...", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        output(["git", "worktree", "prune"], cwd=ROOT)
        output(["git", "worktree", "add", "--quiet", "--detach", folder / "code", sha], cwd=ROOT)
        output([sys.executable, "-m", "venv", folder / "venv"])
        pip: list[Argument] = [
            folder / "venv" / "bin" / "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        output([*pip, "-c", ROOT / "requirements.lock", folder / "code"], limit=600)
        ready.touch()
    return Version(revision, folder / "venv" / "bin")


class Site:
    """Use it as a context manager: the server starts with it, and all of it is removed at the end."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self.name = version.name
        self.directory = Path(tempfile.mkdtemp(prefix="ppss-bench-"))
        # PYTHON*: an installed program has its bytecode, so a PYTHONDONTWRITEBYTECODE must not keep it from this one.
        foreign = ("PPSS_", "RQ_", "PYTHON")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.environment: Mapping[str, str] = {
            **kept,
            "PPSS_STATE_DIR": str(self.directory / "state"),
            "PATH": f"{version.bin}:{kept['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }
        self._connection: Connection | None = None
        self.address = ""

    def __enter__(self) -> Site:
        try:
            self.address = self.output("server", "start").strip()
            self._connection = Connection.open(Address.parse(self.address), name="bench")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._connection is not None:
            self._connection.close()
        with suppress(Broken):
            self.output("server", "stop")
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def connection(self) -> Connection:
        assert self._connection is not None
        return self._connection

    @property
    def python(self) -> Path:
        return self.version.bin / "python"

    def _argv(self, words: tuple[Argument, ...]) -> list[Argument]:
        return [self.version.bin / "ppss", *words]

    def seconds(self, *words: Argument, limit: float = LIMIT_SECONDS) -> float:
        """Runs `ppss WORDS`; the time of the whole process. Raises Broken."""
        return seconds(self._argv(words), env=self.environment, cwd=self.directory, limit=limit)

    def output(self, *words: Argument, limit: float = LIMIT_SECONDS) -> str:
        """What `ppss WORDS` prints. Raises Broken."""
        return output(self._argv(words), env=self.environment, cwd=self.directory, limit=limit)

    def started(self, *words: Argument) -> AbstractContextManager[subprocess.Popen[str]]:
        """`ppss WORDS` in the background."""
        return started(self._argv(words), env=self.environment, cwd=self.directory)

    def probe(self, name: str, *words: object) -> dict[str, float]:
        """Runs a program of `probes/` on this version, with this site's server; what it measured."""
        argv: list[Argument] = [self.python, PROBES / f"{name}.py", self.address, *map(str, words)]
        found: dict[str, float] = json.loads(output(argv, env=self.environment, cwd=self.directory))
        return found

    def flush(self) -> None:
        """Forgets all runs, so that the next round finds what this one found."""
        self.connection.execute("FLUSHALL")

    def workers(self) -> int:
        """How many are there now."""
        count = self.connection.execute("SCARD", "rq:workers")
        assert isinstance(count, int)
        return count

    def succeeded(self, run: str) -> int:
        count = self.connection.execute("ZCARD", f"rq:finished:{run}")
        assert isinstance(count, int)
        return count

    def server_info(self, section: str) -> dict[str, str]:
        """`INFO SECTION` of the server."""
        text = self.connection.execute("INFO", section)
        assert isinstance(text, bytes)
        return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


@dataclass(frozen=True, slots=True)
class Job:
    """A line of a job log."""

    seq: int
    begin: float
    seconds: float

    @property
    def end(self) -> float:
        return self.begin + self.seconds


def read_joblogs(directory: Path) -> list[Job]:
    """All jobs of `--logs DIRECTORY`, in input order. Raises Broken if there is none."""
    jobs: list[Job] = []
    for path in directory.glob("*.joblog"):
        with path.open(newline="") as lines:
            jobs += (
                Job(int(line["Seq"]), float(line["Starttime"]), float(line["JobRuntime"]))
                for line in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            )
    if not jobs:
        raise Broken(f"no job log in {directory.name}")
    return sorted(jobs, key=lambda job: job.seq)


def span(jobs: list[Job]) -> float:
    """Seconds from the first start to the last end."""
    return max(job.end for job in jobs) - min(job.begin for job in jobs)
