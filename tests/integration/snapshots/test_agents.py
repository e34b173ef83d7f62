"""Agents with a configured store: scheduled snapshots, joins from the store, the whole cluster lost."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nats
import pytest

from integration.cluster import (
    AGENT_COMMAND,
    NOTES,
    Agent,
    Cluster,
    differences,
    dump,
    environment,
    integrity,
    query,
    reader,
    until,
)
from integration.snapshots.proxy import FaultProxy
from replicated_sqlite_agent.settings import S3
from replicated_sqlite_agent.snapshots.repository import Repository
from replicated_sqlite_agent.snapshots.retention import Held
from replicated_sqlite_agent.snapshots.stores.base import Threaded
from replicated_sqlite_agent.snapshots.stores.directory import Directory
from replicated_sqlite_agent.snapshots.stores.s3 import S3Store

RSQLITE = str(Path(sys.executable).with_name("rsqlite"))


def rsqlite(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command for people."""
    return subprocess.run([RSQLITE, *arguments], capture_output=True, text=True, timeout=120, check=False)


def in_s3(s3: S3, endpoint: str | None = None, **more: object) -> dict[str, object]:
    place = {"bucket": s3.bucket, "prefix": s3.prefix, "endpoint": endpoint or s3.endpoint, "force_path_style": True}
    return {"snapshots": {"store": "s3", "s3": place, **more}}


def in_folder(folder: Path, **more: object) -> dict[str, object]:
    return {"snapshots": {"store": "file", "file": {"path": str(folder)}, **more}}


def held(repository: Repository) -> list[Held]:
    return asyncio.run(repository.held())


def s3_repository(s3: S3) -> Repository:
    return Repository(Threaded(S3Store(s3)))


def everywhere(settings: Mapping[str, object], size: int = 3) -> dict[int, Mapping[str, object]]:
    return dict.fromkeys(range(size), settings)


def write(agent: Agent, *rows: str) -> None:
    connection = reader(agent.database)
    for row in rows:
        connection.execute("INSERT INTO notes VALUES (?, 'test', 1, ?)", (row, os.urandom(200).hex()))
    connection.close()


def lose(agent: Agent) -> None:
    """The volume is gone."""
    shutil.rmtree(agent.home)
    agent.home.mkdir()


def rows_of(one: Held) -> int:
    return one.manifest.rows if one.manifest is not None else 0


def fetched(repository: Repository) -> Callable[[], list[Held]]:
    return lambda: [one for one in held(repository) if one.good]


def test_one_member_takes_verified_snapshots_and_keeps_the_newest(tmp_path: Path, s3: S3) -> None:
    repository = s3_repository(s3)
    settings = in_s3(s3, schedule="2s", retention={"keep": 3})
    with Cluster(tmp_path, size=2, settings=everywhere(settings, 2)) as cluster:
        until(lambda: cluster.total("rsqlite_snapshots_verified_total") >= 5, "five snapshots are verified")
        expected = cluster.assert_converged()
        names = {one.name for one in held(repository)}
        until(lambda: len({one.name for one in held(repository)} - names) >= 2, "two more are there")
        assert cluster.total("rsqlite_snapshot_failures_total") == 0
        kept = held(repository)
        assert len(kept) <= 4  # the fourth is about to go
        assert {one.state for one in kept} <= {"verified", "not verified"}
        status: Any = cluster.agents[0].status()["snapshots"]
        assert status["store"] == f"s3://{s3.bucket}/{s3.prefix}"
        assert max(agent.metric("rsqlite_snapshot_last_bytes") for agent in cluster.agents) > 0
    done = rsqlite(
        "restore", "--from", repository.place, "--endpoint", str(s3.endpoint), "--to", str(tmp_path / "r.db")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert differences(expected, dump(tmp_path / "r.db")) == []
    assert integrity(tmp_path / "r.db") == "ok"


def test_an_empty_member_joins_from_the_store_and_catches_up(tmp_path: Path, s3: S3) -> None:
    with Cluster(tmp_path, size=2, settings=everywhere(in_s3(s3, schedule="1h"), 2)) as cluster:
        first, second = cluster.agents
        until(fetched(s3_repository(s3)), "a snapshot is verified")
        second.terminate()
        write(first, "after the snapshot")
        lose(second)
        taken = cluster.agents[0].metric("rsqlite_snapshots_total")
        second.start()
        cluster.assert_converged()
        assert query(second.database, "SELECT count(*) FROM notes") == [(1,)]
        assert first.metric("rsqlite_snapshots_total") == taken, "nobody had to take another snapshot for the join"
        assert '"joined by a snapshot"' in second.log.read_text()


def test_a_join_needs_no_store_while_members_live(tmp_path: Path, s3: S3, seaweed: Any) -> None:
    with FaultProxy(seaweed.url) as proxy:
        settings = in_s3(s3, endpoint=proxy.url, schedule="1h")
        with Cluster(tmp_path, size=2, settings=everywhere(settings, 2)) as cluster:
            until(fetched(s3_repository(s3)), "a snapshot is verified")
            cluster.agents[1].terminate()
            lose(cluster.agents[1])
            proxy.fail_with = 503
            cluster.agents[1].start()
            cluster.assert_converged()
        assert proxy.faults["503"] > 0


@pytest.mark.slow
def test_a_store_that_is_away_is_told_counted_and_waited_for(tmp_path: Path, s3: S3, seaweed: Any) -> None:
    repository = s3_repository(s3)
    with FaultProxy(seaweed.url) as proxy:
        settings = in_s3(s3, endpoint=proxy.url, schedule="1s", retention={"keep": 2})
        with Cluster(tmp_path, size=1, settings=everywhere(settings, 1)) as cluster:
            agent = cluster.agents[0]
            until(fetched(repository), "a snapshot is verified")
            proxy.fail_with = 503
            until(lambda: agent.metric("rsqlite_snapshot_failures_total") >= 1, "a failure is counted")
            assert any("the last snapshot failed: s3://" in alarm for alarm in agent.status()["alarms"])
            assert agent.answers("/readyz")
            proxy.fail_with = None
            verified = agent.metric("rsqlite_snapshots_verified_total")
            until(lambda: agent.metric("rsqlite_snapshots_verified_total") > verified, "the next one is verified")
            assert agent.status()["snapshots"]["trouble"] is None
            proxy.hang_puts.set()
            until(proxy.held.is_set, "an upload is on its way")
            agent.kill()
            proxy.hang_puts.clear()
            assert {one.state for one in held(repository)} <= {"verified", "not verified"}
            agent.start()
            names = {one.name for one in held(repository)}
            until(
                lambda: [one for one in held(repository) if one.good and one.name not in names], "a new one is verified"
            )
        assert proxy.faults["503"] >= 5
        assert proxy.faults["held"] >= 1


def test_a_stop_does_not_wait_for_a_store_that_is_silent(tmp_path: Path, s3: S3, seaweed: Any) -> None:
    with FaultProxy(seaweed.url) as proxy:
        proxy.hang_puts.set()
        settings = in_s3(s3, endpoint=proxy.url, schedule="1h")
        with Cluster(tmp_path, size=1, settings=everywhere(settings, 1)) as cluster:
            until(proxy.held.is_set, "an upload is on its way")
            assert cluster.agents[0].terminate(timeout=30) == 0
        assert proxy.faults["held"] >= 1
    assert held(s3_repository(s3)) == []


def test_everything_is_lost_but_the_store(tmp_path: Path, s3: S3) -> None:
    settings = in_s3(s3, schedule="1h")
    with Cluster(tmp_path / "old", size=2, settings=everywhere(settings, 2)) as cluster:
        write(cluster.agents[0], "a", "b", "c")
        expected = cluster.assert_converged()
        cluster.agents[0].kill()
        cluster.agents[1].kill()
        shutil.rmtree(cluster.agents[0].home / "app.db.rsqlite")
        cluster.agents[0].start()
        # Its first look finds that none is due, so that one is asked for.
        asked = ask_for_snapshot(cluster)
        until(lambda: any(one.name == asked for one in held(s3_repository(s3))), "the snapshot is there")
    with Cluster(tmp_path / "new", size=2, settings=everywhere(settings, 2), found=False) as cluster:
        for agent in cluster.agents:
            agent.launch()
        for agent in cluster.agents:
            agent.wait_started()
        assert differences(expected, cluster.assert_converged()) == []
        write(cluster.agents[1], "d")
        assert len(cluster.assert_converged()["notes"]) == 4


def ask_for_snapshot(cluster: Cluster) -> str:
    """As the operator asks: over NATS."""

    async def ask() -> str:
        client = await nats.connect(cluster.nats.url)
        try:
            answer = await client.request("rsqlite.tests.r", b'{"do": "snapshot", "to": "store"}', timeout=30)
            assert answer.headers is None, answer.headers
            return str(json.loads(answer.data)["name"])
        finally:
            await client.close()

    return asyncio.run(ask())


def test_another_cluster_on_the_prefix_is_fenced(tmp_path: Path) -> None:
    store = tmp_path / "store"
    settings = in_folder(store, schedule="1s", retention={"keep": 2})
    with Cluster(tmp_path / "one", size=1, settings=everywhere(settings, 1)):
        until(fetched(Repository(Threaded(Directory(store)))), "a snapshot is verified")
    before = sorted(path for path in store.rglob("*") if path.is_file())
    with Cluster(tmp_path / "two", size=1, settings=everywhere(settings, 1)) as cluster:
        agent = cluster.agents[0]
        until(lambda: agent.metric("rsqlite_snapshot_failures_total") >= 2, "its snapshots fail")
        [alarm] = [alarm for alarm in agent.status()["alarms"] if "snapshot" in alarm]
        assert "give this cluster a prefix of its own; nothing was written" in alarm
    assert before == sorted(path for path in store.rglob("*") if path.is_file())


def test_a_database_that_lost_its_rows_replaces_no_good_snapshot(tmp_path: Path) -> None:
    store = tmp_path / "store"
    repository = Repository(Threaded(Directory(store)))
    settings = in_folder(store, schedule="1s", retention={"keep": 2})
    with Cluster(tmp_path, size=1, settings=everywhere(settings, 1)) as cluster:
        agent = cluster.agents[0]
        write(agent, *(f"row {n}" for n in range(20)))
        until(lambda: [one for one in held(repository) if one.good and rows_of(one) == 40], "a good one of all rows")
        connection = reader(agent.database)
        connection.execute("DELETE FROM notes")
        connection.execute("DELETE FROM shared")
        connection.close()
        taken = agent.metric("rsqlite_snapshots_verified_total")
        until(lambda: agent.metric("rsqlite_snapshots_verified_total") >= taken + 6, "six more are taken")
        until(lambda: [a for a in agent.status()["alarms"] if "less than half of the rows" in a], "an alarm")
    kept = held(repository)
    assert {"smaller", "verified"} <= {one.state for one in kept}
    to = tmp_path / "restored.db"
    assert rsqlite("restore", "--from", str(store), "--to", str(to)).returncode == 0
    assert query(to, "SELECT count(*) FROM notes") == [(20,)]
    smaller = next(one.name for one in reversed(kept) if one.state == "smaller")
    assert rsqlite("snapshots", "accept", smaller, "--from", str(store)).returncode == 0
    assert rsqlite("restore", "--from", str(store), "--to", str(to), "--force").returncode == 0
    assert query(to, "SELECT count(*) FROM notes") == [(0,)]


@pytest.mark.parametrize("plain", [False, True])
def test_a_restored_file_serves_application_and_agent(tmp_path: Path, plain: bool) -> None:
    store = tmp_path / "store"
    with Cluster(tmp_path / "old", size=1, settings=everywhere(in_folder(store, schedule="1h"), 1)) as cluster:
        write(cluster.agents[0], "kept")
        ask_for_snapshot(cluster)
        expected = dump(cluster.agents[0].database)
    with Cluster(tmp_path / "new", NOTES, size=2, found=False) as cluster:
        target = cluster.agents[0].database
        options = ["--plain"] if plain else []
        done = rsqlite("restore", "--from", store.as_uri(), "--to", str(target), *options)
        assert done.returncode == 0, done.stderr
        own = query(target, "SELECT count(*) FROM sqlite_schema WHERE name LIKE '\\_\\_rsqlite%' ESCAPE '\\'")
        assert (own == [(0,)]) is plain
        write(cluster.agents[0], "by the application alone")
        cluster.agents[0].start()
        cluster.agents[1].start()
        found = cluster.assert_converged()
        assert len(found["notes"]) == len(expected["notes"]) + 1


def test_an_init_container_brings_the_file_and_ends(tmp_path: Path) -> None:
    store = tmp_path / "store"
    settings = in_folder(store, schedule="1h")
    with Cluster(tmp_path / "old", size=3, settings=everywhere(settings), found=False) as cluster:
        founder, joiner, later = cluster.agents
        assert restore_for(founder) == 0, "the founder's application makes the file"
        assert not founder.database.exists()
        with_rows = reader(founder.database)
        with_rows.executescript(NOTES)
        with_rows.close()
        founder.start()
        until(fetched(Repository(Threaded(Directory(store)))), "a snapshot is verified")
        for _ in range(2):
            assert restore_for(joiner) == 0
        assert query(joiner.database, "SELECT count(*) FROM shared") == [(20,)]
        joiner.start()
        later.start()
        cluster.assert_converged()


def restore_for(agent: Agent) -> int:
    agent.write_config()
    command = [AGENT_COMMAND, "restore", "--config", str(agent.config)]
    with agent.log.open("ab") as log:
        return subprocess.run(command, env=environment(), stdout=log, stderr=log, timeout=120, check=False).returncode
