"""What a worker knows of a run whose items it executes: its command, environment and output directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ppss_queue.command import Command, ItemValues, output_file_of, parse_command
from ppss_queue.connection import Connection
from ppss_queue.errors import BadInput
from ppss_queue.keys import Keys
from ppss_queue.model import Item, Lease, RunSpec
from ppss_queue.store import Store
from ppss_worker.maps import NO_MAPS, PathMaps
from ppss_worker.staging import Staging

GPUS = "CUDA_VISIBLE_DEVICES"
LEFT_ALONE_SECONDS = 60.0
"""Before a run that could not be run here is tried again: its directory may have been mounted meanwhile."""


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run as this worker executes it."""

    id: str
    spec: RunSpec
    command: Command | None
    """None: a Python function, named in `function`."""
    function: str | None
    environment: Mapping[str, str]
    """What all commands of the run see; `variables` adds what differs per attempt."""
    staging: Staging | None
    """Of a run whose outputs are published on this machine; None: it has none, or they go to the master."""
    staged: bool = False
    """Files come from the master, and outputs go there."""

    @classmethod
    def load(
        cls,
        run: str,
        spec: RunSpec,
        node: str,
        own_command: str | tuple[str, ...] | None,
        maps: PathMaps = NO_MAPS,
        *,
        remote: bool = False,
    ) -> ActiveRun:
        """`remote`: this node reaches its master by SSH, so that files can be fetched.

        Raises BadInput if the command can't be understood, the output directory can't be made or files are missing.
        """
        spec, mapped = maps.applied(spec)
        staged = remote and spec.stage and not mapped
        if spec.command is None:
            if own_command is None:
                raise BadInput(f"Run {run} has no command, and this worker has none: ppss worker -c COMMAND")
            spec = replace(spec, command=own_command)
        function = spec.function
        command = None
        if not function:
            assert spec.command is not None
            command = parse_command(spec.command, replacement=spec.replacement, functions=spec.functions)
        if spec.output is None and command is not None and command.needs_output:
            raise BadInput(
                f"The command of run {run} names an output directory, but the run has none: -o DIR"
            )
        if remote and not staged:
            _refuse_missing(run, spec)
        staging = Staging(spec.output, run) if spec.output is not None and not staged else None
        if staging is not None:
            staging.prepare()
        environment = {**os.environ, **spec.environment, "PPSS_RUN": run, "PPSS_NODE": node}
        return cls(run, spec, command, function, environment, staging, staged)

    def place_of(self, item: Item) -> tuple[str, str]:
        """(directory below the output directory, base name) of what the item's command writes."""
        if not self.spec.is_file(item):
            return "", output_file_of(item.name)
        directory, _, base = item.name.rpartition("/")
        return directory, base

    def values(self, lease: Lease, slot: int, path: str, output_dir: str) -> ItemValues:
        """What the command of one attempt may name; `path`: where the item is on this machine, or its text."""
        item = lease.item
        _, base = self.place_of(item)
        return ItemValues(path, item.name, item.seq, slot, output_dir, base)

    def variables(self, lease: Lease, values: ItemValues, gpus: Sequence[str] = ()) -> dict[str, str]:
        """The environment of one attempt, on top of `environment`."""
        seen = {
            "ITEM": values.item,
            "PPSS_ITEM": lease.item.name,
            "PPSS_ATTEMPT": str(lease.attempts + 1),
            "PPSS_SLOT": str(values.slot),
            "PPSS_SEQ": str(values.seq),
            "OUTPUT_FILE": values.output_file,
        }
        if values.output_dir:
            seen["OUTPUT_DIR"] = values.output_dir
        if gpus:
            seen[GPUS] = ",".join(gpus)
        return seen


def _refuse_missing(run: str, spec: RunSpec) -> None:
    """Rather than failing each item. Raises BadInput."""
    for root in spec.roots:
        if root and not os.path.isdir(root):
            raise BadInput(
                f"the items of run {run} are in '{root}', which is not on this node. "
                f"Enqueue them with --stage to have them copied, or say where they are: --map '{root}=DIR'"
            )


class ActiveRuns:
    """The runs whose items this worker has met, and those that it can't run."""

    def __init__(
        self,
        connection: Connection,
        keys: Keys,
        node: str,
        own_command: str | tuple[str, ...] | None,
        maps: PathMaps = NO_MAPS,
        *,
        remote: bool = False,
    ) -> None:
        self._maps = maps
        self._remote = remote
        self._store = Store(connection, keys)
        self._node = node
        self._own_command = own_command
        self._known: dict[str, ActiveRun] = {}
        self._alone_until: dict[str, float] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._known))

    def get(self, run: str) -> ActiveRun:
        """Raises UnknownRun, Unavailable, or why it can't be run here: BadInput, MachineFailed."""
        if run not in self._known:
            spec = self._store.spec(run)
            self._known[run] = ActiveRun.load(
                run, spec, self._node, self._own_command, self._maps, remote=self._remote
            )
        return self._known[run]

    @property
    def any_staged(self) -> bool:
        """Whether files of items come from the master."""
        return any(run.staged for run in self._known.values())

    def forget(self, run: str) -> ActiveRun | None:
        return self._known.pop(run, None)

    def leave_alone(self, run: str, now: float) -> bool:
        """Don't claim from it for a while; whether it is the first time."""
        first = run not in self._alone_until
        self._alone_until[run] = now + LEFT_ALONE_SECONDS
        return first

    def left_alone(self, now: float) -> list[str]:
        """`now`: time.monotonic()."""
        return [run for run, until in tuple(self._alone_until.items()) if until > now]

    @property
    def any_left_alone(self) -> bool:
        """Whether there was ever one."""
        return bool(self._alone_until)
