"""From a store to a database file on disk, without any server: whole and verified, or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw

from replicated_sqlite_agent.database.connection import all_rows, write_transaction
from replicated_sqlite_agent.database.lock import FileLock
from replicated_sqlite_agent.database.own_tables import drop_own_objects
from replicated_sqlite_agent.errors import AgentError, ConfigurationError, FileUnusableError
from replicated_sqlite_agent.snapshots import copy
from replicated_sqlite_agent.snapshots.documents import Manifest
from replicated_sqlite_agent.snapshots.repository import Repository
from replicated_sqlite_agent.snapshots.stores.base import Moved, unobserved

_BESIDE = ("-wal", "-journal", "-shm")


@dataclass(frozen=True, slots=True)
class Wish:
    """What to restore, and how."""

    target: Path
    snapshot: str | None = None
    """By name; None: the newest usable one."""
    force: bool = False
    """Replace a file that is there; it is kept beside."""
    plain: bool = False
    """Take the agent's tables and triggers out: a file that no agent has ever seen."""
    identities: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of a wish. ``kept``: where the former file lies now."""

    manifest: Manifest
    kept: Path | None


def check_target(wish: Wish) -> None:
    """Raises ConfigurationError if a file is in the way and may not be replaced."""
    if wish.target.is_dir():
        raise ConfigurationError(f"{wish.target} is a folder; name the file to restore to")
    if wish.target.exists() and not wish.force:
        raise ConfigurationError(
            f"{wish.target} exists already and was left as it is: --force replaces it and keeps it beside under "
            "another name"
        )


async def restore(repository: Repository, manifest: Manifest, wish: Wish, moved: Moved = unobserved) -> Restored:
    """Fetch and check a snapshot, then rename it into place; until then the target is not touched.

    A transfer that was cut is gone on with by the next try. Raises AgentError with one sentence.
    """
    target = wish.target
    scratch = target.with_name(target.name + ".restoring")
    try:
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        with FileLock(target):
            check_target(wish)
            _check_space(manifest, target.parent)
            try:
                await repository.fetch(manifest, scratch, wish.identities, moved)
                await asyncio.to_thread(_finish, scratch, plain=wish.plain)
                kept = await asyncio.to_thread(put_into_place, scratch, target)
            finally:
                copy.discard(scratch)
    except OSError as error:
        await asyncio.to_thread(shutil.rmtree, scratch.with_name(scratch.name + ".parts"), ignore_errors=True)
        raise _explained(error, manifest, target) from error
    except apsw.FullError as error:
        raise _explained(OSError(errno.ENOSPC, str(error)), manifest, target) from error
    return Restored(manifest, kept)


def _explained(error: OSError, manifest: Manifest, target: Path) -> AgentError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _no_space(manifest, target.parent)
    return FileUnusableError(f"{target} cannot be written: {error.strerror or error}; nothing was replaced")


def _no_space(manifest: Manifest, folder: Path) -> AgentError:
    needed = (manifest.bytes + manifest.packed_bytes) >> 20
    return AgentError(
        f"there is not enough room in {folder} for snapshot {manifest.name}: it takes {manifest.bytes >> 20} MiB, and "
        f"{needed} MiB while it is unpacked; nothing was replaced"
    )


def _check_space(manifest: Manifest, folder: Path) -> None:
    if shutil.disk_usage(folder).free < manifest.bytes + manifest.packed_bytes:
        raise _no_space(manifest, folder)


def _finish(scratch: Path, *, plain: bool) -> None:
    """Check the file as SQLite sees it, and take the agent's traces out if asked for."""
    db = copy.open_copy(scratch)
    try:
        copy.check(db, scratch)
        if plain:
            with write_transaction(db):
                drop_own_objects(db)
        all_rows(db, "PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        db.close()
    for suffix in _BESIDE:
        scratch.with_name(scratch.name + suffix).unlink(missing_ok=True)
    _sync(scratch)


def put_into_place(scratch: Path, target: Path) -> Path | None:
    """Rename the new file into place; what lies there is kept under the returned name, with its WAL."""
    kept = _kept_name(target)
    moved = None
    for suffix in ("", *_BESIDE):
        # The database first: cut here, the next try finds its WAL alone and brings it to the right one.
        former = target.with_name(target.name + suffix)
        if former.exists():
            os.rename(former, kept.with_name(kept.name + suffix))
            moved = kept
    os.rename(scratch, target)
    _sync(target.parent)
    return moved


def _kept_name(target: Path) -> Path:
    """The first free name for the former file; its own one again if it has been moved without its WAL."""
    number = 1
    while True:
        kept = target.with_name(f"{target.name}.before-restore-{number}")
        following = target.with_name(f"{target.name}.before-restore-{number + 1}")
        if not kept.exists() or (not target.exists() and not following.exists()):
            return kept
        number += 1


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
