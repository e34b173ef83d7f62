"""What capture does when the application changes its schema, and what SQLite changes by itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.capture.uninstall import uninstall
from replicated_sqlite_agent.changes import ZERO, Key, RowState
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import open_database
from replicated_sqlite_agent.database.schema import Table, read_schema
from replicated_sqlite_agent.replica.state import Replica
from replicated_sqlite_agent.settings import Merge, Policy, Tables

SCHEMA = """
CREATE TABLE note(a, b);
CREATE TABLE doc(id INTEGER PRIMARY KEY, a, b);
INSERT INTO note VALUES ('one', 1), ('two', 2), ('three', 3);
INSERT INTO doc VALUES (1, 'a', 'b'), (2, 'a', 'b');
"""
RUN = 7


class File:
    """A replicated file, its application and its agent."""

    def __init__(self, path: Path, schema: str = SCHEMA) -> None:
        self.path = path
        self.app = sqlite3.connect(path, isolation_level=None)
        self.app.executescript(schema)
        self.start(RUN)

    def start(self, run: int) -> None:
        """A new run of the agent."""
        options = CaptureOptions("here", Tables(policies=(Policy(table="doc", merge=Merge.COLUMN_LWW),)))
        self.replica = Replica(self.path, options, Counters())
        self.replica.start_run(run, "c", "here")

    def fold(self) -> None:
        """What the agent does once a second."""
        with self.replica.transaction():
            self.replica.fold_all()

    def versions(self, table: str, key: Key) -> RowState:
        """The stored versions of a row."""
        captured = self.replica.catalog.named(table)
        assert captured is not None
        stored = self.replica.rows_of(captured).entry(key)
        assert stored is not None
        return stored.state


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    """A file under capture."""
    file = File(tmp_path / "app.db")
    yield file
    file.replica.close()
    file.app.close()


def test_vacuum_keeps_the_rowids_of_a_table_without_key_or_index(file: File) -> None:
    file.app.execute("DELETE FROM note WHERE a = 'one'")
    before = file.app.execute("SELECT rowid, a FROM note").fetchall()
    file.app.execute("VACUUM")
    assert file.app.execute("SELECT rowid, a FROM note").fetchall() == before == [(2, "two"), (3, "three")]


def test_a_restart_before_the_fold_leaves_names_on_their_rows(file: File) -> None:
    file.app.execute("DELETE FROM note WHERE a = 'one'")
    file.app.execute("INSERT INTO note VALUES ('four', 4)")
    file.replica.close()
    file.start(RUN + 1)
    names = file.app.execute("SELECT run, number, a FROM __rsqlite_v_note JOIN note ON note.rowid = k1").fetchall()
    assert {(0, 2, "two"), (0, 3, "three")} < set(names)


def test_uninstall_takes_the_index_away_too(tmp_path: Path) -> None:
    file = File(tmp_path / "app.db")
    file.replica.close()
    uninstall(file.path)
    assert file.app.execute("SELECT name FROM sqlite_schema WHERE name LIKE '%rsqlite%'").fetchall() == []
    file.app.close()


def test_a_new_column_is_as_old_as_the_life_of_its_row(file: File) -> None:
    file.app.execute("UPDATE doc SET a = 'new' WHERE id = 1")
    file.fold()
    file.app.execute("ALTER TABLE doc ADD COLUMN c DEFAULT 'd'")
    file.fold()
    state = file.versions("doc", (1,))
    assert state.version_of("a").run == RUN
    assert (state.version_of("b"), state.version_of("c")) == (ZERO, ZERO)


def test_a_new_column_filled_in_the_step_that_made_it_is_a_local_write(file: File) -> None:
    file.app.executescript(
        "BEGIN; ALTER TABLE doc ADD COLUMN c DEFAULT 'd'; UPDATE doc SET c = 'x' WHERE id = 2; COMMIT"
    )
    file.fold()
    state = file.versions("doc", (2,))
    assert state.version_of("c").run == RUN
    assert state.version_of("a") == ZERO


@pytest.mark.parametrize(
    ("declared", "exact"),
    [
        ("TEXT", True),
        ("VARCHAR(9)", True),
        ("INTEGER", True),
        ("NUMERIC", True),
        ("DECIMAL(10, 2)", True),
        ("TEXT COLLATE NOCASE", False),
        ("REAL", False),
        ("BLOB", False),
        ("", False),
    ],
)
def test_which_keys_can_be_equal_with_different_bytes(tmp_path: Path, declared: str, exact: bool) -> None:
    path = tmp_path / "app.db"
    app = sqlite3.connect(path)
    app.execute(f"CREATE TABLE t(k {declared} NOT NULL, v, PRIMARY KEY(k)) WITHOUT ROWID")
    app.close()
    db = open_database(path)
    table: Table = read_schema(db).tables["t"]
    db.close()
    assert table.key_is_exact is exact
    if declared in ("", "REAL", "BLOB"):
        assert table.same_key((1.0,)) == table.same_key((1,))
        assert repr(table.same_key((-0.0,))) == repr(table.same_key((0.0,))) == "(0,)"
        assert table.same_key(("1",)) != table.same_key((1,))
