"""K27: applications in rollback-journal mode, with synchronous=FULL, and without a busy timeout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integration.cluster import SHARED_ROWS, Cluster, check_ledger, query

ROWS = 250


@pytest.mark.parametrize(
    ("journal_mode", "pragmas", "busy_s"),
    [
        ("DELETE", ["synchronous=FULL"], 10),
        ("TRUNCATE", ["journal_mode=TRUNCATE"], 10),
        ("PERSIST", ["journal_mode=PERSIST"], 10),
        ("DELETE", [], 0),
        ("WAL", ["synchronous=FULL"], 10),
        ("WAL", [], 0),
    ],
    ids=["delete full", "truncate", "persist", "delete no timeout", "wal full", "wal no timeout"],
)
def test_the_journal_mode_stays_the_applications_and_nothing_is_lost(
    tmp_path: Path, journal_mode: str, pragmas: list[str], busy_s: float
) -> None:
    """Writers on all nodes, in each mode. With a timeout no write fails; without one an application may meet a lock,
    as with any second process, and tries again. The agent leaves the mode of the file alone. HarmonyLite turned it to
    WAL.
    """
    with Cluster(tmp_path, journal_mode=journal_mode) as cluster:
        ledgers = [
            cluster.ledger(
                number, ROWS, "--shared", str(SHARED_ROWS), "--deletes", "--rate", "100", pragmas=pragmas, busy_s=busy_s
            )
            for number in range(3)
        ]
        for ledger in ledgers:
            summary = json.loads(ledger.finish())
            assert summary["committed"] == ROWS
            if busy_s:
                assert summary["locked"] == 0, "a write failed although the application waits ten seconds for a lock"

        cluster.assert_converged()

        expected = "wal" if journal_mode == "WAL" else "delete"
        for agent in cluster.agents:
            check_ledger(agent.database, ledgers)
            assert query(agent.database, "PRAGMA journal_mode") == [(expected,)], agent.node
            assert agent.metric("rsqlite_applied_rows_total") >= ROWS
            assert agent.metric("rsqlite_published_groups_total") >= 10
