"""One agent per file: an advisory lock on a file of ours in the folder beside the database."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from replicated_sqlite_agent.errors import FileUnusableError, HeldByAnotherError


def agent_folder(database: Path) -> Path:
    """The folder beside the database in which the agent keeps what is not a table (lock, spool, embedded NATS)."""
    return database.with_name(database.name + ".rsqlite")


class FileLock:
    """Held while an agent runs on the database; the system releases it when the process ends, however it ends."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = agent_folder(database) / "lock"
        self._fd: int | None = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FileUnusableError(f"{self._path} cannot be created beside the database: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            self._fd = None
            raise HeldByAnotherError(
                f"another agent runs on {self._database}: stop it, or give this one a database of its own"
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def remove(self) -> None:
        """Remove the lock file and the folder if nothing else is in it."""
        self._path.unlink(missing_ok=True)
        try:
            self._path.parent.rmdir()
        except OSError:
            return
