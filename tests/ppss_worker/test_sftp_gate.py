"""The protocol for files, as both gates must speak it: the master's own, and the node's with SFTP to the master.

What is sent here comes from the node's real halves (Fetching, Uploading) where they can be used, else by hand.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from helpers import as_root, missing, mounted, wait_until
from ppss_worker.disk import OwnDisk
from ppss_worker.fetching import Fetch, Fetching
from ppss_worker.file_gate import FileGate, QueueRuns
from ppss_worker.file_line import Channel, OpenFiles
from ppss_worker.messages import Header, MessageReader, packed
from ppss_worker.running import ItemRefused
from ppss_worker.runs import ActiveRun
from ppss_worker.scratch import ScratchSpace
from ppss_worker.sftp import gate as sftp_gate
from ppss_worker.sftp.gate import open_sftp_files
from ppss_worker.throttle import Throttle
from ppss_worker.uploading import Upload, Uploading

from ppss_queue.errors import ConnectFailed, PpssError
from ppss_queue.model import Item, Lease, RunSpec, SharedFile
from ppss_queue.queue import connect

_RUN = "k3v9"
_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server")
_IS_ROOT = os.geteuid() == 0
_NOBODY = 65534


class _Master:
    """Files of the master, its Redis, and connections to either gate."""

    def __init__(self, kind: str, address: str, directory: Path) -> None:
        self.kind = kind
        self.source = directory / "in"
        self.output = directory / "out"
        self.source.mkdir()
        self._queue = connect(address)
        self._address = address
        self.servers: list[subprocess.Popen[bytes]] = []
        self.server_options: tuple[str, ...] = ()
        self._threads: list[threading.Thread] = []
        self._nodes: list[Channel] = []

    def make_run(self, **fields: object) -> RunSpec:
        values = {
            "command": ("true",),
            "directory": str(self.source),
            "roots": (str(self.source), ""),
            "output": str(self.output),
            "stage": True,
        }
        spec = RunSpec(**{**values, **fields})  # type: ignore[arg-type]
        assert self._queue.store.create(_RUN, spec)
        return spec

    def end_run(self) -> None:
        self._queue.run(_RUN).cancel()

    def open(self) -> Channel:
        """A connection to the gate; the end of which is the end of its server."""
        runs = QueueRuns(lambda: connect(self._address))
        if self.kind == "sftp":
            self._nodes.append(open_sftp_files(self._open_sftp, runs.spec, runs.is_over))
            return self._nodes[-1]
        node, here = socket.socketpair()
        self._nodes.append(node)
        thread = threading.Thread(target=self._serve, args=(here, runs), daemon=True)
        thread.start()
        self._threads.append(thread)
        return node

    def _serve(self, here: socket.socket, runs: QueueRuns) -> None:
        gate = FileGate(here.sendall, runs, OwnDisk())
        with here:
            with suppress(ConnectFailed, OSError):
                for header, data in MessageReader(here.recv):
                    gate.take(header, data)
            gate.sweep()

    def _open_sftp(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            server = subprocess.Popen([_sftp_server(), *self.server_options], stdin=theirs, stdout=theirs)
        self.servers.append(server)
        return ours

    @property
    def scratches(self) -> list[str]:
        with suppress(FileNotFoundError):
            return sorted(os.listdir(self.output / ".ppss" / _RUN))
        return []

    def close(self) -> None:
        for node in self._nodes:
            with suppress(OSError):
                node.shutdown(socket.SHUT_RDWR)
            node.close()
        for server in self.servers:
            server.kill()
            server.wait()
        for thread in self._threads:
            thread.join(10)
        self._queue.close()


def _sftp_server() -> str:
    found = next((path for path in _SERVERS if os.path.exists(path)), None)
    return found or missing("sftp-server (openssh-sftp-server): files over SFTP are NOT TESTED")


@pytest.fixture(params=["gate", "sftp"])
def master(request: pytest.FixtureRequest, address: str, tmp_path: Path) -> Iterator[_Master]:
    if request.param == "sftp":
        _sftp_server()
    place = _Master(request.param, address, tmp_path)
    yield place
    place.close()
    subprocess.run(["chmod", "-R", "u+rwx", tmp_path], check=True)


@pytest.fixture
def sftp_master(address: str, tmp_path: Path) -> Iterator[_Master]:
    _sftp_server()
    place = _Master("sftp", address, tmp_path)
    yield place
    place.close()


class _Node:
    """Speaks the protocol by hand, over one connection."""

    def __init__(self, master: _Master) -> None:
        self.socket = master.open()
        self._messages = MessageReader(self.socket.recv)

    def send(self, header: Header, data: bytes = b"") -> None:
        self.socket.sendall(packed(header, data))

    def read(self) -> Header:
        message = self._messages.read()
        assert message is not None, "the gate hung up"
        return message[0]

    def fetch(self, name: str, *, skip: bool = False) -> list[tuple[Header, bytes]]:
        self.send({"op": "fetch", "run": _RUN, "root": 0, "name": name, "skip": skip})
        found = []
        while True:
            message = self._messages.read()
            assert message is not None
            if "done" in message[0]:
                return found
            found.append(message)

    def make(self, token: str, *, seq: int = 17, subdirectory: str = "") -> None:
        self.send({"op": "make", **_key(token, seq), "subdirectory": subdirectory})

    def file(self, path: str, data: bytes, *, cut: bool = False) -> None:
        """One file, whole or up to its middle."""
        facts: Header = {"size": len(data), "mode": 0o644, "mtime_ns": 10**18, "verify": False}
        self.send({"op": "file", "path": path, "file": "x", **facts})
        if cut:
            self.send({}, data[: len(data) // 2])
            return
        if data:
            self.send({}, data)
        self.send({"end": True, "sha256": None})

    def made(self) -> Header:
        self.send({"op": "made"})
        return self.read()

    def publish(self, token: str, *, seq: int = 17, taken: Header | None = None) -> Header:
        self.send({"op": "publish", **_key(token, seq), "taken": taken or {}})
        return self.read()

    def discard(self, token: str, *, seq: int = 17) -> None:
        self.send({"op": "discard", **_key(token, seq)})

    def upload(self, token: str, *, subdirectory: str = "", seq: int = 17, **files: str) -> Header:
        self.make(token, subdirectory=subdirectory, seq=seq)
        for name, text in files.items():
            self.file(name, text.encode())
        return self.made()

    def hang_up(self) -> None:
        self.socket.close()


def _key(token: str, seq: int) -> Header:
    return {"run": _RUN, "seq": seq, "token": token}


@dataclass
class _Home:
    """Brings one directory home with the node's real half."""

    names: list[Sequence[str]] = field(default_factory=list)
    errors: list[PpssError] = field(default_factory=list)
    published: list[bool] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    compress: bool = False

    @contextmanager
    def uploading(self, open_files: OpenFiles) -> Iterator[Uploading]:
        uploading = Uploading(
            open_files, Throttle(None), lambda: None, self.troubles.append, compress=self.compress
        )
        uploading.start()
        yield uploading
        uploading.stop()

    def bring(
        self,
        master: _Master,
        out: Path,
        subdirectory: str = "",
        *,
        verify: bool = False,
        open_files: OpenFiles | None = None,
        timeout_seconds: float = 60,
    ) -> None:
        """Until it is published, or has failed."""
        with self.uploading(open_files or master.open) as uploading:

            def gathered(names: Sequence[str], round: int) -> None:
                self.names.append(names)
                uploading.publish(upload, round, {})

            upload = Upload(
                Lease(_RUN, "5-ab", Item(17, "x"), 0, 0),
                str(out),
                subdirectory,
                verify,
                gathered,
                lambda: self.published.append(True),
                self.errors.append,
            )
            uploading.gather(upload)

            def over() -> bool:
                uploading.handle_answers()
                return bool(self.published or self.errors)

            wait_until(over, f"outputs are home {self.troubles}", timeout_seconds)


def _snapshot(top: str | Path) -> dict[bytes, tuple[object, ...]]:
    """All below a directory but .ppss: kind and mode, contents or target, and the second of the mtime of files."""
    found: dict[bytes, tuple[object, ...]] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        for name in sorted(os.listdir(os.path.join(os.fsencode(top), path))):
            relative = os.path.join(path, name)
            if relative == b".ppss":
                continue
            full = os.path.join(os.fsencode(top), relative)
            status = os.lstat(full)
            if stat.S_ISDIR(status.st_mode):
                pending.append(relative)
                found[relative] = (oct(status.st_mode),)
            elif stat.S_ISLNK(status.st_mode):
                found[relative] = ("link", os.readlink(full))
            else:
                body = Path(os.fsdecode(full)).read_bytes()
                digest = hashlib.sha256(body).hexdigest()
                found[relative] = (oct(status.st_mode), len(body), digest, int(status.st_mtime))
    return found


# Outputs come home


_HOSTILE = [
    b" ", b"\n", b"a\nb", b"-rf", b"\xff\xfe", b"\\", b"$(id)", b"~", b"*", b"x" * 255, b"\xc3\xa9", b"0.0",
    b"'\"", b"%s", b".hidden", b"...", b"{}", b"\x01\x7f", b"\xe2\x80\xae", b"con", b"a;b|c&d", b"#", b".ppss.",
]  # fmt: skip


def _plant_everything(top: Path) -> None:
    top.mkdir(exist_ok=True)
    base = os.fsencode(top)
    (top / ".dot").write_text("dot")
    (top / "empty/inner/.more").mkdir(parents=True)
    (top / "zero").touch()
    (top / "link").symlink_to("zero")
    (top / "dangling").symlink_to("../nowhere/\udcff")
    (top / "absolute").symlink_to("/etc/passwd")
    (top / "to-directory").symlink_to("empty")
    (top / "long-link").symlink_to("y" * 3000)
    for mode in (0o000, 0o400, 0o600, 0o644, 0o755, 0o777):
        (top / f"mode{mode:03o}").write_text(f"{mode}")
        (top / f"mode{mode:03o}").chmod(mode)
        inner = top / f"directory{mode:03o}"
        inner.mkdir()
        (inner / "f").write_text("f")
    (top / "old").write_text("old")
    os.utime(top / "old", (1, 1))
    for number, name in enumerate(_HOSTILE):
        Path(os.fsdecode(base + b"/" + name)).write_bytes(name)
        inner_hostile = base + b"/empty/" + name
        os.mkdir(inner_hostile)
        Path(os.fsdecode(inner_hostile + b"/" + name)).write_bytes(b"%d" % number)
    deep = top
    for level in range(40):
        deep = deep / f"level{level}"
        deep.mkdir()
    (deep / "bottom").write_text("bottom")
    (top / "big").write_bytes(random.Random(1).randbytes(3_000_001))
    with (top / "sparse").open("wb") as file:
        file.write(b"head")
        file.seek(50_000_000)
        file.write(b"middle")
        file.truncate(200_000_000)
    for mode in (0o000, 0o500, 0o555, 0o755, 0o777, 0o2775):
        (top / f"directory-of-{mode:04o}").mkdir()
        (top / f"directory-of-{mode:04o}" / "f").write_text("f")


def _close_directories(top: Path) -> None:
    for mode in (0o000, 0o500, 0o555, 0o755, 0o777, 0o2775):
        (top / f"directory-of-{mode:04o}").chmod(mode)


@pytest.mark.parametrize("compress", [False, True])
def test_every_kind_of_output_comes_home_as_it_is(master: _Master, tmp_path: Path, compress: bool) -> None:
    master.make_run()
    out = tmp_path / "node"
    _plant_everything(out)
    expected = _snapshot(out)
    _close_directories(out)
    home = _Home(compress=compress)
    home.bring(master, out, "x/y", verify=True)
    assert not home.errors and not home.troubles
    found = master.output / "x/y"
    for mode in (0o000, 0o500, 0o555, 0o755, 0o777, 0o2775):
        directory = found / f"directory-of-{mode:04o}"
        assert stat.S_IMODE(directory.stat().st_mode) == mode
        directory.chmod(stat.S_IMODE(0o755))
        expected[os.fsencode(directory.name)] = (oct(stat.S_IFDIR | 0o755),)
    assert _snapshot(found) == expected
    assert (found / "sparse").stat().st_blocks < 1000
    names = home.names[0]
    assert list(names) == sorted(names)
    assert "x/y/empty/inner/.more/" in names and "x/y/empty/inner/" not in names and "x/y/sparse" in names
    assert master.scratches == []


def test_both_gates_tell_the_same_names(address: str, tmp_path: Path) -> None:
    _sftp_server()
    told = []
    for number, kind in enumerate(("gate", "sftp")):
        (tmp_path / kind).mkdir()
        master = _Master(kind, address, tmp_path / kind)
        if not number:
            master.make_run()
        node = _Node(master)
        node.make("5-ab", subdirectory="a/./b")
        for path in ("d", "d/e", "f", "\udcff"):
            node.send({"op": "directory", "path": path, "mode": 0o755})
        node.file("d/e/z", b"1")
        node.file("\udcff/\n", b"1")
        node.file("Z", b"1")
        node.send({"op": "link", "path": "a", "target": "b"})
        told.append(node.made())
        node.hang_up()
        master.close()
    assert told[0] == told[1] == {"outputs": ["a/b/Z", "a/b/a", "a/b/d/e/z", "a/b/f/", "a/b/\udcff/\n"]}


def test_nothing_to_bring_home_makes_nothing(master: _Master) -> None:
    master.make_run()
    node = _Node(master)
    assert node.upload("5-ab", subdirectory="a") == {"outputs": []}
    assert node.publish("5-ab") == {"published": 0}
    assert _snapshot(master.output) == {}
    assert master.scratches == []


def test_files_from_before_are_replaced_and_directories_keep_their_mode(master: _Master) -> None:
    master.make_run()
    (master.output / "d").mkdir(parents=True)
    (master.output / "d").chmod(0o711)
    (master.output / "d/a").write_text("before")
    (master.output / "d/b").symlink_to("/etc/passwd")
    node = _Node(master)
    node.make("5-ab")
    node.send({"op": "directory", "path": "d", "mode": 0o755})
    node.file("d/a", b"after")
    node.file("d/b", b"no link")
    node.made()
    assert (master.output / "d/a").read_text() == "before"
    assert node.publish("5-ab") == {"published": 2}
    assert (master.output / "d/a").read_text() == "after"
    assert (master.output / "d/b").read_text() == "no link" and not (master.output / "d/b").is_symlink()
    assert stat.S_IMODE((master.output / "d").stat().st_mode) == 0o711


def test_what_is_discarded_leaves_nothing(master: _Master) -> None:
    master.make_run()
    node = _Node(master)
    node.upload("5-ab", a="1", b="2")
    assert len(master.scratches) == 1
    node.discard("5-ab")
    assert node.publish("5-ab")["kind"] == "lost"
    assert master.scratches == []
    assert _snapshot(master.output) == {}


def test_many_uploads_on_one_connection_are_answered_in_order(master: _Master) -> None:
    master.make_run()
    node = _Node(master)
    for seq in range(1, 51):
        node.make(f"{seq}-ab", seq=seq)
        for number in range(5):
            node.file(f"{seq}.{number}", b"%d" % seq)
        node.send({"op": "made"})
    for seq in range(1, 51):
        assert node.read() == {"outputs": [f"{seq}.{number}" for number in range(5)]}
    for seq in range(1, 51):
        node.send({"op": "publish", **_key(f"{seq}-ab", seq), "taken": {}})
    assert [node.read() for _ in range(50)] == [{"published": 5}] * 50
    assert len(_snapshot(master.output)) == 250
    assert master.scratches == []


def test_very_many_outputs_of_one_item_come_home(master: _Master) -> None:
    """Their names are more than 4 MiB."""
    master.make_run()
    node = _Node(master)

    def send() -> None:
        node.make("5-ab")
        for number in range(17_500):
            node.send({"op": "link", "path": f"{number:05}{'x' * 240}", "target": "t"})
        node.send({"op": "made"})

    sender = threading.Thread(target=send)
    sender.start()
    assert len(node.read()["outputs"]) == 17_500  # type: ignore[arg-type]
    sender.join()
    assert node.publish("5-ab") == {"published": 17_500}
    assert len(os.listdir(master.output)) == 17_501
    assert master.scratches == []


# What is refused


def test_reserved_and_taken_names_are_refused_with_the_same_sentences(master: _Master) -> None:
    master.make_run()
    node = _Node(master)
    node.make("5-ab")
    node.send({"op": "directory", "path": ".ppss", "mode": 0o755})
    node.file(".ppss/a", b"1")
    assert node.made() == {"outputs": [".ppss/a"]}
    assert node.publish("5-ab") == {
        "failed": "writes '.ppss/a', but '.ppss' in the output directory is kept for scratch",
        "kind": "refused",
    }
    node.upload("6-ab", a="1", b="1")
    assert node.publish("6-ab", taken={"a": [3, "other"], "b": [4, "more"]}) == {
        "failed": "writes 'a' (and 1 more), which item 'other' (#3) of this run has written already",
        "kind": "refused",
    }
    assert _snapshot(master.output) == {}


@pytest.mark.parametrize(
    ("plant", "sentence"),
    [
        (lambda out: (out / "a").mkdir(), "writes 'a', which is a directory in '.' of "),
        (lambda out: (out / "d").write_text(""), "writes into 'd' of {out}, but 'd' is a file there"),
        (
            lambda out: (out / "d").symlink_to("/"),
            "writes into 'd' of {out}, but 'd' is a symbolic link there",
        ),
    ],
)
def test_what_is_in_the_way_is_refused_before_anything_is_moved(
    master: _Master, plant: Callable[[Path], None], sentence: str
) -> None:
    master.make_run()
    master.output.mkdir()
    plant(master.output)
    before = _snapshot(master.output)
    node = _Node(master)
    node.make("5-ab")
    node.send({"op": "directory", "path": "d", "mode": 0o755})
    node.file("d/x", b"1")
    node.file("a", b"1")
    node.made()
    answer = node.publish("5-ab")
    assert answer["kind"] == "refused"
    assert sentence.format(out=repr(str(master.output))) in str(answer["failed"])
    assert _snapshot(master.output) == before


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "d/x", "", "."])
def test_a_path_that_leads_elsewhere_is_refused(master: _Master, path: str) -> None:
    """A link that was sent is no directory, so nothing can be written through it."""
    master.make_run()
    node = _Node(master)
    node.make("5-ab")
    node.send({"op": "link", "path": "d", "target": str(master.source)})
    node.file(path, b"1")
    assert node.made()["kind"] == "refused"
    assert _snapshot(master.output) == {} and _snapshot(master.source) == {}


@pytest.mark.parametrize("subdirectory", ["..", "a/../..", "/etc"])
def test_an_item_outside_is_refused(master: _Master, subdirectory: str) -> None:
    master.make_run()
    answer = _Node(master).upload("5-ab", subdirectory=subdirectory, a="1")
    assert answer == {
        "failed": f"would write to {subdirectory!r}, which is not below the output directory",
        "kind": "refused",
    }


def test_a_name_that_is_too_long_is_refused(master: _Master) -> None:
    master.make_run()
    node = _Node(master)
    node.upload("5-ab", **{"x" * 256: "1"})
    answer = node.upload("6-ab", **{"x" * 256: "1"})
    assert answer["kind"] == "refused" and str(answer["failed"]).startswith(
        f"writes '{'x' * 256}', which can't"
    )


def test_a_source_that_fails_on_the_node_refuses_the_outputs(master: _Master) -> None:
    master.make_run()
    node = _Node(master)
    node.make("5-ab")
    node.file("a", b"abcdef", cut=True)
    node.send({"failed": "it became shorter while it was copied", "kind": "changed"})
    node.file("b", b"1")
    assert node.made() == {
        "failed": "could not be read to its end: it became shorter while it was copied",
        "kind": "refused",
    }
    node.make("6-ab")
    node.file("a", b"abcdef", cut=True)
    assert node.made() == {"failed": "was cut short in the middle of a file", "kind": "refused"}
    assert _snapshot(master.output) == {}


def test_an_output_directory_that_can_not_be_used_is_told(master: _Master) -> None:
    master.make_run()
    master.output.write_text("a file")
    answer = _Node(master).upload("5-ab", a="1")
    assert answer["kind"] == "machine"
    assert str(answer["failed"]).startswith(f"can't write in output directory '{master.output}': ")


def test_something_else_in_the_place_of_scratch_is_told(master: _Master) -> None:
    master.make_run()
    master.output.mkdir()
    (master.output / ".ppss").symlink_to(master.source)
    answer = _Node(master).upload("5-ab", a="1")
    assert answer == {
        "failed": f"'{master.output}/.ppss' is no directory, but scratch belongs there. Remove it.",
        "kind": "machine",
    }


def test_a_run_without_outputs_or_that_is_gone_is_told(master: _Master) -> None:
    master.make_run(output=None)
    node = _Node(master)
    assert node.upload("5-ab", a="1") == {"failed": "run k3v9 has no output directory", "kind": "machine"}
    node.send({"op": "make", "run": "zzzz", "seq": 1, "token": "1-a", "subdirectory": ""})
    assert "zzzz" in str(node.made()["failed"])


def test_a_full_disk_is_the_masters_failure_and_goes_on_when_there_is_room(
    master: _Master, tmp_path: Path
) -> None:
    master.make_run()
    with mounted(master.output, "size=1m"):
        node = _Node(master)
        node.make("5-ab")
        node.send(
            {
                "op": "file",
                "path": "a",
                "file": "x",
                "size": 2 << 20,
                "mode": 0o644,
                "mtime_ns": 0,
                "verify": False,
            }
        )
        for _ in range(8):
            node.send({}, b"x" * (1 << 18))
        node.send({"end": True, "sha256": None})
        answer = node.made()
        assert answer["kind"] == "machine" and "No space left on device" in str(answer["failed"])
        node.discard("5-ab")
        assert node.upload("6-ab", a="1") == {"outputs": ["a"]}
        assert node.publish("6-ab") == {"published": 1}
        node.hang_up()
        master.close()


def test_a_mount_below_the_output_directory_is_refused(master: _Master) -> None:
    master.make_run()
    with mounted(master.output / "d", "size=1m"):
        node = _Node(master)
        node.upload("5-ab", subdirectory="d", a="1")
        assert node.publish("5-ab") == {
            "failed": f"can't write into 'd' of '{master.output}': another file system is mounted there",
            "kind": "refused",
        }
        node.hang_up()


# The fence


def test_a_late_publish_of_an_older_token_finds_nothing(master: _Master) -> None:
    """The older attempt passed its check of the token, and was frozen before it said "publish"."""
    master.make_run()
    older, newer = _Node(master), _Node(master)
    older.upload("5-ab", a="older", c="only older")
    newer.upload("6-cd", a="newer", b="newer")
    assert newer.publish("6-cd") == {"published": 2}
    assert older.publish("5-ab")["kind"] == "lost"
    assert {name: (master.output / name).read_text() for name in ("a", "b")} == {"a": "newer", "b": "newer"}
    assert not (master.output / "c").exists()
    assert master.scratches == []


def test_an_older_attempt_that_publishes_first_is_replaced(master: _Master) -> None:
    master.make_run()
    older, newer = _Node(master), _Node(master)
    older.upload("5-ab", a="older")
    newer.upload("6-cd", a="newer")
    assert older.publish("5-ab") == {"published": 1}
    assert newer.publish("6-cd") == {"published": 1}
    assert (master.output / "a").read_text() == "newer"


def test_an_older_attempt_leaves_the_scratch_of_a_newer_one(master: _Master) -> None:
    """It was made after the older one's list of siblings."""
    master.make_run()
    older, newer = _Node(master), _Node(master)
    older.upload("5-ab", a="older")
    newer.make("6-cd")
    newer.file("a", b"newer", cut=True)
    assert older.publish("5-ab") == {"published": 1}
    newer.send({}, b"wer")
    newer.send({"end": True, "sha256": None})
    assert newer.made() == {"outputs": ["a"]}
    assert newer.publish("6-cd") == {"published": 1}
    assert (master.output / "a").read_text() == "newer"


def test_what_a_newer_attempt_removed_in_mid_upload_is_lost(master: _Master) -> None:
    master.make_run()
    older, newer = _Node(master), _Node(master)
    older.upload("4-00", seq=18, a="x")  # answered: the gate is there
    older.make("5-ab")
    older.file("a", b"older")
    older.send({"op": "directory", "path": "d", "mode": 0o755})
    wait_until(
        lambda: any(os.path.exists(master.output / ".ppss" / _RUN / name / "d") for name in master.scratches),
        "d",
    )
    newer.upload("6-cd", a="newer")
    assert newer.publish("6-cd") == {"published": 1}
    older.file("d/b", b"older")
    older.file("c", b"older" * 1000)
    assert older.made()["kind"] == "lost"
    assert (master.output / "a").read_text() == "newer"


def test_a_publish_over_a_lost_connection_never_moves_what_the_next_one_gathers(master: _Master) -> None:
    """The node lost its connection after it said "publish", and gathers anew with the same token; the old gate
    comes to it only now, when a file of the new round is half there.
    """
    master.make_run()
    old, new = _Node(master), _Node(master)
    old.upload("5-ab", a="whole" * 1000)
    new.make("5-ab")
    new.file("first", b"1")
    new.file("a", b"other" * 100_000, cut=True)
    answer = old.publish("5-ab")
    assert answer == {"published": 1} and (master.output / "a").read_text() == "whole" * 1000
    new.send({}, (b"other" * 100_000)[250_000:])
    new.send({"end": True, "sha256": None})
    assert new.made() == {"outputs": ["a", "first"]}
    assert new.publish("5-ab") == {"published": 2}
    assert (master.output / "a").read_bytes() == b"other" * 100_000
    assert master.scratches == []


def test_a_round_that_was_published_anew_can_not_be_replaced_by_the_lost_one(master: _Master) -> None:
    master.make_run()
    old, new = _Node(master), _Node(master)
    old.upload("5-ab", a="old")
    new.upload("5-ab", a="new")
    assert new.publish("5-ab") == {"published": 1}
    assert old.publish("5-ab")["kind"] == "lost"
    assert (master.output / "a").read_text() == "new"


def test_an_earlier_scratch_of_any_shape_is_removed(master: _Master, tmp_path: Path) -> None:
    master.make_run()
    node = _Node(master)
    node.upload("4-aa", seq=18, a="1")
    planted = master.output / ".ppss" / _RUN / "17.4-zz"
    _plant_everything(planted)
    _close_directories(planted)
    deep = planted / "deep"
    deep.mkdir()
    for _ in range(300):  # beyond the longest path
        os.makedirs(f"{deep}/{'d' * 100}")
        moved = deep.with_name("moved")
        deep.rename(moved)
        deep.mkdir()
        moved.rename(deep / "d")
    node.upload("5-ab", a="1")
    assert node.publish("5-ab") == {"published": 1}
    assert not planted.exists()
    assert len(master.scratches) == 1, "that of the other item stays"


def test_a_killed_node_leaves_no_partial_output_and_is_swept(master: _Master) -> None:
    master.make_run()
    node, other = _Node(master), _Node(master)
    node.upload("5-ab", a="1")
    node.upload("4-00", seq=18, a="1")
    node.make("6-ab", seq=19)
    node.file("whole", b"1")
    node.file("b", b"x" * 200_000, cut=True)
    node.hang_up()
    other.upload("7-ab", seq=20, z="1")
    assert other.publish("7-ab", seq=20) == {"published": 1}
    assert set(_snapshot(master.output)) == {b"z"}
    assert master.scratches
    master.end_run()
    other.hang_up()
    wait_until(lambda: not (master.output / ".ppss").exists(), "the sweep")
    assert set(_snapshot(master.output)) == {b"z"}


def test_scratch_of_a_run_that_is_not_over_is_not_swept(master: _Master) -> None:
    master.make_run()
    node, other = _Node(master), _Node(master)
    other.upload("5-ab", a="1")
    node.upload("6-ab", seq=18, a="1")
    node.hang_up()
    time.sleep(0.2)
    assert other.publish("5-ab") == {"published": 1}


def test_closing_the_connection_waits_for_the_sweep(sftp_master: _Master) -> None:
    """The process of the node may end at once after it."""
    sftp_master.make_run()
    node = _Node(sftp_master)
    node.upload("5-ab", a="1")
    sftp_master.end_run()
    node.hang_up()
    assert not (sftp_master.output / ".ppss").exists()


def test_an_idle_gate_sweeps(sftp_master: _Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_gate, "SWEEP_SECONDS", 0.05)
    sftp_master.make_run()
    node = _Node(sftp_master)
    node.upload("5-ab", a="1")
    time.sleep(0.2)
    assert sftp_master.scratches
    sftp_master.end_run()
    wait_until(lambda: not (sftp_master.output / ".ppss").exists(), "the sweep")


def test_a_lost_connection_in_mid_upload_is_opened_again_and_all_is_gathered_anew(
    sftp_master: _Master, tmp_path: Path
) -> None:
    sftp_master.make_run()
    out = tmp_path / "node"
    out.mkdir()
    for number in range(50):
        (out / f"f{number}").write_bytes(random.Random(number).randbytes(400_000))
    home = _Home()

    def kill_in_the_middle() -> None:
        wait_until(lambda: sftp_master.servers and sftp_master.scratches, "an upload")
        for server in list(sftp_master.servers):
            server.kill()

    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    home.bring(sftp_master, out)
    killer.join()
    assert home.published and home.troubles and len(sftp_master.servers) == 2
    assert _snapshot(sftp_master.output) == _snapshot(out)
    assert sftp_master.scratches == []


# Files are fetched


def _whole(messages: Sequence[tuple[Header, bytes]]) -> bytes:
    """What one fetched file is made of."""
    first, *rest, last = messages
    assert "file" in first[0] and last[0].get("end"), (first[0], last[0])
    parts = [data if data else b"\0" * int(str(header["hole"])) for header, data in rest]
    assert sum(map(len, parts)) == first[0]["size"]
    return b"".join(parts)


def _failed(messages: Sequence[tuple[Header, bytes]]) -> tuple[object, object]:
    header = messages[-1][0]
    return header["kind"], header["failed"]


@pytest.mark.parametrize("size", [0, 1, 32_768, 261_119, 261_120, 261_121, 262_144, 6_000_001])
def test_a_file_of_any_size_is_given_whole(master: _Master, size: int) -> None:
    master.make_run(verify=True)
    body = random.Random(size).randbytes(size)
    file = master.source / "d" / "f"
    file.parent.mkdir()
    file.write_bytes(body)
    file.chmod(0o4751)
    os.utime(file, (1_500_000_000, 1_500_000_000))
    messages = _Node(master).fetch("d/f")
    assert _whole(messages) == body
    assert messages[0][0] == {
        "file": "f",
        "size": size,
        "mode": 0o4751,
        "mtime_ns": 1_500_000_000 * 10**9,
        "verify": True,
    }
    assert messages[-1][0]["sha256"] == hashlib.sha256(body).hexdigest()


def test_a_sparse_file_is_given_with_its_holes(master: _Master) -> None:
    master.make_run()
    with (master.source / "f").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"middle")
        file.truncate(9_000_000)
    messages = _Node(master).fetch("f")
    assert _whole(messages) == (master.source / "f").read_bytes()
    assert sum(len(data) for _, data in messages) < 600_000


def test_companions_come_along_where_they_are_there(master: _Master) -> None:
    master.make_run(also=("{.}.xmp", "{}.none", "shared.cfg", "{}.dangling"))
    for name in ("a.jpg", "a.xmp", "b.jpg", "shared.cfg"):
        (master.source / name).write_text(name)
    (master.source / "a.jpg.dangling").symlink_to("nowhere")
    node = _Node(master)
    names = [header["file"] for header, _ in node.fetch("a.jpg") if "file" in header]
    assert names == ["a.jpg", "a.xmp", "shared.cfg"]
    assert [header["file"] for header, _ in node.fetch("b.jpg") if "file" in header] == [
        "b.jpg",
        "shared.cfg",
    ]


def test_what_is_there_already_is_skipped(master: _Master) -> None:
    master.make_run(skip_existing=True)
    (master.output / "d").mkdir(parents=True)
    (master.output / "d/a").symlink_to("dangling")
    (master.source / "d").mkdir()
    for name in "ab":
        (master.source / "d" / name).write_text(name)
    node = _Node(master)
    assert node.fetch("d/a", skip=True) == [({"skipped": True}, b"")]
    assert _whole(node.fetch("d/b", skip=True)) == b"b"
    assert _whole(node.fetch("d/a")) == b"a"


def test_what_can_not_be_given_is_told_and_what_comes_after_it_is_given(master: _Master) -> None:
    """A pipe, too: opening it would wait for its writer."""
    master.make_run()
    (master.source / "dir").mkdir()
    os.mkfifo(master.source / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(master.source / "socket"))
    (master.source / "a").write_text("a")
    (master.source / "to-a").symlink_to("a")
    node = _Node(master)
    source = str(master.source)
    assert _failed(node.fetch("none")) == (
        "gone",
        f"'{source}/none' can't be read: No such file or directory",
    )
    assert _failed(node.fetch("dir")) == ("gone", f"'{source}/dir' is no regular file")
    assert _failed(node.fetch("pipe")) == ("gone", f"'{source}/pipe' is no regular file")
    assert _failed(node.fetch("socket"))[0] == "gone"
    assert _failed(node.fetch("a/b"))[0] == "gone"
    assert _failed(node.fetch("../in/a")) == ("gone", "'../in/a' is no file of the run")
    node.send({"op": "fetch", "run": _RUN, "root": 1, "name": "/etc/passwd", "skip": False})
    assert node.read() == {"failed": "'/etc/passwd' is no file of the run", "kind": "gone"}
    assert node.read() == {"done": True}
    node.send({"op": "fetch", "run": "zzzz", "root": 0, "name": "a", "skip": False})
    assert node.read()["kind"] == "unknown"
    assert node.read() == {"done": True}
    assert _whole(node.fetch("to-a")) == b"a"


def test_a_file_that_grows_while_it_is_read_has_changed(master: _Master) -> None:
    master.make_run()
    file = master.source / "f"
    file.write_bytes(b"x" * 40_000_000)
    node = _Node(master)
    node.send({"op": "fetch", "run": _RUN, "root": 0, "name": "f", "skip": False})
    assert node.read()["size"] == 40_000_000
    with file.open("ab") as more:
        more.write(b"more")
    messages = [node.read()]
    while "done" not in messages[-1]:
        messages.append(node.read())
    assert messages[-2] == {"failed": f"'{file}' was written to while it was copied", "kind": "changed"}


def test_a_file_that_becomes_shorter_while_it_is_read_has_changed(master: _Master) -> None:
    master.make_run()
    file = master.source / "f"
    file.write_bytes(b"x" * 40_000_000)
    (master.source / "next").write_text("next")
    node = _Node(master)
    node.send({"op": "fetch", "run": _RUN, "root": 0, "name": "f", "skip": False})
    node.read()
    os.truncate(file, 20_000_000)
    messages = [node.read()]
    while "done" not in messages[-1]:
        messages.append(node.read())
    assert messages[-2]["kind"] == "changed"
    assert _whole(node.fetch("next")) == b"next"


def test_many_requests_at_once_are_answered_in_their_order(master: _Master) -> None:
    """Some of them for what is not there, or is there twice."""
    master.make_run(also=("{}.also", "{}"))
    names = []
    for number in range(300):
        name = f"f{number}"
        names.append(name)
        if number % 7:
            (master.source / name).write_bytes(b"%d" % number)
        if not number % 5:
            (master.source / f"{name}.also").write_text("also")
        if not number % 60:
            (master.source / name).unlink(missing_ok=True)
            (master.source / name).write_bytes(b"%d" % number * 700_000)
    node = _Node(master)
    writer = threading.Thread(
        target=lambda: [
            node.send({"op": "fetch", "run": _RUN, "root": 0, "name": name, "skip": False}) for name in names
        ]
    )
    writer.start()
    for number, name in enumerate(names):
        files: dict[str, int] = {}
        failures = 0
        while "done" not in (header := node.read()):
            failures += "failed" in header
            if "file" in header:
                files[str(header["file"])] = files.get(str(header["file"]), 0) + 1
        there = (master.source / name).exists()
        assert failures == (not there), name
        assert files == {**({name: 2} if there else {}), **({f"{name}.also": 1} if not number % 5 else {})}
    writer.join()


class _Fetched:
    """The node's real half of fetching."""

    def __init__(self, master: _Master, spec: RunSpec, base: Path, compress: bool) -> None:
        self.troubles: list[str] = []
        self.space = ScratchSpace(base, "w1")
        self.space.prepare()
        self._run = ActiveRun(_RUN, spec, None, None, {}, None, True)
        self._fetching = Fetching(
            master.open, self.space, Throttle(None), lambda: None, self.troubles.append, compress=compress
        )
        self._fetching.start()
        self._count = 0

    def fetch(self, *names: str, root: int = 0) -> list[Fetch]:
        for name in names:
            self._count += 1
            self._fetching.add(
                Lease(_RUN, f"{self._count}-ab", Item(self._count, name, root), 0, 0), self._run
            )
        found: list[Fetch] = []

        def all_there() -> bool:
            found.extend(self._fetching.done())
            return len(found) == len(names)

        wait_until(all_there, f"files {self.troubles}", 60)
        return found

    def close(self) -> None:
        self._fetching.stop()
        self.space.close()


@contextmanager
def _fetched(master: _Master, spec: RunSpec, base: Path, *, compress: bool = False) -> Iterator[_Fetched]:
    fetched = _Fetched(master, spec, base, compress)
    yield fetched
    fetched.close()


@pytest.mark.parametrize("compress", [False, True])
def test_hostile_names_come_to_the_node_as_they_are(master: _Master, tmp_path: Path, compress: bool) -> None:
    spec = master.make_run(verify=True)
    names = [os.fsdecode(name) for name in _HOSTILE]
    for name in names:
        (master.source / "d\udcff" / name).parent.mkdir(exist_ok=True)
        (master.source / "d\udcff" / name).write_bytes(os.fsencode(name) * 1000)
    with _fetched(master, spec, tmp_path / "scratch", compress=compress) as node:
        found = node.fetch(*(f"d\udcff/{name}" for name in names))
        for fetch, name in zip(found, names, strict=True):
            assert fetch.error is None and fetch.room is not None
            assert os.listdir(fetch.room.work) == [name]
            assert (Path(fetch.room.work) / name).read_bytes() == os.fsencode(name) * 1000


def test_files_of_with_are_shared_and_checked(master: _Master, tmp_path: Path) -> None:
    body = random.Random(7).randbytes(1_000_000)
    (master.source / "model").mkdir()
    (master.source / "model/weights").write_bytes(body)
    good = SharedFile("model/weights", len(body), 0o755, hashlib.sha256(body).hexdigest())
    spec = master.make_run(shared=(good,))
    (master.source / "a").write_text("a")
    with _fetched(master, spec, tmp_path / "scratch") as node:
        first, second = node.fetch("a", "a")
        for fetch in (first, second):
            assert fetch.error is None and fetch.room is not None
            shared = Path(fetch.room.work) / "model/weights"
            assert shared.is_symlink() and shared.read_bytes() == body
            assert stat.S_IMODE(shared.stat().st_mode) == 0o555


def test_a_file_of_with_that_changed_or_is_gone_refuses_the_item(master: _Master, tmp_path: Path) -> None:
    missing = SharedFile("none", 1, 0o644, "0" * 64)
    changed = SharedFile("a", 1, 0o644, "1" * 64)
    spec = master.make_run(shared=(missing, changed))
    (master.source / "a").write_text("a")
    with _fetched(master, spec, tmp_path / "scratch") as node:
        (fetch,) = node.fetch("a")
        assert isinstance(fetch.error, ItemRefused)
        assert str(fetch.error).startswith("misses a file of --with: ")


def test_a_text_is_fetched_without_a_file(master: _Master, tmp_path: Path) -> None:
    spec = master.make_run()
    with _fetched(master, spec, tmp_path / "scratch") as node:
        (fetch,) = node.fetch("/etc/passwd", root=1)
        assert fetch.error is None and fetch.names == []


def test_a_lost_connection_in_mid_fetch_is_opened_again(sftp_master: _Master, tmp_path: Path) -> None:
    spec = sftp_master.make_run(verify=True)
    names = [f"f{number}" for number in range(40)]
    for number, name in enumerate(names):
        (sftp_master.source / name).write_bytes(random.Random(number).randbytes(3_000_000))
    stop = threading.Event()

    def keep_killing() -> None:
        for number in range(3):
            wait_until(partial(_has, sftp_master.servers, number), "a connection")
            stop.wait(0.1)
            sftp_master.servers[number].kill()

    killer = threading.Thread(target=keep_killing)
    killer.start()
    with _fetched(sftp_master, spec, tmp_path / "scratch") as node:
        found = node.fetch(*names)
        for fetch in found:
            assert fetch.error is None and fetch.room is not None
            name = fetch.names[0]
            assert (Path(fetch.room.work) / name).read_bytes() == (sftp_master.source / name).read_bytes()
    stop.set()
    killer.join()


def _has(servers: list[subprocess.Popen[bytes]], number: int) -> bool:
    return len(servers) > number


# The connection


def test_a_master_without_sftp_is_told_in_one_sentence() -> None:
    def open_nothing() -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    with pytest.raises(ConnectFailed, match=r"^the master's sshd has no SFTP, so files can't be copied\. "):
        open_sftp_files(open_nothing, _no_run, _no_run)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "talk", [b"Welcome to host!\r\n" * 10, b"\0\0\0\5\x65\0\0\0\3", b"\xff" * 100], ids=repr
)
def test_a_shell_that_talks_is_told_in_one_sentence(talk: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(talk)
    with theirs, pytest.raises(ConnectFailed, match=r"^the master's sshd has no SFTP, or something "):
        open_sftp_files(lambda: ours, _no_run, _no_run)  # type: ignore[arg-type]


def _no_run(run: str) -> object:
    raise AssertionError(run)


def test_a_server_without_extensions_is_given_smaller_pieces(sftp_master: _Master, tmp_path: Path) -> None:
    """An old one, or none of OpenSSH: no limits, no fsync, no look at the disk."""
    sftp_master.server_options = ("-P", "limits,fsync,statvfs")
    sftp_master.make_run()
    body = random.Random(3).randbytes(10_000_001)
    (sftp_master.source / "f").write_bytes(body)
    messages = _Node(sftp_master).fetch("f")
    assert _whole(messages) == body
    assert max(len(data) for _, data in messages) == 32 * 1024
    out = tmp_path / "node"
    out.mkdir()
    (out / "f").write_bytes(body)
    home = _Home()
    home.bring(sftp_master, out)
    assert home.published and (sftp_master.output / "f").read_bytes() == body


def test_a_server_that_can_not_replace_files_is_told_of_before_anything_is_sent(sftp_master: _Master) -> None:
    sftp_master.server_options = ("-P", "posix-rename")
    sftp_master.make_run()
    assert _Node(sftp_master).upload("5-ab", a="1") == {
        "failed": f"the master's SFTP can't replace files in '{sftp_master.output}' (it has no "
        "posix-rename@openssh.com). Use OpenSSH there, or install PPSS on the master.",
        "kind": "machine",
    }
    assert not sftp_master.output.exists()


def test_a_server_that_only_reads_is_told_of(sftp_master: _Master) -> None:
    sftp_master.server_options = ("-R",)
    sftp_master.make_run()
    (sftp_master.source / "f").write_text("f")
    node = _Node(sftp_master)
    assert _whole(node.fetch("f")) == b"f"
    assert node.upload("5-ab", a="1")["kind"] == "machine"


def test_when_the_master_hangs_up_so_does_the_gate_and_no_thread_stays(sftp_master: _Master) -> None:
    sftp_master.make_run()
    before = threading.active_count()
    node = _Node(sftp_master)
    assert node.upload("5-ab", a="1") == {"outputs": ["a"]}
    sftp_master.servers[0].kill()
    node.send({"op": "make", **_key("6-ab", 18), "subdirectory": ""})
    with suppress(ConnectionError):
        assert node.socket.recv(1) == b""
    wait_until(lambda: threading.active_count() == before, "the thread ends")


def test_when_the_node_hangs_up_the_session_ends(sftp_master: _Master) -> None:
    sftp_master.make_run()
    node = _Node(sftp_master)
    node.upload("5-ab", a="1")
    node.hang_up()
    wait_until(lambda: sftp_master.servers[0].poll() is not None, "the end of sftp-server")


@as_root
def test_what_the_user_may_not_do_is_told(master: _Master) -> None:
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    try:
        master.output = top / "out"
        master.make_run()
        closed = top / "out"
        closed.mkdir()
        (master.source / "s").write_text("secret")
        with _as_nobody():
            node = _Node(master)
        node.fetch("s")  # the gate has asked Redis of the run, which only root may
        with _as_nobody():
            assert _failed(node.fetch("s")) == (
                "gone",
                f"'{master.source}/s' can't be read: Permission denied",
            )
            answer = node.upload("5-ab", a="1")
        assert answer == {
            "failed": f"can't write in output directory '{closed}': Permission denied. "
            "Mend that, or choose another one with -o.",
            "kind": "machine",
        }
        closed.chmod(0o777)
        (closed / "d").mkdir()
        (closed / "d").chmod(0o755)
        with _as_nobody():
            assert node.upload("6-ab", subdirectory="d", a="1") == {"outputs": ["d/a"]}
            assert node.publish("6-ab") == {
                "failed": f"can't write into 'd' of '{closed}': this user may not",
                "kind": "refused",
            }
            assert node.upload("7-ab", subdirectory="d/e", a="1") == {"outputs": ["d/e/a"]}
            assert node.publish("7-ab") == {
                "failed": f"can't write into 'd/e' of '{closed}': this user may not",
                "kind": "refused",
            }
    finally:
        shutil.rmtree(top)


@as_root
def test_directories_that_are_closed_to_their_owner_are_published_and_removed(master: _Master) -> None:
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    try:
        master.output = top / "out"
        master.make_run()
        master.output.mkdir()
        master.output.chmod(0o777)
        (master.source / "s").write_text("s")
        with _as_nobody():
            node = _Node(master)
        node.fetch("s")  # as above
        with _as_nobody():
            node.upload("4-ab", seq=18, a="1")
            earlier = master.output / ".ppss" / _RUN / "17.4-zz"
            for place in ("closed/inner/deeper", "listed"):
                (earlier / place).mkdir(parents=True)
                (earlier / place / "f").write_text("f")
            for place, mode in (
                ("closed/inner/deeper", 0),
                ("closed/inner", 0),
                ("closed", 0),
                ("listed", 0o500),
            ):
                (earlier / place).chmod(mode)
            node.make("5-ab")
            for place, mode in (("a", 0o500), ("a/b", 0), ("a/b/c", 0o555)):
                node.send({"op": "directory", "path": place, "mode": mode})
            node.file("a/b/c/f", b"1")
            assert node.made() == {"outputs": ["a/b/c/f"]}
            assert node.publish("5-ab") == {"published": 1}
            assert not os.path.lexists(earlier)
        found = [stat.S_IMODE((master.output / place).stat().st_mode) for place in ("a", "a/b", "a/b/c")]
        assert found == [0o500, 0, 0o555]
        assert (master.output / "a/b/c/f").read_text() == "1"
    finally:
        shutil.rmtree(top)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """The whole process, its threads and what it starts, as a user whom modes bind."""
    os.setresgid(_NOBODY, _NOBODY, 0)
    os.setresuid(_NOBODY, _NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
