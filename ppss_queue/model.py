"""The values that PPSS passes around: items, runs, leases, outcomes. No I/O; JSON in and out.

Names and paths are `str` with surrogateescape (PEP 383): `os.fsencode` gives the exact bytes back, and
`json.dumps` writes the odd ones as `\\udcXX`, which `json.loads` reads back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property

from ppss_queue.errors import NewerVersion
from ppss_queue.resources import NOTHING, Resources
from ppss_queue.rules import NO_RETRY, Halt, RetryRule

RUN_VERSION = 2
"""The highest version of a run that this PPSS can run; `RunSpec.version` is what it writes."""


class State(StrEnum):
    """Where an item is. Every item of a run is in exactly one of these."""

    READY = "ready"
    LEASED = "leased"
    DELAYED = "delayed"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


STATES: tuple[State, ...] = tuple(State)
ENDED: frozenset[State] = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


class RunState(StrEnum):
    """What a run does."""

    FILLING = "filling"
    OPEN = "open"
    PAUSED = "paused"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Item:
    """One input of a run: a file (below a root directory) or a text."""

    seq: int
    """Number in the run, from 1, in input order."""
    name: str
    """How it is shown; a file's path relative to its root, or the text itself."""
    root: int = 0
    """Index into `RunSpec.roots`."""


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file of --with, which every command of a run can read."""

    path: str
    """Relative to the run's directory, and to the directory in which staged commands run."""
    size: int
    mode: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a run is: the command, how its items are found on disk, and its rules. Never changes."""

    command: str | tuple[str, ...] | None = None
    """Text for bash, words to execute, `python:module:function`, or None: each worker brings its own."""
    directory: str = "/"
    """Absolute directory in which commands run: where the run was enqueued."""
    roots: tuple[str, ...] = ("",)
    """Where items are: an absolute directory (the item is a file below it) or "" (the item is a text)."""
    output: str | None = None
    """Absolute output directory, if any."""
    replacement: str = "{}"
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables carried by `--env`; exported bash functions as `BASH_FUNC_name%%`."""
    retry: RetryRule = NO_RETRY
    max_lost: int = 3
    """Leases of *started* attempts that may be lost (crashes) before the item fails."""
    visibility_seconds: float = 30.0
    timeout_seconds: float | None = None
    grace_seconds: float = 10.0
    """Time between SIGTERM and SIGKILL."""
    halt: Halt | None = None
    skip_existing: bool = False
    keep_output: bool = False
    """Keep what succeeded items printed as well, not only failed ones."""
    tell_output: bool = False
    """Who made the run prints what its items print, and wants it from other workers too."""
    stage: bool = False
    """Nodes that reach the master by SSH fetch the files of items, and bring outputs home."""
    also: tuple[str, ...] = ()
    """Templates (`{.}.xmp`) of files that come along with an item's, where they are there."""
    shared: tuple[SharedFile, ...] = ()
    returns: tuple[str, ...] = ()
    """Templates (`{.}.png`) of outputs that commands write beside their item."""
    verify: bool = False
    """Compare hashes of all files that are copied."""
    name: str | None = None
    priority: int = 1
    keep_seconds: float = 7 * 24 * 3600.0
    """How long the run is remembered after it ended."""
    needs: Resources = NOTHING
    """Of each item, on the node that runs it."""

    @property
    def version(self) -> int:
        """2 if a worker must know what items need, which those of version 1 do not."""
        return 2 if self.needs else 1

    def to_json(self) -> str:
        """One line of ASCII, which a PPSS that knows the run's version can read."""
        values = asdict(self)
        if not self.needs:
            del values["needs"]
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> RunSpec:
        """Raises NewerVersion if a field is unknown here."""
        values = json.loads(text)
        unknown = sorted(values.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise NewerVersion(
                f"The run has settings that this PPSS does not know ({unknown[0]}). Upgrade it."
            )
        command = values.get("command")
        if isinstance(command, list):
            values["command"] = tuple(command)
        for name in ("roots", "also", "returns"):
            values[name] = tuple(values.get(name, ()))
        values["shared"] = tuple(SharedFile(**shared) for shared in values.get("shared", ()))
        retry = values["retry"]
        values["retry"] = RetryRule(
            retry["retries"], retry["delay_seconds"], tuple(retry["on"]), tuple(retry["not_on"])
        )
        if values["halt"] is not None:
            values["halt"] = Halt(**values["halt"])
        values["needs"] = Resources(**values.get("needs", {}))
        return cls(**values)

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the exported bash functions that the run carries."""
        prefix, suffix = "BASH_FUNC_", "%%"
        return tuple(
            name[len(prefix) : -len(suffix)]
            for name in self.environment
            if name.startswith(prefix) and name.endswith(suffix)
        )

    @property
    def function(self) -> str | None:
        """`module:function` of a command `python:module:function`."""
        text = self.command
        return text[len("python:") :] if isinstance(text, str) and text.startswith("python:") else None

    def with_roots(self, roots: tuple[str, ...]) -> RunSpec:
        return replace(self, roots=roots)

    def local_path(self, item: Item) -> str:
        """What `$ITEM` is: the absolute path of a file, or the text."""
        root = self.roots[item.root]
        return f"{root.rstrip('/')}/{item.name}" if root else item.name

    def is_file(self, item: Item) -> bool:
        return bool(self.roots[item.root])


@dataclass(frozen=True)
class Lease:
    """The time-limited right to run an item, proven by its token."""

    run: str
    token: str
    item: Item
    attempts: int
    """Attempts started before this one."""
    failures: int
    """Failed attempts that count against the retries."""
    failed_on: str = ""
    """The node that may be to blame for its last failure, so that another one is to try it."""

    @cached_property
    def job(self) -> str:
        return job_id(self.run, self.item.seq)

    @cached_property
    def member(self) -> str:
        """How the lease is named in Redis."""
        return f"{self.job}:{self.token}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, as it is kept in Redis."""

    exit_code: int | None = None
    signal: int | None = None
    seconds: float = 0.0
    node: str = ""
    slot: int = 0
    reason: str | None = None
    """Why it failed when that is not the exit code or signal: timed out, output refused, lost."""
    last_line: str = ""
    result: str | None = None
    """What a Python function returned, as JSON."""

    def to_json(self) -> str:
        """Compact ASCII; absent values are left out."""
        kept = {name: value for name in _OUTCOME_FIELDS if (value := getattr(self, name)) not in (None, "")}
        kept["seconds"] = round(self.seconds, 3)
        return _COMPACT.encode(kept)

    @classmethod
    def from_json(cls, text: str | bytes | None) -> Outcome:
        return cls(**json.loads(text)) if text else cls()

    @property
    def failure(self) -> str:
        """What went wrong, in a few words."""
        if self.reason:
            return self.reason
        if self.signal:
            return f"killed by signal {self.signal}"
        return f"exit {self.exit_code}" if self.exit_code else ""


_OUTCOME_FIELDS = tuple(field.name for field in fields(Outcome))
_COMPACT = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class ItemView:
    """An item as `ppss items` and the Python API show it."""

    item: Item
    state: State
    attempts: int
    lost: int
    outcome: Outcome

    @property
    def name(self) -> str:
        return self.item.name

    @property
    def seq(self) -> int:
        return self.item.seq

    @property
    def failed(self) -> bool:
        return self.state is State.FAILED

    @property
    def exit_code(self) -> int | None:
        return self.outcome.exit_code

    @property
    def last_line(self) -> str:
        return self.outcome.last_line

    @property
    def result(self) -> object:
        """What the Python function of the run returned for this item; None for other commands."""
        return json.loads(self.outcome.result) if self.outcome.result is not None else None

    def to_dict(self) -> dict[str, object]:
        """The object of `ppss items --json`."""
        return {
            "seq": self.item.seq,
            "item": self.item.name,
            "state": str(self.state),
            "attempts": self.attempts,
            "node": self.outcome.node or None,
            "slot": self.outcome.slot or None,
            "exit_code": self.outcome.exit_code,
            "signal": self.outcome.signal,
            "seconds": self.outcome.seconds if self.state in ENDED else None,
            "last_line": self.outcome.last_line,
            "reason": self.outcome.reason,
        }


def job_id(run: str, seq: int) -> str:
    """RQ's id of an item: `<run>-<7 digits>`, so that ids sort in input order."""
    return f"{run}-{seq:07d}"


def seq_of_job(job: str) -> int:
    return int(job.rpartition("-")[2])
