"""The node's side of the hello: wait for the line, and say what is wrong if none comes."""

from __future__ import annotations

import re
import time
from contextlib import suppress

import paramiko

from ppss_queue import __version__
from ppss_queue.errors import ConnectFailed
from ppss_queue.ssh.failures import SshRefused, is_lost
from ppss_queue.ssh.hello import NOISE_BYTES, OLDEST, PROTOCOL, START, Hello
from ppss_queue.ssh.target import Target

HELLO_SECONDS = 30.0
"""From the command to the hello: a server that reads its data from disk takes its time."""
_LINE_BYTES = 16 * 1024
_STATUS_SECONDS = 2.0
_NOT_FOUND = 127


def await_hello(channel: paramiko.Channel, service: str, target: Target) -> None:
    """Read up to the end of the hello, and no byte further. Raises ConnectFailed if the gate is not open."""
    channel.settimeout(HELLO_SECONDS)
    printed = bytearray()
    start = -1
    while start < 0 or not printed.endswith(b"\n"):
        try:
            byte = channel.recv(1)
        except TimeoutError:
            raise ConnectFailed(
                f"`ppss gate` on {target.host} has not greeted for {HELLO_SECONDS:g} s. See what keeps it: "
                f"ssh {target.given.display()} ppss server status"
            ) from None
        if not byte:
            raise _no_hello(channel, bytes(printed), service, target)
        printed += byte
        if start < 0 and printed.endswith(START):
            start = len(printed) - len(START)
        if len(printed) > NOISE_BYTES + _LINE_BYTES or (start < 0 and len(printed) > NOISE_BYTES):
            raise SshRefused(
                f"the login scripts of user '{target.user}' on {target.host} print without end, so `ppss gate` "
                "can't be heard. Let them print only on a terminal."
            )
    hello = Hello.decode(bytes(printed[start:]))
    if hello is None:
        raise _no_hello(channel, bytes(printed), service, target)
    _check(hello, service, target)


def _check(hello: Hello, service: str, target: Target) -> None:
    if not hello.oldest <= PROTOCOL <= hello.protocol and not OLDEST <= hello.protocol <= PROTOCOL:
        old, what = ("there", target.host) if hello.protocol < PROTOCOL else ("here", "this machine")
        raise SshRefused(
            f"{target.host} has PPSS {hello.version} (gate {hello.protocol}), this is {__version__} (gate {PROTOCOL}), "
            f"and they don't understand each other: the one {old} is too old. Upgrade PPSS on {what}."
        )
    if hello.error:
        kind = SshRefused if hello.exit_code == SshRefused.exit_code else ConnectFailed
        raise kind(f"{target.host}: {hello.error}")
    if hello.service != service:
        raise SshRefused(
            f"the key for {target.user}@{target.host} opens only `ppss gate {hello.service}` there, not {service}. "
            'Write command="ppss gate" before it in authorized_keys there.'
        )


def _no_hello(channel: paramiko.Channel, printed: bytes, service: str, target: Target) -> ConnectFailed:
    """The command ended without a hello."""
    deadline = time.monotonic() + _STATUS_SECONDS
    while not channel.exit_status_ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    status = channel.recv_exit_status() if channel.exit_status_ready() else -1
    complaint = b""
    with suppress(TimeoutError):
        channel.settimeout(0.0)
        complaint = channel.recv_stderr(4096)
    transport = channel.get_transport()
    if status < 0 and (transport is None or is_lost(transport)):
        return ConnectFailed(
            f"the SSH connection to {target.given.display()} was lost. See whether it still runs."
        )
    if status < 0:  # by a signal: out of memory, a shutdown
        return ConnectFailed(
            f"`ppss gate` on {target.host} was killed before it greeted. See what did that there."
        )
    if status == _NOT_FOUND:
        return SshRefused(
            f"PPSS is not installed for user '{target.user}' on {target.host}. Install it there so that "
            f"`ssh {target.given.display()} ppss --version` works, or make a link to it in ~/.local/bin."
        )
    if status < 0:
        return ConnectFailed(
            f"`ppss gate` on {target.host} was killed before it greeted. See what kills it there."
        )
    said = _last_line(complaint) or _last_line(printed)
    quoted = f' and says "{said}"' if said else ""
    return SshRefused(
        f"{target.host} does not open `ppss gate` to this key: what it runs ends with {status}{quoted}. If the key "
        'has a command in authorized_keys there, let it be command="ppss gate"; else see what is wrong: '
        f"ssh {target.given.display()} ppss gate {service}"
    )


def _last_line(text: bytes) -> str:
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return re.sub(r"[^\x20-\x7e -\U0010ffff]", "?", lines[-1])[:200] if lines else ""
