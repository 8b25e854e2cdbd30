"""The fixture `lab`: three real hosts, as new for each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from helpers import missing
from hosts.lab import Lab, NoLab, up
from hosts.nodes import wheelhouse

_HOSTS = 3


@contextmanager
def lab_or_skip(hosts: int) -> Iterator[Lab]:
    """A lab; without root or a program the test is skipped at home and fails in CI."""
    try:
        with up(hosts) as lab:
            yield lab
    except NoLab as reason:
        missing(f"lab of hosts ({reason})")


@pytest.fixture(scope="session")
def _session_lab() -> Iterator[Lab]:
    """The lab of this xdist worker."""
    with lab_or_skip(_HOSTS) as lab:
        yield lab


@pytest.fixture
def farm() -> Iterator[Lab]:
    """Four hosts of a test's own."""
    with lab_or_skip(4) as lab:
        yield lab


@pytest.fixture(scope="session")
def wheels() -> bytes:
    """What nodes need, for `Nodes`."""
    return wheelhouse()


@pytest.fixture
def lab(_session_lab: Lab) -> Iterator[Lab]:
    """Hosts master, n1 and n2 as they were at first, whatever the test before did to them."""
    yield _session_lab
    _session_lab.reset()
