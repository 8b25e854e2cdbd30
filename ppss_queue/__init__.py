"""PPSS runs one command per item on all cores of all machines: a queue of items in Redis, taken under leases.

    from pathlib import Path
    from ppss_queue import connect

    with connect() as queue:
        run = queue.enqueue(Path("scans").rglob("*.pdf"), command='ocrmypdf "$ITEM" "$OUTPUT_DIR/$OUTPUT_FILE"',
                            output="searchable")
        for item in run.results():
            print(item.name, item.state)

Names are imported when they are first used, so that `import ppss_queue` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ppss_queue.errors import PpssError
    from ppss_queue.model import ItemView, RunState, State
    from ppss_queue.queue import Queue, connect
    from ppss_queue.run import Run
    from ppss_queue.store import Counts

__version__ = "1.0.0"

_HOMES = {
    "connect": "queue",
    "Queue": "queue",
    "Run": "run",
    "Counts": "store",
    "ItemView": "model",
    "RunState": "model",
    "State": "model",
    "PpssError": "errors",
}

__all__ = ["Counts", "ItemView", "PpssError", "Queue", "Run", "RunState", "State", "connect"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ppss_queue' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"ppss_queue.{_HOMES[name]}"), name)
