"""The address of a Redis server, as `--url` and `PPSS_URL` give it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from ppss_queue.errors import BadInput

_DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "redis+sentinel": 26379}
_FORMS = "redis://HOST:PORT, rediss://HOST:PORT, unix:///PATH, redis+sentinel://HOST:PORT/SERVICE or ssh://USER@HOST"
_SHELL_CHARACTERS = re.compile(r"""[\s'"`$\\;&<>|(){}*?\x00-\x1f\x7f]""")
"""In no name of a host or user: ProxyCommand in ~/.ssh/config would put them into a shell command."""


@dataclass(frozen=True, slots=True)
class SshHost:
    """A machine that is reached over SSH; what is not given, ~/.ssh/config or the defaults of ssh say."""

    host: str
    """A name, an address, or a Host of ~/.ssh/config."""
    user: str = ""
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> SshHost:
        """Read `[user@]host[:port]`. Raises BadInput, without showing a password."""
        credentials, _, location = text.rpartition("@")
        if ":" in credentials:
            raise BadInput(
                f"'{credentials.partition(':')[0]}:***@{location}' has a password, but ssh:// works with keys only. "
                "Leave it out, and bring a key there: ssh-copy-id"
            )
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::([0-9]+))?", location)
        user = _decoded(credentials)
        host = (match[1] or match[2]) if match else ""
        if match is None or any(
            name.startswith("-") or _SHELL_CHARACTERS.search(name) for name in (host, user)
        ):
            raise BadInput(f"{text!r} is no host that SSH can reach: write [USER@]HOST[:PORT].")
        if match[3] and not 0 < int(match[3]) < 65536:
            raise BadInput(f"a port is a number from 1 to 65535, not {match[3]}: correct {text!r}.")
        return cls(host, user, int(match[3]) if match[3] else None)

    def display(self) -> str:
        """`user@host:port`, as far as they were given; `parse` understands it again."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{quote(self.user, '', errors='surrogateescape')}@" if self.user else ""
        return f"{user}{host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis server is and who we are there; `display()` is safe to print, `repr()` too."""

    scheme: str
    """redis, rediss (TLS), unix, redis+sentinel, or ssh: the embedded server of the user of `via`."""
    hosts: tuple[tuple[str, int], ...] = ()
    """Host and port; of a sentinel address all sentinels; of a unix address none."""
    path: str = ""
    """The socket of a unix address."""
    service: str = ""
    """The name that the sentinels know the master by."""
    username: str = ""
    password: str = field(default="", repr=False)
    """Credentials of Redis itself; sentinels are asked without any."""
    db: int = 0
    via: SshHost | None = None
    """The machine from which the server is reached; None: from this one."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read a URL; user, password and path are percent-decoded, the database is `/N` or `?db=N`.

        `ssh://[user@]host[:port]` alone is the embedded server there; followed by another address, that server
        as seen from there. Raises BadInput for anything else, without showing the password.
        """
        if text[:6].lower() == "ssh://":
            return cls._parse_ssh(text[6:])
        try:
            url = urlsplit(text)
        except ValueError as error:
            raise _refused(text, str(error)) from None
        if url.scheme not in (*_DEFAULT_PORTS, "unix"):
            raise _refused(text, f"write {_FORMS}")
        if "#" in text:
            raise _refused(text, "write a '#' in it as %23")
        credentials, _, location = url.netloc.rpartition("@")
        username, _, password = (_decoded(part) for part in credentials.partition(":"))
        if url.scheme == "unix":
            path = _decoded(url.path)
            if location or len(path) < 2 or "\0" in path:
                raise _refused(text, "a socket is named by its absolute path, as in unix:///run/redis.sock")
            return cls("unix", (), path, "", username, password, _database(text, url, ""))
        hosts = tuple(_host(text, part, _DEFAULT_PORTS[url.scheme]) for part in location.split(","))
        service, database = "", url.path.removeprefix("/")
        if url.scheme == "redis+sentinel":
            service, _, database = database.partition("/")
            if not service:
                raise _refused(text, "name the master's service after the hosts, as in HOST:26379/mymaster")
        elif len(hosts) > 1:
            raise _refused(text, "only a redis+sentinel:// address takes more than one host")
        db = _database(text, url, database)
        return cls(url.scheme, hosts, "", _decoded(service), username, password, db)

    @classmethod
    def _parse_ssh(cls, text: str) -> Address:
        host, _, inner = text.partition("/")
        if "@" in inner and not re.match(r"[a-z+]+:/", inner):  # a password with a slash
            host = text
        via = SshHost.parse(host)
        if inner[:4].lower() == "ssh:":
            raise BadInput(
                f"ssh://{via.display()} is followed by another host. For one on the way set ProxyJump in "
                "~/.ssh/config."
            )
        return replace(cls.parse(inner), via=via) if inner else cls("ssh", via=via)

    def display(self) -> str:
        """The address for messages: `parse` understands it again, but for the password, shown as `***`."""
        if self.via is not None:
            inner = "" if self.scheme == "ssh" else f"/{replace(self, via=None).display()}"
            return f"ssh://{self.via.display()}{inner}"
        credentials = quote(self.username, "", errors="surrogateescape") + (":***" if self.password else "")
        at = f"{credentials}@" if credentials else ""
        if self.scheme == "unix":
            slashes = f"//{at}" if at else ""
            path = quote(self.path, errors="surrogateescape")
            return f"unix:{slashes}{path}" + (f"?db={self.db}" if self.db else "")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        service = f"/{quote(self.service, '', errors='surrogateescape')}" if self.service else ""
        return f"{self.scheme}://{at}{hosts}{service}" + (f"/{self.db}" if self.db else "")


def _refused(text: str, correction: str) -> BadInput:
    """The error for an address, which may hold a password wherever an `@` follows."""
    shown = re.sub(r"//.*@", "//***@", text, flags=re.DOTALL)
    return BadInput(f"{shown!r} is no address of a Redis server that PPSS can use: {correction}.")


def _decoded(text: str) -> str:
    return unquote(text, errors="surrogateescape")


def _host(text: str, part: str, default_port: int) -> tuple[str, int]:
    """One `HOST`, `HOST:PORT`, `[IPV6]` or `[IPV6]:PORT`."""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::([0-9]+))?", part)
    if match is None:
        raise _refused(text, f"{part!r} is not of the form HOST:PORT" if part else "it names no host")
    port = int(match[3] or default_port)
    if not 0 < port < 65536:
        raise _refused(text, f"a port is a number from 1 to 65535, not {port}")
    return match[1] or match[2], port


def _database(text: str, url: SplitResult, from_path: str) -> int:
    """The database number, which the path or `?db=` gives; 0 if neither does."""
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - {"db"}):
        raise _refused(text, f"its only option is db, not {unknown[0]!r}")
    if from_path and options:
        raise _refused(text, "it names the database twice")
    number = options.get("db", from_path or "0")
    if not re.fullmatch("[0-9]{1,9}", number):
        raise _refused(text, f"a database is a number, not {number!r}")
    return int(number)
