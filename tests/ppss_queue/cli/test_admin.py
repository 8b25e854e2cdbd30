"""ppss server, completion, and the embedded server that needs no address."""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Ppss


@pytest.fixture
def alone(ppss: Ppss, home: dict[str, str]) -> Iterator[Ppss]:
    """`ppss` without an address: the server of this user."""
    ppss.environment = home
    yield ppss


def test_the_embedded_server_starts_stops_and_tells_of_itself(alone: Ppss) -> None:
    done = alone("server", "status")
    assert done.code == 1 and done.out.startswith("not running; it starts when it is needed\n")
    assert json.loads(alone("server", "status", "--json").out)["running"] is False
    address = alone("server", "start").out.strip()
    assert address.startswith("unix://") and alone("server", "start").out.strip() == address
    status = alone("server", "status")
    assert (
        status.code == 0 and status.out.startswith("running for ") and f"address: {address}\n" in status.out
    )
    facts = json.loads(alone("server", "status", "--json").out)
    assert facts["running"] is True and facts["url"] == address and facts["pid"] > 1
    assert alone("server", "stop").err == "stopped; its data stay\n"
    assert alone("server", "stop").err == "it was not running\n"


def test_a_run_without_an_address_starts_the_server_and_warns_of_nothing(alone: Ppss) -> None:
    done = alone("run", "-k", "--", "echo", "number", stdin="1\n2\n")
    assert (done.code, done.out) == (0, "number 1\nnumber 2\n")
    assert done.err.count("\n") == 2 and "ppss:" not in done.err
    assert alone("server", "stop").code == 0
    assert "2/2" in alone("status").out, "the data stay, and the server starts again"


def complete(ppss: Ppss, *words: str) -> set[str]:
    """What bash offers behind these words, through the script that `ppss completion bash` prints."""
    program = ppss.directory / "bin"
    program.mkdir(exist_ok=True)
    (program / "ppss").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c "from ppss_queue.cli import main; main()" "$@"\n'
    )
    (program / "ppss").chmod(0o755)
    script = f"""
        PATH="{program}:$PATH"
        source <(cd / && ppss completion bash)
        compopt() {{ printf '%s\n' "$*"; }}  # the real one works only while bash completes
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}) COMP_CWORD={len(words) - 1}
        $(complete -p ppss | sed 's/.*-F \\([^ ]*\\).*/\\1/') ppss
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ppss.directory,
        env=ppss.environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_verbs_options_and_values(ppss: Ppss) -> None:
    assert complete(ppss, "ppss", "st") == {"status"}
    assert {"run", "items", "completion"} <= complete(ppss, "ppss", "")
    assert {"--retries", "--retry-on", "--retry-delay"} <= complete(ppss, "ppss", "run", "--re")
    assert complete(ppss, "ppss", "server", "sta") == {"start", "status"}
    complete(ppss, "ppss", "frobnicate", "")


@pytest.mark.parametrize(
    ("words", "by_bash"),
    [
        ("run sr", "-o default"),
        ("enqueue -f afi", "-o default"),
        ("run -f a -f afi", "-o default"),  # refused when it runs, and no traceback before
        ("run -d tm", "-o dirnames"),
        ("enqueue scans --output ou", "-o dirnames"),
        ("worker --logs lo", "-o dirnames"),
    ],
)
def test_bash_itself_completes_files_and_directories(ppss: Ppss, words: str, by_bash: str) -> None:
    assert complete(ppss, "ppss", *words.split(" ")) == set(by_bash.split())


RUN_ARGUMENTS = [
    "status", "items", "log", "attach", "wait", "retry", "pause", "resume", "cancel", "purge", "purge mine",
    "run --resume", "enqueue --into", "worker --run",
]  # fmt: skip


@pytest.mark.parametrize("line", RUN_ARGUMENTS)
def test_runs_are_completed_by_id_name_and_last(ppss: Ppss, line: str) -> None:
    assert ppss("enqueue", "--name", "mine", "--", "true", stdin="1\n").code == 0
    words = ["ppss", *line.split(" ")]
    assert complete(ppss, *words, "") == {ppss.status()["run"], "mine", "last"}
    assert complete(ppss, *words, "mi") == {"mine"}
    assert complete(ppss, *words, "zz") == set()


def test_a_name_that_is_more_than_a_word_for_the_shell_is_not_offered(ppss: Ppss) -> None:
    assert ppss("enqueue", "--name", "$(touch${IFS}pwned)", "--", "true", stdin="1\n").code == 0
    assert complete(ppss, "ppss", "status", "") == {ppss.status()["run"], "last"}


def test_completion_takes_the_address_from_the_line_or_ppss_toml(ppss: Ppss) -> None:
    url = ppss.environment.pop("PPSS_URL")
    assert ppss("enqueue", "--name", "mine", "--url", url, "--", "true", stdin="1\n").code == 0
    assert "mine" in complete(ppss, "ppss", "status", "--url", url, "")
    (ppss.directory / "ppss.toml").write_text(f'url = "{url}"\n')
    assert "mine" in complete(ppss, "ppss", "status", "")


def test_completion_neither_starts_a_server_nor_tells_of_one_that_is_missing(alone: Ppss) -> None:
    assert complete(alone, "ppss", "status", "") == set()
    assert alone("server", "status").code == 1
    alone.environment["PPSS_URL"] = "redis://127.0.0.1:1"
    assert complete(alone, "ppss", "status", "") == set()
    alone.environment["PPSS_URL"] = "nonsense"
    assert complete(alone, "ppss", "status", "") == set()


class StillLoading(socketserver.StreamRequestHandler):
    """A server that reads its data, for which verbs wait 30 s."""

    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(b"-LOADING its data\r\n")


def test_completion_does_not_wait_for_a_server_that_still_loads(ppss: Ppss) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), StillLoading) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ppss.environment["PPSS_URL"] = f"redis://127.0.0.1:{server.server_address[1]}"
        assert complete(ppss, "ppss", "status", "") == set()
        server.shutdown()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(ppss: Ppss, shell: str) -> None:
    done = ppss("completion", shell)
    assert done.code == 0 and "_PPSS_COMPLETE" in done.out
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=done.out, text=True, check=False).returncode == 0


def test_a_broken_ppss_toml_does_not_break_completion(ppss: Ppss, tmp_path: Path) -> None:
    (tmp_path / "ppss.toml").write_text("wrong =")
    assert complete(ppss, "ppss", "st") == {"status"}
