"""Output of running commands as it comes, for --line-buffer; it is captured to files all the same."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable

from ppss_worker.captures import Captures
from ppss_worker.process import Child

_READ_BYTES = 65536
_PIPES = (1, 2)


class Stream:
    """stdout and stderr of one command, through pipes into capture files, each piece shown to `on_data`."""

    def __init__(
        self, selector: selectors.BaseSelector, captures: Captures, on_data: Callable[[int, bytes], None]
    ) -> None:
        """`on_data` gets 1 or 2 (stdout, stderr) and the bytes."""
        self._selector = selector
        self._on_data = on_data
        self._readers: dict[int, int] = {}
        self._give_back = captures.give_back
        self._captures = {target: captures.take() for target in _PIPES}
        self.writers: dict[int, int] = {}
        """To be given to the command; closed by `attach`."""
        for target in _PIPES:
            self._readers[target], self.writers[target] = os.pipe()
            os.set_blocking(self._readers[target], False)
            selector.register(self._readers[target], selectors.EVENT_READ, self.pump)

    def attach(self, child: Child | None) -> None:
        """The command has started, or could not be (None): from now on its captures are the child's."""
        for writer in self.writers.values():
            os.close(writer)
        if child is not None:
            child.stdout, child.stderr = self._captures[1], self._captures[2]
        else:
            self.finish()
            for capture in self._captures.values():
                self._give_back(capture)

    def pump(self) -> None:
        """Takes in what has come: one read, lest a command that never stops printing keeps the worker here."""
        for target, reader in list(self._readers.items()):
            try:
                data = os.read(reader, _READ_BYTES)
            except BlockingIOError:
                continue
            if data:
                os.write(self._captures[target], data)
                self._on_data(target, data)
            else:
                self._close(target)

    def finish(self) -> None:
        """Takes in the rest, all that a pipe can hold, once all of the command's processes are dead."""
        self.pump()
        for target in list(self._readers):
            self._close(target)

    def _close(self, target: int) -> None:
        reader = self._readers.pop(target)
        self._selector.unregister(reader)
        os.close(reader)
