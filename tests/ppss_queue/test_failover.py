"""Sentinels put a replica in the master's place while workers work: nothing is lost but what was not replicated."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until

from ppss_queue.address import Address
from ppss_queue.connection import Connection
from ppss_queue.errors import Unavailable
from ppss_queue.keys import HUNDRED_YEARS_SECONDS, Keys
from ppss_queue.queue import Queue, connect
from ppss_queue.run import Run

_SENTINELS = 3
_AT_ONCE = "repl-diskless-sync-delay 0\n"
_PPSS = [sys.executable, "-c", "from ppss_queue.cli import main; main()"]


class _Place:
    """Servers on loopback, sentinels for them, and workers that know only the sentinels."""

    def __init__(self, binary: Path, directory: Path, home: dict[str, str]) -> None:
        self.directory = directory
        self._binary, self._home = binary, home
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []
        self._sentinels: list[int] = []

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self._sentinels)}/main"

    def server(self, *options: str, config: str = "") -> tuple[subprocess.Popen[bytes], int]:
        """A server that answers, and its port."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        place = self.directory / str(port)
        place.mkdir()
        (place / "conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {place}\n{config}")
        process = self._start([self._binary, place / "conf", *options])
        wait_until(lambda: self._answers(port), "a server answers")
        return process, port

    def watched_by(self, sentinels: int, master: int) -> None:
        """Starts so many sentinels for the master; waits until each knows its replica and all the others."""
        quorum = sentinels // 2 + 1
        config = (
            f"sentinel monitor main 127.0.0.1 {master} {quorum}\n"
            "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n"
        )
        self._sentinels = [self.server("--sentinel", config=config)[1] for _ in range(sentinels)]
        for port in self._sentinels:
            wait_until(lambda port=port: self.ask(port, "SENTINEL", "REPLICAS", "main"), "a replica is known")
            wait_until(
                lambda port=port: len(self.ask(port, "SENTINEL", "SENTINELS", "main")) == sentinels - 1,
                "sentinels know each other",
            )

    def replica_of(self, master: int) -> int:
        _, port = self.server(config=f"replicaof 127.0.0.1 {master}\n")
        wait_until(lambda: b"master_link_status:up" in self.ask(port, "INFO", "replication"), "a replica")
        return port

    def unwatch(self) -> None:
        """The sentinels no longer look at the master, or say which it is."""
        for port in self._sentinels:
            self.ask(port, "SENTINEL", "REMOVE", "main")

    def lead_to(self, master: int) -> None:
        """They lead there from now on, as at the end of a failover."""
        for port in self._sentinels:
            self.ask(port, "SENTINEL", "MONITOR", "main", "127.0.0.1", str(master), "1")

    @staticmethod
    def ask(port: int, *words: str) -> list[object] | bytes:
        with Connection.open(Address("redis", (("127.0.0.1", port),))) as connection:
            reply = connection.execute(*words)
        assert isinstance(reply, list | bytes)
        return reply

    def ppss(self, *words: str) -> subprocess.Popen[bytes]:
        """`ppss WORDS` in the background, which knows the sentinels."""
        return self._start([*_PPSS, *words, "--url", self.url])

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for log in self._logs:
            assert "Traceback" not in log.read_text(), log.read_text()

    def _start(self, argv: list[str | Path]) -> subprocess.Popen[bytes]:
        self._logs.append(self.directory / f"{len(self._logs)}.log")
        with self._logs[-1].open("wb") as log:
            process = subprocess.Popen(
                argv, cwd=self.directory, env=self._home, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def _answers(self, port: int) -> bool:
        try:
            return bool(self.ask(port, "INFO", "server"))
        except Unavailable:
            assert self._processes[-1].poll() is None, self._logs[-1].read_text()
            return False


@pytest.fixture
def place(server_binary: Path, home: dict[str, str], tmp_path: Path) -> Iterator[_Place]:
    made = _Place(server_binary, tmp_path, home)
    yield made
    made.close()


def _enqueued(queue: Queue, directory: Path, command: str, items: int) -> Run:
    """Each item writes itself to an output file."""
    text = f'{command}; echo "$ITEM" > "$OUTPUT_DIR/$OUTPUT_FILE"'
    names = [f"item {number:03}" for number in range(items)]
    return queue.enqueue(
        names, command=text, output=directory / "out", directory=directory, visibility_seconds=1.0
    )


def _assert_all_right(run: Run, directory: Path, items: int) -> None:
    counts = run.status()
    assert (counts.succeeded, counts.total, counts.failed) == (items, items, 0)
    names = [f"item {number:03}" for number in range(items)]
    assert sorted(item.name for item in run.results()) == names, "not each was recorded once"
    written = {path.name: path.read_text() for path in (directory / "out").iterdir() if path.name[0] != "."}
    assert written == {name: f"{name}\n" for name in names}


def test_workers_go_on_when_a_replica_takes_the_place_of_a_killed_master(place: _Place) -> None:
    items = 60
    master, port = place.server(config=_AT_ONCE)
    replica = place.replica_of(port)
    place.watched_by(_SENTINELS, port)
    with connect(place.url) as queue:
        run = _enqueued(queue, place.directory, "sleep 0.05", items)
        workers = [place.ppss("worker", "-p", "2", "--node-name", name) for name in "ab"]
        waiter = place.ppss("wait", run.id)
        wait_until(lambda: run.status().succeeded > 10, "they work")
        master.send_signal(signal.SIGKILL)
        assert waiter.wait(40) == 0
        assert b"role:master" in place.ask(replica, "INFO", "replication")
        run.reconnect()
        _assert_all_right(run, place.directory, items)
        for worker in workers:
            worker.terminate()
        assert [worker.wait(20) for worker in workers] == [0, 0]


def test_what_a_failover_forgot_is_done_again(place: _Place) -> None:
    """Outcomes that the old master acknowledged and the new one never heard of, with nobody else to take the items."""
    master, port = place.server(config=_AT_ONCE)
    replica = place.replica_of(port)
    place.watched_by(1, port)
    with connect(place.url) as queue:
        gate = 'echo "$ITEM" >> begun; until [ -e go ]; do sleep 0.02; done'
        run = _enqueued(queue, place.directory, gate, 6)
        worker = place.ppss("worker", "-p", "2")
        wait_until(lambda: run.status().running == 2, "two items run")
        begun = ("ZRANGEBYSCORE", Keys().registry("wip", run.id), str(2 * HUNDRED_YEARS_SECONDS), "+inf")
        wait_until(lambda: len(place.ask(replica, *begun)) == 2, "the replica knows")
        place.unwatch()
        place.ask(replica, "REPLICAOF", "NO", "ONE")
        (place.directory / "go").touch()
        wait_until(lambda: run.status().succeeded == 6, "all is done, as the old master says")
        place.lead_to(replica)
        master.kill()
        master.wait()
        run.reconnect()
        run.wait(30)
        _assert_all_right(run, place.directory, 6)
        assert len((place.directory / "begun").read_text().splitlines()) == 12
        worker.terminate()
        assert worker.wait(20) == 0
