"""What is found of a node: this machine stands for it, `tests/hosts` has others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ppss_queue.errors import ConnectFailed
from ppss_queue.nodes.probe import Probe, probe
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.spec import parse_node
from ppss_queue.server_place import machine_id
from ppss_queue.ssh.remote import Done


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my 'home'"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    return path


def _probe(*settings: str) -> Probe:
    return probe(Reach(parse_node([":", *settings])))


def _program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_facts_are_those_of_the_machine(home: Path) -> None:
    found = _probe(f"python={sys.executable}")
    assert (found.machine, found.uid, found.home) == (machine_id(), os.geteuid(), str(home))
    assert found.python and found.python.release == sys.version_info[:2]
    assert found.python.markers["python_full_version"] == ".".join(map(str, sys.version_info[:3]))
    assert found.python.path == os.path.realpath(sys.executable), "not that of a virtual environment"
    assert found.home_writable and found.cores == len(os.sched_getaffinity(0))
    assert abs(found.clock_offset_seconds) < 5 and found.free_bytes and found.no_python == ""


def test_an_interpreter_is_named_below_home_too(home: Path) -> None:
    _program(home / "a b" / "python", f'exec "{sys.executable}" "$@"')
    assert _probe("python=~/a b/python").python


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo has Python 3.9", "has Python 3.9 ("),
        ("exit 1", "has no "),
        ("echo nonsense", "has no "),
        ("kill $$", "has no "),
    ],
)
def test_why_an_interpreter_will_not_do(home: Path, text: str, said: str) -> None:
    python = _program(home / "python", text)
    found = _probe(f"python={python}")
    assert found.python is None and found.no_python.startswith(said) and str(python) in found.no_python


def test_of_many_the_first_that_will_do_is_taken(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(home / "bin" / "python3", "echo has Python 3.9")
    for minor in (14, 13, 12):
        _program(home / "bin" / f"python3.{minor}", "exit 1")
    monkeypatch.setenv("PATH", f"{home}/bin", prepend=os.pathsep)
    _program(home / "bin" / "python3.11", f'exec "{sys.executable}" "$@"')
    assert _probe().python


@pytest.mark.parametrize("out", [b"", b"\0ppss-probe\0", b"\0ppss-probe\0machine=../x\0home=/h\0", b"hello"])
def test_an_answer_that_is_none_is_told(out: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reach, "run", lambda *_, **__: Done(1, out, b"bash: no\n"))
    with pytest.raises(ConnectFailed, match=r"^: does not tell what it is \(bash: no\)"):
        _probe()
