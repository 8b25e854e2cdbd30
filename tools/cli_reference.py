"""Writes docs/cli.md from the code; `--check` only tells whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ppss_queue.cli import HIDDEN, VERBS
from ppss_queue.cli.frame import cli

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# Command line reference

Written from the code by `make docs`. Every option can be set by an environment variable (`PPSS_MAX_LOST` for
`--max-lost`) and in `ppss.toml` in the current directory; the command line goes before the environment, that
before `ppss.toml`.

Exit codes: 0 all items succeeded; 1 some failed, or a halt rule stopped the run; 2 something to correct; 3 Redis
or SSH failed; 4 the run was cancelled; 5 this machine failed (disk full); 130 interrupted.
"""


def page() -> str:
    parts = [HEAD]
    group = click.Context(cli, info_name="ppss")
    assert isinstance(cli, click.Group)
    for name in (*VERBS, *HIDDEN):
        command = cli.get_command(group, name)
        assert command is not None
        parts += _sections(command, name, group)
    return "\n".join(parts)


def _sections(command: click.Command, name: str, parent: click.Context) -> list[str]:
    """Of a verb, or of a group of verbs and each of these."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
    sections = [f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"]
    for inner in command.list_commands(context) if isinstance(command, click.Group) else ():
        verb = command.get_command(context, inner)
        assert verb is not None
        sections += _sections(verb, inner, context)
    return sections


def main() -> None:
    text = page()
    if "--check" in sys.argv:
        if not TARGET.exists() or TARGET.read_text() != text:
            sys.exit("docs/cli.md is not up to date: make docs")
    else:
        TARGET.write_text(text)


if __name__ == "__main__":
    main()
