"""A tar stream of a node's outputs, made into a directory here: whatever is in it, nothing is written outside."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

from ppss_worker.publishing import OutputRefused
from ppss_worker.trees import OWNER_ALL

_BLOCK_BYTES = 1024 * 1024
_ZEROS = bytes(64 * 1024)


class Unpacking:
    """Into an empty directory; only directories that it made itself are entered, so no link leads it elsewhere."""

    def __init__(self, directory: str, missing: Mapping[str, int]) -> None:
        """`missing`: permissions of the owner that a path was lent, in which they were not."""
        self._directory = directory
        self._missing = missing
        self._modes: dict[str, int] = {"": OWNER_ALL}
        self._files: set[str] = set()

    def unpack(self, stream: io.RawIOBase) -> None:
        """Raises OutputRefused for what is no file, directory or link, tarfile.TarError, and OSError of the disk."""
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK_BYTES) as archive:
            for member in archive:
                self._take(archive, member)
                archive.members = []  # type: ignore[attr-defined]  # it keeps all that it has seen
        for path in sorted(self._modes, reverse=True):  # inner ones first
            if path:
                os.chmod(self._place(path), self._modes[path])

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        if not path:
            return
        parent, _, name = path.rpartition("/")
        if parent not in self._modes or name == ".." or path in self._modes:
            raise OutputRefused(f"sends {path!r}, which is in no directory of its output")
        mode = member.mode & 0o7777 & ~self._missing.get(path, 0)
        place = self._place(path)
        if member.isdir():
            os.mkdir(place, OWNER_ALL)
            self._modes[path] = mode
        elif member.issym():
            os.symlink(member.linkname, place)
        elif member.islnk():
            self._take_hard_link(member, place)
        elif member.isreg():
            source = archive.extractfile(member)
            assert source is not None
            _write(place, source, member, mode)
            self._files.add(path)
        else:
            raise OutputRefused(f"made {path!r}, which is no file, directory or link")

    def _take_hard_link(self, member: tarfile.TarInfo, place: str) -> None:
        first = "/".join(part for part in member.linkname.split("/") if part not in ("", "."))
        if first not in self._files:
            raise OutputRefused(f"sends a link to {first!r}, which is no file of its output")
        os.link(self._place(first), place)

    def _place(self, path: str) -> str:
        return f"{self._directory}/{path}"


def _write(place: str, source: IO[bytes], member: tarfile.TarInfo, mode: int) -> None:
    """Zeros become holes."""
    target = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while data := source.read(len(_ZEROS)):
            if data == _ZEROS[: len(data)]:
                os.lseek(target, len(data), os.SEEK_CUR)
            else:
                view = memoryview(data)
                while view:
                    view = view[os.write(target, view) :]
        os.ftruncate(target, member.size)
        with suppress(PermissionError):
            os.fchmod(target, stat.S_IMODE(mode))
        os.utime(target, (member.mtime, member.mtime))
    finally:
        os.close(target)
