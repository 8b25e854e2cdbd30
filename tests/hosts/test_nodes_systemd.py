"""The worker of a node that has systemd."""

from __future__ import annotations

from helpers import wait_until
from hosts.lab import Host, Lab
from hosts.nodes import PYTHON, Nodes, listing
from hosts.ssh import enqueue, pids, ppss, start_sshd, stop_sshd
from hosts.systemd import boot, systemd_on
from hosts.test_nodes import WORKER, nodes

WAITS = ": {}; until [ -e go ]; do sleep 0.1; done"


def of_user(master: Host, *words: str) -> str:
    """What systemctl says to the node's user, who logs in."""
    return master.run(["ssh", "n1", "systemctl", "--user", *words], check=False).stdout.strip()


def units(master: Host) -> list[str]:
    """Those of PPSS that are loaded there."""
    return of_user(master, "list-units", "--plain", "--no-legend", "--all", "ppss-*").splitlines()


def lingers(node: Host) -> str:
    """Users whose processes go on without a login."""
    return node.run(["ls", "-A", "/var/lib/systemd/linger"], user="root").stdout


def log(node: Host) -> bytes:
    """Of its worker."""
    return node.read(node.run(["find", ".local", "-name", "worker.log"]).stdout.strip())


def done_by_n1(master: Host) -> None:
    """An item runs there, from first to last."""
    run = enqueue(master, 1, ": {}")
    assert ppss(master, "wait", run).code == 0
    assert '"node": "n1"' in ppss(master, "items", run, "--json").out


def test_a_worker_is_a_unit_of_its_user_that_comes_back_if_it_is_to_until_it_is_stopped_or_erased(
    lab: Lab, wheels: bytes
) -> None:
    master, node, other = lab.master, lab["n1"], Nodes(lab, wheels)
    other.prepare()
    other.prepare("root")
    node.run(["rm", "/usr/local/bin/ppss"], user="root")
    master.write("nodes", f"n1 python={PYTHON}\n")
    master.write("ppss.toml", 'nodes-file = "nodes"\n')
    with systemd_on(node):
        before = listing(node)
        assert of_user(master, "is-system-running") == "running"

        assert nodes(master, "start", "--enable")["n1"]["started"]
        (unit,) = units(master)
        name = unit.split()[0]
        assert "running" in unit and of_user(master, "is-enabled", name) == "enabled"
        assert not nodes(master, "start")["n1"]["started"]
        done_by_n1(master)

        stop_sshd(master)  # as if it took longer after a power cut
        node.kill()
        node.start()
        boot(node)
        wait_until(lambda: b"no SSH server listens" in log(node), "it finds no master", 60)
        start_sshd(master)
        wait_until(lambda: pids(node, WORKER), "it tries again", 60)
        done_by_n1(master)

        run = enqueue(master, 1, WAITS)
        wait_until(lambda: pids(node, "until .*go"), "it runs", 60)
        assert ppss(master, "nodes", "stop", "n1").code == 0
        node.run(["touch", "go"])
        assert ppss(master, "wait", run).code == 0
        wait_until(lambda: not pids(node, WORKER), "the worker has ended", 60)
        assert "inactive" in of_user(master, "is-active", name)
        assert of_user(master, "is-enabled", name) == "enabled", "it comes back"
        assert ppss(master, "nodes", "stop", "--disable", "n1").code == 0
        assert of_user(master, "is-enabled", name) != "enabled"

        listed = "systemctl --user list-units ppss-*; : {}"
        done = ppss(master, "run", "nodes", "-S", "n1", "-p", "0", "-c", listed)
        assert done.code == 0 and "-run-" in done.out and "running" in done.out, done
        wait_until(lambda: not pids(node, WORKER), "the worker of the run has ended", 60)

        other.do("deploy", "ppss@n1", user="root")  # of a second master
        assert ppss(master, "nodes", "erase", "--yes").code == 0
        assert not units(master)
        assert lingers(node) == "ppss\n", "the workers of the other one are to stay"
        other.do("erase", "ppss@n1", user="root")
        node.run(["rm", "go"])
        assert listing(node) == before and not lingers(node)
