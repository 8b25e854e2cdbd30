"""Directory trees on the master: made, and removed even where they resist. As trees.py, over SFTP.

SFTP has no way to stay in a directory once it was looked at: between the look that says "no link" and the next
request somebody may put a link in its place. Only a process on the master can do that which a command of an earlier
attempt left behind there, so with nodes that have to stage there is none.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from itertools import count

from ppss_worker.sftp.client import SMALL_IN_FLIGHT, Sftp
from ppss_worker.sftp.packets import LSTAT, REMOVE, RENAME, RMDIR, SETSTAT, STAT, Facts, Unexplained
from ppss_worker.trees import OWNER_ALL

_PASSES = 10_000
"""As in trees.py: one per level."""


def make_directories(sftp: Sftp, path: str) -> None:
    """With all that is missing above. Raises OSError; FileExistsError: it is there, or something else is."""
    missing = [path]
    while True:
        try:
            sftp.mkdir(missing[-1])
        except FileNotFoundError:
            outer = os.path.dirname(missing[-1])
            if outer == missing[-1]:
                raise
            missing.append(outer)
            continue
        except FileExistsError:
            if len(missing) == 1:
                raise
            if not sftp.facts(sftp.ask(STAT, missing[-1]), missing[-1]).is_directory:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), missing[-1]) from None
        missing.pop()
        if not missing:
            return


def remove_tree(sftp: Sftp, path: str) -> None:
    """Removes a directory and all in it, or what is there instead; done too if someone else did it.

    Inner directories are moved up before they are emptied, so neither recursion nor the lengths of paths grow with
    the depth, and they stay below `path`: when it is gone, so is every file that it held. Raises OSError.
    """
    for generation in range(_PASSES):
        looked, removed = sftp.ask(LSTAT, path), sftp.ask(RMDIR, path)
        try:
            facts = sftp.facts(looked, path)
            if facts.is_directory:
                sftp.done(removed, path)
            else:
                sftp.done(sftp.ask(REMOVE, path), path)
            return
        except FileNotFoundError:
            return
        except Unexplained:
            pass  # not empty, most likely
        finally:
            sftp.forget(removed)
        _thin_out(sftp, path, facts, generation)
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)


def _thin_out(sftp: Sftp, path: str, facts: Facts, generation: int) -> None:
    """Removes the first two levels; directories on the second move to the first, named after `generation`."""
    fresh_names = (f"{path}/{generation}.{number}" for number in count())
    _open_up(sftp, path, facts)
    entries = sftp.listdir(path)
    if not entries:
        raise Unexplained(errno.EIO, "its sshd says 'failure' and no more", path)
    _remove(sftp, [f"{path}/{name}" for name, inner in entries if not inner.is_directory])
    for name, inner in entries:
        if not inner.is_directory:
            continue
        directory = f"{path}/{name}"
        _open_up(sftp, directory, inner)
        try:
            children = sftp.listdir(directory)
        except FileNotFoundError:
            continue
        _remove(sftp, [f"{directory}/{child}" for child, found in children if not found.is_directory])
        for child, found in children:
            if found.is_directory:
                _open_up(sftp, f"{directory}/{child}", found)
                _settled(
                    sftp, sftp.ask_extended(RENAME, f"{directory}/{child}", next(fresh_names)), directory
                )
        _settled(sftp, sftp.ask(RMDIR, directory), directory)


def _remove(sftp: Sftp, paths: list[str]) -> None:
    for start in range(0, len(paths), SMALL_IN_FLIGHT):
        asked = [(sftp.ask(REMOVE, path), path) for path in paths[start : start + SMALL_IN_FLIGHT]]
        for number, path in asked:
            _settled(sftp, number, path)


def _settled(sftp: Sftp, number: int, path: str) -> None:
    """Gone or changed meanwhile is no failure: the next pass looks again."""
    with suppress(FileNotFoundError, Unexplained):
        sftp.done(number, path)


def _open_up(sftp: Sftp, path: str, facts: Facts) -> None:
    mode = stat.S_IMODE(facts.mode or 0)
    if mode & OWNER_ALL != OWNER_ALL:
        with suppress(OSError):  # the next step on it tells
            sftp.done(sftp.ask(SETSTAT, path, Facts(mode=mode | OWNER_ALL)), path)
