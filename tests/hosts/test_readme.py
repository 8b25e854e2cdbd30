"""The README's second machine, run word for word on two hosts; and what the old PPSS did wrong between hosts."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

from hosts.lab import Lab
from hosts.nodes import Nodes, listing

README = Path(__file__).resolve().parents[2] / "README.md"


def _block(title: str) -> str:
    (found,) = re.findall(rf"<!-- {title} -->\n```sh\n(.*?)```", README.read_text(), re.DOTALL)
    return str(found)


def test_the_second_machine_works_as_it_is_written(lab: Lab) -> None:
    master, node = lab.master, lab["n1"]
    for number in (1, 2, 3):
        master.write(f"words/file {number}.txt", f"text {number}\n")
    master.run(["bash", "-euc", _block("on the master")])
    done = node.run(["bash", "-euc", _block("on a node")])
    assert "3 succeeded" in done.stderr
    for number in (1, 2, 3):
        assert gzip.decompress(master.read(f"packed/file {number}.txt.gz")) == f"text {number}\n".encode()


def test_many_machines_work_as_it_is_written(lab: Lab, wheels: bytes) -> None:
    Nodes(lab, wheels).prepare()
    master = lab.master
    for node in lab.nodes:
        node.run(["rm", "/usr/local/bin/ppss"], user="root")
    before = [listing(node) for node in lab.nodes]
    for number in (1, 2, 3):
        master.write(f"words/file {number}.txt", f"text {number}\n")
    for title, output in (("many machines", "packed"), ("a list of nodes", "again")):
        done = master.run(["bash", "-euc", _block(title)], timeout_seconds=120)
        assert "takes no part" not in done.stderr and "3 succeeded" in done.stderr
        for number in (1, 2, 3):
            packed = master.read(f"{output}/file {number}.txt.gz")
            assert gzip.decompress(packed) == f"text {number}\n".encode()
    assert done.stdout.count("ready") == 2 and done.stdout.count("live") == 2, done.stdout
    assert done.stdout.count("load average") == 2 and done.stdout.count("erased") == 2, done.stdout
    assert [listing(node) for node in lab.nodes] == before


def test_fault_9_a_command_runs_on_whole_files_only_and_succeeds_when_its_outputs_are_home(lab: Lab) -> None:
    master, node = lab.master, lab["n1"]
    for name in ("gone", "kept"):
        master.write(f"in/{name}", name)
    run = master.run(
        ["ppss", "enqueue", "in", "--stage", "-o", "out", "-c", "echo ran >> ~/ran; cp {} {out}"]
    )
    master.run(["sh", "-c", "rm in/gone; mkdir -p out/kept"])  # no file can get the name of a directory
    node.run(["ppss", "worker", "--burst", "--url", "ssh://master"])
    status = json.loads(master.run(["ppss", "status", run.stdout.strip(), "--json"]).stdout)
    assert (status["succeeded"], status["failed"]) == (0, 2)
    assert node.read("ran") == b"ran\n"


def test_fault_10_dot_files_and_subdirectories_are_brought_home(lab: Lab) -> None:
    master, node = lab.master, lab["n1"]
    master.write("in/x", "x")
    command = 'cd "$OUTPUT_DIR" && mkdir -p .dot/sub empty && cp "$ITEM" .dot/sub/.file'
    master.run(["ppss", "enqueue", "in", "--stage", "-o", "out", "-c", command])
    node.run(["ppss", "worker", "--burst", "--url", "ssh://master"])
    found = master.run(["find", "out", "-mindepth", "1"]).stdout.split()
    assert sorted(found) == ["out/.dot", "out/.dot/sub", "out/.dot/sub/.file", "out/empty"]


def test_fault_13_one_connection_serves_all_items(lab: Lab) -> None:
    master, node = lab.master, lab["n1"]
    master.run(["sh", "-c", "mkdir in; for n in $(seq 100); do echo $n > in/$n; done"])
    master.run(["ppss", "enqueue", "in", "--stage", "-o", "out", "--", "cp", "{}", "{out}"])
    node.run(["ppss", "worker", "--burst", "--url", "ssh://master"])
    assert len(master.run(["ls", "out"]).stdout.split()) == 100
    log = master.run(["cat", "/var/log/sshd.log"], user="root").stdout
    assert log.count("Accepted publickey for ppss") == 1
