"""Nodes that work without PPSS there: those of --on, and of a list with mode=ssh."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ppss_queue.cli.frame import accepts_new
from ppss_queue.errors import BadInput
from ppss_queue.units import parse_bytes, parse_gpus

if TYPE_CHECKING:
    from ppss_worker.settings import AgentlessNode

    from ppss_queue.nodes.spec import NodeSpec

WITHOUT_PPSS = "nodes without ppss"
"""Where `nodes_of_run` notes those with mode=ssh among the options of a run."""


def agentless_nodes(work: dict[str, Any], *, find_gpus: bool = False) -> tuple[AgentlessNode, ...]:
    """Those on which a worker is to run items, from its options. Raises BadInput.

    `find_gpus`: each is asked for its GPUs, unless the list tells which.
    """
    specs: Iterable[NodeSpec] = work.get(WITHOUT_PPSS, ())
    if work["on"] is None and not specs:
        return ()
    from ppss_queue.cli.nodes import Which

    named = Which((), work["on"], work.get("nodes_file")).nodes() if work["on"] is not None else []
    return tuple(
        {node.name: _made(node, work["nice"], find_gpus=find_gpus) for node in (*specs, *named)}.values()
    )


def _made(node: NodeSpec, nice: int, *, find_gpus: bool) -> AgentlessNode:
    from ppss_worker.settings import AgentlessNode

    if node.host is None:
        raise BadInput("--on is for other machines; the slots of this one are -p N.")
    return AgentlessNode(
        node.name,
        node.host,
        slots=node.slots or "100%",
        scratch=node.scratch,
        nice=node.nice or nice,
        gpus=parse_gpus(node.gpus) if node.gpus else None if find_gpus else (),
        cpus=int(node.cpus) if node.cpus else None,
        memory_bytes=parse_bytes(node.memory) if node.memory else None,
        accept_new=accepts_new(),
    )
