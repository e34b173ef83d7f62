"""K10: FTS5 beside the tables; names that need quotes."""

from __future__ import annotations

from pathlib import Path

from integration.cluster import Application, Cluster, query, quote

FTS = """
    CREATE TABLE docs (id INTEGER PRIMARY KEY, title TEXT, body TEXT);
    CREATE VIRTUAL TABLE docs_index USING fts5(title, body, content='docs', content_rowid='id');
    CREATE TRIGGER docs_ai AFTER INSERT ON docs BEGIN
      INSERT INTO docs_index (rowid, title, body) VALUES (new.id, new.title, new.body);
    END;
    CREATE TRIGGER docs_ad AFTER DELETE ON docs BEGIN
      INSERT INTO docs_index (docs_index, rowid, title, body) VALUES ('delete', old.id, old.title, old.body);
    END;
    CREATE TRIGGER docs_au AFTER UPDATE ON docs BEGIN
      INSERT INTO docs_index (docs_index, rowid, title, body) VALUES ('delete', old.id, old.title, old.body);
      INSERT INTO docs_index (rowid, title, body) VALUES (new.id, new.title, new.body);
    END;
    CREATE VIRTUAL TABLE area USING rtree(id, x0, x1);
    INSERT INTO docs VALUES (1, 'first', 'alpha beta'), (2, 'second', 'beta gamma'), (3, 'third', 'gamma delta');
"""

TABLES = [
    "order",
    "a b",
    'x"y',
    "it's",
    "[square]",
    "`tick`",
    "tête-à-tête",
    "100%",
    "select",
    "a.b",
    "semi;colon",
    "Ω",
]
COLUMNS = ["group", "select", "a b", 'x"y', "it's", "new", "old", "key", "rowid", "oid", "_rowid_", "1st", "größe"]


def matches(application: Application, word: str) -> list[int]:
    """Ids of the documents that the index finds."""
    found = application.execute("SELECT rowid FROM docs_index WHERE docs_index MATCH ? ORDER BY rowid", word)
    return [row[0] for row in found]


def test_a_full_text_index_is_right_on_every_replica(tmp_path: Path) -> None:
    """An FTS5 index over a table, fed by the usual triggers, follows the rows on every replica, for inserts, updates
    and deletes from any node; its own integrity check agrees. An R*Tree stands beside it. HarmonyLite refuses to
    start.
    """
    with Cluster(tmp_path, FTS) as cluster:
        applications = [cluster.application(n, pragmas=["recursive_triggers=ON"]) for n in range(3)]  # for REPLACE
        applications[0].execute("INSERT INTO docs VALUES (4, 'fourth', 'epsilon alpha')")
        applications[1].execute("UPDATE docs SET body = 'omega' WHERE id = 2")
        applications[2].execute("DELETE FROM docs WHERE id = 3")
        cluster.assert_converged()
        applications[1].execute("REPLACE INTO docs VALUES (4, 'fourth', 'zeta beta')")
        applications[0].execute("UPDATE docs SET id = 30 WHERE id = 1")

        cluster.assert_converged()

        for application in applications:
            found = {word: matches(application, word) for word in ("alpha", "beta", "gamma", "delta", "omega", "zeta")}
            assert found == {"alpha": [30], "beta": [4, 30], "gamma": [], "delta": [], "omega": [2], "zeta": [4]}
            application.execute("INSERT INTO docs_index (docs_index, rank) VALUES ('integrity-check', 1)")


def test_any_name_of_a_table_or_column_is_replicated(tmp_path: Path) -> None:
    """Reserved words, quotes, spaces, brackets, dots and letters of any kind, in tables, columns and compound keys."""
    columns = ", ".join(f"{quote(name)} TEXT" for name in COLUMNS)
    schema = "".join(
        f"CREATE TABLE {quote(table)} ({columns}, PRIMARY KEY ({quote('group')}, {quote('a b')}));" for table in TABLES
    )
    with Cluster(tmp_path, schema) as cluster:
        here, there = cluster.application(0), cluster.application(1)
        marks = ", ".join("?" * len(COLUMNS))
        for n, table in enumerate(TABLES):
            for row in range(3):
                values = [f"{n} {row} {name}" for name in COLUMNS]
                here.execute(f"INSERT INTO {quote(table)} VALUES ({marks})", *values)
        cluster.converge()
        for n, table in enumerate(TABLES):
            where = f"WHERE {quote('group')} = ?"
            there.execute(f"UPDATE {quote(table)} SET {quote('select')} = 'changed' {where}", f"{n} 0 group")
            there.execute(f"UPDATE {quote(table)} SET {quote('a b')} = 'moved' {where}", f"{n} 1 group")
            there.execute(f"DELETE FROM {quote(table)} {where}", f"{n} 2 group")

        contents = cluster.assert_converged()

        assert sorted(contents) == sorted(TABLES)
        for agent in cluster.agents:
            for n, table in enumerate(TABLES):
                rows = query(
                    agent.database, f"SELECT {quote('group')}, {quote('select')}, {quote('a b')} FROM {quote(table)}"
                )
                expected = {(f"{n} 0 group", "changed", f"{n} 0 a b"), (f"{n} 1 group", f"{n} 1 select", "moved")}
                assert set(rows) == expected, f"{agent.node}: {table}"
            assert agent.metric("rsqlite_tables_paused") == 0
