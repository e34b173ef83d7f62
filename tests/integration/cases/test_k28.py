"""K28: applications that open their file with DEFENSIVE and with untrusted schema."""

from __future__ import annotations

from pathlib import Path

from integration.cluster import Cluster

ROWS = 100


def test_a_defensive_application_writes_without_an_error(tmp_path: Path) -> None:
    """One node's application sets DEFENSIVE and TRUSTED_SCHEMA=OFF by `sqlite3_db_config`, another's says `PRAGMA
    trusted_schema=OFF` to the system's SQLite. Triggers may then use only harmless functions. In HarmonyLite every
    such write fails.
    """
    with Cluster(tmp_path) as cluster:
        defensive = [cluster.program("defensive", n, "--writer", f"d{n}", "--rows", str(ROWS)) for n in (0, 1)]
        untrusting = cluster.application(2, pragmas=["trusted_schema=OFF", "cell_size_check=ON"])
        for n in range(ROWS):
            untrusting.execute("INSERT INTO notes VALUES (?, 'u', ?, 'first')", f"u-{n}", n)
            untrusting.execute("UPDATE notes SET value = 'second' WHERE id = ?", f"u-{n}")
            untrusting.execute("REPLACE INTO notes VALUES (?, 'u', ?, 'third')", f"u-{n}", n)
        untrusting.execute("DELETE FROM notes WHERE n % 10 = 9 AND writer = 'u'")
        for program in defensive:
            assert int(program.finish()) == ROWS

        contents = cluster.assert_converged()

        assert len(contents["notes"]) == 3 * ROWS * 9 // 10
        assert cluster.total("rsqlite_conflicts_total") == 0
