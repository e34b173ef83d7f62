"""Messages of a stream in order, from a given sequence on, with one standing pull request.

The position lives in the database file, not on the server: each consumer is ephemeral, acknowledges nothing and is
simply made again after any trouble. The server pushes into our standing request as messages arrive (publish to
delivery is one hop, as with core NATS), but never more than we asked for: what is queued here plus what is asked for
stays within `max_messages` and `max_bytes`.

One request at a time: the server deals messages out among several in turn and does not say which one it has filled, so
with two of them the bound could only be guessed. Between the end of one and the next is one round trip in 8,192
messages or 16 MiB, while the reader still has up to half of that in the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import msgspec
from nats.nuid import NUID

from replicated_sqlite_agent.stream.errors import ConsumerLost
from replicated_sqlite_agent.stream.jetstream import API, ConsumerAnswer, JetStream
from replicated_sqlite_agent.stream.wire import Wire, description_of, status_of

QUEUE_BYTES: Final = 16 * 1024 * 1024
"""Most bytes queued here and asked for together. Messages are at most 512 KiB, so half of it holds many."""

QUEUE_MESSAGES: Final = 8192
"""Most messages queued here and asked for together."""

IDLE_HEARTBEAT_S: Final = 2.0
"""The server says so when it has sent nothing for this long; two silent intervals in a row mean a lost consumer."""

PULL_EXPIRES_S: Final = 60.0
"""A standing request is renewed after this long. Its end costs one round trip during which a message waits."""

INACTIVE_S: Final = 120.0
"""The server removes a consumer that has not been asked for this long: what a killed agent leaves behind."""

_NS: Final = 1_000_000_000
_numbers: Final = NUID()


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One message of the stream. `time_ms`: when the server stored it, milliseconds since 1970 by its clock."""

    subject: str
    sequence: int
    time_ms: int
    data: bytes


def parse_ack_subject(reply: bytes) -> tuple[int, int, int, int]:
    """(stream sequence, consumer sequence, store time in ns, messages still pending) from `$JS.ACK...`.

    `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<ns>.<pending>`, or with a domain and an
    account before the stream's name. Raises ValueError if it is neither.
    """
    parts = reply.split(b".")
    start = 5 if len(parts) == 9 else 7
    if len(parts) < start + 4 or parts[1] != b"ACK":
        raise ValueError(f"no JetStream delivery: {reply!r}")
    return int(parts[start]), int(parts[start + 1]), int(parts[start + 2]), int(parts[start + 3])


class Consumer:
    """A position in a stream that moves as `next_batch` is called. One reader at a time."""

    def __init__(
        self,
        jetstream: JetStream,
        stream: str,
        *,
        max_messages: int = QUEUE_MESSAGES,
        max_bytes: int = QUEUE_BYTES,
        idle_heartbeat_s: float = IDLE_HEARTBEAT_S,
        pull_expires_s: float = PULL_EXPIRES_S,
    ) -> None:
        """`max_messages` and `max_bytes` bound what is queued here and asked for together; see the module's text."""
        self._jetstream = jetstream
        self._stream = stream
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._idle_heartbeat_s = idle_heartbeat_s
        self._pull_expires_s = pull_expires_s
        self._lost: str | None = "it was never opened"
        self._wire: Wire | None = None
        self._name = ""
        self._inbox = ""
        self._subscription = 0
        self._queue: deque[tuple[Delivery, int]] = deque()
        self._queued_bytes = 0
        self._asked_messages = 0
        self._asked_bytes = 0
        self._unanswered_whole = False
        self._request_number = 0
        self._last_delivered = 0
        self._waiter: asyncio.Future[None] | None = None
        self._heard = False
        self._idle = False
        self._silent = 0
        self._watch: asyncio.TimerHandle | None = None
        self.pending = 0
        """Messages of the stream that had not been delivered to us when the newest queued one was."""

    # -- open and close -----------------------------------------------------------------------------------------------

    async def open(self, start_sequence: int) -> None:
        """Deliver from this stream sequence on (or the first one kept after it). Forgets an earlier position.

        Raises NatsUnavailable, PermissionDenied, ApiRefused (no such stream).
        """
        await self.open_with({"deliver_policy": "by_start_sequence", "opt_start_seq": max(start_sequence, 1)})

    async def open_with(self, policy: dict[str, Any]) -> None:
        """`open` with any delivery policy and filter, as the consumer configuration of JetStream has them."""
        await self.close()
        wire = self._jetstream.connection()
        name = f"rsqlite-{_numbers.next().decode()}"
        config = {
            "name": name,
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": int(INACTIVE_S * _NS),
            # It holds nothing that the file does not hold better.
            "mem_storage": True,
            "num_replicas": 1,
        }
        request = {"stream_name": self._stream, "config": config | policy}
        answer = await self._jetstream.api(f"CONSUMER.CREATE.{self._stream}.{name}", request, ConsumerAnswer)
        self._wire, self._name, self.pending = wire, name, answer.num_pending
        self._inbox = wire.private_inbox()
        self._lost = None
        self._last_delivered = 0
        self._idle = False
        self._silent = 0
        self._subscription = wire.subscribe_raw(f"{self._inbox}.*", self._on_message)
        wire.when_lost(self._on_connection_lost)
        self._ask_if_room()
        self._heard = True
        self._watch = asyncio.get_running_loop().call_later(self._idle_heartbeat_s, self._listen_for_life)

    async def close(self) -> None:
        """Forget everything queued and remove the consumer from the server, without waiting for its answer."""
        wire, name = self._wire, self._name
        self._lose("it was closed")
        self._queue.clear()
        self._queued_bytes = 0
        if wire is not None and wire.usable:
            wire.send(f"{API}CONSUMER.DELETE.{self._stream}.{name}", b"")

    # -- read ---------------------------------------------------------------------------------------------------------

    async def next_batch(self, max_messages: int, max_bytes: int) -> list[Delivery]:
        """At least one message, and what else is queued already within these bounds (bytes of payload).

        Waits only for the first. One message larger than `max_bytes` is returned alone. Raises ConsumerLost, after all
        that was delivered in order has been returned.
        """
        await self._wait(to_end=False)
        return self._take(max_messages, max_bytes)

    async def next_batch_to_end(self, max_messages: int, max_bytes: int) -> list[Delivery]:
        """`next_batch`, but empty once all that the stream holds for this consumer has been returned."""
        await self._wait(to_end=True)
        return self._take(max_messages, max_bytes)

    async def _wait(self, *, to_end: bool) -> None:
        """Until something is queued or, if asked for, nothing is left in the stream."""
        while not self._queue:
            # Messages removed from the stream meanwhile are still counted as pending; a server that is idle says so.
            if to_end and (self.pending == 0 or self._idle):
                return
            if self._lost is not None:
                raise ConsumerLost(f"the consumer of stream '{self._stream}' no longer delivers: {self._lost}")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _take(self, max_messages: int, max_bytes: int) -> list[Delivery]:
        batch: list[Delivery] = []
        taken = 0
        while self._queue and len(batch) < max_messages:
            delivery, size = self._queue[0]
            if batch and taken + len(delivery.data) > max_bytes:
                break
            self._queue.popleft()
            self._queued_bytes -= size
            taken += len(delivery.data)
            batch.append(delivery)
        self._ask_if_room()
        return batch

    @property
    def held_bytes(self) -> int:
        """Bytes queued here and asked for: never above `max_bytes`, but for one message that is larger alone."""
        return self._queued_bytes + self._asked_bytes

    # -- ask ----------------------------------------------------------------------------------------------------------

    def _ask_if_room(self) -> None:
        """Ask for all that fits once the last request has ended and half of what may be queued is free."""
        if self._lost is not None or self._asked_messages:
            return
        messages, size = self._max_messages - len(self._queue), self._max_bytes - self._queued_bytes
        if 2 * messages >= self._max_messages and 2 * size >= self._max_bytes:
            self._request(messages, size)

    def _request(self, messages: int, size: int, *, oversize: bool = False) -> None:
        """Send a pull request; `oversize` lets one message of any size through."""
        assert self._wire is not None
        body = {
            "batch": messages,
            "expires": int(self._pull_expires_s * _NS),
            "idle_heartbeat": int(self._idle_heartbeat_s * _NS),
        }
        if not oversize:
            body["max_bytes"] = size
        self._asked_messages, self._asked_bytes = messages, size
        self._unanswered_whole = size == self._max_bytes and not oversize
        self._request_number += 1
        self._wire.send(
            f"{API}CONSUMER.MSG.NEXT.{self._stream}.{self._name}",
            msgspec.json.encode(body),
            f"{self._inbox}.{self._request_number}",
        )

    # -- receive ------------------------------------------------------------------------------------------------------

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        """One message or one status from the server, called by the parser in the order of arrival."""
        if self._lost is not None:
            return
        self._heard = True
        if headers and not data:
            status = status_of(headers)
            if status:
                self._on_status(subject, status, headers)
                return
        try:
            sequence, delivered, time_ns, self.pending = parse_ack_subject(reply)
        except ValueError as error:
            self._lose(str(error))
            return
        if delivered != self._last_delivered + 1:
            self._lose(f"delivery {delivered} came after delivery {self._last_delivered}")
            return
        self._last_delivered = delivered
        # The server counts a message against max_bytes with its subjects and headers.
        size = len(subject) + len(reply) + len(headers) + len(data)
        self._asked_messages -= 1
        self._asked_bytes = max(self._asked_bytes - size, 0) if self._asked_messages else 0
        self._unanswered_whole = False
        self._idle = False
        self._queued_bytes += size
        self._queue.append((Delivery(subject.decode(), sequence, time_ns // 1_000_000, data), size))
        if not self._asked_messages:
            self._ask_if_room()
        self._wake()

    def _on_status(self, subject: bytes, status: int, headers: bytes) -> None:
        """100: alive. 404, 408: a request ended. 409: a request ended, or the consumer. 400, 503: it is gone."""
        if status == 100:
            self._idle = True
            self._wake()
            return
        text = description_of(headers)
        too_large = status == 409 and "message size exceeds" in text.lower()
        if status in (404, 408) or too_large or (status == 409 and "batch completed" in text.lower()):
            # Each request has its own reply subject: the end of an earlier one says nothing about the present one.
            if subject.endswith(b".%d" % self._request_number):
                self._asked_messages = self._asked_bytes = 0
                if too_large and self._unanswered_whole:
                    # Nothing came of a request for all that may be held: the next message is larger than that.
                    self._request(1, self._max_bytes, oversize=True)
                else:
                    self._ask_if_room()
            return
        self._lose(f"the server said {status} {text}".rstrip())

    # -- loss ---------------------------------------------------------------------------------------------------------

    def _listen_for_life(self) -> None:
        """Once per heartbeat interval: a server that owes us messages or heartbeats and sends neither is gone."""
        if self._heard or self._asked_messages == 0:
            self._silent = 0
        else:
            # Twice in a row: after a pause of this process itself the timer fires before the socket is read.
            self._silent += 1
        self._heard = False
        if self._silent >= 2:
            self._lose(f"the server was silent for {2 * self._idle_heartbeat_s:g} s")
            return
        self._watch = asyncio.get_running_loop().call_later(self._idle_heartbeat_s, self._listen_for_life)

    def _on_connection_lost(self, reason: str) -> None:
        self._lose(f"the connection was lost: {reason}")

    def _lose(self, reason: str) -> None:
        """Stop receiving; what is queued stays readable."""
        if self._lost is not None:
            return
        self._lost = reason
        if self._watch is not None:
            self._watch.cancel()
        if self._wire is not None:
            self._wire.forget(self._on_connection_lost)
            self._wire.unsubscribe_raw(self._subscription)
            self._wire = None
        self._asked_messages = self._asked_bytes = 0
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
