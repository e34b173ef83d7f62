"""The KV bucket and the object store, against a real nats-server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tracemalloc
from pathlib import Path

import nats
import pytest

from integration.conftest import NewSession
from integration.servers import NatsServer
from replicated_sqlite_agent.stream.errors import (
    KeyExists,
    ObjectDamaged,
    ObjectMissing,
    PublishUnacknowledged,
    WrongRevision,
)
from replicated_sqlite_agent.stream.jetstream import Answer
from replicated_sqlite_agent.stream.session import Session

MIB = 1024 * 1024


# -- keys -------------------------------------------------------------------------------------------------------------


async def test_a_key_is_written_only_at_the_revision_seen(session: Session) -> None:
    assert await session.kv_get("lease.node.a") is None
    first = await session.kv_create("lease.node.a", b"1")
    assert (b"1", first) == await session.kv_get("lease.node.a")
    with pytest.raises(KeyExists, match=r"lease\.node\.a"):
        await session.kv_create("lease.node.a", b"2")
    second = await session.kv_update("lease.node.a", b"2", first)
    with pytest.raises(WrongRevision, match=r"lease\.node\.a"):
        await session.kv_update("lease.node.a", b"3", first)
    with pytest.raises(WrongRevision):
        await session.kv_delete("lease.node.a", first)
    assert (b"2", second) == await session.kv_get("lease.node.a")
    await session.kv_delete("lease.node.a", second)
    assert await session.kv_get("lease.node.a") is None
    assert second < await session.kv_create("lease.node.a", b"4")


async def test_of_many_that_create_one_key_one_wins(new_session: NewSession, session: Session) -> None:
    others = [await new_session(node) for node in ("b", "c", "d")]
    await session.kv_put("cluster", b"old")
    await session.kv_delete("cluster")
    results = await asyncio.gather(
        *(s.kv_create("cluster", b"%d" % n) for n, s in enumerate([session, *others])), return_exceptions=True
    )
    assert 3 == sum(isinstance(result, KeyExists) for result in results)


async def test_the_keys_of_a_prefix_are_listed_without_the_deleted(session: Session) -> None:
    assert {} == await session.kv_items("member.")
    revisions = {f"member.n{i}": await session.kv_put(f"member.n{i}", b"%d" % i) for i in range(600)}
    await session.kv_put("cluster", b"c")
    await session.kv_delete("member.n7")
    members = await session.kv_items("member.")
    assert revisions.keys() - {"member.n7"} == members.keys()
    assert (b"8", revisions["member.n8"]) == members["member.n8"]
    assert 600 == len(await session.kv_items(""))
    assert 111 == len(await session.kv_items("member.n1"))


# -- objects ----------------------------------------------------------------------------------------------------------


async def test_an_object_of_64_mib_comes_back_within_bounded_memory(session: Session, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    await asyncio.to_thread(source.write_bytes, os.urandom(64 * MIB + 5))
    tracemalloc.start()
    try:
        stored = await session.object_put("snapshots/1/data", source)
        fetched = await session.object_get("snapshots/1/data", target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored == fetched
    assert 64 * MIB + 5 == stored.size
    with source.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == stored.digest
    with target.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == stored.digest
    assert peak < 16 * MIB
    assert not target.with_name("target.partial").exists()


async def test_objects_are_listed_replaced_and_removed_without_a_trace(session: Session) -> None:
    with pytest.raises(ObjectMissing, match="a/1"):
        await session.object_get_bytes("a/1")
    await session.object_put_bytes("a/1", b"old" * 100_000)
    await session.object_put_bytes("a/1", b"new")
    await session.object_put_bytes("a/2", b"")
    await session.object_put_bytes("b/1", b"x")
    assert [("a/1", 3), ("a/2", 0)] == [(info.name, info.size) for info in await session.object_list("a/")]
    assert b"new" == await session.object_get_bytes("a/1")
    assert b"" == await session.object_get_bytes("a/2")
    for name in ("a/1", "a/2", "b/1", "never"):
        await session.object_delete(name)
    assert [] == await session.object_list()
    assert {} == (await session._subjects(">")).subjects


async def test_other_nats_clients_read_and_write_the_same_objects(nats_server: NatsServer, session: Session) -> None:
    client = await nats.connect(nats_server.url)
    try:
        store = await client.jetstream().object_store("rsqlite-notes")
        await session.object_put_bytes("ours", b"o" * 300_000)
        assert b"o" * 300_000 == (await store.get("ours")).data
        await store.put("theirs", b"t" * 300_000)
        assert b"t" * 300_000 == await session.object_get_bytes("theirs")
        await store.delete("theirs")
        assert ["ours"] == [info.name for info in await session.object_list()]
    finally:
        await client.close()


@pytest.mark.parametrize("harm", ["lost chunk", "further chunk"])
async def test_a_damaged_object_is_noticed_and_leaves_no_file(session: Session, tmp_path: Path, harm: str) -> None:
    await session.object_put_bytes("x", os.urandom(MIB))
    [chunks] = [s for s in (await session._subjects(">")).subjects if ".C." in s]
    if harm == "lost chunk":
        third = await session.stored_message("OBJ_rsqlite-notes", {"seq": 3, "next_by_subj": chunks})
        assert third is not None
        await session.api("STREAM.MSG.DELETE.OBJ_rsqlite-notes", {"seq": third.seq}, Answer)
    else:
        await session._publish(chunks, b"more", b"")
    with pytest.raises(ObjectDamaged, match="'x'"):
        await session.object_get("x", tmp_path / "x")
    assert ["nats"] == os.listdir(tmp_path)


async def test_what_an_interrupted_write_leaves_is_swept(
    nats_server: NatsServer, new_session: NewSession, session: Session, tmp_path: Path
) -> None:
    await session.object_put_bytes("whole", b"w")
    watcher = await new_session("b")
    source = tmp_path / "source"
    await asyncio.to_thread(source.write_bytes, b"")
    os.truncate(source, 1024 * MIB)
    writing = asyncio.create_task(session.object_put("cut", source))
    async with asyncio.timeout(30):
        while len((await watcher._subjects(">")).subjects) < 3:
            assert not writing.done()
    nats_server.kill()
    with pytest.raises(PublishUnacknowledged):
        await writing
    nats_server.restart()
    async with asyncio.timeout(30):
        await session.wait_connected()
    assert 0 == await session.object_sweep(min_age_s=3600)
    assert 1 == await session.object_sweep(min_age_s=0)
    assert ["whole"] == [info.name for info in await session.object_list()]
    assert b"w" == await session.object_get_bytes("whole")
