"""K36: uninstall leaves the file as if the agent had never been there."""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from integration.cluster import AGENT_COMMAND, NOTES, Agent, Cluster, dump, environment, integrity, query, reader

SCHEMA = (
    NOTES
    + """
    PRAGMA user_version = 7;
    PRAGMA application_id = 1234;
    CREATE TABLE people (id INTEGER PRIMARY KEY AUTOINCREMENT, email TEXT UNIQUE, name TEXT);
    CREATE TABLE "odd name" (a TEXT, b INTEGER, PRIMARY KEY (a, b)) WITHOUT ROWID;
    CREATE TABLE loose (v);
    CREATE INDEX people_name ON people (name);
    CREATE VIEW names AS SELECT name FROM people;
    CREATE VIRTUAL TABLE words USING fts5(word);
    CREATE TRIGGER people_words AFTER INSERT ON people BEGIN INSERT INTO words (word) VALUES (new.name); END;
    INSERT INTO people (email, name) VALUES ('a@x', 'Ann'), ('b@x', 'Bob');
"""
)


def whole_schema(path: Path) -> list[tuple[Any, ...]]:
    """Every row of the schema, ours or not, in the order of its making."""
    return query(path, "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid")


def settings_of(path: Path) -> dict[str, Any]:
    """What a file keeps beside its rows."""
    names = ("journal_mode", "user_version", "application_id", "auto_vacuum", "page_size", "encoding")
    with closing(reader(path)) as connection:
        return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}


def uninstall(agent: Agent) -> subprocess.CompletedProcess[str]:
    """Run `rsqlite-agent uninstall`."""
    return subprocess.run(
        [AGENT_COMMAND, "uninstall", "--config", str(agent.config)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("journal_mode", ["WAL", "DELETE"])
def test_uninstall_leaves_no_trace(tmp_path: Path, journal_mode: str) -> None:
    """After some life with three agents: the schema of the founder's file is row by row what it was before the first
    start, the pragmas of the file too; the joiners' files have the same objects; rows are untouched; nothing of ours
    lies beside the file; the application writes on. While an agent runs, uninstall refuses with exit code 4.
    """
    untouched = tmp_path / "untouched.db"
    with closing(reader(untouched)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.executescript(SCHEMA)
    with Cluster(tmp_path, SCHEMA, journal_mode=journal_mode) as cluster:
        for number, agent in enumerate(cluster.agents):
            cluster.application(number).execute("INSERT INTO notes VALUES (?, 'w', 1, 'kept')", agent.node)
            cluster.application(number).execute("INSERT INTO loose VALUES (?)", number)
        contents = cluster.assert_converged()
        founder = cluster.agents[0]
        installed = whole_schema(founder.database)
        assert len(installed) > len(whole_schema(untouched)), "there is nothing to uninstall"
        refused = uninstall(founder)
        assert refused.returncode == 4, refused.stdout + refused.stderr
        assert whole_schema(founder.database) == installed
        assert set(cluster.stop_agents().values()) == {0}

    for agent in cluster.agents:
        done = uninstall(agent)
        assert done.returncode == 0, done.stdout + done.stderr
        again = uninstall(agent)
        assert again.returncode == 0, "a second uninstall finds nothing to do: " + again.stdout + again.stderr
        assert sorted(whole_schema(agent.database), key=str) == sorted(whole_schema(untouched), key=str)
        assert settings_of(agent.database) == settings_of(untouched)
        assert dump(agent.database) == contents
        assert integrity(agent.database) == "ok"
        left = {path.name for path in agent.home.iterdir()} - {"app.db", "app.db-wal", "app.db-shm"}
        assert not left, f"left beside the database of {agent.node}: {left}"
        with closing(reader(agent.database)) as application:
            application.execute("INSERT INTO people (email, name) VALUES ('z@x', 'Zoe')")
            application.execute(
                "PRAGMA trusted_schema = OFF"
            )  # which the application's own full-text trigger is not for
            application.execute("UPDATE notes SET value = 'written on'")
    assert whole_schema(cluster.agents[0].database) == whole_schema(untouched)
