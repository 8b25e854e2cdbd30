"""What somebody wishes of an agentless node: that it pauses, has other slots, or is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ppss_queue.calls import Wishes
from ppss_worker.agentless.node_slots import NodeSlots
from ppss_worker.orders import Orders
from ppss_worker.settings import Stop

if TYPE_CHECKING:
    from ppss_worker.agentless.fleet import Worker


class Steering:
    """Used by the worker's one thread."""

    def __init__(
        self, slots: NodeSlots, worker: Worker, end_commands: Callable[[], None], leave: Callable[[], None]
    ) -> None:
        """`end_commands` on the node; `leave` it, as nothing runs there any more and nothing will."""
        self._slots = slots
        self._worker = worker
        self._end_commands = end_commands
        self._leave = leave
        self._orders: Orders | None = None
        self.is_stopping = False
        """It gets no items any more."""
        self.is_left = False
        """Nor does anything of ours run there."""

    def begin(self, node: str, slots: int) -> None:
        """It has been reached for the first time; `slots`: as it is to have, unless other wishes are told."""
        self._orders = Orders(node, slots, self, self._worker.warn)
        self._slots.resize(slots)

    def obey(self, wishes: Wishes) -> None:
        """Raises ConnectFailed."""
        if self._orders is not None:
            self._orders.obey(wishes)

    def leave_if_stopped(self, *, busy: bool) -> None:
        """`busy`: commands run there."""
        if self.is_stopping and not self.is_left and not busy:
            self.is_left = True
            self._leave()

    # What orders may be

    def pause(self, *, paused: bool) -> None:
        self._slots.pause(paused=paused)

    def resize(self, slots: int) -> None:
        self._slots.resize(slots)
        self._worker.beat()

    def stop(self, how: Stop) -> None:
        """Told to all at once."""
        self.is_stopping = True
        self._slots.close()
        self._worker.beat()
        if how >= Stop.NOW:
            self._end_commands()
