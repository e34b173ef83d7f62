"""A lease on a name in the KV bucket, taken and renewed by compare-and-set.

Times are the stream server's, so a wrong local clock neither keeps nor breaks a lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
import structlog

from replicated_sqlite_agent.errors import HeldByAnotherError
from replicated_sqlite_agent.stream.errors import KeyExists, WrongRevision
from replicated_sqlite_agent.stream.session import Session
from replicated_sqlite_contract import names

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LEASE_S, RENEW_S = 15.0, 5.0
"""A lease outlives two lost renewals."""


class Lease(msgspec.Struct, omit_defaults=True):
    """Who holds a name, and until when (milliseconds since 1970, the server's clock)."""

    run: int
    until_ms: int
    version: int = 1


async def try_lease(session: Session, purpose: str, run: int, now_ms: int, seconds: float) -> bool:
    """Take or renew the lease of a purpose for so long; False if another run holds it."""
    key = names.lease_key(purpose)
    wanted = msgspec.json.encode(Lease(run, now_ms + int(seconds * 1000)))
    found = await session.kv_get(key)
    try:
        if found is None:
            await session.kv_create(key, wanted)
            return True
        lease = msgspec.json.decode(found[0], type=Lease)
        if lease.run != run and lease.until_ms > now_ms:
            return False
        await session.kv_update(key, wanted, found[1])
    except (KeyExists, WrongRevision):
        return False
    return True


class NodeLease:
    """Keeps two living agents from using one node name."""

    def __init__(self, session: Session, node: str, now_ms: Callable[[], int | None]) -> None:
        self._session, self._node, self._now_ms = session, node, now_ms
        self._key = names.lease_key(f"node.{node}")
        self._revision: int | None = None

    def _now(self) -> int:
        return self._now_ms() or time.time_ns() // 1_000_000

    def _lease(self, run: int) -> bytes:
        return msgspec.json.encode(Lease(run, self._now() + int(LEASE_S * 1000)))

    async def take(self, run: int, former_run: int) -> None:
        """Take the name, at once if it is free or held by the former run of this very file.

        Otherwise wait for its end; raises HeldByAnotherError if its holder renewed it meanwhile.
        """
        seen: tuple[Lease, int] | None = None
        while True:
            found = await self._session.kv_get(self._key)
            try:
                if found is None:
                    self._revision = await self._session.kv_create(self._key, self._lease(run))
                    return
                lease, revision = msgspec.json.decode(found[0], type=Lease), found[1]
                if lease.run in (run, former_run) or lease.until_ms <= self._now():
                    self._revision = await self._session.kv_update(self._key, self._lease(run), revision)
                    return
            except (KeyExists, WrongRevision):
                continue
            if seen is not None and revision != seen[1]:
                raise HeldByAnotherError(
                    f"another agent runs as node {self._node} (run {lease.run:012x}): give each replica its own `node`"
                )
            if seen is None:
                log.info("another run holds this node name; waiting until its lease has ended", node=self._node)
            seen = (lease, revision)
            await asyncio.sleep(min(1.0, max(0.05, (lease.until_ms - self._now()) / 1000)))

    async def renew(self, run: int) -> None:
        """Renew it. Raises HeldByAnotherError if somebody else has taken the name."""
        try:
            if self._revision is None:
                await self.take(run, run)
            else:
                self._revision = await self._session.kv_update(self._key, self._lease(run), self._revision)
        except WrongRevision as error:
            self._revision = None
            found = await self._session.kv_get(self._key)
            if found is not None and msgspec.json.decode(found[0], type=Lease).run != run:
                raise HeldByAnotherError(
                    f"another agent has taken over as node {self._node}: give each replica its own `node`"
                ) from error

    async def release(self) -> None:
        """Give the name back, so that the next start need not wait."""
        if self._revision is not None:
            await self._session.kv_delete(self._key, self._revision)
            self._revision = None
