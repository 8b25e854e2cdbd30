"""Nodes on their way into a run: PPSS is brought where it is missing, and a worker for the run started on each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from ppss_queue.errors import PpssError
from ppss_queue.nodes import service, way_back
from ppss_queue.nodes.deploy import deploy
from ppss_queue.nodes.everywhere import everywhere
from ppss_queue.nodes.home import NodeHome
from ppss_queue.nodes.master import MasterHome
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.spec import NodeSpec

JOIN_SECONDS = 15 * 60.0
"""For one node, with all that may be brought there over a slow line."""
LEAVE_SECONDS = service.STOP_SECONDS + 30.0


@dataclass(slots=True)
class Step:
    """How far a node is."""

    node: NodeSpec
    doing: str = "connecting"
    joined: bool = False
    """Its worker is at work, and shows up by itself."""
    error: PpssError | None = None
    """Why it takes no part."""
    told: bool = field(default=False, repr=False)


class Joining:
    """Each node joins as soon as it is ready; one that can't holds up no other. For use by one thread."""

    def __init__(
        self, nodes: Sequence[NodeSpec], run: str, url: str, home: MasterHome, *, accept_new: bool
    ) -> None:
        """`url`: where the workers find the queue; `home`: what they must know of this machine."""
        self._steps = {node.name: Step(node) for node in nodes}
        self._run = run
        self._url = url
        self._home = home
        self._accept_new = accept_new
        self._lock = threading.Lock()
        self._places: dict[str, NodeHome] = {}
        """Where a worker was started for this run, and has to be stopped if that ends early."""
        self._leaving = False

    def begin(self) -> None:
        """Returns at once."""
        threading.Thread(target=self._join_all, name="joining", daemon=True).start()

    @property
    def steps(self) -> list[Step]:
        """In the order of the list."""
        return list(self._steps.values())

    @property
    def is_hopeless(self) -> bool:
        """Whether no node joined, or will."""
        return all(step.error for step in self._steps.values())

    def failures(self) -> Iterator[tuple[str, PpssError]]:
        """Nodes that take no part, each told once."""
        for step in self._steps.values():
            if step.error and not step.told:
                step.told = True
                yield step.node.name, step.error

    def leave(self) -> None:
        """Stops the workers that were started; what they run goes back. Call it when the run ends before its items do.

        Workers of a run that is done end by themselves.
        """
        with self._lock:
            self._leaving = True
            places = dict(self._places)
        nodes = [self._steps[name].node for name in places]

        def stop(node: NodeSpec) -> None:
            with self._reaching(node) as reach:
                service.stop(reach, places[node.name].directory, label=service.of_run(self._run), now=True)

        for _ in everywhere(nodes, stop, seconds=LEAVE_SECONDS):
            pass

    def _join_all(self) -> None:
        nodes = [step.node for step in self._steps.values()]
        for answer in everywhere(nodes, self._join, seconds=JOIN_SECONDS):
            step = self._steps[answer.node.name]
            step.error = answer.error
            step.joined = answer.error is None

    def _join(self, node: NodeSpec) -> None:
        step = self._steps[node.name]

        def on_step(doing: str) -> None:
            step.doing = doing

        with self._reaching(node) as reach:
            deployed = deploy(reach, self._home, on_step)
            on_step("starting")
            with way_back.held(node, deployed, self._home, accept_new=self._accept_new):
                self._start(reach, deployed.paths)

    def _start(self, reach: Reach, paths: NodeHome) -> None:
        node, label = reach.node, service.of_run(self._run)
        if service.is_running(reach, paths.directory):
            return  # one that stays serves every run
        with self._lock:
            if self._leaving:
                return
            self._places[node.name] = paths
        words = service.worker_words(node, runs=[self._run], burst=True)
        service.start(reach, paths.directory, self._url, words, label=label)
        with self._lock:
            if not self._leaving:
                return
        service.stop(reach, paths.directory, label=label, now=True)

    def _reaching(self, node: NodeSpec) -> closing[Reach]:
        return closing(Reach(node, accept_new=self._accept_new))
