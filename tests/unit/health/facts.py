"""An agent that only remembers: what it was told is true, and what it was asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from replicated_sqlite_agent.changes import Vector, dominates
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.health.metrics import Measures


def make_measures(**known: Any) -> Measures:
    """Measures of an idle agent, but for what is given."""
    idle: dict[str, Any] = {
        "cluster": "notes",
        "node": "notes-0",
        "counters": Counters(),
        "nats_connected": True,
        "nats_reconnects": 0,
        "members": 1,
        "log_rows": 0,
        "log_bytes": 0,
        "log_max_rows": 10_000_000,
        "log_max_bytes": 1 << 30,
        "unfolded_rows": 0,
        "unpublished_seconds": 0.0,
        "stream_bytes": 0,
        "stream_max_bytes": 2 << 30,
        "stream_sequence": 0,
        "applied_sequence": 0,
        "lag_seconds": 0.0,
        "clock_offset_seconds": 0.0,
        "tables": 1,
        "tables_paused": 0,
        "tables_left_out": 0,
        "parked_groups": 0,
        "hidden_rows": 0,
        "fk_orphans": 0,
        "database_bytes": 8192,
        "wal_bytes": 0,
        "snapshot_last_seconds": None,
        "snapshot_verified_seconds": None,
        "snapshot_last_bytes": None,
        "snapshot_last_stored_bytes": None,
    }
    return Measures(**idle | known)


@dataclass
class FakeFacts:
    """Facts that a test sets. `apply` moves the vector and wakes who waits for it, as an agent does."""

    is_started: tuple[bool, str] = (True, "caught up")
    is_ready: tuple[bool, str] = (True, "the database is usable")
    is_alive: tuple[bool, str] = (True, "the last step is 1 s old")
    document: dict[str, object] = field(default_factory=dict)
    numbers: Measures = field(default_factory=make_measures)
    vector: Vector = field(default_factory=dict)
    acknowledged: set[str | int] = field(default_factory=set)
    records: list[dict[str, object]] = field(default_factory=list)
    failure: Exception | None = None
    asked: list[tuple[object, ...]] = field(default_factory=list)
    waiting: int = 0
    given_up: int = 0

    def __post_init__(self) -> None:
        self._changed = asyncio.Condition()

    async def apply(self, vector: Vector) -> None:
        """Changes of peers arrive."""
        async with self._changed:
            self.vector |= vector
            self._changed.notify_all()

    async def acknowledge(self, acks: str | int) -> None:
        """Own changes are safe so far."""
        async with self._changed:
            self.acknowledged.add(acks)
            self._changed.notify_all()

    def started(self) -> tuple[bool, str]:
        return self.is_started

    def ready(self) -> tuple[bool, str]:
        return self.is_ready

    def alive(self) -> tuple[bool, str]:
        return self.is_alive

    def status(self) -> dict[str, object]:
        if self.failure is not None:
            raise self.failure
        return self.document

    def measures(self) -> Measures:
        return self.numbers

    async def position(self) -> Vector:
        if self.failure is not None:
            raise self.failure
        return self.vector

    async def wait(self, vector: Vector, timeout_s: float) -> bool:
        self.asked.append((vector, timeout_s))
        return await self._until(lambda: dominates(self.vector, vector), timeout_s)

    async def flush(self, acks: str | int, timeout_s: float) -> tuple[bool, str]:
        self.asked.append((acks, timeout_s))
        done = await self._until(lambda: acks in self.acknowledged, timeout_s)
        return done, "everything is there" if done else "NATS is away"

    async def conflicts(self, after: int, limit: int) -> list[dict[str, object]]:
        self.asked.append((after, limit))
        return [record for record in self.records if isinstance(record["id"], int) and record["id"] > after][:limit]

    async def _until(self, true: Any, timeout_s: float) -> bool:
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(true)
            return True
        except TimeoutError:
            return False
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.waiting -= 1
