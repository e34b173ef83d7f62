"""K24: foreign keys with cascades, deferred checks and self references."""

from __future__ import annotations

from pathlib import Path

from integration.cluster import Cluster, query, until

SCHEMA = """
    CREATE TABLE parents (id TEXT PRIMARY KEY, name TEXT);
    CREATE TABLE children (
      id TEXT PRIMARY KEY,
      parent TEXT REFERENCES parents (id) ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED
    );
    CREATE TABLE toys (id TEXT PRIMARY KEY, child TEXT REFERENCES children (id) ON DELETE SET NULL);
    CREATE TABLE nodes (id INTEGER PRIMARY KEY, up INTEGER REFERENCES nodes (id) ON DELETE CASCADE);
    INSERT INTO parents VALUES ('p1', 'one'), ('p2', 'two'), ('p3', 'three');
    INSERT INTO children VALUES ('c1', 'p1'), ('c2', 'p1'), ('c3', 'p2'), ('c4', 'p3');
    INSERT INTO toys VALUES ('t1', 'c1'), ('t2', 'c3'), ('t3', 'c4');
    INSERT INTO nodes VALUES (1, NULL), (2, 1), (3, 1), (4, 2), (5, 4), (6, 6);
"""
FOREIGN_KEYS = ["foreign_keys=ON"]


def test_cascades_arrive_as_the_rows_they_changed(tmp_path: Path) -> None:
    """Deletes and key updates that cascade, a child inserted before its parent under a deferred key, a tree and a row
    that refers to itself: each on another node, and no file has a violation in the end. HarmonyLite leaves a ghost
    parent.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        applications = [cluster.application(number, pragmas=FOREIGN_KEYS) for number in range(3)]
        applications[0].execute("DELETE FROM parents WHERE id = 'p1'")
        cluster.converge()
        applications[1].execute("UPDATE parents SET id = 'p2 moved' WHERE id = 'p2'")
        applications[2].execute("DELETE FROM nodes WHERE id = 2")
        cluster.converge()
        applications[0].script("""
            BEGIN;
            INSERT INTO children VALUES ('c5', 'p5');
            INSERT INTO parents VALUES ('p5', 'five');
            COMMIT;
        """)
        applications[1].execute("DELETE FROM nodes WHERE id = 6")
        applications[2].execute("DELETE FROM children WHERE id = 'c4'")

        cluster.assert_converged()

        expected: dict[str, list[tuple[object, ...]]] = {
            "SELECT id FROM parents ORDER BY id": [("p2 moved",), ("p3",), ("p5",)],
            "SELECT id, parent FROM children ORDER BY id": [("c3", "p2 moved"), ("c5", "p5")],
            "SELECT id, child FROM toys ORDER BY id": [("t1", None), ("t2", "c3"), ("t3", None)],
            "SELECT id, up FROM nodes ORDER BY id": [(1, None), (3, 1)],
            "PRAGMA foreign_key_check": [],
        }
        for agent in cluster.agents:
            for sql, rows in expected.items():
                assert query(agent.database, sql) == rows, f"{agent.node}: {sql}"
        assert cluster.total("rsqlite_conflicts_total") == 0


def test_an_orphan_of_concurrent_delete_and_insert_is_reported_and_the_same_everywhere(tmp_path: Path) -> None:
    """While NATS is away one node deletes a parent and another gives it a child. Both were right where they were
    made; after the merge every replica has the child without its parent and says so.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        deleter, inserter = cluster.application(0, pragmas=FOREIGN_KEYS), cluster.application(1, pragmas=FOREIGN_KEYS)
        cluster.nats.stop()
        deleter.execute("DELETE FROM parents WHERE id = 'p3'")
        inserter.execute("INSERT INTO children VALUES ('orphan', 'p3')")
        cluster.nats.start()

        cluster.assert_converged()

        for agent in cluster.agents:
            assert query(agent.database, "SELECT id FROM children WHERE parent = 'p3'") == [("orphan",)], agent.node
        until(
            lambda: [agent.metric("rsqlite_fk_orphans") for agent in cluster.agents] == [1, 1, 1],
            "every agent reports the orphan",
        )
