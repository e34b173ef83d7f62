"""The cluster's NATS object store as a store: it needs no setting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.snapshots.stores.base import (
    Entry,
    Moved,
    ObjectAbsentError,
    ObjectExistsError,
    StoreError,
    unobserved,
)
from replicated_sqlite_agent.stream.errors import ObjectExists, ObjectMissing
from replicated_sqlite_agent.stream.session import Session


class NatsStore:
    """Implements `Store` on a session, whose object store must exist."""

    place = "the NATS object store"

    def __init__(self, session: Session) -> None:
        self._session = session

    async def put_file(self, name: str, source: Path, moved: Moved = unobserved) -> None:
        """See `Store`."""
        with _explained(name):
            moved((await self._session.object_put(name, source)).size)

    async def put_bytes(self, name: str, data: bytes) -> None:
        """See `Store`."""
        with _explained(name):
            await self._session.object_put_bytes(name, data)

    async def put_new(self, name: str, data: bytes) -> None:
        """See `Store`."""
        with _explained(name):
            await self._session.object_create(name, data)

    async def get_file(self, name: str, target: Path, moved: Moved = unobserved) -> None:
        """See `Store`."""
        with _explained(name):
            moved((await self._session.object_get(name, target)).size)

    async def get_bytes(self, name: str) -> bytes:
        """See `Store`."""
        with _explained(name):
            return await self._session.object_get_bytes(name)

    async def find(self, prefix: str) -> list[Entry]:
        """See `Store`."""
        with _explained(prefix):
            return [Entry(info.name, info.size) for info in await self._session.object_list(prefix)]

    async def delete(self, name: str) -> None:
        """See `Store`."""
        with _explained(name):
            await self._session.object_delete(name)

    async def sweep(self, older_than_s: float) -> int:
        """See `Store`."""
        with _explained("the store"):
            return await self._session.object_sweep(older_than_s)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except ObjectMissing as error:
        raise ObjectAbsentError(str(error)) from error
    except ObjectExists as error:
        raise ObjectExistsError(str(error)) from error
    except AgentError as error:
        raise StoreError(f"{NatsStore.place}: {name}: {error}") from error
