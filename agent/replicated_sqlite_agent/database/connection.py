"""Connections to the user's file and the one thread that writes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import apsw

from replicated_sqlite_agent.errors import FileUnusableError

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_S = 30.0
"""How long the agent waits for the application's transaction before it reports that the file is busy."""
BUSY_STEP_S = 0.001

CANNOT_WRITE = (apsw.FullError, apsw.IOError, apsw.BusyError, apsw.LockedError, apsw.CantOpenError, OSError)
"""What a full disk, a failing volume or an application that keeps the lock raises: trying again later is right."""


def all_rows(db: apsw.Connection, sql: str, values: tuple[object, ...] = ()) -> list[Any]:
    """All rows of a statement whose column types the caller knows."""
    return db.execute(sql, values).fetchall()


def scalar(db: apsw.Connection, sql: str, values: tuple[object, ...] = ()) -> Any:
    """The first column of the first row, None if there is none."""
    return db.execute(sql, values).get


def connect(path: Path) -> apsw.Connection:
    """Open the file as the agent uses it: the application's triggers and foreign-key actions do not run.

    What the user's triggers and cascades do arrives as rows of its own. CHECK never refuses a merged row.
    """
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    with _closed_on_error(db):
        db.set_busy_handler(_patient)
        db.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        if path.with_name(path.name + "-wal").exists():
            keep_wal(db)
        db.pragma("foreign_keys", False)
        db.pragma("ignore_check_constraints", True)
        db.pragma("recursive_triggers", False)
        # Positions commit with the rows they count: a commit lost with the power is taken from the stream again.
        db.pragma("synchronous", "NORMAL")
    return db


def keep_wal(db: apsw.Connection) -> None:
    """Closing this connection never truncates the WAL: that belongs to the application, not to a side process.

    Without it a connection that alone has opened a file, and has written nothing, leaves nothing beside the file.
    """
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)


@contextmanager
def _closed_on_error(db: apsw.Connection) -> Iterator[None]:
    """Close it if the block fails: an exception would keep it open, and with it what SQLite puts beside the file."""
    try:
        yield
    except BaseException:
        db.close()
        raise


def _patient(attempt: int) -> bool:
    """Busy handler: SQLite's own one soon sleeps 100 ms at a time, far longer than an application holds its lock."""
    time.sleep(BUSY_STEP_S)
    return attempt * BUSY_STEP_S < BUSY_TIMEOUT_S


def open_database(path: Path) -> apsw.Connection:
    """`connect`, after checking that the file is a database that can be written.

    Raises FileUnusableError with the reason; the file is not changed, and nothing new lies beside it.
    """
    try:
        db = connect(path)
        with _closed_on_error(db):
            if db.readonly("main"):
                raise FileUnusableError(
                    f"{path} cannot be written: give the agent the application's user and a writable volume"
                )
            db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            keep_wal(db)
    except apsw.NotADBError as error:
        raise FileUnusableError(
            f"{path} is not an SQLite database (or is encrypted): set `database` to the application's file"
        ) from error
    except apsw.CorruptError as error:
        raise FileUnusableError(
            f"{path} is damaged ({error}): restore it from a snapshot or repair it first"
        ) from error
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.IOError) as error:
        raise FileUnusableError(f"{path} cannot be opened for writing: {error}") from error
    return db


def check_whole(db: apsw.Connection, path: Path) -> None:
    """``quick_check`` of a file that is to be replicated for the first time: damage must not spread."""
    found = db.execute("PRAGMA quick_check(1)").fetchall()
    if found != [("ok",)]:
        reason = " ".join(str(found[0][0]).split())
        raise FileUnusableError(f"{path} is damaged ({reason}): restore it from a backup or repair it first")


class Worker:
    """One thread that runs callables in order; a connection used only there needs no lock."""

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it on the thread and wait for the result. It is finished even if the waiting is cancelled."""
        return await asyncio.wrap_future(self._threads.submit(function, *args, **kwargs))

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        self._threads.shutdown(wait=True)


@contextmanager
def write_transaction(db: apsw.Connection, held: Callable[[float], None] | None = None) -> Iterator[None]:
    """``BEGIN IMMEDIATE`` … ``COMMIT``; rolled back on any exception. ``held`` gets the seconds of the write lock."""
    db.execute("BEGIN IMMEDIATE")
    began = time.perf_counter()
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    finally:
        if held is not None:
            held(time.perf_counter() - began)


@contextmanager
def read_transaction(db: apsw.Connection) -> Iterator[None]:
    """One snapshot for several reads. Keep it short: a long one slows every commit of the application."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
