"""K30: the database file is replaced under a running agent."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from integration.cluster import Cluster, check_ledger, query, reader, until

OPTIONS = ("--shared", "20", "--rate", "300")


def copy_of(source: Path, target: Path) -> None:
    """A copy of a live database, as `.backup` of the shell makes it."""
    with closing(reader(source)) as here, closing(sqlite3.connect(target)) as there:
        here.backup(there)


def put_in_place(copy: Path, database: Path) -> None:
    """Restore by hand: the old journal files go, the copy takes the name."""
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    os.replace(copy, database)


@pytest.mark.parametrize("origin", ["its own", "a peer's"])
def test_a_file_replaced_by_an_older_copy_catches_up_and_goes_on(tmp_path: Path, origin: str) -> None:
    """A copy of the node's own file or of a peer's is taken, everybody writes on, all of it is replicated; then
    somebody puts the copy in the place of the node's file, with the agent running. Everything that had reached the
    stream comes back from there, writes to the new file travel, and the replacement is a new run: nothing it says
    beats what it has not seen.
    """
    with Cluster(tmp_path) as cluster:
        agent = cluster.agents[0]
        early = [cluster.ledger(number, 200, *OPTIONS, name=f"early{number}") for number in range(3)]
        for ledger in early:
            ledger.finish()
        cluster.assert_converged()
        copy = tmp_path / "copy.db"
        copy_of(cluster.agents[0 if origin == "its own" else 1].database, copy)
        late = [cluster.ledger(number, 200, *OPTIONS, name=f"late{number}") for number in range(3)]
        for ledger in late:
            ledger.finish()
        cluster.assert_converged()
        runs = agent.metric("rsqlite_runs_started_total")

        put_in_place(copy, agent.database)
        assert query(agent.database, "SELECT count(*) FROM notes WHERE writer LIKE 'late%'") == [(0,)], (
            "the copy is not older"
        )
        until(
            lambda: agent.answers("/metrics") and agent.metric("rsqlite_runs_started_total") > runs,
            "the agent begins a new run on the new file",
        )
        until(lambda: agent.answers("/startupz"), "the agent has caught up")
        last = [cluster.ledger(number, 100, *OPTIONS, name=f"last{number}") for number in range(3)]
        for ledger in last:
            ledger.finish()

        cluster.assert_converged()

        for replica in cluster.agents:
            check_ledger(replica.database, early, late, last)
        assert agent.is_running()
