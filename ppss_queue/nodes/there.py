"""Installs PPSS on a node. Its text is sent there and run by the node's own Python, before anything of ours is there.

So it needs nothing but Python's library: no pip, no venv, no ensurepip. stdin is an order, one line of JSON, then the
bytes of the wheels that the order lists. It can be killed anywhere: the next one heals what was left.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypedDict


class Listed(TypedDict):
    """A wheel of the order."""

    name: str
    sha256: str
    size: int


class Order(TypedDict):
    """What is wanted. Paths are absolute; those of `files` too."""

    base: str
    environment: str
    """Directory of the installed packages, which other machines may share."""
    virtual: str
    """Directory of the Python that runs them on this machine."""
    program: str
    """One of `files`: is there once the trial has succeeded."""
    directory: str
    """What belongs to this machine."""
    files: dict[str, tuple[int, str]]
    """Mode and text by path."""
    key: str
    trial: str
    """Program text: imports what is needed, and makes the key in sys.argv[1] if that is no file."""
    wheels: list[Listed]
    """Those whose bytes follow; empty: only see what is there."""


def main() -> None:
    """Says on stdout how it went: a line of JSON."""
    stream = sys.stdin.buffer
    try:
        said = settle(json.loads(stream.readline()), stream)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        said = {
            "errno": errno.errorcode.get(error.errno or 0, ""),
            "why": f"{error.strerror or error}{where}",
        }
    print(json.dumps(said))


def settle(order: Order, stream: BinaryIO) -> dict[str, object]:
    """All that the order wants; `{"missing": true}` if that takes wheels and none were sent."""
    environment, virtual = Path(order["environment"]), Path(order["virtual"])
    directory = Path(order["directory"])
    make_base(Path(order["base"]), directory)
    with locked(directory / ".lock"):
        virtual.mkdir(parents=True, exist_ok=True)  # says to whoever sweeps that the environment is in use
        fresh = not intact(environment)
        if fresh and not order["wheels"]:
            return {"missing": True}
        if fresh:
            install(environment, order["wheels"], stream, directory.name)
        make_virtual(virtual, environment / "site")
        if fresh or not Path(order["program"]).is_file() or not is_whole(Path(order["key"])):
            command = [str(virtual / "bin" / "python"), "-I", "-c", order["trial"], order["key"]]
            tried = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if tried.returncode:
                return {"broken": (tried.stderr.strip().splitlines() or [f"exit {tried.returncode}"])[-1]}
        for path, (mode, text) in order["files"].items():
            write(Path(path), text, mode)
        sweep(environment, virtual)
    return {"public_key": Path(f"{order['key']}.pub").read_text(), "installed": fresh}


def make_base(base: Path, directory: Path) -> None:
    """Make directories; which ones above `base` were missing is written down, for whoever erases."""
    missing = [str(parent) for parent in base.parents if not parent.exists()]
    for tries in range(9, -1, -1):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            break
        except FileNotFoundError:  # another master erases what it had
            if not tries:
                raise
    base.chmod(0o700)
    if missing:
        with suppress(FileExistsError), (base / "made").open("x") as made:
            made.writelines(f"{path}\n" for path in missing)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One at a time on this machine; a killed one holds it no more."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # a file system without locks: then without
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def intact(environment: Path) -> bool:
    """Whether each of its files is there, as it was when it was installed."""
    try:
        sums = json.loads((environment / "manifest.json").read_bytes())
        return all(_sha256(environment / "site" / name) == sum for name, sum in sums.items())
    except (OSError, ValueError):
        return False


def install(environment: Path, wheels: list[Listed], stream: BinaryIO, machine: str) -> None:
    """Under another name until it is complete."""
    unfinished = environment.parent / f".new-{machine}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        sums: dict[str, str] = {}
        for wheel in wheels:
            data = stream.read(wheel["size"])
            if hashlib.sha256(data).hexdigest() != wheel["sha256"]:
                raise OSError(errno.EIO, f"{wheel['name']} did not arrive as it was sent")
            sums |= unpack(data, unfinished / "site")
        write(unfinished / "manifest.json", json.dumps(sums), 0o600)
        if not intact(environment):  # else a machine that shares this home was faster
            shutil.rmtree(environment, ignore_errors=True)
            unfinished.rename(environment)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def unpack(data: bytes, site: Path) -> dict[str, str]:
    """Put the modules of a wheel into a directory; its scripts, headers and data are of no use here.

    The hash of each file, by name.
    """
    sums = {}
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        for entry in wheel.infolist():
            parts = entry.filename.split("/")
            if parts[0].endswith(".data"):
                if parts[1] not in ("purelib", "platlib"):
                    continue
                del parts[:2]
            if entry.is_dir():
                continue
            if ".." in parts or not parts[0]:
                raise OSError(errno.EIO, f"a wheel holds a file that it must not: {entry.filename}")
            path = site.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = wheel.read(entry)
            path.write_bytes(content)
            path.chmod(0o700 if entry.external_attr >> 16 & 0o100 else 0o600)
            sums["/".join(parts)] = hashlib.sha256(content).hexdigest()
    return sums


def make_virtual(virtual: Path, site: Path) -> None:
    """A virtual environment as Python knows it: a link to the interpreter, and pyvenv.cfg beside it."""
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(virtual)}))
    link(virtual / "bin" / "python", python)
    link(packages, os.path.relpath(site, packages.parent))
    settings = {"home": os.path.dirname(python), "include-system-site-packages": "false"}
    write(virtual / "pyvenv.cfg", "".join(f"{key} = {value}\n" for key, value in settings.items()), 0o600)


def link(path: Path, target: str) -> None:
    """Make a symbolic link, or point it elsewhere."""
    if path.is_symlink() and os.readlink(path) == target:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target)
    unfinished.replace(path)


def write(path: Path, text: str, mode: int) -> None:
    """Whole, or not at all; not if it is there already."""
    with suppress(OSError):
        if path.read_text() == text and path.stat().st_mode & 0o777 == mode:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
    unfinished.replace(path)


def is_whole(key: Path) -> bool:
    """Whether both halves of the key are there."""
    return key.is_file() and Path(f"{key}.pub").is_file()


def sweep(environment: Path, virtual: Path) -> None:
    """Remove what older versions left, unless a process still runs from it."""
    for old in virtual.parent.iterdir():
        if old != virtual and not runs(old):
            shutil.rmtree(old, ignore_errors=True)
    nodes = virtual.parents[2]
    for old in environment.parent.iterdir():
        used = any((node / virtual.parent.name / old.name).exists() for node in nodes.iterdir())
        if not old.name.startswith(".") and not used:
            shutil.rmtree(old, ignore_errors=True)


def runs(virtual: Path) -> bool:
    """Whether a process of ours was started from it."""
    wanted = os.fsencode(virtual) + b"/"
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if wanted in process.read_bytes():
                return True
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
