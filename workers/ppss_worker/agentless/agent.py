"""The agent of a node, as the worker sees it: started over SSH, and again after each loss, by a thread of its own.

The thread only connects and sends. What the agent says is heard by the listener, which all nodes share.
"""

from __future__ import annotations

import os
import queue
import re
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ppss_queue.errors import BadInput, ConnectFailed, PpssError
from ppss_queue.ssh.command import RemoteCommand
from ppss_queue.ssh.failures import NoMoreSessions
from ppss_queue.ssh.line import Line
from ppss_queue.ssh.wire import leave_signals_alone
from ppss_worker.agentless.listener import Listener
from ppss_worker.agentless.protocol import beat_reply, fields
from ppss_worker.file_line import Backoff

LIMIT_SECONDS = 18.0
"""What is left of a lease of 30 s that was renewed in time, less the time that killing takes."""
HELLO_SECONDS = 60.0
"""For bash to start, and to end what an earlier session left."""
_END_SECONDS = 8.0
"""For an agent that was told to end: its guard waits 2 s between SIGTERM and SIGKILL."""
_PAUSE_SECONDS = 0.05
_PAUSE_AT_MOST_SECONDS = 3.0
_NOISE_BYTES = 64 * 1024
"""What login scripts may print before the agent greets."""
_PARTS = ("node_agent.sh", "node_guard.sh")


def program() -> bytes:
    """What bash on the node is given, without its comments: it reads byte by byte."""
    text = b"".join(Path(__file__).with_name(part).read_bytes() for part in _PARTS)
    return re.sub(rb"(?m)^ *#.*\n", b"", text)


class Session:
    """One life of an agent."""

    def __init__(self, command: RemoteCommand, hello: Sequence[bytes], rest: bytes, dies_at: float) -> None:
        self.command = command
        self.directory = os.fsdecode(hello[1])
        """On the node; gone with the session."""
        self.cores = int(hello[2])
        self.is_alone = hello[3] == b"1"
        """No command of an earlier session runs any more."""
        self.memory_bytes = int(hello[4]) * 1024
        self.dies_at = dies_at
        """When its guard ends it, time.monotonic(), unless it hears another answer."""
        self.load = ""
        """Of one minute, if the node has told it."""
        self.is_gone = False
        """The node has said that all commands are dead."""
        self.requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.rest = rest
        """The begin of a line."""


class Agent:
    """All callbacks are handed to `post`, which has them called in the main thread."""

    def __init__(
        self,
        name: str,
        line: Line,
        scratch: str,
        nice: int,
        listener: Listener,
        post: Callable[[Callable[[], None]], None],
        *,
        tells_gpus: bool,
    ) -> None:
        """`tells_gpus`: it says `gpus` as soon as it knows."""
        self.name = name
        self.limit_seconds = LIMIT_SECONDS
        """How long its commands may live after a beat that was answered."""
        self._line = line
        self._scratch = scratch
        self._nice = nice
        self._tells_gpus = tells_gpus
        self._listener = listener
        self._post = post
        self._key = os.urandom(6).hex()
        self._sessions = 0
        self._closing = threading.Event()
        self._session: Session | None = None
        self._thread = threading.Thread(target=self._keep, name=f"node {name}", daemon=True)
        self.on_up: Callable[[Session, Sequence[str]], None] = lambda session, accepted: None
        self.on_failed: Callable[[PpssError], None] = lambda error: None
        self.on_said: Callable[[Session, Sequence[Sequence[bytes]]], None] = lambda session, said: None
        self.on_down: Callable[[Session], None] = lambda session: None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Has it end, and all trace of it; see `wait`."""
        self._closing.set()
        session = self._session
        if session is not None:
            session.requests.put(None)

    def wait(self, seconds: float) -> None:
        """For its end, at most so long."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        self._line.close()

    def open_command(self, session: Session, text: str) -> RemoteCommand:
        """Another command over the connection of a session. Raises ConnectFailed.

        Ends of earlier ones may still be on their way, so sshd is asked again that opens no more.
        """
        pause = _PAUSE_SECONDS
        while True:
            try:
                return RemoteCommand(self._line, text, session.command)
            except NoMoreSessions:
                if pause > _PAUSE_AT_MOST_SECONDS:
                    raise
            time.sleep(pause)
            pause *= 2

    # The thread

    def _keep(self) -> None:
        leave_signals_alone()
        backoff = Backoff()
        while not self._closing.is_set():
            try:
                session = self._begin()
            except PpssError as error:
                self._post(partial(self.on_failed, error))
                backoff.wait(self._closing.is_set)
                continue
            backoff.reset()
            self._session = session
            accepted, self._line.accepted = self._line.accepted, []
            self._post(partial(self.on_up, session, accepted))
            self._listener.add(session.command, partial(self._hear, session))
            self._send(session)
            self._listener.drop(session.command)

    def _begin(self) -> Session:
        """Starts one. Raises ConnectFailed, BadInput."""
        self._sessions += 1
        nonce = os.urandom(8).hex()
        limit_seconds = self.limit_seconds
        limit = f"{limit_seconds * 100:.0f}"
        words = [nonce, self._key, str(self._sessions), limit, self._scratch, str(self._nice)]
        words.append(str(int(self._tells_gpus)))
        command = RemoteCommand(self._line, "bash")
        try:
            command.send(program() + os.fsencode(shlex.join(["p_agent", *words])) + b"\n")
            hello, rest = self._await_hello(command, nonce.encode())
        except BaseException:
            command.close()
            raise
        return Session(command, hello, rest, time.monotonic() + limit_seconds)

    def _await_hello(self, command: RemoteCommand, nonce: bytes) -> tuple[Sequence[bytes], bytes]:
        """The fields of its first line, and what came behind that. Raises ConnectFailed, BadInput."""
        printed = b""
        start = b"\n" + nonce + b" "
        deadline = time.monotonic() + HELLO_SECONDS
        while True:
            _, found, rest = (b"\n" + printed).partition(start)
            line, ended, behind = rest.partition(b"\n")
            if found and ended:
                break
            data = command.read(max(0.1, deadline - time.monotonic()))
            printed += data
            if not data:
                raise self._no_bash(command)
            if len(printed) > _NOISE_BYTES:
                raise BadInput(f"the login scripts of node {self.name} print without end. Let them be quiet.")
        hello = fields(line)
        if hello[0] == b"hello":
            return hello, behind
        raise BadInput(self._refusal(*(os.fsdecode(part) for part in hello[1:])))

    def _refusal(self, kind: str, what: str) -> str:
        if kind == "bash":
            return f"node {self.name} has bash {what}, which is too old to run items. Install bash 4 or newer there."
        if kind == "missing":
            return f"node {self.name} can't run items without{what}. Install what is missing there."
        where = self._scratch or "the home directory"
        return (
            f"node {self.name} can't keep files in {where} ({what}). Name another scratch directory for it."
        )

    def _no_bash(self, command: RemoteCommand) -> PpssError:
        status = command.wait()
        if status == 127:
            return BadInput(f"node {self.name} has no bash. Install it there.")
        said = command.last_complaint
        quoted = f', and said "{said}"' if said else ""
        return ConnectFailed(f"bash on node {self.name} ended with {status} before it began{quoted}.")

    def _send(self, session: Session) -> None:
        """Until the session is over, by whatever cause."""
        while (request := session.requests.get()) is not None:
            with suppress(ConnectFailed):  # the listener tells
                session.command.send(request)
        if self._closing.is_set():
            session.command.end_input()
            deadline = time.monotonic() + _END_SECONDS
            while not session.command.is_over and time.monotonic() < deadline:
                time.sleep(0.02)

    # The listener's thread

    def _hear(self, session: Session) -> bool:
        """Takes in what the agent said; whether it may say more."""
        said = []
        while data := session.command.take():
            *lines, session.rest = (session.rest + data).split(b"\n")
            now = time.monotonic()
            for line in lines:
                parts = fields(line)
                if parts[0] == b"beat":
                    limit_seconds = self.limit_seconds
                    session.dies_at = now + limit_seconds
                    session.load = parts[2].decode() if len(parts) > 2 else ""
                    session.requests.put(beat_reply(parts[1], limit_seconds))
                elif parts[0] == b"gone":
                    session.is_gone = True
                else:
                    said.append(parts)
        if said:
            self._post(partial(self.on_said, session, said))
        if not session.command.is_over:
            return True
        self._post(partial(self.on_down, session))
        session.requests.put(None)
        return False
