"""--gpus, --cpus and --mem: bad values, and what is said where nobody has enough."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import nvidia_smi, wait_until

from ppss_queue.queue import WorkerView, connect
from ppss_queue.resources import NOTHING, Resources

if TYPE_CHECKING:
    from conftest import Ppss

BAD = {
    "run --gpus -1": "--gpus: '-1' is no number from 0 up.",
    "run --gpus 0,1": "--gpus: '0,1' is no number from 0 up.",
    "run --cpus 0": "--cpus: '0' is no number from 1 up.",
    "run --cpus 1.5": "--cpus: '1.5' is no number from 1 up.",
    "run --mem 8X": "--mem: '8X' is no size. Write bytes, or a number with K, M, G or T, such as 20G.",
    "run --mem 0": "--mem: '0' is too little. Give at least one byte.",
    "enqueue --gpus x": "--gpus: 'x' is no number from 0 up.",
    "enqueue --into last --gpus 1": "--into adds items to a run as it was made: leave --gpus out",
    "run --resume last --mem 1G": "--resume goes on with a run as it was made: leave --mem out",
    "worker --gpus -1": "--gpus: '-1' names no GPUs. Give how many there are, or which: 0,1",
    "worker --gpus 99999999999": "--gpus: '99999999999' names no GPUs. ",
    "worker --gpus 0,,1": "--gpus: '0,,1' names no GPUs. ",
    "worker --gpus 0,0": "--gpus: '0,0' names no GPUs. ",
    "worker --gpus a/../b,..": "--gpus: 'a/../b,..' names no GPUs. ",
    "worker --cpus -1": "--cpus: '-1' is no number from 0 up.",
    "worker --mem lots": "--mem: 'lots' is no size. ",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_numbers_and_sizes_are_refused_by_name(ppss: Ppss, line: str) -> None:
    command = [] if "--into" in line or "--resume" in line or "worker" in line else ["--", "true"]
    assert ppss(*line.split(), *command).refused().startswith(BAD[line])
    assert ppss.runs() == []


@pytest.fixture
def workers(ppss: Ppss) -> Callable[..., list[WorkerView]]:
    """Starts a worker with these options; gives all that are there then."""

    def start(*options: str) -> list[WorkerView]:
        with connect(ppss.environment["PPSS_URL"]) as queue:
            known = len(queue.workers())
            ppss.start("worker", *options, stderr=subprocess.DEVNULL)
            return wait_until(
                lambda: found if len(found := queue.workers()) > known else None, "the worker shows itself"
            )

    return start


def test_a_run_that_does_not_fit_here_is_refused_before_anything_is_enqueued(ppss: Ppss) -> None:
    done = ppss("run", "--gpus", "4", "--", "true", stdin="a\n", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.refused() == (
        "each item needs 4 GPUs, but this machine offers 0, and no other worker is there that has enough. Ask for less."
    )
    done = ppss("run", "--cpus", "9999", "--mem", "900T", "--", "true", stdin="a\n")
    assert done.refused().startswith(
        "each item needs 9,999 CPUs and 900.0 TiB of memory, but this machine offers "
    )
    assert ppss.runs() == []


def test_a_run_that_does_not_fit_here_is_not_resumed_either(ppss: Ppss) -> None:
    run = ppss("enqueue", "--cpus", "9999", "--", "true", stdin="a\n").out.strip()
    ppss("pause", run)
    said = ppss("run", "--resume", run).refused()
    assert said.startswith("each item needs 9,999 CPUs, but this machine offers ")
    assert ppss.status(run)["state"] == "paused"


def test_a_run_that_fits_is_done_here(ppss: Ppss) -> None:
    command = ("--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    done = ppss(
        "run",
        "--gpus",
        "2",
        "--cpus",
        "1",
        "--mem",
        "1M",
        *command,
        stdin="a\n",
        env={"CUDA_VISIBLE_DEVICES": "3,7,5"},
    )
    assert (done.code, done.out) == (0, "3,7\n"), done


def test_where_nvidia_smi_fails_it_is_said_what_to_do(ppss: Ppss, tmp_path: Path) -> None:
    env = {"PATH": nvidia_smi(tmp_path / "bin", "echo the driver is broken\nexit 9")}
    ppss.environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = ppss("run", "--gpus", "1", "--", "true", stdin="a\n", env=env)
    assert done.code == 2
    assert done.err.startswith(
        "ppss: which GPUs this machine has is not known, as nvidia-smi failed: the driver is broken. "
        "Say which there are: ppss worker --gpus 0,1\n"
    )
    assert ppss("run", "--cpus", "1", "--", "true", stdin="a\n", env=env).code == 0, "nobody asks for GPUs"


def test_a_run_that_does_not_fit_here_is_left_to_a_worker_that_has_more(
    ppss: Ppss, workers: Callable[..., list[WorkerView]]
) -> None:
    (worker,) = workers("--gpus", "9,8", "--cpus", "3", "--mem", "2G", "--node-name", "big")
    assert (worker.node, worker.offer) == ("big", Resources(2, 3, 2 * 2**30))
    words = ("--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES on $PPSS_NODE")
    done = ppss("run", "--gpus", "2", *words, stdin="a\n", env={"CUDA_VISIBLE_DEVICES": "1"})
    assert (done.code, done.out) == (0, "9,8 on big\n"), done
    assert done.err.startswith(
        "ppss: each item needs 2 GPUs, but this machine offers 1: it is left to other workers.\n"
    )


def test_what_fits_no_worker_is_said_wherever_a_run_is_waited_for(
    ppss: Ppss, workers: Callable[..., list[WorkerView]], end: Callable[..., tuple[int, str, str]]
) -> None:
    workers("--gpus", "2", "--cpus", "1", "--mem", "1G", "--node-name", "a")
    workers("--gpus", "0", "--cpus", "8", "--mem", "1G", "--node-name", "b")
    sentence = (
        "no worker that is there has room for an item: it needs 2 CPUs, but a offers 1; 1 GPU, but b offers 0. "
        "Start one here or on another machine: ppss worker"
    )
    done = ppss("enqueue", "--gpus", "1", "--cpus", "2", "--", "true", stdin="x\n")
    assert (done.code, done.err) == (0, f"ppss: {sentence}\n")
    run = done.out.strip()
    assert ppss("status").lines[-1] == f"{run}: {sentence}"
    assert ppss("wait", "--timeout", "0.1s").err.startswith(f"ppss: {sentence}\n")
    attached = ppss.start("attach")
    assert attached.stderr is not None
    wait_until(lambda: sentence in str(attached.stderr.readline()), "attach says it too")
    workers("--gpus", "1", "--cpus", "2", "--mem", "1G")
    assert end(attached)[0] == 0
    assert sentence not in ppss("status").out
    assert ppss("enqueue", "--gpus", "1", "--", "true", stdin="x\n").err == ""


def test_what_a_worker_offers_can_be_said_by_variables_and_a_run_without_needs_offers_nothing(
    ppss: Ppss, end: Callable[..., tuple[int, str, str]], workers: Callable[..., list[WorkerView]]
) -> None:
    ppss.environment["PPSS_NODE_GPUS"] = "0,"
    ppss.environment["PPSS_NODE_CPUS"] = "0"
    ppss.environment["PPSS_NODE_MEM"] = "5K"
    (worker,) = workers()
    assert worker.offer == Resources(1, 0, 5120)
    (ppss.directory / "names").mkdir()
    (ppss.directory / "names" / "x").touch()
    process = ppss.start("run", "-q", "names", "-c", 'test "$ITEM"; sleep 100')
    with connect(ppss.environment["PPSS_URL"]) as queue:
        wait_until(lambda: len(queue.workers()) == 2, "both are there")
        assert NOTHING in [view.offer for view in queue.workers()], "a run without needs looks for nothing"
    end(process, signal.SIGINT)
