"""The agent of an agentless node, a bash program, talked to over pipes as the worker talks to it over SSH."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import nvidia_smi, wait_until
from ppss_worker.agentless.agent import program
from ppss_worker.agentless.protocol import (
    Ended,
    beat_reply,
    fields,
    kill_request,
    read_ended,
    read_gpus,
    run_request,
)

from ppss_queue.errors import MachineFailed

_LIMIT = 3000


class Agent:
    """One that runs, with its scratch below `base`."""

    def __init__(
        self,
        base: Path,
        *,
        key: str = "k",
        session: int = 1,
        limit: int = _LIMIT,
        tells_gpus: bool = False,
        text: bytes = program(),
        **variables: str,
    ) -> None:
        self.base = base
        environment = {**os.environ, "LC_ALL": "C.UTF-8", **variables}
        self.process = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        words = ["p_agent", "nonce", key, str(session), str(limit), str(base), "0", str(int(tells_gpus))]
        self.say(text + os.fsencode(shlex.join(words)) + b"\n")
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n"
        self.hello = fields(self.process.stdout.readline().removeprefix(b"nonce ").rstrip(b"\n"))
        self.directory = Path(os.fsdecode(self.hello[1]))

    def say(self, request: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(request)
        self.process.stdin.flush()

    def hear(self, kind: bytes) -> Sequence[bytes]:
        """The next of this kind."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            parts = fields(line.rstrip(b"\n"))
            if parts[0] == b"beat":
                self.say(beat_reply(parts[1], _LIMIT / 100))
            if parts[0] == kind:
                return parts
        raise AssertionError(f"no {kind!r}")

    def run(self, attempt: str, script: str, *arguments: str, variables: Sequence[str] = ()) -> None:
        self.say(run_request(attempt, [], variables, ["bash", "-c", script, "bash", *arguments], []))

    def ended(self) -> Ended:
        return read_ended(self.hear(b"ended"))


@contextmanager
def agent(base: Path, **how: object) -> Iterator[Agent]:
    base.mkdir(exist_ok=True)
    running = Agent(base, **how)  # type: ignore[arg-type]
    try:
        yield running
    finally:
        with running.process as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            said = process.stdout.read()
    assert said.endswith(b"gone\n")
    assert not running.directory.exists()


def test_every_exit_code_and_signal_is_told_apart(tmp_path: Path) -> None:
    signals = [number for number in signal.valid_signals() if number not in _NOT_DEADLY]
    scripts = {f"exit.{code}": f"exit {code}" for code in range(256)}
    scripts |= {f"signal.{number:d}": f"kill -{number:d} $$" for number in signals}
    with agent(tmp_path) as node:
        names = list(scripts)
        for first in range(0, len(names), 32):
            for name in names[first : first + 32]:
                node.run(name, scripts[name])
            for _ in names[first : first + 32]:
                ended = node.ended()
                kind, number = ended.attempt.split(".")
                expected = (int(number), None) if kind == "exit" else (None, int(number))
                assert (ended.exit_code, ended.signal) == expected


_NOT_DEADLY = {
    signal.SIGCHLD,
    signal.SIGQUIT,  # of bash
    signal.SIGCONT,
    signal.SIGURG,
    signal.SIGWINCH,
    signal.SIGSTOP,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
}


def test_all_bytes_but_nul_reach_a_command_and_come_back(tmp_path: Path) -> None:
    text = bytes(range(1, 256)).decode(errors="surrogateescape")
    with agent(tmp_path) as node:
        node.run("a", 'printf %s "$1"; printf %s "$X" >&2', text, variables=[f"X={text}"])
        assert node.ended().printed == (os.fsencode(text), os.fsencode(text))


def test_what_is_much_or_has_nuls_is_to_be_fetched(tmp_path: Path) -> None:
    with agent(tmp_path) as node:
        node.run("much", "printf '%01200d' 0")
        node.run("nul", r"printf '\0' >&2")
        node.run("long", r"printf '%01199d' 0; printf '%01199d\\' 0 >&2")
        assert [node.ended().printed for _ in range(3)] == [None] * 3
        assert (node.directory / "much" / "stdout").read_bytes() == b"0" * 1200


def test_a_stopped_command_is_not_taken_for_ended_and_can_be_killed(tmp_path: Path) -> None:
    with agent(tmp_path) as node:
        node.run("a", "kill -STOP $$; exit 3")
        node.hear(b"started")
        pid = wait_until(lambda: _group(node, "a"), "it runs")
        wait_until(lambda: " T " in Path(f"/proc/{pid}/stat").read_text(), "it is stopped")
        node.say(kill_request("a", "TERM"))
        assert node.ended().signal == signal.SIGTERM


def test_an_agent_that_hears_nothing_ends_with_all_that_it_started(tmp_path: Path) -> None:
    with agent(tmp_path, limit=100) as node:
        node.run("a", "trap '' TERM; setsid sleep 1000 & echo $! > $1; sleep 1000", str(tmp_path / "escaped"))
        pid = wait_until(lambda: _group(node, "a"), "it runs")
        wait_until(lambda: not node.directory.exists(), "all is gone")
        for dead in (pid, (tmp_path / "escaped").read_text().strip()):
            assert not Path(f"/proc/{dead}").exists() or " Z " in Path(f"/proc/{dead}/stat").read_text()


def test_a_new_session_ends_the_one_before_it(tmp_path: Path) -> None:
    with agent(tmp_path) as first:
        first.run("a", "sleep 1000")
        wait_until(lambda: _group(first, "a"), "it runs")
        with agent(tmp_path, session=2) as second:
            assert second.hello[3] == b"1"
            assert not first.directory.exists()


def test_only_what_the_dead_of_this_host_left_is_removed(tmp_path: Path) -> None:
    with agent(tmp_path, key="alive") as alive:
        owners = (alive.directory / "owners").read_text()
        for name, text in {
            "dead": re.sub(r"(?m)^(\d+) \d+$", r"\1 1", owners),
            "elsewhere": "otherhost 1234\n99999 1\n",
            "young": "",
        }.items():
            left = tmp_path / f".ppss.{name}.1"
            left.mkdir()
            (left / "file").touch()
            if text:
                (left / "owners").write_text(text)
        with agent(tmp_path, key="new"):
            left_there = {path.name for path in tmp_path.iterdir()}
            assert left_there == {".ppss.alive.1", ".ppss.elsewhere.1", ".ppss.young.1", ".ppss.new.1"}


def _group(node: Agent, attempt: str) -> str:
    file = node.directory / attempt / "run.pid"
    return file.read_text().strip() if file.exists() else ""


# What it tells of its machine


def test_a_node_tells_its_cores_and_its_memory(tmp_path: Path) -> None:
    with agent(tmp_path) as node:
        _, _, cores, _, memory = node.hello
    assert int(cores) == os.cpu_count()
    assert int(memory) == int(re.findall(r"MemTotal: *(\d+)", Path("/proc/meminfo").read_text())[0])


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("printf '0\\n 1 \\n2'", ("0", "1", "2")),
        ("echo No devices were found; exit 6", ()),
        (":", ()),
        ("echo the driver is broken >&2; exit 9", "failed: the driver is broken"),
        ("exit 127", "failed: exit 127"),
        ("printf 'a\\tb\\\\\\n'", "failed: a\tb\\"),
    ],
)
def test_a_node_tells_which_gpus_nvidia_smi_finds(
    tmp_path: Path, text: str, gpus: tuple[str, ...] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = nvidia_smi(tmp_path / "bin", text)
    with agent(tmp_path / "base", tells_gpus=True, PATH=path) as node:
        told = node.hear(b"gpus")
    if isinstance(gpus, tuple):
        assert read_gpus(told, "n1") == gpus
    else:
        with pytest.raises(MachineFailed, match=re.escape(f"node n1 has is not known, as nvidia-smi {gpus}")):
            read_gpus(told, "n1")


@pytest.mark.parametrize(("visible", "gpus"), [("0,2", ("0", "2")), ("", ()), ("1,-1,0", ("1",))])
def test_a_node_tells_only_gpus_that_its_environment_leaves_visible(
    tmp_path: Path, visible: str, gpus: tuple[str, ...]
) -> None:
    path = nvidia_smi(tmp_path / "bin", "seq 0 7")
    with agent(tmp_path / "base", tells_gpus=True, PATH=path, CUDA_VISIBLE_DEVICES=visible) as node:
        assert read_gpus(node.hear(b"gpus"), "n1") == gpus


def test_an_nvidia_smi_that_hangs_is_killed_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = nvidia_smi(tmp_path / "bin", f"echo $$ > {tmp_path}/pid; trap '' TERM; while :; do sleep 1; done")
    text = program().replace(b"SECONDS < 20", b"SECONDS < 1").replace(b"20 - SECONDS", b"1 - SECONDS")
    assert len(program()) - len(text) == 2
    with agent(tmp_path / "base", tells_gpus=True, text=text, PATH=path) as node:
        wait_until((tmp_path / "pid").exists, "it runs")
        node.run("a", "echo done")
        assert node.ended().printed == (b"done\n", b"")
        with pytest.raises(MachineFailed, match=r"node n1 .* as nvidia-smi did not answer within 20 s"):
            read_gpus(node.hear(b"gpus"), "n1")
        pid = int((tmp_path / "pid").read_text())
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "it is killed")
