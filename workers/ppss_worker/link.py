"""Many calls on their way at once over one connection, answered in order. Never waits for an answer."""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ppss_queue.connection import Connection, Reply
from ppss_queue.errors import ConnectFailed, PpssError, Unavailable
from ppss_queue.failures import NoScript
from ppss_queue.resp import Argument
from ppss_queue.scripts import Call


@dataclass(slots=True)
class _Sent:
    call: Call
    on_reply: Callable[[Reply], None]
    repeat: bool
    at: float = 0.0
    """time.monotonic() when it was written."""


class Link:
    """Used by one thread. After ConnectFailed, call `reopen` until it works: what was not answered goes out again."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._unsent: list[_Sent] = []
        self._known: set[str] = set()
        """Scripts whose source this connection has sent."""
        self._unanswered: deque[_Sent] = deque()

    def fileno(self) -> int:
        return self._connection.fileno()

    @property
    def idle(self) -> bool:
        """Nothing is owed to us."""
        return not self._unsent and not self._unanswered

    def send(
        self,
        call: Call,
        on_reply: Callable[[Reply], None],
        *,
        repeat: bool = True,
    ) -> None:
        """Queues a call until `flush`. `repeat`: send it again after a lost connection; else it is answered None.

        A call that Redis refuses is answered None too.
        """
        self._unsent.append(_Sent(call, on_reply, repeat))

    def tell(self, commands: Iterable[Sequence[Argument]]) -> None:
        """Writes commands that may get lost or be refused: Redis answers none of them. Raises ConnectFailed."""
        self._connection.tell(commands)

    def flush(self) -> None:
        """Writes what was queued, in one piece. Raises ConnectFailed."""
        if self._unsent:
            batch, self._unsent = self._unsent, []
            now = time.monotonic()
            for sent in batch:
                sent.at = now
            # Before the write: if that fails they are owed an answer all the same.
            self._unanswered.extend(batch)
            self._connection.send([self._command(sent.call) for sent in batch])

    def receive_buffered(self) -> bool:
        """Handles the answers that were read with something else: nothing would tell of them. Raises as `receive`.

        Returns whether there were any.
        """
        some = False
        while self._connection.buffered and self._unanswered:
            some = True
            self._answer()
        return some

    def receive(self) -> None:
        """Handles the answers that have come. Raises ConnectFailed, or the error that an answer is."""
        self._connection.readable()  # first, so that a lost connection is noticed
        self.receive_buffered()

    def check(self, patience_seconds: float) -> None:
        """Raises ConnectFailed if Redis has owed an answer for so long: it hangs, or the line is cut."""
        if self._unanswered and time.monotonic() - self._unanswered[0].at > patience_seconds:
            where = self._connection.address.display()
            raise ConnectFailed(f"Redis at {where} has not answered for {patience_seconds:g} s.")

    def finish(self, patience_seconds: float) -> None:
        """Writes all and waits for all answers, for each so long. Raises as `receive` and `check`."""
        self.flush()
        while self._unanswered:
            if not self._connection.readable():
                poll = select.poll()
                poll.register(self.fileno(), select.POLLIN)
                poll.poll(patience_seconds * 1000)
            self.check(patience_seconds)
            self.receive()
            self.flush()

    def reopen(self) -> None:
        """A new connection; repeats what was not answered. Raises ConnectFailed."""
        self._connection.reopen()
        self._known.clear()
        owed, self._unanswered = list(self._unanswered), deque()
        self._unsent = [sent for sent in owed if sent.repeat] + self._unsent
        for sent in owed:
            if not sent.repeat:
                sent.on_reply(None)
        self.flush()

    def _command(self, call: Call) -> Sequence[Argument]:
        """With its source the first time: a call that must be sent again could be overtaken by those behind it."""
        if call.name in self._known:
            return call.command
        self._known.add(call.name)
        return call.command_with_source

    def _answer(self) -> None:
        reply = self._connection.take()
        sent = self._unanswered.popleft()
        if isinstance(reply, NoScript):
            # Its scripts were flushed. Calls behind this one may be answered first.
            self._unanswered.append(sent)
            self._connection.send([sent.call.command_with_source])
        elif isinstance(reply, Unavailable):
            # Read-only after a failover, disk full, BUSY: it passes, and nothing may be forgotten until then.
            self._unanswered.appendleft(sent)
            raise ConnectFailed(str(reply)) from None
        elif isinstance(reply, PpssError):
            sent.on_reply(None)
            raise reply
        else:
            sent.on_reply(reply)
