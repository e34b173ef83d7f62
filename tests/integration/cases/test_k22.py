"""K22: one transaction of a million rows."""

from __future__ import annotations

import json
from pathlib import Path

from integration.cluster import FULL, Cluster, query

ROWS = 1_000_000 if FULL else 150_000
SCHEMA = "CREATE TABLE big (id INTEGER PRIMARY KEY, v INTEGER, label TEXT);"
FILL = f"""
    INSERT INTO big WITH RECURSIVE ids (id) AS (VALUES (1) UNION ALL SELECT id + 1 FROM ids WHERE id < {ROWS})
    SELECT id, 0, 'row ' || id FROM ids
"""


def test_a_reader_never_sees_a_part_of_a_large_transaction(tmp_path: Path) -> None:
    """One transaction inserts all rows, the next changes them all, the last deletes all, while a reader on a replica
    looks as often as it can. It may see each of the four states, and nothing in between. HarmonyLite showed 39,000
    others.

    Void unless the group was too large for one message and the reader saw at least the last two states arrive.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        watch = cluster.watch(1, "SELECT count(*), min(v), max(v) FROM big")
        for statement in (FILL, "UPDATE big SET v = 1"):
            summary = json.loads(cluster.program("repeat", 0, "--times", "1", "--sql", statement).finish())
            assert summary["done"] == 1
            cluster.converge(timeout=300)
        cluster.assert_converged()
        cluster.program("repeat", 0, "--times", "1", "--sql", "DELETE FROM big").finish()
        cluster.converge(timeout=300)

        reads, seen = watch.seen()
        assert seen == [(0, None, None), (ROWS, 0, 0), (ROWS, 1, 1)], f"of {reads} reads"
        for agent in cluster.agents:
            assert query(agent.database, "SELECT count(*) FROM big") == [(0,)], agent.node
        for agent in cluster.agents[1:]:
            assert agent.metric("rsqlite_chunks_buffered_total") >= 2, "the groups went through in single messages"
            assert agent.metric("rsqlite_applied_rows_total") >= 3 * ROWS
