"""`rsqlite restore` and `rsqlite snapshots`: whole and verified, or one sentence and nothing changed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
import pytest

from integration.cluster import differences, dump, integrity, until
from integration.snapshots.proxy import FaultProxy
from integration.snapshots.taking import make_database, take
from integration.stores.seaweed import Seaweed
from replicated_sqlite_agent.database.lock import FileLock
from replicated_sqlite_agent.errors import AgentError
from replicated_sqlite_agent.settings import S3
from replicated_sqlite_agent.snapshots import age, packing
from replicated_sqlite_agent.snapshots.documents import Manifest
from replicated_sqlite_agent.snapshots.repository import Repository
from replicated_sqlite_agent.snapshots.restore import Wish, restore
from replicated_sqlite_agent.snapshots.stores.base import StoreError, Threaded
from replicated_sqlite_agent.snapshots.stores.directory import Directory
from replicated_sqlite_agent.snapshots.stores.s3 import S3Store

RSQLITE = str(Path(sys.executable).with_name("rsqlite"))
MIB = 1 << 20


def rsqlite(*arguments: object, **limits: int) -> subprocess.CompletedProcess[str]:
    """Run the command for people; `file_bytes` bounds each file that it writes."""

    def limit() -> None:
        if "file_bytes" in limits:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"], resource.RLIM_INFINITY))

    return subprocess.run(
        [RSQLITE, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, preexec_fn=limit
    )


def refused(done: subprocess.CompletedProcess[str], code: int, sentence: str) -> None:
    assert (code, "") == (done.returncode, done.stdout)
    [line] = done.stderr.splitlines()
    assert line.startswith("rsqlite: ")
    assert sentence in line


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "app" / "app.db"
    make_database(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def repository(folder: Path) -> Repository:
    return Repository(Threaded(Directory(folder)))


@pytest.fixture
def manifest(repository: Repository, database: Path) -> Manifest:
    return asyncio.run(take(repository, database))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut packed files into parts of 16 KiB, so that a small database has several."""
    monkeypatch.setattr(packing.pack, "__defaults__", ((), 16 * 1024))


def leftovers(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def test_a_snapshot_says_what_it_is(manifest: Manifest, database: Path, folder: Path) -> None:
    assert {"notes": 200, "tags": 4, "lines": 3} == {name: table.rows for name, table in manifest.tables.items()}
    assert all(table.digest for table in manifest.tables.values())
    assert ("ok", None, False) == (manifest.integrity, manifest.encryption, manifest.smaller)
    stored = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert [
        "cluster.json",
        f"snapshots/{manifest.name}/manifest.json",
        f"snapshots/{manifest.name}/part-00001",
    ] == stored
    document = json.loads((folder / "snapshots" / manifest.name / "manifest.json").read_text())
    assert {"version", "stream", "sequence", "vector", "horizon", "schema", "sha256", "parent"} <= document.keys()


@pytest.mark.usefixtures("small_parts")
def test_restore_gives_the_file_back(manifest: Manifest, database: Path, folder: Path, tmp_path: Path) -> None:
    assert len(manifest.parts) > 3
    target = tmp_path / "new" / "deep" / "app.db"
    done = rsqlite("restore", "--from", folder, "--to", target)
    assert (0, "") == (done.returncode, done.stderr)
    assert f"restored snapshot {manifest.name}" in done.stdout
    assert differences(dump(database), dump(target)) == []
    assert integrity(target) == "ok"
    assert [] == [name for name in leftovers(target) if not name.startswith("app.db-")]


def test_a_file_in_the_way_is_replaced_only_by_force_and_kept(
    manifest: Manifest, database: Path, folder: Path, tmp_path: Path
) -> None:
    expected = dump(database)
    with closing(sqlite3.connect(database)) as db:
        db.execute("INSERT INTO notes(text) VALUES ('only in the WAL')")
        db.commit()
        refused(rsqlite("restore", "--from", folder, "--to", database), 2, "--force replaces it and keeps it beside")
        latest = dump(database)
        done = rsqlite("restore", "--from", folder, "--to", database, "--force")
    assert 0 == done.returncode, done.stderr
    assert differences(expected, dump(database)) == []
    assert differences(latest, dump(database.with_name("app.db.before-restore-1"))) == []
    assert 0 == rsqlite("restore", "--from", folder, "--to", database, "--force").returncode
    assert database.with_name("app.db.before-restore-2").exists()


def test_plain_leaves_no_trace_of_the_agent(manifest: Manifest, database: Path, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "plain.db"
    assert 0 == rsqlite("restore", "--from", folder, "--to", target, "--plain").returncode
    with closing(sqlite3.connect(target)) as db:
        names = [name for (name,) in db.execute("SELECT name FROM sqlite_schema")]
    assert [] == [name for name in names if name.startswith("__rsqlite_")]
    assert differences(dump(database), dump(target)) == []


def test_an_agent_that_runs_is_not_disturbed(manifest: Manifest, database: Path, folder: Path) -> None:
    with FileLock(database):
        refused(rsqlite("restore", "--from", folder, "--to", database, "--force"), 4, "another agent runs on")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--from", "{folder}/nothing"), 1, "holds no snapshot"),
        (("--from", "s3://"), 2, "the bucket is missing"),
        (("--from", "file://host/x"), 2, "three slashes"),
        (("--from", "nosuch://host/x"), 2, "nosuch"),
        (("--from", "{folder}", "--snapshot", "../../x"), 2, "no name of a snapshot"),
        (("--from", "{folder}", "--snapshot", "20260101T000000Z-00000000"), 1, "'rsqlite snapshots list' shows"),
        (("--from", "{folder}", "--identity", "/no/such"), 2, "cannot be read"),
        (("--from", "s3://bucket/x", "--endpoint", "http://127.0.0.1:1"), 1, "s3://bucket/x"),
        (("--from", "s3://bucket/x", "--ca", "/no/such"), 2, "does not exist"),
    ],
)
@pytest.mark.usefixtures("s3_identity")
def test_mistakes_are_one_sentence(
    manifest: Manifest, folder: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    target = tmp_path / "new.db"
    done = rsqlite("restore", *(a.format(folder=folder) for a in arguments), "--to", target)
    refused(done, code, sentence)
    assert not target.exists()


def test_listing_showing_checking_and_pruning(
    repository: Repository, database: Path, manifest: Manifest, folder: Path
) -> None:
    time.sleep(1.1)  # names tell the second
    second = asyncio.run(take(repository, database))
    done = rsqlite("snapshots", "verify", "--from", folder)
    assert (0, "") == (done.returncode, done.stderr)
    assert "compared every row" in done.stdout
    listed = json.loads(rsqlite("snapshots", "list", "--from", folder, "--json").stdout)
    assert [(second.name, "verified"), (manifest.name, "not verified")] == [(r["name"], r["state"]) for r in listed]
    assert second.name in rsqlite("snapshots", "list", "--from", folder).stdout
    shown = json.loads(rsqlite("snapshots", "show", "--from", folder).stdout)
    assert (second.name, True) == (shown["manifest"]["name"], shown["verification"]["ok"])
    assert manifest.name == shown["manifest"]["parent"]
    assert "would remove" in rsqlite("snapshots", "prune", "--keep", 1, "--dry-run", "--from", folder).stdout
    assert f"removed {manifest.name}\n" == rsqlite("snapshots", "prune", "--keep", 1, "--from", folder).stdout
    assert "" == rsqlite("snapshots", "prune", "--max-age", "1ms", "--from", folder).stdout
    assert [second.name] == [
        r["name"] for r in json.loads(rsqlite("snapshots", "list", "--from", folder, "--json").stdout)
    ]


def test_an_encrypted_snapshot_opens_with_its_key_only(
    repository: Repository, database: Path, folder: Path, tmp_path: Path
) -> None:
    public = rsqlite("keygen", "--to", tmp_path / "key").stdout.strip()
    rsqlite("keygen", "--to", tmp_path / "other")
    asyncio.run(take(repository, database, age.read_recipients([public], None)))
    assert not any(b"row 1" in path.read_bytes() for path in folder.rglob("part-*"))
    target = tmp_path / "new.db"
    refused(rsqlite("restore", "--from", folder, "--to", target), 1, "--identity")
    refused(
        rsqlite("restore", "--from", folder, "--to", target, "--identity", tmp_path / "other"), 1, "none of the given"
    )
    assert "every stored byte" in rsqlite("snapshots", "verify", "--from", folder).stdout
    assert "every row" in rsqlite("snapshots", "verify", "--from", folder, "--identity", tmp_path / "key").stdout
    assert 0 == rsqlite("restore", "--from", folder, "--to", target, "--identity", tmp_path / "key").returncode
    assert differences(dump(database), dump(target)) == []


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("encrypted", [False, True])
def test_every_flipped_bit_is_found_before_the_rename(
    repository: Repository, database: Path, folder: Path, tmp_path: Path, encrypted: bool
) -> None:
    secret = tmp_path / "key"
    public = rsqlite("keygen", "--to", secret).stdout.strip()
    recipients = age.read_recipients([public], None) if encrypted else ()
    manifest = asyncio.run(take(repository, database, recipients))
    chance = random.Random(20261121)
    objects = [path for path in sorted((folder / "snapshots").rglob("*")) if path.is_file()]
    found = 0
    for number in range(30):
        path = chance.choice(objects)
        good = path.read_bytes()
        at, bit = chance.randrange(len(good)), 1 << chance.randrange(8)
        path.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
        target = tmp_path / f"{number}.db"  # its own: what is already fetched, whole, is not fetched again
        found += asyncio.run(_restore_fails(repository, manifest.name, target, secret))
        assert not target.exists(), f"byte {at} of {path.name}, bit {bit}"
        path.write_bytes(good)
    assert 30 == found
    assert 0 == rsqlite("restore", "--from", folder, "--to", target, "--identity", secret).returncode
    assert differences(dump(database), dump(target)) == []


async def _restore_fails(repository: Repository, name: str, target: Path, secret: Path) -> bool:
    wish = Wish(target, name, identities=age.read_identities(secret))
    try:
        await restore(repository, await repository.choose(name), wish)
    except AgentError as error:
        return len(str(error).splitlines()) == 1
    return False


def test_a_damaged_snapshot_is_listed_as_such_and_never_good(
    repository: Repository, database: Path, manifest: Manifest, folder: Path, tmp_path: Path
) -> None:
    part = folder / "snapshots" / manifest.name / "part-00001"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    done = rsqlite("snapshots", "verify", "--from", folder)
    assert 1 == done.returncode
    assert "is not right" in done.stdout
    [row] = json.loads(rsqlite("snapshots", "list", "--from", folder, "--json").stdout)
    assert ("damaged", True) == (row["state"], "digest" in row["problem"])
    refused(rsqlite("restore", "--from", folder, "--to", tmp_path / "x"), 1, "all damaged or much smaller")


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.url) as running:
        yield running


def through(proxy: FaultProxy, s3: S3) -> tuple[Repository, list[object]]:
    """The store behind the proxy, and the options of commands that name it."""
    repository = Repository(Threaded(S3Store(msgspec.structs.replace(s3, endpoint=proxy.url))))
    return repository, ["--from", f"s3://{s3.bucket}/{s3.prefix}", "--endpoint", proxy.url]


def test_a_service_that_fails_for_a_while_is_waited_out(
    proxy: FaultProxy, s3: S3, database: Path, tmp_path: Path
) -> None:
    repository, options = through(proxy, s3)
    proxy.fail_with, proxy.fail_times = 503, 2
    asyncio.run(take(repository, database))
    proxy.fail_with, proxy.fail_times = 500, 2
    proxy.cut_bodies = 2
    done = rsqlite("restore", *options, "--to", tmp_path / "new.db")
    assert 0 == done.returncode, done.stderr
    assert {"503": 2, "500": 2, "cut": 2} == dict(proxy.faults)
    assert differences(dump(database), dump(tmp_path / "new.db")) == []


@pytest.mark.parametrize("fault", ["500", "503", "cut"])
def test_a_service_that_keeps_failing_ends_in_one_sentence(
    proxy: FaultProxy, s3: S3, database: Path, tmp_path: Path, fault: str
) -> None:
    repository, options = through(proxy, s3)
    asyncio.run(take(repository, database))
    if fault == "cut":
        proxy.cut_bodies = 1 << 20
    else:
        proxy.fail_with = int(fault)
    target = tmp_path / "new" / "app.db"
    refused(rsqlite("restore", *options, "--to", target), 1, "s3://")
    if fault != "cut":
        with pytest.raises(StoreError):
            asyncio.run(take(repository, database))
    assert proxy.faults[fault] >= 5
    assert not target.exists()
    proxy.fail_with, proxy.cut_bodies = None, 0
    assert 1 == len(asyncio.run(repository.held()))
    assert 0 == rsqlite("restore", *options, "--to", target).returncode
    assert differences(dump(database), dump(target)) == []


UPLOAD = """
import asyncio, sys
from pathlib import Path
from integration.snapshots.taking import take
from replicated_sqlite_agent.settings import S3
from replicated_sqlite_agent.snapshots.repository import Repository
from replicated_sqlite_agent.snapshots.stores.base import Threaded
from replicated_sqlite_agent.snapshots.stores.s3 import S3Store
endpoint, bucket, prefix, database = sys.argv[1:]
store = S3Store(S3(bucket=bucket, prefix=prefix, endpoint=endpoint, force_path_style=True))
asyncio.run(take(Repository(Threaded(store)), Path(database)))
"""


def _has_come_to(proxy: FaultProxy, puts: int) -> bool:
    return proxy.requests["PUT"] >= puts


def _grows(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def test_kill_9_during_an_upload_leaves_no_snapshot(proxy: FaultProxy, s3: S3, tmp_path: Path) -> None:
    database = tmp_path / "large.db"
    make_database(database, rows=100, row_bytes=MIB // 4)  # 25 MiB that do not compress: a multipart upload
    repository, options = through(proxy, s3)
    kills = 0
    for _ in range(2):
        wanted = proxy.requests["PUT"] + 2
        program = [sys.executable, "-c", UPLOAD, proxy.url, s3.bucket, s3.prefix, str(database)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(program, env=environment)
        until(partial(_has_come_to, proxy, wanted), "an upload is on its way")
        proxy.hang_puts.set()
        until(proxy.held.is_set, "a piece is held")
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        proxy.hang_puts.clear()
        proxy.held.clear()
    assert 2 == kills
    assert [] == asyncio.run(repository.held())
    refused(rsqlite("restore", *options, "--to", tmp_path / "new.db"), 1, "holds no snapshot")
    assert 0 < asyncio.run(repository.store.sweep(0)), "the pieces of the cut uploads are found and removed"
    asyncio.run(take(repository, database))
    assert 0 == rsqlite("restore", *options, "--to", tmp_path / "new.db").returncode
    assert differences(dump(database), dump(tmp_path / "new.db")) == []


def test_kill_9_during_a_restore_leaves_the_target_alone(s3: S3, tmp_path: Path) -> None:
    database, target = tmp_path / "large.db", tmp_path / "target" / "app.db"
    make_database(database, rows=100, row_bytes=MIB // 4)
    make_database(target, rows=3)
    before = dump(target)
    repository = Repository(Threaded(S3Store(s3)))
    asyncio.run(take(repository, database))
    options = ["--from", repository.place, "--endpoint", str(s3.endpoint), "--to", str(target), "--force"]
    kills = 0
    for look_for in ("app.db.restoring.parts/part-00001", "app.db.restoring"):
        process = subprocess.Popen([RSQLITE, "restore", *options])
        until(partial(_grows, target.parent / look_for), f"{look_for} grows")
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        assert differences(before, dump(target)) == []
    assert 2 == kills
    assert 0 == rsqlite("restore", *options).returncode
    assert differences(dump(database), dump(target)) == []
    assert [] == [name for name in leftovers(target) if "restoring" in name]


def test_a_full_disk_ends_in_one_sentence(database: Path, manifest: Manifest, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "app.db"
    done = rsqlite("restore", "--from", folder, "--to", target, file_bytes=manifest.bytes // 2)
    refused(done, 1, "there is not enough room")
    assert [] == list(target.parent.iterdir())
    assert 0 == rsqlite("restore", "--from", folder, "--to", target).returncode
    assert differences(dump(database), dump(target)) == []
