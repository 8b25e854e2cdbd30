"""What the gate for files does to a disk: to this machine's own, or to the master's by SFTP (sftp/gate.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from ppss_worker import staging
from ppss_worker.file_stream import Incoming, outgoing
from ppss_worker.messages import Data, Header
from ppss_worker.publishing import Attempt, machine_failed
from ppss_worker.staging import Staging
from ppss_worker.syncing import Synced, Syncer


class Receiving(Protocol):
    """A file that comes as messages; see file_stream.Incoming."""

    def take(self, header: Header, data: Data, /) -> bool: ...
    def close(self) -> None: ...


class UploadScratch(Protocol):
    """The scratch of an attempt that ran elsewhere. Paths are relative to it; what fails raises OSError.

    That may come later, with `set_mode` or `outputs` at the latest, if there was a way to wait for.
    """

    @property
    def directory(self) -> str: ...
    def make_directory(self, path: str, /) -> None: ...
    def make_link(self, path: str, target: str, /) -> None: ...
    def receive(self, path: str, header: Header, /) -> Receiving: ...
    def set_mode(self, path: str, mode: int, /) -> None: ...
    def is_there(self) -> bool: ...

    # as publishing.Attempt has them

    def outputs(self) -> list[str]: ...
    def publish(
        self,
        claim: Callable[[Sequence[str]], Mapping[str, tuple[int, str]]],
        still_ours: Callable[[], bool],
        /,
    ) -> int: ...
    def discard(self) -> None: ...


class UploadStaging(Protocol):
    """Where outputs of a run go; see staging.Staging."""

    def prepare(self) -> None: ...
    def scratch(self, seq: int, token: str, subdirectory: str, /) -> UploadScratch: ...


class Disk(Protocol):
    """Paths are absolute."""

    def outgoing(self, path: str, /, *, verify: bool, compress: bool) -> Iterator[bytes]: ...
    def exists(self, path: str, /) -> bool:
        """Whether a file is there, at the end of a link too. Raises nothing but for the connection."""

    def lexists(self, path: str, /) -> bool:
        """Whether anything is there."""

    def staging(self, output: str, run: str, /) -> UploadStaging: ...
    def leftovers(self, output: str, run: str, /) -> list[str]: ...
    def sweep(self, output: str, run: str, names: Sequence[str], /) -> object: ...


class OwnDisk:
    """This machine's. Files that are received begin their way to the disk when they are whole, beside other work."""

    def __init__(self) -> None:
        self._syncer = Syncer()

    def outgoing(self, path: str, *, verify: bool, compress: bool) -> Iterator[bytes]:
        return outgoing(path, {}, verify=verify, compress=compress)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def lexists(self, path: str) -> bool:
        return os.path.lexists(path)

    def staging(self, output: str, run: str) -> UploadStaging:
        return _OwnStaging(output, run, self._syncer)

    def leftovers(self, output: str, run: str) -> list[str]:
        return staging.leftovers(output, run)

    def sweep(self, output: str, run: str, names: Sequence[str]) -> int:
        return staging.sweep(output, run, names)


class _OwnStaging:
    def __init__(self, output: str, run: str, syncer: Syncer) -> None:
        self._staging = Staging(output, run)
        self._output = output
        self._syncer = syncer

    def prepare(self) -> None:
        self._staging.prepare()

    def scratch(self, seq: int, token: str, subdirectory: str) -> _OwnScratch:
        attempt = self._staging.scratch(seq, token, subdirectory)
        return _OwnScratch(self._output, attempt, Synced(self._syncer))


class _OwnScratch:
    def __init__(self, output: str, attempt: Attempt, synced: Synced) -> None:
        self._output = output
        self._attempt = attempt
        self._synced = synced
        self.directory = attempt.directory
        self.outputs = attempt.outputs
        self.discard = attempt.discard

    def publish(
        self,
        claim: Callable[[Sequence[str]], Mapping[str, tuple[int, str]]],
        still_ours: Callable[[], bool],
    ) -> int:
        try:
            self._synced.wait()  # so that nothing is acked that is not on disk
        except OSError as error:
            raise machine_failed(self._output, error) from None
        return self._attempt.publish(claim, still_ours)

    def make_directory(self, path: str) -> None:
        os.mkdir(self._full(path))

    def make_link(self, path: str, target: str) -> None:
        os.symlink(target, self._full(path))

    def receive(self, path: str, header: Header) -> Receiving:
        directory, name = os.path.split(self._full(path))
        return Incoming({**header, "file": name}, directory, on_whole=self._synced.add)

    def set_mode(self, path: str, mode: int) -> None:
        os.chmod(self._full(path), mode)

    def is_there(self) -> bool:
        with suppress(OSError):
            return os.path.lexists(self.directory)
        return False

    def _full(self, path: str) -> str:
        return os.path.join(self.directory, path)
