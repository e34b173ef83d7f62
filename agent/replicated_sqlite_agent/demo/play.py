"""The course of the demo: found and join, write and watch, stop and compare, end all processes."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console

from replicated_sqlite_agent.demo.contents import (
    Contents,
    describe_differences,
    differing_rows,
    read_all,
    row_count,
)
from replicated_sqlite_agent.demo.display import Moment, View, how_to_write, make_display, say
from replicated_sqlite_agent.demo.processes import WRITER_RATE, Agent, Writer, free_port
from replicated_sqlite_agent.demo.writer import BOARD_ROWS
from replicated_sqlite_agent.errors import AgentError, ConfigurationError

NODES: Final = ("demo-1", "demo-2", "demo-3")

SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS notes(id TEXT PRIMARY KEY, author TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS board(id INTEGER PRIMARY KEY, author TEXT NOT NULL, text TEXT NOT NULL);
WITH RECURSIVE ids(id) AS (VALUES (0) UNION ALL SELECT id + 1 FROM ids WHERE id < {BOARD_ROWS - 1})
INSERT OR IGNORE INTO board(id, author, text) SELECT id, 'nobody', 'empty' FROM ids;
"""
"""What an application would create: notes, of which each author writes his own, and a board on which all write."""

LOOK_EVERY_S: Final = 0.5
LOOK_SHARE: Final = 0.2
"""Looking at the databases takes at most this share of the time, however large somebody makes them."""

LAG_LIMIT_S: Final = 5.0
SETTLE_LIMIT_S: Final = 60.0


def run_demo(seconds: float | None, folder: Path | None, keep: bool = False) -> int:
    """Run it until Ctrl-C, or for so many seconds of writing; 0 if all copies are equal then, 1 if it was broken off.

    `folder`: where the databases go, and stay. None: a temporary folder, removed at the end unless `keep`. Raises
    AgentError if the copies differ or something fails; nothing is removed then.
    """
    console = Console()
    home = _make_home(folder)
    try:
        code = asyncio.run(_Demo(home, console).run(seconds))
    except AgentError:
        say(console, f"databases and logs are kept in {home}")
        raise
    except asyncio.CancelledError:
        say(console, "broken off")
        code = 1
    if folder is None and not keep:
        shutil.rmtree(home)
    else:
        say(console, f"databases and logs are kept in {home}")
    return code


def _make_home(folder: Path | None) -> Path:
    """The folder of the demo, with one for each node."""
    home = Path(tempfile.mkdtemp(prefix="rsqlite-demo-")) if folder is None else folder.expanduser().absolute()
    try:
        for node in NODES:
            (home / node).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--folder: cannot write to {home} ({error.strerror}); choose another") from error
    return home


class _Demo:
    """One run. What it starts it ends, whatever happens."""

    def __init__(self, home: Path, console: Console) -> None:
        self._home = home
        self._console = console
        self._stop = asyncio.Event()
        self._agents: list[Agent] = []
        self._writers: list[Writer] = []

    async def run(self, seconds: float | None) -> int:
        """The whole course; see `run_demo`."""
        self._listen_for_signals()
        async with aiohttp.ClientSession() as http:
            try:
                if not await self._while_well(self._start(http)):
                    say(self._console, "stopped before the agents were ready")
                    return 1
                await self._while_well(self._watch(), *self._processes(), limit_s=seconds)
                await self._finish()
                return 0
            finally:
                await asyncio.gather(*(process.kill() for process in self._processes()))

    def _processes(self) -> list[Agent | Writer]:
        return [*self._writers, *self._agents]

    def _listen_for_signals(self) -> None:
        """The first Ctrl-C ends the writing, a second one everything."""
        task = asyncio.current_task()
        assert task is not None

        def interrupt() -> None:
            if self._stop.is_set():
                task.cancel()
            self._stop.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, interrupt)

    async def _while_well(
        self, work: Coroutine[Any, Any, object], *processes: Agent | Writer, limit_s: float | None = None
    ) -> bool:
        """Do `work` until it is done, Ctrl-C, or for so long; whether it was done.

        Raises what it raises, and AgentError if one of the processes ends meanwhile.
        """
        doing = asyncio.create_task(work)
        tasks = [doing, asyncio.create_task(self._stop.wait())]
        tasks += [asyncio.create_task(process.ended()) for process in processes]
        try:
            done, _ = await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return doing in done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- found and join

    async def _start(self, http: aiohttp.ClientSession) -> None:
        """One agent on a database that an application has created, two that join it, and a writer on each."""
        begun = time.monotonic()
        say(self._console, f"starting three agents on three databases in {self._home}")
        nats = f"127.0.0.1:{free_port()}"
        founder, *joining = self._agents = [
            Agent(self._home / node, _nats_settings(node, nats), http) for node in NODES
        ]
        await asyncio.to_thread(_create, founder.database)
        for group in ([founder], joining):
            await asyncio.gather(*(agent.start() for agent in group))
            await asyncio.gather(*(agent.wait_started() for agent in group))
        self._writers = [Writer(agent.database, agent.node) for agent in self._agents]
        await asyncio.gather(*(writer.start() for writer in self._writers))
        say(self._console, f"{founder.node} has founded, the others have joined: {time.monotonic() - begun:.1f} s")
        say(
            self._console,
            f"each is written to by a program with plain sqlite3, {WRITER_RATE:g} transactions per second\n",
        )
        say(self._console, how_to_write(joining[0].database, joining[1].database) + "\n")

    # -- write and watch

    async def _watch(self) -> None:
        """Show how things are, again and again."""
        begun = time.monotonic()
        with make_display(self._console) as display:
            while True:
                looked = time.monotonic()
                display.show(await self._look(looked - begun))
                took = time.monotonic() - looked
                await asyncio.sleep(max(LOOK_EVERY_S, took / LOOK_SHARE - took))

    async def _look(self, elapsed_s: float) -> Moment:
        lags = await self._lags_ms()
        conflicts = await asyncio.gather(*(agent.conflicts() for agent in self._agents))
        found = await self._read()
        views = [
            View(agent.node, agent.database, row_count(held), writer.written, lag, discarded)
            for agent, writer, held, lag, discarded in zip(
                self._agents, self._writers, found, lags, conflicts, strict=True
            )
        ]
        return Moment(elapsed_s, views, differing_rows(found))

    async def _lags_ms(self) -> list[float | None]:
        """For each agent: until it has everything that the others hold now; None above the limit."""
        tokens = await self._positions()
        others = [[token for at, token in enumerate(tokens) if at != own] for own in range(len(tokens))]
        return await asyncio.gather(*map(_lag_ms, self._agents, others))

    async def _positions(self) -> list[str]:
        return await asyncio.gather(*(agent.position() for agent in self._agents))

    async def _read(self) -> list[Contents]:
        """What the files hold; read here and never by an agent, as any application would."""
        try:
            return await asyncio.to_thread(read_all, [agent.database for agent in self._agents])
        except sqlite3.Error as error:
            raise AgentError(f"the databases in {self._home} cannot be read: {error}") from error

    # -- stop and compare

    async def _finish(self) -> None:
        """End the writers, let everything arrive, compare, end the agents. Raises AgentError if the copies differ."""
        await asyncio.gather(*(writer.stop() for writer in self._writers))
        say(self._console, "the writers have stopped; waiting until everything is everywhere")
        found = await self._final_contents()
        differences = describe_differences(dict(zip(NODES, found, strict=True)))
        if differences:
            raise AgentError(f"the copies differ: {', '.join(differences)}")
        say(self._console, f"all three are equal: {row_count(found[0])} rows")
        founder, *others = self._agents
        await asyncio.gather(*(agent.stop() for agent in others))
        await founder.stop()  # last, because its NATS takes what the others still have to say

    async def _final_contents(self) -> list[Contents]:
        """What the files hold while nobody writes."""
        try:
            async with asyncio.timeout(SETTLE_LIMIT_S):
                while True:
                    tokens = await self._settled_positions()
                    found = await self._read()
                    if tokens == await self._positions():
                        return found
        except TimeoutError:
            raise AgentError(
                f"not everything was everywhere within {SETTLE_LIMIT_S:.0f} s: "
                "somebody still writes to the databases, or the logs of the agents say what is wrong"
            ) from None

    async def _settled_positions(self) -> list[str]:
        """Wait until every agent has everything that any of them holds; the positions then."""
        known: list[str] = []
        while (tokens := await self._positions()) != known:
            known = tokens
            await asyncio.gather(*(agent.wait(token, SETTLE_LIMIT_S) for agent in self._agents for token in tokens))
        return known


async def _lag_ms(agent: Agent, tokens: list[str]) -> float | None:
    begun = time.monotonic()
    arrived = await asyncio.gather(*(agent.wait(token, LAG_LIMIT_S) for token in tokens))
    return (time.monotonic() - begun) * 1000 if all(arrived) else None


def _create(database: Path) -> None:
    """What any application does at its first start. The other two files come to be by joining."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA)


def _nats_settings(node: str, address: str) -> dict[str, object]:
    """The first node runs the NATS server, the others connect to it."""
    return {"embedded": {"listen": address}} if node == NODES[0] else {"servers": [f"nats://{address}"]}
