"""What this machine has: CPUs and memory that this process may use, and GPUs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ppss_queue.errors import MachineFailed

_NVIDIA_SMI_SECONDS = 20.0
"""It wakes up the driver where nothing else does, some seconds for each GPU; a broken one hangs for ever."""
_NO_DEVICES = 6
"""Its exit code where there is a driver and no GPU."""
_UNLIMITED = 2**60
"""Version 1 of cgroups says a number above this where there is no limit."""


def cpus(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use, which its affinity and its cgroups limit; at least one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for directory in _cgroups("cpu", proc, root):
        quota, _, period = _read(directory / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # and not "max" or -1
            count = min(count, int(quota) // int(period))
    return max(count, 1)


def memory_bytes(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory of this machine, or what cgroups leave of it."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for directory in _cgroups("memory", proc, root):
        limit = _read(directory / "memory.max") or _read(directory / "memory.limit_in_bytes")
        if limit.isdecimal() and int(limit) < _UNLIMITED:
            size = min(size, int(limit))
    return size


def gpus() -> tuple[str, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves this process, or all that nvidia-smi finds. Raises MachineFailed."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return visible_gpus(visible)
    program = shutil.which("nvidia-smi")
    return listed_gpus(*_ask(program), "this machine") if program else ()


def visible_gpus(text: str) -> tuple[str, ...]:
    """`text`: of CUDA_VISIBLE_DEVICES."""
    return tuple(_until_none(text))


def listed_gpus(told: str, exit_code: int | None, whose: str) -> tuple[str, ...]:
    """Of what nvidia-smi printed when it was asked for their numbers; `exit_code` None: it was given up.

    Raises MachineFailed, which names `whose` they are.
    """
    names = tuple(name for line in told.split("\n") if (name := line.strip()))
    if exit_code == _NO_DEVICES:
        return ()
    if exit_code is None:
        why = f"did not answer within {_NVIDIA_SMI_SECONDS:g} s"
    elif exit_code or not all(map(str.isdecimal, names)):
        why = f"failed: {names[-1] if names else f'exit {exit_code}'}"
    else:
        return names
    raise MachineFailed(f"which GPUs {whose} has is not known, as nvidia-smi {why}")


def _until_none(visible: str) -> Iterator[str]:
    """As CUDA reads it: what follows a name that is none is hidden too."""
    for name in map(str.strip, visible.split(",")):
        if not name or name.startswith("-") or name == "NoDevFiles":
            return
        yield name


def _ask(program: str) -> tuple[str, int | None]:
    """What it printed, and its exit code."""
    import subprocess

    asked = subprocess.Popen(
        [program, "--query-gpu=index", "--format=csv,noheader"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        told, _ = asked.communicate(timeout=_NVIDIA_SMI_SECONDS)
    except subprocess.TimeoutExpired:
        asked.kill()  # and not waited for: where the driver hangs it can't even die
        return "", None
    return told.decode(errors="replace"), asked.returncode


def _cgroups(controller: str, proc: Path, root: Path) -> Iterator[Path]:
    """Directories of the cgroups that this process is in, with those above: all of their limits count.

    In a container the root is all that there is to see, whatever the path says.
    """
    for line in _read(proc).split("\n"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        below = top / path.lstrip("/")
        yield from (below, *(above for above in below.parents if above.is_relative_to(top)))


def _read(path: Path) -> str:
    """Empty where there is no such thing."""
    with suppress(OSError):
        return path.read_text().strip()
    return ""
