"""Rows 1 to 3 and 12: what it costs to run a command, whole processes against whole processes."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tools.bench.figures import Figure
from tools.bench.processes import Argument, seconds
from tools.bench.rounds import Round, Row


def _ppss(this: Round, items: int, *command: Argument) -> float:
    """`ppss run` on two slots, enqueueing included; the run is forgotten afterwards, not timed."""
    took = this.site.seconds("run", "-f", this.inputs.numbers(items), "-p2", "-q", *command)
    this.site.flush()
    return took


def _xargs(this: Round, items: int, *command: Argument) -> float:
    argv = [this.rivals.program("xargs"), "-a", this.inputs.numbers(items), "-P2", "-n1", *command]
    return seconds(argv)


def _noop(this: Round) -> Mapping[str, float]:
    items = this.size(5000, 200)
    return {
        "xargs": this.ratio(lambda: _ppss(this, items, "--", "true"), lambda: _xargs(this, items, "true"))
    }


def _shell(this: Round) -> Mapping[str, float]:
    items = this.size(2000, 100)
    cases = {
        "builtin": (': "$ITEM"', ': "$0"'),
        "external": ('/bin/true "$ITEM" && :', '/bin/true "$0" && :'),
        "plain": ("true {}", 'true "$0"'),
    }
    return {
        key: this.ratio(
            lambda ours=ours: _ppss(this, items, "-c", ours),  # type: ignore[misc]
            lambda theirs=theirs: _xargs(this, items, "bash", "-c", theirs),  # type: ignore[misc]
        )
        for key, (ours, theirs) in cases.items()
    }


def _queues(this: Round) -> Mapping[str, float]:
    """Fewer items for those that take longer; each time as many for PPSS."""
    rivals, site = this.rivals, this.site

    def rq(items: int) -> float:
        took = rivals.rq_enqueue_seconds(site, this.inputs.numbers(items)) + rivals.rq_work_seconds(site)
        rivals.forget(site)
        return took

    def huey(items: int) -> float:
        took = rivals.huey_seconds(site, this.inputs.numbers(items))
        rivals.forget(site)
        return took

    def ratio(items: int, rival: object) -> float:
        assert callable(rival)
        return this.ratio(lambda: _ppss(this, items, "--", "true"), lambda: rival(items))

    def joblog(items: int) -> float:
        return rivals.parallel_seconds(this.inputs.numbers(items), "true")

    def hypershell(items: int) -> float:
        return rivals.hypershell_seconds(this.inputs.numbers(items), "true {}")

    return {
        "parallel": ratio(this.size(1000, 40), joblog),
        "rq": ratio(this.size(200, 20), rq),
        "hypershell": ratio(this.size(1000, 40), hypershell),
        "huey": ratio(this.size(1000, 40), huey),
    }


def _start(this: Round) -> Mapping[str, float]:
    """Each 20 times in turn, all in one round."""
    found = {"version": 0.0, "status": 0.0, "python": 0.0}
    this.site.seconds("run", "-q", "-f", this.inputs.numbers(10), "--", "true")
    for _ in range(this.size(20, 3)):
        found["version"] += this.site.seconds("--version")
        found["python"] += seconds([this.site.python, "-c", "pass"], env=this.site.environment)
        found["status"] += this.site.seconds("status")
    this.site.flush()
    return {key: found[key] / found["python"] for key in ("version", "status")}


ROWS = (
    Row(
        1,
        "`ppss run` of a command that does nothing: 5,000 items, 2 slots, enqueueing included",
        (Figure("xargs", "true", "xargs -P2 -n1 true", at_least=1.0),),
        "seq 0 4999 > numbers\nppss run -f numbers -p2 -q -- true\nxargs -a numbers -P2 -n1 true",
        _noop,
    ),
    Row(
        2,
        "the same with a shell command: 2,000 items",
        (
            Figure("builtin", "a builtin", "xargs -P2 -n1 bash -c", at_least=1.5),
            Figure("external", "an external program in a shell", "xargs -P2 -n1 bash -c", at_least=1.2),
            Figure("plain", "a plain command, which needs no shell", "xargs -P2 -n1 bash -c"),
        ),
        "seq 0 1999 > numbers\n"
        "ppss run -f numbers -p2 -q -c ': \"$ITEM\"'\nxargs -a numbers -P2 -n1 bash -c ': \"$0\"'\n"
        "ppss run -f numbers -p2 -q -c '/bin/true \"$ITEM\" && :'\n"
        "xargs -a numbers -P2 -n1 bash -c '/bin/true \"$0\" && :'\n"
        "ppss run -f numbers -p2 -q -c 'true {}'\nxargs -a numbers -P2 -n1 bash -c 'true \"$0\"'",
        _shell,
    ),
    Row(
        3,
        "the same as row 1 against programs that keep a record: 1,000 items (rq: 200)",
        (
            Figure("parallel", "true", "GNU parallel with a job log", at_least=6),
            Figure("rq", "true", "rq worker-pool -n 2", at_least=20),
            Figure("hypershell", "true", "hsx (HyperShell), two threads", at_least=5),
            Figure("huey", "true", "huey, two processes"),
        ),
        "seq 0 999 > numbers; seq 0 199 > few\n"
        "ppss run -f numbers -p2 -q -- true\nparallel -j2 --joblog log true :::: numbers\n"
        "hsx numbers -N2 --no-db -b64 -w1 -t 'true {}'\n"
        "ppss run -f few -p2 -q -- true\n"
        "python tools/bench/rivals/rq_side.py URL few && rq worker-pool -n 2 --burst --url URL rival",
        _queues,
    ),
    Row(
        12,
        "start-up: time divided by that of `python -c pass` (smaller is better)",
        (
            Figure("version", "`ppss --version`", "python -c pass", at_most=3),
            Figure("status", "`ppss status`, server running", "python -c pass", at_most=12),
        ),
        f"time ppss --version\ntime ppss status\ntime python{sys.version_info.major} -c pass",
        _start,
    ),
)
