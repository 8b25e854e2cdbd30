"""What was enqueued on the embedded server is on its disk, and there again after the server was killed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import missing, wait_until

from ppss_queue import scripts, server
from ppss_queue.address import Address
from ppss_queue.calls import Calls, read_claim
from ppss_queue.connection import Connection
from ppss_queue.durability import durable
from ppss_queue.keys import Keys
from ppss_queue.model import Outcome, RunState
from ppss_queue.queue import Queue, connect
from ppss_queue.run import Run
from ppss_queue.server_place import ServerPlace, default_place

KEYS = Keys()


@pytest.fixture
def place(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> ServerPlace:
    """This user's own server, not started yet; it is what `connect()` means."""
    monkeypatch.delenv("PPSS_URL", raising=False)
    monkeypatch.setenv("PPSS_STATE_DIR", home["PPSS_STATE_DIR"])
    return default_place(home)


@pytest.fixture
def queue(place: ServerPlace) -> Iterator[Queue]:
    with connect() as queue:
        yield queue


@pytest.fixture
def look(queue: Queue, place: ServerPlace) -> Iterator[Connection]:
    """Another connection to the same server."""
    with Connection.open(Address.parse(place.address)) as connection:
        yield connection


def policy(connection: Connection) -> object:
    reply = connection.execute("CONFIG", "GET", "appendfsync")
    assert isinstance(reply, list)
    return reply[1]


def pid_of_server(place: ServerPlace) -> int:
    found = server.status(place)
    assert found
    return found.pid


def end_one(queue: Queue, run: Run, outcome: Outcome) -> None:
    calls = Calls(KEYS, "w", "nonce")
    (lease,) = read_claim(scripts.run(queue.connection, calls.claim(1, 1, runs=[run.id]))).leases
    scripts.run(queue.connection, calls.start(run.id, [(lease, 1)]))
    call = calls.ack(run.id, [(lease, outcome, b"")])
    if outcome.exit_code:
        call = calls.fail(run.id, [(lease, outcome, None, b"")])
    assert scripts.run(queue.connection, call) == []


def test_items_and_outcomes_are_there_after_the_server_was_killed(place: ServerPlace) -> None:
    with connect() as queue:
        run = queue.enqueue(["a", "b", "c"], command="true", name="n")
        end_one(queue, run, Outcome(exit_code=0, result="[1]"))
        end_one(queue, run, Outcome(exit_code=7, last_line="bad"))
        assert run.add(["d"]) == 1
        pid = pid_of_server(place)
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the server is gone")
    with connect() as queue:
        assert pid_of_server(place) != pid
        run = queue.run("n")
        counts = run.status()
        assert (counts.state, counts.total, counts.ready) == (RunState.OPEN, 4, 2)
        views = list(run.items())
        assert [view.name for view in views] == ["a", "b", "c", "d"]
        assert [str(view.state) for view in views] == ["succeeded", "failed", "ready", "ready"]
        assert views[0].result == [1]
        assert (views[1].exit_code, views[1].last_line) == (7, "bad")
        end_one(queue, run, Outcome(exit_code=0))
        assert run.status().succeeded == 2


@pytest.fixture
def trace(place: ServerPlace, queue: Queue, tmp_path: Path) -> Iterator[Path]:
    """What the server's main thread asks of the kernel, written down as it happens."""
    if shutil.which("strace") is None:
        missing("strace")
    log = tmp_path / "trace"
    pid = pid_of_server(place)
    # Not -f: everysec flushes from another thread.
    command = [
        "strace",
        "-e",
        "trace=fdatasync,fsync,write,sendto",
        "-s",
        "60",
        "-o",
        os.fspath(log),
        "-p",
        str(pid),
    ]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert strace.stderr
    said = strace.stderr.readline()
    if "attached" not in said:
        strace.wait()
        missing(f"strace that may look at a process ({said.strip()})")
    yield log
    strace.terminate()
    strace.communicate(timeout=20)


@pytest.mark.parametrize("adding", [False, True], ids=["enqueue", "add"])
def test_what_was_enqueued_is_flushed_before_the_answer(adding: bool, queue: Queue, trace: Path) -> None:
    """`everysec` alone would lose the last second of a machine without power, after the id was printed."""
    if adding:
        queue.enqueue(["x"], command="true").add(["item of the trace"])
    else:
        queue.enqueue(["item of the trace"], command="true")
    queue.connection.execute("ECHO", "the end")
    wait_until(lambda: "the end" in trace.read_text(), "the trace is written")
    calls = trace.read_text().splitlines()
    # The append-only file is a plain file: write(2). Replies are written to a socket: '+OK', ':1', '$4\\r\\nopen'.
    stored = [at for at, call in enumerate(calls) if re.match(r'write\(\d+, "\*', call)]
    opened = [at for at, call in enumerate(calls) if re.search(r'"\$4\\r\\nopen', call)]
    flushed = [at for at, call in enumerate(calls) if re.match(r"(fdatasync|fsync)\(\d+\) += 0", call)]
    assert stored and opened, calls
    assert [at for at in flushed if max(at for at in stored if at < opened[-1]) < at < opened[-1]], calls


def test_afterwards_the_server_flushes_each_second_again(
    queue: Queue, look: Connection, place: ServerPlace
) -> None:
    run = queue.enqueue(["item of the file"], command="true")
    assert policy(look) == b"everysec"
    files = [path.read_bytes() for path in place.directory.rglob("appendonly*.aof")]
    assert any(b"item of the file" in data and run.id.encode() in data for data in files)


@pytest.mark.parametrize("interrupted", [False, True], ids=["error", "closed by Ctrl-C"])
def test_an_error_inside_does_not_leave_the_server_flushing_at_each_write(
    interrupted: bool, queue: Queue, look: Connection, place: ServerPlace
) -> None:
    """A call that Ctrl-C interrupts closes its connection."""
    with pytest.raises(KeyboardInterrupt), durable(place, queue.connection):
        assert policy(look) == b"always"
        if interrupted:
            queue.connection.close()
        raise KeyboardInterrupt
    assert policy(look) == b"everysec"


def test_one_at_a_time_else_the_first_to_end_would_switch_it_off_for_the_other(
    queue: Queue, look: Connection, place: ServerPlace
) -> None:
    with (
        durable(place, queue.connection),
        (place.directory / "durable.lock").open("rb") as lock,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    totals: list[int] = []

    def enqueue() -> None:
        with connect() as mine:
            totals.extend(mine.enqueue(["a"], command="true").status().total for _ in range(5))

    threads = [threading.Thread(target=enqueue) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == [1] * 15
    assert policy(look) == b"everysec"
