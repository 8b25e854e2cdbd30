"""The options that describe a run, in the order and the sections of the help."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import click

from ppss_queue.cli.completing import complete_directories, complete_files
from ppss_queue.cli.options import Bytes, Duration, Gpus, NodeName, Number, Slots, option

F = TypeVar("F", bound=Callable[..., Any])

_item = partial(option, section="Items")
_command = partial(option, section="Command")
_rule = partial(option, section="Rules")
_stage = partial(option, section="Files on nodes")
_work = partial(option, section="Work")

ITEM_OPTIONS = (
    click.argument("sources", nargs=-1, metavar="[SOURCE]...", shell_complete=complete_files),
    _item("-d", "--dir", "directories", multiple=True, metavar="DIR", shell_complete=complete_directories,
          help="Take the files below DIR, as a SOURCE."),
    _item("-f", "--list", "list_file", once=True, metavar="LIST", shell_complete=complete_files,
          help="Take the lines of a file; - is stdin."),
    _item("-0", "--null", "null", is_flag=True, help="Lines of the list end in NUL, as from find -print0."),
    _item("--delimiter", metavar="TEXT", help=r"Lines of the list end in TEXT; \n, \t, \r\n and \0 are understood."),
    _item("--files", is_flag=True, help="Lines of the list name files: $ITEM is absolute, -o mirrors their tree."),
    _item("--include", multiple=True, metavar="GLOB", help="Only files of directories that match (may be repeated)."),
    _item("--exclude", multiple=True, metavar="GLOB",
          help="No files or directories that match (may be repeated)."),
    _item("--max-depth", type=Number(1), metavar="N", help="Go N levels down; 1: files directly in a directory."),
    _item("--follow-links", is_flag=True, help="Follow symbolic links; loops are noticed."),
    _item("--order", type=click.Choice(["found", "random", "size"]), default="found", metavar="ORDER",
          help="found, random, or size: largest first.  [found]"),
)  # fmt: skip
COMMAND_OPTIONS = (
    _command("-c", "--command", once=True, metavar="CMD",
             help="Text for bash; it sees $ITEM, $OUTPUT_DIR, $OUTPUT_FILE and {}."),
    _command("-I", "--replace", "replacement", default="{}", metavar="STR", help="STR stands for the item.  [{}]"),
    _command("-o", "--output", once=True, metavar="DIR", shell_complete=complete_directories,
             help="Outputs appear below DIR, in the tree of the sources."),
    _command("--skip-existing", is_flag=True, help="Skip an item if $OUTPUT_FILE is in the output directory."),
    _command("--env", "env", multiple=True, metavar="NAME",
             help="Carry this variable or exported function along (may be repeated)."),
    _command("--no-check", is_flag=True, help="Do not look whether the command is installed here."),
    _command("--dry-run", is_flag=True, help="Print what would run for the first items, and do nothing."),
)  # fmt: skip
STAGE_OPTIONS = (
    _stage("--stage", is_flag=True,
           help="Copy files to nodes that reach this machine by SSH, and bring outputs home."),
    _stage("--also", multiple=True, metavar="NAME",
           help="Copy this file too where it is there, such as '{.}.xmp' (may be repeated)."),
    _stage("--with", "shared", multiple=True, metavar="FILE", shell_complete=complete_files,
           help="Copy this file once to each node; commands find it by the same relative path."),
    _stage("--return", "returns", multiple=True, metavar="NAME",
           help="Move what the command writes beside its item to -o, such as '{.}.png' (may be repeated)."),
    _stage("--verify", is_flag=True, help="Compare hashes of all that is copied."),
)  # fmt: skip
NODE_OPTIONS = (
    _stage("--scratch", metavar="DIR", shell_complete=complete_directories,
           help="Copy staged files to DIR. Default: below this user's state directory."),
    _stage("--scratch-limit", type=Bytes(), metavar="SIZE", help="Let copies take so much, such as 20G."),
    _stage("--stage-ahead", type=Number(0), metavar="N",
           help="Fetch the files of N items before their turn. Default: as many as slots."),
    _stage("--bwlimit", type=Bytes(), metavar="RATE", help="Copy so many bytes a second each way, such as 5M."),
    _stage("--compress", is_flag=True, help="Deflate what is copied; for slow lines."),
    _stage("--map", "maps", multiple=True, metavar="FROM=TO",
           help="This node sees the master's directory FROM as TO, so nothing is copied."),
)  # fmt: skip
RULE_OPTIONS = (
    _rule("--name", once=True, metavar="NAME", help="Call the run so, beside its id."),
    _rule("--timeout", type=Duration(minimum_seconds=0.001), metavar="TIME", help="Stop an item after 90, 10m, 2h."),
    _rule("--grace", type=Duration(), default="10s", metavar="TIME",
          help="Time from SIGTERM to SIGKILL for what is stopped.  [10s]"),
    _rule("--retries", type=Number(0), default=0, metavar="N", help="Try a failed item N times more.  [0]"),
    _rule("--retry-delay", type=Duration(), default="1s", metavar="TIME",
          help="Wait before the first retry; it doubles.  [1s]"),
    _rule("--retry-on", metavar="CODES", help="Retry only these exit codes, such as 1,75."),
    _rule("--no-retry-on", metavar="CODES", help="Do not retry these exit codes."),
    _rule("--halt", metavar="RULE", help="Halt the run at so many failures: now,fail=1 or soon,fail=10%."),
    _rule("--priority", type=Number(1, 1000), default=1, metavar="N", help="Share of the workers among runs.  [1]"),
    _rule("--gpus", type=Number(0), default=0, metavar="N",
          help="Each item needs N GPUs of its own, named in $CUDA_VISIBLE_DEVICES.  [0]"),
    _rule("--cpus", type=Number(1), metavar="N", help="Each item needs N cores of its node, beside its slot."),
    _rule("--mem", type=Bytes(), metavar="SIZE", help="Each item needs so much memory of its node, such as 8G."),
    _rule("--visibility", type=Duration(minimum_seconds=1), default="30s", metavar="TIME",
          help="A dead worker's items come back after this.  [30s]"),
    _rule("--max-lost", type=Number(0), default=3, metavar="N",
          help="Fail an item when more than N workers died on it.  [3]"),
    _rule("--keep-output", is_flag=True, help="Keep what succeeded items print too, for ppss log."),
    _rule("--keep", type=Duration(), default="7d", metavar="TIME", help="Forget the run so long after its end.  [7d]"),
)  # fmt: skip
WORK_OPTIONS = (
    _work("-p", "--slots", "-j", "-P", "slots", type=Slots(), metavar="N",
          help="Items at once: 8, 50%, -1 (all cores but one). Default: all cores."),
    _work("--on", once=True, metavar="LIST",
          help="Run items on these nodes too (8/big1,me@big2), over SSH: they need bash, and no PPSS."),
    _work("--nice", type=Number(-20, 19), default=0, metavar="N", help="Lower the priority of commands.  [0]"),
    _work("-D", "--delay", type=Duration(), default="0", metavar="TIME",
          help="Wait a random time up to this before the first item.  [0]"),
    _work("--logs", metavar="DIR", shell_complete=complete_directories,
          help="Write a log per item, and a job log as GNU parallel does."),
    _work("--node-name", type=NodeName(), metavar="NAME",
          help="Name of this machine in lists. Default: its host name."),
)  # fmt: skip
OFFER_OPTIONS = (
    _work("--gpus", "offered_gpus", type=Gpus(), envvar="PPSS_NODE_GPUS", metavar="N|LIST",
          help="Offer N GPUs, or these: 0,1. Default: what nvidia-smi finds, or $CUDA_VISIBLE_DEVICES."),
    _work("--cpus", "offered_cpus", type=Number(0), envvar="PPSS_NODE_CPUS", metavar="N",
          help="Offer N cores to items that need some. Default: all cores."),
    _work("--mem", "offered_mem", type=Bytes(), envvar="PPSS_NODE_MEM", metavar="SIZE",
          help="Offer so much memory, such as 60G. Default: all of it."),
)  # fmt: skip


def making_options(function: F) -> F:
    """Adds all options that describe a run."""
    return _add(ITEM_OPTIONS + COMMAND_OPTIONS + STAGE_OPTIONS + RULE_OPTIONS, function)


def work_options(function: F) -> F:
    """Adds the options of whoever runs items."""
    return _add(WORK_OPTIONS, function)


def offer_options(function: F) -> F:
    """Adds what a worker has for items that say what they need."""
    return _add(OFFER_OPTIONS, function)


def node_options(function: F) -> F:
    """Adds the options of a worker on another machine."""
    return _add(NODE_OPTIONS, function)


def _add(options: tuple[Callable[[F], F], ...], function: F) -> F:
    for decorate in reversed(options):
        function = decorate(function)
    return function
