"""What node and master say to each other before the gate opens; known to both sides, without paramiko.

The node executes `ppss gate SERVICE` on the master. The first thing that it prints is one line, the hello: that
the gate is open, or why not. All bytes after it belong to the service.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

PROTOCOL = 1
"""Number of what this version speaks; a service that changes its bytes, or a new one, counts it up."""
OLDEST = 1
"""The oldest protocol whose nodes this gate still serves."""

START = b'{"ppss_gate":'
"""How the line begins, wherever in the output of a login script that is."""
NOISE_BYTES = 64 * 1024
"""What login scripts may print before it."""

_SERVICE = re.compile("[a-z]{1,20}")
_ORIGINAL_COMMAND = re.compile(r"(?:sh -c '[^']* exec )?ppss gate ([a-z]{1,20})'?")


@dataclass(frozen=True, slots=True)
class Hello:
    """What the gate says of itself."""

    version: str
    """Of the PPSS there."""
    service: str = ""
    """What it opened; a forced command may name another one than was asked for."""
    error: str = ""
    """Why it opened nothing, as a sentence."""
    exit_code: int = 0
    """With which PPSS there would end because of that error."""
    protocol: int = PROTOCOL
    oldest: int = OLDEST

    def encode(self) -> bytes:
        """The line, newline included."""
        facts = {
            "ppss_gate": self.protocol,
            "oldest": self.oldest,
            "version": self.version,
            "service": self.service,
        }
        if self.error:
            facts |= {"error": self.error, "exit": self.exit_code}
        return json.dumps(facts, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Hello | None:
        """Read a line that begins with START; None if it is something else."""
        try:
            facts = json.loads(line)
            return cls(
                version=str(facts.get("version", "")),
                service=str(facts.get("service", "")),
                error=str(facts.get("error", "")),
                exit_code=int(facts.get("exit", 0)),
                protocol=int(facts["ppss_gate"]),
                oldest=int(facts.get("oldest", facts["ppss_gate"])),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


def remote_command(service: str) -> str:
    """The command that opens a service on the master, for any login shell.

    What `pip install --user` and pipx install is found too: sshd sets a PATH without it.
    """
    assert _SERVICE.fullmatch(service)
    return f"sh -c 'PATH=\"$PATH:$HOME/.local/bin\" exec ppss gate {service}'"


def asked_for(original_command: str) -> str | None:
    """The service that a node wants whose key has a forced command, from SSH_ORIGINAL_COMMAND.

    Only this one word is taken, and nothing of it is ever executed. None if it is no command of ours.
    """
    match = _ORIGINAL_COMMAND.fullmatch(original_command)
    return match[1] if match else None
