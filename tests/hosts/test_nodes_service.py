"""The worker of a node: started and stopped over SSH."""

from __future__ import annotations

import sys

import pytest
from helpers import missing, wait_until
from hosts.lab import Host, Lab
from hosts.ssh import URL, enqueue, pids, ppss, start_sshd, stop_sshd

PLACE = "/home/ppss/my 100% pl'ace/masters/c0ffee/nodes/0123456789abcdef"
"""As deploy would make it."""

WAITS = "until [ -e go ]; do sleep 0.1; done; : $ITEM"

_DRIVER = """
import sys
from ppss_queue.errors import PpssError
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.service import disable, start, stop, worker_words
from ppss_queue.nodes.spec import parse_node
verb, place, url, *words = sys.argv[1:]
reach = Reach(parse_node(words))
try:
    if verb in ("start", "enable"):
        print(start(reach, place, url, worker_words(reach.node), enable=verb == "enable"))
    elif verb == "disable":
        disable(reach, place)
    else:
        print(stop(reach, place, now=verb == "stop_now"))
except PpssError as error:
    print(error)
"""


def drive(lab: Lab, verb: str, *node: str, url: str = URL) -> str:
    """What a call of the service says, made on the master."""
    return lab.master.run([sys.executable, "-c", _DRIVER, verb, PLACE, url, *node]).stdout.strip()


@pytest.fixture
def node(lab: Lab) -> Host:
    """n1, where deploy would have been."""
    node = lab["n1"]
    node.run(["mkdir", "-p", f"{PLACE}/bin"])
    node.run(["ln", "-s", "/usr/local/bin/ppss", f"{PLACE}/bin/ppss"])
    node.run(["touch", f"{PLACE}/ssh_config"])
    return node


def test_a_worker_outlives_the_connection_that_started_it_and_is_started_once(lab: Lab, node: Host) -> None:
    said = drive(lab, "start", "n1", "slots=3")
    pid = int(said.partition("pid=")[2].partition(",")[0])
    assert said == f"Started(pid={pid}, anew=True, after_reboot=False)"
    run = enqueue(lab.master, 5, "true")
    assert ppss(lab.master, "wait", run).code == 0
    assert '"node": "n1"' in ppss(lab.master, "items", run, "--json").out
    assert drive(lab, "start", "n1", "slots=3") == f"Started(pid={pid}, anew=False, after_reboot=False)"
    assert node.read(f"{PLACE}/worker.log").count(b" 3 slots ") == 1
    assert ppss(node, "worker", "--url", URL, "--pid-file", f"{PLACE}/worker.pid").refused(2) == (
        f"a worker holds '{PLACE}/worker.pid' already (pid {pid}). Stop that one first."
    )


def test_stop_lets_a_worker_finish_and_stop_now_does_not(lab: Lab, node: Host) -> None:
    drive(lab, "start", "n1")
    run = enqueue(lab.master, 1, WAITS)
    wait_until(lambda: pids(node, "until .*go"), "it runs", 60)
    assert drive(lab, "stop", "n1") == "True"
    assert pids(node, "[-]-pid-file")
    node.run(["touch", "go"])
    assert ppss(lab.master, "wait", run).code == 0
    wait_until(lambda: not pids(node, "[-]-pid-file"), "the worker has ended", 60)
    assert drive(lab, "stop", "n1") == "False"
    node.run(["rm", "go"])
    run = enqueue(lab.master, 1, WAITS)
    drive(lab, "start", "n1")
    wait_until(lambda: pids(node, "until .*go"), "it runs", 60)
    assert drive(lab, "stop_now", "n1") == "True"
    assert not pids(node, "until .*go|[-]-pid-file")
    assert '"ready": 1' in ppss(lab.master, "status", run, "--json").out


def test_a_worker_that_was_killed_is_started_again(lab: Lab, node: Host) -> None:
    drive(lab, "start", "n1")
    node.run(["pkill", "-KILL", "-f", "[-]-pid-file"])
    assert "anew=True" in drive(lab, "start", "n1")


def test_a_worker_that_can_not_work_says_why(lab: Lab, node: Host) -> None:
    assert drive(lab, "start", "n1", url="ssh://nobody@master") == (
        "the worker on n1 ended at once: master lets none of this machine's keys in as user 'nobody' (tried: "
        "~/.ssh/id_ed25519). Correct the user, or bring a key there: ssh-copy-id nobody@master."
    )
    node.run(["rm", "-r", PLACE])
    assert "no worker could be started on n1" in drive(lab, "start", "n1")


def test_a_node_that_is_started_again_after_a_power_cut_forgets_the_old_pid(lab: Lab, node: Host) -> None:
    drive(lab, "start", "n1")
    node.kill()
    node.start()
    assert drive(lab, "stop", "n1") == "False"
    assert "anew=True" in drive(lab, "start", "n1")


def _reboot(node: Host) -> None:
    """It runs the jobs of its crontabs."""
    node.kill()
    node.start()
    node.run(["cron"], user="root")


def test_a_worker_comes_back_by_the_crontab_until_that_is_taken_back(lab: Lab, node: Host) -> None:
    """Also before its master does. Other lines stay as they are."""
    if node.run(["test", "-x", "/usr/sbin/cron"], check=False).returncode:
        missing("cron")
    master = lab.master
    other = "@reboot echo $(( 7 * 6 )) > other # 100\\%\n"
    node.run(["crontab", "-"], stdin=other)
    assert "after_reboot=True" in drive(lab, "enable", "n1")
    assert "after_reboot=True" in drive(lab, "start", "n1"), "it is at work"
    lines = node.run(["crontab", "-l"]).stdout
    assert lines.startswith(other) and len(lines.splitlines()) == 2

    stop_sshd(master)
    _reboot(node)
    log = f"{PLACE}/worker.log"
    wait_until(lambda: node.read(log).count(b"no SSH server listens") > 1, "it tries again", 60)
    assert node.read("other") == b"42\n"
    start_sshd(master)
    run = enqueue(master, 1, "true")
    assert ppss(master, "wait", run).code == 0
    assert drive(lab, "stop_now", "n1") == "True"

    stop_sshd(master)
    _reboot(node)
    before = node.read(log).count(b"no SSH server listens")
    wait_until(lambda: node.read(log).count(b"no SSH server listens") > before, "it is not forgotten", 60)
    drive(lab, "stop", "n1")
    wait_until(lambda: not pids(node, "until|[-]-pid-file"), "it does not try any more")
    start_sshd(master)
    assert "after_reboot=True" in drive(lab, "start", "n1")
    drive(lab, "disable", "n1")
    assert node.run(["crontab", "-l"]).stdout == other
    assert pids(node, "[-]-pid-file"), "what is at work goes on"
    _reboot(node)
    wait_until(lambda: node.read("other") == b"42\n", "the other job is done")
    assert not pids(node, "until|[-]-pid-file")
    node.run(["crontab", "-r"])
    drive(lab, "enable", "n1")
    drive(lab, "disable", "n1")
    assert node.run(["crontab", "-l"], check=False).returncode == 1
