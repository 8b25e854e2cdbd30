"""What an ssh:// address means on this machine: ~/.ssh/config and /etc/ssh/ssh_config say it, as for `ssh`.

PPSS_SSH_CONFIG names a file that counts instead of both, as `ssh -F` does.
"""

from __future__ import annotations

import getpass
import glob
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import paramiko

from ppss_queue.address import SshHost
from ppss_queue.errors import BadInput
from ppss_queue.ssh.known_hosts import SSH_PORT, names_of

_USER_CONFIG = "~/.ssh/config"
_SYSTEM_CONFIG = "/etc/ssh/ssh_config"
_INCLUDES_AT_MOST = 16
"""Deep; as in OpenSSH."""
_YES = ("yes", "true")
_DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_rsa", "~/.ssh/id_ecdsa")


@dataclass(frozen=True, slots=True)
class Target:
    """All that a connection needs. Paths are absolute."""

    given: SshHost
    """As it was typed, for messages."""
    host: str
    port: int
    user: str
    key_names: tuple[str, ...]
    """What known_hosts calls it; the first is what a new key is written for."""
    known_hosts: tuple[str, ...]
    """The user's files, of which the first gets new keys."""
    system_known_hosts: tuple[str, ...]
    hash_known_hosts: bool
    accept_new: bool
    identity_files: tuple[str, ...]
    identities_only: bool
    certificate_files: tuple[str, ...]
    agent: bool
    jumps: tuple[SshHost, ...]
    """Hosts on the way, from here to there."""
    proxy_command: str
    compress: bool

    @property
    def place(self) -> str:
        """host:port"""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def after(self, jumps: tuple[SshHost, ...]) -> Target:
        """The same, but reached by way of these hosts."""
        return replace(self, jumps=jumps, proxy_command="")


def resolve(given: SshHost) -> Target:
    """Look the host up in the configuration of ssh. Raises BadInput if that can't be understood."""
    config = _configuration()
    try:
        found = config.lookup(given.host)
    except Exception as error:  # KeyError, ValueError, what `Match exec` raises: nothing of it is documented
        raise BadInput(
            f"the configuration of ssh for '{given.host}' can't be used ({error}). Correct it."
        ) from None
    options: Mapping[str, str] = {name: value for name, value in found.items() if isinstance(value, str)}
    host = options.get("hostname", given.host)
    port = given.port or _port(options.get("port"), given.host)
    identities = list(found.get("identityfile") or [])
    own_keys = [path for path in identities if path.lower() != "none"]
    alias = options.get("hostkeyalias")
    return Target(
        given=given,
        host=host,
        port=port,
        user=given.user or options.get("user") or getpass.getuser(),
        key_names=(alias.lower(),) if alias else names_of(host, port),
        known_hosts=_files(options, "userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"),
        system_known_hosts=_files(
            options, "globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
        ),
        hash_known_hosts=options.get("hashknownhosts") in _YES,
        accept_new=options.get("stricthostkeychecking") in ("accept-new", "no", "off"),
        identity_files=tuple(map(_path, own_keys if identities else _DEFAULT_KEYS)),
        identities_only=options.get("identitiesonly") in _YES,
        certificate_files=_files(options, "certificatefile", ""),
        agent=options.get("identityagent", "").lower() != "none",
        jumps=_jumps(options),
        proxy_command=options.get("proxycommand", ""),
        compress=options.get("compression") in _YES,
    )


def _configuration() -> paramiko.SSHConfig:
    """The user's settings, then the system's: the first value of each counts."""
    config = paramiko.SSHConfig()
    own = os.environ.get("PPSS_SSH_CONFIG")
    for name in [own] if own else [_USER_CONFIG, _SYSTEM_CONFIG]:
        path = Path(name).expanduser()
        try:
            config.parse(_lines(path, path.parent, 0))
        except FileNotFoundError:
            if own:
                raise BadInput(f"PPSS_SSH_CONFIG names no file: '{own}'. Correct it or unset it.") from None
        except OSError as error:
            raise BadInput(
                f"'{error.filename or path}' can't be read ({error.strerror}). Mend that."
            ) from None
        except Exception as error:  # ConfigParseError, ValueError of shlex ...
            raise BadInput(f"'{path}' can't be understood ({error}). Correct it.") from None
    return config


def _lines(path: Path, base: Path, depth: int) -> Iterator[str]:
    """The file's lines with those of included ones in their place, which paramiko does not know."""
    section = ""
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        keyword, _, rest = re.sub(r"\s*=\s*|\s+", " ", line.strip(), count=1).partition(" ")
        if keyword.lower() in ("host", "match"):
            section = line
        if keyword.lower() != "include":
            yield line
        elif depth < _INCLUDES_AT_MOST:
            for pattern in rest.split():
                for name in sorted(glob.glob(os.path.join(base, os.path.expanduser(pattern.strip('"'))))):
                    yield from _lines(Path(name), base, depth + 1)
                    yield section or "Host *"  # a section of the included file ends with it


def _files(options: Mapping[str, str], name: str, default: str) -> tuple[str, ...]:
    names = options.get(name, default).split()
    return tuple(_path(each.strip('"')) for each in names if each.lower() != "none")


def _path(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name))


def _port(text: str | None, host: str) -> int:
    port = int(text) if text and text.isascii() and text.isdigit() else 0 if text else SSH_PORT
    if not 0 < port < 65536:
        raise BadInput(f"Port {text} in the configuration of ssh for '{host}' is no port. Correct it.")
    return port


def _jumps(options: Mapping[str, str]) -> tuple[SshHost, ...]:
    text = options.get("proxyjump", "none")
    if text.lower() == "none" or "proxycommand" in options:
        return ()
    return tuple(SshHost.parse(hop.strip().removeprefix("ssh://")) for hop in text.split(","))
