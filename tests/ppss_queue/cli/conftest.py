"""`ppss` as people start it: a process with a home of its own and the shared server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until

from ppss_queue.cli.look import status_object
from ppss_queue.queue import Queue, connect

_PROGRAM = [sys.executable, "-c", "from ppss_queue.cli import main; main()"]
_PATIENCE_SECONDS = 60
# What is said of the server of the tests, and true.
_NO_DISK = re.compile(r"^ppss: (Valkey|Redis) at .* keeps nothing on disk.*\n", re.MULTILINE)


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    code: int
    out: str
    err: str

    @classmethod
    def of(cls, done: subprocess.CompletedProcess[bytes]) -> Done:
        out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
        return cls(done.returncode, out, _NO_DISK.sub("", err))

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    def refused(self, code: int = 2) -> str:
        """The one sentence on stderr that it ended with."""
        assert self.code == code, self
        assert self.err.startswith("ppss: ") and self.err.count("\n") == 1 and self.err.endswith("\n"), (
            self.err
        )
        assert "Traceback" not in self.err
        sentence = self.err[len("ppss: ") : -1]
        assert not re.match("[A-Z]([a-z]| )", sentence) or sentence.startswith(
            ("Redis ", "Valkey ", "Python ")
        )
        return sentence


@dataclass
class Ppss:
    """Runs the command line in `directory`, against `environment`'s server."""

    directory: Path
    environment: dict[str, str]
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(
        self,
        *arguments: str | Path,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Done:
        done = subprocess.run(
            [*_PROGRAM, *map(os.fspath, arguments)],
            cwd=cwd or self.directory,
            env={**self.environment, **(env or {})},
            input=stdin.encode() if isinstance(stdin, str) else stdin or b"",
            capture_output=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        return Done.of(done)

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        """In the background, as leader of a process group; ended with the test."""
        process = subprocess.Popen(
            [*_PROGRAM, *map(os.fspath, arguments)],
            cwd=self.directory,
            text=True,
            start_new_session=True,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "env": self.environment,
                **options,
            },
        )
        self._started.append(process)
        return process

    def shell(self, line: str, within: Sequence[str] = ()) -> Done:
        """A line as one pastes it into bash, `ppss` being this one; `within` another program, such as unshare."""
        function = f'ppss() {{ "{sys.executable}" -c "{_PROGRAM[-1]}" "$@"; }}\n'
        done = subprocess.run(
            [*within, "bash", "-c", function + line],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        return Done.of(done)

    def runs(self) -> list[dict[str, Any]]:
        """What `ppss status --json` tells, without a process."""
        with self._queue() as queue:
            return [status_object(counts) for counts in queue.runs()]

    def status(self, run: str = "last") -> dict[str, Any]:
        with self._queue() as queue:
            return status_object(queue.run(run).status())

    def items(self, run: str = "last") -> list[dict[str, Any]]:
        """What `ppss items --json` tells, without a process."""
        with self._queue() as queue:
            return [view.to_dict() for view in queue.run(run).items()]

    def _queue(self) -> Queue:
        return connect(self.environment["PPSS_URL"])

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def ppss(address: str, home: dict[str, str], tmp_path: Path) -> Iterator[Ppss]:
    """`ppss` on a database of its own, in an empty directory."""
    driver = Ppss(tmp_path, {**home, "PPSS_URL": address})
    yield driver
    driver.close()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory of three files, one below another directory."""
    directory = tmp_path / "scans"
    (directory / "2019").mkdir(parents=True)
    for name in ("a.txt", "b c.txt", "2019/d.txt"):
        (directory / name).write_text(f"text of {name}\n")
    return directory


@pytest.fixture
def end() -> Callable[..., tuple[int, str, str]]:
    """Waits for a started `ppss`, after a signal if one is given: exit code, stdout, stderr."""

    def end(process: subprocess.Popen[str], number: signal.Signals | None = None) -> tuple[int, str, str]:
        if number is not None:
            process.send_signal(number)
        out, err = process.communicate(timeout=_PATIENCE_SECONDS)
        assert "Traceback" not in err, err
        return process.returncode, out, _NO_DISK.sub("", err)

    return end


@pytest.fixture
def written() -> Callable[[Path, int], list[str]]:
    """Waits until a file has so many lines."""

    def written(path: Path, count: int) -> list[str]:
        def lines() -> list[str]:
            return path.read_text().splitlines() if path.exists() else []

        wait_until(lambda: len(lines()) >= count, f"{count} lines in {path.name}")
        return lines()

    return written


@pytest.fixture
def own_server(server_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts a server with options of its own; gives its address."""
    started = []

    def start(*options: str) -> str:
        directory = tmp_path_factory.mktemp("own")
        path = directory / "s"
        process = subprocess.Popen(
            [server_binary, "--port", "0", "--unixsocket", path, "--dir", directory, "--save", "", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        started.append(process)
        wait_until(lambda: path.exists() or process.poll() is not None, "the server listens")
        assert process.poll() is None
        return f"unix://{path}"

    yield start
    for process in started:
        process.terminate()
        process.wait(20)
