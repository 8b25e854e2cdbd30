"""What becomes of the options about copies of files: of a run (--stage ...), and of a worker (--scratch ...)."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppss_queue.errors import BadInput
from ppss_queue.model import SharedFile
from ppss_queue.replacements import expand

if TYPE_CHECKING:
    from ppss_worker.file_line import Channel, OpenFiles
    from ppss_worker.settings import StageSettings

    from ppss_queue.queue import Queue


def staged_fields(values: dict[str, Any], here: str) -> dict[str, Any]:
    """The fields of RunSpec about copies, from the options of a run that is made in `here`. Raises BadInput."""
    if values["returns"] and values["output"] is None:
        raise BadInput("--return moves files to an output directory, and there is none: -o DIR")
    for option, templates in (("--also", values["also"]), ("--return", values["returns"])):
        for template in templates:
            if expand(template, "/a/b.c") == template:
                raise BadInput(
                    f"{option} '{template}' names the same file for every item. Write '{{.}}.xmp' or such"
                )
    if not values["stage"]:
        for name, option in (("also", "--also"), ("shared", "--with"), ("verify", "--verify")):
            if values[name]:
                raise BadInput(f"{option} is about files that are copied to nodes: add --stage")
        return {"returns": tuple(values["returns"])}
    return {
        "stage": True,
        "also": tuple(values["also"]),
        "shared": tuple(_shared(path, here) for path in dict.fromkeys(values["shared"])),
        "returns": tuple(values["returns"]),
        "verify": values["verify"],
    }


def refuse_staging_from_afar(values: dict[str, Any], url: str | None) -> None:
    """Files are fetched from the machine that --url names, and they are on this one. Raises BadInput."""
    if values["stage"] and url is not None and url.startswith("ssh:"):
        raise BadInput(
            f"--stage fetches files from {url}, and these are on this machine. Enqueue there, or serve from here."
        )


def open_files_of(queue: Queue) -> OpenFiles | None:
    """How a worker of this queue reaches files on the master; None: the master is this machine, or shares its files."""
    line = queue.connection.line
    if line is None:
        return None
    if queue.connection.address.scheme == "ssh":
        return lambda: line.open_gate("files")
    from ppss_worker.file_gate import QueueRuns
    from ppss_worker.sftp.gate import open_sftp_files

    from ppss_queue.queue import Queue

    def open_files() -> Channel:
        runs = QueueRuns(lambda: Queue(queue.connection.clone(name="ppss-files"), queue.keys))
        return open_sftp_files(line.open_sftp, runs.spec, runs.is_over)

    return open_files


def stage_settings(work: dict[str, Any], state: Path) -> StageSettings:
    """How this node stages files. Raises BadInput."""
    from ppss_worker.maps import PathMaps
    from ppss_worker.settings import StageSettings

    scratch = work.get("scratch")
    return StageSettings(
        Path(scratch).absolute() if scratch else state / "scratch",
        work.get("scratch_limit"),
        work.get("stage_ahead"),
        work.get("bwlimit"),
        bool(work.get("compress")),
        PathMaps.parse(work.get("maps") or ()),
    )


def _shared(path: str, here: str) -> SharedFile:
    full = os.path.normpath(os.path.join(here, path))
    inside = os.path.relpath(full, here)
    if inside == ".." or inside.startswith("../"):
        raise BadInput(
            f"--with '{path}' is not below the current directory, so commands could not name it the same way on "
            "every node. Go to a directory above it, or copy it here."
        )
    try:
        with open(full, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise BadInput(f"--with '{path}' is no file. Name files.")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except IsADirectoryError:
        raise BadInput(
            f"--with '{path}' is a directory. Name its files: --with '{path.rstrip('/')}/FILE'"
        ) from None
    except OSError as error:
        raise BadInput(f"--with '{path}' can't be read ({error.strerror}). Check it.") from None
    return SharedFile(inside, facts.st_size, stat.S_IMODE(facts.st_mode), digest)
