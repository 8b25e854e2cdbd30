"""What happens to nodes and masters: upgrades, other keys and addresses, reboots, terminals that are closed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import wait_until
from hosts.lab import ROOT, Host, Lab
from hosts.nodes import PYTHON, Nodes
from hosts.ssh import enqueue, pids, ppss, restart_sshd, start_sshd, stop_sshd
from hosts.test_nodes import SESSION, WAITS, WORKER, fill, go, nodes, outputs, run

from ppss_queue import __version__
from ppss_queue.model import RUN_VERSION

UPPER = 'tr a-z A-Z <"$ITEM" >{out}'
NEXT = "99.0.0"


@pytest.fixture
def master(lab: Lab, wheels: bytes) -> Host:
    """With a list of two nodes that have no `ppss`."""
    Nodes(lab, wheels).prepare()
    for node in lab.nodes:
        node.run(["rm", "/usr/local/bin/ppss"], user="root")
    lab.master.write("nodes", f"n1 python={PYTHON} slots=2\nn2 python={PYTHON} slots=2\n")
    lab.master.write("ppss.toml", 'nodes-file = "nodes"\n')
    return lab.master


@contextmanager
def upgraded(host: Host) -> Iterator[None]:
    """PPSS is a newer one there, and makes runs that only such a one knows."""
    script = f"""
        cp -a {ROOT}/ppss_queue /upgraded
        sed -i 's/^__version__ = .*/__version__ = "{NEXT}"/' /upgraded/__init__.py
        sed -i 's/^RUN_VERSION = .*/RUN_VERSION = {RUN_VERSION + 1}/' /upgraded/model.py
        sed -i 's/return 2 if self.needs else 1$/return RUN_VERSION/' /upgraded/model.py
        mount --bind /upgraded {ROOT}/ppss_queue"""
    host.run(["sh", "-ec", script], user="root")
    try:
        yield
    finally:
        host.run(["umount", "-l", f"{ROOT}/ppss_queue"], user="root")


def items(master: Host, run: str = "last") -> list[dict[str, Any]]:
    return [json.loads(line) for line in ppss(master, "items", run, "--json").out.splitlines()]


def succeeded(master: Host) -> int:
    done = ppss(master, "status", "last", "--json")
    return int(json.loads(done.out)["succeeded"]) if done.code == 0 else 0


def log(node: Host) -> str:
    """Of its worker."""
    return node.run(["sh", "-c", 'cat "$(find .local -name worker.log)"']).stdout


def test_deploys_and_an_upgrade_while_a_run_is_on_change_no_output(lab: Lab, master: Host) -> None:
    expected = fill(master, 200)
    assert {facts["started"] for facts in nodes(master, "start").values()} == {True}
    command = f'[ "$PPSS_SEQ" -le 100 ] || until [ -e "$HOME/go" ]; do sleep 0.1; done; {UPPER}'
    process = master.popen(["ppss", "run", "in", "-o", "out", "-n", "nodes", "-p", "0", "-c", command])
    wait_until(lambda: succeeded(master) == 100, "it is half done", 60)
    assert {facts["done"] for facts in nodes(master, "deploy").values()} == {"up to date"}
    with upgraded(master):
        deployed = nodes(master, "deploy")
        assert {facts["done"] for facts in deployed.values()} == {f"installed {NEXT}"}, deployed
        assert succeeded(master) == 100
        assert not nodes(master, "start", "n1")["n1"]["started"], "the old one goes on"
        go(lab)
        assert process.wait(60) == 0
        assert outputs(master) == expected
        assert [item["attempts"] for item in items(master)] == [1] * 200

        newer = enqueue(master, 2, ": {}")
        sentence = f"run {newer} was made by a newer PPSS; this is {__version__}. Upgrade this one."
        for node in lab.nodes:
            wait_until(lambda node=node: sentence in log(node), f"{node.name} says that it is too old", 60)
        shown = ppss(master, "nodes", "status").out
        assert f"n1: works with PPSS {__version__}, and this is {NEXT}. " in shown
        assert ppss(master, "nodes", "stop", "n1").code == 0
        wait_until(lambda: not pids(lab["n1"], WORKER), "the worker of n1 has ended", 60)
        assert nodes(master, "start", "n1")["n1"]["started"]
        assert ppss(master, "wait", newer).code == 0
        assert {item["node"] for item in items(master, newer)} == {"n1"}
    older = enqueue(master, 6, "sleep 0.2; : {}")
    assert ppss(master, "wait", older).code == 0, "a newer worker knows what older masters made"
    assert {item["node"] for item in items(master, older)} == {"n1", "n2"}
    assert f"n1: works with PPSS {NEXT}, and this is {__version__}. " in ppss(master, "nodes", "status").out


def test_a_node_whose_host_key_has_changed_is_refused_and_holds_up_no_other(lab: Lab, master: Host) -> None:
    expected = fill(master, 6)
    script = (
        "rm /etc/ssh/ssh_host_ed25519_key*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key"
    )
    lab["n1"].run(["sh", "-ec", script], user="root")
    restart_sshd(lab["n1"])
    for verb in ("check", "start"):
        done = ppss(master, "nodes", verb, "--json")
        said = {facts["node"]: facts for facts in map(json.loads, done.out.splitlines())}
        assert done.code == 3 and not done.err
        assert "host key of" in said["n1"]["error"] and "error" not in said["n2"], said
    done = run(master, f"{UPPER}; sleep 1", "-n", "nodes", "-p", "0")
    assert done.code == 0 and outputs(master) == expected
    assert "ppss: 'n1' takes no part: " in done.err and "host key" in done.err
    assert {item["node"] for item in items(master)} == {"n2"}


def test_a_master_that_lost_its_power_is_waited_for_and_the_run_ends_whole(lab: Lab, master: Host) -> None:
    expected = fill(master, 60)
    assert nodes(master, "start", "n2")["n2"]["started"]
    master.popen(["ppss", "run", "in", "-o", "out", "-n", "nodes", "-p", "0", "-c", WAITS])
    for node in lab.nodes:
        wait_until(lambda node=node: pids(node, "until .*go"), f"{node.name} takes part", 60)
    master.kill()
    for node in lab.nodes:
        node.run(["touch", "go"])
    for node in lab.nodes:
        wait_until(lambda node=node: not pids(node, "until .*go"), f"{node.name} finishes what it has", 60)
    master.start()
    assert ppss(master, "wait").code == 0
    assert outputs(master) == expected
    assert [item["attempts"] for item in items(master)] == [1] * 60
    wait_until(lambda: not pids(lab["n1"], WORKER), "the worker of the run has ended", 60)
    assert pids(lab["n2"], WORKER)
    ends = "find .local -name 'run-*'"
    assert lab["n1"].run(["sh", "-c", ends]).stdout, "what is left of it is there"
    assert nodes(master, "start", "n1")["n1"]["started"]
    assert not lab["n1"].run(["sh", "-c", ends]).stdout, "and the next one has it away"


def test_a_closed_terminal_stops_the_nodes_and_one_without_power_does_not(lab: Lab, master: Host) -> None:
    """The laptop is n2: it has a terminal on the master."""
    expected = fill(master, 6)
    node, laptop = lab["n1"], lab["n2"]
    terminal = laptop.popen(["ssh", "-tt", "master", f"ppss run in -o out -S n1 -p 1 -c '{WAITS}'"])
    wait_until(lambda: pids(node, "until .*go"), "n1 takes part", 60)
    terminal.terminate()
    wait_until(lambda: not pids(master, SESSION), "the session has ended", 60)
    assert not any(pids(host, "until .*go") for host in (master, node))
    assert not pids(node, WORKER)

    laptop.popen(["ssh", "-tt", "master", "ppss run --resume last -S n1 -p 0"])
    wait_until(lambda: pids(node, "until .*go"), "n1 takes part again", 60)
    laptop.kill()
    node.run(["touch", "go"])
    assert ppss(master, "wait").code == 0 and outputs(master) == expected
    wait_until(lambda: not pids(node, WORKER), "the worker of n1 has ended", 60)


def test_a_node_comes_back_under_another_address_as_the_one_that_it_was(lab: Lab, master: Host) -> None:
    node = lab["n1"]
    assert nodes(master, "start", "n1")["n1"]["started"]
    run = enqueue(master, 1, "until [ -e go ]; do sleep 0.1; done; : {}", "--visibility", "5s")
    wait_until(lambda: pids(node, "until .*go"), "it runs", 60)
    node.kill()
    node.start()
    with address(lab, node, 201):
        assert not pids(node, WORKER), "it was not asked to come back"
        assert nodes(master, "start", "n1")["n1"]["started"]
        node.run(["touch", "go"])
        assert ppss(master, "wait", run).code == 0
        (item,) = items(master, run)
        assert (item["node"], item["attempts"]) == ("n1", 2)
        seen = nodes(master, "status")
        assert set(seen) == {"n1", "n2"} and seen["n1"]["state"] == "live"
        stop_sshd(master)  # ends its connections, as a reboot does
        with address(lab, master, 200):
            start_sshd(master)
            assert not nodes(master, "start", "n1")["n1"]["started"]
            run = enqueue(master, 1, ": {}")
            assert ppss(master, "wait", run).code == 0
            assert set(nodes(master, "status")) == {"n1", "n2"}


@contextmanager
def address(lab: Lab, host: Host, number: int) -> Iterator[None]:
    """It has another one."""
    network = host.address.rpartition(".")[0]
    new = f"{network}.{number}"

    def change(old: str, new: str) -> None:
        script = f"ip address del {old}/24 dev eth0; ip address add {new}/24 dev eth0"
        host.run(["sh", "-ec", script], user="root")
        for other in lab.hosts.values():
            other.run(["sed", "-i", f"s/^{old} /{new} /", "/etc/hosts"], user="root")

    change(host.address, new)
    try:
        yield
    finally:
        change(new, host.address)
