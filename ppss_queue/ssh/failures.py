"""What goes wrong with SSH, turned into ConnectFailed: one sentence with the host and what to do."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

import paramiko

from ppss_queue.errors import ConnectFailed, ExitCode
from ppss_queue.ssh.known_hosts import Entry, HostKey, Verdict
from ppss_queue.ssh.target import Target

LOST = (paramiko.SSHException, EOFError, OSError)
"""What using a connection raises that is lost."""


_ENDING_SECONDS = 1.0


def is_lost(transport: paramiko.Transport) -> bool:
    """Whether a connection of which a channel failed is lost: its thread closes all channels before it says so."""
    if transport.is_active():
        transport.join(_ENDING_SECONDS)
    return not transport.is_active()


class SshRefused(ConnectFailed):
    """It needs PPSS on the master, another version, or another setting there; a worker still tries again."""

    exit_code = ExitCode.CORRECT_INPUT


class NoMoreSessions(SshRefused):
    """As many commands as sshd allows run over this connection already; it is as good as ever."""


def not_reached(error: Exception, target: Target) -> ConnectFailed:
    """No connection came about."""
    place, given = target.place, target.given.display()
    if isinstance(error, socket.gaierror | UnicodeError):
        reason = error.strerror if isinstance(error, OSError) else "it can't be a name"
        return ConnectFailed(
            f"the host '{target.host}' of ssh://{given} is unknown ({reason}). Correct the address."
        )
    if isinstance(error, ConnectionRefusedError):
        return ConnectFailed(
            f"no SSH server listens at {place} (connection refused). Start sshd there, or correct host and port."
        )
    if isinstance(error, TimeoutError):
        return ConnectFailed(
            f"{place} did not answer SSH in time. Check host and port, and any firewall on the way."
        )
    return ConnectFailed(f"{place} can't be reached over SSH ({told(error)}). Check host, port and network.")


def not_ssh(error: Exception, target: Target) -> ConnectFailed:
    """Something answered, but no login was offered."""
    reason = told(error)
    if target.proxy_command:
        return ConnectFailed(
            f"the ProxyCommand `{target.proxy_command}` did not begin an SSH connection ({reason}). Correct it in "
            f"~/.ssh/config, and try: ssh {target.given.display()}"
        )
    return ConnectFailed(
        f"{target.place} did not begin an SSH connection ({reason}). Check host and port, and whether sshd there "
        "is too busy."
    )


def told(error: Exception) -> str:
    """What an error of paramiko or the system says, to be put between parentheses."""
    text = (error.strerror if isinstance(error, OSError) else "") or str(error)
    if text.startswith("Error reading SSH protocol banner"):
        return "it does not greet as SSH does, or hung up"
    return re.sub(r"\[Errno -?\d+\] ", "", text).strip().rstrip(".") or "it hung up"


def bad_host_key(verdict: Verdict, key: HostKey, other: Entry | None, target: Target) -> ConnectFailed:
    """The server is not known, or not the one that it was."""
    name, given = target.key_names[0], target.given.display()
    if verdict is Verdict.UNKNOWN:
        return ConnectFailed(
            f"host key of '{name}' is unknown ({key.fingerprint}). If that is right: ppss trust {given}"
        )
    if verdict is Verdict.REVOKED:
        return ConnectFailed(
            f"host key of '{name}' was revoked ({key.fingerprint}): somebody may be listening. Ask who runs that host."
        )
    return changed_key(key.fingerprint, other, target)


def changed_key(now: str, other: Entry | None, target: Target) -> ConnectFailed:
    """`now`: what the server showed."""
    name = target.key_names[0]
    where = f"; line {other.line} of {other.path} has {other.key.fingerprint}" if other else ""
    file = f" -f {other.path}" if other and other.path not in target.known_hosts[:1] else ""
    return ConnectFailed(
        f"host key of '{name}' has changed (now {now}{where}): somebody may be listening. If you know why it did: "
        f"ssh-keygen -R '{name}'{file}, then ppss trust {target.given.display()}"
    )


def no_key(target: Target, tried: Sequence[str], locked: Sequence[str]) -> ConnectFailed:
    """No key opened the door. `locked`: files whose passphrase is not known."""
    login = f"{target.user}@{target.host}"
    if locked:
        return ConnectFailed(
            f"the key '{locked[0]}' for {login} has a passphrase, and nobody can be asked for it here. "
            "Put it into an ssh-agent: ssh-add"
        )
    if not tried:
        return ConnectFailed(
            f"there is no SSH key on this machine to log in as {login}. Make one with ssh-keygen -t ed25519, and bring "
            f"it there: ssh-copy-id {target.given.display()}"
        )
    return ConnectFailed(
        f"{target.host} lets none of this machine's keys in as user '{target.user}' (tried: {', '.join(tried)}). "
        f"Correct the user, or bring a key there: ssh-copy-id {target.given.display()}"
    )


def too_many_keys(target: Target, tried: Sequence[str]) -> ConnectFailed:
    return ConnectFailed(
        f"{target.host} hung up after {len(tried)} keys. Name the right one in ~/.ssh/config: "
        f"Host {target.given.host}, with IdentityFile and IdentitiesOnly yes"
    )


def lost(target: Target, reason: str) -> ConnectFailed:
    return ConnectFailed(
        f"the SSH connection to {target.given.display()} was lost ({reason}). See whether that host still runs."
    )
