"""From enqueue to the command's first action, workers idle: latency.py ADDRESS FIFO SAMPLES.

Each sample is a run of one item, whose command is a shell that writes a byte into the FIFO: so what is measured
is the way of the news to the worker, the claim, and the start of bash.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping

from leases import KEYS, Client, encode_item, probe

from ppss_queue.model import RunSpec

_PAUSE_SECONDS = 0.03
"""The worker is idle again by then."""


def measure(address: str, fifo: str, samples: int) -> Mapping[str, float]:
    client = Client(address)
    news = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    spec = RunSpec(command=f"echo > {fifo}")
    took = []
    for number in range(samples + 5):
        run = f"latency{number}"
        assert client.store.create(run, spec)
        client.store.add(run, [encode_item("1")])
        began = time.perf_counter()
        client.store.open(run)
        assert select.select([news], [], [], 30)[0], "the command did not start"
        took.append(time.perf_counter() - began)
        os.read(news, 64)
        time.sleep(_PAUSE_SECONDS)
    assert client.connection.execute("EXISTS", KEYS.run("latency0"))
    took = sorted(took[5:])  # the first ones wake up more than the worker
    return {"p50": took[len(took) // 2] * 1000, "p99": took[int(len(took) * 0.99)] * 1000}


probe(measure)
