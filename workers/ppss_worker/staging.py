"""Scratch: what a command writes into, `OUT/.ppss/<run>/<sequence>.<token>/`, a new one for each attempt.

It is on the file system of the output directory, for publishing (publishing.py) to be a rename. Before that, an
attempt removes the scratch of all earlier ones of its item. Which ones are earlier is listed when an attempt
gets its scratch, hence *between* its claim and the check of its token, which leaves no gap:
- An earlier attempt that passed its check did so before our claim, and had its scratch then: it is listed.
- If our check says that our token is the newest, nobody newer had a scratch before it: none of them is listed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from ppss_queue.errors import BadInput, PpssError
from ppss_worker.publishing import MACHINE_ERRORS, SCRATCH, Attempt, OutputRefused, machine_failed
from ppss_worker.trees import remove_tree

_PROBE_BYTES = 64 * 1024


class Staging:
    """Scratch and outputs of one run on this machine."""

    def __init__(self, output: str, run: str) -> None:
        """`output` is the absolute output directory. Nothing is touched before `prepare`."""
        self._output = output
        self._run_scratch = os.path.join(output, SCRATCH, run)

    def prepare(self) -> None:
        """Create the output directory and the run's scratch where missing; can be called again.

        Raises BadInput if the output directory is a file or may not be written, MachineFailed on a full disk.
        """
        try:
            self._make_run_scratch()
        except OSError as error:
            raise not_prepared(self._output, error) from None

    def scratch(self, seq: int, token: str, subdirectory: str) -> Attempt:
        """A fresh, empty scratch for one attempt, asked for after the item was claimed with this token.

        `subdirectory` is the item's directory relative to its source, "" at the top: outputs will go there.
        Raises OutputRefused if that is not below the output directory, MachineFailed if making it fails,
        BadInput as `prepare` if someone put something else in the place of the run's scratch.
        """
        final = below_output(subdirectory)
        own = f"{seq}.{token}"
        directory = os.path.join(self._run_scratch, own)
        try:
            self._make_fresh(directory)
            siblings = [name for name in os.listdir(self._run_scratch) if name.startswith(f"{seq}.")]
        except OSError as error:
            raise machine_failed(self._output, error) from None
        earlier = [os.path.join(self._run_scratch, name) for name in siblings if name != own]
        return Attempt(self._output, directory, seq, final, earlier)

    def work(self, seq: int, token: str) -> str:
        """A fresh directory beside an attempt's scratch, which is removed with it. Raises MachineFailed, BadInput."""
        directory = os.path.join(self._run_scratch, f"{seq}.{token}.work")
        try:
            self._make_fresh(directory)
        except OSError as error:
            raise machine_failed(self._output, error) from None
        return directory

    def _make_fresh(self, directory: str) -> None:
        try:
            os.mkdir(directory)
        except FileExistsError:
            remove_tree(directory)
            os.mkdir(directory)
        except FileNotFoundError:  # the run was swept, or the user emptied the output directory
            self._make_run_scratch()
            os.mkdir(directory)

    def _make_run_scratch(self) -> None:
        for _ in range(100):  # the sweep of another run may remove .ppss between the two mkdirs
            with suppress(FileNotFoundError):
                os.makedirs(self._run_scratch, exist_ok=True)
                break
        for path in (os.path.dirname(self._run_scratch), self._run_scratch):
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise in_the_way(path)
        for path in (self._output, self._run_scratch):
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def not_prepared(output: str, error: OSError) -> PpssError:
    """Why the output directory can't be used: MachineFailed on a full disk, else BadInput."""
    if error.errno in MACHINE_ERRORS and error.errno != errno.EROFS:
        return machine_failed(output, error)
    return BadInput(
        f"can't write in output directory {output!r}: {error.strerror}. "
        "Mend that, or choose another one with -o."
    )


def in_the_way(path: str) -> BadInput:
    """Something else is where scratch belongs."""
    return BadInput(f"{path!r} is no directory, but scratch belongs there. Remove it.")


def below_output(subdirectory: str) -> str:
    """An item's directory in its plain form. Raises OutputRefused if it is not below the output directory."""
    parts = [part for part in subdirectory.split("/") if part not in ("", ".")]
    if ".." in parts or subdirectory.startswith("/"):
        raise OutputRefused(f"would write to {subdirectory!r}, which is not below the output directory")
    return "/".join(parts)


def no_room(directory: str) -> str | None:
    """Why nothing more can be written there, as the beginning of a sentence; None if something can, or who knows.

    Found out by writing: no look at a disk tells of a quota.
    """
    import tempfile  # few commands fail

    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return f"the disk of '{directory}' is full"
        if error.errno == errno.EDQUOT:
            return f"the quota on the disk of '{directory}' is used up"
    return None


def exists(output: str, subdirectory: str, name: str) -> bool:
    """Whether anything is at OUT/<subdirectory>/<name>, a dangling link too (for --skip-existing)."""
    return os.path.lexists(os.path.join(output, subdirectory, name))


def leftovers(output: str, run: str) -> list[str]:
    """Names of the scratches of a run. Raises nothing."""
    with suppress(OSError):
        return os.listdir(os.path.join(output, SCRATCH, run))
    return []


def sweep(output: str, run: str, names: Iterable[str]) -> int:
    """Remove what attempts left in the output directory; the number of scratches removed.

    `names`: `leftovers` of *before* the run was seen ended, so that nothing of a later retry is among them.
    What can't be removed stays. Raises nothing.
    """
    run_scratch = os.path.join(output, SCRATCH, run)
    removed = 0
    with suppress(OSError):
        for name in names:
            with suppress(OSError):
                remove_tree(f"{run_scratch}/{name}")
                removed += 1
        os.rmdir(run_scratch)
        os.rmdir(os.path.dirname(run_scratch))
    return removed
