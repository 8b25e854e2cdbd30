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


def test_the_master_is_paused_quarantined_and_resized_alone(master: Host, lab: Lab) -> None:
    """The worker there goes on working for its nodes."""
    n1 = lab["n1"]
    worker = master.popen(["ppss", "worker", "-p", "2", "--on", "1/n1"], stderr=subprocess.PIPE)
    wait_for(master, "n1", state="live")
    master.write("names", "".join(f"{number}\n" for number in range(20)))

    held = ppss(master, "enqueue", "--no-check", "-f", "names", "-c", _HOLD)
    wait_for(master, "master", state="live", slots=2, running=2)
    ppss(master, "nodes", "pause", "master")
    ppss(master, "nodes", "set", "master", "slots=1")
    wait_for(master, "master", state="paused", slots=1, running=2)
    for node in (master, n1):
        node.write("go", "")
    ppss(master, "wait", held)
    nodes = [item["node"] for item in items(master, held).values()]
    assert (nodes.count("master"), nodes.count("n1")) == (2, 18)
    for node in (master, n1):
        node.run(["rm", "go"])
    ppss(master, "nodes", "resume", "master")
    held = ppss(master, "enqueue", "--no-check", "-f", "names", "-c", _HOLD)
    wait_for(master, "master", state="live", slots=1, running=1)
    wait_for(master, "n1", running=1)
    for node in (master, n1):
        node.write("go", "")
    ppss(master, "wait", held)

    _install(n1)
    run = ppss(master, "enqueue", *_USES_TOOL)
    ppss(master, "wait", run)
    assert {(item["node"], item["state"]) for item in items(master, run).values()} == {("n1", "succeeded")}
    assert views(master)["master"]["state"] == "quarantined", views(master)
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


# What items need

_NVIDIA_SMI = "#!/bin/sh\nprintf '0\\n1\\n'\n"


def _give_gpus(node: Host, program: str = _NVIDIA_SMI) -> None:
    node.write("/usr/local/bin/nvidia-smi", program, user="root")
    node.run(["chmod", "755", "/usr/local/bin/nvidia-smi"], user="root")


_SAYS_GPUS = (
    'd=$HOME/busy.$CUDA_VISIBLE_DEVICES; mkdir "$d" || exit 9; touch "$HOME/met.$CUDA_VISIBLE_DEVICES"; '
    'until [ -e "$HOME/met.0" ] && [ -e "$HOME/met.1" ]; do sleep 0.05; done; rmdir "$d"; echo "$CUDA_VISIBLE_DEVICES"'
)


def test_a_gpu_of_a_node_is_given_to_one_item_at_a_time(master: Host) -> None:
    """Of two processes on the master, too. The other node has none, and all the other items."""
    n1 = master.lab["n1"]
    _give_gpus(n1)
    master.write("names", "".join(f"{number}\n" for number in range(12)))
    words = ("worker", "--burst", "-p", "1", "--on", "4/n1,4/n2")
    run = ppss(
        master, "enqueue", "--gpus", "1", "--no-check", "--keep-output", "-f", "names", "-c", _SAYS_GPUS
    )
    plain = ppss(master, "enqueue", "--no-check", "-f", "names", "-c", ": $ITEM")
    workers = [master.popen(["ppss", *words], stderr=subprocess.PIPE) for _ in range(2)]
    assert [worker.wait(SECONDS) for worker in workers] == [0, 0]
    found = items(master, run).values()
    assert {(item["state"], item["node"]) for item in found} == {("succeeded", "n1")}, found
    assert {str(item["last_line"]).split()[0] for item in found} == {"0", "1"}
    assert {item["state"] for item in items(master, plain).values()} == {"succeeded"}


def test_nodes_give_out_the_cores_and_memory_that_they_have_or_that_the_list_says(master: Host) -> None:
    master.write("ppss.toml", '[nodes]\nn1 = "slots=8 cpus=3 mem=1G"\nn2 = "slots=8 cpus=1 gpus=GPU-a"\n')
    master.write("names", "".join(f"{number}\n" for number in range(8)))
    run = ppss(master, "enqueue", "--cpus", "1", "--mem", "400M", "--no-check", "-f", "names", "-c", _HOLD)
    worker = master.popen(["ppss", "worker", "-p", "0", "--on", "n1,n2"], stderr=subprocess.PIPE)
    wait_for(master, "n1", state="live", slots=8, running=2)
    wait_for(master, "n2", state="live", slots=8, running=1)
    assert json.loads(ppss(master, "status", run, "--json"))["ready"] == 5, "none is held that can't begin"
    plain = ppss(master, "enqueue", "--no-check", "-f", "names", "-c", ": $ITEM")
    ppss(master, "wait", plain)
    for name in ("n1", "n2"):
        master.lab[name].write("go", "")
    ppss(master, "wait", run)
    gpu = ppss(master, "enqueue", "--gpus", "1", "-f", "names", "-c", "echo $CUDA_VISIBLE_DEVICES $ITEM")
    ppss(master, "wait", gpu)
    assert {item["node"] for item in items(master, gpu).values()} == {"n2"}
    big = master.run(["ppss", "enqueue", "--gpus", "2", "--cpus", "2", "-f", "names", "-c", ": $ITEM"])
    assert "it needs 2 GPUs, but n1 offers 0; 2 GPUs and 2 CPUs, but n2 offers 1 and 1." in big.stderr
    worker.terminate()
    worker.wait(SECONDS)
    assert worker.stderr is not None
    sentence = (
        f"run {big.stdout.strip()} can't be run here and is left to other nodes: "
        "each item needs 2 GPUs, but n1 offers 0; 2 GPUs and 2 CPUs, but n2 offers 1 and 1"
    )
    assert sentence in str(worker.stderr.read())


def test_a_run_that_fits_on_no_node_says_so_and_one_that_fits_goes_where_it_does(master: Host) -> None:
    """`ppss run`: nothing is known of a node before it is reached; only runs with --gpus look for some."""
    n1, n2 = master.lab["n1"], master.lab["n2"]
    _give_gpus(n2)
    _give_gpus(n1, "#!/bin/sh\necho no driver\nexit 9\n")
    on = ("-p", "1", "--on", "2/n1,2/n2")
    words = ("--", "sh", "-c", "echo $PPSS_NODE $CUDA_VISIBLE_DEVICES")
    done = master.run(["ppss", "run", *on, "--gpus", "2", *words], stdin="a\nb\n")
    assert done.stdout.split("\n")[:-1] == ["n2 0,1"] * 2, done
    done = master.run(["ppss", "run", *on, "--gpus", "3", *words], stdin="a\n", check=False)
    assert done.returncode == 2, done
    assert "each item needs 3 GPUs, but " in done.stderr and "n2 offers 2" in done.stderr, done.stderr
    assert "which GPUs node n1 has is not known, as nvidia-smi failed: no driver. Say which" in done.stderr
    done = master.run(["ppss", "run", *on, "--cpus", "1", *words], stdin="a\n")
    assert "GPU" not in done.stderr
