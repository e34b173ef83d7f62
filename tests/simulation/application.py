"""The application of the simulation: plain `sqlite3` on the file, with every way to write that SQLite has.

It knows nothing of replication. Its triggers read the simulated wall clock, because this connection's ``julianday`` is
ours; everything else is what the agent installed.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

from replicated_sqlite_agent.changes import RawText, Value

NODES_MAX = 6
"""Rows of the account tables: each node moves money only within the row of its own number."""

SCHEMA = f"""
CREATE TABLE kv(g TEXT, k TEXT, a, b, PRIMARY KEY(g, k)) WITHOUT ROWID;
CREATE TABLE "a b"("group" INTEGER PRIMARY KEY, "x""y", v TEXT);
CREATE TABLE doc(id INTEGER PRIMARY KEY, a TEXT COLLATE NOCASE, b, c);
CREATE TABLE tag(name TEXT COLLATE NOCASE NOT NULL PRIMARY KEY, v);
CREATE TABLE mix(k NOT NULL, l NOT NULL, v, PRIMARY KEY(k, l)) WITHOUT ROWID;
CREATE TABLE usr(id INTEGER PRIMARY KEY, email TEXT UNIQUE, nick TEXT COLLATE NOCASE UNIQUE, v);
CREATE TABLE job(id TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, queue, state, ref);
CREATE UNIQUE INDEX job_active ON job(queue) WHERE state = 'active';
CREATE UNIQUE INDEX job_ref ON job(lower(ref), state);
CREATE TABLE par(id INTEGER PRIMARY KEY, v);
CREATE TABLE chd(id INTEGER PRIMARY KEY, pid REFERENCES par(id) ON DELETE CASCADE ON UPDATE CASCADE, v);
CREATE TABLE note(a, b);
CREATE TABLE art(id INTEGER PRIMARY KEY, title, body);
CREATE VIRTUAL TABLE art_fts USING fts5(title, body, content='art', content_rowid='id');
CREATE TRIGGER art_ai AFTER INSERT ON art BEGIN
  INSERT INTO art_fts(rowid, title, body) VALUES (NEW.id, NEW.title, NEW.body);
END;
CREATE TRIGGER art_ad AFTER DELETE ON art BEGIN
  INSERT INTO art_fts(art_fts, rowid, title, body) VALUES ('delete', OLD.id, OLD.title, OLD.body);
END;
CREATE TRIGGER art_au AFTER UPDATE ON art BEGIN
  INSERT INTO art_fts(art_fts, rowid, title, body) VALUES ('delete', OLD.id, OLD.title, OLD.body);
  INSERT INTO art_fts(rowid, title, body) VALUES (NEW.id, NEW.title, NEW.body);
END;
CREATE TABLE debit(id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
CREATE TABLE credit(id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
INSERT INTO kv VALUES ('x', '0', 'founded', 'founded'), ('x', '1', NULL, NULL);
INSERT INTO "a b" VALUES (1, 'founded', 'founded');
INSERT INTO doc VALUES (1, 'founded', 2, NULL);
INSERT INTO usr VALUES (0, 'e0', 'n0', 'founded');
INSERT INTO par VALUES (1, 'founded'), (2, 'founded');
INSERT INTO chd VALUES (1, 1, 'founded');
INSERT INTO note VALUES (-1, 'founded'), (-2, 'founded');
INSERT INTO art VALUES (1, 'word founded', 'body');
WITH RECURSIVE i(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM i WHERE n < {NODES_MAX - 1})
INSERT INTO debit SELECT n, 100 FROM i;
INSERT INTO credit SELECT id, 100 FROM debit;
"""

TABLES = ("kv", "a b", "doc", "tag", "mix", "usr", "job", "par", "chd", "note", "art", "debit", "credit")
BY_COLUMN = ("doc", "usr", "kv", "job", "art", "tag", "mix")
"""Tables that some seeds merge column by column."""

_ANY_CONFLICT = ("", "", "", "OR REPLACE ", "OR IGNORE ", "OR FAIL ", "OR ROLLBACK ")


class ChangedItsMindError(Exception):
    """The application rolls its transaction back."""


class Application:
    """One application beside one replica."""

    def __init__(self, path: Path, number: int, chance: random.Random, wall_ms: Callable[[], int]) -> None:
        self.number, self._chance, self._count = number, chance, 0
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.create_function("julianday", 1, lambda _: 2440587.5 + (wall_ms() + 0.5) / 86_400_000)
        self.db.execute("PRAGMA synchronous = OFF")
        self.inserted: dict[int, set[object]] = {}
        """Of the table without a key: unique value of the row -> every second value committed there."""
        self.deleted: set[int] = set()
        self._inserting: dict[int, set[object]] = {}
        self._deleting: set[int] = set()
        self.column_added = False

    # ---- transactions ----------------------------------------------------------------------------------------------

    def transaction(self) -> str:
        """One transaction of a few statements, committed or not; returns what happened, for the history."""
        chance = self._chance
        told: list[str] = []
        self.db.execute(f"PRAGMA recursive_triggers = {chance.randint(0, 1)}")
        self.db.execute("PRAGMA foreign_keys = 1")
        self._inserting, self._deleting = {}, set()
        self.db.execute("BEGIN IMMEDIATE")
        try:
            for _ in range(chance.choice((1, 1, 2, 3, 6))):
                self._statement(told)
                if not self.db.in_transaction:
                    return f"{'; '.join(told)} -- rolled back by SQLite"
            self._hesitate()
        except ChangedItsMindError:
            self.db.execute("ROLLBACK")
            return f"{'; '.join(told)} -- rolled back"
        if chance.random() < 0.1:
            self.db.execute("PRAGMA defer_foreign_keys = 1")
        self.db.execute("COMMIT")
        for row, values in self._inserting.items():
            self.inserted.setdefault(row, set()).update(values)
        self.deleted |= self._deleting
        return "; ".join(told)

    def _hesitate(self) -> None:
        if self._chance.random() < 0.08:
            raise ChangedItsMindError

    def _statement(self, told: list[str]) -> None:
        """One statement, or some in a savepoint that is kept or undone."""
        nested = self._chance.random() < 0.15
        before = ({k: set(v) for k, v in self._inserting.items()}, set(self._deleting))
        if nested:
            self.db.execute("SAVEPOINT s")
        for _ in range(2 if nested else 1):
            try:
                self._chance.choice(_OPERATIONS)(self, told)
            except sqlite3.IntegrityError as error:
                told.append(f"({error})")
                if not self.db.in_transaction:
                    return
                if self._chance.random() < 0.3:
                    raise ChangedItsMindError from error
        if nested and self._chance.random() < 0.4:
            self.db.execute("ROLLBACK TO s")
            told.append("ROLLBACK TO s")
            self._inserting, self._deleting = before
        if nested:
            self.db.execute("RELEASE s")

    def _run(self, told: list[str], sql: str, *values: Value) -> sqlite3.Cursor:
        parts = sql.split("?")
        marks = ["CAST(? AS TEXT)" if isinstance(v, RawText) else "?" for v in values]
        told.append(f"{sql} {list(values)}" if values else sql)
        text = "".join(part + mark for part, mark in zip(parts, [*marks, ""], strict=True))
        return self.db.execute(text, [v.data if isinstance(v, RawText) else v for v in values])

    def _value(self) -> Value:
        """A value of any storage class; all but a few differ from every other value of the history."""
        self._count += 1
        unique = self._count * NODES_MAX + self.number
        kinds: tuple[Value, ...] = (
            unique,
            f"v{unique}",
            f"V{unique}",
            unique + 0.5,
            float(unique),
            f"b{unique}".encode(),
            RawText(b"\xff\xfe%d" % unique),
            2**63 - 1 - unique,
            -(2**63) + unique,
            f"nul\0{unique}",
            "ünï" * 40 + str(unique),
            None,
            b"",
            "",
            float("inf"),
            "same",
        )
        return self._chance.choice(kinds)

    # ---- what it writes --------------------------------------------------------------------------------------------

    def _clause(self) -> str:
        return self._chance.choice(_ANY_CONFLICT)

    def _kv(self, told: list[str]) -> None:
        chance, clause = self._chance, self._clause()
        g, k, column = chance.choice("xy"), str(chance.randint(0, 3)), chance.choice("ab")
        match chance.randint(0, 6):
            case 0 | 1:
                self._run(
                    told, f"INSERT {clause}INTO kv(g, k, a, b) VALUES (?, ?, ?, ?)", g, k, self._value(), self._value()
                )
            case 2 | 3:
                self._run(told, f"UPDATE kv SET {column} = ? WHERE g = ? AND k = ?", self._value(), g, k)
            case 4:
                self._run(told, "DELETE FROM kv WHERE k = ?", k)
            case 5:
                self._run(told, f"UPDATE {clause}kv SET k = ? WHERE k = ?", str(chance.randint(0, 3)), k)
            case _:
                upsert = "ON CONFLICT(g, k) DO UPDATE SET a = excluded.a WHERE kv.b IS NOT NULL"
                self._run(
                    told, f"INSERT INTO kv(g, k, a, b) VALUES (?, ?, ?, ?) {upsert}", g, k, self._value(), self._value()
                )

    def _quoted(self, told: list[str]) -> None:
        chance, clause, key = self._chance, self._clause(), self._chance.randint(1, 5)
        match chance.randint(0, 6):
            case 0 | 1:
                sql = f'INSERT {clause}INTO "a b"("group", "x""y", v) VALUES (?, ?, ?)'
                self._run(told, sql, chance.choice((key, key, None)), self._value(), self._value())
            case 2 | 3:
                self._run(told, 'UPDATE "a b" SET "x""y" = ? WHERE "group" = ?', self._value(), key)
            case 4:
                self._run(told, 'UPDATE "a b" SET "x""y" = ?, v = -0.0 WHERE "group" > ?', -0.0, key)
            case 5:
                self._run(told, 'DELETE FROM "a b" WHERE "group" = ?', key)
            case _:
                self._run(told, f'UPDATE {clause}"a b" SET rowid = ? WHERE "group" = ?', chance.randint(1, 5), key)

    def _bulk(self, told: list[str]) -> None:
        """Enough rows that groups travel as SQLite images."""
        chance, first = self._chance, self._chance.choice((10, 10, 40))
        last = first + chance.choice((30, 70, 90))
        rows = f"WITH RECURSIVE i(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM i WHERE n < {last})"
        match chance.randint(0, 5):
            case 0:
                sql = f'{rows} INSERT OR REPLACE INTO "a b" SELECT n, ?, n FROM i WHERE true'
            case 1:
                sql = f"{rows} INSERT OR IGNORE INTO kv(g, k, a, b) SELECT 'x', n, ?, n FROM i WHERE true"
            case 2:
                sql = f'UPDATE "a b" SET v = ? WHERE "group" BETWEEN {first} AND {last}'
            case 3:
                sql = f"{rows} INSERT OR REPLACE INTO usr SELECT n, 'e' || (n / 2), NULL, ? FROM i WHERE true"
            case 4:
                columns = "ON CONFLICT(id) DO UPDATE SET title = excluded.title, body = excluded.body"
                sql = f"{rows} INSERT INTO art SELECT n, 'word' || (n % 7), ? FROM i WHERE true {columns}"
            case _:
                sql = f"DELETE FROM usr WHERE id BETWEEN {first + 5} AND {last} AND v IS NOT ?"
        self._run(told, sql, f"bulk{self._count}.{self.number}")
        self._count += 1

    def _doc(self, told: list[str]) -> None:
        chance, clause = self._chance, self._clause()
        key, column = chance.randint(1, 3), chance.choice("abc")
        match chance.randint(0, 6):
            case 0:
                sql = f"INSERT {clause}INTO doc(id, a, b, c) VALUES (?, ?, ?, ?)"
                self._run(told, sql, key, self._value(), self._value(), self._value())
            case 1 | 2:
                self._run(told, f"UPDATE doc SET {column} = ? WHERE id = ?", self._value(), key)
            case 3:
                self._run(told, f"UPDATE doc SET a = {chance.choice(('upper', 'lower'))}(a), b = b WHERE id = ?", key)
            case 4:
                number = chance.choice(("1", "1.0", "'1'", "x'31'"))
                self._run(told, f"UPDATE doc SET {column} = {number} WHERE id = ?", key)
            case 5:
                self._run(told, "DELETE FROM doc WHERE id = ?", key)
            case _:
                upsert = "ON CONFLICT(id) DO UPDATE SET a = excluded.a"
                values = (key, self._value(), self._value(), self._value())
                self._run(told, f"INSERT INTO doc(id, a, b, c) VALUES (?, ?, ?, ?) {upsert}", *values)

    def _tag(self, told: list[str]) -> None:
        chance, clause, name = self._chance, self._clause(), self._chance.choice(("a", "A", "b", "B", "c", "ä", "Ä"))
        match chance.randint(0, 4):
            case 0 | 1:
                self._run(told, f"INSERT {clause}INTO tag VALUES (?, ?)", name, self._value())
            case 2:
                self._run(told, "UPDATE tag SET v = ? WHERE name = ?", self._value(), name)
            case 3:
                self._run(
                    told, f"UPDATE {clause}tag SET name = ? WHERE name = ?", chance.choice((name.swapcase(), "c")), name
                )
            case _:
                self._run(told, "DELETE FROM tag WHERE name = ?", name)

    def _mix(self, told: list[str]) -> None:
        """A key without affinity: 1, 1.0, '1' and x'31' meet in it, and text that is not UTF-8."""
        chance, clause = self._chance, self._clause()
        first, second = (chance.choice((1, 1.0, "1", b"1", RawText(b"\xff"), 0.0, -0.0)) for _ in range(2))
        match chance.randint(0, 4):
            case 0 | 1:
                self._run(told, f"INSERT {clause}INTO mix VALUES (?, ?, ?)", first, second, self._value())
            case 2:
                self._run(told, "UPDATE mix SET v = ? WHERE k = ?", self._value(), first)
            case 3:
                self._run(told, f"UPDATE {clause}mix SET k = ? WHERE l = ?", first, second)
            case _:
                self._run(told, "DELETE FROM mix WHERE k = ? AND l = ?", first, second)

    def _usr(self, told: list[str]) -> None:
        chance, clause, key = self._chance, self._clause(), self._chance.randint(-1, 5)
        email, nick = chance.choice((None, "e0", "e1", "e2")), chance.choice((None, None, "n0", "N0", "n1"))
        insert = "INTO usr(id, email, nick, v) VALUES (?, ?, ?, ?)"
        match chance.randint(0, 9):
            case 0 | 1 | 2:
                self._run(told, f"INSERT {clause}{insert}", chance.choice((key, key, None)), email, nick, self._value())
            case 3:
                upsert = "ON CONFLICT(email) DO UPDATE SET v = excluded.v, nick = excluded.nick"
                self._run(told, f"INSERT {insert} {upsert}", key, email, nick, self._value())
            case 4:
                self._run(told, f"INSERT {insert} ON CONFLICT DO NOTHING", key, email, nick, self._value())
            case 5:
                self._run(told, f"UPDATE {clause}usr SET email = ? WHERE id = ?", email, key)
            case 6:
                self._run(told, f"UPDATE {clause}usr SET nick = ? WHERE id = ?", nick, key)
            case 7:
                self._run(told, "UPDATE usr SET v = ? WHERE id = ?", self._value(), key)
            case 8:
                self._run(told, "DELETE FROM usr WHERE id = ? OR email = ?", key, email)
            case _:
                self._run(told, f"UPDATE {clause}usr SET id = ? WHERE id = ?", chance.randint(-1, 5), key)

    def _job(self, told: list[str]) -> None:
        """UNIQUE by a partial index and by an expression."""
        chance, clause, key = self._chance, self._clause(), chance_text(self._chance, "jJklm")
        state, ref = chance.choice(("active", "active", "done", None)), chance.choice((None, "r", "R", "s"))
        match chance.randint(0, 5):
            case 0 | 1:
                values = (key, chance.randint(1, 2), state, ref)
                self._run(told, f"INSERT {clause}INTO job VALUES (?, ?, ?, ?)", *values)
            case 2:
                self._run(told, f"UPDATE {clause}job SET state = ? WHERE id = ?", state, key)
            case 3:
                self._run(told, f"UPDATE {clause}job SET ref = ?, queue = 1 WHERE id = ?", ref, key)
            case 4:
                self._run(told, f"UPDATE {clause}job SET id = ? WHERE id = ?", chance_text(chance, "jklm"), key)
            case _:
                self._run(told, "DELETE FROM job WHERE id = ?", key)

    def _family(self, told: list[str]) -> None:
        """Parents and children: cascades are written by SQLite itself."""
        chance, clause, key = self._chance, self._clause(), self._chance.randint(1, 4)
        match chance.randint(0, 6):
            case 0 | 1:
                self._run(told, f"INSERT {clause}INTO par VALUES (?, ?)", key, self._value())
            case 2:
                self._run(told, "DELETE FROM par WHERE id = ?", key)
            case 3:
                self._run(told, "UPDATE OR IGNORE par SET id = ? WHERE id = ?", chance.randint(1, 5), key)
            case 4 | 5:
                self._run(told, f"INSERT {clause}INTO chd VALUES (?, ?, ?)", chance.randint(1, 6), key, self._value())
            case _:
                self._run(told, "UPDATE chd SET v = ? WHERE id = ?", self._value(), chance.randint(1, 6))

    def _note(self, told: list[str]) -> None:
        """The table without a key: a holds what names the row."""
        chance, value = self._chance, self._value()
        rows = [row[0] for row in self.db.execute("SELECT a FROM note ORDER BY rowid")]
        row = chance.choice(rows) if rows else -1
        match chance.randint(0, 5):
            case 0 | 1 | 2:
                self._count += 1
                unique = self._count * NODES_MAX + self.number
                self._inserting.setdefault(unique, set()).add(value)
                self._run(told, "INSERT INTO note VALUES (?, ?)", unique, value)
            case 3 | 4:
                self._inserting.setdefault(row, set()).add(value)
                self._run(told, "UPDATE note SET b = ? WHERE a = ?", value, row)
            case _:
                self._deleting.add(row)
                self._run(told, "DELETE FROM note WHERE a = ?", row)

    def _art(self, told: list[str]) -> None:
        chance, clause, key = self._chance, self._clause(), self._chance.randint(1, 4)
        # OR REPLACE runs no delete trigger unless recursive_triggers is on: the index would be wrong without any agent.
        clause = "" if "REPLACE" in clause else clause
        word = chance.choice(("red", "green", "blue"))
        match chance.randint(0, 4):
            case 0 | 1:
                self._run(
                    told, f"INSERT {clause}INTO art VALUES (?, ?, ?)", key, f"word {word}", f"{word} {self.number}"
                )
            case 2:
                self._run(
                    told, f"UPDATE art SET {chance.choice(('title', 'body'))} = ? WHERE id = ?", f"word {word}", key
                )
            case 3:
                self._run(told, f"UPDATE {clause}art SET id = ? WHERE id = ?", chance.randint(1, 4), key)
            case _:
                self._run(told, "DELETE FROM art WHERE id = ?", key)

    def _transfer(self, told: list[str]) -> None:
        """The sum of the two rows of this node is the same in every state that ever was."""
        amount = self._chance.randint(1, 9)
        first, second = self._chance.sample(("debit", "credit"), 2)
        self.db.execute("SAVEPOINT transfer")
        self._run(told, f"UPDATE {first} SET n = n - {amount} WHERE id = {self.number}")
        self._run(told, f"UPDATE {second} SET n = n + {amount} WHERE id = {self.number}")
        self.db.execute("RELEASE transfer")

    def vacuum(self) -> None:
        """Rowids of tables without a key get other numbers."""
        self.db.execute("VACUUM")

    def add_column(self) -> None:
        """A step of the schema that other replicas take at another time."""
        if not self.column_added:
            self.column_added = True
            self.db.execute("ALTER TABLE doc ADD COLUMN d")
            self.db.execute("ALTER TABLE kv ADD COLUMN c DEFAULT 'd'")


def chance_text(chance: random.Random, letters: str) -> str:
    """One of these letters."""
    return chance.choice(letters)


_OPERATIONS = (
    Application._kv,
    Application._kv,
    Application._quoted,
    Application._doc,
    Application._doc,
    Application._tag,
    Application._mix,
    Application._usr,
    Application._usr,
    Application._usr,
    Application._job,
    Application._job,
    Application._family,
    Application._family,
    Application._note,
    Application._art,
    Application._transfer,
    Application._transfer,
    Application._bulk,
)
