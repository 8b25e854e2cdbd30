"""This machine as its nodes reach it: who they log in as, by which host keys they know it, what their keys may do."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import site
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from ppss_queue.address import Address, SshHost
from ppss_queue.errors import BadInput, ConnectFailed
from ppss_queue.nodes.home import MASTER_ALIAS, master_id
from ppss_queue.server_place import default_place
from ppss_queue.ssh.known_hosts import SSH_PORT, HostKey

LOOPBACK = "127.0.0.1"
_NO_PORT = 1
"""Nothing listens there: for as long as no way is open."""
_SSHD = Path("/etc/ssh")


@dataclass(frozen=True, slots=True)
class MasterHome:
    """What a node must know of this master, and what this master grants it."""

    id: str
    user: str
    host: str
    """Where nodes reach it; empty: the address from which it came to the node."""
    port: int
    host_keys: tuple[str, ...]
    """`ssh-ed25519 AAAA...`"""
    grant: str
    """The options of a node's key in `authorized_keys`."""

    @classmethod
    def of(cls, address: Address, reached_at: SshHost | None = None) -> MasterHome:
        """`address`: the queue's, as it is known here. `reached_at`: where nodes find this machine's sshd.

        Raises BadInput if no node can reach that queue by way of this machine, ConnectFailed if no sshd runs here.
        """
        account = pwd.getpwuid(os.geteuid())
        at = reached_at or SshHost("")
        if at.user not in ("", account.pw_name):
            raise BadInput(
                f"nodes log in here as you, '{account.pw_name}', not as '{at.user}': only your own authorized_keys "
                "can be written. Leave the user out."
            )
        port = at.port or SSH_PORT
        return cls(
            id=master_id(),
            user=account.pw_name,
            host=at.host,
            port=port,
            host_keys=_host_keys(port),
            grant=_grant(address),
        )

    @property
    def sshd(self) -> tuple[str, int]:
        """Where this machine itself finds its sshd."""
        return self.host or LOOPBACK, self.port

    def ssh_config(self, came_from: str, key: str, known_hosts: str, way: str = "") -> str:
        """The node's configuration of ssh. `came_from`: this machine's address as the node sees it.

        `way`: a file there that tells at which port of the node the way begins that this machine holds open.
        """
        host = LOOPBACK if way else self.host or came_from
        if not host:
            raise BadInput("where a node finds this machine is not known. Say it: --master HOST[:PORT]")
        settings = {
            **({"Include": way} if way else {}),
            "HostName": host,
            "User": self.user,
            "Port": _NO_PORT if way else self.port,
            "IdentityFile": key,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "HostKeyAlias": MASTER_ALIAS,
            "UserKnownHostsFile": known_hosts,
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
        }
        return f"Host {MASTER_ALIAS}\n" + "".join(f"    {name} {value}\n" for name, value in settings.items())

    @property
    def known_hosts(self) -> str:
        return "".join(f"{MASTER_ALIAS} {key}\n" for key in self.host_keys)


def worker_url(address: Address) -> str:
    """What a worker of a node takes for `--url`; with the password of a Redis, if it has one."""
    if _is_own_server(address):
        return f"ssh://{MASTER_ALIAS}"
    _check_reachable(address)
    text = replace(address, password="").display()
    if not address.password:
        return f"ssh://{MASTER_ALIAS}/{text}"
    scheme, _, rest = text.partition("://")
    location = rest.rpartition("@")[2]
    user, password = (
        quote(part, "", errors="surrogateescape") for part in (address.username, address.password)
    )
    return f"ssh://{MASTER_ALIAS}/{scheme}://{user}:{password}@{location}"


def _is_own_server(address: Address) -> bool:
    return address.scheme == "unix" and address.path == os.fspath(default_place().socket)


def _check_reachable(address: Address) -> None:
    if address.via is not None:
        raise BadInput(
            f"nodes get their key for this machine, but the queue is at {address.display()}. Deploy from there."
        )
    if address.scheme not in ("redis", "rediss"):
        raise BadInput(
            f"nodes can't reach {address.display()}. Give the port of that Redis (redis://HOST:PORT), or leave "
            "--url out to use this user's own server."
        )


def _grant(address: Address) -> str:
    if _is_own_server(address):
        return f'restrict,command="{_in_quotes(_gate_command(os.environ))}"'
    _check_reachable(address)
    ((host, port),) = address.hosts
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f'restrict,port-forwarding,permitopen="{place}",command="internal-sftp"'


def _gate_command(environment: Mapping[str, str]) -> str:
    """`ppss gate` as sshd's shell executes it: with no PATH, and without what was set in this shell alone."""
    kept = [
        f"{name}={environment[name]}"
        for name in ("PPSS_STATE_DIR", "XDG_STATE_HOME")
        if environment.get(name)
    ]
    return shlex.join([*(["env", *kept] if kept else []), _own_program(), "gate"])


def _own_program() -> str:
    """The `ppss` that belongs to the code that runs here. Raises BadInput."""
    scripts = [Path(sysconfig.get_path("scripts")) / "ppss", Path(site.getuserbase()) / "bin" / "ppss"]
    for path in scripts:
        if os.access(path, os.X_OK):
            return os.fspath(path)
    if found := shutil.which("ppss"):
        return os.path.abspath(found)
    raise BadInput("there is no program 'ppss' that nodes could start here. Install PPSS with pip or pipx.")


def _in_quotes(command: str) -> str:
    """As sshd reads an option: only a quote is special."""
    if "\n" in command:
        raise BadInput(
            "the path of the state directory or of ppss has a line break. Set PPSS_STATE_DIR to another."
        )
    return command.replace('"', '\\"')


def _host_keys(port: int) -> tuple[str, ...]:
    """Those of this machine's sshd: what it has in its files, else what it shows over loopback."""
    found = []
    for path in sorted(_SSHD.glob("ssh_host_*_key.pub")):
        with suppress(OSError):
            words = path.read_text(encoding="ascii", errors="replace").split()
            found += [" ".join(words[:2])] if len(words) >= 2 else []
    return tuple(found) or tuple(map(_as_text, _asked(port)))


def _asked(port: int) -> list[HostKey]:
    from ppss_queue.ssh.login import host_keys
    from ppss_queue.ssh.target import resolve

    try:
        return host_keys(resolve(SshHost(LOOPBACK, port=port)))
    except ConnectFailed as error:
        raise ConnectFailed(f"nodes need an sshd on this machine: {error}") from None


def _as_text(key: HostKey) -> str:
    import base64

    return f"{key.kind} {base64.b64encode(key.blob).decode()}"
