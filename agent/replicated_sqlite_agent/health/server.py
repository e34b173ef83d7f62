"""The HTTP interface of an agent: probes for Kubernetes, metrics for Prometheus, and `/v1` for applications and people.

It decides nothing: each handler reads its parameters, asks `Facts`, and says the answer with a status code. What a
caller did wrong is 400 with one sentence.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, Protocol

import structlog
from aiohttp import hdrs, web

from replicated_sqlite_agent.changes import Vector
from replicated_sqlite_agent.errors import AgentError, ConfigurationError
from replicated_sqlite_agent.health import tokens
from replicated_sqlite_agent.health.metrics import Measures, exposition
from replicated_sqlite_agent.settings import Address

TIMEOUT_DEFAULT_S: Final = 30.0
TIMEOUT_MAX_S: Final = 3600.0

MEMBERS_MAX: Final = 10_000
"""A larger number in `acks` is a slip."""

PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1000
"""Conflicts in one answer."""

LINE_BYTES_MAX: Final = 256 * 1024
"""Longest request line. A run takes about 22 characters of a token: aiohttp's own 8 KiB would refuse 370 runs."""

STOP_LIMIT_S: Final = 1.0
"""For answers that are under way when the server stops."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Facts(Protocol):
    """What the server asks of the running agent.

    All but the `async` methods answer at once and do no I/O that could block. An AgentError that one raises is said
    with status 503.
    """

    def started(self) -> tuple[bool, str]:
        """`/startupz`: whether the application may start, and one sentence why or why not."""

    def ready(self) -> tuple[bool, str]:
        """`/readyz`: whether the local database is usable, and one sentence why or why not."""

    def alive(self) -> tuple[bool, str]:
        """`/healthz`: whether the agent makes progress, and one sentence why or why not."""

    def status(self) -> dict[str, object]:
        """`/v1/status`: the JSON document, as it is."""

    def measures(self) -> Measures:
        """`/metrics`: the numbers of this moment."""

    async def position(self) -> Vector:
        """The vector of this replica, its own run at the newest write so far."""

    async def wait(self, vector: Vector, timeout_s: float) -> bool:
        """Whether everything in `vector` is applied here, as soon as it is and after `timeout_s` at the latest."""

    async def flush(self, acks: str | int, timeout_s: float) -> tuple[bool, str]:
        """Whether all writes made here so far are safe, as soon as they are and after `timeout_s` at the latest.

        `acks`: 'stream' (acknowledged by it), 'all' (applied by all members) or N >= 1 (applied by so many members).
        The sentence says what was reached, or what is missing.
        """

    async def conflicts(self, after: int, limit: int) -> list[dict[str, object]]:
        """At most `limit` records of discarded values with an 'id' above `after`, in its order, ready for JSON."""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Refused(Exception):
    """An answer other than 200: a status code and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class HealthServer:
    """Listens from `start` to `stop`."""

    def __init__(self, facts: Facts, address: Address, *, v1_loopback_only: bool = False) -> None:
        """`v1_loopback_only`: answer 403 to requests for `/v1` from other machines, however they arrive."""
        self._facts = facts
        self._address = address
        self._v1_loopback_only = v1_loopback_only
        self._runner: web.AppRunner | None = None
        self._under_way: set[asyncio.Timeout] = set()

    @property
    def port(self) -> int:
        """Where it listens, also if port 0 was asked for. Only while it runs."""
        assert self._runner is not None, "the server is not running"
        return int(self._runner.addresses[0][1])

    async def start(self) -> None:
        """Begin to listen. Raises ConfigurationError if the address cannot be had."""
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            handler_cancellation=True,  # who hangs up no longer waits
            shutdown_timeout=STOP_LIMIT_S,
            max_line_size=LINE_BYTES_MAX,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._address.host, self._address.port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigurationError(self._unusable(error)) from error
        self._runner = runner

    async def stop(self) -> None:
        """Close the socket; who still waits for an answer gets 503. Harmless when it does not run."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for scope in self._under_way:
            scope.reschedule(asyncio.get_running_loop().time())
        await runner.cleanup()

    def _unusable(self, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE:
            return f"http: {self._address} is taken by another program; choose another port, or 'off'"
        # The text of a failed bind is asyncio's own; of a failed look-up the number is none of the system's.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        return f"http: cannot listen on {self._address} ({reason}); choose an address of this machine"

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard])
        probes = {"/startupz": self._facts.started, "/readyz": self._facts.ready, "/healthz": self._facts.alive}
        application.add_routes(
            [
                *(web.get(path, functools.partial(_probe, fact)) for path, fact in probes.items()),
                web.get("/metrics", self._metrics),
                web.get("/v1/status", self._status),
                web.get("/v1/position", self._position),
                web.get("/v1/wait", self._wait),
                web.get("/v1/flush", self._flush),
                web.post("/v1/flush", self._flush),
                web.get("/v1/conflicts", self._conflicts),
            ]
        )
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whatever goes wrong becomes a status and one sentence."""
        try:
            if self._v1_loopback_only and request.path.startswith("/v1/") and not _is_from_here(request):
                return _refusal(403, "/v1 answers only to this machine; ask from within the pod")
            return await handler(request)
        except _Refused as refused:
            return _refusal(refused.status, str(refused))
        except AgentError as error:
            return _refusal(503, str(error))
        except web.HTTPMethodNotAllowed as wrong:
            allowed = " and ".join(sorted(wrong.allowed_methods - {hdrs.METH_HEAD}))
            answer = _refusal(wrong.status, f"{request.path} takes {allowed}, not {request.method}")
            answer.headers[hdrs.ALLOW] = wrong.headers[hdrs.ALLOW]
            return answer
        except web.HTTPNotFound:
            known = ", ".join(sorted({resource.canonical for resource in request.app.router.resources()}))
            return _refusal(404, f"there is no {request.path}; there are {known}")
        except Exception:
            log.exception("a request failed", path=request.path)
            return _refusal(500, f"the agent failed to answer {request.path}; its log says why")

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        body, content_type = exposition(self._facts.measures, request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    async def _status(self, request: web.Request) -> web.StreamResponse:
        _parameters(request)
        return _document(self._facts.status())

    async def _position(self, request: web.Request) -> web.StreamResponse:
        _parameters(request)
        return _document({"token": tokens.encode(await self._facts.position())})

    async def _wait(self, request: web.Request) -> web.StreamResponse:
        given = _parameters(request, "token", "timeout")
        vector, timeout_s = _token(given), _timeout(given)
        async with self._interruptible():
            applied = await self._facts.wait(vector, timeout_s)
        if applied:
            return _document({"applied": True})
        sentence = f"not everything that the token names was applied here within {timeout_s:g} s"
        return _document({"applied": False, "error": sentence}, 504)

    async def _flush(self, request: web.Request) -> web.StreamResponse:
        given = _parameters(request, "acks", "timeout")
        acks, timeout_s = _acks(given), _timeout(given)
        async with self._interruptible():
            flushed, sentence = await self._facts.flush(acks, timeout_s)
        if flushed:
            return _document({"flushed": True, "acks": acks, "reason": sentence})
        return _document({"flushed": False, "acks": acks, "error": sentence}, 504)

    async def _conflicts(self, request: web.Request) -> web.StreamResponse:
        given = _parameters(request, "after", "limit")
        after = _integer(given, "after", 0, 0, 2**63 - 1)
        limit = _integer(given, "limit", PAGE_DEFAULT, 1, PAGE_MAX)
        found = await self._facts.conflicts(after, limit + 1)  # one more tells whether there is a next page
        page = found[:limit]
        return _document({"conflicts": page, "next": page[-1]["id"] if len(found) > limit else None})

    @asynccontextmanager
    async def _interruptible(self) -> AsyncIterator[None]:
        """What may take long within this ends with 503 when the server stops."""
        scope = asyncio.timeout(None)
        self._under_way.add(scope)
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
            raise _Refused(503, "the agent is stopping; ask again when it is back") from None
        finally:
            self._under_way.discard(scope)


async def _probe(fact: Callable[[], tuple[bool, str]], _request: web.Request) -> web.StreamResponse:
    well, sentence = fact()
    return web.Response(text=sentence + "\n", status=200 if well else 503)


def _document(document: Mapping[str, object], status: int = 200) -> web.Response:
    text = json.dumps(document, ensure_ascii=False) + "\n"
    return web.Response(text=text, status=status, content_type="application/json")


def _refusal(status: int, sentence: str) -> web.Response:
    return _document({"error": sentence}, status)


def _is_from_here(request: web.Request) -> bool:
    """Whether the connection, not a header, comes from this machine."""
    peer = _peer(request)
    if peer is None:
        return False
    address = ipaddress.ip_address(peer.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _peer(request: web.Request) -> str | None:
    """The address that the connection comes from, None if it is gone already."""
    name = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(name[0]) if name else None


# How parameters stand in a query. Each raises _Refused with status 400 for a wrong one.


def _parameters(request: web.Request, *known: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            takes = " and ".join(known) or "none"
            raise _Refused(400, f"{request.path} has no parameter '{name}'; it takes {takes}")
        if name in given:
            raise _Refused(400, f"the parameter {name} is given twice; give it once")
        given[name] = value
    return given


def _token(given: Mapping[str, str]) -> Vector:
    if "token" not in given:
        raise _Refused(400, "the parameter token is missing; /v1/position of the node that wrote gives it")
    try:
        return tokens.decode(given["token"])
    except ValueError as error:
        raise _Refused(400, str(error)) from error


def _timeout(given: Mapping[str, str]) -> float:
    text = given.get("timeout", f"{TIMEOUT_DEFAULT_S:g}")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= TIMEOUT_MAX_S:  # false for nan too
        raise _Refused(400, f"timeout takes seconds above 0 and up to {TIMEOUT_MAX_S:g}, not '{text}'")
    return seconds


def _acks(given: Mapping[str, str]) -> str | int:
    text = given.get("acks", "stream")
    if text in ("stream", "all"):
        return text
    if text == "s3":
        raise _Refused(501, "acks=s3 is not part of this version; take 'stream', 'all' or a number of members")
    if not _is_integer(text, 1, MEMBERS_MAX):
        raise _Refused(400, f"acks takes 'stream', 'all', 's3' or a number of members from 1, not '{text}'")
    return int(text)


def _integer(given: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = given.get(name, str(default))
    if not _is_integer(text, least, most):
        raise _Refused(400, f"{name} takes a whole number from {least} to {most}, not '{text}'")
    return int(text)


def _is_integer(text: str, least: int, most: int) -> bool:
    """Whether the text is a number in plain digits between these two."""
    return text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most
