"""Nodes that work without PPSS there: those of --on, and of a list with mode=ssh."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ppss_queue.cli.frame import accepts_new
from ppss_queue.errors import BadInput

if TYPE_CHECKING:
    from ppss_worker.settings import AgentlessNode

    from ppss_queue.nodes.spec import NodeSpec

WITHOUT_PPSS = "nodes without ppss"
"""Where `nodes_of_run` notes those with mode=ssh among the options of a run."""


def agentless_nodes(work: dict[str, Any]) -> tuple[AgentlessNode, ...]:
    """Those on which a worker is to run items, from its options. Raises BadInput."""
    specs: Iterable[NodeSpec] = work.get(WITHOUT_PPSS, ())
    if work["on"] is None and not specs:
        return ()
    from ppss_queue.cli.nodes import Which

    named = Which((), work["on"], work.get("nodes_file")).nodes() if work["on"] is not None else []
    return tuple({node.name: _made(node, work["nice"]) for node in (*specs, *named)}.values())


def _made(node: NodeSpec, nice: int) -> AgentlessNode:
    from ppss_worker.settings import AgentlessNode

    if node.host is None:
        raise BadInput("--on is for other machines; the slots of this one are -p N.")
    return AgentlessNode(
        node.name, node.host, node.slots or "100%", node.scratch, node.nice or nice, accepts_new()
    )
