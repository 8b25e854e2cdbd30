"""Row 9: a million items."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping

from tools.bench.figures import Figure
from tools.bench.processes import Broken, await_end, peak_rss_bytes, wait_until
from tools.bench.rounds import Round, Row

_STATUS_CALLS = 5


def _million(this: Round) -> Mapping[str, float]:
    """The large run is enqueued once, in the first round, and worked on in each."""
    found: dict[str, float] = {}
    if "large" not in this.kept:
        this.kept["large"], found["enqueuer"] = _enqueued(this, this.size(1_000_000, 3000))
    large = str(this.kept["large"])
    found["status"] = _status_ms(this, large)
    seconds = this.size(8, 1)
    few = this.size(10_000, 300)
    small, _ = _enqueued(this, few)
    (many_rate, found["worker"]), (few_rate, _) = this.pair(
        lambda: _worked(this, large, seconds), lambda: _worked(this, small, seconds, few)
    )
    if this.site.succeeded(small) < few:
        this.site.output("cancel", small)
    this.site.output("purge", small)
    return {**found, "rate": many_rate / few_rate}


def _enqueued(this: Round, items: int) -> tuple[str, float]:
    """The run's id, and the most memory that the enqueuer had, in MB; it is looked at 50 times a second."""
    with this.site.started("enqueue", "-f", this.inputs.names(items), "--", "true") as process:
        peak = _Peak(process.pid)
        await_end(process)
        peak.stop()
    return str(json.loads(this.site.output("status", "last", "--json"))["run"]), peak.megabytes


class _Peak:
    """Watches the memory of a process from a thread."""

    def __init__(self, pid: int) -> None:
        self.megabytes = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def _watch(self, pid: int) -> None:
        while not self._stopped.wait(0.02):
            self.megabytes = max(self.megabytes, peak_rss_bytes(pid) / 1e6)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def _worked(this: Round, run: str, seconds: float, items: int | None = None) -> tuple[float, float]:
    """Items a second of one worker on two slots, its start left out, and its memory in MB."""
    site = this.site
    done = site.succeeded(run)
    with site.started("worker", "-q", "-p2", "--run", run) as worker:
        wait_until(lambda: site.succeeded(run) > done, what="the first item")
        first, began = site.succeeded(run), time.perf_counter()
        while time.perf_counter() - began < seconds and (items is None or site.succeeded(run) < items):
            time.sleep(0.01)
        rate = (site.succeeded(run) - first) / (time.perf_counter() - began)
        return rate, peak_rss_bytes(worker.pid) / 1e6


def _status_ms(this: Round, run: str) -> float:
    """What `ppss status RUN` costs the server: all commands that it sends, but the login."""
    this.site.connection.execute("CONFIG", "RESETSTAT")
    for _ in range(_STATUS_CALLS):
        this.site.output("status", run)
    used = 0.0
    for name, facts in this.site.server_info("commandstats").items():
        if name.startswith("cmdstat_") and not name.startswith(("cmdstat_config", "cmdstat_info")):
            used += float(dict(fact.split("=") for fact in facts.split(","))["usec"])
    if not used:
        raise Broken("the server says that `ppss status` sent nothing")
    return used / 1000 / _STATUS_CALLS


ROWS = (
    Row(
        9,
        "1,000,000 items against 10,000, of a command that does nothing, 2 slots",
        (
            Figure("rate", "rate of a worker, divided by that on 10,000", at_least=0.9),
            Figure("enqueuer", "memory of the enqueuer (VmHWM)", unit="MB", at_most=80),
            Figure("worker", "memory of the worker (VmHWM)", unit="MB", at_most=80),
            Figure("status", "`ppss status RUN`, time in the server", unit="ms", at_most=5),
        ),
        "seq -f 'data/experiment/%015.0f.measured' 0 999999 > names\n"
        "ppss enqueue -f names -- true\nppss worker -p2; ppss status last",
        _million,
    ),
)
