"""The process: starts what a run needs, begins runs on the file, answers probes, ends cleanly on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog
import uvloop

from replicated_sqlite_agent.bootstrap import Bootstrap, FileState, look
from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.changes import Vector, wall_ms
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.database.lock import FileLock, agent_folder
from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.health.metrics import Measures
from replicated_sqlite_agent.health.server import HealthServer
from replicated_sqlite_agent.life import AdoptionNeededError, Life
from replicated_sqlite_agent.replica.state import FileReplacedError
from replicated_sqlite_agent.settings import LogFormat, Mode, Settings
from replicated_sqlite_agent.stream.embedded import EmbeddedServer
from replicated_sqlite_agent.stream.errors import ApiRefused, NatsUnavailable, PublishUnacknowledged
from replicated_sqlite_agent.stream.session import Session, StreamState
from replicated_sqlite_agent.timekeeper import Timekeeper
from replicated_sqlite_contract import __version__

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MEASURE_S = 10.0
"""Between two looks at the stream's size and the server's clock."""

STUCK_S = 60.0
"""Housekeeping runs every second; after this long without it the process counts as stuck."""


def run(settings: Settings) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit code. Raises AgentError for what a person must mend."""
    _configure_log(settings)
    with FileLock(settings.database):
        return uvloop.run(_main(settings))


def restore(settings: Settings) -> int:
    """Bring the file that the next `run` needs, if it is missing; for an init container. Returns the exit code.

    The founder of the cluster needs none: its application makes it. Others wait until a member or the store has one.
    """
    _configure_log(settings)
    with FileLock(settings.database):
        return uvloop.run(_restore(settings))


async def _restore(settings: Settings) -> int:
    if look(settings.database).present:
        log.info("the database is there already", database=str(settings.database))
        return 0
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return 0 if await Agent(settings).restore(stop) else 1


async def _main(settings: Settings) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Agent(settings).run(stop)
    return 0


def _configure_log(settings: Settings) -> None:
    pretty = settings.log.format is LogFormat.CONSOLE or (settings.log.format is LogFormat.AUTO and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log.level.value.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class Agent:
    """One process on one database path. Implements `health.server.Facts`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counters = Counters()
        self._timekeeper = Timekeeper()
        self._folder: Path = agent_folder(settings.database)
        self._options = CaptureOptions(settings.node, settings.tables, settings.mode is Mode.READ_ONLY)
        self._session: Session | None = None
        self._embedded: EmbeddedServer | None = None
        self._life: Life | None = None
        self._stream: StreamState | None = None
        self._stream_ready = asyncio.Event()
        self._phase = "starting"
        self._began = time.monotonic()
        self._file_at_start = FileState(present=False)
        self._reconnects = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set. Raises what a person must mend."""
        self._file_at_start = look(self._settings.database)
        server = self._http_server()
        if server is not None:
            await server.start()
        try:
            settings = await self._start_nats()
            self._session = Session(settings.nats, settings.cluster, settings.node)
            self._session.start()
            self._session.when_disconnected(self._disconnected)
            try:
                await self._until_stopped(stop)
            finally:
                await self._session.close()
        finally:
            if server is not None:
                await server.stop()
            if self._embedded is not None:
                await self._embedded.stop()
        log.info("stopped", node=self._settings.node)

    async def restore(self, stop: asyncio.Event) -> bool:
        """Obtain the file, or find that this node founds the cluster; False if ``stop`` was set before."""
        settings = await self._start_nats()
        self._session = Session(settings.nats, settings.cluster, settings.node)
        self._session.start()
        self._session.when_disconnected(self._disconnected)
        obtaining = asyncio.create_task(self._obtain(self._bootstrap()), name="obtain the file")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({obtaining, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if obtaining.done():
                obtaining.result()
            return obtaining.done()
        finally:
            obtaining.cancel()
            stopping.cancel()
            await asyncio.gather(obtaining, stopping, return_exceptions=True)
            await self._session.close()
            if self._embedded is not None:
                await self._embedded.stop()

    def _bootstrap(self) -> Bootstrap:
        assert self._session is not None
        return Bootstrap(self._settings, self._session, self._folder, self._options, self._counters, self._say)

    async def _obtain(self, bootstrap: Bootstrap) -> None:
        self._say("waiting for NATS, to join or to found the cluster")
        await self._when_ready()
        await bootstrap.obtain_file(wait_for_application=False)
        if not self._settings.database.exists():
            log.info("this node founds the cluster: its application creates the database")

    def _http_server(self) -> HealthServer | None:
        address = self._settings.http
        if address is None:
            return None
        # Reachable from other machines means probes and metrics; what tells of contents stays in the pod.
        open_to_all = address.host not in ("127.0.0.1", "::1", "localhost")
        return HealthServer(self, address, v1_loopback_only=open_to_all)

    def _disconnected(self) -> None:
        self._reconnects += 1
        self._stream_ready.clear()

    async def _start_nats(self) -> Settings:
        settings = self._settings
        if settings.nats.servers:
            return settings
        self._embedded = EmbeddedServer(settings.nats, settings.nats.embedded.store, settings.node)
        await self._embedded.start()
        log.info(
            "the embedded NATS server runs; other agents use it as nats.servers", url=self._embedded.advertised_url
        )
        nats = msgspec.structs.replace(settings.nats, servers=(self._embedded.url,))
        return msgspec.structs.replace(settings, nats=nats)

    async def _until_stopped(self, stop: asyncio.Event) -> None:
        measuring = asyncio.create_task(self._measure(), name="measure")
        living = asyncio.create_task(self._live(stop), name="live")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({measuring, living, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if measuring.done():
                measuring.result()
            if self._life is None and not living.done():
                living.cancel()
            with suppress(asyncio.CancelledError):
                await living
        finally:
            for task in (measuring, living, stopping):
                task.cancel()
            await asyncio.gather(measuring, living, stopping, return_exceptions=True)

    # ---- runs ----------------------------------------------------------------------------------------------------

    def _say(self, sentence: str) -> None:
        if sentence != self._phase:
            log.info(sentence)
        self._phase = sentence

    async def _live(self, stop: asyncio.Event) -> None:
        """One run after another: a replaced file begins a new one."""
        assert self._session is not None
        bootstrap = self._bootstrap()
        while not stop.is_set():
            file = look(self._settings.database)
            life = Life(
                self._settings,
                self._session,
                bootstrap,
                self._options,
                self._counters,
                self._timekeeper,
                self._folder,
                self.ensure_stream,
            )
            if not file.replicated:
                await self._claim_name(life, file)
            if not file.present:
                await bootstrap.obtain_file()
                file = look(self._settings.database)
                if not file.present:
                    continue
            try:
                await life.start(file)
                self._life = life
                self._say("capture is installed; catching up")
                await life.run(stop)
            except FileReplacedError as replaced:
                log.warning(
                    "the database file changed under the agent; beginning again with the new one", reason=str(replaced)
                )
                await asyncio.sleep(0.1)
            except AdoptionNeededError:
                self._life = None
                self._say("the cluster exists: adopting this file into it")
                await bootstrap.adopt()
            finally:
                self._life = None if not stop.is_set() else self._life

    async def _claim_name(self, life: Life, file: FileState) -> None:
        """A second agent with this node name shall end before it has touched a file. Raises HeldByAnotherError.

        An application whose file is there does not wait for NATS longer than configured: the name is claimed later.
        """
        while True:
            purpose = "claim the node name" if file.present else "join or to found the cluster"
            self._say(f"waiting for NATS, to {purpose}")
            try:
                async with asyncio.timeout(self._settings.limits.start_without_nats if file.present else None):
                    await self._when_ready()
                await life.claim_name()
            except TimeoutError:
                return
            except (NatsUnavailable, PublishUnacknowledged) as error:
                log.debug("the node name could not be claimed", reason=str(error))
            else:
                return

    async def _when_ready(self) -> None:
        assert self._session is not None
        while True:
            await self._session.wait_connected()
            try:
                await self.ensure_stream()
                return
            except (NatsUnavailable, PublishUnacknowledged):
                await asyncio.sleep(0.2)

    # ---- the stream ----------------------------------------------------------------------------------------------

    async def ensure_stream(self) -> None:
        """Create or check stream and buckets, once per connection and whenever they have vanished."""
        assert self._session is not None
        if self._stream_ready.is_set():
            return
        nats = self._settings.nats
        state = await self._session.ensure_stream(self._settings.limits.stream_max_bytes, nats.replicas)
        self._note(state)
        self._stream_ready.set()

    async def _measure(self) -> None:
        """Look at the stream and the server's clock. Raises StreamMisconfigured: a person must mend it."""
        assert self._session is not None
        while True:
            await self._session.wait_connected()
            try:
                await self.ensure_stream()
                self._note(await self._session.stream_state())
            except (NatsUnavailable, PublishUnacknowledged) as error:
                log.debug("the stream could not be measured", reason=str(error))
                await asyncio.sleep(0.5)
                continue
            except ApiRefused:
                self._stream_ready.clear()
                await asyncio.sleep(0.5)
                continue
            await asyncio.sleep(MEASURE_S)

    def _note(self, state: StreamState) -> None:
        self._stream = state
        if state.clock_offset_ms is not None:
            self._timekeeper.measured(state.clock_offset_ms)

    # ---- health.server.Facts -------------------------------------------------------------------------------------

    def started(self) -> tuple[bool, str]:
        """Whether the application may start."""
        life = self._life
        if life is not None and life.started.is_set():
            return True, "capture is installed and this replica has caught up"
        if life is None and self._phase.startswith("this node founds"):
            return True, "this node founds the cluster and waits for the application to create the database"
        waited = time.monotonic() - self._began
        patience = self._settings.limits.start_without_nats
        connected = self._session is not None and self._session.connected
        if life is not None and self._file_at_start.present and not connected and waited >= patience:
            return True, "capture is installed; NATS is not reachable, changes are kept and sent later"
        return False, self._phase if life is None else f"waiting for {life.waiting_for}"

    def ready(self) -> tuple[bool, str]:
        """Whether the local database can be used; NATS away is no reason against it."""
        ok, sentence = self.started()
        if not ok:
            return False, sentence
        failure = self._write_failure()
        return (False, failure) if failure else (True, "the database can be used")

    def _write_failure(self) -> str | None:
        life = self._life
        return life.intake.write_failure if life is not None and life.intake is not None else None

    def alive(self) -> tuple[bool, str]:
        """Whether the process makes progress."""
        life = self._life
        stuck = time.monotonic() - life.last_progress if life is not None else 0.0
        if stuck > STUCK_S:
            return False, f"the writer has been stuck for {stuck:.0f} s"
        return True, "the agent makes progress"

    def status(self) -> dict[str, object]:
        """The document of /v1/status."""
        life, settings = self._life, self._settings
        ok, sentence = self.started()
        document: dict[str, object] = {
            "version": 1,
            "agent": __version__,
            "cluster": settings.cluster,
            "node": settings.node,
            "database": str(settings.database),
            "mode": settings.mode.value,
            "started": ok,
            "state": sentence,
            "nats": {
                "connected": self._session is not None and self._session.connected,
                "embedded": self._embedded.advertised_url if self._embedded is not None else None,
                "reconnects": self._reconnects,
            },
            "alarms": self._alarms(),
        }
        if life is not None and hasattr(life, "replica"):
            document |= self._file_status(life)
        return document

    def _file_status(self, life: Life) -> dict[str, object]:
        replica, vitals = life.replica, life.vitals
        catalog = replica.catalog
        return {
            "run": f"{life.run_number:012x}",
            "lineage": replica.progress.lineage,
            "tables": {
                c.table.name: {
                    "paused": life.applier.paused.get(c.table.name),
                    "merge": "column-lww" if c.by_column else "row-lww",
                    "keyless": c.table.keyless,
                }
                for c in catalog.by_number.values()
            },
            "paused": dict(life.applier.paused),
            "left_out": dict(catalog.left_out),
            "log": {"rows": vitals.log_rows, "unfolded": vitals.unfolded_rows},
            "stream": self._stream_status(life),
            "hidden_rows": vitals.hidden_rows,
            "parked_groups": vitals.parked_groups,
            "paused_rows": vitals.paused_rows,
            "conflicts": vitals.conflicts,
            "dead_letters": vitals.dead_letters,
            "applied_rows": self._counters.applied_rows,
            "snapshots": life.backups.status(),
            "lag_seconds": self._lag(life),
        }

    def _stream_status(self, life: Life) -> dict[str, object]:
        stream = self._stream
        return {
            "id": stream.id if stream is not None else None,
            "last": stream.last if stream is not None else None,
            "bytes": stream.bytes if stream is not None else None,
            "applied": life.intake.consumed if life.intake is not None else life.replica.progress.sequence,
            "full": life.publisher.full if life.publisher is not None else False,
        }

    def _lag(self, life: Life) -> float:
        oldest = life.intake.oldest_waiting_ms if life.intake is not None else None
        now = self._timekeeper.now_ms()
        return max(0.0, (now - oldest) / 1000) if oldest is not None and now is not None else 0.0

    def _unpublished(self, life: Life) -> float:
        oldest = life.vitals.oldest_unpublished_ms
        return max(0.0, time.time() - oldest / 1000) if oldest is not None else 0.0

    def _alarms(self) -> list[str]:
        """What a person should look at, one sentence each."""
        alarms: list[str] = []
        life, limits, stream = self._life, self._settings.limits, self._stream
        if life is None or not hasattr(life, "replica"):
            return alarms
        rows, size = life.vitals.log_rows, life.vitals.log_rows * LOG_ROW_BYTES
        for share, word in ((0.8, "80"), (0.5, "50")):
            if rows > limits.log_max_rows * share or size > limits.log_max_bytes * share:
                alarms.append(
                    f"the log of unpublished changes is {word} % full ({life.vitals.log_rows} rows); is NATS reachable?"
                )
                break
        for share, word in ((0.8, "80"), (0.5, "50")):
            if stream is not None and stream.max_bytes > 0 and stream.bytes > stream.max_bytes * share:
                alarms.append(f"the stream is {word} % full ({stream.bytes} of {stream.max_bytes} bytes)")
                break
        if life.publisher is not None and life.publisher.full:
            alarms.append(
                "the stream is full: publishing waits, nothing is lost; raise its max_bytes or let it be trimmed"
            )
        if failure := self._write_failure():
            alarms.append(failure)
        if life.vitals.dead_letters:
            alarms.append(f"{life.vitals.dead_letters} messages could not be applied; see table __rsqlite_dead_letters")
        for run, clock in dict(life.applier.ahead).items():
            minutes = (wall_ms(clock) / 1000 - time.time()) / 60
            alarms.append(
                f"changes of run {run:012x} wait: its clock is {minutes:.0f} min ahead; set that machine's clock right"
            )
        alarms += life.policy_alarms
        alarms += life.backups.alarms()
        alarms += list(life.applier.paused.values()) + list(life.replica.catalog.left_out.values())
        return alarms

    def measures(self) -> Measures:
        """The numbers of /metrics."""
        life, limits, stream = self._life, self._settings.limits, self._stream
        opened = life is not None and hasattr(life, "replica")
        vitals = life.vitals if life is not None else None
        offset = self._timekeeper.offset_ms()
        last, verified = (life.backups.last, life.backups.verified_ms) if life is not None else (None, None)
        return Measures(
            cluster=self._settings.cluster,
            node=self._settings.node,
            counters=self._counters,
            nats_connected=self._session is not None and self._session.connected,
            nats_reconnects=self._reconnects,
            members=life.members if life is not None else None,
            log_rows=vitals.log_rows if vitals is not None else 0,
            log_bytes=(vitals.log_rows if vitals is not None else 0) * LOG_ROW_BYTES,
            log_max_rows=limits.log_max_rows,
            log_max_bytes=limits.log_max_bytes,
            unfolded_rows=vitals.unfolded_rows if vitals is not None else 0,
            unpublished_seconds=self._unpublished(life) if life is not None else 0.0,
            stream_bytes=stream.bytes if stream is not None else None,
            stream_max_bytes=stream.max_bytes if stream is not None else None,
            stream_sequence=stream.last if stream is not None else None,
            applied_sequence=life.intake.consumed if life is not None and life.intake is not None else 0,
            lag_seconds=self._lag(life) if life is not None else 0.0,
            clock_offset_seconds=offset / 1000 if offset is not None else None,
            tables=len(life.replica.catalog.by_number) if life is not None and opened else 0,
            tables_paused=len(life.applier.paused) if life is not None and opened else 0,
            tables_left_out=len(life.replica.catalog.left_out) if life is not None and opened else 0,
            parked_groups=vitals.parked_groups if vitals is not None else 0,
            hidden_rows=vitals.hidden_rows if vitals is not None else 0,
            fk_orphans=life.orphans.found if life is not None else None,
            database_bytes=_size(self._settings.database),
            wal_bytes=_size(self._settings.database.with_name(self._settings.database.name + "-wal")),
            snapshot_last_seconds=last.taken_ms / 1000 if last is not None else None,
            snapshot_verified_seconds=verified / 1000 if verified is not None else None,
            snapshot_last_bytes=last.bytes if last is not None else None,
            snapshot_last_stored_bytes=last.packed_bytes if last is not None else None,
        )

    def _living(self) -> Life:
        life = self._life
        if life is None or not hasattr(life, "replica"):
            raise AgentError(f"this replica is not running yet: {self._phase}")
        return life

    async def position(self) -> Vector:
        """This node's writes so far and everything it has applied."""
        return await self._living().position()

    async def wait(self, vector: Vector, timeout_s: float) -> bool:
        """Whether everything in ``vector`` is applied here within the time."""
        return await self._living().wait(vector, timeout_s)

    async def flush(self, acks: str | int, timeout_s: float) -> tuple[bool, str]:
        """Whether all writes made here so far are as safe as asked for, within the time."""
        return await self._living().flush(acks, timeout_s)

    async def conflicts(self, after: int, limit: int) -> list[dict[str, object]]:
        """A page of the conflict log."""
        return await self._living().conflicts(after, limit)


LOG_ROW_BYTES = 40
"""A log row with an integer key takes about this much."""


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
