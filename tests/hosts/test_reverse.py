"""Nodes that the master reaches, but that can't reach the master: --reverse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import wait_until
from hosts.lab import Host, Lab
from hosts.nodes import PYTHON, Nodes, listing
from hosts.ssh import enqueue, pids, ppss, restart_sshd, stop_sshd

HOMES = {"ppss": "/home/ppss", "root": "/root"}
HOLDER = "ppss_queue.nodes.holding"
WORKER = "[-]-pid-file"
WAITS = 'until [ -e "$HOME/go" ]; do sleep 0.1; done; tr a-z A-Z <"$ITEM" >{out}'
WALL = """
table inet wall {{
    chain out {{ type filter hook output priority 0; ip daddr {} tcp flags & (syn|ack) == syn reject with tcp reset; }}
}}
"""
LIST = f"n1 python={PYTHON} slots=2\nn2 python={PYTHON} slots=2\n"


@pytest.fixture
def master(lab: Lab, wheels: bytes) -> Iterator[Host]:
    """With a list of two nodes, of which n1 can open no connection to it."""
    found = Nodes(lab, wheels)
    found.prepare()
    found.prepare("root")
    for node in lab.nodes:
        node.run(["rm", "/usr/local/bin/ppss"], user="root")
    lab.master.write("nodes", LIST)
    lab.master.write("ppss.toml", 'nodes-file = "nodes"\n')
    lab["n1"].run(["nft", WALL.format(lab.master.address)], user="root")
    yield lab.master
    lab["n1"].run(["nft", "delete table inet wall"], user="root")


def nodes(master: Host, verb: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """What a verb says of each node."""
    done = ppss(master, "nodes", verb, "--json", *arguments)
    return {facts["node"]: facts for facts in map(json.loads, done.out.splitlines())}


def fill(host: Host, count: int) -> dict[str, bytes]:
    host.run(["bash", "-c", f'mkdir in; for n in {{1..{count}}}; do echo "file $n" >in/$n; done'])
    return {str(n): f"FILE {n}\n".encode() for n in range(1, count + 1)}


def outputs(host: Host) -> dict[str, bytes]:
    names = host.run(["find", "out", "-type", "f", "-printf", r"%P\n"]).stdout.split()
    return {name: host.read(f"out/{name}") for name in names}


def worked(master: Host, run: str) -> set[str]:
    """Nodes that did the run, once it is done."""
    assert ppss(master, "wait", run).code == 0
    done = ppss(master, "items", run, "--json")
    return {json.loads(line)["node"] for line in done.out.splitlines()}


def way(node: Host) -> str:
    """Where it begins there."""
    return node.run(["sh", "-c", "cat .local/share/ppss/masters/*/nodes/*/way"]).stdout


def ways(master: Host) -> str:
    """What is kept of them here."""
    return master.run(["find", ".local", "-path", "*/ways*"], check=False).stdout


def no_holder(master: Host) -> None:
    wait_until(lambda: not pids(master, HOLDER), "nothing holds a way any more", 30)


def test_check_tells_that_a_node_can_not_come_back_and_that_a_way_held_open_helps(
    lab: Lab, master: Host
) -> None:
    done = ppss(master, "nodes", "check", "n1", "n2")
    assert done.code == 1
    assert "it can't reach SSH at 10.77.0.100:22: have this machine hold a way open (--reverse" in done.out
    facts = nodes(master, "check", "n1", "--reverse")["n1"]
    assert (facts["state"], facts["reverse"], facts["reaches_master"]) == ("ready", True, True)
    restart_sshd(lab["n1"], "AllowTcpForwarding no")
    (why,) = nodes(master, "check", "n1", "--reverse")["n1"]["lacks"]
    assert "sshd of n1 lets no port be forwarded back" in why and "AllowTcpForwarding" in why


def test_a_run_gets_every_output_from_a_node_behind_a_wall_though_its_line_is_cut_and_lost(
    lab: Lab, master: Host
) -> None:
    n1 = lab["n1"]
    expected = fill(master, 12)
    process = master.popen(
        ["ppss", "run", "in", "-o", "out", "-S", "n1", "--reverse", "-p", "0", "-c", WAITS]
    )
    wait_until(lambda: pids(n1, "until .*go"), "n1 takes part", 60)
    before = way(n1)
    n1.cut()
    n1.run(["touch", "go"])
    wait_until(lambda: not pids(n1, "until .*go"), "what ran has ended while the line is cut")
    n1.heal()
    n1.run(["pkill", "-KILL", "-u", "ppss", "-x", "sshd"], user="root")
    assert process.wait(90) == 0
    assert outputs(master) == expected
    assert way(n1) != before, "it was opened anew"
    wait_until(lambda: not pids(n1, WORKER), "the worker has ended", 60)
    no_holder(master)


def test_a_way_lasts_as_long_as_a_worker_that_stays_and_erase_leaves_no_trace_of_either(
    lab: Lab, master: Host
) -> None:
    n1 = lab["n1"]
    before, here, keys = listing(n1), ways(master), master.read(".ssh/authorized_keys")
    assert nodes(master, "deploy", "n1", "--reverse")["n1"]["reverse"] is True
    assert not pids(master, HOLDER), "no worker needs it yet"
    # Where it was deployed so, nobody has to say it again.
    assert [nodes(master, "start", "n1")["n1"]["started"] for _ in range(2)] == [True, False]
    (holder,) = pids(master, HOLDER)
    assert worked(master, enqueue(master, 4, "true")) == {"n1"}

    master.run(["kill", "-KILL", str(holder)])
    assert nodes(master, "start", "n1")["n1"]["started"] is False, "the worker waited"
    assert worked(master, enqueue(master, 4, "true")) == {"n1"}

    assert ppss(master, "nodes", "stop", "n1").code == 0
    wait_until(lambda: not pids(n1, WORKER), "the worker has ended", 60)
    no_holder(master)
    assert ppss(master, "nodes", "stop", "n1").code == 0
    nodes(master, "start", "n1")
    for worker in (True, False):
        gone = nodes(master, "erase", "n1", "--yes")["n1"]
        assert (gone["worker"], gone["files"], gone["keys"]) == (worker, worker, int(worker))
        assert not pids(master, HOLDER) and not pids(n1, WORKER)
    assert (listing(n1), ways(master), master.read(".ssh/authorized_keys")) == (before, here, keys)


def test_to_erase_a_node_that_is_gone_ends_what_held_its_way(lab: Lab, master: Host) -> None:
    nodes(master, "start", "n1", "--reverse")
    assert pids(master, HOLDER)
    lab["n1"].kill()
    done = ppss(master, "nodes", "erase", "n1", "--yes")
    assert done.code == 3 and "Its key does not open this machine any more." in done.out + done.err
    assert not pids(master, HOLDER) and "n1" not in ways(master)
    lab["n1"].start()


def test_two_masters_hold_a_way_for_one_node_each(lab: Lab, master: Host) -> None:
    """A master is a user of a machine; `ppss` and `root` have a key for the node."""
    for user in ("ppss", "root"):
        master.write(f"{HOMES[user]}/list", f"ppss@n1 python={PYTHON}\n", user=user)
        start = ["ppss", "nodes", "start", "--reverse", "-n", f"{HOMES[user]}/list"]
        master.run(start, user=user, timeout_seconds=120)
    assert len(pids(master, HOLDER)) == 2
    for user in ("ppss", "root"):
        master.run(["ppss", "enqueue", "-c", "true"], user=user, stdin="1\n2\n")
        master.run(["ppss", "wait"], user=user)
        master.run(["ppss", "nodes", "erase", "--yes", "-n", f"{HOMES[user]}/list"], user=user)
    assert not pids(master, HOLDER) and not lab["n1"].run(["ls", "-A", ".local"], check=False).stdout


def test_a_node_knows_the_master_by_its_key_whoever_listens_where_the_way_begins(
    lab: Lab, master: Host
) -> None:
    n2 = lab["n2"]

    def said() -> str:
        variables = [f"PPSS_SSH_CONFIG={place}/ssh_config", f"PPSS_STATE_DIR={place}/state"]
        worker = [f"{place}/bin/ppss", "worker", "--burst", "--url", "ssh://ppss-master"]
        done = n2.run(["env", *variables, *worker], check=False)
        return done.stdout + done.stderr

    place = nodes(master, "deploy", "n2", "--reverse")["n2"]["directory"]
    n2.write(f"{place}/way", "Port 22\n")
    assert "host key of 'ppss-master' has changed" in said()
    master.write("nodes", LIST.replace("n2", "n2 reverse=no"))
    assert nodes(master, "deploy", "n2")["n2"]["reverse"] is False
    assert "0 items" in said(), "it comes by itself again"


def test_what_keeps_a_way_from_being_opened_is_told_in_one_sentence(lab: Lab, master: Host) -> None:
    restart_sshd(lab["n1"], "AllowTcpForwarding no")
    done = ppss(master, "nodes", "deploy", "n1", "--reverse")
    forbidden = (
        "sshd of n1 lets no port be forwarded back. Allow it there for user 'ppss' (AllowTcpForwarding yes or remote, "
        "and no PermitListen)."
    )
    assert done.code == 2 and forbidden in done.out + done.err, done
    fill(master, 1)
    done = ppss(master, "run", "in", "-o", "out", "-c", "cp {} {out}", "-S", "n1", "--reverse", "-p", "0")
    assert done.code == 3 and f"ppss: 'n1' takes no part: {forbidden}\n" in done.err
    stop_sshd(master)
    done = ppss(master, "nodes", "start", "n2", "--reverse")
    assert (
        done.code == 3
        and ("no sshd of this machine answers at 127.0.0.1:22 (Connection refused), and nodes log in there.")
        in done.out + done.err
    )
    assert not pids(master, HOLDER)
