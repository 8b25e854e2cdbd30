"""ppss trust, gate: what machines do that reach each other over SSH."""

from __future__ import annotations

import sys

import click

from ppss_queue.cli.frame import Verb
from ppss_queue.cli.options import option
from ppss_queue.cli.say import say
from ppss_queue.errors import BadInput, ExitCode


@click.command(
    "trust",
    cls=Verb,
    usage="[OPTION]... [USER@]HOST[:PORT]",
    examples="""
    ppss trust master
    ppss trust --yes me@10.0.0.5:2222
    """,
)
@click.argument("host")
@option("-y", "--yes", is_flag=True, envvar="PPSS_TRUST_YES", help="Do not ask.")
def trust_verb(host: str, yes: bool) -> int:
    """Show the host key of a machine, and trust it from now on.

    The keys are written to ~/.ssh/known_hosts, as `ssh` does it when it asks, and ~/.ssh/config counts as for `ssh`.
    Compare the fingerprint with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on that machine. A
    changed key is never replaced. Ends with 1 if the answer is no.
    """
    from ppss_queue.address import SshHost
    from ppss_queue.ssh.trust import look

    address = host.removeprefix("ssh://").rstrip("/")
    shown = look(SshHost.parse(address))
    fingerprints = "\n".join(f"  {key.fingerprint}" for key in shown.known or shown.keys)
    print(f"host key of '{shown.name}':\n{fingerprints}", flush=True)
    if shown.known:
        say(f"'{shown.name}' is trusted already")
        return ExitCode.OK
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise BadInput(f"nobody can be asked here. If this key is right: ppss trust --yes {address}")
        if not click.confirm("Trust it?", err=True):
            say("nothing was written")
            return ExitCode.ITEMS_FAILED
    shown.trust()
    say(f"'{shown.name}' is trusted from now on: written to {shown.file}")
    return ExitCode.OK


@click.command(
    "gate",
    cls=Verb,
    examples="""
    ppss gate redis < /dev/null
    """,
)
@click.argument("service", required=False)
def gate_verb(service: str | None) -> int:
    """Let a node in that came over SSH; nodes execute this by themselves.

    It joins stdin and stdout to what SERVICE names: `redis` is your own server on this machine, which is started if
    need be; `files` are the files that nodes stage; `durable` makes that server flush to disk until stdin ends. The
    first line that it prints tells the version, or what is wrong.

    A key that may do nothing else here has this before it in ~/.ssh/authorized_keys:

    \b
    restrict,command="ppss gate" ssh-ed25519 AAAA...

    The service is then what the node asked for (SSH_ORIGINAL_COMMAND); nothing of it is executed.
    """
    from ppss_queue.cli.gate import main

    return main([service] if service else [])
