"""What the tests of RQ's view share: a run with an item in every state, and real processes around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from helpers import wait_until
from redis import Redis

from ppss_queue import scripts
from ppss_queue.calls import Calls, read_claim
from ppss_queue.model import Lease, Outcome
from ppss_queue.queue import Queue
from ppss_queue.rq_form import kept_output
from ppss_queue.run import Run
from ppss_queue.store import Counts

ROOT = Path(__file__).parent.parent
WORKER = "node.1-abcd"
NAMES = ("unstarted", "started", "delayed", "finished", "failed", "ready", "later", "cancelled")
LISTS = {
    "queued": {"ready", "later"},
    "started": {"unstarted", "started"},
    "scheduled": {"delayed"},
    "finished": {"finished"},
    "failed": {"failed"},
    "canceled": {"cancelled"},
    "deferred": set[str](),
}
"""RQ's lists, and which items of `frozen_run` are in them."""

# Nothing but a wake-up makes this worker look again: a test that needs a poll waits in vain.
_WORKER_PROGRAM = """
import pathlib, sys
from ppss_queue.keys import Keys
from ppss_queue.queue import connect
from ppss_worker import claims, housekeeping, leases, worker
from ppss_worker.settings import Settings
leases.HEARTBEAT_SECONDS = 0.5
claims.LOOK_AGAIN_SECONDS = worker.LOOK_AGAIN_SECONDS = housekeeping.EVERY_SECONDS = 3600.0

class Observer:
    def began(self, worker): pass
    def started(self, lease, run, slot): print("started", lease.item.seq, flush=True)
    def ended(self, ended): print(ended.verdict, ended.lease.item.seq, flush=True)
    def warn(self, sentence): print("warn", sentence, flush=True)

url, state, burst = sys.argv[1:]
with connect(url) as queue:
    settings = Settings(slots=1, node="node", state_directory=pathlib.Path(state), burst=burst == "burst")
    worker.Worker(queue.connection, Keys.from_environment(), settings, Observer()).work()
"""
_DASHBOARD_PROGRAM = """
import sys
from ppss_queue.broker import serve_dashboard
serve_dashboard(sys.argv[1], port=0, on_ready=lambda url: print(url, flush=True))
print("over")
"""


@dataclass(frozen=True)
class Frozen:
    """A run whose items stay as they are."""

    run: Run
    jobs: Mapping[str, str]
    """RQ's job id by the name of NAMES."""
    leases: Mapping[str, Lease]
    calls: Calls


def frozen_run(
    queue: Queue, names: Sequence[str] = NAMES, output: bytes = b"out\nTraceback: boom\n"
) -> Frozen:
    """A run with items in every state; `names` are shown in place of NAMES."""
    run = queue.enqueue(names, command="true", retries=1)
    calls = Calls(queue.keys, WORKER, "abcdef01")

    def call(call: scripts.Call) -> Any:
        return scripts.run(queue.connection, call)

    call(
        calls.heartbeat(
            {"hostname": "node", "pid": 1, "version": "1", "python_version": "3", "queues": run.id}
        )
    )
    leases = dict(zip(NAMES, read_claim(call(calls.claim(5, 5))).leases, strict=False))
    call(calls.start(run.id, [(lease, 1) for name, lease in leases.items() if name != "unstarted"]))
    bad = Outcome(exit_code=3, seconds=0.5, node="node", slot=1)
    kept = kept_output(output) if output else b""
    call(calls.fail(run.id, [(leases["delayed"], bad, 3600.0, kept), (leases["failed"], bad, None, kept)]))
    call(
        calls.ack(run.id, [(leases["finished"], Outcome(exit_code=0, seconds=0.5, node="node", slot=1), b"")])
    )
    queue.store.cancel_items(run.id, [8])
    jobs = {name: f"{run.id}-{seq:07d}" for seq, name in enumerate(NAMES, 1)}
    return Frozen(run, jobs, leases, calls)


def states(counts: Counts) -> dict[str, int]:
    """The six states; they must sum up to the total, and none may be negative."""
    found = {
        name: getattr(counts, name)
        for name in ("ready", "leased", "delayed", "succeeded", "failed", "cancelled")
    }
    assert sum(found.values()) == counts.total and min(found.values()) >= 0, found
    return found


FROZEN_STATES = {"ready": 2, "leased": 2, "delayed": 1, "succeeded": 1, "failed": 1, "cancelled": 1}


def environment(**more: str) -> dict[str, str]:
    """For `python -m` and `python -c` in a child: pytest's pythonpath reaches this process only."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "workers")))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **more}


def rq_here(address: str, verb: str, *arguments: str) -> str:
    """What a stock `rq VERB` prints, without the second that a new process costs."""
    from click.testing import CliRunner
    from rq.cli.cli import main

    result = CliRunner().invoke(main, [verb, "--url", address, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rq(address: str, verb: str, *arguments: str, **variables: str) -> str:
    """The same in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rq.cli", verb, "--url", address, *arguments],
        env=environment(**variables), text=True, timeout=60, check=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ).stdout  # fmt: skip


@contextmanager
def worker(
    address: str, state: Path, *, burst: bool = False, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """A real worker with one slot that serves all runs; drained at the end unless it ended by itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER_PROGRAM, address, str(state), "burst" if burst else ""],
        env=environment(**variables), text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
        if process.poll() is None and not burst:
            process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def wait_until_idle(redis: Redis) -> None:
    """The worker made a claim that gave nothing, and listens for changes."""

    def listens() -> bool:
        database = str(redis.connection_pool.connection_kwargs.get("db") or 0)
        return any(
            client["name"] == "ppss-worker" and client["db"] == database and "B" in client["flags"]
            for client in redis.client_list()
        )

    wait_until(listens, "the worker is idle")


@contextmanager
def _serving(arguments: Sequence[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment(**variables), text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def our_dashboard(address: str, **variables: str) -> Iterator[str]:
    """`serve_dashboard`; gives its URL. Ctrl-C ends it at once, and it prints nothing but its URL."""
    import signal

    with _serving(["-c", _DASHBOARD_PROGRAM, address], **variables) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url.startswith("http://127.0.0.1:"):
            process.kill()
            raise AssertionError(url + process.stdout.read())
        yield url
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "over\n"
        assert process.returncode == 0


@contextmanager
def stock_dashboard(address: str, *options: str) -> Iterator[str]:
    """`rq-dashboard` as its users start it; gives its URL."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with _serving(["-m", "rq_dashboard", "-b", "127.0.0.1", "-p", port, "-u", address, *options]) as process:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            if process.poll() is not None:
                raise AssertionError(process.communicate()[0])
            try:
                with urlopen(url, timeout=30):
                    return True
            except ConnectionError:
                return False
            except OSError as error:
                if isinstance(getattr(error, "reason", None), ConnectionError):
                    return False
                raise

        wait_until(answers, "rq-dashboard answers")
        yield url


def get(url: str) -> str:
    """A page; anything but 200 raises HTTPError."""
    with urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def get_json(url: str) -> Any:
    return json.loads(get(url))


def post(url: str) -> Any:
    with urlopen(Request(url, data=b"", method="POST"), timeout=30) as answer:
        return json.loads(answer.read())
