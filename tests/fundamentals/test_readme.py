"""The README's quick start, run word for word in a new home."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"


def _blocks(language: str) -> list[str]:
    """Code of the quick start and below, in order, without what is for other machines (tests/hosts/test_readme.py)."""
    text = README.read_text().split("<!-- quick start -->", 1)[1]
    text = re.sub(r"<!-- (?:on|many|a list) .*? -->\n```sh\n.*?```", "", text, flags=re.DOTALL)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def environment(home: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """A home with `ppss` and `python` on PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "ppss": f"#!{sys.executable}\nfrom ppss_queue.cli import main\nmain()\n",
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {**home, "PATH": f"{programs}:{os.environ['PATH']}"}


def test_the_quick_start_works_as_it_is_written(environment: dict[str, str], tmp_path: Path) -> None:
    blocks = _blocks("sh")
    assert len(blocks) == 4
    script = "set -eu\n" + "\n".join(f"{block}\necho '--- end of block'" for block in blocks)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files, numbers, failure, apart, _ = done.stdout.split("--- end of block\n")
    assert files.split() == ["file", "1.txt.gz", "file", "2.txt.gz", "file", "3.txt.gz"]
    assert numbers == "".join(f"number {n}\n" for n in range(1, 6))
    assert re.search(r"^3 +failed +1 +\S+ +6 .*three is bad$", failure, re.MULTILINE)
    assert failure.endswith("three is bad\n")
    assert re.search(r"^\w+ +done +3/3 ", apart, re.MULTILINE)
    assert "1 failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_python_example_works_as_it_is_written(environment: dict[str, str], tmp_path: Path) -> None:
    (example,) = _blocks("python")
    (tmp_path / "words").mkdir()
    for number in (1, 2):
        (tmp_path / "words" / f"{number}.txt").write_text("x" * number)
    (tmp_path / "example.py").write_text(example)
    worker = subprocess.Popen(["ppss", "worker", "-q"], cwd=tmp_path, env=environment)
    try:
        done = subprocess.run(
            ["python", "example.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        worker.terminate()
        worker.wait(30)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["words/1.txt succeeded 1", "words/2.txt succeeded 2"]


def test_every_document_that_the_readme_links_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
