"""Running something on a node: bash there, over one SSH connection; on this machine without one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ppss_queue.errors import ConnectFailed
from ppss_queue.nodes.spec import NodeSpec
from ppss_queue.units import format_duration

if TYPE_CHECKING:
    from ppss_queue.ssh.line import Line
    from ppss_queue.ssh.remote import Done

_PIECE_BYTES = 128 * 1024


class Reach:
    """One node; the connection is made at the first use. For one thread."""

    def __init__(self, node: NodeSpec, *, accept_new: bool = False) -> None:
        self.node = node
        self._accept_new = accept_new
        self._line: Line | None = None

    def run(self, script: str, *, stdin: Iterable[bytes] = (), seconds: float = 60.0) -> Done:
        """Executes a bash script there, as the user of the node, in the home directory, and waits for its end.

        `stdin`: pieces that the script reads. Raises ConnectFailed, also if it takes longer than `seconds`, and
        BadInput. What still runs there then is left alone.
        """
        from ppss_queue.ssh.remote import run_script

        try:
            if self.node.here:
                return self._run_here(script, b"".join(stdin), seconds)
            return run_script(self.line, script, stdin, seconds)
        except (TimeoutError, subprocess.TimeoutExpired):
            raise ConnectFailed(
                f"{self.node.name} was not done within {format_duration(seconds)}. "
                "See what keeps it, then try again."
            ) from None

    def stream(self, script: str) -> Iterator[bytes]:
        """What a script prints, as it comes, until it ends. Raises as `run`."""
        if not self.node.here:
            from ppss_queue.ssh.remote import stream_script

            yield from stream_script(self.line, script)
            return
        with subprocess.Popen(
            ["bash", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout
            try:
                while piece := os.read(process.stdout.fileno(), _PIECE_BYTES):
                    yield piece
            finally:
                process.terminate()

    def close(self) -> None:
        if self._line is not None:
            self._line.close()

    @property
    def line(self) -> Line:
        """The connection, for whoever wants more of it; not of this machine."""
        assert self.node.host is not None
        if self._line is None:
            from ppss_queue.ssh.line import Line

            self._line = Line(self.node.host, accept_new=self._accept_new)
        return self._line

    def _run_here(self, script: str, stdin: bytes, seconds: float) -> Done:
        from ppss_queue.ssh.remote import Done

        done = subprocess.run(
            ["bash", "-c", 'cd && eval "$1"', "bash", script],
            input=stdin,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        return Done(max(done.returncode, -1), done.stdout, done.stderr)
