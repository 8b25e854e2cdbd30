"""The process that holds a way back open: when it may end."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from ppss_queue.nodes.holding import Holding
from ppss_queue.nodes.way_back import Order


def test_who_gives_a_way_up_keeps_others_from_wanting_it_until_it_is_gone(tmp_path: Path) -> None:
    path, state = tmp_path / "wanted", os.open(tmp_path / "state", os.O_RDWR | os.O_CREAT)
    order = Order(node="n1", accept_new=False, sshd=("h", 22), directory="d", wanted=str(path), lock=state)
    with path.open("w") as somebody:
        fcntl.flock(somebody, fcntl.LOCK_SH)
        assert not Holding(order).gives_up(lambda: False)
    assert not Holding(order).gives_up(lambda: True)
    assert Holding(order).gives_up(lambda: False)
    with path.open() as somebody, pytest.raises(BlockingIOError):
        fcntl.flock(somebody, fcntl.LOCK_SH | fcntl.LOCK_NB)
