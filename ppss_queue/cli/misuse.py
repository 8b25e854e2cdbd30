"""What click finds wrong with a command line, as one sentence that tells what to type instead."""

from __future__ import annotations

import click

from ppss_queue import config
from ppss_queue.cli.options import Option

OTHER_TOOLS = {
    "-r": "nothing runs anyway when there are no items",
    "--no-run-if-empty": "nothing runs anyway when there are no items",
    "-n": "a command gets one item",
    "-N": "a command gets one item",
    "-L": "a command gets one item, a line of the list",
    "-l": "a command gets one item, a line of the list",
    "-X": "a command gets one item",
    "-m": "a command gets one item",
    "-x": "a command gets one item",
    "-s": "a command gets one item",
    "-a": "lists are read with -f FILE",
    "--arg-file": "lists are read with -f FILE",
    "-i": "{} stands for the item, or what -I names",
    "-t": "see what would run with --dry-run",
    "-v": "see what would run with --dry-run",
    "--verbose": "see what would run with --dry-run",
    "--joblog": "a job log is written with --logs DIR",
    "--results": "outputs are kept with --logs DIR or --keep-output",
    "--bar": "progress is shown on a terminal",
    "--eta": "progress is shown on a terminal",
    "--progress": "progress is shown on a terminal",
    "--jobs": "the number of slots is -p, -j or -P",
    "--max-procs": "the number of slots is -p, -j or -P",
    "--group": "the output of an item comes in one piece",
    "-u": "the output of an item comes in one piece, or by line with --line-buffer",
    "--ungroup": "the output of an item comes in one piece, or by line with --line-buffer",
    "--pipe": "items are arguments, and stdin of a command is empty",
    "--nodes": "other machines take part with ppss run --nodes, or ppss nodes start",
    "--sshloginfile": "a list of nodes is read with -n FILE",
    "--slf": "a list of nodes is read with -n FILE",
    "--trc": "outputs come home with -o DIR, or --return NAME",
    "--transferfile": "files are copied to nodes with --stage",
    "--basefile": "files that all items need are copied with --with FILE",
    "--range": "give numbers as lines: seq 1 5 100 | ppss run -c CMD",
    "--limit": "the number of slots is -p, of each worker",
    "-S": "other machines take part with ppss run --nodes, or ppss nodes start",
    "--sshlogin": "other machines take part with ppss run --nodes, or ppss nodes start",
}
"""Options of xargs and GNU parallel that are missing here, and what does their work."""


def sentence_of(error: click.ClickException) -> str:
    """What is wrong and what to do."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.NoSuchOption):
        return _no_such_option(error)
    if isinstance(error, click.MissingParameter) and context:
        return f"{_name(error)} is missing. {' '.join(context.get_usage().split())}"
    if isinstance(error, click.BadParameter):
        flag = isinstance(error.param, click.Option) and error.param.is_flag
        return f"{_name(error)}: {'give true or false.' if flag else _ended(error.message)}"
    path = f"{context.command_path} " if context else "ppss "
    return f"{_ended(error.format_message())} See: {path}--help"


def _no_such_option(error: click.NoSuchOption) -> str:
    name = error.option_name
    start = f"there is no option {name} here"
    if name in OTHER_TOOLS:
        return f"{start}: {OTHER_TOOLS[name]}."
    close = config.closest(name.lstrip("-"), [option.lstrip("-") for option in error.possibilities or ()])
    if close:
        return f"{start}. Did you mean --{close}?"
    if error.ctx is None or error.ctx.parent is None:
        return f"{start}. Options follow their verb: ppss VERB {name}"
    if getattr(error.ctx.command, "takes_words", False):
        return f"{start}. If it belongs to the command, write that last: -- PROG {name} ARG..."
    return f"{start}. See: {error.ctx.command_path} --help"


def _name(error: click.BadParameter) -> str:
    """Where the value was given: `--max-lost`, `PPSS_MAX_LOST`, `'max-lost' in ppss.toml`, `RUN`."""
    parameter, context = error.param, error.ctx
    if not isinstance(parameter, Option):
        return str(parameter.name).upper() if parameter else "a value"
    source = context.get_parameter_source(str(parameter.name)) if context else None
    if source is click.core.ParameterSource.ENVIRONMENT:
        return str(parameter.envvar)
    if source is click.core.ParameterSource.DEFAULT_MAP:
        return f"'{parameter.setting}' in {config.FILE_NAME}"
    return f"--{parameter.long_name}"


def _ended(sentence: str) -> str:
    sentence = " ".join(sentence.split())
    return sentence if sentence.endswith((".", "?", "!")) else sentence + "."
