"""What all verbs share: how they are found, how options get their defaults, how errors end."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ppss_queue import config
from ppss_queue.cli import HIDDEN, VERBS, Entry
from ppss_queue.cli.misuse import sentence_of
from ppss_queue.cli.options import ACCEPT_NEW, Option
from ppss_queue.cli.say import fail, say
from ppss_queue.errors import BadInput, ExitCode, MachineFailed, PpssError

if TYPE_CHECKING:
    from ppss_queue.queue import Queue

WORDS = "ppss.words"
"""Where in a click context's `meta` the words after `--` are."""

CLOSED = (errno.EPIPE, errno.EIO)
"""A pipe that nobody reads any more (`| head`), a terminal that is gone."""


def open_queue(url: str | None, *, clones: int = 0) -> Queue:
    """`clones`: how many more connections will be wanted soon. Raises BadInput, ServiceFailed, MachineFailed."""
    from ppss_queue.queue import Queue

    return Queue.open(url or os.environ.get("PPSS_URL") or None, accept_new=accepts_new(), clones=clones)


def accepts_new() -> bool:
    """Whether hosts of which nothing is known are to be trusted (--accept-new)."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(ACCEPT_NEW))


@contextmanager
def ending_as_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end what is inside as Ctrl-C does, so that it can clean up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def state_directory() -> Path:
    """Where logs, captures and slot numbers of this user on this machine are."""
    from ppss_queue.server_place import default_place

    return default_place().directory.parent


class Verb(click.Command):
    """A command whose words after `--` are kept apart, and whose help has sections and ends in examples."""

    def __init__(
        self, *args: Any, examples: str, usage: str = "", takes_words: bool = False, **kwargs: Any
    ) -> None:
        """`usage`: what follows the verb's name, one form a line; by default what click makes of it."""
        super().__init__(*args, **kwargs)
        self.options_metavar = "[OPTION]..."
        self.takes_words = takes_words
        self._examples = examples
        self._forms = [line.strip() for line in usage.strip().splitlines()]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.takes_words and "--" in args:
            at = args.index("--")
            ctx.meta[WORDS] = tuple(args[at + 1 :])
            args = args[:at]
        try:
            if not ctx.resilient_parsing:  # for completion half a line is enough
                self._refuse_repeated(ctx, args)
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def _refuse_repeated(self, ctx: click.Context, args: Sequence[str]) -> None:
        _, _, typed = self.make_parser(ctx).parse_args(list(args))
        for parameter in typed:
            if isinstance(parameter, Option) and parameter.once and typed.count(parameter) > 1:
                raise BadInput(f"--{parameter.long_name} is there twice: give one")

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return self._forms[:1] or super().collect_usage_pieces(ctx)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_usage(ctx, formatter)
        for form in self._forms[1:]:
            formatter.write_usage(ctx.command_path, form, prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                section = parameter.section if isinstance(parameter, Option) else "Options"
                sections.setdefault(section, []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for line in self._examples.strip().splitlines():
                formatter.write(f"  {line.strip()}\n")


class Verbs(click.Group):
    """A group of verbs, each imported when it is used."""

    def __init__(
        self, *args: Any, verbs: Mapping[str, Entry], hidden: Mapping[str, Entry] = {}, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self._verbs = verbs
        self._hidden = hidden

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._verbs.get(cmd_name) or self._hidden.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"ppss_queue.cli.{entry.module}")
        command = getattr(module, f"{cmd_name}_verb")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if (
            args
            and args[0] not in (*self._verbs, *self._hidden)
            and not args[0].startswith("-")
            and not ctx.resilient_parsing
        ):
            close = config.closest(args[0], self._verbs)
            hint = f"Did you mean '{close}'?" if close else f"See: {ctx.command_path} --help"
            raise BadInput(f"there is no verb '{args[0]}'{self._of(ctx)}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self._verbs))
        for group in dict.fromkeys(entry.group for entry in self._verbs.values()):
            with formatter.section(group):
                formatter.write_dl(
                    [
                        (name.ljust(width), entry.summary)
                        for name, entry in self._verbs.items()
                        if entry.group == group
                    ]
                )

    def _of(self, ctx: click.Context) -> str:
        return f" of {ctx.command_path}" if ctx.parent else ""


@click.group(
    cls=Verbs,
    verbs=VERBS,
    hidden=HIDDEN,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    options_metavar="",
    subcommand_metavar="VERB [OPTION]... [ARGUMENT]...",
    epilog="ppss VERB --help tells more, with examples. RUN is an id, a --name, or 'last'; ITEM is a name or "
    "'#17'. Every option has an environment variable (PPSS_SLOTS for --slots) and can be set in ppss.toml in the "
    "current directory (slots = 4).",
)
@click.option("--version", "-V", is_flag=True, help="Print the version.")
def cli(version: bool) -> None:
    """Run one command per item, on all cores of all machines.

    \b
    ppss run scans/ -c 'ocrmypdf "$ITEM" "$OUTPUT_DIR/$OUTPUT_FILE"' -o searchable/
    """


def defaults() -> dict[str, dict[str, Any]]:
    """Defaults of options from ppss.toml, per verb, and per verb of a group of verbs. Raises BadInput."""
    here = Path(os.curdir)
    if not (here / config.FILE_NAME).exists():
        return {}
    assert isinstance(cli, click.Group)
    options = {
        path: {parameter.setting: parameter for parameter in command.params if isinstance(parameter, Option)}
        for path, command in commands(cli, click.Context(cli))
    }
    found: dict[str, dict[str, Any]] = {verb: {} for verb in VERBS}
    for path, settings in config.read(here, options).items():
        verb, _, of_group = path.partition(" ")
        target = found[verb].setdefault(of_group, {}) if of_group else found[verb]
        for setting, value in settings.items():
            parameter = options[path][setting]
            one = parameter.multiple and not isinstance(value, list)
            target[str(parameter.name)] = [value] if one else value
    return found


def commands(group: click.Group, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """All verbs, those of groups too, by what is typed: `run`, `nodes deploy`."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            for inner, verb in commands(command, context):
                yield f"{name} {inner}", verb
        else:
            yield name, command


def _complete() -> NoReturn:
    """Answers the shell that wants to complete a line; what is wrong with ppss.toml is told by verbs alone."""
    found: dict[str, dict[str, Any]] = {}
    with suppress(PpssError):
        found = defaults()
    cli.main(prog_name="ppss", default_map=found)


def run(arguments: Sequence[str]) -> int:
    """Runs a verb and returns its exit code."""
    if "_PPSS_COMPLETE" in os.environ:
        _complete()
    try:
        with cli.make_context("ppss", list(arguments), default_map=defaults()) as context:
            code = int(cli.invoke(context) or 0)
        sys.stdout.flush()
        return code
    except click.exceptions.Exit as error:  # after --help
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return ExitCode.OK
    except click.ClickException as error:
        return fail(BadInput(sentence_of(error)))
    except PpssError as error:
        return fail(error)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            say("")  # behind the ^C
        return ExitCode.INTERRUPTED
    except OSError as error:
        return stopped_by(error)


def stopped_by(error: OSError) -> int:
    """Says what this machine refused, unless nobody reads any more; returns the exit code."""
    return ExitCode.INTERRUPTED if error.errno in CLOSED else fail(machine_failed(error))


def machine_failed(error: OSError) -> MachineFailed:
    """The sentence for what the operating system refused."""
    name = error.filename if isinstance(error.filename, str | bytes) else None
    where = f" ('{os.fsdecode(name)}')" if name is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineFailed(f"the disk is full{where}. Free space, then go on.")
    return MachineFailed(f"this machine failed: {error.strerror or error}{where}. Mend that, then go on.")
