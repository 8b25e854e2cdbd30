"""ppss log: what an item's last attempt printed, also while it runs."""

from __future__ import annotations

import os
import stat
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, BinaryIO

import click

from ppss_queue.cli.completing import complete_runs
from ppss_queue.cli.frame import Verb, open_queue, state_directory
from ppss_queue.cli.options import option, url_option
from ppss_queue.cli.say import warn
from ppss_queue.errors import ExitCode
from ppss_queue.model import ENDED, ItemView, State
from ppss_queue.units import format_duration, printable

if TYPE_CHECKING:
    from ppss_queue.queue import Queue

_FOLLOW_SECONDS = 0.1
_LOOKS_BEFORE_DOUBT = 20


@click.command(
    "log",
    cls=Verb,
    examples="""
    ppss log last 2019/tax-return.pdf
    ppss log k3v9 '#17'
    ppss log k3v9 film.mkv -f
    """,
)
@click.argument("run", shell_complete=complete_runs)
@click.argument("item")
@option("-f", "--follow", is_flag=True, help="Show what a running item prints until it ends, on its machine.")
@url_option
def log_verb(run: str, item: str, follow: bool, url: str | None) -> int:
    """Show what an item's last attempt printed, and how it ended.

    Its output goes to stdout, how it ended to stderr. ITEM is a name, or a number such as '#17'.
    """
    from ppss_queue import status

    with open_queue(url) as queue:
        found = queue.run(run)
        seq = status.find(queue.store, found.id, [item])[0]
        shown = follow and _follow(queue, found.id, seq)
        (view,) = status.view(queue.store, found.id, [seq])
        if not shown and (view.state in ENDED or view.state is State.DELAYED):
            sys.stdout.buffer.write(_kept_output(queue, found.id, view.seq))
            sys.stdout.buffer.flush()
        unseen = not shown and view.state is State.SUCCEEDED and not queue.store.spec(found.id).keep_output
        warn(_ending(view) + (" (what succeeded items print is kept with --keep-output)" if unseen else ""))
    return ExitCode.OK


def _kept_output(queue: Queue, run: str, seq: int) -> bytes:
    """The log on this machine; where there is none, what Redis kept."""
    from ppss_worker.logs import kept_log

    from ppss_queue import status

    try:
        return kept_log(state_directory(), run, seq).read_bytes()
    except OSError:
        return os.fsencode(status.output(queue.store, run, seq))


def _ending(view: ItemView) -> str:
    name, outcome = printable(view.name), view.outcome
    attempt = f"attempt {view.attempts}" if view.attempts else "not started"
    if view.state is State.SUCCEEDED:
        return f"'{name}' succeeded on {outcome.node} in {format_duration(outcome.seconds)}, {attempt}"
    if view.state is State.FAILED:
        where = f" on {outcome.node} after {format_duration(outcome.seconds)}" if outcome.node else ""
        return f"'{name}' failed: {outcome.failure or 'exit 0'}{where}, {attempt}"
    if view.state is State.DELAYED:
        return f"'{name}' waits for its next attempt; {attempt} failed: {outcome.failure}"
    return f"'{name}' is {view.state}, {attempt}"


def _follow(queue: Queue, run: str, seq: int) -> bool:
    """Copies what the item's command printed and prints until it ends; False: it did not run here meanwhile."""
    from ppss_queue import status

    files: dict[tuple[int, int], BinaryIO] = {}
    looks = 0
    with ExitStack() as stack:
        while True:
            (view,) = status.view(queue.store, run, [seq])
            for path in _captures(run, seq):
                _open_new(path, files, stack)
            for file in files.values():  # they outlive their command, so its last words are not lost
                sys.stdout.buffer.write(file.read())
            sys.stdout.buffer.flush()
            if view.state in ENDED:
                return bool(files)
            looks += 1
            if looks == _LOOKS_BEFORE_DOUBT and not files:
                warn(f"'{printable(view.name)}' does not run on this machine as you yet; waiting for its end")
            time.sleep(_FOLLOW_SECONDS)


def _captures(run: str, seq: int) -> list[str]:
    """stdout and stderr of the process group leader of the item, if it runs here as this user."""
    from ppss_worker.shell_host import hosts_item

    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            environment = set(file.read().split(b"\0"))
            if f"PPSS_RUN={run}".encode() not in environment or os.getpgid(pid) != pid:
                continue
            if f"PPSS_SEQ={seq}".encode() in environment or hosts_item(pid, run, seq):
                return [f"/proc/{pid}/fd/1", f"/proc/{pid}/fd/2"]
    return []


def _open_new(path: str, files: dict[tuple[int, int], BinaryIO], stack: ExitStack) -> None:
    """Opens a capture that is not open yet. No pipe: reading from one would take its data from the worker."""
    with suppress(OSError):
        found = os.stat(path)
        key = (found.st_dev, found.st_ino)
        if stat.S_ISREG(found.st_mode) and key not in files:
            files[key] = stack.enter_context(open(path, "rb"))  # noqa: SIM115 - the stack closes it
