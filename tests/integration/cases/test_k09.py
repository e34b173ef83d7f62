"""K9: every value, bit for bit."""

from __future__ import annotations

from pathlib import Path

from integration.cluster import Cluster, dump

VALUES = {
    "boolean two": "2",
    "invalid UTF-8": "CAST(x'61ff00fe62' AS TEXT)",
    "overlong UTF-8": "CAST(x'c0af' AS TEXT)",
    "surrogate": "CAST(x'eda080' AS TEXT)",
    "cut UTF-8": "CAST(x'e282' AS TEXT)",
    "noncharacter": "CAST(x'efbfbf' AS TEXT)",
    "text of NUL bytes": "CAST(x'000000' AS TEXT)",
    "text with NUL inside": "CAST(x'61006200' AS TEXT)",
    "blob of NUL bytes": "x'000000'",
    "largest integer": "9223372036854775807",
    "smallest integer": "-9223372036854775807 - 1",
    "minus zero": "-0.0",
    "infinity": "9e999",
    "minus infinity": "-9e999",
    "largest real": "1.7976931348623157e308",
    "smallest real": "5e-324",
    "tenth": "0.1",
    "2^53 + 1 as integer": "9007199254740993",
    "2^53 as real": "9007199254740992.0",
    "2^63 as real": "9223372036854775808.0",
    "one": "1",
    "one as real": "1.0",
    "one as text": "'1'",
    "number with zeros as text": "'007'",
    "large number as text": "'123456789012345678901234567890'",
    "exponent as text": "'1e3'",
    "empty text": "''",
    "empty blob": "x''",
    "null": "NULL",
    "emoji": "'\N{GRINNING FACE} e\N{COMBINING ACUTE ACCENT}'",
    "newlines and quotes": "char(13, 10, 9, 39, 34, 92)",
    "byte order mark": "char(65279) || 'x'",
}

COLUMNS = (
    "v, b BOOLEAN, i INTEGER, r REAL, t TEXT, x BLOB, n NUMERIC, d DECIMAL(10, 2), c VARCHAR(3) COLLATE NOCASE, j JSON"
)
WIDTH = 10

SCHEMA = f"""
    CREATE TABLE facts (name TEXT PRIMARY KEY, {COLUMNS}, double AS (v || v), kept AS (typeof(v)) STORED);
    CREATE TABLE keyed (k PRIMARY KEY, name TEXT) WITHOUT ROWID;
    CREATE TABLE typed (name TEXT PRIMARY KEY, a ANY, r REAL, i INTEGER, t TEXT, x BLOB) STRICT;
"""


def test_every_value_is_the_same_bit_for_bit_everywhere(tmp_path: Path) -> None:
    """Each value goes into columns of every affinity, into keys and into a STRICT table; one node inserts, another
    changes every row. The writer's own file must stay as SQLite wrote it, and the others must equal it, with `typeof`
    and bits.

    HarmonyLite alters most of them; one text of invalid UTF-8 makes every node crash again and again.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        writer, other = cluster.application(0), cluster.application(1)
        for name, value in VALUES.items():
            writer.execute(
                f"INSERT INTO facts (name, v, b, i, r, t, x, n, d, c, j) VALUES (?{f', {value}' * WIDTH})", name
            )
            if value != "NULL":
                writer.execute(f"INSERT OR IGNORE INTO keyed VALUES ({value}, ?)", name)
            writer.execute(f"INSERT INTO typed (name, a) VALUES (?, {value})", name)
        written = dump(cluster.agents[0].database)
        assert cluster.assert_converged() == written
        assert len(written["facts"]) == len(VALUES)
        assert len({row[1] for row in written["facts"]}) == len(VALUES), "two values of the list are one"

        other.execute("UPDATE facts SET b = 3, t = 'changed'")
        other.execute("UPDATE keyed SET name = name || ' changed'")
        other.execute("UPDATE typed SET i = 3, r = -0.0, t = CAST(x'ff00' AS TEXT), x = x''")
        changed = dump(cluster.agents[1].database)
        assert cluster.assert_converged() == changed
        assert {row[:2] for row in changed["facts"]} == {row[:2] for row in written["facts"]}

        other.execute("DELETE FROM keyed WHERE typeof(k) = 'text'")
        deleted = dump(cluster.agents[1].database)
        assert cluster.assert_converged() == deleted
        assert cluster.total("rsqlite_dead_letters_total") == 0
        assert cluster.total("rsqlite_conflicts_total") == 0


def test_a_change_of_storage_class_or_case_alone_is_a_change(tmp_path: Path) -> None:
    """1 becomes 1.0 becomes '1' becomes a blob; 'a' becomes 'A' where the collation calls them equal."""
    schema = "CREATE TABLE t (id INTEGER PRIMARY KEY, v, c TEXT COLLATE NOCASE); INSERT INTO t VALUES (1, 1, 'a');"
    with Cluster(tmp_path, schema) as cluster:
        writer = cluster.application(0)
        for value in ("1.0", "'1'", "x'31'", "1"):
            writer.execute(f"UPDATE t SET v = {value}")
            written = dump(cluster.agents[0].database)
            assert cluster.assert_converged() == written
        writer.execute("UPDATE t SET c = 'A'")

        assert cluster.assert_converged()["t"] == [("integer:1", "integer:1", "text:41")]
