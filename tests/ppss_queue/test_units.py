"""Times, sizes and numbers as people write and read them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppss_queue.errors import BadInput
from ppss_queue.units import (
    format_count,
    format_duration,
    format_rate,
    parse_duration,
    plural,
    printable,
    shorten,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0", 0),
        ("1.5s", 1.5),
        (".5", 0.5),
        ("250ms", 0.25),
        ("10m", 600),
        ("10 min", 600),
        ("2H", 7200),
        ("7d", 604800),
        ("1w", 604800),
        (" 3 s ", 3),
    ],
)
def test_a_time_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1 y", "10 s m", "1e3", "nan", "inf", "1,5s", "1m30s"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInput, match="is no time") as caught:
        parse_duration(text)
    assert f"'{text}'" in str(caught.value)
    assert "10m" in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0004, "0 ms"),
        (0.4, "400 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (291, "4 min 51 s"),
        (3599.6, "1 h"),
        (7500, "2 h 5 min"),
        (86400, "1 d"),
        (273600, "3 d 4 h"),
    ],
)
def test_a_time_is_shown_in_two_units_at_most(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0, 1e9))
def test_a_shown_time_is_no_more_than_its_smaller_unit_off(seconds: float) -> None:
    parts = format_duration(seconds).split()
    pairs = list(zip(parts[::2], parts[1::2], strict=True))
    shown = sum(parse_duration("".join(pair)) for pair in pairs)
    smallest = parse_duration("1" + pairs[-1][1])
    # One unit alone ("2 h") leaves out a zero of the next smaller one, so it is no coarser than that.
    assert abs(shown - seconds) <= max(smallest, 1)


@pytest.mark.parametrize(
    ("per_second", "text"),
    [
        (0, "0.0/h"),
        (0.0005, "1.8/h"),
        (0.01, "36/h"),
        (0.2, "12/min"),
        (1, "1.0/s"),
        (4.12, "4.1/s"),
        (12345, "12,345/s"),
    ],
)
def test_a_rate_is_shown_in_the_unit_that_needs_no_leading_zero(per_second: float, text: str) -> None:
    assert format_rate(per_second) == text


def test_counts_have_separators_and_one_item_is_no_items() -> None:
    assert format_count(1204) == "1,204"
    assert [plural(count, "item") for count in (0, 1, 2, 1204)] == [
        "0 items",
        "1 item",
        "2 items",
        "1,204 items",
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name.txt", "plain name.txt"),
        ("müsli – ✓", "müsli – ✓"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc", r"a\x0ab\x09c"),
        (os.fsdecode(b"\xff\xfe"), r"\xff\xfe"),
        ("right\u202eleft", r"right\xe2\x80\xaeleft"),
    ],
)
def test_a_name_is_shown_without_anything_that_controls_a_terminal(name: str, shown: str) -> None:
    assert printable(name) == shown


@given(st.binary().map(os.fsdecode))
def test_any_name_can_be_shown(name: str) -> None:
    assert printable(name).isprintable()


@given(st.text(st.characters(exclude_characters="…")), st.integers(3, 80))
def test_a_shortened_text_fits_and_keeps_both_ends(text: str, width: int) -> None:
    short = shorten(text, width)
    if len(text) <= width:
        assert short == text
    else:
        front, back = short.split("…")
        assert len(short) == width
        assert text.startswith(front) and text.endswith(back)
        assert abs(len(front) - len(back)) <= 1
