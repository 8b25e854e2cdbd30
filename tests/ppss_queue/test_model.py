"""Values: they survive JSON byte for byte, and their rules are what their docstrings say."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppss_queue.errors import NewerVersion
from ppss_queue.model import (
    ENDED,
    RUN_VERSION,
    STATES,
    Item,
    ItemView,
    Lease,
    Outcome,
    RunSpec,
    State,
    job_id,
    seq_of_job,
)
from ppss_queue.resources import Resources
from ppss_queue.rules import Halt, RetryRule

NAMES = st.binary(max_size=20).map(os.fsdecode)
"""What a file name can be: any bytes, those that are no UTF-8 as surrogates."""
CODES = st.lists(st.integers(0, 255), max_size=4).map(tuple)
SECONDS = st.floats(0, 1e7)
HALTS = st.builds(Halt, st.booleans(), st.integers(0, 9), st.floats(0, 100))
SPECS = st.builds(
    RunSpec,
    command=st.none() | NAMES | st.lists(NAMES, min_size=1, max_size=4).map(tuple),
    directory=NAMES,
    roots=st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    output=st.none() | NAMES,
    replacement=NAMES,
    environment=st.dictionaries(NAMES, NAMES, max_size=3),
    retry=st.builds(RetryRule, st.integers(0, 99), SECONDS, CODES, CODES),
    max_lost=st.integers(0, 99),
    visibility_seconds=SECONDS,
    timeout_seconds=st.none() | SECONDS,
    grace_seconds=SECONDS,
    halt=st.none() | HALTS,
    skip_existing=st.booleans(),
    keep_output=st.booleans(),
    name=st.none() | NAMES,
    priority=st.integers(1, 1000),
    keep_seconds=SECONDS,
)
OUTCOMES = st.builds(
    Outcome,
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    seconds=st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000),
    node=NAMES,
    slot=st.integers(0, 99),
    reason=st.none() | NAMES.filter(bool),
    last_line=NAMES,
    result=st.none() | st.just('{"a": [1, null]}'),
)


@given(SPECS)
def test_a_spec_comes_back_from_json_as_it_was(spec: RunSpec) -> None:
    text = spec.to_json()
    assert text.isascii()
    assert "\n" not in text
    back = RunSpec.from_json(text)
    assert back == spec
    assert RunSpec.from_json(text.encode()) == spec
    assert type(back.command) is type(spec.command)


@given(OUTCOMES)
def test_an_outcome_comes_back_from_json_as_it_was(outcome: Outcome) -> None:
    text = outcome.to_json()
    assert text.isascii()
    assert Outcome.from_json(text) == outcome


def test_what_an_outcome_does_not_have_takes_no_room() -> None:
    assert Outcome(exit_code=0, seconds=0.12345).to_json() == '{"exit_code":0,"seconds":0.123,"slot":0}'
    assert Outcome.from_json(None) == Outcome.from_json("") == Outcome()


def test_a_spec_with_a_setting_of_a_newer_ppss_is_refused_by_its_name() -> None:
    values = json.loads(RunSpec().to_json())
    with pytest.raises(NewerVersion, match=r"\(limit\)\. Upgrade"):
        RunSpec.from_json(json.dumps({**values, "limit": 3}))


def test_a_spec_that_lacks_later_settings_gets_their_defaults() -> None:
    """A run that was enqueued before an option existed runs on as if it was not given."""
    values = json.loads(RunSpec(command="x").to_json())
    required = {"roots", "retry", "halt"}
    assert RunSpec.from_json(json.dumps({key: values[key] for key in (*required, "command")})) == RunSpec(
        command="x"
    )
    assert {field.name for field in fields(RunSpec)} == values.keys() | {"needs"}


def test_only_a_run_with_needs_is_of_a_version_that_older_workers_leave_alone() -> None:
    plain, needing = RunSpec(command="x"), RunSpec(command="x", needs=Resources(1, 4, 8 * 2**30))
    assert (plain.version, needing.version) == (1, 2) and needing.version <= RUN_VERSION
    assert "needs" not in plain.to_json(), "an older PPSS knows no such setting"
    assert RunSpec.from_json(needing.to_json()) == needing


def test_a_function_is_told_from_a_text_that_only_begins_like_one() -> None:
    assert RunSpec(command="python:package.module:work").function == "package.module:work"
    assert RunSpec(command="python script.py").function is None
    assert RunSpec(command=("python:a:b",)).function is None
    assert RunSpec().function is None


def test_exported_functions_are_told_from_other_variables() -> None:
    spec = RunSpec(environment={"A": "1", "BASH_FUNC_work%%": "() { :; }", "BASH_FUNC_odd": ""})
    assert spec.functions == ("work",)


@pytest.mark.parametrize(
    ("root", "name", "path"),
    [
        ("/data", "a/b.txt", "/data/a/b.txt"),
        ("/", "etc/x", "/etc/x"),
        ("", "-n $(x)", "-n $(x)"),
        ("/d/", "e", "/d/e"),
    ],
)
def test_an_item_is_a_file_below_its_root_or_a_text(root: str, name: str, path: str) -> None:
    spec = RunSpec(roots=("/other", root))
    item = Item(1, name, 1)
    assert spec.local_path(item) == path
    assert spec.is_file(item) is bool(root)


def test_job_ids_sort_in_input_order_and_tell_the_number() -> None:
    seqs = [1, 2, 10, 999, 1_000_000]
    jobs = [job_id("k3v9", seq) for seq in seqs]
    assert jobs[0] == "k3v9-0000001"
    assert sorted(jobs) == jobs
    assert [seq_of_job(job) for job in jobs] == seqs
    assert Lease("k3v9", "t", Item(7, "x"), 0, 0).job == "k3v9-0000007"


# Views


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome(exit_code=0), ""),
        (Outcome(exit_code=3), "exit 3"),
        (Outcome(signal=9), "killed by signal 9"),
        (Outcome(exit_code=1, signal=15, reason="timed out after 2 s"), "timed out after 2 s"),
    ],
)
def test_a_failure_is_told_by_its_reason_then_its_signal_then_its_code(outcome: Outcome, words: str) -> None:
    assert outcome.failure == words


def test_a_view_shows_the_outcome_in_the_words_of_the_items_verb() -> None:
    outcome = Outcome(exit_code=6, seconds=4.1, node="big1", slot=2, last_line="bad", result="[1]")
    view = ItemView(Item(7, "a.pdf"), State.FAILED, 3, 1, outcome)
    assert (view.name, view.seq, view.failed, view.exit_code, view.last_line) == ("a.pdf", 7, True, 6, "bad")
    assert view.result == [1]
    assert view.to_dict() == {
        "seq": 7, "item": "a.pdf", "state": "failed", "attempts": 3, "node": "big1", "slot": 2, "exit_code": 6,
        "signal": None, "seconds": 4.1, "last_line": "bad", "reason": None,
    }  # fmt: skip


def test_an_item_that_has_not_ended_took_no_time_yet() -> None:
    retried = ItemView(Item(1, "x"), State.READY, 1, 0, Outcome(exit_code=1, seconds=2.0))
    assert retried.to_dict()["seconds"] is None
    assert not retried.failed
    assert retried.result is None
    assert replace(retried, state=State.FAILED).to_dict()["seconds"] == 2.0


def test_three_of_the_six_states_are_ends() -> None:
    assert len(STATES) == 6
    assert [state for state in STATES if state in ENDED] == ["succeeded", "failed", "cancelled"]
