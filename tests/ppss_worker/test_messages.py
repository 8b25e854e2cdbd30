"""Messages between node and gate: what is put together for the way comes out as it was."""

from __future__ import annotations

import io
import random

from ppss_worker.messages import PIECE_BYTES, MessageReader, joined, packed


def test_messages_sent_together_are_read_one_by_one() -> None:
    chance = random.Random(5)
    sent = [
        ({"op": str(number)}, chance.randbytes(chance.choice((0, 1, 3000, PIECE_BYTES))))
        for number in range(60)
    ]
    pieces = list(joined(packed(header, data) for header, data in sent))
    read = [({"op": header["op"]}, data) for header, data in MessageReader(io.BytesIO(b"".join(pieces)).read)]
    assert read == sent


def test_small_messages_share_a_piece_and_large_ones_do_not_wait() -> None:
    small, large = packed({"made": True}), packed({}, bytes(PIECE_BYTES))
    assert list(joined([small] * 5)) == [small * 5]
    messages = iter([small, large, small])
    assert next(joined(messages)) == small + large
    assert list(joined([])) == []
