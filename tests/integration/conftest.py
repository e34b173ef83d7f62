"""Real servers for all integration tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from integration.servers import NatsServer
from replicated_sqlite_agent.settings import Nats
from replicated_sqlite_agent.stream.session import Session

STREAM_BYTES = 64 * 1024 * 1024

LIMIT_S = 30.0
"""How long an event may take on a busy machine before a test fails."""

NewSession = Callable[..., Awaitable[Session]]


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for an event; the test fails with `what` at the limit."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.01)


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server with JetStream, running."""
    server = NatsServer(tmp_path / "nats").start()
    yield server
    server.stop()


@pytest.fixture
async def new_session(nats_server: NatsServer) -> AsyncIterator[NewSession]:
    """Makes connected sessions of cluster `notes`; they are closed at the end."""
    opened: list[Session] = []

    async def make(node: str = "a", timeout_s: float = 10.0) -> Session:
        session = Session(Nats(servers=(nats_server.url,)), "notes", node, timeout_s)
        session.start()
        opened.append(session)
        await session.wait_connected()
        return session

    yield make
    for session in opened:
        await session.close()


@pytest.fixture
async def session(new_session: NewSession) -> Session:
    """A connected session whose stream exists."""
    made = await new_session()
    await made.ensure_stream(STREAM_BYTES)
    return made
