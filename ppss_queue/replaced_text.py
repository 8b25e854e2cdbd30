"""A text in which replacement strings become references to variables, or are refused, where they stand."""

from __future__ import annotations

from ppss_queue.errors import BadInput
from ppss_queue.replacements import NUMBERS, ReplacementStrings
from ppss_queue.shell_words import Word


class ReplacedText:
    """The part of a reader that knows no grammar: its position, what is there, and what replaces that."""

    def __init__(self, text: str, strings: ReplacementStrings) -> None:
        self.used: set[str] = set()
        """The replacement strings in it."""
        self._text = text
        self._strings = strings
        self._position = 0
        self._edits: list[tuple[int, int, str]] = []

    @property
    def script(self) -> str:
        """The text for bash: every replacement string is a quoted reference to a variable."""
        pieces, end = [], 0
        for start, stop, reference in self._edits:
            pieces += [self._text[end:start], reference]
            end = stop
        return "".join(pieces) + self._text[end:]

    def _here(self) -> str:
        return self._text[self._position : self._position + 1]

    def _at(self, text: str) -> bool:
        return self._text.startswith(text, self._position)

    def _end_of_line(self) -> int:
        end = self._text.find("\n", self._position)
        return end if end >= 0 else len(self._text)

    def _string_here(self) -> str:
        found = self._strings.pattern.match(self._text, self._position)
        return found[0] if found else ""

    def _literal(self, word: Word, length: int) -> None:
        word.add(self._text[self._position : self._position + length])
        self._position += length

    def _replace(self, word: Word, name: str, quote: str) -> None:
        replacement = self._strings.meanings[name]
        end = self._position + len(name)
        self._edits.append((self._position, end, f"{quote}{replacement.script}{quote}"))
        word.parts.append(replacement.value)
        word.replaced = True
        word.untrusted |= name not in NUMBERS
        self.used.add(name)
        self._position = end

    def _forbid_in_quotes(self, start: int, end: int) -> None:
        found = self._strings.pattern.search(self._text, start, end)
        if found:
            split = f"'{found[0][0]}''{found[0][1:]}'"
            as_text = "choose another word for the item with -I" if found[0] == self._strings.item else split
            fix = f"use double quotes, or if it is meant as text: {as_text}"
            self._forbid(start, end, "inside single quotes", fix)

    def _forbid(self, start: int, end: int, place: str, fix: str) -> None:
        found = self._strings.pattern.search(self._text, start, end)
        if found:
            raise BadInput(f"'{found[0]}' {place} can't be replaced by the item: {fix}")

    def _unclosed(self, what: str) -> BadInput:
        rest = self._text[self._position : self._position + 30]
        return BadInput(f"{what} of the command is never closed, from here on: {rest!r}")
