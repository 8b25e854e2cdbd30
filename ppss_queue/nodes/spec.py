"""A node as a person writes it: `[user@]host[:port]`, and how it is to work as `key=value`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ppss_queue.address import SshHost
from ppss_queue.config import closest
from ppss_queue.errors import BadInput
from ppss_queue.units import parse_bytes, parse_gpus, shorten

HERE = ":"
"""This machine, as GNU parallel writes it."""
NAME_CHARACTERS = 64
"""As long as Linux lets a host name be."""


class Mode(StrEnum):
    """How a node works."""

    WORKER = "worker"
    """A worker runs there, which reaches this machine over SSH."""
    SSH = "ssh"
    """A worker here runs items there; sshd and bash are all that the node needs."""


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One machine as one user, with its options. Two nodes of a list never have the same name."""

    name: str
    """How it is called in lists, and in Redis."""
    host: SshHost | None
    """Where it is; None: this machine."""
    slots: str = ""
    """As -p takes it; empty: all cores."""
    scratch: str = ""
    scratch_limit_bytes: int | None = None
    nice: int = 0
    mode: Mode = Mode.WORKER
    tags: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    """FROM=TO"""
    bytes_per_second: int | None = None
    gpus: str = ""
    cpus: str = ""
    memory: str = ""
    reverse: bool | None = None
    """It can't reach this machine, which therefore holds a way open for it; None: as it was deployed before."""
    python: str = ""
    """The interpreter to use there; empty: the first one that is new enough."""

    @property
    def has_worker(self) -> bool:
        """Whether a worker of its own runs there."""
        return self.mode is not Mode.SSH

    @property
    def here(self) -> bool:
        return self.host is None

    @property
    def place(self) -> str:
        """`user@host:port` as far as it was given; `:` for this machine."""
        return self.host.display() if self.host else HERE


def parse_node(words: Sequence[str]) -> NodeSpec:
    """Reads `[N/][user@]host[:port] key=value...`; N is GNU parallel's number of slots. Raises BadInput."""
    destination, *settings = words
    slots, slash, rest = destination.rpartition("/")
    if slash and slots.isdecimal():
        settings = [f"slots={slots}", *settings]
        destination = rest
    elif slash:
        raise BadInput(f"'{destination}' is no node. Write [USER@]HOST[:PORT], as for ssh.")
    destination = destination.removeprefix("ssh://").rstrip("/")
    host = None if destination == HERE else SshHost.parse(destination)
    spec = NodeSpec(check_name(host.display() if host else HERE), host)
    seen: set[str] = set()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not value:
            raise BadInput(
                f"'{setting}' is no setting of node '{destination}'. Write KEY=VALUE, as in slots=8."
            )
        if key in seen and key not in _MANY:
            raise BadInput(f"node '{destination}' has '{key}' twice. Give one.")
        seen.add(key)
        spec = _set(spec, key, value)
    return spec


def check_name(name: str) -> str:
    """The name, if lists can show it and nothing takes it for an option. Raises BadInput."""
    if not 0 < len(name) <= NAME_CHARACTERS or not name.isprintable() or " " in name or name[0] in "-@":
        raise BadInput(
            f"{shorten(repr(name), NAME_CHARACTERS)} can't name a node. Give 1 to {NAME_CHARACTERS} printable "
            "characters without blanks."
        )
    return name


def _set(spec: NodeSpec, key: str, value: str) -> NodeSpec:
    if key not in _SETTINGS:
        close = closest(key, _SETTINGS)
        hint = f"Did you mean '{close}'?" if close else f"There are: {', '.join(_SETTINGS)}."
        raise BadInput(f"node '{spec.name}' has '{key}', which is no setting. {hint}")
    try:
        return _SETTINGS[key](spec, value)
    except ValueError:
        raise BadInput(f"'{key}={value}' of node '{spec.name}' can't be: {_NEEDS[key]}.") from None


def _slots(spec: NodeSpec, value: str) -> NodeSpec:
    number = float(value.removesuffix("%")) if value.endswith("%") else int(value)
    if number == 0 or (value.endswith("%") and number < 0):
        raise ValueError
    return replace(spec, slots=value)


def _nice(spec: NodeSpec, value: str) -> NodeSpec:
    if not -20 <= int(value) <= 19:
        raise ValueError
    return replace(spec, nice=int(value))


def _cpus(spec: NodeSpec, value: str) -> NodeSpec:
    if int(value) < 0:
        raise ValueError
    return replace(spec, cpus=value)


def _gpus(spec: NodeSpec, value: str) -> NodeSpec:
    parse_gpus(value)
    return replace(spec, gpus=value)


def _memory(spec: NodeSpec, value: str) -> NodeSpec:
    parse_bytes(value)
    return replace(spec, memory=value)


def _map(spec: NodeSpec, value: str) -> NodeSpec:
    if "=" not in value.strip("="):
        raise ValueError
    return replace(spec, maps=(*spec.maps, value))


def _reverse(spec: NodeSpec, value: str) -> NodeSpec:
    if value not in ("yes", "no"):
        raise ValueError
    return replace(spec, reverse=value == "yes")


def _tags(spec: NodeSpec, value: str) -> NodeSpec:
    tags = tuple(tag for tag in value.split(",") if tag)
    if not tags or any(set(tag) & set("@=[] ") for tag in tags):
        raise ValueError
    return replace(spec, tags=tags)


_SETTINGS: Mapping[str, Callable[[NodeSpec, str], NodeSpec]] = {
    "slots": _slots,
    "name": lambda spec, value: replace(spec, name=check_name(value)),
    "scratch": lambda spec, value: replace(spec, scratch=value),
    "scratch-limit": lambda spec, value: replace(spec, scratch_limit_bytes=parse_bytes(value)),
    "nice": _nice,
    "mode": lambda spec, value: replace(spec, mode=Mode(value)),
    "tags": _tags,
    "map": _map,
    "bwlimit": lambda spec, value: replace(spec, bytes_per_second=parse_bytes(value)),
    "gpus": _gpus,
    "cpus": _cpus,
    "mem": _memory,
    "reverse": _reverse,
    "python": lambda spec, value: replace(spec, python=value),
}
_MANY = ("map",)
_NEEDS = {
    "slots": "write 8, 50% or -1 (all cores but one)",
    "nice": "write a number from -20 to 19",
    "cpus": "write a whole number from 0 up",
    "mode": f"write {' or '.join(Mode)}",
    "tags": "write words with commas between them, as in tags=gpu,fast",
    "map": "write map=FROM=TO",
    "reverse": "write yes or no",
}
