"""Words for people, on stderr."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress

import click

from ppss_queue.errors import PpssError
from ppss_queue.units import printable


def say(line: str) -> None:
    """Never raises: a closed terminal wants to hear nothing, and must not end what is at work."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def warn(sentence: str) -> None:
    say(f"ppss: {sentence}")


def fail(error: PpssError) -> int:
    """Says what is wrong, in one line; returns the exit code."""
    warn(printable(" ".join(str(error).split("\n"))))
    return error.exit_code


def typed(command: str) -> str:
    """A command to paste: `ppss <command>`, with the --url that this one was given (passwords as `***`)."""
    context = click.get_current_context(silent=True)
    if context is None or context.get_parameter_source("url") is not click.core.ParameterSource.COMMANDLINE:
        return f"ppss {command}"
    from ppss_queue.address import Address

    return f"ppss {command} --url {shlex.quote(Address.parse(context.params['url']).display())}"


def no_worker() -> str:
    return f"no worker is there. Start one here or on another machine: {typed('worker')}"
