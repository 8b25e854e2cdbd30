"""What tests of nodes share: deploying from the lab's master, which has no network to get wheels from."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from typing import Any

from hosts.lab import ROOT, Host, Lab

from ppss_queue.nodes.probe import probe
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.spec import parse_node
from ppss_queue.nodes.wheelhouse import wheels_for

PYTHON = "/usr/bin/python3"
"""Of every host: Debian's."""
_WHEELS = ROOT / ".cache" / "wheels"


def wheelhouse() -> bytes:
    """A tar of the wheels that the hosts' Python needs, got with this machine's network; kept for the next time."""
    python = probe(Reach(parse_node([":", f"python={PYTHON}"]))).python
    assert python, f"no {PYTHON} that is new enough"
    wheels_for(python, _WHEELS, lambda _: None)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(_WHEELS / python.tag, python.tag)
    return packed.getvalue()


@dataclass(frozen=True, slots=True)
class Nodes:
    """`ppss_queue.nodes` as it works on the master."""

    lab: Lab
    wheels: bytes

    def prepare(self, user: str = "ppss") -> None:
        """Lay the wheels where the master keeps them."""
        script = "mkdir -p .cache/ppss/wheels && tar -x -C .cache/ppss/wheels"
        self.lab.master.run(["sh", "-c", script], stdin=self.wheels, user=user)

    def do(self, verb: str, node: str, *options: str, user: str = "ppss", url: str = "") -> dict[str, Any]:
        """Do it from there: what came of it, or {"error", "text"}."""
        done = self.lab.master.run(self.argv(verb, node, *options, url=url), user=user, timeout_seconds=120)
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said

    def popen(self, verb: str, node: str, *options: str, user: str = "ppss") -> subprocess.Popen[bytes]:
        """The same, not waited for."""
        return self.lab.master.popen(self.argv(verb, node, *options), user=user)

    def argv(self, verb: str, node: str, *options: str, url: str = "") -> list[str]:
        options = options or (f"python={PYTHON}",)
        return [sys.executable, "-P", "-c", _PROGRAM, verb, url, node, *options]


def outcome(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What came of `popen`, once it is done; it must have gone well."""
    out, _ = process.communicate(timeout=120)
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert "error" not in said, said
    return said


def ppss_there(host: Host, deployed: dict[str, Any], *arguments: str, **environment: str) -> str:
    """Run a verb there with what was deployed; stdout and stderr."""
    paths = deployed["paths"]
    words = [f"{name}={value}" for name, value in {**paths["variables"], **environment}.items()]
    script = 'exec env "$@" 2>&1'
    done = host.run(["sh", "-c", script, "sh", *words, paths["launcher"], *arguments], check=False)
    return done.stdout


def listing(host: Host, directory: str = ".") -> list[str]:
    """Everything in the home there, with types, modes and links; without times."""
    found = host.run(["find", directory, "-printf", r"%p %y %m %s %l\n"]).stdout.splitlines()
    return sorted(line for line in found if " d " not in line or not line.startswith(". "))


def files_with(host: Host, text: str) -> list[str]:
    """Files in the home there that hold it."""
    found = host.run(["grep", "-rlF", "-e", text, "."], check=False).stdout
    return found.splitlines()


_PROGRAM = """
import dataclasses, json, sys
from ppss_queue.address import Address
from ppss_queue.errors import PpssError
from ppss_queue.nodes import deploy as deploying
from ppss_queue.nodes.master import MasterHome, worker_url
from ppss_queue.nodes.probe import probe
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.spec import parse_node
from ppss_queue.server_place import default_place
verb, url, *words = sys.argv[1:]
address = Address.parse(url or default_place().address)
def facts(paths):
    names = [name for name in dir(type(paths)) if isinstance(getattr(type(paths), name), property)]
    return {name: getattr(paths, name) for name in names}
try:
    reach = Reach(parse_node(words))
    if verb == "deploy":
        done = deploying.deploy(reach, MasterHome.of(address), lambda text: print(text, file=sys.stderr))
        said = {**dataclasses.asdict(done), "paths": facts(done.paths), "url": worker_url(address)}
    elif verb == "erase":
        said = dataclasses.asdict(deploying.erase(reach))
    else:
        said = dataclasses.asdict(probe(reach))
except PpssError as error:
    said = {"error": type(error).__name__, "text": str(error)}
print(json.dumps(said))
"""
