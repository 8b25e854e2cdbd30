"""Lines of nodes in authorized_keys, and that nothing else in it is touched."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppss_queue.errors import BadInput, MachineFailed
from ppss_queue.nodes.authorized import Owner, let_in, take_back

_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEt1+19YzHewlx9ej+Y5WPVD6OJ8AlnOnUbyyeQiV/4V"
_OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAc3fRHr8rUJlbFReZrbY9ndu8ZztrbZoiuSH61roDun"
_GATE = 'restrict,command="/x y/ppss gate"'
_NODE = Owner("m", "1234", 1000, "me@big1:2222", _KEY)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".ssh" / "authorized_keys"


@pytest.mark.parametrize(
    "before", [b"", b"# mine\nssh-rsa A b\n", b"ssh-rsa A b", b"\xff\x00\r\n\n\nx", b"\n"]
)
def test_a_line_comes_and_goes_and_others_stay_as_they_are(file: Path, before: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(before)
    file.chmod(0o640)
    assert let_in(file, _GATE, _NODE)
    lines = file.read_bytes()
    ours = f"{_GATE} {_KEY} ppss:m:1234:1000:me@big1:2222\n".encode()
    assert lines.endswith(ours) and lines.count(b"ssh-ed25519") == 1
    assert file.stat().st_mode & 0o777 == 0o640
    assert take_back(file, _NODE.is_same) == 1
    end = b"" if before.endswith(b"\n") or not before else b"\n"
    assert file.read_bytes() == before + end
    assert os.listdir(file.parent) == [file.name]


@given(st.lists(st.binary(max_size=40)), st.booleans())
def test_whatever_else_is_in_the_file_is_kept(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bool
) -> None:
    file = tmp_path_factory.mktemp("k") / "authorized_keys"
    before = b"\n".join(lines) + b"\n" * end
    file.write_bytes(before)
    let_in(file, _GATE, _NODE)
    assert file.read_bytes().startswith(before)
    take_back(file, _NODE.is_same)
    assert file.read_bytes().removesuffix(b"\n") == before.removesuffix(b"\n")


def test_a_file_that_is_missing_is_made_for_its_owner_alone(file: Path) -> None:
    assert take_back(file, _NODE.is_same) == 0
    let_in(file, _GATE, _NODE)
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700


def test_what_is_there_already_is_not_written_again(file: Path) -> None:
    let_in(file, _GATE, _NODE)
    before = file.stat()
    assert not let_in(file, _GATE, _NODE)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_new_grant_or_key_or_name_takes_the_place_of_the_old_one(file: Path) -> None:
    let_in(file, _GATE, _NODE)
    renamed = replace(_NODE, key=_OTHER, node="renamed", machine="5678")
    for options, owner in (("restrict", _NODE), (_GATE, replace(_NODE, key=_OTHER)), (_GATE, renamed)):
        assert let_in(file, options, owner)
        assert file.read_text() == f"{options} {owner.key} {owner.comment}\n"


def test_clones_another_user_there_and_another_master_are_told_apart(file: Path) -> None:
    others = [
        replace(_NODE, node="clone", key=_OTHER),
        replace(_NODE, uid=1001, key=_OTHER[:-1] + "p"),
        replace(_NODE, master="other"),
    ]
    for owner in (_NODE, *others):
        let_in(file, _GATE, owner)
    assert take_back(file, _NODE.is_same) == 1
    assert file.read_text() == "".join(f"{_GATE} {owner.key} {owner.comment}\n" for owner in others)


def test_lines_that_only_look_like_ours_stay(file: Path) -> None:
    file.parent.mkdir()
    text = f"# {_KEY} {_NODE.comment}\n{_KEY} x{_NODE.comment}\n{_KEY} ppss:m\n{_KEY} {_NODE.comment} x\n"
    file.write_text(text)
    assert take_back(file, lambda owner: True) == 0
    assert file.read_text() == text


@pytest.mark.parametrize(
    "key",
    ["", "ssh-ed25519", f"{_KEY}\n{_OTHER}", f'command="sh" {_KEY}', "ssh-ed25519 AA,AA", "ssh-rsa AAAA"],
)
def test_a_node_can_bring_in_nothing_but_a_key(file: Path, key: str) -> None:
    with pytest.raises(BadInput, match="no public key"):
        let_in(file, _GATE, replace(_NODE, key=key))
    assert not file.exists()


def test_a_link_stays_one(file: Path, tmp_path: Path) -> None:
    file.parent.mkdir()
    file.symlink_to("../elsewhere/keys")
    let_in(file, _GATE, _NODE)
    assert file.is_symlink() and (tmp_path / "elsewhere" / "keys").read_text().startswith(_GATE)


def test_many_at_once_lose_no_line(file: Path) -> None:
    owners = [Owner("m", str(number), 1000, "n", f"ssh-ed25519 A{number}") for number in range(16)]
    threads = [threading.Thread(target=let_in, args=(file, _GATE, owner)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {Owner.of(line) for line in file.read_bytes().splitlines()} == set(owners)


def test_a_file_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineFailed, match="authorized_keys' can't be written"):
        let_in(tmp_path / "file" / "authorized_keys", _GATE, _NODE)
