"""What the old PPSS did wrong on several machines; faults 9, 10 and 13 are in test_readme.py."""

from __future__ import annotations

import json
from typing import Any

from helpers import wait_until
from hosts.lab import Host, Lab
from hosts.nodes import PYTHON, Nodes, files_with
from hosts.ssh import URL, enqueue, ppss


def nodes(master: Host) -> dict[str, dict[str, Any]]:
    facts = map(json.loads, ppss(master, "nodes", "status", "--json").out.splitlines())
    return {each["node"]: each for each in facts}


def test_fault_6_a_pause_leaves_logs_alone(lab: Lab) -> None:
    master, node = lab.master, lab["n1"]
    node.popen(["ppss", "worker", "--url", URL, "--logs", "logs"])
    run = enqueue(master, 3, "echo said; false")
    assert ppss(master, "wait", run).code == 1
    before = node.run(["sh", "-c", "cd logs && find . -type f | sort | xargs cat"]).stdout
    assert before.count("said") == 3
    assert ppss(master, "nodes", "pause", "n1").code == 0
    wait_until(lambda: nodes(master)["n1"]["state"] == "paused", "it is paused")
    assert node.run(["sh", "-c", "cd logs && find . -type f | sort | xargs cat"]).stdout == before
    assert "said" in ppss(master, "log", run, "1").out


def test_fault_11_no_private_key_of_the_master_comes_to_a_node(lab: Lab, wheels: bytes) -> None:
    Nodes(lab, wheels).prepare()
    master, node = lab.master, lab["n1"]
    master.write("nodes", f"n1 python={PYTHON}\n")
    assert ppss(master, "nodes", "start", "-n", "nodes").code == 0
    secret = master.read(".ssh/id_ed25519").decode().splitlines()[2:-1]  # before it all keys are alike
    assert secret and not any(files_with(node, line) for line in secret)
    master_hosts = [line for line in secret if files_with(master, line)]
    assert master_hosts == secret, "the search would have found it"


def test_fault_14_a_dead_node_shows_as_lost(lab: Lab) -> None:
    master = lab.master
    lab["n1"].popen(["ppss", "worker", "--url", URL])
    run = enqueue(master, 1, "sleep 300; : {}")
    wait_until(lambda: nodes(master).get("n1", {}).get("running") == 1, "it runs")
    lab["n1"].kill()
    wait_until(lambda: nodes(master)["n1"]["state"] == "lost", "it is lost", 60)
    assert nodes(master)["n1"]["running"] == 0
    assert "lost" in ppss(master, "nodes", "status").out
    lab["n2"].popen(["ppss", "worker", "--url", URL])
    wait_until(lambda: nodes(master).get("n2", {}).get("running") == 1, "its item runs elsewhere", 60)
    assert ppss(master, "cancel", run).code == 0


def test_fault_15_nodes_with_equal_names_are_told_apart(lab: Lab) -> None:
    master = lab.master
    for number, node in enumerate(lab.nodes):
        node.write("/etc/machine-id", f"{number:032x}\n", user="root")
        node.run(["hostname", "localhost"], user="root")
        node.popen(["ppss", "worker", "--url", URL, "-p", f"{number + 1}"])
    wait_until(lambda: len(nodes(master)) == 2, "both are there")
    seen = nodes(master)
    other = next(name for name in seen if name != "localhost")
    assert other.startswith("localhost~")
    assert {facts["slots"] for facts in seen.values()} == {1, 2}
    assert ppss(master, "nodes", "pause", other).code == 0
    assert {name: facts["state"] for name, facts in nodes(master).items()} == {
        "localhost": "live",
        other: "paused",
    }
