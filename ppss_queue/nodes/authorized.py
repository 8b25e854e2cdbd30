"""Lines for nodes in ~/.ssh/authorized_keys of the master. Nothing else in that file is ever touched."""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ppss_queue.errors import BadInput, MachineFailed

_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose key a line is. All but the key itself stands at the line's end, which tells that it is ours."""

    master: str
    machine: str
    uid: int
    node: str
    """How the node is called."""
    key: str
    """`ssh-ed25519 AAAA...`"""

    @property
    def comment(self) -> str:
        return f"ppss:{self.master}:{self.machine}:{self.uid}:{self.node}"

    @classmethod
    def of(cls, line: bytes) -> Owner | None:
        """Of a line; None if the line is not ours."""
        words = line.decode(errors="surrogateescape").split()
        if len(words) < 3 or words[0].startswith("#") or not words[-1].startswith("ppss:"):
            return None
        fields = words[-1].split(":", 4)
        if len(fields) != 5 or not fields[3].isdecimal():
            return None
        return cls(fields[1], fields[2], int(fields[3]), fields[4], " ".join(words[-3:-1]))

    def is_same(self, other: Owner) -> bool:
        """Whether both are one node: it may have another name now, or a new key.

        Clones have one machine id, but neither.
        """
        here, there = ((owner.machine, owner.uid, owner.node) for owner in (self, other))
        return self.master == other.master and (self.key == other.key or here == there)


def file() -> Path:
    """This user's, where sshd looks for it whatever HOME says."""
    return Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".ssh" / "authorized_keys"


def let_in(file: Path, options: str, owner: Owner) -> bool:
    """Write the line of a node, in place of one that it had. False: it is there already.

    Raises MachineFailed if the file can't be written, BadInput if the node sent something that is no key.
    """
    if not _PUBLIC_KEY.fullmatch(owner.key):
        raise BadInput(f"{owner.node} sent no public key that can be understood. Look what runs there.")
    line = f"{options} {owner.key} {owner.comment}\n".encode(errors="surrogateescape")

    def is_its(each: bytes) -> bool:
        found = Owner.of(each)
        return found is not None and owner.is_same(found)

    def change(lines: list[bytes]) -> list[bytes]:
        if [each for each in lines if is_its(each)] == [line]:
            return lines
        kept = [each for each in lines if not is_its(each)]
        if kept and not kept[-1].endswith(b"\n"):
            kept[-1] += b"\n"
        return [*kept, line]

    return _edit(file, change) != 0


def take_back(file: Path, whose: Callable[[Owner], bool]) -> int:
    """Remove the lines of nodes of which that holds; how many. Raises MachineFailed."""

    def change(lines: list[bytes]) -> list[bytes]:
        return [line for line in lines if (owner := Owner.of(line)) is None or not whose(owner)]

    return -_edit(file, change) if file.exists() else 0


def _edit(file: Path, change: Callable[[list[bytes]], list[bytes]]) -> int:
    """How many lines more there are; another number than 0 too if only their text has changed."""
    try:
        real = Path(os.path.realpath(file))  # a link stays one
        real.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(real) as descriptor:
            before = _LINE.findall(_read(descriptor))
            after = change(list(before))
            if after == before:
                return 0
            _replace(real, b"".join(after), stat.S_IMODE(os.fstat(descriptor).st_mode))
            return len(after) - len(before) or 1
    except OSError as error:
        raise MachineFailed(
            f"'{file}' can't be written ({error.strerror or error}), so no node can log in here. Mend that."
        ) from None


@contextmanager
def _locked(real: Path) -> Iterator[int]:
    """The file, open and held; whoever replaced it meanwhile has released it, so it is opened anew."""
    while True:
        descriptor = os.open(real, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            current = False
            with suppress(FileNotFoundError):
                current = os.path.samestat(os.fstat(descriptor), os.stat(real))
            if current:
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _read(descriptor: int) -> bytes:
    with open(os.dup(descriptor), "rb") as opened:
        return opened.read()


def _replace(real: Path, content: bytes, mode: int) -> None:
    unfinished = real.with_name(f".{real.name}.ppss-{os.getpid()}")
    try:
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
            os.fchmod(opened.fileno(), mode)
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(real)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
