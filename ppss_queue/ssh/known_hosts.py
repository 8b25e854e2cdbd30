"""What known_hosts files say of a host: which keys are its own, and which were revoked."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from ppss_queue.errors import MachineFailed

SSH_PORT = 22


class Verdict(Enum):
    """What the files say of a key."""

    KNOWN = auto()
    UNKNOWN = auto()
    """They have no key of this host."""
    CHANGED = auto()
    """They have others, but not this one."""
    REVOKED = auto()


@dataclass(frozen=True, slots=True)
class HostKey:
    """A key that a server showed, or that a line has."""

    kind: str
    """ssh-ed25519, ecdsa-sha2-nistp256, ssh-rsa ..."""
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As `ssh` shows it: ED25519 SHA256:..."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")
        return f"{self.short_kind} SHA256:{digest}"

    @property
    def short_kind(self) -> str:
        name = self.kind.removeprefix("ssh-")
        return "ECDSA" if name.startswith("ecdsa") else name.upper()


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a known_hosts file."""

    path: str
    line: int
    marker: str
    """@revoked, @cert-authority or nothing."""
    names: str
    key: HostKey

    def is_for(self, name: str) -> bool:
        """Whether the line is about the host of this name."""
        if self.names.startswith("|1|"):
            return _hashed(name, self.names.split("|")[2]) == self.names
        found = False
        for pattern in self.names.lower().split(","):
            if _matches(pattern.removeprefix("!"), name):
                if pattern.startswith("!"):
                    return False
                found = True
        return found


class KnownHosts:
    """The lines of all files, in their order; files that can't be read have none."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._entries = [entry for path in paths for entry in _read(path)]

    def kinds(self, names: Sequence[str]) -> list[str]:
        """Kinds of keys that are known for the host, without repetition."""
        return list(dict.fromkeys(entry.key.kind for entry in self._of(names)))

    def other(self, names: Sequence[str]) -> Entry | None:
        """The first line with a key of the host, to be named where the server showed another one."""
        return next(iter(self._of(names)), None)

    def judge(self, names: Sequence[str], key: HostKey) -> Verdict:
        """What is known of a key. `names`: those of the host, of which the first that is known counts."""
        revoked = (entry for entry in self._entries if entry.marker == "@revoked" and entry.key == key)
        if any(entry.is_for(name) for entry in revoked for name in names):
            return Verdict.REVOKED
        for name in names:
            known = self._of([name])
            if any(entry.key == key for entry in known):
                return Verdict.KNOWN
            if known and name == names[0]:  # as in OpenSSH, a name without the port can only confirm
                return Verdict.CHANGED
        return Verdict.UNKNOWN

    def _of(self, names: Sequence[str]) -> list[Entry]:
        plain = [entry for entry in self._entries if not entry.marker]
        for name in names:
            if found := [entry for entry in plain if entry.is_for(name)]:
                return found
        return []


def names_of(host: str, port: int) -> tuple[str, ...]:
    """The names under which a host is known, the one to be written first."""
    host = host.lower()
    return (host,) if port == SSH_PORT else (f"[{host}]:{port}", host)


def add(path: str, name: str, keys: Sequence[HostKey], *, hashed: bool) -> None:
    """Append keys of a host; the file and its directory are made for this user alone if they are missing.

    Raises MachineFailed if it can't be written.
    """
    file = Path(path)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(descriptor, "rb+") as opened:
            size = opened.seek(0, os.SEEK_END)
            torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
            lines = "".join(f"{_written(name, hashed)} {key.kind} {_base64(key.blob)}\n" for key in keys)
            opened.write(("\n" if torn else "").encode() + lines.encode())
    except OSError as error:
        raise MachineFailed(
            f"the host key can't be written to '{path}' ({error.strerror or error}). Mend that, then try again."
        ) from None


def _written(name: str, hashed: bool) -> str:
    return _hashed(name, _base64(os.urandom(20))) if hashed else name


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _hashed(name: str, salt: str) -> str:
    try:
        key = base64.b64decode(salt)
    except binascii.Error:
        return ""
    return f"|1|{salt}|{_base64(hmac.new(key, name.encode('utf-8', 'surrogateescape'), 'sha1').digest())}"


def _matches(pattern: str, name: str) -> bool:
    """With * and ? only: brackets are part of a name with a port."""
    regular = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(regular, name, re.DOTALL) is not None


def _read(path: str) -> Iterator[Entry]:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        try:
            blob = base64.b64decode(fields[2], validate=True)
        except binascii.Error:
            continue
        yield Entry(path, number, marker, fields[0], HostKey(fields[1], blob))
