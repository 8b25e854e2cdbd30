"""`ppss trust`: what a host's keys are, and writing them down."""

from __future__ import annotations

from dataclasses import dataclass

from ppss_queue.address import SshHost
from ppss_queue.errors import BadInput
from ppss_queue.ssh import failures, known_hosts
from ppss_queue.ssh.known_hosts import HostKey, KnownHosts, Verdict
from ppss_queue.ssh.login import host_keys
from ppss_queue.ssh.target import Target, resolve


@dataclass(frozen=True, slots=True)
class Shown:
    """The keys that a host shows."""

    target: Target
    keys: tuple[HostKey, ...]
    known: tuple[HostKey, ...]
    """Those of them that are trusted already; if any is, the host is."""

    @property
    def name(self) -> str:
        """What known_hosts calls the host."""
        return self.target.key_names[0]

    @property
    def file(self) -> str:
        """Where new keys are written to."""
        return self.target.known_hosts[0]

    def trust(self) -> None:
        """Write the keys down. Raises MachineFailed."""
        known_hosts.add(self.file, self.name, self.keys, hashed=self.target.hash_known_hosts)


def look(host: SshHost) -> Shown:
    """Ask the host for its keys, through ProxyJump or ProxyCommand if need be.

    Raises ConnectFailed, also if the host is known by other keys or shows a revoked one, and BadInput.
    """
    target = resolve(host)
    if not target.known_hosts:
        raise BadInput("UserKnownHostsFile in the configuration of ssh names no file to write a host key to.")
    keys = tuple(host_keys(target))
    files = KnownHosts((*target.known_hosts, *target.system_known_hosts))
    verdicts = {key: files.judge(target.key_names, key) for key in keys}
    other = files.other(target.key_names)
    known = tuple(key for key in keys if verdicts[key] is Verdict.KNOWN)
    for key in keys:
        if verdicts[key] is Verdict.REVOKED:
            raise failures.bad_host_key(Verdict.REVOKED, key, other, target)
        same_kind = key.kind in files.kinds(target.key_names)
        if verdicts[key] is Verdict.CHANGED and (same_kind or not known):
            raise failures.bad_host_key(Verdict.CHANGED, key, other, target)
    return Shown(target, keys, known)
