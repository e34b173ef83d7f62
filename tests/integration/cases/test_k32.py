"""K32: the disk of one replica is full, and freed later."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.cluster import Agent, Cluster, RefusedError, query, until

DISK_BYTES = 32 << 20
BODY_BYTES = 256 * 1024
ROWS = 64
SCHEMA = "CREATE TABLE files (id TEXT PRIMARY KEY, body BLOB);"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of `DISK_BYTES` at `folder`; False where we may not mount one."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """Write until the file system is full."""
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(file, b"\0" * size)
        with pytest.raises(OSError) as full:  # noqa: PT011 - the error number is checked below
            os.write(file, b"\0")
        assert full.value.errno == errno.ENOSPC
    finally:
        os.close(file)


def insert_files(cluster: Cluster, number: int, prefix: str) -> dict[str, bytes]:
    """An application inserts `ROWS` random bodies, one transaction each; what was acknowledged."""
    chance = random.Random(prefix)
    bodies = {f"{prefix}-{n}": chance.randbytes(BODY_BYTES) for n in range(ROWS)}
    application = cluster.application(number)
    for key, body in bodies.items():
        application.execute("INSERT INTO files VALUES (?, ?)", key, body)
    return bodies


def test_a_replica_whose_disk_is_full_catches_up_when_there_is_room(tmp_path: Path) -> None:
    """The disk under one replica is filled to the last byte (where no file system may be mounted: its agent may write
    no file larger than now). Sixteen MiB arrive from node 0. The full replica says so, crashes not, loses nothing and
    does not hold up the others; its own application's failed write is SQLite's to refuse. Then there is room again.
    """
    home = tmp_path / "small"
    with small_disk(home) as mounted, Cluster(tmp_path, SCHEMA, homes={2: home}) as cluster:
        _, healthy, full = cluster.agents
        local = cluster.application(2)
        local.execute("INSERT INTO files VALUES ('before', x'00')")
        cluster.converge()
        ballast = home / "ballast"
        if mounted:
            fill(ballast)
        else:
            limit_file_size(full)
        failures = full.metric("rsqlite_apply_failures_total")

        bodies = insert_files(cluster, 0, "flood")
        assert healthy.wait(cluster.agents[0].position(), timeout=60), "the full replica holds up the others"
        until(
            lambda: full.metric("rsqlite_apply_failures_total") >= failures + 2,
            "the full replica tried and tried again",
        )
        assert query(full.database, "SELECT count(*) FROM files")[0][0] < ROWS, (
            "everything fitted: the disk was not full"
        )
        if mounted:
            with pytest.raises(RefusedError, match="full"):
                local.execute("INSERT INTO files VALUES ('refused', ?)", b"\0" * BODY_BYTES)

        if mounted:
            ballast.unlink()
        else:
            full.limit_file_size()
        local.execute("INSERT INTO files VALUES ('after', x'01')")
        contents = cluster.assert_converged()

        assert len(contents["files"]) == ROWS + 2
        assert dict(query(full.database, "SELECT id, body FROM files WHERE id LIKE 'flood%'")) == bodies
        assert full.is_running()
        assert cluster.total("rsqlite_dead_letters_total") == 0


def limit_file_size(agent: Agent) -> None:
    """Let the running agent write no file beyond the present size of the write-ahead log."""
    log = agent.database.with_name(agent.database.name + "-wal")
    agent.limit_file_size(max(log.stat().st_size, agent.database.stat().st_size))
