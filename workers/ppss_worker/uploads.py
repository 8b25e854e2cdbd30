"""The gate's half of bringing outputs home: what a node sends is built up in the attempt's scratch on the master.

The same scratch, fence and renames as for an attempt that ran here (staging.py, publishing.py): it is made after
the item was claimed and before its token is checked, so nothing that is said there changes.

    {"op": "make", "run", "seq", "token", "subdirectory"}
    {"op": "directory", "path", "mode"}  {"op": "link", "path", "target"}  {"op": "file", "path"} FILE ...
    {"op": "made"}                      is answered: {"outputs": [NAME ...]}, or {"failed": WHY, "kind": KIND}
    {"op": "publish", "run", "seq", "token", "taken": {NAME: [SEQ, ITEM]}}           : {"published": FILES}, or failed
    {"op": "discard", "run", "seq", "token"}                                         is not answered

A node that lost the connection in between starts again with "make", in a scratch of another name: what the gate of the
lost one had begun may go on for a while, and must not move what is only half there. To the new scratch the old one is
that of an earlier attempt.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from ppss_queue.errors import BadInput, LeaseLost, MachineFailed, PpssError
from ppss_worker.disk import Receiving, UploadScratch, UploadStaging
from ppss_worker.file_stream import TransferFailed
from ppss_worker.messages import Data, Header
from ppss_worker.publishing import MACHINE_ERRORS, OutputRefused, machine_failed
from ppss_worker.trees import OWNER_ALL

REFUSED = "refused"
"""Kind of a failure: the outputs can't be published; the item has failed."""
LOST = "lost"
"""The scratch was removed: by a newer attempt, or by somebody else."""
MACHINE = "machine"
"""The master's disk failed."""


def kind_of(error: PpssError) -> str:
    """What a node is told of an error."""
    return REFUSED if isinstance(error, OutputRefused) else LOST if isinstance(error, LeaseLost) else MACHINE


class Uploads:
    """Scratches of one node's attempts on this machine."""

    def __init__(self, staging_of: Callable[[str], UploadStaging]) -> None:
        """`staging_of`: where outputs of a run go; raises PpssError if there is none."""
        self._staging_of = staging_of
        self._nonce = secrets.token_hex(3)
        """Tells scratches of this connection from those of one that was lost, which may still be publishing."""
        self._attempts: dict[tuple[str, int, str], UploadScratch] = {}
        self._current: _Upload | None = None

    def take(self, op: str, header: Header, data: Data) -> Header | None:
        """Handles a message; what to answer, if anything. Raises PpssError, which is the answer then."""
        if op == "make":
            self._current = _Upload()
            with self._current.failing(""):
                key = _key(header)
                staging = self._staging_of(key[0])
                staging.prepare()
                attempt = staging.scratch(key[1], f"{key[2]}.{self._nonce}", str(header["subdirectory"]))
                self._attempts[key] = self._current.attempt = attempt
        elif op == "made":
            current, self._current = self._current, None
            if current is None:
                raise OutputRefused("was uploaded without a beginning")
            return {"outputs": current.finish()}
        elif op == "publish":
            return self._publish(header)
        elif op == "discard":
            if (key := _key(header)) in self._attempts:
                self._attempts.pop(key).discard()
        elif self._current is not None:
            self._current.take(op, header, data)
        return None

    def _publish(self, header: Header) -> Header:
        key = _key(header)
        attempt = self._attempts.get(key)
        if attempt is None:
            raise LeaseLost(f"item #{key[1]} has no scratch here any more")
        taken = cast("dict[str, list[object]]", header.get("taken") or {})
        owners = {name: (int(str(seq)), str(item)) for name, (seq, item) in taken.items()}
        try:
            return {"published": attempt.publish(lambda names: owners, attempt.is_there)}
        finally:
            with suppress(KeyError):
                del self._attempts[key]


class _Upload:
    """One attempt's outputs, on their way. The first thing that goes wrong is kept for the end."""

    def __init__(self) -> None:
        self.attempt: UploadScratch | None = None
        self._failure: PpssError | None = None
        self._modes: dict[str, int] = {"": OWNER_ALL}
        """Directories made here: nothing is written into any other, through a link say."""
        self._file: Receiving | None = None
        self._begun = 0
        """Files and links so far."""

    def take(self, op: str, header: Header, data: Data) -> None:
        if self._failure is not None or self.attempt is None:
            return
        with self.failing(str(header.get("path", ""))):
            if op == "":
                self._continue_file(header, data)
                return
            path = str(header["path"])
            parent, _, name = path.rpartition("/")
            if parent not in self._modes or name in ("", ".", ".."):
                raise OutputRefused(f"sends {path!r}, which is in no directory of its output")
            if op == "directory":
                self.attempt.make_directory(path)
                self._modes[path] = int(str(header["mode"])) & 0o7777
            elif op == "link":
                self._begun += 1
                self.attempt.make_link(path, str(header["target"]))
            elif op == "file":
                self._begun += 1
                self._file = self.attempt.receive(path, header)

    def finish(self) -> list[str]:
        """Names of all outputs. Raises what went wrong."""
        if self._failure is not None or self.attempt is None:
            raise self._failure or OutputRefused("was uploaded without a beginning")
        names: list[str] = []
        with self.failing(""):
            if self._file is not None:
                raise OutputRefused("was cut short in the middle of a file")
            for path in sorted(self._modes, reverse=True):  # inner ones first
                if path:
                    self.attempt.set_mode(path, self._modes[path])
            names = self.attempt.outputs()
            if sum(not name.endswith("/") for name in names) != self._begun:
                raise LeaseLost("files in its scratch were removed")
        if self._failure is not None:
            raise self._failure
        return names

    def _continue_file(self, header: Header, data: Data) -> None:
        if "failed" in header:  # perhaps before the file began
            raise TransferFailed(str(header.get("kind")), str(header["failed"]))
        if self._file is not None and self._file.take(header, data):
            self._file = None

    def failing(self, path: str) -> _Keeping:
        return _Keeping(self, path)

    def fail(self, error: BaseException, path: str) -> None:
        """Keeps it as what `finish` raises."""
        if self._file is not None:
            self._file.close()
            self._file = None
        is_local = isinstance(error, (OSError, OutputRefused))
        if is_local and self.attempt is not None and not self.attempt.is_there():
            self._failure = LeaseLost(
                "its scratch was removed, by a newer attempt of the item unless by others"
            )
        elif isinstance(error, TransferFailed) and error.kind == REFUSED:
            self._failure = OutputRefused(str(error))
        elif isinstance(error, TransferFailed):
            self._failure = OutputRefused(f"could not be read to its end: {error}")
        elif isinstance(error, PpssError):
            self._failure = error
        elif isinstance(error, OSError):
            scratch = f"{self.attempt.directory}/" if self.attempt is not None else ""
            if scratch and str(error.filename).startswith(scratch):
                path = str(error.filename).removeprefix(scratch)  # of an earlier message, perhaps
            if error.errno in MACHINE_ERRORS:
                where = self.attempt.directory if self.attempt else path
                self._failure = machine_failed(where, error)
            else:
                self._failure = OutputRefused(f"writes {path!r}, which can't be made: {error.strerror}")
        else:
            self._failure = MachineFailed(f"a node sent what this PPSS does not understand ({error!r}).")


class _Keeping:
    """Turns what is raised below into the failure of an upload."""

    def __init__(self, upload: _Upload, path: str) -> None:
        self._upload = upload
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, (PpssError, OSError, ValueError, KeyError)):
            self._upload.fail(error, self._path)
            return True
        return False


def _key(header: Header) -> tuple[str, int, str]:
    token = str(header["token"])
    if "/" in token:
        raise BadInput(f"{token!r} is no token")
    return str(header["run"]), int(str(header["seq"])), token
