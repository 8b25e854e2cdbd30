"""Memory of the server per item: memory.py ADDRESS ITEMS."""

from __future__ import annotations

from collections.abc import Mapping

from leases import Client, probe


def measure(address: str, items: int) -> Mapping[str, float]:
    client = Client(address)
    client.fill("warm", iter(["x" * 40] * 1000))  # scripts and buffers that stay
    client.drain(100)
    empty = client.used_memory()
    names = (f"data/experiment/{number:015d}.measured" for number in range(items))
    client.fill("memory", names)
    ready = client.used_memory()
    assert client.drain(100) == items
    return {"ready": (ready - empty) / items, "succeeded": (client.used_memory() - empty) / items}


probe(measure)
