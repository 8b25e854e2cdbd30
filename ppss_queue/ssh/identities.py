"""The keys to log in with: those of the agent, then those of files."""

from __future__ import annotations

import base64
import getpass
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import paramiko

from ppss_queue.address import SshHost
from ppss_queue.ssh.target import Target

_KINDS: tuple[type[paramiko.PKey], ...] = (paramiko.Ed25519Key, paramiko.RSAKey, paramiko.ECDSAKey)
_PASSPHRASE_TRIES = 3


@dataclass(slots=True)
class Identities:
    """The keys of one host, kept for the next connection to it, so that nobody is asked twice."""

    target: Target
    works: bytes = b""
    """The public half of what the server let in, to be tried first the next time."""
    locked: list[str] = field(default_factory=list)
    """Files that need a passphrase which is not known."""
    hops: dict[SshHost, Identities] = field(default_factory=dict)
    """Those of the hosts on the way."""
    _unlocked: dict[str, paramiko.PKey] = field(default_factory=dict)
    _agent: paramiko.Agent | None = None

    def __iter__(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """Name and key, in the order in which `ssh` tries them; those that must be unlocked come last."""
        self.locked.clear()
        candidates = self._candidates()
        if self.works:
            candidates = iter(sorted(candidates, key=lambda found: found[1].asbytes() != self.works))
        seen: set[tuple[bytes, bool]] = set()
        for name, key in candidates:
            this = (key.asbytes(), key.public_blob is not None)
            if this not in seen:
                yield name, key
            seen.add(this)
        for path in list(self.locked):
            if (_public(path), False) in seen or (unlocked := self._ask(path)) is None:
                continue
            self.locked.remove(path)
            yield path, unlocked

    def of_hop(self, hop: Target) -> Identities:
        """The keys of a host on the way, kept with these."""
        return self.hops.setdefault(hop.given, Identities(hop))

    def close(self) -> None:
        """Let go of the agent."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    def _candidates(self) -> Iterator[tuple[str, paramiko.PKey]]:
        files = self.target.identity_files
        configured = {public for path in files if (public := _public(path))}
        held = list(self._of_agent())
        yield from ((name, key) for name, key in held if key.asbytes() in configured)
        if not self.target.identities_only:
            yield from ((name, key) for name, key in held if key.asbytes() not in configured)
        for path in files:
            key = self._unlocked.get(path)
            if key is None:
                try:
                    key = _load(path, None)
                except paramiko.PasswordRequiredException:
                    self.locked.append(path)
                    continue
            if key is not None:
                yield from self._with_certificates(path, key)

    def _of_agent(self) -> Iterator[tuple[str, paramiko.PKey]]:
        if not self.target.agent:
            return
        self.close()
        with suppress(paramiko.SSHException, OSError):  # no agent, or one that is gone
            self._agent = paramiko.Agent()
            for key in self._agent.get_keys():
                yield f"{key.comment or key.get_name()} of the agent", key

    def _with_certificates(self, path: str, key: paramiko.PKey) -> Iterator[tuple[str, paramiko.PKey]]:
        """The key with each certificate that it has; without one at last, as somebody may know it by itself."""
        for certificate in (f"{path}-cert.pub", *self.target.certificate_files):
            with suppress(paramiko.SSHException, OSError, ValueError):  # not there, or of another key
                key.load_certificate(certificate)
                yield certificate, key
                key.public_blob = None
        yield path, key

    def _ask(self, path: str) -> paramiko.PKey | None:
        """Unlock a file with a passphrase that is typed; None if nobody can be asked, or knows it."""
        if threading.current_thread() is not threading.main_thread():
            return None
        if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
            return None
        for _ in range(_PASSPHRASE_TRIES):
            typed = getpass.getpass(f"Passphrase for {path}: ", sys.stderr)
            if not typed:
                return None
            with suppress(paramiko.SSHException):  # it is wrong
                key = _load(path, typed)
                if key is not None:
                    self._unlocked[path] = key
                    return key
        return None


def _load(path: str, passphrase: str | None) -> paramiko.PKey | None:
    """The key of a file; None if there is none that paramiko understands.

    Raises paramiko.PasswordRequiredException, and paramiko.SSHException for a wrong passphrase.
    """
    if not os.path.isfile(path):
        return None
    wrong: paramiko.SSHException | None = None
    for kind in _KINDS:
        try:
            return kind.from_private_key_file(path, passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except (OSError, ValueError, IndexError):
            return None
        except paramiko.SSHException as error:  # another kind of key
            wrong = error
    if passphrase is not None and wrong is not None:
        raise wrong
    return None


def _public(path: str) -> bytes:
    """The public half, which lies beside a file; nothing if it does not."""
    try:
        with open(f"{path}.pub", encoding="utf-8") as file:
            fields = file.read(16384).split()
        return base64.b64decode(fields[1], validate=True)
    except (OSError, ValueError, IndexError):
        return b""
