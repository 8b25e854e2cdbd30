"""How items and outputs are written so that RQ's viewers can read them, and how they are read back."""

from __future__ import annotations

import json

from ppss_queue.connection import Reply
from ppss_queue.model import Outcome

_WORD_JOINER = "\u2060"

# pickle of ("ppss_queue.broker.use_ppss_worker", None, (), {}): written for RQ's viewers, never read by us.
RQ_DATA = b"\x80\x02(U!ppss_queue.broker.use_ppss_workerN)}t."


def shown(name: str) -> str:
    """An item's text for RQ's viewers: strict UTF-8, and no markup, since the dashboard prints it raw."""
    clean = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return clean.replace("<", "‹")


def encode_item(name: str, root: int = 0) -> bytes:
    """The form that add.lua takes. `name` holds no NUL."""
    exact = name.encode("utf-8", "surrogateescape")
    visible = shown(name).encode("utf-8")
    if visible == exact and not root and exact:
        return exact
    return b"\0%s\0%s\0%s" % (
        str(root).encode() if root else b"",
        visible,
        exact if visible != exact else b"",
    )


def kept_output(output: bytes) -> bytes:
    """Output in the form in which RQ's viewers read it: zlib, then base64.

    The dashboard prints it raw: a word joiner, which no eye sees, behind each `<` keeps it from opening a tag.
    """
    import base64
    import zlib

    shown = output.decode("utf-8", "backslashreplace").replace("<", "<" + _WORD_JOINER)
    return base64.b64encode(zlib.compress(shown.encode("utf-8"), 6))


def read_kept_output(kept: bytes) -> str:
    """The other way round."""
    import base64
    import zlib

    return zlib.decompress(base64.b64decode(kept)).decode("utf-8").replace("<" + _WORD_JOINER, "<")


def outcome_of(reply: Reply) -> Outcome:
    """The `outcome` field of a job hash; anything else there counts as none."""
    try:
        return Outcome.from_json(reply if isinstance(reply, bytes) else None)
    except (json.JSONDecodeError, TypeError):
        return Outcome()
