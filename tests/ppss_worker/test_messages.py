"""Messages between node and gate: what is put together for the way comes out as it was."""

from __future__ import annotations

import io
import random

import pytest
from ppss_worker.messages import PIECE_BYTES, MessageReader, joined, packed

from ppss_queue.errors import ConnectFailed


@pytest.mark.parametrize("most", [7, 40_000, PIECE_BYTES, 1 << 30])
def test_messages_sent_together_are_read_one_by_one_however_they_are_cut(most: int) -> None:
    chance = random.Random(5)
    sent = [
        ({"op": str(number)}, chance.randbytes(chance.choice((0, 1, 3000, PIECE_BYTES))))
        for number in range(60)
    ]
    pieces = list(joined(packed(header, data) for header, data in sent))
    stream = io.BytesIO(b"".join(pieces))
    reader = MessageReader(lambda _: stream.read(chance.randint(1, most)))
    assert [({"op": header["op"]}, data) for header, data in reader] == sent
    assert not reader.buffered


def test_a_stream_that_ends_within_a_message_was_cut() -> None:
    whole = packed({"op": "a"}, b"data") * 2
    for length in range(1, len(whole)):
        stream = io.BytesIO(whole[:length])
        reader = MessageReader(lambda _, stream=stream: stream.read(5))
        if length == len(whole) // 2:
            assert len(list(reader)) == 1
        else:
            with pytest.raises(ConnectFailed, match="in the middle of a message"):
                list(reader)


def test_small_messages_share_a_piece_and_large_ones_do_not_wait() -> None:
    small, large = packed({"made": True}), packed({}, bytes(PIECE_BYTES))
    assert list(joined([small] * 5)) == [small * 5]
    messages = iter([small, large, small])
    assert next(joined(messages)) == small + large
    assert list(joined([])) == []
