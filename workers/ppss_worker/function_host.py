"""The process in which a Python function runs, item after item: `python -m ppss_worker.function_host module:name`.

Its stdout is a socket to the worker: a JSON object a line comes in, one goes out. What the function prints goes to
stderr, a capture file that the worker empties before each item.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType

RESULT_BYTES_MAX = 64 * 1024


def main() -> None:
    channel = os.dup(1)
    os.set_inheritable(channel, False)
    os.dup2(2, 1)
    with os.fdopen(channel, "r+b", buffering=0) as raw:
        function: Callable[[str], object] | None = None
        for line in raw:
            request = json.loads(line)
            os.environ.update(request["environment"])
            try:
                function = function or _load(sys.argv[1])
                answer = _encode(function(request["item"]))
            except SystemExit as error:
                answer = {"exit_code": _exit_code(error.code)}
            except BaseException as error:  # a function may raise anything; the host goes on
                sys.stdout.flush()  # what it printed comes first
                traceback.print_exception(error.with_traceback(_users(error.__traceback__)))
                answer = {"exit_code": 1, "reason": f"{type(error).__name__}: {error}"[:500]}
            sys.stdout.flush()
            sys.stderr.flush()
            raw.write(json.dumps(answer).encode() + b"\n")


def _users(frames: TracebackType | None) -> TracebackType | None:
    """The frames of the user's code: those before, of this module and importlib, tell nothing."""
    ours = (__name__, "importlib")
    while frames and str(frames.tb_frame.f_globals.get("__name__")).partition(".")[0] in ours:
        frames = frames.tb_next
    return frames


def _load(name: str) -> Callable[[str], object]:
    sys.path.insert(0, os.getcwd())
    module, _, attribute = name.partition(":")
    found: object = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} can't be called")
    return found


def _exit_code(code: object) -> int:
    """What the process would have ended with."""
    if code is None:
        return 0
    if isinstance(code, int):
        return int(code) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _encode(result: object) -> dict[str, object]:
    try:
        text = json.dumps(result, allow_nan=False)
    except ValueError as error:  # NaN, or a list that contains itself
        raise ValueError(f"the result is no JSON: {error}") from None
    if len(text) > RESULT_BYTES_MAX:
        raise ValueError(f"the result is {len(text):,} bytes of JSON; at most {RESULT_BYTES_MAX:,} are kept")
    return {"exit_code": 0, "result": text}


if __name__ == "__main__":
    main()
