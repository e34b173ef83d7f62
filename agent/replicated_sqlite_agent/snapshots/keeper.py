"""Takes snapshots on a schedule, checks each by restoring it, and removes those that retention does not keep.

All members run this; whoever gets the lease when one is due takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import structlog

from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.membership.leases import try_lease
from replicated_sqlite_agent.settings import Retention, seconds_of
from replicated_sqlite_agent.snapshots.documents import Manifest
from replicated_sqlite_agent.snapshots.repository import Repository, taken_at
from replicated_sqlite_agent.snapshots.schedule import is_due
from replicated_sqlite_agent.stream.session import Session

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LOOK_S = 1.0
"""Between two looks whether one is due."""
LEASE_S, RENEW_S = 60.0, 20.0
RETRY_FIRST_S, RETRY_MOST_S = 2.0, 300.0
"""Pause after a failure, doubled with each."""


@dataclass(slots=True)
class Backups:
    """What this member knows about its snapshots: numbers and sentences for status and metrics."""

    place: str
    last: Manifest | None = None
    """The last one taken here."""
    unchecked: Manifest | None = None
    """One that was taken here and could not be checked yet."""
    verified_ms: int | None = None
    """When a snapshot was last found right here."""
    trouble: str | None = None
    """Why the last attempt failed; None after a success."""

    checking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a snapshot is restored to the scratch file."""

    def status(self) -> dict[str, object]:
        """For `/v1/status`."""
        last = self.last
        return {
            "store": self.place,
            "last": last.name if last is not None else None,
            "last_rows": last.rows if last is not None else None,
            "last_bytes": last.bytes if last is not None else None,
            "last_stored_bytes": last.packed_bytes if last is not None else None,
            "last_verified_ms": self.verified_ms,
            "trouble": self.trouble,
        }

    def alarms(self) -> list[str]:
        """What a person should look at."""
        alarms = [f"the last snapshot failed: {self.trouble}"] if self.trouble is not None else []
        if self.last is not None and self.last.smaller:
            alarms.append(
                f"snapshot {self.last.name} has less than half of the rows of {self.last.parent}: if that is right, "
                f"run 'rsqlite snapshots accept {self.last.name}'"
            )
        return alarms


@dataclass(frozen=True, slots=True)
class Keeper:
    """`once` takes a snapshot now; `run` does on the schedule, once the member has started."""

    session: Session
    repository: Repository
    schedule: str | None
    retention: Retention
    run_number: int
    node: str
    folder: Path
    now_ms: Callable[[], int]
    """The stream server's time, by which snapshots are stamped too."""
    counters: Counters
    backups: Backups
    take: Callable[[], Awaitable[Manifest]]

    async def run(self) -> None:
        """For ever: failures are counted, told and tried again."""
        pause = RETRY_FIRST_S
        while True:
            try:
                await self._look()
                pause = RETRY_FIRST_S
                await asyncio.sleep(LOOK_S)
            except (AgentError, apsw.Error, OSError) as error:
                self.counters.snapshot_failures += 1
                self.backups.trouble = str(error)
                log.error("a snapshot could not be taken; trying again", reason=str(error), pause_s=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_MOST_S)

    async def _look(self) -> None:
        if self.backups.unchecked is not None:
            await self._check(self.backups.unchecked)
        await self.session.wait_connected()
        now_ms = self.now_ms()
        known = self.backups.last
        if known is not None and not self._due(known.taken_ms / 1000, now_ms / 1000):
            return
        if not await try_lease(self.session, "snapshot", self.run_number, now_ms, LEASE_S):
            return
        newest = await self.repository.newest_name()
        if not self._due(taken_at(newest) if newest is not None else None, now_ms / 1000):
            if newest is not None and (known is None or known.name != newest):
                self.backups.last = await self.repository.manifest(newest)
            return
        holding = asyncio.create_task(self._hold(), name="hold the lease on snapshots")
        try:
            await self.once()
        finally:
            holding.cancel()

    def _due(self, last_s: float | None, now_s: float) -> bool:
        assert self.schedule is not None
        return is_due(self.schedule, last_s, now_s, seconds_of)

    async def _hold(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with suppress(AgentError):
                await try_lease(self.session, "snapshot", self.run_number, self.now_ms(), LEASE_S)

    async def once(self) -> Manifest:
        """Take one, check it, remove old ones. Raises AgentError, apsw.Error, OSError."""
        manifest = self.backups.unchecked = await self.take()
        await self._check(manifest)
        removed = await self.repository.prune(self.retention.keep, self.retention.max_age)
        if removed:
            log.info("old snapshots are removed", snapshots=len(removed))
        return manifest

    async def _check(self, manifest: Manifest) -> None:
        async with self.backups.checking:
            result = await self.repository.verify(manifest, self.folder / "verify.db", self.node)
        self.backups.unchecked = None
        if not result.ok:
            raise AgentError(result.problem or f"snapshot {manifest.name} could not be verified")
        self.counters.snapshots_verified += 1
        self.backups.verified_ms, self.backups.trouble = result.verified_ms, None
        log.info("a snapshot is verified", snapshot=manifest.name, depth=result.depth, took_s=result.took_s)
