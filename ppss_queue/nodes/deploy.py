"""Bringing PPSS to a node, with a key for this master; and removing every trace of both."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ppss_queue import __version__
from ppss_queue.errors import BadInput, MachineFailed, PpssError
from ppss_queue.nodes import authorized, way_back
from ppss_queue.nodes.authorized import Owner
from ppss_queue.nodes.home import BASE, NodeHome, master_id
from ppss_queue.nodes.master import MasterHome
from ppss_queue.nodes.probe import MACHINE, Probe, PythonThere, probe
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.there import Order
from ppss_queue.nodes.wheelhouse import Wheel, wheels_for
from ppss_queue.units import format_bytes

_LOOK_SECONDS = 120.0
_SEND_SECONDS = 3600.0
"""10 MB at 3 kB/s."""
_PIECE_BYTES = 1 << 18
_SPARE_BYTES = 32 << 20
"""Of the node's disk, besides what is installed."""

_TRIAL = """
import os, sys
import hiredis, ppss_queue.cli, ppss_worker.worker, redis, rq
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
path = sys.argv[1]
if not (os.path.isfile(path) and os.path.isfile(path + ".pub")):
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    for name, content in ((path, private), (path + ".pub", public + b"\\n")):
        with open(os.open(name + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        os.replace(name + ".new", name)
"""
"""Executed by what was installed: imports what has machine code, and makes the key there."""

_MAIN = "import sys\nfrom ppss_queue.cli import main\nsys.argv[0] = 'ppss'\nmain()\n"


@dataclass(frozen=True, slots=True)
class Deployed:
    """A node that is ready for a worker."""

    what: str
    """'up to date', or what was done."""
    python: str
    """3.11.2"""
    platform: str
    """cp311-manylinux_2_36_x86_64"""
    machine: str
    """Its machine id."""
    reverse: bool
    """It finds this master by the way that `way_back` holds open."""
    paths: NodeHome
    probe: Probe


@dataclass(frozen=True, slots=True)
class Erased:
    """What there was of a node."""

    files: bool
    """On the node."""
    keys: int
    """Lines in this master's authorized_keys."""


def deploy(reach: Reach, home: MasterHome, on_step: Callable[[str], None]) -> Deployed:
    """Make a node ready: PPSS of this version, a key made there, let in here. Does nothing where all is there.

    Of a node that can't reach this master it sees whether a way back can be held open, and that is remembered there.
    A worker of an older version goes on with its own files. May be killed anywhere; the next one heals. Raises
    BadInput (no Python, no wheels ...), MachineFailed (disk full, home read-only ...), Unavailable.
    """
    facts = probe(reach)
    python = _python(reach, facts)
    paths = facts.paths
    reverse = way_back.is_wanted(reach.node, facts)
    if reverse:
        way_back.open_through(reach, home.sshd)
    wheels = wheels_for(python, _cache(), on_step)
    order = _order(paths, home, facts, _environment_name(python, wheels), reverse=reverse)
    said = _settle(reach, python, order, [], on_step)
    if said.get("missing"):
        _check_room(reach, facts, wheels)
        said = _settle(reach, python, order, wheels, on_step)
    owner = Owner(home.id, facts.machine, facts.uid, reach.node.name, str(said["public_key"]).strip())
    let_in = authorized.let_in(authorized.file(), home.grant, owner)
    done = [f"installed {__version__}"] * bool(said["installed"]) + ["let its key in"] * let_in
    return Deployed(
        what=", ".join(done) or "up to date",
        python=python.version,
        platform=python.tag,
        machine=facts.machine,
        reverse=reverse,
        paths=paths,
        probe=facts,
    )


def erase(reach: Reach) -> Erased:
    """Remove all of ours from a node, and its key from here; of other masters and users, nothing.

    No worker may run there any more. Raises ConnectFailed, MachineFailed.
    """
    done = reach.run(f"{MACHINE}\nbase=$HOME/{BASE} master={master_id()}\n{_ERASE}", seconds=_LOOK_SECONDS)
    words = done.out.decode(errors="replace").split("\n")[-2:-1]
    fields = words[0].split(" ", 4) if words else []
    if done.code or len(fields) != 5 or fields[0] != "ppss-erased":
        why = done.last_line or f"exit {done.code}"
        raise MachineFailed(
            f"{reach.node.name}: not all could be removed ({why}). Mend that, then try again."
        )
    _, there, uid, machine, key = fields
    owner = Owner(master_id(), machine, int(uid), reach.node.name, key)
    return Erased(there == "yes", authorized.take_back(authorized.file(), owner.is_same))


def forget(node: str) -> int:
    """Remove the keys of a node that does not answer any more from here, by its name; how many there were."""
    return authorized.take_back(
        authorized.file(), lambda owner: owner.master == master_id() and owner.node == node
    )


_ERASE = """
root=$base/masters/$master there=no key=
[[ ! -e $root/nodes/$machine ]] || there=yes
{ read -r key <"$root/nodes/$machine/key.pub"; } 2>/dev/null
if [[ -e $root/nodes/$machine/lingers ]]; then # we had the user's systemd go on without a login
    for heir in "$base"/masters/*/nodes/"$machine"; do [[ $heir == "$root"/* ]] || break; done
    if [[ $heir == "$root"/* ]]; then
        loginctl --no-ask-password disable-linger 2>/dev/null
    else
        : >"$heir/lingers"
    fi
fi
remove() { rm -rf -- "$1" 2>/dev/null || { chmod -R u+rwX -- "$1"; rm -rf -- "$1"; }; }
remove "$root/nodes/$machine" || exit
rmdir -- "$root/nodes" 2>/dev/null
[[ -e $root/nodes ]] || remove "$root" || exit
if rmdir -- "$base/masters" 2>/dev/null; then
    made=(); [[ ! -e $base/made ]] || mapfile -t made <"$base/made"
    rm -f -- "$base/made"
    rmdir -- "$base" 2>/dev/null && ((${#made[@]} == 0)) || rmdir -- "${made[@]}" 2>/dev/null
fi
printf '\\nppss-erased %s %s %s %s\\n' "$there" "$EUID" "$machine" "$key"
"""


def _python(reach: Reach, facts: Probe) -> PythonThere:
    """Raises BadInput, saying what to do, if the node has none that is good enough."""
    if facts.python is None:
        raise BadInput(
            f"{reach.node.name} {facts.no_python}; PPSS needs 3.11 or newer: install it there, or use the node "
            "with mode=ssh."
        )
    if not facts.home_writable:
        raise MachineFailed(
            f"{reach.node.name}: {facts.home} can't be written to, and PPSS is installed there. Mend that, or use the "
            "node with mode=ssh."
        )
    return facts.python


def _order(paths: NodeHome, home: MasterHome, facts: Probe, environment: str, *, reverse: bool) -> Order:
    virtual = paths.virtual(environment)
    program = paths.program(environment)
    launcher = f'#!/bin/sh\nexec {shlex.join([f"{virtual}/bin/python", "-I", program])} "$@"\n'
    config = home.ssh_config(
        facts.came_from,
        paths.tilde(paths.key),
        paths.tilde(paths.known_hosts),
        paths.tilde(paths.way) if reverse else "",
    )
    version = {"version": __version__, "environment": environment, "reverse": reverse}
    return {
        "base": paths.base,
        "environment": f"{paths.environments}/{environment}",
        "virtual": virtual,
        "program": program,
        "directory": paths.directory,
        "files": {
            program: (0o600, _MAIN),
            paths.ssh_config: (0o600, config),
            paths.known_hosts: (0o600, home.known_hosts),
            paths.launcher: (0o700, launcher),
            paths.facts: (0o600, json.dumps(version)),
        },
        "key": paths.key,
        "trial": _TRIAL,
        "wheels": [],
    }


def _environment_name(python: PythonThere, wheels: Sequence[Wheel]) -> str:
    """Of the content too: a checkout changes while its version stays."""
    names = "".join(f"{wheel.name} {wheel.sha256}\n" for wheel in wheels)
    return f"{__version__}-{python.tag}-{hashlib.sha256(names.encode()).hexdigest()[:8]}"


def _settle(
    reach: Reach, python: PythonThere, order: Order, wheels: Sequence[Wheel], on_step: Callable[[str], None]
) -> Mapping[str, object]:
    """Have the order carried out. Raises what went wrong there as a sentence."""
    order["wheels"] = [{"name": each.name, "sha256": each.sha256, "size": each.size} for each in wheels]
    program = files("ppss_queue.nodes").joinpath("there.py").read_text()
    done = reach.run(
        f"exec {shlex.join([python.path, '-I', '-c', program])}",
        stdin=_pieces(order, wheels, on_step),
        seconds=_SEND_SECONDS if wheels else _LOOK_SECONDS,
    )
    try:
        said = dict(json.loads(done.out.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        said = {}
    if "missing" in said or "public_key" in said:
        return said
    raise _failure(reach.node.name, {"broken": done.last_line or f"exit {done.code}", **said})


def _pieces(order: Order, wheels: Sequence[Wheel], on_step: Callable[[str], None]) -> Iterator[bytes]:
    yield json.dumps(order).encode() + b"\n"
    total, sent = sum(wheel.size for wheel in wheels), 0
    for wheel in wheels:
        with wheel.path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
                sent += len(piece)
                on_step(f"sent {format_bytes(sent)} of {format_bytes(total)}")


def _failure(node: str, said: Mapping[str, str]) -> PpssError:
    if "errno" not in said:
        if "failed to map segment" in said["broken"]:
            return MachineFailed(
                f"{node}: programs in its home may not be executed (mounted with noexec?), and PPSS is installed "
                "there. Use the node with mode=ssh."
            )
        return MachineFailed(f"{node}: PPSS does not work there ({said['broken'].rstrip('.')}).")
    reasons = {
        "ENOSPC": "its disk is full. Make room there, then try again.",
        "EDQUOT": "your quota of its disk is used up. Make room there, then try again.",
        "EROFS": "its home is read-only. Mend that, or use the node with mode=ssh.",
        "EIO": f"{said['why']}. Try again.",
    }
    return MachineFailed(
        f"{node}: {reasons.get(said['errno'], said['why'] + '. Mend that, then try again.')}"
    )


def _check_room(reach: Reach, facts: Probe, wheels: Sequence[Wheel]) -> None:
    needed = sum(wheel.unpacked_bytes for wheel in wheels) + _SPARE_BYTES
    if facts.free_bytes is not None and facts.free_bytes < needed:
        raise MachineFailed(
            f"{reach.node.name} has {format_bytes(facts.free_bytes)} free where its home is, but PPSS needs "
            f"{format_bytes(needed)}. Make room there, then try again."
        )


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("ppss") / "wheels"
