"""The command line. Each verb is in the module named in VERBS, imported only when it is used."""

from __future__ import annotations

import os
import sys

VERBS = {
    "run": "work",
    "enqueue": "work",
    "worker": "work",
    "attach": "look",
    "status": "look",
    "items": "look",
    "log": "look",
    "wait": "control",
    "retry": "control",
    "pause": "control",
    "resume": "control",
    "cancel": "control",
    "purge": "control",
    "server": "admin",
    "dashboard": "admin",
    "completion": "admin",
}


def main() -> None:
    """Entry point of `ppss`. Never returns; errors end as one sentence and their exit code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from ppss_queue import __version__

        print(f"ppss {__version__}")
        sys.exit(0)
    from ppss_queue.cli.frame import run

    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 130
    sys.exit(code)
