"""Looks all the time at a directory of outputs, so that nothing that is not whole is there unseen."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path


class Watcher(threading.Thread):
    """A context: on its end, AssertionError if a file was ever seen that is no whole output of its item."""

    def __init__(self, out: Path, hashes: Mapping[str, tuple[str, str]]) -> None:
        super().__init__(name="watcher", daemon=True)
        self._out = out
        self._hashes = hashes
        self._over = threading.Event()
        self._seen: dict[str, tuple[int, int, int]] = {}
        self.wrong: list[str] = []

    def __enter__(self) -> Watcher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        assert not self.wrong, self.wrong
        assert self._seen, "it saw nothing at all"

    def run(self) -> None:
        while not self._over.wait(0.002 + len(self._seen) / 20_000):
            self._look()
        self._look()

    def _look(self) -> None:
        for name in self._names():
            try:
                with open(self._out / name, "rb") as file:
                    facts = os.fstat(file.fileno())
                    fingerprint = facts.st_ino, facts.st_size, facts.st_mtime_ns
                    if self._seen.get(name) == fingerprint:
                        continue
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                continue
            self._seen[name] = fingerprint
            if self._hashes.get(digest, ("", ""))[0] != name:
                self.wrong.append(f"{name}: {facts.st_size:,} bytes")

    def _names(self) -> Iterator[str]:
        """Of all files but those in scratches, relative to the output directory."""
        for directory, directories, files in os.walk(self._out):
            if ".ppss" in directories:
                directories.remove(".ppss")
            below = os.path.relpath(directory, self._out)
            yield from (os.path.normpath(os.path.join(below, name)) for name in files)
