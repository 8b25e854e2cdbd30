"""ppss worker, and what every worker is told."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppss_queue.cli.agentless import agentless_nodes
from ppss_queue.cli.completing import complete_runs
from ppss_queue.cli.frame import WORDS, Verb, open_queue, state_directory
from ppss_queue.cli.making import node_options, offer_options, work_options
from ppss_queue.cli.options import cores_here, option, url_option
from ppss_queue.cli.say import typed, warn
from ppss_queue.cli.staging import open_files_of, stage_settings
from ppss_queue.errors import BadInput, ExitCode, MachineFailed
from ppss_queue.model import RunSpec, RunState
from ppss_queue.units import plural, printable

if TYPE_CHECKING:
    from ppss_worker.offer import Offer
    from ppss_worker.settings import Settings

_FILES_PER_NODE = 16
"""Its connection, and what paramiko takes to tell of the channels."""
_FILES_PER_SLOT_ELSEWHERE = 4
"""Two captures, and room for files on their way."""


@click.command(
    "worker",
    cls=Verb,
    takes_words=True,
    usage="""
    [OPTION]...
    [OPTION]... -c CMD | -- PROG ARG...
    """,
    examples="""
    ppss worker
    ppss worker --burst -p 50%
    ppss worker --run k3v9 --nice 10
    ppss worker --gpus 0,1 --cpus 8 --mem 60G
    ppss worker -p 0 --on 16/big1,4/me@big2
    ppss worker --url ssh://me@master --scratch /fast --scratch-limit 20G
    ppss worker --url redis://:password@10.0.0.5 --logs /var/log/ppss
    """,
)
@work_options
@option("-c", "--command", section="Work", metavar="CMD", help="Command for runs that have none.")
@option("--burst", section="Work", is_flag=True, help="End when nothing is left.")
@option(
    "--run",
    "runs",
    section="Work",
    multiple=True,
    envvar="PPSS_RUNS",  # PPSS_RUN is what a command sees
    metavar="RUN",
    shell_complete=complete_runs,
    help="Serve only this run (may be repeated).",
)
@option("-q", "--quiet", section="Work", is_flag=True, help="Do not log each item.")
@option(
    "--pid-file",
    section="Work",
    metavar="FILE",
    help="Write the process id there; end if another worker holds the file.",
)
@offer_options
@node_options
@url_option
@click.pass_context
def worker_verb(
    context: click.Context,
    /,
    command: str | None,
    burst: bool,
    runs: tuple[str, ...],
    quiet: bool,
    pid_file: str | None,
    url: str | None,
    **work: Any,
) -> int:
    """Take items of all runs and run them until stopped.

    SIGTERM finishes what runs, a second one hands it back. Ctrl-C hands it back, a second one does so at once.
    """
    from ppss_worker.offer import NO_OFFER
    from ppss_worker.settings import Stop
    from ppss_worker.worker import Worker

    from ppss_queue.cli.pidfile import PidFile
    from ppss_queue.cli.workerlog import WorkerLog
    from ppss_queue.queue import check

    words: tuple[str, ...] | None = context.meta.get(WORDS)
    if work["slots"] == 0 and work["on"] is None:
        raise BadInput("a worker needs at least one slot: -p 1")
    if words is None:
        say_where_command_is_from(context)
    elif not words:
        raise BadInput("there is no command after '--'. Write -- PROG ARG...")
    if words or command:
        check(RunSpec(command=words or command, output="/"))
    logs = log_directory(work)
    check_slots(work)
    with ExitStack() as stack:
        held = stack.enter_context(PidFile(Path(pid_file))) if pid_file else None
        queue = stack.enter_context(open_queue(url, clones=1))  # for its leases
        for warning in queue.warnings:
            warn(warning)
        served = tuple(queue.run(name).id for name in runs)
        for run in served:
            if queue.run(run).status().state is RunState.PAUSED:
                warn(f"run {run} is paused. Go on: {typed(f'resume {run}')}")
        offer = NO_OFFER
        if slots_here(work):
            offer = offer_here(work["offered_gpus"], work["offered_cpus"], work["offered_mem"])
        settings = settings_of(
            work, burst=burst, runs=served, command=words or command, offer=offer, find_gpus=True
        )
        gpus = [f"GPU {', '.join(offer.gpus)}"] if offer.gpus else []
        facts = [plural(settings.slots, "slot"), *gpus, queue.connection.address.display()]
        log = WorkerLog(state_directory(), logs, " · ".join(facts), held, quiet=quiet)
        worker = Worker(queue.connection, queue.keys, settings, log, open_files_of(queue))
        worker.work()
        log.say(f"worker {worker.name} ended: {log.summary}")
    if worker.stopping >= Stop.NOW:
        return ExitCode.INTERRUPTED
    return ExitCode.CORRECT_INPUT if burst and worker.left_runs_alone else ExitCode.OK


def settings_of(
    work: dict[str, Any],
    *,
    burst: bool,
    runs: tuple[str, ...],
    command: str | tuple[str, ...] | None = None,
    line_buffer: bool = False,
    prints: bool = False,
    offer: Offer,
    find_gpus: bool,
) -> Settings:
    """The settings of a worker, from `work_options`. Makes this process as nice as they say.

    `find_gpus`: agentless nodes are asked for theirs.
    """
    from ppss_worker.settings import Settings

    if work["nice"]:
        try:
            os.nice(work["nice"])
        except PermissionError:
            raise BadInput(f"--nice {work['nice']}: only root may raise a priority. Give 0 to 19.") from None
    return Settings(
        slots=slots_here(work),
        node=work["node_name"] or socket.gethostname().split(".")[0] or "localhost",
        state_directory=state_directory(),
        burst=burst,
        runs=runs,
        command=command,
        start_delay_seconds=random.uniform(0, work["delay"]),
        line_buffer=line_buffer,
        prints=prints,
        stage=stage_settings(work, state_directory()),
        offer=offer,
        nodes=agentless_nodes(work, find_gpus=find_gpus),
    )


def slots_here(work: dict[str, Any]) -> int:
    """On this machine."""
    return cores_here() if work["slots"] is None else int(work["slots"])


def offer_here(
    gpus: Sequence[str] | None = None, cpus: int | None = None, memory_bytes: int | None = None
) -> Offer:
    """What was said, and for what was not, what this machine has. Where its GPUs can't be asked for, that is said."""
    from ppss_worker.offer import Offer

    try:
        return Offer.here(gpus, cpus, memory_bytes)
    except MachineFailed as error:
        warn(f"{error}. Say which there are: {typed('worker --gpus 0,1')}")
        return Offer.here((), cpus, memory_bytes)


def check_slots(work: dict[str, Any]) -> None:
    """Raises BadInput if this machine can't have so many at once; raises the limit of open files if it must."""
    from ppss_worker.slots import allow_files

    nodes = agentless_nodes(work)
    slots_elsewhere = sum(node.known_slots or cores_here() for node in nodes)
    allow_files(slots_here(work), len(nodes) * _FILES_PER_NODE + slots_elsewhere * _FILES_PER_SLOT_ELSEWHERE)


def log_directory(work: dict[str, Any]) -> Path | None:
    """Where --logs goes; it is made here, before any item runs. Raises BadInput."""
    if work["logs"] is None:
        return None
    directory = Path(work["logs"]).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadInput(f"the log directory '{work['logs']}' is a file. Name a directory.") from None
    except OSError as error:
        raise BadInput(f"can't make the log directory '{work['logs']}' ({error.strerror}).") from None
    return directory


def say_where_command_is_from(context: click.Context) -> None:
    """A command that nobody typed is announced."""
    if context.get_parameter_source("command") is click.core.ParameterSource.DEFAULT_MAP:
        warn(f"the command is from ppss.toml: {printable(str(context.params.get('command')))}")
