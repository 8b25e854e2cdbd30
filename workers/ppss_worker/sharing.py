"""The files of --with: once per node, kept under their hash, linked into the directory of each command.

And what both these and the files of items meet on their way to a node.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress

from ppss_queue.errors import MachineFailed, PpssError, ServiceFailed
from ppss_queue.model import SharedFile
from ppss_worker.file_gate import SERVICE
from ppss_worker.file_stream import CHANGED, Incoming, TransferFailed
from ppss_worker.messages import Data, Header
from ppss_worker.running import ItemRefused


def receive_shared(
    read: Callable[[Incoming | None], tuple[Header, Data]], path: str, file: SharedFile
) -> PpssError | None:
    """Keeps a file at `path`, to the last message of it; returns why it is not there.

    `read` gives the next message, and closes what is given to it if there is none. Raises what `read` does,
    ServiceFailed.
    """
    incoming: Incoming | None = None
    error: PpssError | None = None
    while True:
        header, data = read(incoming)
        if "done" in header:
            return error
        try:
            if error is not None:
                refuse_service(header)
            elif "file" in header:
                incoming = Incoming({**header, "file": _unfinished(path)}, os.path.dirname(path))
            elif incoming is None:
                raise failed(header)
            elif incoming.take(header, data):
                _keep(incoming.path, path, file)
                incoming = None
        except TransferFailed as reason:
            error = ItemRefused(f"misses a file of --with: {reason}")
        except OSError as reason:
            error = node_failed(reason)
        if error is not None and incoming is not None:
            incoming.close()
            incoming = None


def link_shared(source: str, work: str, path: str) -> None:
    """Puts a shared file where commands expect it. Raises OSError."""
    target = os.path.join(work, path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with suppress(FileExistsError):
        os.symlink(source, target)


def hash_of(path: str) -> str | None:
    """SHA-256 of a file; None if it can't be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def failed(header: Header) -> TransferFailed:
    """What the gate says instead of a file. Raises ServiceFailed."""
    refuse_service(header)
    return TransferFailed(str(header.get("kind")), str(header.get("failed", "the gate did not say why")))


def refuse_service(header: Header) -> None:
    """What the master may be able to do later is tried again with a new connection. Raises ServiceFailed."""
    if header.get("kind") == SERVICE:
        raise ServiceFailed(str(header["failed"]))


def node_failed(error: OSError) -> MachineFailed:
    """This node's disk does not take files."""
    name = f" '{os.fsdecode(error.filename)}'" if error.filename else ""
    return MachineFailed(
        f"files can't be fetched to this node: {error.strerror}{name}. Mend that, or --scratch DIR."
    )


def _unfinished(path: str) -> str:
    """A name beside `path` that nobody else uses; what is left there is removed."""
    name = f".{os.path.basename(path)}.{threading.get_native_id()}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(os.path.dirname(path), name))
    return name


def _keep(unfinished: str, path: str, file: SharedFile) -> None:
    """Raises OSError, or TransferFailed if it is another file than when the run was made."""
    if hash_of(unfinished) != file.sha256:
        os.unlink(unfinished)
        raise TransferFailed(CHANGED, f"{file.path!r} is not what it was when the run was made")
    os.chmod(unfinished, file.mode & 0o555)
    os.rename(unfinished, path)
