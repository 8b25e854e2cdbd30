"""Rows 17 to 20: files staged to a node and its outputs brought home, over SSH between two real hosts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

from tools.bench.figures import Figure
from tools.bench.hosts import URL, Pair, cpu_seconds, pair, seconds, shell_seconds
from tools.bench.processes import Broken
from tools.bench.rounds import Round, Row
from tools.bench.site import read_joblogs

_ROUNDS = 3
"""Each is long, and both sides of a ratio are within a few percent from round to round."""
_SLOTS = 2
_WORKER = ("ppss", "worker", "-q", "--burst", "--url", URL, "-p", str(_SLOTS))


def _make_files(count: int, size_bytes: int) -> str:
    """A script that makes in/ with files of noise, which no compression helps."""
    return f"mkdir in && cd in && head -c {count * size_bytes} /dev/urandom | split -a 4 -d -b {size_bytes} - file"


def _run(hosts: Pair, source: str, *command: str) -> float:
    """Seconds from enqueueing at the master until all is done and at home, where a worker waits."""
    script = 'run=$(ppss enqueue "$1" --stage -o out "${@:2}"); ppss wait -q "$run"'
    return seconds(hosts.master, ["bash", "-euc", script, "bash", source, *command])


def _worked(hosts: Pair, items: int, *options: str) -> float:
    """Seconds of a worker on the node, which does all that is enqueued."""
    took = seconds(hosts.node, [*_WORKER, *options])
    status = json.loads(hosts.master.run(["ppss", "status", "last", "--json"]).stdout)
    if status["succeeded"] != items:
        raise Broken(f"{status['succeeded']} of {items} items succeeded")
    return took


def _one_file(this: Round) -> Mapping[str, float]:
    """The worker is there before, as in use; what its start takes is a figure of its own."""
    size = this.size(1 << 30, 1 << 20)
    with pair(this.site.version) as hosts:
        master, node = hosts.master, hosts.node
        for host in (master, node):
            host.run(["sh", "-c", f"mkdir big small; head -c {size} /dev/urandom > big/file; : > small/file"])

        def scp(source: str, target: str) -> float:
            took = seconds(node, ["scp", "-q", source, target])
            for host in (master, node):
                host.run(["rm", "-f", "copy"])
            return took

        start = seconds(node, _WORKER)
        with hosts.working("-p", str(_SLOTS)):
            _run(hosts, "small", "-c", ': "$ITEM"')
            came = this.ratio(
                partial(_run, hosts, "big", "-c", ': "$ITEM"'), partial(scp, "master:big/file", "copy")
            )
            went = this.ratio(
                partial(_run, hosts, "small", "-c", ': "$ITEM"; ln ~/big/file "$OUTPUT_DIR/file"'),
                partial(scp, "big/file", "master:copy"),
            )
        if int(master.run(["stat", "-c", "%s", "out/file"]).stdout) != size:
            raise Broken("the output did not come home")
    return {"in": came, "out": went, "start": start}


def _small_files(this: Round) -> Mapping[str, float]:
    """GNU parallel gets fewer items: rates are compared."""
    items, few = this.size(2000, 40), this.size(8, 4)
    this.rivals.program("parallel")
    with pair(this.site.version) as hosts:
        hosts.master.run(["bash", "-euc", _make_files(items, 10 << 10)])
        enqueue = ["ppss", "enqueue", "in", "--stage", "-o", "out", "--", "cp", "{}", "{out}"]
        hosts.master.run(
            ["sh", "-c", f"mkdir .parallel; : > .parallel/will-cite; ls in/* | head -n {few} > few"]
        )

        def parallel(*options: str) -> float:
            copy = ["--trc", "{}.out", "cp", "{}", "{}.out", "::::", "few"]
            took = seconds(hosts.master, ["parallel", "-S", "n1", f"-j{_SLOTS}", *options, *copy])
            hosts.master.run(["sh", "-c", f'test "$(ls in/*.out | wc -l)" = {few} && rm in/*.out'])
            return few / took

        ours, rival = this.pair(
            lambda: items / (seconds(hosts.master, enqueue) + _worked(hosts, items)), parallel
        )
        master = parallel("--controlmaster")
    return {"parallel": ours / rival, "controlmaster": ours / master, "rate": ours}


def _far_away(this: Round) -> Mapping[str, float]:
    """80 ms and 100 Mbit/s; commands and line are busy for about the same time, which is the worst case."""
    items = this.size(160, 6)
    with pair(this.site.version) as hosts:
        hosts.master.run(["bash", "-euc", _make_files(items, 1_000_000)])
        hosts.node.delay(80)
        hosts.node.rate(100)
        logs = hosts.share / "logs"
        start = seconds(hosts.node, _WORKER)
        with hosts.working("-p", str(_SLOTS), "--logs", str(logs)):
            _run(hosts, "in/file0000", "-c", ': "$ITEM"')
            whole, transfer = this.pair(
                lambda: _run(hosts, "in", "-c", 'sleep 0.16; wc -c "$ITEM" > {out}'),
                lambda: shell_seconds(hosts.node, "mkdir copy && ssh master tar c in | tar x -C copy"),
            )
        compute = sum(job.seconds for job in read_joblogs(logs) if job.seconds > 0.16) / _SLOTS
    return {
        "whole": whole / max(compute, transfer),
        "transfer": whole / transfer,
        "compute": whole / compute,
        "start": start,
    }


def _master(this: Round) -> Mapping[str, float]:
    """The CPU time of everything that runs on the master but the enqueueing."""
    items, few = this.size(1000, 40), this.size(12, 2)
    with pair(this.site.version) as hosts:
        hosts.master.run(["bash", "-euc", _make_files(items, 10 << 10)])
        hosts.master.run(["ppss", "enqueue", "in", "--stage", "-o", "out", "--", "cp", "{}", "{out}"])
        hosts.master.run(["mkdir", "copies"])
        connections = 0

        def ours() -> float:
            nonlocal connections
            before, known = cpu_seconds(hosts.master), hosts.connections()
            _worked(hosts, items)
            connections = hosts.connections() - known
            return (cpu_seconds(hosts.master) - before) / items

        def scp() -> float:
            names = hosts.master.run(["sh", "-c", f"ls in | head -n {few}"]).stdout.split()
            before = cpu_seconds(hosts.master)
            copy = 'for name; do scp -q "master:in/$name" "$name"; scp -q "$name" master:copies/; done'
            seconds(hosts.node, ["bash", "-euc", copy, "bash", *names])
            return (cpu_seconds(hosts.master) - before) / few

        mine, other = this.pair(ours, scp)
    return {"connections": connections, "scp": other / mine, "cpu": mine * 1000}


_HOSTS = "bash tests/lab/lab.sh up 2    # or two machines of yours: a master and n1\n"

ROWS = (
    Row(
        17,
        "a file of 1 GiB to a node where a worker waits, and home from there: from enqueueing to the end of waiting",
        (
            Figure("in", "stage in", "scp", at_least=0.9),
            Figure("out", "stage out", "scp", at_least=0.9),
            Figure("start", "start of a worker that finds nothing to do, and its end", unit="s"),
        ),
        f"{_HOSTS}ppss worker --url {URL} &    # at the node, as scp\n"
        'time ppss wait "$(ppss enqueue big --stage -o out -c \': "$ITEM"\')"\ntime scp master:big/file copy\n'
        'time ppss wait "$(ppss enqueue small --stage -o out -c \'ln ~/big/file "$OUTPUT_DIR/file"; : {}\')"\n'
        "time scp big/file master:copy",
        _one_file,
        most_rounds=_ROUNDS,
    ),
    Row(
        18,
        "2,000 items of 10 KiB to a node and home, 2 slots, enqueueing included; the rival: 8 items, its rate",
        (
            Figure("parallel", "cp", "parallel -S n1 -j2 --trc", at_least=10),
            Figure("controlmaster", "cp", "parallel -S n1 -j2 --trc --controlmaster"),
            Figure("rate", "rate", unit="items/s"),
        ),
        f"{_HOSTS}time ppss enqueue in --stage -o out -- cp {{}} {{out}}\n"
        f"time ppss worker --burst -p2 --url {URL}\n"
        "time parallel -S n1 -j2 --trc {}.out cp {} {}.out :::: few",
        _small_files,
        most_rounds=_ROUNDS,
    ),
    Row(
        19,
        "80 ms and 100 Mbit/s away, where a worker waits: 160 items of 1 MB that take 160 ms, 2 slots "
        "(smaller is better)",
        (
            Figure("whole", "whole run, divided by the longer of commands and transfer alone", at_most=1.15),
            Figure("transfer", "the same, by the transfer, as a tar over ssh"),
            Figure("compute", "the same, by the commands"),
            Figure("start", "start of a worker that finds nothing to do, and its end", unit="s"),
        ),
        f"{_HOSTS}bash tests/lab/lab.sh delay n1 80; bash tests/lab/lab.sh rate n1 100\n"
        f"ppss worker -p2 --url {URL} --logs logs &    # at the node\n"
        'time ppss wait "$(ppss enqueue in --stage -o out -c \'sleep 0.16; wc -c "$ITEM" > {out}\')"\n'
        "time ssh master tar c in | tar x -C copy",
        _far_away,
        most_rounds=2,
    ),
    Row(
        20,
        "the master of row 18, with 1,000 items",
        (
            Figure("connections", "SSH connections per worker", unit="", at_most=1),
            Figure("scp", "CPU time of the master per item", "scp, twice per item"),
            Figure("cpu", "CPU time of the master per item", unit="ms"),
        ),
        f"{_HOSTS}ppss enqueue in --stage -o out -- cp {{}} {{out}}; ppss worker --burst -p2 --url {URL}\n"
        "grep -c Accepted /var/log/sshd.log; cat /proc/[0-9]*/stat    # before and after",
        _master,
        most_rounds=_ROUNDS,
    ),
)
