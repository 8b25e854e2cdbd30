"""The hello, and what a key with a forced command may ask for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ppss_queue.ssh.hello import START, Hello, asked_for, remote_command


def test_a_hello_is_read_as_it_was_written() -> None:
    for hello in (Hello("1.2.3", "redis"), Hello("1", "", 'it "fails"\nü', 5, protocol=7, oldest=3)):
        line = hello.encode()
        assert line.startswith(START) and line.endswith(b"\n") and line.count(b"\n") == 1
        assert Hello.decode(line) == hello


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"1", b'{"ppss_gate":null}', b'{"ppss_gate":"x"}', b"\xff"]
)
def test_what_is_no_hello_is_none(line: bytes) -> None:
    assert Hello.decode(line) is None


@pytest.mark.parametrize(
    ("command", "service"),
    [
        (remote_command("redis"), "redis"),
        ("ppss gate files", "files"),
        ("ppss gate", None),
        ("ppss gate redis x", None),
        ("ppss gate redis;id", None),
        ("ppss gate redis\n", None),
        (remote_command("redis") + ";id", None),
        (remote_command("redis") + "\n", None),
        ("id; " + remote_command("redis"), None),
        ("", None),
    ],
)
def test_only_the_word_of_our_own_command_is_taken(command: str, service: str | None) -> None:
    assert asked_for(command) == service


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "csh", "ksh"])
def test_every_login_shell_executes_the_command_and_finds_what_pip_installed(
    shell: str, tmp_path: Path
) -> None:
    program = tmp_path / ".local" / "bin" / "ppss"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    try:
        done = subprocess.run(
            [shell, "-c", remote_command("redis")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip(f"there is no {shell}")
    assert done.stdout == "gate redis\n"
