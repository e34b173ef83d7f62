"""Stream -> applier: takes messages from where this file is, in order, and notices when the stream has lost some.

The position lives in the file; the consumer is made from it each time. Acknowledgements are no part of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import apsw
import structlog

from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import CANNOT_WRITE, Worker
from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.inbound.applier import Applier, Outcome, Point
from replicated_sqlite_agent.inbound.assembler import Arrived, Assembler
from replicated_sqlite_agent.stream.consumer import Delivery
from replicated_sqlite_agent.stream.errors import ConsumerLost
from replicated_sqlite_agent.stream.session import Session, StreamState
from replicated_sqlite_agent.wire import WireError, decode_chunk

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

BATCH_MESSAGES, BATCH_BYTES = 2_048, 4 << 20
"""Taken from the queue at once."""

APPLY_BYTES_MIN, APPLY_BYTES_FIRST, APPLY_BYTES_MAX = 16 << 10, 64 << 10, 4 << 20
"""Bytes of group bodies applied in one transaction: follows how long transactions hold the write lock."""

LOCK_S_MOST, LOCK_S_LEAST = 0.012, 0.004
"""Above the first the next transaction is made smaller, below the second larger (goal: <= 20 ms at p99)."""

TRIES = 3
"""A group that cannot be applied is tried this often, then it becomes a dead letter."""

RETRY_S = 1.0
"""Pause before the next try when the file cannot be written (disk full, I/O error)."""


class Intake:
    """Feeds one run from the stream."""

    def __init__(
        self,
        session: Session,
        applier: Applier,
        worker: Worker,
        counters: Counters,
        *,
        spool: Path,
        read_back: Callable[[bytes], Awaitable[None]],
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        """``read_back`` gets the group ids of own messages; ``on_outcome`` what each transaction brought to light."""
        self._session, self._applier, self._worker, self._counters = session, applier, worker, counters
        self._assembler = Assembler(spool, counters)
        self._read_back, self._on_outcome = read_back, on_outcome
        self._run = applier.replica.progress.run
        self._stream_id = ""
        self._apply_bytes = APPLY_BYTES_FIRST
        self.consumed = 0
        """Stream sequence up to which everything is applied or kept aside in memory."""
        self.tail = 0
        """Last sequence of the stream, as far as is known."""
        self.oldest_waiting_ms: int | None = None
        """When the stream stored the oldest message that is not applied yet."""
        self.write_failure: str | None = None
        """Why rows cannot be written at the moment, one sentence."""
        self._stored: Point | None = None

    async def run(self) -> None:
        """Consume until cancelled."""
        while True:
            await self._session.wait_connected()
            try:
                await self._consume()
            except ConsumerLost as lost:
                self._counters.consumer_resets += 1
                log.debug("the consumer is made anew", reason=str(lost))
            except AgentError as error:
                log.warning("the stream cannot be read; trying again", reason=str(error))
                await asyncio.sleep(RETRY_S)

    async def _consume(self) -> None:
        state = await self._session.stream_state()
        start = await self._resume(state)
        consumer = self._session.consumer()
        await consumer.open(start)
        try:
            self.tail = state.last
            while True:
                batch = await consumer.next_batch(BATCH_MESSAGES, BATCH_BYTES)
                self.tail = max(self.tail, batch[-1].sequence + consumer.pending)
                await self._take(batch)
        finally:
            await consumer.close()

    async def _resume(self, state: StreamState) -> int:
        """Where to read on; from the first message kept if the stream is not the one this file knows."""
        progress = self._applier.replica.progress
        sequence, group_id = progress.sequence, progress.group_id
        self._stream_id = state.id
        lost = progress.stream is not None and (
            progress.stream != state.id or state.last < sequence or sequence + 1 < state.first
        )
        if not lost and progress.stream is not None and group_id is not None and sequence >= state.first:
            message = await self._session.message(sequence)
            lost = message is not None and _group_id(message) != group_id
        if lost:
            self._counters.stream_regressions += 1
            log.warning(
                "the stream is not the one this file had read, or has lost messages; reading it from its first message",
                stream=state.id,
                first=state.first,
                last=state.last,
                position=sequence,
            )
            sequence, group_id = state.first - 1, None
            self._on_outcome(Outcome(gap=True, lost=True))
        self._assembler.reset(sequence, group_id)
        self.consumed = sequence
        return sequence + 1

    async def _take(self, batch: list[Delivery]) -> None:
        """Apply a batch in transactions of the present size."""
        groups: list[Arrived] = []
        size = 0
        for delivery in batch:
            self.oldest_waiting_ms = self.oldest_waiting_ms or delivery.time_ms
            group = await self._chunk(delivery)
            if group is None:
                continue
            if groups and size + group.size > self._apply_bytes:
                await self._apply(groups, before=delivery.sequence)
                groups, size = [], 0
            groups.append(group)
            size += group.size
        if groups:
            await self._apply(groups, before=None)
        self.consumed = batch[-1].sequence
        self.oldest_waiting_ms = None
        if not groups:
            # Nothing was applied, and yet somebody may wait for the position: a start waits for its own heartbeat.
            self._on_outcome(Outcome())

    async def _chunk(self, delivery: Delivery) -> Arrived | None:
        try:
            chunk = decode_chunk(delivery.data)
        except WireError as error:
            self._assembler.skip(delivery.sequence)
            await self._bury(delivery.subject, delivery.sequence, str(error), delivery.data)
            return None
        if chunk.run == self._run:
            if chunk.i == chunk.n - 1:
                await self._read_back(chunk.group)
            self._assembler.pass_over(delivery.sequence, chunk.group)
            return None
        return self._assembler.add(delivery.sequence, delivery.time_ms, chunk)

    def _point(self, before: int | None) -> Point:
        sequence, group_id = self._assembler.position
        if before is not None and sequence >= before:
            # The group of this very message is not among those applied now.
            sequence, group_id = before - 1, self._assembler.previous
        return Point(self._stream_id, sequence, group_id)

    def _stored_point(self) -> Point:
        """Where the file is."""
        progress = self._applier.replica.progress
        return Point(self._stream_id, progress.sequence, progress.group_id)

    async def _apply(self, groups: list[Arrived], before: int | None) -> None:
        point = self._point(before)
        for attempt in range(1, TRIES + 1):
            try:
                outcome = await self._write(groups, point)
            except (WireError, apsw.Error, AssertionError, KeyError, TypeError, ValueError) as error:
                self._counters.apply_failures += 1
                if len(groups) > 1:
                    for group in groups[:-1]:
                        await self._apply_alone(group, self._stored_point())
                    await self._apply_alone(groups[-1], point)
                    return
                if attempt == TRIES:
                    await self._give_up(groups[0], point, error)
                    return
            else:
                self._done(outcome)
                return

    async def _apply_alone(self, group: Arrived, point: Point) -> None:
        """One group of a batch that failed as a whole; the position moves with the last one only, or a crash between
        two of them would skip the second.
        """
        for attempt in range(1, TRIES + 1):
            try:
                outcome = await self._write([group], point)
            except (WireError, apsw.Error, AssertionError, KeyError, TypeError, ValueError) as error:
                self._counters.apply_failures += 1
                if attempt == TRIES:
                    await self._give_up(group, point, error)
            else:
                self._done(outcome)
                return

    async def _write(self, groups: list[Arrived], point: Point) -> Outcome:
        """Apply, waiting as long as the file cannot be written at all (busy, disk full)."""
        while True:
            try:
                outcome = await self._worker.call(self._applier.apply, groups, point)
            except CANNOT_WRITE as error:
                self._counters.apply_failures += 1
                if self.write_failure is None:
                    log.error("rows from peers cannot be written; trying again", reason=str(error))
                self.write_failure = f"the database cannot be written: {error}"
                await asyncio.sleep(RETRY_S)
            else:
                if self.write_failure is not None:
                    log.info("rows from peers can be written again")
                self.write_failure = None
                return outcome

    def _done(self, outcome: Outcome) -> None:
        held = self._counters.write_lock_s[-1] if self._counters.write_lock_s else 0.0
        if held > LOCK_S_MOST:
            self._apply_bytes = max(APPLY_BYTES_MIN, self._apply_bytes // 2)
        elif held < LOCK_S_LEAST:
            self._apply_bytes = min(APPLY_BYTES_MAX, self._apply_bytes * 2)
        self._on_outcome(outcome)

    async def _give_up(self, group: Arrived, point: Point, error: Exception) -> None:
        group.body.seek(0)
        reason = f"{type(error).__name__}: {error}"
        await self._bury(f"run {group.run:012x}", point.sequence, reason, group.body.read(1 << 20))

    async def _bury(self, subject: str, sequence: int, reason: str, body: bytes) -> None:
        """A message that cannot be applied is kept with its reason; its run is held as by a gap until a refill."""
        log.error("a message cannot be applied and is kept as a dead letter", sequence=sequence, reason=reason)
        await self._worker.call(self._applier.dead_letter, subject, sequence, reason, body)
        self._on_outcome(Outcome(gap=True))

    @property
    def to_remember(self) -> bool:
        """Whether `remember` has something to store."""
        return bool(self._stream_id) and self.oldest_waiting_ms is None and self._point(None) != self._stored

    def remember(self) -> None:
        """Store the position reached by messages that needed no transaction. Runs on the writer thread, inside one."""
        point = self._point(None)
        progress = self._applier.replica.progress
        if self.to_remember:
            self._applier.replica.progress = replace(
                progress, stream=point.stream, sequence=point.sequence, group_id=point.group_id
            )
            self._stored = point


def _group_id(message: Delivery) -> bytes | None:
    try:
        return decode_chunk(message.data).group
    except WireError:
        return None
