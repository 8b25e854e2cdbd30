"""Staging: files of items to a node over SSH, and its outputs home; each test checks every byte that it expects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import wait_until
from hosts.lab import Host, Lab
from hosts.ssh import restart_sshd

NODE = ("worker", "--burst", "-p", "2", "--url", "ssh://master")

_MAKE_INPUTS = r"""
import os
os.makedirs(b"in/deep/er", exist_ok=True)
names = [b"plain", b"with blank", b"-dash", b"new\nline", b"quote'\"`$(touch pwned)`", b"\xff\xfe bytes", b".hidden"]
names += [b"a.tar.gz"]
for number, name in enumerate(names):
    for below in (b"in", b"in/deep/er"):
        with open(below + b"/" + name, "wb") as file:
            file.write(name * 1000 * (number + 1))
open("in/empty", "wb").close()
with open("in/sparse", "wb") as file:
    file.write(b"begin")
    file.truncate(20_000_000)
    file.seek(15_000_000)
    file.write(b"end")
os.chmod("in/plain", 0o640)
os.utime("in/plain", (1_000_000_000, 1_000_000_000))
"""
_LIST_TREE = r"""
import hashlib, os, stat, sys
def shown(path):
    facts = os.lstat(path)
    kind = stat.S_IFMT(facts.st_mode)
    what = b"" if kind == stat.S_IFDIR else os.fsencode(os.readlink(path)) if kind == stat.S_IFLNK else None
    if what is None:
        os.chmod(path, stat.S_IMODE(facts.st_mode) | 0o400)
        with open(path, "rb") as file:
            what = hashlib.file_digest(file, "sha256").hexdigest().encode()
    mode = 0 if kind == stat.S_IFLNK else stat.S_IMODE(facts.st_mode)
    return f"{kind:o} {mode:o} {what.decode(errors='replace')}"
top = os.fsencode(sys.argv[1])
for directory, subdirectories, files in os.walk(top):
    for name in sorted([*subdirectories, *files]):
        path = os.path.join(directory, name)
        if os.path.isdir(path) and not os.path.islink(path):
            old = stat.S_IMODE(os.lstat(path).st_mode)
            print(ascii(path[len(top):]), shown(path))
            os.chmod(path, old | 0o700)
        else:
            print(ascii(path[len(top):]), shown(path))
"""
_WRITE_ALL_KINDS = r"""
cp -p -- "$ITEM" "$OUTPUT_DIR/$OUTPUT_FILE" && d="$OUTPUT_DIR/$OUTPUT_FILE.d" && mkdir -p "$d/.dot/empty" &&
printf x > "$d/.file" && : > "$d/zero" && truncate -s 5000000 "$d/sparse" && ln -s ../elsewhere "$d/link" &&
ln -s /etc "$d/absolute" && mkdir -m 0555 "$d/closed" && printf secret > "$d/none" && chmod 000 "$d/none" &&
chmod 750 "$d"
"""


def enqueue(master: Host, *arguments: str) -> str:
    """A run of the files below in/, staged, with outputs below out/."""
    return master.run(["ppss", "enqueue", "in", "--stage", "-o", "out", *arguments]).stdout.strip()


def tree(host: Host, directory: str) -> list[str]:
    """All that is below a directory: names, kinds, modes, targets of links, hashes."""
    return sorted(host.run(["python3", "-c", _LIST_TREE, directory]).stdout.splitlines())


def states(master: Host, run: str) -> dict[str, int]:
    status = json.loads(master.run(["ppss", "status", run, "--json"]).stdout)
    return {name: status[name] for name in ("succeeded", "failed") if status[name]}


def failures(master: Host, run: str) -> str:
    return master.run(["ppss", "items", run, "--state", "failed"]).stdout


@pytest.fixture
def master(lab: Lab) -> Host:
    lab.master.run(["python3", "-c", _MAKE_INPUTS])
    return lab.master


@pytest.fixture
def node(lab: Lab) -> Host:
    return lab["n1"]


@pytest.mark.parametrize("options", [(), ("--compress", "--bwlimit", "100M")])
def test_a_node_makes_the_same_outputs_as_the_master_itself(
    master: Host, node: Host, options: tuple[str, ...]
) -> None:
    here = enqueue(master, "--verify", "-c", _WRITE_ALL_KINDS)
    master.run(["ppss", "worker", "--burst"])
    master.run(["mv", "out", "expected"])
    there = enqueue(master, "--verify", "-c", _WRITE_ALL_KINDS)
    node.run(["ppss", *NODE, *options])
    assert states(master, here) == states(master, there) == {"succeeded": 18}, failures(master, there)
    assert tree(master, "out") == tree(master, "expected")
    assert int(master.run(["du", "-k", "out/sparse"]).stdout.split()[0]) < 1000, "holes were filled"
    assert master.run(["stat", "-c", "%Y", "out/plain"]).stdout == "1000000000\n"
    assert "pwned" not in node.run(["ls", "-A"]).stdout
    assert node.run(["find", ".local/state/ppss", "-path", "*scratch/*", "-type", "f"]).stdout == ""


def test_staged_items_get_room_one_after_the_other(master: Host, node: Host) -> None:
    command = "mkdir ~/alone && sleep 0.05 && cp {} {out} && echo $CUDA_VISIBLE_DEVICES && rmdir ~/alone"
    run = enqueue(master, "--gpus", "1", "--cpus", "2", "-c", command)
    node.run(["ppss", *NODE, "-p", "4", "--gpus", "3,", "--cpus", "3"])
    assert states(master, run) == {"succeeded": 18}, failures(master, run)


def test_companions_and_shared_files_come_along(master: Host, node: Host) -> None:
    master.run(
        [
            "sh",
            "-c",
            "cd in && rm -r deep sparse && for f in *; do case $f in a.*) echo $f > a.tar.xmp;; esac; done",
        ]
    )
    master.write("tools/greet", '#!/bin/sh\necho "$1: $(cat "$1"; cat tools/name)"\n')
    master.write("tools/name", "PPSS")
    master.run(["chmod", "+x", "tools/greet"])
    options = ["--include", "a.tar.gz", "--also", "{.}.xmp", "--with", "tools/greet", "--with", "tools/name"]
    run = enqueue(
        master, *options, "-c", 'tools/greet "$(basename "${ITEM%.gz}").xmp" > {out}; ls > "$OUTPUT_DIR/ls"'
    )
    node.run(["ppss", *NODE])
    assert states(master, run) == {"succeeded": 1}, failures(master, run)
    assert master.read("out/a.tar.gz") == b"a.tar.xmp: a.tar.gz\nPPSS\n"
    assert master.read("out/ls") == b"a.tar.gz\na.tar.xmp\ntools\n"


def test_what_a_command_writes_beside_its_item_comes_home_if_it_is_named(
    master: Host, node: Host, lab: Lab
) -> None:
    command = 'tr a-z A-Z < "$ITEM" > "${ITEM%.*}.up"'
    options = ["--include", "a.tar.gz", "--return", "{.}.up"]
    for worker in (node, master):
        master.run(["rm", "-rf", "out"])
        run = enqueue(master, *options, "-c", command)
        worker.run(["ppss", *(NODE if worker is node else NODE[:4])])
        assert states(master, run) == {"succeeded": 2}, failures(master, run)
        assert master.read("out/deep/er/a.tar.up") == b"A.TAR.GZ" * 8000
        assert master.run(["find", "out", "in", "-name", "*.up"]).stdout.count("\n") == 2


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ('echo x > "$ITEM.new"', "wrote 'plain.new' beside its input"),
        ('echo x >> "$ITEM"', "changed 'plain', which is a copy"),
        (': "$ITEM"; mkfifo "$OUTPUT_DIR/pipe"', "made 'pipe', which is no file, directory or link"),
        (': "$ITEM"; rm -rf "$OUTPUT_DIR"', "removed its $OUTPUT_DIR"),
    ],
)
def test_what_can_not_come_home_fails_the_item_and_says_so(
    master: Host, node: Host, command: str, reason: str
) -> None:
    run = enqueue(master, "--include", "plain", "--exclude", "deep", "-c", command)
    node.run(["ppss", *NODE])
    assert states(master, run) == {"failed": 1}
    assert reason in failures(master, run)
    assert master.run(["find", ".", "-path", "./out/*", "-type", "f"]).stdout == ""


def test_a_file_that_is_gone_fails_its_item_alone(master: Host, node: Host) -> None:
    run = enqueue(master, "--", "cp", "{}", "{out}")
    master.run(["rm", "in/empty"])
    node.run(["ppss", *NODE])
    assert states(master, run) == {"succeeded": 17, "failed": 1}
    assert "No such file" in failures(master, run)


def test_existing_outputs_are_skipped_without_a_copy(master: Host, node: Host) -> None:
    enqueue(master, "--", "cp", "{}", "{out}")
    node.run(["ppss", *NODE])
    master.write("out/plain", "mine")
    run = enqueue(master, "--skip-existing", "--", "cp", "{}", "{out}")
    node.run(["ppss", *NODE])
    assert states(master, run) == {"succeeded": 18}
    assert master.read("out/plain") == b"mine"


def test_a_node_that_sees_the_files_elsewhere_copies_nothing(lab: Lab) -> None:
    share = lab.share / "data"
    share.mkdir()
    share.chmod(0o777)
    (share / "x").write_text("x")
    lab.master.run(["ln", "-s", str(share), "data"])
    run = lab.master.run(
        ["ppss", "enqueue", "data/", "--stage", "-o", "data/out", "-c", 'echo "$ITEM" > {out}']
    ).stdout.strip()
    lab["n1"].run(["ppss", *NODE, "--map", f"/home/ppss/data={share}"])
    assert states(lab.master, run) == {"succeeded": 1}, failures(lab.master, run)
    assert lab.master.read("data/out/x").decode() == f"{share}/x\n"


def test_a_run_that_is_not_staged_is_left_to_nodes_that_have_its_files(master: Host, node: Host) -> None:
    run = master.run(["ppss", "enqueue", "in", "-c", 'wc "$ITEM"']).stdout.strip()
    left = node.run(["ppss", *NODE], check=False)
    assert left.returncode == 2
    assert "which is not on this node. Enqueue them with --stage" in left.stderr
    assert states(master, run) == {}


def test_a_master_without_ppss_gives_files_by_sftp(master: Host, node: Host, server_binary: Path) -> None:
    # The master's own server is for PPSS there alone: this run lives in another Redis, which only its port leads to.
    redis = "redis://127.0.0.1:6379"
    master.popen([str(server_binary), "--port", "6379", "--bind", "127.0.0.1", "--save", ""])
    wait_until(
        lambda: master.run(["ppss", "status", "--url", redis], check=False).returncode == 0, "Redis answers"
    )
    here = enqueue(master, "--verify", "-c", _WRITE_ALL_KINDS)
    master.run(["ppss", "worker", "--burst"])
    master.run(["mv", "out", "expected"])
    enqueue(master, "--url", redis, "--verify", "-c", _WRITE_ALL_KINDS)
    master.run(["rm", "/usr/local/bin/ppss"], user="root")
    node.run(["ppss", *NODE[:-1], f"ssh://master/{redis}"])
    assert tree(master, "out") == tree(master, "expected")
    assert len(tree(master, "out")) > 18 and here


@pytest.mark.parametrize("via", ["sftp", "gate"])
def test_a_master_that_gives_no_files_is_named_and_keeps_no_item(
    master: Host, node: Host, server_binary: Path, via: str
) -> None:
    redis = "redis://127.0.0.1:6379"
    url = f"ssh://master/{redis}" if via == "sftp" else "ssh://master"
    if via == "sftp":
        master.popen([str(server_binary), "--port", "6379", "--bind", "127.0.0.1", "--save", ""])
        wait_until(
            lambda: master.run(["ppss", "status", "--url", redis], check=False).returncode == 0, "Redis"
        )
        master.run(["sed", "-i", "/^Subsystem/d", "/etc/ssh/sshd_config"], user="root")
    else:
        key = node.read(".ssh/id_ed25519.pub").decode()
        master.write(".ssh/authorized_keys", f'restrict,command="ppss gate redis" {key}')
    restart_sshd(master)
    where = ["--url", redis] if via == "sftp" else []
    run = enqueue(master, *where, "--", "cp", "{}", "{out}")
    done = node.run(["ppss", *NODE[:-1], url], check=False)
    assert done.returncode == 2
    assert ("has no SFTP" if via == "sftp" else "opens one service") in done.stderr or "gate" in done.stderr
    status = json.loads(master.run(["ppss", "status", run, "--json", *where]).stdout)
    assert (status["ready"], status["failed"]) == (18, 0)
