"""What Tab offers for a value: names of files, directories and runs."""

from __future__ import annotations

import shlex
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from ppss_queue.errors import PpssError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_PATIENCE_SECONDS = 1
"""A Tab that takes longer to answer is taken for a shell that hangs."""


def complete_files(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """What the shell itself would offer."""
    return _by_shell("file", incomplete)


def complete_directories(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The same, directories alone."""
    return _by_shell("dir", incomplete)


def complete_runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Ids, names and `last`, of a server that runs already: a Tab starts none, and says nothing of what is wrong."""
    from ppss_queue.queue import connect

    signal.signal(signal.SIGALRM, lambda number, frame: sys.exit())
    signal.alarm(_PATIENCE_SECONDS)
    found: list[str] = []
    with suppress(PpssError, OSError):
        address = context.params.get("url") or _own_address()
        if address.lower().startswith("ssh:"):  # a login for each Tab, and a question for a passphrase
            return []
        with connect(address) as queue:
            for counts in queue.runs():
                found += [counts.run, *([counts.name] if counts.name else [])]
    words = [*found, *(["last"] if found else [])]
    # A name that the shell would read as more than a word is not put on its line.
    return [word for word in words if word.startswith(incomplete) and shlex.quote(word) == word]


def _by_shell(kind: str, incomplete: str) -> list[CompletionItem[str]]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type=kind)]


def _own_address() -> str:
    """Of this user's own server, running or not."""
    from ppss_queue.server_place import check_private, default_place

    place = default_place()
    check_private(place)
    return place.address
