"""What the worker and the agent of a node say to each other (node_agent.sh): lines, whose fields have no raw tabs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ppss_worker.capacity import listed_gpus, visible_gpus

_FUNCTION = "BASH_FUNC_"
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_MEANT = {b"n": b"\n", b"t": b"\t"}


@dataclass(frozen=True, slots=True)
class Ended:
    """How the command of an attempt ended."""

    attempt: str
    exit_code: int | None
    signal: int | None
    has_outputs: bool
    """There is something in its $OUTPUT_DIR."""
    beside: str
    """What it left beside its item that nobody wants: `new NAME`, `changed NAME`, `both NAME` or nothing."""
    printed: tuple[bytes, bytes] | None
    """stdout and stderr; None: they are to be fetched."""


def value(text: str) -> bytes:
    """A line that bash's `printf %b` turns into the text."""
    return os.fsencode(text).replace(b"\\", b"\\\\").replace(b"\n", b"\\n") + b"\n"


def run_request(
    attempt: str,
    functions: Sequence[str],
    variables: Sequence[str],
    words: Sequence[str],
    wanted: Sequence[str],
) -> bytes:
    """Asks for a command. `functions`: definitions; `variables`: NAME=VALUE; `wanted`: names of --return."""
    lists = (functions, variables, words, wanted)
    head = f"run {attempt} {' '.join(str(len(values)) for values in lists)}\n"
    return head.encode() + b"".join(value(text) for values in lists for text in values)


def kill_request(attempt: str, signal_name: str) -> bytes:
    """Asks for a signal (TERM, KILL) to all of a command's process group."""
    return f"kill {attempt} {signal_name}\n".encode()


def forget_request(attempt: str) -> bytes:
    """Nothing of this attempt is needed any more."""
    return f"forget {attempt}\n".encode()


def beat_reply(beat: bytes, limit_seconds: float) -> bytes:
    """The agent may live so long after it has said this."""
    return b"beat %s %d\n" % (beat, limit_seconds * 100)


def fields(line: bytes) -> list[bytes]:
    """The fields of a line of the agent."""
    return [_ESCAPED.sub(lambda found: _MEANT.get(found[1], found[1]), part) for part in line.split(b"\t")]


def read_ended(parts: Sequence[bytes]) -> Ended:
    """From the fields of an `ended`."""
    attempt, status = parts[1].decode(), int(parts[2])
    printed = (parts[5][1:], parts[6][1:]) if len(parts) > 6 else None
    return Ended(
        attempt,
        status if status >= 0 else None,
        -status if status < 0 else None,
        parts[3] != b"0",
        os.fsdecode(parts[4]),
        printed,
    )


def read_gpus(parts: Sequence[bytes], node: str) -> tuple[str, ...]:
    """From the fields of a `gpus`. Raises MachineFailed if the node can't find out which it has."""
    told = os.fsdecode(parts[-1])
    if parts[1] == b"visible":
        return visible_gpus(told)
    return listed_gpus(told, int(parts[2]) if parts[2] != b"-" else None, f"node {node}")


def definition(variable: str, text: str) -> str | None:
    """The definition of an exported function that an environment carries; None for other variables."""
    if not variable.startswith(_FUNCTION):
        return None
    name = variable.removeprefix(_FUNCTION).removesuffix("%%")
    return f"{name} {text}"
