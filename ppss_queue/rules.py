"""The rules of a run: when a failed item is tried again, and when too many of them end the run."""

from __future__ import annotations

from dataclasses import dataclass

from ppss_queue.errors import BadInput


@dataclass(frozen=True, slots=True)
class RetryRule:
    """When a failed attempt is tried again."""

    retries: int = 0
    """How many more attempts after the first one that failed."""
    delay_seconds: float = 1.0
    """Wait before the first retry; it doubles each time, up to an hour, less up to half of it at random."""
    on: tuple[int, ...] = ()
    """Exit codes that are retried; empty: all."""
    not_on: tuple[int, ...] = ()
    """Exit codes that are not retried."""

    def applies_to(self, exit_code: int | None) -> bool:
        """Whether a failure with `exit_code` (None: killed by a signal or timed out) may be tried again."""
        if exit_code is None:
            return not self.on
        return (not self.on or exit_code in self.on) and exit_code not in self.not_on

    def delay_after(self, failures: int, jitter: float) -> float:
        """Seconds to wait after the `failures`-th failure (from 1); `jitter` in [0, 1) spreads retries.

        Exponential backoff with "equal jitter": half of the delay is fixed, half is random.
        """
        full = min(self.delay_seconds * 2.0 ** min(failures - 1, 32), max(3600.0, self.delay_seconds))
        return full * (0.5 + 0.5 * jitter)


NO_RETRY = RetryRule()


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop a run when too many of its items failed."""

    now: bool
    """True: kill what runs. False ("soon"): let it finish, start nothing new."""
    count: int = 0
    """Failed items that halt the run; 0: `percent` counts."""
    percent: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Halt:
        """`now,fail=3`, `soon,fail=10%`. Raises BadInput."""
        when, _, rule = text.partition(",")
        name, _, value = rule.partition("=")
        if when in ("now", "soon") and name == "fail":
            percent = value.endswith("%")
            try:
                number = float(value[:-1]) if percent else int(value)
            except ValueError:
                number = 0
            if number > 0 and (not percent or number <= 100):
                return cls(when == "now", 0 if percent else int(number), number if percent else 0.0)
        raise BadInput(f"'{text}' is no halt rule. Write now,fail=1 or soon,fail=10%.")

    def __str__(self) -> str:
        return f"{'now' if self.now else 'soon'},fail={self.count or f'{self.percent:g}%'}"
