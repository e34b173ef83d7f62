"""K20: a write on a read-only replica."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.cluster import NOTES, Cluster, RefusedError, dump, query

WRITES = [
    "INSERT INTO notes VALUES ('mine', 'reader', 0, 'no')",
    "UPDATE notes SET value = 'no'",
    "DELETE FROM notes",
    "REPLACE INTO notes VALUES ('row', 'reader', 0, 'no')",
    "INSERT INTO notes VALUES ('row', 'reader', 0, 'no') ON CONFLICT DO UPDATE SET value = 'no'",
]


def test_a_read_only_replica_refuses_writes_and_follows(tmp_path: Path) -> None:
    """Every kind of write on the read-only node fails in SQLite itself, with a sentence, and changes nothing; it
    follows the others all the while. Set to read-write again, it takes writes. HarmonyLite accepts them there and
    diverges.
    """
    row = "INSERT INTO notes VALUES ('row', 'founder', 0, 'founded');"
    with Cluster(tmp_path, NOTES + row, settings={2: {"mode": "read-only"}}) as cluster:
        replica = cluster.agents[2]
        writer, refused = cluster.application(0), cluster.application(2)
        before = dump(replica.database)
        for statement in WRITES:
            with pytest.raises(RefusedError, match=r"(?i)read.only"):
                refused.execute(statement)
        assert dump(replica.database) == before

        writer.execute("UPDATE notes SET value = 'followed' WHERE id = 'row'")
        writer.execute("INSERT INTO notes VALUES ('more', 'writer', 1, 'also')")
        cluster.assert_converged()
        assert query(replica.database, "SELECT value FROM notes ORDER BY id") == [("also",), ("followed",)]

        assert replica.terminate() == 0
        replica.settings = {}
        replica.start()
        refused.execute(WRITES[0])

        contents = cluster.assert_converged()

        assert len(contents["notes"]) == 3
