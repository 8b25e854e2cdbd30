"""Rows 14 to 16: real programs on real files, whole processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tools.bench.figures import Figure
from tools.bench.processes import Argument, seconds
from tools.bench.rounds import Round, Row

_XARGS = "xargs -P2 -n1"


def _ratio(this: Round, files: Path, *command: Argument) -> float:
    """The same words for both; each adds the file's name at the end."""
    names = this.inputs.listed(files)

    def ours() -> float:
        took = this.site.seconds("run", "-f", names, "--files", "-p2", "-q", "--", *command)
        this.site.flush()
        return took

    xargs = this.rivals.program("xargs")
    return this.ratio(ours, lambda: seconds([xargs, "-d", "\\n", "-a", names, "-P2", "-n1", *command]))


def _gzip(this: Round) -> Mapping[str, float]:
    return {"gzip": _ratio(this, this.inputs.texts(this.size(3000, 60)), "gzip", "-c")}


def _sha256sum(this: Round) -> Mapping[str, float]:
    return {"sha256sum": _ratio(this, this.inputs.texts(this.size(20000, 100)), "sha256sum")}


def _thumbnails(this: Round) -> Mapping[str, float]:
    """Written into a directory, and by PPSS in the only way in which a half picture is never seen there."""
    convert = this.rivals.program("convert")
    photos = this.inputs.photos(this.size(500, 10))
    names = this.inputs.listed(photos)
    small = ["-resize", "80x60"]
    with this.scratch() as out:

        def ours() -> float:
            command: list[Argument] = [convert, "{}", *small, "{out.}.png"]
            return this.site.seconds(
                "run", "-f", names, "--files", "-p2", "-q", "-o", out / "ppss", "--", *command
            )

        def rival() -> float:
            (out / "xargs").mkdir(exist_ok=True)
            text = f'{convert} "$0" {" ".join(small)} "{out}/xargs/$(basename "$0" .ppm).png"'
            argv: list[Argument] = [
                this.rivals.program("xargs"),
                "-a",
                names,
                "-P2",
                "-n1",
                "bash",
                "-c",
                text,
            ]
            return seconds(argv)

        found = this.ratio(ours, rival)
    this.site.flush()
    return {"thumbnails": found}


ROWS = (
    Row(
        14,
        "gzip over 3,000 small files (1 to 16 KiB)",
        (Figure("gzip", "gzip -c", _XARGS),),
        "find TEXTS -type f > names\nppss run -f names --files -p2 -q -- gzip -c\n"
        "xargs -d '\\n' -a names -P2 -n1 gzip -c > /dev/null",
        _gzip,
    ),
    Row(
        15,
        "sha256sum over 20,000 small files",
        (Figure("sha256sum", "sha256sum", _XARGS),),
        "find TEXTS -type f > names\nppss run -f names --files -p2 -q -- sha256sum\n"
        "xargs -d '\\n' -a names -P2 -n1 sha256sum > /dev/null",
        _sha256sum,
    ),
    Row(
        16,
        "ImageMagick thumbnails of 500 pictures",
        (Figure("thumbnails", "convert -resize", f"{_XARGS} bash -c"),),
        "find PHOTOS -type f > names\n"
        "ppss run -f names --files -p2 -q -o small -- convert {} -resize 80x60 {out.}.png\n"
        'xargs -a names -P2 -n1 bash -c \'convert "$0" -resize 80x60 "small/$(basename "$0" .ppm).png"\'',
        _thumbnails,
    ),
)
