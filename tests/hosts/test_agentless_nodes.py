"""Nodes without PPSS are seen, steered and blamed one by one, though one process on the master works for all."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from helpers import wait_until
from hosts.lab import Host, Lab
from hosts.staged import SECONDS

_HOLD = 'touch "$HOME/began.$ITEM"; until [ -e "$HOME/go" ]; do sleep 0.05; done'


@pytest.fixture
def master(lab: Lab) -> Iterator[Host]:
    for node in lab.nodes:
        node.run(["rm", "/usr/local/bin/ppss"], user="root")
    yield lab.master


def ppss(master: Host, *words: str) -> str:
    return master.run(["ppss", *words]).stdout.strip()


def views(master: Host) -> dict[str, dict[str, object]]:
    lines = ppss(master, "nodes", "status", "--json").splitlines()
    return {str(view["node"]): view for view in map(json.loads, lines)}


def wait_for(master: Host, node: str, **facts: object) -> None:
    def shown() -> bool:
        view = views(master).get(node, {})
        return all(view.get(name) == value for name, value in facts.items())

    wait_until(shown, f"{node} is shown with {facts}: {views(master)}", SECONDS)


def items(master: Host, run: str) -> dict[str, dict[str, object]]:
    found = map(json.loads, ppss(master, "items", run, "--json").splitlines())
    return {str(item["item"]): item for item in found}


def test_each_node_is_seen_and_steered_by_itself(master: Host, lab: Lab) -> None:
    n1, n2 = lab["n1"], lab["n2"]
    master.write("names", "".join(f"{number}\n" for number in range(6)))
    run = ppss(master, "enqueue", "--no-check", "-f", "names", "-c", _HOLD)
    worker = master.popen(["ppss", "worker", "-p", "0", "--on", "2/n1,1/n2"], stderr=subprocess.PIPE)
    wait_for(master, "n1", state="live", slots=2, running=2)
    wait_for(master, "n2", state="live", slots=1, running=1)
    assert set(views(master)) == {"n1", "n2"}, "the master runs nothing"
    assert json.loads(ppss(master, "status", run, "--json"))["nodes"] == ["n1", "n2"]

    ppss(master, "nodes", "pause", "n1")
    wait_for(master, "n1", state="paused", running=2)
    n1.write("go", "")
    wait_for(master, "n1", running=0)
    ppss(master, "nodes", "set", "n2", "slots=2")
    wait_for(master, "n2", slots=2, running=2)
    assert sum(item["node"] == "n1" for item in items(master, run).values()) == 2

    ppss(master, "nodes", "set", "n1", "slots=1")
    ppss(master, "nodes", "resume", "n1")
    wait_for(master, "n1", state="live", slots=1, running=0)
    wait_until(
        lambda: len([item for item in items(master, run).values() if item["node"] == "n1"]) == 4,
        "n1 did more",
    )

    assert views(master)["n1"]["load"] is not None and int(str(views(master)["n1"]["cores"])) >= 1

    ppss(master, "nodes", "stop", "n2")
    wait_for(master, "n2", state="draining", running=2)
    n2.write("go", "")
    wait_until(lambda: "n2" not in views(master), "n2 has left")
    ppss(master, "wait", run)
    assert worker.poll() is None, "it has another node"
    ppss(master, "nodes", "stop", "--now", "n1")
    assert worker.wait(SECONDS) == 0, worker.stderr.read() if worker.stderr else ""
    assert views(master) == {}
    for node in (n1, n2):
        assert ".ppss" not in node.run(["ls", "-A"]).stdout


_USES_TOOL = ("--no-check", "-f", "names", "-c", "tool $ITEM; code=$?; sleep 0.1; exit $code")
_TOOL = "#!/bin/sh\necho done\n"


def _install(node: Host) -> None:
    node.write("/usr/local/bin/tool", _TOOL, user="root")
    node.run(["chmod", "755", "/usr/local/bin/tool"], user="root")


def test_a_node_that_lacks_a_program_is_quarantined_and_its_items_succeed_elsewhere(
    master: Host, lab: Lab
) -> None:
    """Elsewhere is another node of the same process, or the master itself."""
    n1, n2 = lab["n1"], lab["n2"]
    _install(n2)
    master.write("names", "".join(f"{number}\n" for number in range(20)))
    worker = master.popen(["ppss", "worker", "-p", "0", "--on", "1/n1,2/n2"], stderr=subprocess.DEVNULL)
    wait_for(master, "n1", state="live")
    wait_for(master, "n2", state="live")
    run = ppss(master, "enqueue", *_USES_TOOL)
    ppss(master, "wait", run)
    done = items(master, run)
    assert {(item["node"], item["state"], item["exit_code"]) for item in done.values()} == {
        ("n2", "succeeded", 0)
    }
    n1_view = views(master)["n1"]
    assert n1_view["state"] == "quarantined" and "exit 127" in str(n1_view["reason"])
    assert "When that is mended: ppss nodes resume n1" in ppss(master, "nodes", "status")
    _install(n1)
    ppss(master, "nodes", "resume", "n1")
    wait_for(master, "n1", state="live")
    more = ppss(master, "enqueue", *_USES_TOOL)
    ppss(master, "wait", more)
    assert {item["node"] for item in items(master, more).values()} == {"n1", "n2"}

    for node in (n1, n2):
        node.run(["rm", "/usr/local/bin/tool"], user="root")
    last = ppss(master, "enqueue", *_USES_TOOL)
    master.run(["ppss", "wait", last], check=False)
    assert {(item["state"], item["exit_code"]) for item in items(master, last).values()} == {("failed", 127)}
    assert {str(view["state"]) for view in views(master).values()} == {"live"}, "the items are to blame"
    worker.terminate()
    worker.wait(SECONDS)


def test_what_fails_on_the_only_node_fails_at_once_and_quarantines_nobody(master: Host) -> None:
    master.write("names", "a\nb\nc\nd\n")
    run = ppss(master, "enqueue", "--no-check", "-f", "names", "-c", "no-such-tool $ITEM")
    master.run(["ppss", "worker", "--burst", "-p", "0", "--on", "1/n1"])
    assert {(item["state"], item["exit_code"]) for item in items(master, run).values()} == {("failed", 127)}


def test_what_fails_on_a_node_is_tried_by_the_master_and_the_other_way_round(master: Host, lab: Lab) -> None:
    worker = master.popen(["ppss", "worker", "-p", "1", "--on", "1/n1"], stderr=subprocess.DEVNULL)
    wait_for(master, "n1", state="live")
    for good, bad in ((master, lab["n1"]), (lab["n1"], master)):
        _install(good)
        bad.run(["rm", "-f", "/usr/local/bin/tool"], user="root")
        master.write("names", "a\nb\n")
        run = ppss(master, "enqueue", *_USES_TOOL)
        ppss(master, "wait", run)
        found = {(item["state"], item["node"]) for item in items(master, run).values()}
        assert found == {("succeeded", good.name)}, found
    worker.terminate()
    worker.wait(SECONDS)


def test_a_node_that_is_paused_keeps_no_items(master: Host) -> None:
    """Short ones are held ahead of their turn."""
    master.write("names", "".join(f"{number}\n" for number in range(5_000)))
    run = ppss(master, "enqueue", "-f", "names", "-c", ": $ITEM")
    worker = master.popen(["ppss", "worker", "-p", "0", "--on", "1/n1"], stderr=subprocess.DEVNULL)

    def counts() -> dict[str, int]:
        found: dict[str, int] = json.loads(ppss(master, "status", run, "--json"))
        return found

    wait_until(lambda: counts()["succeeded"] > 20, "it works", SECONDS)
    ppss(master, "nodes", "pause", "n1")
    wait_until(lambda: counts()["leased"] == 0, "it has none", SECONDS)
    assert counts()["ready"] > 0
    worker.terminate()
    worker.wait(SECONDS)
