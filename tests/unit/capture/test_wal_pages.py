"""The price of capture in pages of the write-ahead log: exact counts, so no other work on the machine can blur them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import mean, median

import pytest

from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.replica.state import Replica

ROWS = 20_000
"""In the table beforehand: its B-tree has several levels, as an application's has."""
TRANSACTIONS = 1_000
WAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24

SCHEMA = f"""
    PRAGMA journal_mode = WAL;
    CREATE TABLE items (id INTEGER PRIMARY KEY, a INTEGER, b TEXT);
    WITH RECURSIVE ids (id) AS (VALUES (1) UNION ALL SELECT id + 1 FROM ids WHERE id < {ROWS})
    INSERT INTO items SELECT id, id, 'row ' || id FROM ids;
"""

STATEMENTS: dict[str, Callable[[int], tuple[str, tuple[int, ...]]]] = {
    "INSERT": lambda n: ("INSERT INTO items VALUES (?, ?, 'new')", (ROWS + 1 + n, n)),
    "UPDATE": lambda n: ("UPDATE items SET a = -1 - ? WHERE id = ?", (n, scattered(n))),
    "DELETE": lambda n: ("DELETE FROM items WHERE id = ?", (scattered(n),)),
}
"""The n-th single-row transaction of each kind."""


def scattered(n: int) -> int:
    """The n-th of distinct ids all over the table."""
    return 1 + n * 7_919 % ROWS


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An application's connection to a table without capture."""
    with closing(application(tmp_path / "bare.db")) as connection:
        yield connection


@pytest.fixture
def captured(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An application's connection to the same table with capture."""
    path = tmp_path / "captured.db"
    application(path).close()
    replica = Replica(path, CaptureOptions("a"), Counters())
    replica.start_run(1, "pages", "a")
    replica.close()
    with closing(application(path)) as connection:
        yield connection


def application(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode that never checkpoints, so that the log only grows."""
    fresh = not path.exists()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    if fresh:
        connection.executescript(SCHEMA)
    return connection


def frames(connection: sqlite3.Connection) -> int:
    """Pages in the write-ahead log of the connection's database."""
    path = connection.execute("SELECT file FROM pragma_database_list").fetchone()[0]
    page = connection.execute("PRAGMA page_size").fetchone()[0] + FRAME_HEADER_BYTES
    count, rest = divmod(Path(f"{path}-wal").stat().st_size - WAL_HEADER_BYTES, page)
    assert rest == 0
    return int(count)


def pages_each(connection: sqlite3.Connection, kind: str) -> list[int]:
    """Pages that each of the transactions writes."""
    written = []
    before = frames(connection)
    for n in range(TRANSACTIONS):
        connection.execute(*STATEMENTS[kind](n))
        after = frames(connection)
        written.append(after - before)
        before = after
    return written


@pytest.mark.parametrize("kind", STATEMENTS)
def test_a_single_row_transaction_writes_one_page_more(
    bare: sqlite3.Connection, captured: sqlite3.Connection, kind: str
) -> None:
    """The log row goes to the last page of the log; a new page for it is rare."""
    bare.execute(*STATEMENTS[kind](TRANSACTIONS))  # the write-ahead log now exists
    captured.execute(*STATEMENTS[kind](TRANSACTIONS))

    more = [
        with_it - without for with_it, without in zip(pages_each(captured, kind), pages_each(bare, kind), strict=True)
    ]

    assert 1 == median(more)
    assert mean(more) <= 1.03
