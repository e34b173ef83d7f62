"""Any place that fsspec knows as a store: SFTP, WebDAV, SMB, Google Cloud Storage, Azure and others."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from replicated_sqlite_agent.errors import ConfigurationError
from replicated_sqlite_agent.snapshots.stores.base import (
    PIECE_BYTES,
    Entry,
    Moved,
    ObjectAbsentError,
    ObjectExistsError,
    StoreError,
)

_PARTIAL: Final = ".partial-"


class Remote:
    """Implements `Blocking` on a folder behind a URL. Raises ConfigurationError if a package for it is missing."""

    def __init__(self, url: str) -> None:
        self._files, self._folder = _open(url)
        self.place = url.rstrip("/")

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def put_file(self, name: str, source: Path, moved: Moved) -> None:
        """See `Store`."""
        with self._explained(f"{name} cannot be written"), source.open("rb") as plain, self._new(name) as out:
            while piece := plain.read(PIECE_BYTES):
                out.write(piece)
                moved(len(piece))

    def put_bytes(self, name: str, data: bytes) -> None:
        """See `Store`."""
        with self._explained(f"{name} cannot be written"), self._new(name) as out:
            out.write(data)

    @contextmanager
    def _new(self, name: str) -> Iterator[Any]:
        """A file that takes its name when it is whole: few protocols make a file appear whole by themselves."""
        target = self._at(name)
        partial = f"{target}{_PARTIAL}{secrets.token_hex(6)}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        try:
            with self._files.open(partial, "wb", block_size=PIECE_BYTES * 8) as out:
                yield out
            if self._files.exists(target):
                # Some protocols do not rename onto a file that is there.
                self._files.rm_file(target)
            self._files.mv(partial, target)
        except BaseException:
            with suppress(Exception):
                self._files.rm_file(partial)
            raise

    def put_new(self, name: str, data: bytes) -> None:
        """See `Store`. Where the protocol cannot do it in one step, looking before and after stands in."""
        with self._explained(f"{name} cannot be written"):
            self._files.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)
            self._files.invalidate_cache()
            taken = bool(self._files.exists(self._at(name)))
            try:
                if not taken:
                    self._files.pipe_file(self._at(name), data, mode="create")
            except FileExistsError:
                taken = True
            if taken:
                raise ObjectExistsError(f"{self.place} already holds {name}")
        if self.get_bytes(name) != data:
            raise ObjectExistsError(f"{self.place} already holds {name}, written by another at the same moment")

    def get_file(self, name: str, target: Path, moved: Moved) -> None:
        """See `Store`."""
        with self._explained(f"{name} cannot be read"):
            stored = self._files.open(self._at(name), "rb", block_size=PIECE_BYTES)
            with stored, target.open("wb") as out:
                while piece := stored.read(PIECE_BYTES):
                    out.write(piece)
                    moved(len(piece))

    def get_bytes(self, name: str) -> bytes:
        """See `Store`."""
        with self._explained(f"{name} cannot be read"):
            data: bytes = self._files.cat_file(self._at(name))
            return data

    def find(self, prefix: str) -> list[Entry]:
        """See `Store`."""
        entries = (Entry(name, int(about["size"] or 0)) for name, about in self._found(prefix) if _PARTIAL not in name)
        return sorted(entries, key=lambda entry: entry.name)

    def _found(self, prefix: str) -> list[tuple[str, dict[str, Any]]]:
        with self._explained("it cannot be listed"):
            self._files.invalidate_cache()
            start = self._at(prefix.rpartition("/")[0]).rstrip("/")
            try:
                found = self._files.find(start, detail=True)
            except FileNotFoundError:
                return []
            top = self._folder.lstrip("/") + "/"
            named = ((path.lstrip("/").removeprefix(top), about) for path, about in found.items())
            return [(name, about) for name, about in named if name.startswith(prefix)]

    def delete(self, name: str) -> None:
        """See `Store`."""
        with self._explained(f"{name} cannot be removed"), suppress(FileNotFoundError):
            self._files.rm_file(self._at(name))

    def sweep(self, older_than_s: float) -> int:
        """See `Store`. Files without a known time stay."""
        swept = 0
        for name, about in self._found(""):
            if _PARTIAL in name and _is_older(about.get("mtime") or about.get("created"), older_than_s):
                self.delete(name)
                swept += 1
        return swept

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Each protocol has its own errors, which only their packages know: all but ours become a StoreError."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise ObjectAbsentError(f"{self.place}: {what}: it is not there") from error
        except Exception as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            raise StoreError(f"{self.place}: {what}: {reason}") from error


def _is_older(changed: object, seconds: float) -> bool:
    """Whether a file was changed at least so long ago; protocols tell the time in different forms."""
    if isinstance(changed, (int, float)):
        changed = datetime.fromtimestamp(changed, UTC)
    if not isinstance(changed, datetime):
        return False
    moment = changed if changed.tzinfo is not None else changed.replace(tzinfo=UTC)
    return datetime.now(UTC) - moment >= timedelta(seconds=seconds)


def _open(url: str) -> tuple[Any, str]:
    try:
        import fsspec.core
    except ImportError as error:
        raise ConfigurationError(
            f"{url}: the package fsspec is not installed; run 'pip install fsspec' beside the agent"
        ) from error
    try:
        files, folder = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        raise ConfigurationError(f"{url}: a package is missing beside the agent: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"{url}: {error}; give a URL such as 'sftp://host/path'") from error
    except Exception as error:  # whatever a protocol raises when it cannot connect
        raise StoreError(f"{url} cannot be reached: {' '.join(str(error).split())}") from error
    return files, str(folder).rstrip("/")
