"""K29: VACUUM, checkpoints and a change of journal mode under the agent."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

from integration.cluster import SHARED_ROWS, Cluster, RefusedError, check_ledger, query, until

ROWS = 1_200
OPTIONS = ("--shared", str(SHARED_ROWS), "--deletes", "--rate", "200")


def test_vacuum_and_checkpoints_under_load_lose_nothing(tmp_path: Path) -> None:
    """On one node a program runs VACUUM, on another `wal_checkpoint(TRUNCATE)`, again and again while all nodes
    write: the write-ahead log shrinks and starts again under the agents' eyes, and pages move.
    """
    with Cluster(tmp_path) as cluster:
        ledgers = [cluster.ledger(number, ROWS, *OPTIONS) for number in range(3)]
        vacuum = cluster.program("repeat", 0, "--plain", "--times", "15", "--rate", "3", "--sql", "VACUUM")
        checkpoint = cluster.program(
            "repeat", 1, "--plain", "--times", "50", "--rate", "10", "--sql", "PRAGMA wal_checkpoint(TRUNCATE)"
        )
        assert json.loads(vacuum.finish())["done"] == 15
        assert json.loads(checkpoint.finish())["done"] == 50
        assert not all(ledger.committed() == ROWS for ledger in ledgers), "the writers were done before the maintenance"
        for ledger in ledgers:
            assert json.loads(ledger.finish())["committed"] == ROWS

        cluster.assert_converged()

        for agent in cluster.agents:
            check_ledger(agent.database, ledgers)


def test_the_rows_of_a_table_without_a_key_stay_themselves_under_vacuum(tmp_path: Path) -> None:
    """VACUUM gives new rowids to a table without INTEGER PRIMARY KEY (as a file without an agent shows here); a table
    without any key has nothing else to tell its rows apart. The agent sees to it that they stay. Updates and deletes
    before and after it must hit the same rows on every replica.
    """
    schema = """
        CREATE TABLE loose (label TEXT, n INTEGER);
        WITH RECURSIVE i (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM i WHERE n < 100)
        INSERT INTO loose SELECT 'l' || n, n FROM i;
    """
    with Cluster(tmp_path, schema) as cluster:
        application, other = cluster.application(0), cluster.application(1)
        application.execute("DELETE FROM loose WHERE n % 3 = 0")
        cluster.converge()
        numbers = "SELECT rowid, n FROM loose"
        before = query(cluster.agents[0].database, numbers)
        application.execute("VACUUM")
        assert query(cluster.agents[0].database, numbers) == before
        with closing(sqlite3.connect(tmp_path / "alone.db", isolation_level=None)) as alone:
            alone.executescript(f"{schema} DELETE FROM loose WHERE n % 3 = 0; VACUUM;")
            assert alone.execute(numbers).fetchall() != before, "VACUUM leaves all rowids as they are, agent or not"
        application.execute("UPDATE loose SET label = 'after' WHERE n % 10 = 1")
        application.execute("DELETE FROM loose WHERE n % 10 = 2")
        application.execute("INSERT INTO loose VALUES ('new', 1000), ('new', 1000)")
        cluster.converge()
        other.execute("UPDATE loose SET label = 'there' WHERE n % 10 = 4")

        contents = cluster.assert_converged()

        kept = [n for n in range(1, 101) if n % 3 and n % 10 != 2]
        labels = {1: "after", 4: "there"}
        expected = sorted([(labels.get(n % 10, f"l{n}"), n) for n in kept] + [("new", 1000)] * 2)
        assert len(contents["loose"]) == len(expected)
        for agent in cluster.agents:
            assert sorted(query(agent.database, "SELECT label, n FROM loose")) == expected, agent.node


def test_an_application_turns_its_file_to_wal_under_the_agent(tmp_path: Path) -> None:
    """A file in rollback mode becomes a WAL file while its agent runs and others write; the way back needs the file
    alone, so SQLite may refuse it as long as an agent is connected, and either answer must leave the replication as
    it was.
    """
    with Cluster(tmp_path, journal_mode="DELETE") as cluster:
        agent = cluster.agents[0]
        ledgers = [cluster.ledger(number, 400, *OPTIONS) for number in range(3)]
        until(lambda: all(ledger.committed() >= 50 for ledger in ledgers), "all writers are under way")

        application = cluster.application(0, busy_s=0.1)

        def turned_to_wal() -> bool:
            try:
                return bool(application.value("PRAGMA journal_mode = WAL") == "wal")
            except RefusedError:
                return False  # locked: another connection was in the middle of something

        until(turned_to_wal, "the application gets the moment it needs to change the mode")
        before = ledgers[0].committed()
        until(lambda: ledgers[0].committed() > before + 50, "the writer goes on in the new mode")
        with contextlib.suppress(RefusedError):
            application.execute("PRAGMA journal_mode = DELETE")
        for ledger in ledgers:
            ledger.finish()

        cluster.assert_converged()

        for replica in cluster.agents:
            check_ledger(replica.database, ledgers)
        assert query(agent.database, "PRAGMA journal_mode")[0][0] in {"wal", "delete"}
