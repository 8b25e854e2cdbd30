"""Words for people, on stderr."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress

import click

from ppss_queue.errors import PpssError
from ppss_queue.units import printable

_NAMES = ("Redis", "Valkey", "Python")
"""Those that are written like other words at the beginning of a sentence."""


def say(line: str) -> None:
    """Never raises: a closed terminal wants to hear nothing, and must not end what is at work."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def complaint(sentence: str) -> str:
    """`ppss: <sentence>`, beginning with a small letter unless it begins with a name: Redis, RQ, PPSS_SLOTS, RUN."""
    rest = sentence.partition(" ")[0][1:]
    small = rest == rest.lower() and not sentence.startswith(_NAMES)
    return f"ppss: {sentence[:1].lower() if small else sentence[:1]}{sentence[1:]}"


def warn(sentence: str) -> None:
    say(complaint(sentence))


def fail(error: PpssError) -> int:
    """Says what is wrong, in one line; returns the exit code."""
    warn(printable(" ".join(str(error).split("\n"))))
    return error.exit_code


def typed(command: str) -> str:
    """A command to paste: `ppss <command>`, with the --url that was typed for this one.

    A password in it becomes the word PASSWORD, to be filled in as DIR or COMMAND elsewhere: what is printed may be
    logged. An address from PPSS_URL or ppss.toml is left out: the next command finds it there again.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.get_parameter_source("url") is not click.core.ParameterSource.COMMANDLINE:
        return f"ppss {command}"
    from ppss_queue.address import Address

    url = Address.parse(context.params["url"]).display().replace(":***@", ":PASSWORD@", 1)
    return f"ppss {command} --url {shlex.quote(url)}"


def no_worker() -> str:
    return f"no worker is there. Start one here or on another machine: {typed('worker')}"
