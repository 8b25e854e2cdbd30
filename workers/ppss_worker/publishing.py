"""Publishing: outputs of an attempt appear whole, under their final names, only if it succeeded.

Its scratch is on the file system of the output directory, so publishing is one rename per file: a file is there
whole or not at all. Only the newest attempt publishes, and no lock is needed for it: before its first rename it
removes the scratch of all earlier ones, so the late rename of a loser finds nothing (staging.py says why no
earlier one is missed).

Outputs never leave the output directory: it may itself be a symbolic link, but below it none is followed.
Whatever the command made is moved as it is: links stay links, dangling or not; sockets and fifos move too.

Nothing is synced to disk: that a crash of the whole machine loses no output is not promised.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ppss_queue.errors import LeaseLost, MachineFailed, PpssError
from ppss_worker.trees import DIRECTORY, OWNER_ALL, entries, open_up, remove_tree

SCRATCH = ".ppss"
MACHINE_ERRORS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
"""Every other item would meet these too; all others are about names and modes that this command chose."""


class OutputRefused(PpssError):
    """The outputs of an attempt can't be published; the text is a reason with the item as its subject."""


@dataclass(frozen=True, slots=True)
class Directory:
    """One of the scratch, and what becomes of it."""

    source: str
    """Absolute path in the scratch."""
    final: str
    """Path relative to the output directory, "" for itself."""
    mode: int | None
    """Permission bits as the command left them; None for the scratch itself, whose place has default ones."""
    files: list[str]
    """Names of all in it that is no directory."""
    empty: bool


class Attempt:
    """The scratch of one attempt: `directory` is the command's $OUTPUT_DIR. Made by `Staging.scratch`."""

    def __init__(
        self, output: str, directory: str, seq: int, subdirectory: str, earlier: Sequence[str]
    ) -> None:
        self.directory = directory
        self._earlier = earlier
        self._output = output
        self._seq = seq
        self._subdirectory = subdirectory
        self._modes: dict[str, int] = {}
        self._made: set[str] = set()

    def outputs(self) -> list[str]:
        """Final names, relative to the output directory, of all that is in the scratch now, sorted.

        An empty directory has a slash at the end of its name; others show in the names of what they hold.
        Raises OutputRefused if the scratch can't be read, MachineFailed on errors of the disk.
        """
        try:
            return names_of(self._tree())
        except OSError as error:
            raise self._explained(error) from None

    def publish(
        self,
        claim: Callable[[Sequence[str]], Mapping[str, tuple[int, str]]],
        still_ours: Callable[[], bool],
    ) -> int:
        """Move all outputs to their final names, remove the scratch, and return the number of files.

        `claim` reserves names of files (directories merge) for this item in Redis, and returns those that
        another item of the run owns, each with that item's sequence and name. `still_ours` tells whether our
        token is the newest of the item, to which Redis must have answered yes since the scratch was made; it
        is asked once before the first move, and before a refusal.

        Files from before are replaced, each atomically. Raises LeaseLost if the token is not the newest any
        more, OutputRefused if a name can't be written, MachineFailed on errors of the disk, and what the two
        callables raise. Nothing is moved before all is checked that can be; what was not moved stays in the
        scratch, so that the caller can publish again, or discard.
        """
        try:
            return self._publish(claim, still_ours)
        except OutputRefused as refused:
            failure: PpssError = refused
        except OSError as error:
            failure = self._explained(error)
        if not still_ours():  # a newer attempt removed our scratch: files that vanish are its doing
            raise self._lease_lost()
        raise failure

    def discard(self) -> None:
        """Remove the scratch and all in it. Raises nothing: what can't be removed is left for `sweep`."""
        with suppress(OSError):
            remove_tree(self.directory)

    def _publish(
        self,
        claim: Callable[[Sequence[str]], Mapping[str, tuple[int, str]]],
        still_ours: Callable[[], bool],
    ) -> int:
        tree = self._tree()
        names = names_of(tree)
        files = [name for name in names if not name.endswith("/")]
        refuse_reserved(names)
        refuse_taken(claim(files) if files else {})
        if not still_ours():
            raise self._lease_lost()
        for scratch in self._earlier:
            self._remove_earlier(scratch)
        missing = [directory for directory in tree if not self._fits(directory)]
        self._made.update(directory.final for directory in missing)
        for directory in missing:
            with self._entered(directory, create=True):
                pass
        for directory in tree:
            self._move_files(directory)
        for directory in reversed(tree):  # inner ones first: their parent may become unsearchable
            self._set_mode(directory)
        self.discard()
        return len(files)

    def _tree(self) -> list[Directory]:
        """The directories of the scratch, each after its parent, opened up; none if nothing was written."""
        if not stat.S_ISDIR(os.lstat(self.directory).st_mode):
            raise OutputRefused("replaced $OUTPUT_DIR by something else, so its outputs can't be published")
        tree: list[Directory] = []
        pending = [""]
        while pending:
            path = pending.pop()
            source = f"{self.directory}/{path}" if path else self.directory
            mode = self._modes.setdefault(path, stat.S_IMODE(open_up(source)))
            files: list[str] = []
            directories: list[str] = []
            for name, is_directory in entries(source):
                (directories if is_directory else files).append(name)
            empty = not files and not directories
            if path or not empty:
                tree.append(Directory(source, self._final(path), mode if path else None, files, empty))
            pending += [f"{path}/{name}" if path else name for name in directories]
        return tree

    def _final(self, path: str) -> str:
        return f"{self._subdirectory}/{path}".strip("/")

    def _remove_earlier(self, scratch: str) -> None:
        try:
            remove_tree(scratch)
        except OSError as error:
            if error.errno in MACHINE_ERRORS:
                raise
            raise earlier_stays(scratch, error) from None

    def _fits(self, directory: Directory) -> bool:
        """Whether the final directory exists; OutputRefused if the files can't be moved there."""
        with self._entered(directory, create=False) as (target, whole):
            where = f"{directory.final or '.'!r} of {self._output!r}"
            if os.fstat(target).st_dev != os.lstat(directory.source).st_dev:
                raise OutputRefused(f"can't write into {where}: another file system is mounted there")
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=target):
                if os.fstatvfs(target).f_flag & os.ST_RDONLY:
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), self._output)
                raise OutputRefused(f"can't write into {where}: this user may not")
            if directory.files and not os.access(directory.source, os.W_OK | os.X_OK):
                raise OutputRefused(f"made {directory.final!r} as another user, so its files can't be moved")
            for name in directory.files if whole else ():
                if _kind(name, target) == "directory":
                    raise OutputRefused(f"writes {name!r}, which is a directory in {where}")
            return whole

    @contextmanager
    def _entered(self, directory: Directory, *, create: bool) -> Iterator[tuple[int, bool]]:
        """A descriptor of the final directory, and True; if that is missing, of its parent, and False.

        Every step starts at the descriptor of the one before and follows no link, so none leads outside.
        """
        mode = 0o777 if directory.mode is None else directory.mode | OWNER_ALL
        whole = True
        target = os.open(self._output, DIRECTORY)
        try:
            for part in directory.final.split("/") if directory.final else ():
                try:
                    inner = _open_below(target, part, mode if create else None)
                except FileNotFoundError:
                    if create:
                        raise
                    whole = False
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                        raise
                    where = f"{directory.final!r} of {self._output!r}"
                    raise OutputRefused(
                        f"writes into {where}, but {part!r} is a {_kind(part, target)} there"
                    ) from None
                os.close(target)
                target = inner
            yield target, whole
        finally:
            os.close(target)

    def _move_files(self, directory: Directory) -> None:
        if directory.files:
            with self._entered(directory, create=True) as (target, _):
                for name in directory.files:
                    os.rename(f"{directory.source}/{name}", name, dst_dir_fd=target)

    def _set_mode(self, directory: Directory) -> None:
        if directory.mode is not None and directory.final in self._made:
            with self._entered(directory, create=True) as (target, _), suppress(PermissionError):
                os.fchmod(target, directory.mode)  # fails if another item of another user made it just now

    def _lease_lost(self) -> LeaseLost:
        return lease_lost(self._seq)

    def _explained(self, error: OSError) -> PpssError:
        if error.errno in MACHINE_ERRORS:
            return machine_failed(self._output, error)
        name = str(error.filename)
        if name == self.directory and error.errno == errno.ENOENT:
            return OutputRefused("removed its $OUTPUT_DIR, so its outputs can't be published")
        if name.startswith(f"{self.directory}/"):
            name = self._final(name.removeprefix(f"{self.directory}/"))
        if error.errno == errno.ENOENT:
            return OutputRefused(f"left a process behind that removed {name!r} while it was being published")
        return OutputRefused(f"writes {name!r}, which can't be published: {error.strerror}")


def lease_lost(seq: int) -> LeaseLost:
    """For a token that is not the newest any more."""
    return LeaseLost(f"item #{seq} was given to another attempt, so the outputs of this one are discarded")


def earlier_stays(scratch: str, error: OSError) -> OutputRefused:
    """The scratch of an earlier attempt can't be removed, so that attempt could still publish."""
    return OutputRefused(
        f"can't be published while an earlier attempt's {scratch!r} is there, which can't be removed "
        f"({error.strerror}): remove it by hand"
    )


def machine_failed(output: str, error: OSError) -> MachineFailed:
    """For an error of the disk."""
    return MachineFailed(
        f"can't write in output directory {output!r}: {error.strerror}. Mend that and go on."
    )


def names_of(tree: list[Directory]) -> list[str]:
    """What `Attempt.outputs` says of a tree."""
    names = [f"{directory.final}/" for directory in tree if directory.empty]
    for directory in tree:
        prefix = f"{directory.final}/" if directory.final else ""
        names += [prefix + name for name in directory.files]
    return sorted(names)


def refuse_reserved(names: Sequence[str]) -> None:
    """Raises OutputRefused if a name is where scratch is kept."""
    for name in names:
        if name.split("/", 1)[0] == SCRATCH:
            raise OutputRefused(
                f"writes {name!r}, but {SCRATCH!r} in the output directory is kept for scratch"
            )


def refuse_taken(taken: Mapping[str, tuple[int, str]]) -> None:
    """Raises OutputRefused if another item wrote any of the names."""
    if taken:
        name = min(taken)
        seq, item = taken[name]
        more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise OutputRefused(
            f"writes {name!r}{more}, which item {item!r} (#{seq}) of this run has written already"
        )


def _kind(name: str, directory: int) -> str:
    with suppress(FileNotFoundError):
        mode = os.lstat(name, dir_fd=directory).st_mode
        return "directory" if stat.S_ISDIR(mode) else "symbolic link" if stat.S_ISLNK(mode) else "file"
    return "missing name"


def _open_below(outer: int, part: str, create_mode: int | None) -> int:
    try:
        return os.open(part, DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
    except FileNotFoundError:
        if create_mode is None:
            raise
    with suppress(FileExistsError):  # another item of the run is as fast
        os.mkdir(part, create_mode, dir_fd=outer)
    return os.open(part, DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
