"""`ppss run` on a real terminal (tmux): what is drawn, what stays, Ctrl-C, and a terminal that is closed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import missing, wait_until

from ppss_queue.queue import connect

if TYPE_CHECKING:
    from conftest import Ppss

BAR = re.compile("[━─]")
GO = "until test -e go; do sleep 0.02; done"


class Terminal:
    """A tmux of its own, in which one command line runs."""

    def __init__(self, ppss: Ppss, directory: Path) -> None:
        self._ppss = ppss
        self._tmux = ["tmux", "-S", str(directory / "s")]
        self._program = directory / "ppss"
        self._program.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -c "from ppss_queue.cli import main; main()" "$@"\n'
        )
        self._program.chmod(0o755)

    def run(self, line: str, *, columns: int = 100, **environment: str) -> None:
        """Types a line; "code N" follows when it has ended."""
        path = f"{self._program.parent}:{os.environ['PATH']}"
        script = f'{line}; echo "code $?"; exec sleep 600'
        size = ["-x", str(columns), "-y", "30"]
        subprocess.run(
            [*self._tmux, "-f", "/dev/null", "new-session", "-d", *size, "bash", "-c", script],
            cwd=self._ppss.directory,
            env={**self._ppss.environment, "PATH": path, "LC_ALL": "C.UTF-8", **environment},
            check=True,
        )

    def type(self, *keys: str) -> None:
        self._ask("send-keys", *keys)

    def screen(self, *options: str) -> list[str]:
        """All that was ever printed and still is there, without blanks at the ends."""
        lines = [line.rstrip() for line in self._ask("capture-pane", "-p", "-S", "-", *options).split("\n")]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def shows(self, pattern: str) -> list[str]:
        """Waits until the screen does; the screen then."""

        def found() -> list[str]:
            screen = self.screen()
            return screen if re.search(pattern, "\n".join(screen)) else []

        return wait_until(found, f"{pattern!r} on the terminal", 40)

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)

    def _ask(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], capture_output=True, check=True, encoding="utf-8")
        return done.stdout


@pytest.fixture
def terminal(ppss: Ppss) -> Iterator[Terminal]:
    if not shutil.which("tmux"):
        missing("tmux")
    with tempfile.TemporaryDirectory(prefix="t") as directory:  # short: it holds a socket
        terminal = Terminal(ppss, Path(directory))
        yield terminal
        terminal.close()


def without_warning(screen: list[str]) -> list[str]:
    """Without what is said of the server of the tests, however it wraps."""
    first = next(at for at, line in enumerate(screen) if line.startswith("run "))
    return screen[first:]


def test_progress_is_drawn_in_place_and_leaves_no_line_behind(ppss: Ppss, terminal: Terminal) -> None:
    command = 'echo "out $ITEM"; test "$ITEM" -lt 3 || ' + GO + '; test "$ITEM" != 5'
    terminal.run(f"seq 6 | ppss run -p2 -c '{command}'")
    shown = without_warning(terminal.shows(r"2/6 · 2 running(.|\n)*longest now: [34] · "))
    assert re.fullmatch(r"run \w+ · 6 items · 2 slots on this machine", shown[0])
    assert sorted(shown[1:3]) == ["out 1", "out 2"]
    assert re.fullmatch(r"  ━{10}─{20} 2/6 · 2 running( · .*)?", shown[3]), shown
    assert len(shown) == 5, "bar and longest item are drawn once"
    (ppss.directory / "go").touch()
    ended = without_warning(terminal.shows("code 1"))
    assert sorted(ended[1:7]) == [f"out {n}" for n in range(1, 7)]
    assert " done in " in ended[7] and ended[8].startswith('  1 failed · exit 1 · "out 5"    5')
    assert ended[10:] == ["code 1"] and not BAR.search("\n".join(ended))


def test_lines_without_an_end_are_not_drawn_over(ppss: Ppss, terminal: Terminal) -> None:
    terminal.run(f"""seq 2 | ppss run -p1 -c 'test "$ITEM" = 1 || {{ {GO}; }}; printf "half $ITEM"'""")
    shown = without_warning(terminal.shows("1/2 · 1 running"))
    assert shown[1] == "half 1" and BAR.search(shown[2])
    (ppss.directory / "go").touch()
    assert without_warning(terminal.shows("code 0"))[1:3] == ["half 1", "half 2"]


def test_a_narrow_terminal_with_long_names_has_no_wrapped_line(ppss: Ppss, terminal: Terminal) -> None:
    name = "a long name " * 20 + "its end"
    terminal.run(f"""echo "{name}" | ppss run -p1 -c '{GO}; : {{}}'""", columns=40)
    shown = terminal.shows("longest now")
    assert [len(BAR.findall(line)) for line in shown if "0/1" in line] == [19]
    assert shown[-2].endswith(" 0/1 · 1 running") and max(map(len, shown[-2:])) <= 37
    assert re.fullmatch(r"  longest now: a long.*….*s end · \d+(\.\d)? s", shown[-1])
    (ppss.directory / "go").touch()
    assert not re.search("running|longest", "\n".join(terminal.shows("code 0")))


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colour_is_only_used_where_it_is_wanted(ppss: Ppss, terminal: Terminal, no_color: str) -> None:
    terminal.run(f"seq 2 | ppss run -p1 -c 'test {{}} = 1 || {{ {GO}; }}'", NO_COLOR=no_color)
    terminal.shows("1/2 · 1 running")
    assert ("\x1b[32m" in "\n".join(terminal.screen("-e"))) is (no_color == "")
    (ppss.directory / "go").touch()
    terminal.shows("code 0")


def test_ctrl_c_stops_and_says_how_to_go_on(ppss: Ppss, terminal: Terminal) -> None:
    terminal.run(f"seq 3 | ppss run -p1 -c 'test {{}} = 1 || {{ {GO}; }}'")
    terminal.shows("1/3 · 1 running")
    terminal.type("C-c")
    ended = without_warning(terminal.shows("code 130"))
    run = ppss.status()["run"]
    assert [line.removeprefix("^C") for line in ended[1:]] == [
        "stopping 1 running item (again: at once) ...",
        f"run {run} interrupted: 1 done, 2 left, nothing lost",
        f"go on: ppss run --resume {run}",
        "code 130",
    ]
    (ppss.directory / "go").touch()
    assert ppss("run", "-q", "--resume", run).code == 0


def test_a_second_ctrl_c_does_not_wait(ppss: Ppss, terminal: Terminal) -> None:
    terminal.run("""echo x | ppss run -c 'trap "" TERM; touch up; while :; do sleep 1; done; : {}'""")
    wait_until((ppss.directory / "up").exists, "the item runs")
    terminal.type("C-c")
    terminal.shows("again: at once")
    terminal.type("C-c")
    assert not BAR.search("\n".join(terminal.shows("0 done, 1 left, nothing lost\n(.|\n)*code 130")))


def test_a_closed_terminal_loses_nothing(ppss: Ppss, terminal: Terminal) -> None:
    terminal.run(f"""seq 5 | ppss run -p1 -c 'test {{}} -lt 3 || {{ {GO}; }}; echo {{}} >> ran; echo done'""")
    terminal.shows("2/5 · 1 running")
    terminal.close()
    wait_until(lambda: not ppss.status()["leased"], "what ran is handed back")
    assert ppss.status()["succeeded"] == 2
    (ppss.directory / "go").touch()
    assert ppss("run", "-q", "--resume", "last").code == 0
    assert sorted((ppss.directory / "ran").read_text().split()) == list("12345")


def test_tab_completes_in_an_interactive_bash(ppss: Ppss, terminal: Terminal, files: Path) -> None:
    (ppss.directory / "afile").touch()
    assert ppss("enqueue", "--name", "mine", "--", "true", stdin="1\n").code == 0
    terminal.run("PS1='$ ' bash --norc --noprofile -i")
    terminal.type("source <(ppss completion bash) && clear && echo ready", "Enter")
    terminal.shows("^ready")
    for typed, completed in (
        ("run sc", "run scans/"),
        ("run -f afi", "run -f afile "),
        ("run -d sca", "run -d scans/"),
        ("log mi", "log mine "),
    ):
        terminal.type(f"ppss {typed}", "Tab")
        terminal.shows(re.escape(f"$ ppss {completed.rstrip()}") + "$")
        terminal.type("C-u")


def test_status_watch_redraws_in_place(ppss: Ppss, terminal: Terminal) -> None:
    assert ppss("enqueue", "--", "true", stdin="1\n2\n").code == 0
    terminal.run("ppss status last --watch")
    terminal.shows("waiting +0/2")
    assert ppss("cancel", "last").code == 0
    shown = terminal.shows("cancelled +2/2")
    assert len(shown) == 3 and shown[2] == "items: 2 cancelled"
    terminal.type("C-c")
    terminal.shows("code 130")


def test_status_watch_of_more_runs_than_rows_shows_those_that_run_and_does_not_scroll(
    ppss: Ppss, terminal: Terminal
) -> None:
    (ppss.directory / "list").write_text("1\n")
    ppss.start("run", "-f", "list", "-c", f"{GO}; : {{}}")
    wait_until(lambda: (runs := ppss.runs()) and runs[0]["running"], "the oldest run is at work")
    with connect(ppss.environment["PPSS_URL"]) as queue:
        made = [queue.enqueue(["x"], command="true") for _ in range(40)]
        made[-1].cancel()
        queue.connection.execute("SET", queue.keys.suspended, 1)
        terminal.run("ppss status --watch")
        shown = terminal.shows("and 14 more\nRQ is suspended, .*$")
        (ppss.directory / "go").touch()
    assert len(shown) == 30 and shown[0].startswith("RUN ")
    assert [line.split()[1] for line in shown[1:28]] == ["running"] + ["waiting"] * 26
    assert shown[2].startswith(made[-2].id), "the newest is not out of sight"
    assert "running" not in "\n".join(terminal.shows(f"^RUN.*\n{made[-2].id}")), "it is drawn again"
    assert len(terminal.screen()) == 30, "in place"
    terminal.type("C-c")
    terminal.shows("code 130")
