"""What must hold: checked at random moments and at the end of every history."""

from __future__ import annotations

import sqlite3
import struct
from typing import TYPE_CHECKING

from replicated_sqlite_agent.changes import ZERO, Key, RawText, RowState, Value, Version
from replicated_sqlite_agent.database.exact import select
from replicated_sqlite_agent.replica.rows import Rows
from replicated_sqlite_agent.values import unpack_values
from simulation.application import TABLES
from simulation.world import LOG, FlawError, Node, Noted, World

if TYPE_CHECKING:
    from collections.abc import Iterable


Exact = tuple[str, object]


def exact(value: Value) -> Exact:
    """A value as something that is equal only if storage class and every bit are."""
    if isinstance(value, float):
        return "real", struct.pack("<d", value)
    if isinstance(value, RawText):
        return "text", value.data
    if isinstance(value, str):
        return "text", value.encode()
    return {bytes: "blob", int: "integer"}.get(type(value), "null"), value


def dump(db: sqlite3.Connection, table: str) -> list[tuple[Exact, ...]]:
    """All rows of a table as the application reads them, in one order."""
    db.text_factory = bytes
    try:
        columns = [row[1].decode() for row in db.execute("SELECT * FROM pragma_table_info(?)", (table,))]
        quoted = ['"' + column.replace('"', '""') + '"' for column in columns]
        pairs = ", ".join(f"typeof({c}), {c}" for c in quoted)
        rows = db.execute(f'SELECT {pairs} FROM "{table}"').fetchall()
    finally:
        db.text_factory = str
    typed = [tuple((row[i].decode(), _bits(row[i + 1])) for i in range(0, len(row), 2)) for row in rows]
    return sorted(typed, key=repr)


def _bits(value: object) -> object:
    return struct.pack("<d", value) if isinstance(value, float) else value


def covered(state: RowState, by: RowState, columns: Iterable[str]) -> bool:
    """Whether a state is part of another one in the order of the join."""
    rank, other = (state.life.clock, not state.alive), (by.life.clock, not by.alive)
    if rank != other:
        return other > rank
    if not state.alive:
        return by.life >= state.life
    return all(by.version_of(c) >= state.version_of(c) for c in columns)


class Oracle:
    """Knows every local write with the version it got."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.writes: list[Noted] = []
        self.stamped: set[tuple[str, Key, int]] = set()
        """(table, key, clock) of every change that the application committed and a fold saw."""
        self.torn = False
        """A gap was forced: whole transactions are not promised then."""
        self._by_row: dict[tuple[str, Key, Version], dict[str, Exact]] = {}
        self.values: dict[tuple[str, Key, str, Version], tuple[Exact, str]] = {}

    # ---- while it runs ---------------------------------------------------------------------------------------------

    def note(self, node: Node, noted: list[Noted], stamped: list[tuple[str, Key, int]]) -> None:
        """Folds that are committed now."""
        self.writes += noted
        self.stamped.update(stamped)
        folded = node.replica.progress.folded_seq
        node.folded |= {seq for seq in node.ledger if seq <= folded}

    def at_a_moment(self, node: Node) -> None:
        """A reader of this replica sees whole transactions, and every version has one value."""
        self._sums(node)
        self._positions(node)
        self._observe(node)

    def _sums(self, node: Node) -> None:
        if self.torn:
            return
        query = "SELECT d.id, d.n + c.n FROM debit d JOIN credit c USING (id)"
        for number, total in node.app.db.execute(query):
            if total != 200:
                raise FlawError(f"{node.name} shows a part of a transaction of n{number}: {total} instead of 200")

    def _positions(self, node: Node) -> None:
        """Of each run exactly what it had written up to the applied position: nothing above it, all below it."""
        vector = node.replica.runs.vector()
        entries: dict[str, dict[Key, RowState]] = {}
        for rows in node.replica.tables.values():
            mine = entries.setdefault(rows.table.name, {})
            for key, state in stored_versions(rows):
                mine[rows.table.same_key(key)] = state
                for version in state.versions():
                    if version.clock > vector.get(version.run, 0):
                        raise FlawError(f"{node.name} shows {rows.table.name}{key} {version} above {vector}")
        paused = {row[0] for row in node.app.db.execute("SELECT name FROM __rsqlite_paused")}
        for write in self.writes:
            if write.clock > vector.get(write.run, 0) or write.table in paused:
                continue
            here = entries.get(write.table, {}).get(write.key)
            if here is None or not covered(write.state, here, write.columns):
                raise FlawError(f"{node.name} at {vector} misses {write}, has {here}")

    def _observe(self, node: Node) -> None:
        for rows in node.replica.tables.values():
            pending = pending_keys(node, rows)
            for key, state in logical_rows(rows):
                if rows.table.same_key(key) in pending:
                    continue
                for column, value in state.values.items():
                    version = state.version_of(column)
                    name = (rows.table.name, rows.table.same_key(key), column, version)
                    here = f"{node.name} at {len(self.world.history)}"
                    seen, where = self.values.setdefault(name, (exact(value), here))
                    if seen != exact(value):
                        raise FlawError(f"one version, two values: {name} is {seen} ({where}) and {value!r} ({here})")

    # ---- at the end ------------------------------------------------------------------------------------------------

    def at_the_end(self) -> None:
        """All is quiet: the replicas are equal and nothing was lost on the way."""
        first = self.world.nodes[0]
        for node in self.world.nodes:
            self.at_a_moment(node)
            self._nothing_waits(node)
            self._sound(node)
            self._equal(first, node)
            self._all_folded(node)
            self._none_invented(node)
        self._notes()
        if (
            self.world.exact_notes
            and not self.world.lossy
            and not any(node.app.column_added for node in self.world.nodes)
        ):
            self._conflicts()

    def _nothing_waits(self, node: Node) -> None:
        progress = node.replica.progress
        counts = {
            name: node.app.db.execute(f"SELECT count(*) FROM __rsqlite_{name}").fetchone()[0]
            for name in ("parked", "paused", "dead_letters")
        }
        if any(counts.values()):
            raise FlawError(f"{node.name} still holds {counts}")
        left = node.app.db.execute(f"SELECT count(*) FROM {LOG}").fetchone()[0]
        if left > 1 or node.newest() > min(progress.folded_seq, progress.published_seq):
            raise FlawError(f"{node.name} has {left} log rows left of {node.newest()}: {progress}")
        if progress.covers or any(s.clock > progress.published for s in progress.stretches):
            raise FlawError(f"{node.name} keeps covers or stretches without end: {progress}")

    def _sound(self, node: Node) -> None:
        db = node.app.db
        problems = db.execute("PRAGMA integrity_check").fetchall()
        if problems != [("ok",)]:
            raise FlawError(f"{node.name}: {problems}")
        try:
            db.execute("INSERT INTO art_fts(art_fts, rank) VALUES ('integrity-check', 1)")
        except sqlite3.DatabaseError as error:
            raise FlawError(f"{node.name}: the full-text index is wrong: {error}") from error

    def _equal(self, one: Node, other: Node) -> None:
        for table in TABLES:
            a, b = dump(one.app.db, table), dump(other.app.db, table)
            if a != b:
                only = [row for row in a if row not in b][:3], [row for row in b if row not in a][:3]
                raise FlawError(f"{table} differs between {one.name} and {other.name}: {only}")
            here, there = living(one, table), living(other, table)
            if here != there:
                keys = here.keys() | there.keys()
                differing = {k: (here.get(k), there.get(k)) for k in keys if here.get(k) != there.get(k)}
                raise FlawError(f"versions of {table} differ between {one.name} and {other.name}: {differing}")
        hidden = [sorted(n.replica.db.execute("SELECT name, key, row FROM __rsqlite_hidden")) for n in (one, other)]
        if hidden[0] != hidden[1]:
            raise FlawError(f"hidden rows differ between {one.name} and {other.name}: {hidden}")
        found = [n.app.db.execute("SELECT rowid FROM art_fts('word') ORDER BY rowid").fetchall() for n in (one, other)]
        if found[0] != found[1]:
            raise FlawError(f"full-text matches differ between {one.name} and {other.name}: {found}")
        self.world.hits["hidden at the end"] = len(hidden[0])

    def _all_folded(self, node: Node) -> None:
        if missing := node.ledger.keys() - node.folded:
            raise FlawError(f"{node.name}: log rows {sorted(missing)[:5]} were committed and never folded")

    def _none_invented(self, node: Node) -> None:
        """Each version of a living row is that of a change which the application made to this row."""
        for rows in node.replica.tables.values():
            for key, state in [] if rows.table.keyless else stored_versions(rows):
                shown = {state.life, *(state.version_of(c) for c in rows.table.columns)} if state.alive else set()
                for version in shown - {ZERO}:
                    if (rows.table.name, rows.table.same_key(key), version.clock) not in self.stamped:
                        raise FlawError(f"{node.name}: nobody wrote {rows.table.name}{key} at {version}")

    def _conflicts(self) -> None:
        """Of tables that merge by row: each write discarded unknown to its winner is recorded, and nothing else is."""
        recorded: set[tuple[str, Key, Version]] = set()
        for node in self.world.nodes:
            recorded |= conflict_records(node)
        final = {name: living(self.world.nodes[0], name) for name in self._merged_by_row()}
        by_key: dict[tuple[str, Key], list[Noted]] = {}
        for write in self.writes:
            if write.table in final:
                by_key.setdefault((write.table, write.key), []).append(write)
        for (table, key), writes in by_key.items():
            known = {newest_own(w): w for w in writes}
            for write in writes:
                version = newest_own(write)
                if not self._discarded_unknown(write, version, writes, final[table].get(key)):
                    continue
                if (table, key, version) not in recorded:
                    raise FlawError(f"no conflict recorded for {table}{key} {version}: {writes}")
                self.world.hit("conflicts demanded and found")
            for version in {v for t, k, v in recorded if (t, k) == (table, key)}:
                loser = known.get(version)
                if loser is not None and all(knew(w, version) or knew(loser, newest_own(w)) for w in writes):
                    raise FlawError(f"false conflict about {table}{key} {version}: {writes}")

    def _merged_by_row(self) -> list[str]:
        return [t for t in ("kv", "a b", "doc", "par", "chd", "art", "debit") if t not in self.world.by_column]

    def _discarded_unknown(self, write: Noted, version: Version, writes: list[Noted], final: RowState | None) -> bool:
        if write.inherited or not write.state.alive or (final is not None and final.newest() == version):
            return False
        others = [w for w in writes if newest_own(w) != version]
        if any(knew(w, version) or version.clock in (w.clock, w.state.life.clock) for w in others):
            return False  # somebody replaced it knowingly, or the two are taken for one write under two runs
        mine = self._row_values(write.table, write.key, version)
        if not mine or any(self._row_values(w.table, w.key, newest_own(w)) == mine for w in others):
            return False  # an equal value is no conflict
        shown = self._row_values(write.table, write.key, final.newest()) if final is not None else {}
        return bool(shown) and shown != mine if final is not None else True

    def _row_values(self, table: str, key: Key, version: Version) -> dict[str, Exact]:
        return self._rows.get((table, key, version), {})

    @property
    def _rows(self) -> dict[tuple[str, Key, Version], dict[str, Exact]]:
        if not self._by_row:
            for (table, key, column, version), (value, _) in self.values.items():
                self._by_row.setdefault((table, key, version), {})[column] = value
        return self._by_row

    def _notes(self) -> None:
        """The table without a key: a row is there unless somebody deleted it, once, with a value somebody wrote."""
        written: dict[object, set[Exact]] = {-1: {exact("founded")}, -2: {exact("founded")}}
        deleted: set[object] = set()
        for node in self.world.nodes:
            for row, values in node.app.inserted.items():
                written.setdefault(row, set()).update(exact(v) for v in values)  # type: ignore[arg-type]
            deleted |= node.app.deleted
        shown = [(row[0][1], row[1]) for row in dump(self.world.nodes[0].app.db, "note")]
        for name, value in shown:
            if value not in written.get(name, ()):
                raise FlawError(f"note {name} shows {value}, which nobody wrote")
        names, expected = sorted(map(str, (row for row, _ in shown))), sorted(map(str, written.keys() - deleted))
        if self.world.exact_notes and names != expected:
            raise FlawError(f"notes are {names}, expected {expected}")


def newest_own(write: Noted) -> Version:
    """The version that a noted write got."""
    return Version(write.clock, write.run)


def knew(write: Noted, version: Version) -> bool:
    """Whether the writer had seen this version, or made it earlier itself."""
    if write.run == version.run:
        return version.clock <= write.clock
    return version.clock <= write.seen.get(version.run, 0)


def conflict_records(node: Node) -> set[tuple[str, Key, Version]]:
    """(table, key, version) of all losing writes recorded here."""
    found = set()
    for name, key, clock, run in node.app.db.execute("SELECT name, key, clock, run FROM __rsqlite_conflicts"):
        captured = node.replica.catalog.named(name)
        assert captured is not None
        found.add((name, captured.table.same_key(unpack_values(key)), Version(clock, run)))
    return found


def stored_versions(rows: Rows) -> list[tuple[Key, RowState]]:
    """Everything in the side table."""
    key = ["run", "number"] if rows.table.keyless else [f"k{i + 1}" for i in range(len(rows.table.key))]
    found = select(rows.db, [*key, "l", "lr", "dead", "u", "ur", "x"], f"FROM {rows.side}")
    return [(row[: len(key)], rows.decode_entry(row[len(key) :])) for row in found]


def logical_rows(rows: Rows) -> list[tuple[Key, RowState]]:
    """All living rows with versions and values, the hidden ones too; one without values is left out."""
    found = [(key, rows.state(key)[0]) for key, state in stored_versions(rows) if state.alive]
    return [(key, state) for key, state in found if state is not None]


def pending_keys(node: Node, rows: Rows) -> set[Key]:
    """Keys that the log mentions and the fold has not seen; for a table without a key their names."""
    width, number = len(rows.table.key), rows.captured.number
    columns = [f"k{i + 1}" for i in range(width)]
    rest = f"FROM {LOG} WHERE seq > {node.replica.progress.folded_seq} AND top / 8 = {number}"
    keys = set(select(node.replica.db, columns, rest))
    if not rows.table.keyless:
        return {rows.table.same_key(key) for key in keys}
    named = f"SELECT run, number FROM {rows.side} WHERE k1 = ?"
    return {tuple(found) for key in keys for found in node.replica.db.execute(named, key)}


def living(node: Node, table: str) -> dict[Key, RowState]:
    """Versions of the living rows; a row without an entry has the versions (0, 0)."""
    captured = node.replica.catalog.named(table)
    assert captured is not None
    rows = node.replica.rows_of(captured)
    found = {rows.table.same_key(k): s for k, s in stored_versions(rows) if s.alive and s.newest().clock}
    return found
