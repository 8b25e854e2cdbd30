"""Items that say what they need, on real workers. What runs at once is seen by files that commands make and remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import nvidia_smi, wait_until
from ppss_worker.rooms import OVERTAKERS

from ppss_queue.resources import Resources

if TYPE_CHECKING:
    from conftest import Site

ITEMS = [str(number) for number in range(1, 13)]
ONE_GPU, ONE_CPU = Resources(gpus=1), Resources(cpus=1)


def alone(name: str) -> str:
    """Says in `clashes` if another command with the same `name` runs just now; two have met once `met` is there."""
    meet = "until [ -e met ]; do set -- holds.*; [ $# -lt 2 ] || touch met; sleep 0.01; done"
    return f"mkdir holds.{name} || echo $ITEM {name} >> clashes; {meet}; rmdir holds.{name}"


@pytest.fixture
def two_gpus(tmp_path: Path) -> str:
    """PATH with an nvidia-smi that finds two."""
    return nvidia_smi(tmp_path / "bin", "seq 0 1")


# GPUs


@pytest.mark.parametrize("workers", [1, 2])
def test_a_gpu_is_given_to_one_item_at_a_time_whatever_workers_the_machine_has(
    site: Site, two_gpus: str, workers: int
) -> None:
    command = f"{alone('$CUDA_VISIBLE_DEVICES')}; echo $CUDA_VISIBLE_DEVICES >> used"
    run = site.enqueue(ITEMS, command, needs=ONE_GPU)
    started = [site.worker("--burst", "-p", "8", PATH=two_gpus) for _ in range(workers)]
    assert [worker.wait() for worker in started] == [0] * workers, started[0].log
    assert site.states(run) == {"succeeded": len(ITEMS)}
    assert not (site.directory / "clashes").exists()
    assert set((site.directory / "used").read_text().split()) == {"0", "1"}


def test_an_item_that_needs_two_gpus_sees_two_and_one_that_needs_none_sees_what_its_worker_does(
    site: Site,
) -> None:
    site.enqueue(["two"], "echo $CUDA_VISIBLE_DEVICES > $ITEM", needs=Resources(gpus=2))
    site.enqueue(["none"], "echo ${CUDA_VISIBLE_DEVICES-unset} > $ITEM")
    site.enqueue(["cpu"], "echo ${CUDA_VISIBLE_DEVICES-unset} > $ITEM", needs=ONE_CPU)
    worker = site.burst("--gpus", "5,GPU-7c", "--cpus", "1", CUDA_VISIBLE_DEVICES="7,5")
    assert " · 2 slots · GPU 5, GPU-7c · " in worker.log
    seen = {name: (site.directory / name).read_text().strip() for name in ("two", "none", "cpu")}
    assert seen == {"two": "5,GPU-7c", "none": "7,5", "cpu": "7,5"}


def test_a_worker_waits_for_a_gpu_that_another_worker_of_the_machine_uses(site: Site) -> None:
    first = site.enqueue(
        ["first"], "echo $$ > first.pid; until [ -e go ]; do sleep 0.02; done", needs=ONE_GPU
    )
    site.worker("--gpus", "1", "--run", first.id)
    site.pids("first.pid", 1)
    second = site.enqueue(["second"], "touch second", needs=ONE_GPU)
    waiting = site.worker("--burst", "--gpus", "1", "--run", second.id)
    sentence = f"run {second.id} waits for GPUs that another worker of this machine uses."
    wait_until(lambda: sentence in waiting.log, "it says why it waits")
    assert site.states(second) == {"ready": 1}
    (site.directory / "go").touch()
    assert waiting.wait() == 0, waiting.log
    assert (site.directory / "second").exists()


def test_a_process_of_functions_leaves_the_memory_of_a_gpu_that_another_item_gets(site: Site) -> None:
    (site.directory / "work.py").write_text("import os\ndef work(item): return os.getpid()\n")
    plain = site.enqueue(["p"], "echo $$ > p.pid; until [ -e go ]; do sleep 0.02; done")
    site.worker("--gpus", "1")
    site.pids("p.pid", 1)
    pids = []
    for _ in range(2):  # on slot 2, then on slot 1
        run = site.enqueue(["f"], "python:work:work", needs=ONE_GPU)
        wait_until(lambda run=run: site.states(run) == {"succeeded": 1}, "the function is done")
        pids.append(int(str(site.item(run, "f").result)))
        assert site.alive(pids[-1])
        (site.directory / "go").touch()
        wait_until(lambda: site.states(plain) == {"succeeded": 1}, "slot 1 is free")
    site.wait_gone(pids[:1])


# CPUs and memory


@pytest.mark.parametrize(
    ("needs", "offer"),
    [(Resources(cpus=2), ("--cpus", "4")), (Resources(memory_bytes=2**40), ("--mem", "2.9T", "--cpus", "0"))],
)
def test_no_more_items_run_at_once_than_there_is_room_for(
    site: Site, needs: Resources, offer: tuple[str, ...]
) -> None:
    count = "touch runs.$ITEM; set -- runs.*; [ $# -le 2 ] || touch too-many; [ $# -lt 2 ] || touch two"
    run = site.enqueue(
        ITEMS, f"{count}; until [ -e go ]; do sleep 0.02; done; {count}; rm runs.$ITEM", needs=needs
    )
    worker = site.worker("--burst", "-p", "8", *offer)
    wait_until((site.directory / "two").exists, "two run at once")
    assert site.states(run) == {"leased": 2, "ready": len(ITEMS) - 2}, "none is held that can't begin"
    plain = site.enqueue(["plain"], "touch plain")
    wait_until(lambda: site.states(plain) == {"succeeded": 1}, "what needs nothing goes on")
    (site.directory / "go").touch()
    assert worker.wait() == 0, worker.log
    assert site.states(run) == {"succeeded": len(ITEMS)}
    assert not (site.directory / "too-many").exists()


def test_smaller_items_go_on_in_front_of_a_bigger_one_but_not_for_ever(site: Site) -> None:
    """Each small item ends when the next one has begun: without room that is kept for it the big one came last."""
    count = 4 * OVERTAKERS
    next_began = 'for _ in $(seq 100); do [ ! -e "began.$((ITEM + 1))" ] || break; sleep 0.01; done'
    small = site.enqueue(
        [str(number) for number in range(1, count + 1)],
        f"touch began.$ITEM; until [ -e go ]; do sleep 0.02; done; {next_began}",
        needs=ONE_CPU,
    )
    worker = site.worker("--burst", "-p", "4", "--cpus", "2")
    wait_until((site.directory / "began.2").exists, "the node is full")
    site.enqueue(["big"], "ls | grep -c began > big", needs=Resources(cpus=2))
    (site.directory / "go").touch()
    assert worker.wait() == 0, worker.log
    assert site.states(small) == {"succeeded": count}
    overtakers = int((site.directory / "big").read_text()) - 2
    assert 2 < overtakers <= OVERTAKERS + 2


def test_an_item_that_is_tried_again_gets_room_again(site: Site) -> None:
    from ppss_queue.rules import RetryRule

    run = site.enqueue(["a"], '[ "$PPSS_ATTEMPT" = 3 ]', needs=Resources(1, 2), retry=RetryRule(2, 0.01))
    site.burst("--gpus", "1", "--cpus", "2")
    assert site.item(run, "a").attempts == 3


# What fits nowhere


def test_a_run_that_can_never_fit_is_left_to_others_and_other_runs_go_on(site: Site) -> None:
    big = site.enqueue(["big"], "touch $ITEM", needs=Resources(gpus=4))
    site.enqueue(["small"], "touch $ITEM", needs=ONE_GPU)
    worker = site.worker("--burst", "--gpus", "2")
    assert worker.wait() == 2, worker.log
    sentence = (
        f"run {big.id} can't be run here and is left to other nodes: each item needs 4 GPUs, but this worker "
    )
    assert worker.log.count(sentence) == 1, worker.log
    assert (site.directory / "small").exists()
    assert site.states(big) == {"ready": 1}
    site.burst("--gpus", "4")
    assert (site.directory / "big").exists()


def test_a_worker_for_a_run_that_can_never_fit_ends_and_says_why(site: Site) -> None:
    big = site.enqueue(["big"], ":", needs=Resources(2, 3, 2**33))
    worker = site.worker("--run", big.id, "--gpus", "0", "--cpus", "4", "--mem", "4G")
    assert worker.wait() == 2
    assert "each item needs 2 GPUs and 8.0 GiB of memory, but this worker offers 0 and 4.0 GiB" in worker.log
