"""The agent's one connection to NATS: always trying, never raising because NATS is away.

Every operation either succeeds on the connection that stands at the moment or raises NatsUnavailable (or, for a publish
under way, PublishUnacknowledged) at once; nothing is kept for later, because the log on disk already is.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

import structlog
from nats.aio.client import RawCredentials

from replicated_sqlite_agent.errors import AgentError, ConfigurationError
from replicated_sqlite_agent.settings import Nats
from replicated_sqlite_agent.stream import definitions
from replicated_sqlite_agent.stream.consumer import Consumer, Delivery
from replicated_sqlite_agent.stream.definitions import Definition
from replicated_sqlite_agent.stream.errors import ApiRefused, PermissionDenied, RequestFailed, StreamMisconfigured
from replicated_sqlite_agent.stream.jetstream import (
    EXHAUSTED,
    NAME_IN_USE,
    STREAM_NOT_FOUND,
    PurgeAnswer,
    StreamAnswer,
    check_reply,
)
from replicated_sqlite_agent.stream.keyvalue import KeyValueStore
from replicated_sqlite_agent.stream.objects import ObjectStore
from replicated_sqlite_agent.stream.wire import Reply, Target, Wire, header_of
from replicated_sqlite_contract import names

TIMEOUT_S: Final = 10.0
"""Longest wait for an acknowledgement. A server that fsyncs each message takes milliseconds, but a disk may stall."""

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 5.0
"""Pause between attempts to connect: doubled from the first to the most, each shortened at random by up to a half."""

SERVED_AT_ONCE: Final = 16
"""Requests that one `serve` handles at the same time; further ones wait in order."""

_UNREACHABLE: Final = "unreachable"
_ERROR_HEADER: Final = b"Nats-Service-Error"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Handler = Callable[[bytes], Awaitable[bytes]]
"""Answers one request. An AgentError that it raises becomes the requester's RequestFailed."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """The stream of changes at one moment."""

    id: str
    """Creation time and a random part: another id means another stream, whatever its name."""
    first: int
    """Sequence of the oldest message kept; above `last` if there is none."""
    last: int
    """Sequence of the newest message ever stored, 0 if there was none."""
    bytes: int
    max_bytes: int
    """-1 means no limit."""
    messages: int
    server_ms: int | None
    """The server's wall clock when it answered, milliseconds since 1970; None if it did not say."""
    asked_at_ms: float
    answered_at_ms: float
    """Our wall clock before asking and after the answer."""

    @property
    def clock_offset_ms(self) -> int | None:
        """Server's clock minus ours, exact to half the round trip; None if the server did not say its time."""
        if self.server_ms is None:
            return None
        return round(self.server_ms - (self.asked_at_ms + self.answered_at_ms) / 2)


class Session(KeyValueStore, ObjectStore):
    """One connection and everything done over it. Call `start` in a running loop, `close` at the end."""

    def __init__(self, settings: Nats, cluster: str, node: str, timeout_s: float = TIMEOUT_S) -> None:
        """`settings.servers` must not be empty. Raises ConfigurationError for unusable certificates or credentials."""
        super().__init__(timeout_s)
        self._cluster = cluster
        self._node = node
        self._stream = names.stream_name(cluster)
        self._bucket = names.bucket_name(cluster)
        self._configured = [Target(url) for url in settings.servers]
        self._discovered: list[Target] = []
        self._settings = settings
        self._name = f"rsqlite {cluster} {node}"
        _tls_context(settings)
        _login(settings)
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._connected_callbacks: list[Callable[[], None]] = []
        self._disconnected_callbacks: list[Callable[[], None]] = []
        self._services: list[_Service] = []
        self._trouble = ""
        self._max_payload = 1024 * 1024

    # -- the connection -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, in the background and for ever."""
        self._keeper = asyncio.create_task(self._keep_connected(), name="nats session")

    async def close(self) -> None:
        """End the connection; publishes without acknowledgement fail. Messages written before are still sent."""
        keeper, self._keeper = self._keeper, None
        while keeper is not None and not keeper.done():
            # Again and again: a cancellation that arrives while a connection is being made may be swallowed there.
            keeper.cancel()
            await asyncio.wait({keeper}, timeout=0.1)
        for service in self._services:
            service.stop()
        if self._wire is not None:
            self._wire.hang_up()

    @property
    def connected(self) -> bool:
        """Whether a connection stands, as far as is known."""
        return self._wire is not None and self._wire.usable

    async def wait_connected(self) -> None:
        """Return once a connection stands."""
        await self._up.wait()

    def when_connected(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each connect (at once, too, if a connection stands)."""
        self._connected_callbacks.append(callback)
        if self.connected:
            callback()

    def when_disconnected(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each loss of the connection."""
        self._disconnected_callbacks.append(callback)

    @property
    def max_payload(self) -> int:
        """Most bytes of one message, headers included, as the server said last; 1 MiB before the first connect."""
        return self._max_payload

    async def _keep_connected(self) -> None:
        failures, said = 0, ""
        # One line per kind of trouble, not per attempt: unreachable, or what the server or a bad file refuses us with.
        while True:
            targets = self._configured + self._discovered
            target = targets[failures % len(targets)]
            wire = await self._dial(target)
            if wire is None:
                failures += 1
                if self._trouble != said and failures >= len(self._configured):
                    said = self._trouble
                    _say_away(target, self._away)
                await asyncio.sleep(_backoff(failures))
                continue
            if said:
                log.info("NATS is reachable again", server=target.url, attempts=failures)
            failures, said = 0, ""
            reason = await asyncio.shield(wire.lost)
            said = _UNREACHABLE
            _say_away(target, f"connection lost: {reason}")

    async def _dial(self, target: Target) -> Wire | None:
        """One attempt; None if it failed, with the reason in `_away`."""
        wire = Wire()
        try:
            # Files are read each time: a rotated certificate or secret needs no restart.
            await wire.dial(target, _tls_context(self._settings), _login(self._settings) | {"name": self._name})
        except Exception as error:  # noqa: BLE001  nats-py lets whatever a malformed credentials file provokes through
            self._away = str(error) or type(error).__name__
            self._trouble = _UNREACHABLE if isinstance(error, OSError) else self._away
            return None
        self._discovered = _targets(wire, target)
        self._max_payload = wire.max_payload
        self._wire = wire
        for service in self._services:
            service.attach(wire)
        self._up.set()
        wire.when_lost(self._gone)
        for callback in self._connected_callbacks:
            asyncio.get_running_loop().call_soon(callback)
        return wire

    def _gone(self, reason: str) -> None:
        """Called in the moment of the loss, so that nobody finds a dead connection standing."""
        self._wire, self._away = None, reason
        self._up.clear()
        for callback in self._disconnected_callbacks:
            asyncio.get_running_loop().call_soon(callback)

    # -- the stream ---------------------------------------------------------------------------------------------------

    async def ensure_stream(self, max_bytes: int, replicas: int = 1, may_create: bool = True) -> StreamState:
        """Create what is missing of stream, KV bucket and object store, and check what is there.

        Raises StreamMisconfigured (missing and not allowed to create it, or a setting that would lose data), and
        NatsUnavailable.
        """
        await self._ensure(definitions.change_stream(self._cluster, max_bytes, replicas), may_create)
        await self._ensure(definitions.key_value_bucket(self._cluster, replicas), may_create)
        await self._ensure(definitions.object_bucket(self._cluster, replicas), may_create)
        return await self.stream_state()

    async def _ensure(self, wanted: Definition, may_create: bool) -> None:
        try:
            config = await self._stream_config(wanted.name)
            if config is None and may_create:
                config = await self._create(wanted)
        except PermissionDenied as denied:
            raise StreamMisconfigured(
                f"the NATS user may not use '{denied.subject}', so the stream '{wanted.name}' ({wanted.purpose}) "
                f"cannot be made or checked: grant that subject, or create the stream with: {wanted.create_command}"
            ) from denied
        except ApiRefused as refused:
            hint = (
                "lower limits.stream_max_bytes or give JetStream more storage"
                if refused.error_code in EXHAUSTED
                else f"mend that, or create it with: {wanted.create_command}"
            )
            raise StreamMisconfigured(
                f"the stream '{wanted.name}' ({wanted.purpose}) cannot be made: {refused.description}; {hint}"
            ) from refused
        if config is None:
            raise StreamMisconfigured(
                f"the stream '{wanted.name}' ({wanted.purpose}) does not exist and this agent is not to create it; "
                f"create it with: {wanted.create_command}"
            )
        deviations = wanted.deviations(config)
        if deviations:
            raise StreamMisconfigured(
                f"the stream '{wanted.name}' ({wanted.purpose}) has settings that would lose data: "
                f"{'; '.join(deviations)}; mend it with: {wanted.edit_command}"
            )

    async def _stream_config(self, name: str) -> definitions.Config | None:
        """The present configuration, None if there is no such stream."""
        try:
            return (await self.api(f"STREAM.INFO.{name}", None, StreamAnswer)).config
        except ApiRefused as refused:
            if refused.error_code == STREAM_NOT_FOUND:
                return None
            raise

    async def _create(self, wanted: Definition) -> definitions.Config | None:
        """Create the stream; if another was faster, what that one made."""
        config = wanted.config | {"metadata": {definitions.ID_KEY: f"{random.getrandbits(64):016x}"}}
        try:
            return (await self.api(f"STREAM.CREATE.{wanted.name}", config, StreamAnswer)).config
        except ApiRefused as refused:
            if refused.error_code == NAME_IN_USE:
                return await self._stream_config(wanted.name)
            raise

    async def stream_state(self) -> StreamState:
        """The stream's id, range and size, and the server's clock. Raises NatsUnavailable, ApiRefused."""
        asked = time.time()
        answer = await self.api(f"STREAM.INFO.{self._stream}", None, StreamAnswer)
        answered = time.time()
        state = answer.state
        return StreamState(
            id=_stream_id(answer),
            first=max(state.first_seq, 1),
            last=state.last_seq,
            bytes=state.bytes,
            max_bytes=answer.config.get("max_bytes", -1),
            messages=state.messages,
            server_ms=None if answer.ts is None else int(answer.ts.timestamp() * 1000),
            asked_at_ms=asked * 1000,
            answered_at_ms=answered * 1000,
        )

    async def message(self, sequence: int) -> Delivery | None:
        """One message of the stream, None if the stream does not hold it."""
        found = await self.stored_message(self._stream, {"seq": sequence})
        if found is None:
            return None
        return Delivery(found.subject, found.seq, int(found.time.timestamp() * 1000), found.data)

    async def purge(self, before_sequence: int) -> int:
        """Remove all messages below this sequence; returns how many."""
        return (await self.api(f"STREAM.PURGE.{self._stream}", {"seq": before_sequence}, PurgeAnswer)).purged

    def consumer(self) -> Consumer:
        """A reader of the stream; `open` it at a sequence."""
        return Consumer(self, self._stream)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def request(self, subject: str, data: bytes, timeout: float) -> bytes:
        """Ask whoever serves `subject`; `timeout` in seconds.

        Raises NoResponder, RequestFailed (with the other side's words), NatsUnavailable.
        """

        def read(reply: Reply) -> bytes:
            error = header_of(reply.headers, _ERROR_HEADER)
            if error is not None:
                raise RequestFailed(f"'{subject}' answered: {error.decode(errors='replace')}")
            return check_reply(reply, subject)

        return await self.connection().request_soon(subject, data, timeout=timeout, read=read)

    def serve(self, subject: str, handler: Handler, queue: str | None = None) -> Callable[[], None]:
        """Answer requests on `subject` (one of the `queue` group each), over every reconnect. Returns how to stop."""
        service = _Service(subject, handler, queue or "")
        self._services.append(service)
        if self._wire is not None:
            service.attach(self._wire)

        def stop() -> None:
            service.stop()
            self._services.remove(service)

        return stop


class _Service:
    """One subject that we answer on."""

    def __init__(self, subject: str, handler: Handler, queue: str) -> None:
        self._subject = subject
        self._handler = handler
        self._queue = queue
        self._wire: Wire | None = None
        self._number = 0
        self._places = asyncio.Semaphore(SERVED_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def attach(self, wire: Wire) -> None:
        """Subscribe on a new connection."""
        self._wire = wire
        self._number = wire.subscribe_raw(self._subject, self._on_request, self._queue)

    def stop(self) -> None:
        """Unsubscribe and drop what is being answered."""
        if self._wire is not None:
            self._wire.unsubscribe_raw(self._number)
            self._wire = None
        for task in self._tasks:
            task.cancel()

    def _on_request(self, _subject: bytes, reply: bytes, data: bytes, _headers: bytes) -> None:
        if self._wire is None or not reply:
            return
        task = asyncio.create_task(self._answer(self._wire, reply.decode(), data), name=f"answer on {self._subject}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, wire: Wire, reply: str, data: bytes) -> None:
        headers = b""
        try:
            async with self._places:
                answer = await self._handler(data)
        except AgentError as error:
            answer, headers = b"", _error_headers(str(error))
        except Exception:
            # One bad request must not end the service, and the asker must not wait in vain.
            log.exception("a request could not be answered", subject=self._subject)
            answer, headers = b"", _error_headers("internal error; see the log of the answering agent")
        with suppress(AgentError):
            wire.send(reply, answer, headers=headers)


def _error_headers(text: str) -> bytes:
    words = " ".join(text.split())
    return b"NATS/1.0\r\n" + _ERROR_HEADER + b": " + words.encode() + b"\r\nNats-Service-Error-Code: 500\r\n\r\n"


def _say_away(target: Target, reason: str) -> None:
    log.warning("NATS is not reachable; the agent goes on and keeps trying", server=target.url, reason=reason)


def _stream_id(answer: StreamAnswer) -> str:
    """`<creation time>-<random part>`, safe in paths; the creation time (ns) alone for a stream that others made."""
    metadata: dict[str, str] = answer.config.get("metadata") or {}
    created = answer.created.replace("-", "").replace(":", "")
    random_part = metadata.get(definitions.ID_KEY)
    return f"{created}-{random_part}" if random_part else created


def _backoff(failures: int) -> float:
    longest = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10), BACKOFF_MOST_S)
    return longest * random.uniform(0.5, 1.0)


def _targets(wire: Wire, dialled: Target) -> list[Target]:
    """The other servers of the NATS cluster, as the server tells them: tried when the configured ones fail."""
    name = dialled.tls_hostname or urlparse(dialled.url).hostname
    found = []
    for uri in wire.discovered_servers:
        host = uri.hostname or ""
        found.append(Target(uri.geturl(), tls_hostname=name if _is_ip(host) else None))
    return found


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _login(settings: Nats) -> dict[str, Any]:
    """The login as nats-py's arguments."""
    return {
        "user_credentials": None if settings.credentials is None else _credentials(settings.credentials),
        "nkeys_seed": None if settings.nkey is None else str(settings.nkey),
        "user": settings.user,
        "password": settings.password,
        "token": settings.token,
    }


def _credentials(path: Path) -> RawCredentials:
    """The content of a credentials file. Checked here: nats-py looks for the markers for ever if one is missing."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"nats.credentials: {path} cannot be read: {error}") from error
    if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
        raise ConfigurationError(f"nats.credentials: {path} is no NATS credentials file: it lacks the JWT or the seed")
    return RawCredentials(text)


def _tls_context(settings: Nats) -> ssl.SSLContext | None:
    """The certificates to verify and to show; None if the system's authorities and no client certificate do."""
    tls = settings.tls
    if tls.ca is None and tls.cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
        if tls.cert is not None:
            context.load_cert_chain(str(tls.cert), None if tls.key is None else str(tls.key))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"nats.tls: the certificates cannot be used: {error}") from error
    return context
