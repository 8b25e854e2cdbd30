"""The thread that hears all agents."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from ppss_worker.agentless.listener import Listener


class _Source:
    """The reading end of a pipe."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        self.heard = threading.Event()
        self.closed = threading.Event()

    def fileno(self) -> int:
        return self._reader

    def close(self) -> None:
        os.close(self._reader)
        self.closed.set()

    def hear(self) -> bool:
        if self.is_asked_first:
            self.is_asked_first = False
        elif os.read(self._reader, 1):
            self.heard.set()
        return True

    is_asked_first = True


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    listener.start()
    yield listener
    listener.close()


def test_a_source_that_is_dropped_is_closed_and_its_number_may_mean_another_one(listener: Listener) -> None:
    number = -1
    for _ in range(3):
        source = _Source()
        assert number in (-1, source.fileno()), "the number is used again"
        number = source.fileno()
        listener.add(source, source.hear)
        os.write(source.writer, b"x")
        assert source.heard.wait(20)
        listener.drop(source)
        assert source.closed.wait(20)
        os.close(source.writer)


def test_a_source_that_was_never_listened_to_can_be_dropped(listener: Listener) -> None:
    source = _Source()
    listener.add(source, lambda: False)
    listener.drop(source)
    assert source.closed.wait(20)
    os.close(source.writer)
