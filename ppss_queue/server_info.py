"""What matters to PPSS about a Redis server, read from its INFO."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ppss_queue.errors import BadInput, PpssError, ServiceFailed

if TYPE_CHECKING:
    from ppss_queue.connection import Connection


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server as `check_server` found it."""

    software: str
    """Redis or Valkey."""
    version: tuple[int, ...]
    maxmemory_bytes: int
    """0 if unlimited."""
    maxmemory_policy: str
    aof: bool
    rdb: bool
    """Snapshots are configured; taken as true where this user may not read the configuration."""
    cluster: bool
    read_only_replica: bool

    @classmethod
    def parse(cls, info: bytes, save: bytes | None) -> ServerInfo:
        """Read the reply of INFO, and the setting `save` (None if it could not be read)."""
        facts = dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
        # Valkey says redis_version:7.2.4 for the sake of old clients.
        valkey = facts.get("valkey_version")
        version = valkey or facts.get("redis_version", "")
        return cls(
            software="Valkey" if valkey else "Redis",
            version=tuple(int(part) for part in re.findall(r"\d+", version)),
            maxmemory_bytes=int(facts.get("maxmemory", 0)),
            maxmemory_policy=facts.get("maxmemory_policy", "noeviction"),
            aof=facts.get("aof_enabled") == "1",
            rdb=save != b"",
            cluster=facts.get("cluster_enabled") == "1",
            read_only_replica=facts.get("role") == "slave" and facts.get("slave_read_only") == "1",
        )

    def warnings(self, where: str) -> list[str]:
        """What the user of the server at `where` should know, one line each; empty if all is well.

        Raises BadInput for Redis before 6.2 and for Redis Cluster, ServiceFailed for a read-only replica.
        """
        server = f"{self.software} at {where}"
        if self.version < (6, 2):
            version = ".".join(map(str, self.version))
            raise BadInput(f"{server} is version {version}. PPSS needs Redis 6.2 or newer, or Valkey.")
        if self.cluster:
            raise BadInput(f"{server} is a cluster. PPSS needs a server that is no part of a cluster.")
        if self.read_only_replica:
            raise ServiceFailed(f"{server} is a read-only replica. Give --url the address of the master.")
        warnings = []
        if self.maxmemory_policy != "noeviction":
            policy = f"maxmemory-policy {self.maxmemory_policy}"
            warnings.append(f"{server} may evict items ({policy}): set maxmemory-policy noeviction.")
        if not self.aof and not self.rdb:
            warnings.append(
                f"{server} keeps nothing on disk, so all items are lost when it ends: set appendonly yes."
            )
        return warnings


def check_server(connection: Connection) -> list[str]:
    """Look whether PPSS can work on this server, in one round trip; return warnings, one line each.

    Sets `connection.server`. Raises BadInput for Redis before 6.2 and for Redis Cluster, ServiceFailed for a
    read-only replica.
    """
    info, setting = connection.execute_many([("INFO",), ("CONFIG", "GET", "save")])
    if isinstance(info, PpssError):
        raise info
    # ACLs and hosting services often forbid CONFIG.
    save = setting[1] if isinstance(setting, list) and len(setting) == 2 else None
    connection.server = ServerInfo.parse(cast("bytes", info), cast("bytes | None", save))
    return connection.server.warnings(connection.address.display())
