"""Claim, start and ack without execution: engine.py ADDRESS ITEMS BATCH [MOST], of MOST items or all."""

from __future__ import annotations

import time
from collections.abc import Mapping

from leases import Client, probe


def measure(address: str, items: int, batch: int, most: int | None = None) -> Mapping[str, float]:
    client = Client(address)
    client.fill("engine", (f"item {number}" for number in range(items)))
    cpu, began = client.server_cpu_seconds(), time.perf_counter()
    done = client.drain(batch, most or items)
    seconds, cpu = time.perf_counter() - began, client.server_cpu_seconds() - cpu
    assert done >= min(items, most or items), done
    return {"rate": done / seconds, "cpu": cpu / done * 1e6}


probe(measure)
