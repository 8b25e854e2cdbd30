"""The nodes of a run in its live view: a line each, those in trouble first where there are too many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ppss_queue.cli.table import cut, width_of
from ppss_queue.connection import Reply
from ppss_queue.errors import PpssError
from ppss_queue.keys import Keys
from ppss_queue.node_views import NodeState, NodeView, nodes_call, read_nodes
from ppss_queue.scripts import Call
from ppss_queue.store import Counts
from ppss_queue.units import format_count, format_duration, format_rate, plural, printable

if TYPE_CHECKING:
    from ppss_queue.nodes.joining import Joining

_BAR_COLUMNS = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_SILENT_SECONDS = 15.0
"""A worker says something each 10 s."""
_LOOK_SECONDS = 1.0
_TROUBLE = (NodeState.LOST, NodeState.QUARANTINED, NodeState.PAUSED, NodeState.DRAINING)


def node_lines(
    views: Sequence[NodeView], coming: Sequence[tuple[str, str]], columns: int, rows: int
) -> list[str]:
    """At most `rows` lines of at most `columns` columns.

    `coming`: nodes that are not there yet, with what is done about that.
    """
    views = sorted(views, key=_urgency)
    lines = [(view.name, _facts(view)) for view in views] + [(name, f"{doing} ...") for name, doing in coming]
    if len(lines) > rows:
        hidden = views[rows - 1 :]
        slots, rate = sum(view.slots for view in hidden), sum(view.rate_per_second for view in hidden)
        more = f"and {format_count(len(lines) - rows + 1)} more: {plural(slots, 'slot')}, {format_rate(rate)}"
        lines = [*lines[: rows - 1], ("", more)]
    names = [cut(printable(name), max(8, columns // 3)) for name, _ in lines]
    width = max(map(width_of, names), default=0)
    return [
        cut(f"  {name}{' ' * (width - width_of(name))}  {text}", columns)
        for name, (_, text) in zip(names, lines, strict=True)
    ]


def _urgency(view: NodeView) -> tuple[int, bool, str]:
    trouble = _TROUBLE.index(view.state) if view.state in _TROUBLE else len(_TROUBLE)
    return trouble, view.silent_seconds < _SILENT_SECONDS, view.name


def _facts(view: NodeView) -> str:
    slots = f"{plural(view.slots, 'slot'):>9} {_bar(view.running, view.slots)}"
    if view.state is NodeState.LOST:
        return f"{slots}  lost {format_duration(view.silent_seconds)} ago; its items have come back"
    if view.state is NodeState.QUARANTINED:
        return f"{slots}  quarantined: {view.reason}"
    if view.state is NodeState.PAUSED:
        return f"{slots}  paused {view.reason}"
    rate = format_rate(view.rate_per_second) if view.rate_per_second else ""
    text = f"{slots}  {rate:>8}"
    if view.state is NodeState.DRAINING:
        return f"{text}  finishing"
    if view.silent_seconds >= _SILENT_SECONDS:
        held = f", its {plural(view.leased, 'item')} come back soon" if view.leased else ""
        return f"{text}  silent for {format_duration(view.silent_seconds)}{held}"
    return text


def _bar(running: int, slots: int) -> str:
    """How busy it is."""
    eighths = min(_BAR_COLUMNS * 8 * running // slots if slots else 0, _BAR_COLUMNS * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(_BAR_COLUMNS)


class NodesLive:
    """What the live view of a run knows of nodes: those that work on it, and those on their way."""

    def __init__(self, keys: Keys, joining: Joining | None = None) -> None:
        self.joining = joining
        self._keys = keys
        self._views: list[NodeView] = []
        self._most: dict[str, int] = {}
        """Slots by node."""
        self._due = 0.0

    def is_due(self, counts: Counts) -> bool:
        """Whether to ask Redis now: not where one machine does all."""
        now = time.monotonic()
        if now < self._due or (self.joining is None and len(counts.workers) < 2):
            return False
        self._due = now + _LOOK_SECONDS
        return True

    def ask(self) -> Call:
        """Its reply is for `hear`."""
        return nodes_call(self._keys)

    def hear(self, reply: Reply) -> None:
        if not isinstance(reply, PpssError):
            self._views = read_nodes(reply)

    def lines(self, counts: Counts, columns: int, rows: int) -> list[str]:
        """For the picture of the run."""
        shown = self._of(counts)
        coming = []
        if self.joining:
            there = {view.name for view in shown}
            coming = [
                (step.node.name, step.doing)
                for step in self.joining.steps
                if not step.error and step.node.name not in there
            ]
        return node_lines(shown, coming, columns, rows) if len(shown) + len(coming) > 1 else []

    def slots(self, counts: Counts, here: int) -> int:
        """Of all nodes that work on the run now; `here` where no other is known."""
        return sum(_slots_for(counts, view) for view in self._of(counts)) or here

    def slots_used(self, here: int) -> int:
        """Of all nodes that worked on the run at one time or another."""
        return sum(self._most.values()) or here

    def failures(self) -> list[str]:
        """A sentence for each node that turned out to take no part, once."""
        if self.joining is None:
            return []
        return [f"'{name}' takes no part: {error}" for name, error in self.joining.failures()]

    @property
    def is_hopeless(self) -> bool:
        """Whether nobody works, and nobody comes."""
        return self.joining is not None and self.joining.is_hopeless

    def leave(self) -> None:
        """The run ends here before its items do."""
        if self.joining:
            self.joining.leave()

    def _of(self, counts: Counts) -> list[NodeView]:
        named = {step.node.name for step in self.joining.steps} if self.joining else set()
        working = set(counts.workers)
        shown = [
            view
            for view in self._views
            if view.name in named or any(worker.name in working for worker in view.workers)
        ]
        for view in shown:
            self._most[view.name] = max(_slots_for(counts, view), self._most.get(view.name, 0))
        return shown


def _slots_for(counts: Counts, view: NodeView) -> int:
    """Of the workers that take items of the run: others may be there too."""
    return sum(worker.slots for worker in view.workers if worker.name in counts.workers)
