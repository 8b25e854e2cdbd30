"""What the probes share: a client that claims, starts and acks through the calls of a worker.

A probe is a program of its own, run by the Python of the version under test: probe.py ADDRESS ARG...; it prints
what it measured as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from ppss_queue import scripts
from ppss_queue.address import Address
from ppss_queue.calls import Calls, read_claim
from ppss_queue.connection import Connection, Reply
from ppss_queue.keys import Keys
from ppss_queue.model import Lease, Outcome, RunSpec
from ppss_queue.rq_form import encode_item
from ppss_queue.store import Store

KEYS = Keys()
DONE = Outcome(exit_code=0, seconds=0.001, node="bench", slot=1)
_BATCH = 500


class Client:
    """One worker, as Redis sees it."""

    def __init__(self, address: str, name: str = "bench") -> None:
        self.connection = Connection.open(Address.parse(address), name="ppss-bench")
        self.store = Store(self.connection, KEYS)
        self.calls = Calls(KEYS, name, f"nonce-{name}")

    def fill(self, run: str, items: Iterator[str], *, opened: bool = True) -> str:
        """Makes a run."""
        assert self.store.create(run, RunSpec(command=("true",)))
        encoded = map(encode_item, items)
        while batch := list(islice(encoded, _BATCH)):
            self.store.add(run, batch)
        if opened:
            self.store.open(run)
        return run

    def call(self, call: scripts.Call) -> Reply:
        return scripts.run(self.connection, call)

    def claim(self, want: int) -> tuple[Lease, ...]:
        return read_claim(self.call(self.calls.claim(want, want))).leases

    def start(self, leases: tuple[Lease, ...]) -> None:
        """As a worker does for items that end soon; by a script in versions before 1.0."""
        if hasattr(self.calls, "begin"):
            self.connection.execute_many([self.calls.begin(lease) for lease in leases])
        else:
            self.call(self.calls.start(leases[0].run, [(lease, 1) for lease in leases]))

    def ack(self, leases: tuple[Lease, ...]) -> None:
        self.call(self.calls.ack(leases[0].run, [(lease, DONE, b"") for lease in leases]))

    def drain(self, want: int, most: int = 1 << 60) -> int:
        """Claims, starts and acks until nothing is left, or `most` are done; how many."""
        done = 0
        while done < most and (leases := self.claim(want)):
            self.start(leases)
            self.ack(leases)
            done += len(leases)
        return done

    def info(self, section: str) -> dict[str, str]:
        text = self.connection.execute("INFO", section)
        assert isinstance(text, bytes)
        return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)

    def used_memory(self) -> int:
        """Bytes, without the buffers of clients and of the append-only file."""
        memory = self.info("memory")
        buffers = sum(int(memory[name]) for name in ("mem_clients_normal", "mem_aof_buffer"))
        return int(memory["used_memory"]) - buffers

    def server_cpu_seconds(self) -> float:
        cpu = self.info("cpu")
        return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


def probe(measure: Callable[..., Mapping[str, float]]) -> None:
    """Runs `measure(ADDRESS, ARG...)`, numbers as numbers, and prints what it returns."""
    found = measure(sys.argv[1], *(int(word) if word.isdigit() else word for word in sys.argv[2:]))
    print(json.dumps(found), flush=True)
    os._exit(0)
