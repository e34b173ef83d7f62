"""The cluster's object store: snapshots and other large things, in chunks, with a digest.

The layout is that of every NATS client (`nats object get` works): chunks of object `o` of bucket `B` under
`$O.B.C.<nuid>`, its description under `$O.B.M.<base64 of o>` in stream `OBJ_B`. nats-py's own implementation waits for
each chunk's acknowledgement and reads with a push consumer whose queue takes 128 MiB; here a window of chunks is on its
way, and nothing holds more than `WINDOW` of them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import msgspec
from nats.nuid import NUID

from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.stream.consumer import Consumer
from replicated_sqlite_agent.stream.errors import ObjectDamaged, ObjectExists, ObjectMissing, WrongRevision
from replicated_sqlite_agent.stream.jetstream import Counts, JetStream, StreamAnswer
from replicated_sqlite_agent.stream.wire import header_block

CHUNK_BYTES: Final = 128 * 1024
"""What other clients use as well."""

WINDOW: Final = 16
"""Chunks sent and not yet acknowledged, or received and not yet written: 2 MiB."""

_READ_BYTES: Final = 4 * 1024 * 1024
"""Bound for objects that others stored in larger chunks."""

_DIGEST: Final = "SHA-256="
_NUIDS: Final = NUID()


class ObjectInfo(msgspec.Struct, frozen=True):
    """An object. `digest`: SHA-256 of its bytes in hex. `modified_ms`: milliseconds since 1970 by the writer."""

    name: str
    size: int
    digest: str
    modified_ms: int


class _Meta(msgspec.Struct, omit_defaults=True):
    """The description of an object as it stands in the stream."""

    name: str
    bucket: str
    nuid: str
    size: int = 0
    chunks: int = 0
    digest: str = ""
    mtime: str = ""
    deleted: bool = False
    options: dict[str, object] = {}


class ObjectStore(JetStream):
    """The store's operations. All raise NatsUnavailable, those that write also PublishUnacknowledged: repeat it."""

    _bucket: str

    # -- write --------------------------------------------------------------------------------------------------------

    async def object_put(self, name: str, path: Path, chunk_bytes: int = CHUNK_BYTES) -> ObjectInfo:
        """Store a file under `name`; a former object of that name is replaced at the end, in one step.

        Holds at most WINDOW chunks in memory. Raises StreamFull, OSError.
        """
        with await asyncio.to_thread(path.open, "rb") as source:
            return await self._put(name, source, chunk_bytes)

    async def object_put_bytes(self, name: str, data: bytes) -> ObjectInfo:
        """`object_put` of bytes."""
        return await self._put(name, io.BytesIO(data), CHUNK_BYTES)

    async def object_create(self, name: str, data: bytes) -> ObjectInfo:
        """`object_put_bytes`, if there is no object of that name. Raises ObjectExists."""
        return await self._put(name, io.BytesIO(data), CHUNK_BYTES, new=True)

    async def _put(self, name: str, source: IO[bytes], chunk_bytes: int, *, new: bool = False) -> ObjectInfo:
        former = await self._meta(name)
        if new and former is not None:
            raise ObjectExists(f"the object store '{self._bucket}' already holds '{name}'")
        nuid = _NUIDS.next().decode()
        meta = _Meta(name=name, bucket=self._bucket, nuid=nuid, options={"max_chunk_size": chunk_bytes})
        try:
            await self._put_chunks(meta, source, chunk_bytes)
            await self._publish_meta(name, meta, new)
        except (AgentError, OSError, asyncio.CancelledError):
            await self._discard(meta.nuid)
            raise
        if former is not None:
            await self.purge_subject(self._objects, self._chunk_subject(former.nuid))
        return _info(meta)

    async def _publish_meta(self, name: str, meta: _Meta, new: bool) -> None:
        """Give the object its name; ``new``: only if none has it."""
        headers = {"Nats_Rollup": "sub"} | ({"Nats_Expected_Last_Subject_Sequence": "0"} if new else {})
        try:
            await self._publish(self._meta_subject(name), msgspec.json.encode(meta), header_block(**headers))
        except WrongRevision as error:
            raise ObjectExists(f"the object store '{self._bucket}' already holds '{name}'") from error

    async def _put_chunks(self, meta: _Meta, source: IO[bytes], chunk_bytes: int) -> None:
        """Send all chunks, at most WINDOW unacknowledged, and write size, count and digest into `meta`."""
        digest = hashlib.sha256()
        subject = self._chunk_subject(meta.nuid)
        sent: deque[asyncio.Future[int]] = deque()
        try:
            while chunk := await asyncio.to_thread(_read_chunk, source, chunk_bytes, digest):
                if len(sent) == WINDOW:
                    await sent.popleft()
                sent.append(self._publish(subject, chunk, b""))
                meta.size += len(chunk)
                meta.chunks += 1
            while sent:
                await sent.popleft()
        finally:
            for future in sent:
                future.cancel()
        meta.digest = _DIGEST + base64.urlsafe_b64encode(digest.digest()).decode()
        meta.mtime = datetime.now(UTC).isoformat()

    async def _discard(self, nuid: str) -> None:
        """Remove the chunks of an object that was not finished, if NATS still lets us."""
        try:
            await self.purge_subject(self._objects, self._chunk_subject(nuid))
        except AgentError:
            # `object_sweep` finds them.
            return

    # -- read ---------------------------------------------------------------------------------------------------------

    async def object_get(self, name: str, path: Path) -> ObjectInfo:
        """Write an object to `path`, whole and verified or not at all; a file that stands there is replaced.

        Raises ObjectMissing, ObjectDamaged.
        """
        partial = path.with_name(f"{path.name}.partial")
        try:
            with await asyncio.to_thread(partial.open, "wb") as target:
                info = await self._get(name, target)
                await asyncio.to_thread(_sync, target)
            await asyncio.to_thread(os.replace, partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return info

    async def object_get_bytes(self, name: str) -> bytes:
        """An object's bytes. Raises ObjectMissing, ObjectDamaged."""
        target = io.BytesIO()
        await self._get(name, target)
        return target.getvalue()

    async def _get(self, name: str, target: IO[bytes]) -> ObjectInfo:
        meta = await self._meta(name)
        if meta is None:
            raise ObjectMissing(f"the object store '{self._bucket}' holds no '{name}'")
        digest = hashlib.sha256()
        size = 0
        async for chunks in self._chunks(meta):
            await asyncio.to_thread(_write_chunks, target, chunks, digest)
            size += sum(map(len, chunks))
        if size != meta.size or base64.urlsafe_b64encode(digest.digest()).decode() != meta.digest.removeprefix(_DIGEST):
            raise ObjectDamaged(
                f"the object '{name}' of store '{self._bucket}' is damaged: {size} of {meta.size} bytes, "
                "or another SHA-256 than recorded; use an older one"
            )
        return _info(meta)

    async def _chunks(self, meta: _Meta) -> AsyncIterator[list[bytes]]:
        """An object's chunks in order, a few at a time."""
        if not meta.chunks:
            return
        consumer = Consumer(self, self._objects, max_messages=WINDOW, max_bytes=_READ_BYTES)
        try:
            await consumer.open_with({"deliver_policy": "all", "filter_subject": self._chunk_subject(meta.nuid)})
            while batch := await consumer.next_batch_to_end(WINDOW, _READ_BYTES):
                yield [delivery.data for delivery in batch]
        finally:
            await consumer.close()

    # -- list and delete ----------------------------------------------------------------------------------------------

    async def object_list(self, prefix: str = "") -> list[ObjectInfo]:
        """The objects whose name starts with `prefix`, by name."""
        return sorted((_info(m) for m in await self._metas() if m.name.startswith(prefix)), key=lambda info: info.name)

    async def object_delete(self, name: str) -> None:
        """Remove an object and its chunks; a missing one is no error."""
        meta = await self._meta(name)
        if meta is not None:
            # The description first: what is listed is whole. Purged rather than marked, or markers would add up.
            await self.purge_subject(self._objects, self._meta_subject(name))
            await self.purge_subject(self._objects, self._chunk_subject(meta.nuid))

    async def object_sweep(self, min_age_s: float) -> int:
        """Remove chunks that belong to no object and are older than this: what a killed `object_put` left behind.

        Returns of how many objects.
        """
        start = self._chunk_subject("")
        state = await self._subjects(f"{start}>")
        known = {start + meta.nuid for meta in await self._metas()}
        swept = 0
        for subject in state.subjects.keys() - known:
            last = await self.stored_message(self._objects, {"last_by_subj": subject})
            if last is not None and datetime.now(UTC).timestamp() - last.time.timestamp() >= min_age_s:
                await self.purge_subject(self._objects, subject)
                swept += 1
        return swept

    async def _subjects(self, pattern: str) -> Counts:
        answer = await self.api(f"STREAM.INFO.{self._objects}", {"subjects_filter": pattern}, StreamAnswer)
        return answer.state

    async def _metas(self) -> list[_Meta]:
        consumer = Consumer(self, self._objects, max_messages=256)
        found: list[_Meta] = []
        try:
            await consumer.open_with({"deliver_policy": "last_per_subject", "filter_subject": f"$O.{self._bucket}.M.>"})
            while batch := await consumer.next_batch_to_end(256, 1 << 20):
                found += (msgspec.json.decode(delivery.data, type=_Meta) for delivery in batch)
        finally:
            await consumer.close()
        return [meta for meta in found if not meta.deleted]

    async def _meta(self, name: str) -> _Meta | None:
        message = await self.stored_message(self._objects, {"last_by_subj": self._meta_subject(name)})
        if message is None:
            return None
        meta = msgspec.json.decode(message.data, type=_Meta)
        return None if meta.deleted else meta

    @property
    def _objects(self) -> str:
        return f"OBJ_{self._bucket}"

    def _chunk_subject(self, nuid: str) -> str:
        return f"$O.{self._bucket}.C.{nuid}"

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def _info(meta: _Meta) -> ObjectInfo:
    digest = base64.urlsafe_b64decode(meta.digest.removeprefix(_DIGEST)).hex()
    modified = int(datetime.fromisoformat(meta.mtime).timestamp() * 1000) if meta.mtime else 0
    return ObjectInfo(name=meta.name, size=meta.size, digest=digest, modified_ms=modified)


def _read_chunk(source: IO[bytes], size: int, digest: hashlib._Hash) -> bytes:
    chunk = source.read(size)
    digest.update(chunk)
    return chunk


def _write_chunks(target: IO[bytes], chunks: list[bytes], digest: hashlib._Hash) -> None:
    for chunk in chunks:
        digest.update(chunk)
        target.write(chunk)


def _sync(target: IO[bytes]) -> None:
    target.flush()
    os.fsync(target.fileno())
