"""What is executed on a node: installing, healing what was left half done, keeping what is in use."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import wait_until

from ppss_queue.nodes import there
from ppss_queue.nodes.home import NodeHome
from ppss_queue.nodes.there import Order

_LIB = f"python{sys.version_info.major}.{sys.version_info.minor}"
_TRIAL = """
import sys, thing
for end in ("", ".pub"):
    open(sys.argv[1] + end, "a").write("key")
"""


def _wheel(files: dict[str, str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return data.getvalue()


class _Node:
    """A home, and orders to it as `deploy` sends them."""

    def __init__(self, home: Path, machine: str = "m1") -> None:
        self.home = home
        self.paths = NodeHome(str(home), "master", machine)

    def order(self, environment: str, trial: str = _TRIAL) -> Order:
        virtual, program = self.paths.virtual(environment), self.paths.program(environment)
        return {
            "base": self.paths.base,
            "environment": f"{self.paths.environments}/{environment}",
            "virtual": virtual,
            "program": program,
            "directory": self.paths.directory,
            "files": {
                program: (0o600, "import thing, sys; print(thing.__file__, *sys.argv[1:])"),
                self.paths.launcher: (0o700, f'#!/bin/sh\nexec "{virtual}/bin/python" -I "{program}" "$@"\n'),
            },
            "key": self.paths.key,
            "trial": trial,
            "wheels": [],
        }

    def settle(self, order: Order, *wheels: bytes, cut: int = 0) -> dict[str, object]:
        """With `cut`, the connection ends that many bytes before the end."""
        for number, data in enumerate(wheels):
            order["wheels"].append(
                {"name": f"w{number}.whl", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            )
        sent = json.dumps(order).encode() + b"\n" + b"".join(wheels)
        done = subprocess.run(
            [sys.executable, "-I", "-c", Path(there.__file__).read_text()],
            input=sent[: len(sent) - cut],
            capture_output=True,
            check=True,
        )
        said: dict[str, object] = json.loads(done.stdout)
        return said

    def install(self, environment: str) -> dict[str, object]:
        return self.settle(self.order(environment), _wheel({"thing.py": f"version = {environment!r}"}))

    def run(self, *arguments: str, **environment: str) -> str:
        return subprocess.run(
            [self.paths.launcher, *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def site(self, environment: str) -> list[str]:
        names = os.listdir(f"{self.paths.environments}/{environment}/site")
        return sorted(name for name in names if name != "__pycache__")

    def installed(self) -> list[str]:
        return sorted(os.listdir(self.paths.environments))


@pytest.fixture
def node(tmp_path: Path) -> _Node:
    return _Node(tmp_path / "a 'home'")


def test_it_installs_once_and_then_has_nothing_to_do(node: _Node) -> None:
    assert node.settle(node.order("v1")) == {"missing": True}
    assert node.install("v1") == {"public_key": "key", "installed": True}
    assert node.settle(node.order("v1")) == {"public_key": "key", "installed": False}
    assert node.run("a b") == f"{node.paths.virtual('v1')}/lib/{_LIB}/site-packages/thing.py a b\n"


def test_what_a_user_set_for_python_does_not_matter(node: _Node, tmp_path: Path) -> None:
    node.install("v1")
    (tmp_path / "thing.py").write_text("raise SystemExit('another thing')")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('customized')")
    (tmp_path / "usercustomize.py").write_text("raise SystemExit('customized')")
    assert node.run(
        PYTHONPATH=str(tmp_path), PYTHONSTARTUP="/x", PYTHONHOME="/x", PYTHONUSERBASE=str(tmp_path)
    )


@pytest.mark.parametrize("damage", ["changed", "removed", "no manifest"])
def test_what_is_damaged_is_installed_anew(node: _Node, damage: str) -> None:
    node.install("v1")
    environment = Path(node.paths.environments) / "v1"
    if damage == "changed":
        (environment / "site" / "thing.py").write_text("version = 'v?'")
    else:
        (environment / ("site/thing.py" if damage == "removed" else "manifest.json")).unlink()
    assert node.settle(node.order("v1")) == {"missing": True}
    assert node.install("v1")["installed"] is True
    assert (environment / "site" / "thing.py").read_text() == "version = 'v1'"


def test_a_transfer_that_was_cut_leaves_nothing_and_is_made_again(node: _Node) -> None:
    wheels = [_wheel({"one.py": "x" * 1000}), _wheel({"thing.py": "y = 0"})]
    said = node.settle(node.order("v1"), *wheels, cut=10)
    assert said["errno"] == "EIO" and "w1.whl did not arrive" in str(said["why"])
    assert node.installed() == []
    assert node.settle(node.order("v1"), *wheels)["installed"] is True


def test_what_a_killed_one_left_is_cleared(node: _Node) -> None:
    unfinished = Path(node.paths.environments) / ".new-m1" / "site"
    unfinished.mkdir(parents=True)
    (unfinished / "thing.py").write_text("half")
    (unfinished / "other.py").write_text("half")
    Path(node.paths.directory).mkdir(parents=True)
    Path(node.paths.key).write_text("half a key")
    assert node.install("v1")["installed"] is True
    assert node.installed() == ["v1"]
    assert node.site("v1") == ["thing.py"]


def test_an_old_version_stays_as_long_as_it_is_in_use(node: _Node) -> None:
    node.install("v1")
    order = node.order("v1")
    order["files"][node.paths.program("v1")] = (0o600, "input()")
    node.settle(order)
    with subprocess.Popen([node.paths.launcher], stdin=subprocess.PIPE) as worker:
        wait_until(
            lambda: b"/venv/v1/bin/ppss" in Path(f"/proc/{worker.pid}/cmdline").read_bytes(), "it runs"
        )
        node.install("v2")
        assert node.installed() == ["v1", "v2"]
        worker.communicate(b"\n")
    node.settle(node.order("v2"))
    assert node.installed() == ["v2"] and os.listdir(f"{node.paths.directory}/venv") == ["v2"]


def test_machines_that_share_a_home_share_what_is_installed_and_nothing_else(node: _Node) -> None:
    other = _Node(node.home, "m2")
    node.install("v1")
    assert other.settle(other.order("v1")) == {"public_key": "key", "installed": False}
    node.install("v2")
    assert node.installed() == ["v1", "v2"], "the other machine uses v1"
    assert other.paths.key != node.paths.key and "v1" in other.run()


def test_what_does_not_run_there_is_told_each_time_and_not_put_to_use(node: _Node) -> None:
    node.install("v1")
    broken = node.order("v2", "raise ImportError('failed to map segment')")
    wheel = _wheel({"thing.py": ""})
    assert "failed to map segment" in str(node.settle(broken, wheel)["broken"])
    assert "/venv/v1/" in node.run()
    again = node.order("v2", "raise ImportError('failed to map segment')")
    assert "failed to map segment" in str(node.settle(again)["broken"])
    assert node.settle(node.order("v2"))["installed"] is False
    assert "/venv/v2/" in node.run()


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "a/../../evil.py"])
def test_no_wheel_writes_elsewhere(node: _Node, name: str) -> None:
    said = node.settle(node.order("v1"), _wheel({name: ""}))
    assert "a file that it must not" in str(said["why"])
    assert not list(node.home.rglob("evil.py"))


def test_modules_of_a_wheel_come_from_its_data_too_and_scripts_do_not(node: _Node) -> None:
    files = {"x.data/purelib/thing.py": "y = 0", "x.data/scripts/run": "", "x.data/headers/x.h": ""}
    node.settle(node.order("v1"), _wheel(files))
    assert node.site("v1") == ["thing.py"]


def test_which_directories_were_missing_is_written_down(node: _Node) -> None:
    (node.home / ".local").mkdir(parents=True)
    node.install("v1")
    _Node(node.home, "m2").install("v1")
    assert Path(node.paths.base, "made").read_text() == f"{node.home}/.local/share\n"
    assert Path(node.paths.base).stat().st_mode & 0o777 == 0o700
    assert Path(node.paths.directory, "venv", "v1", "pyvenv.cfg").exists()
