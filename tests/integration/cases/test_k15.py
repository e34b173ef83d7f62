"""K15: transfers between two tables."""

from __future__ import annotations

import json
from pathlib import Path

from integration.cluster import Cluster

TRANSFERS = 1_500
SCHEMA = """
    CREATE TABLE checking (id INTEGER PRIMARY KEY, amount INTEGER);
    CREATE TABLE savings (id INTEGER PRIMARY KEY, amount INTEGER);
    WITH RECURSIVE ids (id) AS (VALUES (0) UNION ALL SELECT id + 1 FROM ids WHERE id < 29)
    INSERT INTO checking SELECT id, 1000 FROM ids;
    INSERT INTO savings SELECT id, 1000 FROM checking;
"""
TOTAL = 30 * 2 * 1_000


def test_the_sum_is_constant_at_every_read_on_every_replica(tmp_path: Path) -> None:
    """Each node moves money between the two tables, in transactions on accounts of its own, while a reader on each
    node adds up everything. A transaction that is applied in parts shows another sum: with HarmonyLite in 98 % of the
    reads.

    Void unless the readers saw the money move.
    """
    everything = "(SELECT sum(amount) FROM checking)"
    with Cluster(tmp_path, SCHEMA) as cluster:
        watches = [
            cluster.watch(number, f"SELECT {everything} + (SELECT sum(amount) FROM savings), {everything}")
            for number in range(3)
        ]
        writers = []
        for number in range(3):
            account = f"{number} * 10 + (:i % 10)"
            moves = [
                f"UPDATE checking SET amount = amount - 1 - (:i % 3) WHERE id = {account}",
                f"UPDATE savings SET amount = amount + 1 + (:i % 3) WHERE id = {account}",
            ]
            writers.append(
                cluster.program(
                    "repeat", number, "--times", str(TRANSFERS), "--rate", "300", "--sql", moves[0], "--sql", moves[1]
                )
            )
        for writer in writers:
            assert json.loads(writer.finish())["done"] == TRANSFERS
        cluster.assert_converged()

        for agent, watch in zip(cluster.agents, watches, strict=True):
            reads, seen = watch.seen()
            torn = [row for row in seen if row[0] != TOTAL]
            assert not torn, f"{agent.node}: {len(torn)} of {len(seen)} different states are torn, e.g. {torn[:3]}"
            assert reads >= 100, "the reader hardly read"
            assert len(seen) >= 50, f"{agent.node}: the reader saw the money move only {len(seen)} times"
            assert agent.metric("rsqlite_applied_rows_total") >= 20
        assert cluster.total("rsqlite_conflicts_total") == 0
