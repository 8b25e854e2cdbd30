"""What Redis and sockets answer, turned into the errors of PPSS: one sentence with the address and what to do."""

from __future__ import annotations

import re
import socket

from ppss_queue.address import Address
from ppss_queue.errors import (
    ConnectFailed,
    ForeignData,
    NewerVersion,
    OutOfMemory,
    PpssError,
    ServiceFailed,
    Unavailable,
)

_ADVICE = {
    "BUSY": "is busy with a long script of some program, and refuses all else: try again later",
    "LOADING": "is still loading its data from disk: try again later",
    "MASTERDOWN": "is a replica that lost its master: give --url the address of the master",
    "MISCONF": "refuses changes because it can't write to its disk: free space there. It says",
    "NOPERM": "does not let this user do that: grant it in the ACL. It says",
    "NOREPLICAS": "refuses changes because too few replicas follow it (min-replicas-to-write): start one",
    "READONLY": "is a read-only replica: give --url the address of the master",
}
"""What follows "Redis at X" for a code; one that ends in "says" is followed by Redis's own text."""

_LASTING = ("NOPERM",)
"""Of these codes: what no waiting will change."""


class NoScript(ServiceFailed):
    """EVALSHA named a script that the server does not have (any more)."""


class StillLoading(Unavailable):
    """The server reads its data from disk; soon it will answer."""


def reply_failure(text: str, address: Address, maxmemory_bytes: int = 0) -> PpssError:
    """The error for an error reply; `maxmemory_bytes` is named when memory is out, 0 if unknown.

    Our own scripts reply `PPSS_NEWER text`, `PPSS_FOREIGN text` or `PPSS_... text`; these become
    NewerVersion, ForeignData and ServiceFailed with that text.
    """
    full_text = _without_place(text)
    code, _, text = full_text.partition(" ")
    where = f"Redis at {address.display()}"
    if code.startswith("PPSS_"):
        kinds: dict[str, type[PpssError]] = {"PPSS_NEWER": NewerVersion, "PPSS_FOREIGN": ForeignData}
        return kinds.get(code, ServiceFailed)(text)
    if code == "OOM":
        limit = f" (maxmemory {round(maxmemory_bytes / 2**20, 1):,g} MiB)" if maxmemory_bytes else ""
        return OutOfMemory(f"{where} is out of memory{limit}. Raise maxmemory and try again.")
    if code == "WRONGTYPE" or "value is not an integer" in text or "hash value is not" in text:
        place = address.display()
        return ForeignData(
            f"a key of PPSS at {place} holds data of another program. Remove it, or use another database."
        )
    if full_text.startswith("ACL failure in script"):
        code = "NOPERM"
    if code == "NOSCRIPT":
        return NoScript(f"{where} does not have a script of PPSS.")
    if advice := _ADVICE.get(code):
        kind = ServiceFailed if code in _LASTING else Unavailable
        return kind(f"{where} {advice}: {text}" if advice.endswith("says") else f"{where} {advice}.")
    return ServiceFailed(f"{where} answered with an error: {full_text}")


def login_failure(text: str, address: Address) -> PpssError:
    """The error for an error reply while we log in."""
    where = address.display()
    code = text.partition(" ")[0]
    if code == "LOADING":
        return StillLoading(f"Redis at {where} {_ADVICE[code]}.")
    if code in ("NOAUTH", "WRONGPASS") or (code == "ERR" and "AUTH" in text):
        return ConnectFailed(f"Redis at {where} {_login_advice(text)}.")
    if "max number of clients" in text:
        return ConnectFailed(_unusable(where, text.removeprefix("ERR ")))
    return reply_failure(text, address)


def connection_failure(error: Exception, address: Address, *, opened: bool) -> ConnectFailed:
    """The error for a connection that did not come about, or was lost after it was `opened`."""
    where = address.display()
    reason = (error.strerror if isinstance(error, OSError) else "") or str(error).rstrip(".")
    if type(error).__name__ == "ProtocolError":
        return ConnectFailed(f"what listens at {where} does not talk like Redis. Correct the address.")
    if opened:
        return ConnectFailed(
            f"the connection to {where} was lost ({reason}). See whether Redis still runs there."
        )
    return ConnectFailed(_unreachable(error, where, reason))


def _unreachable(cause: BaseException, where: str, reason: str) -> str:
    """Why no connection came about."""
    import ssl

    if isinstance(cause, ConnectionRefusedError | FileNotFoundError):
        what = "no such socket" if isinstance(cause, FileNotFoundError) else "connection refused"
        return (
            f"nothing listens at {where} ({what}). "
            "Start Redis there, or leave --url out to use this user's own server."
        )
    if isinstance(cause, PermissionError):
        return (
            f"this user may not open {where} (permission denied). Use its owner's account or another address."
        )
    if isinstance(cause, socket.gaierror | UnicodeError):
        return f"the host of {where} is unknown ({reason}). Correct the address."
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {where} is not trusted ({cause.verify_message}). "
            "If an authority of your own signed it, name its file in SSL_CERT_FILE."
        )
    if isinstance(cause, ssl.SSLError):
        return f"{where} does not talk TLS as expected ({reason}). If it has no TLS, write redis://."
    if isinstance(cause, TimeoutError):
        tls = ", whether it talks TLS (else redis://)" if where.startswith("rediss:") else ""
        return f"{where} did not answer in time. Check host and port{tls}, and any firewall on the way."
    return _unusable(where, reason)


def _unusable(where: str, reason: str) -> str:
    return f"{where} can't be used ({reason}). Check that Redis runs there, and whether it wants TLS (rediss://)."


def _login_advice(reason: str) -> str:
    """What is wrong with user and password, from the words of Redis."""
    if "without any password configured" in reason or "no password is set" in reason:
        return "has no password, but the address names one: leave it out"
    if "required" in reason:
        return "wants a password: write it into the address, as in redis://:PASSWORD@HOST:PORT"
    return "refuses this user or password: correct them in the address"


def _without_place(text: str) -> str:
    """An error reply, from its code on, without the place in a script."""
    # Redis 6.2 puts what a script met behind "ERR ... @user_script:1: ", 7.0 puts "script: ..." at its end.
    text = re.sub(r"^.*@user_script: ?\d+: -?", "", text, flags=re.DOTALL)
    text = re.sub(r" script: .{0,50}on @user_script:\d+\.$", "", text)
    text = re.sub(r", with args beginning with: .*$", "", text)  # of an unknown command
    return text.removeprefix("ERR ")
