"""Outputs on their way home: a lost connection repeats the sending and its check, and never the command."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers import wait_until
from ppss_worker.disk import OwnDisk
from ppss_worker.file_gate import FileGate, QueueRuns
from ppss_worker.messages import MessageReader
from ppss_worker.throttle import Throttle
from ppss_worker.uploading import Upload, Uploading

from ppss_queue.errors import LeaseLost, PpssError
from ppss_queue.model import Item, Lease, RunSpec
from ppss_queue.queue import Queue, connect
from ppss_queue.sources import texts


@dataclass
class Master:
    """A gate for each connection, in a thread; `hang_up` cuts all that are open."""

    address: str
    gates: list[socket.socket] = field(default_factory=list)

    def open_files(self) -> socket.socket:
        node, gate = socket.socketpair()
        self.gates.append(gate)
        threading.Thread(target=self._serve, args=(gate,), daemon=True).start()
        return node

    def hang_up(self) -> None:
        while self.gates:
            self.gates.pop().shutdown(socket.SHUT_RDWR)

    def _serve(self, end: socket.socket) -> None:
        gate = FileGate(end.sendall, QueueRuns(lambda: Queue.open(self.address)), OwnDisk())
        with suppress(OSError, PpssError):  # hung up in the middle
            for header, data in MessageReader(end.recv):
                gate.take(header, data)


class Node:
    """Uploads of one node, and what it was told of them."""

    def __init__(self, master: Master, directory: Path, *, compress: bool = False) -> None:
        self.directory = directory
        self.troubles: list[str] = []
        self._master = master
        self.uploading = Uploading(
            master.open_files, Throttle(None), lambda: None, self.troubles.append, compress=compress
        )
        self.uploading.start()

    def finished(self, run: str, token: str, **files: str) -> Attempt:
        """An attempt of item 1 whose command wrote these."""
        out = self.directory / token
        out.mkdir()
        for name, text in files.items():
            (out / name).write_text(text)
        return Attempt(self, run, token, out)


class Attempt:
    def __init__(self, node: Node, run: str, token: str, out: Path) -> None:
        self._node = node
        self.gathered: list[tuple[list[str], int]] = []
        self.published = False
        self.failure: PpssError | None = None
        self.upload = Upload(
            Lease(run, token, Item(1, "item"), 0, 0), str(out), "", False,
            lambda names, round: self.gathered.append((list(names), round)), self._over, self._failed,
        )  # fmt: skip
        node.uploading.gather(self.upload)

    def wait_gathered(self, times: int = 1) -> int:
        """The round of the last sending."""
        self._wait(lambda: len(self.gathered) >= times, "outputs are gathered")
        return self.gathered[-1][1]

    def publish(self, round: int) -> None:
        self._node.uploading.publish(self.upload, round, {})

    def publish_until_over(self) -> None:
        """Each round that is told: a lost connection may bring one more."""
        published = 0

        def looked() -> bool:
            nonlocal published
            if self.gathered and (last := self.gathered[-1][1]) > published:
                self.publish(published := last)
            return self.published or self.failure is not None

        self._wait(looked, "an upload is over")

    def wait_over(self) -> None:
        self._wait(lambda: self.published or self.failure is not None, "an upload is over")

    def _wait(self, condition, what: str) -> None:  # type: ignore[no-untyped-def]
        def looked() -> bool:
            self._node.uploading.handle_answers()
            return bool(condition())

        wait_until(looked, f"{what}; {self._node.troubles}")

    def _over(self) -> None:
        self.published = True

    def _failed(self, error: PpssError) -> None:
        self.failure = error


@pytest.fixture
def master(address: str) -> Master:
    return Master(address)


@pytest.fixture
def node(master: Master, tmp_path: Path) -> Iterator[Node]:
    node = Node(master, tmp_path)
    yield node
    node.uploading.stop()


@pytest.fixture
def run(address: str, tmp_path: Path) -> str:
    with connect(address) as queue:
        spec = RunSpec(command=("true",), output=str(tmp_path / "OUT"), stage=True)
        return queue.make_run(spec, texts(["item"])).id


def _home(tmp_path: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (tmp_path / "OUT").iterdir() if path.is_file()}


def test_outputs_are_gathered_and_appear_when_they_are_published(
    node: Node, run: str, tmp_path: Path
) -> None:
    attempt = node.finished(run, "t1", a="one", b="two")
    round = attempt.wait_gathered()
    assert attempt.gathered == [(["a", "b"], 1)]
    assert _home(tmp_path) == {}
    attempt.publish(round)
    attempt.wait_over()
    assert _home(tmp_path) == {"a": "one", "b": "two"}
    assert os.listdir(tmp_path / "OUT" / ".ppss" / run) == []


def test_a_lost_connection_repeats_the_sending_and_not_the_command(
    node: Node, master: Master, run: str, tmp_path: Path
) -> None:
    attempt = node.finished(run, "t1", a="one")
    told = attempt.wait_gathered()
    master.hang_up()
    attempt.publish(told)  # sent to nobody, or not at all
    round = attempt.wait_gathered(2)
    attempt.publish(round)
    attempt.wait_over()
    assert attempt.published and _home(tmp_path) == {"a": "one"}
    assert len(node.troubles) == 1 and "the connection for files was lost" in node.troubles[0]


def test_an_answer_to_an_earlier_check_publishes_nothing(
    node: Node, master: Master, run: str, tmp_path: Path
) -> None:
    loser = node.finished(run, "t1", a="old")
    checked = loser.wait_gathered()  # ours, says Redis now
    winner = node.finished(run, "t2", a="new")  # the item is given away, and sent by another attempt
    master.hang_up()
    loser.wait_gathered(2)  # its scratch is newer than the check
    winner.wait_gathered()
    loser.publish(checked)
    winner.publish_until_over()
    assert winner.published and _home(tmp_path) == {"a": "new"}
    assert not loser.published and loser.failure is None


def test_a_publish_over_a_lost_connection_never_moves_what_the_next_one_gathers(
    run: str, tmp_path: Path, address: str
) -> None:
    """The gate of the lost connection comes to its "publish" only when a file of the new round is half there."""
    key = {"run": run, "seq": 1, "token": "t1"}
    facts = {"op": "file", "path": "a", "file": "a", "mode": 0o644, "mtime_ns": 0, "verify": False}
    answers: list[bytes] = []
    with connect(address) as queue:
        old, new = (FileGate(answers.append, QueueRuns(lambda: queue), OwnDisk()) for _ in range(2))
        for gate, text, parts in ((old, b"old", [b"old"]), (new, b"newer", [b"ne"])):
            gate.take({"op": "make", **key, "subdirectory": ""}, b"")
            gate.take({**facts, "size": len(text)}, b"")
            for part in parts:
                gate.take({}, part)
        old.take({"end": True, "sha256": None}, b"")
        old.take({"op": "made"}, b"")
        old.take({"op": "publish", **key, "taken": {}}, b"")
        assert _home(tmp_path) == {"a": "old"}
        new.take({}, b"wer")
        new.take({"end": True, "sha256": None}, b"")
        new.take({"op": "made"}, b"")
        new.take({"op": "publish", **key, "taken": {}}, b"")
        assert _home(tmp_path) == {"a": "newer"}
    assert b"failed" not in b"".join(answers)
    assert os.listdir(tmp_path / "OUT" / ".ppss" / run) == []


def test_an_attempt_whose_scratch_a_newer_one_removed_is_told_that_it_lost(
    node: Node, run: str, tmp_path: Path
) -> None:
    loser = node.finished(run, "t1", a="old")
    checked = loser.wait_gathered()
    winner = node.finished(run, "t2", a="new")
    winner.publish(winner.wait_gathered())
    winner.wait_over()
    loser.publish(checked)
    loser.wait_over()
    assert isinstance(loser.failure, LeaseLost)
    assert _home(tmp_path) == {"a": "new"}


def test_an_output_directory_that_can_not_be_used_is_told_and_the_gate_lives(
    node: Node, run: str, tmp_path: Path
) -> None:
    (tmp_path / "OUT").write_text("a file")
    attempt = node.finished(run, "t1", a="one")
    wait_until(lambda: node.troubles, "trouble")
    assert f"can't write in output directory '{tmp_path}/OUT'" in node.troubles[0]
    (tmp_path / "OUT").unlink()
    attempt.publish(attempt.wait_gathered())
    attempt.wait_over()
    assert _home(tmp_path) == {"a": "one"}


def test_a_master_that_can_not_take_outputs_is_asked_less_and_less_often(
    node: Node, master: Master, run: str, tmp_path: Path
) -> None:
    """Each time all outputs are sent."""
    (tmp_path / "OUT").write_text("a file")
    node.finished(run, "t1", a="one")
    wait_until(lambda: node.troubles, "trouble")
    time.sleep(1.5)
    assert len(node.troubles) <= 7  # 0.05 + 0.1 + 0.2 ... s at least


def test_compressed_outputs_are_the_same(master: Master, run: str, tmp_path: Path) -> None:
    node = Node(master, tmp_path, compress=True)
    attempt = node.finished(run, "t1", text="word " * 200_000, noise=os.urandom(300_000).hex()[:400_001])
    attempt.publish(attempt.wait_gathered())
    attempt.wait_over()
    assert _home(tmp_path) == {name: (tmp_path / "t1" / name).read_text() for name in ("text", "noise")}
    node.uploading.stop()


def test_discarded_outputs_leave_nothing_on_the_master(node: Node, run: str, tmp_path: Path) -> None:
    attempt = node.finished(run, "t1", a="one")
    attempt.wait_gathered()
    (scratch,) = (tmp_path / "OUT" / ".ppss" / run).iterdir()
    node.uploading.discard(attempt.upload)
    wait_until(lambda: not scratch.exists(), "the scratch is gone")
