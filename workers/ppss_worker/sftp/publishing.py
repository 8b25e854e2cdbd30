"""Publishing by SFTP what was gathered in a scratch on the master: what publishing.py does there.

All earlier scratches are gone, and answered for, before the first rename is sent (sftp/staging.py).

What publishing.py does and SFTP can't: it has no openat, so a link that somebody puts in the place of a directory
between the look at it and the rename is followed; nothing says whether a directory may be written before it is tried;
files that were there are replaced whole, each, but others may be in place already when one is refused.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from ppss_queue.errors import PpssError
from ppss_worker.messages import Header
from ppss_worker.publishing import (
    MACHINE_ERRORS,
    Directory,
    OutputRefused,
    earlier_stays,
    lease_lost,
    machine_failed,
    names_of,
    refuse_reserved,
    refuse_taken,
)
from ppss_worker.sftp.client import SMALL_IN_FLIGHT, Sftp
from ppss_worker.sftp.packets import (
    LSTAT,
    RENAME,
    RMDIR,
    SETSTAT,
    SYMLINK,
    Facts,
    Unexplained,
)
from ppss_worker.sftp.trees import remove_tree
from ppss_worker.sftp.writing import SftpReceiving
from ppss_worker.trees import OWNER_ALL

_FILES_AHEAD = 32
"""Whose answers are not waited for until more come."""


class SftpScratch:
    """The scratch of one attempt, which ran elsewhere; see publishing.Attempt. Remembers what was put into it."""

    def __init__(
        self, sftp: Sftp, output: str, directory: str, seq: int, subdirectory: str, earlier: Sequence[str]
    ) -> None:
        self.directory = directory
        self._sftp = sftp
        self._output = output
        self._seq = seq
        self._subdirectory = subdirectory
        self._earlier = earlier
        self._modes: dict[str, int] = {"": OWNER_ALL}
        """Directories, each after its parent, with the modes that they will have."""
        self._files: list[str] = []
        self._under_way: deque[SftpReceiving] = deque()

    # Filling it. Raises OSError.

    def make_directory(self, path: str) -> None:
        with explaining(self._sftp, self._output):
            self._sftp.mkdir(self._full(path))
        self._modes[path] = 0o777

    def make_link(self, path: str, target: str) -> None:
        full = self._full(path)
        with explaining(self._sftp, self._output):
            self._sftp.done(self._sftp.ask(SYMLINK, target, full), full)  # OpenSSH's order, not the draft's
        self._files.append(path)

    def receive(self, path: str, header: Header) -> SftpReceiving:
        with explaining(self._sftp, self._output):
            while len(self._under_way) >= _FILES_AHEAD:
                self._under_way.popleft().settle()
            file = SftpReceiving(self._sftp, self._full(path), header)
        self._under_way.append(file)
        self._files.append(path)
        return file

    def set_mode(self, path: str, mode: int) -> None:
        """It gets this mode where it is published; until then it is open."""
        self._modes[path] = mode

    def is_there(self) -> bool:
        with suppress(OSError):
            return self._sftp.lstat(self.directory) is not None
        return False

    # As publishing.Attempt

    def outputs(self) -> list[str]:
        """Raises OSError if anything did not get there."""
        with explaining(self._sftp, self._output):
            for file in self._under_way:
                file.finish()
            there = self._sftp.ask(LSTAT, self.directory)
            while self._under_way:
                self._under_way.popleft().settle()
            self._sftp.facts(there, self.directory)
        return names_of(self._tree())

    def publish(
        self,
        claim: Callable[[Sequence[str]], Mapping[str, tuple[int, str]]],
        still_ours: Callable[[], bool],
    ) -> int:
        """Raises LeaseLost, OutputRefused, MachineFailed.

        `still_ours` must not say yes when the scratch is gone: whether it is there is seen with all else.
        """
        try:
            with explaining(self._sftp, self._output):
                return self._publish(claim)
        except OutputRefused as refused:
            failure: PpssError = refused
        except OSError as error:
            failure = self._explained(error)
        if not still_ours():
            raise lease_lost(self._seq)
        raise failure

    def discard(self) -> None:
        """Raises nothing but SftpLost."""
        with suppress(OSError):
            remove_tree(self._sftp, self.directory)

    def _publish(
        self,
        claim: Callable[[Sequence[str]], Mapping[str, tuple[int, str]]],
    ) -> int:
        tree = self._tree()
        names = names_of(tree)
        files = [name for name in names if not name.endswith("/")]
        refuse_reserved(names)
        refuse_taken(claim(files) if files else {})
        missing = self._look(tree, files)
        for scratch in self._earlier:
            self._remove_earlier(scratch)
        made = [directory for directory in tree if directory.final in missing]
        for directory in made:
            self._make_final(directory, missing)
        if made:
            self._look(tree)  # whether all is a directory, right before the renames
        emptied = self._move([(directory, name) for directory in tree for name in directory.files])
        for directory in reversed(made):  # inner ones first: their parent may become unsearchable
            if directory.mode is not None:
                target = self._target(directory.final)
                with suppress(PermissionError):  # another item of another user made it just now
                    self._sftp.done(self._sftp.ask(SETSTAT, target, Facts(mode=directory.mode)), target)
        try:
            self._sftp.done(emptied, self.directory)
        except OSError:
            self.discard()
        return len(files)

    def _tree(self) -> list[Directory]:
        files: dict[str, list[str]] = {path: [] for path in self._modes}
        parents = {path.rpartition("/")[0] for path in self._modes if path}
        for path in self._files:
            parent, _, name = path.rpartition("/")
            files[parent].append(name)
        tree = []
        for path, mode in self._modes.items():
            empty = not files[path] and path not in parents
            if path or not empty:
                final = f"{self._subdirectory}/{path}".strip("/")
                tree.append(Directory(self._full(path), final, mode if path else None, files[path], empty))
        return tree

    def _look(self, tree: list[Directory], files: Sequence[str] = ()) -> set[str]:
        """Which directories are missing in the output directory. Raises OutputRefused for what else is there."""
        steps = {directory.final: _steps(directory.final) for directory in tree}
        wanted = [step for each in steps.values() for step in each]
        found = self._sftp.look_at((self.directory, *map(self._target, (*wanted, *files))))
        if found[self.directory] is None:
            raise lease_lost(self._seq)
        for final, each in steps.items():
            for step in each:
                facts = found[self._target(step)]
                if facts is not None and not facts.is_directory:
                    raise OutputRefused(
                        f"writes into {final!r} of {self._output!r}, "
                        f"but {os.path.basename(step)!r} is a {facts.word} there"
                    )
        for path in files:
            facts = found[self._target(path)]
            if facts is not None and facts.is_directory:
                where, _, name = path.rpartition("/")
                raise OutputRefused(f"writes {name!r}, which is a directory in {self._where(where)}")
        return {step for step in wanted if found[self._target(step)] is None}

    def _make_final(self, directory: Directory, missing: set[str]) -> None:
        mode = 0o777 if directory.mode is None else directory.mode | OWNER_ALL
        for step in _steps(directory.final):
            if step in missing:
                try:
                    self._sftp.mkdir(self._target(step), mode)
                except FileExistsError:  # made for the inner ones, or another item of the run is as fast
                    continue
                except PermissionError:
                    raise self._not_allowed(directory) from None

    def _move(self, files: list[tuple[Directory, str]]) -> int:
        """Renames each; all of a batch that was sent happens, or fails, by itself.

        The number that it gives is that of the scratch's removal, which works if there is nothing left in it.
        """
        emptied = -1
        for start in range(0, max(1, len(files)), SMALL_IN_FLIGHT):
            asked = [
                (self._sftp.ask_extended(RENAME, *self._ends(directory, name)), directory, name)
                for directory, name in files[start : start + SMALL_IN_FLIGHT]
            ]
            if start + SMALL_IN_FLIGHT >= len(files):
                emptied = self._sftp.ask(RMDIR, self.directory)
            for number, directory, name in asked:
                try:
                    self._sftp.done(number, f"{directory.source}/{name}")
                except PermissionError:
                    raise self._not_allowed(directory) from None
                except Unexplained:
                    raise self._not_moved(directory, name) from None
        return emptied

    def _not_moved(self, directory: Directory, name: str) -> Exception:
        source, target = self._ends(directory, name)
        if (facts := self._sftp.lstat(target)) is not None and facts.is_directory:
            return OutputRefused(f"writes {name!r}, which is a directory in {self._where(directory.final)}")
        if self._sftp.device(self._target(directory.final)) != self._sftp.device(self.directory):
            return OutputRefused(
                f"can't write into {self._where(directory.final)}: another file system is mounted there"
            )
        return Unexplained(errno.EIO, "its sshd says 'failure' and no more", source)

    def _not_allowed(self, directory: Directory) -> OutputRefused:
        return OutputRefused(f"can't write into {self._where(directory.final)}: this user may not")

    def _remove_earlier(self, scratch: str) -> None:
        try:
            with explaining(self._sftp, self._output):
                remove_tree(self._sftp, scratch)
        except OSError as error:
            if error.errno in MACHINE_ERRORS:
                raise
            raise earlier_stays(scratch, error) from None

    def _explained(self, error: OSError) -> PpssError:
        if error.errno in MACHINE_ERRORS:
            return machine_failed(self._output, error)
        name = str(error.filename).removeprefix(f"{self.directory}/").removeprefix(f"{self._output}/")
        if error.errno == errno.ENOENT:
            return OutputRefused(f"misses {name!r}, which was removed while it was being published")
        return OutputRefused(f"writes {name!r}, which can't be published: {error.strerror}")

    def _full(self, path: str) -> str:
        return f"{self.directory}/{path}" if path else self.directory

    def _target(self, final: str) -> str:
        return f"{self._output}/{final}" if final else self._output

    def _ends(self, directory: Directory, name: str) -> tuple[str, str]:
        return f"{directory.source}/{name}", f"{self._target(directory.final)}/{name}"

    def _where(self, final: str) -> str:
        return f"{final or '.'!r} of {self._output!r}"


def _steps(final: str) -> list[str]:
    """A directory below the output directory and all above it, outer ones first."""
    parts = final.split("/") if final else []
    return ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]


@contextmanager
def explaining(sftp: Sftp, output: str) -> Iterator[None]:
    """Finds out why the server failed, where that can be: the disk is full, or read-only."""
    try:
        yield
    except Unexplained as error:
        if number := sftp.disk_trouble(output):
            raise OSError(number, os.strerror(number), error.filename) from None
        reason = f"{error.strerror}; a quota may be used up"  # the one cause that SFTP can't be asked about
        raise Unexplained(error.errno, reason, error.filename) from None
