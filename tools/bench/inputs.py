"""What the rows work on: lists and trees of files, each made once and removed at the end."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType


class Inputs:
    """A temporary directory of inputs. A context manager."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ppss-bench-in-"))

    def __enter__(self) -> Inputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self.directory / name
        if not path.exists():
            make(path)
        return path

    def numbers(self, count: int) -> Path:
        """A list of as many short lines."""
        return self._once(f"numbers-{count}", lambda path: _write_lines(path, map(str, range(count))))

    def repeated(self, line: str, count: int) -> Path:
        """A list of as many equal lines."""
        return self._once(f"{line}-{count}", lambda path: _write_lines(path, [line] * count))

    def names(self, count: int) -> Path:
        """A list of as many names of 40 characters."""
        return self._once(
            f"names-{count}", lambda path: _write_lines(path, (forty(at) for at in range(count)))
        )

    def tree(self, directories: int, files: int) -> Path:
        """Empty files, so many in each directory."""

        def make(path: Path) -> None:
            for directory in range(directories):
                folder = path / f"directory-{directory:04d}"
                folder.mkdir(parents=True)
                for file in range(files):
                    (folder / f"file-{file:06d}.dat").touch()

        return self._once(f"tree-{directories}-{files}", make)

    def texts(self, count: int) -> Path:
        """Small files that compress as logs do, 1 to 16 KiB; the same ones each time."""

        def make(path: Path) -> None:
            path.mkdir()
            chance = random.Random(1)
            words = [f"{chance.getrandbits(32):x}" for _ in range(2000)]
            for number in range(count):
                size = int(1024 * 2 ** chance.uniform(0, 4))
                text = " ".join(chance.choice(words) for _ in range(size // 8))
                (path / f"log {number:05d}.txt").write_text(text)

        return self._once(f"texts-{count}", make)

    def photos(self, count: int) -> Path:
        """PPM pictures of 320 x 240, noise over a gradient."""

        def make(path: Path) -> None:
            path.mkdir()
            chance = random.Random(2)
            for number in range(count):
                row = bytes((x * number + chance.randrange(32)) % 256 for x in range(3 * 320))
                (path / f"photo-{number:04d}.ppm").write_bytes(b"P6 320 240 255\n" + row * 240)

        return self._once(f"photos-{count}", make)

    def listed(self, directory: Path) -> Path:
        """A list of the files of a directory, by absolute name."""
        files = sorted(str(path) for path in directory.iterdir())
        return self._once(f"{directory.name}.list", lambda path: _write_lines(path, files))


def forty(number: int) -> str:
    """A name of 40 characters."""
    return f"data/experiment/{number:015d}.measured"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
