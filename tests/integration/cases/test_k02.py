"""K2: a thousand increments of one row on one node."""

from __future__ import annotations

import json
from pathlib import Path

from integration.cluster import Cluster, query

SCHEMA = "CREATE TABLE counters (id INTEGER PRIMARY KEY, n INTEGER); INSERT INTO counters VALUES (1, 0), (2, 0);"


def test_a_thousand_increments_of_one_row_make_a_thousand(tmp_path: Path) -> None:
    """One application counts up while its agent publishes the row, and applies what another node counts in another
    row.

    An agent that applies its own old states back sets the row back in time: of 1,000 increments HarmonyLite left 21.
    Void unless the row went out many times in between and the other node's row came in.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        here = cluster.program("repeat", 0, "--times", "1000", "--sql", "UPDATE counters SET n = n + 1 WHERE id = 1")
        there = cluster.program("repeat", 1, "--times", "1000", "--sql", "UPDATE counters SET n = n + 1 WHERE id = 2")
        for program in (here, there):
            assert json.loads(program.finish())["done"] == 1_000

        cluster.assert_converged()

        for agent in cluster.agents:
            assert query(agent.database, "SELECT id, n FROM counters ORDER BY id") == [(1, 1_000), (2, 1_000)], (
                agent.node
            )
        for agent in cluster.agents[:2]:
            assert agent.metric("rsqlite_published_groups_total") >= 10, "the row hardly travelled while it was counted"
            assert agent.metric("rsqlite_applied_rows_total") >= 10, "nothing came in while the row was counted"
        assert cluster.total("rsqlite_conflicts_total") == 0
