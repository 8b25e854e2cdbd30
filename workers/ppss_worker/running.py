"""An attempt from its start to its outcome, and where it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ppss_queue.errors import PpssError
from ppss_queue.model import Lease
from ppss_worker.process import Child
from ppss_worker.runs import ActiveRun

if TYPE_CHECKING:
    from ppss_worker.hosts import Slot

Owners: TypeAlias = Mapping[str, tuple[int, str]]
"""Names of outputs that other items of the run own, with sequence and name of each."""


class Scratch(Protocol):
    """Where a command writes, and how that comes to its final place. All callbacks come in the main thread."""

    @property
    def directory(self) -> str:
        """$OUTPUT_DIR"""

    @property
    def base(self) -> str:
        """What the user named, and `directory` is below of."""

    def gather(
        self, on_gathered: Callable[[Sequence[str], int], None], on_failed: Callable[[PpssError], None]
    ) -> None:
        """Brings all that the command wrote beside its final place; tells the final names, and a round.

        After a lost connection all is gathered, and told, again: only the last round can be published.
        """

    def publish(
        self,
        round: int,
        taken: Owners,
        still_ours: Callable[[], bool],
        on_published: Callable[[], None],
        on_failed: Callable[[PpssError], None],
    ) -> None:
        """Moves what was gathered to its final names; see `publishing.Attempt.publish` for what may fail.

        Redis must have said that the token is the newest since that round was told.
        """

    def discard(self) -> None:
        """Removes it, after `publish` or instead. Raises nothing."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """What an attempt is given."""

    item: str
    """$ITEM"""
    directory: str
    """The command's working directory."""
    scratch: Scratch | None
    """None: the run has no output directory."""


class ItemRefused(PpssError):
    """The attempt is over before its command: the text is the reason, with the item as its subject."""

    def __init__(self, text: str, *, final: bool = True, exit_code: int | None = None) -> None:
        """`final`: another attempt would meet it too. `exit_code` 0: nothing was to be done."""
        super().__init__(text)
        self.final = final
        self.ended_with = exit_code


@dataclass(slots=True)
class Running:
    """A command on a slot."""

    lease: Lease
    run: ActiveRun
    slot: Slot
    child: Child
    scratch: Scratch | None
    started: float
    """time.monotonic()"""
    started_epoch: float
    timeout_at: float | None
    """time.monotonic() at which the next signal is due."""
    vacated: bool = False
    """Its slot has been given to another one."""
    stopped: str | None = None
    """Why it was told to end: a reason, "lost" or "released"."""
