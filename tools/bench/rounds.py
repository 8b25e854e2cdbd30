"""Rounds: everything that is compared runs in each of them, and who begins alternates."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tools.bench.figures import Figure, Measured
from tools.bench.inputs import Inputs
from tools.bench.processes import Broken, Missing
from tools.bench.rivals import Rivals
from tools.bench.site import Site, Version

T = TypeVar("T")


@dataclass(slots=True)
class Round:
    """What a row's `measure` is given: one site, in one round."""

    site: Site
    number: int
    smoke: bool
    inputs: Inputs
    rivals: Rivals
    kept: dict[str, object] = field(default_factory=dict)
    """What the row made in an earlier round of the same site."""

    def size(self, full: int, smoke: int) -> int:
        return smoke if self.smoke else full

    def pair(self, ours: Callable[[], T], rival: Callable[[], T]) -> tuple[T, T]:
        """Both, ours first in every other round; (ours, rival)."""
        if self.number % 2:
            other = rival()
            return ours(), other
        return ours(), rival()

    def ratio(self, ours: Callable[[], float], rival: Callable[[], float]) -> float:
        """The rival's time divided by ours."""
        mine, other = self.pair(ours, rival)
        return other / mine

    @contextmanager
    def scratch(self, name: str = "scratch") -> Iterator[Path]:
        """An empty directory."""
        path = self.site.directory / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        yield path
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: some figures of one measurement."""

    number: int
    title: str
    figures: Sequence[Figure]
    commands: str
    """What to type to see the same by hand."""
    measure: Callable[[Round], Mapping[str, float]]
    """One round: values by `Figure.key`; a figure may be left out."""
    most_rounds: int | None = None
    """More are not worth their time."""
    name: str = ""
    """Another word for its number."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a row."""

    row: Row
    measured: Sequence[Measured] = ()
    base: Sequence[Measured] = ()
    """The same figures of the other version, where there is one."""
    changes: Mapping[str, Measured] = field(default_factory=dict)
    """Per figure: value of this version divided by that of the base, round by round."""
    problem: str = ""
    """Why nothing was measured."""
    broken: bool = False


def measured(
    row: Row, versions: Sequence[Version], inputs: Inputs, rivals: Rivals, *, rounds: int, smoke: bool
) -> Result:
    """All rounds of a row, in sites of its own. `versions`: the one under test, and a base if there is one."""
    rounds = min(rounds, row.most_rounds or rounds)
    found: list[dict[str, list[float]]] = [{} for _ in versions]
    try:
        with ExitStack() as stack:
            sites = [stack.enter_context(Site(version)) for version in versions]
            kept: list[dict[str, object]] = [{} for _ in sites]
            for number in range(rounds):
                order = range(len(sites)) if number % 2 == 0 else reversed(range(len(sites)))
                for at in order:
                    round_ = Round(sites[at], number, smoke, inputs, rivals, kept[at])
                    for key, value in row.measure(round_).items():
                        found[at].setdefault(key, []).append(value)
                print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    except Missing as missing:
        return Result(row, problem=str(missing))
    except Exception as error:  # one row that fails must not cost the others
        kind = "" if isinstance(error, Broken) else f"{type(error).__name__}: "
        return Result(row, problem=f"{kind}{error}", broken=True)
    columns = [
        [Measured(figure, values[figure.key]) for figure in row.figures if figure.key in values]
        for values in found
    ]
    if len(versions) == 1:
        return Result(row, columns[0])
    return Result(row, columns[0], columns[1], _changes(row, *found))


def _changes(
    row: Row, now: Mapping[str, list[float]], base: Mapping[str, list[float]]
) -> dict[str, Measured]:
    return {
        figure.key: Measured(
            figure, [new / old for new, old in zip(now[figure.key], base[figure.key], strict=True) if old]
        )
        for figure in row.figures
        if figure.key in now
    }
