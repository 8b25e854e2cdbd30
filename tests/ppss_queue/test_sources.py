"""Sources: every name arrives exactly, in constant memory; a bad source is answered by one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppss_queue.errors import BadInput, ExitCode, MachineFailed
from ppss_queue.sources import Sources, local_path, open_sources, texts

HOSTILE = [
    b" both ends ",
    b"\ttab\t",
    b"new\nline",
    b"\n",
    b"return\r",
    b"'single' \"double\"",
    b"$(touch x)`touch y`;&|<>",
    b"-rf",
    b"--help",
    b"back\\slash\\",
    b"latin-\xe9",
    b"\xff\xfe\x80",
    "Grüße-日本-🎉".encode(),
    b"[a]*?{b}~#!%",
    b".hidden",
    b"...",
    b"a" * 255,
    b"\xf0" * 255,
    b"\x01\x7f\x1b[31m",
]


def names(sources: Iterable[Any]) -> list[str]:
    return [item.name for item in sources]


def paths(sources: Sources) -> list[str]:
    return [local_path(sources.roots[item.root], item.name) for item in sources]


def from_bytes(data: bytes, **options: Any) -> Sources:
    return open_sources([], stdin=io.BytesIO(data), **options)


def as_bytes(found: Iterable[str]) -> list[bytes]:
    return [os.fsencode(name) for name in found]


def tree(top: Path, *files: str) -> Path:
    for name in files:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(os.fsencode(name))
    return top


class Dribble(io.BytesIO):
    """A pipe that gives a few bytes at a time, so that every delimiter is cut somewhere."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(self.step)


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that every user can reach (tmp_path is closed to others)."""
    path = Path(tempfile.mkdtemp(prefix="ppss-test-"))
    path.chmod(0o755)
    yield path
    for directory, _, _ in os.walk(path):
        Path(directory).chmod(0o755)
    shutil.rmtree(path)


@contextlib.contextmanager
def without_root_rights() -> Iterator[None]:
    """Root reads everything; as nobody, permissions mean something."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# --- lists ---


@given(st.lists(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw)), st.integers(1, 9))
def test_any_list_of_names_comes_back_exactly_with_nul_between(raw: list[bytes], step: int) -> None:
    stream = Dribble(b"".join(name + b"\0" for name in raw), step)
    sources = open_sources([], stdin=stream, delimiter=b"\0")
    assert sources.roots == ("",)
    assert as_bytes(names(sources)) == raw
    assert sources.warnings == []


@given(st.lists(st.binary(min_size=1).filter(lambda raw: not {0, 10} & set(raw))), st.integers(1, 9))
def test_any_list_of_names_without_newline_comes_back_exactly_as_lines(raw: list[bytes], step: int) -> None:
    assert as_bytes(names(open_sources([], stdin=Dribble(b"\n".join(raw), step)))) == raw


@given(
    st.text("ab\r\n", max_size=40).map(str.encode),
    st.text("ab\r\n", min_size=1, max_size=3).map(str.encode),
    st.integers(1, 5),
)
def test_any_delimiter_splits_as_bytes_split_does(data: bytes, delimiter: bytes, step: int) -> None:
    found = as_bytes(names(open_sources([], stdin=Dribble(data, step), delimiter=delimiter)))
    assert found == [part for part in data.split(delimiter) if part]


@pytest.mark.parametrize("files", [False, True])
def test_a_list_in_a_file_is_the_same_as_on_stdin(tmp_path: Path, files: bool) -> None:
    data = b"".join(name + b"\0" for name in HOSTILE)
    (tmp_path / "list").write_bytes(data)
    options: dict[str, Any] = {"delimiter": b"\0", "files": files, "cwd": str(tmp_path)}
    from_file = open_sources([], list_file="list", **options)
    from_stdin = open_sources([], list_file="-", stdin=io.BytesIO(data), **options)
    assert as_bytes(names(from_file)) == as_bytes(names(from_stdin)) == HOSTILE


def test_a_last_line_without_newline_counts_and_blanks_stay() -> None:
    assert names(from_bytes(b" a \n\tb\\\nlast")) == [" a ", "\tb\\", "last"]


def test_empty_lines_are_skipped_and_counted_in_a_warning() -> None:
    sources = from_bytes(b"\na\n\n\nb\n\n")
    assert names(sources) == ["a", "b"]
    assert sources.warnings == ["empty items of stdin, skipped: 4"]


@pytest.mark.parametrize("step", [1, 4, 100])
def test_crlf_is_kept_and_warned_about(step: int) -> None:
    sources = open_sources([], stdin=Dribble(b"a\r\nb\r\nc\n", step))
    assert names(sources) == ["a\r", "b\r", "c"]
    (warning,) = sources.warnings
    assert (
        "CRLF" in warning
        and "kept" in warning
        and r"--delimiter '\r\n'" in warning
        and warning.endswith(": 2")
    )


@pytest.mark.parametrize("step", [1, 2, 3])
def test_half_a_delimiter_at_the_end_of_a_block_is_not_taken_for_an_item(step: int) -> None:
    assert names(open_sources([], stdin=Dribble(b"a\0\0b\0\0", step), delimiter=b"\0\0")) == ["a", "b"]


def test_a_crlf_delimiter_drops_the_carriage_return() -> None:
    sources = from_bytes(b"a\r\nb\r\n", delimiter=b"\r\n")
    assert names(sources) == ["a", "b"]
    assert sources.warnings == []


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_nul_in_a_line_is_refused_with_its_line_and_the_way_out(step: int) -> None:
    sources = open_sources([], stdin=Dribble(b"one\n\nthr\0ee\nfour\n", step))
    with pytest.raises(BadInput, match=r"^line 3 of stdin holds a NUL byte.*-0"):
        names(sources)


def test_a_nul_list_read_as_lines_is_refused_at_its_first_block() -> None:
    with pytest.raises(BadInput, match=r"^line 1 of stdin holds a NUL"):
        names(from_bytes(b"a\0b\0c\0"))


def test_the_longest_item_is_the_longest_that_the_kernel_takes() -> None:
    longest = b"x" * 131_061
    assert as_bytes(names(from_bytes(b"a\n" + longest + b"\n"))) == [b"a", longest]
    subprocess.run(["true"], env={b"PPSS_ITEM": longest}, check=True)
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(["true"], env={b"PPSS_ITEM": longest + b"x"}, check=True)
    for data in (b"a\n" + longest + b"x\nb", b"a\n" + longest + b"x"):
        with pytest.raises(BadInput, match=r"^line 2 of stdin is longer than the 131,061 bytes"):
            names(from_bytes(data))


def test_a_line_without_end_is_refused_long_before_memory_is_full() -> None:
    class Endless(io.BytesIO):
        reads = 0

        def read1(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            assert self.reads < 10, "read on and on"
            return b"x" * 65536

    with pytest.raises(BadInput, match="line 1 of stdin is longer"):
        names(open_sources([], stdin=Endless()))


def test_items_stream_before_the_list_has_ended() -> None:
    class Endless(io.BytesIO):
        reads = 0

        def read1(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            assert self.reads < 10, "read on and on"
            return b"item\n"

    assert next(iter(open_sources([], stdin=Endless()))).name == "item"


def test_a_pipe_that_was_made_non_blocking_is_read_to_its_end() -> None:
    """EAGAIN of a slow pipe looked like the end of the list: the rest was silently lost."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb") as stream:
        items = iter(open_sources([], stdin=stream))
        os.write(writer, b"a\n")
        assert next(items).name == "a"
        assert os.get_blocking(reader)
        later = threading.Thread(target=lambda: (os.write(writer, b"b\n"), os.close(writer)))
        later.start()
        assert names(items) == ["b"]
        later.join()


def test_a_named_pipe_is_a_list(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"a\nb"), daemon=True)
    sources = open_sources([], list_file=str(fifo))
    writer.start()
    assert names(sources) == ["a", "b"]
    writer.join(10)


def test_stdin_is_not_touched_when_something_else_is_named(tmp_path: Path) -> None:
    stream = io.BytesIO(b"never\n")
    (tmp_path / "list").write_text("line\n")
    tree(tmp_path / "scans", "a")
    assert names(open_sources([str(tmp_path / "scans")], stdin=stream)) == ["a"]
    assert names(open_sources([], list_file=str(tmp_path / "list"), stdin=stream)) == ["line"]
    assert stream.tell() == 0


# --- lists of files ---


def test_relative_lines_are_named_as_written_below_the_current_directory(tmp_path: Path) -> None:
    tree(tmp_path, "a", "sub/b", "-c")
    sources = from_bytes(b"./a\nsub//b\n-c\n./sub/./b\n", files=True, cwd=str(tmp_path))
    assert sources.roots == (str(tmp_path),)
    assert names(sources) == ["a", "sub/b", "-c", "sub/b"]
    assert sources.warnings == []


def test_absolute_lines_are_named_below_their_common_parent(tmp_path: Path) -> None:
    tree(tmp_path, "x/1/a", "x/12/b", "x/1/c/d")
    lines = "".join(f"{tmp_path}/{name}\n" for name in ("x/1/a", "x//12/b", "x/1/c/d"))
    sources = from_bytes(lines.encode(), files=True, cwd="/")
    assert sources.roots == (f"{tmp_path}/x",)
    assert names(sources) == ["1/a", "12/b", "1/c/d"]
    assert sources.warnings == []


def test_a_common_parent_is_made_of_whole_names(tmp_path: Path) -> None:
    sources = from_bytes(b"/data/set1/a\n/data/set12/b\n", files=True, cwd=str(tmp_path))
    assert sources.roots == ("/data",)
    assert names(sources) == ["set1/a", "set12/b"]


def test_the_root_of_most_lines_comes_first(tmp_path: Path) -> None:
    sources = from_bytes(b"a\n/x/b\n/x/y/c\n", files=True, cwd=str(tmp_path))
    assert sources.roots == ("/x", str(tmp_path))
    assert [tuple(item) for item in sources] == [("a", 1), ("b", 0), ("y/c", 0)]
    sources = from_bytes(b"a\nb\n/x/b\n", files=True, cwd=str(tmp_path))
    assert sources.roots == (str(tmp_path), "/x")
    assert [tuple(item) for item in sources] == [("a", 0), ("b", 0), ("b", 1)]


def test_lines_with_dot_dot_are_resolved_and_joined_to_the_absolute_ones(tmp_path: Path) -> None:
    top = tree(tmp_path, "here/a", "there/b", "there/c").resolve()
    sources = from_bytes(b"a\n../there/b\n../there/c\n", files=True, cwd=f"{top}/here")
    assert sources.roots == (f"{top}/there", f"{top}/here")
    assert paths(sources) == [f"{top}/here/a", f"{top}/there/b", f"{top}/there/c"]


def test_dot_dot_after_a_link_is_where_the_kernel_goes(tmp_path: Path) -> None:
    """`link/../a` cut as a text would be another file than the one that the user named."""
    top = tree(tmp_path, "far/away/x", "far/a", "a").resolve()
    (top / "link").symlink_to("far/away")
    sources = from_bytes(b"link/../a\n", files=True, cwd=str(top))
    assert paths(sources) == [f"{top}/far/a"]
    assert paths(open_sources(["link/../a"], cwd=str(top))) == [f"{top}/far/a"]


def test_missing_files_of_a_list_are_kept_and_warned_about(tmp_path: Path) -> None:
    tree(tmp_path, "there")
    (tmp_path / "dangling").symlink_to("nowhere")
    data = b"there\ndangling\n" + b"".join(b"gone-%d\n" % number for number in range(10))
    sources = from_bytes(data, files=True, cwd=str(tmp_path))
    assert len(names(sources)) == 12
    (warning,) = sources.warnings
    assert "stdin" in warning and warning.endswith(": 'gone-0', 'gone-1', 'gone-2', 7 more")


def test_the_root_directory_itself_can_be_in_a_list() -> None:
    sources = from_bytes(b"/\n/etc\n.\n", files=True, cwd="/")
    assert sources.roots == ("/",)
    assert names(sources) == [".", "etc", "."]
    assert local_path("/", "etc") == "/etc"


def test_an_empty_list_of_files_has_a_root_and_no_items(tmp_path: Path) -> None:
    sources = from_bytes(b"", files=True, cwd=str(tmp_path))
    assert (sources.roots, names(sources)) == ((str(tmp_path),), [])


# --- directories ---


def test_files_with_hostile_names_come_back_exactly(tmp_path: Path) -> None:
    top = os.fsencode(tmp_path)
    os.mkdir(top + b"/ dir\n\xff")
    expected = [name for base in HOSTILE for name in (base, b" dir\n\xff/" + base)]
    for name in expected:
        with open(top + b"/" + name, "wb"):
            pass
    sources = open_sources([str(tmp_path)])
    found = list(sources)
    assert sources.roots == (str(tmp_path),)
    assert sorted(as_bytes(names(found))) == sorted(expected)
    assert all(item.root == 0 and os.path.isfile(local_path(sources.roots[0], item.name)) for item in found)
    assert sources.warnings == []


_file_name = st.binary(min_size=1, max_size=255).filter(
    lambda raw: not {0, 47} & set(raw) and raw not in (b".", b"..")
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(_file_name.filter(lambda raw: raw != b".ppss"), max_size=8))
def test_any_file_names_come_back_exactly_from_a_directory_and_as_arguments(
    tmp_path: Path, raw: set[bytes]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as top:
        for name in raw:
            with open(os.fsencode(top) + b"/" + name, "wb"):
                pass
        assert sorted(as_bytes(names(open_sources([top])))) == sorted(raw)
        if raw:
            arguments = [os.fsdecode(name) for name in raw]
            assert as_bytes(names(open_sources([f"{top}/{name}" for name in arguments]))) == list(raw)
            assert as_bytes(names(open_sources([f"./{name}" for name in arguments], cwd=top))) == list(raw)


@pytest.mark.parametrize("argument", [".", "./", "../top", "../top//", "{}", "{}/", "{}/sub/..", "//{}"])
def test_a_directory_alone_is_the_root_however_it_is_written(tmp_path: Path, argument: str) -> None:
    top = tree(tmp_path / "top", "a", "sub/.b", "sub/deep/c").resolve()
    sources = open_sources([argument.format(top)], cwd=str(top))
    assert sources.roots == (str(top),)
    assert sorted(names(sources)) == ["a", "sub/.b", "sub/deep/c"]


def test_a_link_named_as_a_source_keeps_its_name_and_is_walked(tmp_path: Path) -> None:
    tree(tmp_path / "real", "a")
    (tmp_path / "link").symlink_to("real")
    sources = open_sources([str(tmp_path / "link")])
    assert sources.roots == (f"{tmp_path}/link",)
    assert names(sources) == ["a"]


@pytest.mark.parametrize(
    ("arguments", "roots", "expected"),
    [
        (["a", "b"], [""], ["a/f", "b/f"]),
        (["p/x", "b"], ["/p", ""], ["x/f", "b/f"]),
        (["p/x", "q/x"], [""], ["p/x/f", "q/x/f"]),
        (["p/x", "q/x", "b"], [""], ["p/x/f", "q/x/f", "b/f"]),
        (["x", "x/x"], [""], ["x/f", "x/x/f", "x/x/f"]),
        (["b", "b/"], [""], ["b/f", "b/f"]),
        (["b", "p/x/f"], ["", "/p/x"], ["b/f", "f"]),
        (["p/x/f", "b", "a/f"], [""], ["p/x/f", "b/f", "a/f"]),
        (["b/f"], ["/b"], ["f"]),
        (["b/f", "./b//f"], ["/b"], ["f", "f"]),
        (["b/f", "p/x/f"], [""], ["b/f", "p/x/f"]),
    ],
)
def test_several_sources_are_placed_so_that_names_do_not_collide(
    tmp_path: Path, arguments: list[str], roots: list[str], expected: list[str]
) -> None:
    tree(tmp_path, "a/f", "b/f", "p/x/f", "q/x/f", "x/f", "x/x/f")
    sources = open_sources(arguments, cwd=str(tmp_path))
    assert sources.roots == tuple(f"{tmp_path}{root}" for root in roots)
    found = list(sources)
    assert sorted(names(found)) == sorted(expected)
    for item in found:
        assert os.path.isfile(local_path(sources.roots[item.root], item.name))


def test_paths_come_before_the_list_and_each_item_knows_its_root(tmp_path: Path) -> None:
    tree(tmp_path, "scans/a", "one")
    stream = io.BytesIO(b"text\n")
    sources = open_sources(["one", "scans"], list_file="-", stdin=stream, cwd=str(tmp_path))
    assert [(sources.roots[item.root], item.name) for item in sources] == [
        (str(tmp_path), "one"),
        (str(tmp_path), "scans/a"),
        ("", "text"),
    ]


def test_a_directory_beside_a_list_is_named_with_its_base_name(tmp_path: Path) -> None:
    tree(tmp_path, "scans/a")
    sources = open_sources(["scans"], list_file="-", stdin=io.BytesIO(b"a\n"), cwd=str(tmp_path))
    assert names(sources) == ["scans/a", "a"]


def test_the_root_directory_beside_another_has_no_double_slashes(tmp_path: Path) -> None:
    tree(tmp_path, "d/only")
    sources = open_sources(["/", str(tmp_path / "d")], max_depth=1)
    assert all(os.path.lexists(path) and "//" not in path for path in paths(sources))


def test_special_files_and_scratch_directories_are_left_out(tmp_path: Path) -> None:
    tree(tmp_path, "a", ".ppss/run/left-over", "sub/.ppss/x", "sub/b", ".ppssx/c")
    os.mkfifo(tmp_path / "fifo")
    sources = open_sources([str(tmp_path)], follow_links=True)
    assert sorted(names(sources)) == [".ppssx/c", "a", "sub/b"]
    assert sources.warnings == []


@pytest.mark.parametrize(("depth", "expected"), [(1, ["a"]), (2, ["a", "b/c"]), (3, ["a", "b/c", "b/d/e"])])
def test_max_depth_counts_directories(tmp_path: Path, depth: int, expected: list[str]) -> None:
    tree(tmp_path, "a", "b/c", "b/d/e")
    assert sorted(names(open_sources([str(tmp_path)], max_depth=depth))) == expected


def test_directories_to_skip_are_not_entered_by_whatever_name(tmp_path: Path) -> None:
    tree(tmp_path, "a", "out/x", "sub/out/y")
    (tmp_path / "alias").symlink_to("out")
    skip = [str(tmp_path / "alias"), str(tmp_path / "not-there-yet")]
    for follow in (False, True):
        sources = open_sources([str(tmp_path)], skip_directories=skip, follow_links=follow)
        assert sorted(names(sources)) == ["a", "sub/out/y"]
    assert names(open_sources([str(tmp_path / "out")], skip_directories=skip)) == ["x"]


def test_an_output_directory_made_after_the_sources_were_opened_is_skipped(tmp_path: Path) -> None:
    tree(tmp_path, "a")
    sources = open_sources([str(tmp_path)], skip_directories=[str(tmp_path / "out")])
    tree(tmp_path, "out/x")
    assert names(sources) == ["a"]


def test_links_are_skipped_with_a_warning_unless_followed(tmp_path: Path) -> None:
    tree(tmp_path / "elsewhere", "f", "d/g")
    top = tree(tmp_path / "top", "a")
    (top / "file").symlink_to("../elsewhere/f")
    (top / "directory").symlink_to("../elsewhere/d")
    plain = open_sources([str(top)])
    assert names(plain) == ["a"]
    (warning,) = plain.warnings
    assert (
        warning.startswith("symbolic links, skipped") and "'file'" in warning and "--follow-links" in warning
    )
    followed = open_sources([str(top)], follow_links=True)
    assert sorted(names(followed)) == ["a", "directory/g", "file"]
    assert followed.warnings == []


def test_links_that_no_pattern_takes_are_not_warned_about(tmp_path: Path) -> None:
    tree(tmp_path, "a.pdf")
    (tmp_path / "link.txt").symlink_to("a.pdf")
    (tmp_path / "cache.pdf").symlink_to("a.pdf")
    sources = open_sources([str(tmp_path)], include=["*.pdf"], exclude=["cache*"])
    assert names(sources) == ["a.pdf"]
    assert sources.warnings == []


def test_link_loops_and_dangling_links_are_survived_and_named(tmp_path: Path) -> None:
    tree(tmp_path, "a/b/c", "z/f")
    (tmp_path / "a/b/up").symlink_to("..")
    (tmp_path / "a/top").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "again").symlink_to("z")
    sources = open_sources([str(tmp_path)], follow_links=True)
    assert sorted(names(sources)) == ["a/b/c", "again/f", "z/f"]
    loops, dangling = sorted(sources.warnings)
    assert "directory above" in loops and "'a/b/up'" in loops and "'a/top'" in loops
    assert "to nothing" in dangling and "'self'" in dangling and "'gone'" in dangling


def test_an_unreadable_directory_in_a_walk_is_named_and_the_rest_goes_on(public_path: Path) -> None:
    tree(public_path, "a", "closed/b", "open/c", "closed2/d")
    (public_path / "closed").chmod(0)
    (public_path / "closed2").chmod(0)
    with without_root_rights():
        sources = open_sources([str(public_path)])
        assert sorted(names(sources)) == ["a", "open/c"]
    (warning,) = sources.warnings
    assert "can't be read" in warning
    assert "'closed' (Permission denied)" in warning and "'closed2' (Permission denied)" in warning


def test_warnings_name_the_first_few_and_count_the_rest(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"line\n{number}").symlink_to("x")
    sources = open_sources([str(tmp_path)])
    assert names(sources) == []
    (warning,) = sources.warnings
    assert warning.endswith(", 997 more") and len(warning) < 200 and "\n" not in warning


def test_a_tree_deeper_than_the_descriptors_is_walked_to_its_end(tmp_path: Path) -> None:
    deepest = "/".join(["d"] * 300)
    tree(tmp_path, f"{deepest}/f", "d/e")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, before[1]))
    try:
        sources = open_sources([str(tmp_path)])
        assert sorted(names(sources)) == [f"{deepest}/f", "d/e"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert sources.warnings == []


def test_a_walk_that_is_left_early_leaves_nothing_open(tmp_path: Path) -> None:
    tree(tmp_path, "a/b/c/f", "a/b/g")
    before = len(os.listdir("/proc/self/fd"))
    items = iter(open_sources([str(tmp_path)]))
    next(items)
    assert len(os.listdir("/proc/self/fd")) > before
    del items
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_large_directory_streams(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for number in range(20_000):
        os.mknod(f"{tmp_path}/sub/a-name-of-some-length-{number}")
    sources = open_sources([str(tmp_path)])
    tracemalloc.start()
    try:
        assert sum(1 for _ in sources) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


# --- patterns ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ["*.pdf"]}, ["2019/a.pdf", "2019/x/c.pdf", "b.pdf", "n\nl.pdf"]),
        (
            {"include": ["*.pdf", "*.txt"], "exclude": ["a*"]},
            ["2019/t.txt", "2019/x/c.pdf", "b.pdf", "n\nl.pdf"],
        ),
        ({"include": ["2019/*.pdf"]}, ["2019/a.pdf"]),
        ({"include": ["./2019/*.pdf"]}, ["2019/a.pdf"]),
        ({"include": ["2019/**/*.pdf"]}, ["2019/a.pdf", "2019/x/c.pdf"]),
        ({"include": ["**/x/*"]}, ["2019/x/c.pdf"]),
        ({"include": ["2019/**"]}, ["2019/a.pdf", "2019/t.txt", "2019/x/c.pdf"]),
        ({"include": ["/*.pdf"]}, ["b.pdf", "n\nl.pdf"]),
        ({"include": ["*"], "exclude": ["2019"]}, ["[z]", "b.pdf", "n\nl.pdf", "\udcff"]),
        ({"exclude": ["x/", "*.pdf", "[[]*"]}, ["2019/t.txt", "\udcff"]),
        ({"exclude": ["2019/x"], "include": ["c.pdf"]}, []),
        ({"include": ["[[]z]"]}, ["[z]"]),
        ({"include": [r"\[z\]"]}, ["[z]"]),
        ({"include": ["?"]}, ["\udcff"]),
        ({"include": ["\udcff"]}, ["\udcff"]),
        ({"include": ["n?l.*"]}, ["n\nl.pdf"]),
        ({"include": ["*x*"]}, ["2019/t.txt"]),
        ({"include": ["2019/*"], "exclude": ["x/"]}, ["2019/a.pdf", "2019/t.txt"]),
        ({"include": ["*.pdf"], "exclude": ["x/"]}, ["2019/a.pdf", "b.pdf", "n\nl.pdf"]),
        ({"include": ["./2019[!q]a.pdf", "./2019[+-0]a.pdf"]}, []),
    ],
)
def test_patterns_choose_files(tmp_path: Path, options: dict[str, list[str]], expected: list[str]) -> None:
    tree(tmp_path, "2019/a.pdf", "2019/t.txt", "2019/x/c.pdf", "b.pdf", "n\nl.pdf", "[z]", "\udcff")
    assert sorted(names(open_sources([str(tmp_path)], **options))) == sorted(expected)


def test_patterns_mean_the_path_below_each_source_and_not_what_was_named(tmp_path: Path) -> None:
    tree(tmp_path, "s/2019/a", "s/b", "t/2019/c", "named.txt")
    stream = io.BytesIO(b"line\n")
    sources = open_sources(
        ["s", "t", "named.txt"], list_file="-", stdin=stream, include=["2019/*"], cwd=str(tmp_path)
    )
    assert sorted(names(sources)) == ["line", "named.txt", "s/2019/a", "t/2019/c"]


def test_an_excluded_directory_is_not_even_read(public_path: Path) -> None:
    tree(public_path, "a", "closed/b")
    (public_path / "closed").chmod(0)
    with without_root_rights():
        sources = open_sources([str(public_path)], exclude=["clo*"])
        assert names(sources) == ["a"]
    assert sources.warnings == []


@pytest.fixture(scope="module")
def pattern_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("patterns")
    singles = "ab]-!^\\[*?c\n"
    tree(
        top,
        *singles,
        *(one + other for one in singles for other in "ab]-!\\["),
        "abc",
        "a-c",
        "[ab]",
        "a\nb",
        "aab",
    )
    return top


_pieces = ["a", "b", "c", "*", "?", "\n", "-", "!", "^", "[", "]", "\\[", "\\*", "\\\\"]
_pieces += [
    "[ab]",
    "[\\]a]",
    "[a\\-c]",
    "[!a]",
    "[^a]",
    "[^]",
    "[!]",
    "[]",
    "[]a]",
    "[!]a]",
    "[a-c]",
    "[!a-c]",
    "[c-a]",
    "[-a]",
    "[a-]",
]


@settings(max_examples=250, deadline=None)
@given(pattern=st.lists(st.sampled_from(_pieces), min_size=1, max_size=4).map("".join))
def test_base_name_patterns_mean_what_they_mean_to_find(pattern_tree: Path, pattern: str) -> None:
    command = ["find", ".", "-type", "f", "-name", pattern, "-print0"]
    found = subprocess.run(command, cwd=pattern_tree, capture_output=True, check=True).stdout
    expected = [os.fsdecode(name[2:]) for name in found.split(b"\0") if name]
    assert sorted(names(open_sources([str(pattern_tree)], include=[pattern]))) == sorted(expected)


# --- order ---


def test_random_order_differs_each_time_and_loses_nothing() -> None:
    data = b"".join(b"%d\n" % (number % 90) for number in range(100)) + b"\xff\n"
    found = names(from_bytes(data))
    first, other = (names(from_bytes(data, order="random")) for _ in range(2))
    assert first not in (found, other)
    assert Counter(first) == Counter(other) == Counter(found)


def test_size_order_gives_the_largest_first_and_keeps_roots(tmp_path: Path) -> None:
    for name, size in (("x/small", 1), ("x/large", 5000), ("y/empty", 0), ("y/middle", 300), ("y/twin", 300)):
        tree(tmp_path, name)
        (tmp_path / name).write_bytes(b"x" * size)
    arguments = ["x", "y/middle", "y/twin", "y/empty"]
    sources = open_sources(arguments, order="size", cwd=str(tmp_path))
    assert paths(sources) == [
        f"{tmp_path}/{name}" for name in ("x/large", "y/middle", "y/twin", "x/small", "y/empty")
    ]


def test_a_listed_file_that_is_missing_comes_last_by_size(tmp_path: Path) -> None:
    tree(tmp_path, "a", "bigger")
    (tmp_path / "empty").touch()
    sources = from_bytes(b"gone\nempty\na\nbigger\n", files=True, order="size", cwd=str(tmp_path))
    assert names(sources) == ["bigger", "a", "empty", "gone"]


# --- memory and disk ---

_COUNT_IN_CHILD = """
import sys
from ppss_queue.sources import open_sources
def peak_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
options = eval(sys.argv[1])
import sqlite3, random
before = peak_kib()
count = sum(1 for item in open_sources([], stdin=sys.stdin.buffer, **options))
print(count, peak_kib() - before)
"""


@pytest.mark.parametrize(
    ("count", "options"),
    [(1_000_000, {}), (300_000, {"files": True}), (300_000, {"order": "random"})],
    ids=str,
)
def test_a_million_names_take_constant_memory(count: int, options: dict[str, Any]) -> None:
    """As Python strings 300,000 of them take 27 MB."""
    data = b"".join(b"a/name/of/some/usual/length/%07d.txt\n" % number for number in range(count))
    command = [sys.executable, "-c", _COUNT_IN_CHILD, repr(options)]
    done = subprocess.run(command, input=data, capture_output=True, check=True, env=_child_environment())
    found, grown_kib = map(int, done.stdout.split())
    assert found == count
    assert grown_kib < 16 * 1024


@pytest.mark.parametrize("options", ["files=True", "order='random'"])
def test_a_full_disk_is_a_failure_of_this_machine_in_one_sentence(options: str) -> None:
    code = f"""
import resource, sys
from ppss_queue.sources import open_sources
from ppss_queue.errors import MachineFailed
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    print(sum(1 for item in open_sources([], stdin=sys.stdin.buffer, {options})))
except MachineFailed as error:
    print(error)
"""
    data = b"".join(b"a/name/of/some/usual/length/%07d.txt\n" % number for number in range(100_000))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=data, capture_output=True, check=True, env=_child_environment())
    assert done.stdout.startswith(b"can't keep the list in a temporary file (")
    assert b"TMPDIR" in done.stdout and done.stdout.count(b"\n") == 1 and done.stderr == b""
    assert MachineFailed.exit_code == ExitCode.MACHINE_FAILED


def _child_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# --- bad sources ---


def refusal(tmp_path: Path, *arguments: str, **options: Any) -> str:
    """The one sentence that refuses these sources, before anything is read."""
    with pytest.raises(BadInput) as caught:
        open_sources(arguments, cwd=str(tmp_path), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == ExitCode.CORRECT_INPUT
    assert caught.value.__cause__ is None
    return message


def test_a_missing_source_is_answered_with_what_was_meant(tmp_path: Path) -> None:
    tree(tmp_path, "scans/2019/a.pdf", "list.txt")
    assert refusal(tmp_path, "scnas/") == "no such file or directory: 'scnas/'. Did you mean 'scans/'?"
    assert (
        refusal(tmp_path, "scans/2018")
        == "no such file or directory: 'scans/2018'. Did you mean 'scans/2019/'?"
    )
    assert refusal(tmp_path, "scnas/2019/a.pdf").endswith("'scnas/2019/a.pdf'. Did you mean 'scans/'?")
    assert refusal(tmp_path, list_file="lsit.txt").endswith("'lsit.txt'. Did you mean 'list.txt'?")
    assert refusal(tmp_path, f"{tmp_path}/scans/2019/b.pdf").endswith(f"'{tmp_path}/scans/2019/a.pdf'?")
    assert (
        refusal(tmp_path, "zzzzzzz")
        == f"no such file or directory: 'zzzzzzz'. Relative paths start from '{tmp_path}'."
    )
    assert "'new\\nline'" in refusal(tmp_path, "new\nline")


def test_other_bad_sources_are_refused_with_what_to_do(tmp_path: Path) -> None:
    tree(tmp_path, "directory/a", "file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert "'directory' is a directory, not a list" in refusal(tmp_path, list_file="directory")
    assert "-f 'fifo'" in refusal(tmp_path, "fifo")
    assert "'dangling' is a link to nothing: 'nowhere'" in refusal(tmp_path, "dangling")
    assert "can't read 'loop'" in refusal(tmp_path, "loop")
    assert "can't read 'file/'" in refusal(tmp_path, "file/")
    assert "'nul\\x00byte' can't be a path" in refusal(tmp_path, "nul\0byte")
    assert "'\\ud800' can't be a path" in refusal(tmp_path, "\ud800")
    assert "can't read 'xxxxx" in refusal(tmp_path, "x" * 300)
    assert "empty string" in refusal(tmp_path, "")
    assert "no source" in refusal(tmp_path)
    assert "no source" in refusal(tmp_path, list_file="-")
    assert "delimiter is empty" in refusal(tmp_path, "file", delimiter=b"")
    assert "depth of 0" in refusal(tmp_path, "directory", max_depth=0)
    assert "pattern ''" in refusal(tmp_path, "directory", include=[""])
    assert "pattern '/'" in refusal(tmp_path, "directory", exclude=["/"])
    assert "--files" in refusal(tmp_path, stdin=io.BytesIO(b"a"), order="size")


def test_unreadable_sources_are_refused(public_path: Path) -> None:
    tree(public_path, "directory/a", "file")
    (public_path / "directory").chmod(0)
    (public_path / "file").chmod(0)
    with without_root_rights():
        for arguments, options in ((["directory"], {}), (["file"], {}), ([], {"list_file": "file"})):
            name = "directory" if "directory" in arguments else "file"
            assert f"can't read '{name}': Permission denied" in refusal(public_path, *arguments, **options)


def test_a_list_that_disappears_before_it_is_read_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a\n")
    sources = open_sources([], list_file="list", cwd=str(tmp_path))
    (tmp_path / "list").unlink()
    with pytest.raises(BadInput, match="can't read 'list': No such file"):
        names(sources)


def test_a_stream_that_fails_is_bad_input() -> None:
    with open(os.devnull, "wb", buffering=0) as write_only, pytest.raises(BadInput, match="can't read stdin"):
        names(open_sources([], stdin=write_only))


def test_a_current_directory_that_is_gone_is_bad_input(tmp_path: Path) -> None:
    code = """
import os
from ppss_queue.errors import BadInput
from ppss_queue.sources import open_sources
os.mkdir("x"); os.chdir("x"); os.rmdir("../x")
try:
    open_sources(["a"])
except BadInput as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, env=_child_environment()
    )
    assert done.stdout.startswith("the current directory is gone")


# --- from Python ---


def test_python_texts_stream_and_stay_exact() -> None:
    pulled = []

    def source() -> Iterator[str | bytes]:
        for item in ("a", " b\n", b"\xff", "", "\udc80"):
            pulled.append(item)
            yield item

    sources = texts(source())
    assert sources.roots == ("",)
    items = iter(sources)
    assert next(items).name == "a" and len(pulled) == 1
    assert names(items) == [" b\n", "\udcff", "", "\udc80"]
    assert names(texts([])) == []


def test_python_paths_are_files_named_like_a_list_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "scans/a", "scans/sub/b")
    monkeypatch.chdir(tmp_path)
    sources = texts(sorted(path for path in Path("scans").rglob("*") if path.is_file()))
    assert sources.roots == (str(tmp_path),)
    assert names(sources) == ["scans/a", "scans/sub/b"]
    sources = texts(iter([tmp_path / "scans/a", tmp_path / "scans/sub/b"]))
    assert sources.roots == (f"{tmp_path}/scans",)
    assert names(sources) == ["a", "sub/b"]
    assert sources.warnings == []


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("scans", "items are a list, not one str: pass ['scans']"),
        (b"scans", "not one bytes"),
        (Path("scans"), "not one PosixPath"),
        (["a", 2], "item 2 is of type int, not str or bytes: 2"),
        ([3], "item 1 is of type int"),
        (["a", Path("b")], "item 2 is of type PosixPath, not str or bytes"),
        ([Path("a"), "b"], "item 2 is of type str, not PathLike"),
        (["a", "b\0c"], "item 2 holds a NUL byte"),
        ([Path("b\0c")], "item 1 holds a NUL byte"),
        (["x" * 200_000], "item 1 is longer than the 131,061 bytes"),
        (["\ud800"], "item 1 has no bytes in this locale"),
    ],
)
def test_bad_python_items_are_refused_with_their_number(items: Any, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        names(texts(items))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250


def test_an_error_of_the_callers_own_iterable_stays_that_error() -> None:
    def source() -> Iterator[Path]:
        yield Path("a")
        raise PermissionError("theirs")

    with pytest.raises(PermissionError, match="theirs"):
        names(texts(source()))
