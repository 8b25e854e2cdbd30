"""Staging on a node: files come in before an item's turn, and what its command wrote goes home after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial

from ppss_queue.errors import PpssError
from ppss_queue.model import Lease
from ppss_worker.beside import Beside
from ppss_worker.fetching import Fetch, Fetching
from ppss_worker.file_line import OpenFiles
from ppss_worker.publishing import OutputRefused
from ppss_worker.running import ItemRefused, Owners, Workplace
from ppss_worker.runs import ActiveRun
from ppss_worker.scratch import Room, ScratchSpace
from ppss_worker.settings import StageSettings
from ppss_worker.throttle import Throttle
from ppss_worker.uploading import Upload, Uploading

UPLOADS_AHEAD = 64
"""Attempts whose outputs may wait for their way home before no more items are taken."""


def make_stage(
    settings: StageSettings, worker: str, open_files: OpenFiles, warn: Callable[[str], None]
) -> Stage:
    """The stage of a worker, by name. Raises MachineFailed."""
    return Stage(
        open_files,
        ScratchSpace(settings.scratch, worker, settings.scratch_limit_bytes),
        warn,
        bytes_per_second=settings.bytes_per_second,
        compress=settings.compress,
    )


class Stage:
    """One per worker that reaches its master by SSH. For the main thread; `fileno` tells when `news` has some."""

    def __init__(
        self,
        open_files: OpenFiles,
        space: ScratchSpace,
        on_trouble: Callable[[str], None],
        *,
        bytes_per_second: float | None = None,
        compress: bool = False,
    ) -> None:
        """`on_trouble` hears sentences, in the main thread. The rest is about transfers, each way."""
        self._space = space
        self._reader, self._writer = os.pipe()
        for descriptor in (self._reader, self._writer):
            os.set_blocking(descriptor, False)
        self._troubles: list[str] = []
        self._tell = on_trouble
        hears = (self._wake, self._trouble)
        self._fetching = Fetching(open_files, space, Throttle(bytes_per_second), *hears, compress=compress)
        self._uploading = Uploading(open_files, Throttle(bytes_per_second), *hears, compress=compress)
        self._coming: dict[str, Lease] = {}
        self._here: dict[str, Fetch] = {}

    def start(self) -> None:
        """Raises BadInput, MachineFailed."""
        self._space.prepare()
        self._fetching.start()
        self._uploading.start()

    def close(self) -> None:
        """Removes all scratch of this worker."""
        self._fetching.stop()
        self._uploading.stop()
        self._space.close()

    def fileno(self) -> int:
        """Readable when `news` has some."""
        return self._reader

    def fetch(self, leases: Collection[Lease], run: ActiveRun) -> None:
        """Has the files of these items brought here."""
        for lease in leases:
            self._coming[lease.member] = lease
            self._fetching.add(lease, run)

    def news(self) -> list[Fetch]:
        """Items that can be begun now, or never; handles the answers to uploads."""
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)
        troubles, self._troubles = self._troubles, []
        for sentence in troubles:
            self._tell(sentence)
        self._uploading.handle_answers()
        news = []
        for fetch in self._fetching.done():
            wanted = self._coming.pop(fetch.lease.member, None)
            if wanted is None:
                self._fetching.discard(fetch)
                continue
            if fetch.error is None or isinstance(fetch.error, ItemRefused):
                self._here[fetch.lease.member] = fetch
            news.append(fetch)
        return news

    @property
    def is_short(self) -> bool:
        """Whether no more items should be taken until some have gone home."""
        return len(self._uploading) > UPLOADS_AHEAD or self._space.is_short

    @property
    def facts(self) -> Mapping[str, int]:
        """For a heartbeat."""
        limit = self._space.limit_bytes
        return {"scratch_free": self._space.free_bytes, **({"scratch_limit": limit} if limit else {})}

    @property
    def held_up(self) -> str:
        """Why outputs can't go home now, as a sentence; "" if they can."""
        return self._uploading.held_up

    def drop(self, members: Collection[str]) -> None:
        """These items are not begun here."""
        gone = members & self._coming.keys()
        self._fetching.drop(gone)
        for member in gone:
            del self._coming[member]
        for member in members & self._here.keys():
            self._fetching.discard(self._here.pop(member))

    def workplace(self, lease: Lease, run: ActiveRun) -> Workplace:
        """Where an item is begun whose files are here. Raises ItemRefused: they never will be."""
        fetch = self._here.pop(lease.member)
        if fetch.error is not None:
            raise fetch.error
        assert fetch.room is not None
        spec = run.spec
        item = lease.item.name
        if spec.is_file(lease.item):
            item = os.path.join(fetch.room.work, fetch.names[0])
        home = _Home(self._space, self._uploading, fetch, run, item)
        return Workplace(item, fetch.room.work, home)

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            os.write(self._writer, b"\0")

    def _trouble(self, sentence: str) -> None:
        self._troubles.append(sentence)
        self._wake()


class _Home:
    """The scratch of an attempt on a node; its outputs are gathered and published on the master."""

    def __init__(
        self, space: ScratchSpace, uploading: Uploading, fetch: Fetch, run: ActiveRun, item: str
    ) -> None:
        assert fetch.room is not None
        self._space = space
        self._uploading = uploading
        self._room: Room = fetch.room
        self._run = run
        self._lease = fetch.lease
        self._upload: Upload | None = None
        self._published = False
        self._beside = Beside(self._room.work, item, run.spec.returns)
        self.base = space.base

    @property
    def directory(self) -> str:
        return self._room.out if self._run.spec.output is not None else ""

    def gather(
        self, on_gathered: Callable[[Sequence[str], int], None], on_failed: Callable[[PpssError], None]
    ) -> None:
        try:
            self._beside.gather(self.directory)
        except OutputRefused as error:
            on_failed(error)
            return
        if self._run.spec.output is None:
            on_gathered((), 0)
            return
        subdirectory, _ = self._run.place_of(self._lease.item)
        self._upload = Upload(
            self._lease,
            self._room.out,
            subdirectory,
            self._run.spec.verify,
            on_gathered,
            lambda: None,
            on_failed,
        )
        self._uploading.gather(self._upload)

    def publish(
        self,
        round: int,
        taken: Owners,
        still_ours: Callable[[], bool],
        on_published: Callable[[], None],
        on_failed: Callable[[PpssError], None],
    ) -> None:
        if self._upload is None:
            on_published()
            return
        self._upload.on_published = partial(self._over, on_published)
        self._uploading.publish(self._upload, round, taken)

    def discard(self) -> None:
        if self._upload is not None and not self._published:
            self._uploading.discard(self._upload)
        self._space.give_back(self._room)

    def _over(self, on_published: Callable[[], None]) -> None:
        self._published = True
        on_published()
