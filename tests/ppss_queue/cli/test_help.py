"""Help: its texts, its examples, and how soon it is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from ppss_queue import __version__
from ppss_queue.cli import VERBS
from ppss_queue.cli.frame import Verb, cli, commands
from ppss_queue.cli.nodes import NODE_VERBS
from ppss_queue.cli.options import Option

if TYPE_CHECKING:
    from conftest import Ppss


assert isinstance(cli, click.Group)
COMMANDS = dict(commands(cli, click.Context(cli)))
SUMMARIES = {
    **{name: entry.summary for name, entry in VERBS.items()},
    **{f"nodes {name}": entry.summary for name, entry in NODE_VERBS.items()},
}


def verb_of(name: str) -> Verb:
    verb = COMMANDS[name]
    assert isinstance(verb, Verb)
    return verb


def help_of(name: str) -> str:
    context = click.Context(
        verb_of(name), info_name=f"ppss {name}", max_content_width=110, terminal_width=110
    )
    return verb_of(name).get_help(context)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_all_verbs_in_groups(ppss: Ppss, arguments: list[str]) -> None:
    done = ppss(*arguments)
    assert (done.code, done.err) == (0, "")
    assert done.lines[0] == "Usage: ppss VERB [OPTION]... [ARGUMENT]..."
    assert re.findall(r"^  ([a-z]+)  ", done.out, re.MULTILINE) == list(VERBS)
    assert re.findall(r"^([A-Z][a-z ]+):$", done.out, re.MULTILINE) == [
        "Options",
        "Work",
        "Look",
        "Steer",
        "Set up",
    ]
    assert all(entry.summary in done.out for entry in VERBS.values())


def test_version(ppss: Ppss) -> None:
    assert ppss("--version").out == ppss("-V").out == f"ppss {__version__}\n"


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_a_full_or_closed_stdout_ends_the_shortest_answers_as_any_other(ppss: Ppss, option: str) -> None:
    full = ppss.shell(f"ppss {option} > /dev/full")
    assert full.refused(5) == "the disk is full. Free space, then go on."
    closed = ppss.shell(f"exec 3> >(:); wait $!; ppss {option} >&3")
    assert (closed.code, closed.err) == (130, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_verb_is_whole(ppss: Ppss, name: str) -> None:
    text = help_of(name)
    assert text.startswith(f"Usage: ppss {name} ")
    assert SUMMARIES[name] in text, "the list and the verb must say the same"
    assert "\nExamples:\n  " in text
    for option in verb_of(name).params:
        if isinstance(option, Option):
            assert option.help, option.name
            assert re.match(r"[A-Z1]|now,|found,", option.help) and re.search(r"[.\]]$", option.help), (
                option.help
            )
            assert option.is_flag or option.metavar, f"{option.name} shows a type of click's"
    assert "..." not in re.sub(r"\]\.\.\.|ARG\.\.\.", "", text), "nothing is cut"
    if name in ("run", "server"):
        done = ppss(name, "-h")
        assert done.code == 0 and "\nExamples:\n  " in done.out and done.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_valid(name: str, tmp_path: Path) -> None:
    """bash runs each with a `ppss` that only notes its arguments; click must understand these."""
    for folder in (".zfunc", ".config/fish/completions", ".local/share/bash-completion/completions"):
        (tmp_path / folder).mkdir(parents=True)
    noted = tmp_path / "noted"
    examples = help_of(name).partition("\nExamples:\n")[2].splitlines()
    assert examples
    for line in examples:
        noted.unlink(missing_ok=True)
        stub = f"ppss() {{ printf '%q ' \"$@\" >> {noted}; echo >> {noted}; }}\n"
        done = subprocess.run(
            ["/bin/bash", "-c", stub + line],
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": ""},
            capture_output=True,
            check=False,
        )
        assert b"syntax error" not in done.stderr, line
        for typed in noted.read_text().splitlines():
            verb, *arguments = shlex.split(typed)
            if verb == "nodes":
                verb = f"nodes {arguments.pop(0)}"
            verb_of(verb).make_context(verb, arguments)


def test_start_up_imports_nothing_heavy() -> None:
    """What --version and --help do not need: `ppss` is typed often."""

    def modules(*arguments: str) -> set[str]:
        code = (
            "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
            "from ppss_queue.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        return set(done.stderr.split())

    assert not modules("--version") & {"click", "redis", "json", "asyncio", "ppss_queue.cli.frame"}
    heavy = {
        "redis",
        "rq",
        "rich",
        "asyncio",
        "ppss_worker",
        "ppss_queue.queue",
        "ppss_queue.cli.work",
        "subprocess",
    }
    assert not modules("--help") & heavy
    assert not modules("run", "--help") & (heavy - {"ppss_queue.cli.work"})
    assert not modules("status", "--url", "unix:///nowhere") & {"paramiko", "ppss_queue.ssh.line"}
    assert not modules("run", "nosuch", "-c", "true") & {"redis", "rq", "asyncio", "ppss_worker"}
