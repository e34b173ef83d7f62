"""A file's life beside an agent: NATS away at the start, files that were there before, sessions from node to node."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from integration.cluster import Agent, Cluster, query, reader, until

NOTE = "INSERT INTO notes(id, writer, n, value) VALUES (?, ?, 0, ?)"


def _write(agent: Agent, key: str, value: str) -> None:
    with closing(reader(agent.database)) as application, application:
        application.execute(NOTE, (key, agent.node, value))


def _values(agent: Agent) -> dict[str, str]:
    return {key: value for key, value in query(agent.database, "SELECT id, value FROM notes")}


def test_a_session_moves_to_another_node_and_finds_its_write_there(tmp_path: Path) -> None:
    """The application takes a token after its write and waits for it on another node; no sleep, no polling."""
    with Cluster(tmp_path, size=2) as cluster:
        first, second = cluster.agents
        for number in range(20):
            _write(first, f"k{number}", "mine")
            assert second.wait(first.position(), timeout=10)
            assert _values(second)[f"k{number}"] == "mine"


def test_a_flush_says_what_became_of_a_write(tmp_path: Path) -> None:
    """All members while all are there; with NATS away the flush ends with 504 and the write is still on disk."""
    with Cluster(tmp_path, size=2) as cluster:
        first, second = cluster.agents
        _write(first, "one", "1")
        assert first.get("/v1/flush?acks=all&timeout=20", timeout=30).status == 200
        assert "one" in _values(second)
        assert first.get("/v1/flush?acks=7&timeout=1").status == 504

        cluster.nats.kill()
        _write(first, "two", "2")
        assert first.get("/v1/flush?acks=stream&timeout=1").status == 504
        assert first.answers("/readyz"), "an outage of NATS must not make a pod unready"
        cluster.nats.start()

        cluster.assert_converged()
        assert _values(second) == {"one": "1", "two": "2"}


def test_an_agent_that_finds_no_nats_captures_and_publishes_later(tmp_path: Path) -> None:
    """NATS is away when the agent starts on its file: the application may start after the configured time, writes are
    captured, SIGTERM ends with 0 and one sentence about what is unpublished, and the next start sends it.
    """
    patience = {"limits": {"start_without_nats": "1s", "flush_timeout": "1s"}}
    with Cluster(tmp_path, size=2, settings={0: patience, 1: patience}) as cluster:
        first, second = cluster.agents
        assert first.terminate() == 0
        cluster.nats.stop()
        first.start()
        _write(first, "alone", "written without NATS")
        until(lambda: first.status()["log"]["rows"] > 0, "the change in the log")

        assert first.terminate() == 0
        assert "not published" in first.log.read_text()
        cluster.nats.start()
        first.start()

        cluster.assert_converged()
        assert _values(second) == {"alone": "written without NATS"}


def test_a_file_that_was_never_replicated_is_adopted_with_its_rows(tmp_path: Path) -> None:
    """Two applications filled their files by themselves. What only one had is everywhere; where both had a row and they
    differ, the cluster's stays and the other value is in the conflict log.
    """
    with Cluster(tmp_path, size=2, found=False) as cluster:
        first, second = cluster.agents
        for agent, own in ((first, "first"), (second, "second")):
            with closing(sqlite3.connect(agent.database)) as application, application:
                application.execute("PRAGMA journal_mode = WAL")
                application.execute("CREATE TABLE notes(id TEXT PRIMARY KEY, writer, n, value)")
                application.execute(NOTE, ("both", own, f"value of {own}"))
                application.execute(NOTE, ("equal", "x", "the same"))
                application.execute(NOTE, (own, own, "only mine"))
        first.start()

        second.start()

        cluster.assert_converged()
        expected = {"both": "value of first", "equal": "the same", "first": "only mine", "second": "only mine"}
        assert _values(first) == expected
        assert "value of second" in second.conflicts()
        assert cluster.total("rsqlite_conflicts_total") == 1


def test_files_with_equal_rows_are_adopted_without_a_conflict(tmp_path: Path) -> None:
    """Each application made the same tables and rows by its own migration before its agent came."""
    with Cluster(tmp_path, found=False) as cluster:
        for agent in cluster.agents:
            with closing(sqlite3.connect(agent.database)) as application, application:
                application.execute("CREATE TABLE notes(id TEXT PRIMARY KEY, writer, n, value)")
                application.executemany(NOTE, [(f"k{n}", "migration", "same") for n in range(500)])
        for agent in cluster.agents:
            agent.start()

        for agent in cluster.agents:
            _write(agent, agent.node, "after")

        contents = cluster.assert_converged()
        assert len(contents["notes"]) == 503
        assert cluster.total("rsqlite_conflicts_total") == 0


def test_status_tells_what_a_person_wants_to_know(tmp_path: Path) -> None:
    """The status of a running member, read through the installed command as well as over HTTP."""
    with Cluster(tmp_path, size=1, settings={0: {"tables": {"exclude": ["shared"]}}}) as cluster:
        status = cluster.agents[0].status()

        assert status["cluster"] == "tests"
        assert status["started"] is True
        assert status["alarms"] == []
        assert "notes" in status["tables"]
        assert "shared" not in status["tables"]
        assert json.loads(cluster.agents[0].get("/v1/conflicts").body) == {"conflicts": [], "next": None}
