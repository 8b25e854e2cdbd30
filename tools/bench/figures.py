"""A figure of a row: what was measured in every round, and what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    key: str
    """What the row's `measure` calls it."""
    what: str
    rival: str = ""
    unit: str = "x"
    """`x` is a ratio: the rival's time divided by that of PPSS, unless `what` says otherwise."""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f">= {number(self.at_least)}"
        return f"<= {number(self.at_most)}" if self.at_most is not None else ""


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure's values, one a round."""

    figure: Figure
    values: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def spread(self) -> str:
        return f"{number(min(self.values))} .. {number(max(self.values))}"

    @property
    def met(self) -> str:
        """ "yes", "no", or nothing where there is no goal."""
        if self.figure.at_least is not None:
            return "yes" if self.median >= self.figure.at_least else "no"
        if self.figure.at_most is not None:
            return "yes" if self.median <= self.figure.at_most else "no"
        return ""


def number(value: float) -> str:
    """Three digits that count: 0.123, 4.56, 78.9, 12,300."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    decimals = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".")
