"""What PPSS is compared with: rivals from PyPI in an environment of their own, programs from Debian."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.bench.processes import Argument, Broken, Missing, output, seconds
from tools.bench.site import CACHE, Site

HERE = Path(__file__).resolve().parent
_VENV = CACHE / "rivals"
_PACKAGES = {"parallel": "parallel", "convert": "imagemagick", "xargs": "findutils", "gzip": "gzip"}


class Rivals:
    """Finds rivals, and installs them at first use where that can be done."""

    def __init__(self) -> None:
        self._ready = False

    def program(self, name: str) -> Path:
        """A program of Debian. Raises Missing."""
        found = _on_path(name)
        if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
            _apt_get(_PACKAGES[name])
            found = _on_path(name)
        if found is None:
            raise Missing(f"not measured: {name} is missing. Install it: apt-get install {_PACKAGES[name]}")
        return found

    def venv_program(self, name: str) -> Path:
        """A program of the rivals' environment, which is made if need be. Raises Missing."""
        if not self._ready:
            self._make_venv()
            self._ready = True
        return _VENV / "bin" / name

    def _make_venv(self) -> None:
        wanted = (HERE / "requirements.txt").read_text()
        stamp = _VENV / ".ready"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print("setting up the rivals from PyPI ...", file=sys.stderr)
        try:
            output([sys.executable, "-m", "venv", "--clear", _VENV])
            pip: list[Argument] = [_VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
            output([*pip, "-r", HERE / "requirements.txt"], limit=600)
        except Broken as broken:
            raise Missing(f"not measured: the rivals could not be installed ({broken})") from None
        stamp.write_text(wanted)

    def versions(self) -> list[str]:
        """Of all that is installed, for the report."""
        lines = []
        for program in ("xargs", "bash", "parallel", "gzip", "sha256sum", "convert"):
            if found := _on_path(program):
                option = "-version" if program == "convert" else "--version"
                lines.append(output([found, option]).splitlines()[0])
        if _on_path("ssh"):
            lines.append(output(["sh", "-c", "ssh -V 2>&1"]).strip())
        if (_VENV / ".ready").exists():
            frozen = output([_VENV / "bin" / "pip", "freeze", "--disable-pip-version-check"]).splitlines()
            wanted = ("rq==", "huey==", "hypershell==", "redis==")
            lines += [line.replace("==", " ") for line in frozen if line.lower().startswith(wanted)]
        return lines

    # What they take for the same work

    def parallel_seconds(self, items: Path, *words: Argument) -> float:
        """GNU parallel, two jobs at once, with its job log."""
        program = self.program("parallel")
        with _home(items.parent / "parallel") as home:
            (home / "will-cite").touch()
            argv: list[Argument] = [program, "-j2", "--joblog", home / "log", *words, "::::", items]
            return seconds(argv, env={**os.environ, "PARALLEL_HOME": str(home)})

    def hypershell_seconds(self, items: Path, template: str) -> float:
        """HyperShell, two threads, without its database and with large bundles: its fastest setting."""
        program = self.venv_program("hsx")
        with _home(items.parent / "hypershell") as home:
            env = {**os.environ, "HYPERSHELL_SITE": str(home), "HYPERSHELL_LOGGING_LEVEL": "ERROR"}
            argv: list[Argument] = [program, items, "-N2", "--no-db", "-b64", "-w1", "-t", template]
            return seconds(argv, env=env, cwd=home)

    def rq_enqueue_seconds(self, site: Site, items: Path) -> float:
        """rq's `enqueue_many` in batches of 1,000; `items`: a list, or a tree of files. Leaves them there."""
        argv: list[Argument] = [self.venv_program("python"), HERE / "rq_side.py", _rival_url(site), items]
        return seconds(argv, env=_rq_environment())

    def rq_work_seconds(self, site: Site) -> float:
        """`rq worker-pool -n 2` until its queue is empty."""
        argv: list[Argument] = [self.venv_program("rq"), "worker-pool", "-n", "2", "--burst", "--quiet"]
        return seconds([*argv, "--url", _rival_url(site), "rival"], env=_rq_environment())

    def huey_seconds(self, site: Site, items: Path) -> float:
        """huey's consumer with two processes, enqueueing included."""
        argv: list[Argument] = [self.venv_program("python"), HERE / "huey_side.py", items]
        path = f"{_VENV / 'bin'}:{os.environ['PATH']}"
        return seconds(argv, env={**os.environ, "HUEY_URL": _rival_url(site), "PATH": path})

    def forget(self, site: Site) -> None:
        """Empties the database of the rivals."""
        site.connection.execute("SELECT", 1)
        site.connection.execute("FLUSHDB")
        site.connection.execute("SELECT", 0)


def _rival_url(site: Site) -> str:
    """The same server, another database."""
    return f"{site.address}?db=1"


def _rq_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE)}


def _on_path(name: str) -> Path | None:
    """Debian's own place first: some machines have stand-ins in /usr/local."""
    for folder in ("/usr/bin", "/bin"):
        if os.access(f"{folder}/{name}", os.X_OK):
            return Path(folder) / name
    found = None if name == "convert" else shutil.which(name)
    return Path(found) if found else None


def _apt_get(package: str) -> None:
    print(f"installing {package} ...", file=sys.stderr)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        output(["apt-get", "update", "-qq"], env=env)
        output(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], env=env)
    except Broken as broken:
        raise Missing(f"not measured: {package} could not be installed ({broken})") from None


@contextmanager
def _home(path: Path) -> Iterator[Path]:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    yield path
    shutil.rmtree(path, ignore_errors=True)
