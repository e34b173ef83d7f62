"""The processes of the demo: agents of the installed command, and writers. None outlives the demo."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from replicated_sqlite_agent.demo import writer
from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.settings_reader import ENVIRONMENT_PREFIX
from replicated_sqlite_agent.stream import launcher

START_LIMIT_S: Final = 120.0
STOP_LIMIT_S: Final = 30.0
ANSWER_LIMIT_S: Final = 10.0

WRITER_RATE: Final = 50.0
"""Transactions per second of each writer."""

_POLL_S: Final = 0.1

_OBITUARY_S: Final = 1.0
"""When an agent does not answer: how long to wait for the better reason that it has ended."""

_LOG_LINES: Final = 5


class Agent:
    """One agent with its database, its configuration and its log in a folder of its own."""

    def __init__(self, folder: Path, nats: dict[str, object], http: aiohttp.ClientSession) -> None:
        """`folder`: its name is the name of the node. `nats`: that section of the configuration."""
        self.node = folder.name
        self.database = folder / "notes.db"
        self._log = folder / "agent.log"
        self._config = folder / "agent.yaml"
        self._nats = nats
        self._http = http
        self._address = f"127.0.0.1:{free_port()}"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process; `wait_started` waits until its database is there."""
        # JSON is YAML, and needs no library to be written.
        settings = {
            "cluster": "demo",
            "node": self.node,
            "database": str(self.database),
            "nats": self._nats,
            "http": self._address,
        }
        self._config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        # Through the launcher the kernel ends the agent if the demo dies without having ended it.
        launched = (sys.executable, "-I", "-S", str(launcher.__file__), str(os.getpid()), *agent_command())
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(*launched, "run", "--config", str(self._config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the demo, which ends all in order
            )

    async def wait_started(self) -> None:
        """Wait until `/startupz` says 200. Raises AgentError if the process ends instead, or takes too long."""
        try:
            async with asyncio.timeout(START_LIMIT_S):
                while not await self._is_started():
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise AgentError(f"{self.node} was not ready within {START_LIMIT_S:.0f} s{self._last_words()}") from None

    async def ended(self) -> None:
        """Wait until the process ends, and raise AgentError then: nobody has asked it to."""
        assert self._process is not None
        code = await self._process.wait()
        raise AgentError(f"the agent {self.node} ended with exit code {code}{self._last_words()}")

    async def stop(self) -> None:
        """Ask it to end and wait; raises AgentError if that takes too long or its exit code is not 0."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                process.terminate()
                code = await process.wait()
        except TimeoutError:
            raise AgentError(f"{self.node} did not end within {STOP_LIMIT_S:.0f} s{self._last_words()}") from None
        finally:
            await _kill(process)
        if code:
            raise AgentError(f"{self.node} ended with exit code {code}{self._last_words()}")

    async def kill(self) -> None:
        """End it at once, however it is."""
        process, self._process = self._process, None
        if process is not None:
            await _kill(process)

    # -- its HTTP interface

    async def position(self) -> str:
        """The token of everything that its database holds now."""
        _, document = await self._ask("/v1/position")
        return str(document["token"])

    async def wait(self, token: str, timeout_s: float) -> bool:
        """Whether all that the token names is in its database within so many seconds."""
        status, _ = await self._ask("/v1/wait", timeout_s, token=token, timeout=f"{timeout_s:f}")
        return status == 200

    async def conflicts(self) -> int:
        """How many discarded values it has recorded since it was started."""
        _, text = await self._get("/metrics")
        counted = (line for line in text.splitlines() if line.startswith("rsqlite_conflicts_total"))
        return sum(round(float(line.rpartition(" ")[2])) for line in counted)

    async def _ask(self, path: str, patience_s: float = 0, **parameters: str) -> tuple[int, dict[str, Any]]:
        """(status, document) of a request that is answered with 200 or 504. Raises AgentError for anything else."""
        status, text = await self._get(path, patience_s, **parameters)
        if status not in (200, 504):
            raise AgentError(f"{self.node} answers {path} with {status}: {text.strip()}")
        document: dict[str, Any] = json.loads(text)
        return status, document

    async def _get(self, path: str, patience_s: float = 0, **parameters: str) -> tuple[int, str]:
        """(status, text) of the answer to a request. Raises AgentError if there is none."""
        url = f"http://{self._address}{path}"
        try:
            async with self._http.get(url, params=parameters, timeout=_limit(patience_s)) as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            with suppress(TimeoutError):
                async with asyncio.timeout(_OBITUARY_S):
                    await self.ended()
            raise AgentError(f"{self.node} does not answer {path} ({error or 'time is over'})") from error

    async def _is_started(self) -> bool:
        assert self._process is not None
        if self._process.returncode is not None:
            await self.ended()
        try:
            async with self._http.get(f"http://{self._address}/startupz", timeout=_limit(0)) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _last_words(self) -> str:
        """The end of the log, to stand behind a sentence."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n  ".join(["; the end of its log:", *lines[-_LOG_LINES:]])


class Writer:
    """An application that writes to one database, as a process with nothing but plain sqlite3."""

    def __init__(self, database: Path, author: str) -> None:
        self._database = database
        self._author = author
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.written = 0
        """Rows so far."""

    async def start(self) -> None:
        """Begin to write."""
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(writer.__file__), str(self._database), self._author, f"{WRITER_RATE:g}"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._read(process), name=f"writer {self._author}")

    async def ended(self) -> None:
        """Wait until the process ends, and raise AgentError then: nobody has asked it to."""
        assert self._process is not None
        await self._process.wait()
        raise AgentError(await self._failure(self._process))

    async def stop(self) -> None:
        """Let it finish its transaction and wait; `written` is then exact. Raises AgentError if it had failed."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert self._reading is not None
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                process.stdin.close()
                code = await process.wait()
                await self._reading
        except TimeoutError:
            raise AgentError(f"the writer on {self._author} did not end within {STOP_LIMIT_S:.0f} s") from None
        finally:
            await _kill(process)
        if code:
            raise AgentError(await self._failure(process))

    async def kill(self) -> None:
        """End it at once, however it is."""
        process, self._process = self._process, None
        if process is not None:
            await _kill(process)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.written = int(line)

    async def _failure(self, process: asyncio.subprocess.Process) -> str:
        assert process.stderr is not None
        said = (await process.stderr.read()).decode(errors="replace").strip()
        reason = said.splitlines()[-1] if said else f"exit code {process.returncode}"
        return f"the writer on {self._author} ended: {reason}"


def agent_command() -> tuple[str, ...]:
    """The installed `rsqlite-agent`. Raises AgentError if there is none."""
    beside = Path(sys.executable).with_name("rsqlite-agent")
    found = str(beside) if beside.exists() else shutil.which("rsqlite-agent")
    if found is None:
        raise AgentError("the command rsqlite-agent is not beside this Python and not on the PATH; install it again")
    return (found,)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, below those that systems give to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment() -> dict[str, str]:
    """Ours without what an agent would take for its configuration."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}


def _limit(patience_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=patience_s + ANSWER_LIMIT_S)
