"""A node that was away: rows per second from where it begins to consume, beside a bare executemany of the same rows."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import apsw

from benchmarks.bulk import write
from benchmarks.capture import prepare
from benchmarks.figures import Figure, Goal, typical
from benchmarks.rig import PATIENCE_S, Agent, Cluster, Scale, newest_id, published, reader, same_rows

ROWS = 500_000
BARE_TRANSACTION_ROWS = 20_000
GOAL = 0.5
LOOK_S = 0.005


def measure(folder: Path, cluster: Cluster, scale: Scale) -> list[Figure]:
    """The ratio, and rows per second both ways."""
    first, second = cluster.agents
    bare_file = prepare(folder / "bare.db", captured=False)
    count = scale.rows(ROWS)
    ours, bare, ratios = [], [], []
    for _ in range(scale.rounds):
        second.terminate()
        base = newest_id(first.database)
        write(first.database, count)
        published(first)
        rows = _rows_after(first.database, base)
        bare.append(_bare(bare_file, rows))
        del rows
        ours.append(_caught_up(second, base + count))
        assert same_rows(first, second), "the replicas differ"
        ratios.append(ours[-1] / bare[-1])
    detail = (
        f"{typical(ours):,.0f} rows/s, executemany {typical(bare):,.0f}; rounds {min(ratios):.2f} to {max(ratios):.2f}"
    )
    return [Figure(f"catch-up of {count:,} rows", typical(ratios), "x", GOAL, Goal.AT_LEAST, detail)]


def _rows_after(path: Path, base: int) -> list[tuple[object, ...]]:
    with closing(reader(path)) as connection:
        return connection.execute("SELECT id, a, b FROM narrow WHERE id > ?", (base,)).fetchall()


def _bare(path: Path, rows: list[tuple[object, ...]]) -> float:
    """Rows per second of a program that does nothing but insert them."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.pragma("synchronous", "NORMAL")
        connection.execute("DELETE FROM narrow WHERE id >= ?", (rows[0][0],))
        began = time.perf_counter()
        for start in range(0, len(rows), BARE_TRANSACTION_ROWS):
            with connection:
                part = rows[start : start + BARE_TRANSACTION_ROWS]
                connection.executemany("INSERT INTO narrow VALUES (?, ?, ?)", part)
        return len(rows) / (time.perf_counter() - began)


def _caught_up(agent: Agent, last: int) -> float:
    """Start the agent; rows per second from the first rows that it shows to the last."""
    with closing(reader(agent.database)) as connection:
        before = _newest(connection)
        agent.launch()
        first_seen, began = before, 0.0
        ends = time.monotonic() + PATIENCE_S
        while (newest := _newest(connection)) < last:
            if first_seen == before and newest > before:
                first_seen, began = newest, time.monotonic()
            assert time.monotonic() < ends, "the rows did not arrive"
            time.sleep(LOOK_S)
        rate = (last - first_seen) / (time.monotonic() - began)
    agent.wait_started()
    return rate


def _newest(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(id), 0) FROM narrow").fetchone()[0])
