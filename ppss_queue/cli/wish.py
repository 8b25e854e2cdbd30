"""What becomes of the options that describe a run: a RunSpec and its sources."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ppss_queue.cli.frame import WORDS
from ppss_queue.errors import BadInput
from ppss_queue.model import RunSpec
from ppss_queue.resources import Resources
from ppss_queue.rules import Halt, RetryRule

if TYPE_CHECKING:
    from ppss_queue.sources import Sources

_TYPED = click.core.ParameterSource.COMMANDLINE
_OF_LISTS = ("null", "delimiter", "files")
_OF_DIRECTORIES = ("include", "exclude", "max_depth", "follow_links")
_OF_ITEMS = ("sources", "directories", "list_file", *_OF_LISTS, *_OF_DIRECTORIES, "order")
_OF_WORK = (
    "slots",
    "on",
    "nice",
    "delay",
    "logs",
    "node_name",
    "keep_order",
    "tag",
    "line_buffer",
    "quiet",
    "url",
    "accept_new",
    "nodes",
    "nodes_file",
    "master",
    "reverse",
)
_COMBINATIONS = (":::", "::::", ":::+", "::::+")


@dataclass(frozen=True, slots=True)
class Wish:
    """The options of `making_options`, as they came."""

    context: click.Context
    values: dict[str, Any]

    @property
    def words(self) -> tuple[str, ...] | None:
        """What stands behind `--`; None: there is no `--`."""
        words: tuple[str, ...] | None = self.context.meta.get(WORDS)
        return words

    @property
    def command(self) -> str | tuple[str, ...] | None:
        """Raises BadInput if it is there twice, or empty."""
        text = self.values["command"]
        if self.words is not None:
            if text is not None and self._is_typed("command"):
                raise BadInput("there are two commands: give either -c CMD or -- PROG ARG...")
            if not self.words:
                raise BadInput("there is no command after '--'. Write -- PROG ARG...")
            return self.words
        if text is None:
            return None
        if not text.strip():
            raise BadInput("the command is empty. Write -c 'gzip -9 \"$ITEM\"' or -- gzip -9")
        return str(text)

    def for_resume(self) -> None:
        """Raises BadInput for what a run that is there can't take any more."""
        self._refuse_typed_but(
            (*_OF_WORK, "resume", "retry_failed"), "--resume goes on with a run as it was made"
        )

    def for_into(self) -> None:
        """The same for a run that gets more items."""
        self._refuse_typed_but(
            (*_OF_ITEMS, "into", "as_json", "url", "accept_new"), "--into adds items to a run as it was made"
        )

    def check_words(self) -> None:
        """Raises BadInput for what means something to users of xargs and GNU parallel, and something else here."""
        for word in (*self.values["sources"], *(self.words or ())):
            if word in _COMBINATIONS:
                raise BadInput(
                    f"'{word}' is not there yet. Give items as lines: printf '%s\\n' a b | ppss run -c CMD"
                )
        if "-" in self.values["sources"] and not os.path.exists("-"):
            raise BadInput("for a list on stdin write -f -, or name no source at all")
        for path in self.values["directories"]:
            if len(os.fsencode(path)) <= 2 and not os.path.exists(path):
                raise BadInput(
                    f"-d names a directory, and there is none called '{path}'. "
                    f"For a delimiter: --delimiter '{path}'"
                )

    def make_output(self) -> None:
        """Makes the output directory on this machine. Raises BadInput if this user can't, or can't write there."""
        output = self.values["output"]
        if output is None:
            return
        if not os.access(there := _what_is_there(output), os.W_OK | os.X_OK):
            raise BadInput(f"you can't write in '{there}', so no output can appear. Choose another -o DIR.")
        try:
            os.makedirs(output, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"the output directory '{output}' can't be made ({error.strerror}). Choose another -o DIR."
            ) from None

    @property
    def no_items(self) -> str:
        """What to say of a run without items."""
        misplaced = self.words and not (self.values["sources"] or self.values["directories"])
        hint = " Sources stand before '--'." if misplaced and self.values["list_file"] is None else ""
        return f"there are no items, so there is nothing to do.{hint}"

    def open_sources(self) -> Sources:
        """Raises BadInput for what is missing or unreadable."""
        from ppss_queue.sources import open_sources

        values = self.values
        paths = [*values["directories"], *values["sources"]]
        list_file = values["list_file"]
        if not paths and list_file is None:
            if sys.stdin is None or sys.stdin.isatty():
                raise BadInput(
                    "there are no items: name a directory or files, or give a list with -f LIST or on stdin"
                )
            list_file = "-"
        if list_file is None:
            self._refuse_typed(
                _OF_LISTS, "is about the lines of a list, and there is none: -f LIST, or -f - for stdin"
            )
        if not paths:
            self._refuse_typed(_OF_DIRECTORIES, "is about the files of directories, and none is named")
        output = values["output"]
        return open_sources(
            paths,
            list_file=list_file,
            stdin=sys.stdin.buffer if list_file == "-" and sys.stdin is not None else None,
            delimiter=_delimiter(values["null"], values["delimiter"]),
            files=values["files"] or values["stage"],
            include=values["include"],
            exclude=values["exclude"],
            max_depth=values["max_depth"],
            follow_links=values["follow_links"],
            order=values["order"],
            skip_directories=[os.path.abspath(output)] if output else [],
        )

    def spec(self) -> RunSpec:
        """Raises BadInput."""
        from ppss_queue.cli.staging import staged_fields

        values = self.values
        return RunSpec(
            command=self.command,
            directory=_here(),
            output=_output(values["output"]) if values["output"] is not None else None,
            replacement=values["replacement"],
            environment=_environment(values["env"]),
            retry=RetryRule(
                values["retries"],
                values["retry_delay"],
                _codes(values["retry_on"], "--retry-on"),
                _codes(values["no_retry_on"], "--no-retry-on"),
            ),
            max_lost=values["max_lost"],
            visibility_seconds=values["visibility"],
            timeout_seconds=values["timeout"],
            grace_seconds=values["grace"],
            halt=Halt.parse(values["halt"]) if values["halt"] else None,
            skip_existing=values["skip_existing"],
            keep_output=values["keep_output"],
            name=_name(values["name"]),
            priority=values["priority"],
            keep_seconds=values["keep"],
            needs=Resources(values["gpus"], values["cpus"] or 0, values["mem"] or 0),
            **staged_fields(values, _here()),
        )

    def _is_typed(self, parameter: str) -> bool:
        return self.context.get_parameter_source(parameter) is _TYPED

    def _refuse_typed(self, names: Collection[str], why: str) -> None:
        for parameter in self.context.command.params:
            if parameter.name in names and self._is_typed(parameter.name):
                raise BadInput(f"{parameter.opts[-1]} {why}")

    def _refuse_typed_but(self, names: Collection[str], why: str) -> None:
        if self.words is not None:
            raise BadInput(f"{why}: leave its command out")
        for parameter in self.context.command.params:
            if parameter.name and parameter.name not in names and self._is_typed(parameter.name):
                what = parameter.opts[-1] if isinstance(parameter, click.Option) else "the sources"
                raise BadInput(f"{why}: leave {what} out")


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise BadInput("the current directory is gone. Go to one that exists.") from None


def _output(path: str) -> str:
    """The absolute output directory; whatever of it is there already must be a directory. Raises BadInput."""
    full = os.path.join(_here(), path)
    there = _what_is_there(full)
    if not os.path.isdir(there):
        which = f"'{path}' is a file" if there == full else f"'{path}' would be below the file '{there}'"
        raise BadInput(f"the output directory {which}. Name a directory.")
    return os.path.abspath(full)


def _what_is_there(path: str) -> str:
    """The path, or the nearest directory or file above it that exists."""
    there = os.path.join(_here(), path)
    while not os.path.lexists(there):
        there = os.path.dirname(there.rstrip("/"))
    return there


def _delimiter(null: bool, text: str | None) -> bytes:
    if null:
        if text is not None:
            raise BadInput("-0 and --delimiter exclude each other: leave one out")
        return b"\0"
    if text is None:
        return b"\n"
    plain = {r"\n": "\n", r"\t": "\t", r"\0": "\0", r"\r\n": "\r\n"}.get(text, text)
    if not plain:
        raise BadInput("--delimiter is empty. Write --delimiter ,")
    return os.fsencode(plain)


def _environment(names: Sequence[str]) -> dict[str, str]:
    carried = {}
    for name in names:
        function = f"BASH_FUNC_{name}%%"
        found = [key for key in (name, function) if key in os.environ]
        if not found:
            raise BadInput(f"'{name}' is no exported variable or function. Export it first: export {name}")
        carried.update({key: os.environ[key] for key in found})
    return carried


def _codes(text: str | None, option_name: str) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        codes = tuple(int(part) for part in text.split(","))
    except ValueError:
        codes = (-1,)
    if not all(0 <= code <= 255 for code in codes):
        raise BadInput(f"'{text}' is no list of exit codes for {option_name}. Write 1,75")
    return codes


def _name(name: str | None) -> str | None:
    if name is not None and (
        not name or name == "last" or not name.isprintable() or " " in name or name[0] in "-#"
    ):
        raise BadInput(
            f"'{name}' can't be a run's name: it needs printable characters without blanks, and not 'last'"
        )
    return name
