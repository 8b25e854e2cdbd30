"""What a command wrote beside a copy of its item: brought home if --return names it, and never lost in silence."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from ppss_queue.replacements import expand
from ppss_worker.publishing import OutputRefused


class Beside:
    """The directory that holds an item's file, or a link to it, made for one attempt."""

    def __init__(self, work: str, item: str, templates: Sequence[str]) -> None:
        """`item`: path of the item in `work`, in which all is now that the command did not make."""
        self._work = work
        self._before = _seen(work)
        self._wanted = {os.path.basename(expand(template, item)) for template in templates}

    def gather(self, out: str) -> None:
        """Moves what --return names into `out`. Raises OutputRefused where anything would be lost."""
        after = _seen(self._work)
        for name in sorted(after):
            if after[name] == self._before.get(name):
                continue
            if name in self._wanted and out:
                if os.path.lexists(os.path.join(out, name)):
                    raise written_twice(name)
                os.rename(os.path.join(self._work, name), os.path.join(out, name))
            elif name in self._before:
                raise changed(name)
            else:
                raise would_be_lost(name)


def written_twice(name: str) -> OutputRefused:
    return OutputRefused(f"wrote {name!r} both beside its input and in $OUTPUT_DIR: write it once")


def changed(name: str) -> OutputRefused:
    return OutputRefused(
        f"changed {name!r}, which is a copy, so the change would be lost: write to $OUTPUT_DIR instead"
    )


def would_be_lost(name: str) -> OutputRefused:
    return OutputRefused(
        f"wrote {name!r} beside its input, where it would be lost: write it to $OUTPUT_DIR, or name it with --return"
    )


def _seen(directory: str) -> dict[str, tuple[int, int]]:
    """Size and time of all files directly in a directory; of others only that they are there."""
    seen = {}
    with suppress(OSError), os.scandir(directory) as found:
        for entry in found:
            facts = entry.stat(follow_symlinks=False)
            is_file = stat.S_ISREG(facts.st_mode)
            seen[entry.name] = (facts.st_size, facts.st_mtime_ns) if is_file else (0, 0)
    return seen
