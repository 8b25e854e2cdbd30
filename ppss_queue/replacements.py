"""What a replacement string such as `{.}` means, and the values of one item that it is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ppss_queue.errors import BadInput

OUTPUT_FILE_LIMIT_BYTES = 200
"""Longest OUTPUT_FILE: leaves 55 bytes of the usual 255 for what a command adds to the name."""


@dataclass(frozen=True, slots=True)
class ItemValues:
    """What one attempt offers to a command.

    `item` is the local path or the text, `name` how it is shown (a file: relative to its source); `seq` counts
    from 1 in the run, `slot` from 1 on the node; `output_dir` is "" for a run without `-o`;
    `output_file` is never "", "." or "..".
    """

    item: str
    name: str
    seq: int
    slot: int
    output_dir: str
    output_file: str


Value = Callable[[ItemValues], str]


@dataclass(frozen=True, slots=True)
class Replacement:
    """One replacement string: its value, and what stands for it between double quotes in a script."""

    value: Value
    script: str
    variable: str = ""
    """The variable that a script needs for it, "" if the worker's own ones suffice."""


def output_file_of(text: str) -> str:
    """The OUTPUT_FILE of an item: its last component without NUL, at most 200 bytes, whole characters.

    Never "", "." or "..": these become "item". Trailing slashes do not count.
    """
    name = text.replace("\0", "").rstrip("/").rpartition("/")[2][:OUTPUT_FILE_LIMIT_BYTES]
    while not name.isascii() and len(name.encode("utf-8", "surrogateescape")) > OUTPUT_FILE_LIMIT_BYTES:
        name = name[:-1]
    return "item" if name in ("", ".", "..") else name


def _base(path: str) -> str:
    # "dir/" has the base name "dir", as for basename(1); GNU parallel gives an empty word.
    return path.rstrip("/").rpartition("/")[2] or path[:1]


def _directory(path: str) -> str:
    head, slash, _ = path.rstrip("/").rpartition("/")
    if not slash:
        return "/" if path.startswith("/") else "."
    return head.rstrip("/") or "/"


def _without_extension(path: str) -> str:
    # A name's leading dots start no extension, so `.bashrc` stays; GNU parallel would leave nothing.
    directory, slash, base = path.rpartition("/")
    stem = base.rpartition(".")[0]
    return directory + slash + stem if stem.strip(".") else path


def _derived(name: str, value: Value) -> Replacement:
    variable = f"PPSS_R_{name}"
    return Replacement(value, f"${{{variable}}}", variable)


ENVIRONMENT: Mapping[str, Value] = {
    "ITEM": lambda values: values.item,
    "OUTPUT_DIR": lambda values: values.output_dir,
    "OUTPUT_FILE": lambda values: values.output_file,
    "PPSS_ITEM": lambda values: values.name,
    "PPSS_SEQ": lambda values: str(values.seq),
    "PPSS_SLOT": lambda values: str(values.slot),
}
"""The variables exported by the worker whose values follow from ItemValues alone."""

ITEM = Replacement(ENVIRONMENT["ITEM"], "${ITEM}")

_MEANINGS: Mapping[str, Replacement] = {
    "{#}": Replacement(ENVIRONMENT["PPSS_SEQ"], "${PPSS_SEQ}"),
    "{%}": Replacement(ENVIRONMENT["PPSS_SLOT"], "${PPSS_SLOT}"),
    "{.}": _derived("NOEXT", lambda values: _without_extension(values.item)),
    "{..}": _derived("NOEXT2", lambda values: _without_extension(_without_extension(values.item))),
    "{/}": _derived("BASE", lambda values: _base(values.item)),
    "{//}": _derived("DIR", lambda values: _directory(values.item)),
    "{/.}": _derived("BASE_NOEXT", lambda values: _without_extension(_base(values.item))),
    "{/..}": _derived(
        "BASE_NOEXT2", lambda values: _without_extension(_without_extension(_base(values.item)))
    ),
    "{out}": Replacement(
        lambda values: f"{values.output_dir}/{values.output_file}", "${OUTPUT_DIR}/${OUTPUT_FILE}"
    ),
    "{out.}": _derived(
        "OUT_NOEXT", lambda values: f"{values.output_dir}/{_without_extension(values.output_file)}"
    ),
}
NUMBERS = frozenset({"{#}", "{%}"})
OUTPUTS = frozenset({"{out}", "{out.}"})

_NOT_IN_REPLACEMENT = re.compile(r"""[\s\0"'\\$`;&|<>()#]""")


class ReplacementStrings:
    """The replacement strings of one command; `item` is what stands for the item itself (`-I`)."""

    def __init__(self, item: str) -> None:
        if not item or item in _MEANINGS or _NOT_IN_REPLACEMENT.search(item):
            raise BadInput(
                f"'{item}' can't be a replacement string (-I): use a word such as {{}} or @, "
                "without blanks, quotes or characters of the shell, and none that has a meaning already"
            )
        self.item = item
        self.meanings = {**_MEANINGS, item: ITEM}
        longest_first = sorted(self.meanings, key=len, reverse=True)
        self.pattern = re.compile("|".join(re.escape(name) for name in longest_first))

    def split(self, text: str) -> list[str | Value]:
        """A word that no shell reads, as literal parts and values."""
        parts: list[str | Value] = []
        end = 0
        for found in self.pattern.finditer(text):
            parts += [text[end : found.start()], self.meanings[found[0]].value]
            end = found.end()
        return [part for part in (*parts, text[end:]) if part != ""]


def expand(template: str, path: str) -> str:
    """The name that a template such as `{.}.xmp` makes of a file's path."""
    values = ItemValues(path, path, 0, 0, "", "")
    parts = ReplacementStrings("{}").split(template)
    return "".join(part if isinstance(part, str) else part(values) for part in parts)
