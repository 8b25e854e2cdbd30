"""The lab of real hosts does what tests of PPSS over SSH rely on; `lab.sh selftest` tests the rest of it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import wait_until
from hosts import lab as labs
from hosts.lab import ROOT, Host, Lab, NoLab, up

import ppss_queue


def _reaches(host: Host, peer: Host) -> bool:
    return host.run(["ping", "-q", "-c", "1", "-W", "1", peer.name], check=False).returncode == 0


def _runs(host: Host, command: str) -> bool:
    return host.run(["pgrep", "-fx", command], user="root", check=False).returncode == 0


def _start(host: Host, command: str) -> None:
    """Start it there, so that it outlives whoever asked for it."""
    host.run(["sh", "-c", f"setsid {command} >/dev/null 2>&1 &"])
    wait_until(lambda: _runs(host, command), f"{command} runs on {host.name}")


def _say(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin
    process.stdin.write(line)


def _hear(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout
    return os.read(process.stdout.fileno(), 1000)


# The code under test


def test_a_command_over_ssh_finds_the_ppss_of_this_checkout(lab: Lab) -> None:
    for host in lab.hosts.values():
        said = host.run(["ssh", "master", "ppss --version; hostname; id -un"]).stdout
        assert said == f"ppss {ppss_queue.__version__}\nmaster\nppss\n"
        program = host.run(["realpath", "/usr/local/bin/ppss"]).stdout.strip()
        assert Path(program).samefile(Path(sysconfig.get_path("scripts")) / "ppss")


def test_hosts_that_would_run_another_checkout_are_no_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppss_queue, "__file__", "/elsewhere/ppss_queue/__init__.py")
    with pytest.raises(AssertionError, match="not this checkout"), up(1):
        pass


def test_a_user_of_a_host_runs_items_with_a_server_and_a_worker_there(lab: Lab) -> None:
    master = lab.master
    for name in ("a b.txt", "sub/c.txt"):
        master.write(f"in/{name}", name)
    run = master.run(
        ["ppss", "enqueue", "in", "-o", "out", "-c", 'tr a-z A-Z <"$ITEM" >"$OUTPUT_DIR/$OUTPUT_FILE"']
    )
    master.run(["ppss", "worker", "--burst", "-q"])
    master.run(["ppss", "wait", run.stdout.strip()])
    assert (master.read("out/a b.txt"), master.read("out/sub/c.txt")) == (b"A B.TXT", b"SUB/C.TXT")
    assert master.run(["stat", "-c", "%U", "out/a b.txt"]).stdout == "ppss\n"


# Commands


def test_every_byte_of_arguments_input_and_environment_arrives(lab: Lab) -> None:
    odd = "a b\n\r\n'\"$(id)ü" + os.fsdecode(b"\xff\xfe")
    assert lab.master.run(["printf", "%s", odd]).stdout == odd
    assert lab.master.run(["cat"], stdin=odd).stdout == odd
    assert lab.master.run(["sh", "-c", 'printf %s "$ODD"'], env={"ODD": odd}).stdout == odd
    lab.master.write("new/file", odd)
    assert os.fsdecode(lab.master.read("/home/ppss/new/file")) == odd


def test_a_command_that_fails_shows_its_words(lab: Lab) -> None:
    failing = ["sh", "-c", "echo what is wrong >&2; exit 3"]
    with pytest.raises(AssertionError, match="what is wrong"):
        lab.master.run(failing)
    assert lab.master.run(failing, check=False).returncode == 3


# Faults


def test_a_cut_line_hangs_and_a_healed_one_goes_on(lab: Lab) -> None:
    n1 = lab["n1"]
    echo = n1.popen(["ssh", "master", "cat"], stdin=subprocess.PIPE)
    _say(echo, b"before\n")
    assert _hear(echo) == b"before\n"
    n1.cut()
    assert not _reaches(n1, lab.master)
    wait_until(lambda: _reaches(lab["n2"], lab.master), "n2 still reaches master")
    _say(echo, b"through the cut\n")
    n1.heal()
    assert _hear(echo) == b"through the cut\n"
    wait_until(lambda: _reaches(n1, lab.master), "n1 reaches master again")


def test_a_host_without_a_link_fails_at_once(lab: Lab) -> None:
    lab["n1"].linkdown()
    said = lab["n1"].run(["ssh", "master", "true"], check=False)
    assert said.returncode == 255
    assert "unreachable" in said.stderr


def test_a_bad_line_still_carries_what_is_sent(lab: Lab) -> None:
    n1 = lab["n1"]
    n1.delay(20)
    n1.loss(1)
    n1.rate(50)
    content = os.urandom(200_000)
    n1.write("file", content)
    n1.run(["scp", "-q", "file", "master:"])
    assert lab.master.read("file") == content


def test_a_killed_host_starts_again_with_its_files_and_without_its_processes(lab: Lab) -> None:
    n1 = lab["n1"]
    n1.write("kept", "kept")
    n1.write("/tmp/gone", "gone")
    _start(n1, "sleep 4321")
    n1.kill()
    assert n1.run(["true"], check=False).returncode != 0
    n1.start()
    wait_until(
        lambda: lab.master.run(["ssh", "n1", "true"], check=False).returncode == 0, "n1 lets master in"
    )
    assert n1.read("kept") == b"kept"
    assert n1.run(["ls", "/tmp/gone"], check=False).returncode != 0
    assert not _runs(n1, "sleep 4321")


def test_a_frozen_host_goes_on_where_it_was(lab: Lab) -> None:
    n1 = lab["n1"]
    echo = n1.popen(["cat"], stdin=subprocess.PIPE)
    _say(echo, b"before\n")
    assert _hear(echo) == b"before\n"
    n1.freeze()
    _say(echo, b"while frozen\n")
    wait_until(lambda: n1.run(["ps", "-o", "s=", "-C", "cat"], user="root").stdout == "T\n", "cat is stopped")
    n1.thaw()
    assert _hear(echo) == b"while frozen\n"


# What is left


def test_the_next_test_finds_the_hosts_as_they_were_at_first(lab: Lab) -> None:
    master, n1, n2 = lab.hosts.values()
    master.write("left", "left")
    master.run(["rm", "/usr/local/bin/ppss"], user="root")
    _start(master, "sleep 4321")
    follower = master.popen(["tail", "-f", "left"])
    (lab.share / "directory").mkdir()
    n1.write(f"{lab.share}/directory/../left", "left")
    n1.cut()
    n1.freeze()
    n2.kill()
    lab.reset()
    assert follower.returncode is not None
    assert not list(lab.share.iterdir())
    assert master.run(["ls", "-A"]).stdout == ".ssh\n"
    assert not _runs(master, "sleep 4321")
    for host in (n1, n2):
        assert host.run(["ssh", "master", "ppss --version"]).stdout == f"ppss {ppss_queue.__version__}\n"


def test_two_labs_at_once_know_nothing_of_each_other(lab: Lab) -> None:
    with up(2) as other:
        assert lab["n1"].address == other["n1"].address
        other["n1"].cut()
        other.master.write("file", "other")
        assert lab["n1"].run(["ssh", "master", "ls"]).stdout == ""
        assert not _reaches(other["n1"], other.master)
        key = lab.master.run(["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout
        assert other.master.run(["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout != key
    assert lab["n1"].run(["ssh", "master", "hostname"]).stdout == "master\n"


def test_tests_that_are_killed_leave_no_lab(lab: Lab) -> None:
    """Nothing of theirs runs any more: whoever takes the lab away must be somebody else."""
    script = (
        "from hosts.lab import up\n"
        "with up(1) as lab:\n"
        "    worker = lab.master.popen(['sleep', '4321'])\n"
        "    print(lab.directory, flush=True)\n"
        "    worker.wait()\n"
    )
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), str(ROOT / "workers")])
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as tests:
        assert tests.stdout
        directory = Path(tests.stdout.readline().strip())
        assert _processes_of(directory)
        tests.kill()
    wait_until(lambda: not directory.parent.exists(), "the directory of the lab is gone")
    wait_until(lambda: not _processes_of(directory), "its processes are gone")


def _processes_of(directory: Path) -> list[str]:
    """Of this machine, those whose command or root belongs to the lab."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "mountinfo").read_bytes()
        except OSError:
            continue  # it ended
        if os.fsencode(directory) in words:
            found.append(process.name)
    return found


def test_a_machine_that_can_run_no_lab_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = tmp_path / "lab.sh"
    machine.write_text("#!/bin/sh\necho 'lab: no nft: apt-get install nftables' >&2\nexit 77\n")
    machine.chmod(0o755)
    monkeypatch.setattr(labs, "_LAB", machine)
    with pytest.raises(NoLab, match="apt-get install nftables"), up(1):
        pass
