"""K13: a delete on one node and a concurrent update of the row on another."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.cluster import NOTES, Cluster, query

ROW = "INSERT INTO notes VALUES ('contested', 'founder', 0, 'before');"


@pytest.mark.parametrize("apart", ["NATS away", "agent killed", "agent paused"])
@pytest.mark.parametrize("first", ["update", "delete"])
def test_a_delete_is_not_undone_by_a_concurrent_update(tmp_path: Path, first: str, apart: str) -> None:
    """Node 0 deletes a row while node 1, which cannot know, updates it, earlier or later by the clock. The update
    arrives after the delete and must not bring the row back, on any node; what it wrote is kept and counted as one
    conflict.
    """
    with Cluster(tmp_path, NOTES + ROW) as cluster:
        deleting, updating, third = cluster.agents
        deleter, updater = cluster.application(0), cluster.application(1)
        {"NATS away": cluster.nats.stop, "agent killed": updating.kill, "agent paused": updating.pause}[apart]()

        steps = {
            "update": lambda: updater.execute("UPDATE notes SET value = 'lost in the race' WHERE id = 'contested'"),
            "delete": lambda: deleter.execute("DELETE FROM notes WHERE id = 'contested'"),
        }
        steps[first]()
        steps["delete" if first == "update" else "update"]()
        if apart == "NATS away":
            assert query(third.database, "SELECT value FROM notes") == [("before",)], "they are not apart"
            cluster.nats.start()
        else:
            assert third.wait(deleting.position(), timeout=30), "the delete is everywhere before the update is sent"
            {"agent killed": updating.start, "agent paused": updating.resume}[apart]()

        cluster.assert_converged()

        for agent in cluster.agents:
            assert query(agent.database, "SELECT * FROM notes") == [], f"{agent.node}: the row is back"
        assert cluster.total("rsqlite_conflicts_total", table="notes") == 1
        assert "lost in the race" in updating.conflicts()
