"""What every store promises; each test runs on each of them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import tracemalloc
from pathlib import Path

import pytest

from replicated_sqlite_agent.snapshots.stores.base import ObjectAbsentError, ObjectExistsError, Store, StoreError

MIB = 1 << 20


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def test_an_empty_store_lists_nothing_and_holds_nothing(store: Store, tmp_path: Path) -> None:
    assert [] == await store.find("")
    assert [] == await store.find("snapshots/")
    with pytest.raises(ObjectAbsentError):
        await store.get_bytes("snapshots/1/manifest.json")
    with pytest.raises(ObjectAbsentError):
        await store.get_file("snapshots/1/part-00001", tmp_path / "x")
    await store.delete("never/was")


@pytest.mark.parametrize("size", [0, 1, 20 * MIB + 7])
async def test_a_file_comes_back_bit_by_bit(store: Store, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    await asyncio.to_thread(source.write_bytes, os.urandom(size))
    sent: list[int] = []
    received: list[int] = []
    await store.put_file("snapshots/a b/part-00001", source, sent.append)
    await store.get_file("snapshots/a b/part-00001", target, received.append)
    assert digest(source) == digest(target)
    assert (size, size) == (sum(sent), sum(received))
    assert [("snapshots/a b/part-00001", size)] == [(e.name, e.size) for e in await store.find("snapshots/")]


async def test_a_large_file_moves_within_bounded_memory(
    store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "fsspec memory" in request.node.name:
        pytest.skip("it keeps everything in memory")
    source, target = tmp_path / "source", tmp_path / "target"
    source.touch()
    os.truncate(source, 96 * MIB)
    tracemalloc.start()
    try:
        await store.put_file("x/large", source)
        await store.get_file("x/large", target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert digest(source) == digest(target)
    assert peak < 48 * MIB


async def test_small_objects_are_replaced_listed_and_removed(store: Store) -> None:
    for name in ("snapshots/1/manifest.json", "snapshots/2/manifest.json", "cluster.json"):
        await store.put_bytes(name, b"old" * 100)
        await store.put_bytes(name, name.encode())
    assert b"cluster.json" == await store.get_bytes("cluster.json")
    assert ["cluster.json", "snapshots/1/manifest.json", "snapshots/2/manifest.json"] == [
        entry.name for entry in await store.find("")
    ]
    assert ["snapshots/2/manifest.json"] == [entry.name for entry in await store.find("snapshots/2")]
    assert ["snapshots/2/manifest.json"] == [entry.name for entry in await store.find("snapshots/2/man")]
    await store.delete("snapshots/1/manifest.json")
    await store.delete("snapshots/1/manifest.json")
    assert ["snapshots/2/manifest.json"] == [entry.name for entry in await store.find("snapshots/")]


async def test_many_objects_are_listed(store: Store, request: pytest.FixtureRequest) -> None:
    count = 1050 if "s3" in request.node.name else 50  # S3 lists a thousand at a time
    gate = asyncio.Semaphore(16)

    async def put(number: int) -> None:
        async with gate:
            await store.put_bytes(f"many/{number:05d}", b"x")

    await asyncio.gather(*(put(number) for number in range(count)))
    assert [f"many/{number:05d}" for number in range(count)] == [entry.name for entry in await store.find("many/")]


async def test_of_many_that_create_one_name_one_wins(store: Store, request: pytest.FixtureRequest) -> None:
    async def create(number: int) -> int | None:
        try:
            await store.put_new("cluster.json", b"%d" % number)
        except ObjectExistsError:
            return None
        return number

    # fsspec promises no step that is atomic: there the rivals come one after the other.
    if "fsspec" in request.node.name:
        winners = [await create(number) for number in range(3)]
    else:
        winners = await asyncio.gather(*(create(number) for number in range(6)))
    [winner] = [number for number in winners if number is not None]
    assert b"%d" % winner == await store.get_bytes("cluster.json")


async def test_a_name_is_free_again_when_its_object_is_gone(store: Store) -> None:
    await store.put_new("cluster.json", b"1")
    with pytest.raises(ObjectExistsError, match=r"cluster\.json"):
        await store.put_new("cluster.json", b"2")
    await store.delete("cluster.json")
    await store.put_new("cluster.json", b"3")
    assert b"3" == await store.get_bytes("cluster.json")


async def test_a_file_that_is_not_written_whole_is_not_there(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch()
    os.truncate(source, 24 * MIB)
    await store.put_bytes("x/former", b"former")
    reached = threading.Event()

    def fail(_: int) -> None:
        reached.set()
        raise StoreError("cut here")

    with pytest.raises(StoreError):
        await store.put_file("x/part", source, fail)
    assert reached.is_set()
    listed = [entry.name for entry in await store.find("")]
    if "NATS" not in store.place:  # it tells of its progress at the end only
        assert ["x/former"] == listed
    await store.put_file("x/part", source)
    await store.get_file("x/part", tmp_path / "target")
    assert digest(source) == digest(tmp_path / "target")


async def test_the_place_is_named_in_errors(store: Store) -> None:
    with pytest.raises(ObjectAbsentError, match="nothing/here"):
        await store.get_bytes("nothing/here")
