"""The cluster's KV bucket: small values under keys such as `cluster` and `member.<node>`, with compare-and-set.

The layout is that of every NATS client: key `k` of bucket `B` is subject `$KV.B.k` of stream `KV_B`, the revision is
the stream sequence. Reads go to the stream's leader, so what was written is seen by every later read. Deleting leaves
an empty message, so an empty value is no value.
"""

from __future__ import annotations

from typing import Final

from replicated_sqlite_agent.stream.consumer import Consumer, Delivery
from replicated_sqlite_agent.stream.errors import KeyExists, WrongRevision
from replicated_sqlite_agent.stream.jetstream import JetStream, StoredMessage
from replicated_sqlite_agent.stream.wire import header_block

_BATCH: Final = 256
_BATCH_BYTES: Final = 1 << 20


class KeyValueStore(JetStream):
    """The bucket's operations. All raise NatsUnavailable; after PublishUnacknowledged a write may have happened."""

    _bucket: str

    async def kv_get(self, key: str) -> tuple[bytes, int] | None:
        """The value and its revision, None if there is none."""
        message = await self._last(key)
        return None if message is None or not message.data else (message.data, message.seq)

    async def kv_create(self, key: str, value: bytes) -> int:
        """Write a key that has no value; returns its revision. Raises KeyExists."""
        try:
            return await self.kv_update(key, value, 0)
        except WrongRevision:
            message = await self._last(key)
            if message is None or message.data:
                raise KeyExists(f"the key '{key}' of bucket '{self._bucket}' has a value already") from None
        try:
            return await self.kv_update(key, value, message.seq)
        except WrongRevision:
            raise KeyExists(f"the key '{key}' of bucket '{self._bucket}' was written by another") from None

    async def kv_update(self, key: str, value: bytes, revision: int) -> int:
        """Write a key whose revision is still `revision`; returns the new one. Raises WrongRevision."""
        headers = header_block(Nats_Expected_Last_Subject_Sequence=str(revision))
        return await self._publish(self._subject(key), value, headers)

    async def kv_put(self, key: str, value: bytes) -> int:
        """Write a key whatever it holds; returns its revision."""
        return await self._publish(self._subject(key), value, b"")

    async def kv_delete(self, key: str, revision: int | None = None) -> None:
        """Remove a key's value, if given only at this revision. Raises WrongRevision. A key without value stays so."""
        headers = {"KV_Operation": "DEL"}
        if revision is not None:
            headers["Nats_Expected_Last_Subject_Sequence"] = str(revision)
        await self._publish(self._subject(key), b"", header_block(**headers))

    async def kv_items(self, prefix: str) -> dict[str, tuple[bytes, int]]:
        """Every key that starts with `prefix`, with its value and revision."""
        parents, _, _ = prefix.rpartition(".")
        start = f"$KV.{self._bucket}."
        pattern = f"{start}{parents}.>" if parents else f"{start}>"
        consumer = Consumer(self, f"KV_{self._bucket}", max_messages=_BATCH)
        items: dict[str, tuple[bytes, int]] = {}
        try:
            await consumer.open_with({"deliver_policy": "last_per_subject", "filter_subject": pattern})
            while batch := await consumer.next_batch_to_end(_BATCH, _BATCH_BYTES):
                for delivery in batch:
                    _note(items, delivery.subject.removeprefix(start), delivery)
        finally:
            await consumer.close()
        return {key: item for key, item in items.items() if key.startswith(prefix)}

    async def _last(self, key: str) -> StoredMessage | None:
        return await self.stored_message(f"KV_{self._bucket}", {"last_by_subj": self._subject(key)})

    def _subject(self, key: str) -> str:
        return f"$KV.{self._bucket}.{key}"


def _note(items: dict[str, tuple[bytes, int]], key: str, delivery: Delivery) -> None:
    """Take one message of the bucket into `items`: a value replaces, a marker of deletion removes."""
    if delivery.data:
        items[key] = (delivery.data, delivery.sequence)
    else:
        items.pop(key, None)
