"""The files below a directory: which of them count, which directories are entered, and in which order.

Hidden files count, symbolic links only with `follow_links`, as in `find -L`. Special files and directories
named `.ppss` are left out. The order is that of the directories.
"""

# os.path, not pathlib: names are kept as they are, and a Path per name costs more than the walk itself.

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ppss_queue.notes import Notes

# Directories held open in a walk. Deeper ones are read whole: a deep tree must not use up the descriptors.
_MAX_OPEN_DIRECTORIES = 64
_SCRATCH = ".ppss"


@dataclass(frozen=True, slots=True)
class Walk:
    """The rules of a walk. `include` and `exclude` match the path below the directory that is walked."""

    include: re.Pattern[str] | None
    exclude: re.Pattern[str] | None
    max_depth: int | None
    follow_links: bool
    skip_directories: tuple[str, ...]
    notes: Notes

    def files(self, top: str, base: str) -> Iterator[str]:
        """Yield the names of the files below `top` depth first: `base` + path below `top`."""
        include, exclude, follow, notes = self.include, self.exclude, self.follow_links, self.notes
        skipped = {identity for path in self.skip_directories if (identity := _identity(path))}
        levels = [("", _identity(top), _entries(top, base or ".", True, notes))]
        while levels:
            below, _, entries = levels[-1]
            for entry in entries:
                path = below + entry.name
                if exclude and exclude.fullmatch(path):
                    continue
                kind = _kind(entry, follow)
                if kind == "directory":
                    identity = _identity(entry.path)
                    if len(levels) == self.max_depth or entry.name == _SCRATCH or identity in skipped:
                        continue
                    if any(identity == above for _, above, _ in levels):
                        notes.add("links back to a directory above, not followed", repr(base + path))
                        continue
                    stream = len(levels) < _MAX_OPEN_DIRECTORIES
                    levels.append((path + "/", identity, _entries(entry.path, base + path, stream, notes)))
                    break
                if kind == "special" or (include and not include.fullmatch(path)):
                    continue
                if kind == "file":
                    yield base + path
                else:
                    notes.add(kind, repr(base + path))
            else:
                levels.pop()


def _kind(entry: os.DirEntry[str], follow: bool) -> str:
    """What it is: "file", "directory", "special", or what to note about a link that gives no item."""
    try:
        if entry.is_file(follow_symlinks=follow):
            return "file"
        if entry.is_dir(follow_symlinks=follow):
            return "directory"
        if not entry.is_symlink():
            return "special"
        if not follow:
            return "symbolic links, skipped (--follow-links takes them)"
        entry.stat()
        return "special"
    except OSError:
        return "symbolic links to nothing, skipped"


def _identity(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def _entries(path: str, shown: str, stream: bool, notes: Notes) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            if stream:
                yield from entries
                return
            whole = list(entries)
        yield from whole
    except OSError as error:
        notes.add("directories that can't be read, skipped", f"{shown!r} ({error.strerror})")
