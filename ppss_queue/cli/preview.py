"""What is found out before anything is enqueued: a command that can't work, and what `--dry-run` prints."""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING

from ppss_queue.errors import BadInput, CommandNotFound
from ppss_queue.model import Item, RunSpec

if TYPE_CHECKING:
    from ppss_queue.sources import Sources

_SHOWN_ITEMS = 10
_COUNTED_ITEMS = 1_000_000


def check_command(spec: RunSpec, *, look_for_program: bool) -> None:
    """Finds out what would fail every item. Raises BadInput, CommandNotFound."""
    from ppss_queue.command import check_program, parse_command
    from ppss_queue.queue import check

    check(spec)
    if spec.command is None or not look_for_program:
        return
    if spec.function is not None:
        _check_module(spec.function.partition(":")[0], spec.directory)
        return
    command = parse_command(spec.command, replacement=spec.replacement, functions=spec.functions)
    check_program(command, os.environ.get("PATH", os.defpath), spec.directory)


def _check_module(module: str, directory: str) -> None:
    """Looks for the outermost package only: nothing is imported here."""
    import sys
    from importlib.machinery import PathFinder

    outermost = module.partition(".")[0]
    if (
        outermost not in sys.builtin_module_names
        and PathFinder.find_spec(outermost, [directory, *sys.path]) is None
    ):
        raise CommandNotFound(
            f"there is no Python module '{outermost}' on this machine, so all items would fail. "
            "Install it, or pass --no-check if only the nodes have it."
        )


def print_dry_run(spec: RunSpec, sources: Sources) -> int:
    """Prints what would run for the first items, one a line, shell-quoted; returns how many items there are.

    OUTPUT_DIR is the place where outputs would appear, since the directory of an attempt does not exist yet.
    """
    from ppss_queue.command import ItemValues, output_file_of, parse_command, render

    if spec.command is None or spec.function:
        raise BadInput("there is no shell command to show: --dry-run takes -c CMD or -- PROG ARG...")
    command = parse_command(spec.command, replacement=spec.replacement, functions=spec.functions)
    placed = spec.with_roots(sources.roots)
    items = iter(sources)
    total = 0
    for total, (name, root) in enumerate(islice(items, _SHOWN_ITEMS), 1):
        item = Item(total, name, root)
        below, _, base = name.rpartition("/") if placed.is_file(item) else ("", "", output_file_of(name))
        folder = os.path.join(spec.output, below).rstrip("/") if spec.output is not None else ""
        values = ItemValues(placed.local_path(item), name, total, 1, folder, base)
        print(render(command, values))
    left = sum(1 for _ in islice(items, _COUNTED_ITEMS))  # `yes | ppss run --dry-run` must end
    if left:
        print(f"# and {left:,} {'or more' if left == _COUNTED_ITEMS else 'more'}")
    return total + left
