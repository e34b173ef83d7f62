"""The stream itself in trouble: nearly full, full, purged behind our back, gone. Nothing is lost, and it is visible."""

from __future__ import annotations

from pathlib import Path

import nats
from nats.js.api import StreamConfig

from integration.cluster import Agent, Cluster, query, until

STREAM = "rsqlite-tests"
MIB = 1 << 20
BLOB = "INSERT INTO notes(id, writer, n, value) VALUES (?, 'big', 0, hex(randomblob(?)))"


async def _edit(url: str, max_bytes: int) -> None:
    """Change the stream's size limit as a person would, with a NATS client."""
    connection = await nats.connect(url)
    try:
        jetstream = connection.jetstream()
        config: StreamConfig = (await jetstream.stream_info(STREAM)).config
        config.max_bytes = max_bytes
        await jetstream.update_stream(config)
    finally:
        await connection.close()


async def _purge(url: str) -> int:
    """Remove every message of the stream by hand; returns how many there were."""
    connection = await nats.connect(url)
    try:
        jetstream = connection.jetstream()
        messages = (await jetstream.stream_info(STREAM)).state.messages
        await jetstream.purge_stream(STREAM)
    finally:
        await connection.close()
    return messages


async def _delete(url: str) -> None:
    """Delete the stream by hand."""
    connection = await nats.connect(url)
    try:
        await connection.jetstream().delete_stream(STREAM)
    finally:
        await connection.close()


async def _first_sequence(url: str) -> int:
    connection = await nats.connect(url)
    try:
        return int((await connection.jetstream().stream_info(STREAM)).state.first_seq)
    finally:
        await connection.close()


def _fill(cluster: Cluster, number: int, prefix: str, count: int, size: int) -> None:
    application = cluster.application(number)
    for row in range(count):
        application.execute(BLOB, f"{prefix}-{row}", size)


def _flush(agent: Agent, acks: str = "stream") -> None:
    answer = agent.get(f"/v1/flush?acks={acks}&timeout=60", timeout=70)
    assert answer.status == 200, (answer.body, agent.status())


def _keys(agent: Agent) -> set[str]:
    return {row[0] for row in query(agent.database, "SELECT id FROM notes")}


async def test_a_stream_that_fills_up_is_trimmed_behind_a_snapshot_and_a_late_joiner_has_everything(
    tmp_path: Path,
) -> None:
    """Twice the stream's size is written: it never stalls for good, and who joins at the end has all rows."""
    small = {"limits": {"stream_max_bytes": "4Mi", "heartbeat": "1s"}}
    with Cluster(tmp_path, size=3, settings={0: small, 1: small, 2: small}, found=False) as cluster:
        first, second, late = cluster.agents
        application = cluster.application(0)
        application.script("CREATE TABLE notes(id TEXT PRIMARY KEY, writer, n, value)")
        first.start()
        second.start()
        for batch in range(4):
            _fill(cluster, batch % 2, f"b{batch}", 20, 100_000)
            _flush(cluster.agents[batch % 2])
        assert await _first_sequence(cluster.nats.url) > 1, "nothing was trimmed: the run is void"

        late.start()

        cluster.assert_converged()
        assert len(_keys(late)) == 80


async def test_a_full_stream_stops_publishing_with_an_alarm_and_loses_nothing(tmp_path: Path) -> None:
    """A person sets a limit far too small; writing goes on, the alarm says so; after a larger limit all rows arrive."""
    with Cluster(tmp_path, size=2) as cluster:
        first, second = cluster.agents
        await _edit(cluster.nats.url, 1 * MIB)
        _fill(cluster, 0, "row", 30, 50_000)
        until(
            lambda: any("stream is full" in alarm for alarm in first.status()["alarms"]), "the alarm of a full stream"
        )
        assert first.metric("rsqlite_publish_failures_total") > 0
        assert len(_keys(second)) < 30
        assert first.answers("/readyz")

        await _edit(cluster.nats.url, 64 * MIB)

        cluster.assert_converged()
        assert len(_keys(second)) == 30


async def test_messages_purged_before_a_replica_read_them_are_said_again(tmp_path: Path) -> None:
    """A replica is stopped, rows are written elsewhere, and the stream is purged by hand before it comes back."""
    with Cluster(tmp_path) as cluster:
        away = cluster.agents[2]
        away.kill()
        _fill(cluster, 0, "a", 50, 100)
        _fill(cluster, 1, "b", 50, 100)
        _flush(cluster.agents[0], "1")
        _flush(cluster.agents[1], "1")
        assert await _purge(cluster.nats.url) > 0

        away.start()

        until(lambda: len(_keys(away)) == 100, "the rows that the stream no longer has")
        cluster.assert_converged()
        assert cluster.total("rsqlite_refills_total") > 0


async def test_a_stream_deleted_by_hand_is_made_again_and_nothing_is_missing(tmp_path: Path) -> None:
    """The stream is deleted under three running agents while all of them write."""
    with Cluster(tmp_path) as cluster:
        ledgers = [cluster.ledger(number, 400) for number in range(3)]
        until(lambda: all(ledger.committed() > 50 for ledger in ledgers), "some writes of each")
        await _delete(cluster.nats.url)
        for ledger in ledgers:
            ledger.finish()

        contents = cluster.assert_converged()

        assert len(contents["notes"]) == 1200
        assert cluster.total("rsqlite_stream_regressions_total") > 0
