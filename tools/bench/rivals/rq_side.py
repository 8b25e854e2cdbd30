"""What a user of rq would write: rq_side.py URL LIST|TREE enqueues; `rq worker-pool` then does the work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice

BATCH = 1000


def run_true(item: str) -> None:
    """One job."""
    subprocess.run(["true", item], check=True)


def _items(place: str) -> Iterator[str]:
    if not os.path.isdir(place):
        with open(place) as lines:
            yield from (line.rstrip("\n") for line in lines)
        return
    for folder, _, names in os.walk(place):
        yield from (os.path.join(folder, name) for name in names)


def main(url: str, place: str) -> None:
    import rq_side  # the name by which workers import the function
    from redis import Redis
    from rq import Queue

    queue = Queue("rival", connection=Redis.from_url(url))
    items = _items(place)
    while batch := list(islice(items, BATCH)):
        queue.enqueue_many([Queue.prepare_data(rq_side.run_true, (item,)) for item in batch])


if __name__ == "__main__":
    main(*sys.argv[1:])
