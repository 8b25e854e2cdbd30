"""Times, sizes and numbers as people write and read them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ppss_queue.errors import BadInput

_GPU_DIGITS = 3
_SECONDS = {
    "": 1.0,
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 7 * 86400.0,
}


def parse_duration(text: str) -> float:
    """`90`, `1.5s`, `10m`, `2h`, `7d`, `1w` in seconds. Raises BadInput."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _SECONDS:
        raise BadInput(
            f"'{text}' is no time. Write seconds, or a number with ms, s, m, h, d or w, such as 10m."
        )
    return float(match[1]) * _SECONDS[match[2]]


def format_duration(seconds: float) -> str:
    """Two units at most: `0.4 s`, `12 s`, `4 min 51 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, below, below_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {name}" + (f" {rest} {below_name}" if rest else "")
    return f"{whole} s"


_BYTES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def parse_bytes(text: str) -> int:
    """`4096`, `10K`, `1.5M`, `20G`, `1T`, also with B or iB behind it, in bytes (powers of 1024). Raises BadInput."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if match is None:
        raise BadInput(f"'{text}' is no size. Write bytes, or a number with K, M, G or T, such as 20G.")
    return int(float(match[1]) * _BYTES[match[2]])


def parse_gpus(text: str) -> tuple[str, ...]:
    """`2`: GPUs 0 and 1; `0,3`, `0,` or `GPU-5c3f...`: these. Raises BadInput."""
    if text.isdecimal() and len(text) <= _GPU_DIGITS:
        return tuple(map(str, range(int(text))))
    names = tuple(text.removesuffix(",").split(","))
    known = all(re.fullmatch(r"[0-9]+|[A-Za-z][\w/-]*", name) for name in names)
    if text.isdecimal() or len(set(names)) < len(names) or not known:
        raise BadInput(
            f"'{text}' names no GPUs. Give how many there are, or which: 0,1 (0, for number 0 alone)."
        )
    return names


def format_bytes(count: float) -> str:
    """`512 B`, `1.4 MiB`, `20 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 9.95 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_count(count: int) -> str:
    """`1,204`."""
    return f"{count:,}"


def format_rate(per_second: float) -> str:
    """`4.1/s`, `220/s`, `12/min`, `3/h`: no leading zeros."""
    for factor, unit in ((1, "s"), (60, "min"), (3600, "h")):
        value = per_second * factor
        if value >= 1 or unit == "h":
            return f"{value:.1f}/{unit}" if value < 10 else f"{value:,.0f}/{unit}"
    return "-"


def plural(count: int, noun: str) -> str:
    """`1 item`, `1,204 items`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(words: Sequence[str], count: int) -> str:
    """`a, b, c, ...`: the words, and whether there are more of the `count` that they begin."""
    return ", ".join([*words, *(["..."] if count > len(words) else [])])


def printable(name: str) -> str:
    """A name as it may be shown on a terminal: control characters and odd bytes as `\\x1b`, the rest as it is."""
    if name.isprintable():
        return name
    return "".join(
        char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
        for char in name
    )


def shorten(text: str, width: int) -> str:
    """Cut in the middle where it is longer than `width`: both ends of a path tell most."""
    if len(text) <= width:
        return text
    keep = max(width - 1, 2)
    return f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"


def count_slots(text: str, cores: int) -> int:
    """`8`, `50%` of the cores, `-1`: all but one. Raises ValueError, OverflowError."""
    if text.endswith("%"):
        return max(1, round(cores * float(text[:-1]) / 100))
    number = int(text)
    return max(1, cores + number) if text[0] in "+-" else number
