"""What is particular about S3: credentials, and services that cannot create only what is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from integration.snapshots.proxy import FaultProxy
from integration.stores.seaweed import Seaweed
from replicated_sqlite_agent.settings import S3
from replicated_sqlite_agent.snapshots.stores.base import ObjectExistsError, StoreError, unobserved
from replicated_sqlite_agent.snapshots.stores.s3 import S3Store

MIB = 1 << 20


@pytest.mark.parametrize("kind", ["refused", "ignored"])
def test_a_service_without_conditions_is_fenced_by_looking(
    seaweed: Seaweed, s3: S3, kind: Literal["refused", "ignored"]
) -> None:
    with FaultProxy(seaweed.url) as proxy:
        proxy.conditions = kind
        store = S3Store(msgspec.structs.replace(s3, endpoint=proxy.url))
        store.put_new("cluster.json", b"first")
        assert 1 == proxy.faults[kind] if kind == "ignored" else proxy.faults[kind] >= 1
        with pytest.raises(ObjectExistsError):
            store.put_new("cluster.json", b"second")
        assert b"first" == store.get_bytes("cluster.json")


def test_a_multipart_upload_that_fails_leaves_nothing(seaweed: Seaweed, s3: S3, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch()
    os.truncate(source, 40 * MIB)
    sent: list[int] = []

    def fail_later(count: int) -> None:
        sent.append(count)
        if len(sent) == 2:
            raise StoreError("given up")

    store = S3Store(s3)
    with pytest.raises(StoreError, match="given up"):
        store.put_file("x/part", source, fail_later)
    assert 2 == len(sent)
    assert 0 == store.sweep(0)
    assert [] == store.find("")
    store.put_file("x/part", source, unobserved)
    assert [40 * MIB] == [entry.size for entry in store.find("")]


def test_the_credentials_file_wins_over_the_environment_and_is_read_again(s3: S3, tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    store = S3Store(msgspec.structs.replace(s3, credentials=path))
    for at, key in enumerate(("one", "two")):
        path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")
        os.utime(path, (at, at))
        assert key == store._client._request_signer._credentials.access_key
    assert "any" == S3Store(s3)._client._request_signer._credentials.access_key


def test_a_bucket_that_is_not_there_is_named(s3: S3) -> None:
    store = S3Store(msgspec.structs.replace(s3, bucket="no-such-bucket"))
    with pytest.raises(StoreError, match="there is no bucket 'no-such-bucket'; create it"):
        store.find("")
