"""Agentless nodes that are cut off, frozen, killed: nothing is lost or doubled, and nothing of ours is left there."""

from __future__ import annotations

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
