"""What all verbs share: how they are found, how options get their defaults, how errors end."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ppss_queue import config
from ppss_queue.cli import VERBS
from ppss_queue.errors import BadInput, ExitCode, PpssError
from ppss_queue.units import parse_duration

WORDS = "ppss.words"
"""Where in a click context's `meta` the words after `--` are."""

_OTHER_TOOLS = {
    "-r": "nothing runs when there are no items, as with xargs -r",
    "--no-run-if-empty": "nothing runs when there are no items",
    "-L": "each line is one item; give the command one item at a time",
    "-N": "a command gets one item",
    "-X": "a command gets one item",
    "-m": "a command gets one item",
    "-a": "lists are read with -f FILE",
    "--arg-file": "lists are read with -f FILE",
    "-t": "see what would run with --dry-run",
    "--joblog": "write a job log with --logs DIR",
    "--results": "keep outputs with --logs DIR or --keep-output",
    "--bar": "progress is shown on a terminal",
    "--eta": "progress is shown on a terminal",
    "--progress": "progress is shown on a terminal",
    "--jobs": "the number of slots is -p, -j or -P",
    "--max-procs": "the number of slots is -p, -j or -P",
    "--group": "output comes in one piece per item",
    "-u": "output comes in one piece per item, or by line with --line-buffer",
    "--pipe": "items are arguments; stdin of a command is empty",
    "--sshlogin": "other machines take part with: ppss worker --url",
}


class Duration(click.ParamType[float]):
    """A time with a unit, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(str(value))
        except BadInput as error:
            self.fail(str(error), param, ctx)


class Slots(click.ParamType[int]):
    """`8`, `50%` of the cores, `-1`: all cores but one."""

    name = "slots"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text, cores = str(value), cores_here()
        try:
            if text.endswith("%"):
                return max(1, round(cores * float(text[:-1]) / 100))
            number = int(text)
        except ValueError:
            self.fail(f"'{text}' is no number of slots. Write 8, 50% or -1 (all cores but one).", param, ctx)
        return number if number >= 0 else max(1, cores + number)


def cores_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Option(click.Option):
    """An option with an environment variable of its own name: `--max-lost` has PPSS_MAX_LOST."""

    def __init__(self, param_decls: Sequence[str] | None = None, **attributes: Any) -> None:
        super().__init__(param_decls, **attributes)
        if self.envvar is None and self.name:
            self.envvar = f"PPSS_{long_name(self).replace('-', '_').upper()}"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.show_default = self.show_default or False
        return super().get_help_record(ctx)


def long_name(option: click.Parameter) -> str:
    """`max-lost` for --max-lost."""
    names = [name for name in option.opts if name.startswith("--")]
    return names[0][2:] if names else str(option.name)


def option(*names: str, **attributes: Any) -> Callable[[Any], Any]:
    """`click.option` with an environment variable."""
    return click.option(*names, cls=Option, **attributes)


url_option = option(
    "--url",
    metavar="ADDRESS",
    help="Redis to use: redis://, rediss://, unix://, redis+sentinel://. Default: your own server on this machine.",
)
json_option = option("--json", "as_json", is_flag=True, help="One JSON object a line.")


class Verb(click.Command):
    """A command whose words after `--` are kept apart, and whose help ends in examples."""

    def __init__(self, *args: Any, examples: str = "", takes_words: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._examples = examples
        self._takes_words = takes_words

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self._takes_words and "--" in args:
            at = args.index("--")
            ctx.meta[WORDS] = tuple(args[at + 1 :])
            args = args[:at]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            self._hint(error)
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self._examples:
            with formatter.section("Examples"):
                for line in self._examples.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n" if line.strip() else "\n")

    @staticmethod
    def _hint(error: click.NoSuchOption) -> None:
        said = _OTHER_TOOLS.get(error.option_name)
        if said:
            raise click.UsageError(f"there is no {error.option_name} here: {said}.") from None


class Ppss(click.Group):
    """All verbs, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module = importlib.import_module(f"ppss_queue.cli.{VERBS[name]}")
        command = getattr(module, f"{name}_verb")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], VERBS, 1)
            hint = f"Did you mean '{close[0]}'?" if close else "See: ppss --help"
            raise BadInput(f"there is no verb '{args[0]}'. {hint}")
        return super().resolve_command(ctx, args)


@click.command(
    cls=Ppss,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="ppss VERB --help tells more, with examples. Every option has an environment variable: PPSS_SLOTS for "
    "--slots; ppss.toml in the current directory sets them too.",
)
@click.option("--version", "-V", is_flag=True, help="Print the version.")
def cli(version: bool) -> None:
    """Run one command per item, on all cores of all machines.

    ppss run scans/ -c 'ocrmypdf "$ITEM" "$OUTPUT_DIR/$OUTPUT_FILE"' -o searchable/
    """


def defaults_for(verb: str) -> dict[str, dict[str, object]]:
    """Defaults from ppss.toml for one verb; the other verbs' options are read only if there is such a file."""
    if not (Path.cwd() / config.FILE_NAME).exists():
        return {}
    group = cli
    assert isinstance(group, click.Group)
    context = click.Context(group)
    options: dict[str, list[str]] = {}
    parameters: dict[str, dict[str, str]] = {}
    for name in VERBS:
        command = group.get_command(context, name)
        assert command is not None
        named = [parameter for parameter in command.params if isinstance(parameter, Option)]
        options[name] = [long_name(parameter) for parameter in named]
        parameters[name] = {
            long_name(parameter).replace("-", "_"): str(parameter.name) for parameter in named
        }
    found = config.read(Path.cwd(), options)
    return {name: {parameters[name][key]: value for key, value in found[name].items()} for name in VERBS}


def run(arguments: Sequence[str]) -> int:
    """Runs a verb and returns its exit code."""
    try:
        verb = next((argument for argument in arguments if not argument.startswith("-")), "")
        result = cli.main(
            args=list(arguments),
            prog_name="ppss",
            standalone_mode=False,
            default_map=defaults_for(verb) if verb in VERBS else {},
        )
        return int(result or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return ExitCode.OK
    except click.ClickException as error:
        return fail(BadInput(error.format_message().strip().rstrip(".") + "."))
    except PpssError as error:
        return fail(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.INTERRUPTED
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    except OSError as error:
        return _disk_full(error)


def _disk_full(error: OSError) -> int:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        print(
            f"ppss: the disk is full ({error.filename or 'writing output'}). Free space, then go on.",
            file=sys.stderr,
        )
        return ExitCode.MACHINE_FAILED
    raise error


def fail(error: PpssError) -> int:
    """Says what is wrong, in one line on stderr; returns the exit code."""
    from ppss_queue.units import printable

    sentence = printable(" ".join(str(error).split("\n")))
    print(f"ppss: {sentence}", file=sys.stderr)
    return error.exit_code


def warn(sentence: str) -> None:
    print(f"ppss: {sentence}", file=sys.stderr)
