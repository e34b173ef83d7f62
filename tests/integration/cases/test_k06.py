"""K6: REPLACE that displaces another row through a UNIQUE key."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.cluster import Cluster, query

SCHEMA = """
    CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT UNIQUE, name TEXT, badge INTEGER);
    CREATE UNIQUE INDEX badges ON users (badge) WHERE badge IS NOT NULL;
    INSERT INTO users VALUES
      (1, 'a@x', 'Ann', 11), (2, 'b@x', 'Bob', 12), (3, 'c@x', 'Cem', 13), (4, 'd@x', 'Dot', NULL);
"""


@pytest.mark.parametrize("recursive", ["OFF", "ON"])
def test_a_row_displaced_by_replace_is_gone_everywhere(tmp_path: Path, recursive: str) -> None:
    """REPLACE deletes rows without a word to AFTER DELETE triggers unless recursive_triggers is on. The displaced row
    must be gone on every replica all the same, and nothing may be counted as a conflict or wait as a hidden row.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        here, there = (cluster.application(n, pragmas=[f"recursive_triggers={recursive}"]) for n in (0, 1))
        here.execute("REPLACE INTO users VALUES (5, 'a@x', 'Eve', NULL)")  # displaces 1 through email
        cluster.converge()
        there.execute("REPLACE INTO users VALUES (6, 'b@x', 'Fay', 13)")  # displaces 2 and 3 at once
        cluster.converge()
        here.execute("UPDATE OR REPLACE users SET email = 'd@x' WHERE id = 5")  # displaces 4 by an update
        there.execute("INSERT OR REPLACE INTO users VALUES (6, 'b@x', 'Gus', 13)")  # displaces itself

        cluster.assert_converged()

        for agent in cluster.agents:
            rows = query(agent.database, "SELECT * FROM users ORDER BY id")
            assert rows == [(5, "d@x", "Eve", None), (6, "b@x", "Gus", 13)], agent.node
            assert agent.metric("rsqlite_hidden_rows") == 0
        assert cluster.total("rsqlite_conflicts_total") == 0


@pytest.mark.parametrize("recursive", ["OFF", "ON"])
def test_replace_inside_one_transaction_ends_as_the_application_left_it(tmp_path: Path, recursive: str) -> None:
    """Two rows exchange their unique values by REPLACE in one transaction, with a displaced row inserted anew."""
    with Cluster(tmp_path, SCHEMA) as cluster:
        cluster.application(0, pragmas=[f"recursive_triggers={recursive}"]).script("""
            BEGIN IMMEDIATE;
            REPLACE INTO users VALUES (1, 'b@x', 'Ann', 12);
            INSERT INTO users VALUES (2, 'a@x', 'Bob', 11);
            COMMIT;
        """)

        cluster.assert_converged()

        for agent in cluster.agents:
            rows = query(agent.database, "SELECT * FROM users WHERE id < 3 ORDER BY id")
            assert rows == [(1, "b@x", "Ann", 12), (2, "a@x", "Bob", 11)], agent.node
            assert agent.metric("rsqlite_hidden_rows") == 0
