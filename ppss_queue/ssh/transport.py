"""paramiko's side of a connection, less what it mixes up between threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import paramiko
from paramiko.common import MSG_CHANNEL_CLOSE

from ppss_queue.ssh.wire import Wire, leave_signals_alone

_WINDOW_BYTES = 4 << 20
"""In flight on one channel: 300 Mbit/s at 80 ms are 3 MB. More makes paramiko slower."""


class Transport(paramiko.Transport):
    """Its thread leaves signals to the main one."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire, default_window_size=_WINDOW_BYTES)  # type: ignore[arg-type]
        self._requesting = threading.Lock()

    def run(self) -> None:
        leave_signals_alone()
        super().run()

    def global_request(
        self, kind: str, data: Iterable[object] | None = None, wait: bool = True
    ) -> paramiko.Message | None:
        with self._requesting:  # paramiko mixes up the answers to several threads
            return super().global_request(kind, data, wait)

    def open_channel(self, *how: Any, **more: Any) -> paramiko.Channel:
        channel = super().open_channel(*how, **more)
        end_with_close(channel)
        return channel


def end_with_close(channel: paramiko.Channel) -> None:
    """Has nothing sent on the channel after its close; to be called before anything is sent."""
    channel.transport = _LastWord(channel.get_transport())  # type: ignore[assignment]


class _LastWord:
    """The transport of one channel.

    paramiko decides under the lock of a channel what to send, and sends it outside: the answer to a close of the server
    may come first, and sshd ends the whole connection for what follows (issues 1115 and 1705 of paramiko).
    """

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._is_said = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send_user_message(self, message: paramiko.Message) -> None:
        with self._lock:
            if not self._is_said:
                self._is_said = message.asbytes()[0] == MSG_CHANNEL_CLOSE
                self._transport._send_user_message(message)  # type: ignore[attr-defined]
