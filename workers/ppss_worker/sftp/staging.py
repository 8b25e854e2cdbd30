"""Scratch of attempts on the master, made by SFTP: what staging.py does there.

The fence is the same. A scratch is made, and answered for, before its siblings are listed; both are over before the
node hears of it, so before its token is checked. All earlier scratches are gone, and answered for, before the first
rename is sent. What a lost connection had under way may still happen later: its renames find nothing once the next
attempt, or the next round of the same one, has removed their scratch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from ppss_queue.errors import BadInput
from ppss_worker.publishing import SCRATCH, machine_failed
from ppss_worker.sftp.client import Sftp
from ppss_worker.sftp.packets import MKDIR, OPENDIR, RENAME, RMDIR, Facts
from ppss_worker.sftp.publishing import SftpScratch, explaining
from ppss_worker.sftp.trees import make_directories, remove_tree
from ppss_worker.staging import below_output, in_the_way, not_prepared


class SftpStaging:
    """Scratch and outputs of one run on the master; see staging.Staging."""

    def __init__(self, sftp: Sftp, output: str, run: str) -> None:
        self._sftp = sftp
        self._output = output
        self._run_scratch = os.path.join(output, SCRATCH, run)
        self._prepared = False

    def prepare(self) -> None:
        """Once for each connection. Raises BadInput, MachineFailed."""
        if self._prepared:
            return
        if RENAME not in self._sftp.extensions:
            raise BadInput(
                f"the master's SFTP can't replace files in {self._output!r} (it has no {RENAME}). "
                "Use OpenSSH there, or install PPSS on the master."
            )
        try:
            with explaining(self._sftp, self._output):
                self._make_run_scratch()
        except OSError as error:
            raise not_prepared(self._output, error) from None
        self._prepared = True

    def scratch(self, seq: int, token: str, subdirectory: str) -> SftpScratch:
        """Raises OutputRefused, MachineFailed, BadInput."""
        final = below_output(subdirectory)
        own = f"{seq}.{token}"
        directory = f"{self._run_scratch}/{own}"
        try:
            with explaining(self._sftp, self._output):
                siblings = self._make_fresh(directory)
        except OSError as error:
            raise machine_failed(self._output, error) from None
        earlier = [
            f"{self._run_scratch}/{name}" for name in siblings if name.startswith(f"{seq}.") and name != own
        ]
        return SftpScratch(self._sftp, self._output, directory, seq, final, earlier)

    def _make_fresh(self, directory: str) -> list[str]:
        """Makes it, then lists all scratches of the run."""
        ask, run_scratch = self._sftp.ask, self._run_scratch
        made, opening = ask(MKDIR, directory, Facts(mode=0o777)), ask(OPENDIR, run_scratch)
        try:
            self._sftp.done(made, directory)
        except OSError:
            if self._sftp.lstat(directory) is not None:
                remove_tree(self._sftp, directory)
            else:  # the run was swept, or the user emptied the output directory
                self._make_run_scratch()
            self._sftp.forget(opening)
            self._sftp.mkdir(directory)
            opening = ask(OPENDIR, run_scratch)
        return [name for name, _ in self._sftp.entries(opening, run_scratch)]

    def _make_run_scratch(self) -> None:
        places = [os.path.dirname(self._run_scratch), self._run_scratch]
        for _ in range(100):  # the sweep of another run may remove .ppss between the two mkdirs
            found = self._sftp.look_at(places)
            for path, facts in found.items():
                if facts is not None and not facts.is_directory:
                    raise in_the_way(path)
            if all(found.values()):
                return
            with suppress(FileExistsError):
                make_directories(self._sftp, self._run_scratch)


def leftovers(sftp: Sftp, output: str, run: str) -> list[str]:
    """As staging.leftovers."""
    with suppress(OSError):
        return [name for name, _ in sftp.listdir(f"{output}/{SCRATCH}/{run}")]
    return []


def sweep(sftp: Sftp, output: str, run: str, names: Iterable[str]) -> None:
    """As staging.sweep."""
    run_scratch = os.path.join(output, SCRATCH, run)
    for name in names:
        with suppress(OSError):
            remove_tree(sftp, f"{run_scratch}/{name}")
    with suppress(OSError):
        for directory in (run_scratch, os.path.dirname(run_scratch)):
            sftp.done(sftp.ask(RMDIR, directory), directory)
