"""K7: a column set to NULL, and back."""

from __future__ import annotations

from pathlib import Path

from integration.cluster import Cluster, query

SCHEMA = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT DEFAULT 'default', w INTEGER);
    INSERT INTO t VALUES (1, 'a', 1);
"""


def test_null_is_a_value_that_travels(tmp_path: Path) -> None:
    """A column loses its value on one node, gets one on the next and loses it on the third; a default must not creep
    in.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        applications = [cluster.application(number) for number in range(3)]
        steps = [(0, None), (1, "back"), (2, None), (0, ""), (1, None), (2, "end"), (0, None)]
        for number, value in steps:
            applications[number].execute("UPDATE t SET v = ? WHERE id = 1", value)
            cluster.assert_converged()
            for agent in cluster.agents:
                assert query(agent.database, "SELECT v, w FROM t") == [(value, 1)], agent.node
        applications[0].execute("INSERT INTO t VALUES (2, NULL, NULL)")

        cluster.assert_converged()

        for agent in cluster.agents:
            assert query(agent.database, "SELECT v, w FROM t WHERE id = 2") == [(None, None)], agent.node
        assert cluster.total("rsqlite_conflicts_total") == 0
