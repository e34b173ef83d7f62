"""K16: kill -9 between publishing and trimming."""

from __future__ import annotations

from pathlib import Path

from integration.cluster import NOTES, Cluster, query, until

ROWS = 50


def test_what_is_published_but_not_trimmed_when_the_agent_is_killed_changes_nothing(tmp_path: Path) -> None:
    """An application commits fifty rows and begins its next transaction at once, so the agent can publish (for that
    it reads) but can note nothing in the file. When the rows are on the other nodes the agent is killed.

    Before it comes back, another node changes one of the rows and deletes one. The restarted agent finds all fifty in
    its log, says them again, and neither the change nor the delete may be undone. HarmonyLite's replicas differ then.
    """
    with Cluster(tmp_path, NOTES) as cluster:
        first, second, third = cluster.agents
        application, other = cluster.application(0), cluster.application(1)
        rows = "".join(f"INSERT INTO notes VALUES ('n{n}', 'w', {n}, 'old');" for n in range(ROWS))
        application.script(f"BEGIN IMMEDIATE; {rows} COMMIT; BEGIN IMMEDIATE;")
        until(
            lambda: all(query(agent.database, "SELECT count(*) FROM notes") == [(ROWS,)] for agent in (second, third)),
            "the rows are on the other nodes",
        )
        first.kill()
        application.execute("ROLLBACK")
        untrimmed = query(first.database, "SELECT count(*) FROM __rsqlite_log")[0][0]
        assert untrimmed >= ROWS, f"only {untrimmed} rows are in the log: the agent had trimmed before it was killed"

        other.execute("UPDATE notes SET value = 'new' WHERE id = 'n0'")
        other.execute("DELETE FROM notes WHERE id = 'n1'")
        assert third.wait(second.position(), timeout=30)
        first.start()
        application.execute("INSERT INTO notes VALUES ('after', 'w', 0, 'after')")

        contents = cluster.assert_converged()

        assert len(contents["notes"]) == ROWS - 1 + 1
        for agent in cluster.agents:
            assert query(agent.database, "SELECT value FROM notes WHERE id = 'n0'") == [("new",)], agent.node
            assert query(agent.database, "SELECT 1 FROM notes WHERE id = 'n1'") == [], agent.node
        assert cluster.total("rsqlite_conflicts_total") == 0
        until(lambda: first.metric("rsqlite_log_rows") <= 1, "the log is trimmed in the end")
