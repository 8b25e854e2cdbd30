"""Set-up and packaging: the Makefile, tools/setup.sh, the locked versions, and the wheel as users install it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import missing
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ppss_queue import __version__

ROOT = Path(__file__).resolve().parent.parent

# A python that does what setup.sh asks of one, without the network: `pip install` fails while FAKE/offline is there.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
*version_info*) exit "${FAKE_TOO_OLD:-0}" ;;
--version) echo "Python 3.9.2" ;;
*ensurepip*|*virtualenv*|*"pip import"*) exit "${FAKE_CANNOT:-0}" ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo made >>"$FAKE/log" ;;
"-m pip --version") exit 0 ;;
"-m pip install "*) echo "$*" >>"$FAKE/log"; test ! -e "$FAKE/offline" ;;
*) echo "unexpected: $*" >&2; exit 3 ;;
esac
"""


class Clone:
    """What set-up needs of a clone, in a directory with a blank in its name, and a python that is no python."""

    def __init__(self, directory: Path) -> None:
        self.fake = directory
        self.root = directory / "a clone"
        (self.root / "tools").mkdir(parents=True)
        for name in ("Makefile", "tools/setup.sh", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, self.root / name)
        self.python = self.root / "python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        self.venv = self.root / ".venv"

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
        }
        return subprocess.run(
            ["make", *arguments],
            cwd=self.root,
            env={**inherited, "PATH": "/usr/bin:/bin", "FAKE": os.fspath(self.fake), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def set_up(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.make(".venv/.ready", f"PYTHON={self.python}", **environment)

    @property
    def log(self) -> list[str]:
        """What the fake python did: `made` for each venv, and pip's arguments."""
        return (self.fake / "log").read_text().splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    if shutil.which("make", path="/usr/bin:/bin") is None:
        missing("make")
    return Clone(tmp_path)


def test_make_alone_shows_every_target_and_sets_nothing_up(clone: Clone) -> None:
    done = clone.make()
    shown = re.findall(r"^  make (\w+) +\S", done.stdout, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert sorted(shown) == sorted(phony[1].split())
    assert not clone.venv.exists()


def test_set_up_makes_the_environment_once(clone: Clone) -> None:
    first = clone.set_up()
    assert first.returncode == 0, first.stderr
    pinned, itself = clone.log[1:]
    assert clone.log[0] == "made"
    assert pinned.endswith("-r requirements.lock")
    assert itself.endswith("-e .")
    second = clone.set_up()
    assert second.returncode == 0, second.stderr
    assert "up to date" in second.stdout
    assert len(clone.log) == 3


def test_new_pinned_versions_are_installed_into_the_same_environment(clone: Clone) -> None:
    clone.set_up()
    lock = clone.root / "requirements.lock"
    later = (clone.venv / ".ready").stat().st_mtime + 2
    os.utime(lock, (later, later))
    assert clone.set_up().returncode == 0
    assert clone.log.count("made") == 1
    assert len(clone.log) == 5


def test_an_environment_whose_installation_failed_is_made_anew(clone: Clone) -> None:
    (clone.fake / "offline").touch()
    failed = clone.set_up()
    assert failed.returncode == 2
    assert "make: pip could not install what PPSS needs" in failed.stderr
    (clone.fake / "offline").unlink()
    (clone.venv / "half").touch()
    assert clone.set_up().returncode == 0
    assert clone.log.count("made") == 2
    assert not (clone.venv / "half").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(clone: Clone) -> None:
    (clone.venv / "bin").mkdir(parents=True)
    (clone.venv / "bin" / "python").symlink_to("/nowhere/python")
    assert clone.set_up().returncode == 0
    assert clone.log[0] == "made"


def test_a_missing_python_is_named(clone: Clone) -> None:
    done = clone.make("demo", "PYTHON=/nowhere/python9")
    assert done.returncode == 2
    assert done.stderr.startswith("make: '/nowhere/python9' is not found. Install Python 3.11 or newer")


def test_a_python_that_is_too_old_is_named_with_its_version(clone: Clone) -> None:
    done = clone.set_up(FAKE_TOO_OLD="1")
    assert done.returncode == 2
    assert f"'{clone.python}' is Python 3.9.2, but PPSS needs 3.11 or newer" in done.stderr
    assert not clone.venv.exists()


def test_a_python_without_any_way_to_an_environment_says_the_one_command_to_type(clone: Clone) -> None:
    tools = clone.fake / "bin"  # no uv and no virtualenv there
    tools.mkdir()
    for name in ("bash", "sh", "make", "awk", "id", "mkdir", "rm", "touch"):
        (tools / name).symlink_to(shutil.which(name) or "")
    done = clone.set_up(FAKE_CANNOT="1", PATH=os.fspath(tools))
    assert done.returncode == 2
    sudo = "" if os.getuid() == 0 else "sudo "
    assert f" then make again: {sudo}apt-get install -y python3-venv\n" in done.stderr
    assert clone.set_up().returncode == 0, "what was left behind is in the way"


def test_the_lock_pins_a_version_within_every_range_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = {
        canonicalize_name(name): version
        for name, _, version in (
            line.partition("==")
            for line in (ROOT / "requirements.lock").read_text().splitlines()
            if line[0] != "#"
        )
    }
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dashboard"],
        *project["dependency-groups"]["dev"],
    ]
    for requirement in map(Requirement, wanted):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"make lock: {requirement.name} is not in requirements.lock"
        assert requirement.specifier.contains(version), f"make lock: {requirement} is not met by {version}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    directory = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-build-isolation", "--wheel-dir", os.fspath(directory), os.fspath(ROOT))
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A virtual environment with the wheel, and with the dependencies of this one."""
    directory = wheel.parent / "installed"
    venv.create(directory, symlinks=True)
    _pip("--python", os.fspath(directory / "bin" / "python"), "install", os.fspath(wheel))
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return directory


def _pip(*arguments: str) -> None:
    """Offline: neither index nor dependencies."""
    options = ("--quiet", "--no-index", "--no-deps")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, *options]
    subprocess.run(command, check=True, cwd="/", timeout=120)


def test_the_wheel_holds_both_packages_with_their_lua_and_types_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(parent).as_posix()
        for parent, package in ((ROOT, "ppss_queue"), (ROOT / "workers", "ppss_worker"))
        for path in (parent / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted
    assert wheel.name == f"ppss_queue-{__version__}-py3-none-any.whl"
    assert {"ppss_queue/py.typed", "ppss_worker/py.typed", "ppss_queue/lua/lib.lua"} <= held


def test_the_installed_program_runs_items(installed: Path, home: dict[str, str], tmp_path: Path) -> None:
    environment = {name: value for name, value in home.items() if name != "PYTHONPATH"}

    def ppss(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed / "bin" / "ppss", *arguments],
            cwd=tmp_path,
            env=environment,
            input="1\n2\n3\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert ppss("--version").stdout == f"ppss {__version__}\n"
    done = ppss("run", "-k", "--", "echo", "number")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "number 1\nnumber 2\nnumber 3\n"
    where = "import ppss_queue, ppss_worker; print(ppss_queue.__file__, ppss_worker.__file__)"
    python = installed / "bin" / "python"
    found = subprocess.run(
        [python, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.count(f"{installed}/lib/") == 2


USER_PROGRAM = """
import asyncio
from pathlib import Path
from ppss_queue import Counts, ItemView, PpssError, Queue, Run, RunState, State, connect

async def wait(run: Run) -> Counts:
    return await run.wait_async()

def failed(queue: Queue) -> list[ItemView]:
    run = queue.enqueue(
        Path("scans").rglob("*.pdf"), command=["ocrmypdf", "{}", "{out}"], output="searchable", name="scans",
        retries=2, retry_on=(1,), timeout_seconds=60, halt="soon,fail=10%",
    )
    run.add(str(number) for number in range(3))
    ended: list[ItemView] = [item for item in run.results() if item.failed and item.exit_code == 6]
    if asyncio.run(wait(run)).state is RunState.PAUSED:
        run.resume()
    print(run.id, run.status().rate_per_second, run.log("a"), run.retry(), run.cancel("#1"))
    return ended + list(run.items(state=State.FAILED)) + list(run.items(state="failed"))

try:
    with connect() as queue:
        reveal_type(failed(queue)[0].name)
        reveal_type(queue.run("last").wait(timeout_seconds=3).succeeded)
except PpssError as error:
    raise SystemExit(error.exit_code) from None
WRONG
"""


def test_types_of_the_installed_package_reach_a_users_program(installed: Path, tmp_path: Path) -> None:
    def mypy(program: str) -> str:
        (tmp_path / "program.py").write_text(program)
        python = installed / "bin" / "python"
        command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "program.py"]
        environment = {name: value for name, value in os.environ.items() if not name.endswith("PATH")}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        ).stdout

    right = mypy(USER_PROGRAM.replace("WRONG", ""))
    assert "Success: no issues found" in right, right
    assert 'Revealed type is "str"' in right.replace("builtins.", "")
    assert 'Revealed type is "int"' in right.replace("builtins.", "")
    wrong = mypy(USER_PROGRAM.replace("WRONG", "connect().enqueue(['a'], comand='true')"))
    assert 'Unexpected keyword argument "comand"' in wrong
    assert "Found 1 error " in wrong
