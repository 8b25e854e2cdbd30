"""What login scripts print comes before what a command prints: a mark between them tells where that begins."""

from __future__ import annotations

MARK = b"\0ppss-begin\0"
SAY_MARK = r'printf "\0ppss-begin\0"'
"""For bash."""


def without_noise(printed: bytes) -> bytes:
    """What comes behind the mark; all of it if there is none, as where a login script ended the session."""
    before, mark, behind = printed.partition(MARK)
    return behind if mark else before
