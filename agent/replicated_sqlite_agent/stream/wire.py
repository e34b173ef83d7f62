"""One connection to NATS, from dial to loss; a new one is made after each loss.

nats-py does what must not be written twice: INFO and CONNECT, authentication, TLS, the parser, keep-alive. This class
takes the messages straight from its parser and writes frames straight to its socket, without its queues and tasks per
subscription: they cost about 30 µs of CPU and two task switches per message, drop messages when a reader is slow, and
keep publishes in a buffer over a reconnect, when nobody knows any more what was sent. It needs four private names of
nats-py (`_process_msg`, `_process_op_err`, `_process_err`, `_transport`), which is why the version is pinned.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlparse

import structlog
from nats.aio.client import Client
from nats.aio.transport import TcpTransport, WebSocketTransport
from nats.errors import SecureConnRequiredError

from replicated_sqlite_agent.stream.errors import MessageTooLarge, NatsUnavailable, PermissionDenied

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S: Final = 5
"""Longest wait for each step of the handshake."""

PING_INTERVAL_S: Final = 4
"""A peer that does not answer is given up after three intervals. A closed socket is noticed at once."""

SWEEP_INTERVAL_S: Final = 0.25
"""How often requests past their deadline are looked for, while any is outstanding."""

_UNSAFE: Final = re.compile(r"[\s\x00-\x1f]")
_DENIED: Final = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"")

Route = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with (subject, reply subject, payload, raw header block) of each message of a subscription, in order."""


class Reply(NamedTuple):
    """An answer to a request: its payload and its raw header block (empty if there was none)."""

    data: bytes
    headers: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """A server to dial. `tls_hostname` is the name to verify where the address is not the one a person wrote."""

    url: str
    tls_hostname: str | None = None


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[T]):
    """A request on its way: who waits, until when, how to read the answer, what to say if none comes."""

    future: asyncio.Future[T]
    deadline: float
    subject: str
    read: Callable[[Reply], T]
    unanswered: Callable[[str], Exception]


def status_of(headers: bytes) -> int:
    """The inline status of a raw header block (`NATS/1.0 503 ...`), 0 if it has none."""
    code = headers[9:12]
    return int(code) if headers[8:9] == b" " and code.isdigit() else 0


def description_of(headers: bytes) -> str:
    """The words after the inline status, empty if there are none."""
    return headers[12 : headers.find(b"\r\n")].decode(errors="replace").strip()


def header_of(headers: bytes, name: bytes) -> bytes | None:
    """The value of one header, None if it is absent. Names are compared exactly, as NATS does."""
    start = headers.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return headers[start : headers.find(b"\r\n", start)].strip()


def header_block(**values: str) -> bytes:
    """The raw block for these headers; `_` in a name stands for `-`."""
    lines = "".join(f"{name.replace('_', '-')}: {_safe(value)}\r\n" for name, value in values.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def _safe(text: str) -> str:
    """`text` if it can stand in a line of the protocol without ending it."""
    if not text or _UNSAFE.search(text):
        raise ValueError(f"{text!r} is no NATS subject or header: it is empty or holds a space or control character")
    return text


class Wire(Client):
    """A connection. Made by `dial`; usable until `lost` is done; never reconnects."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._routes: dict[int, Route] = {}
        self._last_sid = 0
        self._inbox = f"_INBOX.{self._nuid.next().decode()}"
        self._reply_prefix = len(self._inbox) + 1
        self._last_token = 0
        self._waiting: dict[bytes, _Waiting[Any]] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._must_upgrade = False
        self._hang_up_task: asyncio.Task[None] | None = None
        self._closing: list[Callable[[str], None]] = []
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Done with the reason once the connection is gone."""

    # -- dial and lose ------------------------------------------------------------------------------------------------

    async def dial(self, target: Target, tls: SSLContext | None, credentials: dict[str, Any]) -> None:
        """Connect. `credentials` are arguments of nats-py's `connect`. Raises whatever went wrong, all retryable."""
        scheme = urlparse(target.url).scheme
        self._must_upgrade = scheme == "tls" or (tls is not None and scheme != "wss")
        try:
            await self.connect(
                servers=[target.url],
                allow_reconnect=False,
                connect_timeout=CONNECT_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                error_cb=_ignore,
                # nats-py reads 0 as "no limit" on what it may hold back before it waits for the socket.
                pending_size=0,
                tls=tls,
                tls_hostname=target.tls_hostname,
                **credentials,
            )
        except BaseException:
            self._lose("the connection could not be made")
            raise
        assert self._reading_task is not None
        self._reading_task.add_done_callback(lambda _: self._lose("the server closed the connection"))
        self.subscribe_raw(f"{self._inbox}.*", self._on_reply)

    @property
    def usable(self) -> bool:
        """Whether the connection still stands, as far as this side knows."""
        return not self.lost.done()

    def hang_up(self) -> None:
        """End the connection; what was written before is still sent."""
        self._lose("the connection was closed by us", abort=False)

    def when_lost(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with the reason when the connection is lost (at once if it is)."""
        if self.lost.done():
            callback(self.lost.result())
        else:
            self._closing.append(callback)

    def forget(self, callback: Callable[[str], None]) -> None:
        """Undo `when_lost`."""
        if callback in self._closing:
            self._closing.remove(callback)

    def _lose(self, reason: str, abort: bool = True) -> None:
        """Give the connection up, once: fail what waits, stop nats-py's tasks, drop the socket without waiting."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self._status = Client.CLOSED
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self._drop_socket(abort)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        waiting, self._waiting = self._waiting, {}
        for entry in waiting.values():
            if not entry.future.done():
                entry.future.set_exception(entry.unanswered(reason))
        self._routes.clear()
        closing, self._closing = self._closing, []
        for callback in closing:
            callback(reason)

    def _drop_socket(self, abort: bool) -> None:
        """Close the socket. `abort` discards what is unsent: a paused server would never take it."""
        transport = self._transport
        writer: asyncio.StreamWriter | None = getattr(transport, "_io_writer", None)
        if writer is not None and abort:
            writer.transport.abort()
        elif writer is not None:
            writer.close()
        elif isinstance(transport, WebSocketTransport):
            transport.close()  # type: ignore[no-untyped-call]
            self._hang_up_task = self._loop.create_task(transport.wait_closed())  # type: ignore[no-untyped-call]

    # -- send ---------------------------------------------------------------------------------------------------------

    def send(self, subject: str, data: bytes, reply: str = "", headers: bytes = b"") -> None:
        """Write one message to the socket now. Raises NatsUnavailable, MessageTooLarge."""
        if self.lost.done():
            raise NatsUnavailable(f"NATS is not connected: {self.lost.result()}")
        size = len(headers) + len(data)
        if size > self._max_payload:
            raise MessageTooLarge(
                f"a message of {size} bytes to '{subject}' is above the server's max_payload of {self._max_payload} "
                "bytes: raise max_payload in the NATS configuration"
            )
        if headers:
            line = f"HPUB {_safe(subject)} {reply} {len(headers)} {size}\r\n"
        else:
            line = f"PUB {_safe(subject)} {reply} {size}\r\n"
        self._write(b"".join((line.encode(), headers, data, b"\r\n")))

    def request_soon(
        self,
        subject: str,
        data: bytes,
        *,
        headers: bytes = b"",
        timeout: float,
        read: Callable[[Reply], T],
        unanswered: Callable[[str], Exception] = NatsUnavailable,
    ) -> asyncio.Future[T]:
        """Send a request now; the future gets what `read` makes of the answer, or the error that it raises.

        It gets `unanswered(reason)` when the connection is lost or `timeout` (seconds) passes, PermissionDenied when
        the server says so, and the errors of `send`.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._last_token += 1
        token = b"%d" % self._last_token
        try:
            self.send(subject, data, f"{self._inbox}.{self._last_token}", headers)
        except (NatsUnavailable, MessageTooLarge) as error:
            future.set_exception(error)
            return future
        if self.lost.done():
            future.set_exception(unanswered(self.lost.result()))
            return future
        self._waiting[token] = _Waiting(future, self._loop.time() + timeout, subject, read, unanswered)
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        return future

    def subscribe_raw(self, subject: str, route: Route, queue: str = "") -> int:
        """Subscribe; `route` gets each message synchronously from the parser. Returns what `unsubscribe_raw` takes."""
        self._last_sid += 1
        self._routes[self._last_sid] = route
        self._write(f"SUB {_safe(subject)} {queue} {self._last_sid}\r\n".encode())
        return self._last_sid

    def unsubscribe_raw(self, number: int) -> None:
        """End a subscription; unknown numbers and lost connections are ignored."""
        if self._routes.pop(number, None) is not None and self.usable:
            self._write(f"UNSUB {number}\r\n".encode())

    def private_inbox(self) -> str:
        """A subject of our own for a subscription, outside the one for replies."""
        return f"_INBOX.{self._nuid.next().decode()}"

    def _write(self, frame: bytes) -> None:
        assert self._transport is not None
        if isinstance(self._transport, TcpTransport):
            try:
                self._transport.write(frame)  # type: ignore[no-untyped-call]
            except (RuntimeError, OSError) as error:
                # An earlier write failed and uvloop closed the socket; the reader has not heard of it yet. What was
                # to be sent is lost like what was sent last.
                self._lose(str(error))
            return
        # A web socket cannot be written to synchronously; nats-py's flusher keeps the order as well.
        assert self._flush_queue is not None
        self._pending.append(frame)
        self._pending_data_size += len(frame)
        if self._flush_queue.empty():
            self._flush_queue.put_nowait(self._loop.create_future())

    def _sweep(self) -> None:
        """Fail what is past its deadline. Looks at all: there are a few dozen, with different deadlines."""
        self._sweep_timer = None
        now = self._loop.time()
        for token in [t for t, entry in self._waiting.items() if entry.deadline <= now or entry.future.done()]:
            entry = self._waiting.pop(token)
            if not entry.future.done():
                entry.future.set_exception(entry.unanswered(f"no answer from NATS on '{entry.subject}' in time"))
        if self._waiting:
            self._sweep_timer = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    # -- receive ------------------------------------------------------------------------------------------------------

    def _on_reply(self, subject: bytes, _reply: bytes, data: bytes, headers: bytes) -> None:
        entry = self._waiting.pop(subject[self._reply_prefix :], None)
        if entry is None or entry.future.done():
            return
        try:
            entry.future.set_result(entry.read(Reply(data, headers)))
        except Exception as error:  # noqa: BLE001  whatever reading the answer raises belongs to the one who waits
            entry.future.set_exception(error)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        route = self._routes.get(sid)
        if route is not None:
            route(subject, reply, data, headers or b"")

    async def _process_op_err(self, e: Exception) -> None:
        self._lose(str(e) or type(e).__name__)

    async def _process_err(self, err_msg: str) -> None:
        """`-ERR` of the server, in small letters. A permission concerns one subject, all else the connection."""
        denied = _DENIED.search(err_msg)
        if denied is None:
            self._lose(f"the server said {err_msg.strip()}")
            return
        kind, subject = denied.groups()
        if kind == "subscription" and subject.startswith(self._inbox.lower()):
            self._lose("the NATS user may not subscribe to its reply subjects: allow it _INBOX.>")
        elif kind == "subscription":
            log.warning("the NATS user may not subscribe to a subject that we serve", subject=subject)
        for entry in self._waiting.values():
            if entry.subject.lower() == subject and not entry.future.done():
                entry.future.set_exception(PermissionDenied(entry.subject))

    async def _select_next_server(self) -> None:
        """Dial the one server we were given; trying others and waiting between attempts is the session's work."""
        server = self._server_pool[0]
        await self._connect_to_server(server)
        self._current_server = server

    def _connect_command(self) -> bytes:
        if self._must_upgrade and not self._server_info.get("tls_required"):
            # Else nats-py would send the password in the clear to whoever answers.
            raise SecureConnRequiredError
        return super()._connect_command()


async def _ignore(_error: Exception) -> None:
    """nats-py reports here what it also raises or what ends the connection."""
