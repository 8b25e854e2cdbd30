"""The one seam through which Lua is called: `lua/<name>.lua`, each put behind `lua/lib.lua`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ppss_queue.connection import Connection, Reply
from ppss_queue.errors import PpssError
from ppss_queue.failures import NoScript
from ppss_queue.keys import Keys
from ppss_queue.resp import Argument


@cache
def _source(name: str) -> tuple[str, str]:
    """Text of a script and its SHA-1, by which Redis knows it."""
    folder = files("ppss_queue") / "lua"
    text = (folder / "lib.lua").read_text() + (folder / f"{name}.lua").read_text()
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
