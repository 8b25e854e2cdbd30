"""Stage out: what commands wrote goes to the master while others run, in a thread of its own.

An attempt's outputs are gathered in its scratch on the master, and published there when the main thread has asked
Redis whether the lease still counts. A lost connection is opened again, and every attempt that is not published yet is
gathered, and asked for, anew: its command is not run again for that.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from ppss_queue.errors import ConnectFailed, LeaseLost, PpssError, ServiceFailed, UnknownRun
from ppss_queue.model import Lease
from ppss_worker.fetching import STOP_SECONDS
from ppss_worker.file_gate import UNKNOWN
from ppss_worker.file_line import Backoff, FileLine, OpenFiles
from ppss_worker.file_stream import failure, outgoing
from ppss_worker.messages import Data, Header, joined, packed
from ppss_worker.publishing import OutputRefused
from ppss_worker.running import Owners
from ppss_worker.throttle import Throttle
from ppss_worker.trees import entries, open_up
from ppss_worker.uploads import LOST, REFUSED


@dataclass(eq=False, slots=True)
class Upload:
    """The outputs of one attempt, on their way."""

    lease: Lease
    out: str
    """Directory on this node."""
    subdirectory: str
    """Below the output directory."""
    verify: bool
    on_gathered: Callable[[Sequence[str], int], None]
    """Hears the final names, and the round that `publish` wants; again after each lost connection."""
    on_published: Callable[[], None]
    on_failed: Callable[[PpssError], None]
    round: int = 0
    taken: Owners = field(default_factory=dict)
    publishes: bool = False
    discarded: bool = False

    @property
    def key(self) -> Header:
        return {"run": self.lease.run, "seq": self.lease.item.seq, "token": self.lease.token}


class Uploading:
    """`gather`, `publish`, `discard`, `handle_answers`, `start` and `stop` are for the main thread."""

    def __init__(
        self,
        open_files: OpenFiles,
        throttle: Throttle,
        on_news: Callable[[], None],
        on_trouble: Callable[[str], None],
        *,
        compress: bool,
    ) -> None:
        """`on_news`: called in a thread whenever `handle_answers` has something to do."""
        self._open_files = open_files
        self._throttle = throttle
        self._compress = compress
        self._on_news = on_news
        self._on_trouble = on_trouble
        self._changed = threading.Condition()
        self._line: FileLine | None = None
        self._loss: ServiceFailed | None = None
        """Why the connection is of no use any more."""
        self._live: dict[Upload, None] = {}
        """All that are neither published nor given up, oldest first."""
        self._waiting: deque[Upload] = deque()
        """Something is to be sent for each: its outputs, or the word to publish."""
        self._asked: deque[Upload] = deque()
        """Owe an answer, in this order."""
        self._refused: dict[str, Backoff] = {}
        """Runs whose outputs the master can't take now, a full disk say: others need not wait for it."""
        self._answers: deque[Callable[[], None]] = deque()
        self.held_up = ""
        """What the master, or the line to it, had against the last outputs; "" once some are taken."""
        self._got_on = False
        """Whether the master has answered with anything but trouble since the last one."""
        self._stopping = False
        self._thread = threading.Thread(target=self._keep_sending, name="stage-out", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def __len__(self) -> int:
        """Attempts whose outputs are not home yet."""
        return len(self._live)

    def gather(self, upload: Upload) -> None:
        """Sends its outputs."""
        with self._changed:
            self._live[upload] = None
            self._add(upload)

    def publish(self, upload: Upload, round: int, taken: Owners) -> None:
        """Moves what was gathered in this round to its final place; nothing if it is gathered anew meanwhile.

        The fence needs a check of the token *after* the scratch was made (staging.py), so each round has its own.
        """
        with self._changed:
            if round == upload.round:
                upload.taken, upload.publishes = taken, True
                self._add(upload)

    def discard(self, upload: Upload) -> None:
        """Nobody wants it any more, or it is published."""
        with self._changed:
            if not upload.discarded:
                upload.discarded = True
                self._live.pop(upload, None)
                if upload.round:
                    self._add(upload)

    def handle_answers(self) -> None:
        """Calls back for all that was answered."""
        while self._answers:
            self._answers.popleft()()

    def stop(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            line = self._line
        if line is not None:
            line.close()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def _add(self, upload: Upload) -> None:
        if upload not in self._waiting:
            self._waiting.append(upload)
        self._changed.notify_all()

    # The thread that sends

    def _keep_sending(self) -> None:
        backoff = Backoff()
        while not self._stopping:
            try:
                upload = self._next()
                if upload is not None:
                    self._send(upload)
            except PpssError as error:
                self._start_over()
                self.held_up = str(error)
                if self._got_on:
                    self._got_on = False
                    backoff.reset()
                if not self._stopping:
                    self._on_trouble(f"{error} Outputs are brought home when the master is back.")
                    backoff.wait(lambda: self._stopping)

    def _next(self) -> Upload | None:
        """What there is to send; None if there is nothing any more. Raises why the connection is lost."""
        with self._changed:
            while not self._stopping and self._loss is None:
                due = {upload: self._due_seconds(upload) for upload in self._waiting}
                for upload, seconds in due.items():
                    if seconds <= 0:
                        return upload
                self._changed.wait(min(due.values(), default=None))
            if self._loss is not None:
                raise self._loss
            return None

    def _due_seconds(self, upload: Upload) -> float:
        """Until something of it can be sent."""
        refused = self._refused.get(upload.lease.run)
        return refused.until - time.monotonic() if refused else 0.0

    def _send(self, upload: Upload) -> None:
        """Sends outputs, or the word to publish or discard them. Raises ServiceFailed."""
        if self._line is None:
            line = FileLine(self._open_files)
            line.open()
            with self._changed:
                self._line, self._loss = line, None
            threading.Thread(
                target=self._keep_reading, args=(line,), name="stage-out-answers", daemon=True
            ).start()
        with self._changed:
            self._waiting.remove(upload)
            if upload.discarded:
                messages = iter([packed({"op": "discard", **upload.key})])
            else:
                self._asked.append(upload)
                if upload.publishes:
                    messages = iter(
                        [packed({"op": "publish", **upload.key, "taken": _as_json(upload.taken)})]
                    )
                else:
                    upload.round += 1
                    messages = _tree(upload, self._compress)
        for piece in joined(messages):
            if self._loss is not None:
                raise self._loss
            self._line.send(piece)
            self._throttle.passed(len(piece))

    def _start_over(self) -> None:
        """All that is not published is gathered from the beginning, over another connection."""
        with self._changed:
            line, self._line, self._loss = self._line, None, None
            self._asked.clear()
            self._waiting = deque(self._live)
            for upload in self._waiting:
                self._gather_anew(upload)
        if line is not None:
            line.close()

    @staticmethod
    def _gather_anew(upload: Upload) -> None:
        upload.publishes = False
        upload.round += 1  # a check that is under way counts for nothing any more

    # The thread that reads the answers of one connection

    def _keep_reading(self, line: FileLine) -> None:
        try:
            while True:
                self._answered(line, *line.read())
        except ServiceFailed as error:
            with self._changed:
                if self._line is line:
                    self._loss = error
                    self._changed.notify_all()

    def _answered(self, line: FileLine, header: Header, _: Data) -> None:
        """Raises ConnectFailed."""
        with self._changed:
            if self._line is not line or not self._asked:
                raise ConnectFailed("the connection for files is another one now.")
            upload = self._asked.popleft()
            self._got_on = True
            if upload.discarded:
                return
            try:
                answer = _answer(upload, header)
            except ServiceFailed as error:
                self._refused.setdefault(upload.lease.run, Backoff()).begin()
                self._gather_anew(upload)
                self._add(upload)
                self.held_up = str(error)
                self._on_trouble(f"{error} Outputs of run {upload.lease.run} wait on this node until then.")
                return
            self._refused.pop(upload.lease.run, None)
            self.held_up = ""
            if "outputs" not in header:
                self._live.pop(upload, None)
            self._answers.append(answer)
        self._on_news()


def _answer(upload: Upload, header: Header) -> Callable[[], None]:
    """What to call back. Raises ServiceFailed for what the master may be able to do later."""
    if "outputs" in header:
        names = [str(name) for name in cast("list[object]", header["outputs"])]
        return partial(upload.on_gathered, names, upload.round)
    if "published" in header:
        return upload.on_published
    kind, text = header.get("kind"), str(header.get("failed"))
    if kind == REFUSED:
        return partial(upload.on_failed, OutputRefused(text))
    if kind == LOST:
        return partial(upload.on_failed, LeaseLost(text))
    if kind == UNKNOWN:
        return partial(upload.on_failed, UnknownRun(text))
    raise ServiceFailed(text if text.endswith(".") else f"{text}.")


def _as_json(taken: Owners) -> dict[str, list[object]]:
    return {name: [seq, item] for name, (seq, item) in taken.items()}


def _tree(upload: Upload, compress: bool) -> Iterator[bytes]:
    """The messages of an attempt's outputs, each directory before what is in it."""
    yield packed({"op": "make", **upload.key, "subdirectory": upload.subdirectory})
    pending = [""]
    while pending:
        path = pending.pop()
        source = os.path.join(upload.out, path) if path else upload.out
        try:
            mode = stat.S_IMODE(open_up(source))
            if path:
                yield packed({"op": "directory", "path": path, "mode": mode})
            for name, is_directory in sorted(entries(source)):
                inner = f"{path}/{name}" if path else name
                if is_directory:
                    pending.append(inner)
                else:
                    yield from _one(os.path.join(source, name), inner, upload.verify, compress)
        except FileNotFoundError:
            yield failure(REFUSED, f"removed its {path or '$OUTPUT_DIR'}, so its outputs can't be published")
        except OSError as error:
            yield failure(REFUSED, f"made {path!r}, which can't be read: {error.strerror}")
    yield packed({"op": "made"})


def _one(source: str, path: str, verify: bool, compress: bool) -> Iterator[bytes]:
    """The messages of what is no directory."""
    mode = os.lstat(source).st_mode
    if stat.S_ISLNK(mode):
        yield packed({"op": "link", "path": path, "target": os.readlink(source)})
    elif stat.S_ISREG(mode):
        first: Header = {"op": "file", "path": path}
        if mode & stat.S_IRUSR:
            yield from outgoing(source, first, verify=verify, compress=compress)
        else:
            os.chmod(source, stat.S_IMODE(mode) | stat.S_IRUSR)
            yield from outgoing(
                source, {**first, "mode": stat.S_IMODE(mode)}, verify=verify, compress=compress
            )
    else:
        yield failure(
            REFUSED, f"made {path!r}, which is no file, directory or link, so it can't be brought home"
        )
