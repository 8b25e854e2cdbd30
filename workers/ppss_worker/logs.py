"""Logs on the worker's disk: output of failed items (or of all), and a job log that spreadsheets read."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppss_queue.model import Item
from ppss_queue.quoting import shell_quoted
from ppss_worker.captures import capture_tail
from ppss_worker.observer import Ended, Verdict

LOG_BYTES = 64 * 1024
"""Of each of stdout and stderr, from the end; `--keep-output` and `--logs` keep all."""
_PIECE_BYTES = 1024 * 1024
_HEADER = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"


def kept_log(state_directory: Path, run: str, seq: int) -> Path:
    """Where the output of an item's last attempt is kept on the machine that ran it."""
    return state_directory / "logs" / run / f"{seq:07d}.log"


def log_name(item: Item) -> str:
    """File name of an item's log below --logs: its number keeps names apart, the rest is for people."""
    readable = re.sub(r"[^\w.@%+=,-]+", "_", item.name, flags=re.ASCII).strip("_")[-80:]
    return f"{item.seq:07d}-{readable}.log" if readable else f"{item.seq:07d}.log"


class Logs:
    """Writes the logs of one worker."""

    def __init__(self, state_directory: Path, directory: Path | None) -> None:
        """`directory`: --logs, made if missing: a log per item in `<run>/`, and the job log `<run>.joblog`."""
        self._state = state_directory
        self._directory = directory
        self._joblogs: dict[str, int] = {}

    def write(self, ended: Ended) -> None:
        """Raises OSError, with the name of the log, where the disk can't take it."""
        if ended.verdict in (Verdict.LOST, Verdict.RELEASED):
            return
        run, item = ended.run.id, ended.lease.item
        failed = ended.verdict is not Verdict.SUCCEEDED
        if failed or ended.run.spec.keep_output:
            limit = None if ended.run.spec.keep_output else LOG_BYTES
            _save(kept_log(self._state, run, item.seq), ended, limit)
        if self._directory is not None:
            # First what is short: a full disk may still take it.
            self._add_to_joblog(self._directory / f"{run}.joblog", run, _line(ended))
            _save(self._directory / run / log_name(item), ended, None)

    def close(self) -> None:
        for descriptor in self._joblogs.values():
            os.close(descriptor)
        self._joblogs.clear()

    def _add_to_joblog(self, path: Path, run: str, line: str) -> None:
        with _named(path):
            _write(self._joblog(path, run), os.fsencode(line))

    def _joblog(self, path: Path, run: str) -> int:
        if run not in self._joblogs:
            self.close()  # one at a time: a worker may live through thousands of runs
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # other workers may write there too
            if not os.fstat(descriptor).st_size:
                _write(descriptor, _HEADER.encode())
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            self._joblogs[run] = descriptor
        return self._joblogs[run]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What fails to be written does not know its own name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


def _write(descriptor: int, data: bytes) -> None:
    """All of it: a disk that is nearly full takes a part without a word."""
    while data:
        data = data[os.write(descriptor, data) :]


def _save(path: Path, ended: Ended, limit_bytes: int | None) -> None:
    """stdout, then stderr."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path), path.open("wb") as file:
        for source in (ended.stdout, ended.stderr):
            if source < 0:
                continue
            if limit_bytes is not None:
                tail, size = capture_tail(source, limit_bytes)
                if size > len(tail):
                    file.write(f"[the first {size - len(tail):,} bytes are left out]\n".encode())
                file.write(tail)
                continue
            size = os.fstat(source).st_size
            for at in range(0, size, _PIECE_BYTES):
                file.write(os.pread(source, min(_PIECE_BYTES, size - at), at))
        if ended.stdout < 0 and ended.stderr < 0 and ended.outcome.last_line:
            file.write(os.fsencode(ended.outcome.last_line) + b"\n")


def _line(ended: Ended) -> str:
    """As GNU parallel's --joblog; the last column is the item, quoted so that tabs and newlines can't break it."""
    outcome = ended.outcome
    received = sum(os.fstat(source).st_size for source in (ended.stdout, ended.stderr) if source >= 0)
    failed = ended.verdict is not Verdict.SUCCEEDED
    # As GNU parallel for what timed out: readers must not take it for a success.
    exit_value = -1 if failed and outcome.reason and not outcome.exit_code else outcome.exit_code or 0
    fields = (
        ended.lease.item.seq,
        outcome.node,
        f"{ended.started_epoch:.3f}",
        f"{outcome.seconds:.3f}",
        0,
        received,
        exit_value,
        outcome.signal or 0,
        shell_quoted([ended.lease.item.name]),
    )
    return "\t".join(str(field) for field in fields) + "\n"
