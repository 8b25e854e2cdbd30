"""Outputs of an agentless node as a tar stream: what is in it is made here, and nowhere else."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ppss_worker.agentless.unpacking import Unpacking
from ppss_worker.publishing import OutputRefused


def _entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"", mode: int = 0o644
) -> tuple:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size, entry.mode, entry.mtime = (
        kind,
        link,
        len(data),
        mode,
        1_000_000_000,
    )
    return entry, data


def _stream(*entries: tuple) -> io.RawIOBase:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry, data in entries:
            archive.addfile(entry, io.BytesIO(data))
    file.seek(0)
    return file  # type: ignore[return-value]


def _unpack(into: Path, *entries: tuple, missing: dict[str, int] | None = None) -> None:
    into.mkdir()
    Unpacking(str(into), missing or {}).unpack(_stream(*entries))


def test_files_directories_and_links_are_made_as_they_were(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sparse = bytes(3_000_000) + b"end" + bytes(5_000_000)
    _unpack(
        out,
        _entry("./", tarfile.DIRTYPE, mode=0o700),
        _entry("./closed", tarfile.DIRTYPE, mode=0o555),
        _entry("./closed/new\nline \udcff", data=b"x" * 300_000),
        _entry("./secret", data=b"s", mode=0o600),
        _entry("./again", tarfile.LNKTYPE, "./secret"),
        _entry("./link", tarfile.SYMTYPE, "/etc/passwd"),
        _entry("./sparse", data=sparse),
        _entry("./empty"),
        missing={"secret": 0o400},
    )
    assert (out / "closed" / "new\nline \udcff").read_bytes() == b"x" * 300_000
    assert [(out / name).stat().st_mode & 0o777 for name in ("closed", "secret")] == [0o555, 0o200]
    assert os.readlink(out / "link") == "/etc/passwd"
    assert (out / "again").samefile(out / "secret")
    assert (out / "sparse").stat().st_blocks * 512 < 2_000_000
    assert (out / "sparse").read_bytes() == sparse
    assert (out / "empty").stat().st_mtime == 1_000_000_000


@pytest.mark.parametrize(
    "entries",
    [
        lambda top: [_entry("../escaped", data=b"x")],
        lambda top: [_entry("./a/../../escaped", data=b"x")],
        lambda top: [_entry(f"{top}/escaped", data=b"x")],
        lambda top: [_entry("./link", tarfile.SYMTYPE, str(top)), _entry("./link/escaped", data=b"x")],
        lambda top: [
            _entry("./d", tarfile.DIRTYPE),
            _entry("./d", tarfile.SYMTYPE, str(top)),
            _entry("./d/escaped"),
        ],
        lambda top: [_entry("./link", tarfile.LNKTYPE, f"{top}/precious")],
        lambda top: [_entry("./link", tarfile.SYMTYPE, f"{top}/precious"), _entry("./link", data=b"x")],
        lambda top: [
            _entry("./a", tarfile.SYMTYPE, f"{top}/precious"),
            _entry("./b", tarfile.LNKTYPE, "./a"),
        ],
        lambda top: [_entry("./pipe", tarfile.FIFOTYPE)],
        lambda top: [_entry("./device", tarfile.CHRTYPE)],
    ],
)
def test_nothing_is_written_outside_and_no_device_is_made(
    tmp_path: Path, entries: Callable[[Path], list[tuple]]
) -> None:
    (tmp_path / "precious").write_text("precious")
    with pytest.raises((OutputRefused, FileExistsError)):
        _unpack(tmp_path / "out", *entries(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"out", "precious"}
    assert (tmp_path / "precious").read_text() == "precious"
