"""Where a command on an agentless node writes; its outputs are published here, as if it had run here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ppss_queue.errors import PpssError, ServiceFailed
from ppss_queue.model import Lease
from ppss_worker import beside
from ppss_worker.agentless.agent import Session
from ppss_worker.agentless.carrying import fetch_outputs
from ppss_worker.publishing import machine_failed
from ppss_worker.running import Owners
from ppss_worker.runs import ActiveRun
from ppss_worker.workplaces import Here

if TYPE_CHECKING:
    from ppss_worker.agentless.visits import Visits

_SENTENCES = {"new": beside.would_be_lost, "changed": beside.changed, "both": beside.written_twice}


class Home:
    """The scratch of an attempt on a node, and the one in the output directory here, where its outputs come to."""

    base = ""
    """The disk of the node is not ours to look at."""

    def __init__(self, visits: Visits, session: Session, attempt: str, lease: Lease, run: ActiveRun) -> None:
        self._visits = visits
        self._session = session
        self._attempt = attempt
        self._run = run
        self.here: Here | None = None
        """None: the run has no output directory."""
        self.has_outputs = False
        self.beside = ""
        """As the agent said it."""

    @property
    def directory(self) -> str:
        return f"{self._session.directory}/{self._attempt}/out" if self._run.spec.output is not None else ""

    def gather(
        self, on_gathered: Callable[[Sequence[str], int], None], on_failed: Callable[[PpssError], None]
    ) -> None:
        kind, _, name = self.beside.partition(" ")
        if kind:
            on_failed(_SENTENCES[kind](name))
        elif self.here is None or not self.has_outputs:
            on_gathered((), 0)
        else:
            into = self.here.directory
            task = partial(fetch_outputs, self._visits.agent, self._session, self._attempt, into)
            self._visits.porter.carry(task, partial(self._gathered, on_gathered, on_failed))

    def _gathered(
        self,
        on_gathered: Callable[[Sequence[str], int], None],
        on_failed: Callable[[PpssError], None],
        error: BaseException | None,
    ) -> None:
        assert self.here is not None
        if isinstance(error, OSError):
            error = machine_failed(self._run.spec.output or "", error)
        if isinstance(error, ServiceFailed):
            self._visits.trouble(self._session, error)
        if isinstance(error, PpssError):
            on_failed(error)
            return
        if error is not None:
            raise error
        self.here.gather(on_gathered, on_failed)

    def publish(
        self,
        round: int,
        taken: Owners,
        still_ours: Callable[[], bool],
        on_published: Callable[[], None],
        on_failed: Callable[[PpssError], None],
    ) -> None:
        if self.here is None:
            on_published()
        else:
            self.here.publish(round, taken, still_ours, on_published, on_failed)

    def discard(self) -> None:
        if self.here is not None:
            self.here.discard()
