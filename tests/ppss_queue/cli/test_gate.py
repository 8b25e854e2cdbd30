"""`ppss gate` as sshd starts it; tests/hosts reaches it over SSH."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from helpers import wait_until

from ppss_queue import __version__
from ppss_queue.cli.joining import join
from ppss_queue.ssh.hello import remote_command

_PROGRAM = [sys.executable, "-c", "from ppss_queue.cli import main; main()", "gate"]


def _hello(gate: subprocess.Popen[bytes]) -> dict[str, object]:
    assert gate.stdout
    found = json.loads(gate.stdout.readline())
    assert isinstance(found, dict)
    return found


class Gates:
    """Starts gates, with stdin and stdout as pipes or, as sshd does it, one socket."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        gate = subprocess.Popen(
            [*_PROGRAM, *arguments],
            env={**self.environment, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self.started.append(gate)
        return gate


@pytest.fixture
def gate(home: dict[str, str]) -> Iterator[Gates]:
    gates = Gates(home)
    yield gates
    for started in gates.started:
        started.kill()
        started.wait()
        for stream in (started.stdin, started.stdout, started.stderr):
            if stream:
                stream.close()


def _server_pid(home: Mapping[str, str]) -> int:
    (file,) = Path(home["PPSS_STATE_DIR"]).glob("*/server/server.pid")
    return int(file.read_text())


def _exchange(gate: subprocess.Popen[bytes], sent: bytes, count: int) -> bytes:
    assert gate.stdin and gate.stdout
    gate.stdin.write(sent)
    data = b""
    while len(data) < count:
        data += gate.stdout.read(count - len(data)) or b"?"
    return data


def test_the_gate_starts_the_server_and_joins_it(gate: Gates) -> None:
    opened = gate("redis")
    assert _hello(opened) == {"ppss_gate": 1, "oldest": 1, "version": __version__, "service": "redis"}
    assert _exchange(opened, b"PING\r\n", 7) == b"+PONG\r\n"
    assert opened.stdin
    opened.stdin.close()
    assert opened.wait(20) == 0


def test_big_values_pass_both_ways(gate: Gates) -> None:
    """More than pipes and sockets hold at once."""
    opened = gate("redis")
    _hello(opened)
    value = os.urandom(5_000_000)
    assert (
        _exchange(opened, b"*3\r\n$3\r\nSET\r\n$1\r\nv\r\n$%d\r\n%s\r\n" % (len(value), value), 5)
        == b"+OK\r\n"
    )
    answer = b"$%d\r\n%s\r\n" % (len(value), value)
    assert _exchange(opened, b"GET v\r\n", len(answer)) == answer


@pytest.mark.parametrize("side", ["stdin", "stdout", "server"])
def test_the_gate_ends_with_either_side(gate: Gates, side: str) -> None:
    opened = gate("redis")
    _hello(opened)
    if side == "server":
        os.kill(_server_pid(gate.environment), signal.SIGKILL)
    else:
        stream = getattr(opened, side)
        stream.close()
    assert opened.wait(20) == 0


def test_a_gate_whose_node_reads_nothing_ends_with_it(gate: Gates) -> None:
    opened = gate("redis")
    _hello(opened)
    assert opened.stdin and opened.stdout
    _exchange(opened, b"*3\r\n$3\r\nSET\r\n$1\r\nv\r\n$1000000\r\n" + bytes(1_000_000) + b"\r\n", 5)
    opened.stdin.write(b"GET v\r\n" * 3)
    opened.stdout.close()
    opened.stdin.close()
    assert opened.wait(20) == 0


def test_a_forced_command_takes_the_word_that_was_asked_for(gate: Gates) -> None:
    opened = gate(env={"SSH_ORIGINAL_COMMAND": remote_command("redis")})
    assert _hello(opened)["service"] == "redis"


def test_a_word_in_the_forced_command_goes_first(gate: Gates) -> None:
    opened = gate("redis", env={"SSH_ORIGINAL_COMMAND": remote_command("files")})
    assert _hello(opened)["service"] == "redis"


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["redis", "files"]])
def test_what_there_is_not_is_refused_in_the_hello(gate: Gates, arguments: list[str]) -> None:
    opened = gate(*arguments)
    hello = _hello(opened)
    assert hello["exit"] == 2 and str(hello["error"]).startswith("the gate opens redis, files, durable, not")
    out, err = opened.communicate(timeout=20)
    assert (opened.returncode, out, err) == (2, b"", b"")


def test_a_server_that_can_not_start_is_told_in_the_hello(gate: Gates) -> None:
    Path(gate.environment["PPSS_STATE_DIR"]).write_text("a file")
    hello = _hello(gate("redis"))
    assert hello["exit"] == 5 and "the embedded server can't run in" in str(hello["error"])
    Path(gate.environment["PPSS_STATE_DIR"]).unlink()


def test_as_long_as_durable_is_open_the_server_flushes_at_once(gate: Gates) -> None:
    looker = gate("redis")
    _hello(looker)
    ask = b"CONFIG GET appendfsync\r\n"
    everysec, always = (
        b"*2\r\n$11\r\nappendfsync\r\n$%d\r\n%s\r\n" % (len(w), w) for w in (b"everysec", b"always")
    )
    opened = gate("durable")
    assert _hello(opened)["service"] == "durable"
    assert _exchange(looker, ask, len(always)) == always
    assert opened.stdin
    opened.stdin.close()
    assert opened.wait(20) == 0
    assert _exchange(looker, ask, len(everysec)) == everysec


def test_the_gate_is_light(gate: Gates) -> None:
    """A master runs several for each worker."""
    heavy = ("click", "hiredis", "paramiko", "rich", "subprocess", "ppss_queue.cli.frame")
    gate("redis").communicate(timeout=20)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *_PROGRAM[1:], "redis"],
        env=gate.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & set(heavy)


def test_a_gate_at_rest_says_something_now_and_then_where_it_disturbs_nobody() -> None:
    """Else the sshd of a node that lost its power would never find out."""
    source, sink, server, beat = (socket.socketpair() for _ in range(4))
    numbers = [pair[1].fileno() for pair in (source, sink, server, beat)]
    thread = threading.Thread(target=join, args=[*numbers, 0.01])
    thread.start()
    assert beat[0].recv(3) and beat[0].recv(3)
    server[0].sendall(b"+PONG")
    assert sink[0].recv(99) == b"+PONG"
    source[0].close()
    thread.join(20)
    assert not thread.is_alive()
    for pair in (source, sink, server, beat):
        for end in pair:
            end.close()


def test_one_socket_for_both_directions_will_do(gate: Gates) -> None:
    """That is what sshd gives to a command."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            opened = subprocess.Popen(
                [*_PROGRAM, "redis"], env=gate.environment, stdin=theirs.fileno(), stdout=theirs.fileno()
            )
            gate.started.append(opened)
        ours.settimeout(20)
        with ours.makefile("rb") as replies:
            assert b'"service":"redis"' in replies.readline()
            ours.sendall(b"PING\r\n")
            assert replies.readline() == b"+PONG\r\n"
    wait_until(lambda: opened.poll() == 0, "the gate has ended")
