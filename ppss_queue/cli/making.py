"""The options that describe a run, and what becomes of them: sources and a RunSpec."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from ppss_queue.cli.frame import WORDS, Duration, option
from ppss_queue.errors import BadInput
from ppss_queue.model import Halt, RetryRule, RunSpec

F = TypeVar("F", bound=Callable[..., Any])

_SOURCE_OPTIONS = (
    click.argument("sources", nargs=-1),
    option("-d", "--dir", "directories", multiple=True, metavar="DIR", help="A directory of files (= SOURCE)."),
    option("-f", "--list", "list_file", metavar="LIST", help="Items are the lines of a file; - is stdin."),
    option("-0", "--null", "null", is_flag=True, help="Lines of the list end in NUL, as from find -print0."),
    option("--delimiter", metavar="TEXT", help=r"Lines of the list end in this; \n, \t and \0 are understood."),
    option("--files", is_flag=True, help="Lines of the list are files: $ITEM is absolute, -o mirrors their tree."),
    option("--include", multiple=True, metavar="GLOB", help="Only files of directories that match."),
    option("--exclude", multiple=True, metavar="GLOB", help="No files or directories that match."),
    option("--max-depth", type=click.IntRange(min=1), metavar="N", help="1: only files directly in a directory."),
    option("--follow-links", is_flag=True, help="Follow symbolic links; a loop is noticed."),
    option("--order", type=click.Choice(["found", "random", "size"]), default="found", help="size: largest first."),
)  # fmt: skip
_COMMAND_OPTIONS = (
    option("-c", "--command", metavar="CMD", help="Command for bash; it sees $ITEM, $OUTPUT_DIR, $OUTPUT_FILE, {}."),
    option("-I", "--replace", "replacement", default="{}", metavar="STR", help="Use STR instead of {}."),
    option("-o", "--output", metavar="DIR", help="Where outputs appear, mirroring the sources."),
    option("--skip-existing", is_flag=True, help="Skip items whose $OUTPUT_FILE is in the output directory."),
    option("--env", "env", multiple=True, metavar="NAME", help="Carry this variable or exported function along."),
    option("--no-check", is_flag=True, help="Do not look whether the command is installed here."),
)  # fmt: skip
_RULE_OPTIONS = (
    option("--name", metavar="NAME", help="Call the run so, beside its id."),
    option("--timeout", type=Duration(), metavar="TIME", help="Stop an item after 90, 10m, 2h."),
    option("--grace", type=Duration(), default="10s", metavar="TIME", help="Between SIGTERM and SIGKILL.  [10s]"),
    option("--retries", type=click.IntRange(min=0), default=0, metavar="N", help="Try a failed item N times more."),
    option("--retry-delay", type=Duration(), default="1s", metavar="TIME",
           help="Before the first retry; it doubles.  [1s]"),
    option("--retry-on", metavar="CODES", help="Retry only these exit codes, such as 1,75."),
    option("--no-retry-on", metavar="CODES", help="Do not retry these exit codes."),
    option("--halt", metavar="RULE", help="now,fail=1 or soon,fail=10%: pause the run when so many failed."),
    option("--priority", type=click.IntRange(1, 1000), default=1, metavar="N", help="Share of the workers among runs."),
    option("--visibility", type=Duration(), default="30s", metavar="TIME",
           help="A dead worker's items come back after this.  [30s]"),
    option("--max-lost", type=click.IntRange(min=0), default=3, metavar="N",
           help="Workers that may die on an item.  [3]"),
    option("--keep-output", is_flag=True, help="Keep what succeeded items print too, for ppss log."),
    option("--keep", type=Duration(), default="7d", metavar="TIME", help="Forget the run so long after its end.  [7d]"),
    option("--dry-run", is_flag=True, help="Print what would run for the first items, and do nothing."),
)  # fmt: skip


def making_options(function: F) -> F:
    """Adds all options that describe a run; they arrive as `**made`."""
    for decorate in reversed(_SOURCE_OPTIONS + _COMMAND_OPTIONS + _RULE_OPTIONS):
        function = decorate(function)
    return function


@dataclass(frozen=True, slots=True)
class Wish:
    """The options of making_options, as they came."""

    values: dict[str, Any]
    words: tuple[str, ...] | None

    @classmethod
    def of(cls, context: click.Context, values: dict[str, Any]) -> Wish:
        return cls(values, context.meta.get(WORDS))

    @property
    def names_source(self) -> bool:
        return bool(self.values["sources"] or self.values["directories"] or self.values["list_file"])

    @property
    def command(self) -> str | tuple[str, ...] | None:
        """Raises BadInput if it is there twice, or empty."""
        text = self.values["command"]
        if self.words is not None:
            source = click.get_current_context().get_parameter_source("command")
            if text is not None and source is click.core.ParameterSource.COMMANDLINE:
                raise BadInput("there are two commands: give either -c CMD or -- PROG ARG...")
            if not self.words:
                raise BadInput("there is no command after '--'. Write -- PROG ARG...")
            return self.words
        if text is None:
            return None
        if not text.strip():
            raise BadInput("the command is empty. Write -c 'gzip -9 \"$ITEM\"' or -- gzip -9")
        return str(text)

    def open_sources(self) -> Any:
        """Raises BadInput for what is missing or unreadable."""
        from ppss_queue.sources import open_sources

        values = self.values
        paths = [*values["directories"], *values["sources"]]
        _refuse_foreign_words(paths, values)
        list_file = values["list_file"]
        if not paths and list_file is None:
            if sys.stdin is None or sys.stdin.isatty():
                raise BadInput(
                    "there are no items: name a directory or files, or give a list with -f LIST or on stdin"
                )
            list_file = "-"
        output = values["output"]
        return open_sources(
            paths,
            list_file=list_file,
            stdin=sys.stdin.buffer if list_file == "-" else None,
            delimiter=_delimiter(values),
            files=values["files"],
            include=values["include"],
            exclude=values["exclude"],
            max_depth=values["max_depth"],
            follow_links=values["follow_links"],
            order=values["order"],
            skip_directories=[os.path.abspath(output)] if output else [],
        )

    def spec(self) -> RunSpec:
        """Raises BadInput."""
        values = self.values
        output = values["output"]
        if output is not None:
            output = os.path.abspath(output)
            if os.path.lexists(output) and not os.path.isdir(output):
                raise BadInput(f"the output directory '{values['output']}' is a file. Name a directory.")
        return RunSpec(
            command=self.command,
            directory=_here(),
            output=output,
            replacement=values["replacement"],
            environment=_environment(values["env"]),
            retry=RetryRule(
                values["retries"],
                values["retry_delay"],
                _codes(values["retry_on"], "--retry-on"),
                _codes(values["no_retry_on"], "--no-retry-on"),
            ),
            max_lost=values["max_lost"],
            visibility_seconds=_positive(values["visibility"], "--visibility"),
            timeout_seconds=values["timeout"],
            grace_seconds=values["grace"],
            halt=Halt.parse(values["halt"]) if values["halt"] else None,
            skip_existing=values["skip_existing"],
            keep_output=values["keep_output"],
            name=_name(values["name"]),
            priority=values["priority"],
            keep_seconds=values["keep"],
        )


def check_command(spec: RunSpec, *, look_for_program: bool) -> None:
    """Finds out before anything is enqueued what would fail every item. Raises BadInput, CommandNotFound."""
    from ppss_queue.command import check_program, parse_command
    from ppss_queue.queue import check

    check(spec)
    if spec.command is None or spec.function or not look_for_program:
        return
    command = parse_command(spec.command, replacement=spec.replacement, functions=spec.functions)
    check_program(command, os.environ.get("PATH", os.defpath), spec.directory)


def print_dry_run(spec: RunSpec, sources: Any) -> None:
    """What would run for the first items, shell-quoted, one a line."""
    from itertools import islice

    from ppss_queue.command import ItemValues, output_file_of, parse_command, render
    from ppss_queue.model import Item

    if spec.command is None or spec.function:
        raise BadInput("there is no shell command to show: --dry-run takes -c CMD or -- PROG ARG...")
    command = parse_command(spec.command, replacement=spec.replacement, functions=spec.functions)
    items = iter(sources)
    for seq, (name, root) in enumerate(islice(items, 10), 1):
        item = Item(seq, name, root)
        placed = spec.with_roots(sources.roots)
        base = output_file_of(name)
        folder = ""
        if spec.output is not None:
            folder = os.path.join(spec.output, os.path.dirname(name) if placed.is_file(item) else "").rstrip(
                "/"
            )
        print(render(command, ItemValues(placed.local_path(item), seq, 1, folder, base)))
    left = sum(1 for _ in items)
    if left:
        print(f"# and {left:,} more")


def _here() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise BadInput("the current directory is gone. Go to one that exists.") from None


def _refuse_foreign_words(paths: Sequence[str], values: dict[str, Any]) -> None:
    for path in paths:
        if path in (":::", "::::", ":::+", "::::+"):
            raise BadInput(
                f"'{path}' is not there yet. Give items as lines: printf '%s\\n' a b | ppss run -c CMD"
            )
    for path in values["directories"]:
        if len(path.encode("utf-8", "surrogateescape")) <= 2 and not os.path.exists(path):
            raise BadInput(
                f"-d names a directory, and there is none called '{path}'. For a delimiter: --delimiter '{path}'"
            )


def _delimiter(values: dict[str, Any]) -> bytes:
    text = values["delimiter"]
    if values["null"]:
        if text is not None:
            raise BadInput("-0 and --delimiter exclude each other")
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


def _positive(seconds: float, option_name: str) -> float:
    if seconds < 1:
        raise BadInput(f"{option_name} must be at least 1 s: leases are renewed three times in it")
    return seconds


def _name(name: str | None) -> str | None:
    if name is not None and (
        not name or name == "last" or not name.isprintable() or " " in name or name[0] in "-#"
    ):
        raise BadInput(
            f"'{name}' can't be a run's name: it needs printable characters without blanks, and not 'last'"
        )
    return name
