"""Wheels of what runs here: of PPSS itself, and of packages that are installed here and would run on the node."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
import zipfile
from collections.abc import Collection, Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.tags import Tag, parse_tag

from ppss_queue import __version__

OWN_NAME = "ppss-queue"
_OWN_PACKAGES = ("ppss_queue", "ppss_worker")
_NEVER = re.compile(
    r"(^|/)__pycache__/|\.pyc$|\.dist-info/(RECORD|INSTALLER|REQUESTED|direct_url\.json)$|^\.\./|^/"
)
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Of all files, so that the same content is always the same wheel."""


def pack_own(directory: Path) -> Path:
    """The wheel of the code that runs here, as it is, in a directory of its hash; its version is `__version__`."""
    info = f"ppss_queue-{__version__}.dist-info"
    files = [(name, path.read_bytes()) for name, path in _own_files()]
    metadata = f"Metadata-Version: 2.1\nName: {OWN_NAME}\nVersion: {__version__}\n"
    files.append((f"{info}/METADATA", metadata.encode()))
    files.append((f"{info}/WHEEL", _wheel_file([Tag("py3", "none", "any")])))
    digest = hashlib.sha256()
    for name, data in files:
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    target = directory / digest.hexdigest()[:16] / f"ppss_queue-{__version__}-py3-none-any.whl"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, info, ((name, data, 0o644) for name, data in files))
    return target


def pack_installed(name: str, directory: Path, tags: Collection[Tag]) -> Path | None:
    """The wheel of a package as it is installed here, if it would run where these tags fit; else None.

    What was changed since it was installed is not taken, nor what no wheel was the source of.
    """
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    own_tags = _tags(found)
    if not own_tags & set(tags):
        return None
    files = []
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if _NEVER.search(file.as_posix()):
            continue
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if file.hash is None or file.hash.mode != "sha256" or file.hash.value != _digest(data):
            return None
        files.append((file.as_posix(), data, path.stat().st_mode & 0o777))
    info = next(
        (each.partition("/")[0] for each, _, _ in files if each.endswith(".dist-info/METADATA")), None
    )
    if info is None:
        return None
    target = directory / f"{info.removesuffix('.dist-info')}-{_compressed(own_tags)}.whl"
    _write(target, info, files)
    return target


def _own_files() -> Iterator[tuple[str, Path]]:
    for package in _OWN_PACKAGES:
        spec = find_spec(package)
        assert spec and spec.origin, package
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*")):
            name = f"{package}/{path.relative_to(root).as_posix()}"
            if path.is_file() and not _NEVER.search(name):
                yield name, path


def _tags(found: Distribution) -> frozenset[Tag]:
    lines = (found.read_text("WHEEL") or "").splitlines()
    texts = [line.partition(":")[2].strip() for line in lines if line.startswith("Tag:")]
    return frozenset(tag for text in texts for tag in parse_tag(text))


def _compressed(tags: Iterable[Tag]) -> str:
    """The tags as the name of a wheel has them."""
    parts = [sorted({getattr(tag, part) for tag in tags}) for part in ("interpreter", "abi", "platform")]
    return "-".join(".".join(part) for part in parts)


def _wheel_file(tags: Iterable[Tag]) -> bytes:
    lines = [
        "Wheel-Version: 1.0",
        "Generator: ppss",
        "Root-Is-Purelib: true",
        *(f"Tag: {tag}" for tag in tags),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def _write(target: Path, info: str, files: Iterable[tuple[str, bytes, int]]) -> None:
    """Whole, or not at all."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    record = []
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data, mode in files:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr, entry.compress_type = (0o100000 | mode) << 16, zipfile.ZIP_DEFLATED
            wheel.writestr(entry, data)
            record.append(f"{name},sha256={_digest(data)},{len(data)}\n")
        entry = zipfile.ZipInfo(f"{info}/RECORD", _EPOCH)
        entry.external_attr = 0o100644 << 16
        wheel.writestr(entry, "".join(record) + f"{info}/RECORD,,\n")
    unfinished.replace(target)
