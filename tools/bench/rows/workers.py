"""Rows 7, 8, 10 and 11: how well workers keep their slots busy, read from their job logs."""

from __future__ import annotations

import heapq
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tools.bench.figures import Figure
from tools.bench.network import delayed, tcp_server
from tools.bench.processes import cpu_seconds, wait_until
from tools.bench.rounds import Round, Row
from tools.bench.site import Job, Site, read_joblogs, span

_UNEVEN_WORKERS = 4


def distant_rate(this: Round, address: str, items: int) -> float:
    """Items a second of 20 ms on two slots, from the first start to the last end."""
    this.site.output("enqueue", "--url", address, "-f", this.inputs.repeated("0.02", items), "--", "sleep")
    with this.scratch("logs") as logs:
        this.site.seconds("worker", "--url", address, "--burst", "-q", "-p2", "--logs", logs)
        return items / span(read_joblogs(logs))


def slots_used(this: Round, slots: int, item_seconds: float, per_slot: int) -> float:
    """The ideal time of `sleep` on so many slots, divided by the time from the first start to the last end."""
    items = this.inputs.repeated(str(item_seconds), slots * per_slot)
    with this.scratch("logs") as logs:
        this.site.seconds("run", "-q", "-f", items, "-p", str(slots), "--logs", logs, "--", "sleep")
        took = span(read_joblogs(logs))
    this.site.flush()
    return per_slot * item_seconds / took


def _distance(this: Round) -> Mapping[str, float]:
    items, names = this.size(600, 60), this.size(200_000, 2000)
    with tcp_server() as port, delayed(port, 80) as far, delayed(port, 0) as near:
        ours, local = this.pair(
            lambda: distant_rate(this, far, items), lambda: distant_rate(this, near, items)
        )
        took = this.site.seconds("enqueue", "--url", far, "-f", this.inputs.names(names), "--", "true")
    return {"worker": ours / local, "enqueue": names / took}


def _idle(this: Round) -> Mapping[str, float]:
    with this.scratch() as folder, this.site.started("worker", "-q", "-p1") as worker:
        wait_until(lambda: this.site.workers() == 1, what="the worker")
        fifo = folder / "news"
        os.mkfifo(fifo)
        found = this.site.probe("latency", fifo, this.size(200, 10))
        time.sleep(1)
        before, began = cpu_seconds(worker.pid), time.perf_counter()
        time.sleep(this.size(10, 1))
        cpu = (cpu_seconds(worker.pid) - before) / (time.perf_counter() - began)
    this.site.flush()
    return {**found, "cpu": cpu * 100}


def _slots(this: Round) -> Mapping[str, float]:
    return {"used": slots_used(this, 64, 0.2, this.size(10, 1))}


def best_list_schedule(seconds: Sequence[float], machines: int) -> float:
    """The time of machines that take the next item, in this order, the moment they are free."""
    free = [0.0] * machines
    for length in seconds:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def _uneven(this: Round) -> Mapping[str, float]:
    """Against what the same items took, so that the start of `sleep` counts on both sides."""
    chance = random.Random(11)
    drawn = [min(chance.lognormvariate(0, 1) * 0.04, 1.5) for _ in range(this.size(400, 20))]
    with this.scratch("logs") as logs:
        items = logs / "items"
        items.write_text("".join(f"{seconds:.4f}\n" for seconds in drawn))
        jobs = _worked_on(this.site, items, logs)
    this.site.flush()
    took = span(jobs)
    return {
        "list": took / best_list_schedule([job.seconds for job in jobs], _UNEVEN_WORKERS),
        "drawn": took / best_list_schedule(drawn, _UNEVEN_WORKERS),
    }


def _worked_on(site: Site, items: Path, logs: Path) -> list[Job]:
    with _workers(site, _UNEVEN_WORKERS, logs):
        site.output("wait", site.output("enqueue", "-f", items, "--", "sleep").strip())
    return read_joblogs(logs)


@contextmanager
def _workers(site: Site, count: int, logs: Path) -> Iterator[None]:
    """Idle workers of one slot each."""
    with ExitStack() as stack:
        for number in range(1, count + 1):
            words = ("worker", "-q", "-p1", "--node-name", f"node{number}", "--logs", logs)
            stack.enter_context(site.started(*words))
        wait_until(lambda: site.workers() == count, what="the workers")
        yield


ROWS = (
    Row(
        7,
        "Redis 80 ms away: 600 items of 20 ms on 2 slots; enqueueing 200,000 names",
        (
            Figure("worker", "rate, divided by that at 0 ms", at_least=0.9),
            Figure("enqueue", "enqueueing, whole process", unit="items/s", at_least=50_000),
        ),
        "python tools/bench/delay.py 6379 80    # prints PORT\n"
        "yes 0.02 | head -600 > items; ppss enqueue --url redis://127.0.0.1:PORT -f items -- sleep\n"
        "ppss worker --url redis://127.0.0.1:PORT --burst -p2 --logs logs",
        _distance,
    ),
    Row(
        8,
        "an idle worker: from the opening of a run to the first action of its command (the start of bash included)",
        (
            Figure("p99", "p99", unit="ms", at_most=10),
            Figure("p50", "p50", unit="ms"),
            Figure("cpu", "CPU of the idle worker", unit="%", at_most=0.2),
        ),
        "ppss worker &\nmkfifo news; python tools/bench/probes/latency.py URL $PWD/news 200",
        _idle,
    ),
    Row(
        10,
        "64 slots, 640 items of `sleep 0.2`: the ideal time divided by that from the first start to the last end",
        (Figure("used", "share of the ideal", at_least=0.95),),
        "yes 0.2 | head -640 > items; ppss run -q -f items -p 64 --logs logs -- sleep",
        _slots,
    ),
    Row(
        11,
        "400 items of uneven length (lognormal, median 40 ms), 4 workers of one slot (smaller is better)",
        (
            Figure("list", "time, divided by the best list schedule of what the items took", at_most=1.03),
            Figure("drawn", "the same, of what they were to sleep"),
        ),
        "for n in 1 2 3 4; do ppss worker -p1 --logs logs & done\nppss wait $(ppss enqueue -f items -- sleep)",
        _uneven,
    ),
)
