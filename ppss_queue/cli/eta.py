"""How long a run may still take, with an honest range where items are uneven."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppss_queue.units import format_duration

_SURE = 1.28
"""Standard deviations on each side: 4 of 5 runs end within the range."""


@dataclass(slots=True)
class Durations:
    """Mean and spread of item durations as they come in (Welford's online algorithm)."""

    count: int = 0
    mean_seconds: float = 0.0
    _squares: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        delta = seconds - self.mean_seconds
        self.mean_seconds += delta / self.count
        self._squares += delta * (seconds - self.mean_seconds)

    @property
    def deviation_seconds(self) -> float:
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else self.mean_seconds

    def left(self, items: int, slots: int) -> str:
        """`2 min left (1-4)`: the range is given where it is more than a quarter of the middle; "" if unknown."""
        if self.count < 3 or not items or not slots:
            return ""
        # The sum of n items varies by sqrt(n) deviations; the mean itself is known to deviation / sqrt(count).
        spread = self.deviation_seconds * math.sqrt(items + items * items / self.count)
        middle = items * self.mean_seconds / slots
        around = _SURE * spread / slots
        if around < middle / 4:
            return f"{format_duration(middle)} left"
        low, high = max(0.0, middle - around), middle + around
        unit = next((size for size in (3600.0, 60.0) if middle >= size), 1.0)
        return f"{format_duration(middle)} left ({low / unit:.0f}-{math.ceil(high / unit)})"
