"""ppss run: outputs, summary, exit codes, and going on with what was interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import wait_until

from ppss_queue import scripts
from ppss_queue.calls import hear, read_heard
from ppss_queue.model import RunSpec
from ppss_queue.queue import connect
from ppss_queue.sources import texts

if TYPE_CHECKING:
    from conftest import Ppss

End = Callable[..., tuple[int, str, str]]
Written = Callable[[Path, int], list[str]]

GO = "until test -e go; do sleep 0.02; done"


def numbers(count: int) -> str:
    return "".join(f"{n}\n" for n in range(1, count + 1))


# outputs


def test_outputs_come_whole_in_completion_order_each_to_its_stream(ppss: Ppss) -> None:
    command = """test "$ITEM" = 2 || until test -e second; do sleep 0.02; done
                 echo "out $ITEM"; echo more; echo "err $ITEM" >&2; touch second"""
    done = ppss("run", "-p3", "-c", command, stdin=numbers(3))
    assert done.code == 0 and done.lines[:2] == ["out 2", "more"]
    assert sorted(done.lines[2::2]) == ["out 1", "out 3"] and set(done.lines[1::2]) == {"more"}
    assert re.findall(r"^err (\d)$", done.err, re.MULTILINE)[0] == "2"
    first, *_, last = done.err.splitlines()
    assert re.fullmatch(r"run [a-z0-9]{4} · 3 items · 3 slots on this machine", first)
    assert re.fullmatch(r"run [a-z0-9]{4} done in [0-9.]+ m?s: 3 succeeded.*", last)


@pytest.mark.parametrize("options", [(), ("-k", "--tag"), ("-p0",)])
def test_what_items_print_on_another_worker_comes_too(
    ppss: Ppss, tmp_path: Path, end: End, options: tuple[str, ...]
) -> None:
    """It was lost without a word as soon as any other worker was there."""
    items = [*numbers(40).split()]
    (tmp_path / "list").write_text(numbers(40))
    other = ppss.start("worker", "-q", "-p2", "--node-name", "other")
    command = 'echo "out $ITEM"; echo "err $ITEM" >&2; echo "$PPSS_NODE" >> nodes; sleep 0.05'
    process = ppss.start("run", "-p1", "--node-name", "here", *options, "-f", "list", "-c", command)
    code, out, err = end(process)
    assert code == 0, err
    assert "other" in (tmp_path / "nodes").read_text()
    expected = [f"{item}\tout {item}" if "--tag" in options else f"out {item}" for item in items]
    assert (
        out.splitlines() if "-k" in options else sorted(out.splitlines(), key=lambda line: int(line[4:]))
    ) == expected
    assert sorted(re.findall(r"err (\d+)$", err, re.MULTILINE), key=int) == items
    end(other, signal.SIGTERM)
    with connect(ppss.environment["PPSS_URL"]) as queue:
        run = ppss.status()["run"]
        assert queue.connection.execute("HGET", f"ppss:run:{run}", "told_bytes") in (b"0", None)


def test_too_much_output_of_other_workers_is_said_and_costs_no_memory(ppss: Ppss, tmp_path: Path) -> None:
    """Nobody reads it while the run is watched by none: 64 MiB are kept, then only that items ended."""
    with connect(ppss.environment["PPSS_URL"]) as queue:
        spec = RunSpec(
            command='head -c 60000 /dev/zero; : "$ITEM"', directory=str(tmp_path), tell_output=True
        )
        run = queue.make_run(spec, texts(["a", "b"]))
        queue.connection.execute("HSET", f"ppss:run:{run.id}", "told_bytes", 64 * 1024 * 1024 - 70_000)
    assert ppss("worker", "--burst", "-q", "-p1").code == 0
    with connect(ppss.environment["PPSS_URL"]) as queue:
        cursor, told = read_heard(scripts.run(queue.connection, hear(queue.keys, run.id, "")), "")
        assert [(item.name, len(item.stdout), item.complete) for item in told] == [
            ("a", 60_000, True),
            ("b", 0, False),
        ]
        assert scripts.run(queue.connection, hear(queue.keys, run.id, cursor)) == []
        left = queue.connection.execute("HGET", f"ppss:run:{run.id}", "told_bytes")
        assert left == str(64 * 1024 * 1024 - 70_000).encode()


@pytest.mark.parametrize("text", [': "$ITEM"; echo said', 'echo said "$(exec true "$ITEM")"'])
def test_no_item_reads_the_startup_file_of_bash_below_sshd(ppss: Ppss, text: str) -> None:
    """There bash takes itself for a login."""
    ppss.environment |= {"SSH_CLIENT": "127.0.0.1 1 22", "SHLVL": "0"}
    Path(ppss.environment["HOME"], ".bashrc").write_text("echo noise; exit 3\n")
    done = ppss("run", "-c", text, stdin="a\nb\n")
    assert done.code == 0 and {line.rstrip() for line in done.out.splitlines()} == {"said"}, done


def test_keep_order_prints_in_input_order(ppss: Ppss) -> None:
    command = """test "$ITEM" != 1 || until test -e third; do sleep 0.02; done
                 echo "$ITEM"; test "$ITEM" != 3 || touch third"""
    assert ppss("run", "-p2", "-k", "-c", command, stdin=numbers(4)).lines == ["1", "2", "3", "4"]


def test_keep_order_of_a_resumed_run_does_not_wait_for_what_ended_before(ppss: Ppss, end: End) -> None:
    command = f'test "$ITEM" -lt 3 -o -e third || exit 1; test "$ITEM" -lt 4 || {{ {GO}; }}; echo "$ITEM"'
    assert ppss("run", "-q", "-c", command, stdin=numbers(4)).code == 1
    (ppss.directory / "third").touch()
    process = ppss.start("run", "--resume", "last", "--retry-failed", "-k", "-p2")
    assert process.stdout is not None and process.stdout.readline() == "3\n"
    (ppss.directory / "go").touch()
    assert end(process)[:2] == (0, "4\n")


def test_keep_order_goes_before_line_buffer(ppss: Ppss) -> None:
    command = """test "$ITEM" != 1 || until test -e third; do sleep 0.02; done
                 echo "$ITEM"; echo "$ITEM"; test "$ITEM" != 3 || touch third"""
    done = ppss("run", "-p2", "-k", "--line-buffer", "-c", command, stdin=numbers(4))
    assert (done.code, done.lines) == (0, list("11223344"))


def test_tag_puts_the_item_before_each_line(ppss: Ppss) -> None:
    done = ppss("run", "-k", "--tag", "-0", "-c", "printf 'one\\ntwo'; : {}", stdin=b"a b\0new\nline\0")
    assert done.out == "a b\tone\na b\ttwo" + "new\\x0aline\tone\nnew\\x0aline\ttwo"


def test_line_buffer_prints_lines_while_the_item_runs(ppss: Ppss, tmp_path: Path, end: End) -> None:
    (tmp_path / "list").write_text("x\n")
    process = ppss.start(
        "run", "--line-buffer", "--tag", "-f", "list", "-c", f'echo first; {GO}; printf "last $ITEM"'
    )
    assert process.stdout is not None and process.stdout.readline() == "x\tfirst\n"
    (tmp_path / "go").touch()
    code, out, _ = end(process)
    assert (code, out) == (0, "x\tlast x\n")


def test_quiet_prints_nothing_of_items(ppss: Ppss) -> None:
    done = ppss("run", "-q", "-c", 'echo "$ITEM"; echo "$ITEM" >&2', stdin="x\n")
    assert done.out == "" and done.err.count("\n") == 1 and " done in " in done.err


def test_a_megabyte_of_output_is_whole(ppss: Ppss) -> None:
    done = ppss("run", "-p2", "-c", 'head -c 1500000 /dev/zero | tr "\\0" "$ITEM"', stdin="a\nb\n")
    assert sorted((done.out[0], done.out[-1])) == ["a", "b"]
    assert re.fullmatch("a{1500000}b{1500000}|b{1500000}a{1500000}", done.out)


def test_logs_are_written_per_item_with_a_job_log(ppss: Ppss) -> None:
    assert ppss("run", "--logs", "logs", "-c", 'echo "of $ITEM"', stdin="a/b\n").code == 0
    run = ppss.status()["run"]
    assert [path.read_text() for path in (ppss.directory / "logs" / run).iterdir()] == ["of a/b\n"]
    header, line = (ppss.directory / "logs" / f"{run}.joblog").read_text().splitlines()
    assert header.split("\t")[0] == "Seq" and line.split("\t")[0] == "1" and line.endswith("\ta/b")


# summary


def test_summary_groups_failures_and_its_commands_can_be_pasted(ppss: Ppss) -> None:
    names = ["fine", "it's $(odd)", "-dash", "x_1", "x_2", "x_3", "x_4"]
    command = """case "$ITEM" in
        fine) ;; x*) echo "can't read $ITEM: not today"; exit 6;; *) test -e go || exit 3
    esac"""
    done = ppss("run", "-q", "-p1", "-c", command, stdin="\n".join(names))
    assert done.code == 1
    _, same, two, steps = done.err.splitlines()
    assert "1 succeeded, 6 failed" in done.err
    assert same == """  4 failed alike · exit 6 · "can't read {}: not today"    x_1, x_2, x_3, ..."""
    assert two == "  2 failed alike · exit 3    it's $(odd), -dash"
    see, again = steps.split("    ")
    shown = ppss.shell(see.removeprefix("see one: "))
    assert shown.code == 0 and "it's $(odd)" in shown.err and "exit 3" in shown.err
    (ppss.directory / "go").touch()
    assert ppss.shell(again.removeprefix("again: ")).code == 1
    assert ppss.status()["succeeded"] == 3


def test_files_that_a_program_names_by_their_path_fail_alike(ppss: Ppss, files: Path) -> None:
    command = 'echo "about $ITEM: bad" >&2; exit 3'
    _, same, _ = ppss("run", files, "-q", "-p1", "-c", command).err.splitlines()
    assert same.startswith('  3 failed alike · exit 3 · "about {}: bad"    ')


@pytest.mark.parametrize("name", ["-dash", "#7", "new\nline", " blank ", "x" * 300])
def test_the_command_that_shows_a_failure_works_for_any_name(ppss: Ppss, name: str) -> None:
    done = ppss("run", "-q", "-0", "-c", "echo shown; : {}; exit 3", stdin=name)
    see = done.err.splitlines()[-1].split("    ")[0]
    assert ppss.shell(see.removeprefix("see one: ")).out == "shown\n"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("bad $ITEM", "bad {}"),
        ("$ITEM: not in 10,$ITEM or x$ITEM", None),
        ("read 0.$ITEM of ${ITEM}0 bytes", None),
        ("in/$ITEM, line ($ITEM).", "in/{}, line ({})."),
    ],
)
def test_names_that_stand_alone_do_not_keep_failures_apart(
    ppss: Ppss, message: str, shown: str | None
) -> None:
    done = ppss("run", "-q", "-c", f'echo "{message}"; exit 3', stdin=numbers(3))
    groups = [line for line in done.err.splitlines() if line.startswith("  ")]
    if shown is None:
        assert [line.split(" · ")[0] for line in groups] == ["  1 failed"] * 3
    else:
        assert groups == [f'  3 failed alike · exit 3 · "{shown}"    1, 2, 3']


def test_a_name_that_stands_in_a_message_by_chance_does_not_set_its_item_apart(ppss: Ppss) -> None:
    done = ppss("run", "-q", "-p1", "-c", 'echo "line 2: no"; : "$ITEM"; exit 3', stdin=numbers(3))
    assert done.err.splitlines()[1].startswith('  3 failed alike · exit 3 · "line 2: no"    ')
    done = ppss("run", "-q", "-c", 'echo "bad $ITEM"; exit 3', stdin="2\n")
    assert done.err.splitlines()[1] == '  1 failed · exit 3 · "bad 2"    2'


def test_exceptions_of_a_function_are_grouped_without_the_names_in_them(ppss: Ppss) -> None:
    (ppss.directory / "functions.py").write_text("def do(item):\n    raise ValueError(f'bad {item}')\n")
    done = ppss("run", "-q", "-p1", "-c", "python:functions:do", stdin=numbers(3))
    assert done.err.splitlines()[1] == "  3 failed alike · ValueError: bad {}    1, 2, 3"


def test_kinds_of_failure_that_find_no_room_are_counted_by_exit_code(ppss: Ppss) -> None:
    command = 'test "$ITEM" -lt 4 && exit 9; echo "$RANDOM$RANDOM$RANDOM"; exit $(("$ITEM" < 15 ? 3 : 4))'
    done = ppss("run", "-q", "-p1", "-c", command, stdin=numbers(20))
    _, first, *singles, rest, _ = done.err.splitlines()
    assert first == "  3 failed alike · exit 9    1, 2, 3"
    assert [line.split(" · ")[:2] for line in singles] == [["  1 failed", "exit 3"]] * 4
    said, _, see = rest.partition("    all: ")
    assert said == "  13 more failed in other ways · exit 3 (7), exit 4 (6)"
    assert len(ppss.shell(see).lines) == 21


def test_commands_to_paste_carry_the_url_that_was_typed(ppss: Ppss) -> None:
    url = ppss.environment["PPSS_URL"]
    del ppss.environment["PPSS_URL"]
    done = ppss("run", "-q", "--url", url, "-c", "exit 3", stdin="x\n")
    see, again = done.err.splitlines()[-1].split("    ")
    assert ppss.shell(see.removeprefix("see one: ")).code == 0
    assert ppss.shell(again.removeprefix("again: ")).code == 1


def test_timed_out_items_are_named_so(ppss: Ppss) -> None:
    done = ppss("run", "-q", "--timeout", "0.2", "-c", "sleep 60; : {}", stdin="slow\n")
    assert done.code == 1 and "  1 failed · timed out after 200 ms    slow" in done.err


def test_outputs_are_named_where_they_are(ppss: Ppss, files: Path) -> None:
    done = ppss("run", "scans", "-o", "out/put", "-c", 'cp "$ITEM" "$OUTPUT_DIR/$OUTPUT_FILE"')
    assert done.code == 0 and done.err.endswith("\noutputs: out/put/\n")
    assert (ppss.directory / "out/put/2019/d.txt").read_text() == "text of 2019/d.txt\n"


# exit codes


def test_a_halt_rule_ends_with_1_and_resume_goes_on(ppss: Ppss) -> None:
    done = ppss(
        "run", "-q", "-p1", "--halt", "now,fail=1", "-c", "sleep 0.1; test {} != 2 -o -e go", stdin=numbers(9)
    )
    assert done.code == 1
    assert re.match(
        r"run \w+ halted after [\d.]+ m?s \(1 item failed\): \d succeeded, 1 failed, \d left", done.err
    ), done.err
    go_on = done.err.splitlines()[-1].split("    ")[1].removeprefix("go on: ")
    (ppss.directory / "go").touch()
    assert ppss("wait", "last").code == 1
    assert ppss.shell(f"{go_on} --retry-failed").code == 0
    assert ppss.status()["succeeded"] == 9


def test_256_failures_end_with_1(ppss: Ppss) -> None:
    assert ppss("run", "-q", "-c", "exit 1", stdin=numbers(256)).code == 1


def test_a_run_cancelled_from_outside_ends_with_4(ppss: Ppss, tmp_path: Path, end: End) -> None:
    (tmp_path / "list").write_text(numbers(3))
    process = ppss.start("run", "-p1", "-f", "list", "-c", "sleep 60; : {}")
    wait_until(lambda: (runs := ppss.runs()) and runs[0]["running"], "an item runs")
    assert ppss("cancel", "last").code == 0
    code, _, err = end(process)
    assert code == 4 and "3 cancelled" in err
    assert "was cancelled, so nothing of it can go on" in ppss("run", "--resume", "last").refused()


# interrupted, and going on


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_loses_nothing_and_resume_does_exactly_the_rest(
    ppss: Ppss, tmp_path: Path, end: End, written: Written, number: signal.Signals
) -> None:
    (tmp_path / "list").write_text(numbers(6))
    command = f'test "$ITEM" -lt 3 || {GO}; echo "$ITEM" >> ran'
    process = ppss.start("run", "-p1", "-f", "list", "-c", command)
    written(tmp_path / "ran", 2)
    wait_until(lambda: ppss.status()["running"] == 1 and ppss.status()["succeeded"] == 2, "the third runs")
    if number is signal.SIGTERM:  # finishes what runs
        process.send_signal(number)
        (tmp_path / "go").touch()
    code, _, err = end(process, None if number is signal.SIGTERM else number)
    finished = 3 if number is signal.SIGTERM else 2
    run = ppss.status()["run"]
    assert code == 130
    assert err.endswith(
        f"run {run} interrupted: {finished} done, {6 - finished} left, nothing lost\n"
        f"go on: ppss run --resume {run}\n"
    )
    if number is signal.SIGINT:
        assert "stopping 1 running item (again: at once) ...\n" in err
    (tmp_path / "go").touch()
    assert ppss.status()["running"] == 0
    assert ppss.shell(err.splitlines()[-1].removeprefix("go on: ")).code == 0
    assert sorted((tmp_path / "ran").read_text().split()) == numbers(6).split()


@pytest.mark.parametrize("verb", ["run", "wait"])
def test_a_restart_of_redis_in_mid_run_is_survived(ppss: Ppss, tmp_path: Path, end: End, verb: str) -> None:
    """The worker went on, but whoever waited ended with 3 although every item succeeded."""
    del ppss.environment["PPSS_URL"]
    (tmp_path / "list").write_text(numbers(4))
    command = f"echo x >> ran; {GO}; : {{}}"
    if verb == "run":
        processes = [ppss.start("run", "-q", "-p1", "-f", "list", "-c", command)]
    else:
        assert ppss("enqueue", "-f", "list", "-c", command).code == 0
        processes = [ppss.start("wait"), ppss.start("worker", "-q", "-p1", "--burst")]
    wait_until((tmp_path / "ran").exists, "an item runs")
    os.kill(json.loads(ppss("server", "status", "--json").out)["pid"], signal.SIGKILL)
    wait_until(lambda: ppss("server", "status").code == 1, "the server is gone")
    (tmp_path / "go").touch()
    assert ppss("server", "start").code == 0
    for process in processes:
        code, _, err = end(process)
        assert code == 0, err
        assert "4 succeeded" in err or "ended" in err, err


def test_what_failed_so_far_is_told_of_an_interrupted_run(ppss: Ppss, tmp_path: Path, end: End) -> None:
    (tmp_path / "list").write_text(numbers(5))
    process = ppss.start(
        "run", "-p1", "-f", "list", "-c", f'test "$ITEM" -ne 2 || exit 3; test "$ITEM" -lt 4 || {{ {GO}; }}'
    )
    wait_until(
        lambda: (runs := ppss.runs()) and runs[0]["succeeded"] == 2 and runs[0]["running"], "the fourth runs"
    )
    code, _, err = end(process, signal.SIGINT)
    assert code == 130 and " interrupted: 3 done (1 failed), 2 left, nothing lost\n" in err


def test_a_second_ctrl_c_kills_what_does_not_listen(ppss: Ppss, tmp_path: Path, end: End) -> None:
    (tmp_path / "list").write_text("x\n")
    process = ppss.start("run", "-f", "list", "-c", "trap '' TERM; touch up; while :; do sleep 1; done; : {}")
    assert process.stderr is not None
    wait_until((tmp_path / "up").exists, "the item runs")
    process.send_signal(signal.SIGINT)
    while "again: at once" not in process.stderr.readline():
        assert process.poll() is None
    code, _, err = end(process, signal.SIGINT)
    assert code == 130 and "0 done, 1 left, nothing lost" in err


def test_a_closed_stdout_stops_the_run_and_it_can_be_resumed(ppss: Ppss) -> None:
    done = ppss.shell("set -o pipefail; seq 3000 | ppss run -p2 -c 'echo \"$ITEM\" | tee -a ran' | head -1")
    assert done.code == 130 and len(done.lines) == 1
    assert "nothing lost" in done.err and "Traceback" not in done.err
    counts = ppss.status()
    assert counts["running"] == 0 and 0 < counts["succeeded"] < 3000 and counts["leased"] == 0
    assert ppss("run", "-q", "--resume", "last").code == 0
    ran = (ppss.directory / "ran").read_text().split()
    assert set(ran) == set(numbers(3000).split()) and len(ran) <= 3004


def test_a_closed_stdout_stops_a_run_with_line_buffer(ppss: Ppss) -> None:
    done = ppss.shell("set -o pipefail; echo x | ppss run --line-buffer -c 'yes \"$ITEM\"' | head -1")
    assert (done.code, done.out) == (130, "x\n") and "0 done, 1 left, nothing lost" in done.err
    assert ppss.status()["leased"] == 0


def test_a_full_stdout_is_this_machines_failure(ppss: Ppss) -> None:
    done = ppss.shell("seq 50 | ppss run -p1 -c 'echo \"$ITEM\"' > /dev/full")
    first, left, go_on = done.err.splitlines()[-3:]
    assert done.code == 5 and first == "ppss: the disk is full. Free space, then go on."
    assert "nothing lost" in left and ppss.shell(go_on.removeprefix("go on: ")).code == 0
    assert ppss.status()["succeeded"] == 50


def test_stdout_of_a_run_may_be_closed_from_the_start(ppss: Ppss) -> None:
    assert ppss.shell("seq 3 | ppss run -c ': {}' >&- 2>&-").code == 0


def test_resume_of_a_run_that_is_done(ppss: Ppss) -> None:
    assert ppss("run", "-q", "--name", "fine", "-c", "true", stdin="1\n").code == 0
    done = ppss("run", "--resume", "fine")
    assert done.code == 0 and done.err.endswith("has nothing left to do (0 items failed).\n")
    assert ppss("run", "-q", "--name", "bad", "-c", ": {}; test -e go", stdin="1\n").code == 1
    done = ppss("run", "--resume", "bad")
    assert done.code == 1 and "nothing left to do (1 item failed)" in done.err
    (ppss.directory / "go").touch()
    assert ppss.shell(done.err.splitlines()[-1].removeprefix("again: ")).code == 0


def test_resume_of_a_paused_run_goes_on(ppss: Ppss) -> None:
    assert ppss("enqueue", "-c", "echo", stdin=numbers(2)).code == 0
    assert ppss("pause", "last").code == 0
    assert ppss("worker", "--burst", "-q").code == 0 and ppss.status()["ready"] == 2
    assert sorted(ppss("run", "--resume", "last").lines) == ["1", "2"]


def test_resume_takes_nothing_that_describes_a_run(ppss: Ppss) -> None:
    assert ppss("enqueue", "-c", "true", stdin="1\n").code == 0
    for extra, named in ((["-o", "x"], "--output"), (["src"], "the sources"), (["-c", "x"], "--command")):
        said = ppss("run", "--resume", "last", *extra).refused()
        assert said == f"--resume goes on with a run as it was made: leave {named} out"
    assert "leave its command out" in ppss("run", "--resume", "last", "--", "true").refused()
    assert ppss.status()["ready"] == 1


def test_resume_takes_no_notice_of_a_command_in_ppss_toml(ppss: Ppss) -> None:
    assert ppss("enqueue", "-c", "echo typed", stdin="1\n").code == 0
    (ppss.directory / "ppss.toml").write_text('command = "echo from toml"\n')
    assert ppss("run", "--resume", "last").out == "typed 1\n"


# slots


@pytest.mark.parametrize(
    ("slots", "shown"), [("50%", "1 slot"), ("-1", "1 slot"), ("2", "2 slots"), ("+1", "3 slots")]
)
def test_slots_may_depend_on_the_cores(ppss: Ppss, slots: str, shown: str) -> None:
    two = sorted(os.sched_getaffinity(0))[:2]
    if len(two) < 2:
        pytest.skip("needs two cores")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, two)
    try:
        done = ppss("run", "-p", slots, "-c", "true", stdin="1\n")
    finally:
        os.sched_setaffinity(0, before)
    assert f"· {shown} on this machine" in done.err


def test_p0_watches_a_run_that_a_worker_does(ppss: Ppss, tmp_path: Path, end: End) -> None:
    (tmp_path / "list").write_text(numbers(2))
    process = ppss.start("run", "-p0", "--no-check", "-f", "list", "-c", "test {} = 1")
    assert process.stderr is not None
    while not process.stderr.readline().endswith(" · 2 items\n"):
        assert process.poll() is None
    assert (
        process.stderr.readline()
        == "ppss: no worker is there. Start one here or on another machine: ppss worker\n"
    )
    assert ppss("worker", "--burst", "-q").code == 0
    code, out, err = end(process)
    assert code == 1 and out == "" and "1 succeeded, 1 failed" in err


def test_plain_progress_comes_where_stderr_is_no_terminal(ppss: Ppss, tmp_path: Path, end: End) -> None:
    """After 10 s for people who wait, hence the shortened wait of this test."""
    (tmp_path / "list").write_text(numbers(2))
    code = (
        "import ppss_queue.cli.display as display; display._FIRST_PLAIN_SECONDS = 0.1; "
        "from ppss_queue.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", "-p1", "-f", "list", "-c", f"{GO}; : {{}}"],
        cwd=tmp_path,
        env=ppss.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "on this machine" not in process.stderr.readline():
        assert process.poll() is None
    assert re.fullmatch(r"  0/2 · [01] running\n", process.stderr.readline())
    (tmp_path / "go").touch()
    assert end(process)[0] == 0


# sources and the dry run


@pytest.mark.parametrize(
    ("arguments", "stdin", "names"),
    [
        (["scans"], "", ["2019/d.txt", "a.txt", "b c.txt"]),
        (["-d", "scans", "--max-depth", "1"], "", ["a.txt", "b c.txt"]),
        (["scans", "--include", "b*"], "", ["b c.txt"]),
        (["scans", "--exclude", "2019", "--exclude", "a*"], "", ["b c.txt"]),
        (["scans/2019", "scans/a.txt"], "", ["2019/d.txt", "a.txt"]),
        (["scans", "-f", "list"], "", ["listed", "scans/2019/d.txt", "scans/a.txt", "scans/b c.txt"]),
        (["-f", "list"], "ignored", ["listed"]),
        (["-f", "-"], "x\ny", ["x", "y"]),
        ([], " x \ny\r\n", [" x ", "y\r"]),
        (["-0"], "a\nb\0c", ["a\nb", "c"]),
        (["--delimiter", ","], "a,b,c", ["a", "b", "c"]),
        (["--delimiter", "\\t"], "a\tb", ["a", "b"]),
        (["--files"], "scans/a.txt", ["scans/a.txt"]),
    ],
)
def test_sources(ppss: Ppss, files: Path, arguments: list[str], stdin: str, names: list[str]) -> None:
    (ppss.directory / "list").write_text("listed\n")
    done = ppss("enqueue", *arguments, "-c", "true", stdin=stdin)
    assert done.code == 0, done
    assert sorted(row["item"] for row in ppss.items()) == names


def test_order_size_is_largest_first_and_random_is_not_as_found(ppss: Ppss, files: Path) -> None:
    for length, name in enumerate(["s", "m", "l"]):
        (files / name).write_bytes(b"x" * 1000 * (length + 1))
    assert (
        ppss("run", "-q", "scans", "--max-depth", "1", "--include", "?", "--order", "size", "--", "true").code
        == 0
    )
    assert [row["item"] for row in ppss.items()] == ["l", "m", "s"]
    (ppss.directory / "list").write_text(numbers(50))
    assert ppss("enqueue", "-f", "list", "--order", "random", "-c", "true").code == 0
    found = [row["item"] for row in ppss.items()]
    assert sorted(found, key=int) == numbers(50).split() != found


HOSTILE = [
    b"a b",
    b"$(touch pwned)",
    b"`touch pwned`",
    b"it's",
    b'"q"',
    b"-x",
    b"\xff\xfe",
    b"back\\slash",
    b"*",
]


@pytest.mark.parametrize(
    "command",
    [
        ["--", "printf", "%s|", "{}", "{/}", "{.}"],
        ["-c", 'printf "%s|" "$ITEM" "${ITEM%.txt}" {/} {#} "$PPSS_SEQ" "$PPSS_ITEM"'],
        ["-c", "printf '%s|' pre{}post {//} >&1"],
        ["-c", "printf '%s|'"],
    ],
)
def test_dry_run_prints_what_does_the_same_in_bash(ppss: Ppss, files: Path, command: list[str]) -> None:
    for options, stdin in ((["scans"], b""), (["-0"], b"\0".join(HOSTILE))):
        dry = ppss("run", *options, "--dry-run", *command, stdin=stdin)
        assert dry.code == 0 and not dry.err, dry
        real = ppss("run", "-k", *options, *command, stdin=stdin)
        assert ppss.shell(dry.out).out == real.out
    assert not (ppss.directory / "pwned").exists()
    assert len(ppss.runs()) == 2


def test_dry_run_names_the_output_directory_and_counts_the_rest(ppss: Ppss, files: Path) -> None:
    copy = 'cp "$ITEM" "$OUTPUT_DIR/$OUTPUT_FILE"'
    dry = ppss("run", "scans", "-o", "out", "--dry-run", "-c", copy)
    for folder in ("out", "out/2019"):
        (ppss.directory / folder).mkdir()
    assert ppss.shell(dry.out).code == 0
    made = {str(path.relative_to(ppss.directory / "out")) for path in (ppss.directory / "out").rglob("*.txt")}
    assert made == {"a.txt", "b c.txt", "2019/d.txt"}
    many = ppss("enqueue", "--dry-run", "--", "echo", stdin=numbers(1234))
    assert len(many.lines) == 11 and many.lines[-1] == "# and 1,224 more"
    assert ppss.runs() == []
