"""Stage in: the files of leased items come from the master while others run, in a thread of its own.

Many requests are on their way at once; their files come one after the other, in order. A lost connection is opened
again, and what was not whole is asked for anew: no command ever sees a part of a file.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

from ppss_queue.errors import BadInput, ExitCode, MachineFailed, PpssError, ServiceFailed, UnknownRun
from ppss_queue.model import Lease, SharedFile
from ppss_worker.file_gate import UNKNOWN
from ppss_worker.file_line import Backoff, FileLine, OpenFiles
from ppss_worker.file_stream import CHANGED, GONE, Incoming, TransferFailed
from ppss_worker.messages import Data, Header, packed
from ppss_worker.running import ItemRefused
from ppss_worker.runs import ActiveRun
from ppss_worker.scratch import Room, ScratchSpace
from ppss_worker.sharing import failed, hash_of, link_shared, node_failed, receive_shared, refuse_service
from ppss_worker.throttle import Throttle

REQUESTS_IN_FLIGHT = 64
"""Of small files, enough for 800 a second at a round trip of 80 ms."""
STOP_SECONDS = 2.0
"""How long a thread is waited for that is told to stop."""
_TRIES = 3
"""For a file that changes while it is copied."""


@dataclass(slots=True)
class Fetch:
    """The files of one item, on their way or there."""

    lease: Lease
    run: ActiveRun
    room: Room | None = None
    names: list[str] = field(default_factory=list)
    """Of the files in `work`, the item's first."""
    error: PpssError | None = None
    """Why its command can't be run. ItemRefused: the item's fault; anything else: this node's, or the master's."""
    dropped: bool = False
    tries: int = 0


@dataclass(slots=True)
class _Share:
    """A file of --with that this worker has not seen yet."""

    run: str
    index: int
    file: SharedFile
    there: bool = False
    """It is on this node from before."""


class Fetching:
    """All but `_keep_fetching` and what it calls is for the main thread."""

    def __init__(
        self,
        open_files: OpenFiles,
        space: ScratchSpace,
        throttle: Throttle,
        on_news: Callable[[], None],
        on_trouble: Callable[[str], None],
        *,
        compress: bool,
    ) -> None:
        """`on_news`: called in the thread whenever `done` has more; `on_trouble`: with a sentence, also there."""
        self._line = FileLine(open_files)
        self._space = space
        self._throttle = throttle
        self._compress = compress
        self._on_news = on_news
        self._on_trouble = on_trouble
        self._changed = threading.Condition()
        self._waiting: deque[Fetch | _Share] = deque()
        self._asked: deque[Fetch | _Share] = deque()
        self._done: deque[Fetch] = deque()
        self._shared: set[str] = set()
        """Hashes of the files of --with that are there, or asked for."""
        self._not_shared: dict[str, PpssError] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._keep_fetching, name="stage-in", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, lease: Lease, run: ActiveRun) -> None:
        with self._changed:
            for index, file in enumerate(run.spec.shared):
                if file.sha256 not in self._shared:
                    self._shared.add(file.sha256)
                    self._waiting.append(_Share(run.id, index, file))
            self._waiting.append(Fetch(lease, run))
            self._changed.notify_all()

    def drop(self, members: Collection[str]) -> None:
        """Nobody wants these any more."""
        with self._changed:
            for fetch in (*self._waiting, *self._asked, *self._done):
                if isinstance(fetch, Fetch) and fetch.lease.member in members:
                    fetch.dropped = True

    def done(self) -> list[Fetch]:
        """Those that have come, or never will, since the last call."""
        with self._changed:
            done, self._done = list(self._done), deque()
        return done

    def stop(self) -> None:
        """Ends the thread; what has not come never will."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._line.close()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    # The thread

    def _keep_fetching(self) -> None:
        backoff = Backoff()
        while not self._stopping:
            try:
                self._fetch_next()
                backoff.reset()
            except PpssError as error:
                self._line.close()
                with self._changed:
                    self._waiting.extendleft(reversed(self._asked))
                    self._asked.clear()
                if self._stopping:
                    return
                if error.exit_code is ExitCode.CORRECT_INPUT:
                    self._refuse_all(error)
                else:
                    self._on_trouble(f"{error} Files are fetched again when the master is back.")
                    backoff.wait(lambda: self._stopping)

    def _refuse_all(self, error: PpssError) -> None:
        """The master gives no files before somebody corrects something there."""
        with self._changed:
            waiting, self._waiting = self._waiting, deque()
            for wanted in waiting:
                if isinstance(wanted, _Share):
                    self._shared.discard(wanted.file.sha256)
                else:
                    wanted.error = BadInput(str(error))
                    self._over(wanted)

    def _fetch_next(self) -> None:
        """Asks for what is wanted, and takes in what comes next. Raises ServiceFailed."""
        with self._changed:
            while not self._waiting and not self._asked and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return
            room_for = max(0, REQUESTS_IN_FLIGHT - len(self._asked))
            fresh = [self._waiting.popleft() for _ in range(min(room_for, len(self._waiting)))]
            self._asked.extend(fresh)
            first = self._asked[0]
        self._line.send(b"".join(map(self._request, fresh)))
        if isinstance(first, _Share):
            self._take_shared(first)
        else:
            self._take(first)
        with self._changed:
            self._asked.popleft()
            if isinstance(first, Fetch):
                self._over(first)

    def _over(self, fetch: Fetch) -> None:
        """Its files have come, or not; the lock is held."""
        if isinstance(fetch.error, _Changed) and not fetch.dropped:
            fetch.tries += 1
            if fetch.tries < _TRIES:
                fetch.error = None
                self._waiting.append(fetch)
                return
            fetch.error = ItemRefused(f"{fetch.error}, {_TRIES} times", final=False)
        if fetch.error is not None or fetch.dropped:
            self.discard(fetch)
        self._done.append(fetch)
        self._on_news()

    def discard(self, fetch: Fetch) -> None:
        """Its room is not needed any more."""
        if fetch.room is not None:
            self._space.give_back(fetch.room)
            fetch.room = None

    def _request(self, wanted: Fetch | _Share) -> bytes:
        if isinstance(wanted, _Share):
            path = self._space.shared(wanted.file.sha256)
            wanted.there = hash_of(path) == wanted.file.sha256
            if wanted.there:
                with suppress(OSError):
                    os.utime(path)  # it is in use
                return b""
            return packed(
                {"op": "share", "run": wanted.run, "index": wanted.index, "compress": self._compress}
            )
        run, item = wanted.run, wanted.lease.item
        if not run.spec.is_file(item):
            return b""
        where: Header = {"op": "fetch", "run": run.id, "root": item.root, "name": item.name}
        return packed({**where, "skip": run.spec.skip_existing, "compress": self._compress})

    def _take(self, fetch: Fetch) -> None:
        """Writes what comes for an item into a room of its own. Raises ServiceFailed."""
        spec = fetch.run.spec
        fetch.names.clear()
        fetch.error = None
        for file in spec.shared:
            fetch.error = fetch.error or self._not_shared.get(file.sha256)
        self.discard(fetch)  # of a try that was broken off
        try:
            fetch.room = self._space.room(fetch.lease)
            for file in spec.shared:
                link_shared(self._space.shared(file.sha256), fetch.room.work, file.path)
        except OSError as error:
            fetch.error = fetch.error or node_failed(error)
        if spec.is_file(fetch.lease.item):
            self._receive(fetch)

    def _receive(self, fetch: Fetch) -> None:
        """The files of an item, to the last message of them, whatever goes wrong."""
        incoming: Incoming | None = None
        while True:
            header, data = self._read(incoming)
            if "done" in header:
                if incoming is not None:
                    incoming.close()
                return
            try:
                if fetch.error is not None or fetch.dropped or fetch.room is None:
                    if incoming is not None:
                        incoming.close()
                        incoming = None
                    if fetch.error is None or not isinstance(fetch.error, ItemRefused):
                        refuse_service(header)
                elif "skipped" in header:
                    fetch.error = ItemRefused("skipped: its output exists", exit_code=0)
                elif "file" in header:
                    self._space.claim(fetch.room, int(str(header["size"])))
                    incoming = Incoming(header, fetch.room.work)
                    fetch.names.append(os.path.basename(incoming.path))
                elif incoming is None:
                    raise failed(header)
                elif incoming.take(header, data):
                    incoming = None
            except TransferFailed as error:
                fetch.error = _explained(error)
            except MachineFailed as error:
                fetch.error = error
            except FileExistsError as error:
                name = os.path.basename(os.fsdecode(error.filename))
                fetch.error = ItemRefused(
                    f"has two files with the name {name!r}, of which one is of --also or --with"
                )
            except OSError as error:
                fetch.error = node_failed(error)

    def _read(self, incoming: Incoming | None) -> tuple[Header, Data]:
        try:
            header, data = self._line.read()
        except ServiceFailed:
            if incoming is not None:
                incoming.close()
            raise
        self._throttle.passed(len(data))
        return header, data

    def _take_shared(self, wanted: _Share) -> None:
        """Keeps a shared file under its hash. Raises ServiceFailed."""
        path = self._space.shared(wanted.file.sha256)
        self._not_shared.pop(wanted.file.sha256, None)
        if wanted.there:
            return
        error = receive_shared(self._read, path, wanted.file)
        if error is not None:
            self._not_shared[wanted.file.sha256] = error
            with self._changed:
                self._shared.discard(wanted.file.sha256)


class _Changed(PpssError):
    """The file was written to while it was copied."""


def _explained(error: TransferFailed) -> PpssError:
    if error.kind == CHANGED:
        return _Changed(str(error))
    if error.kind == GONE:
        return ItemRefused(f"can't be fetched from the master: {error}")
    if error.kind == UNKNOWN:
        return UnknownRun(str(error))
    return MachineFailed(f"the master can't read files: {error}.")
