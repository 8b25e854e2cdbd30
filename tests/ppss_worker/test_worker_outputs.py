"""What appears in the output directory and in the logs, by real workers."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import mounted

from ppss_queue.model import State
from ppss_queue.rules import RetryRule

if TYPE_CHECKING:
    from conftest import Site

COPY = 'cat "$ITEM" > "$OUTPUT_DIR/$OUTPUT_FILE"'
HOSTILE = [
    "a b",
    " lead",
    "$(touch injected)",
    "`touch injected`",
    "new\nline",
    "tab\there",
    "quo'te\"",
    "-rf",
    "back\\slash",
    "\udcff\udcfe",
    "ü",
    "*",
    "x" * 255,
    "semi;touch injected",
]


def tree(directory: Path) -> dict[str, str]:
    """All files below a directory with their contents."""
    return {
        str(path.relative_to(directory)): path.read_text(errors="replace")
        for path in directory.rglob("*")
        if path.is_file() or path.is_symlink()
    }


def make(directory: Path, names: list[str]) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"in {name}")


# Outputs


def test_outputs_mirror_the_source_tree_and_no_scratch_stays(site: Site) -> None:
    names = ["a", "b/a", "b/c/d e", "b/.hidden", ".dot/f", "b/c/$(touch injected)"]
    make(site.directory / "in", names)
    done = site.ppss("run", "in", "-p", "2", "-q", "-o", "out", "-c", COPY)
    assert done.returncode == 0, done.stderr
    assert tree(site.directory / "out") == {name: f"in {name}" for name in names}
    assert not list((site.directory / "out").rglob(".ppss"))
    assert not list(site.directory.rglob("injected"))


def test_several_sources_are_mirrored_under_their_own_names(site: Site) -> None:
    make(site.directory, ["one/x", "two/x", "two/y/z"])
    done = site.ppss("run", "one", "two", "-p", "2", "-q", "-o", "out", "-c", COPY)
    assert done.returncode == 0, done.stderr
    assert tree(site.directory / "out") == {name: f"in {name}" for name in ("one/x", "two/x", "two/y/z")}


def test_what_a_command_makes_appears_whole_with_directories_links_and_modes(site: Site) -> None:
    output = site.directory / "out"
    command = (
        'cd "$OUTPUT_DIR"; mkdir -p d/e empty; echo 1 > d/e/one; ln -s one d/e/link; echo 2 > .dot; '
        "chmod 750 .dot"
    )
    site.enqueue(["item"], command, output=str(output))
    site.burst()
    assert tree(output) == {"d/e/one": "1\n", "d/e/link": "1\n", ".dot": "2\n"}
    assert (output / "d/e/link").is_symlink()
    assert (output / ".dot").stat().st_mode & 0o777 == 0o750
    assert (output / "empty").is_dir()


def test_a_text_is_written_under_a_name_made_of_its_last_component(site: Site) -> None:
    output = site.directory / "out"
    items = ["plain", "http://host/page.html", "a/..", "x" * 300]
    site.enqueue(items, 'printf %s "$ITEM" > "$OUTPUT_DIR/$OUTPUT_FILE"', output=str(output))
    site.burst()
    assert tree(output) == {
        "plain": "plain",
        "page.html": "http://host/page.html",
        "item": "a/..",
        "x" * 200: "x" * 300,
    }


def test_names_that_a_shell_would_misread_give_one_output_each(site: Site) -> None:
    """Old faults 2 and 7: `a b`, `a.b`, `a_b` collided; `$(...)` in a name was executed."""
    output = site.directory / "out"
    items = [*HOSTILE[:12], HOSTILE[13], "a.b", "a_b"]
    run = site.enqueue(items, 'printf %s "$ITEM" > {out}', output=str(output))
    site.burst()
    assert site.states(run) == {"succeeded": len(items)}
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {
        item: os.fsencode(item) for item in items
    }
    assert not list(site.directory.rglob("injected"))


def test_a_failed_command_leaves_nothing_in_the_output_directory(site: Site) -> None:
    output = site.directory / "out"
    run = site.enqueue(["bad", "slow"], 'echo half > {out}; [ "$ITEM" = slow ] && sleep 1000; exit 3',
                       output=str(output), timeout_seconds=0.5)  # fmt: skip
    site.burst()
    assert site.states(run) == {"failed": 2}
    assert tree(output) == {}
    assert not list(output.iterdir())


def test_only_the_attempt_that_succeeded_is_seen(site: Site) -> None:
    output = site.directory / "out"
    command = (
        'echo "$PPSS_ATTEMPT" > "$OUTPUT_DIR/$PPSS_ATTEMPT"; [ "$PPSS_ATTEMPT" = 3 ] && '
        'ls "${OUTPUT_DIR%/*}" | wc -l > "$OUTPUT_DIR/scratches"'
    )
    site.enqueue(["x"], command, output=str(output), retry=RetryRule(3, 0.01))
    site.burst()
    assert tree(output) == {"3": "3\n", "scratches": "1\n"}


def test_files_from_before_the_run_are_replaced(site: Site) -> None:
    make(site.directory, ["in/x", "out/x", "out/other"])
    done = site.ppss("run", "in", "-q", "-p", "1", "-o", "out", "-c", f"{COPY}; echo new >> {{out}}")
    assert done.returncode == 0, done.stderr
    assert tree(site.directory / "out") == {"x": "in in/xnew\n", "other": "in out/other"}


def test_the_second_item_that_writes_a_name_fails_and_names_the_first(site: Site) -> None:
    output = site.directory / "out"
    run = site.enqueue(["first", "second"], 'echo "$ITEM" > "$OUTPUT_DIR/same"; echo "$ITEM" > {out}',
                       output=str(output), retry=RetryRule(3, 0.01))  # fmt: skip
    site.burst("-p", "1")
    assert tree(output) == {"same": "first\n", "first": "first\n"}
    assert site.item(run, "first").state is State.SUCCEEDED
    second = site.item(run, "second")
    assert second.outcome.reason == "writes 'same', which item 'first' (#1) of this run has written already"
    assert (second.state, second.attempts) == (State.FAILED, 1)


def test_a_command_that_writes_nothing_succeeds(site: Site) -> None:
    run = site.enqueue(["x"], "true", output=str(site.directory / "out"))
    site.burst()
    assert site.states(run) == {"succeeded": 1}


def test_items_whose_output_exists_are_skipped_if_asked_for(site: Site) -> None:
    make(site.directory, ["in/a", "in/d/b", "out/d/b"])
    options = ("-p", "1", "-q", "-o", "out", "--skip-existing")
    done = site.ppss("run", "in", *options, "-c", f'echo "$PPSS_ITEM" >> did; {COPY}')
    assert done.returncode == 0, done.stderr
    assert (site.directory / "did").read_text() == "a\n"
    assert (site.directory / "out/d/b").read_text() == "in out/d/b"
    run = site.queue.run("last")
    assert site.item(run, "d/b").outcome.reason == "skipped: its output exists"
    again = site.start("run", "in", *options, "-c", COPY)
    assert again.wait(8) == 0, again.log


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system for 256 KiB in 16 files and directories."""
    place = tmp_path / "small"
    with mounted(place, "size=256k,nr_inodes=16"):
        yield place


def test_a_full_disk_ends_the_worker_and_the_item_goes_back(site: Site, small_disk: Path) -> None:
    """Old fault 9: what could not be uploaded was SUCCESS all the same."""
    output = small_disk / "out"
    # What is in the scratch fits; there is no room for the directory that publishing has to make.
    fill = f"for n in {{1..16}}; do mkdir {small_disk}/$n; done 2> /dev/null"
    command = f'mkdir "$OUTPUT_DIR/d"; echo "$ITEM" > "$OUTPUT_DIR/d/$ITEM"; [ -e filled ] || {fill}; true'
    run = site.enqueue(["x", "y"], command, output=str(output))
    worker = site.worker("-p", "1")
    assert worker.wait(8) == 5, worker.log
    assert "No space left on device" in worker.log.splitlines()[-1]
    assert site.states(run) == {"ready": 2}
    assert [path.name for path in output.iterdir()] == [".ppss"]
    (site.directory / "filled").touch()
    for number in range(1, 17):
        with suppress(FileNotFoundError):
            (small_disk / str(number)).rmdir()
    site.burst()
    assert tree(output) == {"d/x": "x\n", "d/y": "y\n"}
    assert site.states(run) == {"succeeded": 2}


def test_a_run_whose_output_directory_can_not_be_made_is_left_to_other_nodes(site: Site) -> None:
    (site.directory / "file").write_text("")
    run = site.enqueue(["x"], "true", output=str(site.directory / "file"))
    other = site.enqueue(["y"], "true")
    worker = site.worker("--burst")
    assert worker.wait(8) == 2, worker.log
    assert f"run {run.id} can't be run here and is left to other nodes: can't write in output" in worker.log
    assert site.states(run) == {"ready": 1}
    assert site.states(other) == {"succeeded": 1}
    worker = site.worker("--run", run.id)
    assert worker.wait(8) == 2, worker.log
    assert "can't write in output directory" in worker.log.splitlines()[-1]


# Logs


def test_every_item_has_a_log_of_its_own_and_a_line_in_the_job_log(site: Site) -> None:
    """Old fault 2: names that look alike after cleaning shared one log."""
    items = [*HOSTILE, "a_b", "a/b", "fail"]
    run = site.enqueue(items, 'printf %s "$ITEM"; echo err >&2; [ "$ITEM" != fail ]')
    site.burst("--logs", "logs")
    logs = sorted((site.directory / "logs" / run.id).iterdir())
    assert [path.read_bytes() for path in logs] == [os.fsencode(item) + b"err\n" for item in items]
    assert all(path.name.isascii() and path.name.isprintable() for path in logs)
    assert not list(site.directory.rglob("injected"))


def test_the_job_log_is_one_that_readers_of_gnu_parallels_understand(site: Site) -> None:
    items = [*HOSTILE, "fail", "killed", "slow", "absent"]
    run = site.enqueue(
        items,
        'echo 12345; case $ITEM in fail) exit 7;; killed) kill -9 $$;; slow) trap "exit 0" TERM; sleep 9 & wait;; esac',
        timeout_seconds=3,
    )
    worker = site.worker("--burst", "--logs", "logs")
    assert worker.wait() == 0
    text = (site.directory / "logs" / f"{run.id}.joblog").read_text(errors="surrogateescape")
    header, *lines = text.splitlines()
    assert header == "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand"
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(lines) == len(items) == len(rows)
    rows.sort(key=lambda row: int(row["Seq"]))
    assert [int(row["Seq"]) for row in rows] == list(range(1, len(items) + 1))
    for item, row in zip(items, rows, strict=True):
        assert float(row["Starttime"]) > 1e9
        assert float(row["JobRuntime"]) > 0
        assert row["Receive"] == "6"
        shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {row['Command']}".encode(errors="surrogateescape")],
                               capture_output=True, check=True)  # fmt: skip
        assert shown.stdout == os.fsencode(item) + b"\0"
    ends = {item: (row["Exitval"], row["Signal"]) for item, row in zip(items, rows, strict=True)}
    assert ends["fail"] == ("7", "0")
    assert ends["killed"] == ("0", "9")
    assert ends["slow"][0] == "-1"  # it timed out, whatever it said at its end
    assert ends["a b"] == ("0", "0")


def test_two_workers_share_a_job_log_with_one_header(site: Site) -> None:
    run = site.enqueue([str(number) for number in range(40)], "sleep 0.01")
    workers = [site.worker("--burst", "--logs", str(site.directory / "logs")) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    lines = (site.directory / "logs" / f"{run.id}.joblog").read_text().splitlines()
    assert (len(lines), sum(line.startswith("Seq") for line in lines)) == (41, 1)


def test_a_relative_log_directory_is_where_the_worker_was_started(site: Site) -> None:
    (site.directory / "elsewhere").mkdir()
    run = site.enqueue(["x"], "true", directory=str(site.directory / "elsewhere"))
    site.burst("--logs", "logs")
    assert (site.directory / "logs" / f"{run.id}.joblog").exists()


def test_output_of_failed_items_is_kept_on_the_workers_disk_and_of_all_if_asked_for(
    site: Site, state_directory: Path
) -> None:
    command = 'echo "out of $ITEM"; echo "err of $ITEM" >&2; [ "$ITEM" = good ]'
    some = site.enqueue(["good", "bad"], command)
    everything = site.enqueue(["good", "bad"], command, keep_output=True)
    site.burst()
    kept = tree(state_directory / "logs")
    assert kept == {
        f"{some.id}/0000002.log": "out of bad\nerr of bad\n",
        f"{everything.id}/0000001.log": "out of good\nerr of good\n",
        f"{everything.id}/0000002.log": "out of bad\nerr of bad\n",
    }
    assert some.log("bad") == "out of bad\nerr of bad\n"
    assert (some.log("good"), everything.log("good")) == ("", "out of good\nerr of good\n")


def test_of_long_output_the_end_is_kept(site: Site, state_directory: Path) -> None:
    command = "head -c 200000 /dev/zero | tr '\\0' x; echo end; false"
    some = site.enqueue(["x"], command)
    everything = site.enqueue(["x"], command, keep_output=True)
    site.burst()
    kept = tree(state_directory / "logs")
    short, long = kept[f"{some.id}/0000001.log"], kept[f"{everything.id}/0000001.log"]
    assert short.startswith("[the first 134,468 bytes are left out]\nxxx")
    assert short.endswith("xend\n")
    assert len(short) == 65536 + len("[the first 134,468 bytes are left out]\n")
    assert long == "x" * 200000 + "end\n"
    assert some.log("x") == "x" * 4092 + "end\n"


def test_the_log_of_a_function_tells_each_line_once(site: Site, state_directory: Path) -> None:
    (site.directory / "functions.py").write_text(
        "def do(item):\n    print('hello')\n    raise SystemExit(1)\n"
    )
    run = site.enqueue(["x"], "python:functions:do")
    site.burst()
    assert tree(state_directory / "logs") == {f"{run.id}/0000001.log": "hello\n"}


def test_a_command_that_was_not_found_has_a_log_that_says_so(site: Site, state_directory: Path) -> None:
    run = site.enqueue(["x"], ["no-such-program"])
    site.burst()
    (log,) = tree(state_directory / "logs").values()
    assert log == "'no-such-program': command not found. Install it on this node, or mend PATH.\n"
    assert run.status().failed == 1


def test_a_full_disk_for_logs_ends_the_worker_with_exit_code_5(site: Site, small_disk: Path) -> None:
    run = site.enqueue(["x", "y", "z"], "head -c 1M /dev/zero", output=None)
    worker = site.worker("-p", "1", "--logs", str(small_disk / "logs"))
    assert worker.wait(8) == 5, worker.log
    states = site.states(run)
    assert states.get("leased", 0) == 0, "nothing stays leased by a worker that has ended"
    assert sum(states.values()) == 3


def test_a_command_that_never_stops_printing_does_not_stop_the_clock(site: Site) -> None:
    (site.directory / "list").write_text("x\n")
    options = ("-p", "1", "--line-buffer", "--timeout", "500ms", "-f", "list")
    done = site.start("run", *options, "-c", "yes {}")
    assert done.wait(15) == 1, done.log
    assert "timed out after 500 ms" in done.log
