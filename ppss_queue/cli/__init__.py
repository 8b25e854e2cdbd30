"""The command line. Each verb is in the module that VERBS names, imported only when it is used."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NamedTuple, NoReturn


class Entry(NamedTuple):
    """A verb as `ppss --help` lists it, without importing it."""

    group: str
    module: str
    summary: str


VERBS = {
    "run": Entry("Work", "work", "Run a command once per item, on all cores, and show how it goes."),
    "enqueue": Entry("Work", "work", "Put items into a new run and print its id; workers take them."),
    "worker": Entry("Work", "worker", "Take items of all runs and run them until stopped."),
    "status": Entry("Look", "look", "Show all runs, or one: counts, rate, time left, nodes."),
    "items": Entry("Look", "look", "List the items of a run with their states."),
    "log": Entry("Look", "log", "Show what an item's last attempt printed, and how it ended."),
    "attach": Entry("Look", "look", "Show the progress of a run that works elsewhere."),
    "wait": Entry("Look", "control", "Block until a run ends, and exit as `ppss run` would."),
    "retry": Entry("Steer", "control", "Put failed items back to ready."),
    "pause": Entry("Steer", "control", "Hand out no more items of a run; what runs goes on."),
    "resume": Entry("Steer", "control", "Hand out items of a paused run again."),
    "cancel": Entry("Steer", "control", "End a run, or items of it; what runs is killed."),
    "purge": Entry("Steer", "control", "Forget runs that have ended."),
    "nodes": Entry("Set up", "nodes", "Look after all nodes from here: deploy, start, stop, status ..."),
    "server": Entry("Set up", "admin", "Start, stop or look at your own Redis on this machine."),
    "dashboard": Entry("Set up", "admin", "Serve rq-dashboard, which shows runs and items in a browser."),
    "trust": Entry("Set up", "hosts", "Show the host key of a machine, and trust it from now on."),
    "completion": Entry("Set up", "admin", "Print the completion script for a shell."),
}

HIDDEN = {
    "gate": Entry("Set up", "hosts", "Let a node in that came over SSH; nodes execute this by themselves."),
}
"""Verbs that nobody types."""


def main() -> None:
    """Entry point of `ppss`. Never returns; errors end as one sentence and their exit code."""
    _open_missing_streams()
    if sys.argv[1:] in (["--version"], ["-V"]):
        _exit(_print_version())
    if sys.argv[1:2] == ["gate"] and not {"-h", "--help"} & set(sys.argv):
        from ppss_queue.cli.gate import main as gate  # without click: a master runs many of them

        _exit(gate(sys.argv[2:]))
    from ppss_queue.cli.frame import run

    _exit(run(sys.argv[1:]))


def _exit(code: int) -> NoReturn:
    """At once: Python would take 10 ms to take itself apart."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # told already
            stream.flush()
    os._exit(code)


def stdout_is_there() -> bool:
    """Whether whoever started this left it a stdout: see `_open_missing_streams`."""
    return getattr(sys.stdout, "name", None) != 1


def _print_version() -> int:
    """Without click, which takes longer to import than all the rest."""
    from ppss_queue import __version__

    try:
        os.write(1, f"ppss {__version__}\n".encode())
    except OSError as error:
        from ppss_queue.cli.frame import stopped_by

        return stopped_by(error)
    return 0


def _open_missing_streams() -> None:
    """Whoever closed stdin, stdout or stderr (`>&-`) gets /dev/null: a socket must never get their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115 - until the end
