"""What a node does with the files that a gate gives; test_sftp_gate.py has the rest, with real gates."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from helpers import wait_until
from ppss_worker.fetching import Fetch, Fetching
from ppss_worker.file_line import FileLine
from ppss_worker.messages import Header, MessageReader, packed
from ppss_worker.running import ItemRefused
from ppss_worker.runs import ActiveRun
from ppss_worker.scratch import ScratchSpace
from ppss_worker.throttle import Throttle

from ppss_queue.errors import ConnectFailed
from ppss_queue.model import Item, Lease, RunSpec

_SPEC = RunSpec(command=("true",), roots=("/in",), stage=True)


def _open_files() -> list[str]:
    """Without directories: the thread that removes scratch has those open at any time."""
    paths = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # another thread closed it
            if link.is_file():
                paths.append(os.readlink(link))
    return paths


def test_a_file_that_fails_in_the_middle_leaves_nothing_open(tmp_path: Path) -> None:
    """The failure is its last message, so there is no later one at which it could be closed."""
    node, gate = socket.socketpair()

    def give_halves() -> None:
        for _ in MessageReader(gate.recv):
            first: Header = {"file": "f", "size": 4, "mode": 0o644, "mtime_ns": 0}
            gate.sendall(packed(first) + packed({}, b"ha"))
            gate.sendall(packed({"failed": "gone meanwhile", "kind": "gone"}) + packed({"done": True}))

    threading.Thread(target=give_halves, daemon=True).start()
    space = ScratchSpace(tmp_path / "scratch", "w1")
    space.prepare()
    fetching = Fetching(
        lambda: node, space, Throttle(None), lambda: None, lambda sentence: None, compress=False
    )
    fetching.start()
    run = ActiveRun("k3v9", _SPEC, None, None, {}, None, True)
    for seq in range(1, 21):
        fetching.add(Lease("k3v9", f"{seq}-ab", Item(seq, "f"), 0, 0), run)
    done: list[Fetch] = []

    def all_done() -> bool:
        done.extend(fetching.done())
        return len(done) == 20

    wait_until(all_done, "20 failures")
    assert all(isinstance(fetch.error, ItemRefused) for fetch in done)
    assert not [path for path in _open_files() if path.startswith(f"{space.directory}/") and "/work/" in path]
    fetching.stop()
    space.close()
    gate.close()


class _Broken:
    """A channel of an SSH connection that was lost in a key exchange."""

    def recv(self, count: int) -> bytes:
        raise RuntimeError("Key-exchange timed out")  # paramiko.SSHException is no OSError either

    def sendall(self, data: bytes) -> None:
        raise RuntimeError("Key-exchange timed out")

    def shutdown(self, how: int) -> None:
        raise EOFError

    def close(self) -> None:
        pass


def test_whatever_a_lost_channel_raises_is_a_lost_connection() -> None:
    line = FileLine(_Broken)
    for use in (lambda: line.send(b"x"), line.read):
        try:
            use()
        except ConnectFailed as error:
            assert str(error) == "the connection for files was lost (Key-exchange timed out)."
        else:
            raise AssertionError(use)
    line.close()
