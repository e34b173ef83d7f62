"""K14: the user's own audit trigger."""

from __future__ import annotations

from pathlib import Path

from integration.cluster import Cluster, query

SCHEMA = """
    CREATE TABLE accounts (id TEXT PRIMARY KEY, balance INTEGER);
    CREATE TABLE audit (
      id TEXT PRIMARY KEY DEFAULT (lower(hex(randomblob(16)))), what TEXT, account TEXT, balance INTEGER
    );
    CREATE TABLE journal (id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT);
    CREATE TRIGGER audit_insert AFTER INSERT ON accounts BEGIN
      INSERT INTO audit (what, account, balance) VALUES ('insert', new.id, new.balance);
      INSERT INTO journal (what) VALUES ('insert ' || new.id);
    END;
    CREATE TRIGGER audit_update AFTER UPDATE OF balance ON accounts BEGIN
      INSERT INTO audit (what, account, balance) VALUES ('update', new.id, new.balance);
    END;
    CREATE TRIGGER audit_delete BEFORE DELETE ON accounts BEGIN
      INSERT INTO audit (what, account, balance) VALUES ('delete', old.id, old.balance);
    END;
"""


def test_a_users_trigger_runs_once_for_each_write(tmp_path: Path) -> None:
    """A trigger writes an audit row for each change. The row is written by the node of the change and replicated; the
    trigger must not run again where the change is applied. HarmonyLite doubles the rows, at the origin too.
    """
    with Cluster(tmp_path, SCHEMA) as cluster:
        applications = [cluster.application(number) for number in range(3)]
        for n in range(20):
            applications[0].execute("INSERT INTO accounts VALUES (?, ?)", f"a{n}", n)
        cluster.converge()
        applications[1].execute("UPDATE accounts SET balance = balance + 100 WHERE balance < 10")
        cluster.converge()
        applications[2].execute("DELETE FROM accounts WHERE balance >= 15 AND balance < 20")

        contents = cluster.assert_converged()

        assert len(contents["journal"]) == 20
        for agent in cluster.agents:
            counts = query(agent.database, "SELECT what, count(*), count(DISTINCT account) FROM audit GROUP BY what")
            assert counts == [("delete", 5, 5), ("insert", 20, 20), ("update", 10, 10)], agent.node
        assert cluster.agents[2].metric("rsqlite_applied_rows_total") >= 20 + 20 + 20 + 10 + 10, (
            "nothing was applied there"
        )
