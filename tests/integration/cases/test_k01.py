"""K1: three writers, disjoint keys. And the two ways in which a group begins."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from integration.cluster import FULL, NOTES, Cluster, check_ledger, query, reader

ROWS = 10_000 if FULL else 3_000


def test_three_writers_with_disjoint_keys_lose_nothing(tmp_path: Path) -> None:
    """Three applications insert as fast as they can, one row per transaction, while the agents carry the rows about.

    HarmonyLite lost about 1,700 of 30,000 rows on each replica. The run is void unless every agent published and
    applied while the writers wrote.
    """
    with Cluster(tmp_path) as cluster:
        ledgers = [cluster.ledger(number, ROWS) for number in range(3)]
        for ledger in ledgers:
            ledger.finish()

        contents = cluster.assert_converged()

        assert len(contents["notes"]) == 3 * ROWS
        for agent in cluster.agents:
            check_ledger(agent.database, ledgers)
            assert agent.metric("rsqlite_published_groups_total") >= 2, (
                "all writes went out at once: nothing overlapped"
            )
            assert agent.metric("rsqlite_applied_rows_total") >= 2 * ROWS
        assert cluster.total("rsqlite_conflicts_total") == 0


def test_a_group_begins_with_a_file_that_the_application_creates(tmp_path: Path) -> None:
    """No file exists anywhere. The first agent founds without one and says it is started; so the application starts,
    creates the file and fills it; the two others, which wait for a founder with data, join with all of it.
    """
    with Cluster(tmp_path, found=False) as cluster:
        first, *others = cluster.agents
        first.start()
        assert not first.database.exists(), "the agent must not create the application's file"
        for agent in others:
            agent.launch()

        with closing(reader(first.database)) as application:
            application.execute("PRAGMA journal_mode = WAL")
            application.executescript(NOTES)
            application.execute("INSERT INTO notes VALUES ('early', 'founder', 0, 'before capture or after it')")
        for agent in others:
            agent.wait_started()
        ledgers = [cluster.ledger(number, 200, "--shared", "20") for number in range(3)]
        for ledger in ledgers:
            ledger.finish()

        contents = cluster.assert_converged()

        assert len(contents["notes"]) == 3 * 200 + 1
        assert query(others[0].database, "SELECT value FROM notes WHERE id = 'early'") == [
            ("before capture or after it",)
        ]


def test_rows_from_before_the_agent_came_are_on_every_replica(tmp_path: Path) -> None:
    """A file with ten thousand rows is adopted; the joiners get them, and a change of an old row on a joiner travels
    back.
    """
    old = """
        WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
        INSERT INTO notes SELECT 'old-' || i, 'founder', i, 'old' FROM n;
    """
    with Cluster(tmp_path, NOTES + old) as cluster:
        cluster.application(1).execute("UPDATE notes SET value = 'new' WHERE n % 100 = 0")
        cluster.application(2).execute("DELETE FROM notes WHERE n % 100 = 1")

        contents = cluster.assert_converged()

        assert len(contents["notes"]) == 9_900
        assert query(cluster.agents[0].database, "SELECT count(*) FROM notes WHERE value = 'new'") == [(100,)]
        assert cluster.total("rsqlite_conflicts_total") == 0
