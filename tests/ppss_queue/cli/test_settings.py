"""Where options get their values: default < ppss.toml < environment < command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from ppss_worker.runs import ActiveRun

from ppss_queue.cli import VERBS
from ppss_queue.cli.frame import cli
from ppss_queue.cli.options import Option
from ppss_queue.command import ItemValues
from ppss_queue.model import Item, Lease, RunSpec

if TYPE_CHECKING:
    from conftest import Ppss


def options_of(verb: str) -> list[Option]:
    assert isinstance(cli, click.Group)
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    return [parameter for parameter in command.params if isinstance(parameter, Option)]


def test_no_option_listens_to_a_variable_that_commands_see() -> None:
    """Else a `ppss` inside a command would take the outer run's PPSS_RUN, PPSS_SLOT ... for its options."""
    lease = Lease("k3v9", "1-x", Item(1, "a"), 0, 0)
    run = ActiveRun.load("k3v9", RunSpec(command='echo "$ITEM"', output=None), "here", None)
    values = ItemValues("a", "a", 1, 1, "/out", "a")
    exported = {*run.environment, *run.variables(lease, values)} - {*os.environ}
    exported |= {"PPSS_RUN", "PPSS_NODE", "PPSS_ITEM", "PPSS_SLOT", "PPSS_SEQ", "PPSS_ATTEMPT"}
    variables = {str(option.envvar) for verb in VERBS for option in options_of(verb)}
    assert "PPSS_SLOTS" in variables and not variables & exported
    assert not any(variable.startswith("PPSS_R_") for variable in variables)


def test_a_ppss_inside_a_command_is_a_run_of_its_own(ppss: Ppss) -> None:
    done = ppss(
        "run", "-q", "--keep-output", "--name", "outer", "-c",
        f'seq "$ITEM" | "{os.sys.executable}" -c "from ppss_queue.cli import main; main()" run -- echo inner',
        stdin="3\n",
    )  # fmt: skip
    assert done.code == 0, done
    outer, inner = ppss.runs()
    assert (outer["total"], inner["total"], inner["name"]) == (1, 3, None)


def test_every_option_has_one_variable_and_meaning_per_verb() -> None:
    for verb in VERBS:
        options = options_of(verb)
        assert len({option.envvar for option in options}) == len(options)
        assert all(str(option.envvar).startswith("PPSS_") for option in options)
    timeouts = [
        next(o for o in options_of(verb) if o.long_name == "timeout").envvar for verb in ("run", "wait")
    ]
    assert timeouts == ["PPSS_TIMEOUT", "PPSS_WAIT_TIMEOUT"], "one is of an item, one of the patience of wait"


def test_the_command_line_goes_before_the_environment_and_that_before_ppss_toml(ppss: Ppss) -> None:
    def slots(*arguments: str, **environment: str) -> str:
        done = ppss("run", *arguments, "--", "true", stdin="1\n", env=environment)
        assert done.code == 0, done
        return done.err.split(" · ")[2].split()[0]

    toml = ppss.directory / "ppss.toml"
    toml.write_text("slots = 3\n")
    assert slots() == "3"
    assert slots(PPSS_SLOTS="4") == "4"
    assert slots("-p5", PPSS_SLOTS="4") == "5"
    toml.write_text("slots = 3\n[run]\nslots = 6\n[worker]\nslots = 7\n")
    assert slots() == "6"
    toml.unlink()
    assert slots(PPSS_SLOTS="8") == "8"


def test_the_environment_sets_flags_and_lists(ppss: Ppss, files: Path) -> None:
    done = ppss(
        "run", "scans", "--", "echo", env={"PPSS_INCLUDE": "a* d*", "PPSS_TAG": "1", "PPSS_KEEP_ORDER": "yes"}
    )
    assert sorted(line.split("\t")[0] for line in done.lines) == ["2019/d.txt", "a.txt"]


def test_a_command_from_ppss_toml_is_announced_and_gives_way(ppss: Ppss) -> None:
    (ppss.directory / "ppss.toml").write_text("command = 'echo toml'\n")
    announced = "ppss: the command is from ppss.toml: echo toml\n"
    done = ppss("run", stdin="1\n")
    assert done.out == "toml 1\n" and done.err.startswith(announced)
    for arguments, environment, out in (
        (["-c", "echo typed"], {}, "typed 1\n"),
        (["--", "echo", "words"], {}, "words 1\n"),
        ([], {"PPSS_COMMAND": "echo environment"}, "environment 1\n"),
    ):
        done = ppss("run", *arguments, env=environment, stdin="1\n")
        assert done.out == out and "ppss.toml" not in done.err
    assert announced in ppss("enqueue", stdin="1\n").err
    assert announced in ppss("worker", "-q", "--burst").err
    assert "ppss.toml" not in ppss("worker", "-q", "--burst", "--", "true").err
    (ppss.directory / "ppss.toml").unlink()
    assert "ppss: run " in ppss("enqueue", stdin="1\n").err, (
        "without a command the items wait, and it says so"
    )


def test_settings_of_ppss_toml_have_types(ppss: Ppss, files: Path) -> None:
    (ppss.directory / "ppss.toml").write_text(
        'keep-order = true\ntimeout = 90\nkeep = "2d"\ninclude = ["a*", "b*"]\nexclude = "b*"\nname = "typed"\n'
    )
    assert ppss("run", "-q", "scans", "--", "true").code == 0
    assert ppss.status("typed")["total"] == 1


WRONG = {
    "slots = 'x'": "'slots' in ppss.toml: 'x' is no number of slots. Write 8, 50% or -1 (all cores but one).",
    "keep-order = 'x'": "'keep-order' in ppss.toml: give true or false.",
    "slts = 3": "'ppss.toml' sets 'slts', which is no option. Did you mean 'slots'?",
    "slots = ": "'ppss.toml' is no valid TOML: ",
    "bogus = 3": "'ppss.toml' sets 'bogus', which is no option.",
    "[rn]": "'ppss.toml' has a table [rn], but there is no such verb. Did you mean 'run'?",
    "[status]\nslots = 1": "'ppss.toml' sets 'slots', which is no option there.",
}


@pytest.mark.parametrize("text", WRONG)
def test_mistakes_in_ppss_toml_are_named(ppss: Ppss, text: str) -> None:
    (ppss.directory / "ppss.toml").write_text(text)
    said = ppss("run", "--", "true", stdin="1\n").refused()
    assert said.startswith(WRONG[text]) and ("Did you mean" in said) is ("Did you mean" in WRONG[text])
    assert ppss.runs() == []


def test_mistakes_in_the_environment_are_named(ppss: Ppss) -> None:
    assert ppss("run", env={"PPSS_RETRIES": "x"}).refused() == "PPSS_RETRIES: 'x' is no number from 0 up."


def test_ppss_toml_of_another_user_is_refused(ppss: Ppss) -> None:
    toml = ppss.directory / "ppss.toml"
    toml.write_text("command = 'touch pwned; : {}'\n")
    if os.getuid():
        pytest.skip("only root can give a file away")
    os.chown(toml, 65534, 65534)
    assert ppss("run", stdin="1\n").refused().startswith("'ppss.toml' belongs to another user, ")
    assert not (ppss.directory / "pwned").exists()


def test_ppss_toml_that_can_not_be_read(ppss: Ppss) -> None:
    (ppss.directory / "ppss.toml").mkdir()
    assert ppss("status").refused().startswith("'ppss.toml' can't be read (")
