"""Words as bash reads them back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ppss_queue.shell_words import KEYWORDS

_SAFE_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


def shell_quoted(argv: Sequence[str]) -> str:
    """The words as one line that bash reads back as exactly these; nothing in it controls a terminal."""
    return " ".join(_words_quoted(argv))


def _words_quoted(argv: Sequence[str]) -> Iterable[str]:
    for at, word in enumerate(argv):
        # At the front, the bare words `a=b` and `if` mean something else.
        yield f"'{word}'" if at == 0 and _is_special_in_front(word) else quoted(word)


def _is_special_in_front(word: str) -> bool:
    return word in KEYWORDS or ("=" in word and _SAFE_WORD.fullmatch(word) is not None)


def quoted(word: str) -> str:
    if _SAFE_WORD.fullmatch(word):
        return word
    if word.isprintable():
        return "'" + word.replace("'", "'\\''") + "'"
    return "$'" + "".join(_escaped(char) for char in word) + "'"


def _escaped(char: str) -> str:
    if char in "'\\":
        return "\\" + char
    if char in "\n\t\r":
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}[char]
    # `!` too: bash's history expansion does not know where such quotes end.
    if char.isprintable() and char != "!":
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
