"""One agent per file: an advisory lock on a file of ours in the folder beside the database."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
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
        while self._fd is None:
            self._fd = self._try()
        return self

    def _try(self) -> int | None:
        """The locked file; None if its holder has just removed it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FileUnusableError(
                f"the agent cannot write in the folder of {self._database} ({error.strerror}): "
                "give it the application's user and a writable volume"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(self._path).st_ino == os.fstat(fd).st_ino:
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError as error:
            os.close(fd)
            raise HeldByAnotherError(
                f"another agent runs on {self._database}: stop it, or give this one a database of its own"
            ) from error
        os.close(fd)
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._fd is not None:
            # Removed while it is locked: whoever opened it meanwhile finds that it is no longer the file of this name.
            self._path.unlink(missing_ok=True)
            with suppress(OSError):
                self._path.parent.rmdir()
            os.close(self._fd)
            self._fd = None
