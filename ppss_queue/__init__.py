"""PPSS runs one command per item on all cores of all machines: a queue of items in Redis, taken under leases."""

from __future__ import annotations

__version__ = "1.0.0"
