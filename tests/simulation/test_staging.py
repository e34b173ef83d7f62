"""Rows applied by SQL end as rows resolved one by one: equal tables, side tables, hidden rows and conflict records."""

from __future__ import annotations

import io
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from replicated_sqlite_agent.capture.install import CaptureOptions
from replicated_sqlite_agent.changes import Key, RawText, RowState, Value, Vector, Version, canonical
from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.inbound.applier import Applier, Point
from replicated_sqlite_agent.inbound.assembler import Arrived
from replicated_sqlite_agent.replica.state import Replica
from replicated_sqlite_agent.settings import Merge, Policy, Tables
from replicated_sqlite_agent.wire import Block, Header, encode_frame, image_schema, row_to_wire
from simulation.oracle import dump, stored_versions

SCHEMA = """
CREATE TABLE plain(id INTEGER PRIMARY KEY, a, b);
CREATE TABLE pair(g TEXT, k TEXT, a, b, PRIMARY KEY(g, k)) WITHOUT ROWID;
CREATE TABLE claim(id INTEGER PRIMARY KEY, a UNIQUE, b);
CREATE TABLE must(id INTEGER PRIMARY KEY, a NOT NULL, b TEXT);
CREATE TABLE art(id INTEGER PRIMARY KEY, a, b);
CREATE VIRTUAL TABLE art_fts USING fts5(a, b, content='art', content_rowid='id');
CREATE TRIGGER art_ai AFTER INSERT ON art BEGIN
  INSERT INTO art_fts(rowid, a, b) VALUES (NEW.id, NEW.a, NEW.b); END;
CREATE TRIGGER art_ad AFTER DELETE ON art BEGIN
  INSERT INTO art_fts(art_fts, rowid, a, b) VALUES ('delete', OLD.id, OLD.a, OLD.b); END;
CREATE TRIGGER art_au AFTER UPDATE ON art BEGIN
  INSERT INTO art_fts(art_fts, rowid, a, b) VALUES ('delete', OLD.id, OLD.a, OLD.b);
  INSERT INTO art_fts(rowid, a, b) VALUES (NEW.id, NEW.a, NEW.b); END;
INSERT INTO plain VALUES (1, 'founded', NULL), (2, 'founded', 2);
"""
TABLES = ("plain", "pair", "claim", "must", "art")
OWN, RUNS = 9, (1, 2, 3)
COLUMNS = ("a", "b")


class Sender:
    """Makes random groups; one version is one value wherever it appears."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.positions = dict.fromkeys(RUNS, 0)

    def _version(self, least: int = 1) -> Version:
        return Version(self.chance.randint(least, 12), self.chance.choice(RUNS))

    def _value(self, table: str, key: Key, column: str, version: Version) -> Value:
        chance = random.Random(f"{table}{key}{column}{version}")
        if table == "claim" and column == "a":
            return chance.choice((None, "x", "y", "z"))
        kinds: tuple[Value, ...] = (version.clock, f"v{version}", 1.5, -0.0, b"blob", RawText(b"\xff"), None, 2**62)
        return "never null" if table == "must" and column == "a" else chance.choice(kinds)

    def _state(self, table: str, key: Key) -> RowState:
        life = self._version()
        if random.Random(f"{table}{key}{life}").random() < 0.25:
            return RowState(life, alive=False, update=life)
        newest = max(life, self._version(life.clock))
        versions = {c: max(life, self._version(life.clock)) if self.chance.random() < 0.3 else newest for c in COLUMNS}
        values = {c: self._value(table, key, c, v) for c, v in versions.items()}
        return canonical(RowState(life, True, life, versions, values), COLUMNS)

    def _key(self, table: str) -> Key:
        number = self.chance.randint(1, 9)
        return (self.chance.choice("pq"), str(number % 4)) if table == "pair" else (number,)

    def group(self) -> tuple[int, Header, list[tuple[str, dict[Key, RowState]]]]:
        """(run, header, rows by table) of the next group of a random run."""
        run = self.chance.choice(RUNS)
        lo, hi = self.positions[run], self.positions[run] + self.chance.randint(1, 5)
        self.positions[run] = hi
        seen: Vector = {r: self.chance.randint(0, p) for r, p in self.positions.items() if r != run and p}
        header = Header("peer", lo, hi, stretches=[(hi, {r: c for r, c in seen.items() if c})])
        tables = self.chance.sample(TABLES, self.chance.randint(1, 3))
        rows = [
            (t, {k: self._state(t, k) for k in dict.fromkeys(self._key(t) for _ in range(self.chance.randint(1, 6)))})
            for t in tables
        ]
        return run, header, rows


def block(table: str, rows: dict[Key, RowState], *, image: bool) -> Block:
    """The rows as msgpack or as an SQLite image."""
    key = ["g", "k"] if table == "pair" else ["id"]
    numbers: dict[int, int] = {}
    for state in rows.values():
        for version in state.versions():
            numbers.setdefault(version.run, len(numbers))
    wire = [row_to_wire(k, state, COLUMNS, numbers) for k, state in rows.items()]
    runs = {number: run for run, number in numbers.items()}
    if not image:
        return Block(table, b"", key, list(COLUMNS), runs, len(wire), wire)
    db = apsw.Connection(":memory:")
    db.execute(image_schema(len(key), len(COLUMNS)))
    for row in wire:
        full = [*row, *[None] * (len(key) + 6 + len(COLUMNS) - len(row))]
        marks = ", ".join("CAST(? AS TEXT)" if isinstance(v, RawText) else "?" for v in full)
        db.execute(f"INSERT INTO r VALUES ({marks})", tuple(v.data if isinstance(v, RawText) else v for v in full))
    serialized = db.serialize("main")
    db.close()
    return Block(table, b"", key, list(COLUMNS), runs, len(wire), None, serialized)


class Side:
    """One of two replicas that get the same groups."""

    def __init__(self, path: Path) -> None:
        self.app = sqlite3.connect(path, isolation_level=None)
        by_column = tuple(Policy(table=t, merge=Merge.COLUMN_LWW) for t in ("plain", "art"))
        self.replica = Replica(path, CaptureOptions("here", Tables(policies=by_column)), Counters())
        self.replica.start_run(OWN, "simulated", "here")
        self.applier = Applier(self.replica, self.replica.counters)

    def apply(self, number: int, run: int, header: Header, blocks: list[Block]) -> None:
        """Apply one group."""
        body = b"".join([encode_frame(header), *map(encode_frame, blocks)])
        arrived = Arrived(run, str(number).encode(), header.lo, header.hi, len(body), io.BytesIO(body))
        self.applier.apply([arrived], Point("s", number, b""))

    def everything(self) -> dict[str, object]:
        """All that has to be equal."""
        found: dict[str, object] = {table: dump(self.app, table) for table in TABLES}
        for rows in self.replica.tables.values():
            found[f"versions of {rows.table.name}"] = dict(stored_versions(rows))
        found["hidden"] = dump(self.app, "__rsqlite_hidden")
        columns = "name, key, column, clock, run, winner_clock, winner_run, rule, loser, winner"
        records = self.app.execute(f"SELECT {columns} FROM __rsqlite_conflicts").fetchall()
        found["conflicts"] = sorted(records, key=repr)
        found["matches"] = self.app.execute("SELECT rowid FROM art_fts('v OR blob OR 1') ORDER BY rowid").fetchall()
        self.app.execute("INSERT INTO art_fts(art_fts, rank) VALUES ('integrity-check', 1)")
        return found

    def close(self) -> None:
        """The application's connection last: it removes the WAL."""
        self.replica.close()
        self.app.close()


@pytest.fixture
def two_sides(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    """Two replicas of one file."""
    first = sqlite3.connect(tmp_path / "a.db")
    first.executescript(SCHEMA)
    first.close()
    shutil.copy(tmp_path / "a.db", tmp_path / "b.db")
    sides = Side(tmp_path / "a.db"), Side(tmp_path / "b.db")
    yield sides
    for side in sides:
        side.close()


@pytest.mark.parametrize("number", range(15))
def test_both_ways_end_alike(two_sides: tuple[Side, Side], number: int) -> None:
    sender = Sender(random.Random(number))
    by_image, one_by_one = two_sides
    for step in range(20):
        run, header, rows = sender.group()
        by_image.apply(step, run, header, [block(table, states, image=True) for table, states in rows])
        one_by_one.apply(step, run, header, [block(table, states, image=False) for table, states in rows])
        expected, found = one_by_one.everything(), by_image.everything()
        assert found == expected, f"step {step}: {header} {rows}"
