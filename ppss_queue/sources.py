"""What the user names (directories, files, lists, Python iterables) as one lazy stream of items.

Rules worth knowing, each in one place below:

- A directory gives the regular files below it, hidden ones too, in directory order. Symbolic links count only
  with `follow_links`, as in `find -L`. Special files and directories named `.ppss` are left out. (`_walk`)
- A directory that is the only source: names are relative to it. Beside other sources its base name comes
  first; where two directories share a base name, all are named from their common parent. (`_place`)
- Files named one by one are named from their common parent, and no pattern filters them. (`open_sources`)
- Lines of a list are texts, or files with `files`: relative ones below the current directory, absolute ones
  and those with `..` below their common parent. Empty lines are skipped. (`_records`, `_spool_files`)
- The same source twice gives its items twice, as it would with xargs.
"""

# os.path, not pathlib: names are kept as they are, and a Path per name costs more than the walk itself.

from __future__ import annotations

import difflib
import os
import re
import stat
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

from ppss_queue.errors import BadInput, MachineFailed

if TYPE_CHECKING:
    import sqlite3

Order = Literal["found", "random", "size"]

_CHUNK_BYTES = 1 << 20
# Linux refuses an environment string above 128 KiB (MAX_ARG_STRLEN), its name and closing NUL included.
_MAX_ITEM_BYTES = (128 << 10) - len("PPSS_ITEM=") - 1
# Directories held open in a walk. Deeper ones are read whole: a deep tree must not use up the descriptors.
_MAX_OPEN_DIRECTORIES = 64
_MAX_EXAMPLES = 3
_MAX_SIBLINGS = 10_000
_SCRATCH = ".ppss"


class SourceItem(NamedTuple):
    """One item: its name (surrogateescape, any byte but NUL) and the index of its root in `Sources.roots`."""

    name: str
    root: int = 0


class Sources:
    """All sources of one run. Iterate once, like a file: memory stays constant, whatever the number of items.

    `roots` is known before the first item: an absolute directory for files, "" for texts. Iterating raises
    BadInput for a list that can't be read or holds what no command takes, MachineFailed for a full disk.
    """

    def __init__(self, roots: Sequence[str], items: Iterator[SourceItem], notes: _Notes) -> None:
        self.roots = tuple(roots)
        self._items = items
        self._notes = notes

    def __iter__(self) -> Iterator[SourceItem]:
        return self._items

    @property
    def warnings(self) -> list[str]:
        """What was odd so far, one line per kind with the first examples; complete after the last item."""
        return self._notes.lines()


def local_path(root: str, name: str) -> str:
    """The path of the item `name` below `root`, or the text itself if `root` is ""."""
    return f"{root.rstrip('/')}/{name}" if root else name


def open_sources(
    paths: Sequence[str],
    *,
    list_file: str | None = None,
    stdin: BinaryIO | None = None,
    delimiter: bytes = b"\n",
    files: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_depth: int | None = None,
    follow_links: bool = False,
    skip_directories: Collection[str] = (),
    order: Order = "found",
    seed: int | None = None,
    cwd: str | None = None,
) -> Sources:
    """Check all that was named, and return its items: those of `paths` as given, then those of the list.

    `list_file` "-" is `stdin`, which is also the list if nothing else is named. `include` and `exclude` are
    globs for files that a walk finds: without a slash for the base name, with one for the path below the
    directory, `**` being any number of directories; an excluded directory is not entered. `max_depth` 1 is
    the files directly in a directory. `skip_directories` (absolute; they may not exist yet) are not entered
    unless named as a source. `order` "random" repeats itself for one `seed` if the items are found in the
    same order; "size" is largest first, so that no long item is left to the end. `cwd` is where relative
    paths start.

    Raises BadInput for what the caller must correct, MachineFailed if there is no room for a temporary file.
    """
    if not delimiter:
        raise BadInput("the delimiter is empty. Use a character, or -0 for NUL.")
    if max_depth is not None and max_depth < 1:
        raise BadInput(f"a depth of {max_depth} holds no files. Use 1 for the files directly in a directory.")
    if list_file is None and not paths:
        list_file = "-"
    here = _current_directory() if cwd is None else _absolute(cwd, _current_directory())
    notes = _Notes()
    walk = _Walk(_globs(include), _globs(exclude), max_depth, follow_links, tuple(skip_directories), notes)
    named = [_examine(path, here) for path in paths]
    places = _place([path for path, is_directory in named if is_directory], len(paths) == 1 and not list_file)
    parents = [os.path.dirname(path) for path, is_directory in named if not is_directory]
    file_roots = [os.path.commonpath(parents)] if parents else []
    list_roots, listed = _open_list(list_file, stdin, delimiter, files, here, notes)
    # The list first: its items carry positions in its own roots.
    roots = list(dict.fromkeys([*list_roots, *(root for root, _ in places.values()), *file_roots]))
    if order == "size" and "" in roots:
        raise BadInput(
            "only files have a size to order by, and lines are texts. Add --files if they name files."
        )

    def from_paths() -> Iterator[SourceItem]:
        for path, is_directory in named:
            if is_directory:
                root, base = places[path]
                yield from _walk(path, base, roots.index(root), walk)
            else:
                yield SourceItem(_below(path, file_roots[0]), roots.index(file_roots[0]))

    items = chain(from_paths(), listed)
    return Sources(roots, items if order == "found" else _ordered(items, roots, order, seed), notes)


def texts(iterable: Iterable[str | bytes | os.PathLike[str]]) -> Sources:
    """The items of a Python iterable, consumed once: str and bytes are texts, `Path` objects are files.

    Paths are named like the lines of a list of files, and read to their end at once, onto disk; texts stream.
    Raises BadInput for an item that is neither, holds NUL, is too long, or is not of the kind of the first.
    """
    if isinstance(iterable, (str, bytes, os.PathLike)):
        raise BadInput(f"items are a list, not one {type(iterable).__name__}: pass [{iterable!r:.80}].")
    items = iter(iterable)
    first = list(islice(items, 1))
    notes = _Notes()
    if not (first and isinstance(first[0], os.PathLike)):
        return Sources([""], map(SourceItem, _checked(chain(first, items), (str, bytes))), notes)
    paths = _checked(chain(first, items), (os.PathLike,))
    return Sources(*_spool_files(paths, _current_directory(), "the paths", notes), notes)


def _checked(items: Iterable[object], kinds: tuple[type, ...]) -> Iterator[str]:
    for number, item in enumerate(items, 1):
        if not isinstance(item, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise BadInput(f"item {number} is of type {type(item).__name__}, not {wanted}: {item!r:.80}.")
        try:
            raw = os.fsencode(item)  # type: ignore[arg-type]  # isinstance() above says so
        except UnicodeEncodeError:
            raise BadInput(f"item {number} has no bytes in this locale: {item!r:.80}. Pass bytes.") from None
        if fault := _fault(raw):
            raise BadInput(f"item {number} {fault}: {item!r:.80}.")
        yield os.fsdecode(raw)


@dataclass(slots=True)
class _Notes:
    """Oddities met on the way: a count and the first examples per kind, however many there are."""

    _kinds: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def add(self, kind: str, example: str = "", count: int = 1) -> None:
        before, examples = self._kinds.get(kind, (0, []))
        if example and len(examples) < _MAX_EXAMPLES:
            examples.append(example)
        self._kinds[kind] = (before + count, examples)

    def lines(self) -> list[str]:
        return [self._line(kind, count, examples) for kind, (count, examples) in self._kinds.items()]

    def _line(self, kind: str, count: int, examples: list[str]) -> str:
        more = count - len(examples)
        shown = [*examples, f"{more:,} more"] if examples and more else examples
        return f"{kind}: {', '.join(shown) if shown else f'{count:,}'}"


# --- paths ---


def _current_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise BadInput(f"the current directory is gone ({error.strerror}). Go to another.") from None


def _absolute(path: str, cwd: str) -> str:
    """`path` from `cwd` without `.`, `..` and double slashes. Links stay as named, except before a `..`."""
    steps = os.path.join(cwd, path).split("/")
    if ".." in steps:
        # The kernel follows a link before it goes up: cutting out `link/..` would name another directory.
        end = len(steps) - steps[::-1].index("..")
        steps[:end] = [os.path.realpath("/".join(steps[:end]))]
    return "/" + os.path.normpath("/".join(steps)).lstrip("/")


def _below(path: str, root: str) -> str:
    return path[len(root) :].lstrip("/") or "."


def _mode(path: str, cwd: str) -> int:
    """The `st_mode` of what a user named; BadInput if it is not there or can't be read."""
    full = os.path.join(cwd, path)
    try:
        mode = os.stat(full).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # not a pipe: its writer would see a reader leave
            os.close(os.open(full, os.O_RDONLY))
    except FileNotFoundError:
        if os.path.islink(full):
            raise BadInput(f"{path!r} is a link to nothing: {os.readlink(full)!r}. Mend it.") from None
        raise BadInput(f"no such file or directory: {path!r}. {_suggestion(path, cwd)}") from None
    except OSError as error:
        raise BadInput(f"can't read {path!r}: {error.strerror}. Check it and its permissions.") from None
    except ValueError:
        raise BadInput(f"{path!r} can't be a path. Take out what no file name can hold.") from None
    return mode


def _suggestion(path: str, cwd: str) -> str:
    head, name = os.path.split(path.rstrip("/"))
    while head and not os.path.isdir(os.path.join(cwd, head)):
        head, name = os.path.split(head)
    near: list[str] = []
    with suppress(OSError), os.scandir(os.path.join(cwd, head)) as entries:
        near = difflib.get_close_matches(name, [entry.name for entry in islice(entries, _MAX_SIBLINGS)], 1)
    if not near:
        return f"Relative paths start from {cwd!r}."
    found = os.path.join(head, near[0])
    return f"Did you mean {found + '/' if os.path.isdir(os.path.join(cwd, found)) else found!r}?"


def _examine(path: str, cwd: str) -> tuple[str, bool]:
    """The absolute path of a source that is there and readable, and whether it is a directory."""
    if not path:
        raise BadInput("a source is an empty string. Is a variable unset?")
    mode = _mode(path, cwd)
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise BadInput(f"{path!r} is neither a file nor a directory. If it gives a list: -f {path!r}.")
    return _absolute(path, cwd), stat.S_ISDIR(mode)


def _place(directories: Sequence[str], alone: bool) -> dict[str, tuple[str, str]]:
    """For each directory source its root, and what stands before the names of its files."""
    distinct = list(dict.fromkeys(directories))
    if alone or not distinct:
        return {directory: (directory, "") for directory in distinct}
    parents = {directory: os.path.dirname(directory) for directory in distinct}
    if len({os.path.basename(directory) for directory in distinct}) < len(distinct):
        parents = dict.fromkeys(distinct, os.path.commonpath(parents.values()))
    return {path: (root, f"{path[len(root) :].strip('/')}/".lstrip("/")) for path, root in parents.items()}


# --- directories ---


@dataclass(frozen=True, slots=True)
class _Walk:
    include: re.Pattern[str] | None
    exclude: re.Pattern[str] | None
    max_depth: int | None
    follow_links: bool
    skip_directories: tuple[str, ...]
    notes: _Notes


def _walk(top: str, base: str, root: int, walk: _Walk) -> Iterator[SourceItem]:
    """Yield the files below `top` depth first, named `base` + path below `top`."""
    include, exclude, follow, notes = walk.include, walk.exclude, walk.follow_links, walk.notes
    skipped = {identity for path in walk.skip_directories if (identity := _identity(path))}
    levels = [("", _identity(top), _entries(top, base or ".", True, notes))]
    while levels:
        below, _, entries = levels[-1]
        for entry in entries:
            path = below + entry.name
            if exclude and exclude.fullmatch(path):
                continue
            kind = _kind(entry, follow)
            if kind == "directory":
                identity = _identity(entry.path)
                if len(levels) == walk.max_depth or entry.name == _SCRATCH or identity in skipped:
                    continue
                if any(identity == above for _, above, _ in levels):
                    notes.add("links back to a directory above, not followed", repr(base + path))
                    continue
                stream = len(levels) < _MAX_OPEN_DIRECTORIES
                levels.append((path + "/", identity, _entries(entry.path, base + path, stream, notes)))
                break
            if kind == "special" or (include and not include.fullmatch(path)):
                continue
            if kind == "file":
                yield SourceItem(base + path, root)
            else:
                notes.add(kind, repr(base + path))
        else:
            levels.pop()


def _kind(entry: os.DirEntry[str], follow: bool) -> str:
    """What it is: "file", "directory", "special", or what to note about a link that gives no item."""
    try:
        if entry.is_file(follow_symlinks=follow):
            return "file"
        if entry.is_dir(follow_symlinks=follow):
            return "directory"
        if not entry.is_symlink():
            return "special"
        if not follow:
            return "symbolic links, skipped (--follow-links takes them)"
        entry.stat()
        return "special"
    except OSError:
        return "symbolic links to nothing, skipped"


def _identity(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def _entries(path: str, shown: str, stream: bool, notes: _Notes) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            if stream:
                yield from entries
                return
            whole = list(entries)
        yield from whole
    except OSError as error:
        notes.add("directories that can't be read, skipped", f"{shown!r} ({error.strerror})")


def _globs(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """One regular expression for the path below the source, or None without patterns."""
    return re.compile("|".join(map(_glob, patterns)), re.DOTALL) if patterns else None


def _glob(pattern: str) -> str:
    steps = [step for step in pattern.split("/") if step not in ("", ".")]
    if not steps:
        raise BadInput(f"the pattern {pattern!r} names no file. Use '*' for all files.")
    anchored = "/" in pattern.rstrip("/")
    directories = ["(?:[^/]+/)*" if step == "**" else _glob_step(step) + "/" for step in steps[:-1]]
    last = ".+" if steps[-1] == "**" else _glob_step(steps[-1])
    return ("" if anchored else "(?:[^/]+/)*") + "".join(directories) + last


def _glob_step(step: str) -> str:
    """`*`, `?`, `[a-z]`, `[!a-z]` and backslash as in `find -name`; an unclosed bracket is itself."""
    tokens = re.findall(r"\\.|\[[!^]?\]?(?:\\.|[^\]\\])*\]|.", step, re.DOTALL)
    return "".join(_glob_token(token) for token in tokens)


def _glob_token(token: str) -> str:
    if token in ("*", "?"):
        return "[^/]*" if token == "*" else "[^/]"
    if len(token) == 1 or token in ("[]", "[!]", "[^]"):
        return re.escape(token)
    if token[0] == "\\":
        return re.escape(token[1:])
    negated = token[1] in "!^"
    ranges = re.findall(r"\\?+(.)-\\?+(.)|\\?+(.)", token[1 + negated : -1], re.DOTALL)
    members = ["-".join(map(re.escape, (a, z))) if a else re.escape(one) for a, z, one in ranges if a <= z]
    if negated:
        return f"[^/{''.join(members)}]"
    return f"(?!/)[{''.join(members)}]" if members else "(?!)"


# --- lists ---


def _open_list(
    list_file: str | None, stdin: BinaryIO | None, delimiter: bytes, files: bool, cwd: str, notes: _Notes
) -> tuple[tuple[str, ...], Iterator[SourceItem]]:
    """The roots of a list, and its items with the position of their root."""
    if list_file is None:
        return (), iter(())
    if list_file == "-":
        label, lines = "stdin", _records(_stdin_reader(stdin), delimiter, "stdin", notes)
    elif stat.S_ISDIR(_mode(list_file, cwd)):
        raise BadInput(f"{list_file!r} is a directory, not a list. Leave -f out to take the files in it.")
    else:
        label, lines = repr(list_file), _lines(list_file, delimiter, cwd, notes)
    return _spool_files(lines, cwd, label, notes) if files else (("",), map(SourceItem, lines))


def _stdin_reader(stdin: BinaryIO | None) -> Callable[[int], bytes]:
    if stdin is None:
        raise BadInput("there is no source. Name a directory, files, or -f LIST, or pipe a list into stdin.")
    with suppress(OSError, ValueError):
        # A slow pipe that another program made non-blocking would look like the end of the list.
        os.set_blocking(stdin.fileno(), True)
    read1: Callable[[int], bytes] = getattr(stdin, "read1", stdin.read)
    return read1


def _lines(path: str, delimiter: bytes, cwd: str, notes: _Notes) -> Iterator[str]:
    try:
        stream = open(os.path.join(cwd, path), "rb", buffering=0)  # noqa: SIM115 - closed by the `with` below
    except OSError as error:
        raise BadInput(f"can't read {path!r}: {error.strerror}. Keep it until all is enqueued.") from None
    with stream:
        yield from _records(stream.read, delimiter, repr(path), notes)


def _records(read: Callable[[int], bytes], delimiter: bytes, label: str, notes: _Notes) -> Iterator[str]:
    """Yield what stands between delimiters, every byte kept; the end of the data ends the last one."""
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    number, rest, more = 1, b"", True
    while more:
        try:
            chunk = read(_CHUNK_BYTES)
        except OSError as error:
            raise BadInput(f"can't read {label}: {error.strerror}. Check it and try again.") from None
        more = bool(chunk)
        block = rest + chunk
        parts = block.split(delimiter) if more else [block, b""]
        rest = parts.pop()
        # The end of `rest` may be the beginning of a delimiter.
        _refuse_faults([*parts, rest[: max(0, len(rest) + 1 - len(delimiter))]], number, delimiter, label)
        number += len(parts)
        if more and (empty := parts.count(b"")):
            notes.add(f"empty items of {label}, skipped", count=empty)
        if delimiter == b"\n" and (returns := block.count(b"\r\n")):
            kept = "the carriage return is kept as part of the item (--delimiter '\\r\\n' drops it)"
            notes.add(f"{label} has CRLF line ends, {kept}", count=returns)
        for part in parts:
            if part:
                yield part.decode(encoding, errors)


def _refuse_faults(parts: list[bytes], first: int, delimiter: bytes, label: str) -> None:
    if max(map(len, parts)) <= _MAX_ITEM_BYTES and not any(b"\0" in part for part in parts):
        return
    unit = "line" if delimiter == b"\n" else "item"
    for number, part in enumerate(parts, first):
        if fault := _fault(part):
            advice = "If the items are separated by NUL, use -0; by something else, --delimiter."
            raise BadInput(f"{unit} {number:,} of {label} {fault}. {advice}")


def _fault(item: bytes) -> str:
    if b"\0" in item:
        return "holds a NUL byte, which no command can be given"
    if len(item) > _MAX_ITEM_BYTES:
        return f"is longer than the {_MAX_ITEM_BYTES:,} bytes that a command can be given"
    return ""


# --- what needs all items at once goes to disk, since there may be millions ---


def _spool_files(
    paths: Iterable[str], cwd: str, label: str, notes: _Notes
) -> tuple[tuple[str, ...], Iterator[SourceItem]]:
    """The roots of a list of files, known at its end: `cwd`, and the common parent of the absolute paths."""
    common, counts = "", [0, 0]

    def rows() -> Iterator[_Row]:
        nonlocal common
        for path in paths:
            absolute = path.startswith("/") or ".." in path.split("/")
            counts[absolute] += 1
            if not absolute:
                yield 0, 0, os.path.normpath(path)
                continue
            path = _absolute(path, cwd)
            if not common or not path.startswith(common.rstrip("/") + "/"):
                parent = os.path.dirname(path)
                common = os.path.commonpath((common or parent, parent))
            yield 0, 1, path

    spool = _spool(rows())
    found = sorted([(counts[0], cwd), (counts[1], common)], reverse=True)
    # The root of most items first: it is the default of an item.
    roots = tuple(dict.fromkeys(root for count, root in found if count)) or (cwd,)

    def items() -> Iterator[SourceItem]:
        missing = f"files of {label} that are not there, kept, and likely to fail"
        positions = [roots.index(root) if root in roots else 0 for root in (cwd, common)]
        for absolute, path in _unspool(spool, "rowid"):
            if not os.path.lexists(os.path.join(cwd, path)):
                notes.add(missing, repr(path))
            yield SourceItem(_below(path, common) if absolute else path, positions[absolute])

    return roots, items()


def _ordered(
    items: Iterator[SourceItem], roots: Sequence[str], order: Order, seed: int | None
) -> Iterator[SourceItem]:
    import random

    draw = random.Random(seed)

    def rank(item: SourceItem) -> int:
        return draw.getrandbits(62) if order == "random" else -_size(local_path(roots[item.root], item.name))

    for root, name in _unspool(_spool((rank(item), item.root, item.name) for item in items), "rank, rowid"):
        yield SourceItem(name, root)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


_Row = tuple[int, int, str]  # rank, root, name


def _spool(rows: Iterable[_Row]) -> sqlite3.Connection:
    """A private database in the temporary directory, gone when closed; 2 MB of it are kept in memory."""
    import sqlite3

    spool = sqlite3.connect("", check_same_thread=False)
    try:
        spool.execute("PRAGMA journal_mode = OFF")
        spool.execute("CREATE TABLE item (rank INTEGER, root INTEGER, name BLOB)")
        values = ((rank, root, os.fsencode(name)) for rank, root, name in rows)
        spool.executemany("INSERT INTO item VALUES (?, ?, ?)", values)
    except sqlite3.Error as error:
        raise _spool_failed(error) from None
    return spool


def _unspool(spool: sqlite3.Connection, order: Literal["rowid", "rank, rowid"]) -> Iterator[tuple[int, str]]:
    import sqlite3

    with closing(spool):
        try:
            for root, name in spool.execute(f"SELECT root, name FROM item ORDER BY {order}"):
                yield root, os.fsdecode(name)
        except sqlite3.Error as error:
            raise _spool_failed(error) from None


def _spool_failed(error: Exception) -> MachineFailed:
    return MachineFailed(f"can't keep the list in a temporary file ({error}). Make room, or set TMPDIR.")
