"""The porter of a node: has files carried there and back, a few at a time, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

Task: TypeAlias = Callable[[], None]
OnDone: TypeAlias = Callable[[BaseException | None], None]

CHANNELS = 4
"""At the same time; sshd allows 10 sessions in a connection, of which one is the agent's."""


class Porter:
    """Used by the worker's one thread; tasks run in others."""

    def __init__(self, carry: Callable[[Task, OnDone], None]) -> None:
        """`carry` has a task done in another thread, and tells how it went in this one."""
        self._carry = carry
        self._waiting: deque[tuple[Task, OnDone]] = deque()
        self._under_way = 0

    def carry(self, task: Task, on_done: OnDone) -> None:
        """Tells how it went: None, or what it raised."""
        self._waiting.append((task, on_done))
        self._next()

    def _next(self) -> None:
        while self._waiting and self._under_way < CHANNELS:
            task, on_done = self._waiting.popleft()
            self._under_way += 1
            self._carry(task, partial(self._carried, on_done))

    def _carried(self, on_done: OnDone, error: BaseException | None) -> None:
        self._under_way -= 1
        self._next()
        on_done(error)
