"""Where all of ours is on a node: every path is named here, once. Nothing of it is anywhere else there."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from ppss_queue.server_place import machine_id

BASE = ".local/share/ppss"
"""Below the home of the node's user; all masters share it."""
MASTER_ALIAS = "ppss-master"
"""What the node's configuration of ssh calls the master."""


def master_id() -> str:
    """Tells this master from others: this user on this machine."""
    return hashlib.sha256(f"{machine_id()}:{os.geteuid()}".encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class NodeHome:
    """What one master has on one node. Machines that share a home share the installed environments alone."""

    home: str
    """Of the node's user."""
    master: str
    machine: str
    """The node's machine id."""

    @property
    def base(self) -> str:
        return f"{self.home}/{BASE}"

    @property
    def root(self) -> str:
        """All that this master has there, on all machines that share the home."""
        return f"{self.base}/masters/{self.master}"

    @property
    def environments(self) -> str:
        """Installed packages: a directory for each version, Python and platform."""
        return f"{self.root}/env"

    @property
    def directory(self) -> str:
        """What belongs to this machine alone."""
        return f"{self.root}/nodes/{self.machine}"

    @property
    def key(self) -> str:
        """The private key, made there; `.pub` after it is the public half."""
        return f"{self.directory}/key"

    @property
    def ssh_config(self) -> str:
        return f"{self.directory}/ssh_config"

    @property
    def way(self) -> str:
        """The part of `ssh_config` that changes while the master holds a way open: the port at which that begins."""
        return f"{self.directory}/way"

    @property
    def known_hosts(self) -> str:
        return f"{self.directory}/known_hosts"

    @property
    def launcher(self) -> str:
        """`ppss` of the version that was deployed last."""
        return f"{self.directory}/bin/ppss"

    @property
    def state(self) -> str:
        """PPSS_STATE_DIR of the worker."""
        return f"{self.directory}/state"

    @property
    def log(self) -> str:
        return f"{self.directory}/worker.log"

    @property
    def facts(self) -> str:
        """What was deployed last, as JSON."""
        return f"{self.directory}/deployed.json"

    def virtual(self, environment: str) -> str:
        """The Python that runs an environment on this machine."""
        return f"{self.directory}/venv/{environment}"

    def program(self, environment: str) -> str:
        """What that Python runs as `ppss`."""
        return f"{self.virtual(environment)}/bin/ppss"

    def tilde(self, path: str) -> str:
        """A path below home as `~/...`, which has no blanks whatever home is called."""
        return f"~{path.removeprefix(self.home)}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment that `launcher` needs to find the master and to keep what it has in `directory`."""
        return {"PPSS_SSH_CONFIG": self.ssh_config, "PPSS_STATE_DIR": self.state}
