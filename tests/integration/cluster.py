"""A replication group on one machine for black-box tests: agents, a NATS server, applications, readers and dumps.

Agents are processes of the installed command `rsqlite-agent`; applications, writers and readers are processes with
plain sqlite3 (`integration/writers`). A test sees the agents only through their HTTP interface and through the files.

Nothing here waits for time to pass: `until` asks for an event and fails with a sentence at its deadline.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import resource
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar
from urllib.parse import urlencode

import yaml

from integration.servers import NatsServer
from integration.writers import acknowledged

DEADLINE_S = float(os.environ.get("RSQLITE_TEST_DEADLINE", "60"))
"""How long an event may take before a test fails. Generous: the machine may be busy with other things."""

FULL = os.environ.get("RSQLITE_FULL") == "1"
"""Run the cases at the size that the case list gives, not at the size of `make test`."""

TESTS = Path(__file__).resolve().parent.parent
AGENT_COMMAND = str(Path(sys.executable).parent / "rsqlite-agent")

NOTES = """
    CREATE TABLE notes (id TEXT PRIMARY KEY, writer TEXT NOT NULL, n INTEGER NOT NULL, value TEXT NOT NULL);
    CREATE TABLE shared (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
    WITH RECURSIVE ids (id) AS (VALUES (0) UNION ALL SELECT id + 1 FROM ids WHERE id < 19)
    INSERT INTO shared SELECT id, 'founder' FROM ids;
"""
"""The tables of the ledger writer, with twenty shared rows."""
SHARED_ROWS = 20

T = TypeVar("T")
Row = tuple[str, ...]
Dump = dict[str, list[Row]]


def until(condition: Callable[[], T], what: str, timeout: float = DEADLINE_S) -> T:
    """Ask `condition` until its answer is true and return it; `what` names the event if `timeout` seconds pass."""
    end = time.monotonic() + timeout
    pause = 0.005
    while not (answer := condition()):
        assert time.monotonic() < end, f"not within {timeout:.0f} s: {what}"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return answer


def free_port() -> int:
    """A TCP port of 127.0.0.1 below the range of outgoing connections, so that it is still free after a restart."""
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child: ours without `RSQLITE_` keys, which an agent would take for its configuration."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RSQLITE_")}
    return kept | {"PYTHONPATH": str(TESTS)} | extra


# -------------------------------------------------------------------------------------------------------------- dumps


def reader(path: Path) -> sqlite3.Connection:
    """A connection of the test process, in autocommit mode."""
    return sqlite3.connect(path, timeout=DEADLINE_S, isolation_level=None)


def quote(name: str) -> str:
    """An identifier as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


def exact(kind: str, value: Any) -> str:
    """A value with its storage class, bit for bit; text is given as bytes."""
    match kind:
        case "null":
            return "null"
        case "real":
            return "real:" + struct.pack(">d", value).hex()
        case "text" | "blob":
            return f"{kind}:{value.hex()}"
        case _:
            return f"{kind}:{value}"


def dump(path: Path) -> Dump:
    """All rows of all user tables in one snapshot, sorted, each value with storage class and bits.

    Left out: SQLite's and the agent's own tables, virtual tables and their shadow tables. Generated columns are
    included.
    """
    with closing(reader(path)) as connection:
        connection.execute("BEGIN")
        return {table: rows_of(connection, table) for table in user_tables(connection)}


def user_tables(connection: sqlite3.Connection) -> list[str]:
    """Names of the ordinary tables that belong to the application."""
    listed = connection.execute(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' ORDER BY name"
    )
    return [name for (name,) in listed if not name.startswith(("sqlite_", "__rsqlite_"))]


def rows_of(connection: sqlite3.Connection, table: str) -> list[Row]:
    """All rows of one table, sorted, each value as `exact` gives it."""
    columns = [column[1] for column in connection.execute(f"PRAGMA table_xinfo({quote(table)})") if column[6] != 1]
    names = [f"t.{quote(column)}" for column in columns]
    kinds = ", ".join(f"typeof({name})" for name in names)
    values = ", ".join(f"CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB) ELSE {name} END" for name in names)
    width = len(columns)
    found = connection.execute(f"SELECT {kinds}, {values} FROM {quote(table)} AS t")
    return sorted(tuple(map(exact, row[:width], row[width:])) for row in found)


def differences(expected: Dump, actual: Dump, most: int = 5) -> list[str]:
    """What stands in one dump and not in the other, at most `most` rows of each side per table; empty if equal."""
    found = []
    for table in sorted(expected.keys() | actual.keys()):
        left, right = expected.get(table), actual.get(table)
        if left == right:
            continue
        if left is None or right is None:
            found.append(f"{table}: only {'there' if left is None else 'here'}")
            continue
        only_left, only_right = sorted(set(left) - set(right)), sorted(set(right) - set(left))
        found.append(f"{table}: {len(left)} rows here, {len(right)} there")
        found += [f"  only here:  {row}"[:400] for row in only_left[:most]]
        found += [f"  only there: {row}"[:400] for row in only_right[:most]]
    return found


def schema(path: Path) -> list[tuple[str, str, str, str | None]]:
    """(type, name, table, sql) of everything in the schema that is not the agent's, sorted."""
    with closing(reader(path)) as connection:
        found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
    return sorted(row for row in found if not row[1].startswith("__rsqlite_") and not row[2].startswith("__rsqlite_"))


def integrity(path: Path) -> str:
    """The answer of `integrity_check`, `ok` if all is well. Merges may break a CHECK, so those are left out."""
    with closing(reader(path)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        return "; ".join(row[0] for row in connection.execute("PRAGMA integrity_check"))


def query(path: Path, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """The rows of one query, read by the test process."""
    with closing(reader(path)) as connection:
        return connection.execute(sql, parameters).fetchall()


# ------------------------------------------------------------------------------------------------------------- agents


@dataclass(frozen=True)
class Answer:
    """An answer of an agent's HTTP interface."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Sample:
    """One line of the Prometheus text format."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse_metrics(text: str) -> tuple[set[str], list[Sample]]:
    """The names that are declared by `# TYPE`, and all samples. Label values must hold no comma and no quote."""
    declared: set[str] = set()
    samples = []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            declared.add(line.split()[2])
        elif line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            pairs = (pair.partition("=") for pair in labels.rstrip("}").split(",") if pair)
            samples.append(Sample(name, {key: text.strip('"') for key, _, text in pairs}, float(value)))
    return declared, samples


@dataclass
class Agent:
    """One agent: its configuration, its process and its HTTP interface.

    `home` holds the database alone; `folder` the configuration and the log of all starts.
    """

    folder: Path
    home: Path
    node: str
    nats_url: str
    settings: Mapping[str, object] = field(default_factory=dict)
    cluster: str = "tests"
    kills: int = 0

    def __post_init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(parents=True, exist_ok=True)

    @property
    def database(self) -> Path:
        """The file that this agent replicates."""
        return self.home / "app.db"

    @property
    def log(self) -> Path:
        """Standard output and error of all starts."""
        return self.folder / "agent.log"

    @property
    def config(self) -> Path:
        """The configuration file; written at each start from `settings`."""
        return self.folder / "agent.yaml"

    def write_config(self) -> None:
        """Write the configuration file."""
        smallest = {
            "cluster": self.cluster,
            "node": self.node,
            "database": str(self.database),
            "nats": {"servers": [self.nats_url]},
            "http": f"127.0.0.1:{self.port}",
        }
        self.config.write_text(yaml.safe_dump(smallest | dict(self.settings)), encoding="utf-8")

    # -- life

    def launch(self) -> None:
        """Start the process and return at once."""
        assert not self.is_running(), f"{self.node} runs already"
        self.write_config()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [AGENT_COMMAND, "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment(),
            )

    def start(self) -> None:
        """Start the process and wait until `/startupz` answers 200."""
        self.launch()
        self.wait_started()

    def wait_started(self, timeout: float = DEADLINE_S) -> None:
        """Wait until `/startupz` answers 200; fails at once if the process ends instead."""
        until(lambda: self._alive() and self.answers("/startupz"), f"/startupz of {self.node} answers 200", timeout)

    def is_running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def _alive(self) -> bool:
        assert self.process is not None, f"{self.node} was never started"
        code = self.process.poll()
        assert code is None, f"{self.node} ended with exit code {code}:\n{self.log_tail()}"
        return True

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        self.kills += 1
        assert self._signal(signal.SIGKILL) == -signal.SIGKILL, f"{self.node} ended before it was killed"

    def terminate(self, timeout: float = DEADLINE_S) -> int:
        """Send SIGTERM; the exit code."""
        return self._signal(signal.SIGTERM, timeout)

    def _signal(self, number: signal.Signals, timeout: float = DEADLINE_S) -> int:
        assert self.process is not None, f"{self.node} was never started"
        self.process.send_signal(signal.SIGCONT)  # a paused process takes no SIGTERM
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def pause(self) -> None:
        """Stop the process where it is (SIGSTOP)."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def limit_file_size(self, size: int = resource.RLIM_INFINITY) -> None:
        """Let the running process write no file beyond `size` bytes, without an argument any file again."""
        assert self.process is not None
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the log, under a heading."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return f"--- {self.node}, last lines of its log\n" + "\n".join(text.splitlines()[-lines:])

    # -- HTTP

    def get(self, path: str, timeout: float = 10.0) -> Answer:
        """One GET request; raises OSError or HTTPException if nobody answers within `timeout` seconds."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return Answer(response.status, response.read())

    def answers(self, path: str) -> bool:
        """Whether the path answers 200."""
        try:
            return self.get(path).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def status(self) -> Any:
        """The document of `/v1/status`."""
        return self._ok("/v1/status").json()

    def position(self) -> str:
        """The token of this node's writes so far."""
        token = self._ok("/v1/position").json()["token"]
        assert isinstance(token, str)
        return token

    def wait(self, token: str, timeout: float) -> bool:
        """Whether everything that the token names is applied here within `timeout` seconds."""
        asked = urlencode({"token": token, "timeout": f"{timeout:g}"})
        answer = self.get(f"/v1/wait?{asked}", timeout=timeout + 10)
        assert answer.status in {200, 504}, f"{self.node} /v1/wait: {answer.status} {answer.body!r}"
        return answer.status == 200

    def conflicts(self) -> str:
        """The text of `/v1/conflicts`."""
        return self._ok("/v1/conflicts").body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of all samples of a metric that have these labels; fails if the agent does not know the metric."""
        declared, samples = parse_metrics(self._ok("/metrics").body.decode())
        assert name in declared, f"{self.node} has no metric {name}; it has {sorted(declared)}"
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def _ok(self, path: str) -> Answer:
        answer = self.get(path)
        assert answer.status == 200, f"{self.node} {path}: {answer.status} {answer.body!r}"
        return answer


# ------------------------------------------------------------------------------------ applications, writers, readers


class RefusedError(Exception):
    """SQLite refused a statement of the application. `kind` is the class of the error in the application."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class Program:
    """One of the programs in `integration/writers`, as a process of its own."""

    def __init__(
        self, name: str, database: Path, *arguments: str, pragmas: Iterable[str] = (), busy_s: float = 10
    ) -> None:
        self.name = name
        given = ["--database", str(database), "--busy-timeout", f"{busy_s:g}", *arguments]
        given += [f"--pragma={pragma}" for pragma in pragmas]
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"integration.writers.{name}", *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
        )

    @property
    def stdin(self) -> IO[str]:
        """The standard input of the process."""
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def stdout(self) -> IO[str]:
        """The standard output of the process."""
        assert self.process.stdout is not None
        return self.process.stdout

    def finish(self, timeout: float = 10 * DEADLINE_S) -> str:
        """Close the standard input, wait for the end and return what the program printed; it must end with 0."""
        output, errors = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, f"{self.name} ended with {self.process.returncode}:\n{errors}"
        return output

    def discard(self) -> None:
        """End the process, however it is."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()


P = TypeVar("P", bound=Program)


class Application(Program):
    """An application with one open connection to its database (`writers/application.py`)."""

    def __init__(self, database: Path, pragmas: Iterable[str] = (), busy_s: float = 10) -> None:
        super().__init__("application", database, pragmas=pragmas, busy_s=busy_s)

    def execute(self, sql: str, *parameters: object) -> list[list[Any]]:
        """Execute one statement and return its rows; raises RefusedError."""
        wire = [{"hex": value.hex()} if isinstance(value, bytes) else value for value in parameters]
        return self._ask({"sql": sql, "parameters": wire})

    def script(self, sql: str) -> None:
        """Execute several statements; an open transaction is committed first. Raises RefusedError."""
        self._ask({"script": sql})

    def value(self, sql: str) -> Any:
        """The first value of the first row."""
        return self.execute(sql)[0][0]

    def _ask(self, request: dict[str, Any]) -> list[list[Any]]:
        print(json.dumps(request), file=self.stdin, flush=True)
        line = self.stdout.readline()
        if not line:
            raise AssertionError(f"the application ended: {self.process.communicate()[1]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RefusedError(answer["error"], answer["message"])
        rows: list[list[Any]] = answer["rows"]
        return rows


class Ledger(Program):
    """A writer that notes what was acknowledged to it (`writers/ledger.py`). `options` are its further arguments."""

    def __init__(
        self,
        database: Path,
        book: Path,
        writer: str,
        rows: int,
        *options: str,
        pragmas: Iterable[str] = (),
        busy_s: float = 10,
    ) -> None:
        self.book = book
        given = ["--book", str(book), "--writer", writer, "--rows", str(rows), *options]
        super().__init__("ledger", database, *given, pragmas=pragmas, busy_s=busy_s)

    def entries(self) -> list[acknowledged.Entry]:
        """What is acknowledged so far."""
        return acknowledged.read(self.book)

    def committed(self) -> int:
        """Number of transactions that are acknowledged so far: each inserts one note."""
        return self.book.read_bytes().count(b"insert\t") if self.book.exists() else 0


class Watch(Program):
    """A reader that repeats one query (`writers/watch.py`); it has read once when the constructor returns."""

    def __init__(self, database: Path, sql: str) -> None:
        super().__init__("watch", database, "--sql", sql)
        assert self.stdout.readline() == "reading\n", self.process.communicate()[1]

    def seen(self) -> tuple[int, list[tuple[Any, ...]]]:
        """End the reader: number of reads, and the different answers in the order of first sight."""
        summary = json.loads(self.finish())
        return summary["reads"], [tuple(row) for row in summary["seen"]]


def last_values(ledgers: Iterable[Ledger]) -> dict[str, set[str]]:
    """For each shared row the last value of each writer that wrote it: one of them must have won."""
    last: dict[str, set[str]] = {}
    for ledger in ledgers:
        of_writer = {entry.key: entry.value for entry in ledger.entries() if entry.kind == "update"}
        for key, value in of_writer.items():
            last.setdefault(key, set()).add(value)
    return last


def check_ledger(path: Path, *phases: Sequence[Ledger]) -> None:
    """A replica holds every acknowledged change or one that beat it, and nothing else.

    The ledgers of one phase wrote at the same time, and each phase began after the one before had arrived everywhere.
    Keys of notes belong to one writer: exactly the notes that were inserted and not deleted are there. A shared row
    holds the last value of one of its writers of the newest phase that wrote it, since a later write beats all that
    its writer could see.
    """
    notes: dict[str, str] = {}
    for entry in chain.from_iterable(ledger.entries() for phase in phases for ledger in phase):
        if entry.kind == "insert":
            notes[entry.key] = entry.value
        elif entry.kind == "delete":
            del notes[entry.key]
    last: dict[str, set[str]] = {}
    for phase in phases:
        last |= last_values(phase)
    there = dict(query(path, "SELECT id, value FROM notes"))
    missing, invented = notes.keys() - there.keys(), there.keys() - notes.keys()
    assert not missing, f"{path}: {len(missing)} acknowledged notes are lost, e.g. {sorted(missing)[:5]}"
    assert not invented, f"{path}: {len(invented)} notes that nobody wrote or that were deleted: {sorted(invented)[:5]}"
    altered = [key for key, value in notes.items() if there[key] != value]
    assert not altered, f"{path}: {len(altered)} notes hold another value than was written, e.g. {altered[:5]}"
    for key, value in query(path, "SELECT id, value FROM shared"):
        allowed = last.get(str(key), {"founder"})
        assert value in allowed, f"{path}: shared row {key} holds {value!r}, its writers ended with {sorted(allowed)}"


# ------------------------------------------------------------------------------------------------------------ cluster


class Cluster:
    """Agents on one NATS server, founded and joined when the `with` block begins.

    Agent 0 is started on a file that an application created with `schema`; the others start without a file and join
    by themselves. At the end of the block every running agent is stopped with SIGTERM and must end with 0; after a
    failure the ends of all logs are printed instead.

    `settings` are further configuration keys by agent number; `homes` another folder for an agent's database.
    """

    def __init__(
        self,
        folder: Path,
        schema: str = NOTES,
        *,
        size: int = 3,
        journal_mode: str = "WAL",
        settings: Mapping[int, Mapping[str, object]] | None = None,
        homes: Mapping[int, Path] | None = None,
        found: bool = True,
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.journal_mode = journal_mode
        self.found_at_once = found
        self.nats = NatsServer(folder / "nats")
        self._open = ExitStack()
        self._numbers = range(size)
        self._settings = settings or {}
        self._homes = homes or {}
        self.agents: list[Agent] = []

    def __enter__(self) -> Self:
        self.nats.start()
        self.agents = [self._new_agent(number) for number in self._numbers]
        try:
            if self.found_at_once:
                self.found()
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._give_up()
            return
        self._open.close()
        try:
            codes = self.stop_agents()
        except BaseException:
            self._give_up()
            raise
        self.nats.stop()
        assert not any(codes.values()), f"agents must end with 0 after SIGTERM: {codes}\n{self.logs()}"

    def _new_agent(self, number: int) -> Agent:
        node = f"node-{number}"
        home = self._homes.get(number, self.folder / node / "data")
        return Agent(self.folder / node, home, node, self.nats.url, self._settings.get(number, {}))

    def found(self) -> None:
        """Create the founder's file, start agent 0 on it, then let the others join."""
        with closing(reader(self.agents[0].database)) as connection:
            connection.execute(f"PRAGMA journal_mode = {self.journal_mode}")
            connection.executescript(self.schema)
        self.agents[0].start()
        for agent in self.agents[1:]:
            agent.launch()
        for agent in self.agents[1:]:
            agent.wait_started()

    def stop_agents(self) -> dict[str, int]:
        """Send SIGTERM to every running agent; exit codes by node."""
        running = [agent for agent in self.agents if agent.is_running()]
        processes = {agent.node: agent.process for agent in running if agent.process is not None}
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        return {node: process.wait(DEADLINE_S) for node, process in processes.items()}

    def _give_up(self) -> None:
        self._open.close()
        for agent in self.agents:
            if agent.is_running():
                agent.kill()
        self.nats.kill()
        print(self.logs())

    def logs(self) -> str:
        """The ends of the logs of all agents."""
        return "\n".join(agent.log_tail() for agent in self.agents)

    # -- processes that end with the cluster

    def application(self, number: int, *, pragmas: Iterable[str] = (), busy_s: float = 10) -> Application:
        """An application on the database of agent `number`."""
        return self._keep(Application(self.agents[number].database, pragmas, busy_s))

    def ledger(
        self, number: int, rows: int, *options: str, pragmas: Iterable[str] = (), busy_s: float = 10, name: str = ""
    ) -> Ledger:
        """A ledger writer on the database of agent `number`; `name` tells several on one database apart."""
        writer = name or f"w{number}"
        book = self.folder / f"book-{writer}"
        return self._keep(
            Ledger(self.agents[number].database, book, writer, rows, *options, pragmas=pragmas, busy_s=busy_s)
        )

    def program(self, name: str, number: int, *arguments: str, pragmas: Iterable[str] = ()) -> Program:
        """Another program of `integration/writers` on the database of agent `number`."""
        return self._keep(Program(name, self.agents[number].database, *arguments, pragmas=pragmas))

    def watch(self, number: int, sql: str) -> Watch:
        """A reader of the database of agent `number`."""
        return self._keep(Watch(self.agents[number].database, sql))

    def _keep(self, program: P) -> P:
        self._open.callback(program.discard)
        return program

    # -- convergence

    def converge(self, timeout: float = DEADLINE_S) -> None:
        """Wait until every agent has applied everything that any of them has written or applied.

        Each round asks all for their positions and all others to wait for them; it is over when the positions of a
        round are those of the round before, so nothing was written or applied in between.
        """
        end = time.monotonic() + timeout
        known: list[str] = []
        while (tokens := [agent.position() for agent in self.agents]) != known:
            known = tokens
            for agent in self.agents:
                for other, token in zip(self.agents, tokens, strict=True):
                    if other is agent:
                        continue
                    left = end - time.monotonic()
                    assert left > 0, f"the positions still move after {timeout:.0f} s"
                    assert agent.wait(token, left), f"{agent.node} misses writes of {other.node} after {timeout:.0f} s"

    def assert_converged(self, timeout: float = DEADLINE_S) -> Dump:
        """Converge; then all files hold the same rows bit by bit under the same schema and are sound. The common
        dump.
        """
        self.converge(timeout)
        first, *others = self.agents
        expected, expected_schema = dump(first.database), schema(first.database)
        for agent in others:
            found = differences(expected, dump(agent.database))
            assert not found, "\n".join([f"{first.node} (here) and {agent.node} (there) differ:", *found])
            assert expected_schema == schema(agent.database), f"schemas of {first.node} and {agent.node}"
        for agent in self.agents:
            assert integrity(agent.database) == "ok", agent.node
        return expected

    def total(self, metric: str, **labels: str) -> float:
        """Sum of a metric over all agents."""
        return sum(agent.metric(metric, **labels) for agent in self.agents)
