"""ppss status, items, log, attach, wait."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import wait_until

from ppss_queue.queue import connect

if TYPE_CHECKING:
    from conftest import Ppss

STATES = ("ready", "leased", "delayed", "succeeded", "failed", "cancelled")
STATUS_FIELDS = {
    "run", "name", "state", "total", "running", "rate_per_second", "eta_seconds", "nodes", "command", *STATES,
}  # fmt: skip
ITEM_FIELDS = {
    "seq", "item", "state", "attempts", "node", "slot", "exit_code", "signal", "seconds", "last_line",
}  # fmt: skip
FAIL_ON_B = 'echo "about $ITEM"; test "$ITEM" != b || { echo "b is bad" >&2; exit 6; }'

End = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(ppss: Ppss) -> str:
    """A run named `mixed` that is done: a and c succeeded, b failed with 6."""
    done = ppss("run", "-q", "--name", "mixed", "-c", FAIL_ON_B, stdin="a\nb\nc\n")
    assert done.code == 1, done
    name: str = ppss.status("mixed")["run"]
    return name


def test_what_runs_is_shown_with_its_node_and_slot(ppss: Ppss, tmp_path: Path) -> None:
    """Which items are in use, and where."""
    (tmp_path / "list").write_text("a\nb\n")
    command = "until [ -e go ]; do sleep 0.02; done; : {}"
    ppss.start("run", "-q", "-p1", "--node-name", "here", "-f", "list", "-c", command)
    wait_until(
        lambda: (items := ppss.runs() and ppss.items()) and items[0]["node"], "an item is shown to run"
    )
    first, second = ppss.items()
    assert (first["node"], first["slot"], first["state"], first["seconds"]) == ("here", 1, "leased", None)
    assert (second["node"], second["slot"]) == (None, None)
    (tmp_path / "go").touch()


def test_a_suspended_rq_and_a_pause_are_named(ppss: Ppss, files: Path) -> None:
    assert ppss("enqueue", files, "-c", "true").code == 0
    assert ppss("pause", "last").code == 0
    run = ppss.runs()[0]["run"]
    assert f"run {run} is paused. Go on: ppss resume {run}" in ppss("wait", "--timeout", "0.1").err
    with connect(ppss.environment["PPSS_URL"]) as queue:
        queue.connection.execute("SET", "rq:suspended", 1)
    assert "RQ is suspended, so nothing is handed out. Go on: rq resume" in ppss("status").out
    worker = ppss.start("worker")
    assert worker.stderr is not None
    assert any("RQ is suspended" in worker.stderr.readline() for _ in range(3))


def test_status_without_runs_says_how_to_make_one(ppss: Ppss) -> None:
    assert ppss("status").out == "no runs. Make one: ppss run DIR -c COMMAND\n"
    assert ppss("status", "--json").out == ""


def test_status_lists_all_runs_and_one_by_id_name_or_last(ppss: Ppss, run: str) -> None:
    assert ppss("enqueue", "-c", "true", stdin="x\n").code == 0
    header, *rows = ppss("status").lines
    assert header.split() == ["RUN", "STATE", "DONE", "FAILED", "RUNNING", "RATE", "ETA", "NODES", "COMMAND"]
    assert rows[0].split()[:5] == [run, "(mixed)", "done", "3/3", "1"]
    assert rows[1].split()[1:3] == ["waiting", "0/1"] and len(rows) == 2
    one = ppss("status", run).lines
    assert one == ppss("status", "mixed").lines
    assert one[2] == "items: 2 succeeded, 1 failed"
    assert ppss("status", "last").lines[1].split()[1] == "waiting"


def test_status_as_json_has_the_fields_of_the_contract_and_states_sum_up(ppss: Ppss, run: str) -> None:
    assert ppss("enqueue", "--name", "open", "-c", "true", stdin="1\n2\n3\n").code == 0
    assert ppss("cancel", "open", "2").code == 0
    closed, waiting = map(json.loads, ppss("status", "--json").lines)
    for counts in (closed, waiting):
        assert counts.keys() >= STATUS_FIELDS
        assert sum(counts[state] for state in STATES) == counts["total"] == 3
    assert (closed["run"], closed["name"], closed["state"]) == (run, "mixed", "done")
    assert (closed["succeeded"], closed["failed"], closed["command"]) == (2, 1, FAIL_ON_B)
    assert (waiting["ready"], waiting["cancelled"], waiting["nodes"], waiting["eta_seconds"]) == (
        2,
        1,
        [],
        None,
    )


def test_status_shows_a_run_at_work(ppss: Ppss, tmp_path: Path, end: End) -> None:
    command = 'until test -e go; do sleep 0.02; done; : "$ITEM"'
    (tmp_path / "list").write_text("1\n2\n3\n")
    process = ppss.start("run", "-p2", "-f", "list", "-c", command)
    counts = wait_until(
        lambda: (found := ppss.runs()) and found[0]["running"] == 2 and found[0], "two items run"
    )
    assert counts["leased"] >= 2 and len(counts["nodes"]) == 1
    assert ppss("status").lines[1].split()[1] == "running"
    (tmp_path / "go").touch()
    assert end(process)[0] == 0


def test_status_watch_shows_it_until_ctrl_c(ppss: Ppss, run: str, end: End) -> None:
    process = ppss.start("status", "--watch", "--json")
    assert process.stdout is not None
    assert all(json.loads(process.stdout.readline())["run"] == run for _ in range(2))
    code, _, err = end(process, signal.SIGINT)
    assert (code, err) == (130, "")


def test_items_as_a_table(ppss: Ppss, run: str) -> None:
    header, *rows = ppss("items").lines
    assert header.split() == ["ITEM", "STATE", "TRIES", "NODE", "EXIT", "TOOK", "LAST", "LINE"]
    assert [row.split()[0:3] for row in rows] == [
        ["a", "succeeded", "1"],
        ["b", "failed", "1"],
        ["c", "succeeded", "1"],
    ]
    assert rows[1].split()[4] == "6" and rows[1].endswith("b is bad")
    assert ppss("items", run).lines == ppss("items", "mixed").lines == [header, *rows]


def test_items_of_one_state(ppss: Ppss, run: str) -> None:
    assert ppss("items", "mixed", "--state", "failed", "--names").out == "b\0"
    none = ppss("items", "mixed", "--state", "ready")
    assert (none.code, none.out, none.err) == (0, "", f"run {run} has no ready items\n")


def test_many_items_have_one_header_and_no_empty_line(ppss: Ppss) -> None:
    assert ppss("enqueue", "-c", "true", stdin="".join(f"{n}\n" for n in range(1200))).code == 0
    lines = ppss("items").lines
    assert (
        len(lines) == 1201
        and lines[0].startswith("ITEM")
        and not any(line.startswith(("ITEM", " ")) for line in lines[1:])
    )


def test_items_as_json_and_csv_have_the_fields_of_the_contract(ppss: Ppss, run: str) -> None:
    rows = [json.loads(line) for line in ppss("items", "mixed", "--json").lines]
    assert all(row.keys() >= ITEM_FIELDS for row in rows)
    b = rows[1]
    assert (b["seq"], b["item"], b["state"], b["attempts"], b["exit_code"], b["signal"]) == (
        2,
        "b",
        "failed",
        1,
        6,
        None,
    )
    assert b["last_line"] == "b is bad" and b["slot"] >= 1 and b["node"] and 0 < b["seconds"] < 20
    table = list(csv.DictReader(io.StringIO(ppss("items", "mixed", "--csv").out)))
    assert [row["item"] for row in table] == ["a", "b", "c"] and table[1]["exit_code"] == "6"
    empty = ppss("items", "mixed", "--csv", "--state", "ready").lines
    assert len(empty) == 1 and empty[0].startswith("seq,item,state,")


def test_odd_names_survive_json_csv_and_names(ppss: Ppss) -> None:
    names = [b"new\nline", b"\xff\xfe", b"quote\"'", b" blank ", b"-dash"]
    assert ppss("enqueue", "-0", "-c", "true", stdin=b"\0".join(names)).code == 0
    rows = [json.loads(line) for line in ppss("items", "--json").lines]
    assert [row["item"].encode("utf-8", "surrogateescape") for row in rows] == names
    assert ppss("items", "--names").out.encode("utf-8", "surrogateescape") == b"".join(
        name + b"\0" for name in names
    )
    text = ppss("items", "--csv").out
    assert [
        row["item"].encode("utf-8", "surrogateescape") for row in csv.DictReader(io.StringIO(text))
    ] == names
    table = ppss("items").out
    assert r"new\x0aline" in table and r"\xff\xfe" in table


@pytest.mark.parametrize("item", ["b", "#2"])
def test_log_shows_what_an_item_printed_and_how_it_ended(ppss: Ppss, run: str, item: str) -> None:
    done = ppss("log", run, item)
    assert (done.code, done.out) == (0, "about b\nb is bad\n")
    assert done.err.startswith("ppss: 'b' failed: exit 6 on ") and done.err.endswith(", attempt 1\n")


def test_log_of_what_succeeded_needs_keep_output(ppss: Ppss, run: str) -> None:
    done = ppss("log", run, "a")
    assert done.out == "" and "--keep-output" in done.err
    assert ppss("run", "-q", "--keep-output", "-c", FAIL_ON_B, stdin="a\n").code == 0
    done = ppss("log", "last", "a")
    assert done.out == "about a\n" and done.err.endswith(", attempt 1\n"), "nothing is left to be advised"


def test_log_on_another_machine_shows_what_redis_kept(ppss: Ppss, run: str, tmp_path: Path) -> None:
    elsewhere = {"PPSS_STATE_DIR": str(tmp_path / "elsewhere")}
    assert ppss("log", run, "b", env=elsewhere).out == "about b\nb is bad\n"


def test_log_follows_a_running_item_to_its_last_word(ppss: Ppss, tmp_path: Path, end: End) -> None:
    command = 'echo first; until test -e go; do sleep 0.02; done; echo "last of $ITEM"; echo error >&2'
    (tmp_path / "list").write_text("film\n")
    work = ppss.start("run", "-q", "-f", "list", "-c", command)
    wait_until(lambda: (runs := ppss.runs()) and runs[0]["running"] == 1, "the item runs")
    follow = ppss.start("log", "last", "film", "-f")
    assert follow.stdout is not None and follow.stdout.readline() == "first\n"
    (tmp_path / "go").touch()
    code, out, err = end(follow)
    assert code == 0 and sorted(out.splitlines()) == ["error", "last of film"]
    assert "'film' succeeded" in err and "--keep-output" not in err
    assert end(work)[0] == 0


def test_following_does_not_steal_the_lines_of_line_buffer(ppss: Ppss, tmp_path: Path, end: End) -> None:
    """With --line-buffer a command writes to pipes: reading them would take lines from `ppss run`."""
    command = 'until test -e go; do sleep 0.02; done; seq 2000; : "$ITEM"'
    (tmp_path / "list").write_text("film\n")
    work = ppss.start("run", "--line-buffer", "-f", "list", "-c", command)
    wait_until(lambda: (runs := ppss.runs()) and runs[0]["running"] == 1, "the item runs")
    said = tmp_path / "said"
    with said.open("w") as stderr:
        follow = ppss.start("log", "last", "film", "-f", stderr=stderr)
    wait_until(
        lambda: "does not run on this machine as you yet; waiting for its end" in said.read_text(), "a doubt"
    )
    (tmp_path / "go").touch()
    code, out, _ = end(work)
    assert code == 0 and out == "".join(f"{n}\n" for n in range(1, 2001))
    assert follow.wait(60) == 0


def test_names_with_a_leading_dash_stand_behind_two(ppss: Ppss) -> None:
    assert ppss("run", "-q", "-c", "echo bad; : {}; exit 3", stdin="-q\n").code == 1
    done = ppss("log", "last", "--", "-q")
    assert (done.code, done.out) == (0, "bad\n")


def test_wait_ends_as_the_run_did(ppss: Ppss, run: str, end: End) -> None:
    done = ppss("wait", run)
    assert done.code == 1 and "2 succeeded, 1 failed" in done.err and done.out == ""
    assert ppss("wait", "-q", run).err == ""
    new = ppss("enqueue", "-c", "true", stdin="1\n").out.strip()
    waiting = ppss.start("wait", new)
    assert ppss("worker", "--burst", "-q").code == 0
    assert end(waiting)[0] == 0
    new = ppss("enqueue", "-c", "true", stdin="1\n").out.strip()
    waiting = ppss.start("wait", new)
    assert ppss("cancel", new).code == 0
    assert end(waiting)[0] == 4


def test_wait_says_when_no_worker_is_there_and_gives_up_in_time(ppss: Ppss) -> None:
    new = ppss("enqueue", "-c", "true", stdin="1\n").out.strip()
    done = ppss("wait", new, "--timeout", "0.2")
    warning, sentence = done.err.splitlines()
    assert done.code == 3
    assert warning == "ppss: no worker is there. Start one here or on another machine: ppss worker"
    assert sentence == f"ppss: run {new} has not ended within 200 ms, and goes on. See it: ppss status {new}"


def test_attach_ends_with_the_run_and_ctrl_c_ends_only_the_view(ppss: Ppss, end: End) -> None:
    new = ppss("enqueue", "-c", "true", stdin="1\n").out.strip()
    view = ppss.start("attach", new)
    assert view.stderr is not None and view.stderr.readline() == f"run {new} · 1 item\n"
    assert "no worker is there" in view.stderr.readline()
    code, _, err = end(view, signal.SIGINT)
    assert (code, err) == (130, f"run {new} goes on. See it again: ppss attach {new}\n")
    view = ppss.start("attach", new)
    assert ppss("worker", "--burst", "-q").code == 0
    code, _, err = end(view)
    assert code == 0 and "1 succeeded" in err


@pytest.mark.parametrize("verb", [("items", "--names"), ("items", "--json"), ("status",)])
def test_a_closed_stdout_ends_with_130_and_without_a_word(
    ppss: Ppss, verb: tuple[str, ...], run: str, end: End
) -> None:
    process = ppss.start(*verb)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert end(process) == (130, None, "")


def test_head_takes_the_first_lines_of_a_long_list(ppss: Ppss) -> None:
    assert ppss("enqueue", "-c", "true", stdin="".join(f"{n}\n" for n in range(20_000))).code == 0
    done = ppss.shell("set -o pipefail; ppss items | head -2")
    assert done.code == 130 and done.lines[1].split()[0] == "0" and done.err == ""


def test_full_stdout_is_this_machines_failure(ppss: Ppss, run: str) -> None:
    with open("/dev/full", "wb") as full:
        process = ppss.start("items", stdout=full)
        assert process.wait(60) == 5
    assert process.stderr is not None
    assert process.stderr.read().startswith("ppss: the disk is full")
    assert isinstance(process, subprocess.Popen)
