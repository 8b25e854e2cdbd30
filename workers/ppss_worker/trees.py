"""Directory trees that a command made: listed, opened up, and removed even where they resist.

What may be in the way: modes, depth, mounts, and processes that the command left behind and that still write.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OWNER_ALL = 0o700
_PASSES = 10_000
"""For removing a tree: one per level; more only while a process that the command left behind still writes."""
_CHANGED = frozenset({errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
"""What removing meets when someone else removes or writes in the same tree."""


def remove_tree(path: str) -> None:
    """Remove a directory and all in it, or what is there instead; done too if someone else did it.

    Inner directories are moved up before they are emptied: neither descriptors, recursion nor the lengths of
    paths grow with the depth. They stay below `path`: when it is gone, so is every file that it held.
    """
    for generation in range(_PASSES):
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except NotADirectoryError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno not in _CHANGED:
                raise
        with _changes_allowed():
            _thin_out(path, generation)
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)


def _thin_out(path: str, generation: int) -> None:
    """Remove the first two levels; directories on the second move to the first, named after `generation`."""
    fresh_names = (f"{generation}.{number}" for number in count())
    open_up(path)
    top = os.open(path, DIRECTORY | os.O_NOFOLLOW)
    try:
        for name, is_directory in entries(top):
            with _changes_allowed():
                if is_directory:
                    _empty_into(top, name, fresh_names)
                    os.rmdir(name, dir_fd=top)
                else:
                    os.unlink(name, dir_fd=top)
    finally:
        os.close(top)


def _empty_into(top: int, name: str, fresh_names: Iterator[str]) -> None:
    open_up(name, top)
    inner = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        if os.fstat(inner).st_dev != os.fstat(top).st_dev:  # something the command mounted: not ours to empty
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
        for child, is_directory in entries(inner):
            with _changes_allowed():
                if is_directory:
                    open_up(child, inner)
                    os.rename(child, next(fresh_names), src_dir_fd=inner, dst_dir_fd=top)
                else:
                    os.unlink(child, dir_fd=inner)
    finally:
        os.close(inner)


@contextmanager
def _changes_allowed() -> Iterator[None]:
    """Ignore what is gone or was changed by someone else in the meantime: the next pass looks again."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CHANGED:
            raise


def entries(directory: str | int) -> list[tuple[str, bool]]:
    """Names in a directory, each with whether it is a directory itself (a link to one is not)."""
    with os.scandir(directory) as found:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]


def open_up(path: str, directory: int | None = None) -> int:
    """Let the owner list and change a directory of a scratch; returns its mode of before."""
    mode = os.lstat(path, dir_fd=directory).st_mode
    if stat.S_ISDIR(mode) and mode & OWNER_ALL != OWNER_ALL:
        with suppress(PermissionError):  # made by another user: the next step on it tells
            os.chmod(path, stat.S_IMODE(mode) | OWNER_ALL, dir_fd=directory)
    return mode
