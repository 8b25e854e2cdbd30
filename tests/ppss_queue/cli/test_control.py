"""ppss retry, pause, resume, cancel, purge, enqueue, worker."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import wait_until

if TYPE_CHECKING:
    from conftest import Ppss

End = Callable[..., tuple[int, str, str]]


def states(ppss: Ppss, run: str = "last") -> list[str]:
    return [row["state"] for row in ppss.items(run)]


def test_enqueue_prints_only_the_id_and_says_when_no_worker_is_there(ppss: Ppss) -> None:
    done = ppss("enqueue", "--", "true", stdin="1\n")
    assert done.out == ppss.status()["run"] + "\n"
    assert done.err == "ppss: no worker is there. Start one here or on another machine: ppss worker\n"
    facts = json.loads(ppss("enqueue", "--json", "--name", "second", "--", "true", stdin="1\n2\n").out)
    assert facts == {"run": ppss.status("second")["run"], "name": "second", "total": 2, "state": "open"}


def test_enqueue_into_adds_items_and_opens_a_run_that_was_done(ppss: Ppss) -> None:
    assert ppss("run", "-q", "--", "true", stdin="1\n").code == 0
    done = ppss("enqueue", "--into", "last", "--json", stdin="2\n3\n")
    assert json.loads(done.out) == {"run": ppss.status()["run"], "added": 2, "total": 3}
    assert states(ppss) == ["succeeded", "ready", "ready"]


def test_items_without_a_command_wait_for_a_worker_that_has_one(ppss: Ppss) -> None:
    done = ppss("enqueue", stdin="1\n2\n")
    worker = f"its items wait for a worker that has one: {'ppss worker -c COMMAND'}"
    assert done.err == f"ppss: run {done.out.strip()} has no command: {worker}\n"
    assert ppss("worker", "-q", "--burst").code == 0 and states(ppss) == ["ready", "ready"]
    assert ppss("worker", "-q", "--burst", "--", "test", "2", "-eq").code == 0
    assert states(ppss) == ["failed", "succeeded"]


def test_retry_puts_all_or_named_items_back(ppss: Ppss) -> None:
    assert ppss("run", "-q", "--", "false", stdin="a\nb\nc\n").code == 1
    run = ppss.status()["run"]
    done = ppss("retry", "last", "a", "#3")
    assert (done.code, done.out) == (0, "")
    assert done.err.splitlines()[0] == f"run {run}: 2 items ready again"
    assert states(ppss) == ["ready", "failed", "ready"]
    assert ppss("retry", run).err.startswith(f"run {run}: 1 item ready again\n")
    assert states(ppss) == ["ready"] * 3
    assert ppss("retry", run).err == f"run {run}: 0 items ready again\n"


def test_retry_tells_the_state_of_named_items_that_have_not_failed(ppss: Ppss) -> None:
    names = ["a", "bad", "c", "d", "new\nline"]
    command = ["-c", 'test "$ITEM" != bad']
    assert ppss("run", "-q", "-0", *command, stdin="\0".join(names)).code == 1
    run = ppss.status()["run"]
    assert ppss("retry", run, "a", "#5").err == (
        f"run {run}: 0 items ready again; not failed: 'new\\x0aline' (succeeded), 'a' (succeeded)\n"
    )
    done = ppss("retry", run, *names)
    shown = "'a' (succeeded), 'c' (succeeded), 'd' (succeeded), ..."
    assert done.err.startswith(f"run {run}: 1 item ready again; not failed: {shown}\n")
    assert "; not failed: 'bad' (ready)\n" in ppss("retry", run, "bad").err


def test_pause_hands_nothing_out_and_resume_goes_on(ppss: Ppss) -> None:
    run = ppss("enqueue", "--", "true", stdin="a\nb\n").out.strip()
    assert ppss("pause", "last").err == (
        f"run {run} paused: 0 items still running, 2 ready\ngo on: ppss resume {run}\n"
    )
    assert ppss.status()["state"] == "paused"
    assert ppss("status").lines[1].split()[1] == "paused"
    assert ppss("worker", "-q", "--burst").code == 0 and ppss.status()["ready"] == 2
    assert ppss("resume", "last").err.startswith(f"run {run} goes on: 2 items left\n")
    assert ppss("worker", "-q", "--burst").code == 0 and ppss.status()["succeeded"] == 2
    for verb in ("pause", "resume"):
        assert ppss(verb, "last").refused().endswith(f"un {run} is done.")


def test_cancel_items_or_the_run(ppss: Ppss) -> None:
    run = ppss("enqueue", "--", "true", stdin="a\nb\nc\n").out.strip()
    assert ppss("cancel", run, "b", "#3").err == f"run {run}: 2 items cancelled\n"
    assert states(ppss) == ["ready", "cancelled", "cancelled"]
    assert ppss("cancel", run).err == f"run {run}: 1 item cancelled\n"
    assert ppss.status()["state"] == "cancelled" and ppss("wait", "-q", run).code == 4
    assert ppss("retry", run).code == 2


def test_purge_forgets_ended_runs_and_their_logs_and_no_others(ppss: Ppss, tmp_path: Path) -> None:
    assert ppss("run", "-q", "--logs", "logs", "--", "false", stdin="a\n").code == 1
    done = ppss.status()["run"]
    kept = Path(ppss.environment["PPSS_STATE_DIR"])
    assert list(kept.rglob(f"logs/{done}/*.log"))
    alive = ppss("enqueue", "--", "true", stdin="a\n").out.strip()
    assert "is open, not ended. Cancel it first" in ppss("purge", alive).refused()
    assert ppss("purge", "--all").err == "1 run forgotten\n"
    assert [run["run"] for run in ppss.runs()] == [alive] and not list(kept.rglob(f"logs/{done}"))
    assert (tmp_path / "logs" / done).is_dir()
    assert ppss("cancel", alive).code == 0
    assert ppss("purge", alive, alive).err == "1 run forgotten\n" and ppss.runs() == []


def test_a_worker_logs_a_line_an_item_and_drains_on_sigterm(ppss: Ppss, tmp_path: Path, end: End) -> None:
    ppss(
        "enqueue",
        "-c",
        'touch up; until test -e go; do sleep 0.02; done; test "$ITEM" = a',
        stdin="a\nb\nc\n",
    )
    run = ppss.status()["run"]
    worker = ppss.start("worker", "-p2")
    wait_until(lambda: ppss.status()["running"] == 2, "two items run")
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: ppss.status()["ready"] == 1, "what has not started is handed back")
    (tmp_path / "go").touch()
    code, out, err = end(worker)
    assert (code, out) == (0, "")
    lines = [line[len("12:34:56 ") :] for line in err.splitlines()]
    assert lines[0].startswith("worker ") and " · 2 slots · unix:" in lines[0]
    assert any(line.startswith(f"← {run} a · ") for line in lines)
    assert any(line.startswith(f"! {run} b · exit 1 · ") for line in lines)
    assert lines[-1].endswith(" ended: 1 succeeded, 1 failed")


def test_a_worker_that_lost_an_item_does_not_say_that_someone_else_has_it(ppss: Ppss, end: End) -> None:
    run = ppss("enqueue", "-c", "sleep 60; : {}", stdin="a\n").out.strip()
    worker = ppss.start("worker", "--burst")
    wait_until(lambda: ppss.status()["running"] == 1, "the item runs")
    assert ppss("cancel", run, "a").code == 0
    code, _, err = end(worker)
    lost = next(line for line in err.splitlines() if " ? " in line)
    assert code == 0 and f"? {run} a · lease lost, result discarded: cancelled, or someone else" in lost


def test_a_worker_serves_only_the_runs_it_is_told(ppss: Ppss) -> None:
    for name in ("one", "two", "three"):
        assert ppss("enqueue", "--name", name, "--", "true", stdin="a\n").code == 0
    assert ppss("worker", "-q", "--burst", "--run", "one", env={"PPSS_RUNS": "two"}).code == 0
    assert [run["succeeded"] for run in ppss.runs()] == [1, 0, 0]
    assert ppss("worker", "-q", "--burst", env={"PPSS_RUNS": "two three"}).code == 0
    assert [run["succeeded"] for run in ppss.runs()] == [1, 1, 1]


def test_interrupted_enqueue_leaves_nothing(ppss: Ppss, end: End) -> None:
    import subprocess

    process = ppss.start("enqueue", "--", "true", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("1\n2\n")
    process.stdin.flush()
    wait_until(lambda: [run["state"] for run in ppss.runs()] == ["filling"], "it is filling")
    assert ppss("worker", "-q", "--burst").code == 0
    code, out, err = end(process, signal.SIGINT)
    assert (code, out, err) == (130, "", "interrupted: nothing of the run is left\n")
    assert ppss.runs() == []
