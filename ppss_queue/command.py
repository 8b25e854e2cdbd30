"""The user's command: parsed once per run, then bound to each item.

An item's text never becomes shell text. Where a shell is needed, replacement strings become references to
variables; where none is, the words are executed as they are, which saves the start of bash.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ppss_queue.errors import BadInput, CommandNotFound
from ppss_queue.evaluated_text import refuse_evaluated
from ppss_queue.program_text import refuse_program_text
from ppss_queue.quoting import quoted, shell_quoted
from ppss_queue.replacements import (
    ENVIRONMENT,
    ITEM,
    OUTPUTS,
    ItemValues,
    ReplacementStrings,
    Value,
    output_file_of,
)
from ppss_queue.shell_lexer import ShellText
from ppss_queue.shell_words import BUILTINS, KEYWORDS, Word
from ppss_queue.unaware_text import is_unaware

__all__ = [
    "Command",
    "Invocation",
    "ItemValues",
    "check_program",
    "check_syntax",
    "output_file_of",
    "parse_command",
    "render",
]

_NAMED_OUTPUT_DIR = re.compile(r"\$\{?[#!]?OUTPUT_DIR(?!\w)", re.ASCII)
_COLUMN = re.compile(r"\{[1-9][0-9]*(?:\.|/|//|/\.)?\}")
_NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Invocation:
    """What to execute for one item.

    `argv[0]` is the program as given, to be looked up on PATH; `variables` come on top of ITEM and the other
    variables that the worker exports for every attempt.
    """

    argv: tuple[str, ...]
    variables: Mapping[str, str]
    shell: bool


@dataclass(frozen=True, slots=True)
class Command:
    """A command, parsed. Either `words` (executed directly) or `script` (run by bash) says what to do."""

    source: str | tuple[str, ...]
    """As the user gave it: a text, or words."""
    needs_output: bool
    """Writes to the output directory, so a run without `-o` must refuse it."""
    program: str | None
    """The program that it starts with, None where that can't be told before it runs."""
    words: tuple[str | Value, ...] = ()
    script: str = ""
    variables: tuple[tuple[str, Value], ...] = ()
    unaware: bool = False
    """Of a script: it can't tell a bash of its own from the fork of one (unaware_text.py)."""

    @property
    def shell(self) -> bool:
        return not self.words

    def bind(self, values: ItemValues) -> Invocation:
        """What to execute for the item with these values."""
        if self.words:
            argv = tuple([word if isinstance(word, str) else word(values) for word in self.words])
            return Invocation(argv, _NO_VARIABLES, False)
        variables = {name: value(values) for name, value in self.variables}
        # Below sshd bash takes itself for a login, and would read ~/.bashrc.
        return Invocation(("bash", "--norc", "-c", self.script), variables, True)


def parse_command(
    command: str | Sequence[str], *, replacement: str = "{}", functions: Collection[str] = ()
) -> Command:
    """Parse the text of a shell command, or the words of a program and its arguments.

    `replacement` stands for the item (`-I`); `functions` are the names of exported bash functions.
    Raises BadInput for a text that bash could not read, and for an item where it would become shell text.
    """
    strings = ReplacementStrings(replacement)
    if any("\0" in part for part in ([command] if isinstance(command, str) else command)):
        raise BadInput("the command holds a NUL byte, which no program can be given: take it out")
    if isinstance(command, str):
        return _parse_text(command, strings, functions)
    return _parse_words(tuple(command), strings)


def _parse_words(source: tuple[str, ...], strings: ReplacementStrings) -> Command:
    if not source or not source[0]:
        raise BadInput("the command is empty: give a program and its arguments after --")
    words = [
        Word(raw=text, parts=strings.split(text), replaced=bool(strings.pattern.search(text)))
        for text in source
    ]
    used = {name for text in source for name in strings.pattern.findall(text)}
    if not used:
        words.append(Word(parts=[ITEM.value], replaced=True))
    refuse_program_text(words, strings.item)
    _refuse_columns(words)
    return Command(
        source,
        needs_output=not used.isdisjoint(OUTPUTS) or any(_NAMED_OUTPUT_DIR.search(text) for text in source),
        program=words[0].literal,
        words=tuple(_template(word.parts) for word in words),
    )


def _parse_text(source: str, strings: ReplacementStrings, functions: Collection[str]) -> Command:
    try:
        text = ShellText(source, strings)
    except RecursionError:
        raise BadInput("the command is nested too deeply: put it into a script of its own") from None
    if not text.commands and not text.script.strip():
        raise BadInput("the command is empty: give one to run for each item")
    unaware = is_unaware(text, source)
    if not text.names_item:
        text.append_item()
    for words in text.commands:
        refuse_program_text(words, strings.item)
        _refuse_columns(words)
    refuse_evaluated(text.commands, strings.item)
    needs_output = not text.used.isdisjoint(OUTPUTS) or bool(_NAMED_OUTPUT_DIR.search(text.live_text))
    program = _program_of(text.first_word, functions)
    only = text.only_command
    if only and program and not any(word.opaque for word in only):
        direct = tuple(_template(word.parts) for word in only)
        return Command(source, needs_output, program, words=direct)
    meanings = (strings.meanings[name] for name in sorted(text.used))
    variables = tuple((meaning.variable, meaning.value) for meaning in meanings if meaning.variable)
    return Command(source, needs_output, program, script=text.script, variables=variables, unaware=unaware)


def _refuse_columns(words: Sequence[Word]) -> None:
    """As a word of its own `{1}` is what it is in GNU parallel; in others, such as `[0-9]{3}`, it is text."""
    for word in words:
        if _COLUMN.fullmatch(word.raw):
            raise BadInput(
                f"'{word.raw}' stands for a column of the item, and items have none yet: {{}} is the whole item. "
                f"If it is meant as text, write \\{word.raw}"
            )


def _program_of(word: Word | None, functions: Collection[str]) -> str | None:
    """The first word if it surely is the name of a program."""
    name = word.literal if word else None
    if not name or not word or word.assigns or name.startswith("%"):
        return None
    return None if name in KEYWORDS or name in BUILTINS or name in functions else name


def _template(parts: Sequence[str | Value]) -> str | Value:
    """A word in the form that is quickest to fill in."""
    if all(isinstance(part, str) for part in parts):
        return "".join(part for part in parts if isinstance(part, str))
    if len(parts) == 1:
        return parts[0]

    def fill(values: ItemValues) -> str:
        return "".join([part if isinstance(part, str) else part(values) for part in parts])

    return fill


# -- before anything is enqueued --------------------------------------------------------------------------


def check_program(command: Command, path: str, directory: str) -> None:
    """Raise CommandNotFound if the command's program can't be executed on this machine.

    `path` is a PATH; `directory` is where the command will run, the base of relative names. A command whose
    program is not known before it runs passes.
    """
    name = command.program
    if name is None:
        return
    folders = [""] if "/" in name else path.split(":")
    found = [Path(directory, folder, name) for folder in folders if _is_file(Path(directory, folder, name))]
    if any(os.access(place, os.X_OK) for place in found):
        return
    if found:
        raise CommandNotFound(
            f"'{found[0]}' is not executable. Make it so with chmod +x, or name its interpreter."
        )
    if any(Path(directory, folder, name).is_dir() for folder in folders if "/" in name):
        raise CommandNotFound(f"'{name}' is a directory, not a program. Name a program.")
    if f"BASH_FUNC_{name}%%" in os.environ:
        raise CommandNotFound(f"'{name}' is a function of this shell. Carry it along: --env {name}")
    if not command.shell and isinstance(command.source, tuple) and name in KEYWORDS | BUILTINS:
        raise CommandNotFound(
            f"'{name}' is a word of the shell, not a program. Give the command as text, with -c."
        )
    raise CommandNotFound(
        f"'{name}' is not found on this machine. Install it, or pass --no-check if only the nodes have it."
    )


def _is_file(place: Path) -> bool:
    # A folder on PATH that is closed to this user must not end in a PermissionError of is_file.
    return os.access(place, os.F_OK) and place.is_file()


def check_syntax(command: Command) -> None:
    """Let bash read the command without running it. Raises BadInput with what bash says about it.

    CommandNotFound if there is no bash.
    """
    if not command.shell:
        return
    import subprocess  # takes longer to load than all of this module, and most verbs never check a command

    # -n does not run the `shopt -s extglob` that a text may begin with, so allow for its patterns.
    options = ["-O", "extglob"] if "extglob" in command.script else []
    try:
        done = subprocess.run(
            ["bash", *options, "-n", "-c", command.script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError:
        raise CommandNotFound(
            "'bash' is not found on this machine, and this command needs it. Install it."
        ) from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").split("\n")[0]
        said = re.sub(r"^bash: (-c: )?(line \d+: )?", "", said).strip()
        raise BadInput(f"bash can't read the command ({said}): correct its syntax")


# -- for people to read -----------------------------------------------------------------------------------


def render(command: Command, values: ItemValues) -> str:
    """What runs for this item, as one line that can be pasted into bash and does the same there."""
    invocation = command.bind(values)
    named = {
        name: value(values)
        for name, value in ENVIRONMENT.items()
        if invocation.shell and re.search(rf"(?<!\w){name}(?!\w)", command.script, re.ASCII)
    }
    variables = [f"{name}={quoted(value)}" for name, value in {**named, **invocation.variables}.items()]
    words = ("bash", "-c", command.script) if invocation.shell else invocation.argv
    return " ".join([*variables, shell_quoted(words)])
