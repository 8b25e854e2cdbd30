"""The one seam through which Lua is called: `lua/<name>.lua`, put behind what it uses of the libraries."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ppss_queue.connection import Connection, Reply
from ppss_queue.errors import PpssError
from ppss_queue.failures import NoScript
from ppss_queue.keys import Keys
from ppss_queue.resp import Argument

_FOLDER = Path(__file__).with_name("lua")
_LIBRARIES = ("lib.lua", "blame.lua")
"""The later ones use the earlier ones."""
_DEFINED = re.compile(r"^local (?:function )?(\w+(?:, \w+)*)", re.MULTILINE)
_WORD = re.compile(r"\w+")


@cache
def _library() -> Sequence[tuple[frozenset[str], str]]:
    """Their definitions, each with the names that it defines."""
    paragraphs = [text for name in _LIBRARIES for text in (_FOLDER / name).read_text().split("\n\n")]
    return [
        (frozenset(found[1].split(", ")), text) for text in paragraphs if (found := _DEFINED.search(text))
    ]


@cache
def _source(name: str) -> tuple[str, str]:
    """Text of a script and its SHA-1, by which Redis knows it.

    Redis runs all of it at each call, and a definition costs some 0.3 us: only what is used comes along.
    """
    text = (_FOLDER / f"{name}.lua").read_text()
    used = set(_WORD.findall(text))
    for names, definition in reversed(_library()):
        if not used.isdisjoint(names):
            used.update(_WORD.findall(definition))
            text = f"{definition}\n\n{text}"
    return text, hashlib.sha1(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a script: atomic in Redis."""

    keys: Keys
    name: str
    arguments: tuple[Argument, ...] = ()

    @property
    def command(self) -> Sequence[Argument]:
        """By hash; answered with NoScript where the server has not seen the script yet."""
        return ("EVALSHA", _source(self.name)[1], 2, *self.keys.prefixes, *self.arguments)

    @property
    def command_with_source(self) -> Sequence[Argument]:
        """Works always, and makes the server know the script."""
        return ("EVAL", _source(self.name)[0], 2, *self.keys.prefixes, *self.arguments)


def run(connection: Connection, call: Call) -> Reply:
    """Raises what connection.execute raises."""
    try:
        return connection.execute(*call.command)
    except NoScript:
        return connection.execute(*call.command_with_source)


def run_many(connection: Connection, calls: Sequence[Call]) -> list[Reply]:
    """All calls in one round trip, in order. Raises the first error among the replies."""
    replies: list[Reply] = []
    for call, reply in zip(calls, connection.execute_many([call.command for call in calls]), strict=True):
        if isinstance(reply, NoScript):
            reply = connection.execute(*call.command_with_source)
        if isinstance(reply, PpssError):
            raise reply
        replies.append(reply)
    return replies
