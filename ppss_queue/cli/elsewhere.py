"""Outputs of items that other workers ran: they tell them to Redis, `ppss run` prints them."""

from __future__ import annotations

from ppss_queue import scripts
from ppss_queue.calls import hear, read_heard
from ppss_queue.cli.printer import Printer
from ppss_queue.cli.say import typed, warn
from ppss_queue.connection import Connection, Reply
from ppss_queue.keys import Keys
from ppss_queue.scripts import Call
from ppss_queue.units import printable, shorten

_NAME_COLUMNS = 60


class Elsewhere:
    """Used by one thread. Printing raises OSError where nothing can be written."""

    def __init__(self, keys: Keys, run: str, printer: Printer) -> None:
        self._keys = keys
        self._run = run
        self._printer = printer
        self._cursor = ""
        self.asked = False
        """A question is on its way."""

    def ask(self) -> Call:
        """What was told since the last answer? To be answered to `hear`."""
        self.asked = True
        return hear(self._keys, self._run, self._cursor)

    def hear(self, reply: Reply) -> bool:
        """Prints what was told; whether there was anything. None: the question got lost, and is asked again."""
        self.asked = False
        if reply is None:
            return False
        self._cursor, told = read_heard(reply, self._cursor)
        for item in told:
            if not item.complete:
                name = shorten(printable(item.name), _NAME_COLUMNS)
                log = typed(f"log {self._run} '#{item.seq}'")
                warn(f"what '{name}' printed on another worker was too much to bring here. Its end: {log}")
            self._printer.told(item.seq, item.name, item.stdout, item.stderr)
        return bool(told)

    def drain(self, connection: Connection) -> None:
        """Prints all that was told. Raises what a connection raises."""
        while self.hear(scripts.run(connection, self.ask())):
            pass
