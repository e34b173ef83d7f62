"""The stores under test, each on the real thing."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from integration.servers import NatsServer
from integration.stores.seaweed import BUCKET, Seaweed
from replicated_sqlite_agent.settings import S3, Nats
from replicated_sqlite_agent.snapshots.stores.base import Store, Threaded
from replicated_sqlite_agent.snapshots.stores.directory import Directory
from replicated_sqlite_agent.snapshots.stores.nats import NatsStore
from replicated_sqlite_agent.snapshots.stores.remote import Remote
from replicated_sqlite_agent.snapshots.stores.s3 import S3Store
from replicated_sqlite_agent.stream.session import Session

KINDS = ("directory", "nats", "s3", "fsspec file", "fsspec memory")


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A running S3 service."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def s3_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials as an environment gives them."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")


@pytest.fixture
def s3(seaweed: Seaweed, s3_identity: None) -> S3:
    """An empty prefix of the service's bucket."""
    return S3(bucket=BUCKET, prefix=f"t/{uuid.uuid4().hex}", endpoint=seaweed.url, force_path_style=True)


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    match request.param:
        case "directory":
            yield Threaded(Directory(tmp_path / "not" / "there yet"))
        case "s3":
            yield Threaded(S3Store(request.getfixturevalue("s3")))
        case "fsspec file":
            yield Threaded(Remote((tmp_path / "remote").as_uri()))
        case "fsspec memory":
            yield Threaded(Remote(f"memory://{uuid.uuid4().hex}/notes"))
        case "nats":
            server: NatsServer = request.getfixturevalue("nats_server")
            session = Session(Nats(servers=(server.url,)), "notes", "a", 10.0)
            session.start()
            await session.wait_connected()
            await session.ensure_stream(64 << 20)
            yield NatsStore(session)
            await session.close()
