"""A folder as a store. A file appears under its name when its bytes are on the disk, never before."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from replicated_sqlite_agent.snapshots.stores.base import (
    PIECE_BYTES,
    Entry,
    Moved,
    ObjectAbsentError,
    ObjectExistsError,
    StoreError,
)

_PARTIAL: Final = ".partial-"
"""Mark in the names of files that are being written; they are no objects."""


class Directory:
    """Implements `Blocking` on a folder, which is made when something is first written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self.place = self._folder.as_uri()

    def put_file(self, name: str, source: Path, moved: Moved) -> None:
        """See `Store`."""

        def copy(out: IO[bytes]) -> None:
            with source.open("rb") as plain:
                while piece := plain.read(PIECE_BYTES):
                    out.write(piece)
                    moved(len(piece))

        self._write(name, copy, os.replace)

    def put_bytes(self, name: str, data: bytes) -> None:
        """See `Store`."""
        self._write(name, lambda out: _write_all(out, data), os.replace)

    def put_new(self, name: str, data: bytes) -> None:
        """See `Store`."""
        try:
            self._write(name, lambda out: _write_all(out, data), _link_new)
        except FileExistsError as error:
            raise ObjectExistsError(f"{self.place} already holds {name}") from error

    def _write(self, name: str, fill: Callable[[IO[bytes]], None], publish: Callable[[Path, Path], None]) -> None:
        target = self._folder / name
        partial = target.with_name(f"{target.name}{_PARTIAL}{secrets.token_hex(6)}")
        with self._explained(f"{name} cannot be written"):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("xb") as out:
                    fill(out)
                    out.flush()
                    os.fsync(out.fileno())
                publish(partial, target)
            finally:
                partial.unlink(missing_ok=True)
            _sync_folders(target.parent, self._folder)

    def get_file(self, name: str, target: Path, moved: Moved) -> None:
        """See `Store`."""
        with self._open(name) as stored, target.open("wb") as out:
            while piece := stored.read(PIECE_BYTES):
                out.write(piece)
                moved(len(piece))

    def get_bytes(self, name: str) -> bytes:
        """See `Store`."""
        with self._open(name) as stored:
            return stored.read()

    def _open(self, name: str) -> IO[bytes]:
        with self._explained(f"{name} cannot be read"):
            try:
                return (self._folder / name).open("rb")
            except FileNotFoundError as error:
                raise ObjectAbsentError(f"{self.place} holds no {name}") from error

    def find(self, prefix: str) -> list[Entry]:
        """See `Store`."""
        with self._explained("it cannot be listed"):
            found = ((path, path.relative_to(self._folder).as_posix()) for path in self._files(prefix))
            return sorted(
                (Entry(name, path.stat().st_size) for path, name in found if name.startswith(prefix)),
                key=lambda entry: entry.name,
            )

    def _files(self, prefix: str, *, partial: bool = False) -> Iterator[Path]:
        start = self._folder / prefix.rpartition("/")[0]
        for folder, _, files in os.walk(start):
            yield from (Path(folder, file) for file in files if (_PARTIAL in file) == partial)

    def delete(self, name: str) -> None:
        """See `Store`."""
        with self._explained(f"{name} cannot be removed"):
            path = self._folder / name
            path.unlink(missing_ok=True)
            for folder in path.relative_to(self._folder).parents:
                try:
                    (self._folder / folder).rmdir()
                except OSError:
                    break  # not empty, or not there: both are well

    def sweep(self, older_than_s: float) -> int:
        """See `Store`."""
        with self._explained("it cannot be cleaned"):
            old = [p for p in self._files("", partial=True) if time.time() - p.stat().st_mtime >= older_than_s]
            for path in old:
                path.unlink(missing_ok=True)
            return len(old)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            raise StoreError(f"{self.place}: {what}: {error.strerror or error}") from error


def _write_all(out: IO[bytes], data: bytes) -> None:
    out.write(data)


def _link_new(partial: Path, target: Path) -> None:
    """Give the file its name unless another has it. Raises FileExistsError."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: the name is taken first, a reader may then meet an empty file for a moment.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        os.replace(partial, target)


def _sync_folders(folder: Path, top: Path) -> None:
    """Make the new names durable, in every folder that may be new."""
    while True:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if folder in (top, folder.parent):
            return
        folder = folder.parent
