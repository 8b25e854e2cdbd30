"""What a node is: all facts in one round trip, with bash alone."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ppss_queue.errors import ConnectFailed
from ppss_queue.nodes.home import BASE, NodeHome, master_id
from ppss_queue.nodes.reach import Reach

OLDEST_PYTHON = (3, 11)
_PROBE_SECONDS = 60.0
_ID = re.compile("[0-9A-Za-z._-]{1,64}")
"""Of a machine; it becomes part of a path, and of a line in authorized_keys."""


@dataclass(frozen=True, slots=True)
class PythonThere:
    """An interpreter of the node that is good enough."""

    path: str
    version: str
    """3.11.2"""
    abi: str
    """cp311; cp313t: without the global lock."""
    machine: str
    """x86_64, aarch64 ...; of the interpreter, which may be of 32 bits."""
    libc: str
    """glibc or musl."""
    libc_version: tuple[int, int]
    markers: Mapping[str, str]
    """What the requirements of packages may ask for."""

    @property
    def release(self) -> tuple[int, int]:
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)

    @property
    def tag(self) -> str:
        """cp311-manylinux_2_36_x86_64: what an environment for it is called after."""
        kind = "musllinux" if self.libc == "musl" else "manylinux"
        return f"{self.abi}-{kind}_{self.libc_version[0]}_{self.libc_version[1]}_{self.machine}"


@dataclass(frozen=True, slots=True)
class Probe:
    """A node as it was found."""

    machine: str
    """Its machine id."""
    uid: int
    user: str
    home: str
    home_writable: bool
    system: str
    """Linux x86_64"""
    python: PythonThere | None
    no_python: str
    """Why there is none: a clause, as in "has Python 3.9.2 (/usr/bin/python3)"; empty if there is one."""
    free_bytes: int | None
    """Of the disk where home is."""
    clock_offset_seconds: float
    """How far its clock is ahead of ours; the way from there is in it."""
    cores: int
    load: float
    """Of the last minute."""
    gpus: tuple[str, ...]
    """Names, as nvidia-smi tells them."""
    came_from: str
    """Our address, as the node sees it; empty: not over SSH."""
    environments: tuple[str, ...]
    """What this master has installed there; more than one while an old worker still runs."""
    version: str
    """Of PPSS that was deployed last by this master; empty: none."""
    reverse: bool
    """It was deployed as a node that can't reach this master."""

    @property
    def paths(self) -> NodeHome:
        """Where ours is there."""
        return NodeHome(self.home, master_id(), self.machine)


def probe(reach: Reach) -> Probe:
    """Look at a node. Raises ConnectFailed, and BadInput as `reach` does."""
    done = reach.run(_script(reach.node.python), seconds=_PROBE_SECONDS)
    now = time.time()
    said = dict(
        field.partition("=")[::2] for field in done.out.decode(errors="surrogateescape").split("\0") if field
    )
    try:
        if not said["home"].startswith("/") or not _ID.fullmatch(said["machine"]):
            raise ValueError
        return _read(said, reach, now)
    except (KeyError, ValueError, TypeError):
        why = done.last_line or f"exit {done.code}"
        raise ConnectFailed(
            f"{reach.node.name} does not tell what it is ({why}). Does bash work there?"
        ) from None


def _read(said: Mapping[str, str], reach: Reach, now: float) -> Probe:
    python, no_python = _python(said, reach.node.python or "Python")
    deployed = _deployed(said["deployed"])
    return Probe(
        machine=said["machine"],
        uid=int(said["uid"]),
        user=said["user"],
        home=said["home"].rstrip("/"),
        home_writable=said["writable"] == "yes",
        system=said["system"],
        python=python,
        no_python=no_python,
        free_bytes=int(said["free_kib"]) * 1024 if said["free_kib"].isdecimal() else None,
        clock_offset_seconds=float(said["clock"].replace(",", ".")) - now,
        cores=int(said["cores"]) if said["cores"].isdecimal() else 1,
        load=float(said["load"] or 0),
        gpus=tuple(filter(None, said["gpus"].splitlines())),
        came_from="" if reach.node.here else said["from"],
        environments=tuple(filter(None, said["environments"].splitlines())),
        version=str(deployed.get("version", "")),
        reverse=deployed.get("reverse") is True,
    )


def _python(said: Mapping[str, str], wanted: str) -> tuple[PythonThere | None, str]:
    if not said["python"]:
        return None, said["no_python"] or f"has no {wanted}"
    facts = json.loads(said["python"])
    facts["libc_version"] = tuple(facts["libc_version"])
    return PythonThere(**facts), ""


def _deployed(text: str) -> Mapping[str, object]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {}


def _script(python: str) -> str:
    """`python`: the only interpreter to look at; empty: all that are likely."""
    below_home = python.startswith("~/")
    named = '"$HOME"/' * below_home + shlex.quote(python.removeprefix("~/"))
    candidates = named if python else _CANDIDATES
    return "\n".join(
        [
            MACHINE,
            f"root=$HOME/{BASE}/masters/{master_id()}",
            f"about={shlex.quote(_ABOUT)}",
            f"candidates() {{ printf '%s\\n' {candidates}; }}",
            _PROBE,
        ]
    )


MACHINE = """
machine=
for file in /etc/machine-id /var/lib/dbus/machine-id; do
    [[ -n $machine ]] || { read -r machine <"$file"; } 2>/dev/null
    [[ $machine =~ ^[0-9A-Za-z]{32}$ ]] || machine=
done
[[ -n $machine ]] || machine=${HOSTNAME//\\//_}
"""
"""Bash: the machine id, as `server_place.machine_id` finds it."""

_CANDIDATES = (
    " ".join(
        f"{place}{name}"
        for place in ("", "~/.local/bin/", "/usr/local/bin/")
        for name in ("python3", *(f"python3.{minor}" for minor in range(14, OLDEST_PYTHON[1] - 1, -1)))
    )
    + " ~/{mini,}{conda,forge,mamba}3/bin/python3 ~/anaconda3/bin/python3 ~/mambaforge/bin/python3 "
    "/opt/{mini,}conda{,3}/bin/python3 ~/.pyenv/versions/*/bin/python3 "
    "~/.local/share/uv/python/cpython-3.*/bin/python3"
)

_ABOUT = f"""
import sys
if sys.version_info < {OLDEST_PYTHON}:
    print("has Python %d.%d" % sys.version_info[:2])
    sys.exit()
try:
    import ctypes, glob, hashlib, json, os, platform, ssl, struct, subprocess, sysconfig, zipfile, zlib
except ImportError as error:
    print("has a Python %d.%d that is not complete (%s)" % (*sys.version_info[:2], error))
    sys.exit()
if sys.implementation.name != "cpython" or sys.platform != "linux":
    print("has %s on %s alone" % (platform.python_implementation(), sys.platform))
    sys.exit()
try:
    libc, version = os.confstr("CS_GNU_LIBC_VERSION").split()
except (ValueError, OSError, AttributeError):
    libc, version = "musl", "1.1"
    for path in glob.glob("/lib/ld-musl-*.so.1"):
        said = subprocess.run([path], capture_output=True, text=True).stderr
        version = said.partition("Version ")[2].split()[0]
machine = platform.machine()
if struct.calcsize("P") == 4:
    machine = {{"x86_64": "i686", "aarch64": "armv7l"}}.get(machine, machine)
print(json.dumps(dict(
    path=os.path.realpath(sys._base_executable),
    version=platform.python_version(),
    abi="cp%d%d%s" % (*sys.version_info[:2], "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""),
    machine=machine,
    libc=libc,
    libc_version=[int(part) for part in version.split(".")[:2]],
    markers=dict(
        implementation_name=sys.implementation.name,
        implementation_version=platform.python_version(),
        os_name=os.name,
        platform_machine=platform.machine(),
        platform_python_implementation=platform.python_implementation(),
        platform_release=platform.release(),
        platform_system=platform.system(),
        platform_version=platform.version(),
        python_full_version=platform.python_version(),
        python_version="%d.%d" % sys.version_info[:2],
        sys_platform=sys.platform,
    ),
)))
"""
"""Any Python 3 understands it; one that won't do says why."""

_PROBE = """
say() { printf '%s=%s\\0' "$1" "$2"; }
there() { command -v "$1" >/dev/null 2>&1; }
say machine "$machine"
say uid "${EUID}"
say user "$(id -un 2>/dev/null)"
say home "$HOME"
say writable "$([[ -w $HOME ]] && echo yes)"
say system "$(uname -sm 2>/dev/null)"
say free_kib "$(df -Pk -- "$HOME" 2>/dev/null | { read -r; read -r _ _ _ free _; echo "$free"; })"
say cores "$(nproc 2>/dev/null || grep -c ^processor /proc/cpuinfo)"
read -r load _ </proc/loadavg
say load "$load"
limit=; ! there timeout || limit='timeout 10'
say gpus "$(! there nvidia-smi || $limit nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null)"
say from "${SSH_CONNECTION%% *}"
say environments "$(shopt -s nullglob; cd "$root/env" 2>/dev/null && printf '%s\\n' *)"
say deployed "$(cat "$root/nodes/$machine/deployed.json" 2>/dev/null)"
found= why=
while read -r each; do
    said=$("$each" -I -c "$about" 2>/dev/null </dev/null) || continue
    case $said in
        '{'*) found=$said; break ;;
        has*) why=${why:-$said ($each)} ;;
    esac
done < <(candidates)
say python "$found"
say no_python "$why"
say clock "${EPOCHREALTIME:-$(date +%s.%N)}"
"""
