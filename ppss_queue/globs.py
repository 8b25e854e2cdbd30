"""Globs of `--include` and `--exclude`, as one regular expression for the path of a file below its source.

Without a slash a glob is for the base name, with one for the whole path, `**` being any number of directories.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ppss_queue.errors import BadInput


def compile_globs(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """One regular expression, to be matched in full, or None without patterns.

    Raises BadInput for a pattern that no file can have.
    """
    return re.compile("|".join(map(_glob, patterns)), re.DOTALL) if patterns else None


def _glob(pattern: str) -> str:
    steps = [step for step in pattern.split("/") if step not in ("", ".")]
    if not steps:
        raise BadInput(f"the pattern {pattern!r} names no file. Use '*' for all files.")
    anchored = "/" in pattern.rstrip("/")
    directories = ["(?:[^/]+/)*" if step == "**" else _glob_step(step) + "/" for step in steps[:-1]]
    last = ".+" if steps[-1] == "**" else _glob_step(steps[-1])
    return ("" if anchored else "(?:[^/]+/)*") + "".join(directories) + last


def _glob_step(step: str) -> str:
    """`*`, `?`, `[a-z]`, `[!a-z]` and backslash as in `find -name`; an unclosed bracket is itself."""
    tokens = re.findall(r"\\.|\[[!^]?\]?(?:\\.|[^\]\\])*\]|.", step, re.DOTALL)
    return "".join(_glob_token(token) for token in tokens)


def _glob_token(token: str) -> str:
    if token in ("*", "?"):
        return "[^/]*" if token == "*" else "[^/]"
    if len(token) == 1 or token in ("[]", "[!]", "[^]"):
        return re.escape(token)
    if token[0] == "\\":
        return re.escape(token[1:])
    negated = token[1] in "!^"
    ranges = re.findall(r"\\?+(.)-\\?+(.)|\\?+(.)", token[1 + negated : -1], re.DOTALL)
    members = ["-".join(map(re.escape, (a, z))) if a else re.escape(one) for a, z, one in ranges if a <= z]
    if negated:
        return f"[^/{''.join(members)}]"
    return f"(?!/)[{''.join(members)}]" if members else "(?!)"
