"""From a target to an SSH connection: reach it, know its host key, log in."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from ppss_queue.errors import BadInput, ConnectFailed
from ppss_queue.ssh import failures, known_hosts
from ppss_queue.ssh.identities import Identities
from ppss_queue.ssh.known_hosts import HostKey, KnownHosts, Verdict
from ppss_queue.ssh.target import Target, resolve
from ppss_queue.ssh.transport import Transport
from ppss_queue.ssh.wire import ASK_SECONDS, Stream, Wire, connect, leave_signals_alone, run_proxy

LOGIN_SECONDS = 15.0
"""For each step of the login; a busy sshd takes seconds for its keys."""
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
"""GCM first: it is several times faster than paramiko's own first choice."""
_KEY_KINDS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
"""Kinds of host keys, with what a server is asked for to show one."""
_HOPS_AT_MOST = 8


@dataclass(frozen=True, slots=True)
class Session:
    """An SSH connection that is logged in, and those to the hosts on the way."""

    transport: paramiko.Transport
    hops: tuple[Session, ...] = ()
    accepted: tuple[str, ...] = ()
    """What is to be said of keys that were not known before, those of hosts on the way too."""

    def close(self) -> None:
        """End it, and the hops after it."""
        self.transport.close()
        for hop in self.hops:
            hop.close()


def log_in(target: Target, identities: Identities, *, accept_new: bool, depth: int = 0) -> Session:
    """A connection to the target, which notices by itself when the line is dead. Raises ConnectFailed, BadInput.

    `accept_new`: a host of which nothing is known is trusted from now on; a changed key never is.
    """
    known = KnownHosts((*target.known_hosts, *target.system_known_hosts))
    session = _shake_hands(target, known, identities, depth, accept_new=accept_new)
    try:
        accepted = _check_host_key(
            session.transport, target, known, accept_new=accept_new or target.accept_new
        )
        _authenticate(session.transport, target, identities)
        threading.Thread(target=_keep_asking, args=[session.transport], name="ssh-ask", daemon=True).start()
    except BaseException:
        session.close()
        raise
    finally:
        identities.close()
    return replace(session, accepted=(*(text for hop in session.hops for text in hop.accepted), *accepted))


def host_keys(target: Target) -> list[HostKey]:
    """All keys that the server shows, without a login there. Raises ConnectFailed, BadInput."""
    found, failure, identities = [], None, Identities(target)
    for kind in _KEY_KINDS:
        try:
            session = _shake_hands(target, None, identities, 0, accept_new=False, kinds=[kind])
        except _NoSuchKey as error:
            failure = error
            continue
        found.append(_shown(session.transport))
        session.close()
    if failure and not found:
        raise failure
    return found


class _NoSuchKey(ConnectFailed):
    """The server has no host key of the kinds that it was asked for."""


def _shake_hands(
    target: Target,
    known: KnownHosts | None,
    identities: Identities,
    depth: int,
    *,
    accept_new: bool,
    kinds: Sequence[str] = (),
) -> Session:
    """An encrypted connection; whose host key is not looked at yet."""
    _silence_logging()
    wanted = kinds or [kind for kind in _KEY_KINDS if known and kind in known.kinds(target.key_names)]
    stream, hops = _reach(target, identities, depth, accept_new=accept_new)
    transport = Transport(Wire(stream))
    session = Session(transport, hops)
    try:
        options = transport.get_security_options()
        options.ciphers = _CIPHERS
        options.key_types = [name for kind in wanted or _KEY_KINDS for name in _KEY_KINDS[kind]]
        transport.use_compression(target.compress)
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = LOGIN_SECONDS
        try:
            transport.start_client(timeout=LOGIN_SECONDS)
            transport.get_remote_server_key()  # raises if the time was up
        except IncompatiblePeer as error:
            if not wanted or "host key" not in str(error):
                raise failures.not_ssh(error, target) from None
            asked = "/".join(HostKey(kind, b"").short_kind for kind in wanted)
            other = known.other(target.key_names) if known else None
            raise _NoSuchKey(str(failures.changed_key(f"it has no {asked} key", other, target))) from None
        except failures.LOST as error:
            raise failures.not_ssh(error, target) from None
    except BaseException:
        session.close()
        raise
    return session


def _reach(
    target: Target, identities: Identities, depth: int, *, accept_new: bool
) -> tuple[Stream, tuple[Session, ...]]:
    """The bytes to and from the server, and the sessions with hosts on the way."""
    if depth > _HOPS_AT_MOST:
        raise BadInput(
            f"ProxyJump in the configuration of ssh leads in a circle at '{target.given.host}'. Correct it."
        )
    try:
        if target.proxy_command:
            return run_proxy(target), ()
        if not target.jumps:
            return connect(target), ()
    except (OSError, UnicodeError) as error:
        raise failures.not_reached(error, target) from None
    *before, last = target.jumps
    hop = resolve(last)
    if before:
        hop = hop.after(tuple(before))
    session = log_in(hop, identities.of_hop(hop), accept_new=accept_new, depth=depth + 1)
    try:
        channel = session.transport.open_channel(
            "direct-tcpip", (target.host, target.port), ("127.0.0.1", 0), timeout=LOGIN_SECONDS
        )
    except failures.LOST as error:
        session.close()
        reason = error.text if isinstance(error, paramiko.ChannelException) else str(error)
        raise failures.not_reached(OSError(0, f"from {hop.given.display()}: {reason}"), target) from None
    return channel, (session,)


def _shown(transport: paramiko.Transport) -> HostKey:
    key = transport.get_remote_server_key()
    return HostKey(key.get_name(), key.asbytes())


def _check_host_key(
    transport: paramiko.Transport, target: Target, known: KnownHosts, *, accept_new: bool
) -> tuple[str, ...]:
    key, name = _shown(transport), target.key_names[0]
    verdict = known.judge(target.key_names, key)
    if verdict is Verdict.KNOWN:
        return ()
    if verdict is not Verdict.UNKNOWN or not accept_new or not target.known_hosts:
        raise failures.bad_host_key(verdict, key, known.other(target.key_names), target)
    known_hosts.add(target.known_hosts[0], name, [key], hashed=target.hash_known_hosts)
    return (f"'{name}' was not known and is trusted from now on ({key.fingerprint}).",)


def _authenticate(transport: paramiko.Transport, target: Target, identities: Identities) -> None:
    tried: list[str] = []
    for name, key in identities:
        tried.append(name.replace(os.path.expanduser("~") + "/", "~/"))
        try:
            more = transport.auth_publickey(target.user, key)
        except paramiko.BadAuthenticationType as error:
            raise ConnectFailed(
                f"{target.host} takes no keys from user '{target.user}', only {', '.join(error.allowed_types)}. "
                "Allow them in its sshd_config (PubkeyAuthentication), or correct the user."
            ) from None
        except (*failures.LOST, ValueError) as error:
            if not transport.is_active():
                if "timeout" in str(error).lower():
                    raise failures.not_reached(TimeoutError(), target) from None
                if isinstance(error, paramiko.AuthenticationException):
                    raise failures.too_many_keys(target, tried) from None
                raise failures.lost(target, f"{tried[-1]}: {failures.told(error)}") from None
            continue
        if more:
            raise ConnectFailed(
                f"{target.host} wants more than a key from user '{target.user}' ({', '.join(more)}). "
                "Allow a login by key alone there, as no program can answer that."
            )
        identities.works = key.asbytes()
        return
    raise failures.no_key(target, tried, identities.locked)


def _keep_asking(transport: paramiko.Transport) -> None:
    """Makes the server say something now and then, so that its silence means something."""
    leave_signals_alone()
    pause = threading.Event()
    while transport.is_active():
        with suppress(*failures.LOST):
            transport.global_request("keepalive@openssh.com", wait=True)  # no server knows it: it says no
        pause.wait(ASK_SECONDS)


def _silence_logging() -> None:
    """All that paramiko has to say comes as exceptions, too; without a handler it would print tracebacks."""
    logger = logging.getLogger("paramiko")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
