"""ppss server, dashboard, completion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ppss_queue.cli.frame import Verb, open_queue
from ppss_queue.cli.options import Number, json_option, option, url_option
from ppss_queue.cli.say import say
from ppss_queue.errors import BadInput, ExitCode
from ppss_queue.units import format_duration

if TYPE_CHECKING:
    from ppss_queue.connection import Connection


@click.command(
    "server",
    cls=Verb,
    examples="""
    ppss server status
    ppss server stop
    ppss server run        # in the foreground, for systemd or docker
    """,
)
@click.argument("action", type=click.Choice(["start", "stop", "status", "run"]))
@json_option
def server_verb(action: str, as_json: bool) -> int:
    """Start, stop or look at your own Redis on this machine.

    It is a Valkey that starts by itself when it is needed, listens on a unix socket that only you can open, keeps
    its data in your state directory, and runs on after the command that started it. `status` ends with 1 if
    it does not run.
    """
    from ppss_queue import server
    from ppss_queue.server_place import default_place

    place = default_place()
    if action == "run":
        server.run_foreground(place)
    if action == "start":
        print(server.ensure_running(place))
        return ExitCode.OK
    if action == "stop":
        say("stopped; its data stay" if server.stop(place) else "it was not running")
        return ExitCode.OK
    status = server.status(place)
    if as_json:
        import dataclasses
        import json

        values = dataclasses.asdict(status) if status else {}
        print(json.dumps({"running": status is not None, "url": place.address, **values}, default=str))
    elif status is None:
        print(f"not running; it starts when it is needed\ndata:    {place.directory}")
    else:
        print(
            f"running for {format_duration(status.uptime_seconds)}: {status.version}, pid {status.pid}, "
            f"{status.used_memory_bytes / 1e6:.1f} MB of memory, {status.data_bytes / 1e6:.1f} MB on disk\n"
            f"address: {place.address}\ndata:    {place.directory}"
        )
    return ExitCode.OK if status else ExitCode.ITEMS_FAILED


@click.command(
    "dashboard",
    cls=Verb,
    examples="""
    ppss dashboard
    ppss dashboard --port 9000
    """,
)
@option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Listen there; it asks for no password.  [127.0.0.1]",
)
@option(
    "--port", type=Number(0, 65535), default=9181, metavar="N", help="Listen there; 0: any free one.  [9181]"
)
@url_option
def dashboard_verb(host: str, port: int, url: str | None) -> int:
    """Serve rq-dashboard, which shows runs and items in a browser.

    Every run is a queue there, every item a job. Ctrl-C ends it.
    """
    from ppss_queue.broker import serve_dashboard

    if url is None:
        from ppss_queue.server import ensure_running
        from ppss_queue.server_place import default_place

        url = ensure_running(default_place())
    with open_queue(url) as queue, _for_others(queue.connection, url) as local_url:
        serve_dashboard(
            local_url, host=host, port=port, on_ready=lambda where: say(f"{where}  (Ctrl-C ends it)")
        )
    return ExitCode.OK


@contextmanager
def _for_others(connection: Connection, url: str) -> Iterator[str]:
    """The address for a program that knows no ssh://. Raises BadInput."""
    line, address = connection.line, connection.address
    if line is None:
        yield url
        return
    if address.scheme in ("rediss", "redis+sentinel"):
        raise BadInput(
            f"the dashboard can't reach {address.display()}: start it on a machine that can do so directly"
        )
    from urllib.parse import quote

    from ppss_queue.dial import open_channel
    from ppss_queue.ssh.forward import forwarded

    credentials = f"{quote(address.username, '')}:{quote(address.password, '')}@" if address.password else ""
    with forwarded(lambda: open_channel(line, address)) as path:
        yield f"unix://{credentials}{quote(str(path))}?db={address.db}"


@click.command(
    "completion",
    cls=Verb,
    examples="""
    ppss completion bash > ~/.local/share/bash-completion/completions/ppss
    ppss completion zsh > ~/.zfunc/_ppss
    ppss completion fish > ~/.config/fish/completions/ppss.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_verb(shell: str) -> int:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    from ppss_queue.cli.frame import cli

    completion = get_completion_class(shell)
    if completion is None:
        raise BadInput(f"there is no completion for '{shell}'")
    print(completion(cli, {}, "ppss", "_PPSS_COMPLETE").source())
    return ExitCode.OK
