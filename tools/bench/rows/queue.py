"""Rows 4 to 6 and 13: the queue itself, without commands."""

from __future__ import annotations

from collections.abc import Mapping

from tools.bench.figures import Figure
from tools.bench.rounds import Round, Row


def _enqueue(this: Round) -> Mapping[str, float]:
    """rq gets a fifth of the files, since it takes a hundred times as long in all."""
    directories = this.size(100, 2)
    tree, part = this.inputs.tree(directories, 1000), this.inputs.tree(max(directories // 5, 1), 1000)
    items, fewer = directories * 1000, max(directories // 5, 1) * 1000
    ours, rival = this.pair(
        lambda: this.site.seconds("enqueue", tree, "--", "true"),
        lambda: this.rivals.rq_enqueue_seconds(this.site, part),
    )
    this.rivals.forget(this.site)
    this.site.flush()
    return {"rq": (rival / fewer) / (ours / items), "rate": items / ours}


def _memory(this: Round) -> Mapping[str, float]:
    found = this.site.probe("memory", this.size(20000, 2000))
    this.site.flush()
    return found


def _engine(this: Round) -> Mapping[str, float]:
    found = this.site.probe("engine", this.size(50000, 2000), 64)
    this.site.flush()
    return found


def _clients(this: Round) -> Mapping[str, float]:
    found = this.site.probe("clients", this.size(100, 10), this.size(5, 1))
    this.site.flush()
    return found


ROWS = (
    Row(
        4,
        "enqueueing 100,000 files of a tree, the walk included; whole processes",
        (
            Figure("rq", "time per item", "rq enqueue_many, batches of 1,000", at_least=15),
            Figure("rate", "rate", unit="items/s", at_least=60_000),
        ),
        "time ppss enqueue TREE -- true\ntime python tools/bench/rivals/rq_side.py URL TREE",
        _enqueue,
    ),
    Row(
        5,
        "memory of the server per item with a name of 40 characters, all of RQ's keys included",
        (
            Figure("ready", "ready", unit="B", at_most=300),
            Figure("succeeded", "succeeded", unit="B", at_most=700),
        ),
        "python tools/bench/probes/memory.py URL 20000",
        _memory,
    ),
    Row(
        6,
        "claim, start and ack without execution: one client, batches of 64",
        (
            Figure("rate", "rate", unit="items/s", at_least=20_000),
            Figure("cpu", "CPU of the server per item", unit="us", at_most=30),
        ),
        "python tools/bench/probes/engine.py URL 50000 64",
        _engine,
    ),
    Row(
        13,
        "100 workers on one Redis, each claiming and acking one item at a time",
        (
            Figure("p99", "p99 of a claim and its ack", unit="ms", at_most=50),
            Figure("least", "least share of a worker (1 is fair)", at_least=0.5),
            Figure("most", "largest share of a worker (1 is fair)"),
            Figure("rate", "rate", unit="items/s"),
        ),
        "python tools/bench/probes/clients.py URL 100 5",
        _clients,
    ),
)
