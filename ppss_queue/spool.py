"""Rows on disk, for what needs all items at once, since there may be millions: written, then read in order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Literal

from ppss_queue.errors import MachineFailed

if TYPE_CHECKING:
    import sqlite3

Row = tuple[int, int, str]
"""Rank, root, name."""


def write_spool(rows: Iterable[Row]) -> sqlite3.Connection:
    """A private database in the temporary directory, gone when closed; 2 MB of it are kept in memory."""
    import sqlite3

    spool = sqlite3.connect("", check_same_thread=False)
    try:
        spool.execute("PRAGMA journal_mode = OFF")
        spool.execute("CREATE TABLE item (rank INTEGER, root INTEGER, name BLOB)")
        values = ((rank, root, os.fsencode(name)) for rank, root, name in rows)
        spool.executemany("INSERT INTO item VALUES (?, ?, ?)", values)
    except sqlite3.Error as error:
        raise _spool_failed(error) from None
    return spool


def read_spool(
    spool: sqlite3.Connection, order: Literal["rowid", "rank, rowid"]
) -> Iterator[tuple[int, str]]:
    """Root and name of each row in this order, "rowid" being the one in which they were written; closes it."""
    import sqlite3

    with closing(spool):
        try:
            for root, name in spool.execute(f"SELECT root, name FROM item ORDER BY {order}"):
                yield root, os.fsdecode(name)
        except sqlite3.Error as error:
            raise _spool_failed(error) from None


def _spool_failed(error: Exception) -> MachineFailed:
    return MachineFailed(f"can't keep the list in a temporary file ({error}). Make room, or set TMPDIR.")
