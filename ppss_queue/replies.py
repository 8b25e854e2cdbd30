"""What Redis answers, in Python's types."""

from __future__ import annotations

from ppss_queue.connection import Reply
from ppss_queue.errors import ServiceFailed


def text(reply: Reply) -> str:
    """A bulk reply as text, byte for byte (surrogateescape)."""
    if isinstance(reply, bytes):
        return reply.decode("utf-8", "surrogateescape")
    return "" if reply is None else str(reply)


def as_bytes(reply: Reply) -> bytes:
    return reply if isinstance(reply, bytes) else b""


def integer(reply: Reply) -> int:
    return int(reply) if isinstance(reply, (int, bytes, str)) else 0


def as_list(reply: Reply) -> list[Reply]:
    if not isinstance(reply, list):
        raise ServiceFailed(f"Redis gave an answer that PPSS does not know: {reply!r}")
    return reply


def read_members(reply: Reply) -> tuple[str, ...]:
    """A list of texts."""
    return tuple(text(value) for value in as_list(reply))
