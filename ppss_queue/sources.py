"""What the user names (directories, files, lists, Python iterables) as one lazy stream of items.

Rules worth knowing, each in one place:

- A directory gives the regular files below it, hidden ones too, in directory order. Symbolic links count only
  with `follow_links`, as in `find -L`. Special files and directories named `.ppss` are left out. (walk.py)
- A directory that is the only source: names are relative to it. Beside other sources its base name comes
  first; where two directories share a base name, all are named from their common parent. (`_place`)
- Files named one by one are named from their common parent, and no pattern filters them. (`open_sources`)
- Lines of a list are texts, or files with `files`: relative ones below the current directory, absolute ones
  and those with `..` below their common parent. Empty lines are skipped. (lists.py, `_spool_files`)
- The same source twice gives its items twice, as it would with xargs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import BinaryIO, Literal, NamedTuple

from ppss_queue.errors import BadInput
from ppss_queue.globs import compile_globs
from ppss_queue.lists import fault_of, file_records, stdin_records
from ppss_queue.notes import Notes
from ppss_queue.spool import Row, read_spool, write_spool
from ppss_queue.walk import Walk

Order = Literal["found", "random", "size"]

_MAX_SIBLINGS = 10_000


class SourceItem(NamedTuple):
    """One item: its name (surrogateescape, any byte but NUL) and the index of its root in `Sources.roots`."""

    name: str
    root: int = 0


class Sources:
    """All sources of one run. Iterate once, like a file: memory stays constant, whatever the number of items.

    `roots` is known before the first item: an absolute directory for files, "" for texts. Iterating raises
    BadInput for a list that can't be read or holds what no command takes, MachineFailed for a full disk.
    """

    def __init__(self, roots: Sequence[str], items: Iterator[SourceItem], notes: Notes) -> None:
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
    cwd: str | None = None,
) -> Sources:
    """Check all that was named, and return its items: those of `paths` as given, then those of the list.

    `list_file` "-" is `stdin`, which is also the list if nothing else is named. `include` and `exclude` are
    globs for files that a walk finds: without a slash for the base name, with one for the path below the
    directory, `**` being any number of directories; an excluded directory is not entered. `max_depth` 1 is
    the files directly in a directory. `skip_directories` (absolute; they may not exist yet) are not entered
    unless named as a source. `order` "size" is largest first, so that no long item is left to the end. `cwd`
    is where relative paths start.

    Raises BadInput for what the caller must correct, MachineFailed if there is no room for a temporary file.
    """
    if not delimiter:
        raise BadInput("the delimiter is empty. Use a character, or -0 for NUL.")
    if max_depth is not None and max_depth < 1:
        raise BadInput(f"a depth of {max_depth} holds no files. Use 1 for the files directly in a directory.")
    if list_file is None and not paths:
        list_file = "-"
    here = _current_directory() if cwd is None else _absolute(cwd, _current_directory())
    notes = Notes()
    globs = compile_globs(include), compile_globs(exclude)
    walk = Walk(*globs, max_depth, follow_links, tuple(skip_directories), notes)
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
                at = roots.index(root)
                for name in walk.files(path, base):
                    yield SourceItem(name, at)
            else:
                yield SourceItem(_below(path, file_roots[0]), roots.index(file_roots[0]))

    items = chain(from_paths(), listed)
    return Sources(roots, items if order == "found" else _ordered(items, roots, order), notes)


def texts(iterable: Iterable[str | bytes | os.PathLike[str]]) -> Sources:
    """The items of a Python iterable, consumed once: str and bytes are texts, `Path` objects are files.

    Paths are named like the lines of a list of files, and read to their end at once, onto disk; texts stream.
    Raises BadInput for an item that is neither, holds NUL, is too long, or is not of the kind of the first.
    """
    if isinstance(iterable, (str, bytes, os.PathLike)):
        raise BadInput(f"items are a list, not one {type(iterable).__name__}: pass [{iterable!r:.80}].")
    items = iter(iterable)
    first = list(islice(items, 1))
    notes = Notes()
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
        if fault := fault_of(raw):
            raise BadInput(f"item {number} {fault}: {item!r:.80}.")
        yield os.fsdecode(raw)


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
        import difflib

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


# --- lists ---


def _open_list(
    list_file: str | None, stdin: BinaryIO | None, delimiter: bytes, files: bool, cwd: str, notes: Notes
) -> tuple[tuple[str, ...], Iterator[SourceItem]]:
    """The roots of a list, and its items with the position of their root."""
    if list_file is None:
        return (), iter(())
    if list_file == "-":
        label, lines = "stdin", stdin_records(stdin, delimiter, notes)
    elif stat.S_ISDIR(_mode(list_file, cwd)):
        raise BadInput(f"{list_file!r} is a directory, not a list. Leave -f out to take the files in it.")
    else:
        label, lines = repr(list_file), file_records(list_file, delimiter, cwd, notes)
    return _spool_files(lines, cwd, label, notes) if files else (("",), map(SourceItem, lines))


# --- what needs all items at once ---


def _spool_files(
    paths: Iterable[str], cwd: str, label: str, notes: Notes
) -> tuple[tuple[str, ...], Iterator[SourceItem]]:
    """The roots of a list of files, known at its end: `cwd`, and the common parent of the absolute paths."""
    common, counts = "", [0, 0]

    def rows() -> Iterator[Row]:
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

    spool = write_spool(rows())
    found = sorted([(counts[0], cwd), (counts[1], common)], reverse=True)
    # The root of most items first: it is the default of an item.
    roots = tuple(dict.fromkeys(root for count, root in found if count)) or (cwd,)

    def items() -> Iterator[SourceItem]:
        missing = f"files of {label} that are not there, kept, and likely to fail"
        positions = [roots.index(root) if root in roots else 0 for root in (cwd, common)]
        for absolute, path in read_spool(spool, "rowid"):
            if not os.path.lexists(os.path.join(cwd, path)):
                notes.add(missing, repr(path))
            yield SourceItem(_below(path, common) if absolute else path, positions[absolute])

    return roots, items()


def whole(items: Iterable[SourceItem]) -> Iterator[SourceItem]:
    """The same items, of which none comes before all were read: what is wrong with one is found before the first."""
    spool = write_spool((0, item.root, item.name) for item in items)
    for root, name in read_spool(spool, "rowid"):
        yield SourceItem(name, root)


def _ordered(items: Iterator[SourceItem], roots: Sequence[str], order: Order) -> Iterator[SourceItem]:
    import random

    draw = random.Random()

    def rank(item: SourceItem) -> int:
        return draw.getrandbits(62) if order == "random" else -_size(local_path(roots[item.root], item.name))

    spool = write_spool((rank(item), item.root, item.name) for item in items)
    for root, name in read_spool(spool, "rank, rowid"):
        yield SourceItem(name, root)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
