"""The documents tell the truth: their examples run, and what they name exists."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from ppss_queue import keys
from ppss_queue.cli import HIDDEN, VERBS
from ppss_queue.cli.frame import cli, commands
from ppss_queue.errors import ServiceFailed
from ppss_queue.keys import Keys
from ppss_queue.queue import connect

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LUA = ROOT / "ppss_queue" / "lua"
INTERNALS = DOCS / "internals.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "workers/README.md")),
    *sorted(DOCS.glob("*.md")),
]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


OTHER_TOOLS = {
    "--trc",
    "--controlmaster",
    *("--arg-file", "--bar", "--colsep", "--eta", "--group", "--header", "--joblog", "--load", "--max-procs"),
    *(
        "--memfree",
        "--no-db",
        "--pipe",
        "--plus",
        "--progress",
        "--results",
        "--resume-failed",
        "--return",
        "--rpl",
    ),
    *(
        "--array",
        "--build",
        "--cpus-per-task",
        "--job-name",
        "--now",
        "--rm",
        "--scale",
        "--signal",
        "--stop-timeout",
        "--time",
    ),
    *("--shuf", "--sshlogin", "--tmux", "--transferfile", "--wd"),
}
"""Options of xargs, GNU parallel, HyperShell, docker, systemd and Slurm that PPSS does not have."""


class Example(NamedTuple):
    """A fenced block of code."""

    code: str
    output: str | None
    """What the page says that it prints; None: it does not say."""
    line: int
    """Where it is in the page."""


def _examples(page: str, language: str) -> list[Example]:
    text = (DOCS / page).read_text()
    block = re.compile(rf"^```{language}\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
    return [
        Example(found[1], found[2], text.count("\n", 0, found.start()) + 2) for found in block.finditer(text)
    ]


def _run(argv: list[str], directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def environment(home: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """A home with `ppss` on PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    ppss = programs / "ppss"
    ppss.write_text(f"#!{sys.executable}\nfrom ppss_queue.cli import main\nmain()\n")
    ppss.chmod(0o755)
    return {**home, "PATH": f"{programs}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}


@pytest.fixture
def worker(environment: dict[str, str], tmp_path: Path) -> Iterator[None]:
    """A worker of the user's own server."""
    process = subprocess.Popen(["ppss", "worker", "-q", "-p", "2"], cwd=tmp_path, env=environment)
    try:
        yield
        assert process.poll() is None, "the worker died"
    finally:
        process.terminate()
        process.wait(30)


# Examples


def test_every_line_for_users_of_gnu_parallel_works(environment: dict[str, str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("logs", "copies"):
        (site / name).mkdir(parents=True)
    for name in ("a b.log", "c.log"):
        (site / "logs" / name).write_text(f"{name}\n")
    (site / "list.txt").write_text("logs/a b.log\nlogs/c.log\n")
    examples = _examples("from-gnu-parallel.md", "sh")
    assert len(examples) >= 8
    for example in examples:
        done = _run(["bash", "-euo", "pipefail", "-c", example.code], site, environment)
        where = f"from-gnu-parallel.md:{example.line}\n{done.stderr}"
        assert done.returncode == 0, where
        assert "Traceback" not in done.stderr, where
        assert example.output in (None, done.stdout), where
    assert {path.name for path in (site / "copies").iterdir()} == {"a b.log", "c.log"}
    assert len((site / "jobs").glob("*.joblog").__next__().read_text().splitlines()) >= 3


@pytest.mark.usefixtures("worker")
def test_every_python_example_works(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "words" / name).write_text("text\n")
    examples = _examples("python.md", "python")
    assert len(examples) >= 7
    for example in examples:
        if module := re.match(r"# (\w+\.py)\n", example.code):
            (tmp_path / module[1]).write_text(example.code)
            continue
        done = _run([sys.executable, "-c", example.code], tmp_path, environment)
        where = f"python.md:{example.line}\n{done.stderr}"
        assert done.returncode == 0, where
        assert done.stdout == example.output, where


def test_every_argument_and_method_that_the_python_page_names_exists() -> None:
    from ppss_queue.model import Item, ItemView, Outcome
    from ppss_queue.queue import Queue
    from ppss_queue.run import Run
    from ppss_queue.store import Counts

    text = (DOCS / "python.md").read_text()
    table = text.partition("| argument | default |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(inspect.signature(Queue.enqueue).parameters) - {"self", "items", "command"}
    for owner, method in re.findall(r"`(run|queue)\.(\w+)\(", text):
        assert hasattr({"run": Run, "queue": Queue}[owner], method), f"{owner}.{method}"
    known = {*dir(ItemView), *dir(Item), *dir(Outcome), *dir(Counts)}
    for line in text.splitlines():
        if line.startswith(("An item has", "| `run.status()`")):
            words = set(re.findall(r"`(\w+)`", line)) - {"Counts"}
            assert words
            assert words <= known


def test_the_acl_user_of_the_production_page_may_do_all_that_ppss_does(
    address: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """The rights are enough for every kind of verb, and the keys of others are out of reach."""
    text = (DOCS / "production.md").read_text()
    (rights,) = re.findall(r"^ACL SETUSER ppss (.*)$", text, re.MULTILINE)
    script = """
        seq 5 | ppss run -q -o out -c 'echo "$ITEM" > "$OUTPUT_DIR/$OUTPUT_FILE"'
        seq 2 | ppss enqueue -- false
        ppss worker --burst -q
        ppss items last; ppss log last 1; ppss retry last; ppss pause last; ppss resume last
        ppss cancel last; ppss wait last || test $? = 4; ppss purge --all
    """
    with connect(address) as queue:
        queue.connection.execute("ACL", "SETUSER", "ppss", "reset", *rights.split())
        try:
            password = next(word[1:] for word in rights.split() if word.startswith(">"))
            url = address.replace("unix://", f"unix://ppss:{password}@")
            done = _run(["bash", "-euc", script], tmp_path, {**environment, "PPSS_URL": url})
            assert done.returncode == 0, done.stderr
            assert not queue.runs()
            with connect(url) as restricted, pytest.raises(ServiceFailed, match="does not let this user"):
                restricted.connection.execute("SET", "other", "1")
        finally:
            queue.connection.execute("ACL", "DELUSER", "ppss")


# What the pages name


OLD_PPSS = "from-ppss.md"
"""What the bash script had stands there in the first column of tables."""


def _text(page: Path) -> str:
    """Without what is no longer there."""
    text = page.read_text()
    return re.sub(r"(?m)^\| [^|]* \|", "|", text) if page.name == OLD_PPSS else text


def _options() -> set[str]:
    assert isinstance(cli, click.Group)
    known = {"--help", "--version"}
    for _, command in commands(cli, click.Context(cli)):
        known.update(name for parameter in command.params for name in parameter.opts)
    return known


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_option_in_a_page_exists(page: Path) -> None:
    known = _options() | OTHER_TOOLS
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", _text(page)))
    assert named <= known, f"{page.name}: {sorted(named - known)}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_verb_in_a_page_exists(page: Path) -> None:
    named = set(re.findall(r"(?:`|^|\(|&& |; )ppss ([a-z]+)", _text(page), re.MULTILINE))
    known = {*VERBS, *HIDDEN}
    assert named <= known, f"{page.name}: {sorted(named - known)}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_in_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def _tests() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"\btest_\w+\b(?!\.py|\w*/)", page.read_text()))
    assert named <= _tests(), f"{page.name}: {sorted(named - _tests())}"


def test_every_guarantee_names_a_test() -> None:
    section = INTERNALS.read_text().partition("## Guarantees")[2].partition("\n## ")[0]
    guarantees = re.split(r"^\*\*\d\. ", section, flags=re.MULTILINE)[1:]
    assert len(guarantees) == 8
    for guarantee in guarantees:
        assert "test_" in guarantee, guarantee


@pytest.mark.parametrize("page", [INTERNALS, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    folders = [
        ROOT,
        ROOT / "ppss_queue",
        ROOT / "ppss_queue" / "ssh",
        ROOT / "ppss_queue" / "cli",
        ROOT / "ppss_queue" / "nodes",
        LUA,
        ROOT / "workers" / "ppss_worker",
    ]
    for name in re.findall(r"`([\w./-]+\.(?:py|lua|md|sh|toml|lock))`", page.read_text()):
        found = [folder / name for folder in folders if (folder / name).exists()]
        assert found or list((ROOT / "tests").rglob(name)), f"{page.name}: {name}"


def test_every_lua_script_is_explained() -> None:
    text = INTERNALS.read_text()
    for path in LUA.glob("*.lua"):
        assert re.search(rf"`{path.stem}(\.lua)?`", text), path.name


def test_every_key_is_in_the_table_of_keys() -> None:
    """Those of keys.py, of its table, and those that a script builds itself."""
    text = INTERNALS.read_text()
    wanted = {f"ppss:{name}" for name in re.findall(r"^\| P (\S+)", keys.__doc__ or "", re.MULTILINE)}
    assert len(wanted) >= 12
    every = Keys()
    for name, member in inspect.getmembers(Keys):
        if name.startswith("_") or name in ("from_environment", "registry"):
            continue
        if inspect.isfunction(member):
            wanted.add(member(every, *(f"<{word}>" for word in [*inspect.signature(member).parameters][1:])))
        elif isinstance(member, property) and isinstance(getattr(every, name), str):
            wanted.add(getattr(every, name))
    for path in LUA.glob("*.lua"):
        source = path.read_text()
        wanted.update(f"ppss:{name}" for name in re.findall(r"\bP \.\. '(\w+:?)'", source))
        wanted.update(f"rq:{name}" for name in re.findall(r"\bR \.\. '(\w+:?)'", source))
        wanted.update(f"rq:{name}:<run>" for name in re.findall(r"registry\('(\w+)'", source))
    assert not sorted(key for key in wanted if f"`{key}" not in text)
