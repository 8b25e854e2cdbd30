"""ppss nodes, and ppss run --nodes: all nodes from one host."""

from __future__ import annotations

import io
import json
import os
import tarfile
from typing import Any

import pytest
from helpers import missing, wait_until
from hosts.lab import Host, Lab
from hosts.nodes import PYTHON, Nodes, files_with, listing
from hosts.ssh import Done, enqueue, pids, ppss

SESSION = "^[^ ]*python[^ ]* [^ ]*/ppss run in"
WORKER = "[-]-pid-file"
WAITS = 'until [ -e "$HOME/go" ]; do sleep 0.1; done; tr a-z A-Z <"$ITEM" >{out}; echo "$PPSS_NODE"'
_WAITS_FOR_BOTH = "touch $SHARE/$PPSS_NODE; until [ -e $SHARE/n1 ] && [ -e $SHARE/n2 ]; do sleep 0.1; done"
LIST = f"n1 python={PYTHON} slots=2 tags=all\nn2 python={PYTHON} slots=3 tags=all,fast\n"


@pytest.fixture
def master(lab: Lab, wheels: bytes) -> Host:
    """With a list of two nodes that have no `ppss`."""
    Nodes(lab, wheels).prepare()
    for node in lab.nodes:
        node.run(["rm", "/usr/local/bin/ppss"], user="root")
    lab.master.write("nodes", LIST)
    lab.master.write("ppss.toml", 'nodes-file = "nodes"\n')
    return lab.master


def nodes(master: Host, verb: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """What a verb says of each node."""
    done = ppss(master, "nodes", verb, "--json", *arguments)
    assert not done.err, done
    return {facts["node"]: facts for facts in map(json.loads, done.out.splitlines())}


def fill(host: Host, count: int) -> dict[str, bytes]:
    """Files to work on, and what is to come of them."""
    names = [f"in/d {number % 3}/it's {number}" for number in range(count)]
    script = 'while IFS= read -r name; do mkdir -p "${name%/*}"; printf "%s\\n" "$name" >"$name"; done'
    host.run(["bash", "-c", script], stdin="".join(f"{name}\n" for name in names))
    return {name.removeprefix("in/"): f"{name}\n".upper().encode() for name in names}


def outputs(host: Host) -> dict[str, bytes]:
    packed = os.fsencode(host.run(["tar", "c", "out"]).stdout)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        files = [(entry.name, tar.extractfile(entry)) for entry in tar]
        return {name.removeprefix("out/"): file.read() for name, file in files if file}


def go(lab: Lab) -> None:
    """Let the commands end that wait for it."""
    for host in lab.hosts.values():
        host.run(["touch", "go"])


def run(master: Host, command: str, *options: str) -> Done:
    return ppss(master, "run", "in", "-o", "out", "-c", command, *options)


def test_exec_runs_one_command_on_each_node_and_tells_how_it_ended(lab: Lab) -> None:
    done = ppss(lab.master, "nodes", "exec", "n1", "n2", "--", "hostname")
    assert done.code == 0 and sorted(done.out.split()) == ["n1", "n1", "n2", "n2"], done
    done = ppss(lab.master, "nodes", "exec", "n1", "root@n1", "--json", "-c", 'id -un; exit "$((UID > 0))"')
    facts = {line["node"]: line for line in map(json.loads, done.out.splitlines())}
    assert done.code == 1
    assert facts["n1"] == {"node": "n1", "exit_code": 1, "stdout": "ppss\n", "stderr": ""}
    assert facts["root@n1"] == {"node": "root@n1", "exit_code": 0, "stdout": "root\n", "stderr": ""}


def test_a_dead_node_hides_no_other(lab: Lab) -> None:
    lab["n1"].cut()
    done = ppss(lab.master, "nodes", "exec", "--timeout", "5s", "n1", "n2", "nowhere", "--", "echo", "a  $b")
    assert done.code == 3 and done.out == "n2\na  $b\n"
    assert "n1" in done.err and "did not answer" in done.err and "the host 'nowhere'" in done.err


def test_nodes_are_checked_started_seen_steered_and_erased(lab: Lab, master: Host) -> None:
    before = {node.name: listing(node) for node in lab.nodes}
    keys = master.read(".ssh/authorized_keys")
    checked = nodes(master, "check", "@all")
    assert {facts["state"] for facts in checked.values()} == {"ready"}, checked
    assert {facts["reaches_master"] for facts in checked.values()} == {True}

    started = nodes(master, "start")
    assert {facts["started"] for facts in started.values()} == {True}, started
    assert {facts["started"] for facts in nodes(master, "start").values()} == {False}
    assert nodes(master, "status", "n2")["n2"]["slots"] == 3

    item = enqueue(master, 6, "echo {}")
    assert ppss(master, "wait", item).code == 0
    assert f" {item} " in ppss(master, "nodes", "logs").out
    following = master.popen(["ppss", "nodes", "logs", "-f", "--lines", "1"])
    item = enqueue(master, 6, "echo {}")
    assert following.stdout
    while f" {item} " not in (line := following.stdout.readline().decode()):
        assert line, "it went on"
    following.terminate()

    assert ppss(master, "nodes", "set", "n2", "slots=1").code == 0
    assert ppss(master, "nodes", "pause", "n1").code == 0
    wait_until(lambda: nodes(master, "status", "n2")["n2"]["slots"] == 1, "n2 has one slot")
    assert nodes(master, "status")["n1"]["state"] == "paused"
    done = ppss(master, "nodes", "status")
    assert "n1: paused by ppss@master. Go on: ppss nodes resume n1" in done.out
    assert ppss(master, "nodes", "resume").code == 0
    assert nodes(master, "status")["n1"]["state"] == "live"

    assert ppss(master, "nodes", "stop", "n1").code == 0
    wait_until(lambda: not pids(lab["n1"], WORKER), "the worker of n1 has ended")
    assert nodes(master, "status")["n1"] == {"node": "n1", "state": "not running"}
    assert pids(lab["n2"], WORKER)

    assert nodes(master, "erase", "--yes") == {
        "n1": {"node": "n1", "place": "n1", "worker": False, "files": True, "keys": 1},
        "n2": {"node": "n2", "place": "n2", "worker": True, "files": True, "keys": 1},
    }
    assert {node.name: listing(node) for node in lab.nodes} == before
    assert master.read(".ssh/authorized_keys") == keys
    assert not pids(lab["n2"], "ppss ")
    assert nodes(master, "status") == {name: {"node": name, "state": "not running"} for name in ("n1", "n2")}


def test_run_brings_ppss_files_and_outputs_where_they_belong_and_leaves_no_worker(
    lab: Lab, master: Host
) -> None:
    expected = fill(master, 40)
    argv = ["ppss", "run", "in", "-o", "out", "--nodes", "@all", "-p", "1", "-k", "-c", WAITS]
    process = master.popen(argv)
    wait_until(lambda: all(pids(node, "until .*go") for node in lab.nodes), "all take part", 60)
    go(lab)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert outputs(master) == expected
    assert set(out.split()) == {b"master", b"n1", b"n2"}, "what items print there comes here"
    for node in lab.nodes:
        wait_until(lambda node=node: not pids(node, WORKER), f"the worker of {node.name} has ended", 60)
        assert not files_with(node, "IT'S 1"), "no output stayed there"


def test_a_run_goes_on_without_nodes_that_can_not_join(lab: Lab, master: Host) -> None:
    expected = fill(master, 6)
    lab["n1"].run(["rm", "-f", PYTHON], user="root")
    done = run(master, 'tr a-z A-Z <"$ITEM" >{out}; sleep 1', "-S", "n1,nowhere", "-p", "1")
    assert done.code == 0 and outputs(master) == expected
    assert "ppss: 'n1' takes no part: n1 " in done.err and "mode=ssh" in done.err
    assert "ppss: 'nowhere' takes no part: the host 'nowhere' of ssh://nowhere is unknown" in done.err
    done = run(master, 'tr a-z A-Z <"$ITEM" >{out}', "-S", "nowhere", "-p", "0")
    assert done.code == 3 and "no node takes part in run " in done.err


def test_a_node_without_python_that_is_down_leaves_the_work_to_those_that_join(
    lab: Lab, master: Host
) -> None:
    """Nothing runs on the master; verbs for all of the list leave such a node out."""
    master.write("nodes", "n1 slots=1\nn2 mode=ssh\n")
    lab["n2"].kill()
    sources = fill(master, 6)
    done = run(master, 'tr a-z A-Z <"$ITEM" >{out}', "-p", "0", "-n", "nodes")
    assert done.code == 0, done
    assert outputs(master) == sources
    started = ppss(master, "nodes", "start", "-n", "nodes")
    assert started.code == 0 and "n2" not in started.out, started
    assert ppss(master, "nodes", "stop", "-n", "nodes").code == 0
    erased = ppss(master, "nodes", "erase", "--yes", "-n", "nodes")
    assert erased.code == 0 and "n2" not in erased.out, erased


def test_a_run_whose_nodes_all_fail_to_join_ends_and_loses_nothing(lab: Lab, master: Host) -> None:
    master.write("nodes", "n1\nn2 mode=ssh\n")
    for node in ("n1", "n2"):
        lab[node].kill()
    fill(master, 2)
    done = run(master, "cp {} {out}", "-p", "0", "-n", "nodes")
    assert done.code == 3 and "2 left, nothing lost" in done.err, done


def test_ctrl_c_stops_the_nodes_too_and_loses_nothing(lab: Lab, master: Host) -> None:
    expected = fill(master, 12)
    argv = ["ppss", "run", "in", "-o", "out", "-S", "n2", "-p", "1", "-c"]
    process = master.popen([*argv, WAITS])
    wait_until(lambda: pids(lab["n2"], "until .*go"), "n2 takes part", 60)
    master.run(["pkill", "-INT", "-f", SESSION])
    assert process.wait(60) == 130
    assert not pids(lab["n2"], WORKER) and not pids(lab["n2"], "until .*go")
    go(lab)
    done = ppss(master, "run", "--resume", "last", "-S", "n2")
    assert done.code == 0 and outputs(master) == expected


def test_nodes_finish_a_run_whose_session_was_killed_and_end_then(lab: Lab, master: Host) -> None:
    expected = fill(master, 12)
    argv = ["ppss", "run", "in", "-o", "out", "-S", "n1,n2", "-p", "1", "-c"]
    process = master.popen([*argv, WAITS])
    for node in lab.nodes:
        wait_until(lambda node=node: pids(node, "until .*go"), f"{node.name} takes part", 60)
    master.run(["pkill", "-KILL", "-f", SESSION])
    process.wait(60)
    go(lab)
    assert ppss(master, "wait").code == 0 and outputs(master) == expected
    for node in lab.nodes:
        wait_until(lambda node=node: not pids(node, WORKER), f"the worker of {node.name} has ended", 60)


def test_what_login_scripts_of_nodes_print_disturbs_nothing(lab: Lab, master: Host) -> None:
    for node in lab.nodes:
        node.write(".bashrc", "echo noise; echo noise >&2; export FROM_RC=$((FROM_RC + 1))\n")
    master.write("nodes", f"n1 python={PYTHON} slots=1\nn2 mode=ssh slots=1\n")
    assert {facts["state"] for facts in nodes(master, "check").values()} == {"ready"}
    told = nodes(master, "exec", "n1", "n2", "--", "printenv", "FROM_RC")
    assert {(facts["stdout"], facts["stderr"]) for facts in told.values()} == {("1\n", "")}
    assert nodes(master, "start", "n1")["n1"]["started"]
    logs = ppss(master, "nodes", "logs", "n1")
    assert logs.code == 0 and "noise" not in logs.out, logs
    fill(master, 3)
    for name in ("n1", "n2"):
        words = ("-p", "0", "--nodes", name, "-o", f"out-{name}", "-c", 'cp "$ITEM" {out}; echo said')
        done = ppss(master, "run", "in", *words)
        assert done.code == 0 and done.out.split() == ["said"] * 3, done
        master.run(["diff", "-r", "-x", ".ppss", "in", f"out-{name}"])


def test_nodes_whose_login_shell_is_no_bash_work_as_others_do(lab: Lab, master: Host) -> None:
    """tcsh, which reads quotes as no other shell does; one node has a worker, the other one needs none."""
    if master.run(["which", "tcsh"], check=False).returncode:
        missing("tcsh")
    for node in lab.nodes:
        node.run(["usermod", "-s", "/bin/tcsh", "ppss"], user="root")
    master.write("nodes", f"n1 python={PYTHON} slots=2\nn2 mode=ssh slots=2\n")
    expected = fill(master, 12)
    command = f"tr a-z A-Z <{{}} >{{out}}; seq 1 500; {_WAITS_FOR_BOTH}".replace("$SHARE", str(lab.share))
    done = run(master, command, "--nodes", "n1,n2", "-p", "0", "--timeout", "60")
    assert done.code == 0, done
    assert outputs(master) == expected
    assert done.out.count("\n499\n500\n") == 12 and "no items" not in done.err, done
    done = ppss(master, "nodes", "exec", "n1", "n2", "--", "echo", "it's  $b!")
    assert sorted(done.out.splitlines()) == ["it's  $b!", "it's  $b!", "n1", "n2"]
    assert nodes(master, "start", "n1")["n1"]["started"]
    assert ppss(master, "nodes", "erase", "--yes").code == 0


def test_a_home_that_can_not_be_written_is_told_of_nodes_with_and_without_a_worker(
    lab: Lab, master: Host
) -> None:
    for node in lab.nodes:
        node.run(["mount", "--bind", "-o", "ro", "/home/ppss", "/home/ppss"], user="root")
    master.write("nodes", f"n1 python={PYTHON}\nn2 mode=ssh\n")
    done = ppss(master, "nodes", "check")
    assert done.code == 1
    assert "\nn1: its home '/home/ppss' can't be written: PPSS would be put there." in done.out
    assert "\nn2: its home '/home/ppss' can't be written: files of items go there." in done.out
    assert "\nn1: /home/ppss can't be written to, and PPSS is" in ppss(master, "nodes", "deploy").out
    master.write("nodes", "n2 mode=ssh scratch=/tmp/x slots=1\n")
    assert ppss(master, "nodes", "check").code == 0
    expected = fill(master, 3)
    done = run(master, "tr a-z A-Z <{} >{out}", "--nodes", "n2", "-p", "0")
    assert done.code == 0 and outputs(master) == expected, done
