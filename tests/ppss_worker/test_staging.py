"""Outputs appear whole, under final names, of the newest attempt only, and never outside the directory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import as_root, mounted
from hypothesis import given, settings
from hypothesis import strategies as st
from ppss_worker.publishing import Attempt, OutputRefused
from ppss_worker.staging import Staging, exists, leftovers, sweep

from ppss_queue.errors import BadInput, LeaseLost, MachineFailed

_ROOT = Path(__file__).parent.parent.parent
_NOBODY = 65534
_IS_ROOT = os.geteuid() == 0


def _nobody_owns(names: Sequence[str]) -> Mapping[str, tuple[int, str]]:
    return {}


def _ours() -> bool:
    return True


def _lost() -> bool:
    return False


def _publish(attempt: Attempt) -> int:
    return attempt.publish(_nobody_owns, _ours)


def _write(attempt: Attempt, **texts: str) -> None:
    for name, text in texts.items():
        Path(attempt.directory, name).write_text(text)


def _snapshot(top: str | Path) -> dict[bytes, tuple[object, ...]]:
    """All below a directory but .ppss: kind and mode, size, contents or target, and who shares its inode."""
    found: dict[bytes, tuple[object, ...]] = {}
    first_name: dict[int, bytes] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        for name in sorted(os.listdir(os.path.join(os.fsencode(top), path))):
            relative = os.path.join(path, name)
            if relative == b".ppss":
                continue
            full = os.path.join(os.fsencode(top), relative)
            status = os.lstat(full)
            body: object = None
            if stat.S_ISDIR(status.st_mode):
                pending.append(relative)
                found[relative] = (oct(status.st_mode),)
                continue
            if stat.S_ISLNK(status.st_mode):
                body = os.readlink(full)
            elif stat.S_ISREG(status.st_mode):
                body = Path(os.fsdecode(full)).read_bytes()
            shared = first_name.setdefault(status.st_ino, relative)
            found[relative] = (oct(status.st_mode), status.st_size, status.st_blocks, body, shared)
    return found


def _scratches(output: Path) -> list[str]:
    return sorted(os.listdir(output / ".ppss" / "k3v9"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def staging(output: Path) -> Staging:
    staging = Staging(os.fspath(output), "k3v9")
    staging.prepare()
    return staging


@contextmanager
def _ordinary_user() -> Iterator[Path]:
    """A directory of a user whom modes bind: root becomes `nobody` in the meantime."""
    top = Path(tempfile.mkdtemp())
    if _IS_ROOT:
        os.chown(top, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, 0)
    try:
        yield top
    finally:
        if _IS_ROOT:
            os.setresuid(0, 0, 0)
        subprocess.run(["chmod", "-R", "u+rwx", top], check=True)
        shutil.rmtree(top)


def _use_up_inodes(directory: Path) -> list[Path]:
    fillers: list[Path] = []
    for number in range(1000):
        filler = directory / f"filler{number}"
        try:
            filler.touch()
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return fillers
        fillers.append(filler)
    raise AssertionError("the file system does not get full")


# What is published


def test_a_file_appears_in_the_directory_of_its_item_and_no_scratch_is_left(
    staging: Staging, output: Path
) -> None:
    attempt = staging.scratch(17, "5-ab", "2019")
    assert attempt.directory == os.fspath(output / ".ppss/k3v9/17.5-ab")
    assert os.listdir(attempt.directory) == []
    _write(attempt, **{"a.pdf": "text"})
    assert attempt.outputs() == ["2019/a.pdf"]
    assert not (output / "2019").exists()
    assert _publish(attempt) == 1
    assert (output / "2019/a.pdf").read_text() == "text"
    assert _scratches(output) == []


def test_dotfiles_subdirectories_and_empty_directories_are_published_too(
    staging: Staging, output: Path
) -> None:
    """Old fault 10: the upload skipped dotfiles and subdirectories."""
    attempt = staging.scratch(1, "1-a", "x/y")
    scratch = Path(attempt.directory)
    (scratch / ".hidden").write_text("h")
    (scratch / "d/.e").mkdir(parents=True)
    (scratch / "d/.e/f").write_text("f")
    (scratch / "empty/inner").mkdir(parents=True)
    assert attempt.outputs() == ["x/y/.hidden", "x/y/d/.e/f", "x/y/empty/inner/"]
    before = _snapshot(scratch)
    assert _publish(attempt) == 2
    assert _snapshot(output / "x/y") == before


def test_an_attempt_without_outputs_makes_nothing(staging: Staging, output: Path) -> None:
    attempt = staging.scratch(1, "1-a", "2019")
    assert attempt.outputs() == []
    assert _publish(attempt) == 0
    assert _snapshot(output) == {}
    assert _scratches(output) == []


def test_nothing_shows_before_publish_and_nothing_after_discard(staging: Staging, output: Path) -> None:
    attempt = staging.scratch(1, "1-a", "")
    _write(attempt, a="1")
    assert _snapshot(output) == {}
    attempt.discard()
    assert _snapshot(output) == {}
    assert _scratches(output) == []


def test_sockets_fifos_hard_links_sparse_and_unreadable_files_move_as_they_are(
    staging: Staging, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = staging.scratch(1, "1-a", "")
    monkeypatch.chdir(attempt.directory)
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    Path("one").write_text("same")
    os.link("one", "two")
    Path("secret").touch(mode=0)
    Path("none").touch()
    with Path("sparse").open("wb") as file:
        file.truncate(1 << 30)
    os.utime("one", (1, 1))
    before = _snapshot_without_big(attempt.directory)
    assert _publish(attempt) == 7
    assert _snapshot_without_big(output) == before
    assert (output / "sparse").stat().st_blocks < 100
    assert (output / "one").stat().st_mtime == 1


def _snapshot_without_big(top: str | Path) -> dict[str, tuple[int, int, int]]:
    with os.scandir(top) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries if entry.name != ".ppss"}
    return {name: (status.st_mode, status.st_ino, status.st_size) for name, status in found.items()}


_NAMES = st.one_of(
    st.binary(min_size=1, max_size=255),
    st.sampled_from(
        [b" ", b"\n", b"a\nb", b"-rf", b"\xff", b"\\", b"$(id)", b"~", b"*", b"x" * 255, b"\xc3\xa9", b"0.0"]
    ),
).filter(lambda name: name not in (b".", b"..", b".ppss") and not set(name) & set(b"\0/"))
_DIRECTORY_MODES = st.sampled_from([0o755, 0o700, 0o777, 0o2775] + ([0, 0o555, 0o111] if _IS_ROOT else []))
_FILE_MODES = st.sampled_from([0o644, 0o755, 0o600, 0o444] + ([0] if _IS_ROOT else []))
_LEAVES = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=50), _FILE_MODES),
    st.tuples(st.just("link"), st.binary(min_size=1, max_size=50).filter(lambda target: b"\0" not in target)),
    st.tuples(st.just("fifo")),
)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.tuples(
        st.just("directory"), st.dictionaries(_NAMES, inner, max_size=4), _DIRECTORY_MODES
    ),
    max_leaves=12,
)


def _plant(place: bytes, node: tuple) -> None:  # type: ignore[type-arg]
    match node:
        case ("file", body, mode):
            Path(os.fsdecode(place)).write_bytes(body)
            os.chmod(place, mode)
        case ("link", target):
            os.symlink(target, place)
        case ("fifo",):
            os.mkfifo(place)
        case ("directory", entries, mode):
            os.mkdir(place)
            for name, child in entries.items():
                _plant(os.path.join(place, name), child)
            os.chmod(place, mode)


@settings(max_examples=120, deadline=None)
@given(tree=st.dictionaries(_NAMES, _TREES, max_size=5), subdirectory=st.lists(_NAMES, max_size=2))
def test_any_tree_of_hostile_names_arrives_exactly_as_it_was_made(
    tree: dict[bytes, tuple[object, ...]], subdirectory: list[bytes]
) -> None:
    with tempfile.TemporaryDirectory() as top:
        staging = Staging(top, "k3v9")
        staging.prepare()
        place = os.fsdecode(b"/".join(subdirectory))
        attempt = staging.scratch(1, "1-a", place)
        for name, node in tree.items():
            _plant(os.path.join(os.fsencode(attempt.directory), name), node)
        before = _snapshot(attempt.directory)
        files = [path for path, (mode, *_) in before.items() if not stat.S_ISDIR(int(str(mode), 8))]
        claimed: list[str] = []

        def claim(names: Sequence[str]) -> Mapping[str, tuple[int, str]]:
            claimed.extend(names)
            return {}

        count = attempt.publish(claim, _ours)
        assert count == len(files) == len(claimed)
        assert set(claimed) == {os.path.join(place, os.fsdecode(path)) for path in files}
        assert (_snapshot(os.path.join(top, place)) if before else {}) == before
        assert os.listdir(os.path.join(top, ".ppss", "k3v9")) == []


@settings(max_examples=50, deadline=None)
@given(tree=st.dictionaries(_NAMES, _TREES, max_size=5))
def test_discard_removes_any_tree(tree: dict[bytes, tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as top:
        staging = Staging(top, "k3v9")
        staging.prepare()
        attempt = staging.scratch(1, "1-a", "")
        for name, node in tree.items():
            _plant(os.path.join(os.fsencode(attempt.directory), name), node)
        attempt.discard()
        assert os.listdir(os.path.join(top, ".ppss", "k3v9")) == []


# What was there before


def test_a_file_from_before_is_replaced_and_its_neighbours_stay(staging: Staging, output: Path) -> None:
    (output / "d").mkdir(mode=0o750)
    (output / "d/old").write_text("old")
    (output / "d/other").write_text("other")
    (output / "d/link").symlink_to("other")
    with (output / "d/old").open() as reader:
        attempt = staging.scratch(1, "1-a", "")
        Path(attempt.directory, "d").mkdir(mode=0o700)
        _write(attempt, **{"d/old": "new", "d/link": "file now"})
        assert _publish(attempt) == 2
        assert reader.read() == "old"  # replaced by a rename, not written over
    assert (output / "d/old").read_text() == "new"
    assert (output / "d/other").read_text() == "other"
    assert (output / "d/link").read_text() == "file now"
    assert stat.S_IMODE((output / "d").stat().st_mode) == 0o750


def test_a_hard_link_to_the_file_from_before_is_published_without_a_trace(
    staging: Staging, output: Path
) -> None:
    """rename(2) does nothing, successfully, if both names are the same file already."""
    (output / "a").write_text("same")
    attempt = staging.scratch(1, "1-a", "")
    os.link(output / "a", Path(attempt.directory, "a"))
    assert _publish(attempt) == 1
    assert (output / "a").read_text() == "same"
    assert _scratches(output) == []


def _refused(attempt: Attempt, output: Path, *words: str) -> None:
    """Publishing is refused in a sentence with these words, and changes nothing in the output directory."""
    before = _snapshot(output)
    with pytest.raises(OutputRefused) as refusal:
        _publish(attempt)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert _snapshot(output) == before
    attempt.discard()
    assert not Path(attempt.directory).exists()


def test_an_existing_directory_in_the_place_of_a_file_refuses_all(staging: Staging, output: Path) -> None:
    (output / "x/b").mkdir(parents=True)
    attempt = staging.scratch(1, "1-a", "x")
    _write(attempt, a="1", b="2", c="3")
    _refused(attempt, output, "writes 'b', which is a directory in 'x'", repr(str(output)))


def test_a_link_in_the_place_of_an_existing_directory_is_refused(staging: Staging, output: Path) -> None:
    (output / "b").mkdir()
    attempt = staging.scratch(1, "1-a", "")
    Path(attempt.directory, "b").symlink_to(output.parent / "elsewhere")
    _refused(attempt, output, "'b', which is a directory")


@pytest.mark.parametrize("subdirectory", ["p", "p/q", "p/q/r"])
def test_an_existing_file_in_the_place_of_a_parent_is_refused(
    staging: Staging, output: Path, subdirectory: str
) -> None:
    (output / "p").write_text("file")
    attempt = staging.scratch(1, "1-a", subdirectory)
    _write(attempt, a="1")
    _refused(attempt, output, f"writes into {subdirectory!r}", "'p' is a file there")


def test_an_existing_file_in_the_place_of_a_new_directory_refuses_all(staging: Staging, output: Path) -> None:
    (output / "zd").write_text("file")
    attempt = staging.scratch(1, "1-a", "")
    Path(attempt.directory, "ad").mkdir()
    Path(attempt.directory, "zd").mkdir()
    _write(attempt, **{"first": "1", "ad/x": "2", "zd/x": "3"})
    _refused(attempt, output, "writes into 'zd'", "'zd' is a file there")


def test_a_name_that_another_item_wrote_is_refused_and_names_it(staging: Staging, output: Path) -> None:
    attempt = staging.scratch(18, "1-a", "")
    _write(attempt, **{"a.flac": "1", "b.flac": "2", "c.flac": "3"})
    with pytest.raises(OutputRefused) as refusal:
        attempt.publish(lambda names: {"b.flac": (17, "2019/a\n.wav")}, _ours)
    assert str(refusal.value) == (
        "writes 'b.flac', which item '2019/a\\n.wav' (#17) of this run has written already"
    )
    with pytest.raises(OutputRefused, match=r"writes 'a.flac' \(and 1 more\), which item 'x' \(#3\)"):
        attempt.publish(lambda names: {"c.flac": (17, "y"), "a.flac": (3, "x")}, _ours)
    assert _snapshot(output) == {}


def test_scratch_of_ppss_itself_can_not_be_written_by_outputs(staging: Staging, output: Path) -> None:
    victim = staging.scratch(2, "1-a", "")
    attempt = staging.scratch(1, "1-a", "")
    Path(attempt.directory, ".ppss/k3v9/2.1-a").mkdir(parents=True)
    _write(attempt, **{".ppss/k3v9/2.1-a/planted": "x"})
    _refused(attempt, output, "'.ppss'", "kept for scratch")
    attempt = staging.scratch(1, "1-a", ".ppss/k3v9/2.1-a")
    _write(attempt, planted="x")
    _refused(attempt, output, "kept for scratch")
    assert os.listdir(victim.directory) == []


# Never outside the output directory


def test_outputs_never_go_through_a_link_out_of_the_output_directory(
    staging: Staging, output: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "etc"
    (outside / "deep").mkdir(parents=True)
    (output / "sub").symlink_to(outside)
    attempt = staging.scratch(1, "1-a", "sub")
    _write(attempt, passwd="x")
    _refused(attempt, output, "writes into 'sub'", "'sub' is a symbolic link there")
    attempt = staging.scratch(1, "1-b", "sub/deep")
    _write(attempt, passwd="x")
    _refused(attempt, output, "'sub' is a symbolic link there")
    attempt = staging.scratch(1, "1-c", "sub/new")
    _write(attempt, passwd="x")
    _refused(attempt, output, "'sub' is a symbolic link there")
    attempt = staging.scratch(1, "1-d", "")
    Path(attempt.directory, "sub").mkdir()
    _write(attempt, **{"sub/passwd": "x"})
    _refused(attempt, output, "'sub' is a symbolic link there")
    assert list(_snapshot(outside)) == [b"deep"]


def test_a_link_published_by_one_item_does_not_lead_the_next_one_outside(
    staging: Staging, output: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "etc"
    outside.mkdir()
    first = staging.scratch(1, "1-a", "")
    Path(first.directory, "sub").symlink_to(outside)
    assert _publish(first) == 1
    second = staging.scratch(2, "2-a", "sub")
    _write(second, passwd="x")
    _refused(second, output, "symbolic link")
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("subdirectory", ["..", "a/../..", "/no-such-place", "a/.."])
def test_a_directory_of_an_item_that_leads_outside_is_refused(staging: Staging, subdirectory: str) -> None:
    with pytest.raises(OutputRefused, match="not below the output directory"):
        staging.scratch(1, "1-a", subdirectory)


def test_the_output_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    staging = Staging(os.fspath(tmp_path / "out"), "k3v9")
    staging.prepare()
    attempt = staging.scratch(1, "1-a", "./s//t/")
    _write(attempt, a="1")
    assert attempt.outputs() == ["s/t/a"]
    assert _publish(attempt) == 1
    assert (tmp_path / "real/s/t/a").read_text() == "1"


def test_removing_scratch_follows_no_link(staging: Staging, output: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "d").mkdir(parents=True)
    (precious / "d/f").write_text("keep")
    before = _snapshot(precious)
    attempt = staging.scratch(1, "1-a", "")
    (Path(attempt.directory) / "x/y/z").mkdir(parents=True)
    for place in ("to", "x/to", "x/y/to", "x/y/z/to"):
        Path(attempt.directory, place).symlink_to(precious)
    attempt.discard()
    assert _scratches(output) == []
    attempt = staging.scratch(1, "1-b", "")
    shutil.rmtree(attempt.directory)
    Path(attempt.directory).symlink_to(precious)
    with pytest.raises(OutputRefused, match=r"replaced \$OUTPUT_DIR"):
        _publish(attempt)
    attempt.discard()
    assert _scratches(output) == []
    assert _snapshot(precious) == before


# Modes, depths and processes that go on


def test_directories_that_the_command_locked_are_published_with_their_modes() -> None:
    with _ordinary_user() as top:
        staging = Staging(os.fspath(top), "k3v9")
        staging.prepare()
        attempt = staging.scratch(1, "1-a", "s")
        for name, mode in (("locked", 0), ("readonly", 0o555), ("outer", 0)):
            inner = Path(attempt.directory, name, "inner")
            inner.mkdir(parents=True)
            (inner / "file").write_text(name)
            (inner / "file").chmod(0)
            inner.chmod(mode)
            inner.parent.chmod(mode)
        os.chmod(attempt.directory, 0)
        assert attempt.outputs() == ["s/locked/inner/file", "s/outer/inner/file", "s/readonly/inner/file"]
        assert _publish(attempt) == 3
        for name, mode in (("locked", 0), ("readonly", 0o555), ("outer", 0)):
            place = top / "s" / name
            assert stat.S_IMODE(place.stat().st_mode) == mode
            place.chmod(0o700)
            assert stat.S_IMODE((place / "inner").stat().st_mode) == mode
            (place / "inner").chmod(0o700)
            assert stat.S_IMODE((place / "inner/file").stat().st_mode) == 0
        assert os.access(top / "s", os.W_OK)  # the mode of the scratch itself is not the item's to choose
        assert _scratches(top) == []


def _sweep(output: Path, run: str) -> int:
    return sweep(os.fspath(output), run, leftovers(os.fspath(output), run))


def test_discard_and_sweep_remove_what_the_command_locked() -> None:
    with _ordinary_user() as top:
        staging = Staging(os.fspath(top), "k3v9")
        staging.prepare()
        for token in ("1-a", "2-a"):
            attempt = staging.scratch(1, token, "")
            deepest = Path(attempt.directory, "a/b/c")
            deepest.mkdir(parents=True)
            (deepest / "f").touch()
            for place in (deepest, *deepest.parents[:3]):
                place.chmod(0)
        attempt.discard()
        assert _scratches(top) == ["1.1-a"]
        assert _sweep(top, "k3v9") == 1
        assert list(top.iterdir()) == []


def test_a_directory_where_the_user_may_not_write_is_refused_with_a_sentence() -> None:
    with _ordinary_user() as top:
        staging = Staging(os.fspath(top), "k3v9")
        staging.prepare()
        (top / "fixed/inner").mkdir(parents=True)
        for place in ("fixed/inner", "fixed"):
            (top / place).chmod(0o555)
        for subdirectory in ("fixed", "fixed/new", "fixed/inner"):
            attempt = staging.scratch(1, "1-a", subdirectory)
            _write(attempt, a="1")
            _refused(attempt, top, "can't write into", "this user may not")


@as_root
def test_directories_made_by_another_user_refuse_all_of_the_attempt() -> None:
    """A container writes as root: its directories can't be emptied by the user who runs the worker."""
    with _ordinary_user() as top:
        staging = Staging(os.fspath(top), "k3v9")
        staging.prepare()
        attempt = staging.scratch(1, "1-a", "")
        _write(attempt, a="1")
        os.setresuid(0, 0, 0)
        Path(attempt.directory, "z").mkdir()
        _write(attempt, **{"z/b": "2"})
        os.setresuid(_NOBODY, _NOBODY, 0)
        with pytest.raises(OutputRefused, match="made 'z' as another user"):
            _publish(attempt)
        assert _snapshot(top) == {}
        attempt.discard()
        assert _scratches(top) == ["1.1-a"]
        newer = staging.scratch(1, "2-a", "")
        _write(newer, a="1")
        with pytest.raises(OutputRefused, match=r"earlier attempt's '.*/1\.1-a'.*can't be removed"):
            _publish(newer)
        assert _snapshot(top) == {}


def test_a_tree_deeper_than_the_stack_and_the_descriptors_is_removed(staging: Staging, output: Path) -> None:
    attempt = staging.scratch(1, "1-a", "")
    code = "import os\nfor i in range(1200):\n os.mkdir('d' * 9); open('f', 'w').close(); os.chdir('d' * 9)"
    subprocess.run([sys.executable, "-c", code], cwd=attempt.directory, check=True)
    with pytest.raises(OutputRefused, match="File name too long"):
        _publish(attempt)
    attempt.discard()
    assert _scratches(output) == []
    assert _snapshot(output) == {}


def test_a_deep_tree_that_paths_can_name_is_published(staging: Staging, output: Path) -> None:
    attempt = staging.scratch(1, "1-a", "")
    deepest = Path(attempt.directory, *["d"] * 300)
    os.makedirs(deepest)
    (deepest / "f").touch()
    assert _publish(attempt) == 1
    assert Path(output, *["d"] * 300, "f").exists()
    assert _scratches(output) == []


def test_scratch_is_removed_while_a_process_left_behind_still_writes_there(
    staging: Staging, output: Path
) -> None:
    attempt = staging.scratch(1, "1-a", "")
    code = (
        "import itertools, os\n"
        "os.mkdir('d')\nprint(flush=True)\n"
        "try:\n"
        " for i in itertools.count(): open(f'd/{i}', 'w').close()\n"
        "except FileNotFoundError: pass"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=attempt.directory, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout
        writer.stdout.readline()
        try:
            attempt.discard()
            assert writer.wait(20) == 0
        finally:
            writer.kill()
    assert _scratches(output) == []


def test_a_command_that_removes_its_output_directory_is_refused(staging: Staging, output: Path) -> None:
    attempt = staging.scratch(1, "1-a", "")
    os.rmdir(attempt.directory)
    _refused(attempt, output, "removed its $OUTPUT_DIR")


def test_scratch_of_a_token_is_empty_even_if_something_is_in_its_place(staging: Staging) -> None:
    _write(staging.scratch(1, "1-a", ""), old="1")
    assert staging.scratch(1, "1-a", "").outputs() == []


# Two attempts of one item


def test_a_lost_lease_publishes_nothing_and_touches_no_other_attempt(staging: Staging, output: Path) -> None:
    loser, winner = staging.scratch(1, "1-a", ""), staging.scratch(1, "2-b", "")
    _write(loser, a="old")
    _write(winner, a="new")
    with pytest.raises(LeaseLost, match="item #1 "):
        loser.publish(_nobody_owns, _lost)
    assert _snapshot(output) == {}
    assert _scratches(output) == ["1.1-a", "1.2-b"]
    assert _publish(winner) == 1
    assert (output / "a").read_text() == "new"
    assert _scratches(output) == []


def test_a_refusal_of_a_lost_lease_is_a_lost_lease(staging: Staging) -> None:
    loser = staging.scratch(1, "1-a", "")
    _write(loser, a="old")
    with pytest.raises(LeaseLost):
        loser.publish(lambda names: {"a": (2, "x")}, _lost)
    os.unlink(loser.directory + "/a")
    os.rmdir(loser.directory)
    with pytest.raises(LeaseLost):
        loser.publish(_nobody_owns, _lost)


def test_only_scratch_of_the_same_item_is_removed(staging: Staging, output: Path) -> None:
    attempts = {seq: staging.scratch(seq, "1-a", "") for seq in (11, 17, 1)}
    for seq, attempt in attempts.items():
        _write(attempt, **{f"f{seq}": "1"})
    assert _publish(attempts.pop(1)) == 1
    assert _scratches(output) == ["11.1-a", "17.1-a"]
    assert [_publish(attempt) for attempt in attempts.values()] == [1, 1]


def test_what_the_callables_raise_passes_and_publishing_again_works(staging: Staging, output: Path) -> None:
    attempt = staging.scratch(1, "1-a", "")
    _write(attempt, a="1")

    def fails() -> bool:
        raise MachineFailed("Redis is away")

    with pytest.raises(MachineFailed, match="Redis is away"):
        attempt.publish(_nobody_owns, fails)
    assert _snapshot(output) == {}
    assert _publish(attempt) == 1


def test_a_loser_paused_between_check_and_rename_can_not_replace_the_winner(
    staging: Staging, output: Path
) -> None:
    """The race of a worker that sleeps inside its publish: it passed the check, the item was given to another
    attempt, which published, and then it goes on."""
    loser = staging.scratch(1, "1-a", "s")
    _write(loser, a="old", b="old")
    holder, checked, go_on = ["loser"], threading.Event(), threading.Event()
    outcome: list[object] = []

    def passes_then_sleeps() -> bool:
        answer = holder[0] == "loser"
        checked.set()
        assert go_on.wait(20)
        return answer

    def lose() -> None:
        try:
            outcome.append(loser.publish(_nobody_owns, passes_then_sleeps))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=lose)
    thread.start()
    assert checked.wait(20)
    holder[0] = "winner"
    winner = staging.scratch(1, "2-b", "s")
    _write(winner, a="new")
    assert winner.publish(_nobody_owns, lambda: holder[0] == "winner") == 1
    go_on.set()
    thread.join(20)
    assert [type(result) for result in outcome] == [LeaseLost]
    assert (output / "s/a").read_text() == "new"
    assert not (output / "s/b").exists()
    loser.discard()
    assert _scratches(output) == []


def test_scratch_made_after_the_check_survives_a_loser_that_only_remembers_it(
    staging: Staging, output: Path
) -> None:
    """The race of a worker that sleeps between the answer about its token and its publish: the item is given
    to another attempt, whose command is at work when the loser goes on and publishes."""
    loser = staging.scratch(1, "1-a", "")
    _write(loser, a="old")  # and now its token is checked: yes
    winner = staging.scratch(1, "2-b", "")
    _write(winner, a="new", b="new")
    assert loser.publish(_nobody_owns, _ours) == 1
    assert winner.publish(_nobody_owns, _ours) == 2
    assert [(output / name).read_text() for name in ("a", "b")] == ["new", "new"]
    assert _scratches(output) == []


_PRELUDE = """
import json, os, signal, sys, threading
from ppss_queue.errors import LeaseLost
from ppss_worker.publishing import OutputRefused
from ppss_worker.staging import Staging

top = sys.argv[1]
EVENTS = ("os.", "open")
armed = {"left": -1, "thread": None, "action": None}

def hook(event, arguments):
    if armed["left"] < 0 or not event.startswith(EVENTS) or threading.get_ident() != armed["thread"]:
        return
    armed["left"] -= 1
    if armed["left"] < 0:
        armed["action"]()

def arm(step, action):
    armed.update(left=step, thread=threading.get_ident(), action=action)

def write(attempt, text):
    os.makedirs(attempt.directory + "/d/e", exist_ok=True)
    for name in ("a", "b", "d/c", "d/e/f"):
        with open(attempt.directory + "/" + name, "w") as file:
            file.write(text)

def fresh(step):
    output = f"{top}/{step}"
    staging = Staging(output, "k3v9")
    staging.prepare()
    return output, staging

def outcome(publish):
    try:
        return publish()
    except (LeaseLost, OutputRefused) as error:
        return type(error).__name__

def texts(output):
    places = [f"{output}/s/{name}" for name in ("a", "b", "d/c", "d/e/f")]
    return [open(place).read() for place in places if os.path.exists(place)]

def left(output):
    return os.listdir(output + "/.ppss/k3v9")

sys.addaudithook(hook)
"""

_TAKEN_OVER = """
def over(step, publishes_at_once):
    output, staging = fresh(step)
    holder, winners, results = ["loser"], [], []
    loser = staging.scratch(1, "1-a", "s")
    write(loser, "old")

    def win():
        results.append(outcome(lambda: winners[0].publish(lambda names: {}, lambda: holder[0] == "winner")))

    def take_over():
        holder[0] = "winner"
        winners.append(staging.scratch(1, "2-b", "s"))
        write(winners[0], "new")
        if publishes_at_once:
            win()

    arm(step, take_over)
    lost = outcome(lambda: loser.publish(lambda names: {}, lambda: holder[0] == "loser"))
    armed["left"] = -1
    if not winners:
        return None
    if not publishes_at_once:
        win()
    loser.discard()
    return {"loser": lost, "winner": results[0], "texts": texts(output), "left": left(output)}

results = []
for step in range(1000):
    result = over(step, sys.argv[2] == "at once")
    if result is None:
        break
    results.append(result)
print(json.dumps(results))
"""

_WAKES_UP = """
def wakes(step):
    output, staging = fresh(step)
    loser = staging.scratch(1, "1-a", "s")
    write(loser, "old")
    checked, go_on, lost = threading.Event(), threading.Event(), []
    answers = iter([True])

    def passes_then_sleeps():
        checked.set()
        go_on.wait(20)
        return next(answers, False)

    thread = threading.Thread(
        target=lambda: lost.append(outcome(lambda: loser.publish(lambda names: {}, passes_then_sleeps)))
    )
    thread.start()
    checked.wait(20)
    winner = staging.scratch(1, "2-b", "s")
    write(winner, "new")

    def wake():
        go_on.set()
        thread.join(20)

    arm(step, wake)
    won = outcome(lambda: winner.publish(lambda names: {}, lambda: True))
    fired = armed["left"] < 0
    armed["left"] = -1
    wake()
    loser.discard()
    result = {"loser": lost[0], "winner": won, "texts": texts(output), "left": left(output)}
    return result, fired

results = []
for step in range(1000):
    result, fired = wakes(step)
    results.append(result)
    if not fired:
        break
print(json.dumps(results))
"""

_TWO_ITEMS = """
def both(step):
    output, staging = fresh(step)
    first, second = staging.scratch(1, "1-a", "s"), staging.scratch(2, "2-b", "s")
    write(first, "1")
    os.makedirs(second.directory + "/d/e")
    for place in (second.directory + "/d/z", second.directory + "/d/e/z"):
        with open(place, "w") as file:
            file.write("2")
    counts = []

    def publish_second():
        counts.append(outcome(lambda: second.publish(lambda names: {}, lambda: True)))

    arm(step, publish_second)
    count = outcome(lambda: first.publish(lambda names: {}, lambda: True))
    armed["left"] = -1
    others = [open(f"{output}/s/{name}").read() for name in ("d/z", "d/e/z") if counts]
    return counts and {"first": count, "second": counts[0], "texts": texts(output) + others}

results = []
for step in range(1000):
    result = both(step)
    if not result:
        break
    results.append(result)
print(json.dumps(results))
"""

_KILLED = """
def killed(step):
    output, staging = fresh(step)
    child = os.fork()
    if not child:
        attempt = staging.scratch(1, "1-a", "s")
        os.mkdir(attempt.directory + "/d", 0o700)
        write(attempt, "old")
        arm(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
        attempt.publish(lambda names: {}, lambda: True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    between = texts(output)
    private = not os.path.exists(output + "/s/d") or os.stat(output + "/s/d").st_mode & 0o777 == 0o700
    attempt = staging.scratch(1, "2-b", "s")
    write(attempt, "new")
    won = outcome(lambda: attempt.publish(lambda names: {}, lambda: True))
    return {"signal": status, "between": between, "private": private, "winner": won, "texts": texts(output),
            "left": left(output)}

results = []
for step in range(1000):
    results.append(killed(step))
    if not results[-1]["signal"]:
        break
print(json.dumps(results))
"""


def _at_every_step(script: str, top: Path, *arguments: str) -> list[dict[str, Any]]:
    """Runs a script that disturbs a publish at its first, second ... system call; one result for each."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "workers")])}
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + script, top, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    results: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(results) > 15
    return results


@pytest.mark.parametrize("publishes", ["at once", "when the loser is through"])
def test_an_item_taken_over_at_any_step_of_a_publish_ends_with_the_newer_bytes(
    tmp_path: Path, publishes: str
) -> None:
    """At each system call of the loser's publish another attempt takes over. That publishes at once, or still
    runs then: its scratch must survive whatever the loser does."""
    results = _at_every_step(_TAKEN_OVER, tmp_path, publishes)
    for result in results:
        assert result["texts"] == ["new"] * 4, results
        assert result["winner"] == 4
        assert result["left"] == []
    assert results[0]["loser"] == "LeaseLost"
    assert {result["loser"] for result in results} <= {"LeaseLost", 4}


def test_a_loser_that_wakes_up_at_any_step_of_the_winners_publish_changes_nothing(tmp_path: Path) -> None:
    """The loser passed its check long ago, and goes on at each system call of the winner's publish."""
    results = _at_every_step(_WAKES_UP, tmp_path)
    for result in results:
        assert result["texts"] == ["new"] * 4, results
        assert result["winner"] == 4
        assert result["left"] == []
    assert {result["loser"] for result in results} == {"LeaseLost", 4}


def test_after_a_kill_at_any_step_of_a_publish_the_next_attempt_replaces_all(tmp_path: Path) -> None:
    results = _at_every_step(_KILLED, tmp_path)
    for result in results:
        assert set(result["between"]) <= {"old"}  # whole or not at all
        assert result["private"]  # a directory is at no time more open than the command made it
        assert result["texts"] == ["new"] * 4, results
        assert result["winner"] == 4
        assert result["left"] == []
    assert {len(result["between"]) for result in results} == {0, 1, 2, 3, 4}


def test_two_items_that_make_the_same_directories_at_any_step_of_each_other_merge(tmp_path: Path) -> None:
    results = _at_every_step(_TWO_ITEMS, tmp_path)
    assert all(result == {"first": 4, "second": 2, "texts": ["1"] * 4 + ["2"] * 2} for result in results), (
        results
    )


# Disks


def test_a_full_disk_is_the_machines_failure_and_publishing_again_completes(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=256k,nr_inodes=30"):
        disk = tmp_path / "disk"
        staging = Staging(os.fspath(disk / "out"), "k3v9")
        staging.prepare()
        attempt = staging.scratch(1, "1-a", "new/place")
        _write(attempt, a="1")
        for name in ("d", "e"):
            Path(attempt.directory, name).mkdir()
            _write(attempt, **{f"{name}/b": "2"})
            Path(attempt.directory, name).chmod(0o777)  # more than the umask lets mkdir give
        fillers = _use_up_inodes(disk)
        with pytest.raises(MachineFailed, match="No space left on device"):
            _publish(attempt)
        with pytest.raises(MachineFailed, match="No space left on device"):
            staging.scratch(2, "1-a", "")
        with pytest.raises(MachineFailed, match="No space left on device"):
            Staging(os.fspath(disk / "other"), "k3v9").prepare()
        assert _snapshot(disk / "out") == {}
        for filler in fillers[:3]:  # enough for new, place, and one of d and e
            filler.unlink()
        with pytest.raises(MachineFailed, match="No space left on device"):
            _publish(attempt)
        for filler in fillers[3:]:
            filler.unlink()
        assert _publish(attempt) == 3
        for name in ("d", "e"):
            assert (disk / "out/new/place" / name / "b").read_text() == "2"
            assert stat.S_IMODE((disk / "out/new/place" / name).stat().st_mode) == 0o777


def test_a_disk_that_became_read_only_is_the_machines_failure(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=256k"):
        staging = Staging(os.fspath(tmp_path / "disk"), "k3v9")
        staging.prepare()
        attempt = staging.scratch(1, "1-a", "")
        _write(attempt, a="1")
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        with pytest.raises(MachineFailed, match="Read-only file system"):
            _publish(attempt)
        with pytest.raises(MachineFailed, match="Read-only file system"):
            staging.scratch(2, "1-a", "")
        with pytest.raises(BadInput, match="Read-only file system"):
            Staging(os.fspath(tmp_path / "disk/other"), "k3v9").prepare()


@pytest.mark.parametrize("subdirectory", ["m", "m/new", ""])
def test_a_file_system_mounted_below_the_output_directory_is_refused(
    staging: Staging, output: Path, subdirectory: str
) -> None:
    with mounted(output / "m", "size=64k"):
        attempt = staging.scratch(1, "1-a", subdirectory)
        _write(attempt, a="1")
        if not subdirectory:
            Path(attempt.directory, "m").mkdir()
            _write(attempt, **{"m/b": "2"})
        _refused(attempt, output, "another file system is mounted there", "'m")


def test_what_the_command_mounted_in_its_scratch_is_not_emptied(staging: Staging, output: Path) -> None:
    attempt = staging.scratch(1, "1-a", "")
    for place in ("mnt", "deep/mnt"):
        disk = Path(attempt.directory, place)
        with mounted(disk, "size=64k"):
            (disk / "precious").write_text("keep")
            with pytest.raises(OutputRefused, match="another file system is mounted there"):
                _publish(attempt)
            attempt.discard()
            assert (disk / "precious").read_text() == "keep"
            os.makedirs(attempt.directory, exist_ok=True)


# The run's directories


def test_prepare_makes_missing_parents_and_can_be_repeated(tmp_path: Path) -> None:
    staging = Staging(os.fspath(tmp_path / "a/b/out"), "k3v9")
    staging.prepare()
    staging.prepare()
    assert (tmp_path / "a/b/out/.ppss/k3v9").is_dir()


def test_an_output_directory_that_is_a_file_or_below_one_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/out"):
        with pytest.raises(BadInput, match=r"can't write in output directory '.*': Not a directory\..* -o"):
            Staging(os.fspath(tmp_path / place), "k3v9").prepare()


def test_an_output_directory_where_the_user_may_not_write_is_bad_input() -> None:
    with _ordinary_user() as top:
        (top / "out").mkdir()
        Staging(os.fspath(top / "out"), "k3v9").prepare()
        (top / "out").chmod(0o555)
        for run in ("k3v9", "j7aa"):
            with suppress(OSError):
                os.rmdir(top / "out/.ppss/j7aa")
            (top / "out/.ppss").chmod(0o555)
            with pytest.raises(BadInput, match="Permission denied"):
                Staging(os.fspath(top / "out"), run).prepare()
        with pytest.raises(BadInput, match="Permission denied"):
            Staging(os.fspath(top / "out/new"), "k3v9").prepare()


@pytest.mark.parametrize("place", [".ppss", ".ppss/k3v9"])
def test_scratch_is_not_made_through_a_link(tmp_path: Path, place: str) -> None:
    elsewhere, output = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    (output / place).parent.mkdir(parents=True)
    (output / place).symlink_to(elsewhere)
    with pytest.raises(BadInput, match="is no directory, but scratch belongs there"):
        Staging(os.fspath(output), "k3v9").prepare()


def test_scratch_can_be_had_after_the_run_was_swept(staging: Staging, output: Path) -> None:
    assert _sweep(output, "k3v9") == 0
    assert not (output / ".ppss").exists()
    attempt = staging.scratch(1, "1-a", "")
    _write(attempt, a="1")
    assert _publish(attempt) == 1


def test_sweep_counts_what_it_removes_and_leaves_other_runs(staging: Staging, output: Path) -> None:
    other = Staging(os.fspath(output), "j7aa")
    other.prepare()
    kept = other.scratch(1, "1-a", "")
    for seq in (1, 2):
        _write(staging.scratch(seq, "1-a", ""), a="1")
    assert _sweep(output, "k3v9") == 2
    assert os.listdir(output / ".ppss") == ["j7aa"]
    kept.discard()
    assert _sweep(output, "j7aa") == 0
    assert list(output.iterdir()) == []
    assert _sweep(output, "j7aa") == 0
    assert _sweep(output / "missing", "j7aa") == 0


def test_sweep_leaves_what_came_after_the_look(staging: Staging, output: Path) -> None:
    """A retry right after the end of a run lost its scratch to the sweep of another worker."""
    _write(staging.scratch(1, "1-a", ""), a="1")
    seen = leftovers(os.fspath(output), "k3v9")
    retried = staging.scratch(1, "2-b", "")
    _write(retried, a="2")
    assert sweep(os.fspath(output), "k3v9", seen) == 1
    assert _publish(retried) == 1


def test_exists_sees_files_and_dangling_links_and_survives_any_name(output: Path) -> None:
    (output / "s").mkdir(parents=True)
    (output / "s/a").touch()
    (output / "s/l").symlink_to("nowhere")
    assert [exists(os.fspath(output), "s", name) for name in ("a", "l", "b")] == [True, True, False]
    assert exists(os.fspath(output), "", "s")
    assert not exists(os.fspath(output), "s/a", "b")
    assert not exists(os.fspath(output), "missing", "b" * 300)
    assert not exists(os.fspath(output), "s", "\udcff\n")
