"""The agent's own tables in the user's file, and the rows in them that the whole agent shares.

`Progress` is the single row of ``__rsqlite_state``: how far this file is folded, published and applied. It changes in
the same transaction as the rows it counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import apsw
import msgspec

from replicated_sqlite_agent.changes import ZERO, Stretch, Vector, Version
from replicated_sqlite_agent.database.connection import all_rows, scalar
from replicated_sqlite_agent.database.identifiers import PREFIX, listed, quote, side
from replicated_sqlite_agent.database.schema import Table

FORMAT = 1
"""Version of these tables. A file of a newer format is refused."""

_pack = msgspec.msgpack.encode
_vector = msgspec.msgpack.Decoder(dict[int, int])
_stretches = msgspec.msgpack.Decoder(list[tuple[int, dict[int, int]]])
_covers = msgspec.msgpack.Decoder(dict[int, tuple[int, int]])

_TABLES = f"""
CREATE TABLE IF NOT EXISTS {PREFIX}log(seq INTEGER PRIMARY KEY, top, ts, mask, k1);
CREATE TABLE IF NOT EXISTS {PREFIX}state(
  id INTEGER PRIMARY KEY CHECK (id = 1), format INTEGER NOT NULL, cluster TEXT NOT NULL, node TEXT NOT NULL,
  lineage TEXT, run INTEGER NOT NULL, clock INTEGER NOT NULL, clock_offset INTEGER NOT NULL,
  folded_seq INTEGER NOT NULL, published INTEGER NOT NULL, published_seq INTEGER NOT NULL,
  stream TEXT, sequence INTEGER NOT NULL, group_id BLOB,
  stretches BLOB NOT NULL, covers BLOB NOT NULL, horizon BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS {PREFIX}runs(
  id INTEGER PRIMARY KEY, run INTEGER NOT NULL UNIQUE, node TEXT, position INTEGER NOT NULL DEFAULT 0,
  context BLOB, ended INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS {PREFIX}tables(
  number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, columns BLOB NOT NULL, root INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS {PREFIX}hidden(
  name TEXT NOT NULL, key BLOB NOT NULL, row BLOB NOT NULL, PRIMARY KEY (name, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS {PREFIX}conflicts(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, key BLOB NOT NULL, column TEXT NOT NULL,
  clock INTEGER NOT NULL, run INTEGER NOT NULL, winner_clock INTEGER NOT NULL, winner_run INTEGER NOT NULL,
  rule TEXT NOT NULL, loser BLOB, winner BLOB, at_ms INTEGER NOT NULL,
  UNIQUE (name, key, column, clock, run));
CREATE TABLE IF NOT EXISTS {PREFIX}parked(
  id INTEGER PRIMARY KEY, run INTEGER NOT NULL, lo INTEGER NOT NULL, hi INTEGER NOT NULL, group_id BLOB NOT NULL UNIQUE,
  body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS {PREFIX}paused(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, run INTEGER NOT NULL, stretches BLOB NOT NULL, rows INTEGER NOT NULL,
  block BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS {PREFIX}dead_letters(
  id INTEGER PRIMARY KEY, subject TEXT NOT NULL, sequence INTEGER NOT NULL, reason TEXT NOT NULL,
  at_ms INTEGER NOT NULL, body BLOB, UNIQUE (sequence, reason));
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far this file is: the row of ``__rsqlite_state``. Clocks are hybrid logical, sequences count from 1."""

    cluster: str
    node: str
    run: int
    lineage: str | None = None
    """Random id of the cluster whose data this is; None until founded, joined or adopted."""
    clock: int = 0
    clock_offset: int = 0
    """Milliseconds to add to local wall time to get the NATS server's, as measured before the rows not yet folded."""
    folded_seq: int = 0
    published: int = 0
    published_seq: int = 0
    stream: str | None = None
    sequence: int = 0
    """Stream sequence up to which everything is applied or kept in this file."""
    group_id: bytes | None = None
    """Group id of the message at ``sequence``: a stream that has another one there has lost messages."""
    stretches: tuple[Stretch, ...] = ()
    covers: dict[int, tuple[int, int]] = field(default_factory=dict)
    horizon: Vector = field(default_factory=dict)


_COLUMNS = (
    "cluster",
    "node",
    "lineage",
    "run",
    "clock",
    "clock_offset",
    "folded_seq",
    "published",
    "published_seq",
    "stream",
    "sequence",
    "group_id",
    "stretches",
    "covers",
    "horizon",
)
_READ = f"SELECT {', '.join(_COLUMNS)} FROM {PREFIX}state"
_WRITE = (
    f"INSERT INTO {PREFIX}state(id, format, {', '.join(_COLUMNS)}) "
    f"VALUES (1, {FORMAT}, {', '.join('?' for _ in _COLUMNS)}) "
    f"ON CONFLICT(id) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in _COLUMNS)}"
)


def exists(db: apsw.Connection) -> bool:
    """Whether this file has been replicated before."""
    return bool(scalar(db, "SELECT count(*) FROM sqlite_schema WHERE name = ?", (f"{PREFIX}state",)))


def file_format(db: apsw.Connection) -> int:
    """The format version of the agent's tables in this file."""
    return int(scalar(db, f"SELECT format FROM {PREFIX}state"))


def create(db: apsw.Connection) -> None:
    """Create the agent's tables where they are missing."""
    db.execute(_TABLES)
    db.execute(f"INSERT OR IGNORE INTO {PREFIX}runs(id, run) VALUES (0, 0)")


def widen_log(db: apsw.Connection, key_columns: int) -> None:
    """Give the log as many key columns as the widest key has."""
    have = int(scalar(db, "SELECT count(*) FROM pragma_table_info(?)", (f"{PREFIX}log",))) - 4
    for number in range(have + 1, key_columns + 1):
        db.execute(f"ALTER TABLE {PREFIX}log ADD COLUMN k{number}")


def create_side_table(db: apsw.Connection, table: Table) -> None:
    """Create the side table of a table: key, life (l, lr), dead flag, update (u, ur), column versions (x).

    ``lr`` and ``ur`` are row numbers of ``__rsqlite_runs``; u is NULL until an update; x is NULL or msgpack. A row
    without an entry has the versions (0, 0).
    """
    versions = "l INTEGER NOT NULL, lr INTEGER NOT NULL, dead INTEGER NOT NULL, u INTEGER, ur INTEGER, x BLOB"
    if table.keyless:
        # Identity is (run, number) of the insert; the rowid is only where the row lies in this file.
        ddl = f"k1 INTEGER UNIQUE, run INTEGER NOT NULL, number INTEGER NOT NULL, {versions}, PRIMARY KEY (run, number)"
        db.execute(f"CREATE TABLE {side(table.name)}({ddl}) WITHOUT ROWID")
    elif table.rowid_alias:
        db.execute(f"CREATE TABLE {side(table.name)}(k1 INTEGER PRIMARY KEY, {versions})")
    else:
        key = ", ".join(f"k{i + 1} COLLATE {column.collation}" for i, column in enumerate(table.key))
        names = ", ".join(f"k{i + 1}" for i in range(len(table.key)))
        db.execute(f"CREATE TABLE {side(table.name)}({key}, {versions}, PRIMARY KEY ({names})) WITHOUT ROWID")


def read_progress(db: apsw.Connection) -> Progress:
    """The row of ``__rsqlite_state``."""
    return decode_progress(progress_row(db))


def progress_row(db: apsw.Connection) -> tuple[Any, ...]:
    """The row of ``__rsqlite_state`` as it is stored."""
    row: tuple[Any, ...] = all_rows(db, _READ)[0]
    return row


def decode_progress(row: tuple[Any, ...]) -> Progress:
    """What `progress_row` means."""
    values = dict(zip(_COLUMNS, row, strict=True))
    values["stretches"] = tuple(Stretch(clock, seen) for clock, seen in _stretches.decode(values["stretches"]))
    values["covers"] = _covers.decode(values["covers"])
    values["horizon"] = _vector.decode(values["horizon"])
    return Progress(**values)


def write_progress(db: apsw.Connection, progress: Progress) -> None:
    """Store it; part of the transaction that made it true."""
    values = {name: getattr(progress, name) for name in _COLUMNS}
    for name in ("stretches", "covers", "horizon"):
        values[name] = _pack(values[name])
    db.execute(_WRITE, tuple(values[name] for name in _COLUMNS))


@dataclass(slots=True)
class Run:
    """A run known in this file. ``position`` is the largest clock applied from it."""

    id: int
    run: int
    node: str | None
    position: int
    context: Vector
    """What it had seen at its last write that was applied here."""


class Runs:
    """All runs known in this file: row number <-> run number, positions and contexts."""

    def __init__(self, runs: list[Run]) -> None:
        self.by_id = {run.id: run for run in runs}
        self.by_run = {run.run: run for run in runs}
        self._changed: set[int] = set()

    @classmethod
    def read(cls, db: apsw.Connection) -> Runs:
        """Read them all; they are few."""
        return cls.decode(cls.rows(db))

    @staticmethod
    def rows(db: apsw.Connection) -> list[tuple[Any, ...]]:
        """They as they are stored."""
        return all_rows(db, f"SELECT id, run, node, position, context FROM {PREFIX}runs WHERE NOT ended")

    @classmethod
    def decode(cls, rows: list[tuple[Any, ...]]) -> Runs:
        """What `rows` means."""
        return cls([Run(i, r, n, p, _vector.decode(c) if c else {}) for i, r, n, p, c in rows])

    def id_of(self, db: apsw.Connection, run: int) -> int:
        """The row number of a run, made known if it is new."""
        known = self.by_run.get(run)
        if known is not None:
            return known.id
        db.execute(f"INSERT INTO {PREFIX}runs(run) VALUES (?)", (run,))
        new = Run(db.last_insert_rowid(), run, None, 0, {})
        self.by_id[new.id] = self.by_run[run] = new
        return new.id

    def position(self, run: int) -> int:
        """The largest clock applied from a run, 0 if it is unknown."""
        known = self.by_run.get(run)
        return known.position if known is not None else 0

    def advance(
        self, db: apsw.Connection, run: int, position: int, context: Vector | None = None, node: str | None = None
    ) -> None:
        """Move a position forward (never back) and keep the run's newest context; `store` writes it."""
        known = self.by_id[self.id_of(db, run)]
        known.position = max(known.position, position)
        known.context = known.context if context is None else context
        known.node = node or known.node
        self._changed.add(known.id)

    def reach(self, run: int, position: int) -> None:
        """Move the position of the file's own run. In memory only: in the file it is the clock of the state."""
        known = self.by_run[run]
        known.position = max(known.position, position)

    def store(self, db: apsw.Connection) -> None:
        """Write what `advance` has changed; once per transaction."""
        for number in self._changed:
            known = self.by_id[number]
            db.execute(
                f"UPDATE {PREFIX}runs SET position = ?, context = ?, node = ? WHERE id = ?",
                (known.position, _pack(known.context), known.node, known.id),
            )
        self._changed.clear()

    def vector(self) -> Vector:
        """run -> position, for all runs that have written."""
        return {run.run: run.position for run in self.by_run.values() if run.position}

    def version(self, clock: int, run_id: int) -> Version:
        """The version that a pair of columns of a side table means."""
        return Version(clock, self.by_id[run_id].run) if clock else ZERO


def own_objects(db: apsw.Connection) -> list[tuple[str, str]]:
    """(type, name) of every trigger, table and index of ours in this file, in an order in which they can be dropped."""
    query = "SELECT type, name FROM sqlite_schema WHERE substr(name, 1, ?) = ? ORDER BY type DESC"
    rows = all_rows(db, query, (len(PREFIX), PREFIX))
    return [(str(kind), str(name)) for kind, name in rows]


def drop_own_objects(db: apsw.Connection) -> int:
    """Take every trace of the agent out of the file; returns how many objects there were."""
    objects = own_objects(db)
    for kind, name in objects:
        db.execute(f"DROP {kind.upper()} IF EXISTS main.{quote(name)}")
    return len(objects)


def key_columns(count: int, prefix: str = "") -> str:
    """``k1, k2 …`` of the log and the side tables."""
    return listed((f"k{i + 1}" for i in range(count)), prefix)
