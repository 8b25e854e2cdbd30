"""Reads a shell command, once per run, to put *references* to an item where its replacement strings are.

It knows bash's quoting, expansions, here-documents and comments, and just enough of its grammar to tell
the words of each simple command. Whatever it can't tell for sure stays bash's business: the text between
the replaced strings is handed to bash unchanged.
"""

from __future__ import annotations

import re

from ppss_queue.errors import BadInput
from ppss_queue.replaced_text import ReplacedText
from ppss_queue.replacements import ENVIRONMENT, ITEM, NUMBERS, ReplacementStrings
from ppss_queue.shell_words import BEFORE_A_COMMAND, KEYWORDS, SimpleCommand, Word

_WORD_ENDS = frozenset(" \t\n;&|<>)")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-")
_FUNCTION_HEAD = re.compile(r"\([ \t]*\)\Z")
_REDIRECTION = re.compile(r"&>>?|<<<|<<-?|<>|<&|>>|>\||>&|[<>](?!\()")
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|[0-9@*#?$!-])?", re.ASCII)
_KNOWN_REFERENCE = re.compile(
    r"\$(?:({0})(?!\w)|\{{({0})\}})".format("|".join(sorted(ENVIRONMENT, reverse=True))), re.ASCII
)
_BACKTICKS = re.compile(r"`(?:[^`\\]|\\.)*`", re.DOTALL)
_ANSI_QUOTED = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL)

_NAMED_ITEM = re.compile(r"\$\{?[#!]?ITEM(?!\w)|(?<!\w)PPSS_ITEM(?!\w)", re.ASCII)
_NAMED_IN_ARITHMETIC = re.compile(r"(?<!\w)ITEM(?!\w)", re.ASCII)


class ShellText(ReplacedText):
    """A command text, read. Raises BadInput for an unclosed quote and for strings that can't be replaced."""

    def __init__(self, text: str, strings: ReplacementStrings) -> None:
        super().__init__(text, strings)
        self.commands: list[SimpleCommand] = []
        """Every simple command, inner ones (`$(...)`) before the one that holds them."""
        self._comments: list[tuple[int, int]] = []
        self._arithmetic: list[str] = []
        self._here_documents: list[tuple[str, bool]] = []
        self._only_words = True
        # What the text ends in, "" after a word of a command; and where that word ends.
        self._tail, self._tail_end = "", 0
        self.outer = self._code()
        """Those that are in no other and in no parentheses."""

    @property
    def live_text(self) -> str:
        """The text without its comments."""
        text = self._text
        for start, end in reversed(self._comments):
            text = text[:start] + text[end:]
        return text

    @property
    def names_item(self) -> bool:
        return bool(
            self.used
            or _NAMED_ITEM.search(self.live_text)
            or any(_NAMED_IN_ARITHMETIC.search(text) for text in self._arithmetic)
        )

    @property
    def first_word(self) -> Word | None:
        """The word that the text begins with."""
        first = self.outer[0][0] if self.outer else None
        begin = len(self._text) - len(self._text.lstrip())
        return first if first and first.start == begin else None

    @property
    def only_command(self) -> SimpleCommand | None:
        """The words, if the text is one simple command and nothing else."""
        return self.outer[0] if self._only_words and len(self.outer) == 1 else None

    def append_item(self) -> None:
        """Give the last command the item as one more word. BadInput if the text ends in something else."""
        last = self.outer[-1] if self.outer else [Word()]
        first = last[0].raw
        if first in KEYWORDS or first == "[" or all(word.assigns for word in last):
            self._tail = self._tail or f"'{first}'"
        if self._tail:
            raise BadInput(
                f"the command names no item, and at its end, after {self._tail}, none can be appended: "
                f'say where the item goes with "$ITEM" or {self._strings.item}'
            )
        self._edits.append((self._tail_end, self._tail_end, f' "{ITEM.script}"'))
        last.append(Word(parts=[ITEM.value], replaced=True, untrusted=True))

    # -- commands ---------------------------------------------------------------------------------------

    def _code(self, closer: str = "") -> list[SimpleCommand]:
        """Commands up to the closer, or to the end of the text; returns those that have words."""
        commands: list[SimpleCommand] = [[]]
        open_cases = 0
        while char := self._here():
            if char in " \t" or self._at("\\\n"):
                self._position += 1 if char in " \t" else 2
            elif char == "\n":
                self._line_end()
                commands.append([])
            elif char == "#":
                self._comment()
            elif redirection := _REDIRECTION.match(self._text, self._position):
                self._redirection(redirection[0])
            elif char in ";&|)":
                self._separator(f"'{char}'", 1)
                # Within `case`, a closing parenthesis ends a pattern.
                if char == closer and not open_cases:
                    break
                commands.append([])
            elif char == "(":
                self._group()
                commands.append([])
            else:
                open_cases += self._add(self._word(), commands)
        found = [words for words in commands if words]
        self.commands += found
        return found

    def _add(self, word: Word, commands: list[SimpleCommand]) -> int:
        """Put a word into the last command; returns by how much the number of open `case`s changes."""
        words = commands[-1]
        if word.raw.isdigit() and self._here() in ("<", ">"):
            return 0  # the descriptor of a redirection
        if not words and word.raw in BEFORE_A_COMMAND:
            self._separator(f"'{word.raw}'", 0)
            return 0
        words.append(word)
        self._tail, self._tail_end = "", self._position
        first = words[0].raw
        if (
            _FUNCTION_HEAD.search(word.raw)
            or (first == "function" and len(words) == 2)
            or (first == "case" and len(words) == 3)
        ):
            self._separator(f"'{word.raw}'", 0)
            commands.append([])
        if len(words) > 1:
            return 0
        return {"case": 1, "esac": -1}.get(first, 0)

    def _separator(self, tail: str, length: int) -> None:
        self._position += length
        self._only_words = False
        self._tail = tail

    def _group(self) -> None:
        if self._at("(("):
            self._evaluated(Word(), "((", "))")
        else:
            self._position += 1
            self._code(")")
        closed = self._text[self._position - 1 : self._position] == ")"
        self._separator("')'" if closed else "an unclosed '('", 0)

    def _redirection(self, operator: str) -> None:
        self._separator("", len(operator))
        while self._here() in (" ", "\t"):
            self._position += 1
        target = self._word()
        self._tail_end = self._position
        if not target.raw:  # or an item appended here would be read from, or overwritten
            self._tail = f"'{operator}'"
        if operator in ("<<", "<<-"):
            if target.replaced:
                raise BadInput(f"'{target.raw}' can't be the end mark of a here-document: use a fixed word")
            self._here_documents.append((target.literal or target.raw, operator == "<<-"))

    def _line_end(self) -> None:
        self._position += 1
        for mark, tabs_off in self._here_documents:
            self._here_document(mark, tabs_off)
        self._here_documents.clear()

    def _here_document(self, mark: str, tabs_off: bool) -> None:
        start = self._position
        self._separator("a here-document", 0)
        while self._here():
            end = self._end_of_line()
            line = self._text[self._position : end]
            self._position = min(end + 1, len(self._text))
            if (line.lstrip("\t") if tabs_off else line) == mark:
                break
        self._forbid(
            start, self._position, "in a here-document", "write $ITEM, with an end mark without quotes"
        )

    def _comment(self) -> None:
        end = self._end_of_line()
        self._forbid(self._position, end, "in a comment", "take it out of the comment")
        self._comments.append((self._position, end))
        self._separator("a comment", end - self._position)

    # -- words ------------------------------------------------------------------------------------------

    def _word(self) -> Word:
        word = Word(self._position)
        while char := self._here():
            if self._at("<(") or self._at(">("):
                self._substitution(word, 2)
            elif char in _WORD_ENDS:
                break
            elif name := self._string_here():
                self._replace(word, name, '"')
            elif char == "\\":
                self._escape(word)
            elif char == "'":
                self._single_quoted(word)
            elif char == '"':
                self._double_quoted(word)
            elif char == "$":
                self._dollar(word, quoted=False)
            elif char == "`":
                self._backticks(word)
            elif char == "(":  # of a function, an array or a pattern
                self._substitution(word, 1)
            else:
                self._literal(word, 1)
                word.opaque |= char not in _PLAIN
        word.raw = self._text[word.start : self._position]
        return word

    def _escape(self, word: Word) -> None:
        escaped = self._text[self._position + 1 : self._position + 2]
        if not escaped:
            raise BadInput("the command ends in a backslash: take it off, or write '\\\\' if it is meant")
        word.add("" if escaped == "\n" else escaped)
        self._position += 2

    def _single_quoted(self, word: Word) -> None:
        end = self._text.find("'", self._position + 1)
        if end < 0:
            raise self._unclosed("a single quote")
        self._forbid_in_quotes(self._position, end)
        word.add(self._text[self._position + 1 : end])
        self._position = end + 1

    def _double_quoted(self, word: Word) -> None:
        start = self._position
        self._position += 1
        while (char := self._here()) != '"':
            if not char:
                self._position = start
                raise self._unclosed("a double quote")
            if name := self._string_here():
                self._replace(word, name, "")
            elif char == "$":
                self._dollar(word, quoted=True)
            elif char == "`":
                self._backticks(word)
            elif char != "\\":
                self._literal(word, 1)
            elif self._text[self._position + 1 : self._position + 2] in tuple('$`"\\\n'):
                self._escape(word)
            else:
                self._literal(word, 1)
                # `\{}` stays as it is, as it does outside of quotes.
                if name := self._string_here():
                    self._literal(word, len(name))
        self._position += 1

    def _dollar(self, word: Word, *, quoted: bool) -> None:
        if quoted and (known := _KNOWN_REFERENCE.match(self._text, self._position)):
            word.parts.append(ENVIRONMENT[known[1] or known[2]])
            self._position = known.end()
            return
        word.opaque = True
        if self._at("$(("):
            self._evaluated(word, "$((", "))")
        elif self._at("$["):
            self._evaluated(word, "$[", "]")
        elif self._at("$("):
            self._substitution(word, 2)
        elif self._at("${"):
            self._parameter(word)
        elif not quoted and self._at("$'"):
            self._ansi_quoted()
        elif not quoted and self._at('$"'):
            self._position += 1
            self._double_quoted(word)
        elif variable := _VARIABLE.match(self._text, self._position):
            self._position = variable.end()

    def _substitution(self, word: Word, length: int) -> None:
        word.opaque = True
        self._position += length
        # A line that ends in here does not begin the here-documents of the commands around it.
        outer, self._here_documents = self._here_documents, []
        self._code(")")
        self._here_documents = outer

    def _parameter(self, word: Word) -> None:
        """`${...}`: a string in it can't be replaced, but its own `$(...)` is code again."""
        start = self._position
        brace = self._strings.pattern.match(self._text, start + 1)
        if brace and brace[0] != "{#}":  # `${#}` is the number of arguments
            self._forbid(start, brace.end(), "after $", "put \\ before the $ if it is meant as text")
        self._position += 2
        while (char := self._here()) != "}":
            if not char:
                self._position = start
                raise self._unclosed("'${'")
            if string := self._string_here():
                end = self._position + len(string)
                self._forbid(self._position, end, "inside ${...}", "assign it to a variable first")
            if char == "'":  # bash wants these in pairs even between double quotes
                self._single_quoted(word)
            elif char == '"':
                self._double_quoted(word)
            elif char == "$":
                self._dollar(word, quoted=False)
            elif char == "`":
                self._backticks(word)
            else:
                self._position += 2 if char == "\\" else 1
        self._position += 1

    def _evaluated(self, word: Word, opener: str, closer: str) -> None:
        """Arithmetic. Only numbers of ours are replaced: an item `a[$(command)]` would run the command."""
        start = self._position
        self._position += len(opener)
        depth = len(closer)
        while depth and (char := self._here()):
            if (name := self._string_here()) in NUMBERS:
                self._replace(word, name, "")
            elif name:
                place = f"in {opener} ... {closer} is evaluated and"
                self._forbid(self._position, len(self._text), place, "use $ITEM if it is surely a number")
            elif char == "$":
                self._dollar(word, quoted=True)
            elif char == "`":
                self._backticks(word)
            else:
                depth += (char == opener[-1]) - (char == closer[-1])
                self._position += 2 if char == "\\" else 1
        self._arithmetic.append(self._text[start : self._position])

    def _backticks(self, word: Word) -> None:
        found = _BACKTICKS.match(self._text, self._position)
        if not found:
            raise self._unclosed("a backtick")
        word.opaque = True
        self._forbid(self._position, found.end(), "inside backticks", "write $(...) instead of them")
        self._position = found.end()

    def _ansi_quoted(self) -> None:
        found = _ANSI_QUOTED.match(self._text, self._position)
        if not found:
            raise self._unclosed("a quote $'")
        self._forbid_in_quotes(found.start(1), found.end(1))
        self._position = found.end()
