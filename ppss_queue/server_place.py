"""Where the embedded server lives: its directory and socket, which belong to this user alone."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ppss_queue.errors import BadInput

_SUN_PATH_BYTES = 104 if sys.platform == "darwin" else 108  # sockaddr_un.sun_path, with the final NUL


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """Where the embedded server of this user lives on this machine."""

    directory: Path
    """Data (AOF), lock, log and pid file; mode 0700."""
    socket: Path
    """The unix socket it listens at; nothing else is opened."""

    @property
    def address(self) -> str:
        """Its URL, percent-encoded: what `--url` takes."""
        from urllib.parse import quote  # not needed by whoever only asks whether it runs

        return "unix://" + quote(os.fsencode(self.socket))


def default_place(environment: Mapping[str, str] = os.environ) -> ServerPlace:
    """The place of this user's server; PPSS_STATE_DIR overrides the base directory.

    Without it the base is the user's state directory (XDG_STATE_HOME and HOME as this process sees them).
    The machine's id is part of the path because machines may share a home over NFS.
    """
    base = environment.get("PPSS_STATE_DIR")
    if not base:
        from platformdirs import user_state_dir

        base = user_state_dir("ppss")
    directory = Path(base).absolute() / machine_id() / "server"
    path = directory / "server.sock"
    if len(os.fsencode(path)) >= _SUN_PATH_BYTES:
        path = _short_directory(directory) / "server.sock"
    return ServerPlace(directory, path)


def make_private(directory: Path) -> None:
    """Make the directory and what is missing above it, readable by this user only."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)


def check_private(place: ServerPlace) -> None:
    """Refuse directories through which someone else could pose as the server; missing ones are fine."""
    for directory in (place.directory, place.socket.parent):
        try:
            found = directory.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(found.st_mode):
            raise BadInput(
                f"'{directory}' is not a directory: move it away, the embedded server needs the name."
            )
        if found.st_uid != os.geteuid():
            raise BadInput(
                f"'{directory}' belongs to user {found.st_uid}, not to you (user {os.geteuid()}): "
                "remove it, or set PPSS_STATE_DIR to a directory of your own."
            )
        if found.st_mode & 0o022:
            raise BadInput(
                f"others may write to '{directory}' (mode {stat.S_IMODE(found.st_mode):04o}): "
                f"see that nothing foreign is in it, then `chmod 700 '{directory}'`."
            )


def _short_directory(directory: Path) -> Path:
    """A short name for a long place. Always in /tmp: TMPDIR may differ between two starters of one server."""
    from hashlib import sha256

    return Path("/tmp") / f"ppss-{os.geteuid()}-{sha256(os.fsencode(directory)).hexdigest()[:16]}"


def machine_id() -> str:
    """Of systemd or D-Bus; without one, the host's name."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with suppress(OSError, ValueError):
            text = Path(path).read_text(encoding="ascii").strip()
            if len(text) == 32 and text.isalnum():  # an image may hold "uninitialized", or nothing
                return text
    return socket.gethostname()
