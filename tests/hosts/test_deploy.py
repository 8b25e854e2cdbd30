"""Bringing PPSS to nodes, and taking it away again."""

from __future__ import annotations

import pytest
from helpers import wait_until
from hosts.lab import Host, Lab
from hosts.nodes import PYTHON, Nodes, files_with, listing, outcome, ppss_there
from hosts.ssh import enqueue, ppss

from ppss_queue import __version__
from ppss_queue.server_binary import binary

_KEYS = "/home/ppss/.ssh/authorized_keys"


@pytest.fixture
def nodes(lab: Lab, wheels: bytes) -> Nodes:
    """Hosts without a `ppss` of their own."""
    found = Nodes(lab, wheels)
    found.prepare()
    for node in lab.nodes:
        _as_root(node, "rm /usr/local/bin/ppss")
    return found


def _as_root(host: Host, script: str) -> None:
    host.run(["sh", "-ec", script], user="root")


def test_a_node_runs_its_own_copy_and_is_as_it_was_when_that_is_erased(lab: Lab, nodes: Nodes) -> None:
    n1 = lab["n1"]
    _as_root(n1, "rm -rf /usr/lib/python3*/ensurepip /usr/lib/python3*/venv /usr/lib/python3/dist-packages")
    n1.write("trap/sitecustomize.py", "raise SystemExit('trapped')")
    n1.write("trap/redis.py", "raise SystemExit('trapped')")
    before, keys = listing(n1), lab.master.read(_KEYS)
    assert "No module named pip" in n1.run([PYTHON, "-m", "pip"], check=False).stderr

    deployed = nodes.do("deploy", "n1")
    assert deployed["what"] == f"installed {__version__}, let its key in"
    run = enqueue(lab.master, 3, ": {}; hostname; echo $PPSS_RUN")
    said = ppss_there(
        n1, deployed, "worker", "--burst", "--url", deployed["url"], PYTHONPATH="/home/ppss/trap"
    )
    assert "3 succeeded" in said
    assert ppss(lab.master, "wait", run).code == 0
    python = f"{deployed['paths']['directory']}/venv/*/bin/python"
    script = f"{python} -Ic 'import ppss_queue, redis; print(ppss_queue.__file__, redis.__file__)'"
    for file in n1.run(["sh", "-c", script]).stdout.split():
        assert file.startswith(f"{deployed['paths']['root']}/"), "not the checkout, which all hosts see"

    again = nodes.do("deploy", "n1")
    assert again["what"] == "up to date"
    assert again["probe"]["version"] == __version__ and len(again["probe"]["environments"]) == 1
    assert lab.master.read(_KEYS).count(b"\n") == keys.count(b"\n") + 1
    mine = (
        lab.master.read(".ssh/id_ed25519").decode().splitlines()[2:-1]
    )  # before it is what all keys begin with
    assert not any(files_with(n1, line) for line in mine), "the master's key stays where it is"

    assert nodes.do("erase", "n1") == {"files": True, "keys": 1}
    assert listing(n1) == before
    assert lab.master.read(_KEYS) == keys
    assert nodes.do("erase", "n1") == {"files": False, "keys": 0}


def test_the_key_of_a_node_opens_the_gate_or_the_port_of_a_redis_and_nothing_else(
    lab: Lab, nodes: Nodes
) -> None:
    n1, url = lab["n1"], "redis://127.0.0.1:6379/2"
    lab.master.popen([str(binary()), "--port", "6379", "--bind", "127.0.0.1", "--save", ""])
    deployed = nodes.do("deploy", "n1")
    n1.run(["rm", ".ssh/id_ed25519"])
    assert n1.run(["stat", "-c", "%a", deployed["paths"]["key"]]).stdout == "600\n"
    ssh = ["ssh", "-F", deployed["paths"]["ssh_config"], "-o", "BatchMode=yes"]

    def refused(*words: str, stdin: str = "") -> str:
        done = n1.run([*words], stdin=stdin, check=False)
        assert done.returncode and "uid=" not in done.stdout
        return done.stdout + done.stderr

    assert "the gate opens redis" in refused(*ssh, "ppss-master", "id")
    assert "PTY allocation request failed" in refused(*ssh, "-tt", "ppss-master")
    assert "Received message too long" in refused("sftp", "-b", "-", *ssh[1:], "ppss-master", stdin="ls")
    listen = ["-o", "ExitOnForwardFailure=yes", "-N", "-R", "9999:127.0.0.1:22", "ppss-master"]
    assert "remote port forwarding failed" in refused(*ssh, *listen)
    assert "prohibited" in refused(*ssh, "-W", "127.0.0.1:6379", "ppss-master")

    wait_until(lambda: ppss(lab.master, "status", "--url", url).code == 0, "Redis answers")
    deployed = nodes.do("deploy", "n1", url=url)
    assert (deployed["what"], deployed["url"]) == ("let its key in", f"ssh://ppss-master/{url}")
    enqueue(lab.master, 2, ": {}", "--url", url)
    assert "2 succeeded" in ppss_there(n1, deployed, "worker", "--burst", "--url", deployed["url"])
    assert "prohibited" in refused(*ssh, "-W", "127.0.0.1:22", "ppss-master")
    assert "uid=" not in n1.run([*ssh, "ppss-master", "id"], check=False).stdout


def test_a_node_without_python_or_with_an_old_one_is_told_what_to_do(lab: Lab, nodes: Nodes) -> None:
    n1 = lab["n1"]
    _as_root(n1, "rm -f /usr/bin/python3* /usr/local/bin/python3*")
    before = listing(n1)
    assert nodes.do("deploy", "n1", "slots=1") == {
        "error": "BadInput",
        "text": "n1 has no Python; PPSS needs 3.11 or newer: install it there, or use the node with mode=ssh.",
    }
    n1.write("/usr/bin/python3", "#!/bin/sh\necho has Python 3.9\n", user="root")
    _as_root(n1, "chmod 755 /usr/bin/python3")
    assert nodes.do("deploy", "n1", "slots=1")["text"].startswith(
        "n1 has Python 3.9 (python3); PPSS needs 3.11"
    )
    assert listing(n1) == before


def test_the_facts_of_a_node_come_in_one_go(lab: Lab, nodes: Nodes) -> None:
    n1 = lab["n1"]
    n1.write("/usr/local/bin/nvidia-smi", "#!/bin/sh\necho GPU A\necho GPU B\n", user="root")
    n1.write(".bashrc", "cd /tmp; echo hello\n")
    _as_root(n1, "chmod 755 /usr/local/bin/nvidia-smi")
    facts = nodes.do("probe", "n1")
    assert facts["home"] == "/home/ppss" and facts["uid"] == 7077 and facts["user"] == "ppss"
    assert facts["machine"] == n1.read("/etc/machine-id").decode().strip()
    assert facts["came_from"] == lab.master.address
    assert facts["gpus"] == ["GPU A", "GPU B"] and facts["home_writable"]
    assert facts["cores"] > 0 and facts["free_bytes"] > 0 and abs(facts["clock_offset_seconds"]) < 10
    assert facts["version"] == "" and facts["environments"] == []


def test_a_deploy_that_was_killed_or_lost_its_node_is_healed_by_the_next(lab: Lab, nodes: Nodes) -> None:
    n1 = lab["n1"]
    n1.rate(10)
    for end in ("the master's process", "the node's power"):
        deploying = nodes.popen("deploy", "n1")
        wait_until(
            lambda: n1.run(["sh", "-c", _HALF], check=False).returncode == 0, f"it is half there: {end}"
        )
        if end == "the node's power":
            n1.kill()
            n1.start()
        deploying.kill()
        deploying.wait()
        assert not n1.run(["sh", "-c", "ls .local/share/ppss/masters/*/nodes/*/bin"], check=False).stdout
    n1.heal()
    deployed = nodes.do("deploy", "n1")
    assert deployed["what"] == f"installed {__version__}, let its key in"
    assert f"ppss {__version__}" in ppss_there(n1, deployed, "--version")
    assert not n1.run(["find", ".local", "-name", ".new*"]).stdout
    nodes.do("erase", "n1")
    assert not n1.run(["ls", "-A", ".local"], check=False).stdout


_HALF = "[ $(ls -d .local/share/ppss/masters/*/env/.new*/site/* | wc -l) -gt 3 ]"


def test_two_masters_deploy_to_one_node_at_once_and_take_away_their_own_alone(lab: Lab, nodes: Nodes) -> None:
    """A master is a user of a machine; `ppss` and `root` have a key for the node."""
    n1 = lab["n1"]
    before = listing(n1)
    nodes.prepare("root")
    started = [nodes.popen("deploy", "ppss@n1", user=user) for user in ("ppss", "root")]
    mine, _ = map(outcome, started)
    assert nodes.do("erase", "ppss@n1", user="root") == {"files": True, "keys": 1}
    said = ppss_there(n1, mine, "worker", "--burst", "--url", "ssh://ppss-master")
    assert "0 items" in said
    nodes.do("erase", "ppss@n1")
    assert listing(n1) == before


def test_nodes_that_share_a_home_have_a_key_each_and_one_installation(lab: Lab, nodes: Nodes) -> None:
    (lab.share / "local").mkdir()
    (lab.share / "local").chmod(0o777)
    for node in lab.nodes:
        _as_root(node, f"mkdir /home/ppss/.local; mount --bind {lab.share}/local /home/ppss/.local")
    started = [nodes.popen("deploy", node.name) for node in lab.nodes]
    n1, n2 = map(outcome, started)
    assert n1["paths"]["environments"] == n2["paths"]["environments"]
    assert len(nodes.do("probe", "n1")["environments"]) == 1
    keys = [lab["n1"].read(deployed["paths"]["key"]) for deployed in (n1, n2)]
    assert keys[0] != keys[1]
    nodes.do("erase", "n1")
    said = ppss_there(lab["n2"], n2, "worker", "--burst", "--url", "ssh://ppss-master")
    assert "0 items" in said
    nodes.do("erase", "n2")
    assert not list((lab.share / "local").iterdir())


@pytest.mark.parametrize(
    ("mount", "sentence"),
    [
        (
            "-t tmpfs -o size=20m,uid=7077,mode=755 disk /home/ppss",
            "n1 has 20 MiB free where its home is, but PPSS needs",
        ),
        ("-t tmpfs -o size=20m,uid=7077 disk /home/ppss/.local", "n1: its disk is full. Make room there"),
        ("--bind -o ro /home/ppss /home/ppss", "n1: /home/ppss can't be written to"),
        ("-t tmpfs -o ro disk /home/ppss/.local", "n1: its home is read-only"),
        (
            "-t tmpfs -o noexec,uid=7077 disk /home/ppss/.local",
            "n1: programs in its home may not be executed",
        ),
    ],
)
def test_a_home_that_can_not_hold_it_is_told_in_a_sentence(
    lab: Lab, nodes: Nodes, mount: str, sentence: str
) -> None:
    n1 = lab["n1"]
    keys = lab.master.read(_KEYS)
    _as_root(n1, f"mkdir /home/ppss/.local; cp -r /home/ppss/.ssh /keys; mount {mount}")
    _as_root(n1, "[ -e /home/ppss/.ssh ] || { cp -r /keys /home/ppss/.ssh; chown -R ppss: /home/ppss/.ssh; }")
    said = nodes.do("deploy", "n1")
    assert said["error"] == "MachineFailed" and said["text"].startswith(sentence)
    assert lab.master.read(_KEYS) == keys
    found = n1.run(["find", ".local", "-name", "*.py"], check=False).stdout
    assert not found or "noexec" in mount
