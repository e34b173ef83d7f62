"""JetStream's JSON API and acknowledged publishing over whatever connection stands at the moment.

Raw requests rather than nats-py's API: that one drops the server's time from the answers, and hides error codes.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from replicated_sqlite_agent.stream.errors import (
    ApiRefused,
    MessageTooLarge,
    NatsUnavailable,
    NoResponder,
    PublishUnacknowledged,
    StreamFull,
    WrongRevision,
)
from replicated_sqlite_agent.stream.wire import Reply, Wire, description_of, header_block, status_of

API: Final = "$JS.API."
API_TIMEOUT_S: Final = 5.0
"""Longest wait for an answer of the API. A cluster without a leader stays silent; asking again finds the new one."""

NO_RESPONDERS: Final = 503

NOT_FOUND: Final = 404
STREAM_NOT_FOUND: Final = 10059
NAME_IN_USE: Final = 10058
NO_MESSAGE: Final = 10037
_WRONG_REVISION: Final = frozenset({10071, 10164})
_TOO_LARGE: Final = 10054
EXHAUSTED: Final = frozenset({10002, 10023, 10028, 10047})
"""The account's or the server's memory or storage for JetStream is used up."""
_STORE_FAILED: Final = 10077
"""The stream could not store: `maximum bytes exceeded` with discard new, else trouble with the server's disk."""
_LATER: Final = frozenset({10004, 10008, 10009, 10118, 10158, _STORE_FAILED})
"""No leader, stream offline, the same message id still being stored: the same request will succeed later."""


class ApiError(msgspec.Struct, frozen=True):
    """The `error` field of an answer."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What every answer of the API may hold."""

    error: ApiError | None = None


class Counts(msgspec.Struct, frozen=True):
    """`state` of a stream: number and bytes of messages, first and last sequence."""

    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] = {}


class StreamAnswer(Answer, frozen=True):
    """STREAM.INFO, STREAM.CREATE. `ts` is the server's time of the answer."""

    config: dict[str, Any] = {}
    created: str = ""
    state: Counts = Counts()
    ts: datetime | None = None


class StoredMessage(msgspec.Struct, frozen=True):
    """One message as STREAM.MSG.GET returns it. JSON holds `hdrs` and `data` as base64; here they are decoded."""

    subject: str
    seq: int
    time: datetime
    hdrs: bytes = b""
    data: bytes = b""


class MessageAnswer(Answer, frozen=True):
    """STREAM.MSG.GET."""

    message: StoredMessage | None = None


class ConsumerAnswer(Answer, frozen=True):
    """CONSUMER.CREATE. `num_pending`: messages waiting for it."""

    name: str = ""
    num_pending: int = 0


class PurgeAnswer(Answer, frozen=True):
    """STREAM.PURGE."""

    purged: int = 0


class PublishAnswer(Answer, frozen=True):
    """The acknowledgement of a published message. `duplicate`: its id was known, `seq` is that of the first."""

    seq: int = 0
    duplicate: bool = False


A = TypeVar("A", bound=Answer)
_publish_decoder: Final = msgspec.json.Decoder(PublishAnswer)


def api_error(request: str, error: ApiError) -> Exception:
    """The exception for an error that the API answered."""
    if error.err_code in _LATER:
        return NatsUnavailable(f"JetStream cannot do {request} at the moment: {error.description}")
    return ApiRefused(request, error.code, error.err_code, error.description)


def publish_error(subject: str, error: ApiError) -> Exception:
    """The exception for a refused publish; the message was not stored."""
    if error.err_code in EXHAUSTED or (error.err_code == _STORE_FAILED and "maximum" in error.description):
        return StreamFull(f"the stream of '{subject}' is full ({error.description}): trim it or give it more bytes")
    if error.err_code in _WRONG_REVISION:
        return WrongRevision(f"'{subject}' has changed meanwhile: {error.description}")
    if error.err_code == _TOO_LARGE:
        return MessageTooLarge(f"the stream's max_msg_size refuses a message to '{subject}'; set it to -1")
    return api_error(f"a message to '{subject}'", error)


class JetStream:
    """Requests to JetStream. `_wire` is the present connection, None while there is none."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._api_timeout_s = min(timeout_s, API_TIMEOUT_S)
        self._wire: Wire | None = None
        self._away: str = "not connected yet"

    def connection(self) -> Wire:
        """The present connection. Raises NatsUnavailable while there is none."""
        wire = self._wire
        if wire is None or not wire.usable:
            raise NatsUnavailable(f"NATS is not reachable: {self._away}")
        return wire

    async def api(self, request: str, body: object, answer: type[A]) -> A:
        """Ask JetStream's API (`request` without its prefix). Raises ApiRefused, NatsUnavailable, PermissionDenied."""
        data = b"" if body is None else msgspec.json.encode(body)

        def read(reply: Reply) -> A:
            if status_of(reply.headers) == NO_RESPONDERS:
                raise NoResponder(f"JetStream does not answer {request}: it is disabled, not ready or has no leader")
            decoded = msgspec.json.decode(reply.data, type=answer)
            if decoded.error is not None:
                raise api_error(request, decoded.error)
            return decoded

        return await self.connection().request_soon(API + request, data, timeout=self._api_timeout_s, read=read)

    def publish_soon(self, subject: str, data: bytes, message_id: str) -> asyncio.Future[int]:
        """Write a message to the socket now, in the order of calls; the future gets its sequence in the stream.

        The same `message_id` within two minutes is stored once and gives the first one's sequence. The future fails
        with PublishUnacknowledged (connection lost or no answer in time: outcome unknown), StreamFull,
        MessageTooLarge, NatsUnavailable (not sent, or no stream takes the subject), PermissionDenied, ApiRefused.
        """
        return self._publish(subject, data, header_block(Nats_Msg_Id=message_id))

    async def publish(self, subject: str, data: bytes, message_id: str) -> int:
        """`publish_soon`, waited for."""
        return await self.publish_soon(subject, data, message_id)

    def _publish(self, subject: str, data: bytes, headers: bytes) -> asyncio.Future[int]:
        def read(reply: Reply) -> int:
            if status_of(reply.headers) == NO_RESPONDERS:
                raise NoResponder(f"no stream takes '{subject}': it is missing or has no leader at the moment")
            answer = _publish_decoder.decode(reply.data)
            if answer.error is not None:
                raise publish_error(subject, answer.error)
            return answer.seq

        try:
            wire = self.connection()
        except NatsUnavailable as error:
            failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed
        return wire.request_soon(
            subject,
            data,
            headers=headers,
            timeout=self._timeout_s,
            read=read,
            unanswered=lambda reason: PublishUnacknowledged(f"a message to '{subject}' was not acknowledged: {reason}"),
        )

    async def stored_message(self, stream: str, query: dict[str, Any]) -> StoredMessage | None:
        """A message by `{"seq": n}` or `{"last_by_subj": s}`, None if there is none.

        Asked of the stream's leader: a direct get may be answered by a follower that lags behind.
        """
        try:
            return (await self.api(f"STREAM.MSG.GET.{stream}", query, MessageAnswer)).message
        except ApiRefused as refused:
            if refused.error_code == NO_MESSAGE:
                return None
            raise

    async def purge_subject(self, stream: str, subject: str) -> None:
        """Remove all messages of a subject."""
        await self.api(f"STREAM.PURGE.{stream}", {"filter": subject}, PurgeAnswer)


def check_reply(reply: Reply, subject: str) -> bytes:
    """The payload of an answer to a plain request. Raises NoResponder, NatsUnavailable."""
    status = status_of(reply.headers)
    if status == NO_RESPONDERS:
        raise NoResponder(f"nobody answers on '{subject}'")
    if status >= 400:
        raise NatsUnavailable(f"'{subject}' answered {status} {description_of(reply.headers)}")
    return reply.data
