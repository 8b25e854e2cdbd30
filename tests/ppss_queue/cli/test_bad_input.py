"""What is wrong is said in one sentence, with what to do; nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import missing, wait_until

if TYPE_CHECKING:
    from conftest import Ppss

from ppss_queue.address import Address
from ppss_queue.connection import Connection
from ppss_queue.errors import ConnectFailed
from ppss_queue.queue import connect

NOTHING_LEFT_BEHIND = ("run", "enqueue")


@pytest.fixture(autouse=True)
def place(ppss: Ppss, files: Path) -> None:
    """Beside `scans`: an empty directory, and a file."""
    (ppss.directory / "empty").mkdir()
    (ppss.directory / "afile").touch()


SOURCES_AND_COMMANDS = {
    "run scnas/ -c CMD": "no such file or directory: 'scnas/'. Did you mean 'scans/'?",
    "run scans/b -c CMD": "no such file or directory: 'scans/b'. ",
    "run -f nolist -c CMD": "no such file or directory: 'nolist'. ",
    "run -f scans -c CMD": "'scans' is a directory, not a list. Leave -f out to take the files in it.",
    "run - -c CMD": "for a list on stdin write -f -, or name no source at all",
    "run scans": "there is no command: give one with -c CMD, or as words: -- PROG ARG...",
    "run scans gzip": "there is no command: ",
    "run scans --": "there is no command after '--'. Write -- PROG ARG...",
    "run scans -c ''": "the command is empty. Write -c ",
    "run scans -c CMD -- CMD": "there are two commands: give either -c CMD or -- PROG ARG...",
    "run scans -c nosuchprogram": "'nosuchprogram' is not found on this machine. Install it, or pass --no-check ",
    "run scans -- nosuchprogram": "'nosuchprogram' is not found on this machine. Install it, or pass --no-check ",
    "run scans -- afile": "'afile' is not found on this machine. ",
    "run scans -- ./afile": "afile' is not executable. Make it so with chmod +x, or name its interpreter.",
    "enqueue scans -- nosuchprogram": "'nosuchprogram' is not found on this machine. ",
    "run scans -c 'cp $ITEM $OUTPUT_DIR'": "he command names an output directory, but there is none. Give one: -o DIR",
    "run scans -- cp {} {out}": "he command names an output directory, but there is none. Give one: -o DIR",
    "run scans -o afile -c CMD": "the output directory 'afile' is a file. Name a directory.",
    "run scans -o afile/deep/er -c CMD": "the output directory 'afile/deep/er' would be below the file ",
    "run scans -c 'echo \"$ITEM'": "a double quote of the command is never closed, ",
    'run scans -c "echo \'{}"': "a single quote of the command is never closed, ",
    "run scans -c 'for x in $ITEM; done'": "bash can't read the command (syntax error near ",
    "run scans --logs afile -- echo": "the log directory 'afile' is a file. Name a directory.",
    "run scans -c CMD -c CMD": "--command is there twice: give one",
    "run -f a -f b -c CMD": "--list is there twice: give one",
    "run scans --name a --name b -c CMD": "--name is there twice: give one",
    "run -0 --delimiter , -- echo": "-0 and --delimiter exclude each other: leave one out",
    "run --delimiter '' -- echo": "--delimiter is empty. Write --delimiter ,",
    "run scans -0 -- echo": "--null is about the lines of a list, and there is none: -f LIST, or -f - for stdin",
    "run scans --files -- echo": "--files is about the lines of a list, ",
    "run --include '*.txt' -- echo": "--include is about the files of directories, and none is named",
    "run --order size -- echo": "only files have a size to order by, ",
    "run scans --retry-failed -- echo": "--retry-failed goes with --resume RUN",
    "run --resume nosuch": "here is no run 'nosuch'. See which there are: ppss status",
    "run --resume last": "here is no run yet. Make one: ppss run DIR -c COMMAND",
    "enqueue scans --into nosuch": "here is no run 'nosuch'. ",
    "enqueue scans --into last -- echo": "--into adds items to a run as it was made: leave its command out",
    "run scans --also {.}.xmp -- echo": "--also is about files that are copied to nodes: add --stage",
    "run scans --with afile -- echo": "--with is about files that are copied to nodes: add --stage",
    "run scans --verify -- echo": "--verify is about files that are copied to nodes: add --stage",
    "run scans --return {.}.png -- echo": "--return moves files to an output directory, and there is none: -o DIR",
    "run scans -o out --return x.png -- echo": "--return 'x.png' names the same file for every item. ",
    "run scans --stage --also x.xmp -- echo": "--also 'x.xmp' names the same file for every item. ",
    "run scans --stage --with nosuch -- echo": "--with 'nosuch' can't be read (No such file or directory). Check it.",
    "run scans --stage --with empty -- echo": "--with 'empty' is a directory. Name its files: ",
    "run scans --stage --with /etc/passwd -- echo": "--with '/etc/passwd' is not below the current directory, ",
    "enqueue scans --into last --retries 3": "--into adds items to a run as it was made: leave --retries out",
}


@pytest.mark.parametrize("line", SOURCES_AND_COMMANDS)
def test_wrong_sources_and_commands_are_found_before_anything_is_enqueued(ppss: Ppss, line: str) -> None:
    done = ppss.shell(f"ppss {line.replace('CMD', 'true')} </dev/null")
    assert SOURCES_AND_COMMANDS[line] in done.refused()
    assert ppss.runs() == []


VALUES = {
    "--slots": ("x", "", "5.5%%"),
    "--retries": ("x", "-1"),
    "--max-lost": ("x", "-1"),
    "--max-depth": ("0", "x"),
    "--priority": ("0", "1001"),
    "--nice": ("20", "x"),
    "--timeout": ("10q", "0", "-1"),
    "--grace": ("x",),
    "--retry-delay": ("x",),
    "--delay": ("x",),
    "--keep": ("x",),
    "--visibility": ("0.5", "x"),
    "--order": ("biggest",),
}
SENTENCES = {
    "--halt": "'x' is no halt rule. Write now,fail=1 or soon,fail=10%.",
    "--retry-on": "'x' is no list of exit codes for --retry-on. Write 1,75",
    "--no-retry-on": "'x' is no list of exit codes for --no-retry-on. Write 1,75",
    "--env": "'x' is no exported variable or function. Export it first: export x",
    "--name": "'last' can't be a run's name: ",
    "--replace": "'a b' can't be a replacement string (-I): ",
    "--url": "'x' is no address of a Redis server that PPSS can use: ",
}


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, bad in VALUES.items() for value in bad]
)
def test_bad_values_are_refused_by_name(ppss: Ppss, option: str, value: str) -> None:
    said = ppss("run", "scans", f"{option}={value}", "--", "true").refused()
    assert said.startswith(f"{option}: '{value}' is ")


@pytest.mark.parametrize("option", SENTENCES)
def test_bad_texts_are_refused_with_an_example(ppss: Ppss, option: str) -> None:
    value = {"--name": "last", "--replace": "a b"}.get(option, "x")
    assert ppss("run", "scans", option, value, "--", "true").refused().startswith(SENTENCES[option])


@pytest.mark.parametrize("verb", ["run", "worker"])
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb\x1b[31m", r"a\x0ab\x1b[31m"),
        ("a b", "a b"),
        ("", ""),
        ("\u00a0", r"\xc2\xa0"),
        ("x" * 5000, "x" * 31 + "…" + "x" * 32),
    ],
)
def test_a_node_name_that_would_break_tables_is_refused(ppss: Ppss, verb: str, name: str, shown: str) -> None:
    why = f"'{shown}' can't name a machine. Give 1 to 64 printable characters without blanks."
    assert ppss(verb, "--node-name", name).refused() == f"--node-name: {why}"
    if name:  # an empty variable counts as none
        assert ppss(verb, env={"PPSS_NODE_NAME": name}).refused() == f"PPSS_NODE_NAME: {why}"
    (ppss.directory / "ppss.toml").write_text(f"node-name = {json.dumps(name)}\n")
    assert ppss(verb).refused() == f"'node-name' in ppss.toml: {why}"


def test_a_node_name_may_be_long_and_not_ascii(ppss: Ppss) -> None:
    name = "knöten-" + "x" * 57
    assert ppss("run", "-q", "--node-name", name, "--", "true", stdin="1\n").code == 0
    assert ppss.items()[0]["node"] == name


OTHER_TOOLS = {
    "-r": "there is no option -r here: nothing runs anyway when there are no items.",
    "-n1 true": "-n 1: a command gets one item. -n names a file with a list of nodes.",
    "-L 1": "there is no option -L here: a command gets one item, a line of the list.",
    "-N2": "there is no option -N here: a command gets one item.",
    "-a list": "there is no option -a here: lists are read with -f FILE.",
    "-t": "there is no option -t here: see what would run with --dry-run.",
    "--joblog x": "there is no option --joblog here: a job log is written with --logs DIR.",
    "-d ,": "-d names a directory, and there is none called ','. For a delimiter: --delimiter ','",
    "-9": "there is no option -9 here. If it belongs to the command, write that last: -- PROG -9 ARG...",
    "--retrys 3": "there is no option --retrys here. Did you mean --retries?",
    "--bogus": "there is no option --bogus here. If it belongs to the command, ",
    "--json": "there is no option --json here. If it belongs to the command, ",
    "echo ::: a b": "':::' is not there yet. Give items as lines: ",
    "-- echo ::: a b": "':::' is not there yet. Give items as lines: ",
    "-p": "option '-p' requires an argument. See: ppss run --help",
}


@pytest.mark.parametrize("words", OTHER_TOOLS)
def test_words_of_other_tools_are_answered_with_what_does_their_work(ppss: Ppss, words: str) -> None:
    assert ppss("run", *words.split(" ")).refused().startswith(OTHER_TOOLS[words])


VERBS = {
    "frobnicate": "there is no verb 'frobnicate'. See: ppss --help",
    "stat": "there is no verb 'stat'. Did you mean 'status'?",
    "--frob": "there is no option --frob here. Options follow their verb: ppss VERB --frob",
    "status nosuch": "here is no run 'nosuch'. See which there are: ppss status",
    "items nosuch": "here is no run 'nosuch'. ",
    "items last": "here is no run yet. ",
    "items --state x": "--state: 'x' is not one of 'ready', 'leased', 'delayed', 'succeeded', 'failed', 'cancelled'.",
    "items --csv --json": "--csv and --json exclude each other: leave one out",
    "items --json --names": "--names and --json exclude each other: leave one out",
    "log last": "ITEM is missing. Usage: ppss log [OPTION]... RUN ITEM",
    "log nosuch x": "here is no run 'nosuch'. ",
    "retry nosuch": "here is no run 'nosuch'. ",
    "pause nosuch": "here is no run 'nosuch'. ",
    "resume nosuch": "here is no run 'nosuch'. ",
    "cancel nosuch": "here is no run 'nosuch'. ",
    "purge nosuch": "here is no run 'nosuch'. ",
    "purge": "name the runs to forget, or give --all",
    "wait nosuch": "here is no run 'nosuch'. ",
    "wait --timeout x": "--timeout: 'x' is no time. ",
    "attach nosuch": "here is no run 'nosuch'. ",
    "worker -p 0": "a worker needs at least one slot: -p 1",
    "worker --run nosuch": "here is no run 'nosuch'. ",
    "worker --scratch-limit lots": "--scratch-limit: 'lots' is no size. Write bytes, or a number with K, M, G or T, ",
    "worker --bwlimit 0": "--bwlimit: '0' is too little. Give at least one byte.",
    "worker --stage-ahead x": "--stage-ahead: 'x' is no number from 0 up.",
    "worker --map /data": "'/data' maps nothing. Write two absolute directories: --map /data=/mnt/data",
    "worker --map /data=/nosuch": "'/nosuch' of --map '/data=/nosuch' is no directory on this node. Mount it first.",
    "worker --": "there is no command after '--'. ",
    "worker scans": "got unexpected extra argument (scans). See: ppss worker --help",
    "server": "ACTION is missing. Usage: ppss server [OPTION]... {start|stop|status|run}",
    "server frob": "ACTION: 'frob' is not one of 'start', 'stop', 'status', 'run'.",
    "completion tcsh": "SHELL: 'tcsh' is not one of ",
    "dashboard --port x": "--port: 'x' is no number from 0 to 65535.",
}


@pytest.mark.parametrize("line", VERBS)
def test_every_verb_refuses_what_it_does_not_know(ppss: Ppss, line: str) -> None:
    assert VERBS[line] in ppss(*line.split()).refused()


@pytest.mark.parametrize("verb", ["log", "retry", "cancel"])
def test_unknown_items_change_nothing(ppss: Ppss, verb: str) -> None:
    assert ppss("enqueue", "-c", "true", stdin="1\n").code == 0
    run = ppss.status()["run"]
    for item in ("nosuch", "#99"):
        said = ppss(verb, "last", item).refused()
        assert f"un {run} has no item " in said and said.endswith(f"See which there are: ppss items {run}")
    if verb != "log":
        assert ppss(verb, "last", "1", "nosuch").code == 2
    assert ppss.status()["ready"] == 1


@pytest.mark.parametrize("verb", NOTHING_LEFT_BEHIND)
def test_no_items_is_said_and_no_failure(ppss: Ppss, verb: str) -> None:
    for arguments in (["empty"], ["scans", "--include", "*.pdf"], []):
        done = ppss(verb, *arguments, "-c", "true")
        assert (done.code, done.err) == (0, "ppss: there are no items, so there is nothing to do.\n")
    if verb == "run":
        assert ppss.runs() == []
    else:
        assert ppss("wait", "-q", "last").code == 0


def test_no_check_lets_a_missing_program_fail_item_by_item(ppss: Ppss) -> None:
    done = ppss("run", "scans", "--no-check", "--", "nosuchprogram")
    assert done.code == 1 and "3 failed alike · exit 127" in done.err


def test_a_name_in_use_is_refused(ppss: Ppss) -> None:
    assert ppss("enqueue", "--name", "mine", "-c", "true", stdin="1\n").code == 0
    assert "he name 'mine' belongs to run" in ppss("run", "scans", "--name", "mine", "-c", "true").refused()
    assert len(ppss.runs()) == 1


def test_sources_behind_the_dashes_are_words_of_the_command(ppss: Ppss) -> None:
    done = ppss("run", "--", "wc", "scans/")
    assert done.code == 0
    assert done.err == "ppss: there are no items, so there is nothing to do. Sources stand before '--'.\n"


@pytest.fixture
def powerless() -> list[str]:
    """A program to start others in, for whom permissions count: root reads everything unless it gives that up."""
    if os.getuid():
        return []
    if not shutil.which("setpriv"):
        missing("setpriv, with which root gives up that it reads everything")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_an_output_directory_that_can_not_be_written(ppss: Ppss, powerless: list[str]) -> None:
    (ppss.directory / "empty").chmod(0o500)
    said = ppss.shell("ppss run scans -o empty/out -c true", powerless).refused()
    assert (
        said
        == f"you can't write in '{ppss.directory}/empty', so no output can appear. Choose another -o DIR."
    )
    assert ppss.runs() == []
    assert ppss.shell("ppss enqueue scans -o empty/out -c true", powerless).code == 0, (
        "a worker elsewhere may"
    )


def test_directories_that_can_not_be_read(ppss: Ppss, files: Path, powerless: list[str]) -> None:
    (files / "2019").chmod(0)
    try:
        named = ppss.shell("ppss run scans/2019 -c true", powerless)
        below = ppss.shell("ppss run scans -q -c true", powerless)
    finally:
        (files / "2019").chmod(0o755)
    assert named.refused() == "can't read 'scans/2019': Permission denied. Check it and its permissions."
    assert below.code == 0
    assert below.err.startswith("ppss: directories that can't be read, skipped: '2019' (Permission denied)\n")
    assert [run["total"] for run in ppss.runs()] == [2]


# the server


def test_an_unreachable_server(ppss: Ppss) -> None:
    done = ppss("run", "scans", "-c", "true", "--url", "redis://127.0.0.1:1")
    assert done.refused(3).startswith(
        "nothing listens at redis://127.0.0.1:1 (connection refused). Start Redis there, "
    )
    assert "(no such socket)" in ppss("status", env={"PPSS_URL": "unix:///nosuch"}).refused(3)


def test_a_server_that_dies_is_named_with_what_to_do_once_it_is_back(
    ppss: Ppss, own_server: Callable[..., str], end: Callable[..., tuple[int, str, str]]
) -> None:
    ppss.environment["PPSS_URL"] = own_server()
    (ppss.directory / "list").write_text("1\n2\n")
    process = ppss.start("run", "-q", "-p1", "-f", "list", "-c", "touch up; sleep 60; : {}")
    wait_until((ppss.directory / "up").exists, "an item runs")
    run = ppss.status()["run"]
    redis(ppss, "SHUTDOWN", "NOSAVE")
    code, _, err = end(process, signal.SIGINT)
    assert code == 3
    assert err.splitlines()[-1] == f"when Redis is back, go on: ppss run --resume {run}"


def test_wrong_passwords(ppss: Ppss, own_server: Callable[..., str]) -> None:
    url = own_server("--requirepass", "right")
    assert "wants a password: write it into the address" in ppss("status", "--url", url).refused(3)
    wrong = ppss("run", "scans", "-c", "true", "--url", url.replace("//", "//:wrong@")).refused(3)
    assert "refuses this user or password" in wrong and "wrong@" not in wrong
    right = url.replace("//", "//:right@")
    done = ppss("run", "scans", "-c", "false", "--url", right)
    assert done.code == 1 and "right" not in done.err
    placeholder = right.replace(":right@", ":PASSWORD@")
    again = done.err.splitlines()[-1].partition("again: ")[2]
    assert again.endswith(f" --retry-failed --url {placeholder}")
    assert ppss.shell(again.replace("PASSWORD", "right")).code == 1, "it can be pasted and filled in"


@pytest.mark.parametrize("where", ["environment", "ppss.toml"])
def test_commands_to_paste_carry_no_address_that_the_next_one_finds_again(
    ppss: Ppss, own_server: Callable[..., str], where: str
) -> None:
    url = own_server("--requirepass", "right").replace("//", "//:right@")
    if where == "environment":
        ppss.environment["PPSS_URL"] = url
    else:
        del ppss.environment["PPSS_URL"]
        (ppss.directory / "ppss.toml").write_text(f'url = "{url}"\n')
    done = ppss("run", "scans", "-c", "false")
    assert done.code == 1 and "--url" not in done.err and "right" not in done.err
    assert ppss.shell(done.err.splitlines()[-1].partition("again: ")[2]).code == 1


def test_out_of_memory_in_mid_enqueue_leaves_nothing(ppss: Ppss, own_server: Callable[..., str]) -> None:
    url = own_server("--maxmemory", "8mb")
    ppss.environment["PPSS_URL"] = url
    names = b"".join(b"%0200d\n" % n for n in range(30_000))
    said = ppss("enqueue", "-c", "true", stdin=names).refused(3)
    assert "is out of memory (maxmemory 8 MiB)" in said and "Raise maxmemory" in said
    assert re.search(r"after about [1-3]\d,\d00 items", said) and "othing of the run" in said
    assert ppss.runs() == []
    with Connection.open(Address.parse(url)) as connection:
        keys = connection.execute("KEYS", "*")
        assert isinstance(keys, list)
        assert {key for key in keys if isinstance(key, bytes) and not key.startswith(b"ppss:")} <= {
            b"rq:queues"
        }
    assert ppss("run", "-q", "-c", "true", stdin="1\n").code == 0


def redis(ppss: Ppss, *command: str) -> None:
    address = Address.parse(ppss.environment["PPSS_URL"])
    with Connection.open(address) as connection, suppress(ConnectFailed):  # SHUTDOWN has no answer
        connection.execute(*command)


@pytest.mark.parametrize("line", ["status", "run scans -c true", "worker --burst"])
def test_foreign_data_under_our_keys(ppss: Ppss, line: str) -> None:
    for key in ("ppss:runs", "ppss:tokens", "ppss:names", "rq:queues"):
        redis(ppss, "LPUSH", key, "x")
        said = ppss(*line.split()).refused()
        assert said == f"the key {key} holds data of another program. Remove it, or use another database."
        redis(ppss, "DEL", key)
    with connect(ppss.environment["PPSS_URL"]) as queue:
        assert queue.connection.execute("KEYS", "*") == []


def test_into_adds_nothing_of_a_list_with_a_mistake(ppss: Ppss, tmp_path: Path) -> None:
    """Half of the items were in, claimable, and nobody said so."""
    assert ppss("enqueue", "-c", "true", stdin="a\n").code == 0
    (tmp_path / "list").write_bytes(b"b\n" * 20_000 + b"with\0NUL\n")
    assert "NUL" in ppss("enqueue", "-f", "list", "--into", "last").refused()
    assert [run["total"] for run in ppss.runs()] == [1]
    done = ppss("enqueue", "--into", "last", stdin="b\n")
    assert done.code == 0 and "no worker is there" in done.err


def test_a_run_that_is_still_filled_takes_no_other_items(ppss: Ppss, end: Callable[..., object]) -> None:
    process = ppss.start("enqueue", "-c", "true", stdin=subprocess.PIPE)
    wait_until(ppss.runs, "the run is made")
    assert "is still being filled" in ppss("enqueue", "--into", "last", stdin="b\n").refused()
    assert "is still being filled, with 0 items so far" in ppss("wait", "--timeout", "0.1").err
    process.send_signal(signal.SIGTERM)
    code, _, err = process.wait(20), *process.communicate()
    assert code == 130 and "interrupted: nothing of the run is left" in err
    assert ppss.runs() == []


def test_a_filling_that_was_killed_goes_away_without_a_worker(ppss: Ppss) -> None:
    process = ppss.start("enqueue", "-c", "true", stdin=subprocess.PIPE)
    wait_until(ppss.runs, "the run is made")
    process.kill()
    process.wait(20)
    (run,) = ppss.runs()
    redis(ppss, "ZADD", "ppss:filling", "1", run["run"])
    assert "no runs" in ppss("status").out
    with connect(ppss.environment["PPSS_URL"]) as queue:
        keys = queue.connection.execute("KEYS", "*")
        assert isinstance(keys, list) and not [key for key in keys if run["run"].encode() in bytes(key)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("/tmp", "'/tmp' is a directory, not a program"),
        ("echo (", "after an unclosed '(', none can be appended"),
        ("shout {}", "'shout' is a function of this shell. Carry it along: --env shout"),
    ],
)
def test_commands_that_are_something_else(ppss: Ppss, files: Path, command: str, says: str) -> None:
    environment = {"BASH_FUNC_shout%%": "() { :; }"}
    assert says in ppss("run", files, "-c", command, env=environment).refused()


def test_an_output_directory_that_can_not_be_made(ppss: Ppss, files: Path) -> None:
    """Root may write in /proc, as far as access() tells."""
    said = ppss("run", files, "-c", "true {out}", "-o", "/proc/xx").refused()
    assert said == (
        "the output directory '/proc/xx' can't be made (No such file or directory). Choose another -o DIR."
    )
    assert ppss.runs() == []


def test_more_slots_than_files_may_be_open(ppss: Ppss, files: Path) -> None:
    for verb in ("run scans -c true", "worker --burst"):
        said = ppss.shell(f"ulimit -n 500; ppss {verb} -p 100").refused()
        assert said == "-p 100 is too much: this user may open 500 files (ulimit -Hn), enough for 54 slots."
    assert ppss.runs() == []
    assert ppss.shell("ulimit -Sn 100; ppss run scans -q -p 30 -c true").code == 0


def test_a_run_without_a_command_can_not_be_resumed(ppss: Ppss, files: Path) -> None:
    assert ppss("enqueue", files).code == 0
    run = ppss.runs()[0]["run"]
    assert ppss("run", "--resume", "last").refused() == (
        f"run {run} has no command. Give it one: ppss worker --burst --run {run} -c COMMAND"
    )


@pytest.mark.parametrize("command", ["echo '", "echo {out"])
def test_a_workers_own_command_is_looked_at_before_it_starts(ppss: Ppss, command: str) -> None:
    if "'" in command:
        assert "quote" in ppss("worker", "--burst", "-c", command).refused()
    else:
        assert ppss("worker", "--burst", "-q", "-c", command).code == 0


def test_a_python_function_that_is_not_there(ppss: Ppss, files: Path) -> None:
    assert "names no function" in ppss("run", files, "-c", "python:lengths").refused()
    assert (
        "no Python module 'nosuch' on this machine" in ppss("run", files, "-c", "python:nosuch.a:f").refused()
    )
    assert ppss.runs() == []


def test_an_id_that_can_not_be_told(ppss: Ppss, files: Path) -> None:
    """A script that enqueues again after a failure would do all twice, without knowing of the first run."""
    done = ppss.shell("ppss enqueue scans -c true >&-")
    assert done.refused() == "stdout is closed, so the run's id could not be told. Send it somewhere: > id"
    assert ppss.runs() == []
    done = ppss.shell("ppss enqueue scans -c true > /dev/full")
    assert done.code == 5 and f"the items are in run {ppss.runs()[0]['run']}, which" in done.err


VERBS_ON_DATA = [
    "run scans -c true",
    "worker --burst",
    "status",
    "items last",
    "retry last",
    "cancel last",
    "wait last",
]


@pytest.mark.parametrize("line", VERBS_ON_DATA)
def test_a_newer_schema(ppss: Ppss, line: str) -> None:
    """No verb looks at, or changes, what it can't understand."""
    assert ppss("enqueue", "scans", "-c", "true").code == 0
    redis(ppss, "SET", "ppss:schema", "99")
    assert (
        ppss(*line.split()).refused() == "this Redis is used by a newer PPSS (schema 99). Upgrade this one."
    )
    redis(ppss, "SET", "ppss:schema", "hello")
    assert "ppss:schema holds data of another program" in ppss(*line.split()).refused()
    redis(ppss, "SET", "ppss:schema", "1")
    assert [run["ready"] for run in ppss.runs()] == [run["total"] for run in ppss.runs()]


@pytest.mark.parametrize("line", ["status", "worker --burst", "items last"])
def test_another_prefix_of_rqs_keys(ppss: Ppss, line: str) -> None:
    """It would see none of the items, and take the run for done."""
    assert ppss("enqueue", "scans", "-c", "true").code == 0
    said = ppss(*line.split(), env={"RQ_KEY_PREFIX": "other"}).refused()
    assert said == "the runs in this Redis were made with RQ_KEY_PREFIX=rq: set it to that here too."


@pytest.mark.parametrize("spec", ["", "notjson", "[]", "{}"])
def test_a_run_that_is_not_ours(ppss: Ppss, spec: str) -> None:
    redis(ppss, "HSET", "ppss:run:abcd", "spec", spec)
    redis(ppss, "ZADD", "ppss:runs", "1", "abcd")
    for line in ("status", "items abcd", "status abcd --json"):
        said = ppss(*line.split()).refused()
        assert said.startswith("the key ppss:run:abcd holds data that PPSS did not write"), said


# disks


@pytest.fixture
def tmpfs() -> list[str]:
    """A program to start others in, which may mount file systems that nobody else sees."""
    program = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else [])]
    probe = subprocess.run(
        [*program, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        missing(f"file system that can be mounted ({probe.stderr.strip()})")
    return program


def test_a_full_disk_below_the_output_directory_is_this_machines_failure(
    ppss: Ppss, tmpfs: list[str]
) -> None:
    (ppss.directory / "out").mkdir()
    done = ppss.shell(
        "mount -t tmpfs -o size=64k none out && "
        "seq 5 | ppss run -p1 -o out -c 'head -c 100000 /dev/zero > {out} && : {}'",
        tmpfs,
    )
    assert done.code == 5 and "5 left, nothing lost" in done.err


def test_a_full_disk_for_logs_ends_the_run_with_5(ppss: Ppss, tmpfs: list[str]) -> None:
    (ppss.directory / "logs").mkdir()
    mount = "mount -t tmpfs -o size=64k none logs && "
    done = ppss.shell(
        f"{mount} seq 5 | ppss run -p1 -q --logs logs -c 'head -c 100000 /dev/zero; : {{}}'", tmpfs
    )
    full, left, go_on = done.err.splitlines()[-3:]
    assert done.code == 5 and "nothing lost" in left
    named = re.fullmatch(r"ppss: the disk is full \('(/.*)'\)\. Free space, then go on\.", full)
    assert named and re.fullmatch(rf"{ppss.directory}/logs/\w+/0000001-1\.log", named[1]), full
    assert ppss.status()["leased"] == 0 and ppss.status()["ready"] >= 3
    assert ppss.shell(go_on.removeprefix("go on: ")).code == 0
    assert ppss("enqueue", "-c", "head -c 100000 /dev/zero; : {}", stdin="1\n2\n").code == 0
    done = ppss.shell(f"{mount} ppss worker -p1 --burst --logs logs", tmpfs)
    assert done.code == 5 and done.err.splitlines()[-1].startswith("ppss: the disk is full ('/")
    assert ppss.status()["leased"] == 0


def test_an_item_whose_log_found_no_room_is_in_the_job_log(ppss: Ppss, tmpfs: list[str]) -> None:
    """It has succeeded, and no later run writes its line."""
    (ppss.directory / "logs").mkdir()
    run = "ppss run -p1 -q --logs logs -c 'head -c 100000 /dev/zero; : {}'"
    done = ppss.shell(
        f"mount -t tmpfs -o size=64k none logs && seq 5 | {run}; echo $?; cat logs/*.joblog", tmpfs
    )
    code, header, *lines = done.lines
    assert code == "5" and header.startswith("Seq\t")
    assert [line.split("\t")[0] for line in lines] == [str(n + 1) for n in range(ppss.status()["succeeded"])]


def test_a_job_log_that_finds_no_room_is_named(ppss: Ppss, tmpfs: list[str]) -> None:
    (ppss.directory / "logs").mkdir()
    fill = "mount -t tmpfs -o size=64k none logs && { head -c 100000 /dev/zero > logs/full; true; }"
    done = ppss.shell(f"{fill} 2>/dev/null; seq 5 | ppss run -p1 -q --logs logs -- true", tmpfs)
    assert done.code == 5 and re.search(r"the disk is full \('/.*/logs/\w+\.joblog'\)", done.err), done.err
