"""The process that holds the way back of one node open; `way_back.py` starts it.

After a loss it connects again, as long as it takes: a worker there waits meanwhile. It ends when no worker there needs
the way and nobody here wants it.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ppss_queue.errors import ConnectFailed, MachineFailed, PpssError
from ppss_queue.locks import try_lock
from ppss_queue.nodes import service, way_back
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.spec import NodeSpec, parse_node

_LOOK_SECONDS = 5.0
"""How often it is asked whether a worker is still there."""
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 10.0
_NOTHING_THERE = 9


def main() -> None:
    """sys.argv: an Order as JSON. Why it could not begin is told in the state file, what happens later on stderr."""
    order: way_back.Order = json.loads(sys.argv[1])
    os.set_inheritable(order["lock"], False)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the starter did with it
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    holding = Holding(order)
    holding.tell()
    try:
        holding.hold()
    except PpssError as error:
        holding.tell(error=str(error), exit_code=int(error.exit_code))
    else:
        os.ftruncate(order["lock"], 0)  # the number of this process may be another's soon


class Holding:
    """For one thread."""

    def __init__(self, order: way_back.Order) -> None:
        self._order = order
        self._node: NodeSpec = parse_node([order["node"]])
        self._was_open = False
        self._pause_seconds = _FIRST_PAUSE_SECONDS

    def hold(self) -> None:
        """Until nobody needs it. Raises what kept the way from being opened for the first time."""
        while True:
            try:
                with closing(Reach(self._node, accept_new=self._order["accept_new"])) as reach:
                    if self._serve(reach):
                        return
            except PpssError as error:
                if not self._was_open:
                    raise
                self.tell()
                log(str(error))
            time.sleep(self._pause_seconds * random.uniform(0.5, 1.0))
            self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)

    def tell(self, **facts: object) -> None:
        """In the state file."""
        data = json.dumps({"pid": os.getpid(), **facts}).encode()
        os.ftruncate(self._order["lock"], 0)
        os.pwrite(self._order["lock"], data, 0)

    def gives_up(self, is_needed: Callable[[], bool]) -> bool:
        """Whether nobody needs the way, here or there; if so, nobody can begin to before this process has ended."""
        wanted = try_lock(Path(self._order["wanted"]))
        if wanted is None:
            return False
        leaving = False
        try:
            leaving = not is_needed()
        finally:
            if not leaving:
                os.close(wanted)
        return leaving

    def _serve(self, reach: Reach) -> bool:
        """Over one connection: True when nobody needs it any more. Raises ConnectFailed when it is lost."""
        host, port = self._order["sshd"]
        way = way_back.open_through(reach, (host, port))
        if not self._show(reach, way.port):
            return True
        self._was_open = True
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self.tell(port=way.port)
        log(f"open at port {way.port} of {self._node.name}")
        while not self.gives_up(lambda: service.is_needed(reach, self._order["directory"])):
            time.sleep(_LOOK_SECONDS)
            if not way.lasts:
                raise ConnectFailed(f"the connection to {self._node.name} was lost")
        log("no worker is there any more")
        return True

    def _show(self, reach: Reach, port: int) -> bool:
        """Write there where the way begins; False if nothing of ours is there any more."""
        directory = shlex.quote(self._order["directory"])
        done = reach.run(
            f"cd {directory} 2>/dev/null || exit {_NOTHING_THERE}\n"
            f"echo Port {port} >way.new && mv -f way.new way"
        )
        if done.code not in (0, _NOTHING_THERE):
            raise MachineFailed(f"{self._node.name} can't be told where the way begins ({done.last_line}).")
        return done.code == 0


def log(text: str) -> None:
    """To stderr, with the time."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
