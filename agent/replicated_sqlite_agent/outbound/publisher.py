"""Groups -> acknowledged by the stream. Several groups may be under way; they are sent and acknowledged in order.

Reading happens on a thread of its own that inotify wakes; sending on the event loop. After any failure the reader goes
back to what is acknowledged and reads again: a re-read has other bytes, so it gets a new group id.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from replicated_sqlite_agent.changes import Key
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.connection import CANNOT_WRITE
from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.outbound.log_reader import Group, LogReader, NotReadyError, Sent
from replicated_sqlite_agent.outbound.watcher import Watcher
from replicated_sqlite_agent.replica.state import FileReplacedError, Replica
from replicated_sqlite_agent.stream.errors import StreamFull
from replicated_sqlite_agent.stream.session import Session
from replicated_sqlite_agent.timekeeper import Timekeeper
from replicated_sqlite_agent.wire import ENVELOPE_BYTES, FORMAT, Chunk, encode_chunk
from replicated_sqlite_contract import names

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

GROUPS_MAX = 8
"""Groups under way at most: while they are, further commits gather into the next one."""

CHUNKS_MAX = 32
"""Messages of one group under way at most: 16 MiB at 512 KiB each."""

FOLD_ROWS = 2_000
"""With more log rows published than folded the writer folds them now, not when housekeeping comes round."""

BURST_ROWS, BURST_PERIOD_S = 1_000, 0.02
"""A group of so many rows means that the application writes in bulk: the next is read no sooner than this after it."""

RETRY_FIRST_S, RETRY_MOST_S = 0.2, 5.0


@dataclass(slots=True)
class _Underway:
    group: Group
    acks: list[asyncio.Future[int]] = field(default_factory=list)
    sent: bool = False


class Publisher:
    """Publishes one run of one file."""

    def __init__(
        self,
        session: Session,
        replica: Replica,
        counters: Counters,
        timekeeper: Timekeeper,
        *,
        cluster: str,
        node: str,
        spool: Path,
        message_bytes: int,
        prepare: Callable[[], Awaitable[None]],
        repair: Callable[[list[tuple[int, Key]]], Awaitable[None]],
    ) -> None:
        """``prepare``: have the writer fold and install capture for the present schema, return when done.

        ``repair``: log deletes of rows that versions call alive and the table has not.
        """
        self._session, self._replica, self._counters, self._timekeeper = session, replica, counters, timekeeper
        self._subject = names.changes_subject(cluster, node, replica.progress.run)
        self._spool, self._message_bytes = spool, message_bytes
        self._prepare, self._repair = prepare, repair
        self._run = replica.progress.run
        self.acknowledged = Sent(replica.progress.published, replica.progress.published_seq)
        self.full = False
        """The stream is at its limit: publishing waits, the log stays."""
        self.failure: BaseException | None = None
        self._moved = asyncio.Condition()
        self._underway: deque[_Underway] = deque()
        self._queue: asyncio.Queue[Group | None] = asyncio.Queue()
        self._room = threading.Semaphore(GROUPS_MAX)
        self._epoch = 0
        """Counts the failures: a group of an older epoch is forgotten."""
        self._watcher = Watcher(replica.path)
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._held = False
        self._folding: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._retry = asyncio.Event()

    # ---- the event loop ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish until cancelled. Raises what ended the reading thread."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read, args=(loop,), name="outbound", daemon=True)
        self._thread.start()
        delay = RETRY_FIRST_S
        try:
            while True:
                await self._session.wait_connected()
                try:
                    await self._send_groups()
                except AgentError as error:
                    self._counters.publish_failures += 1
                    self.full = isinstance(error, StreamFull)
                    log.debug("publishing failed; the log stays and is sent again", reason=str(error))
                    self._start_again()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(delay):
                            await self._retry.wait()
                    self._retry.clear()
                    delay = min(delay * 2, RETRY_MOST_S)
                else:
                    if self.failure is not None:
                        raise self.failure
                    delay = RETRY_FIRST_S
        finally:
            await self._end_thread()

    async def _end_thread(self) -> None:
        self._stopping = True
        self._watcher.close()
        self._room.release(GROUPS_MAX)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._watcher.release()

    async def _send_groups(self) -> None:
        """Take groups from the reader and send them; returns when the reader ended or started again."""
        acknowledging = asyncio.create_task(self._acknowledge(), name="acknowledgements")
        try:
            acknowledging.add_done_callback(lambda _: self._queue.put_nowait(None))
            while self.failure is None:
                group = await self._queue.get()
                if acknowledging.done():
                    if group is not None:
                        group.body.close()
                    acknowledging.result()
                    return
                if group is not None:
                    await self._send(group)
                self._arrived.set()
        finally:
            acknowledging.cancel()

    async def _send(self, group: Group) -> None:
        """Write all chunks of a group to the socket, in order; its acknowledgements are awaited elsewhere."""
        underway = _Underway(group)
        self._underway.append(underway)
        self._arrived.set()
        size = min(self._message_bytes, self._session.max_payload) - ENVELOPE_BYTES
        count = max(1, -(-group.size // size))
        for i, piece in enumerate(group.slices(size)):
            if i >= count:
                break
            chunk = Chunk(FORMAT, group.run, group.id, group.lo, group.hi, piece, i, count)
            data = encode_chunk(chunk)
            ack = self._session.publish_soon(self._subject, data, f"{group.run:012x}.{group.id.hex()}.{i}")
            ack.add_done_callback(_retrieve)
            underway.acks.append(ack)
            self._counters.published_messages += 1
            self._counters.published_bytes += len(data)
            if i >= CHUNKS_MAX:
                await underway.acks[i - CHUNKS_MAX]
        underway.sent = True
        self._arrived.set()

    async def _acknowledge(self) -> None:
        """Move the published position as groups are acknowledged, in order. Raises what a publish raised."""
        while True:
            self._arrived.clear()
            while self._underway and (first := self._underway[0]).acks:
                for ack in list(first.acks):
                    await ack
                if not self._underway or self._underway[0] is not first:
                    continue  # all was forgotten meanwhile: what lies first now is a group of a later epoch
                if not first.sent or any(not ack.done() for ack in first.acks):
                    break
                self._underway.popleft()
                await self._published(first.group)
            await self._arrived.wait()

    async def _published(self, group: Group) -> None:
        self._counters.published_groups += 1
        self._counters.published_rows += group.rows
        self.full = False
        group.body.close()
        self._room.release()
        await self.advance(group.hi, group.seq)
        if group.unrowed:
            await self._repair(group.unrowed)
        if group.seq - self._replica.progress.folded_seq > FOLD_ROWS and (
            self._folding is None or self._folding.done()
        ):
            self._folding = asyncio.create_task(self._fold(), name="fold what is published")

    async def _fold(self) -> None:
        """Fold beside the reading, so that the next group finds little that is not folded."""
        with suppress(FileReplacedError, *CANNOT_WRITE):  # housekeeping meets the same and reports it
            await self._prepare()

    async def advance(self, clock: int, seq: int) -> None:
        """The stream has everything of this run up to this clock and log row."""
        if clock < self.acknowledged.clock:
            return
        self.acknowledged = Sent(clock, max(seq, self.acknowledged.seq))
        self._replica.acknowledged(self._run, self.acknowledged.clock, self.acknowledged.seq)
        async with self._moved:
            self._moved.notify_all()

    async def read_back(self, group_id: bytes) -> None:
        """An own message came back from the stream: an acknowledgement, if its own one was lost.

        Only of the oldest group under way: that a later one is there does not say that an earlier one is.
        """
        oldest = self._underway[0] if self._underway else None
        if oldest is not None and oldest.group.id == group_id and oldest.sent:
            await self.advance(oldest.group.hi, oldest.group.seq)

    async def wait_published(self, seq: int) -> None:
        """Return once the stream has every log row up to this one."""
        self.poke()
        async with self._moved:
            await self._moved.wait_for(lambda: self.acknowledged.seq >= seq)

    @property
    def epoch(self) -> int:
        """Changes whenever what counts as published may have gone back."""
        return self._epoch

    def retry(self) -> None:
        """What publishing failed for may be over: do not wait for the next attempt's time."""
        self._retry.set()

    def poke(self) -> None:
        """Look at the log now."""
        self._watcher.poke()

    def _start_again(self) -> None:
        """Forget what is under way; the reader begins again after what is acknowledged."""
        self._epoch += 1
        self._underway.clear()
        while not self._queue.empty():
            self._queue.get_nowait()
        if self.failure is not None:
            self._queue.put_nowait(None)  # the reader has ended: that must not be forgotten
        waiting, self._room = self._room, threading.Semaphore(GROUPS_MAX)
        waiting.release(GROUPS_MAX)
        self._watcher.poke()

    def hold(self) -> None:
        """Stop reading and forget what is under way, until `say_again`."""
        self._held = True
        self._start_again()

    def say_again(self) -> None:
        """The writer has lowered what counts as published: read again from there."""
        self._held = False
        progress = self._replica.progress
        self.acknowledged = Sent(progress.published, progress.published_seq)
        self._start_again()

    # ---- the reading thread --------------------------------------------------------------------------------------

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            reader = LogReader(self._replica.path, self._spool)
            try:
                self._read_groups(reader, loop)
            finally:
                reader.close()
        except BaseException as error:  # noqa: BLE001 - handed to the event loop, which ends the run with it
            self.failure = error
            loop.call_soon_threadsafe(self._queue.put_nowait, None)

    def _read_groups(self, reader: LogReader, loop: asyncio.AbstractEventLoop) -> None:
        sent, epoch = self.acknowledged, -1
        covers: dict[int, tuple[int, int]] = {}
        for _ in self._watcher.looks():
            if self._replica.writing and not self._stopping:
                continue  # nobody else can have committed; the watcher comes back soon after
            while not self._stopping and not self._held:
                if epoch != self._epoch:
                    epoch, sent, covers = self._epoch, self.acknowledged, {}
                began = time.monotonic()
                group = self._next(reader, loop, sent, covers)
                if group is None:
                    break
                self._watcher.found()
                room = self._room
                if epoch != self._epoch:
                    group.body.close()
                    continue
                room.acquire()
                if self._stopping or epoch != self._epoch:
                    group.body.close()
                    continue
                sent, covers = Sent(group.hi, group.seq), group.covers or covers
                loop.call_soon_threadsafe(self._queue.put_nowait, group)
                if group.rows >= BURST_ROWS:
                    time.sleep(max(0.0, began + BURST_PERIOD_S - time.monotonic()))
            if self._stopping:
                return

    def _next(
        self, reader: LogReader, loop: asyncio.AbstractEventLoop, sent: Sent, covers: dict[int, tuple[int, int]]
    ) -> Group | None:
        """The next group, after the writer has done what it takes."""
        while not self._stopping:
            try:
                return reader.read(self._run, sent, covers, self._replica.catalog, self._timekeeper.now_ms())
            except NotReadyError:
                asyncio.run_coroutine_threadsafe(self._prepared(), loop).result()
            except CANNOT_WRITE as error:
                # A writer in rollback-journal mode holds the file, or there is no room for a large body: the next look.
                log.debug("the log cannot be read now", reason=str(error))
                return None
        return None

    async def _prepared(self) -> None:
        await self._prepare()


def _retrieve(ack: asyncio.Future[int]) -> None:
    """An acknowledgement that nobody awaits any more must not be reported as never retrieved."""
    if not ack.cancelled():
        ack.exception()
