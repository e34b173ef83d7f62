"""K26: savepoints, rollbacks, INSERT OR IGNORE and UPSERT with a condition."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.cluster import Cluster, RefusedError, query

SCHEMA = """
    CREATE TABLE stock (id INTEGER PRIMARY KEY, sku TEXT UNIQUE, n INTEGER CHECK (n >= 0), seen TEXT);
    INSERT INTO stock VALUES (1, 'a', 1, 'first'), (2, 'b', 2, 'first'), (3, 'c', 3, 'first');
"""


def test_what_was_rolled_back_travels_nowhere_and_the_rest_arrives(tmp_path: Path) -> None:
    """Nested savepoints with releases and rollbacks, a rolled-back transaction, a statement that fails in the middle,
    and every form of conflict clause, in two transactions. The replicas end where the application ended.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        application = cluster.application(0)
        application.script("""
            BEGIN;
            INSERT INTO stock VALUES (10, 'ten', 10, 'kept');
            SAVEPOINT outer_point;
            INSERT INTO stock VALUES (11, 'eleven', 11, 'undone');
            UPDATE stock SET n = 100 WHERE id = 1;
            SAVEPOINT inner_point;
            DELETE FROM stock WHERE id = 2;
            ROLLBACK TO inner_point;
            RELEASE inner_point;
            ROLLBACK TO outer_point;
            INSERT INTO stock VALUES (12, 'twelve', 12, 'kept');
            RELEASE outer_point;
            COMMIT;
            BEGIN; DELETE FROM stock; INSERT INTO stock VALUES (99, 'ghost', 1, 'ghost'); ROLLBACK;
            INSERT OR IGNORE INTO stock VALUES (20, 'a', 20, 'ignored'), (21, 'twenty-one', 21, 'kept');
            INSERT INTO stock VALUES (1, 'a', 5, 'upserted')
              ON CONFLICT (id) DO UPDATE SET n = n + excluded.n, seen = 'upsert';
            INSERT INTO stock VALUES (30, 'b', 1, 'x')
              ON CONFLICT (sku) DO UPDATE SET n = excluded.n WHERE excluded.n > n;
            INSERT INTO stock VALUES (31, 'c', 9, 'x')
              ON CONFLICT (sku) DO UPDATE SET n = excluded.n WHERE excluded.n > n;
            INSERT INTO stock VALUES (32, 'b', 1, 'x') ON CONFLICT DO NOTHING;
        """)
        with pytest.raises(RefusedError, match="IntegrityError: CHECK"):
            application.execute("UPDATE stock SET n = n - 5")  # fails at the second row: nothing remains of it
        application.execute("UPDATE OR IGNORE stock SET n = n - 5 WHERE id IN (1, 2)")  # the first row only

        cluster.assert_converged()

        expected = [
            (1, "a", 1, "upsert"),
            (2, "b", 2, "first"),
            (3, "c", 9, "first"),
            (10, "ten", 10, "kept"),
            (12, "twelve", 12, "kept"),
            (21, "twenty-one", 21, "kept"),
        ]
        for agent in cluster.agents:
            assert query(agent.database, "SELECT * FROM stock ORDER BY id") == expected, agent.node
        assert cluster.total("rsqlite_conflicts_total") == 0


def test_a_statement_that_changed_nothing_beats_nothing(tmp_path: Path) -> None:
    """While NATS is away node 1 really changes three rows; *later* node 0 runs statements over the same rows that end
    without a change: OR IGNORE, DO NOTHING, and DO UPDATE with a condition that is false. Their triggers fire all the
    same. The real changes, which are older, must win everywhere, and there is no conflict, since node 0 wrote
    nothing.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        idle, writer = cluster.application(0), cluster.application(1)
        cluster.nats.stop()
        writer.execute("UPDATE stock SET n = n + 100, seen = 'really'")
        idle.execute("INSERT OR IGNORE INTO stock VALUES (40, 'a', 40, 'no')")
        idle.execute("INSERT INTO stock VALUES (41, 'b', 41, 'no') ON CONFLICT DO NOTHING")
        idle.execute(
            "INSERT INTO stock VALUES (42, 'c', 0, 'no') ON CONFLICT (sku) DO UPDATE SET n = 0 WHERE excluded.n > n"
        )
        cluster.nats.start()

        cluster.assert_converged()

        expected = [(1, "a", 101, "really"), (2, "b", 102, "really"), (3, "c", 103, "really")]
        for agent in cluster.agents:
            assert query(agent.database, "SELECT * FROM stock ORDER BY id") == expected, agent.node
        assert cluster.total("rsqlite_conflicts_total") == 0
