"""The same on each of many nodes, side by side; one that hangs or is dead holds up no other."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from ppss_queue.errors import ConnectFailed, PpssError
from ppss_queue.nodes.spec import NodeSpec
from ppss_queue.units import format_duration

T = TypeVar("T")

AT_ONCE = 32
"""Nodes that are worked on at the same time."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What came of one node."""

    node: NodeSpec
    result: T | None = None
    error: PpssError | None = None
    """Exactly one of both is there."""


def everywhere(
    nodes: Sequence[NodeSpec],
    work: Callable[[NodeSpec], T],
    *,
    seconds: float,
    at_once: int = AT_ONCE,
) -> Iterator[Answer[T]]:
    """Answers in the order in which they come, one for each node.

    A node that takes longer than `seconds` (math.inf: as long as it likes) counts as failed; its thread is left to
    itself, and what it still says is not heard. Of errors, OSError and PpssError belong to the node; others are
    raised here.
    """
    waiting = deque(nodes)
    answers: queue.SimpleQueue[Answer[T] | tuple[NodeSpec, BaseException]] = queue.SimpleQueue()
    deadlines: dict[str, tuple[NodeSpec, float]] = {}
    while waiting or deadlines:
        while waiting and len(deadlines) < at_once:
            node = waiting.popleft()
            deadlines[node.name] = node, time.monotonic() + seconds
            threading.Thread(
                target=partial(_answer, node, work, answers), name=node.name, daemon=True
            ).start()
        next_deadline = min(deadline for _, deadline in deadlines.values())
        patience = max(0.0, next_deadline - time.monotonic())
        try:
            answer = answers.get(timeout=None if math.isinf(patience) else patience)
        except queue.Empty:
            late = [node for node, deadline in deadlines.values() if deadline <= time.monotonic()]
            for node in late:
                del deadlines[node.name]
                yield Answer(
                    node,
                    error=ConnectFailed(
                        f"{node.name} did not answer within {format_duration(seconds)}. See whether it still runs."
                    ),
                )
            continue
        if isinstance(answer, tuple):
            node, failure = answer
            if node.name in deadlines:
                raise failure
        elif deadlines.pop(answer.node.name, None):
            yield answer


def _answer(
    node: NodeSpec,
    work: Callable[[NodeSpec], T],
    answers: queue.SimpleQueue[Answer[T] | tuple[NodeSpec, BaseException]],
) -> None:
    try:
        answers.put(Answer(node, work(node)))
    except PpssError as error:
        answers.put(Answer(node, error=error))
    except OSError as error:
        answers.put(Answer(node, error=ConnectFailed(f"{node.name}: {error.strerror or error}.")))
    except BaseException as error:
        answers.put((node, error))
