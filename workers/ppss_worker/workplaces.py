"""Where attempts on this machine work: the item where it is, outputs in a scratch of the output directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from ppss_queue.errors import PpssError
from ppss_queue.model import Lease
from ppss_queue.replacements import expand
from ppss_worker.beside import Beside
from ppss_worker.publishing import Attempt, OutputRefused
from ppss_worker.running import ItemRefused, Owners, Workplace
from ppss_worker.runs import ActiveRun
from ppss_worker.staging import exists
from ppss_worker.trees import remove_tree


def scratch_here(lease: Lease, run: ActiveRun) -> Attempt | None:
    """In the output directory of the run, if it has one. Raises ItemRefused, BadInput, MachineFailed."""
    spec = run.spec
    directory, base = run.place_of(lease.item)
    if spec.skip_existing and spec.output and exists(spec.output, directory, base):
        raise ItemRefused("skipped: its output exists", exit_code=0)
    if run.staging is None:
        return None
    try:
        return run.staging.scratch(lease.item.seq, lease.token, directory)
    except OutputRefused as error:
        raise ItemRefused(str(error)) from None


def workplace_here(lease: Lease, run: ActiveRun) -> Workplace:
    """Raises ItemRefused, BadInput, MachineFailed."""
    spec = run.spec
    attempt = scratch_here(lease, run)
    item = spec.local_path(lease.item)
    if attempt is None or run.staging is None:
        return Workplace(item, spec.directory, None)
    if not (spec.returns and spec.is_file(lease.item)):
        return Workplace(item, spec.directory, Here(attempt, spec.output or ""))
    work = run.staging.work(lease.item.seq, lease.token)
    for path in (item, *(expand(template, item) for template in spec.also)):
        if os.path.lexists(path):
            os.symlink(path, os.path.join(work, os.path.basename(path)))
    item = os.path.join(work, os.path.basename(item))
    return Workplace(
        item, spec.directory, Here(attempt, spec.output or "", Beside(work, item, spec.returns), work)
    )


class Here:
    """The scratch of an attempt on the file system of its output directory: publishing is renaming."""

    def __init__(self, attempt: Attempt, output: str, beside: Beside | None = None, work: str = "") -> None:
        """`beside`: of a run that wants files that commands write beside their item, in `work`."""
        self._attempt = attempt
        self._beside = beside
        self._work = work
        self.directory = attempt.directory
        self.base = output

    def gather(
        self, on_gathered: Callable[[Sequence[str], int], None], on_failed: Callable[[PpssError], None]
    ) -> None:
        try:
            if self._beside is not None:
                self._beside.gather(self.directory)
        except OutputRefused as error:
            on_failed(error)
            return
        try:
            names = self._attempt.outputs()
        except OutputRefused:
            names = []  # `publish` refuses too, unless the lease is lost: a newer attempt removes our scratch
        except PpssError as error:
            on_failed(error)
            return
        on_gathered(names, 0)

    def publish(
        self,
        round: int,
        taken: Owners,
        still_ours: Callable[[], bool],
        on_published: Callable[[], None],
        on_failed: Callable[[PpssError], None],
    ) -> None:
        try:
            self._attempt.publish(lambda names: taken, still_ours)
        except PpssError as error:
            on_failed(error)
        else:
            on_published()

    def discard(self) -> None:
        self._attempt.discard()
        if self._work:
            with suppress(OSError):
                remove_tree(self._work)
