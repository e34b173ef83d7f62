"""Comparing databases bit by bit, the way the demo judges its three copies."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from replicated_sqlite_agent.demo.contents import describe_differences, differing_rows, read_all, row_count

TABLE = "CREATE TABLE t(id PRIMARY KEY, v);"


def make_files(folder: Path, *scripts: str) -> list[Path]:
    """One database per script."""
    paths = [folder / f"{number}.db" for number in range(len(scripts))]
    for path, script in zip(paths, scripts, strict=True):
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(script)
    return paths


def compare(folder: Path, *scripts: str) -> tuple[int, list[str]]:
    """(rows that differ, what is said about it) of databases made by these scripts, called a, b, c."""
    found = read_all(make_files(folder, *scripts))
    return differing_rows(found), describe_differences(dict(zip("abc", found, strict=False)))


def test_the_same_rows_in_another_order_are_equal(tmp_path: Path) -> None:
    first = TABLE + "INSERT INTO t VALUES (1, 'x'), (2, NULL), (3, x'00ff'), (4, 1.5)"
    second = TABLE + "INSERT INTO t VALUES (4, 1.5), (3, x'00ff'), (2, NULL), (1, 'x')"
    assert compare(tmp_path, first, second, first) == (0, [])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("1", "1.0", id="integer and real"),
        pytest.param("0.0", "-0.0", id="zeros of both signs"),
        pytest.param("'ab'", "x'6162'", id="text and blob"),
        pytest.param("'1'", "1", id="text and integer"),
        pytest.param("NULL", "''", id="nothing and empty"),
        pytest.param("CAST(x'ff' AS TEXT)", "CAST(x'fe' AS TEXT)", id="text that is not UTF-8"),
    ],
)
def test_values_are_equal_only_if_storage_class_and_bits_are(tmp_path: Path, one: str, other: str) -> None:
    scripts = [f"{TABLE} INSERT INTO t VALUES (7, {value})" for value in (one, one, other)]
    expected = [f"table t differs in 1 rows between {name} and c" for name in "ab"]
    assert compare(tmp_path, *scripts) == (1, expected)


def test_equal_rows_are_counted(tmp_path: Path) -> None:
    table = "CREATE TABLE t(v);"
    found = compare(tmp_path, table + "INSERT INTO t VALUES (1), (1)", table + "INSERT INTO t VALUES (1)")
    assert found == (1, ["table t differs in 1 rows between a and b"])


def test_a_table_that_one_lacks_is_a_difference_even_if_it_is_empty(tmp_path: Path) -> None:
    scripts = (TABLE, TABLE + "CREATE TABLE u(v)")
    assert compare(tmp_path, *scripts) == (1, ["table u is on b but not on a"])
    (tmp_path / "again").mkdir()
    assert compare(tmp_path / "again", *reversed(scripts)) == (1, ["table u is on a but not on b"])


def test_other_columns_are_a_difference(tmp_path: Path) -> None:
    found = compare(tmp_path, "CREATE TABLE t(a, b)", "CREATE TABLE t(b, a)")
    assert found == (1, ["table t has other columns on a than on b"])


def test_the_tables_of_the_agent_and_of_sqlite_do_not_count(tmp_path: Path) -> None:
    plain = "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT); CREATE VIRTUAL TABLE f USING fts5(x);"
    own = "CREATE TABLE __rsqlite_log(seq); INSERT INTO __rsqlite_log VALUES (1);"
    moved = "INSERT INTO t VALUES (9); DELETE FROM t; INSERT INTO f VALUES ('word');"
    assert compare(tmp_path, plain, plain + own + moved) == (0, [])


def test_rows_are_counted_over_all_tables_with_any_name(tmp_path: Path) -> None:
    script = 'CREATE TABLE "a ""b"""(v); INSERT INTO "a ""b""" VALUES (1), (2);' + TABLE + "INSERT INTO t VALUES (1, 2)"
    assert row_count(read_all(make_files(tmp_path, script))[0]) == 3


def test_a_comparison_sees_all_files_at_one_moment_while_others_write(tmp_path: Path) -> None:
    paths = make_files(tmp_path, *(["PRAGMA journal_mode = WAL;" + TABLE] * 2))
    with closing(sqlite3.connect(paths[1], isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO t VALUES (1, 2)")
        assert differing_rows(read_all(paths)) == 0
        writer.execute("COMMIT")
    assert differing_rows(read_all(paths)) == 1
