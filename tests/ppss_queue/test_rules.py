"""Rules of a run: which failures are tried again and when, and how a halt rule is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppss_queue.errors import BadInput
from ppss_queue.rules import Halt, RetryRule

# Retries


def test_a_rule_without_codes_retries_every_failure() -> None:
    assert all(RetryRule(1).applies_to(code) for code in (1, 127, 255, None))


def test_only_the_listed_codes_are_retried() -> None:
    rule = RetryRule(1, on=(1, 75))
    assert [code for code in (1, 2, 75, None) if rule.applies_to(code)] == [1, 75]


def test_excluded_codes_are_not_retried_even_if_they_are_listed() -> None:
    assert [code for code in (1, 2, None) if RetryRule(1, not_on=(2,)).applies_to(code)] == [1, None]
    assert not RetryRule(1, on=(2,), not_on=(2,)).applies_to(2)


def test_the_delay_doubles_up_to_an_hour_and_half_of_it_is_random() -> None:
    rule = RetryRule(9, delay_seconds=10)
    assert [rule.delay_after(failures, 1.0) for failures in (1, 2, 3)] == [10, 20, 40]
    assert [rule.delay_after(failures, 0.0) for failures in (1, 2, 3)] == [5, 10, 20]
    assert rule.delay_after(50, 1.0) == 3600
    assert RetryRule(1, delay_seconds=7200).delay_after(3, 1.0) == 7200


@given(st.floats(0, 1e6), st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_always_a_time_that_can_be_waited(delay: float, failures: int, jitter: float) -> None:
    assert 0 <= RetryRule(1, delay).delay_after(failures, jitter) <= max(3600, delay)


# Halt rules


@pytest.mark.parametrize(
    ("text", "halt"),
    [
        ("now,fail=1", Halt(True, 1)),
        ("soon,fail=3", Halt(False, 3)),
        ("soon,fail=10%", Halt(False, percent=10.0)),
        ("now,fail=0.5%", Halt(True, percent=0.5)),
    ],
)
def test_a_halt_rule_is_read_and_written_alike(text: str, halt: Halt) -> None:
    assert Halt.parse(text) == halt
    assert str(halt) == text


@pytest.mark.parametrize(
    "text",
    ["", "now", "never,fail=1", "now,fail=0", "now,fail=-1", "now,fail=x", "now,fail=101%", "soon,fail=0%",
     "soon,fail=nan%", "now,success=1", "now,fail=1.5", "now,fail="],
)  # fmt: skip
def test_what_is_no_halt_rule_is_refused_with_two_that_are(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        Halt.parse(text)
    assert str(caught.value) == f"'{text}' is no halt rule. Write now,fail=1 or soon,fail=10%."
