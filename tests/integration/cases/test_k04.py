"""K4: rows larger than a message."""

from __future__ import annotations

import random
from pathlib import Path

from integration.cluster import Cluster, query

MIB = 1 << 20


def test_blobs_of_2_and_20_mib_arrive_whole(tmp_path: Path) -> None:
    """Random bytes, so that no compression makes them small, with a plain row behind each; then a change of the small
    column beside the large blob, from another node. HarmonyLite drops such rows without an error, since NATS takes 1
    MiB.

    Void unless a receiver put chunks aside.
    """
    chance = random.Random(4)
    with Cluster(tmp_path, "CREATE TABLE files (id TEXT PRIMARY KEY, label TEXT, body BLOB);") as cluster:
        sender, other = cluster.application(0), cluster.application(1)
        bodies = {"two": chance.randbytes(2 * MIB), "twenty": chance.randbytes(20 * MIB)}
        for name, body in bodies.items():
            sender.execute("INSERT INTO files VALUES (?, 'first', ?)", name, body)
            sender.execute("INSERT INTO files VALUES (?, 'after', NULL)", f"after {name}")
        cluster.assert_converged()
        other.execute("UPDATE files SET label = 'second' WHERE id IN ('two', 'twenty')")

        cluster.assert_converged()

        for agent in cluster.agents:
            for name, body in bodies.items():
                assert query(agent.database, "SELECT label, body FROM files WHERE id = ?", name) == [("second", body)]
        for agent in cluster.agents[1:]:
            assert agent.metric("rsqlite_chunks_buffered_total") >= 22 * 2, "22 MiB in messages of at most 512 KiB"


def test_a_transaction_of_many_large_rows_arrives_whole(tmp_path: Path) -> None:
    """Forty rows of 300 KiB in one transaction: no row is too large, but the group is, and it must not be cut."""
    chance = random.Random(44)
    bodies = {n: chance.randbytes(300 * 1024) for n in range(40)}
    with Cluster(tmp_path, "CREATE TABLE files (id INTEGER PRIMARY KEY, body BLOB);") as cluster:
        watch = cluster.watch(1, "SELECT count(*) FROM files")
        sender = cluster.application(0)
        sender.execute("BEGIN IMMEDIATE")
        for n, body in bodies.items():
            sender.execute("INSERT INTO files VALUES (?, ?)", n, body)
        sender.execute("COMMIT")

        cluster.assert_converged()

        assert dict(query(cluster.agents[2].database, "SELECT id, body FROM files")) == bodies
        assert watch.seen()[1] == [(0,), (40,)]
        assert cluster.agents[1].metric("rsqlite_chunks_buffered_total") >= 2
