"""The worker of a node: started so that it outlives the connection, found again, stopped.

All is below one directory of the node, the place: `bin/ppss` and `ssh_config` (deploy put them there), `worker.log`,
`state/`, and for each worker `LABEL.sh` (what is executed) and `LABEL.pid`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from ppss_queue.errors import MachineFailed, PpssError
from ppss_queue.nodes.reach import Reach
from ppss_queue.nodes.spec import NodeSpec

if TYPE_CHECKING:
    from ppss_queue.ssh.remote import Done

WORKER = "worker"
"""The label of the worker that stays; the one of a run that ends with it is labelled by `of_run`."""
START_SECONDS = 60.0
"""For a worker to reach the master; it gives up by itself before that."""
STOP_SECONDS = 30.0


class NotStarted(PpssError):
    """The worker ended at once; the text is its last word."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker that is at work."""

    pid: int
    anew: bool
    """False: it was there already."""
    after_reboot: bool
    """It comes back when the machine is started again."""


def of_run(run: str) -> str:
    """The label of the worker that serves only this run."""
    return f"run-{run}"


def worker_words(node: NodeSpec, *, runs: Sequence[str] = (), burst: bool = False) -> list[str]:
    """The words after `ppss` that start the worker of a node."""
    words = ["worker", "--node-name", node.name]
    options = {
        "--slots": node.slots,
        "--nice": str(node.nice) if node.nice else "",
        "--scratch": node.scratch,
        "--scratch-limit": str(node.scratch_limit_bytes or ""),
        "--bwlimit": str(node.bytes_per_second or ""),
        "--gpus": node.gpus,
        "--cpus": node.cpus,
        "--mem": node.memory,
    }
    words += [f"{name}={value}" for name, value in options.items() if value]
    words += [f"--map={value}" for value in node.maps]
    words += [f"--run={run}" for run in runs]
    return [*words, *(["--burst"] if burst else [])]


def start(
    reach: Reach, place: str, url: str, words: Sequence[str], *, label: str = WORKER, enable: bool = False
) -> Started:
    """Starts a worker, unless one is at work in that place already; ends when it has reached the master.

    `url`: of the queue, as the node sees it. `words` follow `ppss`; `enable`: come back after a reboot. Raises
    NotStarted, ConnectFailed, MachineFailed.
    """
    program = _program(place, label, url, words)
    done = _run(reach, "start", place, label, program, str(int(START_SECONDS)), "yes" if enable else "")
    match = re.fullmatch(rb"(running|started) (\d+) (yes|)\n", done.out)
    if match:
        return Started(int(match[2]), match[1] == b"started", match[3] == b"yes")
    if done.code == 1:
        raise NotStarted(f"the worker on {reach.node.name} ended at once: {_sentence(done.last_line)}.")
    raise MachineFailed(f"no worker could be started on {reach.node.name} ({_sentence(done.last_line)}).")


def is_running(reach: Reach, place: str, *, label: str = WORKER) -> bool:
    """Whether the worker is there. Raises ConnectFailed."""
    return _run(reach, "running", place, label).code == 0


def stop(reach: Reach, place: str, *, label: str = WORKER, now: bool = False) -> bool:
    """Ends the worker over SSH, where it is not to be reached by way of Redis; whether there was one.

    Not `now`: it is told to finish what runs, and not waited for. `now`: it is gone afterwards, and so is what it ran.
    Raises ConnectFailed, MachineFailed.
    """
    done = _run(reach, "stop", place, label, str(int(STOP_SECONDS)), "yes" if now else "")
    if done.code not in (0, 1):
        raise MachineFailed(
            f"the worker on {reach.node.name} can't be stopped ({_sentence(done.last_line)})."
        )
    return done.code == 0


def disable(reach: Reach, place: str) -> None:
    """It does not come back after a reboot any more; one that is at work goes on. Raises ConnectFailed."""
    _run(reach, "disable", place, WORKER)


def stop_all(reach: Reach, place: str) -> bool:
    """Ends all workers in that place now, for good, those of runs too; whether there were any. Raises as `stop`."""
    disable(reach, place)
    labels = (
        reach.run(f"cd {shlex.quote(place)} 2>/dev/null && ls *.pid", seconds=STOP_SECONDS)
        .out.decode()
        .split()
    )
    stopped = [stop(reach, place, label=label.removesuffix(".pid"), now=True) for label in labels]
    return any(stopped)


def is_needed(reach: Reach, place: str) -> bool:
    """Whether any worker is at work in that place, or comes back after a reboot. Raises ConnectFailed."""
    return _run(reach, "needed", place, WORKER).code != 1


def log_script(place: str, *, lines: int, follow: bool) -> str:
    """Prints the end of a worker's log, and what comes, if it is followed."""
    log = shlex.quote(f"{place}/worker.log")
    how = "-F" if follow else ""
    return f"[ -e {log} ] || {{ echo 'no worker was started here yet'; exit; }}\nexec tail -n {lines} {how} {log}"


def unit_name(place: str, label: str) -> str:
    """Of systemd: homes may be shared, so each machine has one of its own."""
    master, _, machine = place.rpartition("/nodes/")
    return f"ppss-{master.rpartition('/')[2]}-{machine[:12]}-{label}.service"


def _run(reach: Reach, verb: str, place: str, label: str, *arguments: str) -> Done:
    script = resources.files(__package__).joinpath("service.sh").read_text()
    words = shlex.join([verb, place, label, unit_name(place, label), *arguments])
    return reach.run(f"set -- {words}\n{script}", seconds=START_SECONDS + STOP_SECONDS)


def _program(place: str, label: str, url: str, words: Sequence[str]) -> str:
    """Of LABEL.sh: the same for whoever starts it, a person included."""
    here = shlex.quote(place)
    return (
        f"#!/bin/sh\ncd {here} || exit\n"
        f"export PPSS_SSH_CONFIG={here}/ssh_config PPSS_STATE_DIR={here}/state\n"
        f"export PPSS_URL={shlex.quote(url)}\n"  # it may have a password, which `ps` must not show
        f"exec {here}/bin/ppss {shlex.join(words)} --pid-file {here}/{label}.pid </dev/null >>worker.log 2>&1\n"
    )


def _sentence(line: str) -> str:
    """What a program complained about, without its name and the time."""
    return re.sub(r"^(\d\d:\d\d:\d\d )?(! )?(ppss: )?", "", line).rstrip(".") or "it said nothing"
