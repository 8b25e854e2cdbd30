"""Agentless nodes that are cut off, frozen, killed: nothing is lost or doubled, and nothing of ours is left there."""

from __future__ import annotations

import sys

import pytest
from helpers import wait_until
from hosts.lab import Host, Lab
from hosts.ssh import restart_sshd
from hosts.staged import SECONDS, SERVER, Staged, pids, signal_all
from hosts.test_agentless import left_on

_SIZES = {f"f{number}": 3000 + number for number in range(6)}
_WORK = ("-p", "0", "--on", "1/n1,1/n2")
_PLAIN = '{ echo "$PPSS_NODE"; cat "$ITEM"; } > "$OUTPUT_DIR/$OUTPUT_FILE"'
_WAITS = """
printf '%s %s\\n' "${ITEM##*/}" "$PPSS_NODE" >> SHARE/begun
until [ -e SHARE/go ]; do sleep 0.2; done
"""
_ESCAPES = """
printf '%s %s\\n' "${ITEM##*/}" "$PPSS_NODE" >> SHARE/begun
[ "${PPSS_NODE}" = n2 ] || { setsid sleep 1001 & sleep 1002; }
{ printf '%s\\n' "$PPSS_NODE"; cat "$ITEM"; } > "$OUTPUT_DIR/$OUTPUT_FILE"
"""


def nothing_left_on(node: Host) -> None:
    wait_until(lambda: left_on(node) == "", f"nothing is left on {node.name}", SECONDS)


def _run(lab: Lab, *options: str) -> Staged:
    """A run whose items never end on n1."""
    return Staged(lab, _SIZES, "--visibility", "10s", *options, command=_ESCAPES)


@pytest.mark.parametrize("signal", ["INT", "KILL"])
def test_a_worker_that_is_stopped_or_killed_leaves_nothing_on_the_node(lab: Lab, signal: str) -> None:
    staged = _run(lab)
    worker = staged.worker(lab.master, "-p", "0", "--on", "2/n1")
    wait_until(lambda: len(staged.begun) == 2, "two run", SECONDS)
    worker.signal(signal)
    worker.process.wait(SECONDS)
    if signal == "INT":
        assert staged.counts() == {"ready": 6}
        assert left_on(lab["n1"]) == ""
    nothing_left_on(lab["n1"])


@pytest.mark.parametrize("how", ["cut", "kill", "freeze"])
def test_what_ran_on_a_node_that_is_gone_runs_elsewhere(lab: Lab, how: str) -> None:
    staged = _run(lab)
    worker = staged.worker(lab.master, *_WORK)
    wait_until(lambda: any(node == "n1" for _, node in staged.begun), "it begins on n1", SECONDS)
    if how == "freeze":
        lab["n1"].freeze()
        lab["n1"].cut()
    else:
        getattr(lab["n1"], how)()
    try:
        made = staged.finish()
    except AssertionError:
        print(worker.said, staged.begun)
        raise
    assert set(made.values()) == {"n2"}
    assert "lost" in worker.said
    if how == "kill":
        lab["n1"].start()
        again = Staged(lab, _SIZES, output=str(lab.share / "again"))
        again.worker(lab.master, "-p", "0", "--on", "2/n1", "--burst")
        again.finish()
    elif how == "freeze":
        lab["n1"].heal()
        lab["n1"].thaw()
    nothing_left_on(lab["n1"])


@pytest.mark.parametrize("victim", ["agent", "guard", "both"])
def test_whoever_dies_on_the_node_takes_all_with_it(lab: Lab, victim: str) -> None:
    staged = _run(lab)
    staged.worker(lab.master, "-p", "0", "--on", "1/n1")
    wait_until(lambda: staged.begun, "it begins", SECONDS)
    owners = lab["n1"].run(["bash", "-c", "cat .ppss.*/owners"]).stdout.splitlines()
    agent, guard = (line.split()[0] for line in owners[1:])
    killed = {"agent": [agent], "guard": [guard], "both": [agent, guard]}[victim]
    sleeper = pids(lab["n1"], "sleep 1002")
    lab["n1"].run(["kill", "-KILL", *killed], user="root")
    wait_until(lambda: staged.begun.total() > 1, "it begins again", SECONDS)
    assert not set(sleeper) & set(pids(lab["n1"], "sleep 100[12]"))
    assert (
        staged.lab.master.run(["ppss", "items", staged.run, "--json"]).stdout.count('"state": "failed"') == 0
    )
    staged.workers[0].end("INT")
    assert left_on(lab["n1"]) == ""


def test_a_short_cut_costs_nothing(lab: Lab) -> None:
    staged = Staged(lab, _SIZES)
    staged.hold(lab["n1"], *_SIZES)
    worker = staged.worker(lab.master, "-p", "0", "--on", "6/n1")
    wait_until(lambda: len(staged.begun) == 6, "all run", SECONDS)
    lab["n1"].cut()
    staged.let_go(lab["n1"], *_SIZES)
    lab["n1"].heal()
    staged.finish()
    assert set(staged.begun.values()) == {1}, worker.said


def test_a_node_whose_disk_is_full_gets_no_items_and_fails_none(lab: Lab) -> None:
    node = lab["n1"]
    script = """cp -a /home/ppss/.ssh /root/keys && mount -t tmpfs -o size=300k,mode=755 none /home/ppss &&
        cp -a /root/keys /home/ppss/.ssh && chown ppss: /home/ppss"""
    node.run(["sh", "-c", script], user="root")
    staged = Staged(lab, {f"f{number}": 600_000 for number in range(4)})
    worker = staged.worker(lab.master, "-p", "0", "--on", "2/n1")
    worker.says("node n1 does not take files")
    worker.says("It gets no items for 60 s")
    wait_until(lambda: staged.counts() == {"ready": 4}, "the items are back", SECONDS)
    staged.worker(lab.master, "-p", "0", "--on", "2/n2")
    assert set(staged.finish().values()) == {"n2"}
    assert left_on(node) == ""


def test_a_node_that_can_not_be_reached_keeps_nobody_from_the_work(lab: Lab) -> None:
    forget(lab.master, "n1")
    staged = Staged(lab, _SIZES)
    worker = staged.worker(lab.master, *_WORK)
    worker.says("host key of 'n1' is unknown")
    assert set(staged.finish().values()) == {"n2"}


def test_nodes_that_can_not_be_reached_at_all_end_the_worker_that_has_nothing_else(lab: Lab) -> None:
    forget(lab.master, "n1")
    done = lab.master.run(
        ["ppss", "run", "-p", "0", "--on", "2/n1", "-f", "-", "--", "true"], stdin="a", check=False
    )
    assert done.returncode == 3
    assert "ppss trust n1" in done.stderr and "1 left, nothing lost" in done.stderr


@pytest.mark.parametrize(
    ("missing", "sentence"), [("tar", "can't run items without tar"), ("bash", "has no bash")]
)
def test_what_a_node_lacks_is_named(lab: Lab, missing: str, sentence: str) -> None:
    minimal(lab["n1"], without=missing)
    done = lab.master.run(
        ["ppss", "run", "-p", "0", "--on", "2/n1", "-f", "-", "--", "true"], stdin="a", check=False
    )
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr


def test_bash_and_five_programs_are_enough(lab: Lab) -> None:
    minimal(lab["n1"])
    staged = Staged(lab, _SIZES, command=_PLAIN)
    staged.worker(lab.master, "-p", "0", "--on", "2/n1")
    staged.finish()


def forget(host: Host, name: str) -> None:
    """That host knows no host key of this one any more."""
    host.run(["ssh-keygen", "-f", "/etc/ssh/ssh_known_hosts", "-R", name], user="root")


def minimal(node: Host, without: str = "") -> None:
    """Commands that come over SSH find only bash, cat, mkdir, mv, rm, tar there."""
    programs = " ".join({"bash", "cat", "mkdir", "mv", "rm", "tar"} - {without})
    node.run(
        ["sh", "-c", f"mkdir /few; for p in {programs}; do ln -s /usr/bin/$p /few/$p; done"], user="root"
    )
    keys = node.read(".ssh/authorized_keys").decode().splitlines()
    forced = 'command="PATH=/few; eval \\"$SSH_ORIGINAL_COMMAND\\"" '
    node.write(".ssh/authorized_keys", "".join(f"{forced}{key}\n" for key in keys))


def test_a_cancelled_run_is_killed_on_the_node(lab: Lab) -> None:
    staged = _run(lab)
    worker = staged.worker(lab.master, "-p", "0", "--on", "2/n1")
    wait_until(lambda: len(staged.begun) == 2, "two run", SECONDS)
    lab.master.run(["ppss", "cancel", staged.run])
    wait_until(lambda: not pids(lab["n1"], "sleep 1002"), "they are dead", SECONDS)
    worker.end("TERM")
    assert left_on(lab["n1"]) == ""


def test_a_redis_that_is_restarted_costs_no_attempt(lab: Lab) -> None:
    staged = Staged(lab, _SIZES)
    staged.hold(lab["n1"], *list(_SIZES)[:2])
    worker = staged.worker(lab.master, "-p", "0", "--on", "2/n1")
    wait_until(lambda: len(staged.begun) == 2, "two run", SECONDS)
    signal_all(lab.master, SERVER, "KILL")
    worker.says("What runs goes on")
    staged.let_go(lab["n1"], *list(_SIZES)[:2])
    lab.master.run(["ppss", "server", "start"])
    staged.finish()
    assert set(staged.begun.values()) == {1}, staged.begun


def test_one_process_serves_many_nodes_with_no_thread_per_item(lab: Lab) -> None:
    for node in lab.nodes:
        restart_sshd(node, "MaxStartups 100")
    names = [f"many{number}" for number in range(20)]
    aliases = (f"Host {name}\n HostName n1\n HostKeyAlias n1\n" for name in names)
    lab.master.write(".ssh/config", "".join(aliases))
    lab.master.run(["chmod", "600", ".ssh/config"])
    staged = Staged(lab, {f"f{number}": 10 for number in range(80)}, command=_WAITS)
    worker = staged.worker(lab.master, "-p", "0", "--on", ",".join(f"4/{name}" for name in names))
    wait_until(lambda: len(staged.begun) == 80, "all run", SECONDS)
    pid = lab.master.run(["pgrep", "-n", "-f", "ppss worker"]).stdout.strip()
    status = lab.master.run(["cat", f"/proc/{pid}/status"]).stdout
    threads = int(status.partition("Threads:")[2].split()[0])
    assert threads <= 3 * len(names) + 20, "three a node, the carriers of files, and a few"
    (lab.share / "go").touch()
    staged.wait()
    assert staged.counts() == {"succeeded": 80}, worker.said
    assert {node for _, node in staged.begun} == set(names)
    worker.end("TERM")
    assert left_on(lab["n1"]) == ""


_LOSES = """
import sys, time
import paramiko
from ppss_queue.address import SshHost
from ppss_queue.errors import ConnectFailed
from ppss_queue.ssh.command import RemoteCommand
from ppss_queue.ssh.line import Line
unlink = paramiko.Channel._unlink
def slowly(channel):  # as on a busy machine: all channels are closed, and the connection is not yet
    unlink(channel)
    time.sleep(0.3)
paramiko.Channel._unlink = slowly
line = Line(SshHost.parse("n1"))
for text in ("kill -KILL $$", "pkill -KILL -u ppss -x sshd; sleep 100"):
    command = RemoteCommand(line, text)
    try:
        print("ended", command.wait())
    except ConnectFailed as error:
        print(error)
command = RemoteCommand(line, "printf x; sleep 0.3; pkill -KILL -u ppss -x sshd; sleep 100")
print(command.read())
try:
    print("all of it", command.read())
except ConnectFailed as error:
    print(error)
"""


_ENDS_LATE = """
import sys, threading, time
import paramiko
from ppss_queue.address import SshHost
from ppss_queue.ssh.command import RemoteCommand
from ppss_queue.ssh.line import Line
from ppss_queue.ssh.transport import _LastWord
say = _LastWord._send_user_message
def late(self, message):  # as on a busy machine: what was decided is sent when the other side has closed the channel
    if message.asbytes()[0] in map(int, sys.argv[1:]):
        print("late")
        time.sleep(0.5)
    say(self, message)
_LastWord._send_user_message = late
line = Line(SshHost.parse("n1"))
first = RemoteCommand(line, "cat")
for _ in range(3):
    command = RemoteCommand(line, "exec true", first)
    try:
        command.send(b"x")
        command.end_input()
    except Exception as error:
        print(error)
    print(command.wait())
first.send(b"it is here")
print(first.read(9))
"""


def test_what_is_sent_when_the_command_has_just_ended_does_not_end_the_connection(lab: Lab) -> None:
    for late in ("96", "94"):  # the end of its stdin, and data
        said = lab.master.run([sys.executable, "-c", _ENDS_LATE, late]).stdout
        assert said.count("late\n") >= 3, "paramiko sends in another way"
        assert said.count("0\n") == 3 and said.endswith("b'it is here'\n"), said


def test_a_connection_that_is_lost_is_told_from_a_command_that_was_killed(lab: Lab) -> None:
    killed, lost, printed, rest = lab.master.run([sys.executable, "-c", _LOSES]).stdout.splitlines()
    assert (killed, printed) == ("ended -1", "b'x'")
    assert "was lost" in lost and "was lost" in rest, "nor is what it printed taken for all"


def test_a_node_whose_connections_are_lost_again_and_again_gets_items_as_soon_as_it_is_back(lab: Lab) -> None:
    """Many files are on their way each time."""
    sizes = {f"f{number}": 400_000 + number for number in range(200)}
    staged = Staged(lab, sizes, command=_PLAIN)
    worker = staged.worker(lab.master, "-p", "0", "--on", "4/n1")
    try:
        for share in range(1, 6):
            enough = 25 * share
            wait_until(
                lambda enough=enough: staged.counts().get("succeeded", 0) >= enough, "it works", SECONDS
            )
            lab["n1"].run(["pkill", "-KILL", "-u", "ppss", "-x", "sshd"], user="root")
        assert set(staged.finish().values()) == {"n1"}
    except AssertionError:
        print(worker.said)
        raise
    assert worker.said.count("was lost") >= 3, worker.said
    assert "gets no items" not in worker.said, worker.said
