"""K5: UPDATE of a primary key."""

from __future__ import annotations

from pathlib import Path

from integration.cluster import Cluster, query

SCHEMA = """
    CREATE TABLE numbered (id INTEGER PRIMARY KEY, v TEXT);
    CREATE TABLE named (id TEXT PRIMARY KEY, v TEXT);
    CREATE TABLE paired (a TEXT, b INTEGER, v TEXT, PRIMARY KEY (a, b));
    CREATE TABLE flat (id TEXT PRIMARY KEY, v TEXT) WITHOUT ROWID;
    CREATE TABLE loose (a TEXT PRIMARY KEY COLLATE NOCASE, v TEXT);
    INSERT INTO numbered VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four');
    INSERT INTO named VALUES ('1', 'one'), ('2', 'two'), ('3', 'three'), ('4', 'four');
    INSERT INTO paired VALUES ('x', 1, 'one'), ('x', 2, 'two'), ('y', 1, 'three'), ('y', 2, 'four');
    INSERT INTO flat VALUES ('1', 'one'), ('2', 'two'), ('3', 'three'), ('4', 'four');
    INSERT INTO loose VALUES ('name', 'one'), ('other', 'two');
"""

STEPS: list[tuple[int, str]] = [
    # to a new value
    (0, "UPDATE numbered SET id = 10 WHERE id = 1"),
    (0, "UPDATE named SET id = 'ten' WHERE id = '1'"),
    (0, "UPDATE paired SET b = 10 WHERE a = 'x' AND b = 1"),
    (0, "UPDATE flat SET id = 'ten' WHERE id = '1'"),
    # to a value that was used before, from another node
    (1, "UPDATE numbered SET id = 1 WHERE id = 2"),
    (1, "UPDATE named SET id = '1' WHERE id = '2'"),
    (1, "UPDATE paired SET b = 1 WHERE a = 'x' AND b = 2"),
    (1, "UPDATE flat SET id = '1' WHERE id = '2'"),
    # to a value that is present: the row there goes
    (2, "UPDATE OR REPLACE numbered SET id = 3 WHERE id = 4"),
    (2, "UPDATE OR REPLACE named SET id = '3' WHERE id = '4'"),
    (2, "UPDATE OR REPLACE paired SET b = 1 WHERE a = 'y' AND b = 2"),
    (2, "UPDATE OR REPLACE flat SET id = '3' WHERE id = '4'"),
    # the whole table at once, twice in a row
    (0, "UPDATE numbered SET id = -id"),
    (0, "UPDATE numbered SET id = 4 - id WHERE id < 0"),
    # only the bytes of the key, which its collation calls equal
    (1, "UPDATE loose SET a = 'NAME' WHERE a = 'name'"),
]


def test_an_update_of_a_primary_key_leaves_no_ghost(tmp_path: Path) -> None:
    """Keys move to new, to formerly used and to present values, in every kind of table, each time on another node.

    HarmonyLite keeps the row under its old key on every other replica.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        applications = [cluster.application(number) for number in range(3)]
        for number, statement in STEPS:
            applications[number].execute(statement)
            cluster.converge()

        cluster.assert_converged()

        expected = {
            "SELECT id, v FROM numbered ORDER BY id": [(5, "two"), (7, "four"), (14, "one")],
            "SELECT id, v FROM named ORDER BY id": [("1", "two"), ("3", "four"), ("ten", "one")],
            "SELECT a, b, v FROM paired ORDER BY a, b": [("x", 1, "two"), ("x", 10, "one"), ("y", 1, "four")],
            "SELECT id, v FROM flat ORDER BY id": [("1", "two"), ("3", "four"), ("ten", "one")],
            "SELECT a, v FROM loose ORDER BY v": [("NAME", "one"), ("other", "two")],
        }
        for agent in cluster.agents:
            for sql, rows in expected.items():
                assert query(agent.database, sql) == rows, f"{agent.node}: {sql}"
        assert cluster.total("rsqlite_conflicts_total") == 0


def test_a_key_that_dies_and_lives_again_four_times_is_alive(tmp_path: Path) -> None:
    """Delete and insert of one key in turn, each on the next node, then as one transaction."""
    with Cluster(tmp_path, SCHEMA) as cluster:
        applications = [cluster.application(number) for number in range(3)]
        for n in range(4):
            applications[n % 3].execute("DELETE FROM named WHERE id = '1'")
            cluster.converge()
            applications[(n + 1) % 3].execute("INSERT INTO named VALUES ('1', ?)", f"life {n}")
            cluster.converge()
        applications[2].script(
            "BEGIN; DELETE FROM named WHERE id = '1'; INSERT INTO named VALUES ('1', 'last'); COMMIT;"
        )

        cluster.assert_converged()

        for agent in cluster.agents:
            assert query(agent.database, "SELECT v FROM named WHERE id = '1'") == [("last",)], agent.node
        assert cluster.total("rsqlite_conflicts_total") == 0
